//! What is stored under one key: concurrent versions and their context, and the bytes they are kept in.
//!
//! ```text
//! | format 1 | count | actor 8, counter 8 ... |           context
//! | count | index of actor | flags | [counter 8] | [expiry] | [headers] | value | ...   siblings, oldest first
//!
//! flags: bits 0-1 kind (0 bytes, 1 counter, 2 tombstone, 3 active), 2 expiry, 3 headers, 4 counter is that of the
//!        context, 5 active at some of the owners only, 6 active and written in a home's term, behind the headers
//! ```
//! The same bytes stand on disk and on the wire. Read `mutation` for how an object changes.
//!
//! An active object may say which owners hold its copies. The others hold its husk: the same writes, but not their
//! source and state, which therefore stand apart, behind what all owners have alike and compare by its hash:
//! ```text
//! | format 2 | length 8 | context, siblings with husks in place of bodies | is here [source | state] | ...
//! ```

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::active::{Active, Husk, Placement};
use crate::causality::{Dot, DvvSet, VersionVector};
use crate::codec::{DecodeError, Reader, Writer};
use crate::crdt::Counter;
use crate::types::NodeId;

/// The encoding of an object that is the same at all owners.
pub const OBJECT_FORMAT: u8 = 1;
/// The encoding of one with bodies that only some of the owners have.
pub const PLACED_FORMAT: u8 = 2;

const KIND: u8 = 0b0000_0011;
const HAS_EXPIRY: u8 = 0b0000_0100;
const HAS_HEADERS: u8 = 0b0000_1000;
const NEWEST_OF_ACTOR: u8 = 0b0001_0000;
const IS_PLACED: u8 = 0b0010_0000;
const HAS_TERM: u8 = 0b0100_0000;

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
    /// Such an object, of which others hold the code and state.
    Husk(Box<Husk>),
}

impl Value {
    /// Where the copies of this active object are, if it has chosen.
    pub fn placement(&self) -> Option<&Placement> {
        match self {
            Value::Active(active) => active.placement.as_ref(),
            Value::Husk(husk) => Some(&husk.placement),
            _ => None,
        }
    }

    /// The home's term in which this active object was written; 0: in none, or it is no active object.
    pub fn term(&self) -> u64 {
        match self {
            Value::Active(active) => active.term,
            Value::Husk(husk) => husk.term,
            Value::Bytes(_) | Value::Counter(_) | Value::Tombstone => 0,
        }
    }

