//! Which nodes hold a key now, and which will: the ring's state, and how operators change it.
//!
//! A [`RingState`] is all that nodes must agree on; the ring is a pure function of it, so nodes with the same state
//! agree without talking. Changes are explicit and versioned. A change takes three steps of the version:
//!
//! ```text
//!                        reads     writes        next step when
//!  stable  v             old       old           an operator asks
//!  moving  v+1           old       old and new   every node has its data
//!  arrived v+2           new       old and new   every node that loses data knows it
//!  stable  v+3           new       new
//! ```
//! The numbers of replicas and the quorums of buckets are changed in the same steps: they are part of the state, the
//! old ones belong to the old layout and the new ones to the new, also where the layout stays the same.
//!
//! So two nodes that are one step apart never write where the other does not read. What that keeps true, and why,
//! stands in `docs/ring-change.md`. The greater [`RingState::stamp`] wins: version first, then a hash,
//! so two operators who change the ring at once get one outcome everywhere.
//!
//! Source: Dynamo §4.2, §4.3, §4.8.1. Redis Cluster slots are ranges of positions, see [`Position`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hasher;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use crate::bucket::{BucketProperties, BucketTable, Replication, BUCKETS_MAX};
use crate::causality::Dot;
use crate::placement::{Layout, Placement, RingNode, Strategy, PREFERENCE_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};
use crate::types::{NodeId, Partition, Position, Rng};

/// The most nodes that are remembered as removed; the oldest ids are dropped first.
const REMOVED_MAX: usize = 1024;

/// Names one founding of a cluster: drawn by its founder, and part of every later ring of that cluster. Never 0.
///
/// Two clusters may bear one name, but not one founding: nodes of different foundings refuse each other, because
/// merging two rings would leave the keys of one of them where nobody looks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Founding(pub u64);

impl Founding {
    /// A new one.
    pub fn draw(rng: &mut Rng) -> Founding {
        Founding(rng.next_u64().max(1))
    }

    /// The one of a cluster that is older than foundings. All its nodes know the name, whatever ring each knows, so all
    /// of them derive the same.
    pub fn of_name(cluster: &str) -> Founding {
        Founding(xxh3_64(cluster.as_bytes()).max(1))
    }
}

impl fmt::Display for Founding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Founding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// All that nodes must agree on to compute the same ring.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RingState {
    /// Whose ring this is. States of different foundings never meet.
    pub founding: Founding,
    /// 1 when the cluster is formed; the greater version wins.
    pub version: u64,
    /// Where data are to be.
    pub layout: Layout,
    /// Where they were, while the ring changes: its owners get every write too.
    pub old: Option<Layout>,
    /// All data are with the owners of `layout`: these answer reads. Else those of `old` do.
    pub arrived: bool,
    /// Nodes that an operator removed: nobody waits for them any more.
    pub removed: BTreeSet<NodeId>,
    /// How the data of buckets that were never given another replication are replicated.
    pub usual: Replication,
    /// How those of the others are.
    pub replication: BTreeMap<Bytes, InForce>,
}

/// A bucket's replication.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InForce {
    /// The write that set it.
    pub set_by: Dot,
    pub replication: Replication,
    /// While the ring changes to it: what it was, if it was another.
    pub before: Option<Replication>,
}

/// One way in which buckets are replicated before and after a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Shape {
    pub before: Replication,
    pub after: Replication,
}

/// What an operator wants changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RingChange {
    /// A member begins to hold data.
    Join { node: RingNode },
    /// A node hands over what it holds and stops holding data.
    Leave { node: NodeId },
    /// A node is gone for good: its share, if it has one, is made anew from the other replicas, and it is no member
    /// any more.
    Remove { node: NodeId },
    /// `new` takes the place of `old`, which leaves. `gone`: `old` is gone for good and is removed in the same step, so
    /// nobody waits for it.
    Replace { old: NodeId, new: RingNode, gone: bool },
    /// The node's share changes.
    Weight { node: NodeId, weight: u16 },
    /// The node's zone changes.
    Zone { node: NodeId, zone: String },
}

