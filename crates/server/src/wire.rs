//! The bytes between nodes: a greeting in each direction, then frames.
//!
//! ```text
//! greeting:  | "OORT" | protocol, 2 bytes | frame |
//! frame:     | length 4 | checksum 4 | body |        length of the body; checksum: low half of its XXH3
//! ```
//! Numbers are little-endian. The dialling node's greeting carries its postcard [`Hello`]; the answer's body starts
//! with 0 and the other's hello, or with 1 and a text that says why the link is refused, or with 2, that text and the
//! hello of the node that refuses. The six bytes before the first
//! frame never change, so that any two versions can refuse each other. Drawn at more length in `docs/wire.md`.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use oort_core::membership::{Hello, PROTOCOL};
use oort_core::message::Message;
use xxhash_rust::xxh3::xxh3_64;

/// The largest body of a frame, in bytes: an object at its limit, with room for a listing.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// The largest body of a greeting, in bytes. Whoever has not been greeted yet is a stranger.
const GREETING_BYTES_MAX: usize = 64 << 10;

const MAGIC: &[u8; 4] = b"OORT";
const PREAMBLE_BYTES: usize = 6;
const HEADER_BYTES: usize = 8;

/// Why a link is closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WireError {
    /// The first bytes are not a greeting.
    NotOort,
    Protocol {
        theirs: u16,
    },
    FrameLength {
        bytes: usize,
        limit_bytes: usize,
    },
    Checksum,
    /// A frame that is whole but cannot be read.
    Malformed {
        detail: String,
    },
    /// The other side will not have us, or we not it.
    Refused {
        why: String,
        /// The hello of the other side, if it sent one.
        by: Option<Box<Hello>>,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            WireError::NotOort => write!(f, "the other side does not speak the peer protocol"),
            WireError::Protocol { theirs } => {
                write!(
                    f,
                    "the other side speaks peer protocol version {theirs}, this node version {PROTOCOL}"
                )
            }
            WireError::FrameLength { bytes, limit_bytes } => {
                write!(f, "frame of {bytes} bytes, the limit is {limit_bytes}")
            }
            WireError::Checksum => write!(f, "frame with a wrong checksum"),
            WireError::Malformed { detail } => write!(f, "malformed frame: {detail}"),
            WireError::Refused { why, .. } => write!(f, "refused: {why}"),
        }
    }
}

impl std::error::Error for WireError {}

/// Appends a frame around what `body` appends.
fn append_frame(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    body(out);
    let body = start + HEADER_BYTES;
    let length = (out.len() - body) as u32;
    let checksum = xxh3_64(&out[body..]) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..body].copy_from_slice(&checksum.to_le_bytes());
}

/// Appends a message in its frame. Returns false, appending nothing, if it is larger than a frame may be.
pub fn append_message(out: &mut Vec<u8>, message: &Message) -> bool {
    let start = out.len();
    append_frame(out, |out| message.encode(out));
    let fits = out.len() - start <= FRAME_BYTES_MAX + HEADER_BYTES;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// Appends the dialling side's greeting.
pub fn append_hello(out: &mut Vec<u8>, hello: &Hello) {
    append_greeting(out, hello.protocol, &encode_hello(hello));
}

/// Appends the answer to a greeting: this node's hello, or why the link is refused.
pub fn append_answer(out: &mut Vec<u8>, answer: Result<&Hello, &str>) {
    let body = match answer {
        Ok(hello) => [&[0], &encode_hello(hello)[..]].concat(),
        Err(why) => [&[1], why.as_bytes()].concat(),
    };
    append_greeting(out, PROTOCOL, &body);
}

/// Appends the answer to a greeting that could be read but is refused: why, and by whom.
pub fn append_refusal(out: &mut Vec<u8>, why: &str, hello: &Hello) {
    let body = vec![2];
    let body = postcard::to_extend(&(why, hello), body).expect("writing to memory does not fail");
    append_greeting(out, PROTOCOL, &body);
}

fn append_greeting(out: &mut Vec<u8>, protocol: u16, body: &[u8]) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&protocol.to_le_bytes());
    append_frame(out, |out| out.extend_from_slice(body));
}

fn encode_hello(hello: &Hello) -> Vec<u8> {
    postcard::to_stdvec(hello).expect("writing to memory does not fail")
}

fn decode_hello(body: &[u8]) -> Result<Hello, WireError> {
    postcard::from_bytes(body).map_err(|error| WireError::Malformed { detail: format!("greeting: {error}") })
}

