//! Judging what quorums promise while writes are concurrent: sets of siblings, and counters.
//!
//! With R + W > N a get sees each write that was acknowledged before it started, or something that superseded it.
//! Nothing is said of writes under way: of two gets in turn the first may see one, and the second not. So no order of
//! all operations need exist, and each answer is judged by itself against what was asked and acknowledged around it.
//!
//! See `linear` for histories that must have an order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The name of a write, and of the value it stores: no two writes of a history store the same.
pub type WriteId = u64;

/// What a write replaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Replaces {
    /// These writes: those that its context was read with. None: it becomes a sibling of all.
    Exactly(Vec<WriteId>),
    /// All that some replica held while it ran: a plain `SET`.
    Found,
}

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Stores the value of this name.
    Put { write: WriteId, replaces: Replaces },
    /// Leaves nothing of what it replaces.
    Delete { write: WriteId, replaces: Replaces },
    /// Reads all siblings from a quorum.
    Get,
}

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A write has its copies.
    Acknowledged,
    /// An answer that says that nothing was changed.
    Refused,
    /// The values that a get was shown.
    Siblings(Vec<WriteId>),
}

/// One operation of one client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    pub client: usize,
    pub access: Access,
    /// When it was asked for, in microseconds since the history began.
    pub start_us: u64,
    /// When it was answered, in microseconds since the history began, and what. `None`: the outcome is unknown.
    pub end: Option<(u64, Answer)>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "client {} from {}", self.client, self.start_us)?;
        match &self.end {
            Some((end_us, answer)) => write!(f, " to {end_us} us: {:?} -> {answer:?}", self.access),
            None => write!(f, " us, never answered: {:?}", self.access),
        }
    }
}

impl Operation {
    fn write(&self) -> Option<(WriteId, &Replaces)> {
        match &self.access {
            Access::Put { write, replaces } | Access::Delete { write, replaces } => Some((*write, replaces)),
            Access::Get => None,
        }
    }

    /// True if it was answered before `at_us`.
    fn is_over(&self, at_us: u64) -> bool {
        self.end.as_ref().is_some_and(|(end_us, _)| *end_us < at_us)
    }

    fn is_acknowledged(&self) -> bool {
        matches!(self.end, Some((_, Answer::Acknowledged)))
    }

    fn is_refused(&self) -> bool {
        matches!(self.end, Some((_, Answer::Refused)))
    }
}

/// Checks each answered get of `history`:
///
/// - It shows every write acknowledged before it started, unless something superseded that write which had started
///   before the get ended: a value that it shows too, or a delete, or something that was superseded in turn.
/// - It shows nothing superseded by something it shows, or by a write acknowledged before it started.
/// - It shows nothing that nobody had asked to store, and nothing of which a client was told that it was refused.
///
/// Errors: the text names the get, the write, and the operations around them.
pub fn siblings(history: &[Operation]) -> Result<(), String> {
    let writes = Writes::new(history);
    let mut gets: Vec<(&Operation, &[WriteId])> = Vec::new();
    for operation in history {
        if let Some((_, Answer::Siblings(shown))) = &operation.end {
            gets.push((operation, shown));
        }
    }
    gets.sort_by_key(|(get, _)| get.start_us);
    for (get, shown) in gets {
        writes.judge(get, shown).map_err(|fault| {
            let mut text = format!("{fault}\n  {get}\nthe writes before the end of that get:\n");
            let end_us = get.end.as_ref().map_or(u64::MAX, |(end_us, _)| *end_us);
            writes.listed(end_us).for_each(|write| text += &format!("  {write}\n"));
            text
        })?;
    }
    Ok(())
}

/// The writes of a history by their names.
struct Writes<'a> {
    by_id: BTreeMap<WriteId, &'a Operation>,
    /// For each write those that certainly superseded it.
    successors: BTreeMap<WriteId, Vec<WriteId>>,
    /// Those that replaced what they found.
    blind: Vec<WriteId>,
}

impl<'a> Writes<'a> {
    fn new(history: &'a [Operation]) -> Writes<'a> {
        let mut writes = Writes { by_id: BTreeMap::new(), successors: BTreeMap::new(), blind: Vec::new() };
        for operation in history {
            let Some((id, replaces)) = operation.write() else { continue };
            let known = writes.by_id.insert(id, operation);
            assert!(known.is_none(), "two writes are called {id}");
            match replaces {
                Replaces::Found => writes.blind.push(id),
                Replaces::Exactly(seen) => {
                    seen.iter().for_each(|one| writes.successors.entry(*one).or_default().push(id))
                }
            }
        }
        writes
    }

    /// The last writes that started before `end_us`, in the order of their starts.
    fn listed(&self, end_us: u64) -> impl Iterator<Item = &'a Operation> {
        const SHOWN: usize = 40;
        let mut writes: Vec<_> = self.by_id.values().copied().filter(|one| one.start_us <= end_us).collect();
        writes.sort_by_key(|write| write.start_us);
        let first = writes.len().saturating_sub(SHOWN);
        writes.into_iter().skip(first)
    }

