//! Things that go wrong at points in time, and how they end.

use oort_core::bucket::{BucketProperties, DEFAULT_BUCKET};
use oort_core::client::{Operation, Quorum, Request, RequestId, Want};
use oort_core::config::NodeConfig;
use oort_core::detector::Health;
use oort_core::membership::{Dials, Gossip, Hello};
use oort_core::message::{Control, Message};
use oort_core::mutation::Mutation;
use oort_core::node::{Input, Node};
use oort_core::object::Object;
use oort_core::placement::RingNode;
use oort_core::ring::{RingChange, RingState};
use oort_core::store::Space;
use oort_core::types::{NodeId, Now, ObjectKey, Rng};

use super::{Cluster, Ending, Event, Lost};
use crate::chronicle::Incident;
use crate::disk::Disk;
use crate::faults::{Fault, Plan, Timing};
use crate::machine::Clock;
use crate::trace::key_of;
use crate::workload::active::{ACTIVE_BUCKET, TALLY_BUCKET};

/// Of machines that stood still at once the last goes on within so many times `suspect_ms` of the first: long enough to
/// be suspect, too short to be down.
const STAGGER_FACTOR: u64 = 4;
/// A fault that may befall an owner while it is asked for something.
const BEFALLING: [Fault; 6] =
    [Fault::Slow, Fault::Split, Fault::OneWay, Fault::Restart, Fault::Crash, Fault::DiskFull];

impl Cluster {
    /// Starts the faults of this seed's plan.
    pub(super) fn unleash(&mut self, plan: Plan) {
        let timed: Vec<(Fault, Timing)> =
            plan.timed.iter().map(|(fault, timing)| (*fault, *timing)).collect();
        self.plan = plan;
        for (fault, timing) in timed {
            let at_us = self.now_us + self.rng.below(2 * timing.gap_us_mean);
            self.at(at_us, Event::Strike { fault });
        }
    }

