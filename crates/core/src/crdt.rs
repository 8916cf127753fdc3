//! Values that converge by themselves. So far the counter.
//!
//! A counter is the number it started from and, per actor, the sum of what that actor added. Concurrent states of one
//! counter stay separate siblings in the store and are merged when they are read or counted on, so the merge
//! never has to invent a dot and replicas stay byte-identical.
//!
//! Source: Shapiro et al., "A comprehensive study of convergent and commutative replicated data types", 2011
//! (G-counter).
//! Differs: an actor's entry carries the dot counter of its last addition instead of being split into increments and
//! decrements; the later entry wins, which an actor that forgets nothing makes safe.

use crate::causality::{Dot, VersionVector};
use crate::codec::{DecodeError, Reader, Writer};
use crate::types::ActorId;

/// An integer that concurrent increments on several replicas cannot lose.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// The version this counter was made from: counters merge only with counters of the same origin.
    /// `None`: it began on a key that had never been written.
    pub origin: Option<Dot>,
    /// The number it began with.
    pub base: i64,
    totals: Vec<Total>, // ascending actors
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Total {
    actor: ActorId,
    last: u64, // the dot counter of the actor's last addition
    /// Wider than the number itself: what one actor added and another took away again still counts here.
    sum: i128,
}

impl Counter {
    /// A counter that starts at `base`, made from the version `origin`.
    pub fn new(origin: Option<Dot>, base: i64) -> Counter {
        Counter { origin, base, totals: Vec::new() }
    }

    /// The current number. Concurrent additions beyond the range of `i64` stop at its end.
    pub fn value(&self) -> i64 {
        self.sum().clamp(i64::MIN as i128, i64::MAX as i128) as i64
    }

    fn sum(&self) -> i128 {
        // Shares of forged bytes may be anything.
        self.totals.iter().fold(self.base as i128, |sum, total| sum.saturating_add(total.sum))
    }

    /// Adds `delta` as the write `dot`; `None` if the number would leave the range of `i64`, whatever an actor's share.
    ///
    /// A number that concurrent additions have driven out of the range may come back towards it.
    #[must_use]
    pub fn add(&mut self, dot: Dot, delta: i64) -> Option<()> {
        let sum = self.sum().saturating_add(delta as i128);
        if sum > i64::MAX as i128 && delta > 0 || sum < i64::MIN as i128 && delta < 0 {
            return None;
        }
        let delta = delta as i128;
        match self.totals.binary_search_by_key(&dot.actor, |t| t.actor) {
            Ok(i) => {
                let total = &mut self.totals[i];
                assert!(total.last < dot.counter, "addition {dot:?} is not the actor's newest");
                (total.sum, total.last) = (total.sum.checked_add(delta)?, dot.counter);
            }
            Err(i) => self.totals.insert(i, Total { actor: dot.actor, last: dot.counter, sum: delta }),
        }
        Some(())
    }

    /// Merges in another state of the same counter.
    pub fn merge(&mut self, other: &Counter) {
        assert!(self.origin == other.origin, "counters of different origin");
        for theirs in &other.totals {
            match self.totals.binary_search_by_key(&theirs.actor, |t| t.actor) {
                Ok(i) if self.totals[i].last < theirs.last => self.totals[i] = *theirs,
                Ok(_) => {}
                Err(i) => self.totals.insert(i, *theirs),
            }
        }
    }

    /// True if `context` has seen every addition and the origin, as an object's context has its own counters'.
    ///
    /// Else an actor's next dot could be older than an addition ascribed to it.
    pub fn is_covered_by(&self, context: &VersionVector) -> bool {
        let mut additions = self.totals.iter().map(|t| Dot { counter: t.last, actor: t.actor });
        additions.all(|dot| context.covers(dot)) && self.origin.is_none_or(|dot| context.covers(dot))
    }

