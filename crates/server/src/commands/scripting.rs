//! `SCRIPT` and `FUNCTION`, as far as they make sense without scripts: there are none to list, and none to forget.

use super::errors::refusal;
use super::{reply, Call, Outcome};
use crate::resp::Value;

/// `SCRIPT FLUSH [ASYNC | SYNC]`
pub fn script_flush(call: &mut Call) -> Outcome {
    flush(call, "ERR SCRIPT FLUSH only support SYNC|ASYNC option")
}

/// `FUNCTION FLUSH [ASYNC | SYNC]`
pub fn function_flush(call: &mut Call) -> Outcome {
    flush(call, "ERR FUNCTION FLUSH only supports SYNC|ASYNC option")
}

fn flush(call: &Call, otherwise: &'static str) -> Outcome {
    match call.count() {
        2 => reply(Value::OK),
        3 if call.is(2, "async") || call.is(2, "sync") => reply(Value::OK),
        _ => Err(refusal(otherwise)),
    }
}

/// `SCRIPT EXISTS sha1 [sha1 ...]`
pub fn script_exists(call: &mut Call) -> Outcome {
    reply(Value::Array((2..call.count()).map(|_| Value::Integer(0)).collect()))
}

/// `FUNCTION LIST`
pub fn function_list(_: &mut Call) -> Outcome {
    reply(Value::Array(Vec::new()))
}
