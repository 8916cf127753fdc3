//! What is loaded of active objects and what is stored: loading, joining concurrent versions, writing, going back.

use bytes::Bytes;

use super::active::{call_on, failed, refused};
use super::homes::{Resident, Run, What};
use super::terms::{Then, Written};
use super::{Node, Origin, Output};
use crate::active::{
    Active, CallerPlace, Failure, FailureKind, Sandbox, Turn, Value, INTERVAL_MS_DEFAULT, INTERVAL_MS_MAX,
    INTERVAL_MS_MIN,
};
use crate::bucket::ActiveDurability;
use crate::causality::VersionVector;
use crate::client::{ActiveError, Called, ClientError, Handler, Quorum, Reply, Updated};
use crate::get::Needed;
use crate::message::TaskId;
use crate::object::{self, Object, Version};
use crate::types::{Now, ObjectKey};

impl Node {
    pub(super) fn durability(&self, key: &ObjectKey) -> ActiveDurability {
        self.buckets().properties(key.bucket()).aso.durability
    }

    pub(super) fn default_writes(&self, key: &ObjectKey) -> Needed {
        Needed { total: self.placed_ring().replication(key.bucket()).w, primaries: 0 }
    }

    /// A handler may have changed something.
    pub(super) fn changed(&mut self, now: Now, key: &ObjectKey) {
        let properties = &self.buckets().properties(key.bucket()).aso;
        let async_ms = match properties.durability {
            // A node that stops has no time left.
            ActiveDurability::Async if !self.stopping => properties.async_ms,
            ActiveDurability::Async | ActiveDurability::Quorum => 0,
        };
        self.homes.flush_by(key, now.mono_us + u64::from(async_ms) * 1000);
    }

    /// Whether what is loaded has seen all that `merged` holds.
    pub(super) fn is_loaded(&mut self, key: &ObjectKey, merged: &Object) -> bool {
        self.homes.get(key).is_some_and(|resident| resident.seen.descends(merged.context()))
    }

    /// Loads the object that `merged` holds, unless what is loaded has seen all of it. `None`: it has.
    pub(super) fn make_resident(
        &mut self,
        now: Now,
        key: &ObjectKey,
        merged: Option<Object>,
    ) -> Result<(), ClientError> {
        if let Some(resident) = self.homes.get(key) {
            let has_seen = merged.as_ref().is_none_or(|merged| resident.seen.descends(merged.context()));
            if has_seen && !resident.has_expired(now) {
                resident.used_us = now.mono_us;
                return Ok(());
            }
            // Others have written: what was not written yet becomes a version beside theirs.
            self.write_unwritten(now, key);
            self.leave_unwritten(now, key);
        }
        let queue = self.homes.unload(key).map(|resident| resident.queue);
        let mut merged = merged.unwrap_or_default();
        // What this node knows may be newer than what was read while the read was under way.
        if let Some((held, _)) = self.replica.load_object(key) {
            merged.merge(&held);
        }
        if self.is_lww(key) {
            merged.keep_newest();
        }
        let result = self.load(now, key, &merged);
        match (&result, queue) {
            (Ok(()), Some(queue)) => {
                if let Some(resident) = self.homes.get(key) {
                    resident.queue = queue;
                }
            }
            (Err(_), Some(queue)) => self.homes.orphan(key, queue.into_jobs()),
            (_, None) => {}
        }
        result
    }

    /// Loads the newest version of `merged`, which is active, and joins the others to it.
    fn load(&mut self, now: Now, key: &ObjectKey, merged: &Object) -> Result<(), ClientError> {
        if merged.lacks_body(now.wall_ms) {
            return Err(refused(ActiveError::NoCopy));
        }
        let Some((dot, version)) = merged.newest_live(now.wall_ms) else {
            return Err(refused(ActiveError::Missing));
        };
        let object::Value::Active(active) = &version.value else {
            return Err(refused(ActiveError::NotActive));
        };
        let (facts, limits) = (self.facts(now), self.limits(key));
        let state = Some(&active.state).filter(|state| !state.is_empty());
        let place = match self.sandbox()?.load(key, &active.source, state, &limits, facts) {
            Ok(place) => place,
            Err(failure) => {
                self.note_failure(now, key, &failure, None);
                return Err(failed(failure));
            }
        };
        let others: Vec<&Version> =
            merged.0.values().iter().filter(|(other, _)| other != dot).map(|(_, version)| version).collect();
        let resident = Resident {
            seen: merged.context().clone(),
            term: self.next_term(now, key, merged),
            expires_ms: version.expires_ms,
            headers: version.headers.clone(),
            must_save: !others.is_empty(),
            ..Resident::new(key.clone(), place, (**active).clone(), now)
        };
        let left_over = self.homes.take_left_over(key);
        self.homes.insert(resident);
        #[cfg(feature = "sabotage")]
        let others = match self.config.sabotage {
            crate::config::Sabotage::KeepOneHome => Vec::new(),
            _ => others,
        };
        for other in others.iter().filter(|other| other.is_live(now.wall_ms)) {
            self.join(now, key, other);
        }
        if let Some(version) = &left_over {
            self.join(now, key, version);
            if let Some(resident) = self.homes.get(key) {
                resident.must_save = true;
            }
        }
        if !others.is_empty() || left_over.is_some() {
            self.changed(now, key);
        }
        Ok(())
    }

