//! The words of nodes about active objects' homes: whom they promised a term, what they took in of whom, and what homes
//! take back.
//!
//! Two homes at once do harm only where the right messages cross, so each word is looked at by itself: against the row
//! that was held before it, and against the promises given before it, by any life of the same machine. The rules are
//! those of the core's `node/terms.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use oort_core::bucket::ActiveDurability;
use oort_core::causality::Dot;
use oort_core::client::{Operation, RequestId};
use oort_core::message::{Control, Message, TaskId, WriteOutcome};
use oort_core::node::{Input, Output};
use oort_core::object::{Object, Value};
use oort_core::replica::hash_of;
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey};

use super::witness::{Scene, Verdict};
use super::Cluster;
use crate::disk::{Disk, Stored};
use crate::history::Outcome;
use crate::machine::Machine;

/// The terms that machines have promised, and the claims that they may be promising.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// The greatest, by machine and key.
    given: BTreeMap<(usize, ObjectKey), u64>,
    /// Of each machine, who claims what by which message.
    claims: BTreeMap<(usize, NodeId, TaskId), (ObjectKey, u64)>,
    /// The latest term that a machine claims, and so has promised itself, by machine and key, as long as it lives.
    own: BTreeMap<(usize, ObjectKey), u64>,
    /// The latest term that a machine ever promised, by machine and key.
    ever: BTreeMap<(usize, ObjectKey), u64>,
    /// Claims and writes that machines made: who repeats one under a newer ring may have promised more by then.
    made: BTreeSet<(usize, TaskId)>,
}

impl Promises {
    /// The latest term that a machine has promised others, or is just promising.
    fn to_others(&self, machine: usize, key: &ObjectKey) -> u64 {
        let of_machine = (machine, NodeId(0), 0)..=(machine, NodeId(u64::MAX), u64::MAX);
        let coming =
            self.claims.range(of_machine).filter(|(_, (of, _))| of == key).map(|(_, (_, term))| *term);
        coming.chain(self.given.get(&(machine, key.clone())).copied()).max().unwrap_or(0)
    }

    /// The same, its own claims included.
    fn of(&self, machine: usize, key: &ObjectKey) -> u64 {
        let own = self.own.get(&(machine, key.clone())).copied();
        self.to_others(machine, key).max(own.unwrap_or(0))
    }

    /// True if a machine has ever promised this term of a key, or a later one.
    fn has_promised(&self, machine: usize, key: &ObjectKey, term: u64) -> bool {
        self.ever.get(&(machine, key.clone())).is_some_and(|ever| *ever >= term)
    }

    /// The life of a machine has ended: what it had not said yet stays unsaid.
    pub fn end(&mut self, machine: usize) {
        self.claims.retain(|(of, ..), _| *of != machine);
        self.own.retain(|(of, _), _| *of != machine);
    }

    /// A machine has lost its disk, or what was not durable on it.
    pub fn forget(&mut self, machine: usize) {
        self.given.retain(|(of, _), _| *of != machine);
    }

    /// The faults in what a node does about homes in a step.
    pub fn judge(
        &mut self,
        index: usize,
        scene: Scene,
        peers: &BTreeMap<NodeId, usize>,
        write: Option<&HomeWrite>,
        outputs: &[Output],
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        if let Some(write) = write.filter(|write| write.is_taken(outputs)) {
            let what = if write.is_claim { "promises" } else { "takes in what a home wrote in" };
            if let Some(fault) = write.fault(self.of(index, &write.key)) {
                let detail = format!("n{index} {what} term {}, and {fault}", write.term);
                verdicts.push(Verdict::of("terms", &write.key, detail));
            }
            if write.is_claim {
                let claim = (write.key.clone(), write.term);
                self.claims.insert((index, write.from, write.task), claim);
                let ever = self.ever.entry((index, write.key.clone())).or_default();
                *ever = (*ever).max(write.term);
            } else {
                // It may be a deletion, which is in no term: who has seen that needs no number above.
                self.fulfil(index, &write.key, write.term);
            }
        }
        for output in outputs {
            let Output::Send { message, .. } = output else { continue };
            match message {
                Message::Write { task, key, term, .. } if *term > 0 => {
                    if self.made.insert((index, *task)) && !self.is_promised(scene, peers, key, *term) {
                        let detail =
                            format!("n{index} writes in term {term}, which most owners never promised");
                        verdicts.push(Verdict::of("terms", key, detail));
                    }
                    self.fulfil(index, key, *term)
                }
                Message::Claim { task, key, term, .. } => {
                    let is_first = self.made.insert((index, *task));
                    let promised = self.of(index, key);
                    if is_first && promised > *term {
                        let detail = format!("n{index} claims term {term}, and has promised {promised}");
                        verdicts.push(Verdict::of("terms", key, detail));
                    }
                }
                Message::Control(Control::Whole { key, hash, .. }) => {
                    let row = scene.disk.row(Space::Data, key.row()).filter(|row| hash_of(row) == *hash);
                    let object = row.and_then(|row| Object::decode(&row).ok());
                    if object.is_none_or(|object| object.missing_from().contains(&scene.node.id())) {
                        let detail = format!("n{index} says that it holds what it does not hold whole");
                        verdicts.push(Verdict::of("husks", key, detail));
                    }
                }
                _ => {}
            }
        }
        verdicts
    }