/// Why the ring cannot be changed so. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RingError {
    /// An earlier change is not over yet.
    Moving { version: u64 },
    /// No node of the ring has this id.
    NotInRing { node: NodeId },
    /// The node holds data already.
    InRing { node: NodeId },
    /// Nobody would be left.
    LastNode,
    /// Weights are 1 to [`WEIGHT_MAX`].
    InvalidWeight { weight: u16 },
    /// Names of zones have at most [`ZONE_BYTES_MAX`] bytes.
    InvalidZone { bytes: usize },
    /// The ring is as it is wanted.
    NoChange,
    /// The node that was asked has been removed from the ring itself.
    Outcast,
    /// No member has this id.
    Unknown { node: NodeId },
    /// The node is to hold data and cannot be reached.
    Down { node: NodeId },
    /// The node is to be given up, and the asked node or the peer `by` reaches it, or did a moment ago.
    Alive { node: NodeId, by: Option<NodeId> },
    /// Too few nodes of the ring have said that the node to be given up is down: it may be the others that are cut off.
    Unconfirmed { node: NodeId, confirmed: usize, needed: usize, nodes: usize },
    /// The share of another removed node is still being made anew, from the copies that this removal would take away.
    RemovalUnderway { node: NodeId, other: NodeId },
    /// No node that can be reached holds another copy of some partitions of buckets with `n` replicas.
    SoleCopies { node: NodeId, n: usize, partitions: usize, of: usize },
}

impl RingChange {
    /// The node that the change gives up without asking for its data.
    pub fn given_up(&self) -> Option<NodeId> {
        match self {
            RingChange::Remove { node } => Some(*node),
            RingChange::Replace { old, gone, .. } => gone.then_some(*old),
            RingChange::Join { .. }
            | RingChange::Leave { .. }
            | RingChange::Weight { .. }
            | RingChange::Zone { .. } => None,
        }
    }

    /// The node that begins to hold data.
    pub fn newcomer(&self) -> Option<NodeId> {
        match self {
            RingChange::Join { node } | RingChange::Replace { new: node, .. } => Some(node.id),
            RingChange::Leave { .. }
            | RingChange::Remove { .. }
            | RingChange::Weight { .. }
            | RingChange::Zone { .. } => None,
        }
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            RingError::Moving { version } => {
                write!(f, "the ring is still changing, to version {version}: wait, or remove the node that holds it up")
            }
            RingError::NotInRing { node } => write!(f, "node {node} is not in the ring"),
            RingError::InRing { node } => write!(f, "node {node} is in the ring already"),
            RingError::LastNode => write!(f, "the last node of a ring cannot go"),
            RingError::InvalidWeight { weight } => {
                write!(f, "weight is {weight}: it must be 1 to {WEIGHT_MAX}")
            }
            RingError::InvalidZone { bytes } => {
                write!(f, "the zone's name has {bytes} bytes: at most {ZONE_BYTES_MAX} are allowed")
            }
            RingError::NoChange => write!(f, "the ring is like that already"),
            RingError::Outcast => {
                write!(f, "an operator has removed this node: ask a node that is in the ring")
            }
            RingError::Unknown { node } => write!(f, "node {node} is no member of this cluster"),
            RingError::Down { node } => {
                write!(f, "node {node} cannot be reached: start it before it is to hold data")
            }
            RingError::Alive { node, by: None } => {
                write!(f, "node {node} is alive: only a node that is gone for good is given up. Stop it, or use 'leave'")
            }
            RingError::Alive { node, by: Some(by) } => write!(
                f,
                "node {node} is alive: this node cannot reach it, but node {by} can. Only a node that is gone for good \
                 is given up"
            ),
            RingError::Unconfirmed { node, confirmed, needed, nodes } => write!(
                f,
                "{confirmed} of {nodes} nodes of the ring say that node {node} is down, {needed} must: it may be this \
                 node that is cut off. If the others are gone for good too, force it"
            ),
            RingError::RemovalUnderway { node, other } => write!(
                f,
                "the copies that node {other} held are still being made anew: wait, or if node {node} is gone for good \
                 and holds that up, force it"
            ),
            RingError::SoleCopies { node, n, partitions, of } => write!(
                f,
                "no other node that can be reached holds {partitions} of {of} partitions of buckets with n = {n}: \
                 without node {node} what they hold is lost. Start the nodes that are down, or force it"
            ),
        }
    }
}

