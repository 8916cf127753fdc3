//! Judging a history of concurrent operations: is there one order that explains all answers?
//!
//! A history is *linearizable* if each operation can be given a moment between its start and its end at which it took
//! effect all at once, so that the answers are those of a single machine that runs the operations in the order of
//! these moments. An operation whose outcome is unknown stays open to the end: it may take effect at any time after its
//! start, or never. [`order`] searches for such an order.
//!
//! Not every answer of a quorum store promises so much. Of a get that asks `r` replicas only this is true: it sees all
//! writes acknowledged before it started. Two such gets during one write may see the new value and then the old one.
//! Histories with such gets are *regular*: for each get by itself there is an order of it and all writes. See
//! [`order_each`].
//!
//! Source: Wing and Gong, "Testing and verifying concurrent objects", 1993; Lowe, "Testing for linearizability", 2017
//! (a state that was reached with the same operations before is not searched again), as in porcupine. Regular histories
//! with several writers: Shao, Pierce and Welch, "Multi-writer consistency conditions for shared memory objects", 2003.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

/// More partial orders than this are not searched: each keeps a state and a bit for each operation in memory. Too
/// small: histories with many open operations stay undecided; too large: a test takes all memory before it fails.
pub const PARTIAL_ORDERS_MAX: usize = 2_000_000;

/// The machine whose operations, run one after the other, would explain a history.
pub trait Model {
    type State: Clone + Eq + Hash + fmt::Debug;
    type Op: Clone + fmt::Debug;
    type Answer: Clone + fmt::Debug;

    /// The state before the first operation.
    fn initial() -> Self::State;

    /// The state after `op`, or `None` if `op` cannot answer `answer` in `state`. Without an answer, which nobody knows
    /// then, there is always a state.
    fn step(state: &Self::State, op: &Self::Op, answer: Option<&Self::Answer>) -> Option<Self::State>;
}

/// One operation of one client.
pub struct Operation<M: Model> {
    /// Who asked: a client has one operation under way at most.
    pub client: usize,
    pub op: M::Op,
    /// When it was asked for, in microseconds since the history began.
    pub start_us: u64,
    /// When it was answered, in microseconds since the history began, and what. `None`: the outcome is unknown.
    pub end: Option<(u64, M::Answer)>,
}

impl<M: Model> Clone for Operation<M> {
    fn clone(&self) -> Operation<M> {
        let Operation { client, op, start_us, end } = self;
        Operation { client: *client, op: op.clone(), start_us: *start_us, end: end.clone() }
    }
}

impl<M: Model> fmt::Display for Operation<M> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "client {} from {}", self.client, self.start_us)?;
        match &self.end {
            Some((end_us, answer)) => write!(f, " to {end_us} us: {:?} -> {answer:?}", self.op),
            None => write!(f, " us, never answered: {:?}", self.op),
        }
    }
}

impl<M: Model> fmt::Debug for Operation<M> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a history is not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No order explains all answers. The text says which answer is the first without an explanation, and shows the
    /// history around it.
    Contradiction(String),
    /// [`PARTIAL_ORDERS_MAX`] was reached first.
    Undecided,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Refusal::Contradiction(text) => f.write_str(text),
            Refusal::Undecided => write!(f, "undecided after {PARTIAL_ORDERS_MAX} partial orders"),
        }
    }
}

/// An order that explains all answers of `history`, as indices into it. Open operations may stand at its end.
///
/// Ends and starts at the same microsecond count as concurrent. Errors: [`Refusal`].
pub fn order<M: Model>(history: &[Operation<M>]) -> Result<Vec<usize>, Refusal> {
    match Search::new(history).run() {
        Found::Order(order) => Ok(order),
        Found::Undecided => Err(Refusal::Undecided),
        Found::Nothing(_) => Err(Refusal::Contradiction(explain(history))),
    }
}

/// Checks that a history is regular: for each operation that `is_read` picks there is an order of it and of all
/// operations that `is_read` does not pick, and there is one of these alone.
///
/// Errors: [`Refusal`], for the read that starts first of those that have no order.
pub fn order_each<M: Model>(
    history: &[Operation<M>],
    is_read: impl Fn(&M::Op) -> bool,
) -> Result<(), Refusal> {
    let (mut reads, writes): (Vec<_>, Vec<_>) =
        history.iter().cloned().partition(|operation| is_read(&operation.op));
    order(&writes)?;
    reads.sort_by_key(|read| read.start_us);
    for read in reads.into_iter().filter(|read| read.end.is_some()) {
        let mut with_read = writes.clone();
        with_read.push(read);
        order(&with_read)?;
    }
    Ok(())
}

