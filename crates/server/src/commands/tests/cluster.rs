//! What Redis Cluster clients learn of the ring.

use super::fake::{text_of, Fake, ORIGIN};
use crate::resp::request::Command;
use crate::resp::Value;
use oort_core::bucket::Replication;
use oort_core::types::{NodeId, SLOTS};

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        other => panic!("{other:?} is no array"),
    }
}

fn number(value: &Value) -> i64 {
    match value {
        Value::Integer(number) => *number,
        other => panic!("{other:?} is no integer"),
    }
}

#[test]
fn slots_cover_everything_once_with_the_preference_lists() {
    let mut fake = Fake::new();
    let mut next = 0;
    for range in array(fake.reply(Command::new(&["CLUSTER", "SLOTS"]))) {
        let range = array(range);
        assert_eq!(number(&range[0]), next);
        next = number(&range[1]) + 1;
        assert_eq!(range.len(), 5, "a range has three nodes");
        let master = array(range[2].clone());
        let position = oort_core::types::Position::first_of_slot(number(&range[0]) as u16);
        let owner = fake.node.ring.as_ref().unwrap().preference_at(position)[0];
        assert_eq!(master[2], Value::text(format!("{owner}{}", "0".repeat(24))));
        assert_eq!(number(&master[1]), 6378 + owner.0 as i64);
    }
    assert_eq!(next, SLOTS as i64);
    assert_eq!(ORIGIN.slot(), 0);
}

#[test]
fn nodes_are_masters_of_the_slots_they_are_first_for() {
    let mut fake = Fake::new();
    fake.node.down = Some(NodeId(3));
    let text = text_of(&mut fake, "CLUSTER NODES");
    let mut covered = 0;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        // The others are masters of what the dead node is first for.
        assert_eq!(fields.len() > 8, !line.contains("fail"), "{line}");
        assert_eq!(fields[0].len(), 40);
        assert_eq!((fields[3], fields[4], fields[6]), ("-", "0", "1"));
        for slots in &fields[8..] {
            let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
            covered += last.parse::<u32>().unwrap() - first.parse::<u32>().unwrap() + 1;
        }
    }
    assert_eq!(covered, SLOTS as u32);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains(" 127.0.0.1:6379@7946 myself,master - 0 0 1 connected "), "{text}");
    assert!(lines[1].contains(" 10.0.0.2:6380@7947 master - 0 1700000000000 1 connected "), "{text}");
    assert!(lines[2].contains(" ::1:6381@7948 master,fail - 0 1700000000000 1 disconnected"), "{text}");
}

#[test]
fn slots_name_no_dead_node_and_are_as_few_ranges_as_can_be() {
    let mut fake = Fake::new();
    for down in [None, Some(NodeId(2))] {
        fake.node.down = down;
        let ranges = array(fake.reply(Command::new(&["CLUSTER", "SLOTS"])));
        let dead = Value::text(format!("{}{}", NodeId(2), "0".repeat(24)));
        let nodes: Vec<Vec<Value>> = ranges
            .into_iter()
            .map(|range| array(range).split_off(2).into_iter().map(|node| array(node)[2].clone()).collect())
            .collect();
        for nodes in &nodes {
            assert_eq!(nodes.len(), if down.is_some() { 2 } else { 3 });
            assert!(down.is_none() || !nodes.contains(&dead), "{nodes:?}");
        }
        assert!(nodes.windows(2).all(|pair| pair[0] != pair[1]), "adjacent ranges of equal nodes");
    }
    fake.node.set_ring(1);
    fake.node.down = Some(NodeId(1));
    let ranges = array(fake.reply(Command::new(&["CLUSTER", "SLOTS"])));
    assert_eq!((ranges.len(), array(ranges[0].clone()).len()), (1, 3), "one range, and somebody to ask");
}

