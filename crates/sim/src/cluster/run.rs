//! One run from the first start to the verdict: form, prepare, load under faults, calm, converge, look, judge.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use oort_core::bucket::{ActiveDurability, Conflict};
use oort_core::client::{Operation, Quorum, RequestId};
use oort_core::config::{NodeConfig, SyncMode, Tuning};
use oort_core::detector::Health;
use oort_core::membership::Member;
use oort_core::mutation::Mutation;
use oort_core::object::{common_bytes, Object};
use oort_core::placement::Strategy;
use oort_core::store::Space;
use oort_core::types::{ObjectKey, Rng};
use oort_core::vivaldi::Coordinate;

use super::rings::Rings;
use super::terms::Promises;
use super::testimony::Testimony;
use super::unwritten::Unwritten;
use super::{Cluster, Event, OPERATOR};
use crate::check::{judge, FinalState};
use crate::chronicle::{Chronicle, Subject};
use crate::faults::{Fault, Faults, Plan};
use crate::history::{dots_of, History, OpRecord, Outcome, Violation};
use crate::machine::Machine;
use crate::network::Network;
use crate::panics::caught;
use crate::skips::Skips;
use crate::trace::{show_object, Trace, EPOCH_MS};
use crate::workload::active::ACTIVE_BUCKET;
use crate::workload::{get_operation, KeySpec, Planned, Role, Workload, WORKLOAD_VERSION};

/// How long all must have held a deleted object alike before it is forgotten: more than an operation may take then, a
/// message (1 s, and what is before it), and two standstills of an eighth.
const COLLECT_AFTER_MS: u64 = 2_000;
/// How long an operation may take, in milliseconds, where deleted objects are forgotten so soon.
const SHORT_TIMEOUT_MS: u32 = 300;
/// Virtual time within which a healthy cluster forms.
const FORMATION_US: u64 = 30_000_000;
/// More events than any run needs: a cluster that never rests is caught by it.
const EVENTS_MAX: u64 = 3_000_000;

/// What to simulate. With the same setup a run is the same, event by event.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    /// Machines; drawn from the seed, 3 to 7, if `None`.
    pub nodes: Option<usize>,
    /// Client operations.
    pub ops: usize,
    pub faults: Faults,
    /// A third of the operations go to active objects.
    pub active: bool,
    /// 1, 2 or 3; drawn from the seed if `None`.
    pub strategy: Option<u8>,
    /// Print every event.
    pub trace: bool,
    /// Left out of the seed's history.
    pub skips: Skips,
    /// Tell broken promises as stories, which takes notes of every copy.
    pub tells: bool,
    /// Changes every node's configuration: tests break the core with it.
    pub tweak: Option<fn(&mut NodeConfig)>,
}

impl Setup {
    /// A setup with the usual size and all faults.
    pub fn new(seed: u64) -> Setup {
        Setup {
            seed,
            nodes: None,
            ops: 400,
            faults: Faults::all(),
            active: false,
            strategy: None,
            trace: false,
            skips: Skips::default(),
            tells: false,
            tweak: None,
        }
    }

    /// The command that replays this setup.
    pub fn command(&self) -> String {
        let nodes = self.nodes.map_or(String::new(), |nodes| format!(" --nodes {nodes}"));
        let strategy = self.strategy.map_or(String::new(), |number| format!(" --strategy {number}"));
        let active = if self.active { " --active" } else { "" };
        let Setup { seed, ops, faults, .. } = self;
        let skips = self.skips_flags();
        format!(
            "oort sim --seed {seed}{nodes} --ops {ops} --faults {faults}{strategy}{active}{skips} \
             --workload-version {WORKLOAD_VERSION}"
        )
    }

