//! The part that knows fjall: opening it with our settings, batches, and scans that get past a damaged block.
//!
//! fjall is an LSM tree: a commit appends to the journal and inserts into a table in memory; background
//! threads write full tables to disk and merge them. Four of its habits shape this file.
//!
//! - A failed write *poisons* it: it takes no more writes, though it still reads. So does a failed background thread.
//! - A commit waits, without looking at the poison, while four memory tables are queued or 30 runs lie in level 0.
//!   If the thread that would clear the queue has died, it waits for ever. So we wait before it would, and look.
//! - It frees full memory tables under its lock; see `undertaker.rs`.
//! - A merge that meets a damaged block drops a row and a whole run from what follows, so that older values
//!   would come to light. After an error we never use that iterator again, but search where the damage ends.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::compaction::Leveled;
use fjall::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode};
use oort_core::store::{Durability, Space, StoreError};

use super::row::Row;
use super::undertaker::Undertaker;
use super::StorageOptions;

/// Names of the keyspaces, in the order of [`Space`].
const NAMES: [&str; 3] = ["data", "hints", "meta"];
/// fjall halts at 4 and 30; one more of each can come between our look and its own.
const SEALED_TABLES_MAX: usize = 3;
const LEVEL_0_RUNS_MAX: usize = 19;
/// How long a commit waits for background threads before it is refused.
const STALL_MAX: Duration = Duration::from_secs(5);
/// Level 0 is merged into the next level when it has this many tables. More tables make merges rarer, each row is
/// rewritten less often, and reads ask more filters.
const LEVEL_0_TABLES: u8 = 8;
const TABLE_BYTES: u64 = 32 << 20;
const FILTER_BITS_PER_KEY: f32 = 10.0;

/// An open database.
pub(super) struct Engine {
    keyspaces: [Keyspace; 3],
    database: Database,
    undertaker: Undertaker,
    /// Number of the memory table of each keyspace that the undertaker has.
    watched: [Option<u64>; 3],
}

impl Engine {
    /// Opens or makes the database in `directory`.
    pub(super) fn open(directory: &Path, options: &StorageOptions) -> fjall::Result<Engine> {
        let database = Database::builder(directory)
            .cache_size(options.block_cache_bytes as u64)
            .manual_journal_persist(true)
            // With two, the one kept free for flushes spins through the queue while the other merges: a core lost. A
            // flush waits for a merge instead, well within the memory tables that may queue.
            .worker_threads(1)
            .max_journaling_size(64 << 20)
            .open()?;
        let open =
            |space: Space| database.keyspace(NAMES[space as usize], || keyspace_options(space, options));
        let mut engine = Engine {
            keyspaces: [open(Space::Data)?, open(Space::Hints)?, open(Space::Meta)?],
            undertaker: Undertaker::start(NAMES.len())?,
            watched: [None; 3],
            database,
        };
        engine.watch_tables();
        Ok(engine)
    }

    /// The stored form of the value under `key`.
    pub(super) fn get(&self, space: Space, key: &[u8]) -> fjall::Result<Option<fjall::Slice>> {
        self.keyspace(space).get(key)
    }

