//! What the HTTP server counts: requests by method, status and status class, and how long they took.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::{Method, StatusCode};
use oort_core::metrics;

/// The methods that are counted on their own; all others are `other`.
pub const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "DELETE", "other"];
/// The classes of statuses.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Upper bounds of the latency histogram, in microseconds. Longer ones fall into a last, open bucket.
pub const BOUNDS_US: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

/// Totals since the start; `connections` is a level.
#[derive(Default)]
pub struct Counters {
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    requests: [[AtomicU64; CLASSES.len()]; METHODS.len()],
    durations: [AtomicU64; BOUNDS_US.len() + 1],
    duration_us: AtomicU64,
    timed: Mutex<Timed>,
}

/// What is looked up less often.
#[derive(Default)]
struct Timed {
    by_code: BTreeMap<u16, u64>,
    by_method: [metrics::Histogram; METHODS.len()],
}

/// The histogram as Prometheus wants it.
pub struct Histogram {
    /// Requests up to each of [`BOUNDS_US`].
    pub up_to: [u64; BOUNDS_US.len()],
    pub count: u64,
    pub sum_us: u64,
}

impl Counters {
    /// A request was answered; its body may still be on the way.
    pub fn answered(&self, method: &Method, status: StatusCode, took: Duration) {
        let name = method.as_str();
        let method = METHODS.iter().position(|known| *known == name).unwrap_or(METHODS.len() - 1);
        let class = (status.as_u16() / 100).clamp(1, 5) as usize - 1;
        self.requests[method][class].fetch_add(1, Ordering::Relaxed);
        let us = took.as_micros() as u64;
        let mut timed = self.timed();
        // Statuses are three digits, so this cannot grow without end.
        *timed.by_code.entry(status.as_u16()).or_default() += 1;
        timed.by_method[method].note(us);
        drop(timed);
        let bucket = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        self.durations[bucket].fetch_add(1, Ordering::Relaxed);
        self.duration_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Requests answered, by method and class; those with none are left out.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        self.requests.iter().zip(METHODS).flat_map(|(by_class, method)| {
            let of_method = by_class.iter().zip(CLASSES);
            of_method
                .map(move |(count, class)| (method, class, count.load(Ordering::Relaxed)))
                .filter(|(_, _, count)| *count > 0)
        })
    }

    /// Answers by status; those with none are left out.
    pub fn responses(&self) -> BTreeMap<u16, u64> {
        self.timed().by_code.clone()
    }

    /// How long requests of each method took until their answer began.
    pub fn by_method(&self) -> [(&'static str, metrics::Histogram); METHODS.len()] {
        let timed = self.timed();
        std::array::from_fn(|i| (METHODS[i], timed.by_method[i].clone()))
    }

    fn timed(&self) -> std::sync::MutexGuard<'_, Timed> {
        self.timed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long requests took until their answer began.
    pub fn histogram(&self) -> Histogram {
        let mut count = 0;
        let up_to = std::array::from_fn(|i| {
            count += self.durations[i].load(Ordering::Relaxed);
            count
        });
        Histogram {
            up_to,
            count: count + self.durations[BOUNDS_US.len()].load(Ordering::Relaxed),
            sum_us: self.duration_us.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fall_into_their_places() {
        let counters = Counters::default();
        counters.answered(&Method::GET, StatusCode::OK, Duration::from_micros(250));
        counters.answered(&Method::GET, StatusCode::NOT_FOUND, Duration::from_micros(251));
        counters.answered(&Method::OPTIONS, StatusCode::METHOD_NOT_ALLOWED, Duration::from_secs(60));
        let requests: Vec<_> = counters.requests().collect();
        assert_eq!(requests, [("GET", "2xx", 1), ("GET", "4xx", 1), ("other", "4xx", 1)]);
        assert_eq!(counters.responses(), BTreeMap::from([(200, 1), (404, 1), (405, 1)]));
        assert_eq!(counters.by_method().map(|(_, times)| times.count()), [2, 0, 0, 0, 0, 1]);
        let histogram = counters.histogram();
        assert_eq!((histogram.up_to[0], histogram.up_to[1], histogram.up_to[13]), (1, 2, 2));
        assert_eq!((histogram.count, histogram.sum_us), (3, 60_000_501));
    }
}
