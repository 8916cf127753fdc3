//! Reads commands from a connection's bytes: arrays of bulk strings, and lines typed by hand.
//!
//! The parser looks at each byte once however the bytes are cut into reads: it remembers how far into the unfinished
//! command it is. A finished command takes its bytes out of the buffer, and its arguments are places in them, so
//! nothing is copied. Nothing is reserved because a client announced it: memory grows with bytes received.
//!
//! Source: `processMultibulkBuffer`, `processInlineBuffer` in Redis 7's `networking.c` and `sdssplitargs` in `sds.c`.
//! Differs: the count of a `*` or `$` line must end within 32 bytes instead of 64 KiB, and a whole command has a size
//! limit, so that a connection's memory has one bound.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// The most arguments of one command, as in Redis.
pub const ARGUMENTS_MAX: usize = 1024 * 1024;
/// The longest line typed by hand, in bytes, as in Redis.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Room for `*`, a sign, 19 digits and some leading zeros.
const COUNT_LINE_BYTES_MAX: usize = 32;
/// Commands with at most this many arguments need no allocation for their places.
const SPANS_INLINE: usize = 6;

/// How large requests may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The longest argument, in bytes. Too small: values the bucket would take are refused.
    pub bulk_bytes_max: usize,
    /// The longest command with all its arguments, in bytes, below 4 GiB. What one connection can make the node hold.
    pub command_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bulk_bytes_max: (16 << 20) + 4096, command_bytes_max: 64 << 20 }
    }
}

/// Bytes that are no request. The connection cannot be read on: answer [`fmt::Display`] after `ERR ` and close it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    ArgumentCount,
    ArgumentCountLine,
    BulkLength,
    BulkLengthLine,
    /// An argument that is no bulk string, such as a nested array.
    ExpectedBulk {
        got: u8,
    },
    InlineLength,
    UnbalancedQuotes,
    CommandLength {
        limit_bytes: usize,
    },
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            ProtocolError::ArgumentCount => f.write_str("invalid multibulk length"),
            ProtocolError::ArgumentCountLine => f.write_str("too big mbulk count string"),
            ProtocolError::BulkLength => f.write_str("invalid bulk length"),
            ProtocolError::BulkLengthLine => f.write_str("too big bulk count string"),
            ProtocolError::ExpectedBulk { got } => write!(f, "expected '$', got '{}'", got.escape_ascii()),
            ProtocolError::InlineLength => f.write_str("too big inline request"),
            ProtocolError::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            ProtocolError::CommandLength { limit_bytes } => {
                write!(f, "command exceeds the limit of {limit_bytes} bytes")
            }
        }
    }
}

impl std::error::Error for ProtocolError {}

/// One command: its name and arguments, as places in the bytes it came in. Never empty.
#[derive(Clone)]
pub struct Command {
    frame: Bytes,
    spans: Spans,
}

impl Command {
    /// A command from separate arguments, for callers that have no connection.
    pub fn new<A: AsRef<[u8]>>(arguments: &[A]) -> Command {
        assert!(!arguments.is_empty(), "a command has a name");
        let mut frame = Vec::new();
        let mut spans = Spans::default();
        for argument in arguments {
            push_argument(argument.as_ref(), &mut frame, &mut spans);
        }
        Command { frame: frame.into(), spans }
    }

    /// The number of arguments, the name included: at least 1.
    #[allow(clippy::len_without_is_empty)] // A command is never empty.
    pub fn len(&self) -> usize {
        self.spans.as_slice().len()
    }

    /// The name, as the client spelt it.
    pub fn name(&self) -> &[u8] {
        self.arg(0)
    }

    /// Argument `i`, the name being argument 0. `i` must be below [`Command::len`].
    pub fn arg(&self, i: usize) -> &[u8] {
        let (start, end) = self.spans.as_slice()[i];
        &self.frame[start as usize..end as usize]
    }

    /// Argument `i`, sharing the memory of the whole command.
    pub fn bytes(&self, i: usize) -> Bytes {
        let (start, end) = self.spans.as_slice()[i];
        self.frame.slice(start as usize..end as usize)
    }

    /// Argument `i`, if there are so many.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        (i < self.len()).then(|| self.arg(i))
    }

    /// The name and all arguments.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.arg(i))
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|arg| arg.escape_ascii().to_string())).finish()
    }
}

impl PartialEq for Command {
    fn eq(&self, other: &Command) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Start and end of each argument.
#[derive(Clone)]
enum Spans {
    Few { count: u8, spans: [(u32, u32); SPANS_INLINE] },
    Many(Vec<(u32, u32)>),
}

impl Default for Spans {
    fn default() -> Spans {
        Spans::Few { count: 0, spans: [(0, 0); SPANS_INLINE] }
    }
}

impl Spans {
    fn as_slice(&self) -> &[(u32, u32)] {
        match self {
            Spans::Few { count, spans } => &spans[..*count as usize],
            Spans::Many(spans) => spans,
        }
    }

