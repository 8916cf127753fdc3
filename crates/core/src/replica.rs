//! The node as the holder of copies: objects and hints in its store, its identity, and the dots it makes.
//!
//! Two laws are kept here. A dot is used once: readings come from a clock whose lease is durable with their first use.
//! And an actor forgets nothing: when writes it named may be gone from the store (a corrupt row, a handed-over
//! object, an unclean stop with `sync = interval`), the next write is made by a new actor. Without the second law a
//! fresh dot would seem to have seen, and so supersede, older ones that its maker no longer knows.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::causality::Dot;
use crate::census::LiveUntil;
use crate::clock::HybridClock;
use crate::known::KnownObjects;
use crate::message::ReadOutcome;
use crate::object::{common_bytes, is_placed, Object, Value};
use crate::placed::PlacedKeys;
use crate::store::{Durability, Space, Store, StoreError};
use crate::timers::Timers;
use crate::tree::{leaf_of, HashTree, RowSum};
use crate::types::{ActorId, NodeId, Now, ObjectKey, Rng};

/// The version of the records in the meta space that this program writes and reads.
pub const META_FORMAT: u8 = 6;
/// The version before, which is read too: its membership record had rings without a founding.
pub const META_FORMAT_BEFORE: u8 = 5;

const IDENTITY_ROW: &[u8] = b"identity";
/// The hash tree, of a node that has stopped: the last that it writes, and gone with the first that it writes again.
const TREE_ROW: &[u8] = b"tree";
/// Before the row of each object with a timer, in the meta space: its interval.
const TIMER_PREFIX: &[u8] = b"timer/";
/// Behind the last of these.
const TIMER_END: &[u8] = b"timer0";
/// Before the row of each object that chose its holders, in the meta space.
const PLACED_PREFIX: &[u8] = b"placed/";
/// Behind the last of these.
const PLACED_END: &[u8] = b"placed0";
/// Before the row of each active object of which a term was promised that nothing is written in yet, in the meta space.
const TERM_PREFIX: &[u8] = b"term/";
/// Behind the last of these.
const TERM_END: &[u8] = b"term0";

/// Who this node is, and what it may not forget. One row in the meta space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub node: NodeId,
    pub cluster: String,
    pub actor: ActorId,
    /// No reading at or above this was ever used.
    pub lease: u64,
    /// Writes that this actor made may be gone from the store: the next write takes a new actor.
    pub forgot: bool,
    /// The node stopped after its last write was durable.
    pub clean: bool,
    /// The boot of the machine in which the node last ran.
    pub boot: u64,
}

/// Why a record of the meta space cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaError {
    Store(StoreError),
    Format { found: u8 },
    Malformed,
}

/// What merging a peer's object did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merge {
    Changed,
    /// Everything in it was known.
    Known,
    /// It comes without the code and state that this node is to hold. Nothing was taken in.
    Lacking,
    /// Its dots lie absurdly far ahead.
    ClockSkew,
    /// Its bytes are no object.
    Malformed,
}

/// A row of this replica as found in its store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    Missing,
    Object(Bytes),
    /// The row cannot be read. Other replicas have it.
    Corrupt,
}

/// The store with the identity and clock that write to it.
pub struct Replica {
    store: Box<dyn Store>,
    /// Of objects that are in the store; never of one that was undone, dropped or replaced.
    known: KnownObjects,
    tree: HashTree,
    timers: Timers,
    placed: PlacedKeys,
    /// The terms of homes that were promised and in which nothing is stored yet: earlier ones are refused.
    promised: BTreeMap<ObjectKey, u64>,
    /// The store may hold a tree that the next change makes wrong.
    has_tree_row: bool,
    identity: Identity,
    clock: HybridClock,
    rng: Rng,
    identity_is_dirty: bool,
    must_renew: Option<&'static str>,
    renewed: Vec<&'static str>,
    needs_durable: bool,
    corrupt: Vec<String>,
    keeps_actor: bool,
    changes: Changes,
    /// An object was stored since the node started.
    has_saved: bool,
    /// See [`Replica::loaded_bytes`].
    loaded_bytes: u64,
}

