//! What can go wrong, and how often it does in one seed.
//!
//! A fault is selected by name; whether a selected fault is in force in a seed, how often it strikes and for how long
//! is drawn per seed, so that seeds differ in character.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use oort_core::types::Rng;

/// One way in which the world misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Some messages take up to a second.
    Delay,
    /// Messages vanish while their link stays open.
    Loss,
    /// Messages arrive twice.
    Duplicate,
    /// Messages overtake others of their link.
    Reorder,
    /// Some nodes cannot reach the others, in both directions.
    Split,
    /// Some nodes cannot send to the others, but hear them.
    OneWay,
    /// Wall clocks are wrong, drift and jump.
    Skew,
    /// The power fails: writes not durable are lost, outputs not released too.
    Crash,
    /// The process ends, asked to or killed, and starts again.
    Restart,
    /// A node stands still for a while, as under SIGSTOP, or its disk is slow.
    Slow,
    /// A disk refuses writes for a while.
    DiskFull,
    /// A stored row becomes unreadable, while an equal copy exists elsewhere.
    Corrupt,
    /// An operator has a node join or leave the ring, or changes a weight: no misbehaviour, but a strain.
    Ring,
    /// A node of another cluster of the same name is met: at a member's address, or behind a link that was open before.
    Stranger,
    /// A node restarts under another address, or two swap theirs.
    Address,
    /// The wall clock of a node, of a minority in all, is wrong by more than the limit.
    Clock,
    /// All machines stand still at once, as when other processes take the processors, and go on one after the other.
    Starve,
    /// An operator changes a bucket's `n`, `r` and `w` under its data: no misbehaviour either.
    Bucket,
    /// An operator has a node removed that is alive, by one that cannot reach it. Strikes only where nothing else could
    /// keep the others from reaching it.
    Removal,
    /// Some links are slow, one way or both: by so much for each message, and for each byte.
    SlowLink,
    /// A disk is lost for good. Its machine comes back as a new node, and an operator has it take the old one's place.
    DiskLoss,
}

impl Fault {
    /// All faults, in the order of their names in help texts.
    pub const ALL: [Fault; 21] = [
        Fault::Delay,
        Fault::Loss,
        Fault::Duplicate,
        Fault::Reorder,
        Fault::Split,
        Fault::OneWay,
        Fault::Skew,
        Fault::Crash,
        Fault::Restart,
        Fault::Slow,
        Fault::DiskFull,
        Fault::Corrupt,
        Fault::Ring,
        Fault::Stranger,
        Fault::Address,
        Fault::Clock,
        Fault::Starve,
        Fault::Bucket,
        Fault::Removal,
        Fault::SlowLink,
        Fault::DiskLoss,
    ];

    /// The name used in `--faults`.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Delay => "delay",
            Fault::Loss => "loss",
            Fault::Duplicate => "duplicate",
            Fault::Reorder => "reorder",
            Fault::Split => "split",
            Fault::OneWay => "oneway",
            Fault::Skew => "skew",
            Fault::Crash => "crash",
            Fault::Restart => "restart",
            Fault::Slow => "slow",
            Fault::DiskFull => "disk-full",
            Fault::Corrupt => "corrupt",
            Fault::Ring => "ring",
            Fault::Stranger => "stranger",
            Fault::Address => "address",
            Fault::Clock => "clock",
            Fault::Starve => "starve",
            Fault::Bucket => "bucket",
            Fault::Removal => "removal",
            Fault::SlowLink => "slow-link",
            Fault::DiskLoss => "disk-loss",
        }
    }

    /// What happens to a node `n2`, in words that follow its name.
    pub fn words(self) -> &'static str {
        match self {
            Fault::Delay => "gets some messages late",
            Fault::Loss => "loses some messages",
            Fault::Duplicate => "gets some messages twice",
            Fault::Reorder => "gets some messages out of order",
            Fault::Split => "is split from other nodes: neither side hears the other",
            Fault::OneWay => "is not heard by other nodes, and hears them",
            Fault::Skew => "has its wall clock set wrong",
            Fault::Crash => "loses its power, perhaps with others",
            Fault::Restart => "has its process ended, to be started again",
            Fault::Slow => "stands still, or has a slow disk",
            Fault::DiskFull => "has a disk that refuses every write",
            Fault::Corrupt => "has a row of its disk become unreadable",
            Fault::Ring => "is asked by an operator to change the ring",
            Fault::Stranger => "meets a node of another cluster",
            Fault::Address => "restarts under another address",
            Fault::Clock => "or another node has its clock set far off",
            Fault::Starve => "stands still, as all nodes do",
            Fault::Bucket => "is asked by an operator to change a bucket",
            Fault::Removal => "is cut from a node, and soon asked to remove that node",
            Fault::SlowLink => "has some slow links",
            Fault::DiskLoss => "loses its disk for good",
        }
    }

    /// True if it is drawn apart from those before it, so that it changes nothing of what they do.
    fn is_apart(self) -> bool {
        matches!(
            self,
            Fault::Stranger
                | Fault::Address
                | Fault::Clock
                | Fault::Starve
                | Fault::SlowLink
                | Fault::DiskLoss
        )
    }

    /// True if it strikes at points in time; the others befall single messages.
    fn is_timed(self) -> bool {
        use Fault::{Delay, Duplicate, Loss, Reorder, SlowLink};
        !matches!(self, Delay | Loss | Duplicate | Reorder | SlowLink)
    }
}

