//! What a put does to an object, as pure functions: store, delete, append, count, change the expiry.
//!
//! A mutation is evaluated at one coordinating replica, on what that replica holds after merging the answers of
//! the replicas it asked. Plain stores ask nobody. What it writes is an ordinary version under a fresh dot.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::causality::{Dot, VersionVector};
use crate::crdt::Counter;
use crate::object::{Object, Value, Version};
use crate::types::{OBJECT_BYTES_MAX, SIBLINGS_MAX};

/// What the writer knew, and so what the write replaces.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Basis {
    /// Everything the coordinating replica holds: a Redis `SET`.
    Local,
    /// Nothing but deletes and expired values: an HTTP `PUT` without a context.
    Unseen,
    /// Exactly what a context covers.
    Seen(VersionVector),
}

/// The expiry of a stored value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Expiry {
    /// The bucket's default time to live, if it has one.
    Default,
    /// None, even if the bucket has a default.
    Never,
    /// That of the value it replaces (`KEEPTTL`).
    Keep,
    /// At this time, in milliseconds since 1970.
    At(u64),
}

/// When a store or a delete goes ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Condition {
    Always,
    /// No live value is there (`NX`, `If-None-Match: *`).
    IfAbsent,
    /// A live value is there (`XX`, `If-Match: *`).
    IfPresent,
    /// The object's [`Object::etag`] is this (`If-Match`).
    IfTag(u64),
    /// The object's [`Object::etag`] is not this (`If-None-Match`).
    UnlessTag(u64),
}

/// When a change of expiry goes ahead (`EXPIRE ... NX|XX|GT|LT`). No expiry counts as infinite.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpiryCondition {
    /// Only if there is none.
    pub if_none: bool,
    /// Only if there is one.
    pub if_some: bool,
    /// Only if the new one is later.
    pub if_later: bool,
    /// Only if the new one is earlier.
    pub if_earlier: bool,
}

impl ExpiryCondition {
    /// No condition.
    pub const ALWAYS: ExpiryCondition =
        ExpiryCondition { if_none: false, if_some: false, if_later: false, if_earlier: false };
}

/// A change to one object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mutation {
    Store {
        value: Bytes,
        headers: Vec<(Bytes, Bytes)>,
        basis: Basis,
        expiry: Expiry,
        condition: Condition,
    },
    Delete {
        basis: Basis,
        condition: Condition,
    },
    /// Appends to the newest value, or stores the bytes if there is none.
    Append {
        suffix: Bytes,
    },
    /// Overwrites from `offset` on, padding with zero bytes.
    SetRange {
        offset: u64,
        patch: Bytes,
    },
    /// Counts. The value becomes a counter, which concurrent additions elsewhere cannot lose.
    Add {
        delta: i64,
    },
    /// Adds to a decimal number, given as its text; the result is stored as text.
    AddFloat {
        delta: FloatText,
    },
    /// Stores an active object, whose home runs its `onPut`; or with `keeps_state` gives one that is there new code.
    Activate {
        source: Bytes,
        expiry: Expiry,
        keeps_state: bool,
    },
    /// Sets the expiry of the newest value, or removes it (`None`).
    SetExpiry {
        at_ms: Option<u64>,
        condition: ExpiryCondition,
    },
}

/// A finite floating-point number, compared by its bits so that mutations can be compared.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FloatText(pub f64);

impl PartialEq for FloatText {
    fn eq(&self, other: &FloatText) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for FloatText {}

/// Why a mutation cannot be applied. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MutationError {
    /// It is an active object, whose code alone changes it.
    IsActive,
    NotAnInteger,
    NotAFloat,
    WouldOverflow,
    NotFinite,
    ValueTooLarge {
        bytes: u64,
        limit_bytes: u64,
    },
    ObjectTooLarge {
        bytes: u64,
        limit_bytes: u64,
    },
    TooManySiblings {
        limit: u64,
    },
}