/// Changes of rows, for who watches them.
struct Changes {
    is_watched: bool,
    keys: Vec<ObjectKey>,
    epoch: u32,
}

/// Nobody watches any more if so many changes were not looked at.
const CHANGES_MAX: usize = 1000;

impl Changes {
    fn note(&mut self, key: &ObjectKey) {
        if self.is_watched {
            self.keys.push(key.detached());
            if self.keys.len() > CHANGES_MAX {
                self.lose();
            }
        }
    }

    /// Any row may have changed.
    fn lose(&mut self) {
        self.keys.clear();
        self.is_watched = false;
        self.epoch = self.epoch.wrapping_add(1).max(1);
    }
}

/// The most of an object's name that a log line shows.
const NAME_BYTES_MAX: usize = 200;

/// The hash by which replicas compare an object's bytes, as far as they are to have them alike; never 0, which stands
/// for no object.
pub fn hash_of(object: &[u8]) -> u64 {
    xxh3_64(common_bytes(object)).max(1)
}

/// The hash of a key's row.
pub fn key_hash(row: &[u8]) -> u64 {
    xxh3_64(row)
}

/// The hash of a row by which comparisons sum up many: of its key and, by `hash_of`, its object.
pub fn row_hash(key: &[u8], object_hash: u64) -> u64 {
    object_hash ^ key_hash(key).rotate_left(32)
}

/// What the hash tree sums up of the row of `key` with the object in `bytes`.
pub fn row_sum(key: &[u8], bytes: &Bytes) -> RowSum {
    RowSum { hash: row_hash(key, hash_of(bytes)), until: LiveUntil::of_bytes(bytes) }
}

/// `key` for a log line: escaped, and cut where it is long. Keys are logged only here, because whoever looks for the
/// cause has to know which row was damaged.
fn named(key: &ObjectKey) -> String {
    let mut name = format!("{key:?}");
    if name.len() > NAME_BYTES_MAX {
        // Escaped bytes are ASCII, so this cuts no character.
        name.truncate(NAME_BYTES_MAX);
        name.push_str("...");
    }
    name
}

/// Reads a record of the meta space that is alike in both formats; `None` if it was never written.
pub fn load_meta<T: for<'a> Deserialize<'a>>(
    store: &mut dyn Store,
    row: &[u8],
) -> Result<Option<T>, MetaError> {
    load_meta_or(store, row, |record| postcard::from_bytes(record).ok())
}

