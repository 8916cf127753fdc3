//! What Oort promises beyond the paper: convergent values, clocks, disks, limits and formats, on whole nodes.
//!
//! Each test names the section of `DESIGN.md` whose promise it shows.

mod support;

use bytes::Bytes;
use oort_core::bucket::{BucketProperties, Conflict};
use oort_core::causality::{Dot, VersionVector};
use oort_core::client::{ClientError, Operation, Quorum, Reply, Scan, Want};
use oort_core::clock::reading_at;
use oort_core::membership::Gossip;
use oort_core::message::{Control, Message, ReadOutcome, WriteOutcome};
use oort_core::mutation::{Basis, Condition, Expiry, ExpiryCondition, Mutation, MutationError};
use oort_core::node::{Event, Input, Node, OpenError};
use oort_core::object::{Object, Version};
use oort_core::replica::{Replica, META_FORMAT};
use oort_core::store::{Durability, Space, Store};
use oort_core::tree::LEAVES;
use oort_core::types::{ActorId, ObjectKey, Position, Rng, SIBLINGS_MAX};
use oort_core::vivaldi::Coordinate;
use support::{key, Cluster, Crash, Disk};

fn store(value: &str, basis: Basis, condition: Condition) -> Mutation {
    let (headers, expiry) = (Vec::new(), Expiry::Default);
    Mutation::Store { value: value.to_owned().into(), headers, basis, expiry, condition }
}

fn one() -> Quorum {
    Quorum { r: Some(1), w: Some(1), ..Quorum::default() }
}

fn far_ahead(ms: u64) -> u64 {
    reading_at(support::WALL_START_MS + ms)
}

fn object_at(counter: u64) -> Object {
    let mut object = Object::default();
    let dot = Dot { counter, actor: ActorId(99) };
    object.0.put(&VersionVector::default(), dot, Version::bytes("from a far future"));
    object
}

/// Source: DESIGN §2, "in an `lww` bucket the greatest dot wins everywhere".
#[test]
fn in_an_lww_bucket_the_greatest_dot_wins_everywhere() {
    let mut cluster = Cluster::new(3);
    let properties = BucketProperties { conflict: Conflict::Lww, ..BucketProperties::default() };
    cluster.set_bucket(0, b"clicks", properties);
    cluster.pump();
    let at = ObjectKey::new(b"clicks", b"page").unwrap();
    cluster.split(&[0], &[1, 2]);
    cluster.update_with(1, at.clone(), Mutation::store("earlier"), one()).unwrap();
    cluster.advance(10);
    cluster.update_with(0, at.clone(), Mutation::store("later"), one()).unwrap();
    cluster.heal();
    cluster.advance(2_000);
    let mut bytes = Vec::new();
    for i in 0..3 {
        let object = cluster.get_with(i, at.clone(), one()).unwrap();
        assert_eq!(cluster.texts(i, &object), ["later"], "at {i}");
        bytes.push(cluster.machines[i].disk.lock().get(Space::Data, at.row()).unwrap());
    }
    assert!(bytes.iter().all(|row| *row == bytes[0]));
}

/// Source: DESIGN §1, "no acknowledged write is lost". A home that stands still runs what it was handed when it wakes.
/// If another node had run the same meanwhile, it would be done twice, and replace what was written in between.
#[test]
fn what_was_handed_to_a_node_that_stands_still_replaces_nothing_written_later() {
    let wants = |before| Want { before, after: false };
    let keeps_expiry = Mutation::Store {
        value: "again".into(),
        headers: Vec::new(),
        basis: Basis::Local,
        expiry: Expiry::Keep,
        condition: Condition::Always,
    };
    // By a node that holds the key, and by one that does not.
    let cases = [
        (1, delete(), wants(false)),
        (1, Mutation::store("again"), wants(true)),
        (1, keeps_expiry, wants(false)),
        (4, Mutation::store("again"), wants(false)),
    ];
    for (by, mutation, want) in cases {
        let mut cluster = Cluster::new(5);
        cluster.put(0, "cart", "old").unwrap();
        let list = cluster.list("cart");
        cluster.pause(list[0]);
        let (key, quorum, shown) = (key("cart"), Quorum::default(), format!("{mutation:?} by {by}"));
        let operation = Operation::Update { key, mutation, quorum, want, caller: None };
        let asked = cluster.ask(list[by], operation);
        cluster.advance(500);
        let early = cluster.answer(asked);
        if early.is_some() {
            cluster.put(list[1], "cart", "new").unwrap();
        }
        cluster.resume();
        if early.is_none() {
            assert!(cluster.wait(asked).is_ok(), "{shown}");
            cluster.put(list[1], "cart", "new").unwrap();
        }
        cluster.advance(3_000);
        let was_early = early.is_some();
        assert_eq!(cluster.values(list[2], "cart"), ["new"], "{shown}, answered early: {was_early}");
    }
}

/// Source: DESIGN §2; issue 2, "integers written by INCR converge as counters".
#[test]
fn counters_incremented_on_both_sides_of_a_split_add_up() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "visits", "100").unwrap();
    cluster.split(&[0], &[1, 2]);
    for (node, times) in [(0, 3), (1, 4), (2, 5)] {
        for _ in 0..times {
            cluster.update_with(node, key("visits"), Mutation::Add { delta: 1 }, one()).unwrap();
        }
    }
    cluster.heal();
    cluster.advance(2_000);
    for i in 0..3 {
        assert_eq!(cluster.values(i, "visits"), ["112"], "at {i}");
    }
    cluster.update(1, "visits", Mutation::Add { delta: -12 }).unwrap();
    assert_eq!(cluster.values(2, "visits"), ["100"]);
    cluster.assert_converged("visits", 3);
    let error = cluster.update(0, "visits", Mutation::Add { delta: i64::MAX }).unwrap_err();
    assert_eq!(error.to_string(), "increment or decrement would overflow");
}

