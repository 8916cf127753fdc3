//! Which write saw which: dots, version vectors and the dotted version vector set.
//!
//! Every write gets a **dot**, a name used once: the actor that made it and that actor's counter. A **version
//! vector** says, for each actor, up to which counter its writes have been seen; clients carry one, opaque, as their
//! context. A [`DvvSet`] is an object's siblings, each under its dot, with the one vector of everything the set has
//! ever seen. A dot that the vector covers and the set no longer holds was superseded.
//!
//! Source: Preguiça, Baquero, Almeida, Fonte and Gonçalves, "Dotted version vectors", 2012; Dynamo §4.4.
//! Differs: counters are hybrid clock readings and have gaps, so siblings keep their own dots instead of being
//! counted back from the newest. That needs one law, kept by `node`: whoever knows a dot of an actor knows all earlier
//! dots of that actor for the key. Read `clock` next, for where counters come from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Reader, Writer};
use crate::types::ActorId;

/// The name of exactly one write. Dots are ordered by counter first: the greatest is the newest by the hybrid clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Dot {
    /// A hybrid clock reading: milliseconds since 1970 in the top 48 bits.
    pub counter: u64,
    /// Who made the write.
    pub actor: ActorId,
}

impl Dot {
    /// The writer's clock at the write, in milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        self.counter >> 16
    }
}

/// For each actor the greatest counter seen. An absent actor counts as 0.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VersionVector(Vec<(ActorId, u64)>); // sorted by actor

impl VersionVector {
    /// True if this has seen `dot`.
    pub fn covers(&self, dot: Dot) -> bool {
        self.counter(dot.actor) >= dot.counter
    }

    /// The greatest counter seen of `actor`, 0 if none.
    pub fn counter(&self, actor: ActorId) -> u64 {
        self.0.iter().find(|(a, _)| *a == actor).map_or(0, |(_, counter)| *counter)
    }

    /// Records that `dot`, and all earlier dots of its actor, were seen.
    pub fn add(&mut self, dot: Dot) {
        match self.0.binary_search_by_key(&dot.actor, |(actor, _)| *actor) {
            Ok(i) => self.0[i].1 = self.0[i].1.max(dot.counter),
            Err(i) => self.0.insert(i, (dot.actor, dot.counter)),
        }
    }

    /// Records everything `other` has seen.
    pub fn merge(&mut self, other: &VersionVector) {
        for dot in other.dots() {
            self.add(dot);
        }
    }

    /// True if this has seen all that `other` has.
    pub fn descends(&self, other: &VersionVector) -> bool {
        other.dots().all(|dot| self.covers(dot))
    }

    /// True if this has seen all that `other` has, and more.
    pub fn dominates(&self, other: &VersionVector) -> bool {
        self.descends(other) && !other.descends(self)
    }

    /// The newest dot seen of each actor, in order of actors.
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0.iter().map(|&(actor, counter)| Dot { counter, actor })
    }

    /// True if nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of actors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends the count, then 8 bytes of actor and 8 bytes of counter each.
    pub fn encode(&self, out: &mut Writer) {
        out.varint(self.0.len() as u64);
        for (actor, counter) in &self.0 {
            out.fixed(actor.0);
            out.fixed(*counter);
        }
    }

    /// Errors: truncated, actors not in strictly ascending order, or a counter of 0, which stands for an absent actor.
    pub fn decode(input: &mut Reader) -> Result<VersionVector, DecodeError> {
        let count = input.count(16, "version vector")?;
        let mut entries = Vec::with_capacity(count + 1);
        for _ in 0..count {
            let entry = (ActorId(input.fixed("actor")?), input.fixed("counter")?);
            if entries.last().is_some_and(|last: &(ActorId, u64)| last.0 >= entry.0) {
                return Err(DecodeError::Invalid { field: "version vector order" });
            }
            if entry.1 == 0 {
                return Err(DecodeError::Invalid { field: "counter" });
            }
            entries.push(entry);
        }
        Ok(VersionVector(entries))
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> VersionVector {
        let mut vector = VersionVector::default();
        dots.into_iter().for_each(|dot| vector.add(dot));
        vector
    }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(a, c)| (a, c))).finish()
    }
}

