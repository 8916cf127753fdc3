//! Objects that carry code: what is stored of them, what is asked of them, and what runs them.
//!
//! The core decides where and when a handler runs and what becomes of its changes; how Lua is run, and that it can hurt
//! nobody, is a [`Sandbox`]'s business. Read `node::active` for the life of a call.
//!
//! Source: Comet §3; DESIGN §5.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Reader, Writer};
use crate::types::{NodeId, ObjectKey};

/// The shortest time between two runs of `onTimer`, in milliseconds.
pub const INTERVAL_MS_MIN: u64 = 1_000;
/// The longest, about 115 days: what does not fit is taken for it.
pub const INTERVAL_MS_MAX: u64 = 10_000_000_000;
/// The interval of an object that names none.
pub const INTERVAL_MS_DEFAULT: u64 = 60_000;

/// An active object as it is stored: code and state, and what nodes must know without running it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Active {
    /// Lua source.
    pub source: Bytes,
    /// Its fields in the sandbox's encoding.
    pub state: Bytes,
    /// Time between two runs of `onTimer` in milliseconds; 0: it has no timer.
    pub interval_ms: u64,
    /// Number of the interval since 1970 in which `onTimer` last ran, or in which the object was made.
    pub last_interval: u64,
    /// Where its copies are; `None`: at all owners of its key.
    pub placement: Option<Placement>,
    /// The number of the home's term in which it was written: each home that loads an object begins one, above all that
    /// it has seen. Of concurrent versions the one of the latest term leads. 0: written before there were terms.
    pub term: u64,
}

impl Active {
    /// What is left of it where it has no copy; `None` if it has copies at all owners.
    pub fn husk(&self) -> Option<Husk> {
        let (interval_ms, last_interval) = (self.interval_ms, self.last_interval);
        Some(Husk { interval_ms, last_interval, placement: self.placement.clone()?, term: self.term })
    }

    /// Source and state. The rest stands before them, where it is encoded.
    pub(crate) fn encode_body(&self, out: &mut Writer) {
        out.bytes(&self.source);
        out.bytes(&self.state);
    }
}

/// The nodes that an object's `selectReplicas`, or its own `put`, chose for its copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// At least one, in ascending order.
    pub holders: Vec<NodeId>,
    /// [`owners_hash`] of those among whom they were chosen: among others they are chosen anew.
    pub chosen_from: u64,
}

/// The hash of the owners of a key, whatever their order.
pub fn owners_hash(owners: &[NodeId]) -> u64 {
    let mut ids: Vec<u64> = owners.iter().map(|owner| owner.0).collect();
    ids.sort_unstable();
    let bytes: Vec<u8> = ids.into_iter().flat_map(u64::to_le_bytes).collect();
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// An active object at an owner that holds no copy of it: what nodes must know to find it and to wake it in time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Husk {
    pub interval_ms: u64,
    pub last_interval: u64,
    pub placement: Placement,
    /// As [`Active::term`]; encoded with the version's flags.
    pub term: u64,
}

impl Husk {
    /// The object with its source and state.
    pub(crate) fn filled(self, source: Bytes, state: Bytes) -> Active {
        let Husk { interval_ms, last_interval, placement, term } = self;
        Active { source, state, interval_ms, last_interval, placement: Some(placement), term }
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        out.varint(self.interval_ms);
        out.varint(self.last_interval);
        out.fixed(self.placement.chosen_from);
        out.varint(self.placement.holders.len() as u64);
        for holder in &self.placement.holders {
            out.fixed(holder.0);
        }
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Husk, DecodeError> {
        let (interval_ms, last_interval) = (input.varint("timer interval")?, input.varint("timer")?);
        let chosen_from = input.fixed("owners")?;
        let mut holders = Vec::new();
        for _ in 0..input.count(8, "holders")? {
            let holder = NodeId(input.fixed("holder")?);
            if holders.last().is_some_and(|last| *last >= holder) {
                return Err(DecodeError::Invalid { field: "holder order" });
            }
            holders.push(holder);
        }
        if holders.is_empty() {
            return Err(DecodeError::Invalid { field: "holders" });
        }
        Ok(Husk { interval_ms, last_interval, placement: Placement { holders, chosen_from }, term: 0 })
    }
}

/// A value without code: what handlers take, return and keep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Value {
    Nil,
    Bool(bool),
    Integer(i64),
    Number(f64),
    Bytes(#[serde(with = "text")] Vec<u8>),
    Array(Vec<Value>),
    /// In ascending order of the keys when it comes from the sandbox.
    Map(Vec<(Value, Value)>),
}

impl PartialEq for Value {
    /// Numbers are equal if their bits are.
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Nil, Value::Nil) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Integer(a), Value::Integer(b)) => a == b,
            (Value::Number(a), Value::Number(b)) => a.to_bits() == b.to_bits(),
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Array(a), Value::Array(b)) => a == b,
            (Value::Map(a), Value::Map(b)) => a == b,
            _ => false,
        }
    }
}
impl Eq for Value {}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Bytes(text.as_bytes().to_vec())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Integer(number)
    }
}

