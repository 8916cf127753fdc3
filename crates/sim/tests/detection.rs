//! How a cluster notices crashes and who is near, in figures that must not get worse. The whole table:
//! `docs/failure-detection.md`.

use std::collections::BTreeSet;

use bytes::Bytes;
use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::client::{Operation, Quorum, Reply, Want};
use oort_core::config::NodeConfig;
use oort_core::mutation::Mutation;
use oort_core::types::ObjectKey;
use oort_sim::detection::world::World;
use oort_sim::detection::{csv, measure, table, Setup};

#[test]
fn a_crash_is_known_to_all_within_a_round_and_a_few_times_the_patience() {
    for (nodes, all_know_ms) in [(3, 560.0), (10, 560.0), (60, 900.0)] {
        let setup = Setup { node_seconds: 1_800, ..Setup::new(nodes) };
        let measured = measure(&setup);
        assert!(measured.all_know_ms_max <= all_know_ms, "{measured:?}");
        assert!(measured.half_know_ms <= measured.all_know_ms, "{measured:?}");
        // Ten probes and ten answers in half a second, and a hash.
        assert!(measured.messages_per_s <= 42.5, "{measured:?}");
        assert!(measured.bytes_per_s <= 1_500.0, "{measured:?}");
        assert!(measured.false_per_hour <= 5.0, "{measured:?}");
        assert!(measured.heal_ms_max <= 1_000.0, "{measured:?}");
    }
}

#[test]
fn the_same_setup_measures_the_same() {
    let setup = Setup { node_seconds: 600, loss_per_mille: 100, ..Setup::new(6) };
    assert_eq!(measure(&setup), measure(&setup));
    assert_ne!(measure(&setup), measure(&Setup { seed: 2, ..setup }));
}

#[test]
fn without_loss_nobody_is_suspected_and_with_much_of_it_all_heals() {
    let setup = Setup { crashes: 1, node_seconds: 1_200, ..Setup::new(12) };
    let calm = measure(&Setup { loss_per_mille: 0, ..setup.clone() });
    assert_eq!((calm.false_per_hour, calm.heal_ms_max), (0.0, 0.0));
    let stormy = measure(&Setup { loss_per_mille: 200, ..setup });
    assert!(stormy.false_per_hour > 1.0, "{stormy:?}");
    assert!(stormy.heal_ms < 200.0, "{stormy:?}");
    assert!(stormy.heal_ms_max < 10_000.0, "{stormy:?}");
}

#[test]
fn the_figures_can_be_read_and_computed_with() {
    let setup = Setup { crashes: 1, node_seconds: 60, ..Setup::new(4) };
    let measured = [measure(&setup)];
    assert!(table(&setup, &measured).contains("\n| 4 | "), "{}", table(&setup, &measured));
    let csv = csv(&measured);
    let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(fields, [9, 9], "{csv}");
}

/// Three regions in turn; a round trip takes 1 ms within one, 60 to 160 ms from one to another.
fn regions(from: usize, to: usize) -> u64 {
    [[500, 30_000, 80_000], [30_000, 500, 50_000], [80_000, 50_000, 500]][from % 3][to % 3]
}

/// Source: Dabek et al., 2004, §1: coordinates choose the replica to fetch from.
#[test]
fn gets_and_their_hedges_go_to_the_nearest_replicas() {
    let config = NodeConfig {
        cluster_size: 30,
        partitions: 64,
        entropy_ms: 0,
        suspect_ms: 400,
        hedge_us: 200_000,
        known_bytes: 1 << 10,
        ..NodeConfig::default()
    };
    let mut world = World::new(30, &config, regions, 1);
    world.run(60_000_000);
    let key = |number: u64| ObjectKey::new(DEFAULT_BUCKET, format!("k{number}").as_bytes()).unwrap();
    let run = |world: &mut World, node: usize, operation: Operation| {
        let id = world.ask(node, operation);
        world.run(3_000_000);
        world.answer(id).expect("an answer within 3 s").expect("a healthy cluster")
    };
    let mut is_hedged = false;
    for number in 0..60 {
        let (key, node) = (key(number), number as usize % 30);
        let mutation = Mutation::store(Bytes::from_static(b"v"));
        let (quorum, want) = (Quorum::default(), Want::default());
        run(&mut world, node, Operation::Update { key: key.clone(), mutation, quorum, want, caller: None });
        let ring = world.nodes[node].as_ref().unwrap().ring().unwrap();
        let owners = ring.preference_at(key.position())[..3].to_vec();
        let living: Vec<usize> = (0..30).collect();
        let index = |id| *living.iter().find(|i| world.nodes[**i].as_ref().unwrap().id() == id).unwrap();
        let mut owners: Vec<usize> = owners.into_iter().map(index).filter(|owner| *owner != node).collect();
        owners.sort_by_key(|owner| regions(node, *owner));
        // Every other time the nearest loses its answers for a while: the next nearest is asked.
        let silent = (number % 2 == 1).then_some(owners[0]);
        world.muted.clone_from(&silent);
        world.reads.clear();
        let needs = if owners.len() == 3 { 1 } else { 2 };
        let quorum = Quorum { r: Some(needs), ..Quorum::default() };
        let Reply::Object(object) = run(&mut world, node, Operation::Get { key, quorum }) else { panic!() };
        assert_eq!(object.0.values().len(), 1);
        world.muted = None;
        let asked: Vec<usize> =
            world.reads.iter().filter(|(from, _)| *from == node).map(|(_, to)| *to).collect();
        let far = |owner: usize| regions(node, owner);
        assert_eq!(far(asked[0]), far(owners[0]), "n{node} asked {asked:?} of {owners:?} first");
        if silent == Some(asked[0]) {
            is_hedged = true;
            assert_eq!(far(asked[1]), far(owners[1]), "n{node} asked {asked:?} of {owners:?}");
        }
        let distinct: BTreeSet<usize> = asked.iter().copied().collect();
        assert_eq!(distinct.len(), asked.len());
        world.run(5_000_000);
    }
    assert!(is_hedged);
}
