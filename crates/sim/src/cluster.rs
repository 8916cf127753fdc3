//! The world: machines, links and clients, driven from event to event.
//!
//! One queue ordered by time, then by the order in which events were made. A turn of a machine takes some of its inbox,
//! steps the node and stages; a little later it releases what does not wait for the disk, and after the time of a sync
//! it commits and releases the rest. A crash in between loses what comes after it, as it does in the real loop. The
//! submodules are one `impl Cluster`: `links` moves messages and keeps connections, `listings` turns
//! pages, `strikes` makes things go wrong, `run` is the story from the first start to the verdict.

mod copies;
mod finale;
mod forgetting;
mod husks;
mod links;
mod listings;
mod moved;
mod owed;
mod quorums;
mod rings;
mod run;
mod skipping;
mod strife;
mod strikes;
mod tables;
mod terms;
mod testimony;
mod unwritten;
mod witness;

pub use run::{run, Report, Setup};
pub(crate) use tables::Ears;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use oort_core::active::Value;
use oort_core::bucket::Replication;
use oort_core::client::{ActiveError, ClientError, Operation, Quorum, Reply, Request, RequestId};
use oort_core::config::{Addresses, NodeConfig, SyncMode};
use oort_core::detector::Health;
use oort_core::message::Message;
use oort_core::node::{Event as NodeEvent, Input, Node, Output};
use oort_core::object::Object;
use oort_core::ring::Ring;
use oort_core::store::Space;
use oort_core::types::{NodeId, ObjectKey, Rng};

use crate::chronicle::{Chronicle, Incident};
use crate::faults::{Fault, Plan};
use crate::history::{dots_of, History, Moment, OpRecord, Outcome};
use crate::machine::Machine;
use crate::network::{Connection, Network};
use crate::skips::Skips;
use crate::trace::{key_of, show_message, show_object, show_operation, show_version, Trace};
use crate::workload::{Planned, Screen, Workload, DELETES};

/// The client of the operations that prepare and inspect the cluster.
const OPERATOR: usize = usize::MAX;
/// The most inputs one turn takes.
const TURN_INPUTS_MAX: u64 = 16;
/// An answer may come this much after the operation's time limit, in microseconds, besides what the disk takes and the
/// hedge by which a forwarding node waits longer than the node it forwarded to.
const ANSWER_MARGIN_US: u64 = 50_000;
/// A node that runs for so long, in microseconds, has compared clocks with all peers.
const CLOCK_SETTLED_US: u64 = 2_000_000;
/// Most that a node's time may be off, in milliseconds: by `skew`, and by what standstills and delays make of a
/// difference that was measured badly. Less than what `clock` does.
const CLOCK_OFF_MS_MAX: i64 = 40_000;
/// The same where all clocks are right and were measured well: twice the difference that nodes do not correct.
const CLOCK_STEP_MS: i64 = 1_000;

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// The disk keeps what the process gave it.
    Killed,
    /// The disk keeps what it was told to make durable.
    PowerLoss,
}

#[derive(Debug)]
enum Event {
    Turn {
        machine: usize,
        boot: u64,
    },
    Wake {
        machine: usize,
        boot: u64,
    },
    Release {
        machine: usize,
        boot: u64,
        outputs: Vec<Output>,
    },
    /// The disk is done with a turn's batch: what waited for it may go.
    Commit {
        machine: usize,
        boot: u64,
        outputs: Vec<Output>,
    },
    Arrive {
        from: usize,
        to: usize,
        connection: Connection,
        bytes: Bytes,
    },
    Dial {
        from: usize,
        to: usize,
    },
    LinkClosed {
        machine: usize,
        peer: usize,
        connection: Connection,
    },
    Next {
        client: usize,
    },
    Ask {
        machine: usize,
        id: RequestId,
        /// Boxed, for it is large, and the queue moves its events about.
        request: Box<Request>,
    },
    Strike {
        fault: Fault,
    },
    Stop {
        machine: usize,
        boot: u64,
    },
    End {
        machine: usize,
        boot: u64,
        ending: Ending,
    },
    Start {
        machine: usize,
    },
    /// A machine that is down gets another address, or swaps it with another's that is down.
    Move {
        machine: usize,
        with: Option<usize>,
    },
    /// An operator has a new node take the place of the one whose disk was lost, until that is done.
    Replace,
    /// An operator has `asked` remove `target`.
    Remove {
        asked: usize,
        target: usize,
        force: bool,
    },
    Heal {
        cuts: Vec<(usize, usize)>,
    },
    FreeDisk {
        machine: usize,
    },
    SpeedUpDisk {
        machine: usize,
    },
    /// Nobody waits any more for copies of a version.
    LookFor(Box<owed::Watched>),
    LookUnwritten(Box<unwritten::Debt>),
    /// Something befalls a machine that is just asked for something.
    Befall {
        machine: usize,
        fault: Fault,
        lasts_us: u64,
    },
}

