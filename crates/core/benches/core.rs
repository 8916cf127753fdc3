//! What the core costs without disk and network. `cargo bench -p oort-core`
//!
//! The store of the end-to-end benches is a hash map that forgets nothing and undoes nothing: `MemoryStore` keeps
//! what it needs to simulate crashes, which would be most of the time measured.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use divan::Bencher;
use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::causality::{Dot, DvvSet, VersionVector};
use oort_core::client::{Operation, Quorum, Reply, Request, Want};
use oort_core::config::{Addresses, NodeConfig};
use oort_core::message::Message;
use oort_core::mutation::Mutation;
use oort_core::node::{Input, Node, Output};
use oort_core::object::{Object, Version};
use oort_core::placement::{RingNode, Strategy};
use oort_core::ring::{Ring, RingState};
use oort_core::store::{Change, Durability, Space, Store, StoreError, Visit};
use oort_core::types::{ActorId, NodeId, Now, ObjectKey, Position, Rng};

fn main() {
    divan::main();
}

const VALUE: [u8; 100] = [b'v'; 100];

fn dot(actor: u64, counter: u64) -> Dot {
    Dot { counter, actor: ActorId(actor) }
}

/// An object with a context of three actors and this many siblings.
fn object(siblings: u64) -> Object {
    let mut object = Object::default();
    for actor in 1..=3 {
        object.0.put(&object.context().clone(), dot(actor, actor), Version::bytes(VALUE.to_vec()));
    }
    for i in 1..siblings {
        object.0.put(&VersionVector::default(), dot(1 + i % 3, 10 + i), Version::bytes(VALUE.to_vec()));
    }
    object
}

// Causality

#[divan::bench]
fn dvvset_put_with_context(bencher: Bencher) {
    let mut counter = 1_000;
    let set = object(1).0;
    bencher.with_inputs(|| (set.clone(), set.context().clone())).bench_local_values(|(mut set, seen)| {
        counter += 1;
        set.put(&seen, dot(1, counter), Version::bytes(Bytes::new()));
        set
    });
}

#[divan::bench(args = [1, 3])]
fn dvvset_merge_concurrent(bencher: Bencher, siblings: u64) {
    let (mut a, mut b): (DvvSet<Version>, _) = (object(siblings).0, object(siblings).0);
    a.put(&VersionVector::default(), dot(1, 100), Version::bytes("a"));
    b.put(&VersionVector::default(), dot(2, 100), Version::bytes("b"));
    bencher.with_inputs(|| a.clone()).bench_local_values(|mut a| {
        a.merge(&b);
        a
    });
}

#[divan::bench]
fn version_vector_descends(bencher: Bencher) {
    let (a, b) = (object(3), object(1));
    bencher.bench_local(|| black_box(&a).context().descends(black_box(&b).context()));
}

#[divan::bench]
fn version_vector_merge(bencher: Bencher) {
    let a: VersionVector = (1..=3).map(|i| dot(i, 5)).collect();
    let b: VersionVector = (2..=4).map(|i| dot(i, 6)).collect();
    bencher.with_inputs(|| a.clone()).bench_local_values(|mut a| {
        a.merge(black_box(&b));
        a
    });
}

// Bytes

#[divan::bench(args = [1, 3])]
fn object_encode(bencher: Bencher, siblings: u64) {
    let object = object(siblings);
    bencher.bench_local(|| black_box(&object).encode());
}

#[divan::bench(args = [1, 3])]
fn object_decode(bencher: Bencher, siblings: u64) {
    let bytes = object(siblings).encode();
    bencher.bench_local(|| Object::decode(black_box(&bytes)));
}

fn write_message() -> Message {
    let key = ObjectKey::new(DEFAULT_BUCKET, b"user:1000:profile").expect("a legal key");
    Message::write(7 << 32, key, object(1).encode(), 1)
}

#[divan::bench]
fn message_encode_write(bencher: Bencher) {
    let (message, mut bytes) = (write_message(), Vec::with_capacity(1024));
    bencher.bench_local(|| {
        bytes.clear();
        black_box(&message).encode(&mut bytes);
        bytes.len()
    });
}