    /// True if it carries code, here or at others.
    pub fn carries_code(&self) -> bool {
        matches!(self, Value::Active(_) | Value::Husk(_))
    }
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
        self.0.update(|dot, version| {
            if let Value::Husk(_) = version.value {
                let others = other.0.values();
                if let Ok(at) = others.binary_search_by_key(&dot, |(other, _)| *other) {
                    *version = others[at].1.clone();
                }
            }
        });
    }

    /// True if the newest live value is an active object, whether or not it is here.
    pub fn is_active(&self, wall_ms: u64) -> bool {
        let newest = self.newest_live(wall_ms);
        newest.is_some_and(|(_, version)| matches!(version.value, Value::Active(_) | Value::Husk(_)))
    }

    /// Where the copies of the newest version are, if it has chosen.
    pub fn placement(&self) -> Option<&Placement> {
        leading(self.0.values().iter())?.1.value.placement()
    }

    /// Those who hold what is missing here.
    pub fn missing_from(&self) -> Vec<NodeId> {
        let husks = self.0.values().iter().filter_map(|(_, version)| match &version.value {
            Value::Husk(husk) => Some(&husk.placement.holders),
            _ => None,
        });
        let mut holders: Vec<NodeId> = husks.flatten().copied().collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// True if others hold the code and state of a live version.
    pub fn lacks_body(&self, wall_ms: u64) -> bool {
        let mut versions = self.0.values().iter();
        versions.any(|(_, version)| matches!(version.value, Value::Husk(_)) && version.is_live(wall_ms))
    }

    /// True if others hold the code and state of a version.
    pub fn has_husk(&self) -> bool {
        self.0.values().iter().any(|(_, version)| matches!(version.value, Value::Husk(_)))
    }

    /// True if the write `dot` is here as a husk.
    pub fn made_of_husk(&self, dot: Dot) -> bool {
        let mut versions = self.0.values().iter();
        versions.any(|(other, version)| *other == dot && matches!(version.value, Value::Husk(_)))
    }

    /// Those who were chosen to hold what is here of versions that did not choose `node`.
    pub fn spare_of(&self, node: NodeId) -> Vec<NodeId> {
        let versions = self.0.values().iter().filter_map(|(_, version)| match &version.value {
            Value::Active(active) => active.placement.as_ref(),
            _ => None,
        });
        let spare = versions.map(|placement| &placement.holders).filter(|holders| !holders.contains(&node));
        let mut holders: Vec<NodeId> = spare.flatten().copied().collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// True if code and state are here of which others may have husks.
    pub fn has_placed(&self) -> bool {
        let mut versions = self.0.values().iter();
        versions.any(|(_, Version { value, .. })| match value {
            Value::Active(active) => active.placement.is_some(),
            _ => false,
        })
    }

    /// Leaves husks of all versions that chose others than `node`.
    pub fn strip(&mut self, node: NodeId) {
        self.0.update(|_, version| {
            let Value::Active(active) = &version.value else { return };
            if let Some(husk) = active.husk().filter(|husk| !husk.placement.holders.contains(&node)) {
                version.value = Value::Husk(Box::new(husk));
            }
        });
    }

    /// The latest term of a home in which one of the versions was written; 0: none was.
    pub fn term(&self) -> u64 {
        self.0.values().iter().map(|(_, version)| version.value.term()).max().unwrap_or(0)
    }

    /// The version `dot` was not written by a home: if it is an active object, it is in no term.
    pub fn leave_term(&mut self, dot: Dot) {
        if self.term() == 0 {
            return;
        }
        self.0.update(|other, version| match &mut version.value {
            Value::Active(active) if other == dot => active.term = 0,
            Value::Husk(husk) if other == dot => husk.term = 0,
            _ => {}
        });
    }

    /// Last writer wins: keeps only the version with the greatest dot, and if that is a counter, the concurrent states
    /// of the same counter, lest increments be lost. If it is an active object, the concurrent ones stay for its home
    /// to join: a home that stood still may have written the greatest dot.
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
        let is_active = version.value.carries_code();
        self.0.retain(|dot, held| match &held.value {
            Value::Counter(counter) => dot == newest || Some(counter.origin) == origin,
            value => dot == newest || is_active && value.carries_code(),
        });
    }

    /// True if any version is neither deleted nor expired.
    pub fn is_live(&self, wall_ms: u64) -> bool {
        self.0.values().iter().any(|(_, version)| version.is_live(wall_ms))
    }

    /// The live version that counts: the one with the greatest dot, or if that is an active object, of all active ones
    /// the one that was written in the latest term.
    pub fn newest_live(&self, wall_ms: u64) -> Option<&(Dot, Version)> {
        leading(self.0.values().iter().filter(|(_, version)| version.is_live(wall_ms)))
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
        match leading(self.0.values().iter()) {
            Some((_, Version { value: Value::Active(active), .. })) => active.interval_ms,
            Some((_, Version { value: Value::Husk(husk), .. })) => husk.interval_ms,
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
            Value::Husk(_) => (Bytes::new(), None),
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
        if self.0.values().iter().any(|(_, version)| version.value.placement().is_some()) {
            return self.encode_placed();
        }
        out.u8(OBJECT_FORMAT);
        self.encode_core(out);
        bytes.into()
    }

    fn encode_core(&self, out: &mut Writer) {
        self.context().encode(out);
        out.varint(self.0.values().len() as u64);
        for (dot, version) in self.0.values() {
            encode_version(out, self.context(), *dot, version);
        }
    }

    fn encode_placed(&self) -> Bytes {
        let (mut bytes, mut core) = (Vec::new(), Vec::new());
        self.encode_core(&mut Writer(&mut core));
        let out = &mut Writer(&mut bytes);
        out.u8(PLACED_FORMAT);
        out.fixed(core.len() as u64);
        out.0.extend_from_slice(&core);
        for (_, version) in self.0.values() {
            match &version.value {
                Value::Active(active) if active.placement.is_some() => {
                    out.u8(1);
                    active.encode_body(out);
                }
                Value::Husk(_) => out.u8(0),
                _ => {}
            }
        }
        bytes.into()
    }

    /// Reads [`Object::encode`]'s bytes; values share their memory.
    ///
    /// Errors: another format version, or bytes that `encode` never makes.
    pub fn decode(bytes: &Bytes) -> Result<Object, DecodeError> {
        let mut input = Reader::new(bytes);
        match input.u8("object format")? {
            OBJECT_FORMAT => {
                let object = Object::decode_core(&mut input)?;
                input.end()?;
                // Such an object has no husks.
                (!object.has_husk()).then_some(object).ok_or(DecodeError::Invalid { field: "object format" })
            }
            PLACED_FORMAT => Object::decode_placed(&mut input),
            found => Err(DecodeError::Version { found, known: PLACED_FORMAT }),
        }
    }

    fn decode_core(input: &mut Reader) -> Result<Object, DecodeError> {
        let context = VersionVector::decode(input)?;
        let count = input.count(2, "siblings")?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(decode_version(input, &context)?);
        }
        Ok(Object(DvvSet::from_parts(context, values)?))
    }

    fn decode_placed(input: &mut Reader) -> Result<Object, DecodeError> {
        let length = input.fixed("length")?;
        let core = input.take(length, "husks")?;
        let mut core = Reader::new(&core);
        let mut object = Object::decode_core(&mut core)?;
        core.end()?;
        if !object.has_husk() {
            return Err(DecodeError::Invalid { field: "object format" });
        }
        let mut result = Ok(());
        object.0.update(|_, version| {
            if let (Value::Husk(husk), Ok(())) = (&version.value, &result) {
                match decode_body(input, husk) {
                    Ok(Some(active)) => version.value = Value::Active(Box::new(active)),
                    Ok(None) => {}
                    Err(error) => result = Err(error),
                }
            }
        });
        result?;
        input.end()?;
        Ok(object)
    }
}

