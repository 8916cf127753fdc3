//! Whether a peer is worth asking: this node's own opinion, from links and silence.
//!
//! A closed link makes a peer down at once. Silence does so in two steps: a message left unanswered for `suspect_ms`
//! makes it suspect (others are asked first, but it still gets its writes), ten times that makes it down (it gets hints
//! instead). Any message from it makes it up again. Probes to a silent peer back off, from one round of gossip to 32.
//!
//! Source: Dynamo §4.8.3: a local notion of failure is enough, because joins and leaves are explicit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::NodeId;

/// After this many times `suspect_ms` of silence a suspect peer counts as down.
const DOWN_FACTOR: u64 = 10;
/// The longest pause between probes, in rounds.
const BACKOFF_ROUNDS_MAX: u32 = 32;

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
    waiting_since_us: Option<u64>,
    health: Health,
    probe_in_rounds: u32,
    backoff_rounds: u32,
    rtt_us: u64,
}

/// Opinions of all peers ever linked.
#[derive(Clone, Debug)]
pub struct Detector {
    suspect_us: u64,
    peers: BTreeMap<NodeId, Peer>,
}

impl Detector {
    /// `suspect_ms`: silence that makes a peer suspect.
    pub fn new(suspect_ms: u64) -> Detector {
        Detector { suspect_us: suspect_ms * 1000, peers: BTreeMap::new() }
    }

    /// The opinion of `peer`; one never linked is down.
    pub fn health(&self, peer: NodeId) -> Health {
        self.peers.get(&peer).map_or(Health::Down, |p| p.health)
    }

    /// True unless `peer` is down.
    pub fn is_reachable(&self, peer: NodeId) -> bool {
        self.health(peer) != Health::Down
    }

    /// Smoothed round trip of probes, in microseconds; 0 if never measured.
    pub fn rtt_us(&self, peer: NodeId) -> u64 {
        self.peers.get(&peer).map_or(0, |p| p.rtt_us)
    }

    /// The link to `peer` was opened. True if the opinion changed.
    pub fn link_up(&mut self, peer: NodeId) -> bool {
        let changed = self.health(peer) != Health::Up;
        let rtt_us = self.rtt_us(peer);
        self.peers.insert(
            peer,
            Peer {
                linked: true,
                waiting_since_us: None,
                health: Health::Up,
                probe_in_rounds: 0,
                backoff_rounds: 1,
                rtt_us,
            },
        );
        changed
    }

    /// The link to `peer` was closed. True if the opinion changed.
    pub fn link_down(&mut self, peer: NodeId) -> bool {
        let changed = self.health(peer) != Health::Down;
        if let Some(p) = self.peers.get_mut(&peer) {
            (p.linked, p.health, p.waiting_since_us) = (false, Health::Down, None);
        }
        changed
    }

    /// A message that wants an answer is being sent to `peer`.
    pub fn sent(&mut self, peer: NodeId, now_us: u64) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.waiting_since_us.get_or_insert(now_us);
        }
    }

    /// A message came from `peer`. True if the opinion changed.
    pub fn heard(&mut self, peer: NodeId) -> bool {
        let Some(p) = self.peers.get_mut(&peer) else {
            return false;
        };
        p.waiting_since_us = None;
        if p.health == Health::Up || !p.linked {
            return false;
        }
        (p.health, p.backoff_rounds, p.probe_in_rounds) = (Health::Up, 1, 0);
        true
    }

    /// A probe's answer took `rtt_us`.
    pub fn measured(&mut self, peer: NodeId, rtt_us: u64) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.rtt_us = if p.rtt_us == 0 { rtt_us } else { (p.rtt_us * 7 + rtt_us) / 8 };
        }
    }

    /// Applies the passing of time; returns the peers whose health changed, with their health before.
    pub fn expire(&mut self, now_us: u64) -> Vec<(NodeId, Health)> {
        let mut changed = Vec::new();
        for (id, p) in &mut self.peers {
            let Some(since) = p.waiting_since_us else { continue };
            let silence = now_us.saturating_sub(since);
            let health = match silence {
                s if s >= self.suspect_us * DOWN_FACTOR => Health::Down,
                s if s >= self.suspect_us => Health::Suspect,
                _ => continue,
            };
            if health > p.health {
                changed.push((*id, p.health));
                p.health = health;
            }
        }
        changed
    }

    /// When [`Detector::expire`] next has something to do, in microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.peers
            .values()
            .filter_map(|p| match (p.waiting_since_us, p.health) {
                (Some(since), Health::Up) => Some(since + self.suspect_us),
                (Some(since), Health::Suspect) => Some(since + self.suspect_us * DOWN_FACTOR),
                _ => None,
            })
            .min()
    }

    /// Whom to probe in this round of gossip: everybody linked, silent ones ever more rarely.
    pub fn probes(&mut self) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (id, p) in &mut self.peers {
            if !p.linked {
                continue;
            }
            if p.probe_in_rounds > 1 {
                p.probe_in_rounds -= 1;
                continue;
            }
            due.push(*id);
            if p.health == Health::Down {
                p.backoff_rounds = (p.backoff_rounds * 2).min(BACKOFF_ROUNDS_MAX);
                p.probe_in_rounds = p.backoff_rounds;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(7);

    #[test]
    fn silence_makes_suspect_then_down_and_a_word_makes_up() {
        let mut detector = Detector::new(50);
        assert_eq!(detector.health(PEER), Health::Down);
        assert!(detector.link_up(PEER));
        detector.sent(PEER, 1_000);
        detector.sent(PEER, 40_000);
        assert!(detector.expire(50_000).is_empty());
        assert_eq!(detector.next_deadline_us(), Some(51_000));
        assert_eq!(detector.expire(51_000), [(PEER, Health::Up)]);
        assert_eq!(detector.health(PEER), Health::Suspect);
        assert_eq!(detector.expire(501_000), [(PEER, Health::Suspect)]);
        assert!(!detector.is_reachable(PEER));
        assert!(detector.heard(PEER));
        assert_eq!(detector.health(PEER), Health::Up);
    }

    #[test]
    fn a_closed_link_is_down_at_once_and_stays_so_until_it_opens() {
        let mut detector = Detector::new(50);
        detector.link_up(PEER);
        assert!(detector.link_down(PEER));
        assert!(!detector.heard(PEER));
        assert_eq!(detector.health(PEER), Health::Down);
        assert!(detector.link_up(PEER));
    }

    #[test]
    fn probes_to_a_silent_peer_back_off() {
        let mut detector = Detector::new(50);
        detector.link_up(PEER);
        detector.sent(PEER, 0);
        detector.expire(10_000_000);
        let probes = (0..100).filter(|_| !detector.probes().is_empty()).count();
        assert!((5..10).contains(&probes), "{probes} probes in 100 rounds");
    }
}
