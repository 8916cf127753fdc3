//! What is demanded of a history: one checker per promise of DESIGN §1.
//!
//! Some checkers watch while the run goes on (`history` and `cluster` blame what they see); those here judge the whole
//! at the end, when faults have stopped and the replicas had time to agree. The oracle for siblings is the graph of
//! which write really superseded which, see [`KeyHistory::superseded`]: from the siblings that are left, every
//! acknowledged write must be reached, and none of them may be reached from another.

use std::collections::{BTreeMap, BTreeSet};

use oort_core::bucket::{BucketProperties, DEFAULT_BUCKET};
use oort_core::causality::Dot;
use oort_core::client::{Operation, Quorum};
use oort_core::mutation::{Expiry, Mutation};
use oort_core::object::{Object, Value, Version};
use oort_core::types::ObjectKey;

use crate::evaluation::{self, Wishes};
use crate::history::{dots_of, Birth, History, KeyHistory, OpRecord, Outcome};
use crate::trace::{get_quorum, EPOCH_MS};
use crate::workload::Role;

pub(crate) mod active;

/// Every checker's name, the promise it guards (by its number in DESIGN §1) and what it demands.
pub const CHECKERS: [(&str, u8, &str); 43] = [
    ("lost-write", 2, "an acknowledged write is a sibling, was superseded by one, expired or lost by lww"),
    ("copies", 2, "an acknowledged write is on the disks of w owners, or of nodes that owe it to them"),
    ("moved", 2, "when others begin to answer reads, every read quorum of them meets what was acknowledged"),
    ("superseded", 3, "no sibling was superseded by another; lww keeps one"),
    ("resurrected", 5, "only what nobody could see is forgotten, and nothing that it superseded comes back"),
    ("convergence", 4, "all replicas of a key are byte-identical within a bound after the faults stop"),
    ("hints", 4, "hints drain to zero, and nodes know how many they keep"),
    ("owed", 4, "when a write's time is up, each owner has it or is owed it"),
    ("strays", 4, "a node that stood in for a replica keeps no copy once its hints are delivered"),
    (
        "counters",
        2,
        "a counter is the sum of its acknowledged additions, and of any of the unacknowledged ones",
    ),
    (
        "active",
        2,
        "a convergent field of an active object holds all acknowledged calls, and no others but open ones",
    ),
    (
        "calls",
        2,
        "with quorum no answered call is undone: a plain field counts each once, and answers show all before them",
    ),
    ("terms", 2, "no node takes in of a home what it promised not to, and no home takes back what was answered"),
    ("unwritten", 2, "a call answered under async is written in time unless its home dies, and before it stops"),
    ("timers", 2, "no interval of a timer is run twice under quorum, and while nothing goes wrong none is missed"),
    ("changes", 7, "what an active object refused, or failed at, is in none of its versions"),
    ("rests", 1, "a caller rests only for what it did, and who burned all that a call may take rests"),
    ("lives", 2, "while nothing goes wrong, active objects that come and go answer just as one server's would"),
    ("husks", 2, "no version of an object that chose its holders is left with husks alone"),
    ("dots", 2, "a dot names one write for ever, and an actor's dots ascend, also across restarts"),
    ("durability", 2, "no message and no answer speaks of a write that its maker had not stored durably"),
    (
        "reads",
        2,
        "a get whose quorum of primaries overlaps that of an earlier put sees it, or what superseded it",
    ),
    (
        "listing",
        2,
        "a listing names every key that was there from its beginning to its end, none twice, and none that was gone",
    ),
    ("evaluation", 2, "a mutation makes of what its maker saw what is documented, and reads show what was stored"),
    ("errors", 7, "an operation that failed saying that nothing was changed, changed nothing"),
    ("late", 2, "no write is made long after its client was answered that nobody knows, or after its time was up"),
    ("answers", 7, "every request is answered once, within its time limit and a margin"),
    ("availability", 1, "without faults no request fails for want of a quorum"),
    ("final-read", 4, "at the end every node answers gets and scans with what the replicas hold"),
    ("formation", 1, "the cluster forms, every node starts on its own disk, links are accepted"),
    ("tables", 4, "all nodes know the same members, buckets and ring in the end"),
    ("identity", 2, "no node links with one of another cluster, or takes over its ring, whatever the name"),
    ("clocks", 2, "a node that reaches all others goes by the time of most of them"),
    ("removal", 2, "no operator gives up a node that is alive, or unforced one that holds the only copies"),
    ("stale", 2, "no node serves one that goes by an older ring, or was removed"),
    ("words", 2, "what a node lists for a peer is what it holds, and who says that it holds nothing holds nothing"),
    ("vouched", 5, "who vouches for a dead object holds just it, and what is dropped was vouched for twice by all"),
    ("ring", 2, "the ring changes step by step as operators ask, each step when all are ready, and copies lie apart"),
    ("ready", 2, "a node that is ready for a ring has what it is to hold in it, and both durably"),
    ("gifts", 2, "a row that a node gives away is with all who own it"),
    ("panic", 7, "no node panics"),
    ("rest", 7, "no node keeps itself busy for nothing"),
    ("encoding", 7, "whatever a node stores or sends can be read back"),
];

