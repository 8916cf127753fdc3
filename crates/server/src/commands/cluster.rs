//! `CLUSTER`: where slots live, in the forms that Redis Cluster clients read to send each command to a replica at once.
//!
//! A Redis Cluster slot lies within one partition, so its nodes are those of the partition's preference list: the first
//! is presented as the slot's master, the other `n - 1` as its replicas. Any node serves any key all the same, so there
//! is no `MOVED`; a client that knows nothing of slots only costs a hop. Each node is master of some slots, so in
//! `CLUSTER NODES`, which knows one role for each node, all are masters.
//!
//! Source: Dynamo §6.4 (client-driven coordination); the formats from Redis 7's `cluster.c`.

use std::collections::BTreeMap;
use std::fmt::Write;

use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::detector::Health;
use oort_core::membership::Member;
use oort_core::types::{NodeId, Position, SLOTS};

use super::errors::refusal;
use super::listing::{Gather, Stretch, Walk};
use super::server::slot;
use super::view::View;
use super::{reply, Call, Outcome};
use crate::resp::Value;

/// Slots `first` to `last` with the same nodes: the first of the preference list that is not down, then the others in
/// order of their ids, so that equal ones look equal, and behind them those that are down.
struct SlotRange {
    first: u16,
    last: u16,
    owners: Vec<NodeId>,
}

/// The most keys `CLUSTER GETKEYSINSLOT` returns.
const KEYS_IN_SLOT_MAX: usize = 1_000_000;

/// A node's id in the form of Redis's: 40 hexadecimal digits.
pub fn node_name(id: NodeId) -> String {
    format!("{id}{:0<24}", "")
}

/// Host and port of `host:port`; an IPv6 address loses its brackets. A port that is none becomes 0.
pub fn split_address(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host, port.parse().unwrap_or(0))
}

/// All slots, adjacent ones with the same `copies` nodes joined. Empty until the cluster is formed.
fn slot_ranges(view: &dyn View, copies: usize) -> Vec<SlotRange> {
    let Some(ring) = view.ring() else {
        return Vec::new();
    };
    let mut ranges: Vec<SlotRange> = Vec::new();
    let mut last: &[NodeId] = &[];
    for slot in 0..SLOTS {
        let list = ring.preference_at(Position::first_of_slot(slot));
        if let Some(range) = ranges.last_mut().filter(|_| list == last) {
            range.last = slot;
            continue;
        }
        last = list;
        let mut owners = list.to_vec();
        let is_down = |node: &NodeId| view.health(*node) == Health::Down;
        // A client sends its requests to the first: any node serves any key, but a dead one serves none.
        owners.sort_by_key(is_down);
        owners.truncate(copies);
        if let [_, others @ ..] = &mut owners[..] {
            others.sort_by_key(|node| (is_down(node), *node));
        }
        match ranges.last_mut() {
            Some(range) if range.owners == owners => range.last = slot,
            _ => ranges.push(SlotRange { first: slot, last: slot, owners }),
        }
    }
    ranges
}

/// Copies of an object of the bucket that Redis Cluster clients use: they cannot `SELECT`.
fn copies(view: &dyn View) -> usize {
    view.ring().map_or(0, |ring| ring.replication(DEFAULT_BUCKET).n as usize)
}

/// `CLUSTER SLOTS`
pub fn slots(call: &mut Call) -> Outcome {
    let members = &call.view.membership().members;
    let is_up = |id: &NodeId| call.view.health(*id) != Health::Down;
    let ranges = slot_ranges(call.view, copies(call.view)).into_iter().map(|range| {
        // Clients read from any of them. If all are down, a range without nodes would confuse them more.
        let shown = range.owners.iter().enumerate().filter(|(i, id)| *i == 0 || is_up(id));
        let nodes = shown.filter_map(|(_, id)| members.get(id)).map(slot_node);
        let bounds = [Value::Integer(range.first as i64), Value::Integer(range.last as i64)];
        Value::Array(bounds.into_iter().chain(nodes).collect())
    });
    reply(Value::Array(ranges.collect()))
}

fn slot_node(member: &Member) -> Value {
    let (host, port) = split_address(&member.addresses.redis);
    Value::Array(vec![
        Value::text(host),
        Value::Integer(port as i64),
        Value::text(node_name(member.id)),
        Value::Array(Vec::new()),
    ])
}

/// `CLUSTER SHARDS`: one shard for each list of nodes that some slots share.
pub fn shards(call: &mut Call) -> Outcome {
    let mut shards: BTreeMap<Vec<NodeId>, Vec<Value>> = BTreeMap::new();
    for range in slot_ranges(call.view, copies(call.view)) {
        let slots = shards.entry(range.owners).or_default();
        slots.push(Value::Integer(range.first as i64));
        slots.push(Value::Integer(range.last as i64));
    }
    let shards = shards.into_iter().map(|(owners, slots)| {
        let nodes = owners.iter().enumerate().filter_map(|(i, id)| shard_node(call.view, *id, i == 0));
        Value::Map(vec![
            (Value::name("slots"), Value::Array(slots)),
            (Value::name("nodes"), Value::Array(nodes.collect())),
        ])
    });
    reply(Value::Array(shards.collect()))
}

