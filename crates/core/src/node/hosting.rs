//! What active objects ask of their node, their timers, and the upkeep of those that are loaded.

use super::active::refused;
use super::coordinate::Hop;
use super::copies::placement_at;
use super::creation::plain;
use super::homes::{map, Asked, Awaited, Job, Outcome, What};
use super::puts::Update;
use super::{Node, Origin, Output, Purpose, Work};
use crate::active::{Active, FailureKind, HostRequest, HostResult, PutData, Turn, Value};
use crate::causality::Dot;
use crate::client::{ActiveError, Handler, Operation, Quorum, Reply, Want};
use crate::get::{Candidate, Needed};
use crate::mutation::Mutation;
use crate::object::Object;
use crate::timers::{interval_number, interval_start, Look};
use crate::types::{NodeId, Now, ObjectKey};

/// A node that is no home looks again this long after a timer was due whether it has become one, in milliseconds: the
/// home may have died just then.
const SECOND_LOOK_MS: u64 = 3_000;
/// The most timers looked at in one step, and the most objects written. Too many: clients wait.
const LOOKS_MAX: usize = 64;
const FLUSHES_MAX: usize = 64;
/// The most timers under way: reading their object, waiting for their turn, or for what they asked of their node. Too
/// few: slow replicas hold timers up; too many: objects were read long before their handler runs.
const TIMERS_MAX: usize = 32;
/// A timer that begins later than this counts as late, in milliseconds.
const LATE_MS: u64 = 100;
/// Timers of a node that has just started are spread over this time at most, in milliseconds.
const START_MS: u64 = 60_000;
/// So many nodes of the preference list are an object's neighbours, for each replica it has.
const NEIGHBOURS_FACTOR: usize = 2;
/// What could not be written for a full disk or a handler that waits is tried again after this, in microseconds.
const RETRY_US: u64 = 100_000;

