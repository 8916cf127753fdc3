//! Contexts as printable text: what clients carry between a read and the write that answers it.
//!
//! A client reads a key, gets its context, and sends the context back with its next write, which then replaces exactly
//! what the client saw. The text means nothing to clients. It is standard base64 with padding, because Riak's clients
//! decode a context and encode it again, of
//!
//! ```text
//! | format 2 | binding 4 | VersionVector::encode | checksum: the low 32 bits of xxh3 of all before it |
//! ```
//! Numbers are little-endian. The binding names the bucket and key that the context was read from: a context says
//! nothing about any other key, where obeying it would replace values that nobody has read.
//!
//! The checksum is no protection against forgers, who may write any context they like: it turns a cut or mistyped
//! token into an error instead of a write that replaces too much. Readers take the URL alphabet and texts without
//! padding too, which contexts had in the past.

use std::fmt;

use bytes::Bytes;
use oort_core::causality::VersionVector;
use oort_core::codec::{DecodeError, Reader, Writer};
use oort_core::types::ObjectKey;
use xxhash_rust::xxh3::xxh3_64;

/// The version of the format that this program writes and reads.
pub const TOKEN_FORMAT: u8 = 2;
/// The longest text that is looked at, in bytes: room for 700 storage identities.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Fills the last group of four characters.
const PADDING: u8 = b'=';
const CHECKSUM_BYTES: usize = 4;
const BINDING_BYTES: usize = 4;

/// Names the bucket and key that a context belongs to: the low 32 bits of the XXH3 of the key's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding(pub u32);

impl Binding {
    /// The binding of contexts that are read from `key`.
    pub fn of(key: &ObjectKey) -> Binding {
        Binding(xxh3_64(key.row()) as u32)
    }
}

/// Why a text is no context. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    TooLong { bytes: usize },
    /// A byte that base64 does not use, or that its end cannot have.
    Character { at: usize },
    /// Too short to be complete.
    Truncated { bytes: usize },
    /// Changed or cut on the way.
    Checksum,
    /// Made by another version of Oort.
    Format { found: u8 },
    /// Read from another key, or from another bucket.
    ForeignKey,
    /// Complete and unchanged, but never made by Oort.
    Malformed(DecodeError),
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            TokenError::TooLong { bytes } => {
                write!(f, "invalid context: {bytes} bytes, the limit is {TOKEN_BYTES_MAX}")
            }
            TokenError::Character { at } => write!(f, "invalid context: byte {at} is not base64"),
            TokenError::Truncated { bytes } => write!(f, "invalid context: cut short at {bytes} bytes"),
            TokenError::Checksum => write!(f, "invalid context: its checksum does not match"),
            TokenError::Format { found } => {
                write!(f, "invalid context: format {found}, this node reads format {TOKEN_FORMAT}")
            }
            TokenError::ForeignKey => {
                write!(f, "invalid context: it was read from another key or another bucket")
            }
            TokenError::Malformed(error) => write!(f, "invalid context: {error}"),
        }
    }
}

impl std::error::Error for TokenError {}

/// The text of a context that was read from the key of `binding`.
pub fn encode(context: &VersionVector, binding: Binding) -> String {
    let mut bytes = Vec::with_capacity(2 + BINDING_BYTES + 16 * context.len() + CHECKSUM_BYTES);
    bytes.push(TOKEN_FORMAT);
    bytes.extend_from_slice(&binding.0.to_le_bytes());
    context.encode(&mut Writer(&mut bytes));
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(&checksum);
    to_base64(&bytes)
}