/// The version that counts among these, whose dots ascend: see [`Object::newest_live`].
fn leading<'a>(versions: impl DoubleEndedIterator<Item = &'a (Dot, Version)>) -> Option<&'a (Dot, Version)> {
    let mut versions = versions.rev();
    let newest = versions.next()?;
    if !newest.1.value.carries_code() {
        return Some(newest);
    }
    let mut first = newest;
    for one in versions.filter(|(_, version)| version.value.carries_code()) {
        if one.1.value.term() > first.1.value.term() {
            first = one;
        }
    }
    Some(first)
}

/// The bytes of an object that all its owners have alike; all of them, if they are none.
pub fn common_bytes(bytes: &[u8]) -> &[u8] {
    let length = match bytes.split_first() {
        Some((&PLACED_FORMAT, rest)) => rest.first_chunk().map(|length| u64::from_le_bytes(*length)),
        _ => None,
    };
    length.and_then(|length| bytes.get(..length.checked_add(9)? as usize)).unwrap_or(bytes)
}

/// True if these are the bytes of an object with versions that only some of the owners hold.
pub fn is_placed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&PLACED_FORMAT)
}

fn decode_body(input: &mut Reader, husk: &Husk) -> Result<Option<Active>, DecodeError> {
    match input.u8("body")? {
        0 => Ok(None),
        1 => {
            let (source, state) = (input.bytes("source")?, input.bytes("state")?);
            Ok(Some(husk.clone().filled(source, state)))
        }
        _ => Err(DecodeError::Invalid { field: "body" }),
    }
}

