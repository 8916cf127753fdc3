//! Commands on the connection itself: `PING`, `HELLO`, `AUTH`, `SELECT` and the like.

use super::arguments::integer;
use super::errors::{self, refusal, shortened};
use super::rename::database;
use super::server::REDIS_VERSION;
use super::{clients, reply, Call, Outcome, Started};
use crate::resp::{Protocol, Value};

/// The only user there is.
const DEFAULT_USER: &[u8] = b"default";
const WRONG_PASS: Value = Value::error("WRONGPASS invalid username-password pair or user is disabled.");

/// `PING [message]`
pub fn ping(call: &mut Call) -> Outcome {
    match call.count() {
        1 => reply(Value::Simple("PONG".into())),
        2 => reply(Value::Bulk(call.command.bytes(1))),
        _ => Err(errors::wrong_arity(None, call.spec)),
    }
}

/// `ECHO message`
pub fn echo(call: &mut Call) -> Outcome {
    reply(Value::Bulk(call.command.bytes(1)))
}

/// `QUIT`
pub fn quit(_: &mut Call) -> Outcome {
    Ok(Started::Close(Value::OK))
}

/// `RESET`
pub fn reset(call: &mut Call) -> Outcome {
    call.session.reset();
    reply(Value::Simple("RESET".into()))
}

/// `SELECT index`
pub fn select(call: &mut Call) -> Outcome {
    let database = database(call.integer(1)?)?;
    call.session.select(database);
    reply(Value::OK)
}

/// `READONLY`, `READWRITE`, `ASKING`: nothing to switch, since every node serves every key.
pub fn ok(_: &mut Call) -> Outcome {
    reply(Value::OK)
}

/// `AUTH [username] password`: there are no passwords, so only the user `default` can be named.
pub fn auth(call: &mut Call) -> Outcome {
    match call.count() {
        2 => Err(refusal(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?",
        )),
        _ if call.arg(1) == DEFAULT_USER => {
            call.session.set_user(DEFAULT_USER);
            reply(Value::OK)
        }
        _ => Err(WRONG_PASS),
    }
}

/// `HELLO [protover [AUTH username password] [SETNAME clientname]]`
pub fn hello(call: &mut Call) -> Outcome {
    let mut protocol = call.session.protocol;
    if call.count() > 1 {
        protocol = match integer(call.arg(1)) {
            Ok(2) => Protocol::Resp2,
            Ok(3) => Protocol::Resp3,
            Ok(_) => return Err(refusal("NOPROTO unsupported protocol version")),
            Err(_) => return Err(refusal("ERR Protocol version is not an integer or out of range")),
        };
    }
    let (mut name, mut user) = (None, None);
    let mut i = 2;
    while i < call.count() {
        let left = call.count() - i - 1;
        if call.is(i, "auth") && left >= 2 {
            if call.arg(i + 1) != DEFAULT_USER {
                return Err(WRONG_PASS);
            }
            user = Some(DEFAULT_USER);
            i += 3;
        } else if call.is(i, "setname") && left >= 1 {
            clients::check_name(call.arg(i + 1), "Client names")?;
            name = Some(call.command.bytes(i + 1));
            i += 2;
        } else {
            let option = shortened(call.arg(i), 128);
            return Err(refusal(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    call.session.protocol = protocol;
    if let Some(user) = user {
        call.session.set_user(user);
    }
    if let Some(name) = name {
        call.session.name = name;
    }
    let version = if protocol == Protocol::Resp3 { 3 } else { 2 };
    reply(Value::Map(vec![
        (Value::name("server"), Value::name("redis")),
        (Value::name("version"), Value::name(REDIS_VERSION)),
        (Value::name("proto"), Value::Integer(version)),
        (Value::name("id"), Value::Integer(call.session.id as i64)),
        (Value::name("mode"), Value::name("cluster")),
        (Value::name("role"), Value::name("master")),
        (Value::name("modules"), Value::Array(Vec::new())),
    ]))
}
