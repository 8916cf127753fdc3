//! Values that leave and enter the sandbox, and their bytes.
//!
//! Lua has one number and one table; outside there are integers and floats, arrays and maps. A number without a
//! fraction below 2^53 is an integer. A table whose keys are exactly 1 to n is an array, so is the empty table;
//! every other table is a map, its entries in order of their keys: equal states have equal bytes.
//!
//! ```text
//! state   = format (1 byte: 1), value
//! value   = 0                       nil
//!         | 1 | 2                   false, true
//!         | 3, zigzag varint        integer
//!         | 4, 8 bytes              float, bits, little-endian
//!         | 5, length varint, bytes string
//!         | 6, count varint, values array
//!         | 7, count varint, (key, value)*  map
//! ```

use std::cmp::Ordering;
use std::ffi::c_void;

use mlua::{Lua, Table};
use oort_core::active::Value;

use crate::limits::{ScriptError, Unkeepable};

/// Tables within tables, at most.
pub const LEVELS_MAX: usize = 32;
/// What a table counts besides its entries: empty ones take memory too.
const TABLE_BYTES: usize = 16;
const FORMAT: u8 = 1;
/// Integers beyond are not told apart by Lua's numbers.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A total order of keys: by kind, then by content.
fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => a.total_cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => tag(a).cmp(&tag(b)),
    }
}

fn tag(value: &Value) -> u8 {
    match value {
        Value::Nil => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Integer(_) => 3,
        Value::Number(_) => 4,
        Value::Bytes(_) => 5,
        Value::Array(_) => 6,
        Value::Map(_) => 7,
    }
}

/// The bytes of a state, with their format in front.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = vec![FORMAT];
    put(value, &mut out);
    out
}

fn put(value: &Value, out: &mut Vec<u8>) {
    out.push(tag(value));
    match value {
        Value::Nil | Value::Bool(_) => {}
        Value::Integer(n) => put_varint(((n << 1) ^ (n >> 63)) as u64, out),
        Value::Number(n) => out.extend_from_slice(&n.to_bits().to_le_bytes()),
        Value::Bytes(bytes) => {
            put_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
        Value::Array(items) => {
            put_varint(items.len() as u64, out);
            for item in items {
                put(item, out);
            }
        }
        Value::Map(entries) => {
            put_varint(entries.len() as u64, out);
            for (key, value) in entries {
                put(key, out);
                put(value, out);
            }
        }
    }
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Reads what [`encode`] wrote. Errors: `BadState`, for any other bytes.
pub fn decode(bytes: &[u8]) -> Result<Value, ScriptError> {
    let (format, rest) = bytes.split_first().ok_or(ScriptError::BadState { reason: "it is empty" })?;
    if *format != FORMAT {
        return Err(ScriptError::BadState { reason: "its format is of another version" });
    }
    let mut reader = Reader { rest };
    let value = reader.value(0)?;
    if !reader.rest.is_empty() {
        return Err(ScriptError::BadState { reason: "bytes follow its end" });
    }
    Ok(value)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ScriptError> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(ScriptError::BadState { reason: "it is cut short" })?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, ScriptError> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(ScriptError::BadState { reason: "a length has too many bytes" })
    }

    /// A count of things of which each takes a byte at least, so that no lie makes us reserve memory.
    fn count(&mut self) -> Result<usize, ScriptError> {
        let count = self.varint()?;
        if count > self.rest.len() as u64 {
            return Err(ScriptError::BadState { reason: "it is cut short" });
        }
        Ok(count as usize)
    }

    fn value(&mut self, level: usize) -> Result<Value, ScriptError> {
        // The state itself is a table of tables: two levels more than its values have.
        if level > LEVELS_MAX + 2 {
            return Err(ScriptError::BadState { reason: "it is nested too deep" });
        }
        Ok(match self.take(1)?[0] {
            0 => Value::Nil,
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            3 => {
                let n = self.varint()?;
                Value::Integer((n >> 1) as i64 ^ -((n & 1) as i64))
            }
            4 => {
                let bits = self.take(8)?.try_into().expect("8 bytes were taken");
                Value::Number(f64::from_bits(u64::from_le_bytes(bits)))
            }
            5 => {
                let count = self.count()?;
                Value::Bytes(self.take(count)?.to_vec())
            }
            6 => {
                let count = self.count()?;
                Value::Array((0..count).map(|_| self.value(level + 1)).collect::<Result<_, _>>()?)
            }
            7 => {
                let count = self.count()?;
                let entry = |_| Ok((self.value(level + 1)?, self.value(level + 1)?));
                Value::Map((0..count).map(entry).collect::<Result<_, ScriptError>>()?)
            }
            _ => return Err(ScriptError::BadState { reason: "it holds an unknown kind of value" }),
        })
    }
}

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
                // Keys that no table takes can only come from bytes that we did not write.
                if !matches!(key, Value::Nil) && !matches!(key, Value::Number(n) if n.is_nan()) {
                    table.raw_set(into_lua(lua, key)?, into_lua(lua, item)?)?;
                }
            }
            mlua::Value::Table(table)
        }
    })
}

/// Takes values out of Lua. One reader bounds the sum of what it reads: tables that share their parts could unfold
/// into any size.
pub(crate) struct Taker {
    bytes_max: usize,
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
}

impl From<Unkeepable> for Refusal {
    fn from(reason: Unkeepable) -> Refusal {
        Refusal { reason, path: Vec::new() }
    }
}

impl Taker {
    pub fn new(bytes_max: usize) -> Taker {
        Taker { bytes_max, bytes: 0, open: Vec::new() }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.bytes += bytes;
        if self.bytes > self.bytes_max {
            return Err(Unkeepable::TooLarge { bytes_max: self.bytes_max }.into());
        }
        Ok(())
    }

