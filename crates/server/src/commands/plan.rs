//! Turning the core's answers into replies: one answer by a function, several by a plan of rounds.

use bytes::Bytes;
use oort_core::client::{ClientError, Operation, Page, Quorum, Reply, Request, Updated, Want};
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::object::Object;
use oort_core::types::ObjectKey;

use super::errors::{error_value, ACTIVE};
use crate::resp::Value;

/// The most requests of one round.
pub const REQUESTS_MAX: usize = 256;
/// The most bytes a command gathers for its reply: beyond, it answers an error instead.
pub const REPLY_BYTES_MAX: usize = 256 << 20;

/// What the core answered to one request.
pub type Answer = Result<Reply, ClientError>;

/// Turns the answer to one request into a reply.
#[derive(Clone, Copy)]
pub struct Finish {
    make: fn(Reply, Given) -> Value,
    given: Given,
    is_silent: bool,
}

/// What a [`Finish`] knows beside the answer.
#[derive(Clone, Copy, Default)]
pub struct Given {
    /// When the answer came, in milliseconds since 1970.
    pub now_ms: u64,
    /// Whatever the command put there.
    pub numbers: [i64; 2],
}

impl Finish {
    /// `make` gets the answer unless it is an error.
    pub fn new(make: fn(Reply, Given) -> Value) -> Finish {
        Finish { make, given: Given::default(), is_silent: false }
    }

    /// As [`Finish::new`], with numbers for `make`.
    pub fn with(make: fn(Reply, Given) -> Value, numbers: [i64; 2]) -> Finish {
        Finish { make, given: Given { now_ms: 0, numbers }, is_silent: false }
    }

    /// The same for a client that wants no reply.
    pub(super) fn silent(self) -> Finish {
        Finish { is_silent: true, ..self }
    }

    /// The reply. `now_ms` is when the answer came, in milliseconds since 1970.
    pub fn reply(self, answer: Answer, now_ms: u64) -> Value {
        if self.is_silent {
            return Value::Nothing;
        }
        match answer {
            Ok(reply) => (self.make)(reply, Given { now_ms, ..self.given }),
            Err(error) => error_value(&error),
        }
    }
}

impl Finish {
    /// The reply to an addition that left `number`.
    pub fn number(self, number: i64) -> Value {
        match self.is_silent {
            true => Value::Nothing,
            false => Value::Integer(number),
        }
    }
}

/// A command that takes several requests.
pub trait Plan: Send {
    /// Takes a round's answers, in the order of its requests.
    fn resume(&mut self, answers: Vec<Answer>, now_ms: u64) -> Next;

    /// How it lists a whole bucket, if it does: few listings run at once.
    fn listing(&self) -> Option<ListingKind> {
        None
    }
}

/// What becomes of a listing whose client goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListingKind {
    /// It ends: nobody would read the reply.
    Reads,
    /// It goes on: what the client asked for is done.
    Deletes,
}

/// How a plan goes on.
pub enum Next {
    /// The reply is known.
    Done(Value),
    /// Another round: 1 to [`REQUESTS_MAX`] requests, which may run concurrently.
    Ask(Vec<Request>),
}

/// A plan whose reply nobody wants.
pub(super) struct Silent(pub Box<dyn Plan>);

impl Plan for Silent {
    fn resume(&mut self, answers: Vec<Answer>, now_ms: u64) -> Next {
        match self.0.resume(answers, now_ms) {
            Next::Done(_) => Next::Done(Value::Nothing),
            ask => ask,
        }
    }

    fn listing(&self) -> Option<ListingKind> {
        self.0.listing()
    }
}

/// No state of the object.
pub const NOTHING: Want = Want { before: false, after: false };
/// The state before the update.
pub const BEFORE: Want = Want { before: true, after: false };
/// The state after the update.
pub const AFTER: Want = Want { before: false, after: true };

/// Reads `key` with the bucket's quorum.
pub fn get_operation(key: ObjectKey) -> Operation {
    Operation::Get { key, quorum: Quorum::default() }
}

/// Changes `key` with the bucket's quorum.
pub fn update_operation(key: ObjectKey, mutation: Mutation, want: Want) -> Operation {
    Operation::Update { key, mutation, quorum: Quorum::default(), want, caller: None }
}

/// Replaces what the coordinating replica holds.
pub fn store(value: Bytes, expiry: Expiry, condition: Condition) -> Mutation {
    Mutation::Store { value, headers: Vec::new(), basis: Basis::Local, expiry, condition }
}

/// Deletes what the coordinating replica holds after reading the others.
pub fn delete() -> Mutation {
    Mutation::Delete { basis: Basis::Local, condition: Condition::Always }
}

/// The object of a get's answer.
pub fn object(reply: Reply) -> Object {
    match reply {
        Reply::Object(object) => object,
        other => panic!("a get was answered with {other:?}"),
    }
}

/// The outcome of an update's answer.
pub fn updated(reply: Reply) -> Updated {
    match reply {
        Reply::Updated(updated) => updated,
        other => panic!("an update was answered with {other:?}"),
    }
}

/// The page of a scan's answer.
pub fn page(reply: Reply) -> Page {
    match reply {
        Reply::Page(page) => page,
        other => panic!("a scan was answered with {other:?}"),
    }
}

/// The newest live value, or null. An active object answers for itself: nobody gets its source by accident.
pub fn newest_value(object: &Object, now_ms: u64) -> Value {
    match object.newest(now_ms) {
        Some(_) if object.is_active(now_ms) => ACTIVE,
        Some(sibling) => Value::Bulk(sibling.value),
        None => Value::Null,
    }
}
