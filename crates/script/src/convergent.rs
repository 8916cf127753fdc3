//! Values that converge: concurrent states of one are joined without losing what either has seen.
//!
//! Joining is commutative, associative and idempotent, so replicas that have exchanged their states, in whatever order
//! and however often, hold equal ones. There are four kinds.
//!
//! - A *counter* has for each actor what it added and what it took away; of two states the greater numbers count.
//! - A *set* has for each element the dots of the additions that hold it up, and the context of all dots it has seen.
//!   A dot that one state has and the other's context covers was removed there; one that it does not cover is news.
//!   So an addition wins over a concurrent removal, and of what is removed nothing stays but the context: one number
//!   for each actor.
//! - A *map* is such a set of keys, where each dot comes with a value. The value of the greatest dot is shown. Those of
//!   concurrent ones stay until somebody writes the key: the greatest may yet turn out to have been removed.
//! - A *register* has the value of its greatest dot.
//!
//! An actor is one unbroken memory of writes (`Facts::actor`): it writes only on states that hold all it wrote before.
//! A dot's counter is a hybrid clock reading, milliseconds in its top 48 bits, and is greater than any that the value,
//! and this node for this object, has seen: a later write on one node is always the later one, whatever its clock does,
//! and a value that is replaced by a new one of its kind does not reuse dots.
//!
//! ```text
//! counter  = 'c', count varint, (actor 8 bytes, added varint, taken varint)*    ascending actors
//! set      = 's', context, count varint, (element, count varint, dot*)*         ascending elements
//! map      = 'm', context, count varint, (element, count varint, (dot, value)*)*
//! register = 'r', (actor 8 bytes, counter 8 bytes, value)?
//! context  = count varint, (actor 8 bytes, counter 8 bytes)*                    ascending actors
//! dot      = index of the actor in the context varint, context's counter less the dot's varint   ascending dots
//! element, value = length varint, bytes as in a state
//! ```
//!
//! Source: Shapiro et al., "A comprehensive study of convergent and commutative replicated data types", 2011
//! (PN-counter, LWW-register); Bieniusa et al., "An optimized conflict-free replicated set", 2012; Almeida et al.,
//! "Delta state replicated data types", 2018 (a map over causal contexts).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use oort_core::active::Value;
use oort_core::causality::{Dot, VersionVector};
use oort_core::codec::{DecodeError, Reader, Writer};
use oort_core::types::ActorId;

use crate::codec::{decode_plain, number, order, put, EXACT_MAX};
use crate::limits::ScriptError;

/// The greatest number that a counter shows and takes, and less its sign the least: Lua's are exact to here.
pub(crate) const COUNTER_MAX: i64 = EXACT_MAX as i64;

/// What an entry of a set takes in memory besides its element's bytes, about.
const ENTRY_BYTES: usize = 96;
/// What a dot takes in memory besides its value's bytes, about.
const DOT_BYTES: usize = 48;

/// What all kinds have.
pub(crate) trait Convergent: Default {
    const NAME: &'static str;
    /// The first byte of its encoding.
    const KIND: u8;

    /// Joins another state into this one.
    fn join(&mut self, other: Self);

    /// Appends all but the kind.
    fn encode(&self, out: &mut Writer);

    /// Reads all but the kind. Errors: any bytes but those that `encode` makes.
    fn decode(input: &mut Reader) -> Result<Self, DecodeError>;

    /// What it looks like from outside.
    fn plain(&self) -> Value;

    /// Bytes of memory that it takes, about.
    fn heap_bytes(&self) -> usize;
}

/// The bytes of a convergent value, with its kind in front.
pub(crate) fn to_bytes<T: Convergent>(value: &T) -> Vec<u8> {
    let mut out = vec![T::KIND];
    value.encode(&mut Writer(&mut out));
    out
}

