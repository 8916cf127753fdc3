//! Keeping an active object's copies where the object itself wants them, and husks at the other owners of its key.
//!
//! An object that defines `selectReplicas` is asked by its home, before its changes are written, which of its key's
//! owners are to hold it; another may name them in `put`. All owners store the version and answer for it, so quorums,
//! hash trees and hints work as for any object. Code and state go to the holders only. Who finds a husk and needs the
//! object asks them.
//!
//! A coordinator that is no holder keeps what it has written until the holders have it, and whoever stands in for a
//! holder keeps it for the holder. When the owners change, the home has the object choose again. A holder that owns the
//! key no more gives its copy to all owners before it drops it, for where no holder is an owner, all keep one.
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
use crate::mutation::Mutation;
use crate::object::{is_placed, Object};
use crate::put::Put;
use crate::replica::hash_of;
use crate::types::{NodeId, Now, ObjectKey};

/// The most objects looked at in one step. Too many: clients wait.
const LOOKS_MAX: usize = 64;
/// Objects that could not choose anew are looked at again after this, in microseconds.
const AGAIN_US: u64 = 5_000_000;

/// A walk over the objects that chose their holders, of which some may have to choose again.
#[derive(Debug)]
pub(super) struct Walk {
    after: Option<ObjectKey>,
    /// When it goes on, in `mono_us`.
    pub at_us: u64,
    /// Some were to choose again: whether they did is looked at once more.
    is_to_repeat: bool,
}

impl Node {
    // Choosing

    /// Has the loaded object, whose fields are `state`, choose its holders, unless it has chosen among the owners of
    /// today. True if code was run.
    pub(super) fn choose_holders(&mut self, now: Now, key: &ObjectKey, state: &Bytes) -> bool {
        let (owners, _) = self.owners(key);
        let chosen_from = owners_hash(&owners);
        let is_up_to_date = |placement: &mut Placement| placement.chosen_from == chosen_from;
        let Some(resident) = self.homes.get(key) else { return false };
        // A handler that waits goes on first; the walk comes back to it.
        if resident.run.is_some() || resident.active.placement.as_mut().is_some_and(is_up_to_date) {
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
        let (facts, limits) = (self.facts(now), self.limits(key));
        let arguments = [self.describe(key, owners)];
        let sandbox = self.sandbox().ok()?;
        let returned = refused(ActiveError::Returned { handler: Handler::SelectReplicas });
        let failure = match call_on(sandbox, key, name, CallerPlace::None, &arguments, facts) {
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
        self.note_failure(now, key, &failure);
        // What it was doing is undone; what the handlers before it did is not.
        if let Some(source) = self.homes.get(key).map(|resident| resident.active.source.clone()) {
            self.sandbox().ok()?.load(key, &source, Some(state), &limits, facts).ok();
        }
        Some(owners.to_vec())
    }

    /// Begins to look which objects have to choose again: the owners may have changed.
    pub(super) fn review_holders(&mut self, now: Now) {
        if !self.replica.placed().is_empty() {
            self.homes.walk = Some(Walk { after: None, at_us: now.mono_us, is_to_repeat: false });
        }
    }

    /// Goes on with that.
    pub(super) fn walk_placed(&mut self, now: Now, out: &mut Vec<Output>) {
        let is_stable = self.ring.as_ref().is_some_and(|ring| !ring.is_moving());
        let may_write = is_stable && self.read_only.is_none() && !self.stopping;
        let Some(mut walk) = self.homes.walk.take_if(|walk| walk.at_us <= now.mono_us) else { return };
        if !may_write {
            walk.at_us = now.mono_us + AGAIN_US;
            self.homes.walk = Some(walk);
            return;
        }
        let keys = self.replica.placed().after(walk.after.as_ref(), LOOKS_MAX);
        walk.after = keys.last().cloned().filter(|_| keys.len() == LOOKS_MAX);
        for key in keys {
            walk.is_to_repeat |= self.choose_again(now, key, out);
        }
        if walk.after.is_none() {
            if !std::mem::take(&mut walk.is_to_repeat) {
                return;
            }
            walk.at_us = now.mono_us + AGAIN_US;
        }
        self.homes.walk = Some(walk);
    }

    /// Reads an object that has to choose again, if this is its home. True if it has to.
    fn choose_again(&mut self, now: Now, key: ObjectKey, out: &mut Vec<Output>) -> bool {
        let owners = owners_hash(&self.owners(&key).0);
        if self.home(&key) != self.id() {
            return false;
        }
        let held = self.replica.load_object(&key).map(|(object, _)| object).unwrap_or_default();
        let mut versions = held.0.values().iter().filter_map(|(_, version)| version.value.placement());
        if !held.is_active(now.wall_ms) || versions.all(|placement| placement.chosen_from == owners) {
            return false;
        }
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
            self.enter(now, key, job, merged, out);
        }
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
            self.keep(now, key, Origin::Nobody, Quorum::default(), Reply::BucketSet, deadline_us, out);
        }
    }

