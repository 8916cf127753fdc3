//! What a node does unasked: gossip and probes, founding the ring, watching clocks, giving hints back.

use bytes::Bytes;

use super::{Event, Greeting, Node, Origin, Output, Task, Work};
use crate::bucket::{BucketEntry, BucketProperties, PropertyError, BUCKETS_MAX};
use crate::client::{ClientError, Reply};
use crate::config::NodeConfig;
use crate::detector::{Health, RUMOUR_PEERS_MAX};
use crate::handoff::Delivery;
use crate::membership::{Changes, Gossip, Hello, Member, Refusal};
use crate::message::{Control, Message, TaskId, WriteOutcome};
use crate::object::Object;
use crate::ring::{Founding, RingState};
use crate::types::{NodeId, Now, ObjectKey};

/// A coordinate is told to everybody when it has moved by this much, in microseconds. Too small: gossip never rests;
/// too large: nodes that seldom measure their distance take a far one for near.
const COORDINATE_MOVED_US: u64 = 5_000;
/// Between two tellings of a coordinate at least this long passes, in microseconds.
const COORDINATE_PAUSE_US: u64 = 60_000_000;

/// A node with more client requests in flight than this is busy: background work holds back. Source: Dynamo §6.5.
const BUSY_REQUESTS: usize = 16;

impl Node {
    /// Everything whose time has come.
    pub(super) fn run_due(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.has_announced {
            self.has_announced = true;
            let known: Vec<NodeId> = self.membership.members.keys().copied().collect();
            self.connect(&known, out);
            self.found_ring(now, out);
        }
        while let Some(id) = self.tasks.next_due(now.mono_us) {
            self.task_due(now, id, out);
        }
        for (peer, before) in self.detector.expire(now.mono_us) {
            self.health_changed(now, peer, before, out);
        }
        for peer in self.detector.retries(now.mono_us) {
            self.ping(now, peer, out);
        }
        self.tell_rumour(now, out);
        if now.mono_us >= self.next_round_us {
            self.next_round_us = now.mono_us + self.config.gossip_ms * 1000;
            self.round(now, out);
        }
        if now.mono_us >= self.next_entropy_us {
            let pause_ms = if self.config.entropy_ms == 0 { 60_000 } else { self.config.entropy_ms };
            self.next_entropy_us = now.mono_us + pause_ms * 1000;
            // While clients wait, seven rounds of eight are left out.
            let is_busy = self.requests_in_flight > BUSY_REQUESTS && self.rng.chance(7, 8);
            if self.config.entropy_ms > 0 && !is_busy {
                self.compare_partition(now, out);
                self.collect(now, out);
            }
        }
        self.start_repairs(now, out);
        self.move_data(now, out);
        self.keep_homes(now, out);
    }

    /// One round of gossip: probes to some peers, a hash of the tables to one.
    fn round(&mut self, now: Now, out: &mut Vec<Output>) {
        for peer in self.detector.probes(&mut self.rng) {
            self.ping(now, peer, out);
        }
        let up: Vec<NodeId> = self.peers_up();
        if !up.is_empty() {
            let peer = up[self.rng.below(up.len() as u64) as usize];
            self.tell(peer, Gossip::Hash(self.membership.hash()), out);
        }
        self.tell_coordinate(now);
        self.found_ring(now, out);
        self.note_emptiness(now);
        self.follow_buckets(now, out);
        self.turn_over_hints();
        for owner in self.handoff.owners() {
            self.hand_over(now, owner, out);
        }
    }

    pub(super) fn peers_up(&self) -> Vec<NodeId> {
        self.membership.members.keys().copied().filter(|&id| self.detector.health(id) == Health::Up).collect()
    }

    pub(super) fn tell(&mut self, to: NodeId, gossip: Gossip, out: &mut Vec<Output>) {
        out.push(Output::Send { to, message: Message::Control(Control::Gossip(gossip)) });
    }

    /// Tells many others who has fallen silent: so many that with all who find the same hardly anybody is left out.
    fn tell_rumour(&mut self, now: Now, out: &mut Vec<Output>) {
        let silent = self.detector.rumour(now.mono_us);
        if silent.is_empty() {
            return;
        }
        let mut peers = self.peers_up();
        self.rng.shuffle(&mut peers);
        peers.truncate(2 + 2 * peers.len().max(1).ilog2() as usize);
        for peer in peers {
            self.tell(peer, Gossip::Rumour { silent: silent.clone() }, out);
        }
    }

