//! One Redis client: what it sent, what it waits for, what it gets, in order.
//!
//! Commands of a pipeline run concurrently, but never so that a client could tell. What the node coordinates itself
//! takes effect at once and in order. What must go elsewhere or take several steps could be overtaken, so a command on
//! the same key waits for it, and a command of many steps waits for everything and everything for it.
//!
//! Commands that list whole buckets gather much and take long: few of all connections' run at once, the others wait,
//! and one whose client goes away ends.

mod counting;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use bytes::BytesMut;
use oort_core::active::Ask;
use oort_core::client::{Operation, Request};
use oort_core::replica::key_hash;

use crate::commands::plan::{Answer, Finish, ListingKind, Next, Plan};
use crate::commands::session::Session;
use crate::commands::stats::{Clerk, Mark};
use crate::commands::Started;
use crate::resp::request::{Command, Limits, ProtocolError, RequestParser};
use crate::resp::{Protocol, Value};
use counting::Sum;

/// The most commands of one connection in flight; more stay unread. Fewer: less in one sync of the disk. More: if other
/// nodes turn out to have long replies to all of them, they take so much more memory at once.
pub const PIPELINE_MAX: usize = 128;
/// So many bytes of commands in flight, of what this node loaded for them, and of replies that are unread or expected,
/// keep further commands waiting.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// A client with so many bytes unread by the node is not read from while its commands wait.
pub const INPUT_BYTES_KEPT: usize = 256 << 10;

/// The most `KEYS`, `DBSIZE` and `FLUSHALL` that run at once, of all connections together. Each `KEYS` may gather
/// [`REPLY_BYTES_MAX`](crate::commands::plan::REPLY_BYTES_MAX) for its reply.
pub const LISTINGS_MAX: usize = 4;

/// The listings that run, of all connections of a loop, and those that wait.
#[derive(Clone, Default)]
pub struct Listings(Arc<Counts>);

#[derive(Default)]
struct Counts {
    running: AtomicUsize,
    /// Listings that wait, as of the last time that all of them were told to try again.
    waiting: AtomicUsize,
}

/// One running listing; dropping it lets another one run.
struct Permit(Listings);