/// Takes the greeting's body off the front of `input`, once it is whole.
fn next_greeting(input: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    let known = input.len().min(MAGIC.len());
    if input[..known] != MAGIC[..known] {
        return Err(WireError::NotOort);
    }
    if input.len() < PREAMBLE_BYTES {
        return Ok(None);
    }
    let theirs = u16::from_le_bytes([input[4], input[5]]);
    if theirs != PROTOCOL {
        return Err(WireError::Protocol { theirs });
    }
    let mut rest = input.split_off(PREAMBLE_BYTES);
    match next_frame_up_to(&mut rest, GREETING_BYTES_MAX) {
        Ok(None) => {
            input.unsplit(rest);
            Ok(None)
        }
        other => {
            *input = rest;
            other
        }
    }
}

/// Reads the dialling side's greeting, once it is whole.
pub fn next_hello(input: &mut BytesMut) -> Result<Option<Hello>, WireError> {
    next_greeting(input)?.map(|body| decode_hello(&body)).transpose()
}

/// Reads the answer to this node's greeting, once it is whole. Errors: also [`WireError::Refused`].
pub fn next_answer(input: &mut BytesMut) -> Result<Option<Hello>, WireError> {
    let Some(body) = next_greeting(input)? else { return Ok(None) };
    match body.split_first() {
        Some((0, hello)) => decode_hello(hello).map(Some),
        Some((1, why)) => {
            Err(WireError::Refused { why: String::from_utf8_lossy(why).into_owned(), by: None })
        }
        Some((2, refusal)) => match postcard::from_bytes::<(String, Hello)>(refusal) {
            Ok((why, hello)) => Err(WireError::Refused { why, by: Some(Box::new(hello)) }),
            Err(error) => Err(WireError::Malformed { detail: format!("refusal: {error}") }),
        },
        _ => Err(WireError::Malformed { detail: "empty answer".into() }),
    }
}

/// Takes the next message off the front of `input`, once it is whole. Its byte strings share the buffer's memory.
pub fn next_message(input: &mut BytesMut) -> Result<Option<Message>, WireError> {
    let Some(body) = next_frame_up_to(input, FRAME_BYTES_MAX)? else { return Ok(None) };
    match Message::decode(&body) {
        Ok(message) => Ok(Some(message)),
        Err(error) => Err(WireError::Malformed { detail: error.to_string() }),
    }
}

