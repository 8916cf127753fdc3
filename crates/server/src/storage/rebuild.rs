//! Copies what can still be read out of a database with damaged tables into a new one.
//!
//! Reads and scans get past a damaged block, but a merge of tables does not: it fails, the engine takes no more writes,
//! and after a reopening the same merge fails again. When that happens the store stays read-only and leaves a marker;
//! the next start, which is when the node can take a new identity, rebuilds. The damaged rows come back from the node's
//! peers.
//!
//! ```text
//!  rows/ copied to rows.new/   LOST written   rows/ renamed rows.old/   rows.new/ renamed rows/
//!  rows.old/ and REBUILD removed
//! ```
//! A crash anywhere in between is finished or undone by [`settle`] at the next start.

use std::fs;
use std::io;
use std::path::Path;

use oort_core::store::{Space, StoreError};

use super::engine::{Engine, EngineError};
use super::format::{self, rows_path};
use super::row::Row;
use super::{OpenError, StorageOptions};

const NEW: &str = "rows.new";
const OLD: &str = "rows.old";
/// Rows that are held in memory and loaded together.
const LOAD_BYTES: usize = 16 << 20;

/// Brings a directory in which a rebuild was interrupted into one of its two good states.
pub(super) fn settle(directory: &Path) -> io::Result<()> {
    let (rows, new, old) = (rows_path(directory), directory.join(NEW), directory.join(OLD));
    if old.exists() && !rows.exists() {
        fs::rename(&new, &rows)?;
        format::sync_directory(directory)?;
    }
    for leftover in [new, old] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)?;
        }
    }
    Ok(())
}

/// Replaces the database of `directory`, which `engine` has open, by a copy of its readable rows.
///
/// Needs as much free space as the tables take. O(rows). Errors: the database is as it was.
pub(super) fn rebuild(directory: &Path, engine: Engine, options: &StorageOptions) -> Result<(), OpenError> {
    let new = directory.join(NEW);
    let io = |source| OpenError::io(&new, source);
    let copy = Engine::open(&new, options).map_err(|error| OpenError::engine(&new, error))?;
    let lost = copy_rows(&engine, &copy).map_err(|error| io(io::Error::other(error.detail())))?;
    drop((engine, copy));
    if !lost.is_empty() {
        format::add_lost(directory, &lost).map_err(io)?;
    }
    swap(directory).map_err(io)
}

fn swap(directory: &Path) -> io::Result<()> {
    fs::rename(rows_path(directory), directory.join(OLD))?;
    fs::rename(directory.join(NEW), rows_path(directory))?;
    format::sync_directory(directory)?;
    fs::remove_dir_all(directory.join(OLD))
}

/// Copies all readable rows and returns a line for each place that is not.
fn copy_rows(from: &Engine, to: &Engine) -> Result<Vec<String>, EngineError> {
    let mut lost = Vec::new();
    for space in [Space::Data, Space::Hints, Space::Meta] {
        let mut batch: Vec<Row> = Vec::new();
        let mut batch_bytes = 0;
        for (key, row) in from.scan_all(space) {
            match row {
                Ok(row) => {
                    batch_bytes += row.len_bytes();
                    batch.push(row);
                }
                Err(StoreError::Unreadable { detail }) => {
                    return Err(EngineError::Log(io::Error::other(detail)));
                }
                Err(error) => lost.push(format!("{space:?} from {}: {error}", key.escape_ascii())),
            }
            if batch_bytes > LOAD_BYTES {
                load(to, space, &mut batch)?;
                batch_bytes = 0;
            }
        }
        load(to, space, &mut batch)?;
    }
    Ok(lost)
}

fn load(to: &Engine, space: Space, batch: &mut Vec<Row>) -> Result<(), EngineError> {
    to.wait_for_merges()?;
    if batch.is_empty() {
        return Ok(());
    }
    let behind = || usize::MAX;
    to.load(space, behind, |write| batch.drain(..).try_for_each(|row| write(row.key(), row.stored())))
}
