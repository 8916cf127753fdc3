//! The story of a broken promise in words: who asked what of which node, which node held what, and what went wrong.
//!
//! The history holds what checkers need. For people it lacks two things, which are noted here: when machines and links
//! failed, and each copy that a node took in after a write was born elsewhere. Copies are noted only in runs whose
//! setup tells: a seed that fails is simply run once more.

use std::collections::BTreeMap;

use bytes::Bytes;
use oort_core::active::Ask;
use oort_core::causality::Dot;
use oort_core::client::Operation;
use oort_core::mutation::{Basis, Condition, Mutation};
use oort_core::object::Object;
use oort_core::types::ObjectKey;

use crate::check::CHECKERS;
use crate::disk::Stored;
use crate::faults::{Fault, Plan};
use crate::history::{dots_of, History, OpRecord, Outcome};
use crate::trace::{get_quorum, show_bytes, show_object, show_operation, show_time, show_version};

/// Something that happened to machines or links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incident {
    /// A machine starts its node.
    Start { machine: usize },
    /// A node ends; without power the disk loses what was not durable.
    End { machine: usize, has_power: bool },
    /// A fault strikes. `ordinal`: its place among all strikes drawn, from 1.
    Strike { fault: Fault, machine: usize, lasts_us: u64, ordinal: u64 },
    /// Messages are swallowed from now on, each link in the one direction.
    Cut { links: Vec<(usize, usize)> },
    /// The links of a cut carry messages again.
    Heal { links: Vec<(usize, usize)> },
    /// All faults end.
    Calm,
}

/// A node's row after a change.
#[derive(Clone, Debug)]
struct Copy {
    at_us: u64,
    machine: usize,
    before: Vec<Dot>,
    after: Vec<Dot>,
}

/// Notes of one run. Times are microseconds of virtual time.
#[derive(Debug, Default)]
pub struct Chronicle {
    incidents: Vec<(u64, Incident)>,
    /// Noted only if the run is told.
    copies: Option<BTreeMap<ObjectKey, Vec<Copy>>>,
    /// The faults in force, once drawn.
    pub plan: Option<Plan>,
}

/// What a story is about, and the state at the end.
pub struct Subject<'a> {
    pub history: &'a History,
    /// `None`: the promise that was broken names no key.
    pub key: Option<&'a ObjectKey>,
    /// The machines that hold the key's replicas at the end.
    pub primaries: Vec<usize>,
    /// The key's row by machine; `None` if it is missing, or corrupt.
    pub rows: Vec<Option<Bytes>>,
    /// The client number of those who prepare and inspect the cluster.
    pub operator: usize,
}

impl Chronicle {
    /// An empty one. Copies are noted if the run is to be told.
    pub fn new(tells: bool) -> Chronicle {
        Chronicle { copies: tells.then(BTreeMap::new), ..Chronicle::default() }
    }

    /// The place of the next incident, for [`Chronicle::note_before`].
    pub fn place(&self) -> usize {
        self.incidents.len()
    }

    /// Notes an incident before those noted since `place` was asked for: its consequences.
    pub fn note_before(&mut self, place: usize, at_us: u64, incident: Incident) {
        self.incidents.insert(place, (at_us, incident));
    }

    /// Notes an incident.
    pub fn note(&mut self, at_us: u64, incident: Incident) {
        self.incidents.push((at_us, incident));
    }

    /// Notes that `machine` stored an object, if the run is told.
    pub fn stored(&mut self, at_us: u64, machine: usize, stored: &Stored) {
        let Some(copies) = &mut self.copies else { return };
        let dots = |bytes: &Bytes| Object::decode(bytes).map_or(Vec::new(), |object| dots_of(&object));
        let before = stored.before.as_ref().map_or(Vec::new(), dots);
        let after = dots(&stored.after);
        if before != after {
            copies.entry(stored.key.clone()).or_default().push(Copy { at_us, machine, before, after });
        }
    }

    /// Tells the story of a key, or of the cluster, in words.
    pub fn tell(&self, subject: &Subject) -> String {
        let mut text = match subject.key {
            Some(key) => format!("The story of the key {key:?}\n\n"),
            None => "The story of the cluster\n\n".to_string(),
        };
        text += &verdicts(subject);
        text += "\nWhat happened, in seconds since the start. A write is named by the node that made it and the moment: \
             n2:1234.0 is n2's write of millisecond 1234 by its own clock. o17 is an operation.\n\n";
        if let Some(plan) = &self.plan {
            text += &format!("  In force: {}.\n", plan.in_force());
        }
        let mut lines = self.lines(subject);
        lines.sort_by_key(|(at_us, _)| *at_us);
        for (at_us, line) in lines {
            text += &format!("  {} {line}\n", show_time(at_us));
        }
        text + &ending(subject)
    }

