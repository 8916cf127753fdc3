//! Parts of a seed's history that are left out, so that a failure is shown by as little as possible.
//!
//! A skipped operation or strike keeps its place in the order of draws: its own random numbers are drawn, and nothing
//! happens. So the rest of the history stays close to what the whole seed does. Draws that a strike makes while it
//! strikes (which links are cut, for example) are not made. `shrink` finds out what can be left out.

use std::fmt;
use std::str::FromStr;

use crate::faults::Faults;

/// The largest ordinal that can be named.
pub const ORDINAL_MAX: u64 = 1_000_000_000;

/// A set of places in an order that counts from 1, written as `3,7-12`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ordinals(Vec<(u64, u64)>);

/// What is left out of a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skips {
    /// Operations of clients, in the order in which they are drawn.
    pub operations: Ordinals,
    /// Strikes of faults, in the order in which they come due.
    pub strikes: Ordinals,
    /// Faults that are drawn with the others and never in force.
    pub faults: Faults,
}

impl Default for Skips {
    /// Nothing is left out.
    fn default() -> Skips {
        Skips { operations: Ordinals::default(), strikes: Ordinals::default(), faults: Faults::none() }
    }
}

impl Ordinals {
    /// True if `ordinal` is in the set. O(log ranges).
    pub fn contains(&self, ordinal: u64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= ordinal);
        after > 0 && ordinal <= self.0[after - 1].1
    }

    /// True if nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ordinals are in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    fn from_ranges(mut ranges: Vec<(u64, u64)>) -> Ordinals {
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if first <= *end + 1 => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        Ordinals(joined)
    }
}

impl FromIterator<u64> for Ordinals {
    fn from_iter<I: IntoIterator<Item = u64>>(ordinals: I) -> Ordinals {
        Ordinals::from_ranges(ordinals.into_iter().map(|ordinal| (ordinal, ordinal)).collect())
    }
}

impl fmt::Display for Ordinals {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A part of a list of ordinals that is neither a number nor a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadOrdinal {
    pub text: String,
}

impl fmt::Display for BadOrdinal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let BadOrdinal { text } = self;
        write!(f, "'{text}' is no ordinal: use numbers from 1 to {ORDINAL_MAX} and ranges, as in 3,7-12")
    }
}

impl std::error::Error for BadOrdinal {}

impl FromStr for Ordinals {
    type Err = BadOrdinal;

    /// Reads numbers and ranges separated by commas. Errors: an empty part, 0, a range that runs backwards.
    fn from_str(text: &str) -> Result<Ordinals, BadOrdinal> {
        let ranges: Option<Vec<(u64, u64)>> = text.split(',').map(range).collect();
        let bad = || text.split(',').find(|part| range(part).is_none()).unwrap_or(text).to_string();
        ranges.map(Ordinals::from_ranges).ok_or_else(|| BadOrdinal { text: bad() })
    }
}

fn range(part: &str) -> Option<(u64, u64)> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (1 <= first && first <= last && last <= ORDINAL_MAX).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_read_back_from_their_text() {
        for text in ["3", "1-4", "3,7-12", "1,3,5-6,1000000000"] {
            assert_eq!(text.parse::<Ordinals>().unwrap().to_string(), text);
        }
        assert_eq!("7-12, 3,8,13".parse::<Ordinals>().unwrap().to_string(), "3,7-13");
    }

    #[test]
    fn a_set_holds_what_it_was_made_of() {
        let set: Ordinals = [9, 2, 3, 4, 9].into_iter().collect();
        assert_eq!((set.to_string().as_str(), set.len()), ("2-4,9", 4));
        let held: Vec<u64> = (0..12).filter(|ordinal| set.contains(*ordinal)).collect();
        assert_eq!(held, [2, 3, 4, 9]);
        assert!(!Ordinals::default().contains(1));
    }

    #[test]
    fn what_is_no_ordinal_is_named() {
        for (text, bad) in [
            ("", ""),
            ("1,,2", ""),
            ("0", "0"),
            ("4-3", "4-3"),
            ("1,x", "x"),
            ("1-2-3", "1-2-3"),
            ("-1", "-1"),
        ] {
            assert_eq!(text.parse::<Ordinals>(), Err(BadOrdinal { text: bad.into() }), "{text}");
        }
        assert!("1000000001".parse::<Ordinals>().is_err());
        assert!("99999999999999999999".parse::<Ordinals>().is_err());
    }
}
