//! What active objects do at the end, while nothing goes wrong: then every answer is known beforehand, whatever the
//! faults before have left behind in the nodes.

use bytes::Bytes;

use oort_core::active::owners_hash;
use oort_core::bucket::ActiveDurability;
use oort_core::client::{Operation, RequestId};
use oort_core::mutation::Expiry;
use oort_core::object::{Object, Value};
use oort_core::store::Space;
use oort_core::timers::{interval_number, interval_start};
use oort_core::types::ObjectKey;

use super::{Cluster, Ending, Event};
use crate::check::active::{intervals, is_rest};
use crate::faults::{Fault, Faults, Plan};
use crate::history::{dots_of, mark, Outcome};
use crate::machine::Machine;
use crate::trace::EPOCH_MS;
use crate::workload::active::{
    activate, call, caller_of, delete, marked, store, CHANGED_SOURCE, CHANGING_SOURCE, TWIN_SOURCE,
};
use crate::workload::Role;

/// The first rest of a caller lasts so long, in microseconds.
const REST_US: u64 = 100_000;
/// What a home may take to write what it answered under `async`, in microseconds: `aso_async_ms` of
/// these buckets, and a round trip.
const FLUSH_US: u64 = 600_000;
/// For so long timers are watched, in microseconds.
const WATCH_US: u64 = 3_000_000;
/// A run may be noted so late, in milliseconds.
const LATE_MS: u64 = 400;
/// Nodes take each other for down within this, in microseconds, or the two homes are left out.
const NOTICE_US: u64 = 8_000_000;
/// Owners that were not chosen have left husks within this, in microseconds.
const PLACING_US: u64 = 30_000_000;

/// What a request must be answered.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Done,
    Shows(i64),
    /// It says that nothing was changed, and this.
    Fails(&'static str),
}

const MISSING: Wanted = Wanted::Fails("no such key");
const NO_OBJECT: Wanted = Wanted::Fails("the key holds a plain value");
const ON_PURPOSE: Wanted = Wanted::Fails("on purpose");
const REFUSED: Wanted = Wanted::Fails("the object refuses");

impl Cluster {
    /// Active objects live once more, watched.
    pub(super) fn finale(&mut self) {
        let of_role = |cluster: &Cluster, wanted: fn(Role) -> bool| -> Vec<ObjectKey> {
            let keys = cluster.workload.keys.iter().filter(|spec| wanted(spec.role));
            keys.map(|spec| spec.key.clone()).collect()
        };
        let changing = of_role(self, |role| role == Role::Changing);
        let key = changing[self.rng.below(changing.len() as u64) as usize].clone();
        match self.rng.below(7) {
            0 => self.come_and_go(&key),
            1 => self.stop_and_burn(&key),
            2 | 3 => {
                // Where calls are answered before they are written, a machine that dies takes them along.
                let mut counting = of_role(self, |role| matches!(role, Role::Tally | Role::Active { .. }));
                counting
                    .retain(|key| self.workload.properties(key).aso.durability == ActiveDurability::Quorum);
                let key = counting[self.rng.below(counting.len() as u64) as usize].clone();
                self.strive(&key);
            }
            4 => {
                let tallies = of_role(self, |role| role == Role::Tally);
                let key = tallies[self.rng.below(tallies.len() as u64) as usize].clone();
                self.answer_alone(&key);
            }
            5 => {
                self.make_tickers();
                self.watch_timers(&of_role(self, |role| matches!(role, Role::Ticker { .. })));
            }
            _ => {
                for key in of_role(self, |role| role == Role::Twin) {
                    self.run_twice(&key);
                }
            }
        }
        self.check_indexes();
        let is_placed = |role| role == Role::Active { is_placed: true };
        for key in of_role(self, is_placed) {
            self.check_holders(&key);
        }
    }

    /// Sends a request through some machine, and waits for its answer.
    fn request(&mut self, operation: Operation) -> RequestId {
        let machine = self.rng.below(self.machines.len() as u64) as usize;
        self.request_at(machine, operation)
    }

