//! Clients of real nodes that write down what they asked, what they were told, and when.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oort::client::{Client, ClientError};
use oort::resp::Value;
use oort_core::types::Rng;

use crate::support::Cluster;

/// How long a client waits for an answer. Longer than a request may take, so that nodes answer if they can.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Time between two operations of one client: a history of 2,000 operations takes a while to be judged.
const PAUSE: Duration = Duration::from_millis(4);

/// What a client heard.
pub enum Heard<T> {
    Answer(T),
    /// Nothing was changed.
    Refused,
    /// It may or may not have happened, or may happen yet.
    Unknown,
}

impl<T> Heard<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Heard<U> {
        match self {
            Heard::Answer(answer) => Heard::Answer(change(answer)),
            Heard::Refused => Heard::Refused,
            Heard::Unknown => Heard::Unknown,
        }
    }
}

/// One client with a connection to one node at a time: to the next one when that is lost, and now and then to another.
pub struct Session<'a> {
    pub number: usize,
    pub rng: Rng,
    began: Instant,
    nodes: &'a [(String, String)],
    turn: usize,
    redis: Option<Client>,
    http: Option<BufReader<TcpStream>>,
    written: u64,
    /// The value that it last saw under each key, and the tag that came with it.
    pub seen: BTreeMap<usize, (u64, String)>,
}

/// The answer to an HTTP request. Names of headers are in lower case.
pub struct HttpAnswer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Session<'_> {
    /// Goes on to another node, at times.
    fn wander(&mut self) {
        if self.rng.chance(1, 16) {
            (self.redis, self.http) = (None, None);
            self.turn += 1 + self.rng.below(2) as usize;
        }
    }

    /// Microseconds since the history began.
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// A value that nobody else writes; not 0.
    pub fn fresh(&mut self) -> u64 {
        self.written += 1;
        (self.number as u64 + 1) * 1_000_000 + self.written
    }

    /// Asks by the Redis protocol. Fails on errors that no correct command should meet.
    pub fn ask(&mut self, command: &[&str]) -> Heard<Value> {
        let Session { redis, nodes, turn, .. } = self;
        let client = match redis {
            Some(client) => client,
            None => match Client::connect(&nodes[*turn % nodes.len()].0, ANSWER_MAX) {
                Ok(client) => redis.insert(client),
                Err(_) => {
                    *turn += 1;
                    return Heard::Refused;
                }
            },
        };
        match client.call(command) {
            Ok(Value::Error(text)) => refusal(command, &text),
            Ok(value) => Heard::Answer(value),
            Err(ClientError::Protocol { address, error }) => panic!("{address}: {error}"),
            Err(_) => {
                (*redis, *turn) = (None, *turn + 1);
                Heard::Unknown
            }
        }
    }

    /// Asks by HTTP. `headers` end with CRLF each. A status of 500 or more says that the outcome is unknown.
    pub fn ask_http(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Heard<HttpAnswer> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        let stream = match self.http.take() {
            Some(stream) => stream,
            None => match TcpStream::connect(&self.nodes[self.turn % self.nodes.len()].1) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
                    stream.set_nodelay(true).unwrap();
                    BufReader::new(stream)
                }
                Err(_) => {
                    self.turn += 1;
                    return Heard::Refused;
                }
            },
        };
        match exchange(stream, &request) {
            Some((stream, answer)) => {
                self.http = Some(stream);
                if answer.status < 500 {
                    Heard::Answer(answer)
                } else {
                    Heard::Unknown
                }
            }
            None => {
                self.turn += 1;
                Heard::Unknown
            }
        }
    }
}

/// What an error says about whether anything was changed: see `docs/redis.md`, "Errors".
fn refusal(command: &[&str], text: &str) -> Heard<Value> {
    match text.split(' ').next().unwrap_or_default() {
        "NOQUORUM" if text.contains("can be reached") => Heard::Refused,
        "NOQUORUM" | "UNKNOWN" => Heard::Unknown,
        "BUSY" | "CLUSTERDOWN" | "MISCONF" | "SHUTDOWN" => Heard::Refused,
        _ => panic!("{command:?}: {text}"),
    }
}

/// Sends a request and reads its answer; `None` if the connection breaks first.
fn exchange(mut stream: BufReader<TcpStream>, request: &str) -> Option<(BufReader<TcpStream>, HttpAnswer)> {
    stream.get_mut().write_all(request.as_bytes()).ok()?;
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    Some((stream, HttpAnswer { status, headers, body }))
}

/// Runs `story` while `count` clients do `act` over and over through all nodes, and returns what these recorded.
pub fn with_clients<T: Send>(
    cluster: &mut Cluster,
    count: usize,
    act: impl Fn(&mut Session) -> Option<T> + Sync,
    story: impl FnOnce(&mut Cluster),
) -> Vec<T> {
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| (node.redis.clone(), node.http.clone())).collect();
    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let run = |number: usize| {
        let mut session = Session {
            number,
            rng: Rng::new(number as u64),
            began,
            nodes: &nodes,
            turn: number,
            redis: None,
            http: None,
            written: 0,
            seen: BTreeMap::new(),
        };
        let mut record = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            session.wander();
            record.extend(act(&mut session));
            std::thread::sleep(PAUSE);
        }
        record
    };
    std::thread::scope(|scope| {
        let run = &run;
        let clients: Vec<_> = (0..count).map(|number| scope.spawn(move || run(number))).collect();
        let stopper = StopOnDrop(&stop);
        story(cluster);
        drop(stopper);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

/// Lets the clients end also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The number that a reply names; 0 if it is null.
pub fn number(value: &Value) -> u64 {
    match value {
        Value::Null => 0,
        Value::Integer(number) => u64::try_from(*number).unwrap_or_else(|_| panic!("{number} is negative")),
        Value::Bulk(bytes) => {
            let text = std::str::from_utf8(bytes).unwrap_or_default();
            text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
        }
        other => panic!("{other:?} is no number"),
    }
}

/// The numbers in `value=N;` within a text of any form.
pub fn values_in(text: &str) -> Vec<u64> {
    let parts = text.split("value=").skip(1);
    parts.map(|part| part.split(';').next().unwrap_or_default().parse().expect("a number")).collect()
}
