//! Commands that look through a whole bucket, on all nodes: `SCAN`, `KEYS`, `DBSIZE`, `RANDOMKEY`, `FLUSHDB`,
//! `FLUSHALL`.
//!
//! A bucket is listed in ring order, page by page; `SCAN`'s cursor is the upper bits of a position on the ring, which
//! no node needs to remember and which fits every client's numbers: it is below 2^52. All keys that share a cursor come
//! in one page. The commands without a cursor walk several ranges of the ring at once.

use std::collections::VecDeque;

use bytes::Bytes;
use oort_core::client::{Operation, Page, Request, Scan, SCAN_LIMIT_MAX};
use oort_core::types::Position;

use super::arguments::integer;
use super::errors::{self, error_value, refusal, SYNTAX};
use super::glob;
use super::plan::{
    delete, page, update_operation, Answer, ListingKind, Next, Plan, NOTHING, REPLY_BYTES_MAX, REQUESTS_MAX,
};
use super::session::{bucket_of, DATABASES};
use super::{request, Call, Outcome, Started};
use crate::resp::Value;

/// Ranges of the ring that one command walks at once.
const WALK_WIDTH: usize = 8;
/// Keys that `SCAN` looks at unless told, as in Redis.
const SCAN_COUNT_DEFAULT: i64 = 10;

/// A stretch of the ring in one bucket, both ends inclusive.
#[derive(Clone)]
pub struct Stretch {
    pub bucket: Bytes,
    pub from: Position,
    pub to: Position,
}

impl Stretch {
    /// The whole ring.
    pub fn ring(bucket: Bytes) -> Stretch {
        Stretch { bucket, from: Position(0), to: Position(u64::MAX) }
    }

    /// One Redis Cluster slot.
    pub fn slot(bucket: Bytes, slot: u16) -> Stretch {
        let from = Position::first_of_slot(slot);
        Stretch { bucket, from, to: Position(from.0 | ((1 << 50) - 1)) }
    }

    fn page(&self, limit: u32, count_only: bool) -> Request {
        let Stretch { bucket, from, to } = self.clone();
        request(Operation::Scan(Scan { bucket, from, to, limit, count_only }))
    }

    /// The ring in [`WALK_WIDTH`] stretches of the same length.
    fn split_ring(bucket: &Bytes) -> impl Iterator<Item = Stretch> + '_ {
        let length = u64::MAX / WALK_WIDTH as u64 + 1;
        (0..WALK_WIDTH as u64).map(move |i| Stretch {
            bucket: bucket.clone(),
            from: Position(i * length),
            to: Position(i * length + (length - 1)),
        })
    }
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
pub fn scan(call: &mut Call) -> Outcome {
    let cursor = std::str::from_utf8(call.arg(1)).ok().and_then(|text| text.parse().ok());
    let from = cursor.and_then(Position::of_cursor).ok_or(refusal("ERR invalid cursor"))?;
    let (mut pattern, mut count, mut is_string) = (None, SCAN_COUNT_DEFAULT, true);
    let mut options = call.options(2);
    while let Some(word) = options.next_word() {
        let value = options.value()?;
        match word.to_ascii_lowercase().as_slice() {
            b"match" => pattern = Some(call.command.bytes(value)),
            b"count" => count = integer(call.arg(value))?,
            b"type" => is_string = call.is(value, "string"),
            _ => return Err(SYNTAX),
        }
    }
    if count < 1 {
        return Err(SYNTAX);
    }
    if !is_string {
        return super::reply(scan_reply(0, Vec::new()));
    }
    let limit = count.min(SCAN_LIMIT_MAX as i64) as u32;
    let stretch = Stretch { from, ..Stretch::ring(call.session.bucket().clone()) };
    Ok(Started::Many { requests: vec![stretch.page(limit, false)], plan: Box::new(OnePage { pattern }) })
}

fn scan_reply(cursor: u64, keys: Vec<Value>) -> Value {
    Value::Array(vec![Value::text(cursor.to_string()), Value::Array(keys)])
}

struct OnePage {
    pattern: Option<Bytes>,
}