#[test]
fn slots_have_the_copies_in_force_not_those_wanted() {
    let mut fake = Fake::new();
    let sizes = |fake: &mut Fake| -> Vec<usize> {
        ["SLOTS", "SHARDS"]
            .into_iter()
            .flat_map(|form| array(fake.reply(Command::new(&["CLUSTER", form]))))
            .map(|one| match one {
                Value::Map(fields) => array(fields[1].1.clone()).len(),
                range => array(range).len() - 2,
            })
            .collect()
    };
    fake.node.want("default", Replication { n: 1, r: 1, w: 1 });
    assert!(sizes(&mut fake).iter().all(|&nodes| nodes == 3), "the ring has not begun to change");
    fake.node.advance_ring();
    assert!(sizes(&mut fake).iter().all(|&nodes| nodes == 3), "the old owners answer");
    fake.node.advance_ring();
    assert!(sizes(&mut fake).iter().all(|&nodes| nodes == 1), "the data have arrived");
}

#[test]
fn shards_are_lists_of_nodes() {
    let mut fake = Fake::new();
    let shards = array(fake.reply(Command::new(&["CLUSTER", "SHARDS"])));
    let mut covered = 0;
    for shard in shards {
        let Value::Map(fields) = shard else { panic!("no map") };
        let slots = array(fields[0].1.clone());
        for pair in slots.chunks(2) {
            covered += number(&pair[1]) - number(&pair[0]) + 1;
        }
        assert_eq!(array(fields[1].1.clone()).len(), 3);
    }
    assert_eq!(covered, SLOTS as i64);
}

#[test]
fn the_state_of_the_cluster_is_told() {
    let mut fake = Fake::new();
    fake.reply(Command::new(&["MSET", "foo", "1", "{foo}2", "1", "{foo}3", "1", "bar", "1"]));
    fake.check(&[
        ("CLUSTER MYID", &format!("\"{:016x}{}\"", 1, "0".repeat(24))),
        ("CLUSTER KEYSLOT foo", ":12182"),
        ("CLUSTER KEYSLOT a{foo}b", ":12182"),
        ("CLUSTER COUNTKEYSINSLOT 12182", ":3"),
        ("CLUSTER COUNTKEYSINSLOT 16384", "-ERR Invalid slot"),
        ("CLUSTER COUNTKEYSINSLOT x", "-ERR value is not an integer or out of range"),
        ("CLUSTER GETKEYSINSLOT 12182 0", "[]"),
        ("CLUSTER GETKEYSINSLOT 12182 -1", "-ERR Invalid number of keys"),
        ("CLUSTER MEET a 1", "-ERR unknown subcommand 'MEET'. Try CLUSTER HELP."),
        ("READONLY", "OK"),
        ("READWRITE", "OK"),
        ("ASKING", "OK"),
    ]);
    assert_eq!(array(fake.reply(Command::new(&["CLUSTER", "GETKEYSINSLOT", "12182", "2"]))).len(), 2);
    assert_eq!(array(fake.reply(Command::new(&["CLUSTER", "GETKEYSINSLOT", "12182", "9"]))).len(), 3);
    let info = text_of(&mut fake, "CLUSTER INFO");
    assert!(
        info.contains("cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\n"),
        "{info}"
    );
    fake.node.down = Some(NodeId(2));
    let info = text_of(&mut fake, "CLUSTER INFO");
    assert!(info.contains("cluster_state:ok\r\n"), "{info}");
    assert!(info.contains("cluster_slots_ok:16384\r\n"), "the others serve them: {info}");
    let ranges = array(fake.reply(Command::new(&["CLUSTER", "SLOTS"])));
    let masters = ranges.into_iter().map(|range| array(array(range)[2].clone()));
    let dead = Value::text(format!("{}{}", NodeId(2), "0".repeat(24)));
    assert!(masters.into_iter().all(|master| master[2] != dead), "a dead node is nobody's master");
}

#[test]
fn without_a_ring_there_are_no_slots() {
    let mut fake = Fake::new();
    fake.node.ring = None;
    fake.check(&[("CLUSTER SLOTS", "[]"), ("CLUSTER SHARDS", "[]"), ("PING", "PONG")]);
    assert!(text_of(&mut fake, "CLUSTER NODES").lines().all(|line| line.ends_with("connected")));
    assert!(text_of(&mut fake, "CLUSTER INFO").contains("cluster_state:fail\r\n"));
}
