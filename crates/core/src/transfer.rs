//! Moving data between two rings: what a node still has to fetch, and what it holds that is others' now.
//!
//! **Fetching.** While the ring moves, a node fetches each range that it is to hold and does not hold yet from
//! every old owner it can reach: page by page the other lists keys and hashes, and each key that differs is read
//! from both and merged, as in anti-entropy. So nothing is overwritten, what is here already is not sent again, and
//! an interrupted move goes on where it was by comparing. The source must know the moving ring: from then on it
//! takes no more writes from coordinators that do not, so nothing can come behind the listing.
//!
//! **Giving away.** In a stable ring a node looks through its rows for those it does not own. It compares them with
//! their owners, gives each what it lacks, and drops a row when all of them hold just that.
//!
//! Pure bookkeeping; `node/moving.rs` sends. Source: Dynamo §4.9, §6.2. Differs: see `docs/ring-change.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::{RangePage, TaskId};
use crate::ring::{Ring, Shape};
use crate::types::{NodeId, ObjectKey, Position};

/// Ranges fetched side by side. Fewer: nothing happens while an answer travels; more: what comes at once holds clients
/// up.
pub const STREAMS_MAX: usize = 2;

/// A range to fetch.
#[derive(Clone, Debug)]
pub struct Range {
    pub from: Position,
    /// Inclusive.
    pub to: Position,
    /// Partitions it consists of, or pieces of them.
    pub partitions: usize,
    /// The owners before the change, of all the buckets that it concerns; this node too, if it is one.
    pub old: Vec<NodeId>,
    /// Those of them who do not hold it after the change.
    pub leaving: Vec<NodeId>,
    /// Those of them whose rows are all here, and this node.
    pub done: Vec<NodeId>,
    in_work: bool,
    is_complete: bool,
}

/// What is being done about one range and source.
#[derive(Clone, Debug)]
pub struct Stream {
    range: usize,
    pub source: NodeId,
    pub next: Position,
    pub to: Position,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The next page is to be asked for.
    Ready,
    Asked {
        task: TaskId,
        at_us: u64,
    },
    /// Keys of the page are being repaired; `failed`: one of them could not be.
    Repairing {
        left: usize,
        failed: bool,
        done_to: u64,
        worked: Worked,
    },
}

/// How much work a page was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Worked {
    /// When it was asked for.
    pub since_us: u64,
    /// Rows that were listed, by all nodes together.
    pub rows: usize,
    /// Requests of clients that waited at the node that listed it.
    pub waiting: u32,
}

/// Everything a node has to fetch for one ring.
#[derive(Clone, Debug, Default)]
pub struct Incoming {
    ranges: Vec<Range>,
    streams: BTreeMap<u64, Stream>,
    streams_made: u64,
    /// A stream has ended since streams were started: another may take its place, or everything is here.
    has_room: bool,
    /// Pages that are over, since somebody looked.
    finished: Vec<Worked>,
    pub bytes: u64,
    pub keys: u64,
}

impl Shape {
    /// The owners of a segment before and after the change, of buckets of this shape.
    fn owners<'a>(&self, old: &'a [NodeId], new: &'a [NodeId]) -> (&'a [NodeId], &'a [NodeId]) {
        let first = |list: &'a [NodeId], n: u8| &list[..list.len().min(n as usize)];
        (first(old, self.before.n), first(new, self.after.n))
    }

    /// Whether so many of the owners that stay may lack an acknowledged write that a get could meet these only, though
    /// new owners have everything.
    fn is_lacking(&self, before: &[NodeId], after: &[NodeId]) -> bool {
        if self.before == self.after {
            return false;
        }
        let staying = before.iter().filter(|node| after.contains(node)).count();
        let leaving = before.len() - staying;
        let copies = self.before.copies_at_least(before.len());
        staying.saturating_sub(copies.saturating_sub(leaving)) >= after.len().min(self.after.r as usize)
    }

    /// Whether `node` must fetch something in a segment.
    fn must_fetch(&self, node: NodeId, old: &[NodeId], new: &[NodeId]) -> bool {
        let (before, after) = self.owners(old, new);
        after.contains(&node) && (!before.contains(&node) || self.is_lacking(before, after))
    }

    /// Whether `node` is an owner in a segment before the change and not after it.
    fn loses(&self, node: NodeId, old: &[NodeId], new: &[NodeId]) -> bool {
        let (before, after) = self.owners(old, new);
        before.contains(&node) && !after.contains(&node)
    }
}