    // Sending

    /// Whether the purpose of a get takes code and state that are missing in what it has found.
    pub(super) fn needs_bodies(
        &mut self,
        now: Now,
        key: &ObjectKey,
        purpose: &Purpose,
        merged: &Object,
    ) -> bool {
        let is_needed = match purpose {
            // Whoever may write can always delete.
            Purpose::Repair | Purpose::Update { mutation: Mutation::Delete { .. }, .. } => false,
            // Its home runs it, if it is not here.
            Purpose::Call(call) if call.2 == Hop::First && self.other_home(key).is_some() => false,
            // The object that is loaded does as well, if it has seen as much.
            Purpose::Call(_)
            | Purpose::Update { mutation: Mutation::Activate { .. } | Mutation::Store { .. }, .. } => {
                !self.is_loaded(key, merged)
            }
            Purpose::Answer | Purpose::Update { .. } => true,
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
        let mut holders = merged.missing_from();
        holders.retain(|node| self.health(*node) != Health::Down);
        // Those that answer come first.
        holders.sort_by_key(|node| (self.health(*node) != Health::Up, self.remoteness(*node)));
        let reading_max = self.replica.reading_max(now);
        let get = Get::for_bodies(key.clone(), asked, self.is_lww(&key), reading_max, merged, holders);
        let work = Work::Get { get, purpose };
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.ask_more(now, id, 1, out);
        if !self.advance_get(now, id, out) {
            self.tasks.wake_at(deadline_us.min(now.mono_us + self.config.hedge_us), id);
        }
    }

    /// What is sent of an object to `node`, which keeps it for `hint_for`: no code and state that it is not to hold.
    pub(super) fn copy_for(
        &self,
        key: &ObjectKey,
        node: NodeId,
        hint_for: Option<NodeId>,
        bytes: &Bytes,
    ) -> Bytes {
        if !is_placed(bytes) {
            return bytes.clone();
        }
        let Ok(mut object) = Object::decode(bytes) else { return bytes.clone() };
        let receiver = hint_for.unwrap_or(node);
        let is_stripped = object.strip(|placement| {
            let holders = &placement.holders;
            // Where none of them owns the key any more, everybody keeps it until the object has chosen again.
            holders.contains(&receiver) || !holders.iter().any(|holder| self.holds(*holder, key))
        });
        if is_stripped {
            object.encode()
        } else {
            bytes.clone()
        }
    }

    /// Leaves a husk of what this node wrote for others, now that they have it.
    fn strip_own(&mut self, key: &ObjectKey, is_as_written: impl Fn(&Bytes) -> bool) {
        let owners = self.handoff.owners();
        if owners.into_iter().any(|owner| self.replica.hint_mark(owner, key).is_some()) {
            return;
        }
        let Some((_, Some(bytes))) = self.replica.load_object(key) else { return };
        let husk = self.copy_for(key, self.id(), None, &bytes);
        if husk != bytes && self.read_only.is_none() && is_as_written(&bytes) {
            if let Ok(object) = Object::decode(&husk) {
                self.replica.save(key, &object, husk);
            }
        }
    }

    /// Those who are to hold what was put have it, or are owed it.
    pub(super) fn put_is_over(&mut self, put: &Put) {
        if is_placed(&put.object) {
            let hash = hash_of(&put.object);
            self.strip_own(&put.key, |held| hash_of(held) == hash);
        }
    }

    /// Leaves a husk of what was kept here for an owner that has it now, unless it is just being written.
    pub(super) fn strip_kept(&mut self, key: &ObjectKey) {
        if !self.replica.placed().contains(key) {
            return;
        }
        let is_put = |task: &Task| matches!(&task.work, Work::Put { put, .. } if put.key == *key);
        let is_written =
            self.tasks.ids().into_iter().any(|id| self.tasks.get_mut(id).is_some_and(|t| is_put(t)));
        if !is_written {
            self.strip_own(key, |_| true);
        }
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
