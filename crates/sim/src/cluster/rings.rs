//! How the ring may change, and what must be true when a node says that it is ready for the next step.
//!
//! Each state that any node goes by is looked at once, by what is written in `docs/ring-change.md`: which state it
//! follows from, who must have been ready by then, who holds what in it.

use std::collections::{BTreeMap, BTreeSet};

use oort_core::causality::Dot;
use oort_core::client::{Operation, Reply};
use oort_core::detector::Health;
use oort_core::node::{Node, Output};
use oort_core::object::Object;
use oort_core::ring::{Ring, RingChange, RingState};
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey};

use super::witness::{Owners, Verdict};
use super::Cluster;
use crate::history::{dots_of, Outcome};

/// States of the ring that nodes went by, and what they said of them.
#[derive(Debug, Default)]
pub(super) struct Rings {
    seen: BTreeMap<u64, RingState>,
    /// Which node has been ready for which state.
    ready: BTreeSet<(NodeId, u64)>,
    /// The holders of each key when a state in which data move was first seen.
    moves: BTreeMap<u64, Move>,
}

#[derive(Debug)]
struct Move {
    began_us: u64,
    /// The siblings on each node's disk that a power failure would leave.
    held: BTreeMap<ObjectKey, BTreeMap<NodeId, Vec<Dot>>>,
}

/// The part of a node that a step may change and its ring's rules are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stand {
    pub stamp: u64,
    pub ready_for: u64,
    pub given_away: u64,
    pub is_empty: bool,
}

impl Stand {
    pub fn of(node: &Node) -> Stand {
        let own = node.membership().own();
        Stand {
            stamp: node.ring().map_or(0, Ring::stamp),
            ready_for: own.moved,
            given_away: node.metrics().given_away_keys,
            is_empty: own.empty,
        }
    }
}

impl Cluster {
    /// Looks at what a step of `index` has changed of its stand, given the rows that it has dropped.
    pub(super) fn check_stand(
        &mut self,
        index: usize,
        before: Stand,
        dropped: &[(bytes::Bytes, bytes::Bytes)],
    ) {
        let Some(node) = &self.machines[index].node else { return };
        let after = Stand::of(node);
        if before == after {
            return;
        }
        let mut verdicts = Vec::new();
        if after.ready_for != before.ready_for {
            // The word of the last may have the ring change in the same step.
            verdicts.extend(self.wrong_readiness(index, [before.stamp, after.stamp]));
            let id = self.machines[index].id.expect("a living node has an id");
            self.rings.ready.insert((id, after.ready_for));
        }
        if after.stamp != before.stamp {
            self.note_state(index, before.stamp);
        }
        if after.given_away != before.given_away {
            verdicts.extend(dropped.iter().filter_map(|(row, object)| self.wrong_gift(index, row, object)));
        }
        let disk = &self.machines[index].disk;
        if after.is_empty && !before.is_empty && disk.count(Space::Data) + disk.count(Space::Hints) > 0 {
            verdicts.push(Verdict::new("words", format!("n{index} says that it holds nothing, and does")));
        }
        self.blame_all(verdicts);
    }

    /// Some node goes by a state of the ring: is it one that may be?
    fn note_state(&mut self, index: usize, stamp_before: u64) {
        let Some(ring) = self.machines[index].node.as_ref().and_then(|node| node.ring()) else { return };
        let (stamp, state) = (ring.stamp(), ring.state().clone());
        if self.rings.seen.contains_key(&stamp) {
            return;
        }
        let before = self.rings.seen.values().filter(|before| before.version + 1 == state.version);
        let wrongs: Vec<Option<String>> = before.map(|before| self.wrong_step(before, &state)).collect();
        // A step may go by a state that nobody else knows, and on: where no data have to move.
        let is_next = (stamp_before >> 32) + 1 >= state.version;
        let mut verdicts: Vec<Verdict> = Vec::new();
        if is_next && !wrongs.is_empty() && wrongs.iter().all(Option::is_some) {
            let wrong = wrongs.into_iter().flatten().next().unwrap_or_default();
            verdicts.push(Verdict::new("ring", format!("version {} of the ring: {wrong}", state.version)));
        }
        verdicts
            .extend(self.wrong_layout(&state, ring).map(|wrong| {
                Verdict::new("ring", format!("version {} of the ring: {wrong}", state.version))
            }));
        if !state.arrived {
            let held = self.held_by_node();
            self.rings.moves.insert(stamp, Move { began_us: self.now_us, held });
        }
        self.rings.seen.insert(stamp, state);
        self.blame_all(verdicts);
    }