/// A cluster, its clients and everything that was seen of them.
pub struct Cluster {
    rng: Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), Event>,
    made: u64,
    machines: Vec<Machine>,
    by_id: BTreeMap<NodeId, usize>,
    network: Network,
    plan: Plan,
    /// No link closes while the clients work.
    links_stay_open: bool,
    /// No machine stops or stands still.
    keeps_memory: bool,
    /// Machines were at odds after the faults had ended.
    has_striven: bool,
    config: NodeConfig,
    pub workload: Workload,
    pub history: History,
    pub trace: Trace,
    /// Until when something kept an owner from its part at last, as far as single moments tell.
    troubled_until_us: u64,
    /// Operations sent and not answered.
    unanswered: usize,
    wall_ms_max: u64,
    /// Copies of dead objects that nodes dropped.
    forgotten: u64,
    /// When this many operations are left, the clients rest for so long, in microseconds, that deleted objects are
    /// forgotten while faults strike.
    rest: Option<(usize, u64)>,
    /// The next address that nobody had yet.
    next_address: u64,
    rest_until_us: u64,
    strikes: BTreeMap<&'static str, u64>,
    /// When an operator may next ask for the removal of a node that is alive.
    next_removal_us: u64,
    /// The stamp of the newest ring that was looked at.
    moved_stamp: u64,
    /// How many zones the machines lie in.
    zones: usize,
    rings: rings::Rings,
    testimony: testimony::Testimony,
    promises: terms::Promises,
    unwritten: unwritten::Unwritten,
    /// Calls that were answered and may not be written yet.
    debts: Vec<unwritten::Debt>,
    /// An operator has forced a removal.
    has_forced: bool,
    /// The node whose disk was lost for good.
    lost: Option<Lost>,
    encoded: Vec<u8>,
    skips: Skips,
    /// Operations of clients and strikes drawn so far, skipped ones too.
    operations_drawn: u64,
    strikes_drawn: u64,
    /// What a told story needs besides the history.
    chronicle: Chronicle,
    /// How things were when the gets under way were asked.
    scenes: BTreeMap<RequestId, quorums::Scene>,
}

/// A node that is no more.
#[derive(Clone, Copy, Debug)]
struct Lost {
    old: NodeId,
    /// Its machine, on which a new node runs since.
    machine: usize,
    at_us: u64,
}

impl Cluster {
    /// Handles the next event. False if there is none.
    fn advance(&mut self) -> bool {
        let Some(((at_us, _), event)) = self.queue.pop_first() else {
            return false;
        };
        self.now_us = at_us;
        match event {
            Event::Turn { machine, boot } if self.is_life(machine, boot) => self.turn(machine),
            Event::Wake { machine, boot } if self.is_life(machine, boot) => self.wake(machine),
            Event::Release { machine, boot, outputs } if self.is_life(machine, boot) => {
                self.release(machine, outputs)
            }
            Event::Commit { machine, boot, outputs } if self.is_life(machine, boot) => {
                self.commit(machine, outputs)
            }
            Event::Turn { .. } | Event::Wake { .. } | Event::Release { .. } | Event::Commit { .. } => {}
            Event::Arrive { from, to, connection, bytes } => self.arrive(from, to, connection, bytes),
            Event::Dial { from, to } => self.dial(from, to),
            Event::LinkClosed { machine, peer, connection } => self.link_closed(machine, peer, connection),
            Event::Next { client } => self.next_operation(client),
            Event::Ask { machine, id, request } => self.ask(machine, id, *request),
            Event::Strike { fault } => self.strike(fault),
            Event::Stop { machine, boot } if self.is_life(machine, boot) => {
                self.machines[machine].is_stopping = true;
                self.deliver(machine, Input::Stop);
            }
            Event::End { machine, boot, ending } if self.is_life(machine, boot) => self.end(machine, ending),
            Event::Stop { .. } | Event::End { .. } => {}
            Event::Start { machine } => self.start(machine),
            Event::Move { machine, with } => self.move_address(machine, with),
            Event::Replace => self.replace_lost(),
            Event::Remove { asked, target, force } => self.ask_removal(asked, target, force),
            Event::Heal { cuts } => self.heal(&cuts),
            Event::FreeDisk { machine } => {
                self.machines[machine].disk.set_full(false);
                self.machines[machine].trouble_until(self.now_us);
                self.trouble_until(self.now_us);
            }
            Event::LookFor(watched) => self.look_for(&watched),
            Event::LookUnwritten(debt) => self.look_unwritten(*debt),
            Event::Befall { machine, fault, lasts_us } => self.befall(machine, fault, lasts_us),
            Event::SpeedUpDisk { machine } => self.machines[machine].disk_slowness = 1,
        }
        true
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.made += 1;
        self.queue.insert((at_us, self.made), event);
    }

