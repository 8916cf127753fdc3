//! Opening a store: a new directory, a complete one, one with tables to rebuild; and reading the log back.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::engine::{self, Engine};
use super::format::{self, State};
use super::log::{self, Contents, Record, Segment, SegmentNumber};
use super::row::Row;
use super::rows::Rows;
use super::space::SpaceGuard;
use super::{rebuild, FjallStore, StorageOptions};
use crate::errno::cause;

/// Why a store could not be opened. Nothing in the directory was changed, except for `Corrupt` and `Io`.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it open.
    Locked { directory: PathBuf },
    /// It holds something else.
    Foreign { directory: PathBuf, detail: String },
    /// Another version of this program made it.
    Version { directory: PathBuf, found: u32, supported: u32 },
    /// Its files are damaged beyond what replicas can repair row by row: another node has to take its place.
    Corrupt { directory: PathBuf, detail: String },
    /// The operating system refused.
    Io { path: PathBuf, source: io::Error },
}

impl OpenError {
    pub(super) fn io(path: &Path, source: io::Error) -> OpenError {
        OpenError::Io { path: path.to_path_buf(), source }
    }

    /// The engine refuses to open `rows`, its own part of a node's directory.
    pub(super) fn engine(rows: &Path, error: fjall::Error) -> OpenError {
        let directory = rows.to_path_buf();
        match error {
            fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
                OpenError::Io { path: directory, source }
            }
            fjall::Error::Locked => OpenError::Locked { directory },
            error => OpenError::Corrupt { directory, detail: engine::detail(&error) },
        }
    }
}

/// What to do about a node whose files are damaged.
pub const WAY_OUT: &str =
    "keep it as it is, start a node with a new directory and type 'oort cluster replace OLD NEW \
                           --gone': the other nodes have copies of what this one held";

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
                "{} has on-disk format {found}, this program reads format {supported}; if no other version ever ran \
                 here, its FORMAT file is damaged and should read 'oort-store {supported}'",
                directory.display()
            ),
            OpenError::Corrupt { directory, detail } => {
                write!(f, "a file in {} is damaged: {detail}; {WAY_OUT}", directory.display())
            }
            OpenError::Io { path, source } => write!(f, "{}: {}", path.display(), cause(source)),
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

/// See [`FjallStore::open`].
pub(super) fn open(directory: &Path, options: StorageOptions) -> Result<FjallStore, OpenError> {
    let io = |source| OpenError::io(directory, source);
    let lock = format::lock(directory)?;
    let state = format::state(directory)?;
    let engine = match state {
        State::New => make(directory, &options)?,
        State::Ready => open_ready(directory, &options)?,
    };
    let (rows, active) = match state {
        State::New => {
            let segment = Segment::create(directory, 1, options.segment_bytes as u64).map_err(io)?;
            format::finish(directory).map_err(io)?;
            (Rows::new(options.cache_bytes, 1), segment)
        }
        State::Ready => replay(directory, &options).map_err(io)?,
    };
    let mut store = FjallStore {
        directory: directory.to_path_buf(),
        rows,
        record: Record::default(),
        active,
        spare: None,
        spare_failure: None,
        flusher: None,
        space: SpaceGuard::new(directory, options.reserve_bytes),
        engine: Some(engine),
        has_buffered: false,
        failure: None,
        trouble: None,
        merge_failed: None,
        lost: format::lost(directory).map_err(io)?,
        unread: None,
        options,
        _lock: lock,
    };
    store.start_flusher().map_err(io)?;
    Ok(store)
}

/// Makes a new store, but for its log; a crash in the middle leaves a directory that is made anew the next time.
fn make(directory: &Path, options: &StorageOptions) -> Result<Engine, OpenError> {
    let io = |source| OpenError::io(directory, source);
    format::begin(directory).map_err(io)?;
    log::make(directory).map_err(io)?;
    let rows_path = format::rows_path(directory);
    Engine::open(&rows_path, options).map_err(|error| OpenError::engine(&rows_path, error))
}