/// A selection of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults(u32);

impl Faults {
    /// Every fault.
    pub fn all() -> Faults {
        Faults::of(&Fault::ALL)
    }

    /// No fault: what a healthy cluster does.
    pub fn none() -> Faults {
        Faults(0)
    }

    /// Exactly these.
    pub fn of(faults: &[Fault]) -> Faults {
        Faults(faults.iter().fold(0, |bits, fault| bits | 1 << *fault as u16))
    }

    /// True if `fault` is selected.
    pub fn contains(self, fault: Fault) -> bool {
        self.0 & 1 << fault as u16 != 0
    }

    /// These without `others`.
    pub fn without(self, others: Faults) -> Faults {
        Faults(self.0 & !others.0)
    }

    /// True if none is selected.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The selected ones.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |fault| self.contains(*fault))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if *self == Faults::all() {
            return write!(f, "all");
        }
        let names: Vec<&str> = self.iter().map(Fault::name).collect();
        match names.is_empty() {
            true => write!(f, "none"),
            false => write!(f, "{}", names.join(",")),
        }
    }
}

/// A fault's name that does not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFault {
    pub name: String,
}

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
        write!(f, "unknown fault '{}': use all, none or a list of {}", self.name, names.join(", "))
    }
}

impl std::error::Error for UnknownFault {}

impl FromStr for Faults {
    type Err = UnknownFault;

    /// Reads `all`, `none` or names separated by commas.
    fn from_str(text: &str) -> Result<Faults, UnknownFault> {
        match text {
            "all" => return Ok(Faults::all()),
            "none" => return Ok(Faults::none()),
            _ => {}
        }
        let mut selected = Vec::new();
        for name in text.split(',') {
            let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name.trim());
            selected.push(fault.ok_or_else(|| UnknownFault { name: name.trim().to_string() })?);
        }
        Ok(Faults::of(&selected))
    }
}

/// How often a fault strikes and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Mean time from the end of the last to the next, in microseconds.
    pub gap_us_mean: u64,
    /// Longest duration, in microseconds.
    pub lasts_us_max: u64,
}

/// What this seed's world is like.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Messages per thousand that are delayed, and by how much at most.
    pub delay_per_mille: u64,
    pub delay_us_max: u64,
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    pub reorder_per_mille: u64,
    /// What a slow link takes longer, in microseconds a message and nanoseconds a byte; which links are slow is drawn
    /// with `slow_links`.
    pub slow_link_us: u64,
    pub slow_link_ns_per_byte: u64,
    pub slow_links: u64,
    /// How far a wall clock is off at most, in microseconds.
    pub skew_us_max: u64,
    /// The faults that strike at points in time.
    pub timed: BTreeMap<Fault, Timing>,
}

/// Which faults may be in force together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Any but [`Fault::Clock`]. A node that reaches few others while its clock is far ahead names writes by it, and
    /// replicas take those in only when their own clocks have come so far: no bound of the other checkers holds.
    Mixed,
    /// Operators are at work, and nothing else goes wrong.
    Orderly,
    /// Clocks are far off, and all reach each other.
    Clocks,
    /// All stand still at once, and nothing else goes wrong.
    Starved,
}

impl Kind {
    fn draw(selected: Faults, rng: &mut Rng) -> Kind {
        let kind = match rng.below(24) {
            0..=3 => Kind::Orderly,
            4 => Kind::Clocks,
            5 => Kind::Starved,
            _ => Kind::Mixed,
        };
        match kind.faults() {
            Some(faults) if faults.iter().all(|fault| selected.contains(fault)) => kind,
            _ => Kind::Mixed,
        }
    }

