//! One socket of the loop: a Redis client, a peer that dialled us, or a peer we dialled.
//!
//! A link between two nodes is two connections, each used in one direction after the greeting. So neither side has to
//! agree on who keeps which connection, and a dead peer shows on the connection that matters: our own.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use bytes::BytesMut;
use mio::net::TcpStream;

use crate::connection::{Connection, INPUT_BYTES_KEPT};

/// Bytes taken from one socket in one turn, at most: others wait too.
const READ_BYTES_MAX: usize = 1 << 20;
/// A message that a peer's system has not taken after so long, in milliseconds, is lost with its connection. Deleted
/// objects are forgotten on that ground, see `docs/deletes.md`.
#[cfg(target_os = "linux")]
const MESSAGE_MS_MAX: u32 = 30_000;
/// An output buffer larger than this is given back once it is written.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// What reading or writing a socket came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Nothing more for now.
    Drained,
    /// There is more to read.
    More,
    /// The other side will send nothing more, but may still read.
    Ended,
    Closed,
}

/// A socket with what it is for.
pub struct Endpoint {
    pub stream: TcpStream,
    pub kind: Kind,
    /// Bytes to write, for peers; a client has its own.
    pub output: Vec<u8>,
    written: usize,
    /// Bytes read and written since somebody took note.
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// What a socket is for.
pub enum Kind {
    Client(Box<Connection>),
    Inbound(Inbound),
    Outbound(Outbound),
}

/// A connection that a peer opened: it sends, we listen.
pub struct Inbound {
    pub address: SocketAddr,
    /// Known once it has greeted.
    pub peer: Option<oort_core::types::NodeId>,
    pub input: BytesMut,
}

impl Inbound {
    pub fn new(address: SocketAddr) -> Inbound {
        Inbound { address, peer: None, input: BytesMut::new() }
    }
}

/// A connection that we opened: we send, the peer only greets.
pub struct Outbound {
    /// The greeting was answered.
    pub is_open: bool,
    pub input: BytesMut,
}

impl Outbound {
    pub fn new() -> Outbound {
        Outbound { is_open: false, input: BytesMut::new() }
    }
}

impl Endpoint {
    pub fn new(stream: TcpStream, kind: Kind) -> Endpoint {
        #[cfg(target_os = "linux")]
        if !matches!(kind, Kind::Client(_)) {
            // If the system refuses, its own limit holds: some minutes.
            let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, MESSAGE_MS_MAX);
        }
        Endpoint { stream, kind, output: Vec::new(), written: 0, read_bytes: 0, written_bytes: 0 }
    }

    /// Reads what is there, through `scratch`, into the input; from a refused client into nothing. `is_ended`: the
    /// other side is known to send nothing more, so the end is read too.
    pub fn read(&mut self, scratch: &mut [u8], is_ended: bool) -> Flow {
        let mut input = match &mut self.kind {
            Kind::Client(client) if client.is_refused => None,
            Kind::Client(client) if client.is_closing => return Flow::Drained,
            Kind::Client(client) if client.input.len() >= INPUT_BYTES_KEPT && !client.is_ready() => {
                client.is_paused = true;
                return Flow::Drained;
            }
            Kind::Client(client) => Some(&mut client.input),
            Kind::Inbound(inbound) => Some(&mut inbound.input),
            Kind::Outbound(outbound) => Some(&mut outbound.input),
        };
        let mut total = 0;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Flow::Ended,
                Ok(bytes) => {
                    if let Some(input) = &mut input {
                        input.extend_from_slice(&scratch[..bytes]);
                    }
                    total += bytes;
                    self.read_bytes += bytes as u64;
                    // A short read means that the socket is empty.
                    if bytes < scratch.len() && !is_ended {
                        return Flow::Drained;
                    }
                    if total >= READ_BYTES_MAX {
                        return Flow::More;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Flow::Drained,
                    io::ErrorKind::Interrupted => {}
                    _ => return Flow::Closed,
                },
            }
        }
    }

    /// Writes what is waiting, as much as the socket takes.
    pub fn flush(&mut self) -> Flow {
        let output = match &mut self.kind {
            Kind::Client(client) => &mut client.output,
            _ => &mut self.output,
        };
        while self.written < output.len() {
            match self.stream.write(&output[self.written..]) {
                Ok(0) => return Flow::Closed,
                Ok(bytes) => {
                    self.written += bytes;
                    self.written_bytes += bytes as u64;
                }
                Err(error) => match error.kind() {
                    // Not connected: a dialled socket whose connection is under way.
                    io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected => {
                        output.drain(..self.written);
                        self.written = 0;
                        return Flow::Drained;
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => return Flow::Closed,
                },
            }
        }
        self.written = 0;
        output.clear();
        if output.capacity() > KEPT_BYTES_MAX {
            *output = Vec::new();
        }
        Flow::Drained
    }
}
