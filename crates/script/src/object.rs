//! An active object in memory, and what is kept of it.
//!
//! An object is two tables: its fields, and an environment for the globals of its code. Its state is the data in both,
//! without what its source makes anew: functions, tables that hold functions, and globals that were not changed.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use mlua::{Function, Lua, Table};
use oort_core::active::{Limits, Value};

use crate::codec::{decode_veiled, encode};
use crate::held::{self, Gauge};
use crate::join;
use crate::limits::{LimitError, ScriptError, Unkeepable};
use crate::shape::Shape;
use crate::value::{into_lua, state_into_lua, Convergent, Refusal, Taker};

/// The names under which code finds its object.
pub(crate) const OBJECT_NAMES: [&str; 3] = ["aso", "object", "self"];

/// A compiled source, shared by its objects.
pub(crate) struct Code {
    pub source: Rc<[u8]>,
    pub main: Function,
    pub shape: Shape,
    /// What the source makes anew, known once it has run.
    pub baseline: OnceCell<Baseline>,
}

/// What a source makes, by name.
#[derive(Default)]
pub(crate) struct Baseline {
    fields: BTreeMap<Vec<u8>, Made>,
    globals: BTreeMap<Vec<u8>, Made>,
}

/// What a name holds after the source has run.
enum Made {
    /// A function, or a table with functions in it.
    Code,
    Data(Value),
}

/// What becomes of fields that the source makes and a state has not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fresh {
    /// The object has taken them away.
    Dropped,
    /// They are new.
    Kept,
}

/// An active object in memory.
pub struct Object {
    pub(crate) code: Rc<Code>,
    pub(crate) fields: Table,
    pub(crate) globals: Table,
    pub(crate) key: Bytes,
    /// Which load of the machine made it.
    pub(crate) load: u64,
    /// The counter of the last dot that its calls took.
    pub(crate) last_dot: u64,
    pub(crate) limits: Limits,
    pub(crate) messages_left: u32,
    /// Allocated by its calls since its state was last measured.
    pub(crate) unmeasured_bytes: usize,
    /// Allocated by its calls since it was loaded.
    pub(crate) allocated_bytes: usize,
}

impl Object {
    /// Its Lua source.
    pub fn source(&self) -> &[u8] {
        &self.code.source
    }

    /// Whether the object defines this function.
    pub fn has(&self, function: &str) -> bool {
        matches!(self.fields.raw_get(function), Ok(mlua::Value::Function(_)))
    }

    /// A timer interval has begun: messages may be sent again.
    pub fn refill_messages(&mut self) {
        self.messages_left = self.limits.messages;
    }

    /// Messages that may still be sent in this interval.
    pub fn messages_left(&self) -> u32 {
        self.messages_left
    }

    /// A field, as `ASO.INFO` shows it and as timers read `interval`; `Nil` if there is none.
    ///
    /// Errors: `Unkeepable`.
    pub fn field(&self, name: &str) -> Result<Value, ScriptError> {
        let value: mlua::Value = self.fields.raw_get(name)?;
        self.taker(Convergent::Plain).take(&value).map_err(|r| r.at(&format!("self.{name}")))
    }

    /// All fields that are data, as a map.
    ///
    /// Errors: `Unkeepable`, with the path to what cannot be kept, and the limit on memory.
    pub fn fields(&self) -> Result<Value, ScriptError> {
        let empty = Baseline::default();
        let baseline = self.code.baseline.get().unwrap_or(&empty);
        let mut taker = self.taker(Convergent::Plain);
        let fields = kept(&mut taker, &self.fields, &baseline.fields, &[], "self");
        fields.map(Value::Map).map_err(|error| too_large(error, &self.limits))
    }

    /// The state in bytes; equal states have equal bytes.
    ///
    /// Errors: as [`Object::fields`].
    pub(crate) fn encode(&mut self) -> Result<Vec<u8>, ScriptError> {
        let [fields, globals] = self.state()?;
        let state = encode(&Value::Array(vec![Value::Map(fields), Value::Map(globals)]));
        if self.code.source.len() + state.len() > self.limits.memory_bytes as usize {
            return Err(memory_limit(&self.limits));
        }
        self.unmeasured_bytes = 0;
        Ok(state)
    }

    /// What is kept of fields and globals.
    fn state(&self) -> Result<[Entries; 2], ScriptError> {
        let empty = Baseline::default();
        let baseline = self.code.baseline.get().unwrap_or(&empty);
        let mut taker = self.taker(Convergent::Veiled);
        let fields = kept(&mut taker, &self.fields, &baseline.fields, &[], "self");
        let fields = fields.map_err(|error| too_large(error, &self.limits))?;
        let globals = kept(&mut taker, &self.globals, &baseline.globals, &OBJECT_NAMES, "the global");
        let mut globals = globals.map_err(|error| too_large(error, &self.limits))?;
        globals.retain(|(name, value)| !is_made(baseline, name, value));
        Ok([fields, globals])
    }

    fn taker(&self, convergent: Convergent) -> Taker {
        Taker::new(self.limits.memory_bytes as usize, convergent)
    }

