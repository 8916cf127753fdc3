//! Whom to keep a link to, and when to dial: every known member, and the seeds until they have told who they are.
//!
//! A link is two connections, one for each direction, and is up while both are: what is asked over the one is answered
//! over the other. A dial that fails is tried again after 50 ms, then after twice as long each time, up to a second.
//! A peer that has left for good is not dialled any more; if it is there after all, it dials.
//!
//! Addresses change: a node may come back elsewhere, and another may have its address by now. The greeting says who
//! answers, so a connection belongs to the node that greeted, and the one that was expected is looked for further; the
//! core tells its new address as soon as the node has greeted anybody.
//! Host names are resolved on a thread of their own, because the system's resolver blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;

use oort_core::membership::{Hello, Member, Refusal};
use oort_core::types::NodeId;
use tracing::{info, warn};

use crate::handle::Trouble;
use crate::wire::WireError;

const RETRY_US_MIN: u64 = 50_000;
const RETRY_US_MAX: u64 = 1_000_000;
/// A dial that is not answered in this time is given up.
const DIAL_PATIENCE_US: u64 = 3_000_000;
/// A seed that has not answered for so long is reported. Nodes that start together miss each other at first.
const SEED_PATIENCE_US: u64 = 5_000_000;
/// A newcomer may be greeted before it knows that its own greeting was answered; only more refusals are worth a line.
const UNASKED_TIMES: u64 = 5;
/// Most troubles that are remembered: beyond, the oldest is forgotten.
const TROUBLES_MAX: usize = 64;
/// A trouble that has not come again for so long is over.
const TROUBLE_LASTS_US: u64 = 60_000_000;

