//! Work in progress, by number: what an answer from a peer is matched against.
//!
//! A number is a slot and a generation, so an answer to a task that is over never meets the slot's next user. Walks go
//! in slot order, which makes them the same in every replay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::message::TaskId;

/// Tasks of one kind and their deadlines.
#[derive(Debug)]
pub struct Tasks<T> {
    slots: Vec<Option<(TaskId, T)>>,
    free: Vec<u32>,
    generation: u64,
    timers: BinaryHeap<Reverse<(u64, TaskId)>>,
}

impl<T> Tasks<T> {
    /// `generation`: random, so that answers meant for a node's former life are not taken for its own.
    pub fn new(generation: u32) -> Tasks<T> {
        Tasks {
            slots: Vec::new(),
            free: Vec::new(),
            generation: generation as u64,
            timers: BinaryHeap::new(),
        }
    }

    /// Adds a task, whose number is never 0.
    pub fn insert(&mut self, task: T) -> TaskId {
        self.generation = ((self.generation + 1) & 0xffff_ffff).max(1);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        let id = self.generation << 32 | slot as u64;
        self.slots[slot as usize] = Some((id, task));
        id
    }

    pub fn get_mut(&mut self, id: TaskId) -> Option<&mut T> {
        match self.slots.get_mut(id as u32 as usize) {
            Some(Some((held, task))) if *held == id => Some(task),
            _ => None,
        }
    }

    pub fn remove(&mut self, id: TaskId) -> Option<T> {
        let slot = self.slots.get_mut(id as u32 as usize)?;
        if slot.as_ref().is_none_or(|(held, _)| *held != id) {
            return None;
        }
        self.free.push(id as u32);
        slot.take().map(|(_, task)| task)
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of all tasks, in slot order.
    pub fn ids(&self) -> Vec<TaskId> {
        self.slots.iter().flatten().map(|(id, _)| *id).collect()
    }

    /// Wakes `id` at `at_us`. A task that is over by then is passed over.
    pub fn wake_at(&mut self, at_us: u64, id: TaskId) {
        self.timers.push(Reverse((at_us, id)));
    }

    /// The next task whose time has come.
    pub fn next_due(&mut self, now_us: u64) -> Option<TaskId> {
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            let is_over = self.get_mut(id).is_none();
            if at > now_us && !is_over {
                return None;
            }
            self.timers.pop();
            if !is_over {
                return Some(id);
            }
        }
        None
    }

    /// When the next task is due; it may be over by then.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_does_not_meet_the_slots_next_user() {
        let mut tasks = Tasks::new(u32::MAX);
        let first = tasks.insert("first");
        assert_eq!(tasks.remove(first), Some("first"));
        let second = tasks.insert("second");
        assert_eq!(first as u32, second as u32);
        assert_eq!(tasks.get_mut(first), None);
        assert_eq!(tasks.remove(first), None);
        assert_eq!(tasks.len(), 1);
    }

    #[test]
    fn timers_pass_over_finished_tasks() {
        let mut tasks = Tasks::new(1);
        let (a, b) = (tasks.insert("a"), tasks.insert("b"));
        tasks.wake_at(10, a);
        tasks.wake_at(20, b);
        tasks.remove(a);
        assert_eq!(tasks.next_due(15), None);
        assert_eq!(tasks.next_due(20), Some(b));
        assert_eq!(tasks.next_deadline_us(), None);
    }
}
