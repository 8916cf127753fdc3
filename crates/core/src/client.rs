//! The small set of operations that every interface translates to, their answers and their errors.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::active::{self, Call, Caller, Failure};
use crate::bucket::{BucketProperties, PropertyError};
use crate::mutation::{Mutation, MutationError};
use crate::object::Object;
use crate::ring::{RingChange, RingError};
use crate::types::{NodeId, ObjectKey, Position};

/// Pairs a request with its reply. Chosen by whoever sends the request, unique among those in flight.
pub type RequestId = u64;

/// The longest time a request may be given, in milliseconds.
pub const TIMEOUT_MS_MAX: u32 = 60_000;
/// The most keys one page of a scan returns.
pub const SCAN_LIMIT_MAX: u32 = 1000;

/// Quorum numbers that override the bucket's, each 1 to the bucket's `n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Quorum {
    /// Answers a get waits for, and a mutation that must read first.
    pub r: Option<u8>,
    /// Durable copies a put waits for.
    pub w: Option<u8>,
    /// How many of the `r` must be primaries. 0: any.
    pub primary_r: u8,
    /// How many of the `w` must be primaries. 0: any.
    pub primary_w: u8,
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// Reads an object with all its siblings.
    Get { key: ObjectKey, quorum: Quorum },
    /// Reads an object; one that is active is asked.
    Call { key: ObjectKey, call: Call, quorum: Quorum },
    /// Changes an object. `caller`: for those that are active; `None`: nobody in particular.
    Update { key: ObjectKey, mutation: Mutation, quorum: Quorum, want: Want, caller: Option<Arc<Caller>> },
    /// Lists live keys of a bucket in ring order.
    Scan(Scan),
    /// Sets a bucket's properties on all nodes.
    SetBucket { bucket: Bytes, properties: BucketProperties },
    /// Changes which nodes hold what, or says what a change would move. What `guard` refuses is refused whoever asks;
    /// `force` carries out a removal all the same that may lose data.
    ChangeRing { change: RingChange, plan_only: bool, force: bool },
}

impl Operation {
    /// True if the outcome depends on what is stored, so that `r` replicas are asked before anything is written, and
    /// one node, the key's home, evaluates it.
    pub fn reads_first(&self) -> bool {
        match self {
            Operation::Update { mutation, want, .. } => mutation.needs_read() || want.before,
            _ => false,
        }
    }
}

/// Which states of the object an update's reply carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Want {
    /// The state before (`SET ... GET`, `GETDEL`).
    pub before: bool,
    /// The state after (`INCR`, `APPEND`, `VPUT`, `returnbody`).
    pub after: bool,
}

/// One page of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scan {
    /// The bucket whose keys are listed. Empty, which no bucket's name is: for every live key of any bucket the name of
    /// its bucket is listed, as often as there are keys.
    pub bucket: Bytes,
    /// The first position to look at, inclusive.
    pub from: Position,
    /// The last position to look at, inclusive.
    pub to: Position,
    /// About how many keys to return, 1 to [`SCAN_LIMIT_MAX`]. A page that takes long has fewer, or none; keys that
    /// share a cursor ([`Position::cursor`]) are never split over pages.
    pub limit: u32,
    /// Return just the number of keys: cheap for the network where the replicas hold the same, not for the disk.
    pub count_only: bool,
}

impl Scan {
    /// True if the names of buckets are listed, not the keys of one.
    pub fn is_of_buckets(&self) -> bool {
        self.bucket.is_empty()
    }
}

/// A request with the time it may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub operation: Operation,
    /// Milliseconds until a timeout error; `None`: the node's default. At most [`TIMEOUT_MS_MAX`].
    pub timeout_ms: Option<u32>,
}

/// What a client gets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The merged object of a get; unknown (empty context) if no replica has it.
    Object(Object),
    Updated(Updated),
    /// What an active object answered to a call.
    Called(Called),
    Page(Page),
    /// The properties are set here and on their way to all nodes.
    BucketSet,
    /// The ring is changing here, and the news is on its way to all nodes; or what would change.
    RingPlan(RingPlan),
}

/// What a change of the ring moves and where it ends. Shares are counted over the replicas of the default bucket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RingPlan {
    /// Version of the ring in which data move.
    pub version: u64,
    /// Parts of the ring that get another first owner, and how many there are, in 1/16384 of the ring (its slots).
    pub slots_moved: u32,
    pub slots: u32,
    /// For each node of either ring: replicas it holds before and after, and those it must be sent, in slots.
    pub nodes: Vec<NodePlan>,
}

/// One node's part in a [`RingPlan`], in slots: each is 1/16384 of a copy of all data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodePlan {
    pub node: NodeId,
    pub before: u32,
    pub after: u32,
    pub receives: u32,
}

