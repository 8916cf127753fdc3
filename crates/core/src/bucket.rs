//! A bucket's properties, and the table of them that gossip keeps equal on all nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::active::{Fuel, Limits};
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

/// When changes that active objects make in gets, calls and timers are kept. What creates, overwrites or reloads them
/// is acknowledged by `w` replicas in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActiveDurability {
    /// `w` replicas hold them before the caller gets its answer.
    Quorum,
    /// At most `async_ms` later; a crash of the home can lose that much.
    #[default]
    Async,
}

/// How a bucket's active objects are kept, and what each may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ActiveProperties {
    pub durability: ActiveDurability,
    /// The bound of [`ActiveDurability::Async`] in milliseconds, 1 to 60,000. Smaller: more writes.
    pub async_ms: u32,
    pub fuel: Fuel,
    /// Bytecode instructions of one call, 1 to 10,000,000.
    pub instructions: u32,
    /// Code and state of one object in bytes, 1 to 1 MiB.
    pub memory_bytes: u32,
    /// Time of one call in milliseconds, 1 to 100.
    pub wall_ms: u32,
    /// Messages of one object in one timer interval, up to 1,000.
    pub messages: u32,
}

impl Default for ActiveProperties {
    fn default() -> ActiveProperties {
        ActiveProperties {
            durability: ActiveDurability::Async,
            async_ms: 1000,
            fuel: Fuel::Exact,
            instructions: 100_000,
            memory_bytes: 100_000,
            wall_ms: 10,
            messages: 20,
        }
    }
}

impl ActiveDurability {
    pub const ALL: [ActiveDurability; 2] = [ActiveDurability::Quorum, ActiveDurability::Async];

    /// As the bucket property `aso_durability` has it.
    pub fn name(self) -> &'static str {
        match self {
            ActiveDurability::Quorum => "quorum",
            ActiveDurability::Async => "async",
        }
    }
}

impl ActiveProperties {
    /// What one object may use.
    pub fn limits(&self) -> Limits {
        Limits {
            fuel: self.fuel,
            instructions: self.instructions,
            memory_bytes: self.memory_bytes,
            wall_us: self.wall_ms * 1000,
            messages: self.messages,
        }
    }

    /// One of the numbers.
    pub fn limit(mut self, limit: ActiveLimit) -> u32 {
        *self.limit_mut(limit)
    }

    /// One of the numbers, to be changed.
    pub fn limit_mut(&mut self, limit: ActiveLimit) -> &mut u32 {
        match limit {
            ActiveLimit::AsyncMs => &mut self.async_ms,
            ActiveLimit::Instructions => &mut self.instructions,
            ActiveLimit::MemoryBytes => &mut self.memory_bytes,
            ActiveLimit::WallMs => &mut self.wall_ms,
            ActiveLimit::Messages => &mut self.messages,
        }
    }

    fn check(&self) -> Result<(), PropertyError> {
        for limit in ActiveLimit::ALL {
            let value = self.limit(limit);
            if !limit.range().contains(&value) {
                return Err(PropertyError::Active { limit, value });
            }
        }
        Ok(())
    }
}

/// The numbers of [`ActiveProperties`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ActiveLimit {
    AsyncMs,
    Instructions,
    MemoryBytes,
    WallMs,
    Messages,
}

impl ActiveLimit {
    pub const ALL: [ActiveLimit; 5] = [
        ActiveLimit::AsyncMs,
        ActiveLimit::Instructions,
        ActiveLimit::MemoryBytes,
        ActiveLimit::WallMs,
        ActiveLimit::Messages,
    ];

    /// The bucket property's name.
    pub fn name(self) -> &'static str {
        match self {
            ActiveLimit::AsyncMs => "aso_async_ms",
            ActiveLimit::Instructions => "aso_instructions",
            ActiveLimit::MemoryBytes => "aso_memory_bytes",
            ActiveLimit::WallMs => "aso_wall_ms",
            ActiveLimit::Messages => "aso_messages",
        }
    }

    /// What it may be set to: beyond, one object could hurt others.
    pub fn range(self) -> RangeInclusive<u32> {
        match self {
            ActiveLimit::AsyncMs => 1..=60_000,
            ActiveLimit::Instructions => 1..=10_000_000,
            ActiveLimit::MemoryBytes => 1..=1 << 20,
            ActiveLimit::WallMs => 1..=100,
            ActiveLimit::Messages => 0..=1000,
        }
    }
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
    pub aso: ActiveProperties,
}

