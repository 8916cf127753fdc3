//! Which nodes are of one cluster: foundings, newcomers, addresses that change, and directories from before.
//!
//! Each test names the section of `DESIGN.md` whose promise it shows.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use oort_core::bucket::BucketTable;
use oort_core::config::NodeConfig;
use oort_core::membership::{Dials, Gossip, Hello, Member, Refusal};
use oort_core::message::{Control, Message};
use oort_core::node::{Input, Node, Output};
use oort_core::placement::{Layout, RingNode, Strategy};
use oort_core::replica::META_FORMAT_BEFORE;
use oort_core::ring::{Founding, RingState};
use oort_core::store::{Durability, Space, Store};
use oort_core::types::{NodeId, Now};
use support::Cluster;

const BOTH: Dials = Dials { we: true, they: true };
const NEITHER: Dials = Dials { we: false, they: false };

fn foreign_ring() -> RingState {
    let nodes = vec![RingNode::new(NodeId(1)), RingNode::new(NodeId(2))];
    let ring = RingState::founding(Founding(4711), Strategy::EqualPartitions, 64, nodes);
    RingState { version: 9, ..ring }
}

/// Source: DESIGN §1.2: a second cluster of the same name must not take over the ring, and with it all keys.
#[test]
fn nodes_of_different_foundings_refuse_each_other_whatever_the_name() {
    let (mut ours, theirs) = (Cluster::new(2), Cluster::with(1, |config| config.name = "stray".into()));
    ours.put(0, "cart", "v").unwrap();
    let stray = Hello { session: 7, ..theirs.node(0).hello(theirs.now(0)) };
    let stray = Hello { member: Member { id: NodeId(77), ..stray.member.clone() }, ..stray };
    let founding = |cluster: &Cluster| cluster.node(0).membership().founding().expect("a ring");
    // Founders draw from their generators, which these two clusters share.
    let founded = Some(Founding(founding(&theirs).0 ^ 1));
    let stray = Hello { founding: founded, is_settled: true, ..stray };
    let refusal = ours.node(1).check(&stray, BOTH).unwrap_err();
    assert_eq!(founding(&ours), ours.node(1).membership().founding().expect("a ring"));
    let (theirs, ours) = (stray.founding.expect("just set"), founding(&ours));
    assert_eq!(refusal, Refusal::Founding { theirs, ours });
    assert_eq!(
        refusal.to_string(),
        format!("another cluster of the same name: its founding is {theirs}, this node's is {ours}")
    );
}

/// Source: DESIGN §3, "ring changes are explicit": an address may belong to a node of another cluster by now.
#[test]
fn a_cluster_takes_in_only_newcomers_that_ask() {
    let cluster = Cluster::new(2);
    let mut newcomer = Cluster::unformed(1, |config| config.cluster_size = 0);
    newcomer.machines[0].config.name = "newcomer".into();
    let hello = newcomer.node(0).hello(newcomer.now(0));
    let hello = Hello { member: Member { id: NodeId(77), ..hello.member.clone() }, session: 7, ..hello };
    assert_eq!(hello.founding, None);
    assert_eq!(cluster.node(0).check(&hello, NEITHER), Err(Refusal::Unasked));
    assert_eq!(cluster.node(0).check(&hello, BOTH), Ok(()));
    let ringed = Hello { session: 8, ..cluster.node(1).hello(cluster.now(1)) };
    assert_eq!(newcomer.node(0).check(&ringed, NEITHER), Err(Refusal::Unasked));
    assert_eq!(newcomer.node(0).check(&ringed, BOTH), Ok(()));
}

/// Source: DESIGN §1.2. Two nodes may have linked before either had a ring.
#[test]
fn a_peer_that_turns_out_to_be_of_another_cluster_is_cut_off_and_teaches_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    let before = cluster.node(0).membership().ring.clone();
    let member = Member::new(NodeId(1), "foreign".into(), cluster.machines[1].config.addresses.clone());
    let ring = Some(foreign_ring());
    let delta = Gossip::Delta { members: vec![member], ring, buckets: Vec::new() };
    cluster.inject(1, 0, Message::Control(Control::Gossip(delta)));
    assert_eq!(cluster.refused, [(0, cluster.id(1))]);
    assert_eq!(cluster.node(0).membership().ring, before);
    assert_eq!(cluster.node(0).membership().members.len(), 3);
}

