//! Where tokens lie and who owns them: the three strategies of Dynamo §6.2 as pure functions.
//!
//! ```text
//!  strategy  tokens                    partitions                       preference list of a partition
//!  1         T random ones per node    the ranges between tokens        walk from its own token
//!  2         T random ones per node    Q equal ones                     walk from the first token after it
//!  3         Q/S per node, dealt out   Q equal ones, one for a token    walk from its own token
//! ```
//! A walk notes each node the first time it appears; while there are zones that the list has fewer nodes of, nodes of
//! the others wait. So the first `n` of a list are `n` distinct nodes in as many zones as there are, for every `n`.
//!
//! In strategies 1 and 2 a node's tokens follow from its id, so whoever knows the nodes knows the ring. In strategy 3
//! they follow from the nodes *and the layout before*: [`Layout::change`] takes from every node what is above its
//! share, and deals that to those below, so that no more partitions move than must. Everyone who has the same table
//! computes the same layout, without a coordinator.
//!
//! Source: Dynamo §4.2, §6.2. Differs: tokens lie at the beginnings of Redis Cluster slots, so that no slot is split;
//! a range belongs to the token at its beginning, not at its end.

use std::collections::BTreeMap;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use crate::types::{NodeId, Partition, Position, SLOTS};

/// The most nodes a preference list holds: primaries and the fallbacks that may ever stand in.
pub const PREFERENCE_MAX: usize = 32;
/// The most partitions and the most tokens: a Redis slot is never split.
pub const PARTITIONS_MAX: u16 = SLOTS;
/// The greatest weight of a node. The least is 1.
pub const WEIGHT_MAX: u16 = 1000;
/// The weight of a node that was given none.
pub const WEIGHT_DEFAULT: u16 = 100;
/// The longest name of a zone, in bytes.
pub const ZONE_BYTES_MAX: usize = 64;

/// How tokens and partitions are laid out. Source: Dynamo §6.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Strategy {
    /// Strategy 1: random tokens, partitions between them.
    TokenRanges {
        /// T, for a node of the default weight.
        tokens: u16,
    },
    /// Strategy 2: random tokens, equal partitions.
    TokensAndPartitions {
        /// T, for a node of the default weight.
        tokens: u16,
    },
    /// Strategy 3: Q/S tokens per node, equal partitions.
    EqualPartitions,
}

impl Strategy {
    /// The strategy of this number, 1 to 3; 3 has no use for `tokens`.
    pub fn numbered(number: u8, tokens: u16) -> Strategy {
        assert!((1..=3).contains(&number), "there is no strategy {number}");
        match number {
            1 => Strategy::TokenRanges { tokens },
            2 => Strategy::TokensAndPartitions { tokens },
            _ => Strategy::EqualPartitions,
        }
    }

    /// Dynamo's number for it.
    pub fn number(self) -> u8 {
        match self {
            Strategy::TokenRanges { .. } => 1,
            Strategy::TokensAndPartitions { .. } => 2,
            Strategy::EqualPartitions => 3,
        }
    }
}

/// A node as far as placement is concerned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RingNode {
    pub id: NodeId,
    /// Its share of the partitions in relation to the others', 1 to [`WEIGHT_MAX`].
    pub weight: u16,
    /// What fails together: a rack, a room. Replicas are spread over zones. At most [`ZONE_BYTES_MAX`] bytes.
    pub zone: String,
}

impl RingNode {
    /// One of the default weight in the zone without a name.
    pub fn new(id: NodeId) -> RingNode {
        RingNode { id, weight: WEIGHT_DEFAULT, zone: String::new() }
    }
}

/// All that placement follows from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    pub strategy: Strategy,
    /// Q, a power of two up to [`PARTITIONS_MAX`]. Strategy 1 has no use for it.
    pub partitions: u16,
    /// The nodes that hold data, ascending by id.
    pub nodes: Vec<RingNode>,
    /// Strategy 3: each partition's owner, as a place in `nodes`. Empty otherwise.
    owners: Vec<u16>,
}

impl Layout {
    /// The first layout of a cluster.
    pub fn founding(strategy: Strategy, partitions: u16, nodes: Vec<RingNode>) -> Layout {
        let nobody = Layout { strategy, partitions, nodes: Vec::new(), owners: Vec::new() };
        nobody.change(nodes)
    }

