//! One node: everything wired together behind `step`.
//!
//! A turn of the loop is: any number of [`Node::step`] calls, one [`Node::stage`], release what does not wait for the
//! disk, one [`Node::commit`], release the rest. Nothing an output claims is untrue after a power failure. The copies
//! of a put become durable on all replicas at the same time, not one after the other.
//!
//! The submodules are one `impl Node` in parts: `coordinate` takes requests, `gets` and `puts` run them, `listing`
//! scans, `operators` takes operators' changes of the ring, `overdue` goes on without what came too late, `serve`
//! answers other coordinators, `background` gossips and hands hints over, `entropy` compares partitions and mends what
//! differs, `collect` forgets deleted objects, `moving` changes the ring; `active` runs objects that carry code, with
//! `homes`, `residents`, `creation` and `hosting`, and `terms` says why no answered call is undone. Follow a put from
//! `puts::start_update`.

mod active;
mod background;
mod collect;
mod coordinate;
mod copies;
mod creation;
mod entropy;
mod gets;
mod homes;
mod hosting;
mod listing;
mod moving;
mod opening;
mod operators;
mod overdue;
mod puts;
mod residents;
mod rests;
mod serve;
mod terms;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::bucket::BucketTable;
use crate::causality::Dot;
use crate::client::{ClientError, Operation, Reply, Request, RequestId, Updated};
use crate::collect::Collector;
use crate::config::{NodeConfig, SyncMode, ROWS_ASKED_MAX};
use crate::detector::{Detector, Health};
use crate::entropy::Entropy;
use crate::forwards::Forwards;
use crate::get::Get;
use crate::guard::Opinions;
use crate::handoff::{Delivery, Handoff};
use crate::membership::{Dials, Gossip, Hello, Member, Membership, Refusal, PROTOCOL};
use crate::message::{Control, Message, ReadOutcome, TaskId, WriteOutcome};
use crate::metrics::Metrics;
use crate::object::Object;
use crate::peer_clocks::PeerClocks;
use crate::put::Put;
use crate::replica::{load_meta_or, Replica};
use crate::ring::Ring;
use crate::scan::Listing;
use crate::store::{Durability, Store, StoreError};
use crate::tasks::Tasks;
use crate::transfer::{Incoming, Sweep};
use crate::types::{NodeId, Now, ObjectKey, Rng};
use crate::vivaldi::Coordinate;
use homes::{Homes, Outcome};
pub use opening::OpenError;

const MEMBERSHIP_ROW: &[u8] = b"membership";

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed; due by [`Node::next_wakeup`] at the latest. Give it after the turn's messages: an answer that is
    /// there already is not late.
    Tick,
    /// A client asks. `id` is unique among this node's requests in flight.
    Request { id: RequestId, request: Request },
    /// A peer says something.
    Message { from: NodeId, message: Message },
    /// A peer has dialled this node, and its `hello` passed [`Node::check`]: it says where the peer can be reached now.
    /// The link is not up before [`Input::LinkUp`].
    Greeted { hello: Hello },
    /// The link to a peer is open: messages to it will be sent. `hello` passed [`Node::check`].
    LinkUp { hello: Hello },
    /// The link to a peer is closed: messages sent may be lost, and none can be sent.
    LinkDown { peer: NodeId },
    /// Stop: refuse new requests, tell the peers.
    Stop,
}

/// Everything a node can want.
#[derive(Clone, Debug)]
pub enum Output {
    /// Answer a client.
    Reply { id: RequestId, result: Result<Reply, ClientError> },
    /// Send to a peer, in order, if the link is open; else drop.
    Send { to: NodeId, message: Message },
    /// Keep a link open to this peer at this address from now on, instead of any before.
    Connect { peer: NodeId, address: String },
    /// Dial this peer no more: it has left for good. A link that is open may stay, and the peer may open one.
    Disconnect { peer: NodeId },
    /// Close the link to this peer: it has turned out not to be one of this cluster. [`Input::LinkDown`] follows.
    Refuse { peer: NodeId, refusal: Refusal },
    /// Something an operator may want to read.
    Event(Event),
}

