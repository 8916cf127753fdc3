//! A node without network and disk, and what it takes for gets and for objects.
//!
//! Requests go through `step`, `stage` and `commit` as in the server's loop, a batch a turn. What is missing is the
//! protocol, the sockets and the disk.

use std::time::Duration;

use bytes::Bytes;
use oort_core::active::{Ask, Call, Fuel, Value};
use oort_core::bucket::{ActiveLimit, ActiveProperties, BucketProperties, DEFAULT_BUCKET};
use oort_core::client::{Operation, Quorum, Reply, Request, Want};
use oort_core::config::NodeConfig;
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::node::{Input, Node, Output};
use oort_core::store::{Durability, MemoryStore, Space, Store};
use oort_core::types::ObjectKey;
use oort_script::Machine;
use rustix::time::{clock_gettime, ClockId};

use crate::shard::Clocks;

/// What the handlers that only count are to take.
pub const INSTRUCTIONS: [u32; 3] = [10_000, 100_000, 1_000_000];
/// How far what the node counts may be from that.
const TOLERANCE: f64 = 0.02;
/// Requests of one turn.
const BATCH: usize = 16;
/// Objects that are asked in turn.
const ASKED: u32 = 256;
/// Turns until a node of its own has a ring.
const TURNS_MAX: usize = 100;

const COUNTER: &str = "aso.value = 'Hello world!' aso.getCount = 0
function onGet() self.getCount = self.getCount + 1 return {self.value, self.getCount} end";
const NO_HANDLER: &str = "aso.value = 'Hello world!'";
/// The key makes the string another one for each object: the sandbox keeps equal ones once.
const LARGE: &str = "aso.state = comet.key() .. ('x'):rep(1024 - #comet.key()) aso.getCount = 0
function onGet() self.getCount = self.getCount + 1 return self.getCount end";
const PLAIN: &str = "Hello world!";

/// How much is measured.
pub struct Setup {
    /// For each rate.
    pub time: Duration,
    /// The most at once.
    pub objects: u32,
}

/// All that was measured.
#[derive(Debug)]
pub struct Figures {
    pub speeds: Vec<Speed>,
    pub memories: Vec<Memory>,
}

/// How fast one kind of object answers.
#[derive(Debug)]
pub struct Speed {
    pub what: String,
    /// Of one call, as the node counts them; 0: no code runs.
    pub instructions: u32,
    /// Per second of processor time.
    pub gets_per_s: f64,
    /// Processor time.
    pub get_us: f64,
    /// The same with `aso_fuel` = `safepoints`; `None` where no code runs.
    pub safepoints_us: Option<f64>,
}

/// What so many objects of one kind take, in bytes per object.
#[derive(Debug)]
pub struct Memory {
    pub kind: &'static str,
    pub objects: u32,
    /// The row of a plain value of the same data, and that of the object.
    pub plain_bytes: f64,
    pub stored_bytes: f64,
    pub sandbox_bytes: f64,
    /// Growth of the process with plain values, with stored objects, and with loaded ones; `None` if that cannot be
    /// told.
    pub plain_resident: Option<f64>,
    pub stored_resident: Option<f64>,
    pub loaded_resident: Option<f64>,
}

impl Figures {
    /// Lines that hold them all.
    #[cfg(test)]
    pub fn lines(&self) -> usize {
        self.speeds.len() + self.memories.len()
    }
}

/// Measures everything. Errors: in words; something that should work does not.
pub fn measure(setup: &Setup, mut on_step: impl FnMut(&str)) -> Result<Figures, String> {
    let memories = memories(setup, &mut on_step)?;
    Ok(Figures { speeds: speeds(setup, &mut on_step)?, memories })
}