    /// The layout with these nodes instead, as near to this one as their weights allow. A pure function.
    ///
    /// Strategy 3: every node owns its share of the partitions, give or take less than one, and the number of
    /// partitions that change their owner is the least that does it. O(Q · nodes).
    pub fn change(&self, mut nodes: Vec<RingNode>) -> Layout {
        nodes.sort_unstable_by_key(|node| node.id);
        nodes.dedup_by_key(|node| node.id);
        let owners = match self.strategy {
            Strategy::EqualPartitions => deal(self, &nodes),
            _ => Vec::new(),
        };
        Layout { strategy: self.strategy, partitions: self.partitions, nodes, owners }
    }

    /// The layout in which `new` has what `old` had. In strategies 1 and 2 a node's tokens are its own, so there this
    /// is one joining and one leaving.
    pub fn replace(&self, old: NodeId, new: RingNode) -> Layout {
        let renamed = |id: NodeId| if id == old { new.id } else { id };
        let owners = self.owners.iter().map(|owner| renamed(self.nodes[*owner as usize].id));
        let owners: Vec<NodeId> = owners.collect();
        let mut nodes: Vec<RingNode> = self.nodes.iter().filter(|node| node.id != old).cloned().collect();
        nodes.push(new.clone());
        nodes.sort_unstable_by_key(|node| node.id);
        let place = |id: NodeId| nodes.partition_point(|node| node.id < id) as u16;
        let owners = owners.into_iter().map(place).collect();
        Layout { strategy: self.strategy, partitions: self.partitions, nodes, owners }
    }

    /// True if it can be computed: nodes in order, legal numbers.
    pub fn is_valid(&self) -> bool {
        let owners = match self.strategy {
            Strategy::EqualPartitions => self.partitions as usize,
            _ => 0,
        };
        let tokens_are_legal = match self.strategy {
            Strategy::TokenRanges { tokens } | Strategy::TokensAndPartitions { tokens } => tokens > 0,
            Strategy::EqualPartitions => true,
        };
        !self.nodes.is_empty()
            && tokens_are_legal
            && self.partitions.is_power_of_two()
            && self.partitions <= PARTITIONS_MAX
            && self.nodes.windows(2).all(|pair| pair[0].id < pair[1].id)
            && self.nodes.iter().all(|node| (1..=WEIGHT_MAX).contains(&node.weight))
            && self.nodes.iter().all(|node| node.zone.len() <= ZONE_BYTES_MAX)
            && self.owners.len() == owners
            && self.owners.iter().all(|owner| (*owner as usize) < self.nodes.len())
    }

    /// The node, if it holds data.
    pub fn node(&self, id: NodeId) -> Option<&RingNode> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok().map(|place| &self.nodes[place])
    }

    /// How many tokens are on the ring: in strategy 3 one per partition, otherwise fewer than T for each node where two
    /// tokens meet at one slot.
    pub fn token_count(&self) -> usize {
        self.tokens().len()
    }

    /// Its size as nodes send and store it. In strategies 1 and 2 the same for every T, since tokens follow from ids.
    pub fn encoded_bytes(&self) -> usize {
        postcard::to_stdvec(self).expect("writing to memory does not fail").len()
    }

    /// Adds what makes this layout different from others to a hash.
    pub fn hash_into(&self, hasher: &mut Xxh3) {
        let tokens = match self.strategy {
            Strategy::TokenRanges { tokens } | Strategy::TokensAndPartitions { tokens } => tokens,
            Strategy::EqualPartitions => 0,
        };
        hasher.write_u8(self.strategy.number());
        hasher.write_u16(tokens);
        hasher.write_u16(self.partitions);
        for node in &self.nodes {
            hasher.write_u64(node.id.0);
            hasher.write_u16(node.weight);
            hasher.write_u64(xxh3_64(node.zone.as_bytes()));
        }
        self.owners.iter().for_each(|owner| hasher.write_u16(*owner));
    }

    /// The tokens in ring order, each with a place in `nodes`.
    fn tokens(&self) -> Vec<(Position, u16)> {
        let per_node = match self.strategy {
            Strategy::TokenRanges { tokens } | Strategy::TokensAndPartitions { tokens } => tokens,
            Strategy::EqualPartitions => {
                let q = self.partitions;
                let owned = self.owners.iter().enumerate();
                return owned.map(|(p, owner)| (Partition(p as u16).start(q), *owner)).collect();
            }
        };
        let mut tokens: Vec<(Position, u64, u16)> = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            let count = per_node as u32 * node.weight as u32 / WEIGHT_DEFAULT as u32;
            for number in 0..count.max(1) {
                let random = mix(node.id, number as u64);
                // Of two tokens at one slot the one with the smaller number has it.
                tokens.push((Position::first_of_slot((random >> 50) as u16), random, place as u16));
            }
        }
        tokens.sort_unstable();
        tokens.dedup_by_key(|token| token.0);
        tokens.into_iter().map(|(position, _, place)| (position, place)).collect()
    }
}