    fn skips_flags(&self) -> String {
        let Skips { operations, strikes, faults } = &self.skips;
        let mut text = String::new();
        if !faults.is_empty() {
            text += &format!(" --skip-faults {faults}");
        }
        if !operations.is_empty() {
            text += &format!(" --skip-ops {operations}");
        }
        if !strikes.is_empty() {
            text += &format!(" --skip-strikes {strikes}");
        }
        text
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    /// Of the partitioning strategies of Dynamo §6.2: 1, 2 or 3.
    pub strategy: u8,
    pub events: u64,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    pub ops_ok: usize,
    pub ops_failed: usize,
    pub ops_disconnected: usize,
    /// Copies of deleted and expired objects that nodes forgot.
    pub forgotten: u64,
    /// How often each timed fault struck.
    pub strikes: BTreeMap<&'static str, u64>,
    /// How long the replicas took to agree after the faults ended, in microseconds of virtual time.
    pub converged_us: u64,
    pub hash: u64,
    pub violations: Vec<Violation>,
    /// The histories of the first keys that violations name.
    pub stories: Vec<String>,
    /// The same in words, if the setup tells.
    pub told: Vec<String>,
    /// Strikes drawn, those that found nothing to strike and skipped ones too.
    pub strikes_drawn: u64,
    /// The faults that were in force.
    pub in_force: Option<Faults>,
}

/// Runs one simulation. A panic anywhere in it is a broken promise.
pub fn run(setup: &Setup) -> Report {
    caught(|| simulate(setup)).unwrap_or_else(|text| Report {
        seed: setup.seed,
        violations: vec![Violation { checker: "panic", key: None, detail: text }],
        ..Report::default()
    })
}

fn simulate(setup: &Setup) -> Report {
    let mut cluster = Cluster::new(setup);
    let converged_us = caught(|| cluster.live(setup)).unwrap_or_else(|text| {
        cluster.history.blame("panic", None, text);
        0
    });
    cluster.report(setup, converged_us)
}

/// Others wrote the object while this was under way: that fails no matter how many replicas can be reached.
fn lost_to_others(op: &OpRecord) -> bool {
    // So it does where an operator's change took away the owners that were asked, and some of them had it already.
    let is_of_home = match &op.operation {
        Operation::Update { mutation, .. } => matches!(mutation, Mutation::Activate { .. }),
        operation => matches!(operation, Operation::Call { .. }),
    };
    op.error.contains("written by others")
        || is_of_home && !op.is_ring_steady && op.error.contains("may or may not")
}

impl Cluster {
    /// The world of `setup`, with all machines switched off.
    fn new(setup: &Setup) -> Cluster {
        let mut rng = Rng::new(setup.seed);
        let nodes = setup.nodes.unwrap_or(3 + rng.below(5) as usize);
        let mut config = draw_config(nodes, &mut rng);
        // Drawn apart, so that it changes nothing of the rest of a seed's world.
        let mut choices = Rng::new(!setup.seed);
        let (number, tokens) = (1 + choices.below(3) as u8, 1 << (1 + choices.below(3)));
        config.strategy = Strategy::numbered(setup.strategy.unwrap_or(number), tokens);
        if setup.faults.contains(Fault::Ring) && nodes > 3 {
            // Some machines are not in the ring at first.
            config.cluster_size -= Rng::new(setup.seed).below(nodes as u64 - 2) as u16;
        }
        config.collect_after_ms = 0;
        if choices.below(3) > 0 {
            (config.collect_after_ms, config.timeout_ms) = (COLLECT_AFTER_MS, SHORT_TIMEOUT_MS);
        }
        if let Some(tweak) = setup.tweak {
            tweak(&mut config);
        }
        let rest = (config.collect_after_ms > 0).then_some((setup.ops / 2, 4 * COLLECT_AFTER_MS * 1000));
        let collect_after_ms = config.collect_after_ms;
        let network = Network::new(nodes, &mut rng);
        let machines = (0..nodes).map(|index| Machine::new(&mut rng, index as u64)).collect();
        let mut workload = Workload::draw(nodes, setup.ops, &mut rng);
        if setup.active {
            let durability = match choices.below(2) {
                0 => ActiveDurability::Async,
                _ => ActiveDurability::Quorum,
            };
            if Rng::new(setup.seed ^ 1 << 61).chance(1, 4) {
                // Whatever has nothing to write is unloaded soon.
                config.active_bytes = 1;
            }
            let placed = [0, 1, 1, 2][choices.below(4) as usize];
            // They overlap, whatever is drawn.
            let quorums = [(3, 2, 2), (3, 2, 2), (3, 1, 3), (3, 3, 1), (2, 1, 2), (5, 3, 3), (5, 4, 2)];
            let quorum = quorums[Rng::new(setup.seed ^ 1 << 60).below(quorums.len() as u64) as usize];
            workload.add_active(durability, placed, quorum, &mut choices);
        }
        if let Some((left, _)) = rest {
            workload.rest_at(left, SHORT_TIMEOUT_MS);
        }
        Cluster {
            network,
            machines,
            workload,
            config,
            rng,
            now_us: 0,
            queue: BTreeMap::new(),
            made: 0,
            by_id: BTreeMap::new(),
            plan: Plan::calm(),
            links_stay_open: false,
            keeps_memory: false,
            has_striven: false,
            history: History::default(),
            trace: Trace::new(setup.trace),
            troubled_until_us: 0,
            unanswered: 0,
            wall_ms_max: 0,
            forgotten: 0,
            rest,
            rest_until_us: 0,
            next_address: nodes as u64,
            strikes: BTreeMap::new(),
            next_removal_us: 0,
            moved_stamp: 0,
            zones: 1 + choices.below(3) as usize,
            rings: Rings::default(),
            testimony: Testimony::new(collect_after_ms * 1000),
            promises: Promises::default(),
            unwritten: Unwritten::default(),
            debts: Vec::new(),
            has_forced: false,
            lost: None,
            encoded: Vec::new(),
            skips: setup.skips.clone(),
            operations_drawn: 0,
            strikes_drawn: 0,
            chronicle: Chronicle::new(setup.tells),
            scenes: BTreeMap::new(),
        }
    }

