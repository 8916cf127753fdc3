//! What the node says about itself: `/ping`, `/health`, `/stats`, `/metrics`, `/cluster/status` and `/`.

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;

use hyper::header::{HeaderMap, HeaderValue, VARY};
use hyper::{Response, StatusCode};
use oort_core::bucket::{Replication, DEFAULT_BUCKET};
use oort_core::detector::Health;
use oort_core::metrics::Histogram;
use oort_core::ring::Ring;
use rustix::time::{clock_gettime, ClockId};
use serde_json::{json, Map, Value};

use crate::handle::{Inside, Stopped};
use crate::http::body::{json_response, text_response, Body};
use crate::http::counters::{Counters, BOUNDS_US};
use crate::http::refusal::Refusal;
use crate::http::representation::accepts_json;
use crate::http::shared::Shared;
use crate::status;

const INDEX: &str = "\
Oort: a leaderless key-value store. Paths:

/buckets/B/keys/K           GET HEAD PUT POST DELETE an object; /types/T/buckets/B/keys/K and /riak/B/K too
/buckets/B/counters/K       GET a counter, POST a number to add
/buckets/B/keys             POST a value under a new key; GET ?keys=true or ?keys=stream
/buckets/B/props            GET PUT DELETE a bucket's properties
/buckets?buckets=true       GET the buckets
/aso/B/K                    GET what ASO.INFO tells, PUT an active object: its Lua source
/aso/B/K/source             GET the source, PUT new code
/aso/B/K/call/FUNCTION      POST a JSON array of arguments
/ping /health               GET whether the process runs, and whether it can serve
/stats /metrics             GET counters, as JSON and for Prometheus
/cluster/status             GET members, ring and buckets as this node sees them
";

/// The Riak KV release whose key-value API is served, for clients that decide by it which features to use.
///
/// Releases from 2.1 on also promise preference lists and write-once buckets, which are not served.
const RIAK_VERSION: &str = "2.0.9";
/// Riak's names for the paths that are served, as its clients look them up.
const RESOURCES: [(&str, &str); 10] = [
    ("riak_kv_wm_bucket_type", "/types"),
    ("riak_kv_wm_buckets", "/buckets"),
    ("riak_kv_wm_bucketlist", "/buckets"),
    ("riak_kv_wm_counter", "/buckets"),
    ("riak_kv_wm_keylist", "/buckets"),
    ("riak_kv_wm_object", "/buckets"),
    ("riak_kv_wm_ping", "/ping"),
    ("riak_kv_wm_props", "/buckets"),
    ("riak_kv_wm_raw", "/riak"),
    ("riak_kv_wm_stats", "/stats"),
];