    fn push(&mut self, span: (u32, u32)) {
        match self {
            Spans::Few { count, spans } if (*count as usize) < SPANS_INLINE => {
                spans[*count as usize] = span;
                *count += 1;
            }
            Spans::Few { spans, .. } => {
                let mut many = Vec::with_capacity(SPANS_INLINE * 4);
                many.extend_from_slice(spans);
                many.push(span);
                *self = Spans::Many(many);
            }
            Spans::Many(spans) => spans.push(span),
        }
    }
}

/// Where one connection stands in its unfinished command.
pub struct RequestParser {
    limits: Limits,
    /// Bytes of the buffer that were understood, from its start.
    at: usize,
    /// Arguments of the array still to come; 0 between commands.
    missing: usize,
    /// The length of the argument whose `$` line was read.
    bulk: Option<usize>,
    spans: Spans,
}

impl RequestParser {
    /// Errors are for a limit of 4 GiB or more: a bug, since places are kept in 32 bits.
    pub fn new(limits: Limits) -> RequestParser {
        assert!(limits.command_bytes_max < u32::MAX as usize, "places are kept in 32 bits");
        RequestParser { limits, at: 0, missing: 0, bulk: None, spans: Spans::default() }
    }

    /// Takes the next whole command off the front of `input`; `None` until more bytes arrive.
    ///
    /// `input` must be the same buffer at each call, with bytes only ever added behind. Call it until `None`.
    /// Errors: the connection must be closed; the parser must not be used again.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Command>, ProtocolError> {
        while self.missing == 0 {
            match input.first() {
                None => return Ok(None),
                Some(b'*') => match self.start_array(input)? {
                    Progress::Done => {}
                    Progress::NeedsMore => return Ok(None),
                },
                Some(_) => match self.inline(input)? {
                    Inline::Command(command) => return Ok(Some(command)),
                    Inline::Empty => {}
                    Inline::NeedsMore => return Ok(None),
                },
            }
        }
        while self.missing > 0 {
            match self.argument(input)? {
                Progress::Done => self.missing -= 1,
                Progress::NeedsMore => return Ok(None),
            }
        }
        let frame = input.split_to(self.at).freeze();
        self.at = 0;
        Ok(Some(Command { frame, spans: std::mem::take(&mut self.spans) }))
    }

    /// How many bytes the current argument still lacks, given the buffer's length: worth reading in one go.
    ///
    /// A client announced it, so reserve no more than a bounded part of it at a time.
    pub fn missing_bytes(&self, input_bytes: usize) -> usize {
        self.bulk.map_or(0, |length| (self.at + length + 2).saturating_sub(input_bytes))
    }

    fn start_array(&mut self, input: &mut BytesMut) -> Result<Progress, ProtocolError> {
        let line = count_line(input).map_err(|Unended| ProtocolError::ArgumentCountLine)?;
        let Some((line, length)) = line else {
            return Ok(Progress::NeedsMore);
        };
        let count = parse_count(&line[1..]).ok_or(ProtocolError::ArgumentCount)?;
        if count > ARGUMENTS_MAX as i64 {
            return Err(ProtocolError::ArgumentCount);
        }
        if count <= 0 {
            // Redis skips empty and null arrays without an answer.
            input.advance(length);
            return Ok(Progress::Done);
        }
        self.at = length;
        self.missing = count as usize;
        Ok(Progress::Done)
    }

    fn argument(&mut self, input: &BytesMut) -> Result<Progress, ProtocolError> {
        let length = match self.bulk {
            Some(length) => length,
            None => {
                let line = count_line(&input[self.at..]).map_err(|Unended| match input[self.at] {
                    b'$' => ProtocolError::BulkLengthLine,
                    got => ProtocolError::ExpectedBulk { got },
                })?;
                let Some((line, line_length)) = line else {
                    return Ok(Progress::NeedsMore);
                };
                let length = self.bulk_length(line)?;
                self.at += line_length;
                self.bulk = Some(length);
                length
            }
        };
        if input.len() < self.at + length + 2 {
            return Ok(Progress::NeedsMore);
        }
        self.spans.push((self.at as u32, (self.at + length) as u32));
        // As Redis, the two bytes behind an argument are passed over without a look.
        self.at += length + 2;
        self.bulk = None;
        Ok(Progress::Done)
    }

