//! The event loop: one thread that owns the node, its store, and all sockets but HTTP's.
//!
//! A turn gathers what every ready socket brought, steps the node through all of it, commits once, and only then
//! writes: one write per client and per peer. That order is the group commit, and the reason why nothing is said before
//! it is durable. `endpoint` has the sockets, `connection` the order of a client's commands, `links` whom to dial when.

mod clients;
mod closing;
mod endpoint;
mod inspector;
mod links;
mod log;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use oort_core::client::{ClientError, Reply};
use oort_core::membership::{Dials, Hello, Member, Refusal};
use oort_core::node::{Event, Input, Node, Output};
use oort_core::ring::Founding;
use oort_core::tasks::Tasks;
use oort_core::types::{NodeId, Now, Rng};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::commands::knobs::Knobs;
use crate::commands::stats::{Clerk, Stats};
use crate::connection::Listings;
use crate::errno::{cause, is_exhaustion};
use crate::handle::{channel, Command, Handle, Inbox, Inside};
use crate::latency::{Began, Kind as Asked, Latencies};
use crate::resp::request::Limits;
use crate::status;
use crate::storage::FjallStore;
use crate::wire;
use closing::Closing;
use endpoint::{Endpoint, Flow, Inbound, Kind, Outbound};
use links::Links;
use log::log;

const WAKER: Token = Token(0);
const REDIS: Token = Token(1);
const PEERS: Token = Token(2);
const FIRST_ENDPOINT: usize = 3;

/// The most new connections accepted in one turn.
const ACCEPTS_MAX: usize = 64;
/// How long accepting pauses when no descriptor is left, in microseconds, unless a connection is closed before.
const ACCEPT_PAUSE_US: u64 = 100_000;
/// The most rounds of polling in one turn. Fewer: smaller batches; more: the first request of a turn waits longer.
const GATHER_ROUNDS_MAX: usize = 8;
/// Questions to peers leave when a turn has brought so many more outputs. Fewer: more system calls; more: peers idle.
const QUESTIONS_MIN: usize = 64;
/// A turn with more outputs than this ends. Fewer: more syncs; more: peers idle while one works through a long turn.
const TURN_OUTPUTS_MAX: usize = 384;
/// How long a stopping node waits for requests in flight and unwritten replies.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a starting node looks for its peers before it serves clients without them, in microseconds.
const SETTLE_US: u64 = 1_000_000;
/// A seed of another cluster that is met within this time of the start ends the process. Later, an address may have
/// changed hands while this node ran, which is no reason to stop serving.
const JOIN_WINDOW_US: u64 = 10_000_000;
/// How long such a node waits for a seed of its own cluster before it ends.
const JOIN_PATIENCE_US: u64 = 2_000_000;
/// A peer that leaves more than this unread, in bytes, is cut off; it comes back and gets hints.
const OUTBOX_BYTES_MAX: usize = 256 << 20;

/// What the loop needs besides the node.
pub struct ShardOptions {
    /// Most Redis connections.
    pub connections_max: usize,
    /// Most memory that all of them may take, in bytes.
    pub client_bytes_max: usize,
    /// Peer addresses to dial until they answer.
    pub seeds: Vec<String>,
    pub limits: Limits,
    /// The store's directory, if its log was found damaged: to be acknowledged once the node has a new actor.
    pub lost_writes_in: Option<PathBuf>,
}

/// Why the loop ended though nobody asked it to.
#[derive(Debug)]
pub enum LoopError {
    /// The system refuses to tell which sockets are ready.
    Poll(io::Error),
    /// The node was told to join another cluster than its own.
    OtherCluster(OtherCluster),
}

/// A seed of another cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherCluster {
    pub seed: String,
    pub theirs: Founding,
    pub ours: Founding,
    /// Nodes in this node's own ring.
    pub nodes: usize,
}

/// Who waits for a reply of the node.
enum Owner {
    Client { slot: usize, session: u64, sequence: u64, index: usize, kind: Asked, began: Began },
    Handle { reply: oneshot::Sender<Result<Reply, ClientError>>, kind: Asked, at_us: u64 },
}

