//! An operator's change of the ring: checked here, and before a node is given up by the other nodes of the ring too.
//!
//! ```text
//!  asked node ── can you reach it? ──► every node of the ring that is up
//!  asked node ◄── up, suspect, down ── they
//! ```
//! `guard` says what is refused and why.

use super::{Node, Origin, Output, Task, Work};
use crate::client::{ClientError, Reply};
use crate::guard::{changed, Knowledge, Opinions};
use crate::message::{Control, Message, TaskId};
use crate::ring::{Ring, RingChange, RingError, RingState};
use crate::types::{NodeId, Now};

impl Node {
    /// An operator's change, or what it would move.
    #[allow(clippy::too_many_arguments)] // The fields of one operation.
    pub(super) fn start_ring_change(
        &mut self,
        now: Now,
        origin: Origin,
        change: RingChange,
        plan_only: bool,
        force: bool,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let state = match self.changed_ring(&change, force) {
            Ok(state) => state,
            Err(error) => return self.finish(origin, Err(ClientError::Ring(error)), out),
        };
        match change.given_up().filter(|_| !plan_only) {
            Some(node) => self.ask_opinions(now, origin, change, force, node, deadline_us, out),
            None => {
                let plan = self.plan(&Ring::new(state.clone()));
                if !plan_only {
                    self.install_ring(now, state, out);
                }
                self.finish(origin, Ok(Reply::RingPlan(plan)), out)
            }
        }
    }

    /// The state in which a change begins, as far as this node may decide.
    fn changed_ring(&self, change: &RingChange, force: bool) -> Result<RingState, RingError> {
        self.with_knowledge(|known| changed(known, change, force))
    }

    fn with_knowledge<T>(&self, ask: impl FnOnce(&Knowledge) -> T) -> T {
        let is_member = |node| self.membership.members.contains_key(&node);
        let health = |node| self.health(node);
        ask(&Knowledge {
            me: self.membership.me,
            ring: self.placed_ring(),
            sizes: &self.placed_ring().sizes(),
            is_member: &is_member,
            health: &health,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn ask_opinions(
        &mut self,
        now: Now,
        origin: Origin,
        change: RingChange,
        force: bool,
        node: NodeId,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let opinions = self.with_knowledge(|known| Opinions::new(known, change, force, node));
        let asked: Vec<NodeId> = opinions.asked().collect();
        // An answer that does not come is none: the operator hears of it within the time limit.
        let ends_us = now.mono_us + (deadline_us - now.mono_us) / 2;
        let work = Work::Opinions(opinions);
        let task = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        for peer in asked {
            self.send(now, peer, Message::Control(Control::AskOpinion { task, node }), out);
        }
        self.tasks.wake_at(ends_us, task);
        self.weigh_opinions(now, task, false, out);
    }

    /// A peer says whether it can reach the node that is to be given up.
    pub(super) fn opinion(
        &mut self,
        now: Now,
        peer: NodeId,
        task: TaskId,
        health: crate::detector::Health,
        out: &mut Vec<Output>,
    ) {
        let is_asked = match self.tasks.get_mut(task) {
            Some(Task { work: Work::Opinions(opinions), .. }) => opinions.answer(peer, health),
            _ => false,
        };
        match is_asked {
            true => self.weigh_opinions(now, task, false, out),
            false => self.metrics.late_messages += 1,
        }
    }

    /// Carries the change out, or refuses it, once that is clear. What this node knew may have changed meanwhile.
    pub(super) fn weigh_opinions(&mut self, now: Now, task: TaskId, is_over: bool, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Opinions(opinions), .. }) = self.tasks.get_mut(task) else { return };
        let Some(verdict) = opinions.verdict(is_over) else { return };
        let Some(Task { work: Work::Opinions(opinions), origin, .. }) = self.tasks.remove(task) else {
            return;
        };
        #[cfg(feature = "sabotage")]
        let verdict = match self.config.sabotage {
            crate::config::Sabotage::AskNoOpinion => Ok(()),
            _ => verdict,
        };
        let state = verdict.and_then(|()| self.changed_ring(&opinions.change, opinions.force));
        let result = state.map(|state| {
            let plan = self.plan(&Ring::new(state.clone()));
            self.install_ring(now, state, out);
            Reply::RingPlan(plan)
        });
        self.finish(origin, result.map_err(ClientError::Ring), out)
    }
}