/// The nodes that must be ready before `ring` can take its next step.
///
/// While data move, those that have something to fetch. Once all data have arrived, those that lose something: they
/// must know it, so as not to answer for what is written elsewhere from then on. Where quorums change, no owner may
/// answer a coordinator that counts by the old ones. Removed nodes are not waited for.
pub fn awaited(ring: &Ring) -> BTreeSet<NodeId> {
    let shapes = ring.state().shapes();
    let mut nodes = BTreeSet::new();
    for segment in ring.segments() {
        for shape in &shapes {
            let (before, after) = shape.owners(segment.old, segment.new);
            let is_awaited = |node: &NodeId| match ring.state().arrived {
                false => shape.must_fetch(*node, segment.old, segment.new),
                true => shape.before != shape.after || shape.loses(*node, segment.old, segment.new),
            };
            nodes.extend(before.iter().chain(after).copied().filter(is_awaited));
        }
    }
    nodes.retain(|node| !ring.state().removed.contains(node));
    nodes
}

impl Incoming {
    /// What `me` has to fetch.
    pub fn new(ring: &Ring, me: NodeId) -> Incoming {
        if ring.state().arrived {
            return Incoming::default();
        }
        let shapes = ring.state().shapes();
        let n_max = shapes.iter().map(|shape| shape.before.n as usize).max().unwrap_or(0);
        // Where all count the same owners, their order says nothing, and more segments are alike.
        let is_ordered = shapes.iter().any(|shape| shape.before.n as usize != n_max);
        let mut ranges: Vec<Range> = Vec::new();
        for segment in ring.segments() {
            if !shapes.iter().any(|shape| shape.must_fetch(me, segment.old, segment.new)) {
                continue;
            }
            let mut old: Vec<NodeId> = segment.old.iter().copied().take(n_max).collect();
            if !is_ordered {
                old.sort_unstable();
            }
            let loses =
                |node: &NodeId| shapes.iter().any(|shape| shape.loses(*node, segment.old, segment.new));
            let leaving: Vec<NodeId> = old.iter().copied().filter(loses).collect();
            match ranges.last_mut() {
                Some(last)
                    if last.to.0.checked_add(1) == Some(segment.from.0)
                        && last.old == old
                        && last.leaving == leaving =>
                {
                    (last.to, last.partitions) = (segment.to, last.partitions + 1)
                }
                _ => {
                    let (from, to) = (segment.from, segment.to);
                    let done = old.iter().copied().filter(|node| *node == me).collect();
                    let (in_work, is_complete) = (false, false);
                    ranges.push(Range { from, to, partitions: 1, old, leaving, done, in_work, is_complete });
                }
            }
        }
        Incoming { ranges, has_room: true, ..Incoming::default() }
    }

    /// Partitions, or pieces of them, and how many of them are here.
    pub fn progress(&self) -> (usize, usize) {
        let total = self.ranges.iter().map(|range| range.partitions).sum();
        let here = self.ranges.iter().filter(|range| range.is_complete);
        (total, here.map(|range| range.partitions).sum())
    }

    /// True if everything is here.
    pub fn is_complete(&self) -> bool {
        self.ranges.iter().all(|range| range.is_complete)
    }

    /// Marks ranges complete for which `suffices` says so; asks only about those that nothing is being done about.
    pub fn complete(&mut self, suffices: impl Fn(&Range) -> bool) {
        for range in self.ranges.iter_mut().filter(|range| !range.in_work && !range.is_complete) {
            range.is_complete = suffices(range);
        }
    }

    /// Starts streams from sources that are `up`, as many as may run.
    pub fn start_streams(&mut self, up: impl Fn(NodeId) -> bool) {
        self.has_room = false;
        for (index, range) in self.ranges.iter_mut().enumerate() {
            if self.streams.len() >= STREAMS_MAX {
                return;
            }
            if range.in_work || range.is_complete {
                continue;
            }
            let source = range.old.iter().copied().find(|node| !range.done.contains(node) && up(*node));
            let Some(source) = source else { continue };
            range.in_work = true;
            self.streams_made += 1;
            let stream = Stream { range: index, source, next: range.from, to: range.to, phase: Phase::Ready };
            self.streams.insert(self.streams_made, stream);
        }
    }

    /// The streams that wait for their next page to be asked for.
    pub fn ready(&self) -> Vec<u64> {
        let is_ready = |(_, stream): &(&u64, &Stream)| stream.phase == Phase::Ready;
        self.streams.iter().filter(is_ready).map(|(number, _)| *number).collect()
    }

