//! Laws that hold for every input: merging, encoding, mutating, placing, listing.
//!
//! States are made as nodes make them, by histories of writes and exchanges between replicas, so that a dot never names
//! two writes and whoever knows a dot of an actor knows its earlier ones.

use bytes::Bytes;
use oort_core::causality::{Dot, DvvSet, VersionVector};
use oort_core::client::{ClientError, Operation, Quorum, Reply, Scan, Want};
use oort_core::codec::{Reader, Writer};
use oort_core::crdt::Counter;
use oort_core::membership::Gossip;
use oort_core::message::{Control, Listed, Message, ReadOutcome, WriteOutcome};
use oort_core::mutation::{
    Basis, Circumstances, Condition, Expiry, ExpiryCondition, Mutation, MutationError,
};
use oort_core::object::{Object, Value, Version};
use oort_core::placement::{Layout, Placement, RingNode, Strategy as Strategy6, PREFERENCE_MAX};
use oort_core::replica::hash_of;
use oort_core::ring::{Ring, RingState};
use oort_core::scan::Listing;
use oort_core::types::{slot, ActorId, NodeId, Now, ObjectKey, Partition, Position, SLOTS};
use proptest::collection::vec;
use proptest::prelude::*;

const REPLICAS: usize = 3;
const GIVEN: Circumstances = Circumstances { wall_ms: 100, value_bytes_max: 64, default_ttl_ms: None };

fn config() -> ProptestConfig {
    // `PROPTEST_CASES` asks for more than 256.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

// Histories

#[derive(Clone, Debug)]
enum Step {
    Write { at: usize, mutation: Mutation, stale: bool },
    Exchange { from: usize, to: usize },
}

fn small_bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        vec(any::<u8>(), 0..8).prop_map(Bytes::from),
        (-20i64..20).prop_map(|number| Bytes::from(number.to_string())),
    ]
}

fn mutations() -> impl Strategy<Value = Mutation> {
    let conditions = prop_oneof![
        4 => Just(Condition::Always),
        1 => Just(Condition::IfAbsent),
        1 => Just(Condition::IfPresent)
    ];
    let expiries = prop_oneof![
        3 => Just(Expiry::Default),
        1 => Just(Expiry::Keep),
        1 => (50u64..200).prop_map(Expiry::At)
    ];
    let headers = vec((small_bytes(), small_bytes()), 0..2);
    let store = (small_bytes(), headers, expiries, conditions, any::<bool>()).prop_map(
        |(value, headers, expiry, condition, blind)| {
            let basis = if blind { Basis::Unseen } else { Basis::Local };
            Mutation::Store { value, headers, basis, expiry, condition }
        },
    );
    prop_oneof![
        4 => store,
        1 => Just(Mutation::Delete { basis: Basis::Local, condition: Condition::Always }),
        1 => small_bytes().prop_map(|suffix| Mutation::Append { suffix }),
        1 => (0u64..12, small_bytes()).prop_map(|(offset, patch)| Mutation::SetRange { offset, patch }),
        4 => (-9i64..9).prop_map(|delta| Mutation::Add { delta }),
        1 => prop_oneof![Just(None), (90u64..200).prop_map(Some)]
            .prop_map(|at_ms| Mutation::SetExpiry { at_ms, condition: ExpiryCondition::ALWAYS }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..REPLICAS, mutations(), any::<bool>())
            .prop_map(|(at, mutation, stale)| Step::Write { at, mutation, stale }),
        1 => (0..REPLICAS, 0..REPLICAS).prop_map(|(from, to)| Step::Exchange { from, to }),
    ];
    vec(step, 0..24)
}

fn dot(at: usize, step: usize) -> Dot {
    Dot { counter: (step as u64 + 1) * 1000 + at as u64 * 7, actor: ActorId(at as u64 + 1) }
}

