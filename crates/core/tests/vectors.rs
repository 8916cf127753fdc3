//! The reference implementations' traces, replayed: values, contexts and entries must match after every step.
//!
//! Read from `$OORT_VECTORS`, or from the copies in `tests/vectors`, whose README says how they were made. The
//! observed-remove sets there (`orswot_traces.jsonl`) are for the issue that brings sets: there are none to test yet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oort_core::causality::{Dot, DvvSet, VersionVector};
use oort_core::types::ActorId;
use serde_json::Value;

fn lines(file: &str) -> Vec<Value> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let path = std::env::var_os("OORT_VECTORS").map_or(own, PathBuf::from).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert!(!lines.is_empty(), "{} is empty", path.display());
    lines
}

fn actor(name: &str) -> ActorId {
    ActorId(u64::from_be_bytes(std::array::from_fn(|i| *name.as_bytes().get(i).unwrap_or(&0))))
}

fn name(actor: ActorId) -> String {
    String::from_utf8(actor.0.to_be_bytes().into_iter().filter(|b| *b != 0).collect()).expect("a short name")
}

/// The reference counts 1, 2, 3...; our counters leap like a hybrid clock's. This is the order of each actor's.
#[derive(Default)]
struct Leaps(BTreeMap<ActorId, Vec<u64>>);

impl Leaps {
    fn next(&mut self, actor: ActorId, step: usize) -> Dot {
        let counter = 1_000 * (step as u64 + 1) + (step as u64 * 37) % 1_000;
        self.0.entry(actor).or_default().push(counter);
        Dot { counter, actor }
    }

    fn rank(&self, dot: Dot) -> u64 {
        let known = &self.0[&dot.actor];
        known.iter().position(|counter| *counter == dot.counter).expect("a counter that was made") as u64 + 1
    }

    fn context(&self, reference: &Value) -> VersionVector {
        let entries = reference.as_object().expect("a context is an object").iter();
        let dot = |(name, rank): (&String, &Value)| {
            let actor = actor(name);
            Dot { counter: self.0[&actor][rank.as_u64().expect("a counter") as usize - 1], actor }
        };
        entries.map(dot).collect()
    }

    fn join(&self, set: &DvvSet<String>) -> BTreeMap<String, u64> {
        set.context().dots().map(|dot| (name(dot.actor), self.rank(dot))).collect()
    }

    /// As the reference's `entries`: per actor its counter and its values, newest first.
    fn entries(&self, set: &DvvSet<String>) -> Vec<(String, u64, Vec<String>)> {
        let of = |actor| set.values().iter().rev().filter(move |(dot, _)| dot.actor == actor);
        let entry = |dot: Dot| {
            let values: Vec<String> = of(dot.actor).map(|(_, value)| value.clone()).collect();
            // The reference counts back from the newest; so must the ranks of ours.
            for (back, (held, _)) in of(dot.actor).enumerate() {
                assert_eq!(self.rank(*held), self.rank(dot) - back as u64, "{held:?}");
            }
            (name(dot.actor), self.rank(dot), values)
        };
        set.context().dots().map(entry).collect()
    }
}

#[test]
fn dvvset_traces_match_value_for_value() {
    let mut steps_seen = 0;
    for trace in lines("dvvset_traces.jsonl") {
        let mut leaps = Leaps::default();
        let mut replicas: BTreeMap<String, DvvSet<String>> = BTreeMap::new();
        for (i, step) in trace["steps"].as_array().expect("steps").iter().enumerate() {
            let at = format!("trace {} step {i}: {step}", trace["trace"]);
            let field = |name: &str| step[name].as_str().expect("a text").to_owned();
            let replica = field("replica");
            match step["op"].as_str().expect("an operation") {
                "put" => {
                    let seen = leaps.context(&step["ctx"]);
                    let dot = leaps.next(actor(&replica), i);
                    replicas.entry(replica.clone()).or_default().put(&seen, dot, field("value"));
                }
                "sync" => {
                    let from = replicas.get(&field("from")).cloned().unwrap_or_default();
                    replicas.entry(replica.clone()).or_default().merge(&from);
                }
                "get" => {}
                other => panic!("unknown operation {other}"),
            }
            let set = replicas.entry(replica).or_default();
            let mut values: Vec<&str> = set.values().iter().map(|(_, value)| value.as_str()).collect();
            values.sort_unstable();
            assert_eq!(serde_json::json!(values), step["values"], "{at}");
            assert_eq!(serde_json::json!(leaps.join(set)), step["join"], "{at}");
            assert_eq!(serde_json::json!(leaps.entries(set)), step["entries"], "{at}");
            steps_seen += 1;
        }
    }
    assert!(steps_seen > 100, "only {steps_seen} steps");
}

#[test]
fn version_vectors_compare_and_merge_as_the_reference_does() {
    let vector = |value: &Value| -> VersionVector {
        let entries = value.as_object().expect("an object").iter();
        entries.map(|(n, c)| Dot { counter: c.as_u64().expect("a counter"), actor: actor(n) }).collect()
    };
    for pair in lines("vclock_pairs.jsonl") {
        let (a, b) = (vector(&pair["a"]), vector(&pair["b"]));
        assert_eq!(a.descends(&b), pair["a_descends_b"], "{pair}");
        assert_eq!(b.descends(&a), pair["b_descends_a"], "{pair}");
        assert_eq!(a.dominates(&b), pair["a_dominates_b"], "{pair}");
        let merged = vector(&pair["merge"]);
        for (mut left, right) in [(a.clone(), &b), (b.clone(), &a)] {
            left.merge(right);
            assert_eq!(left, merged, "{pair}");
        }
    }
}
