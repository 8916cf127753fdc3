//! How fast a cluster notices a crash, what that costs, and how often it is wrong: the core's own nodes in clusters of
//! up to a thousand, with nothing else to do.
//!
//! The cluster is fully linked. First it rests, and its messages are counted. Then nodes lose power one after the
//! other, without a link closing, so that only silence tells: the time is taken until each other node no longer takes
//! it for up. At last messages get lost, and whoever takes a living node for anything but up is wrong.
//! `docs/failure-detection.md` shows the result.
//!
//! Read next: `world`, `report`.

mod report;
pub mod world;

use oort_core::config::NodeConfig;
use oort_core::detector::Health;
use oort_core::types::Rng;

pub use report::{csv, table};
use world::World;

/// How long the cluster runs before anything is counted, and how long it rests, in microseconds.
const WARM_UP_US: u64 = 2_000_000;
const QUIET_US: u64 = 10_000_000;
/// Between two looks whether all know of a crash.
const STEP_US: u64 = 10_000;
/// When a crash that not all know of counts as not noticed.
const NOTICE_US_MAX: u64 = 60_000_000;
/// One way between two nodes of a data centre.
const WIRE_US: u64 = 150;

/// What is simulated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setup {
    /// At least 3, and more than `crashes` + 1.
    pub nodes: usize,
    /// Crashes whose noticing is timed, one after the other, at least 1.
    pub crashes: usize,
    /// Messages in a thousand that get lost when false suspicions are counted.
    pub loss_per_mille: u64,
    /// For how long they are counted: this long in all nodes together, in seconds.
    pub node_seconds: u64,
    pub seed: u64,
    /// As in every node's configuration.
    pub gossip_ms: u64,
    pub suspect_ms: u64,
}

impl Setup {
    /// A setup with the configuration nodes have by default.
    pub fn new(nodes: usize) -> Setup {
        let NodeConfig { gossip_ms, suspect_ms, .. } = NodeConfig::default();
        let crashes = nodes.saturating_sub(2).clamp(1, 5);
        Setup { nodes, crashes, loss_per_mille: 10, node_seconds: 36_000, seed: 1, gossip_ms, suspect_ms }
    }
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    pub nodes: usize,
    /// From a crash until half of the others, and until all of them, took the node for silent: medians of the crashes,
    /// in milliseconds.
    pub half_know_ms: f64,
    pub all_know_ms: f64,
    /// The slowest crash.
    pub all_know_ms_max: f64,
    /// Sent by each node in a quiet cluster, in a second.
    pub messages_per_s: f64,
    pub bytes_per_s: f64,
    /// Living peers that each node took for silent, in an hour.
    pub false_per_hour: f64,
    /// Until it took such a peer for up again, in milliseconds; 0 if there was none.
    pub heal_ms: f64,
    pub heal_ms_max: f64,
}

/// Runs it all. The same setup measures the same.
pub fn measure(setup: &Setup) -> Measured {
    assert!(setup.nodes > setup.crashes + 1, "somebody must be left to notice");
    let config = NodeConfig {
        cluster_size: 0,
        entropy_ms: 0,
        gossip_ms: setup.gossip_ms,
        suspect_ms: setup.suspect_ms,
        known_bytes: 1 << 10,
        ..NodeConfig::default()
    };
    let mut world = World::new(setup.nodes, &config, |_, _| WIRE_US, setup.seed);
    world.run(WARM_UP_US);
    let (messages_per_s, bytes_per_s) = rest(&mut world);
    let (half_know_ms, all_know_ms, all_know_ms_max) = crash_some(&mut world, setup);
    let (false_per_hour, heal_ms, heal_ms_max) = lose_messages(&mut world, setup);
    Measured {
        nodes: setup.nodes,
        half_know_ms,
        all_know_ms,
        all_know_ms_max,
        messages_per_s,
        bytes_per_s,
        false_per_hour,
        heal_ms,
        heal_ms_max,
    }
}

/// Messages and bytes that each node sends in a second.
fn rest(world: &mut World) -> (f64, f64) {
    let before = (world.messages, world.bytes);
    world.run(QUIET_US);
    let node_seconds = world.nodes.len() as f64 * QUIET_US as f64 / 1e6;
    ((world.messages - before.0) as f64 / node_seconds, (world.bytes - before.1) as f64 / node_seconds)
}

/// Milliseconds until half of the others knew of a crash, until all did, and the most that this took.
fn crash_some(world: &mut World, setup: &Setup) -> (f64, f64, f64) {
    let mut rng = Rng::new(setup.seed);
    let (mut half_us, mut all_us) = (Vec::new(), Vec::new());
    for _ in 0..setup.crashes {
        world.run(1_000_000 + rng.below(setup.gossip_ms * 1000));
        let living: Vec<usize> = world.living().collect();
        let victim = living[rng.below(living.len() as u64) as usize];
        let noticed_us = notice(world, victim, living.len() - 1);
        half_us.push(noticed_us[noticed_us.len() / 2]);
        all_us.push(noticed_us[noticed_us.len() - 1]);
    }
    let most_us = all_us.iter().copied().max().unwrap_or(0);
    (median_ms(half_us), median_ms(all_us), most_us as f64 / 1000.0)
}

/// Ends `victim`; returns when each of the `others` noticed, in ascending order, in microseconds since then.
fn notice(world: &mut World, victim: usize, others: usize) -> Vec<u64> {
    world.opinions.clear();
    world.crash(victim);
    let crashed_us = world.now_us;
    loop {
        world.run(STEP_US);
        let firsts = world.opinions.iter().filter(|opinion| opinion.about == victim);
        let suspicions = firsts.filter(|opinion| opinion.health == Health::Suspect);
        let mut noticed_us: Vec<u64> = suspicions.map(|opinion| opinion.at_us - crashed_us).collect();
        if world.now_us > crashed_us + NOTICE_US_MAX {
            noticed_us.resize(others, NOTICE_US_MAX);
        }
        if noticed_us.len() >= others {
            return noticed_us;
        }
    }
}

/// False suspicions of each node in an hour, the median time in which they heal, and the longest, in milliseconds.
fn lose_messages(world: &mut World, setup: &Setup) -> (f64, f64, f64) {
    // By then all that fell silent before is down.
    world.run(20 * setup.suspect_ms * 1000);
    let living = world.living().count();
    let us = setup.node_seconds * 1_000_000 / living as u64;
    world.loss_per_mille = setup.loss_per_mille;
    world.opinions.clear();
    world.run(us);
    world.loss_per_mille = 0;
    world.run(10_000_000);
    let mut heals_us = Vec::new();
    for (at, opinion) in
        world.opinions.iter().enumerate().filter(|(_, opinion)| opinion.health == Health::Suspect)
    {
        let pair = (opinion.of, opinion.about);
        let healed = world.opinions[at..].iter().find(|o| (o.of, o.about) == pair && o.health == Health::Up);
        heals_us.push(healed.map_or(NOTICE_US_MAX, |healed| healed.at_us - opinion.at_us));
    }
    let hours = us as f64 / 3.6e9 * living as f64;
    let most_us = heals_us.iter().copied().max().unwrap_or(0);
    (heals_us.len() as f64 / hours, median_ms(heals_us), most_us as f64 / 1000.0)
}

/// The middle one, in milliseconds; 0 if there is none.
fn median_ms(mut times_us: Vec<u64>) -> f64 {
    times_us.sort_unstable();
    times_us.get(times_us.len() / 2).map_or(0.0, |us| *us as f64 / 1000.0)
}
