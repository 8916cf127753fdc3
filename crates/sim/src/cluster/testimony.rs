//! The nodes that vouched for a dead object before it was forgotten.
//!
//! A node that vouches holds just that object or nothing, owes nobody anything older, and has been awake for long. Only
//! what all that may hold an object have vouched for twice, long enough apart and under one ring, is dropped. All of it
//! is looked at when it is said, whether anything older is about or not.

use std::collections::{BTreeMap, BTreeSet};

use oort_core::message::{Control, Message};
use oort_core::node::{Event as NodeEvent, Input, Node, Output};
use oort_core::object::Object;
use oort_core::replica::{hash_of, hint_row};
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey};

use super::witness::{Scene, Verdict};
use crate::disk::Disk;

/// A standstill longer than this part of the time between the questions keeps a node from vouching.
const STANDSTILL_PARTS: u64 = 8;

/// A node that asks all others, in one of its lives.
type Asker = (usize, u64);
/// A key and the hash of the dead object under it.
type DeadRow = (ObjectKey, u64);

#[derive(Debug)]
struct Question {
    rows: Vec<DeadRow>,
    stamp: u64,
    asked_us: u64,
    /// The nodes that must answer: all that may hold an object, as far as the asking node knows.
    holders: BTreeSet<NodeId>,
    /// The nodes that were asked.
    asked: BTreeSet<NodeId>,
    /// Rows that the asking node itself may not vouch for.
    own_refused: BTreeSet<usize>,
    /// The nodes that have vouched for each row, and when first.
    vouched: BTreeMap<(NodeId, usize), u64>,
}

/// All that was asked and answered.
#[derive(Debug, Default)]
pub(super) struct Testimony {
    after_us: u64,
    questions: BTreeMap<(Asker, u64), Question>,
}

/// The message about forgetting that a node was told before a step.
#[derive(Debug)]
pub(super) enum Told {
    Ask {
        from: NodeId,
        number: u64,
        rows: Vec<DeadRow>,
        stamp: u64,
    },
    /// The keys to drop, and the hashes of what was held under them.
    Forget {
        rows: Vec<DeadRow>,
        held: Vec<Option<u64>>,
        stamp: u64,
    },
    Nothing,
}

impl Told {
    pub fn by(input: &Input, disk: &Disk) -> Told {
        let Input::Message { from, message: Message::Control(control) } = input else { return Told::Nothing };
        match control {
            Control::AskDead { number, rows, stamp } => {
                Told::Ask { from: *from, number: *number, rows: rows.clone(), stamp: *stamp }
            }
            Control::Forget { rows, stamp } => {
                let hash = |(key, _): &DeadRow| Some(hash_of(&disk.row(Space::Data, key.row())?));
                Told::Forget { rows: rows.clone(), held: rows.iter().map(hash).collect(), stamp: *stamp }
            }
            _ => Told::Nothing,
        }
    }
}

/// The node that speaks.
pub(super) struct Speaker<'a> {
    pub scene: Scene<'a>,
    pub machine: usize,
    pub boot: u64,
    pub now_us: u64,
    /// Since when it has neither been down nor stood still for long.
    pub awake_since_us: u64,
    /// All nodes to whom it may owe something.
    pub peers: &'a BTreeMap<NodeId, usize>,
}

impl Testimony {
    /// `after_us`: the time between the two questions.
    pub fn new(after_us: u64) -> Testimony {
        Testimony { after_us, questions: BTreeMap::new() }
    }

    /// A standstill as long as this keeps a node from vouching for a while.
    pub fn is_long(&self, standstill_us: u64) -> bool {
        self.after_us > 0 && standstill_us > self.after_us / STANDSTILL_PARTS
    }

