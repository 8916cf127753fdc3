//! What operators may do to a cluster, in any order, without losing an acknowledged write.

mod support;

use bytes::Bytes;
use oort_core::bucket::{BucketProperties, Replication};
use oort_core::client::{ClientError, Operation, Quorum, Reply};
use oort_core::mutation::{Basis, Condition, Mutation};
use oort_core::placement::RingNode;
use oort_core::ring::{RingChange, RingError};
use oort_core::store::{Durability, Space, Store};
use oort_core::types::ObjectKey;
use support::Cluster;

fn remove(cluster: &Cluster, i: usize) -> RingChange {
    RingChange::Remove { node: cluster.id(i) }
}

fn refusal(result: Result<Reply, ClientError>) -> RingError {
    match result {
        Err(ClientError::Ring(error)) => error,
        other => panic!("it was not refused: {other:?}"),
    }
}

fn version(cluster: &Cluster, i: usize) -> u64 {
    cluster.node(i).ring().unwrap().state().version
}

/// Nodes that are up are not given up, whichever node is asked, one after another or all at once.
#[test]
fn nodes_that_are_up_are_not_removed() {
    let mut cluster = Cluster::new(4);
    (0..100).for_each(|i| drop(cluster.put(i % 4, &format!("key{i}"), "v").unwrap()));
    for asked in 0..4 {
        for given_up in 0..4 {
            let node = cluster.id(given_up);
            let removal = remove(&cluster, given_up);
            let error = refusal(cluster.change_ring(asked, removal));
            assert_eq!(error, RingError::Alive { node, by: None });
        }
    }
    assert_eq!(version(&cluster, 0), 1);
}

/// The asked node alone cannot reach it: one that can is enough to keep it, whatever the operator forces.
#[test]
fn a_node_that_only_the_asked_one_cannot_reach_is_not_removed() {
    let mut cluster = Cluster::new(4);
    cluster.cut(0, 3);
    cluster.advance(2_000);
    let (removal, node) = (remove(&cluster, 3), cluster.id(3));
    for force in [false, true] {
        let error = refusal(cluster.change_ring_by(0, removal.clone(), force));
        assert!(matches!(error, RingError::Alive { node: found, by: Some(_) } if found == node), "{error:?}");
    }
    assert_eq!(version(&cluster, 0), 1);
}

/// A minority that is cut off cannot give the majority up, nor can one half the other.
#[test]
fn the_smaller_side_of_a_split_removes_nobody() {
    for (nodes, cut_off, is_allowed) in [(5, 2, false), (4, 2, false), (3, 1, false), (3, 2, true)] {
        let mut cluster = Cluster::new(nodes);
        let (left, right): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|i| *i < cut_off);
        cluster.split(&left, &right);
        cluster.advance(5_000);
        let removal = remove(&cluster, right[0]);
        match is_allowed {
            true => drop(cluster.change_ring(0, removal).unwrap()),
            false => {
                let error = refusal(cluster.change_ring(0, removal));
                let is_refused =
                    matches!(error, RingError::Unconfirmed { .. } | RingError::SoleCopies { .. });
                assert!(is_refused, "{error:?}");
                assert_eq!(version(&cluster, 0), 1);
            }
        }
    }
}

/// Two nodes die; the second is removed when what the first held is there again, and nothing is lost.
#[test]
fn dead_nodes_are_removed_one_at_a_time() {
    let mut cluster = Cluster::new(6);
    let name = |i: usize| format!("key{i}");
    (0..300).for_each(|i| drop(cluster.put(i % 6, &name(i), "v").unwrap()));
    cluster.kill(4);
    cluster.advance(10_000);
    cluster.kill(5);
    cluster.advance(2_000);
    let [first, second] = [remove(&cluster, 4), remove(&cluster, 5)];
    cluster.change_ring(0, first).unwrap();
    for asked in 0..4 {
        let error = refusal(cluster.change_ring(asked, second.clone()));
        let underway = RingError::RemovalUnderway { node: cluster.id(5), other: cluster.id(4) };
        assert_eq!(error, underway);
    }
    // The second is dead as well, and is to hold some of it: only force goes on.
    cluster.advance(30_000);
    assert!(cluster.node(0).ring().unwrap().is_moving());
    cluster.change_ring_by(0, second, true).unwrap();
    cluster.advance(60_000);
    assert!(!cluster.node(0).ring().unwrap().is_moving());
    (0..300).for_each(|i| assert_eq!(cluster.values(i % 4, &name(i)), ["v"], "{}", name(i)));
}

