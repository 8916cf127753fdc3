//! What the durable store costs: processor time per row (all threads, user and system), worst stalls, memory and disk.
//!
//! `cargo bench -p oort --bench storage [-- ROWS [DIRECTORY]]`: loads ROWS rows of 24 + 130 bytes in durable batches of
//! 32, overwrites as many at random, the same again with a read before each write, then reads.
//! Without `--bench`, as `cargo test --all-targets` runs it, it does a thousand rows to see that it works.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oort::storage::{FjallStore, StorageOptions};
use oort_core::store::{Durability, Space, Store};
use xxhash_rust::xxh3::xxh3_64;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: u64 = 32;
const VALUE: [u8; 130] = [7; 130];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let mut arguments = arguments.into_iter().filter(|argument| !argument.starts_with("--"));
    let rows = arguments.next().and_then(|rows| rows.parse().ok());
    let rows: u64 = rows.unwrap_or(if is_bench { 1_000_000 } else { 1_000 });
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = directory.join(format!("oort-bench-{}", std::process::id()));

    let mut store = FjallStore::open(&directory, StorageOptions::default()).expect("the directory opens");
    let mut random = Random(1);
    measure("load", rows, &mut store, key, false);
    measure("overwrite", rows, &mut store, |_| key(random.next() % rows), false);
    measure("read, overwrite", rows, &mut store, |_| key(random.next() % rows), true);
    read("get, in the cache", rows, &mut store, |number| key(number % rows.min(10_000)));
    read("get, at random", rows, &mut store, |_| key(random.next() % rows));
    read("get, absent", rows, &mut store, |number| key(rows + number));
    println!("on disk {} MB", store.size_bytes() >> 20);
    drop(store);
    let started = Instant::now();
    let reopened = FjallStore::open(&directory, StorageOptions::default()).expect("it opens again");
    println!("open again {:?}", started.elapsed());
    drop(reopened);
    let _ = std::fs::remove_dir_all(&directory);
}

fn measure(
    name: &str,
    rows: u64,
    store: &mut FjallStore,
    mut key: impl FnMut(u64) -> Bytes,
    is_read_first: bool,
) {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let mut stalls = Vec::new();
    for number in 0..rows {
        let key = key(number);
        if is_read_first {
            store.get(Space::Data, &key).expect("a row is read");
        }
        let value = Bytes::copy_from_slice(&VALUE);
        store.apply((Space::Data, key, Some(value)));
        if number % BATCH == BATCH - 1 {
            let started = Instant::now();
            store.sync(Durability::Durable).expect("a batch is synced");
            stalls.push(started.elapsed());
        }
    }
    stalls.sort();
    let at = |share: f64| stalls.get((stalls.len() as f64 * share) as usize).copied();
    let [median, p999] = [at(0.5), at(0.999)].map(Option::unwrap_or_default);
    println!(
        "{name:17} {:6.2} us CPU per row, {:6.2} s; sync p50 {median:?}, p99.9 {p999:?}, worst {:?}; memory {} MB",
        (cpu_seconds() - cpu) * 1e6 / rows as f64,
        started.elapsed().as_secs_f64(),
        stalls.last().copied().unwrap_or(Duration::ZERO),
        memory_mb(),
    );
}

fn read(name: &str, rows: u64, store: &mut FjallStore, mut key: impl FnMut(u64) -> Bytes) {
    for number in 0..rows.min(10_000) {
        store.get(Space::Data, &key(number)).expect("a row is read");
    }
    let keys: Vec<Bytes> = (0..rows.min(100_000)).map(&mut key).collect();
    let started = Instant::now();
    for key in &keys {
        store.get(Space::Data, key).expect("a row is read");
    }
    println!("{name:17} {:6.2} us", started.elapsed().as_secs_f64() * 1e6 / keys.len() as f64);
}

/// The row key of an object: its place on the ring first.
fn key(number: u64) -> Bytes {
    let number = number.to_be_bytes();
    Bytes::from([&xxh3_64(&number).to_be_bytes()[..], b"key:....", &number].concat())
}

/// Processor time of this process so far, background threads included.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    let kilobytes = line.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    kilobytes.unwrap_or(0) / 1024
}

/// Xorshift: the same keys in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
