//! The claims of the Dynamo paper, one test each, shown on whole nodes. `docs/dynamo.md` lists them by section.
//!
//! What the paper leaves open and Oort promises (clocks, disks, limits, formats) is in `promises.rs`.

mod support;

use oort_core::bucket::BucketProperties;
use oort_core::client::{ClientError, Operation, Quorum, Want};
use oort_core::detector::Health;
use oort_core::membership::{Dials, Gossip, Hello, Refusal, PROTOCOL};
use oort_core::message::{Control, Message};
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::node::Event;
use oort_core::placement::RingNode;
use oort_core::ring::{Ring, RingChange};
use oort_core::store::{Durability, Space, Store};
use oort_core::types::{NodeId, ObjectKey, Position};
use support::{key, Cluster, Crash};

fn store(value: &str, basis: Basis) -> Mutation {
    let (headers, expiry, condition) = (Vec::new(), Expiry::Default, Condition::Always);
    Mutation::Store { value: value.to_owned().into(), headers, basis, expiry, condition }
}

fn quorum(r: u8, w: u8) -> Quorum {
    Quorum { r: Some(r), w: Some(w), ..Quorum::default() }
}

/// Source: Dynamo §4.5, "any storage node in Dynamo is eligible to receive client get and put operations for any key".
#[test]
fn any_node_coordinates_any_key() {
    let mut cluster = Cluster::new(5);
    for writer in 0..5 {
        let value = format!("from {writer}");
        assert!(cluster.put(writer, "cart", &value).unwrap().applied);
        for reader in 0..5 {
            assert_eq!(
                cluster.values(reader, "cart"),
                [value.as_str()],
                "written at {writer}, read at {reader}"
            );
        }
    }
}

/// Source: Dynamo §4.3, "each data item is replicated at N hosts".
#[test]
fn a_put_is_replicated_at_the_n_nodes_of_the_preference_list() {
    let mut cluster = Cluster::new(5);
    for name in ["a", "b", "c", "d"] {
        cluster.put(0, name, "v").unwrap();
        let mut primaries = cluster.list(name)[..3].to_vec();
        primaries.sort_unstable();
        assert_eq!(cluster.holders(name), primaries, "{name}");
    }
}

/// Source: Dynamo §4.5, "if at least W-1 nodes respond then the write is considered successful".
#[test]
fn a_put_is_acknowledged_after_w_durable_copies_and_not_before() {
    let mut cluster = Cluster::new(3);
    let list = cluster.list("cart");
    cluster.silence(list[1], list[0]);
    cluster.silence(list[2], list[0]);
    let update = Operation::Update {
        key: key("cart"),
        mutation: Mutation::store("v"),
        quorum: quorum(2, 2),
        want: Want::default(),
        caller: None,
    };
    let id = cluster.ask(list[0], update);
    cluster.pump();
    assert!(cluster.answer(id).is_none(), "one copy is not two");
    cluster.heal();
    cluster.put(list[1], "other", "wakes the links up").unwrap();
    let id = cluster.ask(
        list[0],
        Operation::Update {
            key: key("cart"),
            mutation: Mutation::store("w"),
            quorum: quorum(2, 2),
            want: Want::default(),
            caller: None,
        },
    );
    cluster.wait(id).unwrap();
    // Acknowledged: W-1 machines may lose their power at once.
    cluster.crash(list[0], Crash::Power);
    assert_eq!(cluster.values(list[1], "cart"), ["w"]);
}

/// Source: Dynamo §4.5. A deadline ends every request, and its error counts the answers.
#[test]
fn a_timeout_says_how_many_of_how_many_answered() {
    let mut cluster = Cluster::new(3);
    let list = cluster.list("cart");
    cluster.put(list[0], "cart", "v").unwrap();
    cluster.mute(list[1]);
    cluster.mute(list[2]);
    let put = cluster.put(list[0], "cart", "w").unwrap_err();
    assert_eq!(put.to_string(), "quorum unavailable: 1 of 2 replicas acknowledged within 1000 ms (3 asked)");
    cluster.heal();
    cluster.advance(40_000);
    cluster.mute(list[1]);
    cluster.mute(list[2]);
    let get = cluster.get(list[0], "cart").unwrap_err();
    assert_eq!(get.to_string(), "quorum unavailable: 1 of 2 replicas answered within 1000 ms (3 asked)");
}

/// Source: Dynamo §4.5, "setting R and W such that R + W > N yields a quorum-like system".
#[test]
fn with_r_plus_w_above_n_a_get_sees_the_last_acknowledged_put() {
    for deaf in 0..3 {
        for reader in 0..3 {
            let mut cluster = Cluster::new(3);
            cluster.put(0, "cart", "old").unwrap();
            // One replica misses the write and does not know it; another cannot be asked.
            (0..3).filter(|&i| i != deaf).for_each(|i| cluster.silence(i, deaf));
            let writer = (deaf + 1) % 3;
            cluster.put(writer, "cart", "new").unwrap();
            assert_eq!(cluster.texts(0, &cluster.held(deaf, "cart").unwrap()), ["old"]);
            cluster.heal();
            assert_eq!(cluster.values(reader, "cart"), ["new"], "deaf {deaf}, reader {reader}");
        }
    }
}

