//! Counting the answers to a get: whom to ask, when it is enough, and who turned out stale.
//!
//! Pure bookkeeping without sending anything; `node` does that. The first `r` replicas are asked, primaries first; when
//! one is late or fails, the next. While a primary is down its fallbacks are asked too, since a hint may be the only
//! other copy, and a fallback's "I have nothing" counts only when nobody is left to wait for.
//!
//! Source: Dynamo §4.5, §4.6. Differs: asks `r` first instead of all, with a hedge for the tail (Dean and Barroso, "The
//! tail at scale", 2013).

use bytes::Bytes;

use crate::causality::Dot;
use crate::message::ReadOutcome;
use crate::object::Object;
use crate::replica::hash_of;
use crate::types::{NodeId, ObjectKey};

/// How many answers are needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needed {
    /// Answers of any kind of replica.
    pub total: u8,
    /// Of these, from primaries.
    pub primaries: u8,
}

impl Needed {
    /// The same where there are only so many replicas.
    pub fn at_most(self, replicas: usize) -> Needed {
        let replicas = replicas.min(u8::MAX as usize) as u8;
        Needed { total: self.total.min(replicas), primaries: self.primaries.min(replicas) }
    }

    /// One fewer, but at least one.
    #[cfg(feature = "sabotage")]
    pub fn one_less(self) -> Needed {
        Needed { total: (self.total - 1).max(1), primaries: self.primaries.saturating_sub(1) }
    }
}

/// A replica that may be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub node: NodeId,
    pub is_primary: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Unasked,
    /// With the hash it was to compare with.
    Asked(u64),
    /// With the hash of the bytes it holds, 0 for none.
    Answered(u64),
    /// Its row cannot be read: it wants what the others hold.
    Unreadable,
    /// Was unreadable, and was given what the others hold.
    Restored,
    Failed,
}

/// Where a get or a put stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Enough replicas answered.
    Done,
    Waiting,
    /// Not enough, and nobody is left to ask.
    Impossible,
}

/// The answers so far.
#[derive(Clone, Debug)]
pub struct Get {
    pub key: ObjectKey,
    /// What was asked for, however many replicas there are now: the ring may grow.
    asked: Needed,
    needed: Needed,
    lww: bool,
    /// Asks for the code and state of active objects that `merged` has husks of.
    for_bodies: bool,
    replicas: Vec<(Candidate, State)>,
    /// Replicas that have been silent for long: asked only where the others are not enough.
    aside: Vec<NodeId>,
    /// Objects with a greater reading are from a clock far ahead and not taken in.
    reading_max: u64,
    merged: Object,
    /// Hash of `merged`'s bytes, if they are known.
    merged_hash: Option<u64>,
    merged_bytes: Option<Bytes>,
    /// Bytes of this hash are known to be an object, and what is in it: they are decoded only when they must be.
    trusted_hash: u64,
    /// `merged` is still to be decoded from its bytes.
    is_undecoded: bool,
}

impl Get {
    /// `asked` answers are needed, or as many as the key has replicas: `copies`.
    /// `candidates`: in the order in which to ask them. `lww`: only the greatest dot counts.
    /// `reading_max`: the greatest clock reading that is believed.
    pub fn new(
        key: ObjectKey,
        asked: Needed,
        copies: usize,
        lww: bool,
        reading_max: u64,
        candidates: Vec<Candidate>,
    ) -> Get {
        let replicas = candidates.into_iter().map(|candidate| (candidate, State::Unasked)).collect();
        let (merged, merged_hash, merged_bytes) = (Object::default(), Some(0), None);
        let needed = asked.at_most(copies);
        let (for_bodies, trusted_hash, is_undecoded, aside) = (false, 0, false, Vec::new());
        Get {
            key,
            asked,
            needed,
            lww,
            for_bodies,
            replicas,
            aside,
            reading_max,
            merged,
            merged_hash,
            merged_bytes,
            trusted_hash,
            is_undecoded,
        }
    }