impl std::error::Error for RingError {}

impl RingState {
    /// The first ring of a cluster.
    pub fn founding(
        founding: Founding,
        strategy: Strategy,
        partitions: u16,
        nodes: Vec<RingNode>,
    ) -> RingState {
        let layout = Layout::founding(strategy, partitions, nodes);
        let (removed, usual, replication) = (BTreeSet::new(), Replication::default(), BTreeMap::new());
        RingState { founding, version: 1, layout, old: None, arrived: true, removed, usual, replication }
    }

    /// True if this state can be computed.
    pub fn is_valid(&self) -> bool {
        self.layout.is_valid()
            && self.old.as_ref().is_none_or(Layout::is_valid)
            && (self.arrived || self.old.is_some())
            && self.removed.len() <= REMOVED_MAX
            && self.version <= u32::MAX as u64
            && self.founding.0 != 0
            && self.usual.is_valid()
            && self.replication.len() <= BUCKETS_MAX
            && self.replication.values().all(|one| {
                let is_before_valid = one.before.is_none_or(|before| before.is_valid() && self.old.is_some());
                one.replication.is_valid() && is_before_valid
            })
    }

    /// Whether `node` holds data, is to hold some, or has not handed over all it held.
    pub fn contains(&self, node: NodeId) -> bool {
        let is_in = |layout: &Layout| layout.node(node).is_some();
        is_in(&self.layout) || self.old.as_ref().is_some_and(is_in)
    }

    /// What orders states: the version in the upper half, a hash of everything in the lower.
    ///
    /// Requests carry it, so that a replica can refuse a coordinator that has not heard of a change yet.
    pub fn stamp(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.write_u64(self.founding.0);
        self.layout.hash_into(&mut hasher);
        if let Some(old) = &self.old {
            old.hash_into(&mut hasher);
        }
        hasher.write_u8(self.arrived as u8);
        self.removed.iter().for_each(|node| hasher.write_u64(node.0));
        hasher.write(&[self.usual.n, self.usual.r, self.usual.w]);
        for (bucket, InForce { set_by, replication, before }) in &self.replication {
            hasher.write(bucket);
            hasher.write_u64(set_by.counter);
            hasher.write_u64(set_by.actor.0);
            hasher.write(&[replication.n, replication.r, replication.w]);
            let before = before.map_or([0; 3], |Replication { n, r, w }| [n, r, w]);
            hasher.write(&before);
        }
        self.version << 32 | hasher.finish() >> 32
    }

