//! Recent rows in memory: what the tables on disk do not have yet, and a cache of what was read or written lately.
//!
//! Both live in one table, so that a read costs one lookup. A row goes through three states: *pending* (applied, not in
//! the log), *fresh* (in a segment of the log that is not flushed: neither may be evicted) and *clean* (the tables have
//! it). Absent keys are remembered as well, since a write reads its key first and most new keys are absent.
//!
//! ```text
//!  index: 8 bytes per bucket, linear probing          slots: 40 bytes each
//!  +--------------------+--------------------+       +--------+-----+---------+-------+-------+
//!  | high half of hash  | slot number + 1    | ----> | hash   | row | segment | space | flags |
//!  +--------------------+--------------------+       +--------+-----+---------+-------+-------+
//! ```
//! A slot says which segment its row was last written to, so a flushed segment makes all its rows clean by one
//! comparison and nobody has to visit them. Scans need pending and fresh rows in order: for each segment lists hold
//! their slots by the first 16 bytes of the key, and are sorted when a scan comes.
//!
//! Eviction is CLOCK (second chance): a hand goes round the slots, clears *used* where it is set and evicts where it is
//! not. O(1) amortized, no list to relink on a hit. Rows enter unused, so one pass over many keys does not
//! flush the ones that are read again and again.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use oort_core::store::Space;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::log::SegmentNumber;
use super::row::Row;

/// What a row costs beside its own bytes: slot, buckets at half load, the allocator's header and rounding.
const ROW_OVERHEAD_BYTES: usize = size_of::<Slot>() + 16 + 16;
const BUCKETS_MIN: usize = 64;
/// Slots that the hand visits for each row that came in: enough to find a place among rows that are in use or fresh.
const EVICT_STEPS: usize = 16;

const PENDING: u8 = 1;
const USED: u8 = 2;
const FREE: u8 = 4;

/// The table. Its size stays near the budget, pending and fresh rows aside.
pub(super) struct Rows {
    slots: Vec<Slot>,
    free: Vec<u32>,
    buckets: Vec<u64>,
    pending: Vec<Pending>,
    /// Segments that are not flushed, ascending; the last is the one that pending rows will be written to.
    generations: VecDeque<Generation>,
    hand: usize,
    size_bytes: usize,
    budget_bytes: usize,
    seed: u64,
}

struct Slot {
    hash: u64,
    row: Row,
    segment: SegmentNumber,
    space: Space,
    flags: u8,
}

/// A slot with a pending row.
struct Pending {
    slot: u32,
    /// The fresh row that it replaced, for a rollback.
    before: Option<(Row, SegmentNumber)>,
}

/// The rows that were first written to one segment.
///
/// Invariant: a slot that is listed has a row of this segment or a later one, so it is not evicted while this lasts.
struct Generation {
    segment: SegmentNumber,
    rows: [Lists; 3],
}

/// The first 16 bytes of a key, and its slot.
type Entry = (Prefix, u32);
pub(super) type Prefix = (u64, u64);

/// The slots of one space by the first bits of their keys, so that a scan sorts no more than it visits.
type Lists = Vec<List>;
/// As many as a ring has partitions by default, of which a comparison with a peer scans one.
const LISTS: usize = 1024;

fn bucket(prefix: Prefix) -> usize {
    (prefix.0 >> (64 - LISTS.ilog2())) as usize
}

/// Slots, in order as far as `sorted_len`.
#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    sorted_len: usize,
}

impl List {
    fn sort(&mut self) {
        if self.sorted_len < self.entries.len() {
            self.entries[self.sorted_len..].sort_unstable();
            // This sort is made for runs that are in order already.
            self.entries.sort();
            self.sorted_len = self.entries.len();
        }
    }

    fn remove(&mut self, entry: Entry) {
        self.entries.retain(|other| *other != entry);
        self.sorted_len = 0;
    }
}

impl Generation {
    fn new(segment: SegmentNumber) -> Generation {
        let lists = || std::iter::repeat_with(List::default).take(LISTS).collect();
        Generation { segment, rows: [lists(), lists(), lists()] }
    }
}

/// The first 16 bytes of `key`, filled up with zeros: in the order of the keys, if not alike.
pub(super) fn prefix(key: &[u8]) -> Prefix {
    let word = |bytes: &[u8]| match bytes.first_chunk::<8>() {
        Some(word) => u64::from_be_bytes(*word),
        None => {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(word)
        }
    };
    (word(key), word(key.get(8..).unwrap_or_default()))
}