    /// True if something can be done at once; otherwise answers are awaited, or sources that are down.
    pub fn has_work(&self) -> bool {
        self.has_room || self.streams.values().any(|stream| stream.phase == Phase::Ready)
    }

    /// A stream that is under way.
    pub fn stream(&self, number: u64) -> Option<&Stream> {
        self.streams.get(&number)
    }

    /// The next page of a stream was asked for by `task`, at `at_us`.
    pub fn asked(&mut self, number: u64, task: TaskId, at_us: u64) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.phase = Phase::Asked { task, at_us };
        }
    }

    /// A page came, and `left` of its keys are being repaired. False if nobody waits for it.
    pub fn page(&mut self, number: u64, task: TaskId, page: &RangePage, left: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&number) else { return false };
        match stream.phase {
            Phase::Asked { task: asked, at_us } if asked == task => {
                let (done_to, rows, waiting) = (page.done_to, page.rows.len(), page.waiting);
                let worked = Worked { since_us: at_us, rows, waiting };
                stream.phase = Phase::Repairing { left, failed: false, done_to, worked };
                self.turn_page(number);
                true
            }
            _ => false,
        }
    }

    /// A page that is over and was not returned before.
    pub fn take_finished(&mut self) -> Option<Worked> {
        self.finished.pop()
    }

    /// One key of the current page was repaired, or could not be.
    pub fn repaired(&mut self, number: u64, is_repaired: bool) {
        self.keys += is_repaired as u64;
        if let Some(Stream { phase: Phase::Repairing { left, failed, .. }, .. }) =
            self.streams.get_mut(&number)
        {
            *left = left.saturating_sub(1);
            *failed |= !is_repaired;
        }
        self.turn_page(number);
    }

    fn turn_page(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let Phase::Repairing { left: 0, failed, done_to, worked } = stream.phase else { return };
        stream.phase = Phase::Ready;
        self.finished.push(worked);
        match done_to.checked_add(1).filter(|_| done_to < stream.to.0) {
            // The same page once more: what could be repaired does not differ any more.
            _ if failed => {}
            Some(next) => stream.next = Position(next),
            None => {
                let (range, source) = (stream.range, stream.source);
                self.streams.remove(&number);
                self.has_room = true;
                self.ranges[range].done.push(source);
                self.ranges[range].in_work = false;
            }
        }
    }

    /// Gives up a stream, for now: its source does not answer.
    pub fn give_up(&mut self, number: u64) {
        if let Some(stream) = self.streams.remove(&number) {
            self.has_room = true;
            self.ranges[stream.range].in_work = false;
        }
    }
}

/// A walk over a node's rows for those it does not own.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Where the walk goes on; `None`: no walk is under way.
    pub next: Option<Position>,
    /// Another walk is needed: this one met rows that it could not drop.
    pub again: bool,
    /// Rows that all their owners hold, with the hashes of their objects.
    pub verified: Vec<(ObjectKey, u64)>,
    pub page: Option<SweepPage>,
    /// Active objects that chose this node for their copies, with the hashes of what all owners were given of them:
    /// comparing hashes does not show who has code and state.
    pub handed: BTreeMap<ObjectKey, u64>,
}

/// Rows being compared with their owners.
#[derive(Clone, Debug)]
pub struct SweepPage {
    pub rows: Vec<(ObjectKey, u64)>,
    pub to: Position,
    pub worked: Worked,
    pub asked: BTreeMap<TaskId, NodeId>,
    /// What the owners hold of it.
    pub answers: BTreeMap<NodeId, BTreeMap<ObjectKey, u64>>,
}

