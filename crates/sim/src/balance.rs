//! How evenly the three strategies of Dynamo §6.2 spread load, against the size of the table that says who owns what.
//!
//! Nothing runs here: many keys are placed by the core's own [`Placement`], each key's requests are counted at all its
//! replicas, and the efficiency of a ring is the mean node's load divided by the greatest. Strategies 1 and 2 are tried
//! with T tokens per node, T doubling from 2; strategy 3 with the power of two Q nearest to as many tokens. Each seed
//! draws other node ids, so other tokens, and other keys.
//!
//! Since tokens and the borders of partitions lie at Redis slots, all keys of a slot have the same replicas: keys are
//! counted by slot once per seed, which makes each ring after that cheap, without making it less exact.
//!
//! Source: Dynamo §6.2, figure 8. `docs/partitioning.md` shows the result. Read next: `report`, `plot`.

mod plot;
mod report;

use std::fmt::Write;

use oort_core::placement::{Layout, Placement, RingNode, Strategy, PARTITIONS_MAX};
use oort_core::types::{NodeId, Position, Rng, SLOTS};

pub use plot::svg;
pub use report::{csv, table};

/// What is simulated.
#[derive(Clone, PartialEq, Debug)]
pub struct Setup {
    /// S, at least 2.
    pub nodes: u16,
    /// N, 1 to `nodes`.
    pub replicas: u16,
    /// Keys per seed, at least 1.
    pub keys: u32,
    /// The key of rank k gets requests in proportion to 1 / k^zipf. 0: all keys get the same.
    pub zipf: f64,
    /// Q of strategy 2, a power of two; that of strategy 3 is what varies.
    pub partitions: u16,
    /// The first seed.
    pub seed: u64,
    /// How many consecutive seeds, at least 1.
    pub seeds: u32,
}

/// The three strategies with about as large a table each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// T of strategies 1 and 2.
    pub tokens: u16,
    /// Q of strategy 3, or `None` where it would be more than [`PARTITIONS_MAX`].
    pub partitions: Option<u16>,
}

/// What came of one strategy at one size, over all seeds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    pub strategy: Strategy,
    /// Q. Of no meaning in strategy 1.
    pub partitions: u16,
    /// Mean number of tokens that found a slot to themselves: the entries of the table from token to node.
    pub entries: f64,
    /// Mean size of the layout as nodes send and store it, in bytes.
    pub encoded_bytes: f64,
    /// Mean of mean load / greatest load, 0 to 1.
    pub efficiency: f64,
    /// The least and the greatest efficiency of any seed.
    pub range: (f64, f64),
    /// Mean of the standard deviation of the nodes' loads, divided by their mean.
    pub deviation: f64,
}

/// The sizes that are tried: T doubles from 2 until there are twice as many tokens as slots.
pub fn sizes(nodes: u16) -> Vec<Size> {
    let tokens_max = 2 * SLOTS as u32;
    let doubling = (1..=15).map(|power| 1u16 << power);
    let fitting = doubling.take_while(|tokens| *tokens as u32 * nodes as u32 <= tokens_max);
    fitting.map(|tokens| Size { tokens, partitions: nearest_power(tokens as u32 * nodes as u32) }).collect()
}

/// The power of two with the least ratio to `entries`, if a ring may have so many partitions.
fn nearest_power(entries: u32) -> Option<u16> {
    let power = (entries as f64).log2().round() as u32;
    (power <= PARTITIONS_MAX.ilog2()).then(|| 1 << power)
}

/// Tries every strategy at every size with every seed; calls `progress` with the number of seeds done.
///
/// Returns strategy 1's points by ascending size, then strategy 2's, then strategy 3's. The same setup gives the same
/// points. O(seeds · (keys + sizes · slots · replicas)).
pub fn simulate(setup: &Setup, mut progress: impl FnMut(u32)) -> Vec<Point> {
    let rings = rings(setup);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); rings.len()];
    for number in 0..setup.seeds {
        let seed = setup.seed.wrapping_add(number as u64);
        let nodes = nodes(setup, seed);
        let slots = slot_loads(setup, seed);
        for ((strategy, partitions), samples) in rings.iter().zip(&mut samples) {
            let layout = Layout::founding(*strategy, *partitions, nodes.clone());
            samples.push(Sample::take(&layout, &slots, setup.replicas));
        }
        progress(number + 1);
    }
    let points = rings.iter().zip(&samples);
    points.map(|((strategy, partitions), samples)| summarise(*strategy, *partitions, samples)).collect()
}