/// The replicas' objects after a history. Stale writes carry the context of the replica's state one write ago.
fn replay(steps: &[Step], lww: bool) -> Vec<Object> {
    let mut replicas = vec![Object::default(); REPLICAS];
    let mut stale_contexts = vec![VersionVector::default(); REPLICAS];
    for (i, step) in steps.iter().enumerate() {
        match step {
            Step::Write { at, mutation, stale } => {
                let mut mutation = mutation.clone();
                if let (Mutation::Store { basis, .. } | Mutation::Delete { basis, .. }, true) =
                    (&mut mutation, *stale)
                {
                    *basis = Basis::Seen(stale_contexts[*at].clone());
                }
                stale_contexts[*at] = replicas[*at].context().clone();
                let before = replicas[*at].clone();
                match mutation.apply(&mut replicas[*at], dot(*at, i), GIVEN) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => assert_eq!(replicas[*at], before, "nothing was to change"),
                }
                if lww {
                    replicas[*at].keep_newest();
                }
            }
            Step::Exchange { from, to } => {
                let given = replicas[*from].clone();
                replicas[*to].merge(&given);
                if lww {
                    replicas[*to].keep_newest();
                }
            }
        }
    }
    replicas
}

fn merged(a: &Object, b: &Object) -> Object {
    let mut merged = a.clone();
    merged.merge(b);
    merged
}

