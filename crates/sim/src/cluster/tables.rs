//! The news that a node hears, and what it may make of it: its tables only go forward, and a peer counts as down by
//! silence only after it was silent for long.

use std::collections::BTreeMap;

use bytes::Bytes;
use oort_core::causality::Dot;
use oort_core::detector::Health;
use oort_core::membership::Gossip;
use oort_core::message::{Control, Message};
use oort_core::node::{Event as NodeEvent, Input, Node, Output};
use oort_core::ring::Founding;
use oort_core::store::Space;
use oort_core::types::{NodeId, Now};

use super::witness::{Scene, Verdict};
use crate::disk::Disk;

/// A peer that was not suspect before is down after so many times `suspect_ms` without a word. The core says ten; some
/// of that may pass while a node looks for silent peers.
const DOWN_FACTOR_MIN: u64 = 8;
/// A round trip counts for a peer's patience, halved, for so long, in microseconds.
const ROUND_TRIP_COUNTS_US: u64 = 10_000_000;
/// A round trip this long, in microseconds, is good enough to compare clocks by.
const ROUND_TRIP_GOOD_US: u64 = 1_000_000;
/// A slow peer gets at most so many times `suspect_ms`.
const PATIENCE_FACTOR_MAX: u64 = 4;

/// The versions of all that a node knows of members and buckets, and its ring.
#[derive(Debug)]
pub(super) struct Versions {
    members: BTreeMap<NodeId, u64>,
    buckets: BTreeMap<Bytes, Dot>,
    founding: Option<Founding>,
    ring: u64,
    has_data: bool,
    me: NodeId,
    /// The version by which the news names the node itself.
    told_own: u64,
}

impl Versions {
    /// Before a step in which `node` hears news; `None` if it does not.
    pub fn before(input: &Input, node: &Node, disk: &Disk) -> Option<Versions> {
        let Input::Message { message: Message::Control(Control::Gossip(gossip)), .. } = input else {
            return None;
        };
        let Gossip::Delta { members, ring, .. } = gossip else { return None };
        // Nothing is taken of a cluster of another founding.
        let founding = node.membership().founding();
        let is_foreign = ring.as_ref().is_some_and(|ring| founding.is_some_and(|ours| ours != ring.founding));
        let own = members.iter().find(|member| member.id == node.id() && !is_foreign);
        let told_own = own.map_or(0, |member| member.version);
        Some(Versions { told_own, ..Versions::of(node, disk) })
    }

    fn of(node: &Node, disk: &Disk) -> Versions {
        let known = node.membership();
        Versions {
            members: known.members.values().map(|member| (member.id, member.version)).collect(),
            buckets: known.buckets.entries().map(|(name, entry)| (name.clone(), entry.set_by)).collect(),
            founding: known.founding(),
            ring: node.ring().map_or(0, |ring| ring.stamp()),
            has_data: disk.count(Space::Data) > 0,
            me: known.me,
            told_own: 0,
        }
    }

    /// The tables that went back in the step.
    pub fn judge(&self, scene: Scene) -> Option<Verdict> {
        let after = Versions::of(scene.node, scene.disk);
        let blame = |what: String| Some(Verdict::new("tables", what));
        let older = self
            .members
            .iter()
            .find(|(id, version)| after.members.get(id).is_some_and(|after| after < version));
        if let Some((id, version)) = older {
            return blame(format!("a node knew node {id} by version {version}, and now by an older one"));
        }
        if after.members.get(&self.me).is_some_and(|version| *version < self.told_own) {
            return blame("a node hears of a newer record of itself, and does not outbid it".into());
        }
        let older = self.buckets.iter().find(|(name, set_by)| after.buckets.get(*name) < Some(set_by));
        if let Some((name, _)) = older {
            return blame(format!("a node has gone back to older properties of {}", name.escape_ascii()));
        }
        if self.founding.is_some() && after.founding != self.founding {
            let detail = "a node with data has given up its founding".into();
            return self.has_data.then(|| Verdict::new("identity", detail));
        }
        (after.ring < self.ring).then(|| blame("a node has gone back to an older ring".into())).flatten()
    }
}

