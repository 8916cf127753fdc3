//! Commands on the node as a process: `INFO`, `CONFIG`, `TIME`, `WAIT`.

use std::fmt::Write;

use oort_core::bucket::VALUE_BYTES_LIMIT;
use oort_core::config::SyncMode;
use oort_core::detector::Health;

use super::errors::{refusal, shortened, NOT_AN_INTEGER, SYNTAX};
use super::knobs::Knob;
use super::session::{bucket_of, DATABASES};
use super::{cluster, glob, reply, Call, Outcome};
use crate::resp::Value;

/// The version of Redis whose commands, options and error texts these follow; clients choose features by it.
pub const REDIS_VERSION: &str = "7.2.0";

type WriteLines = fn(&Call, &mut String);

/// The sections of `INFO` in order, each with the function that writes its lines.
const SECTIONS: [(&str, WriteLines); 11] = [
    ("Server", server_section),
    ("Clients", clients_section),
    ("Memory", memory_section),
    ("Persistence", persistence_section),
    ("Stats", stats_section),
    ("Replication", replication_section),
    ("CPU", cpu_section),
    ("Commandstats", commandstats_section),
    ("Errorstats", errorstats_section),
    ("Cluster", cluster_section),
    ("Oort", oort_section),
];

/// `INFO [section ...]`
pub fn info(call: &mut Call) -> Outcome {
    let asked: Vec<String> =
        (1..call.count()).map(|i| shortened(call.arg(i), 64).to_ascii_lowercase()).collect();
    let all = asked.is_empty()
        || asked.iter().any(|section| ["default", "all", "everything"].contains(&section.as_str()));
    let mut text = String::new();
    for (title, write_lines) in SECTIONS {
        if all || asked.contains(&title.to_ascii_lowercase()) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let _ = write!(text, "# {title}\r\n");
            write_lines(call, &mut text);
        }
    }
    if all || asked.iter().any(|section| section == "keyspace") {
        text.push_str(if text.is_empty() { "# Keyspace\r\n" } else { "\r\n# Keyspace\r\n" });
        keyspace_section(call, &mut text);
    }
    reply(Value::Verbatim(*b"txt", text.into()))
}

fn field(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = write!(text, "{name}:{value}\r\n");
}

fn server_section(call: &Call, text: &mut String) {
    let stats = call.view.server();
    let membership = call.view.membership();
    field(text, "redis_version", REDIS_VERSION);
    field(text, "redis_mode", "cluster");
    field(text, "oort_version", env!("CARGO_PKG_VERSION"));
    field(text, "os", std::env::consts::OS);
    field(text, "arch_bits", usize::BITS);
    field(text, "process_id", stats.process_id);
    field(text, "run_id", cluster::node_name(membership.me));
    field(text, "tcp_port", cluster::split_address(&membership.own().addresses.redis).1);
    field(text, "server_time_usec", call.now_ms.saturating_mul(1000));
    field(text, "uptime_in_seconds", stats.uptime_ms / 1000);
    field(text, "uptime_in_days", stats.uptime_ms / 86_400_000);
    field(text, "node_name", &call.view.config().name);
}

fn clients_section(call: &Call, text: &mut String) {
    let stats = call.view.server();
    field(text, "connected_clients", stats.connections);
    field(text, "maxclients", stats.connections_max);
    field(text, "blocked_clients", 0);
    field(text, "requests_in_flight", stats.requests_in_flight);
}

fn memory_section(call: &Call, text: &mut String) {
    let memory_bytes = call.view.server().memory_bytes;
    field(text, "used_memory", memory_bytes);
    field(text, "used_memory_human", format!("{:.2}M", memory_bytes as f64 / (1 << 20) as f64));
    field(text, "used_memory_rss", memory_bytes);
    field(text, "used_memory_peak", call.view.server().memory_bytes_max);
    field(text, "mem_clients_normal", call.view.server().client_bytes);
    field(text, "maxmemory", 0);
    field(text, "maxmemory_policy", "noeviction");
}

fn persistence_section(call: &Call, text: &mut String) {
    field(text, "loading", 0);
    field(text, "aof_enabled", 1);
    field(text, "aof_last_write_status", if call.view.read_only().is_some() { "err" } else { "ok" });
    field(text, "store_bytes", call.view.server().store_bytes);
}