/// Source: issue 2, "NX, INCR, APPEND are evaluated at the coordinating replica against R replicas".
#[test]
fn of_concurrent_conditional_stores_at_different_nodes_exactly_one_applies() {
    let mut cluster = Cluster::new(4);
    let ids: Vec<_> = (0..4)
        .map(|i| {
            let mutation = store(&format!("n{i}"), Basis::Local, Condition::IfAbsent);
            let (quorum, want) = (Quorum::default(), Want::default());
            cluster.ask(i, Operation::Update { key: key("lock"), mutation, quorum, want, caller: None })
        })
        .collect();
    let mut winners = 0;
    for id in ids {
        match cluster.wait(id).unwrap() {
            Reply::Updated(updated) => winners += updated.applied as u32,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(winners, 1);
    assert_eq!(cluster.values(0, "lock").len(), 1);
}

/// Source: DESIGN §2; issue 2, "refuses absurd remote clocks".
#[test]
fn dots_from_an_absurdly_fast_clock_are_refused() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    let object = object_at(far_ahead(3_600_000)).encode();
    cluster.inject(1, 0, Message::write(0, key("cart"), object, u64::MAX));
    assert_eq!(cluster.node(0).metrics().clock_refusals, 1);
    assert_eq!(cluster.values(0, "cart"), ["v"]);
    let object = object_at(far_ahead(30_000)).encode();
    cluster.inject(1, 0, Message::write(0, key("cart"), object, u64::MAX));
    assert_eq!(cluster.node(0).metrics().clock_refusals, 1, "an honest skew is tolerated");
    cluster.put(0, "cart", "w").unwrap();
    assert_eq!(cluster.values(0, "cart"), ["w"], "and the next dot is greater still");
}

/// Source: issue 2, "HLC that tolerates clock skew": a jump of the own clock is believed when peers confirm it.
#[test]
fn a_node_whose_clock_jumps_ahead_refuses_puts_until_its_peers_agree() {
    let mut cluster = Cluster::new(3);
    cluster.machines[0].wall_ahead_ms = 600_000;
    let list = cluster.list("cart");
    assert!(list.contains(&0));
    let error = cluster.put(0, "cart", "v").unwrap_err();
    assert!(matches!(error, ClientError::ClockSkew { .. }), "{error}");
    cluster.advance(2_000);
    let error = cluster.put(0, "cart", "v").unwrap_err();
    assert_eq!(error.to_string(), "this node's clock is 600000 ms ahead of its peers': writes are refused");
    assert!(cluster.events.iter().any(|(i, event)| *i == 0 && matches!(event, Event::ClockAhead { .. })));
    cluster.put(1, "cart", "elsewhere").unwrap();
    assert_eq!(cluster.values(0, "cart"), ["elsewhere"], "it still reads");
    cluster.machines[1].wall_ahead_ms = 600_000;
    cluster.machines[2].wall_ahead_ms = 600_000;
    cluster.advance(2_000);
    cluster.put(0, "cart", "all agree").unwrap();
    assert_eq!(cluster.values(1, "cart"), ["all agree"]);
}

/// Source: issue 12, section 3: half is not most, and a node that lags goes by the time of the others.
#[test]
fn one_clock_of_three_that_is_wrong_stops_no_other_and_spoils_no_expiry() {
    for wrong_ms in [-7_200_000, 7_200_000, -30_000, 30_000] {
        let mut cluster = Cluster::new(3);
        cluster.machines[0].wall_ahead_ms = wrong_ms;
        cluster.advance(2_000);
        for i in [1, 2] {
            cluster.put(i, &format!("key{i}"), "v").unwrap();
        }
        let asked = cluster.node(0).time(cluster.now(0)).wall_ms;
        let right = cluster.now(1).wall_ms;
        assert!(asked.abs_diff(right) <= 500, "off by {wrong_ms} ms: it goes by {asked}, not by {right}");
        // As an interface makes an expiry of ten seconds.
        let expiry = Expiry::At(asked + 10_000);
        let (headers, basis, condition) = (Vec::new(), Basis::Local, Condition::Always);
        let mutation = Mutation::Store { value: "soon gone".into(), headers, basis, expiry, condition };
        let through = if wrong_ms > 60_000 { 1 } else { 0 };
        cluster.update(through, "session", mutation).unwrap();
        cluster.advance(9_000);
        (0..3).for_each(|i| assert!(cluster.get(i, "session").unwrap().is_live(time(&cluster, i)), "at {i}"));
        cluster.advance(2_000);
        (0..3)
            .for_each(|i| assert!(!cluster.get(i, "session").unwrap().is_live(time(&cluster, i)), "at {i}"));
    }
}

fn time(cluster: &Cluster, i: usize) -> u64 {
    cluster.node(i).time(cluster.now(i)).wall_ms
}

/// Source: issue 12, section 3: a node that is back with a wrong clock learns of it from its peers' greetings.
#[test]
fn a_node_that_starts_with_a_wrong_clock_goes_by_its_peers() {
    let mut cluster = Cluster::new(3);
    cluster.put(1, "cart", "v").unwrap();
    cluster.kill(0);
    cluster.machines[0].wall_ahead_ms = -7_200_000;
    cluster.restart(0);
    cluster.advance(1_000);
    cluster.put(1, "cart", "w").unwrap();
    cluster.put(0, "cart", "x").unwrap();
    for i in 0..3 {
        assert_eq!(cluster.values(i, "cart"), ["x"], "at {i}");
    }
    let told =
        cluster.events.iter().any(|(i, event)| *i == 0 && matches!(event, Event::ClockCorrected { .. }));
    assert!(told && cluster.total("clock_corrections") > 0);
}

/// Source: DESIGN §2: a counter never goes back, not even when the clock does.
#[test]
fn a_clock_that_jumps_back_makes_no_dot_smaller() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    for back_ms in [1_000, 30_000, 3_600_000] {
        let before = cluster.held(0, "cart").unwrap().0.newest().unwrap().0;
        (0..3).for_each(|i| cluster.machines[i].wall_ahead_ms = -back_ms);
        cluster.put(0, "cart", &back_ms.to_string()).unwrap();
        assert_eq!(cluster.values(1, "cart"), [back_ms.to_string()]);
        let after = cluster.held(0, "cart").unwrap().0.newest().unwrap().0;
        assert!(after > before || after.actor != before.actor, "{after:?} after {before:?}");
    }
}