impl fmt::Display for MutationError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            MutationError::IsActive => {
                write!(f, "Operation against a key holding the wrong kind of value: an active object")
            }
            MutationError::NotAnInteger => write!(f, "value is not an integer or out of range"),
            MutationError::NotAFloat => write!(f, "value is not a valid float"),
            MutationError::WouldOverflow => write!(f, "increment or decrement would overflow"),
            MutationError::NotFinite => write!(f, "increment would produce NaN or Infinity"),
            MutationError::ValueTooLarge { bytes, limit_bytes } => {
                write!(f, "value of {bytes} bytes exceeds the bucket's limit of {limit_bytes} bytes")
            }
            MutationError::ObjectTooLarge { bytes, limit_bytes } => {
                write!(
                    f,
                    "object of {bytes} bytes with all its siblings exceeds the limit of {limit_bytes} bytes"
                )
            }
            MutationError::TooManySiblings { limit } => {
                write!(f, "key already has {limit} siblings: read it and write back with its context")
            }
        }
    }
}

impl std::error::Error for MutationError {}

/// The circumstances of one evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    pub wall_ms: u64,
    /// The bucket's limit for one value, in bytes.
    pub value_bytes_max: u64,
    /// The bucket's default time to live, in milliseconds.
    pub default_ttl_ms: Option<u64>,
}

impl Mutation {
    /// A blind store, as by a Redis `SET` without options.
    pub fn store(value: impl Into<Bytes>) -> Mutation {
        Mutation::Store {
            value: value.into(),
            headers: Vec::new(),
            basis: Basis::Local,
            expiry: Expiry::Default,
            condition: Condition::Always,
        }
    }

    /// True if the outcome depends on nothing that is held but the context.
    pub fn is_blind(&self) -> bool {
        matches!(
            self,
            Mutation::Store {
                basis: Basis::Local,
                condition: Condition::Always,
                expiry: Expiry::Default | Expiry::Never | Expiry::At(_),
                ..
            }
        )
    }

    /// True if the outcome depends on what is stored, so that `r` replicas are asked first.
    ///
    /// Deletes read too: a delete that has not seen a value would not remove it.
    pub fn needs_read(&self) -> bool {
        match self {
            Mutation::Store { condition, expiry, .. } => {
                *condition != Condition::Always || *expiry == Expiry::Keep
            }
            Mutation::Delete { basis: Basis::Seen(_), condition } => *condition != Condition::Always,
            _ => true,
        }
    }

    /// True if doing it twice may differ from doing it once, so that it is never tried again on its own.
    pub fn is_idempotent(&self) -> bool {
        match self {
            Mutation::Store { condition, basis, .. } | Mutation::Delete { condition, basis } => {
                *condition == Condition::Always && *basis != Basis::Unseen
            }
            Mutation::SetRange { .. } => true,
            Mutation::SetExpiry { condition, .. } => *condition == ExpiryCondition::ALWAYS,
            Mutation::Append { .. } | Mutation::Add { .. } | Mutation::AddFloat { .. } => false,
            Mutation::Activate { .. } => false,
        }
    }

    /// The context the client sent along, if any.
    pub fn seen(&self) -> Option<&VersionVector> {
        match self {
            Mutation::Store { basis: Basis::Seen(seen), .. }
            | Mutation::Delete { basis: Basis::Seen(seen), .. } => Some(seen),
            _ => None,
        }
    }

    /// Applies this to `object` as the write `dot`; false if its condition does not hold and nothing changed.
    ///
    /// Errors leave `object` unchanged.
    pub fn apply(&self, object: &mut Object, dot: Dot, given: Circumstances) -> Result<bool, MutationError> {
        let now = given.wall_ms;
        match self {
            Mutation::Store { value, headers, basis, expiry, condition } => {
                if !condition.holds(object, now) {
                    return Ok(false);
                }
                check_value_size(value.len() as u64, given)?;
                let expires_ms = expiry.resolve(object, given);
                let version =
                    Version { value: Value::Bytes(value.clone()), expires_ms, headers: headers.clone() };
                put(object, basis, dot, version, now)?;
            }
            Mutation::Delete { basis, condition } => {
                let is_pointless = matches!(basis, Basis::Local) && !object.is_live(now);
                if is_pointless || !condition.holds(object, now) {
                    return Ok(false);
                }
                put(object, basis, dot, Version::tombstone(), now)?;
            }
            Mutation::Append { suffix } => {
                return rewrite(object, dot, given, |old| [old, suffix].concat());
            }
            Mutation::SetRange { offset, patch } => {
                let end = offset.saturating_add(patch.len() as u64);
                check_value_size(end, given)?;
                if patch.is_empty() {
                    return Ok(false);
                }
                return rewrite(object, dot, given, |old| {
                    let mut bytes = old.to_vec();
                    bytes.resize(bytes.len().max(end as usize), 0);
                    bytes[*offset as usize..end as usize].copy_from_slice(patch);
                    bytes
                });
            }
            Mutation::Add { delta } => add(object, dot, *delta, given)?,
            Mutation::AddFloat { delta } => {
                let old = match object.newest(now) {
                    Some(sibling) => parse_float(&sibling.value).ok_or(MutationError::NotAFloat)?,
                    None => 0.0,
                };
                let sum = old + delta.0;
                if !sum.is_finite() {
                    return Err(MutationError::NotFinite);
                }
                return rewrite(object, dot, given, |_| format_float(sum).into_bytes());
            }
            Mutation::SetExpiry { at_ms, condition } => {
                return Ok(set_expiry(object, dot, *at_ms, *condition, now))
            }
            // The home's code is asked first, and writes.
            Mutation::Activate { .. } => return Err(MutationError::IsActive),
        }
        Ok(true)
    }
}

