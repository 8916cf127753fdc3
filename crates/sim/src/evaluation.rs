//! What each mutation should have made of what its maker saw: a model of its own, written from the documentation.
//!
//! A birth tells what was stored, the history what its maker's row held and which siblings others had shown it. Where
//! these leave no doubt on which versions a mutation was evaluated, the model says what must have come of it: value,
//! headers and expiry. Where they do, or an expiry was so near that clocks decide, nothing is demanded.

use std::collections::BTreeMap;

use bytes::Bytes;
use oort_core::bucket::BucketProperties;
use oort_core::causality::Dot;
use oort_core::client::Operation;
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::object::Value;

use crate::history::{Birth, History, KeyHistory, OpRecord, Outcome};

/// How far the time by which a node evaluates may be from the one noted with the birth, in milliseconds: a peer's
/// message may set it right within a turn.
const NOTED_OFF_MS_MAX: u64 = 1_000;

/// The properties that each bucket had at any time.
pub type Wishes = BTreeMap<Vec<u8>, Vec<BucketProperties>>;

/// A counter as the model has it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Tally {
    /// What it was made from: only counters made from the same are one.
    origin: Option<Dot>,
    base: i64,
    additions: BTreeMap<Dot, i64>,
}

impl Tally {
    fn sum(&self) -> i64 {
        self.additions.values().fold(self.base, |sum, delta| sum.saturating_add(*delta))
    }
}

/// A live value as the model has it.
#[derive(Clone, Debug)]
struct Seen {
    dot: Dot,
    bytes: Vec<u8>,
    tally: Option<Tally>,
    expires_ms: Option<u64>,
    headers: Vec<(Bytes, Bytes)>,
}

/// What a maker saw.
#[derive(Clone, Debug)]
struct View {
    newest: Option<Seen>,
    /// The newest version, dead or alive.
    last: Option<Dot>,
    dots: Vec<Dot>,
}

/// The model of one key.
struct Model<'a> {
    past: &'a KeyHistory,
    is_lww: bool,
    properties: &'a [BucketProperties],
    tallies: BTreeMap<Dot, Tally>,
}

/// What is wrong with the values born under a key. `properties`: those that its bucket had at any time.
pub fn judge(
    history: &History,
    past: &KeyHistory,
    is_lww: bool,
    properties: &[BucketProperties],
) -> Vec<String> {
    let mut model = Model { past, is_lww, properties, tallies: BTreeMap::new() };
    let mut verdicts = Vec::new();
    for birth in &past.births {
        if let Some(detail) = model.blame_birth(history, birth) {
            verdicts.push(format!("{} of n{}: {detail}", history.name(birth.dot), birth.machine));
        }
    }
    for id in &past.operations {
        if let Some(detail) = model.blame_refusal(&history.operations[*id as usize]) {
            verdicts.push(format!("o{id} {detail}"));
        }
    }
    verdicts
}

impl<'a> Model<'a> {
    fn blame_birth(&mut self, history: &History, birth: &Birth) -> Option<String> {
        let largest = self.properties.iter().map(|properties| properties.value_bytes_max).max();
        match &birth.version.value {
            Value::Bytes(bytes) if largest.is_some_and(|largest| bytes.len() as u64 > largest) => {
                return Some(format!("{} bytes were stored, the bucket's limit is {largest:?}", bytes.len()));
            }
            Value::Bytes(bytes) => {
                if let Some(mark) = repeated_mark(bytes) {
                    return Some(format!("{mark} is in the value twice"));
                }
            }
            _ => {}
        }
        let op = &history.operations[birth.operation? as usize];
        let Operation::Update { mutation, .. } = &op.operation else { return None };
        let told = op.before.as_ref().filter(|_| op.dots.len() == 1 && op.outcome == Outcome::Acked);
        // Another node may have run it again, and answered.
        let told = told.filter(|dots| dots.iter().all(|dot| birth.context.covers(*dot)));
        let view = match told {
            Some(dots) => self.view(dots, birth.wall_ms),
            None if mutation.seen().is_some() => None,
            None => self.dots_seen(birth).and_then(|dots| self.view(&dots, birth.wall_ms)),
        };
        let detail = self.check(op, mutation, birth, view.as_ref()).err()?;
        let dots = view.map(|view| history.names(&view.dots));
        Some(format!("{detail}; it was told what it saw: {}, which was {dots:?}", told.is_some()))
    }