    fn is_life(&self, machine: usize, boot: u64) -> bool {
        let machine = &self.machines[machine];
        machine.is_up() && machine.boots == boot
    }

    // Machines

    /// Switches a machine on.
    fn start(&mut self, index: usize) {
        if self.machines[index].is_up() {
            return;
        }
        if self.machines[index].disk.is_full() && self.machines[index].disk.count(Space::Meta) == 0 {
            // A node that cannot write down who it is does not start.
            return self.at(self.now_us + 50_000, Event::Start { machine: index });
        }
        let seed = self.rng.next_u64();
        self.trouble_until(self.now_us);
        self.trace.event(self.now_us, b'S', index);
        self.trace.line(self.now_us, || format!("n{index} starts"));
        self.chronicle.note(self.now_us, Incident::Start { machine: index });
        let zone = self.zone(index);
        let machine = &mut self.machines[index];
        machine.boots += 1;
        (machine.booted_us, machine.awake_since_us) = (self.now_us, self.now_us);
        machine.ears = tables::Ears::default();
        machine.is_stopping = false;
        let config = NodeConfig {
            name: format!("n{index}"),
            zone,
            boot: machine.power_failures,
            addresses: Addresses { peer: machine.address.to_string(), ..Addresses::default() },
            ..self.config.clone()
        };
        let config = match self.lost {
            // It joins the cluster that is there.
            Some(lost) if lost.machine == index => NodeConfig { cluster_size: 0, ..config },
            _ => config,
        };
        if machine.clock.is_far_ahead() {
            // A node that starts alone cannot know, and would name its writes by that clock.
            machine.clock = crate::machine::Clock::default();
        }
        let now = machine.now(self.now_us);
        match Node::open(config, seed, Box::new(machine.disk.store()), now) {
            Ok(mut node) => {
                if self.workload.has_active() {
                    // Time stands still within a call.
                    let sandbox = oort_script::Machine::new(|| 0).expect("there is memory");
                    node.set_sandbox(Box::new(sandbox));
                }
                let id = node.id();
                let is_replaced = self.lost.is_some_and(|lost| machine.id == Some(lost.old));
                if is_replaced {
                    self.by_id.retain(|_, machine| *machine != index);
                } else if machine.id.is_some_and(|known| known != id) {
                    let detail = format!("n{index} came back under another id");
                    self.history.blame("formation", None, detail);
                }
                machine.id = Some(id);
                machine.node = Some(node);
                self.by_id.insert(id, index);
                // The seed nodes: everybody knows where the first two are.
                for seed in (0..2.min(self.machines.len())).filter(|seed| *seed != index) {
                    self.want_link(index, seed, None);
                }
                self.schedule_turn(index);
            }
            Err(error) => {
                let detail = format!("n{index} does not start: {error:?}");
                self.history.blame("formation", None, detail);
            }
        }
    }

    /// Ends a machine's process.
    fn end(&mut self, index: usize, ending: Ending) {
        self.trace.event(self.now_us, b'E', index);
        self.trace.line(self.now_us, || format!("n{index} ends: {ending:?}"));
        let has_power = ending == Ending::Killed;
        self.chronicle.note(self.now_us, Incident::End { machine: index, has_power });
        let machine = &mut self.machines[index];
        let is_clean = machine.is_stopping && machine.waiting.is_empty() && ending == Ending::Killed;
        if let Some(node) = machine.node.take_if(|_| is_clean) {
            // A disk that refuses leaves the next start more to do.
            let _ = node.close();
        }
        machine.node = None;
        machine.inbox = VecDeque::new();
        machine.has_turn = false;
        machine.in_turn = false;
        machine.wake_us = u64::MAX;
        machine.busy_until_us = 0;
        let lost = match ending {
            Ending::PowerLoss => {
                machine.power_failures += 1;
                machine.disk.crash()
            }
            Ending::Killed => Vec::new(),
        };
        self.promises.end(index);
        if is_clean {
            self.stopped_in_order(index);
        }
        self.unwritten.end(index);
        self.debts.retain(|debt| debt.machine() != index);
        if ending == Ending::PowerLoss && self.is_interval() {
            self.promises.forget(index);
        }
        self.history.crashed(index, self.now_us, &lost);
        for id in std::mem::take(&mut self.machines[index].waiting) {
            self.disconnect(id);
        }
        self.drop_links(index, ending);
    }

