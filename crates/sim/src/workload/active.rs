//! What the clients ask active objects: their sources, and the calls and writes of each role.

use std::sync::Arc;

use bytes::Bytes;
use oort_core::active::{Ask, Call, Caller, Value};
use oort_core::bucket::{ActiveDurability, ActiveProperties, BucketProperties};
use oort_core::client::{Operation, Quorum, RequestId, Want};
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::types::{ObjectKey, Rng};

use super::{BucketSpec, KeySpec, Role};
use crate::history::mark;

/// Counts in fields that converge: at once, after a wait for its node, and before one; or fails when it has counted, by
/// an error or by never ending. Another creation leaves it as it is.
pub const ACTIVE_SOURCE: &str = "aso.hits = comet.counter() aso.log = comet.set()
function hit(n, mark) self.hits:add(n) self.log:add(mark) return self.hits:value() end
function look(n, mark) comet.get() comet.lookup() return hit(n, mark) end
function save(n, mark) hit(n, mark) comet.put(self) return self.hits:value() end
function fail(n, mark) hit(n, mark) if n % 4 == 0 then while true do end end error('on purpose') end
function aso:onUpdate(new, caller) return self end
function onGet() return self.hits:value() end";
/// Makes it have its copies at all owners but one or two, now these and now others.
const SELECT_REPLICAS: &str = "\nfunction selectReplicas(neighbors)
  for i = 1, math.random(2) do
    if #neighbors > 1 then table.remove(neighbors, math.random(#neighbors)) end
  end
  return neighbors
end";
/// Counts in a plain field and notes who has counted, and in another whose call is half done: at once, after a wait for
/// its node, and before one; or fails when it has counted, before a wait and after; or changes more after it has stored
/// itself. A write on its key counts too, accepted or refused.
pub const TALLY_SOURCE: &str = "aso.n = 0 aso.seen = {} aso.open = 0
function bump(mark) self.n = self.n + 1 self.seen[mark] = self.n return self.n end
function wait(mark) comet.lookup() return bump(mark) end
function linger(mark)
  self.open = self.open + 1
  local n = bump(mark)
  comet.lookup()
  self.open = self.open - 1
  return n
end
function brood(mark) local n = bump(mark) comet.get() return n end
function save(mark) local n = bump(mark) comet.put(self) self.saved = mark return n end
function spoil(mark) bump(mark) error('on purpose') end
function regret(mark) bump(mark) comet.get() error('on purpose') end
function aso:onUpdate(new, caller)
  if type(new) == 'table' and new.mark then
    bump(new.mark)
    if new.refused then return nil end
  end
  return self
end
function onGet() return self.n end";
/// Notes when its timer ran.
const TICKER_SOURCE: &str = "aso.interval = 1 aso.n = 0 aso.runs = {}
function aso:onTimer() table.insert(self.runs, comet.systemTime()) end
function bump() self.n = self.n + 1 return self.n end
function aso:onUpdate(new, caller) return self end
function onGet() return #self.runs end";
/// The same of a timer that waits.
const SLOW_TICKER: &str = "\naso.interval = 2
function aso:onTimer() comet.get() table.insert(self.runs, comet.systemTime()) comet.lookup() end";
/// Comes and goes: lets itself be overwritten or not, and deletes itself. What it changes when it refuses may never be
/// stored.
pub const CHANGING_SOURCE: &str = "aso.n = 0 aso.seen = {} aso.interval = 1
function aso:onTimer() end
function bump(mark) self.n = self.n + 1 self.seen[mark] = self.n return self.n end
function spoil(mark) bump(mark) error('on purpose') end
function regret(mark) bump(mark) comet.get() error('on purpose') end
function burn(mark) bump(mark) while true do end end
function leave(mark) local n = bump(mark) comet.deleteSelf() return n end
function aso:onUpdate(new, caller)
  local text = type(new) == 'table' and new.says or new
  if text ~= 'no' and text ~= 'fail' then return new end
  self.n = self.n + 1000
  self.seen['dirty!'] = self.n
  if text == 'fail' then error('on purpose') end