fn vectors() -> impl Strategy<Value = VersionVector> {
    let dots = vec((0u64..5, 1u64..6), 0..6);
    dots.prop_map(|dots| dots.into_iter().map(|(a, c)| Dot { counter: c, actor: ActorId(a) }).collect())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn merging_objects_is_commutative_associative_and_idempotent(steps in steps()) {
        let replicas = replay(&steps, false);
        for a in &replicas {
            prop_assert_eq!(merged(a, a).encode(), a.encode());
            for b in &replicas {
                let ab = merged(a, b);
                prop_assert_eq!(ab.encode(), merged(b, a).encode());
                prop_assert_eq!(merged(&ab, b).encode(), ab.encode());
                prop_assert!(ab.context().descends(a.context()));
                for c in &replicas {
                    prop_assert_eq!(merged(&ab, c).encode(), merged(a, &merged(b, c)).encode());
                }
            }
        }
    }

    #[test]
    fn replicas_that_exchanged_everything_are_byte_identical(steps in steps(), lww in any::<bool>()) {
        let mut replicas = replay(&steps, lww);
        // Last writer wins drops values while it merges, so two rounds may be needed, in any order.
        for _ in 0..2 {
            for to in 0..REPLICAS {
                for from in 0..REPLICAS {
                    let given = replicas[from].clone();
                    replicas[to].merge(&given);
                    if lww {
                        replicas[to].keep_newest();
                    }
                }
            }
        }
        for replica in &replicas[1..] {
            prop_assert_eq!(replica.encode(), replicas[0].encode());
        }
    }

    #[test]
    fn merging_sets_obeys_the_laws(writes in vec((0..REPLICAS, 0..REPLICAS, any::<bool>()), 0..20)) {
        let mut sets = vec![DvvSet::<usize>::default(); REPLICAS];
        for (i, (at, from, blind)) in writes.into_iter().enumerate() {
            let seen = if blind { VersionVector::default() } else { sets[from].context().clone() };
            sets[at].put(&seen, dot(at, i), i);
            if i % 3 == 0 {
                let given = sets[from].clone();
                sets[at].merge(&given);
            }
        }
        let merge = |a: &DvvSet<usize>, b: &DvvSet<usize>| { let mut m = a.clone(); m.merge(b); m };
        let [a, b, c] = [&sets[0], &sets[1], &sets[2]];
        prop_assert_eq!(merge(a, a), a.clone());
        prop_assert_eq!(merge(a, b), merge(b, a));
        prop_assert_eq!(merge(&merge(a, b), c), merge(a, &merge(b, c)));
    }

    #[test]
    fn vectors_form_a_lattice(a in vectors(), b in vectors(), c in vectors()) {
        let merge = |a: &VersionVector, b: &VersionVector| { let mut m = a.clone(); m.merge(b); m };
        prop_assert_eq!(merge(&a, &a), a.clone());
        prop_assert_eq!(merge(&a, &b), merge(&b, &a));
        prop_assert_eq!(merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
        prop_assert!(merge(&a, &b).descends(&a));
        prop_assert_eq!(a.descends(&b) && b.descends(&a), a == b);
        prop_assert_eq!(a.dominates(&b), a.descends(&b) && a != b);
        let mut bytes = Vec::new();
        a.encode(&mut Writer(&mut bytes));
        let bytes = Bytes::from(bytes);
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(VersionVector::decode(&mut reader).unwrap(), a);
        prop_assert!(reader.end().is_ok());
    }

    #[test]
    fn counters_converge_to_the_sum(adds in vec((0..REPLICAS, -99i64..99, any::<bool>()), 0..30)) {
        let mut replicas = vec![Counter::new(None, 5); REPLICAS];
        let mut sum = 5;
        for (i, (at, delta, exchange)) in adds.into_iter().enumerate() {
            replicas[at].add(dot(at, i), delta).expect("far from the end of the range");
            sum += delta;
            if exchange {
                let given = replicas[at].clone();
                replicas[(at + 1) % REPLICAS].merge(&given);
            }
        }
        let merge = |a: &Counter, b: &Counter| { let mut m = a.clone(); m.merge(b); m };
        let [a, b, c] = [&replicas[0], &replicas[1], &replicas[2]];
        prop_assert_eq!(merge(a, a), a.clone());
        prop_assert_eq!(merge(a, b), merge(b, a));
        prop_assert_eq!(merge(&merge(a, b), c), merge(a, &merge(b, c)));
        prop_assert_eq!(merge(&merge(a, b), c).value(), sum);
    }

    #[test]
    fn increments_at_replicas_that_exchange_at_will_are_all_counted(
        deltas in vec((0..REPLICAS, -9i64..9), 1..20),
        exchanges in vec((0..REPLICAS, 0..REPLICAS, 0usize..20), 0..10),
    ) {
        let mut steps = vec![Step::Write { at: 0, mutation: Mutation::store("100"), stale: false }];
        (1..REPLICAS).for_each(|to| steps.push(Step::Exchange { from: 0, to }));
        for (i, (at, delta)) in deltas.iter().enumerate() {
            steps.push(Step::Write { at: *at, mutation: Mutation::Add { delta: *delta }, stale: false });
            for (from, to, _) in exchanges.iter().filter(|(_, _, when)| *when == i) {
                steps.push(Step::Exchange { from: *from, to: *to });
            }
        }
        let replicas = replay(&steps, false);
        let all = merged(&merged(&replicas[0], &replicas[1]), &replicas[2]);
        let siblings = all.siblings(GIVEN.wall_ms);
        prop_assert_eq!(siblings.len(), 1);
        prop_assert_eq!(siblings[0].counter, Some(100 + deltas.iter().map(|(_, delta)| delta).sum::<i64>()));
    }

    // Bytes

    #[test]
    fn objects_come_back_from_their_bytes(steps in steps()) {
        for object in replay(&steps, false) {
            let bytes = object.encode();
            let back = Object::decode(&bytes);
            prop_assert_eq!(back.as_ref(), Ok(&object));
            let skeleton = back.unwrap().skeleton();
            prop_assert_eq!(skeleton.context(), object.context());
        }
    }

    #[test]
    fn whatever_an_object_is_decoded_from_encodes_to_the_same(
        steps in steps(), flips in vec((any::<prop::sample::Index>(), 0..8u8), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        for object in replay(&steps, false) {
            let mut bytes = object.encode().to_vec();
            for (at, bit) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            for bytes in [Bytes::copy_from_slice(&bytes[..cut.index(bytes.len())]), Bytes::from(bytes)] {
                if let Ok(object) = Object::decode(&bytes) {
                    prop_assert_eq!(object.encode(), bytes);
                }
            }
        }
    }

    #[test]
    fn garbage_is_no_object(tail in vec(any::<u8>(), 0..80), small in vec(0u8..4, 0..80)) {
        for tail in [tail, small] {
            let bytes = Bytes::from([&[1], &tail[..]].concat());
            if let Ok(object) = Object::decode(&bytes) {
                prop_assert_eq!(object.encode(), bytes);
            }
        }
    }

    #[test]
    fn messages_come_back_from_their_bytes(message in messages()) {
        let bytes = encoded(&message);
        prop_assert_eq!(Message::decode(&bytes).unwrap(), message);
    }

    #[test]
    fn broken_messages_are_refused_without_a_panic(
        message in messages(), flips in vec((any::<prop::sample::Index>(), 0..8u8), 1..4),
        cut in any::<prop::sample::Index>(), garbage in vec(any::<u8>(), 0..60), kind in 0u8..7,
    ) {
        let good = encoded(&message);
        let mut flipped = good.to_vec();
        for (at, bit) in flips {
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << bit;
        }
        let cut = good.slice(..cut.index(good.len()));
        prop_assert!(Message::decode(&cut).is_err(), "a message cut short is none");
        let garbage = Bytes::from([&[kind], &garbage[..]].concat());
        for bytes in [Bytes::from(flipped), garbage] {
            match Message::decode(&bytes) {
                Ok(Message::Control(_)) | Err(_) => {} // postcard reads some numbers in more than one form
                Ok(message) => prop_assert_eq!(encoded(&message), bytes),
            }
        }
    }

    // Mutations

    #[test]
    fn mutations_on_one_replica_do_what_a_plain_variable_does(mutations in vec(mutations(), 0..30)) {
        let mut object = Object::default();
        let mut model: Option<Vec<u8>> = None;
        for (i, mutation) in mutations.into_iter().enumerate() {
            let mutation = plain(mutation);
            let result = mutation.apply(&mut object, dot(0, i), GIVEN);
            prop_assert_eq!(result, apply_to_model(&mutation, &mut model), "{:?}", mutation);
            let newest = object.newest(GIVEN.wall_ms).map(|sibling| sibling.value.to_vec());
            prop_assert_eq!(&newest, &model, "after {:?}", mutation);
            prop_assert!(object.siblings(GIVEN.wall_ms).len() <= 1);
            prop_assert!(object.0.values().len() <= 1);
        }
    }

    // Placement

    #[test]
    fn rings_are_deterministic_balanced_and_complete(
        ids in prop::collection::btree_set(any::<u64>(), 1..40), power in 0u32..9, key in vec(any::<u8>(), 1..20),
    ) {
        let partitions = 1u16 << power;
        let nodes: Vec<NodeId> = ids.iter().copied().map(NodeId).collect();
        let founding = |nodes: Vec<NodeId>| {
            let nodes = nodes.into_iter().map(RingNode::new).collect();
            Ring::new(RingState::founding(oort_core::ring::Founding(1), Strategy6::EqualPartitions, partitions, nodes))
        };
        let ring = founding(nodes.clone());
        let again = founding(nodes.iter().rev().copied().collect());
        let mut owned = vec![0usize; nodes.len()];
        for partition in (0..partitions).map(Partition) {
            let list = ring.preference_list(partition);
            prop_assert_eq!(list, again.preference_list(partition));
            prop_assert_eq!(list[0], ring.owner(partition));
            let mut distinct = list.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), nodes.len().min(PREFERENCE_MAX));
            owned[nodes.binary_search(&list[0]).expect("an owner is a member")] += 1;
        }
        prop_assert!(owned.iter().max().unwrap() - owned.iter().min().unwrap() <= 1);
        let position = Position::of(&key);
        let partition = ring.partition_of(position);
        prop_assert!(partition.start(partitions) <= position && position <= partition.end(partitions));
        prop_assert_eq!(ring.preference_at(position), ring.preference_list(partition));
    }

    /// Source: DESIGN §3: distinct nodes, distinct zones while there are enough, balance, and few moves, whatever
    /// operators did before.
    #[test]
    fn layouts_stay_balanced_and_move_little_over_many_changes(
        power in 4u32..10, changes in vec((0u8..5, any::<u64>(), 1u16..400, 0u8..4), 1..60),
    ) {
        let q = 1u16 << power;
        let zone = |number: u8| format!("zone{number}");
        let first = vec![RingNode::new(NodeId(7)), RingNode { zone: zone(1), ..RingNode::new(NodeId(8)) }];
        let mut layout = Layout::founding(Strategy6::EqualPartitions, q, first);
        for (kind, id, weight, number) in changes {
            let mut nodes = layout.nodes.clone();
            let place = id as usize % nodes.len();
            match kind {
                0..=2 => nodes.push(RingNode { id: NodeId(id), weight, zone: zone(number) }),
                3 if nodes.len() > 1 => { nodes.remove(place); }
                _ => nodes[place].weight = weight,
            }
            let changed = layout.change(nodes);
            prop_assert!(changed.is_valid());
            let owners = |layout: &Layout| -> Vec<NodeId> {
                let placement = Placement::new(layout, 1);
                (0..q).map(|p| placement.preference_list(Partition(p))[0]).collect()
            };
            let (before, after) = (owners(&layout), owners(&changed));
            let count = |owners: &[NodeId], id: NodeId| owners.iter().filter(|owner| **owner == id).count();
            let total: f64 = changed.nodes.iter().map(|node| node.weight as f64).sum();
            let mut needed = 0;
            for node in &changed.nodes {
                let (had, has) = (count(&before, node.id), count(&after, node.id));
                let ideal = q as f64 * node.weight as f64 / total;
                prop_assert!((has as f64 - ideal).abs() < 1.0, "{has} of {ideal}");
                needed += has.saturating_sub(had);
            }
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            prop_assert_eq!(moved, needed, "no partition moves that need not");
            let zones: std::collections::BTreeSet<&String> =
                changed.nodes.iter().map(|node| &node.zone).collect();
            let placement = Placement::new(&changed, PREFERENCE_MAX);
            for p in (0..q).map(Partition) {
                let list = placement.preference_list(p);
                for n in 1..=list.len().min(5) {
                    let mut distinct = list[..n].to_vec();
                    distinct.sort_unstable();
                    distinct.dedup();
                    prop_assert_eq!(distinct.len(), n);
                    let of: std::collections::BTreeSet<&String> =
                        list[..n].iter().map(|id| &changed.node(*id).unwrap().zone).collect();
                    prop_assert_eq!(of.len(), n.min(zones.len()), "copies share a zone without need");
                }
            }
            layout = changed;
        }
    }

    #[test]
    fn the_top_bits_of_a_position_are_the_redis_slot(
        key in vec(any::<u8>(), 1..40), tag in vec(any::<u8>(), 1..9), tail in vec(any::<u8>(), 0..9),
    ) {
        let bitwise = |bytes: &[u8]| {
            let feed = |crc: u16, byte: &u8| (0..8).fold(crc ^ (*byte as u16) << 8, |crc, _| {
                crc << 1 ^ if crc >> 15 == 1 { 0x1021 } else { 0 }
            });
            bytes.iter().fold(0, feed) % SLOTS
        };
        prop_assert_eq!(Position::of(&key).slot(), slot(&key));
        prop_assert!(Position::first_of_slot(slot(&key)) <= Position::of(&key));
        if !key.contains(&b'{') {
            prop_assert_eq!(slot(&key), bitwise(&key));
            if !tag.contains(&b'}') {
                prop_assert_eq!(slot(&[&key[..], b"{", &tag, b"}", &tail].concat()), bitwise(&tag));
            }
        }
        let row = ObjectKey::new(b"bucket", &key).unwrap();
        prop_assert_eq!(row.position(), Position::of(&key));
        prop_assert_eq!(ObjectKey::from_row(row.row().clone()).unwrap(), row);
    }

    // Listings

    #[test]
    fn a_listing_returns_every_live_key_once(
        present in vec((0u32..40, 0usize..4, any::<bool>()), 0..60), limit in 1u32..12, chunk in 1usize..9,
    ) {
        let nodes = [NodeId(1), NodeId(2)];
        let mut held = [std::collections::BTreeMap::new(), std::collections::BTreeMap::new()];
        for (i, (name, whom, deleted)) in present.iter().enumerate() {
            let key = crowded_key(*name);
            for (node, rows) in held.iter_mut().enumerate().filter(|(node, _)| *whom != 1 - node) {
                let object: &mut Object = rows.entry(key.clone()).or_default();
                let version = if *deleted { Version::tombstone() } else { Version::bytes("v") };
                object.0.put(&object.context().clone(), dot(node, i), version);
            }
        }
        let mut all = held[0].clone();
        for (key, object) in &held[1] {
            all.entry(key.clone()).or_default().merge(object);
        }
        let live = all.iter().filter(|(_, object)| object.is_live(0)).map(|(key, _)| key.key_bytes());
        let wanted: Vec<Bytes> = live.collect();
        let (mut found, mut counted) = (Vec::new(), 0);
        for count_only in [false, true] {
            let mut from = Some(Position(0));
            while let Some(start) = from {
                let bucket = Bytes::from_static(b"b");
                let scan = Scan { bucket, from: start, to: Position(u64::MAX), limit, count_only };
                let now = Now::default();
                let mut listing = Listing::new(scan, now, 2048);
                let mut last: Option<(u32, Listed)> = None;
                while let Some(next) = listing.next(now) {
                    // Segments end anywhere, pages only where a cursor ends.
                    let to = Position((next.0 | u64::MAX >> 2) - 1).max(next);
                    let (part, scan) = listing.start_segment(now, to, &nodes);
                    // An answer that comes twice, late, is not taken for one to this segment.
                    let late = last.take();
                    prop_assert!(late.is_none_or(|(part, late)| !listing.answer(nodes[0], part, late)));
                    for (node, rows) in nodes.iter().zip(&held) {
                        let listed = list(rows, &scan, chunk + node.0 as usize);
                        if *node == nodes[0] {
                            last = Some((part, listed.clone()));
                        }
                        prop_assert_eq!(listing.answer(*node, part, listed), *node == nodes[1]);
                    }
                    let Some((part, missing)) = listing.finish_part(now) else { continue };
                    for (node, keys) in missing {
                        let rows = &held[nodes.iter().position(|other| *other == node).unwrap()];
                        listing.answer(node, part, list_keys(rows, &keys));
                    }
                    prop_assert_eq!(listing.finish_part(now), None);
                }
                let page = listing.into_page();
                prop_assert!(page.next.is_none_or(|next| next > start && next == next.cursor_start()));
                match count_only {
                    true => prop_assert_eq!(page.keys.len(), 0),
                    false => prop_assert_eq!(page.count, page.keys.len() as u64),
                }
                counted += page.count * count_only as u64;
                found.extend(page.keys);
                from = page.next;
            }
        }
        prop_assert_eq!(counted, wanted.len() as u64);
        prop_assert_eq!(found, wanted);
    }
}

