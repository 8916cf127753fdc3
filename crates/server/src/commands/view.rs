//! What commands about the node itself may look at.

use oort_core::config::NodeConfig;
use oort_core::detector::Health;
use oort_core::membership::Membership;
use oort_core::metrics::Metrics;
use oort_core::ring::Ring;
use oort_core::types::NodeId;

use super::knobs::Knobs;
use super::session::Session;
use super::stats::Stats;

/// The node a connection talks to, as the event loop sees it. Only called by commands that are not about data.
///
/// The methods have the names of those of `oort_core::node::Node`.
pub trait View {
    fn config(&self) -> &NodeConfig;
    fn membership(&self) -> &Membership;
    /// `None` until the cluster is formed.
    fn ring(&self) -> Option<&Ring>;
    /// This node's opinion of `peer`, itself included.
    fn health(&self, peer: NodeId) -> Health;
    fn metrics(&self) -> &Metrics;
    /// Why the disk refuses writes, if it does.
    fn read_only(&self) -> Option<&str>;
    /// The cluster as this node sees it, as JSON; see [`crate::status`].
    fn status(&self) -> String;
    /// What the process knows of itself.
    fn server(&self) -> ServerStats;
    /// Visits the sessions of all open connections but the one that asks.
    fn sessions(&self, visit: &mut dyn FnMut(&Session));
    /// Settings that clients may change, to no effect.
    fn knobs(&self) -> &Knobs;
    /// About how many keys of a bucket live whose first owner is this node, and how many of them expire.
    fn count_first_owned(&self, bucket: &[u8]) -> Option<(u64, u64)>;
    /// What is counted of commands.
    fn stats(&self) -> &Stats;
    /// The monotonic clock, in microseconds.
    fn now_us(&self) -> u64;
    /// 64 random bits, new with each call.
    fn random(&self) -> u64;
}

/// Numbers for `INFO`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerStats {
    pub process_id: u32,
    pub uptime_ms: u64,
    /// Open connections of Redis clients.
    pub connections: u64,
    /// The most of them.
    pub connections_max: u64,
    /// Connections ever accepted.
    pub connections_accepted: u64,
    /// Connections cut off because clients took too much memory.
    pub connections_evicted: u64,
    /// Connections refused because there were too many.
    pub connections_rejected: u64,
    /// Times when a connection could not be accepted for want of descriptors.
    pub accept_failures: u64,
    /// Memory that Redis clients take: what they have sent and not been answered, and replies they have not read.
    pub client_bytes: u64,
    /// The most of it.
    pub client_bytes_max: u64,
    /// Commands ever started.
    pub commands: u64,
    /// Requests of the core not yet answered.
    pub requests_in_flight: u64,
    /// Resident memory of the process.
    pub memory_bytes: u64,
    /// The most it ever was.
    pub memory_bytes_max: u64,
    /// Processor time of the program itself and in the system, in microseconds.
    pub cpu_us: (u64, u64),
    /// Bytes the store takes on disk.
    pub store_bytes: u64,
}