/// Source: Dynamo §4.6, "all read and write operations are performed on the first N healthy nodes from the preference
/// list"; "the replica sent to D will have a hint in its metadata".
#[test]
fn a_fallback_keeps_a_hint_for_a_primary_that_is_down_and_gives_it_back() {
    let mut cluster = Cluster::new(5);
    let list = cluster.list("cart");
    let absent = list[2];
    cluster.kill(absent);
    cluster.put(list[0], "cart", "v").unwrap();
    let fallback = list[3];
    let mut expected = vec![list[0], list[1], fallback];
    expected.sort_unstable();
    assert_eq!(cluster.holders("cart"), expected);
    assert_eq!(cluster.hints(fallback), 1);

    cluster.restart(absent);
    cluster.advance(1_000);
    assert_eq!(cluster.texts(0, &cluster.held(absent, "cart").unwrap()), ["v"]);
    assert_eq!(cluster.hints(fallback), 0, "a delivered hint is deleted");
    assert_eq!(cluster.held(fallback, "cart"), None, "and the fallback's copy with it");
    assert_eq!(cluster.total("hints_delivered"), 1);
    let done = Event::HandoffDone { owner: cluster.id(absent), delivered: 1 };
    assert!(cluster.events.contains(&(fallback, done)));
    cluster.assert_converged("cart", 3);
}

/// Source: Dynamo §4.6. Hints are merged per key and owner: they do not pile up with the update rate.
#[test]
fn many_updates_of_one_key_leave_one_hint() {
    let mut cluster = Cluster::new(4);
    let list = cluster.list("cart");
    cluster.kill(list[1]);
    for i in 0..20 {
        cluster.put(list[0], "cart", &i.to_string()).unwrap();
    }
    assert_eq!(cluster.hints(list[3]), 1);
    cluster.restart(list[1]);
    cluster.advance(1_000);
    assert_eq!(cluster.texts(0, &cluster.held(list[1], "cart").unwrap()), ["19"]);
}

/// Source: Dynamo §2.3 and §4.6, "always writeable": a sloppy quorum of fallbacks is enough.
#[test]
fn a_put_is_accepted_while_all_primaries_are_down() {
    let mut cluster = Cluster::new(5);
    let list = cluster.list("cart");
    cluster.put(list[0], "cart", "old").unwrap();
    (0..3).for_each(|i| cluster.kill(list[i]));
    let (d, e) = (list[3], list[4]);
    cluster.put(d, "cart", "new").unwrap();
    assert_eq!(cluster.values(d, "cart"), ["new"]);
    assert_eq!(cluster.values(e, "cart"), ["new"]);
    (0..3).for_each(|i| cluster.restart(list[i]));
    cluster.advance(2_000);
    // The fallbacks had not seen "old": it was kept as concurrent, not guessed away.
    assert_eq!(cluster.values(list[0], "cart"), ["new", "old"]);
    cluster.assert_converged("cart", 3);
    assert_eq!(cluster.hints(d) + cluster.hints(e), 0);
    assert_eq!(cluster.held(d, "cart").or(cluster.held(e, "cart")), None);
}

/// Source: Dynamo §4.6. Without a fallback the coordinator itself remembers whom it owes the write.
#[test]
fn in_a_cluster_of_n_nodes_the_coordinator_keeps_the_hint() {
    let mut cluster = Cluster::new(3);
    cluster.kill(2);
    cluster.put(0, "cart", "v").unwrap();
    assert_eq!((cluster.hints(0), cluster.hints(1)), (1, 0));
    cluster.restart(2);
    cluster.advance(1_000);
    assert_eq!(cluster.hints(0), 0);
    assert!(cluster.held(0, "cart").is_some(), "a primary keeps its own copy");
    cluster.assert_converged("cart", 3);
}

/// Source: Dynamo §4.6. A hint outlives its holder's restart.
#[test]
fn hints_are_durable() {
    let mut cluster = Cluster::new(4);
    let list = cluster.list("cart");
    cluster.kill(list[1]);
    cluster.put(list[0], "cart", "v").unwrap();
    cluster.crash(list[3], Crash::Power);
    cluster.restart(list[3]);
    cluster.restart(list[1]);
    cluster.advance(1_000);
    assert!(cluster.held(list[1], "cart").is_some());
    assert_eq!(cluster.hints(list[3]), 0);
}

