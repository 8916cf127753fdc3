//! Running updates: evaluating them here or at the key's home, and having enough replicas take the new version.
//!
//! An update is run by one node of the key's preference list. A plain store is run where it arrives, if that node is a
//! primary; what depends on the stored value goes to the key's *home*, the first reachable node of the list, so that
//! concurrent conditional updates meet at one node while no link is broken. `put` counts the copies.

use std::sync::Arc;

use bytes::Bytes;

use super::active::refused;
use super::coordinate::Hop;
use super::homes::{Job, What};
use super::terms::Refusal;
use super::{Node, Origin, Output, Purpose, Task, Work};
use crate::active::Caller;
use crate::causality::VersionVector;
use crate::client::{Action, ActiveError, ClientError, Operation, Quorum, Reply, Updated, Want};
use crate::detector::Health;
use crate::get::{Needed, Progress};
use crate::message::{Control, Message, TaskId, WriteOutcome};
use crate::mutation::{Circumstances, Mutation};
use crate::object::Object;
use crate::put::Put;
use crate::replica::hash_of;
use crate::types::{NodeId, Now, ObjectKey};

/// An update on its way to being applied.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub key: ObjectKey,
    pub mutation: Mutation,
    pub quorum: Quorum,
    pub want: Want,
    pub caller: Option<Arc<Caller>>,
}

impl Update {
    /// As [`Operation::reads_first`].
    pub(super) fn reads_first(&self) -> bool {
        self.mutation.needs_read() || self.want.before
    }
}

