//! Everything that can go wrong, in Redis's words where Redis has some.
//!
//! | prefix | what to do |
//! | --- | --- |
//! | `ERR` | fix the command |
//! | `NOQUORUM` | too few replicas answered in time, and a write may have been stored by some; or too few are
//! reachable, and nothing was asked: the text says which |
//! | `CLUSTERDOWN` | the node does not know a ring yet: try again |
//! | `MISCONF` | this node refuses writes (disk, clock); nothing was changed: try another node |
//! | `BUSY` | too many requests are waiting; nothing was changed: try later |
//! | `UNKNOWN` | the node that ran the write was lost: it may or may not have happened |
//! | `SHUTDOWN` | the node is stopping; nothing was changed: try another node |

use oort_core::client::{ActiveError, ClientError};
use oort_core::mutation::MutationError;
use oort_core::types::ObjectKey;

use super::table::Spec;
use crate::resp::request::Command;
use crate::resp::Value;

/// How much of a client's own words an error repeats, in bytes. As in Redis.
const ECHO_BYTES_MAX: usize = 128;

/// `ERR syntax error`.
pub const SYNTAX: Value = Value::error("ERR syntax error");
/// The command is for plain values.
pub const ACTIVE: Value =
    Value::error("WRONGTYPE Operation against a key holding the wrong kind of value: an active object");
/// The number cannot be read.
pub const NOT_AN_INTEGER: Value = Value::error("ERR value is not an integer or out of range");

/// An error whose text, with its prefix, is known at compile time or made on the spot.
pub fn refusal(text: impl Into<std::borrow::Cow<'static, str>>) -> Value {
    Value::Error(text.into())
}

/// The one place where the core's errors become replies.
pub fn error_value(error: &ClientError) -> Value {
    let prefix = match error {
        ClientError::Mutation(error) => return mutation_error(error),
        ClientError::Active(error) => active_prefix(error),
        ClientError::QuorumUnavailable { .. } | ClientError::TooFewReachable { .. } => "NOQUORUM",
        ClientError::NotReady => "CLUSTERDOWN",
        ClientError::ReadOnly { .. } | ClientError::ClockSkew { .. } => "MISCONF",
        ClientError::Busy { .. } => "BUSY",
        ClientError::OutcomeUnknown => "UNKNOWN",
        ClientError::Stopping => "SHUTDOWN",
        ClientError::InvalidQuorum { .. }
        | ClientError::InvalidTimeout { .. }
        | ClientError::InvalidContext
        | ClientError::Property(_)
        | ClientError::Ring(_) => "ERR",
    };
    refusal(format!("{prefix} {error}"))
}

/// As [`error_value`], of one key among several: what an active object answers says which of them it is.
pub fn error_of_key(error: &ClientError, key: &[u8]) -> Value {
    match error {
        ClientError::Active(active) => {
            refusal(format!("{} key '{}': {error}", active_prefix(active), shortened(key, ECHO_BYTES_MAX)))
        }
        other => error_value(other),
    }
}

fn active_prefix(error: &ActiveError) -> &'static str {
    match error {
        ActiveError::NotActive => "WRONGTYPE",
        ActiveError::Crowded { .. } | ActiveError::Rests { .. } => "BUSY",
        ActiveError::Refused { .. } => "REFUSED",
        ActiveError::Failed(_) => "ASOERR",
        ActiveError::TimedOut | ActiveError::Replaced => "UNKNOWN",
        ActiveError::NoCopy => "NOQUORUM",
        ActiveError::Missing
        | ActiveError::Forbidden
        | ActiveError::NoSandbox
        | ActiveError::Returned { .. }
        | ActiveError::CannotWait { .. }
        | ActiveError::CannotDelete { .. }
        | ActiveError::Reserved { .. } => "ERR",
    }
}

fn mutation_error(error: &MutationError) -> Value {
    match error {
        MutationError::IsActive => ACTIVE,
        MutationError::ValueTooLarge { .. } => {
            refusal(format!("ERR string exceeds maximum allowed size: {error}"))
        }
        _ => refusal(format!("ERR {error}")),
    }
}

/// A key of `bucket`. Errors: its length.
pub fn key(bucket: &[u8], key: &[u8]) -> Result<ObjectKey, Value> {
    ObjectKey::new(bucket, key).map_err(|error| refusal(format!("ERR {error}")))
}

/// As Redis 7 says it.
pub fn unknown_command(command: &Command) -> Value {
    let mut arguments = String::new();
    for argument in command.iter().skip(1) {
        if arguments.len() >= ECHO_BYTES_MAX {
            break;
        }
        let room = ECHO_BYTES_MAX - arguments.len();
        arguments.push_str(&format!("'{}' ", shortened(argument, room)));
    }
    let name = shortened(command.name(), ECHO_BYTES_MAX);
    refusal(format!("ERR unknown command '{name}', with args beginning with: {arguments}"))
}

/// As Redis 7 says it.
pub fn unknown_subcommand(container: &Spec, name: &[u8]) -> Value {
    refusal(format!(
        "ERR unknown subcommand '{}'. Try {} HELP.",
        shortened(name, ECHO_BYTES_MAX),
        container.name.to_ascii_uppercase()
    ))
}

/// As Redis says it.
pub fn wrong_arity(container: Option<&Spec>, spec: &Spec) -> Value {
    refusal(format!("ERR wrong number of arguments for '{}' command", full_name(container, spec)))
}

/// The name in lower case, a subcommand's behind its command's.
pub fn full_name(container: Option<&Spec>, spec: &Spec) -> String {
    match container {
        Some(container) => format!("{}|{}", container.name, spec.name),
        None => spec.name.into(),
    }
}

/// A client's own words, short and readable.
pub fn shortened(text: &[u8], bytes_max: usize) -> String {
    String::from_utf8_lossy(&text[..text.len().min(bytes_max)]).into_owned()
}
