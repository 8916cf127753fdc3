//! Whom to keep a link to, and when to dial: every known member, and the seeds until they have told who they are.
//!
//! A link is two connections, one for each direction, and is up while both are: what is asked over the one is answered
//! over the other. A dial that fails is tried again after 50 ms, then after twice as long each time, up to a second.
//! A peer that has left for good is not dialled any more; if it is there after all, it dials.
//! Host names are resolved on a thread of their own, because the system's resolver blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;

use oort_core::membership::{Hello, Member};
use oort_core::types::NodeId;
use tracing::{info, warn};

use super::endpoint::Outbound;
use crate::wire::WireError;

const RETRY_US_MIN: u64 = 50_000;
const RETRY_US_MAX: u64 = 1_000_000;
/// A dial that is not answered in this time is given up.
const DIAL_PATIENCE_US: u64 = 3_000_000;

/// One address to keep a connection to.
struct Target {
    address: String,
    /// `None`: a seed that has not told yet.
    peer: Option<NodeId>,
    /// Dial it again when the connection closes.
    is_wanted: bool,
    slot: Option<usize>,
    is_open: bool,
    dial_at_us: u64,
    retry_us: u64,
    has_complained: bool,
    /// A dial has failed, so the peer is known to be absent.
    has_failed: bool,
}

/// There is a connection to the peer already.
#[derive(Debug)]
pub struct Double;

/// All addresses to keep connections to.
pub struct Links {
    targets: Vec<Target>,
    /// Connections to peers whose greeting was answered, with the answer.
    open: BTreeMap<NodeId, (usize, Hello)>,
    /// Number of connections from peers that have greeted.
    inbound: BTreeMap<NodeId, usize>,
    /// Peers with both.
    linked: BTreeSet<NodeId>,
    resolved: mpsc::Receiver<(String, Option<SocketAddr>)>,
    resolver: mpsc::Sender<(String, Option<SocketAddr>)>,
}

impl Links {
    /// Dials `seeds` at once.
    pub fn new(seeds: Vec<String>) -> Links {
        let (resolver, resolved) = mpsc::channel();
        let mut links = Links {
            targets: Vec::new(),
            open: BTreeMap::new(),
            inbound: BTreeMap::new(),
            linked: BTreeSet::new(),
            resolved,
            resolver,
        };
        for address in seeds {
            links.add(address, None, true, 0);
        }
        links
    }

    fn add(&mut self, address: String, peer: Option<NodeId>, is_wanted: bool, dial_at_us: u64) {
        self.targets.push(Target {
            address,
            peer,
            is_wanted,
            slot: None,
            is_open: false,
            dial_at_us,
            retry_us: RETRY_US_MIN,
            has_complained: false,
            has_failed: false,
        });
    }

    /// The slot of the open link to `peer`.
    pub fn open_slot(&self, peer: NodeId) -> Option<usize> {
        self.open.get(&peer).map(|(slot, _)| *slot)
    }

    /// Keeps a link to `peer` at `address` from now on. Returns the slot of a link to close, if its address was
    /// another.
    pub fn want(&mut self, peer: NodeId, address: String, now_us: u64) -> Option<usize> {
        if let Some(target) = self.targets.iter_mut().find(|target| target.peer == Some(peer)) {
            target.is_wanted = true;
            if target.address == address {
                return None;
            }
            target.address = address;
            (target.dial_at_us, target.retry_us) = (now_us, RETRY_US_MIN);
            return target.slot;
        }
        match self.targets.iter_mut().find(|target| target.peer.is_none() && target.address == address) {
            Some(seed) => seed.peer = Some(peer),
            None => self.add(address, Some(peer), true, now_us),
        }
        None
    }

    /// Dials `peer` no more. A link that is open stays until it closes.
    pub fn forget(&mut self, peer: NodeId) {
        self.targets.iter_mut().filter(|target| target.peer == Some(peer)).for_each(|target| {
            target.is_wanted = false;
        });
        self.targets.retain(|target| target.is_wanted || target.slot.is_some());
    }

    /// A peer dialled us: it is there, so dial it without waiting, also if nobody has told of it before.
    pub fn heard_of(&mut self, member: &Member, now_us: u64) {
        let target = self
            .targets
            .iter_mut()
            .find(|target| target.peer == Some(member.id) || target.address == member.addresses.peer);
        let Some(target) = target else {
            // Once the link is up the node says whether it is wanted.
            return self.add(member.addresses.peer.clone(), Some(member.id), false, now_us);
        };
        target.retry_us = RETRY_US_MIN;
        if target.slot.is_none() {
            target.dial_at_us = target.dial_at_us.min(now_us);
        }
    }

    /// When the next dial is due.
    pub fn next_dial_us(&self) -> u64 {
        let due = self.targets.iter().filter(|target| target.slot.is_none()).map(|target| target.dial_at_us);
        due.min().unwrap_or(u64::MAX)
    }