/// Opens the tables of a complete directory, rebuilding them if the last run asked for it.
fn open_ready(directory: &Path, options: &StorageOptions) -> Result<Engine, OpenError> {
    let io = |source| OpenError::io(directory, source);
    rebuild::settle(directory).map_err(io)?;
    let engine = open_engine(directory, options)?;
    if !format::wants_rebuild(directory) {
        return Ok(engine);
    }
    let engine = match engine.is_damaged() {
        true => {
            tracing::warn!("rebuilding damaged tables");
            rebuild::rebuild(directory, engine, options)?;
            open_engine(directory, options)?
        }
        false => engine,
    };
    format::finish_rebuild(directory).map_err(io)?;
    Ok(engine)
}

/// Opens the engine of a directory that has one.
pub(super) fn open_engine(directory: &Path, options: &StorageOptions) -> Result<Engine, OpenError> {
    let rows_path = format::rows_path(directory);
    // The engine would make a new database where it finds none.
    let marker = rows_path.join("version");
    if !marker.try_exists().map_err(|error| OpenError::io(&marker, error))? {
        return Err(OpenError::Corrupt {
            directory: directory.to_path_buf(),
            detail: format!("{} is missing", marker.display()),
        });
    }
    Engine::open(&rows_path, options).map_err(|error| OpenError::engine(&rows_path, error))
}

/// Reads what of the log is not in tables yet into memory, and begins a new segment behind it.
///
/// Damaged segments are made anew from what is whole, after the loss is noted. O(bytes of the log).
fn replay(directory: &Path, options: &StorageOptions) -> io::Result<(Rows, Segment)> {
    let segment_bytes = options.segment_bytes as u64;
    let log::Found { mut segments, flushed, mut lost } = log::list(directory)?;
    // Made in advance and never used: one of them becomes the active segment.
    let mut blank: Vec<SegmentNumber> = Vec::new();
    while let Some(&number) = segments.last() {
        if !Contents::read(directory, number, true)?.is_blank() {
            break;
        }
        blank.push(number);
        segments.pop();
    }
    let newest = segments.last().copied().unwrap_or(flushed);
    let mut damaged: Vec<SegmentNumber> = Vec::new();
    let mut rows: Option<Rows> = None;
    for number in segments {
        let contents = Contents::read(directory, number, number == newest)?;
        let rows = match &mut rows {
            Some(rows) => {
                rows.seal(number);
                rows
            }
            None => rows.insert(Rows::new(options.cache_bytes, number)),
        };
        for (space, key, stored) in contents.rows() {
            let row = match stored {
                Some(stored) => Row::from_stored(key, stored),
                None => Some(Row::absent(key)),
            };
            match row {
                Some(row) => rows.apply(space, row),
                None => lost.push(format!("{space:?} {}: {}", key.escape_ascii(), engine::mismatch())),
            }
        }
        rows.commit();
        if !contents.damage.is_empty() {
            lost.extend(contents.damage.iter().cloned());
            damaged.push(number);
        }
        if let Some(place) = contents.cut(directory, number)? {
            tracing::info!(place, "a write that a crash interrupted was cut off");
        }
    }
    for place in &lost {
        tracing::error!(place, "acknowledged writes are missing");
    }
    if !lost.is_empty() {
        format::add_lost(directory, &lost)?;
    }
    if let Some(rows) = &rows {
        for number in damaged {
            Segment::replace(directory, number, segment_bytes, rows.of_segment(number))?;
        }
    }
    let mut active = None;
    for number in blank {
        match Segment::open_blank(directory, number, segment_bytes)? {
            Some(segment) if number == newest + 1 => active = Some(segment),
            _ => log::remove(directory, number)?,
        }
    }
    let active = match active {
        Some(active) => active,
        None => Segment::create(directory, newest + 1, segment_bytes)?,
    };
    let rows = match rows {
        Some(mut rows) => {
            rows.seal(newest + 1);
            rows
        }
        None => Rows::new(options.cache_bytes, newest + 1),
    };
    Ok((rows, active))
}