/// All that one machine has heard of the others in its present life.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ears {
    peers: BTreeMap<NodeId, Ear>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ear {
    is_linked: bool,
    /// It was before the last step.
    was_linked: bool,
    /// When a round trip short enough to compare clocks by was first measured.
    measured_well_us: Option<u64>,
    /// When something was last heard, and how long the machine had stood still in all by then.
    heard_us: u64,
    stalled_us: u64,
    /// The last round trip that was measured, and when.
    round_trip_us: u64,
    measured_us: u64,
}

/// When a node listens.
#[derive(Clone, Copy)]
pub(crate) struct Hearing {
    pub now_us: u64,
    pub stalled_us: u64,
    pub suspect_us: u64,
}

impl Ears {
    /// The node is about to take `input`, by its clock at `now`.
    pub fn hear(&mut self, hearing: Hearing, now: Now, input: &Input) {
        let Hearing { now_us, stalled_us, .. } = hearing;
        self.peers.values_mut().for_each(|ear| ear.was_linked = ear.is_linked);
        match input {
            Input::LinkUp { hello } => {
                let ear = self.peers.entry(hello.member.id).or_default();
                (ear.is_linked, ear.heard_us, ear.stalled_us) = (true, now_us, stalled_us);
            }
            Input::LinkDown { peer } => self.peers.entry(*peer).or_default().is_linked = false,
            Input::Message { from, message } => {
                let ear = self.peers.entry(*from).or_default();
                (ear.heard_us, ear.stalled_us) = (now_us, stalled_us);
                if let Message::Control(Control::Gossip(Gossip::Pong { mono_us, .. })) = message {
                    ear.round_trip_us = now.mono_us.saturating_sub(*mono_us);
                    ear.measured_us = now_us;
                    if ear.round_trip_us <= ROUND_TRIP_GOOD_US {
                        ear.measured_well_us.get_or_insert(now_us);
                    }
                }
                if let Message::Control(Control::Gossip(Gossip::Delta { members, .. })) = message {
                    // Goodbye: as if the link were closed.
                    let is_goodbye = members.iter().any(|member| member.id == *from && member.stopped);
                    ear.is_linked &= !is_goodbye;
                }
            }
            _ => {}
        }
    }

    /// True if a good round trip to each of `peers` was measured.
    pub fn have_measured(&self, now_us: u64, mut peers: impl Iterator<Item = NodeId>) -> bool {
        let measured_us = |peer| self.peers.get(&peer).and_then(|ear| ear.measured_well_us);
        // Within a turn time stands still.
        peers.all(|peer| measured_us(peer).is_some_and(|at_us| at_us < now_us))
    }

    /// The fault in the opinions that a node has formed in a step, if any.
    pub fn judge(&self, hearing: Hearing, outputs: &[Output]) -> Vec<Verdict> {
        let changes = outputs.iter().filter_map(|output| match output {
            Output::Event(NodeEvent::HealthChanged { peer, to, .. }) => Some((*peer, *to)),
            _ => None,
        });
        changes.filter_map(|(peer, to)| self.wrong_opinion(hearing, peer, to)).collect()
    }

    fn wrong_opinion(&self, hearing: Hearing, peer: NodeId, to: Health) -> Option<Verdict> {
        let Hearing { now_us, stalled_us, suspect_us } = hearing;
        let ear = self.peers.get(&peer).copied().unwrap_or_default();
        if to == Health::Up {
            let detail = format!("node {peer} counts as up without a link");
            return (!ear.is_linked && !ear.was_linked).then(|| Verdict::new("suspicion", detail));
        }
        if !ear.is_linked {
            return None;
        }
        let stood_us = stalled_us - ear.stalled_us;
        let silent_us = (now_us - ear.heard_us).saturating_sub(stood_us);
        let is_slow = now_us < ear.measured_us + ROUND_TRIP_COUNTS_US;
        let patience_us = match is_slow {
            true => ear.round_trip_us.clamp(suspect_us, PATIENCE_FACTOR_MAX * suspect_us),
            false => suspect_us,
        };
        let least_us = match to {
            Health::Down => DOWN_FACTOR_MIN * patience_us,
            _ => patience_us / 2,
        };
        (silent_us < least_us).then(|| {
            let detail = format!("node {peer} counts as {to:?} after {} ms of silence", silent_us / 1000);
            Verdict::new("suspicion", detail)
        })
    }
}
