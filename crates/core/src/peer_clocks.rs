//! What the peers' clocks say about this node's own, and the time this node goes by because of it.
//!
//! Each answered ping compares two wall clocks. A node that is off from most of the others goes by theirs: it adds a
//! **correction** to every reading of its own clock, so its dots, its expiries and its objects' timers are those of the
//! cluster. The correction is the median of all differences, the node's own (none) included: half of the nodes are not
//! most, and where they are split evenly a node trusts itself. Differences up to [`STEP_MS`] are left alone, so clocks
//! that are kept by NTP are read as they are, and measuring does not make time jitter.
//!
//! A jump of the own clock changes all differences by the same amount, and is made up for at once, until the next
//! answers tell whether the peers jumped too. After a jump beyond the limit a node goes on by its monotonic clock until
//! half of its peers have been asked, of those that are away too: what it acknowledges alone, or with a few whose
//! clocks are as wrong, is named by a time that the others will believe. A cluster of one node has nobody to ask and
//! takes the jump.
//!
//! Two things are not left to a correction. Readings of a clock that is too far **ahead** of most peers' could poison
//! objects for as long as it is ahead, so such a node coordinates no writes; and after a jump ahead by more than the
//! limit none are coordinated until peers have confirmed the new time.
//!
//! Source: Marzullo and Owicki, "Maintaining the time in a distributed system", 1983. Differs: a median instead of
//! intersected intervals, because a difference is known far better than it matters here.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{NodeId, Now};

/// Differences up to this many milliseconds are not corrected, nor are changes of the correction. Too small: time
/// jitters with the network; too large: expiries are off by as much.
pub const STEP_MS: i64 = 500;
/// A round trip longer than this, in microseconds, says too little about the difference of two clocks.
const ROUND_TRIP_US_MAX: u64 = 2 * STEP_MS as u64 * 1000;

/// How this node's wall clock stands to its peers'.
#[derive(Clone, Debug)]
pub struct PeerClocks {
    /// A clock further ahead than this of most others makes no dots, in milliseconds.
    limit_ms: i64,
    /// How far this node's clock is ahead of each peer's, in milliseconds. Kept while a peer is away: it was a witness.
    ahead_ms: BTreeMap<NodeId, i64>,
    /// How many of these are beyond the limit.
    far_behind: usize,
    /// How many peers are ahead of the corrected clock by more than the limit.
    far_ahead: usize,
    /// Peers that there are, measured or not.
    peers: usize,
    /// After a jump beyond the limit: the peers asked since. `None`: the clock is not in doubt.
    confirmed_by: Option<BTreeSet<NodeId>>,
    /// The last of these jumps was ahead.
    jumped_ahead: bool,
    /// Added to each reading of the wall clock, in milliseconds.
    correction_ms: i64,
    /// The same from the next turn on: within a turn time stands still.
    next_correction_ms: i64,
    /// The last reading, uncorrected.
    last: Now,
}

impl PeerClocks {
    /// Has asked none of `peers` yet. `limit_ms`: see `NodeConfig::clock_skew_ms_max`.
    pub fn new(limit_ms: u64, peers: usize, now: Now) -> PeerClocks {
        PeerClocks {
            limit_ms: i64::try_from(limit_ms).unwrap_or(i64::MAX),
            ahead_ms: BTreeMap::new(),
            far_behind: 0,
            far_ahead: 0,
            peers,
            confirmed_by: None,
            jumped_ahead: false,
            correction_ms: 0,
            next_correction_ms: 0,
            last: now,
        }
    }

    /// The time this node goes by when its clocks read `now`.
    pub fn time(&self, now: Now) -> Now {
        let correction_ms = match self.jump_ms(now) {
            0 => self.correction_ms,
            jump_ms => self.correction_after(jump_ms),
        };
        let wall_ms = i64::try_from(now.wall_ms).unwrap_or(i64::MAX).saturating_add(correction_ms);
        Now { wall_ms: wall_ms.max(0) as u64, ..now }
    }

    /// The last reading of the wall clock as it was, for peers to compare theirs with.
    pub fn uncorrected_wall_ms(&self) -> u64 {
        self.last.wall_ms
    }

    /// What is added to readings of the wall clock, in milliseconds, from the next turn on.
    pub fn coming_correction_ms(&self) -> i64 {
        self.next_correction_ms
    }

    /// A turn is over: goes by what was learnt in it.
    pub fn end_turn(&mut self) {
        self.correction_ms = self.next_correction_ms;
    }