fn stats_section(call: &Call, text: &mut String) {
    let stats = call.view.server();
    let (totals, rates) = (call.view.stats().totals(), call.view.stats().rates(call.view.now_us()));
    field(text, "total_connections_received", stats.connections_accepted);
    field(text, "total_commands_processed", totals.commands);
    field(text, "instantaneous_ops_per_sec", rates.commands);
    field(text, "total_net_input_bytes", totals.input_bytes);
    field(text, "total_net_output_bytes", totals.output_bytes);
    field(text, "instantaneous_input_kbps", format!("{:.2}", rates.input_kib));
    field(text, "instantaneous_output_kbps", format!("{:.2}", rates.output_kib));
    field(text, "rejected_connections", stats.connections_rejected);
    // Expired and deleted objects are forgotten together, once every member holds them alike.
    field(text, "expired_keys", call.view.metrics().dead_forgotten);
    field(text, "evicted_keys", 0);
    field(text, "evicted_clients", stats.connections_evicted);
    field(text, "keyspace_hits", totals.hits);
    field(text, "keyspace_misses", totals.misses);
    field(text, "total_error_replies", totals.errors);
    field(text, "accept_failures", stats.accept_failures);
}

/// The keys that this node is the first owner of, so that the sum over all nodes is that of the cluster. `DBSIZE` asks
/// all nodes and is exact.
fn keyspace_section(call: &Call, text: &mut String) {
    for database in 0..DATABASES {
        match call.view.count_first_owned(&bucket_of(database)) {
            Some((keys, expires)) if keys > 0 => {
                field(text, &format!("db{database}"), format!("keys={keys},expires={expires},avg_ttl=0"));
            }
            _ => {}
        }
    }
}

fn cpu_section(call: &Call, text: &mut String) {
    let (user_us, system_us) = call.view.server().cpu_us;
    field(text, "used_cpu_sys", format!("{:.6}", system_us as f64 / 1e6));
    field(text, "used_cpu_user", format!("{:.6}", user_us as f64 / 1e6));
    field(text, "used_cpu_sys_children", "0.000000");
    field(text, "used_cpu_user_children", "0.000000");
}

fn commandstats_section(call: &Call, text: &mut String) {
    call.view.stats().command_lines(|name, line| field(text, &name, line));
}

fn errorstats_section(call: &Call, text: &mut String) {
    call.view.stats().error_lines(|name, line| field(text, &name, line));
}

/// Each node is a primary of some keys and a replica of others; to Redis clients it is a master.
fn replication_section(_: &Call, text: &mut String) {
    field(text, "role", "master");
    field(text, "connected_slaves", 0);
}

fn cluster_section(call: &Call, text: &mut String) {
    let membership = call.view.membership();
    let up = membership.members.keys().filter(|&&id| call.view.health(id) == Health::Up).count();
    field(text, "cluster_enabled", 1);
    field(text, "cluster_name", &call.view.config().cluster);
    field(text, "cluster_formed", call.view.ring().is_some() as u8);
    field(text, "cluster_known_nodes", membership.members.len());
    field(text, "cluster_nodes_up", up);
}

fn oort_section(call: &Call, text: &mut String) {
    if let Some(why) = call.view.read_only() {
        field(text, "read_only", why.escape_debug());
    }
    call.view.metrics().each(|name, _, _, value| field(text, name, value));
}

/// `CONFIG GET pattern [pattern ...]`
pub fn config_get(call: &mut Call) -> Outcome {
    let patterns: Vec<Vec<u8>> = (2..call.count()).map(|i| call.arg(i).to_ascii_lowercase()).collect();
    let is_wanted = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
    let mut all = settings(call);
    all.extend(call.view.knobs().all());
    all.sort_unstable();
    let pairs = all
        .into_iter()
        .filter(|(name, _)| is_wanted(name))
        .map(|(name, value)| (Value::name(name), Value::text(value)))
        .collect();
    reply(Value::Map(pairs))
}

