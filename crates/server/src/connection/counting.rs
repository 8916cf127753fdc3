//! Additions to one counter that follow each other in a pipeline, made one request.
//!
//! Each addition depends on the one before, so a pipeline of them would take a round over the nodes for each. Together
//! they are one addition of their sum: the home reads, adds and replicates once, all are acknowledged at once, and the
//! number that each left follows from the number in the end. Only additions of one sign go together: then the numbers
//! in between lie within the range of a counter if the last one does. If the last one does not, all are made one by
//! one, so that those that fit are made and the others refused, as if nothing had gone together.

use oort_core::client::{ClientError, Operation, Request};
use oort_core::mutation::{Mutation, MutationError};

use crate::commands::plan::{Answer, Finish};
use crate::commands::stats::Mark;
use crate::commands::strings::number_after;
use crate::resp::{Protocol, Value};

/// One addition of a sum.
#[derive(Clone, Copy)]
struct Part {
    delta: i64,
    reply: Asked,
}

/// What becomes of an addition's answer: the reply, its protocol, and whose it is for the counters.
pub(super) type Asked = (Finish, Protocol, Mark);

/// One or more additions to one counter.
pub(super) struct Sum {
    /// Adds all of them, or one at a time.
    request: Request,
    first: Part,
    rest: Vec<Part>,
    /// The length of the commands in bytes.
    pub bytes: usize,
    /// Replies to the first of them, since they are made one by one.
    one_by_one: Option<Vec<Value>>,
}

/// How a sum goes on.
pub(super) enum Next {
    /// Each addition's reply.
    Done(Vec<(Value, Protocol, Mark)>),
    Ask(Request),
}

/// The number that a request adds, if it does nothing else.
fn delta_of(request: &Request) -> Option<i64> {
    match &request.operation {
        Operation::Update { mutation: Mutation::Add { delta }, want, .. } if want.after && !want.before => {
            Some(*delta)
        }
        _ => None,
    }
}

impl Sum {
    /// True if [`Sum::new`] takes the request.
    pub fn is_addition(request: &Request) -> bool {
        delta_of(request).is_some()
    }

    /// A sum of one addition, which took `bytes` to ask for. `None`: it is something else.
    pub fn new(request: Request, reply: Asked, bytes: usize) -> Option<Sum> {
        let first = Part { delta: delta_of(&request)?, reply };
        Some(Sum { request, first, rest: Vec::new(), bytes, one_by_one: None })
    }

    /// Takes one more addition to the same counter; false if it cannot go together with these.
    pub fn join(&mut self, request: &Request, reply: Asked, bytes: usize) -> bool {
        let (Some(sum), Some(delta)) = (delta_of(&self.request), delta_of(request)) else { return false };
        let is_one_way = sum >= 0 && delta >= 0 || sum <= 0 && delta <= 0;
        let Some(together) = sum.checked_add(delta).filter(|_| is_one_way) else { return false };
        self.set_delta(delta);
        if self.request != *request {
            self.set_delta(sum);
            return false;
        }
        self.set_delta(together);
        self.rest.push(Part { delta, reply });
        self.bytes += bytes;
        true
    }

    fn set_delta(&mut self, new: i64) {
        if let Operation::Update { mutation: Mutation::Add { delta }, .. } = &mut self.request.operation {
            *delta = new;
        }
    }

    /// How many additions these are.
    pub fn len(&self) -> usize {
        1 + self.rest.len()
    }

    /// What asks for all of them.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The one addition of a sum of one: its request, and what to do with its answer.
    pub fn into_one(self) -> (Request, Asked) {
        (self.request, self.first.reply)
    }

    fn parts(&self) -> impl DoubleEndedIterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Takes the answer to the request.
    pub fn answer(&mut self, answer: Answer, now_ms: u64) -> Next {
        if let Some(mut replies) = self.one_by_one.take() {
            let part = self.parts().nth(replies.len()).expect("one reply for each part");
            replies.push(part.reply.0.reply(answer, now_ms));
            return self.go_on(replies);
        }
        match answer {
            Ok(reply) => {
                let mut number = number_after(reply);
                let mut replies = Vec::with_capacity(self.len());
                for part in self.parts().rev() {
                    let (finish, protocol, mark) = part.reply;
                    replies.push((finish.number(number), protocol, mark));
                    number = number.wrapping_sub(part.delta);
                }
                replies.reverse();
                Next::Done(replies)
            }
            Err(ClientError::Mutation(MutationError::WouldOverflow)) => self.go_on(Vec::new()),
            Err(error) => Next::Done(
                self.parts()
                    .map(|part| part.reply)
                    .map(|(finish, protocol, mark)| {
                        (finish.reply(Err(error.clone()), now_ms), protocol, mark)
                    })
                    .collect(),
            ),
        }
    }

