//! Changing the ring: taking the change, moving data, settling, and giving away what is others' now.
//!
//! `docs/ring-change.md` says in which phase who is asked, and why no acknowledged write can be missed.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::serve::end_of;
use super::{Event, Node, Origin, Output, Task, Work};
use crate::client::{NodePlan, RingPlan};
use crate::config::Tuning;
use crate::detector::Health;
use crate::membership::Gossip;
use crate::message::{Control, Message, RangePage, TaskId};
use crate::replica::{hash_of, row_hash};
use crate::ring::{Ring, RingState, Shape};
use crate::store::{Space, StoreError};
use crate::transfer::{awaited, Incoming, Range, SweepPage, Worked};
use crate::types::{NodeId, Now, ObjectKey, Position, SLOTS};

/// A node asks for a newer ring at most this often, in microseconds.
const ASK_RING_US: u64 = 5_000;
/// Steps of a move are at least this far apart, in microseconds.
const STEP_US: u64 = 100;
/// A look for rows to give away is followed by a pause of at least this many microseconds.
const PAUSE_US: u64 = 2_000;
/// A pause is as long as the work before it, and as long again for each so many requests of clients that wait. Too
/// many: clients notice that data move; too few: data move slowly while clients are served.
const WAITING_PER_PAUSE: u32 = 8;
/// The longest pause, as a multiple of the work before it.
const PAUSES_MAX: u32 = 4;

impl Node {
    /// The stamp of this node's ring, 0 if it knows none.
    pub(super) fn stamp(&self) -> u64 {
        self.ring.as_ref().map_or(0, Ring::stamp)
    }

    /// What a ring that is about to be taken over moves.
    pub(super) fn plan(&self, ring: &Ring) -> RingPlan {
        let n = ring.state().usual.n as usize;
        let mut nodes: BTreeMap<NodeId, NodePlan> = BTreeMap::new();
        let mut slots_moved = 0;
        for slot in 0..SLOTS {
            let position = Position::first_of_slot(slot);
            let old = ring.preference_at(position);
            let new = ring.other_at(position).filter(|_| !ring.state().arrived).unwrap_or(old);
            slots_moved += (old[0] != new[0]) as u32;
            let (old, new) = (&old[..n.min(old.len())], &new[..n.min(new.len())]);
            for &node in old.iter().chain(new) {
                nodes.entry(node).or_insert(NodePlan { node, before: 0, after: 0, receives: 0 });
            }
            for (&id, plan) in &mut nodes {
                let (had, has) = (old.contains(&id), new.contains(&id));
                plan.before += had as u32;
                plan.after += has as u32;
                plan.receives += (has && !had) as u32;
            }
        }
        let version = ring.state().version;
        RingPlan { version, slots_moved, slots: SLOTS as u32, nodes: nodes.into_values().collect() }
    }

    /// Takes over a ring made here and tells everybody.
    pub(super) fn install_ring(&mut self, now: Now, state: RingState, out: &mut Vec<Output>) {
        let changes = self.membership.merge(Vec::new(), Some(state), Vec::new());
        self.membership_changed(now, changes, out);
    }

    /// The ring has changed: what was asked of the old one's nodes is asked of the new one's.
    pub(super) fn ring_changed(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(state) = self.membership.ring.clone() else {
            return;
        };
        // Which cluster this node belongs to must not be forgotten once it has spoken for it.
        self.replica.request_durable();
        let (version, nodes) = (state.version, state.layout.nodes.len());
        let (partitions, moving) = (state.layout.partitions, !state.arrived);
        let usual = state.usual;
        self.ring = Some(Ring::new(state));
        self.membership.buckets.set_usual_replication(usual);
        self.size_tree();
        self.entropy.forget_results();
        out.push(Output::Event(Event::RingFormed { version, nodes, partitions, moving }));
        // The news must be everywhere before requests that are stamped with it are.
        for peer in self.peers_up() {
            let ring = self.membership.ring.clone();
            self.tell(peer, Gossip::Delta { members: Vec::new(), ring, buckets: Vec::new() }, out);
        }
        self.begin_moving();
        for id in self.tasks.ids() {
            self.replan(now, id, out);
        }
    }

