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
//! The language is Luau. Source: Comet (OSDI 2010, §3), DESIGN §5. Differs: a handler may simply wait for `get`,
//! `put` and `lookup`; callbacks run when the handler has returned, within its limits.

mod limits;
mod value;
mod meter;
mod shape;
mod host;
mod library;
mod collector;
mod failure;
mod object;
mod vm;
mod machine;

pub use limits::{LimitError, ScriptError, Unkeepable, COMET_LIMITS, SAFEPOINT_COST, WORKING_BYTES};
pub use machine::Machine;
pub use meter::Clock;
pub use object::Object;
pub use oort_core::active::{
    Answer, Caller, CallerPlace, Done, Facts, Fuel, HostRequest, HostResult, Invocation, Limits, PutData,
    Value,
};
pub use value::{decode, encode, LEVELS_MAX};
pub use vm::{Config, Step, Suspended, Vm};