/// One of few keys of which four share a cursor, and two of these a position.
fn crowded_key(name: u32) -> ObjectKey {
    let position = (name as u64 / 4) << 58 | u64::MAX >> 6 & !1 | (name as u64 % 4 / 2);
    let row = [&position.to_be_bytes()[..], b"\x01b", format!("k{name}").as_bytes()].concat();
    ObjectKey::from_row(row.into()).unwrap()
}

/// What a replica answers to a scan, as `serve` does.
fn list(rows: &std::collections::BTreeMap<ObjectKey, Object>, scan: &Scan, rows_max: usize) -> Listed {
    let mut listed = Listed { done_to: scan.to.0, ..Listed::default() };
    let mut last = None;
    for (key, object) in rows.iter().filter(|(key, _)| (scan.from..=scan.to).contains(&key.position())) {
        let cursor = key.position().cursor();
        if listed.visited as usize >= rows_max && last.is_some_and(|last| last < cursor) {
            listed.done_to = key.position().cursor_start().0 - 1;
            break;
        }
        last = Some(cursor);
        listed.visited += 1;
        if object.is_live(0) {
            let skeleton = object.skeleton().encode();
            listed.count += 1;
            listed.hash += hash_of(&[&key.row()[..], &skeleton].concat()) >> 8;
            listed.rows.push((key.clone(), skeleton));
        }
    }
    match scan.count_only {
        true => listed.rows.clear(),
        false => listed.hash = 0,
    }
    listed
}