/// Source: DESIGN §1.1, §1.2: what was written by a clock that has gone back since is read and overwritten as before.
#[test]
fn when_all_clocks_go_back_an_hour_earlier_keys_are_still_served() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    (0..3).for_each(|i| cluster.machines[i].wall_ahead_ms = -3_600_000);
    assert_eq!(cluster.values(0, "cart"), ["v"]);
    for writer in [0, 1, 2, 0] {
        let value = format!("from {writer}");
        cluster.put(writer, "cart", &value).unwrap();
        for reader in 0..3 {
            assert_eq!(cluster.values(reader, "cart"), [value.as_str()]);
        }
    }
    cluster.assert_converged("cart", 3);
    let read = cluster.get(1, "cart").unwrap().context().clone();
    cluster.update(2, "cart", store("w", Basis::Seen(read), Condition::Always)).unwrap();
    assert_eq!(cluster.values(0, "cart"), ["w"]);
}

/// Source: issue 2, "a flipped byte on disk is detected, reported, and repaired from the other replicas, never served".
#[test]
fn a_corrupt_row_is_repaired_from_the_others_and_the_actor_renewed() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    let actor = |cluster: &Cluster| cluster.held(0, "cart").unwrap().0.newest().unwrap().0.actor;
    let old = actor(&cluster);
    assert!(cluster.machines[0].disk.lock().corrupt(Space::Data, key("cart").row()));
    for i in 0..3 {
        assert_eq!(cluster.values(i, "cart"), ["v"]);
    }
    assert!(cluster.total("corrupt_rows") >= 1, "counted by the read, and again by the repair");
    assert_eq!(cluster.total("corrupt_rows_repaired"), 1);
    let named =
        |event: &Event| matches!(event, Event::CorruptRow { detail } if detail.contains("default/cart"));
    assert!(cluster.events.iter().any(|(i, event)| *i == 0 && named(event)), "{:?}", cluster.events);
    cluster.assert_converged("cart", 3);
    cluster.put(0, "cart", "w").unwrap();
    assert_ne!(actor(&cluster), old, "the old actor may have forgotten writes of its own");
    assert_eq!(cluster.values(1, "cart"), ["w"]);
    cluster.put(0, "other", "x").unwrap();
    assert_eq!(cluster.total("actor_renewals"), 1);
}

/// Source: issue 3, "a corrupt replica is refilled", without a read that meets the row; DESIGN §1.7.
#[test]
fn a_corrupt_row_that_nobody_reads_is_found_named_and_repaired() {
    let mut cluster = Cluster::with(3, |config| config.entropy_ms = 250);
    cluster.put(0, "cart", "v").unwrap();
    cluster.put(0, "other", "v").unwrap();
    assert!(cluster.machines[1].disk.lock().corrupt(Space::Data, key("cart").row()));
    cluster.advance(120_000);
    let named =
        |event: &Event| matches!(event, Event::CorruptRow { detail } if detail.contains("default/cart"));
    assert!(cluster.events.iter().any(|(i, event)| *i == 1 && named(event)), "{:?}", cluster.events);
    cluster.assert_converged("cart", 3);
}

/// Source: DESIGN §1.3: a put at a replica whose row is corrupt keeps what the others hold.
#[test]
fn a_put_on_a_corrupt_row_is_evaluated_on_what_another_replica_holds() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "log", "a").unwrap();
    cluster.machines[0].disk.lock().corrupt(Space::Data, key("log").row());
    cluster.update(0, "log", store("b", Basis::Unseen, Condition::Always)).unwrap();
    assert_eq!(cluster.values(0, "log"), ["a", "b"]);
    cluster.assert_converged("log", 3);
}

/// Source: issue 12, "running out is never reported as a damaged disk"; DESIGN §1.2.
#[test]
fn a_row_that_cannot_be_read_now_is_neither_damaged_nor_written_over() {
    let mut cluster = Cluster::with(3, |config| config.entropy_ms = 250);
    for name in ["count", "log", "cart"] {
        cluster.put(0, name, "1").unwrap();
    }
    let held: Vec<_> = (0..3).map(|i| cluster.held(i, "cart")).collect();
    for i in 0..3 {
        cluster.machines[i].disk.lock().set_exhausted(true);
        for at in 0..3 {
            // Whatever they are answered: nothing may be lost by them.
            let _ = cluster.update(at, "count", Mutation::Add { delta: 1 });
            let _ = cluster.update(at, "log", store("2", Basis::Unseen, Condition::Always));
            let _ = cluster.get(at, "cart");
        }
        cluster.advance(3_000);
        cluster.machines[i].disk.lock().set_exhausted(false);
        cluster.advance(3_000);
    }
    assert_eq!(cluster.total("corrupt_rows"), 0, "nothing is damaged");
    assert_eq!(cluster.total("actor_renewals"), 0, "and nothing forgotten");
    for (i, held) in held.into_iter().enumerate() {
        assert_eq!(cluster.held(i, "cart"), held);
        assert!(cluster.values(i, "log").contains(&"1".to_string()), "the first value was not written over");
    }
    cluster.update(0, "count", Mutation::Add { delta: 1 }).expect("it counts on");
    for name in ["count", "log", "cart"] {
        cluster.assert_converged(name, 3);
    }
}