    /// Looks what this node has to fetch, or to give away.
    pub(super) fn begin_moving(&mut self) {
        let Some(ring) = &self.ring else { return };
        self.resume_moving_us = 0;
        self.sweep.handed.clear();
        if ring.is_moving() {
            self.incoming = Some(Incoming::new(ring, self.membership.me));
        } else {
            self.incoming = None;
            // A copy kept for others is not dropped in the turn in which they have it, if it is one of few.
            if ring.state().version > 1 || !self.replica.placed().is_empty() {
                self.sweep.start();
            }
        }
    }

    /// Asks anew what may have been asked of the wrong nodes, or was refused.
    fn replan(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        match &task.work {
            Work::Get { .. }
                if matches!(task.origin, Origin::Client(_) | Origin::Peer(..) | Origin::Run(_)) =>
            {
                let Some(Task { origin, deadline_us, work: Work::Get { get, purpose }, .. }) =
                    self.tasks.remove(id)
                else {
                    return;
                };
                let mut asked = get.asked();
                let state = self.placed_ring().state();
                if state.replication.contains_key(get.key.bucket()) {
                    // A quorum of before may be too small now.
                    asked.total = asked.total.max(state.serving(get.key.bucket()).r);
                }
                self.start_get(now, origin, get.key, asked, purpose, deadline_us, out);
            }
            Work::Put { .. } => self.replan_put(now, id, out),
            Work::Scan(_) => self.advance_scan(now, id, out),
            _ => {}
        }
    }

    fn replan_put(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        let key = put.key.clone();
        let (serving, others) = self.owners(&key);
        let usual = self.usual_w(&key);
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        put.place(&serving, others.as_deref(), usual);
        if self.has_lost_quorum(id, &serving) {
            return self.withdraw(now, id, out);
        }
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        let outstanding: Vec<NodeId> = put.outstanding().collect();
        for node in outstanding {
            self.ask_again(now, id, node, out);
        }
        self.ask_owners(now, id, &serving, others.as_deref(), out);
        self.advance_put(now, id, out);
    }

    /// The primaries of a key, who answer reads, and, while the ring changes, those of the other layout.
    pub(super) fn owners(&self, key: &ObjectKey) -> (Vec<NodeId>, Option<Vec<NodeId>>) {
        let first = |list: &[NodeId], n: u8| list[..list.len().min(n as usize)].to_vec();
        let ring = self.placed_ring();
        let position = key.position();
        let others = ring.other_at(position).map(|list| first(list, ring.state().other(key.bucket()).n));
        (first(ring.preference_at(position), ring.replication(key.bucket()).n), others)
    }

    /// The `w` of a key's bucket for those who answer reads, and for those of the other layout.
    pub(super) fn usual_w(&self, key: &ObjectKey) -> (u8, u8) {
        let ring = self.placed_ring();
        let serving = ring.replication(key.bucket()).w;
        (serving, if ring.is_moving() { ring.state().other(key.bucket()).w } else { serving })
    }

    /// Has what operators want of buckets' replication come into force, if that is not so and nothing else changes.
    pub(super) fn follow_buckets(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(ring) = self.ring.as_ref().filter(|ring| !ring.is_moving()) else { return };
        let is_outcast = ring.state().removed.contains(&self.membership.me);
        if is_outcast || self.stopping {
            return;
        }
        if let Some(state) = ring.state().adopt(&self.membership.buckets) {
            #[cfg(feature = "sabotage")]
            let state = match self.config.sabotage {
                crate::config::Sabotage::AdoptAtOnce if state.old.is_some() => state.successor().successor(),
                _ => state,
            };
            self.install_ring(now, state, out);
        }
    }

    /// A peer's ring is newer, or it says so: asks it for its own.
    pub(super) fn ask_for_ring(&mut self, now: Now, peer: NodeId, out: &mut Vec<Output>) {
        if now.mono_us >= self.asked_for_ring_us + ASK_RING_US {
            self.asked_for_ring_us = now.mono_us;
            let versions = self.membership.versions(true);
            self.tell(peer, versions, out);
        }
    }