/// What a replica answers when it is asked for keys.
fn list_keys(rows: &std::collections::BTreeMap<ObjectKey, Object>, keys: &[ObjectKey]) -> Listed {
    let held = keys.iter().filter_map(|key| Some((key.clone(), rows.get(key)?.skeleton().encode())));
    Listed { rows: held.collect(), done_to: u64::MAX, ..Listed::default() }
}

/// The same mutation as a lone Redis client would ask for.
fn plain(mutation: Mutation) -> Mutation {
    match mutation {
        Mutation::Store { value, headers, condition, .. } => {
            Mutation::Store { value, headers, basis: Basis::Local, expiry: Expiry::Never, condition }
        }
        Mutation::SetExpiry { condition, .. } => Mutation::SetExpiry { at_ms: Some(1_000), condition },
        other => other,
    }
}

fn apply_to_model(mutation: &Mutation, model: &mut Option<Vec<u8>>) -> Result<bool, MutationError> {
    let old = model.clone().unwrap_or_default();
    let exists = model.is_some();
    let new = match mutation {
        Mutation::Store { condition: Condition::IfAbsent, .. } if exists => return Ok(false),
        Mutation::Store { condition: Condition::IfPresent, .. } if !exists => return Ok(false),
        Mutation::Store { value, .. } => value.to_vec(),
        Mutation::Delete { .. } => {
            *model = None;
            return Ok(exists);
        }
        Mutation::Append { suffix } => [&old[..], suffix].concat(),
        Mutation::SetRange { patch, .. } if patch.is_empty() => return Ok(false),
        Mutation::SetRange { offset, patch } => {
            let mut new = old;
            let end = *offset as usize + patch.len();
            new.resize(new.len().max(end), 0);
            new[*offset as usize..end].copy_from_slice(patch);
            new
        }
        Mutation::Add { delta } => {
            let number: i64 = match exists {
                true => {
                    let text = String::from_utf8(old).map_err(|_| MutationError::NotAnInteger)?;
                    let number: i64 = text.parse().map_err(|_| MutationError::NotAnInteger)?;
                    if number.to_string() != text {
                        return Err(MutationError::NotAnInteger);
                    }
                    number
                }
                false => 0,
            };
            (number + delta).to_string().into_bytes()
        }
        Mutation::SetExpiry { .. } => return Ok(exists),
        Mutation::AddFloat { .. } | Mutation::Activate { .. } => unreachable!("not generated"),
    };
    if new.len() as u64 > GIVEN.value_bytes_max {
        let (bytes, limit_bytes) = (new.len() as u64, GIVEN.value_bytes_max);
        return Err(MutationError::ValueTooLarge { bytes, limit_bytes });
    }
    *model = Some(new);
    Ok(true)
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes.into()
}