end
function onGet() return self.n end";
/// New code for it, that counts by tens and lets itself be overwritten.
pub const CHANGED_SOURCE: &str = "aso.m = 7 aso.interval = 1
function aso:onTimer() end
function bump(mark) self.n = self.n + 10 self.seen[mark] = self.n return self.n end
function burn(mark) bump(mark) while true do end end
function extra() return self.m end
function leave(mark) local n = bump(mark) comet.deleteSelf() return n end
function onGet() return self.n end";
/// Runs at two homes at once.
pub const TWIN_SOURCE: &str = "aso.hits = comet.counter() aso.n = 0
function hit(n) self.hits:add(1) self.n = self.n + n return self.n end
function spoil() hit(5) error('on purpose') end
function aso:onMerge(other) self.n = self.n + other.n end
function aso:onGet() return self.hits:value() * 1000 + self.n end";
/// What an object of [`CHANGING_SOURCE`] notes when it refuses.
pub const DIRTY: &[u8] = b"dirty!";

/// The bucket of the active objects that count in convergent fields.
pub const ACTIVE_BUCKET: &[u8] = b"active";
/// The bucket of the objects that count in plain fields: whatever is drawn for the others, `quorum`.
pub const TALLY_BUCKET: &[u8] = b"tally";
/// The bucket of the objects with timers: `quorum` too.
pub const TICKER_BUCKET: &[u8] = b"ticker";
/// The bucket of the objects that come and go.
pub const CHANGING_BUCKET: &[u8] = b"changing";
/// The bucket of the objects that two homes run at once, by one answer and one copy.
pub const TWIN_BUCKET: &[u8] = b"twin";
/// How many objects there are of each role that clients ask.
const KEYS: usize = 2;
/// How many active objects there are in all.
pub(super) const ACTIVE_KEYS: usize = 4 * KEYS + 1;

/// n, r and w of the buckets whose quorums overlap.
type Numbers = (u8, u8, u8);

/// The buckets of active objects and their keys, [`ACTIVE_KEYS`] of them. Those that count in convergent fields, and
/// those that come and go, are of this durability, and the last `placed` of the former choose their holders. All but
/// the former are in buckets with the numbers of `quorum`.
pub(super) fn active_specs(
    durability: ActiveDurability,
    placed: usize,
    quorum: Numbers,
) -> (Vec<BucketSpec>, Vec<KeySpec>) {
    let always = ActiveDurability::Quorum;
    let usual = BucketProperties::default();
    let usual = (usual.n, usual.r, usual.w);
    let bucket = |name: &'static [u8], durability, (n, r, w)| {
        let async_ms = if name == CHANGING_BUCKET || name == TWIN_BUCKET { 200 } else { 1_000 };
        // Enough for all calls that are meant to wait.
        let messages = if name == TALLY_BUCKET { 500 } else { ActiveProperties::default().messages };
        let aso = ActiveProperties { durability, async_ms, messages, ..ActiveProperties::default() };
        let properties = BucketProperties { aso, n, r, w, ..BucketProperties::default() };
        BucketSpec { name: Bytes::from_static(name), properties }
    };
    let buckets = vec![
        bucket(ACTIVE_BUCKET, durability, usual),
        bucket(TALLY_BUCKET, always, quorum),
        bucket(TICKER_BUCKET, always, quorum),
        bucket(CHANGING_BUCKET, durability, quorum),
        bucket(TWIN_BUCKET, ActiveDurability::Async, (3, 1, 1)),
    ];
    let key = |bucket: &[u8], name: String, role| {
        let key = ObjectKey::new(bucket, name.as_bytes()).expect("it is short");
        KeySpec { key, role }
    };
    let mut keys = Vec::new();
    for i in 0..KEYS {
        let is_placed = i + placed >= KEYS;
        keys.push(key(ACTIVE_BUCKET, format!("object{i}"), Role::Active { is_placed }));
    }
    keys.extend((0..KEYS).map(|i| key(TALLY_BUCKET, format!("tally{i}"), Role::Tally)));
    keys.extend((0..KEYS).map(|i| key(TICKER_BUCKET, format!("ticker{i}"), Role::Ticker { is_slow: i > 0 })));
    keys.extend((0..KEYS).map(|i| key(CHANGING_BUCKET, format!("changing{i}"), Role::Changing)));
    keys.push(key(TWIN_BUCKET, "twin".into(), Role::Twin));
    (buckets, keys)
}

