//! Running gets: whom to ask and in which order, when to ask one more, and mending what the answers show to be stale.
//!
//! `get` counts the answers. A get may be a client's, the first half of an update, or a repair.

use bytes::Bytes;

use super::active::refused;
use super::coordinate::Hop;
use super::{Node, Origin, Output, Purpose, Task, Work};
use crate::client::{Action, ActiveError, ClientError, Reply};
use crate::detector::Health;
use crate::get::{Candidate, Get, Needed, Progress};
use crate::message::{Message, ReadOutcome, TaskId};
use crate::replica::Held;
use crate::types::{NodeId, Now, ObjectKey};

/// One hedge for this many gets on average: when all replicas are slow, asking more of them makes them slower.
pub(super) const HEDGE_COST: u32 = 20;
/// The most that can be saved up, for the moment when a replica falls silent.
pub(super) const HEDGE_BUDGET_MAX: u32 = 128 * HEDGE_COST;

/// Nodes nearer than this are as good as each other, in microseconds of round trip. Too small: within one site the load
/// follows chance delays; too large: gets go to another site without need.
const NEAR_US: u64 = 5_000;

impl Node {
    /// Whom a get may ask, in order: this node, primaries that are up, nearest first, suspect ones, then as many
    /// fallbacks as primaries are down, and at last those of them that are linked. Those about as near take turns.
    fn candidates(&mut self, key: &ObjectKey) -> Vec<Candidate> {
        let n = self.replicas_of(key);
        let me = self.id();
        let turn = self.rng.next_u64() as usize;
        let list = self.placed_ring().preference_at(key.position());
        let mut candidates = Vec::with_capacity(n);
        if list[..n].contains(&me) {
            candidates.push(Candidate { node: me, is_primary: true });
        }
        for wanted in [Health::Up, Health::Suspect] {
            let first = candidates.len();
            for i in 0..n {
                let node = list[(i + turn) % n];
                if node != me && self.detector.health(node) == wanted {
                    candidates.push(Candidate { node, is_primary: true });
                }
            }
            candidates[first..].sort_by_key(|candidate| self.remoteness(candidate.node));
        }
        let missing = n - candidates.len();
        if missing > 0 {
            let fallbacks = list[n..].iter().filter(|&&node| self.health(node) != Health::Down).take(missing);
            candidates.extend(fallbacks.map(|&node| Candidate { node, is_primary: false }));
            let silent = list[..n].iter().filter(|&&node| self.is_silent(node));
            candidates.extend(silent.map(|&node| Candidate { node, is_primary: true }));
        }
        candidates
    }

    /// True if `node` has been silent for so long that others are asked in its place, but may still answer: its link is
    /// open.
    pub(super) fn is_silent(&self, node: NodeId) -> bool {
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::GiveUpSilent {
            return false;
        }
        self.health(node) == Health::Down && self.detector.is_linked(node)
    }

    /// True if there is a point in asking `node`: it is this one, or linked.
    pub(super) fn can_answer(&self, node: NodeId) -> bool {
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::GiveUpSilent {
            return self.health(node) != Health::Down;
        }
        node == self.id() || self.detector.is_linked(node)
    }

    /// A primary has become unreachable while a get is under way: the next fallback may be asked too.
    pub(super) fn add_fallback(&mut self, id: TaskId) {
        let Some(Task { work: Work::Get { get, .. }, .. }) = self.tasks.get_mut(id) else { return };
        if get.is_for_bodies() {
            return;
        }
        let key = get.key.clone();
        let n = self.replicas_of(&key);
        let list = self.placed_ring().preference_at(key.position());
        let reachable = list[n..].iter().copied().filter(|node| self.health(*node) != Health::Down);
        let fallbacks: Vec<NodeId> = reachable.collect();
        let Some(Task { work: Work::Get { get, .. }, .. }) = self.tasks.get_mut(id) else { return };
        let mut fallbacks = fallbacks.into_iter();
        fallbacks.any(|node| get.add(Candidate { node, is_primary: false }));
    }