    fn bulk_length(&self, line: &[u8]) -> Result<usize, ProtocolError> {
        let digits = match line {
            [b'$', digits @ ..] => digits,
            [got, ..] => return Err(ProtocolError::ExpectedBulk { got: *got }),
            [] => return Err(ProtocolError::ExpectedBulk { got: b'\r' }),
        };
        let length = parse_count(digits).ok_or(ProtocolError::BulkLength)?;
        if length < 0 || length > self.limits.bulk_bytes_max as i64 {
            return Err(ProtocolError::BulkLength);
        }
        let length = length as usize;
        if self.at + line.len() + length + 4 > self.limits.command_bytes_max {
            return Err(ProtocolError::CommandLength { limit_bytes: self.limits.command_bytes_max });
        }
        Ok(length)
    }

    /// A line without `*`: for people with telnet, and health checks.
    fn inline(&mut self, input: &mut BytesMut) -> Result<Inline, ProtocolError> {
        // `at` remembers how far the line was searched before.
        let searched = &input[self.at..input.len().min(INLINE_BYTES_MAX)];
        let Some(end) = searched.iter().position(|&byte| byte == b'\n') else {
            if input.len() >= INLINE_BYTES_MAX {
                return Err(ProtocolError::InlineLength);
            }
            self.at = input.len();
            return Ok(Inline::NeedsMore);
        };
        let line = input.split_to(self.at + end + 1).freeze();
        self.at = 0;
        let text = &line[..line.len() - 1];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let command = split_line(text).ok_or(ProtocolError::UnbalancedQuotes)?;
        Ok(match command.spans.as_slice().is_empty() {
            true => Inline::Empty,
            false => Inline::Command(command),
        })
    }
}

enum Progress {
    Done,
    NeedsMore,
}

enum Inline {
    Command(Command),
    Empty,
    NeedsMore,
}

/// A line that should have ended by now.
struct Unended;

/// The line at the start of `input` without its end, and its length with it; `None` if it has not arrived.
fn count_line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Unended> {
    let searched = &input[..input.len().min(COUNT_LINE_BYTES_MAX)];
    match searched.iter().position(|&byte| byte == b'\r') {
        // The byte after `\r` is passed over without a look, as Redis does.
        Some(end) if input.len() >= end + 2 => Ok(Some((&input[..end], end + 2))),
        None if input.len() >= COUNT_LINE_BYTES_MAX => Err(Unended),
        _ => Ok(None),
    }
}

/// Digits with an optional minus sign, as Redis' `string2ll` reads them: no plus sign, no spaces, no leading zeros.
fn parse_count(text: &[u8]) -> Option<i64> {
    let (digits, sign) = match text {
        [b'-', digits @ ..] => (digits, -1),
        digits => (digits, 1),
    };
    match digits {
        [b'0'] if sign == 1 => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 18 => {}
        _ => return None,
    }
    let mut number = 0i64;
    for &byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + (byte - b'0') as i64;
    }
    Some(sign * number)
}

fn push_argument(argument: &[u8], frame: &mut Vec<u8>, spans: &mut Spans) {
    let start = frame.len() as u32;
    frame.extend_from_slice(argument);
    spans.push((start, frame.len() as u32));
}

/// Splits a typed line into arguments; `None` if a quote is not closed or runs into the next word.
///
/// `"..."` knows `\n \r \t \b \a \xHH` and takes any other character after a backslash as it is; `'...'` knows `\'`.
fn split_line(line: &[u8]) -> Option<Command> {
    let mut frame = Vec::with_capacity(line.len());
    let mut spans = Spans::default();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(Command { frame: frame.into(), spans });
        }
        let start = frame.len() as u32;
        rest = split_word(rest, &mut frame)?;
        spans.push((start, frame.len() as u32));
    }
}

/// Appends the word at the start of `input` to `out`, and returns what follows it.
fn split_word<'a>(mut input: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        input = match input {
            [] => return Some(input),
            [byte, ..] if byte.is_ascii_whitespace() => return Some(input),
            [b'"', rest @ ..] => return end_of_word(double_quoted(rest, out)?),
            [b'\'', rest @ ..] => return end_of_word(single_quoted(rest, out)?),
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        }
    }
}

fn end_of_word(input: &[u8]) -> Option<&[u8]> {
    input.first().is_none_or(u8::is_ascii_whitespace).then_some(input)
}

fn double_quoted<'a>(mut input: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        input = match input {
            [] => return None,
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b'x', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(*high) << 4 | hex(*low));
                rest
            }
            [b'\\', escaped, rest @ ..] => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        }
    }
}

fn single_quoted<'a>(mut input: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        input = match input {
            [] => return None,
            [b'\'', rest @ ..] => return Some(rest),
            [b'\\', b'\'', rest @ ..] => {
                out.push(b'\'');
                rest
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests;
