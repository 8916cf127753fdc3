//! What happened, as an observer sees it who reads every disk and every client's screen, but trusts no node.
//!
//! Two records are kept: the clients' operations with what they were told, and the **births**: each dot, at the moment
//! a node first stored it durably, with what its maker held then. Together they say which write really saw, and so
//! superseded, which other, without believing a single context: a context is the core's claim, and the claim is what is
//! checked.

use std::collections::BTreeMap;

use bytes::Bytes;
use oort_core::causality::{Dot, VersionVector};
use oort_core::client::{Operation, Page, RequestId};
use oort_core::mutation::{parse_integer, Basis, Mutation};
use oort_core::object::{Object, Value, Version};
use oort_core::types::{ActorId, ObjectKey};

use crate::disk::Stored;
use crate::trace::{get_quorum, key_of, show_operation, show_time, show_version, EPOCH_MS};

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The checker's name.
    pub checker: &'static str,
    pub key: Option<ObjectKey>,
    pub detail: String,
}

/// What became of an operation, as far as its client knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Pending,
    Acked,
    /// Its condition did not hold: nothing was written.
    NotApplied,
    /// An error that promises that nothing was changed.
    Refused,
    /// An error that promises nothing.
    Unknown,
    /// The node crashed, or was not there.
    Disconnected,
}

/// One client operation.
#[derive(Clone, Debug)]
pub struct OpRecord {
    pub client: usize,
    pub machine: usize,
    pub operation: Operation,
    pub timeout_ms: u64,
    /// The siblings that were on the client's screen when it wrote with a context, or with its tag.
    pub seen: Vec<Dot>,
    /// Replicas, answers and copies in force.
    pub n: u8,
    pub r: u8,
    pub w: u8,
    /// Answers that a listing of the key's bucket waits for.
    pub scan_r: u8,
    /// It counts by the bucket's own numbers, and quorums of these overlap, before and after a change of them too.
    pub is_usual: bool,
    /// So many owners' copies make it acknowledged that a usual read meets it, before and after a change of the bucket
    /// too.
    pub is_firm: bool,
    /// A call whose changes a quorum holds.
    pub is_kept: bool,
    pub start_us: u64,
    pub end_us: u64,
    pub outcome: Outcome,
    /// The error's text, for people.
    pub error: String,
    /// Births of this write: several if the coordinator's node was lost and the write tried again.
    pub dots: Vec<Dot>,
    /// The siblings a get returned, dead ones too.
    pub read: Vec<Dot>,
    /// The siblings an update says were there before it, if it was asked to.
    pub before: Option<Vec<Dot>>,
    /// The sum a counter showed after the addition.
    pub shown: Option<i64>,
    /// The page that a scan was answered.
    pub page: Option<Page>,
    /// When the node took the request up, and how long its machine had stood still in all by then.
    pub taken_us: u64,
    pub stalled_us: u64,
    /// The stamp of the ring that all nodes knew when it was asked; 0 if they did not agree.
    pub ring_stamp: u64,
    /// All nodes went by one ring from its beginning to its end.
    pub is_ring_steady: bool,
    /// Since when nothing had kept owners from their part, at its end.
    pub calm_since_us: u64,
    /// Writes that a get must show, or what superseded them: more owners held them all along than it left out.
    pub must_see: Vec<Dot>,
}

/// Where and when something was stored.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub machine: usize,
    pub at_us: u64,
    /// The machine's wall clock.
    pub wall_ms: u64,
    /// The machine is one of the key's replicas.
    pub is_at_home: bool,
}

/// The moment a dot was first stored.
#[derive(Clone, Debug)]
pub struct Birth {
    pub dot: Dot,
    pub version: Version,
    pub at_us: u64,
    /// Its maker's wall clock.
    pub wall_ms: u64,
    pub machine: usize,
    /// What its maker's row held just before.
    pub before: Vec<Dot>,
    /// Its maker is one of the key's replicas.
    pub is_at_home: bool,
    /// Siblings that other replicas showed its maker shortly before.
    pub shown: Vec<Dot>,
    /// What its maker's row held afterwards, and claimed to have seen.
    pub after: Vec<Dot>,
    pub context: VersionVector,
    /// The operation that made it, once known.
    pub operation: Option<RequestId>,
    /// Copies of it that power failures took after they were stored.
    pub copies_lost: u32,
}

/// Everything born under one key.
#[derive(Clone, Debug, Default)]
pub struct KeyHistory {
    pub births: Vec<Birth>,
    /// What nodes forgot because all held it alike and nobody could see anything of it, and when.
    pub forgotten: Vec<(u64, Vec<Dot>)>,
    /// A copy was damaged on disk.
    pub was_corrupted: bool,
    pub operations: Vec<RequestId>,
}