#[divan::bench]
fn message_decode_write(bencher: Bencher) {
    let mut bytes = Vec::new();
    write_message().encode(&mut bytes);
    let bytes = Bytes::from(bytes);
    bencher.bench_local(|| Message::decode(black_box(&bytes)));
}

// Placement

#[divan::bench]
fn ring_lookup(bencher: Bencher) {
    let nodes = (1..=30).map(|id| RingNode::new(NodeId(id))).collect();
    let ring =
        Ring::new(RingState::founding(oort_core::ring::Founding(1), Strategy::EqualPartitions, 1024, nodes));
    bencher.bench_local(|| {
        let position = Position::of(black_box(b"user:1000:profile"));
        ring.preference_at(position)[..3].iter().fold(0, |sum, node| sum ^ node.0)
    });
}

// Whole nodes

/// Rows by key, as fast as can be. Scans, which only gossip-time work needs, find nothing.
#[derive(Default)]
struct FastStore([HashMap<Bytes, Bytes, BuildXxh3>; 3]);

type BuildXxh3 = std::hash::BuildHasherDefault<xxhash_rust::xxh3::Xxh3Default>;

impl Store for FastStore {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0[space as usize].get(key).cloned())
    }
    fn apply(&mut self, (space, key, value): Change) {
        match value {
            Some(value) => self.0[space as usize].insert(key, value),
            None => self.0[space as usize].remove(&key),
        };
    }
    fn sync(&mut self, _: Durability) -> Result<(), StoreError> {
        Ok(())
    }
    fn scan(&mut self, _: Space, _: &[u8], _: &[u8], _: &mut Visit) {}
    fn size_bytes(&self) -> u64 {
        0
    }
}

/// Three linked nodes with a ring, whose first node coordinates.
struct Three {
    nodes: Vec<Node>,
    ids: Vec<NodeId>,
    now: Now,
    out: Vec<Output>,
    inbox: Vec<(usize, NodeId, Message)>,
    keys: Vec<ObjectKey>,
    next: usize,
    requests: u64,
}

impl Three {
    fn new() -> Three {
        let now = Now { mono_us: 1, wall_ms: 1_700_000_000_000 };
        let open = |i: u64| {
            let addresses = Addresses { peer: i.to_string(), ..Addresses::default() };
            let config = NodeConfig { cluster_size: 3, entropy_ms: 0, addresses, ..NodeConfig::default() };
            Node::open(config, i + 1, Box::new(FastStore::default()), now).expect("a new node opens")
        };
        let nodes: Vec<Node> = (0..3).map(open).collect();
        let ids = nodes.iter().map(Node::id).collect();
        let mut rng = Rng::new(1);
        let mut key = || ObjectKey::new(DEFAULT_BUCKET, format!("key:{:012}", rng.below(1 << 30)).as_bytes());
        let keys = (0..10_000).map(|_| key().expect("a legal key")).collect();
        let mut three =
            Three { nodes, ids, now, out: Vec::new(), inbox: Vec::new(), keys, next: 0, requests: 0 };
        for i in 0..3 {
            for peer in (0..3).filter(|&peer| peer != i) {
                let hello = three.nodes[peer].hello(now);
                three.turn(i, Input::LinkUp { hello });
            }
        }
        three.settle();
        three.now.mono_us += 1_000_000;
        for i in 0..3 {
            three.turn(i, Input::Tick);
        }
        three.settle();
        assert!(three.nodes.iter().all(|node| node.ring().is_some()), "no ring was formed");
        three
    }

    fn turn(&mut self, i: usize, input: Input) -> Option<Reply> {
        let node = &mut self.nodes[i];
        node.step(self.now, input, &mut self.out);
        node.stage(&mut self.out);
        node.commit(self.now, &mut self.out);
        let mut answer = None;
        for output in self.out.drain(..) {
            match output {
                Output::Send { to, message } => {
                    let to = self.ids.iter().position(|id| *id == to).expect("a known node");
                    self.inbox.push((to, self.ids[i], message));
                }
                Output::Reply { result, .. } => answer = Some(result.expect("nothing fails here")),
                Output::Connect { .. }
                | Output::Disconnect { .. }
                | Output::Refuse { .. }
                | Output::Event(_) => {}
            }
        }
        answer
    }

