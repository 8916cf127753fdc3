//! What an object may use, and the errors of those that want more.

use std::fmt;

use oort_core::active::{Fuel, Limits, INTERVAL_MS_MAX, INTERVAL_MS_MIN};

/// The least and the greatest time between two runs of `onTimer`, in seconds.
pub(crate) const INTERVAL_SECONDS_MIN: f64 = INTERVAL_MS_MIN as f64 / 1000.0;
pub(crate) const INTERVAL_SECONDS_MAX: f64 = INTERVAL_MS_MAX as f64 / 1000.0;

/// Instructions that one safepoint stands for: there is one for each 4 to 12.
pub const SAFEPOINT_COST: i64 = 8;

/// What one call may allocate in bytes, garbage and what convergent values take included: nothing is collected while a
/// handler runs. Too small: handlers that join strings in a loop fail. Too large: hostile calls leave more for the
/// collector.
pub const WORKING_BYTES: usize = 1 << 20;

/// Comet's limits (OSDI 2010, §3.2), and one on time: instructions cost a few milliseconds at most, the bound on time
/// is there for what C functions take beyond them.
pub const COMET_LIMITS: Limits =
    Limits { fuel: Fuel::Exact, instructions: 100_000, memory_bytes: 100_000, wall_us: 10_000, messages: 20 };

/// A limit that was reached. It ends the call: no `pcall` holds it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitError {
    Instructions {
        limit: u32,
    },
    /// Code and state are too large to be kept.
    Memory {
        limit_bytes: u32,
    },
    /// One call allocated too much.
    WorkingMemory {
        limit_bytes: usize,
    },
    WallClock {
        limit_us: u32,
    },
    Messages {
        limit: u32,
    },
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Instructions { limit } => write!(f, "the call used more than {limit} instructions"),
            LimitError::Memory { limit_bytes } => {
                write!(f, "the object's code and state take more than {limit_bytes} bytes")
            }
            LimitError::WorkingMemory { limit_bytes } => {
                write!(f, "the call allocated more than {limit_bytes} bytes")
            }
            LimitError::WallClock { limit_us } => write!(f, "the call ran longer than {limit_us} µs"),
            LimitError::Messages { limit } => {
                write!(f, "the object sent more than {limit} messages in one timer interval")
            }
        }
    }
}

/// Why a call, a load or an encoding failed. A failed call may have changed some fields already: [`Vm::undo`] takes the
/// object back to the state before it.
///
/// [`Vm::undo`]: crate::Vm::undo
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptError {
    /// The source does not compile.
    Syntax { message: String },
    /// The code raised an error, which Lua's trace follows.
    Runtime { message: String, trace: String },
    /// A limit was reached, at the place that the trace shows if there is one.
    Limit { limit: LimitError, trace: String },
    /// A field or a result holds what cannot be kept or sent.
    Unkeepable { path: String, reason: Unkeepable },
    /// The object has no such function.
    NoFunction { name: String },
    /// The bytes of a state are none.
    BadState { reason: &'static str },
    /// The virtual machine itself has no memory left or is misused by its owner.
    Machine { message: String },
}

/// What no state and no answer can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unkeepable {
    Function,
    Thread,
    Userdata,
    Cycle,
    Metatable,
    /// A function, or a table with functions, that is not as the source made it.
    Changed,
    /// One of the names of the object itself.
    OwnName,
    /// The object itself is frozen.
    Frozen,
    /// The time between two runs of `onTimer`.
    Interval,
    NanKey,
    TableKey,
    TooDeep {
        levels_max: usize,
    },
    TooLarge {
        bytes_max: usize,
    },
}

impl fmt::Display for Unkeepable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unkeepable::Function => write!(f, "a function, which cannot be kept"),
            Unkeepable::Thread => write!(f, "a coroutine, which cannot be kept"),
            Unkeepable::Userdata => write!(f, "a value of the host, which cannot be kept"),
            Unkeepable::Cycle => write!(f, "a table that contains itself"),
            Unkeepable::Metatable => write!(f, "a table with a metatable, which cannot be kept"),
            Unkeepable::Changed => {
                write!(
                    f,
                    "code that a call has changed: functions, and tables with functions or a metatable, are the source's alone"
                )
            }
            Unkeepable::Frozen => write!(f, "a frozen table, which the object itself cannot be"),
            Unkeepable::Interval => write!(
                f,
                "no number of seconds from {INTERVAL_SECONDS_MIN} to {INTERVAL_SECONDS_MAX}, as the object has a timer"
            ),
            Unkeepable::OwnName => write!(f, "another value than the object under one of its names: aso, object, self"),
            Unkeepable::NanKey => write!(f, "a key that is not a number (NaN)"),
            Unkeepable::TableKey => write!(f, "a key that is neither a string, a number nor a boolean"),
            Unkeepable::TooDeep { levels_max } => write!(f, "tables nested deeper than {levels_max} levels"),
            Unkeepable::TooLarge { bytes_max } => write!(f, "more than {bytes_max} bytes"),
        }
    }
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScriptError::Syntax { message } => write!(f, "the source does not compile: {message}"),
            ScriptError::Runtime { message, .. } => f.write_str(message),
            ScriptError::Limit { limit, .. } => write!(f, "{limit}"),
            ScriptError::Unkeepable { path, reason } => write!(f, "{path} holds {reason}"),
            ScriptError::NoFunction { name } => write!(f, "the object has no function {name}"),
            ScriptError::BadState { reason } => write!(f, "the object's state cannot be read: {reason}"),
            ScriptError::Machine { message } => write!(f, "the virtual machine failed: {message}"),
        }
    }
}

impl std::error::Error for ScriptError {}

impl ScriptError {
    /// Lua's trace of calls, empty where there is none.
    pub fn trace(&self) -> &str {
        match self {
            ScriptError::Runtime { trace, .. } | ScriptError::Limit { trace, .. } => trace,
            _ => "",
        }
    }
}

impl From<mlua::Error> for ScriptError {
    /// Errors of the machine outside of any handler. Those of handlers are told apart in `vm`.
    fn from(error: mlua::Error) -> ScriptError {
        ScriptError::Machine { message: error.to_string() }
    }
}