/// Source: issue 2, "a full disk makes the node refuse writes with a clear error, stay readable, and recover".
#[test]
fn a_full_disk_refuses_writes_stays_readable_and_recovers() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    let held = cluster.held(0, "cart");
    cluster.machines[0].disk.lock().set_full(true);
    let error = cluster.put(0, "cart", "lost").unwrap_err();
    assert_eq!(
        error.to_string(),
        "this node refuses writes: the store refuses writes: no space left on device"
    );
    for i in 0..3 {
        assert_eq!(cluster.held(i, "cart"), held, "nothing is half-written at {i}");
        assert_eq!(cluster.values(i, "cart"), ["v"]);
    }
    assert!(cluster.node(0).read_only().is_some());
    // As a replica it says so, and the others carry on.
    cluster.put(1, "cart", "w").unwrap();
    assert_eq!(cluster.values(2, "cart"), ["w"]);
    cluster.machines[0].disk.lock().set_full(false);
    cluster.advance(2_000);
    assert!(cluster.events.contains(&(0, Event::StoreAccepts)));
    cluster.assert_converged("cart", 3);
    cluster.put(0, "cart", "x").unwrap();
    assert_eq!(cluster.values(1, "cart"), ["x"]);
}

/// Source: DESIGN §6, "outputs leave after what they claim is durable": nothing else is taken back.
#[test]
fn a_disk_that_keeps_nothing_denies_only_what_it_was_to_keep() {
    let mut cluster = Cluster::new(4);
    let named = |cluster: &Cluster, home: usize| {
        (0..).map(|i| format!("visits {i}")).find(|name| cluster.list(name)[0] == home).expect("some key")
    };
    let (elsewhere, here) = (named(&cluster, 1), named(&cluster, 0));
    for is_full in [true, false] {
        cluster.machines[0].disk.lock().set_full(is_full);
        cluster.machines[0].disk.set_forgets(!is_full);
        for _ in 0..3 {
            cluster.update(0, &elsewhere, Mutation::Add { delta: 1 }).expect("its home has a sound disk");
        }
        cluster.machines[0].disk.lock().set_full(false);
        cluster.machines[0].disk.set_forgets(false);
        cluster.advance(2_000);
    }
    assert_eq!(cluster.values(2, &elsewhere), ["6"]);
    cluster.machines[0].disk.set_forgets(true);
    let error = cluster.put(0, &here, "v").unwrap_err();
    assert_eq!(error, ClientError::OutcomeUnknown, "its own copy may be lost");
}