/// `/`: a text for people, Riak's list of resources for clients that ask for JSON.
pub fn index(headers: &HeaderMap) -> Response<Body> {
    let mut response = match accepts_json(headers) {
        true => {
            let named = RESOURCES.map(|(name, path)| (name.to_string(), Value::from(path)));
            json_response(&Value::Object(named.into_iter().collect()))
        }
        false => text_response(INDEX.to_string(), "text/plain"),
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

/// `/ping`: the process runs.
pub fn ping() -> Response<Body> {
    text_response("OK".to_string(), "text/plain")
}

/// `/health`: 200 if the node can serve reads and writes, else 503 with the reasons.
pub async fn health(shared: &Shared) -> Result<Response<Body>, Refusal> {
    let mut reasons =
        shared.handle.inspect(unhealthy).await.unwrap_or_else(|stopped| vec![stopped.to_string()]);
    if *shared.stopping.borrow() {
        reasons.push("the node is stopping".into());
    }
    let is_ready = reasons.is_empty();
    let mut response = json_response(&json!({ "ready": is_ready, "reasons": reasons }));
    if !is_ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

fn unhealthy(inside: &Inside) -> Vec<String> {
    let mut reasons = Vec::new();
    if inside.node.membership().own().stopped {
        reasons.push(Stopped.to_string());
    }
    match inside.node.ring() {
        None => reasons.push(oort_core::client::ClientError::NotReady.to_string()),
        Some(ring) => reasons.extend(lonely(inside, ring)),
    }
    if let Some(detail) = inside.node.read_only() {
        reasons.push(format!("this node refuses writes: {detail}"));
    }
    reasons
}

/// Why requests with the default quorums cannot be served here: too few nodes of the ring can be reached.
///
/// Fallbacks count as they do in gets and puts, so the number of nodes decides and not which ones they are.
fn lonely(inside: &Inside, ring: &Ring) -> Option<String> {
    let Replication { r, w, .. } = ring.replication(DEFAULT_BUCKET);
    let (nodes, quorum) = (ring.nodes(), r.max(w) as usize);
    let reached = nodes.iter().filter(|&&node| inside.node.health(node) != Health::Down).count();
    let needed = quorum.min(nodes.len());
    (reached < needed).then(|| {
        let all = nodes.len();
        format!("{reached} of the {all} nodes of the ring can be reached: gets and puts need {needed}")
    })
}

/// `/cluster/status`
pub async fn cluster_status(shared: &Shared) -> Result<Response<Body>, Refusal> {
    Ok(json_response(&shared.handle.inspect(status::json).await?))
}

/// `/stats`: Riak's names where there is an equivalent, then every counter under its own name.
pub async fn stats(shared: &Shared) -> Result<Response<Body>, Refusal> {
    let mut stats = shared.handle.inspect(node_stats).await?;
    let process = Process::read();
    let http_requests: u64 = shared.counters.requests().map(|(_, _, count)| count).sum();
    let others = [
        ("http_connections", shared.counters.connections.load(Ordering::Relaxed)),
        ("http_requests", http_requests),
        ("mem_allocated", process.resident_bytes),
        ("cpu_ms", process.cpu_us / 1000),
    ];
    stats.extend(others.map(|(name, value)| (name.to_string(), json!(value))));
    Ok(json_response(&Value::Object(stats)))
}

fn node_stats(inside: &Inside) -> Map<String, Value> {
    let node = inside.node;
    let metrics = node.metrics();
    let is_linked = |health| health != Health::Down;
    let members = node.membership().members.values();
    let peers = members.filter(|member| member.id != node.id());
    let connected = peers.filter(|member| is_linked(node.health(member.id))).map(|member| &member.name);
    let named = json!({
        "riak_kv_version": RIAK_VERSION,
        "nodename": node.membership().own().name,
        "connected_nodes": connected.collect::<Vec<_>>(),
        "ring_num_partitions": node.ring().map_or(0, |ring| ring.partitions()),
        "ring_members": node.ring().map_or(0, |ring| ring.nodes().len()),
        "node_gets_total": metrics.gets,
        "node_puts_total": metrics.puts,
        "vnode_gets_total": metrics.replica_reads,
        "vnode_puts_total": metrics.replica_writes,
        "read_repairs_total": metrics.read_repairs,
        "coord_redirs_total": metrics.forwards,
        "sys_uptime_ms": inside.now.wall_ms.saturating_sub(inside.started_wall_ms),
        "redis_connections": inside.connections,
        "requests_in_flight": node.requests_in_flight(),
        "store_bytes": node.store_bytes(),
    });
    let mut stats = match named {
        Value::Object(stats) => stats,
        _ => unreachable!("the literal above is an object"),
    };
    metrics.each(|name, _, _, value| {
        stats.insert(name.to_string(), json!(value));
    });
    stats
}

/// `/metrics`, in the text format 0.0.4 of Prometheus.
pub async fn metrics(shared: &Shared) -> Result<Response<Body>, Refusal> {
    let mut page = shared.handle.inspect(node_metrics).await?;
    http_metrics(&mut page, &shared.counters);
    process_metrics(&mut page, &Process::read());
    Ok(text_response(page.0, "text/plain; version=0.0.4; charset=utf-8"))
}

fn node_metrics(inside: &Inside) -> MetricsPage {
    let mut page = MetricsPage::default();
    let node = inside.node;
    node.metrics().each(|name, help, is_total, value| match (is_total, name.strip_suffix("_ms")) {
        (true, _) => page.single(&format!("oort_{name}_total"), "counter", help, value),
        // Prometheus has one unit of time.
        (false, Some(name)) => {
            page.single(&format!("oort_{name}_seconds"), "gauge", help, value as f64 / 1000.0)
        }
        (false, None) => page.single(&format!("oort_{name}"), "gauge", help, value),
    });
    let ring = node.ring();
    let levels: [(&str, &str, u64); 7] = [
        ("oort_ready", "1 once the ring is formed", ring.is_some() as u64),
        ("oort_read_only", "1 while the store refuses writes", node.read_only().is_some() as u64),
        (
            "oort_ring_version",
            "version of the ring, 0 before it is formed",
            ring.map_or(0, |r| r.state().version),
        ),
        ("oort_members", "members known, this node included", node.membership().members.len() as u64),
        ("oort_redis_connections", "open Redis connections", inside.connections as u64),
        ("oort_requests_in_flight", "client requests not yet answered", node.requests_in_flight() as u64),
        ("oort_store_bytes", "bytes the store takes", node.store_bytes()),
    ];
    for (name, help, value) in levels {
        page.single(name, "gauge", help, value);
    }
    let started = inside.started_wall_ms as f64 / 1000.0;
    page.single("process_start_time_seconds", "gauge", "start of the process, since 1970", started);
    peer_metrics(&mut page, inside);
    latency_metrics(&mut page, inside);
    page
}

fn peer_metrics(page: &mut MetricsPage, inside: &Inside) {
    let node = inside.node;
    let labels: Vec<(String, _)> = node
        .membership()
        .members
        .values()
        .filter(|member| member.id != node.id())
        .map(|member| (format!("peer=\"{}\",id=\"{}\"", escaped(&member.name), member.id), member.id))
        .collect();
    page.describe("oort_peer_health", "gauge", "this node's opinion of a peer: 2 up, 1 suspect, 0 down");
    for (labels, id) in &labels {
        let level = match node.health(*id) {
            Health::Up => 2,
            Health::Suspect => 1,
            Health::Down => 0,
        };
        page.sample("oort_peer_health", labels, level);
    }
    page.describe("oort_peer_rtt_seconds", "gauge", "smoothed round trip to a peer, 0 if unknown");
    for (labels, id) in &labels {
        page.sample("oort_peer_rtt_seconds", labels, node.rtt_us(*id) as f64 / 1e6);
    }
}

fn latency_metrics(page: &mut MetricsPage, inside: &Inside) {
    let latencies = inside.latencies;
    let name = "oort_operation_duration_seconds";
    page.describe(name, "histogram", "time until gets, puts, calls and others were answered, by kind");
    for (kind, times) in latencies.operations() {
        page.times(name, &format!("kind=\"{kind}\""), times);
    }
    let name = "oort_redis_command_duration_seconds";
    page.describe(name, "histogram", "time until Redis commands about data were answered, by family");
    for (family, times) in latencies.commands() {
        page.times(name, &format!("family=\"{family}\""), times);
    }
    let name = "oort_sync_duration_seconds";
    page.describe(name, "histogram", "time until the changes of a turn were durable");
    page.times(name, "", &latencies.sync);
    let name = "oort_peer_round_trip_seconds";
    page.describe(name, "histogram", "time until peers answered probes");
    page.times(name, "", &inside.node.metrics().round_trips);
}

fn http_metrics(page: &mut MetricsPage, counters: &Counters) {
    let open = counters.connections.load(Ordering::Relaxed);
    page.single("oort_http_connections", "gauge", "open HTTP connections", open);
    let refused = counters.connections_refused.load(Ordering::Relaxed);
    let help = "HTTP connections refused because too many were open";
    page.single("oort_http_connections_refused_total", "counter", help, refused);
    page.describe("oort_http_requests_total", "counter", "HTTP requests answered");
    for (method, class, count) in counters.requests() {
        let labels = format!("method=\"{method}\",code=\"{class}\"");
        page.sample("oort_http_requests_total", &labels, count);
    }
    page.describe("oort_http_responses_total", "counter", "HTTP answers by status");
    for (code, count) in counters.responses() {
        page.sample("oort_http_responses_total", &format!("code=\"{code}\""), count);
    }
    let name = "oort_http_method_duration_seconds";
    page.describe(name, "histogram", "time until the answer began, by method");
    for (method, times) in counters.by_method() {
        page.times(name, &format!("method=\"{method}\""), &times);
    }
    let name = "oort_http_request_duration_seconds";
    page.describe(name, "histogram", "time until the answer began");
    let histogram = counters.histogram();
    for (bound_us, count) in BOUNDS_US.iter().zip(histogram.up_to) {
        let bound = *bound_us as f64 / 1e6;
        page.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), count);
    }
    page.sample(&format!("{name}_bucket"), "le=\"+Inf\"", histogram.count);
    page.sample(&format!("{name}_sum"), "", histogram.sum_us as f64 / 1e6);
    page.sample(&format!("{name}_count"), "", histogram.count);
}

fn process_metrics(page: &mut MetricsPage, process: &Process) {
    let cpu = process.cpu_us as f64 / 1e6;
    page.single("process_cpu_seconds_total", "counter", "user and system time", cpu);
    page.single("process_resident_memory_bytes", "gauge", "memory in use", process.resident_bytes);
}

/// What the kernel knows about this process.
struct Process {
    cpu_us: u64,
    /// 0 where there is no `/proc`.
    resident_bytes: u64,
}

impl Process {
    fn read() -> Process {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident_kb = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Process {
            cpu_us: cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1000,
            resident_bytes: resident_kb.unwrap_or(0) * 1024,
        }
    }
}

/// A page of metrics being written.
#[derive(Default)]
struct MetricsPage(String);

impl MetricsPage {
    fn describe(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        match labels {
            "" => self.line(format_args!("{name} {value}\n")),
            _ => self.line(format_args!("{name}{{{labels}}} {value}\n")),
        }
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.describe(name, kind, help);
        self.sample(name, "", value);
    }

    /// The samples of one histogram with these labels.
    fn times(&mut self, name: &str, labels: &str, times: &Histogram) {
        let separator = if labels.is_empty() { "" } else { "," };
        for (bound_us, count) in times.up_to() {
            let bound = bound_us.map_or("+Inf".to_string(), |us| (us as f64 / 1e6).to_string());
            self.sample(&format!("{name}_bucket"), &format!("{labels}{separator}le=\"{bound}\""), count);
        }
        self.sample(&format!("{name}_sum"), labels, times.sum_us() as f64 / 1e6);
        self.sample(&format!("{name}_count"), labels, times.count());
    }

    fn line(&mut self, text: std::fmt::Arguments) {
        self.0.write_fmt(text).expect("writing to a string does not fail");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(escaped("a\"} 1\n\\"), "a\\\"} 1\\n\\\\");
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let process = Process::read();
        assert!(process.cpu_us > 0);
        assert!(process.resident_bytes > 100_000);
    }
}
