//! Whether a peer is worth asking: this node's own opinion, from links and silence, and what makes others look too.
//!
//! A closed link makes a peer down at once. Silence does so in two steps: a message left unanswered for `suspect_ms`
//! makes it suspect (others are asked first, but it still gets its writes), ten times that makes it down (it gets hints
//! instead). Meanwhile it is asked again, after a quarter of `suspect_ms` and then each time twice as late, so one lost
//! message makes nobody suspect. Any message from it makes it up again. Health says whom to ask next; how long an
//! answer is waited for is the request's own matter.
//!
//! A node that was late itself accuses nobody. It looks at silent peers every quarter of `suspect_ms`, and the time by
//! which it came late to a look does not count as silence: it heard nobody then. And peers that were slow lately get
//! more time: twice the longest round trip, or the longest lateness of this node, which fades within a minute, up to
//! [`PATIENCE_FACTOR_MAX`] times `suspect_ms`.
//!
//! Each round of gossip asks a few peers in shuffled order, in a small cluster all of them: the work of a node does
//! not grow with the cluster. Whoever finds a peer silent tells many others. A rumour changes nobody's opinion: who
//! hears it asks the peer, and passes the rumour on when it got no answer either. So all know of a crash within a few
//! times `suspect_ms`, a false rumour dies with those who hear it first, and nothing has to be refuted.
//! `docs/failure-detection.md` has figures.
//!
//! Source: Dynamo §4.8.3: a local notion of failure is enough, because joins and leaves are explicit. Das et al.,
//! "SWIM", 2002: a few probes a round, in shuffled order (§4.3). Differs: SWIM spreads verdicts, so it needs others to
//! confirm them and numbers to take them back. Here everyone asks for itself: what counts is whom this node can reach.
//! Dadgar, Phillips and Currey, "Lifeguard", 2018, §4 (local health): an accuser that is slow itself is more patient.
//! Differs: it knows how late it was, since it asked to be woken, instead of guessing from answers that it misses.
//! Hayashibara et al., "The phi accrual failure detector", 2004: the threshold follows the delays that were measured.
//! Differs: the longest delay counts instead of a distribution, which the rare long pause would not fit.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::types::{NodeId, Rng};

/// After this many times `suspect_ms` of silence a suspect peer counts as down.
const DOWN_FACTOR: u64 = 10;
/// A silent peer is asked again after this part of `suspect_ms`. Too small: more messages to busy peers; too large: one
/// or two lost messages make a peer suspect.
const RETRY_PART: u64 = 4;
/// The longest pause before a silent peer is asked again. Too small: messages in vain; too large: it takes longer until
/// both sides of a healed split see each other.
const RETRY_PAUSE_US_MAX: u64 = 5_000_000;
/// How many peers are asked in a round of gossip. Too small: a silent peer is noticed later; too large: messages.
const PROBES_PER_ROUND: usize = 10;
/// The most peers that one rumour names; further ones follow in the next.
pub const RUMOUR_PEERS_MAX: usize = 128;
/// A round trip measured longer ago than this says less than coordinates.
const FRESH_US: u64 = 10_000_000;
/// A peer gets at most this many times `suspect_ms` for having been slow. Too small: a peer that often stands still is
/// taken for dead; too large: one that died after it was slow is taken for alive.
const PATIENCE_FACTOR_MAX: u64 = 4;
/// The longest delay counts half after this. Too short: the next pause surprises; too long: one pause makes patient for
/// long.
const HALF_LIFE_US: u64 = 10_000_000;

/// This node's opinion of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Health {
    Up,
    /// Late with an answer.
    Suspect,
    /// Unreachable: not worth a message.
    Down,
}

#[derive(Clone, Debug)]
struct Peer {
    linked: bool,
    health: Health,
    /// The last round trips of probes; 0: none yet.
    round_trips_us: [u64; 3],
    measured_us: u64,
    /// The longest round trip lately.
    slowest: Peak,
}

/// The longest of some delays, which counts less the longer ago it was.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    delay_us: u64,
    at_us: u64,
}

impl Peak {
    fn delay_us(self, now_us: u64) -> u64 {
        let halvings = now_us.saturating_sub(self.at_us) / HALF_LIFE_US;
        self.delay_us >> halvings.min(63)
    }

    fn note(&mut self, delay_us: u64, now_us: u64) {
        if delay_us >= self.delay_us(now_us) {
            *self = Peak { delay_us, at_us: now_us };
        }
    }
}

