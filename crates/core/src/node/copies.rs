//! Keeping an active object's copies where the object itself wants them, and husks at the other owners of its key.
//!
//! An object that defines `selectReplicas` is asked by its home, before its changes are written, which of its key's
//! owners are to hold it; another may name them in `put`. It is then written as any object is, to all owners. An owner
//! that was not chosen asks the holders a little later whether they have just what it has, and when all say that they
//! have it on their disks, leaves a husk: the same writes, without code and state. So quorums, hash trees and hints
//! work as ever.
//!
//! *Where there is a husk, all holders had the version, or something newer.* They keep this up: a holder takes in no
//! husk of what it lacks, and one that owns the key no more gives what it has to all owners before it drops it.
//!
//! Who finds a husk and needs the object asks the holders. When the owners change, the home has it choose again.
//!
//! Source: Comet §5.2, "Smart replication"; DESIGN §5.

use bytes::Bytes;

use super::active::{call_on, refused};
use super::coordinate::Hop;
use super::homes::{Awaited, Job, What};
use super::hosting::node_id;
use super::residents::plain_failure;
use super::{Node, Origin, Output, Purpose, Task, Work};
use crate::active::{owners_hash, Answer, CallerPlace, Placement, Turn, Value};
use crate::client::{ActiveError, Handler, Quorum, Reply};
use crate::detector::Health;
use crate::get::{Get, Needed};
use crate::message::{Control, Message};
use crate::mutation::Mutation;
use crate::object::Object;
use crate::replica::hash_of;
use crate::types::{NodeId, Now, ObjectKey};

/// The most objects that choose anew at the same time, and the time between two looks for more, in microseconds.
const CHOOSING_MAX: usize = 64;
const STEP_US: u64 = 10_000;
/// Objects that could not choose anew are looked at again after this, in microseconds.
const AGAIN_US: u64 = 5_000_000;
const AGAIN_US_MAX: u64 = 300_000_000;
/// An owner that is no holder looks so often whether what it has is needed, in microseconds. Too small: it is made a
/// husk between two writes of a busy object, for nothing.
const SPARE_US: u64 = 2_000_000;

/// A walk over the objects that chose their holders, of which some may have to choose again.
#[derive(Debug)]
pub(super) struct Walk {
    after: Option<ObjectKey>,
    /// When it goes on, in `mono_us`.
    pub at_us: u64,
    /// Some were to choose again: whether they did is looked at once more.
    is_to_repeat: bool,
    /// After this, in microseconds: longer each time.
    again_us: u64,
}

impl Node {
    // Choosing

    /// Has the loaded object, whose fields are `state`, choose its holders, unless it has chosen among the owners of
    /// today. True if code was run.
    pub(super) fn choose_holders(&mut self, now: Now, key: &ObjectKey, state: &Bytes) -> bool {
        let Some(resident) = self.homes.get(key) else { return false };
        // A handler that waits goes on first; the walk comes back to it.
        if resident.run.is_some() {
            return false;
        }
        let chosen_from = resident.active.placement.as_ref().map(|placement| placement.chosen_from);
        let name = Handler::SelectReplicas.name();
        let has_say = || self.homes.sandbox.as_ref().is_some_and(|sandbox| sandbox.has(key, name));
        // Most objects are where the ring has them.
        if chosen_from.is_none() && !has_say() {
            return false;
        }
        let (owners, _) = self.owners(key);
        if chosen_from == Some(owners_hash(&owners)) {
            return false;
        }
        let asked = self.ask_holders(now, key, &owners, state);
        let has_run = asked.is_some();
        if let Some(resident) = self.homes.get(key) {
            // What has no say has named them in a `put`, or never did.
            let before = resident.active.placement.take().map(|placement| placement.holders);
            let mut holders = asked.or(before).unwrap_or_default();
            holders.retain(|holder| owners.contains(holder));
            resident.active.placement = placement_at(holders, &owners);
            resident.must_save = true;
        }
        has_run
    }