/// How many replicas an object has, and how many of them a get and a put wait for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Replication {
    /// 1 to [`N_MAX`].
    pub n: u8,
    /// 1 to `n`.
    pub r: u8,
    /// 1 to `n`.
    pub w: u8,
}

impl Replication {
    /// True if all numbers are in their ranges.
    pub fn is_valid(&self) -> bool {
        let is_quorum = |quorum: u8| (1..=self.n).contains(&quorum);
        self.n <= N_MAX && is_quorum(self.r) && is_quorum(self.w)
    }

    /// How many of `owners` owners hold an acknowledged write at least, whenever it was acknowledged: 1 to `owners`.
    ///
    /// Not W: a write may be older than this W, and all that has held since then is that R owners do not all lack it.
    /// Where quorums need not overlap, older writes are promised nothing and newer ones have W copies.
    pub fn copies_at_least(&self, owners: usize) -> usize {
        let (r, w) = (owners.min(self.r as usize), owners.min(self.w as usize));
        w.min(owners + 1 - r)
    }
}

impl Default for Replication {
    fn default() -> Replication {
        BucketProperties::default().replication()
    }
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
            aso: ActiveProperties::default(),
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
    Active { limit: ActiveLimit, value: u32 },
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
            PropertyError::Active { limit, value } => {
                let range = limit.range();
                write!(f, "{} is {value}: it must be {} to {}", limit.name(), range.start(), range.end())
            }
            PropertyError::TooManyBuckets { limit } => write!(f, "more than {limit} buckets with properties"),
        }
    }
}

impl std::error::Error for PropertyError {}

impl BucketProperties {
    /// What an operator wants the replication to be; the ring says what is in force.
    pub fn replication(&self) -> Replication {
        Replication { n: self.n, r: self.r, w: self.w }
    }

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
        self.aso.check()
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
#[serde(from = "Stored", into = "Stored")]
pub struct BucketTable {
    entries: BTreeMap<Bytes, BucketEntry>,
    defaults: BucketProperties,
    /// Those in force for [`DEFAULT_BUCKET`]: all that Redis clients do asks for them, several times.
    usual: BucketProperties,
}

/// A table as it is stored and sent.
#[derive(Serialize, Deserialize)]
struct Stored {
    entries: BTreeMap<Bytes, BucketEntry>,
    defaults: BucketProperties,
}

impl From<Stored> for BucketTable {
    fn from(Stored { entries, defaults }: Stored) -> BucketTable {
        let mut table = BucketTable { entries, usual: defaults.clone(), defaults };
        table.note_usual();
        table
    }
}

impl From<BucketTable> for Stored {
    fn from(BucketTable { entries, defaults, .. }: BucketTable) -> Stored {
        Stored { entries, defaults }
    }
}

impl BucketTable {
    /// An empty table whose buckets have `defaults`.
    pub fn new(defaults: BucketProperties) -> BucketTable {
        BucketTable { entries: BTreeMap::new(), usual: defaults.clone(), defaults }
    }

    /// Changes what buckets without properties of their own have.
    pub fn set_defaults(&mut self, defaults: BucketProperties) {
        self.defaults = defaults;
        self.note_usual();
    }

    /// Takes over the replication that the ring was founded with for buckets without properties of their own.
    pub fn set_usual_replication(&mut self, Replication { n, r, w }: Replication) {
        self.defaults = BucketProperties { n, r, w, ..self.defaults.clone() };
        self.note_usual();
    }

    fn note_usual(&mut self) {
        let entry = self.entries.get(DEFAULT_BUCKET);
        self.usual = entry.map_or(&self.defaults, |entry| &entry.properties).clone();
    }

    /// The properties in force for `bucket`.
    pub fn properties(&self, bucket: &[u8]) -> &BucketProperties {
        match bucket == DEFAULT_BUCKET {
            true => &self.usual,
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
                self.note_usual();
                true
            }
        }
    }
}
