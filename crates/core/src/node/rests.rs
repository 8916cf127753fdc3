//! Rests of callers that drove an object to its limits.
//!
//! A run that reaches a limit on work has taken more of the machine than most, for nothing. Its caller pays: the node
//! answers `BUSY` for a while instead of running that function for the caller again, so that all failing runs of one
//! caller together take a small part of the machine's time. The object itself goes on, for everybody else.
//!
//! A caller is a connection, and rests from the function that failed. Some callers make a connection for each request:
//! so a question that failed on two connections, with the same arguments and without a good run between, rests for its
//! address. And a function that failed many times without a good run between, by whatever caller, rests for all.
//! Neither holds for callers for whom the function ran well since the trouble began.
//!
//! Source: DESIGN §5, "rests and budgets go by caller and by processor time".

use std::collections::{BTreeMap, VecDeque};

use xxhash_rust::xxh3::Xxh3;

use crate::active::{Caller, Value};
use crate::types::ObjectKey;

/// A rest is this long at least, in microseconds, and [`REST_FACTOR`] times as long each time without a good run
/// between. Too short: calls that never end take the node's time; too long: one mistake shuts an honest caller out.
const REST_US: u64 = 100_000;
const REST_US_MAX: u64 = 60_000_000;
const REST_FACTOR: u64 = 4;
/// A rest is this many times as long as the processor time that a call may take: so it costs a tenth of a core at most.
const REST_RUNS: u64 = 10;
/// A function that failed so often without a good run between rests for all, for so long at most, in microseconds.
const FAILURES_MAX: u32 = 8;
const FUNCTION_REST_US_MAX: u64 = 5_000_000;
/// The most rests, and the most callers in good standing, that are known of one object. Beyond, the rest that ends
/// first is let go, or the caller that came first.
const RESTS_MAX: usize = 1_000;
const STANDING_MAX: usize = 128;
/// The most objects with callers that rest. Beyond, the one whose key comes first is let go.
const OBJECTS_MAX: usize = 10_000;

/// A caller and its question to an object. Made only where a caller rests, or will.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    /// The connection, and the function.
    caller: u64,
    /// The address, the function and the arguments.
    question: u64,
    function: u64,
}

impl Asker {
    /// `caller`: `None` for the store itself, as for timers.
    pub fn new(caller: Option<&Caller>, function: &str, arguments: &[Value]) -> Asker {
        let of = |feed: &dyn Fn(&mut Xxh3)| {
            let mut hash = Xxh3::new();
            hash.update(function.as_bytes());
            feed(&mut hash);
            hash.digest()
        };
        let ip = caller.and_then(|caller| caller.ip.as_deref()).unwrap_or_default();
        let function_hash = of(&|hash| hash.update(&[2]));
        let caller = caller.map_or(function_hash, |caller| connection_of(caller, function_hash));
        let question = of(&|hash| {
            hash.update(&[1]);
            hash.update(ip.as_bytes());
            arguments.iter().for_each(|value| feed(hash, value));
        });
        Asker { caller, question, function: function_hash }
    }
}

/// A number for the connection of a caller.
pub(super) fn connection_of(caller: &Caller, seed: u64) -> u64 {
    let mut hash = Xxh3::with_seed(seed);
    hash.update(caller.ip.as_deref().unwrap_or_default().as_bytes());
    hash.update(&caller.port.unwrap_or(0).to_le_bytes());
    hash.update(caller.user.as_deref().unwrap_or_default());
    hash.update(&caller.node.map_or(0, |node| node.0).to_le_bytes());
    hash.digest()
}