    /// The siblings on which `birth` was evaluated, if there is no doubt.
    fn dots_seen(&self, birth: &Birth) -> Option<Vec<Dot>> {
        let born: Vec<&Birth> = self.past.births.iter().filter(|other| other.dot != birth.dot).collect();
        let is_seen = |other: &&Birth| birth.context.covers(other.dot);
        let born: Vec<&Birth> = born.into_iter().filter(is_seen).collect();
        let is_superseded = |dot: Dot| {
            born.iter().any(|by| by.dot != dot && by.context.covers(dot) && !by.after.contains(&dot))
        };
        let dots: Vec<Dot> = born.iter().map(|one| one.dot).filter(|dot| !is_superseded(*dot)).collect();
        let is_known = |dot: &Dot| birth.before.contains(dot) || birth.shown.contains(dot);
        // What its row held and is not there any more was superseded by something that nobody stored.
        let is_kept = |dot: &Dot| dots.contains(dot) || is_superseded(*dot);
        (dots.iter().all(is_known) && birth.before.iter().all(is_kept)).then_some(dots)
    }

    /// What these siblings show at a time. `None`: some may just expire, or the model does not know their value.
    fn view(&self, dots: &[Dot], wall_ms: u64) -> Option<View> {
        let mut births = dots.iter().map(|dot| self.past.birth(*dot)).collect::<Option<Vec<&Birth>>>()?;
        births.sort_by_key(|birth| birth.dot);
        let last = births.last().map(|birth| birth.dot);
        let newest_is_counter =
            births.last().is_some_and(|birth| matches!(birth.version.value, Value::Counter(_)));
        if self.is_lww && births.len() > 1 && !newest_is_counter {
            births.drain(..births.len() - 1);
        }
        let mut live = Vec::new();
        for birth in births {
            let expires_ms = birth.version.expires_ms;
            if expires_ms.is_some_and(|at_ms| at_ms.abs_diff(wall_ms) <= NOTED_OFF_MS_MAX) {
                return None;
            }
            let is_deleted = birth.version.value == Value::Tombstone;
            if !is_deleted && expires_ms.is_none_or(|at_ms| at_ms > wall_ms) {
                live.push(birth);
            }
        }
        let newest = match live.last() {
            Some(birth) => Some(self.seen(birth, &live)?),
            None => None,
        };
        Some(View { newest, last, dots: dots.to_vec() })
    }

    /// The value of `birth`, which is one of `live`.
    fn seen(&self, birth: &Birth, live: &[&Birth]) -> Option<Seen> {
        let (bytes, tally) = match &birth.version.value {
            Value::Bytes(bytes) => (bytes.to_vec(), None),
            Value::Counter(_) => {
                let mut tally = self.tallies.get(&birth.dot)?.clone();
                for other in live.iter().filter(|other| matches!(other.version.value, Value::Counter(_))) {
                    let other = self.tallies.get(&other.dot)?;
                    if other.origin == tally.origin {
                        tally.additions.extend(&other.additions);
                    }
                }
                (tally.sum().to_string().into_bytes(), Some(tally))
            }
            _ => return None,
        };
        let (dot, expires_ms) = (birth.dot, birth.version.expires_ms);
        Some(Seen { dot, bytes, tally, expires_ms, headers: birth.version.headers.clone() })
    }

    /// Errors: what the mutation should have done instead.
    fn check(
        &mut self,
        op: &OpRecord,
        mutation: &Mutation,
        birth: &Birth,
        view: Option<&View>,
    ) -> Result<(), String> {
        let newest = view.and_then(|view| view.newest.as_ref());
        let is_empty = view.is_some() && newest.is_none();
        let defaults = || self.default_expiries();
        match mutation {
            Mutation::Store { value, headers, expiry, condition, .. } => {
                self.check_condition(*condition, op, view)?;
                expect("value", &birth.version.value, &Value::Bytes(value.clone()))?;
                expect("headers", &birth.version.headers, headers)?;
                match (expiry, view) {
                    (Expiry::Default, _) => expect_default(birth, &defaults()),
                    (Expiry::Never, _) => expect("expiry", &birth.version.expires_ms, &None),
                    (Expiry::At(at_ms), _) => expect("expiry", &birth.version.expires_ms, &Some(*at_ms)),
                    (Expiry::Keep, Some(_)) => {
                        expect("expiry", &birth.version.expires_ms, &newest.and_then(|seen| seen.expires_ms))
                    }
                    (Expiry::Keep, None) => Ok(()),
                }
            }
            Mutation::Delete { basis, condition } => {
                self.check_condition(*condition, op, view)?;
                if is_empty && *basis == Basis::Local {
                    return Err("a delete was stored where nothing was there".into());
                }
                expect("value", &birth.version.value, &Value::Tombstone)?;
                expect("expiry", &birth.version.expires_ms, &None)
            }
            Mutation::Add { delta } => self.check_addition(*delta, birth, view),
            Mutation::SetExpiry { at_ms, .. } => {
                if is_empty {
                    return Err("an expiry was set where nothing was there".into());
                }
                expect("expiry", &birth.version.expires_ms, at_ms)?;
                let Some(seen) = newest else { return Ok(()) };
                expect("headers", &birth.version.headers, &seen.headers)?;
                if let Some(tally) = &seen.tally {
                    self.tallies.insert(birth.dot, tally.clone());
                }
                expect("bytes", &self.shown(birth), &Some(seen.bytes.clone()))
            }
            Mutation::Append { .. } | Mutation::SetRange { .. } | Mutation::AddFloat { .. } => {
                if view.is_none() {
                    return Ok(());
                }
                match newest {
                    Some(seen) => {
                        expect("expiry", &birth.version.expires_ms, &seen.expires_ms)?;
                        expect("headers", &birth.version.headers, &seen.headers)?;
                    }
                    None => {
                        expect_default(birth, &defaults())?;
                        expect("headers", &birth.version.headers, &Vec::new())?;
                    }
                }
                check_text(mutation, &birth.version.value, newest.map_or(&[], |seen| &seen.bytes))
            }
            Mutation::Activate { .. } => Ok(()),
        }
    }