impl Plan for OnePage {
    fn resume(&mut self, answers: Vec<Answer>, _: u64) -> Next {
        let answer = answers.into_iter().next().expect("a scan is one request");
        let Page { keys, next, .. } = match answer {
            Ok(answer) => page(answer),
            Err(error) => return Next::Done(error_value(&error)),
        };
        let matches = |key: &Bytes| self.pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, key));
        let keys = keys.into_iter().filter(matches).map(Value::Bulk).collect();
        // Position 0 is only ever the start, so that cursor 0 can mean the end.
        Next::Done(scan_reply(next.map_or(0, Position::cursor), keys))
    }
}

/// `KEYS pattern`
pub fn keys(call: &mut Call) -> Outcome {
    let gather =
        Gather::Keys { pattern: call.command.bytes(1), keys: Vec::new(), bytes: 0, limit: usize::MAX };
    Walk::start(Stretch::split_ring(call.session.bucket()).collect(), gather)
}

/// `DBSIZE`
pub fn dbsize(call: &mut Call) -> Outcome {
    Walk::start(Stretch::split_ring(call.session.bucket()).collect(), Gather::Count(0))
}

/// `FLUSHDB [ASYNC | SYNC]`
pub fn flushdb(call: &mut Call) -> Outcome {
    check_flush_option(call)?;
    Walk::start(Stretch::split_ring(call.session.bucket()).collect(), Gather::Delete(VecDeque::new()))
}

/// `FLUSHALL [ASYNC | SYNC]`: the buckets of all numbers, and all that have properties.
pub fn flushall(call: &mut Call) -> Outcome {
    check_flush_option(call)?;
    let mut buckets: Vec<Bytes> = (0..DATABASES).map(bucket_of).collect();
    for (name, _) in call.view.membership().buckets.entries() {
        if !buckets.contains(name) {
            buckets.push(name.clone());
        }
    }
    let stretches = buckets.iter().flat_map(Stretch::split_ring).collect();
    Walk::start(stretches, Gather::Delete(VecDeque::new()))
}

fn check_flush_option(call: &Call) -> Result<(), Value> {
    match call.count() {
        1 => Ok(()),
        2 if call.is(1, "async") || call.is(1, "sync") => Ok(()),
        _ => Err(SYNTAX),
    }
}

/// A walk over stretches of the ring, up to [`WALK_WIDTH`] of them at once.
pub struct Walk {
    /// Stretches not finished; the first `asked` of them are being asked about.
    stretches: VecDeque<Stretch>,
    asked: usize,
    gather: Gather,
}

/// What becomes of the keys.
pub enum Gather {
    /// Those that match, up to `limit` of them.
    Keys { pattern: Bytes, keys: Vec<Value>, bytes: usize, limit: usize },
    /// How many there are.
    Count(u64),
    /// They are deleted; the queue holds those found and not yet deleted.
    Delete(VecDeque<Request>),
}

impl Walk {
    /// Starts a walk over `stretches`, of which there is at least one.
    pub fn start(stretches: VecDeque<Stretch>, gather: Gather) -> Outcome {
        assert!(!stretches.is_empty(), "nowhere to walk");
        let mut walk = Walk { stretches, asked: 0, gather };
        let requests = walk.pages();
        Ok(Started::Many { requests, plan: Box::new(walk) })
    }

    fn pages(&mut self) -> Vec<Request> {
        self.asked = self.stretches.len().min(WALK_WIDTH);
        let (limit, count_only) = match &self.gather {
            Gather::Keys { limit, keys, .. } => ((limit - keys.len()).min(SCAN_LIMIT_MAX as usize), false),
            Gather::Count(_) => (SCAN_LIMIT_MAX as usize, true),
            Gather::Delete(_) => (REQUESTS_MAX / WALK_WIDTH, false),
        };
        self.stretches.iter().take(self.asked).map(|stretch| stretch.page(limit as u32, count_only)).collect()
    }

    /// Takes a round of pages. Errors: the reply that ends the command early.
    fn take_pages(&mut self, answers: Vec<Answer>) -> Result<(), Value> {
        for answer in answers {
            let mut stretch = self.stretches.pop_front().expect("each answer belongs to a stretch");
            let Page { keys, count, next } = page(answer.map_err(|error| error_value(&error))?);
            self.gather.take(&stretch.bucket, keys, count)?;
            if let Some(next) = next {
                stretch.from = next;
                self.stretches.push_back(stretch);
            }
        }
        self.asked = 0;
        Ok(())
    }