    /// The state in which `change` begins to be carried out: a pure function, so that asking twice is harmless.
    ///
    /// While the ring changes only a removal is taken, since it may be what the change waits for. Once all data have
    /// arrived it does just that, and the node's share is made anew when the change is over. Errors: [`RingError`].
    pub fn change(&self, change: &RingChange) -> Result<RingState, RingError> {
        if self.old.is_some() && !matches!(change, RingChange::Remove { .. }) {
            return Err(RingError::Moving { version: self.version });
        }
        check_numbers(change)?;
        let has_arrived = self.old.is_some() && self.arrived;
        let in_ring = |node: NodeId| self.layout.node(node).is_some();
        let must_be_in =
            |node: NodeId| if in_ring(node) { Ok(()) } else { Err(RingError::NotInRing { node }) };
        let must_be_out = |node: NodeId| if in_ring(node) { Err(RingError::InRing { node }) } else { Ok(()) };
        let mut nodes = self.layout.nodes.clone();
        let mut removed = self.removed.clone();
        let layout = match change {
            RingChange::Join { node } => {
                must_be_out(node.id)?;
                removed.remove(&node.id);
                nodes.push(node.clone());
                self.layout.change(nodes)
            }
            RingChange::Leave { node } | RingChange::Remove { node } => {
                // A node that has left, or is leaving, may die before it has handed over everything.
                let is_removal = matches!(change, RingChange::Remove { .. });
                if !is_removal {
                    must_be_in(*node)?;
                }
                nodes.retain(|other| other.id != *node && !removed.contains(&other.id));
                if nodes.is_empty() {
                    return Err(RingError::LastNode);
                }
                if is_removal && !removed.insert(*node) {
                    return Err(RingError::NoChange);
                }
                match has_arrived || nodes.len() == self.layout.nodes.len() {
                    true => self.layout.clone(),
                    false => self.layout.change(nodes),
                }
            }
            RingChange::Replace { old, new, gone } => {
                must_be_in(*old)?;
                must_be_out(new.id)?;
                removed.remove(&new.id);
                if *gone {
                    removed.insert(*old);
                }
                self.layout.replace(*old, new.clone())
            }
            RingChange::Weight { node, .. } | RingChange::Zone { node, .. } => {
                must_be_in(*node)?;
                for other in nodes.iter_mut().filter(|other| other.id == *node) {
                    match change {
                        RingChange::Weight { weight, .. } => other.weight = *weight,
                        RingChange::Zone { zone, .. } => other.zone.clone_from(zone),
                        _ => {}
                    }
                }
                self.layout.change(nodes)
            }
        };
        if layout == self.layout && removed == self.removed {
            return Err(RingError::NoChange);
        }
        while removed.len() > REMOVED_MAX {
            removed.pop_first();
        }
        let old = Some(self.old.as_ref().unwrap_or(&self.layout).clone());
        let version = self.version + 1;
        Ok(RingState { version, layout, old, arrived: has_arrived, removed, ..self.clone() })
    }

    /// The state in which the replication that operators want begins to come into force; `None` if it is, or while the
    /// ring changes: then it must wait.
    pub fn adopt(&self, wanted: &BucketTable) -> Option<RingState> {
        if self.old.is_some() {
            return None;
        }
        let mut news = Vec::new();
        for (bucket, entry) in wanted.entries() {
            let known = self.replication.get(bucket);
            let (after, before) =
                (entry.properties.replication(), known.map_or(self.usual, |one| one.replication));
            // An older wish that is still on its way here is no news.
            let is_news = known.is_none_or(|one| one.set_by < entry.set_by);
            if is_news && after != before {
                // Quorums that need not overlap promise nothing that old writes could break, so nothing has to move:
                // that is how operators go on when too few nodes are left.
                let needs_move = after.n != before.n || after.r + after.w > after.n;
                let before = needs_move.then_some(before);
                let one = InForce { set_by: entry.set_by, replication: after, before };
                news.push((bucket.clone(), one));
            }
        }
        if news.is_empty() {
            return None;
        }
        let is_moving = news.iter().any(|(_, one)| one.before.is_some());
        let mut replication = self.replication.clone();
        replication.extend(news);
        let (version, old) = (self.version + 1, is_moving.then(|| self.layout.clone()));
        let next = RingState { version, old, arrived: !is_moving, replication, ..self.clone() };
        next.is_valid().then_some(next)
    }

    /// The replication of `bucket` in the layout that answers reads.
    pub fn serving(&self, bucket: &[u8]) -> Replication {
        self.replication.get(bucket).map_or(self.usual, |one| match one.before {
            Some(before) if !self.arrived => before,
            _ => one.replication,
        })
    }

