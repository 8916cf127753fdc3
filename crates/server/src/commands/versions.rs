//! `VGET`, `VPUT` and `VDEL`: all siblings of a key, and writes that say what they have seen.
//!
//! All three answer the context and the live values, newest first. The context covers exactly the values beside it, so
//! a client that resolves what it sees and sends that context back replaces nothing it has not seen. The context of
//! another key is refused.

use oort_core::client::{Operation, Reply};
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::object::Object;
use oort_core::types::ObjectKey;

use super::errors::{refusal, SYNTAX};
use super::plan::{object, updated, Finish, Given, AFTER};
use super::{one, Call, Outcome};
use crate::resp::Value;
use crate::token::{self, Binding};

/// `VGET key [R n]`
pub fn vget(call: &mut Call) -> Outcome {
    let mut options = call.options(2);
    while let Some(word) = options.next_word() {
        if !word.eq_ignore_ascii_case(b"r") || !options.take_quorum(word)? {
            return Err(SYNTAX);
        }
    }
    let (key, quorum) = (call.key(1)?, options.quorum);
    let finish = finish(versions_of_get, &key);
    one(Operation::Get { key, quorum }, finish)
}

/// `VPUT key value [CONTEXT c] [R n] [W n] [EX s | PX ms | EXAT s | PXAT ms]`
pub fn vput(call: &mut Call) -> Outcome {
    let key = call.key(1)?;
    let mut basis = Basis::Unseen;
    let mut options = call.options(3);
    while let Some(word) = options.next_word() {
        if word.eq_ignore_ascii_case(b"context") {
            basis = seen(call.arg(options.value()?), &key)?;
        } else if !options.take_quorum(word)? && !options.take_expiry(word)? {
            return Err(SYNTAX);
        }
    }
    let (expiry, quorum) = (options.expiry(Expiry::Default)?, options.quorum);
    let mutation = Mutation::Store {
        value: call.command.bytes(2),
        headers: Vec::new(),
        basis,
        expiry,
        condition: Condition::Always,
    };
    let finish = finish(versions_after, &key);
    one(Operation::Update { key, mutation, quorum, want: AFTER, caller: None }, finish)
}

/// `VDEL key [CONTEXT c] [R n] [W n]`
pub fn vdel(call: &mut Call) -> Outcome {
    let key = call.key(1)?;
    let mut basis = Basis::Local;
    let mut options = call.options(2);
    while let Some(word) = options.next_word() {
        if word.eq_ignore_ascii_case(b"context") {
            basis = seen(call.arg(options.value()?), &key)?;
        } else if !options.take_quorum(word)? {
            return Err(SYNTAX);
        }
    }
    let quorum = options.quorum;
    let mutation = Mutation::Delete { basis, condition: Condition::Always };
    let finish = finish(versions_after, &key);
    one(Operation::Update { key, mutation, quorum, want: AFTER, caller: None }, finish)
}

/// `make` is given the binding of `key`'s contexts.
fn finish(make: fn(Reply, Given) -> Value, key: &ObjectKey) -> Finish {
    Finish::with(make, [Binding::of(key).0 as i64, 0])
}

fn seen(text: &[u8], key: &ObjectKey) -> Result<Basis, Value> {
    match token::decode(text, Binding::of(key)) {
        Ok(context) => Ok(Basis::Seen(context)),
        Err(error) => Err(refusal(format!("ERR {error}"))),
    }
}

fn versions_of_get(answer: Reply, given: Given) -> Value {
    versions(&object(answer), given)
}

fn versions_after(answer: Reply, given: Given) -> Value {
    versions(&updated(answer).after.unwrap_or_default(), given)
}

fn versions(object: &Object, given: Given) -> Value {
    let binding = Binding(given.numbers[0] as u32);
    let values =
        object.siblings(given.now_ms).into_iter().map(|sibling| Value::Bulk(sibling.value)).collect();
    Value::Array(vec![Value::text(token::encode(object.context(), binding)), Value::Array(values)])
}
