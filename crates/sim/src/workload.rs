//! What the clients ask: sessions that store blindly, read and write back, delete, count, append and list.
//!
//! Every value ends in the number of the operation that stores it, so a value names its write. Keys have roles, so that
//! each checker finds keys whose history it can judge exactly.

use std::collections::BTreeMap;

use bytes::Bytes;
use oort_core::active::{Ask, Call};
use oort_core::bucket::{ActiveDurability, BucketProperties, Conflict, DEFAULT_BUCKET};
use oort_core::causality::{Dot, VersionVector};
use oort_core::client::{Operation, Quorum, RequestId, Scan, Want};
use oort_core::mutation::{Basis, Condition, Expiry, ExpiryCondition, FloatText, Mutation};
use oort_core::object::Object;
use oort_core::types::{ActorId, ObjectKey, Position, Rng};

use crate::history::{mark, number_mark};

pub mod active;

/// The version of what a seed means. Raised by one whenever the same seed no longer draws the same world: a fault, an
/// operation or a draw more, or another order of draws. Replay commands and story files carry it, so that an old story
/// is refused rather than replayed as something else. `tests/version.rs` notices most changes.
pub const WORKLOAD_VERSION: u32 = 5;

/// What a key is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Stores and deletes of all kinds.
    Plain,
    /// Like plain, but with quorums of primaries that overlap: what was acknowledged must be seen.
    Strict,
    /// Only ever counted on: the sum must be right.
    Counter,
    /// Stores that expire, changes of the expiry.
    Expiring,
    /// Appends and stores.
    Text,
    /// Everything, counting too.
    Mixed,
    /// An active object that counts what its function is given, and may choose its holders.
    Active { is_placed: bool },
    /// An active object that counts in a plain field, which no join of two homes' versions would save.
    Tally,
    /// An active object that notes when its timer ran; that of a slow one waits.
    Ticker { is_slow: bool },
    /// An active object that is deleted, overwritten, made again and given new code.
    Changing,
    /// An active object that no client asks: two homes run it at once at the end.
    Twin,
}

impl Role {
    /// True if what is under the key is an active object.
    pub fn is_active(self) -> bool {
        matches!(self, Role::Active { .. } | Role::Tally | Role::Ticker { .. } | Role::Changing | Role::Twin)
    }
}

/// One key of the workload.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub key: ObjectKey,
    pub role: Role,
}

/// A bucket of the workload.
#[derive(Clone, Debug)]
pub struct BucketSpec {
    pub name: Bytes,
    pub properties: BucketProperties,
}

/// What a client saw when it last read a key.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    pub context: VersionVector,
    pub siblings: Vec<Dot>,
}

/// One client and what it remembers.
#[derive(Clone, Debug, Default)]
pub struct Client {
    pub screens: BTreeMap<ObjectKey, Screen>,
    /// The machine it prefers.
    pub home: usize,
    /// What it reads next, at once: it has just written that.
    pub looks_at: Option<ObjectKey>,
}

/// An operation to be sent.
#[derive(Clone, Debug)]
pub struct Planned {
    pub machine: usize,
    pub operation: Operation,
    pub timeout_ms: Option<u32>,
    /// The siblings on the screen that its context or its tag comes from.
    pub seen: Vec<Dot>,
}

/// The clients, the keys and this seed's habits.
#[derive(Clone, Debug)]
pub struct Workload {
    pub clients: Vec<Client>,
    pub keys: Vec<KeySpec>,
    pub buckets: Vec<BucketSpec>,
    /// Operations not yet sent.
    pub left: usize,
    machines: usize,
    hot_keys: usize,
    /// How many of ten operations are gets.
    gets_of_ten: u64,
    /// How many of ten stores carry a context.
    seen_of_ten: u64,
    /// How many of ten operations go to the client's own machine.
    loyal_of_ten: u64,
    pause_us_max: u64,
    /// All keys with values are read and written as those of [`Role::Strict`].
    is_all_strict: bool,
    large_values: bool,
    /// The last keys are active objects.
    has_active: bool,
    /// Which of them are asked, and how much.
    crowd: active::Crowd,
    /// When so many operations are left the clients rest, and before that they delete.
    rest_at: Option<usize>,
    /// The longest time limit of an operation.
    timeout_ms_max: u32,
}