/// A peer that owes an answer.
#[derive(Clone, Copy, Debug)]
struct Silence {
    /// As if silence had begun then: later by the time in which this node itself was late.
    since_us: u64,
    /// When it is asked again.
    retry_us: u64,
}

/// Opinions of all peers ever linked.
#[derive(Clone, Debug)]
pub struct Detector {
    suspect_us: u64,
    peers: BTreeMap<NodeId, Peer>,
    silent: BTreeMap<NodeId, Silence>,
    /// When silent peers are looked at next, `u64::MAX` if there are none but those that are down.
    look_us: u64,
    /// The longest time lately by which this node came too late to a look.
    latest: Peak,
    /// When time last passed here.
    now_us: u64,
    /// Own lateness is taken for the silence of others.
    #[cfg(feature = "sabotage")]
    accuses_when_late: bool,
    /// Whose turn it still is before the order is shuffled anew, last first.
    unprobed: Vec<NodeId>,
    /// Peers found silent that nobody was told of yet.
    untold: BTreeSet<NodeId>,
    next_rumour_us: u64,
}

impl Detector {
    /// `suspect_ms`: silence that makes a peer suspect, at least 1.
    pub fn new(suspect_ms: u64) -> Detector {
        Detector {
            suspect_us: suspect_ms * 1000,
            peers: BTreeMap::new(),
            silent: BTreeMap::new(),
            look_us: u64::MAX,
            latest: Peak::default(),
            now_us: 0,
            #[cfg(feature = "sabotage")]
            accuses_when_late: false,
            unprobed: Vec::new(),
            untold: BTreeSet::new(),
            next_rumour_us: 0,
        }
    }

    /// From now on the time by which this node is late counts as silence of its peers.
    #[cfg(feature = "sabotage")]
    pub fn accuse_when_late(&mut self) {
        self.accuses_when_late = true;
    }

    /// The opinion of `peer`; one never linked is down.
    pub fn health(&self, peer: NodeId) -> Health {
        self.peers.get(&peer).map_or(Health::Down, |p| p.health)
    }

    /// Number of peers that are down.
    pub fn count_down(&self) -> usize {
        self.peers.values().filter(|peer| peer.health == Health::Down).count()
    }

    /// True unless `peer` is down.
    pub fn is_reachable(&self, peer: NodeId) -> bool {
        self.health(peer) != Health::Down
    }

