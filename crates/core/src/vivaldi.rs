//! Where a node lies in the network: coordinates whose distances are estimates of round trips.
//!
//! A coordinate is a point of a plane and a height above it. The way between two nodes leads down from the one to the
//! plane, through it and up to the other: the plane stands for the network's core, the height for what a node's own
//! link adds to every round trip. Each measured round trip pulls the node towards the other or pushes it away until
//! the distance fits, gently if the node trusts its own place more than the other's. After some ten rounds distances
//! are known between nodes that never talked.
//!
//! Coordinates are whole microseconds, computed with + - * / and square roots only, so they are the same on any
//! machine, and a peer cannot send what is no number. Whatever a peer claims, one round trip moves a node by at most an
//! eighth of a second, and honest peers move it back.
//!
//! Source: Dabek et al., "Vivaldi: a decentralized network coordinate system", SIGCOMM 2004, figure 3 and §5.4.
//! Differs: round trips are medians of three, since one pause of a process says nothing about the network (Ledlie et
//! al., "Network coordinates in the wild", NSDI 2007); a pull is bounded.

use serde::{Deserialize, Serialize};

use crate::types::Rng;

/// How far a node moves at most towards where one measurement wants it: c_c of the paper.
const PULL: f64 = 0.25;
/// How fast the error follows the errors seen: c_e of the paper.
const ERROR_SHARE: f64 = 0.25;
/// Farther from the middle than this is no node: a quarter of a round trip around the world and back by satellite.
const AXIS_US_MAX: i32 = 10_000_000;
/// A distance that is wrong by more than this counts as wrong by this: more than round trips on earth differ. Smaller
/// than those, and nodes of one place that once took two stay there.
const MISFIT_US_MAX: f64 = 500_000.0;
const HEIGHT_US_MIN: u32 = 10;
const HEIGHT_US_MAX: u32 = 10_000_000;
/// However sure a node says it is.
const ERROR_PER_MILLE_MIN: u16 = 20;
const ERROR_PER_MILLE_MAX: u16 = 1500;
/// With a greater error an estimate is not worth using.
const ERROR_PER_MILLE_USEFUL: u16 = 500;

/// A node's place. The default is that of a node that knows nothing yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Coordinate {
    /// In the plane, in microseconds of round trip.
    pub x_us: i32,
    pub y_us: i32,
    /// Above it.
    pub height_us: u32,
    /// How far off estimates have been of late, in thousandths of the round trip.
    pub error_per_mille: u16,
}

impl Default for Coordinate {
    fn default() -> Coordinate {
        Coordinate { x_us: 0, y_us: 0, height_us: HEIGHT_US_MIN, error_per_mille: 1000 }
    }
}

impl Coordinate {
    /// The nearest legal coordinate: what a peer says goes through this first.
    pub fn clamped(self) -> Coordinate {
        Coordinate {
            x_us: self.x_us.clamp(-AXIS_US_MAX, AXIS_US_MAX),
            y_us: self.y_us.clamp(-AXIS_US_MAX, AXIS_US_MAX),
            height_us: self.height_us.clamp(HEIGHT_US_MIN, HEIGHT_US_MAX),
            error_per_mille: self.error_per_mille.clamp(ERROR_PER_MILLE_MIN, ERROR_PER_MILLE_MAX),
        }
    }

    /// The estimated round trip between two nodes, in microseconds.
    pub fn distance_us(&self, other: &Coordinate) -> u64 {
        let [x, y] = self.offset_from(other);
        length(x, y) as u64 + self.height_us as u64 + other.height_us as u64
    }

    /// True if distances from here are good enough to choose by.
    pub fn is_useful(&self) -> bool {
        self.error_per_mille <= ERROR_PER_MILLE_USEFUL
    }

    /// How far this is from where the same node was at `before`, in microseconds.
    pub fn moved_us(&self, before: &Coordinate) -> u64 {
        let [x, y] = self.offset_from(before);
        length(x, y) as u64 + self.height_us.abs_diff(before.height_us) as u64
    }

    /// Moves by what a round trip of `rtt_us` to a node at `theirs` tells. `rng` chooses a direction when both are at
    /// the same point.
    pub fn update(&mut self, theirs: Coordinate, rtt_us: u64, rng: &mut Rng) {
        let theirs = theirs.clamped();
        let rtt = rtt_us.clamp(1, AXIS_US_MAX as u64) as f64;
        let [x, y] = self.offset_from(&theirs);
        let in_plane = length(x, y);
        let heights = self.height_us as f64 + theirs.height_us as f64;
        let distance = in_plane + heights;

        let own_error = self.error_per_mille as f64 / 1000.0;
        let weight = own_error / (own_error + theirs.error_per_mille as f64 / 1000.0);
        let seen_error = (distance - rtt).abs() / rtt;
        let share = ERROR_SHARE * weight;
        let error = seen_error * share + own_error * (1.0 - share);

        let pull = PULL * weight * (rtt - distance).clamp(-MISFIT_US_MAX, MISFIT_US_MAX);
        let [to_x, to_y, to_height] = match in_plane < 1.0 {
            true => random_direction(rng),
            false => [x / distance, y / distance, heights / distance],
        };
        *self = Coordinate {
            x_us: (self.x_us as f64 + pull * to_x).round() as i32,
            y_us: (self.y_us as f64 + pull * to_y).round() as i32,
            height_us: (self.height_us as f64 + pull * to_height).round() as u32,
            error_per_mille: (error * 1000.0).round() as u16,
        }
        .clamped();
    }