/// The loop and all it owns.
pub struct Shard {
    poll: Poll,
    node: Node,
    inbox: Inbox,
    clocks: Clocks,
    options: ShardOptions,
    redis: Option<TcpListener>,
    peers: Option<TcpListener>,
    endpoints: Vec<Option<Box<Endpoint>>>,
    free: Vec<usize>,
    /// Slots closed in this turn: reused only in the next, when no event of this turn can mean them.
    closed: Vec<usize>,
    /// Endpoints with bytes to write.
    dirty: Vec<usize>,
    /// Clients that can go on reading commands they have already sent.
    unread: Vec<usize>,
    /// Clients that are to be read from again.
    resumed: Vec<usize>,
    /// Clients that are closed at a time, the first first.
    closing: BTreeSet<Closing>,
    listings: Listings,
    /// Memory that clients take, in bytes.
    client_bytes: usize,
    links: Links,
    owners: Tasks<Owner>,
    out: Vec<Output>,
    /// As many of `out` are known to be no questions that may leave at once.
    looked_through: usize,
    /// Outputs of the turn that wait for the disk.
    waiting: Vec<Output>,
    scratch: Vec<u8>,
    numbers: Numbers,
    latencies: Latencies,
    /// When the answers went out that are being released, by the monotonic clock in microseconds.
    answering_us: u64,
    stop_deadline: Option<Instant>,
    /// A seed of another cluster was met, and when this node ends because of it, in microseconds.
    other_cluster: Option<(u64, OtherCluster)>,
    /// A seed of the own cluster was met.
    has_own_seed: bool,
    /// The log says that this node's address was another's.
    has_told_former: bool,
    /// Clients are served. A restarted node first looks for its peers, or it would refuse what they could answer.
    is_admitting: bool,
    /// Requests of other threads that wait for that.
    early: Vec<Command>,
    /// Settings that clients may change, to no effect.
    knobs: Knobs,
    stats: Stats,
    /// When connections are accepted that could not be for want of descriptors; `u64::MAX`: none wait.
    accept_at_us: u64,
    /// The log says that connections cannot be accepted, of peers and of clients.
    accept_failing: [bool; 2],
}

/// Counters for `INFO`.
struct Numbers {
    clients: usize,
    accepted: u64,
    evicted: u64,
    /// Connections refused because there were too many.
    rejected: u64,
    /// Times when a connection could not be accepted for want of descriptors.
    accept_failures: u64,
    commands: u64,
    next_session: u64,
    random: RefCell<Rng>,
}

/// Reads the clocks for the core.
pub struct Clocks {
    start: Instant,
    pub started_wall_ms: u64,
    now: Cell<Now>,
}

impl Clocks {
    /// Starts the monotonic clock.
    pub fn start() -> Clocks {
        let clocks = Clocks { start: Instant::now(), started_wall_ms: wall_ms(), now: Cell::default() };
        clocks.read();
        clocks
    }

    /// Reads both clocks anew.
    pub fn read(&self) -> Now {
        // From 1, because 0 microseconds would be the past of nothing.
        let now = Now { mono_us: self.mono_us(), wall_ms: wall_ms() };
        self.now.set(now);
        now
    }

