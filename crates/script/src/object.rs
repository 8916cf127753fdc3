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

use crate::codec::decode_veiled;
use crate::held::{self, Gauge, Kept};
use crate::join;
use crate::limits::{LimitError, ScriptError, Unkeepable, INTERVAL_SECONDS_MAX, INTERVAL_SECONDS_MIN};
use crate::shape::{Shape, Signature};
use crate::state::{self, Made, Names, Root};
use crate::value::{into_lua, state_into_lua, Convergent, Refusal, Taker};

/// The names under which code finds its object.
pub(crate) const OBJECT_NAMES: [&str; 3] = ["aso", "object", "self"];

/// A compiled source, shared by its objects.
pub(crate) struct Code {
    pub source: Rc<[u8]>,
    pub main: Function,
    pub shape: Shape,
    /// How its functions are to be called, by name, known once it has run.
    pub signatures: OnceCell<BTreeMap<Vec<u8>, Signature>>,
    /// What the source makes anew, known once it has run.
    pub baseline: OnceCell<Baseline>,
}

/// What a source makes, by name.
#[derive(Default)]
pub(crate) struct Baseline {
    fields: Names,
    globals: Names,
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
    /// The bytes of its state before the call that runs; empty before it was first known.
    pub(crate) kept: Kept,
    /// Of the functions that its source has made, as they must stay.
    pub(crate) print: u64,
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
    /// Errors: `Unkeepable`, with the path to what cannot be kept.
    pub fn fields(&self) -> Result<Value, ScriptError> {
        let empty = Baseline::default();
        let baseline = self.code.baseline.get().unwrap_or(&empty);
        // What is kept has a bound of its own.
        let mut taker = Taker::new(usize::MAX, Convergent::Plain);
        let fields = kept(&mut taker, &self.fields, &baseline.fields, &[], "self");
        fields.map(Value::Map)
    }

