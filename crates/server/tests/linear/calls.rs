//! Calls of active objects: with `aso_durability = quorum` an answered call is never undone, so there is an order of
//! all calls, whatever happens to the nodes.

use oort::resp::Value;
use oort_sim::linear::RegisterAnswer::{Done, Refused};
use oort_sim::linear::RegisterOp::{Read, Replace, Swap};
use oort_sim::linear::{Operation, Register, RegisterAnswer};

use super::clients::{number, with_clients, Heard, Session};
use super::{judge, kill_for, refuse, sleep_ms, trouble};
use crate::support::Cluster;

/// A register whose changes stand in a plain field.
const REGISTER: &str = "aso.value = '0'
function swap(value) local before = self.value self.value = value return before end
function replace(from, to) if self.value ~= from then return false end self.value = to return true end
function read() return self.value end";

const CLIENTS: usize = 6;

type Record = (usize, Operation<Register>);

/// A cluster with an object under each of the keys `object0` and so on.
fn with_objects(keys: usize, durability: &str) -> Cluster {
    let cluster = Cluster::start(3, &[]);
    let node = &cluster.nodes[0];
    assert_eq!(node.call(&["BUCKET", "SET", "default", "aso_durability", durability]), Value::OK);
    for key in 0..keys {
        assert_eq!(node.call(&["ASO.PUT", &format!("object{key}"), REGISTER]), Value::OK);
    }
    // The bucket's properties reach all nodes within a second.
    sleep_ms(1000);
    cluster
}

/// One call of a random object.
fn call(session: &mut Session, keys: usize) -> Option<Record> {
    let key = session.rng.below(keys as u64) as usize;
    let op = match session.rng.below(3) {
        0 => Read,
        1 => Swap(session.fresh()),
        _ => Replace { from: session.seen.get(&key).map_or(0, |(value, _)| *value), to: session.fresh() },
    };
    let name = format!("object{key}");
    let start_us = session.now_us();
    let ask = |session: &mut Session, call: &[&str]| session.ask(&[&["ASO.CALL", &name], call].concat());
    let heard = match op {
        Swap(value) => ask(session, &["swap", &value.to_string()]).map(|value| shown(&value)),
        Replace { from, to } => {
            let did = ask(session, &["replace", &from.to_string(), &to.to_string()]);
            did.map(|value| if number(&value) == 1 { Done } else { Refused })
        }
        _ => ask(session, &["read"]).map(|value| shown(&value)),
    };
    let end_us = session.now_us();
    match (&heard, op) {
        (Heard::Answer(_), Swap(value)) | (Heard::Answer(Done), Replace { to: value, .. }) => {
            session.seen.insert(key, (value, String::new()));
        }
        (Heard::Answer(RegisterAnswer::Value(value)), Read) => {
            session.seen.insert(key, (*value, String::new()));
        }
        _ => {}
    }
    let end = match heard {
        Heard::Answer(answer) => Some((end_us, answer)),
        Heard::Unknown => None,
        Heard::Refused => return None,
    };
    Some((key, Operation { client: session.number, op, start_us, end }))
}

fn shown(value: &Value) -> RegisterAnswer {
    RegisterAnswer::Value(number(value))
}

fn of_key(record: &[Record], key: usize) -> Vec<Operation<Register>> {
    record.iter().filter(|(of, _)| *of == key).map(|(_, operation)| operation.clone()).collect()
}

#[test]
fn answered_calls_have_an_order_whatever_happens() {
    const KEYS: usize = 6;
    let mut cluster = with_objects(KEYS, "quorum");
    let record = with_clients(&mut cluster, CLIENTS, |session| call(session, KEYS), trouble);
    let answered = record.iter().filter(|(_, operation)| operation.end.is_some()).count();
    assert!(answered > 500, "only {answered} of {} calls were answered", record.len());
    for key in 0..KEYS {
        let history = of_key(&record, key);
        let name = format!("object{key}");
        judge(&name, &history).unwrap_or_else(|why| refuse(&name, &history, &why));
        // An answer that was never given makes it wrong.
        let mut forged = history.clone();
        let mut swaps = forged.iter_mut().filter(|one| matches!(one.op, Swap(_)));
        let Some((_, answer)) = swaps.find_map(|one| one.end.as_mut()) else { continue };
        *answer = RegisterAnswer::Value(7);
        assert!(judge(&name, &forged).is_err(), "{name}: nobody wrote 7");
    }
}

/// With `async` the calls of the last second may be undone, which the same clients must notice.
#[test]
fn calls_that_are_written_later_are_caught() {
    const KEYS: usize = 6;
    const TRIES: usize = 6;
    let mut cluster = with_objects(KEYS, "async");
    let mut caught = None;
    for (attempt, node) in (0..TRIES).zip([0, 1, 2].into_iter().cycle()) {
        let name = |key| format!("async{key}-{attempt}");
        for key in 0..KEYS {
            let answer = cluster.nodes[0].call(&["ASO.PUT", &format!("object{key}"), REGISTER]);
            assert_eq!(answer, Value::OK);
        }
        let story = |cluster: &mut Cluster| {
            sleep_ms(700);
            kill_for(cluster, node, 200);
            sleep_ms(200);
        };
        let record = with_clients(&mut cluster, CLIENTS, |session| call(session, KEYS), story);
        caught = (0..KEYS).find_map(|key| judge(&name(key), &of_key(&record, key)).err());
        if caught.is_some() {
            break;
        }
    }
    let text = caught.expect("lost calls are noticed");
    assert!(text.starts_with("no order of the operations explains this answer"), "{text}");
}
