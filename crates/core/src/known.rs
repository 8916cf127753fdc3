//! What a replica remembers of rows that it does not keep in memory: 24 bytes for each object.
//!
//! Three questions can be answered with it alone, without reading the row from disk. "Do you hold what I hold?" (a
//! get's second replica). "Do you hold what this write was made from?": then the written object, which is that one
//! with one more version, replaces it, and there is nothing to merge. Both take equal hashes for equal objects, as
//! read repair and anti-entropy do. And "what does a blind write replace?": if all that is held is one version, its
//! dot is the whole context.
//!
//! ```text
//!  set: 8 entries, three cache lines
//!  entry: low 48 bits of the hash of the row's key, its tag; number of the actor (16 bits)
//!         | hash of the object (8), 0: none | counter of its only version (8), 0: it has several, or that is not known
//! ```
//! A key has two sets: one that the high bits of its hash choose, and another that this one and the tag choose, such
//! that from either the other is found. The entry written last comes first in the first set. One that falls out moves
//! to its other set, and may push another one from there; after three moves the last is forgotten. So hardly any is
//! while there are fewer objects than entries. With one set for a key, one object in twenty was when three quarters
//! were in use. Actors are few: an entry has the number of one in a list.
//!
//! Nothing is ever wrong because an entry is missing. An entry must go when its row changes without it: whoever changes
//! rows tells us.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::causality::Dot;
use crate::types::{ActorId, ObjectKey};

const WAYS: usize = 8;
/// How many entries one that falls out may push from set to set. More: slower when there are more objects than entries.
const MOVES_MAX: usize = 3;
/// Bits of an entry for the actor.
const ACTOR_BITS: u32 = 16;

type Set = [Entry; WAYS];

#[derive(Clone, Copy, Default)]
struct Entry {
    tag_and_actor: u64,
    hash: u64,
    sole_counter: u64,
}

impl Entry {
    fn tag(&self) -> u64 {
        self.tag_and_actor >> ACTOR_BITS
    }

    fn is_free(&self) -> bool {
        self.hash == 0
    }

    fn is_of(&self, tag: u64) -> bool {
        self.tag() == tag && !self.is_free()
    }
}

/// What is known of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The hash by which replicas compare objects.
    pub hash: u64,
    /// The dot of its only version, if that is all that its context covers.
    pub sole: Option<Dot>,
}

/// The memory. Fixed size.
pub struct KnownObjects {
    sets: Vec<Set>,
    /// By number.
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

    /// What is remembered of the object under `key`.
    pub fn get(&self, key: &ObjectKey) -> Option<Known> {
        let (set, tag) = self.place(key);
        let (set, way) = self.find(set, tag)?;
        let entry = &self.sets[set][way];
        let sole = (entry.sole_counter != 0).then(|| Dot {
            counter: entry.sole_counter,
            actor: self.actors[entry.tag_and_actor as usize % (1 << ACTOR_BITS)],
        });
        Some(Known { hash: entry.hash, sole })
    }

    /// Remembers what is now under `key`; `None` forgets it.
    pub fn set(&mut self, key: &ObjectKey, known: Option<Known>) {
        let (set, tag) = self.place(key);
        if let Some((set, way)) = self.find(set, tag) {
            self.sets[set][way].hash = 0;
        }
        let Some(Known { hash, sole }) = known else {
            return;
        };
        let numbered = sole.and_then(|dot| Some((dot.counter, self.number(dot.actor)?)));
        let (sole_counter, actor) = numbered.unwrap_or_default();
        let entry = Entry { tag_and_actor: tag << ACTOR_BITS | actor, hash, sole_counter };
        let first = &mut self.sets[set];
        let way = first.iter().position(Entry::is_free).unwrap_or(WAYS - 1);
        first[..=way].rotate_right(1);
        let fallen = std::mem::replace(&mut first[0], entry);
        self.save_fallen(set, fallen);
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

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
    }

    /// Where the entry with this tag and first set is.
    fn find(&self, set: usize, tag: u64) -> Option<(usize, usize)> {
        let in_set = |set: usize| Some((set, self.sets[set].iter().position(|entry| entry.is_of(tag))?));
        in_set(set).or_else(|| in_set(self.other(set, tag)))
    }

    /// The first set of a key, and its tag. Together they are all bits of its hash, or nearly.
    fn place(&self, key: &ObjectKey) -> (usize, u64) {
        let name = xxh3_64_with_seed(key.row(), self.seed);
        (self.scale(name), name << ACTOR_BITS >> ACTOR_BITS)
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

    /// The actor's number; `None` if there are too many actors.
    fn number(&mut self, actor: ActorId) -> Option<u64> {
        // From the end: who has joined last writes still, and a long-lived cluster has seen many others.
        let found = self.actors.iter().rposition(|other| *other == actor);
        let number = found.unwrap_or(self.actors.len());
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

    fn some(hash: u64, sole: Option<Dot>) -> Option<Known> {
        Some(Known { hash, sole })
    }

    #[test]
    fn remembers_the_latest_and_forgets_the_oldest_of_a_set() {
        let mut known = KnownObjects::new(0, 7);
        for number in 1..=8 {
            known.set(&key(number), some(number, None));
        }
        let dot = Dot { counter: 9, actor: ActorId(1) };
        known.set(&key(1), some(10, Some(dot)));
        known.set(&key(9), some(9, None));
        let found: Vec<_> = (1..=4).map(|number| known.get(&key(number))).collect();
        assert_eq!(found, [some(10, Some(dot)), None, some(3, None), some(4, None)]);
        known.set(&key(3), None);
        assert_eq!(known.get(&key(3)), None);
        known.set(&key(2), some(2, None));
        assert_eq!(known.get(&key(4)), some(4, None), "the free place was taken");
        known.clear();
        assert_eq!(known.get(&key(1)), None);
    }

    #[test]
    fn hardly_forgets_any_while_there_is_room() {
        let mut known = KnownObjects::new(1000 * size_of::<Set>(), 7);
        for round in 1..4 {
            for number in 0..5_600 {
                known.set(&key(number), some(number + round, None));
            }
        }
        let kept = (0..5_600).filter(|&number| known.get(&key(number)) == some(number + 3, None)).count();
        assert!(kept >= 5_570, "{kept} of 5600");
        let stale = (0..5_600).filter(|&number| {
            known.set(&key(number), None);
            known.get(&key(number)).is_some()
        });
        assert_eq!(stale.count(), 0, "every object has one entry");
    }

    #[test]
    fn each_dot_has_its_own_actor() {
        let mut known = KnownObjects::new(1 << 10, 7);
        let dot = |number: u64| Dot { counter: number + 1, actor: ActorId(number % 3) };
        for number in 0..20 {
            known.set(&key(number), some(1, Some(dot(number))));
        }
        for number in 0..20 {
            assert_eq!(known.get(&key(number)), some(1, Some(dot(number))));
        }
        assert_eq!(known.actors.len(), 3);
    }

    #[test]
    fn with_too_many_actors_the_last_ones_are_not_remembered() {
        let mut known = KnownObjects::new(0, 7);
        known.actors = (0..1 << ACTOR_BITS).map(ActorId).collect();
        let dot = |actor| Some(Dot { counter: 1, actor: ActorId(actor) });
        known.set(&key(1), some(1, dot(1 << ACTOR_BITS)));
        assert_eq!(known.get(&key(1)), some(1, None));
        known.set(&key(1), some(1, dot(7)));
        assert_eq!(known.get(&key(1)), some(1, dot(7)));
    }
}