/// Source: DESIGN §1.1, "a write is accepted: first from the preference list and then from the fallbacks".
#[test]
fn updates_whose_home_cannot_write_are_run_by_the_next_owner() {
    let mut cluster = Cluster::new(4);
    cluster.update(1, "visits", Mutation::Add { delta: 1 }).unwrap();
    let list = cluster.list("visits");
    cluster.machines[list[0]].disk.lock().set_full(true);
    for i in &list[1..] {
        cluster.update(*i, "visits", Mutation::Add { delta: 1 }).unwrap();
        assert!(
            cluster
                .update(*i, "visits", Mutation::Delete { basis: Basis::Local, condition: Condition::Always })
                .unwrap()
                .applied
        );
        cluster.update(*i, "visits", Mutation::Add { delta: 1 }).unwrap();
    }
    // They still meet at one node.
    let lock = (0..).map(|i| format!("lock {i}")).find(|name| cluster.list(name)[0] == list[0]).unwrap();
    let ids = list[1..].iter().map(|&i| {
        let mutation = store(&format!("n{i}"), Basis::Local, Condition::IfAbsent);
        let (quorum, want) = (Quorum::default(), Want::default());
        cluster.ask(i, Operation::Update { key: key(&lock), mutation, quorum, want, caller: None })
    });
    let ids: Vec<_> = ids.collect();
    let mut winners = 0;
    for id in ids {
        match cluster.wait(id).unwrap() {
            Reply::Updated(updated) => winners += updated.applied as u32,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(winners, 1);
    // When none can write, it is said why.
    for machine in &cluster.machines {
        machine.disk.lock().set_full(true);
    }
    let error = cluster.update(list[1], "visits", Mutation::Add { delta: 1 }).unwrap_err();
    assert!(matches!(error, ClientError::ReadOnly { .. }), "{error}");
}

/// Source: docs/redis.md, `DBSIZE`.
#[test]
fn counting_keys_merges_replicas_as_listing_does() {
    let mut cluster = Cluster::new(3);
    (0..300).for_each(|i| drop(cluster.put(0, &format!("k{i}"), "v").unwrap()));
    assert_eq!(cluster.count(1).unwrap(), 300);
    cluster.cut(0, 2);
    cluster.cut(1, 2);
    (0..50).for_each(|i| drop(cluster.put(0, &format!("new{i}"), "v").unwrap()));
    for i in 0..20 {
        cluster
            .update(
                0,
                &format!("k{i}"),
                Mutation::Delete { basis: Basis::Local, condition: Condition::Always },
            )
            .unwrap();
    }
    // What the third missed, it is told by nobody: its hints are gone.
    for i in [0, 1] {
        let mut disk = cluster.machines[i].disk.lock();
        let hints: Vec<_> = disk.rows(Space::Hints).map(|(row, _)| row.clone()).collect();
        hints.into_iter().for_each(|row| disk.apply((Space::Hints, row, None)));
    }
    cluster.heal();
    cluster.advance(2_000);
    assert_eq!(cluster.held(2, "new0"), None, "the third is not stale");
    let listed = cluster.scan(2, Position(0), 1000).unwrap().keys.len();
    assert_eq!(listed, 330);
    for i in 0..3 {
        assert_eq!(cluster.count(i).unwrap(), 330, "at {i}");
    }
    cluster.kill(0);
    cluster.kill(1);
    let error = cluster.count(2).unwrap_err();
    assert_eq!(error.to_string(), "quorum unavailable: 1 of 2 replicas can be reached");
    assert_eq!(cluster.scan(2, Position(0), 10).unwrap_err(), error);
}

/// Source: issue 2, "corrupted context tokens"; DESIGN §2.
#[test]
fn a_forged_context_is_refused_and_an_unknown_one_does_no_harm() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    let forged = |counter| Basis::Seen([Dot { counter, actor: ActorId(7) }].into_iter().collect());
    for counter in [u64::MAX, far_ahead(3_600_000)] {
        let error = cluster.update(0, "cart", store("w", forged(counter), Condition::Always)).unwrap_err();
        assert_eq!(error, ClientError::InvalidContext);
    }
    assert_eq!(cluster.values(1, "cart"), ["v"]);
    // A context that claims this very node's future, within the tolerated skew.
    let own = cluster.held(0, "cart").unwrap().0.newest().unwrap().0;
    let future = Dot { counter: far_ahead(50_000), actor: own.actor };
    let seen = Basis::Seen([future].into_iter().collect());
    cluster.update(0, "cart", store("w", seen, Condition::Always)).unwrap();
    assert_eq!(cluster.values(1, "cart"), ["w"]);
    cluster.put(0, "cart", "x").unwrap();
    assert_eq!(cluster.values(1, "cart"), ["x"]);
    cluster.assert_converged("cart", 3);
}

/// Source: STYLE, "everything that can grow has a limit with a name".
#[test]
fn siblings_and_values_have_limits() {
    let mut cluster = Cluster::new(3);
    let blind = |i: usize| store(&format!("{i:04}"), Basis::Unseen, Condition::Always);
    for i in 0..SIBLINGS_MAX {
        cluster.update(0, "cart", blind(i)).unwrap();
    }
    let error = cluster.update(0, "cart", blind(SIBLINGS_MAX)).unwrap_err();
    assert_eq!(error, ClientError::Mutation(MutationError::TooManySiblings { limit: 128 }));
    let object = cluster.get(1, "cart").unwrap();
    assert_eq!(cluster.texts(1, &object).len(), SIBLINGS_MAX);
    let seen = Basis::Seen(object.context().clone());
    cluster.update(2, "cart", store("one", seen, Condition::Always)).unwrap();
    assert_eq!(cluster.values(0, "cart"), ["one"]);

    let limit = 1 << 20;
    cluster.put(0, "big", &"x".repeat(limit)).unwrap();
    let error = cluster.put(0, "big", &"x".repeat(limit + 1)).unwrap_err();
    assert_eq!(error.to_string(), "value of 1048577 bytes exceeds the bucket's limit of 1048576 bytes");
    let error = cluster.update(0, "big", Mutation::Append { suffix: "y".into() }).unwrap_err();
    assert_eq!(error.to_string(), "value of 1048577 bytes exceeds the bucket's limit of 1048576 bytes");
    let far = Mutation::SetRange { offset: u64::MAX, patch: "y".into() };
    assert!(matches!(
        cluster.update(0, "far", far),
        Err(ClientError::Mutation(MutationError::ValueTooLarge { .. }))
    ));
}

/// Source: DESIGN §1.7, "an overloaded node says BUSY".
#[test]
fn an_overloaded_node_says_busy_and_recovers() {
    let mut cluster = Cluster::with(3, |config| config.requests_max = 2);
    cluster.put(0, "cart", "v").unwrap();
    cluster.silence(1, 0);
    cluster.silence(2, 0);
    let get = || Operation::Get { key: key("cart"), quorum: Quorum::default() };
    let waiting = [cluster.ask(0, get()), cluster.ask(0, get())];
    let refused = cluster.ask(0, get());
    assert_eq!(cluster.answer(refused), Some(Err(ClientError::Busy { waiting: 2 })));
    for id in waiting {
        assert!(cluster.wait(id).is_err());
    }
    cluster.heal();
    cluster.advance(60_000);
    assert_eq!(cluster.values(0, "cart"), ["v"]);
}

/// Source: DESIGN §2: the actor is renewed when writes it named may be gone.
#[test]
fn the_actor_is_renewed_after_an_unclean_stop_of_the_machine_but_not_after_a_mere_kill() {
    let actor = |cluster: &mut Cluster, value: &str| {
        cluster.put(0, "cart", value).unwrap();
        cluster.held(0, "cart").unwrap().0.newest().unwrap().0.actor
    };
    let mut cluster = Cluster::new(3);
    let first = actor(&mut cluster, "1");
    cluster.kill(0);
    cluster.restart(0);
    assert_eq!(actor(&mut cluster, "2"), first, "the system kept what was written");
    cluster.crash(0, Crash::Power);
    cluster.machines[0].config.boot = 2;
    cluster.restart(0);
    cluster.kill(0); // before its first write
    cluster.restart(0);
    let second = actor(&mut cluster, "3");
    assert_ne!(second, first);
    cluster.turn(0, Input::Stop);
    cluster.kill(0);
    cluster.machines[0].config.boot = 3;
    cluster.restart(0);
    assert_eq!(actor(&mut cluster, "4"), second, "a clean stop forgets nothing");
    assert_eq!(cluster.values(1, "cart"), ["4"]);
}

/// Source: DESIGN §2: dots are unique for ever, also over restarts that lose what was not synced.
#[test]
fn no_dot_is_used_twice_over_restarts() {
    let mut cluster = Cluster::new(3);
    let mut last = 0;
    for round in 0..5 {
        cluster.put(0, "cart", &round.to_string()).unwrap();
        let dot = cluster.held(0, "cart").unwrap().0.newest().unwrap().0;
        assert!(dot.counter > last, "round {round}");
        last = dot.counter;
        cluster.crash(0, Crash::Power);
        cluster.machines[0].wall_ahead_ms -= 5_000; // and the clock comes back slow
        cluster.restart(0);
    }
}

/// Source: issue 2, "a foreign or newer format is refused with a clear error, never misread".
#[test]
fn a_directory_of_another_cluster_or_format_is_refused() {
    let mut cluster = Cluster::new(1);
    cluster.kill(0);
    let now = cluster.now(0);
    let open = |cluster: &Cluster, name: &str| {
        let mut config = cluster.machines[0].config.clone();
        config.cluster = name.into();
        Node::open(config, 1, Box::new(cluster.machines[0].disk.clone()), now).err()
    };
    assert_eq!(open(&cluster, "oort"), None);
    assert_eq!(open(&cluster, "prod"), Some(OpenError::ForeignCluster { found: "oort".into() }));
    let write = |cluster: &mut Cluster, row: &'static [u8], bytes: &'static [u8]| {
        let mut disk = cluster.machines[0].disk.lock();
        disk.apply((Space::Meta, row.into(), Some(bytes.into())));
        disk.sync(Durability::Durable).unwrap();
    };
    let membership = cluster.machines[0].disk.lock().get(Space::Meta, b"membership").unwrap();
    assert!(membership.is_some());
    write(&mut cluster, b"membership", &[200, 1, 2, 3]);
    let error = open(&cluster, "oort").unwrap();
    assert_eq!(error, OpenError::ForeignFormat { found: 200 });
    let text =
        format!("the directory's records have format version 200, this program reads version {META_FORMAT}");
    assert_eq!(error.to_string(), text);
    write(&mut cluster, b"membership", &[META_FORMAT]);
    assert_eq!(open(&cluster, "oort"), Some(OpenError::Malformed { record: "membership" }));
    write(&mut cluster, b"identity", &[]);
    assert_eq!(open(&cluster, "oort"), Some(OpenError::Malformed { record: "identity" }));
}

/// Source: DESIGN §2, "an expired version reads as absent".
#[test]
fn an_expired_value_reads_as_absent_and_is_replaced_without_a_sibling() {
    let mut cluster = Cluster::new(3);
    let at = Expiry::At(cluster.now(0).wall_ms + 500);
    let mutation = Mutation::Store {
        value: "soon gone".into(),
        headers: Vec::new(),
        basis: Basis::Local,
        expiry: at,
        condition: Condition::Always,
    };
    cluster.update(0, "session", mutation).unwrap();
    assert_eq!(cluster.values(1, "session"), ["soon gone"]);
    cluster.advance(500);
    assert_eq!(cluster.values(1, "session"), Vec::<String>::new());
    let updated = cluster.update(2, "session", store("new", Basis::Unseen, Condition::IfAbsent)).unwrap();
    assert!(updated.applied);
    assert_eq!(cluster.values(0, "session"), ["new"]);
    assert_eq!(cluster.held(0, "session").unwrap().0.values().len(), 1);
}

/// Source: DESIGN §2: the last write of a bucket's properties wins, also after one by a node with a faster clock.
#[test]
fn a_bucket_can_be_set_again_by_a_node_with_a_slower_clock() {
    let mut cluster = Cluster::new(3);
    cluster.machines[1].wall_ahead_ms = 30_000;
    let with_n = |n| BucketProperties { n, r: 1, w: 1, ..BucketProperties::default() };
    cluster.set_bucket(1, b"sessions", with_n(1));
    cluster.pump();
    cluster.set_bucket(0, b"sessions", with_n(2));
    cluster.pump();
    for i in 0..3 {
        assert_eq!(cluster.node(i).buckets().properties(b"sessions").n, 2, "at {i}");
    }
}

/// Source: DESIGN §2: a bucket made `lww` later answers one value, also for what was written before.
#[test]
fn siblings_from_before_a_bucket_became_lww_are_no_longer_shown() {
    let mut cluster = Cluster::new(3);
    for value in ["a", "b"] {
        cluster.update(0, "cart", store(value, Basis::Unseen, Condition::Always)).unwrap();
    }
    assert_eq!(cluster.values(0, "cart"), ["a", "b"]);
    let lww = BucketProperties { conflict: Conflict::Lww, ..BucketProperties::default() };
    cluster.set_bucket(0, b"default", lww);
    cluster.pump();
    assert_eq!(cluster.values(0, "cart"), ["b"]);
}

/// Source: STYLE, "bad input from peers is a `Result`, never a panic".
#[test]
fn extreme_numbers_from_a_peer_do_no_harm() {
    let mut cluster = Cluster::new(3);
    for wall_ms in [0, 1 << 63, u64::MAX] {
        for gossip in [
            Gossip::Ping { mono_us: u64::MAX, wall_ms },
            Gossip::Pong { mono_us: 0, wall_ms, coordinate: Coordinate::default(), sent_us: u64::MAX },
        ] {
            cluster.inject(1, 0, Message::Control(Control::Gossip(gossip)));
        }
    }
    let mut own = cluster.node(0).membership().own().clone();
    own.version = u64::MAX;
    let (ring, buckets) = (None, Vec::new());
    let rumour = Gossip::Delta { members: vec![own], ring, buckets };
    cluster.inject(1, 0, Message::Control(Control::Gossip(rumour)));
    let (from, to) = (Position(u64::MAX), Position(0));
    let scan = Scan { bucket: "default".into(), from, to, limit: u32::MAX, count_only: false };
    cluster.inject(
        1,
        0,
        Message::Control(Control::ScanRange { task: u64::MAX, part: 0, scan, stamp: u64::MAX }),
    );
    let stamp = cluster.node(0).ring().unwrap().stamp();
    for stamp in [0, stamp, u64::MAX] {
        let (task, from, to) = (1, u64::MAX, 0);
        cluster.inject(1, 0, Message::Control(Control::ListRange { task, from, to, stamp }));
    }
    let (from, to, rows) = (u64::MAX, 0, Vec::new());
    cluster.inject(1, 0, Message::Control(Control::EntropyRows { from, to, rows, stamp }));
    for (from, to) in [(0, u32::MAX), (u32::MAX, u32::MAX), (7, 0), (0, 65_535), (3, 3)] {
        for sums in [vec![], vec![1], vec![7; 1_000]] {
            cluster.inject(1, 0, Message::Control(Control::EntropySums { from, to, sums, stamp }));
        }
    }
    for task in [0, 1, u64::MAX] {
        let outcome = WriteOutcome::Durable;
        cluster.inject(1, 0, Message::Written { task, outcome });
        let outcome = ReadOutcome::Object("no object".into());
        cluster.inject(1, 0, Message::ReadResult { task, outcome });
        let object = "no object".into();
        cluster.inject(1, 0, Message::write(task, key("cart"), object, stamp));
    }
    cluster.advance(2_000);
    cluster.put(0, "cart", "v").unwrap();
    assert_eq!(cluster.values(1, "cart"), ["v"]);
}

/// A cluster of four with replicas on three, where deleted objects are forgotten after two seconds.
fn forgetful() -> Cluster {
    Cluster::with(4, |config| {
        config.entropy_ms = 50;
        config.collect_after_ms = 2_000;
    })
}

fn delete() -> Mutation {
    Mutation::Delete { basis: Basis::Local, condition: Condition::Always }
}

fn holders(cluster: &Cluster, name: &str) -> usize {
    (0..4).filter(|i| cluster.held(*i, name).is_some()).count()
}

/// Source: DESIGN §1.5, `docs/deletes.md`.
#[test]
fn deleted_and_expired_objects_are_forgotten_everywhere_and_live_ones_are_not() {
    let mut cluster = forgetful();
    for name in ["deleted", "expiring", "kept"] {
        cluster.put(0, name, "v").unwrap();
    }
    cluster.update(0, "deleted", delete()).unwrap();
    let at_ms = Some(cluster.now(0).wall_ms + 3_000);
    let condition = ExpiryCondition::ALWAYS;
    cluster.update(0, "expiring", Mutation::SetExpiry { at_ms, condition }).unwrap();
    cluster.advance(1_000);
    assert_eq!(holders(&cluster, "deleted"), 3, "not at once");
    cluster.advance(60_000);
    for (name, expected) in [("deleted", 0), ("expiring", 0), ("kept", 3)] {
        assert_eq!(holders(&cluster, name), expected, "{name}");
    }
    assert_eq!(cluster.total("dead_forgotten"), 6);
    assert_eq!(cluster.values(3, "kept"), ["v"]);
    cluster.put(1, "deleted", "again").unwrap();
    assert_eq!(cluster.values(2, "deleted"), ["again"]);
}

fn list_all(cluster: &mut Cluster, i: usize, limit: u32) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), Some(Position(0)));
    while let Some(position) = from {
        let page = cluster.scan(i, position, limit).unwrap();
        assert!(page.next.is_none_or(|next| next > position), "the page leads on");
        found.extend(page.keys.iter().map(|name| support::text(name)));
        from = page.next;
    }
    found.sort();
    found
}

