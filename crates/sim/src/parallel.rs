//! Many runs on several threads, their results in order.
//!
//! Each run is single-threaded and depends on its setup alone, so how many run side by side changes only how long all
//! take: results are handed over in the order of their numbers, as if one thread had made them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

/// How often the taker hears that time passes while no result comes.
const TICK: Duration = Duration::from_millis(100);

/// What the taker of results hears.
#[derive(Debug)]
pub enum News<R> {
    /// Work `index` is done, and all before it.
    Done { index: u64, result: R },
    /// Nothing came for a tenth of a second.
    Tick,
}

/// How many threads can run side by side on this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for 0 to `count - 1` on `jobs` threads, and hands the results to `take` on this thread, in order.
///
/// Once `halt` is set nothing more is begun; what has begun is still handed over. A panic in `work` becomes one of this
/// function: work that may panic must catch it.
pub fn in_order<R: Send>(
    jobs: usize,
    count: u64,
    halt: &AtomicBool,
    work: impl Fn(u64) -> R + Sync,
    mut take: impl FnMut(News<R>),
) {
    let next = AtomicU64::new(0);
    let (sender, results) = channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while !halt.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || sender.send((index, work(index))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut early, mut expected) = (BTreeMap::new(), 0);
        loop {
            match results.recv_timeout(TICK) {
                Ok((index, result)) => {
                    early.insert(index, result);
                    while let Some(result) = early.remove(&expected) {
                        take(News::Done { index: expected, result });
                        expected += 1;
                    }
                }
                Err(RecvTimeoutError::Timeout) => take(News::Tick),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is handed over of so much work, halted when one is.
    fn collect(jobs: usize, count: u64, halt_at: u64) -> Vec<u64> {
        let halt = AtomicBool::new(false);
        let mut taken = Vec::new();
        let work = |index: u64| {
            // Later ones are done first, as a rule.
            (0..1_000 * (7 - index % 8)).for_each(|_| std::hint::spin_loop());
            index.wrapping_mul(index)
        };
        in_order(jobs, count, &halt, work, |news| {
            if let News::Done { index, result } = news {
                assert_eq!(result, index.wrapping_mul(index));
                taken.push(index);
                if index == halt_at {
                    halt.store(true, Ordering::Relaxed);
                }
            }
        });
        taken
    }

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        for jobs in [0, 1, 3, 8] {
            assert_eq!(collect(jobs, 40, u64::MAX), (0..40).collect::<Vec<u64>>(), "{jobs} jobs");
        }
    }

    #[test]
    fn after_a_halt_only_what_has_begun_is_handed_over() {
        for jobs in [1, 3] {
            // Work without an end: but for the halt it would never return.
            let taken = collect(jobs, u64::MAX, 5);
            assert_eq!(taken, (0..taken.len() as u64).collect::<Vec<u64>>());
            assert!(taken.len() > 5, "{} with {jobs} jobs", taken.len());
        }
    }
}
