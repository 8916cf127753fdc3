//! The load generator of `bench/run` for what redis-benchmark cannot do.
//!
//! One file without dependencies, compiled by `bench/run` with `rustc -O`. Two commands:
//!
//! * `run`: one thread and epoll, 50 connections, spread over the nodes given. Closed loop (a connection sends its
//!   next request when it has the answer), or open loop with `--rate`: requests become due at fixed times and their
//!   latency counts from then, so a server that stalls is charged for all the requests that had to wait. `setwait`
//!   sends `SET` and `WAIT 1` in one write and counts the pair as one operation.
//! * `failure`: writers at a fixed rate and readers of everything acknowledged, while somebody else kills a node.
//!   One blocking thread each: at 500 writes a second precision matters and throughput does not.
//!
//! Both print one JSON object on standard output.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let options = Options::parse(args.collect());
    let result = match command.as_str() {
        "run" => run(&options),
        "failure" => failure(&options),
        _ => fail("usage: load run|failure --addrs HOST:PORT,... [--option value]..."),
    };
    match result {
        Ok(json) => println!("{json}"),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(text: &str) -> ! {
    eprintln!("load: {text}");
    std::process::exit(1)
}

struct Options(BTreeMap<String, String>);

impl Options {
    fn parse(args: Vec<String>) -> Options {
        let mut options = BTreeMap::new();
        for pair in args.chunks(2) {
            match pair {
                [name, value] if name.starts_with("--") => options.insert(name[2..].into(), value.clone()),
                _ => fail(&format!("not an option with a value: {}", pair[0])),
            };
        }
        Options(options)
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| fail(&format!("--{name} is missing")))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> T {
        self.text(name).parse().unwrap_or_else(|_| fail(&format!("--{name} is not a number")))
    }

    /// Operations per second; 0, or left out: as fast as they are answered.
    fn rate(&self) -> f64 {
        if self.0.contains_key("rate") {
            self.number("rate")
        } else {
            0.0
        }
    }

    /// One digit per slot: the index of the node that owns it.
    fn owners(&self) -> Vec<usize> {
        let digits = self.0.get("owners").map_or("", String::as_str);
        assert!(
            digits.is_empty() || digits.len() == SLOTS,
            "--owners has {} slots, not {SLOTS}",
            digits.len()
        );
        digits.bytes().map(|digit| usize::from(digit - b'0')).collect()
    }

    fn addrs(&self) -> Vec<SocketAddr> {
        let parse = |addr: &str| addr.parse().unwrap_or_else(|_| fail(&format!("bad address {addr}")));
        self.text("addrs").split(',').map(parse).collect()
    }
}

// ---------------------------------------------------------------------------------------------- protocol

fn push_command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    write!(out, "*{}\r\n", parts.len()).expect("a vector takes all writes");
    for part in parts {
        write!(out, "${}\r\n", part.len()).expect("a vector takes all writes");
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

enum Reply<'a> {
    Line,
    Integer(i64),
    Error(&'a [u8]),
    Nil,
    Bulk(&'a [u8]),
}

/// The first reply in `input` and its length, or nothing if it is not complete yet.
fn parse(input: &[u8]) -> Option<(Reply<'_>, usize)> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let line = &input[1..end - 1];
    let number = || std::str::from_utf8(line).ok().and_then(|text| text.parse::<i64>().ok());
    let number = || number().unwrap_or_else(|| fail("a reply with a malformed number"));
    match input[0] {
        b'+' => Some((Reply::Line, end + 1)),
        b'-' => Some((Reply::Error(line), end + 1)),
        b':' => Some((Reply::Integer(number()), end + 1)),
        b'_' => Some((Reply::Nil, end + 1)),
        b'$' if number() < 0 => Some((Reply::Nil, end + 1)),
        b'$' => {
            let length = number() as usize;
            let whole = end + 1 + length + 2;
            (input.len() >= whole).then(|| (Reply::Bulk(&input[end + 1..end + 1 + length]), whole))
        }
        other => fail(&format!("a reply of unknown type {other}")),
    }
}

const SLOTS: usize = 1 << 14;

/// Redis's slot of a key without a hash tag: CRC-16 (XMODEM).
fn slot(key: &[u8]) -> usize {
    const TABLE: [u16; 256] = crc_table();
    let crc = key.iter().fold(0_u16, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)]);
    usize::from(crc) % SLOTS
}

const fn crc_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

fn escape(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            _ => vec![c],
        })
        .collect()
}