    fn held_by_node(&self) -> BTreeMap<ObjectKey, BTreeMap<NodeId, Vec<Dot>>> {
        let mut held: BTreeMap<ObjectKey, BTreeMap<NodeId, Vec<Dot>>> = BTreeMap::new();
        for machine in &self.machines {
            let Some(id) = machine.id else { continue };
            for row in machine.disk.keys(Space::Data) {
                let object =
                    machine.disk.durable_row(Space::Data, &row).and_then(|row| Object::decode(&row).ok());
                let (Some(object), Ok(key)) = (object, ObjectKey::from_row(row)) else { continue };
                held.entry(key).or_default().insert(id, dots_of(&object));
            }
        }
        held
    }

    /// Why `after` may not follow `before`.
    fn wrong_step(&self, before: &RingState, after: &RingState) -> Option<String> {
        let is_removal = after.removed.len() > before.removed.len();
        let (is_moving, is_settling) =
            (before.old.is_some() && !before.arrived, before.old.is_some() && before.arrived);
        if is_moving && after.arrived {
            let lacking = self.not_ready(before, |owners| {
                let news = owners.after.iter().filter(|node| !owners.before.contains(node));
                news.copied().collect()
            });
            return lacking.map(|(node, key)| {
                format!("data count as arrived, and node {node} has not said that it has its own, as {key:?}")
            });
        }
        if is_settling && !is_removal {
            let lacking =
                self.not_ready(before, |owners| match owners.numbers_before == owners.numbers_after {
                    true => {
                        let gone = owners.before.iter().filter(|node| !owners.after.contains(node));
                        gone.copied().collect()
                    }
                    false => owners.before.iter().chain(&owners.after).copied().collect(),
                });
            return lacking.map(|(node, key)| {
                format!("the change is over, and node {node} of {key:?} has not said that it knows of it")
            });
        }
        if before.old.is_some() && !is_removal {
            return Some("it changes again before the change is over".into());
        }
        if before.old.is_some() {
            return None;
        }
        if before.layout != after.layout || before.removed != after.removed {
            return self.wrong_wish(before, after);
        }
        let grows = after
            .replication
            .iter()
            .find(|(bucket, one)| one.replication.n != before.serving(bucket).n && one.before.is_none());
        grows.map(|(bucket, _)| format!("n of {} changes at once", bucket.escape_ascii()))
    }

    /// A node that an operator has not given up, and that has not said that it is ready, though `awaited` of some key.
    fn not_ready(
        &self,
        state: &RingState,
        awaited: impl Fn(&Owners) -> Vec<NodeId>,
    ) -> Option<(NodeId, &ObjectKey)> {
        let (ring, stamp) = (Ring::new(state.clone()), state.stamp());
        let concerned = |key: &&ObjectKey| !state.is_of_buckets() || state.changes(key.bucket());
        let is_late =
            |node: &NodeId| !state.removed.contains(node) && !self.rings.ready.contains(&(*node, stamp));
        self.history.keys.keys().filter(concerned).find_map(|key| {
            let node = awaited(&Owners::of(&ring, key)?).into_iter().find(is_late)?;
            Some((node, key))
        })
    }

    /// A stable ring begins to change only as an operator has asked.
    fn wrong_wish(&self, before: &RingState, after: &RingState) -> Option<String> {
        let is_so = |change: &RingChange| before.change(change).is_ok_and(|next| next == *after);
        let mut asked = self.history.operations.iter().filter_map(|op| match &op.operation {
            Operation::ChangeRing { change, plan_only: false, .. } => {
                (op.outcome != Outcome::Refused).then_some(change)
            }
            _ => None,
        });
        let Some(change) = asked.find(|change| is_so(change)) else {
            return Some("no operator has asked for this".into());
        };
        let RingChange::Replace { old, new, .. } = change else { return None };
        if before.layout.strategy.number() != 3 {
            return None;
        }
        let (had, has) =
            (Ring::new(before.clone()), Ring::new(RingState { old: None, arrived: true, ..after.clone() }));
        let first = |ring: &Ring, key: &ObjectKey| ring.preference_at(key.position()).first().copied();
        let differing = self.history.keys.keys().find(|key| {
            let owner = first(&had, key);
            first(&has, key) != owner.map(|owner| if owner == *old { new.id } else { owner })
        });
        differing.map(|key| format!("node {} takes the place of {old}, and {key:?} goes to another", new.id))
    }