/// A listing of a whole bucket: the operations that asked for its pages, in order.
#[derive(Clone, Debug)]
pub struct Walk {
    pub bucket: Vec<u8>,
    pub pages: Vec<RequestId>,
}

/// The record of one run.
#[derive(Debug, Default)]
pub struct History {
    pub operations: Vec<OpRecord>,
    pub keys: BTreeMap<ObjectKey, KeyHistory>,
    pub violations: Vec<Violation>,
    /// The clients' listings.
    pub walks: Vec<Walk>,
    /// When machines ended, lost their power or their disk, in order.
    pub ends_us: Vec<u64>,
    /// When an operator first changed a bucket under its data.
    pub bucket_changes: BTreeMap<Bytes, u64>,
    dots: BTreeMap<Dot, (ObjectKey, usize)>,
    actors: BTreeMap<ActorId, Actor>,
    actors_of_machine: BTreeMap<usize, u32>,
    shown: BTreeMap<(usize, Dot), u64>,
}

#[derive(Clone, Debug)]
struct Actor {
    name: String,
    machine: usize,
    newest: u64,
}

/// How long a sibling that a replica showed a node may be used by it, in microseconds: longer than any request.
const SHOWN_US: u64 = 20_000_000;

/// The marker at the end of every stored value and appended text: `o17;`.
pub fn mark(id: RequestId) -> String {
    format!("o{id};")
}

/// A number to store, from which counting may go on: a multiple of [`NUMBER`] that no other operation stores.
pub fn number_mark(id: RequestId) -> String {
    (NUMBER * (id as i64 + 1)).to_string()
}

/// More than all additions to one key can add up to.
const NUMBER: i64 = 1_000_000_000;

/// The operation that wrote `value`, by its mark.
fn marked(value: &[u8]) -> Option<RequestId> {
    if let Some(number) = parse_integer(value) {
        return (number % NUMBER == 0).then(|| (number / NUMBER - 1) as RequestId);
    }
    let digits = value.strip_suffix(b";")?;
    let start = digits.iter().rposition(|byte| *byte == b'o')? + 1;
    std::str::from_utf8(&digits[start..]).ok()?.parse().ok()
}

fn ends_in(value: &Value, id: RequestId) -> bool {
    matches!(value, Value::Bytes(bytes) if marked(bytes) == Some(id))
}

impl History {
    /// Records a violation.
    pub fn blame(&mut self, checker: &'static str, key: Option<&ObjectKey>, detail: String) {
        self.violations.push(Violation { checker, key: key.cloned(), detail });
    }

    /// Records an operation as it reaches its machine; its id is its place in the list.
    pub fn start(&mut self, record: OpRecord) -> RequestId {
        let id = self.operations.len() as RequestId;
        if let Some(key) = key_of(&record.operation) {
            self.keys.entry(key.clone()).or_default().operations.push(id);
        }
        self.operations.push(record);
        id
    }

    /// The operation `id`.
    pub fn operation(&mut self, id: RequestId) -> &mut OpRecord {
        &mut self.operations[id as usize]
    }

    /// Takes note of an object that became part of `machine`'s store. Reports dots used twice. Returns the new ones.
    pub fn stored(&mut self, when: Moment, stored: Stored) -> Vec<Dot> {
        let machine = when.machine;
        let Ok(after) = Object::decode(&stored.after) else {
            self.blame("encoding", Some(&stored.key), format!("n{machine} stored bytes that are no object"));
            return Vec::new();
        };
        let mut fresh = Vec::new();
        for (dot, version) in after.0.values() {
            match self.dots.get(dot) {
                None => fresh.push((*dot, version.clone())),
                Some((key, index)) => {
                    let known = &self.keys[key].births[*index];
                    if *key != stored.key || common(&known.version) != common(version) {
                        let name = self.name(*dot);
                        let detail = format!(
                            "dot {name} names both {} under {key:?} and {}",
                            show_version(&known.version),
                            show_version(version)
                        );
                        self.blame("dots", Some(&stored.key), detail);
                    }
                }
            }
        }
        let born = fresh.iter().map(|(dot, _)| *dot).collect();
        for (dot, version) in fresh {
            self.born(when, &stored, &after, (dot, version));
        }
        born
    }