/// Reads [`encode`]'s text for a write to the key of `binding`.
///
/// Errors: anything else, and the context of another key, saying what is wrong with it.
pub fn decode(text: &[u8], binding: Binding) -> Result<VersionVector, TokenError> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong { bytes: text.len() });
    }
    let bytes = from_base64(text)?;
    if bytes.len() < 2 + CHECKSUM_BYTES {
        return Err(TokenError::Truncated { bytes: text.len() });
    }
    let (body, found) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if checksum(body) != found {
        return Err(TokenError::Checksum);
    }
    if body[0] != TOKEN_FORMAT {
        return Err(TokenError::Format { found: body[0] });
    }
    let Some((found, body)) = body[1..].split_first_chunk::<BINDING_BYTES>() else {
        return Err(TokenError::Truncated { bytes: text.len() });
    };
    if u32::from_le_bytes(*found) != binding.0 {
        return Err(TokenError::ForeignKey);
    }
    let body = Bytes::copy_from_slice(body);
    let mut reader = Reader::new(&body);
    let context = VersionVector::decode(&mut reader).map_err(TokenError::Malformed)?;
    reader.end().map_err(TokenError::Malformed)?;
    Ok(context)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    (xxh3_64(bytes) as u32).to_le_bytes()
}

/// Standard base64, with padding.
pub fn to_base64(bytes: &[u8]) -> String {
    let mut text = digits(bytes, ALPHABET);
    while !text.len().is_multiple_of(4) {
        text.push(PADDING as char);
    }
    text
}

/// Base64 with the URL alphabet and no padding.
pub fn to_base64url(bytes: &[u8]) -> String {
    digits(bytes, URL_ALPHABET)
}

fn digits(bytes: &[u8], alphabet: &[u8; 64]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().enumerate().fold(0u32, |bits, (i, &byte)| bits | (byte as u32) << (16 - 8 * i));
        for i in 0..=chunk.len() {
            text.push(alphabet[(bits >> (18 - 6 * i)) as usize & 63] as char);
        }
    }
    text
}

/// Reads base64 of either alphabet, with its padding or without any.
///
/// Errors: other characters, an incomplete padding, and spare bits that are set.
pub fn from_base64(text: &[u8]) -> Result<Vec<u8>, TokenError> {
    let text = match text.len() % 4 {
        0 => text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text),
        _ => text,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for (chunk_index, chunk) in text.chunks(4).enumerate() {
        let start = chunk_index * 4;
        if chunk.len() == 1 {
            return Err(TokenError::Truncated { bytes: text.len() });
        }
        let mut bits = 0u32;
        for (i, &byte) in chunk.iter().enumerate() {
            let digit = digit(byte).ok_or(TokenError::Character { at: start + i })?;
            bits |= digit << (18 - 6 * i);
        }
        let [_, three @ ..] = bits.to_be_bytes();
        let (whole, spare) = three.split_at(chunk.len() - 1);
        // Bits beyond the last byte must be zero, so that each context has one text.
        if spare.iter().any(|&byte| byte != 0) {
            return Err(TokenError::Character { at: start + chunk.len() - 1 });
        }
        bytes.extend_from_slice(whole);
    }
    Ok(bytes)
}