fn messages() -> impl Strategy<Value = Message> {
    let keys = vec(any::<u8>(), 1..20).prop_map(|key| ObjectKey::new(b"bucket", &key).unwrap());
    let outcomes = prop_oneof![
        Just(WriteOutcome::Durable),
        Just(WriteOutcome::ReadOnly),
        Just(WriteOutcome::ClockSkew),
        Just(WriteOutcome::Malformed),
        Just(WriteOutcome::Stale),
        Just(WriteOutcome::Lacking),
        any::<u64>().prop_map(|promised| WriteOutcome::Uncovered { promised })
    ];
    let reads = prop_oneof![
        Just(ReadOutcome::Same),
        Just(ReadOutcome::Missing),
        Just(ReadOutcome::Failed),
        Just(ReadOutcome::Stale),
        small_bytes().prop_map(ReadOutcome::Object)
    ];
    prop_oneof![
        (any::<u64>(), keys.clone(), small_bytes(), any::<[u64; 3]>(), any::<Option<u64>>()).prop_map(
            |(task, key, object, [base, stamp, term], hint)| Message::Write {
                task,
                key,
                object,
                base,
                hint_for: hint.map(NodeId),
                stamp,
                term
            }
        ),
        (any::<u64>(), keys.clone(), small_bytes(), any::<[u64; 3]>()).prop_map(
            |(task, key, object, [base, stamp, term])| Message::Claim {
                task,
                key,
                object,
                base,
                term,
                stamp
            }
        ),
        (any::<u64>(), outcomes).prop_map(|(task, outcome)| Message::Written { task, outcome }),
        (any::<u64>(), keys.clone(), any::<[u64; 2]>())
            .prop_map(|(task, key, [have, stamp])| { Message::Read { task, key, have, stamp } }),
        (any::<u64>(), reads).prop_map(|(task, outcome)| Message::ReadResult { task, outcome }),
        (controls(), keys).prop_map(|(control, key)| Message::Control(control(key))),
    ]
}

