//! The words of the system as types: identities, times, positions, keys and limits.
//!
//! Bytes from outside become one of these once, at the edge; inside, an oversized key or a position without
//! its slot cannot be written down. Read `causality` next.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// The longest key, in bytes. The shortest is 1.
pub const KEY_BYTES_MAX: usize = 4096;
/// The longest bucket name, in bytes. The shortest is 1.
pub const BUCKET_BYTES_MAX: usize = 255;
/// The largest encoded object: all siblings, their causality and headers.
pub const OBJECT_BYTES_MAX: usize = 32 << 20;
/// The most siblings one object may hold before further siblings are refused.
pub const SIBLINGS_MAX: usize = 128;
/// Number of Redis Cluster hash slots: the top 14 bits of every position.
pub const SLOTS: u16 = 16384;

/// Names one member of the cluster. Drawn once, with the node's data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct NodeId(pub u64);

/// Names one unbroken memory of writes: a node's storage identity.
///
/// A node makes dots under one actor until it has forgotten any write it named (a corrupt row, a hint handed
/// over and dropped); then it takes a new actor. So whoever holds a dot of an actor knows all earlier dots of that
/// actor for the key, which is what lets a context be one number per actor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct ActorId(pub u64);

/// The two clocks, read once per turn of the loop and handed in with every step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Microseconds since an arbitrary start; never goes back. Deadlines are measured in it.
    pub mono_us: u64,
    /// Milliseconds since 1970 by the node's own clock, which may be wrong and may jump. Dots and expiries use it.
    pub wall_ms: u64,
}

/// A place on the 64-bit ring: `slot(key) << 50 | xxh3_64(key) >> 14`.
///
/// The top 14 bits are the key's Redis Cluster slot, so a slot is a contiguous range. Source: DESIGN §3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position(pub u64);

/// One of `Q` equal ranges of the ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Partition(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Low bits of positions that cursors of listings leave out: all keys that differ in no others share a page.
const CURSOR_SHIFT: u32 = 12;

impl Position {
    /// The place as a number below 2^52, which every client's numbers can carry; several positions share one.
    pub fn cursor(self) -> u64 {
        self.0 >> CURSOR_SHIFT
    }

    /// The first position with this [`Position::cursor`]; `None` for larger numbers.
    pub fn of_cursor(cursor: u64) -> Option<Position> {
        (cursor >> (u64::BITS - CURSOR_SHIFT) == 0).then_some(Position(cursor << CURSOR_SHIFT))
    }

    /// The first position that shares its cursor with this one.
    pub fn cursor_start(self) -> Position {
        Position(self.0 >> CURSOR_SHIFT << CURSOR_SHIFT)
    }

    /// The last position that shares its cursor with this one.
    pub fn cursor_end(self) -> Position {
        Position(self.0 | ((1 << CURSOR_SHIFT) - 1))
    }

    /// The position of `key`, whatever its bucket.
    pub fn of(key: &[u8]) -> Position {
        Position((slot(key) as u64) << 50 | xxh3_64(key) >> 14)
    }

    /// The Redis Cluster hash slot, 0 to 16383.
    pub fn slot(self) -> u16 {
        (self.0 >> 50) as u16
    }

    /// The first position of `slot`.
    pub fn first_of_slot(slot: u16) -> Position {
        Position((slot as u64) << 50)
    }

    /// The partition that holds this position when the ring has `partitions` of them, a power of two.
    pub fn partition(self, partitions: u16) -> Partition {
        assert!(partitions.is_power_of_two(), "{partitions} partitions: not a power of two");
        if partitions == 1 {
            return Partition(0);
        }
        Partition((self.0 >> (64 - partitions.trailing_zeros())) as u16)
    }
}

impl Partition {
    /// The first position of this partition in a ring of `partitions`.
    pub fn start(self, partitions: u16) -> Position {
        match partitions {
            1 => Position(0),
            _ => Position((self.0 as u64) << (64 - partitions.trailing_zeros())),
        }
    }

    /// The last position of this partition, inclusive.
    pub fn end(self, partitions: u16) -> Position {
        match self.0 as u32 + 1 == partitions as u32 {
            true => Position(u64::MAX),
            false => Position(Partition(self.0 + 1).start(partitions).0 - 1),
        }
    }
}

/// The Redis Cluster hash slot of `key`: CRC16 (XMODEM) of the key, or of its `{hash tag}` if that is not empty.
///
/// Source: the Redis Cluster specification, "Key distribution model".
pub fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&b| b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&b| b == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &b| (crc << 8) ^ CRC16[((crc >> 8) as u8 ^ b) as usize])
}

const CRC16: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// A bucket and a key, kept as the row they have in the store, so that rows sort by ring position.
///
/// ```text
/// | position, 8 bytes big-endian | bucket length, 1 byte | bucket | key |
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct ObjectKey(Bytes);

/// Why bytes from outside are no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KeyError {
    /// A key has 1 to [`KEY_BYTES_MAX`] bytes.
    KeyLength { bytes: usize },
    /// A bucket name has 1 to [`BUCKET_BYTES_MAX`] bytes.
    BucketLength { bytes: usize },
    /// The row is cut short, or longer than any key allows.
    MalformedRow,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            KeyError::KeyLength { bytes } => {
                write!(f, "key of {bytes} bytes: a key has 1 to {KEY_BYTES_MAX} bytes")
            }
            KeyError::BucketLength { bytes } => {
                write!(f, "bucket name of {bytes} bytes: a bucket name has 1 to {BUCKET_BYTES_MAX} bytes")
            }
            KeyError::MalformedRow => write!(f, "malformed row key"),
        }
    }
}