/// The outcome of an update.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Updated {
    /// False: the condition did not hold, or there was nothing to delete or expire; nothing was written.
    pub applied: bool,
    pub before: Option<Object>,
    pub after: Option<Object>,
}

/// The answer of an active object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Called {
    pub value: active::Value,
    /// `w` replicas hold what the call changed; else it changed nothing, or that is written later.
    pub is_kept: bool,
}

/// One page of keys.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// Live keys in ring order; empty if only the count was asked.
    pub keys: Vec<Bytes>,
    /// Number of live keys found.
    pub count: u64,
    /// Where the next page starts, the first position of a cursor and never 0; `None`: the end was reached.
    pub next: Option<Position>,
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ClientError {
    /// Too few replicas answered in time, or can answer at all. A put may have been stored by some.
    QuorumUnavailable { action: Action, answered: u8, needed: u8, replicas: u8, waited_ms: u64 },
    /// Too few replicas can be reached for a put or a scan. Nothing was changed.
    TooFewReachable { reachable: u8, needed: u8 },
    /// The node does not know a ring yet. Try again.
    NotReady,
    /// This node's disk refuses writes. Nothing was changed; other nodes may accept.
    ReadOnly { detail: String },
    /// This node's clock is too far ahead of its peers'. Nothing was changed; other nodes may accept.
    ClockSkew { ahead_ms: i64 },
    /// A quorum number outside 1 to `n`. Nothing was changed.
    InvalidQuorum { name: QuorumName, value: u8, n: u8 },
    /// A timeout of 0 or above [`TIMEOUT_MS_MAX`].
    InvalidTimeout { timeout_ms: u32 },
    /// A context from the far future. Nothing was changed.
    InvalidContext,
    /// The mutation cannot be applied to what is stored. Nothing was changed.
    Mutation(MutationError),
    /// An active object could not or would not do it.
    Active(ActiveError),
    /// Properties out of range. Nothing was changed.
    Property(PropertyError),
    /// The ring cannot be changed so. Nothing was changed.
    Ring(RingError),
    /// Too many requests are waiting. Nothing was changed; try again later.
    Busy { waiting: u64 },
    /// The node that ran the request was lost before it answered, or its disk failed. It may or may not have happened.
    OutcomeUnknown,
    /// The node is stopping. Nothing was changed; try another.
    Stopping,
}

/// Why an active object did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ActiveError {
    /// There is no such key.
    Missing,
    /// The value is no active object.
    NotActive,
    /// The bucket's `active` is false.
    Forbidden,
    /// This node runs no code.
    NoSandbox,
    /// Its code refused to be stored or overwritten: the handler returned nil or false.
    Refused { handler: Handler },
    /// The handler returned what it may not: not the object, a string, a number or nil; or of `selectReplicas`, no
    /// owners.
    Returned { handler: Handler },
    /// The handler asked for something that takes time.
    CannotWait { handler: Handler },
    /// The function is called by the store alone.
    Reserved { handler: Handler },
    /// So many calls wait for one that waits for its node.
    Crowded { waiting: u32 },
    /// The caller drove it to a limit lately, and may call that function again after so many milliseconds.
    Rests { for_ms: u32 },
    /// Another write took its place while it waited.
    Replaced,
    /// It waited for its node, or for the calls before it, until there was no time left.
    TimedOut,
    /// No node that can be reached has a copy of it: those that it chose do not answer, or have lost it.
    NoCopy,
    /// Its code failed.
    Failed(Failure),
    /// The handler called `deleteSelf`, which only others may.
    CannotDelete { handler: Handler },
}

/// The functions that the store itself calls, by those names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Handler {
    OnGet,
    OnPut,
    OnUpdate,
    OnTimer,
    OnMerge,
    SelectReplicas,
}

impl Handler {
    const ALL: [Handler; 6] = [
        Handler::OnGet,
        Handler::OnPut,
        Handler::OnUpdate,
        Handler::OnTimer,
        Handler::OnMerge,
        Handler::SelectReplicas,
    ];

    /// As objects define it.
    pub fn name(self) -> &'static str {
        match self {
            Handler::OnGet => "onGet",
            Handler::OnPut => "onPut",
            Handler::OnUpdate => "onUpdate",
            Handler::OnTimer => "onTimer",
            Handler::OnMerge => "onMerge",
            Handler::SelectReplicas => "selectReplicas",
        }
    }

    /// The handler of this name.
    pub fn of(name: &[u8]) -> Option<Handler> {
        Handler::ALL.into_iter().find(|handler| handler.name().as_bytes() == name)
    }
}

