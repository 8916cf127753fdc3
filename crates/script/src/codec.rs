//! The bytes of states.
//!
//! ```text
//! state   = format (1 byte: 1), value
//! value   = 0                       nil
//!         | 1 | 2                   false, true
//!         | 3, zigzag varint        integer
//!         | 4, 8 bytes              float, bits, little-endian
//!         | 5, length varint, bytes string
//!         | 6, count varint, values array
//!         | 7, count varint, (key, value)*  map; a key is a boolean, a number or a string
//!         | 8, length varint, bytes convergent value, whose bytes `convergent` describes
//! ```
//!
//! In memory, a convergent value of a state stands as a map with the one key nil. No table has such a key and no bytes
//! decode to one, so no object and no forged state can make it: [`veiled`] alone does, and what leaves the sandbox is
//! rid of it.

use std::cmp::Ordering;

use oort_core::active::Value;

use crate::limits::ScriptError;

/// Tables within tables, at most.
pub const LEVELS_MAX: usize = 32;

pub(crate) const FORMAT: u8 = 1;
pub(crate) const NIL: u8 = 0;
pub(crate) const FALSE: u8 = 1;
pub(crate) const TRUE: u8 = 2;
pub(crate) const BYTES: u8 = 5;
pub(crate) const ARRAY: u8 = 6;
pub(crate) const MAP: u8 = 7;
pub(crate) const CONVERGENT: u8 = 8;

/// Integers beyond are not told apart by Lua's numbers.
pub(crate) const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A total order of keys: booleans, numbers by their size, strings.
pub(crate) fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Integer(x), Value::Number(y)) => (*x as f64).total_cmp(y).then(Ordering::Less),
        (Value::Number(x), Value::Integer(y)) => x.total_cmp(&(*y as f64)).then(Ordering::Greater),
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

/// A convergent value of a state.
pub(crate) fn veiled(bytes: Vec<u8>) -> Value {
    Value::Map(vec![(Value::Nil, Value::Bytes(bytes))])
}

/// The bytes of a convergent value.
pub(crate) fn unveiled(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Map(entries) => match entries.as_slice() {
            [(Value::Nil, Value::Bytes(bytes))] => Some(bytes),
            _ => None,
        },
        _ => None,
    }
}

/// The bytes of a state, with their format in front.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = vec![FORMAT];
    put(value, &mut out);
    out
}

/// The bytes of a value alone.
pub(crate) fn put(value: &Value, out: &mut Vec<u8>) {
    if let Some(bytes) = unveiled(value) {
        return put_bytes(CONVERGENT, bytes, out);
    }
    match value {
        Value::Integer(n) => return put_integer(*n, out),
        Value::Bytes(bytes) => return put_bytes(BYTES, bytes, out),
        _ => out.push(tag(value)),
    }
    match value {
        Value::Nil | Value::Bool(_) | Value::Integer(_) | Value::Bytes(_) => {}
        Value::Number(n) => out.extend_from_slice(&n.to_bits().to_le_bytes()),
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

/// The bytes of an integer.
pub(crate) fn put_integer(n: i64, out: &mut Vec<u8>) {
    out.push(3);
    put_varint(((n << 1) ^ (n >> 63)) as u64, out);
}

/// The bytes of a string or of a convergent value, as its tag says.
pub(crate) fn put_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Reads a state, its convergent values veiled. Errors: `BadState`, for any other bytes.
pub(crate) fn decode_veiled(bytes: &[u8]) -> Result<Value, ScriptError> {
    let (format, rest) = bytes.split_first().ok_or(ScriptError::BadState { reason: "it is empty" })?;
    if *format != FORMAT {
        return Err(ScriptError::BadState { reason: "its format is of another version" });
    }
    Reader { rest, convergent: Convergent::Veiled }.all()
}

/// Reads what [`put`] wrote, without convergent values. Errors: `BadState`, for any other bytes.
pub(crate) fn decode_plain(bytes: &[u8]) -> Result<Value, ScriptError> {
    Reader { rest: bytes, convergent: Convergent::Refused }.all()
}

#[derive(Clone, Copy, PartialEq)]
enum Convergent {
    Veiled,
    Refused,
}

struct Reader<'a> {
    rest: &'a [u8],
    convergent: Convergent,
}

impl<'a> Reader<'a> {
    fn all(mut self) -> Result<Value, ScriptError> {
        let value = self.value(0)?;
        match self.rest {
            [] => Ok(value),
            _ => Err(ScriptError::BadState { reason: "bytes follow its end" }),
        }
    }

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

    fn key(&mut self, level: usize) -> Result<Value, ScriptError> {
        match self.value(level)? {
            Value::Number(n) if n.is_nan() => Err(ScriptError::BadState { reason: "a key is not a number" }),
            key @ (Value::Bool(_) | Value::Integer(_) | Value::Number(_) | Value::Bytes(_)) => Ok(key),
            _ => Err(ScriptError::BadState { reason: "a key is none that a table has" }),
        }
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
                let entry = |_| Ok((self.key(level + 1)?, self.value(level + 1)?));
                Value::Map((0..count).map(entry).collect::<Result<_, ScriptError>>()?)
            }
            CONVERGENT if self.convergent == Convergent::Veiled => {
                let count = self.count()?;
                veiled(self.take(count)?.to_vec())
            }
            _ => return Err(ScriptError::BadState { reason: "it holds an unknown kind of value" }),
        })
    }
}

/// The number that Lua holds.
pub(crate) fn number(n: f64) -> Value {
    let is_negative_zero = n == 0.0 && n.is_sign_negative();
    if n.fract() == 0.0 && n.abs() < EXACT_MAX && !is_negative_zero {
        Value::Integer(n as i64)
    } else {
        Value::Number(n)
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
            assert_eq!(decode_veiled(&bytes), Ok(value));
            for cut in 0..bytes.len() {
                assert!(decode_veiled(&bytes[..cut]).is_err(), "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let cases: [(&[u8], &str); 7] = [
            (&[1, 7, 1, 0, 5, 1, 9], "a key is none that a table has"),
            (&[1, 8, 2, 0], "it is cut short"),
            (&[2, 0], "its format is of another version"),
            (&[1, 9], "it holds an unknown kind of value"),
            (&[1, 0, 0], "bytes follow its end"),
            (&[1, 6, 200, 1], "it is cut short"),
            (&[1, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], "a length has too many bytes"),
        ];
        for (bytes, reason) in cases {
            assert_eq!(decode_veiled(bytes), Err(ScriptError::BadState { reason }));
        }
        let deep: Vec<u8> = std::iter::once(1).chain([6, 1].repeat(100)).chain([0]).collect();
        assert_eq!(decode_veiled(&deep), Err(ScriptError::BadState { reason: "it is nested too deep" }));
    }

    #[test]
    fn numbers_are_told_apart() {
        assert_eq!(number(3.0), Value::Integer(3));
        assert_eq!(number(0.5), Value::Number(0.5));
        assert_eq!(number(1e300), Value::Number(1e300));
        assert_eq!(number(EXACT_MAX), Value::Number(EXACT_MAX));
    }
}
