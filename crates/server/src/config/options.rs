//! The table of all options. To add one, add a row: its flag, variable, key and example follow.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use oort_core::bucket::{Conflict, N_MAX, VALUE_BYTES_LIMIT};
use oort_core::client::TIMEOUT_MS_MAX;
use oort_core::config::SyncMode;
use oort_core::membership::MEMBERS_MAX;
use oort_core::placement::{Strategy, PARTITIONS_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};
use toml::de::DeValue;

use super::{text, Config};

/// One option.
#[derive(Debug)]
pub struct ConfigOption {
    /// Its name in the file. The flag and the variable are derived from it.
    pub key: &'static str,
    /// The heading it stands under.
    pub group: &'static str,
    /// What the value is, in capitals, for `--help`.
    pub value_name: &'static str,
    /// What it does, its unit, and what breaks when it is too small or too large. The first sentence stands alone.
    pub doc: &'static str,
    access: Access,
}

/// How an option's value is written, and where in [`Config`] it lives.
#[derive(Debug)]
enum Access {
    Text {
        get: fn(&Config) -> String,
        set: fn(&mut Config, &str) -> Result<(), String>,
    },
    List {
        get: fn(&Config) -> Vec<String>,
        set: fn(&mut Config, &[String]) -> Result<(), String>,
    },
    Number {
        range: RangeInclusive<u64>,
        get: fn(&Config) -> u64,
        set: fn(&mut Config, u64),
    },
    /// Partitions: in a range, and a power of two.
    PowerOfTwo {
        range: RangeInclusive<u64>,
        get: fn(&Config) -> u64,
        set: fn(&mut Config, u64),
    },
    /// A number of bytes, which may be written with a unit.
    Bytes {
        range: RangeInclusive<u64>,
        get: fn(&Config) -> u64,
        set: fn(&mut Config, u64),
    },
}
use Access::{Bytes, List, Number, PowerOfTwo, Text};

const CLUSTER: &str = "Cluster";
const ADDRESSES: &str = "Addresses";
const DURABILITY: &str = "Durability and storage";
const REQUESTS: &str = "Requests";
const PEERS: &str = "Peers and repair";
const BUCKETS: &str = "Buckets";
const LOGS: &str = "Logs";

fn tokens(config: &Config) -> u64 {
    config.tokens.into()
}