/// Source: issue 12, section 2: a slow start must not split a cluster, and what was acknowledged is never given up.
#[test]
fn of_two_foundings_those_give_up_theirs_that_have_stored_nothing() {
    let cluster = Cluster::new(2);
    let ours = cluster.node(0).membership().founding().expect("a ring");
    let hello = cluster.node(1).hello(cluster.now(1));
    let other = |founding: u64, is_settled: bool, id: NodeId| {
        let member = Member { id, ..hello.member.clone() };
        Hello { founding: Some(Founding(founding)), is_settled, member, ..hello.clone() }
    };
    let (known, unknown) = (cluster.id(1), NodeId(77));
    let (less, more) = (ours.0 - 1, ours.0 + 1);
    let dials = |we, they| Dials { we, they };
    let is_linked = |cluster: &Cluster, hello: Hello, dials| cluster.node(0).check(&hello, dials).is_ok();
    // Nothing is stored yet: a known member is linked with, and one of the two yields.
    for (founding, is_settled) in [(less, false), (more, false), (less, true), (more, true)] {
        assert!(is_linked(&cluster, other(founding, is_settled, known), NEITHER));
        assert!(!is_linked(&cluster, other(founding, is_settled, unknown), NEITHER));
    }
    // Of strangers the one that yields must have asked.
    assert!(is_linked(&cluster, other(less, false, unknown), dials(false, true)));
    assert!(!is_linked(&cluster, other(less, false, unknown), dials(true, false)));
    assert!(is_linked(&cluster, other(more, false, unknown), dials(true, false)));
    assert!(is_linked(&cluster, other(less, true, unknown), dials(true, false)));
    let mut cluster = cluster;
    let ring = RingState { founding: Founding(less), ..foreign_ring() };
    cluster.put(0, "cart", "v").unwrap();
    for is_settled in [false, true] {
        assert_eq!(
            is_linked(&cluster, other(more, is_settled, known), BOTH),
            !is_settled,
            "it keeps its own"
        );
    }
    let delta = Gossip::Delta { members: Vec::new(), ring: Some(ring), buckets: Vec::new() };
    cluster.inject(1, 0, Message::Control(Control::Gossip(delta.clone())));
    assert_eq!(cluster.node(0).membership().founding(), Some(ours));
    let mut fresh = Cluster::new(2);
    fresh.inject(1, 0, Message::Control(Control::Gossip(delta)));
    assert_eq!(
        fresh.node(0).membership().founding(),
        Some(Founding(less)),
        "its version says that it is in use"
    );
}

/// Source: DESIGN §2: the founding is on disk before the node speaks for its cluster.
#[test]
fn a_founding_survives_a_power_failure() {
    let mut cluster = Cluster::new(3);
    let founding = cluster.node(0).membership().founding();
    assert!(founding.is_some());
    (0..3).for_each(|i| cluster.crash(i, support::Crash::Power));
    (0..3).for_each(|i| cluster.start(i));
    (0..3).for_each(|i| assert_eq!(cluster.node(i).membership().founding(), founding));
}

/// Source: FACTS §6, "addresses that may change across restarts": a greeting's address is the address, and no rumour
/// of an older one undoes that.
#[test]
fn a_peer_is_dialled_where_it_says_it_is() {
    let mut cluster = Cluster::new(3);
    let (peer, other, now) = (cluster.id(1), cluster.id(2), cluster.now(0));
    let old = cluster.node(0).membership().members[&peer].clone();
    let mut hello = cluster.node(1).hello(now);
    (hello.session, hello.member.addresses.peer) = (7, "2".into());
    hello.member.version += 1;
    let mut out = Vec::new();
    cluster.kill(1);
    let node = cluster.machines[0].node.as_mut().expect("it runs");
    assert_eq!(node.check(&hello, BOTH), Ok(()));
    node.step(now, Input::Greeted { hello }, &mut out);
    assert!(out.iter().any(|output| matches!(output, Output::Connect { address, .. } if address == "2")));
    out.clear();
    let rumour = Gossip::Delta { members: vec![old], ring: None, buckets: Vec::new() };
    let message = Message::Control(Control::Gossip(rumour));
    node.step(now, Input::Message { from: other, message }, &mut out);
    assert!(!out.iter().any(|output| matches!(output, Output::Connect { .. })), "{out:?}");
    assert_eq!(cluster.node(0).membership().members[&peer].addresses.peer, "2");
}

/// Source: issue 12: directories from before foundings still open, and all nodes of a cluster derive the same one.
#[test]
fn a_directory_of_the_format_before_gets_the_founding_of_its_clusters_name() {
    type RingBefore = (u64, Layout, Option<Layout>, bool, BTreeSet<NodeId>);
    type Before = (NodeId, BTreeMap<NodeId, Member>, Option<RingBefore>, BucketTable);
    let mut cluster = Cluster::new(1);
    cluster.put(0, "cart", "v").unwrap();
    let membership = cluster.node(0).membership().clone();
    cluster.kill(0);
    let RingState { version, layout, old, arrived, removed, .. } = membership.ring.expect("a ring");
    let ring = Some((version, layout, old, arrived, removed));
    let before: Before = (membership.me, membership.members, ring, membership.buckets);
    let record = postcard::to_extend(&before, vec![META_FORMAT_BEFORE]).unwrap();
    let mut disk = cluster.machines[0].disk.clone();
    disk.apply((Space::Meta, b"membership"[..].into(), Some(record.into())));
    disk.sync(Durability::Durable).unwrap();
    let (config, now) = (cluster.machines[0].config.clone(), cluster.now(0));
    let node = Node::open(config, 9, Box::new(disk), now).expect("the format before is read");
    assert_eq!(node.membership().founding(), Some(Founding::of_name("oort")));
    cluster.restart(0);
    assert_eq!(cluster.values(0, "cart"), ["v"]);
}

/// Source: DESIGN §1.2: whoever a new node greets remembers its id, so the id is durable before that.
#[test]
fn a_node_that_loses_power_at_once_comes_back_under_its_id() {
    let disk = support::Disk::default();
    let open = |seed| {
        let now = Now { mono_us: 0, wall_ms: support::WALL_START_MS };
        Node::open(NodeConfig::default(), seed, Box::new(disk.clone()), now).expect("a sound disk").id()
    };
    let id = open(1);
    disk.lock().crash();
    assert_eq!(open(2), id);
}
