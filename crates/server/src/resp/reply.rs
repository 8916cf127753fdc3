//! Reads replies: what a client of this protocol receives. Used by the command line client and by tests.
//!
//! Finished parts of a large array leave the buffer at once and wait on a stack, so bytes are looked at once. Counts
//! are never trusted with memory, and nesting has a limit.

use std::borrow::Cow;
use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

use super::Value;

/// How deep arrays may stand in arrays.
pub const DEPTH_MAX: usize = 32;
/// The longest string in a reply, in bytes.
pub const BULK_BYTES_MAX: usize = 512 << 20;
/// The longest line, in bytes: error texts, and digits of large numbers.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Bytes that are no reply. The connection cannot be read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyError {
    /// No kind of value starts with this byte.
    Kind { got: u8 },
    /// A count, length or number that is none, or is out of range.
    Number,
    /// A line longer than 64 KiB.
    LineLength,
    /// More than [`DEPTH_MAX`] arrays inside each other.
    Depth,
    /// A string that does not end where it said.
    StringEnd,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ReplyError::Kind { got } => write!(f, "reply starts with '{}'", got.escape_ascii()),
            ReplyError::Number => write!(f, "reply holds an invalid number"),
            ReplyError::LineLength => write!(f, "reply holds a line over {LINE_BYTES_MAX} bytes"),
            ReplyError::Depth => write!(f, "reply is nested over {DEPTH_MAX} deep"),
            ReplyError::StringEnd => write!(f, "string in reply does not end where it says"),
        }
    }
}

impl std::error::Error for ReplyError {}

/// The unfinished reply of one connection.
#[derive(Default)]
pub struct ReplyParser {
    stack: Vec<Frame>,
    /// How far into the current line no end was found.
    searched: usize,
}

/// An array, or the like, some of whose items have arrived.
struct Frame {
    kind: Aggregate,
    missing: usize,
    items: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq)]
enum Aggregate {
    Array,
    Set,
    Push,
    Map,
    /// Data about the reply that follows; dropped.
    Attribute,
}

enum Item {
    Whole(Value),
    Opened { kind: Aggregate, count: usize },
}

impl ReplyParser {
    /// Takes the next whole reply off the front of `input`; `None` until more bytes arrive.
    ///
    /// Errors: the connection must be closed; the parser must not be used again.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Value>, ReplyError> {
        while let Some(item) = self.item(input)? {
            let mut value = match item {
                Item::Whole(value) => value,
                Item::Opened { kind, count } => {
                    if self.stack.len() == DEPTH_MAX {
                        return Err(ReplyError::Depth);
                    }
                    self.stack.push(Frame { kind, missing: count, items: Vec::new() });
                    match self.close() {
                        Some(value) => value,
                        None => continue,
                    }
                }
            };
            loop {
                let Some(frame) = self.stack.last_mut() else {
                    return Ok(Some(value));
                };
                frame.items.push(value);
                frame.missing -= 1;
                match self.close() {
                    Some(closed) => value = closed,
                    None => break,
                }
            }
        }
        Ok(None)
    }

    /// Takes the innermost array off the stack if it is complete.
    fn close(&mut self) -> Option<Value> {
        let frame = self.stack.pop_if(|frame| frame.missing == 0)?;
        match frame.kind {
            Aggregate::Array => Some(Value::Array(frame.items)),
            Aggregate::Set => Some(Value::Set(frame.items)),
            Aggregate::Push => Some(Value::Push(frame.items)),
            Aggregate::Map => Some(Value::Map(pairs(frame.items))),
            Aggregate::Attribute => None,
        }
    }

    fn item(&mut self, input: &mut BytesMut) -> Result<Option<Item>, ReplyError> {
        let Some(end) = self.line_end(input)? else {
            return Ok(None);
        };
        let (kind, line) = (input[0], &input[1..end]);
        let aggregate = match kind {
            b'*' => Some(Aggregate::Array),
            b'~' => Some(Aggregate::Set),
            b'>' => Some(Aggregate::Push),
            b'%' => Some(Aggregate::Map),
            b'|' => Some(Aggregate::Attribute),
            _ => None,
        };
        let item = match (kind, aggregate) {
            (_, Some(kind)) => aggregate_item(kind, line)?,
            (b'$' | b'=' | b'!', _) => return self.string(kind, end, input),
            _ => Item::Whole(scalar(kind, line)?),
        };
        input.advance(end + 2);
        Ok(Some(item))
    }

    fn line_end(&mut self, input: &[u8]) -> Result<Option<usize>, ReplyError> {
        let found = input[self.searched.min(input.len())..].iter().position(|&byte| byte == b'\r');
        match found.map(|at| at + self.searched) {
            Some(0) => Err(ReplyError::Kind { got: b'\r' }),
            Some(end) if end > LINE_BYTES_MAX => Err(ReplyError::LineLength),
            Some(end) if input.len() >= end + 2 => {
                self.searched = 0;
                Ok(Some(end))
            }
            None if input.len() > LINE_BYTES_MAX => Err(ReplyError::LineLength),
            None => {
                self.searched = input.len();
                Ok(None)
            }
            Some(_) => Ok(None),
        }
    }

    fn string(&self, kind: u8, end: usize, input: &mut BytesMut) -> Result<Option<Item>, ReplyError> {
        let length = integer(&input[1..end])?;
        if length == -1 && kind == b'$' {
            input.advance(end + 2);
            return Ok(Some(Item::Whole(Value::Null)));
        }
        if length < 0 || length > BULK_BYTES_MAX as i64 {
            return Err(ReplyError::Number);
        }
        let length = length as usize;
        if input.len() < end + 2 + length + 2 {
            return Ok(None);
        }
        if &input[end + 2 + length..][..2] != b"\r\n" {
            return Err(ReplyError::StringEnd);
        }
        input.advance(end + 2);
        let bytes = input.split_to(length).freeze();
        input.advance(2);
        Ok(Some(Item::Whole(match kind {
            b'$' => Value::Bulk(bytes),
            b'!' => Value::Error(owned(&bytes)),
            _ => verbatim(bytes)?,
        })))
    }
}