/// Source: Riak KV's list of buckets: those that hold a live key, whatever their number of copies.
#[test]
fn buckets_that_hold_keys_are_listed() {
    let mut cluster = Cluster::new(4);
    let single = BucketProperties { n: 1, r: 1, w: 1, ..BucketProperties::default() };
    cluster.run(0, Operation::SetBucket { bucket: "single".into(), properties: single }).unwrap();
    cluster.advance(5_000);
    for (bucket, name) in [("single", "only"), ("many", "a"), ("many", "b"), ("emptied", "gone")] {
        let key = ObjectKey::new(bucket.as_bytes(), name.as_bytes()).unwrap();
        let update = |mutation| Operation::Update {
            key: key.clone(),
            mutation,
            quorum: Quorum::default(),
            want: Want::default(),
            caller: None,
        };
        cluster.run(1, update(store("v", Basis::Local, Condition::Always))).unwrap();
        if bucket == "emptied" {
            let delete = Mutation::Delete { basis: Basis::Local, condition: Condition::Always };
            cluster.run(2, update(delete)).unwrap();
        }
    }
    for i in 0..4 {
        let (mut found, mut from) = (Vec::new(), Some(Position(0)));
        while let Some(position) = from {
            let to = Position(u64::MAX);
            let scan = Scan { bucket: Bytes::new(), from: position, to, limit: 1, count_only: false };
            let Reply::Page(page) = cluster.run(i, Operation::Scan(scan)).unwrap() else {
                panic!("not a page")
            };
            found.extend(page.keys);
            from = page.next;
        }
        found.sort();
        assert_eq!(found, ["many", "many", "single"], "node {i}");
    }
}

