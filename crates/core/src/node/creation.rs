//! Creating, overwriting, renewing and deleting active objects: the writes that their own code has a say in.
//!
//! A delete is none of these: whoever may write a key can always delete it.

use bytes::Bytes;

use super::active::{call_on, failed, refused};
use super::homes::{Resident, What};
use super::puts::Update;
use super::rests::Asker;
use super::terms::Then;
use super::{Node, Origin, Output};
use crate::active::{
    Active, Answer, Caller, CallerPlace, Failure, FailureKind, Turn, Value, INTERVAL_MS_DEFAULT,
};
use crate::client::{ActiveError, Called, ClientError, Handler, Quorum, Reply, Updated};
use crate::mutation::{Circumstances, Condition, Expiry, Mutation};
use crate::object::{self, Object, Version};
use crate::timers::interval_number;
use crate::types::{Now, ObjectKey};

/// The bucket of the sandbox in which an object is loaded that is not stored yet. No bucket of clients has this name.
const CANDIDATE_BUCKET: &[u8] = b"\0candidate";

/// What the code of an object made of a write.
enum Verdict {
    /// The object stays, changed or not.
    Keep,
    /// What the writer brought is stored.
    Accept,
    /// This is stored as a plain value.
    Replace(Bytes),
}

impl Node {
    /// Runs a write that stores an active object or finds one. `merged`: what `r` replicas hold.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run_update(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        update: Update,
        merged: Object,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        // What the object makes of it is written in this step, or nothing is changed.
        let is_of_objects =
            matches!(update.mutation, Mutation::Activate { .. }) || merged.is_active(now.wall_ms);
        let refusal = match is_of_objects {
            true => self.write_quorum(key, update.quorum).err().or_else(|| {
                let detail = self.read_only.clone()?;
                Some(ClientError::ReadOnly { detail })
            }),
            false => None,
        };
        if let Some(error) = refusal {
            self.metrics.puts_failed += 1;
            return self.finish(origin, Err(error), out);
        }
        let result = match &update.mutation {
            Mutation::Activate { .. } if !self.buckets().properties(key.bucket()).active => {
                Err(refused(ActiveError::Forbidden))
            }
            Mutation::Activate { source, keeps_state: true, .. } => {
                self.reload(now, key, source, merged.clone())
            }
            Mutation::Activate { source, expiry, .. } => {
                self.create(now, key, source, *expiry, &update, merged.clone())
            }
            Mutation::Store { value, condition, .. } if condition.holds(&merged, now.wall_ms) => {
                match merged.is_active(now.wall_ms) {
                    true => self.overwrite(now, key, value, &update, merged.clone()),
                    false => Ok(Verdict::Accept),
                }
            }
            // The condition does not hold, which the write itself finds out.
            _ => Ok(Verdict::Accept),
        };
        let verdict = match result {
            Ok(verdict) => verdict,
            Err(error) => {
                self.metrics.puts_failed += 1;
                return self.finish(origin, Err(error), out);
            }
        };
        let is_active = matches!(update.mutation, Mutation::Activate { .. });
        match verdict {
            Verdict::Accept if !is_active => {
                self.write_plain(now, key, origin, update, merged, deadline_us, out)
            }
            Verdict::Replace(value) => {
                let update = Update { mutation: plain_store(update.mutation, value), ..update };
                self.write_plain(now, key, origin, update, merged, deadline_us, out);
            }
            Verdict::Accept | Verdict::Keep => {
                let before = update.want.before.then_some(merged);
                // What it is after the write is known when it is written.
                let after = update.want.after.then(Object::default);
                let updated = Updated { applied: true, before, after };
                let (quorum, reply) = (update.quorum, Reply::Updated(updated));
                // What a handler itself has put stays, and would count twice.
                let has_put = self.homes.get(key).is_some_and(|resident| resident.has_put);
                let again = Some(What::Update(Box::new(update))).filter(|_| !has_put);
                self.keep(now, key, origin, quorum, reply, again, deadline_us, out);
                // Many objects are made long before they are asked anything.
                self.homes.unload_unused(key);
            }
        }
    }

    /// Stores a plain value in place of an active object, or of nothing.
    #[allow(clippy::too_many_arguments)]
    fn write_plain(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        update: Update,
        merged: Object,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        self.write_unwritten(now, key);
        self.replace_resident(key, out);
        self.apply_mutation(now, origin, update, Some(merged), deadline_us, out);
    }

    /// New code for an active object that is there, with the state it has.
    fn reload(
        &mut self,
        now: Now,
        key: &ObjectKey,
        source: &Bytes,
        merged: Object,
    ) -> Result<Verdict, ClientError> {
        if !merged.is_live(now.wall_ms) {
            return Err(refused(ActiveError::Missing));
        }
        match self.make_resident(now, key, Some(merged.clone())) {
            Ok(()) => {}
            // New code is the way out.
            Err(ClientError::Active(ActiveError::Failed(_))) => return self.renew(now, key, source, merged),
            Err(error) => return Err(error),
        }
        let (facts, limits) = (self.facts(now), self.limits(key));
        self.write_unwritten(now, key);
        if let Err(failure) = self.sandbox()?.reload(key, source, &limits, facts) {
            if let Some(resident) = self.homes.unload(key) {
                self.homes.orphan(key, resident.queue.into_jobs());
            }
            return Err(failed(failure));
        }
        if let Some(resident) = self.homes.get(key) {
            resident.active.source = source.clone();
            // The new code chooses.
            resident.active.placement = None;
            resident.must_save = true;
        }
        self.homes.rests.forget(key);
        Ok(Verdict::Keep)
    }

    /// New code for an object that cannot be loaded with the code or the state that is stored of it. A state that
    /// cannot be read is lost: then the object begins with the fields of the new code, and its last error says so.
    fn renew(
        &mut self,
        now: Now,
        key: &ObjectKey,
        source: &Bytes,
        mut merged: Object,
    ) -> Result<Verdict, ClientError> {
        if let Some((held, _)) = self.replica.load_object(key) {
            merged.merge(&held);
        }
        let Some((dot, version)) = merged.newest_live(now.wall_ms) else {
            return Err(refused(ActiveError::Missing));
        };
        let object::Value::Active(active) = &version.value else {
            return Err(refused(ActiveError::NotActive));
        };
        let (facts, limits) = (self.facts(now), self.limits(key));
        let bytes = source.len() + active.state.len();
        if source.len() > active.source.len() && bytes > limits.memory_bytes as usize {
            let message = format!("the object's code and state take more than {} bytes", limits.memory_bytes);
            let (kind, trace) = (FailureKind::Error, String::new());
            return Err(failed(Failure { kind, message, trace }));
        }
        let queue = self.homes.unload(key).map(|resident| resident.queue).unwrap_or_default();
        let sandbox = self.sandbox()?;
        let unreadable = Some(&active.state).filter(|state| !state.is_empty());
        let unreadable = unreadable.and_then(|state| sandbox.state_fields(state).err());
        let loaded = match active.state.is_empty() || unreadable.is_some() {
            true => sandbox.load(key, source, None, &limits, facts),
            false => sandbox.renew(key, source, &active.state, &limits, facts),
        };
        let place = match loaded {
            Ok(place) => place,
            Err(failure) => {
                self.note_failure(now, key, &failure, None);
                self.homes.orphan(key, queue.into_jobs());
                return Err(failed(failure));
            }
        };
        if let Some(failure) = unreadable {
            self.note_failure(now, key, &failure, None);
        }
        let mut active = (**active).clone();
        active.source = source.clone();
        // The new code chooses.
        active.placement = None;
        let resident = Resident {
            expires_ms: version.expires_ms,
            headers: version.headers.clone(),
            seen: merged.context().clone(),
            queue,
            ..Resident::new(key.clone(), place, active, now)
        };
        self.homes.insert(resident);
        let others = merged.0.values().iter().filter(|(other, _)| other != dot).map(|(_, version)| version);
        for other in others.filter(|other| other.is_live(now.wall_ms)) {
            self.join(now, key, other);
        }
        self.homes.rests.forget(key);
        Ok(Verdict::Keep)
    }

    /// A new active object, if what is there and the object itself allow it.
    fn create(
        &mut self,
        now: Now,
        key: &ObjectKey,
        source: &Bytes,
        expiry: Expiry,
        update: &Update,
        mut merged: Object,
    ) -> Result<Verdict, ClientError> {
        let (facts, limits) = (self.facts(now), self.limits(key));
        let nobody = Caller::default();
        let caller = update.caller.as_deref().unwrap_or(&nobody);
        // Another may have been made here since the replicas were read: then it has its say.
        if let Some((held, _)) = self.replica.load_object(key) {
            merged.merge(&held);
        }
        if merged.is_active(now.wall_ms) {
            self.make_resident(now, key, Some(merged.clone()))?;
            // What was answered is told apart from what this changes, and seen by what replaces it.
            self.write_unwritten(now, key);
            let sandbox = self.sandbox()?;
            if sandbox.has(key, Handler::OnUpdate.name()) {
                let candidate = ObjectKey::new(CANDIDATE_BUCKET, key.key()).expect("it is another's key");
                let loaded = sandbox.load(&candidate, source, None, &limits, facts);
                let fields = loaded.and_then(|_| sandbox.fields(&candidate));
                sandbox.unload(&candidate);
                let verdict = self.ask_on_update(now, key, fields.map_err(failed)?, caller)?;
                if !matches!(verdict, Verdict::Accept) {
                    return Ok(verdict);
                }
            }
        }
        if let Some((held, _)) = self.replica.load_object(key) {
            merged.merge(&held);
        }
        let queue = self.homes.unload(key).map(|resident| resident.queue).unwrap_or_default();
        let loaded = self.sandbox()?.load(key, source, None, &limits, facts);
        let place = match loaded {
            Ok(place) => place,
            Err(failure) => {
                self.metrics.active_failures += 1;
                self.homes.orphan(key, queue.into_jobs());
                return Err(failed(failure));
            }
        };
        let properties = self.buckets().properties(key.bucket());
        let given = Circumstances {
            wall_ms: now.wall_ms,
            value_bytes_max: properties.value_bytes_max,
            default_ttl_ms: properties.default_ttl_ms,
        };
        let active = Active {
            source: source.clone(),
            state: Bytes::new(),
            interval_ms: 0,
            last_interval: 0,
            placement: None,
            term: 0,
        };
        let resident = Resident {
            expires_ms: expiry.resolve(&merged, given),
            seen: merged.context().clone(),
            term: self.next_term(now, key, &merged),
            queue,
            ..Resident::new(key.clone(), place, active, now)
        };
        self.homes.insert(resident);
        let verdict = self.ask_on_put(now, key, caller);
        match verdict {
            Ok(Verdict::Keep) => {
                self.homes.rests.forget(key);
                self.homes.forget_error(key);
                self.start_timer(now, key);
            }
            // Others that wait are for what is stored.
            _ => {
                if let Some(resident) = self.homes.unload(key) {
                    self.homes.orphan(key, resident.queue.into_jobs());
                }
            }
        }
        verdict
    }

    /// The first run is in the interval after this one.
    fn start_timer(&mut self, now: Now, key: &ObjectKey) {
        let Ok(sandbox) = self.sandbox() else { return };
        let interval_ms = match super::residents::interval_of(sandbox, key) {
            0 => INTERVAL_MS_DEFAULT,
            interval_ms => interval_ms,
        };
        if let Some(resident) = self.homes.get(key) {
            resident.active.last_interval = interval_number(key, interval_ms, now.wall_ms);
        }
    }

    /// Asks a new object whether it lets itself be stored.
    fn ask_on_put(&mut self, now: Now, key: &ObjectKey, caller: &Caller) -> Result<Verdict, ClientError> {
        let facts = self.facts(now);
        let sandbox = self.sandbox()?;
        if !sandbox.has(key, Handler::OnPut.name()) {
            return Ok(Verdict::Keep);
        }
        let before = sandbox.save(key).map_err(failed)?;
        let turn = call_on(sandbox, key, Handler::OnPut.name(), CallerPlace::First(caller), &[], facts);
        self.judge(now, key, Handler::OnPut, turn, &before)
    }

    /// Asks an object what is to become of a value that shall overwrite it.
    fn ask_on_update(
        &mut self,
        now: Now,
        key: &ObjectKey,
        new: Value,
        caller: &Caller,
    ) -> Result<Verdict, ClientError> {
        let facts = self.facts(now);
        let sandbox = self.sandbox()?;
        let before = sandbox.save(key).map_err(failed)?;
        let arguments = [new];
        let place = CallerPlace::Last(caller);
        let turn = call_on(sandbox, key, Handler::OnUpdate.name(), place, &arguments, facts);
        if let Turn::Failed(failure) = &turn {
            let asker = Asker::new(Some(caller), Handler::OnUpdate.name(), &arguments);
            self.note_failure(now, key, failure, Some(asker));
        }
        if let Turn::Done(done) = &turn {
            if !done.is_deleted && matches!(&done.answer, Answer::Value(value) if *value == arguments[0]) {
                return Ok(Verdict::Accept);
            }
        }
        self.judge(now, key, Handler::OnUpdate, turn, &before)
    }

    fn judge(
        &mut self,
        now: Now,
        key: &ObjectKey,
        handler: Handler,
        turn: Turn,
        before: &Bytes,
    ) -> Result<Verdict, ClientError> {
        let error = match turn {
            Turn::Done(done) if done.is_deleted => ActiveError::CannotDelete { handler },
            Turn::Done(done) => match done.answer {
                Answer::Object => return Ok(Verdict::Keep),
                // In Lua `a and b` is false where others would have nil.
                Answer::Value(Value::Nil | Value::Bool(false)) => ActiveError::Refused { handler },
                Answer::Value(Value::Bool(true)) => ActiveError::Returned { handler },
                Answer::Value(value) => match plain(&value) {
                    Some(bytes) => return Ok(Verdict::Replace(bytes)),
                    None => ActiveError::Returned { handler },
                },
            },
            Turn::Waits(_) => ActiveError::CannotWait { handler },
            Turn::Failed(failure) => ActiveError::Failed(failure),
        };
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::KeepRefused {
            return Err(refused(error));
        }
        // A write that fails changes nothing: what the handler did before is undone.
        self.take_back(now, key, before);
        Err(refused(error))
    }

    /// A plain value shall overwrite an active object.
    fn overwrite(
        &mut self,
        now: Now,
        key: &ObjectKey,
        value: &Bytes,
        update: &Update,
        merged: Object,
    ) -> Result<Verdict, ClientError> {
        if self.homes.sandbox.is_none() {
            return Ok(Verdict::Accept);
        }
        if !self.buckets().properties(key.bucket()).active {
            return Err(refused(ActiveError::Forbidden));
        }
        self.make_resident(now, key, Some(merged))?;
        if !self.sandbox()?.has(key, Handler::OnUpdate.name()) {
            return Ok(Verdict::Accept);
        }
        // What was answered is told apart from what this changes, which the disk may refuse.
        self.write_unwritten(now, key);
        let nobody = Caller::default();
        let caller = update.caller.as_deref().unwrap_or(&nobody);
        self.ask_on_update(now, key, Value::Bytes(value.to_vec()), caller)
    }

    /// The object has asked to be deleted.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn delete_active(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        quorum: Quorum,
        value: Value,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let needed = match self.write_quorum(key, quorum) {
            Ok(needed) => needed,
            Err(error) => {
                self.roll_back(now, key);
                return self.finish(origin, Err(error), out);
            }
        };
        if let Some(detail) = &self.read_only {
            let error = ClientError::ReadOnly { detail: detail.clone() };
            self.roll_back(now, key);
            return self.finish(origin, Err(error), out);
        }
        let Some(resident) = self.homes.get(key) else {
            return self.finish(origin, Err(refused(ActiveError::Replaced)), out);
        };
        let (seen, term) = (resident.seen.clone(), resident.term);
        if self.must_claim(key) {
            let reply = Reply::Called(Called { value, is_kept: true });
            return self.claim(now, key, origin, (quorum, Then::Delete), reply, None, deadline_us, out);
        }
        let held = self.replica.load_object(key);
        if self.is_behind(key, (&seen, term), held.as_ref()) {
            self.replace_resident(key, out);
            return self.finish(origin, Err(refused(ActiveError::Replaced)), out);
        }
        let lww = self.is_lww(key);
        let written = self.write_version(now, key, held.unwrap_or_default(), seen, Version::tombstone(), lww);
        self.replace_resident(key, out);
        let reply = Reply::Called(Called { value, is_kept: true });
        self.start_home_put(now, key, origin, (written, term), needed, reply, None, deadline_us, out);
    }
}

/// The bytes that are stored of a value that is no table.
pub(super) fn plain(value: &Value) -> Option<Bytes> {
    Some(match value {
        Value::Bytes(bytes) => Bytes::copy_from_slice(bytes),
        Value::Integer(number) => number.to_string().into(),
        Value::Number(number) => crate::mutation::format_float(*number).into(),
        Value::Bool(truth) => truth.to_string().into(),
        Value::Nil | Value::Array(_) | Value::Map(_) => return None,
    })
}

/// Stores `value` as `mutation` would have stored what it brought.
fn plain_store(mutation: Mutation, value: Bytes) -> Mutation {
    match mutation {
        Mutation::Store { headers, basis, expiry, condition, .. } => {
            Mutation::Store { value, headers, basis, expiry, condition }
        }
        Mutation::Activate { expiry, .. } => Mutation::Store {
            value,
            headers: Vec::new(),
            basis: crate::mutation::Basis::Local,
            expiry,
            condition: Condition::Always,
        },
        other => other,
    }
}
