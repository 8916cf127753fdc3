//! Conditional writes and counters while all nodes see the same nodes as reachable: such commands on a key meet at its
//! home, and behave as on one server. So there is an order of them, and one of them and each single get.
//!
//! Nodes stand still now and then, for less time than makes them suspect; a node that is killed would be seen as gone
//! by one node before the other.

use oort::resp::Value;
use oort_sim::linear::RegisterAnswer::{Done, Refused};
use oort_sim::linear::RegisterOp::{Overwrite, Read, Replace, Swap};
use oort_sim::linear::{order_each, Counter, Operation, Register, RegisterAnswer, RegisterOp};

use super::clients::{number, values_in, with_clients, Heard, Session};
use super::{judge, pause_for, refuse, sleep_ms};
use crate::support::Cluster;

const CLIENTS: usize = 6;
/// Registers by the Redis protocol, by HTTP, and counters, in this order of keys.
const REDIS_KEYS: usize = 3;
const HTTP_KEYS: usize = 3;
const COUNTERS: usize = 2;

enum Record {
    Register(usize, Operation<Register>),
    Counter(usize, Operation<Counter>),
}

fn act(session: &mut Session) -> Option<Record> {
    let key = session.rng.below((REDIS_KEYS + HTTP_KEYS + COUNTERS) as u64) as usize;
    if key >= REDIS_KEYS + HTTP_KEYS {
        return count(session, key);
    }
    let start_us = session.now_us();
    let (op, heard) = match key < REDIS_KEYS {
        true => by_redis(session, &format!("register{key}")),
        false => by_http(session, key),
    };
    let end = end_of(session, heard)?;
    Some(Record::Register(key, Operation { client: session.number, op, start_us, end }))
}

/// The end of an operation; `None` if it changed nothing and answered nothing.
fn end_of<T>(session: &Session, heard: Heard<T>) -> Option<Option<(u64, T)>> {
    match heard {
        Heard::Answer(answer) => Some(Some((session.now_us(), answer))),
        Heard::Unknown => Some(None),
        Heard::Refused => None,
    }
}

fn by_redis(session: &mut Session, key: &str) -> (RegisterOp, Heard<RegisterAnswer>) {
    let fresh = session.fresh();
    let value = fresh.to_string();
    let shown = |value: Value| RegisterAnswer::Value(number(&value));
    let did = |value: Value| if value == Value::OK { Done } else { Refused };
    match session.rng.below(6) {
        0 | 1 => (Read, session.ask(&["GET", key]).map(shown)),
        2 => (Replace { from: 0, to: fresh }, session.ask(&["SET", key, &value, "NX"]).map(did)),
        3 => (Overwrite(fresh), session.ask(&["SET", key, &value, "XX"]).map(did)),
        4 => (Swap(fresh), session.ask(&["GETSET", key, &value]).map(shown)),
        _ => (Swap(0), session.ask(&["GETDEL", key]).map(shown)),
    }
}

/// A get, or a write on the condition that nothing was written since the client's last one. Tags stand for the values
/// that they came with.
fn by_http(session: &mut Session, key: usize) -> (RegisterOp, Heard<RegisterAnswer>) {
    let path = format!("/buckets/default/keys/register{key}?pr=2&pw=2");
    let (from, tag) = session.seen.get(&key).cloned().unwrap_or_default();
    if session.rng.below(2) == 0 {
        let heard = session.ask_http("GET", &path, "", "");
        let heard = heard.map(|answer| match answer.status {
            200 => (values_in(&answer.body)[0], answer.headers["etag"].clone()),
            404 => (0, String::new()),
            status => panic!("GET {path}: {status} {}", answer.body),
        });
        if let Heard::Answer(seen) = &heard {
            session.seen.insert(key, seen.clone());
        }
        return (Read, heard.map(|(value, _)| RegisterAnswer::Value(value)));
    }
    let to = session.fresh();
    let condition = match tag.is_empty() {
        true => "If-None-Match: *\r\n".to_owned(),
        false => format!("If-Match: {tag}\r\n"),
    };
    let heard = session.ask_http("PUT", &path, &condition, &format!("value={to};"));
    let heard = heard.map(|answer| match answer.status {
        201 | 204 => Done,
        412 => Refused,
        status => panic!("PUT {path}: {status} {}", answer.body),
    });
    (Replace { from, to }, heard)
}

fn count(session: &mut Session, key: usize) -> Option<Record> {
    let name = format!("counter{key}");
    let op = session.rng.below(3) as i64;
    let start_us = session.now_us();
    let heard = match op {
        0 => session.ask(&["GET", &name]),
        _ => session.ask(&["INCRBY", &name, &op.to_string()]),
    };
    let end = end_of(session, heard.map(|sum| number(&sum) as i64))?;
    Some(Record::Counter(key, Operation { client: session.number, op, start_us, end }))
}

#[test]
fn conditional_writes_and_counters_meet_at_one_home() {
    let mut cluster = Cluster::start(3, &["--suspect-ms", "10000"]);
    let record = with_clients(&mut cluster, CLIENTS, act, |cluster| {
        sleep_ms(500);
        for node in 0..3 {
            pause_for(cluster, node, 400);
            sleep_ms(300);
        }
    });
    assert!(record.len() > 500, "only {} operations", record.len());
    for key in 0..REDIS_KEYS + HTTP_KEYS + COUNTERS {
        let mut registers = Vec::new();
        let mut counters = Vec::new();
        for one in &record {
            match one {
                Record::Register(of, operation) if *of == key => registers.push(operation.clone()),
                Record::Counter(of, operation) if *of == key => counters.push(operation.clone()),
                Record::Register(..) | Record::Counter(..) => {}
            }
        }
        judge_writes(&format!("register{key}"), &registers, |op| *op == Read);
        judge_writes(&format!("counter{key}"), &counters, |op| *op == 0);
    }
}

/// Fails unless the writes have an order, and with each read.
fn judge_writes<M: oort_sim::linear::Model>(
    name: &str,
    history: &[Operation<M>],
    is_read: impl Fn(&M::Op) -> bool,
) {
    let writes: Vec<_> = history.iter().filter(|one| !is_read(&one.op)).cloned().collect();
    let verdict = judge(name, &writes);
    let verdict = verdict.and_then(|()| order_each(history, is_read).map_err(|refusal| refusal.to_string()));
    verdict.unwrap_or_else(|why| refuse(name, history, &why));
}
