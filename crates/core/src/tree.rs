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
//! Source: Dynamo §4.7. Differs: sums instead of hashes of hashes, one tree for all partitions.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{ObjectKey, Position};

const LEAF_BITS: u32 = 16;
/// Leaves over all positions.
pub const LEAVES: usize = 1 << LEAF_BITS;
/// A range of leaves is compared in at most so many parts at once.
pub const PARTS_MAX: usize = 64;
/// Leaves under one inner node.
const BLOCK: usize = 64;

/// A range of leaves, from 0 to [`LEAVES`] - 1.
pub type Leaves = RangeInclusive<usize>;

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

/// The tree. 520 KiB for each number of replicas that a bucket has.
#[derive(Default, Serialize, Deserialize)]
pub struct HashTree {
    sizes: Sizes,
    sums: BTreeMap<u8, Sums>,
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
        HashTree { counted, uncounted, ..HashTree::default() }
    }

    /// False for a tree from a record that another program made.
    pub fn is_whole(&self) -> bool {
        let blocks = LEAVES / BLOCK;
        let is_whole = |sums: &Sums| sums.leaves.len() == LEAVES && sums.blocks.len() == blocks;
        self.counted.len() == LEAVES && self.uncounted.len() == blocks && self.sums.values().all(is_whole)
    }

    /// Takes over how many replicas buckets have. If that is news, nothing is counted any more.
    pub fn set_sizes(&mut self, sizes: Sizes) {
        if self.sizes != sizes {
            *self = HashTree { sizes, ..HashTree::new() };
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

    /// A row has changed: its hash before and after, `None` if there was or is none.
    pub fn changed(&mut self, key: &ObjectKey, before: Option<u64>, after: Option<u64>) {
        let leaf = leaf_of(key.position());
        self.touched.push(leaf);
        if self.counted[leaf] {
            self.add(key.bucket(), leaf, after.unwrap_or(0).wrapping_sub(before.unwrap_or(0)));
        }
    }

    /// Nobody knows what a row of this leaf was before.
    pub fn forget(&mut self, leaf: usize) {
        self.touched.push(leaf);
        self.set_counted(leaf, false);
    }

    /// The rows of some leaves were visited: `rows` are all of them, with their hashes. Returns whether every leaf that
    /// was counted before had the right sum.
    pub fn count(&mut self, leaves: &Leaves, rows: &[(ObjectKey, u64)]) -> bool {
        let mut before = Vec::new();
        for (size, sums) in &mut self.sums {
            let old = sums.leaves[leaves.clone()].to_vec();
            leaves.clone().zip(&old).for_each(|(leaf, old)| sums.add(leaf, old.wrapping_neg()));
            before.push((*size, old));
        }
        for (key, hash) in rows {
            self.add(key.bucket(), leaf_of(key.position()), *hash);
        }
        let mut is_right = true;
        for leaf in leaves.clone() {
            if self.counted[leaf] {
                is_right &= self.sums.iter().all(|(size, sums)| {
                    let old = before.iter().find(|(other, _)| other == size);
                    sums.leaves[leaf] == old.map_or(0, |(_, old)| old[leaf - leaves.start()])
                });
            }
            self.set_counted(leaf, true);
        }
        self.touched.extend(leaves.clone());
        is_right
    }

    /// The sum of a range of counted leaves over the buckets whose number of replicas `is_shared` accepts.
    pub fn sum(&self, leaves: &Leaves, is_shared: impl Fn(u8) -> bool) -> u64 {
        let shared = self.sums.iter().filter(|(size, _)| is_shared(**size));
        shared.fold(0, |sum, (_, sums)| sum.wrapping_add(sums.sum(leaves)))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<ObjectKey> {
        (0..count).map(|i| ObjectKey::new(b"b", format!("key{i}").as_bytes()).unwrap()).collect()
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
            tree.changed(key, None, Some(i as u64));
        }
        for (i, key) in keys.iter().enumerate().take(100) {
            tree.changed(key, Some(i as u64), (i % 2 == 0).then_some(7 * i as u64));
        }
        let rows: Vec<(ObjectKey, u64)> = (0..300)
            .filter(|i| *i >= 100 || i % 2 == 0)
            .map(|i| (keys[i].clone(), if i < 100 { 7 * i as u64 } else { i as u64 }))
            .collect();
        let sum = tree.sum(&all, |_| true);
        assert_eq!(sum, rows.iter().map(|(_, hash)| hash).sum::<u64>());
        assert!(tree.count(&all, &rows));
        assert_eq!((tree.sum(&all, |_| true), tree.sum(&all, |_| false)), (sum, 0));
        let by_parts = parts(&all, 50).map(|part| tree.sum(&part, |_| true));
        assert_eq!(by_parts.fold(0, u64::wrapping_add), sum);
        assert!(!tree.count(&all, &rows[9..]), "missing rows are noticed");
    }

    #[test]
    fn what_the_store_undid_is_counted_anew() {
        let key = &keys(1)[0];
        let leaf = leaf_of(key.position());
        let mut tree = HashTree::new();
        tree.count(&(0..=LEAVES - 1), &[]);
        tree.staged();
        tree.changed(key, None, Some(3));
        tree.staged();
        assert_eq!(tree.uncounted(&(0..=LEAVES - 1)), None);
        tree.changed(key, Some(3), None);
        tree.undone();
        assert_eq!(tree.uncounted(&(0..=LEAVES - 1)), Some(leaf..=leaf));
        tree.count(&(leaf..=leaf), &[(key.clone(), 3)]);
        assert_eq!(tree.sum(&(leaf..=leaf), |_| true), 3);
    }

    #[test]
    fn buckets_with_other_numbers_of_replicas_are_summed_apart() {
        let mut tree = HashTree::new();
        tree.set_sizes(Sizes { default: 3, others: BTreeMap::from([(Bytes::from("two"), 2)]) });
        let all = 0..=LEAVES - 1;
        tree.count(&all, &[]);
        tree.changed(&ObjectKey::new(b"two", b"a").unwrap(), None, Some(10));
        tree.changed(&ObjectKey::new(b"b", b"a").unwrap(), None, Some(100));
        assert_eq!((tree.sum(&all, |n| n >= 2), tree.sum(&all, |n| n >= 3)), (110, 100));
        tree.set_sizes(Sizes { default: 3, others: BTreeMap::new() });
        assert!(tree.uncounted(&all).is_some());
    }
}
