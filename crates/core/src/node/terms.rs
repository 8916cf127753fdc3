//! Why an answered call of an active object is never undone: what a home writes is refused where it has not seen all.
//!
//! This module is about buckets with `aso_durability` = `quorum` and `r + w > n`. Any node may take itself for the home
//! of an object at any time, with knowledge of any age: it stood still, its messages were late, a split has two sides.
//! So no replica believes a home. The rules:
//!
//! 1. A home's write names one version, and says by its context what that version has **seen**. A primary takes it in
//!    only if it has seen all that the primary holds. Else it answers
//!    [`Uncovered`](crate::message::WriteOutcome) and keeps what it has. The home's own row is judged alike, before the
//!    version is stored there, and by rule 5 as well: the home may have promised a later term to another since it
//!    claimed its own. A row that cannot be read refuses.
//! 2. A call is answered when `max(w, n / 2 + 1)` primaries have taken its version in. Nobody stands in for them.
//! 3. A home runs a call on what `r` primaries hold, asked after the call came.
//! 4. A write that is refused, or not acknowledged in time, is taken back: the home's row becomes what it was, what was
//!    built on it is taken back with it, and what is loaded is forgotten. Each call concerned runs again on what is
//!    there now, or fails without saying that nothing happened.
//!
//! *Answered versions form one line.* Let `a` and `b` be answered. By rule 2 some primary took in both, say `a` first.
//! It took in `b` by rule 1, so `b` had seen what that primary held by then: `a`, or what had seen `a`. And a version
//! that has seen another was made of a state in which that one was joined or which it was made of.
//!
//! *An answer shows all that was answered before its call came.* By rules 2 and 3 the `r` primaries include one that
//! had taken in the last of those. This holds for what the sender of a forwarded call said of its own row too, however
//! old the message is: it was said after the call came.
//!
//! *A call counts once.* It runs again only if its refused version is nowhere in what it runs on: then nothing was made
//! of it. If it was left behind at a replica that nobody asked, the next version of this home supersedes it there,
//! since its context covers all dots of its actor. If something was made of that copy, either that or the new version
//! is refused by rule 1.
//!
//! What is left are versions that were refused or given up, whose home crashed before it took them back, or that few
//! primaries had taken in. They are concurrent with the line, and which side counts must not hang on the dot: a home
//! that stood still writes the greatest one. So:
//!
//! 5. Each home that loads an object begins a **term**, numbered above all terms that it has seen, with a number that
//!    no other home uses, and its versions carry the number. Before it writes anything in that term it **claims** it:
//!    `max(w, n / 2 + 1)` primaries promise, durably, to refuse earlier terms, if they hold nothing that it has not
//!    seen. The promise is kept until a version of that term or a later one is stored.
//! 6. Of concurrent versions of an active object the one of the latest term leads. A home that finds both joins the
//!    others to it, and its version has seen them all.
//!
//! *No such version leads over an answered one.* Let `a` be answered in term `s`, `u` a version of the later term `t`.
//! The claim of `t` and the write `a` share a primary. If that took `a` in first, it promised `t` to a home that had
//! seen `a`, and so have all versions of `t`. If it promised first, it refused `a` by rule 5. So `u` has seen `a`.
//! Within one term a home makes its versions one of another, each of which has seen those before.
//!
//! With `async` durability homes write as everybody does: terms decide there too, so what a home that stood still had
//! not written yet is joined to what its successor wrote, instead of the other way round.
//!
//! A changing ring has two groups of primaries, and claims and writes need their quorum of both (`put`). A term is
//! claimed anew when the ring's stamp changes, and a write whose primaries change meanwhile is not answered as done.
//!
//! Source: DESIGN §5; Rystsov, "CASPaxos: replicated state machines without logs", 2018, whose ballots are terms here.
//! Differs: a home claims once and then writes in one round trip; and since clients write plain values and deletes
//! without any home, a write is refused by what it has not seen too, and not only by its number.

use bytes::Bytes;

use super::active::refused;
use super::coordinate::Hop;
use super::homes::{Asked, Awaited, Job, Run, What};
use super::puts::{put_error, Update};
use super::{Node, Origin, Output, Task, Work};
use crate::active::owners_hash;
use crate::bucket::ActiveDurability;
use crate::causality::{Dot, VersionVector};
use crate::client::{ActiveError, Called, ClientError, Quorum, Reply};
use crate::get::Needed;
use crate::message::{TaskId, WriteOutcome};
use crate::object::Object;
use crate::put::Put;
use crate::replica::{hash_of, Held};
use crate::types::{NodeId, Now, ObjectKey};

