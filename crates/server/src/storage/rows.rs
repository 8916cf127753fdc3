//! Recent rows in memory: what is applied but not yet synced, and a cache of what was read or written lately.
//!
//! Both live in one table, so that a read costs one lookup. A slot holds a row and three flags:
//! *pending* (applied, not synced: never evicted, forgotten by a rollback), *used* (read since the clock hand came by)
//! and *free*. Absent keys are remembered as well, since a write reads its key first and most new keys are absent.
//!
//! ```text
//!  index: 8 bytes per bucket, linear probing          slots: 40 bytes each
//!  +--------------------+--------------------+       +--------+-----+-------+-------+
//!  | high half of hash  | slot number + 1    | ----> | hash   | row | space | flags |
//!  +--------------------+--------------------+       +--------+-----+-------+-------+
//! ```
//! Eviction is CLOCK (second chance): a hand goes round the slots, clears *used* where it is set and evicts where it is
//! not. O(1) amortized, no list to relink on a hit. Rows enter unused, so one pass over many keys does not
//! flush the ones that are read again and again.

use std::hash::{BuildHasher, RandomState};

use oort_core::store::Space;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::row::Row;

/// What a row costs beside its own bytes: slot, buckets at half load, the allocator's header and rounding.
const ROW_OVERHEAD_BYTES: usize = size_of::<Slot>() + 16 + 16;
const BUCKETS_MIN: usize = 64;

const PENDING: u8 = 1;
const USED: u8 = 2;
const FREE: u8 = 4;

/// The table. Its size stays within the budget, pending rows aside.
pub(super) struct Rows {
    slots: Vec<Slot>,
    free: Vec<u32>,
    buckets: Vec<u64>,
    pending: Vec<u32>,
    hand: usize,
    size_bytes: usize,
    budget_bytes: usize,
    seed: u64,
}

struct Slot {
    hash: u64,
    row: Row,
    space: Space,
    flags: u8,
}

impl Rows {
    /// An empty table that keeps about `budget_bytes` of rows.
    pub(super) fn new(budget_bytes: usize) -> Rows {
        Rows {
            slots: Vec::new(),
            free: Vec::new(),
            buckets: vec![0; BUCKETS_MIN],
            pending: Vec::new(),
            hand: 0,
            size_bytes: 0,
            budget_bytes,
            // Keys come from clients: an unknown seed keeps them from choosing keys that share a bucket.
            seed: RandomState::new().hash_one(0),
        }
    }

    /// The row of `key` if it is here; it may say that the key is absent.
    pub(super) fn get(&mut self, space: Space, key: &[u8]) -> Option<&Row> {
        let (_, slot) = self.find(self.hash(space, key), space, key)?;
        let slot = &mut self.slots[slot];
        slot.flags |= USED;
        Some(&slot.row)
    }

    /// Keeps a row that was read from the engine, evicting others for it.
    pub(super) fn remember(&mut self, space: Space, row: Row) {
        // A row that would push out an eighth of the others is not worth its place.
        if (row.len_bytes() + ROW_OVERHEAD_BYTES) * 8 > self.budget_bytes {
            return;
        }
        self.put(space, row);
        self.evict();
    }

    /// Makes `row` the pending one of its key: visible at once, and part of the next batch.
    pub(super) fn apply(&mut self, space: Space, row: Row) {
        let slot = self.put(space, row);
        let flags = &mut self.slots[slot].flags;
        if *flags & PENDING == 0 {
            *flags |= PENDING;
            self.pending.push(slot as u32);
        }
    }

    /// The pending rows, in the order in which their keys were first applied.
    pub(super) fn pending(&self) -> impl ExactSizeIterator<Item = (Space, &Row)> {
        self.pending.iter().map(|slot| {
            let slot = &self.slots[*slot as usize];
            (slot.space, &slot.row)
        })
    }

