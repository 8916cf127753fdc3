//! Gets and counters with R + W > N: each get sees what was acknowledged before it, or what superseded that.

use oort::client::Client;
use oort::resp::Value;
use oort_sim::regular::{counts, siblings, Access, Answer, Count, Operation, Replaces, WriteId};

use super::clients::{number, values_in, with_clients, Heard, Session};
use super::{refuse, sleep_ms, trouble};
use crate::support::{eventually, Cluster, Node, PATIENCE};

const CLIENTS: usize = 6;
/// Keys with siblings by the Redis protocol, by HTTP, and counters.
const REDIS_KEYS: usize = 4;
const HTTP_KEYS: usize = 2;
const COUNTERS: usize = 2;

enum Record {
    Access(String, Operation),
    Count(String, Count),
}

/// What clients do.
struct Mix {
    /// How many copies gets and puts wait for.
    quorum: u8,
    /// Keys begin with this.
    name: String,
}

/// The values and the context that `VGET` answers.
fn versions(value: Value) -> (Vec<WriteId>, String) {
    let Value::Array(parts) = value else { panic!("no versions: {value:?}") };
    let mut parts = parts.into_iter();
    let context = match parts.next() {
        Some(Value::Bulk(context)) => String::from_utf8(context.to_vec()).unwrap(),
        _ => String::new(),
    };
    match parts.next() {
        Some(Value::Array(values)) => (values.iter().map(number).collect(), context),
        other => panic!("no values: {other:?}"),
    }
}

impl Mix {
    /// One operation on a random key, two where a get is made for the write after it.
    fn act(&self, session: &mut Session) -> Vec<Record> {
        let key = session.rng.below((REDIS_KEYS + HTTP_KEYS + COUNTERS) as u64) as usize;
        match key {
            0..REDIS_KEYS => self.redis(session, &format!("{}redis{key}", self.name)),
            _ if key < REDIS_KEYS + HTTP_KEYS => self.http(session, &format!("{}http{key}", self.name)),
            _ => count(session, &format!("{}counter{key}", self.name)).into_iter().collect(),
        }
    }

    fn redis(&self, session: &mut Session, key: &str) -> Vec<Record> {
        let n = self.quorum.to_string();
        let write = session.fresh();
        let value = write.to_string();
        let found = Replaces::Found;
        match session.rng.below(10) {
            0 => vec![ask(session, key, Access::Put { write, replaces: found }, &["SET", key, &value])],
            1 => vec![ask(session, key, Access::Put { write, replaces: found }, &["GETSET", key, &value])],
            2 => vec![ask(session, key, Access::Delete { write, replaces: found }, &["DEL", key])],
            3 => {
                let access = Access::Put { write, replaces: Replaces::Exactly(Vec::new()) };
                vec![ask(session, key, access, &["VPUT", key, &value, "W", &n])]
            }
            kind => {
                let start_us = session.now_us();
                let heard = session.ask(&["VGET", key, "R", &n]).map(versions);
                let Heard::Answer((shown, context)) = heard else { return Vec::new() };
                let get = answered(session, Access::Get, start_us, Answer::Siblings(shown.clone()));
                let get = Record::Access(key.to_owned(), get);
                let replaces = Replaces::Exactly(shown);
                let context = if context.is_empty() { vec![] } else { vec!["CONTEXT", &context] };
                let wrote = match kind {
                    4..6 => return vec![get],
                    6 => {
                        let command = [vec!["VDEL", key], context.clone(), vec!["W", &n]].concat();
                        ask(
                            session,
                            key,
                            Access::Delete { write, replaces: or_found(&context, replaces) },
                            &command,
                        )
                    }
                    _ => {
                        let command = [vec!["VPUT", key, &value], context, vec!["W", &n]].concat();
                        ask(session, key, Access::Put { write, replaces }, &command)
                    }
                };
                vec![get, wrote]
            }
        }
    }

    fn http(&self, session: &mut Session, key: &str) -> Vec<Record> {
        let n = self.quorum;
        let (write, start_us) = (session.fresh(), session.now_us());
        let path = format!("/buckets/default/keys/{key}?r={n}&w={n}&pr={n}&pw={n}");
        let Heard::Answer(got) = session.ask_http("GET", &path, "Accept: multipart/mixed\r\n", "") else {
            return Vec::new();
        };
        let shown: Vec<WriteId> = match got.status {
            200 | 300 => values_in(&got.body),
            404 => Vec::new(),
            status => panic!("GET {path}: {status} {}", got.body),
        };
        let get = answered(session, Access::Get, start_us, Answer::Siblings(shown.clone()));
        let get = Record::Access(key.to_owned(), get);
        if session.rng.below(3) == 0 {
            return vec![get];
        }
        let condition = match got.headers.get("etag") {
            Some(tag) if !shown.is_empty() => format!("If-Match: {tag}\r\n"),
            _ => "If-None-Match: *\r\n".to_owned(),
        };
        let start_us = session.now_us();
        let heard = session.ask_http("PUT", &path, &condition, &format!("value={write};"));
        let heard = match heard {
            Heard::Answer(answer) => match answer.status {
                201 | 204 => Heard::Answer(()),
                412 => Heard::Refused,
                status => panic!("PUT {path} {condition}: {status} {}", answer.body),
            },
            Heard::Refused => Heard::Refused,
            Heard::Unknown => Heard::Unknown,
        };
        let access = Access::Put { write, replaces: Replaces::Exactly(shown) };
        let put = Operation { client: session.number, access, start_us, end: end_of(session, heard) };
        vec![get, Record::Access(key.to_owned(), put)]
    }
}