    /// Writes `rows` as one batch.
    ///
    /// Errors: nothing of the batch is visible then, but it may be in the journal; see [`Engine::is_poisoned`].
    pub(super) fn commit<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = (Space, &'a Row)>,
        durability: Durability,
    ) -> Result<(), EngineError> {
        self.wait_for_workers()?;
        self.watch_tables();
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), rows.len())
            .durability(Some(persist_mode(durability)));
        for (space, row) in rows {
            match row.stored() {
                Some(stored) => batch.insert(self.keyspace(space), row.key(), stored),
                None => batch.remove(self.keyspace(space), row.key()),
            }
        }
        batch.commit().map_err(EngineError::Fjall)
    }

    /// Makes earlier batches durable.
    pub(super) fn persist(&self) -> Result<(), EngineError> {
        self.database.persist(PersistMode::SyncData).map_err(EngineError::Fjall)
    }

    /// Whether the database takes no more writes.
    pub(super) fn is_poisoned(&self) -> bool {
        // A persist that has nothing to do fails for no other reason.
        self.database.persist(PersistMode::Buffer).is_err()
    }

    /// The sequence number after that of every batch committed so far.
    pub(super) fn sequence_end(&self) -> u64 {
        self.database.visible_seqno()
    }

    /// Bytes of tables on disk.
    pub(super) fn tables_bytes(&self) -> u64 {
        self.keyspaces.iter().map(Keyspace::disk_space).sum()
    }

    /// All rows with `from <= key <= to`, ascending, with an error for each damaged place.
    pub(super) fn scan(&self, space: Space, from: &[u8], to: &[u8]) -> Scan<'_> {
        let keyspace = self.keyspace(space);
        Scan {
            keyspace,
            iter: (from <= to).then(|| keyspace.range(from..=to)),
            next_key: from.to_vec(),
            to: to.to_vec(),
        }
    }

    /// All rows of `space`.
    pub(super) fn scan_all(&self, space: Space) -> Scan<'_> {
        self.scan(space, &[], &[0xff; u16::MAX as usize])
    }

    /// Whether a row or a block cannot be read. O(rows).
    pub(super) fn is_damaged(&self) -> bool {
        [Space::Data, Space::Hints, Space::Meta]
            .into_iter()
            .any(|space| self.scan_all(space).any(|(_, row)| row.is_err()))
    }

    fn keyspace(&self, space: Space) -> &Keyspace {
        &self.keyspaces[space as usize]
    }

    /// Hands the undertaker memory tables that have come into use.
    fn watch_tables(&mut self) {
        for (keyspace, watched) in self.keyspaces.iter().zip(&mut self.watched) {
            let table = keyspace.tree.active_memtable();
            if *watched != Some(table.id()) {
                *watched = Some(table.id());
                self.undertaker.watch(table);
            }
        }
    }

    fn wait_for_workers(&self) -> Result<(), EngineError> {
        let mut started = None;
        while self.keyspaces.iter().any(is_behind) {
            if self.is_poisoned() {
                return Err(EngineError::Fjall(fjall::Error::Poisoned));
            }
            if started.get_or_insert_with(Instant::now).elapsed() > STALL_MAX {
                return Err(EngineError::Stalled);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn is_behind(keyspace: &Keyspace) -> bool {
    keyspace.sealed_memtable_count() >= SEALED_TABLES_MAX || keyspace.tree.l0_run_count() >= LEVEL_0_RUNS_MAX
}

/// Fixed when a directory is made: fjall keeps them with the keyspace.
fn keyspace_options(space: Space, options: &StorageOptions) -> KeyspaceCreateOptions {
    let memtable_bytes = match space {
        Space::Data => options.memtable_bytes,
        Space::Hints => options.memtable_bytes / 2,
        Space::Meta => options.memtable_bytes / 8,
    };
    let strategy = Leveled::default().with_l0_threshold(LEVEL_0_TABLES).with_table_target_size(TABLE_BYTES);
    let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(FILTER_BITS_PER_KEY));
    KeyspaceCreateOptions::default()
        .manual_journal_persist(true)
        .max_memtable_size(memtable_bytes as u64)
        .filter_policy(FilterPolicy::all(filter))
        .compaction_strategy(Arc::new(strategy))
}

fn persist_mode(durability: Durability) -> PersistMode {
    match durability {
        Durability::Buffered => PersistMode::Buffer,
        Durability::Durable => PersistMode::SyncData,
    }
}

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum EngineError {
    Fjall(fjall::Error),
    /// Background threads did not keep up; nothing is broken.
    Stalled,
}

impl EngineError {
    /// The operating system's text where there is one.
    pub(super) fn detail(&self) -> String {
        match self {
            EngineError::Fjall(error) => detail(error),
            EngineError::Stalled => format!("flushes and compactions are more than {STALL_MAX:?} behind"),
        }
    }
}

/// The operating system's text for `error` where there is one, else fjall's.
pub(super) fn detail(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => error.to_string(),
        fjall::Error::Poisoned => "a background flush or compaction failed".into(),
        fjall::Error::Storage(LsmError::ChecksumMismatch { .. }) => "checksum mismatch of a block".into(),
        error => format!("{error:?}"),
    }
}

/// A scan over one keyspace.
pub(super) struct Scan<'a> {
    keyspace: &'a Keyspace,
    iter: Option<fjall::Iter>,
    /// No row below this key will come.
    next_key: Vec<u8>,
    to: Vec<u8>,
}

/// A key with its row, or with what is wrong there. For a damaged block the key is where the damage may begin.
pub(super) type Scanned = (Vec<u8>, Result<Row, StoreError>);

impl Iterator for Scan<'_> {
    type Item = Scanned;

    fn next(&mut self) -> Option<Scanned> {
        match self.iter.as_mut()?.next()?.into_inner() {
            Ok((key, stored)) => {
                self.next_key.clear();
                self.next_key.extend_from_slice(&key);
                self.next_key.push(0);
                Some((key.to_vec(), Row::from_stored(&key, &stored).ok_or_else(mismatch)))
            }
            Err(error) => {
                let damaged = self.next_key.clone();
                self.resume();
                Some((damaged, Err(StoreError::Corrupt { detail: detail(&error) })))
            }
        }
    }
}

impl Scan<'_> {
    /// Goes on behind the damage at `next_key`, or ends the scan if it reaches to the end.
    ///
    /// Keys are not known inside a damaged block, so this searches the least 16 bytes after what all keys of
    /// the range have in common from which a scan works again: at most 128 tries of some microseconds each.
    fn resume(&mut self) {
        let shared = self.next_key.iter().zip(&self.to).take_while(|(a, b)| a == b).count();
        let mut low = window(&self.next_key[shared..], 0);
        let mut high = window(&self.to[shared..], 0xff);
        let key = |middle: u128| [&self.to[..shared], &middle.to_be_bytes()].concat();
        // Invariant: a scan from `low` fails, a scan from behind `high` has nothing left to fail on.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.works_from(&key(middle)) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        self.next_key = key(high);
        self.iter = (self.next_key <= self.to && self.works_from(&self.next_key))
            .then(|| self.keyspace.range(&self.next_key[..]..=&self.to[..]));
    }

    fn works_from(&self, from: &[u8]) -> bool {
        if from > &self.to[..] {
            return true;
        }
        let first = self.keyspace.range(from..=&self.to[..]).next();
        first.is_none_or(|row| row.key().is_ok())
    }
}

/// The first 16 bytes of `key` as a number, filled up with `fill`.
fn window(key: &[u8], fill: u8) -> u128 {
    let mut bytes = [fill; 16];
    let len = key.len().min(16);
    bytes[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(bytes)
}

/// A row's own checksum is wrong.
pub(super) fn mismatch() -> StoreError {
    StoreError::Corrupt { detail: "checksum mismatch of a row".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_compares_like_the_key() {
        let keys: [&[u8]; 5] = [b"", b"a", b"a\0\x01", b"ab", b"b"];
        for pair in keys.windows(2) {
            assert!(window(pair[0], 0) < window(pair[1], 0));
            assert!(window(pair[0], 0) <= window(pair[0], 0xff));
        }
        assert_eq!(window(&[0xff; 20], 0), u128::MAX);
    }
}
