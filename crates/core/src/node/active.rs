//! Running active objects at their home, and keeping what their code changes.
//!
//! An object's home is the first node of its preference list that is not down. A call is handed there; the home reads
//! `r` replicas, loads the object or takes what is loaded if that has seen all they hold, runs the handler, and
//! answers. What the handler changed is a new version: written and acknowledged by `w` replicas before the answer
//! (`aso_durability` = `quorum`), or within `aso_async_ms`. Runs of one object are serial: while a handler waits for
//! its node, others queue.
//!
//! A run that fails is undone, and nothing else: the sandbox knows the state after every run that ended well, saved or
//! not, and takes the object back to it. `rests` has what callers pay that drive an object to its limits.
//!
//! If a split lets two homes run, their versions are siblings. Whoever reads them next joins them: convergent fields
//! merge, `onMerge(other)` is called for the rest, and without it the newest wins and the loser is counted.
//!
//! Source: DESIGN §5; Comet §3. Differs: in Comet every replica runs its own copy.

use std::borrow::Cow;

use super::coordinate::Hop;
use super::homes::{Asked, Awaited, Job, Resident, Run, What, QUEUE_MAX};
use super::rests::Asker;
use super::{Node, Origin, Output, Purpose, Task, Work};
use crate::active::{
    Answer, Ask, Call, Caller, CallerPlace, Done, Facts, Failure, FailureKind, Invocation, Limits, Place,
    Sandbox, Turn, Value,
};
use crate::bucket::ActiveDurability;
use crate::client::{ActiveError, Called, ClientError, Handler, Operation, Quorum, Reply};
use crate::detector::Health;
use crate::get::Needed;
use crate::message::ReadOutcome;
use crate::mutation::Mutation;
use crate::object::Object;
use crate::types::{NodeId, Now, ObjectKey};

pub(super) fn failed(failure: Failure) -> ClientError {
    ClientError::Active(ActiveError::Failed(failure))
}

pub(super) fn refused(error: ActiveError) -> ClientError {
    ClientError::Active(error)
}

impl Node {
    /// Gives the node what runs active objects; without it they are stored only.
    pub fn set_sandbox(&mut self, mut sandbox: Box<dyn Sandbox>) {
        sandbox.set_node(self.config.addresses.peer_host(), &self.id().to_string());
        self.homes.sandbox = Some(sandbox);
    }

    /// Bytes that the sandbox takes with all objects that are loaded.
    pub fn active_bytes(&self) -> usize {
        self.homes.sandbox.as_ref().map_or(0, |sandbox| sandbox.used_bytes())
    }

    /// The node that runs the object under `key`, itself unless another is known to be there.
    pub(super) fn home(&self, key: &ObjectKey) -> NodeId {
        let list = self.placed_ring().preference_at(key.position());
        list.iter().copied().find(|node| self.health(*node) != Health::Down).unwrap_or(self.id())
    }

    /// Where an update must go because its object is active, unless that is here.
    pub(super) fn other_home(&self, key: &ObjectKey) -> Option<NodeId> {
        Some(self.home(key)).filter(|home| *home != self.id())
    }

    pub(super) fn facts(&mut self, now: Now) -> Facts {
        // What it counts under it must be what others can lose of it: a new memory of writes counts apart.
        let actor = self.replica.writing_actor().0;
        Facts { now_ms: now.wall_ms, seed: self.rng.next_u64(), actor }
    }

    pub(super) fn sandbox(&mut self) -> Result<&mut dyn Sandbox, ClientError> {
        match &mut self.homes.sandbox {
            Some(sandbox) => Ok(&mut **sandbox),
            None => Err(refused(ActiveError::NoSandbox)),
        }
    }

    pub(super) fn limits(&self, key: &ObjectKey) -> Limits {
        self.buckets().properties(key.bucket()).aso.limits()
    }

    // Calls

