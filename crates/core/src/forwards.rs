//! Requests that peers hand over to this node: each is run once, and none whose time is up.
//!
//! A handed-over request says when it was sent, by its sender's clock. Whoever takes it up knows how old it is from
//! an answer of the sender's to a probe, but for the probe's round trip. So a request that lay unread while this node
//! stood still is not run for a client that has been told that nobody knows. While it is in doubt whether any of its
//! time is left, a request waits for the next answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::client::Operation;
use crate::message::TaskId;
use crate::types::NodeId;

/// A peer's word of itself is news for so long, in microseconds. Too small: on a busy network nothing is; too large:
/// what has long changed is believed.
pub const NEWS_US: u64 = 100_000;
/// A comparison of clocks is good for so long, in microseconds, unless a better one comes: clocks run apart.
const COMPARED_US_MAX: u64 = 10_000_000;
/// Requests of one peer that may wait for its clock. Beyond, the oldest is dropped, and times out.
const WAITING_MAX: usize = 1_000;
/// How many requests are remembered. Too few: one that the network brings twice, late, is run twice.
const RECENT_MAX: usize = 4096;

/// A request that a peer handed over.
#[derive(Clone, Debug)]
pub struct HandedOver {
    pub task: TaskId,
    pub operation: Operation,
    /// The rest of its time limit when it was sent, in microseconds.
    pub left_us: u64,
    /// When that was, by the sender's `mono_us`.
    pub sent_us: u64,
    /// Hash of the object that the sender holds; 0: it does not say.
    pub holds: u64,
}

/// What this node knows of the requests that its peers hand over.
#[derive(Clone, Debug, Default)]
pub struct Forwards {
    peers: BTreeMap<NodeId, Peer>,
    known: BTreeSet<(NodeId, TaskId)>,
    order: VecDeque<(NodeId, TaskId)>,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    compared: Option<Compared>,
    waiting: VecDeque<HandedOver>,
}

/// The clock of a peer beside this node's.
#[derive(Clone, Copy, Debug)]
struct Compared {
    /// How far this node's `mono_us` is ahead of the peer's at least.
    ahead_us: i64,
    /// It is ahead by so much more at most: the round trip.
    within_us: u64,
    at_us: u64,
}

impl Forwards {
    /// True if this request was not there before.
    pub fn is_first(&mut self, from: NodeId, task: TaskId) -> bool {
        if !self.known.insert((from, task)) {
            return false;
        }
        self.order.push_back((from, task));
        if self.order.len() > RECENT_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        true
    }

    /// A link to `peer` has opened or closed: its clock may be another from now on, and what waited is given up by the
    /// peer as well.
    pub fn forget(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// The clock of `from` showed `theirs_us` between `asked_us` and `now_us` of this node's. Returns what waited for
    /// that.
    pub fn compare(
        &mut self,
        from: NodeId,
        asked_us: u64,
        theirs_us: u64,
        now_us: u64,
    ) -> VecDeque<HandedOver> {
        let Some(ahead_us) = (asked_us as i64).checked_sub_unsigned(theirs_us) else {
            return VecDeque::new();
        };
        let peer = self.peers.entry(from).or_default();
        let within_us = now_us.saturating_sub(asked_us);
        let is_better = |held: Compared| {
            within_us <= held.within_us || now_us.saturating_sub(held.at_us) > COMPARED_US_MAX
        };
        if peer.compared.is_none_or(is_better) {
            peer.compared = Some(Compared { ahead_us, within_us, at_us: now_us });
        }
        std::mem::take(&mut peer.waiting)
    }

    /// How long ago `from` sent what it sent at `sent_us` of its clock, in microseconds: at least, and at most. `None`
    /// if that is not known.
    pub fn age_us(&self, from: NodeId, sent_us: u64, now_us: u64) -> Option<(u64, u64)> {
        let Compared { ahead_us, within_us, .. } = self.peers.get(&from)?.compared?;
        let most_us = i128::from(now_us) - i128::from(sent_us) - i128::from(ahead_us);
        let bounded = |age_us: i128| age_us.clamp(0, i128::from(u64::MAX)) as u64;
        Some((bounded(most_us - i128::from(within_us)), bounded(most_us)))
    }

    /// Keeps a request until its sender's clock is known better.
    pub fn wait(&mut self, from: NodeId, request: HandedOver) {
        let waiting = &mut self.peers.entry(from).or_default().waiting;
        if waiting.len() >= WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Quorum;
    use crate::types::ObjectKey;

    const PEER: NodeId = NodeId(7);

    fn request(sent_us: u64) -> HandedOver {
        let key = ObjectKey::new(b"b", b"k").unwrap();
        let operation = Operation::Get { key, quorum: Quorum::default() };
        HandedOver { task: 1, operation, left_us: 1_000_000, sent_us, holds: 0 }
    }

    #[test]
    fn a_request_waits_until_its_age_is_known() {
        let mut forwards = Forwards::default();
        assert_eq!(forwards.age_us(PEER, 500, 1_000), None);
        forwards.wait(PEER, request(500));
        let waited = forwards.compare(PEER, 1_000, 600, 1_300);
        assert_eq!(waited.len(), 1);
        assert_eq!(
            forwards.age_us(PEER, 500, 2_000),
            Some((800, 1_100)),
            "the round trip makes the difference"
        );
        assert!(forwards.compare(PEER, 3_000, 700, 3_500).is_empty(), "it waited once");
    }

    #[test]
    fn of_two_comparisons_the_closer_counts_until_it_is_old() {
        let mut forwards = Forwards::default();
        // The peer's clock is behind by 1,000, and an answer lay unread for five seconds.
        forwards.compare(PEER, 1_000, 10, 5_000_000);
        forwards.compare(PEER, 5_000_000, 4_999_200, 5_000_400);
        forwards.compare(PEER, 6_000_000, 5_999_900, 6_002_000);
        assert_eq!(forwards.age_us(PEER, 6_000_000, 6_001_500), Some((300, 700)));
        forwards.compare(PEER, 16_000_000, 15_999_900, 16_002_000);
        assert_eq!(forwards.age_us(PEER, 16_000_000, 16_001_500), Some((0, 1_400)));
    }

    #[test]
    fn a_new_link_knows_no_age_and_drops_what_waited() {
        let mut forwards = Forwards::default();
        forwards.compare(PEER, 0, 0, 10);
        forwards.forget(PEER);
        assert_eq!(forwards.age_us(PEER, 0, 20), None);
        forwards.wait(PEER, request(5));
        forwards.forget(PEER);
        assert!(forwards.compare(PEER, 20, 20, 30).is_empty());
    }
}