    /// Puts an input into a machine's inbox.
    fn deliver(&mut self, index: usize, input: Input) {
        self.machines[index].inbox.push_back(input);
        self.schedule_turn(index);
    }

    fn schedule_turn(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if machine.has_turn || machine.in_turn || !machine.is_up() {
            return;
        }
        machine.has_turn = true;
        let (at_us, boot) = (machine.free_us(self.now_us), machine.boots);
        self.at(at_us, Event::Turn { machine: index, boot });
    }

    fn wake(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if machine.wake_us > self.now_us {
            return;
        }
        machine.wake_us = u64::MAX;
        self.schedule_turn(index);
    }

    /// One turn of a node's loop.
    fn turn(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let free_us = machine.free_us(self.now_us);
        if free_us > self.now_us {
            let boot = machine.boots;
            return self.at(free_us, Event::Turn { machine: index, boot });
        }
        machine.has_turn = false;
        machine.in_turn = true;
        let now = machine.now(self.now_us);
        self.trace.event(self.now_us, b'T', index);
        let take = (1 + self.rng.below(TURN_INPUTS_MAX)).min(machine.inbox.len() as u64);
        let node = machine.node.as_ref().expect("a turn is one of a living node");
        let (wall_ms, stamp) = (node.time(now).wall_ms, node.ring().map(Ring::stamp));
        let mut outputs = Vec::new();
        for _ in 0..take {
            let machine = &mut self.machines[index];
            let input = machine.inbox.pop_front().expect("the inbox was counted");
            if let Input::Request { id, .. } = &input {
                let record = self.history.operation(*id);
                record.taken_us = self.now_us;
                record.stalled_us = machine.stalled_us;
            }
            self.step(index, now, input, &mut outputs);
        }
        let is_due = |node: &Node| now.mono_us >= node.next_wakeup();
        if self.machines[index].node.as_ref().is_some_and(is_due) {
            self.step(index, now, Input::Tick, &mut outputs);
        }
        let machine = &mut self.machines[index];
        let node = machine.node.as_mut().expect("a turn is one of a living node");
        machine.has_new_ring = node.ring().map(Ring::stamp) != stamp;
        machine.turn_ms = wall_ms;
        self.wall_ms_max = self.wall_ms_max.max(wall_ms);
        node.stage(&mut outputs);
        let (late, early): (Vec<Output>, Vec<Output>) = outputs.into_iter().partition(Output::waits_for_disk);
        let has_refused = machine.disk.is_full();
        let stored = machine.disk.take_staged();
        let all_dropped = machine.disk.take_dropped();
        let decoded = all_dropped.iter().filter_map(|(_, dropped)| Object::decode(dropped).ok());
        decoded.for_each(|object| self.history.show(index, self.now_us, &object));
        let staged_us = self.now_us + machine.step_us * (1 + take);
        let syncs = machine.disk.is_dirty() && self.config.sync == SyncMode::Batch;
        let committed_us = staged_us + if syncs { machine.sync_us * machine.disk_slowness } else { 0 };
        machine.busy_until_us = committed_us;
        if has_refused {
            self.check_index(index);
        }
        for (row, dropped) in all_dropped {
            self.check_dropped(index, &row, &dropped);
            self.dropped_with_promise(index, &row);
        }
        self.trace.mix_number(take << 32 | stored.len() as u64);
        for stored in stored {
            self.trace.mix(&stored.after);
            let prints = self.trace.prints().then(|| stored.after.clone());
            let key = stored.key.clone();
            let is_at_home = self.primaries(&key).contains(&index);
            let when = Moment { machine: index, at_us: self.now_us, wall_ms, is_at_home };
            self.chronicle.stored(self.now_us, index, &stored);
            self.check_husk(index, &stored);
            let home_row = self.workload.is_active(&key).then(|| stored.clone());
            let born = self.history.stored(when, stored);
            home_row.iter().for_each(|stored| self.check_home_row(index, stored, &born));
            self.watch_copies(index, &key, born);
            if let Some(object) = prints.and_then(|bytes| Object::decode(&bytes).ok()) {
                let text = show_object(&object, &|dot| self.history.name(dot));
                self.trace.line(self.now_us, || format!("n{index} stores {key:?} {text}"));
            }
        }
        let boot = self.machines[index].boots;
        if !early.is_empty() {
            self.at(staged_us, Event::Release { machine: index, boot, outputs: early });
        }
        self.at(committed_us, Event::Commit { machine: index, boot, outputs: late });
    }

