//! Nodes' words of themselves, compared with their disks and rings in the moment in which they say them.
//!
//! Most guards keep something away that takes two rare events to do harm, and then hours to be seen. Whether what a
//! node says is true can be seen at once, and wherever it says it: each answer is looked at right after the step that
//! made it.

use std::collections::{BTreeMap, BTreeSet};

use oort_core::bucket::Replication;
use oort_core::client::Scan;
use oort_core::membership::Gossip;
use oort_core::message::{Control, Listed, Message, RangePage, ReadOutcome, TaskId, WriteOutcome};
use oort_core::node::{Input, Node, Output};
use oort_core::object::Object;
use oort_core::replica::{hash_of, row_hash};
use oort_core::ring::Ring;
use oort_core::store::Space;
use oort_core::types::{NodeId, Now, ObjectKey, Position};

use super::rings::Stand;
use super::tables::{Hearing, Versions};
use super::terms::HomeWrite;
use super::testimony::{Speaker, Told};
use super::Cluster;
use crate::disk::Disk;

/// A broken promise, as a witness saw it.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub checker: &'static str,
    pub key: Option<ObjectKey>,
    pub detail: String,
}

impl Verdict {
    pub fn new(checker: &'static str, detail: String) -> Verdict {
        Verdict { checker, key: None, detail }
    }

    pub fn of(checker: &'static str, key: &ObjectKey, detail: String) -> Verdict {
        Verdict { checker, key: Some(key.clone()), detail }
    }
}

/// A node right after a step.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub node: &'a Node,
    pub disk: &'a Disk,
    pub now: Now,
}

/// A peer's question whose answer can be judged.
#[derive(Debug)]
pub(super) struct Question {
    from: NodeId,
    /// The ring that the peer went by, and the one that the asked node went by when the question came.
    stamp: u64,
    own_stamp: u64,
    /// An operator has removed the peer.
    is_removed: bool,
    about: About,
}

#[derive(Debug)]
enum About {
    Write(TaskId),
    Read(TaskId),
    Range { task: TaskId, from: Position, to: Position },
    Scan { task: TaskId, part: u32, scan: Scan },
    Keys { task: TaskId, part: u32, keys: Vec<ObjectKey> },
}

impl Question {
    /// The question that `input` asks of `node`, if the answer can be judged.
    pub fn of(input: &Input, node: &Node) -> Option<Question> {
        let Input::Message { from, message } = input else { return None };
        let (stamp, about) = match message {
            Message::Write { task, stamp, .. } | Message::Claim { task, stamp, .. } => {
                (*stamp, About::Write(*task))
            }
            Message::Read { task, stamp, .. } => (*stamp, About::Read(*task)),
            Message::Control(Control::ListRange { task, from, to, stamp }) => {
                (*stamp, About::Range { task: *task, from: Position(*from), to: Position(*to) })
            }
            Message::Control(Control::ScanRange { task, part, scan, stamp }) => {
                (*stamp, About::Scan { task: *task, part: *part, scan: scan.clone() })
            }
            Message::Control(Control::ScanKeys { task, part, keys, stamp }) => {
                (*stamp, About::Keys { task: *task, part: *part, keys: keys.clone() })
            }
            _ => return None,
        };
        let ring = node.ring();
        let is_removed = ring.is_some_and(|ring| ring.state().removed.contains(from));
        let own_stamp = ring.map_or(0, Ring::stamp);
        Some(Question { from: *from, stamp, own_stamp, is_removed, about })
    }

    /// The fault in what the node has answered in the step, if any.
    pub fn judge(&self, scene: Scene, outputs: &[Output]) -> Vec<Verdict> {
        let sent = outputs.iter().filter_map(|output| match output {
            Output::Send { to, message } if *to == self.from => Some(message),
            _ => None,
        });
        sent.filter_map(|message| self.judge_one(scene, message)).collect()
    }