/// A lost node is replaced in one step, with the same guards.
#[test]
fn a_node_that_is_gone_is_replaced_in_one_step() {
    let mut cluster = Cluster::with(5, |config| config.cluster_size = 4);
    let outside =
        (0..5).find(|&i| !cluster.node(0).ring().unwrap().nodes().contains(&cluster.id(i))).unwrap();
    let inside: Vec<usize> = (0..5).filter(|&i| i != outside).collect();
    (0..200).for_each(|i| drop(cluster.put(inside[i % 4], &format!("key{i}"), "v").unwrap()));
    let (old, new) = (cluster.id(inside[3]), RingNode::new(cluster.id(outside)));
    let replace = RingChange::Replace { old, new, gone: true };
    let error = refusal(cluster.change_ring(inside[0], replace.clone()));
    assert_eq!(error, RingError::Alive { node: old, by: None });
    cluster.kill(inside[3]);
    cluster.advance(2_000);
    cluster.change_ring(inside[0], replace).unwrap();
    cluster.advance(30_000);
    assert!(!cluster.node(outside).ring().unwrap().is_moving());
    assert!(!cluster.node(outside).membership().members.contains_key(&old), "it is forgotten");
    (0..200).for_each(|i| assert_eq!(cluster.values(outside, &format!("key{i}")), ["v"]));
}

/// A node that was removed and does not know it can change nothing that lasts; one that knows is told to ask others.
#[test]
fn a_removed_node_changes_no_ring() {
    let mut cluster = Cluster::new(4);
    cluster.kill(3);
    cluster.advance(2_000);
    let removal = remove(&cluster, 3);
    cluster.change_ring(0, removal).unwrap();
    cluster.advance(20_000);
    cluster.restart(3);
    cluster.advance(5_000);
    let leave = RingChange::Leave { node: cluster.id(0) };
    assert_eq!(refusal(cluster.change_ring(3, leave)), RingError::Outcast);
}

const BUCKET: &[u8] = b"carts";

fn cart(i: usize) -> ObjectKey {
    ObjectKey::new(BUCKET, format!("cart{i}").as_bytes()).unwrap()
}

fn properties((n, r, w): (u8, u8, u8)) -> BucketProperties {
    BucketProperties { n, r, w, ..BucketProperties::default() }
}

/// Sets the bucket's replication and does not wait until it is in force.
fn set(cluster: &mut Cluster, i: usize, replication: (u8, u8, u8)) {
    let operation =
        Operation::SetBucket { bucket: Bytes::from_static(BUCKET), properties: properties(replication) };
    assert_eq!(cluster.run(i, operation), Ok(Reply::BucketSet));
}

fn in_force(cluster: &Cluster, i: usize) -> Replication {
    cluster.node(i).ring().unwrap().replication(BUCKET)
}

fn delete() -> Mutation {
    Mutation::Delete { basis: Basis::Local, condition: Condition::Always }
}

fn read(cluster: &mut Cluster, i: usize, key: ObjectKey) -> Vec<String> {
    let object = cluster.get_with(i, key, Quorum::default()).unwrap();
    cluster.texts(i, &object)
}

fn write(cluster: &mut Cluster, i: usize, key: ObjectKey, mutation: Mutation) {
    cluster.update_with(i, key, mutation, Quorum::default()).unwrap();
}

/// Whatever a bucket's numbers become: what was acknowledged before and meanwhile is read, from the first moment on.
#[test]
fn no_acknowledged_write_is_missed_while_a_bucket_changes() {
    for (before, after) in [
        ((1, 1, 1), (3, 2, 2)),
        ((3, 2, 2), (5, 2, 4)),
        ((3, 2, 2), (5, 1, 5)),
        ((3, 2, 2), (1, 1, 1)),
        ((5, 3, 3), (3, 2, 2)),
        ((3, 3, 1), (3, 1, 3)),
        ((3, 1, 3), (3, 3, 1)),
        ((2, 1, 2), (4, 3, 2)),
    ] {
        let mut cluster = Cluster::new(5);
        cluster.set_bucket(0, BUCKET, properties(before));
        (0..20).for_each(|i| write(&mut cluster, i % 5, cart(i), Mutation::store("v")));
        set(&mut cluster, 1, after);
        for round in 0..24 {
            for i in 0..20 + round {
                assert_eq!(
                    read(&mut cluster, (i + round) % 5, cart(i)),
                    ["v"],
                    "{before:?} to {after:?}: {i}"
                );
            }
            write(&mut cluster, round % 5, cart(20 + round), Mutation::store("v"));
            cluster.advance(if round < 12 { 1 } else { 500 });
        }
        let (n, r, w) = after;
        (0..5).for_each(|i| {
            assert_eq!(in_force(&cluster, i), Replication { n, r, w }, "{before:?} to {after:?}")
        });
        assert!(!cluster.node(0).ring().unwrap().is_moving());
    }
}

