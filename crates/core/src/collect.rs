//! Forgetting what is dead: which deleted and expired objects everybody holds alike, and since when.
//!
//! A *dead* object has no version but tombstones and expired ones. Forgotten too early it would let an older version
//! come back that some node still holds, or that is still under way. So every member is asked twice, `collect_after_ms`
//! apart, whether it holds just this or nothing; only if all agree both times do all drop it. In between, whatever was
//! under way has arrived. `docs/deletes.md` has the whole argument, `node/collect.rs` the asking.
//!
//! Source: DESIGN §1.5. Differs: Dynamo and Riak forget after a time and hope.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::ROWS_ASKED_MAX;
use crate::object::Object;
use crate::replica::row_hash;
use crate::types::{NodeId, Now, ObjectKey};

/// Bytes of their names in one message, roughly.
const NAME_BYTES_MAX: usize = 64 << 10;
/// Dead objects that are waited for. More stay found until some of these are gone.
const WAITING_MAX: usize = 1 << 18;
/// A node that stood still for this part of the time between the questions does not answer for as long: it may still
/// have things to send that it thought of before.
const STANDSTILL_PARTS: u64 = 8;

/// A dead object by its key and the hash of its bytes.
pub type DeadRow = (ObjectKey, u64);

/// What everybody is being asked about.
#[derive(Clone, Debug)]
struct Question {
    number: u64,
    rows: Vec<DeadRow>,
    refused: BTreeSet<usize>,
    unanswered: BTreeSet<NodeId>,
    asked_us: u64,
}

/// Of a dead object that all members held alike.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since_us: u64,
    /// The pass over all rows in which it was last seen.
    pass: u64,
}

/// How far this node has come with the dead objects whose first owner it is.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    after_us: u64,
    /// Dead objects in one question, at most [`ROWS_ASKED_MAX`].
    rows_max: usize,
    /// Found in this pass and not asked about yet.
    found: BTreeMap<ObjectKey, u64>,
    /// By the hash of key and object.
    waiting: BTreeMap<u64, Waiting>,
    question: Option<Question>,
    numbers: u64,
    pass: u64,
    stamp: u64,
    awake_since_us: u64,
    last_us: u64,
}

/// True if no reader would see anything of the object in these bytes.
pub fn is_dead(object: &bytes::Bytes, wall_ms: u64) -> bool {
    Object::decode(object).is_ok_and(|object| !object.is_live(wall_ms))
}

impl Collector {
    /// `after_ms`: time between the two questions; 0: nothing is ever forgotten.
    pub fn new(after_ms: u64, rows_max: usize) -> Collector {
        let rows_max = rows_max.min(ROWS_ASKED_MAX);
        Collector { after_us: after_ms * 1000, rows_max, ..Collector::default() }
    }

    /// Time passes: notices when the node stood still.
    pub fn watch(&mut self, now: Now) {
        if now.mono_us > self.last_us + self.after_us / STANDSTILL_PARTS {
            self.awake_since_us = now.mono_us;
        }
        self.last_us = now.mono_us;
    }

    /// True if this node may vouch for what it holds: all it thought of before the first question has been sent.
    pub fn is_awake(&self, now: Now) -> bool {
        self.after_us > 0 && now.mono_us >= self.awake_since_us + self.after_us
    }

    /// True if more dead objects are looked for.
    pub fn wants_more(&self) -> bool {
        self.after_us > 0 && self.found.len() < 2 * self.rows_max
    }

    /// A dead object was found whose first owner this node is.
    pub fn found(&mut self, now: Now, row: DeadRow) {
        if !self.wants_more() {
            return;
        }
        let is_full = self.waiting.len() >= WAITING_MAX;
        match self.waiting.get_mut(&fingerprint(&row)) {
            None if is_full => return,
            None => {}
            Some(waiting) => {
                waiting.pass = self.pass;
                if waiting.since_us + self.after_us > now.mono_us {
                    return;
                }
            }
        }
        self.found.insert(row.0, row.1);
    }

    /// What was found, for a core that asks nobody.
    #[cfg(feature = "sabotage")]
    pub fn take_found(&mut self) -> Vec<DeadRow> {
        std::mem::take(&mut self.found).into_iter().collect()
    }

    /// All rows have been visited once more: forgets what was waited for and is not there any more.
    pub fn next_pass(&mut self) {
        let pass = self.pass;
        self.waiting.retain(|_, waiting| waiting.pass + 1 >= pass);
        self.pass += 1;
    }

    /// With another ring all begins anew.
    fn note_ring(&mut self, stamp: u64) {
        if std::mem::replace(&mut self.stamp, stamp) != stamp {
            self.waiting.clear();
            self.question = None;
        }
    }

    /// The next question, to be put to all of `members`: its number and what it is about. `None` if there is nothing to
    /// ask, or one is being asked that is not older than `timeout_us`.
    pub fn ask(
        &mut self,
        now: Now,
        stamp: u64,
        members: BTreeSet<NodeId>,
        timeout_us: u64,
    ) -> Option<(u64, Vec<DeadRow>)> {
        self.note_ring(stamp);
        if self.question.as_ref().is_some_and(|question| now.mono_us < question.asked_us + timeout_us) {
            return None;
        }
        self.question = None;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < self.rows_max && bytes < NAME_BYTES_MAX {
            let Some(row) = self.found.pop_first() else { break };
            bytes += row.0.row().len();
            rows.push(row);
        }
        if rows.is_empty() {
            return None;
        }
        self.numbers += 1;
        self.question = Some(Question {
            number: self.numbers,
            rows: rows.clone(),
            refused: BTreeSet::new(),
            unanswered: members,
            asked_us: now.mono_us,
        });
        Some((self.numbers, rows))
    }

