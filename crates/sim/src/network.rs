//! Links between machines: which are open, what is cut, and when a message arrives.
//!
//! One connection joins two machines. Each end learns of its opening and closing by itself and at its own time, so the
//! ends may disagree for a while; a connection's number keeps messages of an old connection out of a new one. In each
//! direction messages arrive in the order sent, unless a fault says otherwise. A cut (part of a split) swallows one
//! direction.

use oort_core::types::Rng;

use crate::faults::Plan;

/// Names one connection: never used twice.
pub type Connection = u64;

/// One machine's end of the link to a peer.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// The open connection, as far as this end knows.
    pub open: Option<Connection>,
    /// The node wants a link to this peer.
    pub wanted: bool,
    /// Where it takes the peer to be.
    pub address: u64,
    /// Its configuration has a name that leads to the peer wherever that is.
    pub is_named: bool,
    /// An attempt to connect is under way.
    pub dialing: bool,
    /// Failed attempts in a row.
    pub failures: u32,
    /// Splits that swallow what this machine sends to the peer.
    pub cuts: u32,
    /// When the last message sent arrives.
    last_arrival_us: u64,
}

/// All links of the cluster.
#[derive(Clone, Debug)]
pub struct Network {
    machines: usize,
    ends: Vec<End>,
    /// One way, in microseconds.
    latency_us: u64,
    jitter_us: u64,
    next: Connection,
}

/// When the copies of one message arrive: none, one or two.
pub type Arrivals = [Option<u64>; 2];

impl Network {
    /// No link is open.
    pub fn new(machines: usize, rng: &mut Rng) -> Network {
        Network {
            machines,
            ends: vec![End::default(); machines * machines],
            latency_us: [20, 50, 150, 500][rng.below(4) as usize],
            jitter_us: [10, 50, 300][rng.below(3) as usize],
            next: 1,
        }
    }

    /// The end of `machine`'s link to `peer`.
    pub fn end(&mut self, machine: usize, peer: usize) -> &mut End {
        &mut self.ends[machine * self.machines + peer]
    }

    /// True if a message from `machine` would get to `peer`.
    pub fn passes(&self, machine: usize, peer: usize) -> bool {
        self.ends[machine * self.machines + peer].cuts == 0
    }

    /// The connection that is open from `machine` to `peer`, if messages pass there and back.
    pub fn way(&self, machine: usize, peer: usize) -> Option<Connection> {
        let [there, back] =
            [(machine, peer), (peer, machine)].map(|(a, b)| &self.ends[a * self.machines + b]);
        there.open.filter(|_| there.cuts == 0 && back.cuts == 0)
    }

    /// True if some message would not pass.
    pub fn is_cut(&self) -> bool {
        self.ends.iter().any(|end| end.cuts > 0)
    }

    /// True if `machine` has that connection to anybody.
    pub fn is_open(&self, machine: usize, connection: Connection) -> bool {
        let ends = &self.ends[machine * self.machines..(machine + 1) * self.machines];
        ends.iter().any(|end| end.open == Some(connection))
    }

    /// Opens a connection; both ends know of it. The caller has seen to the ends' old one.
    pub fn open(&mut self, machine: usize, peer: usize, now_us: u64) -> Connection {
        let connection = self.next;
        self.next += 1;
        for (a, b) in [(machine, peer), (peer, machine)] {
            let end = self.end(a, b);
            end.open = Some(connection);
            end.failures = 0;
            end.last_arrival_us = now_us;
        }
        connection
    }

    /// One way without faults, with jitter.
    pub fn travel_us(&self, rng: &mut Rng) -> u64 {
        self.latency_us + rng.below(self.jitter_us)
    }

    /// How long to wait before the next attempt to connect.
    pub fn back_off_us(&mut self, machine: usize, peer: usize, rng: &mut Rng) -> u64 {
        let end = self.end(machine, peer);
        end.failures += 1;
        let pause = 10_000 << end.failures.min(7);
        pause / 2 + rng.below(pause)
    }

    /// Decides what happens to a message of so many bytes that `machine` sends now.
    pub fn send(
        &mut self,
        (machine, peer, bytes): (usize, usize, usize),
        now_us: u64,
        plan: &Plan,
        rng: &mut Rng,
    ) -> Arrivals {
        let now_us = now_us + plan.slowness_us(machine, peer, bytes);
        if !self.passes(machine, peer) {
            return [None, None];
        }
        if plan.loss_per_mille > 0 && rng.chance(plan.loss_per_mille, 1000) {
            return [None, None];
        }
        let first = self.arrival_us(machine, peer, now_us, plan, rng);
        let twice = plan.duplicate_per_mille > 0 && rng.chance(plan.duplicate_per_mille, 1000);
        let second = twice.then(|| self.arrival_us(machine, peer, now_us, plan, rng));
        [Some(first), second]
    }

    fn arrival_us(&mut self, machine: usize, peer: usize, now_us: u64, plan: &Plan, rng: &mut Rng) -> u64 {
        let mut at = now_us + self.travel_us(rng);
        if plan.delay_per_mille > 0 && rng.chance(plan.delay_per_mille, 1000) {
            at += rng.below(plan.delay_us_max);
        }
        if plan.reorder_per_mille > 0 && rng.chance(plan.reorder_per_mille, 1000) {
            return at + rng.below(10 * (self.latency_us + self.jitter_us));
        }
        let end = self.end(machine, peer);
        end.last_arrival_us = end.last_arrival_us.max(at);
        end.last_arrival_us
    }
}