/// Two wall clocks differ by less than this, in milliseconds.
const SKEW_MS_MAX: u64 = 60_000;
/// How long after its time is up a write may still be made: as long as nodes err about each other's clocks.
const LATE_US_MAX: u64 = 200_000;

/// What the replicas hold at the end, and what excuses a loss.
#[derive(Clone, Debug, Default)]
pub struct FinalState {
    /// Each key's object on all its replicas.
    pub objects: BTreeMap<ObjectKey, Option<Object>>,
    pub lww_buckets: BTreeSet<Vec<u8>>,
    pub counters: BTreeSet<ObjectKey>,
    /// Active objects, by what they do.
    pub active: BTreeMap<ObjectKey, Role>,
    /// The latest time any node's wall clock ever showed, in milliseconds since 1970.
    pub wall_ms_max: u64,
    /// Active objects are written some time after they have answered, and machines may have stopped before that.
    pub is_async: bool,
    /// `sync = interval`: as many power failures as a write had copies may take it.
    pub is_interval: bool,
    /// One disk was lost for good.
    pub has_lost_disk: bool,
    /// Nothing went wrong: only primaries answered, whose number operators may have changed.
    pub is_faultless: bool,
    /// Nothing went wrong: operators may have changed buckets and the ring.
    pub is_change: bool,
}

/// Judges a finished run; what it finds is added to the history's violations.
pub fn judge(history: &mut History, state: &FinalState) {
    let mut found = Vec::new();
    let wishes = wishes(history);
    for (key, past) in &history.keys {
        let object = state.objects.get(key).cloned().flatten();
        let mut judge = Judge {
            history,
            state,
            key,
            past,
            edges: past.edges(&history.operations),
            is_lww: state.lww_buckets.contains(key.bucket()),
            properties: wishes.get(key.bucket()).map_or(&[], |properties| properties),
            found: &mut found,
        };
        if let Some(role) = state.active.get(key) {
            judge.objects(*role, object.as_ref());
            continue;
        }
        judge.siblings(object.as_ref());
        judge.evaluation();
        judge.reads();
        judge.listings();
        judge.resurrected(object.as_ref());
        judge.errors();
        judge.late();
        if state.counters.contains(key) {
            judge.counter(object.as_ref());
        }
    }
    for (checker, key, detail) in found {
        history.blame(checker, Some(&key), detail);
    }
}

/// The properties that operators gave buckets, in order.
fn wishes(history: &History) -> Wishes {
    let mut wishes = Wishes::from([(DEFAULT_BUCKET.to_vec(), vec![BucketProperties::default()])]);
    for op in &history.operations {
        if let Operation::SetBucket { bucket, properties } = &op.operation {
            wishes.entry(bucket.to_vec()).or_default().push(properties.clone());
        }
    }
    wishes
}

