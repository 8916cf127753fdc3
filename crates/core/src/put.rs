//! Counting the acknowledgements of a put, and who still misses it.
//!
//! Pure bookkeeping. The coordinator's own copy and the writes to the other primaries each fill a place; a primary that
//! is down has its place filled by the next fallback, which keeps a hint for it. Who has not acknowledged at the end is
//! owed a hint by the coordinator, so that every replica gets the write without a reader's help.
//!
//! While the ring changes a put needs its quorum twice: of those who answer reads, and of those of the other layout.
//! A copy counts for whoever it is for: its holder, or the primary that its holder stands in for.
//!
//! Source: Dynamo §4.5, §4.6.

use bytes::Bytes;

use crate::get::{Needed, Progress};
use crate::types::{NodeId, ObjectKey};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Asked,
    Acknowledged,
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Copy {
    node: NodeId,
    /// The primary this fallback stands in for.
    hint_for: Option<NodeId>,
    state: State,
}

/// The copies of one version.
#[derive(Clone, Debug)]
pub struct Put {
    pub key: ObjectKey,
    /// The coordinator's object with the new version in it.
    pub object: Bytes,
    /// Hash of the object that it was made from, 0 if there was none.
    pub base: u64,
    needed: Needed,
    copies: Vec<Copy>,
    moving: Option<Box<Moving>>,
}

/// Whose copies count for which quorum while the ring changes.
#[derive(Clone, Debug)]
struct Moving {
    serving: Vec<NodeId>,
    others: Vec<NodeId>,
    needed_others: Needed,
}

impl Put {
    /// A put that nobody holds yet. `base`: hash of the object it was made from, 0 if there was none.
    pub fn new(key: ObjectKey, object: Bytes, base: u64, needed: Needed) -> Put {
        Put { key, object, base, needed, copies: Vec::with_capacity(3), moving: None }
    }

    /// The ring changes: those who answer reads must hold enough copies, and so must the others.
    pub fn needs_both(&mut self, serving: &[NodeId], others: &[NodeId], needed_others: Needed) {
        let (serving, others) = (serving.to_vec(), others.to_vec());
        self.moving = Some(Box::new(Moving { serving, others, needed_others }));
    }

    /// The ring has changed: from now on `needed` copies count, whoever holds them, but those in the place of nodes
    /// that are not among `primaries`.
    pub fn settle_on(&mut self, primaries: &[NodeId], needed: Needed) {
        self.needed = needed;
        self.moving = None;
        self.copies.retain(|copy| primaries.contains(&copy.hint_for.unwrap_or(copy.node)));
    }

    /// True if somebody holds, or is asked to hold, the copy of this primary.
    pub fn is_for(&self, primary: NodeId) -> bool {
        let is_for = |copy: &Copy| copy.hint_for.unwrap_or(copy.node) == primary;
        self.copies.iter().any(|copy| is_for(copy) && copy.state != State::Failed)
    }

    /// `node` keeps a hint for `owner`, which counts as its copy if `owner` does not answer reads.
    pub fn hold_for_other(&mut self, node: NodeId, owner: NodeId) {
        let Some(moving) = &self.moving else { return };
        if moving.others.contains(&owner) && !moving.serving.contains(&owner) {
            self.hold(node, Some(owner));
        }
    }

    /// Counts the coordinator's own copy, durable when this turn's outputs leave.
    pub fn hold(&mut self, node: NodeId, hint_for: Option<NodeId>) {
        self.copies.push(Copy { node, hint_for, state: State::Acknowledged });
    }

    /// Waits for `node` to acknowledge, as itself or standing in for a primary.
    pub fn ask(&mut self, node: NodeId, hint_for: Option<NodeId>) {
        self.copies.push(Copy { node, hint_for, state: State::Asked });
    }

    /// True if `node` was given a copy, whatever became of it.
    pub fn involves(&self, node: NodeId) -> bool {
        self.copies.iter().any(|copy| copy.node == node)
    }

    /// The primary that misses the write while `node` has not acknowledged: `node` itself, or whom it stands in for.
    pub fn owed_through(&self, node: NodeId) -> Option<NodeId> {
        let copy = self.copies.iter().find(|copy| copy.node == node && copy.state == State::Asked)?;
        Some(copy.hint_for.unwrap_or(copy.node))
    }

    /// `node` has it durably. False if it was not waited for.
    pub fn acknowledge(&mut self, node: NodeId) -> bool {
        self.settle(node, State::Acknowledged).is_some()
    }

    /// `node` will not acknowledge. Returns the primary that now misses the write: `node` itself, or whom it stood in
    /// for.
    pub fn fail(&mut self, node: NodeId) -> Option<NodeId> {
        self.settle(node, State::Failed)
    }

    fn settle(&mut self, node: NodeId, state: State) -> Option<NodeId> {
        let copy = self.copies.iter_mut().find(|copy| copy.node == node && copy.state == State::Asked)?;
        copy.state = state;
        Some(copy.hint_for.unwrap_or(copy.node))
    }