fn digit(byte: u8) -> Option<u32> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    } as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oort_core::causality::Dot;
    use oort_core::types::ActorId;
    use proptest::prelude::*;

    const BINDING: Binding = Binding(0x0201);

    fn vector(entries: &[(u64, u64)]) -> VersionVector {
        entries.iter().map(|&(actor, counter)| Dot { counter, actor: ActorId(actor) }).collect()
    }

    fn sealed(body: &[u8]) -> String {
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(&checksum(body));
        to_base64(&bytes)
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases: [(&[u8], &str, &str); 8] = [
            (b"", "", ""),
            (b"f", "Zg==", "Zg"),
            (b"fo", "Zm8=", "Zm8"),
            (b"foo", "Zm9v", "Zm9v"),
            (b"foob", "Zm9vYg==", "Zm9vYg"),
            (b"fooba", "Zm9vYmE=", "Zm9vYmE"),
            (b"foobar", "Zm9vYmFy", "Zm9vYmFy"),
            (&[0xfb, 0xff, 0xbf], "+/+/", "-_-_"),
        ];
        for (bytes, standard, url) in cases {
            assert_eq!(to_base64(bytes), standard);
            assert_eq!(to_base64url(bytes), url);
            for text in [standard, url, standard.trim_end_matches('=')] {
                assert_eq!(from_base64(text.as_bytes()).as_deref(), Ok(bytes), "{text}");
            }
        }
        for wrong in ["=", "Z===", "Zg=", "Zm8==", "Zg==Zg==", "Zm9v====", "Z=g="] {
            assert!(from_base64(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_damage_has_its_own_error() {
        let token = encode(&vector(&[(1, 2), (3, 4)]), BINDING);
        let decode = |text: &[u8]| decode(text, BINDING);
        assert_eq!(decode(b""), Err(TokenError::Truncated { bytes: 0 }));
        assert_eq!(decode(b"A"), Err(TokenError::Truncated { bytes: 1 }));
        assert_eq!(decode(b"AAAA"), Err(TokenError::Truncated { bytes: 4 }));
        assert_eq!(decode(b"AB=="), Err(TokenError::Character { at: 1 }));
        assert_eq!(decode(b"AB=C"), Err(TokenError::Character { at: 2 }));
        assert_eq!(decode(b"AB"), Err(TokenError::Character { at: 1 }));
        assert_eq!(decode(b"AAAAAAAA\r\n"), Err(TokenError::Character { at: 8 }));
        assert_eq!(decode(&token.as_bytes()[..token.len() - 4]), Err(TokenError::Checksum));
        assert_eq!(
            decode(&vec![b'A'; TOKEN_BYTES_MAX + 1]),
            Err(TokenError::TooLong { bytes: TOKEN_BYTES_MAX + 1 })
        );
        assert_eq!(decode(sealed(&[9, 0]).as_bytes()), Err(TokenError::Format { found: 9 }));
        assert_eq!(
            decode(sealed(&[2, 1, 2, 0, 0, 200, 1]).as_bytes()),
            Err(TokenError::Malformed(DecodeError::Truncated { field: "version vector" }))
        );
        assert_eq!(
            decode(sealed(&[2, 1, 2, 0, 0, 0, 0]).as_bytes()),
            Err(TokenError::Malformed(DecodeError::TrailingBytes { bytes: 1 }))
        );
    }

    #[test]
    fn a_context_is_that_of_one_key_in_one_bucket() {
        let binding = |bucket: &[u8], key: &[u8]| Binding::of(&ObjectKey::new(bucket, key).unwrap());
        let token = encode(&vector(&[(1, 2)]), binding(b"carts", b"alice"));
        assert_eq!(decode(token.as_bytes(), binding(b"carts", b"alice")), Ok(vector(&[(1, 2)])));
        for other in [binding(b"carts", b"bob"), binding(b"orders", b"alice"), binding(b"cartsa", b"lice")] {
            assert_eq!(decode(token.as_bytes(), other), Err(TokenError::ForeignKey));
        }
    }

    proptest! {
        #[test]
        fn contexts_come_back(entries in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..40)) {
            let context = vector(&entries);
            let token = encode(&context, BINDING);
            prop_assert!(token.bytes().all(|byte| ALPHABET.contains(&byte) || byte == PADDING));
            prop_assert_eq!(token.len() % 4, 0);
            let old = token.trim_end_matches('=').replace('+', "-").replace('/', "_");
            prop_assert_eq!(decode(old.as_bytes(), BINDING), Ok(context.clone()));
            prop_assert_eq!(decode(token.as_bytes(), BINDING), Ok(context));
        }

        #[test]
        fn a_changed_character_is_noticed(
            entries in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..8),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut token = encode(&vector(&entries), BINDING).into_bytes();
            let at = at.index(token.len());
            let is_same_digit = digit(byte).is_some() && digit(byte) == digit(token[at]);
            prop_assume!(token[at] != byte && !is_same_digit);
            token[at] = byte;
            prop_assert!(decode(&token, BINDING).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes, BINDING);
            let _ = decode(to_base64(&bytes).as_bytes(), BINDING);
            let _ = decode(sealed(&bytes).as_bytes(), BINDING);
        }
    }
}
