//! The durable storage engine: a [`Store`] of a log, rows in memory, and tables that fjall keeps.
//!
//! One turn of the loop reads rows, applies changes and syncs once. What was applied is *pending* in memory, visible to
//! `get` and `scan` at once; `sync` appends all of it to the log as one record, with one fdatasync: the group commit.
//! The log is a row of segments; a thread writes each one that is full into tables, all of its rows in one sorted load.
//!
//! ```text
//!            get                         apply                     sync
//!             |                            |                         |
//!    rows: pending, fresh, cache  <--------'        log: one record, fdatasync
//!             | miss                                                 | a full segment
//!    engine: fjall's tables, block cache  <--- flusher: read, sort, load
//! ```
//! Differs: fjall has a journal and memory tables of its own, and we leave them empty. With them a durable overwrite
//! cost three times the processor time and its sync twice the time, and those were most of a `SET`.
//!
//! **When the disk refuses.** Everything since the last successful sync is forgotten, `sync` says `ReadOnly`, reads
//! go on. Before the disk is really full the space guard refuses, and nothing has happened. After an I/O error nothing
//! that the active segment holds is trusted, since after a failed fsync the kernel may have dropped pages that it still
//! shows: later syncs probe the disk, and when it writes again they make that segment anew from memory, which has all
//! its rows. A process that dies before that may find the refused record after its restart: nobody was told that it
//! is there, so that is an ordinary unacknowledged write. If tables cannot be written or merged, writes go on for
//! some segments, while fjall is opened anew from time to time.
//!
//! **When the disk lies.** Every row carries a checksum, log records and fjall's blocks another: a mismatch is
//! `Corrupt`, for that row or block only. If acknowledged writes are missing from the log,
//! [`Store::lost_writes`] says so, at every start, until it is told that the node has taken a new identity.
//!
//! Read next: `storage/log.rs`, `storage/rows.rs`, `storage/flusher.rs`, `storage/engine.rs`; `docs/disk.md` draws the
//! bytes.

mod engine;
mod flusher;
mod format;
mod log;
mod open;
mod pace;
mod rebuild;
mod row;
mod rows;
mod space;
mod writeback;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oort_core::store::{Change, Durability, Space, Store, StoreError, Visit};

use crate::errno::cause;

use engine::{Engine, EngineError};
use flusher::{Done, Flusher};
use log::{Record, Segment, SegmentNumber};
pub use open::{OpenError, WAY_OUT};
use row::Row;
use rows::Rows;
use space::SpaceGuard;

/// Sizes and limits of a store.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// Recent rows in memory, bookkeeping included. Too small: every write first reads from disk. Too large: swapping.
    pub cache_bytes: usize,
    /// fjall's cache of disk blocks. Too small: rows missing from the row cache cost a system call.
    pub block_cache_bytes: usize,
    /// Size of a segment of the log. Its rows stay in memory until they are in tables. Too small: more merging; too
    /// large: memory and a slower start.
    pub segment_bytes: usize,
    /// Writes are refused while the file system has less than this free. Too small: a merge of tables fills the
    /// disk and the store has to be opened anew; too large: space that is never used.
    pub reserve_bytes: u64,
    /// Time between attempts to mend the store after an I/O error. Too small: a broken disk keeps the node busy.
    pub retry_interval: Duration,
    /// Tables that are kept open. Too few: each read opens one; too many: clients run out of descriptors.
    pub open_tables: usize,
}

impl Default for StorageOptions {
    fn default() -> StorageOptions {
        StorageOptions {
            cache_bytes: 72 << 20,
            block_cache_bytes: 16 << 20,
            segment_bytes: 32 << 20,
            reserve_bytes: 64 << 20,
            retry_interval: Duration::from_secs(1),
            open_tables: 512,
        }
    }
}