    fn judge(&self, get: &Operation, shown: &[WriteId]) -> Result<(), String> {
        let end_us = get.end.as_ref().map_or(u64::MAX, |(end_us, _)| *end_us);
        for value in shown {
            match self.by_id.get(value) {
                None => return Err(format!("a get shows {value}, which nobody wrote")),
                Some(write) if write.start_us > end_us => {
                    return Err(format!("a get shows {value} before it was written"))
                }
                Some(write) if write.is_refused() => {
                    return Err(format!(
                        "a get shows {value}, of which the client was told that it was refused"
                    ))
                }
                Some(_) => {}
            }
            let is_known = |id: &WriteId| {
                shown.contains(id)
                    || self
                        .by_id
                        .get(id)
                        .is_some_and(|one| one.is_acknowledged() && one.is_over(get.start_us))
            };
            if let Some(successor) = self.superseded_by(*value).iter().find(|id| is_known(id)) {
                return Err(format!("a get shows {value}, which {successor} had superseded"));
            }
        }
        let before = |one: &&Operation| one.is_acknowledged() && one.is_over(get.start_us);
        for write in self.by_id.values().filter(|one| before(one)) {
            let Some((id, _)) = write.write() else { continue };
            if !self.is_accounted_for(id, shown, end_us) {
                return Err(format!(
                    "a get shows neither {id}, acknowledged before it, nor what superseded it"
                ));
            }
        }
        Ok(())
    }

    /// All that certainly superseded `write`, at any remove.
    fn superseded_by(&self, write: WriteId) -> BTreeSet<WriteId> {
        let (mut found, mut next) = (BTreeSet::new(), vec![write]);
        while let Some(id) = next.pop() {
            for successor in self.successors.get(&id).into_iter().flatten() {
                if found.insert(*successor) {
                    next.push(*successor);
                }
            }
        }
        found
    }

    /// True if a get that ended at `end_us` and showed `shown` saw `write`, or what may have superseded it.
    fn is_accounted_for(&self, write: WriteId, shown: &[WriteId], end_us: u64) -> bool {
        let (mut seen, mut next) = (BTreeSet::from([write]), vec![write]);
        while let Some(id) = next.pop() {
            let Some(operation) = self.by_id.get(&id) else { continue };
            if shown.contains(&id) || matches!(operation.access, Access::Delete { .. }) {
                return true;
            }
            let exact = self.successors.get(&id).into_iter().flatten();
            // A plain store cannot have found what began after its end.
            let blind = self.blind.iter().filter(|one| !self.by_id[one].is_over(operation.start_us));
            for successor in exact.chain(blind) {
                let one = self.by_id[successor];
                if one.start_us <= end_us && !one.is_refused() && seen.insert(*successor) {
                    next.push(*successor);
                }
            }
        }
        false
    }
}

/// One addition to a counter, or a reading of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Count {
    pub client: usize,
    /// What is added: not negative, 0 for a reading.
    pub adds: u64,
    /// When it was asked for, in microseconds since the history began.
    pub start_us: u64,
    /// When it was answered, in microseconds since the history began, and the sum. `None`: the outcome is unknown.
    pub end: Option<(u64, u64)>,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "client {} from {}", self.client, self.start_us)?;
        match &self.end {
            Some((end_us, sum)) => write!(f, " to {end_us} us: +{} -> {sum}", self.adds),
            None => write!(f, " us, never answered: +{}", self.adds),
        }
    }
}

/// Checks each sum of `history`: the additions acknowledged before it was asked for are in it, and its own, and besides
/// only such as had been asked for by then.
///
/// Errors: the text names the sum and its bounds, and shows the operations around it.
pub fn counts(history: &[Count]) -> Result<(), String> {
    let mut sums: Vec<(&Count, u64, u64)> =
        history.iter().filter_map(|one| one.end.map(|(end_us, sum)| (one, end_us, sum))).collect();
    sums.sort_by_key(|(_, end_us, _)| *end_us);
    for (count, end_us, sum) in &sums {
        let others = || history.iter().filter(|one| !std::ptr::eq(*one, *count));
        let is_before = |one: &&Count| one.end.is_some_and(|(end_us, _)| end_us < count.start_us);
        let least: u64 = count.adds + others().filter(is_before).map(|one| one.adds).sum::<u64>();
        let most: u64 =
            count.adds + others().filter(|one| one.start_us <= *end_us).map(|one| one.adds).sum::<u64>();
        if *sum < least || *sum > most {
            return Err(format!(
                "{sum} is no sum of what was added: it must be {least} to {most}\n  {count}\nthe sums before it:\n{}",
                sums_before(&sums, *end_us)
            ));
        }
    }
    Ok(())
}

fn sums_before(sums: &[(&Count, u64, u64)], until_us: u64) -> String {
    const SHOWN: usize = 24;
    let before: Vec<_> = sums.iter().filter(|(_, end_us, _)| *end_us <= until_us).collect();
    before[before.len().saturating_sub(SHOWN)..].iter().map(|(count, ..)| format!("  {count}\n")).collect()
}