    /// The pending rows of `space` with `from <= key <= to`, by key descending, so that `pop` yields the smallest.
    pub(super) fn pending_range(&self, space: Space, from: &[u8], to: &[u8]) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .pending()
            .filter(|(s, row)| *s == space && from <= row.key() && row.key() <= to)
            .map(|(_, row)| row.clone())
            .collect();
        rows.sort_unstable_by(|a, b| b.key().cmp(a.key()));
        rows
    }

    /// The pending rows are synced: they become ordinary cached rows.
    pub(super) fn commit(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        for slot in pending.drain(..) {
            self.slots[slot as usize].flags &= !PENDING;
        }
        self.pending = pending;
        self.evict();
    }

    /// The pending rows are undone: they are forgotten, and the engine has what was there before.
    pub(super) fn rollback(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        for slot in pending.drain(..) {
            self.remove(slot as usize);
        }
        self.pending = pending;
    }

    /// Forgets what is not pending.
    pub(super) fn forget_cached(&mut self) {
        for number in 0..self.slots.len() {
            if self.slots[number].flags & (PENDING | FREE) == 0 {
                self.remove(number);
            }
        }
    }

    fn hash(&self, space: Space, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed ^ space as u64)
    }

    /// The bucket and the slot of a key.
    fn find(&self, hash: u64, space: Space, key: &[u8]) -> Option<(usize, usize)> {
        let mask = self.buckets.len() - 1;
        let mut bucket = hash as usize & mask;
        loop {
            let entry = self.buckets[bucket];
            if entry == 0 {
                return None;
            }
            if entry >> 32 == hash >> 32 {
                let number = (entry as u32 - 1) as usize;
                let slot = &self.slots[number];
                if slot.row.key() == key && slot.space == space {
                    return Some((bucket, number));
                }
            }
            bucket = (bucket + 1) & mask;
        }
    }

    /// Stores `row` under its key and returns the slot.
    fn put(&mut self, space: Space, row: Row) -> usize {
        let hash = self.hash(space, row.key());
        if let Some((_, number)) = self.find(hash, space, row.key()) {
            let slot = &mut self.slots[number];
            self.size_bytes = self.size_bytes + row.len_bytes() - slot.row.len_bytes();
            slot.row = row;
            return number;
        }
        self.size_bytes += row.len_bytes() + ROW_OVERHEAD_BYTES;
        let slot = Slot { hash, row, space, flags: 0 };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number as usize
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.link(number);
        number
    }

    /// Enters a slot into the index, which grows at a load of three quarters.
    fn link(&mut self, number: usize) {
        let used = self.slots.len() - self.free.len();
        if used * 4 > self.buckets.len() * 3 {
            self.grow();
        } else {
            let hash = self.slots[number].hash;
            insert(&mut self.buckets, hash, number);
        }
    }

    fn grow(&mut self) {
        let mut buckets = vec![0; self.buckets.len() * 2];
        for (number, slot) in self.slots.iter().enumerate() {
            if slot.flags & FREE == 0 {
                insert(&mut buckets, slot.hash, number);
            }
        }
        self.buckets = buckets;
    }

    fn remove(&mut self, number: usize) {
        let slot = &self.slots[number];
        let (bucket, _) =
            self.find(slot.hash, slot.space, slot.row.key()).expect("every slot in use has a bucket");
        self.unlink(bucket);
        let slot = &mut self.slots[number];
        self.size_bytes -= slot.row.len_bytes() + ROW_OVERHEAD_BYTES;
        slot.row = Row::default();
        slot.flags = FREE;
        self.free.push(number as u32);
    }

    /// Empties a bucket and moves later ones of the same run into the gap, so that no search stops too early.
    fn unlink(&mut self, bucket: usize) {
        let mask = self.buckets.len() - 1;
        let mut gap = bucket;
        let mut next = bucket;
        loop {
            next = (next + 1) & mask;
            let entry = self.buckets[next];
            if entry == 0 {
                break;
            }
            let home = self.slots[(entry as u32 - 1) as usize].hash as usize & mask;
            // The entry may move back to the gap unless its home lies after the gap.
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.buckets[gap] = entry;
                gap = next;
            }
        }
        self.buckets[gap] = 0;
    }

    fn evict(&mut self) {
        // Two rounds clear every used flag; what is left then is pending and stays.
        let mut steps_left = self.slots.len() * 2;
        while self.size_bytes > self.budget_bytes && steps_left > 0 {
            steps_left -= 1;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.flags & USED != 0 {
                slot.flags &= !USED;
            } else if slot.flags == 0 {
                self.remove(self.hand);
            }
        }
    }
}