/// Source: Dynamo §4.5 with too few nodes: the refusal says so and changes nothing.
#[test]
fn a_put_is_refused_when_fewer_than_w_nodes_can_be_reached() {
    let mut cluster = Cluster::new(3);
    cluster.kill(1);
    cluster.kill(2);
    let error = cluster.put(0, "cart", "v").unwrap_err();
    assert_eq!(error.to_string(), "quorum unavailable: 1 of 2 replicas can be reached");
    assert_eq!(cluster.holders("cart"), Vec::<usize>::new());
    let error = cluster.get(0, "cart").unwrap_err();
    assert_eq!(error.to_string(), "quorum unavailable: 1 of 2 replicas answered within 0 ms (1 asked)");
    // W=1 is the client's choice to make. Source: Dynamo §6, "a value of W=1 ... never rejected".
    cluster.update_with(0, key("cart"), Mutation::store("v"), quorum(1, 1)).unwrap();
    let object = cluster.get_with(0, key("cart"), quorum(1, 1)).unwrap();
    assert_eq!(cluster.texts(0, &object), ["v"]);
    let error = cluster.update_with(0, key("cart"), Mutation::store("v"), quorum(1, 4)).unwrap_err();
    assert_eq!(error.to_string(), "w is 4: it must be 1 to the bucket's n, which is 3");
}

/// Source: Dynamo §5, "if stale versions were returned in any of the responses, the coordinator updates those nodes".
#[test]
fn a_get_repairs_stale_replicas() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "old").unwrap();
    let before = cluster.held(2, "cart").unwrap().encode();
    cluster.put(0, "cart", "new").unwrap();
    // A disk that went back in time while its node was down.
    cluster.kill(2);
    {
        let mut disk = cluster.machines[2].disk.lock();
        use oort_core::store::{Durability, Space, Store};
        disk.apply((Space::Data, key("cart").row().clone(), Some(before)));
        disk.sync(Durability::Durable).unwrap();
    }
    cluster.restart(2);
    let object = cluster.get_with(0, key("cart"), quorum(3, 2)).unwrap();
    assert_eq!(cluster.texts(0, &object), ["new"]);
    assert_eq!(cluster.total("read_repairs"), 1);
    cluster.assert_converged("cart", 3);
    cluster.get_with(0, key("cart"), quorum(3, 2)).unwrap();
    assert_eq!(cluster.total("read_repairs"), 1, "nothing is left to repair");
}

/// Source: Dynamo §4.4, "if there are multiple branches, the system returns all the objects at the leaves".
#[test]
fn concurrent_puts_are_kept_and_reconciled_with_their_context() {
    let mut cluster = Cluster::new(3);
    cluster.split(&[0], &[1, 2]);
    cluster.update_with(0, key("cart"), Mutation::store("book"), quorum(1, 1)).unwrap();
    cluster.put(1, "cart", "pen").unwrap();
    cluster.heal();
    cluster.advance(1_000);
    for i in 0..3 {
        assert_eq!(cluster.values(i, "cart"), ["book", "pen"]);
    }
    let context = cluster.get(2, "cart").unwrap().context().clone();
    cluster.update(2, "cart", store("book and pen", Basis::Seen(context))).unwrap();
    for i in 0..3 {
        assert_eq!(cluster.values(i, "cart"), ["book and pen"]);
    }
    cluster.assert_converged("cart", 3);
}

/// Source: Dynamo §4.4, figure 3: what a client wrote after reading supersedes what it read, and only that.
#[test]
fn the_version_evolution_of_figure_3() {
    let mut cluster = Cluster::new(3);
    cluster.update(0, "cart", store("D1", Basis::Unseen)).unwrap();
    let d1 = cluster.get(0, "cart").unwrap().context().clone();
    cluster.update(0, "cart", store("D2", Basis::Seen(d1))).unwrap();
    let d2 = cluster.get(1, "cart").unwrap().context().clone();
    cluster.update(1, "cart", store("D3", Basis::Seen(d2.clone()))).unwrap();
    cluster.update(2, "cart", store("D4", Basis::Seen(d2))).unwrap();
    assert_eq!(cluster.values(0, "cart"), ["D3", "D4"]);
    let both = cluster.get(0, "cart").unwrap().context().clone();
    cluster.update(0, "cart", store("D5", Basis::Seen(both))).unwrap();
    assert_eq!(cluster.values(2, "cart"), ["D5"]);
}

/// Source: Dynamo §4.4, deletes are versions too: one that has not seen a value does not remove it.
#[test]
fn a_delete_keeps_what_its_context_has_not_seen() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "seen").unwrap();
    let read = cluster.get(0, "cart").unwrap().context().clone();
    cluster.update(1, "cart", store("unseen", Basis::Seen(read.clone()))).unwrap();
    let delete = Mutation::Delete { basis: Basis::Seen(read), condition: Condition::Always };
    cluster.update(2, "cart", delete).unwrap();
    assert_eq!(cluster.values(0, "cart"), ["unseen"]);
    let read = cluster.get(0, "cart").unwrap().context().clone();
    let delete = Mutation::Delete { basis: Basis::Seen(read), condition: Condition::Always };
    cluster.update(0, "cart", delete).unwrap();
    assert_eq!(cluster.values(1, "cart"), Vec::<String>::new());
}