/// Every option, in the order in which people read them.
pub const OPTIONS: &[ConfigOption] = &[
    ConfigOption {
        key: "cluster",
        group: CLUSTER,
        value_name: "NAME",
        doc: "The cluster's name, the same on all its nodes. Nodes of differently named clusters refuse each other, \
              so two clusters that meet by mistake do not mix. It is fixed once the data directory exists.",
        access: Text {
            get: |c| c.node.cluster.clone(),
            set: |c, v| text::name(v).map(|name| c.node.cluster = name),
        },
    },
    ConfigOption {
        key: "name",
        group: CLUSTER,
        value_name: "NAME",
        doc: "This node's name, for people. It appears in logs and 'oort cluster status'. \
              Empty: the machine's host name.",
        access: Text {
            get: |c| c.node.name.clone(),
            set: |c, v| empty_or(v, text::name).map(|name| c.node.name = name),
        },
    },
    ConfigOption {
        key: "dir",
        group: CLUSTER,
        value_name: "DIR",
        doc: "The directory for this node's data, made if it is missing. A relative path starts at the directory \
              that oort is started in. It belongs to one node: a copy of it must never be started beside the original.",
        access: Text {
            get: |c| c.dir.display().to_string(),
            set: |c, v| directory(v).map(|dir| c.dir = dir),
        },
    },
    ConfigOption {
        key: "join",
        group: CLUSTER,
        value_name: "ADDRESS,...",
        doc: "Peer addresses of one or more nodes that are already there, each host:port. Any node will do, and a \
              node finds all others through it; give two or three so that one may be down. A node's own address is \
              ignored, so all nodes can have the same list. Empty: wait for others to join this node.",
        access: List {
            get: |c| c.join.clone(),
            set: |c, v| v.iter().map(|a| text::address(a)).collect::<Result<_, _>>().map(|list| c.join = list),
        },
    },
    ConfigOption {
        key: "cluster_size",
        group: CLUSTER,
        value_name: "NODES",
        doc: "How many nodes found the cluster, the same on all of them. The ring is formed, and data accepted, when \
              so many have met; afterwards this option means nothing. 1: a node with nobody to join founds a cluster \
              of its own, one with somebody to join waits to be told their ring. Too small: later nodes hold no \
              data. Too large: the cluster waits for nodes that never come.",
        access: Number {
            range: 1..=MEMBERS_MAX as u64,
            get: |c| c.node.cluster_size.into(),
            set: |c, v| c.node.cluster_size = v as u16,
        },
    },
    ConfigOption {
        key: "partitions",
        group: CLUSTER,
        value_name: "COUNT",
        doc: "Into how many partitions the ring is cut when the cluster is founded, a power of two; fixed from then \
              on. Too few (under about 10 per node): load differs between nodes. Too many: more memory and \
              background work per node.",
        access: PowerOfTwo {
            range: 1..=PARTITIONS_MAX as u64,
            get: |c| c.node.partitions.into(),
            set: |c, v| c.node.partitions = v as u16,
        },
    },
    ConfigOption {
        key: "strategy",
        group: CLUSTER,
        value_name: "NUMBER",
        doc: "How the ring is laid out when the cluster is founded; fixed from then on. 1: random tokens, partitions \
              between them; 2: random tokens, equal partitions; 3: equal partitions, dealt out evenly. Strategies 1 \
              and 2 balance worse and are there to compare.",
        access: Number {
            range: 1..=3,
            get: |c| c.node.strategy.number().into(),
            set: |c, v| c.node.strategy = Strategy::numbered(v as u8, c.tokens),
        },
    },
    ConfigOption {
        key: "tokens",
        group: CLUSTER,
        value_name: "COUNT",
        doc: "Random tokens of a node of weight 100 in strategies 1 and 2, when the cluster is founded. Too few: load \
              differs between nodes. Too many: in strategy 1 so many more partitions, with more work for each.",
        access: Number {
            range: 1..=1024,
            get: |c| tokens(c),
            set: |c, v| {
                c.tokens = v as u16;
                c.node.strategy = Strategy::numbered(c.node.strategy.number(), c.tokens);
            },
        },
    },
    ConfigOption {
        key: "weight",
        group: CLUSTER,
        value_name: "NUMBER",
        doc: "This node's share of the data in relation to the others', when it joins the ring; RING WEIGHT changes it \
              later. Too small for its disk: space is unused. Too large: it is the first to be full.",
        access: Number {
            range: 1..=WEIGHT_MAX as u64,
            get: |c| c.node.weight.into(),
            set: |c, v| c.node.weight = v as u16,
        },
    },
    ConfigOption {
        key: "zone",
        group: CLUSTER,
        value_name: "NAME",
        doc: "What fails together with this node (a rack, a room), when it joins the ring; RING ZONE changes it later. \
              Copies are spread over zones: with fewer zones than copies, some share one.",
        access: Text {
            get: |c| c.node.zone.clone(),
            set: |c, v| match v.len() {
                0..=ZONE_BYTES_MAX => {
                    c.node.zone = v.to_owned();
                    Ok(())
                }
                _ => Err(format!("at most {ZONE_BYTES_MAX} bytes")),
            },
        },
    },
    ConfigOption {
        key: "redis",
        group: ADDRESSES,
        value_name: "ADDRESS",
        doc: "Where to listen for Redis clients, as host:port. There is no password: whoever can connect can read \
              and change everything. 0.0.0.0 listens on all addresses of the machine and needs advertise_redis.",
        access: Text {
            get: |c| c.listen.redis.clone(),
            set: |c, v| text::address(v).map(|address| c.listen.redis = address),
        },
    },
    ConfigOption {
        key: "http",
        group: ADDRESSES,
        value_name: "ADDRESS",
        doc: "Where to listen for HTTP, as host:port: Riak's API, /health and /metrics. Like Redis, without a \
              password.",
        access: Text {
            get: |c| c.listen.http.clone(),
            set: |c, v| text::address(v).map(|address| c.listen.http = address),
        },
    },
    ConfigOption {
        key: "peer",
        group: ADDRESSES,
        value_name: "ADDRESS",
        doc: "Where to listen for the other nodes, as host:port. Only they should be able to reach it.",
        access: Text {
            get: |c| c.listen.peer.clone(),
            set: |c, v| text::address(v).map(|address| c.listen.peer = address),
        },
    },
    ConfigOption {
        key: "advertise_redis",
        group: ADDRESSES,
        value_name: "ADDRESS",
        doc: "The address that cluster-aware Redis clients are told for this node. Empty: the same as redis. Needed \
              behind address translation and in containers; a wrong one sends clients nowhere.",
        access: Text {
            get: |c| c.node.addresses.redis.clone(),
            set: |c, v| empty_or(v, text::address).map(|address| c.node.addresses.redis = address),
        },
    },
    ConfigOption {
        key: "advertise_http",
        group: ADDRESSES,
        value_name: "ADDRESS",
        doc: "The HTTP address that others are told for this node. Empty: the same as http.",
        access: Text {
            get: |c| c.node.addresses.http.clone(),
            set: |c, v| empty_or(v, text::address).map(|address| c.node.addresses.http = address),
        },
    },
    ConfigOption {
        key: "advertise_peer",
        group: ADDRESSES,
        value_name: "ADDRESS",
        doc: "The address that the other nodes use to reach this one. Empty: the same as peer. A wrong one leaves \
              the node alone. It may change between starts.",
        access: Text {
            get: |c| c.node.addresses.peer.clone(),
            set: |c, v| empty_or(v, text::address).map(|address| c.node.addresses.peer = address),
        },
    },
    ConfigOption {
        key: "sync",
        group: DURABILITY,
        value_name: "batch|interval",
        doc: "When writes reach the disk. batch: before they are acknowledged, one sync for all that wait; a power \
              failure loses nothing acknowledged. interval: at most sync_interval_ms later; faster on slow disks, \
              but a power failure of w machines at once loses that much. kill -9 loses nothing either way.",
        access: Text {
            get: |c| if c.node.sync == SyncMode::Batch { "batch" } else { "interval" }.into(),
            set: |c, v| {
                one_of(v, [("batch", SyncMode::Batch), ("interval", SyncMode::Interval { ms: 0 })])
                    .map(|sync| c.node.sync = sync)
            },
        },
    },
    ConfigOption {
        key: "sync_interval_ms",
        group: DURABILITY,
        value_name: "MS",
        doc: "Longest time between a write and its sync, in milliseconds, when sync is interval. Too small: as slow \
              as batch. Too large: more to lose in a power failure.",
        access: Number {
            range: 1..=60_000,
            get: |c| c.sync_interval_ms,
            set: |c, v| c.sync_interval_ms = v,
        },
    },
    ConfigOption {
        key: "cache_bytes",
        group: DURABILITY,
        value_name: "BYTES",
        doc: "Memory for recently used rows, in bytes or with a unit. Too small: every write first reads the disk. \
              Too large: the machine runs out of memory.",
        access: Bytes {
            range: 1 << 20..=1 << 40,
            get: |c| c.storage.cache_bytes as u64,
            set: |c, v| c.storage.cache_bytes = v as usize,
        },
    },
    ConfigOption {
        key: "block_cache_bytes",
        group: DURABILITY,
        value_name: "BYTES",
        doc: "Memory for blocks of the tables on disk, in bytes or with a unit. Too small: a row that is not in the \
              row cache costs a system call. Too large: less memory for cache_bytes, which serves busy keys better.",
        access: Bytes {
            range: 1 << 20..=1 << 40,
            get: |c| c.storage.block_cache_bytes as u64,
            set: |c, v| c.storage.block_cache_bytes = v as usize,
        },
    },
    ConfigOption {
        key: "known_bytes",
        group: DURABILITY,
        value_name: "BYTES",
        doc: "Memory for the hashes and dots of objects that are not in memory, 40 bytes each, in bytes or with a \
              unit. Too small: a write reads the old row from the disk of every replica, and a get from two. Too \
              large: less memory for cache_bytes.",
        access: Bytes {
            range: 64..=1 << 40,
            get: |c| c.node.known_bytes as u64,
            set: |c, v| c.node.known_bytes = v as usize,
        },
    },
    ConfigOption {
        key: "active_memory_bytes",
        group: DURABILITY,
        value_name: "BYTES",
        doc: "Memory for active objects that are loaded, in bytes or with a unit; beyond, those are unloaded that were \
              not used for longest. Too small: they are loaded again and again. Too large: memory.",
        access: Bytes {
            range: 1 << 20..=1 << 40,
            get: |c| c.node.active_bytes as u64,
            set: |c, v| c.node.active_bytes = v as usize,
        },
    },
    ConfigOption {
        key: "log_segment_bytes",
        group: DURABILITY,
        value_name: "BYTES",
        doc: "Size of a segment of the log, in bytes or with a unit. Its rows stay in memory until they are \
              written to tables, which begins when it is full; four full ones can wait for that. Too small: tables \
              are merged all the time. Too large: memory, and a slower start after a crash.",
        access: Bytes {
            range: 1 << 20..=1 << 30,
            get: |c| c.storage.segment_bytes as u64,
            set: |c, v| c.storage.segment_bytes = v as usize,
        },
    },
    ConfigOption {
        key: "disk_reserve_bytes",
        group: DURABILITY,
        value_name: "BYTES",
        doc: "Free disk space below which the node refuses writes, in bytes or with a unit. It stays readable, and \
              accepts writes again when there is space. Too small: the disk fills up while tables are merged, and \
              the store must be opened anew. Too large: space that is never used.",
        access: Bytes {
            range: 0..=1 << 50,
            get: |c| c.storage.reserve_bytes,
            set: |c, v| c.storage.reserve_bytes = v,
        },
    },
    ConfigOption {
        key: "disk_retry_ms",
        group: DURABILITY,
        value_name: "MS",
        doc: "Time between attempts to open the store anew after an I/O error, in milliseconds. Too small: a broken \
              disk keeps the node busy. Too large: it refuses writes for longer than it must.",
        access: Number {
            range: 10..=3_600_000,
            get: |c| c.storage.retry_interval.as_millis() as u64,
            set: |c, v| c.storage.retry_interval = Duration::from_millis(v),
        },
    },
    ConfigOption {
        key: "timeout_ms",
        group: REQUESTS,
        value_name: "MS",
        doc: "A request's time limit, in milliseconds, unless it brings its own. Too small: a slow disk or a pause \
              becomes an error. Too large: clients wait long to learn that replicas are gone.",
        access: Number {
            range: 1..=TIMEOUT_MS_MAX as u64,
            get: |c| c.node.timeout_ms.into(),
            set: |c, v| c.node.timeout_ms = v as u32,
        },
    },
    ConfigOption {
        key: "hedge_us",
        group: REQUESTS,
        value_name: "US",
        doc: "How long a get waits before it asks one more replica, in microseconds. Too small: gets cost more work. \
              Too large: one slow replica makes gets slow.",
        access: Number {
            range: 100..=10_000_000,
            get: |c| c.node.hedge_us,
            set: |c, v| c.node.hedge_us = v,
        },
    },
    ConfigOption {
        key: "requests_max",
        group: REQUESTS,
        value_name: "COUNT",
        doc: "Most client requests in flight; further ones are answered BUSY. Too small: bursts are refused. Too \
              large: an overloaded node answers everything late and needs much memory.",
        access: Number {
            range: 1..=10_000_000,
            get: |c| c.node.requests_max as u64,
            set: |c, v| c.node.requests_max = v as usize,
        },
    },
    ConfigOption {
        key: "connections_max",
        group: REQUESTS,
        value_name: "COUNT",
        doc: "Most connections of Redis clients; further ones are refused. Too small: clients cannot connect. Too \
              large: idle clients take memory. The node raises its limit of open files as far as the system allows \
              ('ulimit -Hn') and keeps a part for itself, so that there may be fewer; its log says so.",
        access: Number {
            range: 1..=1_000_000,
            get: |c| c.connections_max as u64,
            set: |c, v| c.connections_max = v as usize,
        },
    },
    ConfigOption {
        key: "client_memory_bytes",
        group: REQUESTS,
        value_name: "BYTES",
        doc: "Most memory that all Redis clients together may make the node hold, in bytes or with a unit: commands received and not \
              answered, and replies not read. If they take more, the client that takes most is cut off. Too small: \
              clients that send large values at the same time lose their connections. Too large: the process can run \
              out of memory.",
        access: Bytes {
            range: 16 << 20..=1 << 40,
            get: |c| c.client_memory_bytes,
            set: |c, v| c.client_memory_bytes = v,
        },
    },
    ConfigOption {
        key: "suspect_ms",
        group: PEERS,
        value_name: "MS",
        doc: "How long a peer may leave a message unanswered before others are preferred, in milliseconds; after ten \
              times that it counts as down. Too small: a busy peer is taken for a dead one, and its writes become \
              hints. Too large: requests wait for a dead one.",
        access: Number {
            range: 5..=60_000,
            get: |c| c.node.suspect_ms,
            set: |c, v| c.node.suspect_ms = v,
        },
    },
    ConfigOption {
        key: "gossip_ms",
        group: PEERS,
        value_name: "MS",
        doc: "Time between two rounds of gossip and pings, in milliseconds. Too small: idle nodes are busy. Too \
              large: news of the cluster spread slowly.",
        access: Number {
            range: 10..=60_000,
            get: |c| c.node.gossip_ms,
            set: |c, v| c.node.gossip_ms = v,
        },
    },
    ConfigOption {
        key: "entropy_ms",
        group: PEERS,
        value_name: "MS",
        doc: "Time between two comparisons of a partition with another replica, in milliseconds; 0 turns \
              anti-entropy off. Too small: constant background load. Too large (or off): replicas that missed writes \
              stay stale until the keys are read.",
        access: Number {
            range: 0..=3_600_000,
            get: |c| c.node.entropy_ms,
            set: |c, v| c.node.entropy_ms = v,
        },
    },
    ConfigOption {
        key: "collect_after_ms",
        group: PEERS,
        value_name: "MS",
        doc: "How long all nodes must have held a deleted or expired object alike before they forget it, in \
              milliseconds; 0 keeps it for ever. Too small: a message or a request that takes longer can bring a \
              deleted value back, and messages may take 30 s and requests 60 s. Too large: deleted objects take \
              space for longer.",
        access: Number {
            range: 0..=86_400_000,
            get: |c| c.node.collect_after_ms,
            set: |c, v| c.node.collect_after_ms = v,
        },
    },
    ConfigOption {
        key: "transfer_bytes_per_s",
        group: PEERS,
        value_name: "BYTES",
        doc: "Most bytes a second that this node fetches when the ring changes, in bytes or with a unit. Too small: \
              changes take long. Too large: clients wait while they go on.",
        access: Bytes {
            range: 1 << 10..=1 << 40,
            get: |c| c.node.transfer_bytes_per_s,
            set: |c, v| c.node.transfer_bytes_per_s = v,
        },
    },
    ConfigOption {
        key: "handoff_window",
        group: PEERS,
        value_name: "COUNT",
        doc: "Most hints given back to a returned node before it answers. Too small: handoff takes long. Too large: \
              it disturbs the node that just came back.",
        access: Number {
            range: 1..=100_000,
            get: |c| c.node.handoff_window as u64,
            set: |c, v| c.node.handoff_window = v as usize,
        },
    },
    ConfigOption {
        key: "clock_skew_ms_max",
        group: PEERS,
        value_name: "MS",
        doc: "Times further ahead of this node's clock than this are refused, in milliseconds, and a node whose \
              own clock is further ahead of its peers' refuses writes. Too small: nodes with ordinary clock errors \
              refuse each other's writes. Too large: one node with a wrong clock wins every lww conflict for that \
              long.",
        access: Number {
            range: 100..=86_400_000,
            get: |c| c.node.clock_skew_ms_max,
            set: |c, v| c.node.clock_skew_ms_max = v,
        },
    },
    ConfigOption {
        key: "bucket_n",
        group: BUCKETS,
        value_name: "COUNT",
        doc: "Copies of each object, in buckets without properties of their own. Of this and the two options below the \
              cluster keeps what its founder had; afterwards 'BUCKET SET' changes them. Too small: fewer machines may \
              fail. Too large: every write costs more.",
        access: Number {
            range: 1..=N_MAX as u64,
            get: |c| c.node.bucket_defaults.n.into(),
            set: |c, v| c.node.bucket_defaults.n = v as u8,
        },
    },
    ConfigOption {
        key: "bucket_r",
        group: BUCKETS,
        value_name: "COUNT",
        doc: "Replicas that must answer a get, 1 to bucket_n. Too small (r + w up to n): a get may miss the latest \
              put. Too large: gets fail when few nodes are down.",
        access: Number {
            range: 1..=N_MAX as u64,
            get: |c| c.node.bucket_defaults.r.into(),
            set: |c, v| c.node.bucket_defaults.r = v as u8,
        },
    },
    ConfigOption {
        key: "bucket_w",
        group: BUCKETS,
        value_name: "COUNT",
        doc: "Durable copies before a put is acknowledged, 1 to bucket_n. Too small: an acknowledged put is lost \
              with fewer disks. Too large: puts fail when few nodes are down.",
        access: Number {
            range: 1..=N_MAX as u64,
            get: |c| c.node.bucket_defaults.w.into(),
            set: |c, v| c.node.bucket_defaults.w = v as u8,
        },
    },
    ConfigOption {
        key: "bucket_conflict",
        group: BUCKETS,
        value_name: "siblings|lww",
        doc: "What happens to concurrent writes. siblings: all are kept until a write resolves them. lww: the last \
              by the nodes' clocks wins, the others are lost.",
        access: Text {
            get: |c| match c.node.bucket_defaults.conflict {
                Conflict::Siblings => "siblings".into(),
                Conflict::Lww => "lww".into(),
            },
            set: |c, v| {
                one_of(v, [("siblings", Conflict::Siblings), ("lww", Conflict::Lww)])
                    .map(|conflict| c.node.bucket_defaults.conflict = conflict)
            },
        },
    },
    ConfigOption {
        key: "bucket_default_ttl_ms",
        group: BUCKETS,
        value_name: "MS",
        doc: "Time to live of values stored without one, in milliseconds; 0: for ever. Too small: data vanish while \
              they are needed. Too large: the disk keeps what nobody reads.",
        access: Number {
            range: 0..=1 << 45, // over a thousand years, and far from overflowing when added to a time
            get: |c| c.node.bucket_defaults.default_ttl_ms.unwrap_or(0),
            set: |c, v| c.node.bucket_defaults.default_ttl_ms = (v > 0).then_some(v),
        },
    },
    ConfigOption {
        key: "bucket_value_bytes_max",
        group: BUCKETS,
        value_name: "BYTES",
        doc: "The largest value, in bytes or with a unit. Too small: clients get errors. Too large: a few big values \
              delay everybody's requests.",
        access: Bytes {
            range: 1..=VALUE_BYTES_LIMIT,
            get: |c| c.node.bucket_defaults.value_bytes_max,
            set: |c, v| c.node.bucket_defaults.value_bytes_max = v,
        },
    },
    ConfigOption {
        key: "log",
        group: LOGS,
        value_name: "FILTER",
        doc: "Which lines are logged to standard error: error, warn, info, debug or trace; or per module, such as \
              'warn,oort::shard=info'. Too little: no trace of what happened. Too much: a full disk, and slow requests.",
        access: Text {
            get: |c| c.log.clone(),
            set: |c, v| log_filter(v).map(|filter| c.log = filter),
        },
    },
];

