//! What nodes send each other, and its bytes.
//!
//! The data path (write, read and their answers) is encoded by hand, everything else by postcard behind a kind byte.
//! Frames, lengths and checksums are the transport's business, see `docs/wire.md`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::client::{ClientError, Operation, Reply, Scan};
use crate::codec::{DecodeError, Reader, Writer};
use crate::detector::Health;
use crate::membership::Gossip;
use crate::types::{NodeId, ObjectKey};

/// Pairs a message with its answer: the sender's number for what it is doing, unique while it runs.
pub type TaskId = u64;

/// Everything one node says to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Merge `object` into what you hold and tell me when it is durable.
    Write {
        task: TaskId,
        key: ObjectKey,
        object: Bytes,
        /// Hash of the object that this one was made from: whoever holds just that need not merge. 0: unknown.
        base: u64,
        hint_for: Option<NodeId>,
        /// Of the coordinator's ring.
        stamp: u64,
        /// The term of the active object's home that writes it, if it must be refused where it has not seen all that is
        /// held; 0: it is merged.
        term: u64,
    },
    /// This node is the home of an active object from now on, in the term `term`, and knows what `object` has seen,
    /// which is an object without versions. If you hold nothing else, and have promised yourself to no later term,
    /// refuse all earlier ones from now on.
    Claim {
        task: TaskId,
        key: ObjectKey,
        object: Bytes,
        /// Hash of the row that was loaded, as in a write.
        base: u64,
        term: u64,
        /// Of the home's ring.
        stamp: u64,
    },
    /// The answer to a write or a claim.
    Written {
        task: TaskId,
        outcome: WriteOutcome,
    },
    /// What do you hold? If its bytes hash to `have`, say only that.
    Read {
        task: TaskId,
        key: ObjectKey,
        have: u64,
        /// Of the coordinator's ring.
        stamp: u64,
    },
    /// The answer to a read.
    ReadResult {
        task: TaskId,
        outcome: ReadOutcome,
    },
    Control(Control),
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteOutcome {
    Durable,
    /// The disk refuses writes.
    ReadOnly,
    /// The object's dots lie absurdly far ahead of the replica's clock.
    ClockSkew,
    /// The bytes are no object.
    Malformed,
    /// An active object without its code and state, of which the replica is to hold a copy.
    Lacking,
    /// The coordinator's ring is older than the replica's: other nodes may be the ones to ask.
    Stale,
    /// The replica holds something that this write of a home has not seen, or knows a later home. Nothing was taken in.
    /// `promised`: the term of the home that it knows, if that is later, else 0.
    Uncovered {
        promised: u64,
    },
}

/// What a replica holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadOutcome {
    /// Bytes with the hash that was asked about.
    Same,
    /// These bytes.
    Object(Bytes),
    Missing,
    /// The row is corrupt.
    Failed,
    /// The coordinator's ring is older than the replica's: other nodes may be the ones to ask.
    Stale,
}

/// What one replica holds in a range, or under some keys.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Listed {
    /// Keys with their causality: the live ones of a range, or those of the keys asked for that are held. Empty if only
    /// the count was asked.
    pub rows: Vec<(ObjectKey, Bytes)>,
    /// Number of live keys.
    pub count: u64,
    /// Of all rows counted: replicas whose live rows are the same say the same. 0 if there are none, or not asked.
    pub hash: u64,
    /// The last position that this is complete for.
    pub done_to: u64,
    /// Rows looked at, live or not, of this bucket or others.
    pub visited: u32,
}

