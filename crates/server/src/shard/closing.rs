//! Ending client connections in time: after `QUIT`, and after bytes that were no command.
//!
//! What is owed is written first, to a client that takes it. One that was refused is then told that nothing more comes,
//! and has [`LINGER_US`] to read why: closing a socket before it was read empty throws away what is on its way to the
//! client. After that the socket is gone in both directions, whatever the client still sends.

use std::net::Shutdown;

use super::endpoint::{Endpoint, Kind};
use super::Shard;

/// A closing client that takes nothing of its last replies for so long, in microseconds, is cut off.
const UNREAD_US_MAX: u64 = 10_000_000;
/// How long a refused client's bytes are still thrown away after its last reply was written, in microseconds.
const LINGER_US: u64 = 800_000;

/// A client that is to be closed: when, in which slot, and its session.
pub(super) type Closing = (u64, usize, u64);

impl Shard {
    /// Sees how far a client is with its end: sets or moves the time when it is closed.
    ///
    /// Returns that time's entry for the table of all, and the one it takes the place of.
    pub(super) fn part_with(
        endpoint: &mut Endpoint,
        slot: usize,
        now_us: u64,
    ) -> Option<(Closing, Option<Closing>)> {
        let Kind::Client(client) = &mut endpoint.kind else { return None };
        if !client.is_closing || !client.is_answered() {
            return None;
        }
        let unread = client.output.len();
        let has_moved = client.unread_when_parting.is_none_or(|before| unread < before);
        if !has_moved {
            return None;
        }
        let wait_us = if unread == 0 { LINGER_US } else { UNREAD_US_MAX };
        if unread == 0 {
            // It may have gone away already.
            let _ = endpoint.stream.shutdown(Shutdown::Write);
        }
        let session = client.session.id;
        let before = client.closed_at_us.map(|at_us| (at_us, slot, session));
        client.unread_when_parting = Some(unread);
        client.closed_at_us = Some(now_us + wait_us);
        Some(((now_us + wait_us, slot, session), before))
    }

    /// Closes the clients whose time has come.
    pub(super) fn close_overdue(&mut self) {
        let now_us = self.clocks.now.get().mono_us;
        while let Some(&due) = self.closing.first().filter(|(at_us, ..)| *at_us <= now_us) {
            self.closing.remove(&due);
            let (_, slot, session) = due;
            let endpoint = self.endpoints.get(slot).and_then(Option::as_ref);
            let is_still_there = endpoint.is_some_and(
                |endpoint| matches!(&endpoint.kind, Kind::Client(client) if client.session.id == session),
            );
            if is_still_there {
                self.close(slot);
            }
        }
    }

    /// When the next client is to be closed, in microseconds of the monotonic clock.
    pub(super) fn next_close_us(&self) -> u64 {
        self.closing.first().map_or(u64::MAX, |(at_us, ..)| *at_us)
    }
}