/// Redis's names with the values that describe this node best, then our own.
fn settings(call: &Call) -> Vec<(&'static str, String)> {
    let config = call.view.config();
    let addresses = &call.view.membership().own().addresses;
    let is_batch = config.sync == SyncMode::Batch;
    vec![
        ("appendfsync", if is_batch { "always" } else { "everysec" }.into()),
        ("cluster-enabled", "yes".into()),
        ("cluster-node-timeout", config.suspect_ms.to_string()),
        ("databases", DATABASES.to_string()),
        ("maxclients", call.view.server().connections_max.to_string()),
        ("maxmemory", "0".into()),
        ("maxmemory-clients", call.view.server().client_bytes_max.to_string()),
        ("min-replicas-to-write", "0".into()),
        ("notify-keyspace-events", String::new()),
        ("port", cluster::split_address(&addresses.redis).1.to_string()),
        ("proto-max-bulk-len", VALUE_BYTES_LIMIT.to_string()),
        ("requirepass", String::new()),
        ("timeout", "0".into()),
        ("oort-cluster", config.cluster.clone()),
        ("oort-name", config.name.clone()),
        ("oort-requests-max", config.requests_max.to_string()),
        ("oort-timeout-ms", config.timeout_ms.to_string()),
    ]
}

/// `CONFIG SET parameter value [parameter value ...]`: a node is configured by its file, flags and environment.
///
/// All or nothing: what only tunes Redis is remembered, and any setting may be set to what it is.
pub fn config_set(call: &mut Call) -> Outcome {
    if !call.count().is_multiple_of(2) {
        return Err(SYNTAX);
    }
    let settings = settings(call);
    let failed = |name: &str, why: &str| {
        let name = shortened(name.as_bytes(), 128);
        refusal(format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"))
    };
    let mut tuned: Vec<(&'static Knob, &[u8])> = Vec::new();
    for i in (2..call.count()).step_by(2) {
        let (name, value) = (shortened(call.arg(i), 128), call.arg(i + 1));
        if let Some(knob) = Knob::find(&name) {
            knob.check(value).map_err(|why| failed(&name, &why))?;
            if tuned.iter().any(|(other, _)| other.name == knob.name) {
                return Err(failed(&name, "duplicate parameter"));
            }
            tuned.push((knob, value));
            continue;
        }
        match settings.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
            Some((_, is)) if is.as_bytes().eq_ignore_ascii_case(value) => {}
            Some(_) => return Err(failed(&name, "can't set immutable config")),
            None => {
                return Err(refusal(format!(
                    "ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
                )))
            }
        }
    }
    tuned.into_iter().for_each(|(knob, value)| call.view.knobs().set(knob, value));
    reply(Value::OK)
}

/// `CONFIG REWRITE`
pub fn config_rewrite(_: &mut Call) -> Outcome {
    Err(refusal("ERR The server is running without a config file"))
}

/// `CONFIG RESETSTAT`
///
/// Starts what `INFO` counts of commands anew; metrics only grow while the node runs.
pub fn config_resetstat(call: &mut Call) -> Outcome {
    call.view.stats().reset(call.view.now_us());
    reply(Value::OK)
}

/// `TIME`
pub fn time(call: &mut Call) -> Outcome {
    reply(Value::Array(vec![
        Value::text((call.now_ms / 1000).to_string()),
        Value::text((call.now_ms % 1000 * 1000).to_string()),
    ]))
}

/// `WAIT numreplicas timeout`: the copies that each acknowledged write of this connection has beside the first.
pub fn wait(call: &mut Call) -> Outcome {
    call.integer(1)?;
    let timeout = call.integer(2).map_err(|_| refusal("ERR timeout is not an integer or out of range"))?;
    if timeout < 0 {
        return Err(refusal("ERR timeout is negative"));
    }
    // A cluster smaller than `w` has as many copies as nodes.
    let copies = call.view.ring().map_or(0, |ring| {
        let w = ring.replication(call.session.bucket()).w;
        ring.nodes().len().min(w as usize)
    });
    reply(Value::Integer(copies.saturating_sub(1) as i64))
}

/// `OBJECT FREQ`, `OBJECT IDLETIME`, which need what no replica records.
pub fn object_unsupported(_: &mut Call) -> Outcome {
    Err(refusal("ERR accesses are not tracked: only OBJECT ENCODING is offered"))
}

/// A slot number. Errors: out of range.
pub fn slot(call: &Call, i: usize) -> Result<u16, Value> {
    let number = call.integer(i).map_err(|_| NOT_AN_INTEGER)?;
    match u16::try_from(number) {
        Ok(slot) if slot < oort_core::types::SLOTS => Ok(slot),
        _ => Err(refusal("ERR Invalid slot")),
    }
}
