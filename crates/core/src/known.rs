//! What a replica remembers of rows that it does not keep in memory: 40 bytes for each object.
//!
//! Three questions can be answered with it alone, without reading the row from disk. "Do you hold what I hold?" (a
//! get's second replica). "Do you hold what this write was made from?": then the written object, which is that one
//! with one more version, replaces it, and there is nothing to merge. Both take equal hashes for equal objects, as
//! read repair and anti-entropy do. And "what does a blind write replace?": all that is held, so its context is enough.
//!
//! ```text
//!  set: 8 entries, five cache lines
//!  entry: low 48 bits of the hash of the row's key, its tag | is kept (1 bit) | hash of the object (8), 0: none
//!         | the context's newest dot: counter (8), actor (15 bits)
//!         | two more: counter, as so much less (49 bits), actor (15 bits)
//! ```
//! Actors are few: an entry has the number of one in a list, from 1; 0 stands for no dot. A context with more dots, or
//! older ones, is not remembered: nearly all keys are written through two or three nodes.
//!
//! A key has two sets: one that the high bits of its hash choose, and another that this one and the tag choose, such
//! that from either the other is found. The entry written last comes first in the first set. One that falls out moves
//! to its other set, and may push another one from there; after three moves the last is forgotten. So hardly any is
//! while there are fewer objects than entries. With one set for a key, one object in twenty was when three quarters
//! were in use.
//!
//! Nothing is ever wrong because an entry is missing. An entry must go when its row changes without it: whoever changes
//! rows tells us.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::causality::{Dot, VersionVector};
use crate::types::{ActorId, ObjectKey};

const WAYS: usize = 8;
/// How many entries one that falls out may push from set to set. More: slower when there are more objects than entries.
const MOVES_MAX: usize = 3;
/// Bits of an actor's number.
const ACTOR_BITS: u32 = 15;
/// Between tag and actor: the object holds more than tombstones.
const KEPT: u64 = 1 << ACTOR_BITS;
const TAG_SHIFT: u32 = ACTOR_BITS + 1;
/// Dots of a context besides the newest.
const OTHERS_MAX: usize = 2;

type Set = [Entry; WAYS];

/// Where an actor's number is packed with something else, that stands above it.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// With [`KEPT`].
    tag_and_actor: u64,
    hash: u64,
    newest: u64,
    others: [u64; OTHERS_MAX],
}

impl Entry {
    fn tag(&self) -> u64 {
        self.tag_and_actor >> TAG_SHIFT
    }

    fn is_free(&self) -> bool {
        self.hash == 0
    }

    fn is_of(&self, tag: u64) -> bool {
        self.tag() == tag && !self.is_free()
    }
}

/// The memory. Fixed size.
pub struct KnownObjects {
    sets: Vec<Set>,
    /// By number, from 1.
    actors: Vec<ActorId>,
    seed: u64,
}

impl KnownObjects {
    /// Room for `bytes` of entries, at least one set. `seed`: unknown to clients, or they could choose keys that push
    /// each other out.
    pub fn new(bytes: usize, seed: u64) -> KnownObjects {
        let sets = (bytes / size_of::<Set>()).max(1);
        KnownObjects { sets: vec![Set::default(); sets], actors: Vec::new(), seed }
    }

    /// The hash of the object under `key`, by which replicas compare, if it is remembered.
    pub fn hash(&self, key: &ObjectKey) -> Option<u64> {
        self.entry(key).map(|entry| entry.hash)
    }

    /// The same, and whether the object holds more than tombstones.
    pub fn row(&self, key: &ObjectKey) -> Option<(u64, bool)> {
        self.entry(key).map(|entry| (entry.hash, entry.tag_and_actor & KEPT != 0))
    }

    /// The hash with the object's context.
    pub fn context(&self, key: &ObjectKey) -> Option<(u64, VersionVector)> {
        let entry = self.entry(key)?;
        let newest = self.actor(entry.tag_and_actor).map(|actor| Dot { counter: entry.newest, actor })?;
        let others = entry.others.iter().filter_map(|packed| {
            let counter = entry.newest - (packed >> ACTOR_BITS);
            self.actor(*packed).map(|actor| Dot { counter, actor })
        });
        Some((entry.hash, others.chain([newest]).collect()))
    }

