//! Where the comparing of partitions with their other owners stands, and which keys wait to be mended.
//!
//! Round after round, each partition that this node holds is compared with each of its other owners, see
//! `node/entropy.rs`. A key that differs is repaired like a stale read: both sides merge. Nothing is overwritten
//! blindly.
//!
//! Source: Dynamo §4.7.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{NodeId, Now, ObjectKey, Partition};

/// The most keys waiting for repair; what does not fit is found again in the next round.
pub const REPAIRS_WAITING_MAX: usize = 10_000;

/// Where the rounds stand.
#[derive(Clone, Debug, Default)]
pub struct Entropy {
    next_partition: u16,
    next_owner: usize,
    waiting: BTreeSet<(ObjectKey, NodeId)>,
    in_flight: usize,
    /// Whether the last comparison found no difference.
    results: BTreeMap<(Partition, NodeId), bool>,
    round_done_us: Option<u64>,
    /// The leaf of the hash tree that is checked next.
    pub check_from: usize,
}

impl Entropy {
    /// The next comparison: walks all partitions with the first other owner, then all with the second, and so on.
    ///
    /// `others(partition)`: the other owners if this node holds the partition, else nothing.
    pub fn next(
        &mut self,
        now: Now,
        partitions: u16,
        owners_max: usize,
        others: impl Fn(Partition) -> Vec<NodeId>,
    ) -> Option<(Partition, NodeId)> {
        for _ in 0..partitions as usize * owners_max.max(1) {
            let partition = Partition(self.next_partition % partitions);
            let owner = self.next_owner;
            self.next_partition = (partition.0 + 1) % partitions;
            if self.next_partition == 0 {
                self.next_owner = (self.next_owner + 1) % owners_max.max(1);
                if self.next_owner == 0 {
                    self.round_done_us = Some(now.mono_us);
                }
            }
            if let Some(peer) = others(partition).get(owner) {
                return Some((partition, *peer));
            }
        }
        None
    }

    /// Notes what a comparison with another owner found; one that could not be made finds a difference.
    pub fn compared(&mut self, partition: Partition, owner: NodeId, is_same: bool) {
        self.results.insert((partition, owner), is_same);
    }

    /// The ring has changed: other partitions, or other owners.
    pub fn forget_results(&mut self) {
        self.results.clear();
        self.round_done_us = None;
    }

    /// How many comparisons found no difference, and how many there were, each pair counted once.
    pub fn in_sync(&self) -> (u64, u64) {
        (self.results.values().filter(|is_same| **is_same).count() as u64, self.results.len() as u64)
    }

    /// When all partitions had been compared with all owners, in `mono_us`.
    pub fn round_done_us(&self) -> Option<u64> {
        self.round_done_us
    }

    /// Notes a key that differs from `peer`'s.
    pub fn differs(&mut self, key: ObjectKey, peer: NodeId) {
        if self.waiting.len() < REPAIRS_WAITING_MAX {
            self.waiting.insert((key, peer));
        }
    }

    /// The next key to repair, while fewer than `repairs_max` are being repaired.
    pub fn start_repair(&mut self, repairs_max: usize) -> Option<(ObjectKey, NodeId)> {
        if self.in_flight >= repairs_max {
            return None;
        }
        let next = self.waiting.pop_first()?;
        self.in_flight += 1;
        Some(next)
    }

    /// A repair ended, whatever came of it.
    pub fn end_repair(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}