    /// What `selectReplicas` says, or all owners if it fails; `None`: the object has no such function.
    fn ask_holders(
        &mut self,
        now: Now,
        key: &ObjectKey,
        owners: &[NodeId],
        state: &Bytes,
    ) -> Option<Vec<NodeId>> {
        let name = Handler::SelectReplicas.name();
        if !self.sandbox().is_ok_and(|sandbox| sandbox.has(key, name)) {
            return None;
        }
        let facts = self.facts(now);
        let arguments = [self.describe(key, owners)];
        let sandbox = self.sandbox().ok()?;
        let returned = refused(ActiveError::Returned { handler: Handler::SelectReplicas });
        let failure = match call_on(sandbox, key, name, CallerPlace::None, &arguments, facts) {
            Turn::Done(done) if done.is_deleted => {
                plain_failure(refused(ActiveError::CannotDelete { handler: Handler::SelectReplicas }))
            }
            Turn::Done(done) => {
                let chosen =
                    nodes_of(&done.answer).filter(|chosen| chosen.iter().any(|one| owners.contains(one)));
                match chosen {
                    Some(chosen) => return Some(chosen),
                    None => plain_failure(returned),
                }
            }
            Turn::Waits(_) => {
                plain_failure(refused(ActiveError::CannotWait { handler: Handler::SelectReplicas }))
            }
            Turn::Failed(failure) => failure,
        };
        self.note_failure(now, key, &failure, None);
        // What it was doing is undone; what the handlers before it did is not.
        self.take_back(now, key, state);
        Some(owners.to_vec())
    }

    /// Begins to look which objects have to choose again: the owners may have changed.
    pub(super) fn review_holders(&mut self, now: Now) {
        if !self.replica.placed().is_empty() {
            self.homes.walk =
                Some(Walk { after: None, at_us: now.mono_us, is_to_repeat: false, again_us: AGAIN_US });
        }
    }

    /// Goes on with that.
    pub(super) fn walk_placed(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.may_place() {
            return;
        }
        self.look_at_news(now, out);
        let Some(mut walk) = self.homes.walk.take_if(|walk| walk.at_us <= now.mono_us) else { return };
        let room = CHOOSING_MAX.saturating_sub(self.homes.choosing());
        let keys = self.replica.placed().after(walk.after.as_ref(), room);
        let is_over = keys.len() < room;
        walk.after = keys.last().cloned().or(walk.after);
        for key in keys {
            walk.is_to_repeat |= self.choose_again(now, key, out);
        }
        walk.at_us = now.mono_us + STEP_US;
        if is_over {
            walk.after = None;
            if !std::mem::take(&mut walk.is_to_repeat) {
                return;
            }
            walk.at_us = now.mono_us + walk.again_us;
            walk.again_us = (2 * walk.again_us).min(AGAIN_US_MAX);
        }
        self.homes.walk = Some(walk);
    }

    /// Objects that have come since the owners changed were passed by.
    fn look_at_news(&mut self, now: Now, out: &mut Vec<Output>) {
        let room = CHOOSING_MAX.saturating_sub(self.homes.choosing());
        for key in self.replica.placed_mut().take_news(room) {
            if self.choose_again(now, key, out) && self.homes.walk.is_none() {
                // Whether it did is looked at once more.
                let at_us = now.mono_us + AGAIN_US;
                self.homes.walk = Some(Walk { after: None, at_us, is_to_repeat: false, again_us: AGAIN_US });
            }
        }
    }

    /// Reads an object that has to choose again, if this is its home. True if it has to.
    fn choose_again(&mut self, now: Now, key: ObjectKey, out: &mut Vec<Output>) -> bool {
        let owners = owners_hash(&self.owners(&key).0);
        if self.home(&key) != self.id() {
            return false;
        }
        // What cannot be read here is mended by that, and may have to choose.
        let Some((held, _)) = self.replica.load_object(&key) else { return self.read_to_load(now, key, out) };
        let mut versions = held.0.values().iter().filter_map(|(_, version)| version.value.placement());
        if !held.is_active(now.wall_ms) || versions.all(|placement| placement.chosen_from == owners) {
            return false;
        }
        self.read_to_load(now, key, out)
    }

    /// Reads an object that is to be loaded, though nobody has asked it anything. False if that is impossible.
    pub(super) fn read_to_load(&mut self, now: Now, key: ObjectKey, out: &mut Vec<Output>) -> bool {
        let Ok(needed) = self.read_quorum(&key, Quorum::default()) else { return false };
        let deadline_us = now.mono_us + u64::from(self.config.timeout_ms) * 1000;
        let awaited = self.homes.wait(Awaited::Placement(key.clone()));
        self.start_get(now, Origin::Run(awaited), key, needed, Purpose::Answer, deadline_us, out);
        true
    }