fn speeds(setup: &Setup, on_step: &mut dyn FnMut(&str)) -> Result<Vec<Speed>, String> {
    let mut speeds = Vec::new();
    let named = |name: &str, mutation| (name.to_string(), mutation);
    let mut kinds = vec![
        named("plain value", store(PLAIN)),
        named("active object without handlers", activate(NO_HANDLER)),
        named("getCount", activate(COUNTER)),
    ];
    for goal in INSTRUCTIONS {
        kinds.push((
            format!("{} instructions", super::report::grouped(goal.into())),
            activate(&loop_of(goal)?),
        ));
    }
    for (what, mutation) in kinds {
        on_step(&what);
        let mut bench = Bench::new(Fuel::Exact, Box::new(MemoryStore::new()))?;
        bench.make(&mutation, 0..ASKED)?;
        let instructions = match &mutation {
            Mutation::Activate { .. } => bench.instructions()?,
            _ => 0,
        };
        let get_us = bench.get_us(setup.time)?;
        let safepoints_us = match instructions {
            0 => None,
            _ => {
                let mut bench = Bench::new(Fuel::Safepoints, Box::new(MemoryStore::new()))?;
                bench.make(&mutation, 0..ASKED)?;
                Some(bench.get_us(setup.time)?)
            }
        };
        speeds.push(Speed { what, instructions, gets_per_s: 1e6 / get_us, get_us, safepoints_us });
    }
    Ok(speeds)
}

/// The source of a handler that runs `goal` instructions. Errors: none is near enough.
fn loop_of(goal: u32) -> Result<String, String> {
    let source =
        |turns: u32| format!("function onGet() local n = 0 for i = 1, {turns} do n = n + i end return n end");
    let counted = |turns: u32| {
        let mut bench = Bench::new(Fuel::Exact, Box::new(MemoryStore::new()))?;
        bench.make(&activate(&source(turns)), 0..1)?;
        bench.instructions().map(f64::from)
    };
    let (few, many) = (counted(100)?, counted(1100)?);
    let turns = 100.0 + (f64::from(goal) - few) / ((many - few) / 1000.0);
    let found = counted(turns as u32)?;
    match (found / f64::from(goal) - 1.0).abs() < TOLERANCE {
        true => Ok(source(turns as u32)),
        false => Err(format!("a loop of {turns:.0} turns takes {found} instructions, not {goal}")),
    }
}

fn memories(setup: &Setup, on_step: &mut dyn FnMut(&str)) -> Result<Vec<Memory>, String> {
    let mut memories = Vec::new();
    // Everything is kept until the end: the process's memory then grows by what is added, and by nothing less.
    let mut kept = Vec::new();
    let empty_bytes = Bench::new(Fuel::Exact, Box::new(MemoryStore::new()))?.node.active_bytes();
    let kinds = [("getCount", COUNTER, PLAIN.to_string()), ("1 KB of state", LARGE, "x".repeat(1024))];
    for (kind, source, plain) in kinds {
        on_step(&format!("making {} objects: {kind}", setup.objects));
        let (plain_rows, maker) = rows(&store(&plain), setup.objects)?;
        kept.push(maker);
        let (active_rows, maker) = rows(&activate(source), setup.objects)?;
        kept.push(maker);
        for objects in sizes(setup.objects) {
            on_step(&format!("{objects} objects: {kind}"));
            let each = |bytes: f64| bytes / f64::from(objects);
            let start = resident_bytes();
            kept.push(stored(&plain_rows, objects)?);
            let with_plain = resident_bytes();
            let mut bench = stored(&active_rows, objects)?;
            let with_stored = resident_bytes();
            bench.load(0..objects)?;
            let with_loaded = resident_bytes();
            let grown = |from: Option<u64>, to: Option<u64>| Some(each(to?.saturating_sub(from?) as f64));
            memories.push(Memory {
                kind,
                objects,
                plain_bytes: each(row_bytes(&plain_rows, objects)),
                stored_bytes: each(row_bytes(&active_rows, objects)),
                sandbox_bytes: each(bench.node.active_bytes().saturating_sub(empty_bytes) as f64),
                plain_resident: grown(start, with_plain),
                stored_resident: grown(with_plain, with_stored),
                loaded_resident: grown(with_plain, with_loaded),
            });
            kept.push(bench);
        }
    }
    Ok(memories)
}