impl Output {
    /// True if this says that something is durable, so that it must not leave before [`Node::commit`].
    ///
    /// What tells peers to write does not: a coordinator's copies become durable side by side.
    pub fn waits_for_disk(&self) -> bool {
        match self {
            Output::Reply { result, .. } => claims_durability(result),
            Output::Send { message, .. } => match message {
                Message::Written { outcome, .. } => *outcome == WriteOutcome::Durable,
                Message::Control(Control::Forwarded { result, .. }) => claims_durability(result),
                Message::Control(Control::DeadAnswer { .. } | Control::Whole { .. }) => true,
                _ => false,
            },
            Output::Connect { .. } | Output::Disconnect { .. } | Output::Refuse { .. } | Output::Event(_) => {
                false
            }
        }
    }

    /// True if this only asks a peer what it holds: it may leave at any time.
    pub fn is_question(&self) -> bool {
        matches!(self, Output::Send { message: Message::Read { .. }, .. })
    }

    /// True if this has a peer change something: what is asked later must not arrive before it.
    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Output::Send { message: Message::Write { .. } | Message::Control(Control::Forward { .. }), .. }
        )
    }

    /// True if what this claims was this node's own disk to keep, given who asked for the `puts` that are not kept.
    /// What another node stored for us, or this one durably before, is still true.
    fn claims_own_disk(&self, puts: &[Origin]) -> bool {
        let is_own = |result: &Result<Reply, ClientError>, origin: Origin| match result {
            Ok(Reply::Updated(_) | Reply::Called(_)) => puts.contains(&origin),
            _ => true,
        };
        match (self, self.answers()) {
            (
                Output::Reply { result, .. }
                | Output::Send { message: Message::Control(Control::Forwarded { result, .. }), .. },
                Some(origin),
            ) => is_own(result, origin),
            _ => true,
        }
    }

    /// Whose request this answers.
    fn answers(&self) -> Option<Origin> {
        match self {
            Output::Reply { id, .. } => Some(Origin::Client(*id)),
            Output::Send { to, message: Message::Control(Control::Forwarded { task, .. }) } => {
                Some(Origin::Peer(*to, *task))
            }
            _ => None,
        }
    }

    /// Turns a claim that something is durable into `refusal`.
    fn deny(&mut self, refusal: &ClientError) {
        if !self.waits_for_disk() {
            return;
        }
        match self {
            Output::Reply { result, .. } => *result = Err(refusal.clone()),
            Output::Send { message: Message::Written { outcome, .. }, .. } => {
                *outcome = WriteOutcome::ReadOnly
            }
            Output::Send { message: Message::Control(Control::Forwarded { result, .. }), .. } => {
                *result = Err(refusal.clone())
            }
            Output::Send { message: Message::Control(Control::DeadAnswer { refused, .. }), .. } => {
                *refused = (0..ROWS_ASKED_MAX as u16).collect()
            }
            Output::Send { message: Message::Control(Control::Whole { hash, .. }), .. } => *hash = 0,
            _ => {}
        }
    }
}

fn claims_durability(result: &Result<Reply, ClientError>) -> bool {
    match result {
        Ok(Reply::Updated(updated)) => updated.applied,
        Ok(Reply::Called(called)) => called.is_kept,
        Ok(Reply::BucketSet | Reply::RingPlan(_)) => true,
        _ => false,
    }
}

/// What a log should tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    RingFormed {
        version: u64,
        nodes: usize,
        partitions: u16,
        /// Data are being moved to these nodes; else they have them.
        moving: bool,
    },
    /// Two operators changed the ring at once; this one was given up.
    RingLost {
        version: u64,
        nodes: usize,
    },
    MemberChanged {
        member: Member,
    },
    HealthChanged {
        peer: NodeId,
        from: Health,
        to: Health,
    },
    CorruptRow {
        detail: String,
    },
    ActorRenewed {
        why: &'static str,
    },
    StoreRefuses {
        detail: String,
    },
    StoreAccepts,
    ClockAhead {
        ahead_ms: i64,
    },
    ClockAgrees,
    /// From now on this node adds so many milliseconds to its clock, which is off from most of the others' by them.
    ClockCorrected {
        correction_ms: i64,
    },
    HandoffDone {
        owner: NodeId,
        delivered: u64,
    },
    /// A deleted or expired object was dropped, since every member held just it.
    DeadForgotten {
        key: ObjectKey,
        object: Object,
    },
}

/// Who waits for a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Client(RequestId),
    /// A node that forwarded its client's request, under its number for it.
    Peer(NodeId, TaskId),
    /// Anti-entropy, which bounds how many repairs run at once.
    Repair,
    /// A stream of rows to this node, by its number.
    Transfer(u64),
    /// An owner is given what this node holds of its keys.
    GiveAway,
    /// An active object of this node, by the number of what it waits for.
    Run(u64),
    /// Answered already, or never asked for.
    Nobody,
}

