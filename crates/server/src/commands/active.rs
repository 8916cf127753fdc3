//! `ASO`: active objects, whose code is created, called, looked at and renewed.

use std::sync::Arc;

use oort_core::active::{self, Ask, Call as ActiveCall};
use oort_core::client::{ActiveError, ClientError, Operation, Quorum, Reply, Want};
use oort_core::mutation::{Expiry, Mutation};
use oort_core::types::ObjectKey;

use super::errors::{error_value, refusal, shortened, SYNTAX};
use super::plan::{get_operation, newest_value, object, updated, Finish, Given};
use super::{one, reply, Call, Outcome};
use crate::resp::Value;

/// The most numbers of a coordinate.
const COORDINATE_MAX: usize = 16;

/// Asks what is under `key`, with the caller's arguments.
pub fn call_operation(key: ObjectKey, what: Ask, arguments: Vec<active::Value>) -> Operation {
    Operation::Call { key, call: ActiveCall { what, arguments, caller: None }, quorum: Quorum::default() }
}

/// What a get answers, active or not.
pub fn value_of_answer(answer: Reply, now_ms: u64) -> Value {
    match answer {
        Reply::Called(called) => value(called.value),
        other => newest_value(&object(other), now_ms),
    }
}

/// A value of Lua as a reply.
pub fn value(value: active::Value) -> Value {
    use active::Value as Lua;
    match value {
        Lua::Nil => Value::Null,
        Lua::Bool(truth) => Value::Boolean(truth),
        Lua::Integer(number) => Value::Integer(number),
        Lua::Number(number) => Value::Double(number),
        Lua::Bytes(bytes) => Value::Bulk(bytes.into()),
        Lua::Array(items) => Value::Array(items.into_iter().map(self::value).collect()),
        Lua::Map(entries) => Value::Map(
            entries.into_iter().map(|(name, item)| (self::value(name), self::value(item))).collect(),
        ),
    }
}

/// `ASO.PUT key source [EX s | PX ms | EXAT s | PXAT ms] [W n]`
pub fn put(call: &mut Call) -> Outcome {
    activate(call, false)
}

/// `ASO.RELOAD key source [W n]`
pub fn reload(call: &mut Call) -> Outcome {
    activate(call, true)
}

fn activate(call: &Call, keeps_state: bool) -> Outcome {
    let mut options = call.options(3);
    while let Some(word) = options.next_word() {
        let is_taken = options.take_quorum(word)? || !keeps_state && options.take_expiry(word)?;
        if !is_taken {
            return Err(SYNTAX);
        }
    }
    let expiry = options.expiry(Expiry::Default)?;
    let quorum = options.quorum;
    let mutation = Mutation::Activate { source: call.command.bytes(2), expiry, keeps_state };
    let operation =
        Operation::Update { key: call.key(1)?, mutation, quorum, want: Want::default(), caller: None };
    one(operation, Finish::new(ok))
}

fn ok(answer: Reply, _: Given) -> Value {
    updated(answer);
    Value::OK
}

/// `ASO.CALL key function [argument ...]`
pub fn call(call: &mut Call) -> Outcome {
    let function = call.command.bytes(2);
    let arguments = (3..call.count()).map(|i| active::Value::Bytes(call.arg(i).to_vec())).collect();
    one(call_operation(call.key(1)?, Ask::Function(function), arguments), Finish::new(called))
}

fn called(answer: Reply, given: Given) -> Value {
    value_of_answer(answer, given.now_ms)
}

/// `ASO.INFO key`
pub fn info(call: &mut Call) -> Outcome {
    one(call_operation(call.key(1)?, Ask::Info, Vec::new()), Finish::new(called))
}

/// `ASO.SOURCE key`
pub fn source(call: &mut Call) -> Outcome {
    one(get_operation(call.key(1)?), Finish::new(source_of_get))
}

fn source_of_get(answer: Reply, given: Given) -> Value {
    let object = object(answer);
    match object.active(given.now_ms) {
        Some(active) => Value::Bulk(active.source.clone()),
        None if object.is_live(given.now_ms) => not_active(ActiveError::NotActive),
        None => Value::Null,
    }
}

fn not_active(error: ActiveError) -> Value {
    error_value(&ClientError::Active(error))
}

/// `ASO.CALLER [COORDINATE number [number ...]] [REPLYKEY key]`: what objects see of this connection from now on.
pub fn caller(call: &mut Call) -> Outcome {
    let (mut coordinate, mut reply_key) = (Vec::new(), None);
    let mut i = 1;
    while i < call.count() {
        if call.is(i, "coordinate") && coordinate.is_empty() {
            i += 1;
            while let Some(number) = call.command.get(i).and_then(|_| number(call.arg(i))) {
                coordinate.push(active::Value::Number(number));
                i += 1;
            }
            if coordinate.is_empty() || coordinate.len() > COORDINATE_MAX {
                return Err(refusal(format!("ERR a coordinate has 1 to {COORDINATE_MAX} numbers")));
            }
        } else if call.is(i, "replykey") && i + 1 < call.count() {
            call.key(i + 1)?;
            reply_key = Some(call.command.bytes(i + 1));
            i += 2;
        } else {
            return Err(refusal(format!("ERR Unsupported option {}", shortened(call.arg(i), 128))));
        }
    }
    let caller = Arc::make_mut(&mut call.session.caller);
    caller.coordinate = (!coordinate.is_empty()).then_some(active::Value::Array(coordinate));
    caller.reply_key = reply_key;
    reply(Value::OK)
}

fn number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}