fn shard_node(view: &dyn View, id: NodeId, is_master: bool) -> Option<Value> {
    let (host, port) = split_address(&view.membership().members.get(&id)?.addresses.redis);
    let health = match view.health(id) {
        Health::Up | Health::Suspect => "online",
        Health::Down => "failed",
    };
    Some(Value::Map(vec![
        (Value::name("id"), Value::text(node_name(id))),
        (Value::name("port"), Value::Integer(port as i64)),
        (Value::name("ip"), Value::text(host)),
        (Value::name("endpoint"), Value::text(host)),
        (Value::name("role"), Value::name(if is_master { "master" } else { "replica" })),
        (Value::name("replication-offset"), Value::Integer(0)),
        (Value::name("health"), Value::name(health)),
    ]))
}

/// `CLUSTER NODES`
pub fn nodes(call: &mut Call) -> Outcome {
    let mut slots: BTreeMap<NodeId, String> = BTreeMap::new();
    for SlotRange { first, last, owners } in slot_ranges(call.view, 1) {
        let text = slots.entry(owners[0]).or_default();
        let _ = match first == last {
            true => write!(text, " {first}"),
            false => write!(text, " {first}-{last}"),
        };
    }
    let mut text = String::new();
    for member in call.view.membership().members.values() {
        let slots = slots.get(&member.id).map_or("", String::as_str);
        let _ = writeln!(text, "{}{slots}", node_line(call, member));
    }
    reply(Value::Verbatim(*b"txt", text.into()))
}

fn node_line(call: &Call, member: &Member) -> String {
    let (host, port) = split_address(&member.addresses.redis);
    let bus_port = split_address(&member.addresses.peer).1;
    let is_me = member.id == call.view.membership().me;
    let health = if is_me { Health::Up } else { call.view.health(member.id) };
    let flags = match (is_me, health) {
        (true, _) => "myself,master",
        (false, Health::Up) => "master",
        (false, Health::Suspect) => "master,fail?",
        (false, Health::Down) => "master,fail",
    };
    let link = if health == Health::Down { "disconnected" } else { "connected" };
    let epoch = call.view.ring().map_or(0, |ring| ring.state().version);
    let pong_ms = if is_me { 0 } else { call.now_ms };
    let name = node_name(member.id);
    format!("{name} {host}:{port}@{bus_port} {flags} - 0 {pong_ms} {epoch} {link}")
}

/// `CLUSTER MYID`, `CLUSTER MYSHARDID`
pub fn myid(call: &mut Call) -> Outcome {
    reply(Value::text(node_name(call.view.membership().me)))
}

/// `CLUSTER INFO`
pub fn info(call: &mut Call) -> Outcome {
    let view = call.view;
    let masters: Vec<NodeId> = view.ring().map_or(Vec::new(), |ring| ring.nodes().to_vec());
    let count_slots = |health: Health| {
        let ranges = slot_ranges(view, 1).into_iter().filter(|range| view.health(range.owners[0]) == health);
        ranges.map(|range| (range.last - range.first) as u32 + 1).sum::<u32>()
    };
    let is_formed = view.ring().is_some();
    let epoch = view.ring().map_or(0, |ring| ring.state().version);
    let fields = [
        ("cluster_slots_assigned", if is_formed { SLOTS as u64 } else { 0 }),
        ("cluster_slots_ok", count_slots(Health::Up) as u64),
        ("cluster_slots_pfail", count_slots(Health::Suspect) as u64),
        ("cluster_slots_fail", count_slots(Health::Down) as u64),
        ("cluster_known_nodes", view.membership().members.len() as u64),
        ("cluster_size", masters.len() as u64),
        ("cluster_current_epoch", epoch),
        ("cluster_my_epoch", epoch),
        ("cluster_stats_messages_sent", 0),
        ("cluster_stats_messages_received", 0),
        ("total_cluster_links_buffer_limit_exceeded", 0),
    ];
    // A slot whose first node is down is served by the others of its list, so only a missing ring is a failure.
    let mut text =
        format!("cluster_enabled:1\r\ncluster_state:{}\r\n", if is_formed { "ok" } else { "fail" });
    for (name, value) in fields {
        let _ = write!(text, "{name}:{value}\r\n");
    }
    reply(Value::Verbatim(*b"txt", text.into()))
}

/// `CLUSTER STATUS`: ours, for `oort cluster status`.
pub fn status(call: &mut Call) -> Outcome {
    reply(Value::text(call.view.status()))
}

/// `CLUSTER KEYSLOT key`
pub fn keyslot(call: &mut Call) -> Outcome {
    reply(Value::Integer(oort_core::types::slot(call.arg(2)) as i64))
}

/// `CLUSTER COUNTKEYSINSLOT slot`: of the selected bucket, on all nodes.
pub fn countkeysinslot(call: &mut Call) -> Outcome {
    let slot = slot(call, 2)?;
    Walk::start([Stretch::slot(call.session.bucket().clone(), slot)].into(), Gather::Count(0))
}

/// `CLUSTER GETKEYSINSLOT slot count`
pub fn getkeysinslot(call: &mut Call) -> Outcome {
    let slot = slot(call, 2)?;
    let limit = match usize::try_from(call.integer(3)?) {
        Ok(0) => return reply(Value::Array(Vec::new())),
        Ok(count) => count.min(KEYS_IN_SLOT_MAX),
        Err(_) => return Err(refusal("ERR Invalid number of keys")),
    };
    let gather = Gather::Keys { pattern: "*".into(), keys: Vec::new(), bytes: 0, limit };
    Walk::start([Stretch::slot(call.session.bucket().clone(), slot)].into(), gather)
}