/// Messages off the data path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Control {
    Gossip(Gossip),
    /// Coordinate this for me. Of what a call is about I hold an object with the hash `holds`; 0: I do not say.
    Forward {
        task: TaskId,
        operation: Operation,
        /// What was left of its time limit when it was sent.
        left_us: u64,
        /// When that was, by the sender's `mono_us`.
        sent_us: u64,
        holds: u64,
    },
    /// The answer to a forward.
    Forwarded {
        task: TaskId,
        result: Result<Reply, ClientError>,
    },
    /// List the live rows of a range. `part` numbers the questions of one task.
    ScanRange {
        task: TaskId,
        part: u32,
        scan: Scan,
        /// Of the coordinator's ring.
        stamp: u64,
    },
    /// What do you hold under these keys, which others list and you did not?
    ScanKeys {
        task: TaskId,
        part: u32,
        keys: Vec<ObjectKey>,
        stamp: u64,
    },
    /// The answer to either.
    ScanRows {
        task: TaskId,
        part: u32,
        listed: Listed,
    },
    /// The sums of all rows that we both replicate in a range of leaves of the hash tree, `from` to `to`, inclusive: of
    /// as many parts of it as there are sums. Without sums: all of mine are the same as yours.
    EntropySums {
        from: u32,
        to: u32,
        sums: Vec<u64>,
        stamp: u64,
    },
    /// My rows from `from` to `to`, a leaf of which our sums differ.
    EntropyRows {
        from: u64,
        to: u64,
        rows: Vec<(ObjectKey, u64)>,
        stamp: u64,
    },
    /// Do you hold, under each of these keys, just the object with this hash, of which no reader would see anything,
    /// and no hint; or nothing? See `collect`.
    AskDead {
        number: u64,
        rows: Vec<(ObjectKey, u64)>,
        stamp: u64,
    },
    /// The answer: the indexes of those that must not be forgotten.
    DeadAnswer {
        number: u64,
        refused: Vec<u16>,
    },
    /// Do you hold, whole and durably, the object with this hash under this key? It chose you for its copies, not me.
    AskWhole {
        key: ObjectKey,
        hash: u64,
        stamp: u64,
    },
    /// I do. Who does not is silent.
    Whole {
        key: ObjectKey,
        hash: u64,
        stamp: u64,
    },
    /// Every member holds just these or nothing, and did long ago: drop them.
    Forget {
        rows: Vec<(ObjectKey, u64)>,
        stamp: u64,
    },
    /// What rows do you have from `from` to `to`? Asked by a node whose ring has this stamp; yours must not be older.
    ListRange {
        task: TaskId,
        from: u64,
        to: u64,
        stamp: u64,
    },
    /// The answer.
    RangeRows {
        task: TaskId,
        page: RangePage,
    },
    /// An operator wants to give `node` up: can you reach it?
    AskOpinion {
        task: TaskId,
        node: NodeId,
    },
    /// The answer.
    Opinion {
        task: TaskId,
        health: Health,
    },
}

/// Rows of a range, in ring order: keys with the hashes of their objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RangePage {
    pub rows: Vec<(ObjectKey, u64)>,
    /// Of all objects together.
    pub bytes: u64,
    /// There are no other rows up to here, inclusive.
    pub done_to: u64,
    /// Requests of clients in flight at the node that lists.
    pub waiting: u32,
}

const WRITE: u8 = 1;
const WRITTEN: u8 = 2;
const READ: u8 = 3;
const READ_RESULT: u8 = 4;
const CONTROL: u8 = 5;
const CLAIM: u8 = 6;

/// Flags of a write: a hint for another node goes with it; it is a home's, and the number of its term follows.
const FOR_ANOTHER: u8 = 1;
const OF_A_HOME: u8 = 2;

impl Message {
    /// A write to an owner, whatever it holds.
    pub fn write(task: TaskId, key: ObjectKey, object: Bytes, stamp: u64) -> Message {
        Message::Write { task, key, object, base: 0, hint_for: None, stamp, term: 0 }
    }