/// A version of an active object that its home has stored.
pub(super) struct Written {
    /// The whole object.
    pub bytes: Bytes,
    /// The row that it replaced.
    pub before: Option<Bytes>,
    pub dot: Dot,
}

/// What to do if replicas refuse a home's write.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The row that was replaced here.
    before: Option<Bytes>,
    /// `None`: nothing was stored.
    dot: Option<Dot>,
    /// The call or the update to run again.
    again: Option<What>,
    /// [`owners_hash`] of the primaries that were asked.
    owners: u64,
    claim: Option<Claim>,
}

/// What is to be done when a term is promised.
#[derive(Clone, Copy, Debug)]
struct Claim {
    quorum: Quorum,
    then: Then,
    /// Others wait for it as for a handler that runs.
    holds_up: bool,
}

/// What a home wants to do with the loaded object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    Keep,
    Delete,
}

/// A home's write that is under way, for [`Node::withdraw`].
struct UnderWay {
    id: TaskId,
    object: Bytes,
    before: Option<Bytes>,
    is_answered: bool,
}

impl Node {
    /// True if what the home of `key` changes is answered when a quorum has it.
    pub(super) fn is_kept_by_quorum(&self, key: &ObjectKey) -> bool {
        self.durability(key) == ActiveDurability::Quorum
    }

    /// How many must take in what the home of `key` writes, if `needed` copies are asked for.
    pub(super) fn home_writes(&self, key: &ObjectKey, needed: Needed) -> Needed {
        if !self.is_kept_by_quorum(key) || self.counts_stand_ins() {
            return needed;
        }
        let total = needed.total.max(self.majority(key));
        Needed { total, primaries: total }
    }

    /// True if the bucket's own number of copies was asked for: if that changes, so does how many are needed.
    fn is_usual(&self, key: &ObjectKey, asked: Needed) -> bool {
        asked.total == self.usual_w(key).0
    }

    /// How many must have answered a home's read of `key`, if `needed` answers are asked for.
    pub(super) fn home_reads(&self, key: &ObjectKey, needed: Needed) -> Needed {
        if !self.is_kept_by_quorum(key) || self.counts_stand_ins() {
            return needed;
        }
        let total = needed.total.max(needed.primaries);
        Needed { total, primaries: total }
    }

    fn majority(&self, key: &ObjectKey) -> u8 {
        (self.replicas_of(key) / 2 + 1).min(u8::MAX as usize) as u8
    }

    #[cfg(feature = "sabotage")]
    pub(super) fn counts_stand_ins(&self) -> bool {
        self.config.sabotage == crate::config::Sabotage::CountStandIns
    }

    #[cfg(not(feature = "sabotage"))]
    pub(super) fn counts_stand_ins(&self) -> bool {
        false
    }

    /// True if this node's own row refuses what it writes as home of `key` in `term`, by rules 1 and 5: it holds
    /// something that a version which has `seen` so much has not, or cannot say what it holds, or has promised a later
    /// term meanwhile. `held`: its row, `None` if that cannot be read.
    pub(super) fn is_behind(
        &self,
        key: &ObjectKey,
        (seen, term): (&VersionVector, u64),
        held: Option<&(Object, Option<Bytes>)>,
    ) -> bool {
        let refuses = || {
            let is_covered = held.is_some_and(|(held, _)| seen.descends(held.context()));
            !is_covered || term < self.replica.promised(key)
        };
        self.is_kept_by_quorum(key) && refuses()
    }

    /// Why a write of an active object's home, or its claim, must be refused here: rules 1 and 5. `term` is 0 for all
    /// other writes.
    pub(super) fn refusal_of_home(
        &mut self,
        key: &ObjectKey,
        object: &Bytes,
        base: u64,
        term: u64,
    ) -> Option<WriteOutcome> {
        if term == 0 {
            return None;
        }
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::StoreUncovered {
            return None;
        }
        let promised = Some(self.replica.promised(key)).filter(|promised| *promised > term).unwrap_or(0);
        let is_refused = promised > 0 || !self.replica.is_covered(key, object, base);
        self.metrics.active_writes_refused += u64::from(is_refused);
        is_refused.then_some(WriteOutcome::Uncovered { promised })
    }

