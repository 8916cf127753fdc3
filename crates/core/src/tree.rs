//! A hash tree over the rows of a replica, kept up to date by every write.
//!
//! The leaves are equal ranges of positions, four to a slot. A leaf's *sum* is the sum of the hashes of its rows, so a
//! write changes it in O(1) and the order of writes does not matter; an inner node is the sum of the leaves below it.
//! Two replicas that hold the same rows of a range have the same sum there; where they differ, they compare the parts.
//!
//! Rows of buckets with different numbers of replicas are summed apart: two owners compare what both replicate.
//!
//! A leaf is *counted* when its sum is that of the store. A node that stops keeps its tree; after any other end none
//! is, and whoever needs one visits its rows.
//!
//! Beside the sum of a counted leaf stands what lives in it (`census`), by which listings pass over what is dead.
//!
//! Source: Dynamo §4.7. Differs: sums instead of hashes of hashes, one tree for all partitions.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::census::{Census, LiveUntil};
use crate::types::{ObjectKey, Position};

const LEAF_BITS: u32 = 16;
/// Of the record that a node which stops keeps; other ones begin with a number of replicas.
const FORMAT: u8 = 0xc2;
/// Leaves over all positions.
pub const LEAVES: usize = 1 << LEAF_BITS;
/// A range of leaves is compared in at most so many parts at once.
pub const PARTS_MAX: usize = 64;
/// Leaves under one inner node.
const BLOCK: usize = 64;

/// Leaves without what is looked for that one stretch passes through rather than end: to begin another costs as much
/// as visiting some rows.
const GAP_LEAVES: usize = 8;
/// Leaves of one stretch: further ones would be looked at though they are seldom reached.
const STRETCH_LEAVES: usize = 1024;

/// A range of leaves, from 0 to [`LEAVES`] - 1.
pub type Leaves = RangeInclusive<usize>;

/// What the tree sums up of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowSum {
    /// By `replica::row_hash`.
    pub hash: u64,
    pub until: LiveUntil,
}

/// How many replicas buckets have: of the default bucket and those like it, and of the others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    pub default: u8,
    pub others: BTreeMap<Bytes, u8>,
}

impl Sizes {
    fn of(&self, bucket: &[u8]) -> u8 {
        self.others.get(bucket).copied().unwrap_or(self.default)
    }
}

/// The tree. 520 KiB for each number of replicas that a bucket has, and its census.
#[derive(Default, Serialize, Deserialize)]
pub struct HashTree {
    /// [`FORMAT`], in records that this program can read.
    format: u8,
    sizes: Sizes,
    sums: BTreeMap<u8, Sums>,
    census: Census,
    counted: Vec<bool>,
    /// Of each block, how many leaves are not counted.
    uncounted: Vec<u8>,
    /// Leaves touched since the store was last synced: if that fails their rows are as they were before.
    #[serde(skip)]
    touched: Vec<usize>,
}

/// The sums of leaves, and of blocks of leaves.
#[derive(Serialize, Deserialize)]
struct Sums {
    leaves: Vec<u64>,
    blocks: Vec<u64>,
}

impl Sums {
    fn new() -> Sums {
        Sums { leaves: vec![0; LEAVES], blocks: vec![0; LEAVES / BLOCK] }
    }

    fn add(&mut self, leaf: usize, hash: u64) {
        self.leaves[leaf] = self.leaves[leaf].wrapping_add(hash);
        self.blocks[leaf / BLOCK] = self.blocks[leaf / BLOCK].wrapping_add(hash);
    }

    fn sum(&self, leaves: &Leaves) -> u64 {
        let mut sum = 0u64;
        let (mut at, end) = (*leaves.start(), leaves.end() + 1);
        while at < end {
            let is_block = at % BLOCK == 0 && at + BLOCK <= end;
            let (part, len) = if is_block { (self.blocks[at / BLOCK], BLOCK) } else { (self.leaves[at], 1) };
            sum = sum.wrapping_add(part);
            at += len;
        }
        sum
    }
}

/// The leaf that a position lies in.
pub fn leaf_of(position: Position) -> usize {
    (position.0 >> (u64::BITS - LEAF_BITS)) as usize
}

