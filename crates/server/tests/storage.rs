//! The durable store against its promises: it agrees with the engine in memory, survives crashes, and notices flipped
//! bytes.
//!
//! A crash is a copy of the directory made while the store is open: what the operating system has then is what a killed
//! process leaves. What a failed write does is in `storage_full.rs`, which needs a process of its own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use bytes::Bytes;
use oort::storage::{FjallStore, OpenError, StorageOptions};
use oort_core::store::{Durability, MemoryStore, Space, Store, StoreError};

/// A directory of this test that goes away with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        // In memory where possible: most of the time would be spent in fsync, which these tests cannot observe.
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let path = parent.join(format!("oort-storage-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Directory(path)
    }

    /// A copy of it as it is now. Background threads may be writing: it is repeated until nothing changed meanwhile.
    fn copy(&self, name: &str) -> Directory {
        for _ in 0..1000 {
            let copy = Directory::new(name);
            let before = state(&self.0);
            if copy_all(&self.0, &copy.0).is_ok() && before.is_some() && state(&self.0) == before {
                return copy;
            }
        }
        panic!("{} is never at rest", self.0.display());
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What changes when a file in it does: path, number, size and time of change of each. `None`: it changed meanwhile.
fn state(directory: &Path) -> Option<Vec<(PathBuf, u64, u64, SystemTime)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).ok()? {
        let path = entry.ok()?.path();
        let metadata = fs::symlink_metadata(&path).ok()?;
        if metadata.is_dir() {
            files.extend(state(&path)?);
        }
        files.push((path, metadata.ino(), metadata.len(), metadata.modified().ok()?));
    }
    files.sort();
    Some(files)
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
            continue;
        }
        let mut bytes = fs::read(entry.path())?;
        if target.extension().is_some_and(|extension| extension == "jnl" || extension == "log") {
            // Journals and segments are made as zeros, which mean nothing.
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        }
        fs::write(target, bytes)?;
    }
    Ok(())
}

fn small() -> StorageOptions {
    StorageOptions {
        cache_bytes: 64 << 10,
        block_cache_bytes: 1 << 20,
        segment_bytes: 256 << 10,
        reserve_bytes: 0,
        retry_interval: Duration::ZERO,
        open_tables: 64,
    }
}

fn open(directory: &Directory) -> FjallStore {
    FjallStore::open(&directory.0, small()).unwrap()
}

fn put(store: &mut dyn Store, key: &str, value: &str) {
    store.apply((Space::Data, key.to_owned().into(), Some(value.to_owned().into())));
}

fn get(store: &mut dyn Store, key: &str) -> Result<Option<Bytes>, StoreError> {
    store.get(Space::Data, key.as_bytes())
}

type Row = (Bytes, Result<Bytes, StoreError>);

fn scan(store: &mut dyn Store, space: Space, from: &[u8], to: &[u8]) -> Vec<Row> {
    let mut rows = Vec::new();
    store.scan(space, from, to, &mut |key, value| {
        rows.push((Bytes::copy_from_slice(key), value.cloned()));
        true
    });
    rows
}

/// A linear congruential generator: the same numbers on every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    fn key(&mut self) -> Bytes {
        format!("{:03}", self.below(300)).into()
    }

    fn value(&mut self) -> Option<Bytes> {
        let len = self.below(400) as usize;
        let byte = self.below(256) as u8;
        (self.below(5) > 0).then(|| vec![byte; len].into())
    }

    fn space(&mut self) -> Space {
        [Space::Data, Space::Hints, Space::Meta][self.below(3) as usize]
    }

    fn range(&mut self) -> (Bytes, Bytes) {
        let (a, b) = (self.key(), self.key());
        (a.clone().min(b.clone()), a.max(b))
    }
}

fn assert_same(store: &mut FjallStore, model: &mut MemoryStore) {
    for space in [Space::Data, Space::Hints, Space::Meta] {
        assert_eq!(scan(store, space, b"", b"\xff"), scan(model, space, b"", b"\xff"));
    }
}