fn insert(buckets: &mut [u64], hash: u64, number: usize) {
    let mask = buckets.len() - 1;
    let mut bucket = hash as usize & mask;
    while buckets[bucket] != 0 {
        bucket = (bucket + 1) & mask;
    }
    buckets[bucket] = (hash >> 32) << 32 | (number as u64 + 1);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(number: u64, value: u64) -> Row {
        Row::new(&number.to_be_bytes(), Some(&value.to_be_bytes()))
    }

    fn value(rows: &mut Rows, number: u64) -> Option<Vec<u8>> {
        let row = rows.get(Space::Data, &number.to_be_bytes())?;
        row.value().map(|value| value.to_vec())
    }

    /// A multiplicative congruential generator: tests need no more.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *state >> 33
    }

    #[test]
    fn agrees_with_a_map_while_rows_come_and_go() {
        let mut rows = Rows::new(usize::MAX);
        let mut model = BTreeMap::new();
        let mut state = 7;
        for round in 0..20_000 {
            let number = next(&mut state) % 500;
            match next(&mut state) % 8 {
                0 => {
                    if let Some((_, slot)) = rows.find(
                        rows.hash(Space::Data, &number.to_be_bytes()),
                        Space::Data,
                        &number.to_be_bytes(),
                    ) {
                        rows.remove(slot);
                    }
                    model.remove(&number);
                }
                _ => {
                    rows.remember(Space::Data, row(number, round));
                    model.insert(number, round.to_be_bytes().to_vec());
                }
            }
            let probe = next(&mut state) % 500;
            assert_eq!(value(&mut rows, probe), model.get(&probe).cloned());
        }
        for number in 0..500 {
            assert_eq!(value(&mut rows, number), model.get(&number).cloned());
        }
    }

    #[test]
    fn spaces_do_not_mix() {
        let mut rows = Rows::new(usize::MAX);
        rows.remember(Space::Data, row(1, 1));
        assert!(rows.get(Space::Hints, &1u64.to_be_bytes()).is_none());
        rows.remember(Space::Hints, row(1, 2));
        assert_eq!(value(&mut rows, 1), Some(1u64.to_be_bytes().to_vec()));
    }

    #[test]
    fn keeps_to_the_budget_and_to_what_is_read() {
        let mut rows = Rows::new(100_000);
        rows.remember(Space::Data, row(0, 0));
        for number in 1..10_000 {
            rows.remember(Space::Data, row(number, number));
            assert!(value(&mut rows, 0).is_some(), "the row in use was evicted at {number}");
            assert!(rows.size_bytes <= 100_000, "{} bytes", rows.size_bytes);
        }
        assert!(rows.size_bytes > 90_000);
        assert!(value(&mut rows, 1).is_none());
    }

    #[test]
    fn pending_rows_outlive_the_budget_and_end_with_a_rollback() {
        let mut rows = Rows::new(2_000);
        rows.remember(Space::Data, row(1, 1));
        for number in 0..1_000 {
            rows.apply(Space::Data, row(number, 9));
            rows.apply(Space::Data, row(number, 10));
        }
        assert_eq!(rows.pending().len(), 1_000);
        assert!((0..1_000).all(|number| value(&mut rows, number) == Some(10u64.to_be_bytes().to_vec())));
        let range = rows.pending_range(Space::Data, &10u64.to_be_bytes(), &12u64.to_be_bytes());
        let keys: Vec<_> = range.iter().map(|row| row.key().to_vec()).collect();
        assert_eq!(keys, [12u64, 11, 10].map(|key| key.to_be_bytes().to_vec()));
        rows.rollback();
        assert_eq!(rows.pending().len(), 0);
        assert!((0..1_000).all(|number| value(&mut rows, number).is_none()));
        rows.apply(Space::Data, row(5, 5));
        rows.commit();
        assert_eq!(value(&mut rows, 5), Some(5u64.to_be_bytes().to_vec()));
        assert!(rows.size_bytes <= 2_000);
    }

    #[test]
    fn one_large_row_does_not_push_out_the_others() {
        let mut rows = Rows::new(10_000);
        rows.remember(Space::Data, row(1, 1));
        rows.remember(Space::Data, Row::new(b"large", Some(&[0; 5_000])));
        assert!(rows.get(Space::Data, b"large").is_none());
        assert!(value(&mut rows, 1).is_some());
    }
}