    /// The second half of the get that found `merged`: asks the `holders` of what is missing in it. `asked`: as many
    /// answers as the first half needed, should it begin anew.
    pub fn for_bodies(
        key: ObjectKey,
        asked: Needed,
        lww: bool,
        reading_max: u64,
        merged: Object,
        holders: Vec<NodeId>,
    ) -> Get {
        let candidates = holders.into_iter().map(|node| Candidate { node, is_primary: false }).collect();
        let get = Get::new(key, asked, 1, lww, reading_max, candidates);
        Get { for_bodies: true, merged, merged_hash: None, ..get }
    }

    /// True if it asks for what a get before has found missing.
    pub fn is_for_bodies(&self) -> bool {
        self.for_bodies
    }

    /// Bytes of this hash, if it is not 0, are known: an object with one version, which was believed before.
    pub fn trust(&mut self, hash: u64) {
        self.trusted_hash = hash;
    }

    /// How many replicas to ask at first: as many as are needed, all of them while any primary is missing.
    pub fn first_count(&self) -> usize {
        let is_degraded = self.replicas.iter().any(|(candidate, _)| !candidate.is_primary);
        let needed = self.needed.total.max(self.needed.primaries) as usize;
        if is_degraded {
            (self.replicas.len() - self.aside.len()).max(needed)
        } else {
            needed
        }
    }

    /// `node` has been silent for long. Its answer is still welcome, and waited for where the others are not enough.
    pub fn set_aside(&mut self, node: NodeId) {
        if !self.aside.contains(&node) {
            self.aside.push(node);
        }
    }

    /// Another replica that may be asked, unless it is known already. True if it is new.
    pub fn add(&mut self, candidate: Candidate) -> bool {
        let is_new = !self.replicas.iter().any(|(known, _)| known.node == candidate.node);
        if is_new {
            self.replicas.push((candidate, State::Unasked));
        }
        is_new
    }

    /// `node` cannot be asked, or what it was asked cannot be answered.
    pub fn rule_out(&mut self, node: NodeId) {
        for (candidate, state) in &mut self.replicas {
            if candidate.node == node && matches!(state, State::Asked(_) | State::Unasked) {
                *state = State::Failed;
            }
        }
    }

    /// Marks one more replica as asked; returns it and the hash it compares with, so that it need not send what is
    /// known: 0 if nothing is.
    pub fn ask_next(&mut self) -> Option<(NodeId, u64)> {
        let Get { replicas, aside, .. } = self;
        let unasked = || replicas.iter().position(|(_, state)| *state == State::Unasked);
        let first = match aside.is_empty() {
            true => unasked(),
            false => {
                let is_better = |(candidate, state): &(Candidate, State)| {
                    *state == State::Unasked && !aside.contains(&candidate.node)
                };
                replicas.iter().position(is_better).or_else(unasked)
            }
        };
        let (candidate, state) = &mut self.replicas[first?];
        let have = self.merged_hash.filter(|_| !self.for_bodies).unwrap_or(0);
        *state = State::Asked(have);
        Some((candidate.node, have))
    }

    /// Takes in what `node` holds. False if it had not been asked.
    pub fn answer(&mut self, node: NodeId, outcome: &ReadOutcome) -> bool {
        let Some((index, asked_with)) = self.index_of_asked(node) else {
            return false;
        };
        self.replicas[index].1 = match outcome {
            ReadOutcome::Same => State::Answered(asked_with),
            ReadOutcome::Missing => State::Answered(0),
            ReadOutcome::Failed => State::Unreadable,
            // Once the coordinator knows the newer ring it asks anew.
            ReadOutcome::Stale => State::Asked(asked_with),
            ReadOutcome::Object(bytes) => match self.merge(bytes) {
                Some(hash) => State::Answered(hash),
                None => State::Failed,
            },
        };
        true
    }

    /// Takes in what the coordinator itself holds. It was believed when it came, so the clock, which may have gone back
    /// since, does not judge it again.
    pub fn answer_own(&mut self, node: NodeId, outcome: &ReadOutcome) {
        let reading_max = std::mem::replace(&mut self.reading_max, u64::MAX);
        self.answer(node, outcome);
        self.reading_max = reading_max;
    }

