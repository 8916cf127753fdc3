//! Comparing partitions with their other owners by their hash trees, top down, and mending what differs.
//!
//! ```text
//!  A ── sum of a partition ──► B    the same: "same"
//!  A ◄── sums of its 64 parts ── B    else; A compares them with its own
//!  A ── sums, or of a leaf the rows with their hashes ──► B    for each part that differs
//!                                B    mends the keys that differ, like a stale read: both sides merge
//! ```
//! Who gets sums of parts goes one step down in those that differ, so the two take turns until they are at the leaves.
//!
//! Beside that the tree is checked against the rows, a few at a time: what rots on the disk is found though nobody
//! reads it. Source: Dynamo §4.7.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::serve::end_of;
use super::{Node, Origin, Output};
use crate::census::LiveUntil;
use crate::detector::Health;
use crate::message::{Control, Message};
use crate::object::Object;
use crate::replica::{hash_of, row_hash};
use crate::ring::Ring;
use crate::store::{Space, StoreError};
use crate::tree::{leaf_of, parts, positions, Leaves, RowSum, Sizes, LEAVES, PARTS_MAX};
use crate::types::{NodeId, Now, ObjectKey, Partition, Position};

/// Leaves that it visits at most.
const CHECKED_LEAVES: usize = 8192;
/// Bytes of a message beside its sums or rows, roughly.
const MESSAGE_BYTES: usize = 32;

impl Node {
    /// Compares one partition with one other owner, and checks a part of the tree.
    pub(super) fn compare_partition(&mut self, now: Now, out: &mut Vec<Output>) {
        self.check_tree(now);
        let Some(ring) = &self.ring else { return };
        let n = self.replicas_max().min(ring.nodes().len());
        let me = self.membership.me;
        let others = |partition: Partition| {
            let owners = &ring.preference_list(partition)[..n];
            match owners.contains(&me) {
                true => owners.iter().copied().filter(|&owner| owner != me).collect(),
                false => Vec::new(),
            }
        };
        let next = self.entropy.next(now, ring.partitions(), n - 1, others);
        self.note_progress(now);
        let Some((partition, peer)) = next else { return };
        if self.detector.health(peer) != Health::Up {
            return self.entropy.compared(partition, peer, false);
        }
        self.metrics.entropy_rounds += 1;
        let leaves = self.leaves_of(partition);
        let sum = self.sum(&leaves, peer);
        self.send_sums(now, peer, &leaves, vec![sum], out);
    }

    /// Tells the tree how many replicas buckets have.
    pub(super) fn size_tree(&mut self) {
        let Some(state) = self.ring.as_ref().map(Ring::state) else { return };
        let default = state.usual.n;
        let own = state.replication.keys().map(|bucket| (bucket.clone(), state.serving(bucket).n));
        let sizes = Sizes { default, others: own.filter(|(_, n)| *n != default).collect() };
        self.replica.tree_mut().set_sizes(sizes);
    }

    fn note_progress(&mut self, now: Now) {
        let (same, known) = self.entropy.in_sync();
        self.metrics.entropy_in_sync = same;
        self.metrics.entropy_compared = known;
        self.metrics.entropy_round_age_ms =
            self.entropy.round_done_us().map_or(0, |done_us| (now.mono_us - done_us) / 1000);
    }

    pub(super) fn replicas_max(&self) -> usize {
        self.placed_ring().sizes().last().copied().unwrap_or(1)
    }

    fn leaves_of(&self, partition: Partition) -> Leaves {
        let ring = self.placed_ring();
        leaf_of(ring.start(partition))..=leaf_of(ring.end(partition))
    }

    /// The partition that all of `leaves` lie in, if there is one and the range is one.
    fn partition_around(&self, leaves: &Leaves) -> Option<Partition> {
        if leaves.is_empty() || *leaves.end() >= LEAVES {
            return None;
        }
        let ring = self.ring.as_ref()?;
        let (from, to) = positions(leaves);
        let partition = ring.partition_of(from);
        (ring.partition_of(to) == partition).then_some(partition)
    }

    /// The sum of what this node and `peer` both replicate in a range of leaves of one partition.
    fn sum(&mut self, leaves: &Leaves, peer: NodeId) -> u64 {
        if let Some(uncounted) = self.replica.tree().uncounted(leaves) {
            self.count_leaves(uncounted, usize::MAX, None);
        }
        let ring = self.placed_ring();
        let owners = ring.preference_at(positions(leaves).0);
        let me = self.membership.me;
        let is_shared = |n: u8| {
            let owners = &owners[..owners.len().min(n as usize)];
            owners.contains(&me) && owners.contains(&peer)
        };
        self.replica.tree().sum(leaves, is_shared)
    }

