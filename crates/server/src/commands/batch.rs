//! Commands that do the same with each of many keys: `MGET`, `MSET`, `DEL` and their kin.

use bytes::Bytes;
use oort_core::client::{Operation, Request};
use oort_core::mutation::{Condition, Expiry};
use oort_core::types::{ObjectKey, KEY_BYTES_MAX};

use super::active::value_of_answer;
use super::errors::{error_of_key, refusal, SYNTAX};
use super::plan::{object, store, update_operation, updated, Answer, Next, Plan, NOTHING};
use super::plan::{REPLY_BYTES_MAX, REQUESTS_MAX};
use super::{request, Call, Outcome, Started};
use crate::resp::request::Command;
use crate::resp::Value;

/// A command that does the same with many keys, [`REQUESTS_MAX`] at a time.
///
/// Requests are made when their round comes: a million keys at once would take many times the command's own memory.
pub struct Batch {
    command: Command,
    bucket: Bytes,
    /// The arguments that are keys.
    keys: Vec<u32>,
    /// How many of them were asked about.
    asked: usize,
    make: fn(&Batch, usize) -> Operation,
    gather: Gather,
}

/// What becomes of a batch's answers.
pub enum Gather {
    /// `MGET`: the values.
    Values { values: Vec<Value>, bytes: usize },
    /// `EXISTS`: how many are live.
    LiveCount(i64),
    /// `DEL`: how many updates were applied.
    AppliedCount(i64),
    /// `MSET`: that all went well.
    AllOk,
    /// The first half of `MSETNX`: go on if none is live.
    NoneLive,
    /// The second half: 1 if all were applied.
    AllApplied(bool),
}

impl Batch {
    /// Starts a batch over the arguments `keys`. Errors: a key's length; then nothing is asked.
    pub fn start(
        call: &Call,
        keys: Vec<u32>,
        gather: Gather,
        make: fn(&Batch, usize) -> Operation,
    ) -> Outcome {
        for &i in &keys {
            let length = call.arg(i as usize).len();
            if length == 0 || length > KEY_BYTES_MAX {
                return Err(call.key(i as usize).err().unwrap_or(SYNTAX));
            }
        }
        let bucket = call.session.bucket().clone();
        let mut batch = Batch { command: call.command.clone(), bucket, keys, asked: 0, make, gather };
        let requests = batch.round();
        assert!(!requests.is_empty(), "a batch has keys");
        Ok(Started::Many { requests, plan: Box::new(batch) })
    }

    /// Argument `i` as a key.
    pub fn key(&self, i: usize) -> ObjectKey {
        ObjectKey::new(&self.bucket, self.command.arg(i)).expect("lengths were checked at the start")
    }

    /// Stores argument `i + 1` under argument `i`.
    pub fn store(&self, i: usize, condition: Condition) -> Operation {
        let mutation = store(self.command.bytes(i + 1), Expiry::Default, condition);
        update_operation(self.key(i), mutation, NOTHING)
    }

    fn round(&mut self) -> Vec<Request> {
        let until = self.keys.len().min(self.asked + REQUESTS_MAX);
        let round = &self.keys[self.asked..until];
        let requests = round.iter().map(|&i| request((self.make)(self, i as usize))).collect();
        self.asked = until;
        requests
    }

    /// Takes the answer about the key at a place. Errors: the reply that ends the command early.
    fn take(&mut self, at: usize, answer: Answer, now_ms: u64) -> Result<(), Value> {
        let answer = answer.map_err(|error| {
            let key = self.command.arg(self.keys[at] as usize);
            error_of_key(&error, key)
        })?;
        match &mut self.gather {
            Gather::Values { values, bytes } => {
                let value = value_of_answer(answer, now_ms);
                if let Value::Bulk(value) = &value {
                    *bytes += value.len();
                }
                if *bytes > REPLY_BYTES_MAX {
                    return Err(refusal(format!(
                        "ERR reply exceeds {REPLY_BYTES_MAX} bytes: ask for fewer keys"
                    )));
                }
                values.push(value);
            }
            Gather::LiveCount(count) => *count += object(answer).is_live(now_ms) as i64,
            Gather::AppliedCount(count) => *count += updated(answer).applied as i64,
            Gather::AllOk => {}
            Gather::NoneLive => {
                if object(answer).is_live(now_ms) {
                    return Err(Value::Integer(0));
                }
            }
            Gather::AllApplied(all) => *all &= updated(answer).applied,
        }
        Ok(())
    }

    fn end(&mut self) -> Next {
        Next::Done(match &mut self.gather {
            Gather::Values { values, .. } => Value::Array(std::mem::take(values)),
            Gather::LiveCount(count) | Gather::AppliedCount(count) => Value::Integer(*count),
            Gather::AllOk => Value::OK,
            Gather::AllApplied(all) => Value::Integer(*all as i64),
            Gather::NoneLive => {
                self.gather = Gather::AllApplied(true);
                self.make = |batch, i| batch.store(i, Condition::IfAbsent);
                self.asked = 0;
                return Next::Ask(self.round());
            }
        })
    }
}

impl Plan for Batch {
    fn resume(&mut self, answers: Vec<Answer>, now_ms: u64) -> Next {
        let first = self.asked - answers.len();
        for (at, answer) in answers.into_iter().enumerate() {
            if let Err(early) = self.take(first + at, answer, now_ms) {
                return Next::Done(early);
            }
        }
        match self.asked < self.keys.len() {
            true => Next::Ask(self.round()),
            false => self.end(),
        }
    }
}