struct Judge<'a> {
    history: &'a History,
    state: &'a FinalState,
    key: &'a ObjectKey,
    past: &'a KeyHistory,
    edges: Vec<Vec<usize>>,
    is_lww: bool,
    /// What the bucket's properties were at any time.
    properties: &'a [BucketProperties],
    found: &'a mut Vec<(&'static str, ObjectKey, String)>,
}

impl Judge<'_> {
    fn blame(&mut self, checker: &'static str, detail: String) {
        self.found.push((checker, self.key.clone(), detail));
    }

    fn operations(&self) -> impl Iterator<Item = (u64, &OpRecord)> {
        let past: &KeyHistory = self.past;
        past.operations.iter().map(|id| (*id, &self.history.operations[*id as usize]))
    }

    /// Promises 2 and 3: nothing acknowledged is missing, nothing superseded is left.
    fn siblings(&mut self, object: Option<&Object>) {
        let left = object.map_or(Vec::new(), dots_of);
        let mut known = left.clone();
        known.extend(self.past.forgotten_until(u64::MAX));
        let mut verdicts = Vec::new();
        for (id, op) in self.operations() {
            if is_write(op)
                && op.outcome == Outcome::Acked
                && !self.accounts_for(&known, op)
                && !self.is_excused(op)
            {
                let detail = format!(
                    "acknowledged write o{id} as {} is neither among the siblings {} nor superseded by them",
                    self.history.names(&op.dots),
                    self.history.names(&left)
                );
                verdicts.push(("lost-write", detail));
            }
        }
        // Concurrent states of one counter are one value.
        let is_of_counter = |(_, version): &(Dot, Version)| matches!(version.value, Value::Counter(_));
        let is_one_counter = object.is_some_and(|object| {
            object.0.values().iter().all(is_of_counter) && object.siblings(0).len() <= 1
        });
        if self.is_lww && left.len() > 1 && !is_one_counter {
            let detail = format!("{} siblings under lww", left.len());
            verdicts.push(("superseded", detail));
        }
        if !self.is_lww {
            let reached = self.past.reached(&self.edges, &left);
            for (index, birth) in self.past.births.iter().enumerate() {
                if left.contains(&birth.dot) && reached.is_superseded[index] {
                    let detail = format!(
                        "sibling {} was superseded by another of {}",
                        self.history.name(birth.dot),
                        self.history.names(&left)
                    );
                    verdicts.push(("superseded", detail));
                }
            }
        }
        for (checker, detail) in verdicts {
            self.blame(checker, detail);
        }
    }

    /// True if some birth of `op` is among `siblings` or superseded by one of them.
    fn accounts_for(&self, siblings: &[Dot], op: &OpRecord) -> bool {
        let is_older = |dot| siblings.iter().any(|left| left >= dot);
        if self.is_lww && op.dots.iter().any(is_older) {
            return true;
        }
        let reached = self.past.reached(&self.edges, siblings);
        let births = self.past.births.iter().zip(&reached.is_reached);
        births.into_iter().any(|(birth, is_reached)| *is_reached && op.dots.contains(&birth.dot))
    }

    fn is_excused(&self, op: &OpRecord) -> bool {
        let is_expired = op.dots.iter().any(|dot| {
            let expiry = self.past.birth(*dot).and_then(|birth| birth.version.expires_ms);
            expiry.is_some_and(|expiry| expiry <= self.state.wall_ms_max)
        });
        let may_lose = self.state.is_interval || self.state.has_lost_disk;
        // A bucket that was given a smaller n holds no more copies than that.
        let n_min = self.n_min().unwrap_or(op.w);
        let is_damaged = self.past.was_corrupted && may_lose;
        let is_lost = may_lose && self.copies_lost(op) >= op.w.min(n_min) as u32;
        is_expired || is_damaged || is_lost || self.may_miss_only_copy()
    }

    /// The fewest copies that the key's bucket ever had.
    fn n_min(&self) -> Option<u8> {
        self.properties.iter().map(|properties| properties.n).min()
    }

    /// The only copy there was may have been on a disk that was lost, or in a row that was damaged.
    fn may_miss_only_copy(&self) -> bool {
        self.n_min() == Some(1) && (self.past.was_corrupted || self.state.has_lost_disk)
    }

    /// Copies of `op`'s write, and of what had superseded it, that power failures took.
    fn copies_lost(&self, op: &OpRecord) -> u32 {
        let births = self.past.births.iter().filter(|birth| birth.copies_lost > 0);
        births.filter(|birth| self.accounts_for(&[birth.dot], op)).map(|birth| birth.copies_lost).sum()
    }

    /// Promise 2 of mutations: they do what they say, on what their maker saw.
    fn evaluation(&mut self) {
        // With `sync = interval` a power failure may take what a node knew of buckets, until it meets another.
        let is_forgetful = self.state.is_interval && !self.history.ends_us.is_empty();
        let of_nobody = is_forgetful.then(BucketProperties::default);
        let properties: Vec<BucketProperties> = self.properties.iter().cloned().chain(of_nobody).collect();
        for detail in evaluation::judge(self.history, self.past, self.is_lww, &properties) {
            self.blame("evaluation", detail);
        }
    }

    /// Promise 2 at any moment: overlapping quorums of primaries.
    fn reads(&mut self) {
        if self.past.was_corrupted || self.state.is_interval {
            return;
        }
        let changed_us = self.history.bucket_changes.get(self.key.bucket());
        let mut verdicts = Vec::new();
        for (get_id, asked, known) in self.looks() {
            let get = &self.history.operations[get_id as usize];
            let reached = self.past.reached(&self.edges, &known);
            let mut births = self.past.births.iter().zip(&reached.is_reached);
            let is_missed = |(birth, is_reached): &(&Birth, &bool)| {
                let is_older = self.is_lww && known.iter().any(|dot| *dot >= birth.dot);
                let is_excused = is_older || self.may_miss_only_copy();
                get.must_see.contains(&birth.dot) && !**is_reached && !is_excused
            };
            if let Some((birth, _)) = births.find(is_missed) {
                let (name, known) = (self.history.name(birth.dot), self.history.names(&known));
                verdicts.push(format!("o{get_id} read {known}, without {name}, which too many owners held"));
            }
            for (put_id, put) in self.operations() {
                let Operation::Update { quorum: given, .. } = &put.operation else {
                    continue;
                };
                // A request's own numbers say nothing about owners that others became meanwhile.
                let is_steady = changed_us.is_none_or(|at_us| get.end_us < *at_us);
                let overlaps = is_steady && asked.primary_r + given.primary_w > get.n
                    || is_steady && self.state.is_faultless && get.r + put.w > get.n
                    || is_steady && get.calm_since_us <= put.start_us && get.r + put.w > get.n
                    || self.state.is_change && get.is_usual && put.is_usual;
                if put.outcome != Outcome::Acked || !is_write(put) || put.end_us > get.start_us || !overlaps {
                    continue;
                }
                if self.state.has_lost_disk && self.is_excused(put) {
                    continue;
                }
                let sees = match self.is_lww {
                    true => self.accounts_for(&known, put),
                    false => self
                        .past
                        .births
                        .iter()
                        .zip(&reached.is_reached)
                        .any(|(birth, is_reached)| *is_reached && put.dots.contains(&birth.dot)),
                };
                if !sees {
                    verdicts.push(format!(
                        "o{get_id} read {}, without the write o{put_id} acknowledged before as {}",
                        self.history.names(&known),
                        self.history.names(&put.dots)
                    ));
                }
            }
        }
        for detail in verdicts {
            self.blame("reads", detail);
        }
    }

    /// Each operation that looked at the key, the numbers it asked for, and what it has seen of the key or what was
    /// forgotten by then: gets, and updates that depend on what is stored.
    fn looks(&self) -> Vec<(u64, Quorum, Vec<Dot>)> {
        let mut looks = Vec::new();
        let is_told = |op: &OpRecord| matches!(op.outcome, Outcome::Acked | Outcome::NotApplied);
        for (id, op) in self.operations().filter(|(_, op)| is_told(op)) {
            let (quorum, mut known, at_us) = match (&op.operation, &op.before) {
                (Operation::Update { quorum, .. }, Some(before)) => (*quorum, before.clone(), op.end_us),
                (Operation::Update { quorum, .. }, None) if op.operation.reads_first() => {
                    let Some(birth) = op.dots.first().and_then(|dot| self.past.birth(*dot)) else { continue };
                    let others = self.past.births.iter().map(|other| other.dot);
                    let seen = others.filter(|dot| *dot != birth.dot && birth.context.covers(*dot));
                    (*quorum, seen.collect(), birth.at_us)
                }
                (Operation::Update { .. }, None) => continue,
                (operation, _) => match get_quorum(operation) {
                    Some(quorum) => (quorum, op.read.clone(), op.end_us),
                    None => continue,
                },
            };
            known.extend(self.past.forgotten_until(at_us));
            looks.push((id, quorum, known));
        }
        looks
    }

    /// Promise 2 of listings, as Redis has it: a key that is there all the time is named.
    fn listings(&mut self) {
        if self.past.was_corrupted || self.state.is_interval {
            return;
        }
        let mut verdicts = Vec::new();
        for walk in self.history.walks.iter().filter(|walk| walk.bucket == self.key.bucket()) {
            let pages = walk.pages.iter().map(|id| &self.history.operations[*id as usize]);
            let pages: Vec<&OpRecord> = pages.collect();
            let Some((first, last)) = pages.first().zip(pages.last()) else { continue };
            let is_whole = last.page.as_ref().is_some_and(|page| page.next.is_none());
            for op in pages.iter().filter(|op| self.may_not_name(op)) {
                let page = op.page.as_ref().map_or(&[][..], |page| &page.keys);
                if page.iter().any(|key| key == self.key.key()) {
                    let node = op.machine;
                    verdicts
                        .push(format!("a page of n{node} names the key, which was gone before it was asked"));
                }
            }
            if !is_whole || !self.is_there(first.start_us, last.end_us) {
                continue;
            }
            let mut named = pages.iter().filter_map(|op| op.page.as_ref()).flat_map(|page| &page.keys);
            if !named.any(|key| key == self.key.key()) {
                verdicts.push(format!(
                    "the listing o{} to o{} does not name the key, which was there all the time",
                    walk.pages[0],
                    walk.pages[walk.pages.len() - 1]
                ));
            }
        }
        for detail in verdicts {
            self.blame("listing", detail);
        }
    }

    /// True if nothing of the key can have been live for whoever answered this page.
    fn may_not_name(&self, page: &OpRecord) -> bool {
        if self.history.bucket_changes.get(self.key.bucket()).is_some_and(|at_us| *at_us <= page.end_us) {
            return false;
        }
        let is_known = |op: &OpRecord| {
            let Operation::Update { quorum, .. } = &op.operation else { return false };
            let overlaps = quorum.primary_w + op.scan_r > op.n
                || self.state.is_faultless && op.w + op.scan_r > op.n
                || self.state.is_change && op.is_usual
                || page.calm_since_us <= op.start_us && op.w + op.scan_r > op.n;
            let is_safe = !self.state.has_lost_disk || !self.is_excused(op);
            op.outcome == Outcome::Acked && op.end_us <= page.start_us && overlaps && is_safe
        };
        let known = self.operations().filter(|(_, op)| is_known(op)).flat_map(|(_, op)| &op.dots);
        let known: Vec<Dot> = known.copied().collect();
        let reached = self.past.reached(&self.edges, &known);
        let newest = known.iter().max().copied();
        let asked_ms = EPOCH_MS + page.start_us / 1000;
        self.past.births.iter().zip(&reached.is_superseded).all(|(birth, is_superseded)| {
            let is_expired = birth.version.expires_ms.is_some_and(|at_ms| at_ms + SKEW_MS_MAX < asked_ms);
            let is_older = self.is_lww && newest.is_some_and(|newest| birth.dot < newest);
            birth.at_us > page.end_us
                || birth.version.value == Value::Tombstone
                || is_expired
                || is_older
                || *is_superseded
        })
    }

    /// True if the key was live from `start_us` to `end_us`, as far as every listing must know.
    fn is_there(&self, start_us: u64, end_us: u64) -> bool {
        // Numbers of before say nothing about the owners of a bucket that was changed.
        if self.history.bucket_changes.get(self.key.bucket()).is_some_and(|at_us| *at_us <= end_us) {
            return false;
        }
        if self.properties.iter().any(|properties| properties.default_ttl_ms.is_some()) {
            return false;
        }
        let writes: Vec<&OpRecord> =
            self.operations().map(|(_, op)| op).filter(|op| is_write(op) && op.start_us <= end_us).collect();
        let stored = writes.iter().filter(|op| {
            let Operation::Update { quorum, .. } = &op.operation else { return false };
            let overlaps = quorum.primary_w + op.scan_r > op.n
                || self.state.is_faultless && op.w + op.scan_r > op.n
                || self.state.is_change && op.is_usual;
            let is_safe = !self.state.has_lost_disk || !self.is_excused(op);
            op.outcome == Outcome::Acked
                && !op.dots.is_empty()
                && op.end_us <= start_us
                && overlaps
                && is_safe
        });
        let fades = |dot| self.past.birth(dot).is_none_or(|birth| birth.version.expires_ms.is_some());
        let mut stored = stored.filter(|op| !may_end(op) && !op.dots.iter().any(|dot| fades(*dot)));
        stored.any(|stored| {
            // One that failed without an answer may still happen, whenever it was begun.
            writes.iter().filter(|op| may_end(op)).all(|op| {
                let is_over =
                    !matches!(op.outcome, Outcome::Unknown | Outcome::Disconnected | Outcome::Pending);
                is_over && op.end_us < stored.start_us && !has_expiry(op)
            })
        })
    }

    /// Promise 5: what was deleted and forgotten hides nothing that could come back.
    fn resurrected(&mut self, object: Option<&Object>) {
        let mut verdicts = Vec::new();
        let left = object.map_or(Vec::new(), dots_of);
        let gets = self.operations().filter(|(_, op)| get_quorum(&op.operation).is_some());
        let mut seen: Vec<(u64, Vec<Dot>, String)> =
            gets.map(|(id, get)| (get.start_us, get.read.clone(), format!("get o{id} read"))).collect();
        seen.push((u64::MAX, left, "at the end the replicas hold".into()));
        for (at_us, dots, who) in seen {
            let forgotten: Vec<Dot> = self.past.forgotten_until(at_us).collect();
            let reached = self.past.reached(&self.edges, &forgotten);
            for (birth, is_superseded) in self.past.births.iter().zip(&reached.is_superseded) {
                if *is_superseded && dots.contains(&birth.dot) {
                    let name = self.history.name(birth.dot);
                    verdicts.push(format!("{who} {name}, which was superseded by what all had forgotten"));
                }
            }
        }
        for detail in verdicts {
            self.blame("resurrected", detail);
        }
    }

    /// Promise 7: an error that says "nothing was changed" is true.
    fn errors(&mut self) {
        let mut verdicts = Vec::new();
        for (id, op) in self.operations() {
            let claims_nothing = matches!(op.outcome, Outcome::Refused | Outcome::NotApplied);
            if claims_nothing && !op.dots.is_empty() {
                verdicts.push(format!(
                    "o{id} was answered {:?} ({}), yet became {}",
                    op.outcome,
                    op.error,
                    self.history.names(&op.dots)
                ));
            }
        }
        for detail in verdicts {
            self.blame("errors", detail);
        }
    }

    /// A write that was not made when its time was up is not made: a client that gave up, and wrote something else,
    /// would find that undone.
    fn late(&mut self) {
        let mut verdicts = Vec::new();
        // Nobody knows when the node of a client that lost it took the request up.
        let is_answered = |op: &OpRecord| !matches!(op.outcome, Outcome::Pending | Outcome::Disconnected);
        for (id, op) in self.operations().filter(|(_, op)| is_answered(op)) {
            let until_us = op.end_us.max(op.taken_us + op.timeout_ms * 1000) + LATE_US_MAX;
            let made = op.dots.iter().filter_map(|dot| self.past.birth(*dot));
            for birth in made.filter(|birth| birth.at_us > until_us) {
                verdicts.push(format!(
                    "o{id} was made as {} {} ms after its time was up",
                    self.history.name(birth.dot),
                    (birth.at_us - until_us + LATE_US_MAX) / 1000
                ));
            }
        }
        for detail in verdicts {
            self.blame("late", detail);
        }
    }

    /// Promise 2 for counters.
    fn counter(&mut self, object: Option<&Object>) {
        let may_lose = self.state.is_interval || self.state.has_lost_disk;
        let is_hurt = self.operations().any(|(_, op)| may_lose && self.is_excused(op));
        if is_hurt {
            return;
        }
        let (mut sum, mut open) = (0, Vec::new());
        for (_, op) in self.operations() {
            let Operation::Update { mutation: Mutation::Add { delta }, .. } = &op.operation else {
                continue;
            };
            match op.outcome {
                Outcome::Acked => sum += delta,
                Outcome::Unknown | Outcome::Disconnected | Outcome::Pending => open.push(*delta),
                Outcome::Refused | Outcome::NotApplied => {}
            }
        }
        let found = object
            .and_then(|object| object.newest(0))
            .map_or(0, |sibling| sibling.counter.unwrap_or(i64::MIN));
        if !is_subset_sum(&open, found - sum) {
            self.blame(
                "counters",
                format!(
                    "the counter shows {found}: {sum} was acknowledged and no choice of {} open additions explains the rest",
                    open.len()
                ),
            );
        }
    }
}