/// Source: Dynamo §6.3 (the tail is set by the slowest replica); Dean and Barroso, "The tail at scale", 2013.
#[test]
fn a_get_asks_one_more_replica_when_one_is_silent() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    cluster.mute(2);
    let mut slowest_us = 0;
    for _ in 0..8 {
        let before = cluster.now(0).mono_us;
        assert_eq!(cluster.values(0, "cart"), ["v"]);
        slowest_us = slowest_us.max(cluster.now(0).mono_us - before);
    }
    let hedge_us = cluster.machines[0].config.hedge_us;
    assert!(slowest_us <= hedge_us, "a get took {slowest_us} us");
    assert!(cluster.node(0).metrics().hedged_reads > 0);
}

/// Source: Dynamo §4.8.3, "a local notion of failure detection is sufficient".
#[test]
fn a_silent_peer_is_suspect_then_down_in_the_eyes_of_those_who_wait_for_it() {
    let mut cluster = Cluster::new(3);
    let peer = cluster.id(2);
    cluster.silence(2, 0);
    cluster.put(0, "cart", "v").unwrap();
    let suspect_ms = cluster.machines[0].config.suspect_ms;
    cluster.advance(suspect_ms);
    assert_eq!(cluster.node(0).health(peer), Health::Suspect);
    cluster.advance(suspect_ms * 9);
    assert_eq!(cluster.node(0).health(peer), Health::Down);
    assert_eq!(cluster.node(1).health(peer), Health::Up, "an opinion is each node's own");
    cluster.heal();
    cluster.advance(2_000);
    assert_eq!(cluster.node(0).health(peer), Health::Up);
    cluster.cut(0, 2);
    assert_eq!(cluster.node(0).health(peer), Health::Down, "a closed link is down at once");
}

/// Health says whom to ask next, not how long what was sent may take: that is the request's own time limit.
#[test]
fn a_request_waits_for_silent_nodes_until_its_own_time_is_up() {
    let update = |name: &str, mutation| {
        let (quorum, want) = (Quorum::default(), Want { before: false, after: true });
        Operation::Update { key: key(name), mutation, quorum, want, caller: None }
    };
    let get = || Operation::Get { key: key("cart"), quorum: Quorum::default() };
    let append = || Mutation::Append { suffix: "x".into() };
    let delete = || Mutation::Delete { basis: Basis::Local, condition: Condition::Always };
    for count in [3, 5] {
        let mut cluster = Cluster::with(count, |config| config.timeout_ms = 8_000);
        cluster.put(0, "cart", "v").unwrap();
        let list = cluster.list("cart");
        // Of three nodes two stand still, of five four: nobody stands in for them.
        let (awake, still) = (list[0], &list[1..]);
        for has_noticed in [false, true] {
            still.iter().for_each(|i| cluster.pause(*i));
            if has_noticed {
                cluster.ask(awake, update("other", Mutation::store("v")));
                cluster.advance(3_000);
                let down = |i: &usize| cluster.node(awake).health(cluster.id(*i)) == Health::Down;
                assert!(still.iter().all(down), "they have been silent for long");
            }
            let asked = [
                cluster.ask(awake, update("cart", Mutation::store("w"))),
                cluster.ask(awake, update("cart", append())),
                cluster.ask(awake, get()),
                cluster.ask(awake, update("gone", delete())),
            ];
            cluster.advance(900);
            let early: Vec<_> = asked.iter().filter_map(|id| cluster.answer(*id)).collect();
            assert!(early.is_empty(), "{early:?}");
            cluster.resume();
            for id in asked {
                assert!(cluster.wait(id).is_ok());
            }
            cluster.advance(3_000);
        }
        still.iter().for_each(|i| cluster.pause(*i));
        let error = cluster.run(awake, get()).unwrap_err().to_string();
        assert!(error.starts_with("quorum unavailable: 1 of 2 replicas answered within 8000 ms"), "{error}");
        // A process that is gone is told from one that is silent.
        cluster.resume();
        cluster.advance(3_000);
        still.iter().for_each(|i| cluster.kill(*i));
        let refused = cluster.put(awake, "cart", "v").unwrap_err().to_string();
        assert_eq!(refused, "quorum unavailable: 1 of 2 replicas can be reached");
    }
}

/// Where two of three replicas are late, the nodes behind them are asked as well, before the late ones count as down.
#[test]
fn fallbacks_are_asked_in_place_of_suspects() {
    let mut cluster = Cluster::new(5);
    let list = cluster.list("cart");
    list[1..3].iter().for_each(|i| cluster.pause(*i));
    cluster.put(list[0], "cart", "v").unwrap();
    let suspect = |i: usize| cluster.node(list[0]).health(cluster.id(i)) == Health::Suspect;
    assert!(suspect(list[1]) && suspect(list[2]));
    let began_us = cluster.now(0).mono_us;
    cluster.put(list[0], "cart", "w").unwrap();
    assert_eq!(cluster.now(0).mono_us, began_us, "nobody waited for the late ones");
    cluster.resume();
    cluster.advance(3_000);
    cluster.assert_converged("cart", 3);
}