/// The first and the last position of a range of leaves.
pub fn positions(leaves: &Leaves) -> (Position, Position) {
    let first = |leaf: usize| (leaf as u64) << (u64::BITS - LEAF_BITS);
    (Position(first(*leaves.start())), Position(first(*leaves.end()) | (u64::MAX >> LEAF_BITS)))
}

/// Divides a range into `count` parts as equal as can be; fewer if it has fewer leaves.
pub fn parts(leaves: &Leaves, count: usize) -> impl Iterator<Item = Leaves> + use<> {
    let (from, len) = (*leaves.start(), leaves.end() + 1 - leaves.start());
    let count = count.clamp(1, len);
    (0..count).map(move |part| from + part * len / count..=from + (part + 1) * len / count - 1)
}

impl HashTree {
    /// A tree of which nothing is counted.
    pub fn new() -> HashTree {
        let (counted, uncounted) = (vec![false; LEAVES], vec![BLOCK as u8; LEAVES / BLOCK]);
        HashTree { format: FORMAT, counted, uncounted, ..HashTree::default() }
    }

    /// The tree of an empty store: all is counted.
    pub fn of_nothing() -> HashTree {
        let (counted, uncounted) = (vec![true; LEAVES], vec![0; LEAVES / BLOCK]);
        HashTree { format: FORMAT, counted, uncounted, ..HashTree::default() }
    }

    /// False for a tree from a record that another program made.
    pub fn is_whole(&self) -> bool {
        let blocks = LEAVES / BLOCK;
        let is_whole = |sums: &Sums| sums.leaves.len() == LEAVES && sums.blocks.len() == blocks;
        self.format == FORMAT
            && self.counted.len() == LEAVES
            && self.uncounted.len() == blocks
            && self.sums.values().all(is_whole)
    }

    /// Takes over how many replicas buckets have. If that is news, nothing is counted any more.
    pub fn set_sizes(&mut self, sizes: Sizes) {
        if self.sizes != sizes {
            // Nothing was ever counted: there is nothing, whatever the sizes are.
            let is_of_nothing = self.sums.is_empty() && self.uncounted.iter().all(|count| *count == 0);
            let tree = if is_of_nothing { HashTree::of_nothing() } else { HashTree::new() };
            *self = HashTree { sizes, ..tree };
        }
    }

    pub fn is_counted(&self, leaf: usize) -> bool {
        self.counted[leaf]
    }

    /// The leaves from the first to the last of a range that is not counted.
    pub fn uncounted(&self, leaves: &Leaves) -> Option<Leaves> {
        let is_uncounted = |leaf: &usize| !self.counted[*leaf];
        let (from, to) = (*leaves.start(), *leaves.end());
        let blocks = (from / BLOCK..=to / BLOCK).filter(|block| self.uncounted[*block] > 0);
        let mut uncounted = blocks.flat_map(|block| block * BLOCK..(block + 1) * BLOCK);
        let first = uncounted.find(|leaf| leaves.contains(leaf) && is_uncounted(leaf))?;
        let last = (first..=to).rev().find(is_uncounted).unwrap_or(first);
        Some(first..=last)
    }

    /// A row has changed: its hash before and whether it held more than tombstones, and what it is now; `None` if there
    /// was or is none.
    pub fn changed(&mut self, key: &ObjectKey, before: Option<(u64, bool)>, after: Option<RowSum>) {
        let leaf = leaf_of(key.position());
        self.touched.push(leaf);
        if !self.counted[leaf] {
            return;
        }
        let hash = after.map_or(0, |row| row.hash).wrapping_sub(before.map_or(0, |(hash, _)| hash));
        self.add(key.bucket(), leaf, hash);
        let was_kept = before.is_some_and(|(_, is_kept)| is_kept);
        if was_kept && !self.census.remove_kept(key.bucket(), leaf) {
            return self.set_counted(leaf, false);
        }
        self.census.add(key.bucket(), leaf, after.map_or(LiveUntil::NEVER, |row| row.until));
    }

    /// Nobody knows what a row of this leaf was before.
    pub fn forget(&mut self, leaf: usize) {
        self.touched.push(leaf);
        self.set_counted(leaf, false);
    }

