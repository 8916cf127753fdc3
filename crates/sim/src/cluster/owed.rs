//! The copies that a write could not make in time: each owner that misses it when its time is up
//! is owed it by somebody. Anti-entropy would bring it some day too, so it is looked at soon.

use oort_core::causality::Dot;
use oort_core::store::Space;
use oort_core::types::ObjectKey;

use super::{Cluster, Event};
use crate::faults::Fault;

/// After the time limit of the longest request a node has this long to note what it owes, in microseconds.
const MARGIN_US: u64 = 1_000_000;
/// The longest time limit that clients ask for, in milliseconds.
const LIMIT_MS: u64 = 3_000;

/// A new version, to be looked for again.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    key: ObjectKey,
    dot: Dot,
    /// Its maker, in which of its lives, and when.
    machine: usize,
    boot: u64,
    at_us: u64,
    ring_stamp: u64,
}

impl Cluster {
    /// A machine has made versions of a key, which will be looked for when nobody waits for their copies any more.
    pub(super) fn watch_copies(&mut self, machine: usize, key: &ObjectKey, dots: Vec<Dot>) {
        let is_clock_off = self.plan.timed.contains_key(&Fault::Clock);
        if self.is_interval() || is_clock_off || self.workload.is_active(key) {
            return;
        }
        let (boot, ring_stamp) = (self.machines[machine].boots, self.common_stamp());
        let limit_ms = match self.has_short_limits() {
            true => u64::from(self.config.timeout_ms),
            false => LIMIT_MS.max(u64::from(self.config.timeout_ms)),
        };
        for dot in dots {
            let watched = Watched { key: key.clone(), dot, machine, boot, at_us: self.now_us, ring_stamp };
            let at_us = self.now_us + limit_ms * 1000 + MARGIN_US;
            self.at(at_us, Event::LookFor(Box::new(watched)));
        }
    }

    /// Nobody waits for copies of this version any more: all owners have it, or somebody owes it to them.
    pub(super) fn look_for(&mut self, watched: &Watched) {
        let Watched { key, dot, machine, boot, at_us, ring_stamp } = watched;
        let maker = &self.machines[*machine];
        let was_troubled = maker.boots != *boot || !maker.is_up() || maker.troubled_until_us >= *at_us;
        let is_hurt = self.lost.is_some()
            || self
                .history
                .keys
                .get(key)
                .is_some_and(|past| past.was_corrupted || !past.forgotten.is_empty());
        let has_moved = *ring_stamp == 0 || self.common_stamp() != *ring_stamp;
        if was_troubled || is_hurt || has_moved {
            return;
        }
        let has = |index: &usize| {
            let row = self.machines[*index].disk.row(Space::Data, key.row());
            row.is_some_and(|row| super::copies::covers(&row, *dot))
        };
        let holders: Vec<usize> = (0..self.machines.len()).filter(has).collect();
        // Where the disk refused it, it is nowhere.
        if holders.is_empty() {
            return;
        }
        let owners = self.primaries(key).into_iter();
        let missing: Vec<usize> = owners
            .filter(|index| self.machines[*index].id.is_some_and(|id| !self.is_covered(id, key, &holders)))
            .collect();
        for index in missing {
            let name = self.history.name(*dot);
            let detail = format!("n{index} misses {name}, which {holders:?} hold, and nobody owes it");
            self.history.blame("owed", Some(key), detail);
        }
    }

    /// Nodes know how many hints they keep.
    pub(super) fn count_hints(&mut self) {
        for (index, machine) in self.machines.iter().enumerate() {
            let kept = machine.disk.count(Space::Hints) as u64;
            let known = machine.node.as_ref().map_or(kept, |node| node.metrics().hints_pending);
            if known != kept {
                let detail = format!("n{index} counts {known} hints, it keeps {kept}");
                self.history.blame("hints", None, detail);
                break;
            }
        }
    }
}