#[test]
fn agrees_with_the_engine_in_memory_through_crashes() {
    let mut numbers = Numbers(1);
    let mut directory = Directory::new("model-0");
    let (mut store, mut model) = (open(&directory), MemoryStore::new());
    for life in 1..6 {
        for _ in 0..400 {
            let space = numbers.space();
            match numbers.below(20) {
                0..=11 => {
                    let change = (space, numbers.key(), numbers.value());
                    store.apply(change.clone());
                    model.apply(change);
                }
                12..=15 => {
                    let key = numbers.key();
                    assert_eq!(store.get(space, &key), model.get(space, &key));
                }
                16 => {
                    let (from, to) = numbers.range();
                    assert_eq!(scan(&mut store, space, &from, &to), scan(&mut model, space, &from, &to));
                }
                17 if numbers.below(8) == 0 => {
                    let (from, to) = numbers.range();
                    store.drop_range(space, &from, &to);
                    model.drop_range(space, &from, &to);
                }
                18 => {
                    store.sync(Durability::Durable).unwrap();
                    model.sync(Durability::Durable).unwrap();
                }
                _ => {
                    store.sync(Durability::Buffered).unwrap();
                    model.sync(Durability::Buffered).unwrap();
                }
            }
        }
        assert_same(&mut store, &mut model);
        // The engine in memory forgets buffered rows in a crash, the operating system keeps them: make them equal.
        for store in [&mut store as &mut dyn Store, &mut model] {
            store.sync(Durability::Durable).unwrap();
            put(store, "100", "applied but never synced");
            store.apply((Space::Data, "200".into(), None));
        }
        let copy = directory.copy(&format!("model-{life}"));
        drop(store);
        model.crash();
        directory = copy;
        store = open(&directory);
        assert!(!store.lost_writes(), "{}", store.lost_writes_detail());
        assert_same(&mut store, &mut model);
    }
}

#[test]
fn buffered_rows_survive_the_process() {
    let directory = Directory::new("buffered");
    let mut store = open(&directory);
    put(&mut store, "a", "1");
    store.sync(Durability::Buffered).unwrap();
    let copy = directory.copy("buffered-copy");
    assert_eq!(get(&mut open(&copy), "a"), Ok(Some("1".into())));
    // Nothing is left in front of the log, and a durable sync after a buffered one has something to do.
    store.sync(Durability::Durable).unwrap();
    store.close().unwrap();
    assert_eq!(get(&mut open(&directory), "a"), Ok(Some("1".into())));
}

#[test]
fn closing_and_dropping_make_the_last_rows_durable() {
    let directory = Directory::new("close");
    let mut store = open(&directory);
    put(&mut store, "a", "closed");
    store.close().unwrap();
    let mut store = open(&directory);
    put(&mut store, "b", "dropped");
    drop(store);
    let mut store = open(&directory);
    assert_eq!(get(&mut store, "a"), Ok(Some("closed".into())));
    assert_eq!(get(&mut store, "b"), Ok(Some("dropped".into())));
}

#[test]
fn a_visit_that_returns_false_ends_the_scan() {
    let directory = Directory::new("visit");
    let mut store = open(&directory);
    for key in ["a", "b", "c"] {
        put(&mut store, key, "1");
    }
    store.sync(Durability::Durable).unwrap();
    put(&mut store, "bb", "pending");
    let mut seen = Vec::new();
    store.scan(Space::Data, b"a", b"c", &mut |key, _| {
        seen.push(key.to_vec());
        seen.len() < 3
    });
    assert_eq!(seen, [&b"a"[..], b"b", b"bb"]);
    assert!(scan(&mut store, Space::Data, b"c", b"a").is_empty());
}