/// Source: Dynamo §4.8.3. A node that is told of a silent peer asks the peer, and believes only what it sees.
#[test]
fn a_rumour_makes_nodes_ask_and_nothing_else() {
    // Rounds are so rare that none disturbs.
    let mut cluster = Cluster::with(8, |config| config.gossip_ms = 1_000_000);
    let peer = cluster.id(7);
    let suspect_ms = cluster.machines[0].config.suspect_ms;
    let rumour = |silent: Vec<NodeId>| Message::Control(Control::Gossip(Gossip::Rumour { silent }));
    cluster.inject(0, 1, rumour(vec![peer, cluster.id(1), NodeId(1), cluster.id(0)]));
    let pings = |cluster: &Cluster, to: usize| {
        let is_ping =
            |message: &Message| matches!(message, Message::Control(Control::Gossip(Gossip::Ping { .. })));
        cluster.log.iter().filter(|(_, other, _, message)| *other == to && is_ping(message)).count()
    };
    assert_eq!((pings(&cluster, 7), pings(&cluster, 0)), (1, 1));
    cluster.advance(suspect_ms * 3);
    assert_eq!(cluster.node(1).health(peer), Health::Up, "it answered");
    // One node hears of a silent peer; soon all know by themselves.
    cluster.mute(7);
    cluster.inject(0, 1, rumour(vec![peer]));
    cluster.advance(suspect_ms);
    assert_eq!(cluster.node(1).health(peer), Health::Suspect);
    assert_eq!(cluster.node(2).health(peer), Health::Up);
    cluster.advance(suspect_ms);
    for i in 0..7 {
        assert_eq!(cluster.node(i).health(peer), Health::Suspect, "n{i}");
    }
    cluster.heal();
    cluster.advance(suspect_ms * 2);
    for i in 0..7 {
        assert_eq!(cluster.node(i).health(peer), Health::Up, "n{i} asks again");
    }
}

/// Source: Dynamo §4.8.1, gossip "propagates membership changes and maintains an eventually consistent view".
#[test]
fn gossip_spreads_members_ring_and_buckets_from_one_seed() {
    let mut cluster = Cluster::new(6);
    let ring = cluster.node(0).ring().unwrap().state().clone();
    for i in 0..6 {
        assert_eq!(cluster.node(i).membership().members.len(), 6);
        assert_eq!(cluster.node(i).ring().unwrap().state(), &ring);
    }
    let properties = BucketProperties { n: 2, w: 1, r: 1, ..BucketProperties::default() };
    cluster.split(&[5], &[0, 1, 2, 3, 4]);
    cluster.set_bucket(3, b"sessions", properties.clone());
    assert_ne!(cluster.node(5).buckets().properties(b"sessions"), &properties);
    cluster.heal();
    cluster.advance(5_000);
    let hash = cluster.node(0).membership().hash();
    for i in 0..6 {
        assert_eq!(cluster.node(i).buckets().properties(b"sessions"), &properties, "node {i}");
        assert_eq!(cluster.node(i).membership().hash(), hash, "node {i}");
    }
}

/// Source: Dynamo §4.8.1, the mapping is kept on disk: "nodes ... choose their tokens and persist them".
#[test]
fn a_restarted_node_keeps_its_identity_its_ring_and_its_data() {
    let mut cluster = Cluster::new(3);
    cluster.put(0, "cart", "v").unwrap();
    let ids: Vec<_> = (0..3).map(|i| cluster.id(i)).collect();
    let ring = cluster.node(0).ring().unwrap().state().clone();
    (0..3).for_each(|i| cluster.crash(i, Crash::Power));
    (0..3).for_each(|i| cluster.start(i));
    for (i, id) in ids.into_iter().enumerate() {
        assert_eq!(cluster.node(i).id(), id);
        assert_eq!(cluster.node(i).ring().unwrap().state(), &ring, "known before anybody was heard");
    }
    cluster.pump();
    assert_eq!(cluster.values(1, "cart"), ["v"]);
    cluster.put(2, "cart", "w").unwrap();
    assert_eq!(cluster.values(0, "cart"), ["w"]);
}

/// Source: Dynamo §4.8.1: a failure changes nobody's ring; only an operator does.
#[test]
fn a_crash_does_not_change_the_ring() {
    let mut cluster = Cluster::new(4);
    let ring = cluster.node(0).ring().unwrap().state().clone();
    cluster.kill(3);
    cluster.advance(60_000);
    assert_eq!(cluster.node(0).ring().unwrap().state(), &ring);
}

