//! Writes sealed segments into the engine's tables and makes new ones, on a thread of its own.
//!
//! A sealed segment is read back from the log, not taken over from the loop's memory: the loop has nothing to copy, and
//! every flush proves that the log can be read. Its rows go into tables in key order, as one bulk load for each
//! space, and only the last row of each key. When the tables are durable the log notes it, and the segment's file is
//! removed; a crash in between repeats the flush, which changes nothing.
//!
//! The file is read several times, each time for the rows of some part of the keys: memory for a whole segment would
//! be got and given back at each flush, and clearing its pages takes longer than reading the file again.
//!
//! After an error the thread does nothing more: later segments must not overtake this one. The store makes a new
//! flusher when it has opened the engine anew, and gives it what is left.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use oort_core::store::Space;

use super::engine::{Engine, EngineError, WriteRow};
use super::log::{self, Contents, LoggedRow, Segment, SegmentNumber};
use super::pace::Turns;
use super::rows::{prefix, Prefix};

/// A segment's rows are sorted in so many parts, by the first bits of their keys.
const PARTS: usize = 256;
/// Parts are collected together while they have no more than this. Less: the segment is read more often. More: memory.
const PASS_BYTES: usize = 6 << 20;
/// A store that is being closed counts as so many segments behind.
const SEGMENTS_AT_CLOSE: usize = 100;

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
        let mut worker = Worker {
            directory: directory.to_path_buf(),
            segment_bytes,
            engine: engine.clone(),
            waiting: waiting.clone(),
            pass: Pass::default(),
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
    pass: Pass,
}

impl Worker {
    fn run(&mut self, work: Work) -> Done {
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

    fn flush(&mut self, number: SegmentNumber) -> Result<(), EngineError> {
        self.engine.wait_for_merges()?;
        let mut bytes = [[0; PARTS]; 3];
        self.visit(number, |(space, key, stored)| {
            bytes[space as usize][part(prefix(key))] += 1 + key.len() + stored.map_or(0, <[u8]>::len);
        })?;
        for space in [Space::Data, Space::Hints, Space::Meta] {
            let passes = passes(&bytes[space as usize]);
            if passes.is_empty() {
                continue;
            }
            let (engine, waiting) = (self.engine.clone(), self.waiting.clone());
            engine.load(
                space,
                || waiting.load(Ordering::Relaxed),
                |write| passes.into_iter().try_for_each(|parts| self.run_pass(number, space, parts, write)),
            )?;
        }
        log::set_flushed(&self.directory, number).map_err(EngineError::Log)
    }

    /// Writes the rows of some parts of a space.
    fn run_pass(
        &mut self,
        number: SegmentNumber,
        space: Space,
        parts: Range<usize>,
        write: &mut WriteRow,
    ) -> Result<(), EngineError> {
        let mut pass = std::mem::take(&mut self.pass);
        pass.begin(parts);
        self.visit(number, |(of, key, stored)| {
            if of == space {
                pass.add(key, stored);
            }
        })?;
        pass.show(write)?;
        self.pass = pass;
        Ok(())
    }

    /// Shows all rows of a segment, or finds out what is wrong with it.
    fn visit(&self, number: SegmentNumber, visit: impl FnMut(LoggedRow)) -> Result<(), EngineError> {
        let mut turns = Turns::start();
        // The segment that is being flushed counts as waiting.
        let rest = || turns.rest_if_due(self.waiting.load(Ordering::Relaxed).saturating_sub(1));
        if log::visit_sealed(&self.directory, number, rest, visit).map_err(EngineError::Log)? {
            return Ok(());
        }
        let contents = Contents::read(&self.directory, number, false).map_err(EngineError::Log)?;
        let detail =
            contents.damage.first().cloned().unwrap_or(format!("some records of log segment {number}"));
        Err(EngineError::Damaged { segment: number, detail })
    }
}

fn part(prefix: Prefix) -> usize {
    (prefix.0 >> (64 - PARTS.ilog2())) as usize
}

/// Divides the parts such that none has much more than [`PASS_BYTES`]. Nothing for those without bytes.
fn passes(bytes: &[usize; PARTS]) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for (part, bytes) in bytes.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
        match passes.last_mut().filter(|_| sum + bytes <= PASS_BYTES) {
            Some(pass) => pass.end = part + 1,
            None => {
                passes.push(part..part + 1);
                sum = 0;
            }
        }
        sum += bytes;
    }
    passes
}