fn verbatim(bytes: Bytes) -> Result<Value, ReplyError> {
    match bytes.first_chunk::<4>() {
        Some([a, b, c, b':']) => Ok(Value::Verbatim([*a, *b, *c], bytes.slice(4..))),
        _ => Err(ReplyError::StringEnd),
    }
}

fn aggregate_item(kind: Aggregate, line: &[u8]) -> Result<Item, ReplyError> {
    let count = integer(line)?;
    if count == -1 && kind == Aggregate::Array {
        return Ok(Item::Whole(Value::Null));
    }
    let count = usize::try_from(count).map_err(|_| ReplyError::Number)?;
    let count = match kind {
        Aggregate::Map | Aggregate::Attribute => count.checked_mul(2).ok_or(ReplyError::Number)?,
        _ => count,
    };
    Ok(Item::Opened { kind, count })
}

fn scalar(kind: u8, line: &[u8]) -> Result<Value, ReplyError> {
    Ok(match (kind, line) {
        (b'+', text) => Value::Simple(owned(text)),
        (b'-', text) => Value::Error(owned(text)),
        (b':', digits) => Value::Integer(integer(digits)?),
        (b'_', b"") => Value::Null,
        (b'#', b"t") => Value::Boolean(true),
        (b'#', b"f") => Value::Boolean(false),
        (b',', digits) => Value::Double(parse(digits)?),
        (b'(', digits) => Value::BigNumber(owned(digits)),
        _ => return Err(ReplyError::Kind { got: kind }),
    })
}

fn owned(text: &[u8]) -> Cow<'static, str> {
    Cow::Owned(String::from_utf8_lossy(text).into_owned())
}