/// Reads what [`to_bytes`] wrote. `None`: it is of another kind. Errors: `BadState`, for any other bytes.
pub(crate) fn from_bytes<T: Convergent>(bytes: &[u8]) -> Result<Option<T>, ScriptError> {
    let Some((kind, rest)) = bytes.split_first() else { return Err(bad()) };
    if *kind != T::KIND {
        return Ok(None);
    }
    let rest = Bytes::copy_from_slice(rest);
    let mut input = Reader::new(&rest);
    let value = T::decode(&mut input).map_err(|_| bad())?;
    input.end().map_err(|_| bad())?;
    Ok(Some(value))
}

/// What a convergent value in bytes looks like from outside. Errors: `BadState`.
pub(crate) fn plain(bytes: &[u8]) -> Result<Value, ScriptError> {
    fn of<T: Convergent>(bytes: &[u8]) -> Result<Option<Value>, ScriptError> {
        Ok(from_bytes::<T>(bytes)?.map(|value| value.plain()))
    }
    for of in [of::<Counter>, of::<Set>, of::<Map>, of::<Register>] {
        if let Some(value) = of(bytes)? {
            return Ok(value);
        }
    }
    Err(bad())
}

pub(crate) fn bad() -> ScriptError {
    ScriptError::BadState { reason: "a convergent value in it cannot be read" }
}

/// Counts up and down.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Counter {
    totals: Vec<Total>, // ascending actors
}

/// What one actor added and took away.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Total {
    actor: ActorId,
    added: u64,
    taken: u64,
}

impl Counter {
    /// Sums of concurrent additions beyond the range of `i64` stop at its end.
    pub fn value(&self) -> i64 {
        let sum: i128 = self.totals.iter().map(|t| i128::from(t.added) - i128::from(t.taken)).sum();
        sum.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// Adds what one actor adds. Returns the new number.
    ///
    /// `None`, and changes nothing: it were beyond [`COUNTER_MAX`], or the actor had added or taken away 2^64 in all.
    #[must_use]
    pub fn add(&mut self, actor: ActorId, n: i64) -> Option<i64> {
        let value = self.value().checked_add(n).filter(|value| value.abs() <= COUNTER_MAX)?;
        let (added, taken) = if n < 0 { (0, n.unsigned_abs()) } else { (n as u64, 0) };
        match self.totals.binary_search_by_key(&actor, |t| t.actor) {
            Ok(at) => {
                let total = &mut self.totals[at];
                let sums = (total.added.checked_add(added)?, total.taken.checked_add(taken)?);
                (total.added, total.taken) = sums;
            }
            Err(at) => self.totals.insert(at, Total { actor, added, taken }),
        }
        Some(value)
    }

    /// Number of actors.
    pub fn len(&self) -> usize {
        self.totals.len()
    }
}

impl Convergent for Counter {
    const NAME: &'static str = "counter";
    const KIND: u8 = b'c';

    fn join(&mut self, other: Counter) {
        for theirs in other.totals {
            match self.totals.binary_search_by_key(&theirs.actor, |t| t.actor) {
                Ok(at) => {
                    let total = &mut self.totals[at];
                    total.added = total.added.max(theirs.added);
                    total.taken = total.taken.max(theirs.taken);
                }
                Err(at) => self.totals.insert(at, theirs),
            }
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.varint(self.totals.len() as u64);
        for total in &self.totals {
            out.fixed(total.actor.0);
            out.varint(total.added);
            out.varint(total.taken);
        }
    }

    fn decode(input: &mut Reader) -> Result<Counter, DecodeError> {
        let mut totals: Vec<Total> = Vec::new();
        for _ in 0..input.count(10, "totals")? {
            let actor = ActorId(input.fixed("actor")?);
            if totals.last().is_some_and(|last| last.actor >= actor) {
                return Err(DecodeError::Invalid { field: "order of totals" });
            }
            totals.push(Total { actor, added: input.varint("added")?, taken: input.varint("taken")? });
        }
        Ok(Counter { totals })
    }

    fn plain(&self) -> Value {
        Value::Integer(self.value())
    }

    fn heap_bytes(&self) -> usize {
        self.totals.len() * size_of::<Total>()
    }
}

/// An element of a set or a key of a map: a string, a number or a boolean.
#[derive(Clone, Debug)]
pub(crate) struct Element(Value);

impl Element {
    /// `None`: the value is none of these, or not a number.
    pub fn new(value: Value) -> Option<Element> {
        match value {
            // No table tells the two zeros apart either.
            Value::Number(0.0) => Some(Element(Value::Integer(0))),
            Value::Number(n) if n.is_nan() => None,
            Value::Number(n) => Some(Element(number(n))),
            Value::Integer(n) if n.unsigned_abs() >= COUNTER_MAX as u64 => {
                Some(Element(Value::Number(n as f64)))
            }
            Value::Bool(_) | Value::Integer(_) | Value::Bytes(_) => Some(Element(value)),
            Value::Nil | Value::Array(_) | Value::Map(_) => None,
        }
    }