    fn settle(&mut self) -> Option<Reply> {
        let mut answer = None;
        while let Some((to, from, message)) = self.inbox.pop() {
            answer = self.turn(to, Input::Message { from, message }).or(answer);
        }
        answer
    }

    fn request(&mut self, operation: Operation) -> Reply {
        self.requests += 1;
        let request = Request { operation, timeout_ms: None };
        let id = self.requests;
        let answer = self.turn(0, Input::Request { id, request });
        self.settle().or(answer).expect("it is answered")
    }

    fn key(&mut self) -> ObjectKey {
        self.next = (self.next + 1) % self.keys.len();
        self.keys[self.next].clone()
    }

    fn put_operation(key: ObjectKey) -> Operation {
        let mutation = Mutation::store(Bytes::from_static(&VALUE));
        Operation::Update { key, mutation, quorum: Quorum::default(), want: Want::default(), caller: None }
    }

    fn put(&mut self, key: ObjectKey) -> Reply {
        self.request(Three::put_operation(key))
    }

    fn get(&mut self, key: ObjectKey) -> Reply {
        self.request(Operation::Get { key, quorum: Quorum::default() })
    }
}

#[divan::bench(sample_count = 100, sample_size = 1000)]
fn three_nodes_put(bencher: Bencher) {
    let mut three = Three::new();
    bencher.bench_local(|| {
        let key = three.key();
        three.put(key)
    });
}

#[divan::bench(sample_count = 100, sample_size = 1000)]
fn three_nodes_get(bencher: Bencher) {
    let mut three = Three::new();
    (0..10_000).for_each(|_| {
        let key = three.key();
        three.put(key);
    });
    bencher.bench_local(|| {
        let key = three.key();
        three.get(key)
    });
}

#[divan::bench(sample_count = 100, sample_size = 1000)]
fn three_nodes_put_and_get(bencher: Bencher) {
    let mut three = Three::new();
    bencher.bench_local(|| {
        let key = three.key();
        three.put(key.clone());
        three.get(key)
    });
}

/// The coordinator's share of a put and a get: its peers' answers are worked out outside the measured time.
#[divan::bench(sample_count = 100, sample_size = 1000)]
fn coordinator_put_and_get(bencher: Bencher) {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let three = std::cell::RefCell::new(Three::new());
    // The replicas' answers do not depend on the coordinator, so they can be made from a twin's run of the same story.
    let twin = std::cell::RefCell::new(Three::new());
    bencher
        .with_inputs(|| {
            let mut twin = twin.borrow_mut();
            let key = twin.key();
            let mut answers = [Vec::new(), Vec::new()];
            for (answers, operation) in answers.iter_mut().zip([
                Three::put_operation(key.clone()),
                Operation::Get { key: key.clone(), quorum: Quorum::default() },
            ]) {
                let id = REQUESTS.fetch_add(1, Ordering::Relaxed);
                twin.turn(0, Input::Request { id, request: Request { operation, timeout_ms: None } });
                while let Some((to, from, message)) = twin.inbox.pop() {
                    if to == 0 {
                        answers.push((from, message.clone()));
                    }
                    twin.turn(to, Input::Message { from, message });
                }
            }
            (key, answers)
        })
        .bench_local_values(|(key, answers)| {
            let mut three = three.borrow_mut();
            let operations =
                [Three::put_operation(key.clone()), Operation::Get { key, quorum: Quorum::default() }];
            let mut replies = 0;
            for (operation, answers) in operations.into_iter().zip(answers) {
                three.requests += 1;
                let id = three.requests;
                let request = Request { operation, timeout_ms: None };
                replies += three.turn(0, Input::Request { id, request }).is_some() as u32;
                for (from, message) in answers {
                    replies += three.turn(0, Input::Message { from, message }).is_some() as u32;
                }
                three.inbox.clear();
            }
            assert_eq!(replies, 2, "the twin's answers fit");
        });
}
