//! The durable storage engine: a [`Store`] on fjall.
//!
//! One turn of the loop reads rows, applies changes and syncs once. So what was applied is *pending* in memory, visible
//! to
//! `get` and `scan` at once, and `sync` hands all of it to fjall as one atomic batch with one fsync: the group commit.
//!
//! ```text
//!            get                         apply                     sync
//!             |                            |                         |
//!    rows: pending + cache  <--------------'         one batch: journal, fsync
//!             | miss                                                 |
//!    engine: fjall (memory tables, tables on disk, block cache) <----'
//! ```
//! **When the disk refuses.** Everything since the last successful sync is forgotten, `sync` says `ReadOnly`, reads
//! go on. Before the disk is really full the space guard refuses, and nothing has happened. After an I/O error fjall
//! takes no more writes: later syncs probe the disk, and when it writes again they close fjall, cut from the journal
//! what was never acknowledged, copy the rest to new files (after a failed fsync the kernel may have dropped pages that
//! it still shows us), and open it anew. A process that dies before that may find the refused batch after its restart:
//! nobody was told that it is there, so that is an ordinary unacknowledged write.
//!
//! **When the disk lies.** Every row carries a checksum, fjall's blocks another: a mismatch is `Corrupt`, for that row
//! or block only. Journals are checked before fjall reads them; if acknowledged writes are missing,
//! [`Store::lost_writes`] says so, at every start, until it is told that the node has taken a new identity.
//!
//! Read next: `storage/rows.rs`, `storage/engine.rs`, `storage/journal.rs`; `docs/disk.md` draws the bytes.

mod engine;
mod format;
mod journal;
mod rebuild;
mod row;
mod rows;
mod space;
mod undertaker;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oort_core::store::{Change, Durability, Space, Store, StoreError, Visit};

use engine::{Engine, EngineError};
use format::State;
use journal::Keep;
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
    /// Size at which the memory table of objects is written to disk (hints: half, metadata: an eighth). Too small: more
    /// merging; too large: memory, slower inserts and slower recovery. Fixed when the directory is made.
    pub memtable_bytes: usize,
    /// Writes are refused while the file system has less than this free. Too small: a merge of tables fills the
    /// disk and the store has to be opened anew; too large: space that is never used.
    pub reserve_bytes: u64,
    /// Time between attempts to open fjall anew after an I/O error. Too small: a broken disk keeps the node busy.
    pub retry_interval: Duration,
}

impl Default for StorageOptions {
    fn default() -> StorageOptions {
        StorageOptions {
            cache_bytes: 64 << 20,
            block_cache_bytes: 16 << 20,
            memtable_bytes: 16 << 20,
            reserve_bytes: 64 << 20,
            retry_interval: Duration::from_secs(1),
        }
    }
}

/// Why a store could not be opened. Nothing in the directory was changed, except for `Corrupt` and `Io`.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it open.
    Locked { directory: PathBuf },
    /// It holds something else.
    Foreign { directory: PathBuf, detail: String },
    /// Another version of this program made it.
    Version { directory: PathBuf, found: u32, supported: u32 },
    /// Its files are damaged beyond what replicas can repair row by row: empty it and let the node join anew.
    Corrupt { directory: PathBuf, detail: String },
    /// The operating system refused.
    Io { path: PathBuf, source: io::Error },
}

impl OpenError {
    fn io(path: &Path, source: io::Error) -> OpenError {
        OpenError::Io { path: path.to_path_buf(), source }
    }

