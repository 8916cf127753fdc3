//! Counts what a running handler uses, and stops it. The only `unsafe` code of this crate.
//!
//! Luau calls us back at safepoints (a loop's turn, a call, a return, each step of a string pattern) and, while a
//! thread is single-stepped, before each instruction. mlua offers neither single steps nor a callback that costs a
//! few nanoseconds, so both are installed by hand. A limit once reached stays reached: the error is raised again
//! at the next safepoint or instruction, so that `pcall` in a loop cannot outlive it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::rc::Rc;

use mlua::ffi::{self, lua_Debug, lua_State};
use mlua::{Lua, Thread};

use crate::limits::{Fuel, LimitError, Limits, SAFEPOINT_COST};

/// Safepoints between two looks at the clock.
const SAFEPOINTS_PER_LOOK: u32 = 64;

/// A monotonic clock in microseconds. The processor time of the thread is best: a descheduled handler is not late.
pub type Clock = fn() -> u64;

pub(crate) struct Meter {
    /// Nothing is counted while no handler runs.
    on: Cell<bool>,
    exact: Cell<bool>,
    fuel: Cell<i64>,
    tripped: Cell<Option<LimitError>>,
    instructions_max: Cell<u32>,
    heap_bytes_max: Cell<usize>,
    working_bytes: Cell<usize>,
    clock: Clock,
    deadline_us: Cell<u64>,
    wall_us: Cell<u64>,
    safepoints_to_look: Cell<u32>,
    /// No instruction was stepped since the last safepoint: a C function makes these, and each is charged.
    within_c: Cell<bool>,
}

/// What a suspended call has left.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub fuel: i64,
    pub wall_us: u64,
}

impl Left {
    pub fn all(limits: &Limits) -> Left {
        Left { fuel: i64::from(limits.instructions), wall_us: limits.wall_us }
    }
}

impl Meter {
    /// Installs a meter in a machine that was just made. The machine must not outlive the `Rc`.
    pub fn install(lua: &Lua, clock: Clock) -> Rc<Meter> {
        let meter = Rc::new(Meter {
            on: Cell::new(false),
            exact: Cell::new(true),
            fuel: Cell::new(0),
            tripped: Cell::new(None),
            instructions_max: Cell::new(0),
            heap_bytes_max: Cell::new(usize::MAX),
            working_bytes: Cell::new(0),
            clock,
            deadline_us: Cell::new(u64::MAX),
            wall_us: Cell::new(0),
            safepoints_to_look: Cell::new(SAFEPOINTS_PER_LOOK),
            within_c: Cell::new(false),
        });
        let state = lua.current_thread().state();
        // SAFETY: `state` is a live state of `lua`. Luau never touches `userdata` and mlua does not use it. The
        // pointer is read only by the callbacks below, which run only while Lua code runs, that is while `Vm` is
        // borrowed, and `Vm` owns the `Rc`. The callbacks unwind as C++ exceptions through frames of these two
        // functions only, which own nothing that is dropped.
        unsafe {
            let callbacks = ffi::lua_callbacks(state);
            (*callbacks).userdata = Rc::as_ptr(&meter) as *mut c_void;
            (*callbacks).interrupt = Some(safepoint);
            (*callbacks).debugstep = Some(instruction);
        }
        meter
    }

    /// From now until `stop`, the code of `thread` is counted.
    pub fn start(&self, limits: &Limits, left: Left, heap_bytes: usize, thread: &Thread) {
        let exact = limits.fuel == Fuel::Exact;
        // SAFETY: the state lives as long as `thread`; the call sets one flag of it.
        unsafe { ffi::lua_singlestep(thread.state(), c_int::from(exact)) };
        self.exact.set(exact);
        self.fuel.set(left.fuel);
        self.tripped.set(None);
        self.instructions_max.set(limits.instructions);
        self.working_bytes.set(limits.working_bytes);
        self.heap_bytes_max.set(heap_bytes + limits.working_bytes);
        self.wall_us.set(limits.wall_us);
        self.deadline_us.set((self.clock)().saturating_add(left.wall_us));
        self.safepoints_to_look.set(SAFEPOINTS_PER_LOOK);
        self.within_c.set(true);
        self.on.set(true);
    }

    /// Ends the counting. Returns what is left, and the limit if one was reached.
    pub fn stop(&self) -> (Left, Option<LimitError>) {
        self.on.set(false);
        let left = Left {
            fuel: self.fuel.get(),
            wall_us: self.deadline_us.get().saturating_sub((self.clock)()),
        };
        (left, self.tripped.get())
    }

    pub fn tripped(&self) -> Option<LimitError> {
        self.tripped.get()
    }

    pub fn trip(&self, limit: LimitError) {
        if self.on.get() && self.tripped.get().is_none() {
            self.tripped.set(Some(limit));
        }
    }

    pub fn trip_working_memory(&self) {
        self.trip(LimitError::WorkingMemory { limit_bytes: self.working_bytes.get() });
    }

    /// Takes fuel for work that has no instructions.
    pub fn charge(&self, cost: i64) {
        let fuel = self.fuel.get().saturating_sub(cost);
        self.fuel.set(fuel);
        if fuel < 0 {
            self.trip(LimitError::Instructions { limit: self.instructions_max.get() });
        }
    }

    fn at_instruction(&self) {
        self.within_c.set(false);
        self.charge(1);
    }

    fn at_safepoint(&self, heap_bytes: usize) {
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
            if (self.clock)() > self.deadline_us.get() {
                self.trip(LimitError::WallClock { limit_us: self.wall_us.get() });
            }
        }
    }
}

unsafe extern "C-unwind" fn instruction(state: *mut lua_State, _: *mut lua_Debug) {
    let meter = &*((*ffi::lua_callbacks(state)).userdata as *const Meter);
    if meter.on.get() {
        meter.at_instruction();
        if meter.tripped.get().is_some() {
            raise(state);
        }
    }
}

unsafe extern "C-unwind" fn safepoint(state: *mut lua_State, gc: c_int) {
    let meter = &*((*ffi::lua_callbacks(state)).userdata as *const Meter);
    // The collector calls too, where no error may be raised.
    if gc < 0 && meter.on.get() {
        meter.at_safepoint(ffi::lua_totalbytes(state, -1));
        if meter.tripped.get().is_some() {
            raise(state);
        }
    }
}

/// The text does not matter: whoever started the call asks the meter. It costs no allocation after the first time.
unsafe fn raise(state: *mut lua_State) -> ! {
    ffi::lua_rawcheckstack(state, 1);
    ffi::lua_pushlstring_(state, c"limit".as_ptr(), 5);
    ffi::lua_error(state)
}
