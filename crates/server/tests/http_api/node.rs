//! A real node over memory, driven by a loop as small as a loop can be, with the HTTP server beside it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use oort::handle::{channel, Command, Handle, Inbox, Inside};
use oort::http::{serve, HttpServer, Limits};
use oort_core::config::NodeConfig;
use oort_core::node::{Input, Node, Output};
use oort_core::placement::Strategy;
use oort_core::store::{Change, Durability, MemoryStore, Space, Store, StoreError, Visit};
use oort_core::types::{NodeId, Now};

/// What tests switch while the node runs.
#[derive(Default)]
pub struct Switches {
    /// The disk refuses writes.
    pub disk_is_full: AtomicBool,
    /// The loop does nothing at all.
    pub loop_is_stuck: AtomicBool,
}

pub struct TestNode {
    pub switches: Arc<Switches>,
    pub handle: Handle,
    pub http: Option<HttpServer>,
    thread: Option<JoinHandle<()>>,
}

/// How rings are laid out: as `OORT_STRATEGY` says; 3 if it is not set.
pub fn strategy() -> u8 {
    std::env::var("OORT_STRATEGY").map_or(3, |number| number.parse().expect("1, 2 or 3"))
}

impl TestNode {
    pub fn start() -> TestNode {
        TestNode::start_with(NodeConfig::default(), Limits::default())
    }

    pub fn start_with(mut config: NodeConfig, limits: Limits) -> TestNode {
        config.strategy = Strategy::numbered(strategy(), 100);
        let switches = Arc::new(Switches::default());
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let (handle, inbox) = channel(waker);
        let of_loop = switches.clone();
        let thread = std::thread::spawn(move || run(config, poll, inbox, of_loop));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = Some(serve(listener, handle.clone(), NodeId(1), limits).unwrap());
        TestNode { switches, handle, http, thread: Some(thread) }
    }

    pub fn address(&self) -> SocketAddr {
        self.http.as_ref().unwrap().address()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.switches.loop_is_stuck.store(false, Ordering::Relaxed);
        if let Some(http) = self.http.take() {
            http.join();
        }
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn run(config: NodeConfig, mut poll: mio::Poll, mut inbox: Inbox, switches: Arc<Switches>) {
    let start = Instant::now();
    let now = || Now {
        mono_us: start.elapsed().as_micros() as u64,
        wall_ms: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64,
    };
    let started_wall_ms = now().wall_ms;
    let store = Box::new(TestStore { inner: MemoryStore::new(), switches: switches.clone() });
    let mut node = Node::open(config, 1, store, now()).unwrap();
    let mut replies = BTreeMap::new();
    let mut id = 0;
    let mut events = mio::Events::with_capacity(8);
    let latencies = Default::default();
    loop {
        while switches.loop_is_stuck.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut out = Vec::new();
        node.step(now(), Input::Tick, &mut out);
        while let Some(command) = inbox.try_recv() {
            match command {
                Command::Request { request, reply } => {
                    id += 1;
                    replies.insert(id, reply);
                    node.step(now(), Input::Request { id, request }, &mut out);
                }
                Command::Inspect(look) => {
                    let latencies = &latencies;
                    let node = &node;
                    look(&Inside {
                        node,
                        now: now(),
                        connections: 3,
                        troubles: &[],
                        started_wall_ms,
                        latencies,
                    })
                }
                Command::Stop => return,
            }
        }
        node.stage(&mut out);
        node.commit(now(), &mut out);
        for output in out {
            if let Output::Reply { id, result } = output {
                let _ = replies.remove(&id).expect("a request in flight").send(result);
            }
        }
        let wait_us = node.next_wakeup().saturating_sub(now().mono_us).max(1);
        poll.poll(&mut events, Some(Duration::from_micros(wait_us))).unwrap();
    }
}

struct TestStore {
    inner: MemoryStore,
    switches: Arc<Switches>,
}

impl Store for TestStore {
    fn get(&mut self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn apply(&mut self, change: Change) {
        self.inner.apply(change)
    }
    fn sync(&mut self, durability: Durability) -> Result<(), StoreError> {
        self.inner.set_full(self.switches.disk_is_full.load(Ordering::Relaxed));
        self.inner.sync(durability)
    }
    fn scan(&mut self, space: Space, from: &[u8], to: &[u8], visit: &mut Visit) {
        self.inner.scan(space, from, to, visit)
    }
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
}