    /// Takes it as an answer that `node`, which was not asked yet, has said that it holds an object of this hash, if
    /// that is what was found so far. True if it is.
    pub fn answer_ahead(&mut self, node: NodeId, hash: u64) -> bool {
        let is_it = |(candidate, state): &&mut (Candidate, State)| {
            candidate.node == node && candidate.is_primary && *state == State::Unasked
        };
        let found =
            self.replicas.iter_mut().find(is_it).filter(|_| hash != 0 && self.merged_hash == Some(hash));
        found.map(|(_, state)| *state = State::Answered(hash)).is_some()
    }

    /// Counts `node` out, if it was asked and did not answer. True if it was.
    pub fn fail(&mut self, node: NodeId) -> bool {
        match self.index_of_asked(node) {
            Some((index, _)) => {
                self.replicas[index].1 = State::Failed;
                true
            }
            None => false,
        }
    }

    fn index_of_asked(&self, node: NodeId) -> Option<(usize, u64)> {
        self.replicas.iter().enumerate().find_map(|(index, (candidate, state))| match state {
            State::Asked(have) if candidate.node == node => Some((index, *have)),
            _ => None,
        })
    }

    fn merge(&mut self, bytes: &Bytes) -> Option<u64> {
        let hash = hash_of(bytes);
        if self.merged_hash == Some(hash) && !self.merged.has_husk() {
            return Some(hash);
        }
        if self.merged_hash == Some(0) && hash == self.trusted_hash {
            (self.merged_hash, self.merged_bytes, self.is_undecoded) =
                (Some(hash), Some(bytes.clone()), true);
            return Some(hash);
        }
        let mut object = Object::decode(bytes).ok()?;
        self.decode();
        let is_lie = |dot: Dot| dot.counter > self.reading_max && !self.merged.context().covers(dot);
        if object.context().dots().any(is_lie) {
            return None;
        }
        if self.merged_hash == Some(0) {
            let siblings = object.0.values().len();
            if self.lww {
                object.keep_newest();
            }
            // Siblings from before the bucket was `lww` are dropped, which repairs the replica too.
            let is_as_held = object.0.values().len() == siblings;
            self.merged = object;
            self.merged_hash = is_as_held.then_some(hash);
            self.merged_bytes = is_as_held.then(|| bytes.clone());
            return Some(hash);
        }
        self.merged.merge(&object);
        if self.lww {
            self.merged.keep_newest();
        }
        self.merged_hash = None;
        self.merged_bytes = None;
        Some(hash)
    }

    fn decode(&mut self) {
        if std::mem::take(&mut self.is_undecoded) {
            let object = self.merged_bytes.as_ref().map(Object::decode);
            self.merged = object.and_then(Result::ok).unwrap_or_default();
        }
    }

    /// Whether it is enough.
    pub fn progress(&self) -> Progress {
        let counts = |empty_fallbacks: bool| {
            let (mut total, mut primaries) = (0u8, 0u8);
            for (candidate, state) in &self.replicas {
                if let State::Answered(hash) = state {
                    primaries += candidate.is_primary as u8;
                    total += (candidate.is_primary || empty_fallbacks || *hash != 0) as u8;
                }
            }
            total >= self.needed.total && primaries >= self.needed.primaries
        };
        let may_answer = |state: &State| matches!(state, State::Asked(_) | State::Unasked);
        let is_waiting = || self.replicas.iter().any(|(_, state)| may_answer(state));
        let is_waiting_for_better = || {
            let mut replicas = self.replicas.iter();
            replicas.any(|(one, state)| may_answer(state) && !self.aside.contains(&one.node))
        };
        match () {
            // In the end it has what there was.
            _ if self.for_bodies && is_waiting() && self.merged.has_husk() => Progress::Waiting,
            _ if self.for_bodies => Progress::Done,
            _ if counts(false) => Progress::Done,
            _ if is_waiting_for_better() => Progress::Waiting,
            _ if counts(true) => Progress::Done,
            _ if is_waiting() => Progress::Waiting,
            _ => Progress::Impossible,
        }
    }

    /// True while an asked replica has not answered.
    pub fn is_outstanding(&self) -> bool {
        self.outstanding().next().is_some()
    }

