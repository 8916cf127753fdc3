//! Taking client requests: refusals, quorums, and handing a request to the node that is to run it.
//!
//! `gets` and `puts` run what is run here.

use super::puts::Update;
use super::{Node, Origin, Output, Purpose, Task, Work};
use crate::active::Ask;
use crate::bucket::Conflict;
use crate::client::{
    ActiveError, ClientError, Operation, Quorum, QuorumName, Reply, Request, RequestId, TIMEOUT_MS_MAX,
};
use crate::detector::Health;
use crate::forwards::{HandedOver, NEWS_US};
use crate::get::Needed;
use crate::message::{Control, Message, TaskId};
use crate::mutation::Mutation;
use crate::ring::Ring;
use crate::types::{NodeId, Now, ObjectKey};

/// Whether a request may still be handed to another coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hop {
    First,
    Last,
    /// As `Last`, by a node that held an object of this hash under the key when it handed the request on.
    Told {
        by: NodeId,
        hash: u64,
    },
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
            Operation::Call { key, call, quorum } => {
                self.start_call(now, origin, key, call, quorum, deadline_us, hop, out)
            }
            Operation::Update { key, mutation, quorum, want, caller } => {
                let update = Update { key, mutation, quorum, want, caller };
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
            Operation::ChangeRing { change, plan_only, force } => {
                self.start_ring_change(now, origin, change, plan_only, force, deadline_us, out)
            }
        }
    }

    // Quorums and placement

    pub(super) fn placed_ring(&self) -> &Ring {
        self.ring.as_ref().expect("operations start only when there is a ring")
    }

    /// The bucket's `n`, or the number of nodes if that is smaller.
    pub(super) fn replicas_of(&self, key: &ObjectKey) -> usize {
        let n = self.placed_ring().replication(key.bucket()).n as usize;
        n.min(self.placed_ring().nodes().len())
    }

    pub(super) fn read_quorum(&self, key: &ObjectKey, quorum: Quorum) -> Result<Needed, ClientError> {
        let total = quorum.r.unwrap_or(self.placed_ring().replication(key.bucket()).r);
        let needed = self.needed(key, (QuorumName::R, total), (QuorumName::PrimaryR, quorum.primary_r))?;
        #[cfg(feature = "sabotage")]
        let needed = match self.config.sabotage {
            crate::config::Sabotage::CountOneAnswerLess => needed.one_less(),
            _ => needed,
        };
        Ok(needed)
    }

    /// Errors too if a request asks for more copies than the cluster can make; a bucket's `w` means all of them then.
    pub(super) fn write_quorum(&self, key: &ObjectKey, quorum: Quorum) -> Result<Needed, ClientError> {
        let total = quorum.w.unwrap_or(self.placed_ring().replication(key.bucket()).w);
        let needed = self.needed(key, (QuorumName::W, total), (QuorumName::PrimaryW, quorum.primary_w))?;
        let asked = quorum.w.unwrap_or(0).max(quorum.primary_w);
        if asked > 1 && asked as usize > self.replicas_of(key) {
            let reachable = self.replicas_of(key) as u8;
            return Err(ClientError::TooFewReachable { reachable, needed: asked });
        }
        #[cfg(feature = "sabotage")]
        let needed = match self.config.sabotage {
            crate::config::Sabotage::CountOneCopyLess => needed.one_less(),
            _ => needed,
        };
        Ok(needed)
    }

    /// Checks quorum numbers against the bucket's `n`. A cluster smaller than `n` will be asked for as many as it has.
    fn needed(
        &self,
        key: &ObjectKey,
        (total_name, total): (QuorumName, u8),
        (primary_name, primaries): (QuorumName, u8),
    ) -> Result<Needed, ClientError> {
        let ring = self.placed_ring();
        let n = ring.replication(key.bucket()).n;
        let n = if ring.is_moving() { n.max(ring.state().other(key.bucket()).n) } else { n };
        check_quorum(total_name, total, n)?;
        check_quorum(primary_name, primaries.max(1), n)?;
        Ok(Needed { total, primaries })
    }

    pub(super) fn is_lww(&self, key: &ObjectKey) -> bool {
        self.buckets().properties(key.bucket()).conflict == Conflict::Lww
    }

    // Forwards

    /// The node to hand an update to; `None`: this one runs it.
    pub(super) fn other_coordinator(&self, update: &Update) -> Option<NodeId> {
        if matches!(update.mutation, Mutation::Activate { .. }) {
            return self.other_home(&update.key);
        }
        let me = self.id();
        let n = self.replicas_of(&update.key);
        let list = self.placed_ring().preference_at(update.key.position());
        if !update.reads_first() && list[..n].contains(&me) {
            return None;
        }
        self.first_reachable(list, &[]).filter(|&node| node != me)
    }

    /// The home among `list`: the first that answers, or if none does, may answer soon.
    fn first_reachable(&self, list: &[NodeId], refused: &[NodeId]) -> Option<NodeId> {
        let first = |wanted: Health| {
            list.iter().copied().find(|node| self.health(*node) == wanted && !refused.contains(node))
        };
        first(Health::Up).or_else(|| first(Health::Suspect))
    }

    /// Hands an update on as `work`, a [`Work::Forward`], says.
    pub(super) fn forward(
        &mut self,
        now: Now,
        origin: Origin,
        work: Work,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let Work::Forward { to, operation, .. } = &work else { return };
        let (to, operation) = (*to, operation.clone());
        self.metrics.forwards += 1;
        let (left_us, sent_us) = (deadline_us.saturating_sub(now.mono_us).max(1), now.mono_us);
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.detector.sent(to, now.mono_us);
        let holds = match &operation {
            Operation::Call { key, .. } => self.known_to_hold(key),
            _ => 0,
        };
        let message = Message::Control(Control::Forward { task: id, operation, left_us, sent_us, holds });
        self.send(now, to, message, out);
        self.tasks.wake_at(deadline_us + self.config.hedge_us, id);
    }

    /// Runs what a peer has handed over if any of its time is left.
    pub(super) fn handed_over(&mut self, now: Now, from: NodeId, request: HandedOver, out: &mut Vec<Output>) {
        let left_us = request.left_us.min(u64::from(TIMEOUT_MS_MAX) * 1000);
        let (least_us, most_us) = match self.forwards.age_us(from, request.sent_us, now.mono_us) {
            Some((least_us, most_us)) if most_us < left_us || least_us >= left_us => (least_us, most_us),
            _ => return self.forwards.wait(from, request),
        };
        let HandedOver { task, operation, holds, .. } = request;
        let origin = Origin::Peer(from, task);
        if least_us >= left_us {
            self.metrics.expired_forwards += 1;
            let error = match &operation {
                Operation::Call { .. } => ClientError::Active(ActiveError::TimedOut),
                _ => ClientError::OutcomeUnknown,
            };
            return self.finish(origin, Err(error), out);
        }
        // Not for longer after the client has given up.
        let left_us = left_us - least_us.max(most_us.saturating_sub(NEWS_US));
        // What the peer said of its row is used only while it is news.
        let hop = match holds {
            hash if hash != 0 && most_us <= NEWS_US => Hop::Told { by: from, hash },
            _ => Hop::Last,
        };
        self.start(now, origin, operation, now.mono_us + left_us, hop, out);
    }

    /// A peer's clock showed `theirs_us` between `asked_us` and now: the ages of its requests are known from now on.
    pub(super) fn compare_time(
        &mut self,
        now: Now,
        from: NodeId,
        (asked_us, theirs_us): (u64, u64),
        out: &mut Vec<Output>,
    ) {
        for request in self.forwards.compare(from, asked_us, theirs_us, now.mono_us) {
            self.handed_over(now, from, request, out);
        }
    }

    /// The hash of what this node, a primary of `key`, holds, if it knows without looking; else 0.
    fn known_to_hold(&self, key: &ObjectKey) -> u64 {
        let primaries = &self.placed_ring().preference_at(key.position())[..self.replicas_of(key)];
        let is_primary = primaries.contains(&self.membership.me);
        self.replica.known_hash(key).filter(|_| is_primary).unwrap_or(0)
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
            Operation::Update { key, .. } | Operation::Call { key, .. } => {
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

    /// The node a request was handed to is late, or silent for long, or lost: hands it to another if doing it twice
    /// does no harm. Otherwise it is waited for as long as its link is open.
    ///
    /// An update is waited for too: a node that stands still runs it when it wakes, after the answer of another one,
    /// and would replace what was written since.
    pub(super) fn reroute(&mut self, now: Now, id: TaskId, is_lost: bool, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Forward { operation, to, .. }, .. }) = self.tasks.get_mut(id) else {
            return;
        };
        let is_down = !self.detector.is_reachable(*to);
        let is_safe = match operation {
            Operation::Update { mutation, .. } => is_lost && mutation.is_idempotent(),
            // Its home may run it still, and another would count a second time.
            Operation::Call { call, .. } => is_down && !matches!(call.what, Ask::Function(_)),
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