impl Value {
    /// The value of `key` in a map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Map(entries) = self else { return None };
        let entry = entries.iter().find(|(k, _)| matches!(k, Value::Bytes(name) if name == key.as_bytes()));
        entry.map(|(_, value)| value)
    }
}

/// Bytes as serde's bytes: the same encoding as a sequence of numbers has, made and read at once.
mod text {
    use serde::{de, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// Who calls, as the node saw it: objects cannot forge it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Caller {
    /// Its address as text.
    pub ip: Option<String>,
    pub port: Option<u16>,
    /// The name the client goes by, if it has one.
    pub user: Option<Bytes>,
    /// Where the client says it is in the network, as numbers.
    pub coordinate: Option<Value>,
    /// The node that the client is connected to.
    pub node: Option<NodeId>,
    /// A key under which the object may put one reply, through `node` (Comet §3.3).
    pub reply_key: Option<Bytes>,
}

/// What a client asks an active object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Call {
    pub what: Ask,
    pub arguments: Vec<Value>,
    /// `None`: nobody in particular.
    pub caller: Option<Arc<Caller>>,
}

/// Which of the things that an active object can be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// `onGet`; what is no active object answers with its value.
    Get,
    /// A function of the object's own.
    Function(Bytes),
    /// What its home knows of it (`ASO.INFO`).
    Info,
}

/// What a call is handed besides its arguments: the sandbox has no clock and no randomness of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The time in milliseconds since 1970.
    pub now_ms: u64,
    /// What `math.random` starts from.
    pub seed: u64,
    /// Under which convergent fields count what this node adds; never used by two memories of writes.
    pub actor: u64,
}

/// One run of a function.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    pub function: &'a str,
    pub caller: CallerPlace<'a>,
    pub arguments: &'a [Value],
    pub facts: Facts,
}

/// Where a function expects its caller: `onGet(caller, ...)`, but `onUpdate(new, caller)`.
#[derive(Clone, Copy, Debug)]
pub enum CallerPlace<'a> {
    None,
    First(&'a Caller),
    Last(&'a Caller),
}

/// How far a run got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    Done(Done),
    /// The handler waits: [`Sandbox::resume`] goes on.
    Waits(HostRequest),
    Failed(Failure),
}

/// The end of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    pub answer: Answer,
    /// The object asked to be deleted.
    pub is_deleted: bool,
    pub instructions: u32,
}

/// What a function returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The object itself, as `onPut` and `onUpdate` do.
    Object,
    Value(Value),
}

/// What a handler that waits has asked of its node. Only its own key is within its reach, except for one reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostRequest {
    /// The nodes responsible for the object's key: answered with an array of maps with an `id`.
    Lookup,
    /// The object's fields as these nodes hold them; at the preference list if none are named. By [`NodeId`] text.
    Get { nodes: Vec<Vec<u8>> },
    /// Stores under the object's own key at these nodes, or at the preference list.
    Put { data: PutData, nodes: Vec<Vec<u8>> },
    /// The one answer to the key and node that the caller named.
    Reply { key: Vec<u8>, node: Vec<u8>, value: Value },
}

/// What is put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PutData {
    /// The object itself, code and state.
    Object,
    Value(Value),
}

/// How a host request ended. An error becomes `nil` and its text in Lua.
pub type HostResult = Result<Value, String>;

/// Why a run failed, for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
    /// Lua's trace of calls, or empty.
    pub trace: String,
}

/// What kind of failure it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FailureKind {
    /// The source does not compile.
    Syntax,
    /// The code raised an error, or left a state that cannot be kept. All changes of the call are undone.
    Error,
    /// A limit on work was reached: time, instructions or memory. All changes of the call are undone, and its
    /// caller rests.
    Limit,
    /// The object has no such function.
    NoFunction,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// How instructions are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fuel {
    /// Every bytecode instruction counts one. Costs a tight loop about three times its time.
    #[default]
    Exact,
    /// Every safepoint (a loop's turn, a call, a return) counts eight. Costs a tight loop a tenth. The bound it keeps
    /// is on safepoints: between two of them lies at most the straight code of one function.
    Safepoints,
}