/// Evenly distributed, different for each pair.
fn mix(id: NodeId, number: u64) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.write_u64(id.0);
    hasher.write_u64(number);
    hasher.finish()
}

// Strategy 3

/// How many partitions to both sides are looked at, so that a node and a zone do not own neighbours.
const NEIGHBOURS: usize = 2;

/// The owners of all partitions after `before`, when there are `nodes`, as places among them.
fn deal(before: &Layout, nodes: &[RingNode]) -> Vec<u16> {
    let q = before.partitions as usize;
    let place: BTreeMap<NodeId, u16> = nodes.iter().zip(0..).map(|(node, place)| (node.id, place)).collect();
    let mut owners: Vec<Option<u16>> = match before.owners.is_empty() {
        true => vec![None; q],
        false => {
            let ids = before.owners.iter().map(|owner| before.nodes[*owner as usize].id);
            ids.map(|id| place.get(&id).copied()).collect()
        }
    };
    let mut owned = vec![0u32; nodes.len()];
    owners.iter().flatten().for_each(|owner| owned[*owner as usize] += 1);
    let shares = shares(nodes, &owned, q as u32);
    take_back(&mut owners, &owned, &shares, nodes);
    let mut left: Vec<u32> =
        shares.iter().zip(&owned).map(|(share, has)| share.saturating_sub(*has)).collect();
    for partition in 0..q {
        if owners[partition].is_none() {
            let receiver = receiver(partition, &owners, &left, &shares, nodes);
            owners[partition] = Some(receiver as u16);
            left[receiver] -= 1;
        }
    }
    owners.into_iter().map(|owner| owner.expect("shares add up to Q")).collect()
}

/// How many partitions each node is to own: its ideal, rounded up for those who have more already.
fn shares(nodes: &[RingNode], owned: &[u32], q: u32) -> Vec<u32> {
    let total: u64 = nodes.iter().map(|node| node.weight as u64).sum();
    let ideal = |node: &RingNode| q as u64 * node.weight as u64;
    let mut shares: Vec<u32> = nodes.iter().map(|node| (ideal(node) / total) as u32).collect();
    let rest = q - shares.iter().sum::<u32>();
    let mut fractional: Vec<usize> = (0..nodes.len()).filter(|&i| ideal(&nodes[i]) % total > 0).collect();
    fractional
        .sort_by_key(|&i| (owned[i] <= shares[i], std::cmp::Reverse(ideal(&nodes[i]) % total), nodes[i].id));
    fractional.into_iter().take(rest as usize).for_each(|i| shares[i] += 1);
    shares
}

/// Takes from each node what it owns above its share, at random places.
fn take_back(owners: &mut [Option<u16>], owned: &[u32], shares: &[u32], nodes: &[RingNode]) {
    for (place, node) in nodes.iter().enumerate() {
        let excess = owned[place].saturating_sub(shares[place]) as usize;
        if excess == 0 {
            continue;
        }
        let mut partitions: Vec<usize> =
            (0..owners.len()).filter(|&p| owners[p] == Some(place as u16)).collect();
        partitions.sort_by_key(|&p| mix(node.id, p as u64));
        partitions.into_iter().take(excess).for_each(|p| owners[p] = None);
    }
}

