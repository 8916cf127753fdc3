//! What is demanded of active objects, by what they do: see the roles of [`crate::workload`].

use std::collections::{BTreeMap, BTreeSet};

use oort_core::active::{self, Active, Ask, Facts, Failure, Sandbox};
use oort_core::bucket::ActiveProperties;
use oort_core::client::{ActiveError, Operation};
use oort_core::mutation::Mutation;
use oort_core::object::{Object, Value};
use oort_core::types::ObjectKey;

use super::{is_subset_sum, Judge};
use crate::history::{mark, KeyHistory, OpRecord, Outcome};
use crate::workload::active::DIRTY;
use crate::workload::Role;

/// A caller that burns what a call may take may rest for so long, in microseconds.
const REST_US_MAX: u64 = 60_000_000;
/// A function that so many calls have driven to a limit rests for all.
const BURNS_MAX: usize = 8;
/// A call answered under `async` is written within this, in microseconds, though machines stand still and disks are
/// full meanwhile, as long as no machine ends.
const UNWRITTEN_US_MAX: u64 = 12_000_000;

impl Judge<'_> {
    /// All that is demanded of an active object.
    pub(super) fn objects(&mut self, role: Role, object: Option<&Object>) {
        match role {
            Role::Active { .. } => self.active(object),
            Role::Tally => self.calls(object),
            Role::Ticker { .. } => self.timers(object),
            _ => self.changes(),
        }
        self.rests();
    }

    /// Promise 2 for what active objects keep in convergent fields, whatever homes ran them.
    fn active(&mut self, object: Option<&Object>) {
        if object.is_some_and(Object::has_husk) {
            self.blame("active", "none of the owners has the code and state of a version".into());
        }
        let (found, marks) = match object.map(hits).unwrap_or_else(|| Ok((0, BTreeSet::new()))) {
            Ok(found) => found,
            Err(failure) => return self.blame("active", format!("the object cannot be loaded: {failure}")),
        };
        // What may get lost may not get lost by halves.
        let (mut sum, mut whole, mut open, mut verdicts) = (0, 0, Vec::new(), Vec::new());
        let may_lose = self.state.is_interval
            || self.state.has_lost_disk && self.state.is_async
            || self.may_miss_only_copy();
        for (id, op) in self.operations() {
            let Operation::Call { call, .. } = &op.operation else { continue };
            let [active::Value::Integer(number), _] = call.arguments[..] else { continue };
            let is_marked = marks.contains(&mark(id));
            whole += if is_marked { number } else { 0 };
            match op.outcome {
                Outcome::Acked => {
                    sum += number;
                    if !is_marked && !may_lose && !self.may_be_unwritten(op) {
                        verdicts.push(format!("the set does not hold the acknowledged o{id}"));
                    }
                }
                Outcome::Unknown | Outcome::Disconnected | Outcome::Pending => open.push(number),
                Outcome::Refused | Outcome::NotApplied if is_marked => {
                    verdicts.push(format!("the set holds o{id}, which was refused: {}", op.error));
                }
                Outcome::Refused | Outcome::NotApplied => {}
            }
        }
        if whole != found {
            verdicts.push(format!("the counter shows {found}, the calls in the set make {whole}"));
        }
        if !may_lose && !self.state.is_async && !is_subset_sum(&open, found - sum) {
            verdicts.push(format!(
                "the field shows {found}: {sum} was acknowledged and no choice of {} open calls explains the rest",
                open.len()
            ));
        }
        verdicts.extend(self.missed());
        for verdict in verdicts {
            self.blame("active", verdict);
        }
    }

    /// True if the call was answered before it was written, and some machine ended before it must have been.
    fn may_be_unwritten(&self, op: &OpRecord) -> bool {
        let is_near = |at_us: &u64| op.start_us <= *at_us && *at_us <= op.end_us + UNWRITTEN_US_MAX;
        self.state.is_async && self.history.ends_us.iter().any(is_near)
    }

    /// Answers of a counter that only grows which show less than what a quorum had kept before they were asked for, or
    /// more than was asked for.
    fn missed(&self) -> Vec<String> {
        let may_lose = self.state.is_interval || self.past.was_corrupted || self.state.has_lost_disk;
        let number = |op: &OpRecord| match &op.operation {
            Operation::Call { call, .. } => match call.arguments.first() {
                Some(active::Value::Integer(number)) => *number,
                _ => 0,
            },
            _ => 0,
        };
        let mut verdicts = Vec::new();
        for (id, op) in self.operations().filter(|(_, op)| op.outcome == Outcome::Acked) {
            let Some(shown) = op.shown.filter(|_| !may_lose && self.reads_enough(op)) else { continue };
            let (mut least, mut most) = (0, 0);
            for (_, other) in self.operations().filter(|(_, other)| other.start_us < op.end_us) {
                let is_before = other.outcome == Outcome::Acked && other.end_us < op.start_us;
                least += if is_before && other.is_kept { number(other) } else { 0 };
                let may_count = !matches!(other.outcome, Outcome::Refused | Outcome::NotApplied);
                most += if may_count { number(other) } else { 0 };
            }
            if !(least..=most).contains(&shown) {
                verdicts.push(format!("o{id} shows {shown}: {least} was kept before, {most} was asked for"));
            }
        }
        verdicts
    }

    /// True if so many answers were waited for that they meet whatever a majority or `w` keeps: a request's own number
    /// says nothing about owners that others became meanwhile.
    fn reads_enough(&self, op: &OpRecord) -> bool {
        let Operation::Call { quorum, .. } = &op.operation else { return true };
        quorum.r.is_none() || !self.history.bucket_changes.contains_key(self.key.bucket())
    }

    /// Promise 2 for what active objects keep in plain fields under `quorum`, whatever homes ran them: an answered call
    /// is never undone.
    fn calls(&mut self, object: Option<&Object>) {
        let has_one_copy = |op: &OpRecord| op.w.max(op.n / 2 + 1) == 1;
        let is_excused = self.state.has_lost_disk && self.operations().any(|(_, op)| has_one_copy(op));
        if self.state.is_interval || self.past.was_corrupted || is_excused {
            return;
        }
        let Tally { count: found, seen, half_done } = match object.map_or(Ok(Tally::default()), tally) {
            Ok(found) => found,
            Err(failure) => return self.blame("calls", format!("the object cannot be loaded: {failure}")),
        };
        if half_done != 0 {
            self.blame("calls", format!("{half_done} calls are half done in it"));
        }
        let (mut bumps, mut answers, mut open, mut verdicts) = (Vec::new(), Vec::new(), 0, Vec::new());
        let timed_out = ActiveError::TimedOut.to_string();
        let (mut writes, mut unnoted) = (0, 0);
        for (id, op) in self.operations() {
            let noted = seen.get(&mark(id));
            let (is_bump, is_write, keeps_itself) = match &op.operation {
                Operation::Call { call, .. } => (call.what != Ask::Get, false, is_call_of(call, b"save")),
                Operation::Update { mutation: Mutation::Activate { .. }, .. } => (false, true, false),
                _ => continue,
            };
            let is_undone = matches!(op.outcome, Outcome::Refused | Outcome::NotApplied)
                || op.error == timed_out && !keeps_itself;
            match (op.outcome, noted) {
                (Outcome::Acked, noted) if is_bump && noted != op.shown.as_ref() => {
                    verdicts
                        .push(format!("o{id} was answered {:?}, the object has noted {noted:?}", op.shown));
                }
                (_, Some(noted)) if is_undone => {
                    verdicts.push(format!("o{id} failed ({}), the object has noted {noted}", op.error));
                }
                _ => {}
            }
            match (op.outcome, op.shown) {
                (Outcome::Acked, _) if is_write => {
                    writes += usize::from(noted.is_some());
                    unnoted += usize::from(noted.is_none());
                }
                (Outcome::Acked, Some(shown)) => {
                    if self.reads_enough(op) {
                        answers.push((id, op, shown));
                    }
                    if is_bump {
                        bumps.push((id, op, shown));
                    }
                }
                (Outcome::Unknown | Outcome::Disconnected | Outcome::Pending, _) if is_bump || is_write => {
                    open += 1;
                }
                _ => {}
            }
        }
        // The one that made the object is not noted in it.
        if unnoted > 1 {
            verdicts.push(format!("{unnoted} acknowledged writes are not noted"));
        }
        for (at, (id, _, shown)) in bumps.iter().enumerate() {
            if let Some((other, ..)) = bumps[..at].iter().find(|(_, _, other)| other == shown) {
                verdicts.push(format!("o{other} and o{id} were both answered {shown}"));
            }
            if *shown > found {
                verdicts.push(format!("o{id} was answered {shown}, the object counts {found} at the end"));
            }
        }
        for (id, op, shown) in &answers {
            // A call may have asked for fewer copies than its bucket.
            let must_meet = |bump: &OpRecord| bump.end_us < op.start_us && bump.w + op.r > op.n;
            let before = bumps.iter().filter(|(_, bump, _)| must_meet(bump));
            if let Some((other, _, most)) = before.max_by_key(|(_, _, most)| *most) {
                if most > shown {
                    verdicts.push(format!("o{id} shows {shown}, after o{other} was answered {most}"));
                }
            }
        }
        if found != seen.len() as i64 {
            verdicts.push(format!("the object counts {found} and has noted {} calls", seen.len()));
        }
        if found > (bumps.len() + writes + open) as i64 {
            verdicts.push(format!(
                "the object counts {found}: {} calls and {writes} writes were answered, {open} are open",
                bumps.len()
            ));
        }
        for verdict in verdicts {
            self.blame("calls", verdict);
        }
    }

    /// No interval of a timer is run twice in the state that survives.
    fn timers(&mut self, object: Option<&Object>) {
        let has_one_copy = |op: &OpRecord| op.w.max(op.n / 2 + 1) == 1;
        let is_excused = self.state.has_lost_disk && self.operations().any(|(_, op)| has_one_copy(op));
        if self.state.is_interval || self.past.was_corrupted || is_excused {
            return;
        }
        let numbers = match object.map_or(Ok(Vec::new()), |object| intervals(self.past, object)) {
            Ok(numbers) => numbers,
            Err(failure) => return self.blame("timers", format!("the object cannot be loaded: {failure}")),
        };
        for pair in numbers.windows(2).filter(|pair| pair[0].1 >= pair[1].1) {
            let ((first_ms, before), (second_ms, after)) = (pair[0], pair[1]);
            self.blame(
                "timers",
                format!("runs at {first_ms} and {second_ms} ms are of the intervals {before} and {after}"),
            );
        }
    }

    /// Promise 7 for objects that come and go.
    fn changes(&mut self) {
        let mut verdicts = Vec::new();
        let states: Vec<&[u8]> = self
            .past
            .births
            .iter()
            .filter_map(|birth| match &birth.version.value {
                Value::Active(active) => Some(&active.state[..]),
                _ => None,
            })
            .collect();
        let holds =
            |text: &[u8]| states.iter().any(|state| state.windows(text.len()).any(|part| part == text));
        if holds(DIRTY) {
            verdicts.push("what the object changed when it was to be overwritten was stored".to_string());
        }
        for (id, op) in self.operations() {
            let is_refused = matches!(op.outcome, Outcome::Refused | Outcome::NotApplied);
            let is_call = matches!(op.operation, Operation::Call { .. });
            if is_refused && is_call && holds(mark(id).as_bytes()) {
                verdicts.push(format!("a version holds o{id}, which was refused: {}", op.error));
            }
        }
        for verdict in verdicts {
            self.blame("changes", verdict);
        }
    }

    /// Whoever rests has driven the function to a limit, or many have.
    fn rests(&mut self) {
        let mut verdicts = Vec::new();
        let function = |op: &OpRecord| match &op.operation {
            Operation::Call { call, .. } => Some(call.what.clone()),
            _ => None,
        };
        for (id, op) in self.operations().filter(|(_, op)| is_rest(op)) {
            // A function that never runs well is remembered for it, however long that takes.
            let earlier: Vec<&OpRecord> = self
                .operations()
                .map(|(_, other)| other)
                .filter(|other| function(other) == function(op))
                .filter(|other| may_have_burned(other) && other.start_us < op.end_us)
                .collect();
            let is_recent = |other: &&&OpRecord| {
                op.end_us < other.end_us.max(other.start_us) + REST_US_MAX + other.timeout_ms * 1000
            };
            let has_burned = earlier.iter().filter(is_recent).any(|other| other.client == op.client);
            if earlier.len() < BURNS_MAX && !has_burned {
                verdicts.push(format!(
                    "o{id} was refused ({}): its client has burned nothing, {} other calls may have",
                    op.error,
                    earlier.len()
                ));
            }
        }
        for verdict in verdicts {
            self.blame("rests", verdict);
        }
    }
}

