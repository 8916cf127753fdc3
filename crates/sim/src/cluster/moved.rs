//! What a ring change must have done when other nodes begin to answer reads: every acknowledged write is with so many
//! of them that a read quorum meets it.
//!
//! Looked at in the moment in which the first node goes by the new owners: later hints and repair make good much.

use std::collections::BTreeMap;

use oort_core::bucket::Conflict;
use oort_core::client::Operation;
use oort_core::object::Object;
use oort_core::store::Space;
use oort_core::types::ObjectKey;

use super::Cluster;
use crate::history::{mark, OpRecord, Outcome};

/// What one machine's disk holds of a key.
struct Copy {
    object: Object,
    bytes: bytes::Bytes,
}

impl Cluster {
    /// Some node has a new ring. If others answer reads in it than in the ring before, they have what they need.
    pub(super) fn check_moved(&mut self) {
        let Some(ring) = self.newest_ring() else { return };
        let (stamp, is_serving) = (ring.stamp(), ring.state().arrived);
        if stamp <= self.moved_stamp {
            return;
        }
        self.moved_stamp = stamp;
        let is_excused = self.is_interval() || self.lost.is_some() || self.has_forced;
        if !is_serving || is_excused {
            return;
        }
        let keys: Vec<ObjectKey> = self.history.keys.keys().cloned().collect();
        for key in keys {
            if let Some(detail) = self.lacking(&key) {
                self.history.blame("moved", Some(&key), detail);
            }
        }
    }

    /// An acknowledged write of `key` that a read quorum of its owners may miss.
    fn lacking(&self, key: &ObjectKey) -> Option<String> {
        let past = &self.history.keys[key];
        let ring = self.newest_ring()?;
        let replication = ring.replication(key.bucket());
        let list = ring.preference_at(key.position());
        let owners = &list[..list.len().min(replication.n as usize)];
        let (r, w) = ((replication.r as usize).min(owners.len()), (replication.w as usize).min(owners.len()));
        if past.was_corrupted || r + w <= owners.len() || self.is_placed(key) {
            return None;
        }
        let copies: BTreeMap<usize, Copy> =
            (0..self.machines.len()).filter_map(|index| Some((index, self.copy(index, key)?))).collect();
        let operations = past.operations.iter().map(|id| (*id, &self.history.operations[*id as usize]));
        let firm = operations.filter(|(_, op)| op.outcome == Outcome::Acked && op.is_firm);
        for (id, op) in firm {
            let is_there = |copy: &Copy| match &op.operation {
                Operation::Call { .. } => holds(copy, &mark(id)),
                _ => op.dots.iter().any(|dot| copy.object.context().covers(*dot)),
            };
            let may_be_gone = matches!(op.operation, Operation::Call { .. }) && self.may_be_gone(key);
            if !leaves_something(op) || may_be_gone || self.is_forgotten(key, op) {
                continue;
            }
            let holders: Vec<usize> =
                copies.iter().filter(|(_, copy)| is_there(copy)).map(|(index, _)| *index).collect();
            let count = owners.iter().filter(|id| self.is_covered(**id, key, &holders)).count();
            if count < owners.len() + 1 - r {
                let owners: Vec<_> = owners.iter().map(|id| self.by_id.get(id)).collect();
                return Some(format!(
                    "o{id} was acknowledged and is with {holders:?}; {count} of the new owners {owners:?} \
                     have it or are owed it: a read of {r} may miss it"
                ));
            }
        }
        None
    }

    fn copy(&self, index: usize, key: &ObjectKey) -> Option<Copy> {
        let disk = &self.machines[index].disk;
        let bytes = disk.durable_row(Space::Data, key.row())?;
        let object = Object::decode(&bytes).ok()?;
        Some(Copy { object, bytes })
    }

    /// True if all have agreed to forget the write, or what superseded it.
    fn is_forgotten(&self, key: &ObjectKey, op: &OpRecord) -> bool {
        let past = &self.history.keys[key];
        if past.forgotten.is_empty() {
            return false;
        }
        let gone: Vec<_> = past.forgotten_until(u64::MAX).collect();
        let is_older = |dot| gone.iter().any(|gone| gone >= dot);
        if self.workload.properties(key).conflict == Conflict::Lww && op.dots.iter().any(is_older) {
            return true;
        }
        let reached = past.reached(&past.edges(&self.history.operations), &gone);
        let mut births = past.births.iter().zip(&reached.is_reached);
        births.any(|(birth, is_reached)| *is_reached && op.dots.contains(&birth.dot))
    }
}

fn holds(copy: &Copy, mark: &str) -> bool {
    copy.bytes.windows(mark.len()).any(|part| part == mark.as_bytes())
}

/// True if the operation is known to have left something that can be found again.
fn leaves_something(op: &OpRecord) -> bool {
    match &op.operation {
        Operation::Call { call, .. } => op.is_kept && !call.arguments.is_empty(),
        _ => !op.dots.is_empty(),
    }
}
