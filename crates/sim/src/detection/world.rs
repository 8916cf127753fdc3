//! Nodes and wires without clients, disks or stalls: only what gossip and probes need, so that a thousand nodes fit.
//!
//! All nodes know each other and are linked from the start, at times of their own, as in a cluster that has run for
//! long. A node handles a message the moment it arrives.

use std::collections::BTreeMap;

use oort_core::client::{ClientError, Operation, Reply, Request, RequestId};
use oort_core::config::{Addresses, NodeConfig};
use oort_core::detector::Health;
use oort_core::membership::Gossip;
use oort_core::message::{Control, Message};
use oort_core::node::{Event, Input, Node, Output};
use oort_core::store::MemoryStore;
use oort_core::types::{NodeId, Now, Rng};

use crate::trace::EPOCH_MS;

/// What a frame adds to a message: its length and checksum.
const FRAME_BYTES: u64 = 8;

/// One way from one node to another, in microseconds, before jitter.
pub type Wires = fn(usize, usize) -> u64;

/// How one node came to think of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opinion {
    pub at_us: u64,
    pub of: usize,
    pub about: usize,
    pub health: Health,
}

enum Happening {
    Arrive { from: usize, to: usize, message: Box<Message> },
    Wake { node: usize },
}

pub struct World {
    pub now_us: u64,
    /// `None`: without power. Its links stay open.
    pub nodes: Vec<Option<Node>>,
    /// Messages in a thousand that vanish.
    pub loss_per_mille: u64,
    /// Nothing that this node says arrives.
    pub muted: Option<usize>,
    pub messages: u64,
    pub bytes: u64,
    /// Changes of opinion, in order of time.
    pub opinions: Vec<Opinion>,
    /// Who asked whom for a replica's copy.
    pub reads: Vec<(usize, usize)>,
    replies: BTreeMap<RequestId, Result<Reply, ClientError>>,
    requests: RequestId,
    wires: Wires,
    rng: Rng,
    ids: Vec<NodeId>,
    by_id: BTreeMap<NodeId, usize>,
    wake_us: Vec<u64>,
    queue: BTreeMap<(u64, u64), Happening>,
    made: u64,
    encoded: Vec<u8>,
}

impl World {
    /// `count` nodes of one configuration. A ring is founded if that asks for one.
    pub fn new(count: usize, config: &NodeConfig, wires: Wires, seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let starts_us: Vec<u64> = (0..count).map(|_| rng.below(config.gossip_ms * 1000)).collect();
        let open = |(index, start_us): (usize, &u64)| {
            let addresses = Addresses { peer: index.to_string(), ..Addresses::default() };
            let config = NodeConfig { name: format!("n{index}"), addresses, ..config.clone() };
            let node = Node::open(config, rng.next_u64(), Box::new(MemoryStore::default()), now(*start_us));
            Some(node.expect("an empty store can be opened"))
        };
        let nodes: Vec<Option<Node>> = starts_us.iter().enumerate().map(open).collect();
        let ids: Vec<NodeId> = nodes.iter().flatten().map(Node::id).collect();
        let mut world = World {
            now_us: 0,
            by_id: ids.iter().enumerate().map(|(index, id)| (*id, index)).collect(),
            ids,
            nodes,
            loss_per_mille: 0,
            muted: None,
            messages: 0,
            bytes: 0,
            opinions: Vec::new(),
            reads: Vec::new(),
            replies: BTreeMap::new(),
            requests: 0,
            wires,
            rng,
            wake_us: vec![u64::MAX; count],
            queue: BTreeMap::new(),
            made: 0,
            encoded: Vec::new(),
        };
        world.link_all(&starts_us);
        world
    }