impl Condition {
    /// True if the write goes ahead on what is stored.
    pub(crate) fn holds(self, object: &Object, wall_ms: u64) -> bool {
        match self {
            Condition::Always => true,
            Condition::IfAbsent => !object.is_live(wall_ms),
            Condition::IfPresent => object.is_live(wall_ms),
            Condition::IfTag(tag) => object.is_live(wall_ms) && object.etag() == tag,
            Condition::UnlessTag(tag) => !object.is_live(wall_ms) || object.etag() != tag,
        }
    }
}

impl Expiry {
    /// The absolute expiry that is meant, given the object that is replaced.
    pub(crate) fn resolve(self, object: &Object, given: Circumstances) -> Option<u64> {
        match self {
            Expiry::Default => given.default_ttl_ms.map(|ttl| given.wall_ms.saturating_add(ttl)),
            Expiry::Never => None,
            Expiry::Keep => object.newest_live(given.wall_ms).and_then(|(_, version)| version.expires_ms),
            Expiry::At(at) => Some(at),
        }
    }
}

impl Object {
    /// A hash of the context: changes with every write that any replica knows of.
    pub fn etag(&self) -> u64 {
        self.context().dots().fold(0x6f6f_7274, |hash, dot| {
            let mixed = (hash ^ dot.actor.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ mixed >> 29 ^ dot.counter).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        })
    }
}

fn check_value_size(bytes: u64, given: Circumstances) -> Result<(), MutationError> {
    match bytes <= given.value_bytes_max {
        true => Ok(()),
        false => Err(MutationError::ValueTooLarge { bytes, limit_bytes: given.value_bytes_max }),
    }
}

fn put(
    object: &mut Object,
    basis: &Basis,
    dot: Dot,
    version: Version,
    wall_ms: u64,
) -> Result<(), MutationError> {
    let kept = match basis {
        Basis::Local => 0,
        Basis::Unseen => object.0.values().iter().filter(|(_, held)| held.is_live(wall_ms)).count(),
        Basis::Seen(seen) => object.0.values().iter().filter(|(held, _)| !seen.covers(*held)).count(),
    };
    if kept >= SIBLINGS_MAX {
        return Err(MutationError::TooManySiblings { limit: SIBLINGS_MAX as u64 });
    }
    if kept > 0 {
        let bytes = (object.encode().len() + version_length(&version)) as u64;
        let limit_bytes = OBJECT_BYTES_MAX as u64;
        if bytes > limit_bytes {
            return Err(MutationError::ObjectTooLarge { bytes, limit_bytes });
        }
    }
    match basis {
        Basis::Local => object.0.put(&object.context().clone(), dot, version),
        Basis::Unseen => {
            object.0.retain(|_, held| held.is_live(wall_ms));
            object.0.put(&VersionVector::default(), dot, version);
        }
        Basis::Seen(seen) => object.0.put(seen, dot, version),
    }
    Ok(())
}

fn version_length(version: &Version) -> usize {
    match &version.value {
        Value::Bytes(bytes) => bytes.len() + 64,
        Value::Active(active) => active.source.len() + active.state.len() + 64,
        _ => 64,
    }
}

