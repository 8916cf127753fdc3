//! When `onTimer` of which object is due: an entry for each object with a timer that this replica holds.
//!
//! Time is cut into intervals of the object's length, counted since 1970 and shifted by a hash of its key, so that the
//! timers of many objects are spread evenly. In each interval the object's home runs it once; the number of the
//! interval in which it last ran stands in the object. Nothing is looked at before it is due.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use crate::types::ObjectKey;

/// The number of the interval that `wall_ms` lies in. `interval_ms` is at least 1.
pub fn interval_number(key: &ObjectKey, interval_ms: u64, wall_ms: u64) -> u64 {
    wall_ms.saturating_add(shift(key, interval_ms)) / interval_ms
}

/// When interval `number` begins, in milliseconds since 1970.
pub fn interval_start(key: &ObjectKey, interval_ms: u64, number: u64) -> u64 {
    number.saturating_mul(interval_ms).saturating_sub(shift(key, interval_ms))
}

fn shift(key: &ObjectKey, interval_ms: u64) -> u64 {
    xxh3_64(key.row()) % interval_ms
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    interval_ms: u64,
    /// When to look at it next, by the wall clock; 0: not known yet.
    look_ms: u64,
}

/// A timer that is to be looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    pub key: ObjectKey,
    pub interval_ms: u64,
    /// Since when, by the wall clock; 0: it was never looked at before.
    pub due_ms: u64,
}

impl Look {
    /// How many whole intervals have passed since it was due.
    pub fn missed(&self, wall_ms: u64) -> u64 {
        let number = |at_ms| interval_number(&self.key, self.interval_ms, at_ms);
        number(wall_ms).saturating_sub(number(self.due_ms))
    }
}

/// The timers of one replica. Takes about 150 bytes for each.
#[derive(Debug, Default)]
pub struct Timers {
    of: BTreeMap<ObjectKey, Timer>,
    looks: BTreeSet<(u64, ObjectKey)>,
    /// What changed since the last sync, with the interval before.
    unsynced: Vec<(ObjectKey, u64)>,
}

impl Timers {
    /// The object under `key` has a timer of this interval from now on, or none: 0. True if that is news.
    pub fn set(&mut self, key: &ObjectKey, interval_ms: u64) -> bool {
        let held = self.of.get(key).map_or(0, |timer| timer.interval_ms);
        if held == interval_ms {
            return false;
        }
        let key = key.detached();
        self.unsynced.push((key.clone(), held));
        self.put(key, interval_ms);
        true
    }

    fn put(&mut self, key: ObjectKey, interval_ms: u64) {
        if let Some((key, timer)) = self.of.remove_entry(&key) {
            self.looks.remove(&(timer.look_ms, key));
        }
        if interval_ms > 0 {
            self.looks.insert((0, key.clone()));
            self.of.insert(key, Timer { interval_ms, look_ms: 0 });
        }
    }

    /// The store has everything.
    pub fn staged(&mut self) {
        self.unsynced.clear();
    }

    /// The store has taken back what changed since the last sync.
    pub fn undone(&mut self) {
        for (key, interval_ms) in std::mem::take(&mut self.unsynced).into_iter().rev() {
            self.put(key, interval_ms);
        }
    }

    /// The next timer to look at; it must be given a new time with [`Timers::look_again`].
    pub fn next_look(&mut self, wall_ms: u64) -> Option<Look> {
        let (look_ms, key) = self.looks.first()?;
        if *look_ms > wall_ms {
            return None;
        }
        let (key, timer) = self.of.get_key_value(key)?;
        Some(Look { key: key.clone(), interval_ms: timer.interval_ms, due_ms: timer.look_ms })
    }

    /// Looks at the timer of `key` again at `look_ms`, which is above 0.
    pub fn look_again(&mut self, key: &ObjectKey, look_ms: u64) {
        if let Some(timer) = self.of.get_mut(key) {
            let before = (std::mem::replace(&mut timer.look_ms, look_ms), key.clone());
            self.looks.remove(&before);
            self.looks.insert((look_ms, before.1));
        }
    }

    /// When the next timer is to be looked at, by the wall clock.
    pub fn next_ms(&self) -> Option<u64> {
        self.looks.first().map(|(look_ms, _)| *look_ms)
    }

    /// Number of timers.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(b"b", name.as_bytes()).unwrap()
    }

    #[test]
    fn intervals_tile_time_and_are_spread() {
        let now = 1_700_000_000_000;
        let mut starts = BTreeSet::new();
        for i in 0..100 {
            let key = key(&i.to_string());
            let number = interval_number(&key, 60_000, now);
            let start = interval_start(&key, 60_000, number);
            assert!(start <= now && now < interval_start(&key, 60_000, number + 1));
            assert_eq!(interval_number(&key, 60_000, start), number);
            assert_eq!(interval_number(&key, 60_000, start - 1), number - 1);
            starts.insert(start / 6_000);
        }
        assert!(starts.len() >= 10, "in each tenth of a minute some begin: {starts:?}");
    }

    #[test]
    fn a_timer_is_looked_at_when_it_is_due() {
        let mut timers = Timers::default();
        assert!(timers.set(&key("a"), 1000));
        assert!(!timers.set(&key("a"), 1000));
        let look = |due_ms| Some(Look { key: key("a"), interval_ms: 1000, due_ms });
        assert_eq!(timers.next_look(5), look(0));
        timers.look_again(&key("a"), 700);
        assert_eq!((timers.next_ms(), timers.next_look(699)), (Some(700), None));
        assert_eq!(timers.next_look(700), look(700));
        assert_eq!([700, 1_700, 5_700].map(|wall_ms| look(700).unwrap().missed(wall_ms)), [0, 1, 5]);
        assert!(timers.set(&key("a"), 0));
        assert_eq!((timers.next_ms(), timers.len()), (None, 0));
        timers.staged();
        assert!(timers.set(&key("a"), 1000) && timers.set(&key("b"), 1000) && timers.set(&key("a"), 2000));
        timers.undone();
        assert!(timers.is_empty());
    }
}
