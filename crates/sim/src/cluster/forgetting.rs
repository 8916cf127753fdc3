//! What a node may forget: a dead object of which nothing older is left anywhere, on no disk and under way to none.
//!
//! Looked at in the moment in which a copy is dropped. What would come back may take an hour to do so, and a reader who
//! happens to look at that very key.

use oort_core::client::RequestId;
use oort_core::message::Message;
use oort_core::node::Input;
use oort_core::object::Object;
use oort_core::store::Space;
use oort_core::types::ObjectKey;

use super::{Cluster, Event};
use crate::faults::Fault;
use crate::history::dots_of;

impl Cluster {
    /// A machine is about to be told to drop dead objects. Now and then a client writes one of them just then, or an
    /// operator changes the ring.
    pub(super) fn meet_forgetting(&mut self, machine: usize, rows: &[(ObjectKey, u64)]) {
        if self.plan.is_calm() || !self.rng.chance(1, 4) {
            return;
        }
        let (key, _) = &rows[self.rng.below(rows.len() as u64) as usize];
        if self.plan.timed.contains_key(&Fault::Ring) && self.rng.chance(1, 4) {
            self.change_ring(machine);
            return;
        }
        let id = self.history.operations.len() as RequestId;
        let wall_ms = crate::trace::EPOCH_MS + self.now_us / 1000;
        if let Some(operation) = self.workload.write_to(key, id, wall_ms, &mut self.rng) {
            self.operator(machine, operation);
        }
    }

    /// `machine` drops its copy of a dead object.
    pub(super) fn check_forgotten(&mut self, machine: usize, key: &ObjectKey, forgotten: &Object) {
        if self.is_interval() || self.history.keys.get(key).is_some_and(|past| past.was_corrupted) {
            return;
        }
        let place = self.place_of_older(key, forgotten).or_else(|| self.reader_of(forgotten));
        if let Some(place) = place {
            let detail = format!("n{machine} forgot {}, {place}", self.history.names(&dots_of(forgotten)));
            self.history.blame("resurrected", Some(key), detail);
        }
    }

    /// Where something is left that the forgotten object had superseded.
    fn place_of_older(&self, key: &ObjectKey, forgotten: &Object) -> Option<String> {
        let gone = dots_of(forgotten);
        let is_older = |object: &Object| {
            dots_of(object).iter().any(|dot| forgotten.context().covers(*dot) && !gone.contains(dot))
        };
        for (index, machine) in self.machines.iter().enumerate() {
            let rows =
                [machine.disk.row(Space::Data, key.row()), machine.disk.durable_row(Space::Data, key.row())];
            let objects = rows.into_iter().flatten().filter_map(|row| Object::decode(&row).ok());
            if let Some(object) = objects.into_iter().find(is_older) {
                let names = self.history.names(&dots_of(&object));
                return Some(format!("while n{index} holds {names}, which that had superseded"));
            }
        }
        let is_write_of_older = |message: &Message| match message {
            Message::Write { key: written, object, .. } if written == key => {
                Object::decode(object).is_ok_and(|object| is_older(&object))
            }
            _ => false,
        };
        let is_received =
            |input: &Input| matches!(input, Input::Message { message, .. } if is_write_of_older(message));
        let receiver = self.machines.iter().position(|machine| machine.inbox.iter().any(is_received));
        let on_its_way = |event: &Event| match event {
            Event::Arrive { to, connection, bytes, .. } => {
                let is_open = self.network.is_open(*to, *connection);
                let message = Message::decode(bytes).ok().filter(|_| is_open);
                message.is_some_and(|message| is_write_of_older(&message)).then_some(*to)
            }
            _ => None,
        };
        let receiver = receiver.or_else(|| self.queue.values().find_map(on_its_way));
        receiver.map(|to| format!("while a write of what that had superseded is under way to n{to}"))
    }

    /// A node by whose time the object is alive.
    fn reader_of(&self, forgotten: &Object) -> Option<String> {
        if self.plan.timed.contains_key(&Fault::Skew) || self.plan.timed.contains_key(&Fault::Clock) {
            // Clocks may have jumped back since all agreed.
            return None;
        }
        let sees = |(index, machine): (usize, &crate::machine::Machine)| {
            let node = machine.node.as_ref()?;
            forgotten.is_live(node.time(machine.now(self.now_us)).wall_ms).then_some(index)
        };
        let reader = self.machines.iter().enumerate().find_map(sees);
        reader.map(|index| format!("which is alive by the time of n{index}"))
    }
}