    /// Appends origin, base and each actor's total.
    pub fn encode(&self, out: &mut Writer) {
        out.u8(self.origin.is_some() as u8);
        if let Some(dot) = self.origin {
            out.fixed(dot.actor.0);
            out.fixed(dot.counter);
        }
        out.signed(self.base);
        out.varint(self.totals.len() as u64);
        for total in &self.totals {
            out.fixed(total.actor.0);
            out.fixed(total.last);
            out.signed_wide(total.sum);
        }
    }

    /// Errors: truncated, or actors out of order.
    pub fn decode(input: &mut Reader) -> Result<Counter, DecodeError> {
        let origin = match input.u8("counter origin")? {
            0 => None,
            1 => Some(Dot { actor: ActorId(input.fixed("origin")?), counter: input.fixed("origin")? }),
            _ => return Err(DecodeError::Invalid { field: "counter origin" }),
        };
        let base = input.signed("counter base")?;
        let count = input.count(17, "counter totals")?;
        let mut totals: Vec<Total> = Vec::with_capacity(count);
        for _ in 0..count {
            let total = Total {
                actor: ActorId(input.fixed("total actor")?),
                last: input.fixed("total dot")?,
                sum: input.signed_wide("total sum")?,
            };
            if totals.last().is_some_and(|last| last.actor >= total.actor) {
                return Err(DecodeError::Invalid { field: "counter order" });
            }
            totals.push(total);
        }
        Ok(Counter { origin, base, totals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { counter, actor: ActorId(actor) }
    }

    #[test]
    fn concurrent_additions_add_up() {
        let mut a = Counter::new(None, 10);
        a.add(dot(1, 1), 5).unwrap();
        let mut b = a.clone();
        a.add(dot(1, 2), 1).unwrap();
        b.add(dot(2, 1), -3).unwrap();
        let (mut ab, mut ba) = (a.clone(), b.clone());
        ab.merge(&b);
        ba.merge(&a);
        assert_eq!(ab, ba);
        assert_eq!(ab.value(), 13);
        ab.merge(&b);
        assert_eq!(ab.value(), 13);
    }

    #[test]
    fn the_range_is_kept() {
        let mut a = Counter::new(None, i64::MAX);
        assert_eq!(a.add(dot(1, 1), 1), None);
        assert_eq!(a.add(dot(1, 1), -1), Some(()));
        let mut b = Counter::new(None, i64::MAX);
        b.add(dot(2, 1), i64::MIN).unwrap();
        assert_eq!(b.value(), -1);
    }

    #[test]
    fn only_the_sum_has_a_range_not_an_actors_share() {
        let mut a = Counter::new(None, 0);
        for (counter, (actor, delta)) in
            [(1, i64::MAX), (2, -i64::MAX), (1, i64::MAX), (2, -i64::MAX), (1, 5)].into_iter().enumerate()
        {
            assert_eq!(a.add(dot(actor, counter as u64 + 1), delta), Some(()), "{actor} adds {delta}");
        }
        assert_eq!(a.value(), 5);
        assert_eq!(a.add(dot(2, 9), i64::MIN), Some(()));
        assert_eq!(a.add(dot(1, 9), -6), None);
        let mut bytes = Vec::new();
        a.encode(&mut Writer(&mut bytes));
        let bytes = bytes::Bytes::from(bytes);
        assert_eq!(Counter::decode(&mut Reader::new(&bytes)), Ok(a));
    }

    #[test]
    fn concurrent_additions_beyond_the_range_lead_back_into_it() {
        let mut a = Counter::new(None, i64::MAX - 1);
        let mut b = a.clone();
        a.add(dot(1, 1), 1).unwrap();
        b.add(dot(2, 1), 1).unwrap();
        a.merge(&b);
        assert_eq!(a.value(), i64::MAX);
        assert_eq!(a.add(dot(1, 2), 1), None);
        assert_eq!(a.add(dot(1, 2), -1), Some(()));
        assert_eq!(a.add(dot(1, 3), -1), Some(()));
        assert_eq!(a.value(), i64::MAX - 1);
    }
}