    /// The faults of the kind; `None`: nearly all.
    fn faults(self) -> Option<Faults> {
        match self {
            Kind::Mixed => None,
            Kind::Orderly => Some(Faults::of(&[Fault::Ring, Fault::Bucket, Fault::Removal])),
            Kind::Clocks => Some(Faults::of(&[Fault::Clock])),
            Kind::Starved => Some(Faults::of(&[Fault::Starve])),
        }
    }

    /// Those of the selected faults that are in force, or may be.
    fn of(self, selected: Faults, rng: &mut Rng) -> Faults {
        match self {
            Kind::Mixed => selected.without(Faults::of(&[Fault::Clock])),
            Kind::Orderly => match rng.below(4) {
                0 => Faults::of(&[Fault::Ring, Fault::Removal]),
                1 => Faults::of(&[Fault::Bucket]),
                _ => Faults::of(&[Fault::Ring, Fault::Bucket]),
            },
            kind => kind.faults().unwrap_or(selected),
        }
    }
}

impl Plan {
    /// Draws a seed's plan from the selected faults. One or two selected faults are always in force, of more each with
    /// chance ½; but in one seed of four only those of one kind, of which checkers demand more than when all mix.
    pub fn draw(selected: Faults, rng: &mut Rng) -> Plan {
        let mut few = selected.iter().count() <= 2;
        let mut plan = Plan::default();
        let mut apart = Rng::new(!rng.clone().next_u64());
        let mut selected = selected;
        if !few {
            let kind = Kind::draw(selected, &mut apart);
            (few, selected) = (kind != Kind::Mixed, kind.of(selected, &mut apart));
        }
        for fault in selected.iter() {
            let rng = if fault.is_apart() { &mut apart } else { &mut *rng };
            let is_in_force = rng.chance(1, 2) || few;
            // Drawn whether in force or not, so that leaving a fault out changes less of the rest.
            let (gap, lasts, share) = (rng.below(4), rng.below(4), rng.below(4));
            if !is_in_force {
                continue;
            }
            match fault {
                Fault::Delay => {
                    plan.delay_per_mille = [2, 10, 50, 200][share as usize];
                    plan.delay_us_max = [5_000, 50_000, 300_000, 1_000_000][lasts as usize];
                }
                Fault::Loss => plan.loss_per_mille = [1, 5, 30, 100][share as usize],
                Fault::Duplicate => plan.duplicate_per_mille = [2, 10, 50, 200][share as usize],
                Fault::Reorder => plan.reorder_per_mille = [2, 10, 50, 200][share as usize],
                Fault::SlowLink => {
                    plan.slow_link_us = [2_000, 10_000, 40_000, 100_000][lasts as usize];
                    plan.slow_link_ns_per_byte = [0, 0, 1_000, 20_000][gap as usize];
                    plan.slow_links = rng.next_u64();
                }
                _ => {}
            }
            if fault == Fault::Skew {
                plan.skew_us_max = [10_000, 1_000_000, 10_000_000, 28_000_000][share as usize];
            }
            if fault.is_timed() {
                plan.timed.insert(
                    fault,
                    Timing {
                        gap_us_mean: [200_000, 1_000_000, 3_000_000, 8_000_000][gap as usize],
                        lasts_us_max: [50_000, 500_000, 2_000_000, 6_000_000][lasts as usize],
                    },
                );
            }
        }
        plan
    }

    /// Takes `faults` out of force, as if they had been drawn so.
    pub fn leave_out(&mut self, faults: Faults) {
        for fault in faults.iter() {
            match fault {
                Fault::Delay => (self.delay_per_mille, self.delay_us_max) = (0, 0),
                Fault::Loss => self.loss_per_mille = 0,
                Fault::Duplicate => self.duplicate_per_mille = 0,
                Fault::Reorder => self.reorder_per_mille = 0,
                Fault::SlowLink => self.slow_link_us = 0,
                timed => drop(self.timed.remove(&timed)),
            }
        }
    }

    /// The faults in force.
    pub fn in_force(&self) -> Faults {
        let by_message = [
            (Fault::Delay, self.delay_per_mille),
            (Fault::Loss, self.loss_per_mille),
            (Fault::Duplicate, self.duplicate_per_mille),
            (Fault::Reorder, self.reorder_per_mille),
            (Fault::SlowLink, self.slow_link_us),
        ];
        let single = by_message.iter().filter(|(_, share)| *share > 0).map(|(fault, _)| *fault);
        let faults: Vec<Fault> = single.chain(self.timed.keys().copied()).collect();
        Faults::of(&faults)
    }