    /// Visits the rows of `leaves`, or of the first of them if there are many rows, and sums them up. Returns how far
    /// it came, and how many rows it visited. With the time it looks for dead objects too.
    fn count_leaves(&mut self, leaves: Leaves, rows_max: usize, now: Option<Now>) -> (usize, usize) {
        let now = now.filter(|_| self.collector.wants_more());
        let mut dead = Vec::new();
        let (from, to) = positions(&leaves);
        let (first, last) = (from.0.to_be_bytes(), end_of(to));
        let (mut rows, mut corrupt, mut done_to) = (Vec::new(), Vec::new(), *leaves.end());
        let mut in_leaf = *leaves.start();
        let mut is_whole = true;
        self.replica.store_mut().scan(Space::Data, &first, &last, &mut |row, value| {
            let Ok(key) = ObjectKey::from_row(Bytes::copy_from_slice(row)) else { return true };
            let leaf = leaf_of(key.position());
            if leaf > in_leaf && rows.len() >= rows_max {
                done_to = leaf - 1;
                return false;
            }
            in_leaf = leaf;
            match value {
                Ok(value) => {
                    let hash = hash_of(value);
                    let object = Object::decode(value).ok();
                    let until = object.as_ref().map_or(LiveUntil::NEVER, LiveUntil::of);
                    rows.push((key.clone(), RowSum { hash: row_hash(row, hash), until }));
                    let is_dead = |now: Now| object.is_some_and(|object| !object.is_live(now.wall_ms));
                    if now.is_some_and(is_dead) {
                        dead.push((key, hash));
                    }
                }
                Err(error @ StoreError::Corrupt { .. }) => corrupt.push((key, error)),
                Err(StoreError::Unreadable { .. } | StoreError::ReadOnly { .. }) => is_whole = false,
            }
            is_whole
        });
        if let Some(now) = now {
            self.found_dead(now, dead);
        }
        if !is_whole {
            // Some rows are there that cannot be read now: the sums stay as they are until the next pass.
            return (done_to, rows.len() + corrupt.len());
        }
        let is_right = self.replica.tree_mut().count(&(*leaves.start()..=done_to), &rows);
        // The sum of a row that has gone corrupt since was right.
        self.metrics.entropy_miscounts += (!is_right && corrupt.is_empty()) as u64;
        let visited = rows.len() + corrupt.len();
        self.mend_corrupt(corrupt);
        (done_to, visited)
    }

    /// Has corrupt rows fetched from an owner that can be reached. What others own is dropped: nobody can read it.
    fn mend_corrupt(&mut self, corrupt: Vec<(ObjectKey, StoreError)>) {
        let me = self.membership.me;
        for (key, error) in corrupt {
            self.replica.note_unread(&key, error);
            if !self.holds(me, &key) {
                self.drop_if_foreign(&key);
                continue;
            }
            let n = self.replicas_of(&key);
            let owners = &self.placed_ring().preference_at(key.position())[..n];
            let peer = owners.iter().copied().find(|id| *id != me && self.health(*id) == Health::Up);
            if let Some(peer) = peer {
                self.entropy.differs(key, peer);
            }
        }
    }

    /// Checks the next part of the tree, as far as there are rows.
    fn check_tree(&mut self, now: Now) {
        if self.ring.is_none() {
            return;
        }
        let last = (self.entropy.check_from + CHECKED_LEAVES).min(LEAVES) - 1;
        let mut rows_left = self.config.tuning.checked_rows;
        while rows_left > 0 {
            let next = self.replica.tree().next_filled(&(self.entropy.check_from..=last));
            let Some(leaves) = next else {
                self.entropy.check_from = last + 1;
                break;
            };
            let (done_to, rows) = self.count_leaves(leaves, rows_left, Some(now));
            self.entropy.check_from = done_to + 1;
            rows_left = rows_left.saturating_sub(rows);
            if done_to == last {
                break;
            }
        }
        if self.entropy.check_from >= LEAVES {
            self.entropy.check_from = 0;
            self.collector.next_pass();
        }
    }