    /// A home claims a term: see rule 5.
    pub(super) fn serve_claim(
        &mut self,
        key: &ObjectKey,
        object: &Bytes,
        base: u64,
        term: u64,
    ) -> WriteOutcome {
        if self.read_only.is_some() {
            return WriteOutcome::ReadOnly;
        }
        if let Some(refusal) = self.refusal_of_home(key, object, base, term) {
            return refusal;
        }
        self.replica.promise(key, term);
        WriteOutcome::Durable
    }

    /// The number of the term that this node begins with what it has read of `key`.
    pub(super) fn next_term(&mut self, now: Now, key: &ObjectKey, read: &Object) -> u64 {
        let seen = read.term().max(self.replica.promised(key));
        let me = self.id();
        self.homes.next_term(now.wall_ms, seen, me)
    }

    /// True if the term of the loaded object is not promised yet by those who must take in what is written in it.
    pub(super) fn must_claim(&mut self, key: &ObjectKey) -> bool {
        let stamp = self.stamp();
        self.is_kept_by_quorum(key)
            && self.majority(key) > 1
            && self.homes.get(key).is_some_and(|resident| resident.claimed != stamp)
    }

    /// Claims the term of the loaded object, and then keeps what it has become. Others wait until then.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn claim(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        (quorum, then): (Quorum, Then),
        reply: Reply,
        again: Option<What>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let held = self.replica.load_object(key);
        let Some(resident) = self.homes.get(key) else {
            return self.written_by_others(key, origin, again, deadline_us, out);
        };
        let (seen, term) = (resident.seen.clone(), resident.term);
        if self.is_behind(key, (&seen, term), held.as_ref()) {
            return self.written_by_others(key, origin, again, deadline_us, out);
        }
        let asked = match self.write_quorum(key, quorum) {
            Ok(asked) => asked,
            Err(error) => return self.finish(origin, Err(error), out),
        };
        let (needed, is_usual) = (self.home_writes(key, asked), self.is_usual(key, asked));
        self.replica.promise(key, term);
        // A handler that waits for this holds up the others already.
        let is_held_up = self.homes.get(key).is_some_and(|resident| resident.run.is_some());
        if !is_held_up {
            let number = self.homes.wait(Awaited::Host(key.clone()));
            let job = Job { origin: Origin::Nobody, what: What::Place, deadline_us: u64::MAX };
            if let Some(resident) = self.homes.get(key) {
                resident.run = Some(Box::new(Run { number, job }));
            }
        }
        let base = held.and_then(|(_, bytes)| bytes).map_or(0, |bytes| hash_of(&bytes));
        let put =
            Put::new(key.clone(), Object::forgotten(seen).encode(), base, needed).of_claim(term, is_usual);
        let owners = owners_hash(&self.owners(key).0);
        let claim = Some(Claim { quorum, then, holds_up: !is_held_up });
        let refusal = Refusal { before: None, dot: None, again, owners, claim };
        self.start_put_of(now, origin, put, reply, Some(Box::new(refusal)), deadline_us, out);
    }

    /// Enough primaries have promised the term that this task claims.
    pub(super) fn claimed(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(Task { origin, deadline_us, work, .. }) = self.tasks.remove(id) else { return };
        let Work::Put { put, reply: Some(reply), refusal: Some(refusal) } = work else { return };
        let Refusal { again, claim, .. } = *refusal;
        let (key, stamp) = (put.key.clone(), self.stamp());
        let Some(claim) = claim else { return };
        let number = match self.homes.get(&key).filter(|resident| resident.term == put.term()) {
            // Another has been loaded meanwhile.
            None => {
                if !self.run_again(&key, origin, again, deadline_us) {
                    self.finish(origin, Err(refused(ActiveError::Replaced)), out);
                }
                return;
            }
            Some(resident) => {
                resident.claimed = stamp;
                resident.run.take_if(|_| claim.holds_up).map(|run| run.number)
            }
        };
        if let Some(number) = number {
            self.homes.answered(number);
        }
        match (claim.then, reply) {
            (Then::Delete, Reply::Called(Called { value, .. })) => {
                self.delete_active(now, &key, origin, claim.quorum, value, deadline_us, out)
            }
            (_, reply) => self.keep(now, &key, origin, claim.quorum, reply, again, deadline_us, out),
        }
        self.homes.unload_unused(&key);
        self.run_queue(now, &key, out);
    }

    /// Sends on what the home of `key` has stored here in its term of this number.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn start_home_put(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        (written, term): (Written, u64),
        needed: Needed,
        reply: Reply,
        again: Option<What>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        let Written { bytes, before, dot } = written;
        let base = before.as_ref().map_or(0, |before| hash_of(before));
        let put = Put::new(key.clone(), bytes, base, self.home_writes(key, needed));
        if !self.is_kept_by_quorum(key) {
            return self.start_put(now, origin, put, reply, deadline_us, out);
        }
        let owners = owners_hash(&self.owners(key).0);
        self.replica.keep_promise(key, term);
        let refusal = Some(Box::new(Refusal { before, dot: Some(dot), again, owners, claim: None }));
        let put = put.of_home(term, self.is_usual(key, needed));
        self.start_put_of(now, origin, put, reply, refusal, deadline_us, out);
    }

    /// Others have written what the loaded object has not seen, so that nothing of it could be stored.
    pub(super) fn written_by_others(
        &mut self,
        key: &ObjectKey,
        origin: Origin,
        again: Option<What>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        self.replace_resident(key, out);
        if !self.run_again(key, origin, again, deadline_us) {
            self.finish(origin, Err(refused(ActiveError::Replaced)), out);
        }
    }

    /// An update that was refused, and reads so many now that one among them must take the next version in.
    fn reading_more(&self, key: &ObjectKey, mut update: Update) -> Update {
        let quorums = (self.read_quorum(key, update.quorum), self.write_quorum(key, update.quorum));
        if let (Ok(reads), Ok(writes)) = quorums {
            update.quorum.r = Some(reads.total.max(self.home_writes(key, writes).total));
        }
        update
    }

    /// Has a call or an update start anew at the end of this step. False if there is none, or nobody waits for it.
    fn run_again(&mut self, key: &ObjectKey, origin: Origin, again: Option<What>, deadline_us: u64) -> bool {
        let Some(what) = again.filter(|_| matches!(origin, Origin::Client(_) | Origin::Peer(..))) else {
            return false;
        };
        self.metrics.active_reruns += 1;
        let what = match what {
            What::Update(update) => What::Update(Box::new(self.reading_more(key, *update))),
            other => other,
        };
        let job = Job { origin, what, deadline_us };
        self.homes.orphan(key, std::iter::once(job));
        true
    }

    /// Starts a call anew here: it waited for what has been replaced, or its version was refused.
    pub(super) fn restart_call(
        &mut self,
        now: Now,
        origin: Origin,
        key: ObjectKey,
        mut asked: Box<Asked>,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        if now.mono_us >= deadline_us {
            return self.finish(origin, Err(refused(ActiveError::TimedOut)), out);
        }
        asked.hop = Hop::Last;
        let (reads, writes) = (self.read_quorum(&key, asked.quorum), self.write_quorum(&key, asked.quorum));
        match (reads, writes) {
            (Ok(reads), Ok(writes)) => {
                let mut needed = self.home_reads(&key, reads);
                if asked.tried.is_some() {
                    // Among so many is one that must take the next version in.
                    let writes = self.home_writes(&key, writes);
                    needed.total = needed.total.max(writes.total);
                }
                self.begin_call(now, origin, key, asked, needed, deadline_us, out)
            }
            (Err(error), _) | (_, Err(error)) => self.finish(origin, Err(error), out),
        }
    }

    /// True if what is loaded may have counted the call whose refused version was `tried`: asked just before the call
    /// runs on it, since what was taken back may have come back meanwhile, from a get that had found it before.
    pub(super) fn may_have_counted(&mut self, key: &ObjectKey, tried: Dot) -> bool {
        let is_covered = self.homes.get(key).is_none_or(|resident| resident.seen.covers(tried));
        is_covered || self.replica.writing_actor() != tried.actor
    }

    /// The write or claim of this task, which nobody was answered, cannot succeed, or its time is up: rule 4.
    pub(super) fn withdraw(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(Task { work: Work::Put { put, .. }, .. }) = self.tasks.get_mut(id) else { return };
        let (key, term, is_claim) = (put.key.clone(), put.term(), put.is_claim());
        let was_refused = put.was_refused();
        let serving = self.owners(&key).0;
        let has_moved = self.has_lost_quorum(id, &serving);
        let mut taken_back = Vec::new();
        if !is_claim {
            taken_back = self.put_back(&key, id);
            self.replica.promise(&key, term);
        }
        let is_undone = is_claim || !taken_back.is_empty();
        if taken_back.is_empty() {
            taken_back.push(id);
        }
        if !is_claim || self.homes.get(&key).is_some_and(|resident| resident.term == term) {
            self.replace_resident(&key, out);
        }
        for one in taken_back {
            let Some(Task { origin, started_us, deadline_us, work }) = self.tasks.remove(one) else {
                continue;
            };
            let Work::Put { put, refusal: Some(refusal), .. } = work else { continue };
            let Refusal { dot, again, .. } = *refusal;
            // Where primaries are silent, it would only wait for them anew: so do those that have time left for that.
            let may_succeed = was_refused || has_moved || one != id;
            let again = again.filter(|_| is_undone && may_succeed && now.mono_us < deadline_us);
            let again = match again {
                // Of several such writes the first: who has seen a later one of this actor has seen it too.
                Some(What::Call(asked)) => {
                    let tried = asked.tried.or(dot);
                    if tried.is_some() {
                        self.doubt(origin);
                    }
                    Some(What::Call(Box::new(Asked { tried, ..*asked })))
                }
                // Whether what runs then has its refused version in it, nobody could say.
                Some(What::Update(_)) if !is_claim => None,
                again => again,
            };
            if !self.run_again(&key, origin, again, deadline_us) {
                let error = match was_refused || has_moved {
                    true => ClientError::OutcomeUnknown,
                    false => put_error(&put, now, started_us),
                };
                self.answer_put(origin, Err(error), out);
            }
        }
    }

    /// Whatever becomes of the request of this origin from now on, an error must not say that nothing has happened.
    pub(super) fn doubt(&mut self, origin: Origin) {
        match origin {
            Origin::Client(id) => {
                self.doubtful.insert(id);
            }
            Origin::Peer(peer, task) => {
                self.doubtful_of_peers.insert((peer, task));
            }
            _ => {}
        }
    }

    /// Makes the row of `key` what it was before the write of task `id`, if it holds only that and what was built on
    /// it, none of which was answered. Returns the tasks of these writes, in order; none if nothing was done.
    fn put_back(&mut self, key: &ObjectKey, id: TaskId) -> Vec<TaskId> {
        let under_way = self.home_puts(key);
        let mut row = match self.replica.load(key) {
            Held::Object(bytes) => Some(bytes),
            Held::Missing | Held::Corrupt => None,
        };
        let mut taken_back = Vec::new();
        while taken_back.last() != Some(&id) {
            let is_it = |one: &&UnderWay| Some(&one.object) == row.as_ref() && !one.is_answered;
            let Some(one) = under_way.iter().find(is_it) else { return Vec::new() };
            taken_back.push(one.id);
            row = one.before.clone();
        }
        if self.read_only.is_some() {
            return Vec::new();
        }
        self.replica.put_back(key, row);
        taken_back.reverse();
        taken_back
    }

    /// True if this node, the home of `key`, may still take back what its row holds.
    pub(super) fn may_take_back(&mut self, key: &ObjectKey) -> bool {
        self.home_puts(key).iter().any(|put| !put.is_answered)
    }

    /// The home's writes of `key` that are under way.
    fn home_puts(&mut self, key: &ObjectKey) -> Vec<UnderWay> {
        let mut found = Vec::new();
        for id in self.tasks.ids() {
            let Some(Task { work: Work::Put { put, reply, refusal: Some(refusal) }, .. }) =
                self.tasks.get_mut(id)
            else {
                continue;
            };
            if put.key == *key && !put.is_claim() {
                let (object, before) = (put.object.clone(), refusal.before.clone());
                found.push(UnderWay { id, object, before, is_answered: reply.is_none() });
            }
        }
        found
    }

    /// True if the ring has other primaries for an unanswered write of a home than those that its term is promised by.
    pub(super) fn has_lost_quorum(&mut self, id: TaskId, serving: &[NodeId]) -> bool {
        let Some(Task { work: Work::Put { reply: Some(_), refusal: Some(refusal), .. }, .. }) =
            self.tasks.get_mut(id)
        else {
            return false;
        };
        refusal.owners != owners_hash(serving)
    }
}