    /// Replicas that were asked and have not answered.
    pub fn outstanding(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas
            .iter()
            .filter(|(_, state)| matches!(state, State::Asked(_)))
            .map(|(candidate, _)| candidate.node)
    }

    /// Number of replicas that answered.
    pub fn answered(&self) -> u8 {
        self.replicas.iter().filter(|(_, state)| matches!(state, State::Answered(_))).count() as u8
    }

    /// Number of replicas that could be asked.
    pub fn replicas(&self) -> u8 {
        self.replicas.len() as u8
    }

    pub fn needed(&self) -> Needed {
        self.needed
    }

    /// What was asked for, of however many replicas.
    pub fn asked(&self) -> Needed {
        self.asked
    }

    /// Everything the answers held, merged.
    pub fn merged(&mut self) -> &Object {
        self.decode();
        &self.merged
    }

    /// Everything the answers held, merged.
    pub fn into_merged(mut self) -> Object {
        self.decode();
        self.merged
    }

    /// True if all answers were the bytes that are known, which were not looked into.
    pub fn is_trusted(&self) -> bool {
        self.is_undecoded
    }

    /// The hash of the merged object's bytes; 0 if nothing was found or it is not known.
    pub fn merged_hash(&self) -> u64 {
        self.merged_hash.unwrap_or(0)
    }

    /// The merged object's bytes with the primaries that hold something else, or nothing readable; `None` if nothing is
    /// stored or all agree.
    ///
    /// Each stale replica is named once: it counts as repaired from then on.
    pub fn take_repairs(&mut self) -> Option<(Bytes, Vec<NodeId>)> {
        if self.merged_hash == Some(0) {
            return None;
        }
        let hash = match self.merged_hash {
            Some(hash) => hash,
            None => {
                let bytes = self.merged.encode();
                let hash = hash_of(&bytes);
                (self.merged_bytes, self.merged_hash) = (Some(bytes), Some(hash));
                hash
            }
        };
        let mut stale = Vec::new();
        for (candidate, state) in &mut self.replicas {
            *state = match *state {
                State::Answered(held) if candidate.is_primary && held != hash => State::Answered(hash),
                State::Unreadable if candidate.is_primary => State::Restored,
                _ => continue,
            };
            stale.push(candidate.node);
        }
        let bytes = self.merged_bytes.clone()?;
        (!stale.is_empty()).then_some((bytes, stale))
    }