fn feed(hash: &mut Xxh3, value: &Value) {
    match value {
        Value::Nil => hash.update(&[0]),
        Value::Bool(truth) => hash.update(&[1, u8::from(*truth)]),
        Value::Integer(n) => hash.update(&n.to_le_bytes()),
        Value::Number(n) => hash.update(&n.to_bits().to_le_bytes()),
        Value::Bytes(bytes) => {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        Value::Array(items) => items.iter().for_each(|item| feed(hash, item)),
        Value::Map(entries) => entries.iter().for_each(|(key, value)| {
            feed(hash, key);
            feed(hash, value);
        }),
    }
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until_us: u64,
    length_us: u64,
}

/// What is known of one object.
#[derive(Debug, Default)]
struct Trouble {
    /// By connection and function.
    rests: BTreeMap<u64, Rest>,
    /// By question.
    questions: BTreeMap<u64, QuestionTrouble>,
    /// By function.
    functions: BTreeMap<u64, FunctionTrouble>,
    /// Callers for whom the function that they called ran well since the trouble began.
    standing: VecDeque<u64>,
    /// When the last rest ends.
    until_us: u64,
}

#[derive(Debug)]
struct QuestionTrouble {
    /// The caller that asked it last.
    caller: u64,
    rest: Option<Rest>,
}

#[derive(Debug, Default)]
struct FunctionTrouble {
    /// Without a good run between.
    failures: u32,
    rest: Option<Rest>,
}

/// All rests, by object.
#[derive(Debug, Default)]
pub(super) struct Rests(BTreeMap<ObjectKey, Trouble>);

impl Rests {
    /// True if a caller rests from this object.
    pub fn knows(&self, key: &ObjectKey) -> bool {
        !self.0.is_empty() && self.0.contains_key(key)
    }

    /// A run has reached a limit. `run_us`: the processor time that it may have taken.
    pub fn failed(&mut self, key: &ObjectKey, asker: Asker, run_us: u64, now_us: u64) {
        let trouble = self.0.entry(key.clone()).or_default();
        let first_us = REST_US.max(run_us.saturating_mul(REST_RUNS));
        let rest = longer(trouble.rests.get(&asker.caller), first_us, REST_US_MAX, now_us);
        trouble.rests.insert(asker.caller, rest);
        trouble.until_us = trouble.until_us.max(rest.until_us);
        while trouble.rests.len() > RESTS_MAX {
            let first = trouble.rests.iter().min_by_key(|(_, rest)| rest.until_us).map(|(who, _)| *who);
            first.and_then(|who| trouble.rests.remove(&who));
        }
        let question = QuestionTrouble { caller: asker.caller, rest: None };
        let question = trouble.questions.entry(asker.question).or_insert(question);
        if question.caller != asker.caller {
            question.caller = asker.caller;
            question.rest = Some(longer(question.rest.as_ref(), first_us, REST_US_MAX, now_us));
        }
        while trouble.questions.len() > RESTS_MAX {
            trouble.questions.pop_first();
        }
        trouble.standing.retain(|one| *one != asker.caller);
        let function = trouble.functions.entry(asker.function).or_default();
        function.failures += 1;
        if function.failures >= FAILURES_MAX {
            function.rest = Some(longer(function.rest.as_ref(), first_us, FUNCTION_REST_US_MAX, now_us));
        }
        while trouble.functions.len() > RESTS_MAX {
            trouble.functions.pop_first();
        }
        while self.0.len() > OBJECTS_MAX {
            self.0.pop_first();
        }
    }

    /// A run has ended well.
    pub fn went_well(&mut self, key: &ObjectKey, asker: Asker) {
        let Some(trouble) = self.0.get_mut(key) else { return };
        trouble.rests.remove(&asker.caller);
        trouble.questions.remove(&asker.question);
        trouble.functions.remove(&asker.function);
        if !trouble.standing.contains(&asker.caller) {
            trouble.standing.push_back(asker.caller);
        }
        if trouble.standing.len() > STANDING_MAX {
            trouble.standing.pop_front();
        }
    }

    /// The object has new code.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    /// How long this caller still rests, in milliseconds; `None`: it does not.
    pub fn left_ms(&self, key: &ObjectKey, asker: Asker, now_us: u64) -> Option<u32> {
        let trouble = self.0.get(key)?;
        let own = trouble.rests.get(&asker.caller);
        let question = trouble.questions.get(&asker.question).and_then(|question| question.rest.as_ref());
        let function = trouble.functions.get(&asker.function).and_then(|function| function.rest.as_ref());
        let is_on = |rest: &&Rest| now_us < rest.until_us && !trouble.standing.contains(&asker.caller);
        let others = question.into_iter().chain(function).filter(is_on);
        let until_us = own.into_iter().chain(others).map(|rest| rest.until_us).max()?;
        (now_us < until_us).then(|| (until_us - now_us).div_ceil(1000) as u32)
    }

    /// Forgets callers that have not rested for long: they begin anew.
    pub fn sweep(&mut self, now_us: u64) {
        self.0.retain(|_, trouble| {
            trouble.rests.retain(|_, rest| now_us < rest.until_us + REST_US_MAX);
            // The others end with the last of these.
            now_us < trouble.until_us + REST_US_MAX
        });
    }
}

fn longer(before: Option<&Rest>, first_us: u64, length_us_max: u64, now_us: u64) -> Rest {
    let length_us = before.map_or(first_us, |rest| rest.length_us * REST_FACTOR).min(length_us_max);
    Rest { until_us: now_us + length_us, length_us }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_US: u64 = 10_000;

    fn caller(port: u16) -> Caller {
        Caller { ip: Some("10.0.0.1".into()), port: Some(port), ..Caller::default() }
    }

    fn asker(port: u16, function: &str, argument: i64) -> Asker {
        Asker::new(Some(&caller(port)), function, &[argument.into()])
    }

    #[test]
    fn a_caller_that_fails_rests_and_others_do_not() {
        let key = ObjectKey::new(b"b", b"k").unwrap();
        let mut rests = Rests::default();
        let bad = asker(1, "sum", 1_000_000);
        rests.failed(&key, bad, RUN_US, 0);
        assert_eq!(rests.left_ms(&key, bad, 0), Some(100));
        assert_eq!(rests.left_ms(&key, asker(1, "sum", 2), 0), Some(100), "its connection");
        assert_eq!(rests.left_ms(&key, asker(1, "inc", 1_000_000), 0), None, "another function");
        assert_eq!(rests.left_ms(&key, asker(2, "sum", 2), 0), None, "another caller");
        rests.failed(&key, bad, RUN_US, 100_000);
        assert_eq!(rests.left_ms(&key, bad, 100_000), Some(400), "longer each time");
        let again = asker(2, "sum", 1_000_000);
        assert_eq!(rests.left_ms(&key, again, 100_000), None, "the same question by another");
        rests.failed(&key, again, RUN_US, 100_000);
        assert_eq!(
            rests.left_ms(&key, asker(3, "sum", 1_000_000), 100_000),
            Some(100),
            "through other connections"
        );
        rests.went_well(&key, bad);
        assert_eq!(rests.left_ms(&key, bad, 100_000), None);
        rests.failed(&key, bad, 100_000, 200_000);
        assert_eq!(rests.left_ms(&key, bad, 200_000), Some(1_000), "longer where runs may be longer");
        rests.sweep(200_000_000);
        assert!(!rests.knows(&key));
    }

    #[test]
    fn a_function_that_never_runs_well_rests_but_for_callers_in_good_standing() {
        let key = ObjectKey::new(b"b", b"k").unwrap();
        let mut rests = Rests::default();
        let good = asker(7, "sum", 7);
        rests.failed(&key, asker(0, "sum", 0), RUN_US, 0);
        rests.went_well(&key, good);
        for n in 0..8 {
            assert_eq!(rests.left_ms(&key, asker(200, "sum", 200), 0), None, "{n} failures");
            rests.failed(&key, asker(100 + n, "sum", 100 + i64::from(n)), RUN_US, 0);
        }
        assert_eq!(rests.left_ms(&key, asker(200, "sum", 200), 0), Some(100));
        assert_eq!(rests.left_ms(&key, good, 0), None);
        rests.went_well(&key, good);
        assert_eq!(rests.left_ms(&key, asker(200, "sum", 200), 0), None, "a good run ends it");
    }

    #[test]
    fn what_is_known_is_bounded() {
        let key = ObjectKey::new(b"b", b"k").unwrap();
        let mut rests = Rests::default();
        for n in 0..3_000 {
            rests.failed(&key, asker(n, "sum", i64::from(n)), RUN_US, u64::from(n));
        }
        assert_eq!(rests.0[&key].rests.len(), RESTS_MAX);
        assert!(rests.left_ms(&key, asker(2_999, "sum", 0), 3_000).is_some(), "the last are known");
    }
}