/// 1, 10, 100, ... and `most`.
fn sizes(most: u32) -> Vec<u32> {
    let powers = (0..).map(|power| 10_u32.pow(power)).take_while(|size| *size < most);
    powers.chain([most]).collect()
}

type Row = (Bytes, Bytes);

/// What a node stores of so many objects, in the order of the numbers in their keys. Also returns the node.
fn rows(mutation: &Mutation, objects: u32) -> Result<(Vec<Row>, Bench), String> {
    let mut bench = Bench::new(Fuel::Exact, Box::new(MemoryStore::new()))?;
    bench.make(mutation, 0..objects)?;
    let store = bench.node.store_mut();
    let mut rows = Vec::new();
    for number in 0..objects {
        let key = key(number).row().clone();
        let value = store.get(Space::Data, &key).map_err(|error| error.to_string())?;
        rows.push((key, value.ok_or("an object that was stored is not there")?));
    }
    Ok((rows, bench))
}

/// A node that finds copies of the first rows in its store, where nothing is loaded.
fn stored(rows: &[Row], objects: u32) -> Result<Bench, String> {
    let mut store = MemoryStore::new();
    for (key, value) in &rows[..objects as usize] {
        store.apply((Space::Data, Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value))));
    }
    store.sync(Durability::Durable).map_err(|error| error.to_string())?;
    Bench::new(Fuel::Exact, Box::new(store))
}

fn row_bytes(rows: &[Row], objects: u32) -> f64 {
    rows[..objects as usize].iter().map(|(key, value)| (key.len() + value.len()) as f64).sum()
}

/// Of this process; `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn key(number: u32) -> ObjectKey {
    ObjectKey::new(DEFAULT_BUCKET, format!("object:{number:012}").as_bytes()).expect("short, and not empty")
}

fn store(value: &str) -> Mutation {
    Mutation::Store {
        value: Bytes::copy_from_slice(value.as_bytes()),
        headers: Vec::new(),
        basis: Basis::Local,
        expiry: Expiry::Never,
        condition: Condition::Always,
    }
}

fn activate(source: &str) -> Mutation {
    Mutation::Activate {
        source: Bytes::copy_from_slice(source.as_bytes()),
        expiry: Expiry::Never,
        keeps_state: false,
    }
}

fn ask(number: u32, what: Ask) -> Operation {
    let call = Call { what, arguments: Vec::new(), caller: None };
    Operation::Call { key: key(number), call, quorum: Quorum::default() }
}

/// A node and what the loop around it keeps.
struct Bench {
    node: Node,
    clocks: Clocks,
    out: Vec<Output>,
    waiting: Vec<Output>,
    replies: Vec<Reply>,
    requests: u64,
    objects: u32,
}

impl Bench {
    fn new(fuel: Fuel, store: Box<dyn Store>) -> Result<Bench, String> {
        let aso = ActiveProperties {
            fuel,
            instructions: *ActiveLimit::Instructions.range().end(),
            wall_ms: *ActiveLimit::WallMs.range().end(),
            ..ActiveProperties::default()
        };
        let config = NodeConfig {
            active_bytes: usize::MAX,
            // There is nobody to compare with.
            entropy_ms: 0,
            // A table of fixed size, of use with a disk only: it would hide what objects take.
            known_bytes: 0,
            bucket_defaults: BucketProperties { n: 1, r: 1, w: 1, aso, ..BucketProperties::default() },
            ..NodeConfig::default()
        };
        let clocks = Clocks::start();
        let mut node = Node::open(config, 1, store, clocks.read()).map_err(|error| error.to_string())?;
        node.set_sandbox(Box::new(Machine::new(thread_us).map_err(|error| error.to_string())?));
        let (out, waiting, replies) = (Vec::new(), Vec::new(), Vec::new());
        let mut bench = Bench { node, clocks, out, waiting, replies, requests: 0, objects: 0 };
        for _ in 0..TURNS_MAX {
            let now = bench.clocks.read();
            bench.node.step(now, Input::Tick, &mut bench.out);
            bench.end_turn()?;
            if bench.node.ring().is_some() {
                return Ok(bench);
            }
        }
        Err("the node has formed no ring".into())
    }