fn controls() -> impl Strategy<Value = fn(ObjectKey) -> Control> {
    let forward: fn(ObjectKey) -> Control = |key| {
        let (mutation, quorum, want) = (Mutation::store("v"), Quorum::default(), Want::default());
        Control::Forward {
            task: 1,
            operation: Operation::Update { key, mutation, quorum, want, caller: None },
            left_us: 2,
            sent_us: 3,
            holds: 7,
        }
    };
    let forwarded: fn(ObjectKey) -> Control =
        |_| Control::Forwarded { task: 1, result: Ok(Reply::Object(Object::default())) };
    let failed: fn(ObjectKey) -> Control =
        |_| Control::Forwarded { task: 1, result: Err(ClientError::NotReady) };
    let rows: fn(ObjectKey) -> Control = |key| {
        let rows = vec![(key, Bytes::from_static(b"o"))];
        let listed = Listed { rows, count: 1, hash: 5, done_to: 9, visited: 4 };
        Control::ScanRows { task: 3, part: 1, listed }
    };
    let entropy: fn(ObjectKey) -> Control =
        |key| Control::EntropyRows { from: 0, to: u64::MAX, rows: vec![(key, 7)], stamp: 3 };
    let hash: fn(ObjectKey) -> Control = |_| Control::Gossip(Gossip::Hash(5));
    prop_oneof![Just(forward), Just(forwarded), Just(failed), Just(rows), Just(entropy), Just(hash)]
}

