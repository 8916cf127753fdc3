//! Running client operations: choosing the coordinator, asking replicas, counting answers.
//!
//! An update is run by one node of the key's preference list. A plain store is run where it arrives, if that node is a
//! primary; what depends on the stored value goes to the key's *home*, the first reachable node of the list, so that
//! concurrent conditional updates meet at one node while no link is broken.

use super::{Node, Origin, Output, Purpose, Task, Work};
use crate::bucket::Conflict;
use crate::causality::VersionVector;
use crate::client::{
    Action, ClientError, Operation, Quorum, QuorumName, Reply, Request, RequestId, Updated, Want,
    TIMEOUT_MS_MAX,
};
use crate::detector::Health;
use crate::get::{Candidate, Get, Needed, Progress};
use crate::message::{Control, Message, ReadOutcome, TaskId, WriteOutcome};
use crate::mutation::{Circumstances, Mutation};
use crate::object::Object;
use crate::put::Put;
use crate::replica::{hash_of, Held};
use crate::ring::Ring;
use crate::types::{NodeId, Now, ObjectKey};

/// One hedge for this many gets on average: when all replicas are slow, asking more of them makes them slower.
pub(super) const HEDGE_COST: u32 = 20;
/// The most that can be saved up, for the moment when a replica falls silent.
pub(super) const HEDGE_BUDGET_MAX: u32 = 128 * HEDGE_COST;

/// Nodes nearer than this are as good as each other, in microseconds of round trip. Too small: within one site the load
/// follows chance delays; too large: gets go to another site without need.
const NEAR_US: u64 = 5_000;

/// Whether a request may still be handed to another coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hop {
    First,
    Last,
}

/// An update on its way to being applied.
pub(super) struct Update {
    pub key: ObjectKey,
    pub mutation: Mutation,
    pub quorum: Quorum,
    pub want: Want,
}

impl Update {
    /// As [`Operation::reads_first`].
    fn reads_first(&self) -> bool {
        self.mutation.needs_read() || self.want.before
    }
}

impl Node {
    pub(super) fn request(&mut self, now: Now, id: RequestId, request: Request, out: &mut Vec<Output>) {
        let timeout_ms = request.timeout_ms.unwrap_or(self.config.timeout_ms);
        let refusal = match () {
            _ if self.stopping => Some(ClientError::Stopping),
            _ if timeout_ms == 0 || timeout_ms > TIMEOUT_MS_MAX => {
                Some(ClientError::InvalidTimeout { timeout_ms })
            }
            _ if self.requests_in_flight >= self.config.requests_max => {
                self.metrics.busy += 1;
                Some(ClientError::Busy { waiting: self.requests_in_flight as u64 })
            }
            _ => None,
        };
        self.requests_in_flight += 1;
        let origin = Origin::Client(id);
        match refusal {
            Some(error) => self.finish(origin, Err(error), out),
            None => {
                let deadline_us = now.mono_us + timeout_ms as u64 * 1000;
                self.start(now, origin, request.operation, deadline_us, Hop::First, out);
            }
        }
    }

    pub(super) fn start(
        &mut self,
        now: Now,
        origin: Origin,
        operation: Operation,
        deadline_us: u64,
        hop: Hop,
        out: &mut Vec<Output>,
    ) {
        if self.ring.is_none() {
            return self.finish(origin, Err(ClientError::NotReady), out);
        }
        match operation {
            Operation::Get { key, quorum } => match self.read_quorum(&key, quorum) {
                Ok(needed) => self.start_get(now, origin, key, needed, Purpose::Answer, deadline_us, out),
                Err(error) => self.finish(origin, Err(error), out),
            },
            Operation::Update { key, mutation, quorum, want } => {
                let update = Update { key, mutation, quorum, want };
                self.start_update(now, origin, update, deadline_us, hop, out);
            }
            Operation::Scan(scan) => self.start_scan(now, origin, scan, deadline_us, out),
            Operation::SetBucket { bucket, properties } => {
                let result = match properties.check() {
                    Ok(()) => self.set_bucket(now, bucket, properties, out),
                    Err(error) => Err(ClientError::Property(error)),
                };
                self.finish(origin, result, out);
            }
            Operation::ChangeRing { change, plan_only } => {
                let result = self.change_ring(now, change, plan_only, out);
                self.finish(origin, result, out);
            }
        }
    }