    #[allow(clippy::too_many_arguments)]
    pub(super) fn start_call(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        call: Call,
        quorum: Quorum,
        deadline_us: u64,
        hop: Hop,
        out: &mut Vec<Output>,
    ) {
        if let Ask::Function(name) = &call.what {
            if let Some(handler) = Handler::of(name).filter(|handler| *handler != Handler::OnGet) {
                return self.finish(origin, Err(refused(ActiveError::Reserved { handler })), out);
            }
        }
        let needed = match self.read_quorum(&key, quorum) {
            Ok(needed) => needed,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        // A get of what is not active is answered here.
        let to = self.other_home(&key).filter(|_| hop == Hop::First && call.what != Ask::Get);
        if let Some(to) = to {
            let operation = Operation::Call { key, call, quorum };
            let work = Work::Forward { to, operation, refused: Vec::new() };
            return self.forward(now, origin, work, deadline_us, out);
        }
        let needed = self.home_reads(&key, needed);
        self.begin_call(
            now,
            origin,
            key,
            Box::new(Asked { call, quorum, hop, tried: None }),
            needed,
            deadline_us,
            out,
        )
    }

    /// Finds out what a call is to run on.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin_call(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        asked: Box<Asked>,
        needed: Needed,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        if self.holds_what_is_seen(now, &key, needed) {
            return self.called(now, origin, key, asked, None, deadline_us, out);
        }
        let purpose = Purpose::Call(asked);
        self.start_get(now, origin, key, needed, purpose, deadline_us, out);
    }

    /// True if a get would ask this node alone, and find just what the object that is loaded has seen.
    fn holds_what_is_seen(&mut self, now: Now, key: &ObjectKey, needed: Needed) -> bool {
        if needed.total.max(needed.primaries) > 1 || self.homes.len() == 0 {
            return false;
        }
        let primaries = &self.placed_ring().preference_at(key.position())[..self.replicas_of(key)];
        let is_whole = primaries.iter().all(|node| self.health(*node) != Health::Down);
        if !is_whole || !primaries.contains(&self.id()) {
            return false;
        }
        let Self { homes, replica, .. } = self;
        let epoch = replica.watch(|changed| homes.note_change(changed));
        let seen = |one: &&mut Resident| one.row_hash != 0 && !one.has_expired(now);
        let Some(resident) = homes.get(key).filter(seen) else { return false };
        if resident.unchanged != epoch && replica.compare(key, resident.row_hash) == ReadOutcome::Same {
            resident.unchanged = epoch;
        }
        resident.unchanged == epoch
    }