impl Node {
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
            Ok(needed) if matches!(update.mutation, Mutation::Activate { .. }) => {
                self.home_reads(&update.key, needed)
            }
            Ok(needed) => needed,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        if hop == Hop::First {
            if let Some(coordinator) = self.other_coordinator(&update) {
                let Update { key, mutation, quorum, want, caller } = update;
                let operation = Operation::Update { key, mutation, quorum, want, caller };
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
        let copies = self.replicas_of(&update.key);
        let Needed { total, primaries } = needed_read.at_most(copies);
        let serving = &self.placed_ring().preference_at(update.key.position())[..copies];
        // The row of a node that only stands in says nothing of what the owners hold.
        if !update.reads_first() || total.max(primaries) == 1 && serving.contains(&self.id()) {
            return self.apply_update(now, origin, update, None, deadline_us, out);
        }
        self.read_then_apply(now, origin, update, needed_read, deadline_us, out);
    }

    /// A plain store has found an active object, whose home decides after a read.
    fn ask_home(
        &mut self,
        now: Now,
        origin: Origin,
        update: Update,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let Update { key, mutation, quorum, want, caller } = update;
        let other = self.other_home(&key).filter(|_| !matches!(origin, Origin::Peer(..)));
        match (other, self.read_quorum(&key, quorum)) {
            (_, Err(error)) => self.finish(origin, Err(error), out),
            (None, Ok(needed)) => {
                let update = Update { key, mutation, quorum, want, caller };
                self.read_then_apply(now, origin, update, needed, deadline_us, out)
            }
            (Some(to), Ok(_)) => {
                // Wanting the state before makes the home read.
                let want = Want { before: true, ..want };
                let operation = Operation::Update { key, mutation, quorum, want, caller };
                self.forward(
                    now,
                    origin,
                    Work::Forward { to, operation, refused: Vec::new() },
                    deadline_us,
                    out,
                )
            }
        }
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
        let key = update.key.clone();
        self.start_get(now, origin, key, needed, Purpose::Update(Box::new(update)), deadline_us, out);
    }

    /// Why this node cannot coordinate a write of `key` now. Nothing was changed.
    pub(super) fn write_refusal(&self, key: &ObjectKey, needed: Needed) -> Option<ClientError> {
        if let Some(detail) = &self.read_only {
            return Some(ClientError::ReadOnly { detail: detail.clone() });
        }
        if let Some(ahead_ms) = self.clock_is_ahead() {
            return Some(ClientError::ClockSkew { ahead_ms });
        }
        let n = self.replicas_of(key);
        let needed = needed.at_most(n);
        let list = self.placed_ring().preference_at(key.position());
        // A silent one is tried until the request's time is up.
        let reachable = |nodes: &[NodeId]| nodes.iter().filter(|&&node| self.can_answer(node)).count();
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

    /// Has an active object decide on an update that it has a say in, or else applies it.
    pub(super) fn apply_update(
        &mut self,
        now: Now,
        origin: Origin,
        update: Update,
        read: Option<Object>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let needs_code = match &update.mutation {
            Mutation::Activate { .. } => true,
            // What this node holds is looked up only where a read found nothing active: a plain store is the hot path.
            Mutation::Store { .. } => read.as_ref().is_some_and(|read| read.is_active(now.wall_ms)),
            _ => false,
        };
        match read {
            None if self.homes.get(&update.key).is_some()
                && matches!(update.mutation, Mutation::Store { .. }) =>
            {
                self.ask_home(now, origin, update, deadline_us, out)
            }
            Some(merged) if needs_code => {
                let (key, what) = (update.key.clone(), What::Update(Box::new(update)));
                self.enter(now, key, Job { origin, what, deadline_us }, Some(merged), out)
            }
            None if needs_code => {
                let needed = Needed { total: 1, primaries: 0 };
                self.read_then_apply(now, origin, update, needed, deadline_us, out)
            }
            read => {
                self.write_unwritten(now, &update.key);
                self.replace_resident(&update.key, out);
                self.apply_mutation(now, origin, update, read, deadline_us, out)
            }
        }
    }

    /// Evaluates the mutation on what this node holds and `read` brought, stores the new version and sends it on.
    pub(super) fn apply_mutation(
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
        if !was_read && matches!(update.mutation, Mutation::Store { .. }) && object.is_active(now.wall_ms) {
            return self.ask_home(now, origin, update, deadline_us, out);
        }
        let is_just_deleted =
            matches!(update.mutation, Mutation::Delete { .. }) && !update.want.before && !update.want.after;
        if !was_read && object.has_husk() && !is_just_deleted {
            let needed = Needed { total: 1, primaries: 0 };
            return self.read_then_apply(now, origin, update, needed, deadline_us, out);
        }
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
        object.leave_term(dot);
        if object.made_of_husk(dot) || object.missing_from().contains(&self.id()) {
            // Meanwhile others have written what it changes, or this node has lost what it is to hold.
            return self.finish(origin, Err(refused(ActiveError::NoCopy)), out);
        }
        if applied && lww {
            object.keep_newest();
        }
        let bytes = applied.then(|| object.encode());
        if let Some(bytes) = &bytes {
            self.replica.save(&key, &object, bytes.clone());
            self.turn_dots.push(dot);
        }
        let after = want.after.then_some(object);
        let reply = Reply::Updated(Updated { applied, before, after });
        match bytes {
            Some(bytes) => {
                self.start_put(now, origin, Put::new(key, bytes, base, needed), reply, deadline_us, out)
            }
            None => self.finish(origin, Ok(reply), out),
        }
    }

    pub(super) fn start_put(
        &mut self,
        now: Now,
        origin: Origin,
        put: Put,
        reply: Reply,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        self.start_put_of(now, origin, put, reply, None, deadline_us, out)
    }

    /// Starts a put; of a home's, `refusal` says what to do if replicas refuse it.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn start_put_of(
        &mut self,
        now: Now,
        origin: Origin,
        mut put: Put,
        reply: Reply,
        refusal: Option<Box<Refusal>>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let me = self.membership.me;
        let key = put.key.clone();
        let (primaries, others) = self.owners(&key);
        put.place(&primaries, others.as_deref(), self.usual_w(&key));
        let is_owner = primaries.contains(&me) || others.as_ref().is_some_and(|others| others.contains(&me));
        if is_owner {
            put.hold(me, None);
        }
        let work = Work::Put { put, reply: Some(reply), refusal };
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.turn_puts.push((id, origin));
        self.ask_owners(now, id, &primaries, others.as_deref(), out);
        self.double_suspects(now, id, out);
        if !is_owner {
            self.owe_if_spare(id, primaries[0]);
        }
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

    /// Gives the copies of owners that are late to fallbacks too, if the put cannot do without them.
    fn double_suspects(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        let detector = &self.detector;
        let suspects: Vec<NodeId> =
            put.outstanding().filter(|node| detector.health(*node) == Health::Suspect).collect();
        if suspects.is_empty() || !put.depends_on(&suspects) {
            return;
        }
        for node in suspects {
            self.double(now, id, node, out);
        }
    }

    /// `node` is late with its copy: a fallback is asked as well, unless one has been.
    pub(super) fn double(&mut self, now: Now, id: TaskId, node: NodeId, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        let Some(owner) = put.late_through(node) else { return };
        if self.stand_in_here(now, id, owner) {
            return;
        }
        if let Some(fallback) = self.free_fallback(id) {
            self.ask_copy(now, id, fallback, Some(owner), out);
        }
    }

    /// A put cannot succeed with the nodes that were asked: asks the owners that others stand in for, if they are
    /// linked, however long they have been silent. True if there was one.
    fn ask_silent(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) -> bool {
        let Some(Task { work: Work::Put { put, reply: Some(_), .. }, .. }) = self.tasks.get_mut(id) else {
            return false;
        };
        let key = put.key.clone();
        let (serving, others) = self.owners(&key);
        let owners = [serving, others.unwrap_or_default()].concat();
        let mut has_asked = false;
        for owner in owners.into_iter().filter(|owner| self.can_answer(*owner)).collect::<Vec<_>>() {
            let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { break };
            if put.involves(owner) {
                continue;
            }
            self.ask_copy(now, id, owner, None, out);
            has_asked = true;
        }
        has_asked
    }

    /// Repeats a write with this node's ring of today.
    pub(super) fn ask_again(&mut self, now: Now, id: TaskId, node: NodeId, out: &mut Vec<Output>) {
        let stamp = self.stamp();
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else {
            return;
        };
        let hint_for = put.owed_through(node).filter(|owner| *owner != node);
        let (key, object, base, term) = (put.key.clone(), put.object.clone(), put.base, put.term());
        let message = match put.is_claim() {
            true => Message::Claim { task: id, key, object, base, term, stamp },
            false => Message::Write { task: id, key, object, base, hint_for, stamp, term },
        };
        self.send(now, node, message, out);
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
        if self.stand_in_here(now, id, owner) {
            return;
        }
        if let Some(fallback) = self.free_fallback(id) {
            return self.ask_copy(now, id, fallback, Some(owner), out);
        }
        let me = self.membership.me;
        if let Some(Task { work: Work::Put { put, .. }, origin, .. }) = self.tasks.get_mut(id) {
            let (key, object, origin) = (put.key.clone(), put.object.clone(), *origin);
            // A hint is enough of a copy for a node that does not answer reads.
            put.hold_for_other(me, owner);
            if !put.is_claim() {
                self.owe(now, owner, &key, &object);
                self.turn_hints.push((id, origin));
            }
        }
    }

    /// `owner` misses `object`: it is kept here until it has it. What this node kept for others may be gone already,
    /// since they have it.
    pub(super) fn owe(&mut self, now: Now, owner: NodeId, key: &ObjectKey, object: &Bytes) {
        if !self.holds(self.id(), key) {
            self.replica.merge_in(now, key, object, self.is_lww(key));
        }
        self.add_hint(owner, key);
    }

    /// The hints of this turn are gone, which counted as copies: whoever was to be told that they suffice is told that
    /// nobody knows.
    pub(super) fn deny_hints(&mut self, out: &mut [Output]) {
        let hinted = std::mem::take(&mut self.turn_hints);
        let is_told = |output: &Output| {
            let origin = match output {
                Output::Reply { id, result: Ok(_) } => Origin::Client(*id),
                Output::Send {
                    to,
                    message: Message::Control(Control::Forwarded { task, result: Ok(_) }),
                } => Origin::Peer(*to, *task),
                _ => return false,
            };
            hinted.iter().any(|(_, hinted)| *hinted == origin)
        };
        out.iter_mut()
            .filter(|output| is_told(output))
            .for_each(|output| output.deny(&ClientError::OutcomeUnknown));
        for (id, _) in hinted {
            let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { continue };
            put.lose_hints(self.membership.me);
        }
    }

    /// A coordinator that is no owner counts its own copy in the place of the first owner that is late or unreachable:
    /// reads ask those who answer, so in the place of one of them it counts for nothing. False if it is an owner, or
    /// stands in already.
    fn stand_in_here(&mut self, now: Now, id: TaskId, owner: NodeId) -> bool {
        let me = self.membership.me;
        let Some(Task { work: Work::Put { put, .. }, origin, .. }) = self.tasks.get_mut(id) else {
            return false;
        };
        if put.is_claim() || put.involves(me) {
            return false;
        }
        put.hold(me, Some(owner));
        let (key, object, origin) = (put.key.clone(), put.object.clone(), *origin);
        self.owe(now, owner, &key, &object);
        self.turn_hints.push((id, origin));
        true
    }

    /// A coordinator that is no owner and stands in for none gives its own copy away to `owner`.
    fn owe_if_spare(&mut self, id: TaskId, owner: NodeId) {
        let me = self.membership.me;
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        if !put.is_claim() && !put.involves(me) {
            let key = put.key.clone();
            self.add_hint(owner, &key);
        }
    }

    /// The next reachable fallback that has no copy of this put.
    pub(super) fn free_fallback(&mut self, id: TaskId) -> Option<NodeId> {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return None };
        let (key, is_of_home) = (put.key.clone(), put.term() > 0);
        if is_of_home && self.is_kept_by_quorum(&key) && !self.counts_stand_ins() {
            // Copies of nodes that nobody asks would not count.
            return None;
        }
        let ring = self.placed_ring();
        let (serving, others) = (ring.preference_at(key.position()), ring.other_at(key.position()));
        let [n, n_other] =
            [ring.replication(key.bucket()), ring.state().other(key.bucket())].map(|it| it.n as usize);
        let behind = serving.iter().skip(n).chain(others.unwrap_or_default().iter().skip(n_other));
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
                } else if let WriteOutcome::Uncovered { promised } = outcome {
                    put.refuse(from);
                    self.homes.note_term(promised);
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
        let Work::Put { put, reply, .. } = &mut task.work else {
            return true;
        };
        if reply.is_some() && put.progress() == Progress::Impossible && self.ask_silent(now, id, out) {
            return false;
        }
        let Some(task) = self.tasks.get_mut(id) else {
            return true;
        };
        let Work::Put { put, reply, .. } = &mut task.work else {
            return true;
        };
        if put.term() > 0 && reply.is_some() {
            match put.progress() {
                Progress::Impossible => {
                    self.withdraw(now, id, out);
                    return true;
                }
                Progress::Done if put.is_claim() => {
                    self.claimed(now, id, out);
                    return true;
                }
                Progress::Done | Progress::Waiting => {}
            }
        }
        let is_over = put.outstanding().next().is_none();
        let result = match put.progress() {
            Progress::Waiting => None,
            Progress::Done => reply.take().map(Ok),
            Progress::Impossible => reply.take().map(|_| Err(put_error(put, now, task.started_us))),
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
        result: Result<Reply, ClientError>,
        out: &mut Vec<Output>,
    ) {
        match &result {
            Ok(_) => self.metrics.puts += 1,
            Err(_) => self.metrics.puts_failed += 1,
        }
        self.finish(origin, result, out);
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
            Mutation::SetRange { offset, patch }
                if self.config.sabotage == crate::config::Sabotage::ShiftRange =>
            {
                Mutation::SetRange { offset: offset + 1, patch }
            }
            other => other,
        }
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
