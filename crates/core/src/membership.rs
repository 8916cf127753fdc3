//! Who belongs to the cluster: the member table, the ring's state and the buckets, kept equal by gossip.
//!
//! Each node writes only its own record and raises its version; the greater version wins. Two nodes compare a hash of
//! everything; only if it differs do they send versions, and then only what the other lacks. So a quiet cluster
//! gossips some 40 bytes a round and link.
//!
//! The ring is founded once: when a node knows `cluster_size` members and has the smallest id among them, it writes the
//! first [`RingState`]; everyone who hears of it keeps it, also across restarts. Later ones come from operators; of two
//! states the one with the greater stamp wins. A member that was removed is forgotten, whoever still tells of it.
//!
//! A ring names its [`Founding`]. A node takes the founding of the first ring it learns and keeps it for ever: rings of
//! another founding are another cluster's, whatever its name, and their nodes are refused at the greeting. Nor does a
//! cluster take in a node that has no ring yet and did not ask: an address may belong to another cluster's node by now.
//!
//! Source: Dynamo §4.8.1, §4.8.2; van Renesse et al., "Efficient reconciliation and flow control for anti-entropy
//! protocols" (scuttlebutt), 2008. Differs: a hash first.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::bucket::{BucketEntry, BucketTable};
use crate::causality::Dot;
use crate::config::Addresses;
use crate::placement::{Layout, RingNode, Strategy, WEIGHT_DEFAULT};
use crate::ring::{Founding, InForce, RingState};
use crate::types::{NodeId, Rng};
use crate::vivaldi::Coordinate;

/// The version of the peer protocol that this program speaks. Others are refused.
pub const PROTOCOL: u16 = 8;
/// The most members a table holds.
pub const MEMBERS_MAX: usize = 2000;

/// One node as all others know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    /// Raised by the node itself with every change; starts from its clock at each start.
    pub version: u64,
    /// The version of the peer protocol that it speaks.
    pub protocol: u16,
    pub name: String,
    pub addresses: Addresses,
    /// The node said goodbye: it is down on purpose and will come back under the same id.
    pub stopped: bool,
    /// What the node asks for when it joins the ring. What it has stands in the ring.
    pub weight: u16,
    pub zone: String,
    /// Stamp of the last ring for which the node is ready: it will not forget it, and has all data that it is to hold.
    pub moved: u64,
    /// The node is not in the ring and holds no objects: nobody needs to ask it for any.
    pub empty: bool,
    /// Where it lies in the network. Told anew only when it has moved far: peers that ask it often know better.
    pub coordinate: Coordinate,
}

impl Member {
    /// A node of the default weight that nobody has heard of yet.
    pub fn new(id: NodeId, name: String, addresses: Addresses) -> Member {
        let (weight, zone) = (WEIGHT_DEFAULT, String::new());
        let (version, protocol, stopped, moved, empty) = (0, PROTOCOL, false, 0, false);
        let coordinate = Coordinate::default();
        Member { id, version, protocol, name, addresses, stopped, weight, zone, moved, empty, coordinate }
    }

    /// What the ring is to know of it.
    pub fn ring_node(&self) -> RingNode {
        RingNode { id: self.id, weight: self.weight, zone: self.zone.clone() }
    }
}

/// How two nodes introduce themselves when a link opens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u16,
    pub cluster: String,
    /// Of the sender's ring; `None` until it knows one.
    pub founding: Option<Founding>,
    /// Drawn anew at each start of the process: tells a node that came back from a copy that runs at the same time.
    pub session: u64,
    /// The sender will not give up its founding for another: it has stored something, or has been restarted with it.
    pub is_settled: bool,
    pub member: Member,
    /// The sender's wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// Which of two nodes that meet dials the other of its own accord. A newcomer must, or be known already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dials {
    pub we: bool,
    pub they: bool,
}

/// Why a link is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    Protocol {
        theirs: u16,
    },
    Cluster {
        theirs: String,
        ours: String,
    },
    /// Both have a ring, of different clusters.
    Founding {
        theirs: Founding,
        ours: Founding,
    },
    /// One of the two has no ring yet and did not ask to join the other's.
    Unasked,
    /// The peer is this very process: a node may be its own seed.
    Itself,
    /// Two processes run under one id: a copied data directory.
    Copy {
        id: NodeId,
    },
}

impl Refusal {
    /// The text of [`Refusal::Itself`], by which a node that is its own seed is told so by itself.
    pub const ITSELF: &'static str = "this node is its own seed";
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Refusal::Protocol { theirs } => {
                write!(
                    f,
                    "peer protocol version {theirs} is not supported: this node speaks version {PROTOCOL}"
                )
            }
            Refusal::Cluster { theirs, ours } => {
                write!(
                    f,
                    "wrong cluster name: this node belongs to '{}', not '{}'",
                    ours,
                    theirs.escape_debug()
                )
            }
            Refusal::Founding { theirs, ours } => {
                write!(f, "another cluster of the same name: its founding is {theirs}, this node's is {ours}")
            }
            Refusal::Unasked => {
                write!(f, "one of the two nodes has no ring yet and did not ask to join the other's")
            }
            Refusal::Itself => write!(f, "{}", Refusal::ITSELF),
            Refusal::Copy { id } => {
                write!(f, "two processes have the id {id}: one of their directories is a copy of the other")
            }
        }
    }
}