enum Found {
    Order(Vec<usize>),
    /// The longest order that was found of a part of the operations.
    Nothing(Vec<usize>),
    Undecided,
}

/// Where an operation starts or ends, in a list that is linked both ways so that operations can be taken out and put
/// back.
#[derive(Clone, Copy)]
struct Event {
    operation: usize,
    is_start: bool,
    before: usize,
    after: usize,
}

/// The head of the list of events.
const HEAD: usize = 0;

struct Search<'a, M: Model> {
    history: &'a [Operation<M>],
    events: Vec<Event>,
    /// For each operation its start and its end in `events`.
    places: Vec<(usize, usize)>,
    /// One bit for each operation that is taken out.
    taken: Vec<u64>,
    /// The operations that are taken out, in order, each with the state before it.
    stack: Vec<(usize, M::State)>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(history: &'a [Operation<M>]) -> Search<'a, M> {
        let mut moments = Vec::with_capacity(history.len() * 2);
        for (at, operation) in history.iter().enumerate() {
            let end_us = operation.end.as_ref().map_or(u64::MAX, |(end_us, _)| *end_us);
            moments.push((operation.start_us, false, at));
            moments.push((end_us, true, at));
        }
        moments.sort_unstable();
        let mut events = vec![Event { operation: usize::MAX, is_start: false, before: HEAD, after: HEAD }];
        let mut places = vec![(HEAD, HEAD); history.len()];
        for (_, is_end, operation) in moments {
            let place = events.len();
            match is_end {
                false => places[operation].0 = place,
                true => places[operation].1 = place,
            }
            events[place - 1].after = place;
            events.push(Event { operation, is_start: !is_end, before: place - 1, after: HEAD });
        }
        events[HEAD].before = events.len() - 1;
        Search { history, events, places, taken: vec![0; history.len().div_ceil(64)], stack: Vec::new() }
    }

    fn run(&mut self) -> Found {
        let mut seen: HashSet<(Vec<u64>, M::State)> = HashSet::new(); // only asked, never listed
        let mut state = M::initial();
        let mut longest = Vec::new();
        let mut at = self.events[HEAD].after;
        while at != HEAD {
            let event = self.events[at];
            if !event.is_start {
                // An operation that must come earlier: the last one taken out was the wrong one.
                let Some((operation, state_before)) = self.stack.pop() else {
                    return Found::Nothing(longest);
                };
                state = state_before;
                self.put_back(operation);
                at = self.events[self.places[operation].0].after;
                continue;
            }
            let operation = &self.history[event.operation];
            let next = M::step(&state, &operation.op, operation.end.as_ref().map(|(_, answer)| answer));
            let is_new = next.as_ref().is_some_and(|next| {
                let mut taken = self.taken.clone();
                taken[event.operation / 64] |= 1 << (event.operation % 64);
                seen.insert((taken, next.clone()))
            });
            match next.filter(|_| is_new) {
                Some(next) => {
                    self.take_out(event.operation);
                    self.stack.push((event.operation, std::mem::replace(&mut state, next)));
                    at = self.events[HEAD].after;
                    if self.stack.len() > longest.len() {
                        longest = self.stack.iter().map(|(operation, _)| *operation).collect();
                    }
                }
                None => at = event.after,
            }
            if seen.len() > PARTIAL_ORDERS_MAX {
                return Found::Undecided;
            }
        }
        Found::Order(self.stack.iter().map(|(operation, _)| *operation).collect())
    }

    fn take_out(&mut self, operation: usize) {
        let (start, end) = self.places[operation];
        for place in [start, end] {
            let Event { before, after, .. } = self.events[place];
            self.events[before].after = after;
            self.events[after].before = before;
        }
        self.taken[operation / 64] |= 1 << (operation % 64);
    }

    fn put_back(&mut self, operation: usize) {
        let (start, end) = self.places[operation];
        for place in [end, start] {
            let Event { before, after, .. } = self.events[place];
            self.events[before].after = place;
            self.events[after].before = place;
        }
        self.taken[operation / 64] &= !(1 << (operation % 64));
    }
}