/// One address to keep a connection to.
struct Target {
    address: String,
    /// `None`: a seed that has not told yet.
    peer: Option<NodeId>,
    /// The configuration names this address.
    is_seed: bool,
    /// Dial it again when the connection closes.
    is_wanted: bool,
    slot: Option<usize>,
    is_open: bool,
    dial_at_us: u64,
    retry_us: u64,
    /// A dial has failed, so the peer is known to be absent.
    has_failed: bool,
    /// Since when dials have failed.
    failing_since_us: Option<u64>,
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
    /// Connections under way to addresses that nobody wants dialled any more.
    orphans: Vec<usize>,
    troubles: Vec<Trouble>,
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
            orphans: Vec::new(),
            troubles: Vec::new(),
            resolved,
            resolver,
        };
        for address in seeds {
            links.add(address, None, true, 0).is_seed = true;
        }
        links
    }

    fn add(
        &mut self,
        address: String,
        peer: Option<NodeId>,
        is_wanted: bool,
        dial_at_us: u64,
    ) -> &mut Target {
        self.targets.push(Target {
            address,
            peer,
            is_seed: false,
            is_wanted,
            slot: None,
            is_open: false,
            dial_at_us,
            retry_us: RETRY_US_MIN,
            has_failed: false,
            failing_since_us: None,
        });
        self.targets.last_mut().expect("one was just added")
    }

    /// The position of the entry for `peer`.
    fn position_of(&self, peer: NodeId) -> Option<usize> {
        self.targets.iter().position(|target| target.peer == Some(peer))
    }

    /// Whether this node dials `member` of its own accord, so that it may be taken into its cluster.
    pub fn dials(&self, member: &Member) -> bool {
        // The address of a seed that is another node's was meant for that one.
        let is_free = |target: &Target| target.peer.is_none_or(|peer| peer == member.id);
        let is_its =
            |target: &Target| target.is_seed && is_free(target) && target.address == member.addresses.peer;
        self.open.contains_key(&member.id) || self.targets.iter().any(is_its)
    }

    /// Whether `peer` has dialled this node and was let in.
    pub fn has_greeted(&self, peer: NodeId) -> bool {
        self.inbound.contains_key(&peer)
    }

    /// Whether `slot` is a connection to a seed that `peer` may be.
    pub fn is_seed_of(&self, slot: usize, peer: NodeId) -> bool {
        let is_free = |target: &Target| target.peer.is_none_or(|bound| bound == peer);
        self.targets.iter().any(|target| target.slot == Some(slot) && target.is_seed && is_free(target))
    }

    /// The seed whose connection `slot` is.
    pub fn seed_in(&self, slot: usize) -> Option<&str> {
        let target = self.targets.iter().find(|target| target.slot == Some(slot) && target.is_seed)?;
        Some(&target.address)
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
            None => {
                self.add(address, Some(peer), true, now_us);
            }
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

    /// A peer dialled us: it is there, at the address it says, so dial it without waiting, also if nobody has told of
    /// it before.
    pub fn heard_of(&mut self, member: &Member, now_us: u64) {
        let address = &member.addresses.peer;
        let is_seed = |target: &Target| target.peer.is_none() && target.address == *address;
        let index = self.position_of(member.id).or_else(|| self.targets.iter().position(is_seed));
        let Some(index) = index else {
            // Once the link is up the node says whether it is wanted.
            self.add(address.clone(), Some(member.id), false, now_us);
            return;
        };
        let target = &mut self.targets[index];
        target.retry_us = RETRY_US_MIN;
        if target.slot.is_none() {
            target.address.clone_from(address);
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
        self.troubles.retain(|trouble| now_us <= trouble.last_us + TROUBLE_LASTS_US);
        let mut ready = Vec::new();
        while let Ok((address, resolved)) = self.resolved.try_recv() {
            match resolved {
                Some(resolved) => ready.push((address, resolved)),
                None => self.complain(address, None, true, "its name cannot be resolved".into(), now_us),
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
        let Some(mut index) = self.targets.iter().position(|target| target.slot == Some(slot)) else {
            return Err(Double);
        };
        let expected = self.targets[index].peer;
        let is_another = expected.is_some_and(|expected| expected != peer);
        if is_another {
            // The peer that was expected lives elsewhere now. Its entry stays, to be told where.
            let target = &mut self.targets[index];
            target.slot = None;
            target.retry_us = RETRY_US_MAX;
            target.dial_at_us = target.dial_at_us.saturating_add(RETRY_US_MAX);
            target.has_failed = true;
        }
        if self.open.contains_key(&peer) {
            if !is_another {
                // Another entry for the same peer, as after a change of address, is no longer needed.
                self.targets.remove(index);
            }
            return Err(Double);
        }
        if is_another {
            index = self.move_to(peer, self.targets[index].address.clone());
        }
        let target = &mut self.targets[index];
        (target.peer, target.slot, target.is_open) = (Some(peer), Some(slot), true);
        (target.retry_us, target.failing_since_us) = (RETRY_US_MIN, None);
        let address = target.address.clone();
        self.targets
            .retain(|other| other.slot == Some(slot) || other.peer != Some(peer) || other.slot.is_some());
        self.troubles.retain(|trouble| !trouble.is_ours || trouble.address != address);
        self.open.insert(peer, (slot, hello));
        Ok(self.complete(peer))
    }

    /// The index of the entry for `peer`, whose address is `address` from now on.
    fn move_to(&mut self, peer: NodeId, address: String) -> usize {
        match self.position_of(peer) {
            Some(index) => {
                self.targets[index].address = address;
                self.orphans.extend(self.targets[index].slot.take());
                index
            }
            None => {
                // Once the link is up the node says whether it is wanted.
                self.add(address, Some(peer), false, 0);
                self.targets.len() - 1
            }
        }
    }

    /// A connection from `peer` has greeted. Returns the peer's hello if the link is up by that.
    pub fn inbound_opened(&mut self, peer: NodeId) -> Option<Hello> {
        *self.inbound.entry(peer).or_default() += 1;
        self.troubles.retain(|trouble| trouble.is_ours || trouble.peer != Some(peer));
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

    /// The link that was dialled in `slot` was refused by us or by the other side: say so once, and try again rarely.
    pub fn refused(&mut self, slot: usize, error: &WireError, now_us: u64) {
        let Some(index) = self.targets.iter().position(|target| target.slot == Some(slot)) else {
            return;
        };
        let target = &mut self.targets[index];
        let (is_itself, is_unasked) = match error {
            WireError::Refused { why, .. } => (why == Refusal::ITSELF, *why == Refusal::Unasked.to_string()),
            _ => (false, false),
        };
        if !is_unasked {
            target.retry_us = RETRY_US_MAX;
        }
        match is_itself {
            // The list of seeds may name every node, this one included.
            true if target.peer.is_none() => {
                info!(address = target.address, "this node is its own seed");
                self.targets.remove(index);
            }
            // This node has the address that the peer had.
            true => {}
            false => {
                let (address, peer) = (target.address.clone(), target.peer);
                self.complain(address, peer, true, error.to_string(), now_us)
            }
        }
    }

    /// A peer that dialled this node from `address` was refused.
    pub fn refused_inbound(&mut self, address: String, peer: Option<NodeId>, error: &WireError, now_us: u64) {
        self.complain(address, peer, false, error.to_string(), now_us);
    }

    /// Remembers why there is no link, and says so if that is new.
    fn complain(&mut self, address: String, peer: Option<NodeId>, is_ours: bool, why: String, now_us: u64) {
        // A peer that dials comes from another port each time.
        let is_same = |trouble: &&mut Trouble| {
            let is_same_end = match (is_ours, peer) {
                (true, _) | (false, None) => trouble.address == address,
                (false, Some(_)) => trouble.peer == peer,
            };
            trouble.is_ours == is_ours && is_same_end && trouble.why == why
        };
        let patience = if why.contains(&Refusal::Unasked.to_string()) { UNASKED_TIMES } else { 1 };
        let times = match self.troubles.iter_mut().find(is_same) {
            Some(trouble) => {
                (trouble.times, trouble.last_us) = (trouble.times + 1, now_us);
                trouble.times
            }
            None => {
                if self.troubles.len() >= TROUBLES_MAX {
                    self.troubles.remove(0);
                }
                let (address, why) = (address.clone(), why.clone());
                self.troubles.push(Trouble { address, peer, is_ours, why, times: 1, last_us: now_us });
                1
            }
        };
        if times == patience {
            match is_ours {
                true => warn!(address, why, "cannot link"),
                false => warn!(from = address, why, "a peer is refused"),
            }
        }
    }

    /// The links that are wanted, by this node or another, and are not there, with the reasons.
    pub fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }

    /// The connection in `slot` is gone. Returns the peer whose link is down by that.
    pub fn closed(&mut self, slot: usize, now_us: u64) -> Option<NodeId> {
        let index = self.targets.iter().position(|target| target.slot == Some(slot))?;
        let target = &mut self.targets[index];
        target.slot = None;
        target.dial_at_us = now_us + target.retry_us;
        let (peer, was_open) = (target.peer, std::mem::replace(&mut target.is_open, false));
        target.has_failed |= !was_open;
        let failing_since_us = match was_open {
            true => now_us,
            false => *target.failing_since_us.get_or_insert(now_us),
        };
        let is_silent_seed = target.is_seed && peer.is_none() && now_us > failing_since_us + SEED_PATIENCE_US;
        let address = target.address.clone();
        if !target.is_wanted {
            self.targets.remove(index);
        }
        if is_silent_seed && !self.troubles.iter().any(|other| other.is_ours && other.address == address) {
            self.complain(address, None, true, "this seed does not answer".into(), now_us);
        }
        let peer = peer.filter(|_| was_open)?;
        self.open.remove(&peer);
        self.linked.remove(&peer).then_some(peer)
    }

    /// Slots of dials that took too long, or that nobody waits for any more.
    pub fn overdue(&mut self, now_us: u64) -> Vec<usize> {
        let is_overdue = |target: &&Target| !target.is_open && target.dial_at_us + DIAL_PATIENCE_US < now_us;
        let overdue = self.targets.iter().filter(is_overdue).filter_map(|target| target.slot);
        self.orphans.drain(..).chain(overdue).collect()
    }
}

fn resolve(answers: mpsc::Sender<(String, Option<SocketAddr>)>, address: String) {
    std::thread::spawn(move || {
        let resolved = address.to_socket_addrs().ok().and_then(|mut all| all.next());
        // The loop may have ended meanwhile.
        let _ = answers.send((address, resolved));
    });
}