// ---------------------------------------------------------------------------------------------- run

#[derive(Clone, Copy, PartialEq)]
enum Op {
    Set,
    Get,
    SetWait,
    /// Every key once, in order.
    Fill,
}

struct Connection {
    stream: TcpStream,
    node: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    watching_writes: bool,
    /// Replies that are still to come for the batch in flight.
    replies: usize,
    /// When the batch in flight was sent, or was due.
    start: Instant,
}

struct Load {
    op: Op,
    keys: u64,
    value: Vec<u8>,
    pipeline: usize,
    next_key: u64,
    random: u64,
    /// The node that owns each slot, for a client that routes by slot; empty: any node gets any key.
    owners: Vec<usize>,
    latencies: Vec<u64>,
    /// Gets a line for each batch: when it was due, in seconds since 1970, and how many milliseconds it took.
    timeline: Option<io::BufWriter<std::fs::File>>,
    begin: (Instant, SystemTime),
    errors: u64,
    missing: u64,
    first_error: String,
}

fn run(options: &Options) -> io::Result<String> {
    let op = match options.text("op") {
        "set" => Op::Set,
        "get" => Op::Get,
        "setwait" => Op::SetWait,
        "fill" => Op::Fill,
        other => fail(&format!("unknown op {other}")),
    };
    let addrs = options.addrs();
    let pipeline: usize = options.number("pipeline");
    let batches = options.number::<u64>("ops").div_ceil(pipeline as u64);
    let rate = options.rate();
    let mut load = Load {
        op,
        keys: options.number("keys"),
        value: vec![b'x'; options.number("size")],
        pipeline,
        next_key: 0,
        random: options.number::<u64>("seed") | 1,
        owners: options.owners(),
        latencies: Vec::with_capacity((batches as usize) * pipeline),
        timeline: options.0.get("timeline").map(std::fs::File::create).transpose()?.map(io::BufWriter::new),
        begin: (Instant::now(), SystemTime::now()),
        errors: 0,
        missing: 0,
        first_error: String::new(),
    };

    let poll = Poll::new()?;
    let begin = Instant::now();
    let mut connections = Vec::new();
    for index in 0..options.number::<usize>("conns") {
        let stream = TcpStream::connect(addrs[index % addrs.len()])?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        poll.add(stream.as_raw_fd(), index as u64, EPOLLIN)?;
        connections.push(Connection {
            stream,
            node: index % addrs.len(),
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            watching_writes: false,
            replies: 0,
            start: begin,
        });
    }

    let begin = Instant::now();
    let due = |batch: u64| match rate > 0.0 {
        true => begin + Duration::from_secs_f64((batch * pipeline as u64) as f64 / rate),
        false => begin,
    };
    let mut idle: VecDeque<usize> = (0..connections.len()).collect();
    let (mut sent, mut done) = (0, 0);
    let mut ready = [EpollEvent { events: 0, data: 0 }; 256];
    while done < batches {
        let mut now = Instant::now();
        while sent < batches && !idle.is_empty() && due(sent) <= now {
            let index = idle.pop_front().expect("an idle connection, as checked above");
            let start = if rate > 0.0 { due(sent) } else { now };
            load.send(&mut connections[index], start)?;
            poll.watch_writes_if_needed(&mut connections[index], index)?;
            sent += 1;
            now = Instant::now();
        }
        if sent < batches && !idle.is_empty() {
            poll.wake_at(due(sent).saturating_duration_since(now))?;
        }
        for event in poll.wait(&mut ready)? {
            let (events, index) = (event.events, event.data);
            if index == TIMER {
                continue;
            }
            let connection = &mut connections[index as usize];
            if events & EPOLLOUT != 0 {
                flush(connection)?;
                poll.watch_writes_if_needed(connection, index as usize)?;
            }
            if load.receive(connection)? {
                done += 1;
                idle.push_back(index as usize);
            }
        }
    }
    Ok(load.report(begin.elapsed()))
}

