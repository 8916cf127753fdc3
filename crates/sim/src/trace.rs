//! The running hash of a history, and its readable form.
//!
//! Every event is mixed into one 64-bit hash, in order: two runs of a seed with the same hash did the same things at
//! the same times. The readable lines are made only when somebody wants to read them.

use std::io::Write;

use oort_core::active::Ask;
use oort_core::causality::Dot;
use oort_core::client::{Operation, Quorum};
use oort_core::message::{Control, Message, ReadOutcome};
use oort_core::mutation::{Basis, Mutation};
use oort_core::object::{Object, Value, Version};
use oort_core::types::ObjectKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The wall time at which every simulation starts: 2023-11-14, in milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// The hash so far, and where lines go.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    prints: bool,
}

impl Trace {
    /// A trace that prints its lines to the standard output, or none.
    pub fn new(prints: bool) -> Trace {
        Trace { prints, ..Trace::default() }
    }

    /// Starts the next event: its time, its kind and the machine it concerns.
    pub fn event(&mut self, at_us: u64, kind: u8, machine: usize) {
        self.events += 1;
        self.mix_number(at_us ^ (kind as u64) << 56 ^ (machine as u64) << 48);
    }

    /// Mixes in what the event carries.
    pub fn mix(&mut self, bytes: &[u8]) {
        self.hash = xxh3_64_with_seed(bytes, self.hash);
    }

    /// Mixes in a number that the event carries.
    pub fn mix_number(&mut self, number: u64) {
        self.mix(&number.to_le_bytes());
    }

    /// Prints `line` if lines are wanted; it is made only then.
    pub fn line(&self, at_us: u64, line: impl FnOnce() -> String) {
        if self.prints {
            // A reader that has seen enough closes the pipe; the run goes on without it.
            let _ = writeln!(std::io::stdout(), "{} {}", show_time(at_us), line());
        }
    }

    /// True if lines are printed.
    pub fn prints(&self) -> bool {
        self.prints
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }
}

/// Virtual time as seconds.
pub fn show_time(at_us: u64) -> String {
    format!("{:>3}.{:06}", at_us / 1_000_000, at_us % 1_000_000)
}

/// Gives a dot a short name. The history knows which machine an actor belongs to.
pub type NameDot<'a> = &'a dyn Fn(Dot) -> String;

/// A value in a few characters.
pub fn show_version(version: &Version) -> String {
    let mut text = match &version.value {
        Value::Bytes(bytes) => show_bytes(bytes),
        Value::Counter(counter) => format!("counter {}", counter.value()),
        Value::Tombstone => "deleted".into(),
        Value::Husk(husk) => format!("active, kept by {:?}", husk.placement.holders),
        Value::Active(active) => format!("active, state {}", show_bytes(&active.state)),
    };
    if let Some(expiry) = version.expires_ms {
        text += &format!(" until {}", expiry as i64 - EPOCH_MS as i64);
    }
    text
}

/// The last 24 bytes: a simulated value ends in the number of the operation that made it.
pub fn show_bytes(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    let text = text.trim_start_matches('.');
    match text.len() {
        0..=24 => text.to_string(),
        length => format!("~{}", &text[length - 24..]),
    }
}

/// Siblings with their dots, then the context.
pub fn show_object(object: &Object, name: NameDot) -> String {
    let values: Vec<String> = object
        .0
        .values()
        .iter()
        .map(|(dot, version)| format!("{}={}", name(*dot), show_version(version)))
        .collect();
    let context: Vec<String> = object.context().dots().map(name).collect();
    format!("[{}] seen {{{}}}", values.join(", "), context.join(" "))
}

/// What a client asks, in one line.
pub fn show_operation(operation: &Operation) -> String {
    match operation {
        Operation::Get { key, quorum } => format!("get {key:?}{}", show_quorum(quorum)),
        Operation::Call { key, call, quorum } => {
            format!("{:?} of {key:?}{}", call.what, show_quorum(quorum))
        }
        Operation::Update { key, mutation, quorum, .. } => {
            format!("{} on {key:?}{}", show_mutation(mutation), show_quorum(quorum))
        }
        Operation::Scan(scan) => format!("scan {} limit {}", scan.bucket.escape_ascii(), scan.limit),
        Operation::SetBucket { bucket, properties } => {
            format!("set bucket {} {properties:?}", bucket.escape_ascii())
        }
        Operation::ChangeRing { change, .. } => format!("ring {change:?}"),
    }
}

fn show_quorum(quorum: &oort_core::client::Quorum) -> String {
    let mut text = String::new();
    let mut number = |name: &str, value: u8| {
        if value > 0 {
            text += &format!(" {name}={value}");
        }
    };
    number("r", quorum.r.unwrap_or(0));
    number("w", quorum.w.unwrap_or(0));
    number("pr", quorum.primary_r);
    number("pw", quorum.primary_w);
    text
}

fn show_mutation(mutation: &Mutation) -> String {
    match mutation {
        Mutation::Store { value, basis, expiry, condition, .. } => {
            format!("store {} {} {condition:?} {expiry:?}", show_bytes(value), show_basis(basis))
        }
        Mutation::Delete { basis, condition } => format!("delete {} {condition:?}", show_basis(basis)),
        Mutation::Append { suffix } => format!("append {}", show_bytes(suffix)),
        other => format!("{other:?}"),
    }
}

fn show_basis(basis: &Basis) -> &'static str {
    match basis {
        Basis::Local => "over what is held",
        Basis::Unseen => "unseen",
        Basis::Seen(_) => "over what was read",
    }
}

/// A message in one line.
pub fn show_message(message: &Message, name: NameDot) -> String {
    let decoded = |bytes: &bytes::Bytes| match Object::decode(bytes) {
        Ok(object) => show_object(&object, name),
        Err(error) => format!("({error})"),
    };
    match message {
        Message::Write { task, key, object, hint_for, term, .. } => {
            let hint = hint_for.map_or(String::new(), |owner| format!(" hint for {owner:?}"));
            let term = if *term > 0 { format!(" in term {term}") } else { String::new() };
            format!("write {task} {key:?} {}{hint}{term}", decoded(object))
        }
        Message::Claim { task, key, object, term, .. } => {
            format!("claim {task} {key:?} term {term} {}", decoded(object))
        }
        Message::ReadResult { task, outcome: ReadOutcome::Object(object) } => {
            format!("read result {task} {}", decoded(object))
        }
        Message::Control(Control::Forward { task, operation, .. }) => {
            format!("forward {task} {}", show_operation(operation))
        }
        other => {
            let text = format!("{other:?}");
            match text.char_indices().nth(160) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        }
    }
}

/// The key an operation is about, if it is about one.
pub fn key_of(operation: &Operation) -> Option<&ObjectKey> {
    match operation {
        Operation::Get { key, .. } | Operation::Call { key, .. } | Operation::Update { key, .. } => Some(key),
        Operation::Scan(_) | Operation::SetBucket { .. } | Operation::ChangeRing { .. } => None,
    }
}

/// The quorum of a read of a value, by either of the two paths; `None`: it is something else.
pub fn get_quorum(operation: &Operation) -> Option<Quorum> {
    match operation {
        Operation::Get { quorum, .. } => Some(*quorum),
        Operation::Call { call, quorum, .. } if call.what == Ask::Get => Some(*quorum),
        _ => None,
    }
}
