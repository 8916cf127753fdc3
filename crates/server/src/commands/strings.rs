//! Commands on one value's bytes: `GET`, `SET` and their kin, counting, and their many-key forms.
//!
//! The pattern of every command: read the arguments, build one core operation, name the function that reads its answer.

use std::collections::HashMap;

use bytes::Bytes;
use oort_core::active::Ask;
use oort_core::client::{Reply, Request, Want};
use oort_core::mutation::{Basis, Condition, Expiry, ExpiryCondition, FloatText, Mutation};
use oort_core::types::ObjectKey;

use super::active::{call_operation, value_of_answer};
use super::arguments::{TimeForm, MILLIS, SECONDS};
use super::batch::{Batch, Gather};
use super::errors::{self, refusal, ACTIVE, SYNTAX};
use super::exchange::exchange;
use super::plan::{
    get_operation, newest_value, object, store, update_operation, updated, Finish, Given, AFTER, NOTHING,
};
use super::{one, request, Call, Outcome, Started};
use crate::resp::Value;

/// `GET key`
pub fn get(call: &mut Call) -> Outcome {
    one(call_operation(call.key(1)?, Ask::Get, Vec::new()), Finish::new(value_of_get))
}

fn value_of_get(answer: Reply, given: Given) -> Value {
    value_of_answer(answer, given.now_ms)
}

/// `SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`
pub fn set(call: &mut Call) -> Outcome {
    if call.count() == 3 {
        return put(call, call.command.bytes(2), Expiry::Default, Condition::Always, NOTHING, always_ok);
    }
    let (mut condition, mut keeps_expiry, mut wants_old) = (Condition::Always, false, false);
    let mut options = call.options(3);
    while let Some(word) = options.next_word() {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        match condition {
            Condition::IfAbsent | Condition::Always if is("nx") => condition = Condition::IfAbsent,
            Condition::IfPresent | Condition::Always if is("xx") => condition = Condition::IfPresent,
            _ if is("get") => wants_old = true,
            _ if is("keepttl") && !options.has_expiry() => keeps_expiry = true,
            _ if !keeps_expiry && options.take_expiry(word)? => {}
            _ => return Err(SYNTAX),
        }
    }
    let expiry = options.expiry(if keeps_expiry { Expiry::Keep } else { Expiry::Default })?;
    let value = call.command.bytes(2);
    match wants_old {
        true => exchange(call, store(value, expiry, condition)),
        false => put(call, value, expiry, condition, NOTHING, ok_if_applied),
    }
}

fn put(
    call: &Call,
    value: Bytes,
    expiry: Expiry,
    condition: Condition,
    want: Want,
    make: fn(Reply, Given) -> Value,
) -> Outcome {
    one(update_operation(call.key(1)?, store(value, expiry, condition), want), Finish::new(make))
}

fn always_ok(_: Reply, _: Given) -> Value {
    Value::OK
}

fn ok_if_applied(answer: Reply, _: Given) -> Value {
    match updated(answer).applied {
        true => Value::OK,
        false => Value::Null,
    }
}

fn one_if_applied(answer: Reply, _: Given) -> Value {
    Value::Integer(updated(answer).applied as i64)
}

/// What was just written, even if it has expired since: hence the time 0.
fn new_value(answer: Reply, _: Given) -> Value {
    updated(answer).after.map_or(Value::Null, |after| newest_value(&after, 0))
}

/// `SETNX key value`
pub fn setnx(call: &mut Call) -> Outcome {
    put(call, call.command.bytes(2), Expiry::Default, Condition::IfAbsent, NOTHING, one_if_applied)
}

/// `SETEX key seconds value`
pub fn setex(call: &mut Call) -> Outcome {
    set_with_expiry(call, SECONDS)
}

/// `PSETEX key milliseconds value`
pub fn psetex(call: &mut Call) -> Outcome {
    set_with_expiry(call, MILLIS)
}

fn set_with_expiry(call: &Call, form: TimeForm) -> Outcome {
    let expiry = Expiry::At(call.expiry(2, form)?);
    put(call, call.command.bytes(3), expiry, Condition::Always, NOTHING, always_ok)
}

/// `GETSET key value`
pub fn getset(call: &mut Call) -> Outcome {
    exchange(call, store(call.command.bytes(2), Expiry::Default, Condition::Always))
}

/// `GETDEL key`
pub fn getdel(call: &mut Call) -> Outcome {
    let delete = Mutation::Delete { basis: Basis::Local, condition: Condition::Always };
    exchange(call, delete)
}

/// `GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]`
pub fn getex(call: &mut Call) -> Outcome {
    let mut persists = false;
    let mut options = call.options(2);
    while let Some(word) = options.next_word() {
        match word.eq_ignore_ascii_case(b"persist") {
            true if !options.has_expiry() => persists = true,
            false if !persists && options.take_expiry(word)? => {}
            _ => return Err(SYNTAX),
        }
    }
    let at_ms = options.expiry_ms()?;
    if at_ms.is_none() && !persists {
        return get(call);
    }
    let change = Mutation::SetExpiry { at_ms, condition: ExpiryCondition::ALWAYS };
    exchange(call, change)
}

/// `STRLEN key`
pub fn strlen(call: &mut Call) -> Outcome {
    one(get_operation(call.key(1)?), Finish::new(length_of_get))
}

fn length_of_get(answer: Reply, given: Given) -> Value {
    let object = object(answer);
    if object.is_active(given.now_ms) {
        return ACTIVE;
    }
    let sibling = object.newest(given.now_ms);
    Value::Integer(sibling.map_or(0, |sibling| sibling.value.len() as i64))
}