/// What to do with what a get finds.
#[derive(Clone, Debug)]
enum Purpose {
    Answer,
    /// Evaluate a mutation on it. Boxed, as the call is: tasks are moved about, and most are for neither.
    Update(Box<puts::Update>),
    /// Ask it, if it is active.
    Call(Box<homes::Asked>),
    /// Just mend the replicas.
    Repair,
}

#[derive(Clone, Debug)]
enum Work {
    Get {
        get: Get,
        purpose: Purpose,
    },
    Put {
        put: Put,
        /// To be given when enough replicas have it.
        reply: Option<Reply>,
        /// Of a home's write: what to do if it is refused.
        refusal: Option<Box<terms::Refusal>>,
    },
    Forward {
        to: NodeId,
        operation: Operation,
        /// Nodes that were asked before and answered that they cannot write.
        refused: Vec<NodeId>,
    },
    Scan(Listing),
    Deliver(Delivery),
    /// A page of a range that this node is to hold.
    Fetch {
        stream: u64,
        source: NodeId,
    },
    /// A page of a range that others own.
    Compare {
        owner: NodeId,
    },
    /// What the others think of a node that an operator gives up.
    Opinions(Opinions),
}

#[derive(Clone, Debug)]
struct Task {
    origin: Origin,
    started_us: u64,
    deadline_us: u64,
    work: Work,
}

/// What was said when a link opened.
#[derive(Clone, Copy, Debug)]
struct Greeting {
    /// See [`Hello::session`].
    session: u64,
    /// Whether the peer, and whether this node, said that it would not give up its founding.
    they_were_settled: bool,
    we_were_settled: bool,
}

/// A node of the cluster: a deterministic state machine over a [`Store`].
pub struct Node {
    config: NodeConfig,
    replica: Replica,
    membership: Membership,
    /// See [`Hello::session`].
    session: u64,
    /// This process started without a ring: until it stores something it may give up the one it has learnt.
    is_forming: bool,
    /// What the greetings said when the open links opened.
    greetings: BTreeMap<NodeId, Greeting>,
    ring: Option<Ring>,
    detector: Detector,
    /// Where this node is by now. Its member record says where it was when it last told everybody.
    coordinate: Coordinate,
    metrics: Metrics,
    rng: Rng,
    tasks: Tasks<Task>,
    handoff: Handoff,
    entropy: Entropy,
    collector: Collector,
    homes: Homes,
    incoming: Option<Incoming>,
    sweep: Sweep,
    /// When data may be moved again, in `mono_us`.
    resume_moving_us: u64,
    /// Everything for the ring of this stamp is here, as of the end of this turn.
    moved_in_turn: Option<(u64, u64)>,
    /// Who must be ready before the ring of this stamp takes its next step.
    awaited: Option<(u64, BTreeSet<NodeId>)>,
    asked_for_ring_us: u64,
    /// Turns that were committed.
    turns: u64,
    clocks: PeerClocks,
    clock_was_ahead: bool,
    /// What was last told about the clock's correction, in milliseconds.
    told_correction_ms: i64,
    read_only: Option<String>,
    stopping: bool,
    requests_in_flight: usize,
    /// Updates handed to another coordinator because the first was lost: an error does not mean that nothing happened.
    doubtful: BTreeSet<RequestId>,
    /// The same of requests that peers handed over.
    doubtful_of_peers: BTreeSet<(NodeId, TaskId)>,
    /// Those of them that were answered well in this turn: what is taken back becomes doubtful again.
    turn_doubtful: Vec<Origin>,
    forwards: Forwards,
    membership_is_dirty: bool,
    has_announced: bool,
    /// The time of the last step, corrected.
    last_now: Now,
    next_round_us: u64,
    /// When the member record may next get another coordinate.
    next_coordinate_us: u64,
    next_entropy_us: u64,
    last_durable_us: u64,
    /// Puts whose own copy was stored in this turn, and who asked for them.
    turn_puts: Vec<(TaskId, Origin)>,
    /// Puts for which a hint that was added here in this turn counts as a copy, and who asked for them.
    turn_hints: Vec<(TaskId, Origin)>,
    /// Their dots. A put may be over, and so its task gone, before the turn is.
    turn_dots: Vec<Dot>,
    /// Who asked for puts whose own copy is staged but not durable yet.
    unkept: Vec<Origin>,
    /// Grows with every get, shrinks with every hedge.
    hedge_budget: u32,
}