    /// True if nothing can go wrong.
    pub fn is_calm(&self) -> bool {
        self.timed.is_empty()
            && self.delay_per_mille
                + self.loss_per_mille
                + self.duplicate_per_mille
                + self.reorder_per_mille
                + self.slow_link_us
                == 0
    }

    /// What the link from `machine` to `peer` takes longer for a message of this size, in microseconds.
    pub fn slowness_us(&self, machine: usize, peer: usize, bytes: usize) -> u64 {
        let is_slow =
            self.slow_link_us > 0 && Rng::new(self.slow_links ^ (machine << 8 | peer) as u64).chance(1, 4);
        match is_slow {
            true => self.slow_link_us + bytes as u64 * self.slow_link_ns_per_byte / 1000,
            false => 0,
        }
    }

    /// True if no fault closes a link, or has a node refuse what it is asked: who asks may get an answer to the end.
    pub fn keeps_links(&self) -> bool {
        self.timed.keys().all(|fault| matches!(fault, Fault::Slow | Fault::Starve))
    }

    /// True if no machine stops, stands still or loses its disk: what a node has not written yet, it writes later.
    pub fn keeps_memory(&self) -> bool {
        self.timed.keys().all(|fault| matches!(fault, Fault::Split | Fault::OneWay))
    }

    /// True if machines stand still only all at once, and nothing else keeps messages back.
    pub fn only_starves(&self) -> bool {
        self.timed.keys().all(|fault| *fault == Fault::Starve)
            && Plan { timed: BTreeMap::new(), ..self.clone() }.is_calm()
    }

    /// True if nothing goes wrong: an operator at most changes buckets.
    pub fn is_harmless(&self) -> bool {
        self.is_of(&[Fault::Bucket])
    }

    /// True if only operators do anything: they change buckets and the ring.
    pub fn is_change(&self) -> bool {
        self.is_of(&[Fault::Bucket, Fault::Ring])
    }

    /// True if only operators do anything, and no link or machine fails but for what [`Fault::Removal`] cuts.
    pub fn is_orderly(&self) -> bool {
        self.is_of(&[Fault::Bucket, Fault::Ring, Fault::Removal])
    }

    fn is_of(&self, faults: &[Fault]) -> bool {
        let calm = Plan { timed: BTreeMap::new(), ..self.clone() };
        calm.is_calm() && self.timed.keys().all(|fault| faults.contains(fault))
    }

    /// No fault strikes from now on.
    pub fn calm() -> Plan {
        Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_read_back_from_their_text() {
        for text in ["all", "none", "crash", "loss,split,disk-full"] {
            assert_eq!(text.parse::<Faults>().unwrap().to_string(), text);
        }
        assert!("".parse::<Faults>().is_err());
        assert_eq!("crash,fire".parse::<Faults>(), Err(UnknownFault { name: "fire".into() }));
    }

    #[test]
    fn one_seed_of_four_has_faults_of_one_kind() {
        let plans: Vec<Plan> = (0..960).map(|seed| Plan::draw(Faults::all(), &mut Rng::new(seed))).collect();
        let count = |is_so: &dyn Fn(&Plan) -> bool| plans.iter().filter(|plan| is_so(plan)).count();
        assert!((120..200).contains(&count(&|plan| plan.is_orderly() && !plan.is_calm())));
        assert!((25..60).contains(&count(&|plan| plan.in_force() == Faults::of(&[Fault::Clock]))));
        assert!((25..60).contains(&count(&|plan| plan.in_force() == Faults::of(&[Fault::Starve]))));
        assert_eq!(
            count(&|plan| plan.in_force().contains(Fault::Clock)),
            count(&|plan| plan.is_of(&[Fault::Clock])) - count(&Plan::is_calm)
        );
    }

    #[test]
    fn a_fault_left_out_is_out_of_force_and_changes_no_other() {
        for fault in Fault::ALL {
            let mut plan = Plan::draw(Faults::of(&[fault]), &mut Rng::new(1));
            assert_eq!(plan.in_force(), Faults::of(&[fault]));
            plan.leave_out(Faults::of(&[fault]));
            assert!(plan.is_calm() && plan.in_force().is_empty(), "{plan:?}");
        }
        let whole = Plan::draw(Faults::all(), &mut Rng::new(5));
        let mut part = whole.clone();
        part.leave_out(Faults::of(&[Fault::Loss, Fault::Crash]));
        assert_eq!(part.in_force(), whole.in_force().without(Faults::of(&[Fault::Loss, Fault::Crash])));
        assert_eq!(part.delay_per_mille, whole.delay_per_mille);
    }
}