    fn lines(&self, subject: &Subject) -> Vec<(u64, String)> {
        let incidents = self.incidents.iter().map(|(at_us, incident)| (*at_us, incident_words(incident)));
        let mut lines: Vec<(u64, String)> = incidents.collect();
        let Some(key) = subject.key else { return lines };
        let history = subject.history;
        let Some(past) = history.keys.get(key) else { return lines };
        for id in &past.operations {
            let op = &history.operations[*id as usize];
            let who = client_name(op, subject.operator);
            lines
                .push((op.start_us, format!("{who} asks n{} to {} (o{id})", op.machine, asked(op, history))));
            if op.outcome != Outcome::Pending {
                lines.push((op.end_us, format!("{who} {}", told(*id, op, history))));
            }
        }
        for birth in &past.births {
            let by = birth.operation.map_or(String::new(), |id| format!(" for o{id}"));
            let (name, version) = (history.name(birth.dot), show_version(&birth.version));
            let over = superseded(history, &birth.before, &birth.after);
            lines.push((
                birth.at_us,
                format!("n{} makes the write {name}{by}: {version}{over}", birth.machine),
            ));
        }
        for (at_us, dots) in &past.forgotten {
            lines.push((*at_us, format!("a node forgets {}, which nobody could see", history.names(dots))));
        }
        for copy in self.copies.iter().filter_map(|copies| copies.get(key)).flatten() {
            let is_birth = |dot: &Dot| {
                past.births.iter().any(|birth| {
                    birth.dot == *dot && (birth.machine, birth.at_us) == (copy.machine, copy.at_us)
                })
            };
            let added = copy.after.iter().filter(|dot| !copy.before.contains(dot) && !is_birth(dot));
            let added: Vec<Dot> = added.copied().collect();
            if !added.is_empty() {
                let over = superseded(history, &copy.before, &copy.after);
                let names = history.names(&added);
                lines.push((copy.at_us, format!("n{} takes a copy of {names}{over}", copy.machine)));
            }
        }
        lines
    }
}

/// What was promised, and what was seen instead.
fn verdicts(subject: &Subject) -> String {
    let mut text = String::new();
    let violations = subject.history.violations.iter();
    for violation in violations.filter(|violation| violation.key.as_ref() == subject.key).take(10) {
        let checker = CHECKERS.iter().find(|(name, ..)| *name == violation.checker);
        text += &match checker {
            Some((name, number, promise)) => format!("Promised ({name}, promise {number}): {promise}.\n"),
            None => format!("Promised: what the checker {} demands.\n", violation.checker),
        };
        text += &format!("Seen instead: {}.\n", violation.detail);
    }
    text
}

/// Which node holds what at the end.
fn ending(subject: &Subject) -> String {
    let Some(key) = subject.key else { return String::new() };
    let primaries: Vec<String> = subject.primaries.iter().map(|machine| format!("n{machine}")).collect();
    let mut text = format!("\nAt the end. The replicas of {key:?} are {}.\n\n", primaries.join(", "));
    for (machine, row) in subject.rows.iter().enumerate() {
        let held = match row.as_ref().map(Object::decode) {
            None => "nothing".to_string(),
            Some(Ok(object)) => show_object(&object, &|dot| subject.history.name(dot)),
            Some(Err(error)) => format!("bytes that are no object: {error}"),
        };
        text += &format!("  n{machine} holds {held}\n");
    }
    text
}

fn client_name(op: &OpRecord, operator: usize) -> String {
    match op.client == operator {
        true => "the operator".to_string(),
        false => format!("client {}", op.client),
    }
}

fn superseded(history: &History, before: &[Dot], after: &[Dot]) -> String {
    let gone: Vec<Dot> = before.iter().filter(|dot| !after.contains(dot)).copied().collect();
    let rest: Vec<Dot> = before.iter().filter(|dot| after.contains(dot)).copied().collect();
    match (gone.is_empty(), rest.is_empty()) {
        (true, true) => ", with nothing there before".to_string(),
        (true, false) => format!(", beside {}", history.names(&rest)),
        (false, true) => format!(", in place of {}", history.names(&gone)),
        (false, false) => {
            format!(", in place of {}, beside {}", history.names(&gone), history.names(&rest))
        }
    }
}

