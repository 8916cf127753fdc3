//! The checkers of histories, judged: by histories whose verdict is known, by histories made so that it is known, and
//! by another checker.

mod second_opinion;

use oort_core::types::Rng;
use oort_sim::linear::RegisterAnswer::{Done, Refused, Value};
use oort_sim::linear::RegisterOp::{Overwrite, Read, Replace, Swap, Write};
use oort_sim::linear::{
    order, order_each, Counter, Model, Operation, Refusal, Register, RegisterAnswer, RegisterOp,
};
use oort_sim::regular::{counts, siblings, Access, Answer, Count, Replaces};

type Registers = Vec<Operation<Register>>;

/// An operation that was answered.
fn done(
    client: usize,
    from_us: u64,
    to_us: u64,
    op: RegisterOp,
    answer: RegisterAnswer,
) -> Operation<Register> {
    Operation { client, op, start_us: from_us, end: Some((to_us, answer)) }
}

/// An operation that was never answered.
fn open(client: usize, from_us: u64, op: RegisterOp) -> Operation<Register> {
    Operation { client, op, start_us: from_us, end: None }
}

/// Whether there is an order. Fails if the two checkers differ.
fn is_linearizable<M: Model>(history: &[Operation<M>]) -> bool {
    let verdict = order(history);
    assert_ne!(verdict, Err(Refusal::Undecided));
    assert_eq!(verdict.is_ok(), second_opinion::is_linearizable(history), "{history:#?}");
    verdict.is_ok()
}

#[test]
fn known_histories_are_judged_as_is_known() {
    let cases: [(&str, bool, Registers); 14] = [
        ("nothing", true, vec![]),
        ("one after the other", true, vec![done(0, 0, 1, Write(1), Done), done(1, 2, 3, Read, Value(1))]),
        ("a stale read", false, vec![done(0, 0, 1, Write(1), Done), done(1, 2, 3, Read, Value(0))]),
        ("a value from nowhere", false, vec![done(0, 0, 9, Write(1), Done), done(1, 2, 3, Read, Value(2))]),
        (
            "read before it is acknowledged",
            true,
            vec![done(0, 0, 9, Write(1), Done), done(1, 2, 3, Read, Value(1)), done(1, 4, 5, Read, Value(1))],
        ),
        (
            "new, then old (Herlihy and Wing, 1990: H2)",
            false,
            vec![done(0, 0, 9, Write(1), Done), done(1, 2, 3, Read, Value(1)), done(2, 4, 5, Read, Value(0))],
        ),
        (
            "writes in the reverse of the order in which they were asked for",
            true,
            vec![
                done(0, 0, 90, Write(1), Done),
                done(1, 1, 91, Write(2), Done),
                done(2, 2, 92, Write(3), Done),
                done(3, 10, 11, Read, Value(3)),
                done(3, 20, 21, Read, Value(2)),
                done(3, 30, 31, Read, Value(1)),
            ],
        ),
        (
            "sequentially consistent, no more",
            false,
            vec![
                done(0, 0, 1, Write(1), Done),
                done(1, 0, 1, Write(2), Done),
                done(2, 2, 3, Read, Value(2)),
                done(3, 4, 5, Read, Value(1)),
            ],
        ),
        (
            "two readers that disagree about the order",
            false,
            vec![
                done(0, 0, 50, Write(1), Done),
                done(1, 0, 50, Write(2), Done),
                done(2, 60, 61, Read, Value(1)),
                done(3, 62, 63, Read, Value(2)),
            ],
        ),
        (
            "an open write is seen late",
            true,
            vec![open(0, 0, Write(1)), done(1, 10, 11, Read, Value(0)), done(1, 12, 13, Read, Value(1))],
        ),
        (
            "an open write is undone",
            false,
            vec![open(0, 0, Write(1)), done(1, 10, 11, Read, Value(1)), done(1, 12, 13, Read, Value(0))],
        ),
        (
            "one lock, two owners",
            false,
            vec![
                done(0, 0, 9, Replace { from: 0, to: 1 }, Done),
                done(1, 0, 9, Replace { from: 0, to: 2 }, Done),
            ],
        ),
        (
            "one lock, one owner, told in any order",
            true,
            vec![
                done(0, 0, 9, Replace { from: 0, to: 1 }, Refused),
                done(1, 5, 9, Replace { from: 0, to: 2 }, Done),
                done(2, 8, 9, Overwrite(3), Done),
            ],
        ),
        (
            "two swaps that found the same",
            false,
            vec![done(0, 0, 9, Swap(1), Value(0)), done(1, 0, 9, Swap(2), Value(0))],
        ),
    ];
    for (name, wanted, history) in cases {
        assert_eq!(is_linearizable(&history), wanted, "{name}");
    }
}