fn encoded_length_hint(version: &Version) -> usize {
    let value = match &version.value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Counter(_) => 64,
        Value::Active(active) => active.source.len() + active.state.len() + 24,
        Value::Tombstone | Value::Husk(_) => 0,
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
        Value::Active(_) | Value::Husk(_) => 3,
    };
    out.varint(actor as u64);
    out.u8(kind
        | if version.value.placement().is_some() { IS_PLACED } else { 0 }
        | if version.expires_ms.is_some() { HAS_EXPIRY } else { 0 }
        | if version.headers.is_empty() { 0 } else { HAS_HEADERS }
        | if version.value.term() > 0 { HAS_TERM } else { 0 }
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
    if version.value.term() > 0 {
        out.varint(version.value.term());
    }
    match &version.value {
        Value::Bytes(bytes) => out.bytes(bytes),
        Value::Counter(counter) => counter.encode(out),
        Value::Active(active) => match active.husk() {
            Some(husk) => husk.encode(out),
            None => {
                active.encode_body(out);
                out.varint(active.interval_ms);
                out.varint(active.last_interval);
            }
        },
        Value::Husk(husk) => husk.encode(out),
        Value::Tombstone => {}
    }
}

fn decode_version(input: &mut Reader, context: &VersionVector) -> Result<(Dot, Version), DecodeError> {
    let index = input.varint("actor index")?;
    let newest = context.dots().nth(index as usize).ok_or(DecodeError::Invalid { field: "actor index" })?;
    let flags = input.u8("flags")?;
    let is_placed = flags & IS_PLACED != 0;
    if flags & !(KIND | HAS_EXPIRY | HAS_HEADERS | NEWEST_OF_ACTOR | IS_PLACED | HAS_TERM) != 0
        || flags & (IS_PLACED | HAS_TERM) != 0 && flags & KIND != 3
    {
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
    let term = match flags & HAS_TERM {
        0 => 0,
        _ => input.varint("term")?,
    };
    if term == 0 && flags & HAS_TERM != 0 {
        return Err(DecodeError::Invalid { field: "term" });
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
        _ if is_placed => Value::Husk(Box::new(Husk { term, ..Husk::decode(input)? })),
        _ => Value::Active(Box::new(Active {
            source: input.bytes("source")?,
            state: input.bytes("state")?,
            interval_ms: input.varint("timer interval")?,
            last_interval: input.varint("timer")?,
            placement: None,
            term,
        })),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ActorId;

    fn active(term: u64) -> Version {
        let (source, state) = (Bytes::from_static(b"code"), Bytes::copy_from_slice(&term.to_le_bytes()));
        let active = Active { source, state, interval_ms: 0, last_interval: 0, placement: None, term };
        Version { value: Value::Active(Box::new(active)), expires_ms: None, headers: Vec::new() }
    }

    fn siblings(versions: &[Version]) -> Object {
        let mut object = Object::default();
        for (at, version) in versions.iter().enumerate() {
            let dot = Dot { counter: at as u64 + 1, actor: ActorId(at as u64) };
            object.0.put(&VersionVector::default(), dot, version.clone());
        }
        object
    }

    #[test]
    fn of_active_siblings_the_latest_term_leads_and_of_others_the_greatest_dot() {
        let (plain, gone) = (Version::bytes("v"), Version::tombstone());
        for (versions, leads, kept) in [
            (vec![active(2), active(1)], 0, 2),
            (vec![active(0), active(0)], 1, 2),
            (vec![active(2), active(1), active(2)], 2, 3),
            (vec![active(2), plain.clone(), active(1)], 0, 2),
            (vec![active(2), plain.clone()], 1, 1),
            (vec![active(2), active(1), gone.clone()], 0, 1),
        ] {
            let mut object = siblings(&versions);
            assert_eq!(object.newest_live(0).unwrap().1, versions[leads], "{versions:?}");
            assert_eq!(Object::decode(&object.encode()), Ok(object.clone()));
            object.keep_newest();
            assert_eq!(object.0.values().len(), kept, "{versions:?}");
        }
    }

    #[test]
    fn a_version_that_no_home_wrote_is_in_no_term() {
        let mut object = siblings(&[active(2), active(3)]);
        object.leave_term(Dot { counter: 2, actor: ActorId(1) });
        assert_eq!(object.term(), 2);
        assert_eq!(object.newest_live(0).unwrap().0.counter, 1);
    }
}
