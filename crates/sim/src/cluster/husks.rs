//! Where the code and the state of an object are that chose its holders: no version may be left with husks alone.
//!
//! Looked at in the moment in which a node lets go what it had: a copy that is somewhere else by chance, or comes
//! later, hides much.

use bytes::Bytes;
use oort_core::causality::Dot;
use oort_core::object::{Object, Value};
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey};

use super::Cluster;
use crate::disk::Stored;

/// A call has ended so long after its home stored what it changed: longer than any time limit,
/// and than machines stand still.
const TAKEN_BACK_US_MAX: u64 = 60_000_000;

/// How a row has a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Has {
    /// With code and state, or something that has seen it.
    Whole,
    Husk,
    Nothing,
}

impl Has {
    fn of(row: Option<Bytes>, dot: Dot) -> Has {
        let Some(object) = row.and_then(|row| Object::decode(&row).ok()) else { return Has::Nothing };
        match (object.context().covers(dot), object.made_of_husk(dot)) {
            (true, true) => Has::Husk,
            (true, false) => Has::Whole,
            (false, _) => Has::Nothing,
        }
    }
}

impl Cluster {
    /// A node makes a husk of what it had: all holders that own the key have the version on their disks.
    pub(super) fn check_husk(&mut self, index: usize, stored: &Stored) {
        let Some(before) = stored.before.as_ref().filter(|_| self.is_watched(&stored.key)) else { return };
        let (Ok(before), Ok(after)) = (Object::decode(before), Object::decode(&stored.after)) else { return };
        let mut verdicts = Vec::new();
        for (dot, version) in after.0.values() {
            let Value::Husk(husk) = &version.value else { continue };
            if before.made_of_husk(*dot) || !before.0.values().iter().any(|(held, _)| held == dot) {
                continue;
            }
            for holder in husk.placement.holders.iter().filter(|holder| self.owns(**holder, &stored.key)) {
                let has =
                    self.by_id.get(holder).map(|machine| Has::of(self.kept(*machine, &stored.key), *dot));
                if has.is_some_and(|has| has != Has::Whole) {
                    let name = self.history.name(*dot);
                    verdicts.push(format!("n{index} makes a husk of {name}, of which {holder} has: {has:?}"));
                }
            }
        }
        for verdict in verdicts {
            self.history.blame("husks", Some(&stored.key), verdict);
        }
    }

    /// A node drops a row: what it had whole is whole elsewhere, or something that has seen it.
    pub(super) fn check_dropped(&mut self, index: usize, row: &Bytes, dropped: &Bytes) {
        let Some(object) = Object::decode(dropped).ok().filter(Object::has_placed) else { return };
        let Ok(key) = ObjectKey::from_row(row.clone()) else { return };
        if !self.is_watched(&key) {
            return;
        }
        for (dot, version) in object.0.values() {
            // A home takes back what it cannot keep, also in the step in which it stored it.
            let birth = self.history.keys.get(&key).and_then(|past| past.birth(*dot));
            let is_taken_back = birth
                .is_none_or(|birth| birth.machine == index && self.now_us < birth.at_us + TAKEN_BACK_US_MAX);
            if !matches!(version.value, Value::Active(_)) || is_taken_back {
                continue;
            }
            let others = (0..self.machines.len()).filter(|other| *other != index);
            let is_kept = others.into_iter().any(|other| Has::of(self.kept(other, &key), *dot) == Has::Whole);
            if !is_kept {
                let detail = format!(
                    "n{index} drops {}, of which no other has more than a husk",
                    self.history.name(*dot)
                );
                self.history.blame("husks", Some(&key), detail);
            }
        }
    }

    /// True if an object has chosen this machine alone for its code and state.
    pub(super) fn is_sole_holder(&self, machine: usize) -> bool {
        self.workload.keys.iter().filter(|spec| self.is_placed(&spec.key)).any(|spec| {
            let own = self.kept(machine, &spec.key).and_then(|row| Object::decode(&row).ok());
            let others = || (0..self.machines.len()).filter(|other| *other != machine);
            let is_alone =
                |dot: Dot| others().all(|other| Has::of(self.kept(other, &spec.key), dot) != Has::Whole);
            own.is_some_and(|own| {
                own.0.values().iter().any(|(dot, _)| !own.made_of_husk(*dot) && is_alone(*dot))
            })
        })
    }

    /// True if copies of this key are with chosen holders, and none was lost to a fault.
    fn is_watched(&self, key: &ObjectKey) -> bool {
        let is_hurt = self.lost.is_some()
            || self.is_interval() && self.machines.iter().any(|machine| machine.power_failures > 0)
            || self.history.keys.get(key).is_some_and(|past| past.was_corrupted);
        self.is_placed(key) && !is_hurt
    }

    fn owns(&self, node: NodeId, key: &ObjectKey) -> bool {
        self.by_id.get(&node).is_some_and(|machine| self.primaries(key).contains(machine))
    }

    /// The row of a key that a machine's disk holds, come what may.
    fn kept(&self, machine: usize, key: &ObjectKey) -> Option<Bytes> {
        let disk = &self.machines[machine].disk;
        match self.is_interval() {
            true => disk.row(Space::Data, key.row()),
            false => disk.durable_row(Space::Data, key.row()),
        }
    }
}
