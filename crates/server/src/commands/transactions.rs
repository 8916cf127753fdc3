//! `MULTI`, `EXEC` and their kin, which are refused such that nothing runs that was meant to be part of a transaction.
//!
//! A client that sends `MULTI`, its commands and `EXEC` in one piece reads the first error only after all of them were
//! read here. So a refused `MULTI` also refuses what follows it, until `EXEC`, `DISCARD`, `RESET` or the end of the
//! connection: a client that is told that its transaction failed finds nothing changed.

use super::errors::refusal;
use super::table::{self, Spec};
use super::{reply, Call, Outcome};
use crate::resp::Value;

const REFUSED: Value = Value::error(
    "ERR MULTI is not supported: transactions are not offered, and commands until EXEC or DISCARD are not run",
);
const NOT_RUN: Value =
    Value::error("ERR not run: it follows a MULTI that was refused, up to EXEC or DISCARD");

/// `MULTI`
pub fn multi(call: &mut Call) -> Outcome {
    if call.session.is_refusing {
        return Err(refusal("ERR MULTI calls can not be nested"));
    }
    call.session.is_refusing = true;
    Err(REFUSED)
}

/// `EXEC`
pub fn exec(call: &mut Call) -> Outcome {
    match std::mem::take(&mut call.session.is_refusing) {
        true => Err(refusal("EXECABORT Transaction discarded because of previous errors.")),
        false => Err(refusal("ERR EXEC without MULTI")),
    }
}

/// `DISCARD`
pub fn discard(call: &mut Call) -> Outcome {
    match std::mem::take(&mut call.session.is_refusing) {
        true => reply(Value::OK),
        false => Err(refusal("ERR DISCARD without MULTI")),
    }
}

/// `WATCH key [key ...]`
pub fn watch(call: &mut Call) -> Outcome {
    match call.session.is_refusing {
        true => Err(refusal("ERR WATCH inside MULTI is not allowed")),
        false => Err(refusal("ERR WATCH is not supported: transactions are not offered")),
    }
}

/// `UNWATCH`: nothing is watched.
pub fn unwatch(_: &mut Call) -> Outcome {
    reply(Value::OK)
}

/// What a command is answered instead of being run, if the connection refuses it.
pub(super) fn refused(is_refusing: bool, spec: &Spec) -> Option<Value> {
    (is_refusing && spec.flags & table::ANYWHERE == 0).then_some(NOT_RUN)
}