impl Fuel {
    pub const ALL: [Fuel; 2] = [Fuel::Exact, Fuel::Safepoints];

    /// As the bucket property `aso_fuel` has it.
    pub fn name(self) -> &'static str {
        match self {
            Fuel::Exact => "exact",
            Fuel::Safepoints => "safepoints",
        }
    }
}

/// What one object may use. The defaults are Comet's (§3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub fuel: Fuel,
    /// Bytecode instructions of one handler call, its callbacks and resumed parts included.
    pub instructions: u32,
    /// Source and encoded state together. Also bounds what a handler returns.
    pub memory_bytes: u32,
    /// Time that a call may run, without the time it waits.
    pub wall_us: u32,
    /// Messages, one for each node addressed, in one timer interval.
    pub messages: u32,
}

/// Where a sandbox has an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(pub u32);

/// What runs the code of active objects. One thread uses it.
///
/// It keeps the objects that were loaded, by key, until they are unloaded. Of one object one run is under way at a
/// time, those that wait included: that is for the caller to keep. Who asks for an object that is not loaded gets a
/// [`FailureKind::Limit`], or nothing.
pub trait Sandbox {
    /// Makes an object from its source and, unless it is new, its state, in place of any of this key. Returns where the
    /// sandbox has it, for as long as it is there.
    fn load(
        &mut self,
        key: &ObjectKey,
        source: &Bytes,
        state: Option<&Bytes>,
        limits: &Limits,
        facts: Facts,
    ) -> Result<Place, Failure>;

    /// Gives an object that is loaded new code: its fields stay, and those that it has not are as the code makes them.
    /// An object whose code cannot be loaded is gone.
    fn reload(
        &mut self,
        key: &ObjectKey,
        source: &Bytes,
        limits: &Limits,
        facts: Facts,
    ) -> Result<(), Failure>;

    /// As `reload`, of an object that cannot be loaded: from the state that is stored of it.
    fn renew(
        &mut self,
        key: &ObjectKey,
        source: &Bytes,
        state: &Bytes,
        limits: &Limits,
        facts: Facts,
    ) -> Result<Place, Failure>;

    /// Ends the object's run and takes back all that it did: the object is what it was before, or what it was when the
    /// run last stored it. Errors: then only `save` still knows what that was.
    fn undo(&mut self, key: &ObjectKey, facts: Facts) -> Result<(), Failure>;

    /// True if the object defines this function.
    fn has(&self, key: &ObjectKey, function: &str) -> bool;

    /// Runs a function. `place`: where `load` has said that the object is; with any other it is looked for.
    fn call(&mut self, key: &ObjectKey, place: Place, invocation: &Invocation) -> Turn;

    /// Goes on with the run that waits.
    fn resume(&mut self, key: &ObjectKey, result: HostResult, facts: Facts) -> Turn;

    /// The object's state in bytes; equal states have equal bytes. Errors: while a run waits, it may hold what cannot
    /// be kept, or too much. No run that is done has left such a state: it has failed instead.
    fn save(&mut self, key: &ObjectKey) -> Result<Bytes, Failure>;

    /// All data fields, as `onUpdate` gets those of a new object and `get` those that are stored. Errors as `save`.
    fn fields(&mut self, key: &ObjectKey) -> Result<Value, Failure>;

    /// A field; `Nil` if there is none, or none that can be kept.
    fn field(&self, key: &ObjectKey, name: &str) -> Value;

    /// Sets a field.
    fn set_field(&mut self, key: &ObjectKey, name: &str, value: &Value) -> Result<(), Failure>;

    /// The fields in a stored state. Errors: it is none.
    fn state_fields(&self, state: &Bytes) -> Result<Value, Failure>;

    /// Joins a concurrent state of the same object into the one that is loaded: fields of convergent types are merged,
    /// of all others those that are loaded stay. True if nothing but convergent fields differed, so nothing is lost.
    fn join(&mut self, key: &ObjectKey, state: &Bytes) -> Result<bool, Failure>;

    /// A timer interval has begun: messages may be sent again.
    fn refill_messages(&mut self, key: &ObjectKey);

    /// Messages that may still be sent in this interval.
    fn messages_left(&self, key: &ObjectKey) -> u32;

    /// Forgets the object and its run.
    fn unload(&mut self, key: &ObjectKey);

    /// Who the node is, for those that ask.
    fn set_node(&mut self, ip: &str, id: &str);

    /// Bytes that the sandbox takes with all objects.
    fn used_bytes(&self) -> usize;
}