/// True if the operation writes an object.
fn is_write(op: &OpRecord) -> bool {
    matches!(op.operation, Operation::Update { .. })
}

/// True if the key may be gone because of the operation, at once or later.
fn may_end(op: &OpRecord) -> bool {
    match &op.operation {
        Operation::Update { mutation, .. } => match mutation {
            Mutation::Delete { .. } | Mutation::SetExpiry { .. } => true,
            Mutation::Store { expiry, .. } => matches!(expiry, Expiry::At(_)),
            Mutation::Append { .. }
            | Mutation::SetRange { .. }
            | Mutation::Add { .. }
            | Mutation::AddFloat { .. }
            | Mutation::Activate { .. } => false,
        },
        _ => false,
    }
}

/// True if the operation may let the key expire.
fn has_expiry(op: &OpRecord) -> bool {
    !matches!(&op.operation, Operation::Update { mutation: Mutation::Delete { .. }, .. })
}

/// True if some of `numbers` add up to `sum`.
fn is_subset_sum(numbers: &[i64], sum: i64) -> bool {
    let mut sums = vec![0];
    for number in numbers {
        let mut more: Vec<i64> = sums.iter().map(|sum| sum + number).collect();
        more.append(&mut sums);
        // Two runs in order: sorting them is merging them.
        more.sort();
        more.dedup();
        sums = more;
    }
    sums.binary_search(&sum).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_additions_may_or_may_not_count() {
        for (numbers, sum, want) in [
            (&[][..], 0, true),
            (&[], 1, false),
            (&[3, -5, 7], 2, true),
            (&[3, -5, 7], 6, false),
            (&[3, -5, 7], 5, true),
        ] {
            assert_eq!(is_subset_sum(numbers, sum), want, "{numbers:?} {sum}");
        }
    }
}