    /// True if most of those who own a key by the node's ring have promised this term, or need not: there is one owner.
    fn is_promised(&self, scene: Scene, peers: &BTreeMap<NodeId, usize>, key: &ObjectKey, term: u64) -> bool {
        let Some(ring) = scene.node.ring() else { return true };
        let n = ring.replication(key.bucket()).n as usize;
        let owners: Vec<&NodeId> = ring.preference_at(key.position()).iter().take(n).collect();
        let has_promised = |owner: &&&NodeId| {
            peers.get(**owner).is_none_or(|machine| self.has_promised(*machine, key, term))
        };
        owners.len() == 1 || owners.iter().filter(has_promised).count() > owners.len() / 2
    }

    /// A machine holds something that keeps the promise by itself, or nothing any more.
    fn fulfil(&mut self, machine: usize, key: &ObjectKey, term: u64) {
        self.given.retain(|(of, about), given| *of != machine || about != key || *given > term);
        self.claims.retain(|(of, ..), (about, claimed)| *of != machine || about != key || *claimed > term);
        self.own.retain(|(of, about), claimed| *of != machine || about != key || *claimed > term);
    }
}

/// A home's write or claim that reaches a node, and the row that the node holds then.
#[derive(Debug)]
pub(super) struct HomeWrite {
    from: NodeId,
    task: TaskId,
    key: ObjectKey,
    object: Bytes,
    term: u64,
    is_claim: bool,
    /// `None`: none, or one that cannot be read. Whose hash the node knows it may still replace.
    held: Option<Bytes>,
}

impl HomeWrite {
    /// The home's write that `input` brings, if it is one.
    pub fn of(input: &Input, disk: &Disk) -> Option<HomeWrite> {
        let Input::Message { from, message } = input else { return None };
        let (task, key, object, term, is_claim) = match message {
            Message::Write { task, key, object, term, .. } if *term > 0 => (task, key, object, term, false),
            Message::Claim { task, key, object, term, .. } => (task, key, object, term, true),
            _ => return None,
        };
        let held = disk.row(Space::Data, key.row());
        let (key, object) = (key.clone(), object.clone());
        Some(HomeWrite { from: *from, task: *task, key, object, term: *term, is_claim, held })
    }

    fn is_taken(&self, outputs: &[Output]) -> bool {
        outputs.iter().any(|output| {
            let Output::Send { to, message: Message::Written { task, outcome } } = output else {
                return false;
            };
            (to, task) == (&self.from, &self.task) && *outcome == WriteOutcome::Durable
        })
    }

    /// Why the node may not take it in, or promise it.
    fn fault(&self, promised: u64) -> Option<String> {
        if promised > self.term {
            return Some(format!("term {promised} was promised"));
        }
        let held = Object::decode(self.held.as_ref()?).ok()?;
        let is_seen = Object::decode(&self.object).is_ok_and(|home| home.context().descends(held.context()));
        (!is_seen).then(|| "it has not seen all that is held there".into())
    }
}

impl Cluster {
    /// What a node says leaves it: a promise is given, and who says that it holds an object keeps it, come what may.
    pub(super) fn check_word(&mut self, from: usize, to: NodeId, message: &Message) {
        match message {
            Message::Claim { key, term, .. } => {
                let Promises { own, ever, .. } = &mut self.promises;
                for promises in [own, ever] {
                    let promised = promises.entry((from, key.clone())).or_default();
                    *promised = (*promised).max(*term);
                }
            }
            // One of a claim that came once more under the newer ring.
            Message::Written { outcome: WriteOutcome::Stale, .. } => {}
            Message::Written { task, outcome } => {
                let claim = self.promises.claims.remove(&(from, to, *task));
                if let Some((key, term)) = claim.filter(|_| *outcome == WriteOutcome::Durable) {
                    let promised = self.promises.given.entry((from, key)).or_default();
                    *promised = term.max(*promised);
                }
            }
            Message::Control(Control::Whole { key, .. }) => {
                let disk = &self.machines[from].disk;
                if disk.durable_row(Space::Data, key.row()) != disk.row(Space::Data, key.row()) {
                    let detail = format!("n{from} says that it holds it, and a power failure may take it");
                    self.history.blame("husks", Some(key), detail);
                }
            }
            _ => {}
        }
    }

