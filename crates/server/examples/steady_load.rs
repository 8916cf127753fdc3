//! A steady load that remembers what was acknowledged, and a check that all of it can be read.
//!
//! `scripts/grow-and-shrink.sh` runs it while it changes the cluster. Everything goes through `redis-cli`, so that what
//! is shown holds for a stock client: each writer feeds one of its own and goes from node to node with it.
//!
//! * `run` writes and reads at a fixed rate until standard input ends. Each line there begins a phase of that name.
//!   At the end it writes what was acknowledged to a file and prints a table of the phases.
//! * `verify` reads every acknowledged write through every node and fails if one is missing or older.
//!
//! A writer alone writes a key, with a sequence number in the value, and repeats a write until it is acknowledged. So a
//! read must bring the last number, and after that nothing less.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: steady_load run    --nodes HOST:PORT,... --record FILE [--keys N] [--rate N] [--value-bytes N] [--writers N]
       steady_load verify --nodes HOST:PORT,... --record FILE";

/// How long a writer waits for an answer. Longer than a node takes to refuse.
const PATIENCE: Duration = Duration::from_secs(3);
/// A writer goes to the next node after so many writes.
const STAY: usize = 50;
/// Keys that are read at once when everything is verified.
const KEYS_READ_AT_ONCE: usize = 50;
/// How often a read that is refused is tried again, and the pause before.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((command, rest)) if command == "run" => Options::parse(rest).and_then(run),
        Some((command, rest)) if command == "verify" => Options::parse(rest).and_then(verify),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("steady_load: {text}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    nodes: Vec<String>,
    record: String,
    keys: usize,
    rate: u64,
    value_bytes: usize,
    writers: usize,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Options, String> {
        let (mut nodes, mut record) = (Vec::new(), String::new());
        let mut numbers =
            BTreeMap::from([("keys", 12_000), ("rate", 1000), ("value-bytes", 100), ("writers", 6)]);
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { return Err(USAGE.to_owned()) };
            match name.strip_prefix("--").ok_or(USAGE)? {
                "nodes" => nodes = value.split(',').map(str::to_owned).collect(),
                "record" => record = value.clone(),
                name => {
                    let number = numbers.get_mut(name).ok_or(USAGE)?;
                    *number = value.parse().map_err(|_| format!("--{name} is no number: {value}"))?;
                }
            }
        }
        if nodes.is_empty() || record.is_empty() || numbers.values().any(|number| *number == 0) {
            return Err(USAGE.to_owned());
        }
        let (keys, rate, value_bytes) = (numbers["keys"], numbers["rate"] as u64, numbers["value-bytes"]);
        Ok(Options { nodes, record, keys, rate, value_bytes, writers: numbers["writers"] })
    }
}

/// The value that the write number `sequence` gives to `key`, `bytes` long or a little longer.
fn value(key: &str, sequence: u64, bytes: usize) -> String {
    let text = format!("{sequence}/{key}/");
    let missing = bytes.saturating_sub(text.len());
    text + &"x".repeat(missing)
}

/// The number of the write that gave `key` this value; 0 if none did.
fn sequence(key: &str, value: &str) -> u64 {
    let mut parts = value.splitn(3, '/');
    let number = parts.next().and_then(|number| number.parse().ok());
    number.filter(|_| parts.next() == Some(key)).unwrap_or(0)
}

// Redis clients

/// A running `redis-cli` that takes commands on standard input.
struct RedisCli {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
}