    /// Takes a reading. True if the clock jumped so far that peers must confirm it: ask them.
    pub fn watch(&mut self, now: Now) -> bool {
        let jump_ms = self.jump_ms(now);
        self.last = now;
        if jump_ms == 0 {
            return false;
        }
        let next_ms = self.correction_after(jump_ms);
        let is_far = jump_ms.unsigned_abs() > self.limit_ms as u64;
        if is_far && self.peers > 0 {
            self.confirmed_by = Some(BTreeSet::new());
            self.jumped_ahead = jump_ms > 0;
        }
        self.ahead_ms.values_mut().for_each(|ahead_ms| *ahead_ms = ahead_ms.saturating_add(jump_ms));
        self.next_correction_ms = next_ms;
        self.review();
        self.end_turn();
        is_far
    }

    /// A peer's clock read `their_wall_ms`. `round_trip_us`: from the question to the answer that says so, if it is
    /// one; else the difference is known too badly to replace a better one. There are `peers` in all.
    pub fn compared(&mut self, peer: NodeId, their_wall_ms: u64, round_trip_us: Option<u64>, peers: usize) {
        self.peers = peers;
        if let Some(confirmed_by) = &mut self.confirmed_by {
            confirmed_by.insert(peer);
            if 2 * confirmed_by.len() >= peers {
                self.confirmed_by = None;
            }
        }
        let is_exact = round_trip_us.is_some_and(|us| us <= ROUND_TRIP_US_MAX);
        if !is_exact && self.ahead_ms.contains_key(&peer) {
            return;
        }
        let travel_ms = round_trip_us.filter(|_| is_exact).unwrap_or(0) / 2000;
        let millis = |wall_ms: u64| i64::try_from(wall_ms).unwrap_or(i64::MAX);
        let theirs_ms = millis(their_wall_ms).saturating_add(travel_ms as i64);
        self.ahead_ms.insert(peer, millis(self.last.wall_ms).saturating_sub(theirs_ms));
        self.review();
    }

    /// `peer` is no member any more.
    pub fn forget(&mut self, peer: NodeId) {
        if self.ahead_ms.remove(&peer).is_some() {
            self.review();
        }
    }

    /// How far this node's clock is ahead of most of its peers', negative if behind, if that is too much to make dots
    /// by it. `up` peers are up.
    ///
    /// A node behind is corrected as soon as most nodes were asked. Until then its writes would be named by a time
    /// that is long past, and lose against what they replace. Of two nodes, nobody knows which is right: the one
    /// behind goes on.
    pub fn is_ahead(&self, up: usize) -> Option<i64> {
        let is_unconfirmed = self.confirmed_by.as_ref().is_some_and(|asked| 2 * asked.len() < up);
        let is_doubtful = is_unconfirmed && self.jumped_ahead;
        let is_far_ahead = 2 * self.far_behind > self.ahead_ms.len();
        let is_far_behind = 2 * self.far_ahead > self.ahead_ms.len() && self.ahead_ms.len() > 1;
        if !is_doubtful && !is_far_ahead && !is_far_behind {
            return None;
        }
        let mut ahead_ms: Vec<i64> = self.ahead_ms.values().copied().collect();
        ahead_ms.sort_unstable();
        let median_ms = ahead_ms.get(ahead_ms.len() / 2).copied().unwrap_or(0);
        Some(if is_far_behind { median_ms } else { median_ms.max(self.limit_ms) })
    }

    /// How far the wall clock moved without the monotonic one, if that is more than a drift; else 0.
    fn jump_ms(&self, now: Now) -> i64 {
        let passed_ms = now.mono_us.saturating_sub(self.last.mono_us) / 1000;
        let expected_ms = self.last.wall_ms.saturating_add(passed_ms);
        let jump_ms = (now.wall_ms as i64).wrapping_sub(expected_ms as i64);
        if jump_ms.unsigned_abs() <= STEP_MS as u64 {
            0
        } else {
            jump_ms
        }
    }

    fn review(&mut self) {
        self.far_behind = self.ahead_ms.values().filter(|ahead_ms| **ahead_ms > self.limit_ms).count();
        // A clock in doubt is not read before it is confirmed.
        if self.confirmed_by.is_none() {
            self.next_correction_ms = self.correction_after(0);
        }
        let corrected_ms = |ahead_ms: &i64| ahead_ms.saturating_add(self.next_correction_ms);
        self.far_ahead =
            self.ahead_ms.values().filter(|ahead_ms| corrected_ms(ahead_ms) < -self.limit_ms).count();
    }

