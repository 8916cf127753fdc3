//! What the algorithm asks of a storage engine, and the engine that forgets on purpose.
//!
//! Calls are synchronous and made inside a step. `apply` is visible at once but promises nothing; `sync` makes
//! everything applied since the last one durable, together or not at all. The loop syncs once per turn and only then
//! lets the turn's messages go: that one call is the group commit.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

/// Ordered key spaces that share one atomic batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Space {
    /// Objects, by [`crate::types::ObjectKey`] row.
    Data,
    /// What absent nodes miss: owner (8 bytes big-endian), then the row.
    Hints,
    /// Identity, lease, members, ring, buckets: few and small.
    Meta,
}

/// Why the engine could not do it. Texts are the operating system's or the engine's. Only checksums say damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// A row's checksum does not match: it must come from another replica.
    Corrupt { detail: String },
    /// A row cannot be read now, for want of descriptors, say. Nothing is damaged, and it may be read later; what was
    /// written in the same turn is refused, since it may have been made without the row.
    Unreadable { detail: String },
    /// The disk refuses writes; everything since the last sync is undone and reads still work.
    ReadOnly { detail: String },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            StoreError::Corrupt { detail } => write!(f, "stored data are corrupt: {detail}"),
            StoreError::Unreadable { detail } => write!(f, "a row cannot be read now: {detail}"),
            StoreError::ReadOnly { detail } => write!(f, "the store refuses writes: {detail}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Whether a sync waits for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The operating system has it: survives the process, not the machine.
    Buffered,
    /// The disk has it.
    Durable,
}

/// One change: `None` deletes.
pub type Change = (Space, Bytes, Option<Bytes>);

/// A storage engine. One thread uses it.
pub trait Store: Send {
    /// The value under `key`, or `None`. Sees everything applied. Errors: [`StoreError::Corrupt`],
    /// [`StoreError::Unreadable`].
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Applies `change`: visible at once, durable with the next [`Store::sync`], atomically with all others since
    /// the last. Never fails: what the disk says, `sync` reports.
    fn apply(&mut self, change: Change);

    /// Makes everything applied so far durable, as one batch.
    ///
    /// Errors: [`StoreError::ReadOnly`]; everything applied since the last success is then undone and no longer
    /// visible. A later call, with or without changes, tries the disk again and may succeed.
    fn sync(&mut self, durability: Durability) -> Result<(), StoreError>;

    /// Visits rows with `from <= key <= to` in ascending order, until `visit` returns false.
    ///
    /// Sees everything applied. A corrupt row is handed over as `Err`, and the scan goes on where that is possible;
    /// after [`StoreError::Unreadable`] it ends.
    fn scan(&mut self, space: Space, from: &[u8], to: &[u8], visit: &mut Visit);

    /// Deletes all rows with `from <= key <= to`; durable with the next sync.
    fn drop_range(&mut self, space: Space, from: &[u8], to: &[u8]) {
        let mut keys = Vec::new();
        self.scan(space, from, to, &mut |key, _| {
            keys.push(Bytes::copy_from_slice(key));
            true
        });
        for key in keys {
            self.apply((space, key, None));
        }
    }

    /// Bytes on disk, or in memory for an engine without one.
    fn size_bytes(&self) -> u64;

    /// True if opening found durable writes gone (a damaged log, say): the node then takes a new actor.
    fn lost_writes(&self) -> bool {
        false
    }
}

/// What a scan calls for each row: false ends it.
pub type Visit<'a> = dyn FnMut(&[u8], Result<&Bytes, StoreError>) -> bool + 'a;

/// An engine in memory that can lose what was not synced, corrupt a row and fill up, as disks do.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: BTreeMap<(Space, Bytes), Bytes>,
    corrupt: BTreeMap<(Space, Bytes), ()>,
    /// What each row changed since the last durable sync was before, so that a crash can bring it back.
    undo: BTreeMap<(Space, Bytes), Option<Bytes>>,
    /// The same since the last sync of either kind, for a refused sync.
    undo_turn: BTreeMap<(Space, Bytes), Option<Bytes>>,
    is_full: bool,
    is_exhausted: bool,
    /// A row could not be read since the last sync.
    has_unread: bool,
}

impl MemoryStore {
    /// An empty engine.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Loses everything after the last durable sync, as a power failure does.
    pub fn crash(&mut self) {
        for (key, before) in std::mem::take(&mut self.undo_turn) {
            self.restore(key, before);
        }
        for (key, before) in std::mem::take(&mut self.undo) {
            self.restore(key, before);
        }
    }

    /// What a power failure would leave of a row; `None`: nothing that can be read.
    pub fn durable_row(&self, space: Space, key: &[u8]) -> Option<&Bytes> {
        let key = (space, Bytes::copy_from_slice(key));
        if self.corrupt.contains_key(&key) {
            return None;
        }
        let undone = self.undo.get(&key).or_else(|| self.undo_turn.get(&key));
        undone.map_or_else(|| self.rows.get(&key), Option::as_ref)
    }

    /// From now on every sync fails (true), or works again (false).
    pub fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    /// True if syncs fail.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// From now on no row can be read although none is damaged (true), as without a descriptor, or all can (false).
    pub fn set_exhausted(&mut self, is_exhausted: bool) {
        self.is_exhausted = is_exhausted;
    }

