//! Frees full memory tables on a thread of its own.
//!
//! When fjall has written a memory table to disk, it drops it while it holds the lock that every read and write needs.
//! Freeing some 60,000 entries takes long enough for clients to notice. So we keep a reference of our own to each
//! table: fjall's drop then frees nothing, and this thread frees the table once it holds the last reference.

use std::any::Any;
use std::io;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// A memory table; its type has no public name.
pub(super) type Table = Arc<dyn Any + Send + Sync>;

/// How often tables on their way out are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// The thread. Dropping it waits for the last table that nobody else holds.
pub(super) struct Undertaker {
    tables: Option<Sender<Table>>,
    thread: Option<JoinHandle<()>>,
}

impl Undertaker {
    /// Starts the thread. `in_use`: how many of the newest tables stay in use, so that there is nothing to wait for.
    pub(super) fn start(in_use: usize) -> io::Result<Undertaker> {
        let (tables, arriving) = channel();
        let thread = Builder::new().name("undertaker".into()).spawn(move || run(&arriving, in_use))?;
        Ok(Undertaker { tables: Some(tables), thread: Some(thread) })
    }

    /// Takes a reference to a table that has just come into use.
    pub(super) fn watch(&self, table: Table) {
        if let Some(tables) = &self.tables {
            // It fails only when the thread has ended, and then fjall frees the table.
            let _ = tables.send(table);
        }
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        self.tables = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn run(arriving: &Receiver<Table>, in_use: usize) {
    let mut tables: Vec<Table> = Vec::new();
    loop {
        let arrival = match tables.len() > in_use {
            true => arriving.recv_timeout(INTERVAL),
            false => arriving.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match arrival {
            Ok(table) => tables.push(table),
            Err(RecvTimeoutError::Timeout) => tables.retain(|table| Arc::strong_count(table) > 1),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reference_is_dropped_by_the_thread() {
        let undertaker = Undertaker::start(1).unwrap();
        let (old, new): (Table, Table) = (Arc::new(1), Arc::new(2));
        let (old_weak, new_weak) = (Arc::downgrade(&old), Arc::downgrade(&new));
        undertaker.watch(Arc::clone(&old));
        undertaker.watch(Arc::clone(&new));
        drop(old);
        while old_weak.upgrade().is_some() {
            std::thread::yield_now();
        }
        assert!(new_weak.upgrade().is_some());
        drop((new, undertaker));
        assert!(new_weak.upgrade().is_none());
    }
}
