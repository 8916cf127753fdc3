//! The door between the event loop and everything that runs beside it: HTTP, signals, tests.
//!
//! The loop owns the node and never waits for anybody. Others hold a [`Handle`], put a [`Command`] into a bounded
//! queue and wake the loop; it drains its [`Inbox`] once per turn and answers through a one-shot channel. What
//! others want to know about the node is a closure that runs on the loop, between two turns, so that what it sees is
//! consistent and nothing is locked. Stopping is a flag, not a message: a full queue cannot refuse it.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::Arc;

use oort_core::client::{ClientError, Reply, Request};
use oort_core::node::Node;
use oort_core::types::{NodeId, Now};
use tokio::sync::{mpsc, oneshot};

use crate::latency::Latencies;

/// Commands that may wait for the loop. Fewer: bursts of HTTP requests are answered BUSY; more: they wait instead.
pub const QUEUE_MAX: usize = 4096;

/// What an inspection sees: the node between two turns, and what only the server knows.
pub struct Inside<'a> {
    pub node: &'a Node,
    pub now: Now,
    /// Open Redis connections.
    pub connections: usize,
    /// Links that are wanted and not there.
    pub troubles: &'a [Trouble],
    /// When the process started, in milliseconds since 1970.
    pub started_wall_ms: u64,
    /// How long things took.
    pub latencies: &'a Latencies,
}

/// Why there is no link with a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// The address that was dialled, or that the peer came from.
    pub address: String,
    /// Who it should be, or said it was, if that is known.
    pub peer: Option<NodeId>,
    /// This node dialled; else the peer did.
    pub is_ours: bool,
    pub why: String,
    /// How often it was so.
    pub times: u64,
    /// When it was so last, in microseconds of the loop's clock.
    pub last_us: u64,
}

/// What the loop is asked to do.
pub enum Command {
    /// Run a client's request; the answer goes to `reply`, which nobody may be waiting for any more.
    Request { request: Request, reply: oneshot::Sender<Result<Reply, ClientError>> },
    /// Call this with the node as it is now. It must be short: everything else waits.
    Inspect(Box<dyn FnOnce(&Inside) + Send>),
    /// Stop gracefully. Comes once, before any command that waits.
    Stop,
}

/// The loop has ended, or ended before it answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the node is stopping")
    }
}

impl std::error::Error for Stopped {}

/// The outside end: asks the loop, from any thread.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    stop: Arc<AtomicBool>,
    correction_ms: Arc<AtomicI64>,
    waker: Arc<mio::Waker>,
}

/// The loop's end.
pub struct Inbox {
    commands: mpsc::Receiver<Command>,
    stop: Arc<AtomicBool>,
    correction_ms: Arc<AtomicI64>,
}

/// Makes the two ends. Each command wakes the loop through `waker`.
pub fn channel(waker: Arc<mio::Waker>) -> (Handle, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let correction_ms = Arc::new(AtomicI64::new(0));
    let inbox = Inbox { commands: receiver, stop: stop.clone(), correction_ms: correction_ms.clone() };
    let handle = Handle { commands: sender, stop, correction_ms, waker };
    (handle, inbox)
}

impl Inbox {
    /// Tells the other threads what the node adds to its clock now.
    pub fn tell_correction(&self, correction_ms: i64) {
        self.correction_ms.store(correction_ms, Ordering::Relaxed);
    }

    /// The next command, if one waits. Drain until `None` in each turn: a wake-up may stand for many commands.
    pub fn try_recv(&mut self) -> Option<Command> {
        if self.stop.swap(false, Ordering::AcqRel) {
            return Some(Command::Stop);
        }
        self.commands.try_recv().ok()
    }
}

impl Handle {
    /// What the node adds to its clock, in milliseconds, to go by the time of most nodes.
    pub fn correction_ms(&self) -> i64 {
        self.correction_ms.load(Ordering::Relaxed)
    }

    /// Asks the node to run `request`. It is queued at once, even if the future is never polled.
    ///
    /// Errors: `Busy` when [`QUEUE_MAX`] commands wait; `Stopping` when the loop has ended; `OutcomeUnknown` when it
    /// ends before it answers; else the node's own.
    pub fn request(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<Reply, ClientError>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let queued =
            self.commands.try_send(Command::Request { request, reply }).map_err(|refusal| match refusal {
                mpsc::error::TrySendError::Full(_) => ClientError::Busy { waiting: QUEUE_MAX as u64 },
                mpsc::error::TrySendError::Closed(_) => ClientError::Stopping,
            });
        if queued.is_ok() {
            self.wake();
        }
        async move {
            queued?;
            answer.await.unwrap_or(Err(ClientError::OutcomeUnknown))
        }
    }

    /// Runs `look` on the loop and returns what it returns. Waits for room when the queue is full.
    ///
    /// Errors: the loop has ended.
    pub fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Inside) -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Stopped>> + Send + 'static {
        let handle = self.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let command = Command::Inspect(Box::new(move |inside| {
                // Whoever asked may have gone away: then nobody needs the answer.
                let _ = reply.send(look(inside));
            }));
            handle.commands.send(command).await.map_err(|_| Stopped)?;
            handle.wake();
            answer.await.map_err(|_| Stopped)
        }
    }

    /// Asks the loop to stop gracefully. Never refused; asking twice is asking once.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            // The loop also wakes for its timers, so the command is late, not lost.
            tracing::warn!(%error, "cannot wake the event loop");
        }
    }
}