/// Source: Dynamo §4.8.1, §4.9: an explicit join; the new node receives the keys of its ranges, the old ones drop them.
#[test]
fn a_node_that_joins_gets_its_share_and_one_that_leaves_hands_it_over() {
    let mut cluster = Cluster::with(4, |config| config.cluster_size = 3);
    let key = |i: usize| format!("key{i}");
    (0..300).for_each(|i| drop(cluster.put(i % 4, &key(i), "v").unwrap()));
    let inside = cluster.node(0).ring().unwrap().nodes().to_vec();
    let new = (0..4).find(|&i| !inside.contains(&cluster.id(i))).unwrap();
    let rows = |cluster: &Cluster, i: usize| cluster.machines[i].disk.lock().rows(Space::Data).count();
    assert_eq!((0..4).map(|i| rows(&cluster, i)).sum::<usize>(), 900);
    let (other, joining) = ((new + 1) % 4, cluster.id(new));
    cluster.change_ring(other, RingChange::Join { node: RingNode::new(joining) }).unwrap();
    // Writes go on while data move.
    (300..400).for_each(|i| drop(cluster.put(i % 4, &key(i), "v").unwrap()));
    cluster.advance(20_000);
    for i in 0..4 {
        let ring = cluster.node(i).ring().unwrap();
        assert_eq!((ring.state().version, ring.nodes().len(), ring.is_moving()), (4, 4, false), "node {i}");
        assert!((150..450).contains(&rows(&cluster, i)), "node {i} holds {}", rows(&cluster, i));
    }
    assert_eq!(
        (0..4).map(|i| rows(&cluster, i)).sum::<usize>(),
        1200,
        "three copies of each key, and no more"
    );
    (0..400).for_each(|i| assert_eq!(cluster.values((i + 1) % 4, &key(i)), ["v"]));
    cluster.change_ring(new, RingChange::Leave { node: cluster.id(other) }).unwrap();
    cluster.advance(20_000);
    assert_eq!(rows(&cluster, other), 0, "everything was handed over");
    cluster.kill(other);
    (0..400).for_each(|i| assert_eq!(cluster.values(new, &key(i)), ["v"]));
}

/// Source: DESIGN §3: R + W > N keeps its meaning throughout. A node that still answers reads as an old owner must get
/// what is written, so the change is not over before it knows that it is one no more.
#[test]
fn a_change_is_not_over_before_those_who_lose_data_know_it() {
    let mut cluster = Cluster::with(4, |config| config.cluster_size = 3);
    (0..50).for_each(|i| drop(cluster.put(i % 4, &format!("key{i}"), "v").unwrap()));
    let inside = cluster.node(0).ring().unwrap().nodes().to_vec();
    let new = (0..4).find(|&i| !inside.contains(&cluster.id(i))).unwrap();
    let slow = (new + 1) % 4;
    cluster.mute(slow);
    cluster.change_ring((new + 2) % 4, RingChange::Join { node: RingNode::new(cluster.id(new)) }).unwrap();
    cluster.advance(30_000);
    assert!((0..4).filter(|&i| i != slow).all(|i| cluster.node(i).ring().unwrap().is_moving()));
    cluster.heal();
    cluster.advance(30_000);
    assert!((0..4).all(|i| !cluster.node(i).ring().unwrap().is_moving()));
}

/// Source: DESIGN §3, §4: R + W > N keeps its meaning throughout, also where a request chose a smaller W than its
/// bucket has. What only one owner holds must be fetched from there before others answer in its place.
#[test]
fn what_a_leaving_owner_alone_holds_is_fetched_before_the_new_owners_answer() {
    let mut cluster = Cluster::with(4, |config| config.cluster_size = 3);
    let ring = cluster.node(0).ring().unwrap().clone();
    let new = (0..4).find(|&i| !ring.nodes().contains(&cluster.id(i))).unwrap();
    let join = RingChange::Join { node: RingNode::new(cluster.id(new)) };
    let moving = Ring::new(ring.state().change(&join).unwrap());
    let (name, loser) = (0..)
        .find_map(|i| {
            let name = format!("key{i}");
            let coming = &moving.other_at(key(&name).position()).unwrap()[..3];
            Some((name, *ring.nodes().iter().find(|node| !coming.contains(node))?))
        })
        .unwrap();
    let loser = cluster.index_of(loser).unwrap();
    let others: Vec<usize> = (0..4).filter(|&i| i != loser).collect();
    cluster.split(&[loser], &others);
    let one = Quorum { w: Some(1), primary_w: 1, ..Quorum::default() };
    cluster.update_with(loser, key(&name), Mutation::store("v".to_owned()), one).unwrap();
    cluster.change_ring(new, join).unwrap();
    cluster.advance(30_000);
    let all = Quorum { r: Some(3), primary_r: 3, ..Quorum::default() };
    let object = cluster.get_with(new, key(&name), all);
    assert!(object.is_err(), "one of the owners cannot be asked: {object:?}");
    cluster.heal();
    cluster.advance(30_000);
    let object = cluster.get_with(new, key(&name), all).unwrap();
    assert_eq!(cluster.texts(new, &object), ["v"]);
    assert!(!cluster.node(new).ring().unwrap().is_moving());
}

