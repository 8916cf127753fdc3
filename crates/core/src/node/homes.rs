//! The active objects that are loaded here, who waits for them, and what of them is not written yet.
//!
//! Pure bookkeeping: `active` runs them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::coordinate::Hop;
use super::copies::Walk;
use super::puts::Update;
use super::rests::{connection_of, Rests};
use super::Origin;
use crate::active::{Active, Call, Failure, HostResult, Place, Sandbox, Value, INTERVAL_MS_DEFAULT};
use crate::admission::Admission;
use crate::causality::{Dot, VersionVector};
use crate::client::{ClientError, Quorum, Reply};
use crate::object::{Object, Version};
use crate::timers::{interval_number, interval_start};
use crate::types::{NodeId, Now, ObjectKey};

/// The most calls that wait for one object whose handler waits for its node.
pub(super) const QUEUE_MAX: usize = 1000;
/// Of so many that came last, a caller may have no more than others when there is no room.
const DISPLACED_MAX: usize = 64;
/// An object that nobody has asked for so long is unloaded, in microseconds. Too small: it is loaded again and again.
const IDLE_US: u64 = 60_000_000;
/// How often idle objects are looked for, in microseconds.
const SWEEP_US: u64 = 1_000_000;

/// The most objects whose last error is known. Beyond, the one whose key comes first is let go.
const ERRORS_MAX: usize = 1_000;
/// How many of a term's last bits name the node.
const NODE_BITS: u32 = 20;

/// An object that is loaded in the sandbox.
///
/// In the order of the source: what each call looks at comes first, and makes two cache lines. Objects are asked in any
/// order, so that each of their lines has to be fetched.
#[repr(C, align(64))]
pub(super) struct Resident {
    pub key: ObjectKey,
    /// Where the sandbox has it.
    pub place: Place,
    /// The replica's epoch in which its row was last found to be the one of `row_hash`; 0: it may have changed since.
    pub unchanged: u32,
    /// Hash of a row that this is all made of: who reads it again need not look into it. 0: none is known.
    pub row_hash: u64,
    pub expires_ms: Option<u64>,
    /// Boxed, as what few objects have: those that are loaded are many.
    pub run: Option<Box<Run>>,
    pub queue: Queue,
    pub used_us: u64,
    /// When the timer interval ends for which it got its messages, in milliseconds since 1970; 0: to be found out.
    pub refill_ms: u64,
    /// When what its handlers changed is written at the latest, in `mono_us`; `None`: nothing was run since.
    pub flush_us: Option<u64>,
    pub report: Report,
    /// The number of that interval.
    pub refilled: u64,
    /// It differs from what is stored whatever its state says: it joins several versions, or has new code.
    pub must_save: bool,
    /// The handler that runs has stored the object itself.
    pub has_put: bool,
    /// As it was last saved, or found.
    pub active: Active,
    /// All writes that went into it.
    pub seen: VersionVector,
    /// The home's term in which it is written, later than all that it was made of.
    pub term: u64,
    /// Stamp of the ring whose primaries have promised that term to this node; 0: none have.
    pub claimed: u64,
    pub headers: Vec<(Bytes, Bytes)>,
}

impl Resident {
    /// What was just loaded at `place`, and is not stored so.
    pub fn new(key: ObjectKey, place: Place, active: Active, now: Now) -> Resident {
        Resident {
            key,
            place,
            unchanged: 0,
            row_hash: 0,
            expires_ms: None,
            run: None,
            queue: Queue::default(),
            used_us: now.mono_us,
            refill_ms: 0,
            flush_us: None,
            report: Report::default(),
            refilled: 0,
            must_save: true,
            has_put: false,
            active,
            seen: VersionVector::default(),
            term: 0,
            claimed: 0,
            headers: Vec::new(),
        }
    }