    /// A peer's ring is older: tells it this one.
    pub(super) fn tell_ring(&mut self, peer: NodeId, out: &mut Vec<Output>) {
        let ring = self.membership.ring.clone();
        self.tell(peer, Gossip::Delta { members: Vec::new(), ring, buckets: Vec::new() }, out);
    }

    // Fetching

    /// Whatever moves data and is due.
    pub(super) fn move_data(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.ring.is_none() || self.read_only.is_some() || self.stopping {
            return;
        }
        self.announce_moved(now, out);
        self.settle(now, out);
        if now.mono_us < self.resume_moving_us {
            return;
        }
        if self.incoming.is_some() {
            self.fetch(now, out);
        }
        self.sweep(now, out);
    }

    /// When [`Node::move_data`] has something to do, in `mono_us`.
    pub(super) fn next_move_us(&self) -> Option<u64> {
        let ring = self.ring.as_ref().filter(|_| self.read_only.is_none() && !self.stopping)?;
        let fetches = self.incoming.as_ref().is_some_and(Incoming::has_work);
        let walks = self.sweep.page.is_none() && self.sweep.next.is_some();
        let sweeps = !ring.is_moving() && (walks || !self.sweep.verified.is_empty());
        let is_ready = self.incoming.as_ref().is_some_and(Incoming::is_complete);
        let announces =
            self.moved_in_turn.is_some() || is_ready && self.membership.own().moved != self.stamp();
        // Not in the turn that just was: one step at a time.
        let soon_us = self.last_now.mono_us + STEP_US;
        (fetches || sweeps || announces).then_some(self.resume_moving_us.max(soon_us))
    }

    fn fetch(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(mut incoming) = self.incoming.take() else { return };
        let shapes = self.placed_ring().state().shapes();
        incoming.complete(|range| self.suffices(range, &shapes));
        incoming.start_streams(|node| self.health(node) == Health::Up);
        for number in incoming.ready() {
            let Some(stream) = incoming.stream(number) else { continue };
            let (from, to, source) = (stream.next.0, stream.to.0, stream.source);
            let task = self.expect_rows(now, Work::Fetch { stream: number, source });
            incoming.asked(number, task, now.mono_us);
            self.list_range_of(now, source, task, from, to, out);
        }
        if incoming.is_complete()
            && self.moved_in_turn.is_none()
            && self.membership.own().moved != self.stamp()
        {
            // What was fetched in this turn must be durable before anybody hears that it is here.
            self.moved_in_turn = Some((self.turns, self.stamp()));
            self.replica.request_durable();
        }
        self.incoming = Some(incoming);
    }

    /// Whether a range has been fetched from enough old owners: from all that can be reached and all that lose it, and
    /// from so many that no acknowledged write can be on the others alone. Nodes that were removed do not come back to
    /// be asked.
    fn suffices(&self, range: &Range, shapes: &[Shape]) -> bool {
        let removed = &self.placed_ring().state().removed;
        let may_come_back = |node: &&NodeId| !removed.contains(node);
        let is_waiting = |node: &NodeId| {
            let must_answer = self.health(*node) != Health::Down || range.leaving.contains(node);
            must_answer && !range.done.contains(node)
        };
        if range.old.iter().filter(may_come_back).any(is_waiting) {
            return false;
        }
        shapes.iter().all(|shape| {
            let old = &range.old[..range.old.len().min(shape.before.n as usize)];
            let available = old.iter().filter(may_come_back).count();
            let needed = (old.len() + 1 - shape.before.copies_at_least(old.len())).min(available);
            old.iter().filter(|node| range.done.contains(node)).count() >= needed
        })
    }

    fn expect_rows(&mut self, now: Now, work: Work) -> TaskId {
        let deadline_us = now.mono_us + self.config.timeout_ms as u64 * 1000;
        let id =
            self.tasks.insert(Task { origin: Origin::Nobody, started_us: now.mono_us, deadline_us, work });
        self.tasks.wake_at(deadline_us, id);
        id
    }

    fn list_range_of(
        &mut self,
        now: Now,
        node: NodeId,
        task: TaskId,
        from: u64,
        to: u64,
        out: &mut Vec<Output>,
    ) {
        let stamp = self.stamp();
        self.send(now, node, Message::Control(Control::ListRange { task, from, to, stamp }), out);
    }

