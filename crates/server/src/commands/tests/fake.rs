//! A core that is one map, and a node to look at.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use oort_core::bucket::{BucketEntry, BucketProperties, BucketTable, Replication};
use oort_core::causality::Dot;
use oort_core::client::{ClientError, Operation, Page, Reply, Request, RingPlan, Updated};
use oort_core::config::{Addresses, NodeConfig};
use oort_core::detector::Health;
use oort_core::membership::{Member, Membership};
use oort_core::metrics::Metrics;
use oort_core::mutation::Circumstances;
use oort_core::object::Object;
use oort_core::placement::Strategy;
use oort_core::ring::{Ring, RingState};
use oort_core::types::{ActorId, NodeId, ObjectKey, Position};

use crate::commands::knobs::Knobs;
use crate::commands::plan::{Answer, Next, REQUESTS_MAX};
use crate::commands::session::Session;
use crate::commands::stats::Stats;
use crate::commands::view::{ServerStats, View};
use crate::commands::{start, Started};
use crate::resp::request::{Command, Limits, RequestParser};
use crate::resp::Value;

pub const START_MS: u64 = 1_700_000_000_000;

/// The core, the node and one connection.
pub struct Fake {
    pub node: FakeNode,
    pub session: Session,
    pub now_ms: u64,
    pub objects: BTreeMap<ObjectKey, Object>,
    /// Rounds of requests the last command took.
    pub rounds: usize,
    /// The error that the core answers to all requests.
    pub broken: Option<ClientError>,
    counter: u64,
}

pub struct FakeNode {
    pub config: NodeConfig,
    pub membership: Membership,
    pub ring: Option<Ring>,
    pub down: Option<NodeId>,
    pub metrics: Metrics,
    pub others: Vec<Session>,
    pub knobs: Knobs,
    pub stats: Stats,
    random: Cell<u64>,
}

impl Fake {
    pub fn new() -> Fake {
        let session = Session::new(7, "127.0.0.1:50000".into(), "127.0.0.1:6379".into(), START_MS);
        Fake {
            node: FakeNode::new(),
            session,
            now_ms: START_MS,
            objects: BTreeMap::new(),
            rounds: 0,
            broken: None,
            counter: 0,
        }
    }

    /// Runs a line as typed, and shows its reply.
    pub fn run(&mut self, line: &str) -> String {
        let mut input = BytesMut::from(line);
        input.extend_from_slice(b"\r\n");
        let command = RequestParser::new(Limits::default()).next(&mut input).expect(line).expect(line);
        show(&self.reply(command))
    }

    /// Runs each line and compares its reply.
    pub fn check(&mut self, cases: &[(&str, &str)]) {
        for (line, want) in cases {
            assert_eq!(&self.run(line), want, "{line}");
        }
    }

    pub fn reply(&mut self, command: Command) -> Value {
        self.rounds = 0;
        match start(&mut self.session, command, &self.node, self.now_ms) {
            Started::Reply(value) | Started::Close(value) => value,
            Started::One { request, finish } => {
                self.rounds = 1;
                let answer = self.answer(request);
                finish.reply(answer, self.now_ms)
            }
            Started::Many { mut requests, mut plan } => loop {
                self.rounds += 1;
                assert!((1..=REQUESTS_MAX).contains(&requests.len()), "{} requests", requests.len());
                let answers = requests.into_iter().map(|request| self.answer(request)).collect();
                match plan.resume(answers, self.now_ms) {
                    Next::Done(value) => return value,
                    Next::Ask(more) => requests = more,
                }
            },
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        match request.operation {
            Operation::Get { key, .. } | Operation::Call { key, .. } => {
                Ok(Reply::Object(self.objects.get(&key).cloned().unwrap_or_default()))
            }
            Operation::Update { key, mutation, want, .. } => {
                let properties = self.node.membership.buckets.properties(key.bucket());
                let given = Circumstances {
                    wall_ms: self.now_ms,
                    value_bytes_max: properties.value_bytes_max,
                    default_ttl_ms: properties.default_ttl_ms,
                };
                let mut object = self.objects.get(&key).cloned().unwrap_or_default();
                let before = want.before.then(|| object.clone());
                self.counter += 1;
                let dot = Dot { counter: (self.now_ms << 16) + self.counter, actor: ActorId(1) };
                let applied = mutation.apply(&mut object, dot, given).map_err(ClientError::Mutation)?;
                let after = want.after.then(|| object.clone());
                self.objects.insert(key, object);
                Ok(Reply::Updated(Updated { applied, before, after }))
            }
            Operation::Scan(scan) => Ok(Reply::Page(self.page(&scan))),
            Operation::SetBucket { bucket, properties } => {
                self.counter += 1;
                let set_by = Dot { counter: self.counter, actor: ActorId(1) };
                self.node.membership.buckets.merge(bucket, BucketEntry { set_by, properties });
                Ok(Reply::BucketSet)
            }
            Operation::ChangeRing { change, .. } => {
                let state = self.node.ring.as_ref().ok_or(ClientError::NotReady)?.state();
                let version = state.change(&change).map_err(ClientError::Ring)?.version;
                let (slots_moved, slots, nodes) = (1, 16384, Vec::new());
                Ok(Reply::RingPlan(RingPlan { version, slots_moved, slots, nodes }))
            }
        }
    }

    fn page(&self, scan: &oort_core::client::Scan) -> Page {
        let (mut page, mut last) = (Page::default(), None);
        for (key, object) in &self.objects {
            let position = key.position();
            let is_inside = (scan.from..=scan.to).contains(&position) && key.bucket() == scan.bucket;
            if !is_inside || !object.is_live(self.now_ms) {
                continue;
            }
            if page.count >= scan.limit as u64 && last.is_some_and(|last| last < position.cursor()) {
                page.next = Some(position.cursor_start());
                break;
            }
            last = Some(position.cursor());
            page.count += 1;
            if !scan.count_only {
                page.keys.push(key.key_bytes());
            }
        }
        page
    }
}

impl FakeNode {
    fn new() -> FakeNode {
        let config = NodeConfig { name: "a".into(), ..NodeConfig::default() };
        let buckets = BucketTable::new(config.bucket_defaults.clone());
        let mut membership = Membership::new(member(1, "127.0.0.1"), buckets);
        for (id, host) in [(2, "10.0.0.2"), (3, "[::1]")] {
            membership.members.insert(NodeId(id), member(id, host));
        }
        let nodes = membership.members.values().map(Member::ring_node).collect();
        FakeNode {
            config,
            membership,
            ring: Some(Ring::new(RingState::founding(
                oort_core::ring::Founding(1),
                Strategy::EqualPartitions,
                16,
                nodes,
            ))),
            down: None,
            metrics: Metrics::default(),
            others: Vec::new(),
            knobs: Knobs::default(),
            stats: Stats::default(),
            random: Cell::new(0),
        }
    }

