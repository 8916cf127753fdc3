//! File descriptors: as many as the system allows, divided so that clients cannot take those of the store.
//!
//! A process starts with a soft limit that is mostly 1,024, whatever the hard limit. It is raised to the hard one. Of
//! that the store keeps its part for tables, a fixed part is for the log, the peers and what a moment needs, and the
//! rest is for clients. So a node full of clients refuses more of them and goes on storing. Should the store find no
//! descriptor all the same, because another process has taken the system's last ones, a few are kept in spare for it.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// Descriptors for the log, the loop, the peers (two for each) and merges of tables. Fewer: a large cluster runs out of
/// them; more: fewer clients where the limit is low.
const OWN: usize = 192;
/// The most tables that the store keeps open, and the fewest: beyond, each read opens one and closes another.
const TABLES_MAX: usize = 900;
const TABLES_MIN: usize = 32;
/// Descriptors in spare: as many as one read of all levels may open.
const SPARE: usize = 16;

/// What each part of the process may have open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// What the system allows the process.
    pub limit: usize,
    /// Tables of the store.
    pub tables: usize,
    /// Connections of Redis clients.
    pub redis: usize,
    /// Connections of HTTP clients.
    pub http: usize,
}

/// Raises the soft limit to the hard one, and returns what holds now. Errors: the system refuses even to tell.
pub fn raise() -> io::Result<usize> {
    let limits = getrlimit(Resource::Nofile);
    let most = limits.maximum.unwrap_or(u64::MAX);
    if limits.current.is_some_and(|current| current < most) {
        let raised = Rlimit { current: Some(most), maximum: limits.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    Ok(usize::try_from(now).unwrap_or(usize::MAX))
}

/// Divides `limit` descriptors; `redis` and `http` are the most connections that are wanted.
///
/// HTTP gets at least a quarter of what is left for clients, if it wants so many. One connection of each kind is always
/// allowed.
pub fn divide(limit: usize, redis: usize, http: usize) -> Budget {
    let tables = (limit / 8).clamp(TABLES_MIN, TABLES_MAX);
    let room = limit.saturating_sub(tables + OWN);
    let http = http.min((room / 4).max(room.saturating_sub(redis)));
    let redis = redis.min(room - http);
    Budget { limit, tables, redis: redis.max(1), http: http.max(1) }
}

/// Descriptors that are open for nothing, to be closed when there are no others.
pub struct Spare(Mutex<Vec<File>>);

impl Spare {
    /// Opens them, as many as there are.
    pub fn open() -> Spare {
        let spare = Spare(Mutex::new(Vec::new()));
        spare.refill();
        spare
    }

    /// Runs `work` with the spare descriptors free for it, and takes them again.
    pub fn lend<T>(&self, work: impl FnOnce() -> T) -> T {
        self.files().clear();
        let result = work();
        self.refill();
        result
    }

    fn refill(&self) {
        let mut files = self.files();
        while files.len() < SPARE {
            match File::open("/dev/null") {
                Ok(file) => files.push(file),
                Err(_) => return,
            }
        }
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_the_descriptors_of_the_store() {
        for limit in [0, 64, 256, 1024, 4096, 20_000, 1 << 20, usize::MAX] {
            let budget = divide(limit, 10_000, 4096);
            let sum = budget.tables.saturating_add(OWN + budget.redis + budget.http);
            assert!(sum <= limit || budget.redis == 1, "{budget:?}");
            assert!(budget.redis <= 10_000 && budget.http <= 4096);
        }
        let all = divide(1 << 20, 10_000, 4096);
        assert_eq!((all.redis, all.http, all.tables), (10_000, 4096, 900), "there is room for all");
        assert_eq!(divide(1024, 10_000, 4096), Budget { limit: 1024, tables: 128, redis: 528, http: 176 });
        assert_eq!(divide(4096, 100, 4096).redis, 100, "who wants few gets them all");
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one() {
        let limit = raise().unwrap();
        assert_eq!(limit as u64, getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX));
        assert_eq!(raise().unwrap(), limit, "once is enough");
    }

    #[test]
    fn what_is_lent_is_taken_again() {
        let spare = Spare::open();
        assert_eq!(spare.files().len(), SPARE);
        assert_eq!(spare.lend(|| spare.files().len()), 0);
        assert_eq!(spare.files().len(), SPARE);
    }
}
