//! The hybrid logical clock that counters are read from, and its lease.
//!
//! A reading is 64 bits: milliseconds since 1970 in the top 48, a logical count below. It follows the wall clock while
//! that moves forward, counts on while it stands or jumps back, and moves past every reading it is shown, so a write
//! that saw another has the greater dot.
//!
//! A reading may be used only below the **lease**, a bound that is durable before its first use; a restarted node
//! starts at the bound. So a counter is never used twice, even when a crash loses the last writes.
//!
//! Source: Kulkarni et al., "Logical physical clocks", 2014; DESIGN §2.

use crate::types::Now;

/// How far ahead of the clock a lease reaches, in milliseconds. Longer makes a restarted node's dots run further
/// ahead of time; shorter writes the lease more often (once per this time at most).
pub const LEASE_MS: u64 = 1000;

const LOGICAL_BITS: u32 = 16;

/// One node's clock. Readings ascend strictly.
#[derive(Clone, Debug)]
pub struct HybridClock {
    last: u64,
    lease: u64,
    skew_ms_max: u64,
}

/// A wall time as a clock reading.
pub fn reading_at(wall_ms: u64) -> u64 {
    wall_ms << LOGICAL_BITS
}

impl HybridClock {
    /// Starts above `lease`, the bound found in the store (0 in a new directory).
    ///
    /// `skew_ms_max`: readings of others further ahead than this are refused, see [`HybridClock::is_absurd`].
    pub fn new(lease: u64, skew_ms_max: u64) -> HybridClock {
        HybridClock { last: lease, lease, skew_ms_max }
    }

    /// The next reading, greater than all before it and all observed.
    ///
    /// The second value is a new lease to be made durable together with the first use of the reading.
    pub fn tick(&mut self, now: Now) -> (u64, Option<u64>) {
        self.last = (self.last + 1).max(reading_at(now.wall_ms));
        if self.last < self.lease {
            return (self.last, None);
        }
        self.lease = self.last + reading_at(LEASE_MS);
        (self.last, Some(self.lease))
    }

    /// Moves past a reading seen in an object or a context, unless it is absurd.
    pub fn observe(&mut self, now: Now, reading: u64) {
        if !self.is_absurd(now, reading) {
            self.last = self.last.max(reading);
        }
    }

    /// True if `reading` lies further ahead of the wall clock than any honest skew: more than `skew_ms_max`.
    pub fn is_absurd(&self, now: Now, reading: u64) -> bool {
        reading > self.reading_max(now)
    }

    /// The greatest reading that is believed.
    pub fn reading_max(&self, now: Now) -> u64 {
        reading_at(now.wall_ms.saturating_add(self.skew_ms_max))
    }

    /// True if this clock itself runs absurdly far ahead, because the wall clock once did.
    pub fn runs_ahead(&self, now: Now) -> bool {
        self.is_absurd(now, self.last)
    }

    /// Starts anew from the wall clock. Only with a new actor: readings may repeat those of the old one.
    pub fn reset(&mut self) {
        self.last = 0;
        self.lease = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: u64) -> Now {
        Now { mono_us: 0, wall_ms }
    }

    #[test]
    fn readings_ascend_while_the_wall_clock_stands_or_jumps_back() {
        let mut clock = HybridClock::new(0, 60_000);
        let mut last = 0;
        for wall in [10_000, 10_000, 9_000, 0, 10_001, 10_001] {
            let (reading, _) = clock.tick(at(wall));
            assert!(reading > last);
            last = reading;
        }
        assert_eq!(last >> 16, 10_001);
    }

    #[test]
    fn a_restart_starts_above_every_reading_used_under_the_lease() {
        let mut clock = HybridClock::new(0, 60_000);
        let (_, lease) = clock.tick(at(5_000));
        let lease = lease.expect("the first reading takes a lease");
        let mut used = 0;
        for _ in 0..1000 {
            let (reading, renewed) = clock.tick(at(5_000));
            assert_eq!(renewed, None);
            used = reading;
        }
        let (after, renewed) = HybridClock::new(lease, 60_000).tick(at(4_000));
        assert!(after > used && after > lease);
        assert!(renewed.is_some_and(|bound| bound > after));
    }

    #[test]
    fn an_absurd_remote_reading_does_not_move_the_clock() {
        let mut clock = HybridClock::new(0, 60_000);
        clock.observe(at(1_000), reading_at(61_000));
        assert_eq!(clock.tick(at(1_000)).0, reading_at(61_000) + 1);
        assert!(clock.is_absurd(at(1_000), reading_at(61_001)));
        clock.observe(at(1_000), reading_at(1 << 40));
        assert!(clock.tick(at(1_000)).0 < reading_at(62_000));
    }
}
