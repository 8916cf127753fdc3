//! What keeps an operator's change of the ring from losing data, whoever sends it, through whatever door.
//!
//! [`RingState::change`](crate::ring::RingState::change) says whether a change makes sense; this says whether it is
//! safe as far as the asked node knows: who is a member, who is alive, and who holds the copies that are left. A node
//! that is given up is never asked for its data again, so before that happens a majority of the ring must say that it
//! is down, see [`Opinions`]. An operator who knows better can force what may lose data, but not the removal of a node
//! that is alive: there is `leave` for that.
//!
//! Source: Dynamo §4.8.1. Differs: the paper trusts its operators.

use std::collections::BTreeMap;

use crate::detector::Health;
use crate::ring::{Ring, RingChange, RingError, RingState};
use crate::types::{NodeId, Partition};

/// What the asked node knows of the cluster.
pub struct Knowledge<'a> {
    pub me: NodeId,
    pub ring: &'a Ring,
    /// Numbers of replicas that buckets have.
    pub sizes: &'a [usize],
    pub is_member: &'a dyn Fn(NodeId) -> bool,
    pub health: &'a dyn Fn(NodeId) -> Health,
}

/// The state in which `change` begins to be carried out, if nothing speaks against it. Errors: [`RingError`].
pub fn changed(known: &Knowledge, change: &RingChange, force: bool) -> Result<RingState, RingError> {
    let state = known.ring.state();
    if state.removed.contains(&known.me) {
        return Err(RingError::Outcast);
    }
    if let Some(node) = change.newcomer() {
        check_newcomer(known, node)?;
    }
    let given_up = change.given_up();
    if let Some(node) = given_up.filter(|node| !(known.is_member)(*node) && !state.contains(*node)) {
        return Err(RingError::NotInRing { node });
    }
    let next = state.change(change)?;
    let Some(node) = given_up else { return Ok(next) };
    if (known.health)(node) != Health::Down {
        return Err(RingError::Alive { node, by: None });
    }
    if !force {
        check_removals(state, node)?;
        check_copies(known, node)?;
    }
    Ok(next)
}

fn check_newcomer(known: &Knowledge, node: NodeId) -> Result<(), RingError> {
    match () {
        _ if !(known.is_member)(node) => Err(RingError::Unknown { node }),
        _ if (known.health)(node) == Health::Down => Err(RingError::Down { node }),
        _ => Ok(()),
    }
}

/// One node at a time: what a removal makes anew comes from the other owners.
fn check_removals(state: &RingState, node: NodeId) -> Result<(), RingError> {
    let Some(old) = &state.old else { return Ok(()) };
    let held = old.nodes.iter().chain(&state.layout.nodes).map(|other| other.id);
    let mut others = held.filter(|other| *other != node && state.removed.contains(other));
    others.next().map_or(Ok(()), |other| Err(RingError::RemovalUnderway { node, other }))
}

/// Each partition that `node` answers for must have another owner that does, can be reached, and stays.
fn check_copies(known: &Knowledge, node: NodeId) -> Result<(), RingError> {
    let ring = known.ring;
    let is_left = |other: &NodeId| {
        *other != node && !ring.state().removed.contains(other) && (known.health)(*other) != Health::Down
    };
    for &n in known.sizes {
        let lost = (0..ring.partitions()).map(Partition).filter(|partition| {
            let list = ring.preference_list(*partition);
            let owners = &list[..n.min(list.len())];
            owners.contains(&node) && !owners.iter().any(is_left)
        });
        let (partitions, of) = (lost.count(), ring.partitions() as usize);
        if partitions > 0 {
            return Err(RingError::SoleCopies { node, n, partitions, of });
        }
    }
    Ok(())
}

/// What the nodes of the ring say about one that is to be given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opinions {
    pub change: RingChange,
    pub force: bool,
    node: NodeId,
    /// Whether the asked node, which takes it for down, is in the ring itself.
    own: usize,
    nodes: usize,
    answers: BTreeMap<NodeId, Option<Health>>,
}

impl Opinions {
    /// Whom to ask about `node`: every node of the ring that can be reached.
    pub fn new(known: &Knowledge, change: RingChange, force: bool, node: NodeId) -> Opinions {
        let removed = &known.ring.state().removed;
        let mut ring: Vec<NodeId> = known.ring.nodes().to_vec();
        ring.retain(|other| !removed.contains(other));
        let asked = ring.iter().filter(|other| **other != node && **other != known.me);
        let reachable = asked.filter(|other| (known.health)(**other) != Health::Down);
        let answers = reachable.map(|other| (*other, None)).collect();
        let own = ring.contains(&known.me) as usize;
        Opinions { change, force, node, own, nodes: ring.len(), answers }
    }

    /// The nodes that were asked.
    pub fn asked(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.answers.keys().copied()
    }