    /// Ends a turn: makes it durable and lets go what waited for that. A crash before loses the turn, though the peers
    /// may have heard of it.
    fn commit(&mut self, index: usize, mut outputs: Vec<Output>) {
        let machine = &mut self.machines[index];
        if machine.is_stalled(self.now_us) {
            let (at_us, boot) = (machine.stalled_until_us, machine.boots);
            return self.at(at_us, Event::Commit { machine: index, boot, outputs });
        }
        let now = machine.now(self.now_us);
        let node = machine.node.as_mut().expect("a turn is one of a living node");
        node.commit(now, &mut outputs);
        machine.in_turn = false;
        self.check_ring_kept(index);
        self.release(index, outputs);
        if !self.machines[index].inbox.is_empty() {
            self.schedule_turn(index);
        }
        self.schedule_wake(index);
    }

    fn schedule_wake(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(node) = &machine.node else { return };
        // A loop cannot turn more often than this, whatever the node asks for.
        let at_us = (machine.booted_us + node.next_wakeup()).max(self.now_us + 20);
        if at_us >= machine.wake_us {
            return;
        }
        machine.wake_us = at_us;
        let boot = machine.boots;
        self.at(at_us, Event::Wake { machine: index, boot });
    }

    /// Lets a turn's outputs go.
    fn release(&mut self, index: usize, outputs: Vec<Output>) {
        let machine = &self.machines[index];
        if machine.is_stalled(self.now_us) {
            let (at_us, boot) = (machine.stalled_until_us, machine.boots);
            return self.at(at_us, Event::Release { machine: index, boot, outputs });
        }
        self.trace.event(self.now_us, b'R', index);
        for output in outputs {
            self.watch_unwritten(index, &output);
            match output {
                Output::Reply { id, result } => self.answered(index, id, result),
                Output::Send { to, message } => self.send(index, to, message),
                Output::Connect { peer, address } => self.connect_wanted(index, peer, &address),
                Output::Event(NodeEvent::DeadForgotten { key, object }) => {
                    let machine = &self.machines[index];
                    let now = machine.now(self.now_us);
                    let wall_ms = machine.node.as_ref().map_or(now, |node| node.time(now)).wall_ms;
                    // Its clock may have jumped back since the turn that this is of.
                    let wall_ms = wall_ms.max(machine.turn_ms);
                    self.forgotten += 1;
                    self.check_forgotten(index, &key, &object);
                    self.history.forgot(index, self.now_us, wall_ms, &key, &object);
                }
                Output::Disconnect { peer } => self.dial_no_more(index, peer),
                Output::Refuse { peer, .. } => self.refuse(index, peer),
                Output::Event(event) => {
                    match event {
                        NodeEvent::HealthChanged { .. } => self.trouble_until(self.now_us),
                        NodeEvent::RingFormed { .. } => self.check_moved(),
                        _ => {}
                    }
                    self.trace.line(self.now_us, || format!("n{index} notes {event:?}"))
                }
            }
        }
    }

    // Clients

    /// A client's next operation, or its end.
    fn next_operation(&mut self, client: usize) {
        if self.workload.left == 0 {
            return;
        }
        self.workload.left -= 1;
        if self.rest.is_some_and(|(left, _)| self.workload.left == left + DELETES) {
            self.take_away();
        }
        let id = self.history.operations.len() as RequestId;
        let wall_ms = crate::trace::EPOCH_MS + self.now_us / 1000;
        let planned = self.workload.plan(client, id, wall_ms, &mut self.rng);
        if !self.skips_operation(client) {
            self.submit(client, planned);
        }
    }

    /// The ring of the node that knows the newest one.
    fn newest_ring(&self) -> Option<&Ring> {
        self.nodes().filter_map(|node| node.ring()).max_by_key(|ring| ring.stamp())
    }

    /// The replication of a bucket that reads are answered by, and that of the other owners while it changes.
    fn replication(&self, bucket: &[u8]) -> (Replication, Replication) {
        let in_force = |ring: &Ring| {
            let serving = ring.replication(bucket);
            (serving, if ring.is_moving() { ring.state().other(bucket) } else { serving })
        };
        self.newest_ring().map(in_force).unwrap_or_default()
    }