fn integer(digits: &[u8]) -> Result<i64, ReplyError> {
    parse(digits)
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Result<T, ReplyError> {
    let text = std::str::from_utf8(text).map_err(|_| ReplyError::Number)?;
    text.parse().map_err(|_| ReplyError::Number)
}

fn pairs(items: Vec<Value>) -> Vec<(Value, Value)> {
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        pairs.push((name, value));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Protocol;
    use proptest::prelude::*;

    fn parse_all(bytes: &[u8], chunk_bytes: usize) -> (Vec<Value>, Result<(), ReplyError>) {
        let (mut parser, mut input, mut values) = (ReplyParser::default(), BytesMut::new(), Vec::new());
        for chunk in bytes.chunks(chunk_bytes) {
            input.extend_from_slice(chunk);
            loop {
                match parser.next(&mut input) {
                    Ok(Some(value)) => values.push(value),
                    Ok(None) => break,
                    Err(error) => return (values, Err(error)),
                }
            }
        }
        (values, Ok(()))
    }

    #[test]
    fn every_kind_is_read() {
        let cases = [
            ("+OK\r\n", Value::OK),
            ("-ERR no\r\n", Value::error("ERR no")),
            (":-5\r\n", Value::Integer(-5)),
            ("$2\r\n\r\n\r\n", Value::text("\r\n")),
            ("$-1\r\n", Value::Null),
            ("*-1\r\n", Value::Null),
            ("_\r\n", Value::Null),
            ("#t\r\n", Value::Boolean(true)),
            (",-1.5e3\r\n", Value::Double(-1500.0)),
            (",inf\r\n", Value::Double(f64::INFINITY)),
            ("(123\r\n", Value::BigNumber("123".into())),
            ("!5\r\nERR a\r\n", Value::error("ERR a")),
            ("=5\r\ntxt:a\r\n", Value::Verbatim(*b"txt", Bytes::from_static(b"a"))),
            ("*2\r\n*0\r\n:1\r\n", Value::Array(vec![Value::Array(vec![]), Value::Integer(1)])),
            ("%1\r\n+a\r\n~0\r\n", Value::Map(vec![(Value::Simple("a".into()), Value::Set(vec![]))])),
            (">1\r\n+a\r\n", Value::Push(vec![Value::Simple("a".into())])),
            ("|1\r\n+ttl\r\n:1\r\n:2\r\n", Value::Integer(2)),
            ("*2\r\n|0\r\n:1\r\n:2\r\n", Value::Array(vec![Value::Integer(1), Value::Integer(2)])),
        ];
        for (bytes, want) in cases {
            for chunk_bytes in [1, 2, 100] {
                let (values, end) = parse_all(bytes.as_bytes(), chunk_bytes);
                assert_eq!(end, Ok(()), "{bytes:?}");
                assert_eq!(values, std::slice::from_ref(&want), "{bytes:?}");
            }
        }
    }

    #[test]
    fn hostile_replies_are_refused() {
        let nested = "*1\r\n".repeat(1_000_000);
        let long = format!("+{}", "a".repeat(LINE_BYTES_MAX));
        let cases = [
            ("x\r\n", ReplyError::Kind { got: b'x' }),
            ("\r\n", ReplyError::Kind { got: b'\r' }),
            ("#x\r\n", ReplyError::Kind { got: b'#' }),
            (":\r\n", ReplyError::Number),
            ("$-2\r\n", ReplyError::Number),
            ("$99999999999\r\n", ReplyError::Number),
            ("*-2\r\n", ReplyError::Number),
            ("%9223372036854775808\r\n", ReplyError::Number),
            ("$1\r\nabc", ReplyError::StringEnd),
            ("=2\r\nab\r\n", ReplyError::StringEnd),
            (&nested, ReplyError::Depth),
            (&long, ReplyError::LineLength),
        ];
        for (bytes, want) in cases {
            assert_eq!(parse_all(bytes.as_bytes(), 1 << 20).1, Err(want), "{:.20}", bytes);
        }
        // A count alone costs no memory, and is believed until the connection ends.
        assert_eq!(parse_all(b"*9223372036854775807\r\n:1\r\n", 99), (vec![], Ok(())));
    }

    fn value() -> impl Strategy<Value = Value> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let leaf = prop_oneof![
            "[ -~]{0,20}".prop_map(|text| Value::Simple(text.into())),
            "[ -~]{0,20}".prop_map(|text| Value::Error(text.into())),
            any::<i64>().prop_map(Value::Integer),
            bytes().prop_map(Value::Bulk),
            Just(Value::Null),
            any::<bool>().prop_map(Value::Boolean),
            any::<f64>().prop_filter("nan is not equal to itself", |n| !n.is_nan()).prop_map(Value::Double),
            "-?[1-9][0-9]{0,40}".prop_map(|digits| Value::BigNumber(digits.into())),
            bytes().prop_map(|text| Value::Verbatim(*b"txt", text)),
        ];
        leaf.prop_recursive(4, 32, 6, |item| {
            let items = proptest::collection::vec(item.clone(), 0..6);
            prop_oneof![
                items.clone().prop_map(Value::Array),
                items.clone().prop_map(Value::Set),
                items.prop_map(Value::Push),
                proptest::collection::vec((item.clone(), item), 0..4).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read(values in proptest::collection::vec(value(), 0..4), chunk_bytes in 1usize..40) {
            let mut bytes = Vec::new();
            values.iter().for_each(|value| value.encode(Protocol::Resp3, &mut bytes));
            prop_assert_eq!(parse_all(&bytes, chunk_bytes), (values, Ok(())));
        }

        #[test]
        fn version_2_is_always_readable(value in value()) {
            let mut bytes = Vec::new();
            value.encode(Protocol::Resp2, &mut bytes);
            let (values, end) = parse_all(&bytes, 1000);
            prop_assert_eq!((values.len(), end), (1, Ok(())));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 0usize..14) {
            let mut input = vec![b"+-:$*_#,(!=~%>"[kind]];
            input.extend_from_slice(&bytes);
            let _ = parse_all(&input, 7);
        }
    }
}