    /// Looks at what a node has said and dropped in a step.
    pub fn hear(&mut self, speaker: &Speaker, told: &Told, outputs: &[Output]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for output in outputs {
            match (output, told) {
                (
                    Output::Send { to, message: Message::Control(Control::DeadAnswer { number, refused }) },
                    Told::Ask { from, number: asked, rows, stamp },
                ) if (to, number) == (from, asked) => {
                    let vouched = (0..rows.len()).filter(|index| !refused.contains(&(*index as u16)));
                    let vouched: Vec<usize> = vouched.collect();
                    verdicts.extend(
                        vouched.iter().filter_map(|index| speaker.wrong_vouching(&rows[*index], *stamp)),
                    );
                    self.note_answer(speaker, *from, *number, &vouched);
                }
                (
                    Output::Send { to, message: Message::Control(Control::AskDead { number, rows, stamp }) },
                    _,
                ) => {
                    self.note_question(speaker, (*to, *number), rows, *stamp);
                }
                (Output::Event(NodeEvent::DeadForgotten { key, .. }), Told::Forget { rows, held, stamp }) => {
                    verdicts.extend(speaker.wrong_dropping(key, (rows, held), *stamp));
                }
                (Output::Event(NodeEvent::DeadForgotten { key, object }), _) => {
                    verdicts.extend(self.wrong_conclusion(speaker, key, object));
                }
                _ => {}
            }
        }
        verdicts
    }

    fn note_question(
        &mut self,
        speaker: &Speaker,
        (to, number): (NodeId, u64),
        rows: &[DeadRow],
        stamp: u64,
    ) {
        let asker = (speaker.machine, speaker.boot);
        let question = self.questions.entry((asker, number)).or_insert_with(|| Question {
            rows: rows.to_vec(),
            stamp,
            asked_us: speaker.now_us,
            holders: speaker.holders(),
            asked: BTreeSet::new(),
            own_refused: (0..rows.len())
                .filter(|index| speaker.wrong_vouching(&rows[*index], stamp).is_some())
                .collect(),
            vouched: BTreeMap::new(),
        });
        question.asked.insert(to);
    }

    fn note_answer(&mut self, speaker: &Speaker, to: NodeId, number: u64, vouched: &[usize]) {
        let Some(&asker) = speaker.peers.get(&to) else { return };
        // Of the asker's lives only the last may hear it.
        let mut lives = self.questions.range_mut(((asker, 0), number)..=((asker, u64::MAX), number));
        let Some((_, question)) = lives.rfind(|((_, of), _)| *of == number) else { return };
        let me = speaker.scene.node.id();
        for index in vouched {
            question.vouched.entry((me, *index)).or_insert(speaker.now_us);
        }
    }

    /// The rows of which `DeadAnswer` number `number` to a machine says that they may be forgotten.
    pub fn vouched_rows(&self, to: usize, number: u64, refused: &[u16]) -> Vec<ObjectKey> {
        let mut lives = self.questions.range(((to, 0), 0)..=((to, u64::MAX), u64::MAX));
        let Some((_, question)) = lives.rfind(|((_, of), _)| *of == number) else {
            return Vec::new();
        };
        let rows = question.rows.iter().enumerate();
        let vouched = rows.filter(|(index, _)| !refused.contains(&(*index as u16)));
        vouched.map(|(_, (key, _))| key.clone()).collect()
    }