/// Source: issue 12 §6: dead rows are free to skip, at once, and also while they cannot be forgotten.
#[test]
fn a_listing_looks_at_no_dead_rows() {
    let mut cluster = Cluster::new(4);
    let expiry = Expiry::At(cluster.now(0).wall_ms + 2_000);
    for i in 0..200 {
        let (name, basis, condition) = (format!("k{i}"), Basis::Local, Condition::Always);
        let (value, headers) = (Bytes::from("v"), Vec::new());
        let mutation = match i % 2 {
            0 => Mutation::Store { value, headers, basis, expiry, condition },
            _ => store("v", basis, condition),
        };
        cluster.update(i % 4, &name, mutation).unwrap();
    }
    assert_eq!(list_all(&mut cluster, 0, 7).len(), 200);
    cluster.kill(3);
    for i in (1..200).step_by(2) {
        cluster.update(i % 3, &format!("k{i}"), delete()).unwrap();
    }
    cluster.advance(3_000);
    let looked_at = cluster.total("scan_rows");
    assert_eq!((list_all(&mut cluster, 1, 7), cluster.count(2).unwrap()), (Vec::new(), 0));
    assert_eq!(cluster.total("scan_rows"), looked_at, "200 dead rows were skipped");
    cluster.put(0, "k7", "again").unwrap();
    cluster.put(1, "new", "v").unwrap();
    assert_eq!(
        (list_all(&mut cluster, 2, 1), cluster.count(1).unwrap()),
        (vec!["k7".into(), "new".into()], 2)
    );
    assert!(cluster.total("scan_rows") < looked_at + 60, "few dead rows lie beside the live ones");
}