/// True if the call was answered that its caller rests.
pub(crate) fn is_rest(op: &OpRecord) -> bool {
    op.error.contains("is not run again for")
}

fn is_call_of(call: &active::Call, function: &[u8]) -> bool {
    matches!(&call.what, Ask::Function(name) if name == function)
}

/// True if the call never ends by itself, and may have run.
fn may_have_burned(op: &OpRecord) -> bool {
    let Operation::Call { call, .. } = &op.operation else { return false };
    let Ask::Function(name) = &call.what else { return false };
    let is_endless = match call.arguments.first() {
        Some(active::Value::Integer(number)) => name == "fail" && number % 4 == 0,
        _ => name == "burn",
    };
    is_endless && !is_rest(op)
}

/// When an object's timer ran, in milliseconds since 1970 by its home's clock, and in which interval: the number of it
/// stands in the first version that notes the run.
pub(crate) fn intervals(past: &KeyHistory, object: &Object) -> Result<Vec<(i64, u64)>, Failure> {
    let machine = oort_script::Machine::new(|| 0).expect("there is memory");
    let mut first: BTreeMap<(usize, i64), u64> = BTreeMap::new();
    for birth in &past.births {
        let Value::Active(active) = &birth.version.value else { continue };
        let runs = runs(&machine, active)?;
        if let Some(last) = runs.last() {
            first.entry((runs.len(), *last)).or_insert(active.last_interval);
        }
    }
    let Some(active) = object.active(0) else { return Ok(Vec::new()) };
    let runs = runs(&machine, active)?;
    let known = |(at, ms): (usize, &i64)| Some((*ms, *first.get(&(at + 1, *ms))?));
    Ok(runs.iter().enumerate().filter_map(known).collect())
}