    /// The node they were asked about.
    pub fn about(&self) -> NodeId {
        self.node
    }

    /// Takes in what `peer` says. False if it was not asked, or has answered.
    pub fn answer(&mut self, peer: NodeId, health: Health) -> bool {
        match self.answers.get_mut(&peer) {
            Some(answer @ None) => {
                *answer = Some(health);
                true
            }
            _ => false,
        }
    }

    /// `None` while answers are awaited that could matter. One peer that reaches the node is enough against it; for it,
    /// a majority of the ring must have said that it is down, or the operator forces it. `is_over`: nobody answers any
    /// more.
    pub fn verdict(&self, is_over: bool) -> Option<Result<(), RingError>> {
        let node = self.node;
        let is_alive = |(_, health): &(&NodeId, &Option<Health>)| health.is_some_and(|it| it != Health::Down);
        if let Some((by, _)) = self.answers.iter().find(is_alive) {
            return Some(Err(RingError::Alive { node, by: Some(*by) }));
        }
        if !is_over && self.answers.values().any(Option::is_none) {
            return None;
        }
        let (needed, nodes) = (self.nodes / 2 + 1, self.nodes);
        let confirmed = self.own + self.answers.values().filter(|answer| answer.is_some()).count();
        match confirmed >= needed || self.force {
            true => Some(Ok(())),
            false => Some(Err(RingError::Unconfirmed { node, confirmed, needed, nodes })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{RingNode, Strategy};

    const REMOVE_2: RingChange = RingChange::Remove { node: NodeId(2) };

    fn ring(nodes: u64) -> Ring {
        let nodes = (1..=nodes).map(|id| RingNode::new(NodeId(id))).collect();
        Ring::new(RingState::founding(crate::ring::Founding(1), Strategy::EqualPartitions, 64, nodes))
    }

    fn replace(gone: bool) -> RingChange {
        RingChange::Replace { old: NodeId(2), new: RingNode::new(NodeId(6)), gone }
    }

    /// Asks node 1, which knows nodes 1 to 6, of which these are down.
    fn ask(
        ring: &Ring,
        down: &[u64],
        sizes: &[usize],
        change: &RingChange,
        force: bool,
    ) -> Result<(), RingError> {
        let is_member = |node: NodeId| node.0 <= 6 && !ring.state().removed.contains(&node);
        let health = |node: NodeId| match node.0 {
            id if id > 6 || down.contains(&id) => Health::Down,
            5 => Health::Suspect,
            _ => Health::Up,
        };
        let known = Knowledge { me: NodeId(1), ring, sizes, is_member: &is_member, health: &health };
        changed(&known, change, force).map(|_| ())
    }

    #[test]
    fn a_change_that_could_lose_data_is_refused() {
        use RingChange::{Join, Leave, Remove};
        let node = |id: u64| RingNode::new(NodeId(id));
        let alive = |id: u64| Err(RingError::Alive { node: NodeId(id), by: None });
        let remove = |id: u64| Remove { node: NodeId(id) };
        let table: [(&[u64], RingChange, Result<(), RingError>); 15] = [
            (&[], Join { node: node(6) }, Ok(())),
            (&[6], Join { node: node(6) }, Err(RingError::Down { node: NodeId(6) })),
            (&[], Join { node: node(7) }, Err(RingError::Unknown { node: NodeId(7) })),
            (&[], Join { node: node(2) }, Err(RingError::InRing { node: NodeId(2) })),
            (&[], Leave { node: NodeId(2) }, Ok(())),
            (&[2], Leave { node: NodeId(2) }, Ok(())),
            (&[], remove(2), alive(2)),
            (&[], remove(5), alive(5)),
            (&[], remove(6), alive(6)),
            (&[], remove(1), alive(1)),
            (&[], remove(7), Err(RingError::NotInRing { node: NodeId(7) })),
            (&[2], remove(2), Ok(())),
            (&[], replace(false), Ok(())),
            (&[], replace(true), alive(2)),
            (&[2, 6], replace(true), Err(RingError::Down { node: NodeId(6) })),
        ];
        for (down, change, wanted) in table {
            assert_eq!(
                ask(&ring(5), down, &[3], &change, false),
                wanted,
                "{change:?} while {down:?} are down"
            );
            let forced = ask(&ring(5), down, &[3], &change, true);
            assert_eq!(forced, wanted, "force does not help: {change:?} while {down:?} are down");
        }
    }

    #[test]
    fn copies_that_nobody_else_holds_are_given_up_only_by_force() {
        for (down, sizes, is_safe) in [
            (&[2][..], &[3][..], true),
            (&[2, 3], &[3], true),
            (&[2, 3, 4], &[3], false),
            (&[2], &[1, 3], false),
            (&[2, 3], &[2, 3], false),
        ] {
            for change in [REMOVE_2, replace(true)] {
                let result = ask(&ring(5), down, sizes, &change, false);
                match is_safe {
                    true => assert_eq!(result, Ok(()), "{change:?}"),
                    false => assert!(matches!(result, Err(RingError::SoleCopies { .. })), "{result:?}"),
                }
                assert_eq!(ask(&ring(5), down, sizes, &change, true), Ok(()));
            }
        }
    }

    #[test]
    fn a_second_node_is_removed_when_the_copies_of_the_first_are_there() {
        let removing = ring(5).state().change(&REMOVE_2).unwrap();
        let underway = Err(RingError::RemovalUnderway { node: NodeId(3), other: NodeId(2) });
        let remove_3 = RingChange::Remove { node: NodeId(3) };
        let arrived = removing.successor();
        for state in [&removing, &arrived] {
            let ring = Ring::new(state.clone());
            assert_eq!(ask(&ring, &[2, 3], &[3], &remove_3, false), underway);
            assert_eq!(ask(&ring, &[2, 3], &[3], &remove_3, true), Ok(()));
            assert_eq!(ask(&ring, &[2, 3], &[3], &REMOVE_2, false), Err(RingError::NoChange));
            let leave = RingChange::Leave { node: NodeId(4) };
            let moving = RingError::Moving { version: state.version };
            assert_eq!(ask(&ring, &[2, 3], &[3], &leave, true), Err(moving));
        }
        assert_eq!(ask(&Ring::new(arrived.successor()), &[2, 3], &[3], &remove_3, false), Ok(()));
        let leaving = Ring::new(ring(5).state().change(&RingChange::Leave { node: NodeId(2) }).unwrap());
        assert_eq!(ask(&leaving, &[2], &[3], &REMOVE_2, false), Ok(()), "what leaves may die meanwhile");
        assert_eq!(ask(&leaving, &[3], &[3], &remove_3, false), Ok(()), "so may another");
    }

    #[test]
    fn the_last_node_and_a_removed_one_change_nothing() {
        let leave = RingChange::Leave { node: NodeId(1) };
        assert_eq!(ask(&ring(1), &[], &[3], &leave, true), Err(RingError::LastNode));
        let remove = RingChange::Remove { node: NodeId(1) };
        assert_eq!(ask(&ring(1), &[1], &[3], &remove, true), Err(RingError::LastNode));
        let without_me = Ring::new(ring(5).state().change(&remove).unwrap());
        assert_eq!(ask(&without_me, &[], &[3], &leave, true), Err(RingError::Outcast));
    }

    #[test]
    fn a_majority_must_take_the_node_for_down_and_nobody_for_alive() {
        use Health::{Down, Suspect, Up};
        type Case<'a> = (u64, &'a [u64], &'a [(u64, Health)], bool, &'a str);
        let table: [Case; 9] = [
            (3, &[2], &[(3, Down)], false, "ok"),
            (3, &[2], &[(3, Up)], true, "alive"),
            (3, &[2], &[(3, Suspect)], true, "alive"),
            (3, &[2, 3], &[], false, "unconfirmed"),
            (3, &[2, 3], &[], true, "ok"),
            (4, &[2, 3], &[(4, Down)], false, "unconfirmed"),
            (5, &[2, 3], &[(4, Down), (5, Down)], false, "ok"),
            (5, &[2, 3], &[(4, Down)], false, "unconfirmed"),
            (2, &[2], &[], false, "unconfirmed"),
        ];
        for (nodes, down, answers, force, wanted) in table {
            let ring = ring(nodes);
            let health = |node: NodeId| if down.contains(&node.0) { Down } else { Up };
            let is_member = |_| true;
            let known =
                Knowledge { me: NodeId(1), ring: &ring, sizes: &[3], is_member: &is_member, health: &health };
            let mut opinions = Opinions::new(&known, REMOVE_2, force, NodeId(2));
            let asked = opinions.asked().count();
            for (peer, health) in answers {
                assert!(opinions.answer(NodeId(*peer), *health));
                assert!(!opinions.answer(NodeId(*peer), Down), "an opinion is given once");
            }
            assert!(!opinions.answer(NodeId(2), Up), "it was not asked");
            let is_waited_for = opinions.verdict(false).is_none();
            assert_eq!(is_waited_for, answers.len() < asked && wanted != "alive", "{nodes} {answers:?}");
            let verdict = match opinions.verdict(true) {
                Some(Ok(())) => "ok",
                Some(Err(RingError::Alive { .. })) => "alive",
                Some(Err(RingError::Unconfirmed { .. })) => "unconfirmed",
                other => panic!("{other:?}"),
            };
            assert_eq!(verdict, wanted, "{nodes} nodes, {down:?} down, {answers:?}");
        }
    }
}