    /// Stores objects `numbers`.
    fn make(&mut self, mutation: &Mutation, numbers: std::ops::Range<u32>) -> Result<(), String> {
        self.objects = numbers.end;
        self.run(numbers, |number| Operation::Update {
            key: key(number),
            mutation: mutation.clone(),
            quorum: Quorum::default(),
            want: Want::default(),
            caller: None,
        })
    }

    /// Has objects `numbers` loaded, without calling them.
    fn load(&mut self, numbers: std::ops::Range<u32>) -> Result<(), String> {
        self.run(numbers, |number| ask(number, Ask::Info))
    }

    fn run(
        &mut self,
        mut numbers: std::ops::Range<u32>,
        operation: impl Fn(u32) -> Operation,
    ) -> Result<(), String> {
        while !numbers.is_empty() {
            self.turn(numbers.by_ref().take(BATCH).map(&operation))?;
        }
        Ok(())
    }

    /// Calls an object, and returns what the node counted. 0: it has no handler.
    fn instructions(&mut self) -> Result<u32, String> {
        self.turn([ask(0, Ask::Get)].into_iter())?;
        self.turn([ask(0, Ask::Info)].into_iter())?;
        let Some(Reply::Called(called)) = self.replies.first() else { return Err("no answer".into()) };
        match called.value.get("instructions_last") {
            Some(Value::Integer(count)) => Ok(*count as u32),
            _ => Err(format!("the node does not tell how many instructions it ran: {:?}", called.value)),
        }
    }

    /// Gets objects in turn for so much processor time, and returns what one get took of it.
    fn get_us(&mut self, time: Duration) -> Result<f64, String> {
        let operations: Vec<Operation> = (0..self.objects).map(|number| ask(number, Ask::Get)).collect();
        let mut chosen = operations.iter().cycle().cloned();
        let mut run = |time: Duration| -> Result<f64, String> {
            let (start_us, mut gets) = (thread_us(), 0);
            loop {
                self.turn(chosen.by_ref().take(BATCH))?;
                gets += BATCH;
                let spent_us = thread_us() - start_us;
                if u128::from(spent_us) >= time.as_micros() {
                    return Ok(spent_us as f64 / gets as f64);
                }
            }
        };
        // The first turns load objects and warm caches.
        run(time / 5)?;
        run(time)
    }

    /// One turn of the loop: all requests, what is due, one commit. Errors: a request was refused or not answered.
    fn turn(&mut self, operations: impl Iterator<Item = Operation>) -> Result<(), String> {
        let now = self.clocks.read();
        let first = self.requests;
        for operation in operations {
            let request = Request { operation, timeout_ms: None };
            self.node.step(now, Input::Request { id: self.requests, request }, &mut self.out);
            self.requests += 1;
        }
        if now.mono_us >= self.node.next_wakeup() {
            self.node.step(now, Input::Tick, &mut self.out);
        }
        self.replies.clear();
        self.end_turn()?;
        let (asked, answered) = (self.requests - first, self.replies.len() as u64);
        match asked == answered {
            true => Ok(()),
            false => Err(format!("{answered} of {asked} requests were answered in their turn")),
        }
    }

    fn end_turn(&mut self) -> Result<(), String> {
        self.node.stage(&mut self.out);
        let now = self.clocks.read();
        for output in std::mem::take(&mut self.out) {
            match output.waits_for_disk() {
                true => self.waiting.push(output),
                false => self.release(output)?,
            }
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        self.node.commit(now, &mut waiting);
        waiting.into_iter().try_for_each(|output| self.release(output))
    }

    fn release(&mut self, output: Output) -> Result<(), String> {
        match output {
            Output::Reply { result, .. } => self.replies.push(result.map_err(|error| error.to_string())?),
            // A node of its own has nobody to talk to, and its events are its start.
            Output::Send { .. }
            | Output::Connect { .. }
            | Output::Disconnect { .. }
            | Output::Refuse { .. }
            | Output::Event(_) => {}
        }
        Ok(())
    }
}

/// Processor time of this thread in microseconds, as on a node.
fn thread_us() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
