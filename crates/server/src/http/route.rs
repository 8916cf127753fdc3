//! Which resource a path names. Bucket and key may hold any bytes, percent-encoded.

use bytes::Bytes;
use hyper::StatusCode;

use crate::http::refusal::{shortened, Refusal};

/// The bucket type whose buckets have no prefix: Riak's name for "no type".
const DEFAULT_TYPE: &str = "default";

/// What a path names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Index,
    Ping,
    Stats,
    Health,
    Metrics,
    ClusterStatus,
    /// The list of buckets of one type; its names start with `prefix`.
    Buckets {
        prefix: Bytes,
    },
    /// The keys of a bucket.
    Keys(Place),
    /// A bucket's properties.
    Properties(Place),
    /// `/riak/B`: properties, keys and new objects at one path, as in Riak before 1.0.
    OldBucket(Place),
    Object {
        place: Place,
        key: Bytes,
    },
    /// A counter under Riak's path for it.
    Counter {
        place: Place,
        key: Bytes,
    },
    /// An active object, or a part of it.
    Active {
        bucket: Bytes,
        key: Bytes,
        part: Part,
    },
}

/// A part of an active object that a path names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    Object,
    Source,
    /// A function to call.
    Function(Bytes),
}

impl Part {
    /// The methods that are served there.
    pub fn methods(&self) -> &'static str {
        match self {
            Part::Object | Part::Source => "GET, HEAD, PUT",
            Part::Function(_) => "POST",
        }
    }
}

/// A bucket, and the path it was reached by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub bucket: Bytes,
    /// The path of the bucket, still encoded, for `Link: <...>; rel="up"`.
    pub path: String,
    /// The path under which the bucket's keys stand, still encoded, without the last slash.
    pub keys_path: String,
}

impl Target {
    /// The methods that are served there, as an `Allow` header lists them.
    pub fn methods(&self) -> &'static str {
        match self {
            Target::Object { .. } => "GET, HEAD, PUT, POST, DELETE",
            Target::Active { part, .. } => part.methods(),
            Target::Counter { .. } => "GET, HEAD, POST",
            Target::Keys(_) => "GET, HEAD, POST",
            Target::OldBucket(_) => "GET, HEAD, POST, PUT",
            Target::Properties(_) => "GET, HEAD, PUT, DELETE",
            Target::Index
            | Target::Ping
            | Target::Stats
            | Target::Health
            | Target::Metrics
            | Target::ClusterStatus
            | Target::Buckets { .. } => "GET, HEAD",
        }
    }
}

/// Reads a path.
///
/// `/types/T/buckets/B` is the bucket named `T/B`, except for the type `default`, where it is `B`.
/// Errors: 404 for no such path, 400 for a bad percent-encoding.
pub fn parse(path: &str) -> Result<Target, Refusal> {
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let segments: Vec<&str> = trimmed.split('/').collect();
    match segments[..] {
        [""] => Ok(Target::Index),
        ["ping"] => Ok(Target::Ping),
        ["stats"] => Ok(Target::Stats),
        ["health"] => Ok(Target::Health),
        ["metrics"] => Ok(Target::Metrics),
        ["cluster", "status"] => Ok(Target::ClusterStatus),
        ["buckets"] | ["riak"] => Ok(Target::Buckets { prefix: Bytes::new() }),
        ["riak", bucket] => Ok(Target::OldBucket(old_place(bucket)?)),
        ["riak", bucket, key] => object(old_place(bucket)?, key),
        ["aso", bucket, key] => active(bucket, key, Part::Object),
        ["aso", bucket, key, "source"] => active(bucket, key, Part::Source),
        ["aso", bucket, key, "call", function] => {
            active(bucket, key, Part::Function(percent_decode(function)?.into()))
        }
        ["buckets", ref rest @ ..] => in_type(None, rest, path),
        ["types", name, "buckets"] => Ok(Target::Buckets { prefix: type_prefix(name)? }),
        ["types", name, "buckets", ref rest @ ..] => in_type(Some(name), rest, path),
        _ => Err(not_found(path)),
    }
}

fn in_type(type_name: Option<&str>, rest: &[&str], path: &str) -> Result<Target, Refusal> {
    match rest {
        [bucket, "props"] => Ok(Target::Properties(place(type_name, bucket)?)),
        [bucket, "keys"] => Ok(Target::Keys(place(type_name, bucket)?)),
        [bucket, "keys", key] => object(place(type_name, bucket)?, key),
        [bucket, "counters", key] => {
            Ok(Target::Counter { place: place(type_name, bucket)?, key: percent_decode(key)?.into() })
        }
        [_, "keys", ..] => {
            Err(Refusal::new(StatusCode::NOT_FOUND, "no such path: a slash within a key is written %2F"))
        }
        _ => Err(not_found(path)),
    }
}

fn object(place: Place, key: &str) -> Result<Target, Refusal> {
    let key = Bytes::from(percent_decode(key)?);
    Ok(Target::Object { place, key })
}