    /// The whole story. Returns how long the replicas took to agree.
    fn live(&mut self, setup: &Setup) -> u64 {
        for machine in 0..self.machines.len() {
            let at_us = self.rng.below(20_000);
            self.at(at_us, Event::Start { machine });
        }
        // Two rings can be founded at once: the operator waits until one of the two has been given up.
        let is_formed = |cluster: &Cluster| {
            let mut foundings = cluster.nodes().map(|node| node.membership().founding());
            let first = foundings.next().flatten();
            first.is_some() && foundings.all(|founding| founding == first)
        };
        if !self.wait(FORMATION_US, is_formed) || self.nodes().count() < self.machines.len() {
            self.history.blame("formation", None, "no ring was formed".into());
            return 0;
        }
        if !self.prepare_buckets() {
            let detail = "the buckets' properties did not spread".into();
            self.history.blame("formation", None, detail);
            return 0;
        }
        let drawn = Plan::draw(setup.faults, &mut self.rng);
        let mut plan = drawn.clone();
        plan.leave_out(setup.skips.faults);
        self.chronicle.plan = Some(plan.clone());
        let (is_change, is_harmless, only_starves) =
            (plan.is_change(), plan.is_harmless(), plan.only_starves());
        self.links_stay_open = plan.keeps_links();
        self.keeps_memory = plan.keeps_memory();
        self.trace.line(self.now_us, || format!("{plan:?} {:?}", self.config));
        // Strikes that are left out come due all the same, so that the others keep their times and ordinals.
        self.unleash(Plan { timed: drawn.timed, ..plan });
        self.load(is_change);
        self.calm_down();
        let calm_since_us = self.now_us;
        let mut has_converged = self.wait(self.convergence_bound_us(), Cluster::has_converged);
        let converged_us = self.now_us - calm_since_us;
        // Messages delayed before may still be under way, and what has converged must stay so.
        self.run_to(self.now_us + 2_000_000);
        has_converged &= self.wait(self.convergence_bound_us(), Cluster::has_converged);
        self.check_trees();
        match has_converged {
            true => self.count_hints(),
            false => self.blame_differences(),
        }
        if only_starves {
            self.check_suspicions();
        }
        if has_converged && self.history.violations.is_empty() {
            self.look();
            self.look_at_listings();
            self.look_at_the_future();
            if self.workload.has_active() {
                self.finale();
            } else if self.rng.chance(1, 2) {
                let keys = &self.workload.keys;
                let key = keys[self.rng.below(keys.len() as u64) as usize].key.clone();
                self.strive(&key);
            }
        }
        self.blame_unanswered();
        self.check_foundings();
        let is_calm = !self.has_striven;
        let state = self.final_state(is_harmless && is_calm, is_change && is_calm);
        judge(&mut self.history, &state);
        converged_us
    }