#[test]
fn a_full_disk_refuses_the_turn_and_keeps_the_rest() {
    let directory = Directory::new("reserve");
    let mut store = open(&directory);
    put(&mut store, "a", "1");
    store.close().unwrap();
    let options = StorageOptions { reserve_bytes: u64::MAX, ..small() };
    let mut store = FjallStore::open(&directory.0, options).unwrap();
    assert_eq!(store.sync(Durability::Durable), Ok(()), "nothing to write needs no space");
    put(&mut store, "a", "2");
    put(&mut store, "b", "2");
    assert_eq!(get(&mut store, "a"), Ok(Some("2".into())));
    let Err(StoreError::ReadOnly { detail }) = store.sync(Durability::Durable) else {
        panic!("the sync was not refused");
    };
    assert!(detail.starts_with("no space left on device: "), "{detail}");
    assert_eq!(get(&mut store, "a"), Ok(Some("1".into())));
    assert_eq!(get(&mut store, "b"), Ok(None));
    assert_eq!(scan(&mut store, Space::Data, b"", b"z").len(), 1);
    assert!(store.sync(Durability::Buffered).is_err(), "it is still full");
    drop(store);
    let mut store = open(&directory);
    put(&mut store, "b", "3");
    store.sync(Durability::Durable).unwrap();
    assert_eq!(get(&mut store, "a"), Ok(Some("1".into())));
    assert_eq!(get(&mut store, "b"), Ok(Some("3".into())));
}

#[test]
fn one_directory_has_one_user() {
    let directory = Directory::new("lock");
    let store = open(&directory);
    let error = FjallStore::open(&directory.0, small()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().ends_with(" is in use by another process"));
    drop(store);
    open(&directory);
}

#[test]
fn foreign_and_newer_directories_are_refused_and_left_alone() {
    let directory = Directory::new("foreign");
    fs::create_dir_all(&directory.0).unwrap();
    fs::write(directory.0.join("photo.jpg"), "mine").unwrap();
    let error = FjallStore::open(&directory.0, small()).err().unwrap();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1, "something was added");
    let file = directory.0.join("photo.jpg");
    let error = FjallStore::open(&file, small()).err().unwrap().to_string();
    assert_eq!(error, format!("{}: not a directory", file.display()));

    fs::remove_file(directory.0.join("photo.jpg")).unwrap();
    let mut store = open(&directory);
    put(&mut store, "a", "1");
    store.close().unwrap();
    let format = directory.0.join("FORMAT");
    assert_eq!(fs::read_to_string(&format).unwrap(), "oort-store 2\n");
    for (text, expected) in [
        ("oort-store 9\n", "its FORMAT file is damaged and should read 'oort-store 2'"),
        ("oort-store 9 making\n", "its FORMAT file is damaged and should read 'oort-store 2'"),
        ("oort-ctore 2\n", "the other nodes have copies of what this one held"),
        ("oort-store 2\u{b}", "the other nodes have copies of what this one held"),
        ("oort-store 2", "is not an oort data directory: its FORMAT file is not ours"),
        ("riak\n", "is not an oort data directory: its FORMAT file is not ours"),
        ("\u{0}\u{0}", "is not an oort data directory: its FORMAT file is not ours"),
    ] {
        fs::write(&format, text).unwrap();
        let error = FjallStore::open(&directory.0, small()).err().unwrap().to_string();
        assert!(error.ends_with(expected), "{text:?}: {error}");
    }
    fs::write(&format, "oort-store 2\n").unwrap();
    assert_eq!(get(&mut open(&directory), "a"), Ok(Some("1".into())));
}

