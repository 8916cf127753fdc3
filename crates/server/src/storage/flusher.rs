//! Writes sealed segments into the engine's tables and makes new ones, on a thread of its own.
//!
//! A sealed segment is read back from the log, not taken over from the loop's memory: the loop has nothing to copy, and
//! every flush proves that the log can be read. Its rows go into tables in key order, as one bulk load for each
//! space, and only the last row of each key. When the tables are durable the log notes it, and the segment's file is
//! removed; a crash in between repeats the flush, which changes nothing.
//!
//! After an error the thread does nothing more: later segments must not overtake this one. The store makes a new
//! flusher when it has opened the engine anew, and gives it what is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use oort_core::store::Space;

use super::engine::{Engine, EngineError};
use super::log::{self, Contents, LoggedRow, Segment, SegmentNumber};
use super::pace;
use super::rows::{prefix, Prefix};

/// A segment's rows are sorted in so many parts, by the first bits of their keys.
const PARTS: usize = 256;
/// A store that is being closed counts as so many segments behind.
const SEGMENTS_AT_CLOSE: usize = 100;
/// Rows between two breaths.
const ROWS_AT_ONCE: usize = 2048;

/// What to do, in this order.
enum Work {
    Make(SegmentNumber),
    Flush(SegmentNumber),
}

/// What was done.
pub(super) enum Done {
    /// A new segment, or why there is none.
    Made(io::Result<Segment>),
    /// The tables have this segment and those before it.
    Flushed(SegmentNumber),
    /// They do not, and the thread has given up.
    Failed(EngineError),
}

/// The thread. Dropping it waits until it has done what it was given.
pub(super) struct Flusher {
    work: Option<Sender<Work>>,
    /// Segments given to the thread and not flushed yet.
    waiting: Arc<AtomicUsize>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread for the store in `directory`, with handles of its own to `engine`.
    pub(super) fn start(directory: &Path, segment_bytes: u64, engine: &Engine) -> io::Result<Flusher> {
        let (work, arriving) = channel();
        let (reports, done) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            directory: directory.to_path_buf(),
            segment_bytes,
            engine: engine.clone(),
            waiting: waiting.clone(),
        };
        let thread = Builder::new().name("flusher".into()).spawn(move || {
            for work in arriving {
                let report = worker.run(work);
                let is_over = matches!(report, Done::Failed(_));
                // Nobody listens any more when the store is being closed; the work is done all the same.
                let _ = reports.send(report);
                if is_over {
                    return;
                }
            }
        })?;
        Ok(Flusher { work: Some(work), waiting, done, thread: Some(thread) })
    }

    /// Has a segment made.
    pub(super) fn make(&self, number: SegmentNumber) {
        self.send(Work::Make(number));
    }

    /// Has a sealed segment flushed.
    pub(super) fn flush(&self, number: SegmentNumber) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.send(Work::Flush(number));
    }

    /// What was done since the last call.
    pub(super) fn poll(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// What is done next, at most `patience` from now. Errors: nothing in that time, or the thread has ended.
    pub(super) fn wait(&self, patience: Duration) -> Result<Done, RecvTimeoutError> {
        self.done.recv_timeout(patience)
    }

    fn send(&self, work: Work) {
        if let Some(sender) = &self.work {
            // It fails only when the thread has ended, and that was reported.
            let _ = sender.send(work);
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.work = None;
        // The store is being closed, and waits.
        self.waiting.fetch_add(SEGMENTS_AT_CLOSE, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

struct Worker {
    directory: PathBuf,
    segment_bytes: u64,
    engine: Engine,
    waiting: Arc<AtomicUsize>,
}

impl Worker {
    fn run(&self, work: Work) -> Done {
        match work {
            Work::Make(number) => Done::Made(Segment::create(&self.directory, number, self.segment_bytes)),
            Work::Flush(number) => {
                let flushed = self.flush(number);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                match flushed {
                    Ok(()) => Done::Flushed(number),
                    Err(error) => Done::Failed(error),
                }
            }
        }
    }

    fn flush(&self, number: SegmentNumber) -> Result<(), EngineError> {
        self.engine.wait_for_merges()?;
        let contents =
            Contents::read_gently(&self.directory, number, pace::breathe).map_err(EngineError::Log)?;
        if let Some(detail) = contents.damage.first() {
            return Err(EngineError::Damaged { segment: number, detail: detail.clone() });
        }
        for space in [Space::Data, Space::Hints, Space::Meta] {
            let rows = latest(contents.rows().filter(|row| row.0 == space));
            self.engine.ingest(space, rows, || self.waiting.load(Ordering::Relaxed))?;
        }
        log::set_flushed(&self.directory, number).map_err(EngineError::Log)
    }
}

/// The last row of each key, by key ascending. Sorts a part at a time, when it is asked for it.
fn latest<'a>(
    rows: impl Iterator<Item = LoggedRow<'a>>,
) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
    let mut parts: Vec<Vec<(Prefix, LoggedRow)>> = vec![Vec::new(); PARTS];
    for (count, row) in rows.enumerate() {
        // Most keys differ in their first bytes, and numbers are compared faster than keys.
        let prefix = prefix(row.1);
        parts[(prefix.0 >> (64 - PARTS.ilog2())) as usize].push((prefix, row));
        if count % ROWS_AT_ONCE == 0 {
            pace::breathe();
        }
    }
    parts.into_iter().flat_map(|mut rows| {
        // Stable: rows of one key stay in the order of their writing, and the last one counts.
        rows.sort_by(|(a, row_a), (b, row_b)| a.cmp(b).then_with(|| row_a.1.cmp(row_b.1)));
        let mut rows = rows.into_iter().map(|(_, (_, key, stored))| (key, stored)).peekable();
        std::iter::from_fn(move || loop {
            let row = rows.next()?;
            if rows.peek().is_none_or(|next| next.0 != row.0) {
                return Some(row);
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_of_each_key_comes_in_order() {
        let keys: Vec<Vec<u8>> =
            (0..1000u32).map(|i| (i * 7919 % 500 * 8_000_000).to_be_bytes().into()).collect();
        let values: Vec<Vec<u8>> = (0..1000u32).map(|i| i.to_be_bytes().into()).collect();
        let rows = keys.iter().zip(&values).map(|(key, value)| (Space::Data, &key[..], Some(&value[..])));
        let found: Vec<_> = latest(rows).collect();
        assert_eq!(found.len(), 500);
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let last = keys.iter().rposition(|key| key == found[3].0).expect("it is one of them");
        assert_eq!(found[3].1, Some(&values[last][..]));
    }
}