    /// Makes the next addition by itself, behind as many as there are replies.
    fn go_on(&mut self, replies: Vec<Value>) -> Next {
        let next = self.parts().nth(replies.len()).map(|part| part.delta);
        match next {
            Some(delta) => {
                self.set_delta(delta);
                self.one_by_one = Some(replies);
                Next::Ask(self.request.clone())
            }
            None => {
                let replies = replies.into_iter().zip(self.parts());
                let reply = |(value, part): (Value, &Part)| (value, part.reply.1, part.reply.2);
                Next::Done(replies.map(reply).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use oort_core::types::ObjectKey;

    use super::*;
    use crate::commands::session::Session;
    use crate::commands::stats::{Clerk, Stats};
    use crate::commands::strings::addition;
    use crate::commands::Started;
    use crate::connection::{Connection, Listings, Reach, Requests, Submission};
    use crate::resp::request::Limits;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(b"b", name.as_bytes()).unwrap()
    }

    fn remote(request: &Request) -> Reach {
        crate::connection::reach_of(request, |_| true)
    }

    /// A connection and the counters behind it.
    struct Client {
        connection: Connection,
        stats: Stats,
        counter: oort_core::object::Object,
        dots: u64,
        /// What each request added.
        asked: Vec<i64>,
        submissions: Vec<Submission>,
    }

    impl Client {
        fn new(start: &str) -> Client {
            let session = Session::new(1, "127.0.0.1:1".into(), String::new(), 0);
            let connection = Connection::new(session, Limits::default(), Listings::default());
            let counter = oort_core::object::Object::default();
            let (asked, submissions) = (Vec::new(), Vec::new());
            let mut client =
                Client { connection, stats: Stats::default(), counter, dots: 0, asked, submissions };
            client.apply(Mutation::store(start.to_owned())).unwrap();
            client
        }

        fn apply(&mut self, mutation: Mutation) -> Result<bool, MutationError> {
            use oort_core::mutation::Circumstances;
            self.dots += 1;
            let dot = oort_core::causality::Dot { counter: self.dots, actor: oort_core::types::ActorId(1) };
            let given = Circumstances { wall_ms: 1, value_bytes_max: 100, default_ttl_ms: None };
            mutation.apply(&mut self.counter, dot, given)
        }

        fn add(&mut self, deltas: &[i64]) {
            for &delta in deltas {
                let (request, finish) = addition(key("counter"), delta);
                let clerk = Clerk { stats: &self.stats, now_us: 0 };
                let submission = self.connection.accept(Started::One { request, finish }, remote, clerk);
                self.submissions.extend(submission);
                while let Some(submission) = self.connection.release(remote, clerk) {
                    self.submissions.push(submission);
                }
            }
        }

        /// Answers all that is asked until nothing is, and returns what was written to the client.
        fn run(&mut self) -> String {
            loop {
                let clerk = Clerk { stats: &self.stats, now_us: 0 };
                self.submissions.extend(self.connection.release(remote, clerk));
                self.submissions.extend(self.connection.gathered(remote));
                let Some(submission) = self.submissions.pop() else { break };
                let Requests::One(request) = submission.requests else { panic!("one request") };
                self.asked.extend(delta_of(&request));
                let Operation::Update { mutation, .. } = request.operation else { panic!("an update") };
                let answer = self.apply(mutation).map_err(ClientError::Mutation).map(|applied| {
                    let after = Some(self.counter.clone());
                    let updated = oort_core::client::Updated { applied, before: None, after };
                    oort_core::client::Reply::Updated(updated)
                });
                self.submissions.extend(self.connection.answer(
                    submission.sequence,
                    0,
                    answer,
                    0,
                    Clerk { stats: &self.stats, now_us: 0 },
                ));
            }
            String::from_utf8(std::mem::take(&mut self.connection.output)).unwrap().replace("\r\n", " ")
        }
    }

    #[test]
    fn a_pipeline_of_additions_is_one_request() {
        let mut client = Client::new("10");
        client.add(&[1, 1, 5, 0]);
        assert_eq!(client.run(), ":11 :12 :17 :17 ");
        assert_eq!(client.asked, [7]);
        assert!(client.connection.is_idle());
        assert_eq!(client.stats.totals().commands, 4, "each counts");
    }

    #[test]
    fn additions_of_both_signs_go_one_after_the_other() {
        let mut client = Client::new("10");
        client.add(&[1, 1, -5, -1, 3]);
        assert_eq!(client.run(), ":11 :12 :7 :6 :9 ");
        assert_eq!(client.asked, [2, -6, 3]);
    }

    #[test]
    fn of_a_sum_beyond_the_range_those_that_fit_are_made() {
        let mut client = Client::new(&(i64::MAX - 4).to_string());
        client.add(&[1, 9, 2, 2]);
        let refused = "-ERR increment or decrement would overflow";
        let max = i64::MAX;
        assert_eq!(client.run(), format!(":{} {refused} :{} {refused} ", max - 3, max - 1));
        assert_eq!(client.asked, [14, 1, 9, 2, 2]);
        client.add(&[i64::MIN, i64::MIN]);
        assert_eq!(client.run(), format!(":-2 {refused} "));
    }

    #[test]
    fn an_error_is_answered_to_each() {
        let mut client = Client::new("x");
        client.add(&[1, 1]);
        let refused = "-ERR value is not an integer or out of range";
        assert_eq!(client.run(), format!("{refused} {refused} "));
    }

    #[test]
    fn what_follows_is_answered_behind_and_keys_do_not_mix() {
        let mut client = Client::new("0");
        client.add(&[1, 1]);
        let clerk = Clerk { stats: &client.stats, now_us: 0 };
        let submission = client.connection.accept(Started::Reply(Value::OK), remote, clerk);
        assert!(submission.is_some(), "the sum is asked for");
        let (request, finish) = addition(key("other"), 1);
        let asked = (finish, Protocol::Resp2, Mark::NONE);
        let mut sum = Sum::new(request.clone(), asked, 1).unwrap();
        assert!(!sum.join(&addition(key("counter"), 1).0, asked, 1));
        assert!(sum.join(&request, asked, 1));
        assert_eq!((delta_of(sum.request()), sum.len(), sum.bytes), (Some(2), 2, 2));
    }
}
