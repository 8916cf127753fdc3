//! Which of the objects held have chosen their holders: when the ring changes they are looked at anew.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;

use crate::types::ObjectKey;

/// Keys of objects whose copies are at some of their owners only. Takes about 100 bytes for each.
#[derive(Debug, Default)]
pub struct PlacedKeys {
    keys: BTreeSet<ObjectKey>,
    /// What changed since the last sync, with what was so before.
    unsynced: Vec<(ObjectKey, bool)>,
}

impl PlacedKeys {
    /// The object under `key` has chosen its holders, or has not. True if that is news.
    pub fn set(&mut self, key: &ObjectKey, is_placed: bool) -> bool {
        if self.keys.contains(key) == is_placed {
            return false;
        }
        // A key is often part of a message, all of which it would keep in memory.
        let row = Bytes::copy_from_slice(key.row());
        let key = ObjectKey::from_row(row).expect("it is the row of a key");
        self.unsynced.push((key.clone(), !is_placed));
        self.put(key, is_placed);
        true
    }

    fn put(&mut self, key: ObjectKey, is_placed: bool) {
        match is_placed {
            true => self.keys.insert(key),
            false => self.keys.remove(&key),
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

    /// Up to `limit` keys behind `after`, or the first ones.
    pub fn after(&self, after: Option<&ObjectKey>, limit: usize) -> Vec<ObjectKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range::<ObjectKey, _>((from, Bound::Unbounded)).take(limit).cloned().collect()
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
}