/// All strategies at all sizes, each with its Q.
fn rings(setup: &Setup) -> Vec<(Strategy, u16)> {
    let sizes = sizes(setup.nodes);
    let tokens = || sizes.iter().map(|size| size.tokens);
    let first = tokens().map(|tokens| (Strategy::TokenRanges { tokens }, setup.partitions));
    let second = tokens().map(|tokens| (Strategy::TokensAndPartitions { tokens }, setup.partitions));
    let third = sizes.iter().filter_map(|size| Some((Strategy::EqualPartitions, size.partitions?)));
    first.chain(second).chain(third).collect()
}

fn nodes(setup: &Setup, seed: u64) -> Vec<RingNode> {
    let mut rng = Rng::new(seed);
    (0..setup.nodes).map(|_| RingNode::new(NodeId(rng.next_u64()))).collect()
}

/// The requests for the keys of each slot.
fn slot_loads(setup: &Setup, seed: u64) -> Vec<f64> {
    let mut loads = vec![0.0; SLOTS as usize];
    let mut key = String::new();
    for rank in 1..=setup.keys {
        key.clear();
        write!(key, "{seed}:{rank}").expect("writing to memory does not fail");
        loads[Position::of(key.as_bytes()).slot() as usize] += (rank as f64).powf(-setup.zipf);
    }
    loads
}

/// The requests at each node, in the order of the layout's nodes, when every request reaches all N replicas.
fn node_loads(layout: &Layout, slots: &[f64], replicas: u16) -> Vec<f64> {
    let placement = Placement::new(layout, replicas as usize);
    let mut loads = vec![0.0; layout.nodes.len()];
    for (slot, load) in (0..SLOTS).zip(slots) {
        for id in placement.preference_at(Position::first_of_slot(slot)) {
            let place = layout.nodes.binary_search_by_key(id, |node| node.id);
            loads[place.expect("a preference list holds nodes of the layout")] += load;
        }
    }
    loads
}

/// One ring of one seed.
#[derive(Clone, Copy)]
struct Sample {
    entries: f64,
    encoded_bytes: f64,
    efficiency: f64,
    deviation: f64,
}

impl Sample {
    fn take(layout: &Layout, slots: &[f64], replicas: u16) -> Sample {
        let loads = node_loads(layout, slots, replicas);
        let average = mean(loads.iter().copied());
        let variance = mean(loads.iter().map(|load| (load - average).powi(2)));
        Sample {
            entries: layout.token_count() as f64,
            encoded_bytes: layout.encoded_bytes() as f64,
            efficiency: average / loads.iter().copied().fold(0.0, f64::max),
            deviation: variance.sqrt() / average,
        }
    }
}