#[test]
fn a_half_made_directory_is_made_anew_and_an_emptied_one_refused() {
    let directory = Directory::new("half");
    fs::create_dir_all(directory.0.join("rows/keyspaces")).unwrap();
    fs::write(directory.0.join("rows/0.jnl"), "half").unwrap();
    fs::write(directory.0.join("FORMAT"), "oort-store 2 making\n").unwrap();
    drop(open(&directory));
    fs::remove_dir_all(directory.0.join("rows")).unwrap();
    let error = FjallStore::open(&directory.0, small()).err().unwrap();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// The newest segment of the log that has records, and the number of bytes up to its last that is not zero.
fn newest_segment(directory: &Directory) -> (PathBuf, u64) {
    let segments = fs::read_dir(directory.0.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let ends = segments.filter_map(|path| {
        let last = fs::read(&path).unwrap().iter().rposition(|byte| *byte != 0)?;
        (path.extension()? == "log").then_some((path, last as u64 + 1))
    });
    ends.max().unwrap()
}

fn numbered(number: u64) -> String {
    format!("{number:05}")
}

/// Twenty durable batches of three rows.
fn with_log(name: &str) -> Directory {
    let directory = Directory::new(name);
    let mut store = open(&directory);
    for batch in 0..20 {
        for row in 0..3 {
            put(&mut store, &numbered(batch * 3 + row), "a value of some length");
        }
        store.sync(Durability::Durable).unwrap();
    }
    drop(store);
    directory
}

fn missing(store: &mut dyn Store, rows: u64) -> Vec<u64> {
    (0..rows)
        .filter(|number| get(store, &numbered(*number)) != Ok(Some("a value of some length".into())))
        .collect()
}

#[test]
fn lost_writes_in_the_log_are_noticed_and_remembered() {
    let directory = with_log("lost");
    let (path, end) = newest_segment(&directory);
    // Records begin at multiples of 512 bytes, with 48 bytes of header; what follows the rows means nothing.
    flip(&path, end / 2 / 512 * 512 + 60);
    let mut store = open(&directory);
    assert!(store.lost_writes());
    assert!(store.lost_writes_detail().starts_with("log segment 1, bytes "));
    let lost = missing(&mut store, 60);
    assert_eq!(lost.len(), 3, "one batch is lost, those after it are not: {lost:?}");
    put(&mut store, "new", "row");
    store.close().unwrap();
    // Nobody acted on it yet.
    assert!(open(&directory).lost_writes());
    FjallStore::acknowledge_lost_writes(&directory.0).unwrap();
    let mut store = open(&directory);
    assert!(!store.lost_writes());
    assert_eq!(missing(&mut store, 60), lost);
    assert_eq!(get(&mut store, "new"), Ok(Some("row".into())));
}

#[test]
fn no_flipped_byte_of_the_log_goes_unnoticed() {
    let directory = with_log("flips");
    let (path, end) = newest_segment(&directory);
    let name = path.strip_prefix(&directory.0).unwrap();
    for offset in (0..end).step_by(311).chain(end - 13..end) {
        let copy = directory.copy("flips-copy");
        flip(&copy.0.join(name), offset);
        let mut store = open(&copy);
        let missing = missing(&mut store, 60);
        assert!(missing.is_empty() || store.lost_writes(), "byte {offset}: {missing:?} vanished");
        assert!(missing.len() <= 3, "byte {offset} cost {missing:?}");
    }
}

#[test]
fn a_segment_that_is_damaged_before_it_is_flushed_is_made_anew_from_memory() {
    let directory = Directory::new("anew");
    let mut store = open(&directory);
    for number in 0..100 {
        put(&mut store, &numbered(number), "a value of some length");
    }
    store.sync(Durability::Durable).unwrap();
    flip(&newest_segment(&directory).0, 60);
    let flushed = directory.0.join("log/FLUSHED");
    let mut number = 100;
    while !flushed.exists() {
        for _ in 0..100 {
            put(&mut store, &numbered(number), "a value of some length");
            number += 1;
        }
        store.sync(Durability::Durable).unwrap();
        assert!(number < 100_000, "nothing was flushed");
    }
    store.close().unwrap();
    let mut store = open(&directory);
    assert!(!store.lost_writes(), "{}", store.lost_writes_detail());
    assert_eq!(missing(&mut store, number), Vec::<u64>::new());
}

#[test]
fn a_torn_tail_is_cut_without_alarm() {
    let directory = with_log("torn");
    let (path, end) = newest_segment(&directory);
    let name = path.strip_prefix(&directory.0).unwrap();
    for cut in [1, 5, 14, 40, 100] {
        let copy = directory.copy("torn-copy");
        let file = fs::OpenOptions::new().write(true).open(copy.0.join(name)).unwrap();
        file.set_len(end - cut).unwrap();
        let mut store = open(&copy);
        assert!(!store.lost_writes(), "cut of {cut}: {}", store.lost_writes_detail());
        assert_eq!(missing(&mut store, 60), [57, 58, 59], "cut of {cut}");
        put(&mut store, "new", "row");
        store.close().unwrap();
        assert_eq!(get(&mut open(&copy), "new"), Ok(Some("row".into())));
    }
}

#[test]
fn a_missing_segment_is_a_loss() {
    let directory = with_log("gone");
    fs::remove_file(newest_segment(&directory).0).unwrap();
    let store = open(&directory);
    assert!(store.lost_writes());
    assert_eq!(store.lost_writes_detail(), "log segments 1 to 1\n");
}

/// A store whose rows have all reached a table, and that table.
fn with_table(name: &str) -> (Directory, PathBuf) {
    let directory = Directory::new(name);
    let mut store = open(&directory);
    let mut number = 0;
    let started = Instant::now();
    let table = loop {
        for _ in 0..1_000 {
            put(&mut store, &numbered(number), "a value of some length");
            number += 1;
        }
        store.sync(Durability::Buffered).unwrap();
        // Tables are written without haste.
        std::thread::sleep(Duration::from_millis(5));
        let tables = directory.0.join("rows/keyspaces/1/tables");
        // The file is in its place before it is complete: its directory of sections comes last.
        let tables = fs::read_dir(tables).into_iter().flatten().map(|entry| entry.unwrap().path());
        let age = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
        if let Some(oldest) = tables.min_by_key(age) {
            if fs::metadata(&oldest).unwrap().len() > 120_000 {
                break oldest;
            }
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no table was written");
        assert!(number < 50_000, "no table was written");
    };
    store.close().unwrap();
    (directory, table)
}

#[test]
fn a_flipped_byte_in_a_table_costs_one_block() {
    let (directory, table) = with_table("table");
    flip(&table, 100_000);
    let mut store = open(&directory);
    let damaged: Vec<u64> = (0..6_000)
        .filter(|number| match get(&mut store, &numbered(*number)) {
            Ok(value) => {
                assert_eq!(value, Some("a value of some length".into()));
                false
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
                true
            }
        })
        .collect();
    assert!((1..300).contains(&damaged.len()), "{damaged:?}");
    let rows = scan(&mut store, Space::Data, &[], &[0xff]);
    let errors: Vec<_> = rows.iter().filter(|(_, row)| row.is_err()).collect();
    assert_eq!(errors.len(), 1);
    assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0), "the order is broken");
    let seen = rows.iter().filter(|(key, row)| row.is_ok() && key[..] < b"06000"[..]).count();
    assert!(seen + damaged.len() + 3 >= 6_000, "the scan stopped: {seen} rows");
    // A replica's copy repairs a row.
    let healed = numbered(damaged[0]);
    put(&mut store, &healed, "from a replica");
    store.sync(Durability::Durable).unwrap();
    assert_eq!(get(&mut store, &healed), Ok(Some("from a replica".into())));
}

#[test]
fn tables_that_cannot_be_merged_are_rebuilt_by_the_next_start() {
    let (directory, table) = with_table("merge");
    flip(&table, 100_000);
    let mut store = open(&directory);
    // Overwriting everything again and again makes the engine merge the damaged table, which fails, and fails again.
    let started = Instant::now();
    let mut round = 0;
    let detail = loop {
        for number in 0..1_000 {
            put(&mut store, &numbered(number * 40 + round % 40), "a value of some length");
        }
        round += 1;
        match store.sync(Durability::Buffered) {
            Err(StoreError::ReadOnly { detail }) if detail.contains("restart") => break detail,
            Ok(()) | Err(_) => {}
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the damage was never merged");
    };
    assert_eq!(detail, "tables are damaged and cannot be merged: restart the node to rebuild them");
    assert!(store.sync(Durability::Durable).is_err());
    assert_eq!(get(&mut store, &numbered(5)), Ok(Some("a value of some length".into())));
    drop(store);

    let mut store = open(&directory);
    assert!(store.lost_writes());
    assert!(store.lost_writes_detail().starts_with("Data from 0"), "{}", store.lost_writes_detail());
    let missing = missing(&mut store, 6_000);
    assert!(missing.len() < 300, "{missing:?}");
    for number in missing {
        assert_eq!(get(&mut store, &numbered(number)), Ok(None), "it is known to be missing");
        put(&mut store, &numbered(number), "a value of some length");
    }
    store.sync(Durability::Durable).unwrap();
    store.close().unwrap();
    assert!(!directory.0.join("REBUILD").exists());
    assert!(!directory.0.join("rows.old").exists());
    let mut store = open(&directory);
    assert!(scan(&mut store, Space::Data, &[], &[0xff]).iter().all(|(_, row)| row.is_ok()));
}

#[test]
fn an_interrupted_rebuild_is_settled() {
    let directory = Directory::new("settle");
    let mut store = open(&directory);
    put(&mut store, "a", "1");
    store.close().unwrap();
    // Between the two renamings.
    fs::rename(directory.0.join("rows"), directory.0.join("rows.new")).unwrap();
    fs::create_dir(directory.0.join("rows.old")).unwrap();
    assert_eq!(get(&mut open(&directory), "a"), Ok(Some("1".into())));
    assert!(!directory.0.join("rows.old").exists());
    // While copying.
    fs::create_dir(directory.0.join("rows.new")).unwrap();
    assert_eq!(get(&mut open(&directory), "a"), Ok(Some("1".into())));
    assert!(!directory.0.join("rows.new").exists());
}

#[test]
fn no_flipped_byte_of_a_table_is_believed_or_fatal() {
    let (directory, table) = with_table("tables");
    let len = fs::metadata(&table).unwrap().len();
    let name = table.strip_prefix(&directory.0).unwrap();
    let middle = (0..len).step_by(len as usize / 10);
    for offset in middle.chain((1..400).step_by(57).map(|back| len - back)) {
        let copy = directory.copy("tables-copy");
        flip(&copy.0.join(name), offset);
        let mut store = match FjallStore::open(&copy.0, small()) {
            Ok(store) => store,
            Err(OpenError::Corrupt { .. } | OpenError::Io { .. }) => continue,
            Err(error) => panic!("byte {offset}: {error}"),
        };
        for number in (0..6_000).step_by(7) {
            match get(&mut store, &numbered(number)) {
                Ok(value) => assert_eq!(value, Some("a value of some length".into()), "byte {offset}"),
                Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "{error}"),
            }
        }
        for (_, row) in scan(&mut store, Space::Data, &[], &[0xff]) {
            if let Ok(value) = row {
                assert_eq!(value, "a value of some length", "byte {offset}");
            }
        }
    }
}

/// All files below `directory` of at most `bytes_max` bytes.
fn small_files(directory: &std::path::Path, bytes_max: u64) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(small_files(&path, bytes_max)),
            false if path.metadata().unwrap().len() <= bytes_max => files.push(path),
            false => {}
        }
    }
    files.sort();
    files
}

