//! The clients of the loop: running what they send, and bounding what they make the node hold.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpStream;
use oort_core::client::Request;
use oort_core::node::Input;
use tracing::warn;

use super::endpoint::Kind;
use super::inspector::Inspector;
use super::{Owner, Shard};
use crate::commands::session::Session;
use crate::commands::stats::Clerk;
use crate::commands::table::Group;
use crate::connection::{reach_of, Connection, Requests, Submission};
use crate::latency::{Began, Kind as Asked};

impl Shard {
    pub(super) fn accept_client(&mut self, stream: TcpStream, address: SocketAddr) {
        if self.numbers.clients >= self.options.connections_max {
            self.numbers.rejected += 1;
            // Best effort: a client that cannot take one line is told nothing.
            let _ = io::Write::write(&mut &stream, b"-ERR max number of clients reached\r\n");
            return;
        }
        self.numbers.clients += 1;
        self.numbers.accepted += 1;
        let local = stream.local_addr().map_or(String::new(), |local| local.to_string());
        let id = self.numbers.next_session;
        self.numbers.next_session += 1;
        let mut session = Session::new(id, address.to_string(), local, self.time().wall_ms);
        session.set_node(self.node.id());
        self.add(
            stream,
            Kind::Client(Box::new(Connection::new(session, self.options.limits, self.listings.clone()))),
        );
    }

    pub(super) fn with_client(&mut self, slot: usize, run: impl FnOnce(&mut Shard, &mut Connection)) {
        let Some(mut endpoint) = self.endpoints.get_mut(slot).and_then(Option::take) else { return };
        if let Kind::Client(client) = &mut endpoint.kind {
            run(self, client);
        }
        self.endpoints[slot] = Some(endpoint);
    }

    /// Runs the commands a client has sent, as far as they may run now.
    pub(super) fn run_client(&mut self, slot: usize, client: &mut Connection) {
        loop {
            let now = self.time();
            let node = &self.node;
            let reach = |request: &Request| reach_of(request, |key| node.coordinates(key));
            let clerk = Clerk { stats: &self.stats, now_us: now.mono_us };
            let submission = match client.release(reach, clerk) {
                Some(submission) => Some(submission),
                None if !client.is_ready() => match client.gathered(reach) {
                    None => break,
                    gathered => gathered,
                },
                None => match client.next_command() {
                    Ok(Some(command)) => {
                        self.numbers.commands += 1;
                        let view = Inspector { shard: self };
                        let started =
                            crate::commands::start(&mut client.session, command, &view, now.wall_ms);
                        client.mark = client.session.mark.at(now.mono_us);
                        let clerk = Clerk { stats: &self.stats, now_us: now.mono_us };
                        client.accept(started, reach, clerk)
                    }
                    Ok(None) => match client.gathered(reach) {
                        None => break,
                        gathered => gathered,
                    },
                    Err(error) => client.refuse(error, reach, clerk),
                },
            };
            if let Some(submission) = submission {
                // Gathered additions are submitted when the next command has already begun.
                let family = if submission.is_addition() { Group::String } else { client.session.family };
                let began = Began { at_us: now.mono_us, family: family as usize };
                self.submit(slot, client, submission, began);
            }
        }
        if client.is_paused && !client.has_unread() {
            client.is_paused = false;
            self.resumed.push(slot);
        }
        self.settle(slot, client);
    }

    /// Notes what a client takes, and whether it has something to write.
    fn settle(&mut self, slot: usize, client: &mut Connection) {
        client.charge(&mut self.client_bytes);
        if !client.output.is_empty() || client.is_over() {
            self.dirty.push(slot);
        }
    }

    /// A reply came for a client.
    pub(super) fn answered(&mut self, slot: usize, client: &mut Connection) {
        self.settle(slot, client);
        if client.is_waiting() {
            self.unread.push(slot);
        }
    }

    /// Has listings that waited for others try again.
    pub(super) fn resume_listings(&mut self) {
        if !self.listings.is_free_again() {
            return;
        }
        for (slot, endpoint) in self.endpoints.iter().enumerate() {
            let Some(Kind::Client(client)) = endpoint.as_ref().map(|endpoint| &endpoint.kind) else {
                continue;
            };
            if client.holds_listing() {
                self.unread.push(slot);
            }
        }
    }

    /// Cuts off clients while all together take more memory than they may: those that take most first, and those with
    /// `CLIENT NO-EVICT ON` last.
    pub(super) fn evict(&mut self) {
        while self.client_bytes > self.options.client_bytes_max {
            let clients = self.endpoints.iter().enumerate().filter_map(|(slot, endpoint)| {
                let Kind::Client(client) = &endpoint.as_ref()?.kind else { return None };
                Some((!client.session.no_evict, client.charged, slot))
            });
            let Some((_, bytes, slot)) = clients.max() else { return };
            warn!(bytes, "clients take too much memory: the one that takes most is cut off");
            self.numbers.evicted += 1;
            self.close(slot);
        }
    }

    pub(super) fn submit(
        &mut self,
        slot: usize,
        client: &mut Connection,
        submission: Submission,
        began: Began,
    ) {
        let (session, sequence) = (client.session.id, submission.sequence);
        let loaded_before = self.node.loaded_bytes();
        let mut ask = |index, request: Request| {
            let kind = Asked::of(&request);
            let id = self.owners.insert(Owner::Client { slot, session, sequence, index, kind, began });
            self.node.step(self.clocks.now.get(), Input::Request { id, request }, &mut self.out);
        };
        match submission.requests {
            Requests::One(request) => ask(0, request),
            Requests::Many(requests) => {
                requests.into_iter().enumerate().for_each(|(i, request)| ask(i, request))
            }
        }
        client.note_loaded(sequence, (self.node.loaded_bytes() - loaded_before) as usize);
    }
}