/// What nodes tell each other about the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Gossip {
    /// A hash of everything known. The receiver answers only if its own differs.
    Hash(u64),
    /// What the sender has, so that the receiver can send what is newer and ask for what is older.
    /// `ring`: the stamp of its state, 0 if it has none.
    /// `founding`: of that ring.
    Versions {
        members: Vec<(NodeId, u64)>,
        founding: Option<Founding>,
        ring: u64,
        buckets: Vec<(Bytes, Dot)>,
        reply: bool,
    },
    /// Records the receiver lacks.
    Delta { members: Vec<Member>, ring: Option<RingState>, buckets: Vec<(Bytes, BucketEntry)> },
    /// Is anybody there? `mono_us` comes back; `wall_ms` lets the receiver compare clocks.
    Ping { mono_us: u64, wall_ms: u64 },
    /// The answer to a ping. `coordinate`: where the sender takes itself to be by now. `sent_us`: its own `mono_us`, by
    /// which the receiver knows the age of other messages.
    Pong { mono_us: u64, wall_ms: u64, coordinate: Coordinate, sent_us: u64 },
    /// These do not answer the sender. Whoever takes them for up asks them.
    Rumour { silent: Vec<NodeId> },
}

/// What merging news changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    pub members: Vec<NodeId>,
    /// Members that an operator has removed.
    pub forgotten: Vec<NodeId>,
    pub ring: bool,
    /// The ring that lost against another: two operators changed it at once, or two were founded.
    pub lost_ring: Option<RingState>,
    /// A ring of this founding, another cluster's, came and was not taken.
    pub foreign: Option<Founding>,
    pub buckets: bool,
}

impl Changes {
    /// True if nothing changed.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && !self.ring && !self.buckets
    }
}

/// Everything gossip keeps equal. Serialized as it is into the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    pub me: NodeId,
    pub members: BTreeMap<NodeId, Member>,
    pub ring: Option<RingState>,
    pub buckets: BucketTable,
}

/// A ring's state as it was stored before foundings had names.
#[derive(Deserialize)]
struct RingStateBefore {
    version: u64,
    layout: Layout,
    old: Option<Layout>,
    arrived: bool,
    removed: BTreeSet<NodeId>,
}

/// The tables as they were stored then.
#[derive(Deserialize)]
struct MembershipBefore {
    me: NodeId,
    members: BTreeMap<NodeId, Member>,
    ring: Option<RingStateBefore>,
    buckets: BucketTable,
}

impl Membership {
    /// Reads a record in the format before. Its ring gets the founding that belongs to the cluster's name.
    pub fn decode_before(record: &[u8], cluster: &str) -> Option<Membership> {
        let MembershipBefore { me, members, ring, buckets } = postcard::from_bytes(record).ok()?;
        let founding = Founding::of_name(cluster);
        // What the properties say was in force at once then.
        let usual = buckets.properties(b"").replication();
        let own =
            buckets.entries().map(|(bucket, entry)| (bucket, entry.set_by, entry.properties.replication()));
        let replication: BTreeMap<Bytes, InForce> = own
            .filter(|(_, _, replication)| *replication != usual)
            .map(|(bucket, set_by, replication)| {
                (bucket.clone(), InForce { set_by, replication, before: None })
            })
            .collect();
        let ring = ring.map(|RingStateBefore { version, layout, old, arrived, removed }| RingState {
            founding,
            version,
            layout,
            old,
            arrived,
            removed,
            usual,
            replication,
        });
        Some(Membership { me, members, ring, buckets })
    }

    /// A table that knows only its own node.
    pub fn new(me: Member, buckets: BucketTable) -> Membership {
        Membership { me: me.id, members: BTreeMap::from([(me.id, me)]), ring: None, buckets }
    }

    /// This node's own record.
    pub fn own(&self) -> &Member {
        &self.members[&self.me]
    }

    /// Changes this node's own record and raises its version, to at least `floor`.
    pub fn update_own(&mut self, floor: u64, change: impl FnOnce(&mut Member)) {
        let own = self.members.get_mut(&self.me).expect("a node is in its own table");
        change(own);
        own.version = own.version.saturating_add(1).max(floor);
    }