    /// Ends all faults: links heal, machines come back, clocks are set.
    pub(super) fn calm_down(&mut self) {
        self.plan = Plan::calm();
        self.trace.line(self.now_us, || "the faults end".to_string());
        self.chronicle.note(self.now_us, Incident::Calm);
        // Whoever has not noticed a broken connection notices now.
        let closings: Vec<(u64, u64)> = self
            .queue
            .iter()
            .filter(|(_, event)| matches!(event, Event::LinkClosed { .. }))
            .map(|(at, _)| *at)
            .collect();
        for at in closings {
            let event = self.queue.remove(&at).expect("it was just seen");
            self.at(self.now_us, event);
        }
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                self.network.end(a, b).cuts = 0;
            }
            let offset_us = self.rng.below(10_000) as i64 - 5_000;
            let machine = &mut self.machines[a];
            machine.disk.set_full(false);
            machine.disk_slowness = 1;
            machine.clock = Clock { offset_us, ..Clock::default() };
            if !machine.is_up() {
                self.at(self.now_us, Event::Start { machine: a });
            }
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        let Some(&timing) = self.plan.timed.get(&fault) else {
            return;
        };
        let lasts_us = 1_000 + self.rng.below(timing.lasts_us_max);
        let next_us = self.now_us + lasts_us + self.rng.below(2 * timing.gap_us_mean);
        self.at(next_us, Event::Strike { fault });
        let machine = self.rng.below(self.machines.len() as u64) as usize;
        if self.skips_strike(fault) {
            return;
        }
        let place = self.chronicle.place();
        let has_struck = match fault {
            Fault::Split | Fault::OneWay => self.split(machine, fault, lasts_us),
            Fault::Skew => self.skew(machine),
            Fault::Crash => self.crash(machine, lasts_us),
            Fault::Restart => self.restart(machine, lasts_us),
            Fault::Slow => self.slow_down(machine, lasts_us),
            Fault::DiskFull => self.fill_disk(machine, lasts_us),
            Fault::Corrupt => self.corrupt(machine),
            Fault::Ring => self.change_ring(machine),
            Fault::Stranger => self.meet_stranger(machine),
            Fault::Address => self.readdress(machine, lasts_us),
            Fault::Clock => self.set_clock_far(machine),
            Fault::Starve => self.starve(lasts_us),
            Fault::Bucket => self.change_bucket(machine),
            Fault::Removal => self.try_removal(machine),
            Fault::DiskLoss => self.lose_disk(machine, lasts_us),
            Fault::Delay | Fault::Loss | Fault::Duplicate | Fault::Reorder | Fault::SlowLink => false,
        };
        if has_struck {
            *self.strikes.entry(fault.name()).or_default() += 1;
            let ordinal = self.strikes_drawn;
            let incident = Incident::Strike { fault, machine, lasts_us, ordinal };
            self.chronicle.note_before(place, self.now_us, incident);
            self.trace.event(self.now_us, b'!', machine);
            self.trace.line(self.now_us, || {
                format!("{} strikes n{machine} for {} ms", fault.name(), lasts_us / 1000)
            });
        }
    }

    fn split(&mut self, machine: usize, fault: Fault, lasts_us: u64) -> bool {
        let machines = self.machines.len();
        if machines < 2 {
            return false;
        }
        // One link, or everything between a side and the rest.
        let mut cuts = Vec::new();
        if self.rng.chance(1, 4) {
            let other = (machine + 1 + self.rng.below(machines as u64 - 1) as usize) % machines;
            cuts.push((machine, other));
        } else {
            let mut side: Vec<bool> = (0..machines).map(|_| self.rng.chance(1, 3)).collect();
            side[machine] = true;
            for a in 0..machines {
                for b in 0..machines {
                    if side[a] && !side[b] {
                        cuts.push((a, b));
                    }
                }
            }
        }
        if fault == Fault::Split {
            let back: Vec<(usize, usize)> = cuts.iter().map(|(a, b)| (*b, *a)).collect();
            cuts.extend(back);
        }
        let is_noticed = self.rng.chance(1, 2);
        self.chronicle.note(self.now_us, Incident::Cut { links: cuts.clone() });
        for (a, b) in cuts.clone() {
            self.network.end(a, b).cuts += 1;
            if is_noticed && self.rng.chance(2, 3) {
                self.reset_link(a, b, 2_000_000);
            }
        }
        self.at(self.now_us + lasts_us, Event::Heal { cuts });
        true
    }

    pub(super) fn heal(&mut self, cuts: &[(usize, usize)]) {
        for (a, b) in cuts {
            let end = self.network.end(*a, *b);
            end.cuts = end.cuts.saturating_sub(1);
        }
        self.trouble_until(self.now_us);
        self.trace.line(self.now_us, || format!("healed: {cuts:?}"));
        self.chronicle.note(self.now_us, Incident::Heal { links: cuts.to_vec() });
    }

    fn skew(&mut self, machine: usize) -> bool {
        let skew_us = self.plan.skew_us_max as i64;
        let offset_us = self.rng.below(2 * skew_us as u64) as i64 - skew_us;
        let drift_ppm = match self.rng.chance(1, 2) {
            true => 0,
            false => self.rng.below(20_000) as i64 - 10_000,
        };
        self.machines[machine].clock = Clock { offset_us, drift_ppm, since_us: self.now_us };
        true
    }

    fn crash(&mut self, machine: usize, lasts_us: u64) -> bool {
        if !self.machines[machine].is_up() {
            return false;
        }
        // Now and then the whole room goes dark.
        let victims = match self.rng.chance(1, 6) {
            true => (0..self.machines.len()).collect(),
            false => vec![machine],
        };
        for victim in victims {
            if self.machines[victim].is_up() {
                self.end(victim, Ending::PowerLoss);
                let at_us = self.now_us + 10_000 + self.rng.below(lasts_us);
                self.at(at_us, Event::Start { machine: victim });
            }
        }
        true
    }

    fn restart(&mut self, machine: usize, lasts_us: u64) -> bool {
        let boot = self.machines[machine].boots;
        if !self.machines[machine].is_up() || self.machines[machine].is_stopping {
            return false;
        }
        let mut end_us = self.now_us;
        if self.rng.chance(1, 2) {
            self.at(self.now_us, Event::Stop { machine, boot });
            end_us += 1_000 + self.rng.below(200_000);
        }
        let ending = Ending::Killed;
        self.at(end_us, Event::End { machine, boot, ending });
        self.at(end_us + 5_000 + lasts_us, Event::Start { machine });
        true
    }

    /// A machine restarts elsewhere; now and then two swap places.
    fn readdress(&mut self, machine: usize, lasts_us: u64) -> bool {
        let other = self.rng.below(self.machines.len() as u64) as usize;
        let with = (other != machine && self.rng.chance(1, 3)).then_some(other);
        let is_free = |machine: usize| self.machines[machine].is_up() && !self.machines[machine].is_stopping;
        if ![Some(machine), with].into_iter().flatten().all(is_free) {
            return false;
        }
        for index in [Some(machine), with].into_iter().flatten() {
            self.end(index, Ending::Killed);
            self.at(self.now_us + 5_000 + lasts_us, Event::Start { machine: index });
        }
        self.at(self.now_us + 1_000, Event::Move { machine, with });
        true
    }

    pub(super) fn move_address(&mut self, machine: usize, with: Option<usize>) {
        // The faults may have ended meanwhile, and the machines be up again.
        if [Some(machine), with].into_iter().flatten().any(|index| self.machines[index].is_up()) {
            return;
        }
        match with {
            Some(other) => {
                let address = self.machines[other].address;
                self.machines[other].address =
                    std::mem::replace(&mut self.machines[machine].address, address);
            }
            None => {
                self.machines[machine].address = self.next_address;
                self.next_address += 1;
            }
        }
        self.trace.line(self.now_us, || format!("n{machine} moves, with {with:?}"));
    }

    /// Sets the clock of one of a minority of machines far behind or ahead.
    fn set_clock_far(&mut self, machine: usize) -> bool {
        let machine = machine % ((self.machines.len() - 1) / 2).max(1);
        let far_us = [70_000_000, 600_000_000, 7_200_000_000][self.rng.below(3) as usize];
        let offset_us = if self.rng.chance(1, 2) { far_us } else { -far_us };
        if !self.machines[machine].is_up() {
            return false;
        }
        self.machines[machine].clock = Clock { offset_us, drift_ppm: 0, since_us: self.now_us };
        true
    }

    /// A node of another cluster of the same name turns up. Neither side may take the other in.
    fn meet_stranger(&mut self, machine: usize) -> bool {
        let seed = self.rng.next_u64();
        let now = self.machines[machine].now(self.now_us);
        let Some(node) = &self.machines[machine].node else { return false };
        let Some(ours) = node.ring().map(|ring| ring.state().clone()) else { return false };
        let peers = self.machines.iter().filter_map(|machine| machine.id);
        let up: Vec<NodeId> = peers.filter(|id| *id != node.id() && node.health(*id) == Health::Up).collect();
        let has_ring = self.rng.chance(2, 3);
        let config = NodeConfig {
            name: "stranger".into(),
            addresses: node.config().addresses.clone(),
            cluster_size: has_ring as u16,
            ..self.config.clone()
        };
        let disk = Box::new(Disk::default().store());
        let mut stranger = Node::open(config, seed, disk, now).expect("an empty disk has no bad records");
        stranger.step(now, Input::Tick, &mut Vec::new());
        if has_ring && self.rng.chance(1, 2) {
            settle(&mut stranger, now);
        }
        // It did not ask: the machine found it at the address of a member.
        let dials = Dials { we: false, they: false };
        let is_taken_in = node.check(&stranger.hello(now), dials).is_ok();
        let takes_in = stranger.check(&node.hello(now), dials).is_ok();
        if is_taken_in || takes_in {
            let detail = format!("n{machine} and a node of another cluster link (ring there: {has_ring})");
            self.history.blame("identity", None, detail);
        }
        let Some(theirs) = stranger.ring().map(|ring| ring.state().clone()) else { return true };
        let is_copy_let_in = self.copy_let_in(machine, &up);
        if let Some(peer) = is_copy_let_in {
            let detail = format!("n{machine} lets in a second process with the id {peer}");
            self.history.blame("identity", None, detail);
        }
        // Whoever holds data keeps to its founding, whatever it says.
        let is_settled = self.machines[machine].disk.count(Space::Data) > 0;
        if let (true, Some(&from)) = (self.rng.chance(1, 2) && is_settled, up.first()) {
            // Had they linked before either had a ring, this is how the machine would learn of the other ring.
            let ring = Some(RingState { version: ours.version + theirs.version, ..theirs });
            let delta = Gossip::Delta { members: Vec::new(), ring, buckets: Vec::new() };
            let message = Message::Control(Control::Gossip(delta));
            self.deliver(machine, Input::Message { from, message });
        }
        true
    }

    /// A peer that is up, of which the machine would let in another process with the same id.
    fn copy_let_in(&self, machine: usize, up: &[NodeId]) -> Option<NodeId> {
        let node = self.machines[machine].node.as_ref()?;
        let is_let_in = |peer: &&NodeId| {
            let other = self.by_id.get(peer).and_then(|index| self.machines[*index].node.as_ref());
            let hello = other.map(|other| other.hello(self.machines[machine].now(self.now_us)));
            let copy = hello.map(|hello| Hello { session: !hello.session, ..hello });
            copy.is_some_and(|copy| node.check(&copy, Dials { we: true, they: true }).is_ok())
        };
        up.iter().find(is_let_in).copied()
    }

    fn slow_down(&mut self, machine: usize, lasts_us: u64) -> bool {
        let until_us = self.now_us + lasts_us;
        if self.rng.chance(1, 4) {
            self.machines[machine].disk_slowness = 2 + self.rng.below(100);
            // The last slow turn may begin at the very end.
            self.machines[machine].slow_disk_until_us = until_us + 102 * self.machines[machine].sync_us;
            let slow_until_us = self.machines[machine].slow_disk_until_us;
            self.machines[machine].trouble_until(slow_until_us);
            self.at(until_us, Event::SpeedUpDisk { machine });
            return true;
        }
        self.stand_still(machine, lasts_us)
    }

    pub(super) fn stand_still(&mut self, machine: usize, lasts_us: u64) -> bool {
        let until_us = self.now_us + lasts_us;
        let is_long = self.testimony.is_long(lasts_us);
        let machine = &mut self.machines[machine];
        if machine.is_stalled(self.now_us) {
            return false;
        }
        machine.stalled_until_us = until_us;
        machine.stalled_us += lasts_us;
        machine.trouble_until(until_us);
        if is_long {
            machine.awake_since_us = until_us;
        }
        self.trouble_until(until_us);
        true
    }

    /// All machines stand still; some get their processor back a little later than others.
    fn starve(&mut self, lasts_us: u64) -> bool {
        let stagger_us = STAGGER_FACTOR * self.config.suspect_ms * 1000;
        for machine in &mut self.machines {
            let until_us = self.now_us + lasts_us + self.rng.below(stagger_us);
            let from_us = self.now_us.max(machine.stalled_until_us);
            let lasts_us = until_us.saturating_sub(from_us);
            machine.stalled_us += lasts_us;
            machine.stalled_until_us = from_us.max(until_us);
            machine.trouble_until(until_us);
            if self.testimony.is_long(lasts_us) {
                machine.awake_since_us = machine.stalled_until_us;
            }
        }
        let latest_us = self.machines.iter().map(|machine| machine.stalled_until_us).max();
        self.trouble_until(latest_us.unwrap_or(0));
        true
    }

    /// A request goes out. Now and then something befalls an owner of its key just then, mostly the home, of what is in
    /// force: while the request is under way, and perhaps for longer than that may be.
    pub(super) fn trouble_owner(&mut self, id: RequestId) {
        let record = self.history.operation(id);
        let Some(key) = key_of(&record.operation).cloned() else { return };
        let timeout_us = record.timeout_ms * 1000;
        let faults: Vec<Fault> =
            BEFALLING.into_iter().filter(|fault| self.plan.timed.contains_key(fault)).collect();
        let one_in = if self.workload.is_active(&key) { 12 } else { 40 };
        if faults.is_empty() || !self.rng.chance(1, one_in) {
            return;
        }
        let fault = faults[self.rng.below(faults.len() as u64) as usize];
        let owners = self.primaries(&key);
        let at = if self.rng.chance(2, 3) { 0 } else { self.rng.below(owners.len().max(1) as u64) as usize };
        let delay_us = [1_000, 5_000, 30_000][self.rng.below(3) as usize];
        let at_us = self.now_us + self.rng.below(delay_us);
        let lasts_us = self.rng.below(2 * timeout_us) + if fault == Fault::Slow { timeout_us } else { 1 };
        let Some(machine) = owners.get(at).copied().filter(|_| !self.skips.faults.contains(fault)) else {
            return;
        };
        self.at(at_us, Event::Befall { machine, fault, lasts_us });
    }

    /// The trouble that [`Cluster::trouble_owner`] has drawn happens.
    pub(super) fn befall(&mut self, machine: usize, fault: Fault, lasts_us: u64) {
        if !self.plan.timed.contains_key(&fault) {
            return;
        }
        let is_free = self.machines[machine].is_up() && !self.machines[machine].is_stopping;
        match fault {
            Fault::Slow => {
                self.stand_still(machine, lasts_us);
            }
            Fault::DiskFull => {
                self.fill_disk(machine, lasts_us);
            }
            Fault::Split | Fault::OneWay => self.cut_off(machine, fault, lasts_us),
            Fault::Restart | Fault::Crash if is_free => {
                let ending = if fault == Fault::Crash { Ending::PowerLoss } else { Ending::Killed };
                self.end(machine, ending);
                self.at(self.now_us + 5_000 + lasts_us, Event::Start { machine });
            }
            _ => {}
        }
        self.trace
            .line(self.now_us, || format!("{} befalls n{machine} for {} ms", fault.name(), lasts_us / 1000));
    }

    /// A machine is not heard any more by another or by all others, and with `split` does not hear them: nobody notices
    /// at once. Where processes end, its own may end meanwhile, before it can make good what it began.
    fn cut_off(&mut self, machine: usize, fault: Fault, lasts_us: u64) {
        let machines = self.machines.len();
        let mut others: Vec<usize> = (0..machines).filter(|other| *other != machine).collect();
        if self.rng.chance(1, 3) && !others.is_empty() {
            others = vec![others[self.rng.below(others.len() as u64) as usize]];
        }
        let mut cuts: Vec<(usize, usize)> = others.iter().map(|other| (machine, *other)).collect();
        if fault == Fault::Split {
            cuts.extend(others.iter().map(|other| (*other, machine)));
        }
        self.chronicle.note(self.now_us, Incident::Cut { links: cuts.clone() });
        cuts.iter().for_each(|(a, b)| self.network.end(*a, *b).cuts += 1);
        self.at(self.now_us + lasts_us, Event::Heal { cuts });
        let ends = self.plan.timed.contains_key(&Fault::Restart) && self.rng.chance(1, 2);
        if ends && self.machines[machine].is_up() && !self.skips.faults.contains(Fault::Restart) {
            let boot = self.machines[machine].boots;
            let end_us = self.now_us + self.rng.below(lasts_us);
            self.at(end_us, Event::End { machine, boot, ending: Ending::Killed });
            let start_us = end_us + 5_000 + self.rng.below(lasts_us);
            self.at(start_us, Event::Start { machine });
        }
    }

    /// A machine's disk is gone, with the node that it was. An operator sees to it a little later.
    fn lose_disk(&mut self, machine: usize, lasts_us: u64) -> bool {
        let Some(old) = self.machines[machine].id else { return false };
        let is_known = |node: &Node| node.ring().is_some_and(|ring| ring.state().contains(old));
        // It may hold the only copy of a row that cannot be read elsewhere.
        let is_needed = self.machines.iter().any(|machine| machine.disk.has_corrupt_rows())
            || self.is_sole_holder(machine);
        // Somebody must be left who can have it replaced.
        let is_alone = self.machines.len() < 2 || self.lost.is_some();
        if is_alone || is_needed || !self.machines[machine].is_up() || !self.nodes().all(is_known) {
            return false;
        }
        self.end(machine, Ending::Killed);
        let lost = self.machines[machine].disk.dots();
        self.history.crashed(machine, self.now_us, &lost);
        self.machines[machine].disk = Disk::default();
        self.promises.forget(machine);
        self.lost = Some(Lost { old, machine, at_us: self.now_us });
        // By then all have noticed that their links to the old one are gone.
        let start_us = self.now_us + 10_000_000 + lasts_us;
        self.at(start_us, Event::Start { machine });
        self.at(start_us + 1_000_000, Event::Replace);
        true
    }

    /// The operator's next step after a disk was lost, until the old node is out of the ring and the new one in it.
    pub(super) fn replace_lost(&mut self) {
        let Some(lost) = self.lost else { return };
        self.at(self.now_us + 1_500_000, Event::Replace);
        let asked = self.rng.below(self.machines.len() as u64) as usize;
        let new = self.machines[lost.machine].id.filter(|id| *id != lost.old);
        let Some(node) = self.machines[asked].node.as_ref() else { return };
        let Some(ring) = node.ring() else { return };
        let is_member = node.membership().members.contains_key(&lost.old);
        let is_known = |id: NodeId| ring.state().contains(id);
        let change = match (is_known(lost.old), new) {
            (true, Some(new)) if !is_known(new) && self.rng.chance(1, 2) => {
                RingChange::Replace { old: lost.old, new: self.ring_node(new), gone: true }
            }
            (true, _) => RingChange::Remove { node: lost.old },
            (false, Some(new)) if !is_known(new) => RingChange::Join { node: self.ring_node(new) },
            // It held no data, and everybody would wait for it for ever.
            (false, _) if is_member => RingChange::Remove { node: lost.old },
            (false, _) => return,
        };
        // Where the disk held the only copy of something, the operator is told so, and insists at last.
        let force = self.rng.chance(1, 4);
        if asked != lost.machine {
            self.operator(asked, Operation::ChangeRing { change, plan_only: false, force });
        }
    }

    /// The clients begin to delete. One time in two a machine misses that: it is down, cut off or stands still, often
    /// for longer than the others wait before they forget.
    pub(super) fn take_away(&mut self) {
        let machine = self.rng.below(self.machines.len() as u64) as usize;
        let lasts_us = 500_000 + self.rng.below(12_000_000);
        let faults: Vec<Fault> = [Fault::Restart, Fault::Split, Fault::Slow]
            .into_iter()
            .filter(|fault| self.plan.timed.contains_key(fault))
            .collect();
        if faults.is_empty() || self.rng.chance(1, 2) || !self.machines[machine].is_up() {
            return;
        }
        match faults[self.rng.below(faults.len() as u64) as usize] {
            Fault::Restart => {
                self.end(machine, Ending::Killed);
                self.at(self.now_us + lasts_us, Event::Start { machine });
            }
            Fault::Split => {
                let others = (0..self.machines.len()).filter(|other| *other != machine);
                let cuts: Vec<(usize, usize)> =
                    others.flat_map(|other| [(machine, other), (other, machine)]).collect();
                cuts.iter().for_each(|(a, b)| self.network.end(*a, *b).cuts += 1);
                self.at(self.now_us + lasts_us, Event::Heal { cuts });
            }
            _ => {
                self.stand_still(machine, lasts_us);
            }
        }
        self.trace.line(self.now_us, || format!("n{machine} is away for {} ms", lasts_us / 1000));
    }

    fn fill_disk(&mut self, machine: usize, lasts_us: u64) -> bool {
        self.machines[machine].disk.set_full(true);
        self.machines[machine].trouble_until(self.now_us + lasts_us);
        self.at(self.now_us + lasts_us, Event::FreeDisk { machine });
        true
    }

    /// An operator changes the ring through `machine`.
    pub(super) fn change_ring(&mut self, machine: usize) -> bool {
        let Some(state) =
            self.machines[machine].node.as_ref().and_then(|node| Some(node.ring()?.state().clone()))
        else {
            return false;
        };
        let inside: Vec<NodeId> = state.layout.nodes.iter().map(|node| node.id).collect();
        let outside = |id: &NodeId| !inside.contains(id);
        let outside: Vec<NodeId> =
            self.machines.iter().filter_map(|machine| machine.id).filter(outside).collect();
        let pick = |ids: &[NodeId], rng: &mut Rng| ids[rng.below(ids.len() as u64) as usize];
        let newcomer = if outside.is_empty() { inside[0] } else { pick(&outside, &mut self.rng) };
        let change = match self.rng.below(4) {
            0 | 1 if !outside.is_empty() => RingChange::Join { node: self.ring_node(newcomer) },
            2 if !outside.is_empty() => RingChange::Replace {
                old: pick(&inside, &mut self.rng),
                new: self.ring_node(newcomer),
                gone: false,
            },
            0..=2 if inside.len() > 3 => RingChange::Leave { node: pick(&inside, &mut self.rng) },
            _ => RingChange::Weight {
                node: pick(&inside, &mut self.rng),
                weight: [50, 100, 200][self.rng.below(3) as usize],
            },
        };
        let plan_only = self.rng.chance(1, 8);
        self.operator(machine, Operation::ChangeRing { change, plan_only, force: false });
        true
    }

    /// A node as it is to join the ring.
    fn ring_node(&self, id: NodeId) -> RingNode {
        let zone = self.by_id.get(&id).map_or(String::new(), |index| self.zone(*index));
        RingNode { zone, ..RingNode::new(id) }
    }

    /// What fails together with a machine; without a name if everything does.
    pub(super) fn zone(&self, machine: usize) -> String {
        match self.zones {
            1 => String::new(),
            zones => format!("z{}", machine % zones),
        }
    }

    /// An operator changes a bucket's replication through `machine`.
    fn change_bucket(&mut self, machine: usize) -> bool {
        const OVERLAPPING: [(u8, u8, u8); 9] = [
            (3, 2, 2),
            (1, 1, 1),
            (2, 1, 2),
            (2, 2, 1),
            (3, 1, 3),
            (3, 3, 1),
            (4, 2, 3),
            (5, 3, 3),
            (5, 2, 4),
        ];
        let bucket = self.rng.below(self.workload.buckets.len() as u64) as usize;
        let (n, r, w) = OVERLAPPING[self.rng.below(OVERLAPPING.len() as u64) as usize];
        let spec = &mut self.workload.buckets[bucket];
        spec.properties = BucketProperties { n, r, w, ..spec.properties.clone() };
        if spec.properties.default_ttl_ms.is_some() {
            spec.properties.default_ttl_ms = Some(1_000 + self.rng.below(30_000));
        }
        if ![ACTIVE_BUCKET, TALLY_BUCKET].contains(&&spec.name[..]) {
            spec.properties.value_bytes_max = match self.rng.chance(1, 3) {
                true => 20 + self.rng.below(100),
                false => BucketProperties::default().value_bytes_max,
            };
        }
        let (name, properties) = (spec.name.clone(), spec.properties.clone());
        self.history.bucket_changes.entry(name.clone()).or_insert(self.now_us);
        self.operator(machine, Operation::SetBucket { bucket: name, properties });
        true
    }

    /// Cuts one link, or half of the ring from the other, or one node from all others, and has an operator ask a node
    /// to remove one that it does not reach.
    fn try_removal(&mut self, asked: usize) -> bool {
        let machines = self.machines.len();
        if machines < 2 {
            return false;
        }
        let target = (asked + 1 + self.rng.below(machines as u64 - 1) as usize) % machines;
        let force = self.rng.chance(1, 2);
        if !self.plan.is_orderly() || machines < 3 || self.now_us < self.next_removal_us {
            return false;
        }
        // All must have found each other again, else the target may really be out of reach for most.
        self.next_removal_us = self.now_us + 12_000_000;
        let (mut cuts, mut asked_us, mut force) = (vec![(asked, target), (target, asked)], 1_000_000, force);
        match self.rng.below(3) {
            0 => {
                // Whom the others do not reach either, the asked node takes for silent only, not for down.
                let others = (0..machines).filter(|other| ![asked, target].contains(other));
                cuts = others.flat_map(|other| [(other, target), (target, other)]).collect();
                let silent = [(asked, target), (target, asked)];
                silent.iter().for_each(|(a, b)| self.network.end(*a, *b).cuts += 1);
                self.at(self.now_us + 2_000_000, Event::Heal { cuts: silent.to_vec() });
                asked_us = (2 + self.rng.below(6)) * self.config.suspect_ms * 1000;
            }
            1 => {
                let with_asked = self.half_of_ring(asked, target);
                let far = (0..machines).filter(|other| !with_asked.contains(other));
                let far: Vec<usize> = far.collect();
                let pairs = with_asked.iter().flat_map(|near| far.iter().map(|far| (*near, *far)));
                cuts = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
                force = false;
            }
            _ => {}
        }
        self.chronicle.note(self.now_us, Incident::Cut { links: cuts.clone() });
        for (a, b) in cuts.clone() {
            self.network.end(a, b).cuts += 1;
            self.reset_link(a, b, 1_000);
        }
        self.at(self.now_us + asked_us, Event::Remove { asked, target, force });
        self.at(self.now_us + 2_000_000, Event::Heal { cuts });
        true
    }

    /// Half of the nodes of the ring at most, `asked` among them and `target` not, and all outside it.
    fn half_of_ring(&self, asked: usize, target: usize) -> Vec<usize> {
        // Who is on the way into the ring, or out of it, may be counted or not when the operator asks.
        let ring = self.newest_ring().map(|ring| ring.state());
        let is_in_ring = |index: &usize| {
            self.machines[*index].id.is_some_and(|id| ring.is_some_and(|ring| ring.contains(id)))
        };
        let sizes = ring.map(|ring| [Some(&ring.layout), ring.old.as_ref()]).into_iter().flatten().flatten();
        let size = sizes.map(|layout| layout.nodes.len()).min().unwrap_or(0);
        let (inside, outside): (Vec<usize>, Vec<usize>) =
            (0..self.machines.len()).filter(|other| ![asked, target].contains(other)).partition(is_in_ring);
        let half = (size / 2).saturating_sub(is_in_ring(&asked) as usize);
        [asked].into_iter().chain(outside).chain(inside.into_iter().take(half)).collect()
    }

    pub(super) fn ask_removal(&mut self, asked: usize, target: usize, force: bool) {
        let Some(node) = self.machines[target].id else { return };
        let change = RingChange::Remove { node };
        self.has_forced |= force;
        self.operator(asked, Operation::ChangeRing { change, plan_only: false, force });
    }

    /// Damages a row of which an equal copy is safe on another machine.
    fn corrupt(&mut self, machine: usize) -> bool {
        if self.is_interval() {
            return false;
        }
        let rows = self.machines[machine].disk.keys(Space::Data);
        if rows.is_empty() {
            return false;
        }
        let row = &rows[self.rng.below(rows.len() as u64) as usize];
        let Some(own) = self.machines[machine].disk.row(Space::Data, row) else {
            return false;
        };
        let has_copy = |other: usize| {
            other != machine && self.machines[other].disk.row(Space::Data, row).as_ref() == Some(&own)
        };
        if !(0..self.machines.len()).any(has_copy) {
            return false;
        }
        // The node may have read it just before, for an update that it goes on with.
        if let Ok(object) = Object::decode(&own) {
            self.history.show(machine, self.now_us, &object);
        }
        let key = ObjectKey::from_row(row.clone()).expect("a node stores objects under their rows");
        self.history.keys.entry(key).or_default().was_corrupted = true;
        self.machines[machine].disk.corrupt(Space::Data, row)
    }
}

/// Has a node that is alone store something.
fn settle(node: &mut Node, now: Now) {
    let key = ObjectKey::new(DEFAULT_BUCKET, b"own").expect("the key is short");
    let mutation = Mutation::Append { suffix: "own".into() };
    let (quorum, want) = (Quorum::default(), Want::default());
    let operation = Operation::Update { key, mutation, quorum, want, caller: None };
    let mut outputs = Vec::new();
    let request = Request { operation, timeout_ms: None };
    node.step(now, Input::Request { id: 1, request }, &mut outputs);
    node.stage(&mut outputs);
    node.commit(now, &mut outputs);
}
