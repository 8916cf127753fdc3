//! A cluster of whole nodes in one thread: time, disks, links and clocks are the test's to move.
//!
//! Every message passes through its bytes. Nothing is random: a test that passes once passes always. The
//! simulator (`crates/sim`) searches for histories nobody thought of; this shows one story at a time.
#![allow(dead_code)] // Each test program uses its own part.

pub mod entropy;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use oort_core::bucket::{BucketEntry, BucketProperties, DEFAULT_BUCKET};
use oort_core::client::{
    ClientError, Operation, Page, Quorum, Reply, Request, RequestId, Scan, Updated, Want,
};
use oort_core::config::{Addresses, NodeConfig};
use oort_core::membership::{Dials, Hello};
use oort_core::message::Message;
use oort_core::mutation::Mutation;
use oort_core::node::{Event, Input, Node, Output};
use oort_core::object::{common_bytes, Object};
use oort_core::placement::Strategy;
use oort_core::ring::RingChange;
use oort_core::store::{Change, Durability, MemoryStore, Space, Store, StoreError, Visit};
use oort_core::types::{NodeId, Now, ObjectKey, Position};

/// Where the wall clocks start, in milliseconds since 1970.
pub const WALL_START_MS: u64 = 1_700_000_000_000;

/// A disk that outlives the node that uses it.
#[derive(Clone, Default)]
pub struct Disk {
    memory: Arc<Mutex<MemoryStore>>,
    forgets: Arc<AtomicBool>,
}

impl Disk {
    pub fn lock(&self) -> MutexGuard<'_, MemoryStore> {
        self.memory.lock().expect("no test panics with the disk in hand")
    }

    /// From now on it takes writes, but fails (true) or manages (false) to make them durable.
    pub fn set_forgets(&self, forgets: bool) {
        self.forgets.store(forgets, Ordering::Relaxed);
    }
}

impl Store for Disk {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.lock().get(space, key)
    }
    fn apply(&mut self, change: Change) {
        self.lock().apply(change)
    }
    fn sync(&mut self, durability: Durability) -> Result<(), StoreError> {
        if durability == Durability::Durable && self.forgets.load(Ordering::Relaxed) {
            return Err(StoreError::ReadOnly { detail: "input/output error".into() });
        }
        self.lock().sync(durability)
    }
    fn scan(&mut self, space: Space, from: &[u8], to: &[u8], visit: &mut Visit) {
        self.lock().scan(space, from, to, visit)
    }
    fn size_bytes(&self) -> u64 {
        self.lock().size_bytes()
    }
}

/// A node that still has something to do after so many ticks of one moment never rests.
const TICKS_MAX: usize = 100;

pub struct Machine {
    pub node: Option<Node>,
    pub disk: Disk,
    pub config: NodeConfig,
    /// Of the node that ran last.
    pub id: NodeId,
    /// How far its wall clock is off.
    pub wall_ahead_ms: i64,
    starts: u64,
}

/// Whether a machine's memory goes with its node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// `kill -9`: the operating system keeps what was written.
    Kill,
    /// The machine loses power: only what was durable stays.
    Power,
}

pub struct Cluster {
    pub machines: Vec<Machine>,
    pub events: Vec<(usize, Event)>,
    /// Links that a node closed because the peer is of another cluster.
    pub refused: Vec<(usize, NodeId)>,
    /// Every message that left a node, for golden scripts: from, to, whether it will arrive.
    pub log: Vec<(usize, usize, bool, Message)>,
    now_us: u64,
    wanted: BTreeSet<(usize, usize)>,
    links: BTreeSet<(usize, usize)>,
    broken: BTreeSet<(usize, usize)>,
    deaf: BTreeSet<(usize, usize)>,
    /// Nodes that stand still, as under SIGSTOP, and what waits for them.
    paused: BTreeSet<usize>,
    unread: VecDeque<(usize, usize, Bytes)>,
    wires: VecDeque<(usize, usize, Bytes)>,
    replies: BTreeMap<RequestId, Result<Reply, ClientError>>,
    requests: RequestId,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

/// How rings are laid out: as `OORT_STRATEGY` says, which also tells whole processes; 3 if it is not set.
fn strategy() -> Strategy {
    let number = std::env::var("OORT_STRATEGY").map_or(3, |number| number.parse().expect("1, 2 or 3"));
    Strategy::numbered(number, 16)
}

/// A key of the default bucket.
pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new(DEFAULT_BUCKET, name.as_bytes()).expect("test keys are legal")
}

pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

impl Cluster {
    /// `count` nodes with a formed ring. Anti-entropy is off, lest it mend what a test wants to see broken.
    pub fn new(count: usize) -> Cluster {
        Cluster::with(count, |_| {})
    }

    pub fn with(count: usize, change: impl Fn(&mut NodeConfig)) -> Cluster {
        let mut cluster = Cluster::unformed(count, change);
        cluster.advance(2_000);
        for i in 0..count {
            assert!(cluster.node(i).ring().is_some(), "node {i} knows no ring");
        }
        cluster.events.clear();
        cluster.log.clear();
        cluster
    }

    /// Started, but nothing has been said yet.
    pub fn unformed(count: usize, change: impl Fn(&mut NodeConfig)) -> Cluster {
        let mut cluster = Cluster {
            machines: Vec::new(),
            events: Vec::new(),
            refused: Vec::new(),
            log: Vec::new(),
            now_us: 1_000_000,
            wanted: (1..count).map(|i| (0, i)).collect(), // node 0 is everybody's seed
            links: BTreeSet::new(),
            broken: BTreeSet::new(),
            deaf: BTreeSet::new(),
            paused: BTreeSet::new(),
            unread: VecDeque::new(),
            wires: VecDeque::new(),
            replies: BTreeMap::new(),
            requests: 0,
        };
        for i in 0..count {
            let mut config = NodeConfig {
                name: format!("n{i}"),
                addresses: Addresses { peer: i.to_string(), ..Addresses::default() },
                cluster_size: count as u16,
                partitions: 64,
                strategy: strategy(),
                entropy_ms: 0,
                ..NodeConfig::default()
            };
            change(&mut config);
            let (disk, wall_ahead_ms) = (Disk::default(), 0);
            cluster.machines.push(Machine {
                node: None,
                disk,
                config,
                id: NodeId(0),
                wall_ahead_ms,
                starts: 0,
            });
            cluster.start(i);
        }
        cluster
    }

    // Machines and time

    pub fn now(&self, i: usize) -> Now {
        let wall = WALL_START_MS as i64 + (self.now_us / 1000) as i64 + self.machines[i].wall_ahead_ms;
        Now { mono_us: self.now_us, wall_ms: wall as u64 }
    }

    pub fn node(&self, i: usize) -> &Node {
        self.machines[i].node.as_ref().expect("the node runs")
    }

    pub fn id(&self, i: usize) -> NodeId {
        self.machines[i].id
    }

    pub fn start(&mut self, i: usize) {
        let now = self.now(i);
        let machine = &mut self.machines[i];
        machine.starts += 1;
        let seed = (i as u64 + 1) * 1_000 + machine.starts;
        let node = Node::open(machine.config.clone(), seed, Box::new(machine.disk.clone()), now);
        let mut node = node.expect("the disk holds a node's records");
        let sandbox = oort_script::Machine::new(|| 0).expect("there is memory");
        node.set_sandbox(Box::new(sandbox));
        machine.id = node.id();
        machine.node = Some(node);
        self.turn(i, Input::Tick);
    }

    /// Ends a node without a word; its peers see their links close.
    pub fn crash(&mut self, i: usize, crash: Crash) {
        self.machines[i].node = None;
        if crash == Crash::Power {
            self.machines[i].disk.lock().crash();
        }
        self.wires.retain(|(from, to, _)| *from != i && *to != i);
        let lost: Vec<_> = self.links.iter().copied().filter(|&(a, b)| a == i || b == i).collect();
        for link in lost {
            self.close(link);
        }
        self.pump();
    }

    pub fn kill(&mut self, i: usize) {
        self.crash(i, Crash::Kill);
    }

    /// Starts a node again and lets it find its peers.
    pub fn restart(&mut self, i: usize) {
        self.start(i);
        self.pump();
    }

    /// Lets `ms` milliseconds pass.
    pub fn advance(&mut self, ms: u64) {
        let end = self.now_us + ms * 1000;
        self.pump();
        while self.next_wakeup() <= end {
            self.wake();
        }
        self.now_us = end;
        self.pump();
    }

