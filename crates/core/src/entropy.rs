//! Comparing partitions with their other owners, so that replicas converge without a reader's help.
//!
//! Round after round, one partition this node holds is summed up as one hash and sent to another of its owners. If
//! theirs differs, they answer with their rows' hashes, and each differing key is repaired like a stale read: both
//! sides merge. Nothing is overwritten blindly.
//!
//! Source: Dynamo §4.7. Differs: one hash over a scanned partition instead of a maintained tree; the walk is slow and
//! cheap.

use std::collections::BTreeSet;

use crate::types::{NodeId, ObjectKey, Partition};

/// The most keys waiting for repair; what does not fit is found again in the next round.
pub const REPAIRS_WAITING_MAX: usize = 10_000;
/// The most repairs in flight.
pub const REPAIRS_IN_FLIGHT_MAX: usize = 32;
/// The most rows listed in one message.
pub const ROWS_MAX: usize = 4096;

/// Where the rounds stand.
#[derive(Clone, Debug, Default)]
pub struct Entropy {
    next_partition: u16,
    next_owner: usize,
    waiting: BTreeSet<(ObjectKey, NodeId)>,
    in_flight: usize,
}

impl Entropy {
    /// The next comparison: walks all partitions with the first other owner, then all with the second, and so on.
    ///
    /// `others(partition)`: the other owners if this node holds the partition, else nothing.
    pub fn next(
        &mut self,
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
            }
            if let Some(peer) = others(partition).get(owner) {
                return Some((partition, *peer));
            }
        }
        None
    }

    /// Notes a key that differs from `peer`'s.
    pub fn differs(&mut self, key: ObjectKey, peer: NodeId) {
        if self.waiting.len() < REPAIRS_WAITING_MAX {
            self.waiting.insert((key, peer));
        }
    }

    /// The next key to repair, while fewer than [`REPAIRS_IN_FLIGHT_MAX`] are being repaired.
    pub fn start_repair(&mut self) -> Option<(ObjectKey, NodeId)> {
        if self.in_flight >= REPAIRS_IN_FLIGHT_MAX {
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