impl Rows {
    /// An empty table that keeps about `budget_bytes` of rows; the first rows will be written to `segment`.
    pub(super) fn new(budget_bytes: usize, segment: SegmentNumber) -> Rows {
        Rows {
            slots: Vec::new(),
            free: Vec::new(),
            buckets: vec![0; BUCKETS_MIN],
            pending: Vec::new(),
            generations: VecDeque::from([Generation::new(segment)]),
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

    /// Keeps a row that was read from the engine because it was not here, evicting others for it.
    pub(super) fn remember(&mut self, space: Space, row: Row) {
        // A row that would push out an eighth of the others is not worth its place.
        if (row.len_bytes() + ROW_OVERHEAD_BYTES) * 8 > self.budget_bytes {
            return;
        }
        self.put(space, row);
        self.evict(EVICT_STEPS);
    }

    /// Makes `row` the pending one of its key: visible at once, and part of the next record.
    pub(super) fn apply(&mut self, space: Space, row: Row) {
        let flushed = self.flushed();
        let (number, replaced) = self.put(space, row);
        let slot = &mut self.slots[number];
        if slot.flags & PENDING == 0 {
            slot.flags |= PENDING;
            let before = replaced.filter(|_| slot.segment > flushed).map(|row| (row, slot.segment));
            self.pending.push(Pending { slot: number as u32, before });
        }
        self.list(number);
    }

    /// Whether there are pending rows.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The pending rows, in the order in which their keys were first applied.
    pub(super) fn pending(&self) -> impl Iterator<Item = (Space, &Row)> {
        self.pending.iter().map(|pending| {
            let slot = &self.slots[pending.slot as usize];
            (slot.space, &slot.row)
        })
    }

    /// The pending and fresh rows of `space` with `from <= key <= to`, by key ascending.
    pub(super) fn newer_than_tables<'a>(
        &'a mut self,
        space: Space,
        from: &'a [u8],
        to: &'a [u8],
    ) -> InOrder<'a> {
        let mut rows = InOrder {
            slots: &self.slots,
            lists: self
                .generations
                .iter_mut()
                .map(|generation| &mut generation.rows[space as usize])
                .collect(),
            cursors: Vec::new(),
            bucket: bucket(prefix(from)),
            equals: Vec::new(),
            from,
            to,
        };
        rows.open_bucket();
        rows
    }

    /// The pending rows are in the log: they become fresh.
    pub(super) fn commit(&mut self) {
        let count = self.pending.len();
        let mut pending = std::mem::take(&mut self.pending);
        for pending in pending.drain(..) {
            self.slots[pending.slot as usize].flags &= !PENDING;
        }
        self.pending = pending;
        self.evict(count * EVICT_STEPS);
    }

    /// The pending rows are undone: what was there before is there again.
    pub(super) fn rollback(&mut self) {
        for Pending { slot, before } in std::mem::take(&mut self.pending) {
            let number = slot as usize;
            self.slots[number].flags &= !PENDING;
            let segment = before.as_ref().map_or(0, |(_, segment)| *segment);
            self.unlist(number, segment);
            match before {
                Some((row, segment)) => {
                    let slot = &mut self.slots[number];
                    self.size_bytes = self.size_bytes + row.len_bytes() - slot.row.len_bytes();
                    slot.row = row;
                    slot.segment = segment;
                }
                None => self.remove(number),
            }
        }
    }

    /// From now on rows are written to `segment`, the pending ones included.
    pub(super) fn seal(&mut self, segment: SegmentNumber) {
        self.generations.push_back(Generation::new(segment));
        let slots: Vec<usize> = self.pending.iter().map(|pending| pending.slot as usize).collect();
        slots.into_iter().for_each(|number| self.list(number));
    }

    /// The tables have all rows of `segment` and of those before it.
    pub(super) fn set_flushed(&mut self, segment: SegmentNumber) {
        while self.generations.len() > 1 && self.generations[0].segment <= segment {
            self.generations.pop_front();
        }
    }

