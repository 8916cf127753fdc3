//! `CLIENT`: what a connection says about itself, and who else is connected.

use bytes::Bytes;

use super::arguments::integer;
use super::errors::{refusal, shortened, SYNTAX};
use super::session::{Replies, Session, CLIENT_NAME_BYTES_MAX};
use super::{reply, Call, Outcome};
use crate::resp::{Protocol, Value};

/// `CLIENT ID`
pub fn id(call: &mut Call) -> Outcome {
    reply(Value::Integer(call.session.id as i64))
}

/// `CLIENT GETNAME`
pub fn getname(call: &mut Call) -> Outcome {
    reply(match call.session.name.is_empty() {
        true => Value::Null,
        false => Value::Bulk(call.session.name.clone()),
    })
}

/// `CLIENT SETNAME name`
pub fn setname(call: &mut Call) -> Outcome {
    check_name(call.arg(2), "Client names")?;
    call.session.name = kept(call.arg(2));
    reply(Value::OK)
}

/// `CLIENT SETINFO LIB-NAME name`, `CLIENT SETINFO LIB-VER version`
pub fn setinfo(call: &mut Call) -> Outcome {
    let value = kept(call.arg(3));
    if call.is(2, "lib-name") {
        check_name(call.arg(3), "lib-name")?;
        call.session.library_name = value;
    } else if call.is(2, "lib-ver") {
        check_name(call.arg(3), "lib-ver")?;
        call.session.library_version = value;
    } else {
        return Err(refusal(format!("ERR Unrecognized option '{}'", shortened(call.arg(2), 128))));
    }
    reply(Value::OK)
}

/// Errors: characters that would break the lines of `CLIENT LIST`, or too long.
pub fn check_name(name: &[u8], what: &str) -> Result<(), Value> {
    if name.len() > CLIENT_NAME_BYTES_MAX {
        return Err(refusal(format!("ERR {what} cannot be longer than {CLIENT_NAME_BYTES_MAX} bytes.")));
    }
    match name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        true => Ok(()),
        false => Err(refusal(format!("ERR {what} cannot contain spaces, newlines or special characters."))),
    }
}

/// A copy that does not hold on to the connection's read buffer.
fn kept(text: &[u8]) -> Bytes {
    Bytes::copy_from_slice(text)
}

/// `CLIENT INFO`
pub fn info(call: &mut Call) -> Outcome {
    reply(Value::Verbatim(*b"txt", line(call.session, call.now_ms).into()))
}

/// `CLIENT LIST [TYPE type] [ID id [id ...]]`
pub fn list(call: &mut Call) -> Outcome {
    let mut ids: Option<Vec<i64>> = None;
    let mut is_normal = true;
    if call.count() > 2 && call.is(2, "type") && call.count() == 4 {
        is_normal = match call.arg(3).to_ascii_lowercase().as_slice() {
            b"normal" => true,
            b"master" | b"replica" | b"slave" | b"pubsub" => false,
            _ => return Err(refusal(format!("ERR Unknown client type '{}'", shortened(call.arg(3), 128)))),
        };
    } else if call.count() > 3 && call.is(2, "id") {
        let parsed: Result<_, Value> = (3..call.count()).map(|i| integer(call.arg(i))).collect();
        ids = Some(parsed.map_err(|_| refusal("ERR Invalid client ID"))?);
    } else if call.count() > 2 {
        return Err(SYNTAX);
    }
    let mut text = String::new();
    let mut add = |session: &Session| {
        let is_wanted = ids.as_ref().is_none_or(|ids| ids.contains(&(session.id as i64)));
        if is_normal && is_wanted {
            text.push_str(&line(session, call.now_ms));
        }
    };
    add(call.session);
    call.view.sessions(&mut add);
    reply(Value::Verbatim(*b"txt", text.into()))
}

fn line(session: &Session, now_ms: u64) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags=N db={} sub=0 psub=0 ssub=0 multi=-1 qbuf=0 \
         qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd={} user=default \
         redir=-1 resp={} lib-name={} lib-ver={}\n",
        session.id,
        session.address,
        session.local_address,
        text(&session.name),
        now_ms.saturating_sub(session.connected_ms) / 1000,
        now_ms.saturating_sub(session.last_ms()) / 1000,
        session.database(),
        session.last_command(),
        if session.protocol == Protocol::Resp3 { 3 } else { 2 },
        text(&session.library_name),
        text(&session.library_version),
    )
}

/// `CLIENT REPLY ON | OFF | SKIP`
pub fn reply_mode(call: &mut Call) -> Outcome {
    let (replies, value) = match call.arg(2).to_ascii_lowercase().as_slice() {
        b"on" => (Replies::On, Value::OK),
        b"off" => (Replies::Off, Value::Nothing),
        b"skip" => (Replies::SkipNext, Value::Nothing),
        _ => return Err(SYNTAX),
    };
    call.session.set_replies(replies);
    reply(value)
}

/// `CLIENT NO-EVICT ON | OFF`
pub fn no_evict(call: &mut Call) -> Outcome {
    call.session.no_evict = on_or_off(call)?;
    reply(Value::OK)
}

/// `CLIENT NO-TOUCH ON | OFF`
pub fn no_touch(call: &mut Call) -> Outcome {
    call.session.no_touch = on_or_off(call)?;
    reply(Value::OK)
}

fn on_or_off(call: &Call) -> Result<bool, Value> {
    match (call.is(2, "on"), call.is(2, "off")) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(SYNTAX),
    }
}

/// `CLIENT GETREDIR`
pub fn getredir(_: &mut Call) -> Outcome {
    reply(Value::Integer(-1))
}