    fn born(&mut self, when: Moment, stored: &Stored, after: &Object, (dot, version): (Dot, Version)) {
        let Moment { machine, at_us, wall_ms, is_at_home } = when;
        let key = &stored.key;
        self.check_actor(machine, dot, key);
        let before = stored.before.as_ref().and_then(|bytes| Object::decode(bytes).ok());
        let before = before.map_or(Vec::new(), |object| dots_of(&object));
        let history = self.keys.entry(key.clone()).or_default();
        let shown_since = at_us.saturating_sub(SHOWN_US);
        let is_shown = |dot| self.shown.get(&(machine, dot)).is_some_and(|at| *at >= shown_since);
        let shown: Vec<Dot> =
            history.births.iter().map(|birth| birth.dot).filter(|dot| is_shown(*dot)).collect();
        // A value that its maker knew already was kept, with a new expiry.
        let is_kept = history.births.iter().any(|known| {
            known.version.value == version.value
                && (before.contains(&known.dot) || shown.contains(&known.dot))
        });
        // Nor does the mark name its write if it stands in what its maker only changed in front of it.
        let is_inherited = |id: &RequestId| {
            let mut known = history.births.iter().filter(|known| ends_in(&known.version.value, *id));
            known.any(|known| before.contains(&known.dot) || shown.contains(&known.dot))
        };
        let operation = match &version.value {
            Value::Bytes(bytes) if !is_kept => marked(bytes).filter(|id| !is_inherited(id)),
            _ => None,
        };
        let birth = Birth {
            dot,
            version,
            at_us,
            wall_ms,
            machine,
            before,
            is_at_home,
            shown,
            after: dots_of(after),
            context: after.context().clone(),
            operation,
            copies_lost: 0,
        };
        self.dots.insert(dot, (key.clone(), history.births.len()));
        history.births.push(birth);
        if let Some(id) = operation {
            self.claim(id, dot, key);
        }
    }

    fn check_actor(&mut self, machine: usize, dot: Dot, key: &ObjectKey) {
        let ordinal = self.actors_of_machine.entry(machine).or_default();
        let actor = self.actors.entry(dot.actor).or_insert_with(|| {
            *ordinal += 1;
            let suffix = (1..*ordinal).map(|_| '\'').collect::<String>();
            Actor { name: format!("n{machine}{suffix}"), machine, newest: 0 }
        });
        let newest = std::mem::replace(&mut actor.newest, dot.counter);
        let owner = actor.machine;
        if owner != machine {
            let detail = format!(
                "dot {} was stored by n{machine} before its maker n{owner} had it durably",
                self.name(dot)
            );
            self.blame("durability", Some(key), detail);
        } else if newest >= dot.counter {
            let before = self.name(Dot { counter: newest, actor: dot.actor });
            let detail = format!("dot {} was made after {before}: its actor went back", self.name(dot));
            self.blame("dots", Some(key), detail);
        }
    }

    /// True if this machine, in any of its lives, has made `dot`.
    pub fn is_of_machine(&self, machine: usize, dot: Dot) -> bool {
        self.actors.get(&dot.actor).is_some_and(|actor| actor.machine == machine)
    }

    /// Records that the write `id` became `dot`.
    pub fn claim(&mut self, id: RequestId, dot: Dot, key: &ObjectKey) {
        let Some(operation) = self.operations.get_mut(id as usize) else {
            self.blame("dots", Some(key), format!("a value of operation {id}, which never ran"));
            return;
        };
        if !operation.dots.contains(&dot) {
            operation.dots.push(dot);
        }
        if let Some((key, index)) = self.dots.get(&dot) {
            let birth = &mut self.keys.get_mut(key).expect("a born dot has a key").births[*index];
            birth.operation = Some(id);
        }
    }

    /// True if `dot` was born with this very value, or is not known, or is that of an active object.
    pub fn is_as_born(&self, dot: Dot, version: &Version) -> bool {
        let Some((key, index)) = self.dots.get(&dot) else { return true };
        let born = &self.keys[key].births[*index].version;
        let is_plain = |version: &Version| !version.value.carries_code();
        born == version || !is_plain(born) && !is_plain(version)
    }

    /// True if some store held `dot` durably.
    pub fn is_born(&self, dot: Dot) -> bool {
        self.dots.contains_key(&dot)
    }

    /// Records that a replica showed `machine` these siblings.
    pub fn show(&mut self, machine: usize, at_us: u64, object: &Object) {
        for (dot, _) in object.0.values() {
            self.shown.insert((machine, *dot), at_us);
        }
    }