    /// The fault in what a node drops because all have vouched for it, if any.
    fn wrong_conclusion(&self, speaker: &Speaker, key: &ObjectKey, object: &Object) -> Option<Verdict> {
        let row = (key.clone(), hash_of(&object.encode()));
        let asker = (speaker.machine, speaker.boot);
        let all = self.questions.range((asker, 0)..=(asker, u64::MAX)).map(|(_, question)| question);
        let about: Vec<(&Question, usize)> = all
            .filter_map(|question| Some((question, question.rows.iter().position(|of| *of == row)?)))
            .collect();
        let blame = |what: String| {
            Some(Verdict::of("vouched", key, format!("n{} forgot it, and {what}", speaker.machine)))
        };
        let Some(((last, index), before)) = about.split_last() else {
            // Alone it asks nobody.
            return blame("nobody was asked".into()).filter(|_| !speaker.holders().is_empty());
        };
        if last.own_refused.contains(index) {
            return blame("could not vouch for it itself".into());
        }
        if let Some(silent) =
            last.holders.iter().find(|holder| !last.vouched.contains_key(&(**holder, *index)))
        {
            return blame(format!("node {silent} did not vouch for it when asked last"));
        }
        let is_first_time = |(question, index): &&(&Question, usize)| {
            let said = question.asked.iter().map(|holder| question.vouched.get(&(*holder, *index)));
            let heard_us = said.collect::<Option<Vec<&u64>>>().map(|said| said.into_iter().max().copied());
            question.stamp == last.stamp
                && !question.own_refused.contains(index)
                && heard_us
                    .is_some_and(|at_us| at_us.unwrap_or(question.asked_us) + self.after_us <= last.asked_us)
        };
        if !before.iter().any(|question| is_first_time(&question)) {
            return blame("all have vouched for it once, or twice too soon or under two rings".into());
        }
        None
    }
}

impl Speaker<'_> {
    /// All members that may hold an object.
    fn holders(&self) -> BTreeSet<NodeId> {
        let node: &Node = self.scene.node;
        let is_in_ring = |id| node.ring().is_some_and(|ring| ring.state().contains(id));
        let others = node.membership().members.values().filter(|member| member.id != node.id());
        others.filter(|member| !member.empty || is_in_ring(member.id)).map(|member| member.id).collect()
    }

    /// Why the node may not say that it holds just this or nothing.
    fn wrong_vouching(&self, (key, hash): &DeadRow, stamp: u64) -> Option<Verdict> {
        let Scene { node, disk, now } = self.scene;
        let blame = |what: String| {
            Some(Verdict::of("vouched", key, format!("n{} vouches for it, and {what}", self.machine)))
        };
        let Some(ring) = node.ring() else { return blame("has no ring".into()) };
        if ring.is_moving() || ring.stamp() != stamp {
            return blame("goes by another ring, or one that changes".into());
        }
        if self.awake_since_us + self.scene.node.config().collect_after_ms * 1000 > self.now_us {
            return blame("was down or stood still shortly before".into());
        }
        let owes = |peer: &&NodeId| disk.has(Space::Hints, &hint_row(**peer, key));
        if let Some(peer) = self.peers.keys().find(owes) {
            return blame(format!("owes it to node {peer}"));
        }
        let Some(row) = disk.row(Space::Data, key.row()) else {
            let is_there = disk.has(Space::Data, key.row());
            return is_there.then(|| blame("cannot read it".into())).flatten();
        };
        if hash_of(&row) != *hash {
            return blame("holds another version".into());
        }
        let is_live = Object::decode(&row).is_ok_and(|object| object.is_live(node.time(now).wall_ms));
        is_live.then(|| blame("it is alive by its clock".into())).flatten()
    }

    /// The fault in what the node drops because it was told to, if any.
    fn wrong_dropping(
        &self,
        key: &ObjectKey,
        (rows, held): (&[DeadRow], &[Option<u64>]),
        stamp: u64,
    ) -> Option<Verdict> {
        let blame =
            |what: &str| Some(Verdict::of("vouched", key, format!("n{} forgot it, {what}", self.machine)));
        let told = rows.iter().zip(held).find(|((told, _), _)| told == key);
        let ring = self.scene.node.ring();
        match told {
            None => blame("which it was not told to"),
            Some(((_, hash), held)) if *held != Some(*hash) => blame("and held another version"),
            _ if ring.is_none_or(|ring| ring.is_moving() || ring.stamp() != stamp) => {
                blame("and goes by another ring than who told it to, or one that changes")
            }
            _ => None,
        }
    }
}