/// A durable [`Store`] in a directory of its own.
///
/// Dropping it syncs what is pending, as [`FjallStore::close`] does, but cannot say that it failed.
pub struct FjallStore {
    directory: PathBuf,
    options: StorageOptions,
    rows: Rows,
    record: Record,
    active: Segment,
    /// The next segment, once it is made.
    spare: Option<Segment>,
    /// When and why it could not be made.
    spare_failure: Option<(Instant, String)>,
    /// `None` only while the engine is opened anew.
    flusher: Option<Flusher>,
    /// `None` after an attempt to open it anew has failed; then only rows in memory can be read.
    engine: Option<Engine>,
    space: SpaceGuard,
    /// Whether something is synced as `Buffered` only.
    has_buffered: bool,
    failure: Option<Failure>,
    trouble: Option<Trouble>,
    /// When a merge of tables last failed.
    merge_failed: Option<Instant>,
    lost: Option<String>,
    /// Why a row could not be read since the last sync, though nothing is damaged. What was written meanwhile may have
    /// been made without it, and is refused.
    unread: Option<String>,
    _lock: File,
}

/// Why the last sync was refused.
struct Failure {
    detail: String,
    kind: FailureKind,
}

enum FailureKind {
    /// Space is short; nothing is broken.
    Full,
    /// The active segment is not to be trusted.
    Log { attempted: Option<Instant> },
}

/// Why the flusher has stopped. Writes go on until too many segments wait for it.
struct Trouble {
    detail: String,
    attempted: Option<Instant>,
    /// A segment that has to be made anew from memory before it can be flushed.
    segment: Option<SegmentNumber>,
    /// Tables are damaged such that merging them fails again and again; the next start rebuilds them.
    is_final: bool,
}

/// Two failed merges within this time are no accident.
const RELAPSE: Duration = Duration::from_secs(60);
/// Sealed segments that wait for the flusher. More: memory. Fewer: writes wait while tables are merged.
const SEALED_MAX: usize = 4;
/// How long a sync waits for the flusher before it is refused.
const STALL_MAX: Duration = Duration::from_secs(5);

impl FjallStore {
    /// Opens the store in `directory`, or makes one if the directory is empty or missing.
    ///
    /// Takes as long as reading what of the log is not in tables yet: five segments at most.
    /// Errors: [`OpenError`].
    pub fn open(directory: &Path, options: StorageOptions) -> Result<FjallStore, OpenError> {
        open::open(directory, options)
    }

    /// What is missing, a line for each place; empty unless [`Store::lost_writes`].
    pub fn lost_writes_detail(&self) -> &str {
        self.lost.as_deref().unwrap_or_default()
    }

    /// Forgets that the store in `directory` has lost writes; a store that is open goes on saying so.
    ///
    /// Call it after the node's new identity is durable. If a crash comes before, or nobody calls it, the next start
    /// reports the loss again and the node takes one more identity: harmless.
    /// Errors: those of the file system; the loss is then reported again.
    pub fn acknowledge_lost_writes(directory: &Path) -> io::Result<()> {
        format::clear_lost(directory)
    }