fn next_frame_up_to(input: &mut BytesMut, limit_bytes: usize) -> Result<Option<Bytes>, WireError> {
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let bytes = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let checksum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if bytes > limit_bytes {
        return Err(WireError::FrameLength { bytes, limit_bytes });
    }
    if input.len() < HEADER_BYTES + bytes {
        return Ok(None);
    }
    input.advance(HEADER_BYTES);
    let body = input.split_to(bytes).freeze();
    match xxh3_64(&body) as u32 == checksum {
        true => Ok(Some(body)),
        false => Err(WireError::Checksum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oort_core::bucket::BucketProperties;
    use oort_core::client::{Operation, Scan};
    use oort_core::config::Addresses;
    use oort_core::detector::Health;
    use oort_core::membership::Member;
    use oort_core::message::{Control, ReadOutcome, WriteOutcome};
    use oort_core::ring::Founding;
    use oort_core::types::{NodeId, ObjectKey, Position};
    use proptest::prelude::*;

    fn hello() -> Hello {
        let addresses =
            Addresses { peer: "127.0.0.1:1".into(), redis: "127.0.0.1:2".into(), http: "127.0.0.1:3".into() };
        let member = Member { version: 3, ..Member::new(NodeId(7), "n".into(), addresses) };
        Hello {
            protocol: PROTOCOL,
            cluster: "c".into(),
            founding: Some(Founding(9)),
            session: 8,
            is_settled: true,
            member,
            wall_ms: 5,
        }
    }

    #[test]
    fn greetings_come_back_however_they_are_cut() {
        let mut bytes = Vec::new();
        append_hello(&mut bytes, &hello());
        for cut in 0..bytes.len() {
            let mut input = BytesMut::from(&bytes[..cut]);
            assert_eq!(next_hello(&mut input), Ok(None), "cut at {cut}");
            input.extend_from_slice(&bytes[cut..]);
            assert_eq!(next_hello(&mut input), Ok(Some(hello())));
            assert!(input.is_empty());
        }
        let mut refusal = Vec::new();
        append_answer(&mut refusal, Err("wrong cluster name"));
        let why = "wrong cluster name".to_string();
        let refused = WireError::Refused { why: why.clone(), by: None };
        assert_eq!(next_answer(&mut BytesMut::from(&refusal[..])), Err(refused));
        let mut refusal = Vec::new();
        append_refusal(&mut refusal, &why, &hello());
        let refused = WireError::Refused { why, by: Some(Box::new(hello())) };
        assert_eq!(next_answer(&mut BytesMut::from(&refusal[..])), Err(refused));
    }

    /// If this fails, write the new sum here, and give [`PROTOCOL`] the next number if a release has this one: programs
    /// that call different bytes by one number take each other's frames for malformed, or for something else.
    #[test]
    fn other_bytes_have_another_number() {
        let (task, stamp, term, base) = (1, 2, 3, 4);
        let (key, object) = (ObjectKey::new(b"b", b"k").unwrap(), Bytes::from_static(b"object"));
        let scan =
            Scan { bucket: "b".into(), from: Position(5), to: Position(6), limit: 7, count_only: true };
        let properties = BucketProperties::default();
        let operation = Operation::SetBucket { bucket: "b".into(), properties };
        let messages = [
            Message::Write {
                task,
                key: key.clone(),
                object: object.clone(),
                base,
                hint_for: Some(NodeId(8)),
                stamp,
                term,
            },
            Message::Claim { task, key: key.clone(), object: object.clone(), base, term, stamp },
            Message::Written { task, outcome: WriteOutcome::Stale },
            Message::Read { task, key: key.clone(), have: 9, stamp },
            Message::ReadResult { task, outcome: ReadOutcome::Object(object) },
            Message::Control(Control::Forward { task, operation, left_us: 10, sent_us: 11, holds: 12 }),
            Message::Control(Control::ScanRange { task, part: 13, scan, stamp }),
            Message::Control(Control::Forget { rows: vec![(key, 14)], stamp }),
            Message::Control(Control::Opinion { task, health: Health::Down }),
        ];
        let mut bytes = Vec::new();
        let member = Member { protocol: 0, ..hello().member };
        append_greeting(&mut bytes, 0, &encode_hello(&Hello { protocol: 0, member, ..hello() }));
        messages.iter().for_each(|message| assert!(append_message(&mut bytes, message)));
        assert_eq!((PROTOCOL, xxh3_64(&bytes)), (8, 16_071_735_084_799_795_598));
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        assert_eq!(next_hello(&mut BytesMut::from(&b"GET / HT"[..])), Err(WireError::NotOort));
        let mut newer = Vec::new();
        append_greeting(&mut newer, PROTOCOL + 1, b"whatever that will be");
        let theirs = PROTOCOL + 1;
        assert_eq!(next_hello(&mut BytesMut::from(&newer[..])), Err(WireError::Protocol { theirs }));
    }

    #[test]
    fn a_flipped_bit_and_a_huge_length_are_refused() {
        let message = Message::Written { task: 1 << 40, outcome: WriteOutcome::Durable };
        let mut bytes = Vec::new();
        assert!(append_message(&mut bytes, &message));
        assert_eq!(next_message(&mut BytesMut::from(&bytes[..])), Ok(Some(message)));
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(next_message(&mut BytesMut::from(&bytes[..])), Err(WireError::Checksum));
        let huge = [0xff; 16];
        assert!(matches!(next_message(&mut BytesMut::from(&huge[..])), Err(WireError::FrameLength { .. })));
    }

    proptest! {
        #[test]
        fn messages_come_back(task in any::<u64>(), key in prop::collection::vec(any::<u8>(), 1..64),
                              value in prop::collection::vec(any::<u8>(), 0..512), owner in any::<Option<u64>>()) {
            let key = ObjectKey::new(b"b", &key).unwrap();
            let object = Bytes::from(value);
            let hint_for = owner.map(NodeId);
            let messages = [
                Message::Write { task, key: key.clone(), object: object.clone(), base: 5, hint_for, stamp: 6, term: 0 },
                Message::Read { task, key, have: task, stamp: 6 },
                Message::ReadResult { task, outcome: ReadOutcome::Object(object) },
            ];
            let mut bytes = Vec::new();
            messages.iter().for_each(|message| assert!(append_message(&mut bytes, message)));
            let mut input = BytesMut::from(&bytes[..]);
            for message in messages {
                prop_assert_eq!(next_message(&mut input), Ok(Some(message)));
            }
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let body = Bytes::from(bytes.clone());
            let _ = Message::decode(&body);
            let _ = next_message(&mut BytesMut::from(&bytes[..]));
            let _ = next_hello(&mut BytesMut::from(&bytes[..]));
            let mut greeting = Vec::new();
            append_greeting(&mut greeting, PROTOCOL, &bytes);
            let _ = next_answer(&mut BytesMut::from(&greeting[..]));
        }
    }
}