    /// This node itself holds some of the rows of the last question otherwise.
    pub fn refuse(&mut self, refused: impl IntoIterator<Item = usize>) {
        if let Some(question) = &mut self.question {
            question.refused.extend(refused);
        }
    }

    /// A member's answer: which of the rows it holds otherwise.
    pub fn answer(&mut self, from: NodeId, number: u64, refused: impl IntoIterator<Item = usize>) {
        let Some(question) = self.question.as_mut().filter(|question| question.number == number) else {
            return;
        };
        if question.unanswered.remove(&from) {
            question.refused.extend(refused);
        }
    }

    /// What all members held alike twice, if everybody has answered: to be dropped now.
    pub fn conclude(&mut self, now: Now, stamp: u64) -> Vec<DeadRow> {
        self.note_ring(stamp);
        let Some(question) = self.question.take_if(|question| question.unanswered.is_empty()) else {
            return Vec::new();
        };
        let mut agreed = Vec::new();
        for (index, row) in question.rows.into_iter().enumerate() {
            let print = fingerprint(&row);
            if question.refused.contains(&index) {
                self.waiting.remove(&print);
                continue;
            }
            match self.waiting.get(&print) {
                Some(waiting) if waiting.since_us + self.after_us <= question.asked_us => {
                    self.waiting.remove(&print);
                    agreed.push(row);
                }
                Some(_) => {}
                None => {
                    self.waiting.insert(print, Waiting { since_us: now.mono_us, pass: self.pass });
                }
            }
        }
        agreed
    }

    /// What this node said of its own rows does not hold any more.
    pub fn abandon(&mut self) {
        self.question = None;
    }

    /// How many dead objects are waited for.
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }
}

fn fingerprint((key, hash): &DeadRow) -> u64 {
    row_hash(key.row(), *hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER_MS: u64 = 1000;
    const PEERS: [NodeId; 2] = [NodeId(1), NodeId(2)];

    fn at(ms: u64) -> Now {
        Now { mono_us: ms * 1000, wall_ms: ms }
    }

    fn row(name: &str) -> DeadRow {
        (ObjectKey::new(b"b", name.as_bytes()).unwrap(), 7)
    }

    /// Has all rows asked about and answered; returns what may be dropped.
    fn ask(collector: &mut Collector, ms: u64, rows: &[&str], refused: &[&str]) -> Vec<DeadRow> {
        rows.iter().for_each(|name| collector.found(at(ms), row(name)));
        let Some((number, asked)) = collector.ask(at(ms), 1, PEERS.into(), 100_000) else {
            return Vec::new();
        };
        collector.answer(PEERS[0], number, Vec::new());
        assert!(collector.conclude(at(ms), 1).is_empty(), "one has not answered");
        collector.answer(PEERS[0], number, Vec::new());
        assert!(collector.conclude(at(ms), 1).is_empty(), "nobody answers for another");
        let index_of =
            |name: &&str| asked.iter().position(|asked| *asked == row(name)).expect("it was asked");
        collector.answer(PEERS[1], number, refused.iter().map(index_of));
        collector.conclude(at(ms), 1)
    }

    #[test]
    fn what_all_hold_alike_twice_is_dropped() {
        let mut collector = Collector::new(AFTER_MS, ROWS_ASKED_MAX);
        assert!(ask(&mut collector, 10, &["x", "y"], &[]).is_empty());
        assert!(ask(&mut collector, 1009, &["x", "y"], &[]).is_empty(), "too early");
        assert_eq!(ask(&mut collector, 1010, &["x", "y"], &["x"]), [row("y")], "x was refused");
        assert!(ask(&mut collector, 2100, &["x"], &[]).is_empty(), "and waits anew");
        assert_eq!(ask(&mut collector, 3100, &["x"], &[]), [row("x")]);
    }

    #[test]
    fn another_ring_and_a_lost_answer_begin_anew() {
        let mut collector = Collector::new(AFTER_MS, ROWS_ASKED_MAX);
        assert!(ask(&mut collector, 10, &["x"], &[]).is_empty());
        collector.found(at(1500), row("x"));
        let (number, _) = collector.ask(at(1500), 2, PEERS.into(), 100_000).unwrap();
        PEERS.iter().for_each(|peer| collector.answer(*peer, number, Vec::new()));
        assert!(collector.conclude(at(1500), 2).is_empty(), "with this ring it is the first time");
        collector.found(at(2600), row("x"));
        assert!(collector.ask(at(2600), 2, PEERS.into(), 100_000).is_some());
        collector.found(at(2650), row("x"));
        assert!(collector.ask(at(2650), 2, PEERS.into(), 100_000).is_none(), "one question at a time");
        assert!(collector.ask(at(2700), 2, PEERS.into(), 100_000).is_some());
    }

    #[test]
    fn who_stood_still_does_not_vouch_for_a_while() {
        let mut collector = Collector::new(AFTER_MS, ROWS_ASKED_MAX);
        for ms in (0..2000).step_by(100) {
            collector.watch(at(ms));
            assert_eq!(collector.is_awake(at(ms)), ms >= 1000);
        }
        collector.watch(at(2300));
        assert!(!collector.is_awake(at(2300)));
    }

    #[test]
    fn what_is_gone_is_not_waited_for_for_ever() {
        let mut collector = Collector::new(AFTER_MS, ROWS_ASKED_MAX);
        ask(&mut collector, 10, &["x"], &[]);
        assert_eq!(collector.waiting(), 1);
        (0..3).for_each(|_| collector.next_pass());
        assert_eq!(collector.waiting(), 0);
    }
}