fn runs(machine: &oort_script::Machine, active: &Active) -> Result<Vec<i64>, Failure> {
    if active.state.is_empty() {
        return Ok(Vec::new());
    }
    Ok(match machine.state_fields(&active.state)?.get("runs") {
        Some(active::Value::Array(items)) => items.iter().map(number).collect(),
        _ => Vec::new(),
    })
}

/// What the functions of [`crate::workload::active::ACTIVE_SOURCE`] have counted in all versions of an object together.
fn hits(object: &Object) -> Result<(i64, BTreeSet<String>), Failure> {
    let versions: Vec<&Active> = object
        .0
        .values()
        .iter()
        .filter_map(|(_, version)| match &version.value {
            Value::Active(active) => Some(&**active),
            _ => None,
        })
        .collect();
    let Some((first, others)) = versions.split_first() else { return Ok((0, BTreeSet::new())) };
    let mut machine = oort_script::Machine::new(|| 0).expect("there is memory");
    let key = ObjectKey::new(b"b", b"k").expect("it is short");
    let limits = ActiveProperties::default().limits();
    machine.load(&key, &first.source, Some(&first.state), &limits, Facts::default())?;
    for other in others {
        machine.join(&key, &other.state)?;
    }
    let hits = number(&machine.field(&key, "hits"));
    let marks = match machine.field(&key, "log") {
        active::Value::Array(items) => items,
        _ => Vec::new(),
    };
    Ok((hits, marks.iter().map(text).collect()))
}