    /// A call has read the object: `read`, with its hash or 0, or just what the loaded object has seen.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn called(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        asked: Box<Asked>,
        read: Option<(Object, u64)>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let merged = match read {
            Some((merged, _)) if !merged.is_active(now.wall_ms) => {
                return self.answer_plain(now, origin, &asked.call.what, merged, out);
            }
            Some((merged, hash)) => {
                self.homes.note_row(&key, &merged, hash);
                Some(merged)
            }
            None => None,
        };
        if let Some(to) = Some(asked.hop).filter(|hop| *hop == Hop::First).and_then(|_| self.other_home(&key))
        {
            let Asked { call, quorum, .. } = *asked;
            let operation = Operation::Call { key, call, quorum };
            let work = Work::Forward { to, operation, refused: Vec::new() };
            return self.forward(now, origin, work, deadline_us, out);
        }
        let what = What::Call(asked);
        self.enter(now, key, Job { origin, what, deadline_us }, merged, out);
    }

    /// Answers a call of what is not active.
    fn answer_plain(&mut self, now: Now, origin: Origin, what: &Ask, merged: Object, out: &mut Vec<Output>) {
        let result = match what {
            Ask::Get => {
                self.metrics.gets += 1;
                self.metrics.gets_with_siblings += (merged.0.values().len() > 1) as u64;
                Ok(Reply::Object(merged))
            }
            _ if merged.is_live(now.wall_ms) => Err(refused(ActiveError::NotActive)),
            _ => Err(refused(ActiveError::Missing)),
        };
        self.finish(origin, result, out);
    }

    /// True if a get has found an active object and was handed to its home.
    pub(super) fn hand_over_call(&mut self, now: Now, id: u64, out: &mut Vec<Output>) -> bool {
        let Some(Task { work: Work::Get { get, purpose: Purpose::Call(asked) }, .. }) =
            self.tasks.get_mut(id)
        else {
            return false;
        };
        // What is loaded here is most likely at home here.
        let may_be_elsewhere = asked.hop == Hop::First && !get.is_trusted();
        if !may_be_elsewhere || !get.merged().is_active(now.wall_ms) {
            return false;
        }
        let key = get.key.clone();
        let Some(to) = self.other_home(&key) else { return false };
        let Some(Task { origin, deadline_us, work, .. }) = self.tasks.remove(id) else { return false };
        let Work::Get { purpose: Purpose::Call(asked), .. } = work else { return false };
        let Asked { call, quorum, .. } = *asked;
        let operation = Operation::Call { key, call, quorum };
        self.forward(now, origin, Work::Forward { to, operation, refused: Vec::new() }, deadline_us, out);
        true
    }

    /// Runs a job, or lets it wait for the one that runs. `merged`: what `r` replicas hold, unless the loaded object
    /// has seen just that.
    pub(super) fn enter(
        &mut self,
        now: Now,
        key: ObjectKey,
        job: Job,
        merged: Option<Object>,
        out: &mut Vec<Output>,
    ) {
        if let Some(resident) = self.homes.get(&key).filter(|resident| resident.run.is_some()) {
            let mut refused_job = None;
            let is_full = resident.queue.len() >= QUEUE_MAX;
            if is_full {
                // A caller that fills the queue keeps no other out.
                refused_job = resident.queue.displace(&job);
            }
            let deadline_us = job.deadline_us;
            match is_full && refused_job.is_none() {
                true => refused_job = Some(job),
                false => {
                    let awaited = resident.run.as_ref().map(|run| run.number);
                    resident.queue.push(job, merged);
                    if let Some(number) = awaited {
                        self.homes.hurry(number);
                    }
                    self.homes.answer_by(&key, deadline_us);
                }
            }
            if let Some(job) = refused_job {
                let error = ActiveError::Crowded { waiting: QUEUE_MAX as u32 };
                self.finish(job.origin, Err(refused(error)), out);
            }
            return;
        }
        self.run(now, &key, job, merged, out);
        self.run_queue(now, &key, out);
    }

    pub(super) fn run_queue(&mut self, now: Now, key: &ObjectKey, out: &mut Vec<Output>) {
        while let Some(resident) = self.homes.get(key).filter(|resident| resident.run.is_none()) {
            let Some((job, merged)) = resident.queue.pop() else { return };
            match now.mono_us < job.deadline_us {
                true => self.run(now, key, job, merged, out),
                false => self.finish(job.origin, Err(refused(ActiveError::TimedOut)), out),
            }
        }
    }

    fn run(&mut self, now: Now, key: &ObjectKey, job: Job, merged: Option<Object>, out: &mut Vec<Output>) {
        let Job { origin, what, deadline_us } = job;
        if matches!(&what, What::Call(asked) if asked.call.what == Ask::Info) {
            let info = self.info_of(now, key, merged);
            return self.answer_call(origin, info, false, out);
        }
        let is_forbidden = !self.buckets().properties(key.bucket()).active;
        if is_forbidden && matches!(what, What::Call(_) | What::Timer(_) | What::Place) {
            return self.finish(origin, Err(refused(ActiveError::Forbidden)), out);
        }
        let rests_ms = match self.homes.rests.knows(key) {
            true => asker(&what).and_then(|asker| self.homes.rests.left_ms(key, asker, now.mono_us)),
            false => None,
        };
        if let Some(for_ms) = rests_ms {
            return self.finish(origin, Err(refused(ActiveError::Rests { for_ms })), out);
        }
        let result = match what {
            What::Update(update) => {
                let merged = merged.unwrap_or_default();
                return self.run_update(now, key, origin, *update, merged, deadline_us, out);
            }
            What::Call(_) | What::Timer(_) | What::Place => self.make_resident(now, key, merged),
        };
        match result {
            Ok(()) if matches!(what, What::Place) => self.write_placed(now, key, deadline_us, out),
            Ok(()) => self.run_handler(now, key, Job { origin, what, deadline_us }, out),
            Err(error) => self.finish(origin, Err(error), out),
        }
    }

    /// Calls the function that a job is about, on a loaded object.
    fn run_handler(&mut self, now: Now, key: &ObjectKey, job: Job, out: &mut Vec<Output>) {
        if let What::Call(asked) = &job.what {
            if asked.tried.is_some_and(|tried| self.may_have_counted(key, tried)) {
                return self.finish(job.origin, Err(ClientError::OutcomeUnknown), out);
            }
        }
        let facts = self.facts(now);
        let is_quorum = self.durability(key) == ActiveDurability::Quorum;
        if let (true, What::Call(asked)) = (is_quorum, &job.what) {
            let refusal = self.write_quorum(key, asked.quorum).err();
            let needed = self.home_writes(key, self.default_writes(key));
            let refusal = refusal.or_else(|| self.write_refusal(key, needed));
            if let Some(error) = refusal {
                return self.finish(job.origin, Err(error), out);
            }
        }
        if is_quorum {
            // So that a run that cannot be kept goes back to what is stored.
            self.write_unwritten(now, key);
        }
        self.homes.note_clock(now.wall_ms);
        let Some(resident) = self.homes.get(key) else {
            return self.finish(job.origin, Err(refused(ActiveError::Replaced)), out);
        };
        // Another home may have run it while this run waited.
        let last_interval = resident.active.last_interval;
        #[cfg(feature = "sabotage")]
        let last_interval = match self.config.sabotage {
            crate::config::Sabotage::ForgetRuns => 0,
            _ => last_interval,
        };
        if matches!(&job.what, What::Timer(interval) if last_interval >= *interval) {
            return self.finish(job.origin, Err(refused(ActiveError::TimedOut)), out);
        }
        resident.used_us = now.mono_us;
        resident.has_put = false;
        let place = resident.place;
        let is_new_interval = now.wall_ms >= resident.refill_ms && resident.begin_interval(now);
        let sandbox = match self.sandbox() {
            Ok(sandbox) => sandbox,
            Err(error) => return self.finish(job.origin, Err(error), out),
        };
        if is_new_interval {
            sandbox.refill_messages(key);
        }
        let nobody = Caller::default();
        let (function, caller, arguments) = match &job.what {
            What::Call(asked) => {
                let Call { what, arguments, caller } = &asked.call;
                let caller = caller.as_deref().unwrap_or(&nobody);
                let function = function_of(what);
                match function == Handler::OnGet.name() {
                    true => (function, CallerPlace::First(caller), &arguments[..]),
                    false => (function, CallerPlace::Last(caller), &arguments[..]),
                }
            }
            What::Timer(_) | What::Place | What::Update(_) => {
                (Cow::Borrowed(Handler::OnTimer.name()), CallerPlace::None, &[][..])
            }
        };
        let turn = sandbox.call(key, place, &Invocation { function: &function, caller, arguments, facts });
        match turn {
            Turn::Failed(failure)
                if failure.kind == FailureKind::NoFunction
                    && matches!(&job.what, What::Call(asked) if asked.call.what == Ask::Get) =>
            {
                let value = sandbox.field(key, "value");
                self.answer_call(job.origin, value, false, out);
            }
            turn => self.take_turn(now, key, job, turn, out),
        }
    }

    /// Goes on with a job as far as its handler got.
    pub(super) fn take_turn(
        &mut self,
        now: Now,
        key: &ObjectKey,
        job: Job,
        turn: Turn,
        out: &mut Vec<Output>,
    ) {
        if matches!(job.what, What::Timer(_)) {
            self.charge_timer(now, key, &turn);
        }
        match turn {
            Turn::Waits(request) => {
                let number = self.homes.wait(match job.what {
                    What::Timer(_) => Awaited::TimerHost(key.clone()),
                    What::Call(_) | What::Place | What::Update(_) => Awaited::Host(key.clone()),
                });
                let deadline_us = job.deadline_us;
                if let Some(resident) = self.homes.get(key) {
                    resident.run = Some(Box::new(Run { number, job }));
                }
                self.homes.answer_by(key, deadline_us);
                self.host_request(now, key, number, request, deadline_us, out);
            }
            Turn::Done(done) => self.done(now, key, job, done, out),
            Turn::Failed(failure) => {
                self.note_failure(now, key, &failure, asker(&job.what));
                match failure.kind {
                    FailureKind::Error | FailureKind::Limit => self.roll_back(now, key),
                    FailureKind::NoFunction | FailureKind::Syntax => {}
                }
                self.finish(job.origin, Err(failed(failure)), out);
            }
        }
    }

    /// Counts a failure. `asker` rests for it if it reached a limit.
    pub(super) fn note_failure(
        &mut self,
        now: Now,
        key: &ObjectKey,
        failure: &Failure,
        asker: Option<Asker>,
    ) {
        self.metrics.active_failures += 1;
        if let Some(asker) = asker.filter(|_| failure.kind == FailureKind::Limit) {
            let run_us = u64::from(self.limits(key).wall_us);
            self.homes.rests.failed(key, asker, run_us, now.mono_us);
        }
        self.homes.note_error(key, now.wall_ms, failure);
        if let Some(resident) = self.homes.get(key) {
            resident.report.failures += 1;
        }
    }

    fn done(&mut self, now: Now, key: &ObjectKey, job: Job, done: Done, out: &mut Vec<Output>) {
        self.metrics.active_calls += 1;
        self.metrics.active_instructions += u64::from(done.instructions);
        if self.homes.rests.knows(key) {
            if let Some(asker) = asker(&job.what) {
                self.homes.rests.went_well(key, asker);
            }
        }
        let durability = self.durability(key);
        let Some(resident) = self.homes.get(key) else {
            return self.finish(job.origin, Err(refused(ActiveError::Replaced)), out);
        };
        // What the handler itself has put stays, and would count twice.
        let has_put = resident.has_put;
        let report = &mut resident.report;
        report.instructions_last = done.instructions;
        report.instructions_max = report.instructions_max.max(done.instructions);
        match &job.what {
            What::Timer(interval) => {
                report.timer_runs += 1;
                report.timer_ms = Some(now.wall_ms);
                resident.active.last_interval = *interval;
                self.metrics.active_timer_runs += 1;
            }
            _ => report.calls += 1,
        }
        let value = match done.answer {
            Answer::Value(value) => value,
            // What an object returns of itself is its data.
            Answer::Object => self.sandbox().ok().and_then(|one| one.fields(key).ok()).unwrap_or(Value::Nil),
        };
        let Job { origin, what, deadline_us } = job;
        let (quorum, again) = match what {
            What::Call(asked) => (asked.quorum, Some(What::Call(asked)).filter(|_| !has_put)),
            What::Timer(_) | What::Place | What::Update(_) => (Quorum::default(), None),
        };
        if done.is_deleted {
            return self.delete_active(now, key, origin, quorum, value, deadline_us, out);
        }
        match durability {
            ActiveDurability::Async => {
                self.changed(now, key);
                self.answer_call(origin, value, false, out);
            }
            ActiveDurability::Quorum => {
                let refusal = self.write_quorum(key, quorum).err();
                let needed = self.home_writes(key, self.default_writes(key));
                let refusal = refusal.or_else(|| self.write_refusal(key, needed));
                if let Some(error) = refusal {
                    // What was joined and is not stored yet is joined anew.
                    match self.homes.get(key).is_some_and(|resident| resident.must_save) {
                        true => self.put_away(now, key),
                        false => self.load_saved(now, key),
                    }
                    let error = if has_put { ClientError::OutcomeUnknown } else { error };
                    return self.finish(origin, Err(error), out);
                }
                let reply = Reply::Called(Called { value, is_kept: true });
                self.keep(now, key, origin, quorum, reply, again, deadline_us, out);
            }
        }
    }

    fn answer_call(&mut self, origin: Origin, value: Value, is_kept: bool, out: &mut Vec<Output>) {
        if !matches!(origin, Origin::Nobody) {
            self.metrics.gets += 1;
        }
        self.finish(origin, Ok(Reply::Called(Called { value, is_kept })), out);
    }
}