impl RedisCli {
    fn start(node: &str) -> Result<RedisCli, String> {
        let (host, port) = node.rsplit_once(':').ok_or_else(|| format!("no address: {node}"))?;
        let mut child = Command::new("redis-cli")
            .args(["--no-raw", "-h", host, "-p", port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("redis-cli: {error}"))?;
        let (sender, lines) = channel();
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("it is piped")),
            Box::new(child.stderr.take().expect("it is piped")),
        ];
        for output in outputs {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let lines = BufReader::new(output).lines().map_while(Result::ok);
                // Nobody listens any more when the client was dropped.
                let _ = lines.map(|line| sender.send(line)).take_while(Result::is_ok).count();
            });
        }
        let commands = child.stdin.take().expect("it is piped");
        Ok(RedisCli { child, commands, lines })
    }

    fn send(&mut self, command: &str) -> Result<(), String> {
        writeln!(self.commands, "{command}").map_err(|error| error.to_string())
    }

    /// The next line of an answer. Errors: none came.
    fn line(&mut self) -> Result<String, String> {
        self.lines.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => "no answer".to_owned(),
            RecvTimeoutError::Disconnected => "redis-cli has ended".to_owned(),
        })
    }

    fn call(&mut self, command: &str) -> Result<String, String> {
        self.send(command)?;
        self.line()
    }

    fn get(&mut self, key: &str) -> Result<u64, String> {
        found(key, &self.call(&format!("GET {key}"))?)
    }

    /// The greatest number among all siblings of `key`.
    fn get_all(&mut self, key: &str) -> Result<u64, String> {
        self.send(&format!("VGET {key}"))?;
        // How many lines it has depends on the number of siblings: whatever follows belongs to the answer of PING.
        self.send("PING")?;
        let mut greatest = 0;
        loop {
            let line = self.line()?;
            if line == "PONG" {
                return Ok(greatest);
            }
            let parts = line.split('"').map(|part| sequence(key, part));
            greatest = greatest.max(parts.max().unwrap_or(0));
        }
    }
}

impl Drop for RedisCli {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number in what `GET` of `key` answered. Errors: it is refused.
fn found(key: &str, answer: &str) -> Result<u64, String> {
    match answer.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(text) => Ok(sequence(key, text)),
        None if answer == "(nil)" => Ok(0),
        None => Err(answer.to_owned()),
    }
}

// Run

/// What all writers share.
struct Load {
    options: Options,
    begin: Instant,
    phase: AtomicUsize,
    written_once: AtomicUsize,
    stop: AtomicBool,
    samples: Mutex<Vec<Sample>>,
    lost: Mutex<Vec<String>>,
}

/// One request that was answered well, or a write that was not.
struct Sample {
    phase: usize,
    kind: Kind,
    done_us: u64,
    /// Since the first try.
    took_us: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Set,
    Get,
    FailedSet,
}

/// What is known of a key: the last write that was acknowledged, and the last that was tried.
#[derive(Clone, Copy, Default)]
struct Known {
    acknowledged: u64,
    tried: u64,
}

fn run(options: Options) -> Result<(), String> {
    let load = Load {
        begin: Instant::now(),
        phase: AtomicUsize::new(0),
        written_once: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        samples: Mutex::default(),
        lost: Mutex::default(),
        options,
    };
    let (mut phases, mut records) = (vec!["filling".to_owned()], Vec::new());
    std::thread::scope(|scope| -> Result<(), String> {
        let load = &load;
        let writers: Vec<_> =
            (0..load.options.writers).map(|index| scope.spawn(move || write(load, index))).collect();
        for line in io::stdin().lines() {
            phases.push(line.map_err(|error| format!("standard input: {error}"))?);
            load.phase.store(phases.len() - 1, Ordering::SeqCst);
        }
        load.stop.store(true, Ordering::SeqCst);
        for writer in writers {
            records.extend(writer.join().map_err(|_| "a writer panicked")??);
        }
        Ok(())
    })?;
    save(&load.options, &records).map_err(|error| format!("{}: {error}", load.options.record))?;
    let samples = load.samples.into_inner().expect("no writer panicked");
    print!("{}", table(&phases, &samples));
    let lost = load.lost.into_inner().expect("no writer panicked");
    match lost.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} reads under way were wrong, such as: {first}", lost.len())),
    }
}

/// One writer: its keys in turn, each write followed by a read of another of its keys.
struct Writer<'a> {
    load: &'a Load,
    keys: Vec<(String, Known)>,
    /// Counts on from node to node.
    node: usize,
    client: Option<RedisCli>,
    turns: usize,
    samples: Vec<Sample>,
}