    /// Calls `visit` with every row between two positions that this node and `peer` both replicate.
    fn shared_rows(
        &mut self,
        from: Position,
        to: Position,
        peer: NodeId,
        mut visit: impl FnMut(ObjectKey, u64),
    ) {
        let Some(ring) = &self.ring else { return };
        let me = self.membership.me;
        let mut corrupt = Vec::new();
        let (first, last) = (from.0.to_be_bytes(), end_of(to));
        self.replica.store_mut().scan(Space::Data, &first, &last, &mut |row, value| {
            let Ok(key) = ObjectKey::from_row(Bytes::copy_from_slice(row)) else {
                return true;
            };
            let n = (ring.replication(key.bucket()).n as usize).min(ring.nodes().len());
            let owners = &ring.preference_at(key.position())[..n];
            if owners.contains(&me) && owners.contains(&peer) {
                match value {
                    Ok(value) => visit(key, row_hash(row, hash_of(value))),
                    Err(error) => corrupt.push((key, error)),
                }
            }
            true
        });
        for (key, error) in corrupt {
            self.replica.note_unread(&key, error);
            self.entropy.differs(key, peer);
        }
    }

    fn send_sums(&mut self, now: Now, peer: NodeId, leaves: &Leaves, sums: Vec<u64>, out: &mut Vec<Output>) {
        let (from, to) = (*leaves.start() as u32, *leaves.end() as u32);
        self.metrics.entropy_bytes += (MESSAGE_BYTES + 8 * sums.len()) as u64;
        let message = Control::EntropySums { from, to, sums, stamp: self.stamp() };
        self.send(now, peer, Message::Control(message), out);
    }

    /// A peer's sums of the parts of a range of leaves; none if all of ours there are the same.
    pub(super) fn entropy_sums(
        &mut self,
        now: Now,
        peer: NodeId,
        leaves: Leaves,
        sums: Vec<u64>,
        out: &mut Vec<Output>,
    ) {
        let Some(partition) = self.partition_around(&leaves) else { return };
        if sums.is_empty() {
            return self.entropy.compared(partition, peer, true);
        }
        let is_first = sums.len() == 1;
        let mut differing = Vec::new();
        for (part, theirs) in parts(&leaves, sums.len().min(PARTS_MAX)).zip(sums) {
            if self.sum(&part, peer) != theirs {
                differing.push(part);
            }
        }
        if is_first {
            match differing.is_empty() {
                true => self.send_sums(now, peer, &leaves, Vec::new(), out),
                false => self.metrics.entropy_differences += 1,
            }
        }
        self.entropy.compared(partition, peer, differing.is_empty());
        for part in differing {
            self.descend(now, peer, &part, out);
        }
    }

    /// Tells `peer` more of a range of leaves in which its sum differs.
    fn descend(&mut self, now: Now, peer: NodeId, leaves: &Leaves, out: &mut Vec<Output>) {
        if leaves.start() < leaves.end() {
            let sums = parts(leaves, PARTS_MAX).map(|part| self.sum(&part, peer)).collect();
            return self.send_sums(now, peer, leaves, sums, out);
        }
        let (from, to) = positions(leaves);
        let mut rows = Vec::new();
        self.shared_rows(from, to, peer, |key, hash| rows.push((key, hash)));
        let bytes: usize = rows.iter().map(|(key, _)| key.row().len() + 8).sum();
        self.metrics.entropy_bytes += (MESSAGE_BYTES + bytes) as u64;
        let message = Control::EntropyRows { from: from.0, to: to.0, rows, stamp: self.stamp() };
        self.send(now, peer, Message::Control(message), out);
    }

    pub(super) fn entropy_rows(
        &mut self,
        now: Now,
        peer: NodeId,
        from: u64,
        to: u64,
        rows: Vec<(ObjectKey, u64)>,
        out: &mut Vec<Output>,
    ) {
        let mut theirs: BTreeMap<ObjectKey, u64> = rows.into_iter().collect();
        let mut differing = Vec::new();
        self.shared_rows(Position(from), Position(to), peer, |key, hash| match theirs.remove(&key) {
            Some(other) if other == hash => {}
            _ => differing.push(key),
        });
        differing.extend(theirs.into_keys());
        for key in differing {
            self.metrics.entropy_keys += 1;
            self.entropy.differs(key, peer);
        }
        self.start_repairs(now, out);
    }

    pub(super) fn start_repairs(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.ring.is_none() || self.read_only.is_some() {
            return;
        }
        while let Some((key, peer)) = self.entropy.start_repair(self.config.tuning.repairs) {
            match self.detector.health(peer) {
                Health::Up => self.repair_with(now, Origin::Repair, key, peer, out),
                _ => self.entropy.end_repair(),
            }
        }
    }
}
