//! One node: everything wired together behind `step`.
//!
//! A turn of the loop is: any number of [`Node::step`] calls, one [`Node::commit`], then release the outputs. Nothing
//! an output claims is untrue after a power failure, because outputs leave only after the commit.

use crate::bucket::BucketTable;
use crate::client::{ClientError, Reply, Request, RequestId};
use crate::config::NodeConfig;
use crate::detector::Health;
use crate::membership::{Hello, Member, Membership, Refusal};
use crate::message::Message;
use crate::metrics::Metrics;
use crate::ring::Ring;
use crate::store::{Store, StoreError};
use crate::types::{NodeId, Now};

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed; due by [`Node::next_wakeup`] at the latest.
    Tick,
    /// A client asks. `id` is unique among this node's requests in flight.
    Request { id: RequestId, request: Request },
    /// A peer says something.
    Message { from: NodeId, message: Message },
    /// The link to a peer is open: messages to it will be sent. `hello` passed [`Node::check`].
    LinkUp { hello: Hello },
    /// The link to a peer is closed: messages sent may be lost, and none can be sent.
    LinkDown { peer: NodeId },
    /// Stop: refuse new requests, tell the peers.
    Stop,
}

/// Everything a node can want.
#[derive(Clone, Debug)]
pub enum Output {
    /// Answer a client.
    Reply {
        id: RequestId,
        result: Result<Reply, ClientError>,
    },
    /// Send to a peer, in order, if the link is open; else drop.
    Send { to: NodeId, message: Message },
    /// Keep a link open to this peer at this address from now on, instead of any before.
    Connect { peer: NodeId, address: String },
    /// Something an operator may want to read.
    Event(Event),
}

/// What a log should tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    RingFormed {
        version: u64,
        nodes: usize,
        partitions: u16,
    },
    /// Two rings were founded; this one was given up.
    RingLost {
        version: u64,
        nodes: usize,
    },
    MemberChanged {
        member: Member,
    },
    HealthChanged {
        peer: NodeId,
        from: Health,
        to: Health,
    },
    CorruptRow {
        detail: String,
    },
    ActorRenewed {
        why: &'static str,
    },
    StoreRefuses {
        detail: String,
    },
    StoreAccepts,
    ClockAhead {
        ahead_ms: u64,
    },
    ClockAgrees,
    HandoffDone {
        owner: NodeId,
        delivered: u64,
    },
}

/// Why a node cannot start on what its store holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenError {
    Store(StoreError),
    /// The directory belongs to another cluster.
    ForeignCluster {
        found: String,
    },
    /// The node's own records have another format version.
    ForeignFormat {
        found: u8,
    },
    /// The node's own records cannot be read.
    Malformed {
        record: &'static str,
    },
}

/// A node of the cluster: a deterministic state machine over a [`Store`].
pub struct Node {
    config: NodeConfig,
    membership: Membership,
    ring: Option<Ring>,
    metrics: Metrics,
    store: Box<dyn Store>,
}

impl Node {
    /// Starts on what `store` holds: a new identity if it is empty, else the old one.
    ///
    /// `seed` feeds the node's generator (gossip targets, a new identity); it must differ between nodes and starts.
    pub fn open(config: NodeConfig, seed: u64, store: Box<dyn Store>, now: Now) -> Result<Node, OpenError> {
        unimplemented!()
    }

    /// Handles one input; what follows from it is appended to `out`, and may be released after [`Node::commit`].
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {}

    /// Makes durable what the steps of this turn stored. Call once per turn, before anything in `out` is released.
    ///
    /// If the disk refuses, outputs that would claim otherwise are replaced by errors.
    pub fn commit(&mut self, now: Now, out: &mut Vec<Output>) {}

    /// When a [`Input::Tick`] is due at the latest, in `mono_us`. Ask again after every turn.
    pub fn next_wakeup(&self) -> u64 {
        0
    }

    pub fn id(&self) -> NodeId {
        self.membership.me
    }

    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// How this node introduces itself on a new link.
    pub fn hello(&self, now: Now) -> Hello {
        unimplemented!()
    }

    /// Whether a link with this peer is acceptable. Errors: other protocol, other cluster, own id.
    pub fn check(&self, hello: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    /// Members, buckets and the ring's state.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    pub fn buckets(&self) -> &BucketTable {
        &self.membership.buckets
    }

    /// The computed ring; `None` until the cluster is formed.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// This node's opinion of `peer`, itself included.
    pub fn health(&self, peer: NodeId) -> Health {
        Health::Up
    }

    /// Smoothed round trip to `peer` in microseconds, 0 if unknown.
    pub fn rtt_us(&self, peer: NodeId) -> u64 {
        0
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Why the disk refuses writes, if it does.
    pub fn read_only(&self) -> Option<&str> {
        None
    }

    /// Client requests not yet answered.
    pub fn requests_in_flight(&self) -> usize {
        0
    }

    /// Bytes the store takes.
    pub fn store_bytes(&self) -> u64 {
        self.store.size_bytes()
    }

    /// The engine itself, for the simulator's disk faults and checkers.
    pub fn store_mut(&mut self) -> &mut dyn Store {
        &mut *self.store
    }

    /// True if a client's write of `key` here would be coordinated here, so that requests for one key stay in order.
    pub fn coordinates(&self, key: &crate::types::ObjectKey) -> bool {
        true
    }
}