    /// Reads the monotonic clock alone, in microseconds.
    fn mono_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + 1
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Shard {
    /// Makes the loop around an opened node and bound listeners. The handle lets other threads in.
    pub fn new(
        node: Node,
        clocks: Clocks,
        redis: std::net::TcpListener,
        peers: std::net::TcpListener,
        options: ShardOptions,
        random_seed: u64,
    ) -> io::Result<(Shard, Handle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (handle, inbox) = channel(waker);
        redis.set_nonblocking(true)?;
        peers.set_nonblocking(true)?;
        let mut redis = TcpListener::from_std(redis);
        let mut peers = TcpListener::from_std(peers);
        poll.registry().register(&mut redis, REDIS, Interest::READABLE)?;
        poll.registry().register(&mut peers, PEERS, Interest::READABLE)?;
        let links = Links::new(options.seeds.clone());
        let shard = Shard {
            poll,
            node,
            inbox,
            clocks,
            options,
            redis: Some(redis),
            peers: Some(peers),
            endpoints: Vec::new(),
            free: Vec::new(),
            closed: Vec::new(),
            dirty: Vec::new(),
            unread: Vec::new(),
            resumed: Vec::new(),
            closing: BTreeSet::new(),
            listings: Listings::default(),
            client_bytes: 0,
            links,
            owners: Tasks::new(1),
            out: Vec::new(),
            looked_through: 0,
            waiting: Vec::new(),
            scratch: vec![0; 256 << 10],
            numbers: Numbers {
                clients: 0,
                accepted: 0,
                evicted: 0,
                rejected: 0,
                accept_failures: 0,
                commands: 0,
                next_session: 1,
                random: RefCell::new(Rng::new(random_seed)),
            },
            latencies: Latencies::default(),
            answering_us: 0,
            stop_deadline: None,
            other_cluster: None,
            has_own_seed: false,
            has_told_former: false,
            is_admitting: false,
            early: Vec::new(),
            knobs: Knobs::default(),
            stats: Stats::default(),
            accept_at_us: u64::MAX,
            accept_failing: [false; 2],
        };
        Ok((shard, handle))
    }

    /// Runs until the node was asked to stop and has finished. Errors: see [`LoopError`].
    pub fn run(mut self) -> Result<(), LoopError> {
        let mut events = Events::with_capacity(1024);
        self.step(Input::Tick);
        self.end_turn();
        loop {
            match self.poll.poll(&mut events, Some(self.pause())) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LoopError::Poll(error)),
            }
            self.clocks.read();
            self.free.append(&mut self.closed);
            for slot in std::mem::take(&mut self.unread) {
                self.with_client(slot, |shard, client| shard.run_client(slot, client));
            }
            self.gather(&mut events).map_err(LoopError::Poll)?;
            self.admit();
            self.drain_inbox();
            self.dial();
            self.stats.sample(self.clocks.now.get().mono_us);
            self.close_overdue();
            self.accept_again();
            self.leave_other_cluster();
            if self.clocks.now.get().mono_us >= self.node.next_wakeup() {
                self.step(Input::Tick);
            }
            self.end_turn();
            if self.is_finished() {
                if let Err(error) = self.node.close() {
                    warn!(%error, "the next start has to visit all rows once");
                }
                return match self.other_cluster.take() {
                    Some((_, other)) if !self.has_own_seed => Err(LoopError::OtherCluster(other)),
                    _ => Ok(()),
                };
            }
        }
    }

    /// Handles what is ready, and what becomes ready meanwhile: the fuller a turn, the less its one sync costs each
    /// write.
    fn gather(&mut self, events: &mut Events) -> io::Result<()> {
        for round in 1.. {
            for event in events.iter() {
                self.event(event);
                self.send_questions();
                if self.out.len() > TURN_OUTPUTS_MAX {
                    self.end_turn();
                    self.clocks.read();
                }
            }
            // Readiness is told only once, so nothing may be polled that is not handled.
            if round == GATHER_ROUNDS_MAX || self.out.is_empty() {
                return Ok(());
            }
            match self.poll.poll(events, Some(Duration::ZERO)) {
                Ok(()) if events.is_empty() => return Ok(()),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what this turn asks of peers before the turn is over, so that they work while this node goes on with a
    /// long turn; otherwise they wait for it and then it waits for them. Not after a write: a question for the same key
    /// would overtake it.
    fn send_questions(&mut self) {
        if self.out.len() < self.looked_through.saturating_add(QUESTIONS_MIN) {
            return;
        }
        let mut has_change = false;
        for output in self.out.split_off(self.looked_through) {
            has_change |= output.is_change();
            match !has_change && output.is_question() {
                true => self.release(output),
                false => self.out.push(output),
            }
        }
        self.looked_through = if has_change { usize::MAX } else { self.out.len() };
        self.flush_dirty();
    }

    /// How long the loop may sleep.
    fn pause(&self) -> Duration {
        // Outputs are left where replies led to a command's next round: nothing else might wake the loop for them.
        if !self.unread.is_empty() || !self.out.is_empty() {
            return Duration::ZERO;
        }
        let mut wakeup = self.node.next_wakeup().min(self.links.next_dial_us()).min(self.next_close_us());
        wakeup = wakeup.min(self.accept_at_us);
        if !self.is_admitting {
            wakeup = wakeup.min(SETTLE_US);
        }
        if let Some((at_us, _)) = self.other_cluster.as_ref().filter(|_| self.stop_deadline.is_none()) {
            // Past it, there is something to do only once.
            wakeup = if self.has_own_seed { wakeup } else { wakeup.min(*at_us) };
        }
        let now = self.clocks.read().mono_us;
        // Rounded up to the poll's milliseconds by the system: never early.
        let pause = Duration::from_micros(wakeup.saturating_sub(now));
        if self.stop_deadline.is_some() {
            pause.min(Duration::from_millis(20))
        } else {
            pause
        }
    }

    fn step(&mut self, input: Input) {
        self.node.step(self.clocks.now.get(), input, &mut self.out);
    }

    /// Commits, releases what the turn produced, and writes it.
    fn end_turn(&mut self) {
        self.looked_through = 0;
        self.node.stage(&mut self.out);
        let mut out = std::mem::take(&mut self.out);
        let mut waiting = std::mem::take(&mut self.waiting);
        if !out.is_empty() {
            self.answering_us = self.clocks.mono_us();
        }
        // The peers write their copies while this node's disk writes its own.
        for output in out.drain(..) {
            if output.waits_for_disk() {
                waiting.push(output);
            } else {
                self.release(output);
            }
        }
        self.flush_dirty();
        self.commit(&mut waiting);
        self.inbox.tell_correction(self.node.clock_correction_ms());
        for output in waiting.drain(..) {
            self.release(output);
        }
        self.waiting = waiting;
        if self.options.lost_writes_in.is_some() && self.node.metrics().actor_renewals > 0 {
            self.acknowledge_loss();
        }
        // What the replies led to (a next round of a command) waits in `self.out` for the next turn's commit.
        if self.out.is_empty() {
            self.out = out;
        }
        self.flush_dirty();
        for slot in std::mem::take(&mut self.resumed) {
            self.rearm(slot);
        }
        self.evict();
        self.resume_listings();
    }

    /// Makes the turn durable. What goes out afterwards is answered now.
    fn commit(&mut self, waiting: &mut Vec<Output>) {
        let begun_us = (!waiting.is_empty()).then(|| self.clocks.mono_us());
        self.node.commit(self.clocks.read(), waiting);
        if let Some(begun_us) = begun_us {
            self.answering_us = self.clocks.mono_us();
            self.latencies.sync.note(self.answering_us - begun_us);
        }
    }

    fn flush_dirty(&mut self) {
        for slot in std::mem::take(&mut self.dirty) {
            self.flush(slot);
        }
    }

    /// The node writes under a new actor, so what the store had lost can mislead nobody any more.
    fn acknowledge_loss(&mut self) {
        let Some(directory) = self.options.lost_writes_in.take() else { return };
        if let Err(error) = FjallStore::acknowledge_lost_writes(&directory) {
            warn!(%error, "cannot note that lost writes are dealt with: the next start takes one more actor");
        }
    }

    fn release(&mut self, output: Output) {
        match output {
            Output::Reply { id, result } => self.reply(id, result),
            Output::Send { to, message } => {
                let Some(slot) = self.links.open_slot(to) else { return };
                let Some(Some(endpoint)) = self.endpoints.get_mut(slot) else { return };
                if endpoint.output.is_empty() {
                    self.dirty.push(slot);
                }
                if !wire::append_message(&mut endpoint.output, &message) {
                    warn!(peer = %to, "a message exceeds the frame limit and is dropped");
                }
            }
            Output::Connect { peer, address } => {
                if let Some(slot) = self.links.want(peer, address, self.clocks.now.get().mono_us) {
                    self.close(slot);
                }
            }
            Output::Disconnect { peer } => self.links.forget(peer),
            Output::Refuse { peer, refusal } => self.refuse(peer, &refusal),
            Output::Event(event) => self.note(&event),
        }
    }

    fn note(&mut self, event: &Event) {
        log(event);
        let own = self.node.membership().own();
        let former = status::former(&self.node, own.id);
        let Some(former) = former.filter(|former| former.addresses.peer == own.addresses.peer) else {
            return;
        };
        if !std::mem::replace(&mut self.has_told_former, true) {
            warn!(
                "this node is new here and holds no data, but the ring has node {} of the same address: if that was \
                 this node before its disk was lost, type 'oort cluster replace {} {} --gone'",
                former.id, former.id, own.id
            );
        }
    }

    fn reply(&mut self, id: u64, result: Result<Reply, ClientError>) {
        match self.owners.remove(id) {
            Some(Owner::Client { slot, session, sequence, index, kind, began }) => {
                let now_ms = self.time().wall_ms;
                let took_us = self.answering_us.saturating_sub(began.at_us);
                self.latencies.answered(kind, took_us);
                self.with_client(slot, |shard, client| {
                    if client.session.id != session {
                        return;
                    }
                    let clerk = Clerk { stats: &shard.stats, now_us: shard.clocks.now.get().mono_us };
                    if let Some(next) = client.answer(sequence, index, result, now_ms, clerk) {
                        shard.submit(slot, client, next, began);
                    } else if client.has_reply(sequence) {
                        shard.latencies.commanded(began.family, took_us);
                    }
                    shard.answered(slot, client);
                });
            }
            // Whoever asked may have gone away.
            Some(Owner::Handle { reply, kind, at_us }) => {
                self.latencies.answered(kind, self.answering_us.saturating_sub(at_us));
                drop(reply.send(result));
            }
            None => {}
        }
    }

    /// The time the node goes by.
    fn time(&self) -> Now {
        self.node.time(self.clocks.now.get())
    }

    fn inside(&self) -> Inside<'_> {
        Inside {
            node: &self.node,
            now: self.clocks.now.get(),
            connections: self.numbers.clients,
            troubles: self.links.troubles(),
            started_wall_ms: self.clocks.started_wall_ms,
            latencies: &self.latencies,
        }
    }

    /// Begins to serve clients once every other node of the ring is linked or known to be absent, or after
    /// [`SETTLE_US`]. Until then clients wait in the listener's queue.
    fn admit(&mut self) {
        if self.is_admitting {
            return;
        }
        let me = self.node.id();
        let nodes = self.node.ring().map_or(&[][..], |ring| ring.nodes());
        let others = nodes.iter().copied().filter(|&node| node != me);
        let is_late = self.clocks.now.get().mono_us >= SETTLE_US || self.stop_deadline.is_some();
        if is_late || self.links.is_settled(others) {
            self.is_admitting = true;
            self.accept(true);
        }
    }

    fn drain_inbox(&mut self) {
        if self.is_admitting {
            for command in std::mem::take(&mut self.early) {
                self.obey(command);
            }
        }
        while let Some(command) = self.inbox.try_recv() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            early @ Command::Request { .. } if !self.is_admitting => self.early.push(early),
            Command::Request { request, reply } => {
                let (kind, at_us) = (Asked::of(&request), self.clocks.now.get().mono_us);
                let id = self.owners.insert(Owner::Handle { reply, kind, at_us });
                self.step(Input::Request { id, request });
            }
            Command::Inspect(look) => look(&self.inside()),
            Command::Stop => self.stop(),
        }
    }

    fn stop(&mut self) {
        if self.stop_deadline.is_some() {
            return;
        }
        info!("stopping: finishing {} requests", self.node.requests_in_flight());
        self.stop_deadline = Some(Instant::now() + STOP_PATIENCE);
        // Dropping a listener closes it: new clients are refused by the system.
        self.redis = None;
        self.peers = None;
        self.step(Input::Stop);
    }

    fn is_finished(&self) -> bool {
        let Some(deadline) = self.stop_deadline else { return false };
        let is_written = self.endpoints.iter().flatten().all(|endpoint| match &endpoint.kind {
            Kind::Client(client) => client.is_idle(),
            _ => endpoint.output.is_empty(),
        });
        let is_late = Instant::now() >= deadline;
        if is_late && (!is_written || self.node.requests_in_flight() > 0) {
            warn!("stopping with {} requests unanswered", self.node.requests_in_flight());
        }
        is_late || is_written && self.node.requests_in_flight() == 0
    }

    // Sockets

    fn event(&mut self, event: &mio::event::Event) {
        match event.token() {
            WAKER => {}
            REDIS if !self.is_admitting => {}
            REDIS => self.accept(true),
            PEERS => self.accept(false),
            Token(token) => {
                let slot = token - FIRST_ENDPOINT;
                if event.is_writable() {
                    self.flush(slot);
                }
                if event.is_readable() || event.is_read_closed() {
                    self.read(slot, event.is_read_closed());
                }
            }
        }
    }

    fn accept(&mut self, is_redis: bool) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = (if is_redis { &self.redis } else { &self.peers }) else { return };
            let (stream, address) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // None waits any more: the next shortage is news.
                    self.accept_failing[is_redis as usize] = false;
                    return;
                }
                Err(error) if is_exhaustion(&error) => return self.pause_accepting(is_redis, &error),
                // That one connection has gone wrong; others may wait behind it.
                Err(error) => {
                    debug!(%error, "a connection was gone before it was accepted");
                    continue;
                }
            };
            match is_redis {
                true => self.accept_client(stream, address),
                false => {
                    self.add(stream, Kind::Inbound(Inbound::new(address)));
                }
            }
        }
        // More may wait, but readiness is told only once: ask again in the next turn.
        if let Some(listener) = if is_redis { &mut self.redis } else { &mut self.peers } {
            let token = if is_redis { REDIS } else { PEERS };
            if let Err(error) = self.poll.registry().reregister(listener, token, Interest::READABLE) {
                error!(%error, "cannot watch a listener");
            }
        }
    }

    /// There is no descriptor for one more connection: those that wait are accepted when there may be room again.
    fn pause_accepting(&mut self, is_redis: bool, error: &io::Error) {
        self.numbers.accept_failures += 1;
        // Accepting fails without a descriptor even where nobody waits: both listeners tell of one shortage.
        let is_known = self.accept_failing.contains(&true);
        self.accept_failing[is_redis as usize] = true;
        if !is_known {
            warn!(why = cause(error), "connections cannot be accepted now: they wait");
        }
        self.accept_at_us = self.clocks.now.get().mono_us + ACCEPT_PAUSE_US;
    }

    /// Accepts what waits, if that was put off until now. Readiness is told only once, so nothing else would.
    fn accept_again(&mut self) {
        if self.clocks.now.get().mono_us >= self.accept_at_us {
            self.accept_at_us = u64::MAX;
            if self.is_admitting {
                self.accept(true);
            }
            self.accept(false);
        }
    }

    fn add(&mut self, stream: TcpStream, kind: Kind) -> Option<usize> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.endpoints.push(None);
            self.endpoints.len() - 1
        });
        let mut endpoint = Box::new(Endpoint::new(stream, kind));
        let interest = Interest::READABLE | Interest::WRITABLE;
        // Without it small replies wait for acknowledgements; a socket that refuses it still works.
        let _ = endpoint.stream.set_nodelay(true);
        if let Err(error) =
            self.poll.registry().register(&mut endpoint.stream, Token(slot + FIRST_ENDPOINT), interest)
        {
            warn!(%error, "cannot watch a connection");
            self.free.push(slot);
            return None;
        }
        self.endpoints[slot] = Some(endpoint);
        Some(slot)
    }

    /// Reads what a socket brought and steps the node through it. `is_ended`: the other side will send nothing more.
    fn read(&mut self, slot: usize, is_ended: bool) {
        let Some(mut endpoint) = self.endpoints.get_mut(slot).and_then(Option::take) else { return };
        let flow = endpoint.read(&mut self.scratch, is_ended);
        let read_bytes = std::mem::take(&mut endpoint.read_bytes);
        let outcome = match &mut endpoint.kind {
            Kind::Client(client) => {
                self.stats.received(read_bytes);
                client.has_ended |= flow == Flow::Ended;
                self.run_client(slot, client);
                Ok(())
            }
            Kind::Inbound(inbound) => self.run_inbound(inbound, &mut endpoint.output),
            Kind::Outbound(outbound) => self.run_outbound(slot, outbound),
        };
        if !endpoint.output.is_empty() {
            self.dirty.push(slot);
        }
        let is_refused = outcome.is_err();
        if let Err(error) = outcome {
            let now_us = self.clocks.now.get().mono_us;
            match &endpoint.kind {
                Kind::Inbound(inbound) => {
                    let peer = match &error {
                        wire::WireError::Refused { by: Some(hello), .. } => Some(hello.member.id),
                        _ => inbound.peer,
                    };
                    self.links.refused_inbound(inbound.address.ip().to_string(), peer, &error, now_us)
                }
                Kind::Outbound(_) => self.links.refused(slot, &error, now_us),
                Kind::Client(_) => {}
            }
            // Say why, if the socket takes it: the answer is already in the output.
            endpoint.flush();
        }
        let is_client = matches!(endpoint.kind, Kind::Client(_));
        self.endpoints[slot] = Some(endpoint);
        match flow {
            _ if is_refused => self.close(slot),
            Flow::Closed => self.close(slot),
            // A client that sends no more may still wait for its replies.
            Flow::Ended if is_client => {}
            Flow::Ended => self.close(slot),
            Flow::Drained => {}
            // Readiness is told only once, so what is left must be asked for.
            Flow::More => self.rearm(slot),
        }
    }

    fn rearm(&mut self, slot: usize) {
        if let Some(Some(endpoint)) = self.endpoints.get_mut(slot) {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let token = Token(slot + FIRST_ENDPOINT);
            if self.poll.registry().reregister(&mut endpoint.stream, token, interest).is_err() {
                self.close(slot);
            }
        }
    }

    fn run_inbound(&mut self, inbound: &mut Inbound, output: &mut Vec<u8>) -> Result<(), wire::WireError> {
        if inbound.peer.is_none() {
            let now = self.clocks.now.get();
            let greeted = wire::next_hello(&mut inbound.input);
            let hello = match greeted {
                Ok(Some(hello)) => hello,
                Ok(None) => return Ok(()),
                Err(error) => {
                    wire::append_answer(output, Err(&error.to_string()));
                    return Err(error);
                }
            };
            let dials = Dials { we: self.links.dials(&hello.member), they: true };
            if let Err(refusal) = self.node.check(&hello, dials) {
                let why = refusal.to_string();
                wire::append_refusal(output, &why, &self.node.hello(now));
                return Err(wire::WireError::Refused { why, by: Some(Box::new(hello)) });
            }
            wire::append_answer(output, Ok(&self.node.hello(now)));
            let peer = hello.member.id;
            inbound.peer = Some(peer);
            self.links.heard_of(&hello.member, now.mono_us);
            self.step(Input::Greeted { hello });
            if let Some(hello) = self.links.inbound_opened(peer) {
                self.linked(hello);
            }
        }
        let Some(from) = inbound.peer else { return Ok(()) };
        while let Some(message) = wire::next_message(&mut inbound.input)? {
            self.step(Input::Message { from, message });
        }
        Ok(())
    }

    fn run_outbound(&mut self, slot: usize, outbound: &mut Outbound) -> Result<(), wire::WireError> {
        if outbound.is_open {
            return match outbound.input.is_empty() {
                true => Ok(()),
                false => Err(wire::WireError::Malformed { detail: "bytes after the greeting".into() }),
            };
        }
        let hello = match wire::next_answer(&mut outbound.input) {
            Ok(Some(hello)) => hello,
            Ok(None) => return Ok(()),
            Err(error) => {
                if let wire::WireError::Refused { by: Some(hello), .. } = &error {
                    if let Err(refusal) = self.node.check(hello, Dials { we: true, they: true }) {
                        self.met_other_cluster(slot, &refusal);
                    }
                }
                return Err(error);
            }
        };
        let we = self.links.is_seed_of(slot, hello.member.id) || self.links.dials(&hello.member);
        let dials = Dials { we, they: self.links.has_greeted(hello.member.id) };
        if let Err(refusal) = self.node.check(&hello, dials) {
            self.met_other_cluster(slot, &refusal);
            return Err(wire::WireError::Refused { why: refusal.to_string(), by: None });
        }
        outbound.is_open = true;
        self.has_own_seed |= self.links.seed_in(slot).is_some() && hello.founding.is_some();
        match self.links.opened(slot, hello) {
            Ok(Some(hello)) => self.linked(hello),
            Ok(None) => {}
            Err(links::Double) => {
                let why = "a link to this peer is open already".into();
                return Err(wire::WireError::Refused { why, by: None });
            }
        }
        Ok(())
    }

    /// Closes the link to a peer that is of another cluster after all.
    fn refuse(&mut self, peer: NodeId, refusal: &Refusal) {
        let address = self.node.membership().members.get(&peer).map(|member| member.addresses.peer.clone());
        let error = wire::WireError::Refused { why: refusal.to_string(), by: None };
        let now_us = self.clocks.now.get().mono_us;
        self.links.refused_inbound(address.unwrap_or_default(), Some(peer), &error, now_us);
        let is_its = |endpoint: &Option<Box<Endpoint>>| match endpoint.as_ref().map(|open| &open.kind) {
            Some(Kind::Inbound(inbound)) => inbound.peer == Some(peer),
            _ => false,
        };
        let inbound = (0..self.endpoints.len()).filter(|slot| is_its(&self.endpoints[*slot]));
        let slots: Vec<usize> = inbound.chain(self.links.open_slot(peer)).collect();
        slots.into_iter().for_each(|slot| self.close(slot));
    }

    /// The connection in `slot` was refused. If it was to a seed, and that is of another cluster than this node, then
    /// this node was told to join a cluster it does not belong to.
    fn met_other_cluster(&mut self, slot: usize, refusal: &Refusal) {
        let Refusal::Founding { theirs, ours } = *refusal else { return };
        let Some(seed) = self.links.seed_in(slot).map(str::to_owned) else { return };
        let now_us = self.clocks.now.get().mono_us;
        let is_members = |member: &Member| member.addresses.peer == seed;
        // A member's address may have another tenant by now: nobody meant this node to join that one.
        let is_meant = !self.node.membership().members.values().any(is_members);
        if is_meant && now_us < JOIN_WINDOW_US && self.other_cluster.is_none() {
            let nodes = self.node.ring().map_or(0, |ring| ring.nodes().len());
            let other = OtherCluster { seed, theirs, ours, nodes };
            self.other_cluster = Some((now_us + JOIN_PATIENCE_US, other));
        }
    }

    /// Ends a node that was told to join another cluster, and nothing but that.
    fn leave_other_cluster(&mut self) {
        let is_due = |(at_us, _): &(u64, OtherCluster)| self.clocks.now.get().mono_us >= *at_us;
        if !self.has_own_seed && self.other_cluster.as_ref().is_some_and(is_due) {
            self.stop();
        }
    }

    fn linked(&mut self, hello: Hello) {
        let Member { id, name, addresses, .. } = &hello.member;
        info!(peer = %id, name, address = addresses.peer, "linked");
        self.step(Input::LinkUp { hello });
    }

    fn unlinked(&mut self, peer: NodeId) {
        info!(%peer, "link closed");
        self.step(Input::LinkDown { peer });
    }

    fn flush(&mut self, slot: usize) {
        let Some(Some(endpoint)) = self.endpoints.get_mut(slot) else { return };
        let mut is_broken = endpoint.flush() == Flow::Closed;
        let written_bytes = std::mem::take(&mut endpoint.written_bytes);
        match &mut endpoint.kind {
            Kind::Client(client) => {
                self.stats.sent(written_bytes);
                is_broken |= client.is_over();
                if client.has_unread() && client.is_ready() {
                    self.unread.push(slot);
                }
                client.charge(&mut self.client_bytes);
            }
            _ if endpoint.output.len() > OUTBOX_BYTES_MAX => {
                warn!("a peer does not take its messages: the link is cut");
                is_broken = true;
            }
            _ => {}
        }
        if is_broken {
            return self.close(slot);
        }
        if let Some((due, before)) = Shard::part_with(endpoint, slot, self.clocks.now.get().mono_us) {
            before.map(|before| self.closing.remove(&before));
            self.closing.insert(due);
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(mut endpoint) = self.endpoints.get_mut(slot).and_then(Option::take) else { return };
        self.closed.push(slot);
        if self.accept_at_us != u64::MAX {
            // Its descriptor is free when this turn is over.
            self.accept_at_us = 0;
        }
        // A socket that is gone is no longer watched anyway.
        let _ = self.poll.registry().deregister(&mut endpoint.stream);
        match endpoint.kind {
            Kind::Client(client) => {
                self.numbers.clients -= 1;
                self.client_bytes -= client.charged;
                if let Some(at_us) = client.closed_at_us {
                    self.closing.remove(&(at_us, slot, client.session.id));
                }
            }
            Kind::Inbound(inbound) => {
                if let Some(peer) = inbound.peer.filter(|&peer| self.links.inbound_closed(peer)) {
                    self.unlinked(peer);
                }
            }
            Kind::Outbound(_) => {
                if let Some(peer) = self.links.closed(slot, self.clocks.now.get().mono_us) {
                    self.unlinked(peer);
                }
            }
        }
    }

    /// Dials whom it is time to dial.
    fn dial(&mut self) {
        if self.stop_deadline.is_some() {
            return;
        }
        let now = self.clocks.now.get();
        for slot in self.links.overdue(now.mono_us) {
            self.close(slot);
        }
        for (address, target) in self.links.due(now.mono_us) {
            // A dial that fails at once is tried again like any other: the links keep the time.
            let Ok(stream) = TcpStream::connect(target) else { continue };
            let Some(slot) = self.add(stream, Kind::Outbound(Outbound::new())) else {
                continue;
            };
            if let Some(Some(endpoint)) = self.endpoints.get_mut(slot) {
                wire::append_hello(&mut endpoint.output, &self.node.hello(now));
            }
            self.links.dialled(&address, slot);
        }
    }
}