/// Who is to get `partition`, of those with some left to get: least like its neighbours, and with most left.
fn receiver(
    partition: usize,
    owners: &[Option<u16>],
    left: &[u32],
    shares: &[u32],
    nodes: &[RingNode],
) -> usize {
    let q = owners.len();
    let reach = NEIGHBOURS.min(q - 1);
    let likeness = |candidate: usize| {
        let mut likeness = 0;
        for step in 1..=reach {
            for neighbour in [owners[(partition + step) % q], owners[(partition + q - step) % q]] {
                let Some(neighbour) = neighbour else { continue };
                let is_same_zone = nodes[neighbour as usize].zone == nodes[candidate].zone;
                likeness += if neighbour as usize == candidate { 8 } else { is_same_zone as u32 };
            }
        }
        likeness
    };
    // Cross-multiplied, a share that is left is compared without rounding.
    let most_left =
        |a: usize, b: usize| (left[b] as u64 * shares[a] as u64).cmp(&(left[a] as u64 * shares[b] as u64));
    let candidates = (0..nodes.len()).filter(|&candidate| left[candidate] > 0);
    let chosen = candidates.min_by(|&a, &b| {
        likeness(a)
            .cmp(&likeness(b))
            .then_with(|| most_left(a, b))
            .then_with(|| mix(nodes[a].id, partition as u64).cmp(&mix(nodes[b].id, partition as u64)))
    });
    chosen.expect("a partition without an owner is some node's share")
}

/// A computed layout: ranges and their preference lists.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Where each partition begins, ascending; the first at 0.
    starts: Vec<Position>,
    /// `stride` nodes per partition.
    preference: Vec<NodeId>,
    stride: usize,
    /// Q if partitions are equal.
    equal: Option<u16>,
}

impl Placement {
    /// Computes the ranges and preference lists of up to `stride` nodes. The layout must be valid.
    pub fn new(layout: &Layout, stride: usize) -> Placement {
        assert!(layout.is_valid(), "a layout of {} nodes, Q {}", layout.nodes.len(), layout.partitions);
        let tokens = layout.tokens();
        let stride = layout.nodes.len().min(stride);
        let q = layout.partitions;
        let equal = (layout.strategy.number() != 1).then_some(q);
        let starts: Vec<Position> = match equal {
            Some(q) => (0..q).map(|p| Partition(p).start(q)).collect(),
            None => {
                let first = tokens.first().is_some_and(|token| token.0 > Position(0)).then_some(Position(0));
                first.into_iter().chain(tokens.iter().map(|token| token.0)).collect()
            }
        };
        let mut walk = Walk::new(layout, &tokens, stride);
        let mut preference = Vec::with_capacity(stride * starts.len());
        for (partition, start) in starts.iter().enumerate() {
            let first = match layout.strategy {
                // What lies before the first token belongs to the last.
                Strategy::TokenRanges { .. } => {
                    (tokens.partition_point(|token| token.0 <= *start) + tokens.len() - 1) % tokens.len()
                }
                Strategy::TokensAndPartitions { .. } => {
                    let end = Partition(partition as u16).end(q);
                    tokens.partition_point(|token| token.0 <= end) % tokens.len()
                }
                Strategy::EqualPartitions => partition,
            };
            preference.extend(walk.from(first).iter().map(|place| layout.nodes[*place as usize].id));
        }
        Placement { starts, preference, stride, equal }
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u16 {
        self.starts.len() as u16
    }

    /// The partition of `position`.
    pub fn partition_of(&self, position: Position) -> Partition {
        match self.equal {
            Some(q) => position.partition(q),
            None => Partition((self.starts.partition_point(|start| *start <= position) - 1) as u16),
        }
    }

    /// The first position of `partition`.
    pub fn start(&self, partition: Partition) -> Position {
        self.starts[partition.0 as usize]
    }

    /// The last position of `partition`, inclusive.
    pub fn end(&self, partition: Partition) -> Position {
        match self.starts.get(partition.0 as usize + 1) {
            Some(next) => Position(next.0 - 1),
            None => Position(u64::MAX),
        }
    }

    /// The distinct nodes for `partition`, primaries first, then the fallbacks in the order they stand in.
    pub fn preference_list(&self, partition: Partition) -> &[NodeId] {
        let start = partition.0 as usize * self.stride;
        &self.preference[start..start + self.stride]
    }

    /// The distinct nodes for a key at `position`.
    pub fn preference_at(&self, position: Position) -> &[NodeId] {
        self.preference_list(self.partition_of(position))
    }
}

/// Walks the tokens; keeps its memory between walks.
struct Walk<'a> {
    tokens: &'a [(Position, u16)],
    /// Each node's zone, as a number.
    zones: Vec<u16>,
    zone_count: usize,
    stride: usize,
    /// The walk in which each node was last seen.
    seen: Vec<u32>,
    number: u32,
    found: Vec<u16>,
    list: Vec<u16>,
}