    /// A peer asks for the rows of a range.
    #[allow(clippy::too_many_arguments)] // The fields of one message.
    pub(super) fn serve_list_range(
        &mut self,
        now: Now,
        peer: NodeId,
        task: TaskId,
        from: u64,
        to: u64,
        stamp: u64,
        out: &mut Vec<Output>,
    ) {
        if self.stamp() < stamp {
            // Listing before this node knows the ring would promise too much: later writes might come behind it.
            return self.ask_for_ring(now, peer, out);
        }
        if self.stamp() > stamp {
            return self.tell_ring(peer, out);
        }
        let (mut rows, mut bytes, mut done_to) = (Vec::new(), 0, to);
        let (mut visited, mut last_position) = (0, from);
        let (mut corrupt, mut is_whole) = (Vec::new(), true);
        let Tuning { transfer_rows, transfer_visited, .. } = self.config.tuning;
        let Some(ring) = &self.ring else { return };
        let state = Some(ring.state()).filter(|state| state.is_of_buckets());
        let (first, last) = (from.to_be_bytes(), end_of(Position(to)));
        self.replica.store_mut().scan(Space::Data, &first, &last, &mut |row, value| {
            let Ok(key) = ObjectKey::from_row(Bytes::copy_from_slice(row)) else { return true };
            let position = key.position().0;
            let is_full = rows.len() >= transfer_rows || visited >= transfer_visited;
            if is_full && position > last_position {
                done_to = position - 1;
                return false;
            }
            (visited, last_position) = (visited + 1, position);
            // All else stays where it is.
            if state.is_some_and(|state| !state.changes(key.bucket())) {
                return true;
            }
            match value {
                Ok(value) => {
                    bytes += value.len() as u64;
                    rows.push((key, row_hash(row, hash_of(value))));
                }
                Err(error) => {
                    is_whole &= matches!(error, StoreError::Corrupt { .. });
                    corrupt.push((key, error));
                }
            }
            true
        });
        corrupt.into_iter().for_each(|(key, error)| self.replica.note_unread(&key, error));
        if !is_whole {
            // A page that leaves out rows would promise too much: the peer asks again.
            return;
        }
        let page = RangePage { rows, bytes, done_to, waiting: self.requests_in_flight as u32 };
        self.send(now, peer, Message::Control(Control::RangeRows { task, page }), out);
    }

    /// The rows of a range, as a peer has them.
    pub(super) fn range_rows(
        &mut self,
        now: Now,
        peer: NodeId,
        task: TaskId,
        page: RangePage,
        out: &mut Vec<Output>,
    ) {
        match self.tasks.get_mut(task).map(|task| &task.work) {
            Some(Work::Fetch { stream, source }) if *source == peer => {
                let stream = *stream;
                self.tasks.remove(task);
                self.fetched(now, peer, stream, task, page, out);
            }
            Some(Work::Compare { owner }) if *owner == peer => {
                self.tasks.remove(task);
                self.compared(now, peer, task, page, out);
            }
            _ => self.metrics.late_messages += 1,
        }
    }

    fn fetched(
        &mut self,
        now: Now,
        source: NodeId,
        stream: u64,
        task: TaskId,
        page: RangePage,
        out: &mut Vec<Output>,
    ) {
        let mut differing = Vec::new();
        for (key, hash) in &page.rows {
            if self.is_mine(key) && self.own_hash(key) != Some(*hash) {
                differing.push(key.clone());
            }
        }
        let moved_bytes = page.bytes * differing.len() as u64 / page.rows.len().max(1) as u64;
        let Some(incoming) = &mut self.incoming else { return };
        if !incoming.page(stream, task, &page, differing.len()) {
            return;
        }
        incoming.bytes += moved_bytes;
        self.metrics.transferred_bytes += moved_bytes;
        self.metrics.transferred_keys += differing.len() as u64;
        let budget_us = moved_bytes * 1_000_000 / self.config.transfer_bytes_per_s.max(1);
        self.resume_moving_us = self.resume_moving_us.max(now.mono_us) + budget_us;
        self.rest_from_fetching();
        for key in differing {
            self.repair_with(now, Origin::Transfer(stream), key, source, out);
        }
    }