impl std::error::Error for KeyError {}

impl ObjectKey {
    /// Joins a bucket name and a key. Errors: either is empty or too long.
    pub fn new(bucket: &[u8], key: &[u8]) -> Result<ObjectKey, KeyError> {
        if bucket.is_empty() || bucket.len() > BUCKET_BYTES_MAX {
            return Err(KeyError::BucketLength { bytes: bucket.len() });
        }
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(KeyError::KeyLength { bytes: key.len() });
        }
        let mut row = Vec::with_capacity(9 + bucket.len() + key.len());
        row.extend_from_slice(&Position::of(key).0.to_be_bytes());
        row.push(bucket.len() as u8);
        row.extend_from_slice(bucket);
        row.extend_from_slice(key);
        Ok(ObjectKey(row.into()))
    }

    /// Reads a row as the store and the wire carry it. Errors: cut short, or too long.
    pub fn from_row(row: Bytes) -> Result<ObjectKey, KeyError> {
        let bucket_length = *row.get(8).ok_or(KeyError::MalformedRow)? as usize;
        if bucket_length == 0
            || row.len() < 10 + bucket_length
            || row.len() > 9 + bucket_length + KEY_BYTES_MAX
        {
            return Err(KeyError::MalformedRow);
        }
        Ok(ObjectKey(row))
    }

    /// A copy with bytes of its own. A key is often part of a message, all of which a clone would keep in memory.
    pub fn detached(&self) -> ObjectKey {
        ObjectKey(Bytes::copy_from_slice(&self.0))
    }

    /// The row's bytes.
    pub fn row(&self) -> &Bytes {
        &self.0
    }

    /// The place on the ring.
    pub fn position(&self) -> Position {
        Position(u64::from_be_bytes(self.0[..8].try_into().expect("a row has 8 bytes of position")))
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &[u8] {
        &self.0[9..9 + self.0[8] as usize]
    }

    /// The key within its bucket.
    pub fn key(&self) -> &[u8] {
        &self.0[9 + self.0[8] as usize..]
    }

    /// The key within its bucket, sharing the row's memory.
    pub fn key_bytes(&self) -> Bytes {
        self.0.slice(9 + self.0[8] as usize..)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.bucket().escape_ascii(), self.key().escape_ascii())
    }
}

impl TryFrom<Bytes> for ObjectKey {
    type Error = KeyError;
    fn try_from(row: Bytes) -> Result<ObjectKey, KeyError> {
        ObjectKey::from_row(row)
    }
}

impl From<ObjectKey> for Bytes {
    fn from(key: ObjectKey) -> Bytes {
        key.0
    }
}

/// A small seeded generator (SplitMix64) for jitter, gossip targets and new identities.
///
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number from 0 to `bound - 1`; `bound` is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// True `numerator` times in `denominator`.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// Puts the items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        // The values are what `CLUSTER KEYSLOT` answers in Redis 7.
        let cases: [(&[u8], u16); 6] = [
            (b"foo", 12182),
            (b"123456789", 12739),
            (b"{user1000}.following", slot(b"user1000")),
            (b"foo{}{bar}", slot(b"foo{}{bar}")),
            (b"foo{{bar}}zap", slot(b"{bar")),
            (b"foo{bar}{zap}", slot(b"bar")),
        ];
        for (key, want) in cases {
            assert_eq!(slot(key), want, "{}", key.escape_ascii());
        }
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }

    #[test]
    fn a_row_gives_back_its_parts_and_sorts_by_position() {
        let a = ObjectKey::new(b"carts", b"alice").unwrap();
        assert_eq!((a.bucket(), a.key()), (&b"carts"[..], &b"alice"[..]));
        assert_eq!(a.position(), Position::of(b"alice"));
        assert_eq!(a.position().slot(), slot(b"alice"));
        assert_eq!(ObjectKey::from_row(a.row().clone()), Ok(a));
        assert_eq!(ObjectKey::new(b"b", b""), Err(KeyError::KeyLength { bytes: 0 }));
        assert_eq!(ObjectKey::new(b"b", &[0; 4097]), Err(KeyError::KeyLength { bytes: 4097 }));
        assert_eq!(ObjectKey::new(b"", b"k"), Err(KeyError::BucketLength { bytes: 0 }));
        for cut in 0..10 {
            assert!(ObjectKey::from_row(Bytes::from(vec![1; cut])).is_err());
        }
    }

    #[test]
    fn cursors_fit_a_double_and_lead_back() {
        for position in [0, 1, 4095, 4096, 1 << 63, u64::MAX].map(Position) {
            let cursor = position.cursor();
            assert!(cursor < 1 << 52);
            assert_eq!(Position::of_cursor(cursor), Some(position.cursor_start()));
            assert!(position.cursor_start() <= position && position <= position.cursor_end());
            assert_eq!(position.cursor_end().cursor(), cursor);
        }
        assert_eq!((Position::of_cursor(1 << 52), Position::of_cursor(u64::MAX)), (None, None));
    }

    #[test]
    fn partitions_tile_the_ring() {
        for q in [1u16, 2, 64, 1024, 16384] {
            let mut next = 0u64;
            for p in 0..q {
                let partition = Partition(p);
                assert_eq!(partition.start(q), Position(next));
                assert_eq!(partition.start(q).partition(q), partition);
                assert_eq!(partition.end(q).partition(q), partition);
                next = partition.end(q).0.wrapping_add(1);
            }
            assert_eq!(next, 0);
        }
    }
}