/// `APPEND key value`
pub fn append(call: &mut Call) -> Outcome {
    let append = Mutation::Append { suffix: call.command.bytes(2) };
    one(update_operation(call.key(1)?, append, AFTER), Finish::new(new_length))
}

fn new_length(answer: Reply, given: Given) -> Value {
    match new_value(answer, given) {
        Value::Bulk(value) => Value::Integer(value.len() as i64),
        _ => Value::Integer(0),
    }
}

/// `SETRANGE key offset value`
pub fn setrange(call: &mut Call) -> Outcome {
    let offset = call.integer(2)?;
    let Ok(offset) = u64::try_from(offset) else {
        return Err(refusal("ERR offset is out of range"));
    };
    let patch = call.command.bytes(3);
    if patch.is_empty() {
        return one(get_operation(call.key(1)?), Finish::new(length_of_get));
    }
    let change = Mutation::SetRange { offset, patch };
    one(update_operation(call.key(1)?, change, AFTER), Finish::new(new_length))
}

/// `GETRANGE key start end`; also `SUBSTR`.
pub fn getrange(call: &mut Call) -> Outcome {
    let range = [call.integer(2)?, call.integer(3)?];
    one(get_operation(call.key(1)?), Finish::with(range_of_get, range))
}

fn range_of_get(answer: Reply, given: Given) -> Value {
    let object = object(answer);
    if object.is_active(given.now_ms) {
        return ACTIVE;
    }
    let value = object.newest(given.now_ms).map_or(Bytes::new(), |sibling| sibling.value);
    let length = value.len() as i64;
    let [start, end] = given.numbers;
    if start < 0 && end < 0 && start > end {
        return Value::Bulk(Bytes::new());
    }
    let from_end = |place: i64| if place < 0 { (length + place).max(0) } else { place };
    let (start, end) = (from_end(start), from_end(end).min(length - 1));
    match length > 0 && start <= end {
        true => Value::Bulk(value.slice(start as usize..=end as usize)),
        false => Value::Bulk(Bytes::new()),
    }
}

/// `INCR key`
pub fn incr(call: &mut Call) -> Outcome {
    add(call, 1)
}

/// `DECR key`
pub fn decr(call: &mut Call) -> Outcome {
    add(call, -1)
}

/// `INCRBY key increment`
pub fn incrby(call: &mut Call) -> Outcome {
    let delta = call.integer(2)?;
    add(call, delta)
}

/// `DECRBY key decrement`
pub fn decrby(call: &mut Call) -> Outcome {
    match call.integer(2)?.checked_neg() {
        Some(delta) => add(call, delta),
        None => Err(refusal("ERR decrement would overflow")),
    }
}

fn add(call: &Call, delta: i64) -> Outcome {
    let (request, finish) = addition(call.key(1)?, delta);
    Ok(Started::One { request, finish })
}

/// What adds `delta` to the counter `key`. A connection may make several of them one: see `connection::counting`.
pub fn addition(key: ObjectKey, delta: i64) -> (Request, Finish) {
    (request(update_operation(key, Mutation::Add { delta }, AFTER)), Finish::new(new_number))
}

fn new_number(answer: Reply, _: Given) -> Value {
    Value::Integer(number_after(answer))
}

/// The number that an addition left.
pub fn number_after(answer: Reply) -> i64 {
    let after = updated(answer).after.and_then(|after| after.newest(0));
    after.and_then(|sibling| sibling.counter).expect("an addition leaves a counter")
}

/// `INCRBYFLOAT key increment`
pub fn incrbyfloat(call: &mut Call) -> Outcome {
    let text = std::str::from_utf8(call.arg(2)).ok();
    let delta: Option<f64> = text.and_then(|text| text.parse().ok());
    let delta = match delta {
        None => return Err(refusal("ERR value is not a valid float")),
        Some(delta) if delta.is_nan() => return Err(refusal("ERR value is not a valid float")),
        Some(delta) if delta.is_infinite() => {
            return Err(refusal("ERR increment would produce NaN or Infinity"))
        }
        Some(delta) => delta,
    };
    let change = Mutation::AddFloat { delta: FloatText(delta) };
    one(update_operation(call.key(1)?, change, AFTER), Finish::new(new_value))
}

/// `MGET key [key ...]`
pub fn mget(call: &mut Call) -> Outcome {
    let keys = (1..call.count() as u32).collect();
    Batch::start(call, keys, Gather::Values { values: Vec::new(), bytes: 0 }, |batch, i| {
        call_operation(batch.key(i), Ask::Get, Vec::new())
    })
}

/// `MSET key value [key value ...]`
pub fn mset(call: &mut Call) -> Outcome {
    let keys = last_of_each(call)?;
    Batch::start(call, keys, Gather::AllOk, |batch, i| batch.store(i, Condition::Always))
}

/// `MSETNX key value [key value ...]`: looks whether any key exists, then stores those that still do not.
pub fn msetnx(call: &mut Call) -> Outcome {
    let keys = last_of_each(call)?;
    Batch::start(call, keys, Gather::NoneLive, |batch, i| get_operation(batch.key(i)))
}

/// The places of the keys of key-value pairs, of a repeated key only the last: pairs are stored concurrently.
fn last_of_each(call: &Call) -> Result<Vec<u32>, Value> {
    if call.count().is_multiple_of(2) {
        return Err(errors::wrong_arity(None, call.spec));
    }
    let mut last: HashMap<&[u8], u32> = HashMap::new();
    for i in (1..call.count()).step_by(2) {
        last.insert(call.arg(i), i as u32);
    }
    let mut places: Vec<u32> = last.into_values().collect();
    places.sort_unstable();
    Ok(places)
}