    /// The fault in who holds what in a state of the ring, if any.
    fn wrong_layout(&self, state: &RingState, ring: &Ring) -> Option<String> {
        let founders = self.config.cluster_size as usize;
        if state.version == 1 && state.layout.nodes.len() != founders {
            return Some(format!("{} nodes have founded it, not {founders}", state.layout.nodes.len()));
        }
        if state.old.is_none() && state.layout.nodes.iter().any(|node| state.removed.contains(&node.id)) {
            return Some("a node that was removed holds data".into());
        }
        let zones: BTreeMap<NodeId, &str> = ring_zones(state, state.arrived || state.old.is_none());
        let zone_count = zones.values().collect::<BTreeSet<_>>().len();
        for key in self.history.keys.keys() {
            let list = ring.preference_at(key.position());
            let distinct: BTreeSet<&NodeId> = list.iter().collect();
            if distinct.len() < list.len() || list.len() < ring.nodes().len().min(5) {
                return Some(format!("the nodes for {key:?} are {list:?}"));
            }
            for n in 1..=list.len() {
                let places: BTreeSet<_> = list[..n].iter().map(|node| zones.get(node)).collect();
                if places.len() < n.min(zone_count) {
                    return Some(format!(
                        "the first {n} of {list:?} for {key:?} are in {} zones",
                        places.len()
                    ));
                }
            }
        }
        None
    }

    /// The fault in a node's word that it has its data, or knows of the next step, if any.
    fn wrong_readiness(&self, index: usize, stamps: [u64; 2]) -> Option<Verdict> {
        let ready_for = self.machines[index].node.as_ref()?.membership().own().moved;
        if !stamps.contains(&ready_for) {
            let detail = format!("n{index} says that it is ready for a ring that it does not go by");
            return Some(Verdict::new("ready", detail));
        }
        let moving = self.rings.moves.get(&ready_for).filter(|_| self.lost.is_none())?;
        let ring = Ring::new(self.rings.seen.get(&ready_for)?.clone());
        let is_calm = self.troubled_until_us < moving.began_us && !self.network.is_cut() && self.is_healthy();
        moving.held.iter().find_map(|(key, held)| {
            let detail = self.lacks(index, (key, held), &ring, is_calm)?;
            Some(Verdict::of("ready", key, detail))
        })
    }

    /// The part of a key that a node lacks, though it says that it has its data, if any.
    fn lacks(
        &self,
        index: usize,
        (key, held): (&ObjectKey, &BTreeMap<NodeId, Vec<Dot>>),
        ring: &Ring,
        is_calm: bool,
    ) -> Option<String> {
        let id = self.machines[index].id?;
        let owners = Owners::of(ring, key)?;
        let is_new = owners.after.contains(&id) && !owners.before.contains(&id);
        let was_corrupted = self.history.keys.get(key).is_some_and(|past| past.was_corrupted);
        if !is_new || was_corrupted || self.is_placed(key) {
            return None;
        }
        let removed = &ring.state().removed;
        let sources: Vec<&NodeId> = owners.before.iter().filter(|node| !removed.contains(node)).collect();
        let leaves = |node: &NodeId| !owners.after.contains(node);
        let row = self.machines[index].disk.durable_row(Space::Data, key.row());
        let own = row.and_then(|row| Object::decode(&row).ok()).unwrap_or_default();
        let dots: BTreeSet<Dot> = held.values().flatten().copied().collect();
        // A node that did not know the new ring yet may have been told to forget what it held.
        let is_forgotten = |dot: &Dot| {
            let past = self.history.keys.get(key);
            past.is_some_and(|past| past.forgotten_until(u64::MAX).any(|gone| gone == *dot))
        };
        let mut missing = dots.into_iter().filter(|dot| !own.context().covers(*dot) && !is_forgotten(dot));
        missing.find_map(|dot| {
            let has = |node: &&&NodeId| held.get(**node).is_some_and(|dots| dots.contains(&dot));
            let holders: Vec<&NodeId> = sources.iter().filter(has).copied().collect();
            // A home takes back what a quorum has not got.
            let may_be_taken_back = self.workload.is_active(key);
            let majority = if may_be_taken_back { owners.before.len() / 2 + 1 } else { 1 };
            let is_owed = holders.len() >= (owners.numbers_before.w as usize).max(majority)
                || !may_be_taken_back
                    && (is_calm && !holders.is_empty() || holders.iter().any(|node| leaves(node)));
            let name = self.history.name(dot);
            is_owed.then(|| {
                format!("n{index} says that it has its data, and lacks {name}, which {holders:?} held before")
            })
        })
    }