/// Copies that an owner keeps from before are older than what was written without it: they do not come back.
#[test]
fn lowering_and_raising_brings_nothing_old_back() {
    for (high, low) in [((3, 2, 2), (1, 1, 1)), ((5, 2, 4), (2, 1, 2))] {
        let mut cluster = Cluster::new(5);
        cluster.set_bucket(0, BUCKET, properties(high));
        for i in 0..20 {
            write(&mut cluster, i % 5, cart(i), Mutation::store("old"));
            write(&mut cluster, i % 5, cart(100 + i), Mutation::Add { delta: 5 });
        }
        set(&mut cluster, 0, low);
        for _ in 0..5_000 {
            if cluster.node(0).ring().unwrap().is_moving() {
                cluster.advance(1);
            }
        }
        for i in 0..20 {
            write(&mut cluster, i % 5, cart(i), delete());
            write(&mut cluster, i % 5, cart(100 + i), Mutation::Add { delta: 1 });
        }
        set(&mut cluster, 2, high);
        for round in 0..16 {
            for i in 0..20 {
                assert_eq!(read(&mut cluster, round % 5, cart(i)), Vec::<String>::new());
                assert_eq!(read(&mut cluster, (round + i) % 5, cart(100 + i)), ["6"]);
            }
            cluster.advance(if round < 10 { 1 } else { 500 });
        }
    }
}

/// With w = 1 only one owner may have a write. Before one answer is enough for a get, all owners have it.
#[test]
fn fewer_answers_are_enough_only_when_all_owners_have_what_few_had() {
    let mut cluster = Cluster::new(3);
    cluster.set_bucket(0, BUCKET, properties((3, 3, 1)));
    for i in 0..30 {
        write(&mut cluster, i % 3, cart(i), Mutation::store("v"));
        // As if the others had never got it.
        for j in (0..3).filter(|j| *j != i % 3) {
            let mut disk = cluster.machines[j].disk.lock();
            disk.apply((Space::Data, cart(i).row().clone(), None));
            disk.sync(Durability::Durable).unwrap();
        }
    }
    set(&mut cluster, 0, (3, 1, 3));
    (0..10).for_each(|i| assert_eq!(read(&mut cluster, (i + 1) % 3, cart(i)), ["v"], "{i} meanwhile"));
    cluster.settle();
    (0..90).for_each(|i| assert_eq!(read(&mut cluster, i / 30, cart(i % 30)), ["v"], "{i} afterwards"));
    assert_eq!(in_force(&cluster, 1), Replication { n: 3, r: 1, w: 3 });
}

/// A new owner that is down holds the change up and nothing else; the old owners answer until it is back.
#[test]
fn an_owner_that_is_down_holds_a_change_up_without_harm() {
    let mut cluster = Cluster::new(4);
    (0..30).for_each(|i| write(&mut cluster, i % 4, cart(i), Mutation::store("v")));
    cluster.kill(3);
    cluster.advance(3_000);
    set(&mut cluster, 0, (4, 2, 3));
    cluster.advance(10_000);
    assert_eq!(in_force(&cluster, 0), Replication { n: 3, r: 2, w: 2 });
    (0..30).for_each(|i| assert_eq!(read(&mut cluster, i % 3, cart(i)), ["v"]));
    (30..40).for_each(|i| write(&mut cluster, i % 3, cart(i), Mutation::store("v")));
    cluster.restart(3);
    cluster.settle();
    (0..4).for_each(|i| assert_eq!(in_force(&cluster, i), Replication { n: 4, r: 2, w: 3 }));
    (0..40).for_each(|i| assert_eq!(read(&mut cluster, 3, cart(i)), ["v"]));
}

/// On both sides of a split a bucket is set: the later wish comes into force everywhere, and a wish that comes while
/// the ring changes waits for that.
#[test]
fn of_two_wishes_the_later_one_comes_into_force_when_it_can() {
    let mut cluster = Cluster::with(5, |config| config.cluster_size = 4);
    (0..30).for_each(|i| write(&mut cluster, i % 5, cart(i), Mutation::store("v")));
    cluster.split(&[0, 1], &[2, 3, 4]);
    cluster.advance(1_000);
    set(&mut cluster, 0, (1, 1, 1));
    cluster.advance(100);
    set(&mut cluster, 2, (4, 3, 2));
    cluster.heal();
    cluster.advance(20_000);
    cluster.settle();
    (0..5).for_each(|i| assert_eq!(in_force(&cluster, i), Replication { n: 4, r: 3, w: 2 }));
    let outside =
        (0..5).find(|&i| !cluster.node(0).ring().unwrap().nodes().contains(&cluster.id(i))).unwrap();
    cluster.change_ring(0, RingChange::Join { node: RingNode::new(cluster.id(outside)) }).unwrap();
    set(&mut cluster, 1, (5, 3, 3));
    assert_eq!(in_force(&cluster, 1), Replication { n: 4, r: 3, w: 2 }, "the ring is changing");
    cluster.advance(20_000);
    (0..5).for_each(|i| assert_eq!(in_force(&cluster, i), Replication { n: 5, r: 3, w: 3 }));
    (0..30).for_each(|i| assert_eq!(read(&mut cluster, i % 5, cart(i)), ["v"]));
}
