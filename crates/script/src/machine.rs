//! The machine as the core knows it: its objects by key, each with at most one run that waits.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::Bytes;
use oort_core::active::{
    Facts, Failure, FailureKind, HostResult, Invocation, Limits, Place, Sandbox, Turn, Value,
};
use oort_core::types::ObjectKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::limits::{LimitError, ScriptError};
use crate::meter::Clock;
use crate::object::{state_fields, Object};
use crate::vm::{Config, Step, Suspended, Vm};

/// The table of objects shrinks when it has this many times the places that it needs.
const SPARE_FACTOR: usize = 8;
/// The table of fewer objects does not.
const SPARE_MIN: usize = 64;

/// A virtual machine with the objects that were loaded into it.
pub struct Machine {
    vm: Vm,
    /// By place. Boxed: free places are small.
    residents: Vec<Option<Box<Resident>>>,
    free: Vec<Place>,
    places: HashMap<ObjectKey, Place, KeyHash>,
}

/// At a cache line's start: objects are called in any order, so that each of their lines has to be fetched.
#[repr(align(64))]
struct Resident {
    key: ObjectKey,
    object: Object,
    waiting: Option<Box<Suspended>>,
}

impl Machine {
    /// Makes a machine without objects.
    ///
    /// `clock` gives microseconds that only grow; best the processor time of the thread. It bounds the time of calls.
    ///
    /// Errors: `Machine`, without memory.
    pub fn new(clock: Clock) -> Result<Machine, ScriptError> {
        let vm = Vm::new(Config { clock, ..Config::default() })?;
        let places = HashMap::with_hasher(KeyHash::new());
        Ok(Machine { vm, residents: Vec::new(), free: Vec::new(), places })
    }

    /// Collects all garbage at once. For tests and measurements: it takes as long as the machine is large.
    ///
    /// Errors: `Machine`.
    pub fn collect(&mut self) -> Result<(), ScriptError> {
        self.vm.collect()
    }

    fn object(&self, key: &ObjectKey) -> Option<&Object> {
        let Place(at) = self.places.get(key)?;
        self.residents[*at as usize].as_deref().map(|resident| &resident.object)
    }

    /// Errors: whoever asks for an object that is not loaded, or for a run that does not wait, has a fault of its own,
    /// which shall not end the node.
    fn resident(&mut self, key: &ObjectKey) -> Result<(&mut Vm, &mut Resident), Failure> {
        self.resident_at(key, Place::default())
    }