    fn request_at(&mut self, machine: usize, operation: Operation) -> RequestId {
        let id = self.operator(machine, operation);
        while self.unanswered > 0 && self.advance() {}
        id
    }

    /// Sends a request, which must be answered so.
    fn expect(&mut self, operation: Operation, wanted: Wanted) -> RequestId {
        let id = self.request(operation);
        self.check_answer(id, wanted);
        id
    }

    fn check_answer(&mut self, id: RequestId, wanted: Wanted) {
        let op = &self.history.operations[id as usize];
        let is_so = match wanted {
            Wanted::Done => op.outcome == Outcome::Acked,
            Wanted::Shows(number) => op.outcome == Outcome::Acked && op.shown == Some(number),
            Wanted::Fails(text) => op.outcome == Outcome::Refused && op.error.contains(text),
        };
        if !is_so {
            let detail = format!(
                "o{id} was answered {:?} {:?} {}: wanted was {wanted:?}",
                op.outcome, op.shown, op.error
            );
            let key = crate::trace::key_of(&op.operation).cloned();
            self.history.blame("lives", key.as_ref(), detail);
        }
    }

    /// The argument by which the next call is noted.
    fn next_mark(&self) -> Vec<oort_core::active::Value> {
        marked(self.history.operations.len() as RequestId)
    }

    fn expect_call(&mut self, key: &ObjectKey, function: &'static str, wanted: Wanted) -> RequestId {
        let arguments = if function == "onGet" { Vec::new() } else { self.next_mark() };
        self.expect(call(key.clone(), function, arguments), wanted)
    }

    fn expect_made(&mut self, key: &ObjectKey, expiry: Expiry) {
        self.request(delete(key.clone()));
        self.expect(activate(key.clone(), CHANGING_SOURCE.into(), expiry, false), Wanted::Done);
        self.expect_call(key, "bump", Wanted::Shows(1));
    }

    /// An object is made, refuses to be overwritten, is given new code, replaced, made again, and goes by itself.
    fn come_and_go(&mut self, key: &ObjectKey) {
        self.request(delete(key.clone()));
        self.expect_call(key, "bump", MISSING);
        self.expect_made(key, Expiry::Never);
        self.expect(store(key.clone(), "no".into()), REFUSED);
        self.expect_call(key, "bump", Wanted::Shows(2));
        self.expect(store(key.clone(), "fail".into()), ON_PURPOSE);
        let refused = [CHANGING_SOURCE, " aso.says = 'no'"].concat();
        self.expect(activate(key.clone(), refused, Expiry::Never, false), REFUSED);
        self.expect_call(key, "onGet", Wanted::Shows(2));
        self.expect_call(key, "spoil", ON_PURPOSE);
        self.expect_call(key, "regret", ON_PURPOSE);
        self.expect_call(key, "bump", Wanted::Shows(3));
        self.expect(activate(key.clone(), CHANGED_SOURCE.into(), Expiry::Never, true), Wanted::Done);
        self.expect_call(key, "bump", Wanted::Shows(13));
        let anew = [CHANGED_SOURCE, "\n-- anew"].concat();
        self.expect(activate(key.clone(), anew.clone(), Expiry::Never, true), Wanted::Done);
        self.check_reloaded(key, &anew);
        self.expect_call(key, "extra", Wanted::Shows(7));
        self.expect(store(key.clone(), "plain".into()), Wanted::Done);
        self.expect_call(key, "bump", NO_OBJECT);
        self.expect_made(key, Expiry::Never);
        self.expect_call(key, "leave", Wanted::Shows(2));
        self.expect_call(key, "bump", MISSING);
        let wall_ms = EPOCH_MS + self.now_us / 1000;
        self.expect_made(key, Expiry::At(wall_ms + 1_000));
        self.expect_call(key, "onGet", Wanted::Shows(1));
        self.run_to(self.now_us + 1_500_000);
        self.expect_call(key, "bump", MISSING);
        self.delete_beside(key);
    }

