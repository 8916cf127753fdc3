//! A bucket's properties, and the table of them that gossip keeps equal on all nodes.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::causality::Dot;

/// The bucket that exists from the start, and that Redis `SELECT 0` means.
pub const DEFAULT_BUCKET: &[u8] = b"default";
/// The most replicas a bucket may ask for.
pub const N_MAX: u8 = 16;
/// The largest limit for one value that a bucket may set, in bytes.
pub const VALUE_BYTES_LIMIT: u64 = 16 << 20;
/// The most buckets that may have properties of their own.
pub const BUCKETS_MAX: usize = 10_000;

/// What happens to concurrent writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conflict {
    /// All are kept.
    Siblings,
    /// The greatest dot wins everywhere.
    Lww,
}

/// How a bucket's objects are kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketProperties {
    /// Replicas of each object, 1 to [`N_MAX`]. A smaller cluster holds as many as it has nodes.
    pub n: u8,
    /// Answers a get waits for, 1 to `n`.
    pub r: u8,
    /// Durable copies a put waits for, 1 to `n`.
    pub w: u8,
    pub conflict: Conflict,
    /// Time to live of values stored without one, in milliseconds.
    pub default_ttl_ms: Option<u64>,
    /// Largest value, in bytes, up to [`VALUE_BYTES_LIMIT`].
    pub value_bytes_max: u64,
    /// Whether objects may carry code.
    pub active: bool,
}

impl Default for BucketProperties {
    fn default() -> BucketProperties {
        BucketProperties {
            n: 3,
            r: 2,
            w: 2,
            conflict: Conflict::Siblings,
            default_ttl_ms: None,
            value_bytes_max: 1 << 20,
            active: true,
        }
    }
}

/// Why properties are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PropertyError {
    N { n: u8 },
    Quorum { name: char, quorum: u8, n: u8 },
    ValueLimit { bytes: u64 },
    TooManyBuckets { limit: usize },
}

impl fmt::Display for PropertyError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            PropertyError::N { n } => write!(f, "n is {n}: it must be 1 to {N_MAX}"),
            PropertyError::Quorum { name, quorum, n } => {
                write!(f, "{name} is {quorum}: it must be 1 to n, which is {n}")
            }
            PropertyError::ValueLimit { bytes } => {
                write!(f, "value_bytes_max is {bytes}: it must be 1 to {VALUE_BYTES_LIMIT}")
            }
            PropertyError::TooManyBuckets { limit } => write!(f, "more than {limit} buckets with properties"),
        }
    }
}

impl std::error::Error for PropertyError {}

impl BucketProperties {
    /// Errors: a number out of its range.
    pub fn check(&self) -> Result<(), PropertyError> {
        if self.n == 0 || self.n > N_MAX {
            return Err(PropertyError::N { n: self.n });
        }
        for (name, quorum) in [('r', self.r), ('w', self.w)] {
            if quorum == 0 || quorum > self.n {
                return Err(PropertyError::Quorum { name, quorum, n: self.n });
            }
        }
        if self.value_bytes_max == 0 || self.value_bytes_max > VALUE_BYTES_LIMIT {
            return Err(PropertyError::ValueLimit { bytes: self.value_bytes_max });
        }
        Ok(())
    }
}

/// One bucket's properties and the write that set them; the greatest dot wins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketEntry {
    pub set_by: Dot,
    pub properties: BucketProperties,
}

/// All properties ever set. Buckets that are not in it have the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketTable {
    entries: BTreeMap<Bytes, BucketEntry>,
    defaults: BucketProperties,
}

impl BucketTable {
    /// An empty table whose buckets have `defaults`.
    pub fn new(defaults: BucketProperties) -> BucketTable {
        BucketTable { entries: BTreeMap::new(), defaults }
    }

    /// Changes what buckets without properties of their own have.
    pub fn set_defaults(&mut self, defaults: BucketProperties) {
        self.defaults = defaults;
    }

    /// The properties in force for `bucket`.
    pub fn properties(&self, bucket: &[u8]) -> &BucketProperties {
        match self.entries.is_empty() {
            true => &self.defaults,
            false => self.entries.get(bucket).map_or(&self.defaults, |entry| &entry.properties),
        }
    }

    /// The properties that `bucket` was given, if it ever was, and the write that did.
    pub fn entry(&self, bucket: &[u8]) -> Option<&BucketEntry> {
        self.entries.get(bucket)
    }

    /// Buckets with properties of their own, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&Bytes, &BucketEntry)> {
        self.entries.iter()
    }

    /// Takes over `entry` if it is newer than what is held; true if it was.
    pub fn merge(&mut self, bucket: Bytes, entry: BucketEntry) -> bool {
        match self.entries.get(&bucket) {
            Some(held) if held.set_by >= entry.set_by => false,
            None if self.entries.len() >= BUCKETS_MAX => false,
            _ => {
                self.entries.insert(bucket, entry);
                true
            }
        }
    }
}