/// Two keys that share a cursor, so that no page of a listing may end between them.
pub const CROWDED_KEYS: [&str; 2] = ["{oort}143284", "{oort}760024"];

/// The bucket of odd numbers. Another one's name begins with it.
const ODD_BUCKET: &[u8] = b"new";

/// A dot so far ahead of all clocks, in milliseconds, is nobody's.
const FAR_AHEAD_MS: u64 = 1_800_000;

/// So many operations before the rest are mostly deletes.
pub const DELETES: usize = 40;

impl Workload {
    /// Draws a seed's clients, buckets and keys.
    pub fn draw(machines: usize, operations: usize, rng: &mut Rng) -> Workload {
        let clients = 2 + rng.below(7) as usize;
        let buckets = draw_buckets(rng);
        let mut keys = Vec::new();
        let mut add = |bucket: &[u8], name: String, role| {
            let key = ObjectKey::new(bucket, name.as_bytes()).expect("the workload's keys are short");
            keys.push(KeySpec { key, role });
        };
        for bucket in &buckets {
            add(&bucket.name, "hot".into(), Role::Plain);
            add(&bucket.name, "strict".into(), Role::Strict);
            for i in 0..rng.below(12) {
                add(&bucket.name, format!("cold{i}"), Role::Plain);
            }
            if bucket.properties.default_ttl_ms.is_none() {
                add(&bucket.name, "count".into(), Role::Counter);
            }
            add(&bucket.name, "mixed".into(), Role::Mixed);
            add(&bucket.name, "text".into(), Role::Text);
            if bucket.name == DEFAULT_BUCKET {
                let role = [Role::Plain, Role::Expiring][rng.below(2) as usize];
                for name in CROWDED_KEYS {
                    add(&bucket.name, name.into(), role);
                }
            }
            add(&bucket.name, "expiring".into(), Role::Expiring);
        }
        for i in (1..keys.len()).rev() {
            keys.swap(i, rng.below(i as u64 + 1) as usize);
        }
        Workload {
            clients: (0..clients)
                .map(|_| Client { home: rng.below(machines as u64) as usize, ..Client::default() })
                .collect(),
            keys,
            buckets,
            left: operations,
            machines,
            hot_keys: 1 + rng.below(6) as usize,
            gets_of_ten: [2, 4, 6][rng.below(3) as usize],
            seen_of_ten: [1, 3, 7][rng.below(3) as usize],
            loyal_of_ten: [0, 5, 10][rng.below(3) as usize],
            pause_us_max: [2_000, 50_000, 300_000, 1_000_000][rng.below(4) as usize],
            is_all_strict: rng.chance(1, 3),
            large_values: rng.chance(1, 8),
            has_active: false,
            crowd: active::Crowd::default(),
            rest_at: None,
            timeout_ms_max: u32::MAX,
        }
    }

    /// The clients will rest when so many operations are left: before that they delete much, so that something can be
    /// forgotten, and they never wait long for an answer.
    pub fn rest_at(&mut self, left: usize, timeout_ms_max: u32) {
        (self.rest_at, self.timeout_ms_max) = (Some(left), timeout_ms_max);
    }

    /// Has a third of the operations or more go to active objects: see [`active::active_specs`].
    pub fn add_active(
        &mut self,
        durability: ActiveDurability,
        placed: usize,
        quorum: (u8, u8, u8),
        rng: &mut Rng,
    ) {
        let (buckets, keys) = active::active_specs(durability, placed, quorum);
        self.buckets.extend(buckets);
        self.keys.extend(keys);
        self.has_active = true;
        self.crowd = active::Crowd::draw(rng);
    }

    /// A request of `client` to a key, which will be operation `id`. `wall_ms`: the true time.
    pub fn plan_on(
        &self,
        key: &ObjectKey,
        client: usize,
        id: RequestId,
        wall_ms: u64,
        rng: &mut Rng,
    ) -> (Operation, Vec<Dot>) {
        let spec = self.keys.iter().find(|spec| spec.key == *key).expect("it is a key of the workload");
        let screen = self.clients[client].screens.get(key);
        let (mut operation, seen) = self.operation(spec, screen, id, wall_ms, rng);
        if let (Operation::Call { call, .. }, true) = (&mut operation, spec.role.is_active()) {
            call.caller = active::caller_of(client);
        }
        (operation, seen)
    }