impl Node {
    /// Starts on what `store` holds: a new identity if it is empty, else the old one.
    ///
    /// `seed` feeds the node's generator (gossip targets, a new identity); it must differ between nodes and starts.
    pub fn open(config: NodeConfig, seed: u64, store: Box<dyn Store>, now: Now) -> Result<Node, OpenError> {
        let mut rng = Rng::new(seed);
        let replica_rng = Rng::new(rng.next_u64());
        let mut replica = Replica::open(
            store,
            &config.cluster,
            replica_rng,
            config.clock_skew_ms_max,
            config.known_bytes,
            config.boot,
        )
        .map_err(|error| OpenError::from_meta(error, "identity"))?;
        if replica.identity().cluster != config.cluster {
            return Err(OpenError::ForeignCluster { found: replica.identity().cluster.clone() });
        }
        #[cfg(feature = "sabotage")]
        {
            use crate::config::Sabotage;
            let forget_lease = config.sabotage == Sabotage::ForgetLease;
            replica.sabotage(forget_lease, forget_lease || config.sabotage == Sabotage::KeepActor);
        }
        let me = replica.identity().node;
        let before = |record: &[u8]| Membership::decode_before(record, &config.cluster);
        let found: Option<Membership> = load_meta_or(replica.store_mut(), MEMBERSHIP_ROW, before)
            .map_err(|error| OpenError::from_meta(error, "membership"))?;
        let mut membership = found.filter(|membership| membership.me == me).unwrap_or_else(|| {
            let own = Member::new(me, String::new(), config.addresses.clone());
            Membership::new(own, BucketTable::new(config.bucket_defaults.clone()))
        });
        membership.buckets.set_defaults(config.bucket_defaults.clone());
        membership.update_own(now.wall_ms, |own| {
            own.protocol = PROTOCOL;
            own.name = config.name.clone();
            own.addresses = config.addresses.clone();
            own.stopped = false;
            own.weight = config.weight;
            own.zone.clone_from(&config.zone);
        });
        let handoff = Handoff::new(replica.count_hints());
        let mut node = Node {
            session: Rng::new(seed.rotate_left(32)).next_u64(),
            is_forming: membership.ring.is_none(),
            greetings: BTreeMap::new(),
            ring: membership.ring.clone().map(Ring::new),
            detector: Detector::new(config.suspect_ms),
            coordinate: membership.own().coordinate,
            metrics: Metrics::default(),
            tasks: Tasks::new(rng.next_u64() as u32),
            handoff,
            entropy: Entropy::default(),
            collector: Collector::new(config.collect_after_ms, config.tuning.collected_rows),
            homes: Homes::new(Rng::new(!seed).next_u64(), now.mono_us),
            incoming: None,
            sweep: Sweep::default(),
            resume_moving_us: 0,
            moved_in_turn: None,
            awaited: None,
            asked_for_ring_us: 0,
            turns: 0,
            clocks: PeerClocks::new(config.clock_skew_ms_max, membership.members.len() - 1, now),
            clock_was_ahead: false,
            told_correction_ms: 0,
            read_only: None,
            stopping: false,
            requests_in_flight: 0,
            doubtful: BTreeSet::new(),
            doubtful_of_peers: BTreeSet::new(),
            turn_doubtful: Vec::new(),
            forwards: Forwards::default(),
            membership_is_dirty: true,
            has_announced: false,
            last_now: now,
            next_round_us: now.mono_us,
            next_coordinate_us: now.mono_us,
            next_entropy_us: now.mono_us + config.entropy_ms * 1000,
            last_durable_us: now.mono_us,
            turn_puts: Vec::new(),
            turn_hints: Vec::new(),
            turn_dots: Vec::new(),
            unkept: Vec::new(),
            hedge_budget: gets::HEDGE_BUDGET_MAX,
            rng,
            replica,
            membership,
            config,
        };
        node.metrics.hints_pending = node.handoff.pending();
        #[cfg(feature = "sabotage")]
        if node.config.sabotage == crate::config::Sabotage::AccuseWhenLate {
            node.detector.accuse_when_late();
        }
        if let Some(ring) = &node.membership.ring {
            let usual = ring.usual;
            node.membership.buckets.set_usual_replication(usual);
        }
        node.size_tree();
        node.begin_moving();
        Ok(node)
    }