    /// A row of a machine has changed, and the dots `born` are new. A home that writes under `quorum` leaves just its
    /// version there, and takes back nothing that was answered.
    pub(super) fn check_home_row(&mut self, index: usize, stored: &Stored, born: &[Dot]) {
        if !self.workload.is_active(&stored.key) {
            return;
        }
        let Ok(after) = Object::decode(&stored.after) else { return };
        self.promises.fulfil(index, &stored.key, after.term());
        let Some(before) = stored.before.as_ref().and_then(|row| Object::decode(row).ok()) else { return };
        let is_made = |dot: &Dot| born.contains(dot) && self.history.is_of_machine(index, *dot);
        let mut versions = after.0.values().iter();
        let made = versions.find(|(dot, version)| version.value.term() > 0 && is_made(dot));
        if let Some((dot, version)) = made {
            // Versions of one term have each seen those before.
            let is_own =
                |other: &Dot, value: &Value| other.actor == dot.actor && value.term() == version.value.term();
            let mut others = after.0.values().iter().filter(|(other, _)| other != dot);
            if let Some((other, _)) = others.find(|(other, version)| is_own(other, &version.value)) {
                let (name, other) = (self.history.name(*dot), self.history.name(*other));
                let detail = format!("n{index} writes {name} beside its own {other} of the same term");
                self.history.blame("terms", Some(&stored.key), detail);
            }
        }
        let promised = self.promises.to_others(index, &stored.key);
        if let Some((dot, version)) = made.filter(|(_, version)| version.value.term() < promised) {
            let (name, term) = (self.history.name(*dot), version.value.term());
            let detail = format!("n{index} writes {name} in term {term}, and has promised {promised}");
            self.history.blame("terms", Some(&stored.key), detail);
        }
        let is_quorum = self.workload.properties(&stored.key).aso.durability == ActiveDurability::Quorum;
        if let Some((dot, _)) = made.filter(|_| is_quorum && after.0.values().len() > 1) {
            let detail = format!("n{index} is its home and writes {} beside others", self.history.name(*dot));
            self.history.blame("terms", Some(&stored.key), detail);
        }
        // A husk goes without the marks, which its holders have.
        let is_husk = before.has_husk() || after.has_husk();
        if is_husk || after.context().descends(before.context()) || self.may_be_gone(&stored.key) {
            return;
        }
        let (had, has) = (marks_in(stored.before.as_deref()), marks_in(Some(&stored.after)));
        let is_answered = |id: &&RequestId| {
            let record = &self.history.operations[**id as usize];
            let is_call = matches!(record.operation, Operation::Call { .. });
            is_call && record.outcome == Outcome::Acked && record.is_kept
        };
        // What the home only had from others, they still have.
        let owners = self.primaries(&stored.key);
        let is_elsewhere = |id: RequestId| {
            let holds = |other: &&usize| {
                let row = self.machines[**other].disk.row(Space::Data, stored.key.row());
                marks_in(row.as_deref()).contains(&id)
            };
            owners.iter().filter(holds).count() > owners.len() / 2
        };
        let mut lost = had.iter().filter(|id| !has.contains(id)).filter(is_answered);
        if let Some(id) = lost.find(|id| !is_elsewhere(**id)) {
            let detail = format!("n{index} takes back o{id}, which was answered");
            self.history.blame("terms", Some(&stored.key), detail);
        }
    }

    /// A call was refused as if nothing had been changed: so nothing of it may be anywhere.
    pub(super) fn check_refused(&mut self, id: RequestId) {
        let Operation::Call { key, call, .. } = &self.history.operations[id as usize].operation else {
            return;
        };
        if call.arguments.is_empty() || self.history.keys.get(key).is_some_and(|past| past.was_corrupted) {
            return;
        }
        let key = key.clone();
        let row = |machine: &Machine| machine.disk.row(Space::Data, key.row());
        let holds = |machine: &Machine| marks_in(row(machine).as_deref()).contains(&id);
        if let Some(holder) = self.machines.iter().position(holds) {
            let detail = format!("o{id} was refused, and n{holder} holds what it changed");
            self.history.blame("errors", Some(&key), detail);
        }
    }

    /// A machine holds nothing of a key any more, so that a home that knows nothing may write there.
    pub(super) fn dropped_with_promise(&mut self, index: usize, row: &Bytes) {
        if let Ok(key) = ObjectKey::from_row(row.clone()) {
            self.promises.fulfil(index, &key, u64::MAX);
        }
    }
}

/// The operations whose marks are in the state of an object.
pub(super) fn marks_in(row: Option<&[u8]>) -> Vec<RequestId> {
    let mut found = Vec::new();
    for part in row.unwrap_or_default().split(|byte| *byte == b';') {
        let digits = part.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (head, number) = part.split_at(part.len() - digits);
        if head.last() == Some(&b'o') && digits > 0 {
            found
                .extend(std::str::from_utf8(number).ok().and_then(|number| number.parse::<RequestId>().ok()));
        }
    }
    found
}