    /// True if the key is that of an active object.
    pub fn is_active(&self, key: &ObjectKey) -> bool {
        self.has_active && self.keys.iter().any(|spec| spec.key == *key && spec.role.is_active())
    }

    /// True if there are active objects.
    pub fn has_active(&self) -> bool {
        self.has_active
    }

    /// `client` has written `key`. One time in two it looks at once whether it can be read, of keys that must show it.
    pub fn wrote(&mut self, client: usize, key: &ObjectKey, rng: &mut Rng) {
        let is_strict = |spec: &KeySpec| spec.key == *key && self.is_strict(spec);
        if self.keys.iter().any(is_strict) && rng.chance(1, 2) {
            self.clients[client].looks_at = Some(key.clone());
        }
    }

    fn is_strict(&self, spec: &KeySpec) -> bool {
        spec.role == Role::Strict || self.is_all_strict && !spec.role.is_active()
    }

    /// How long a client thinks before its next operation.
    pub fn pause_us(&self, client: usize, rng: &mut Rng) -> u64 {
        if self.clients[client].looks_at.is_some() {
            return 0;
        }
        match rng.chance(1, 2) {
            true => rng.below(2_000),
            false => rng.below(self.pause_us_max),
        }
    }

    /// The next operation of `client`, which will be operation `id`. `wall_ms`: the true time.
    pub fn plan(&mut self, client: usize, id: RequestId, wall_ms: u64, rng: &mut Rng) -> Planned {
        if let Some(key) = self.clients[client].looks_at.take() {
            let machine = rng.below(self.machines as u64) as usize;
            let spec = self.keys.iter().find(|spec| spec.key == key).expect("a client wrote it");
            let quorum = self.quorum(spec, rng);
            let operation = get_operation(key, quorum, rng);
            return Planned { machine, operation, timeout_ms: None, seen: Vec::new() };
        }
        let state = &self.clients[client];
        let machine = match rng.below(10) < self.loyal_of_ten {
            true => state.home,
            false => rng.below(self.machines as u64) as usize,
        };
        let timeout_ms = match rng.below(4) {
            0 => Some([30, 300, 3000][rng.below(3) as usize].min(self.timeout_ms_max)),
            _ => None,
        };
        let plain_keys = self.keys.len() - if self.has_active { active::ACTIVE_KEYS } else { 0 };
        let is_hot = rng.chance(3, 4);
        let active = if self.has_active { self.crowd.pick(rng) } else { None };
        let index = match active {
            Some(active) => plain_keys as u64 + active,
            None if is_hot => rng.below(self.hot_keys.min(plain_keys) as u64),
            None => rng.below(plain_keys as u64),
        };
        let spec = &self.keys[index as usize];
        let (operation, seen) = match rng.below(100) {
            0..=2 => (self.scan(spec, rng), Vec::new()),
            _ => self.plan_on(&spec.key, client, id, wall_ms, rng),
        };
        Planned { machine, operation, timeout_ms, seen }
    }

    fn scan(&self, spec: &KeySpec, rng: &mut Rng) -> Operation {
        Operation::Scan(Scan {
            bucket: Bytes::copy_from_slice(spec.key.bucket()),
            from: Position(0),
            to: Position(u64::MAX),
            // So small that pages turn.
            limit: 1 + rng.below(6) as u32,
            count_only: rng.chance(1, 4),
        })
    }

    /// A write of a plain key, as of a client that has seen nothing of it.
    pub fn write_to(&self, key: &ObjectKey, id: RequestId, wall_ms: u64, rng: &mut Rng) -> Option<Operation> {
        let spec = self.keys.iter().find(|spec| spec.key == *key && !spec.role.is_active())?;
        let (mutation, quorum) = (self.mutation(spec, None, id, wall_ms, rng), self.quorum(spec, rng));
        Some(Operation::Update {
            key: key.clone(),
            mutation,
            quorum,
            want: Want { before: false, after: true },
            caller: None,
        })
    }

