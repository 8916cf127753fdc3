//! What a get must see of the disks: whatever more than `n - r` owners held when it was asked, if these were there all
//! the time. Whether any write of it was acknowledged does not matter, nor who else was away.

use oort_core::causality::VersionVector;
use oort_core::client::RequestId;
use oort_core::detector::Health;
use oort_core::object::Object;
use oort_core::store::Space;
use oort_core::types::ObjectKey;

use super::Cluster;
use crate::network::Connection;
use crate::trace::{get_quorum, key_of};

/// The connection to a machine; `None`: to itself.
type Way = Option<Connection>;

/// What an owner held when a get was asked.
#[derive(Clone, Debug)]
struct Snapshot {
    machine: usize,
    boot: u64,
    /// How the node that was asked reaches it.
    way: Way,
    context: VersionVector,
}

/// The state of things when a get was asked.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    ring_stamp: u64,
    owners: Vec<Snapshot>,
}

impl Cluster {
    /// A get reaches its node: notes what the owners hold whom that node can reach.
    pub(super) fn note_scene(&mut self, asked: usize, id: RequestId) {
        let record = &self.history.operations[id as usize];
        let Some(key) = key_of(&record.operation).filter(|_| get_quorum(&record.operation).is_some()) else {
            return;
        };
        let ring_stamp = self.common_stamp();
        let is_known = ring_stamp != 0 && self.newest_ring().is_some_and(|ring| !ring.is_moving());
        if !is_known || self.is_interval() || self.workload.is_active(key) || self.is_held_outside(key) {
            return;
        }
        let owners = self.primaries(key).into_iter().filter_map(|machine| {
            let way = self.way(asked, machine)?;
            let row = self.machines[machine].disk.row(Space::Data, key.row())?;
            let context = Object::decode(&row).ok()?.context().clone();
            Some(Snapshot { machine, boot: self.machines[machine].boots, way, context })
        });
        let scene = Scene { ring_stamp, owners: owners.collect() };
        self.scenes.insert(id, scene);
    }

    /// A get is answered: says what it must have seen.
    pub(super) fn settle_scene(&mut self, asked: usize, id: RequestId) {
        let Some(scene) = self.scenes.remove(&id) else { return };
        let record = &self.history.operations[id as usize];
        let Some(key) = key_of(&record.operation).cloned() else { return };
        if self.common_stamp() != scene.ring_stamp || self.is_held_outside(&key) {
            return;
        }
        let was_there = |owner: &&Snapshot| {
            let machine = &self.machines[owner.machine];
            machine.boots == owner.boot
                && machine.troubled_until_us < record.start_us
                && self.way(asked, owner.machine) == Some(owner.way)
        };
        let contexts: Vec<&VersionVector> =
            scene.owners.iter().filter(was_there).map(|owner| &owner.context).collect();
        let least = self.primaries(&key).len() + 1 - (record.r as usize).min(self.primaries(&key).len());
        let Some(past) = self.history.keys.get(&key).filter(|past| !past.was_corrupted) else { return };
        let is_held = |dot: &_| contexts.iter().filter(|context| context.covers(*dot)).count() >= least;
        let must_see = past.births.iter().map(|birth| birth.dot).filter(is_held).collect();
        self.history.operation(id).must_see = must_see;
    }

    /// How a machine reaches another that is up, if it does and knows that.
    fn way(&self, from: usize, to: usize) -> Option<Way> {
        if !self.machines[to].is_up() || self.machines[to].is_stopping {
            return None;
        }
        if from == to {
            return Some(None);
        }
        let (node, id) = (self.machines[from].node.as_ref()?, self.machines[to].id?);
        let way = self.network.way(from, to)?;
        (node.health(id) == Health::Up).then_some(Some(way))
    }

    /// True if a node holds the key that is none of its owners: what it has may count as an answer.
    fn is_held_outside(&self, key: &ObjectKey) -> bool {
        let owners = self.primaries(key);
        let mut others = (0..self.machines.len()).filter(|machine| !owners.contains(machine));
        others.any(|machine| self.machines[machine].disk.row(Space::Data, key.row()).is_some())
    }
}