/// What the functions of [`crate::workload::active::TALLY_SOURCE`] have counted in the version that leads, and
/// by which mark.
fn tally(object: &Object) -> Result<Tally, Failure> {
    let Some(active) = object.active(0) else { return Ok(Tally::default()) };
    let mut machine = oort_script::Machine::new(|| 0).expect("there is memory");
    let key = ObjectKey::new(b"b", b"k").expect("it is short");
    let limits = ActiveProperties::default().limits();
    machine.load(&key, &active.source, Some(&active.state), &limits, Facts::default())?;
    let entries = match machine.field(&key, "seen") {
        active::Value::Map(entries) => entries,
        _ => Vec::new(),
    };
    let seen = entries.iter().map(|(mark, n)| (text(mark), number(n)));
    let (count, half_done) = (number(&machine.field(&key, "n")), number(&machine.field(&key, "open")));
    Ok(Tally { count, seen: seen.collect(), half_done })
}

/// What such an object holds.
#[derive(Default)]
struct Tally {
    count: i64,
    seen: BTreeMap<String, i64>,
    half_done: i64,
}

fn number(value: &active::Value) -> i64 {
    match value {
        active::Value::Integer(found) => *found,
        active::Value::Number(found) => *found as i64,
        _ => i64::MIN,
    }
}

fn text(value: &active::Value) -> String {
    match value {
        active::Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}
