//! Strife around one key at the end of a run: its owners lose sight of each other, stand still and die, while it is
//! asked on all sides. Nothing else goes wrong by then, and all of it is about this key, so that what needs two rare
//! things at once happens here.

use oort_core::detector::Health;
use oort_core::types::ObjectKey;

use super::{Cluster, Ending, Event};
use crate::faults::Plan;
use crate::trace::EPOCH_MS;
use crate::workload::Planned;

/// So many requests go to the key.
const REQUESTS: u64 = 60;
/// Their time limit, in milliseconds: short, so that what is given up is given up while others go on.
const TIMEOUT_MS: u32 = 300;
/// Nodes take each other for down within this, in microseconds.
const NOTICE_US: u64 = 8_000_000;

impl Cluster {
    /// Clients ask for a key while its owners are at odds on who is there. The answers are judged with all others.
    pub(super) fn strive(&mut self, key: &ObjectKey) {
        let owners = self.primaries(key);
        if owners.len() < 2 {
            return;
        }
        (self.links_stay_open, self.keeps_memory, self.has_striven) = (false, false, true);
        let slow = [300, 3_000, 30_000, 100_000][self.rng.below(4) as usize];
        let slow_links = self.rng.next_u64();
        self.plan =
            Plan { delay_per_mille: 300, delay_us_max: slow, slow_link_us: slow, slow_links, ..Plan::calm() };
        let mut cuts = match self.rng.chance(2, 3) {
            true => self.lose_sight_of(owners[0]).0,
            false => Vec::new(),
        };
        let pause_us = [2_000, 20_000, 60_000][self.rng.below(3) as usize];
        for _ in 0..REQUESTS {
            let machine = match self.rng.chance(2, 3) {
                true => owners[self.rng.below(owners.len() as u64) as usize],
                false => self.rng.below(self.machines.len() as u64) as usize,
            };
            let id = self.history.operations.len() as u64;
            let client = self.rng.below(self.workload.clients.len() as u64) as usize;
            let wall_ms = EPOCH_MS + self.now_us / 1000;
            let (operation, seen) = self.workload.plan_on(key, client, id, wall_ms, &mut self.rng);
            self.submit(client, Planned { machine, operation, timeout_ms: Some(TIMEOUT_MS), seen });
            if self.rng.chance(1, 10) {
                let healed = std::mem::take(&mut cuts);
                self.heal(&healed);
            }
            if self.rng.chance(1, 5) {
                self.strike_owner(&owners);
            }
            let pause_us = 1 + self.rng.below(pause_us);
            self.run_to(self.now_us + pause_us);
        }
        self.calm_down();
        let limit_us = self.convergence_bound_us();
        if !self.wait(limit_us, |cluster| cluster.unanswered == 0 && cluster.has_converged()) {
            self.blame_differences();
        }
    }

    /// A machine is cut off from all others, which take it for down then, as it does them. Returns what is cut, and
    /// whether all have noticed.
    pub(super) fn lose_sight_of(&mut self, machine: usize) -> (Vec<(usize, usize)>, bool) {
        let others = (0..self.machines.len()).filter(|other| *other != machine);
        let cuts: Vec<(usize, usize)> =
            others.flat_map(|other| [(machine, other), (other, machine)]).collect();
        for (a, b) in &cuts {
            self.network.end(*a, *b).cuts += 1;
            self.reset_link(*a, *b, 1_000);
        }
        let is_noticed = self.wait(NOTICE_US, |cluster| {
            let is_down = |(a, b): &(usize, usize)| {
                let (node, peer) = (&cluster.machines[*a].node, cluster.machines[*b].id);
                node.as_ref().zip(peer).is_some_and(|(node, peer)| node.health(peer) == Health::Down)
            };
            cuts.iter().all(is_down)
        });
        (cuts, is_noticed)
    }

    /// One of these machines is not heard by another for a while, stands still, or its process dies.
    fn strike_owner(&mut self, owners: &[usize]) {
        let lasts_us = 1_000 + self.rng.below(2_000 * u64::from(TIMEOUT_MS));
        let first = self.rng.below(owners.len() as u64) as usize;
        let second = (first + 1 + self.rng.below(owners.len() as u64 - 1) as usize) % owners.len();
        let (machine, other) = (owners[first], owners[second]);
        match self.rng.below(4) {
            0 | 1 => {
                let both = [(machine, other), (other, machine)];
                let cuts = both[..1 + self.rng.below(2) as usize].to_vec();
                cuts.iter().for_each(|(a, b)| self.network.end(*a, *b).cuts += 1);
                self.at(self.now_us + lasts_us, Event::Heal { cuts });
            }
            2 => {
                self.stand_still(machine, lasts_us);
            }
            _ if self.machines[machine].is_up() => {
                self.end(machine, Ending::Killed);
                self.at(self.now_us + lasts_us, Event::Start { machine });
            }
            _ => {}
        }
    }
}
