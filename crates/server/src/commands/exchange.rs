//! Commands that answer what was there and change it: `GETSET`, `GETDEL`, `GETEX`, `SET ... GET`.
//!
//! An active object answers as it does a `GET`, and only its code knows how: so the key is asked first. A plain value
//! is answered as the change itself found it, in one step with it.

use oort_core::active::Ask;
use oort_core::client::Reply;
use oort_core::mutation::Mutation;
use oort_core::types::ObjectKey;

use super::active::{call_operation, value};
use super::errors::error_value;
use super::plan::{newest_value, update_operation, updated, Answer, Next, Plan, BEFORE};
use super::{request, Call, Outcome, Started};
use crate::resp::Value;

/// Answers what is under the key of a command, and applies `change`.
pub fn exchange(call: &Call, change: Mutation) -> Outcome {
    let key = call.key(1)?;
    let requests = vec![request(call_operation(key.clone(), Ask::Get, Vec::new()))];
    Ok(Started::Many { requests, plan: Box::new(Exchange { key, change: Some(change), answered: None }) })
}

struct Exchange {
    key: ObjectKey,
    /// Until it is asked for.
    change: Option<Mutation>,
    /// What an active object has answered.
    answered: Option<Value>,
}

impl Plan for Exchange {
    fn resume(&mut self, answers: Vec<Answer>, now_ms: u64) -> Next {
        let answer = match answers.into_iter().next().expect("each round has one request") {
            Ok(answer) => answer,
            Err(error) => return Next::Done(error_value(&error)),
        };
        if let Some(change) = self.change.take() {
            if let Reply::Called(called) = answer {
                self.answered = Some(value(called.value));
            }
            return Next::Ask(vec![request(update_operation(self.key.clone(), change, BEFORE))]);
        }
        let before = updated(answer).before;
        Next::Done(match (self.answered.take(), before) {
            (Some(answered), _) => answered,
            (None, Some(before)) => newest_value(&before, now_ms),
            (None, None) => Value::Null,
        })
    }
}