#[test]
fn what_touches_at_the_same_microsecond_is_concurrent() {
    assert!(is_linearizable(&[done(0, 0, 5, Write(1), Done), done(1, 5, 6, Read, Value(0))]));
}

#[test]
fn a_contradiction_names_the_answer_that_nothing_explains() {
    let history = [
        done(0, 0, 10, Write(7), Done),
        done(1, 20, 30, Read, Value(0)),
        done(0, 40, 50, Write(8), Done),
        done(1, 60, 70, Read, Value(8)),
    ];
    let Err(Refusal::Contradiction(text)) = order(&history) else { panic!("a stale read") };
    let first =
        "no order of the operations explains this answer:\n  client 1 from 20 to 30 us: Read -> Value(0)\n";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("  client 0 from 0 to 10 us: Write(7) -> Done => 7\n"), "{text}");
    assert!(!text.contains("Write(8)"), "{text}");
}

#[test]
fn an_order_lists_every_operation_once() {
    let history = [
        done(2, 1, 9, Read, Value(4)),
        done(0, 0, 5, Write(3), Done),
        open(3, 0, Write(9)),
        done(1, 0, 6, Write(4), Done),
    ];
    assert_eq!(order(&history), Ok(vec![1, 2, 3, 0]));
}

#[test]
fn gets_that_see_a_write_and_then_do_not_are_regular() {
    let write = done(0, 0, 100, Write(1), Done);
    let new_then_old = vec![write.clone(), done(1, 10, 20, Read, Value(1)), done(1, 30, 40, Read, Value(0))];
    assert!(!is_linearizable(&new_then_old));
    assert_eq!(order_each(&new_then_old, |op| *op == Read), Ok(()));
    let stale = vec![write, done(1, 110, 120, Read, Value(0))];
    assert!(order_each(&stale, |op| *op == Read).is_err());
    let two_owners = vec![
        done(0, 0, 9, Replace { from: 0, to: 1 }, Done),
        done(1, 0, 9, Replace { from: 0, to: 2 }, Done),
    ];
    assert!(order_each(&two_owners, |op| *op == Read).is_err(), "writes must have an order by themselves");
}

/// A history that has an order: operations take effect 10 us apart, and are asked for and answered some time before
/// and after that. Some answers are lost, of operations that took effect or not.
fn made_linearizable<M: Model>(
    rng: &mut Rng,
    ops: Vec<M::Op>,
    run: impl Fn(&M::State, &M::Op) -> M::Answer,
) -> Vec<Operation<M>> {
    let mut state = M::initial();
    let spread = 1 + rng.below(60);
    let mut history = Vec::new();
    for (client, op) in ops.into_iter().enumerate() {
        let at_us = 1000 + client as u64 * 10;
        let (start_us, end_us) = (at_us - rng.below(spread), at_us + rng.below(spread));
        let answer = run(&state, &op);
        let was_lost = rng.below(12) == 0;
        if !was_lost || rng.below(2) == 0 {
            state = M::step(&state, &op, Some(&answer)).expect("it answers what is right");
        }
        history.push(Operation { client, op, start_us, end: (!was_lost).then_some((end_us, answer)) });
    }
    history
}

fn run_register(held: &u64, op: &RegisterOp) -> RegisterAnswer {
    match op {
        Read | Swap(_) => Value(*held),
        Write(_) => Done,
        Replace { from, .. } if from == held => Done,
        Overwrite(_) if *held != 0 => Done,
        Replace { .. } | Overwrite(_) => Refused,
    }
}

/// Operations on one register. No value is written twice.
fn register_ops(rng: &mut Rng, count: u64) -> Vec<RegisterOp> {
    let op = |value: u64, rng: &mut Rng| match rng.below(8) {
        0..3 => Read,
        3 => Write(value),
        4 => Swap(value),
        5 => Overwrite(value),
        _ => Replace { from: value.saturating_sub(1 + rng.below(4)), to: value },
    };
    (1..=count).map(|value| op(value, rng)).collect()
}

#[test]
fn random_histories_with_an_order_are_accepted() {
    for seed in 0..200 {
        let rng = &mut Rng::new(seed);
        let count = 2 + rng.below(60);
        let ops = register_ops(rng, count);
        let history = made_linearizable::<Register>(rng, ops, run_register);
        assert!(is_linearizable(&history), "seed {seed}: {history:#?}");
        let adds = (0..count).map(|_| rng.below(3) as i64).collect();
        let history = made_linearizable::<Counter>(rng, adds, |sum, add| sum + add);
        assert!(is_linearizable(&history), "seed {seed}: {history:#?}");
    }
}