    // Quorums and placement

    pub(super) fn placed_ring(&self) -> &Ring {
        self.ring.as_ref().expect("operations start only when there is a ring")
    }

    /// The bucket's `n`, or the number of nodes if that is smaller.
    pub(super) fn replicas_of(&self, key: &ObjectKey) -> usize {
        let n = self.buckets().properties(key.bucket()).n as usize;
        n.min(self.placed_ring().nodes().len())
    }

    fn read_quorum(&self, key: &ObjectKey, quorum: Quorum) -> Result<Needed, ClientError> {
        let total = quorum.r.unwrap_or(self.buckets().properties(key.bucket()).r);
        self.needed(key, (QuorumName::R, total), (QuorumName::PrimaryR, quorum.primary_r))
    }

    fn write_quorum(&self, key: &ObjectKey, quorum: Quorum) -> Result<Needed, ClientError> {
        let total = quorum.w.unwrap_or(self.buckets().properties(key.bucket()).w);
        self.needed(key, (QuorumName::W, total), (QuorumName::PrimaryW, quorum.primary_w))
    }

    /// Checks quorum numbers against the bucket's `n`. A cluster smaller than `n` will be asked for as many as it has.
    fn needed(
        &self,
        key: &ObjectKey,
        (total_name, total): (QuorumName, u8),
        (primary_name, primaries): (QuorumName, u8),
    ) -> Result<Needed, ClientError> {
        let n = self.buckets().properties(key.bucket()).n;
        check_quorum(total_name, total, n)?;
        check_quorum(primary_name, primaries.max(1), n)?;
        Ok(Needed { total, primaries })
    }

    pub(super) fn is_lww(&self, key: &ObjectKey) -> bool {
        self.buckets().properties(key.bucket()).conflict == Conflict::Lww
    }

