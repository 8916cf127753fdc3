//! `VGET`, `VPUT` and `VDEL`: all siblings of a key, and writes that say what they have seen.
//!
//! All three answer the context and the live values, newest first. The context covers exactly the values beside it, so
//! a client that resolves what it sees and sends that context back replaces nothing it has not seen.

use oort_core::client::{Operation, Reply};
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::object::Object;

use super::errors::{refusal, SYNTAX};
use super::plan::{object, updated, Finish, Given, AFTER};
use super::{one, Call, Outcome};
use crate::resp::Value;
use crate::token;

/// `VGET key [R n]`
pub fn vget(call: &mut Call) -> Outcome {
    let mut options = call.options(2);
    while let Some(word) = options.next_word() {
        if !word.eq_ignore_ascii_case(b"r") || !options.take_quorum(word)? {
            return Err(SYNTAX);
        }
    }
    let quorum = options.quorum;
    one(Operation::Get { key: call.key(1)?, quorum }, Finish::new(versions_of_get))
}

/// `VPUT key value [CONTEXT c] [R n] [W n] [EX s | PX ms | EXAT s | PXAT ms]`
pub fn vput(call: &mut Call) -> Outcome {
    let mut basis = Basis::Unseen;
    let mut options = call.options(3);
    while let Some(word) = options.next_word() {
        if word.eq_ignore_ascii_case(b"context") {
            basis = seen(call.arg(options.value()?))?;
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
    one(
        Operation::Update { key: call.key(1)?, mutation, quorum, want: AFTER, caller: None },
        Finish::new(versions_after),
    )
}

/// `VDEL key [CONTEXT c] [R n] [W n]`
pub fn vdel(call: &mut Call) -> Outcome {
    let mut basis = Basis::Local;
    let mut options = call.options(2);
    while let Some(word) = options.next_word() {
        if word.eq_ignore_ascii_case(b"context") {
            basis = seen(call.arg(options.value()?))?;
        } else if !options.take_quorum(word)? {
            return Err(SYNTAX);
        }
    }
    let quorum = options.quorum;
    let mutation = Mutation::Delete { basis, condition: Condition::Always };
    one(
        Operation::Update { key: call.key(1)?, mutation, quorum, want: AFTER, caller: None },
        Finish::new(versions_after),
    )
}

fn seen(text: &[u8]) -> Result<Basis, Value> {
    match token::decode(text) {
        Ok(context) => Ok(Basis::Seen(context)),
        Err(error) => Err(refusal(format!("ERR {error}"))),
    }
}

fn versions_of_get(answer: Reply, given: Given) -> Value {
    versions(&object(answer), given.now_ms)
}

fn versions_after(answer: Reply, given: Given) -> Value {
    versions(&updated(answer).after.unwrap_or_default(), given.now_ms)
}

fn versions(object: &Object, now_ms: u64) -> Value {
    let values = object.siblings(now_ms).into_iter().map(|sibling| Value::Bulk(sibling.value)).collect();
    Value::Array(vec![Value::text(token::encode(object.context())), Value::Array(values)])
}