    /// Makes everything applied durable and closes the store.
    ///
    /// Errors: as [`Store::sync`]; the store is closed nevertheless.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.sync_rest()
    }

    /// Syncs what is not durable yet. A store that refuses writes but has nothing to write may close in peace.
    fn sync_rest(&mut self) -> Result<(), StoreError> {
        match self.has_buffered || self.rows.has_pending() {
            true => self.sync(Durability::Durable),
            false => Ok(()),
        }
    }

    fn engine(&self) -> Result<&Engine, StoreError> {
        self.engine.as_ref().ok_or_else(|| {
            let detail = self.trouble.as_ref().map_or("", |trouble| &trouble.detail);
            StoreError::Unreadable { detail: detail.to_string() }
        })
    }

    fn read(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let stored = self.engine()?.get(space, key).map_err(|error| engine::read_error(&error))?;
        let row = match stored {
            Some(stored) => Row::from_stored(key, &stored).ok_or_else(engine::mismatch)?,
            None => Row::absent(key),
        };
        let value = row.value();
        self.rows.remember(space, row);
        Ok(value)
    }

    fn try_sync(&mut self, durability: Durability) -> Result<(), String> {
        self.hear_flusher();
        self.recover()?;
        if let Some(detail) = self.unread.take().filter(|_| self.rows.has_pending()) {
            return Err(format!("a row could not be read: {detail}"));
        }
        if self.rows.has_pending() {
            self.append()?;
        }
        if durability == Durability::Durable && self.has_buffered {
            self.active.sync().map_err(|error| self.fail_log(&error))?;
            self.has_buffered = false;
        }
        self.rows.commit();
        Ok(())
    }

    /// Writes the pending rows to the log.
    fn append(&mut self) -> Result<(), String> {
        self.record.clear();
        for (space, row) in self.rows.pending() {
            self.record.push(space, row);
        }
        self.space.admit(self.record.len_bytes() as u64).inspect_err(|detail| {
            self.failure = Some(Failure { detail: detail.clone(), kind: FailureKind::Full });
        })?;
        if !self.active.has_room(&self.record) {
            self.seal()?;
        }
        self.active.append(&mut self.record).map_err(|error| self.fail_log(&error))?;
        self.has_buffered = true;
        Ok(())
    }

    /// Goes on in a new segment and has the full one flushed.
    fn seal(&mut self) -> Result<(), String> {
        // Only the newest segment may have a torn tail.
        self.active.sync().map_err(|error| self.fail_log(&error))?;
        let next = self.next_segment()?;
        self.rows.seal(next.number());
        let full = std::mem::replace(&mut self.active, next);
        self.make_spare();
        if let Some(flusher) = &self.flusher {
            flusher.flush(full.number());
        }
        Ok(())
    }

    /// The next segment, as soon as there is one and not too many wait to be flushed.
    fn next_segment(&mut self) -> Result<Segment, String> {
        let started = Instant::now();
        if self.spare_failure.as_ref().is_some_and(|(at, _)| at.elapsed() >= self.options.retry_interval) {
            self.make_spare();
        }
        loop {
            if self.rows.sealed().len() < SEALED_MAX {
                if let Some(segment) = self.spare.take() {
                    return Ok(segment);
                }
            }
            self.mend()?;
            if let Some((_, detail)) = &self.spare_failure {
                return Err(detail.clone());
            }
            let patience = STALL_MAX.saturating_sub(started.elapsed());
            match self.flusher.as_ref().map(|flusher| flusher.wait(patience)) {
                Some(Ok(done)) => self.note(done),
                Some(Err(RecvTimeoutError::Disconnected)) => {
                    let error = io::Error::other("the thread that writes tables has died");
                    self.stop_flushing(&EngineError::Log(error));
                }
                _ => return Err(format!("writing tables is more than {STALL_MAX:?} behind")),
            }
        }
    }

    fn make_spare(&mut self) {
        self.spare_failure = None;
        if let Some(flusher) = &self.flusher {
            flusher.make(self.active.number() + 1);
        }
    }

    fn hear_flusher(&mut self) {
        while let Some(done) = self.flusher.as_ref().and_then(Flusher::poll) {
            self.note(done);
        }
        // Whoever has to wait for the tables is told why; the others need not know.
        let _ = self.mend();
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Made(Ok(segment)) => self.spare = Some(segment),
            Done::Made(Err(error)) => {
                tracing::error!(%error, "the next segment of the log cannot be made");
                self.spare_failure = Some((Instant::now(), cause(&error)));
            }
            Done::Flushed(segment) => self.rows.set_flushed(segment),
            Done::Failed(error) => self.stop_flushing(&error),
        }
    }

    fn stop_flushing(&mut self, error: &EngineError) {
        let mut trouble = Trouble { detail: error.detail(), attempted: None, segment: None, is_final: false };
        match error {
            EngineError::Damaged { segment, .. } => trouble.segment = Some(*segment),
            EngineError::Fjall(fjall::Error::Poisoned) => {
                let before = self.merge_failed.replace(Instant::now());
                let is_relapse = before.is_some_and(|before| before.elapsed() < RELAPSE);
                if is_relapse && self.engine.as_ref().is_some_and(Engine::is_damaged) {
                    trouble.is_final = true;
                    trouble.detail =
                        "tables are damaged and cannot be merged: restart the node to rebuild them".into();
                    if let Err(error) = format::request_rebuild(&self.directory) {
                        tracing::error!(%error, "the rebuild could not be requested");
                    }
                }
            }
            _ => {}
        }
        tracing::error!(detail = trouble.detail, "tables cannot be written");
        self.trouble = Some(trouble);
    }

    /// Opens the engine anew after the flusher has stopped, if it is time to. Errors: why not, in words.
    fn mend(&mut self) -> Result<(), String> {
        let Some(trouble) = &mut self.trouble else { return Ok(()) };
        if trouble.is_final || trouble.attempted.is_some_and(|at| at.elapsed() < self.options.retry_interval)
        {
            return Err(trouble.detail.clone());
        }
        trouble.attempted = Some(Instant::now());
        let segment = trouble.segment;
        if let Err(detail) = self.reopen(segment) {
            if let Some(trouble) = &mut self.trouble {
                trouble.detail.clone_from(&detail);
            }
            return Err(detail);
        }
        tracing::warn!("tables are written again");
        self.trouble = None;
        Ok(())
    }

    fn reopen(&mut self, damaged: Option<SegmentNumber>) -> Result<(), String> {
        if let Some(number) = damaged {
            self.replace_segment(number).map_err(|error| cause(&error))?;
        }
        self.flusher = None;
        self.engine = None;
        let engine = open::open_engine(&self.directory, &self.options).map_err(|error| error.to_string())?;
        self.engine = Some(engine);
        self.start_flusher().map_err(|error| cause(&error))
    }

    /// Gives a new flusher all there is to do.
    fn start_flusher(&mut self) -> io::Result<()> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let flusher = Flusher::start(&self.directory, self.options.segment_bytes as u64, engine)?;
        let flusher = self.flusher.insert(flusher);
        if self.spare.is_none() {
            self.spare_failure = None;
            flusher.make(self.active.number() + 1);
        }
        self.rows.sealed().for_each(|number| flusher.flush(number));
        Ok(())
    }

    fn replace_segment(&self, number: SegmentNumber) -> io::Result<Segment> {
        let len_bytes = self.options.segment_bytes as u64;
        Segment::replace(&self.directory, number, len_bytes, self.rows.of_segment(number))
    }

    /// Notes that the log refused, and returns why in words.
    fn fail_log(&mut self, error: &io::Error) -> String {
        let detail = cause(error);
        tracing::error!(detail, "the disk refuses writes");
        self.failure = Some(Failure { detail: detail.clone(), kind: FailureKind::Log { attempted: None } });
        detail
    }

    /// Tries to take writes again after a refused sync. Errors: why not, in words.
    fn recover(&mut self) -> Result<(), String> {
        if let Some(Trouble { is_final: true, detail, .. }) = &self.trouble {
            return Err(detail.clone());
        }
        let Some(Failure { detail, kind }) = &mut self.failure else { return Ok(()) };
        self.space.admit(0)?;
        if let FailureKind::Log { attempted } = kind {
            if attempted.is_some_and(|at| at.elapsed() < self.options.retry_interval) {
                return Err(detail.clone());
            }
            *attempted = Some(Instant::now());
            let result = probe(&self.directory).and_then(|()| self.replace_segment(self.active.number()));
            match result {
                Ok(segment) => self.active = segment,
                Err(error) => {
                    let detail = cause(&error);
                    if let Some(failure) = &mut self.failure {
                        failure.detail.clone_from(&detail);
                    }
                    return Err(detail);
                }
            }
            self.has_buffered = false;
            tracing::warn!("the disk takes writes again");
        }
        self.failure = None;
        Ok(())
    }
}