fn write(load: &Load, index: usize) -> Result<Vec<(String, Known)>, String> {
    let Options { keys, rate, writers, .. } = load.options;
    let keys =
        (0..keys.div_ceil(writers)).map(|i| (format!("writer{index}:{i}"), Known::default())).collect();
    let mut writer = Writer { load, keys, node: index, client: None, turns: 0, samples: Vec::new() };
    let count = writer.keys.len();
    // Each key once, as fast as it goes.
    for key in 0..count {
        writer.turn(key, key)?;
        if load.written_once.fetch_add(1, Ordering::SeqCst) + 1 == count * writers {
            println!("filled");
        }
    }
    let period = Duration::from_micros(1_000_000 * writers as u64 / rate);
    let mut due = Instant::now() + period * index as u32 / writers as u32;
    for turn in 0.. {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if load.stop.load(Ordering::SeqCst) {
            break;
        }
        writer.turn(turn * 7919 % count, (turn * 104_729 + 1) % count)?;
        due += period;
    }
    load.samples.lock().expect("no writer panicked").extend(writer.samples);
    Ok(writer.keys)
}

impl Writer<'_> {
    /// Writes one key and reads one.
    fn turn(&mut self, written: usize, read: usize) -> Result<(), String> {
        self.turns += 1;
        if self.turns.is_multiple_of(STAY) {
            self.move_on();
        }
        self.set(written)?;
        self.get(read);
        Ok(())
    }

    /// Writes the key until that is acknowledged, or the load ends.
    fn set(&mut self, index: usize) -> Result<(), String> {
        let (key, known) = &mut self.keys[index];
        known.tried += 1;
        let sequence = known.tried;
        let command = format!("SET {key} {}", value(key, sequence, self.load.options.value_bytes));
        let mut begin = None;
        while !self.load.stop.load(Ordering::SeqCst) {
            let Some(client) = self.connected()? else { continue };
            let begin = *begin.get_or_insert_with(Instant::now);
            if client.call(&command).as_deref() == Ok("OK") {
                self.keys[index].1.acknowledged = sequence;
                self.note(Kind::Set, begin);
                break;
            }
            self.note(Kind::FailedSet, begin);
            self.move_on();
        }
        Ok(())
    }

    /// Reads the key, which may be refused, but must not be older than what was acknowledged.
    fn get(&mut self, index: usize) {
        let (key, Known { acknowledged, .. }) = &self.keys[index];
        let Some(client) = self.client.as_mut().filter(|_| *acknowledged > 0) else { return };
        let begin = Instant::now();
        let Ok(number) = client.get(key) else { return self.move_on() };
        if number < *acknowledged && client.get_all(key).is_ok_and(|number| number < *acknowledged) {
            let text =
                format!("{key} has write {number} instead of {acknowledged} through {}", self.address());
            self.load.lost.lock().expect("no writer panicked").push(text);
        }
        self.note(Kind::Get, begin);
    }

    /// The client, a new one if need be. `None`: the node does not answer, and the next is to be asked.
    fn connected(&mut self) -> Result<Option<&mut RedisCli>, String> {
        if self.client.is_none() {
            let mut client = RedisCli::start(self.address())?;
            match client.call("PING").as_deref() {
                Ok("PONG") => self.client = Some(client),
                _ => self.move_on(),
            }
        }
        Ok(self.client.as_mut())
    }

    fn address(&self) -> &str {
        let nodes = &self.load.options.nodes;
        &nodes[self.node % nodes.len()]
    }

    fn move_on(&mut self) {
        (self.node, self.client) = (self.node + 1, None);
    }

    fn note(&mut self, kind: Kind, begin: Instant) {
        let us = |duration: Duration| duration.as_micros() as u64;
        let (done_us, took_us) = (us(self.load.begin.elapsed()), us(begin.elapsed()));
        self.samples.push(Sample { phase: self.load.phase.load(Ordering::SeqCst), kind, done_us, took_us });
    }
}

/// A line for each key: its name, the last write acknowledged, the last one tried, and how long its values are.
fn save(options: &Options, records: &[(String, Known)]) -> io::Result<()> {
    let mut file = BufWriter::new(fs::File::create(&options.record)?);
    for (key, known) in records {
        writeln!(file, "{key} {} {}", known.acknowledged, known.tried)?;
    }
    file.flush()
}

