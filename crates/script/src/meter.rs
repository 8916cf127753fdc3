//! Counts what a running handler uses, and stops it: `raw` has Luau call back at safepoints and instructions.
//!
//! The counters are the thread's: one handler runs at a time on a thread, and nothing needs to be found through the
//! pointer that Luau has for its embedder, which is mlua's.
//!
//! A limit once reached stays reached: the error is raised again at the next safepoint or instruction, so that
//! `pcall` in a loop cannot outlive it.

use std::cell::Cell;

use oort_core::active::{Fuel, Limits};

use crate::limits::{LimitError, SAFEPOINT_COST, WORKING_BYTES};

/// Safepoints between two looks at the clock.
const SAFEPOINTS_PER_LOOK: u32 = 128;
/// Safepoints before the first look, which starts the time: most handlers end before and never ask for it.
const SAFEPOINTS_BEFORE_CLOCK: u32 = 16;

/// A monotonic clock in microseconds. The processor time of the thread is best: a descheduled handler is not late.
pub type Clock = fn() -> u64;

struct Counters {
    /// Nothing is counted while no handler runs.
    on: Cell<bool>,
    exact: Cell<bool>,
    fuel: Cell<i64>,
    tripped: Cell<Option<LimitError>>,
    instructions_max: Cell<u32>,
    heap_bytes_max: Cell<usize>,
    clock: Cell<Clock>,
    /// `None`: the clock was not looked at yet.
    deadline_us: Cell<Option<u64>>,
    wall_left_us: Cell<u64>,
    wall_us: Cell<u32>,
    safepoints_to_look: Cell<u32>,
    /// No instruction was stepped since the last safepoint: a C function makes these, and each is charged.
    within_c: Cell<bool>,
}

thread_local! {
    static COUNTERS: Counters = const {
        Counters {
            on: Cell::new(false),
            exact: Cell::new(true),
            fuel: Cell::new(0),
            tripped: Cell::new(None),
            instructions_max: Cell::new(0),
            heap_bytes_max: Cell::new(usize::MAX),
            clock: Cell::new(no_clock),
            deadline_us: Cell::new(None),
            wall_left_us: Cell::new(0),
            wall_us: Cell::new(0),
            safepoints_to_look: Cell::new(SAFEPOINTS_PER_LOOK),
            within_c: Cell::new(false),
        }
    };
}

fn no_clock() -> u64 {
    0
}

/// What a suspended call has left.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub fuel: i64,
    pub wall_us: u64,
}

impl Left {
    pub fn all(limits: &Limits) -> Left {
        Left { fuel: i64::from(limits.instructions), wall_us: u64::from(limits.wall_us) }
    }
}

/// From now until `stop`, the code that runs on this thread is counted.
pub(crate) fn start(clock: Clock, limits: &Limits, left: Left, heap_bytes: usize) {
    COUNTERS.with(|c| {
        c.exact.set(limits.fuel == Fuel::Exact);
        c.fuel.set(left.fuel);
        c.tripped.set(None);
        c.instructions_max.set(limits.instructions);
        c.heap_bytes_max.set(heap_bytes + WORKING_BYTES);
        c.clock.set(clock);
        c.wall_us.set(limits.wall_us);
        c.deadline_us.set(None);
        c.wall_left_us.set(left.wall_us);
        c.safepoints_to_look.set(SAFEPOINTS_BEFORE_CLOCK);
        c.within_c.set(true);
        c.on.set(true);
    });
}

/// Ends the counting. Returns what is left, and the limit if one was reached.
pub(crate) fn stop() -> (Left, Option<LimitError>) {
    COUNTERS.with(|c| {
        c.on.set(false);
        let wall_us = match c.deadline_us.get() {
            Some(deadline_us) => deadline_us.saturating_sub((c.clock.get())()),
            None => c.wall_left_us.get(),
        };
        (Left { fuel: c.fuel.get(), wall_us }, c.tripped.get())
    })
}

/// Counts an instruction. Returns whether the call must end.
pub(crate) fn at_instruction() -> bool {
    COUNTERS.with(Counters::at_instruction)
}

/// Counts a safepoint, where Lua's heap has this size. Returns whether the call must end.
pub(crate) fn at_safepoint(heap_bytes: usize) -> bool {
    COUNTERS.with(|c| c.at_safepoint(heap_bytes))
}

pub(crate) fn is_tripped() -> bool {
    COUNTERS.with(|c| c.tripped.get().is_some())
}

/// Ends the running call with this limit, unless another was reached before.
pub(crate) fn trip(limit: LimitError) {
    COUNTERS.with(|c| c.trip(limit));
}

pub(crate) fn trip_working_memory() {
    COUNTERS.with(Counters::trip_working_memory);
}

/// Takes fuel for work that has no instructions.
pub(crate) fn charge(cost: i64) {
    COUNTERS.with(|c| c.charge(cost));
}

/// Takes fuel, and ends the call if there is none left.
pub(crate) fn spend(cost: i64) -> mlua::Result<()> {
    charge(cost);
    end_if_tripped()
}

/// An error for the sake of the jump: what is reported is what the meter holds.
pub(crate) fn end_if_tripped() -> mlua::Result<()> {
    match is_tripped() {
        true => Err(mlua::Error::RuntimeError("limit".to_string())),
        false => Ok(()),
    }
}

/// Counts memory outside of Lua against what the call may allocate.
pub(crate) fn note_allocated(bytes: isize) {
    COUNTERS.with(|c| {
        if c.on.get() {
            let left = c.heap_bytes_max.get().checked_add_signed(-bytes);
            c.heap_bytes_max.set(left.unwrap_or(if bytes > 0 { 0 } else { usize::MAX }));
        }
    });
}

impl Counters {
    fn trip(&self, limit: LimitError) {
        if self.on.get() && self.tripped.get().is_none() {
            self.tripped.set(Some(limit));
        }
    }

    fn trip_working_memory(&self) {
        self.trip(LimitError::WorkingMemory { limit_bytes: WORKING_BYTES });
    }

    fn charge(&self, cost: i64) {
        let fuel = self.fuel.get().saturating_sub(cost);
        self.fuel.set(fuel);
        if fuel < 0 {
            self.trip(LimitError::Instructions { limit: self.instructions_max.get() });
        }
    }

    /// The first look starts the time.
    fn look_at_clock(&self) {
        let now_us = (self.clock.get())();
        match self.deadline_us.get() {
            None => self.deadline_us.set(Some(now_us.saturating_add(self.wall_left_us.get()))),
            Some(deadline_us) if now_us > deadline_us => {
                self.trip(LimitError::WallClock { limit_us: self.wall_us.get() })
            }
            Some(_) => {}
        }
    }

    fn at_instruction(&self) -> bool {
        if !self.on.get() {
            return false;
        }
        self.within_c.set(false);
        self.charge(1);
        self.tripped.get().is_some()
    }

    fn at_safepoint(&self, heap_bytes: usize) -> bool {
        if !self.on.get() {
            return false;
        }
        if !self.exact.get() {
            self.charge(SAFEPOINT_COST);
        } else if self.within_c.replace(true) {
            self.charge(1);
        }
        if heap_bytes > self.heap_bytes_max.get() {
            self.trip_working_memory();
        }
        let to_look = self.safepoints_to_look.get() - 1;
        self.safepoints_to_look.set(to_look);
        if to_look == 0 {
            self.safepoints_to_look.set(SAFEPOINTS_PER_LOOK);
            self.look_at_clock();
        }
        self.tripped.get().is_some()
    }
}