/// Forms of numbers and flags that `encode` never writes, which a bit flip rarely hits.
#[test]
fn objects_in_other_forms_than_encodes_are_refused() {
    let one = |dot: Dot, version: Version| {
        let mut object = Object::default();
        object.0.put(&VersionVector::default(), dot, version);
        object.encode().to_vec()
    };
    let dot = Dot { counter: 5, actor: ActorId(1) };
    let good = one(dot, Version::bytes("v"));
    // format, 1 context entry, 1 sibling, index 0, flags, length 1, "v"
    let siblings = 2 + 16;
    assert_eq!(&good[siblings..], &[1, 0, 0b1_0000, 1, b'v']);
    let context = &good[..siblings];
    let cases: [(&str, Vec<u8>); 7] = [
        ("a long form of the count", [context, &[0x81, 0, 0, 0b1_0000, 1, b'v']].concat()),
        ("a long form of the length", [context, &[1, 0, 0b1_0000, 0x81, 0, b'v']].concat()),
        ("no headers, announced", [context, &[1, 0, 0b1_1000, 0, 1, b'v']].concat()),
        ("the newest dot, spelt out", [context, &[1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, b'v']].concat()),
        ("a context entry of 0", [&[1, 1, 1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 8], &[0]].concat()),
        ("a long form of the context's count", [&[1, 0x80, 0, 0][..]].concat()),
        ("a kind of value that is none", [context, &[1, 0, 0b1_0011]].concat()),
    ];
    for (what, bytes) in cases {
        let decoded = Object::decode(&Bytes::from(bytes));
        assert!(decoded.is_err(), "{what}: {decoded:?}");
    }
    // A counter that claims additions its object has not seen would make the next addition an earlier one.
    let mut counter = Counter::new(None, 0);
    counter.add(Dot { counter: 9, actor: ActorId(2) }, 1).unwrap();
    let version = Version { value: Value::Counter(counter), expires_ms: None, headers: Vec::new() };
    assert!(Object::decode(&Bytes::from(one(dot, version))).is_err(), "an addition outside the context");
}