    /// What the object is on `r` replicas is known: it can choose.
    pub(super) fn place_again(&mut self, now: Now, key: ObjectKey, merged: Object, out: &mut Vec<Output>) {
        if merged.is_active(now.wall_ms) {
            let deadline_us = now.mono_us + u64::from(self.config.timeout_ms) * 1000;
            let job = Job { origin: Origin::Nobody, what: What::Place, deadline_us };
            return self.enter(now, key, job, Some(merged), out);
        }
        // It is gone, and with it what the disk has refused of it.
        self.homes.take_left_over(&key);
    }

    /// Writes the loaded object where it wants to be now.
    pub(super) fn write_placed(
        &mut self,
        now: Now,
        key: &ObjectKey,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let owners = owners_hash(&self.owners(key).0);
        let Some(resident) = self.homes.get(key) else { return };
        let is_up_to_date = |placement: &Placement| placement.chosen_from == owners;
        if resident.must_save || !resident.active.placement.as_ref().is_some_and(is_up_to_date) {
            resident.must_save = true;
            self.keep(now, key, Origin::Nobody, Quorum::default(), Reply::BucketSet, None, deadline_us, out);
        }
    }

    // Sending

    /// Whether the purpose of a get takes code and state that are missing in what it has found.
    pub(super) fn needs_bodies(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        purpose: &Purpose,
        merged: &Object,
    ) -> bool {
        let is_needed = match purpose {
            Purpose::Repair => false,
            // Its home runs it, if it is not here.
            Purpose::Call(asked)
                if asked.hop == Hop::First
                    && merged.is_active(now.wall_ms)
                    && self.other_home(key).is_some() =>
            {
                false
            }
            // Whoever may write can always delete. And what is loaded does as well, if it has seen as much.
            Purpose::Update(update) => match update.mutation {
                Mutation::Delete { .. } => update.want.before || update.want.after,
                Mutation::Activate { .. } | Mutation::Store { .. } => {
                    update.want.before || !self.is_loaded(key, merged)
                }
                _ => true,
            },
            Purpose::Call(_) => !self.is_loaded(key, merged),
            Purpose::Answer if self.homes.awaits_object(origin) => !self.is_loaded(key, merged),
            Purpose::Answer => true,
        };
        is_needed && merged.lacks_body(now.wall_ms)
    }