    /// Handles one input; what follows from it is appended to `out`, to be released after [`Node::stage`].
    ///
    /// `now` is as the clocks show it; all that follows goes by [`Node::time`].
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        let now = self.watch_clock(now, out);
        self.collector.watch(now);
        match input {
            Input::Tick => self.run_due(now, out),
            Input::Request { id, request } => self.request(now, id, request, out),
            Input::Message { from, message } => self.message(now, from, message, out),
            Input::Greeted { hello } => self.greeted(now, hello, out),
            Input::LinkUp { hello } => self.link_up(now, hello, out),
            Input::LinkDown { peer } => self.link_down(now, peer, out),
            Input::Stop => self.stop(now, out),
        }
        self.go_on(now, out);
    }

    /// Hands what the steps of this turn stored to the store, as one batch. Call once per turn, before anything in
    /// `out` is released. Afterwards outputs that do not wait for the disk ([`Output::waits_for_disk`]) may be.
    ///
    /// If the disk refuses, outputs that would claim otherwise are replaced by errors.
    pub fn stage(&mut self, out: &mut Vec<Output>) {
        if std::mem::take(&mut self.membership_is_dirty) {
            self.replica.save_meta(MEMBERSHIP_ROW, &self.membership);
        }
        match self.replica.sync(Durability::Buffered) {
            Ok(()) => {
                if self.read_only.take().is_some() {
                    out.push(Output::Event(Event::StoreAccepts));
                }
            }
            Err(error) => self.undo_turn(error, out),
        }
        self.clocks.end_turn();
        self.unkept
            .extend(self.turn_puts.drain(..).chain(self.turn_hints.drain(..)).map(|(_, origin)| origin));
        self.turn_dots.clear();
        self.homes.staged();
        self.turn_doubtful.clear();
        self.report_store(out);
    }

    /// Makes durable what was staged, if the mode of syncing asks for it now. Afterwards all of `out` may be released.
    /// `now` is read after the turn's steps: that is how the node knows what they took.
    ///
    /// If the disk fails, what waits for it in `out` becomes an error: those writes may or may not survive.
    pub fn commit(&mut self, now: Now, out: &mut Vec<Output>) {
        self.homes.admission.end_turn(now.mono_us);
        let is_due = match self.config.sync {
            SyncMode::Interval { ms } => {
                self.stopping
                    || self.replica.needs_durable()
                    || now.mono_us >= self.last_durable_us + ms * 1000
            }
            SyncMode::Batch => true,
        };
        #[cfg(feature = "sabotage")]
        let is_due = match self.config.sabotage {
            crate::config::Sabotage::AckBeforeDurable => self.rng.chance(1, 10),
            _ => is_due,
        };
        if !is_due {
            // In this mode an answer does not wait for the disk.
            self.unkept.clear();
            return;
        }
        self.last_durable_us = now.mono_us;
        self.turns += 1;
        match self.replica.sync(Durability::Durable) {
            Ok(()) => self.unkept.clear(),
            Err(error) => self.deny_unkept(error, out),
        }
    }

    /// The last call after [`Input::Stop`]: keeps what spares the next start work. Nothing may be stepped after it.
    ///
    /// Errors: the disk refuses; the next start does the work.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.replica.close()
    }

    /// Takes back what `out` claims to be durable here, because the disk failed to keep what was staged.
    fn deny_unkept(&mut self, error: StoreError, out: &mut Vec<Output>) {
        self.moved_in_turn = None;
        self.replica.must_renew("the disk failed to keep writes");
        for output in out.iter_mut().filter(|output| output.claims_own_disk(&self.unkept)) {
            // The store has it and the peers may have heard of it: nobody can say that nothing was changed.
            output.deny(&ClientError::OutcomeUnknown);
        }
        self.refuse_writes(error.to_string(), out);
    }

    /// When a [`Input::Tick`] is due at the latest, in `mono_us`. Ask again after every turn.
    pub fn next_wakeup(&self) -> u64 {
        let mut at = self.next_round_us.min(self.next_entropy_us);
        at = at.min(self.next_move_us().unwrap_or(u64::MAX)).min(self.next_home_us());
        for deadline in
            [self.tasks.next_deadline_us(), self.detector.next_deadline_us()].into_iter().flatten()
        {
            at = at.min(deadline);
        }
        match self.config.sync {
            SyncMode::Interval { ms } => at.min(self.last_durable_us + ms * 1000),
            SyncMode::Batch => at,
        }
    }

    /// This node's name among members.
    pub fn id(&self) -> NodeId {
        self.membership.me
    }

    /// What the node was told at its start.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// How this node introduces itself on a new link.
    pub fn hello(&self, now: Now) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster: self.config.cluster.clone(),
            founding: self.membership.founding(),
            session: self.session,
            is_settled: self.is_settled(),
            member: self.membership.own().clone(),
            wall_ms: now.wall_ms,
        }
    }

    /// True if this node keeps its founding whatever comes: it has stored something since it learnt its first ring, or
    /// was restarted with one, or an operator has changed the ring.
    pub fn is_settled(&self) -> bool {
        let is_first = self.membership.ring.as_ref().is_none_or(|ring| ring.version == 1);
        !self.is_forming || !is_first || self.replica.has_saved()
    }

    /// Whether a link with this peer is acceptable.
    ///
    /// Errors: another protocol, another cluster, a node that did not ask to join, a second process with one id.
    pub fn check(&self, hello: &Hello, dials: Dials) -> Result<(), Refusal> {
        if hello.protocol != PROTOCOL {
            return Err(Refusal::Protocol { theirs: hello.protocol });
        }
        if hello.cluster != self.config.cluster {
            let (theirs, ours) = (hello.cluster.clone(), self.config.cluster.clone());
            return Err(Refusal::Cluster { theirs, ours });
        }
        let peer = hello.member.id;
        if peer == self.id() {
            return Err(match hello.session == self.session {
                true => Refusal::Itself,
                false => Refusal::Copy { id: peer },
            });
        }
        self.check_founding(hello, dials)?;
        let is_other_process =
            self.greetings.get(&peer).is_some_and(|greeting| greeting.session != hello.session);
        // A node that came back is let in as soon as its former life has left a question unanswered.
        match is_other_process && self.health(peer) == Health::Up {
            true => Err(Refusal::Copy { id: peer }),
            false => Ok(()),
        }
    }

    /// A newcomer has no ring yet, or one that it gives up for the other's. It must be known, or have asked.
    fn check_founding(&self, hello: &Hello, dials: Dials) -> Result<(), Refusal> {
        #[cfg(feature = "sabotage")]
        let dials = match self.config.sabotage {
            crate::config::Sabotage::IgnoreFounding => return Ok(()),
            crate::config::Sabotage::TakeInUnasked => Dials { we: true, they: true },
            _ => dials,
        };
        let is_known = || self.membership.members.contains_key(&hello.member.id);
        let may_come = |newcomer_dials: bool| newcomer_dials || is_known();
        match (self.membership.founding(), hello.founding) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let is_acceptable = match (self.is_settled(), hello.is_settled) {
                    (true, true) => false,
                    (true, false) => may_come(dials.they),
                    (false, true) => may_come(dials.we),
                    (false, false) => may_come(if ours < theirs { dials.we } else { dials.they }),
                };
                if is_acceptable {
                    Ok(())
                } else {
                    Err(Refusal::Founding { theirs, ours })
                }
            }
            (Some(_), None) if !may_come(dials.they) => Err(Refusal::Unasked),
            (None, Some(_)) if !may_come(dials.we) => Err(Refusal::Unasked),
            _ => Ok(()),
        }
    }

    /// Members, buckets and the ring's state.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The properties of all buckets.
    pub fn buckets(&self) -> &BucketTable {
        &self.membership.buckets
    }

    /// The computed ring; `None` until the cluster is formed.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// This node's opinion of `peer`, itself included.
    pub fn health(&self, peer: NodeId) -> Health {
        if peer == self.id() {
            Health::Up
        } else {
            self.detector.health(peer)
        }
    }

    /// Round trip to `peer` as it was measured last, in microseconds, 0 if unknown.
    pub fn rtt_us(&self, peer: NodeId) -> u64 {
        self.detector.rtt_us(peer)
    }

    /// The time this node goes by when its clocks read `now`: that of most nodes, if its own clock is far from it.
    pub fn time(&self, now: Now) -> Now {
        #[cfg(feature = "sabotage")]
        if self.config.sabotage == crate::config::Sabotage::TrustOwnClock {
            return now;
        }
        self.clocks.time(now)
    }

    /// What [`Node::time`] adds to the wall clock, in milliseconds.
    pub fn clock_correction_ms(&self) -> i64 {
        self.clocks.coming_correction_ms()
    }

    /// Where this node takes itself to be.
    pub fn coordinate(&self) -> Coordinate {
        self.coordinate
    }

    /// How far `peer` is, as a round trip in microseconds: measured if that was lately, else estimated from
    /// coordinates; `None` if neither is known.
    pub fn distance_us(&self, peer: NodeId) -> Option<u64> {
        let measured = self.detector.fresh_rtt_us(peer, self.last_now.mono_us);
        measured.or_else(|| {
            let theirs = self.membership.members.get(&peer)?.coordinate;
            let is_useful = self.coordinate.is_useful() && theirs.is_useful();
            is_useful.then(|| self.coordinate.distance_us(&theirs))
        })
    }

    /// What this node counted since it started.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Why the disk refuses writes, if it does.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// Client requests not yet answered.
    pub fn requests_in_flight(&self) -> usize {
        self.requests_in_flight
    }

    /// Bytes the store takes.
    pub fn store_bytes(&self) -> u64 {
        self.replica.store().size_bytes()
    }

    /// The sum of the lengths of all rows this node ever loaded: what a step adds is what it found to answer with.
    pub fn loaded_bytes(&self) -> u64 {
        self.replica.loaded_bytes()
    }

    /// About how many keys of `bucket` live whose first owner is this node, and how many of them expire: over all
    /// nodes, the keys of the bucket. `None` if there are none, or it is not known.
    ///
    /// Sums up what is counted with each write: 65,536 numbers, no rows.
    pub fn count_first_owned(&self, bucket: &[u8], wall_ms: u64) -> Option<(u64, u64)> {
        let ring = self.ring.as_ref()?;
        let mut part: Option<(crate::types::Position, bool)> = None;
        self.replica.tree().count_live(bucket, wall_ms, |leaf| {
            let (first, _) = crate::tree::positions(&(leaf..=leaf));
            // Leaves come in order, so the ring is asked once for each partition.
            match part {
                Some((end, is_own)) if first <= end => is_own,
                _ => {
                    let partition = ring.partition_of(first);
                    let is_own = ring.owner(partition) == self.membership.me;
                    part = Some((ring.end(partition), is_own));
                    is_own
                }
            }
        })
    }

    /// The engine itself, for the simulator's checkers.
    pub fn store_mut(&mut self) -> &mut dyn Store {
        self.replica.store_mut()
    }

    /// True if a plain store of `key` asked here is coordinated here, so that requests for one key stay in order.
    pub fn coordinates(&self, key: &ObjectKey) -> bool {
        let Some(ring) = &self.ring else { return true };
        let n = ring.replication(key.bucket()).n as usize;
        ring.preference_at(key.position()).iter().take(n).any(|node| *node == self.id())
    }

    fn send(&mut self, now: Now, to: NodeId, message: Message, out: &mut Vec<Output>) {
        let wants_answer = match &message {
            Message::Write { task, .. } => *task != 0,
            Message::Claim { .. } => true,
            Message::Read { .. } => true,
            Message::Control(Control::ListRange { .. }) => true,
            Message::Control(Control::Gossip(Gossip::Ping { .. })) => true,
            _ => false,
        };
        if wants_answer {
            self.detector.sent(to, now.mono_us);
        }
        out.push(Output::Send { to, message });
    }

    fn finish(&mut self, origin: Origin, result: Result<Reply, ClientError>, out: &mut Vec<Output>) {
        match origin {
            Origin::Client(id) => {
                self.requests_in_flight -= 1;
                let result = match result {
                    // An earlier coordinator may have done it after all.
                    Err(_) if self.doubtful.remove(&id) => Err(ClientError::OutcomeUnknown),
                    result => {
                        if self.doubtful.remove(&id) {
                            self.turn_doubtful.push(origin);
                        }
                        result
                    }
                };
                out.push(Output::Reply { id, result });
            }
            Origin::Peer(to, task) => {
                let was_doubtful = self.doubtful_of_peers.remove(&(to, task));
                let result = match result {
                    Err(_) if was_doubtful => Err(ClientError::OutcomeUnknown),
                    result => result,
                };
                if was_doubtful {
                    self.turn_doubtful.push(origin);
                }
                let message = Message::Control(Control::Forwarded { task, result });
                out.push(Output::Send { to, message });
            }
            Origin::Run(number) => self.homes.outcomes.push_back((number, Outcome::Reply(result))),
            Origin::Repair | Origin::Transfer(_) | Origin::GiveAway | Origin::Nobody => {}
        }
    }

    /// Takes back what this turn's outputs claim, because the disk refused and the store is as it was before the turn.
    fn undo_turn(&mut self, error: StoreError, out: &mut Vec<Output>) {
        let detail = error.to_string();
        self.membership_is_dirty = true;
        self.metrics.store_refusals += 1;
        self.handoff = Handoff::new(self.replica.count_hints());
        self.drop_deliveries();
        for (job, has_begun) in self.homes.undone() {
            // A handler may have stored the object before it waited.
            let error = match has_begun {
                true => ClientError::OutcomeUnknown,
                false => ClientError::ReadOnly { detail: detail.clone() },
            };
            self.finish(job.origin, Err(error), out);
        }
        // Rows that were fetched in this turn are gone again.
        self.moved_in_turn = None;
        self.begin_moving();
        let refusal = ClientError::ReadOnly { detail: detail.clone() };
        let undone = std::mem::take(&mut self.turn_puts);
        out.retain(|output| {
            !matches!(output, Output::Send {
                message: Message::Write { task, .. } | Message::Claim { task, .. }, ..
            } if undone.iter().any(|(id, _)| id == task))
        });
        let origins: Vec<Origin> = undone.iter().map(|(_, origin)| *origin).collect();
        for output in out.iter_mut().filter(|output| output.claims_own_disk(&origins)) {
            let is_doubtful = output.answers().is_some_and(|origin| self.turn_doubtful.contains(&origin));
            output.deny(if is_doubtful { &ClientError::OutcomeUnknown } else { &refusal });
        }
        self.deny_hints(out);
        for (id, _) in undone {
            let Some(task) = self.tasks.remove(id) else { continue };
            if let Work::Put { put, refusal: Some(_), .. } = &task.work {
                // Others may wait for it.
                self.replace_resident(&put.key.clone(), out);
            }
            self.finish(task.origin, Err(refusal.clone()), out);
        }
        let dots = std::mem::take(&mut self.turn_dots);
        if !dots.is_empty() {
            self.unsay(&dots, &refusal, out);
        }
        self.refuse_writes(detail, out);
    }

    /// Takes back whatever else this turn showed of the writes `dots`, which never happened: reads that met them in the
    /// store.
    fn unsay(&mut self, dots: &[Dot], refusal: &ClientError, out: &mut Vec<Output>) {
        let shows = |object: &Object| dots.iter().any(|dot| object.context().covers(*dot));
        let bytes_show = |bytes: &Bytes| Object::decode(bytes).is_ok_and(|object| shows(&object));
        let result_shows = |result: &Result<Reply, ClientError>| match result {
            Ok(Reply::Object(object)) => shows(object),
            Ok(Reply::Updated(Updated { before, after, .. })) => before.iter().chain(after).any(shows),
            _ => false,
        };
        out.retain_mut(|output| match output {
            Output::Send {
                message: Message::ReadResult { outcome: ReadOutcome::Object(bytes), .. }, ..
            } => !bytes_show(bytes),
            Output::Send { message: Message::Write { object, .. }, .. } => !bytes_show(object),
            Output::Reply { result, .. }
            | Output::Send { message: Message::Control(Control::Forwarded { result, .. }), .. } => {
                if result_shows(result) {
                    *result = Err(refusal.clone());
                }
                true
            }
            _ => true,
        });
        for id in self.tasks.ids() {
            let is_tainted = match self.tasks.get_mut(id) {
                Some(Task { work: Work::Get { get, .. }, .. }) => shows(get.merged()),
                _ => false,
            };
            if !is_tainted {
                continue;
            }
            let Some(task) = self.tasks.remove(id) else { continue };
            match task.origin {
                Origin::Repair => self.entropy.end_repair(),
                Origin::Transfer(stream) => self.transfer_repaired(stream, false),
                origin => self.finish(origin, Err(refusal.clone()), out),
            }
        }
    }

    fn refuse_writes(&mut self, detail: String, out: &mut Vec<Output>) {
        if self.read_only.is_none() {
            out.push(Output::Event(Event::StoreRefuses { detail: detail.clone() }));
        }
        self.read_only = Some(detail);
        self.collector.abandon();
    }

    fn report_store(&mut self, out: &mut Vec<Output>) {
        for detail in self.replica.take_corruptions() {
            self.metrics.corrupt_rows += 1;
            out.push(Output::Event(Event::CorruptRow { detail }));
        }
        for why in self.replica.take_renewals() {
            self.metrics.actor_renewals += 1;
            out.push(Output::Event(Event::ActorRenewed { why }));
        }
        self.metrics.hints_pending = self.handoff.pending();
        self.metrics.active_loaded = self.homes.len() as u64;
        self.metrics.active_timers = self.replica.timers().len() as u64;
        self.metrics.active_placed = self.replica.placed().len() as u64;
    }
}