/// What was known by the time `until_us`: operations that had started, without later answers.
fn known_by<M: Model>(history: &[Operation<M>], until_us: u64) -> Vec<Operation<M>> {
    let started = history.iter().filter(|operation| operation.start_us <= until_us).cloned();
    started.map(|one| Operation { end: one.end.filter(|(end_us, _)| *end_us <= until_us), ..one }).collect()
}

/// Says which answer is the first that no order explains, and shows what was under way near it.
fn explain<M: Model>(history: &[Operation<M>]) -> String {
    /// Operations shown of the longest order, and of the history before the contradiction.
    const SHOWN: usize = 24;
    let mut ends: Vec<u64> =
        history.iter().filter_map(|operation| operation.end.as_ref().map(|(end_us, _)| *end_us)).collect();
    ends.sort_unstable();
    // With more answers known a contradiction stays one.
    let search = |until_us: &u64| Search::new(&known_by(history, *until_us)).run();
    let explained = ends.partition_point(|until_us| matches!(search(until_us), Found::Order(_)));
    let Some(until_us) = ends.get(explained) else { return "no order was found".into() };
    let mut known = known_by(history, *until_us);
    known.sort_by_key(|operation| operation.start_us);
    let mut text = String::new();
    for operation in known.iter().filter(|one| one.end.as_ref().is_some_and(|(end, _)| end == until_us)) {
        text += &format!("no order of the operations explains this answer:\n  {operation}\n");
    }
    if let Found::Nothing(longest) = Search::new(&known).run() {
        text += "the longest order that explains the answers in it ends with:\n";
        let mut state = M::initial();
        for (number, at) in longest.iter().enumerate() {
            let answer = known[*at].end.as_ref().map(|(_, answer)| answer);
            state = M::step(&state, &known[*at].op, answer).expect("the order was found so");
            if longest.len() - number <= SHOWN {
                text += &format!("  {} => {state:?}\n", known[*at]);
            }
        }
        text += "and none of these fits next:\n";
        for (_, operation) in known.iter().enumerate().filter(|(at, _)| !longest.contains(at)) {
            text += &format!("  {operation}\n");
        }
    }
    text
}

/// A value that is written, swapped on a condition, and read.
pub struct Register;

/// What is asked of a [`Register`]. Values are numbers; 0: nothing is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RegisterOp {
    /// Answers [`RegisterAnswer::Value`].
    Read,
    /// Answers [`RegisterAnswer::Done`].
    Write(u64),
    /// Writes, and answers the value before as [`RegisterAnswer::Value`].
    Swap(u64),
    /// Writes `to` if the value is `from`; answers [`RegisterAnswer::Done`] or [`RegisterAnswer::Refused`].
    Replace { from: u64, to: u64 },
    /// Writes if the value is not 0; answers [`RegisterAnswer::Done`] or [`RegisterAnswer::Refused`].
    Overwrite(u64),
}

/// What a [`Register`] answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RegisterAnswer {
    Done,
    /// The condition did not hold.
    Refused,
    Value(u64),
}

impl Model for Register {
    type State = u64;
    type Op = RegisterOp;
    type Answer = RegisterAnswer;

    fn initial() -> u64 {
        0
    }

    fn step(state: &u64, op: &RegisterOp, answer: Option<&RegisterAnswer>) -> Option<u64> {
        let held = *state;
        let (next, right) = match *op {
            RegisterOp::Read => (held, RegisterAnswer::Value(held)),
            RegisterOp::Write(value) => (value, RegisterAnswer::Done),
            RegisterOp::Swap(value) => (value, RegisterAnswer::Value(held)),
            RegisterOp::Replace { from, to } if held == from => (to, RegisterAnswer::Done),
            RegisterOp::Overwrite(value) if held != 0 => (value, RegisterAnswer::Done),
            RegisterOp::Replace { .. } | RegisterOp::Overwrite(_) => (held, RegisterAnswer::Refused),
        };
        answer.is_none_or(|answer| *answer == right).then_some(next)
    }
}

/// A number that is added to: an operation is the number to add, 0 to read; the answer is the sum.
pub struct Counter;

impl Model for Counter {
    type State = i64;
    type Op = i64;
    type Answer = i64;

    fn initial() -> i64 {
        0
    }

    fn step(state: &i64, op: &i64, answer: Option<&i64>) -> Option<i64> {
        let sum = state + op;
        answer.is_none_or(|answer| *answer == sum).then_some(sum)
    }
}
