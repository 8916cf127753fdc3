//! What all connections share: the way to the node, the limits, the counters and the room for bodies.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::StatusCode;
use oort_core::bucket::BucketProperties;
use oort_core::client::Reply;
use oort_core::types::NodeId;
use tokio::sync::{watch, Semaphore};

use crate::handle::Handle;
use crate::http::counters::Counters;
use crate::http::refusal::Refusal;
use crate::http::upload::Upload;

/// The unit in which room for request bodies is given out.
const ROOM_BYTES: u64 = 16 << 10;

/// What clients may take from the server. The defaults suit a node with a few gigabytes of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Open connections; further ones are answered 503. Too many: each may hold an object of 32 MiB.
    pub connections_max: usize,
    /// Bytes of a request's line and headers together, at least 8192. Too few: long keys and contexts do not fit.
    pub head_bytes_max: usize,
    /// Bytes of all request bodies being read; at least the largest value a bucket may allow, or such a value never
    /// finds room.
    pub bodies_bytes_max: u64,
    /// How long a client may take to send a request's head, or leave a connection idle. Too short: keep-alive is
    /// useless; too long: idle clients use up the connections.
    pub head_timeout: Duration,
    /// How long a body may wait for room, and then take to arrive. Too short: slow links cannot store large values.
    pub body_timeout: Duration,
    /// How long a client may leave its answer unread before the connection is cut. Too long: stalled clients hold
    /// memory.
    pub write_timeout: Duration,
    /// How long a stop waits for requests in flight.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            head_bytes_max: 64 << 10,
            bodies_bytes_max: 256 << 20,
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// One per server.
pub struct Shared {
    pub handle: Handle,
    pub limits: Limits,
    pub counters: Counters,
    pub stopping: watch::Receiver<bool>,
    body_room: Semaphore,
    names: RandomState,
    names_made: AtomicU64,
    /// The node that is served.
    pub node: NodeId,
}

impl Shared {
    /// A server's beginning.
    pub fn new(handle: Handle, node: NodeId, limits: Limits, stopping: watch::Receiver<bool>) -> Shared {
        Shared {
            handle,
            counters: Counters::default(),
            stopping,
            body_room: Semaphore::new(limits.bodies_bytes_max.div_ceil(ROOM_BYTES) as usize),
            limits,
            names: RandomState::new(),
            names_made: AtomicU64::new(0),
            node,
        }
    }

    /// Milliseconds since 1970, by the time that the node goes by.
    pub fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall_ms = since.map_or(0, |elapsed| elapsed.as_millis() as u64);
        wall_ms.saturating_add_signed(self.handle.correction_ms())
    }

    /// 128 bits in hexadecimal that nobody else has or can guess: a keyed hash of a running number, the key being
    /// drawn by the standard library from the system's entropy.
    pub fn new_name(&self) -> String {
        let number = self.names_made.fetch_add(1, Ordering::Relaxed);
        let half = |side: u8| self.names.hash_one((number, side));
        format!("{:016x}{:016x}", half(0), half(1))
    }

    /// The properties that `bucket` was given, of which `n`, `r` and `w` may not be in force yet.
    pub async fn properties(&self, bucket: &Bytes) -> Result<BucketProperties, Refusal> {
        let bucket = bucket.clone();
        let look = self.handle.inspect(move |inside| inside.node.buckets().properties(&bucket).clone());
        Ok(look.await?)
    }

    /// The properties of `bucket` with the `n`, `r` and `w` that are in force: those that requests go by.
    pub async fn properties_in_force(&self, bucket: &Bytes) -> Result<BucketProperties, Refusal> {
        let bucket = bucket.clone();
        let look = self.handle.inspect(move |inside| {
            let wanted = inside.node.buckets().properties(&bucket);
            inside.node.ring().map_or_else(|| wanted.clone(), |ring| ring.in_force(&bucket, wanted))
        });
        Ok(look.await?)
    }

    /// Reads a request's body of at most `limit_bytes`, waiting until there is room for it beside the other bodies.
    pub async fn read_body(&self, body: &mut Upload, limit_bytes: u64) -> Result<Bytes, Refusal> {
        let announced = body.announced_bytes();
        if announced.is_some_and(|bytes| bytes > limit_bytes) {
            return Err(Refusal::too_large("body", limit_bytes));
        }
        let room = announced.unwrap_or(limit_bytes).div_ceil(ROOM_BYTES) as u32;
        let patience = self.limits.body_timeout;
        let Ok(Ok(_room)) = tokio::time::timeout(patience, self.body_room.acquire_many(room)).await else {
            return Err(Refusal::unavailable("too many request bodies are being read: try again later"));
        };
        body.read(limit_bytes, patience).await
    }

    /// The answer when the node's reply does not fit the request: a bug, but not one to stop serving for.
    pub fn unexpected(reply: &Reply) -> Refusal {
        let kind = match reply {
            Reply::Object(_) => "an object",
            Reply::Updated(_) => "an update's outcome",
            Reply::Called(_) => "an active object's answer",
            Reply::Page(_) => "a page of keys",
            Reply::BucketSet => "a bucket's confirmation",
            Reply::RingPlan(_) => "a plan of the ring",
        };
        tracing::error!(kind, "the node's reply does not fit the request");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("unexpected reply: {kind}"))
    }
}