/// Source: Dynamo §4.8.1; the copies of a node that never comes back are made anew from the others.
#[test]
fn a_removed_node_is_replaced_from_the_other_replicas_and_its_hints_go_to_the_new_owners() {
    let mut cluster = Cluster::new(5);
    let key = |i: usize| format!("key{i}");
    (0..200).for_each(|i| drop(cluster.put(i % 5, &key(i), "v").unwrap()));
    cluster.kill(4);
    (200..300).for_each(|i| drop(cluster.put(i % 4, &key(i), "v").unwrap()));
    let dead = cluster.id(4);
    cluster.change_ring(0, RingChange::Remove { node: dead }).unwrap();
    cluster.advance(30_000);
    let rows = |i: usize| cluster.machines[i].disk.lock().rows(Space::Data).count();
    let hints = |i: usize| cluster.machines[i].disk.lock().rows(Space::Hints).count();
    assert_eq!((0..4).map(rows).sum::<usize>(), 900, "three copies of each key again");
    assert_eq!((0..4).map(hints).sum::<usize>(), 0);
    for i in 0..4 {
        assert!(!cluster.node(i).membership().members.contains_key(&dead));
        assert!(!cluster.node(i).ring().unwrap().is_moving());
    }
}

/// Source: DESIGN §3. Two operators on both sides of a split: one outcome, nothing lost, the loser is told.
#[test]
fn of_two_rings_made_at_once_one_wins_everywhere() {
    let mut cluster = Cluster::with(6, |config| config.cluster_size = 4);
    let inside = cluster.node(0).ring().unwrap().nodes().to_vec();
    let (mut left, mut right): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for i in 0..6 {
        let is_inside = inside.contains(&cluster.id(i));
        let same =
            |side: &[usize]| side.iter().filter(|&&j| inside.contains(&cluster.id(j)) == is_inside).count();
        if same(&left) <= same(&right) {
            left.push(i)
        } else {
            right.push(i)
        }
    }
    (0..100).for_each(|i| drop(cluster.put(i % 6, &format!("key{i}"), "v").unwrap()));
    cluster.split(&left, &right);
    for side in [&left, &right] {
        let new = side.iter().copied().find(|&i| !inside.contains(&cluster.id(i))).unwrap();
        cluster.change_ring(side[0], RingChange::Join { node: RingNode::new(cluster.id(new)) }).unwrap();
        cluster.put(side[0], "both", &format!("{new}")).unwrap();
    }
    cluster.heal();
    cluster.advance(40_000);
    let state = cluster.node(0).ring().unwrap().state().clone();
    assert!(state.old.is_none() && state.version == 4, "{state:?}");
    (0..6).for_each(|i| assert_eq!(cluster.node(i).ring().unwrap().state(), &state));
    let told = cluster.events.iter().filter(|(_, event)| matches!(event, Event::RingLost { .. })).count();
    assert!(told >= 1, "{:?}", cluster.events);
    (0..100).for_each(|i| assert_eq!(cluster.values(i % 6, &format!("key{i}")), ["v"]));
    assert_eq!(cluster.values(left[0], "both").len(), 2, "writes of both sides are kept");
}

/// Source: Dynamo §4.8.3. A stop is told, so nobody waits for the node that went.
#[test]
fn a_graceful_stop_tells_the_peers_at_once() {
    let mut cluster = Cluster::new(3);
    let peer = cluster.id(2);
    cluster.turn(2, oort_core::node::Input::Stop);
    cluster.pump();
    for i in 0..2 {
        assert_eq!(cluster.node(i).health(peer), Health::Down);
        assert!(cluster.node(i).membership().members[&peer].stopped);
    }
    assert_eq!(cluster.put(2, "cart", "v"), Err(ClientError::Stopping));
    cluster.put(0, "cart", "v").unwrap();
    cluster.kill(2);
    cluster.restart(2);
    cluster.advance(1_000);
    assert!(!cluster.node(0).membership().members[&peer].stopped);
    cluster.assert_converged("cart", 3);
}

/// Source: Dynamo §4.7, "Merkle trees minimize the amount of data that needs to be transferred for synchronization".
#[test]
fn replicas_that_differ_in_100_keys_find_and_mend_just_these() {
    let report = support::entropy::differ(200_000, 100);
    assert_eq!((report.mended, report.differing_at_end), (100, 0), "{report:?}");
    assert!(report.sent_bytes() * 100 < report.data_bytes, "{report:?}");
    // A round over equal replicas: two sums a partition, in messages of some thirty bytes.
    assert!(report.quiet_bytes_per_comparison < 200, "{report:?}");
}

