//! How much of its time a node gives to what nobody waits for: the timers of active objects.
//!
//! A node has one loop for clients, peers and timers. Each object's timer is bounded, but their number is not, so
//! together they may ask for more time than there is. They get a share of it: credit grows with the clock, and each run
//! takes its cost from it, so that for a millisecond of timers there are four for everything else. Timers that find no
//! credit run later, in the order in which they were due.
//!
//! The core has no clock of its own. A run is charged by its instructions, and for what it causes beside them: reading
//! the replicas, here and there, and writing what it changed. The driver tells the time when a turn begins and when it
//! ends: if that took longer than was charged, the rest is charged as well, within [`UNDERRATED_MAX`].
//!
//! Source: Dynamo §6.5 (admission of background work). Differs: a fixed share instead of a feedback from latencies,
//! because what must not happen is that requests wait for timers at all.

/// Timers get one part in so many of the time that passes.
const SHARE_PART: u64 = 5;
/// The most credit that is saved up, in microseconds: it bounds what timers take of one turn. Too small: many turns for
/// few timers; too large: requests wait for them.
const CREDIT_US_MAX: i64 = 2_000;
/// Timers that had no credit left wait for this much. Too small: each gets a turn of its own; too large: as above.
const RESUME_US: i64 = 500;
/// The deepest debt: a turn that was long for another reason does not stop timers for more than five times this.
const DEBT_US_MAX: i64 = 20_000;
/// What a timer costs beside its instructions, in microseconds, on all nodes: reading the replicas, and writing what it
/// changed.
const RUN_US: u64 = 50;
/// Instructions in a microsecond, at least. Handlers that allocate or match patterns do fewer: see [`UNDERRATED_MAX`].
const INSTRUCTIONS_PER_US: u64 = 100;
/// A turn is charged at most so many times what its runs were charged by their instructions: the rest of it was spent
/// on other work.
const UNDERRATED_MAX: u64 = 16;

/// The time that timers may take.
#[derive(Clone, Debug)]
pub struct Admission {
    /// In microseconds; below 0 is debt.
    credit_us: i64,
    filled_us: u64,
    /// There was no credit left, and not yet enough since.
    is_spent: bool,
    /// What was charged in the turn that began at this time.
    charged_us: u64,
    began_us: u64,
}

impl Admission {
    /// Full credit at `now_us`.
    pub fn new(now_us: u64) -> Admission {
        Admission {
            credit_us: CREDIT_US_MAX,
            filled_us: now_us,
            is_spent: false,
            charged_us: 0,
            began_us: now_us,
        }
    }

    /// True if a timer may run now.
    pub fn admits(&mut self, now_us: u64) -> bool {
        let passed_us = now_us.saturating_sub(self.filled_us);
        let earned_us = passed_us / SHARE_PART;
        // What is left of the division counts the next time.
        self.filled_us += earned_us * SHARE_PART;
        self.credit_us = self.credit_us.saturating_add_unsigned(earned_us).min(CREDIT_US_MAX);
        self.is_spent = match self.is_spent {
            true => self.credit_us < RESUME_US,
            false => self.credit_us <= 0,
        };
        !self.is_spent
    }

    /// A timer is begun: its object is read.
    pub fn charge_run(&mut self, now_us: u64) {
        self.charge(now_us, RUN_US);
    }

    /// A handler of a timer ran so many instructions.
    pub fn charge_instructions(&mut self, now_us: u64, instructions: u32) {
        self.charge(now_us, u64::from(instructions).div_ceil(INSTRUCTIONS_PER_US));
    }

    fn charge(&mut self, now_us: u64, us: u64) {
        if self.charged_us == 0 {
            self.began_us = now_us;
        }
        self.charged_us += us;
        self.take(us);
    }

    fn take(&mut self, us: u64) {
        self.credit_us = self.credit_us.saturating_sub_unsigned(us).max(-DEBT_US_MAX);
    }

    /// The turn ends: charges what it took beyond what its runs were charged.
    pub fn end_turn(&mut self, now_us: u64) {
        let charged_us = std::mem::take(&mut self.charged_us);
        if charged_us > 0 {
            let took_us = now_us.saturating_sub(self.began_us).min(charged_us * UNDERRATED_MAX);
            self.take(took_us.saturating_sub(charged_us));
        }
    }

    /// When timers may run again; a time in the past if they may now.
    pub fn next_us(&self) -> u64 {
        let wanted_us = if self.is_spent { RESUME_US } else { 1 };
        let missing_us = (wanted_us - self.credit_us).max(0) as u64;
        self.filled_us + missing_us * SHARE_PART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs timers for a second, each of which takes `run_us` and is charged `instructions`; returns how many.
    fn runs_in_a_second(run_us: u64, instructions: u32) -> u64 {
        let (mut admission, mut now_us, mut runs) = (Admission::new(0), 0, 0);
        while now_us < 1_000_000 {
            let began_us = now_us;
            let mut longest_us = 0;
            while admission.admits(began_us) {
                admission.charge_run(began_us);
                admission.charge_instructions(began_us, instructions);
                now_us += run_us;
                longest_us = now_us - began_us;
                runs += 1;
            }
            assert!(longest_us <= 45_000, "a turn of {longest_us} us");
            admission.end_turn(now_us);
            now_us = now_us.max(admission.next_us());
        }
        runs
    }

    #[test]
    fn timers_take_a_fifth_of_the_time_whatever_they_do() {
        // As long as they are charged, shorter, longer, and much longer: a hundred thousand instructions in 10 ms.
        for (run_us, instructions, expected) in
            [(450, 40_000, 440), (1, 0, 4_000), (450, 0, 440), (10_000, 100_000, 20)]
        {
            let runs = runs_in_a_second(run_us, instructions);
            let tolerance = expected / 10 + 3;
            assert!(runs.abs_diff(expected) <= tolerance, "{runs} runs of {run_us} us, not {expected}");
        }
    }

    #[test]
    fn a_long_turn_for_another_reason_stops_timers_for_a_short_time_only() {
        let mut admission = Admission::new(0);
        assert!(admission.admits(0));
        admission.charge_run(0);
        admission.end_turn(30_000_000);
        assert!(admission.next_us() <= 10_000, "{admission:?}");
        for run in 0..1000 {
            admission.charge_instructions(run, 100_000);
        }
        assert!(admission.next_us() <= (DEBT_US_MAX as u64 + 1_000) * SHARE_PART, "{admission:?}");
        assert!(!admission.admits(10_000));
        assert!(admission.admits(admission.next_us()));
    }

    #[test]
    fn credit_is_not_saved_up_for_ever() {
        let mut admission = Admission::new(0);
        let mut runs = 0;
        while admission.admits(3_600_000_000) {
            admission.charge_run(3_600_000_000);
            runs += 1;
        }
        assert_eq!(runs, CREDIT_US_MAX as u64 / RUN_US);
    }
}