    /// Another node than its home deletes an object that has been loaded there.
    fn delete_beside(&mut self, key: &ObjectKey) {
        self.expect_made(key, Expiry::Never);
        self.expect_call(key, "onGet", Wanted::Shows(1));
        let Some(other) = self.primaries(key).last().copied() else { return };
        let id = self.request_at(other, delete(key.clone()));
        self.check_answer(id, Wanted::Done);
        let id = self.request(call(key.clone(), "onGet", Vec::new()));
        if let Some(shown) = self.history.operations[id as usize].shown {
            self.history.blame("lives", Some(key), format!("o{id} shows {shown} of a deleted object"));
        }
    }

    /// The first owner misses a call, and is then the only one that is left: it answers nothing alone.
    fn answer_alone(&mut self, key: &ObjectKey) {
        let owners = self.primaries(key);
        if owners.len() < 3 || self.machines.len() <= owners.len() {
            return;
        }
        self.links_stay_open = false;
        let bump = |cluster: &Cluster| call(key.clone(), "bump", cluster.next_mark());
        let operation = bump(self);
        self.request_at(owners[0], operation);
        let (cuts, _) = self.lose_sight_of(owners[0]);
        let operation = bump(self);
        self.request_at(owners[1], operation);
        for owner in &owners[1..] {
            self.end(*owner, Ending::Killed);
        }
        self.heal(&cuts);
        // Who stands in for them can be reached, and has nothing.
        self.run_to(self.now_us + 2_000_000);
        self.request_at(owners[0], call(key.clone(), "onGet", Vec::new()));
        let operation = bump(self);
        self.request_at(owners[0], operation);
        for owner in &owners[1..] {
            self.at(self.now_us, Event::Start { machine: *owner });
        }
        self.run_to(self.now_us + 10_000);
        self.wait(NOTICE_US, Cluster::is_healthy);
    }

    /// Callers rest that burn what a call may take, and others do not; what was answered is written in time, and before
    /// the home stops.
    fn stop_and_burn(&mut self, key: &ObjectKey) {
        self.expect_made(key, Expiry::Never);
        let machine = self.rng.below(self.machines.len() as u64) as usize;
        let began_us = self.now_us;
        let burn = |cluster: &mut Cluster, client: usize| {
            let mut operation = call(key.clone(), "burn", cluster.next_mark());
            if let Operation::Call { call, .. } = &mut operation {
                call.caller = caller_of(client);
            }
            let id = cluster.request_at(machine, operation);
            cluster.history.operations[id as usize].client = client;
            id
        };
        let ids = [burn(self, 0), burn(self, 0)];
        let has_time = self.now_us < began_us + REST_US;
        let other = burn(self, 1);
        self.run_to(self.now_us + REST_US);
        let later = burn(self, 0);
        let rest = |cluster: &Cluster, id: RequestId| is_rest(&cluster.history.operations[id as usize]);
        for (id, rests) in [(ids[0], false), (ids[1], has_time), (other, false), (later, false)] {
            self.check_answer(id, Wanted::Fails(""));
            if rest(self, id) != rests && (id != ids[1] || has_time) {
                let detail = format!("o{id}: is refused for a rest {}, wanted was {rests}", !rests);
                self.history.blame("rests", Some(key), detail);
            }
        }
        let id = self.expect_call(key, "bump", Wanted::Shows(2));
        self.run_to(self.now_us + FLUSH_US);
        self.check_written(key, id);
        let Some(home) = self.primaries(key).first().copied() else { return };
        let id = self.expect_call(key, "bump", Wanted::Shows(3));
        let boot = self.machines[home].boots;
        self.at(self.now_us, Event::Stop { machine: home, boot });
        self.at(self.now_us + 200_000, Event::End { machine: home, boot, ending: Ending::Killed });
        self.at(self.now_us + 250_000, Event::Start { machine: home });
        self.run_to(self.now_us + 300_000);
        self.wait(NOTICE_US, |cluster| {
            cluster.nodes().count() == cluster.machines.len() && cluster.is_healthy()
        });
        self.check_written(key, id);
        self.expect_call(key, "onGet", Wanted::Shows(3));
    }