    /// Asks those who hold what is missing in what a get has found, and then goes on with its purpose.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn fetch_bodies(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        (asked, merged): (Needed, Object),
        purpose: Purpose,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let chosen = merged.missing_from();
        let ring = self.placed_ring();
        let (serving, others) = (ring.preference_at(key.position()), ring.other_at(key.position()));
        let mut holders = [&chosen[..], serving, others.unwrap_or_default()].concat();
        let me = self.id();
        holders.push(me);
        holders.retain(|node| self.can_answer(*node));
        // Others may keep it for a holder, or until all of them have it.
        holders.sort_by_key(|node| {
            (*node != me, !chosen.contains(node), self.health(*node), self.remoteness(*node), *node)
        });
        holders.dedup();
        let reading_max = self.replica.reading_max(now);
        let get = Get::for_bodies(key.clone(), asked, self.is_lww(&key), reading_max, merged, holders);
        let work = Work::Get { get, purpose };
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.ask_more(now, id, 1, out);
        if !self.advance_get(now, id, out) {
            self.tasks.wake_at(deadline_us.min(now.mono_us + self.config.hedge_us), id);
        }
    }

    // Leaving husks

    /// Looks which objects are here that chose others for their copies.
    pub(super) fn look_at_spares(&mut self, now: Now, out: &mut Vec<Output>) {
        if now.mono_us < self.homes.spares_us || !self.may_place() {
            return;
        }
        self.homes.spares_us = now.mono_us + STEP_US;
        let looks_max = self.config.tuning.placed_objects;
        for key in self.replica.placed_mut().next_looks(now.mono_us, SPARE_US, looks_max) {
            match self.spare(&key) {
                Some((_, _, false)) => {}
                Some((hash, holders, true)) => {
                    let stamp = self.stamp();
                    for holder in &holders {
                        let key = key.clone();
                        let message = Message::Control(Control::AskWhole { key, hash, stamp });
                        self.send(now, *holder, message, out);
                    }
                    self.homes.spares.insert(key, (hash, holders));
                }
                None => {
                    self.homes.spares.remove(&key);
                    self.replica.placed_mut().looked(&key);
                }
            }
        }
    }

    /// The hash of an object that is here and chose others, those, and whether they can be asked: all are there, and
    /// nobody is owed it by this node.
    fn spare(&mut self, key: &ObjectKey) -> Option<(u64, Vec<NodeId>, bool)> {
        let (object, bytes) = self.replica.load_object(key)?;
        let holders = object.spare_of(self.id());
        if holders.is_empty() || !self.holds(self.id(), key) {
            return None;
        }
        let owners = self.handoff.owners();
        let is_owed = owners.into_iter().any(|owner| self.replica.hint_mark(owner, key).is_some());
        let is_there = |node: &NodeId| self.holds(*node, key) && self.health(*node) == Health::Up;
        let can_be_asked = !is_owed && holders.iter().all(is_there);
        Some((hash_of(&bytes?), holders, can_be_asked))
    }

    /// A peer asks whether this node holds an object that it does not need itself.
    pub(super) fn ask_whole(
        &mut self,
        now: Now,
        from: NodeId,
        key: ObjectKey,
        hash: u64,
        stamp: u64,
        out: &mut Vec<Output>,
    ) {
        let Some((object, Some(bytes))) = self.replica.load_object(&key) else { return };
        let is_whole = hash_of(&bytes) == hash && !object.missing_from().contains(&self.id());
        // Whoever makes a husk of its copy relies on this one.
        let is_firm = is_whole && !self.may_take_back(&key);
        if is_firm && stamp == self.stamp() && self.read_only.is_none() {
            // The answer waits until it is so on the disk, whatever the mode of syncing.
            self.replica.request_durable();
            self.send(now, from, Message::Control(Control::Whole { key, hash, stamp }), out);
        }
    }

    /// A holder has what is here. When all of them have, a husk is enough.
    pub(super) fn is_whole_at(&mut self, holder: NodeId, key: ObjectKey, hash: u64, stamp: u64) {
        let is_of_today = stamp == self.stamp();
        let Some((asked, waiting)) = self.homes.spares.get_mut(&key) else { return };
        if *asked != hash || !is_of_today {
            return;
        }
        waiting.retain(|node| *node != holder);
        if !waiting.is_empty() {
            return;
        }
        self.homes.spares.remove(&key);
        if self.may_place()
            && self.spare(&key).is_some_and(|(held, _, can_be_asked)| can_be_asked && held == hash)
        {
            if let Some((mut object, _)) = self.replica.load_object(&key) {
                object.strip(self.id());
                let bytes = object.encode();
                self.replica.save(&key, &object, bytes);
            }
        }
    }

    /// Whether this is a time to change where copies are.
    fn may_place(&self) -> bool {
        let is_stable = self.ring.as_ref().is_some_and(|ring| !ring.is_moving());
        is_stable && self.read_only.is_none() && !self.stopping
    }

    /// When something is to be done about where copies are, in `mono_us`.
    pub(super) fn next_copies_us(&self) -> Option<u64> {
        if !self.may_place() {
            return None;
        }
        let look_us = self.replica.placed().next_look_us().map(|at_us| at_us.max(self.homes.spares_us));
        let walk_us = self.homes.walk.as_ref().map(|walk| walk.at_us);
        let has_room = self.homes.choosing() < CHOOSING_MAX;
        let news_us = (has_room && self.replica.placed().has_news()).then_some(0);
        [look_us, walk_us, news_us].into_iter().flatten().min()
    }
}

/// The placement at these of the owners; `None` if there are none.
pub(super) fn placement_at(mut holders: Vec<NodeId>, owners: &[NodeId]) -> Option<Placement> {
    holders.sort_unstable();
    holders.dedup();
    (!holders.is_empty()).then(|| Placement { holders, chosen_from: owners_hash(owners) })
}

/// The nodes in what `selectReplicas` returns: an array of what `lookup` gives, or of their ids.
fn nodes_of(answer: &Answer) -> Option<Vec<NodeId>> {
    let Answer::Value(Value::Array(items)) = answer else { return None };
    let id = |item: &Value| match item {
        Value::Bytes(id) => Some(id.clone()),
        item => match item.get("id") {
            Some(Value::Bytes(id)) => Some(id.clone()),
            _ => None,
        },
    };
    items.iter().map(|item| node_id(&id(item)?)).collect()
}