/// The rows that are collected in one reading of a segment, to be sorted.
#[derive(Default)]
struct Pass {
    /// The parts that are wanted.
    wanted: Range<usize>,
    /// Keys and what is stored under them, in the order of their writing.
    bytes: Vec<u8>,
    rows: Vec<Vec<Collected>>,
}

struct Collected {
    prefix: Prefix,
    /// Where the key begins; what is stored follows it.
    at: usize,
    key_bytes: u16,
    stored_bytes: Option<u32>,
}

impl Pass {
    /// Forgets the last pass, but keeps its memory unless it was a large one.
    fn begin(&mut self, wanted: Range<usize>) {
        self.bytes.clear();
        self.bytes.shrink_to(2 * PASS_BYTES);
        self.rows.iter_mut().for_each(Vec::clear);
        self.rows.resize_with(wanted.len(), Vec::new);
        self.wanted = wanted;
    }

    /// Takes over a row if it belongs to the parts of this pass.
    fn add(&mut self, key: &[u8], stored: Option<&[u8]>) {
        let prefix = prefix(key);
        let part = part(prefix);
        if self.wanted.contains(&part) {
            let row = Collected {
                prefix,
                at: self.bytes.len(),
                // The log has no room for longer ones.
                key_bytes: key.len() as u16,
                stored_bytes: stored.map(|stored| stored.len() as u32),
            };
            self.bytes.extend_from_slice(key);
            self.bytes.extend_from_slice(stored.unwrap_or_default());
            self.rows[part - self.wanted.start].push(row);
        }
    }

    /// Shows the last row of each key, by key ascending. Sorts a part when it comes to it.
    fn show(&mut self, show: &mut WriteRow) -> Result<(), EngineError> {
        let bytes = &self.bytes;
        let key = |row: &Collected| &bytes[row.at..][..row.key_bytes.into()];
        for rows in &mut self.rows {
            // Most keys differ in their first bytes, and numbers are compared faster than keys.
            rows.sort_unstable_by(|a, b| {
                a.prefix.cmp(&b.prefix).then_with(|| key(a).cmp(key(b))).then(a.at.cmp(&b.at))
            });
            for (index, row) in rows.iter().enumerate() {
                if rows.get(index + 1).is_none_or(|next| key(next) != key(row)) {
                    let stored_at = row.at + usize::from(row.key_bytes);
                    show(
                        key(row),
                        row.stored_bytes.map(|len_bytes| &bytes[stored_at..][..len_bytes as usize]),
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_of_each_key_comes_in_order() {
        let keys: Vec<Vec<u8>> =
            (0..1000u32).map(|i| (i * 7919 % 500 * 8_000_000).to_be_bytes().into()).collect();
        let mut pass = Pass::default();
        let mut found = Vec::new();
        for parts in [0..100, 100..PARTS] {
            pass.begin(parts);
            for (value, key) in keys.iter().enumerate() {
                pass.add(key, (value % 3 > 0).then_some(&value.to_be_bytes()));
            }
            let shown = pass.show(&mut |key, stored| {
                found.push((key.to_vec(), stored.map(<[u8]>::to_vec)));
                Ok(())
            });
            assert!(shown.is_ok());
        }
        assert_eq!(found.len(), 500);
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (key, stored) in found {
            let last = keys.iter().rposition(|other| *other == key).expect("it is one of them");
            assert_eq!(stored, (last % 3 > 0).then_some(last.to_be_bytes().to_vec()));
        }
    }

    #[test]
    fn passes_cover_all_parts_that_have_rows() {
        let mut bytes = [0; PARTS];
        assert!(passes(&bytes).is_empty());
        bytes[7] = 3 * PASS_BYTES;
        bytes[9] = 1;
        bytes[200] = PASS_BYTES - 1;
        bytes[255] = 1;
        assert_eq!(passes(&bytes), [7..8, 9..201, 255..256]);
        assert_eq!(passes(&[PASS_BYTES / 100; PARTS]).len(), 3);
    }
}