    /// Clients come first: the longer a page took and the more requests wait, here or at the peer, the longer the pause
    /// before the next one. Source: Dynamo §6.5.
    fn rest(&mut self, worked: Worked) {
        let now_us = self.last_now.mono_us;
        let waiting = worked.waiting.max(self.requests_in_flight as u32);
        let pauses = (1 + waiting / WAITING_PER_PAUSE).min(PAUSES_MAX);
        let full_us = now_us.saturating_sub(worked.since_us) * pauses as u64;
        // A page with few rows takes time, but is little work.
        let page_rows = self.config.tuning.transfer_rows;
        let pause_us = full_us * worked.rows.min(page_rows) as u64 / page_rows as u64;
        self.resume_moving_us = self.resume_moving_us.max(now_us) + pause_us;
    }

    fn rest_from_fetching(&mut self) {
        while let Some(worked) = self.incoming.as_mut().and_then(Incoming::take_finished) {
            self.rest(worked);
        }
    }

    /// Whether this node holds a key, now or after the change.
    fn is_mine(&self, key: &ObjectKey) -> bool {
        self.holds(self.membership.me, key)
    }

    /// Whether a node holds a key, before, while or after the ring changes.
    pub(super) fn holds(&self, node: NodeId, key: &ObjectKey) -> bool {
        self.placed_ring().holds(node, key.position(), key.bucket())
    }

    /// The hash by which listings compare the object under `key`; `None` if there is none that can be read.
    fn own_hash(&mut self, key: &ObjectKey) -> Option<u64> {
        match self.replica.load(key) {
            crate::replica::Held::Object(bytes) => Some(row_hash(key.row(), hash_of(&bytes))),
            _ => None,
        }
    }

    /// A key that a stream waits for was repaired, or not.
    pub(super) fn transfer_repaired(&mut self, stream: u64, is_repaired: bool) {
        if let Some(incoming) = &mut self.incoming {
            incoming.repaired(stream, is_repaired);
        }
        self.rest_from_fetching();
    }