    /// Finds out which timer interval it is. True if it is another one than before.
    pub fn begin_interval(&mut self, now: Now) -> bool {
        let interval_ms =
            if self.active.interval_ms > 0 { self.active.interval_ms } else { INTERVAL_MS_DEFAULT };
        let interval = interval_number(&self.key, interval_ms, now.wall_ms);
        self.refill_ms = interval_start(&self.key, interval_ms, interval + 1);
        std::mem::replace(&mut self.refilled, interval) != interval
    }

    pub fn has_expired(&self, now: Now) -> bool {
        self.expires_ms.is_some_and(|at| now.wall_ms >= at)
    }
}

/// A handler that waits for the answer to request `number` of its node.
pub(super) struct Run {
    pub number: u64,
    pub job: Job,
}

/// Something an object is to do.
pub(super) struct Job {
    pub origin: Origin,
    pub what: What,
    pub deadline_us: u64,
}

impl Job {
    /// A number for the caller; 0 for the store itself.
    fn caller(&self) -> u64 {
        let caller = match &self.what {
            What::Call(asked) => asked.call.caller.as_deref(),
            What::Update(update) => update.caller.as_deref(),
            What::Timer(_) | What::Place => None,
        };
        caller.map_or(0, |caller| connection_of(caller, 0))
    }
}

/// A call on its way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub call: Call,
    pub quorum: Quorum,
    pub hop: Hop,
    /// The call ran before, and this write of it was refused.
    pub tried: Option<Dot>,
}

/// A thing to do with an active object.
#[derive(Clone, Debug)]
pub(super) enum What {
    Call(Box<Asked>),
    /// In the interval of this number.
    Timer(u64),
    /// Choose its holders anew.
    Place,
    Update(Box<Update>),
}

/// The jobs that wait for an object, with what the replicas hold, unless the object has seen just that.
#[derive(Default)]
#[allow(clippy::box_collection)] // Few objects have one: it makes the others smaller.
pub(super) struct Queue(Option<Box<VecDeque<QueuedJob>>>);

type QueuedJob = (Job, Option<Object>);

impl Queue {
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |jobs| jobs.len())
    }

    pub fn push(&mut self, job: Job, merged: Option<Object>) {
        self.0.get_or_insert_default().push_back((job, merged));
    }

    pub fn pop(&mut self) -> Option<QueuedJob> {
        let jobs = self.0.as_mut()?;
        let first = jobs.pop_front();
        if jobs.is_empty() {
            self.0 = None;
        }
        first
    }

    /// Takes out the last job of the caller that has most of the last jobs, if these are more than the caller of
    /// `newcomer` would have with it.
    pub fn displace(&mut self, newcomer: &Job) -> Option<Job> {
        let jobs = self.0.as_mut()?;
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for (job, _) in jobs.iter().rev().take(DISPLACED_MAX) {
            *counts.entry(job.caller()).or_default() += 1;
        }
        let own = counts.get(&newcomer.caller()).copied().unwrap_or(0);
        let (&most, &count) = counts.iter().max_by_key(|(_, count)| **count)?;
        if count <= own + 1 {
            return None;
        }
        let at = jobs.iter().rposition(|(job, _)| job.caller() == most)?;
        jobs.remove(at).map(|(job, _)| job)
    }

    /// Takes out the jobs whose time is up at `now_us`.
    fn take_late(&mut self, now_us: u64) -> Vec<Job> {
        let is_late = |(job, _): &QueuedJob| job.deadline_us <= now_us;
        let jobs = self.0.take().map_or(VecDeque::new(), |jobs| *jobs);
        let (late, left): (VecDeque<_>, VecDeque<_>) = jobs.into_iter().partition(is_late);
        self.0 = Some(left).filter(|left| !left.is_empty()).map(Box::new);
        late.into_iter().map(|(job, _)| job).collect()
    }

    pub fn into_jobs(self) -> impl Iterator<Item = Job> {
        self.0.into_iter().flat_map(|jobs| *jobs).map(|(job, _)| job)
    }
}