    fn judge_one(&self, scene: Scene, message: &Message) -> Option<Verdict> {
        let is_stale = self.stamp < self.own_stamp;
        match (&self.about, message) {
            (About::Write(asked), Message::Written { task, outcome }) if task == asked => {
                let is_served = *outcome != WriteOutcome::Stale;
                (is_served && (is_stale || self.is_removed)).then(|| self.stale("a write", "is removed"))
            }
            (About::Read(asked), Message::ReadResult { task, outcome }) if task == asked => {
                (*outcome != ReadOutcome::Stale && is_stale).then(|| self.stale("a read", ""))
            }
            (About::Range { task: asked, from, to }, Message::Control(Control::RangeRows { task, page }))
                if task == asked =>
            {
                if self.stamp != self.own_stamp {
                    return Some(self.stale("a range for a transfer", ""));
                }
                wrong_page(scene, *from, *to, page).map(|detail| Verdict::new("words", detail))
            }
            (
                About::Scan { task: asked, part: of, scan },
                Message::Control(Control::ScanRows { task, part, listed }),
            ) if (task, part) == (asked, of) => {
                if is_stale {
                    return Some(self.stale("a listing", ""));
                }
                wrong_listing(scene, scan, listed).map(|detail| Verdict::new("words", detail))
            }
            (
                About::Keys { task: asked, part: of, keys },
                Message::Control(Control::ScanRows { task, part, listed }),
            ) if (task, part) == (asked, of) => {
                if is_stale {
                    return Some(self.stale("keys of a listing", ""));
                }
                wrong_keys(scene, keys, listed).map(|detail| Verdict::new("words", detail))
            }
            _ => None,
        }
    }

    fn stale(&self, what: &str, or: &str) -> Verdict {
        let or = if self.is_removed { or } else { "" };
        let detail = format!(
            "{what} of {} under the ring {:x} was served under the ring {:x} {or}",
            self.from, self.stamp, self.own_stamp
        );
        Verdict::new("stale", detail)
    }
}

/// What is wrong with a page of a transfer: it lists the rows of its range as they are, and all of them.
fn wrong_page(scene: Scene, from: Position, to: Position, page: &RangePage) -> Option<String> {
    let done_to = Position(page.done_to);
    if done_to < from || done_to > to {
        return Some(format!("a page of a transfer from {from:?} to {to:?} is done to {done_to:?}"));
    }
    let state = scene.node.ring()?.state();
    let mut rows = scene.disk.rows_between(from, done_to);
    rows.retain(|(key, _)| !state.is_of_buckets() || state.changes(key.bucket()));
    let held = rows.into_iter().filter_map(|(key, row)| Some((row_hash(key.row(), hash_of(&row?)), key)));
    let held: BTreeMap<ObjectKey, u64> = held.map(|(hash, key)| (key, hash)).collect();
    let listed: BTreeMap<ObjectKey, u64> = page.rows.iter().cloned().collect();
    let differing = listed.iter().find(|row| held.get(row.0) != Some(row.1));
    let missing = held.iter().find(|row| !listed.contains_key(row.0));
    let (key, _) = differing.or(missing)?;
    Some(format!(
        "a page of a transfer from {from:?} to {done_to:?} lists {key:?}: {}; that is held: {}",
        listed.contains_key(key),
        held.contains_key(key)
    ))
}

/// What is wrong with a replica's part of a listing: it names or counts its live rows, and all of them.
fn wrong_listing(scene: Scene, scan: &Scan, listed: &Listed) -> Option<String> {
    let done_to = Position(listed.done_to);
    if done_to > scan.to {
        return Some(format!("a replica's listing to {:?} is done to {done_to:?}", scan.to));
    }
    let wall_ms = scene.node.time(scene.now).wall_ms;
    let mut live = BTreeSet::new();
    let mut hash = 0u64;
    // Nothing is done if the first row could not be read.
    let rows = if done_to < scan.from { Vec::new() } else { scene.disk.rows_between(scan.from, done_to) };
    for (key, row) in rows {
        let Some(row) = row.filter(|_| scan.is_of_buckets() || key.bucket() == &scan.bucket[..]) else {
            continue;
        };
        if Object::decode(&row).is_ok_and(|object| object.is_live(wall_ms)) {
            hash = hash.wrapping_add(row_hash(key.row(), hash_of(&row)));
            live.insert(key);
        }
    }
    if listed.count != live.len() as u64 || scan.count_only && listed.hash != hash {
        return Some(format!(
            "a replica's listing from {:?} to {done_to:?} counts {} rows, of which {} are live there",
            scan.from,
            listed.count,
            live.len()
        ));
    }
    let named: BTreeSet<ObjectKey> = listed.rows.iter().map(|(key, _)| key.clone()).collect();
    let differing = named.symmetric_difference(&live).next().filter(|_| !scan.count_only)?;
    Some(format!(
        "a replica's listing names {differing:?}: {}, live: {}",
        named.contains(differing),
        live.contains(differing)
    ))
}

/// What is wrong with what a replica says of single keys: it tells of all that it holds.
fn wrong_keys(scene: Scene, keys: &[ObjectKey], listed: &Listed) -> Option<String> {
    let named: BTreeSet<&ObjectKey> = listed.rows.iter().map(|(key, _)| key).collect();
    let is_held = |key: &&ObjectKey| scene.disk.row(Space::Data, key.row()).is_some();
    let differing = keys.iter().find(|key| named.contains(key) != is_held(key))?;
    Some(format!(
        "asked for {differing:?}, a replica tells of it: {}, and holds it: {}",
        named.contains(differing),
        is_held(&differing)
    ))
}