    /// The replication of `bucket` in the other layout, while the ring changes.
    pub fn other(&self, bucket: &[u8]) -> Replication {
        self.replication.get(bucket).map_or(self.usual, |one| match one.before {
            Some(before) if self.arrived => before,
            _ => one.replication,
        })
    }

    /// True if nodes hold what they held before, but for the buckets whose replication changes.
    pub fn is_of_buckets(&self) -> bool {
        self.old.as_ref() == Some(&self.layout)
    }

    /// True if the replication of `bucket` changes.
    pub fn changes(&self, bucket: &[u8]) -> bool {
        self.replication.get(bucket).is_some_and(|one| one.before.is_some())
    }

    /// All shapes of the buckets that the change concerns.
    pub fn shapes(&self) -> Vec<Shape> {
        let own = self.replication.values().map(|InForce { replication, before, .. }| Shape {
            before: before.unwrap_or(*replication),
            after: *replication,
        });
        let usual = Shape { before: self.usual, after: self.usual };
        let mut shapes: Vec<Shape> = own.chain([usual]).collect();
        if self.is_of_buckets() {
            shapes.retain(|shape| shape.before != shape.after);
        }
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// The state after all nodes that this one waits for are ready. The same whoever computes it.
    pub fn successor(&self) -> RingState {
        let version = self.version + 1;
        if !self.arrived {
            return RingState { version, arrived: true, ..self.clone() };
        }
        let mut replication = self.replication.clone();
        replication.values_mut().for_each(|one| one.before = None);
        // Who was removed since the data arrived goes now.
        let mut nodes = self.layout.nodes.clone();
        nodes.retain(|node| !self.removed.contains(&node.id));
        if nodes.len() < self.layout.nodes.len() {
            let (layout, old) = (self.layout.change(nodes), Some(self.layout.clone()));
            return RingState { version, layout, old, arrived: false, replication, ..self.clone() };
        }
        RingState { version, old: None, arrived: true, replication, ..self.clone() }
    }
}

fn check_numbers(change: &RingChange) -> Result<(), RingError> {
    let weight = match change {
        RingChange::Join { node } | RingChange::Replace { new: node, .. } => node.weight,
        RingChange::Weight { weight, .. } => *weight,
        _ => 1,
    };
    if !(1..=WEIGHT_MAX).contains(&weight) {
        return Err(RingError::InvalidWeight { weight });
    }
    let bytes = match change {
        RingChange::Join { node } | RingChange::Replace { new: node, .. } => node.zone.len(),
        RingChange::Zone { zone, .. } => zone.len(),
        _ => 0,
    };
    match bytes > ZONE_BYTES_MAX {
        true => Err(RingError::InvalidZone { bytes }),
        false => Ok(()),
    }
}

/// A range of positions with the same owners before a change, and the same after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    pub from: Position,
    /// Inclusive.
    pub to: Position,
    pub old: &'a [NodeId],
    pub new: &'a [NodeId],
}

/// A computed ring.
#[derive(Clone, Debug)]
pub struct Ring {
    state: RingState,
    stamp: u64,
    nodes: Vec<NodeId>,
    /// Whom reads ask: the old layout until all data have arrived with the new one.
    serving: Placement,
    /// While the ring changes: the other layout.
    other: Option<Placement>,
}

impl Ring {
    /// Computes the preference lists. The state must be valid.
    pub fn new(state: RingState) -> Ring {
        let (serving, other) = match &state.old {
            Some(old) if state.arrived => (&state.layout, Some(old)),
            Some(old) => (old, Some(&state.layout)),
            None => (&state.layout, None),
        };
        Ring {
            stamp: state.stamp(),
            nodes: serving.nodes.iter().map(|node| node.id).collect(),
            serving: Placement::new(serving, PREFERENCE_MAX),
            other: other.map(|other| Placement::new(other, PREFERENCE_MAX)),
            state,
        }
    }

    /// What this ring was computed from.
    pub fn state(&self) -> &RingState {
        &self.state
    }