    /// What to dial now: the address as it is known, and resolved.
    pub fn due(&mut self, now_us: u64) -> Vec<(String, SocketAddr)> {
        let mut ready = Vec::new();
        while let Ok((address, resolved)) = self.resolved.try_recv() {
            match resolved {
                Some(resolved) => ready.push((address, resolved)),
                None => warn!(address, "cannot resolve the address of a peer"),
            }
        }
        for target in &mut self.targets {
            if target.slot.is_some() || target.dial_at_us > now_us {
                continue;
            }
            target.dial_at_us = now_us + target.retry_us;
            target.retry_us = (target.retry_us * 2).min(RETRY_US_MAX);
            match target.address.parse() {
                Ok(address) => ready.push((target.address.clone(), address)),
                Err(_) => resolve(self.resolver.clone(), target.address.clone()),
            }
        }
        ready
    }

    /// A connection to `address` is under way in `slot`.
    pub fn dialled(&mut self, address: &str, slot: usize) {
        let target =
            self.targets.iter_mut().find(|target| target.address == address && target.slot.is_none());
        if let Some(target) = target {
            target.slot = Some(slot);
        }
    }

    /// The greeting on `slot` was answered with `hello`. Errors: there is a connection to that peer already.
    pub fn opened(&mut self, slot: usize, hello: Hello) -> Result<Option<Hello>, Double> {
        let peer = hello.member.id;
        let Some(index) = self.targets.iter().position(|target| target.slot == Some(slot)) else {
            return Err(Double);
        };
        // Another entry for the same peer, as after a change of address, is no longer needed.
        if self.open.contains_key(&peer) {
            self.targets.remove(index);
            return Err(Double);
        }
        let target = &mut self.targets[index];
        (target.peer, target.is_open, target.retry_us, target.has_complained) =
            (Some(peer), true, RETRY_US_MIN, false);
        self.targets
            .retain(|other| other.slot == Some(slot) || other.peer != Some(peer) || other.slot.is_some());
        self.open.insert(peer, (slot, hello));
        Ok(self.complete(peer))
    }

    /// A connection from `peer` has greeted. Returns the peer's hello if the link is up by that.
    pub fn inbound_opened(&mut self, peer: NodeId) -> Option<Hello> {
        *self.inbound.entry(peer).or_default() += 1;
        self.complete(peer)
    }

    fn complete(&mut self, peer: NodeId) -> Option<Hello> {
        let (_, hello) = self.open.get(&peer)?;
        let is_new = self.inbound.contains_key(&peer) && self.linked.insert(peer);
        is_new.then(|| hello.clone())
    }

    /// A connection from `peer` is gone. True if the link is down by that.
    pub fn inbound_closed(&mut self, peer: NodeId) -> bool {
        let Some(count) = self.inbound.get_mut(&peer) else { return false };
        *count -= 1;
        *count == 0 && {
            self.inbound.remove(&peer);
            self.linked.remove(&peer)
        }
    }

    /// True once each of `peers` is linked or known to be absent.
    pub fn is_settled(&self, mut peers: impl Iterator<Item = NodeId>) -> bool {
        peers.all(|peer| {
            let has_failed = |target: &Target| target.peer == Some(peer) && target.has_failed;
            self.linked.contains(&peer) || self.targets.iter().any(has_failed)
        })
    }

    /// A link was refused by us or by the other side: say so once, and try again rarely.
    pub fn refused(&mut self, outbound: &Outbound, error: &WireError) {
        let Some(index) = self.targets.iter().position(|target| target.address == outbound.address) else {
            return;
        };
        let is_self = matches!(error, WireError::Refused { why } if why.contains("same id"));
        if is_self {
            // The list of seeds may name every node, this one included.
            info!(address = outbound.address, "this node is its own seed");
            self.targets.remove(index);
            return;
        }
        let target = &mut self.targets[index];
        target.retry_us = RETRY_US_MAX;
        if !std::mem::replace(&mut target.has_complained, true) {
            warn!(address = outbound.address, %error, "cannot link");
        }
    }

    /// The connection in `slot` is gone. Returns the peer whose link is down by that.
    pub fn closed(&mut self, slot: usize, now_us: u64) -> Option<NodeId> {
        let index = self.targets.iter().position(|target| target.slot == Some(slot))?;
        let target = &mut self.targets[index];
        target.slot = None;
        target.dial_at_us = now_us + target.retry_us;
        let (peer, was_open) = (target.peer, std::mem::replace(&mut target.is_open, false));
        target.has_failed |= !was_open;
        if !target.is_wanted {
            self.targets.remove(index);
        }
        let peer = peer.filter(|_| was_open)?;
        self.open.remove(&peer);
        self.linked.remove(&peer).then_some(peer)
    }

    /// Slots of dials that took too long.
    pub fn overdue(&self, now_us: u64) -> Vec<usize> {
        let is_overdue = |target: &&Target| !target.is_open && target.dial_at_us + DIAL_PATIENCE_US < now_us;
        self.targets.iter().filter(is_overdue).filter_map(|target| target.slot).collect()
    }
}

fn resolve(answers: mpsc::Sender<(String, Option<SocketAddr>)>, address: String) {
    std::thread::spawn(move || {
        let resolved = address.to_socket_addrs().ok().and_then(|mut all| all.next());
        // The loop may have ended meanwhile.
        let _ = answers.send((address, resolved));
    });
}