    /// Rows did not come in time.
    pub(super) fn rows_are_late(&mut self, id: TaskId) {
        match self.tasks.remove(id).map(|task| task.work) {
            Some(Work::Fetch { stream, .. }) => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.give_up(stream);
                }
            }
            Some(Work::Compare { .. }) => {
                self.sweep.again = true;
                self.end_sweep_page();
            }
            _ => {}
        }
    }

    /// Says that everything is here, and the ring is known, once both are durable.
    fn announce_moved(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some((turn, stamp)) = self.moved_in_turn.filter(|(turn, _)| *turn < self.turns) else { return };
        debug_assert!(turn < self.turns, "the turn is over");
        self.moved_in_turn = None;
        if stamp != self.stamp() {
            return;
        }
        self.membership.update_own(now.wall_ms, |own| own.moved = stamp);
        self.membership_is_dirty = true;
        for peer in self.peers_up() {
            let members = vec![self.membership.own().clone()];
            self.tell(peer, Gossip::Delta { members, ring: None, buckets: Vec::new() }, out);
        }
    }

    /// Takes the ring's next step when all nodes that this one waits for have said that they are ready.
    fn settle(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(ring) = self.ring.as_ref().filter(|ring| ring.is_moving()) else { return };
        if self.awaited.as_ref().is_none_or(|(stamp, _)| *stamp != ring.stamp()) {
            self.awaited = Some((ring.stamp(), awaited(ring)));
        }
        let Some((stamp, nodes)) = &self.awaited else { return };
        let is_ready = |node| self.membership.members.get(node).is_some_and(|member| member.moved == *stamp);
        let is_over = nodes.iter().all(is_ready);
        #[cfg(feature = "sabotage")]
        let is_over = is_over || self.config.sabotage == crate::config::Sabotage::SettleEarly;
        if is_over {
            let successor = ring.state().successor();
            self.install_ring(now, successor, out);
        }
    }

    // Giving away

    /// Looks for rows that others own, one page at a time, and drops those that all their owners hold.
    fn sweep(&mut self, now: Now, out: &mut Vec<Output>) {
        self.drop_verified();
        let is_stable = self.ring.as_ref().is_some_and(|ring| !ring.is_moving());
        let Some(from) = self.sweep.next.filter(|_| is_stable && self.sweep.page.is_none()) else { return };
        if self.sweep.verified.len() >= self.config.tuning.verified_rows {
            return;
        }
        let (rows, to) = self.strays(from);
        self.resume_moving_us = now.mono_us + PAUSE_US;
        let Some((first, _)) = rows.first() else {
            self.sweep.next = to.0.checked_add(1).map(Position);
            return self.end_sweep_if_over();
        };
        let n = self.replicas_max().min(self.placed_ring().nodes().len());
        let mut owners = self.placed_ring().preference_at(first.position())[..n].to_vec();
        // Of another bucket's keys there this node may be an owner.
        owners.retain(|owner| *owner != self.membership.me);
        if owners.iter().any(|owner| self.health(*owner) != Health::Up) {
            self.sweep.again = true;
            self.sweep.next = to.0.checked_add(1).map(Position);
            return self.end_sweep_if_over();
        }
        let worked = Worked { since_us: now.mono_us, rows: rows.len(), waiting: 0 };
        let mut page = SweepPage { rows, to, worked, asked: BTreeMap::new(), answers: BTreeMap::new() };
        for owner in owners {
            let task = self.expect_rows(now, Work::Compare { owner });
            page.asked.insert(task, owner);
            self.list_range_of(now, owner, task, from.0, to.0, out);
        }
        self.sweep.page = Some(page);
    }

    /// Rows from `from` on that this node does not own and that nobody is owed, up to the end of their partition or
    /// of a page; and how far it looked.
    fn strays(&mut self, from: Position) -> (Vec<(ObjectKey, u64)>, Position) {
        let Some(ring) = &self.ring else { return (Vec::new(), Position(u64::MAX)) };
        let me = self.membership.me;
        let (mut rows, mut visited, mut last) = (Vec::new(), 0, from);
        let mut to = Position(u64::MAX);
        let limit = end_of(to);
        let page_rows = self.config.tuning.transfer_rows;
        self.replica.store_mut().scan(Space::Data, &from.0.to_be_bytes(), &limit, &mut |row, value| {
            let Ok(key) = ObjectKey::from_row(Bytes::copy_from_slice(row)) else { return true };
            let position = key.position();
            if position > last && (rows.len() >= page_rows / 4 || visited >= page_rows || position > to) {
                to = Position(position.0 - 1);
                return false;
            }
            (last, visited) = (position, visited + 1);
            if ring.holds(me, position, key.bucket()) {
                return true;
            }
            if let Ok(value) = value {
                // One page asks the owners of one partition.
                to = to.min(ring.end(ring.partition_of(position)));
                rows.push((key, row_hash(row, hash_of(value))));
            }
            true
        });
        let hinted = self.handoff.owners();
        rows.retain(|(key, _)| hinted.iter().all(|owner| self.replica.hint_mark(*owner, key).is_none()));
        (rows, to)
    }

    /// An owner's rows for the sweep's page.
    fn compared(&mut self, now: Now, owner: NodeId, task: TaskId, listed: RangePage, out: &mut Vec<Output>) {
        let Some(page) = &mut self.sweep.page else { return };
        if page.asked.remove(&task).is_none() {
            return;
        }
        page.worked.rows += listed.rows.len();
        page.worked.waiting = page.worked.waiting.max(listed.waiting);
        page.answers.insert(owner, listed.rows.into_iter().collect());
        // The owner has more rows there than a page lists: the rest comes with the next one.
        page.to = page.to.min(Position(listed.done_to));
        if !page.asked.is_empty() {
            return;
        }
        let worked = page.worked;
        self.rest(worked);
        let Some(page) = self.end_sweep_page() else { return };
        for (key, hash) in page.rows.into_iter().filter(|(key, _)| key.position() <= page.to) {
            let n = self.replicas_of(&key);
            let owners = self.placed_ring().preference_at(key.position())[..n].to_vec();
            let holds =
                |owner: &NodeId| page.answers.get(owner).and_then(|rows| rows.get(&key)) == Some(&hash);
            // Who was to hold code and state and has lost them cannot be given them by a husk. The others have that.
            let lacking = match self.replica.placed().contains(&key) {
                true => self.replica.load_object(&key).map(|(object, _)| object.missing_from()),
                false => None,
            };
            let lacking = lacking.unwrap_or_default();
            let others = || owners.iter().copied().filter(|owner| !lacking.contains(owner));
            // If all of them lack it, there is nobody else to give it to.
            let differs = others().find(|owner| !holds(owner));
            let differs = differs.or_else(|| owners.first().copied().filter(|_| others().next().is_none()));
            match differs {
                None => self.sweep.verified.push((key, hash)),
                Some(owner) => {
                    self.sweep.again = true;
                    self.repair_with(now, Origin::GiveAway, key, owner, out);
                }
            }
        }
        self.end_sweep_if_over();
    }

    /// Goes on behind the page.
    fn end_sweep_page(&mut self) -> Option<SweepPage> {
        let page = self.sweep.page.take()?;
        for task in page.asked.keys() {
            self.tasks.remove(*task);
        }
        self.sweep.next = page.to.0.checked_add(1).map(Position);
        self.end_sweep_if_over();
        Some(page)
    }

    fn end_sweep_if_over(&mut self) {
        if self.sweep.next.is_none() && std::mem::take(&mut self.sweep.again) {
            self.sweep.next = Some(Position(0));
            self.resume_moving_us = self.last_now.mono_us + self.config.gossip_ms * 1000;
        }
    }

    fn drop_verified(&mut self) {
        let rest = self.sweep.verified.len().saturating_sub(self.config.tuning.dropped_rows);
        for (key, hash) in self.sweep.verified.split_off(rest) {
            let is_owed =
                self.handoff.owners().iter().any(|owner| self.replica.hint_mark(*owner, &key).is_some());
            if is_owed || self.is_mine(&key) {
                continue;
            }
            let Some((object, Some(bytes))) = self.replica.load_object(&key) else { continue };
            if object.has_placed() && self.sweep.handed.get(&key) != Some(&hash) {
                let (owners, _) = self.owners(&key);
                owners.into_iter().for_each(|owner| self.add_hint(owner, &key));
                self.sweep.handed.insert(key, hash);
                self.sweep.again = true;
                self.end_sweep_if_over();
                continue;
            }
            if row_hash(key.row(), hash_of(&bytes)) == hash {
                self.sweep.handed.remove(&key);
                self.metrics.given_away_keys += 1;
                self.replica.drop_handed_over(&key, &object);
            } else {
                self.sweep.start();
            }
        }
    }

    // Hints

    /// What was kept for nodes that have left the ring is owed to the owners of today.
    pub(super) fn turn_over_hints(&mut self) {
        let Some(ring) = &self.ring else { return };
        let mut gone = self.handoff.owners();
        gone.retain(|owner| !ring.state().contains(*owner));
        for owner in gone {
            for (key, _) in self.replica.hints(owner, None, self.config.tuning.turned_over_hints) {
                self.turn_over(owner, &key);
            }
        }
    }

    /// `owner` does not own `key` any more: those who do are owed it.
    pub(super) fn turn_over(&mut self, owner: NodeId, key: &ObjectKey) {
        let (serving, others) = self.owners(key);
        for other in serving.into_iter().chain(others.into_iter().flatten()) {
            self.add_hint(other, key);
        }
        self.remove_hint(owner, key);
        self.drop_if_foreign(key);
    }

    /// Partitions, or pieces of them, to fetch for the ring that is coming, and how many are here; (0, 0) when nothing
    /// moves.
    pub fn moving_progress(&self) -> (usize, usize) {
        self.incoming.as_ref().map_or((0, 0), Incoming::progress)
    }

    /// Whether this node still looks for rows that others own now, or has not dropped all it found.
    pub fn is_giving_away(&self) -> bool {
        self.sweep.next.is_some() || self.sweep.page.is_some() || !self.sweep.verified.is_empty()
    }
}
