//! What is stored under one key: concurrent versions and their context, and the bytes they are kept in.
//!
//! ```text
//! | format 1 | count | actor 8, counter 8 ... |           context
//! | count | index of actor | flags | [counter 8] | [expiry] | [headers] | value | ...   siblings, oldest first
//!
//! flags: bits 0-1 kind (0 bytes, 1 counter, 2 tombstone, 3 active), 2 expiry, 3 headers, 4 counter is that of the
//! context
//! ```
//! The same bytes stand on disk and on the wire. Read `mutation` for how an object changes.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::active::Active;
use crate::causality::{Dot, DvvSet, VersionVector};
use crate::codec::{DecodeError, Reader, Writer};
use crate::crdt::Counter;

/// The version of the encoding that this program writes and reads.
pub const OBJECT_FORMAT: u8 = 1;

const KIND: u8 = 0b0000_0011;
const HAS_EXPIRY: u8 = 0b0000_0100;
const HAS_HEADERS: u8 = 0b0000_1000;
const NEWEST_OF_ACTOR: u8 = 0b0001_0000;

/// What one write stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Plain bytes.
    Bytes(Bytes),
    /// An integer counted with `INCR`.
    Counter(Counter),
    /// A delete.
    Tombstone,
    /// An object that carries code.
    Active(Box<Active>),
}

/// One write: its value and what goes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    pub value: Value,
    /// Milliseconds since 1970 from which on this version reads as absent.
    pub expires_ms: Option<u64>,
    /// Names and values the client stored along, such as `content-type`.
    pub headers: Vec<(Bytes, Bytes)>,
}

impl Version {
    /// Plain bytes without expiry or headers.
    pub fn bytes(value: impl Into<Bytes>) -> Version {
        Version { value: Value::Bytes(value.into()), expires_ms: None, headers: Vec::new() }
    }

    /// A delete.
    pub fn tombstone() -> Version {
        Version { value: Value::Tombstone, expires_ms: None, headers: Vec::new() }
    }

    /// False for a tombstone, and from the expiry on.
    pub fn is_live(&self, wall_ms: u64) -> bool {
        self.value != Value::Tombstone && self.expires_ms.is_none_or(|expiry| wall_ms < expiry)
    }
}

/// One live value as a client sees it: concurrent states of one counter already added up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sibling {
    /// The newest write in it.
    pub dot: Dot,
    /// The bytes; a counter as its decimal digits, an active object as its source.
    pub value: Bytes,
    /// The number, if this is a counter.
    pub counter: Option<i64>,
    pub expires_ms: Option<u64>,
    pub headers: Vec<(Bytes, Bytes)>,
}

/// All concurrent versions of a key, with the context that a client sends back.
///
/// The empty object stands for a key never written.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Object(pub DvvSet<Version>);

impl Object {
    /// What a client sends back with its next write to replace what it read.
    pub fn context(&self) -> &VersionVector {
        self.0.context()
    }

    /// True if the key was never written, as far as this replica knows.
    pub fn is_unknown(&self) -> bool {
        self.0.context().is_empty()
    }

    /// Merges in another replica's state.
    pub fn merge(&mut self, other: &Object) {
        self.0.merge(&other.0);
    }

    /// Last writer wins: keeps only the version with the greatest dot, and if that is a counter, the concurrent states
    /// of the same counter, lest increments be lost.
    pub fn keep_newest(&mut self) {
        let Some((newest, version)) = self.0.newest() else { return };
        if self.0.values().len() == 1 {
            return;
        }
        let newest = *newest;
        let origin = match &version.value {
            Value::Counter(counter) => Some(counter.origin),
            _ => None,
        };
        self.0.retain(|dot, held| match &held.value {
            Value::Counter(counter) => dot == newest || Some(counter.origin) == origin,
            _ => dot == newest,
        });
    }

    /// True if any version is neither deleted nor expired.
    pub fn is_live(&self, wall_ms: u64) -> bool {
        self.0.values().iter().any(|(_, version)| version.is_live(wall_ms))
    }

    /// The newest live version, by greatest dot.
    pub fn newest_live(&self, wall_ms: u64) -> Option<&(Dot, Version)> {
        self.0.values().iter().rev().find(|(_, version)| version.is_live(wall_ms))
    }