/// The owners of a key before and after a change of the ring: all nodes of its buckets' numbers.
pub(super) struct Owners {
    pub before: Vec<NodeId>,
    pub after: Vec<NodeId>,
    pub numbers_before: Replication,
    pub numbers_after: Replication,
}

impl Owners {
    /// Of a ring that is moving or has arrived; `None` if it is stable.
    pub fn of(ring: &Ring, key: &ObjectKey) -> Option<Owners> {
        let first =
            |list: &[NodeId], numbers: Replication| list.iter().copied().take(numbers.n as usize).collect();
        let state = ring.state();
        let (serving, other) = (state.serving(key.bucket()), state.other(key.bucket()));
        let answers: Vec<NodeId> = first(ring.preference_at(key.position()), serving);
        let others: Vec<NodeId> = first(ring.other_at(key.position())?, other);
        Some(match state.arrived {
            false => Owners { before: answers, after: others, numbers_before: serving, numbers_after: other },
            true => Owners { before: others, after: answers, numbers_before: other, numbers_after: serving },
        })
    }
}

/// The notes before a step that the step is judged by.
struct Before {
    stand: Stand,
    question: Option<Question>,
    home_write: Option<HomeWrite>,
    told: Told,
    versions: Option<Versions>,
    dropped: usize,
    compares_clocks: bool,
}

impl Cluster {
    /// Has a node take one input, and looks at what it makes of that.
    pub(super) fn step(&mut self, index: usize, now: Now, input: Input, outputs: &mut Vec<Output>) {
        let hearing = self.hearing(index);
        self.unwritten.note(index, &input);
        let machine = &mut self.machines[index];
        let node = machine.node.as_mut().expect("a turn is one of a living node");
        let before = Before {
            stand: Stand::of(node),
            question: Question::of(&input, node),
            home_write: HomeWrite::of(&input, &machine.disk),
            told: Told::by(&input, &machine.disk),
            versions: Versions::before(&input, node, &machine.disk),
            dropped: machine.disk.dropped_count(),
            compares_clocks: matches!(
                &input,
                Input::Message { message: Message::Control(Control::Gossip(Gossip::Ping { .. })), .. }
            ),
        };
        machine.ears.hear(hearing, now, &input);
        let known = outputs.len();
        node.step(now, input, outputs);
        self.look_on(index, now, before, &outputs[known..]);
    }

    fn look_on(&mut self, index: usize, now: Now, before: Before, outputs: &[Output]) {
        let hearing = self.hearing(index);
        let machine = &self.machines[index];
        let Some(node) = &machine.node else { return };
        let scene = Scene { node, disk: &machine.disk, now };
        let mut verdicts = before.question.map_or(Vec::new(), |question| question.judge(scene, outputs));
        verdicts.extend(before.versions.and_then(|versions| versions.judge(scene)));
        verdicts.extend(machine.ears.judge(hearing, outputs));
        verdicts.extend(self.wrong_removal(index, outputs));
        let speaker = Speaker {
            scene,
            machine: index,
            boot: machine.boots,
            now_us: self.now_us,
            awake_since_us: machine.awake_since_us,
            peers: &self.by_id,
        };
        verdicts.extend(self.testimony.hear(&speaker, &before.told, outputs));
        let terms = self.promises.judge(index, scene, &self.by_id, before.home_write.as_ref(), outputs);
        verdicts.extend(terms);
        let dropped = machine.disk.dropped_after(before.dropped);
        let compares_clocks = before.compares_clocks;
        self.blame_all(verdicts);
        self.check_stand(index, before.stand, &dropped);
        if compares_clocks {
            self.check_clock(index);
        }
    }

    fn hearing(&self, index: usize) -> Hearing {
        let stalled_us = self.machines[index].stalled_us;
        Hearing { now_us: self.now_us, stalled_us, suspect_us: self.config.suspect_ms * 1000 }
    }

    /// A node that vouches for a dead object has it on its disk, come what may.
    pub(super) fn check_vouched(&mut self, from: usize, to: usize, message: &Message) {
        let Message::Control(Control::DeadAnswer { number, refused }) = message else { return };
        let disk = &self.machines[from].disk;
        let is_unkept =
            |key: &ObjectKey| disk.durable_row(Space::Data, key.row()) != disk.row(Space::Data, key.row());
        let rows = self.testimony.vouched_rows(to, *number, refused);
        if let Some(key) = rows.into_iter().find(is_unkept) {
            let detail = format!("n{from} vouches for it, and may lose what it holds by a power failure");
            self.history.blame("vouched", Some(&key), detail);
        }
    }
}
