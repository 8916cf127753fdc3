//! What an acknowledgement says of the disks: that `w` owners have the write, or others keep it for them.
//!
//! Looked at in the moment of the answer, since repair makes good later what an acknowledgement lacked.

use bytes::Bytes;
use oort_core::causality::Dot;
use oort_core::client::{Operation, RequestId};
use oort_core::object::Object;
use oort_core::replica::hint_row;
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey};

use super::Cluster;
use crate::faults::Fault;
use crate::history::mark;
use crate::trace::key_of;
use crate::workload::Role;

/// By what a copy of a write is known.
enum Sign {
    /// One of these dots is in it, or was seen by it.
    Dots(Vec<Dot>),
    /// The state of an active object holds this text.
    Mark(String),
}

impl Sign {
    fn is_in(&self, row: &Bytes) -> bool {
        match self {
            Sign::Dots(dots) => dots.iter().any(|dot| covers(row, *dot)),
            Sign::Mark(mark) => row.windows(mark.len()).any(|part| part == mark.as_bytes()),
        }
    }
}

/// True if a row has a write, or has seen it.
pub(super) fn covers(row: &Bytes, dot: Dot) -> bool {
    Object::decode(row).is_ok_and(|object| object.context().covers(dot))
}

impl Cluster {
    /// An acknowledged write is on the disks of `w` owners, or of nodes that owe it to them.
    ///
    /// Not looked at: keys that lost a copy to a fault meanwhile, since nobody acknowledged that.
    pub(super) fn check_copies(&mut self, id: RequestId, is_kept: bool) {
        let record = &self.history.operations[id as usize];
        let Some(key) = key_of(&record.operation).cloned() else { return };
        let (sign, needed) = match &record.operation {
            Operation::Update { quorum, .. } if !record.dots.is_empty() => {
                // It may have run twice, the second time where the first was known.
                let again = self.history.keys.get(&key).into_iter().flat_map(|past| past.runs_of(id));
                (Sign::Dots(record.dots.iter().copied().chain(again).collect()), *quorum)
            }
            Operation::Call { call, quorum, .. } if is_kept && !call.arguments.is_empty() => {
                (Sign::Mark(mark(id)), *quorum)
            }
            _ => return,
        };
        let is_steady = record.ring_stamp == self.common_stamp() && record.ring_stamp != 0;
        let asked_w = record.w;
        let is_excused = self.is_interval() && self.machines.iter().any(|machine| machine.power_failures > 0)
            || self.history.keys.get(&key).is_some_and(|past| past.was_corrupted)
            || self.lost.as_ref().is_some_and(|lost| lost.at_us >= record.start_us)
            || self.is_placed(&key)
            || matches!(sign, Sign::Mark(_)) && self.may_be_gone(&key);
        if is_excused {
            return;
        }
        let holders: Vec<usize> =
            (0..self.machines.len()).filter(|index| self.shows(*index, &key, &sign)).collect();
        let Some(ring) = self.newest_ring() else { return };
        let (position, bucket) = (key.position(), key.bucket());
        let mut groups = vec![(ring.preference_at(position), ring.replication(bucket))];
        groups.extend(ring.other_at(position).map(|list| (list, ring.state().other(bucket))));
        let rings = self.nodes().filter_map(|node| node.ring());
        let least_w = rings.map(|ring| ring.replication(bucket).w as usize).min().unwrap_or(0);
        let (mut verdict, mut is_with_owners) = (None, true);
        for (list, replication) in groups {
            let owners = &list[..list.len().min(replication.n as usize)];
            let own = owners
                .iter()
                .filter(|id| self.by_id.get(id).is_some_and(|index| holders.contains(index)))
                .count();
            let kept = owners.iter().filter(|id| self.is_covered(**id, &key, &holders)).count();
            // A call is kept by a majority of the owners themselves: nobody stands in for them.
            let is_call = matches!(sign, Sign::Mark(_));
            let majority = if is_call { owners.len() / 2 + 1 } else { 0 };
            let w = needed.w.unwrap_or(replication.w).min(owners.len() as u8) as usize;
            let w = w.max(majority);
            let by_owners = if is_call { w } else { owners.len().min(needed.primary_w as usize) };
            is_with_owners &= own >= w;
            let is_enough = match is_steady {
                true => kept >= w && own >= by_owners,
                // Whose copies counted, only those know who counted them.
                // A node that has not heard of a change of the bucket goes by the numbers before it.
                false => holders.len().max(kept) >= w.min(asked_w as usize).min(least_w),
            };
            if !is_enough {
                verdict = Some(format!(
                    "o{id} was acknowledged with {w} copies wanted (of them {by_owners} by owners), \
                     {kept} there, {own} at owners"
                ));
            }
        }
        // Others may not find with an owner yet what a stand-in still keeps for it.
        self.history.operation(id).is_firm &= is_with_owners;
        if let Some(detail) = verdict {
            self.history.blame("copies", Some(&key), detail);
        }
    }

    /// True if a machine's disk holds the write, come what may.
    fn shows(&self, index: usize, key: &ObjectKey, sign: &Sign) -> bool {
        let disk = &self.machines[index].disk;
        let row = match self.is_interval() {
            true => disk.row(Space::Data, key.row()),
            false => disk.durable_row(Space::Data, key.row()),
        };
        row.is_some_and(|row| sign.is_in(&row))
    }

    /// True if `owner` holds the write, or a holder owes it to that owner.
    pub(super) fn is_covered(&self, owner: NodeId, key: &ObjectKey, holders: &[usize]) -> bool {
        let hint = hint_row(owner, key);
        let owes = |index: &usize| self.machines[*index].disk.row(Space::Hints, &hint).is_some();
        self.by_id.get(&owner).is_some_and(|index| holders.contains(index)) || holders.iter().any(owes)
    }

    /// The stamp of the ring that all nodes know; 0 if they differ.
    pub(super) fn common_stamp(&self) -> u64 {
        let mut stamps = self.nodes().map(|node| node.ring().map_or(0, |ring| ring.stamp()));
        let first = stamps.next().unwrap_or(0);
        if stamps.all(|stamp| stamp == first) {
            first
        } else {
            0
        }
    }

    /// Owners may have been kept from their part until then.
    pub(super) fn trouble_until(&mut self, until_us: u64) {
        self.troubled_until_us = self.troubled_until_us.max(until_us);
    }

    /// Since when all owners have been there, have reached each other and have been reached, and taken what they were
    /// given: since then no node has stood in for another.
    pub(super) fn calm_since_us(&self) -> u64 {
        // Whose clock is far off takes no writes.
        let is_calm = self.troubled_until_us < self.now_us
            && !self.plan.timed.contains_key(&Fault::Clock)
            && self.nodes().count() == self.machines.len()
            && self.machines.iter().all(|machine| !machine.is_stopping && !machine.disk.is_full())
            && !self.network.is_cut()
            && self.common_stamp() != 0
            && self.newest_ring().is_some_and(|ring| !ring.is_moving())
            && self.is_healthy();
        if is_calm {
            self.troubled_until_us
        } else {
            self.now_us
        }
    }

    /// True if others may delete or overwrite the object, and with it the marks of calls that it has noted.
    pub(super) fn may_be_gone(&self, key: &ObjectKey) -> bool {
        self.workload.keys.iter().any(|spec| spec.key == *key && spec.role == Role::Changing)
    }

    pub(super) fn is_placed(&self, key: &ObjectKey) -> bool {
        self.workload
            .keys
            .iter()
            .any(|spec| spec.key == *key && spec.role == Role::Active { is_placed: true })
    }
}
