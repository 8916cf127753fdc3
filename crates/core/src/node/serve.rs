//! Answering other nodes: writes and reads for their coordinators, forwarded requests, listings.

use bytes::Bytes;

use super::{Node, Output};
use crate::client::Scan;
use crate::forwards::HandedOver;
use crate::message::{Control, Listed, Message, ReadOutcome, TaskId, WriteOutcome};
use crate::object::Object;
use crate::replica::{hash_of, row_hash, Merge};
use crate::store::{Space, StoreError};
use crate::tree::{leaf_of, positions};
use crate::types::{NodeId, Now, ObjectKey, Position};

/// The most bytes of them. Large values are read only to learn that they are there.
const BYTES_VISITED_MAX: usize = 2 << 20;

impl Node {
    pub(super) fn message(&mut self, now: Now, from: NodeId, message: Message, out: &mut Vec<Output>) {
        self.heard(now, from, out);
        match message {
            Message::Write { task, stamp, .. } | Message::Claim { task, stamp, .. }
                if stamp < self.stamp() || self.is_removed(from) =>
            {
                self.tell_ring(from, out);
                if task != 0 {
                    self.send(now, from, Message::Written { task, outcome: WriteOutcome::Stale }, out);
                }
            }
            Message::Read { task, stamp, .. } if stamp < self.stamp() => {
                self.tell_ring(from, out);
                self.send(now, from, Message::ReadResult { task, outcome: ReadOutcome::Stale }, out);
            }
            Message::Write { task, key, object, base, hint_for, stamp, term } => {
                if stamp > self.stamp() {
                    // Answers that come under the ring that was may be about what is just handed over.
                    self.homes.spares.clear();
                    self.ask_for_ring(now, from, out);
                }
                self.serve_write(now, from, task, &key, &object, (base, term), hint_for, out)
            }
            Message::Claim { task, key, object, base, term, .. } => {
                let outcome = self.serve_claim(&key, &object, base, term);
                self.send(now, from, Message::Written { task, outcome }, out);
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
            Control::Forward { task, .. } if !self.forwards.is_first(from, task) => {
                self.metrics.late_messages += 1
            }
            Control::Forward { task, operation, left_us, sent_us, holds } => {
                let request = HandedOver { task, operation, left_us, sent_us, holds };
                self.handed_over(now, from, request, out)
            }
            Control::Forwarded { task, result } => self.forwarded(now, from, task, result, out),
            // What was here may have moved to others. With the newer ring they are asked.
            Control::ScanRange { stamp, .. } | Control::ScanKeys { stamp, .. } if stamp < self.stamp() => {
                self.tell_ring(from, out)
            }
            Control::ScanRange { task, part, scan, .. } => {
                let listed = self.list_rows(now, &scan);
                let message = Message::Control(Control::ScanRows { task, part, listed });
                self.send(now, from, message, out);
            }
            Control::ScanKeys { task, part, keys, .. } => {
                let listed = self.list_keys(&keys);
                let message = Message::Control(Control::ScanRows { task, part, listed });
                self.send(now, from, message, out);
            }
            Control::ScanRows { task, part, listed } => self.scan_rows(now, from, task, part, listed, out),
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
        (base, term): (u64, u64),
        hint_for: Option<NodeId>,
        out: &mut Vec<Output>,
    ) {
        self.metrics.replica_writes += 1;
        let refusal = self.refusal_of_home(key, object, base, term);
        let outcome = match (&self.read_only, refusal) {
            (Some(_), _) => WriteOutcome::ReadOnly,
            (None, Some(refusal)) => refusal,
            (None, None) => match self.replica.take_over(now, key, object, base, self.is_lww(key)) {
                Merge::Changed | Merge::Known => WriteOutcome::Durable,
                Merge::ClockSkew => {
                    self.metrics.clock_refusals += 1;
                    WriteOutcome::ClockSkew
                }
                Merge::Malformed => WriteOutcome::Malformed,
                Merge::Lacking => WriteOutcome::Lacking,
            },
        };
        if term > 0 && outcome == WriteOutcome::Durable {
            self.replica.keep_promise(key, term);
        }
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

    /// The live rows of a range with their causality, as many as one answer may hold. Leaves without life are passed
    /// over.
    ///
    /// Positions that share a cursor are never split, so the range's next part starts at the first one after.
    pub(super) fn list_rows(&mut self, now: Now, scan: &Scan) -> Listed {
        let mut page = LivePage::new(scan, now.wall_ms, self.config.tuning.listed_rows);
        #[cfg(feature = "sabotage")]
        {
            page.loses_next = self.config.sabotage == crate::config::Sabotage::LoseRowBehindPage;
        }
        let mut leaves = leaf_of(scan.from)..=leaf_of(scan.to);
        while !leaves.is_empty() {
            let live = self.replica.tree().next_live(&leaves, &scan.bucket, now.wall_ms);
            let Some(live) = live else { break };
            let (first, last) = positions(&live);
            if page.is_full() {
                page.listed.done_to = first.0 - 1;
                #[cfg(feature = "sabotage")]
                if page.loses_next {
                    page.listed.done_to = last.0.min(scan.to.0);
                }
                break;
            }
            let (first, last) = (first.max(scan.from), last.min(scan.to));
            self.replica.store_mut().scan(
                Space::Data,
                &first.0.to_be_bytes(),
                &end_of(last),
                &mut |row, value| page.visit(row, value),
            );
            if page.listed.done_to < last.0 {
                break;
            }
            leaves = live.end() + 1..=*leaves.end();
        }
        self.metrics.scan_rows += page.listed.visited as u64;
        page.listed
    }

    /// What is held under `keys`, with its causality.
    pub(super) fn list_keys(&mut self, keys: &[ObjectKey]) -> Listed {
        let mut listed = Listed { done_to: u64::MAX, ..Listed::default() };
        for key in keys {
            if let Some((object, Some(_))) = self.replica.load_object(key) {
                listed.rows.push((key.clone(), object.skeleton().encode()));
            }
        }
        listed.visited = keys.len() as u32;
        self.metrics.scan_rows += keys.len() as u64;
        listed
    }
}

/// One replica's page in the making.
struct LivePage<'a> {
    scan: &'a Scan,
    wall_ms: u64,
    /// Rows visited at most.
    rows_max: u32,
    listed: Listed,
    visited_bytes: usize,
    /// The position of the last row visited.
    last: Position,
    #[cfg(feature = "sabotage")]
    loses_next: bool,
}

impl LivePage<'_> {
    fn new(scan: &Scan, wall_ms: u64, rows_max: u32) -> LivePage<'_> {
        let listed = Listed { done_to: scan.to.0, ..Listed::default() };
        LivePage {
            scan,
            wall_ms,
            rows_max,
            listed,
            visited_bytes: 0,
            last: scan.from,
            #[cfg(feature = "sabotage")]
            loses_next: false,
        }
    }