    /// A client deletes what it says that it has seen, which nobody has written yet: that is refused.
    pub fn delete_from_the_future(key: ObjectKey, wall_ms: u64) -> Operation {
        let mut context = VersionVector::default();
        context.add(Dot { counter: (wall_ms + FAR_AHEAD_MS) << 16, actor: ActorId(1) });
        let mutation = Mutation::Delete { basis: Basis::Seen(context), condition: Condition::Always };
        Operation::Update { key, mutation, quorum: Quorum::default(), want: Want::default(), caller: None }
    }

    fn operation(
        &self,
        spec: &KeySpec,
        screen: Option<&Screen>,
        id: RequestId,
        wall_ms: u64,
        rng: &mut Rng,
    ) -> (Operation, Vec<Dot>) {
        if spec.role.is_active() {
            let properties = self.properties(&spec.key);
            return (active::operation_of(spec, properties, id, wall_ms, rng), Vec::new());
        }
        let quorum = self.quorum(spec, rng);
        if rng.below(10) < self.gets_of_ten {
            return (get_operation(spec.key.clone(), quorum, rng), Vec::new());
        }
        let mutation = self.mutation(spec, screen, id, wall_ms, rng);
        let seen = match (mutation.seen().is_some() || has_tag(&mutation), screen) {
            (true, Some(screen)) => screen.siblings.clone(),
            _ => Vec::new(),
        };
        // What a plain value does not tell, the state afterwards does: which dot the write became.
        let is_plain = matches!(mutation, Mutation::Store { .. } | Mutation::Append { .. });
        let before = rng.chance(1, if mutation.needs_read() { 3 } else { 10 });
        let operation = Operation::Update {
            key: spec.key.clone(),
            mutation,
            quorum,
            want: Want { before, after: !is_plain || rng.chance(1, 8) },
            caller: None,
        };
        (operation, seen)
    }

    fn quorum(&self, spec: &KeySpec, rng: &mut Rng) -> Quorum {
        let properties = self.properties(&spec.key);
        let n = properties.n as u64;
        if self.is_strict(spec) {
            // Overlapping quorums of primaries; which of the two is large varies by key.
            let w = 1 + Position::of(spec.key.row()).0 % n;
            let r = n + 1 - w;
            return Quorum { r: Some(r as u8), w: Some(w as u8), primary_r: r as u8, primary_w: w as u8 };
        }
        let mut draw = || match rng.below(3) {
            0 => Some(1 + rng.below(n) as u8),
            _ => None,
        };
        Quorum { r: draw(), w: draw(), ..Quorum::default() }
    }