    /// True if the link to `peer` is open, so that it may still answer, however long it has been silent.
    pub fn is_linked(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.linked)
    }

    /// Number of peers that are up.
    pub fn up_count(&self) -> usize {
        self.peers.values().filter(|p| p.health == Health::Up).count()
    }

    /// The round trip of a probe, the median of the last three, in microseconds; 0 if never measured.
    pub fn rtt_us(&self, peer: NodeId) -> u64 {
        self.peers.get(&peer).map_or(0, |p| median(p.round_trips_us))
    }

    /// [`Detector::rtt_us`] if it was measured lately.
    pub fn fresh_rtt_us(&self, peer: NodeId, now_us: u64) -> Option<u64> {
        let p = self.peers.get(&peer).filter(|p| p.round_trips_us[0] > 0)?;
        (now_us <= p.measured_us + FRESH_US).then(|| median(p.round_trips_us))
    }

    /// The link to `peer` was opened. True if the opinion changed.
    pub fn link_up(&mut self, peer: NodeId) -> bool {
        self.silent.remove(&peer);
        let unknown = Peer {
            linked: false,
            health: Health::Down,
            round_trips_us: [0; 3],
            measured_us: 0,
            slowest: Peak::default(),
        };
        let p = self.peers.entry(peer).or_insert(unknown);
        p.linked = true;
        std::mem::replace(&mut p.health, Health::Up) != Health::Up
    }

    /// The link to `peer` was closed. True if the opinion changed.
    pub fn link_down(&mut self, peer: NodeId) -> bool {
        self.silent.remove(&peer);
        let Some(p) = self.peers.get_mut(&peer) else {
            return false;
        };
        p.linked = false;
        std::mem::replace(&mut p.health, Health::Down) != Health::Down
    }

    /// A message that wants an answer is being sent to `peer`.
    pub fn sent(&mut self, peer: NodeId, now_us: u64) {
        if self.silent.contains_key(&peer) || !self.is_linked(peer) {
            return;
        }
        let retry_us = now_us + self.pause_us();
        self.silent.insert(peer, Silence { since_us: now_us, retry_us });
        self.look_us = self.look_us.min(retry_us);
    }

    /// A message came from `peer`. True if the opinion changed.
    pub fn heard(&mut self, peer: NodeId) -> bool {
        self.silent.remove(&peer);
        match self.peers.get_mut(&peer) {
            Some(p) if p.linked => std::mem::replace(&mut p.health, Health::Up) != Health::Up,
            _ => false,
        }
    }

    /// A probe's answer took `rtt_us`, at least 1.
    pub fn measured(&mut self, peer: NodeId, rtt_us: u64, now_us: u64) {
        if let Some(p) = self.peers.get_mut(&peer) {
            let [last, before, _] = p.round_trips_us;
            p.round_trips_us = if last == 0 { [rtt_us; 3] } else { [rtt_us, last, before] };
            p.measured_us = now_us;
            p.slowest.note(rtt_us, now_us);
        }
    }

    /// The time between two looks at silent peers.
    fn pause_us(&self) -> u64 {
        self.suspect_us / RETRY_PART
    }

    /// How long `peer` may be silent before it is suspect.
    fn patience_us(&self, peer: &Peer) -> u64 {
        let delay_us = peer.slowest.delay_us(self.now_us).max(self.latest.delay_us(self.now_us));
        (2 * delay_us).clamp(self.suspect_us, self.suspect_us * PATIENCE_FACTOR_MAX)
    }

    /// Time has passed: counts none of it as silence by which this node comes late.
    fn excuse(&mut self, now_us: u64) {
        self.now_us = now_us;
        let late_us = now_us.saturating_sub(self.look_us);
        #[cfg(feature = "sabotage")]
        let late_us = if self.accuses_when_late { 0 } else { late_us };
        if late_us == 0 {
            return;
        }
        self.latest.note(late_us, now_us);
        for silence in self.silent.values_mut() {
            silence.since_us = (silence.since_us + late_us).min(now_us);
        }
    }

    /// Applies the passing of time; returns the peers whose health changed, with their health before.
    pub fn expire(&mut self, now_us: u64) -> Vec<(NodeId, Health)> {
        self.excuse(now_us);
        let mut changed = Vec::new();
        let mut is_to_look = false;
        for (id, silence) in &self.silent {
            let Some(peer) = self.peers.get(id) else { continue };
            let patience_us = self.patience_us(peer);
            let health = match now_us.saturating_sub(silence.since_us) {
                silent_us if silent_us >= patience_us * DOWN_FACTOR => Health::Down,
                silent_us if silent_us >= patience_us => Health::Suspect,
                _ => Health::Up,
            };
            is_to_look |= health.max(peer.health) != Health::Down;
            let Some(p) = self.peers.get_mut(id).filter(|p| p.health < health) else { continue };
            if p.health == Health::Up {
                self.untold.insert(*id);
            }
            changed.push((*id, std::mem::replace(&mut p.health, health)));
        }
        self.look_us = if is_to_look { now_us + self.pause_us() } else { u64::MAX };
        changed
    }

    /// Silent peers that are to be asked again now.
    pub fn retries(&mut self, now_us: u64) -> Vec<NodeId> {
        let mut due = Vec::new();
        let pause_us = self.pause_us();
        for (id, silence) in self.silent.iter_mut().filter(|(_, silence)| silence.retry_us <= now_us) {
            let silent_us = now_us.saturating_sub(silence.since_us);
            silence.retry_us = now_us + silent_us.clamp(pause_us, RETRY_PAUSE_US_MAX.max(pause_us));
            due.push(*id);
        }
        due
    }

    /// When [`Detector::expire`], [`Detector::retries`] or [`Detector::rumour`] next has something to do, in
    /// microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        let deadline_us = |(id, silence): (&NodeId, &Silence)| {
            let patience_us = self.peers.get(id).map_or(0, |peer| self.patience_us(peer));
            match self.health(*id) {
                Health::Up => silence.retry_us.min(silence.since_us + patience_us),
                Health::Suspect => silence.retry_us.min(silence.since_us + patience_us * DOWN_FACTOR),
                Health::Down => silence.retry_us,
            }
        };
        let rumour_us = (!self.untold.is_empty()).then_some(self.next_rumour_us);
        let look_us = Some(self.look_us).filter(|at_us| *at_us < u64::MAX);
        self.silent.iter().map(deadline_us).chain(rumour_us).chain(look_us).min()
    }

    /// Whom to probe in this round of gossip: everybody linked if they are few, else the next in shuffled order.
    /// Whoever owes an answer is asked again at its own time.
    pub fn probes(&mut self, rng: &mut Rng) -> Vec<NodeId> {
        let linked = self.peers.iter().filter(|(_, p)| p.linked);
        let linked: Vec<NodeId> = linked.map(|(id, _)| *id).collect();
        let mut due = Vec::new();
        for _ in 0..linked.len().min(PROBES_PER_ROUND) {
            if self.unprobed.is_empty() {
                self.unprobed.clone_from(&linked);
                rng.shuffle(&mut self.unprobed);
            }
            due.extend(self.unprobed.pop());
        }
        due.retain(|peer| self.is_linked(*peer) && !self.silent.contains_key(peer));
        due
    }

    /// The peers to tell others of now, because they do not answer; empty if there are none or it is too early.
    pub fn rumour(&mut self, now_us: u64) -> Vec<NodeId> {
        if now_us < self.next_rumour_us || self.untold.is_empty() {
            return Vec::new();
        }
        // When much of the cluster falls silent at once, few messages say so.
        self.next_rumour_us = now_us + self.suspect_us / 2;
        let mut peers = Vec::new();
        while let Some(peer) = self.untold.pop_first() {
            if self.health(peer) != Health::Up {
                peers.push(peer);
            }
            if peers.len() == RUMOUR_PEERS_MAX {
                break;
            }
        }
        peers
    }

    /// Whether a rumour that `peer` is silent is news: it is up here, and no answer of it is awaited.
    pub fn is_trusted(&self, peer: NodeId) -> bool {
        self.health(peer) == Health::Up && !self.silent.contains_key(&peer)
    }
}