/// Which active objects clients ask, and how much: in most seeds one or two of them are asked far more than the others,
/// so that calls meet each other and whatever befalls the object.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowd {
    /// How many of twelve operations go to active objects.
    share_of_twelve: u64,
    /// Counted from the first.
    favourites: Vec<u64>,
}

impl Crowd {
    pub fn draw(rng: &mut Rng) -> Crowd {
        let favourites: Vec<u64> = (0..rng.below(3)).map(|_| draw_active(rng)).collect();
        let share_of_twelve = if favourites.is_empty() { 4 } else { 4 + rng.below(5) };
        Crowd { share_of_twelve, favourites }
    }

    /// The active object that the next operation goes to, if it goes to one.
    pub fn pick(&self, rng: &mut Rng) -> Option<u64> {
        if !rng.chance(self.share_of_twelve, 12) {
            return None;
        }
        match self.favourites.is_empty() || rng.chance(1, 4) {
            true => Some(draw_active(rng)),
            false => Some(self.favourites[rng.below(self.favourites.len() as u64) as usize]),
        }
    }
}

/// One of the active objects, counted from the first. Those that count are drawn most.
fn draw_active(rng: &mut Rng) -> u64 {
    match rng.below(3) {
        0 => 2 * KEYS as u64 + rng.below(2 * KEYS as u64),
        _ => rng.below(2 * KEYS as u64),
    }
}

/// Who `client` is for objects.
pub(crate) fn caller_of(client: usize) -> Option<Arc<Caller>> {
    Some(Arc::new(Caller { ip: Some(format!("10.0.0.{client}")), ..Caller::default() }))
}

/// A client's operation `id` on an active object. `wall_ms`: the true time.
pub(super) fn operation_of(
    spec: &KeySpec,
    properties: &BucketProperties,
    id: RequestId,
    wall_ms: u64,
    rng: &mut Rng,
) -> Operation {
    let key = spec.key.clone();
    let mut operation = match spec.role {
        Role::Active { is_placed } => convergent(key, is_placed, id, rng),
        Role::Ticker { is_slow } => ticker(key, is_slow, rng),
        Role::Changing => changing(key, id, wall_ms, rng),
        _ => tally(key, id, rng),
    };
    let own = own_numbers(properties, rng);
    if let Operation::Call { quorum, .. } | Operation::Update { quorum, .. } = &mut operation {
        *quorum = own;
    }
    operation
}

/// The numbers that a request brings: now and then its own, of which `r` is no less than what its bucket has.
fn own_numbers(properties: &BucketProperties, rng: &mut Rng) -> Quorum {
    let (n, r) = (u64::from(properties.n), u64::from(properties.r));
    let own_r = (r + rng.below(n.saturating_sub(r) + 1)) as u8;
    let own_w = (1 + rng.below(n)) as u8;
    match rng.below(8) {
        0 => Quorum { r: Some(own_r), ..Quorum::default() },
        1 => Quorum { w: Some(own_w), ..Quorum::default() },
        2 => Quorum { r: Some(own_r), w: Some(own_w), ..Quorum::default() },
        _ => Quorum::default(),
    }
}

/// Makes an active object, or with `keeps_state` gives one new code.
pub(crate) fn activate(key: ObjectKey, source: String, expiry: Expiry, keeps_state: bool) -> Operation {
    let mutation = Mutation::Activate { source: source.into(), expiry, keeps_state };
    update(key, mutation)
}