    fn engine(directory: &Path, error: fjall::Error) -> OpenError {
        let directory = directory.to_path_buf();
        match error {
            fjall::Error::Io(source) => OpenError::Io { path: directory, source },
            fjall::Error::Locked => OpenError::Locked { directory },
            error => OpenError::Corrupt { directory, detail: engine::detail(&error) },
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            OpenError::Locked { directory } => {
                write!(f, "{} is in use by another process", directory.display())
            }
            OpenError::Foreign { directory, detail } => {
                write!(f, "{} is not an oort data directory: {detail}", directory.display())
            }
            OpenError::Version { directory, found, supported } => write!(
                f,
                "{} has on-disk format {found}, this program reads format {supported}",
                directory.display()
            ),
            OpenError::Corrupt { directory, detail } => {
                write!(f, "{} is damaged: {detail}; empty it and join the node anew", directory.display())
            }
            OpenError::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { source, .. } => Some(source),
            _ => None,
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
    /// `None` after an attempt to open it anew has failed; then only cached rows can be read.
    engine: Option<Engine>,
    space: SpaceGuard,
    /// Batches with numbers below this were acknowledged; those above, if any, were refused.
    sequence_end: u64,
    /// Whether something is synced as `Buffered` only.
    has_buffered: bool,
    failure: Option<Failure>,
    /// When background threads of the engine last failed.
    background_failed: Option<Instant>,
    lost: Option<String>,
    _lock: File,
}

/// Why the last sync was refused.
struct Failure {
    detail: String,
    kind: FailureKind,
}

enum FailureKind {
    /// Space is short; the engine is whole.
    Full,
    /// The engine takes no more writes.
    Broken { attempted: Option<Instant> },
    /// Tables are damaged such that merging them fails again and again; the next start rebuilds them.
    Damaged,
}

/// Two failures of background threads within this time are no accident.
const RELAPSE: Duration = Duration::from_secs(60);

impl FjallStore {
    /// Opens the store in `directory`, or makes one if the directory is empty or missing.
    ///
    /// Takes as long as reading the journals (some 64 MiB) and replaying what was not yet written to tables.
    /// Errors: [`OpenError`].
    pub fn open(directory: &Path, options: StorageOptions) -> Result<FjallStore, OpenError> {
        let lock = format::lock(directory)?;
        let io = |source| OpenError::io(directory, source);
        let engine = match format::state(directory)? {
            State::New => make(directory, &options)?,
            State::Ready => open_ready(directory, &options)?,
        };
        Ok(FjallStore {
            directory: directory.to_path_buf(),
            rows: Rows::new(options.cache_bytes),
            space: SpaceGuard::new(directory, options.reserve_bytes),
            sequence_end: engine.sequence_end(),
            engine: Some(engine),
            has_buffered: false,
            failure: None,
            background_failed: None,
            lost: format::lost(directory).map_err(io)?,
            options,
            _lock: lock,
        })
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
        match self.has_buffered || self.rows.pending().len() > 0 {
            true => self.sync(Durability::Durable),
            false => Ok(()),
        }
    }

    fn engine(&self) -> Result<&Engine, StoreError> {
        self.engine.as_ref().ok_or_else(|| {
            let detail = self.failure.as_ref().map_or("", |failure| &failure.detail);
            read_only(detail.to_string())
        })
    }

    fn read(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let stored = self
            .engine()?
            .get(space, key)
            .map_err(|error| StoreError::Corrupt { detail: engine::detail(&error) })?;
        let row = match stored {
            Some(stored) => Row::from_stored(key, &stored).ok_or_else(engine::mismatch)?,
            None => Row::absent(key),
        };
        let value = row.value();
        self.rows.remember(space, row);
        Ok(value)
    }

    fn try_sync(&mut self, durability: Durability) -> Result<(), String> {
        if self.failure.is_some() {
            self.recover()?;
        }
        let has_pending = self.rows.pending().len() > 0;
        let must_persist = self.has_buffered && durability == Durability::Durable;
        if !has_pending && !must_persist {
            return Ok(());
        }
        self.admit()?;
        let Some(engine) = &mut self.engine else {
            return Err("the engine is closed".into());
        };
        let result = match has_pending {
            true => engine.commit(self.rows.pending(), durability),
            false => engine.persist(),
        };
        let sequence_end = engine.sequence_end();
        if let Err(error) = result {
            return Err(self.fail(&error));
        }
        self.sequence_end = sequence_end;
        self.has_buffered = durability == Durability::Buffered;
        self.rows.commit();
        Ok(())
    }

    fn admit(&mut self) -> Result<(), String> {
        let pending_bytes: usize = self.rows.pending().map(|(_, row)| row.len_bytes()).sum();
        self.space.admit(pending_bytes as u64).inspect_err(|detail| {
            self.failure = Some(Failure { detail: detail.clone(), kind: FailureKind::Full });
        })
    }

    /// Notes that the engine refused, and returns why in words.
    fn fail(&mut self, error: &EngineError) -> String {
        let mut detail = error.detail();
        let mut kind = FailureKind::Broken { attempted: None };
        match error {
            EngineError::Stalled => return detail,
            EngineError::Fjall(fjall::Error::Poisoned) => {
                let before = self.background_failed.replace(Instant::now());
                let is_relapse = before.is_some_and(|before| before.elapsed() < RELAPSE);
                if is_relapse && self.engine.as_ref().is_some_and(Engine::is_damaged) {
                    kind = FailureKind::Damaged;
                    detail =
                        "tables are damaged and cannot be merged: restart the node to rebuild them".into();
                    if let Err(error) = format::request_rebuild(&self.directory) {
                        tracing::error!(%error, "the rebuild could not be requested");
                    }
                }
            }
            EngineError::Fjall(_) => {}
        }
        tracing::error!(detail, "the disk refuses writes");
        self.failure = Some(Failure { detail: detail.clone(), kind });
        detail
    }

    /// Tries to take writes again after a refused sync. Errors: why not, in words.
    fn recover(&mut self) -> Result<(), String> {
        self.space.admit(0)?;
        let Some(Failure { detail, kind }) = &mut self.failure else {
            return Ok(());
        };
        if let FailureKind::Damaged = kind {
            return Err(detail.clone());
        }
        if let FailureKind::Broken { attempted } = kind {
            if attempted.is_some_and(|at| at.elapsed() < self.options.retry_interval) {
                return Err(detail.clone());
            }
            *attempted = Some(Instant::now());
            let result = probe(&self.directory).map_err(|error| error.to_string());
            if let Err(error) = result.and_then(|()| self.reopen()) {
                if let Some(failure) = &mut self.failure {
                    failure.detail.clone_from(&error);
                }
                return Err(error);
            }
            tracing::warn!("the disk takes writes again");
        }
        self.failure = None;
        Ok(())
    }

    /// Closes the poisoned engine and opens it with what was acknowledged, and nothing else.
    fn reopen(&mut self) -> Result<(), String> {
        self.engine = None;
        let keep = Keep::Acknowledged { sequence_end: self.sequence_end };
        let engine = open_engine(&self.directory, &self.options, keep).map_err(|error| error.to_string())?;
        self.sequence_end = engine.sequence_end();
        self.engine = Some(engine);
        self.lost = format::lost(&self.directory).map_err(|error| error.to_string())?;
        self.has_buffered = false;
        self.rows.forget_cached();
        Ok(())
    }
}

impl Store for FjallStore {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.rows.get(space, key) {
            Some(row) => Ok(row.value()),
            None if key.is_empty() => Ok(None),
            None => self.read(space, key),
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
        let mut pending = self.rows.pending_range(space, from, to);
        let engine = match self.engine() {
            Ok(engine) => engine,
            Err(error) => {
                visit(from, Err(error));
                return;
            }
        };
        let mut stored = engine.scan(space, from, to).peekable();
        loop {
            let is_pending_next = match (pending.last(), stored.peek()) {
                (None, None) => return,
                (None, Some(_)) => false,
                (Some(_), None) => true,
                (Some(row), Some((key, found))) => {
                    // A pending row hides the stored one. A damaged place hides nothing: it is not one row.
                    if row.key() == &key[..] && found.is_ok() {
                        stored.next();
                        continue;
                    }
                    row.key() < &key[..]
                }
            };
            let next = match is_pending_next {
                true => pending.pop().map(|row| (row.key().to_vec(), Ok(row))),
                false => stored.next(),
            };
            let goes_on = match next {
                Some((key, Ok(row))) => row.value().is_none_or(|value| visit(&key, Ok(&value))),
                Some((key, Err(error))) => visit(&key, Err(error)),
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

    /// Tables and journals, in bytes that the file system has allocated. Reads the directory.
    fn size_bytes(&self) -> u64 {
        let tables_bytes = self.engine.as_ref().map_or(0, Engine::tables_bytes);
        tables_bytes + journals_bytes(&format::rows_path(&self.directory)).unwrap_or(0)
    }
}

impl Drop for FjallStore {
    fn drop(&mut self) {
        if let Err(error) = self.sync_rest() {
            tracing::error!(%error, "the last sync of the store failed");
        }
    }
}

/// Makes a new store; a crash in the middle leaves a directory that is made anew the next time.
fn make(directory: &Path, options: &StorageOptions) -> Result<Engine, OpenError> {
    let io = |source| OpenError::io(directory, source);
    format::begin(directory).map_err(io)?;
    let engine = Engine::open(&format::rows_path(directory), options)
        .map_err(|error| OpenError::engine(directory, error))?;
    format::finish(directory).map_err(io)?;
    Ok(engine)
}

/// Opens a complete directory, rebuilding its tables if the last run asked for it.
fn open_ready(directory: &Path, options: &StorageOptions) -> Result<Engine, OpenError> {
    let io = |source| OpenError::io(directory, source);
    rebuild::settle(directory).map_err(io)?;
    let engine = open_engine(directory, options, Keep::All)?;
    if !format::wants_rebuild(directory) {
        return Ok(engine);
    }
    let engine = match engine.is_damaged() {
        true => {
            tracing::warn!("rebuilding damaged tables");
            rebuild::rebuild(directory, engine, options)?;
            open_engine(directory, options, Keep::All)?
        }
        false => engine,
    };
    format::finish_rebuild(directory).map_err(io)?;
    Ok(engine)
}

/// Looks over the journals and opens the engine.
fn open_engine(directory: &Path, options: &StorageOptions, keep: Keep) -> Result<Engine, OpenError> {
    let rows_path = format::rows_path(directory);
    if !rows_path.join("version").exists() {
        return Err(OpenError::Corrupt {
            directory: directory.to_path_buf(),
            detail: format!("{} is missing or empty", rows_path.display()),
        });
    }
    let report = journal::repair(&rows_path, keep, &mut |report| format::add_lost(directory, &report.lost))
        .map_err(|source| OpenError::io(&rows_path, source))?;
    for place in &report.lost {
        tracing::error!(place, "acknowledged writes are missing");
    }
    for place in &report.cut {
        tracing::info!(place, "a write that a crash interrupted was cut off");
    }
    Engine::open(&rows_path, options).map_err(|error| OpenError::engine(directory, error))
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

fn journals_bytes(rows_path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(rows_path)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "jnl") {
            bytes += entry.metadata()?.blocks() * 512;
        }
    }
    Ok(bytes)
}

fn read_only(detail: String) -> StoreError {
    StoreError::ReadOnly { detail }
}
