//! Answering other nodes: writes and reads for their coordinators, forwarded requests, listings.

use bytes::Bytes;

use super::coordinate::Hop;
use super::{Node, Origin, Output};
use crate::client::Scan;
use crate::message::{Control, Listed, Message, ReadOutcome, TaskId, WriteOutcome};
use crate::object::Object;
use crate::replica::{hash_of, row_hash, Merge};
use crate::store::Space;
use crate::types::{NodeId, Now, ObjectKey, Position};

/// The most rows one listing looks at before it answers with what it has.
const ROWS_VISITED_MAX: usize = 4096;

impl Node {
    pub(super) fn message(&mut self, now: Now, from: NodeId, message: Message, out: &mut Vec<Output>) {
        self.heard(now, from, out);
        match message {
            Message::Write { task, stamp, .. } if stamp < self.stamp() || self.is_removed(from) => {
                self.tell_ring(from, out);
                if task != 0 {
                    self.send(now, from, Message::Written { task, outcome: WriteOutcome::Stale }, out);
                }
            }
            Message::Read { task, stamp, .. } if stamp < self.stamp() => {
                self.tell_ring(from, out);
                self.send(now, from, Message::ReadResult { task, outcome: ReadOutcome::Stale }, out);
            }
            Message::Write { task, key, object, base, hint_for, stamp } => {
                if stamp > self.stamp() {
                    // Answers that come under the ring that was may be about what is just handed over.
                    self.homes.spares.clear();
                    self.ask_for_ring(now, from, out);
                }
                self.serve_write(now, from, task, &key, &object, base, hint_for, out)
            }
            Message::Written { task, outcome } => self.written(now, from, task, outcome, out),
            Message::Read { task, key, have, .. } => self.serve_read(now, from, task, &key, have, out),
            Message::ReadResult { task, outcome } => self.read_result(now, from, task, outcome, out),
            Message::Control(control) => self.control(now, from, control, out),
        }
    }

    fn control(&mut self, now: Now, from: NodeId, control: Control, out: &mut Vec<Output>) {
        match control {
            Control::Gossip(gossip) => self.gossip(now, from, gossip, out),
            // A request is run once, however often the network brings it.
            Control::Forward { task, .. } if !self.recent_forwards.insert(from, task) => {
                self.metrics.late_messages += 1
            }
            Control::Forward { task, operation, timeout_ms, holds } => {
                let deadline_us = now.mono_us + timeout_ms as u64 * 1000;
                let hop = match holds {
                    0 => Hop::Last,
                    hash => Hop::Told { by: from, hash },
                };
                self.start(now, Origin::Peer(from, task), operation, deadline_us, hop, out);
            }
            Control::Forwarded { task, result } => self.forwarded(now, from, task, result, out),
            Control::ScanRange { task, scan } => {
                let listed = self.list_rows(now, &scan);
                let message = Message::Control(Control::ScanRows { task, listed });
                self.send(now, from, message, out);
            }
            Control::ScanRows { task, listed } => self.scan_rows(now, from, task, listed, out),
            // Nodes with different rings take different rows for shared.
            Control::EntropySums { stamp, .. } | Control::EntropyRows { stamp, .. }
                if stamp != self.stamp() => {}
            Control::EntropySums { from: first, to, sums, .. } => {
                self.entropy_sums(now, from, first as usize..=to as usize, sums, out)
            }
            Control::EntropyRows { from: first, to, rows, .. } => {
                self.entropy_rows(now, from, first, to, rows, out)
            }
            Control::AskDead { number, rows, stamp } => self.ask_dead(now, from, number, &rows, stamp, out),
            Control::DeadAnswer { number, refused } => {
                self.collector.answer(from, number, refused.into_iter().map(usize::from))
            }
            Control::Forget { rows, stamp } => self.forget(rows, stamp, out),
            Control::AskWhole { key, hash, stamp } => self.ask_whole(now, from, key, hash, stamp, out),
            Control::Whole { key, hash, stamp } => self.is_whole_at(from, key, hash, stamp),
            Control::ListRange { task, from: first, to, stamp } => {
                self.serve_list_range(now, from, task, first, to, stamp, out)
            }
            Control::RangeRows { task, page } => self.range_rows(now, from, task, page, out),
            Control::AskOpinion { task, node } => {
                let opinion = Control::Opinion { task, health: self.health(node) };
                self.send(now, from, Message::Control(opinion), out);
            }
            Control::Opinion { task, health } => self.opinion(now, from, task, health, out),
        }
    }

    #[allow(clippy::too_many_arguments)] // The fields of one message.
    fn serve_write(
        &mut self,
        now: Now,
        from: NodeId,
        task: TaskId,
        key: &ObjectKey,
        object: &Bytes,
        base: u64,
        hint_for: Option<NodeId>,
        out: &mut Vec<Output>,
    ) {
        self.metrics.replica_writes += 1;
        let outcome = match self.read_only {
            Some(_) => WriteOutcome::ReadOnly,
            None => match self.replica.take_over(now, key, object, base, self.is_lww(key)) {
                Merge::Changed | Merge::Known => WriteOutcome::Durable,
                Merge::ClockSkew => {
                    self.metrics.clock_refusals += 1;
                    WriteOutcome::ClockSkew
                }
                Merge::Malformed => WriteOutcome::Malformed,
                Merge::Lacking => WriteOutcome::Lacking,
            },
        };
        if let (Some(owner), WriteOutcome::Durable) = (hint_for, outcome) {
            self.add_hint(owner, key);
        }
        if task != 0 {
            self.send(now, from, Message::Written { task, outcome }, out);
        }
    }

    fn serve_read(
        &mut self,
        now: Now,
        from: NodeId,
        task: TaskId,
        key: &ObjectKey,
        have: u64,
        out: &mut Vec<Output>,
    ) {
        self.metrics.replica_reads += 1;
        let outcome = self.replica.compare(key, have);
        self.send(now, from, Message::ReadResult { task, outcome }, out);
    }

    /// Rows of a range with their causality, as many as one answer may hold.
    ///
    /// A position is never split, so the range's next part starts at the position after.
    pub(super) fn list_rows(&mut self, now: Now, scan: &Scan) -> Listed {
        let mut listed = Listed { rows: Vec::new(), count: 0, hash: 0, done_to: scan.to.0 };
        let mut visited = 0;
        let mut last = scan.from;
        let from = scan.from.0.to_be_bytes();
        let to = end_of(scan.to);
        self.replica.store_mut().scan(Space::Data, &from, &to, &mut |row, value| {
            let Ok(key) = ObjectKey::from_row(Bytes::copy_from_slice(row)) else {
                return true;
            };
            let position = key.position();
            let is_full = visited >= ROWS_VISITED_MAX || listed.count >= scan.limit as u64;
            if is_full && position > last {
                listed.done_to = position.0 - 1;
                return false;
            }
            last = position;
            visited += 1;
            if key.bucket() != &scan.bucket[..] {
                return true;
            }
            let Ok(bytes) = value else { return true };
            let Ok(object) = Object::decode(bytes) else { return true };
            listed.count += object.is_live(now.wall_ms) as u64;
            match scan.count_only {
                true => listed.hash = listed.hash.wrapping_add(row_hash(row, hash_of(bytes))),
                false => listed.rows.push((key, object.skeleton().encode())),
            }
            true
        });
        listed
    }
}

/// The greatest row at `position`.
pub(super) fn end_of(position: Position) -> Vec<u8> {
    let mut row = position.0.to_be_bytes().to_vec();
    row.extend_from_slice(&[0xff; 256]);
    row
}