/// What `ASO.INFO` tells of an object beside its state: since it was loaded here.
#[derive(Default)]
#[repr(C)]
pub(super) struct Report {
    pub calls: u64,
    pub instructions_last: u32,
    pub instructions_max: u32,
    pub failures: u64,
    pub timer_runs: u64,
    pub timer_ms: Option<u64>,
    pub merges: u64,
}

/// Why the node waits for an answer of its own.
pub(super) enum Awaited {
    /// The handler of this object does.
    Host(ObjectKey),
    /// As `Host`, when the handler is a timer's.
    TimerHost(ObjectKey),
    /// This object's timer is due, in the interval of this number.
    Timer(ObjectKey, u64),
    /// This object is to choose its holders anew.
    Placement(ObjectKey),
}

impl Awaited {
    /// True if a timer waits for it, which goes on when timers have their turn.
    fn is_timers(&self) -> bool {
        match self {
            Awaited::TimerHost(_) | Awaited::Timer(..) => true,
            Awaited::Host(_) | Awaited::Placement(_) => false,
        }
    }
}

/// An answer for a timer, which waits until timers have their turn.
pub(super) struct DueTimer {
    pub number: u64,
    pub outcome: Outcome,
    /// When the answer came, in `mono_us`.
    pub since_us: u64,
}

/// What an awaited answer is.
pub(super) enum Outcome {
    Host(HostResult),
    Reply(Result<Reply, ClientError>),
}

/// All that a node knows of the active objects it runs.
pub(super) struct Homes {
    pub sandbox: Option<Box<dyn Sandbox>>,
    /// By slot.
    residents: Vec<Option<Box<Resident>>>,
    free: Vec<usize>,
    /// The slot of each object, by its key's hash.
    slots: HashTable<usize>,
    /// Of that hash. Unknown to clients, or they could choose keys with one hash.
    seed: u64,
    /// The slot of the object that was asked for last: a call asks for one many times.
    last: usize,
    awaited: BTreeMap<u64, Awaited>,
    next_number: u64,
    /// How many of the awaited answers are for timers.
    timers_under_way: usize,
    /// Answers for timers, in the order in which they came.
    due_timers: VecDeque<DueTimer>,
    /// How much of the node's time timers get.
    pub admission: Admission,
    /// Answers that came in this step.
    pub outcomes: VecDeque<(u64, Outcome)>,
    /// Jobs to be started anew.
    pub orphans: Vec<(ObjectKey, Job)>,
    flushes: BTreeSet<(u64, ObjectKey)>,
    /// Objects that were written in this turn.
    written: Vec<(ObjectKey, Option<Version>)>,
    /// Versions with the answers of calls that the disk has refused: joined to their objects when these are loaded.
    left_over: BTreeMap<ObjectKey, Version>,
    /// The last of them that was looked at, if others are behind it.
    left_over_after: Option<ObjectKey>,
    /// When they are looked at again, in `mono_us`.
    pub left_over_us: u64,
    pub rests: Rests,
    /// The last error of each object, loaded or not, with when it was, in milliseconds since 1970.
    errors: BTreeMap<ObjectKey, (u64, Failure)>,
    /// When the time of a job that waits is up.
    deadlines: BTreeSet<(u64, ObjectKey)>,
    sweep_us: u64,
    /// The wall clock when a handler last ran.
    wall_ms: u64,
    /// The latest round of a term of this node, and of those that it was told.
    round: u64,
    /// The ring and the peers that were down when homes were last looked at.
    pub view: (u64, usize),
    /// Objects that may have to choose their holders anew.
    pub walk: Option<Walk>,
    /// When objects that are here without need are looked at again, in `mono_us`.
    pub spares_us: u64,
    /// Their hashes, and the holders that have not said yet that they hold just that.
    pub spares: BTreeMap<ObjectKey, (u64, Vec<NodeId>)>,
}

