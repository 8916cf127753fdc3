//! A disk that stops taking writes in the middle of a batch, and takes them again later.
//!
//! The limit on file sizes (RLIMIT_FSIZE) makes write(2) fail at a chosen offset, after writing a part, on every
//! machine and without privileges. It holds for the whole process, so this file has one test.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oort::storage::{FjallStore, StorageOptions};
use oort_core::store::{Durability, Space, Store, StoreError};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

const SIGXFSZ: i32 = 25;

fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: bytes.or(maximum), maximum };
    setrlimit(Resource::Fsize, limit).unwrap();
}

fn put(store: &mut FjallStore, key: &str, len: usize) {
    let value = Bytes::from(vec![b'v'; len]);
    store.apply((Space::Data, key.to_owned().into(), Some(value)));
}

fn keys(store: &mut FjallStore) -> Vec<String> {
    let mut keys = Vec::new();
    store.scan(Space::Data, &[], &[0xff], &mut |key, row| {
        row.unwrap();
        keys.push(String::from_utf8_lossy(key).into_owned());
        true
    });
    keys
}

#[test]
fn a_failed_write_is_undone_and_the_store_recovers_with_all_that_was_acknowledged() {
    // A handler turns the signal into the error EFBIG.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).unwrap();
    let directory = std::env::temp_dir().join(format!("oort-storage-full-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    let options =
        StorageOptions { reserve_bytes: 0, retry_interval: Duration::ZERO, ..StorageOptions::default() };
    let mut store = FjallStore::open(&directory, options.clone()).unwrap();
    for round in 0..3 {
        let (durable, buffered) = (format!("durable {round}"), format!("buffered {round}"));
        put(&mut store, &durable, 1_000);
        store.sync(Durability::Durable).unwrap();
        put(&mut store, &buffered, 1_000);
        store.sync(Durability::Buffered).unwrap();
        let before = keys(&mut store);

        // The batch is cut in the middle: a part of it fits, the rest does not.
        limit_files(Some(10_000 * (round + 1)));
        put(&mut store, &durable, 7);
        put(&mut store, "refused", 100_000);
        let Err(StoreError::ReadOnly { detail }) = store.sync(Durability::Durable) else {
            panic!("the sync was not refused");
        };
        assert!(detail.starts_with("file too large (EFBIG)"), "{detail}");
        assert_eq!(keys(&mut store), before, "a refused row is visible");
        let value = store.get(Space::Data, durable.as_bytes()).unwrap().unwrap();
        assert_eq!(value.len(), 1_000, "the old value is not back");
        assert_eq!(store.get(Space::Data, b"refused"), Ok(None));
        // The disk is tried again, with and without rows, and still refuses.
        assert!(store.sync(Durability::Durable).is_err());
        put(&mut store, "refused again", 10);
        assert!(store.sync(Durability::Buffered).is_err());
        assert_eq!(keys(&mut store), before);

        limit_files(None);
        let after = format!("after {round}");
        put(&mut store, &after, 10);
        store.sync(Durability::Durable).unwrap();
        assert_eq!(store.get(Space::Data, b"refused"), Ok(None));
        assert_eq!(keys(&mut store).len(), before.len() + 1);
        assert!(!store.lost_writes(), "{}", store.lost_writes_detail());
    }
    let before = keys(&mut store);
    assert_eq!(before.len(), 9);
    store.close().unwrap();
    let mut store = FjallStore::open(&directory, options).unwrap();
    assert_eq!(keys(&mut store), before);
    assert!(!store.lost_writes());
    drop(store);
    let _ = fs::remove_dir_all(&directory);
}