fn active(bucket: &str, key: &str, part: Part) -> Result<Target, Refusal> {
    let (bucket, key) = (percent_decode(bucket)?.into(), percent_decode(key)?.into());
    Ok(Target::Active { bucket, key, part })
}

fn place(type_name: Option<&str>, bucket: &str) -> Result<Place, Refusal> {
    let (mut name, path) = match type_name {
        None => (Vec::new(), format!("/buckets/{bucket}")),
        Some(type_name) => (type_prefix(type_name)?.to_vec(), format!("/types/{type_name}/buckets/{bucket}")),
    };
    name.extend(percent_decode(bucket)?);
    Ok(Place { bucket: name.into(), keys_path: format!("{path}/keys"), path })
}

fn old_place(bucket: &str) -> Result<Place, Refusal> {
    let path = format!("/riak/{bucket}");
    Ok(Place { bucket: percent_decode(bucket)?.into(), keys_path: path.clone(), path })
}

fn type_prefix(name: &str) -> Result<Bytes, Refusal> {
    if name == DEFAULT_TYPE {
        return Ok(Bytes::new());
    }
    if name.is_empty() {
        return Err(Refusal::bad_request("empty bucket type"));
    }
    let mut prefix = percent_decode(name)?;
    prefix.push(b'/');
    Ok(prefix.into())
}

fn not_found(path: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("no such path: {}: GET / lists what is here", shortened(path)),
    )
}

/// Decodes `%2F` and its kin. Errors: 400, with the place of a `%` that two hexadecimal digits do not follow.
pub fn percent_decode(text: &str) -> Result<Vec<u8>, Refusal> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            decoded.push(bytes[at]);
            at += 1;
            continue;
        }
        let digit = |i: usize| bytes.get(i).and_then(|&b| (b as char).to_digit(16));
        let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
            return Err(Refusal::bad_request(format!(
                "bad percent-encoding at byte {at} of '{}'",
                shortened(text)
            )));
        };
        decoded.push((high << 4 | low) as u8);
        at += 3;
    }
    Ok(decoded)
}

/// Encodes all bytes but letters, digits, `-`, `_`, `.` and `~`, so that the text can stand in a path.
pub fn percent_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Bytes as text for JSON: as they are if they are UTF-8, else percent-encoded.
pub fn printable(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| percent_encode(bytes), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let object = |bucket: &'static str, key: &'static [u8], path: &str, keys_path: &str| Target::Object {
            place: Place { bucket: bucket.into(), path: path.into(), keys_path: keys_path.into() },
            key: key.into(),
        };
        let cases = [
            ("/", Target::Index),
            ("/ping", Target::Ping),
            ("/cluster/status/", Target::ClusterStatus),
            ("/buckets", Target::Buckets { prefix: Bytes::new() }),
            ("/types/maps/buckets", Target::Buckets { prefix: "maps/".into() }),
            ("/buckets/b/keys/k", object("b", b"k", "/buckets/b", "/buckets/b/keys")),
            ("/types/default/buckets/b/keys/k", {
                object("b", b"k", "/types/default/buckets/b", "/types/default/buckets/b/keys")
            }),
            ("/types/t/buckets/b/keys/k", {
                object("t/b", b"k", "/types/t/buckets/b", "/types/t/buckets/b/keys")
            }),
            ("/aso/b/k", Target::Active { bucket: "b".into(), key: "k".into(), part: Part::Object }),
            ("/aso/b/a%2fc/call/f", {
                let part = Part::Function("f".into());
                Target::Active { bucket: "b".into(), key: "a/c".into(), part }
            }),
            ("/riak/b/k", object("b", b"k", "/riak/b", "/riak/b")),
            ("/buckets/a%20b/keys/%00%2f%FF", {
                object("a b", b"\0/\xff", "/buckets/a%20b", "/buckets/a%20b/keys")
            }),
        ];
        for (path, want) in cases {
            assert_eq!(parse(path).expect(path), want, "{path}");
        }
    }

    #[test]
    fn wrong_paths_are_refused() {
        let cases = [
            ("/nothing", 404),
            ("/buckets/b", 404),
            ("/buckets/b/keys/a/b", 404),
            ("/types/t/props", 404),
            ("/types//buckets/b/keys/k", 400),
            ("/buckets/b/keys/%", 400),
            ("/buckets/b/keys/%2", 400),
            ("/buckets/b/keys/%zz", 400),
            ("/buckets/%+1/keys/k", 400),
            ("*", 404),
        ];
        for (path, status) in cases {
            assert_eq!(parse(path).expect_err(path).status, status, "{path}");
        }
    }

    #[test]
    fn percent_encoding_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(percent_decode(&percent_encode(&all)).unwrap(), all);
        assert_eq!(printable(b"caf\xc3\xa9"), "caf\u{e9}");
        assert_eq!(printable(b"\xff/"), "%FF%2F");
    }
}
