//! What a replica remembers of rows that it does not keep in memory: 32 bytes for each object.
//!
//! Three questions can be answered with it alone, without reading the row from disk. "Do you hold what I hold?" (a
//! get's second replica). "Do you hold what this write was made from?": then the written object, which is that one
//! with one more version, replaces it, and there is nothing to merge. Both take equal hashes for equal objects, as
//! read repair and anti-entropy do. And "what does a blind write replace?": if all that is held is one version, its
//! dot is the whole context.
//!
//! ```text
//!  set: 4 entries, two cache lines
//!  entry: hash of the row's key (8) | hash of the object (8), 0: none | counter (8) and actor (8) of its only version,
//!         counter 0: it has several, or that is not known
//! ```
//! A key belongs to one set. The entry written last comes first; the fourth falls out. Nothing is ever wrong because an
//! entry is missing. An entry must go when its row changes without it: whoever changes rows tells us.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::causality::Dot;
use crate::types::{ActorId, ObjectKey};

const WAYS: usize = 4;
type Set = [Entry; WAYS];

#[derive(Clone, Copy, Default)]
struct Entry {
    name: u64,
    hash: u64,
    sole_counter: u64,
    sole_actor: u64,
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
    seed: u64,
}

impl KnownObjects {
    /// Room for `bytes` of entries, at least one set. `seed`: unknown to clients, or they could choose keys that push
    /// each other out.
    pub fn new(bytes: usize, seed: u64) -> KnownObjects {
        let sets = (bytes / size_of::<Set>()).max(1);
        KnownObjects { sets: vec![Set::default(); sets], seed }
    }

    /// What is remembered of the object under `key`.
    pub fn get(&self, key: &ObjectKey) -> Option<Known> {
        let name = self.name(key);
        let set = &self.sets[self.index(name)];
        let entry = set.iter().find(|entry| entry.name == name && entry.hash != 0)?;
        let sole = Dot { counter: entry.sole_counter, actor: ActorId(entry.sole_actor) };
        Some(Known { hash: entry.hash, sole: (sole.counter != 0).then_some(sole) })
    }

    /// Remembers what is now under `key`; `None` forgets it.
    pub fn set(&mut self, key: &ObjectKey, known: Option<Known>) {
        let name = self.name(key);
        let index = self.index(name);
        let set = &mut self.sets[index];
        let place = set.iter().position(|entry| entry.name == name).unwrap_or(WAYS - 1);
        set[..=place].rotate_right(1);
        let hash = known.map_or(0, |known| known.hash);
        let sole = known.and_then(|known| known.sole);
        set[0] = Entry {
            name,
            hash,
            sole_counter: sole.map_or(0, |dot| dot.counter),
            sole_actor: sole.map_or(0, |dot| dot.actor.0),
        };
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
    }

    fn name(&self, key: &ObjectKey) -> u64 {
        xxh3_64_with_seed(key.row(), self.seed)
    }

    fn index(&self, name: u64) -> usize {
        ((name as u128 * self.sets.len() as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> ObjectKey {
        ObjectKey::new(b"b", &number.to_be_bytes()).expect("a short key")
    }

    #[test]
    fn remembers_the_latest_and_forgets_the_oldest_of_a_set() {
        let mut known = KnownObjects::new(0, 7);
        let some = |hash, sole| Some(Known { hash, sole });
        for number in 1..=4 {
            known.set(&key(number), some(number, None));
        }
        let dot = Dot { counter: 9, actor: ActorId(1) };
        known.set(&key(1), some(10, Some(dot)));
        known.set(&key(5), some(5, None));
        let found: Vec<_> = (1..=5).map(|number| known.get(&key(number))).collect();
        assert_eq!(found, [some(10, Some(dot)), None, some(3, None), some(4, None), some(5, None)]);
        known.set(&key(3), None);
        assert_eq!(known.get(&key(3)), None);
        known.clear();
        assert_eq!(known.get(&key(1)), None);
    }
}