/// Source: Dynamo §4.7, anti-entropy finds what no client reads.
#[test]
fn anti_entropy_repairs_a_row_that_vanished_silently() {
    let mut cluster = Cluster::with(3, |config| {
        config.entropy_ms = 10;
        config.partitions = 16;
    });
    for name in ["cart", "list", "session"] {
        cluster.put(0, name, "v").unwrap();
    }
    cluster.lose_row(1, "cart");
    cluster.lose_row(2, "cart");
    cluster.advance(3_000);
    for name in ["cart", "list", "session"] {
        assert_eq!(cluster.holders(name), [0, 1, 2]);
        cluster.assert_converged(name, 3);
    }
    assert!(cluster.total("entropy_keys") > 0);
    let found = cluster.total("entropy_differences");
    cluster.advance(3_000);
    assert_eq!(cluster.total("entropy_differences"), found, "agreement is quiet");
}

/// Source: Dynamo §4.7; what a node that was told a bucket's N sums up apart from then on.
#[test]
fn anti_entropy_mends_what_only_the_last_replica_of_a_larger_n_holds() {
    let mut cluster = Cluster::with(4, |config| config.entropy_ms = 10);
    let names: Vec<String> = (0..12).map(|i| format!("key{i}")).collect();
    let on_all = |name: &str| ObjectKey::new(b"on-all", name.as_bytes()).unwrap();
    cluster.advance(2_000);
    cluster.set_bucket(0, b"on-all", BucketProperties { n: 4, ..BucketProperties::default() });
    for name in &names {
        let mutation = Mutation::store("v");
        let (quorum, want) = (Quorum::default(), Want::default());
        cluster
            .run(0, Operation::Update { key: on_all(name), mutation, quorum, want, caller: None })
            .unwrap();
    }
    let row = |cluster: &Cluster, i: usize, name: &str| {
        cluster.machines[i].disk.lock().get(Space::Data, on_all(name).row()).unwrap()
    };
    for (i, name) in (1..4).flat_map(|i| names.iter().map(move |name| (i, name))) {
        let mut disk = cluster.machines[i].disk.lock();
        disk.apply((Space::Data, on_all(name).row().clone(), None));
        disk.sync(Durability::Durable).unwrap();
    }
    cluster.advance(30_000);
    for name in &names {
        assert!(row(&cluster, 0, name).is_some());
        assert!((1..4).all(|i| row(&cluster, i, name) == row(&cluster, 0, name)), "{name}");
    }
}

/// Source: Dynamo §4.5 lets any node run a scan as it runs a get: by merging what R replicas hold.
#[test]
fn a_scan_lists_what_any_replica_of_the_quorum_holds_once() {
    let mut cluster = Cluster::new(4);
    let names: Vec<String> = (0..60).map(|i| format!("key-{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        cluster.put(i % 4, name, "v").unwrap();
        let primaries = cluster.list(name)[..3].to_vec();
        cluster.lose_row(primaries[i % 3], name);
    }
    let delete = Mutation::Delete { basis: Basis::Local, condition: Condition::Always };
    cluster.update(0, &names[7], delete).unwrap();
    for limit in [7, 1000] {
        let (mut found, mut from) = (Vec::new(), Some(Position(0)));
        while let Some(position) = from {
            let page = cluster.scan(1, position, limit).unwrap();
            found.extend(page.keys.iter().map(|name| support::text(name)));
            from = page.next;
        }
        let mut wanted: Vec<String> = names.iter().filter(|name| **name != names[7]).cloned().collect();
        wanted.sort();
        found.sort();
        assert_eq!(found, wanted, "limit {limit}");
    }
    cluster.kill(3);
    let page = cluster.scan(0, Position(0), 1000).unwrap();
    assert!(page.count >= 59 || page.next.is_some());
}

/// Source: Dynamo §4.8: nodes of another cluster, or of another protocol, are no peers.
#[test]
fn a_foreign_node_is_refused_with_the_reason() {
    let cluster = Cluster::new(2);
    let (node, now) = (cluster.node(0), cluster.now(0));
    let good = cluster.node(1).hello(now);
    let check = |hello: &Hello| node.check(hello, Dials { we: true, they: true });
    assert_eq!(check(&good), Ok(()));
    let mut hello = good.clone();
    hello.protocol = 99;
    assert_eq!(check(&hello), Err(Refusal::Protocol { theirs: 99 }));
    let text = format!("peer protocol version 99 is not supported: this node speaks version {PROTOCOL}");
    assert_eq!(check(&hello).unwrap_err().to_string(), text);
    let mut hello = good.clone();
    hello.cluster = "prod".into();
    let text = check(&hello).unwrap_err().to_string();
    assert_eq!(text, "wrong cluster name: this node belongs to 'oort', not 'prod'");
    assert_eq!(check(&node.hello(now)), Err(Refusal::Itself));
    let copy = Hello { session: 7, ..node.hello(now) };
    assert_eq!(check(&copy), Err(Refusal::Copy { id: cluster.id(0) }), "another process under its id");
    let copy = Hello { session: 7, ..good };
    assert_eq!(check(&copy), Err(Refusal::Copy { id: cluster.id(1) }), "or under a peer's that is up");
}