impl Load {
    /// Sends the next batch.
    fn send(&mut self, connection: &mut Connection, start: Instant) -> io::Result<()> {
        connection.output.clear();
        connection.written = 0;
        connection.start = start;
        connection.replies = self.pipeline * if self.op == Op::SetWait { 2 } else { 1 };
        for _ in 0..self.pipeline {
            let key = self.key(connection.node);
            match self.op {
                Op::Get => push_command(&mut connection.output, &[b"GET", key.as_bytes()]),
                _ => push_command(&mut connection.output, &[b"SET", key.as_bytes(), &self.value]),
            }
            if self.op == Op::SetWait {
                // The time limit only keeps a broken set-up from hanging.
                push_command(&mut connection.output, &[b"WAIT", b"1", b"10000"]);
            }
        }
        flush(connection)
    }

    /// The next key for a connection to `node`: any, or one that this node is the first replica of.
    fn key(&mut self, node: usize) -> String {
        loop {
            let number = self.key_number();
            let key = format!("key:{number:012}");
            if self.owners.is_empty() || self.owners[slot(key.as_bytes())] == node {
                return key;
            }
        }
    }

    fn key_number(&mut self) -> u64 {
        if self.op == Op::Fill {
            self.next_key = (self.next_key + 1) % self.keys;
            return self.next_key;
        }
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % self.keys
    }

    /// Reads what has arrived; whether that completes the batch.
    fn receive(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        match connection.stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::other("the server closed a connection")),
            Ok(length) => connection.input.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        let mut used = 0;
        while let Some((reply, length)) = parse_some(&connection.input[used..]) {
            match reply {
                Reply::Error(text) => {
                    self.errors += 1;
                    if self.first_error.is_empty() {
                        self.first_error = String::from_utf8_lossy(text).into_owned();
                    }
                }
                Reply::Integer(copies) if copies < 1 => {
                    self.errors += 1;
                    self.first_error = "WAIT 1 ended with 0 replicas".into();
                }
                Reply::Nil => self.missing += 1,
                _ => {}
            }
            used += length;
            connection.replies =
                connection.replies.checked_sub(1).unwrap_or_else(|| fail("more replies than requests"));
        }
        connection.input.drain(..used);
        if connection.replies > 0 || used == 0 {
            return Ok(false);
        }
        let latency = connection.start.elapsed().as_nanos() as u64;
        if let Some(timeline) = &mut self.timeline {
            let due = self.begin.1 + connection.start.saturating_duration_since(self.begin.0);
            let due = due.duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64();
            writeln!(timeline, "{due:.6} {:.3}", latency as f64 / 1e6)?;
        }
        self.latencies.extend(std::iter::repeat_n(latency, self.pipeline));
        Ok(true)
    }

    fn report(mut self, took: Duration) -> String {
        self.latencies.sort_unstable();
        let count = self.latencies.len();
        let at = |share: f64| self.latencies[((count as f64 * share) as usize).min(count - 1)] as f64 / 1e6;
        format!(
            "{{\"ops\":{count},\"seconds\":{:.4},\"rps\":{:.1},\"p50\":{:.3},\"p99\":{:.3},\"p999\":{:.3},\"max\":{:.3},\
             \"errors\":{},\"missing\":{},\"first_error\":\"{}\"}}",
            took.as_secs_f64(),
            count as f64 / took.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0),
            self.errors,
            self.missing,
            escape(&self.first_error)
        )
    }
}

fn parse_some(input: &[u8]) -> Option<(Reply<'_>, usize)> {
    (!input.is_empty()).then(|| parse(input)).flatten()
}