    fn check_condition(
        &self,
        condition: Condition,
        op: &OpRecord,
        view: Option<&View>,
    ) -> Result<(), String> {
        let Some(view) = view else { return Ok(()) };
        let holds = match condition {
            Condition::IfAbsent => view.newest.is_none(),
            Condition::IfPresent => view.newest.is_some(),
            Condition::IfTag(_) if self.is_lww => view.newest.is_some(),
            Condition::IfTag(_) => view.newest.is_some() && has_all(&view.dots, &op.seen),
            Condition::UnlessTag(_) | Condition::Always => true,
        };
        match holds {
            true => Ok(()),
            false => Err(format!("was stored though {condition:?} did not hold on {:?}", view.dots)),
        }
    }

    fn check_addition(&mut self, delta: i64, birth: &Birth, view: Option<&View>) -> Result<(), String> {
        let Some(view) = view else { return Ok(()) };
        let mut tally = match &view.newest {
            Some(Seen { tally: Some(tally), .. }) => tally.clone(),
            Some(seen) => {
                let text = String::from_utf8_lossy(&seen.bytes);
                let base = text.parse().map_err(|_| format!("was added to {text}, which is no number"))?;
                Tally { origin: Some(seen.dot), base, additions: BTreeMap::new() }
            }
            None => Tally { origin: view.last, base: 0, additions: BTreeMap::new() },
        };
        tally.additions.insert(birth.dot, delta);
        let sum = tally.sum();
        self.tallies.insert(birth.dot, tally);
        match &view.newest {
            Some(seen) => {
                expect("expiry", &birth.version.expires_ms, &seen.expires_ms)?;
                expect("headers", &birth.version.headers, &seen.headers)?;
            }
            None => expect_default(birth, &self.default_expiries())?,
        }
        match &birth.version.value {
            Value::Counter(counter) => expect("number", &counter.value(), &sum),
            other => Err(format!("an addition stored {other:?}")),
        }
    }

    /// The bytes that `birth` alone shows, if the model knows them.
    fn shown(&self, birth: &Birth) -> Option<Vec<u8>> {
        match &birth.version.value {
            Value::Bytes(bytes) => Some(bytes.to_vec()),
            Value::Counter(counter) => Some(counter.value().to_string().into_bytes()),
            _ => None,
        }
    }

    fn default_expiries(&self) -> Vec<Option<u64>> {
        self.properties.iter().map(|properties| properties.default_ttl_ms).collect()
    }

    /// A client was told that its condition did not hold, or that its value is too large, and what was there.
    fn blame_refusal(&self, op: &OpRecord) -> Option<String> {
        let Operation::Update { mutation, .. } = &op.operation else { return None };
        let least = self.properties.iter().map(|properties| properties.value_bytes_max).min()?;
        if let (Mutation::Store { value, .. }, Outcome::Refused) = (mutation, op.outcome) {
            if op.error.contains("exceeds the bucket's limit") && value.len() as u64 <= least {
                return Some(format!("was refused though the limit is {least}: {}", op.error));
            }
        }
        let before = op.before.as_ref().filter(|_| op.outcome == Outcome::NotApplied)?;
        let births: Vec<&Birth> = before.iter().filter_map(|dot| self.past.birth(*dot)).collect();
        // Only what no clock decides.
        let is_there = births
            .iter()
            .any(|birth| birth.version.value != Value::Tombstone && birth.version.expires_ms.is_none());
        let is_gone = births.iter().all(|birth| birth.version.value == Value::Tombstone);
        let is_wrong = match mutation {
            Mutation::Store { condition: Condition::IfAbsent, .. } => is_gone,
            Mutation::Store { condition: Condition::IfPresent, .. } => is_there,
            Mutation::Delete { basis: Basis::Local, condition: Condition::Always } => is_there,
            Mutation::SetExpiry { at_ms: Some(_), .. } => is_there,
            Mutation::Store { condition: Condition::Always, .. } => true,
            Mutation::Append { .. } | Mutation::Add { .. } | Mutation::AddFloat { .. } => true,
            _ => false,
        };
        is_wrong.then(|| format!("was not applied to {before:?}"))
    }
}