/// The last of the answered operations that store a value for certain and are over when another such starts.
fn overwritten(history: &Registers) -> Option<(u64, u64)> {
    let stores = |one: &&Operation<Register>| matches!(one.op, Write(_) | Swap(_)) && one.end.is_some();
    let over_us = |one: &Operation<Register>| one.end.as_ref().map_or(0, |(end_us, _)| *end_us);
    let second = history.iter().filter(stores).max_by_key(|one| one.start_us)?;
    let first = history.iter().filter(stores).find(|one| over_us(one) < second.start_us)?;
    match first.op {
        Write(value) | Swap(value) => Some((value, over_us(second) + 1)),
        _ => None,
    }
}

#[test]
fn random_histories_with_a_read_of_an_overwritten_value_are_refused() {
    let mut refused = 0;
    for seed in 0..200 {
        let rng = &mut Rng::new(seed);
        let ops = register_ops(rng, 50);
        let mut history = made_linearizable::<Register>(rng, ops, run_register);
        let Some((value, after_us)) = overwritten(&history) else { continue };
        history.push(done(99, after_us, after_us + 1, Read, Value(value)));
        assert!(!is_linearizable(&history), "seed {seed}: {history:#?}");
        assert!(order_each(&history, |op| *op == Read).is_err(), "seed {seed}");
        refused += 1;
    }
    assert!(refused > 100, "only {refused} histories were tried");
}

#[test]
fn on_histories_with_one_answer_changed_both_checkers_agree() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..800 {
        let rng = &mut Rng::new(seed);
        let count = 3 + rng.below(20);
        let ops = register_ops(rng, count);
        let mut history = made_linearizable::<Register>(rng, ops, run_register);
        let at = rng.below(count) as usize;
        if let Some((_, answer)) = &mut history[at].end {
            *answer = match *answer {
                Value(_) => Value(rng.below(count)),
                Done => Refused,
                Refused => Done,
            };
        }
        match is_linearizable(&history) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}

