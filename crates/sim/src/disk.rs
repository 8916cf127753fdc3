//! A machine's disk: a [`MemoryStore`] that outlives the node's crash, watched by the history.
//!
//! The node owns a [`SharedStore`], the simulator the [`Disk`]; both are handles of the same memory. Every object the
//! node stores is noted with what the row held before, and handed to the history once the node has staged it (a
//! buffered
//! `sync`): that is the moment from which the node may speak of it. Only a durable `sync` saves it from a power
//! failure.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use oort_core::causality::Dot;
use oort_core::object::Object;
use oort_core::store::{Change, Durability, MemoryStore, Space, Store, StoreError, Visit};
use oort_core::types::{ObjectKey, Position};

/// One object that a node stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key: ObjectKey,
    /// The object written.
    pub after: Bytes,
    /// What the row held until then, if it could be read.
    pub before: Option<Bytes>,
}

#[derive(Debug, Default)]
struct Platter {
    memory: MemoryStore,
    applied: Vec<Stored>,
    staged: Vec<Stored>,
    dropped: Vec<(Bytes, Bytes)>,
    is_dirty: bool,
}

/// The simulator's handle of a machine's disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Platter>>);

/// The node's handle of its machine's disk.
#[derive(Debug)]
pub struct SharedStore(Disk);

impl Disk {
    /// A handle for a node to own.
    pub fn store(&self) -> SharedStore {
        SharedStore(self.clone())
    }

    /// Takes the objects that the node staged since the last call: from then on it may speak of them, though a power
    /// failure may still take them.
    pub fn take_staged(&self) -> Vec<Stored> {
        std::mem::take(&mut self.lock().staged)
    }

    /// Takes the rows that the node deleted since the last call, and what was in them: an update under way may still
    /// rest on that.
    pub fn take_dropped(&self) -> Vec<(Bytes, Bytes)> {
        std::mem::take(&mut self.lock().dropped)
    }

    /// True if a sync would have something to do.
    pub fn is_dirty(&self) -> bool {
        self.lock().is_dirty
    }

    /// Cuts the power: everything not durable is gone. Returns the dots that this copy lost.
    pub fn crash(&self) -> Vec<Dot> {
        let mut platter = self.lock();
        platter.applied.clear();
        platter.is_dirty = false;
        let before = dots(&platter.memory);
        platter.memory.crash();
        let after = dots(&platter.memory);
        before.difference(&after).copied().collect()
    }

    /// The dots of all siblings on it.
    pub fn dots(&self) -> Vec<Dot> {
        dots(&self.lock().memory).into_iter().collect()
    }

    /// From now on every sync fails (true), or works again (false).
    pub fn set_full(&self, is_full: bool) {
        self.lock().memory.set_full(is_full);
    }

    /// True if syncs fail.
    pub fn is_full(&self) -> bool {
        self.lock().memory.is_full()
    }

    /// True if some row of objects is damaged.
    pub fn has_corrupt_rows(&self) -> bool {
        self.lock().memory.has_corrupt(Space::Data)
    }

    /// Flips a bit of a row. False if there is no such row.
    pub fn corrupt(&self, space: Space, key: &[u8]) -> bool {
        self.lock().memory.corrupt(space, key)
    }

    /// A row; `None` if it is missing or corrupt.
    pub fn row(&self, space: Space, key: &[u8]) -> Option<Bytes> {
        self.lock().memory.get(space, key).ok().flatten()
    }

    /// True if a row is there, readable or not.
    pub fn has(&self, space: Space, key: &[u8]) -> bool {
        !matches!(self.lock().memory.get(space, key), Ok(None))
    }

    /// The rows of objects from one position to another, inclusive, in order; `None`: one that cannot be read.
    pub fn rows_between(&self, from: Position, to: Position) -> Vec<(ObjectKey, Option<Bytes>)> {
        let mut last = to.0.to_be_bytes().to_vec();
        last.extend_from_slice(&[0xff; 256]);
        let mut rows = Vec::new();
        self.lock().memory.scan(Space::Data, &from.0.to_be_bytes(), &last, &mut |row, value| {
            let key = ObjectKey::from_row(Bytes::copy_from_slice(row));
            rows.push((key.expect("a node stores objects under their rows"), value.ok().cloned()));
            true
        });
        rows
    }

    /// The rows that were deleted since [`Disk::take_dropped`], but for the first `known`.
    pub fn dropped_after(&self, known: usize) -> Vec<(Bytes, Bytes)> {
        self.lock().dropped.get(known..).unwrap_or_default().to_vec()
    }

    /// How much was deleted since [`Disk::take_dropped`].
    pub fn dropped_count(&self) -> usize {
        self.lock().dropped.len()
    }

    /// What a power failure would leave of a row; `None`: nothing that can be read.
    pub fn durable_row(&self, space: Space, key: &[u8]) -> Option<Bytes> {
        self.lock().memory.durable_row(space, key).cloned()
    }

    /// The keys of all rows of `space`, corrupt ones too.
    pub fn keys(&self, space: Space) -> Vec<Bytes> {
        self.lock().memory.rows(space).map(|(key, _)| key.clone()).collect()
    }

    /// Number of rows in `space`.
    pub fn count(&self, space: Space) -> usize {
        self.lock().memory.rows(space).count()
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        // Poisoned: a node panicked in a step. The run is over, but its report still reads the disks.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn dots(memory: &MemoryStore) -> BTreeSet<Dot> {
    memory
        .rows(Space::Data)
        .filter_map(|(_, bytes)| Object::decode(bytes).ok())
        .flat_map(|object| object.0.values().iter().map(|(dot, _)| *dot).collect::<Vec<_>>())
        .collect()
}

impl Store for SharedStore {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.lock().memory.get(space, key)
    }

    fn apply(&mut self, change: Change) {
        let mut platter = self.0.lock();
        if let (Space::Data, row, value) = &change {
            let before = platter.memory.get(Space::Data, row).ok().flatten();
            match value {
                Some(after) => {
                    let key =
                        ObjectKey::from_row(row.clone()).expect("a node stores objects under their rows");
                    platter.applied.push(Stored { key, after: after.clone(), before });
                }
                None => platter.dropped.extend(before.map(|before| (row.clone(), before))),
            }
        }
        platter.is_dirty = true;
        platter.memory.apply(change);
    }

    fn sync(&mut self, durability: Durability) -> Result<(), StoreError> {
        let mut platter = self.0.lock();
        let mut applied = std::mem::take(&mut platter.applied);
        platter.memory.sync(durability)?;
        platter.staged.append(&mut applied);
        if durability == Durability::Durable {
            platter.is_dirty = false;
        }
        Ok(())
    }

    fn scan(&mut self, space: Space, from: &[u8], to: &[u8], visit: &mut Visit) {
        self.0.lock().memory.scan(space, from, to, visit);
    }

    fn size_bytes(&self) -> u64 {
        self.0.lock().memory.size_bytes()
    }
}
