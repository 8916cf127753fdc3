//! One Redis client: what it sent, what it waits for, what it gets, in order.
//!
//! Commands of a pipeline run concurrently, but never so that a client could tell. What the node coordinates itself
//! takes effect at once and in order. What must go elsewhere or take several steps could be overtaken, so a command on
//! the same key waits for it, and a command of many steps waits for everything and everything for it.

use std::collections::VecDeque;

use bytes::BytesMut;
use oort_core::client::{Operation, Request};
use oort_core::replica::hash_of;

use crate::commands::plan::{Answer, Finish, Next, Plan};
use crate::commands::session::Session;
use crate::commands::Started;
use crate::resp::request::{Limits, RequestParser};
use crate::resp::{Protocol, Value};

/// The most commands of one connection in flight; more stay unread.
pub const PIPELINE_MAX: usize = 1024;
/// A client that leaves more than this unread, in bytes, is not read from until it takes some.
pub const OUTPUT_BYTES_MAX: usize = 8 << 20;

/// A reply's place in the order.
enum Slot {
    Ready(Value, Protocol),
    One(Finish, Protocol),
    Many { plan: Box<dyn Plan>, answers: Vec<Option<Answer>>, missing: usize, protocol: Protocol },
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
}

/// What a client waits for and with what it is held up.
pub struct Connection {
    pub session: Session,
    pub input: BytesMut,
    pub parser: RequestParser,
    /// Encoded replies not yet written.
    pub output: Vec<u8>,
    /// No more commands are read; closed when everything is written.
    pub is_closing: bool,
    /// The client sends no more; closed when what it sent is answered.
    pub has_ended: bool,
    slots: VecDeque<Slot>,
    first_sequence: u64,
    in_flight: Vec<InFlight>,
    held: Option<Started>,
}

/// Requests to submit, with the place their answers belong to.
pub struct Submission {
    pub sequence: u64,
    pub requests: Requests,
}

/// One request without an allocation, or several.
pub enum Requests {
    One(Request),
    Many(Vec<Request>),
}

impl Connection {
    pub fn new(session: Session, limits: Limits) -> Connection {
        Connection {
            session,
            input: BytesMut::new(),
            parser: RequestParser::new(limits),
            output: Vec::new(),
            is_closing: false,
            has_ended: false,
            slots: VecDeque::new(),
            first_sequence: 0,
            in_flight: Vec::new(),
            held: None,
        }
    }

    /// True if another command may be read now.
    pub fn is_ready(&self) -> bool {
        !self.is_closing
            && self.held.is_none()
            && self.slots.len() < PIPELINE_MAX
            && self.output.len() < OUTPUT_BYTES_MAX
    }

    /// Takes a started command: answers it, or returns what to submit, or holds it until it may run.
    pub fn accept(&mut self, started: Started, reach: impl Fn(&Request) -> Reach) -> Option<Submission> {
        let protocol = self.session.protocol;
        match started {
            Started::Reply(value) => self.reply(value, protocol),
            Started::Close(value) => {
                self.reply(value, protocol);
                self.is_closing = true;
            }
            Started::One { request, finish } => {
                let reach = reach(&request);
                if self.must_wait(reach) {
                    self.held = Some(Started::One { request, finish });
                    return None;
                }
                let sequence = self.push(Slot::One(finish, protocol), reach);
                return Some(Submission { sequence, requests: Requests::One(request) });
            }
            Started::Many { requests, plan } => {
                // Several direct requests (MGET, MSET) behave like one; anything else like everything.
                let is_direct = requests.iter().all(|request| matches!(reach(request), Reach::Direct(_)));
                let reach =
                    if is_direct && self.in_flight.is_empty() { Reach::Direct(0) } else { Reach::Everything };
                if self.must_wait(reach) {
                    self.held = Some(Started::Many { requests, plan });
                    return None;
                }
                let answers = requests.iter().map(|_| None).collect();
                let slot = Slot::Many { plan, answers, missing: requests.len(), protocol };
                // Its later rounds are not known yet, so nothing may overtake it.
                let sequence = self.push(slot, Reach::Everything);
                return Some(Submission { sequence, requests: Requests::Many(requests) });
            }
        }
        None
    }

    /// The command that was held up, if it may run now.
    pub fn release(&mut self, reach: impl Fn(&Request) -> Reach) -> Option<Submission> {
        let held = self.held.take()?;
        self.accept(held, reach)
    }

    /// Ends the connection with an error, after the replies before it.
    pub fn refuse(&mut self, text: String) {
        self.reply(Value::Error(format!("ERR {text}").into()), self.session.protocol);
        self.is_closing = true;
    }

    /// Takes the answer to request `index` of the command at `sequence`. Returns its next round of requests, if any.
    pub fn answer(&mut self, sequence: u64, index: usize, answer: Answer, now_ms: u64) -> Option<Submission> {
        let place = sequence.checked_sub(self.first_sequence)? as usize;
        let slot = self.slots.get_mut(place)?;
        let (value, protocol) = match slot {
            Slot::Ready(..) => return None,
            Slot::One(finish, protocol) => (finish.reply(answer, now_ms), *protocol),
            Slot::Many { plan, answers, missing, protocol } => {
                let free = answers.get_mut(index).filter(|free| free.is_none())?;
                *free = Some(answer);
                *missing -= 1;
                if *missing > 0 {
                    return None;
                }
                let round = std::mem::take(answers).into_iter().flatten().collect();
                match plan.resume(round, now_ms) {
                    Next::Done(value) => (value, *protocol),
                    Next::Ask(requests) => {
                        *missing = requests.len();
                        answers.resize_with(requests.len(), || None);
                        return Some(Submission { sequence, requests: Requests::Many(requests) });
                    }
                }
            }
        };
        *slot = Slot::Ready(value, protocol);
        self.in_flight.retain(|one| one.sequence != sequence);
        self.encode_ready();
        None
    }

    /// True if the connection has served its purpose.
    pub fn is_over(&self) -> bool {
        (self.is_closing || self.has_ended) && self.is_idle()
    }

    /// True if nothing is in flight, held or unwritten.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.held.is_none() && self.output.is_empty()
    }

    fn reply(&mut self, value: Value, protocol: Protocol) {
        match self.slots.is_empty() {
            true => value.encode(protocol, &mut self.output),
            false => self.slots.push_back(Slot::Ready(value, protocol)),
        }
    }

    fn push(&mut self, slot: Slot, reach: Reach) -> u64 {
        let sequence = self.first_sequence + self.slots.len() as u64;
        self.slots.push_back(slot);
        self.in_flight.push(InFlight { sequence, reach });
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
        while let Some(Slot::Ready(value, protocol)) = self.slots.front() {
            value.encode(*protocol, &mut self.output);
            self.slots.pop_front();
            self.first_sequence += 1;
        }
    }
}

/// How `request` relates to others; `is_here`: this node coordinates plain stores of its key.
pub fn reach_of(request: &Request, is_here: impl Fn(&oort_core::types::ObjectKey) -> bool) -> Reach {
    match &request.operation {
        Operation::Get { key, .. } if is_here(key) => Reach::Direct(hash_of(key.row())),
        Operation::Get { key, .. } => Reach::Remote(hash_of(key.row())),
        Operation::Update { key, .. } if !request.operation.reads_first() && is_here(key) => {
            Reach::Direct(hash_of(key.row()))
        }
        Operation::Update { key, .. } => Reach::Remote(hash_of(key.row())),
        Operation::Scan(_) | Operation::SetBucket { .. } | Operation::ChangeRing { .. } => Reach::Everything,
    }
}