    /// The rows of some leaves were visited: `rows` are all of them, with their hashes. Returns whether every leaf that
    /// was counted before had the right sum.
    pub fn count(&mut self, leaves: &Leaves, rows: &[(ObjectKey, RowSum)]) -> bool {
        let mut before = BTreeMap::new();
        for (size, sums) in &mut self.sums {
            let old = sums.leaves[leaves.clone()].to_vec();
            // Most leaves are empty.
            let filled = leaves.clone().zip(&old).filter(|(_, old)| **old != 0);
            filled.for_each(|(leaf, old)| sums.add(leaf, old.wrapping_neg()));
            before.insert(*size, old);
        }
        self.census.clear(leaves);
        for (key, row) in rows {
            let leaf = leaf_of(key.position());
            self.add(key.bucket(), leaf, row.hash);
            self.census.add(key.bucket(), leaf, row.until);
        }
        let is_right = self.sums.iter().all(|(size, sums)| {
            let new = &sums.leaves[leaves.clone()];
            let counted = &self.counted[leaves.clone()];
            match before.get(size) {
                Some(old) => {
                    counted.iter().zip(old.iter().zip(new)).all(|(is, (old, new))| !is || old == new)
                }
                None => counted.iter().zip(new).all(|(is, new)| !is || *new == 0),
            }
        });
        leaves.clone().for_each(|leaf| self.set_counted(leaf, true));
        self.touched.extend(leaves.clone());
        is_right
    }

    /// The sum of a range of counted leaves over the buckets whose number of replicas `is_shared` accepts.
    pub fn sum(&self, leaves: &Leaves, is_shared: impl Fn(u8) -> bool) -> u64 {
        let shared = self.sums.iter().filter(|(size, _)| is_shared(**size));
        shared.fold(0, |sum, (_, sums)| sum.wrapping_add(sums.sum(leaves)))
    }

    /// The next stretch of a range of leaves in which rows of `bucket` may be live; `None` if there is none. The empty
    /// name stands for all buckets.
    pub fn next_live(&self, leaves: &Leaves, bucket: &[u8], wall_ms: u64) -> Option<Leaves> {
        let cells = self.census.choose(bucket);
        let may_live = |leaf: usize| cells.iter().any(|cells| cells.may_live(leaf, wall_ms));
        let is_wanted = |leaf: usize| !self.counted[leaf] || may_live(leaf);
        let first = leaves.clone().find(|leaf| is_wanted(*leaf))?;
        Some(stretch(first, *leaves.end(), is_wanted))
    }

    /// How many rows of `bucket` may be live in those counted leaves that are wanted, and about how many of them
    /// expire. `None` if the bucket has no cells of its own. O(leaves).
    pub fn count_live(
        &self,
        bucket: &[u8],
        wall_ms: u64,
        mut is_wanted: impl FnMut(usize) -> bool,
    ) -> Option<(u64, u64)> {
        let cells = self.census.own_cells(bucket)?;
        let counts = (0..LEAVES).filter(|leaf| is_wanted(*leaf)).map(|leaf| cells.count(leaf, wall_ms));
        Some(counts.fold((0, 0), |(rows, expiring), (more, of_them)| (rows + more, expiring + of_them)))
    }

    /// The next stretch of a range of leaves that have rows, or are not counted; `None` if there is none.
    pub fn next_filled(&self, leaves: &Leaves) -> Option<Leaves> {
        let first = self.first_filled(leaves)?;
        Some(stretch(first, *leaves.end(), |leaf| self.is_filled(leaf)))
    }

    fn is_filled(&self, leaf: usize) -> bool {
        // The sum of rows is as good as never 0.
        !self.counted[leaf] || self.sums.values().any(|sums| sums.leaves[leaf] != 0)
    }

    /// The first leaf of a range that has rows or is not counted. Passes over whole blocks of empty ones at once.
    fn first_filled(&self, leaves: &Leaves) -> Option<usize> {
        let is_empty = |block: usize| {
            self.uncounted[block] == 0 && self.sums.values().all(|sums| sums.blocks[block] == 0)
        };
        let mut leaf = *leaves.start();
        while leaf <= *leaves.end() {
            if leaf.is_multiple_of(BLOCK) && is_empty(leaf / BLOCK) {
                leaf += BLOCK;
            } else if self.is_filled(leaf) {
                return Some(leaf);
            } else {
                leaf += 1;
            }
        }
        None
    }

    /// The store has kept what was changed.
    pub fn staged(&mut self) {
        self.touched.clear();
    }