impl Homes {
    /// No object is loaded. `seed`: of hashes, unknown to clients.
    pub fn new(seed: u64, now_us: u64) -> Homes {
        Homes {
            sandbox: None,
            residents: Vec::new(),
            free: Vec::new(),
            slots: HashTable::new(),
            seed,
            last: 0,
            awaited: BTreeMap::new(),
            next_number: 1,
            timers_under_way: 0,
            due_timers: VecDeque::new(),
            admission: Admission::new(now_us),
            outcomes: VecDeque::new(),
            orphans: Vec::new(),
            flushes: BTreeSet::new(),
            written: Vec::new(),
            left_over: BTreeMap::new(),
            left_over_after: None,
            left_over_us: 0,
            rests: Rests::default(),
            errors: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            sweep_us: 0,
            wall_ms: 0,
            round: 0,
            view: (0, 0),
            walk: None,
            spares_us: 0,
            spares: BTreeMap::new(),
        }
    }

    pub fn get(&mut self, key: &ObjectKey) -> Option<&mut Resident> {
        let slot = self.slot(key)?;
        self.residents[slot].as_deref_mut()
    }

    fn slot(&mut self, key: &ObjectKey) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        if is_of(&self.residents, self.last, key) {
            return Some(self.last);
        }
        let slot = *self.slots.find(hash_of(key, self.seed), |slot| is_of(&self.residents, *slot, key))?;
        self.last = slot;
        Some(slot)
    }

    /// Takes in an object that is not there yet. What the disk has refused of it is joined to it, or out of date.
    pub fn insert(&mut self, resident: Resident) {
        self.left_over.remove(&resident.key);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.residents.push(None);
            self.residents.len() - 1
        });
        assert!(self.slot(&resident.key).is_none(), "an object is loaded twice");
        let (residents, seed) = (&mut self.residents, self.seed);
        let hash = hash_of(&resident.key, seed);
        residents[slot] = Some(Box::new(resident));
        self.slots.insert_unique(hash, slot, |slot| {
            residents[*slot].as_ref().map_or(0, |resident| hash_of(&resident.key, seed))
        });
    }

    /// The hash of a row that the object under `key` has seen all of, 0 if none is known.
    pub fn seen_row(&mut self, key: &ObjectKey) -> u64 {
        self.get(key).map_or(0, |resident| resident.row_hash)
    }

    /// True if a row with this hash holds nothing that the object under `key` has not seen, and it has not expired.
    pub fn has_seen(&mut self, key: &ObjectKey, hash: u64, now: Now) -> bool {
        let resident = self.get(key).filter(|resident| resident.row_hash == hash && hash != 0);
        resident.is_some_and(|resident| !resident.has_expired(now))
    }

    /// A handler runs now. If the wall clock was set back, no interval that was worked out before is to be believed.
    pub fn note_clock(&mut self, wall_ms: u64) {
        if wall_ms < self.wall_ms {
            self.residents.iter_mut().flatten().for_each(|resident| resident.refill_ms = 0);
        }
        self.wall_ms = wall_ms;
    }

    /// A number for the next term of `node`, later than `seen` and than all terms that this node began or was told of,
    /// and by the clock than terms of which nothing is left. Its last bits are the node's, so that no other has it.
    pub fn next_term(&mut self, wall_ms: u64, seen: u64, node: NodeId) -> u64 {
        let above = self.round.max(seen >> NODE_BITS).saturating_add(1);
        self.round = above.max(wall_ms).min(u64::MAX >> NODE_BITS);
        self.round << NODE_BITS | node.0 & ((1 << NODE_BITS) - 1)
    }

    /// A peer has promised this term to another home.
    pub fn note_term(&mut self, promised: u64) {
        self.round = self.round.max(promised >> NODE_BITS);
    }

    /// The row of `key` has changed.
    pub fn note_change(&mut self, key: &ObjectKey) {
        if let Some(resident) = self.get(key) {
            resident.unchanged = 0;
        }
    }

    /// Notes the hash of `read`, if the object under `key` is made of all that it holds.
    pub fn note_row(&mut self, key: &ObjectKey, read: &Object, hash: u64) {
        let [(_, version)] = read.0.values() else { return };
        let Some(resident) = self.get(key) else { return };
        if resident.seen.descends(read.context()) && resident.expires_ms == version.expires_ms {
            resident.row_hash = hash;
            resident.unchanged = 0;
        }
    }

    /// Takes an object out of the sandbox. Returns what was known of it.
    pub fn unload(&mut self, key: &ObjectKey) -> Option<Resident> {
        let slot =
            self.slots.find_entry(hash_of(key, self.seed), |slot| is_of(&self.residents, *slot, key)).ok()?;
        let (slot, _) = slot.remove();
        self.free.push(slot);
        let resident = *self.residents[slot].take()?;
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.unload(key);
        }
        if let Some(at) = resident.flush_us {
            self.flushes.remove(&(at, key.clone()));
        }
        if let Some(run) = &resident.run {
            self.answered(run.number);
        }
        Some(resident)
    }

    /// Takes an object out of the sandbox if it has not been asked anything and has nothing to tell.
    pub fn unload_unused(&mut self, key: &ObjectKey) {
        let is_unused = |one: &mut Resident| {
            let Report { calls, failures, timer_runs, merges, .. } = one.report;
            let is_idle = one.run.is_none() && one.queue.len() == 0 && one.flush_us.is_none();
            is_idle && !one.must_save && calls + failures + timer_runs + merges == 0
        };
        if self.get(key).is_some_and(is_unused) {
            self.unload(key);
        }
    }

    /// What the loaded object has become was written in this turn. `answered`: that version, if it has the changes of
    /// calls that were answered before.
    pub fn written(&mut self, key: &ObjectKey, answered: Option<Version>) {
        self.written.push((key.clone(), answered));
    }

    /// The store has what was written in this turn.
    pub fn staged(&mut self) {
        self.written.clear();
    }

    /// The store has taken back what was written in this turn: those objects are loaded again when they are asked, and
    /// what was answered before is joined to them. Returns who waited for them, and whether their handler had begun.
    pub fn undone(&mut self) -> Vec<(Job, bool)> {
        let mut all = Vec::new();
        for (key, answered) in std::mem::take(&mut self.written) {
            if let Some(version) = answered {
                self.leave_over(&key, version);
            }
            let Some(resident) = self.unload(&key) else { continue };
            all.extend(resident.run.map(|run| (run.job, true)));
            all.extend(resident.queue.into_jobs().map(|job| (job, false)));
        }
        all
    }

    /// The disk refuses this version, which has the changes of calls that were answered.
    pub fn leave_over(&mut self, key: &ObjectKey, version: Version) {
        self.left_over.insert(key.clone(), version);
    }

    /// The version of `key` that the disk has refused, if there is one.
    pub fn take_left_over(&mut self, key: &ObjectKey) -> Option<Version> {
        self.left_over.remove(key)
    }

    /// Up to `max` objects of which there is such a version, others each time: one that cannot be loaded keeps none
    /// of the rest waiting.
    pub fn next_left_over(&mut self, max: usize) -> Vec<ObjectKey> {
        let from = self.left_over_after.take().map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.left_over.range::<ObjectKey, _>((from, Bound::Unbounded));
        let keys: Vec<ObjectKey> = behind.map(|(key, _)| key.clone()).take(max).collect();
        self.left_over_after = keys.last().filter(|_| keys.len() == max).cloned();
        keys
    }

    /// When they are to be looked at, in `mono_us`.
    pub fn next_left_over_us(&self) -> Option<u64> {
        (!self.left_over.is_empty()).then_some(self.left_over_us)
    }

    /// These jobs of `key` are to be started anew.
    pub fn orphan(&mut self, key: &ObjectKey, jobs: impl Iterator<Item = Job>) {
        self.orphans.extend(jobs.map(|job| (key.clone(), job)));
    }

    /// A number for an answer to wait for.
    pub fn wait(&mut self, for_what: Awaited) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.timers_under_way += for_what.is_timers() as usize;
        self.awaited.insert(number, for_what);
        number
    }

    /// Timers that were begun and are not over: those that read their object, and those whose handler waits.
    pub fn timers_under_way(&self) -> usize {
        self.timers_under_way
    }

    /// Puts an answer aside until timers have their turn, unless it is for none, or others wait for the timer's object.
    /// Returns it then.
    pub fn put_aside(&mut self, now_us: u64, number: u64, outcome: Outcome) -> Option<Outcome> {
        let may_wait = match self.awaited.get(&number) {
            Some(Awaited::Timer(..)) => true,
            Some(Awaited::TimerHost(key)) => {
                let key = key.clone();
                self.get(&key).is_none_or(|resident| resident.queue.len() == 0)
            }
            Some(Awaited::Host(_) | Awaited::Placement(_)) | None => false,
        };
        if !may_wait {
            return Some(outcome);
        }
        self.due_timers.push_back(DueTimer { number, outcome, since_us: now_us });
        None
    }

    /// Another job waits for the object whose handler waits for `number`: if that is a timer's and has its answer, it
    /// goes on in this step.
    pub fn hurry(&mut self, number: u64) {
        let Some(at) = self.due_timers.iter().position(|due| due.number == number) else { return };
        if let Some(due) = self.due_timers.remove(at) {
            self.outcomes.push_back((due.number, due.outcome));
        }
    }

    /// The next timer that has its answer.
    pub fn next_due_timer(&mut self) -> Option<DueTimer> {
        self.due_timers.pop_front()
    }

    /// True if some timer has its answer.
    pub fn has_due_timers(&self) -> bool {
        !self.due_timers.is_empty()
    }

    /// True if this answer is for an object that shall run here.
    pub fn awaits_object(&self, origin: Origin) -> bool {
        let Origin::Run(number) = origin else { return false };
        matches!(self.awaited.get(&number), Some(Awaited::Timer(..) | Awaited::Placement(_)))
    }

    /// How many objects are being read to choose their holders anew.
    pub fn choosing(&self) -> usize {
        if self.walk.is_none() {
            return 0;
        }
        self.awaited.values().filter(|awaited| matches!(awaited, Awaited::Placement(_))).count()
    }

    pub fn answered(&mut self, number: u64) -> Option<Awaited> {
        let awaited = self.awaited.remove(&number)?;
        self.timers_under_way -= awaited.is_timers() as usize;
        Some(awaited)
    }

    /// What `key`'s handlers changed is to be written by `at_us`, unless it is to be sooner.
    pub fn flush_by(&mut self, key: &ObjectKey, at_us: u64) {
        let Some(resident) = self.get(key) else { return };
        let before = resident.flush_us;
        if before.is_some_and(|before| before <= at_us) {
            return;
        }
        resident.flush_us = Some(at_us);
        if let Some(before) = before {
            self.flushes.remove(&(before, key.clone()));
        }
        self.flushes.insert((at_us, key.clone()));
    }

    /// Nothing of `key` needs to be written now.
    pub fn flushed(&mut self, key: &ObjectKey) {
        if let Some(at) = self.get(key).and_then(|resident| resident.flush_us.take()) {
            self.flushes.remove(&(at, key.clone()));
        }
    }

    /// The next object whose changes must be written by `now_us`.
    pub fn next_flush(&mut self, now_us: u64) -> Option<ObjectKey> {
        let (at, key) = self.flushes.first()?;
        (*at <= now_us).then(|| key.clone())
    }

    /// A job of `key` waits, until `deadline_us` at most.
    pub fn answer_by(&mut self, key: &ObjectKey, deadline_us: u64) {
        self.deadlines.insert((deadline_us, key.clone()));
    }

    /// Who has waited for an object until `now_us`, when their time was up: they are taken from the queue, and the
    /// handler that runs goes on for nobody.
    pub fn overdue(&mut self, now_us: u64) -> Vec<Origin> {
        let mut overdue = Vec::new();
        while self.deadlines.first().is_some_and(|(at, _)| *at <= now_us) {
            let Some((_, key)) = self.deadlines.pop_first() else { break };
            let Some(resident) = self.get(&key) else { continue };
            if let Some(run) = resident.run.as_mut().filter(|run| run.job.deadline_us <= now_us) {
                overdue.push(std::mem::replace(&mut run.job.origin, Origin::Nobody));
            }
            overdue.extend(resident.queue.take_late(now_us).into_iter().map(|job| job.origin));
        }
        overdue
    }

    /// When the next job's time is up.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// All objects with changes that are not written.
    pub fn unwritten(&self) -> Vec<ObjectKey> {
        self.flushes.iter().map(|(_, key)| key.clone()).collect()
    }

    /// All that handlers changed is to be written now.
    pub fn hasten_flushes(&mut self, now_us: u64) {
        for (at_us, key) in std::mem::take(&mut self.flushes) {
            let at_us = at_us.min(now_us);
            if let Some(resident) = self.get(&key) {
                resident.flush_us = Some(at_us);
                self.flushes.insert((at_us, key));
            }
        }
    }

    pub fn next_flush_us(&self) -> Option<u64> {
        self.flushes.first().map(|(at, _)| *at)
    }

    /// Unloads what was not used lately; while the sandbox takes more than `bytes_max`, whatever has nothing to write.
    pub fn sweep(&mut self, now_us: u64, bytes_max: usize) {
        if now_us < self.sweep_us {
            return;
        }
        let is_crowded = self.sandbox.as_ref().is_some_and(|sandbox| sandbox.used_bytes() > bytes_max);
        self.sweep_us = now_us + SWEEP_US;
        self.rests.sweep(now_us);
        let is_clean = |one: &Resident| one.run.is_none() && one.flush_us.is_none();
        let is_worth = |one: &Resident| is_crowded || one.used_us + IDLE_US <= now_us;
        let clean = self.residents.iter().flatten().filter(|one| is_clean(one) && is_worth(one));
        let mut clean: Vec<(u64, ObjectKey)> = clean.map(|one| (one.used_us, one.key.clone())).collect();
        clean.sort_unstable();
        let idle = clean.partition_point(|(used_us, _)| used_us + IDLE_US <= now_us);
        let count = if is_crowded { idle.max(clean.len() / 2) } else { idle };
        for (_, key) in &clean[..count] {
            self.unload(key);
        }
    }

    /// Notes the last error of the object under `key`.
    pub fn note_error(&mut self, key: &ObjectKey, wall_ms: u64, failure: &Failure) {
        if let Some(error) = self.errors.get_mut(key) {
            *error = (wall_ms, failure.clone());
            return;
        }
        self.errors.insert(key.clone(), (wall_ms, failure.clone()));
        if self.errors.len() > ERRORS_MAX {
            self.errors.pop_first();
        }
    }

    /// The last error of the object under `key`, with its time in milliseconds since 1970.
    pub fn last_error(&self, key: &ObjectKey) -> Option<&(u64, Failure)> {
        self.errors.get(key)
    }

    /// There is another object under `key` now, or none.
    pub fn forget_error(&mut self, key: &ObjectKey) {
        if !self.errors.is_empty() {
            self.errors.remove(key);
        }
    }

    /// Number of objects that are loaded.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
}

fn hash_of(key: &ObjectKey, seed: u64) -> u64 {
    xxh3_64_with_seed(key.row(), seed)
}

fn is_of(residents: &[Option<Box<Resident>>], slot: usize, key: &ObjectKey) -> bool {
    let resident = residents.get(slot).and_then(Option::as_ref);
    resident.is_some_and(|resident| resident.key == *key)
}

/// A map of named values, in order of their names, without those that are not there.
pub(super) fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Option<Value>)>) -> Value {
    let mut entries: Vec<(&str, Option<Value>)> = entries.into_iter().collect();
    entries.sort_unstable_by_key(|(name, _)| *name);
    Value::Map(entries.into_iter().filter_map(|(name, value)| Some((Value::from(name), value?))).collect())
}