    fn tell_coordinate(&mut self, now: Now) {
        let has_moved = self.coordinate.moved_us(&self.membership.own().coordinate) >= COORDINATE_MOVED_US;
        if !has_moved || !self.coordinate.is_useful() || now.mono_us < self.next_coordinate_us {
            return;
        }
        self.next_coordinate_us = now.mono_us + COORDINATE_PAUSE_US;
        let coordinate = self.coordinate;
        self.membership.update_own(now.wall_ms, |own| own.coordinate = coordinate);
        self.membership_is_dirty = true;
    }

    fn ping(&mut self, now: Now, peer: NodeId, out: &mut Vec<Output>) {
        let ping = Gossip::Ping { mono_us: now.mono_us, wall_ms: self.clocks.uncorrected_wall_ms() };
        self.send(now, peer, Message::Control(Control::Gossip(ping)), out);
    }

    // Links and health

    /// A peer's own word about where it is goes before everything others tell of it: only it raises its version.
    pub(super) fn greeted(&mut self, now: Now, hello: Hello, out: &mut Vec<Output>) {
        self.take_word(now, hello.member, out);
    }

    fn take_word(&mut self, now: Now, member: Member, out: &mut Vec<Output>) {
        #[cfg(feature = "sabotage")]
        let member = match self.membership.members.get(&member.id) {
            Some(held) if self.config.sabotage == crate::config::Sabotage::KeepAddress => {
                Member { addresses: held.addresses.clone(), ..member }
            }
            _ => member,
        };
        let changes = self.membership.merge(vec![member], None, Vec::new());
        self.membership_changed(now, changes, out);
    }

    pub(super) fn link_up(&mut self, now: Now, hello: Hello, out: &mut Vec<Output>) {
        let peer = hello.member.id;
        let (they_were_settled, we_were_settled) = (hello.is_settled, self.is_settled());
        let greeting = Greeting { session: hello.session, they_were_settled, we_were_settled };
        self.greetings.insert(peer, greeting);
        let before = self.detector.health(peer);
        let changed = self.detector.link_up(peer);
        self.compare_clock(peer, hello.wall_ms, None, out);
        self.forwards.forget(peer);
        self.take_word(now, hello.member, out);
        self.ping(now, peer, out);
        self.tell(peer, Gossip::Hash(self.membership.hash()), out);
        if changed {
            self.health_changed(now, peer, before, out);
        }
    }

    pub(super) fn link_down(&mut self, now: Now, peer: NodeId, out: &mut Vec<Output>) {
        let before = self.detector.health(peer);
        if self.detector.link_down(peer) {
            self.health_changed(now, peer, before, out);
        }
        self.greetings.remove(&peer);
        self.forwards.forget(peer);
    }

    pub(super) fn heard(&mut self, now: Now, peer: NodeId, out: &mut Vec<Output>) {
        let before = self.detector.health(peer);
        if self.detector.heard(peer) {
            self.health_changed(now, peer, before, out);
        }
    }

    fn health_changed(&mut self, now: Now, peer: NodeId, from: Health, out: &mut Vec<Output>) {
        let to = self.detector.health(peer);
        out.push(Output::Event(Event::HealthChanged { peer, from, to }));
        match to {
            Health::Up => self.hand_over(now, peer, out),
            Health::Suspect | Health::Down => {
                self.metrics.suspicions += 1;
                self.metrics.silent_downs += self.is_silent(peer) as u64;
                self.ask_others_than(now, peer, out);
            }
        }
    }

