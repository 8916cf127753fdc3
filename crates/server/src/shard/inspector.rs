//! The loop as commands see it, and this process as the system counts it.

use oort_core::config::NodeConfig;
use oort_core::detector::Health;
use oort_core::membership::Membership;
use oort_core::metrics::Metrics;
use oort_core::ring::Ring;
use oort_core::types::NodeId;

use super::endpoint::Kind;
use super::Shard;
use crate::commands::knobs::Knobs;
use crate::commands::session::Session;
use crate::commands::stats::Stats;
use crate::commands::view::{ServerStats, View};
use crate::status;

/// The loop as commands see it.
pub(super) struct Inspector<'a> {
    pub shard: &'a Shard,
}

impl View for Inspector<'_> {
    fn config(&self) -> &NodeConfig {
        self.shard.node.config()
    }
    fn membership(&self) -> &Membership {
        self.shard.node.membership()
    }
    fn ring(&self) -> Option<&Ring> {
        self.shard.node.ring()
    }
    fn health(&self, peer: NodeId) -> Health {
        self.shard.node.health(peer)
    }
    fn metrics(&self) -> &Metrics {
        self.shard.node.metrics()
    }
    fn read_only(&self) -> Option<&str> {
        self.shard.node.read_only()
    }
    fn status(&self) -> String {
        status::json(&self.shard.inside()).to_string()
    }
    fn server(&self) -> ServerStats {
        let now = self.shard.clocks.now.get();
        ServerStats {
            process_id: std::process::id(),
            uptime_ms: now.wall_ms.saturating_sub(self.shard.clocks.started_wall_ms),
            connections: self.shard.numbers.clients as u64,
            connections_max: self.shard.options.connections_max as u64,
            connections_accepted: self.shard.numbers.accepted,
            connections_evicted: self.shard.numbers.evicted,
            connections_rejected: self.shard.numbers.rejected,
            accept_failures: self.shard.numbers.accept_failures,
            client_bytes: self.shard.client_bytes as u64,
            client_bytes_max: self.shard.options.client_bytes_max as u64,
            commands: self.shard.numbers.commands,
            requests_in_flight: self.shard.node.requests_in_flight() as u64,
            memory_bytes: resident_bytes(),
            memory_bytes_max: resident_bytes_max(),
            cpu_us: processor_us(),
            store_bytes: self.shard.node.store_bytes(),
        }
    }
    fn sessions(&self, visit: &mut dyn FnMut(&Session)) {
        for endpoint in self.shard.endpoints.iter().flatten() {
            if let Kind::Client(client) = &endpoint.kind {
                visit(&client.session);
            }
        }
    }
    fn knobs(&self) -> &Knobs {
        &self.shard.knobs
    }
    fn count_first_owned(&self, bucket: &[u8]) -> Option<(u64, u64)> {
        self.shard.node.count_first_owned(bucket, self.shard.clocks.now.get().wall_ms)
    }
    fn stats(&self) -> &Stats {
        &self.shard.stats
    }
    fn now_us(&self) -> u64 {
        self.shard.clocks.now.get().mono_us
    }
    fn random(&self) -> u64 {
        self.shard.numbers.random.borrow_mut().next_u64()
    }
}

/// Resident memory of this process in bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// The most resident memory this process ever had, in bytes; 0 where the system does not tell.
fn resident_bytes_max() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().map_or(0, |kib| kib * 1024)
}

/// Processor time of this process in the program itself and in the system, in microseconds; 0 where it is not told.
fn processor_us() -> (u64, u64) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return (0, 0) };
    // The program's name, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let tick_us = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let time = |i: usize| fields.get(i).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0) * tick_us;
    (time(11), time(12))
}
