//! One row as it lies in memory and on disk: key, value and a checksum in a single allocation.
//!
//! ```text
//!  key (1..65535 bytes) | value (0.. bytes) | checksum (4 bytes, little-endian)
//!                       '---- what the engine stores under the key ----'
//! ```
//! A row owns its bytes and is copied when it leaves: a reference count would cost a second allocation per row and one
//! more cache miss per read, which is dearer than copying a hundred bytes.
//! The checksum is the low half of xxh3-64 over key and value, so a value that ends up under another key is caught
//! too. The engine has checksums of its own per block; ours also covers what happens between us and the block.
//! A row without value and checksum says that the key is absent.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

const CHECKSUM_BYTES: usize = 4;

/// A key with its value, or the knowledge that it has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    bytes: Box<[u8]>,
    key_len_bytes: u16,
}

impl Row {
    /// The row for `key` as the caller wants it stored: `None` deletes. O(key and value).
    pub(super) fn new(key: &[u8], value: Option<&[u8]>) -> Row {
        let Some(value) = value else {
            return Row::absent(key);
        };
        let mut bytes = Vec::with_capacity(key.len() + value.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        let checksum = checksum(&bytes, key.len());
        bytes.extend_from_slice(&checksum);
        Row::from_parts(bytes, key.len())
    }

    /// The row of a key that has no value.
    pub(super) fn absent(key: &[u8]) -> Row {
        Row::from_parts(key.to_vec(), key.len())
    }

    /// The row read from the engine, or `None` if its checksum does not match.
    pub(super) fn from_stored(key: &[u8], stored: &[u8]) -> Option<Row> {
        let mut bytes = Vec::with_capacity(key.len() + stored.len());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(stored);
        let (covered, found) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
        if stored.len() < CHECKSUM_BYTES || checksum(covered, key.len()) != *found {
            return None;
        }
        Some(Row::from_parts(bytes, key.len()))
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len_bytes as usize]
    }

    /// A copy of the value.
    pub(super) fn value(&self) -> Option<Bytes> {
        let (value, _) = self.stored()?.split_last_chunk::<CHECKSUM_BYTES>()?;
        Some(Bytes::copy_from_slice(value))
    }

    /// What the engine stores: value and checksum; `None` for a deletion.
    pub(super) fn stored(&self) -> Option<&[u8]> {
        Some(&self.bytes[self.key_len_bytes as usize..]).filter(|stored| !stored.is_empty())
    }

    /// Key and stored form in a row.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of key, value and checksum.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn from_parts(bytes: Vec<u8>, key_len_bytes: usize) -> Row {
        Row {
            bytes: bytes.into_boxed_slice(),
            key_len_bytes: u16::try_from(key_len_bytes).expect("keys are shorter than 64 KiB"),
        }
    }
}

/// The key's length is mixed in so that bytes which move between key and value change the checksum.
fn checksum(key_and_value: &[u8], key_len_bytes: usize) -> [u8; CHECKSUM_BYTES] {
    (xxh3_64(key_and_value) as u32 ^ key_len_bytes as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_and_any_flipped_bit_is_noticed() {
        for value in [&b""[..], b"x", b"a longer value, past one word"] {
            let row = Row::new(b"key", Some(value));
            assert_eq!(row.key(), b"key");
            assert_eq!(row.value().unwrap(), value);
            let stored = row.stored().unwrap();
            assert_eq!(Row::from_stored(b"key", stored).unwrap().value().unwrap(), value);
            assert!(Row::from_stored(b"kez", stored).is_none());
            for bit in 0..stored.len() * 8 {
                let mut flipped = stored.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Row::from_stored(b"key", &flipped).is_none(), "bit {bit}");
            }
        }
    }

    #[test]
    fn short_and_shifted_values_are_refused() {
        assert!(Row::from_stored(b"long enough key", b"").is_none());
        assert!(Row::from_stored(b"long enough key", b"abc").is_none());
        let row = Row::new(b"ab", Some(b"c"));
        let stored = row.stored().unwrap();
        assert!(Row::from_stored(b"a", &[b"b", stored].concat()).is_none());
    }

    #[test]
    fn an_absent_row_has_neither_value_nor_stored_form() {
        let row = Row::new(b"key", None);
        assert_eq!((row.key(), row.value(), row.stored()), (&b"key"[..], None, None));
    }
}
