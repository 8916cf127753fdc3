//! Nodes and wires without clients, disks or stalls: only what gossip and probes need, so that a thousand nodes fit.
//!
//! All nodes know each other and are linked from the start, at times of their own, as in a cluster that has run for
//! long. A node handles a message the moment it arrives, unless [`World::run_objects`] has its handlers take time.

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
    Ask { node: usize, id: RequestId, request: Box<Request> },
}

/// What a turn takes besides its handlers, where it takes time at all, in microseconds.
const TURN_US: u64 = 20;

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
    /// With when they left, in microseconds.
    replies: BTreeMap<RequestId, (u64, Result<Reply, ClientError>)>,
    requests: RequestId,
    /// How long one instruction of a handler takes; 0: turns take no time.
    instruction_ns: u64,
    /// Until when each node is busy with its last turn.
    busy_until_us: Vec<u64>,
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
            instruction_ns: 0,
            busy_until_us: vec![0; count],
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
                Happening::Arrive { to: node, .. } | Happening::Ask { node, .. }
                    if self.busy_until_us[node] > at_us =>
                {
                    self.at(self.busy_until_us[node], happening);
                }
                Happening::Wake { node }
                    if self.wake_us[node] == at_us && self.busy_until_us[node] > at_us =>
                {
                    self.wake_at(node, self.busy_until_us[node]);
                }
                Happening::Arrive { from, to, message } => {
                    self.turn(to, Input::Message { from: self.ids[from], message: *message });
                }
                Happening::Ask { node, id, request } => {
                    self.turn(node, Input::Request { id, request: *request });
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
        let request = Box::new(Request { operation, timeout_ms: None });
        self.at(self.now_us, Happening::Ask { node: index, id: self.requests, request });
        self.requests
    }

    pub fn answer(&mut self, id: RequestId) -> Option<Result<Reply, ClientError>> {
        self.replies.remove(&id).map(|(_, result)| result)
    }

    /// As [`World::answer`], with when it left its node, in microseconds.
    pub fn timed_answer(&mut self, id: RequestId) -> Option<(u64, Result<Reply, ClientError>)> {
        self.replies.remove(&id)
    }

    /// From now on nodes run active objects, and a turn takes time: so long for each instruction of a handler.
    pub fn run_objects(&mut self, instruction_ns: u64) {
        self.instruction_ns = instruction_ns;
        for node in self.nodes.iter_mut().flatten() {
            let sandbox = oort_script::Machine::new(|| 0).expect("there is memory");
            node.set_sandbox(Box::new(sandbox));
        }
    }

    /// Indices of nodes that run.
    pub fn living(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_some())
    }

    fn turn(&mut self, index: usize, input: Input) {
        let at = now(self.now_us);
        let Some(node) = &mut self.nodes[index] else { return };
        let mut out = Vec::new();
        let before = node.metrics().active_instructions;
        node.step(at, input, &mut out);
        if self.instruction_ns > 0 && at.mono_us >= node.next_wakeup() {
            node.step(at, Input::Tick, &mut out);
        }
        node.stage(&mut out);
        let ran = node.metrics().active_instructions - before;
        let took_us = if self.instruction_ns > 0 { TURN_US + ran * self.instruction_ns / 1000 } else { 0 };
        node.commit(now(self.now_us + took_us), &mut out);
        let wake_us = node.next_wakeup().max(self.now_us + took_us + 1);
        self.busy_until_us[index] = self.now_us + took_us;
        for output in out {
            match output {
                Output::Send { to, message } => self.send(index, self.by_id[&to], message, took_us),
                Output::Event(Event::HealthChanged { peer, to, .. }) => {
                    let about = self.by_id[&peer];
                    self.opinions.push(Opinion { at_us: self.now_us, of: index, about, health: to });
                }
                Output::Reply { id, result } => {
                    self.replies.insert(id, (self.now_us + took_us, result));
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

    fn send(&mut self, from: usize, to: usize, message: Message, after_us: u64) {
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
        let at_us = self.now_us + after_us + way_us + self.rng.below(1 + way_us / 4);
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
