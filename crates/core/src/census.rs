//! Until when any row can be live, for each leaf of the ring and each bucket: listings pass over leaves without life.
//!
//! A *leaf* is one of the equal ranges of positions that the hash tree sums up. Its *cell* counts the rows that hold
//! more than tombstones, and knows the latest time at which one of them expires. Both change in O(1) with every write.
//! Deleted rows count no more, so a leaf without any other row is passed over; expired rows are passed over as soon as
//! the last of the leaf has expired. What lies between, dead rows beside live ones, is visited: at most a leaf's share.
//!
//! The time is an upper bound: a row that is overwritten leaves its expiry behind until the leaf is counted anew.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::object::{Object, Value};

/// Buckets with cells of their own, 768 KiB each; all others share one set. Fewer: a small bucket is listed as slowly
/// as the large ones that share its cells. More: memory.
const BUCKETS_MAX: usize = 16;

/// Seconds since 1970 from which on no version of a row is live, rounded up; 0: all are tombstones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct LiveUntil(u32);

impl LiveUntil {
    /// Nothing but tombstones.
    pub const NEVER: LiveUntil = LiveUntil(0);
    /// Something that does not expire.
    pub const FOREVER: LiveUntil = LiveUntil(u32::MAX);

    /// When the last version of `object` expires.
    pub fn of(object: &Object) -> LiveUntil {
        let kept = object.0.values().iter().filter(|(_, version)| version.value != Value::Tombstone);
        let until = kept.map(|(_, version)| match version.expires_ms {
            Some(expires_ms) => LiveUntil(u32::try_from(expires_ms.div_ceil(1000)).unwrap_or(u32::MAX)),
            None => LiveUntil::FOREVER,
        });
        until.max().unwrap_or(LiveUntil::NEVER)
    }

    /// The same of the object in these bytes; of other bytes nothing is live.
    pub fn of_bytes(object: &Bytes) -> LiveUntil {
        Object::decode(object).map_or(LiveUntil::NEVER, |object| LiveUntil::of(&object))
    }

    /// True if there is more than tombstones.
    pub fn is_kept(self) -> bool {
        self > LiveUntil::NEVER
    }

    /// True if a version may be live.
    fn covers(self, wall_ms: u64) -> bool {
        self == LiveUntil::FOREVER || wall_ms < self.0 as u64 * 1000
    }
}

/// What lives in one leaf.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Cell {
    kept: u32,
    /// About how many of them expire: too many after rows that expire were overwritten, until the leaf is counted anew.
    expiring: u32,
    until: LiveUntil,
}

/// The cells of all leaves. A leaf behind the last of a list has none.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Census {
    buckets: BTreeMap<Bytes, Vec<Cell>>,
    others: Vec<Cell>,
}

/// The cells of one bucket, or of those that share them.
#[derive(Clone, Copy)]
pub struct Cells<'a>(&'a [Cell]);

impl Cells<'_> {
    /// How many rows of the leaf may be live, and about how many of them expire.
    pub fn count(&self, leaf: usize, wall_ms: u64) -> (u64, u64) {
        match self.0.get(leaf).filter(|cell| cell.until.covers(wall_ms)) {
            Some(cell) => (cell.kept as u64, cell.expiring as u64),
            None => (0, 0),
        }
    }

    /// True if a row of the leaf may be live.
    pub fn may_live(&self, leaf: usize, wall_ms: u64) -> bool {
        self.0.get(leaf).is_some_and(|cell| cell.kept > 0 && cell.until.covers(wall_ms))
    }
}

