//! Spreads what background threads write over time.
//!
//! A thread that writes as fast as it can fills the disk's queue and takes a processor for seconds; meanwhile each sync
//! of the log waits for tens of milliseconds, and so does every client. Nobody waits for the background work itself,
//! as long as it keeps up: when it is behind, it is not held back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

/// Bytes a second of rows that go into tables, by how far the work is behind; further, it is not held back at all.
/// Less: more waits, and in the end clients do. More: clients wait for the processor and the disk while it goes on.
const BYTES_PER_S: [u64; 2] = [16 << 20, 48 << 20];
/// What is written without looking at the time.
const STEP_BYTES: u64 = 64 << 10;
/// Time that was not used is kept up to this much.
const SAVED_MAX: Duration = Duration::from_millis(20);

/// How long work goes on before others get the processor. Some kernels take it from nobody before his time slice of
/// some milliseconds is over, whoever waits.
const TURN: Duration = Duration::from_micros(500);
/// Length of a rest, in turns, of work that keeps up.
const REST_TURNS: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(5);
const REST_BEHIND: Duration = Duration::from_micros(50);

/// Work that leaves the processor to others between its turns.
pub(super) struct Turns {
    started: Instant,
}

impl Turns {
    pub(super) fn start() -> Turns {
        Turns { started: Instant::now() }
    }

    /// Rests when the turn is over. `behind`: 0 if this work keeps up.
    pub(super) fn rest_if_due(&mut self, behind: usize) {
        let worked = self.started.elapsed();
        if worked >= TURN {
            let rest = if behind == 0 { (worked * REST_TURNS).min(REST_MAX) } else { REST_BEHIND };
            std::thread::sleep(rest);
            self.started = Instant::now();
        }
    }
}

/// One piece of work being paced.
pub(super) struct Pace {
    /// When what was written so far should have been written.
    due: Instant,
    bytes: u64,
}

impl Pace {
    pub(super) fn start() -> Pace {
        Pace { due: Instant::now(), bytes: 0 }
    }

    /// `bytes` are being written: waits until it is time. `behind`: 0 if this work keeps up.
    pub(super) fn wrote(&mut self, bytes: u64, behind: usize) {
        self.bytes += bytes;
        if self.bytes < STEP_BYTES {
            return;
        }
        let now = Instant::now();
        let bytes = std::mem::take(&mut self.bytes);
        self.due = match BYTES_PER_S.get(behind) {
            Some(rate) => {
                let saved = now.checked_sub(SAVED_MAX).unwrap_or(now);
                self.due.max(saved) + Duration::from_micros(bytes * 1_000_000 / rate)
            }
            None => now,
        };
        if let Some(early) = self.due.checked_duration_since(now) {
            std::thread::sleep(early);
        }
    }
}

/// Paces fjall's merges: it is asked about every row that goes into a merged table, and keeps all.
pub(super) struct PacedMerges {
    /// How far merges are behind.
    pub(super) behind: Arc<AtomicUsize>,
}

impl Factory for PacedMerges {
    fn name(&self) -> &str {
        "pace"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(PacedMerge { pace: Pace::start(), behind: self.behind.clone() })
    }
}

struct PacedMerge {
    pace: Pace,
    behind: Arc<AtomicUsize>,
}

impl CompactionFilter for PacedMerge {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let bytes = item.key().len() + item.value()?.len();
        self.pace.wrote(bytes as u64, self.behind.load(Ordering::Relaxed));
        Ok(Verdict::Keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_back_unless_it_is_behind() {
        let started = Instant::now();
        let mut pace = Pace::start();
        (0..100).for_each(|_| pace.wrote(BYTES_PER_S[0] / 1000, 0));
        assert!(started.elapsed() >= Duration::from_millis(70), "{:?}", started.elapsed());
        let started = Instant::now();
        (0..100).for_each(|_| pace.wrote(BYTES_PER_S[0] / 10, BYTES_PER_S.len()));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}