impl Store for FjallStore {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.rows.get(space, key) {
            Some(row) => Ok(row.value()),
            None if key.is_empty() => Ok(None),
            None => self.read(space, key).inspect_err(|error| note_unread(&mut self.unread, error)),
        }
    }

    /// Panics on a key that is empty or longer than 65,535 bytes: the core's keys are neither.
    fn apply(&mut self, (space, key, value): Change) {
        assert!(!key.is_empty(), "a row's key is empty");
        assert!(key.len() <= 0xffff, "a row's key has {} bytes, more than 65535", key.len());
        self.rows.apply(space, Row::new(&key, value.as_deref()));
    }

    fn sync(&mut self, durability: Durability) -> Result<(), StoreError> {
        self.try_sync(durability).map_err(|detail| {
            self.rows.rollback();
            read_only(detail)
        })
    }

    fn scan(&mut self, space: Space, from: &[u8], to: &[u8], visit: &mut Visit) {
        let Some(engine) = &self.engine else {
            if let Err(error) = self.engine() {
                note_unread(&mut self.unread, &error);
                visit(from, Err(error));
            }
            return;
        };
        let mut newer = self.rows.newer_than_tables(space, from, to).peekable();
        let mut stored = engine.scan(space, from, to).peekable();
        loop {
            let is_newer_next = match (newer.peek(), stored.peek()) {
                (None, None) => return,
                (None, Some(_)) => false,
                (Some(_), None) => true,
                (Some(row), Some((key, found))) => {
                    // A newer row hides the stored one. A damaged place hides nothing: it is not one row.
                    if row.key() == &key[..] && found.is_ok() {
                        stored.next();
                        continue;
                    }
                    row.key() < &key[..]
                }
            };
            let next = match is_newer_next {
                true => newer.next().map(|row| (row.key().to_vec(), Ok(row.clone()))),
                false => stored.next(),
            };
            let goes_on = match next {
                Some((key, Ok(row))) => row.value().is_none_or(|value| visit(&key, Ok(&value))),
                Some((key, Err(error))) => {
                    note_unread(&mut self.unread, &error);
                    visit(&key, Err(error))
                }
                None => return,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Also true if an earlier start found it and [`FjallStore::acknowledge_lost_writes`] was not called since.
    fn lost_writes(&self) -> bool {
        self.lost.is_some()
    }

    /// Tables and log, in bytes. Reads the log's directory.
    fn size_bytes(&self) -> u64 {
        let tables_bytes = self.engine.as_ref().map_or(0, Engine::tables_bytes);
        tables_bytes + log::size_bytes(&self.directory).unwrap_or(0)
    }
}

impl Drop for FjallStore {
    fn drop(&mut self) {
        if let Err(error) = self.sync_rest() {
            tracing::error!(%error, "the last sync of the store failed");
        }
    }
}

/// Whether the disk takes a write and makes it durable.
fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join("PROBE");
    let result = File::create(&path).and_then(|mut file| {
        file.write_all(&[0; 64 << 10])?;
        file.sync_all()
    });
    // It may not exist, and what the probe found matters more.
    let _ = fs::remove_file(&path);
    result
}

/// Keeps why a row could not be read, unless it is damaged: then nothing can be lost by writing it anew.
fn note_unread(unread: &mut Option<String>, error: &StoreError) {
    if let StoreError::Unreadable { detail } = error {
        *unread = Some(detail.clone());
    }
}

fn read_only(detail: String) -> StoreError {
    StoreError::ReadOnly { detail }
}