fn median([a, b, c]: [u64; 3]) -> u64 {
    a.max(b).min(a.min(b).max(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(7);

    /// Looks whenever it is time to, until `until_us`; returns all changes.
    fn look_on(detector: &mut Detector, until_us: u64) -> Vec<(u64, NodeId, Health)> {
        let mut changed = Vec::new();
        while let Some(at_us) = detector.next_deadline_us().filter(|at_us| *at_us <= until_us) {
            for (peer, before) in detector.expire(at_us) {
                changed.push((at_us, peer, before));
            }
            detector.retries(at_us);
            detector.rumour(at_us);
        }
        changed
    }

    fn linked(peers: u64) -> Detector {
        let mut detector = Detector::new(40);
        (0..peers).for_each(|id| assert!(detector.link_up(NodeId(id))));
        detector
    }

    #[test]
    fn silence_makes_suspect_then_down_and_a_word_makes_up() {
        let mut detector = Detector::new(50);
        assert_eq!(detector.health(PEER), Health::Down);
        assert!(detector.link_up(PEER));
        detector.sent(PEER, 1_000);
        detector.sent(PEER, 40_000);
        assert!(look_on(&mut detector, 50_000).is_empty());
        assert_eq!(look_on(&mut detector, 51_000), [(51_000, PEER, Health::Up)]);
        assert_eq!(detector.health(PEER), Health::Suspect);
        assert_eq!(look_on(&mut detector, 501_000), [(501_000, PEER, Health::Suspect)]);
        assert!(!detector.is_reachable(PEER));
        assert!(detector.is_linked(PEER), "it may still answer");
        assert!(detector.heard(PEER));
        assert_eq!(detector.health(PEER), Health::Up);
    }

    #[test]
    fn a_closed_link_is_down_at_once_and_stays_so_until_it_opens() {
        let mut detector = Detector::new(50);
        detector.link_up(PEER);
        assert!(detector.link_down(PEER));
        assert!(!detector.heard(PEER));
        detector.sent(PEER, 0);
        assert_eq!(detector.next_deadline_us(), None);
        assert_eq!(detector.health(PEER), Health::Down);
        assert!(detector.link_up(PEER));
    }

    #[test]
    fn a_silent_peer_is_asked_again_and_ever_more_rarely() {
        let mut detector = linked(1);
        let mut asked_ms = Vec::new();
        detector.sent(NodeId(0), 0);
        for ms in 0..30_000 {
            detector.expire(ms * 1000);
            if !detector.retries(ms * 1000).is_empty() {
                asked_ms.push(ms);
            }
            detector.rumour(ms * 1000);
            assert!(detector.next_deadline_us() > Some(ms * 1000));
        }
        assert_eq!(asked_ms, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10120, 15120, 20120, 25120]);
        assert!(detector.heard(NodeId(0)));
        assert_eq!(detector.next_deadline_us(), None);
    }

    #[test]
    fn a_node_that_was_late_itself_accuses_nobody() {
        let mut detector = Detector::new(50);
        detector.link_up(PEER);
        detector.sent(PEER, 0);
        assert!(look_on(&mut detector, 25_000).is_empty());
        // It stands still for ten seconds, in the middle of the peer's silence.
        assert!(detector.expire(10_025_000).is_empty(), "nobody was listening");
        let changes = look_on(&mut detector, 13_000_000);
        let after_us: Vec<u64> = changes.iter().map(|(at_us, ..)| at_us - 10_025_000).collect();
        assert_eq!(after_us.len(), 2, "{changes:?}");
        assert!((100_000..200_000).contains(&after_us[0]), "four times as patient: {after_us:?}");
        assert!((1_900_000..2_000_000).contains(&after_us[1]), "{after_us:?}");
        // A loop that is late each time accuses later.
        let mut detector = Detector::new(50);
        detector.link_up(PEER);
        detector.sent(PEER, 0);
        let first = (1..).map(|turn| turn * 100_000).find(|at_us| !detector.expire(*at_us).is_empty());
        assert!(first >= Some(1_000_000), "{first:?}");
    }

    #[test]
    fn a_peer_that_was_slow_gets_more_time_for_a_while() {
        let suspected_after_us = |rtt_us: u64, later_us: u64| {
            let mut detector = Detector::new(50);
            detector.link_up(PEER);
            detector.measured(PEER, rtt_us, 1_000);
            detector.sent(PEER, 1_000 + later_us);
            look_on(&mut detector, 1_000 + later_us + 300_000)[0].0 - 1_000 - later_us
        };
        assert_eq!(suspected_after_us(300, 0), 50_000);
        assert_eq!(suspected_after_us(40_000, 0), 80_000);
        assert_eq!(suspected_after_us(900_000, 0), 200_000, "at most four times as long");
        assert_eq!(suspected_after_us(40_000, 10_000_000), 50_000);
        assert_eq!(suspected_after_us(900_000, 60_000_000), 50_000);
    }

    #[test]
    fn few_peers_are_all_probed_and_of_many_each_in_its_turn() {
        let mut rng = Rng::new(1);
        let mut detector = linked(9);
        detector.link_down(NodeId(3));
        for _ in 0..100 {
            assert_eq!(detector.probes(&mut rng).len(), 8);
        }
        detector.sent(NodeId(4), 0);
        assert!(!detector.probes(&mut rng).contains(&NodeId(4)), "it is asked again at its own time");
        let mut detector = linked(50);
        let mut probed: Vec<NodeId> = (0..5).flat_map(|_| detector.probes(&mut rng)).collect();
        assert_ne!(probed, (0..50).map(NodeId).collect::<Vec<_>>());
        probed.sort();
        assert_eq!(probed, (0..50).map(NodeId).collect::<Vec<_>>());
    }

    #[test]
    fn rumours_name_silent_peers_once_and_in_bundles() {
        let mut detector = linked(200);
        (0..200).for_each(|id| detector.sent(NodeId(id), id));
        for at_us in [10_000, 20_000, 30_000, 40_000, 40_100] {
            detector.expire(at_us);
        }
        detector.heard(NodeId(5));
        let first = detector.rumour(40_100);
        assert_eq!(first.len(), 101 - 1);
        assert!(!first.contains(&NodeId(5)), "it has answered");
        detector.expire(40_300);
        assert!(detector.rumour(40_300).is_empty(), "too early");
        assert_eq!(detector.next_deadline_us().map(|at_us| at_us.min(60_100)), Some(10_000));
        detector.retries(40_300);
        assert_eq!(detector.next_deadline_us(), Some(50_300), "the next look");
        assert_eq!(detector.rumour(60_100).len(), 99);
        assert!(detector.rumour(90_000).is_empty());
        assert!(detector.is_trusted(NodeId(5)));
        assert!(!detector.is_trusted(NodeId(6)));
    }

    #[test]
    fn round_trips_are_medians_and_grow_old() {
        let mut detector = linked(1);
        assert_eq!((detector.rtt_us(NodeId(0)), detector.fresh_rtt_us(NodeId(0), 0)), (0, None));
        detector.measured(NodeId(0), 100, 0);
        detector.measured(NodeId(0), 2_000_000, 0);
        assert_eq!(detector.fresh_rtt_us(NodeId(0), FRESH_US), Some(100));
        detector.measured(NodeId(0), 300, 1);
        assert_eq!(detector.rtt_us(NodeId(0)), 300);
        assert_eq!(detector.fresh_rtt_us(NodeId(0), FRESH_US + 2), None);
    }
}
