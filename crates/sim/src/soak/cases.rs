//! What the cases of a soak are like: drawn from the soak's base and the case's number.

use oort_core::config::NodeConfig;
use oort_core::types::Rng;

use crate::cluster::Setup;
use crate::faults::{Fault, Faults};

/// How many operations cases have: mostly few, so that many seeds are seen.
pub const OPS: [usize; 8] = [60, 100, 200, 400, 400, 400, 1000, 3000];
/// Nodes, where they are not left to the seed.
const NODES: [usize; 7] = [2, 3, 4, 5, 6, 8, 12];

/// What all cases have in common; the rest is drawn for each.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    pub nodes: Option<usize>,
    pub ops: Option<usize>,
    pub faults: Option<Faults>,
    /// True: all cases have active objects, not a third of them.
    pub active: bool,
    pub strategy: Option<u8>,
}

impl Choices {
    /// Case `number` of the soak of `base`.
    pub fn draw(&self, base: u64, number: u64, tweak: Option<fn(&mut NodeConfig)>) -> Setup {
        let rng = &mut Rng::new(base.wrapping_add(number));
        // Twelve digits are enough to be fresh, and can be copied by hand.
        let seed = rng.next_u64() >> 24;
        let is_active = rng.chance(1, 3);
        let faults = draw_faults(rng);
        let ops = OPS[rng.below(OPS.len() as u64) as usize];
        let nodes = rng.chance(1, 3).then(|| NODES[rng.below(NODES.len() as u64) as usize]);
        let strategy = rng.chance(1, 3).then(|| 1 + rng.below(3) as u8);
        Setup {
            nodes: self.nodes.or(nodes),
            ops: self.ops.unwrap_or(ops),
            faults: self.faults.unwrap_or(faults),
            active: self.active || is_active,
            strategy: self.strategy.or(strategy),
            tweak,
            ..Setup::new(seed)
        }
    }
}

/// All faults, a few of them, one or two that are then surely in force, or none.
fn draw_faults(rng: &mut Rng) -> Faults {
    let mut some = |parts: u64| {
        let all = Faults::all().iter().filter(|_| rng.chance(1, parts));
        Faults::of(&all.collect::<Vec<Fault>>())
    };
    let (third, tenth) = (some(3), some(10));
    match rng.below(20) {
        0..=7 => Faults::all(),
        8..=14 => third,
        15..=17 => tenth,
        // It goes with no other: see `Faults::all`.
        18 => Faults::of(&[Fault::Clock]),
        _ => Faults::none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn cases_are_of_all_kinds_and_always_the_same() {
        let choices = Choices::default();
        let draw = |number| choices.draw(77, number, None);
        let setups: Vec<Setup> = (0..600).map(draw).collect();
        let distinct = |of: fn(&Setup) -> String| setups.iter().map(of).collect::<BTreeSet<String>>().len();
        assert_eq!(distinct(|setup| setup.seed.to_string()), 600);
        assert_eq!(distinct(|setup| format!("{:?}", setup.nodes)), 1 + NODES.len());
        assert_eq!(distinct(|setup| format!("{:?}", setup.strategy)), 4);
        assert_eq!(distinct(|setup| setup.ops.to_string()), 6);
        assert!(distinct(|setup| setup.faults.to_string()) > 100);
        let actives = setups.iter().filter(|setup| setup.active).count();
        assert!((120..280).contains(&actives), "{actives}");
        for fault in Fault::ALL {
            assert!(setups.iter().any(|setup| setup.faults.contains(fault)), "{fault:?}");
        }
        for (number, setup) in setups.iter().enumerate() {
            assert_eq!(setup.command(), draw(number as u64).command());
        }
    }

    #[test]
    fn what_is_chosen_is_not_drawn() {
        let faults: Faults = "crash,ring".parse().unwrap();
        let choices =
            Choices { nodes: Some(5), ops: Some(7), faults: Some(faults), active: true, strategy: Some(2) };
        for number in 0..50 {
            let setup = choices.draw(1, number, None);
            assert_eq!((setup.nodes, setup.ops, setup.strategy), (Some(5), 7, Some(2)));
            assert!(setup.active && setup.faults == faults);
        }
    }
}