    /// Has every node know and hear every other.
    fn link_all(&mut self, starts_us: &[u64]) {
        let hellos: Vec<_> = self.nodes.iter().flatten().map(|node| node.hello(now(0))).collect();
        let members: Vec<_> = hellos.iter().map(|hello| hello.member.clone()).collect();
        for (index, start_us) in starts_us.iter().enumerate() {
            let node = self.nodes[index].as_mut().expect("all nodes run");
            let mut said = Vec::new();
            let all = Gossip::Delta { members: members.clone(), ring: None, buckets: Vec::new() };
            let peers = || hellos.iter().filter(|hello| hello.member.id != members[index].id);
            for hello in peers() {
                node.step(now(*start_us), Input::LinkUp { hello: hello.clone() }, &mut said);
                // The first question needs no answer: that the peer is there is what this sets out from.
                let word = Message::Control(Control::Gossip(Gossip::Rumour { silent: Vec::new() }));
                node.step(now(*start_us), Input::Message { from: hello.member.id, message: word }, &mut said);
            }
            if let Some(peer) = peers().next() {
                let message = Message::Control(Control::Gossip(all));
                node.step(now(*start_us), Input::Message { from: peer.member.id, message }, &mut said);
            }
            node.stage(&mut said);
            self.wake_at(index, *start_us);
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, us: u64) {
        let end_us = self.now_us + us;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end_us) {
            let ((at_us, _), happening) = entry.remove_entry();
            self.now_us = at_us;
            match happening {
                Happening::Arrive { from, to, message } => {
                    self.turn(to, Input::Message { from: self.ids[from], message: *message });
                }
                Happening::Wake { node } if self.wake_us[node] == at_us => {
                    self.wake_us[node] = u64::MAX;
                    self.turn(node, Input::Tick);
                }
                Happening::Wake { .. } => {}
            }
        }
        self.now_us = end_us;
    }

    /// Takes a node's power away.
    pub fn crash(&mut self, index: usize) {
        self.nodes[index] = None;
    }

    /// A client's request, and its answer once time has passed.
    pub fn ask(&mut self, index: usize, operation: Operation) -> RequestId {
        self.requests += 1;
        let request = Request { operation, timeout_ms: None };
        self.turn(index, Input::Request { id: self.requests, request });
        self.requests
    }

    pub fn answer(&mut self, id: RequestId) -> Option<Result<Reply, ClientError>> {
        self.replies.remove(&id)
    }

    /// Indices of nodes that run.
    pub fn living(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_some())
    }

    fn turn(&mut self, index: usize, input: Input) {
        let at = now(self.now_us);
        let Some(node) = &mut self.nodes[index] else { return };
        let mut out = Vec::new();
        node.step(at, input, &mut out);
        node.stage(&mut out);
        node.commit(at, &mut out);
        let wake_us = node.next_wakeup().max(self.now_us + 1);
        for output in out {
            match output {
                Output::Send { to, message } => self.send(index, self.by_id[&to], message),
                Output::Event(Event::HealthChanged { peer, to, .. }) => {
                    let about = self.by_id[&peer];
                    self.opinions.push(Opinion { at_us: self.now_us, of: index, about, health: to });
                }
                Output::Reply { id, result } => {
                    self.replies.insert(id, result);
                }
                Output::Connect { .. }
                | Output::Disconnect { .. }
                | Output::Refuse { .. }
                | Output::Event(_) => {}
            }
        }
        if wake_us < self.wake_us[index] {
            self.wake_at(index, wake_us);
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.encoded.clear();
        message.encode(&mut self.encoded);
        self.messages += 1;
        self.bytes += FRAME_BYTES + self.encoded.len() as u64;
        if matches!(message, Message::Read { .. }) {
            self.reads.push((from, to));
        }
        let is_lost = self.loss_per_mille > 0 && self.rng.chance(self.loss_per_mille, 1000);
        if is_lost || self.muted == Some(from) {
            return;
        }
        let way_us = (self.wires)(from, to);
        let at_us = self.now_us + way_us + self.rng.below(1 + way_us / 4);
        self.at(at_us, Happening::Arrive { from, to, message: Box::new(message) });
    }

    fn wake_at(&mut self, node: usize, at_us: u64) {
        self.wake_us[node] = at_us;
        self.at(at_us, Happening::Wake { node });
    }

    fn at(&mut self, at_us: u64, happening: Happening) {
        self.made += 1;
        self.queue.insert((at_us, self.made), happening);
    }
}

fn now(now_us: u64) -> Now {
    Now { mono_us: now_us, wall_ms: EPOCH_MS + now_us / 1000 }
}