/// Reads a record of the meta space, by `before` if it has the format before; `None` if it was never written.
pub fn load_meta_or<T: for<'a> Deserialize<'a>>(
    store: &mut dyn Store,
    row: &[u8],
    before: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>, MetaError> {
    let Some(bytes) = store.get(Space::Meta, row).map_err(MetaError::Store)? else {
        return Ok(None);
    };
    match bytes.split_first() {
        Some((&META_FORMAT, record)) => match postcard::from_bytes(record) {
            Ok(record) => Ok(Some(record)),
            Err(_) => Err(MetaError::Malformed),
        },
        Some((&META_FORMAT_BEFORE, record)) => before(record).map(Some).ok_or(MetaError::Malformed),
        Some((&found, _)) => Err(MetaError::Format { found }),
        None => Err(MetaError::Malformed),
    }
}

fn encode_meta<T: Serialize>(record: &T) -> Bytes {
    let bytes = vec![META_FORMAT];
    postcard::to_extend(record, bytes).expect("writing to memory does not fail").into()
}

impl Replica {
    /// Opens the identity in `store`, or makes one. `boot`: the machine's current boot.
    pub fn open(
        mut store: Box<dyn Store>,
        cluster: &str,
        mut rng: Rng,
        skew_ms_max: u64,
        known_bytes: usize,
        boot: u64,
    ) -> Result<Replica, MetaError> {
        let found: Option<Identity> = load_meta(&mut *store, IDENTITY_ROW)?;
        let is_new = found.is_none();
        let mut identity = found.unwrap_or_else(|| Identity {
            node: NodeId(rng.next_u64()),
            cluster: cluster.to_owned(),
            actor: ActorId(rng.next_u64()),
            lease: 0,
            forgot: false,
            clean: true,
            boot,
        });
        let must_renew = match () {
            _ if store.lost_writes() => Some("durable writes are gone from the store"),
            _ if !identity.clean && identity.boot != boot => Some("the machine went down without a stop"),
            _ => None,
        };
        // Remembered over the next restart too: there may be no write before it.
        identity.forgot |= must_renew.is_some();
        (identity.clean, identity.boot) = (false, boot);
        let clock = HybridClock::new(identity.lease, skew_ms_max);
        let tree = match store.lost_writes() {
            false => load_meta(&mut *store, TREE_ROW).ok().flatten().filter(HashTree::is_whole),
            true => None,
        };
        let mut replica = Replica {
            store,
            known: KnownObjects::new(known_bytes, identity.actor.0),
            tree: HashTree::new(),
            timers: Timers::default(),
            placed: PlacedKeys::default(),
            promised: BTreeMap::new(),
            has_tree_row: true,
            identity,
            clock,
            rng,
            identity_is_dirty: false,
            must_renew,
            renewed: Vec::new(),
            needs_durable: is_new,
            corrupt: Vec::new(),
            keeps_actor: false,
            loaded_bytes: 0,
            has_saved: false,
            changes: Changes { is_watched: false, keys: Vec::new(), epoch: 1 },
        };
        replica.tree = match tree {
            Some(tree) => tree,
            None if replica.is_empty() => HashTree::of_nothing(),
            None => HashTree::new(),
        };
        replica.save_identity();
        replica.find_timers();
        replica.find_placed();
        replica.find_promised();
        if is_new {
            // Whoever it greets remembers its id.
            replica.sync(Durability::Durable).map_err(MetaError::Store)?;
        }
        Ok(replica)
    }

    /// Breaks both laws, for the simulator: ignores the lease, or keeps the actor whatever was forgotten.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(&mut self, forget_lease: bool, keep_actor: bool) {
        self.keeps_actor = keep_actor;
        if forget_lease {
            self.clock.reset();
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub fn store_mut(&mut self) -> &mut dyn Store {
        &mut *self.store
    }

    /// What is held under `key`.
    pub fn load(&mut self, key: &ObjectKey) -> Held {
        match self.store.get(Space::Data, key.row()) {
            Ok(Some(bytes)) => {
                self.loaded_bytes += bytes.len() as u64;
                Held::Object(bytes)
            }
            Ok(None) => Held::Missing,
            Err(error) => {
                self.note_unread(key, error);
                Held::Corrupt
            }
        }
    }

    /// Records that a row could not be read: if it is damaged, what the actor wrote there may be forgotten.
    ///
    /// A row that just cannot be read now is still there. The store refuses what is written in the same turn.
    pub fn note_unread(&mut self, key: &ObjectKey, error: StoreError) {
        match error {
            StoreError::Corrupt { .. } => self.note_corruption(key, error),
            StoreError::Unreadable { .. } | StoreError::ReadOnly { .. } => {}
        }
    }

    /// The sum of the lengths of all rows that were ever loaded.
    pub fn loaded_bytes(&self) -> u64 {
        self.loaded_bytes
    }

    /// What is held under `key`, decoded; the second value is the bytes. An unknown object if nothing is.
    ///
    /// `None` if the row is corrupt.
    pub fn load_object(&mut self, key: &ObjectKey) -> Option<(Object, Option<Bytes>)> {
        match self.load(key) {
            Held::Missing => Some((Object::default(), None)),
            Held::Corrupt => None,
            Held::Object(bytes) => match Object::decode(&bytes) {
                Ok(object) => Some((object, Some(bytes))),
                Err(error) => {
                    self.note_corruption(key, error);
                    None
                }
            },
        }
    }

    /// What is held under `key`, for a node that holds an object with the hash `have`, 0 if none.
    pub fn compare(&mut self, key: &ObjectKey, have: u64) -> ReadOutcome {
        if have != 0 && self.known.hash(key) == Some(have) {
            return ReadOutcome::Same;
        }
        match self.load(key) {
            Held::Missing => ReadOutcome::Missing,
            Held::Object(bytes) if have != 0 => {
                let hash = hash_of(&bytes);
                self.known.set(key, hash, LiveUntil::of_bytes(&bytes).is_kept(), None);
                if hash == have {
                    ReadOutcome::Same
                } else {
                    ReadOutcome::Object(bytes)
                }
            }
            Held::Object(bytes) => ReadOutcome::Object(bytes),
            // Who asked sends what the others hold.
            Held::Corrupt => ReadOutcome::Failed,
        }
    }

    /// Shows the keys whose rows may have changed since the last call, and returns the number of the epoch, from 1: in
    /// each, all of them are shown.
    pub fn watch(&mut self, show: impl FnMut(&ObjectKey)) -> u32 {
        self.changes.is_watched = true;
        self.changes.keys.drain(..).as_slice().iter().for_each(show);
        self.changes.epoch
    }

    /// The hash of what is held under `key`, if it is remembered.
    pub fn known_hash(&self, key: &ObjectKey) -> Option<u64> {
        self.known.hash(key)
    }

    /// An object that stands for what is held under `key` when all of it is to be replaced, with the hash of what is
    /// held; `None` if only reading it can tell.
    pub fn blind_basis(&self, key: &ObjectKey) -> Option<(Object, u64)> {
        let (hash, context) = self.known.context(key)?;
        Some((Object::forgotten(context), hash))
    }

    /// Stores an object, whose bytes are `bytes`.
    pub fn save(&mut self, key: &ObjectKey, object: &Object, bytes: Bytes) {
        self.has_saved = true;
        let hash = hash_of(&bytes);
        let until = LiveUntil::of(object);
        self.update_tree(key, Some(RowSum { hash: row_hash(key.row(), hash), until }));
        // What is active is not replaced blindly: its code is asked.
        let is_active =
            object.0.values().iter().any(|(_, v)| matches!(v.value, Value::Active(_) | Value::Husk(_)));
        self.known.set(key, hash, until.is_kept(), (!is_active).then(|| object.context()));
        if is_active || !self.timers.is_empty() {
            self.note_timer(key, object.timer_ms());
        }
        if is_active || !self.placed.is_empty() {
            let is_spare = is_active && !object.spare_of(self.identity.node).is_empty();
            self.note_placed(key, is_placed(&bytes), is_spare);
        }
        self.changes.note(key);
        self.store.apply((Space::Data, key.row().clone(), Some(bytes)));
    }

    /// The row of `key`, as it is now, is about to be replaced by another, or dropped.
    fn update_tree(&mut self, key: &ObjectKey, after: Option<RowSum>) {
        let leaf = leaf_of(key.position());
        let before = match self.known.row(key) {
            _ if !self.tree.is_counted(leaf) => None,
            Some((hash, is_kept)) => Some((row_hash(key.row(), hash), is_kept)),
            None => match self.store.get(Space::Data, key.row()) {
                Ok(bytes) => bytes.map(|bytes| {
                    let row = row_sum(key.row(), &bytes);
                    (row.hash, row.until.is_kept())
                }),
                Err(_) => return self.tree.forget(leaf),
            },
        };
        self.tree.changed(key, before, after);
    }

    /// The timers of the objects that are held.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    pub fn timers_mut(&mut self) -> &mut Timers {
        &mut self.timers
    }

    fn note_timer(&mut self, key: &ObjectKey, interval_ms: u64) {
        if self.timers.set(key, interval_ms) {
            let row = [TIMER_PREFIX, key.row()].concat().into();
            let value = (interval_ms > 0).then(|| encode_meta(&interval_ms));
            self.store.apply((Space::Meta, row, value));
        }
    }

    /// Reads from the store what timers there are.
    fn find_timers(&mut self) {
        let mut timers = Timers::default();
        self.store.scan(Space::Meta, TIMER_PREFIX, TIMER_END, &mut |row, value| {
            let row = Bytes::copy_from_slice(&row[TIMER_PREFIX.len().min(row.len())..]);
            let interval_ms = value.ok().and_then(|value| postcard::from_bytes(value.get(1..)?).ok());
            if let (Ok(key), Some(interval_ms)) = (ObjectKey::from_row(row), interval_ms) {
                timers.set(&key, interval_ms);
            }
            true
        });
        timers.staged();
        self.timers = timers;
    }

    /// The objects held that chose their holders.
    pub fn placed(&self) -> &PlacedKeys {
        &self.placed
    }

    pub fn placed_mut(&mut self) -> &mut PlacedKeys {
        &mut self.placed
    }

    fn note_placed(&mut self, key: &ObjectKey, is_placed: bool, is_spare: bool) {
        if is_spare {
            self.placed.look_at(key);
        }
        if self.placed.set(key, is_placed) {
            let row = [PLACED_PREFIX, key.row()].concat().into();
            self.store.apply((Space::Meta, row, is_placed.then(|| encode_meta(&()))));
        }
    }

    /// Reads from the store which objects chose their holders.
    fn find_placed(&mut self) {
        let mut placed = PlacedKeys::default();
        self.store.scan(Space::Meta, PLACED_PREFIX, PLACED_END, &mut |row, _| {
            let row = Bytes::copy_from_slice(&row[PLACED_PREFIX.len().min(row.len())..]);
            ObjectKey::from_row(row).into_iter().for_each(|key| {
                placed.set(&key, true);
                placed.look_at(&key);
            });
            true
        });
        placed.staged();
        // They were looked at when they came.
        placed.take_news(usize::MAX);
        self.placed = placed;
    }

    /// Reads from the store which terms are promised.
    fn find_promised(&mut self) {
        let mut promised = BTreeMap::new();
        self.store.scan(Space::Meta, TERM_PREFIX, TERM_END, &mut |row, value| {
            let row = Bytes::copy_from_slice(&row[TERM_PREFIX.len().min(row.len())..]);
            let term = value.ok().and_then(|value| postcard::from_bytes(value.get(1..)?).ok());
            if let (Ok(key), Some(term)) = (ObjectKey::from_row(row), term) {
                promised.insert(key, term);
            }
            true
        });
        self.promised = promised;
    }

    /// The term that was promised to a home of `key` which has written nothing in it yet; 0: none.
    pub fn promised(&self, key: &ObjectKey) -> u64 {
        if self.promised.is_empty() {
            return 0;
        }
        self.promised.get(key).copied().unwrap_or(0)
    }

    /// Refuses homes of `key` in earlier terms from now on; durable with the next sync.
    pub fn promise(&mut self, key: &ObjectKey, term: u64) {
        if self.promised(key) < term {
            self.promised.insert(key.detached(), term);
            let row = [TERM_PREFIX, key.row()].concat().into();
            self.store.apply((Space::Meta, row, Some(encode_meta(&term))));
        }
    }

    /// A version of this term is stored: a home in an earlier one has not seen it, and is refused for that.
    pub fn keep_promise(&mut self, key: &ObjectKey, term: u64) {
        if (1..=term).contains(&self.promised(key)) {
            self.promised.remove(key);
            self.store.apply((Space::Meta, [TERM_PREFIX, key.row()].concat().into(), None));
        }
    }

    /// The sums of what is held.
    pub fn tree(&self) -> &HashTree {
        &self.tree
    }

    pub fn tree_mut(&mut self) -> &mut HashTree {
        &mut self.tree
    }

    /// Takes in a peer's object that was made from one with the hash `base`, 0 if unknown.
    ///
    /// If just that is held, the new object replaces it: nothing is read and nothing merged. Otherwise
    /// [`Replica::merge_in`].
    pub fn take_over(&mut self, now: Now, key: &ObjectKey, bytes: &Bytes, base: u64, lww: bool) -> Merge {
        if base != 0 && self.known.hash(key) == Some(base) {
            let Ok(incoming) = Object::decode(bytes) else {
                return Merge::Malformed;
            };
            let reading_max = self.clock.reading_max(now);
            let is_believed = incoming.context().dots().all(|dot| dot.counter <= reading_max);
            // The peer may not know yet that only the greatest dot is to stay, nor that this node keeps for another
            // what it has left out.
            if is_believed && !(lww && incoming.0.values().len() > 1) && !incoming.has_husk() {
                self.clock.observe(now, incoming.newest_reading());
                self.save(key, &incoming, bytes.clone());
                return Merge::Changed;
            }
        }
        self.merge_in(now, key, bytes, lww)
    }

    /// Merges a peer's object in. `lww`: only the greatest dot stays.
    pub fn merge_in(&mut self, now: Now, key: &ObjectKey, bytes: &Bytes, lww: bool) -> Merge {
        let Ok(incoming) = Object::decode(bytes) else {
            return Merge::Malformed;
        };
        let held = self.load_object(key);
        // What is held was believed once: a clock that went back since does not make it a lie.
        let known = held.as_ref().map(|(object, _)| object.context());
        let reading_max = self.clock.reading_max(now);
        let is_lie = |dot: Dot| dot.counter > reading_max && !known.is_some_and(|known| known.covers(dot));
        if incoming.context().dots().any(is_lie) {
            return Merge::ClockSkew;
        }
        if let Some((_, Some(held_bytes))) = &held {
            if held_bytes == bytes {
                return Merge::Known;
            }
        }
        self.clock.observe(now, incoming.newest_reading());
        let is_corrupt = held.is_none();
        // A corrupt row is simply replaced: what else was in it comes back from the other replicas.
        let (mut merged, held_bytes) = held.unwrap_or_default();
        merged.merge(&incoming);
        if lww {
            merged.keep_newest();
        }
        if merged.missing_from().contains(&self.identity.node) {
            if is_corrupt {
                // What cannot be read is of no use, and would be found again and again.
                self.drop_row(key);
            }
            return Merge::Lacking;
        }
        let merged_bytes = match merged == incoming {
            true => bytes.clone(),
            false => merged.encode(),
        };
        if held_bytes.as_ref() == Some(&merged_bytes) {
            return Merge::Known;
        }
        self.save(key, &merged, merged_bytes);
        Merge::Changed
    }

    /// True if an object was stored since the node started.
    pub fn has_saved(&self) -> bool {
        self.has_saved
    }

    /// True if an object of one version, made from one with the hash `base`, has seen all that is held under `key`. A
    /// row that cannot be read may hold anything, and one that has seen that version may hold it beside others.
    pub fn is_covered(&mut self, key: &ObjectKey, bytes: &Bytes, base: u64) -> bool {
        // What is held is all that it was made from.
        if base != 0 && self.known.hash(key) == Some(base) {
            return true;
        }
        let Some((held, held_bytes)) = self.load_object(key) else { return false };
        let Some(held_bytes) = held_bytes else { return true };
        if hash_of(&held_bytes) == hash_of(bytes) {
            return true;
        }
        // Bytes that are no object are refused as such.
        Object::decode(bytes).map_or(true, |incoming| {
            incoming.0.values().len() <= 1 && incoming.context().descends(held.context())
        })
    }

    /// Makes the row of `key` again what it was before a write of this node that others refused; `None`: there was
    /// none.
    ///
    /// The actor may forget that write: no answer depends on it, and its next one is to supersede what is left of it.
    pub fn put_back(&mut self, key: &ObjectKey, row: Option<Bytes>) {
        match row.as_ref().and_then(|bytes| Object::decode(bytes).ok()).zip(row) {
            Some((object, bytes)) => self.save(key, &object, bytes),
            None => self.drop_row(key),
        }
    }

    /// The greatest clock reading that is believed.
    pub fn reading_max(&self, now: Now) -> u64 {
        self.clock.reading_max(now)
    }

    /// A new dot, greater than everything in `object` and `above`. Its lease becomes durable with the write.
    pub fn make_dot(&mut self, now: Now, object: &Object, above: u64) -> Dot {
        self.clock.observe(now, object.newest_reading());
        self.clock.observe(now, above);
        if self.clock.runs_ahead(now) {
            self.renew_actor("the clock ran absurdly far ahead");
            self.clock.reset();
            self.clock.observe(now, object.newest_reading());
            self.clock.observe(now, above);
        } else if let Some(why) = self.must_renew {
            self.renew_actor(why);
        } else if self.identity.forgot {
            self.renew_actor("writes it made may be forgotten");
        }
        let (counter, lease) = self.clock.tick(now);
        if let Some(lease) = lease {
            self.identity.lease = lease;
            self.identity_is_dirty = true;
        }
        if self.identity_is_dirty {
            self.save_identity();
        }
        Dot { counter, actor: self.identity.actor }
    }

    /// The actor that the next write is made by.
    pub fn writing_actor(&mut self) -> ActorId {
        if let Some(why) = self.must_renew {
            self.renew_actor(why);
        } else if self.identity.forgot {
            self.renew_actor("writes it made may be forgotten");
        }
        self.identity.actor
    }

    /// A new dot greater than `above`, for what is not an object (bucket properties).
    pub fn make_stamp(&mut self, now: Now, above: u64) -> Dot {
        self.make_dot(now, &Object::default(), above)
    }

    /// From now on writes need a new actor: this one may have forgotten some of its own. Remembered over a restart too.
    pub fn must_renew(&mut self, why: &'static str) {
        self.must_renew = Some(why);
        self.note_forgetting();
    }

    fn note_forgetting(&mut self) {
        if !self.identity.forgot && !self.keeps_actor {
            self.identity.forgot = true;
            self.save_identity();
        }
    }

    /// Drops `object`, held under `key`, after it was handed over to its owner.
    pub fn drop_handed_over(&mut self, key: &ObjectKey, object: &Object) {
        self.drop_row(key);
        let is_own = object.context().counter(self.identity.actor) > 0;
        if is_own {
            self.note_forgetting();
        }
    }

    /// Drops a dead object that every member has held, or nothing. The actor need not remember it: nobody has an older
    /// write of its own left that the next one could seem to have seen.
    pub fn forget_dead(&mut self, key: &ObjectKey) {
        self.drop_row(key);
    }

    fn drop_row(&mut self, key: &ObjectKey) {
        self.update_tree(key, None);
        self.note_timer(key, 0);
        self.note_placed(key, false, false);
        self.known.forget(key);
        self.changes.note(key);
        self.store.apply((Space::Data, key.row().clone(), None));
    }

    /// True if no object is stored.
    pub fn is_empty(&mut self) -> bool {
        let mut is_empty = true;
        self.store.scan(Space::Data, &[], &[0xff; 9], &mut |_, _| {
            is_empty = false;
            false
        });
        is_empty
    }

    /// Marks that `owner` misses what is held under `key`. Returns true if that was not marked yet.
    pub fn add_hint(&mut self, owner: NodeId, key: &ObjectKey) -> bool {
        let row = hint_row(owner, key);
        let is_new = !matches!(self.store.get(Space::Hints, &row), Ok(Some(_)));
        // A fresh mark, so that the answer to an earlier delivery does not remove this one.
        let mark = Bytes::copy_from_slice(&self.rng.next_u64().to_le_bytes());
        self.store.apply((Space::Hints, row, Some(mark)));
        is_new
    }

    /// The mark of a hint; `None` if there is none.
    pub fn hint_mark(&mut self, owner: NodeId, key: &ObjectKey) -> Option<Bytes> {
        self.store.get(Space::Hints, &hint_row(owner, key)).ok().flatten()
    }

    /// Removes a hint.
    pub fn remove_hint(&mut self, owner: NodeId, key: &ObjectKey) {
        self.store.apply((Space::Hints, hint_row(owner, key), None));
    }

    /// Up to `limit` hints for `owner` after the row `after`, in row order, with their marks.
    pub fn hints(
        &mut self,
        owner: NodeId,
        after: Option<&ObjectKey>,
        limit: usize,
    ) -> Vec<(ObjectKey, Bytes)> {
        let mut from = owner.0.to_be_bytes().to_vec();
        if let Some(after) = after {
            from.extend_from_slice(after.row());
            from.push(0);
        }
        let mut to = owner.0.to_be_bytes().to_vec();
        to.extend_from_slice(&[0xff; 16]);
        let mut hints = Vec::new();
        self.store.scan(Space::Hints, &from, &to, &mut |row, mark| {
            let key = ObjectKey::from_row(Bytes::copy_from_slice(row.get(8..).unwrap_or(&[])));
            if let (Ok(key), Ok(mark)) = (key, mark) {
                hints.push((key, mark.clone()));
            }
            hints.len() < limit
        });
        hints
    }

    /// Number of hints by owner. Reads them all.
    pub fn count_hints(&mut self) -> std::collections::BTreeMap<NodeId, u64> {
        let mut counts = std::collections::BTreeMap::new();
        self.store.scan(Space::Hints, &[], &[0xff; 32], &mut |row, _| {
            if let Some(owner) = row.first_chunk::<8>() {
                *counts.entry(NodeId(u64::from_be_bytes(*owner))).or_default() += 1;
            }
            true
        });
        counts
    }

    /// Stores a record of the meta space.
    pub fn save_meta<T: Serialize>(&mut self, row: &'static [u8], record: &T) {
        self.store.apply((Space::Meta, Bytes::from_static(row), Some(encode_meta(record))));
    }

    /// Records that everything is durable and the node stops.
    pub fn stop_cleanly(&mut self) {
        self.identity.clean = true;
        self.save_identity();
    }

    /// Keeps the hash tree for the next start. Nothing may be stored after it. Errors: the disk refuses.
    pub fn close(&mut self) -> Result<(), StoreError> {
        let record = encode_meta(&self.tree);
        // Else its own batch would remove it again.
        self.has_tree_row = false;
        self.store.apply((Space::Meta, Bytes::from_static(TREE_ROW), Some(record)));
        self.sync(Durability::Durable)
    }

    /// True if the next sync must reach the disk, because a lease or an identity is in it.
    pub fn needs_durable(&self) -> bool {
        self.needs_durable
    }

    /// Has the next sync reach the disk.
    pub fn request_durable(&mut self) {
        self.needs_durable = true;
    }

    /// Hands everything stored since the last call to the engine, as one batch, and to the disk if `durability` says
    /// so.
    ///
    /// Errors: the disk refuses; everything since the last success is undone.
    pub fn sync(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.has_tree_row {
            self.store.apply((Space::Meta, Bytes::from_static(TREE_ROW), None));
        }
        match self.store.sync(durability) {
            Ok(()) => {
                self.has_tree_row = false;
                self.needs_durable &= durability != Durability::Durable;
                self.tree.staged();
                self.timers.staged();
                self.placed.staged();
                Ok(())
            }
            Err(error) => {
                self.tree.undone();
                self.timers.undone();
                self.placed.undone();
                self.find_promised();
                self.known.clear();
                self.changes.lose();
                self.identity_is_dirty = true;
                Err(error)
            }
        }
    }

    /// Descriptions of the corrupt rows found since the last call.
    pub fn take_corruptions(&mut self) -> Vec<String> {
        std::mem::take(&mut self.corrupt)
    }

    /// Why actors were renewed since the last call.
    pub fn take_renewals(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.renewed)
    }

    /// Records a corrupt row, found by a read or a scan: what the actor wrote there may be forgotten.
    pub fn note_corruption(&mut self, key: &ObjectKey, error: impl std::fmt::Display) {
        let detail = format!("object {}: {error}", named(key));
        self.corrupt.push(detail);
        // What is remembered of a row that cannot be read any more must not pass for the row. Which rows a damaged
        // block had, nobody knows.
        self.known.clear();
        self.changes.lose();
        // Also after a restart: by then the row may have been replaced, and nothing else would tell.
        self.must_renew("a corrupt row was found");
    }

    fn renew_actor(&mut self, why: &'static str) {
        self.must_renew = None;
        if self.keeps_actor {
            return;
        }
        self.identity.actor = ActorId(self.rng.next_u64());
        self.identity.forgot = false;
        self.identity_is_dirty = true;
        self.renewed.push(why);
    }

    fn save_identity(&mut self) {
        self.identity_is_dirty = false;
        self.needs_durable = true;
        let record = encode_meta(&self.identity);
        self.store.apply((Space::Meta, Bytes::from_static(IDENTITY_ROW), Some(record)));
    }
}

/// The row in the space of hints by which a node knows that `owner` misses something of `key`.
pub fn hint_row(owner: NodeId, key: &ObjectKey) -> Bytes {
    [&owner.0.to_be_bytes(), &key.row()[..]].concat().into()
}