fn table(phases: &[String], samples: &[Sample]) -> String {
    let width = phases.iter().map(String::len).max().unwrap_or(0).max("phase".len());
    let mut out = format!(
        "{:width$}  seconds  acknowledged  failed tries  longest gap  SET p50 / p99 ms  GET p50 / p99 ms\n",
        "phase"
    );
    let mut acknowledged: Vec<(u64, usize)> = samples
        .iter()
        .filter(|sample| sample.kind == Kind::Set)
        .map(|sample| (sample.done_us, sample.phase))
        .collect();
    acknowledged.sort_unstable();
    for (number, phase) in phases.iter().enumerate() {
        let own = || samples.iter().filter(|sample| sample.phase == number);
        let ends = own().map(|sample| sample.done_us);
        let seconds = ends.clone().max().unwrap_or(0).saturating_sub(ends.min().unwrap_or(0)) as f64 / 1e6;
        let count = |kind| own().filter(|sample| sample.kind == kind).count();
        let pairs = acknowledged.windows(2).filter(|pair| pair[1].1 == number);
        let gap_us = pairs.map(|pair| pair[1].0 - pair[0].0).max().unwrap_or(0);
        let latency = |kind| {
            let mut all: Vec<u64> =
                own().filter(|sample| sample.kind == kind).map(|sample| sample.took_us).collect();
            all.sort_unstable();
            let at = |percent: usize| all.get(all.len() * percent / 100).map_or(0.0, |us| *us as f64 / 1e3);
            format!("{:.2} / {:.2}", at(50), at(99))
        };
        out += &format!(
            "{phase:width$}  {seconds:7.1}  {:12}  {:12}  {:8.1} ms  {:>16}  {:>16}\n",
            count(Kind::Set),
            count(Kind::FailedSet),
            gap_us as f64 / 1e3,
            latency(Kind::Set),
            latency(Kind::Get),
        );
    }
    out + &format!("acknowledged writes: {}\n", acknowledged.len())
}

// Verify

fn verify(options: Options) -> Result<(), String> {
    let text = fs::read_to_string(&options.record).map_err(|error| format!("{}: {error}", options.record))?;
    let records: Vec<(&str, Known)> =
        text.lines().map(record).collect::<Option<_>>().ok_or("the record is damaged")?;
    if records.is_empty() {
        return Err("the record is empty: nothing is shown".into());
    }
    let mut lost = Vec::new();
    for node in &options.nodes {
        let (mut client, mut siblings) = (RedisCli::start(node)?, 0);
        for chunk in records.chunks(KEYS_READ_AT_ONCE) {
            for (&(key, known), number) in chunk.iter().zip(read(&mut client, chunk)?) {
                if number > known.tried {
                    lost.push(format!("{key} has write {number} through {node}, which was never tried"));
                } else if number < known.acknowledged {
                    // A write that was tried in vain and repeated through another node can hide a later one, as its
                    // sibling.
                    match client.get_all(key)? >= known.acknowledged {
                        true => siblings += 1,
                        false => lost.push(format!(
                            "{key} has write {number} instead of {} through {node}",
                            known.acknowledged
                        )),
                    }
                }
            }
        }
        let hidden = if siblings > 0 { format!(", {siblings} of them as siblings") } else { String::new() };
        println!("through {node}: {} keys read{hidden}", records.len());
    }
    lost.iter().take(20).for_each(|text| eprintln!("LOST: {text}"));
    match lost.len() {
        0 => Ok(()),
        count => Err(format!("{count} acknowledged writes are lost")),
    }
}

fn record(line: &str) -> Option<(&str, Known)> {
    let mut parts = line.split(' ');
    let (key, acknowledged, tried) = (parts.next()?, parts.next()?, parts.next()?);
    Some((key, Known { acknowledged: acknowledged.parse().ok()?, tried: tried.parse().ok()? }))
}

/// The numbers of the writes that the keys have. A refusal is no loss: it is asked again.
fn read(client: &mut RedisCli, keys: &[(&str, Known)]) -> Result<Vec<u64>, String> {
    let names: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
    let command = format!("MGET {}", names.join(" "));
    let mut answer = String::new();
    for _ in 0..TRIES {
        answer = client.call(&command)?;
        if !answer.starts_with("(error)") {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    let mut numbers = Vec::new();
    for (index, key) in names.iter().enumerate() {
        if index > 0 {
            answer = client.line()?;
        }
        // 12) "value"
        let (_, element) = answer.split_once(") ").ok_or_else(|| format!("MGET was answered: {answer}"))?;
        numbers.push(found(key, element)?);
    }
    Ok(numbers)
}