    fn mutation(
        &self,
        spec: &KeySpec,
        screen: Option<&Screen>,
        id: RequestId,
        wall_ms: u64,
        rng: &mut Rng,
    ) -> Mutation {
        let suffix = || Bytes::from(mark(id));
        match (spec.role, rng.below(10)) {
            (Role::Counter, _) => return Mutation::Add { delta: rng.below(1000) as i64 - 200 },
            (Role::Text, 0..=6) => return Mutation::Append { suffix: suffix() },
            (Role::Mixed, 0..=2) => return Mutation::Add { delta: rng.below(1000) as i64 },
            (Role::Mixed, 3) | (Role::Expiring, 1) => return Mutation::Append { suffix: suffix() },
            // Never whole, lest the sum pass for the number that another operation stores.
            (Role::Mixed, 4) => {
                return Mutation::AddFloat { delta: FloatText(rng.below(1000) as f64 + 0.25) };
            }
            (Role::Text, 7) | (Role::Expiring, 2) => {
                return Mutation::SetRange { offset: rng.below(60), patch: suffix() };
            }
            (Role::Expiring, 0) => {
                return Mutation::SetExpiry {
                    at_ms: rng.chance(1, 2).then(|| wall_ms + rng.below(20_000)),
                    condition: ExpiryCondition::ALWAYS,
                }
            }
            _ => {}
        }
        let is_clearing = self.rest_at.is_some_and(|at| (at..at + DELETES).contains(&self.left));
        if is_clearing && spec.role != Role::Text && rng.chance(3, 4) {
            return Mutation::Delete { basis: Basis::Local, condition: Condition::Always };
        }
        let basis = match (rng.below(10) < self.seen_of_ten, screen) {
            (true, Some(screen)) => Basis::Seen(screen.context.clone()),
            _ if rng.chance(1, 6) => Basis::Unseen,
            _ => Basis::Local,
        };
        let condition = match (rng.below(12), screen) {
            (0, _) => Condition::IfAbsent,
            (1, _) => Condition::IfPresent,
            (2, Some(screen)) => Condition::IfTag(Object::forgotten(screen.context.clone()).etag()),
            _ => Condition::Always,
        };
        if spec.role != Role::Text && rng.chance(1, 6) {
            let basis = match basis {
                Basis::Unseen => Basis::Local,
                basis => basis,
            };
            return Mutation::Delete { basis, condition };
        }
        let fades = self.properties(&spec.key).default_ttl_ms.is_some();
        let expiry = match (spec.role, rng.below(3)) {
            (Role::Expiring, 0) => Expiry::Keep,
            (_, 0) if fades => [Expiry::Keep, Expiry::Never][rng.below(2) as usize],
            (Role::Expiring, 1) => Expiry::At(wall_ms + rng.below(20_000)),
            _ => Expiry::Default,
        };
        Mutation::Store {
            value: match spec.role == Role::Mixed && rng.chance(1, 2) {
                true => number_mark(id).into(),
                false => self.value(id, rng),
            },
            headers: match rng.chance(1, 4) {
                true => vec![(Bytes::from_static(b"x-mark"), suffix())],
                false => Vec::new(),
            },
            basis,
            expiry,
            condition,
        }
    }

    fn value(&self, id: RequestId, rng: &mut Rng) -> Bytes {
        let padding = match self.large_values {
            true => rng.below(20_000) as usize,
            false => rng.below(20) as usize,
        };
        let mut value = ".".repeat(padding);
        value += &mark(id);
        value.into()
    }

    /// The properties of a key's bucket.
    pub fn properties(&self, key: &ObjectKey) -> &BucketProperties {
        let bucket = self.buckets.iter().find(|bucket| bucket.name == key.bucket());
        &bucket.expect("every key is in a bucket of the workload").properties
    }
}

/// Reads a value as clients of the Redis protocol do, or with all its siblings.
pub fn get_operation(key: ObjectKey, quorum: Quorum, rng: &mut Rng) -> Operation {
    match rng.chance(2, 3) {
        true => {
            let call = Call { what: Ask::Get, arguments: Vec::new(), caller: None };
            Operation::Call { key, call, quorum }
        }
        false => Operation::Get { key, quorum },
    }
}

/// True if it goes ahead only on what its client has read.
fn has_tag(mutation: &Mutation) -> bool {
    let (Mutation::Store { condition, .. } | Mutation::Delete { condition, .. }) = mutation else {
        return false;
    };
    matches!(condition, Condition::IfTag(_))
}

fn draw_buckets(rng: &mut Rng) -> Vec<BucketSpec> {
    let mut buckets = vec![BucketSpec {
        name: Bytes::from_static(DEFAULT_BUCKET),
        properties: BucketProperties::default(),
    }];
    if rng.chance(1, 2) {
        let properties = BucketProperties { conflict: Conflict::Lww, ..BucketProperties::default() };
        buckets.push(BucketSpec { name: Bytes::from_static(b"newest"), properties });
    }
    if rng.chance(1, 2) {
        let n = 1 + rng.below(5);
        let properties = BucketProperties {
            n: n as u8,
            r: 1 + rng.below(n) as u8,
            w: 1 + rng.below(n) as u8,
            ..BucketProperties::default()
        };
        buckets.push(BucketSpec { name: Bytes::from_static(ODD_BUCKET), properties });
    }
    if rng.chance(1, 3) {
        let properties = BucketProperties {
            conflict: [Conflict::Siblings, Conflict::Lww][rng.below(2) as usize],
            default_ttl_ms: Some(2_000 + rng.below(30_000)),
            ..BucketProperties::default()
        };
        buckets.push(BucketSpec { name: Bytes::from_static(b"fading"), properties });
    }
    buckets
}