impl Sweep {
    /// Begins a walk, or has another one follow.
    pub fn start(&mut self) {
        match self.next {
            Some(_) => self.again = true,
            None => {
                let handed = std::mem::take(&mut self.handed);
                *self = Sweep { next: Some(Position(0)), handed, ..Sweep::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Replication;
    use crate::placement::{RingNode, Strategy};
    use crate::ring::{RingChange, RingState};

    fn moving() -> Ring {
        let nodes = (1..=3).map(|id| RingNode::new(NodeId(id))).collect();
        let state = RingState::founding(crate::ring::Founding(1), Strategy::EqualPartitions, 16, nodes);
        Ring::new(state.change(&RingChange::Join { node: RingNode::new(NodeId(4)) }).unwrap())
    }

    #[test]
    fn only_the_new_node_fetches_when_three_become_four() {
        let ring = moving();
        assert_eq!(awaited(&ring), BTreeSet::from([NodeId(4)]));
        assert!(Incoming::new(&ring, NodeId(1)).is_complete());
        assert!(!Incoming::new(&ring, NodeId(4)).is_complete());
    }

    #[test]
    fn once_data_have_arrived_those_who_lose_some_are_awaited() {
        let arrived = Ring::new(moving().state().successor());
        let losers = [1, 2, 3].map(NodeId);
        assert_eq!(awaited(&arrived), BTreeSet::from(losers));
        assert!(Incoming::new(&arrived, NodeId(4)).is_complete());
        let without = arrived.state().change(&RingChange::Remove { node: NodeId(2) }).unwrap();
        assert_eq!(awaited(&Ring::new(without)), BTreeSet::from([NodeId(1), NodeId(3)]));
    }

    #[test]
    fn owners_that_stay_fetch_only_where_a_quorum_could_miss_a_write() {
        let replication = |(n, r, w)| Replication { n, r, w };
        let list: Vec<NodeId> = (1..=5).map(NodeId).collect();
        // Before, after; which of five nodes, in their order of preference, must fetch.
        for (before, after, wanted) in [
            ((1, 1, 1), (3, 2, 2), &[2, 3][..]),
            ((3, 2, 2), (5, 2, 4), &[4, 5]),
            ((3, 2, 2), (5, 1, 5), &[1, 2, 3, 4, 5]),
            ((3, 2, 2), (3, 2, 3), &[]),
            ((3, 2, 2), (3, 1, 3), &[1, 2, 3]),
            ((3, 3, 1), (3, 2, 2), &[1, 2, 3]),
            ((3, 1, 3), (3, 3, 1), &[]),
            ((3, 2, 2), (1, 1, 1), &[1]),
            ((3, 1, 3), (1, 1, 1), &[]),
            ((3, 2, 2), (2, 2, 1), &[]),
            ((5, 3, 3), (3, 2, 2), &[1, 2, 3]),
            // W was raised, and a write that is older has fewer copies.
            ((3, 2, 3), (3, 1, 3), &[1, 2, 3]),
            ((4, 2, 4), (2, 1, 2), &[1, 2]),
        ] {
            let shape = Shape { before: replication(before), after: replication(after) };
            let fetching = list.iter().copied().filter(|node| shape.must_fetch(*node, &list, &list));
            let wanted: Vec<NodeId> = wanted.iter().copied().map(NodeId).collect();
            assert_eq!(fetching.collect::<Vec<_>>(), wanted, "{before:?} to {after:?}");
        }
    }

    fn page(done_to: u64, waiting: u32) -> RangePage {
        RangePage { rows: Vec::new(), bytes: 0, done_to, waiting }
    }

    #[test]
    fn a_page_that_failed_is_asked_for_again() {
        let ring = moving();
        let mut incoming = Incoming::new(&ring, NodeId(4));
        incoming.start_streams(|node| node == NodeId(2));
        let number = incoming.ready()[0];
        let first = incoming.stream(number).unwrap().clone();
        assert_eq!(first.source, NodeId(2));
        incoming.ready().into_iter().for_each(|number| incoming.asked(number, 7, 70));
        assert!(!incoming.has_work(), "all streams have asked");
        assert!(!incoming.page(number, 8, &page(0, 0), 0), "another task's answer");
        assert!(incoming.page(number, 7, &page(first.next.0, 5), 2));
        incoming.repaired(number, true);
        assert_eq!(incoming.take_finished(), None);
        incoming.repaired(number, false);
        assert_eq!(incoming.take_finished(), Some(Worked { since_us: 70, rows: 0, waiting: 5 }));
        assert_eq!(incoming.stream(number).unwrap().next, first.next);
        incoming.asked(number, 9, 90);
        assert!(incoming.page(number, 9, &page(first.next.0, 0), 0));
        assert_eq!(incoming.stream(number).unwrap().next.0, first.next.0 + 1);
        incoming.asked(number, 10, 100);
        assert!(incoming.page(number, 10, &page(first.to.0, 0), 0));
        assert!(incoming.stream(number).is_none(), "the range is done with this source");
        assert!(
            incoming.has_work(),
            "another stream can start, and must not wait for anything else to happen"
        );
        incoming.complete(|range| range.done == [NodeId(2)]);
        assert_eq!(incoming.progress().1, incoming.ranges[0].partitions);
    }
}