    /// The segments that are sealed and not flushed, ascending.
    pub(super) fn sealed(&self) -> impl ExactSizeIterator<Item = SegmentNumber> + '_ {
        self.generations.range(..self.generations.len() - 1).map(|generation| generation.segment)
    }

    /// The rows whose last writing is in `segment`: what it must hold if it is to be made anew. O(rows in memory).
    pub(super) fn of_segment(&self, segment: SegmentNumber) -> impl Iterator<Item = (Space, &Row)> {
        let is_fresh = move |slot: &&Slot| slot.flags & (FREE | PENDING) == 0 && slot.segment == segment;
        let fresh = self.slots.iter().filter(is_fresh).map(|slot| (slot.space, &slot.row));
        let under_pending = self.pending.iter().filter_map(move |pending| {
            let (row, written) = pending.before.as_ref()?;
            (*written == segment).then_some((self.slots[pending.slot as usize].space, row))
        });
        fresh.chain(under_pending)
    }

    /// The last segment that is flushed.
    fn flushed(&self) -> SegmentNumber {
        self.generations[0].segment - 1
    }

    fn is_clean(&self, number: usize) -> bool {
        let slot = &self.slots[number];
        slot.flags & PENDING == 0 && slot.segment <= self.flushed()
    }

    /// Enters a slot into the newest generation.
    fn list(&mut self, number: usize) {
        let generation = self.generations.back_mut().expect("there is always a segment to write to");
        let slot = &mut self.slots[number];
        if slot.segment != generation.segment {
            slot.segment = generation.segment;
            let prefix = prefix(slot.row.key());
            generation.rows[slot.space as usize][bucket(prefix)].entries.push((prefix, number as u32));
        }
    }

    /// Removes a slot from the generations after `segment`.
    fn unlist(&mut self, number: usize, segment: SegmentNumber) {
        let slot = &self.slots[number];
        let entry = (prefix(slot.row.key()), number as u32);
        for generation in self.generations.iter_mut().filter(|generation| generation.segment > segment) {
            generation.rows[slot.space as usize][bucket(entry.0)].remove(entry);
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

    /// Stores `row` under its key; returns the slot, and the row that was there.
    fn put(&mut self, space: Space, row: Row) -> (usize, Option<Row>) {
        let hash = self.hash(space, row.key());
        if let Some((_, number)) = self.find(hash, space, row.key()) {
            let slot = &mut self.slots[number];
            self.size_bytes = self.size_bytes + row.len_bytes() - slot.row.len_bytes();
            return (number, Some(std::mem::replace(&mut slot.row, row)));
        }
        self.size_bytes += row.len_bytes() + ROW_OVERHEAD_BYTES;
        let slot = Slot { hash, row, segment: 0, space, flags: 0 };
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
        (number, None)
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

    /// Evicts clean rows while the table is over its budget, looking at `steps_left` rows at most.
    fn evict(&mut self, mut steps_left: usize) {
        let mut visits_left = self.slots.len();
        while self.size_bytes > self.budget_bytes && steps_left > 0 && visits_left > 0 {
            visits_left -= 1;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.flags & FREE != 0 {
                continue;
            }
            steps_left -= 1;
            if slot.flags & USED != 0 {
                slot.flags &= !USED;
            } else if self.is_clean(self.hand) {
                self.remove(self.hand);
            }
        }
    }
}

/// Rows in the order of their keys; see [`Rows::newer_than_tables`].
pub(super) struct InOrder<'a> {
    slots: &'a [Slot],
    /// One for each segment.
    lists: Vec<&'a mut Lists>,
    /// The lists' bucket being visited, and the next entry in each.
    bucket: usize,
    cursors: Vec<usize>,
    /// Rows whose keys begin alike, by key descending, so that `pop` yields the smallest.
    equals: Vec<&'a Row>,
    from: &'a [u8],
    to: &'a [u8],
}

impl<'a> InOrder<'a> {
    fn open_bucket(&mut self) {
        let first = prefix(self.from);
        self.cursors.clear();
        for lists in &mut self.lists {
            let list = &mut lists[self.bucket];
            list.sort();
            self.cursors.push(list.entries.partition_point(|entry| entry.0 < first));
        }
    }

    /// The least prefix that is left in this bucket.
    fn least(&self) -> Option<Prefix> {
        let next = self
            .lists
            .iter()
            .zip(&self.cursors)
            .filter_map(|(lists, at)| lists[self.bucket].entries.get(*at));
        next.map(|entry| entry.0).min()
    }

    /// Takes the rows with this prefix.
    fn take(&mut self, prefix: Prefix) {
        let mut slots = Vec::new();
        for (lists, at) in self.lists.iter().zip(&mut self.cursors) {
            let rest = &lists[self.bucket].entries[*at..];
            let alike = rest.iter().take_while(|entry| entry.0 == prefix);
            slots.extend(alike.inspect(|_| *at += 1).map(|(_, slot)| *slot));
        }
        slots.sort_unstable();
        slots.dedup();
        let rows = slots.into_iter().map(|slot| &self.slots[slot as usize].row);
        self.equals.extend(rows.filter(|row| self.from <= row.key() && row.key() <= self.to));
        self.equals.sort_unstable_by(|a, b| b.key().cmp(a.key()));
    }
}

impl<'a> Iterator for InOrder<'a> {
    type Item = &'a Row;

    fn next(&mut self) -> Option<&'a Row> {
        let last = prefix(self.to);
        while self.equals.is_empty() {
            match self.least() {
                Some(least) if least > last => return None,
                Some(least) => self.take(least),
                None if self.bucket >= bucket(last) => return None,
                None => {
                    self.bucket += 1;
                    self.open_bucket();
                }
            }
        }
        self.equals.pop()
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
        let mut rows = Rows::new(usize::MAX, 1);
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
        let mut rows = Rows::new(usize::MAX, 1);
        rows.remember(Space::Data, row(1, 1));
        assert!(rows.get(Space::Hints, &1u64.to_be_bytes()).is_none());
        rows.remember(Space::Hints, row(1, 2));
        assert_eq!(value(&mut rows, 1), Some(1u64.to_be_bytes().to_vec()));
    }

    #[test]
    fn keeps_to_the_budget_and_to_what_is_read() {
        let mut rows = Rows::new(100_000, 1);
        rows.remember(Space::Data, row(0, 0));
        for number in 1..10_000 {
            rows.remember(Space::Data, row(number, number));
            assert!(value(&mut rows, 0).is_some(), "the row in use was evicted at {number}");
            assert!(rows.size_bytes <= 100_000, "{} bytes", rows.size_bytes);
        }
        assert!(rows.size_bytes > 90_000);
        assert!(value(&mut rows, 1).is_none());
    }

    fn numbers_in_order(rows: &mut Rows, from: u64, to: u64) -> Vec<u64> {
        let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
        let rows = rows.newer_than_tables(Space::Data, &from, &to);
        rows.map(|row| u64::from_be_bytes(row.key().try_into().unwrap())).collect()
    }

    #[test]
    fn pending_and_fresh_rows_outlive_the_budget_until_their_segment_is_flushed() {
        let mut rows = Rows::new(2_000, 1);
        rows.remember(Space::Data, row(1, 1));
        for number in 0..1_000 {
            rows.apply(Space::Data, row(number, 9));
            rows.apply(Space::Data, row(number, 10));
        }
        assert_eq!(rows.pending().count(), 1_000);
        rows.commit();
        rows.seal(2);
        rows.apply(Space::Data, row(11, 11));
        rows.commit();
        assert!((0..1_000).all(|number| value(&mut rows, number).is_some()));
        assert_eq!(numbers_in_order(&mut rows, 10, 12), [10, 11, 12]);
        assert_eq!(rows.of_segment(2).count(), 1);
        rows.set_flushed(1);
        assert_eq!(numbers_in_order(&mut rows, 0, 2_000), [11]);
        for number in 2_000..3_000 {
            rows.remember(Space::Data, row(number, 1));
        }
        assert!(rows.size_bytes <= 2_500, "{} bytes", rows.size_bytes);
        assert!(value(&mut rows, 10).is_none());
        assert_eq!(value(&mut rows, 11), Some(11u64.to_be_bytes().to_vec()));
    }

    #[test]
    fn a_rollback_brings_back_what_only_the_log_has() {
        let mut rows = Rows::new(usize::MAX, 1);
        rows.apply(Space::Data, row(1, 1));
        rows.apply(Space::Data, row(2, 1));
        rows.commit();
        rows.seal(2);
        rows.apply(Space::Data, row(2, 2));
        rows.commit();
        for number in 1..4 {
            rows.apply(Space::Data, row(number, 3));
        }
        rows.seal(3);
        assert_eq!(numbers_in_order(&mut rows, 0, 9), [1, 2, 3]);
        let of_second: Vec<_> = rows.of_segment(2).map(|(_, row)| row.value().unwrap()).collect();
        assert_eq!(of_second, [&2u64.to_be_bytes()[..]], "what lies under a pending row counts");
        rows.rollback();
        assert_eq!(numbers_in_order(&mut rows, 0, 9), [1, 2]);
        assert_eq!(value(&mut rows, 1), Some(1u64.to_be_bytes().to_vec()));
        assert_eq!(value(&mut rows, 2), Some(2u64.to_be_bytes().to_vec()));
        assert_eq!(value(&mut rows, 3), None);
        rows.set_flushed(1);
        assert_eq!(numbers_in_order(&mut rows, 0, 9), [2]);
    }

    #[test]
    fn keys_that_begin_alike_come_in_order() {
        let mut rows = Rows::new(usize::MAX, 1);
        for key in ["0123456789abcdefz", "0123456789abcdef", "0123456789abcdefa", "01"] {
            rows.apply(Space::Data, Row::new(key.as_bytes(), None));
        }
        let all = rows.newer_than_tables(Space::Data, b"0123456789abcdef", b"0123456789abcdefy");
        let keys: Vec<_> = all.map(Row::key).collect();
        assert_eq!(keys, [&b"0123456789abcdef"[..], b"0123456789abcdefa"]);
    }

    #[test]
    fn one_large_row_does_not_push_out_the_others() {
        let mut rows = Rows::new(10_000, 1);
        rows.remember(Space::Data, row(1, 1));
        rows.remember(Space::Data, Row::new(b"large", Some(&[0; 5_000])));
        assert!(rows.get(Space::Data, b"large").is_none());
        assert!(value(&mut rows, 1).is_some());
    }
}