    fn next(&mut self) -> Next {
        if let Gather::Delete(queue) = &mut self.gather {
            if !queue.is_empty() {
                let round = queue.len().min(REQUESTS_MAX);
                return Next::Ask(queue.drain(..round).collect());
            }
        }
        match self.stretches.is_empty() || self.gather.is_full() {
            true => Next::Done(self.gather.reply()),
            false => Next::Ask(self.pages()),
        }
    }
}

impl Plan for Walk {
    fn resume(&mut self, answers: Vec<Answer>, _: u64) -> Next {
        let outcome = match self.asked > 0 {
            true => self.take_pages(answers),
            false => check_deletes(answers),
        };
        match outcome {
            Ok(()) => self.next(),
            Err(early) => Next::Done(early),
        }
    }

    fn listing(&self) -> Option<ListingKind> {
        Some(match self.gather {
            Gather::Keys { .. } | Gather::Count(_) => ListingKind::Reads,
            Gather::Delete(_) => ListingKind::Deletes,
        })
    }
}

fn check_deletes(answers: Vec<Answer>) -> Result<(), Value> {
    for answer in answers {
        answer.map_err(|error| error_value(&error))?;
    }
    Ok(())
}

impl Gather {
    fn take(&mut self, bucket: &Bytes, found: Vec<Bytes>, count: u64) -> Result<(), Value> {
        match self {
            Gather::Count(total) => *total += count,
            Gather::Delete(queue) => {
                for key in found {
                    let key = errors::key(bucket, &key)?;
                    queue.push_back(request(update_operation(key, delete(), NOTHING)));
                }
            }
            Gather::Keys { pattern, keys, bytes, limit } => {
                for key in found {
                    if keys.len() < *limit && glob::matches(pattern, &key) {
                        *bytes += key.len() + size_of::<Value>();
                        keys.push(Value::Bulk(key));
                    }
                }
                if *bytes > REPLY_BYTES_MAX {
                    return Err(refusal(format!("ERR reply exceeds {REPLY_BYTES_MAX} bytes: use SCAN")));
                }
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        matches!(self, Gather::Keys { keys, limit, .. } if keys.len() >= *limit)
    }

    fn reply(&mut self) -> Value {
        match self {
            Gather::Count(total) => Value::Integer(*total as i64),
            Gather::Delete(_) => Value::OK,
            Gather::Keys { keys, .. } => Value::Array(std::mem::take(keys)),
        }
    }
}

/// `RANDOMKEY`: the first key from a random position on.
pub fn randomkey(call: &mut Call) -> Outcome {
    let middle = call.view.random();
    let ring = Stretch::ring(call.session.bucket().clone());
    let mut stretches = VecDeque::from([Stretch { from: Position(middle), ..ring.clone() }]);
    if middle > 0 {
        stretches.push_back(Stretch { to: Position(middle - 1), ..ring });
    }
    let requests = vec![stretches[0].page(1, false)];
    Ok(Started::Many { requests, plan: Box::new(FirstKey { stretches }) })
}

struct FirstKey {
    /// Where to look still; the first is being asked about.
    stretches: VecDeque<Stretch>,
}

impl Plan for FirstKey {
    fn resume(&mut self, answers: Vec<Answer>, _: u64) -> Next {
        let answer = answers.into_iter().next().expect("each round has one request");
        let Page { keys, next, .. } = match answer {
            Ok(answer) => page(answer),
            Err(error) => return Next::Done(error_value(&error)),
        };
        if let Some(key) = keys.into_iter().next() {
            return Next::Done(Value::Bulk(key));
        }
        match next {
            Some(position) => self.stretches[0].from = position,
            None => drop(self.stretches.pop_front()),
        }
        match self.stretches.front() {
            Some(stretch) => Next::Ask(vec![stretch.page(1, false)]),
            None => Next::Done(Value::Null),
        }
    }
}