    /// A hash of everything here.
    pub fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        for member in self.members.values() {
            hasher.write_u64(member.id.0);
            hasher.write_u64(member.version);
        }
        hasher.write_u64(self.ring_stamp());
        for (bucket, entry) in self.buckets.entries() {
            hasher.write(bucket);
            hasher.write_u64(entry.set_by.counter);
            hasher.write_u64(entry.set_by.actor.0);
        }
        hasher.finish()
    }

    /// The ring's founding; `None` until there is one.
    pub fn founding(&self) -> Option<Founding> {
        self.ring.as_ref().map(|ring| ring.founding)
    }

    /// The stamp of the ring's state, 0 if there is none.
    pub fn ring_stamp(&self) -> u64 {
        self.ring.as_ref().map_or(0, RingState::stamp)
    }

    /// What this node has, for a peer whose hash differs.
    pub fn versions(&self, reply: bool) -> Gossip {
        Gossip::Versions {
            members: self.members.values().map(|m| (m.id, m.version)).collect(),
            founding: self.founding(),
            ring: self.ring_stamp(),
            buckets: self.buckets.entries().map(|(bucket, entry)| (bucket.clone(), entry.set_by)).collect(),
            reply,
        }
    }

    /// What a peer with these versions lacks.
    pub fn delta(&self, members: &[(NodeId, u64)], ring: u64, buckets: &[(Bytes, Dot)]) -> Gossip {
        let theirs: BTreeMap<NodeId, u64> = members.iter().copied().collect();
        let their_buckets: BTreeMap<&Bytes, Dot> =
            buckets.iter().map(|(bucket, dot)| (bucket, *dot)).collect();
        Gossip::Delta {
            members: self
                .members
                .values()
                .filter(|m| theirs.get(&m.id).is_none_or(|version| *version < m.version))
                .cloned()
                .collect(),
            ring: self.ring.clone().filter(|_| ring < self.ring_stamp()),
            buckets: self
                .buckets
                .entries()
                .filter(|(bucket, entry)| their_buckets.get(bucket).is_none_or(|dot| *dot < entry.set_by))
                .map(|(bucket, entry)| (bucket.clone(), entry.clone()))
                .collect(),
        }
    }

    /// Gives up the own ring for one of another founding, if that can be used.
    pub fn yield_to(&mut self, ring: RingState) -> Changes {
        let mut changes = Changes::default();
        if ring.is_valid() {
            let held = self.ring.take();
            self.merge_ring(ring, &mut changes);
            changes.lost_ring = held;
        }
        changes
    }

    /// Takes over whatever is newer. Invalid records are left out; of a peer with a ring of another founding, all are.
    pub fn merge(
        &mut self,
        members: Vec<Member>,
        ring: Option<RingState>,
        buckets: Vec<(Bytes, BucketEntry)>,
    ) -> Changes {
        let mut changes = Changes::default();
        if let Some(ring) = ring {
            if self.founding().is_some_and(|founding| founding != ring.founding) {
                changes.foreign = Some(ring.founding);
                return changes;
            }
            self.merge_ring(ring, &mut changes);
        }
        for member in members {
            if self.merge_member(&member) {
                changes.members.push(member.id);
            }
        }
        for (bucket, entry) in buckets {
            if entry.properties.check().is_ok() {
                changes.buckets |= self.buckets.merge(bucket, entry);
            }
        }
        changes
    }

    /// Founds the ring if that is this node's turn: it knows `cluster_size` members and has the smallest id among them.
    ///
    /// A `cluster_size` of 0 never founds. True if a ring was founded. Two nodes can both found only if they know
    /// different members, so only if more than `cluster_size` nodes were given one: then nodes that have stored nothing
    /// yet give up one of the two, and those that have refuse each other and keep what they have acknowledged.
    pub fn found_ring(
        &mut self,
        cluster_size: u16,
        strategy: Strategy,
        partitions: u16,
        rng: &mut Rng,
    ) -> bool {
        let is_first = self.members.keys().next() == Some(&self.me);
        if self.ring.is_some() || !is_first || cluster_size == 0 || self.members.len() < cluster_size as usize
        {
            return false;
        }
        let nodes = self.members.values().map(Member::ring_node).take(cluster_size as usize).collect();
        let usual = self.buckets.properties(b"").replication();
        let ring = RingState::founding(Founding::draw(rng), strategy, partitions, nodes);
        self.ring = Some(RingState { usual, ..ring });
        true
    }

    fn merge_member(&mut self, member: &Member) -> bool {
        if member.id == self.me {
            // A rumour newer than the truth: an older life of this node had a faster clock. Outbid it.
            if member.version > self.own().version {
                self.update_own(member.version.saturating_add(1), |_| {});
                return true;
            }
            return false;
        }
        if self.ring.as_ref().is_some_and(|ring| ring.removed.contains(&member.id)) {
            return false;
        }
        let is_news = match self.members.get(&member.id) {
            Some(held) => held.version < member.version,
            None => self.members.len() < MEMBERS_MAX,
        };
        if is_news {
            let coordinate = member.coordinate.clamped();
            self.members.insert(member.id, Member { coordinate, ..member.clone() });
        }
        is_news
    }

    fn merge_ring(&mut self, ring: RingState, changes: &mut Changes) {
        if !ring.is_valid() || ring.stamp() <= self.ring_stamp() {
            return;
        }
        if let Some(held) = self.ring.take() {
            if held.version == ring.version {
                changes.lost_ring = Some(held);
            }
        }
        let me = self.me;
        let is_forgotten = |id: &NodeId| *id != me && ring.removed.contains(id);
        changes.forgotten.extend(self.members.keys().copied().filter(is_forgotten));
        self.members.retain(|id, _| !is_forgotten(id));
        self.ring = Some(ring);
        changes.ring = true;
    }
}