    /// The state's stamp.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u16 {
        self.serving.partitions()
    }

    /// The nodes that hold data and answer for them, ascending.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The node that owns `partition`: the first of its preference list.
    pub fn owner(&self, partition: Partition) -> NodeId {
        self.preference_list(partition)[0]
    }

    /// The partition of `position`.
    pub fn partition_of(&self, position: Position) -> Partition {
        self.serving.partition_of(position)
    }

    /// The first position of `partition`.
    pub fn start(&self, partition: Partition) -> Position {
        self.serving.start(partition)
    }

    /// The last position of `partition`, inclusive.
    pub fn end(&self, partition: Partition) -> Position {
        self.serving.end(partition)
    }

    /// The distinct nodes for `partition`, primaries first, then the fallbacks in the order they stand in.
    ///
    /// The first `n` are the primaries of a bucket with `n` replicas. Source: Dynamo §4.3.
    pub fn preference_list(&self, partition: Partition) -> &[NodeId] {
        self.serving.preference_list(partition)
    }

    /// The distinct nodes for a key at `position`.
    pub fn preference_at(&self, position: Position) -> &[NodeId] {
        self.serving.preference_at(position)
    }

    /// While the ring changes: the nodes for a key at `position` in the other layout. They get its writes too.
    pub fn other_at(&self, position: Position) -> Option<&[NodeId]> {
        self.other.as_ref().map(|other| other.preference_at(position))
    }

    /// True while the ring changes.
    pub fn is_moving(&self) -> bool {
        self.other.is_some()
    }

    /// Whether `node` is an owner of a bucket's keys at `position` in any layout.
    pub fn holds(&self, node: NodeId, position: Position, bucket: &[u8]) -> bool {
        let is_in = |list: &[NodeId], n: u8| list.iter().take(n as usize).any(|other| *other == node);
        is_in(self.preference_at(position), self.state.serving(bucket).n)
            || self.other_at(position).is_some_and(|list| is_in(list, self.state.other(bucket).n))
    }

    /// The replication of `bucket` that reads are answered by.
    pub fn replication(&self, bucket: &[u8]) -> Replication {
        self.state.serving(bucket)
    }

    /// The `wanted` properties of `bucket`, with the replication that reads are answered by in place of the wanted one.
    pub fn in_force(&self, bucket: &[u8], wanted: &BucketProperties) -> BucketProperties {
        let Replication { n, r, w } = self.replication(bucket);
        BucketProperties { n, r, w, ..wanted.clone() }
    }

    /// The numbers of replicas that buckets have where reads are answered, ascending.
    pub fn sizes(&self) -> Vec<usize> {
        let own = self.state.replication.keys().map(|bucket| self.state.serving(bucket).n as usize);
        let mut sizes: Vec<usize> = own.chain([self.state.usual.n as usize]).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// While the ring changes: all of it in ranges with the same owners before and after, in ring order.
    pub fn segments(&self) -> Vec<Segment<'_>> {
        let Some(other) = &self.other else { return Vec::new() };
        let (before, after) = match self.state.arrived {
            true => (other, &self.serving),
            false => (&self.serving, other),
        };
        let mut segments = Vec::new();
        let mut from = Position(0);
        loop {
            let (old, new) = (before.partition_of(from), after.partition_of(from));
            let to = before.end(old).min(after.end(new));
            let (old, new) = (before.preference_list(old), after.preference_list(new));
            segments.push(Segment { from, to, old, new });
            match to.0.checked_add(1) {
                Some(next) => from = Position(next),
                None => return segments,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::BucketEntry;
    use crate::types::ActorId;

    fn state(nodes: u64) -> RingState {
        let nodes = (1..=nodes).map(|id| RingNode::new(NodeId(id))).collect();
        RingState::founding(Founding(1), Strategy::EqualPartitions, 64, nodes)
    }

    fn join(id: u64) -> RingChange {
        RingChange::Join { node: RingNode::new(NodeId(id)) }
    }

    #[test]
    fn a_change_moves_arrives_and_settles() {
        let stable = state(3);
        let moving = stable.change(&join(4)).unwrap();
        assert_eq!((moving.version, moving.old.as_ref()), (2, Some(&stable.layout)));
        let ring = Ring::new(moving.clone());
        assert_eq!(ring.nodes(), [NodeId(1), NodeId(2), NodeId(3)], "the old ones answer");
        assert!(ring.other_at(Position(0)).is_some());
        let arrived = moving.successor();
        let ring = Ring::new(arrived.clone());
        assert_eq!(ring.nodes().len(), 4, "the new ones answer");
        assert!(ring.other_at(Position(0)).is_some(), "the old ones get what is written");
        let settled = arrived.successor();
        assert!(!Ring::new(settled.clone()).is_moving());
        assert_eq!((settled.version, Ring::new(settled).nodes().len()), (4, 4));
        assert!(arrived.stamp() > moving.stamp());
        assert!(moving.stamp() > stable.stamp());
    }

    #[test]
    fn replication_comes_into_force_with_the_layout_it_belongs_to() {
        let numbers = |n, r, w| Replication { n, r, w };
        let wish = |n, r, w, counter| {
            let properties = BucketProperties { n, r, w, ..BucketProperties::default() };
            let mut table = BucketTable::default();
            let set_by = Dot { counter, actor: ActorId(1) };
            assert!(table.merge(Bytes::from_static(b"b"), BucketEntry { set_by, properties }));
            table
        };
        let stable = state(5);
        assert_eq!(stable.adopt(&wish(3, 2, 2, 1)), None, "it is like that");
        let weak = stable.adopt(&wish(3, 1, 1, 2)).unwrap();
        assert!(weak.is_valid() && !Ring::new(weak.clone()).is_moving(), "it promises no overlap");
        assert_eq!((weak.serving(b"b"), weak.changes(b"b")), (numbers(3, 1, 1), false));
        assert!(weak.stamp() > stable.stamp());
        assert!(weak.adopt(&wish(3, 2, 2, 3)).is_some_and(|strong| Ring::new(strong).is_moving()));
        let moving = stable.adopt(&wish(5, 2, 4, 2)).unwrap();
        assert!(moving.is_valid() && moving.is_of_buckets() && moving.stamp() > stable.stamp());
        assert_eq!((moving.serving(b"b"), moving.other(b"b")), (numbers(3, 2, 2), numbers(5, 2, 4)));
        assert_eq!((moving.serving(b"c"), moving.changes(b"c")), (numbers(3, 2, 2), false));
        assert_eq!(moving.shapes(), [Shape { before: numbers(3, 2, 2), after: numbers(5, 2, 4) }]);
        assert_eq!(moving.adopt(&wish(1, 1, 1, 3)), None, "it waits");
        assert_eq!(moving.change(&join(6)), Err(RingError::Moving { version: 2 }));
        let arrived = moving.successor();
        assert_eq!((arrived.serving(b"b"), arrived.other(b"b")), (numbers(5, 2, 4), numbers(3, 2, 2)));
        let settled = arrived.successor();
        assert_eq!((settled.serving(b"b"), settled.changes(b"b")), (numbers(5, 2, 4), false));
        assert_eq!(settled.adopt(&wish(1, 1, 1, 1)), None, "an older wish is no news");
        assert!(settled.adopt(&wish(1, 1, 1, 3)).is_some());
        let joining = settled.change(&join(6)).unwrap();
        assert_eq!((joining.serving(b"b"), joining.other(b"b")), (numbers(5, 2, 4), numbers(5, 2, 4)));
        assert_eq!(joining.shapes().len(), 2, "all buckets move");
    }

    #[test]
    fn impossible_changes_say_why() {
        let three = state(3);
        let error = |change| three.change(&change).unwrap_err();
        let (known, unknown) = (NodeId(3), NodeId(9));
        assert_eq!(error(join(3)), RingError::InRing { node: known });
        assert_eq!(error(RingChange::Leave { node: unknown }), RingError::NotInRing { node: unknown });
        assert_eq!(
            error(RingChange::Weight { node: known, weight: 0 }),
            RingError::InvalidWeight { weight: 0 }
        );
        assert_eq!(error(RingChange::Weight { node: known, weight: 100 }), RingError::NoChange);
        let zone = "z".repeat(65);
        assert_eq!(error(RingChange::Zone { node: known, zone }), RingError::InvalidZone { bytes: 65 });
        assert_eq!(state(1).change(&RingChange::Leave { node: NodeId(1) }), Err(RingError::LastNode));
        let moving = three.change(&join(4)).unwrap();
        assert_eq!(moving.change(&join(5)), Err(RingError::Moving { version: 2 }));
    }

    #[test]
    fn a_member_outside_the_ring_is_removed_without_moving_anything() {
        let three = state(3);
        let without = three.change(&RingChange::Remove { node: NodeId(9) }).unwrap();
        assert_eq!((&without.layout, without.old.as_ref()), (&three.layout, Some(&three.layout)));
        assert_eq!(without.removed, BTreeSet::from([NodeId(9)]));
        assert_eq!(without.change(&RingChange::Remove { node: NodeId(9) }), Err(RingError::NoChange));
    }

    #[test]
    fn a_removal_overtakes_a_move_and_reads_stay_where_they_were() {
        let three = state(3);
        let moving = three.change(&join(4)).unwrap();
        let again = moving.change(&RingChange::Remove { node: NodeId(4) }).unwrap();
        assert_eq!((again.version, again.old), (3, Some(three.layout)));
        assert_eq!(again.removed, BTreeSet::from([NodeId(4)]));
    }

    #[test]
    fn a_dead_node_is_replaced_and_then_removed() {
        let replace = |gone| RingChange::Replace { old: NodeId(2), new: RingNode::new(NodeId(4)), gone };
        let moving = state(3).change(&replace(false)).unwrap();
        let without = moving.change(&RingChange::Remove { node: NodeId(2) }).unwrap();
        assert_eq!((&without.layout, &without.old), (&moving.layout, &moving.old), "nothing else moves");
        assert_eq!(without.removed, BTreeSet::from([NodeId(2)]));
        let at_once = state(3).change(&replace(true)).unwrap();
        assert_eq!((at_once.layout, at_once.removed), (without.layout, without.removed), "in one step");
    }

    #[test]
    fn who_is_removed_after_the_data_arrived_goes_with_the_next_change() {
        let arrived = state(3).change(&join(4)).unwrap().successor();
        let again = arrived.change(&RingChange::Remove { node: NodeId(2) }).unwrap();
        assert_eq!((&again.layout, &again.old, again.arrived), (&arrived.layout, &arrived.old, true));
        let moving = again.successor();
        assert_eq!((moving.version, moving.old.as_ref(), moving.arrived), (5, Some(&arrived.layout), false));
        assert!(moving.layout.node(NodeId(2)).is_none());
        assert_eq!(arrived.change(&join(5)), Err(RingError::Moving { version: 3 }));
    }

    #[test]
    fn segments_tile_the_ring() {
        for strategy in [Strategy::TokenRanges { tokens: 8 }, Strategy::EqualPartitions] {
            let nodes = (1..=3).map(|id| RingNode::new(NodeId(id))).collect();
            let ring =
                Ring::new(RingState::founding(Founding(1), strategy, 64, nodes).change(&join(4)).unwrap());
            let mut next = 0;
            for segment in ring.segments() {
                assert_eq!(segment.from.0, next);
                for position in [segment.from, segment.to] {
                    assert_eq!(segment.old, ring.preference_at(position));
                    assert_eq!(Some(segment.new), ring.other_at(position));
                }
                next = segment.to.0.wrapping_add(1);
            }
            assert_eq!(next, 0);
        }
    }
}