    /// The correction, were the own clock to jump by `jump_ms`.
    fn correction_after(&self, jump_ms: i64) -> i64 {
        let is_far = jump_ms.unsigned_abs() > self.limit_ms as u64 && self.peers > 0;
        if is_far || (jump_ms != 0 && self.confirmed_by.is_some()) {
            return self.next_correction_ms.saturating_sub(jump_ms);
        }
        let wanted_ms = self.offset_ms(jump_ms).saturating_neg();
        let is_small = |ms: i64| ms.unsigned_abs() <= STEP_MS as u64;
        match () {
            _ if is_small(wanted_ms) => 0,
            _ if is_small(wanted_ms.saturating_sub(self.correction_ms)) => self.correction_ms,
            _ => wanted_ms,
        }
    }

    /// How far this node's clock is ahead of the median of all, itself included. Peers that were not asked yet count as
    /// in agreement: a node that has met only the wrong ones so far must not follow them.
    fn offset_ms(&self, jump_ms: i64) -> i64 {
        let peers = self.ahead_ms.values().map(|ahead_ms| ahead_ms.saturating_add(jump_ms));
        let unasked = self.peers.saturating_sub(self.ahead_ms.len());
        let mut all: Vec<i64> = peers.chain(std::iter::repeat_n(0, unasked + 1)).collect();
        all.sort_unstable();
        let (low_ms, high_ms) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        match () {
            // All are known, so all see the same two halves: they go by the later.
            _ if high_ms.saturating_sub(low_ms) <= self.limit_ms && self.ahead_ms.len() >= self.peers => {
                low_ms
            }
            // Who is right is not to be known: the nearest to the own clock.
            _ if low_ms <= 0 && high_ms >= 0 => 0,
            _ if low_ms > 0 => low_ms,
            _ => high_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { mono_us: ms * 1000, wall_ms: 1_000_000_000 + ms }
    }

    /// The clocks of a node whose peers are ahead of it by these milliseconds.
    fn among(peers_ahead_ms: &[i64]) -> PeerClocks {
        let mut clocks = PeerClocks::new(60_000, 3, at(0));
        for (peer, ahead_ms) in peers_ahead_ms.iter().enumerate() {
            let theirs = (at(0).wall_ms as i64 + ahead_ms) as u64;
            clocks.compared(NodeId(peer as u64), theirs, Some(0), peers_ahead_ms.len());
        }
        clocks.end_turn();
        clocks
    }

    #[test]
    fn a_node_goes_by_the_time_of_most() {
        const FAR: i64 = 7_200_000;
        let cases: [(&[i64], i64); 14] = [
            (&[], 0),
            (&[0, 0], 0),
            (&[STEP_MS, STEP_MS], 0),
            (&[30_000, 30_000], 30_000),
            (&[-30_000, -30_000], -30_000),
            (&[FAR, FAR], FAR),
            (&[-FAR, -FAR], -FAR),
            // One of three is wrong, and it is another.
            (&[FAR, 0], 0),
            (&[-FAR, 0], 0),
            // Even splits within the limit go by the later half, those beyond it by themselves.
            (&[30_000], 30_000),
            (&[-30_000], 0),
            (&[FAR], 0),
            (&[FAR, FAR, 0], 0),
            (&[FAR, FAR, FAR], FAR),
        ];
        for (peers, want) in cases {
            assert_eq!(among(peers).coming_correction_ms(), want, "peers ahead by {peers:?}");
        }
    }

    #[test]
    fn a_node_that_has_met_only_wrong_clocks_so_far_does_not_follow_them() {
        let mut clocks = PeerClocks::new(60_000, 6, at(0));
        for (peer, want) in [(1, 0), (2, 0), (3, 0), (4, 600_000)] {
            clocks.compared(NodeId(peer), at(0).wall_ms + 600_000, Some(0), 6);
            assert_eq!(clocks.coming_correction_ms(), want, "{peer} of 6 peers are ahead");
        }
    }

    #[test]
    fn only_a_node_ahead_of_most_peers_makes_no_dots() {
        const FAR: i64 = 7_200_000;
        for (peers, want) in [
            (&[-FAR, 0][..], None),
            (&[-FAR, -FAR], Some(FAR)),
            (&[-FAR], Some(FAR)),
            (&[FAR, FAR], None),
            (&[-FAR, -FAR, 0, 0], None),
            (&[-60_000, -60_000], None),
        ] {
            assert_eq!(among(peers).is_ahead(2), want, "peers ahead by {peers:?}");
        }
    }

    #[test]
    fn a_jump_of_the_own_clock_is_made_up_for_at_once() {
        let mut clocks = among(&[0, 0]);
        let mut jumped = at(1_000);
        jumped.wall_ms -= 7_200_000;
        assert_eq!(clocks.time(jumped).wall_ms, at(1_000).wall_ms, "asked before it is taken");
        assert!(clocks.watch(jumped));
        assert_eq!(clocks.time(jumped).wall_ms, at(1_000).wall_ms);
        assert_eq!(clocks.uncorrected_wall_ms(), jumped.wall_ms);
        // All had jumped: the next answers say so.
        for peer in [0, 1] {
            clocks.compared(NodeId(peer), jumped.wall_ms, Some(0), 2);
        }
        assert_eq!(clocks.time(jumped).wall_ms, at(1_000).wall_ms, "time stands still within a turn");
        clocks.end_turn();
        assert_eq!(clocks.time(jumped), jumped);
        assert_eq!((clocks.coming_correction_ms(), clocks.is_ahead(2)), (0, None));
    }

    #[test]
    fn a_jump_far_ahead_is_doubtful_until_half_of_the_peers_were_asked() {
        let mut clocks = PeerClocks::new(60_000, 3, at(0));
        assert!(!clocks.watch(Now { wall_ms: at(0).wall_ms + 60_000, ..at(0) }));
        let jumped = Now { wall_ms: at(0).wall_ms + 200_000, ..at(0) };
        assert!(clocks.watch(jumped));
        assert_eq!(clocks.is_ahead(0), None, "nobody could confirm it");
        assert_eq!(clocks.is_ahead(3), Some(60_000));
        clocks.compared(NodeId(1), jumped.wall_ms, Some(0), 3);
        assert_eq!(clocks.is_ahead(3), Some(60_000));
        clocks.compared(NodeId(2), jumped.wall_ms, Some(0), 3);
        assert_eq!(clocks.is_ahead(3), None);
    }

    #[test]
    fn a_node_that_reaches_nobody_goes_on_by_its_monotonic_clock() {
        for far_ms in [7_200_000, -7_200_000] {
            let mut clocks = PeerClocks::new(60_000, 2, at(0));
            let jumped = |ms: u64| Now { wall_ms: (at(ms).wall_ms as i64 + far_ms) as u64, ..at(ms) };
            clocks.watch(jumped(10));
            assert_eq!(clocks.time(jumped(20)).wall_ms, at(20).wall_ms);
            for peer in [0, 1] {
                clocks.compared(NodeId(peer), jumped(20).wall_ms, Some(0), 2);
            }
            clocks.end_turn();
            assert_eq!(clocks.time(jumped(20)), jumped(20), "all have jumped");
            let mut alone = PeerClocks::new(60_000, 0, at(0));
            alone.watch(jumped(10));
            assert_eq!(alone.time(jumped(20)), jumped(20), "there is nobody to ask");
        }
    }

    #[test]
    fn a_node_that_lags_and_is_not_corrected_makes_no_dots() {
        const FAR: i64 = 7_200_000;
        let mut clocks = PeerClocks::new(60_000, 3, at(0));
        for (peer, want) in [(1, None), (2, Some(-FAR)), (3, None)] {
            clocks.compared(NodeId(peer), (at(0).wall_ms as i64 + FAR) as u64, Some(0), 3);
            assert_eq!(clocks.is_ahead(3), want, "{peer} of 3 peers were asked");
        }
        assert_eq!(clocks.coming_correction_ms(), FAR);
    }

    #[test]
    fn late_answers_and_plain_words_replace_no_good_measure() {
        let mut clocks = among(&[0, 0]);
        for round_trip_us in [None, Some(ROUND_TRIP_US_MAX + 1), Some(u64::MAX)] {
            clocks.compared(NodeId(0), at(0).wall_ms - 6_000, round_trip_us, 2);
            clocks.compared(NodeId(1), at(0).wall_ms - 6_000, round_trip_us, 2);
            assert_eq!(clocks.coming_correction_ms(), 0);
        }
        for wall_ms in [0, 1 << 63, u64::MAX] {
            clocks.compared(NodeId(0), wall_ms, Some(0), 2);
            assert_eq!(clocks.coming_correction_ms(), 0, "one of three");
        }
    }
}
