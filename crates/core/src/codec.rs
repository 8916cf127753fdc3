//! Writing and reading the bytes of objects and data-path messages by hand.
//!
//! Numbers are LEB128 varints unless a fixed width is said; byte strings carry their length first. A reader
//! never trusts a length: it is checked against what is left before anything is allocated.

use std::fmt;

use bytes::Bytes;

/// Why bytes could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The bytes end inside a field.
    Truncated { field: &'static str },
    /// A field holds something that never is written.
    Invalid { field: &'static str },
    /// A format version that this program does not know.
    Version { found: u8, known: u8 },
    /// Bytes follow the last field.
    TrailingBytes { bytes: usize },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DecodeError::Truncated { field } => write!(f, "cut short in {field}"),
            DecodeError::Invalid { field } => write!(f, "invalid {field}"),
            DecodeError::Version { found, known } => {
                write!(f, "format version {found}, this program reads version {known}")
            }
            DecodeError::TrailingBytes { bytes } => write!(f, "{bytes} bytes too many"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Appends fields to a byte vector.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Eight bytes, little-endian: for identities and hashes, whose bits are all used.
    pub fn fixed(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Small negative numbers stay small: zigzag, then varint.
    pub fn signed(&mut self, value: i64) {
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    /// As [`Writer::signed`], which writes the same bytes for what it can write.
    pub fn signed_wide(&mut self, value: i128) {
        let mut zigzag = (value << 1 ^ value >> 127) as u128;
        while zigzag >= 0x80 {
            self.0.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        self.0.push(zigzag as u8);
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

/// Takes fields off the front of shared bytes; byte strings it returns share their memory.
pub struct Reader<'a> {
    source: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a Bytes) -> Reader<'a> {
        Reader { source, at: 0 }
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.source.len() - self.at
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let byte = *self.source.get(self.at).ok_or(DecodeError::Truncated { field })?;
        self.at += 1;
        Ok(byte)
    }

    pub fn fixed(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let bytes = self.source.get(self.at..self.at + 8).ok_or(DecodeError::Truncated { field })?;
        self.at += 8;
        Ok(u64::from_le_bytes(bytes.try_into().expect("8 bytes were taken")))
    }

    pub fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            // Longer than needed: every number has one form, so that equal bytes and equal values are the same.
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                break;
            }
            value |= ((byte & 0x7f) as u64) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid { field })
    }

    pub fn signed(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let zigzag = self.varint(field)?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// What [`Writer::signed_wide`] or [`Writer::signed`] wrote.
    pub fn signed_wide(&mut self, field: &'static str) -> Result<i128, DecodeError> {
        let mut zigzag = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.u8(field)?;
            if shift == 126 && byte > 3 || shift > 0 && byte == 0 {
                break;
            }
            zigzag |= ((byte & 0x7f) as u128) << shift;
            if byte < 0x80 {
                return Ok((zigzag >> 1) as i128 ^ -((zigzag & 1) as i128));
            }
        }
        Err(DecodeError::Invalid { field })
    }

    pub fn bytes(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let length = self.varint(field)?;
        self.take(length, field)
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: u64, field: &'static str) -> Result<Bytes, DecodeError> {
        if length > self.left() as u64 {
            return Err(DecodeError::Truncated { field });
        }
        let start = self.at;
        self.at += length as usize;
        Ok(self.source.slice(start..self.at))
    }

    /// A count of things of at least `bytes_each` bytes, so that a forged count cannot reserve memory.
    pub fn count(&mut self, bytes_each: usize, field: &'static str) -> Result<usize, DecodeError> {
        let count = self.varint(field)?;
        match count <= (self.left() / bytes_each) as u64 {
            true => Ok(count as usize),
            false => Err(DecodeError::Truncated { field }),
        }
    }

    /// Everything not yet read.
    pub fn rest(&mut self) -> Bytes {
        let start = self.at;
        self.at = self.source.len();
        self.source.slice(start..)
    }

    /// Errors: bytes are left.
    pub fn end(&self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 127, 128, 300, u32::MAX as u64, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            Writer(&mut bytes).varint(value);
            Writer(&mut bytes).fixed(value);
            Writer(&mut bytes).signed(value as i64);
            let bytes = Bytes::from(bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint("v"), Ok(value));
            assert_eq!(reader.fixed("f"), Ok(value));
            assert_eq!(reader.signed("s"), Ok(value as i64));
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn wide_numbers_come_back_and_narrow_ones_have_one_form() {
        let narrow = [0, 1, -1, 63, -64, 64, i64::MAX as i128, i64::MIN as i128];
        for value in
            narrow.into_iter().chain([i64::MAX as i128 + 1, i64::MIN as i128 * 5, i128::MAX, i128::MIN])
        {
            let mut bytes = Vec::new();
            Writer(&mut bytes).signed_wide(value);
            if let Ok(narrow) = i64::try_from(value) {
                let mut same = Vec::new();
                Writer(&mut same).signed(narrow);
                assert_eq!(bytes, same, "{value}");
            }
            let bytes = Bytes::from(bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!((reader.signed_wide("w"), reader.left()), (Ok(value), 0), "{value}");
        }
        for endless in [[0xff; 20], [0x80; 20]] {
            let endless = Bytes::copy_from_slice(&endless);
            assert_eq!(Reader::new(&endless).signed_wide("w"), Err(DecodeError::Invalid { field: "w" }));
        }
        assert!(Reader::new(&Bytes::from_static(&[0x80, 0])).signed_wide("w").is_err(), "longer than needed");
    }

    #[test]
    fn forged_lengths_are_refused_before_anything_is_allocated() {
        let bytes = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x7f, 1, 2]);
        assert_eq!(Reader::new(&bytes).bytes("b"), Err(DecodeError::Truncated { field: "b" }));
        assert_eq!(Reader::new(&bytes).count(1, "c"), Err(DecodeError::Truncated { field: "c" }));
        let endless = Bytes::from_static(&[0xff; 11]);
        assert_eq!(Reader::new(&endless).varint("v"), Err(DecodeError::Invalid { field: "v" }));
    }
}