/// What a mutation of the newest value's text makes of it.
fn check_text(mutation: &Mutation, value: &Value, old: &[u8]) -> Result<(), String> {
    let Value::Bytes(found) = value else { return Err(format!("{value:?} was stored")) };
    match mutation {
        Mutation::Append { suffix } => {
            let mut text = old.to_vec();
            text.extend_from_slice(suffix);
            expect("text", &found.escape_ascii().to_string(), &text.escape_ascii().to_string())
        }
        Mutation::SetRange { offset, patch } => {
            let offset = *offset as usize;
            let mut text = old.to_vec();
            while text.len() < offset {
                text.push(0);
            }
            let behind = text.split_off(offset);
            text.extend_from_slice(patch);
            text.extend(behind.into_iter().skip(patch.len()));
            expect("text", &found.escape_ascii().to_string(), &text.escape_ascii().to_string())
        }
        Mutation::AddFloat { delta } => {
            let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<f64>().ok();
            let old = if old.is_empty() { Some(0.0) } else { number(old) };
            expect("number", &number(found), &old.map(|old| old + delta.0))?;
            match found.contains(&b'e') {
                true => Err("a number was stored with an exponent".into()),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("the {what} is {found:?}, and should be {wanted:?}")),
    }
}

/// A value that was given no expiry has that of the bucket.
fn expect_default(birth: &Birth, defaults: &[Option<u64>]) -> Result<(), String> {
    let expires_ms = birth.version.expires_ms;
    let is_right = |default: &Option<u64>| match (expires_ms, default) {
        (None, None) => true,
        (Some(at_ms), Some(ttl_ms)) => at_ms.abs_diff(birth.wall_ms + ttl_ms) <= NOTED_OFF_MS_MAX,
        _ => false,
    };
    match defaults.is_empty() || defaults.iter().any(is_right) {
        true => Ok(()),
        false => {
            let wall_ms = birth.wall_ms;
            Err(format!("expires at {expires_ms:?}, stored at {wall_ms} with one of {defaults:?}"))
        }
    }
}

/// The mark of an operation that stands in `bytes` twice.
fn repeated_mark(bytes: &[u8]) -> Option<String> {
    let mut marks: Vec<&[u8]> = bytes
        .split_inclusive(|byte| *byte == b';')
        .filter_map(|part| Some(&part[part.iter().rposition(|byte| *byte == b'o')?..]))
        .filter(|mark| mark.len() > 2 && mark[1..mark.len() - 1].iter().all(u8::is_ascii_digit))
        .filter(|mark| mark.ends_with(b";"))
        .collect();
    marks.sort_unstable();
    let twice = marks.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(twice[0].escape_ascii().to_string())
}

/// True if all of `some` are among `dots`. What else was seen may have been superseded already.
fn has_all(dots: &[Dot], some: &[Dot]) -> bool {
    some.iter().all(|dot| dots.contains(dot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oort_core::mutation::FloatText;

    #[test]
    fn texts_are_changed_where_they_should() {
        let set = |offset, patch: &'static str| Mutation::SetRange { offset, patch: patch.into() };
        let append = |suffix: &'static str| Mutation::Append { suffix: suffix.into() };
        for (mutation, old, new, is_right) in [
            (append("c"), "ab", "abc", true),
            (append("c"), "ab", "c", false),
            (set(1, "x"), "abc", "axc", true),
            (set(1, "x"), "abc", "ax", false),
            (set(2, "x"), "", "\0\0x", true),
            (set(2, "xyz"), "abc", "abxyz", true),
            (Mutation::AddFloat { delta: FloatText(0.5) }, "", "0.5", true),
            (Mutation::AddFloat { delta: FloatText(0.5) }, "1", "0.5", false),
        ] {
            let value = Value::Bytes(Bytes::from(new));
            let verdict = check_text(&mutation, &value, old.as_bytes());
            assert_eq!(verdict.is_ok(), is_right, "{mutation:?} {old} {new}: {verdict:?}");
        }
    }

    #[test]
    fn what_was_appended_twice_is_noticed() {
        for (text, twice) in [
            ("o1;o2;", None),
            ("...o1;.o1;", Some("o1;")),
            ("o1;o11;1;", None),
            ("o1o2;o3;o2;", Some("o2;")),
            ("o1;o2;o1", None),
        ] {
            assert_eq!(repeated_mark(text.as_bytes()).as_deref(), twice, "{text}");
        }
    }
}
