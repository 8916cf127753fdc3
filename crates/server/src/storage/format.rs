//! The files of ours beside the engine's: which format a directory has, who holds it, and whether it lost writes.
//!
//! ```text
//!  <directory>/FORMAT   "oort-store 2\n"            written last, so a half-made directory is made anew
//!              LOCK     locked (flock) while a process has the store open
//!              LOST     present while lost writes have not been acknowledged by the node; text, a line for each loss
//!              REBUILD  present if the next start has to rebuild damaged tables; empty
//!              log/     the log; see `storage/log.rs`
//!              rows/    the engine's directory
//! ```
//! A small file is replaced by writing a new one, syncing it, renaming it and syncing the directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{log, OpenError};

/// The on-disk format this program writes.
const VERSION: u32 = 2;
const MAGIC: &str = "oort-store ";
/// Follows the version while the directory is being made: its contents are worthless then.
const MAKING: &str = " making";

const FORMAT: &str = "FORMAT";
const LOCK: &str = "LOCK";
const LOST: &str = "LOST";
const REBUILD: &str = "REBUILD";
const ROWS: &str = "rows";

/// Where the engine's files are.
pub(super) fn rows_path(directory: &Path) -> PathBuf {
    directory.join(ROWS)
}

/// Makes the directory if need be and takes its lock, which lasts as long as the returned file.
///
/// Errors: [`OpenError::Locked`], [`OpenError::Io`].
pub(super) fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK);
    let io = |source| OpenError::io(&path, source);
    fs::create_dir_all(directory).map_err(|source| match directory.metadata() {
        Ok(found) if !found.is_dir() => OpenError::io(directory, io::ErrorKind::NotADirectory.into()),
        _ => io(source),
    })?;
    // Nothing is added to a directory that is not ours, not even a lock.
    if !path.exists() && !directory.join(FORMAT).exists() {
        check_foreign(directory)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { directory: directory.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// What a locked directory holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing worth keeping.
    New,
    /// Rows in this program's format.
    Ready,
}

/// Reads the format of a directory.
///
/// Errors: [`OpenError::Foreign`], [`OpenError::Version`], [`OpenError::Io`].
pub(super) fn state(directory: &Path) -> Result<State, OpenError> {
    let path = directory.join(FORMAT);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_foreign(directory)?;
            return Ok(State::New);
        }
        Err(source) => return Err(OpenError::io(&path, source)),
    };
    let foreign = || OpenError::Foreign {
        directory: directory.to_path_buf(),
        detail: "its FORMAT file is not ours".into(),
    };
    if is_almost_ours(&bytes) && rows_path(directory).exists() {
        return Err(OpenError::Corrupt { directory: directory.to_path_buf(), detail: damaged(&path) });
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| foreign())?;
    let line = text.strip_suffix('\n').ok_or_else(foreign)?;
    let line = line.strip_prefix(MAGIC).ok_or_else(foreign)?;
    let (number, state) = match line.strip_suffix(MAKING) {
        Some(number) => (number, State::New),
        None => (line, State::Ready),
    };
    let found: u32 = number.parse().map_err(|_| foreign())?;
    if found != VERSION {
        return Err(OpenError::Version { directory: directory.to_path_buf(), found, supported: VERSION });
    }
    Ok(state)
}

/// True for our line with a few flipped bits or torn bytes, which is no other version's.
fn is_almost_ours(bytes: &[u8]) -> bool {
    let ours = format!("{MAGIC}{VERSION}\n");
    let magic = MAGIC.len();
    let wrong = ours.bytes().zip(bytes).filter(|(ours, found)| ours != *found).count();
    let is_version = bytes
        .get(magic..bytes.len().saturating_sub(1))
        .is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit));
    let is_other = is_version && bytes.starts_with(MAGIC.as_bytes()) && bytes.ends_with(b"\n");
    bytes.len() == ours.len() && wrong > 0 && wrong <= 2 && !is_other
}

/// What to do about a damaged FORMAT file: it says nothing but this.
fn damaged(path: &Path) -> String {
    format!(
        "{path} does not read '{MAGIC}{VERSION}' any more; if nothing else is wrong, mend it with \
         \"echo '{MAGIC}{VERSION}' > {path}\", else",
        path = path.display()
    )
}

/// Marks the directory as being made and removes what an earlier attempt left.
pub(super) fn begin(directory: &Path) -> io::Result<()> {
    replace(&directory.join(FORMAT), &format!("{MAGIC}{VERSION}{MAKING}\n"))?;
    for path in [rows_path(directory), log::log_path(directory)] {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Marks the directory as complete.
pub(super) fn finish(directory: &Path) -> io::Result<()> {
    replace(&directory.join(FORMAT), &format!("{MAGIC}{VERSION}\n"))
}

/// What was lost and not yet acknowledged; `None` if nothing.
pub(super) fn lost(directory: &Path) -> io::Result<Option<String>> {
    match fs::read(directory.join(LOST)) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds lines to what was lost.
pub(super) fn add_lost(directory: &Path, lines: &[String]) -> io::Result<()> {
    let mut text = lost(directory)?.unwrap_or_default();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    replace(&directory.join(LOST), &text)
}

/// Forgets what was lost.
pub(super) fn clear_lost(directory: &Path) -> io::Result<()> {
    remove(&directory.join(LOST))
}

/// Has the next start rebuild the tables.
pub(super) fn request_rebuild(directory: &Path) -> io::Result<()> {
    replace(&directory.join(REBUILD), "")
}

/// Whether this start has to rebuild the tables.
pub(super) fn wants_rebuild(directory: &Path) -> bool {
    directory.join(REBUILD).exists()
}

/// The tables are rebuilt, or whole after all.
pub(super) fn finish_rebuild(directory: &Path) -> io::Result<()> {
    remove(&directory.join(REBUILD))
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A directory without FORMAT must hold nothing that could be someone's data.
fn check_foreign(directory: &Path) -> Result<(), OpenError> {
    let entries = fs::read_dir(directory).map_err(|source| OpenError::io(directory, source))?;
    for entry in entries {
        let name = entry.map_err(|source| OpenError::io(directory, source))?.file_name();
        let is_ours = [LOCK, FORMAT, "FORMAT.new"].iter().any(|ours| name == **ours);
        if !is_ours && name != "lost+found" {
            return Err(OpenError::Foreign {
                directory: directory.to_path_buf(),
                detail: format!("it holds {} but no FORMAT file", name.display()),
            });
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("."))),
    }
}

/// Replaces a small file durably: the old contents or the new, never a mixture.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}
