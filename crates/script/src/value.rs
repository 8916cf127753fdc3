//! Values that leave and enter Lua.
//!
//! Lua has one number and one table; outside there are integers and floats, arrays and maps. A number without a
//! fraction that fits 64 bits is an integer. A table whose keys are exactly 1 to n is an array, so is the empty table;
//! every other table is a map, its entries in order of their keys: equal states have equal bytes.

use std::ffi::{c_int, c_void};

use mlua::{Lua, Table};
use oort_core::active::Value;

use crate::codec::{self, order, unveiled, LEVELS_MAX};
use crate::held::{self, Gauge};
use crate::limits::{ScriptError, Unkeepable};
use crate::raw::{Item, Stack};

/// What a table counts besides its entries: empty ones take memory too.
const TABLE_BYTES: usize = 16;

/// Makes a Lua value.
pub(crate) fn into_lua(lua: &Lua, value: &Value) -> mlua::Result<mlua::Value> {
    Ok(match value {
        Value::Nil => mlua::Value::Nil,
        Value::Bool(b) => mlua::Value::Boolean(*b),
        Value::Integer(n) => mlua::Value::Number(*n as f64),
        Value::Number(n) => mlua::Value::Number(*n),
        Value::Bytes(bytes) => mlua::Value::String(lua.create_string(bytes)?),
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (at, item) in items.iter().enumerate() {
                table.raw_seti(at + 1, into_lua(lua, item)?)?;
            }
            mlua::Value::Table(table)
        }
        Value::Map(entries) => {
            let table = lua.create_table_with_capacity(0, entries.len())?;
            for (key, item) in entries {
                // Keys that no table takes can only come from outside.
                if !matches!(key, Value::Nil) && !matches!(key, Value::Number(n) if n.is_nan()) {
                    table.raw_set(into_lua(lua, key)?, into_lua(lua, item)?)?;
                }
            }
            mlua::Value::Table(table)
        }
    })
}

/// Makes a Lua value from one of a state.
pub(crate) fn state_into_lua(lua: &Lua, gauge: &Gauge, value: &Value) -> Result<mlua::Value, ScriptError> {
    if let Some(bytes) = unveiled(value) {
        return held::make(lua, gauge, bytes);
    }
    Ok(match value {
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (at, item) in items.iter().enumerate() {
                table.raw_seti(at + 1, state_into_lua(lua, gauge, item)?)?;
            }
            mlua::Value::Table(table)
        }
        Value::Map(entries) => {
            let table = lua.create_table_with_capacity(0, entries.len())?;
            for (key, item) in entries {
                table.raw_set(into_lua(lua, key)?, state_into_lua(lua, gauge, item)?)?;
            }
            mlua::Value::Table(table)
        }
        other => into_lua(lua, other)?,
    })
}

/// What becomes of convergent values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convergent {
    /// They are shown as plain data.
    Plain,
    /// They are refused.
    Refused,
}

/// Takes values out of Lua. One reader bounds the sum of what it reads: tables that share their parts could unfold
/// into any size.
pub(crate) struct Taker {
    bytes_max: usize,
    convergent: Convergent,
    bytes: usize,
    /// The tables around the value that is being read.
    open: Vec<*const c_void>,
}

/// What cannot be taken, and the fields that lead to it, innermost first.
pub(crate) struct Refusal {
    pub reason: Unkeepable,
    path: Vec<String>,
}

impl Refusal {
    pub fn at(self, root: &str) -> ScriptError {
        let mut path = root.to_string();
        for part in self.path.iter().rev() {
            path.push_str(part);
        }
        ScriptError::Unkeepable { path, reason: self.reason }
    }

    /// The refusal of the table around, where it stood under `key`.
    pub fn within(mut self, key: impl FnOnce() -> Value) -> Refusal {
        // Where a bound on the whole was passed says nothing.
        if !matches!(self.reason, Unkeepable::TooLarge { .. }) {
            self.path.push(step_to(&key()));
        }
        self
    }
}

impl From<Unkeepable> for Refusal {
    fn from(reason: Unkeepable) -> Refusal {
        Refusal { reason, path: Vec::new() }
    }
}