    /// Sends an operation off.
    fn submit(&mut self, client: usize, planned: Planned) -> RequestId {
        let Planned { machine, operation, timeout_ms, seen } = planned;
        let nodes = self.newest_ring().map_or(self.machines.len(), |ring| ring.nodes().len()) as u8;
        let (mut is_usual, mut is_firm) = (false, false);
        let (n, r, w, scan_r) = match key_of(&operation) {
            Some(key) => {
                let (serving, other) = self.replication(key.bucket());
                let quorum = match &operation {
                    Operation::Get { quorum, .. }
                    | Operation::Call { quorum, .. }
                    | Operation::Update { quorum, .. } => *quorum,
                    _ => unreachable!("operations with a key have a quorum"),
                };
                let overlap = |it: Replication| it.r + it.w > it.n;
                let overlaps = overlap(serving) && overlap(other);
                is_usual = quorum == Quorum::default() && overlaps;
                // A node that has not heard yet that quorums overlap now does not see to it.
                let bucket = key.bucket();
                let rings = self.nodes().filter_map(|node| node.ring());
                let mut numbers =
                    rings.flat_map(|ring| [ring.replication(bucket), ring.state().other(bucket)]);
                is_firm =
                    overlaps && numbers.all(overlap) && quorum.w.is_none_or(|w| w >= serving.w.max(other.w));
                let n = serving.n.max(other.n).min(nodes);
                let (r, w) = (quorum.r.unwrap_or(serving.r), quorum.w.unwrap_or(serving.w));
                (n, r.min(n), w.min(n), serving.r.min(n))
            }
            None => (0, 0, 0, 0),
        };
        let id = self.history.start(OpRecord {
            client,
            machine,
            operation: operation.clone(),
            timeout_ms: timeout_ms.unwrap_or(self.config.timeout_ms) as u64,
            seen,
            n,
            r,
            w,
            scan_r,
            is_usual,
            is_firm,
            is_kept: false,
            start_us: self.now_us,
            end_us: 0,
            outcome: Outcome::Pending,
            error: String::new(),
            dots: Vec::new(),
            read: Vec::new(),
            before: None,
            shown: None,
            page: None,
            taken_us: 0,
            stalled_us: 0,
            ring_stamp: self.common_stamp(),
            is_ring_steady: false,
            calm_since_us: 0,
            must_see: Vec::new(),
        });
        self.unanswered += 1;
        let request = Box::new(Request { operation, timeout_ms });
        let at_us = self.now_us + self.network.travel_us(&mut self.rng);
        self.at(at_us, Event::Ask { machine, id, request });
        id
    }

    /// A request reaches its machine, or finds nobody.
    fn ask(&mut self, index: usize, id: RequestId, request: Request) {
        self.trace.event(self.now_us, b'Q', index);
        self.trace.mix_number(id);
        self.trace
            .line(self.now_us, || format!("client → n{index} o{id} {}", show_operation(&request.operation)));
        if !self.machines[index].is_up() {
            return self.disconnect(id);
        }
        self.check_clock(index);
        self.machines[index].waiting.insert(id);
        self.note_scene(index, id);
        self.trouble_owner(id);
        self.deliver(index, Input::Request { id, request });
    }

    fn disconnect(&mut self, id: RequestId) {
        let now_us = self.now_us;
        let record = self.history.operation(id);
        (record.outcome, record.end_us) = (Outcome::Disconnected, now_us);
        self.done(id);
    }

    fn done(&mut self, id: RequestId) {
        self.unanswered -= 1;
        let client = self.history.operation(id).client;
        if client != OPERATOR && !self.turn_page(client, id) {
            self.look_again(client, id);
            self.pause(client);
        }
    }

    /// A client that was told of its write may read it at once.
    fn look_again(&mut self, client: usize, id: RequestId) {
        let record = &self.history.operations[id as usize];
        if let (Operation::Update { key, .. }, Outcome::Acked) = (&record.operation, record.outcome) {
            self.workload.wrote(client, key, &mut self.rng);
        }
    }

    /// A client has its answer on the way, and thinks before it goes on.
    fn pause(&mut self, client: usize) {
        let pause_us = self.network.travel_us(&mut self.rng) + self.workload.pause_us(client, &mut self.rng);
        if let Some((_, lasts_us)) = self.rest.take_if(|(left, _)| self.workload.left <= *left) {
            self.rest_until_us = self.now_us + lasts_us;
        }
        let from_us = self.now_us.max(self.rest_until_us);
        self.at(from_us + pause_us, Event::Next { client });
    }