    /// The store has undone what was changed since [`HashTree::staged`].
    pub fn undone(&mut self) {
        for leaf in std::mem::take(&mut self.touched) {
            self.set_counted(leaf, false);
        }
    }

    fn set_counted(&mut self, leaf: usize, is_counted: bool) {
        if self.counted[leaf] != is_counted {
            self.counted[leaf] = is_counted;
            let uncounted = &mut self.uncounted[leaf / BLOCK];
            *uncounted = if is_counted { *uncounted - 1 } else { *uncounted + 1 };
        }
    }

    fn add(&mut self, bucket: &[u8], leaf: usize, hash: u64) {
        self.sums.entry(self.sizes.of(bucket)).or_insert_with(Sums::new).add(leaf, hash);
    }
}

/// From a wanted leaf to the last wanted one before a gap.
fn stretch(first: usize, end: usize, is_wanted: impl Fn(usize) -> bool) -> Leaves {
    let mut last = first;
    for leaf in first + 1..=end.min(first + STRETCH_LEAVES) {
        if is_wanted(leaf) {
            last = leaf;
        } else if leaf - last > GAP_LEAVES {
            break;
        }
    }
    first..=last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<ObjectKey> {
        (0..count).map(|i| ObjectKey::new(b"b", format!("key{i}").as_bytes()).unwrap()).collect()
    }

    fn row(hash: u64) -> Option<RowSum> {
        Some(RowSum { hash, until: LiveUntil::FOREVER })
    }

    #[test]
    fn parts_cover_a_range_without_gaps() {
        for (leaves, count) in [(0..=63, 64), (5..=5, 64), (10..=200, 64), (0..=LEAVES - 1, 64), (3..=9, 2)] {
            let parts: Vec<Leaves> = parts(&leaves, count).collect();
            assert_eq!(parts.len(), count.min(leaves.end() + 1 - leaves.start()));
            assert_eq!((parts[0].start(), parts[parts.len() - 1].end()), (leaves.start(), leaves.end()));
            assert!(parts.windows(2).all(|pair| pair[0].end() + 1 == *pair[1].start()));
            assert!(parts.iter().all(|part| !part.is_empty()));
        }
        let (from, to) = positions(&(0..=LEAVES - 1));
        assert_eq!((from, to), (Position(0), Position(u64::MAX)));
        assert_eq!((leaf_of(positions(&(7..=7)).0), leaf_of(positions(&(7..=7)).1)), (7, 7));
    }

    #[test]
    fn what_writes_keep_up_is_what_a_count_finds() {
        let keys = keys(300);
        let all = 0..=LEAVES - 1;
        let mut tree = HashTree::new();
        assert_eq!(tree.uncounted(&all), Some(all.clone()));
        tree.count(&all, &[]);
        for (i, key) in keys.iter().enumerate() {
            tree.changed(key, None, row(i as u64));
        }
        for (i, key) in keys.iter().enumerate().take(100) {
            let after = if i % 2 == 0 { row(7 * i as u64) } else { None };
            tree.changed(key, Some((i as u64, true)), after);
        }
        let rows: Vec<(ObjectKey, RowSum)> = (0..300)
            .filter(|i| *i >= 100 || i % 2 == 0)
            .filter_map(|i| Some((keys[i].clone(), row(if i < 100 { 7 * i as u64 } else { i as u64 })?)))
            .collect();
        let sum = tree.sum(&all, |_| true);
        assert_eq!(sum, rows.iter().map(|(_, row)| row.hash).sum::<u64>());
        assert!(tree.count(&all, &rows));
        assert_eq!((tree.sum(&all, |_| true), tree.sum(&all, |_| false)), (sum, 0));
        let by_parts = parts(&all, 50).map(|part| tree.sum(&part, |_| true));
        assert_eq!(by_parts.fold(0, u64::wrapping_add), sum);
        assert!(!tree.count(&all, &rows[9..]), "missing rows are noticed");
    }

    #[test]
    fn the_next_filled_leaf_is_found_across_empty_blocks() {
        let mut tree = HashTree::new();
        let all = 0..=LEAVES - 1;
        tree.count(&all, &[]);
        assert_eq!(tree.next_filled(&all), None);
        let mut filled: Vec<usize> = Vec::new();
        for (i, key) in keys(40).iter().enumerate() {
            tree.changed(key, None, row(i as u64 + 1));
            filled.push(leaf_of(key.position()));
        }
        // One that is not counted is looked for as well.
        tree.staged();
        filled.push(3 * BLOCK + 1);
        tree.set_counted(3 * BLOCK + 1, false);
        filled.sort_unstable();
        for from in (0..LEAVES).step_by(37).chain([0, BLOCK - 1, BLOCK, LEAVES - 1]) {
            let to = (from + 20 * BLOCK + 5).min(LEAVES - 1);
            let want = filled.iter().copied().find(|leaf| (from..=to).contains(leaf));
            assert_eq!(tree.next_filled(&(from..=to)).map(|leaves| *leaves.start()), want, "{from} to {to}");
        }
    }

    #[test]
    fn what_the_store_undid_is_counted_anew() {
        let key = &keys(1)[0];
        let leaf = leaf_of(key.position());
        let mut tree = HashTree::new();
        tree.count(&(0..=LEAVES - 1), &[]);
        tree.staged();
        tree.changed(key, None, row(3));
        tree.staged();
        assert_eq!(tree.uncounted(&(0..=LEAVES - 1)), None);
        tree.changed(key, Some((3, true)), None);
        tree.undone();
        assert_eq!(tree.uncounted(&(0..=LEAVES - 1)), Some(leaf..=leaf));
        tree.count(&(leaf..=leaf), &[(key.clone(), row(3).unwrap())]);
        assert_eq!(tree.sum(&(leaf..=leaf), |_| true), 3);
    }

    #[test]
    fn buckets_with_other_numbers_of_replicas_are_summed_apart() {
        let mut tree = HashTree::new();
        tree.set_sizes(Sizes { default: 3, others: BTreeMap::from([(Bytes::from("two"), 2)]) });
        let all = 0..=LEAVES - 1;
        tree.count(&all, &[]);
        tree.changed(&ObjectKey::new(b"two", b"a").unwrap(), None, row(10));
        tree.changed(&ObjectKey::new(b"b", b"a").unwrap(), None, row(100));
        assert_eq!((tree.sum(&all, |n| n >= 2), tree.sum(&all, |n| n >= 3)), (110, 100));
        tree.set_sizes(Sizes { default: 3, others: BTreeMap::new() });
        assert!(tree.uncounted(&all).is_some());
    }

    #[test]
    fn stretches_pass_over_what_is_dead_or_nothing() {
        let at = |leaf: usize| positions(&(leaf..=leaf)).0;
        let mut tree = HashTree::of_nothing();
        tree.set_sizes(Sizes { default: 3, others: BTreeMap::new() });
        let all = 0..=LEAVES - 1;
        assert_eq!((tree.next_filled(&all), tree.next_live(&all, b"b", 0)), (None, None), "still of nothing");
        let keys = keys(9);
        let mut leaves: Vec<usize> = keys.iter().map(|key| leaf_of(key.position())).collect();
        leaves.sort_unstable();
        let until = |i: usize| if i == 0 { LiveUntil::NEVER } else { LiveUntil::FOREVER };
        for key in &keys {
            let i = leaves.iter().position(|leaf| *leaf == leaf_of(key.position())).unwrap();
            tree.changed(key, None, Some(RowSum { hash: 5, until: until(i) }));
        }
        let stretches = |next: &dyn Fn(&Leaves) -> Option<Leaves>| {
            let (mut found, mut from) = (Vec::new(), 0);
            while let Some(stretch) = next(&(from..=LEAVES - 1)) {
                from = stretch.end() + 1;
                found.push(stretch);
            }
            found
        };
        let filled = stretches(&|leaves| tree.next_filled(leaves));
        assert!(leaves.iter().all(|leaf| filled.iter().any(|stretch| stretch.contains(leaf))));
        assert_eq!((filled[0].start(), filled[filled.len() - 1].end()), (&leaves[0], &leaves[8]));
        let live = stretches(&|leaves| tree.next_live(leaves, b"b", 0));
        assert_eq!(live[0].start(), &leaves[1]);
        assert_eq!(
            stretches(&|leaves| tree.next_live(leaves, b"", 0)),
            live,
            "all buckets: nothing dead either"
        );
        assert_eq!(tree.next_live(&all, b"c", 0), None);
        tree.forget(leaf_of(at(3)));
        assert_eq!(tree.next_live(&all, b"c", 0), Some(3..=3), "nobody knows what lives there");
    }
}