    /// Clients never wait long for an answer, since deleted objects are forgotten soon.
    pub(super) fn has_short_limits(&self) -> bool {
        self.config.collect_after_ms > 0
    }

    pub(super) fn is_interval(&self) -> bool {
        matches!(self.config.sync, SyncMode::Interval { .. })
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &oort_core::node::Node> {
        self.machines.iter().filter_map(|machine| machine.node.as_ref())
    }

    /// Runs until `is_done`, looked at every few milliseconds, or until `limit_us` have passed. True if it is done.
    pub(super) fn wait(&mut self, limit_us: u64, is_done: impl Fn(&Cluster) -> bool) -> bool {
        let end_us = self.now_us + limit_us;
        while self.now_us < end_us {
            let next_us = (self.now_us + 20_000).min(end_us);
            self.run_to(next_us);
            if is_done(self) {
                return true;
            }
        }
        false
    }

    pub(super) fn run_to(&mut self, until_us: u64) {
        while self.queue.first_key_value().is_some_and(|((at_us, _), _)| *at_us <= until_us) {
            self.advance();
            if self.trace.events() == EVENTS_MAX {
                let detail = format!("more than {EVENTS_MAX} events: some node never rests");
                self.history.blame("rest", None, detail);
                self.queue.clear();
            }
        }
        self.now_us = until_us;
    }

    pub(super) fn operator(&mut self, machine: usize, operation: Operation) -> RequestId {
        self.submit(OPERATOR, Planned { machine, operation, timeout_ms: Some(5_000), seen: Vec::new() })
    }

    fn prepare_buckets(&mut self) -> bool {
        let buckets = self.workload.buckets.clone();
        for bucket in &buckets[1..] {
            let machine = self.rng.below(self.machines.len() as u64) as usize;
            self.operator(
                machine,
                Operation::SetBucket { bucket: bucket.name.clone(), properties: bucket.properties.clone() },
            );
        }
        self.wait(FORMATION_US, |cluster| {
            let knows_all = |node: &oort_core::node::Node| {
                let table = node.buckets();
                buckets.iter().all(|bucket| *table.properties(&bucket.name) == bucket.properties)
            };
            cluster.unanswered == 0
                && cluster.is_healthy()
                && cluster.nodes().all(knows_all)
                && cluster.is_settled()
        })
    }

    /// Lets the clients work until all operations are answered.
    fn load(&mut self, is_change: bool) {
        for client in 0..self.workload.clients.len() {
            let at_us = self.now_us + self.rng.below(10_000);
            self.at(at_us, Event::Next { client });
        }
        self.wait(3_600_000_000, |cluster| {
            cluster.workload.left == 0 && cluster.unanswered_since_long() == cluster.unanswered
        });
        if is_change {
            let failed = self
                .history
                .operations
                .iter()
                .enumerate()
                .filter(|(_, op)| op.outcome == Outcome::Unknown && op.timeout_ms >= 1000)
                .filter(|(_, op)| !lost_to_others(op));
            let failed: Vec<String> =
                failed.map(|(id, op)| format!("o{id} failed without any fault: {}", op.error)).collect();
            for detail in failed {
                self.history.blame("availability", None, detail);
            }
        }
    }

    /// Requests that no node will answer any more, as it seems: the end of the run is not kept waiting for them.
    fn unanswered_since_long(&self) -> usize {
        let waiting = self.machines.iter().flat_map(|machine| &machine.waiting);
        waiting
            .filter(|id| self.now_us > self.history.operations[**id as usize].start_us + 60_000_000)
            .count()
    }

    /// Nodes that stood still all at once, with all links open, have no reason to take each other for down.
    fn check_suspicions(&mut self) {
        let told = self.nodes().map(|node| (node.id(), node.metrics().silent_downs));
        let accusers: Vec<String> =
            told.filter(|(_, downs)| *downs > 0).map(|(id, downs)| format!("{id} {downs} times")).collect();
        if !accusers.is_empty() {
            let detail = format!("living peers were taken for down: by {}", accusers.join(", by "));
            self.history.blame("suspicion", None, detail);
        }
    }

    pub(super) fn convergence_bound_us(&self) -> u64 {
        // Each pair of owners compares a partition about once in this time; silent peers are probed every 32 rounds.
        let cut_into = |node: &oort_core::node::Node| node.ring().map_or(0, |ring| ring.partitions() as u64);
        let partitions = self.nodes().map(cut_into).max().unwrap_or(0);
        let comparisons = partitions * self.machines.len() as u64;
        2 * comparisons * self.config.entropy_ms * 1000 + 40 * self.config.gossip_ms * 1000 + 60_000_000
    }

    /// The machines that hold the replicas of `key`.
    pub(super) fn primaries(&self, key: &ObjectKey) -> Vec<usize> {
        let n = self.replication(key.bucket()).0.n as usize;
        let list = self.newest_ring().map_or(&[][..], |ring| ring.preference_at(key.position()));
        list.iter().take(n).filter_map(|id| self.by_id.get(id).copied()).collect()
    }

    pub(super) fn all_keys(&self) -> BTreeSet<ObjectKey> {
        let rows = self.machines.iter().flat_map(|machine| machine.disk.keys(Space::Data));
        let stored =
            rows.map(|row| ObjectKey::from_row(row).expect("a node stores objects under their rows"));
        stored.chain(self.history.keys.keys().cloned()).collect()
    }

    pub(super) fn differs(&self, key: &ObjectKey) -> bool {
        let mut rows = self.primaries(key).into_iter().map(|index| {
            let disk = &self.machines[index].disk;
            disk.row(Space::Data, key.row()).map(|bytes| common_bytes(&bytes).to_vec())
        });
        let first = rows.next().flatten();
        rows.any(|row| row != first)
    }

    fn strays(&self, key: &ObjectKey) -> Vec<usize> {
        let primaries = self.primaries(key);
        (0..self.machines.len())
            .filter(|index| !primaries.contains(index))
            .filter(|index| self.machines[*index].disk.row(Space::Data, key.row()).is_some())
            .collect()
    }

    /// True if every node takes every other for up.
    pub(super) fn is_healthy(&self) -> bool {
        let ids = || self.machines.iter().filter_map(|machine| machine.id);
        self.nodes().all(|node| ids().all(|id| node.health(id) == Health::Up))
    }

    /// True if all nodes know the same ring, no data move, and what operators want of buckets is in force.
    fn is_settled(&self) -> bool {
        let mut stamps = self.nodes().filter_map(|node| node.ring()).map(|ring| ring.stamp());
        let first = stamps.next();
        stamps.all(|stamp| Some(stamp) == first)
            && self.nodes().all(|node| {
                node.ring().is_some_and(|ring| {
                    let mut wishes = node.buckets().entries();
                    !ring.is_moving()
                        && wishes
                            .all(|(name, entry)| ring.replication(name) == entry.properties.replication())
                })
            })
    }

    /// True if no ring knows a node whose disk was lost, and its machine holds data again.
    fn is_replaced(&self) -> bool {
        let Some(lost) = &self.lost else { return true };
        self.newest_ring().is_some_and(|ring| {
            !ring.state().contains(lost.old)
                && self.nodes().all(|node| !node.membership().members.contains_key(&lost.old))
        })
    }

    /// True if all nodes know the same of members and buckets.
    fn tables_agree(&self) -> bool {
        // What a member says of its place in the network, and how often it has said something, may be on its way.
        let table = |node: &oort_core::node::Node| {
            let members = node.membership().members.values().map(|member| Member {
                version: 0,
                coordinate: Coordinate::default(),
                ..member.clone()
            });
            (members.collect::<Vec<Member>>(), node.buckets().clone())
        };
        let mut tables = self.nodes().map(table);
        let first = tables.next();
        tables.all(|table| Some(&table) == first.as_ref())
    }

    pub(super) fn has_converged(&self) -> bool {
        self.nodes().count() == self.machines.len()
            && self.is_healthy()
            && self.is_settled()
            && self.is_replaced()
            && self.tables_agree()
            && self.machines.iter().all(|machine| {
                !machine.is_stopping && !machine.is_stalled(self.now_us) && machine.waiting.is_empty()
            })
            && self.machines.iter().all(|m| m.disk.count(Space::Hints) == 0)
            && self.all_keys().iter().all(|key| !self.differs(key) && self.strays(key).is_empty())
    }

    /// The sums that writes have kept up to date must be those of the rows.
    fn check_trees(&mut self) {
        for (index, machine) in self.machines.iter().enumerate() {
            let miscounts = machine.node.as_ref().map_or(0, |node| node.metrics().entropy_miscounts);
            if miscounts > 0 {
                let detail = format!("n{index} found {miscounts} sums of its hash tree wrong");
                self.history.violations.push(Violation { checker: "tree", key: None, detail });
            }
        }
    }

    pub(super) fn blame_differences(&mut self) {
        for (index, machine) in self.machines.iter().enumerate() {
            if machine.node.is_none() {
                let detail = format!("n{index} is not up at the end");
                self.history.violations.push(Violation { checker: "formation", key: None, detail });
            }
            if !self.is_healthy() && index == 0 {
                let detail = "some node still takes another for down".to_string();
                self.history.violations.push(Violation { checker: "formation", key: None, detail });
            }
            if !self.is_settled() && index == 0 {
                let detail = "the ring did not settle".to_string();
                self.history.violations.push(Violation { checker: "formation", key: None, detail });
            }
            if !(self.is_replaced() && self.tables_agree()) && index == 0 {
                let detail = "the nodes' tables of members or buckets differ".to_string();
                self.history.violations.push(Violation { checker: "tables", key: None, detail });
            }
            let hints = machine.disk.count(Space::Hints);
            if hints > 0 {
                let detail = format!("n{index} still holds {hints} hints");
                self.history.violations.push(Violation { checker: "hints", key: None, detail });
            }
        }
        for key in self.all_keys() {
            if self.differs(&key) {
                let copies: Vec<String> = self
                    .primaries(&key)
                    .into_iter()
                    .map(|index| format!("\n    n{index} {}", self.show_row(index, &key)))
                    .collect();
                let detail = format!("replicas differ:{}", copies.concat());
                self.history.blame("convergence", Some(&key), detail);
            }
            for index in self.strays(&key) {
                let detail = format!("n{index} is no replica and holds {}", self.show_row(index, &key));
                self.history.blame("strays", Some(&key), detail);
            }
        }
    }

    fn show_row(&self, index: usize, key: &ObjectKey) -> String {
        match self.machines[index].disk.row(Space::Data, key.row()) {
            None => "nothing readable".into(),
            Some(bytes) => match Object::decode(&bytes) {
                Ok(object) => show_object(&object, &|dot| self.history.name(dot)),
                Err(error) => format!("({error})"),
            },
        }
    }

    /// Reads every key through some node, and compares with what the replicas hold.
    fn look(&mut self) {
        let mut gets = Vec::new();
        for key in self.all_keys() {
            let machine = self.rng.below(self.machines.len() as u64) as usize;
            let n = self.replication(key.bucket()).0.n as u64;
            let quorum = Quorum { r: Some(1 + self.rng.below(n) as u8), ..Quorum::default() };
            let is_key = |spec: &KeySpec| spec.key == key;
            let role = self.workload.keys.iter().find(|spec| is_key(spec)).map(|spec| spec.role);
            if matches!(role, Some(Role::Ticker { .. })) {
                // It changes by itself.
                continue;
            }
            let operation = match role.is_some_and(Role::is_active) {
                true => Operation::Get { key: key.clone(), quorum },
                false => get_operation(key.clone(), quorum, &mut self.rng),
            };
            gets.push((key, self.operator(machine, operation)));
            // One by one: some seeds allow a node very few requests at a time.
            while self.unanswered > 0 && self.advance() {}
        }
        for (key, id) in gets {
            let mut held = self.held(&key).map_or(Vec::new(), |object| dots_of(&object));
            // What is dead may have been forgotten between the two.
            let past = self.history.keys.get(&key);
            let forgotten: Vec<_> = past.map_or(Vec::new(), |past| past.forgotten_until(u64::MAX).collect());
            held.retain(|dot| !forgotten.contains(dot));
            // The only copy was damaged, and nobody can mend it, also once there are to be more.
            let is_lost = past.is_some_and(|past| past.was_corrupted) && self.had_one_copy(&key);
            let record = self.history.operation(id);
            let mut read = record.read.clone();
            read.retain(|dot| !forgotten.contains(dot));
            if (record.outcome != Outcome::Acked && !is_lost) || read != held {
                let (outcome, read, error) = (record.outcome, record.read.clone(), record.error.clone());
                let detail = format!(
                    "n{} answered {outcome:?} {} {error}; the replicas hold {}",
                    self.history.operations[id as usize].machine,
                    self.history.names(&read),
                    self.history.names(&held)
                );
                self.history.blame("final-read", Some(&key), detail);
            }
        }
    }

    /// A context from the far future is refused, lest clocks follow it.
    fn look_at_the_future(&mut self) {
        let plain = self.workload.keys.iter().find(|spec| !spec.role.is_active());
        let Some(key) = plain.map(|spec| spec.key.clone()) else { return };
        let machine = self.rng.below(self.machines.len() as u64) as usize;
        let wall_ms = EPOCH_MS + self.now_us / 1000;
        let id = self.operator(machine, Workload::delete_from_the_future(key.clone(), wall_ms));
        while self.unanswered > 0 && self.advance() {}
        let record = self.history.operation(id);
        if record.outcome != Outcome::Refused {
            let detail =
                format!("o{id} knows what is half an hour ahead, and was answered {:?}", record.outcome);
            self.history.blame("clocks", Some(&key), detail);
        }
    }

    /// The key's bucket has one copy, or had at some time.
    fn had_one_copy(&self, key: &ObjectKey) -> bool {
        let is_one = |op: &OpRecord| match &op.operation {
            Operation::SetBucket { bucket, properties } => *bucket == key.bucket() && properties.n == 1,
            _ => false,
        };
        self.primaries(key).len() == 1 || self.history.operations.iter().any(is_one)
    }

    /// What all replicas of `key` hold.
    pub(super) fn held(&self, key: &ObjectKey) -> Option<Object> {
        let index = *self.primaries(key).first()?;
        let bytes: Bytes = self.machines[index].disk.row(Space::Data, key.row())?;
        Object::decode(&bytes).ok()
    }

    /// All nodes belong to the cluster that was founded at the start.
    fn check_foundings(&mut self) {
        let foundings: BTreeSet<_> = self.nodes().map(|node| node.membership().founding()).collect();
        if foundings.len() > 1 {
            let detail = format!("at the end the nodes belong to clusters of the foundings {foundings:?}");
            self.history.blame("identity", None, detail);
        }
    }

    fn blame_unanswered(&mut self) {
        let waiting: Vec<(usize, RequestId)> = self
            .machines
            .iter()
            .enumerate()
            .flat_map(|(index, machine)| machine.waiting.iter().map(move |id| (index, *id)))
            .collect();
        for (index, id) in waiting {
            let detail = format!("n{index} never answered o{id}");
            let key = crate::trace::key_of(&self.history.operation(id).operation).cloned();
            self.history.blame("answers", key.as_ref(), detail);
        }
    }

    fn final_state(&self, is_faultless: bool, is_change: bool) -> FinalState {
        let objects = self.all_keys().into_iter().map(|key| {
            let mut merged: Option<Object> = None;
            for index in self.primaries(&key) {
                let row = self.machines[index].disk.row(Space::Data, key.row());
                if let Some(object) = row.and_then(|bytes| Object::decode(&bytes).ok()) {
                    merged.get_or_insert_with(Object::default).merge(&object);
                }
            }
            (key, merged)
        });
        let is_lww = |properties: &oort_core::bucket::BucketProperties| properties.conflict == Conflict::Lww;
        let keys = self.workload.keys.iter();
        FinalState {
            objects: objects.collect(),
            lww_buckets: self
                .workload
                .buckets
                .iter()
                .filter(|bucket| is_lww(&bucket.properties))
                .map(|bucket| bucket.name.to_vec())
                .collect(),
            active: keys
                .clone()
                .filter(|spec| spec.role.is_active())
                .map(|spec| (spec.key.clone(), spec.role))
                .collect(),
            counters: keys.filter(|spec| spec.role == Role::Counter).map(|spec| spec.key.clone()).collect(),
            wall_ms_max: self.wall_ms_max,
            is_async: !self.keeps_memory
                && self.workload.buckets.iter().any(|bucket| {
                    bucket.name == ACTIVE_BUCKET
                        && bucket.properties.aso.durability == ActiveDurability::Async
                }),
            is_interval: self.is_interval(),
            has_lost_disk: self.lost.is_some(),
            is_faultless,
            is_change,
        }
    }

    /// The stories of `keys` in words; the story of the cluster if there is none.
    fn told(&self, keys: &[ObjectKey]) -> Vec<String> {
        let keys: Vec<Option<&ObjectKey>> = match keys.is_empty() {
            true => vec![None],
            false => keys.iter().map(Some).collect(),
        };
        let tell = |key: Option<&ObjectKey>| {
            let held = |key: &ObjectKey| {
                self.machines.iter().map(|machine| machine.disk.row(Space::Data, key.row())).collect()
            };
            self.chronicle.tell(&Subject {
                history: &self.history,
                key,
                primaries: key.map_or(Vec::new(), |key| self.primaries(key)),
                rows: key.map_or(Vec::new(), held),
                operator: OPERATOR,
            })
        };
        keys.into_iter().map(tell).collect()
    }

    fn report(self, setup: &Setup, converged_us: u64) -> Report {
        let clients = self.history.operations.iter().filter(|op| op.client != OPERATOR);
        let outcomes: Vec<Outcome> = clients.map(|op| op.outcome).collect();
        let count = |wanted: &[Outcome]| outcomes.iter().filter(|outcome| wanted.contains(outcome)).count();
        let mut keys: Vec<ObjectKey> = Vec::new();
        for key in self.history.violations.iter().filter_map(|violation| violation.key.clone()) {
            if !keys.contains(&key) && keys.len() < 3 {
                keys.push(key);
            }
        }
        let told = if setup.tells { self.told(&keys) } else { Vec::new() };
        Report {
            seed: setup.seed,
            nodes: self.machines.len(),
            strategy: self.config.strategy.number(),
            events: self.trace.events(),
            virtual_us: self.now_us,
            ops_ok: count(&[Outcome::Acked, Outcome::NotApplied]),
            ops_failed: count(&[Outcome::Refused, Outcome::Unknown, Outcome::Pending]),
            ops_disconnected: count(&[Outcome::Disconnected]),
            forgotten: self.forgotten,
            strikes: self.strikes,
            converged_us,
            hash: self.trace.hash(),
            told,
            strikes_drawn: self.strikes_drawn,
            in_force: self.chronicle.plan.as_ref().map(Plan::in_force),
            stories: keys.iter().map(|key| self.history.tell(key)).collect(),
            violations: self.history.violations,
        }
    }
}

/// Draws the configuration that all nodes of a seed share.
fn draw_config(nodes: usize, rng: &mut Rng) -> NodeConfig {
    let pick = |choices: &[u64], rng: &mut Rng| choices[rng.below(choices.len() as u64) as usize];
    NodeConfig {
        cluster: "simulated".into(),
        cluster_size: nodes as u16,
        partitions: pick(&[8, 16, 32, 64], rng) as u16,
        sync: match rng.chance(1, 6) {
            true => SyncMode::Interval { ms: pick(&[5, 50, 500], rng) },
            false => SyncMode::Batch,
        },
        hedge_us: pick(&[1_000, 5_000, 50_000], rng),
        suspect_ms: pick(&[20, 50, 200], rng),
        gossip_ms: pick(&[100, 200, 500], rng),
        entropy_ms: pick(&[20, 50, 200], rng),
        handoff_window: pick(&[2, 8, 128], rng) as usize,
        requests_max: match rng.chance(1, 12) {
            true => 4,
            false => 100_000,
        },
        // So small that entries fall out.
        known_bytes: 1 << 10,
        tuning: draw_tuning(rng),
        ..NodeConfig::default()
    }
}

/// Half of the seeds do so little at a time that pages turn, though there are few keys.
fn draw_tuning(rng: &mut Rng) -> Tuning {
    if rng.chance(1, 2) {
        return Tuning::default();
    }
    let mut few = || 1 + rng.below(4) as usize;
    Tuning {
        transfer_rows: 3 + few(),
        transfer_visited: 3 + few(),
        verified_rows: few(),
        dropped_rows: few(),
        turned_over_hints: few(),
        listed_rows: few() as u32,
        visited_rows: few() as u32,
        checked_rows: few(),
        repairs: few(),
        collected_rows: few(),
        placed_objects: few(),
    }
}
