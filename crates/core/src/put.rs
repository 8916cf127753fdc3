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
    /// What was asked for, however many replicas there are now: the ring may grow.
    asked: Needed,
    needed: Needed,
    /// As many were asked for as the bucket usually wants: if that changes, as many as it wants then.
    is_usual: Option<bool>,
    copies: Vec<Copy>,
    moving: Option<Box<Moving>>,
    /// See [`Put::of_home`].
    term: u64,
    /// See [`Put::of_claim`].
    is_claim: bool,
    /// A replica holds something that this version has not seen.
    was_refused: bool,
}

/// Whose copies count for which quorum while the ring changes.
#[derive(Clone, Debug)]
struct Moving {
    serving: Vec<NodeId>,
    others: Vec<NodeId>,
    needed_others: Needed,
}

impl Put {
    /// A put that nobody holds yet, of which `asked` copies are needed, or as many as the key has replicas: see
    /// [`Put::place`]. `base`: hash of the object it was made from, 0 if there was none.
    pub fn new(key: ObjectKey, object: Bytes, base: u64, asked: Needed) -> Put {
        let copies = Vec::with_capacity(3);
        Put {
            key,
            object,
            base,
            asked,
            needed: asked,
            is_usual: None,
            copies,
            moving: None,
            term: 0,
            is_claim: false,
            was_refused: false,
        }
    }

    /// The same put as one of an active object's home in its term of this number: replicas refuse it if they hold
    /// something that its version has not seen, and nobody stands in for them. Of each group of owners a majority must
    /// have it. `is_usual`: as many copies were asked for as the bucket wants.
    pub fn of_home(self, term: u64, is_usual: bool) -> Put {
        Put { term, is_usual: Some(is_usual), ..self }
    }

    /// The same put as a claim of that term: nothing is stored yet, and whoever acknowledges it has promised the term.
    pub fn of_claim(self, term: u64, is_usual: bool) -> Put {
        Put { is_claim: true, ..self.of_home(term, is_usual) }
    }

    /// True if this only claims a term.
    pub fn is_claim(&self) -> bool {
        self.is_claim
    }

    /// The term of the home that writes this; 0: it is no such put.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// `node` has refused it, and misses nothing by that. False if it was not waited for.
    pub fn refuse(&mut self, node: NodeId) -> bool {
        let was_asked = self.settle(node, State::Failed).is_some();
        self.was_refused |= was_asked;
        was_asked
    }