    /// Joins a concurrent version to the loaded object.
    pub(super) fn join(&mut self, now: Now, key: &ObjectKey, other: &Version) {
        self.metrics.active_merges += 1;
        if let Some(resident) = self.homes.get(key) {
            resident.report.merges += 1;
        }
        let facts = self.facts(now);
        let Ok(sandbox) = self.sandbox() else { return };
        let object::Value::Active(other) = &other.value else {
            self.metrics.active_merges_lost += 1;
            return;
        };
        match sandbox.join(key, &other.state) {
            Ok(true) => return,
            Ok(false) => {}
            // What became of both is too large, or the other cannot be read: the newest stays as it was.
            Err(failure) => {
                self.note_failure(now, key, &failure, None);
                self.metrics.active_merges_lost += 1;
                return self.roll_back(now, key);
            }
        }
        let Ok(sandbox) = self.sandbox() else { return };
        let fields = sandbox.state_fields(&other.state);
        match fields {
            Ok(fields) if sandbox.has(key, Handler::OnMerge.name()) => {
                let arguments = [fields];
                let turn =
                    call_on(sandbox, key, Handler::OnMerge.name(), CallerPlace::None, &arguments, facts);
                let handler = Handler::OnMerge;
                let failure = match turn {
                    Turn::Done(done) if !done.is_deleted => return,
                    Turn::Done(_) => plain_failure(refused(ActiveError::CannotDelete { handler })),
                    Turn::Failed(failure) => failure,
                    Turn::Waits(_) => plain_failure(refused(ActiveError::CannotWait { handler })),
                };
                self.note_failure(now, key, &failure, None);
                self.roll_back(now, key);
            }
            Err(failure) => self.note_failure(now, key, &failure, None),
            _ => {}
        }
        self.metrics.active_merges_lost += 1;
    }

    /// What is to be stored of the loaded object now; `None`: just what is stored.
    fn unsaved(&mut self, now: Now, key: &ObjectKey) -> Result<Option<Active>, ClientError> {
        let sandbox = self.sandbox()?;
        let mut state = sandbox.save(key).map_err(failed)?;
        let interval_ms = interval_of(sandbox, key);
        let Some(resident) = self.homes.get(key) else { return Ok(None) };
        let is_same = |active: &Active| active.state == state && active.interval_ms == interval_ms;
        if is_same(&resident.active) && !resident.must_save {
            return Ok(None);
        }
        if self.choose_holders(now, key, &state) {
            state = self.sandbox()?.save(key).map_err(failed)?;
        }
        let Some(resident) = self.homes.get(key) else { return Ok(None) };
        let (source, placement) = (resident.active.source.clone(), resident.active.placement.clone());
        let last_interval = resident.active.last_interval;
        let term = resident.term;
        Ok(Some(Active { source, state, interval_ms, last_interval, placement, term }))
    }

