//! Objects whose timers together ask for more than their nodes have: requests go first.

use bytes::Bytes;
use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::client::{Operation, Quorum, RequestId, Want};
use oort_core::config::{NodeConfig, Sabotage};
use oort_core::mutation::{Expiry, Mutation};
use oort_core::types::ObjectKey;
use oort_sim::detection::world::World;

/// Each is within its limits. With 4 ms a run, which is ten times what a run is charged by its instructions, all
/// together need 4 s of every second, and three nodes have 3.
const OBJECTS: usize = 1_000;
const SOURCE: &str = "aso.interval = 1 function onTimer() local s = 0 for i = 1, 20000 do s = s + i end end";
const INSTRUCTION_NS: u64 = 100;

/// What clients and nodes saw.
#[derive(Debug)]
struct Seen {
    /// 99 of 100 requests took at most this.
    p99_us: u64,
    failed: usize,
    /// Changes of a node's opinion of another.
    opinions: usize,
    timer_runs: u64,
    skipped: u64,
}

fn update(name: &str, mutation: Mutation) -> Operation {
    let key = ObjectKey::new(DEFAULT_BUCKET, name.as_bytes()).expect("test keys are legal");
    Operation::Update { key, mutation, quorum: Quorum::default(), want: Want::default(), caller: None }
}

/// Three nodes with the objects; two requests every 10 ms for three seconds.
fn live(sabotage: Sabotage) -> Seen {
    let config = NodeConfig {
        cluster_size: 3,
        partitions: 64,
        entropy_ms: 0,
        known_bytes: 1 << 20,
        sabotage,
        ..NodeConfig::default()
    };
    let mut world = World::new(3, &config, |_, _| 150, 1);
    world.run_objects(INSTRUCTION_NS);
    world.run(2_000_000);
    for i in 0..OBJECTS {
        let source = Bytes::from_static(SOURCE.as_bytes());
        let mutation = Mutation::Activate { source, expiry: Expiry::Default, keeps_state: false };
        world.ask(i % 3, update(&format!("busy{i}"), mutation));
        world.run(if i % 50 == 49 { 20_000 } else { 0 });
    }
    world.run(2_000_000);
    let total = |world: &World, count: fn(&oort_core::metrics::Metrics) -> u64| -> u64 {
        world.nodes.iter().flatten().map(|node| count(node.metrics())).sum()
    };
    let before = total(&world, |metrics| metrics.active_timer_runs);
    world.opinions.clear();
    let mut asked: Vec<(u64, RequestId)> = Vec::new();
    for i in 0..300 {
        let (name, began_us) = (format!("plain{}", i / 2), world.now_us);
        let get = Operation::Get {
            key: ObjectKey::new(DEFAULT_BUCKET, name.as_bytes()).unwrap(),
            quorum: Quorum::default(),
        };
        asked.push((began_us, world.ask(i % 3, update(&name, Mutation::store("v")))));
        asked.push((began_us, world.ask((i + 1) % 3, get)));
        world.run(10_000);
    }
    let timer_runs = total(&world, |metrics| metrics.active_timer_runs) - before;
    world.run(3_000_000);
    let answers: Vec<_> = asked.iter().map(|(began_us, id)| (began_us, world.timed_answer(*id))).collect();
    let mut took_us = Vec::new();
    let mut failed = 0;
    for (began_us, answer) in answers {
        match answer {
            Some((at_us, Ok(_))) => took_us.push(at_us - began_us),
            Some((_, Err(_))) | None => failed += 1,
        }
    }
    took_us.sort_unstable();
    let p99_us = took_us.get(took_us.len() * 99 / 100).copied().unwrap_or(u64::MAX);
    let skipped = total(&world, |metrics| metrics.active_timers_skipped);
    Seen { p99_us, failed, opinions: world.opinions.len(), timer_runs, skipped }
}

#[test]
fn timers_that_ask_for_more_than_there_is_leave_requests_and_heartbeats_alone() {
    let seen = live(Sabotage::None);
    assert_eq!((seen.failed, seen.opinions), (0, 0), "{seen:?}");
    assert!(seen.p99_us < 100_000, "{seen:?}");
    // A fifth of three seconds of three nodes, 4 ms each.
    assert!((350..=500).contains(&seen.timer_runs), "{seen:?}");
    assert!(seen.skipped > 1_000, "{seen:?}");
}

#[test]
fn without_admission_they_do_not() {
    let seen = live(Sabotage::AdmitTimers);
    assert!(seen.failed + seen.opinions > 0 || seen.p99_us >= 100_000, "{seen:?}");
}