    fn is_full(&self) -> bool {
        self.listed.visited >= self.rows_max
            || self.visited_bytes >= BYTES_VISITED_MAX
            || self.listed.count >= self.scan.limit.max(1) as u64
    }

    /// Takes a row. False if the page ends before it: it is full, or the row cannot be read now. One that is corrupt is
    /// passed over: other replicas have it.
    fn visit(&mut self, row: &[u8], value: Result<&Bytes, StoreError>) -> bool {
        let Some(position) = row.first_chunk::<8>().map(|position| Position(u64::from_be_bytes(*position)))
        else {
            return true;
        };
        if self.is_full() && position.cursor() > self.last.cursor() {
            self.listed.done_to = position.cursor_start().0 - 1;
            #[cfg(feature = "sabotage")]
            if self.loses_next {
                self.listed.done_to = position.cursor_end().0.min(self.scan.to.0);
            }
            return false;
        }
        self.last = position;
        self.listed.visited += 1;
        self.visited_bytes += row.len();
        match value {
            Ok(value) => {
                self.visited_bytes += value.len();
                if is_of(row, &self.scan.bucket) {
                    self.take(row, value);
                }
            }
            Err(StoreError::Corrupt { .. }) => {}
            Err(StoreError::Unreadable { .. } | StoreError::ReadOnly { .. }) => {
                self.listed.done_to = position.cursor_start().0.saturating_sub(1);
                return false;
            }
        }
        true
    }

    fn take(&mut self, row: &[u8], value: &Bytes) {
        let Ok(object) = Object::decode(value) else { return };
        if !object.is_live(self.wall_ms) {
            return;
        }
        self.listed.count += 1;
        if self.scan.count_only {
            self.listed.hash = self.listed.hash.wrapping_add(row_hash(row, hash_of(value)));
        } else if let Ok(key) = ObjectKey::from_row(Bytes::copy_from_slice(row)) {
            self.listed.rows.push((key, object.skeleton().encode()));
        }
    }
}

/// True if the key with this row is in `bucket`; the empty name stands for all buckets.
fn is_of(row: &[u8], bucket: &[u8]) -> bool {
    bucket.is_empty()
        || row.get(8).is_some_and(|len| *len as usize == bucket.len()) && row[9..].starts_with(bucket)
}

/// The greatest row at `position`.
pub(super) fn end_of(position: Position) -> Vec<u8> {
    let mut row = position.0.to_be_bytes().to_vec();
    row.extend_from_slice(&[0xff; 256]);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causality::Dot;
    use crate::object::Version;
    use crate::types::ActorId;

    fn row(position: u64, name: u8) -> Vec<u8> {
        [&position.to_be_bytes()[..], b"\x01b", &[name]].concat()
    }

    fn corrupt() -> StoreError {
        StoreError::Corrupt { detail: String::new() }
    }

    #[test]
    fn a_page_ends_where_a_cursor_ends_however_many_keys_share_it() {
        let mut object = Object::default();
        let dot = Dot { counter: 1, actor: ActorId(1) };
        object.0.put(&object.context().clone(), dot, Version::bytes("v"));
        let value = object.encode();
        let (from, to) = (Position(0), Position(u64::MAX));
        let scan = Scan { bucket: "b".into(), from, to, limit: 2, count_only: false };
        let mut page = LivePage::new(&scan, 0, 2048);
        assert!(page.visit(&row(4096, 0), Err(corrupt())), "a corrupt row is passed over");
        assert!((1..=9).all(|name| page.visit(&row(4096 + name as u64 / 4, name), Ok(&value))));
        assert!(!page.visit(&row(8200, 10), Ok(&value)));
        assert_eq!((page.listed.rows.len(), page.listed.done_to), (9, 8191));
        let mut page = LivePage::new(&scan, 0, 2048);
        assert!((0..2048u32).all(|i| page.visit(&row((i as u64) << 12, 0), Err(corrupt()))));
        assert!(!page.visit(&row(u64::MAX, 0), Ok(&value)), "a page without keys ends too");
        assert!(page.listed.rows.is_empty());
    }
}
