//! The cluster as one node sees it, as JSON: for `/cluster/status`, `CLUSTER STATUS` and `oort cluster status`.

use std::collections::BTreeMap;

use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::config::Addresses;
use oort_core::detector::Health;
use oort_core::membership::Member;
use oort_core::node::Node;
use oort_core::placement::RingNode;
use oort_core::ring::Ring;
use oort_core::types::{NodeId, Partition};
use oort_core::vivaldi::Coordinate;
use serde_json::{json, Value};

use crate::handle::{Inside, Trouble};

/// Everything an operator asks first. Costs O(members + partitions + buckets) on the loop.
///
/// ```text
/// { "cluster": name, "founding": null or the id of the cluster's founding,
///   "node":    { "id", "name", "addresses": {"peer", "redis", "http"}, "ready", "read_only": null or why,
///                "clock_correction_ms": what is added to a wrong clock to go by the time of most nodes,
///                "uptime_ms", "connections", "requests_in_flight", "store_bytes",
///                "in_ring", "partitions_to_fetch", "partitions_fetched", and since it started "keys_fetched",
///                "bytes_fetched" },
///   "members": [ { "id", "name", "addresses", "health": "up" | "suspect" | "down", "stopped", "protocol",
///                  "partitions",
///                  "rtt_us", "distance_us": as measured or else estimated, null if unknown,
///                  "coordinate": { "x_us", "y_us", "height_us", "error": 0 to 1.5 },
///                  "in_ring": "yes" | "joining" | "leaving" | "no" | "removed", "weight", "zone",
///                  "has_moved", "former": null or the id of the lost node whose place it seems to have } ],
///   "ring":    null or { "version", "partitions", "strategy", "nodes", "moving" },
///   "links": [ { "address", "id": null or who it is, "dialled_by": "us" | "them", "why", "times" } ],
///   "hints_pending": count,
///   "buckets": [ { "name", "properties" } ] }
/// ```
/// `links` has those that are wanted and are not there, with the reason: seeds that do not answer, nodes of other
/// clusters, copied directories. `health` and `rtt_us` are this node's opinion; ids are 16 hexadecimal digits.
pub fn json(inside: &Inside) -> Value {
    let node = inside.node;
    let membership = node.membership();
    let owned = node.ring().map(owned_partitions).unwrap_or_default();
    let members: Vec<Value> = membership
        .members
        .values()
        .map(|member| {
            json!({
                "id": member.id.to_string(),
                "name": member.name,
                "addresses": addresses(&member.addresses),
                "health": health(node.health(member.id)),
                "stopped": member.stopped,
                "protocol": member.protocol,
                "in_ring": in_ring(node.ring(), member.id),
                "weight": ring_node(node.ring(), member.id).map_or(member.weight, |node| node.weight),
                "zone": ring_node(node.ring(), member.id).map_or(&member.zone, |node| &node.zone),
                "former": former(node, member.id).map(|former| former.id.to_string()),
                "has_moved": node.ring().is_some_and(|ring| member.moved == ring.stamp()),
                "partitions": owned.get(&member.id).copied().unwrap_or(0),
                "rtt_us": node.rtt_us(member.id),
                "distance_us": node.distance_us(member.id),
                "coordinate": coordinate(if member.id == node.id() { node.coordinate() } else { member.coordinate }),
            })
        })
        .collect();
    let own = membership.own();
    json!({
        "cluster": node.config().cluster,
        "founding": membership.founding().map(|founding| founding.to_string()),
        "node": {
            "id": own.id.to_string(),
            "name": own.name,
            "addresses": addresses(&own.addresses),
            "ready": node.ring().is_some(),
            "read_only": node.read_only(),
            "clock_correction_ms": node.clock_correction_ms(),
            "uptime_ms": inside.now.wall_ms.saturating_sub(inside.started_wall_ms),
            "connections": inside.connections,
            "requests_in_flight": node.requests_in_flight(),
            "store_bytes": node.store_bytes(),
            "in_ring": in_ring(node.ring(), own.id),
            "partitions_to_fetch": node.moving_progress().0,
            "partitions_fetched": node.moving_progress().1,
            "keys_fetched": node.metrics().transferred_keys,
            "bytes_fetched": node.metrics().transferred_bytes,
        },
        "members": members,
        "ring": node.ring().map(ring),
        "links": inside.troubles.iter().map(trouble).collect::<Vec<Value>>(),
        "hints_pending": node.metrics().hints_pending,
        "buckets": buckets(inside),
    })
}

