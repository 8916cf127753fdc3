//! Counting the acknowledgements of a put, and who still misses it.
//!
//! Pure bookkeeping. The coordinator's own copy and the writes to the other primaries each fill a place; a primary that
//! is down has its place filled by the next fallback, which keeps a hint for it. Who has not acknowledged at the end is
//! owed a hint by the coordinator, so that every replica gets the write without a reader's help.
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
}

impl Put {
    /// A put that nobody holds yet. `base`: hash of the object it was made from, 0 if there was none.
    pub fn new(key: ObjectKey, object: Bytes, base: u64, needed: Needed) -> Put {
        Put { key, object, base, needed, copies: Vec::with_capacity(3) }
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
        let (total, primaries) = self.count(|state| state == State::Acknowledged);
        if total >= self.needed.total && primaries >= self.needed.primaries {
            return Progress::Done;
        }
        let (total, primaries) = self.count(|state| state != State::Failed);
        match total >= self.needed.total && primaries >= self.needed.primaries {
            true => Progress::Waiting,
            false => Progress::Impossible,
        }
    }

    fn count(&self, counts: impl Fn(State) -> bool) -> (u8, u8) {
        let (mut total, mut primaries) = (0, 0);
        for copy in self.copies.iter().filter(|copy| counts(copy.state)) {
            total += 1;
            primaries += copy.hint_for.is_none() as u8;
        }
        (total, primaries)
    }

    /// Nodes that were asked and have not answered.
    pub fn outstanding(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.copies.iter().filter(|copy| copy.state == State::Asked).map(|copy| copy.node)
    }

    /// Number of durable copies.
    pub fn acknowledged(&self) -> u8 {
        self.count(|state| state == State::Acknowledged).0
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
}