#[test]
fn sums_are_judged_each_by_itself_as_an_order_for_each_would() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..600 {
        let rng = &mut Rng::new(seed);
        let adds = (0..4 + rng.below(5)).map(|_| rng.below(2) as i64).collect();
        let mut history = made_linearizable::<Counter>(rng, adds, |sum, add| sum + add);
        let at = rng.below(history.len() as u64) as usize;
        if let Some((_, sum)) = &mut history[at].end {
            *sum = (*sum + rng.below(4) as i64 - 2).max(0);
        }
        // Every answer but one is taken away, but not the moment at which it came.
        let explains = |at: usize| {
            let silent = |(one, other): (usize, &Operation<Counter>)| Operation::<Unanswered> {
                client: other.client,
                op: other.op,
                start_us: other.start_us,
                end: other.end.map(|(end_us, sum)| (end_us, (one == at).then_some(sum))),
            };
            order(&history.iter().enumerate().map(silent).collect::<Vec<_>>()).is_ok()
        };
        let wanted = (0..history.len()).all(explains);
        let record = history.iter().map(|one| Count {
            client: one.client,
            adds: one.op as u64,
            start_us: one.start_us,
            end: one.end.map(|(end_us, sum)| (end_us, sum as u64)),
        });
        let verdict = counts(&record.collect::<Vec<_>>());
        assert_eq!(verdict.is_ok(), wanted, "seed {seed}: {history:#?}");
        match wanted {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    assert!(accepted > 50 && refused > 50, "{accepted} accepted, {refused} refused");
}

/// A counter of which some answers are known to have come, but not what they said.
struct Unanswered;

impl Model for Unanswered {
    type State = i64;
    type Op = i64;
    type Answer = Option<i64>;

    fn initial() -> i64 {
        0
    }

    fn step(state: &i64, op: &i64, answer: Option<&Option<i64>>) -> Option<i64> {
        Counter::step(state, op, answer.and_then(|answer| answer.as_ref()))
    }
}

fn access(
    client: usize,
    from_us: u64,
    to_us: u64,
    access: Access,
    answer: Answer,
) -> oort_sim::regular::Operation {
    oort_sim::regular::Operation { client, access, start_us: from_us, end: Some((to_us, answer)) }
}

/// A put that replaces what it names, acknowledged.
fn put(from_us: u64, to_us: u64, write: u64, seen: &[u64]) -> oort_sim::regular::Operation {
    let replaces = Replaces::Exactly(seen.to_vec());
    access(0, from_us, to_us, Access::Put { write, replaces }, Answer::Acknowledged)
}

/// A plain store, acknowledged.
fn set(from_us: u64, to_us: u64, write: u64) -> oort_sim::regular::Operation {
    access(0, from_us, to_us, Access::Put { write, replaces: Replaces::Found }, Answer::Acknowledged)
}

fn get(from_us: u64, to_us: u64, shown: &[u64]) -> oort_sim::regular::Operation {
    access(1, from_us, to_us, Access::Get, Answer::Siblings(shown.to_vec()))
}

fn delete(from_us: u64, to_us: u64, write: u64, seen: &[u64]) -> oort_sim::regular::Operation {
    let replaces = Replaces::Exactly(seen.to_vec());
    access(0, from_us, to_us, Access::Delete { write, replaces }, Answer::Acknowledged)
}

fn unanswered(operation: oort_sim::regular::Operation) -> oort_sim::regular::Operation {
    oort_sim::regular::Operation { end: None, ..operation }
}

fn refused(operation: oort_sim::regular::Operation) -> oort_sim::regular::Operation {
    let end = operation.end.map(|(end_us, _)| (end_us, Answer::Refused));
    oort_sim::regular::Operation { end, ..operation }
}

#[test]
fn sets_of_siblings_are_judged_by_what_superseded_what() {
    let neither = "shows neither 1, acknowledged before it, nor what superseded it";
    let cases = [
        (vec![put(0, 1, 1, &[]), get(2, 3, &[1])], ""),
        (vec![put(0, 1, 1, &[]), get(2, 3, &[])], neither),
        (vec![put(0, 5, 1, &[]), get(2, 3, &[])], ""),
        (vec![put(0, 5, 1, &[]), get(2, 3, &[1]), get(4, 4, &[])], ""),
        (vec![put(0, 1, 1, &[]), put(0, 1, 2, &[]), get(2, 3, &[2, 1])], ""),
        (vec![put(0, 1, 1, &[]), put(0, 1, 2, &[]), get(2, 3, &[2])], neither),
        (vec![put(0, 1, 1, &[]), put(2, 9, 2, &[1]), get(3, 4, &[2])], ""),
        (vec![put(0, 1, 1, &[]), put(2, 9, 2, &[1]), get(3, 4, &[2, 1])], "shows 1, which 2 had superseded"),
        (vec![put(0, 1, 1, &[]), put(2, 3, 2, &[1]), get(4, 5, &[1])], "shows 1, which 2 had superseded"),
        (vec![put(0, 1, 1, &[]), put(2, 3, 2, &[1]), put(4, 5, 3, &[2]), get(6, 7, &[3])], ""),
        (vec![put(0, 1, 1, &[]), unanswered(put(2, 0, 2, &[1])), get(3, 4, &[])], neither),
        (vec![put(0, 1, 1, &[]), unanswered(put(2, 0, 2, &[1])), get(3, 4, &[2])], ""),
        (vec![put(0, 1, 1, &[]), refused(put(2, 3, 2, &[1])), get(4, 5, &[1])], ""),
        (
            vec![put(0, 1, 1, &[]), refused(put(2, 3, 2, &[1])), get(4, 5, &[2])],
            "shows 2, of which the client",
        ),
        (vec![put(0, 1, 1, &[]), delete(2, 3, 2, &[1]), get(4, 5, &[])], ""),
        (vec![put(0, 1, 1, &[]), delete(2, 3, 2, &[1]), get(4, 5, &[1])], "shows 1, which 2 had superseded"),
        (vec![put(0, 1, 1, &[]), delete(4, 5, 2, &[1]), get(2, 3, &[])], neither),
        (vec![put(0, 1, 1, &[]), unanswered(delete(2, 0, 2, &[1])), get(4, 5, &[])], ""),
        (vec![set(0, 1, 1), set(2, 3, 2), get(4, 5, &[2])], ""),
        (vec![set(0, 1, 1), set(2, 3, 2), get(4, 5, &[2, 1])], ""),
        (vec![set(2, 3, 1), set(0, 1, 2), get(4, 5, &[2])], neither),
        (vec![set(0, 2, 1), set(1, 3, 2), get(4, 5, &[1])], ""),
        (vec![set(0, 2, 1), set(1, 3, 2), get(4, 5, &[])], neither),
        (vec![get(0, 1, &[1]), put(2, 3, 1, &[])], "shows 1 before it was written"),
        (vec![get(0, 1, &[1])], "shows 1, which nobody wrote"),
    ];
    for (history, wanted) in cases {
        match siblings(&history) {
            Ok(()) => assert_eq!(wanted, "", "{history:#?}"),
            Err(text) => assert!(!wanted.is_empty() && text.contains(wanted), "{text}"),
        }
    }
}