impl Taker {
    pub fn new(bytes_max: usize, convergent: Convergent) -> Taker {
        Taker { bytes_max, convergent, bytes: 0, open: Vec::new() }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.bytes += bytes;
        if self.bytes > self.bytes_max {
            return Err(Unkeepable::TooLarge { bytes_max: self.bytes_max }.into());
        }
        Ok(())
    }

    /// Takes a value of mlua's.
    pub fn take(&mut self, value: &mlua::Value) -> Result<Value, Refusal> {
        let plain = match value {
            mlua::Value::Nil => Value::Nil,
            mlua::Value::Boolean(b) => Value::Bool(*b),
            mlua::Value::Integer(n) => Value::Integer(*n),
            mlua::Value::Number(n) => number_outside(*n),
            _ => {
                let taken = Stack::with(value, |stack, at| self.take_at(stack, at));
                return taken.unwrap_or(Err(Unkeepable::Userdata.into()));
            }
        };
        self.charge(1)?;
        Ok(plain)
    }

    /// Takes the value at an index.
    pub fn take_at(&mut self, stack: &mut Stack, at: c_int) -> Result<Value, Refusal> {
        self.charge(1)?;
        Ok(match stack.item(at) {
            Item::Nil => Value::Nil,
            Item::Bool(b) => Value::Bool(b),
            Item::Integer(n) => Value::Integer(n),
            Item::Number(n) => number_outside(n),
            Item::Bytes(bytes) => {
                self.charge(bytes.len() + 1)?;
                Value::Bytes(bytes.to_vec())
            }
            Item::Table(_) => self.table(stack, at)?,
            Item::Function(_) => return Err(Unkeepable::Function.into()),
            Item::Thread => return Err(Unkeepable::Thread.into()),
            Item::Userdata(_) if self.convergent == Convergent::Refused => {
                return Err(Unkeepable::Userdata.into())
            }
            Item::Userdata(_) => match stack.value(at) {
                Ok(mlua::Value::UserData(data)) => self.convergent(&data)?,
                _ => return Err(Unkeepable::Userdata.into()),
            },
            Item::Other => return Err(Unkeepable::Userdata.into()),
        })
    }

    fn convergent(&mut self, data: &mlua::AnyUserData) -> Result<Value, Refusal> {
        let refusal = Refusal::from(Unkeepable::Userdata);
        match self.convergent {
            Convergent::Refused => Err(refusal),
            Convergent::Plain => {
                let value = held::plain(data).ok_or(refusal)?;
                let mut bytes = Vec::new();
                codec::put(&value, &mut bytes);
                self.charge(bytes.len())?;
                Ok(value)
            }
        }
    }

    fn table(&mut self, stack: &mut Stack, at: c_int) -> Result<Value, Refusal> {
        let mut found = Found::Array(Vec::new());
        self.walk(stack, at, |taker, stack, key_at| {
            // Most tables are arrays: their keys need not be kept.
            match (&mut found, stack.item(key_at)) {
                (Found::Array(items), Item::Number(at)) if at == (items.len() + 1) as f64 => {
                    taker.charge(1)?;
                    items.push(taker.item(|| number_outside(at), stack, key_at + 1)?);
                }
                _ => {
                    let entry = taker.entry(stack, key_at)?;
                    found.entries().push(entry);
                }
            }
            Ok(())
        })?;
        Ok(found.into_value())
    }

