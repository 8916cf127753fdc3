//! The Redis commands: each is translated to requests of the core, and their answers to a reply. No I/O.
//!
//! A connection hands each [`Command`] to [`start`] with its [`Session`]. Most commands become one request
//! ([`Started::One`]) whose answer a [`Finish`] turns into the reply without a further allocation. Commands over many
//! keys or many steps become a [`Plan`]: a round of requests, which may run concurrently, then the next, until the
//! reply is known. What needs no core is answered at once. Redis evaluates a command in one place at one moment; what
//! that becomes when replicas diverge is written, command by command, in `docs/redis.md`.
//!
//! Read [`table`] for what there is, then [`strings`] for the pattern that every command follows.

pub mod session;
pub mod knobs;
pub mod view;
pub mod errors;
pub mod plan;
pub mod arguments;
pub mod glob;
pub mod active;
pub mod batch;
pub mod exchange;
pub mod strings;
pub mod keys;
pub mod rename;
pub mod listing;
pub mod versions;
pub mod buckets;
pub mod ring;
pub mod connection;
pub mod transactions;
pub mod scripting;
pub mod clients;
pub mod server;
pub mod cluster;
pub mod describe;
pub mod table;
pub mod stats;
#[cfg(test)]
mod tests;

use oort_core::client::{Operation, Request};
use oort_core::mutation::Mutation;
use oort_core::types::ObjectKey;

use crate::resp::request::Command;
use crate::resp::Value;
use errors::refusal;
use plan::{Finish, Plan, Silent};
use session::Session;
use stats::Mark;
use table::Spec;
use view::View;

/// What a command asks for first.
pub enum Started {
    /// The reply is known. Encode it in [`Session::protocol`] as it is after [`start`].
    Reply(Value),
    /// One request; its answer goes to [`Finish::reply`].
    One { request: Request, finish: Finish },
    /// 1 to [`plan::REQUESTS_MAX`] requests, which may run concurrently; their answers, in order, go to
    /// [`Plan::resume`].
    Many { requests: Vec<Request>, plan: Box<dyn Plan> },
    /// The reply, after which the connection must be closed.
    Close(Value),
}

/// What a command's function returns; errors are replies too.
pub type Outcome = Result<Started, Value>;

/// One command being started.
pub struct Call<'a> {
    pub session: &'a mut Session,
    pub command: Command,
    pub view: &'a dyn View,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    pub spec: &'static Spec,
    /// The command whose subcommand `spec` is.
    pub container: Option<&'static Spec>,
}

/// Starts one command of a connection.
///
/// Replies of one connection must be sent in the order of its commands. A reply that comes later is encoded in the
/// protocol the session had right after its own `start`.
pub fn start(session: &mut Session, command: Command, view: &dyn View, now_ms: u64) -> Started {
    session.begin_command();
    let started = match table::find(command.name()) {
        None => {
            session.mark = Mark::NONE;
            unknown(&command)
        }
        Some(spec) if !spec.accepts(command.len()) => {
            session.mark = Mark::new(spec).rejected();
            Started::Reply(errors::wrong_arity(None, spec))
        }
        Some(spec) => {
            session.mark = Mark::new(spec);
            if let Some(refusal) = transactions::refused(session.is_refusing, spec) {
                session.mark = session.mark.rejected();
                return silenced(session, Started::Reply(refusal));
            }
            session.note_command(spec.name, now_ms);
            session.family = spec.group;
            let mut call = Call { session: &mut *session, command, view, now_ms, spec, container: None };
            (spec.run)(&mut call).unwrap_or_else(Started::Reply)
        }
    };
    silenced(session, introduce(session, started))
}

fn silenced(session: &Session, started: Started) -> Started {
    match session.is_silent() {
        false => started,
        true => silence(started),
    }
}

fn unknown(command: &Command) -> Started {
    // A browser tricked into sending a form to this port must not have its body run as commands. As in Redis.
    let name = command.name();
    let is_http = name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:");
    match is_http {
        true => Started::Close(refusal("ERR this port speaks the Redis protocol, not HTTP")),
        false => Started::Reply(errors::unknown_command(command)),
    }
}

/// Says who asks, to active objects that care.
fn introduce(session: &Session, mut started: Started) -> Started {
    let introduce = |request: &mut Request| match &mut request.operation {
        Operation::Call { call, .. } => call.caller = Some(session.caller.clone()),
        Operation::Update {
            mutation: Mutation::Store { .. } | Mutation::Activate { .. }, caller, ..
        } => *caller = Some(session.caller.clone()),
        _ => {}
    };
    match &mut started {
        Started::One { request, .. } => introduce(request),
        Started::Many { requests, .. } => requests.iter_mut().for_each(introduce),
        Started::Reply(_) | Started::Close(_) => {}
    }
    started
}

fn silence(started: Started) -> Started {
    match started {
        Started::Reply(_) => Started::Reply(Value::Nothing),
        Started::One { request, finish } => Started::One { request, finish: finish.silent() },
        Started::Many { requests, plan } => Started::Many { requests, plan: Box::new(Silent(plan)) },
        Started::Close(_) => Started::Close(Value::Nothing),
    }
}

impl Call<'_> {
    /// Argument `i`; the table's arity says that it is there.
    pub fn arg(&self, i: usize) -> &[u8] {
        self.command.arg(i)
    }

    /// The number of arguments, the name included.
    pub fn count(&self) -> usize {
        self.command.len()
    }

    /// True if argument `i` is the word `word`, in any case.
    pub fn is(&self, i: usize, word: &str) -> bool {
        self.arg(i).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Argument `i` as a key of the selected bucket.
    pub fn key(&self, i: usize) -> Result<ObjectKey, Value> {
        errors::key(self.session.bucket(), self.arg(i))
    }

    /// The command's name in lower case as Redis writes it in errors, such as `client|setname`.
    pub fn name(&self) -> String {
        errors::full_name(self.container, self.spec)
    }
}

/// A request with the node's default time limit.
pub fn request(operation: Operation) -> Request {
    Request { operation, timeout_ms: None }
}

/// One request and what to do with its answer.
pub fn one(operation: Operation, finish: Finish) -> Outcome {
    Ok(Started::One { request: request(operation), finish })
}

/// A reply known at once.
pub fn reply(value: Value) -> Outcome {
    Ok(Started::Reply(value))
}
