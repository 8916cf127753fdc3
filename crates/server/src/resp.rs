//! The Redis serialization protocol, versions 2 and 3: requests in, replies out, and replies in for our own client.
//!
//! A [`Value`] is any reply. It is written in the protocol the client chose with `HELLO`; what version 2 has no form
//! for is written as Redis does it (a map as a flat array, a double as a string). Requests are a flat list of byte
//! strings and get a parser of their own, [`request`], since that is the hot path; [`reply`] reads any value, for the
//! command line client and tests.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>; error texts from Redis 7's `networking.c`.

pub mod reply;
pub mod request;

use std::borrow::Cow;

use bytes::Bytes;

/// The version of the protocol that replies are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

/// One reply.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Written as no bytes at all: the answer to a client that asked for none (`CLIENT REPLY OFF`).
    Nothing,
    /// A short text without line breaks, such as `OK`.
    Simple(Cow<'static, str>),
    /// An error: a word in capitals, then a text without line breaks.
    Error(Cow<'static, str>),
    Integer(i64),
    Bulk(Bytes),
    Null,
    Array(Vec<Value>),
    /// Names and values, in order.
    Map(Vec<(Value, Value)>),
    Set(Vec<Value>),
    /// Out of band data.
    Push(Vec<Value>),
    Double(f64),
    Boolean(bool),
    /// A text with its format, three ASCII characters such as `txt`.
    Verbatim([u8; 3], Bytes),
    /// An integer of any size, as its digits.
    BigNumber(Cow<'static, str>),
}

impl Value {
    /// `OK`.
    pub const OK: Value = Value::Simple(Cow::Borrowed("OK"));

    /// An error whose text is known at compile time, with its prefix.
    pub const fn error(text: &'static str) -> Value {
        Value::Error(Cow::Borrowed(text))
    }

    /// A byte string copied from `text`.
    pub fn text(text: impl AsRef<[u8]>) -> Value {
        Value::Bulk(Bytes::copy_from_slice(text.as_ref()))
    }

    /// A byte string that lives as long as the program.
    pub fn name(text: &'static str) -> Value {
        Value::Bulk(Bytes::from_static(text.as_bytes()))
    }

    /// True for an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }

    /// Appends the bytes of this value in `protocol`.
    pub fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        let is_resp3 = protocol == Protocol::Resp3;
        match self {
            Value::Nothing => {}
            Value::Simple(text) => line(b'+', text, out),
            Value::Error(text) => line(b'-', text, out),
            Value::Integer(number) => {
                out.push(b':');
                decimal(*number, out);
                out.extend_from_slice(b"\r\n");
            }
            Value::Bulk(bytes) => bulk(bytes, out),
            Value::Null if is_resp3 => out.extend_from_slice(b"_\r\n"),
            Value::Null => out.extend_from_slice(b"$-1\r\n"),
            Value::Array(items) => sequence(b'*', items, protocol, out),
            Value::Set(items) => sequence(if is_resp3 { b'~' } else { b'*' }, items, protocol, out),
            Value::Push(items) => sequence(if is_resp3 { b'>' } else { b'*' }, items, protocol, out),
            Value::Map(pairs) => {
                match is_resp3 {
                    true => header(b'%', pairs.len(), out),
                    false => header(b'*', pairs.len() * 2, out),
                }
                for (name, value) in pairs {
                    name.encode(protocol, out);
                    value.encode(protocol, out);
                }
            }
            Value::Double(number) if is_resp3 => line(b',', &double(*number), out),
            Value::Double(number) => bulk(double(*number).as_bytes(), out),
            Value::Boolean(truth) if is_resp3 => {
                out.extend_from_slice(if *truth { b"#t\r\n" } else { b"#f\r\n" })
            }
            Value::Boolean(truth) => out.extend_from_slice(if *truth { b":1\r\n" } else { b":0\r\n" }),
            Value::Verbatim(format, text) if is_resp3 => {
                header(b'=', text.len() + 4, out);
                out.extend_from_slice(format);
                out.push(b':');
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            Value::Verbatim(_, text) => bulk(text, out),
            Value::BigNumber(digits) if is_resp3 => line(b'(', digits, out),
            Value::BigNumber(digits) => bulk(digits.as_bytes(), out),
        }
    }
}

fn sequence(kind: u8, items: &[Value], protocol: Protocol, out: &mut Vec<u8>) {
    header(kind, items.len(), out);
    for item in items {
        item.encode(protocol, out);
    }
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() + 24);
    header(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn header(kind: u8, count: usize, out: &mut Vec<u8>) {
    out.push(kind);
    decimal(count as i64, out);
    out.extend_from_slice(b"\r\n");
}

/// A line break inside would end the reply early and let its text forge further replies, so it becomes a space.
fn line(kind: u8, text: &str, out: &mut Vec<u8>) {
    out.push(kind);
    let start = out.len();
    out.extend_from_slice(text.as_bytes());
    for byte in &mut out[start..] {
        if matches!(*byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a number's digits without going through a formatter: it stands in every reply.
fn decimal(number: i64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    out.extend_from_slice(&digits[at..]);
}

/// The shortest text that reads back as the same number, with an exponent when that is shorter.
fn double(number: f64) -> String {
    let size = number.abs();
    match number {
        _ if number.is_nan() => "nan".into(),
        _ if number == f64::INFINITY => "inf".into(),
        _ if number == f64::NEG_INFINITY => "-inf".into(),
        _ if size == 0.0 || (1e-5..1e17).contains(&size) => format!("{number}"),
        _ => format!("{number:e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: &Value, protocol: Protocol) -> String {
        let mut out = Vec::new();
        value.encode(protocol, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn version_2_writes_what_it_lacks_as_redis_does() {
        let number = || Value::Integer(-7);
        let cases = [
            (Value::Nothing, "", ""),
            (Value::OK, "+OK\r\n", "+OK\r\n"),
            (Value::error("ERR no"), "-ERR no\r\n", "-ERR no\r\n"),
            (Value::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (Value::Integer(0), ":0\r\n", ":0\r\n"),
            (Value::text("a\r\nb"), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
            (Value::text(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Value::Null, "$-1\r\n", "_\r\n"),
            (Value::Array(vec![]), "*0\r\n", "*0\r\n"),
            (Value::Array(vec![number(), Value::Null]), "*2\r\n:-7\r\n$-1\r\n", "*2\r\n:-7\r\n_\r\n"),
            (
                Value::Map(vec![(Value::name("a"), number())]),
                "*2\r\n$1\r\na\r\n:-7\r\n",
                "%1\r\n$1\r\na\r\n:-7\r\n",
            ),
            (Value::Set(vec![number()]), "*1\r\n:-7\r\n", "~1\r\n:-7\r\n"),
            (Value::Push(vec![number()]), "*1\r\n:-7\r\n", ">1\r\n:-7\r\n"),
            (Value::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (Value::Double(3.0), "$1\r\n3\r\n", ",3\r\n"),
            (Value::Double(1e300), "$5\r\n1e300\r\n", ",1e300\r\n"),
            (Value::Double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n"),
            (Value::Boolean(true), ":1\r\n", "#t\r\n"),
            (Value::Boolean(false), ":0\r\n", "#f\r\n"),
            (Value::Verbatim(*b"txt", Bytes::from_static(b"hi")), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
            (Value::BigNumber("123".into()), "$3\r\n123\r\n", "(123\r\n"),
        ];
        for (value, resp2, resp3) in cases {
            assert_eq!(encoded(&value, Protocol::Resp2), resp2);
            assert_eq!(encoded(&value, Protocol::Resp3), resp3);
        }
    }

    #[test]
    fn a_text_cannot_forge_a_reply() {
        let value = Value::Error("ERR unknown command 'a\r\n+OK'".into());
        assert_eq!(encoded(&value, Protocol::Resp2), "-ERR unknown command 'a  +OK'\r\n");
    }
}
