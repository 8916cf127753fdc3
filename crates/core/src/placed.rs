//! Which of the objects held have chosen their holders: when the ring changes they are looked at anew. And which of
//! them may be here without need.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::types::ObjectKey;

/// Keys of objects whose copies are at some of their owners only. Takes about 100 bytes for each.
#[derive(Debug, Default)]
pub struct PlacedKeys {
    keys: BTreeSet<ObjectKey>,
    /// What changed since the last sync, with what was so before.
    unsynced: Vec<(ObjectKey, bool)>,
    /// Those that have come since the last look: they may have chosen among the owners of before.
    news: BTreeSet<ObjectKey>,
    /// Objects that may have chosen others than this node, and when to look at them, in `mono_us`; 0: not known yet.
    looks: BTreeMap<ObjectKey, u64>,
    order: BTreeSet<(u64, ObjectKey)>,
}

impl PlacedKeys {
    /// The object under `key` has chosen its holders, or has not. True if that is news.
    pub fn set(&mut self, key: &ObjectKey, is_placed: bool) -> bool {
        if self.keys.contains(key) == is_placed {
            return false;
        }
        let key = key.detached();
        self.unsynced.push((key.clone(), !is_placed));
        if is_placed {
            self.news.insert(key.clone());
        }
        self.put(key, is_placed);
        true
    }

    /// Up to `limit` of those that have come since they were asked for last.
    pub fn take_news(&mut self, limit: usize) -> Vec<ObjectKey> {
        std::iter::from_fn(|| self.news.pop_first()).take(limit).collect()
    }

    /// True if some have come.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    fn put(&mut self, key: ObjectKey, is_placed: bool) {
        match is_placed {
            true => self.keys.insert(key),
            false => self.keys.remove(&key) | self.news.remove(&key),
        };
    }

    /// The store has everything.
    pub fn staged(&mut self) {
        self.unsynced.clear();
    }

    /// The store has taken back what changed since the last sync.
    pub fn undone(&mut self) {
        for (key, was_placed) in std::mem::take(&mut self.unsynced).into_iter().rev() {
            self.put(key, was_placed);
        }
    }

    /// True if the object under `key` has chosen its holders.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.keys.contains(key)
    }

    /// The object under `key` may be here without need.
    pub fn look_at(&mut self, key: &ObjectKey) {
        if !self.looks.contains_key(key) {
            self.look_again(key.detached(), 0);
        }
    }

    fn look_again(&mut self, key: ObjectKey, at_us: u64) {
        if let Some(before_us) = self.looks.insert(key.clone(), at_us) {
            self.order.remove(&(before_us, key.clone()));
        }
        self.order.insert((at_us, key));
    }

    /// Up to `limit` objects to look at by `now_us`. Those that are new are looked at after `pause_us`, and those that
    /// are returned again, unless [`PlacedKeys::looked`] says that there is no need.
    pub fn next_looks(&mut self, now_us: u64, pause_us: u64, limit: usize) -> Vec<ObjectKey> {
        let mut due = Vec::new();
        for _ in 0..limit {
            let Some((at_us, key)) = self.order.first().cloned().filter(|(at_us, _)| *at_us <= now_us) else {
                break;
            };
            if at_us > 0 {
                due.push(key.clone());
            }
            self.look_again(key, now_us + pause_us);
        }
        due
    }

    /// Nothing under `key` is here without need.
    pub fn looked(&mut self, key: &ObjectKey) {
        if let Some((key, at_us)) = self.looks.remove_entry(key) {
            self.order.remove(&(at_us, key));
        }
    }

    /// When the next object is to be looked at; 0: now.
    pub fn next_look_us(&self) -> Option<u64> {
        self.order.first().map(|(at_us, _)| *at_us)
    }

    /// Up to `limit` keys behind `after`, or the first ones.
    pub fn after(&self, after: Option<&ObjectKey>, limit: usize) -> Vec<ObjectKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range::<ObjectKey, _>((from, Bound::Unbounded)).take(limit).cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_took_back_is_taken_back() {
        let key = |name: &str| ObjectKey::new(b"b", name.as_bytes()).unwrap();
        let mut placed = PlacedKeys::default();
        assert!(placed.set(&key("a"), true) && placed.set(&key("b"), true));
        assert!(!placed.set(&key("a"), true));
        placed.staged();
        assert!(placed.set(&key("a"), false) && placed.set(&key("c"), true) && placed.set(&key("a"), true));
        placed.undone();
        let mut keys = placed.after(None, 9);
        assert_eq!(placed.after(Some(&keys[0]), 9), keys[1..]);
        keys.sort_by_key(|key| key.key().to_vec());
        assert_eq!(keys, [key("a"), key("b")]);
    }

    #[test]
    fn what_is_new_is_looked_at_after_a_while_until_there_is_no_need() {
        let key = |name: &str| ObjectKey::new(b"b", name.as_bytes()).unwrap();
        let mut placed = PlacedKeys::default();
        placed.look_at(&key("a"));
        assert_eq!((placed.next_look_us(), placed.next_looks(5, 10, 9)), (Some(0), Vec::new()));
        placed.look_at(&key("a"));
        placed.look_at(&key("b"));
        assert_eq!(placed.next_looks(15, 10, 9), [key("a")]);
        assert_eq!(placed.next_looks(25, 10, 1).len(), 1);
        assert_eq!(placed.next_looks(25, 10, 9).len(), 1);
        placed.looked(&key("a"));
        placed.looked(&key("b"));
        assert_eq!(placed.next_look_us(), None);
    }
}
