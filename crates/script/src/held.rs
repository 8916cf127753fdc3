//! Convergent values in Lua's hands.
//!
//! They are userdata: Lua has no way into them but the methods of `methods`. What they take outside of Lua's memory is
//! counted, for the limit on a call and for the collector's pace.

use std::cell::Cell;
use std::rc::Rc;

use mlua::{AnyUserData, Lua};
use oort_core::active::Value;

use crate::codec::{decode_veiled, unveiled};
use crate::convergent::{self, bad, from_bytes, to_bytes, Convergent, Counter, Map, Register, Set};
use crate::limits::ScriptError;
use crate::meter;

/// Bytes that the convergent values and the kept states of a machine take outside of Lua's memory.
#[derive(Clone, Default)]
pub(crate) struct Gauge(Rc<Cell<usize>>);

impl Gauge {
    pub fn bytes(&self) -> usize {
        self.0.get()
    }
}

/// Bytes of a state, counted as long as they are kept.
pub(crate) struct Kept {
    bytes: Vec<u8>,
    gauge: Gauge,
}

impl Kept {
    /// No bytes.
    pub fn new(gauge: &Gauge) -> Kept {
        Kept { bytes: Vec::new(), gauge: gauge.clone() }
    }

    /// Keeps these in place of those that were kept.
    pub fn set(&mut self, bytes: &[u8]) {
        let before = self.bytes.capacity();
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.gauge.0.set(self.gauge.0.get() + self.bytes.capacity() - before);
    }
}

impl std::ops::Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.gauge.0.set(self.gauge.0.get() - self.bytes.capacity());
    }
}

/// A convergent value that Lua holds.
pub(crate) struct Held<T: Convergent> {
    value: T,
    bytes: usize,
    gauge: Gauge,
}

impl<T: Convergent> Held<T> {
    pub fn new(value: T, gauge: &Gauge) -> Held<T> {
        let mut held = Held { value, bytes: 0, gauge: gauge.clone() };
        held.weigh();
        held
    }

    pub fn value(&self) -> &T {
        &self.value
    }

    /// Changes the value, and counts what it takes then.
    pub fn change<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.value);
        self.weigh();
        result
    }

    fn weigh(&mut self) {
        let bytes = self.value.heap_bytes();
        meter::note_allocated(bytes as isize - self.bytes as isize);
        self.gauge.0.set(self.gauge.0.get() + bytes - self.bytes);
        self.bytes = bytes;
    }
}

impl<T: Convergent> Drop for Held<T> {
    fn drop(&mut self) {
        self.gauge.0.set(self.gauge.0.get() - self.bytes);
    }
}

/// Does to a held value whatever its kind allows. `None`: it is no convergent value.
trait Visit {
    type Output;
    fn visit<T: Convergent + 'static>(&mut self, held: &mut Held<T>) -> Self::Output;
}

fn visit<V: Visit>(data: &AnyUserData, visit: &mut V) -> Option<V::Output> {
    fn with<T: Convergent + 'static, V: Visit>(data: &AnyUserData, visit: &mut V) -> Option<V::Output> {
        data.borrow_mut_scoped::<Held<T>, _>(|held| visit.visit(held)).ok()
    }
    with::<Counter, V>(data, visit)
        .or_else(|| with::<Set, V>(data, visit))
        .or_else(|| with::<Map, V>(data, visit))
        .or_else(|| with::<Register, V>(data, visit))
}

/// The bytes of a convergent value, for a state. `None`: it is none.
pub(crate) fn bytes(data: &AnyUserData) -> Option<Vec<u8>> {
    struct ToBytes;
    impl Visit for ToBytes {
        type Output = Vec<u8>;
        fn visit<T: Convergent>(&mut self, held: &mut Held<T>) -> Vec<u8> {
            to_bytes(&held.value)
        }
    }
    visit(data, &mut ToBytes)
}

/// What a convergent value looks like from outside. `None`: it is none.
pub(crate) fn plain(data: &AnyUserData) -> Option<Value> {
    struct Plain;
    impl Visit for Plain {
        type Output = Value;
        fn visit<T: Convergent>(&mut self, held: &mut Held<T>) -> Value {
            held.value.plain()
        }
    }
    visit(data, &mut Plain)
}

/// Joins the bytes of another state into a convergent value. False: they are of another kind, or it is none.
///
/// Errors: `BadState`.
pub(crate) fn join(data: &AnyUserData, bytes: &[u8]) -> Result<bool, ScriptError> {
    struct Join<'a>(&'a [u8]);
    impl Visit for Join<'_> {
        type Output = Result<bool, ScriptError>;
        fn visit<T: Convergent>(&mut self, held: &mut Held<T>) -> Result<bool, ScriptError> {
            let Some(other) = from_bytes::<T>(self.0)? else { return Ok(false) };
            held.change(|value| value.join(other));
            Ok(true)
        }
    }
    visit(data, &mut Join(bytes)).unwrap_or(Ok(false))
}

/// Makes a convergent value of Lua's from its bytes. Errors: `BadState`.
pub(crate) fn make(lua: &Lua, gauge: &Gauge, bytes: &[u8]) -> Result<mlua::Value, ScriptError> {
    fn of<T: Convergent + 'static>(
        lua: &Lua,
        gauge: &Gauge,
        bytes: &[u8],
    ) -> Result<Option<AnyUserData>, ScriptError> {
        match from_bytes::<T>(bytes)? {
            Some(value) => Ok(Some(lua.create_any_userdata(Held::new(value, gauge))?)),
            None => Ok(None),
        }
    }
    for of in [of::<Counter>, of::<Set>, of::<Map>, of::<Register>] {
        if let Some(made) = of(lua, gauge, bytes)? {
            return Ok(mlua::Value::UserData(made));
        }
    }
    Err(bad())
}

/// Reads a state as it looks from outside: a counter is an integer, a set an array, a map a map, a register its value.
///
/// Errors: `BadState`, for any bytes that no object's state has.
pub fn decode(bytes: &[u8]) -> Result<Value, ScriptError> {
    unveil(decode_veiled(bytes)?)
}

/// Shows the convergent values of a state as plain data. Errors: `BadState`.
pub(crate) fn unveil(value: Value) -> Result<Value, ScriptError> {
    if let Some(bytes) = unveiled(&value) {
        return convergent::plain(bytes);
    }
    Ok(match value {
        Value::Array(items) => Value::Array(items.into_iter().map(unveil).collect::<Result<_, _>>()?),
        Value::Map(entries) => {
            let entry = |(key, value): (Value, Value)| Ok((key, unveil(value)?));
            Value::Map(entries.into_iter().map(entry).collect::<Result<_, ScriptError>>()?)
        }
        other => other,
    })
}
