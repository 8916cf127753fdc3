//! The part that knows fjall: opening it with our settings, bulk loads, and scans that get past a damaged block.
//!
//! fjall is an LSM tree. We bring it whole segments of the log, sorted, which it writes as tables of level 0 without
//! its own journal and memory tables: a row then costs it a fifth of the processor time of a batch. A thread of its
//! own merges tables. Three of its habits shape this file.
//!
//! - A failed merge *poisons* it: it takes no more writes, though it still reads.
//! - Loads do not wait for merges, so level 0 could grow for ever: we wait, and look whether it is poisoned.
//! - A merge that meets a damaged block drops a row and a whole run from what follows, so that older values
//!   would come to light. After an error we never use that iterator again, but search where the damage ends.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::compaction::filter::Factory;
use fjall::compaction::Leveled;
use fjall::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode};
use oort_core::store::{Space, StoreError};

use super::log::SegmentNumber;
use super::pace::{Pace, PacedMerges};
use super::row::Row;
use super::writeback::Writeback;
use super::StorageOptions;
use crate::descriptors::Spare;
use crate::errno::{cause, is_exhaustion};

/// Names of the keyspaces, in the order of [`Space`].
const NAMES: [&str; 3] = ["data", "hints", "meta"];
/// A load waits while level 0 has so many runs: each costs a read of an absent key one more filter.
const LEVEL_0_RUNS_MAX: usize = 32;
/// Merges are held back less with each so many runs of level 0 above those that begin one.
const LEVEL_0_RUNS_BEHIND: usize = 4;
/// How long a load waits for merges before it fails.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Level 0 is merged into the next level when it has this many tables. More tables make merges rarer, each row is
/// rewritten less often, and reads ask more filters.
const LEVEL_0_TABLES: u8 = 16;
/// A table is synced when it is complete, and the log waits behind it for the disk.
const TABLE_BYTES: u64 = 32 << 20;
const FILTER_BITS_PER_KEY: f32 = 10.0;

/// An open database; clones share it.
#[derive(Clone)]
pub(super) struct Engine {
    keyspaces: [Keyspace; 3],
    database: Database,
    _writeback: Arc<Writeback>,
    spare: Arc<Spare>,
    merges_behind: Arc<AtomicUsize>,
}

impl Engine {
    /// Opens or makes the database in `directory`.
    pub(super) fn open(directory: &Path, options: &StorageOptions) -> fjall::Result<Engine> {
        let behind = Arc::new(AtomicUsize::new(0));
        let pace: Arc<dyn Factory> = Arc::new(PacedMerges { behind: behind.clone() });
        let database = Database::builder(directory)
            .with_compaction_filter_factories(Arc::new(move |_| Some(pace.clone())))
            .cache_size(options.block_cache_bytes as u64)
            .manual_journal_persist(true)
            // For merges. With two, the one that fjall keeps free for flushes spins while the other merges.
            .worker_threads(1)
            .max_journaling_size(64 << 20)
            .max_cached_files(Some(options.open_tables))
            .open()?;
        let open = |space: Space| database.keyspace(NAMES[space as usize], keyspace_options);
        let keyspaces = [open(Space::Data)?, open(Space::Hints)?, open(Space::Meta)?];
        let writeback = Arc::new(Writeback::start(directory).map_err(fjall::Error::Io)?);
        let spare = Arc::new(Spare::open());
        Ok(Engine { keyspaces, database, _writeback: writeback, spare, merges_behind: behind })
    }

    /// The stored form of the value under `key`.
    pub(super) fn get(&self, space: Space, key: &[u8]) -> fjall::Result<Option<fjall::Slice>> {
        match self.keyspace(space).get(key) {
            Err(error) if is_out_of_descriptors(&error) => self.spare.lend(|| self.keyspace(space).get(key)),
            result => result,
        }
    }

    /// Writes the rows that `fill` brings durably: all of them or none.
    ///
    /// They come strictly ascending by key, and `None` deletes. Takes its time, less the further it is `behind`.
    pub(super) fn load(
        &self,
        space: Space,
        behind: impl Fn() -> usize,
        fill: impl FnOnce(&mut WriteRow) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut ingestion = self.keyspace(space).start_ingestion().map_err(EngineError::Fjall)?;
        let mut pace = Pace::start();
        fill(&mut |key, stored| {
            pace.wrote((key.len() + stored.map_or(0, <[u8]>::len)) as u64, behind());
            let written = match stored {
                Some(stored) => ingestion.write(key, stored),
                None => ingestion.write_tombstone(key),
            };
            written.map_err(EngineError::Fjall)
        })?;
        ingestion.finish().map_err(EngineError::Fjall)
    }

    /// Whether the database takes no more writes.
    pub(super) fn is_poisoned(&self) -> bool {
        // A persist that has nothing to do fails for no other reason.
        self.database.persist(PersistMode::Buffer).is_err()
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
            spare: &self.spare,
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
            .any(|space| self.scan_all(space).any(|(_, row)| matches!(row, Err(StoreError::Corrupt { .. }))))
    }