    /// Appends the message's bytes. [`Message::decode`] reads them back.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let mut out = Writer(bytes);
        match self {
            Message::Write { task, key, object, base, hint_for, stamp, term } => {
                out.u8(WRITE);
                out.varint(*task);
                out.fixed(*stamp);
                out.bytes(key.row());
                out.bytes(object);
                out.fixed(*base);
                out.u8(hint_for.is_some() as u8 | if *term > 0 { OF_A_HOME } else { 0 });
                if let Some(owner) = hint_for {
                    out.fixed(owner.0);
                }
                if *term > 0 {
                    out.varint(*term);
                }
            }
            Message::Claim { task, key, object, base, term, stamp } => {
                out.u8(CLAIM);
                out.varint(*task);
                out.fixed(*stamp);
                out.bytes(key.row());
                out.bytes(object);
                out.fixed(*base);
                out.varint(*term);
            }
            Message::Written { task, outcome } => {
                out.u8(WRITTEN);
                out.varint(*task);
                out.u8(match outcome {
                    WriteOutcome::Durable => 0,
                    WriteOutcome::ReadOnly => 1,
                    WriteOutcome::ClockSkew => 2,
                    WriteOutcome::Malformed => 3,
                    WriteOutcome::Stale => 4,
                    WriteOutcome::Lacking => 5,
                    WriteOutcome::Uncovered { .. } => 6,
                });
                if let WriteOutcome::Uncovered { promised } = outcome {
                    out.varint(*promised);
                }
            }
            Message::Read { task, key, have, stamp } => {
                out.u8(READ);
                out.varint(*task);
                out.fixed(*stamp);
                out.bytes(key.row());
                out.fixed(*have);
            }
            Message::ReadResult { task, outcome } => {
                out.u8(READ_RESULT);
                out.varint(*task);
                match outcome {
                    ReadOutcome::Same => out.u8(0),
                    ReadOutcome::Missing => out.u8(1),
                    ReadOutcome::Failed => out.u8(2),
                    ReadOutcome::Stale => out.u8(4),
                    ReadOutcome::Object(object) => {
                        out.u8(3);
                        out.bytes(object);
                    }
                }
            }
            Message::Control(control) => {
                out.u8(CONTROL);
                postcard::to_io(control, &mut *out.0).expect("writing to memory does not fail");
            }
        }
    }

    /// Reads one message; its byte strings share the memory of `bytes`. Errors: anything `encode` never makes.
    pub fn decode(bytes: &Bytes) -> Result<Message, DecodeError> {
        let mut input = Reader::new(bytes);
        let message = match input.u8("kind")? {
            WRITE => {
                let task = input.varint("task")?;
                let stamp = input.fixed("stamp")?;
                let key = decode_key(&mut input)?;
                let (object, base) = (input.bytes("object")?, input.fixed("base")?);
                let flags = input.u8("hint")?;
                if flags & !(FOR_ANOTHER | OF_A_HOME) != 0 {
                    return Err(DecodeError::Invalid { field: "hint" });
                }
                let hint_for = match flags & FOR_ANOTHER {
                    0 => None,
                    _ => Some(NodeId(input.fixed("owner")?)),
                };
                let term = match flags & OF_A_HOME {
                    0 => 0,
                    _ => match input.varint("term")? {
                        0 => return Err(DecodeError::Invalid { field: "term" }),
                        term => term,
                    },
                };
                Message::Write { task, key, object, base, hint_for, stamp, term }
            }
            CLAIM => {
                let (task, stamp) = (input.varint("task")?, input.fixed("stamp")?);
                let (key, object) = (decode_key(&mut input)?, input.bytes("object")?);
                let (base, term) = (input.fixed("base")?, input.varint("term")?);
                Message::Claim { task, key, object, base, term, stamp }
            }
            WRITTEN => Message::Written {
                task: input.varint("task")?,
                outcome: match input.u8("outcome")? {
                    0 => WriteOutcome::Durable,
                    1 => WriteOutcome::ReadOnly,
                    2 => WriteOutcome::ClockSkew,
                    3 => WriteOutcome::Malformed,
                    4 => WriteOutcome::Stale,
                    5 => WriteOutcome::Lacking,
                    6 => WriteOutcome::Uncovered { promised: input.varint("promised term")? },
                    _ => return Err(DecodeError::Invalid { field: "write outcome" }),
                },
            },
            READ => Message::Read {
                task: input.varint("task")?,
                stamp: input.fixed("stamp")?,
                key: decode_key(&mut input)?,
                have: input.fixed("hash")?,
            },
            READ_RESULT => Message::ReadResult {
                task: input.varint("task")?,
                outcome: match input.u8("outcome")? {
                    0 => ReadOutcome::Same,
                    1 => ReadOutcome::Missing,
                    2 => ReadOutcome::Failed,
                    3 => ReadOutcome::Object(input.bytes("object")?),
                    4 => ReadOutcome::Stale,
                    _ => return Err(DecodeError::Invalid { field: "read outcome" }),
                },
            },
            CONTROL => {
                let rest = input.rest();
                let (control, left) = postcard::take_from_bytes(&rest)
                    .map_err(|_| DecodeError::Invalid { field: "control message" })?;
                if !left.is_empty() {
                    return Err(DecodeError::TrailingBytes { bytes: left.len() });
                }
                Message::Control(control)
            }
            _ => return Err(DecodeError::Invalid { field: "kind" }),
        };
        input.end()?;
        Ok(message)
    }
}

fn decode_key(input: &mut Reader) -> Result<ObjectKey, DecodeError> {
    ObjectKey::from_row(input.bytes("key")?).map_err(|_| DecodeError::Invalid { field: "key" })
}