/// A write by the bucket's own numbers.
pub(crate) fn update(key: ObjectKey, mutation: Mutation) -> Operation {
    Operation::Update { key, mutation, quorum: Quorum::default(), want: Want::default(), caller: None }
}

/// Calls a function.
pub(crate) fn call(key: ObjectKey, function: &'static str, arguments: Vec<Value>) -> Operation {
    let what = match function {
        "onGet" => Ask::Get,
        _ => Ask::Function(Bytes::from_static(function.as_bytes())),
    };
    Operation::Call { key, call: Call { what, arguments, caller: None }, quorum: Quorum::default() }
}

/// The argument by which an object notes a call.
pub(crate) fn marked(id: RequestId) -> Vec<Value> {
    vec![Value::from(mark(id).as_str())]
}

fn convergent(key: ObjectKey, is_placed: bool, id: RequestId, rng: &mut Rng) -> Operation {
    match rng.below(10) {
        0 | 1 => {
            let choice = if is_placed { SELECT_REPLICAS } else { "" };
            activate(key, [ACTIVE_SOURCE, choice].concat(), Expiry::Never, false)
        }
        2 => call(key, "onGet", Vec::new()),
        _ => {
            let arguments = vec![Value::Integer(1 + rng.below(1000) as i64), Value::from(mark(id).as_str())];
            call(key, ["hit", "hit", "look", "save", "fail"][rng.below(5) as usize], arguments)
        }
    }
}

fn tally(key: ObjectKey, id: RequestId, rng: &mut Rng) -> Operation {
    match rng.below(12) {
        0 | 1 => {
            let is_refused = rng.chance(1, 2);
            let source = format!("{TALLY_SOURCE}\naso.mark = '{}' aso.refused = {is_refused}", mark(id));
            activate(key, source, Expiry::Never, false)
        }
        2 => call(key, "onGet", Vec::new()),
        drawn => {
            let names = ["wait", "linger", "brood", "save", "spoil", "regret", "bump", "bump", "bump"];
            call(key, names[drawn as usize - 3], marked(id))
        }
    }
}

/// The source of an object with a timer.
pub(crate) fn ticker_source(is_slow: bool) -> String {
    [TICKER_SOURCE, if is_slow { SLOW_TICKER } else { "" }].concat()
}

fn ticker(key: ObjectKey, is_slow: bool, rng: &mut Rng) -> Operation {
    match rng.below(4) {
        0 => activate(key, ticker_source(is_slow), Expiry::Never, false),
        1 => activate(key, ticker_source(is_slow), Expiry::Never, true),
        2 => call(key, "onGet", Vec::new()),
        _ => call(key, "bump", Vec::new()),
    }
}

/// Stores a plain value.
pub(crate) fn store(key: ObjectKey, text: String) -> Operation {
    update(key, Mutation::store(text))
}

/// Deletes whatever is there.
pub(crate) fn delete(key: ObjectKey) -> Operation {
    update(key, Mutation::Delete { basis: Basis::Local, condition: Condition::Always })
}

fn changing(key: ObjectKey, id: RequestId, wall_ms: u64, rng: &mut Rng) -> Operation {
    match rng.below(12) {
        0 | 1 => {
            let expiry = match rng.below(4) {
                0 => Expiry::At(wall_ms + rng.below(5_000)),
                _ => Expiry::Never,
            };
            activate(key, CHANGING_SOURCE.into(), expiry, false)
        }
        2 => activate(key, [CHANGING_SOURCE, " aso.says = 'no'"].concat(), Expiry::Never, false),
        3 => activate(key, CHANGED_SOURCE.into(), Expiry::Never, true),
        4 => store(key, mark(id)),
        5 => delete(key),
        6 => call(key, "onGet", Vec::new()),
        drawn => {
            let names = ["leave", "spoil", "regret", "bump", "bump"];
            call(key, names[drawn as usize - 7], marked(id))
        }
    }
}