impl<'a> Walk<'a> {
    fn new(layout: &Layout, tokens: &'a [(Position, u16)], stride: usize) -> Walk<'a> {
        let mut names: BTreeMap<&str, u16> = BTreeMap::new();
        let zones = layout.nodes.iter().map(|node| {
            let next = names.len() as u16;
            *names.entry(&node.zone).or_insert(next)
        });
        let zones: Vec<u16> = zones.collect();
        let seen = vec![0; zones.len()];
        let zone_count = names.len();
        Walk { tokens, zones, zone_count, stride, seen, number: 0, found: Vec::new(), list: Vec::new() }
    }

    /// The list for a walk from the token `first`. O(tokens passed), with several zones all of them.
    fn from(&mut self, first: usize) -> &[u16] {
        let needed = if self.zone_count > 1 { self.zones.len() } else { self.stride };
        self.number += 1;
        self.found.clear();
        for step in 0..self.tokens.len() {
            let (_, node) = self.tokens[(first + step) % self.tokens.len()];
            if std::mem::replace(&mut self.seen[node as usize], self.number) != self.number {
                self.found.push(node);
                if self.found.len() == needed {
                    break;
                }
            }
        }
        // More nodes than partitions: those without a token stand last, in order of their ids.
        let (seen, number) = (&self.seen, self.number);
        let missing = (0..self.zones.len() as u16).filter(|node| seen[*node as usize] != number);
        self.found.extend(missing.take(needed - self.found.len()));
        if self.zone_count == 1 {
            return &self.found;
        }
        self.list.clear();
        let mut counts = vec![0; self.zone_count];
        while self.list.len() < self.stride {
            let zone_of = |node: u16| self.zones[node as usize] as usize;
            let next = (0..self.found.len()).min_by_key(|&i| (counts[zone_of(self.found[i])], i));
            let node = self.found.remove(next.expect("there are at least as many nodes as the list is long"));
            counts[zone_of(node)] += 1;
            self.list.push(node);
        }
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRATEGIES: [Strategy; 3] = [
        Strategy::TokenRanges { tokens: 16 },
        Strategy::TokensAndPartitions { tokens: 16 },
        Strategy::EqualPartitions,
    ];

    fn nodes(count: u64) -> Vec<RingNode> {
        (1..=count).map(|id| RingNode::new(NodeId(id))).collect()
    }

    fn owned(layout: &Layout) -> Vec<usize> {
        (0..layout.nodes.len() as u16)
            .map(|node| layout.owners.iter().filter(|o| **o == node).count())
            .collect()
    }

    fn owner_ids(layout: &Layout) -> Vec<NodeId> {
        layout.owners.iter().map(|owner| layout.nodes[*owner as usize].id).collect()
    }

    #[test]
    fn partitions_tile_the_ring_and_lists_hold_distinct_nodes() {
        for strategy in STRATEGIES {
            for (count, q) in [(1, 1), (3, 1024), (5, 64), (40, 128), (20, 8)] {
                let placement = Placement::new(&Layout::founding(strategy, q, nodes(count)), PREFERENCE_MAX);
                let mut next = 0;
                for p in (0..placement.partitions()).map(Partition) {
                    let (start, end) = (placement.start(p), placement.end(p));
                    assert_eq!(start.0, next);
                    assert_eq!((placement.partition_of(start), placement.partition_of(end)), (p, p));
                    next = end.0.wrapping_add(1);
                    let mut list = placement.preference_list(p).to_vec();
                    assert_eq!(list.len(), (count as usize).min(PREFERENCE_MAX), "{strategy:?}");
                    list.sort_unstable();
                    list.dedup();
                    assert_eq!(list.len(), (count as usize).min(PREFERENCE_MAX), "{strategy:?}");
                }
                assert_eq!(next, 0, "the last partition ends where the first begins");
            }
        }
    }

    #[test]
    fn the_size_of_a_layout_is_told() {
        let tokens = |strategy| Layout::founding(strategy, 256, nodes(4)).token_count();
        assert_eq!(tokens(Strategy::EqualPartitions), 256);
        assert_eq!(tokens(Strategy::TokenRanges { tokens: 4 }), 16);
        let crowded = tokens(Strategy::TokensAndPartitions { tokens: 10_000 });
        assert!((14_000..16_384).contains(&crowded), "{crowded} of 40000 tokens have a slot to themselves");
        let bytes = |strategy, q| Layout::founding(strategy, q, nodes(4)).encoded_bytes();
        let few = bytes(Strategy::TokenRanges { tokens: 1 }, 256);
        assert_eq!(bytes(Strategy::TokenRanges { tokens: 100 }, 256), few);
        assert_eq!(bytes(Strategy::EqualPartitions, 512) - bytes(Strategy::EqualPartitions, 256), 256);
    }

    #[test]
    fn shares_are_within_one_partition_of_the_ideal() {
        for count in [1, 3, 7, 30] {
            let counts = owned(&Layout::founding(Strategy::EqualPartitions, 1024, nodes(count)));
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
        let mut heavy = nodes(3);
        heavy[0].weight = 200;
        assert_eq!(owned(&Layout::founding(Strategy::EqualPartitions, 1024, heavy)), [512, 256, 256]);
    }

    #[test]
    fn a_join_and_a_leave_move_what_they_must() {
        let three = Layout::founding(Strategy::EqualPartitions, 1024, nodes(3));
        let four = three.change(nodes(4));
        let moved =
            |a: &Layout, b: &Layout| owner_ids(a).iter().zip(owner_ids(b)).filter(|(a, b)| *a != b).count();
        assert_eq!(moved(&three, &four), 256);
        let back = four.change(nodes(3));
        assert_eq!(moved(&four, &back), 256);
        assert_eq!(three.change(nodes(3)), three, "nothing changes without a reason");
    }

    #[test]
    fn a_replaced_node_leaves_its_partitions_to_the_new_one() {
        let three = Layout::founding(Strategy::EqualPartitions, 64, nodes(3));
        let replaced = three.replace(NodeId(2), RingNode::new(NodeId(9)));
        assert!(replaced.is_valid());
        for (before, after) in owner_ids(&three).into_iter().zip(owner_ids(&replaced)) {
            assert_eq!(after, if before == NodeId(2) { NodeId(9) } else { before });
        }
    }

    #[test]
    fn replicas_are_spread_over_zones() {
        for strategy in STRATEGIES {
            let mut six = nodes(6);
            six.iter_mut()
                .zip(["a", "a", "a", "b", "b", "c"])
                .for_each(|(node, zone)| node.zone = zone.into());
            let zone_of = |id: NodeId| six[id.0 as usize - 1].zone.clone();
            let placement = Placement::new(&Layout::founding(strategy, 256, six.clone()), PREFERENCE_MAX);
            for p in (0..placement.partitions()).map(Partition) {
                let list = placement.preference_list(p);
                let mut zones: Vec<String> = list[..3].iter().map(|id| zone_of(*id)).collect();
                zones.sort_unstable();
                assert_eq!(zones, ["a", "b", "c"], "{strategy:?}");
                assert_eq!(list.len(), 6);
            }
        }
    }

    #[test]
    fn a_lost_node_is_stood_in_for_by_all_others() {
        let layout = Layout::founding(Strategy::EqualPartitions, 1024, nodes(6));
        let placement = Placement::new(&layout, PREFERENCE_MAX);
        let lists = (0..1024).map(|p| placement.preference_list(Partition(p)));
        let mut stand_ins: Vec<NodeId> =
            lists.filter(|list| list[0] == NodeId(1)).map(|list| list[1]).collect();
        stand_ins.sort_unstable();
        stand_ins.dedup();
        assert_eq!(stand_ins.len(), 5);
    }
}