    /// As `resident`, looking at a place first.
    fn resident_at(&mut self, key: &ObjectKey, place: Place) -> Result<(&mut Vm, &mut Resident), Failure> {
        let is_there = |place: Place| {
            let resident = self.residents.get(place.0 as usize).and_then(Option::as_deref);
            resident.is_some_and(|resident| resident.key == *key)
        };
        let place = match is_there(place) {
            true => Some(place),
            false => self.places.get(key).copied(),
        };
        match place.and_then(|Place(at)| self.residents[at as usize].as_deref_mut()) {
            Some(resident) => Ok((&mut self.vm, resident)),
            None => Err(misused("the object is not loaded")),
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Box<Resident>> {
        let place = self.places.remove(key)?;
        self.free.push(place);
        self.residents[place.0 as usize].take()
    }

    /// Takes an object in, in place of any that is there, which goes in any case.
    fn replace(&mut self, key: &ObjectKey, object: Result<Object, Failure>) -> Result<Place, Failure> {
        let before = self.remove(key);
        let mut object = object?;
        if let Some(before) = before {
            // What went back to an earlier state reuses no dots that it has left behind, and gets no new messages.
            object.last_dot = object.last_dot.max(before.object.last_dot);
            object.messages_left = object.messages_left.min(before.object.messages_left);
        }
        Ok(self.insert(key.clone(), object))
    }

    fn insert(&mut self, key: ObjectKey, object: Object) -> Place {
        let place = self.free.pop().unwrap_or_else(|| {
            self.residents.push(None);
            Place(self.residents.len() as u32 - 1)
        });
        self.residents[place.0 as usize] =
            Some(Box::new(Resident { key: key.clone(), object, waiting: None }));
        self.places.insert(key, place);
        place
    }
}

impl Sandbox for Machine {
    /// An object that cannot be loaded leaves none of its key behind.
    fn load(
        &mut self,
        key: &ObjectKey,
        source: &Bytes,
        state: Option<&Bytes>,
        limits: &Limits,
        facts: Facts,
    ) -> Result<Place, Failure> {
        let state = state.map(|state| &state[..]);
        let object = self.vm.load(key.key_bytes(), source, state, *limits, facts).map_err(failure);
        self.replace(key, object)
    }

    fn reload(
        &mut self,
        key: &ObjectKey,
        source: &Bytes,
        limits: &Limits,
        facts: Facts,
    ) -> Result<(), Failure> {
        let (vm, resident) = self.resident(key)?;
        let object = vm.reload(&mut resident.object, source, *limits, facts).map_err(failure);
        self.replace(key, object)?;
        Ok(())
    }

    fn renew(
        &mut self,
        key: &ObjectKey,
        source: &Bytes,
        state: &Bytes,
        limits: &Limits,
        facts: Facts,
    ) -> Result<Place, Failure> {
        let object = self.vm.renew(key.key_bytes(), source, state, *limits, facts).map_err(failure);
        self.replace(key, object)
    }

    fn undo(&mut self, key: &ObjectKey, facts: Facts) -> Result<(), Failure> {
        let (vm, resident) = self.resident(key)?;
        resident.waiting = None;
        vm.undo(&mut resident.object, facts).map_err(failure)
    }

    fn has(&self, key: &ObjectKey, function: &str) -> bool {
        self.object(key).is_some_and(|object| object.has(function))
    }

    fn call(&mut self, key: &ObjectKey, place: Place, invocation: &Invocation) -> Turn {
        let (vm, resident) = match self.resident_at(key, place) {
            Ok((_, resident)) if resident.waiting.is_some() => {
                return Turn::Failed(misused("a run of the object waits"))
            }
            Ok(found) => found,
            Err(failure) => return Turn::Failed(failure),
        };
        let step = vm.call(&mut resident.object, invocation);
        turn(resident, step)
    }

    fn resume(&mut self, key: &ObjectKey, result: HostResult, facts: Facts) -> Turn {
        let (vm, resident) = match self.resident(key) {
            Ok(found) => found,
            Err(failure) => return Turn::Failed(failure),
        };
        let Some(waiting) = resident.waiting.take() else {
            return Turn::Failed(misused("no run of the object waits"));
        };
        let step = vm.resume(&mut resident.object, waiting, facts, result);
        turn(resident, step)
    }

    fn save(&mut self, key: &ObjectKey) -> Result<Bytes, Failure> {
        let (vm, resident) = self.resident(key)?;
        match resident.waiting {
            // It stores itself.
            Some(_) => vm.encode(&mut resident.object).map(Bytes::from).map_err(failure),
            None => Ok(Bytes::copy_from_slice(&resident.object.kept)),
        }
    }

    fn fields(&mut self, key: &ObjectKey) -> Result<Value, Failure> {
        self.resident(key)?.1.object.fields().map_err(failure)
    }

    fn field(&self, key: &ObjectKey, name: &str) -> Value {
        self.object(key).and_then(|object| object.field(name).ok()).unwrap_or(Value::Nil)
    }

    fn set_field(&mut self, key: &ObjectKey, name: &str, value: &Value) -> Result<(), Failure> {
        let (vm, resident) = self.resident(key)?;
        vm.set_field(&mut resident.object, name, value).map_err(failure)
    }

    fn state_fields(&self, state: &Bytes) -> Result<Value, Failure> {
        state_fields(state).map_err(failure)
    }

    fn join(&mut self, key: &ObjectKey, state: &Bytes) -> Result<bool, Failure> {
        let (vm, resident) = self.resident(key)?;
        vm.join(&mut resident.object, state).map_err(failure)
    }

    fn refill_messages(&mut self, key: &ObjectKey) {
        if let Ok((_, resident)) = self.resident(key) {
            resident.object.refill_messages();
        }
    }

    fn messages_left(&self, key: &ObjectKey) -> u32 {
        self.object(key).map_or(0, Object::messages_left)
    }

    fn unload(&mut self, key: &ObjectKey) {
        self.remove(key);
        if self.places.capacity() > SPARE_FACTOR * self.places.len().max(SPARE_MIN) {
            self.places.shrink_to(2 * self.places.len());
        }
    }

    fn set_node(&mut self, ip: &str, id: &str) {
        self.vm.set_node(ip, id);
    }

    fn used_bytes(&self) -> usize {
        // One byte more is the table's own.
        let entry_bytes = size_of::<(ObjectKey, Place)>() + 1;
        let place_bytes = size_of::<Option<Box<Resident>>>() + size_of::<Place>();
        let outside_bytes = self.places.capacity() * entry_bytes
            + self.residents.capacity() * place_bytes
            + self.places.len() * size_of::<Resident>();
        self.vm.used_bytes() + outside_bytes
    }
}

/// Keeps the run of a step that waits; that of any other is over.
fn turn(resident: &mut Resident, step: Step) -> Turn {
    match step {
        Step::Done(done) => Turn::Done(done),
        Step::Suspended(mut suspended) => {
            let request = suspended.take_request();
            resident.waiting = Some(suspended);
            Turn::Waits(request)
        }
        Step::Failed(error) => Turn::Failed(failure(error)),
    }
}

fn misused(message: &str) -> Failure {
    failure(ScriptError::Machine { message: message.to_string() })
}

fn failure(error: ScriptError) -> Failure {
    let kind = match &error {
        ScriptError::Syntax { .. } => FailureKind::Syntax,
        ScriptError::NoFunction { .. } => FailureKind::NoFunction,
        // Found out without much work, like an error.
        ScriptError::Runtime { .. }
        | ScriptError::Unkeepable { .. }
        | ScriptError::BadState { .. }
        | ScriptError::Machine { .. }
        | ScriptError::Limit { limit: LimitError::Memory { .. }, .. }
        // All callers of an object share its messages: whoever finds none left has not used them up.
        | ScriptError::Limit { limit: LimitError::Messages { .. }, .. } => FailureKind::Error,
        ScriptError::Limit { .. } => FailureKind::Limit,
    };
    Failure { kind, message: error.to_string(), trace: error.trace().to_string() }
}

/// Hashes keys with a seed that clients do not know, so that none can choose keys of one hash. Nothing is ever done in
/// the order of the hashes.
struct KeyHash(u64);

impl KeyHash {
    fn new() -> KeyHash {
        KeyHash(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for KeyHash {
    type Hasher = KeyHasher;
    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// A key is one slice: its length is in the hash of its bytes.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