    /// Sets the numbers that an operator wants for `bucket`. The ring keeps its own until it adopts them.
    pub fn want(&mut self, bucket: &'static str, Replication { n, r, w }: Replication) {
        let properties = BucketProperties { n, r, w, ..BucketProperties::default() };
        let entry = BucketEntry { set_by: Dot { counter: 1, actor: ActorId(1) }, properties };
        assert!(self.membership.buckets.merge(bucket.into(), entry));
    }

    /// Puts the ring into the next state: wanted numbers begin to come into force, or an adopted change goes on.
    pub fn advance_ring(&mut self) {
        let state = self.ring.as_ref().expect("a ring").state();
        let next = state.adopt(&self.membership.buckets).unwrap_or_else(|| state.successor());
        self.ring = Some(Ring::new(next));
    }

    /// A ring of the first `nodes` members.
    pub fn set_ring(&mut self, nodes: usize) {
        let nodes = self.membership.members.values().take(nodes).map(Member::ring_node).collect();
        self.ring = Some(Ring::new(RingState::founding(
            oort_core::ring::Founding(1),
            Strategy::EqualPartitions,
            16,
            nodes,
        )));
    }
}

fn member(id: u64, host: &str) -> Member {
    let address = |port: u64| format!("{host}:{}", port + id);
    let addresses = Addresses { peer: address(7945), redis: address(6378), http: address(8097) };
    Member { version: 1, ..Member::new(NodeId(id), format!("node-{id}"), addresses) }
}

impl View for FakeNode {
    fn config(&self) -> &NodeConfig {
        &self.config
    }
    fn membership(&self) -> &Membership {
        &self.membership
    }
    fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }
    fn health(&self, peer: NodeId) -> Health {
        match self.down == Some(peer) {
            true => Health::Down,
            false => Health::Up,
        }
    }
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    fn read_only(&self) -> Option<&str> {
        None
    }
    fn status(&self) -> String {
        "{}".into()
    }
    fn server(&self) -> ServerStats {
        ServerStats { connections: 2, connections_max: 9000, uptime_ms: 5000, ..ServerStats::default() }
    }
    fn sessions(&self, visit: &mut dyn FnMut(&Session)) {
        self.others.iter().for_each(visit);
    }
    fn knobs(&self) -> &Knobs {
        &self.knobs
    }
    fn count_first_owned(&self, bucket: &[u8]) -> Option<(u64, u64)> {
        (bucket == b"7").then_some((5, 2))
    }
    fn stats(&self) -> &Stats {
        &self.stats
    }
    fn now_us(&self) -> u64 {
        1
    }
    fn random(&self) -> u64 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.random.get()
    }
}

/// A reply on one line.
pub fn show(value: &Value) -> String {
    let list = |items: &[Value]| items.iter().map(show).collect::<Vec<_>>().join(", ");
    match value {
        Value::Nothing => "nothing".into(),
        Value::Simple(text) => text.to_string(),
        Value::Error(text) => format!("-{text}"),
        Value::Integer(number) => format!(":{number}"),
        Value::Bulk(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::Null => "nil".into(),
        Value::Array(items) => format!("[{}]", list(items)),
        Value::Set(items) => format!("~[{}]", list(items)),
        Value::Push(items) => format!(">[{}]", list(items)),
        Value::Map(pairs) => {
            let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("{}: {}", show(k), show(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::Double(number) => format!(",{number}"),
        Value::Boolean(truth) => format!("#{truth}"),
        Value::Verbatim(_, text) => format!("={}", String::from_utf8_lossy(text)),
        Value::BigNumber(digits) => format!("({digits}"),
    }
}

/// The text of a verbatim reply.
pub fn text_of(fake: &mut Fake, line: &str) -> String {
    let shown = fake.run(line);
    shown.strip_prefix('=').unwrap_or_else(|| panic!("{line} answered {shown}")).to_string()
}

pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new(b"default", name.as_bytes()).unwrap()
}

/// A sibling of what is stored, as another node would have written it while apart.
pub fn add_sibling(fake: &mut Fake, name: &str, value: &str, actor: u64) {
    let object = fake.objects.entry(key(name)).or_default();
    fake.counter += 1;
    let dot = Dot { counter: (fake.now_ms << 16) + fake.counter, actor: ActorId(actor) };
    let version = oort_core::object::Version::bytes(Bytes::copy_from_slice(value.as_bytes()));
    object.0.put(&Default::default(), dot, version);
}

/// The whole ring's first position, for tests of cursors.
pub const ORIGIN: Position = Position(0);