    /// Only the size is of interest: what cannot be kept is said when it shall be kept.
    pub(crate) fn measure(&mut self) -> Result<(), ScriptError> {
        match self.encode() {
            Err(error @ ScriptError::Limit { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Notes what the source has made, if this is its first object.
    pub(crate) fn note_baseline(&self) -> Result<(), ScriptError> {
        if self.code.baseline.get().is_some() {
            return Ok(());
        }
        let read = |table: &Table| -> Result<BTreeMap<Vec<u8>, Made>, ScriptError> {
            let mut made = BTreeMap::new();
            table.for_each(|name: mlua::Value, value: mlua::Value| {
                if let mlua::Value::String(name) = name {
                    let taken = self.taker(Convergent::Veiled).take(&value);
                    let is = match taken {
                        Ok(data) => Made::Data(data),
                        Err(Refusal { reason: Unkeepable::TooLarge { .. }, .. }) => return Ok(()),
                        Err(_) => Made::Code,
                    };
                    made.insert(name.as_bytes().to_vec(), is);
                }
                Ok(())
            })?;
            Ok(made)
        };
        let mut fields = read(&self.fields)?;
        fields.retain(|_, made| matches!(made, Made::Code));
        let _ = self.code.baseline.set(Baseline { fields, globals: read(&self.globals)? });
        Ok(())
    }

    /// Puts the fields and globals of a state in place of those that the source made.
    ///
    /// Errors: `BadState`.
    pub(crate) fn restore(
        &self,
        lua: &Lua,
        gauge: &Gauge,
        state: &[u8],
        fresh: Fresh,
    ) -> Result<(), ScriptError> {
        let [fields, globals] = parts(decode_veiled(state)?)?;
        let made_code = |name: &mlua::Value| match (name, self.code.baseline.get()) {
            (mlua::Value::String(name), Some(baseline)) => {
                matches!(baseline.fields.get(&name.as_bytes()[..]), Some(Made::Code))
            }
            _ => false,
        };
        let mut stale = Vec::new();
        self.fields.for_each(|name: mlua::Value, _: mlua::Value| {
            if fresh == Fresh::Dropped && !made_code(&name) {
                stale.push(name);
            }
            Ok(())
        })?;
        for name in stale {
            self.fields.raw_set(name, mlua::Value::Nil)?;
        }
        for (table, entries) in [(&self.fields, fields), (&self.globals, globals)] {
            for (name, value) in entries {
                if !is_object_name(&name) {
                    table.raw_set(into_lua(lua, &name)?, state_into_lua(lua, gauge, &value)?)?;
                }
            }
        }
        Ok(())
    }

    /// Joins a concurrent state of the same object into this one: convergent values at equal places are joined, also
    /// those that only the other has, with the tables around them. All else stays as it is. True if nothing but
    /// convergent values differed, so that nothing of the other state is lost.
    ///
    /// Errors: `BadState`; whatever the own state cannot keep; the limit on memory, if they are too large together.
    pub(crate) fn join(&mut self, lua: &Lua, gauge: &Gauge, state: &[u8]) -> Result<bool, ScriptError> {
        let theirs = parts(decode_veiled(state)?)?;
        let ours = self.state()?;
        let mut is_lossless = true;
        for ((table, ours), theirs) in [&self.fields, &self.globals].into_iter().zip(ours).zip(theirs) {
            is_lossless &= join::differ_in_convergent_only(&ours, &theirs);
            let theirs = theirs.iter().filter(|(name, _)| !is_object_name(name));
            is_lossless &= join::join_table(lua, gauge, table, theirs)?;
        }
        self.measure()?;
        Ok(is_lossless)
    }
}

/// The fields in a state, without code, as a map.
///
/// Errors: `BadState`.
pub fn state_fields(state: &[u8]) -> Result<Value, ScriptError> {
    let [fields, _] = parts(decode_veiled(state)?)?;
    held::unveil(Value::Map(fields))
}

/// The error of an object whose code and state are too large.
pub(crate) fn memory_limit(limits: &Limits) -> ScriptError {
    let limit = LimitError::Memory { limit_bytes: limits.memory_bytes };
    ScriptError::Limit { limit, trace: String::new() }
}

type Entries = Vec<(Value, Value)>;

fn is_object_name(name: &Value) -> bool {
    matches!(name, Value::Bytes(name) if OBJECT_NAMES.iter().any(|object| object.as_bytes() == name))
}

/// The fields and the globals of a decoded state.
fn parts(state: Value) -> Result<[Entries; 2], ScriptError> {
    let bad = ScriptError::BadState { reason: "it is no pair of tables" };
    let Value::Array(parts) = state else { return Err(bad) };
    match <[Value; 2]>::try_from(parts) {
        Ok([Value::Map(fields), Value::Map(globals)]) => Ok([fields, globals]),
        _ => Err(bad),
    }
}

/// The entries of a table that are data: without `hidden` names and without what the source makes.
fn kept(
    taker: &mut Taker,
    table: &Table,
    made: &BTreeMap<Vec<u8>, Made>,
    hidden: &[&str],
    root: &str,
) -> Result<Entries, ScriptError> {
    let is_kept = |name: &[u8]| {
        !hidden.iter().any(|hidden| hidden.as_bytes() == name) && !matches!(made.get(name), Some(Made::Code))
    };
    taker.entries(table, is_kept).map_err(|refusal: Refusal| refusal.at(root))
}

fn is_made(baseline: &Baseline, name: &Value, value: &Value) -> bool {
    let Value::Bytes(name) = name else { return false };
    matches!(baseline.globals.get(name), Some(Made::Data(made)) if made == value)
}

/// A state that is too large to read is one that takes too much memory.
fn too_large(error: ScriptError, limits: &Limits) -> ScriptError {
    match error {
        ScriptError::Unkeepable { reason: Unkeepable::TooLarge { .. }, .. } => memory_limit(limits),
        other => other,
    }
}