/// Writes as much of the batch as the socket takes.
fn flush(connection: &mut Connection) -> io::Result<()> {
    while connection.written < connection.output.len() {
        match connection.stream.write(&connection.output[connection.written..]) {
            Ok(length) => connection.written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- failure

/// One acknowledged write. Times in microseconds since the start.
struct Written {
    due: u64,
    done: u64,
    /// The node this write's connection was attached to when the write became due.
    attached: usize,
}

/// A try that got no acknowledgement.
struct Failed {
    at: u64,
    node: usize,
    text: String,
}

#[derive(Default)]
struct ReaderReport {
    reads: u64,
    /// Acknowledged keys that the node said do not exist, or have another value.
    missing: Vec<(u64, String)>,
    /// Error replies.
    errors: Vec<(u64, String)>,
    /// Connections refused, closed or silent: expected of the dead node only.
    no_answer: Vec<u64>,
}

struct Shared {
    begin: Instant,
    addrs: Vec<SocketAddr>,
    seconds: f64,
    timeout: Duration,
    acknowledged: Mutex<Vec<String>>,
    written: Mutex<Vec<Written>>,
    failed: Mutex<Vec<Failed>>,
}

impl Shared {
    fn now(&self) -> u64 {
        self.begin.elapsed().as_micros() as u64
    }
}

fn failure(options: &Options) -> io::Result<String> {
    let shared = Arc::new(Shared {
        begin: Instant::now(),
        addrs: options.addrs(),
        seconds: options.number("seconds"),
        timeout: Duration::from_millis(options.number("timeout-ms")),
        acknowledged: Mutex::default(),
        written: Mutex::default(),
        failed: Mutex::default(),
    });
    let start_unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64();
    let (writers, rate): (usize, f64) = (options.number("writers"), options.number("rate"));
    let read_rate: f64 = options.number("read-rate");

    let mut writing = Vec::new();
    for index in 0..writers {
        let shared = shared.clone();
        writing.push(std::thread::spawn(move || write_steadily(&shared, index, writers, rate)));
    }
    let mut reading = Vec::new();
    for node in 0..shared.addrs.len() {
        let shared = shared.clone();
        reading.push(std::thread::spawn(move || read_steadily(&shared, node, read_rate)));
    }
    for thread in writing {
        thread.join().map_err(|_| io::Error::other("a writer panicked"))?;
    }
    let mut readers = Vec::new();
    for thread in reading {
        readers.push(thread.join().map_err(|_| io::Error::other("a reader panicked"))?);
    }

    let written = shared.written.lock().expect("no thread panicked");
    let failed = shared.failed.lock().expect("no thread panicked");
    let written: Vec<_> = written.iter().map(|w| format!("[{},{},{}]", w.due, w.done, w.attached)).collect();
    let failed: Vec<_> =
        failed.iter().map(|f| format!("[{},{},\"{}\"]", f.at, f.node, escape(&f.text))).collect();
    let texts = |list: &[(u64, String)]| {
        let list: Vec<_> = list.iter().map(|(at, text)| format!("[{at},\"{}\"]", escape(text))).collect();
        list.join(",")
    };
    let readers: Vec<_> = readers
        .iter()
        .map(|reader| {
            format!(
                "{{\"reads\":{},\"missing\":[{}],\"errors\":[{}],\"no_answer\":{:?}}}",
                reader.reads,
                texts(&reader.missing),
                texts(&reader.errors),
                reader.no_answer
            )
        })
        .collect();
    Ok(format!(
        "{{\"start\":{start_unix:.6},\"written\":[{}],\"failed\":[{}],\"readers\":[{}]}}",
        written.join(","),
        failed.join(","),
        readers.join(",")
    ))
}

/// Writes a new key each time one is due; a failed try is counted and repeated through the next node.
fn write_steadily(shared: &Shared, index: usize, writers: usize, rate: f64) {
    let mut node = index % shared.addrs.len();
    let mut client: Option<Client> = None;
    // Writes that became due before this moment were waiting behind one whose node failed, or behind such a one.
    let mut recovered = (0, node);
    for turn in 0.. {
        let due = ((turn * writers + index) as f64 / rate * 1e6) as u64;
        if due as f64 > shared.seconds * 1e6 {
            return;
        }
        std::thread::sleep(Duration::from_micros(due.saturating_sub(shared.now())));
        let attached = if due < recovered.0 { recovered.1 } else { node };
        let key = format!("failure:{index}:{turn}");
        let value = value_of(&key);
        let mut moved = false;
        while let Err(error) = write_once(shared, &mut client, node, &key, &value) {
            let failed = Failed { at: shared.now(), node, text: error.to_string() };
            shared.failed.lock().expect("no thread panicked").push(failed);
            if shared.now() as f64 > (shared.seconds + 10.0) * 1e6 {
                return;
            }
            client = None;
            moved = true;
            node = (node + 1) % shared.addrs.len();
        }
        let done = shared.now();
        if moved || attached != node {
            recovered = (done, attached);
        }
        shared.acknowledged.lock().expect("no thread panicked").push(key);
        shared.written.lock().expect("no thread panicked").push(Written { due, done, attached });
    }
}

fn write_once(
    shared: &Shared,
    client: &mut Option<Client>,
    node: usize,
    key: &str,
    value: &str,
) -> io::Result<()> {
    let client = connected(shared, client, node)?;
    let mut answer = Err(io::Error::other("no reply"));
    client.ask(&[&[b"SET", key.as_bytes(), value.as_bytes()]], |_, reply| {
        answer = match reply {
            Reply::Line => Ok(()),
            Reply::Error(text) => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
            _ => Err(io::Error::other("an unexpected reply to SET")),
        };
    })?;
    answer
}

/// Reads acknowledged keys through one node until all writers must have ended: each batch takes the newest ones
/// (is a write readable everywhere as soon as it is acknowledged?) and the next ones of an endless round over all.
fn read_steadily(shared: &Shared, node: usize, rate: f64) -> ReaderReport {
    const NEWEST: usize = 8;
    const BATCH: usize = 32;
    let mut report = ReaderReport::default();
    let mut client: Option<Client> = None;
    let mut position = 0;
    for turn in 0.. {
        let due = (turn as f64 * BATCH as f64 / rate * 1e6) as u64;
        if due as f64 > shared.seconds * 1e6 {
            break;
        }
        let behind = shared.now().saturating_sub(due);
        if behind > 1_000_000 {
            continue; // Reads that the dead node missed are not made up for.
        }
        std::thread::sleep(Duration::from_micros(due.saturating_sub(shared.now())));
        let keys = {
            let all = shared.acknowledged.lock().expect("no thread panicked");
            if all.is_empty() {
                continue;
            }
            let mut keys: Vec<String> = all.iter().rev().take(NEWEST).cloned().collect();
            for _ in NEWEST..BATCH {
                position = (position + 1) % all.len();
                keys.push(all[position].clone());
            }
            keys
        };
        let commands: Vec<Vec<&[u8]>> =
            keys.iter().map(|key| vec![b"GET".as_slice(), key.as_bytes()]).collect();
        let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
        let ReaderReport { reads, missing, errors, .. } = &mut report;
        let asked = connected(shared, &mut client, node).and_then(|client| {
            client.ask(&commands, |index, reply| {
                *reads += 1;
                let key = &keys[index];
                match reply {
                    Reply::Bulk(value) if value == value_of(key).as_bytes() => {}
                    Reply::Error(text) => {
                        errors.push((shared.now(), String::from_utf8_lossy(text).into_owned()))
                    }
                    _ => missing.push((shared.now(), key.clone())),
                }
            })
        });
        if asked.is_err() {
            report.no_answer.push(shared.now());
            client = None;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    report
}

/// The value of a key follows from it, so that readers need no memory of what was written.
fn value_of(key: &str) -> String {
    format!("{key}={}", "x".repeat(100_usize.saturating_sub(key.len() + 1)))
}

fn connected<'a>(shared: &Shared, client: &'a mut Option<Client>, node: usize) -> io::Result<&'a mut Client> {
    if client.is_none() {
        let stream = TcpStream::connect_timeout(&shared.addrs[node], shared.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(shared.timeout))?;
        *client = Some(Client { stream, input: Vec::new() });
    }
    Ok(client.as_mut().expect("set above"))
}

/// A blocking connection.
struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    fn ask(&mut self, commands: &[&[&[u8]]], mut each: impl FnMut(usize, Reply)) -> io::Result<()> {
        let mut output = Vec::new();
        for command in commands {
            push_command(&mut output, command);
        }
        self.stream.write_all(&output)?;
        let mut replies = 0;
        while replies < commands.len() {
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::Error::other("connection closed")),
                length => self.input.extend_from_slice(&chunk[..length]),
            }
            let mut used = 0;
            while let Some((reply, length)) = parse_some(&self.input[used..]) {
                each(replies, reply);
                replies += 1;
                used += length;
            }
            self.input.drain(..used);
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------- epoll

const EPOLLIN: u32 = 1;
const EPOLLOUT: u32 = 4;
const TIMER: u64 = u64::MAX;

#[derive(Clone, Copy)]
#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
struct EpollEvent {
    events: u32,
    data: u64,
}

#[repr(C)]
struct TimerSpec {
    interval: [i64; 2],
    value: [i64; 2],
}

extern "C" {
    fn epoll_create1(flags: i32) -> i32;
    fn epoll_ctl(poll: i32, op: i32, fd: i32, event: *mut EpollEvent) -> i32;
    fn epoll_wait(poll: i32, events: *mut EpollEvent, max: i32, timeout_ms: i32) -> i32;
    fn timerfd_create(clock: i32, flags: i32) -> i32;
    fn timerfd_settime(fd: i32, flags: i32, new: *const TimerSpec, old: *mut TimerSpec) -> i32;
}

/// Readiness of sockets, and one timer (epoll's own time limit is in whole milliseconds).
struct Poll {
    fd: i32,
    timer: i32,
}

impl Poll {
    fn new() -> io::Result<Poll> {
        const CLOCK_MONOTONIC: i32 = 1;
        const EDGE_TRIGGERED: u32 = 1 << 31;
        // SAFETY: no pointers are passed.
        let (fd, timer) = unsafe { (epoll_create1(0), timerfd_create(CLOCK_MONOTONIC, 0)) };
        if fd < 0 || timer < 0 {
            return Err(io::Error::last_os_error());
        }
        let poll = Poll { fd, timer };
        // Edge-triggered: the expirations need not be read.
        poll.add(timer, TIMER, EPOLLIN | EDGE_TRIGGERED)?;
        Ok(poll)
    }

    fn add(&self, fd: i32, data: u64, events: u32) -> io::Result<()> {
        const ADD: i32 = 1;
        self.control(ADD, fd, data, events)
    }

    /// Asks to be told when the socket takes more, as long as some of the batch is left to write.
    fn watch_writes_if_needed(&self, connection: &mut Connection, index: usize) -> io::Result<()> {
        const MODIFY: i32 = 3;
        let left = connection.written < connection.output.len();
        if left == connection.watching_writes {
            return Ok(());
        }
        connection.watching_writes = left;
        let events = if left { EPOLLIN | EPOLLOUT } else { EPOLLIN };
        self.control(MODIFY, connection.stream.as_raw_fd(), index as u64, events)
    }

    fn control(&self, op: i32, fd: i32, data: u64, events: u32) -> io::Result<()> {
        let mut event = EpollEvent { events, data };
        // SAFETY: the event lives for the call, and the kernel only reads it.
        match unsafe { epoll_ctl(self.fd, op, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn wake_at(&self, pause: Duration) -> io::Result<()> {
        // All zero would disarm the timer.
        let value = [pause.as_secs() as i64, i64::from(pause.subsec_nanos()).max(1)];
        let spec = TimerSpec { interval: [0, 0], value };
        // SAFETY: the kernel reads `spec` during the call and accepts a null pointer for the old value.
        match unsafe { timerfd_settime(self.timer, 0, &spec, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn wait<'a>(&self, events: &'a mut [EpollEvent; 256]) -> io::Result<&'a [EpollEvent]> {
        // SAFETY: the kernel writes at most 256 events into the array given.
        let count = unsafe { epoll_wait(self.fd, events.as_mut_ptr(), 256, 10_000) };
        match count {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(&[]),
            -1 => Err(io::Error::last_os_error()),
            0 => Err(io::Error::other("nothing arrived for 10 seconds")),
            count => Ok(&events[..count as usize]),
        }
    }
}