    fn keyspace(&self, space: Space) -> &Keyspace {
        &self.keyspaces[space as usize]
    }

    /// Waits until merges have caught up. Errors: they cannot, or not in time.
    pub(super) fn wait_for_merges(&self) -> Result<(), EngineError> {
        let started = Instant::now();
        loop {
            if self.is_poisoned() {
                return Err(EngineError::Fjall(fjall::Error::Poisoned));
            }
            let runs = self.keyspaces.iter().map(|keyspace| keyspace.tree.l0_run_count()).max().unwrap_or(0);
            let behind = runs.saturating_sub(LEVEL_0_TABLES as usize) / LEVEL_0_RUNS_BEHIND;
            self.merges_behind.store(behind, Ordering::Relaxed);
            if runs < LEVEL_0_RUNS_MAX {
                return Ok(());
            }
            if started.elapsed() > STALL_MAX {
                return Err(EngineError::Stalled);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Fixed when a directory is made: fjall keeps them with the keyspace.
fn keyspace_options() -> KeyspaceCreateOptions {
    let strategy = Leveled::default().with_l0_threshold(LEVEL_0_TABLES).with_table_target_size(TABLE_BYTES);
    let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(FILTER_BITS_PER_KEY));
    KeyspaceCreateOptions::default()
        .manual_journal_persist(true)
        .filter_policy(FilterPolicy::all(filter))
        .compaction_strategy(Arc::new(strategy))
}

/// Why a segment did not get into tables.
#[derive(Debug)]
pub(super) enum EngineError {
    Fjall(fjall::Error),
    /// The segment cannot be read, or not be removed.
    Log(io::Error),
    /// The segment does not hold any more what was written to it; memory still has its rows.
    Damaged {
        segment: SegmentNumber,
        detail: String,
    },
    /// Merges did not keep up; nothing is broken.
    Stalled,
}

impl EngineError {
    /// The operating system's text where there is one.
    pub(super) fn detail(&self) -> String {
        match self {
            EngineError::Fjall(error) => detail(error),
            EngineError::Log(error) => cause(error),
            EngineError::Damaged { detail, .. } => format!("{detail} are damaged"),
            EngineError::Stalled => format!("merges of tables are more than {STALL_MAX:?} behind"),
        }
    }
}

/// The operating system's text for `error` where there is one, else fjall's.
pub(super) fn detail(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => cause(error),
        fjall::Error::Poisoned => "a merge of tables failed".into(),
        fjall::Error::Storage(LsmError::ChecksumMismatch { .. }) => "checksum mismatch of a block".into(),
        error => format!("{error:?}"),
    }
}

/// What to make of a row that cannot be read.
///
/// The system says what it refuses, and only a checksum or a file of the wrong form says damage. One exception: a
/// sector that the disk cannot read any more (EIO) is as gone as a damaged one, and is mended from the replicas as
/// well.
pub(super) fn read_error(error: &fjall::Error) -> StoreError {
    let detail = detail(error);
    match io_error(error).and_then(io::Error::raw_os_error) {
        Some(number) if number != rustix::io::Errno::IO.raw_os_error() => StoreError::Unreadable { detail },
        _ => StoreError::Corrupt { detail },
    }
}

fn io_error(error: &fjall::Error) -> Option<&io::Error> {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => Some(error),
        _ => None,
    }
}

fn is_out_of_descriptors(error: &fjall::Error) -> bool {
    io_error(error).is_some_and(is_exhaustion)
}

/// Takes a key and what is stored under it.
pub(super) type WriteRow<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), EngineError> + 'a;

/// A scan over one keyspace.
pub(super) struct Scan<'a> {
    keyspace: &'a Keyspace,
    spare: &'a Spare,
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
        let mut row = self.iter.as_mut()?.next()?.into_inner();
        if row.as_ref().is_err_and(is_out_of_descriptors) {
            row = self.spare.lend(|| self.begin_again())?;
        }
        match row {
            Ok((key, stored)) => {
                self.next_key.clear();
                self.next_key.extend_from_slice(&key);
                self.next_key.push(0);
                Some((key.to_vec(), Row::from_stored(&key, &stored).ok_or_else(mismatch)))
            }
            Err(error) => {
                let damaged = self.next_key.clone();
                let error = read_error(&error);
                match &error {
                    StoreError::Corrupt { .. } => self.resume(),
                    // What is behind could not be read either: the scan ends, and says so.
                    StoreError::Unreadable { .. } | StoreError::ReadOnly { .. } => self.iter = None,
                }
                Some((damaged, Err(error)))
            }
        }
    }
}

impl Scan<'_> {
    /// The next row, by a new iterator: after an error the old one must not be used.
    fn begin_again(&mut self) -> Option<fjall::Result<(fjall::Slice, fjall::Slice)>> {
        let iter = self.iter.insert(self.keyspace.range(&self.next_key[..]..=&self.to[..]));
        Some(iter.next()?.into_inner())
    }

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