    /// Whom a get may ask, in order: this node, primaries that are up, nearest first, suspect ones, then as many
    /// fallbacks as primaries are down. Those about as near take turns.
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
        let fallbacks = list[n..].iter().filter(|&&node| self.health(node) != Health::Down).take(missing);
        candidates.extend(fallbacks.map(|&node| Candidate { node, is_primary: false }));
        candidates
    }

    /// 0 for a node nearby or of unknown distance, 1 for one farther than [`NEAR_US`], and one more for each doubling.
    fn remoteness(&self, node: NodeId) -> u32 {
        let distance_us = self.distance_us(node).unwrap_or(0);
        u64::BITS - (distance_us / NEAR_US).leading_zeros()
    }

    // Gets

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
    fn start_get_from(
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
        let get = Get::new(key, needed, copies, lww, self.replica.reading_max(now), candidates);
        let count = get.first_count();
        self.hedge_budget = (self.hedge_budget + 1).min(HEDGE_BUDGET_MAX);
        let work = Work::Get { get, purpose };
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.ask_more(now, id, count, out);
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
            let Some(Task { work: Work::Get { get, .. }, .. }) = self.tasks.get_mut(id) else {
                return true;
            };
            match get.progress() {
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
        let own_restored = get.take_restored(me);
        let repairs = get.take_repairs();
        let (merged, is_over) = match get.is_outstanding() {
            true => (get.merged().clone(), false),
            false => match self.tasks.remove(id) {
                Some(Task { work: Work::Get { get, .. }, .. }) => (get.into_merged(), true),
                _ => unreachable!("the task was just found"),
            },
        };
        if let Some(bytes) = own_restored {
            self.metrics.corrupt_rows_repaired += 1;
            self.repair_own(now, &key, &bytes);
        }
        if let Some((bytes, stale)) = repairs {
            self.repair(now, &key, bytes, stale, out);
        }
        match (origin, purpose) {
            (Origin::Nobody | Origin::GiveAway, _) => {}
            (Origin::Repair, _) => self.entropy.end_repair(),
            (Origin::Transfer(stream), _) => self.transfer_repaired(stream, true),
            (_, Purpose::Update { mutation, quorum, want }) => {
                let update = Update { key, mutation, quorum, want };
                self.apply_update(now, origin, update, Some(merged), deadline_us, out);
            }
            (_, Purpose::Answer | Purpose::Repair) => {
                self.metrics.gets += 1;
                if merged.0.values().len() > 1 {
                    self.metrics.gets_with_siblings += 1;
                }
                self.finish(origin, Ok(Reply::Object(merged)), out);
            }
        }
        is_over
    }

    fn repair(
        &mut self,
        now: Now,
        key: &ObjectKey,
        bytes: bytes::Bytes,
        stale: Vec<NodeId>,
        out: &mut Vec<Output>,
    ) {
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

    fn repair_own(&mut self, now: Now, key: &ObjectKey, bytes: &bytes::Bytes) {
        self.replica.merge_in(now, key, bytes, self.is_lww(key));
        if !self.holds(self.membership.me, key) {
            // While the answer was under way the sweep may have dropped the row, or passed it by as unreadable.
            self.sweep.start();
        }
    }

    /// One of two replicas could not read its row: it gets what the other holds.
    fn restore_what_can_be(&mut self, now: Now, mut get: Get, out: &mut Vec<Output>) {
        let key = get.key.clone();
        if let Some(bytes) = get.take_restored(self.membership.me) {
            self.metrics.corrupt_rows_repaired += 1;
            self.repair_own(now, &key, &bytes);
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
            Origin::Client(_) | Origin::Peer(..) => {}
        }
        self.metrics.gets_failed += 1;
        if matches!(purpose, Purpose::Update { .. }) {
            self.metrics.puts_failed += 1;
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

    // Updates

    pub(super) fn start_update(
        &mut self,
        now: Now,
        origin: Origin,
        update: Update,
        deadline_us: u64,
        hop: Hop,
        out: &mut Vec<Output>,
    ) {
        let needed = match self.write_quorum(&update.key, update.quorum) {
            Ok(needed) => needed,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        let needed_read = match self.read_quorum(&update.key, update.quorum) {
            Ok(needed) => needed,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        if hop == Hop::First {
            if let Some(coordinator) = self.other_coordinator(&update) {
                let Update { key, mutation, quorum, want } = update;
                let operation = Operation::Update { key, mutation, quorum, want };
                let work = Work::Forward { to: coordinator, operation, refused: Vec::new() };
                return self.forward(now, origin, work, deadline_us, out);
            }
        }
        if update.mutation.seen().is_some_and(|seen| self.is_forged(now, &update.key, seen)) {
            return self.finish(origin, Err(ClientError::InvalidContext), out);
        }
        if let Some(error) = self.write_refusal(&update.key, needed) {
            self.metrics.puts_failed += 1;
            return self.finish(origin, Err(error), out);
        }
        let Needed { total, primaries } = needed_read.at_most(self.replicas_of(&update.key));
        if !update.reads_first() || total.max(primaries) == 1 {
            return self.apply_update(now, origin, update, None, deadline_us, out);
        }
        self.read_then_apply(now, origin, update, needed_read, deadline_us, out);
    }

    /// True if a context names writes of the far future that this replica does not hold. It may hold some if its clock
    /// went back.
    fn is_forged(&mut self, now: Now, key: &ObjectKey, seen: &VersionVector) -> bool {
        let reading_max = self.replica.reading_max(now);
        let mut far = seen.dots().filter(|dot| dot.counter > reading_max).peekable();
        far.peek().is_some()
            && !self
                .replica
                .load_object(key)
                .is_some_and(|(held, _)| far.all(|dot| held.context().covers(dot)))
    }

    fn read_then_apply(
        &mut self,
        now: Now,
        origin: Origin,
        update: Update,
        needed: Needed,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let Update { key, mutation, quorum, want } = update;
        let purpose = Purpose::Update { mutation, quorum, want };
        self.start_get(now, origin, key, needed, purpose, deadline_us, out);
    }

    /// The node to hand an update to; `None`: this one runs it.
    fn other_coordinator(&self, update: &Update) -> Option<NodeId> {
        let me = self.id();
        let n = self.replicas_of(&update.key);
        let list = self.placed_ring().preference_at(update.key.position());
        if !update.reads_first() && list[..n].contains(&me) {
            return None;
        }
        self.first_reachable(list, &[]).filter(|&node| node != me)
    }

    /// The home among `list`: the first that answers, or if none does, may answer.
    fn first_reachable(&self, list: &[NodeId], refused: &[NodeId]) -> Option<NodeId> {
        let first = |wanted: Health| {
            list.iter().copied().find(|node| self.health(*node) == wanted && !refused.contains(node))
        };
        first(Health::Up).or_else(|| first(Health::Suspect))
    }

    /// Why this node cannot coordinate a write of `key` now. Nothing was changed.
    fn write_refusal(&self, key: &ObjectKey, needed: Needed) -> Option<ClientError> {
        if let Some(detail) = &self.read_only {
            return Some(ClientError::ReadOnly { detail: detail.clone() });
        }
        if let Some(ahead_ms) = self.clock_is_ahead() {
            return Some(ClientError::ClockSkew { ahead_ms });
        }
        let n = self.replicas_of(key);
        let needed = needed.at_most(n);
        let list = self.placed_ring().preference_at(key.position());
        let reachable =
            |nodes: &[NodeId]| nodes.iter().filter(|&&node| self.health(node) != Health::Down).count();
        let primaries = reachable(&list[..n]);
        let copies = (primaries + reachable(&list[n..])).min(n);
        if copies >= needed.total as usize && primaries >= needed.primaries as usize {
            return None;
        }
        let reachable = if copies < needed.total as usize { copies } else { primaries };
        Some(ClientError::TooFewReachable {
            reachable: reachable as u8,
            needed: needed.total.max(needed.primaries),
        })
    }

    /// Evaluates the mutation on what this node holds and `read` brought, stores the new version and sends it on.
    fn apply_update(
        &mut self,
        now: Now,
        origin: Origin,
        update: Update,
        read: Option<Object>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let lww = self.is_lww(&update.key);
        let was_read = read.is_some();
        let is_blind = !was_read && !update.want.before && update.mutation.is_blind();
        let basis = if is_blind { self.replica.blind_basis(&update.key) } else { None };
        let held = basis.or_else(|| {
            let (object, bytes) = self.replica.load_object(&update.key)?;
            Some((object, bytes.map_or(0, |bytes| hash_of(&bytes))))
        });
        let (mut object, base) = match held {
            Some(held) => held,
            None if was_read => (Object::default(), 0),
            None => {
                // What this replica held is unreadable: evaluate on what another one holds.
                let needed = Needed { total: 1, primaries: 0 };
                return self.read_then_apply(now, origin, update, needed, deadline_us, out);
            }
        };
        if let Some(read) = read {
            object.merge(&read);
            if lww {
                object.keep_newest();
            }
        }
        let needed = match self.write_quorum(&update.key, update.quorum) {
            Ok(needed) => needed,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        if let Some(detail) = &self.read_only {
            let error = ClientError::ReadOnly { detail: detail.clone() };
            return self.finish(origin, Err(error), out);
        }
        let Update { key, mutation, want, .. } = update;
        #[cfg(feature = "sabotage")]
        let mutation = self.sabotaged(mutation);
        let properties = self.buckets().properties(key.bucket());
        let given = Circumstances {
            wall_ms: now.wall_ms,
            value_bytes_max: properties.value_bytes_max,
            default_ttl_ms: properties.default_ttl_ms,
        };
        let before = want.before.then(|| object.clone());
        let above = mutation.seen().and_then(|seen| seen.dots().map(|dot| dot.counter).max()).unwrap_or(0);
        let dot = self.replica.make_dot(now, &object, above);
        let applied = match mutation.apply(&mut object, dot, given) {
            Ok(applied) => applied,
            Err(error) => {
                self.metrics.puts_failed += 1;
                return self.finish(origin, Err(ClientError::Mutation(error)), out);
            }
        };
        if applied && lww {
            object.keep_newest();
        }
        let bytes = applied.then(|| object.encode());
        if let Some(bytes) = &bytes {
            self.replica.save(&key, &object, bytes.clone());
            self.turn_dots.push(dot);
        }
        let after = want.after.then_some(object);
        let updated = Updated { applied, before, after };
        match bytes {
            Some(bytes) => {
                self.start_put(now, origin, Put::new(key, bytes, base, needed), updated, deadline_us, out)
            }
            None => self.finish(origin, Ok(Reply::Updated(updated)), out),
        }
    }

    fn start_put(
        &mut self,
        now: Now,
        origin: Origin,
        mut put: Put,
        updated: Updated,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let me = self.membership.me;
        let key = put.key.clone();
        let (primaries, others) = self.owners(&key);
        put.place(&primaries, others.as_deref());
        if primaries.contains(&me) || others.as_ref().is_some_and(|others| others.contains(&me)) {
            put.hold(me, None);
        } else {
            let absent = primaries.iter().copied().find(|&node| self.health(node) == Health::Down);
            let owner = absent.unwrap_or(primaries[0]);
            put.hold(me, Some(owner));
            self.add_hint(owner, &key);
        }
        let work = Work::Put { put, updated: Some(updated) };
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.turn_puts.push((id, origin));
        self.ask_owners(now, id, &primaries, others.as_deref(), out);
        if !self.advance_put(now, id, out) {
            self.tasks.wake_at(deadline_us, id);
        }
    }

    /// Asks those owners of a put's key to store it that were not asked yet, or others in their place.
    pub(super) fn ask_owners(
        &mut self,
        now: Now,
        id: TaskId,
        serving: &[NodeId],
        others: Option<&[NodeId]>,
        out: &mut Vec<Output>,
    ) {
        let others = others.unwrap_or_default().iter().filter(|node| !serving.contains(node));
        for owner in serving.iter().chain(others).copied() {
            let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else {
                return;
            };
            if owner == self.membership.me || put.is_for(owner) {
                continue;
            }
            if self.detector.is_reachable(owner) {
                self.ask_copy(now, id, owner, None, out);
            } else {
                self.stand_in(now, id, owner, out);
            }
        }
    }

    /// Repeats a write with this node's ring of today.
    pub(super) fn ask_again(&mut self, now: Now, id: TaskId, node: NodeId, out: &mut Vec<Output>) {
        let stamp = self.stamp();
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else {
            return;
        };
        let hint_for = put.owed_through(node).filter(|owner| *owner != node);
        let (key, object, base) = (put.key.clone(), put.object.clone(), put.base);
        self.send(now, node, Message::Write { task: id, key, object, base, hint_for, stamp }, out);
    }

    pub(super) fn ask_copy(
        &mut self,
        now: Now,
        id: TaskId,
        node: NodeId,
        hint_for: Option<NodeId>,
        out: &mut Vec<Output>,
    ) {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else {
            return;
        };
        put.ask(node, hint_for);
        self.ask_again(now, id, node, out);
    }

    /// `owner` misses the write: gives its copy to the next fallback, or if there is none, remembers it here.
    pub(super) fn stand_in(&mut self, now: Now, id: TaskId, owner: NodeId, out: &mut Vec<Output>) {
        if let Some(fallback) = self.free_fallback(id) {
            return self.ask_copy(now, id, fallback, Some(owner), out);
        }
        let me = self.membership.me;
        if let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) {
            let key = put.key.clone();
            // A hint is enough of a copy for a node that does not answer reads.
            put.hold_for_other(me, owner);
            self.add_hint(owner, &key);
        }
    }

    /// The next reachable fallback that has no copy of this put.
    pub(super) fn free_fallback(&mut self, id: TaskId) -> Option<NodeId> {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return None };
        let key = put.key.clone();
        let n = self.buckets().properties(key.bucket()).n as usize;
        let ring = self.placed_ring();
        let (serving, others) = (ring.preference_at(key.position()), ring.other_at(key.position()));
        let behind = serving.iter().skip(n).chain(others.unwrap_or_default().iter().skip(n));
        let fallbacks: Vec<NodeId> = behind.copied().collect();
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return None };
        let (me, detector) = (self.membership.me, &self.detector);
        fallbacks.into_iter().find(|&f| f != me && detector.is_reachable(f) && !put.involves(f))
    }

    pub(super) fn written(
        &mut self,
        now: Now,
        from: NodeId,
        id: TaskId,
        outcome: WriteOutcome,
        out: &mut Vec<Output>,
    ) {
        if id == 0 {
            return;
        }
        if outcome == WriteOutcome::Stale {
            // What is outstanding is asked anew when the newer ring is known.
            self.metrics.stale_rings += 1;
            self.ask_for_ring(now, from, out);
            return self.delivery_lost(id);
        }
        match self.tasks.get_mut(id) {
            Some(Task { work: Work::Put { put, .. }, .. }) => {
                #[cfg(feature = "sabotage")]
                let outcome = match self.config.sabotage {
                    crate::config::Sabotage::CountRefusals => WriteOutcome::Durable,
                    crate::config::Sabotage::CountDuplicates => {
                        put.count_twice(from);
                        outcome
                    }
                    _ => outcome,
                };
                if outcome == WriteOutcome::Durable {
                    if !put.acknowledge(from) {
                        self.metrics.late_messages += 1;
                    }
                } else if let Some(owner) = put.fail(from) {
                    self.stand_in(now, id, owner, out);
                }
                self.advance_put(now, id, out);
            }
            Some(Task { work: Work::Deliver(_), .. }) => self.delivered(now, from, id, outcome, out),
            _ => self.metrics.late_messages += 1,
        }
    }

    /// Looks whether a put has enough acknowledgements and goes on with it. True if it is over.
    pub(super) fn advance_put(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) -> bool {
        let Some(task) = self.tasks.get_mut(id) else {
            return true;
        };
        let Work::Put { put, updated } = &mut task.work else {
            return true;
        };
        let is_over = put.outstanding().next().is_none();
        let result = match put.progress() {
            Progress::Waiting => None,
            Progress::Done => updated.take().map(Ok),
            Progress::Impossible => updated.take().map(|_| Err(put_error(put, now, task.started_us))),
        };
        let origin = task.origin;
        if let Some(result) = result {
            task.origin = Origin::Nobody;
            self.answer_put(origin, result, out);
        }
        if is_over {
            self.tasks.remove(id);
        }
        is_over
    }

    pub(super) fn answer_put(
        &mut self,
        origin: Origin,
        result: Result<Updated, ClientError>,
        out: &mut Vec<Output>,
    ) {
        match &result {
            Ok(_) => self.metrics.puts += 1,
            Err(_) => self.metrics.puts_failed += 1,
        }
        self.finish(origin, result.map(Reply::Updated), out);
    }

    #[cfg(feature = "sabotage")]
    fn sabotaged(&self, mutation: Mutation) -> Mutation {
        use crate::mutation::Basis;
        match mutation {
            Mutation::Store { value, headers, expiry, condition, basis: _ }
                if self.config.sabotage == crate::config::Sabotage::IgnoreContext =>
            {
                Mutation::Store { value, headers, expiry, condition, basis: Basis::Local }
            }
            other => other,
        }
    }

    // Forwards

    /// Hands an update on as `work`, a [`Work::Forward`], says.
    fn forward(&mut self, now: Now, origin: Origin, work: Work, deadline_us: u64, out: &mut Vec<Output>) {
        let Work::Forward { to, operation, .. } = &work else { return };
        let (to, operation) = (*to, operation.clone());
        self.metrics.forwards += 1;
        let timeout_ms = (deadline_us.saturating_sub(now.mono_us) / 1000).max(1) as u32;
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.detector.sent(to, now.mono_us);
        let message = Message::Control(Control::Forward { task: id, operation, timeout_ms });
        self.send(now, to, message, out);
        self.tasks.wake_at(deadline_us + self.config.hedge_us, id);
    }

    pub(super) fn forwarded(
        &mut self,
        now: Now,
        from: NodeId,
        id: TaskId,
        result: Result<Reply, ClientError>,
        out: &mut Vec<Output>,
    ) {
        match self.tasks.get_mut(id) {
            Some(Task { work: Work::Forward { to, .. }, .. }) if *to == from => {}
            _ => return self.metrics.late_messages += 1,
        }
        let Some(task) = self.tasks.remove(id) else { return };
        match result {
            Err(error) if error.is_of_node() && now.mono_us < task.deadline_us => {
                self.pass_over(now, task, error, out)
            }
            result => self.finish(task.origin, result, out),
        }
    }

    /// The node an update was handed to cannot write: hands it to the next. Whoever comes next does so for all, so such
    /// updates still meet at one node.
    fn pass_over(&mut self, now: Now, task: Task, error: ClientError, out: &mut Vec<Output>) {
        let Task { origin, deadline_us, work: Work::Forward { to, operation, mut refused }, .. } = task
        else {
            return;
        };
        refused.push(to);
        let next = match &operation {
            Operation::Update { key, .. } => {
                self.first_reachable(self.placed_ring().preference_at(key.position()), &refused)
            }
            _ => None,
        };
        match next {
            Some(next) if next == self.id() => {
                self.start(now, origin, operation, deadline_us, Hop::Last, out)
            }
            Some(to) => self.forward(now, origin, Work::Forward { to, operation, refused }, deadline_us, out),
            None => self.finish(origin, Err(error), out),
        }
    }

    /// The node a request was handed to is lost or late: hands it to another if doing it twice does no harm.
    pub(super) fn reroute(&mut self, now: Now, id: TaskId, is_lost: bool, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Forward { operation, .. }, .. }) = self.tasks.get_mut(id) else {
            return;
        };
        let is_safe = match operation {
            Operation::Update { mutation, .. } => mutation.is_idempotent(),
            _ => true,
        };
        if !is_safe && !is_lost {
            return;
        }
        let Some(task) = self.tasks.remove(id) else { return };
        let Work::Forward { operation, .. } = task.work else {
            return;
        };
        match is_safe && now.mono_us < task.deadline_us {
            true => {
                if let (Origin::Client(request), Operation::Update { .. }) = (task.origin, &operation) {
                    self.doubtful.insert(request);
                }
                self.start(now, task.origin, operation, task.deadline_us, Hop::First, out);
            }
            false => self.finish(task.origin, Err(ClientError::OutcomeUnknown), out),
        }
    }
}

fn check_quorum(name: QuorumName, value: u8, n: u8) -> Result<(), ClientError> {
    match (1..=n).contains(&value) {
        true => Ok(()),
        false => Err(ClientError::InvalidQuorum { name, value, n }),
    }
}

pub(super) fn put_error(put: &Put, now: Now, started_us: u64) -> ClientError {
    ClientError::QuorumUnavailable {
        action: Action::Put,
        answered: put.acknowledged(),
        needed: put.needed().total.max(put.needed().primaries),
        replicas: put.replicas(),
        waited_ms: (now.mono_us - started_us) / 1000,
    }
}