    /// True if a replica has refused it.
    pub fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// Says whose copies count: those of `serving`, who answer reads, and while the ring changes just as well those of
    /// the `others`. Once it has changed, copies in the place of nodes that are no primaries any more count no more.
    /// `usual`: the bucket's `w` for both.
    pub fn place(&mut self, serving: &[NodeId], others: Option<&[NodeId]>, usual: (u8, u8)) {
        let asked = self.asked;
        let is_usual = *self.is_usual.get_or_insert(asked.total == usual.0);
        let is_of_home = self.term > 0;
        let at_least = |w: u8, owners: &[NodeId]| {
            let usually = if is_usual { w } else { 0 };
            let majority = if is_of_home { owners.len() as u8 / 2 + 1 } else { 0 };
            let total = asked.total.max(usually).max(majority);
            Needed { total, primaries: if is_of_home { total } else { asked.primaries } }
                .at_most(owners.len())
        };
        self.needed = at_least(usual.0, serving);
        self.moving = others.map(|others| {
            let needed_others = at_least(usual.1, others);
            Box::new(Moving { serving: serving.to_vec(), others: others.to_vec(), needed_others })
        });
        if others.is_none() {
            self.copies.retain(|copy| serving.contains(&copy.hint_for.unwrap_or(copy.node)));
        }
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

    /// The hints that `node` kept do not count any more: its disk has refused some of them.
    pub fn lose_hints(&mut self, node: NodeId) {
        self.copies.retain(|copy| copy.node != node || copy.hint_for.is_none());
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

    /// The primary whose copy is late because `node` is, itself or standing in for it; `None` if another node has that
    /// copy, or is asked for it.
    pub fn late_through(&self, node: NodeId) -> Option<NodeId> {
        let owner = self.owed_through(node)?;
        let is_for = |copy: &Copy| copy.hint_for.unwrap_or(copy.node) == owner;
        let mut others = self.copies.iter().filter(|copy| copy.node != node && is_for(copy));
        let is_doubled = others.any(|copy| copy.hint_for.is_some() && copy.state != State::Failed);
        (!is_doubled).then_some(owner)
    }

    /// True if the copies are not enough unless some of `nodes` acknowledge.
    pub fn depends_on(&self, nodes: &[NodeId]) -> bool {
        !self.is_enough(|copy| copy.state != State::Failed && !nodes.contains(&copy.node))
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
        if self.is_enough(|copy| copy.state == State::Acknowledged) {
            return Progress::Done;
        }
        match self.is_enough(|copy| copy.state != State::Failed) {
            true => Progress::Waiting,
            false => Progress::Impossible,
        }
    }

    fn is_enough(&self, counts: impl Fn(&Copy) -> bool) -> bool {
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

    /// Primaries of `group`, or all, that have a copy, of their own or kept for them; and how many of them hold it
    /// themselves. Who was late and was stood in for counts once.
    fn count(&self, counts: impl Fn(&Copy) -> bool, group: Option<&[NodeId]>) -> (u8, u8) {
        let stands_for = |copy: &Copy| copy.hint_for.unwrap_or(copy.node);
        let (mut total, mut primaries) = (0, 0);
        for (at, copy) in self.copies.iter().enumerate().filter(|(_, copy)| counts(copy)) {
            let owner = stands_for(copy);
            if group.is_none_or(|group| group.contains(&owner)) {
                let mut before = self.copies[..at].iter();
                total += !before.any(|one| stands_for(one) == owner && counts(one)) as u8;
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
        self.count(|copy| copy.state == State::Acknowledged, None).0
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
    fn a_late_primary_and_the_one_that_stands_in_for_it_count_once() {
        let mut put = put(3, 0);
        put.hold(NodeId(1), None);
        put.ask(NodeId(2), None);
        put.ask(NodeId(3), None);
        put.ask(NodeId(4), Some(NodeId(2)));
        assert_eq!((put.late_through(NodeId(2)), put.late_through(NodeId(3))), (None, Some(NodeId(3))));
        assert_eq!(put.late_through(NodeId(4)), Some(NodeId(2)), "whom a late fallback stands in for");
        assert!(put.depends_on(&[NodeId(3)]) && !put.depends_on(&[NodeId(2)]));
        put.acknowledge(NodeId(4));
        put.acknowledge(NodeId(2));
        assert_eq!((put.progress(), put.acknowledged()), (Progress::Waiting, 2), "the third has nothing yet");
        put.acknowledge(NodeId(3));
        assert_eq!(put.progress(), Progress::Done);
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
        put.place(&[a, b, c], Some(&[b, c, d]), (2, 2));
        put.hold(a, None);
        [b, c, d].into_iter().for_each(|node| put.ask(node, None));
        put.acknowledge(d);
        assert_eq!(put.progress(), Progress::Waiting, "one of the old owners, one of the new");
        put.fail(c);
        put.acknowledge(b);
        assert_eq!(put.progress(), Progress::Done);
        put.place(&[b, c, d], None, (2, 2));
        assert_eq!((put.progress(), put.acknowledged()), (Progress::Done, 2), "a's copy counts no more");
    }

    #[test]
    fn while_a_bucket_changes_its_old_owners_and_its_new_ones_are_counted_apart() {
        let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(NodeId);
        let asked = |total| {
            let mut put = put(total, 0);
            put.place(&[a, b, c], Some(&[a, b, c, d, e]), (2, 4));
            put.hold(a, None);
            [b, c, d, e].into_iter().for_each(|node| put.ask(node, None));
            put.acknowledge(b);
            put
        };
        let mut usual = asked(2);
        assert_eq!(usual.progress(), Progress::Waiting, "two of three, but of five two only");
        usual.acknowledge(d);
        usual.acknowledge(e);
        assert_eq!(usual.progress(), Progress::Done);
        usual.place(&[a, b, c, d, e], None, (4, 4));
        assert_eq!(usual.needed().total, 4);
        assert_eq!(asked(1).progress(), Progress::Done, "a request's own number stays");
    }

    #[test]
    fn while_a_bucket_changes_a_home_needs_as_many_of_the_new_owners_as_it_will_want() {
        let [a, b, c] = [1, 2, 3].map(NodeId);
        let of_home = |is_usual| {
            // Of one copy the only owner is the majority; of three, two are, but three are wanted.
            let mut put = put(1, 1).of_home(7, is_usual);
            put.place(&[a], Some(&[a, b, c]), (1, 3));
            put.hold(a, None);
            [b, c].into_iter().for_each(|node| put.ask(node, None));
            put.acknowledge(b);
            put
        };
        let mut usual = of_home(true);
        assert_eq!(usual.progress(), Progress::Waiting);
        usual.acknowledge(c);
        assert_eq!(usual.progress(), Progress::Done);
        assert_eq!(of_home(false).progress(), Progress::Done, "a request's own number, and the majority");
    }

    #[test]
    fn a_ring_that_grows_meanwhile_makes_a_put_need_what_was_asked_for() {
        let [a, b, c] = [1, 2, 3].map(NodeId);
        let mut put = put(3, 3);
        put.place(&[a, b], None, (2, 2));
        assert_eq!(put.needed(), Needed { total: 2, primaries: 2 });
        put.hold(a, None);
        put.ask(b, None);
        put.place(&[a, b], Some(&[a, b, c]), (2, 2));
        put.acknowledge(b);
        assert_eq!(put.progress(), Progress::Impossible, "of three replicas three were asked for");
        put.ask(c, None);
        put.place(&[a, b, c], None, (2, 2));
        assert_eq!(put.progress(), Progress::Waiting);
        put.acknowledge(c);
        assert_eq!(put.progress(), Progress::Done);
    }
}
