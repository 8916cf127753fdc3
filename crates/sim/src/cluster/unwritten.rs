//! The calls that a home answers before it writes what they changed: it writes it in time, unless it dies.
//!
//! At the end a machine that died meanwhile excuses much, so each such answer is followed by itself: to the disk that
//! first has it.

use std::collections::BTreeMap;

use oort_core::bucket::ActiveDurability;
use oort_core::client::{Operation, Reply, RequestId};
use oort_core::message::{Control, Message, TaskId};
use oort_core::node::{Input, Output};
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey};

use super::terms::marks_in;
use super::{Cluster, Event};
use crate::history::mark;
use crate::workload::Role;

/// Beyond the bucket's `aso_async_ms`, for handlers that wait and turns that are long, in microseconds.
const MARGIN_US: u64 = 2_000_000;

/// Where a call came from.
type Source = (Option<NodeId>, TaskId);

/// The calls that machines run now.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    running: BTreeMap<(usize, Source), (ObjectKey, RequestId)>,
}

/// A call that a machine answered before it wrote it.
#[derive(Clone, Debug)]
pub(super) struct Debt {
    key: ObjectKey,
    id: RequestId,
    machine: usize,
    boot: u64,
    at_us: u64,
}

impl Debt {
    pub fn machine(&self) -> usize {
        self.machine
    }
}

impl Unwritten {
    /// A call reaches a machine.
    pub fn note(&mut self, machine: usize, input: &Input) {
        let (source, operation) = match input {
            Input::Request { id, request } => ((None, *id), &request.operation),
            Input::Message { from, message: Message::Control(Control::Forward { task, operation, .. }) } => {
                ((Some(*from), *task), operation)
            }
            _ => return,
        };
        if let Some((key, id)) = marked_call(operation) {
            self.running.insert((machine, source), (key, id));
        }
    }

    /// True if a machine has been asked something of this object and has not answered.
    fn runs(&self, machine: usize, key: &ObjectKey) -> bool {
        self.running.iter().any(|((of, _), (about, _))| *of == machine && about == key)
    }

    /// The life of a machine has ended.
    pub fn end(&mut self, machine: usize) {
        self.running.retain(|(of, _), _| *of != machine);
    }

    /// The call that an output of a machine answers as one that is written later.
    fn answered(&mut self, machine: usize, output: &Output) -> Option<(ObjectKey, RequestId)> {
        let (source, result) = match output {
            Output::Reply { id, result } => ((None, *id), result),
            Output::Send { to, message: Message::Control(Control::Forwarded { task, result }) } => {
                ((Some(*to), *task), result)
            }
            // Another runs it.
            Output::Send { message: Message::Control(Control::Forward { operation, .. }), .. } => {
                let (_, forwarded) = marked_call(operation)?;
                self.running.retain(|(of, _), (_, id)| *of != machine || *id != forwarded);
                return None;
            }
            _ => return None,
        };
        let call = self.running.remove(&(machine, source))?;
        matches!(result, Ok(Reply::Called(called)) if !called.is_kept).then_some(call)
    }
}

/// The key and the number of a call that leaves its mark.
fn marked_call(operation: &Operation) -> Option<(ObjectKey, RequestId)> {
    let Operation::Call { key, call, .. } = operation else { return None };
    let last = call.arguments.last()?;
    let oort_core::active::Value::Bytes(text) = last else { return None };
    Some((key.clone(), marks_in(Some(text)).first().copied()?))
}

impl Cluster {
    /// An output leaves a machine.
    pub(super) fn watch_unwritten(&mut self, machine: usize, output: &Output) {
        let Some((key, id)) = self.unwritten.answered(machine, output) else { return };
        let counts = self
            .workload
            .keys
            .iter()
            .any(|spec| spec.key == key && matches!(spec.role, Role::Active { .. } | Role::Tally));
        let aso = &self.workload.properties(&key).aso;
        if !counts || aso.durability != ActiveDurability::Async {
            return;
        }
        let at_us = self.now_us + u64::from(aso.async_ms) * 1000 + MARGIN_US;
        let debt = Debt { key, id, machine, boot: self.machines[machine].boots, at_us: self.now_us };
        self.debts.push(debt.clone());
        self.at(at_us, Event::LookUnwritten(Box::new(debt)));
    }

    /// A call must have been written by now, if its home has been there and its disk has taken all.
    pub(super) fn look_unwritten(&mut self, debt: Debt) {
        let machine = &self.machines[debt.machine];
        let is_there = machine.boots == debt.boot && machine.is_up();
        let margin_us = self.now_us - debt.at_us;
        if is_there && (machine.troubled_until_us > debt.at_us || machine.is_stopping) {
            // It is looked at when it had its time.
            let later = Debt { at_us: self.now_us, ..debt };
            return self.at(self.now_us + margin_us, Event::LookUnwritten(Box::new(later)));
        }
        self.debts.retain(|other| (other.machine, other.id) != (debt.machine, debt.id));
        if is_there {
            self.demand_written(&debt);
        }
    }

    /// A machine was stopped in good order: it has written all, but for objects whose handlers still waited.
    pub(super) fn stopped_in_order(&mut self, machine: usize) {
        let of_it = |debt: &Debt| debt.machine == machine && !self.unwritten.runs(machine, &debt.key);
        let debts: Vec<Debt> = self.debts.iter().filter(|debt| of_it(debt)).cloned().collect();
        self.debts.retain(|debt| !of_it(debt));
        let was_troubled = |debt: &Debt| self.machines[machine].troubled_until_us >= debt.at_us;
        let due: Vec<Debt> = debts.into_iter().filter(|debt| !was_troubled(debt)).collect();
        due.iter().for_each(|debt| self.demand_written(debt));
    }

    fn demand_written(&mut self, debt: &Debt) {
        let mark = mark(debt.id);
        let has = |row: Option<bytes::Bytes>| {
            row.is_some_and(|row| row.windows(mark.len()).any(|part| part == mark.as_bytes()))
        };
        let mut disks = self.machines.iter().map(|machine| &machine.disk);
        let is_written = disks.any(|disk| has(disk.row(Space::Data, debt.key.row())));
        let is_hurt = self.lost.is_some()
            || self.is_interval() && self.machines.iter().any(|machine| machine.power_failures > 0)
            || self.history.keys.get(&debt.key).is_some_and(|past| past.was_corrupted);
        if !is_written && !is_hurt {
            let detail = format!("n{} answered o{} and has not written it", debt.machine, debt.id);
            self.history.blame("unwritten", Some(&debt.key), detail);
        }
    }
}