    /// The entries of a table, without those under names that are not `wanted`, in order of their keys.
    pub fn entries(
        &mut self,
        table: &Table,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<(Value, Value)>, Refusal> {
        let mut entries = Vec::new();
        let walked = Stack::with(&mlua::Value::Table(table.clone()), |stack, at| {
            self.walk(stack, at, |taker, stack, key_at| {
                if !matches!(stack.item(key_at), Item::Bytes(name) if !wanted(name)) {
                    entries.push(taker.entry(stack, key_at)?);
                }
                Ok(())
            })
        });
        walked.unwrap_or(Err(Unkeepable::Userdata.into()))?;
        sort(&mut entries);
        Ok(entries)
    }

    /// Visits the entries of a table, within which cycles are found. `visit` gets the index of a key, above which its
    /// value lies.
    fn walk(
        &mut self,
        stack: &mut Stack,
        at: c_int,
        mut visit: impl FnMut(&mut Taker, &mut Stack, c_int) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Item::Table(place) = stack.item(at) else { return Err(Unkeepable::Userdata.into()) };
        if self.open.contains(&place) {
            return Err(Unkeepable::Cycle.into());
        }
        if self.open.len() >= LEVELS_MAX {
            return Err(Unkeepable::TooDeep { levels_max: LEVELS_MAX }.into());
        }
        self.charge(TABLE_BYTES)?;
        self.open.push(place);
        let top = stack.top();
        let mut place = 0;
        let walked = loop {
            match stack.push_next(at, place) {
                Ok(Some(next)) => place = next,
                Ok(None) => break Ok(()),
                // Of Lua's memory, in which there is no room to show it.
                Err(_) => break Err(Unkeepable::TooLarge { bytes_max: self.bytes_max }.into()),
            }
            if let Err(refusal) = visit(self, stack, top + 1) {
                break Err(refusal);
            }
            stack.truncate(top);
        };
        stack.truncate(top);
        self.open.pop();
        walked
    }

    /// Takes the key at an index, and the value above it.
    fn entry(&mut self, stack: &mut Stack, key_at: c_int) -> Result<(Value, Value), Refusal> {
        let key = match stack.item(key_at) {
            Item::Number(n) if n.is_nan() => return Err(Unkeepable::NanKey.into()),
            Item::Bool(_) | Item::Integer(_) | Item::Number(_) | Item::Bytes(_) => {
                self.take_at(stack, key_at)?
            }
            _ => return Err(Unkeepable::TableKey.into()),
        };
        let item = self.item(|| key.clone(), stack, key_at + 1)?;
        Ok((key, item))
    }

    fn item(&mut self, key: impl FnOnce() -> Value, stack: &mut Stack, at: c_int) -> Result<Value, Refusal> {
        self.take_at(stack, at).map_err(|refusal| refusal.within(key))
    }
}

/// What a number of Lua's is outside, exact or not; `codec::number` is for those that are counted with. Minus zero has
/// no integer.
pub(crate) fn number_outside(n: f64) -> Value {
    const END: f64 = (1u64 << 63) as f64;
    let integer = n as i64;
    match (-END..END).contains(&n) && (integer as f64).to_bits() == n.to_bits() {
        true => Value::Integer(integer),
        false => Value::Number(n),
    }
}

/// The entries of a table that were found so far.
enum Found {
    /// Under 1 to n.
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

impl Found {
    fn entries(&mut self) -> &mut Vec<(Value, Value)> {
        if let Found::Array(items) = self {
            *self = Found::Map((1..).map(Value::Integer).zip(items.drain(..)).collect());
        }
        match self {
            Found::Map(entries) => entries,
            Found::Array(_) => unreachable!("it was just made a map"),
        }
    }

    fn into_value(self) -> Value {
        let mut entries = match self {
            Found::Array(items) => return Value::Array(items),
            Found::Map(entries) => entries,
        };
        sort(&mut entries);
        // The entries of an array may lie in any order.
        let is_array = entries.iter().zip(1..).all(|((key, _), at)| *key == Value::Integer(at));
        match is_array {
            true => Value::Array(entries.into_iter().map(|(_, value)| value).collect()),
            false => Value::Map(entries),
        }
    }
}

fn sort(entries: &mut [(Value, Value)]) {
    let is_sorted = entries.is_sorted_by(|a, b| order(&a.0, &b.0).is_le());
    if !is_sorted {
        entries.sort_by(|a, b| order(&a.0, &b.0));
    }
}

/// `.name` or `[3]`, for error texts.
fn step_to(key: &Value) -> String {
    match key {
        Value::Bytes(name) => {
            let shown: String = String::from_utf8_lossy(name).chars().take(40).collect();
            format!(".{shown}")
        }
        Value::Integer(n) => format!("[{n}]"),
        Value::Number(n) => format!("[{n}]"),
        other => format!("[{other:?}]"),
    }
}