    /// Like [`Get::take_repairs`], for the one replica `node` if its row could not be read.
    pub fn take_restored(&mut self, node: NodeId) -> Option<Bytes> {
        if self.is_undecoded && self.replicas.iter().all(|(_, state)| *state != State::Unreadable) {
            return None;
        }
        self.decode();
        if self.merged.is_unknown() {
            return None;
        }
        let is_it = |(candidate, state): &&mut (Candidate, State)| {
            candidate.node == node && *state == State::Unreadable
        };
        let (_, state) = self.replicas.iter_mut().find(is_it)?;
        *state = State::Restored;
        Some(self.merged.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causality::{Dot, VersionVector};
    use crate::object::Version;
    use crate::types::ActorId;

    fn object(actor: u64, counter: u64) -> Bytes {
        let mut object = Object::default();
        let dot = Dot { counter, actor: ActorId(actor) };
        object.0.put(&VersionVector::default(), dot, Version::bytes("v"));
        object.encode()
    }

    fn get(total: u8, primaries: &[bool]) -> Get {
        let key = ObjectKey::new(b"b", b"k").unwrap();
        let candidates = primaries.iter().enumerate();
        let candidates = candidates.map(|(i, &is_primary)| Candidate { node: NodeId(i as u64), is_primary });
        Get::new(key, Needed { total, primaries: 0 }, 9, false, u64::MAX, candidates.collect())
    }

    #[test]
    fn r_answers_are_enough_and_the_stale_one_is_repaired() {
        let mut get = get(2, &[true, true, true]);
        assert_eq!(get.first_count(), 2);
        assert_eq!(get.ask_next(), Some((NodeId(0), 0)));
        assert_eq!(get.ask_next(), Some((NodeId(1), 0)));
        assert!(get.answer(NodeId(0), &ReadOutcome::Object(object(1, 1))));
        assert_eq!(get.progress(), Progress::Waiting);
        assert!(!get.answer(NodeId(2), &ReadOutcome::Missing), "was not asked");
        assert!(get.answer(NodeId(1), &ReadOutcome::Missing));
        assert!(!get.answer(NodeId(1), &ReadOutcome::Missing), "answered before");
        assert_eq!(get.progress(), Progress::Done);
        assert_eq!(get.take_repairs(), Some((object(1, 1), vec![NodeId(1)])));
        assert_eq!(get.take_repairs(), None);
    }

    #[test]
    fn the_same_hash_is_the_same_object() {
        let mut get = get(2, &[true, true]);
        get.ask_next();
        get.answer(NodeId(0), &ReadOutcome::Object(object(1, 1)));
        assert_eq!(get.ask_next(), Some((NodeId(1), hash_of(&object(1, 1)))));
        get.answer(NodeId(1), &ReadOutcome::Same);
        assert_eq!(get.progress(), Progress::Done);
        assert_eq!(get.take_repairs(), None);
    }

    #[test]
    fn what_is_trusted_is_looked_into_only_when_others_hold_something_else() {
        let (known, other) = (object(1, 1), object(2, 1));
        for answer in [ReadOutcome::Same, ReadOutcome::Object(other.clone())] {
            let mut get = get(2, &[true, true]);
            get.trust(hash_of(&known));
            get.ask_next();
            get.answer_own(NodeId(0), &ReadOutcome::Object(known.clone()));
            get.ask_next();
            get.answer(NodeId(1), &answer);
            assert_eq!(get.progress(), Progress::Done);
            assert_eq!(get.is_trusted(), answer == ReadOutcome::Same);
            let mut merged = Object::decode(&known).unwrap();
            if answer != ReadOutcome::Same {
                merged.merge(&Object::decode(&other).unwrap());
                assert_eq!(get.take_repairs(), Some((merged.encode(), vec![NodeId(0), NodeId(1)])));
            }
            assert_eq!(*get.merged(), merged);
        }
    }

    #[test]
    fn what_a_node_has_said_unasked_counts_if_it_is_the_same() {
        let hash = hash_of(&object(1, 1));
        for (node, hash, counts) in
            [(1, hash, true), (1, hash + 1, false), (0, hash, false), (7, hash, false)]
        {
            let mut get = get(2, &[true, true, true]);
            get.ask_next();
            get.answer_own(NodeId(0), &ReadOutcome::Object(object(1, 1)));
            assert_eq!(get.answer_ahead(NodeId(node), hash), counts);
            assert_eq!(get.progress() == Progress::Done, counts);
        }
        let mut get = get(2, &[true, true]);
        assert!(!get.answer_ahead(NodeId(1), 0), "nothing is no object");
    }

    #[test]
    fn a_failure_asks_the_next_until_nobody_is_left() {
        let mut get = get(2, &[true, true, true]);
        get.ask_next();
        get.ask_next();
        get.fail(NodeId(0));
        assert_eq!(get.ask_next(), Some((NodeId(2), 0)));
        get.fail(NodeId(1));
        get.answer(NodeId(2), &ReadOutcome::Missing);
        assert_eq!(get.progress(), Progress::Impossible);
        assert_eq!(get.answered(), 1);
    }

    #[test]
    fn an_empty_fallback_counts_only_when_nobody_is_left_to_wait_for() {
        let mut get = get(2, &[true, false, false]);
        assert_eq!(get.first_count(), 3);
        while get.ask_next().is_some() {}
        get.answer(NodeId(0), &ReadOutcome::Missing);
        get.answer(NodeId(1), &ReadOutcome::Missing);
        assert_eq!(get.progress(), Progress::Waiting);
        get.answer(NodeId(2), &ReadOutcome::Object(object(1, 1)));
        assert_eq!(get.progress(), Progress::Done);
        assert!(!get.merged().is_unknown());
    }
}