/// The concurrent values of one key, each under its dot, and one vector of all dots ever seen.
///
/// Invariant: the vector covers every dot in the set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DvvSet<T> {
    context: VersionVector,
    values: Vec<(Dot, T)>, // ascending dots
}

impl<T> Default for DvvSet<T> {
    fn default() -> DvvSet<T> {
        DvvSet { context: VersionVector::default(), values: Vec::new() }
    }
}

impl<T> DvvSet<T> {
    /// Joins parts read back from bytes. Errors: dots out of order, or one that `context` does not cover.
    pub fn from_parts(context: VersionVector, values: Vec<(Dot, T)>) -> Result<DvvSet<T>, DecodeError> {
        if values.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(DecodeError::Invalid { field: "sibling order" });
        }
        if !values.iter().all(|(dot, _)| context.covers(*dot)) {
            return Err(DecodeError::Invalid { field: "sibling outside its context" });
        }
        Ok(DvvSet { context, values })
    }

    /// Everything this set has seen: what a client reads, and sends back with its next write.
    pub fn context(&self) -> &VersionVector {
        &self.context
    }

    /// The siblings, oldest dot first.
    pub fn values(&self) -> &[(Dot, T)] {
        &self.values
    }

    /// The sibling with the greatest dot.
    pub fn newest(&self) -> Option<&(Dot, T)> {
        self.values.last()
    }

    /// Writes `value` as `dot`, replacing exactly the siblings that `seen` covers.
    ///
    /// `dot` must be newer than every dot of its actor in the set, and in `seen`.
    pub fn put(&mut self, seen: &VersionVector, dot: Dot, value: T) {
        assert!(!self.context.covers(dot), "dot {dot:?} was used before");
        self.values.retain(|(held, _)| !seen.covers(*held));
        self.context.merge(seen);
        self.context.add(dot);
        let at = self.values.partition_point(|(held, _)| *held < dot);
        self.values.insert(at, (dot, value));
    }

    /// Drops every sibling that `keep` refuses. The context still covers them.
    pub fn retain(&mut self, keep: impl Fn(Dot, &T) -> bool) {
        self.values.retain(|(dot, value)| keep(*dot, value));
    }

    /// Lets `change` put another form of the same write in the place of each sibling.
    pub fn update(&mut self, mut change: impl FnMut(Dot, &mut T)) {
        self.values.iter_mut().for_each(|(dot, value)| change(*dot, value));
    }

    /// Drops the sibling `dot`, if held. The context still covers it.
    pub fn remove(&mut self, dot: Dot) {
        self.values.retain(|(held, _)| *held != dot);
    }

    /// The same set of dots over other values.
    pub fn map<U>(&self, convert: impl Fn(&T) -> U) -> DvvSet<U> {
        DvvSet {
            context: self.context.clone(),
            values: self.values.iter().map(|(dot, value)| (*dot, convert(value))).collect(),
        }
    }
}

impl<T: Clone> DvvSet<T> {
    /// Merges in what another replica knows: a sibling stays if both hold it, or if the side without it never saw it.
    ///
    /// Commutative, associative and idempotent.
    pub fn merge(&mut self, other: &DvvSet<T>) {
        let mut added: Vec<(Dot, T)> = Vec::new();
        for (dot, value) in &other.values {
            if !self.context.covers(*dot) {
                added.push((*dot, value.clone()));
            }
        }
        self.values.retain(|(dot, _)| {
            !other.context.covers(*dot) || other.values.binary_search_by_key(dot, |(d, _)| *d).is_ok()
        });
        if !added.is_empty() {
            self.values.extend(added);
            self.values.sort_unstable_by_key(|(dot, _)| *dot);
        }
        self.context.merge(&other.context);
    }
}