/// The caller of a job and its question. `None`: the job asks for no function, or brings new code.
fn asker(what: &What) -> Option<Asker> {
    Some(match what {
        What::Call(asked) => {
            let Call { what, arguments, caller } = &asked.call;
            Asker::new(caller.as_deref(), &function_of(what), arguments)
        }
        What::Timer(_) => Asker::new(None, Handler::OnTimer.name(), &[]),
        What::Update(update) => match &update.mutation {
            // New code ends all rests.
            Mutation::Activate { keeps_state: true, .. } => return None,
            Mutation::Activate { source: value, .. } | Mutation::Store { value, .. } => {
                let arguments = [Value::Bytes(value.to_vec())];
                Asker::new(update.caller.as_deref(), Handler::OnUpdate.name(), &arguments)
            }
            _ => return None,
        },
        What::Place => return None,
    })
}

/// The function that is asked for.
fn function_of(what: &Ask) -> Cow<'_, str> {
    match what {
        Ask::Get | Ask::Info => Cow::Borrowed(Handler::OnGet.name()),
        Ask::Function(name) => String::from_utf8_lossy(name),
    }
}

pub(super) fn call_on(
    sandbox: &mut dyn Sandbox,
    key: &ObjectKey,
    function: &str,
    caller: CallerPlace,
    arguments: &[Value],
    facts: Facts,
) -> Turn {
    sandbox.call(key, Place::default(), &Invocation { function, caller, arguments, facts })
}