/// Source: issue 12 §6: what a replica does not list it may have deleted.
#[test]
fn a_deletion_that_one_replica_missed_is_found_by_a_listing() {
    let mut cluster = Cluster::new(3);
    for name in ["kept", "deleted", "missed"] {
        cluster.put(0, name, "v").unwrap();
    }
    cluster.advance(1_000);
    cluster.kill(2);
    cluster.update(0, "deleted", delete()).unwrap();
    cluster.put(0, "missed", "v").unwrap();
    cluster.restart(2);
    // Before anything repairs it: the three look at what each of them holds.
    for i in 0..3 {
        assert_eq!(list_all(&mut cluster, i, 10), ["kept", "missed"], "at {i}");
        assert_eq!(cluster.count(i).unwrap(), 2);
    }
}

/// Source: DESIGN §1.5: while a member is down it may hold what was deleted.
#[test]
fn nothing_is_forgotten_while_a_member_is_down_and_it_brings_nothing_back() {
    let mut cluster = forgetful();
    cluster.put(0, "x", "old").unwrap();
    let owner = (1..4).find(|i| cluster.held(*i, "x").is_some()).expect("somebody else holds it");
    cluster.kill(owner);
    cluster.update(0, "x", delete()).unwrap();
    cluster.advance(60_000);
    assert!(holders(&cluster, "x") >= 2, "the others remember the delete");
    cluster.restart(owner);
    cluster.advance(60_000);
    assert_eq!(holders(&cluster, "x"), 0, "it has heard of the delete, and all have forgotten it");
    assert!(cluster.values(0, "x").is_empty());
}

/// Source: issue 3, "no full rebuild in normal life".
#[test]
fn a_stopped_node_keeps_its_hash_tree_and_a_killed_one_does_not() {
    let disk = Disk::default();
    let open = || Replica::open(Box::new(disk.clone()), "oort", Rng::new(1), 60_000, 1 << 20, 0).unwrap();
    let all = 0..=LEAVES - 1;
    let mut replica = open();
    replica.tree_mut().count(&all, &[]);
    let object = Object::default();
    replica.save(&key("x"), &object, object.encode());
    replica.sync(Durability::Durable).unwrap();
    let sum = replica.tree().sum(&all, |_| true);
    assert_ne!(sum, 0);
    replica.close().unwrap();

    let mut replica = open();
    assert_eq!((replica.tree().uncounted(&all), replica.tree().sum(&all, |_| true)), (None, sum));
    replica.sync(Durability::Durable).unwrap();

    let replica = open();
    assert_eq!(replica.tree().uncounted(&all), Some(all), "nobody stopped it");
}

/// Source: DESIGN §4, "W counts copies that are durable": of a cluster of one node, one.
#[test]
fn a_quorum_asked_for_by_a_request_counts_copies_that_can_exist() {
    let quorum = |w, primary_w| Quorum { w, primary_w, ..Quorum::default() };
    let store = || Mutation::store("value");
    for nodes in 1..=3 {
        let mut cluster = Cluster::new(nodes);
        cluster
            .update_with(0, key("plain"), store(), Quorum::default())
            .expect("a bucket's w is all there are");
        for asked in 1..=3u8 {
            for quorum in [quorum(Some(asked), 0), quorum(None, asked)] {
                let result = cluster.update_with(0, key("asked"), store(), quorum);
                let too_few = ClientError::TooFewReachable { reachable: nodes as u8, needed: asked };
                match asked as usize <= nodes {
                    true => assert!(result.is_ok(), "{asked} of {nodes}: {result:?}"),
                    false => assert_eq!(result.err(), Some(too_few), "{asked} of {nodes}"),
                }
            }
        }
    }
}
