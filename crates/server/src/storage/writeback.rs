//! Has tables written to disk while they are being made.
//!
//! fjall writes a table into the page cache and syncs it when it is complete. Then tens of megabytes go to the disk at
//! once, from each node on it, and the log's syncs wait behind them for tens of milliseconds. So a thread looks which
//! tables grow and has the operating system begin to write what is new in them; when the sync comes little is left.
//!
//! It only looks: nothing depends on it, and what it cannot read it leaves alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::thread::Builder;
use std::time::Duration;

use rustix::fs::Advice;

/// How often it looks while tables grow. More rarely: larger pieces, which the log waits for.
const PAUSE: Duration = Duration::from_millis(4);
/// How often it looks while none does.
const PAUSE_IDLE: Duration = Duration::from_millis(50);

/// The thread; it ends when this is dropped.
pub(super) struct Writeback {
    _stop: Sender<()>,
}

impl Writeback {
    /// Starts the thread for the database in `directory`.
    pub(super) fn start(directory: &Path) -> io::Result<Writeback> {
        let (stop, stopped) = channel();
        let mut tables = Tables { keyspaces: directory.join("keyspaces"), known: BTreeMap::new() };
        Builder::new().name("writeback".into()).spawn(move || {
            let mut pause = PAUSE_IDLE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                // A file that has gone meanwhile is nothing to report.
                let grew = tables.look().unwrap_or(false);
                pause = if grew { PAUSE } else { PAUSE_IDLE };
            }
        })?;
        Ok(Writeback { _stop: stop })
    }
}

struct Tables {
    keyspaces: PathBuf,
    /// Bytes of each table when it was last looked at.
    known: BTreeMap<PathBuf, u64>,
}

impl Tables {
    /// Has what is new written. True if something was.
    fn look(&mut self) -> io::Result<bool> {
        let keyspaces = fs::read_dir(&self.keyspaces)?;
        let is_first = self.known.is_empty();
        let before = std::mem::take(&mut self.known);
        let mut grew = false;
        for keyspace in keyspaces {
            let Ok(tables) = fs::read_dir(keyspace?.path().join("tables")) else { continue };
            for table in tables {
                let table = table?;
                let path = table.path();
                // A merge removes tables at any time. The others must stay known: for a table that is taken for new the
                // advice would drop from memory what has long been written.
                let Ok(bytes) = table.metadata().map(|metadata| metadata.len()) else { continue };
                let written = before.get(&path).copied().unwrap_or(if is_first { bytes } else { 0 });
                if let Some(new) = NonZeroU64::new(bytes.saturating_sub(written)) {
                    grew = true;
                    // Of pages that are still to be written this advice drops none, and begins to write them.
                    let Ok(file) = File::open(&path) else { continue };
                    let _ = rustix::fs::fadvise(file, written, Some(new), Advice::DontNeed);
                }
                self.known.insert(path, bytes);
            }
        }
        Ok(grew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_grew_and_nothing_twice() {
        let directory = std::env::temp_dir().join(format!("oort-writeback-{}", std::process::id()));
        let tables = directory.join("keyspaces/1/tables");
        fs::create_dir_all(&tables).unwrap();
        let mut watched = Tables { keyspaces: directory.join("keyspaces"), known: BTreeMap::new() };
        fs::write(tables.join("1"), [7; 100_000]).unwrap();
        assert!(!watched.look().unwrap(), "what is there at first has been synced");
        fs::write(tables.join("2"), [7; 10]).unwrap();
        assert!(watched.look().unwrap());
        assert!(!watched.look().unwrap());
        fs::write(tables.join("2"), [7; 100_000]).unwrap();
        fs::remove_file(tables.join("1")).unwrap();
        assert!(watched.look().unwrap());
        assert_eq!(watched.known, BTreeMap::from([(tables.join("2"), 100_000)]));
        fs::remove_dir_all(&directory).unwrap();
        assert!(watched.look().is_err(), "it says so, and the thread goes on");
    }
}
