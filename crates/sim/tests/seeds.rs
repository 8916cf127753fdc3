//! Whole histories with faults: every seed must keep every promise, twice the same way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use oort_sim::cli::summary;
use oort_sim::cluster::{run, Setup};
use oort_sim::faults::{Fault, Faults};

/// Seeds that `cargo test` runs with all faults, with single faults and without any.
const SEEDS: u64 = 300;
const SEEDS_PER_FAULT: u64 = 12;
/// Seeds with active objects among what is asked.
const ACTIVE_SEEDS: u64 = 60;
/// One simulation is single-threaded; this many run side by side.
const THREADS: usize = 2;

/// Runs all setups, some at a time; panics with the story of the first that broke a promise.
fn all_hold(setups: Vec<Setup>) {
    let next = AtomicU64::new(0);
    let broken: Mutex<Vec<String>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(setup) = setups.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let report = run(setup);
                    if !report.violations.is_empty() {
                        broken.lock().unwrap().push(summary(setup, &report));
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{} of {} seeds failed\n{}", broken.len(), setups.len(), broken[0]);
}

#[test]
fn promises_hold_under_all_faults() {
    all_hold((1..=SEEDS).map(Setup::new).collect());
}

#[test]
fn active_objects_hold_under_all_faults() {
    all_hold((1..=ACTIVE_SEEDS).map(|seed| Setup { active: true, ..Setup::new(seed) }).collect());
}

#[test]
fn promises_hold_under_each_fault_alone() {
    let mut setups = Vec::new();
    for faults in Fault::ALL.iter().map(|fault| Faults::of(&[*fault])).chain([Faults::none()]) {
        setups.extend((1..=SEEDS_PER_FAULT).map(|seed| Setup { faults, ..Setup::new(seed) }));
    }
    all_hold(setups);
}

#[test]
fn seeds_that_taught_something_stay_taught() {
    let lines = include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#'));
    let setups = lines.map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [seed, nodes, ops, faults, active, ..] = fields[..] else { panic!("malformed line '{line}'") };
        Setup {
            nodes: nodes.parse().ok(),
            ops: ops.parse().unwrap(),
            faults: faults.parse().unwrap(),
            active: active == "active",
            ..Setup::new(seed.parse().unwrap())
        }
    });
    all_hold(setups.collect());
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 1..=8 {
        let (first, second) = (run(&Setup::new(seed)), run(&Setup::new(seed)));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!((first.events, first.virtual_us), (second.events, second.virtual_us), "seed {seed}");
    }
    assert_ne!(run(&Setup::new(1)).hash, run(&Setup::new(2)).hash);
}

#[test]
fn one_node_and_a_large_cluster_hold_too() {
    all_hold(vec![
        Setup { nodes: Some(1), faults: Faults::none(), ..Setup::new(1) },
        Setup { nodes: Some(2), ..Setup::new(2) },
        Setup { nodes: Some(20), ops: 200, ..Setup::new(3) },
    ]);
}