    /// Records that a machine forgot an object.
    pub fn forgot(&mut self, machine: usize, at_us: u64, wall_ms: u64, key: &ObjectKey, object: &Object) {
        if object.is_live(wall_ms) {
            let detail = format!("n{machine} forgot {}", self.names(&dots_of(object)));
            self.blame("resurrected", Some(key), detail);
        }
        self.keys.entry(key.clone()).or_default().forgotten.push((at_us, dots_of(object)));
    }

    /// Records that `machine` lost its memory, and these durable copies.
    pub fn crashed(&mut self, machine: usize, at_us: u64, lost: &[Dot]) {
        self.ends_us.push(at_us);
        self.shown.retain(|(holder, _), _| *holder != machine);
        for dot in lost {
            if let Some((key, index)) = self.dots.get(dot) {
                let births = &mut self.keys.get_mut(key).expect("a born dot has a key").births;
                births[*index].copies_lost += 1;
            }
        }
    }

    /// A dot as `n2:1234.0`: its maker's machine, a tick for each actor it had before, milliseconds, logical count.
    pub fn name(&self, dot: Dot) -> String {
        let actor = self.actors.get(&dot.actor);
        let actor = actor.map_or_else(|| format!("{:?}", dot.actor), |actor| actor.name.clone());
        format!("{actor}:{}.{}", dot.wall_ms() as i64 - EPOCH_MS as i64, dot.counter & 0xffff)
    }

    /// Names of several dots.
    pub fn names(&self, dots: &[Dot]) -> String {
        let names: Vec<String> = dots.iter().map(|dot| self.name(*dot)).collect();
        format!("[{}]", names.join(" "))
    }

    /// Who did what to `key`, when and under which dots.
    pub fn tell(&self, key: &ObjectKey) -> String {
        let Some(history) = self.keys.get(key) else {
            return format!("nothing is known of {key:?}");
        };
        let mut lines: Vec<(u64, String)> = Vec::new();
        for id in &history.operations {
            let op = &self.operations[*id as usize];
            lines.push((
                op.start_us,
                format!("o{id} client {} asks n{}: {}", op.client, op.machine, show_operation(&op.operation)),
            ));
            if op.outcome != Outcome::Pending {
                let read = match &op.operation {
                    operation if get_quorum(operation).is_some() => format!(" read {}", self.names(&op.read)),
                    _ => format!(" as {}", self.names(&op.dots)),
                };
                let shown = op.shown.map_or(String::new(), |sum| format!(" shows {sum}"));
                lines.push((op.end_us, format!("o{id} {:?}{read}{shown} {}", op.outcome, op.error)));
            }
        }
        for birth in &history.births {
            lines.push((
                birth.at_us,
                format!(
                    "n{} stores {} = {} over {}, then holds {}{}",
                    birth.machine,
                    self.name(birth.dot),
                    show_version(&birth.version),
                    self.names(&birth.before),
                    self.names(&birth.after),
                    match birth.copies_lost {
                        0 => String::new(),
                        lost => format!(" ({lost} copies lost by power failures)"),
                    },
                ),
            ));
        }
        for (at_us, dots) in &history.forgotten {
            lines.push((*at_us, format!("forgotten: {}", self.names(dots))));
        }
        lines.sort_by_key(|(at_us, _)| *at_us);
        let lines: Vec<String> =
            lines.into_iter().map(|(at_us, line)| format!("  {} {line}", show_time(at_us))).collect();
        format!("history of {key:?}\n{}", lines.join("\n"))
    }
}

impl KeyHistory {
    /// The birth of `dot`, if it was born under this key.
    pub fn birth(&self, dot: Dot) -> Option<&Birth> {
        self.births.iter().find(|birth| birth.dot == dot)
    }