    /// The fault in giving a row away, if any: all owners must have it, and nobody be owed it.
    fn wrong_gift(&self, index: usize, row: &bytes::Bytes, object: &bytes::Bytes) -> Option<Verdict> {
        let (key, object) = (ObjectKey::from_row(row.clone()).ok()?, Object::decode(object).ok()?);
        let ring = self.machines[index].node.as_ref()?.ring()?;
        let was_corrupted = self.history.keys.get(&key).is_some_and(|past| past.was_corrupted);
        if was_corrupted || self.lost.is_some() || self.is_interval() || self.is_placed(&key) {
            return None;
        }
        let n = ring.replication(key.bucket()).n as usize;
        let is_active = self.workload.is_active(&key);
        let lacking = ring.preference_at(key.position()).iter().take(n).find(|owner| {
            let Some(owner) = self.by_id.get(owner) else { return false };
            let row = self.machines[*owner].disk.row(Space::Data, key.row());
            let held = row.and_then(|row| Object::decode(&row).ok()).unwrap_or_default();
            // A home may take back what others have of it.
            let is_taken_back = |dot: Dot| is_active && self.history.is_of_machine(*owner, dot);
            !dots_of(&object).iter().all(|dot| held.context().covers(*dot) || is_taken_back(*dot))
        });
        let is_forgotten = self.history.keys.get(&key).is_some_and(|past| !past.forgotten.is_empty());
        let owner = lacking.filter(|_| !is_forgotten)?;
        let detail = format!("n{index} gave it away, and node {owner}, which owns it, does not have it");
        Some(Verdict::of("gifts", &key, detail))
    }

    /// The fault in granting an operator's request, if any: a node that was given up without force is down for
    /// most of the ring, and each of its parts has another owner that can be reached.
    pub(super) fn wrong_removal(&self, index: usize, outputs: &[Output]) -> Option<Verdict> {
        let granted = outputs.iter().find_map(|output| match output {
            Output::Reply { id, result: Ok(Reply::RingPlan(_)) } => Some(*id),
            _ => None,
        })?;
        let Operation::ChangeRing { change, plan_only: false, force: false } =
            &self.history.operations[granted as usize].operation
        else {
            return None;
        };
        let given_up = change.given_up()?;
        let node = self.machines[index].node.as_ref()?;
        let (ring, health) = (node.ring()?, |id: &NodeId| node.health(*id));
        if ring.state().arrived {
            // Nobody can see any more which node answered for it before.
            return None;
        }
        let is_left = |owner: &NodeId| {
            let is_me = *owner == node.id();
            *owner != given_up
                && !ring.state().removed.contains(owner)
                && (is_me || health(owner) != Health::Down)
        };
        for key in self.history.keys.keys() {
            let n = ring.replication(key.bucket()).n as usize;
            let owners: Vec<NodeId> = ring.preference_at(key.position()).iter().take(n).copied().collect();
            if owners.contains(&given_up) && !owners.iter().any(is_left) {
                let detail = format!(
                    "o{granted} removed node {given_up}, and nobody else that n{index} reaches holds it"
                );
                return Some(Verdict::of("removal", key, detail));
            }
        }
        None
    }

    /// Which cluster and ring a node goes by is durable before it says so to anybody.
    pub(super) fn check_ring_kept(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let is_new = std::mem::take(&mut machine.has_new_ring);
        let kept = machine.disk.durable_row(Space::Meta, MEMBERSHIP_ROW);
        if is_new && !machine.disk.is_full() && kept != machine.disk.row(Space::Meta, MEMBERSHIP_ROW) {
            self.history.blame("ready", None, format!("n{index} goes by a ring that it may forget"));
        }
    }

    pub(super) fn blame_all(&mut self, verdicts: Vec<Verdict>) {
        for Verdict { checker, key, detail } in verdicts {
            self.history.blame(checker, key.as_ref(), detail);
        }
    }
}

/// Where a node keeps what it knows of members, buckets and the ring.
const MEMBERSHIP_ROW: &[u8] = b"membership";

/// The zones of the nodes that answer reads.
fn ring_zones(state: &RingState, is_new: bool) -> BTreeMap<NodeId, &str> {
    let layout = state.old.as_ref().filter(|_| !is_new).unwrap_or(&state.layout);
    layout.nodes.iter().map(|node| (node.id, node.zone.as_str())).collect()
}
