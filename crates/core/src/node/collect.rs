//! Forgetting deleted and expired objects: asking all members, and dropping what they hold alike.
//!
//! ```text
//!  first owner ── do you hold just these, or nothing? ──► every member     and once more, collect_after_ms later
//!  first owner ◄── but for those, and durably ── every member
//!  first owner ── drop them ──► every member
//! ```
//! The walk that checks the hash tree finds dead objects. Who cannot be reached stops it all: nothing is forgotten
//! while a member is down. `collect` keeps the books; `docs/deletes.md` says why nothing comes back.

use std::collections::BTreeSet;

use super::{Event, Node, Output};
use crate::collect::{is_dead, DeadRow};
use crate::detector::Health;
use crate::message::{Control, Message};
use crate::replica::{hash_of, Held};
use crate::types::{NodeId, Now, ObjectKey};

impl Node {
    /// Notes those of the dead objects whose first owner this node is.
    pub(super) fn found_dead(&mut self, now: Now, dead: Vec<DeadRow>) {
        for row in dead {
            let owners = self.placed_ring().preference_at(row.0.position());
            if owners.first() == Some(&self.membership.me) {
                self.collector.found(now, row);
            }
        }
    }

    /// Ends a question that everybody has answered, and asks the next one.
    pub(super) fn collect(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(stamp) = self.stable_stamp() else { return };
        let others = self.holders();
        let rows = self.collector.conclude(now, stamp);
        #[cfg(feature = "sabotage")]
        let rows = match self.config.sabotage {
            crate::config::Sabotage::ForgetUnasked => self.collector.take_found(),
            _ => rows,
        };
        if !rows.is_empty() {
            for &peer in &others {
                let forget = Control::Forget { rows: rows.clone(), stamp };
                self.send(now, peer, Message::Control(forget), out);
            }
            self.forget(rows, stamp, out);
        }
        self.metrics.dead_waiting = self.collector.waiting();
        let is_up = |peer: &NodeId| self.detector.health(*peer) == Health::Up;
        if !self.collector.is_awake(now) || !others.iter().all(is_up) {
            return;
        }
        let timeout_us = self.config.timeout_ms as u64 * 1000;
        let Some((number, rows)) = self.collector.ask(now, stamp, others.clone(), timeout_us) else { return };
        let refused = self.refused(now, &rows);
        self.collector.refuse(refused.into_iter().map(usize::from));
        for peer in others {
            let ask = Control::AskDead { number, rows: rows.clone(), stamp };
            self.send(now, peer, Message::Control(ask), out);
        }
    }

    /// The ring's stamp, unless this node cannot vouch for anything now.
    fn stable_stamp(&self) -> Option<u64> {
        let ring = self.ring.as_ref()?;
        let is_able = !ring.is_moving() && self.read_only.is_none() && !self.stopping;
        is_able.then(|| ring.stamp())
    }

    /// All other members that may hold an object.
    fn holders(&self) -> BTreeSet<NodeId> {
        let me = self.membership.me;
        let others = self.membership.members.values().filter(|member| member.id != me);
        others.filter(|member| !member.empty || self.is_in_ring(member.id)).map(|member| member.id).collect()
    }

    fn is_in_ring(&self, node: NodeId) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.state().contains(node))
    }

    /// True if an operator removed the node: what it still sends counts no more, lest it bring back what is forgotten.
    pub(super) fn is_removed(&self, node: NodeId) -> bool {
        self.membership.ring.as_ref().is_some_and(|ring| ring.removed.contains(&node))
    }

    /// A member asks whether some dead objects may be forgotten.
    pub(super) fn ask_dead(
        &mut self,
        now: Now,
        from: NodeId,
        number: u64,
        rows: &[DeadRow],
        stamp: u64,
        out: &mut Vec<Output>,
    ) {
        let can_vouch = self.stable_stamp() == Some(stamp) && self.collector.is_awake(now);
        let refused = match can_vouch {
            true => self.refused(now, rows),
            false => (0..rows.len() as u16).collect(),
        };
        self.send(now, from, Message::Control(Control::DeadAnswer { number, refused }), out);
    }

    /// The indexes of those that this node holds otherwise. The others are durable at the end of this turn.
    fn refused(&mut self, now: Now, rows: &[DeadRow]) -> Vec<u16> {
        self.replica.request_durable();
        let owners = self.handoff.owners();
        let mut refused = Vec::new();
        for (index, (key, hash)) in rows.iter().enumerate() {
            let is_held_alike = match self.replica.load(key) {
                Held::Missing => true,
                Held::Object(bytes) => hash_of(&bytes) == *hash && is_dead(&bytes, now.wall_ms),
                Held::Corrupt => false,
            };
            let is_owed = owners.iter().any(|owner| self.replica.hint_mark(*owner, key).is_some());
            if !is_held_alike || is_owed {
                refused.push(index as u16);
            }
        }
        refused
    }

    /// Drops dead objects, unless they have changed.
    pub(super) fn forget(&mut self, rows: Vec<(ObjectKey, u64)>, stamp: u64, out: &mut Vec<Output>) {
        if self.stable_stamp() != Some(stamp) {
            return;
        }
        for (key, hash) in rows {
            let Some((object, Some(bytes))) = self.replica.load_object(&key) else { continue };
            if hash_of(&bytes) != hash {
                continue;
            }
            self.replica.forget_dead(&key);
            self.metrics.dead_forgotten += 1;
            out.push(Output::Event(Event::DeadForgotten { key, object }));
        }
    }

    /// Lets the others know whether this node has anything that they would have to ask for.
    pub(super) fn note_emptiness(&mut self, now: Now) {
        let is_outside = self.ring.is_some() && !self.is_in_ring(self.membership.me);
        let is_empty =
            is_outside && !self.is_giving_away() && self.handoff.pending() == 0 && self.replica.is_empty();
        if self.membership.own().empty != is_empty {
            self.membership.update_own(now.wall_ms, |own| own.empty = is_empty);
            self.membership_is_dirty = true;
        }
    }
}