    /// Flips a bit of a row: reading it fails until it is written again. False if there is no such row.
    pub fn corrupt(&mut self, space: Space, key: &[u8]) -> bool {
        let key = (space, Bytes::copy_from_slice(key));
        let exists = self.rows.contains_key(&key);
        if exists {
            self.corrupt.insert(key, ());
        }
        exists
    }

    /// True if a row of `space` is corrupt.
    pub fn has_corrupt(&self, space: Space) -> bool {
        self.corrupt.keys().any(|(of, _)| *of == space)
    }

    /// All rows of `space`, for checkers.
    pub fn rows(&self, space: Space) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.rows.iter().filter(move |((s, _), _)| *s == space).map(|((_, key), value)| (key, value))
    }

    fn restore(&mut self, key: (Space, Bytes), before: Option<Bytes>) {
        match before {
            Some(value) => self.rows.insert(key, value),
            None => self.rows.remove(&key),
        };
    }

    fn corruption() -> StoreError {
        StoreError::Corrupt { detail: "checksum mismatch".into() }
    }

    fn exhaustion() -> StoreError {
        StoreError::Unreadable { detail: "too many open files (EMFILE)".into() }
    }
}

impl Store for MemoryStore {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let key = (space, Bytes::copy_from_slice(key));
        if self.corrupt.contains_key(&key) {
            return Err(MemoryStore::corruption());
        }
        if self.is_exhausted {
            self.has_unread = true;
            return Err(MemoryStore::exhaustion());
        }
        Ok(self.rows.get(&key).cloned())
    }

    fn apply(&mut self, (space, key, value): Change) {
        let key = (space, key);
        self.corrupt.remove(&key);
        let before = match value {
            Some(value) => self.rows.insert(key.clone(), value),
            None => self.rows.remove(&key),
        };
        self.undo_turn.entry(key).or_insert(before);
    }

    fn sync(&mut self, durability: Durability) -> Result<(), StoreError> {
        let has_unread = std::mem::take(&mut self.has_unread) && !self.undo_turn.is_empty();
        if self.is_full || has_unread {
            for (key, before) in std::mem::take(&mut self.undo_turn) {
                self.restore(key, before);
            }
            return Err(match self.is_full {
                true => StoreError::ReadOnly { detail: "no space left on device".into() },
                false => StoreError::ReadOnly { detail: MemoryStore::exhaustion().to_string() },
            });
        }
        for (key, before) in std::mem::take(&mut self.undo_turn) {
            self.undo.entry(key).or_insert(before);
        }
        if durability == Durability::Durable {
            self.undo.clear();
        }
        Ok(())
    }

    fn scan(&mut self, space: Space, from: &[u8], to: &[u8], visit: &mut Visit) {
        if from > to {
            return;
        }
        let range = (space, Bytes::copy_from_slice(from))..=(space, Bytes::copy_from_slice(to));
        if self.is_exhausted {
            self.has_unread = true;
            visit(from, Err(MemoryStore::exhaustion()));
            return;
        }
        for (key, value) in self.rows.range(range) {
            let row = match self.corrupt.contains_key(key) {
                true => Err(MemoryStore::corruption()),
                false => Ok(value),
            };
            if !visit(&key.1, row) {
                return;
            }
        }
    }

    fn size_bytes(&self) -> u64 {
        self.rows.iter().map(|((_, key), value)| (key.len() + value.len()) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut MemoryStore, key: &'static str, value: &'static str) {
        store.apply((Space::Data, key.into(), Some(value.into())));
    }

    fn get(store: &mut MemoryStore, key: &str) -> Option<Bytes> {
        store.get(Space::Data, key.as_bytes()).unwrap()
    }

    #[test]
    fn a_crash_loses_what_was_not_durable() {
        let mut store = MemoryStore::new();
        put(&mut store, "a", "1");
        store.sync(Durability::Durable).unwrap();
        put(&mut store, "a", "2");
        store.sync(Durability::Buffered).unwrap();
        put(&mut store, "b", "3");
        assert_eq!(get(&mut store, "a"), Some("2".into()));
        store.crash();
        assert_eq!(get(&mut store, "a"), Some("1".into()));
        assert_eq!(get(&mut store, "b"), None);
    }

    #[test]
    fn a_full_disk_undoes_the_turn_and_recovers() {
        let mut store = MemoryStore::new();
        put(&mut store, "a", "1");
        store.sync(Durability::Buffered).unwrap();
        store.set_full(true);
        put(&mut store, "a", "2");
        assert!(store.sync(Durability::Durable).is_err());
        assert_eq!(get(&mut store, "a"), Some("1".into()));
        store.set_full(false);
        put(&mut store, "a", "3");
        store.sync(Durability::Durable).unwrap();
        store.crash();
        assert_eq!(get(&mut store, "a"), Some("3".into()));
    }

    #[test]
    fn corruption_is_reported_until_the_row_is_written_again() {
        let mut store = MemoryStore::new();
        put(&mut store, "a", "1");
        assert!(store.corrupt(Space::Data, b"a"));
        assert!(store.get(Space::Data, b"a").is_err());
        put(&mut store, "a", "1");
        assert_eq!(get(&mut store, "a"), Some("1".into()));
    }
}