    /// Counts an acknowledgement that was never asked for: what a coordinator without this bookkeeping does.
    #[cfg(feature = "sabotage")]
    pub fn count_twice(&mut self, node: NodeId) {
        self.copies.push(Copy { node, hint_for: None, state: State::Acknowledged });
    }

    /// Whether it is enough.
    pub fn progress(&self) -> Progress {
        if self.is_enough(|state| state == State::Acknowledged) {
            return Progress::Done;
        }
        match self.is_enough(|state| state != State::Failed) {
            true => Progress::Waiting,
            false => Progress::Impossible,
        }
    }

    fn is_enough(&self, counts: impl Fn(State) -> bool) -> bool {
        let suffices = |needed: Needed, group: Option<&[NodeId]>| {
            let (total, primaries) = self.count(&counts, group);
            total >= needed.total && primaries >= needed.primaries
        };
        match &self.moving {
            None => suffices(self.needed, None),
            Some(moving) => {
                suffices(self.needed, Some(&moving.serving))
                    && suffices(moving.needed_others, Some(&moving.others))
            }
        }
    }

    /// Copies for members of `group`, or all; and how many of them the members hold themselves.
    fn count(&self, counts: impl Fn(State) -> bool, group: Option<&[NodeId]>) -> (u8, u8) {
        let (mut total, mut primaries) = (0, 0);
        for copy in self.copies.iter().filter(|copy| counts(copy.state)) {
            let stands_for = copy.hint_for.unwrap_or(copy.node);
            if group.is_none_or(|group| group.contains(&stands_for)) {
                total += 1;
                primaries += copy.hint_for.is_none() as u8;
            }
        }
        (total, primaries)
    }

    /// Nodes that were asked and have not answered.
    pub fn outstanding(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.copies.iter().filter(|copy| copy.state == State::Asked).map(|copy| copy.node)
    }

    /// Number of durable copies.
    pub fn acknowledged(&self) -> u8 {
        self.count(|state| state == State::Acknowledged, None).0
    }

    /// Number of nodes given a copy.
    pub fn replicas(&self) -> u8 {
        self.copies.len() as u8
    }

    pub fn needed(&self) -> Needed {
        self.needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(total: u8, primaries: u8) -> Put {
        Put::new(ObjectKey::new(b"b", b"k").unwrap(), Bytes::new(), 0, Needed { total, primaries })
    }

    #[test]
    fn w_distinct_copies_are_enough() {
        let mut put = put(2, 0);
        put.hold(NodeId(1), None);
        put.ask(NodeId(2), None);
        put.ask(NodeId(3), None);
        assert_eq!(put.progress(), Progress::Waiting);
        assert!(put.acknowledge(NodeId(2)));
        assert!(!put.acknowledge(NodeId(2)), "a repeated acknowledgement does not count");
        assert!(!put.acknowledge(NodeId(9)));
        assert_eq!((put.progress(), put.acknowledged()), (Progress::Done, 2));
        assert_eq!(put.outstanding().collect::<Vec<_>>(), [NodeId(3)]);
    }

    #[test]
    fn a_failed_fallback_leaves_its_primary_without_the_write() {
        let mut put = put(2, 0);
        put.hold(NodeId(1), None);
        put.ask(NodeId(4), Some(NodeId(2)));
        assert_eq!(put.fail(NodeId(4)), Some(NodeId(2)));
        assert_eq!(put.fail(NodeId(4)), None);
        assert_eq!(put.progress(), Progress::Impossible);
        put.ask(NodeId(5), Some(NodeId(2)));
        assert_eq!(put.progress(), Progress::Waiting);
    }

    #[test]
    fn fallbacks_do_not_count_as_primaries() {
        let mut put = put(2, 2);
        put.hold(NodeId(1), None);
        put.ask(NodeId(4), Some(NodeId(2)));
        put.acknowledge(NodeId(4));
        assert_eq!(put.progress(), Progress::Impossible);
    }

    #[test]
    fn while_the_ring_changes_both_quorums_must_be_reached() {
        let [a, b, c, d] = [1, 2, 3, 4].map(NodeId);
        let mut put = put(2, 0);
        put.needs_both(&[a, b, c], &[b, c, d], Needed { total: 2, primaries: 0 });
        put.hold(a, None);
        [b, c, d].into_iter().for_each(|node| put.ask(node, None));
        put.acknowledge(d);
        assert_eq!(put.progress(), Progress::Waiting, "one of the old owners, one of the new");
        put.fail(c);
        put.acknowledge(b);
        assert_eq!(put.progress(), Progress::Done);
        put.settle_on(&[b, c, d], Needed { total: 3, primaries: 0 });
        assert_eq!(
            (put.progress(), put.acknowledged()),
            (Progress::Impossible, 2),
            "a's copy counts no more"
        );
    }
}