/// Replaces everything by `change` of the newest value, keeping its expiry and headers.
fn rewrite(
    object: &mut Object,
    dot: Dot,
    given: Circumstances,
    change: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<bool, MutationError> {
    if object.is_active(given.wall_ms) {
        return Err(MutationError::IsActive);
    }
    let old = object.newest(given.wall_ms);
    let bytes = change(old.as_ref().map_or(&[], |sibling| &sibling.value));
    check_value_size(bytes.len() as u64, given)?;
    let (expires_ms, headers) = match old {
        Some(sibling) => (sibling.expires_ms, sibling.headers),
        None => (given.default_ttl_ms.map(|ttl| given.wall_ms.saturating_add(ttl)), Vec::new()),
    };
    put(
        object,
        &Basis::Local,
        dot,
        Version { value: Value::Bytes(bytes.into()), expires_ms, headers },
        given.wall_ms,
    )?;
    Ok(true)
}

/// Counts on the newest value. Other siblings stay, lest the increments in them be lost.
fn add(object: &mut Object, dot: Dot, delta: i64, given: Circumstances) -> Result<(), MutationError> {
    let now = given.wall_ms;
    let (mut counter, expires_ms, headers) = match object.newest_live(now) {
        None => {
            let origin = object.0.newest().map(|(dot, _)| *dot);
            let expiry = given.default_ttl_ms.map(|ttl| now.saturating_add(ttl));
            (Counter::new(origin, 0), expiry, Vec::new())
        }
        Some((origin, version)) => {
            let counter = match &version.value {
                Value::Counter(counter) => object.merged_counter(counter, now),
                Value::Bytes(bytes) => {
                    Counter::new(Some(*origin), parse_integer(bytes).ok_or(MutationError::NotAnInteger)?)
                }
                Value::Active(_) | Value::Husk(_) => return Err(MutationError::IsActive),
                Value::Tombstone => unreachable!("a tombstone is not live"),
            };
            (counter, version.expires_ms, version.headers.clone())
        }
    };
    counter.add(dot, delta).ok_or(MutationError::WouldOverflow)?;
    let origin = counter.origin;
    object.0.retain(|_, held| match &held.value {
        Value::Counter(other) => held.is_live(now) && other.origin != origin,
        _ => held.is_live(now),
    });
    if let Some(origin) = origin {
        object.0.remove(origin);
    }
    object.0.put(
        &VersionVector::default(),
        dot,
        Version { value: Value::Counter(counter), expires_ms, headers },
    );
    Ok(())
}

fn set_expiry(
    object: &mut Object,
    dot: Dot,
    at_ms: Option<u64>,
    condition: ExpiryCondition,
    now: u64,
) -> bool {
    let Some((_, version)) = object.newest_live(now) else {
        return false;
    };
    let old = version.expires_ms;
    let refused = condition.if_none && old.is_some()
        || condition.if_some && old.is_none()
        || condition.if_later && at_ms.unwrap_or(u64::MAX) <= old.unwrap_or(u64::MAX)
        || condition.if_earlier && at_ms.unwrap_or(u64::MAX) >= old.unwrap_or(u64::MAX)
        || at_ms.is_none() && old.is_none();
    if refused {
        return false;
    }
    let value = match &version.value {
        Value::Counter(counter) => Value::Counter(object.merged_counter(counter, now)),
        other => other.clone(),
    };
    let version = Version { value, expires_ms: at_ms, headers: version.headers.clone() };
    object.0.put(&object.context().clone(), dot, version);
    true
}

/// Parses an integer as Redis does: no spaces, no plus sign, no leading zeros.
pub fn parse_integer(bytes: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_canonical = match digits.as_bytes() {
        [b'0'] => digits.len() == text.len(),
        [first, rest @ ..] => (b'1'..=b'9').contains(first) && rest.iter().all(u8::is_ascii_digit),
        [] => false,
    };
    if is_canonical {
        text.parse().ok()
    } else {
        None
    }
}

/// Parses a finite decimal number.
pub fn parse_float(bytes: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number: f64 = text.parse().ok()?;
    number.is_finite().then_some(number)
}

/// The shortest decimal text of a number, without an exponent, as `INCRBYFLOAT` answers it.
pub fn format_float(number: f64) -> String {
    // Adding 0.0 turns -0.0 into 0.0.
    format!("{}", number + 0.0)
}