    fn next_wakeup(&self) -> u64 {
        let awake = self.machines.iter().enumerate().filter(|(i, _)| !self.paused.contains(i));
        let nodes = awake.filter_map(|(_, machine)| machine.node.as_ref());
        nodes.map(Node::next_wakeup).min().unwrap_or(u64::MAX)
    }

    fn wake(&mut self) {
        self.now_us = self.now_us.max(self.next_wakeup());
        for i in 0..self.machines.len() {
            let node = self.machines[i].node.as_ref().filter(|_| !self.paused.contains(&i));
            let due = node.is_some_and(|node| node.next_wakeup() <= self.now_us);
            if due {
                // Background work comes in portions.
                for _ in 0..TICKS_MAX {
                    if self.node(i).next_wakeup() <= self.now_us {
                        self.turn(i, Input::Tick);
                    }
                }
                assert!(self.node(i).next_wakeup() > self.now_us, "node {i} wakes without end");
            }
        }
        self.pump();
    }

    // Links

    fn close(&mut self, (a, b): (usize, usize)) {
        if !self.links.remove(&(a, b)) {
            return;
        }
        self.wires.retain(|(from, to, _)| pair(*from, *to) != (a, b));
        for (i, peer) in [(a, b), (b, a)] {
            let peer = self.machines[peer].id;
            self.turn(i, Input::LinkDown { peer });
        }
    }

