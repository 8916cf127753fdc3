//! `RENAME` and `COPY`: reading one key and writing another, in rounds.
//!
//! All siblings are carried over, oldest first, so that the newest stays the newest and none is lost. The source of a
//! rename is deleted last, with the context that was read: a write to it in the meantime survives. Neither command is
//! atomic; a failure between the rounds can leave both keys, never none.

use std::collections::VecDeque;

use oort_core::causality::VersionVector;
use oort_core::client::Operation;
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::object::{self, Sibling, Version};
use oort_core::types::ObjectKey;

use super::errors::{self, error_value, refusal, ACTIVE, NOT_AN_INTEGER, SYNTAX};
use super::plan::{get_operation, object, update_operation, updated, Answer, Next, Plan, NOTHING};
use super::session::{bucket_of, DATABASES};
use super::{request, Call, Outcome, Started};
use crate::resp::Value;

/// `RENAME key newkey`
pub fn rename(call: &mut Call) -> Outcome {
    let (from, to) = (call.key(1)?, call.key(2)?);
    start(from, to, Kind::Rename, Condition::Always)
}

/// `RENAMENX key newkey`
pub fn renamenx(call: &mut Call) -> Outcome {
    let (from, to) = (call.key(1)?, call.key(2)?);
    start(from, to, Kind::RenameIfAbsent, Condition::IfAbsent)
}

/// `COPY source destination [DB destination-db] [REPLACE]`
pub fn copy(call: &mut Call) -> Outcome {
    let mut bucket = call.session.bucket().clone();
    let mut condition = Condition::IfAbsent;
    let mut options = call.options(3);
    while let Some(word) = options.next_word() {
        if word.eq_ignore_ascii_case(b"replace") {
            condition = Condition::Always;
        } else if word.eq_ignore_ascii_case(b"db") {
            let number = call.integer(options.value()?)?;
            bucket = bucket_of(database(number)?);
        } else {
            return Err(SYNTAX);
        }
    }
    let (from, to) = (call.key(1)?, errors::key(&bucket, call.arg(2))?);
    if from == to {
        return Err(refusal("ERR source and destination objects are the same"));
    }
    start(from, to, Kind::Copy, condition)
}

/// The bucket number a client named. Errors: out of range.
pub fn database(number: i64) -> Result<u16, Value> {
    match u16::try_from(number) {
        Ok(database) if database < DATABASES => Ok(database),
        _ if i32::try_from(number).is_err() => Err(NOT_AN_INTEGER),
        _ => Err(refusal("ERR DB index is out of range")),
    }
}

fn start(from: ObjectKey, to: ObjectKey, kind: Kind, condition: Condition) -> Outcome {
    let requests = vec![request(get_operation(from.clone()))];
    let stage = Stage::Read;
    let siblings = VecDeque::new();
    let seen = VersionVector::default();
    Ok(Started::Many {
        requests,
        plan: Box::new(Transfer { from, to, kind, condition, stage, siblings, seen }),
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Rename,
    RenameIfAbsent,
    Copy,
}

enum Stage {
    Read,
    /// Storing siblings; true: the first, whose condition decides.
    Store {
        is_first: bool,
    },
    Delete,
}

struct Transfer {
    from: ObjectKey,
    to: ObjectKey,
    kind: Kind,
    condition: Condition,
    stage: Stage,
    /// Siblings still to be stored, oldest first.
    siblings: VecDeque<Sibling>,
    /// The source's context.
    seen: VersionVector,
}

impl Plan for Transfer {
    fn resume(&mut self, answers: Vec<Answer>, now_ms: u64) -> Next {
        let answer = answers.into_iter().next().expect("each round has one request");
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Next::Done(error_value(&error)),
        };
        match self.stage {
            Stage::Read => {
                let object = self::object(answer);
                let is_active = |version: &Version| {
                    matches!(version.value, object::Value::Active(_) | object::Value::Husk(_))
                };
                if object.0.values().iter().any(|(_, one)| one.is_live(now_ms) && is_active(one)) {
                    return Next::Done(ACTIVE);
                }
                self.siblings = object.siblings(now_ms).into_iter().rev().collect();
                self.seen = object.context().clone();
                if self.siblings.is_empty() {
                    return Next::Done(self.missing());
                }
                if self.from == self.to {
                    return Next::Done(self.same());
                }
                self.store(true)
            }
            Stage::Store { is_first: true } if !updated(answer).applied => Next::Done(Value::Integer(0)),
            Stage::Store { .. } if !self.siblings.is_empty() => self.store(false),
            Stage::Store { .. } if self.kind == Kind::Copy => Next::Done(Value::Integer(1)),
            Stage::Store { .. } => {
                self.stage = Stage::Delete;
                let basis = Basis::Seen(std::mem::take(&mut self.seen));
                let delete = Mutation::Delete { basis, condition: Condition::Always };
                ask(update_operation(self.from.clone(), delete, NOTHING))
            }
            Stage::Delete if self.kind == Kind::RenameIfAbsent => Next::Done(Value::Integer(1)),
            Stage::Delete => Next::Done(Value::OK),
        }
    }
}

impl Transfer {
    fn missing(&self) -> Value {
        match self.kind {
            Kind::Copy => Value::Integer(0),
            _ => refusal("ERR no such key"),
        }
    }

    /// As in Redis, renaming a key to itself is fine, and never overwrites anything.
    fn same(&self) -> Value {
        match self.kind {
            Kind::RenameIfAbsent => Value::Integer(0),
            _ => Value::OK,
        }
    }

    fn store(&mut self, is_first: bool) -> Next {
        let sibling = self.siblings.pop_front().expect("a sibling is left");
        self.stage = Stage::Store { is_first };
        let (basis, condition) = match is_first {
            true => (Basis::Local, self.condition),
            false => (Basis::Unseen, Condition::Always),
        };
        let expiry = sibling.expires_ms.map_or(Expiry::Never, Expiry::At);
        let mutation =
            Mutation::Store { value: sibling.value, headers: sibling.headers, basis, expiry, condition };
        ask(update_operation(self.to.clone(), mutation, NOTHING))
    }
}

fn ask(operation: Operation) -> Next {
    Next::Ask(vec![request(operation)])
}