    /// Refuses new requests and says goodbye, so that peers do not wait for this node.
    pub(super) fn stop(&mut self, now: Now, out: &mut Vec<Output>) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        self.flush_homes(now, out);
        self.membership.update_own(now.wall_ms, |own| own.stopped = true);
        self.membership_is_dirty = true;
        self.replica.stop_cleanly();
        let own = self.membership.own().clone();
        for peer in self.peers_up() {
            let goodbye = Gossip::Delta { members: vec![own.clone()], ring: None, buckets: Vec::new() };
            self.tell(peer, goodbye, out);
        }
    }

    // Gossip

    pub(super) fn gossip(&mut self, now: Now, from: NodeId, gossip: Gossip, out: &mut Vec<Output>) {
        match gossip {
            Gossip::Hash(hash) => {
                if hash != self.membership.hash() {
                    let versions = self.membership.versions(true);
                    self.tell(from, versions, out);
                }
            }
            Gossip::Versions { founding: Some(theirs), reply, .. } if self.is_foreign(theirs) => {
                self.tell_ring(from, out);
                if reply {
                    let versions = self.membership.versions(false);
                    self.tell(from, versions, out);
                }
            }
            Gossip::Versions { members, founding: _, ring, buckets, reply } => {
                let delta = self.membership.delta(&members, ring, &buckets);
                self.tell(from, delta, out);
                if reply {
                    let versions = self.membership.versions(false);
                    self.tell(from, versions, out);
                }
            }
            Gossip::Delta { members, ring, buckets } => {
                let has_stopped = members.iter().any(|member| member.id == from && member.stopped);
                #[cfg(feature = "sabotage")]
                let ring = ring.map(|ring| match self.membership.founding() {
                    Some(founding) if self.config.sabotage == crate::config::Sabotage::IgnoreFounding => {
                        crate::ring::RingState { founding, ..ring }
                    }
                    _ => ring,
                });
                if let Some(ring) = ring.as_ref().filter(|ring| self.is_foreign(ring.founding)) {
                    return self.foreign_ring(now, from, ring.clone(), out);
                }
                let changes = self.membership.merge(members, ring, buckets);
                self.membership_changed(now, changes, out);
                self.found_ring(now, out);
                if has_stopped {
                    self.link_down(now, from, out);
                }
            }
            Gossip::Ping { mono_us, wall_ms } => {
                self.compare_clock(from, wall_ms, None, out);
                let (coordinate, wall_ms) = (self.coordinate, self.clocks.uncorrected_wall_ms());
                self.tell(from, Gossip::Pong { mono_us, wall_ms, coordinate, sent_us: now.mono_us }, out);
            }
            Gossip::Pong { mono_us, wall_ms, coordinate, sent_us } => {
                self.compare_time(now, from, (mono_us, sent_us), out);
                let round_trip_us = now.mono_us.saturating_sub(mono_us).max(1);
                self.metrics.round_trips.note(round_trip_us);
                self.detector.measured(from, round_trip_us, now.mono_us);
                self.coordinate.update(coordinate, self.detector.rtt_us(from), &mut self.rng);
                self.compare_clock(from, wall_ms, Some(round_trip_us), out);
            }
            Gossip::Rumour { silent } => {
                for peer in silent.into_iter().take(RUMOUR_PEERS_MAX) {
                    if self.detector.is_trusted(peer) {
                        self.ping(now, peer, out);
                    }
                }
            }
        }
    }

    fn is_foreign(&self, theirs: Founding) -> bool {
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::IgnoreFounding {
            return false;
        }
        self.membership.founding().is_some_and(|ours| ours != theirs)
    }

    /// A linked peer has a ring of another founding: one of the two had none when the link opened, or is not settled.
    fn foreign_ring(&mut self, now: Now, peer: NodeId, ring: RingState, out: &mut Vec<Output>) {
        let Some(ours) = self.membership.founding() else { return };
        let theirs = ring.founding;
        let greeting = self.greetings.get(&peer).copied();
        let they_were_settled = greeting.is_some_and(|greeting| greeting.they_were_settled);
        let we_were_settled = greeting.is_some_and(|greeting| greeting.we_were_settled);
        match self.is_settled() {
            // Greeted anew, the peer will know that it is for it to yield, or refuse.
            true if they_were_settled || !we_were_settled => {
                out.push(Output::Refuse { peer, refusal: Refusal::Founding { theirs, ours } })
            }
            false if they_were_settled || ring.version > 1 || ours < theirs => {
                let changes = self.membership.yield_to(ring);
                self.membership_changed(now, changes, out);
            }
            _ => self.tell_ring(peer, out),
        }
    }

    pub(super) fn membership_changed(&mut self, now: Now, changes: Changes, out: &mut Vec<Output>) {
        if changes.is_empty() {
            return;
        }
        self.membership_is_dirty = true;
        self.connect(&changes.members, out);
        for id in &changes.members {
            let member = self.membership.members[id].clone();
            out.push(Output::Event(Event::MemberChanged { member }));
        }
        if let Some(lost) = &changes.lost_ring {
            out.push(Output::Event(Event::RingLost {
                version: lost.version,
                nodes: lost.layout.nodes.len(),
            }));
        }
        if changes.buckets {
            self.review_holders(now);
        }
        if changes.ring {
            self.ring_changed(now, out);
        }
        changes.forgotten.iter().for_each(|peer| self.clocks.forget(*peer));
        out.extend(changes.forgotten.into_iter().map(|peer| Output::Disconnect { peer }));
    }

    /// Keeps links to these members, except to those that were stopped after they had left the ring.
    fn connect(&mut self, members: &[NodeId], out: &mut Vec<Output>) {
        for &peer in members.iter().filter(|id| **id != self.membership.me) {
            let member = &self.membership.members[&peer];
            let ring = self.membership.ring.as_ref();
            let has_left = member.stopped && ring.is_some_and(|ring| !ring.contains(peer));
            out.push(match has_left {
                true => Output::Disconnect { peer },
                false => Output::Connect { peer, address: member.addresses.peer.clone() },
            });
        }
    }

    fn found_ring(&mut self, now: Now, out: &mut Vec<Output>) {
        let NodeConfig { cluster_size, strategy, partitions, .. } = self.config;
        if self.membership.found_ring(cluster_size, strategy, partitions, &mut self.rng) {
            self.membership_is_dirty = true;
            self.ring_changed(now, out);
        }
    }

    pub(super) fn set_bucket(
        &mut self,
        now: Now,
        bucket: Bytes,
        properties: BucketProperties,
        out: &mut Vec<Output>,
    ) -> Result<Reply, ClientError> {
        let above = self.buckets().entry(&bucket).map_or(0, |entry| entry.set_by.counter);
        let set_by = self.replica.make_stamp(now, above);
        if !self
            .membership
            .buckets
            .merge(bucket.clone(), BucketEntry { set_by, properties: properties.clone() })
        {
            return Err(ClientError::Property(PropertyError::TooManyBuckets { limit: BUCKETS_MAX }));
        }
        self.review_holders(now);
        self.membership_is_dirty = true;
        for peer in self.peers_up() {
            let entry = BucketEntry { set_by, properties: properties.clone() };
            let delta =
                Gossip::Delta { members: Vec::new(), ring: None, buckets: vec![(bucket.clone(), entry)] };
            self.tell(peer, delta, out);
        }
        self.follow_buckets(now, out);
        Ok(Reply::BucketSet)
    }

    // Clocks

    /// Takes a reading of the clocks; returns the time to go by.
    pub(super) fn watch_clock(&mut self, now: Now, out: &mut Vec<Output>) -> Now {
        let must_ask = self.clocks.watch(now);
        let now = self.time(now);
        self.last_now = now;
        if must_ask {
            for peer in self.peers_up() {
                self.ping(now, peer, out);
            }
        }
        now
    }

    /// A peer's clock read `their_wall_ms`; `round_trip_us` if that answers a question.
    fn compare_clock(
        &mut self,
        peer: NodeId,
        their_wall_ms: u64,
        round_trip_us: Option<u64>,
        out: &mut Vec<Output>,
    ) {
        let peers = self.membership.members.len() - 1;
        self.clocks.compared(peer, their_wall_ms, round_trip_us, peers);
        let correction_ms = self.clocks.coming_correction_ms();
        if correction_ms != self.told_correction_ms {
            self.told_correction_ms = correction_ms;
            self.metrics.clock_corrections += 1;
            out.push(Output::Event(Event::ClockCorrected { correction_ms }));
        }
        let ahead = self.clock_is_ahead();
        if ahead.is_some() != self.clock_was_ahead {
            self.clock_was_ahead = ahead.is_some();
            out.push(Output::Event(match ahead {
                Some(ahead_ms) => Event::ClockAhead { ahead_ms },
                None => Event::ClockAgrees,
            }));
        }
    }

    /// How far this node's clock is ahead of most of its peers', negative if behind, if that is too much to make dots
    /// by it.
    pub(super) fn clock_is_ahead(&self) -> Option<i64> {
        self.clocks.is_ahead(self.detector.up_count())
    }

    // Hints

    pub(super) fn add_hint(&mut self, owner: NodeId, key: &ObjectKey) {
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::DropHints {
            return;
        }
        if owner == self.membership.me {
            return;
        }
        self.metrics.hints_stored += 1;
        if self.replica.add_hint(owner, key) {
            self.handoff.added(owner);
        }
    }

    /// Sends the next hinted objects to their owner, as many as may be in flight.
    fn hand_over(&mut self, now: Now, owner: NodeId, out: &mut Vec<Output>) {
        if self.detector.health(owner) != Health::Up || self.stopping {
            return;
        }
        let window = self.config.handoff_window;
        let Some(owed) = self.handoff.owed_mut(owner) else {
            return;
        };
        if owed.pending == 0 || owed.in_flight >= window / 2 {
            return;
        }
        let (after, free) = (owed.after.clone(), window - owed.in_flight);
        let hints = self.replica.hints(owner, after.as_ref(), free);
        if let Some(owed) = self.handoff.owed_mut(owner) {
            owed.after = if hints.len() < free { None } else { hints.last().map(|(key, _)| key.clone()) };
        }
        for (key, mark) in hints {
            if !self.holds(owner, &key) {
                self.turn_over(owner, &key);
                continue;
            }
            match self.replica.load_object(&key) {
                Some((_, Some(object))) => self.deliver(now, Delivery { owner, key, mark }, object, out),
                Some((_, None)) => self.remove_hint(owner, &key),
                // The object is corrupt: the other replicas have it and anti-entropy mends the owner.
                None => {
                    self.remove_hint(owner, &key);
                    self.drop_if_foreign(&key);
                }
            }
        }
    }

    fn deliver(&mut self, now: Now, delivery: Delivery, object: Bytes, out: &mut Vec<Output>) {
        let (owner, key) = (delivery.owner, delivery.key.clone());
        let deadline_us = now.mono_us + self.config.timeout_ms as u64 * 1000;
        let work = Work::Deliver(delivery);
        let id =
            self.tasks.insert(Task { origin: Origin::Nobody, started_us: now.mono_us, deadline_us, work });
        self.tasks.wake_at(deadline_us, id);
        if let Some(owed) = self.handoff.owed_mut(owner) {
            owed.in_flight += 1;
        }
        let stamp = self.stamp();
        self.send(now, owner, Message::write(id, key, object, stamp), out);
    }

    pub(super) fn delivered(
        &mut self,
        now: Now,
        from: NodeId,
        id: TaskId,
        outcome: WriteOutcome,
        out: &mut Vec<Output>,
    ) {
        let is_expected =
            matches!(self.tasks.get_mut(id), Some(Task { work: Work::Deliver(d), .. }) if d.owner == from);
        if !is_expected {
            return;
        }
        let Some(Task { work: Work::Deliver(Delivery { owner, key, mark }), .. }) = self.tasks.remove(id)
        else {
            return;
        };
        // Who lacks code and state does not get them from a husk.
        let is_over = matches!(outcome, WriteOutcome::Durable | WriteOutcome::Lacking);
        let done = is_over && self.replica.hint_mark(owner, &key) == Some(mark);
        if let Some(owed) = self.handoff.owed_mut(owner) {
            owed.in_flight = owed.in_flight.saturating_sub(1);
            owed.delivered += done as u64;
        }
        if done {
            self.metrics.hints_delivered += 1;
            self.remove_hint(owner, &key);
            match outcome {
                WriteOutcome::Durable => self.drop_if_foreign(&key),
                // Its other owners are asked before it is dropped.
                _ => self.sweep.start(),
            }
        }
        if outcome == WriteOutcome::Durable {
            self.hand_over(now, owner, out);
        }
        self.report_handoff(owner, out);
    }

    pub(super) fn delivery_lost(&mut self, id: TaskId) {
        if !matches!(self.tasks.get_mut(id), Some(Task { work: Work::Deliver(_), .. })) {
            return;
        }
        if let Some(Task { work: Work::Deliver(delivery), .. }) = self.tasks.remove(id) {
            if let Some(owed) = self.handoff.owed_mut(delivery.owner) {
                owed.in_flight = owed.in_flight.saturating_sub(1);
            }
        }
    }

    /// Forgets deliveries under way, because the markers were read anew.
    pub(super) fn drop_deliveries(&mut self) {
        for id in self.tasks.ids() {
            if matches!(self.tasks.get_mut(id), Some(Task { work: Work::Deliver(_), .. })) {
                self.tasks.remove(id);
            }
        }
    }

    pub(super) fn remove_hint(&mut self, owner: NodeId, key: &ObjectKey) {
        self.replica.remove_hint(owner, key);
        self.handoff.removed(owner);
    }

    /// Drops an object this node only kept for others, once nobody is owed it.
    pub(super) fn drop_if_foreign(&mut self, key: &ObjectKey) {
        if self.ring.is_none() || self.holds(self.membership.me, key) {
            return;
        }
        let owners = self.handoff.owners();
        if owners.into_iter().any(|owner| self.replica.hint_mark(owner, key).is_some()) {
            return;
        }
        match self.replica.load_object(key) {
            // Others may have husks only: the sweep sees to it.
            Some((object, Some(_))) if object.has_placed() => self.sweep.start(),
            Some((object, Some(_))) => self.replica.drop_handed_over(key, &object),
            Some((_, None)) => {}
            None => self.replica.drop_handed_over(key, &Object::default()),
        }
    }

    fn report_handoff(&mut self, owner: NodeId, out: &mut Vec<Output>) {
        let Some(owed) = self.handoff.owed_mut(owner) else {
            return;
        };
        if owed.pending == 0 && owed.delivered > 0 {
            let delivered = std::mem::take(&mut owed.delivered);
            out.push(Output::Event(Event::HandoffDone { owner, delivered }));
        }
    }
}