/// Without a context a `VDEL` deletes what its node finds.
fn or_found(context: &[&str], replaces: Replaces) -> Replaces {
    if context.is_empty() {
        Replaces::Found
    } else {
        replaces
    }
}

fn answered(session: &Session, access: Access, start_us: u64, answer: Answer) -> Operation {
    Operation { client: session.number, access, start_us, end: Some((session.now_us(), answer)) }
}

fn end_of<T>(session: &Session, heard: Heard<T>) -> Option<(u64, Answer)> {
    match heard {
        Heard::Answer(_) => Some((session.now_us(), Answer::Acknowledged)),
        Heard::Refused => Some((session.now_us(), Answer::Refused)),
        Heard::Unknown => None,
    }
}

/// One write by the Redis protocol.
fn ask(session: &mut Session, key: &str, access: Access, command: &[&str]) -> Record {
    let start_us = session.now_us();
    let heard = session.ask(command);
    let end = end_of(session, heard);
    Record::Access(key.to_owned(), Operation { client: session.number, access, start_us, end })
}

fn count(session: &mut Session, key: &str) -> Option<Record> {
    let adds = session.rng.below(3);
    let start_us = session.now_us();
    let heard = match adds {
        0 => session.ask(&["GET", key]),
        _ => session.ask(&["INCRBY", key, &adds.to_string()]),
    };
    let end = match heard {
        Heard::Answer(sum) => Some((session.now_us(), number(&sum))),
        Heard::Unknown => None,
        Heard::Refused => return None,
    };
    Some(Record::Count(key.to_owned(), Count { client: session.number, adds, start_us, end }))
}

/// The history of one key with siblings.
fn accesses(record: &[Record], of: &str) -> Vec<Operation> {
    let pick = |one: &Record| match one {
        Record::Access(key, operation) if key == of => Some(operation.clone()),
        Record::Access(..) | Record::Count(..) => None,
    };
    record.iter().filter_map(pick).collect()
}

/// The history of one counter.
fn sums(record: &[Record], of: &str) -> Vec<Count> {
    let pick = |one: &Record| match one {
        Record::Count(key, count) if key == of => Some(count.clone()),
        Record::Access(..) | Record::Count(..) => None,
    };
    record.iter().filter_map(pick).collect()
}

/// A history that is not accepted.
struct Refused {
    key: String,
    why: String,
    history: Vec<String>,
}

impl Mix {
    /// Judges each key.
    fn judge(&self, record: &[Record]) -> Result<(), Refused> {
        let first = REDIS_KEYS + HTTP_KEYS;
        for key in 0..first {
            let kind = if key < REDIS_KEYS { "redis" } else { "http" };
            let key = format!("{}{kind}{key}", self.name);
            let history = accesses(record, &key);
            let shown = || history.iter().map(|one| one.to_string()).collect();
            siblings(&history).map_err(|why| Refused { key, why, history: shown() })?;
        }
        for key in first..first + COUNTERS {
            let key = format!("{}counter{key}", self.name);
            let history = sums(record, &key);
            let shown = || history.iter().map(|one| one.to_string()).collect();
            counts(&history).map_err(|why| Refused { key, why, history: shown() })?;
        }
        Ok(())
    }

    fn run(&self, cluster: &mut Cluster, story: impl FnOnce(&mut Cluster)) -> Vec<Record> {
        let act = |session: &mut Session| Some(self.act(session));
        with_clients(cluster, CLIENTS, act, story).into_iter().flatten().collect()
    }
}

#[test]
fn gets_see_every_acknowledged_write_or_what_superseded_it() {
    let mut cluster = Cluster::start(3, &[]);
    let mix = Mix { quorum: 2, name: String::new() };
    let mut record = mix.run(&mut cluster, |cluster| {
        trouble(cluster);
        sleep_ms(300);
    });
    if let Err(Refused { key, why, history }) = mix.judge(&record) {
        refuse(&key, &history, &why);
    }
    assert!(record.len() > 1000, "only {} operations", record.len());
    // An answer that was never given makes it wrong.
    let after_us = 3_600_000_000; // an hour
    let end = Some((after_us, Answer::Siblings(vec![7])));
    let forged = Operation { client: CLIENTS, access: Access::Get, start_us: after_us, end };
    record.push(Record::Access("redis0".into(), forged));
    let why = mix.judge(&record).expect_err("nobody wrote 7").why;
    assert!(why.starts_with("a get shows 7, which nobody wrote\n  client 6 from 3600000000"), "{why}");
}

/// The same clients with R = 1 and W = 1 must see what R + W > N rules out: writes that one node alone took are missed
/// while only the others run.
#[test]
fn quorums_that_do_not_overlap_are_caught() {
    let mut cluster = Cluster::start(3, &[]);
    assert_eq!(cluster.nodes[0].call(&["BUCKET", "SET", "default", "r", "1", "w", "1"]), Value::OK);
    sleep_ms(1000);
    let mix = Mix { quorum: 1, name: String::new() };
    let record = mix.run(&mut cluster, |cluster| {
        sleep_ms(300);
        cluster.nodes[..2].iter_mut().for_each(Node::kill);
        sleep_ms(700);
        cluster.nodes[2].kill();
        cluster.nodes[..2].iter_mut().for_each(Node::start);
        for node in &cluster.nodes[..2] {
            eventually("the node serves again", || {
                let mut client = Client::connect(&node.redis, PATIENCE).ok()?;
                client.call(&["VGET", "nothing", "R", "1"]).ok().filter(|answer| !answer.is_error())
            });
        }
        sleep_ms(700);
    });
    let Err(Refused { why, .. }) = mix.judge(&record) else { panic!("stale answers are not noticed") };
    assert!(why.starts_with("a get shows") || why.contains("is no sum of what was added"), "{why}");
}