    /// Writes the state into `out`: equal states have equal bytes. Returns the print of the code.
    ///
    /// Errors: `Unkeepable`, with the path to what cannot be kept, and the limit on memory. A state that has not grown
    /// since it was kept is not refused for its size: the limit may have been lowered since.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<u64, ScriptError> {
        self.write_within(out, 0)
    }

    /// As `write`. The state may have grown by `slack_bytes`.
    pub(crate) fn write_within(&self, out: &mut Vec<u8>, slack_bytes: usize) -> Result<u64, ScriptError> {
        let empty = Baseline::default();
        let baseline = self.code.baseline.get().unwrap_or(&empty);
        let place = self.fields.to_pointer();
        let fields = Root { table: &self.fields, made: &baseline.fields, own: (&[], place), name: "self" };
        let own = (&OBJECT_NAMES[..], place);
        let globals = Root { table: &self.globals, made: &baseline.globals, own, name: "the global" };
        let bytes_max = (self.limits.memory_bytes as usize).saturating_sub(self.code.source.len());
        let written = state::write(out, [fields, globals], bytes_max.max(self.kept.len() + slack_bytes));
        written.map_err(|error| too_large(error, &self.limits))
    }

    /// Takes what the object has become for its state, unless that cannot be kept.
    ///
    /// Errors: as [`Object::write`], and code that is not what the source made.
    pub(crate) fn keep(&mut self, scratch: &mut Vec<u8>) -> Result<(), ScriptError> {
        if self.write(scratch)? != self.print {
            return Err(self.changed_code());
        }
        if *self.kept != **scratch {
            self.kept.set(scratch);
        }
        self.unmeasured_bytes = 0;
        Ok(())
    }

    /// True if the state is what is kept, and the code what it was.
    pub(crate) fn is_kept(&self, scratch: &mut Vec<u8>) -> bool {
        self.write(scratch).is_ok_and(|print| print == self.print) && *self.kept == **scratch
    }

    /// Which functions are not as the source made them.
    fn changed_code(&self) -> ScriptError {
        let empty = Baseline::default();
        let baseline = self.code.baseline.get().unwrap_or(&empty);
        for (table, made, root) in
            [(&self.fields, &baseline.fields, "self"), (&self.globals, &baseline.globals, "the global")]
        {
            let mut new = None;
            let _ = table.for_each(|name: mlua::Value, value: mlua::Value| {
                if let (mlua::Value::String(name), mlua::Value::Function(_)) = (name, value) {
                    if !matches!(made.get(&name.as_bytes()[..]), Some(Made::Code)) {
                        new = Some(name.as_bytes().to_vec());
                    }
                }
                Ok(())
            });
            if let Some(name) = new {
                return Refusal::from(Unkeepable::Function).within(|| Value::Bytes(name)).at(root);
            }
        }
        Refusal::from(Unkeepable::Changed).at("self")
    }

    /// What is kept of fields and globals.
    fn state(&self) -> Result<[Entries; 2], ScriptError> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        parts(decode_veiled(&bytes)?)
    }

    fn taker(&self, convergent: Convergent) -> Taker {
        Taker::new(self.limits.memory_bytes as usize, convergent)
    }

    /// Only the size is of interest: what cannot be kept is said when the call ends.
    pub(crate) fn measure(&mut self, scratch: &mut Vec<u8>) -> Result<(), ScriptError> {
        match self.write(scratch) {
            Err(error @ ScriptError::Limit { .. }) => Err(error),
            _ => {
                self.unmeasured_bytes = 0;
                Ok(())
            }
        }
    }

    /// Notes what the source has made, if this is its first object.
    pub(crate) fn note_baseline(&self) -> Result<(), ScriptError> {
        if self.code.baseline.get().is_some() {
            return Ok(());
        }
        let read = |table: &Table| -> Result<Names, ScriptError> {
            let mut made = Names::new();
            table.for_each(|name: mlua::Value, value: mlua::Value| {
                if let mlua::Value::String(name) = name {
                    let is = match state::value_bytes(&value, self.limits.memory_bytes as usize) {
                        Ok(data) => Made::Data(data),
                        Err(Unkeepable::TooLarge { .. }) => return Ok(()),
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
    /// What the source makes a function now stays one, whatever stood there before. An interval of the timer that none
    /// can be, from before they were refused, becomes one.
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
        let empty = Baseline::default();
        let baseline = self.code.baseline.get().unwrap_or(&empty);
        let made_code = |name: &mlua::Value| match name {
            mlua::Value::String(name) => {
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
        let tables = [(&self.fields, fields, &baseline.fields), (&self.globals, globals, &baseline.globals)];
        for (table, entries, made) in tables {
            for (name, value) in entries {
                let is_code =
                    matches!(&name, Value::Bytes(name) if matches!(made.get(name), Some(Made::Code)));
                if !is_object_name(&name) && !is_code {
                    table.raw_set(into_lua(lua, &name)?, state_into_lua(lua, gauge, &value)?)?;
                }
            }
        }
        let interval: mlua::Value = self.fields.raw_get("interval")?;
        if !interval.is_nil() && self.has("onTimer") {
            let seconds = match interval {
                mlua::Value::Integer(seconds) => seconds as f64,
                mlua::Value::Number(seconds) => seconds,
                _ => f64::NAN,
            };
            let nearest = seconds.clamp(INTERVAL_SECONDS_MIN, INTERVAL_SECONDS_MAX);
            self.fields.raw_set("interval", Some(nearest).filter(|_| !seconds.is_nan()))?;
        }
        Ok(())
    }

    /// Joins a concurrent state of the same object into this one: convergent values at equal places are joined, also
    /// those that only the other has, with the tables around them. All else stays as it is. True if nothing but
    /// convergent values differed, so that nothing of the other state is lost.
    ///
    /// Errors: `BadState`; whatever the own state cannot keep; the limit on memory, if they are too large together.
    pub(crate) fn join(
        &mut self,
        lua: &Lua,
        gauge: &Gauge,
        scratch: &mut Vec<u8>,
        state: &[u8],
    ) -> Result<bool, ScriptError> {
        let theirs = parts(decode_veiled(state)?)?;
        let ours = self.state()?;
        let mut is_lossless = true;
        for ((table, ours), theirs) in [&self.fields, &self.globals].into_iter().zip(ours).zip(theirs) {
            is_lossless &= join::differ_in_convergent_only(&ours, &theirs);
            let theirs = theirs.iter().filter(|(name, _)| !is_object_name(name));
            is_lossless &= join::join_table(lua, gauge, table, theirs)?;
        }
        self.keep(scratch)?;
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
    made: &Names,
    hidden: &[&str],
    root: &str,
) -> Result<Entries, ScriptError> {
    let is_kept = |name: &[u8]| {
        !hidden.iter().any(|hidden| hidden.as_bytes() == name) && !matches!(made.get(name), Some(Made::Code))
    };
    taker.entries(table, is_kept).map_err(|refusal: Refusal| refusal.at(root))
}

/// A state that is too large to read is one that takes too much memory.
fn too_large(error: ScriptError, limits: &Limits) -> ScriptError {
    match error {
        ScriptError::Unkeepable { reason: Unkeepable::TooLarge { .. }, .. } => memory_limit(limits),
        other => other,
    }
}