    pub fn value(&self) -> &Value {
        &self.0
    }

    /// Bytes of its encoding, about.
    pub fn len(&self) -> usize {
        match &self.0 {
            Value::Bytes(bytes) => bytes.len() + 2,
            _ => 9,
        }
    }

    fn encode(&self, out: &mut Writer) {
        let mut bytes = Vec::new();
        put(&self.0, &mut bytes);
        out.bytes(&bytes);
    }

    fn decode(input: &mut Reader) -> Result<Element, DecodeError> {
        let invalid = DecodeError::Invalid { field: "element" };
        let value = decode_plain(&input.bytes("element")?).map_err(|_| invalid)?;
        // Each element has one form, so that equal sets have equal bytes.
        match Element::new(value.clone()) {
            Some(element) if element.0 == value => Ok(element),
            _ => Err(invalid),
        }
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Element) -> Ordering {
        order(&self.0, &other.0)
    }
}
impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Element) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Element {
    fn eq(&self, other: &Element) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Element {}

/// What comes with a dot: nothing in a set, a value in a map.
pub(crate) trait Payload: Ord {
    fn encode(&self, out: &mut Writer);
    fn decode(input: &mut Reader) -> Result<Self, DecodeError>
    where
        Self: Sized;
    fn len(&self) -> usize;
}

impl Payload for () {
    fn encode(&self, _: &mut Writer) {}

    fn decode(_: &mut Reader) -> Result<(), DecodeError> {
        Ok(())
    }

    fn len(&self) -> usize {
        0
    }
}

/// A value in bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Encoded(Box<[u8]>);

impl Encoded {
    pub fn new(value: &Value) -> Encoded {
        let mut bytes = Vec::new();
        put(value, &mut bytes);
        Encoded(bytes.into())
    }

    pub fn value(&self) -> Value {
        decode_plain(&self.0).expect("what was encoded or checked can be decoded")
    }
}

impl Payload for Encoded {
    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.0);
    }

    fn decode(input: &mut Reader) -> Result<Encoded, DecodeError> {
        let bytes = input.bytes("value")?;
        decode_plain(&bytes).map_err(|_| DecodeError::Invalid { field: "value" })?;
        Ok(Encoded(bytes[..].into()))
    }

    fn len(&self) -> usize {
        self.0.len() + 1
    }
}

/// Elements, held up by dots.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Dotted<V> {
    context: VersionVector,
    entries: BTreeMap<Element, Vec<(Dot, V)>>, // of each at least one dot, ascending
    /// Bytes of all elements and values.
    content_bytes: usize,
    dots: usize,
}

pub(crate) type Set = Dotted<()>;
pub(crate) type Map = Dotted<Encoded>;

impl<V> Default for Dotted<V> {
    fn default() -> Dotted<V> {
        Dotted { context: VersionVector::default(), entries: BTreeMap::new(), content_bytes: 0, dots: 0 }
    }
}

impl<V: Payload> Dotted<V> {
    /// The greatest counter that it has seen.
    pub fn newest(&self) -> u64 {
        self.context.dots().map(|dot| dot.counter).max().unwrap_or(0)
    }