    /// New code that was acknowledged is on `w` disks, whether a call changes anything afterwards or not.
    fn check_reloaded(&mut self, key: &ObjectKey, source: &str) {
        let w = self.replication(key.bucket()).0.w as usize;
        let has_code = |version: &oort_core::object::Version| match &version.value {
            Value::Active(active) => active.source == source.as_bytes(),
            _ => false,
        };
        let holds = |machine: &&Machine| {
            let row = machine.disk.row(Space::Data, key.row());
            let object = row.and_then(|row| Object::decode(&row).ok()).unwrap_or_default();
            object.0.values().iter().any(|(_, version)| has_code(version))
        };
        let holders = self.machines.iter().filter(holds).count();
        if holders < w.min(self.primaries(key).len()) {
            let detail = format!("new code is on {holders} disks, wanted were {w}");
            self.history.blame("lives", Some(key), detail);
        }
    }

    /// What the call `id` changed is on `w` disks.
    fn check_written(&mut self, key: &ObjectKey, id: RequestId) {
        let (mark, w) = (mark(id), self.history.operations[id as usize].w as usize);
        let holds = |index: &usize| {
            let row = self.machines[*index].disk.row(Space::Data, key.row()).unwrap_or_default();
            row.windows(mark.len()).any(|part| part == mark.as_bytes())
        };
        let holders = (0..self.machines.len()).filter(holds).count();
        if holders < w {
            let detail = format!("o{id} is on {holders} disks, wanted were {w}");
            self.history.blame("lives", Some(key), detail);
        }
    }

    /// The first owner is cut off, so that two homes run an object, whose versions are joined then.
    fn run_twice(&mut self, key: &ObjectKey) {
        let replication = self.replication(key.bucket()).0;
        let owners = self.primaries(key);
        let [first, second, ..] = owners[..] else { return };
        if (replication.r, replication.w) != (1, 1) {
            return;
        }
        self.expect(activate(key.clone(), TWIN_SOURCE.into(), Expiry::Never, false), Wanted::Done);
        self.wait(2_000_000, |cluster| !cluster.differs(key));
        let (cuts, is_split) = self.lose_sight_of(first);
        let (mut hits, mut sum) = (0, 0);
        // Numbers that differ: what is equal needs no merging.
        for (machine, step) in [(first, 1), (second, 20)] {
            for _ in 0..1 + self.rng.below(3) {
                let id = self.request_at(machine, call(key.clone(), "hit", vec![step.into()]));
                let counts = i64::from(self.history.operations[id as usize].outcome == Outcome::Acked);
                hits += counts;
                sum += counts * step;
            }
        }
        self.run_to(self.now_us + FLUSH_US);
        self.heal(&cuts);
        let is_healed = self.wait(NOTICE_US, |cluster| cluster.is_healthy() && cluster.hints_are_gone());
        if !is_split || !is_healed {
            return;
        }
        self.expect_call(key, "spoil", ON_PURPOSE);
        self.run_to(self.now_us + FLUSH_US);
        // Whoever has the object next has only what is stored.
        if self.rng.chance(1, 2) {
            self.end(first, Ending::Killed);
            self.at(self.now_us + 50_000, Event::Start { machine: first });
            self.run_to(self.now_us + 60_000);
            self.wait(NOTICE_US, Cluster::is_healthy);
        }
        let left = self.held(key).map_or(0, |object| dots_of(&object).len());
        if left != 1 {
            self.history.blame(
                "lives",
                Some(key),
                format!("{left} versions are left of what two homes wrote"),
            );
        }
        self.expect_call(key, "onGet", Wanted::Shows(hits * 1000 + sum));
    }

    fn hints_are_gone(&self) -> bool {
        self.machines.iter().all(|machine| machine.disk.count(Space::Hints) == 0)
    }