/// Whose place a member outside the ring may be meant to take: a node of the ring that is down and had the same peer
/// address, or else the same name. So it looks when a node comes back with an empty disk.
pub fn former(node: &Node, id: NodeId) -> Option<&Member> {
    let (ring, membership) = (node.ring()?.state(), node.membership());
    let member = membership.members.get(&id).filter(|_| !ring.contains(id))?;
    let lost =
        |other: &&Member| ring.layout.node(other.id).is_some() && node.health(other.id) == Health::Down;
    let find = |is_alike: fn(&Member, &Member) -> bool| {
        membership.members.values().filter(lost).find(|other| is_alike(other, member))
    };
    find(|other, member| other.addresses.peer == member.addresses.peer)
        .or_else(|| find(|other, member| other.name == member.name))
}

fn trouble(trouble: &Trouble) -> Value {
    json!({
        "address": trouble.address,
        "id": trouble.peer.map(|peer| peer.to_string()),
        "dialled_by": if trouble.is_ours { "us" } else { "them" },
        "why": trouble.why,
        "times": trouble.times,
    })
}

fn coordinate(coordinate: Coordinate) -> Value {
    let Coordinate { x_us, y_us, height_us, error_per_mille } = coordinate;
    let error = error_per_mille as f64 / 1000.0;
    json!({ "x_us": x_us, "y_us": y_us, "height_us": height_us, "error": error })
}

/// The word for an opinion.
pub fn health(health: Health) -> &'static str {
    match health {
        Health::Up => "up",
        Health::Suspect => "suspect",
        Health::Down => "down",
    }
}

fn addresses(addresses: &Addresses) -> Value {
    json!({ "peer": addresses.peer, "redis": addresses.redis, "http": addresses.http })
}

fn ring(ring: &Ring) -> Value {
    json!({
        "version": ring.state().version,
        "partitions": ring.partitions(),
        "strategy": ring.state().layout.strategy.number(),
        "moving": ring.is_moving(),
        "nodes": ring.nodes().len(),
    })
}

/// What the ring that is there, or is coming, says of a node.
fn ring_node(ring: Option<&Ring>, id: NodeId) -> Option<&RingNode> {
    ring?.state().layout.node(id)
}

/// `yes`, `no`, `removed`, or on its way: `joining`, `leaving`.
fn in_ring(ring: Option<&Ring>, id: NodeId) -> &'static str {
    let Some(state) = ring.map(Ring::state) else { return "no" };
    let will_be = state.layout.node(id).is_some();
    let was = state.old.as_ref().map_or(will_be, |old| old.node(id).is_some());
    match (was, will_be) {
        (true, true) => "yes",
        (false, false) if state.removed.contains(&id) => "removed",
        (false, false) => "no",
        (false, true) => "joining",
        (true, false) => "leaving",
    }
}

fn owned_partitions(ring: &Ring) -> BTreeMap<NodeId, u32> {
    let mut owned = BTreeMap::new();
    for partition in 0..ring.partitions() {
        *owned.entry(ring.owner(Partition(partition))).or_default() += 1;
    }
    owned
}

/// `default` first, then those with properties of their own.
fn buckets(inside: &Inside) -> Vec<Value> {
    let table = inside.node.buckets();
    let text = |name: &[u8]| match std::str::from_utf8(name) {
        Ok(text) => text.to_string(),
        Err(_) => name.escape_ascii().to_string(),
    };
    let describe = |name: &[u8]| json!({ "name": text(name), "properties": table.properties(name) });
    let others = table.entries().map(|(name, _)| &name[..]).filter(|name| *name != DEFAULT_BUCKET);
    std::iter::once(DEFAULT_BUCKET).chain(others).map(describe).collect()
}
