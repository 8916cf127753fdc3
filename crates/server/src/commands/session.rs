//! What a connection remembers between commands.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use oort_core::active::Caller;
use oort_core::bucket::DEFAULT_BUCKET;
use oort_core::types::NodeId;

use super::stats::Mark;
use super::table::Group;
use crate::resp::Protocol;

/// Buckets that `SELECT` reaches: `default` as 0, and those named `1` to `15`. As many as Redis has by default.
///
/// `FLUSHALL` looks through the whole ring once for each, so more of them make it slower.
pub const DATABASES: u16 = 16;
/// The longest name a client may give itself, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 1024;

/// One connection's state.
#[derive(Clone, Debug)]
pub struct Session {
    /// Unique on this node, never used again.
    pub id: u64,
    /// The client's address, `host:port`.
    pub address: String,
    /// The address the client connected to.
    pub local_address: String,
    /// Milliseconds since 1970.
    pub connected_ms: u64,
    pub name: Bytes,
    pub library_name: Bytes,
    pub library_version: Bytes,
    pub no_evict: bool,
    pub no_touch: bool,
    pub protocol: Protocol,
    /// What active objects see of the client.
    pub caller: Arc<Caller>,
    /// The command that was started last, for the counters.
    pub mark: Mark,
    /// A `MULTI` was refused: commands are not run until `EXEC` or `DISCARD`.
    pub(super) is_refusing: bool,
    replies: Replies,
    /// The chapter of the last command.
    pub family: Group,
    database: u16,
    bucket: Bytes,
    last_command: &'static str,
    last_ms: u64,
}

/// Whether commands are answered (`CLIENT REPLY`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replies {
    On,
    Off,
    /// Not this command (`CLIENT REPLY SKIP` itself), nor the next.
    SkipNext,
    /// Not this command.
    Skip,
}

impl Session {
    /// A connection that has just been accepted.
    pub fn new(id: u64, address: String, local_address: String, now_ms: u64) -> Session {
        Session {
            id,
            caller: Arc::new(seen_from(&address)),
            address,
            local_address,
            connected_ms: now_ms,
            name: Bytes::new(),
            library_name: Bytes::new(),
            library_version: Bytes::new(),
            no_evict: false,
            no_touch: false,
            protocol: Protocol::Resp2,
            mark: Mark::NONE,
            is_refusing: false,
            replies: Replies::On,
            family: Group::Connection,
            database: 0,
            bucket: Bytes::from_static(DEFAULT_BUCKET),
            last_command: "NULL",
            last_ms: now_ms,
        }
    }

    /// Forgets what the client set, as `RESET` does.
    pub fn reset(&mut self) {
        let fresh = Session::new(self.id, self.address.clone(), String::new(), self.connected_ms);
        let node = self.caller.node;
        *self = Session {
            address: std::mem::take(&mut self.address),
            local_address: std::mem::take(&mut self.local_address),
            library_name: std::mem::take(&mut self.library_name),
            library_version: std::mem::take(&mut self.library_version),
            last_command: self.last_command,
            last_ms: self.last_ms,
            mark: self.mark,
            ..fresh
        };
        Arc::make_mut(&mut self.caller).node = node;
    }

    /// The client has said which user it is.
    pub fn set_user(&mut self, user: &'static [u8]) {
        Arc::make_mut(&mut self.caller).user = Some(Bytes::from_static(user));
    }

    /// The client is connected to this node.
    pub fn set_node(&mut self, node: NodeId) {
        Arc::make_mut(&mut self.caller).node = Some(node);
    }

    /// The selected bucket.
    pub fn bucket(&self) -> &Bytes {
        &self.bucket
    }

    /// The number of the selected bucket.
    pub fn database(&self) -> u16 {
        self.database
    }

    /// Selects bucket `database`, which is below [`DATABASES`].
    pub fn select(&mut self, database: u16) {
        self.bucket = bucket_of(database);
        self.database = database;
    }

    /// Selects a bucket by name; [`Session::database`] stays.
    pub fn use_bucket(&mut self, name: Bytes) {
        self.bucket = name;
    }

    /// The last command that was started, in lower case.
    pub fn last_command(&self) -> &'static str {
        self.last_command
    }

    /// When the last command was started, in milliseconds since 1970.
    pub fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Sets whether this command's successors are answered.
    pub fn set_replies(&mut self, replies: Replies) {
        self.replies = replies;
    }

    /// Moves `CLIENT REPLY SKIP` on by a command.
    pub(super) fn begin_command(&mut self) {
        self.replies = match self.replies {
            Replies::SkipNext => Replies::Skip,
            Replies::Skip => Replies::On,
            other => other,
        };
    }

    /// True if the command that was just started must not be answered.
    pub(super) fn is_silent(&self) -> bool {
        self.replies != Replies::On
    }

    pub(super) fn note_command(&mut self, name: &'static str, now_ms: u64) {
        self.last_command = name;
        self.last_ms = now_ms;
    }
}

/// What is known of a client by its address alone.
fn seen_from(address: &str) -> Caller {
    let address: Option<SocketAddr> = address.parse().ok();
    Caller {
        ip: address.map(|address| address.ip().to_canonical().to_string()),
        port: address.map(|address| address.port()),
        ..Caller::default()
    }
}

/// The bucket that `SELECT database` means.
pub fn bucket_of(database: u16) -> Bytes {
    assert!(database < DATABASES, "database {database} of {DATABASES}");
    match database {
        0 => Bytes::from_static(DEFAULT_BUCKET),
        number => Bytes::from(number.to_string()),
    }
}