    /// A node answers a client.
    fn answered(&mut self, index: usize, id: RequestId, result: Result<Reply, ClientError>) {
        let now_us = self.now_us;
        if !self.machines[index].waiting.remove(&id) {
            let detail = format!("o{id} was answered once more by n{index}: {result:?}");
            return self.history.blame("answers", None, detail);
        }
        self.check_time(index, id);
        if let Err(failure) = &result {
            self.check_patience(id, failure);
        }
        self.trace.mix_number(id);
        let mut error = String::new();
        let (mut outcome, mut is_kept) = (Outcome::Acked, false);
        match result {
            Ok(Reply::Object(object)) => self.answered_get(id, &object),
            Ok(Reply::Updated(updated)) => {
                if let Some(before) = &updated.before {
                    self.told_before(id, before);
                }
                if updated.applied {
                    self.answered_update(id, updated.after.as_ref());
                } else {
                    outcome = Outcome::NotApplied;
                }
            }
            Ok(Reply::Called(called)) => {
                is_kept = called.is_kept;
                self.trace.mix_number(is_kept as u64);
                self.history.operation(id).shown = match called.value {
                    Value::Integer(shown) => Some(shown),
                    Value::Number(shown) => Some(shown as i64),
                    _ => None,
                };
            }
            Ok(Reply::Page(page)) => self.answered_page(id, page),
            Ok(Reply::RingPlan(_)) => self.check_removal(id),
            Ok(Reply::BucketSet) => {}
            Err(failure) => {
                error = failure.to_string();
                outcome = match failure {
                    ClientError::QuorumUnavailable { .. }
                    | ClientError::OutcomeUnknown
                    | ClientError::Active(ActiveError::TimedOut | ActiveError::Replaced) => Outcome::Unknown,
                    _ => Outcome::Refused,
                };
            }
        }
        self.trace.mix_number(outcome as u64);
        self.trace.line(now_us, || format!("n{index} → client o{id} {outcome:?} {error}"));
        let stamp = self.common_stamp();
        let record = self.history.operation(id);
        (record.outcome, record.end_us, record.error) = (outcome, now_us, error);
        record.is_kept = is_kept;
        record.is_ring_steady = stamp != 0 && record.ring_stamp == stamp;
        self.history.operation(id).calm_since_us = self.calm_since_us();
        if outcome == Outcome::Refused {
            self.check_refused(id);
        }
        if outcome == Outcome::Acked {
            self.check_copies(id, is_kept);
            self.settle_scene(index, id);
        }
        self.done(id);
    }

    /// A node that reaches all others goes by the time of most, or its clients' expiries are not what they asked for.
    pub(super) fn check_clock(&mut self, index: usize) {
        let machine = &self.machines[index];
        let now = machine.now(self.now_us);
        let Some(node) = &machine.node else { return };
        let mut others = self.machines.iter().filter_map(|machine| machine.id);
        let reaches_all = others.all(|id| node.health(id) == Health::Up);
        // Of two neither can know whose clock is right.
        if !reaches_all || now.mono_us < CLOCK_SETTLED_US || self.machines.len() < 3 {
            return;
        }
        let true_ms = crate::trace::EPOCH_MS + self.now_us / 1000;
        let off_ms = node.time(now).wall_ms as i64 - true_ms as i64;
        // A node that has measured all others well, while all clocks are right, goes by the right time.
        let plan = self.chronicle.plan.as_ref();
        let is_in_force = |fault: &Fault| plan.is_some_and(|plan| plan.timed.contains_key(fault));
        let has_wrong_clock = [Fault::Skew, Fault::Clock].iter().any(is_in_force);
        let peers = self.machines.iter().filter_map(|other| other.id).filter(|id| *id != node.id());
        let is_sure =
            !has_wrong_clock && self.lost.is_none() && machine.ears.have_measured(self.now_us, peers);
        let off_ms_max = if is_sure { CLOCK_STEP_MS } else { CLOCK_OFF_MS_MAX };
        if off_ms.abs() > off_ms_max {
            let detail = format!("n{index} reaches all others and goes by a time that is {off_ms} ms off");
            self.history.blame("clocks", None, detail);
        }
    }

    /// No operator may give up a node that is alive.
    fn check_removal(&mut self, id: RequestId) {
        let Operation::ChangeRing { change, .. } = &self.history.operation(id).operation else { return };
        let Some(node) = change.given_up() else { return };
        let removed = self.by_id.get(&node).copied().filter(|index| self.machines[*index].is_up());
        if let Some(index) = removed {
            let detail = format!("o{id} removed n{index}, which is up");
            self.history.blame("removal", None, detail);
        }
    }

