//! What was waited for too long, or from a peer that is lost: hedges, deadlines, and going on without the peer.

use super::gets::HEDGE_COST;
use super::puts::put_error;
use super::{Node, Origin, Output, Task, Work};
use crate::client::ClientError;
use crate::detector::Health;
use crate::message::TaskId;
use crate::types::{NodeId, Now};

impl Node {
    pub(super) fn task_due(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let is_late = now.mono_us >= task.deadline_us;
        match &task.work {
            Work::Get { .. } if is_late => self.fail_get(now, id, out),
            Work::Get { .. } => {
                let deadline_us = task.deadline_us;
                let is_for_bodies = matches!(&task.work, Work::Get { get, .. } if get.is_for_bodies());
                let may_hedge = task.origin != Origin::Nobody && self.hedge_budget >= HEDGE_COST;
                if may_hedge && self.ask_more(now, id, 1, out) {
                    self.metrics.hedged_reads += 1;
                    self.hedge_budget -= HEDGE_COST;
                }
                if !self.advance_get(now, id, out) {
                    let again_us = if may_hedge && !is_for_bodies {
                        deadline_us
                    } else {
                        now.mono_us + self.config.hedge_us
                    };
                    self.tasks.wake_at(deadline_us.min(again_us), id);
                }
            }
            Work::Put { .. } => self.expire_put(now, id, out),
            Work::Forward { .. } => self.expire_forward(id, out),
            Work::Scan(_) => self.fail_scan(now, id, out),
            Work::Deliver(_) => self.delivery_lost(id),
            Work::Opinions(_) => self.weigh_opinions(now, id, true, out),
            Work::Fetch { .. } | Work::Compare { .. } => self.rows_are_late(id),
        }
    }

    fn expire_put(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        if let Some(Task { work: Work::Put { put, reply: Some(_), .. }, .. }) = self.tasks.get_mut(id) {
            if put.term() > 0 {
                return self.withdraw(now, id, out);
            }
        }
        let Some(mut task) = self.tasks.remove(id) else {
            return;
        };
        let Work::Put { put, reply, .. } = &mut task.work else {
            return;
        };
        if reply.take().is_some() {
            let error = put_error(put, now, task.started_us);
            self.answer_put(task.origin, Err(error), out);
        }
        let Work::Put { put, .. } = &mut task.work else {
            return;
        };
        let late: Vec<NodeId> = put.outstanding().collect();
        for node in late {
            if let Some(owner) = put.fail(node) {
                let (key, object) = (put.key.clone(), put.object.clone());
                self.owe(now, owner, &key, &object);
            }
        }
    }

    fn expire_forward(&mut self, id: TaskId, out: &mut Vec<Output>) {
        if let Some(task) = self.tasks.remove(id) {
            self.finish(task.origin, Err(ClientError::OutcomeUnknown), out);
        }
    }

    /// `peer` is late, or silent for long, or lost: asks others in its place.
    ///
    /// Only a lost one, whose link is closed, is not waited for any more. Otherwise a request waits until its own time
    /// is up; background work, for which nobody waits, gives up earlier.
    pub(super) fn ask_others_than(&mut self, now: Now, peer: NodeId, out: &mut Vec<Output>) {
        let is_lost = !self.can_answer(peer);
        let is_down = self.health(peer) == Health::Down;
        for id in self.tasks.ids() {
            let Some(task) = self.tasks.get_mut(id) else {
                continue;
            };
            match &mut task.work {
                Work::Get { get, .. } if get.outstanding().any(|node| node == peer) => {
                    let is_awaited =
                        matches!(task.origin, Origin::Client(_) | Origin::Peer(..) | Origin::Run(_));
                    match is_down {
                        true if is_lost || !is_awaited => get.rule_out(peer),
                        true => get.set_aside(peer),
                        false => {}
                    }
                    if is_down && is_awaited {
                        self.add_fallback(id);
                    }
                    if self.tasks.get_mut(id).is_some_and(|task| task.origin != Origin::Nobody) {
                        self.ask_more(now, id, 1, out);
                    }
                    self.advance_get(now, id, out);
                }
                // Whom it has not asked yet, it need not ask.
                Work::Get { get, .. } if is_lost => get.rule_out(peer),
                Work::Put { put, reply, .. } if is_lost || is_down && reply.is_none() => {
                    if let Some(owner) = put.fail(peer) {
                        self.stand_in(now, id, owner, out);
                        self.advance_put(now, id, out);
                    }
                }
                // The late one may still acknowledge, so only a fallback is worth a message, not yet a hint here.
                Work::Put { reply: Some(_), .. } => self.double(now, id, peer, out),
                Work::Forward { to, .. } if *to == peer => self.reroute(now, id, is_lost, out),
                Work::Scan(listing) if listing.waits_for(peer) => self.advance_scan(now, id, out),
                Work::Deliver(delivery) if is_down && delivery.owner == peer => self.delivery_lost(id),
                Work::Fetch { source: other, .. } | Work::Compare { owner: other }
                    if is_down && *other == peer =>
                {
                    self.rows_are_late(id)
                }
                _ => {}
            }
        }
    }
}