    fn make_tickers(&mut self) {
        let keys = self.workload.keys.iter();
        let specs: Vec<(ObjectKey, bool)> = keys
            .filter_map(|spec| match spec.role {
                Role::Ticker { is_slow } => Some((spec.key.clone(), is_slow)),
                _ => None,
            })
            .collect();
        for (key, is_slow) in specs {
            let source = crate::workload::active::ticker_source(is_slow);
            self.expect(activate(key, source, Expiry::Never, false), Wanted::Done);
        }
    }

    /// Each timer runs in each interval, even if its home dies meanwhile and others can take over.
    fn watch_timers(&mut self, keys: &[ObjectKey]) {
        let began: Vec<Option<(u64, u64)>> = keys.iter().map(|key| self.timer_of(key)).collect();
        let victim = self.home_to_die(&keys[0]).filter(|_| self.rng.chance(1, 2));
        if let Some((home, at_us)) = victim {
            let boot = self.machines[home].boots;
            self.at(at_us, Event::End { machine: home, boot, ending: Ending::Killed });
        }
        self.run_to(self.now_us + WATCH_US);
        // Nodes whose clocks were ahead look at their timers when they have caught up.
        let faults = self.chronicle.plan.as_ref().map_or(Faults::none(), Plan::in_force);
        let has_odd_clocks = faults.contains(Fault::Skew) || faults.contains(Fault::Clock);
        for (key, began) in keys.iter().zip(began) {
            let Some(((last, interval_ms), now)) = began.zip(self.timer_of(key)) else {
                let detail = "the object with a timer is gone".to_string();
                self.history.blame("timers", Some(key), detail);
                continue;
            };
            // The next home looks again in the middle of the interval.
            let late_ms = LATE_MS + if victim.is_some() { interval_ms / 2 } else { 0 };
            let runs = intervals(&self.history.keys[key], &self.newest_of(key)).unwrap_or_default();
            let until = self.home_ms(key).map_or(0, |ms| interval_number(key, interval_ms, ms - late_ms));
            for number in last + 1..=until.min(now.0) {
                if !has_odd_clocks && runs.iter().all(|(_, run)| *run != number) {
                    let at_ms = interval_start(key, interval_ms, number) as i64 - EPOCH_MS as i64;
                    let detail =
                        format!("the timer did not run in the interval {number}, from {at_ms} ms on");
                    self.history.blame("timers", Some(key), detail);
                }
            }
        }
        if let Some((home, _)) = victim {
            self.at(self.now_us, Event::Start { machine: home });
            self.run_to(self.now_us + 10_000);
            self.wait(NOTICE_US, Cluster::is_healthy);
        }
    }

    /// The home of an object whose other owners can run it, and a moment just before its timer is due.
    fn home_to_die(&mut self, key: &ObjectKey) -> Option<(usize, u64)> {
        let others = self.primaries(key).len() as u8 - 1;
        let replication = self.replication(key.bucket()).0;
        let home_ms = self.home_ms(key)?;
        let (number, interval_ms) = self.timer_of(key)?;
        let wait_ms = interval_start(key, interval_ms, number + 1).saturating_sub(home_ms);
        let early_us = self.rng.below(4_000);
        let home = self.primaries(key).first().copied()?;
        (replication.r.max(replication.w) <= others && others > others.div_ceil(2))
            .then(|| (home, (self.now_us + wait_ms * 1000).saturating_sub(early_us).max(self.now_us)))
    }

    /// The interval that is under way, or was the last to run if that is later, and the length of intervals.
    fn timer_of(&self, key: &ObjectKey) -> Option<(u64, u64)> {
        let (last, interval_ms) = timer_in(&self.newest_of(key))?;
        Some((last.max(interval_number(key, interval_ms, self.home_ms(key)?)), interval_ms))
    }

