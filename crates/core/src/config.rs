//! What one node must be told: its cluster, its addresses and its limits.

use serde::{Deserialize, Serialize};

use crate::bucket::BucketProperties;
use crate::placement::{Strategy, WEIGHT_DEFAULT};

/// Where a node can be reached, as `host:port` texts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Addresses {
    pub peer: String,
    pub redis: String,
    pub http: String,
}

impl Addresses {
    /// The host of the peer address, without its port and brackets.
    pub fn peer_host(&self) -> &str {
        let host = self.peer.rsplit_once(':').map_or(self.peer.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']'])
    }
}

/// When acknowledged writes reach the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SyncMode {
    /// Before they are acknowledged: one sync for all writes of a turn.
    Batch,
    /// At most this many milliseconds later. A power failure of `w` machines at once can lose that much.
    Interval { ms: u64 },
}

/// A deliberately broken variant of the protocol, for the simulator to catch.
#[cfg(feature = "sabotage")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sabotage {
    #[default]
    None,
    /// Writes are acknowledged before they are durable.
    AckBeforeDurable,
    /// Hints are not written.
    DropHints,
    /// A put replaces everything its coordinator holds, whatever its context says.
    IgnoreContext,
    /// A restarted node reads its clock instead of its lease, and keeps its actor.
    ForgetLease,
    /// Any answer from a replica counts as a write acknowledgement.
    CountRefusals,
    /// A put's coordinator counts each acknowledgement, also a repeated one.
    CountDuplicates,
    /// A node that dropped handed-over objects keeps its actor.
    KeepActor,
    /// A changed ring settles before data have moved.
    SettleEarly,
    /// Of the versions of an active object that two homes wrote, the newest one is taken.
    KeepOneHome,
    /// Deleted objects are forgotten when they are found.
    ForgetUnasked,
    /// A node is given up though others reach it.
    AskNoOpinion,
    /// Rings of other foundings are taken for the own cluster's.
    IgnoreFounding,
    /// A node takes in whoever answers at a member's address, asked or not.
    TakeInUnasked,
    /// A node goes by its own clock, whatever the others' say.
    TrustOwnClock,
    /// The address in a greeting is not believed if another is known.
    KeepAddress,
    /// What a failing call of an active object has changed stays.
    UndoNothing,
    /// A failing call takes an active object back to what is stored of it.
    UndoAll,
    /// A replica's page of a listing claims to hold the row behind it, too.
    LoseRowBehindPage,
    /// Timers run as soon as they are due, whatever that leaves of the node's time.
    AdmitTimers,
    /// A node takes the time in which it stood still itself for the silence of its peers.
    AccuseWhenLate,
    /// A peer that has been silent for long is given up like one whose link is closed.
    GiveUpSilent,
    /// A replica takes in what a home writes, whether or not it has seen all that is held.
    StoreUncovered,
    /// The home of an active object counts the copies of nodes that stand in for owners.
    CountStandIns,
    /// What an operator wants of a bucket's replication is in force at once.
    AdoptAtOnce,
    /// A range of a value is overwritten one byte further on.
    ShiftRange,
    /// A put is acknowledged with one copy less than asked for.
    CountOneCopyLess,
    /// A get is answered with one answer less than asked for.
    CountOneAnswerLess,
    /// A home runs a timer whenever it is due there, whoever has run it in that interval.
    ForgetRuns,
    /// What an object changes before it refuses to be overwritten stays.
    KeepRefused,
}

/// The most dead objects in one question. The answer names those that not all may forget by their place in it.
pub const ROWS_ASKED_MAX: usize = 512;

/// How much work is done at a time. Too little: more rounds; too much: clients wait for a turn that takes long. The
/// results are the same, which the simulator tries with the smallest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Rows in a page of a transfer.
    pub transfer_rows: usize,
    /// Rows looked at for one such page.
    pub transfer_visited: usize,
    /// Rows that were given away and wait to be dropped.
    pub verified_rows: usize,
    /// Of these, dropped in a step.
    pub dropped_rows: usize,
    /// Hints for one node that has left, given to others in a step.
    pub turned_over_hints: usize,
    /// Rows that a replica looks at for one page of a listing.
    pub listed_rows: u32,
    /// Rows that all replicas together look at before a page is answered.
    pub visited_rows: u32,
    /// Rows whose sums are checked in a step.
    pub checked_rows: usize,
    /// Repairs of anti-entropy in flight.
    pub repairs: usize,
    /// Dead rows in one question whether all hold them, at most [`ROWS_ASKED_MAX`].
    pub collected_rows: usize,
    /// Objects with holders of their own choice that are looked at in a step.
    pub placed_objects: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            transfer_rows: 128,
            transfer_visited: 4096,
            verified_rows: 16_384,
            dropped_rows: 512,
            turned_over_hints: 256,
            listed_rows: 2048,
            visited_rows: 2048,
            checked_rows: 512,
            repairs: 32,
            collected_rows: ROWS_ASKED_MAX,
            placed_objects: 64,
        }
    }
}