/// The option with this key.
pub fn find(key: &str) -> Option<&'static ConfigOption> {
    OPTIONS.iter().find(|option| option.key == key)
}

/// The key most like `key`, if any is much like it.
pub fn nearest(key: &str) -> Option<&'static str> {
    let key = key.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let distance = |option: &ConfigOption| text::edit_distance(&key, option.key);
    let near = OPTIONS.iter().min_by_key(|option| distance(option))?;
    (distance(near) <= 1 + near.key.len() / 4).then_some(near.key)
}

impl ConfigOption {
    /// The command line flag, without its dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("OORT_{}", self.key.to_ascii_uppercase())
    }

    /// True if the value is a list, whose flag may be given several times.
    pub fn is_list(&self) -> bool {
        matches!(self.access, List { .. })
    }

    /// The value in `config` as it stands in a TOML file.
    pub fn toml(&self, config: &Config) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        match &self.access {
            Text { get, .. } => quoted(&get(config)),
            List { get, .. } => {
                format!("[{}]", get(config).iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
            }
            Number { get, .. } | PowerOfTwo { get, .. } => get(config).to_string(),
            Bytes { get, .. } => match text::size_text(get(config)) {
                plain if plain.bytes().all(|b| b.is_ascii_digit()) => plain,
                with_unit => quoted(&with_unit),
            },
        }
    }

    /// Sets the value from a flag or a variable. Errors say what is wrong with it, without naming the option.
    pub fn set_text(&self, config: &mut Config, value: &str) -> Result<(), String> {
        match &self.access {
            Text { set, .. } => set(config, value),
            List { set, .. } => {
                let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
                set(config, &items.map(String::from).collect::<Vec<_>>())
            }
            Number { .. } | PowerOfTwo { .. } => self.set_number(config, text::number(value)?),
            Bytes { .. } => self.set_number(config, text::size(value)?),
        }
    }

    /// Sets the value from a TOML file. Errors as [`ConfigOption::set_text`].
    pub fn set_toml(&self, config: &mut Config, value: &DeValue) -> Result<(), String> {
        let wrong = |wanted: &str| Err(format!("{wanted} is needed here, not {}", described(value)));
        match (&self.access, value) {
            (Text { set, .. }, DeValue::String(text)) => set(config, text),
            (Text { .. }, _) => wrong("a text in quotes"),
            (List { set, .. }, DeValue::Array(items)) => {
                let texts: Option<Vec<String>> =
                    items.iter().map(|item| item.get_ref().as_str().map(String::from)).collect();
                match texts {
                    Some(texts) => set(config, &texts),
                    None => Err("a list of texts in quotes is needed here".into()),
                }
            }
            (List { .. }, _) => wrong("a list, such as [\"host:port\"],"),
            (_, DeValue::Integer(digits)) => match u64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(number) => self.set_number(config, number),
                Err(_) => Err(self.out_of_range(&digits.to_string())),
            },
            (Bytes { .. }, DeValue::String(text)) => self.set_number(config, text::size(text)?),
            (Bytes { .. }, _) => wrong("a size, such as \"64MiB\","),
            _ => wrong("a whole number"),
        }
    }

    fn set_number(&self, config: &mut Config, number: u64) -> Result<(), String> {
        let (Number { range, set, .. } | PowerOfTwo { range, set, .. } | Bytes { range, set, .. }) =
            &self.access
        else {
            unreachable!("{} is no number", self.key);
        };
        if !range.contains(&number) {
            return Err(self.out_of_range(&number.to_string()));
        }
        if matches!(self.access, PowerOfTwo { .. }) && !number.is_power_of_two() {
            return Err(format!(
                "{number} is no power of two: {} and {} are near",
                below(number),
                below(number) * 2
            ));
        }
        set(config, number);
        Ok(())
    }

    fn out_of_range(&self, number: &str) -> String {
        match &self.access {
            Number { range, .. } | PowerOfTwo { range, .. } => {
                format!("{number} is out of range: it must be {} to {}", range.start(), range.end())
            }
            Bytes { range, .. } => {
                let (least, most) = (text::size_text(*range.start()), text::size_text(*range.end()));
                format!("{number} is out of range: it must be {least} to {most}")
            }
            Text { .. } | List { .. } => unreachable!("{} is no number", self.key),
        }
    }
}

/// The greatest power of two below `number`, which is at least 1 and none itself.
fn below(number: u64) -> u64 {
    1 << number.ilog2()
}

fn empty_or(text: &str, parse: fn(&str) -> Result<String, String>) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        _ => parse(text),
    }
}

fn one_of<T: Copy>(text: &str, choices: [(&str, T); 2]) -> Result<T, String> {
    let chosen = choices.iter().find(|(name, _)| *name == text);
    chosen.map(|(_, value)| *value).ok_or_else(|| {
        format!("'{}' is neither '{}' nor '{}'", text.escape_debug(), choices[0].0, choices[1].0)
    })
}

fn directory(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("a directory is needed".into()),
        _ => Ok(text.into()),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.into()),
        _ => Err(format!("'{}' is no log filter: write 'info', or 'info,oort=debug'", text.escape_debug())),
    }
}

fn described(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