    /// Breaks the link between two nodes; both notice.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.broken.insert(pair(a, b));
        self.close(pair(a, b));
        self.pump();
    }

    /// Cuts every link between the two groups.
    pub fn split(&mut self, left: &[usize], right: &[usize]) {
        for &a in left {
            for &b in right {
                self.cut(a, b);
            }
        }
    }

    /// From now on what `from` says to `to` vanishes, and nobody is told.
    pub fn silence(&mut self, from: usize, to: usize) {
        self.deaf.insert((from, to));
    }

    /// What `i` says vanishes, as if it had been stopped.
    pub fn mute(&mut self, i: usize) {
        (0..self.machines.len()).filter(|&other| other != i).for_each(|other| self.silence(i, other));
    }

    /// `i` stands still: what it is sent waits for it, and its links stay open.
    pub fn pause(&mut self, i: usize) {
        self.paused.insert(i);
    }

    /// All nodes go on.
    pub fn resume(&mut self) {
        self.paused.clear();
        self.wires.append(&mut self.unread);
        self.pump();
    }

    /// Mends all links and silences.
    pub fn heal(&mut self) {
        self.broken.clear();
        self.deaf.clear();
        self.pump();
    }

    fn open_links(&mut self) {
        let open = |cluster: &Cluster, i: usize| cluster.machines[i].node.is_some();
        for (a, b) in self.wanted.clone() {
            if self.links.contains(&(a, b)) || self.broken.contains(&(a, b)) {
                continue;
            }
            if !open(self, a) || !open(self, b) {
                continue;
            }
            let hellos = [a, b].map(|i| self.node(i).hello(self.now(i)));
            let refuses =
                |i: usize, hello: &Hello| self.node(i).check(hello, Dials { we: true, they: true }).is_err();
            if refuses(a, &hellos[1]) || refuses(b, &hellos[0]) {
                continue;
            }
            self.links.insert((a, b));
            let [of_a, of_b] = hellos;
            self.turn(a, Input::LinkUp { hello: of_b });
            self.turn(b, Input::LinkUp { hello: of_a });
        }
    }

    // The loop

    /// One turn of a node's loop with one input.
    pub fn turn(&mut self, i: usize, input: Input) {
        let now = self.now(i);
        let Some(node) = &mut self.machines[i].node else { return };
        let mut out = Vec::new();
        node.step(now, input, &mut out);
        node.stage(&mut out);
        node.commit(now, &mut out);
        for output in out {
            match output {
                Output::Reply { id, result } => {
                    let earlier = self.replies.insert(id, result);
                    assert!(earlier.is_none(), "request {id} was answered twice");
                }
                Output::Send { to, message } => self.post(i, to, &message),
                Output::Connect { address, .. } => {
                    self.wanted.insert(pair(i, address.parse().expect("test addresses are indices")));
                }
                Output::Disconnect { peer } => {
                    let peer = self.index_of(peer);
                    self.wanted.retain(|link| peer.is_none_or(|peer| *link != pair(i, peer)));
                }
                Output::Refuse { peer, .. } => self.refused.push((i, peer)),
                Output::Event(event) => self.events.push((i, event)),
            }
        }
    }

    pub fn index_of(&self, id: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.id == id)
    }

    fn post(&mut self, from: usize, to: NodeId, message: &Message) {
        let Some(to) = self.index_of(to) else { return };
        let is_lost = self.deaf.contains(&(from, to)) || !self.links.contains(&pair(from, to));
        self.log.push((from, to, !is_lost, message.clone()));
        if !is_lost {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            self.wires.push_back((from, to, bytes.into()));
        }
    }

    /// Delivers messages until nobody has anything to say.
    pub fn pump(&mut self) {
        loop {
            self.open_links();
            let Some((from, to, bytes)) = self.wires.pop_front() else {
                return;
            };
            if self.paused.contains(&to) {
                self.unread.push_back((from, to, bytes));
                continue;
            }
            let message = Message::decode(&bytes).expect("what a node sends can be read");
            self.turn(to, Input::Message { from: self.machines[from].id, message });
        }
    }

    /// Says something to `to` as if `from` had, and returns after everything that follows.
    pub fn inject(&mut self, from: usize, to: usize, message: Message) {
        let from = self.id(from);
        self.turn(to, Input::Message { from, message });
        self.pump();
    }

    // Clients

    /// Sends a request; [`Cluster::wait`] returns its answer.
    pub fn ask(&mut self, i: usize, operation: Operation) -> RequestId {
        self.requests += 1;
        let id = self.requests;
        self.turn(i, Input::Request { id, request: Request { operation, timeout_ms: None } });
        id
    }

    pub fn answer(&mut self, id: RequestId) -> Option<Result<Reply, ClientError>> {
        self.replies.remove(&id)
    }

    /// Lets time pass until the request is answered.
    pub fn wait(&mut self, id: RequestId) -> Result<Reply, ClientError> {
        let limit = self.now_us + 10_000_000;
        loop {
            self.pump();
            if let Some(result) = self.answer(id) {
                return result;
            }
            assert!(self.now_us < limit, "request {id} was not answered within 10 s");
            self.wake();
        }
    }

    pub fn run(&mut self, i: usize, operation: Operation) -> Result<Reply, ClientError> {
        let id = self.ask(i, operation);
        self.wait(id)
    }

    pub fn update_with(
        &mut self,
        i: usize,
        key: ObjectKey,
        mutation: Mutation,
        quorum: Quorum,
    ) -> Result<Updated, ClientError> {
        let want = Want { before: false, after: true };
        match self.run(i, Operation::Update { key, mutation, quorum, want, caller: None })? {
            Reply::Updated(updated) => Ok(updated),
            other => panic!("an update was answered with {other:?}"),
        }
    }

    pub fn update(&mut self, i: usize, name: &str, mutation: Mutation) -> Result<Updated, ClientError> {
        self.update_with(i, key(name), mutation, Quorum::default())
    }

    /// A blind put, as by a Redis `SET`.
    pub fn put(&mut self, i: usize, name: &str, value: &str) -> Result<Updated, ClientError> {
        self.update(i, name, Mutation::store(value.to_owned()))
    }

    pub fn get_with(&mut self, i: usize, key: ObjectKey, quorum: Quorum) -> Result<Object, ClientError> {
        match self.run(i, Operation::Get { key, quorum })? {
            Reply::Object(object) => Ok(object),
            other => panic!("a get was answered with {other:?}"),
        }
    }

    pub fn get(&mut self, i: usize, name: &str) -> Result<Object, ClientError> {
        self.get_with(i, key(name), Quorum::default())
    }

    /// The live siblings that a get answers, in order of their bytes.
    pub fn values(&mut self, i: usize, name: &str) -> Vec<String> {
        let object = self.get(i, name).expect("the get succeeds");
        self.texts(i, &object)
    }

    pub fn texts(&self, i: usize, object: &Object) -> Vec<String> {
        let siblings = object.siblings(self.now(i).wall_ms);
        let mut texts: Vec<String> = siblings.iter().map(|sibling| text(&sibling.value)).collect();
        texts.sort();
        texts
    }

    pub fn change_ring(&mut self, i: usize, change: RingChange) -> Result<Reply, ClientError> {
        self.change_ring_by(i, change, false)
    }

    pub fn change_ring_by(
        &mut self,
        i: usize,
        change: RingChange,
        force: bool,
    ) -> Result<Reply, ClientError> {
        self.run(i, Operation::ChangeRing { change, plan_only: false, force })
    }

    pub fn set_bucket(&mut self, i: usize, bucket: &'static [u8], properties: BucketProperties) {
        let bucket = Bytes::from_static(bucket);
        let result = self.run(i, Operation::SetBucket { bucket, properties });
        assert_eq!(result, Ok(Reply::BucketSet));
        self.settle();
    }

    /// Lets time pass until no ring changes and what operators want of buckets is in force, but not for long: a node
    /// may be missing.
    pub fn settle(&mut self) {
        for _ in 0..500 {
            let is_settled = |node: &Node| {
                let ring = node.ring().expect("a ring");
                let in_force = |(bucket, entry): (&Bytes, &BucketEntry)| {
                    ring.replication(bucket) == entry.properties.replication()
                };
                !ring.is_moving() && node.buckets().entries().all(in_force)
            };
            if self.machines.iter().filter_map(|machine| machine.node.as_ref()).all(is_settled) {
                return;
            }
            self.advance(20);
        }
    }

    /// One page of the default bucket.
    pub fn scan(&mut self, i: usize, from: Position, limit: u32) -> Result<Page, ClientError> {
        let bucket = Bytes::from_static(DEFAULT_BUCKET);
        let scan = Scan { bucket, from, to: Position(u64::MAX), limit, count_only: false };
        match self.run(i, Operation::Scan(scan))? {
            Reply::Page(page) => Ok(page),
            other => panic!("a scan was answered with {other:?}"),
        }
    }

    /// How many keys of the default bucket there are.
    pub fn count(&mut self, i: usize) -> Result<u64, ClientError> {
        let (mut count, mut from) = (0, Position(0));
        loop {
            let bucket = Bytes::from_static(DEFAULT_BUCKET);
            let scan = Scan { bucket, from, to: Position(u64::MAX), limit: 100, count_only: true };
            let Reply::Page(page) = self.run(i, Operation::Scan(scan))? else { panic!("not a page") };
            assert!(page.keys.is_empty());
            count += page.count;
            match page.next {
                Some(next) => from = next,
                None => return Ok(count),
            }
        }
    }

    // What is where

    /// The preference list of a key: primaries first, then fallbacks.
    pub fn list(&self, name: &str) -> Vec<usize> {
        let running = self.machines.iter().find_map(|machine| machine.node.as_ref()).expect("a node runs");
        let list = running.ring().expect("a ring").preference_at(key(name).position());
        list.iter().map(|&id| self.index_of(id).expect("all owners have run")).collect()
    }

    /// The object in a node's store, whether the node runs or not.
    pub fn held(&self, i: usize, name: &str) -> Option<Object> {
        let bytes = self.machines[i].disk.lock().get(Space::Data, key(name).row()).expect("the row is sound");
        bytes.map(|bytes| Object::decode(&bytes).expect("stored objects can be read"))
    }

    /// Number of hints in a node's store.
    pub fn hints(&self, i: usize) -> usize {
        self.machines[i].disk.lock().rows(Space::Hints).count()
    }

    /// Which of the nodes hold the key.
    pub fn holders(&self, name: &str) -> Vec<usize> {
        (0..self.machines.len()).filter(|&i| self.held(i, name).is_some()).collect()
    }

    /// Removes a row behind the node's back, as a forgetful disk does.
    pub fn lose_row(&mut self, i: usize, name: &str) {
        let mut disk = self.machines[i].disk.lock();
        disk.apply((Space::Data, key(name).row().clone(), None));
        disk.sync(Durability::Durable).expect("the disk works");
    }

    /// Asserts that all primaries hold the same, as far as they are to.
    pub fn assert_converged(&self, name: &str, n: usize) {
        let list = self.list(name);
        let common = |i| self.held(i, name).map(|object| common_bytes(&object.encode()).to_vec());
        for &i in &list[1..n] {
            assert_eq!(common(i), common(list[0]), "n{i} differs");
        }
    }

    /// Total of one metric over all running nodes.
    pub fn total(&self, metric: &str) -> u64 {
        let mut total = 0;
        for node in self.machines.iter().filter_map(|machine| machine.node.as_ref()) {
            node.metrics().each(|name, _, _, value| total += if name == metric { value } else { 0 });
        }
        total
    }
}