    /// Writes what the loaded object has become, and answers `origin` with `reply` when enough replicas have it.
    /// `again`: the call or the update to run anew if others have written meanwhile.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn keep(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        quorum: Quorum,
        reply: Reply,
        again: Option<What>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let needed = match self.write_quorum(key, quorum) {
            Ok(needed) => needed,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        let has_put = self.homes.get(key).is_some_and(|resident| resident.has_put);
        if has_put && matches!(reply, Reply::Called(_)) {
            // Whatever becomes of what it changed since.
            self.doubt(origin);
        }
        if let Some(resident) = self.homes.get(key).filter(|_| has_put && quorum != Quorum::default()) {
            // What the handler itself has put has as many copies as the bucket wants, not as the caller does.
            resident.must_save = true;
        }
        let active = match self.unsaved(now, key) {
            Ok(Some(active)) => active,
            Ok(None) => {
                self.homes.flushed(key);
                let reply = match reply {
                    // What the handler itself has put in this turn is on the disk when that ends, or nowhere.
                    Reply::Called(called) if has_put => {
                        self.turn_puts.push((TaskId::MAX, origin));
                        Reply::Called(called)
                    }
                    Reply::Called(called) => Reply::Called(Called { is_kept: false, ..called }),
                    other => other,
                };
                return self.finish(origin, Ok(reply), out);
            }
            Err(error) => {
                if let ClientError::Active(ActiveError::Failed(failure)) = &error {
                    self.note_failure(now, key, failure, None);
                }
                return self.fail_run(now, key, origin, error, out);
            }
        };
        if let Some(detail) = &self.read_only {
            let error = ClientError::ReadOnly { detail: detail.clone() };
            if matches!(origin, Origin::Nobody) {
                return;
            }
            // What the handler itself has put stays.
            let error = if has_put { ClientError::OutcomeUnknown } else { error };
            self.fail_run(now, key, origin, error, out);
            // The run may have ended before its term was claimed: what it did is only in memory, like all of it.
            if self.is_kept_by_quorum(key)
                && self.homes.get(key).is_some_and(|resident| resident.run.is_none())
            {
                self.load_saved(now, key);
            }
            return;
        }
        if self.must_claim(key) {
            return self.claim(now, key, origin, (quorum, Then::Keep), reply, again, deadline_us, out);
        }
        let is_answered = matches!(origin, Origin::Nobody);
        let Some((written, term)) = self.write_active(now, key, active, is_answered) else {
            return self.written_by_others(key, origin, again, deadline_us, out);
        };
        let reply = match reply {
            Reply::Updated(Updated { applied, before, after: Some(_) }) => {
                Reply::Updated(Updated { applied, before, after: Object::decode(&written.bytes).ok() })
            }
            other => other,
        };
        self.metrics.active_writes += 1;
        self.start_home_put(now, key, origin, (written, term), needed, reply, again, deadline_us, out);
    }

    /// Makes a version of the loaded object and stores it here. Returns it with the number of its term; `None` if
    /// others have written something that it has not seen. `is_answered`: so were the calls that it has in it.
    fn write_active(
        &mut self,
        now: Now,
        key: &ObjectKey,
        active: Active,
        is_answered: bool,
    ) -> Option<(Written, u64)> {
        let lww = self.is_lww(key);
        let held = self.replica.load_object(key);
        let resident = self.homes.get(key)?;
        let (seen, term) = (resident.seen.clone(), resident.term);
        if self.is_behind(key, (&seen, term), held.as_ref()) {
            return None;
        }
        let (held, held_bytes) = held.unwrap_or_default();
        let resident = self.homes.get(key)?;
        let (expires_ms, headers) = (resident.expires_ms, resident.headers.clone());
        let is_unwritten = resident.flush_us.is_some();
        resident.active = active.clone();
        resident.must_save = false;
        // It may have another interval now.
        resident.refill_ms = 0;
        let value = object::Value::Active(Box::new(active));
        let version = Version { value, expires_ms, headers };
        let is_early = (is_answered || is_unwritten) && self.durability(key) == ActiveDurability::Async;
        let answered = is_early.then(|| version.clone());
        let written = self.write_version(now, key, (held, held_bytes), seen, version, lww);
        if let Some(resident) = self.homes.get(key) {
            resident.seen.add(written.dot);
        }
        self.homes.written(key, answered);
        self.homes.flushed(key);
        Some((written, term))
    }

    pub(super) fn write_version(
        &mut self,
        now: Now,
        key: &ObjectKey,
        (held, held_bytes): (Object, Option<Bytes>),
        seen: VersionVector,
        version: Version,
        lww: bool,
    ) -> Written {
        let mut object = Object::forgotten(seen.clone());
        object.merge(&held);
        let dot = self.replica.make_dot(now, &object, 0);
        object.0.put(&seen, dot, version);
        if lww {
            object.keep_newest();
        }
        let bytes = object.encode();
        self.replica.save(key, &object, bytes.clone());
        self.turn_dots.push(dot);
        Written { bytes, before: held_bytes, dot }
    }

    /// Writes here what the loaded object has become, for whoever writes the key next and sends it on.
    pub(super) fn write_unwritten(&mut self, now: Now, key: &ObjectKey) {
        let is_unwritten = |resident: &mut Resident| resident.flush_us.is_some() || resident.must_save;
        // Nothing is stored in a term that is not promised; what was joined stands in the stores.
        if self.read_only.is_some() || self.must_claim(key) || !self.homes.get(key).is_some_and(is_unwritten)
        {
            return;
        }
        if let Ok(Some(active)) = self.unsaved(now, key) {
            self.write_active(now, key, active, true);
        }
    }