    /// The live value with the greatest dot: what a Redis `GET` answers.
    pub fn newest(&self, wall_ms: u64) -> Option<Sibling> {
        let (dot, version) = self.newest_live(wall_ms)?;
        Some(self.as_sibling(*dot, version, wall_ms))
    }

    /// The active object that the newest live value is, if it is one.
    pub fn active(&self, wall_ms: u64) -> Option<&Active> {
        match &self.newest_live(wall_ms)?.1.value {
            Value::Active(active) => Some(active),
            _ => None,
        }
    }

    /// Time between two runs of `onTimer` in milliseconds; 0: no such thing.
    pub fn timer_ms(&self) -> u64 {
        match self.0.newest() {
            Some((_, Version { value: Value::Active(active), .. })) => active.interval_ms,
            _ => 0,
        }
    }

    /// All live values, newest first; concurrent states of one counter are one value.
    pub fn siblings(&self, wall_ms: u64) -> Vec<Sibling> {
        let mut siblings = Vec::new();
        let mut origins = Vec::new();
        for (dot, version) in self.0.values().iter().rev() {
            if !version.is_live(wall_ms) {
                continue;
            }
            if let Value::Counter(counter) = &version.value {
                if origins.contains(&counter.origin) {
                    continue;
                }
                origins.push(counter.origin);
            }
            siblings.push(self.as_sibling(*dot, version, wall_ms));
        }
        siblings
    }

    /// The concurrent live states of `counter` in this object, added up.
    pub fn merged_counter(&self, counter: &Counter, wall_ms: u64) -> Counter {
        let mut merged = counter.clone();
        for (_, version) in self.0.values() {
            match &version.value {
                Value::Counter(other) if other.origin == counter.origin && version.is_live(wall_ms) => {
                    merged.merge(other)
                }
                _ => {}
            }
        }
        merged
    }

    fn as_sibling(&self, dot: Dot, version: &Version, wall_ms: u64) -> Sibling {
        let (value, counter) = match &version.value {
            Value::Bytes(bytes) => (bytes.clone(), None),
            Value::Counter(counter) => {
                let number = self.merged_counter(counter, wall_ms).value();
                (Bytes::from(number.to_string()), Some(number))
            }
            Value::Active(active) => (active.source.clone(), None),
            Value::Tombstone => unreachable!("a tombstone is not live"),
        };
        Sibling { dot, value, counter, expires_ms: version.expires_ms, headers: version.headers.clone() }
    }

    /// The greatest counter in the context: what a clock must move past before it writes here.
    pub fn newest_reading(&self) -> u64 {
        self.context().dots().map(|dot| dot.counter).max().unwrap_or(0)
    }

    /// The same causality without the values: enough to tell whether a key exists after merging several replicas.
    pub fn skeleton(&self) -> Object {
        Object(self.0.map(|version| Version {
            value: match version.value {
                Value::Tombstone => Value::Tombstone,
                _ => Value::Bytes(Bytes::new()),
            },
            expires_ms: version.expires_ms,
            headers: Vec::new(),
        }))
    }

    /// What is left of an object when only its context is known: good for being replaced.
    pub fn forgotten(context: VersionVector) -> Object {
        Object(DvvSet::from_parts(context, Vec::new()).expect("nothing is outside the context"))
    }

    /// The bytes for disk and wire, drawn above. Equal objects have equal bytes.
    pub fn encode(&self) -> Bytes {
        let payload: usize = self.0.values().iter().map(|(_, version)| encoded_length_hint(version)).sum();
        let mut bytes = Vec::with_capacity(8 + 16 * self.context().len() + payload);
        let out = &mut Writer(&mut bytes);
        out.u8(OBJECT_FORMAT);
        self.context().encode(out);
        out.varint(self.0.values().len() as u64);
        for (dot, version) in self.0.values() {
            encode_version(out, self.context(), *dot, version);
        }
        bytes.into()
    }

