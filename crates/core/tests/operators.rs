//! What operators may do to a cluster, in any order, without losing an acknowledged write.

mod support;

use oort_core::client::{ClientError, Reply};
use oort_core::placement::RingNode;
use oort_core::ring::{RingChange, RingError};
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
