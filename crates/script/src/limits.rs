//! What an object may use, and the errors of those that want more.

use std::fmt;

/// How instructions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuel {
    /// Every bytecode instruction counts one. Costs a tight loop about three times its time.
    Exact,
    /// Every safepoint (a loop's turn, a call, a return) counts [`SAFEPOINT_COST`]. Costs a tight loop a tenth.
    /// The bound it keeps is on safepoints: between two of them lies at most the straight code of one function.
    Safepoints,
}

/// Instructions that one safepoint stands for: there is one for each 4 to 12.
pub const SAFEPOINT_COST: i64 = 8;

/// The limits of one object. The defaults are Comet's (OSDI 2010, §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub fuel: Fuel,
    /// Bytecode instructions of one handler call, its callbacks and resumed parts included.
    pub instructions: u32,
    /// Source and encoded state together, where each table counts 16 bytes more. Also bounds what a handler returns.
    pub memory_bytes: usize,
    /// What one call may allocate, garbage included: nothing is collected while a handler runs. Too small: handlers
    /// that join strings in a loop fail. Too large: hostile calls leave more for the collector.
    pub working_bytes: usize,
    /// Time that a call may run by the clock of the machine's `Config`, without the time it waits. Instructions cost
    /// a few milliseconds at most; this bounds what C functions take beyond them. Too small: a busy machine ends
    /// honest calls, unless the clock is the thread's processor time.
    pub wall_us: u64,
    /// Messages (one for each node addressed) between two refills, that is a timer interval.
    pub messages: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            fuel: Fuel::Exact,
            instructions: 100_000,
            memory_bytes: 100_000,
            working_bytes: 1 << 20,
            wall_us: 10_000,
            messages: 20,
        }
    }
}

/// A limit that was reached. It ends the call: no `pcall` holds it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitError {
    Instructions {
        limit: u32,
    },
    /// Code and state are too large to be kept.
    Memory {
        limit_bytes: usize,
    },
    /// One call allocated too much.
    WorkingMemory {
        limit_bytes: usize,
    },
    WallClock {
        limit_us: u64,
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

/// Why a call, a load or an encoding failed. A failed call may have changed some fields already: whoever wants all
/// or nothing loads the object again from its last encoded state.
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
    NanKey,
    TableKey,
    TooDeep { levels_max: usize },
    TooLarge { bytes_max: usize },
}

impl fmt::Display for Unkeepable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unkeepable::Function => write!(f, "a function, which cannot be kept"),
            Unkeepable::Thread => write!(f, "a coroutine, which cannot be kept"),
            Unkeepable::Userdata => write!(f, "a value of the host, which cannot be kept"),
            Unkeepable::Cycle => write!(f, "a table that contains itself"),
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