    /// 0 for a node nearby or of unknown distance, 1 for one farther than [`NEAR_US`], and one more for each doubling.
    pub(super) fn remoteness(&self, node: NodeId) -> u32 {
        let distance_us = self.distance_us(node).unwrap_or(0);
        u64::BITS - (distance_us / NEAR_US).leading_zeros()
    }

    #[allow(clippy::too_many_arguments)] // One call site each for client, update and repair; a struct would say less.
    pub(super) fn start_get(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        needed: Needed,
        purpose: Purpose,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let candidates = self.candidates(&key);
        let copies = self.replicas_of(&key);
        self.start_get_from(now, origin, key, (needed, copies), purpose, candidates, deadline_us, out);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn start_get_from(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        (needed, copies): (Needed, usize),
        purpose: Purpose,
        candidates: Vec<Candidate>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let lww = self.is_lww(&key);
        let silent: Vec<NodeId> =
            candidates.iter().map(|candidate| candidate.node).filter(|node| self.is_silent(*node)).collect();
        let mut get = Get::new(key, needed, copies, lww, self.replica.reading_max(now), candidates);
        for node in silent {
            get.set_aside(node);
        }
        let mut told = None;
        if let Purpose::Call(asked) = &purpose {
            get.trust(self.homes.seen_row(&get.key));
            told = match asked.hop {
                Hop::Told { by, hash } => Some((by, hash)),
                Hop::First | Hop::Last => None,
            };
        }
        let count = get.first_count();
        self.hedge_budget = (self.hedge_budget + 1).min(HEDGE_BUDGET_MAX);
        let work = Work::Get { get, purpose };
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        // What this node holds may show that another is to be asked.
        self.ask_more(now, id, count.min(1), out);
        if self.hand_over_call(now, id, out) {
            return;
        }
        let mut rest = count.saturating_sub(1);
        if let (Some((by, hash)), Some(Task { work: Work::Get { get, .. }, .. })) =
            (told, self.tasks.get_mut(id))
        {
            rest = rest.saturating_sub(get.answer_ahead(by, hash) as usize);
        }
        self.ask_more(now, id, rest, out);
        if self.advance_get(now, id, out) {
            return;
        }
        self.tasks.wake_at(deadline_us.min(now.mono_us + self.config.hedge_us), id);
    }

    /// Repairs one key by reading it here and at `peer`, for whoever counts such repairs.
    pub(super) fn repair_with(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        peer: NodeId,
        out: &mut Vec<Output>,
    ) {
        let candidates = [self.id(), peer].map(|node| Candidate { node, is_primary: true }).to_vec();
        let needed = Needed { total: 2, primaries: 0 };
        let deadline_us = now.mono_us + self.config.timeout_ms as u64 * 1000;
        self.start_get_from(now, origin, key, (needed, 2), Purpose::Repair, candidates, deadline_us, out);
    }

    /// Asks up to `count` more replicas. True if there was one to ask.
    pub(super) fn ask_more(&mut self, now: Now, id: TaskId, count: usize, out: &mut Vec<Output>) -> bool {
        for asked in 0..count {
            let Some(Task { work: Work::Get { get, .. }, .. }) = self.tasks.get_mut(id) else {
                return asked > 0;
            };
            let Some((node, have)) = get.ask_next() else { return asked > 0 };
            let key = get.key.clone();
            if node != self.membership.me {
                let stamp = self.stamp();
                self.send(now, node, Message::Read { task: id, key, have, stamp }, out);
                continue;
            }
            let outcome = match self.replica.load(&key) {
                Held::Missing => ReadOutcome::Missing,
                Held::Object(bytes) => ReadOutcome::Object(bytes),
                Held::Corrupt => ReadOutcome::Failed,
            };
            if let Some(Task { work: Work::Get { get, .. }, .. }) = self.tasks.get_mut(id) {
                get.answer_own(node, &outcome);
            }
        }
        count > 0
    }

    pub(super) fn read_result(
        &mut self,
        now: Now,
        from: NodeId,
        id: TaskId,
        outcome: ReadOutcome,
        out: &mut Vec<Output>,
    ) {
        if outcome == ReadOutcome::Stale {
            self.metrics.stale_rings += 1;
            return self.ask_for_ring(now, from, out);
        }
        match self.tasks.get_mut(id) {
            Some(Task { work: Work::Get { get, .. }, .. }) => match get.answer(from, &outcome) {
                true => {
                    self.advance_get(now, id, out);
                }
                false => self.metrics.late_messages += 1,
            },
            #[cfg(feature = "sabotage")]
            Some(Task { work: Work::Put { put, .. }, .. })
                if self.config.sabotage == crate::config::Sabotage::CountRefusals =>
            {
                put.acknowledge(from);
                self.advance_put(now, id, out);
            }
            _ => self.metrics.late_messages += 1,
        }
    }

    /// Looks whether a get has enough answers and goes on with it. True if it is over.
    pub(super) fn advance_get(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) -> bool {
        loop {
            let Some(Task { work: Work::Get { get, purpose }, deadline_us, .. }) = self.tasks.get_mut(id)
            else {
                return true;
            };
            // This node may have stood still: its clients have given up, and are not to find what they wrote since
            // undone.
            let is_too_late = matches!(purpose, Purpose::Update(_)) && now.mono_us >= *deadline_us;
            match get.progress() {
                Progress::Done if is_too_late => {
                    self.fail_get(now, id, out);
                    return true;
                }
                Progress::Done => break,
                Progress::Waiting if get.is_outstanding() => return false,
                Progress::Waiting => {
                    self.ask_more(now, id, 1, out);
                }
                Progress::Impossible => {
                    self.fail_get(now, id, out);
                    return true;
                }
            }
        }
        self.finish_get(now, id, out)
    }

    /// Mends stale replicas, answers whoever waits, and stays while late answers may show more stale replicas.
    fn finish_get(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) -> bool {
        let me = self.membership.me;
        let Some(task) = self.tasks.get_mut(id) else {
            return true;
        };
        let Work::Get { get, purpose } = &mut task.work else {
            return true;
        };
        let origin = std::mem::replace(&mut task.origin, Origin::Nobody);
        let purpose = std::mem::replace(purpose, Purpose::Repair);
        let (deadline_us, key) = (task.deadline_us, get.key.clone());
        let (asked, is_for_bodies) = (get.asked(), get.is_for_bodies());
        let own_restored = get.take_restored(me);
        let repairs = get.take_repairs();
        let hash = get.merged_hash();
        // A call need not look into what its object was made of.
        let is_seen = get.is_trusted() && self.homes.has_seen(&key, hash, now);
        // Whom it asked for bodies, and has not heard, is not needed any more.
        let (merged, is_over) = match get.is_outstanding() && !is_for_bodies {
            true if is_seen => (None, false),
            true => (Some(get.merged().clone()), false),
            false => match self.tasks.remove(id) {
                Some(Task { work: Work::Get { get, .. }, .. }) => {
                    ((!is_seen).then(|| get.into_merged()), true)
                }
                _ => unreachable!("the task was just found"),
            },
        };
        if let Some(bytes) = own_restored {
            self.restore_own(now, &key, &bytes);
        }
        if let Some((bytes, stale)) = repairs {
            self.repair(now, &key, bytes, stale, out);
        }
        let merged = match merged {
            Some(merged)
                if merged.has_husk()
                    && matches!(origin, Origin::Client(_) | Origin::Peer(..) | Origin::Run(_))
                    && self.needs_bodies(now, &key, origin, &purpose, &merged) =>
            {
                match is_for_bodies {
                    true => self.finish(origin, Err(refused(ActiveError::NoCopy)), out),
                    false => self.fetch_bodies(now, origin, key, (asked, merged), purpose, deadline_us, out),
                }
                return is_over;
            }
            merged => merged,
        };
        match (origin, purpose) {
            (Origin::Nobody | Origin::GiveAway, _) => {}
            (Origin::Repair, _) => self.entropy.end_repair(),
            (Origin::Transfer(stream), _) => self.transfer_repaired(stream, true),
            (_, Purpose::Call(asked)) => {
                let read = merged.map(|merged| (merged, hash));
                self.called(now, origin, key, asked, read, deadline_us, out)
            }
            (_, Purpose::Update(update)) => {
                self.apply_update(now, origin, *update, merged, deadline_us, out);
            }
            (_, Purpose::Answer | Purpose::Repair) => {
                self.metrics.gets += 1;
                let merged = merged.unwrap_or_default();
                if merged.0.values().len() > 1 {
                    self.metrics.gets_with_siblings += 1;
                }
                self.finish(origin, Ok(Reply::Object(merged)), out);
            }
        }
        is_over
    }

    fn repair(&mut self, now: Now, key: &ObjectKey, bytes: Bytes, stale: Vec<NodeId>, out: &mut Vec<Output>) {
        for node in stale {
            self.metrics.read_repairs += 1;
            if node == self.membership.me {
                self.repair_own(now, key, &bytes);
                continue;
            }
            let message = Message::write(0, key.clone(), bytes.clone(), self.stamp());
            self.send(now, node, message, out);
        }
    }

    fn repair_own(&mut self, now: Now, key: &ObjectKey, bytes: &Bytes) {
        self.replica.merge_in(now, key, bytes, self.is_lww(key));
        if !self.holds(self.membership.me, key) {
            // While the answer was under way the sweep may have dropped the row, or passed it by as unreadable.
            self.sweep.start();
        }
    }

    /// This node could not read its row, and has now what others hold.
    fn restore_own(&mut self, now: Now, key: &ObjectKey, bytes: &Bytes) {
        self.metrics.corrupt_rows_repaired += 1;
        self.repair_own(now, key, bytes);
    }

    /// One of two replicas could not read its row: it gets what the other holds.
    fn restore_what_can_be(&mut self, now: Now, mut get: Get, out: &mut Vec<Output>) {
        let key = get.key.clone();
        if let Some(bytes) = get.take_restored(self.membership.me) {
            self.restore_own(now, &key, &bytes);
        }
        if let Some((bytes, stale)) = get.take_repairs() {
            self.repair(now, &key, bytes, stale, out);
        }
    }

    pub(super) fn fail_get(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(task) = self.tasks.remove(id) else { return };
        let Work::Get { get, purpose } = task.work else {
            return;
        };
        match task.origin {
            Origin::Nobody => return,
            Origin::Repair => {
                self.restore_what_can_be(now, get, out);
                return self.entropy.end_repair();
            }
            Origin::GiveAway => return self.restore_what_can_be(now, get, out),
            Origin::Transfer(stream) => {
                self.restore_what_can_be(now, get, out);
                return self.transfer_repaired(stream, false);
            }
            Origin::Client(_) | Origin::Peer(..) | Origin::Run(_) => {}
        }
        self.metrics.gets_failed += 1;
        if matches!(purpose, Purpose::Update(_)) {
            self.metrics.puts_failed += 1;
        }
        if get.is_for_bodies() {
            return self.finish(task.origin, Err(refused(ActiveError::NoCopy)), out);
        }
        let error = ClientError::QuorumUnavailable {
            action: Action::Get,
            answered: get.answered(),
            needed: get.needed().total.max(get.needed().primaries),
            replicas: get.replicas(),
            waited_ms: (now.mono_us - task.started_us) / 1000,
        };
        self.finish(task.origin, Err(error), out);
    }
}