    /// The disk refuses what the loaded object has become: what was answered of it is kept until it can be joined to
    /// what is loaded next.
    fn leave_unwritten(&mut self, now: Now, key: &ObjectKey) {
        let is_unwritten = |one: &mut Resident| one.flush_us.is_some() && !one.has_expired(now);
        let may_answer_first = self.durability(key) == ActiveDurability::Async;
        if !may_answer_first || self.read_only.is_none() || !self.homes.get(key).is_some_and(is_unwritten) {
            return;
        }
        let Ok(Some(active)) = self.unsaved(now, key) else { return };
        if let Some(resident) = self.homes.get(key) {
            let (expires_ms, headers) = (resident.expires_ms, resident.headers.clone());
            let value = object::Value::Active(Box::new(active));
            self.homes.leave_over(key, Version { value, expires_ms, headers });
        }
    }

    /// Another write takes the place of the loaded object: who waits for it is told, or starts anew.
    pub(super) fn replace_resident(&mut self, key: &ObjectKey, out: &mut Vec<Output>) {
        let Some(resident) = self.homes.unload(key) else { return };
        if let Some(run) = resident.run {
            self.finish(run.job.origin, Err(refused(ActiveError::Replaced)), out);
        }
        self.homes.orphan(key, resident.queue.into_jobs());
    }

    /// What the object has become cannot be kept: it goes back to what is saved, and with it the handler that waits for
    /// it to be kept.
    fn fail_run(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        error: ClientError,
        out: &mut Vec<Output>,
    ) {
        let is_awaited = |run: &mut Box<Run>| origin == Origin::Run(run.number);
        let run = self.homes.get(key).and_then(|resident| resident.run.take_if(is_awaited));
        self.roll_back(now, key);
        match run {
            Some(run) => {
                self.homes.answered(run.number);
                self.finish(run.job.origin, Err(error), out);
            }
            None => self.finish(origin, Err(error), out),
        }
    }

    /// Takes back what the last run did, which has failed. What the runs before it did stays.
    pub(super) fn roll_back(&mut self, now: Now, key: &ObjectKey) {
        let facts = self.facts(now);
        #[cfg(feature = "sabotage")]
        match self.config.sabotage {
            crate::config::Sabotage::UndoNothing => return,
            crate::config::Sabotage::UndoAll => {
                self.homes.flushed(key);
                return self.load_saved(now, key);
            }
            _ => {}
        }
        let is_undone = self.sandbox().is_ok_and(|sandbox| sandbox.undo(key, facts).is_ok());
        if !is_undone {
            self.put_away(now, key);
        }
    }

    /// Takes the object back to `state`, which was saved before a run whose outcome is refused.
    pub(super) fn take_back(&mut self, now: Now, key: &ObjectKey, state: &Bytes) {
        let (facts, limits) = (self.facts(now), self.limits(key));
        let Some(resident) = self.homes.get(key) else { return };
        let source = resident.active.source.clone();
        let state = Some(state).filter(|state| !state.is_empty());
        let is_loaded = self.sandbox().is_ok_and(|one| one.load(key, &source, state, &limits, facts).is_ok());
        if !is_loaded {
            self.put_away(now, key);
        }
    }

    /// The object cannot be loaded again, as its source fails now: its state is written as it is.
    pub(super) fn put_away(&mut self, now: Now, key: &ObjectKey) {
        self.write_unwritten(now, key);
        self.leave_unwritten(now, key);
        if let Some(resident) = self.homes.unload(key) {
            self.homes.orphan(key, resident.queue.into_jobs());
        }
    }

    /// Loads again what was found last, or saved.
    pub(super) fn load_saved(&mut self, now: Now, key: &ObjectKey) {
        let Some(resident) = self.homes.get(key) else { return };
        let state = resident.active.state.clone();
        self.take_back(now, key, &state);
    }
}

/// A failure of the object's code that its node has found.
pub(super) fn plain_failure(error: ClientError) -> Failure {
    Failure { kind: FailureKind::Error, message: error.to_string(), trace: String::new() }
}

/// How often the loaded object's timer runs, in milliseconds; 0: it has none.
pub(super) fn interval_of(sandbox: &dyn Sandbox, key: &ObjectKey) -> u64 {
    if !sandbox.has(key, Handler::OnTimer.name()) {
        return 0;
    }
    let seconds = match sandbox.field(key, "interval") {
        Value::Integer(seconds) => seconds as f64,
        Value::Number(seconds) if !seconds.is_nan() => seconds,
        _ => return INTERVAL_MS_DEFAULT,
    };
    // Too large a float becomes the greatest integer.
    ((seconds * 1000.0) as u64).clamp(INTERVAL_MS_MIN, INTERVAL_MS_MAX)
}