    /// Remembers the hash of the object that is now under `key`, whether it holds more than tombstones, and its context
    /// if that is known.
    pub fn set(&mut self, key: &ObjectKey, hash: u64, is_kept: bool, context: Option<&VersionVector>) {
        let (set, tag) = self.place(key);
        if let Some((set, way)) = self.find(set, tag) {
            self.sets[set][way].hash = 0;
        }
        let mut entry = Entry { tag_and_actor: tag << TAG_SHIFT, hash, ..Entry::default() };
        if is_kept {
            entry.tag_and_actor |= KEPT;
        }
        if let Some((newest, actor, others)) = context.and_then(|context| self.pack(context)) {
            entry.tag_and_actor |= actor;
            (entry.newest, entry.others) = (newest, others);
        }
        let first = &mut self.sets[set];
        let way = first.iter().position(Entry::is_free).unwrap_or(WAYS - 1);
        first[..=way].rotate_right(1);
        let fallen = std::mem::replace(&mut first[0], entry);
        self.save_fallen(set, fallen);
    }

    /// Forgets what was under `key`.
    pub fn forget(&mut self, key: &ObjectKey) {
        let (set, tag) = self.place(key);
        if let Some((set, way)) = self.find(set, tag) {
            self.sets[set][way].hash = 0;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
    }

    fn entry(&self, key: &ObjectKey) -> Option<&Entry> {
        let (set, tag) = self.place(key);
        let (set, way) = self.find(set, tag)?;
        Some(&self.sets[set][way])
    }

    /// A context's newest counter, its actor's number, and the other dots; `None` if they do not fit.
    fn pack(&mut self, context: &VersionVector) -> Option<(u64, u64, [u64; OTHERS_MAX])> {
        let newest = context.dots().max()?;
        if context.len() > 1 + OTHERS_MAX {
            return None;
        }
        let mut others = [0; OTHERS_MAX];
        for (other, dot) in others.iter_mut().zip(context.dots().filter(|dot| *dot != newest)) {
            let less = newest.counter - dot.counter;
            if less >> (u64::BITS - ACTOR_BITS) != 0 {
                return None;
            }
            *other = less << ACTOR_BITS | self.number(dot.actor)?;
        }
        Some((newest.counter, self.number(newest.actor)?, others))
    }

    /// Finds another place for an entry that fell out of `set`.
    fn save_fallen(&mut self, mut set: usize, mut fallen: Entry) {
        for _ in 0..MOVES_MAX {
            let other = self.other(set, fallen.tag());
            if fallen.is_free() || other == set {
                return;
            }
            set = other;
            let entries = &mut self.sets[set];
            let way = entries.iter().position(Entry::is_free).unwrap_or(WAYS - 1);
            std::mem::swap(&mut entries[way], &mut fallen);
        }
    }

    /// Where the entry with this tag and first set is.
    fn find(&self, set: usize, tag: u64) -> Option<(usize, usize)> {
        let in_set = |set: usize| Some((set, self.sets[set].iter().position(|entry| entry.is_of(tag))?));
        in_set(set).or_else(|| in_set(self.other(set, tag)))
    }

    /// The first set of a key, and its tag. Together they are all bits of its hash, or nearly.
    fn place(&self, key: &ObjectKey) -> (usize, u64) {
        let name = xxh3_64_with_seed(key.row(), self.seed);
        (self.scale(name), name << TAG_SHIFT >> TAG_SHIFT)
    }

    /// The other set of an entry that has `set` as one of its two.
    fn other(&self, set: usize, tag: u64) -> usize {
        // Any mixing will do; this is the golden ratio of 64 bits.
        let sum = self.scale(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (sum + self.sets.len() - set) % self.sets.len()
    }

    /// Spreads 64 bits evenly over the sets.
    fn scale(&self, bits: u64) -> usize {
        ((bits as u128 * self.sets.len() as u128) >> 64) as usize
    }

    /// The actor whose number is packed below something else; `None` for 0.
    fn actor(&self, packed: u64) -> Option<ActorId> {
        let number = packed as usize % (1 << ACTOR_BITS);
        number.checked_sub(1).map(|place| self.actors[place])
    }

    /// The actor's number; `None` if there are too many actors.
    fn number(&mut self, actor: ActorId) -> Option<u64> {
        // From the end: who has joined last writes still, and a long-lived cluster has seen many others.
        let found = self.actors.iter().rposition(|other| *other == actor);
        let number = found.unwrap_or(self.actors.len()) + 1;
        if number >> ACTOR_BITS != 0 {
            return None;
        }
        if found.is_none() {
            self.actors.push(actor);
        }
        Some(number as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> ObjectKey {
        ObjectKey::new(b"b", &number.to_be_bytes()).expect("a short key")
    }

    fn context(dots: &[(u64, u64)]) -> VersionVector {
        dots.iter().map(|(actor, counter)| Dot { counter: *counter, actor: ActorId(*actor) }).collect()
    }

    #[test]
    fn remembers_the_latest_and_forgets_the_oldest_of_a_set() {
        let mut known = KnownObjects::new(0, 7);
        (1..=8).for_each(|number| known.set(&key(number), number, true, None));
        let seen = context(&[(1, 9)]);
        known.set(&key(1), 10, true, Some(&seen));
        known.set(&key(9), 9, true, None);
        let found: Vec<_> = (1..=4).map(|number| known.hash(&key(number))).collect();
        assert_eq!(found, [Some(10), None, Some(3), Some(4)]);
        assert_eq!((known.context(&key(1)), known.context(&key(3))), (Some((10, seen)), None));
        known.forget(&key(3));
        assert_eq!(known.hash(&key(3)), None);
        known.set(&key(2), 2, true, None);
        assert_eq!(known.hash(&key(4)), Some(4), "the free place was taken");
        known.set(&key(2), 2, false, None);
        assert_eq!((known.row(&key(2)), known.row(&key(1))), (Some((2, false)), Some((10, true))));
        known.clear();
        assert_eq!(known.hash(&key(1)), None);
    }

    #[test]
    fn hardly_forgets_any_while_there_is_room() {
        let mut known = KnownObjects::new(1000 * size_of::<Set>(), 7);
        for round in 1..4 {
            (0..5_600).for_each(|number| known.set(&key(number), number + round, true, None));
        }
        let kept = (0..5_600).filter(|&number| known.hash(&key(number)) == Some(number + 3)).count();
        assert!(kept >= 5_570, "{kept} of 5600");
        let stale = (0..5_600).filter(|&number| {
            known.forget(&key(number));
            known.hash(&key(number)).is_some()
        });
        assert_eq!(stale.count(), 0, "every object has one entry");
    }

    #[test]
    fn contexts_come_back_whole_or_not_at_all() {
        let mut known = KnownObjects::new(1 << 10, 7);
        let far = 1 << 49;
        for (dots, fits) in [
            (&[(3, 70)][..], true),
            (&[(1, far), (2, 1)], true),
            (&[(1, far + 1), (2, 1)], false),
            (&[(1, 5), (2, 5), (3, 4)], true),
            (&[(1, 5), (2, 6), (3, 7), (4, 8)], false),
            (&[], false),
        ] {
            let seen = context(dots);
            known.set(&key(1), 7, true, Some(&seen));
            assert_eq!(known.context(&key(1)), fits.then_some((7, seen)), "{dots:?}");
            assert_eq!(known.hash(&key(1)), Some(7));
        }
        assert_eq!(known.actors.len(), 3, "each has one number");
    }

    #[test]
    fn with_too_many_actors_the_last_ones_are_not_remembered() {
        let mut known = KnownObjects::new(0, 7);
        known.actors = (0..(1 << ACTOR_BITS) - 1).map(ActorId).collect();
        known.set(&key(1), 1, true, Some(&context(&[(1 << ACTOR_BITS, 1)])));
        assert_eq!((known.hash(&key(1)), known.context(&key(1))), (Some(1), None));
        let seen = context(&[((1 << ACTOR_BITS) - 2, 1)]);
        known.set(&key(1), 1, true, Some(&seen));
        assert_eq!(known.context(&key(1)), Some((1, seen)));
    }
}