    /// Adds an element, or writes a key, as the write `dot`. True if it was not there.
    pub fn put(&mut self, element: Element, dot: Dot, value: V) -> bool {
        assert!(!self.context.covers(dot), "{dot:?} is not new");
        self.context.add(dot);
        let is_new = !self.remove(&element);
        self.content_bytes += element.len() + value.len();
        self.dots += 1;
        self.entries.insert(element, vec![(dot, value)]);
        is_new
    }

    /// Removes an element. True if it was there.
    pub fn remove(&mut self, element: &Element) -> bool {
        let Some((element, dots)) = self.entries.remove_entry(element) else { return false };
        self.content_bytes -= element.len() + dots.iter().map(|(_, value)| value.len()).sum::<usize>();
        self.dots -= dots.len();
        true
    }

    pub fn has(&self, element: &Element) -> bool {
        self.entries.contains_key(element)
    }

    /// What its greatest dot brought.
    pub fn get(&self, element: &Element) -> Option<&V> {
        Some(&self.entries.get(element)?.last()?.1)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All elements in their order, with what is shown of each.
    pub fn iter(&self) -> impl Iterator<Item = (&Element, &V)> {
        self.entries.iter().filter_map(|(element, dots)| Some((element, &dots.last()?.1)))
    }

    /// Bytes of all elements and values.
    pub fn content_bytes(&self) -> usize {
        self.content_bytes
    }

    fn recount(&mut self) {
        self.dots = self.entries.values().map(Vec::len).sum();
        let values = self.entries.values().flatten().map(|(_, value)| value.len()).sum::<usize>();
        self.content_bytes = values + self.entries.keys().map(Element::len).sum::<usize>();
    }

    fn join_dotted(&mut self, mut other: Dotted<V>) {
        self.entries.retain(|element, dots| {
            let theirs = other.entries.get(element);
            dots.retain(|(dot, _)| {
                !other.context.covers(*dot) || theirs.is_some_and(|all| all.iter().any(|(d, _)| d == dot))
            });
            !dots.is_empty()
        });
        for (element, theirs) in std::mem::take(&mut other.entries) {
            let mut news = Vec::new();
            for (dot, value) in theirs {
                let ours =
                    self.entries.get_mut(&element).and_then(|all| all.iter_mut().find(|(d, _)| *d == dot));
                match ours {
                    // A dot names one write. Were it forged to name two, all replicas choose the same.
                    Some((_, ours)) if *ours < value => *ours = value,
                    Some(_) => {}
                    None if self.context.covers(dot) => {}
                    None => news.push((dot, value)),
                }
            }
            if !news.is_empty() {
                let dots = self.entries.entry(element).or_default();
                dots.append(&mut news);
                dots.sort_by_key(|(dot, _)| *dot);
            }
        }
        self.context.merge(&other.context);
        self.recount();
    }

    fn encode_dotted(&self, out: &mut Writer) {
        self.context.encode(out);
        let actors: Vec<Dot> = self.context.dots().collect();
        out.varint(self.entries.len() as u64);
        for (element, dots) in &self.entries {
            element.encode(out);
            out.varint(dots.len() as u64);
            for (dot, value) in dots {
                let at = actors.binary_search_by_key(&dot.actor, |seen| seen.actor);
                let at = at.expect("the context covers every dot");
                out.varint(at as u64);
                out.varint(actors[at].counter - dot.counter);
                value.encode(out);
            }
        }
    }

    fn decode_dotted(input: &mut Reader) -> Result<Dotted<V>, DecodeError> {
        let context = VersionVector::decode(input)?;
        let actors: Vec<Dot> = context.dots().collect();
        let mut entries: BTreeMap<Element, Vec<(Dot, V)>> = BTreeMap::new();
        for _ in 0..input.count(5, "entries")? {
            let element = Element::decode(input)?;
            if entries.last_key_value().is_some_and(|(last, _)| *last >= element) {
                return Err(DecodeError::Invalid { field: "order of elements" });
            }
            let mut dots: Vec<(Dot, V)> = Vec::new();
            for _ in 0..input.count(2, "dots")? {
                let at = usize::try_from(input.varint("actor")?).unwrap_or(usize::MAX);
                let seen = actors.get(at).ok_or(DecodeError::Invalid { field: "actor" })?;
                let counter =
                    seen.counter.checked_sub(input.varint("counter")?).filter(|counter| *counter > 0);
                let counter = counter.ok_or(DecodeError::Invalid { field: "counter" })?;
                let dot = Dot { counter, actor: seen.actor };
                if dots.last().is_some_and(|(last, _)| *last >= dot) {
                    return Err(DecodeError::Invalid { field: "order of dots" });
                }
                dots.push((dot, V::decode(input)?));
            }
            if dots.is_empty() {
                return Err(DecodeError::Invalid { field: "dots" });
            }
            entries.insert(element, dots);
        }
        let mut dotted = Dotted { context, entries, content_bytes: 0, dots: 0 };
        dotted.recount();
        Ok(dotted)
    }

    fn dotted_heap_bytes(&self) -> usize {
        let context = self.context.len() * size_of::<Dot>();
        self.content_bytes + self.entries.len() * ENTRY_BYTES + self.dots * DOT_BYTES + context
    }
}

impl Convergent for Set {
    const NAME: &'static str = "set";
    const KIND: u8 = b's';