fn asked(op: &OpRecord, history: &History) -> String {
    let what = match &op.operation {
        Operation::Get { .. } => "get it".to_string(),
        Operation::Call { call, .. } => match &call.what {
            Ask::Function(name) => format!("call its function {}", name.escape_ascii()),
            Ask::Get => "get it".to_string(),
            other => format!("call its {other:?}"),
        },
        Operation::Update { mutation, .. } => mutation_words(mutation, &history.names(&op.seen)),
        other => show_operation(other),
    };
    match get_quorum(&op.operation) {
        Some(_) => format!("{what}; {} of {} replicas must answer", op.r, op.n),
        None => format!("{what}; {} of {} replicas must acknowledge", op.w, op.n),
    }
}

fn mutation_words(mutation: &Mutation, seen: &str) -> String {
    let basis = |basis: &Basis| match basis {
        Basis::Local => "in place of what that node holds".to_string(),
        Basis::Unseen => "without having read anything".to_string(),
        Basis::Seen(_) => format!("in place of {seen}, which it had read"),
    };
    let only = |condition: &Condition| match condition {
        Condition::Always => String::new(),
        other => format!(", only if {other:?}"),
    };
    match mutation {
        Mutation::Store { value, basis: over, condition, .. } => {
            format!("store '{}' {}{}", show_bytes(value), basis(over), only(condition))
        }
        Mutation::Delete { basis: over, condition } => {
            format!("delete it {}{}", basis(over), only(condition))
        }
        Mutation::Append { suffix } => format!("append '{}'", show_bytes(suffix)),
        Mutation::Add { delta } => format!("add {delta} to it"),
        Mutation::SetExpiry { at_ms: None, .. } => "let it stay for ever".to_string(),
        Mutation::SetExpiry { at_ms: Some(at_ms), .. } => format!("let it expire at {at_ms} ms since 1970"),
        Mutation::Activate { .. } => "store an active object".to_string(),
        Mutation::SetRange { .. } | Mutation::AddFloat { .. } => format!("change it: {mutation:?}"),
    }
}

fn told(id: u64, op: &OpRecord, history: &History) -> String {
    let shown = op.shown.map_or(String::new(), |shown| format!(" and shown {shown}"));
    let error = &op.error;
    match op.outcome {
        Outcome::Acked if get_quorum(&op.operation).is_some() => {
            format!("is shown {} (o{id})", history.names(&op.read))
        }
        Outcome::Acked => format!("is told that o{id} is done, as {}{shown}", history.names(&op.dots)),
        Outcome::NotApplied => {
            format!("is told that the condition of o{id} did not hold: nothing was written")
        }
        Outcome::Refused => format!("is told that o{id} changed nothing: {error}"),
        Outcome::Unknown => format!("is told that o{id} may or may not have happened: {error}"),
        Outcome::Disconnected => format!("loses its node, and cannot know what became of o{id}"),
        Outcome::Pending => format!("waits for o{id} for ever"),
    }
}

fn incident_words(incident: &Incident) -> String {
    let links = |links: &[(usize, usize)]| {
        let links: Vec<String> = links.iter().map(|(from, to)| format!("n{from} to n{to}")).collect();
        links.join(", ")
    };
    match incident {
        Incident::Start { machine } => format!("-- n{machine} starts"),
        Incident::End { machine, has_power: true } => {
            format!("-- n{machine} ends; its disk keeps what it was given")
        }
        Incident::End { machine, has_power: false } => {
            format!("-- n{machine} loses power, and what its disk had not made durable")
        }
        Incident::Strike { fault, machine, lasts_us, ordinal } => format!(
            "-- FAULT {}: n{machine} {} ({} ms at most; strike {ordinal})",
            fault.name(),
            fault.words(),
            lasts_us / 1000
        ),
        Incident::Cut { links: cut } => format!("-- messages are swallowed from {}", links(cut)),
        Incident::Heal { links: cut } => format!("-- messages pass again from {}", links(cut)),
        Incident::Calm => "-- all faults end; from here on the replicas must come to agree".to_string(),
    }
}