fn summarise(strategy: Strategy, partitions: u16, samples: &[Sample]) -> Point {
    let efficiencies = || samples.iter().map(|sample| sample.efficiency);
    Point {
        strategy,
        partitions,
        entries: mean(samples.iter().map(|sample| sample.entries)),
        encoded_bytes: mean(samples.iter().map(|sample| sample.encoded_bytes)),
        efficiency: mean(efficiencies()),
        range: (efficiencies().fold(1.0, f64::min), efficiencies().fold(0.0, f64::max)),
        deviation: mean(samples.iter().map(|sample| sample.deviation)),
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// The points of one strategy, by ascending size.
fn of_strategy(points: &[Point], number: u8) -> impl Iterator<Item = &Point> {
    points.iter().filter(move |point| point.strategy.number() == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figure 8 of Dynamo, as far as it can be read off, for 60, 120, 240, ... entries.
    const FIGURE_8: [[f64; 10]; 3] = [
        [0.52, 0.61, 0.69, 0.76, 0.82, 0.87, 0.91, 0.93, 0.95, 0.96],
        [0.53, 0.61, 0.70, 0.76, 0.82, 0.85, 0.88, 0.87, 0.85, 0.84],
        [0.86, 0.87, 0.90, 0.92, 0.94, 0.96, 0.97, 0.98, 0.98, 0.99],
    ];

    fn setup() -> Setup {
        Setup { nodes: 30, replicas: 3, keys: 100_000, zipf: 0.0, partitions: 1024, seed: 1, seeds: 8 }
    }

    fn efficiencies(points: &[Point], number: u8) -> Vec<f64> {
        of_strategy(points, number).map(|point| point.efficiency).collect()
    }

    /// Source: Dynamo §6.2, figure 8. Differs: strategy 3 with few partitions, since Q is no multiple of 30 here.
    #[test]
    fn strategy_3_is_best_and_strategy_2_worst_as_in_figure_8() {
        let points = simulate(&setup(), |_| {});
        let [first, second, third] = [1, 2, 3].map(|number| efficiencies(&points, number));
        assert_eq!((first.len(), second.len(), third.len()), (10, 10, 9));
        for (size, best) in third.iter().enumerate() {
            assert!(*best > first[size] + 0.05, "size {size}: {best} {}", first[size]);
            assert!(*best > second[size] + 0.05, "size {size}: {best} {}", second[size]);
        }
        // With fewer tokens than partitions both fail alike; with more, strategy 2 falls behind and then back.
        for size in 6..10 {
            assert!(first[size] > second[size], "size {size}: {} {}", first[size], second[size]);
        }
        assert!(first[9] > second[9] + 0.05, "{} {}", first[9], second[9]);
        assert!(second[6] > second[9], "{second:?}");
        for (ours, [paper, from]) in [(&first, [0, 0]), (&second, [1, 0]), (&third, [2, 2])] {
            for size in from..ours.len() {
                let theirs = FIGURE_8[paper][size];
                assert!((ours[size] - theirs).abs() < 0.06, "size {size}: {} {theirs}", ours[size]);
            }
        }
    }

    #[test]
    fn with_the_smallest_partitions_strategy_2_is_as_good_as_strategy_1() {
        let points = simulate(&Setup { partitions: PARTITIONS_MAX, seeds: 3, ..setup() }, |_| {});
        let (first, second) = (efficiencies(&points, 1)[9], efficiencies(&points, 2)[9]);
        assert!((first - second).abs() < 0.02, "{first} {second}");
    }

    #[test]
    fn the_same_setup_gives_the_same_points() {
        let small = Setup { nodes: 5, keys: 1000, seeds: 2, ..setup() };
        let mut done = Vec::new();
        let points = simulate(&small, |seeds| done.push(seeds));
        assert_eq!(done, [1, 2]);
        assert_eq!(points, simulate(&small, |_| {}));
        assert_ne!(points, simulate(&Setup { seed: 7, ..small }, |_| {}));
    }

    #[test]
    fn every_request_is_counted_at_every_replica() {
        let setup = Setup { keys: 1000, zipf: 1.0, ..setup() };
        let slots = slot_loads(&setup, 1);
        let requests: f64 = (1..=1000).map(|rank| 1.0 / rank as f64).sum();
        assert!((slots.iter().sum::<f64>() - requests).abs() < 1e-9);
        for (strategy, partitions) in rings(&setup) {
            let layout = Layout::founding(strategy, partitions, nodes(&setup, 1));
            let loads = node_loads(&layout, &slots, 3);
            assert!((loads.iter().sum::<f64>() - 3.0 * requests).abs() < 1e-9, "{strategy:?}");
        }
    }

    #[test]
    fn when_all_nodes_hold_everything_load_is_even() {
        let everywhere = Setup { nodes: 3, keys: 100, seeds: 1, ..setup() };
        for point in simulate(&everywhere, |_| {}) {
            assert!((point.efficiency - 1.0).abs() < 1e-9, "{point:?}");
        }
    }

    #[test]
    fn sizes_reach_as_far_as_slots_allow() {
        let last = |nodes| *sizes(nodes).last().unwrap();
        assert_eq!(sizes(30)[0], Size { tokens: 2, partitions: Some(64) });
        assert_eq!(last(30), Size { tokens: 1024, partitions: None });
        assert_eq!(last(2), Size { tokens: 16384, partitions: None });
        assert_eq!(last(1000), Size { tokens: 32, partitions: None });
        assert_eq!(last(600), Size { tokens: 32, partitions: Some(16384) });
    }
}