impl Listings {
    /// Lets another listing run, or notes that it waits.
    fn enter(&self) -> Option<Permit> {
        if self.0.running.load(Ordering::Relaxed) >= LISTINGS_MAX {
            self.0.waiting.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.0.running.fetch_add(1, Ordering::Relaxed);
        Some(Permit(self.clone()))
    }

    /// True once if listings wait and one may run now: those that wait are to try again.
    pub fn is_free_again(&self) -> bool {
        let has_room = self.0.running.load(Ordering::Relaxed) < LISTINGS_MAX;
        has_room && self.0.waiting.swap(0, Ordering::Relaxed) > 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0 .0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reply's place in the order.
enum Slot {
    /// With the bytes that were charged for it.
    Ready(Value, Protocol, usize),
    One(Finish, Protocol, Mark),
    /// Several additions to one counter, with the places behind it.
    Sum(Box<Sum>),
    /// Its reply comes with that of the sum before it.
    Part,
    Many {
        plan: Box<dyn Plan>,
        answers: Vec<Option<Answer>>,
        missing: usize,
        protocol: Protocol,
        mark: Mark,
        /// Of a listing.
        _permit: Option<Permit>,
    },
}

/// How a request relates to others on its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Takes effect in this step, here.
    Direct(u64),
    /// Takes effect later or elsewhere.
    Remote(u64),
    /// Touches more than one can say.
    Everything,
}

struct InFlight {
    sequence: u64,
    reach: Reach,
    /// The command's length, and that of what was loaded for it.
    bytes: usize,
}

/// What a client waits for and with what it is held up.
pub struct Connection {
    pub session: Session,
    /// The command that was started last.
    pub mark: Mark,
    pub input: BytesMut,
    /// Encoded replies not yet written.
    pub output: Vec<u8>,
    /// No more commands are read.
    pub is_closing: bool,
    /// What it sent was no command: what else it sends is thrown away for a moment, so that it can read why.
    pub is_refused: bool,
    /// When it is closed whatever it does, in microseconds of the monotonic clock. `None`: it is not closing, or waits
    /// for replies.
    pub closed_at_us: Option<u64>,
    /// How many bytes it had not taken when that time was set.
    pub unread_when_parting: Option<usize>,
    /// The client sends no more; closed when what it sent is answered.
    pub has_ended: bool,
    /// It may have sent more than was read: it is not read from while its commands wait.
    pub is_paused: bool,
    /// The memory it was last seen to take, in bytes.
    pub charged: usize,
    parser: RequestParser,
    /// How long the input was when no whole command was left in it.
    unfinished: Option<usize>,
    slots: VecDeque<Slot>,
    first_sequence: u64,
    in_flight: Vec<InFlight>,
    in_flight_bytes: usize,
    /// Additions that are made together, before what is held: more of them may follow.
    sum: Option<Sum>,
    held: Option<Started>,
    /// The length of the command that was started last.
    started_bytes: usize,
    /// The greatest length of late replies, which fades.
    reply_bytes: usize,
    listings: Listings,
}

/// Requests to submit, with the place their answers belong to.
pub struct Submission {
    pub sequence: u64,
    pub requests: Requests,
}

impl Submission {
    /// True if it adds to a counter.
    pub fn is_addition(&self) -> bool {
        matches!(&self.requests, Requests::One(request) if Sum::is_addition(request))
    }
}

/// One request without an allocation, or several.
pub enum Requests {
    One(Request),
    Many(Vec<Request>),
}

impl Connection {
    pub fn new(session: Session, limits: Limits, listings: Listings) -> Connection {
        Connection {
            session,
            mark: Mark::NONE,
            input: BytesMut::new(),
            output: Vec::new(),
            is_closing: false,
            is_refused: false,
            closed_at_us: None,
            unread_when_parting: None,
            has_ended: false,
            is_paused: false,
            charged: 0,
            parser: RequestParser::new(limits),
            unfinished: Some(0),
            slots: VecDeque::new(),
            first_sequence: 0,
            in_flight: Vec::new(),
            in_flight_bytes: 0,
            sum: None,
            held: None,
            started_bytes: 0,
            reply_bytes: 0,
            listings,
        }
    }

    /// True if another command may be started now.
    pub fn is_ready(&self) -> bool {
        let gathered = self.sum.as_ref().map_or(0, |sum| sum.bytes);
        let expected =
            self.in_flight_bytes + gathered + self.output.len() + self.slots.len() * self.reply_bytes;
        !self.is_closing
            && self.held.is_none()
            && self.slots.len() + self.sum.as_ref().map_or(0, Sum::len) < PIPELINE_MAX
            // One may always run, however long its reply.
            && (expected < IN_FLIGHT_BYTES_MAX || self.slots.is_empty() && self.output.is_empty())
    }

    /// The next command the client has sent, if all of it is there. Errors: its bytes are none; the client is to be
    /// told so by [`Connection::refuse`].
    pub fn next_command(&mut self) -> Result<Option<Command>, ProtocolError> {
        let before = self.input.len();
        let command = self.parser.next(&mut self.input)?;
        self.started_bytes = before - self.input.len();
        self.unfinished = command.is_none().then_some(self.input.len());
        Ok(command)
    }

    /// True if commands may be left in the input.
    pub fn has_unread(&self) -> bool {
        !self.is_closing && self.unfinished != Some(self.input.len())
    }

    /// True if commands it has sent wait for others to end.
    pub fn is_waiting(&self) -> bool {
        self.held.is_some() || self.sum.is_some() || self.has_unread()
    }

    /// Sees how much memory the client makes this node hold, and corrects the sum over all clients.
    pub fn charge(&mut self, all_bytes: &mut usize) {
        let held = if self.held.is_some() { self.started_bytes } else { 0 };
        let held = held + self.sum.as_ref().map_or(0, |sum| sum.bytes);
        let bytes = self.input.len() + self.output.len() + self.in_flight_bytes + held;
        *all_bytes = *all_bytes + bytes - self.charged;
        self.charged = bytes;
    }

    /// Takes a started command: answers it, or returns what to submit, or holds it until it may run.
    pub fn accept(
        &mut self,
        started: Started,
        reach: impl Fn(&Request) -> Reach,
        clerk: Clerk,
    ) -> Option<Submission> {
        let (protocol, mark) = (self.session.protocol, self.mark);
        if let Some(sum) = &mut self.sum {
            if let Started::One { request, finish } = &started {
                if sum.join(request, (*finish, protocol, mark), self.started_bytes) {
                    return None;
                }
            }
            // The sum is complete, and goes first.
            self.held = Some(started);
            return self.gathered(reach);
        }
        match started {
            Started::One { request, finish } if Sum::is_addition(&request) => {
                self.sum = Sum::new(request, (finish, protocol, mark), self.started_bytes);
            }
            Started::Reply(value) => {
                clerk.answered(mark, &value);
                self.reply(value, protocol);
            }
            Started::Close(value) => {
                clerk.answered(mark, &value);
                self.is_refused = matches!(value, Value::Error(_));
                self.reply(value, protocol);
                self.is_closing = true;
            }
            Started::One { request, finish } => {
                let reach = reach(&request);
                if self.must_wait(reach) {
                    self.held = Some(Started::One { request, finish });
                    return None;
                }
                let sequence = self.push(Slot::One(finish, protocol, mark), reach, self.started_bytes);
                return Some(Submission { sequence, requests: Requests::One(request) });
            }
            Started::Many { requests, plan } => {
                // Several direct requests (MGET, MSET) behave like one; anything else like everything.
                let is_direct = requests.iter().all(|request| matches!(reach(request), Reach::Direct(_)));
                let reach =
                    if is_direct && self.in_flight.is_empty() { Reach::Direct(0) } else { Reach::Everything };
                let is_listing = plan.listing().is_some();
                let permit = if is_listing && !self.must_wait(reach) { self.listings.enter() } else { None };
                if self.must_wait(reach) || is_listing && permit.is_none() {
                    self.held = Some(Started::Many { requests, plan });
                    return None;
                }
                let answers = requests.iter().map(|_| None).collect();
                let slot =
                    Slot::Many { plan, answers, missing: requests.len(), protocol, mark, _permit: permit };
                // Its later rounds are not known yet, so nothing may overtake it.
                let sequence = self.push(slot, Reach::Everything, self.started_bytes);
                return Some(Submission { sequence, requests: Requests::Many(requests) });
            }
        }
        None
    }

    /// The command that was held up, if it may run now.
    pub fn release(&mut self, reach: impl Fn(&Request) -> Reach, clerk: Clerk) -> Option<Submission> {
        if self.sum.is_some() {
            return match self.held.is_some() {
                true => self.gathered(reach),
                false => None,
            };
        }
        let held = self.held.take()?;
        self.accept(held, reach, clerk)
    }

    /// The additions that were gathered, if they may be made now: to be asked for when no more can join them.
    pub fn gathered(&mut self, reach: impl Fn(&Request) -> Reach) -> Option<Submission> {
        let reach = reach(self.sum.as_ref()?.request());
        if self.must_wait(reach) {
            return None;
        }
        let sum = self.sum.take()?;
        let (bytes, parts) = (sum.bytes, sum.len());
        if parts == 1 {
            let (request, (finish, protocol, mark)) = sum.into_one();
            let sequence = self.push(Slot::One(finish, protocol, mark), reach, bytes);
            return Some(Submission { sequence, requests: Requests::One(request) });
        }
        let request = sum.request().clone();
        let sequence = self.push(Slot::Sum(Box::new(sum)), reach, bytes);
        self.slots.extend((1..parts).map(|_| Slot::Part));
        Some(Submission { sequence, requests: Requests::One(request) })
    }

    /// Ends the connection with an error, after the replies before it.
    pub fn refuse(
        &mut self,
        error: ProtocolError,
        reach: impl Fn(&Request) -> Reach,
        clerk: Clerk,
    ) -> Option<Submission> {
        self.mark = Mark::NONE;
        self.input = BytesMut::new();
        self.unfinished = Some(0);
        self.started_bytes = 0;
        self.accept(Started::Close(Value::Error(format!("ERR {error}").into())), reach, clerk)
    }

    /// Takes the answer to request `index` of the command at `sequence`. Returns its next round of requests, if any.
    pub fn answer(
        &mut self,
        sequence: u64,
        index: usize,
        answer: Answer,
        now_ms: u64,
        clerk: Clerk,
    ) -> Option<Submission> {
        let place = sequence.checked_sub(self.first_sequence)? as usize;
        let slot = self.slots.get_mut(place)?;
        let (value, protocol, mark) = match slot {
            Slot::Ready(..) | Slot::Part => return None,
            Slot::Sum(sum) => match sum.answer(answer, now_ms) {
                counting::Next::Done(replies) => {
                    let bytes = self.land(sequence);
                    for (i, (value, protocol, mark)) in replies.into_iter().enumerate() {
                        clerk.answered(mark, &value);
                        // The bytes of all are charged to the first.
                        let bytes = if i == 0 { bytes } else { 0 };
                        self.slots[place + i] = Slot::Ready(value, protocol, bytes);
                    }
                    self.encode_ready();
                    return None;
                }
                counting::Next::Ask(request) => {
                    return Some(Submission { sequence, requests: Requests::One(request) });
                }
            },
            Slot::One(finish, protocol, mark) => (finish.reply(answer, now_ms), *protocol, *mark),
            Slot::Many { plan, answers, missing, protocol, mark, .. } => {
                let free = answers.get_mut(index).filter(|free| free.is_none())?;
                *free = Some(answer);
                *missing -= 1;
                if *missing > 0 {
                    return None;
                }
                let round = std::mem::take(answers).into_iter().flatten().collect();
                match plan.resume(round, now_ms) {
                    Next::Done(value) => (value, *protocol, *mark),
                    Next::Ask(requests) => {
                        *missing = requests.len();
                        answers.resize_with(requests.len(), || None);
                        return Some(Submission { sequence, requests: Requests::Many(requests) });
                    }
                }
            }
        };
        clerk.answered(mark, &value);
        let bytes = self.land(sequence);
        self.slots[place] = Slot::Ready(value, protocol, bytes);
        self.encode_ready();
        None
    }

    /// The command at `sequence` is in flight no more; returns the bytes charged for it.
    fn land(&mut self, sequence: u64) -> usize {
        let at = self.in_flight.iter().position(|one| one.sequence == sequence);
        at.map_or(0, |at| self.in_flight.swap_remove(at).bytes)
    }

    /// True once the reply to the command at `sequence` is known.
    pub fn has_reply(&self, sequence: u64) -> bool {
        let place = sequence.checked_sub(self.first_sequence);
        let slot = place.and_then(|place| self.slots.get(place as usize));
        slot.is_none_or(|slot| matches!(slot, Slot::Ready(..)))
    }

    /// Notes that `bytes` were loaded to answer the command at `sequence`.
    pub fn note_loaded(&mut self, sequence: u64, bytes: usize) {
        if let Some(command) = self.in_flight.iter_mut().rev().find(|one| one.sequence == sequence) {
            command.bytes += bytes;
            self.in_flight_bytes += bytes;
        }
    }

    /// True if a listing waits for others to end.
    pub fn holds_listing(&self) -> bool {
        matches!(&self.held, Some(Started::Many { plan, .. }) if plan.listing().is_some())
    }

    /// True if a listing that only reads runs or waits, of which nobody would read the reply: as in Redis, a client
    /// that ends its side of the connection has gone away.
    fn lists_for_nobody(&self) -> bool {
        let is_vain = |plan: &dyn Plan| plan.listing() == Some(ListingKind::Reads);
        self.has_ended
            && (self.slots.iter().any(|slot| matches!(slot, Slot::Many { plan, .. } if is_vain(&**plan)))
                || matches!(&self.held, Some(Started::Many { plan, .. }) if is_vain(&**plan)))
    }

    /// True if the connection has served its purpose.
    pub fn is_over(&self) -> bool {
        if self.lists_for_nobody() {
            return true;
        }
        let is_done = match self.is_closing {
            // Closing the socket before it was read empty would throw the error away on its way to the client, so that
            // waits a moment: see `shard::closing`.
            true => !self.is_refused || self.has_ended,
            false => self.has_ended && !self.has_unread(),
        };
        is_done && self.is_idle()
    }

    /// True if nothing is in flight, held or unwritten.
    pub fn is_idle(&self) -> bool {
        self.is_answered() && self.output.is_empty()
    }

    /// True if nothing is in flight or held: all replies are in the output.
    pub fn is_answered(&self) -> bool {
        self.slots.is_empty() && self.sum.is_none() && self.held.is_none()
    }

    fn reply(&mut self, value: Value, protocol: Protocol) {
        match self.slots.is_empty() {
            true => value.encode(protocol, &mut self.output),
            false => self.slots.push_back(Slot::Ready(value, protocol, 0)),
        }
    }

    fn push(&mut self, slot: Slot, reach: Reach, bytes: usize) -> u64 {
        let sequence = self.first_sequence + self.slots.len() as u64;
        self.slots.push_back(slot);
        self.in_flight.push(InFlight { sequence, reach, bytes });
        self.in_flight_bytes += bytes;
        sequence
    }

    fn must_wait(&self, reach: Reach) -> bool {
        self.in_flight.iter().any(|other| match (other.reach, reach) {
            (Reach::Direct(_), Reach::Direct(_)) => false,
            (Reach::Everything, _) | (_, Reach::Everything) => true,
            (Reach::Direct(a) | Reach::Remote(a), Reach::Direct(b) | Reach::Remote(b)) => a == b,
        })
    }

    fn encode_ready(&mut self) {
        while let Some(Slot::Ready(value, protocol, bytes)) = self.slots.front() {
            self.in_flight_bytes -= bytes;
            let before = self.output.len();
            value.encode(*protocol, &mut self.output);
            self.reply_bytes = (self.output.len() - before).max(self.reply_bytes - self.reply_bytes / 8);
            self.slots.pop_front();
            self.first_sequence += 1;
        }
    }
}

/// How `request` relates to others; `is_here`: this node coordinates plain stores of its key.
pub fn reach_of(request: &Request, is_here: impl Fn(&oort_core::types::ObjectKey) -> bool) -> Reach {
    match &request.operation {
        // Another node may have to run it, and the next may change what it sees.
        Operation::Call { key, call, .. } if call.what != Ask::Get => Reach::Remote(key_hash(key.row())),
        Operation::Get { key, .. } | Operation::Call { key, .. } if is_here(key) => {
            Reach::Direct(key_hash(key.row()))
        }
        Operation::Get { key, .. } | Operation::Call { key, .. } => Reach::Remote(key_hash(key.row())),
        Operation::Update { key, .. } if !request.operation.reads_first() && is_here(key) => {
            Reach::Direct(key_hash(key.row()))
        }
        Operation::Update { key, .. } => Reach::Remote(key_hash(key.row())),
        Operation::Scan(_) | Operation::SetBucket { .. } | Operation::ChangeRing { .. } => Reach::Everything,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_listings_run_at_once_and_one_that_ends_lets_another_run() {
        let listings = Listings::default();
        let mut running: Vec<Permit> = (0..LISTINGS_MAX).filter_map(|_| listings.enter()).collect();
        assert_eq!((running.len(), listings.enter().is_none()), (LISTINGS_MAX, true));
        assert!(!listings.is_free_again(), "all still run");
        running.pop();
        assert!(listings.is_free_again() && !listings.is_free_again(), "those that wait are told once");
        assert!(listings.enter().is_some());
    }
}