    /// What the owners of `key` that are up hold.
    fn newest_of(&self, key: &ObjectKey) -> Object {
        let up = self.primaries(key).into_iter().filter(|index| self.machines[*index].is_up());
        let rows = up.filter_map(|index| self.machines[index].disk.row(Space::Data, key.row()));
        let mut newest = Object::default();
        rows.filter_map(|row| Object::decode(&row).ok()).for_each(|object| newest.merge(&object));
        newest
    }

    /// The time by which the object's home goes.
    fn home_ms(&self, key: &ObjectKey) -> Option<u64> {
        let mut machines = self.primaries(key).into_iter().map(|index| &self.machines[index]);
        machines.find_map(|machine| Some(machine.node.as_ref()?.time(machine.now(self.now_us)).wall_ms))
    }

    /// Nodes know the timers of just those objects that they hold, and which of these chose their holders.
    fn check_indexes(&mut self) {
        (0..self.machines.len()).for_each(|index| self.check_index(index));
    }

    /// What a node knows of the objects on its disk is what is there.
    pub(super) fn check_index(&mut self, index: usize) {
        let machine = &self.machines[index];
        let Some(node) = &machine.node else { return };
        let keys = machine.disk.keys(Space::Data);
        let read = |row: &Bytes| Object::decode(&machine.disk.row(Space::Data, row)?).ok();
        let objects: Vec<Object> = keys.iter().filter_map(read).collect();
        // A damaged row may have one.
        let damaged = (keys.len() - objects.len()) as u64;
        let chose_holders = |object: &Object| {
            object.0.values().iter().any(|(_, version)| version.value.placement().is_some())
        };
        let count =
            |is_such: fn(&Object) -> bool| objects.iter().filter(|object| is_such(object)).count() as u64;
        let metrics = node.metrics();
        let known = [
            ("timers", metrics.active_timers, count(|object| object.timer_ms() > 0)),
            ("objects that chose their holders", metrics.active_placed, count(chose_holders)),
        ];
        for (what, known, held) in known {
            if !(held..=held + damaged).contains(&known) {
                let detail = format!("n{index} knows {known} {what}, it holds {held}");
                self.history.blame("timers", None, detail);
            }
        }
    }

    /// The code and the state of an object are with the holders that it chose among its owners, and nowhere else.
    fn check_holders(&mut self, key: &ObjectKey) {
        let is_chosen = |cluster: &Cluster| cluster.misplaced(key).is_none();
        if !self.wait(PLACING_US, is_chosen) {
            if let Some(detail) = self.misplaced(key) {
                self.history.blame("lives", Some(key), detail);
            }
        }
    }

    /// The fault in where an object is, if any.
    fn misplaced(&self, key: &ObjectKey) -> Option<String> {
        let machines = self.primaries(key);
        let owners: Vec<_> = machines.iter().filter_map(|index| self.machines[*index].id).collect();
        let object = self.held(key)?;
        let placement = object.placement()?.clone();
        if placement.chosen_from != owners_hash(&owners) {
            return Some("the holders were chosen among other owners".to_string());
        }
        if !placement.holders.iter().all(|holder| owners.contains(holder)) {
            return Some("a holder is no owner".to_string());
        }
        machines.iter().zip(&owners).find_map(|(index, owner)| {
            let row = self.machines[*index].disk.row(Space::Data, key.row())?;
            let object = Object::decode(&row).ok()?;
            // Each of several versions has been placed by whoever wrote it.
            object.0.values().iter().find_map(|(_, version)| {
                let is_holder = version.value.placement()?.holders.contains(owner);
                let is_husk = matches!(version.value, Value::Husk(_));
                (is_holder == is_husk)
                    .then(|| format!("n{index} has a husk: {is_husk}; it was chosen: {is_holder}"))
            })
        })
    }
}

/// The interval in which the timer last ran, and their length.
fn timer_in(object: &Object) -> Option<(u64, u64)> {
    let leads = object.0.newest().map(|(_, version)| &version.value)?;
    match leads {
        Value::Active(active) if active.interval_ms > 0 => Some((active.last_interval, active.interval_ms)),
        _ => None,
    }
}
