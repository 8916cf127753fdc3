//! Who belongs to a cluster: nodes with rings of their own, addresses that change hands, copied directories.

use std::fs;
use std::path::Path;

use oort::client::Client;
use oort::resp::Value;

use super::{error, eventually, Cluster, Node, PATIENCE};

fn set_keys(cluster: &Cluster, count: usize) {
    let mut client = cluster.nodes[0].client();
    for i in 0..count {
        assert_eq!(client.call(&["SET", &format!("k{i}"), "v"]).unwrap(), Value::Simple("OK".into()));
    }
}

fn assert_all_there(cluster: &Cluster, count: usize) {
    let mut client = cluster.nodes[0].client();
    for i in 0..count {
        assert_eq!(client.call(&["GET", &format!("k{i}")]).unwrap(), Value::text("v"), "k{i}");
    }
}

fn wait_until_up(node: &Node) {
    eventually("it serves clients", || Client::connect(&node.redis, PATIENCE).ok());
}

/// The links that the node misses, each with its reason.
fn troubles(cluster: &Cluster, node: usize) -> String {
    cluster.nodes[node].status()["links"].to_string()
}

/// A node that was started alone founded a cluster of the same name.
#[test]
fn a_node_with_a_ring_of_its_own_does_not_join_another_and_says_the_way_out() {
    let cluster = Cluster::start(3, &[]);
    set_keys(&cluster, 50);
    let mut stray = cluster.stray();
    stray.start();
    wait_until_up(&stray);
    eventually("it founds a ring", || stray.status()["founding"].is_string().then_some(()));
    stray.terminate();
    stray.set_flag("--join", &cluster.nodes[0].peer);
    stray.start();
    assert_eq!(stray.wait_for_end().code(), Some(1));
    let log = stray.log();
    for part in [
        "this node belongs to a cluster of 1 of its own",
        "start it with an empty directory",
        &cluster.nodes[0].peer,
    ] {
        assert!(log.contains(part), "no '{part}' in:\n{log}");
    }
    let why = "another cluster of the same name";
    eventually("the other side says so", || troubles(&cluster, 0).contains(why).then_some(()));
    assert_eq!(cluster.nodes[0].log().matches(why).count(), 1, "once");
    assert_all_there(&cluster, 50);
    assert_eq!(cluster.nodes[0].status()["members"].as_array().map(Vec::len), Some(3));
    stray.wipe();
    stray.start();
    eventually("with an empty directory it joins", || {
        (cluster.nodes[0].status()["members"].as_array().map(Vec::len) == Some(4)).then_some(())
    });
}

#[test]
fn nodes_are_found_again_after_all_changed_their_addresses() {
    let mut cluster = Cluster::start(3, &[]);
    set_keys(&cluster, 20);
    cluster.nodes.iter_mut().for_each(|node| {
        node.terminate();
    });
    // Each has now the address that its neighbour had, and none finds itself at its own.
    let peers: Vec<String> = cluster.nodes.iter().map(|node| node.peer.clone()).collect();
    for (i, node) in cluster.nodes.iter_mut().enumerate() {
        node.peer.clone_from(&peers[(i + 1) % 3]);
        node.set_flag("--peer", &peers[(i + 1) % 3]);
        node.set_flag("--join", &peers[1]);
        node.start();
    }
    cluster.wait_until_whole();
    assert_all_there(&cluster, 20);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn a_copied_directory_is_refused_and_shown() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.nodes[2].terminate();
    let mut copy = cluster.stray();
    copy_dir(cluster.nodes[2].data(), copy.data());
    cluster.nodes[2].start();
    cluster.wait_until_whole();
    copy.set_flag("--join", &cluster.nodes[0].peer);
    copy.start();
    eventually("the peer shows it", || {
        troubles(&cluster, 0).contains("two processes have the id").then_some(())
    });
    wait_until_up(&copy);
    let refused = error(copy.call(&["SET", "k", "v"]));
    assert!(refused.contains("quorum unavailable"), "{refused}");
    assert_eq!(cluster.nodes[0].call(&["SET", "k", "v"]), Value::Simple("OK".into()));
}