impl fmt::Display for ActiveError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ActiveError::Missing => write!(f, "no such key"),
            ActiveError::NotActive => write!(f, "the key holds a plain value, no active object"),
            ActiveError::Forbidden => write!(f, "active objects are not allowed in this bucket"),
            ActiveError::NoSandbox => write!(f, "this node runs no active objects"),
            ActiveError::Refused { handler } => {
                let name = handler.name();
                write!(f, "the object refuses: {name} returned nil or false")
            }
            ActiveError::Returned { handler } => {
                let name = handler.name();
                match handler {
                    Handler::SelectReplicas => {
                        write!(f, "{name} must return an array with owners of the key")
                    }
                    _ => write!(f, "{name} must return self, a string, a number, or nil or false to refuse"),
                }
            }
            ActiveError::CannotWait { handler } => {
                write!(f, "{} cannot wait for get, put or lookup: it must return at once", handler.name())
            }
            ActiveError::Reserved { handler } => {
                write!(f, "{} is called by the store alone", handler.name())
            }
            ActiveError::Crowded { waiting } => {
                write!(f, "{waiting} calls wait for this object: try again later")
            }
            ActiveError::Rests { for_ms } => {
                write!(
                    f,
                    "this call reached a limit of the object and is not run again for {for_ms} ms: ASO.INFO has the limit"
                )
            }
            ActiveError::Replaced => write!(f, "the object was written by others while the call waited"),
            ActiveError::TimedOut => write!(f, "the call waited for its node until its time was up"),
            ActiveError::CannotDelete { handler } => {
                write!(
                    f,
                    "{} cannot call deleteSelf: onGet, onTimer and functions that are called can",
                    handler.name()
                )
            }
            ActiveError::NoCopy => {
                write!(f, "no node that can be reached has a copy of the object")
            }
            ActiveError::Failed(failure) => match failure.trace.is_empty() {
                true => write!(f, "{failure}"),
                false => {
                    let calls: Vec<&str> = failure.trace.lines().collect();
                    write!(f, "{failure} at {}", calls.join(", "))
                }
            },
        }
    }
}

/// What a quorum was needed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    Get,
    Put,
    Scan,
}

/// Which of the numbers was out of range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum QuorumName {
    R,
    W,
    PrimaryR,
    PrimaryW,
}

impl ClientError {
    /// True if it is the node that ran the request which cannot write: nothing was changed, and another node may.
    pub fn is_of_node(&self) -> bool {
        matches!(self, ClientError::ReadOnly { .. } | ClientError::ClockSkew { .. })
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ClientError::QuorumUnavailable { action, answered, needed, replicas, waited_ms } => {
                let done = match action {
                    Action::Get | Action::Scan => "answered",
                    Action::Put => "acknowledged",
                };
                write!(
                    f,
                    "quorum unavailable: {answered} of {needed} replicas {done} within {waited_ms} ms ({replicas} asked)"
                )
            }
            ClientError::TooFewReachable { reachable, needed } => {
                write!(f, "quorum unavailable: {reachable} of {needed} replicas can be reached")
            }
            ClientError::NotReady => write!(f, "the cluster is not formed yet"),
            ClientError::ReadOnly { detail } => write!(f, "this node refuses writes: {detail}"),
            ClientError::ClockSkew { ahead_ms } => {
                let (off_ms, side) =
                    (ahead_ms.unsigned_abs(), if *ahead_ms < 0 { "behind" } else { "ahead of" });
                write!(f, "this node's clock is {off_ms} ms {side} its peers': writes are refused")
            }
            ClientError::InvalidQuorum { name, value, n } => {
                let name = match name {
                    QuorumName::R => "r",
                    QuorumName::W => "w",
                    QuorumName::PrimaryR => "pr",
                    QuorumName::PrimaryW => "pw",
                };
                write!(f, "{name} is {value}: it must be 1 to the bucket's n, which is {n}")
            }
            ClientError::InvalidTimeout { timeout_ms } => {
                write!(f, "timeout of {timeout_ms} ms: it must be 1 to {TIMEOUT_MS_MAX} ms")
            }
            ClientError::InvalidContext => write!(f, "context lies in the far future"),
            ClientError::Mutation(error) => error.fmt(f),
            ClientError::Active(error) => error.fmt(f),
            ClientError::Property(error) => error.fmt(f),
            ClientError::Ring(error) => error.fmt(f),
            ClientError::Busy { waiting } => write!(f, "{waiting} requests are waiting: try again later"),
            ClientError::OutcomeUnknown => {
                write!(f, "the coordinating node was lost or its disk failed: the write may or may not have happened")
            }
            ClientError::Stopping => write!(f, "the node is stopping"),
        }
    }
}

impl std::error::Error for ClientError {}