#[test]
fn a_flipped_bit_in_a_small_file_never_advises_to_empty_the_directory() {
    let directory = Directory::new("flipped");
    let mut store = open(&directory);
    for i in 0..50 {
        put(&mut store, &format!("key{i}"), "value");
    }
    store.close().unwrap();
    let files = small_files(&directory.0, 64 << 10);
    assert!(files.iter().any(|path| path.ends_with("FORMAT")), "{files:?}");
    let mut refused = 0;
    for path in files {
        // The engine may have removed a file of an earlier opening.
        let Ok(whole) = fs::read(&path) else { continue };
        for at in [0, 1, whole.len() / 2, whole.len().saturating_sub(1)] {
            let Some(byte) = whole.get(at) else { continue };
            let mut flipped = whole.clone();
            flipped[at] = byte ^ 4;
            fs::write(&path, flipped).unwrap();
            let opened = FjallStore::open(&directory.0, small());
            if let Err(error) = opened {
                let text = error.to_string();
                assert!(!text.contains("empty"), "{text}");
                let is_named = text.contains("FORMAT") || text.contains("/rows") || text.contains("/log");
                assert!(is_named, "{}: {text}", path.display());
                refused += 1;
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    assert!(refused > 0, "some of them cannot be read past");
    fs::write(directory.0.join("FORMAT"), "oort-store 2\n").unwrap();
}