    /// In the plane, without heights.
    fn offset_from(&self, other: &Coordinate) -> [f64; 2] {
        [self.x_us as f64 - other.x_us as f64, self.y_us as f64 - other.y_us as f64]
    }
}

fn length(x: f64, y: f64) -> f64 {
    (x * x + y * y).sqrt()
}

/// A direction in the plane, of length 1.
fn random_direction(rng: &mut Rng) -> [f64; 3] {
    let mut part = || rng.below(2_000_001) as f64 - 1_000_000.0;
    let (x, y) = (part(), part());
    match length(x, y) {
        0.0 => [1.0, 0.0, 0.0],
        length => [x / length, y / length, 0.0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of three regions, each a little away from its region's core.
    struct World {
        rng: Rng,
        coordinates: Vec<Coordinate>,
        access_us: Vec<u64>,
    }

    const REGION_RTT_US: [[u64; 3]; 3] =
        [[500, 80_000, 150_000], [80_000, 500, 110_000], [150_000, 110_000, 500]];

    impl World {
        fn new(nodes: usize) -> World {
            let mut rng = Rng::new(1);
            let access_us = (0..nodes).map(|_| 100 + rng.below(5_000)).collect();
            World { rng, coordinates: vec![Coordinate::default(); nodes], access_us }
        }

        fn rtt_us(&self, a: usize, b: usize) -> u64 {
            REGION_RTT_US[a % 3][b % 3] + self.access_us[a] + self.access_us[b]
        }

        /// Every node measures `probes` others, with up to 10% of jitter.
        fn round(&mut self, probes: usize) {
            let nodes = self.coordinates.len();
            for node in 0..nodes {
                for _ in 0..probes {
                    let peer = (node + 1 + self.rng.below(nodes as u64 - 1) as usize) % nodes;
                    let rtt_us = self.rtt_us(node, peer);
                    let rtt_us = rtt_us + self.rng.below(rtt_us / 10);
                    let theirs = self.coordinates[peer];
                    self.coordinates[node].update(theirs, rtt_us, &mut self.rng);
                }
            }
        }

        /// The median relative error of all distances, in per cent.
        fn error_percent(&self) -> u64 {
            let nodes = self.coordinates.len();
            let pairs = (0..nodes).flat_map(|a| (0..a).map(move |b| (a, b)));
            let mut errors: Vec<u64> = pairs
                .map(|(a, b)| {
                    let distance_us = self.coordinates[a].distance_us(&self.coordinates[b]);
                    distance_us.abs_diff(self.rtt_us(a, b)) * 100 / self.rtt_us(a, b)
                })
                .collect();
            errors.sort_unstable();
            errors[errors.len() / 2]
        }
    }

    #[test]
    fn distances_become_round_trips() {
        let mut world = World::new(30);
        assert!(world.error_percent() > 95);
        (0..20).for_each(|_| world.round(10));
        assert!(world.error_percent() < 15, "{}", world.error_percent());
        (0..200).for_each(|_| world.round(10));
        assert!(world.error_percent() < 8, "{}", world.error_percent());
        assert!(world.coordinates.iter().all(Coordinate::is_useful), "{:?}", world.coordinates);
        // Who is in the same region is never taken for farther than who is not.
        for (a, b) in (0..30).flat_map(|a| (0..30).map(move |b| (a, b))) {
            let is_near = world.coordinates[a].distance_us(&world.coordinates[b]) < 50_000;
            assert_eq!(is_near, a % 3 == b % 3, "{a} {b}");
        }
    }

    #[test]
    fn a_node_that_comes_later_finds_its_place_without_moving_the_others() {
        let mut world = World::new(30);
        (0..100).for_each(|_| world.round(10));
        let before = world.coordinates.clone();
        world.coordinates[7] = Coordinate::default();
        (0..10).for_each(|_| world.round(10));
        assert!(world.coordinates[7].moved_us(&before[7]) < 30_000);
        for other in (0..30).filter(|other| *other != 7) {
            assert!(world.coordinates[other].moved_us(&before[other]) < 15_000, "{other}");
        }
    }

    #[test]
    fn liars_are_clamped_and_move_a_node_little() {
        let mut world = World::new(30);
        (0..100).for_each(|_| world.round(10));
        let liars = [
            Coordinate { x_us: i32::MAX, y_us: i32::MIN, height_us: u32::MAX, error_per_mille: 0 },
            Coordinate { x_us: i32::MIN, y_us: i32::MAX, height_us: 0, error_per_mille: u16::MAX },
        ];
        for lie in liars {
            let legal = lie.clamped();
            assert_eq!(legal, legal.clamped());
            let before = world.coordinates[0];
            let mut node = before;
            node.update(lie, 100_000, &mut world.rng);
            assert!(node.moved_us(&before) <= 125_000, "{node:?}");
            assert_eq!(node, node.clamped());
            // Honest peers bring it back.
            world.coordinates[0] = node;
            (0..10).for_each(|_| world.round(10));
            assert!(world.coordinates[0].moved_us(&before) < 30_000, "{:?}", world.coordinates[0]);
            node.update(lie, u64::MAX, &mut world.rng);
            node.update(lie, 0, &mut world.rng);
            assert_eq!(node, node.clamped());
        }
    }

    #[test]
    fn nodes_at_the_same_point_move_apart() {
        let mut rng = Rng::new(7);
        let (mut a, mut b) = (Coordinate::default(), Coordinate::default());
        for _ in 0..100 {
            a.update(b, 60_000, &mut rng);
            b.update(a, 60_000, &mut rng);
        }
        assert!(a.distance_us(&b).abs_diff(60_000) < 600, "{a:?} {b:?}");
        assert!(a.error_per_mille < 50);
    }
}