/// A node's configuration. The defaults suit a cluster in one data centre.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// Nodes of different clusters refuse each other.
    pub cluster: String,
    /// For people; not unique.
    pub name: String,
    pub addresses: Addresses,
    /// Number of nodes that form the ring when the cluster is created, the same on all of them. 0: never form one, wait
    /// for the cluster's.
    pub cluster_size: u16,
    /// Partitions of the ring at creation, a power of two. Too few: uneven load in large clusters; too many: larger
    /// tables.
    pub partitions: u16,
    /// How partitions are laid out, chosen at creation.
    pub strategy: Strategy,
    /// This node's share of the data in relation to the others', 1 to [`WEIGHT_MAX`](crate::placement::WEIGHT_MAX).
    pub weight: u16,
    /// What fails together with this node: replicas are spread over zones.
    pub zone: String,
    pub sync: SyncMode,
    /// A request's time limit unless it brings its own, in milliseconds. Too small: slow disks become errors.
    pub timeout_ms: u32,
    /// How long a get waits before it asks one more replica, in microseconds. Too small: more work per get.
    pub hedge_us: u64,
    /// How long a peer may leave a message unanswered before it is suspect, in milliseconds. Too small: a busy peer is
    /// taken for a dead one and gets hints; too large: requests wait for a dead one.
    pub suspect_ms: u64,
    /// Time between two rounds of gossip and pings, in milliseconds.
    pub gossip_ms: u64,
    /// Time between two comparisons of a partition with another owner, in milliseconds. 0 turns anti-entropy off.
    pub entropy_ms: u64,
    /// How long all members must have held a deleted or expired object alike before it is forgotten, in milliseconds;
    /// 0: it never is. Too small: what was under way longer comes back. At least a request's longest time limit and a
    /// message's, and a quarter more.
    pub collect_after_ms: u64,
    /// Most bytes a second that are asked for while partitions move to this node. Too large: clients wait; too small:
    /// changes of the ring take long.
    pub transfer_bytes_per_s: u64,
    /// Most hints given back to an owner that have not been answered yet.
    pub handoff_window: usize,
    /// Readings further ahead of the own clock than this are refused, in milliseconds.
    pub clock_skew_ms_max: u64,
    /// Memory for the hashes and dots of objects that are not in memory, 40 bytes each. Too small: a write reads the
    /// old row from the disk of every replica, and a get from two; too large: memory.
    pub known_bytes: usize,
    /// Memory that active objects may take while they are loaded, in bytes: beyond, those are unloaded that were not
    /// used for longest. Too small: they are loaded again and again.
    pub active_bytes: usize,
    /// Most client requests in flight; further ones are answered BUSY.
    pub requests_max: usize,
    /// Properties of buckets that were never given any.
    pub bucket_defaults: BucketProperties,
    /// Names the machine's current boot. A node that was killed but finds the same boot has lost no write.
    pub boot: u64,
    pub tuning: Tuning,
    /// What is broken on purpose.
    #[cfg(feature = "sabotage")]
    pub sabotage: Sabotage,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        NodeConfig {
            cluster: "oort".into(),
            name: "node".into(),
            addresses: Addresses::default(),
            cluster_size: 1,
            partitions: 1024,
            strategy: Strategy::EqualPartitions,
            weight: WEIGHT_DEFAULT,
            zone: String::new(),
            sync: SyncMode::Batch,
            timeout_ms: 1000,
            hedge_us: 5_000,
            suspect_ms: 50,
            gossip_ms: 500,
            entropy_ms: 250,
            collect_after_ms: 180_000,
            transfer_bytes_per_s: 64 << 20,
            handoff_window: 128,
            clock_skew_ms_max: 60_000,
            known_bytes: 48 << 20,
            active_bytes: 64 << 20,
            requests_max: 100_000,
            bucket_defaults: BucketProperties::default(),
            boot: 0,
            tuning: Tuning::default(),
            #[cfg(feature = "sabotage")]
            sabotage: Sabotage::None,
        }
    }
}
