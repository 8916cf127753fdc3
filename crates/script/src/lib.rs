//! Oort's sandbox: active objects, written in Lua.
//!
//! An active object is a table of fields and functions, made by running its source. This crate runs such functions
//! so that they can hurt nobody: each call is bounded in instructions, memory, time and messages, sees only what
//! the library gives it, and shares nothing writable with other objects. It has no I/O, no clock and no randomness
//! of its own: time, seed and the node's facts are handed in, and what an object asks of its node comes out as a
//! request that the owner answers.
//!
//! ```
//! use oort_script::{Answer, CallerPlace, Config, Facts, Invocation, Step, Value, Vm, COMET_LIMITS};
//!
//! let source = b"aso.value = 'Hello world!' aso.getCount = 0
//!     function onGet() self.getCount = self.getCount + 1 return {self.value, self.getCount} end";
//! let mut vm = Vm::new(Config::default())?;
//! let mut object = vm.load("key".into(), source, None, COMET_LIMITS, Facts::default())?;
//! let facts = Facts { now_ms: 1_700_000_000_000, seed: 7, actor: 1 };
//! let call = Invocation { function: "onGet", caller: CallerPlace::None, arguments: &[], facts };
//! let Step::Done(outcome) = vm.call(&mut object, &call) else { panic!("the handler waits for nothing") };
//! assert_eq!(outcome.answer, Answer::Value(Value::Array(vec!["Hello world!".into(), 1.into()])));
//! let state = vm.encode(&mut object)?;
//! # let _ = state;
//! # Ok::<(), oort_script::ScriptError>(())
//! ```
//!
//! # Convergent values
//!
//! A field may hold a value that converges: `aso.hits = comet.counter()`, and likewise `comet.set()`, `comet.map()` and
//! `comet.register()` (`methods` has the list of what they can do). When two nodes ran the same object at once, as on
//! the two sides of a split, [`Machine`]'s `join` merges such values where they stand at equal places of both states,
//! in tables and globals too, and loses no addition; of all other data one of the states stays. `convergent` has the
//! semantics.
//!
//! They are no tables: no function of Lua reaches into them. In what leaves the sandbox they are plain data: a counter
//! is an integer, a set an array, a map a map and a register its value. They count against the limits of their object,
//! and each operation costs instructions in proportion to its work.
//!
//! A new value in the place of an old one is no reset: other nodes may still hold the old one, and both are joined. So
//! a counter is set back with `self.hits:add(-self.hits:value())`, and a set is emptied element by element. A field
//! that is set to `nil` comes back from nodes that have it.
//!
//! The language is Luau. Source: Comet (OSDI 2010, §3), DESIGN §5. Differs: a handler may simply wait for `get`,
//! `put` and `lookup`; callbacks run when the handler has returned, within its limits.

mod limits;
mod failure;
mod meter;
mod raw;
mod codec;
mod convergent;
mod held;
mod value;
mod state;
mod shape;
mod host;
mod methods;
mod library;
mod collector;
mod join;
mod object;
mod vm;
mod machine;

pub use codec::{encode, LEVELS_MAX};
pub use held::decode;
pub use limits::{LimitError, ScriptError, Unkeepable, COMET_LIMITS, SAFEPOINT_COST, WORKING_BYTES};
pub use machine::Machine;
pub use meter::Clock;
pub use object::Object;
pub use oort_core::active::{
    Answer, Caller, CallerPlace, Done, Facts, Fuel, HostRequest, HostResult, Invocation, Limits, Place,
    PutData, Value,
};
pub use vm::{Config, Step, Suspended, Vm};