    pub fn take(&mut self, value: &mlua::Value) -> Result<Value, Refusal> {
        self.charge(1)?;
        Ok(match value {
            mlua::Value::Nil => Value::Nil,
            mlua::Value::Boolean(b) => Value::Bool(*b),
            mlua::Value::Integer(n) => Value::Integer(*n),
            mlua::Value::Number(n) => number(*n),
            mlua::Value::String(text) => {
                let bytes = text.as_bytes();
                self.charge(bytes.len() + 1)?;
                Value::Bytes(bytes.to_vec())
            }
            mlua::Value::Table(table) => self.table(table)?,
            mlua::Value::Function(_) => return Err(Unkeepable::Function.into()),
            mlua::Value::Thread(_) => return Err(Unkeepable::Thread.into()),
            _ => return Err(Unkeepable::Userdata.into()),
        })
    }

    fn table(&mut self, table: &Table) -> Result<Value, Refusal> {
        if self.open.contains(&table.to_pointer()) {
            return Err(Unkeepable::Cycle.into());
        }
        if self.open.len() >= LEVELS_MAX {
            return Err(Unkeepable::TooDeep { levels_max: LEVELS_MAX }.into());
        }
        Ok(array_or_map(self.entries(table, |_| true)?))
    }

    /// The entries of a table whose keys `wanted` lets pass, in order of their keys.
    pub fn entries(
        &mut self,
        table: &Table,
        mut wanted: impl FnMut(&mlua::Value) -> bool,
    ) -> Result<Vec<(Value, Value)>, Refusal> {
        let mut entries = Vec::new();
        let mut refusal = None;
        self.charge(TABLE_BYTES)?;
        self.open.push(table.to_pointer());
        let walked = table.for_each(|key: mlua::Value, value: mlua::Value| {
            if !wanted(&key) {
                return Ok(());
            }
            match self.entry(&key, &value) {
                Ok(entry) => {
                    entries.push(entry);
                    Ok(())
                }
                Err(refused) => {
                    refusal = Some(refused);
                    Err(mlua::Error::StackError)
                }
            }
        });
        self.open.pop();
        match (refusal, walked) {
            (Some(refusal), _) => return Err(refusal),
            // Only our own callback errs in such a walk; were it otherwise, the value is simply not taken.
            (None, Err(_)) => return Err(Unkeepable::Userdata.into()),
            (None, Ok(())) => {}
        }
        let is_sorted = entries.is_sorted_by(|a, b| order(&a.0, &b.0).is_le());
        if !is_sorted {
            entries.sort_by(|a, b| order(&a.0, &b.0));
        }
        Ok(entries)
    }

    fn entry(&mut self, key: &mlua::Value, value: &mlua::Value) -> Result<(Value, Value), Refusal> {
        let key = match key {
            mlua::Value::Number(n) if n.is_nan() => return Err(Unkeepable::NanKey.into()),
            mlua::Value::Boolean(_)
            | mlua::Value::Integer(_)
            | mlua::Value::Number(_)
            | mlua::Value::String(_) => self.take(key)?,
            _ => return Err(Unkeepable::TableKey.into()),
        };
        match self.take(value) {
            Ok(value) => Ok((key, value)),
            Err(mut refusal) => {
                // Where a bound on the whole was passed says nothing.
                if !matches!(refusal.reason, Unkeepable::TooLarge { .. }) {
                    refusal.path.push(step_to(&key));
                }
                Err(refusal)
            }
        }
    }
}

fn number(n: f64) -> Value {
    let is_negative_zero = n == 0.0 && n.is_sign_negative();
    if n.fract() == 0.0 && n.abs() < EXACT_MAX && !is_negative_zero {
        Value::Integer(n as i64)
    } else {
        Value::Number(n)
    }
}

fn array_or_map(entries: Vec<(Value, Value)>) -> Value {
    let is_array = entries.iter().zip(1..).all(|((key, _), at)| *key == Value::Integer(at));
    if is_array {
        Value::Array(entries.into_iter().map(|(_, value)| value).collect())
    } else {
        Value::Map(entries)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_their_bytes() {
        let values = [
            Value::Nil,
            Value::Bool(true),
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Number(-0.0),
            Value::Number(f64::INFINITY),
            Value::Bytes(vec![0, 255, 10]),
            Value::Array(vec![1.into(), Value::Nil, Value::Array(vec![])]),
            Value::Map(vec![(Value::from("a"), Value::Bool(false)), (Value::Integer(7), "x".into())]),
        ];
        for value in values {
            let bytes = encode(&value);
            assert_eq!(decode(&bytes), Ok(value));
            for cut in 0..bytes.len() {
                assert!(decode(&bytes[..cut]).is_err(), "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let cases: [(&[u8], &str); 5] = [
            (&[2, 0], "its format is of another version"),
            (&[1, 9], "it holds an unknown kind of value"),
            (&[1, 0, 0], "bytes follow its end"),
            (&[1, 6, 200, 1], "it is cut short"),
            (&[1, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], "a length has too many bytes"),
        ];
        for (bytes, reason) in cases {
            assert_eq!(decode(bytes), Err(ScriptError::BadState { reason }));
        }
        let deep: Vec<u8> = std::iter::once(1).chain([6, 1].repeat(100)).chain([0]).collect();
        assert_eq!(decode(&deep), Err(ScriptError::BadState { reason: "it is nested too deep" }));
    }

    #[test]
    fn numbers_are_told_apart() {
        assert_eq!(number(3.0), Value::Integer(3));
        assert_eq!(number(0.5), Value::Number(0.5));
        assert_eq!(number(1e300), Value::Number(1e300));
        assert_eq!(number(EXACT_MAX), Value::Number(EXACT_MAX));
    }
}