    /// Reads [`Object::encode`]'s bytes; values share their memory.
    ///
    /// Errors: another format version, or bytes that `encode` never makes.
    pub fn decode(bytes: &Bytes) -> Result<Object, DecodeError> {
        let mut input = Reader::new(bytes);
        let found = input.u8("object format")?;
        if found != OBJECT_FORMAT {
            return Err(DecodeError::Version { found, known: OBJECT_FORMAT });
        }
        let context = VersionVector::decode(&mut input)?;
        let count = input.count(2, "siblings")?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(decode_version(&mut input, &context)?);
        }
        input.end()?;
        Ok(Object(DvvSet::from_parts(context, values)?))
    }
}

fn encoded_length_hint(version: &Version) -> usize {
    let value = match &version.value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Counter(_) => 64,
        Value::Active(active) => active.source.len() + active.state.len() + 24,
        Value::Tombstone => 0,
    };
    let headers: usize = version.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    24 + value + headers
}

fn encode_version(out: &mut Writer, context: &VersionVector, dot: Dot, version: &Version) {
    let actor =
        context.dots().position(|seen| seen.actor == dot.actor).expect("the context covers its siblings");
    let is_newest = context.covers(dot) && context.counter(dot.actor) == dot.counter;
    let kind = match version.value {
        Value::Bytes(_) => 0,
        Value::Counter(_) => 1,
        Value::Tombstone => 2,
        Value::Active(_) => 3,
    };
    out.varint(actor as u64);
    out.u8(kind
        | if version.expires_ms.is_some() { HAS_EXPIRY } else { 0 }
        | if version.headers.is_empty() { 0 } else { HAS_HEADERS }
        | if is_newest { NEWEST_OF_ACTOR } else { 0 });
    if !is_newest {
        out.fixed(dot.counter);
    }
    if let Some(expiry) = version.expires_ms {
        out.varint(expiry);
    }
    if !version.headers.is_empty() {
        out.varint(version.headers.len() as u64);
        for (name, value) in &version.headers {
            out.bytes(name);
            out.bytes(value);
        }
    }
    match &version.value {
        Value::Bytes(bytes) => out.bytes(bytes),
        Value::Counter(counter) => counter.encode(out),
        Value::Active(active) => active.encode(out),
        Value::Tombstone => {}
    }
}

fn decode_version(input: &mut Reader, context: &VersionVector) -> Result<(Dot, Version), DecodeError> {
    let index = input.varint("actor index")?;
    let newest = context.dots().nth(index as usize).ok_or(DecodeError::Invalid { field: "actor index" })?;
    let flags = input.u8("flags")?;
    if flags & !(KIND | HAS_EXPIRY | HAS_HEADERS | NEWEST_OF_ACTOR) != 0 {
        return Err(DecodeError::Invalid { field: "flags" });
    }
    let dot = match flags & NEWEST_OF_ACTOR {
        0 => Dot { counter: input.fixed("dot")?, actor: newest.actor },
        _ => newest,
    };
    if dot == newest && flags & NEWEST_OF_ACTOR == 0 {
        return Err(DecodeError::Invalid { field: "dot" });
    }
    let expires_ms = match flags & HAS_EXPIRY {
        0 => None,
        _ => Some(input.varint("expiry")?),
    };
    let mut headers = Vec::new();
    if flags & HAS_HEADERS != 0 {
        for _ in 0..input.count(2, "headers")? {
            headers.push((input.bytes("header name")?, input.bytes("header value")?));
        }
        if headers.is_empty() {
            return Err(DecodeError::Invalid { field: "headers" });
        }
    }
    let value = match flags & KIND {
        0 => Value::Bytes(input.bytes("value")?),
        1 => {
            let counter = Counter::decode(input)?;
            if !counter.is_covered_by(context) {
                return Err(DecodeError::Invalid { field: "counter outside its context" });
            }
            Value::Counter(counter)
        }
        2 => Value::Tombstone,
        _ => Value::Active(Box::new(Active::decode(input)?)),
    };
    Ok((dot, Version { value, expires_ms, headers }))
}

impl TryFrom<Bytes> for Object {
    type Error = DecodeError;
    fn try_from(bytes: Bytes) -> Result<Object, DecodeError> {
        Object::decode(&bytes)
    }
}

impl From<Object> for Bytes {
    fn from(object: Object) -> Bytes {
        object.encode()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let values: Vec<_> =
            self.0.values().iter().map(|(dot, version)| (dot.counter, dot.actor, &version.value)).collect();
        write!(f, "{:?} seen {:?}", values, self.context())
    }
}