    fn join(&mut self, other: Set) {
        self.join_dotted(other);
    }

    fn encode(&self, out: &mut Writer) {
        self.encode_dotted(out);
    }

    fn decode(input: &mut Reader) -> Result<Set, DecodeError> {
        Dotted::decode_dotted(input)
    }

    fn plain(&self) -> Value {
        Value::Array(self.entries.keys().map(|element| element.0.clone()).collect())
    }

    fn heap_bytes(&self) -> usize {
        self.dotted_heap_bytes()
    }
}

impl Convergent for Map {
    const NAME: &'static str = "map";
    const KIND: u8 = b'm';

    fn join(&mut self, other: Map) {
        self.join_dotted(other);
    }

    fn encode(&self, out: &mut Writer) {
        self.encode_dotted(out);
    }

    fn decode(input: &mut Reader) -> Result<Map, DecodeError> {
        Dotted::decode_dotted(input)
    }

    fn plain(&self) -> Value {
        Value::Map(self.iter().map(|(element, value)| (element.0.clone(), value.value())).collect())
    }

    fn heap_bytes(&self) -> usize {
        self.dotted_heap_bytes()
    }
}

/// One value: that of the last write.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Register {
    written: Option<(Dot, Encoded)>,
}

impl Register {
    /// The counter of its last write.
    pub fn newest(&self) -> u64 {
        self.written.as_ref().map_or(0, |(dot, _)| dot.counter)
    }

    pub fn set(&mut self, dot: Dot, value: Encoded) {
        self.written = Some((dot, value));
    }

    pub fn get(&self) -> Option<&Encoded> {
        Some(&self.written.as_ref()?.1)
    }
}

impl Convergent for Register {
    const NAME: &'static str = "register";
    const KIND: u8 = b'r';

    fn join(&mut self, other: Register) {
        if other.written > self.written {
            *self = other;
        }
    }

    fn encode(&self, out: &mut Writer) {
        if let Some((dot, value)) = &self.written {
            out.fixed(dot.actor.0);
            out.fixed(dot.counter);
            value.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Register, DecodeError> {
        if input.left() == 0 {
            return Ok(Register::default());
        }
        let actor = ActorId(input.fixed("actor")?);
        let dot = Dot { actor, counter: input.fixed("counter")? };
        Ok(Register { written: Some((dot, Encoded::decode(input)?)) })
    }

    fn plain(&self) -> Value {
        self.get().map_or(Value::Nil, Encoded::value)
    }

    fn heap_bytes(&self) -> usize {
        self.get().map_or(0, Payload::len)
    }
}