    fn check_time(&mut self, index: usize, id: RequestId) {
        let machine = &self.machines[index];
        let disk_us = 4 * machine.sync_us * machine.disk_slowness;
        let (stalled_us, slow_disk_until_us) = (machine.stalled_us, machine.slow_disk_until_us);
        let now_us = self.now_us;
        let record = self.history.operation(id);
        let took_us = now_us - record.taken_us;
        let slow_us = slow_disk_until_us.min(now_us).saturating_sub(record.taken_us);
        let stood_us = stalled_us - record.stalled_us;
        let allowed_us =
            record.timeout_ms * 1000 + self.config.hedge_us + ANSWER_MARGIN_US + disk_us + slow_us + stood_us;
        if took_us > allowed_us {
            let limit_ms = record.timeout_ms;
            let key = key_of(&record.operation).cloned();
            let detail = format!("o{id} was answered after {} ms of {limit_ms}", took_us / 1000);
            self.history.blame("answers", key.as_ref(), detail);
        }
    }

    /// While links are open, silent nodes may still answer: a request fails for want of answers only when its time is
    /// up.
    fn check_patience(&mut self, id: RequestId, failure: &ClientError) {
        let is_early = match failure {
            // Copies that cannot exist are not waited for: a request may ask for more than the ring has nodes.
            ClientError::TooFewReachable { needed, .. } | ClientError::QuorumUnavailable { needed, .. }
                if usize::from(*needed) > self.newest_ring().map_or(0, |ring| ring.nodes().len()) =>
            {
                false
            }
            ClientError::QuorumUnavailable { .. } | ClientError::TooFewReachable { .. } => {
                self.links_stay_open
            }
            _ => false,
        };
        let now_us = self.now_us;
        // A node that was handed the request takes it for older than it is, by a round trip at most.
        let slow = [Fault::SlowLink, Fault::Delay, Fault::Slow, Fault::Starve];
        let is_slow = slow.iter().any(|fault| self.plan.timed.contains_key(fault));
        let round_trip_us = if is_slow { 1_500_000 } else { 50_000 };
        let record = self.history.operation(id);
        let (took_us, limit_us) = (now_us - record.start_us, record.timeout_ms * 1000);
        let early_us_max = round_trip_us.min(limit_us / 3 * 2);
        if is_early && record.timeout_ms >= 300 && took_us + early_us_max < limit_us {
            let (limit_ms, key) = (record.timeout_ms, key_of(&record.operation).cloned());
            let detail = format!("o{id} failed after {} ms of {limit_ms}: {failure}", took_us / 1000);
            self.history.blame("patience", key.as_ref(), detail);
        }
    }

    fn answered_get(&mut self, id: RequestId, object: &Object) {
        self.trace.mix(&object.encode());
        let siblings = dots_of(object);
        let record = self.history.operation(id);
        let client = record.client;
        record.read.clone_from(&siblings);
        let Some(key) = key_of(&record.operation).cloned() else {
            return;
        };
        self.check_born(object, &key, "a get's answer");
        if let Some(client) = self.workload.clients.get_mut(client) {
            let context = object.context().clone();
            client.screens.insert(key, Screen { context, siblings });
        }
    }

    /// An update says what was there before it.
    fn told_before(&mut self, id: RequestId, before: &Object) {
        self.trace.mix(&before.encode());
        let record = self.history.operation(id);
        record.before = Some(dots_of(before));
        if let Some(key) = key_of(&record.operation).cloned() {
            self.check_born(before, &key, "an update's state before");
        }
    }

    fn answered_update(&mut self, id: RequestId, after: Option<&Object>) {
        let Some(after) = after else { return };
        self.trace.mix(&after.encode());
        let Some((dot, version)) = after.0.newest() else { return };
        let (dot, shown) = (*dot, &version.value);
        let record = self.history.operation(id);
        if let oort_core::object::Value::Counter(_) = shown {
            record.shown = after.newest(0).and_then(|sibling| sibling.counter);
        }
        let Some(key) = key_of(&record.operation).cloned() else {
            return;
        };
        self.history.claim(id, dot, &key);
        self.check_born(after, &key, "an update's answer");
    }

    /// Whatever leaves a node must have been stored durably before, and as it was stored.
    fn check_born(&mut self, object: &Object, key: &ObjectKey, place: &str) {
        for (dot, version) in object.0.values() {
            if !self.history.is_born(*dot) {
                let detail = format!("{} in {place} was never stored", self.history.name(*dot));
                self.history.blame("durability", Some(key), detail);
            } else if !self.history.is_as_born(*dot, version) {
                let (name, found) = (self.history.name(*dot), show_version(version));
                let detail = format!("{name} in {place} is {found}, which is not what was stored");
                self.history.blame("evaluation", Some(key), detail);
            }
        }
    }

    fn show_message_line(&self, arrow: &str, from: usize, to: usize, message: &Message) {
        self.trace.line(self.now_us, || {
            let text = show_message(message, &|dot| self.history.name(dot));
            format!("n{from} {arrow} n{to} {text}")
        });
    }
}
