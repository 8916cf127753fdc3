//! One simulated machine: a node over its disk, a clock that may be wrong, and the turns of its loop.

use std::collections::{BTreeSet, VecDeque};

use oort_core::client::RequestId;
use oort_core::node::{Input, Node};
use oort_core::types::{NodeId, Now, Rng};

use crate::cluster::Ears;
use crate::disk::Disk;
use crate::trace::EPOCH_MS;

/// A wall clock that is off, and drifts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// How far it is ahead, in microseconds.
    pub offset_us: i64,
    /// How much it gains, in millionths.
    pub drift_ppm: i64,
    /// Since when it drifts.
    pub since_us: u64,
}

impl Clock {
    /// True if it is ahead by more than any honest skew.
    pub fn is_far_ahead(&self) -> bool {
        self.offset_us > 60_000_000
    }

    /// What it shows, in milliseconds since 1970.
    pub fn wall_ms(&self, now_us: u64) -> u64 {
        let drift_us = (now_us - self.since_us) as i64 * self.drift_ppm / 1_000_000;
        let shown_us = now_us as i64 + self.offset_us + drift_us;
        (EPOCH_MS as i64 + shown_us.div_euclid(1000)) as u64
    }
}

/// A machine and what it is doing.
pub struct Machine {
    /// `None` while it is down.
    pub node: Option<Node>,
    /// Known from the first start on.
    pub id: Option<NodeId>,
    pub disk: Disk,
    pub clock: Clock,
    /// Where it listens. No two machines have the same at one time.
    pub address: u64,
    /// Starts so far: events of an earlier life do not concern a later one.
    pub boots: u64,
    pub booted_us: u64,
    pub inbox: VecDeque<Input>,
    /// Requests whose client waits for this node.
    pub waiting: BTreeSet<RequestId>,
    /// A turn is due.
    pub has_turn: bool,
    /// A turn has begun and is not committed.
    pub in_turn: bool,
    /// Power failures so far: they name the boot of the machine.
    pub power_failures: u64,
    /// The earliest wake-up that is due.
    pub wake_us: u64,
    /// The time that its node went by in the last turn, in milliseconds since 1970.
    pub turn_ms: u64,
    /// The loop is busy with a turn until then.
    pub busy_until_us: u64,
    /// It stands still until then.
    pub stalled_until_us: u64,
    /// Since when it has neither been down nor stood still for long.
    pub awake_since_us: u64,
    /// All that its node has heard of the others.
    pub(crate) ears: Ears,
    /// The turn under way has changed the ring that its node goes by.
    pub has_new_ring: bool,
    /// How long it has stood still in all.
    pub stalled_us: u64,
    /// Until when it stood still, or its disk was slow or full.
    pub troubled_until_us: u64,
    /// It was asked to stop.
    pub is_stopping: bool,
    /// How long its disk takes to sync.
    pub sync_us: u64,
    /// The disk is this many times slower at the moment.
    pub disk_slowness: u64,
    /// It was slower until then.
    pub slow_disk_until_us: u64,
    /// How long it takes to handle one input.
    pub step_us: u64,
}

impl Machine {
    /// A machine with an empty disk, switched off.
    pub fn new(rng: &mut Rng, address: u64) -> Machine {
        Machine {
            address,
            node: None,
            id: None,
            disk: Disk::default(),
            clock: Clock::default(),
            boots: 0,
            booted_us: 0,
            turn_ms: 0,
            inbox: VecDeque::new(),
            waiting: BTreeSet::new(),
            has_turn: false,
            in_turn: false,
            power_failures: 0,
            wake_us: u64::MAX,
            busy_until_us: 0,
            stalled_until_us: 0,
            awake_since_us: 0,
            ears: Ears::default(),
            has_new_ring: false,
            stalled_us: 0,
            troubled_until_us: 0,
            is_stopping: false,
            sync_us: [20, 100, 500, 3000][rng.below(4) as usize],
            disk_slowness: 1,
            slow_disk_until_us: 0,
            step_us: [2, 10, 40][rng.below(3) as usize],
        }
    }

    /// True if its node is there.
    pub fn is_up(&self) -> bool {
        self.node.is_some()
    }

    /// True if it does nothing at the moment.
    pub fn is_stalled(&self, now_us: u64) -> bool {
        now_us < self.stalled_until_us
    }

    /// It does less than it should until then.
    pub fn trouble_until(&mut self, until_us: u64) {
        self.troubled_until_us = self.troubled_until_us.max(until_us);
    }

    /// The clocks as the node reads them.
    pub fn now(&self, now_us: u64) -> Now {
        Now { mono_us: now_us - self.booted_us, wall_ms: self.clock.wall_ms(now_us) }
    }

    /// When a turn that becomes due now can start.
    pub fn free_us(&self, now_us: u64) -> u64 {
        now_us.max(self.busy_until_us).max(self.stalled_until_us)
    }
}