    /// The versions that store just what operation `id` brings.
    pub fn runs_of(&self, id: RequestId) -> impl Iterator<Item = Dot> + '_ {
        self.births.iter().filter(move |birth| ends_in(&birth.version.value, id)).map(|birth| birth.dot)
    }

    /// The dots that `birth` directly superseded, by what its writer and its maker really saw.
    ///
    /// A write with a context supersedes the siblings its client was shown; a blind one what its coordinating replica
    /// held; a Riak blind put only what was dead there; an addition the states of its own counter, which live on in the
    /// sum. What supersedes a sibling supersedes what that one superseded: see [`KeyHistory::reached`].
    pub fn superseded(&self, birth: &Birth, operations: &[OpRecord]) -> Vec<Dot> {
        let known = birth.operation.map(|id| &operations[id as usize]);
        let mutation = known.and_then(|op| match &op.operation {
            Operation::Update { mutation, .. } => Some(mutation),
            _ => None,
        });
        match mutation {
            Some(
                Mutation::Store { basis: Basis::Seen(_), .. }
                | Mutation::Delete { basis: Basis::Seen(_), .. },
            ) => known.map_or(Vec::new(), |op| op.seen.clone()),
            Some(
                Mutation::Store { basis: Basis::Unseen, .. } | Mutation::Delete { basis: Basis::Unseen, .. },
            ) => {
                let mut dead = self.claimed(birth, operations);
                dead.extend(&birth.before);
                dead.retain(|dot| self.is_dead(*dot, birth.wall_ms));
                dead
            }
            // A coordinator that holds nothing readable asks others what it should supersede.
            // One that stands in for a replica, or cannot read its row, asks others what it should supersede.
            Some(mutation) if !mutation.needs_read() && birth.is_at_home && !birth.before.is_empty() => {
                birth.before.clone()
            }
            _ => self.claimed(birth, operations),
        }
    }

    /// What `birth`'s object claims to have superseded, as far as its maker or writer can have seen it.
    fn claimed(&self, birth: &Birth, operations: &[OpRecord]) -> Vec<Dot> {
        let mut dots: Vec<Dot> = birth.before.iter().chain(&birth.shown).copied().collect();
        if birth.operation.is_none() {
            // A delete that was never acknowledged: any delete in flight may have made it.
            let candidates = self.operations.iter().map(|id| &operations[*id as usize]);
            let in_flight = candidates.filter(|op| {
                op.start_us <= birth.at_us && (op.outcome != Outcome::Acked || op.end_us >= birth.at_us)
            });
            dots.extend(in_flight.flat_map(|op| op.seen.iter().copied()));
        }
        dots.retain(|dot| birth.context.covers(*dot) && !birth.after.contains(dot));
        if let Value::Counter(counter) = &birth.version.value {
            dots.retain(|dot| {
                let is_plain =
                    matches!(self.birth(*dot).map(|birth| &birth.version.value), Some(Value::Bytes(_)));
                !is_plain || counter.origin == Some(*dot) || self.is_dead(*dot, birth.wall_ms)
            });
        }
        dots
    }

    /// What was forgotten until a moment.
    pub fn forgotten_until(&self, at_us: u64) -> impl Iterator<Item = Dot> + '_ {
        let until = self.forgotten.iter().filter(move |(then_us, _)| *then_us <= at_us);
        until.flat_map(|(_, dots)| dots.iter().copied())
    }

    fn is_dead(&self, dot: Dot, wall_ms: u64) -> bool {
        self.birth(dot).is_some_and(|birth| !birth.version.is_live(wall_ms))
    }

    /// For each birth whether it is among `from` or superseded, at any remove, by one of them.
    pub fn reached(&self, edges: &[Vec<usize>], from: &[Dot]) -> Reached {
        let mut is_reached = vec![false; self.births.len()];
        let mut is_superseded = vec![false; self.births.len()];
        let mut left: Vec<usize> = Vec::new();
        for (index, birth) in self.births.iter().enumerate() {
            if from.contains(&birth.dot) {
                is_reached[index] = true;
                left.push(index);
            }
        }
        while let Some(index) = left.pop() {
            for &older in &edges[index] {
                is_superseded[older] = true;
                if !std::mem::replace(&mut is_reached[older], true) {
                    left.push(older);
                }
            }
        }
        Reached { is_reached, is_superseded }
    }

    /// For each birth the births it directly superseded.
    pub fn edges(&self, operations: &[OpRecord]) -> Vec<Vec<usize>> {
        let index: BTreeMap<Dot, usize> = self.births.iter().enumerate().map(|(i, b)| (b.dot, i)).collect();
        self.births
            .iter()
            .map(|birth| {
                let older = self.superseded(birth, operations);
                older.iter().filter_map(|dot| index.get(dot).copied()).collect()
            })
            .collect()
    }
}

/// What a set of siblings accounts for.
#[derive(Clone, Debug)]
pub struct Reached {
    /// By birth: a sibling, or superseded by one.
    pub is_reached: Vec<bool>,
    /// By birth: superseded by a sibling.
    pub is_superseded: Vec<bool>,
}

/// The dots of an object's siblings.
pub fn dots_of(object: &Object) -> Vec<Dot> {
    object.0.values().iter().map(|(dot, _)| *dot).collect()
}

/// A version as all owners of its key have it.
fn common(version: &Version) -> Version {
    let husk = match &version.value {
        Value::Active(active) => active.husk(),
        _ => None,
    };
    let value = husk.map_or_else(|| version.value.clone(), |husk| Value::Husk(Box::new(husk)));
    Version { value, ..version.clone() }
}