/// Names of a map with their values; an entry without a value is left out.
type Entries<'a> = &'a [(&'a str, Option<Value>)];

impl Node {
    // Host requests

    /// The nodes within an object's reach: its owners, and as many behind them, which stand in for those that are down.
    fn neighbours(&self, key: &ObjectKey) -> Vec<NodeId> {
        let n = self.placed_ring().replication(key.bucket()).n as usize;
        let list = self.placed_ring().preference_at(key.position());
        list.iter().copied().take(n * NEIGHBOURS_FACTOR).collect()
    }

    /// Begins what a handler has asked for; the answer comes as the outcome of `number`.
    pub(super) fn host_request(
        &mut self,
        now: Now,
        key: &ObjectKey,
        number: u64,
        request: HostRequest,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        self.metrics.active_messages += 1;
        let origin = Origin::Run(number);
        let result = match request {
            HostRequest::Lookup => Ok(Some(self.describe(key, &self.neighbours(key)))),
            HostRequest::Get { nodes } => self.host_get(now, key, origin, &nodes, deadline_us, out),
            HostRequest::Put { data, nodes } => {
                self.host_put(now, key, origin, data, &nodes, deadline_us, out)
            }
            HostRequest::Reply { key: reply_key, node, value } => {
                self.host_reply(now, key, origin, &reply_key, &node, &value, deadline_us, out)
            }
        };
        match result {
            Ok(Some(value)) => self.homes.outcomes.push_back((number, Outcome::Host(Ok(value)))),
            Ok(None) => {}
            Err(text) => self.homes.outcomes.push_back((number, Outcome::Host(Err(text)))),
        }
    }

    /// Nodes as objects see them.
    pub(super) fn describe(&self, key: &ObjectKey, nodes: &[NodeId]) -> Value {
        let (owners, _) = self.owners(key);
        let nodes = nodes.iter().map(|&node| {
            let member = self.membership.members.get(&node);
            let ip = member.map_or("", |member| member.addresses.peer_host());
            let is_up = self.health(node) == crate::detector::Health::Up;
            let distance = self.distance_us(node).filter(|_| node != self.id());
            map([
                ("id", Some(Value::from(node.to_string().as_str()))),
                ("ip", Some(Value::from(ip))),
                ("isOwner", Some(Value::Bool(owners.contains(&node)))),
                ("isUp", Some(Value::Bool(is_up))),
                ("name", member.map(|member| Value::from(member.name.as_str()))),
                ("rtt", distance.map(|us| Value::Number(us as f64 / 1000.0))),
                ("zone", member.map(|member| Value::from(member.zone.as_str()))),
            ])
        });
        Value::Array(nodes.collect())
    }

    /// The nodes that an object named. Errors: one of them is not responsible for its key.
    fn named(&self, key: &ObjectKey, nodes: &[Vec<u8>]) -> Result<Vec<NodeId>, String> {
        let neighbours = self.neighbours(key);
        let mut named = Vec::new();
        for text in nodes {
            match node_id(text).filter(|node| neighbours.contains(node)) {
                Some(node) if named.contains(&node) => {}
                Some(node) => named.push(node),
                None => {
                    let text = String::from_utf8_lossy(text);
                    return Err(format!("node {text} is not responsible for this key"));
                }
            }
        }
        Ok(named)
    }

    fn host_get(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        nodes: &[Vec<u8>],
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) -> Result<Option<Value>, String> {
        let nodes = self.named(key, nodes)?;
        if nodes.is_empty() {
            let needed = self.read_quorum(key, Quorum::default()).map_err(|error| error.to_string())?;
            self.start_get(now, origin, key.clone(), needed, Purpose::Answer, deadline_us, out);
            return Ok(None);
        }
        if let Some(down) = nodes.iter().find(|node| !self.can_answer(**node)) {
            return Err(format!("node {down} cannot be reached"));
        }
        let candidates = nodes.iter().map(|&node| Candidate { node, is_primary: true }).collect();
        let needed = Needed { total: nodes.len() as u8, primaries: 0 };
        let purpose = (needed, nodes.len());
        self.start_get_from(now, origin, key.clone(), purpose, Purpose::Answer, candidates, deadline_us, out);
        Ok(None)
    }

    #[allow(clippy::too_many_arguments)]
    fn host_put(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        data: PutData,
        nodes: &[Vec<u8>],
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) -> Result<Option<Value>, String> {
        let mut holders = self.named(key, nodes)?;
        if let Some(error) = self.write_refusal(key, self.home_writes(key, self.default_writes(key))) {
            return Err(error.to_string());
        }
        if let PutData::Value(value) = data {
            let sandbox = self.sandbox().map_err(|error| error.to_string())?;
            sandbox.set_field(key, "value", &value).map_err(|failure| failure.message)?;
        }
        if !holders.is_empty() {
            let (owners, _) = self.owners(key);
            holders.retain(|holder| owners.contains(holder));
            let is_everywhere = holders.len() == owners.len();
            let placement = placement_at(holders, &owners).ok_or("none of these nodes owns the key")?;
            let sandbox = self.sandbox().map_err(|error| error.to_string())?;
            // Copies at all owners are at those of tomorrow too.
            let follows = is_everywhere && !sandbox.has(key, Handler::SelectReplicas.name());
            let placement = (!follows).then_some(placement);
            if let Some(resident) = self.homes.get(key) {
                let before = std::mem::replace(&mut resident.active.placement, placement);
                resident.must_save |= before != resident.active.placement;
            }
        }
        self.keep(now, key, origin, Quorum::default(), Reply::BucketSet, None, deadline_us, out);
        if let Some(resident) = self.homes.get(key) {
            resident.has_put = true;
        }
        Ok(None)
    }

    #[allow(clippy::too_many_arguments)]
    fn host_reply(
        &mut self,
        now: Now,
        key: &ObjectKey,
        origin: Origin,
        reply_key: &[u8],
        node: &[u8],
        value: &Value,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) -> Result<Option<Value>, String> {
        let node =
            node_id(node).filter(|node| self.membership.members.contains_key(node)).ok_or("no such node")?;
        let value = plain(value).ok_or("a reply is a string, a number or a boolean")?;
        let reply_key = ObjectKey::new(key.bucket(), reply_key).map_err(|error| error.to_string())?;
        let (mutation, want) = (Mutation::store(value), Want::default());
        let quorum = Quorum::default();
        if node == self.id() {
            let update = Update { key: reply_key, mutation, quorum, want, caller: None };
            self.start_update(now, origin, update, deadline_us, Hop::First, out);
            return Ok(None);
        }
        let operation = Operation::Update { key: reply_key, mutation, quorum, want, caller: None };
        let work = Work::Forward { to: node, operation, refused: Vec::new() };
        self.forward(now, origin, work, deadline_us, out);
        Ok(None)
    }

    /// Goes on with what has got its answer in this step. Call it at the end of each.
    pub(super) fn go_on(&mut self, now: Now, out: &mut Vec<Output>) {
        loop {
            for (key, job) in std::mem::take(&mut self.homes.orphans) {
                self.restart(now, key, job, out);
            }
            let Some((number, outcome)) = self.homes.outcomes.pop_front() else {
                match self.homes.orphans.is_empty() {
                    true => return,
                    false => continue,
                }
            };
            if let Some(outcome) = self.homes.put_aside(now.mono_us, number, outcome) {
                self.take_outcome(now, number, outcome, out);
            }
        }
    }

    /// Goes on with what has waited for `number`.
    fn take_outcome(&mut self, now: Now, number: u64, outcome: Outcome, out: &mut Vec<Output>) {
        match self.homes.answered(number) {
            Some(Awaited::Host(key) | Awaited::TimerHost(key)) => {
                self.resume(now, &key, number, outcome, out)
            }
            Some(Awaited::Timer(key, interval)) => match outcome {
                Outcome::Reply(Ok(Reply::Object(merged))) => self.run_timer(now, key, interval, merged, out),
                Outcome::Reply(_) | Outcome::Host(_) => self.metrics.active_timers_skipped += 1,
            },
            Some(Awaited::Placement(key)) => {
                if let Outcome::Reply(Ok(Reply::Object(merged))) = outcome {
                    self.place_again(now, key, merged, out);
                }
            }
            None => {}
        }
    }

    /// Starts those anew whose object is no longer what they were to run on.
    fn restart(&mut self, now: Now, key: ObjectKey, job: Job, out: &mut Vec<Output>) {
        let Job { origin, what, deadline_us } = job;
        match what {
            What::Call(call) => {
                let asked = Box::new(Asked { hop: Hop::Last, ..*call });
                self.restart_call(now, origin, key, asked, deadline_us, out)
            }
            What::Update(update) => self.start_update(now, origin, *update, deadline_us, Hop::Last, out),
            What::Timer(_) | What::Place => {}
        }
    }

    /// The handler that waits for `number` goes on.
    fn resume(&mut self, now: Now, key: &ObjectKey, number: u64, outcome: Outcome, out: &mut Vec<Output>) {
        let result = self.host_result(now, outcome);
        let facts = self.facts(now);
        let Some(resident) = self.homes.get(key) else { return };
        let Some(run) = resident.run.take_if(|run| run.number == number) else { return };
        if now.mono_us >= run.job.deadline_us {
            let error = refused(ActiveError::TimedOut);
            self.roll_back(now, key);
            self.finish(run.job.origin, Err(error), out);
        } else if let Ok(sandbox) = self.sandbox() {
            let turn = sandbox.resume(key, result, facts);
            self.take_turn(now, key, run.job, turn, out);
        }
        self.run_queue(now, key, out);
    }

    fn host_result(&mut self, now: Now, outcome: Outcome) -> HostResult {
        match outcome {
            Outcome::Host(result) => result,
            Outcome::Reply(Ok(Reply::Object(object))) => match object.active(now.wall_ms) {
                Some(active) => {
                    let state = active.state.clone();
                    let sandbox = self.sandbox().map_err(|error| error.to_string())?;
                    sandbox.state_fields(&state).map_err(|failure| failure.message)
                }
                None => {
                    Ok(object.newest(now.wall_ms).map_or(Value::Nil, |one| Value::Bytes(one.value.to_vec())))
                }
            },
            Outcome::Reply(Ok(_)) => Ok(Value::Bool(true)),
            Outcome::Reply(Err(error)) => Err(error.to_string()),
        }
    }

    // Upkeep

    /// Writes what must be written by now, unloads what is idle, and looks at the timers that are due.
    pub(super) fn keep_homes(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.homes.sandbox.is_none() || self.ring.is_none() {
            return;
        }
        // Where homes may have moved, the next must find what was not written yet.
        let down = self.detector.count_down();
        let view = (self.stamp(), down);
        if std::mem::replace(&mut self.homes.view, view) != view {
            self.homes.hasten_flushes(now.mono_us);
            self.review_holders(now);
        }
        self.walk_placed(now, out);
        self.look_at_spares(now, out);
        for origin in self.homes.overdue(now.mono_us) {
            self.finish(origin, Err(refused(ActiveError::TimedOut)), out);
        }
        for _ in 0..FLUSHES_MAX {
            let Some(key) = self.homes.next_flush(now.mono_us) else { break };
            self.homes.flushed(&key);
            let is_running = self.homes.get(&key).is_some_and(|resident| resident.run.is_some());
            match is_running || self.read_only.is_some() {
                true => self.homes.flush_by(&key, now.mono_us + RETRY_US),
                false => self.flush(now, &key, out),
            }
        }
        if self.read_only.is_none() {
            self.load_left_over(now, out);
        }
        self.homes.sweep(now.mono_us, self.config.active_bytes);
        self.run_timers(now, out);
    }

    /// The disk takes writes again: has those objects loaded of which it has refused what was answered.
    fn load_left_over(&mut self, now: Now, out: &mut Vec<Output>) {
        if now.mono_us < self.homes.left_over_us {
            return;
        }
        self.homes.left_over_us = now.mono_us + RETRY_US;
        for key in self.homes.next_left_over(FLUSHES_MAX) {
            self.read_to_load(now, key, out);
        }
    }

    fn flush(&mut self, now: Now, key: &ObjectKey, out: &mut Vec<Output>) {
        let deadline_us = now.mono_us + u64::from(self.config.timeout_ms) * 1000;
        self.keep(now, key, Origin::Nobody, Quorum::default(), Reply::BucketSet, None, deadline_us, out);
    }

    /// Writes all that handlers changed.
    pub(super) fn flush_homes(&mut self, now: Now, out: &mut Vec<Output>) {
        for key in self.homes.unwritten() {
            if self.homes.get(&key).is_some_and(|resident| resident.run.is_none()) && self.read_only.is_none()
            {
                self.homes.flushed(&key);
                self.flush(now, &key, out);
            }
        }
    }

    // Timers

    /// Goes on with timers whose objects were read, then looks at those that are due, as long as they are admitted.
    fn run_timers(&mut self, now: Now, out: &mut Vec<Output>) {
        while self.may_run_timers(now) {
            let Some(due) = self.homes.next_due_timer() else { break };
            let is_stale = now.mono_us > due.since_us + u64::from(self.config.timeout_ms) * 1000;
            let outcome = match due.outcome {
                // Others may have written since its replicas were read.
                Outcome::Reply(Ok(_)) if is_stale => Outcome::Reply(Err(refused(ActiveError::TimedOut))),
                outcome => outcome,
            };
            self.take_outcome(now, due.number, outcome, out);
            self.go_on(now, out);
        }
        for _ in 0..LOOKS_MAX {
            if self.homes.timers_under_way() >= TIMERS_MAX || !self.may_run_timers(now) {
                return;
            }
            let Some(look) = self.replica.timers_mut().next_look(now.wall_ms) else { return };
            self.look_at_timer(now, look, out);
        }
    }

    fn may_run_timers(&mut self, now: Now) -> bool {
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::AdmitTimers {
            return true;
        }
        self.homes.admission.admits(now.mono_us)
    }

    /// A timer's handler has got so far: charges what it took.
    pub(super) fn charge_timer(&mut self, now: Now, key: &ObjectKey, turn: &Turn) {
        let instructions = match turn {
            Turn::Done(done) => done.instructions,
            Turn::Failed(failure) if failure.kind == FailureKind::Limit => self.limits(key).instructions,
            // What it used until then is charged at its end, or with the turn.
            Turn::Waits(_) | Turn::Failed(_) => 0,
        };
        self.homes.admission.charge_instructions(now.mono_us, instructions);
    }

    /// When timers have something to do, in `mono_us`.
    fn next_timer_us(&self) -> u64 {
        let look_us = self.replica.timers().next_ms().map(|at_ms| {
            let wait_ms = at_ms.saturating_sub(self.last_now.wall_ms);
            self.last_now.mono_us.saturating_add(wait_ms.saturating_mul(1000))
        });
        let wanted_us = match look_us {
            _ if self.homes.has_due_timers() => 0,
            // One that is over makes room for the next, in a step of its own.
            Some(_) if self.homes.timers_under_way() >= TIMERS_MAX => return u64::MAX,
            Some(look_us) => look_us,
            None => return u64::MAX,
        };
        wanted_us.max(self.homes.admission.next_us())
    }

    /// When timers or unwritten changes need a tick, in `mono_us`.
    pub(super) fn next_home_us(&self) -> u64 {
        if self.homes.sandbox.is_none() || self.ring.is_none() {
            return u64::MAX;
        }
        let timer_us = self.next_timer_us();
        let copies_us = self.next_copies_us();
        let left_over_us = self.homes.next_left_over_us().filter(|_| self.read_only.is_none());
        let homes = [self.homes.next_flush_us(), self.homes.next_deadline_us(), copies_us, left_over_us]
            .into_iter()
            .flatten();
        homes.fold(timer_us, u64::min)
    }

    /// Runs a timer that is due, if this node is its home, and says when to look at it again.
    fn look_at_timer(&mut self, now: Now, look: Look, out: &mut Vec<Output>) {
        let (missed, late_ms) = (look.missed(now.wall_ms), now.wall_ms.saturating_sub(look.due_ms));
        let Look { key, interval_ms, due_ms } = look;
        let number = interval_number(&key, interval_ms, now.wall_ms);
        let start_ms = interval_start(&key, interval_ms, number);
        let next_ms = interval_start(&key, interval_ms, number + 1);
        let second_ms = SECOND_LOOK_MS.min(interval_ms / 2);
        if due_ms == 0 {
            // Perhaps this node has just started, and the interval's run is still to come. The object knows.
            let spread_ms = second_ms + (now.wall_ms - start_ms) % START_MS.min(interval_ms);
            let look_ms = next_ms.min(now.wall_ms + spread_ms);
            return self.replica.timers_mut().look_again(&key, look_ms);
        }
        let is_home = self.home(&key) == self.id();
        let is_first_look = now.wall_ms < start_ms + second_ms;
        let look_ms = if is_first_look && !is_home { start_ms + second_ms } else { next_ms };
        self.replica.timers_mut().look_again(&key, look_ms);
        if !is_home || self.stopping {
            return;
        }
        self.metrics.active_timers_skipped += missed;
        self.metrics.active_timers_late += (late_ms > LATE_MS) as u64;
        self.metrics.active_timer_late_ms = late_ms;
        self.homes.admission.charge_run(now.mono_us);
        let Ok(needed) = self.read_quorum(&key, Quorum::default()) else { return };
        let needed = self.home_reads(&key, needed);
        let deadline_us = now.mono_us + u64::from(self.config.timeout_ms) * 1000;
        let awaited = self.homes.wait(Awaited::Timer(key.clone(), number));
        self.start_get(now, Origin::Run(awaited), key, needed, Purpose::Answer, deadline_us, out);
    }

    /// Runs `onTimer` unless it ran in this interval already.
    fn run_timer(&mut self, now: Now, key: ObjectKey, interval: u64, merged: Object, out: &mut Vec<Output>) {
        let stored = merged.active(now.wall_ms).map_or(u64::MAX, |active| active.last_interval);
        // What is loaded may be behind another home's run, or not be written yet.
        let loaded = self.homes.get(&key).map_or(0, |resident| resident.active.last_interval);
        let last_interval = stored.max(loaded);
        #[cfg(feature = "sabotage")]
        let last_interval = match self.config.sabotage {
            crate::config::Sabotage::ForgetRuns => 0,
            _ => last_interval,
        };
        if last_interval >= interval || !merged.is_active(now.wall_ms) {
            return;
        }
        let deadline_us = now.mono_us + u64::from(self.config.timeout_ms) * 1000;
        let job = Job { origin: Origin::Nobody, what: What::Timer(interval), deadline_us };
        self.enter(now, key, job, Some(merged), out);
    }

    // Information

    /// What `ASO.INFO` tells of an object, loaded or not: also of one that cannot be loaded, or may not run.
    pub(super) fn info_of(&mut self, now: Now, key: &ObjectKey, merged: Option<Object>) -> Value {
        let may_run = self.buckets().properties(key.bucket()).active;
        let is_loaded = may_run && self.make_resident(now, key, merged.clone()).is_ok();
        match self.homes.get(key).is_some() && is_loaded {
            true => self.info(now, key),
            false => {
                let mut stored = merged.unwrap_or_default();
                if let Some((held, _)) = self.replica.load_object(key) {
                    stored.merge(&held);
                }
                self.info_stored(now, key, &stored)
            }
        }
    }

    fn info(&mut self, now: Now, key: &ObjectKey) -> Value {
        let number = |number: u64| Some(Value::Integer(number as i64));
        let Ok(sandbox) = self.sandbox() else { return Value::Nil };
        let messages_left = sandbox.messages_left(key);
        let interval_ms = super::residents::interval_of(sandbox, key);
        let is_running = self.homes.get(key).is_some_and(|resident| resident.run.is_some());
        // A run that waits may hold what cannot be kept.
        let state = self.sandbox().ok().filter(|_| !is_running).and_then(|one| one.save(key).ok());
        let Some(resident) = self.homes.get(key) else { return Value::Nil };
        let mut active = resident.active.clone();
        active.state = state.unwrap_or(active.state);
        active.interval_ms = interval_ms;
        let (seen, expires_ms) = (resident.seen.clone(), resident.expires_ms);
        let report = &resident.report;
        let timer = [
            ("last_ms", report.timer_ms.map(|ms| Value::Integer(ms as i64))),
            ("runs", number(report.timer_runs)),
        ];
        let counts = [
            ("calls", number(report.calls)),
            ("failures", number(report.failures)),
            ("instructions_last", number(u64::from(report.instructions_last))),
            ("instructions_max", number(u64::from(report.instructions_max))),
            ("merges", number(report.merges)),
            ("messages_left", number(u64::from(messages_left))),
            ("unwritten", Some(Value::Bool(resident.flush_us.is_some()))),
        ];
        let newest = seen.dots().max();
        self.info_with(now, key, &active, expires_ms, newest, (&counts, &timer))
    }

    /// What is known of an object without its code.
    fn info_stored(&self, now: Now, key: &ObjectKey, stored: &Object) -> Value {
        let Some((_, version)) = stored.newest_live(now.wall_ms) else { return Value::Nil };
        let crate::object::Value::Active(active) = &version.value else { return Value::Nil };
        let newest = stored.context().dots().max();
        self.info_with(now, key, active, version.expires_ms, newest, (&[], &[]))
    }

    fn info_with(
        &self,
        now: Now,
        key: &ObjectKey,
        active: &Active,
        expires_ms: Option<u64>,
        newest: Option<Dot>,
        (counts, timer): (Entries, Entries),
    ) -> Value {
        let text = |text: &str| Some(Value::from(text));
        let number = |number: u64| Some(Value::Integer(number as i64));
        let limits = self.limits(key);
        let durability = self.buckets().properties(key.bucket()).aso.durability;
        let holders = active.placement.as_ref().map(|placement| placement.holders.clone());
        let holders = holders.unwrap_or_else(|| self.owners(key).0);
        let name = |node| self.membership.members.get(node).map(|member| Value::from(member.name.as_str()));
        let replicas = Value::Array(holders.iter().filter_map(name).collect());
        let interval_ms = active.interval_ms;
        let next = interval_number(key, interval_ms.max(1), now.wall_ms) + 1;
        let timer = (interval_ms > 0).then(|| {
            let next_ms = interval_start(key, interval_ms, next);
            let known = [("interval_ms", number(interval_ms)), ("next_ms", number(next_ms))];
            map(known.into_iter().chain(timer.iter().cloned()))
        });
        let error = self.homes.last_error(key).map(|(at_ms, failure)| {
            map([
                ("at_ms", number(*at_ms)),
                ("message", text(&failure.message)),
                ("trace", text(&failure.trace)),
            ])
        });
        let known = [
            ("durability", text(durability.name())),
            ("expires_ms", expires_ms.map(|ms| Value::Integer(ms as i64))),
            ("home", text(&self.id().to_string())),
            ("instructions_limit", number(u64::from(limits.instructions))),
            ("last_error", error),
            ("memory_limit_bytes", number(u64::from(limits.memory_bytes))),
            ("messages_limit", number(u64::from(limits.messages))),
            ("replicas", Some(replicas)),
            ("source_bytes", number(active.source.len() as u64)),
            ("state_bytes", number(active.state.len() as u64)),
            ("timer", timer),
            ("version", newest.map(|dot| Value::from(format!("{}@{:?}", dot.counter, dot.actor).as_str()))),
            ("written_ms", newest.map(|dot| Value::Integer(dot.wall_ms() as i64))),
        ];
        map(known.into_iter().chain(counts.iter().cloned()))
    }
}

/// The node that objects know by this text.
pub(super) fn node_id(text: &[u8]) -> Option<NodeId> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok().map(NodeId)
}
