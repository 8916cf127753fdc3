//! Which nodes hold a key: partitions, their owners and the preference list.
//!
//! The ring's 2^64 positions are cut into `Q` equal partitions, each owned by one node (strategy 3). The preference
//! list of a partition is found by walking on from it and noting each node the first time it appears: the first `n` are
//! the primaries, the rest fallbacks, in the order in which they stand in. Everything here is a pure function of a
//! [`RingState`], so nodes with the same state agree without talking.
//!
//! Source: Dynamo §4.2, §4.3 and §6.2. Redis Cluster slots are ranges of positions, see [`Position`].

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::types::{NodeId, Partition, Position, Rng};

/// The most nodes a preference list holds: primaries and the fallbacks that may ever stand in.
pub const PREFERENCE_MAX: usize = 32;
/// The most partitions: a Redis slot is never split.
pub const PARTITIONS_MAX: u16 = 16384;

/// How tokens and partitions are laid out. Source: Dynamo §6.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Strategy {
    /// Q/S tokens per node, equal partitions.
    EqualPartitions,
}

/// All that nodes must agree on to compute the same ring.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RingState {
    /// 1 when the cluster is formed; the greater version wins.
    pub version: u64,
    pub strategy: Strategy,
    /// Q, a power of two up to [`PARTITIONS_MAX`].
    pub partitions: u16,
    /// The nodes that own partitions, ascending.
    pub nodes: Vec<NodeId>,
}

impl RingState {
    /// The first ring of a cluster.
    pub fn founding(mut nodes: Vec<NodeId>, partitions: u16) -> RingState {
        nodes.sort_unstable();
        nodes.dedup();
        RingState { version: 1, strategy: Strategy::EqualPartitions, partitions, nodes }
    }

    /// True if this state can be computed: it has nodes and a legal number of partitions.
    pub fn is_valid(&self) -> bool {
        !self.nodes.is_empty()
            && self.partitions.is_power_of_two()
            && self.partitions <= PARTITIONS_MAX
            && self.nodes.windows(2).all(|pair| pair[0] < pair[1])
    }

    /// A hash for comparing states by gossip.
    pub fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.write_u64(self.version);
        hasher.write_u16(self.partitions);
        self.nodes.iter().for_each(|node| hasher.write_u64(node.0));
        hasher.finish()
    }
}

/// A computed ring.
#[derive(Clone, Debug)]
pub struct Ring {
    state: RingState,
    owners: Vec<NodeId>,     // by partition
    preference: Vec<NodeId>, // `stride` nodes per partition
    stride: usize,
}

impl Ring {
    /// Computes owners and preference lists. O(Q · nodes). The state must be valid.
    pub fn new(state: RingState) -> Ring {
        assert!(
            state.is_valid(),
            "a ring of {} nodes and {} partitions",
            state.nodes.len(),
            state.partitions
        );
        let owners = match state.strategy {
            Strategy::EqualPartitions => deal(&state.nodes, state.partitions),
        };
        let stride = state.nodes.len().min(PREFERENCE_MAX);
        let mut preference = Vec::with_capacity(stride * owners.len());
        for partition in 0..owners.len() {
            let start = preference.len();
            for step in 0..owners.len() {
                let node = owners[(partition + step) % owners.len()];
                if !preference[start..].contains(&node) {
                    preference.push(node);
                }
                if preference.len() - start == stride {
                    break;
                }
            }
            // More nodes than partitions: those without a token stand last, in order of their ids.
            let missing: Vec<NodeId> =
                state.nodes.iter().filter(|node| !preference[start..].contains(node)).copied().collect();
            preference.extend(missing.into_iter().take(stride - (preference.len() - start)));
        }
        Ring { state, owners, preference, stride }
    }

    /// What this ring was computed from.
    pub fn state(&self) -> &RingState {
        &self.state
    }

    /// Number of partitions, Q.
    pub fn partitions(&self) -> u16 {
        self.state.partitions
    }

    /// The nodes that own partitions, ascending.
    pub fn nodes(&self) -> &[NodeId] {
        &self.state.nodes
    }

    /// The node that owns `partition`.
    pub fn owner(&self, partition: Partition) -> NodeId {
        self.owners[partition.0 as usize]
    }

    /// The partition of `position`.
    pub fn partition_of(&self, position: Position) -> Partition {
        position.partition(self.state.partitions)
    }

    /// The distinct nodes for `partition`, primaries first, then the fallbacks in the order they stand in.
    ///
    /// The first `n` are the primaries of a bucket with `n` replicas. Source: Dynamo §4.3.
    pub fn preference_list(&self, partition: Partition) -> &[NodeId] {
        let start = partition.0 as usize * self.stride;
        &self.preference[start..start + self.stride]
    }

    /// The distinct nodes for a key at `position`.
    pub fn preference_at(&self, position: Position) -> &[NodeId] {
        self.preference_list(self.partition_of(position))
    }
}

/// Deals partitions to nodes in rounds, each round in another order, so that the work of a lost node spreads over all
/// others. Every node gets as many as any other, give or take one.
fn deal(nodes: &[NodeId], partitions: u16) -> Vec<NodeId> {
    let mut owners = Vec::with_capacity(partitions as usize + nodes.len());
    let mut round = nodes.to_vec();
    let mut rng = Rng::new(partitions as u64);
    while owners.len() < partitions as usize {
        for i in (1..round.len()).rev() {
            round.swap(i, rng.below(i as u64 + 1) as usize);
        }
        owners.extend_from_slice(&round);
    }
    owners.truncate(partitions as usize);
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(nodes: u64, partitions: u16) -> Ring {
        Ring::new(RingState::founding((1..=nodes).map(NodeId).collect(), partitions))
    }

    #[test]
    fn every_preference_list_holds_distinct_nodes() {
        for (nodes, partitions) in [(1, 1), (3, 1024), (5, 64), (40, 128), (20, 8)] {
            let ring = ring(nodes, partitions);
            for p in 0..partitions {
                let mut list = ring.preference_list(Partition(p)).to_vec();
                assert_eq!(list.len(), (nodes as usize).min(PREFERENCE_MAX));
                assert_eq!(list[0], ring.owner(Partition(p)));
                list.sort_unstable();
                list.dedup();
                assert_eq!(list.len(), (nodes as usize).min(PREFERENCE_MAX));
            }
        }
    }

    #[test]
    fn load_is_even_within_one_partition() {
        for nodes in [1, 3, 7, 30] {
            let ring = ring(nodes, 1024);
            let counts: Vec<usize> = ring
                .nodes()
                .iter()
                .map(|node| (0..1024).filter(|&p| ring.owner(Partition(p)) == *node).count())
                .collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }

    #[test]
    fn a_lost_node_is_stood_in_for_by_all_others() {
        let ring = ring(6, 1024);
        let mut stand_ins: Vec<NodeId> = (0..1024)
            .map(Partition)
            .filter(|&p| ring.owner(p) == NodeId(1))
            .map(|p| ring.preference_list(p)[1])
            .collect();
        stand_ins.sort_unstable();
        stand_ins.dedup();
        assert_eq!(stand_ins.len(), 5);
    }
}