impl Census {
    /// The cells that count the rows of `bucket`.
    pub fn cells(&self, bucket: &[u8]) -> Cells<'_> {
        Cells(self.buckets.get(bucket).unwrap_or(&self.others))
    }

    /// All cells that count rows of `bucket`; the empty name stands for all buckets.
    pub fn choose(&self, bucket: &[u8]) -> Vec<Cells<'_>> {
        match bucket.is_empty() {
            true => self.buckets.values().chain([&self.others]).map(|cells| Cells(cells)).collect(),
            false => vec![self.cells(bucket)],
        }
    }

    /// The cells that count the rows of `bucket` alone; `None` if it shares cells, or has none.
    pub fn own_cells(&self, bucket: &[u8]) -> Option<Cells<'_>> {
        self.buckets.get(bucket).map(|cells| Cells(cells))
    }

    /// A row of `bucket` has come to `leaf`.
    pub fn add(&mut self, bucket: &[u8], leaf: usize, until: LiveUntil) {
        if until.is_kept() {
            let cell = self.cell(bucket, leaf);
            cell.kept += 1;
            cell.until = cell.until.max(until);
            cell.expiring += (until != LiveUntil::FOREVER) as u32;
        }
    }

    /// A row of `bucket` with more than tombstones has left `leaf`. False if none was counted there: the leaf must be
    /// counted anew.
    pub fn remove_kept(&mut self, bucket: &[u8], leaf: usize) -> bool {
        let cell = self.cell(bucket, leaf);
        let Some(kept) = cell.kept.checked_sub(1) else { return false };
        cell.kept = kept;
        cell.expiring = cell.expiring.min(kept);
        if kept == 0 {
            cell.until = LiveUntil::NEVER;
        }
        true
    }

    /// Forgets all rows of some leaves.
    pub fn clear(&mut self, leaves: &RangeInclusive<usize>) {
        for cells in self.buckets.values_mut().chain([&mut self.others]) {
            let end = cells.len().min(leaves.end() + 1);
            if *leaves.start() < end {
                cells[*leaves.start()..end].fill(Cell::default());
            }
        }
    }

    fn cell(&mut self, bucket: &[u8], leaf: usize) -> &mut Cell {
        if !self.buckets.contains_key(bucket) && self.buckets.len() < BUCKETS_MAX {
            self.buckets.insert(Bytes::copy_from_slice(bucket), Vec::new());
        }
        let cells = self.buckets.get_mut(bucket).unwrap_or(&mut self.others);
        if cells.len() <= leaf {
            cells.resize((leaf + 1).next_power_of_two(), Cell::default());
        }
        &mut cells[leaf]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Version;

    fn until(expires_ms: Option<u64>) -> LiveUntil {
        let mut object = Object::default();
        let dot = crate::causality::Dot { counter: 1, actor: crate::types::ActorId(1) };
        object.0.put(&object.context().clone(), dot, Version { expires_ms, ..Version::bytes("v") });
        LiveUntil::of(&object)
    }

    #[test]
    fn a_leaf_lives_until_its_last_row_has_expired_or_is_deleted() {
        let mut census = Census::default();
        census.add(b"b", 7, until(Some(4_001)));
        census.add(b"b", 7, until(Some(2_000)));
        census.add(b"b", 7, LiveUntil::NEVER);
        let lives = |census: &Census, wall_ms| census.cells(b"b").may_live(7, wall_ms);
        assert!(lives(&census, 4_999) && !lives(&census, 5_000), "rounded up to a second");
        assert!(!census.cells(b"b").may_live(6, 0) && !census.cells(b"b").may_live(70_000, 0));
        assert!(!census.cells(b"other").may_live(7, 0), "another bucket");
        census.add(b"b", 7, until(None));
        assert!(lives(&census, u64::MAX));
        assert!((0..3).all(|_| census.remove_kept(b"b", 7)));
        assert!(!lives(&census, 0) && !census.remove_kept(b"b", 7));
        census.add(b"b", 7, until(Some(9_000)));
        assert!(!lives(&census, 9_000), "what was forgotten leaves no time behind");
        census.clear(&(7..=7));
        assert!(!lives(&census, 0));
    }

    #[test]
    fn rows_are_counted_for_those_who_only_want_to_know_about() {
        let mut census = Census::default();
        assert!(census.own_cells(b"b").is_none());
        [until(None), until(Some(4_000)), until(Some(9_000))]
            .into_iter()
            .for_each(|until| census.add(b"b", 7, until));
        let count = |census: &Census, wall_ms| census.own_cells(b"b").unwrap().count(7, wall_ms);
        assert_eq!(count(&census, 5_000), (3, 2));
        census.remove_kept(b"b", 7);
        census.remove_kept(b"b", 7);
        assert_eq!(count(&census, 5_000), (1, 1), "never more than there are");
        census.clear(&(7..=7));
        census.add(b"b", 7, until(Some(4_000)));
        assert_eq!((count(&census, 3_000), count(&census, 4_000)), ((1, 1), (0, 0)));
    }

    #[test]
    fn many_buckets_share_the_last_cells() {
        let mut census = Census::default();
        for i in 0..BUCKETS_MAX + 2 {
            census.add(i.to_string().as_bytes(), 1, LiveUntil::FOREVER);
        }
        let lives = |name: usize| census.cells(name.to_string().as_bytes()).may_live(1, 0);
        assert!((0..BUCKETS_MAX + 2).all(lives) && lives(99), "one that shares cells may live");
        assert_eq!(LiveUntil::of(&Object::default()), LiveUntil::NEVER);
        assert_eq!(until(Some(u64::MAX)), LiveUntil::FOREVER);
    }
}
