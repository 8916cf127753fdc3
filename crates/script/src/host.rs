//! What an object asks of its node, and which of it is allowed.
//!
//! `lookup`, `get` and `put` come in the forms of the slides and of the paper: with the key first or without, with a
//! callback last or without. They end up as a [`HostRequest`]. An object reaches only its own key; and once for each
//! call, the key and node that called it. That the nodes named are responsible for the key is for the owner of the
//! machine to check, who knows the ring.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;

use bytes::Bytes;
use mlua::{Function, Lua, Table};
use oort_core::active::{Caller, HostRequest, PutData, Value};
use oort_core::causality::Dot;
use oort_core::types::{ActorId, NodeId};

use crate::held::Gauge;
use crate::limits::{LimitError, ScriptError};
use crate::meter;
use crate::value::{into_lua, Convergent, Taker};

/// The key and node of a caller that may be answered once.
pub(crate) type ReplyTo = (Bytes, NodeId);

/// A request whose answer goes to a function.
pub(crate) struct Deferred {
    pub request: HostRequest,
    pub callback: Function,
}

/// What host functions see of the handler that runs. One for each machine; filled before each run.
pub(crate) struct Context {
    pub now_ms: Cell<u64>,
    pub actor: Cell<u64>,
    /// The counter of the object's last dot since it was loaded.
    pub last_dot: Cell<u64>,
    /// Memory of all convergent values of the machine.
    pub gauge: Gauge,
    pub random: Cell<u64>,
    pub node_ip: RefCell<String>,
    pub node_id: RefCell<String>,
    pub key: RefCell<Bytes>,
    /// Where the table of the object that runs lies, null if none does.
    pub object: Cell<*const c_void>,
    pub bytes_max: Cell<usize>,
    pub messages_max: Cell<u32>,
    pub messages_left: Cell<u32>,
    pub reply_to: RefCell<Option<ReplyTo>>,
    pub is_deleted: Cell<bool>,
    /// The request of a handler that is about to suspend itself.
    pub pending: RefCell<Option<HostRequest>>,
    pub deferred: RefCell<VecDeque<Deferred>>,
}

impl Context {
    pub fn new() -> Context {
        Context {
            now_ms: Cell::new(0),
            actor: Cell::new(0),
            last_dot: Cell::new(0),
            gauge: Gauge::default(),
            random: Cell::new(1),
            node_ip: RefCell::default(),
            node_id: RefCell::default(),
            key: RefCell::default(),
            object: Cell::new(std::ptr::null()),
            bytes_max: Cell::new(0),
            messages_max: Cell::new(0),
            messages_left: Cell::new(0),
            reply_to: RefCell::default(),
            is_deleted: Cell::new(false),
            pending: RefCell::default(),
            deferred: RefCell::default(),
        }
    }

    /// The name of a write that comes after all that have been `seen`. `None`: there are no numbers left, which takes
    /// a forged one.
    pub fn next_dot(&self, seen: u64) -> Option<Dot> {
        const MS_MAX: u64 = (1 << 48) - 1;
        let clock = self.now_ms.get().min(MS_MAX) << 16;
        let counter = seen.max(self.last_dot.get()).checked_add(1)?.max(clock);
        self.last_dot.set(counter);
        Some(Dot { counter, actor: ActorId(self.actor.get()) })
    }

    /// A number in 0..1 from the seed of this call (SplitMix64).
    pub fn random(&self) -> f64 {
        let seed = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(seed);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Reads the arguments of a host function and notes the request. Returns whether it has a callback, which means
    /// that the handler need not wait.
    pub fn request(&self, name: &str, arguments: Vec<mlua::Value>) -> mlua::Result<bool> {
        let mut arguments = VecDeque::from(arguments);
        while matches!(arguments.back(), Some(mlua::Value::Nil)) {
            arguments.pop_back();
        }
        let callback = match arguments.back() {
            Some(mlua::Value::Function(callback)) => {
                let callback = callback.clone();
                arguments.pop_back();
                Some(callback)
            }
            _ => None,
        };
        let request = match name {
            "lookup" => self.lookup(arguments),
            "get" => self.get(arguments),
            _ => self.put(arguments),
        }?;
        self.pay(match &request {
            HostRequest::Get { nodes } | HostRequest::Put { nodes, .. } => nodes.len().max(1),
            HostRequest::Lookup | HostRequest::Reply { .. } => 1,
        })?;
        match callback {
            Some(callback) => {
                self.deferred.borrow_mut().push_back(Deferred { request, callback });
                Ok(true)
            }
            None => {
                *self.pending.borrow_mut() = Some(request);
                Ok(false)
            }
        }
    }

    fn pay(&self, messages: usize) -> mlua::Result<()> {
        let left = u32::try_from(messages).ok().and_then(|sent| self.messages_left.get().checked_sub(sent));
        match left {
            Some(left) => {
                self.messages_left.set(left);
                Ok(())
            }
            None => {
                self.messages_left.set(0);
                meter::trip(LimitError::Messages { limit: self.messages_max.get() });
                Err(fault("message limit reached"))
            }
        }
    }

    fn lookup(&self, mut arguments: VecDeque<mlua::Value>) -> mlua::Result<HostRequest> {
        if let Some(key) = arguments.pop_front() {
            self.check_own(&key)?;
        }
        Ok(HostRequest::Lookup)
    }

    fn get(&self, mut arguments: VecDeque<mlua::Value>) -> mlua::Result<HostRequest> {
        if matches!(arguments.front(), Some(mlua::Value::String(_) | mlua::Value::Nil)) {
            let key = arguments.pop_front().unwrap_or(mlua::Value::Nil);
            self.check_own(&key)?;
        }
        Ok(HostRequest::Get { nodes: nodes(arguments.pop_front())? })
    }

    /// `put(data)`, `put(data, nodes)`, `put(key, data)`, `put(key, data, nodes)`.
    ///
    /// Of two arguments, the first is a key if it is the object's own or the caller's. Any other string is data only if
    /// the second argument is a table that names nodes. Else it was meant to be a key, and an object reaches only its
    /// own: `put("other", "text")` must not store "other" at a node "text".
    fn put(&self, mut arguments: VecDeque<mlua::Value>) -> mlua::Result<HostRequest> {
        let key = match arguments.front() {
            Some(mlua::Value::String(key)) if arguments.len() >= 2 => key.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let is_own = key == self.key.borrow()[..];
        let reply_to = self.reply_to.borrow().clone().filter(|(caller, _)| *caller == key && !is_own);
        if is_own || reply_to.is_some() {
            arguments.pop_front();
        } else if arguments.len() == 2 && matches!(arguments[0], mlua::Value::String(_)) {
            let second = &arguments[1];
            let may_be_nodes = matches!(second, mlua::Value::Table(_)) && !self.is_object(second);
            if !may_be_nodes || nodes(Some(second.clone())).map_or(true, |nodes| nodes.is_empty()) {
                return Err(other_key());
            }
        } else if arguments.len() > 2 {
            self.check_own(&arguments.pop_front().unwrap_or(mlua::Value::Nil))?;
        }
        let Some(data) = arguments.pop_front() else { return Err(fault("put needs a value")) };
        let nodes = nodes(arguments.pop_front())?;
        if let Some((key, node)) = reply_to {
            let node = node.to_string().into_bytes();
            if nodes.as_slice() != std::slice::from_ref(&node) {
                return Err(fault("a put under the caller's key goes to the caller's node only"));
            }
            *self.reply_to.borrow_mut() = None;
            return Ok(HostRequest::Reply { key: key.to_vec(), node, value: self.take(&data)? });
        }
        let data = if self.is_object(&data) { PutData::Object } else { PutData::Value(self.take(&data)?) };
        Ok(HostRequest::Put { data, nodes })
    }

    fn is_object(&self, value: &mlua::Value) -> bool {
        matches!(value, mlua::Value::Table(table) if table.to_pointer() == self.object.get())
    }

    fn take(&self, value: &mlua::Value) -> mlua::Result<Value> {
        let taken = Taker::new(self.bytes_max.get(), Convergent::Plain).take(value);
        taken.map_err(|refusal| fault(&refusal.at("the value to put").to_string()))
    }

    fn check_own(&self, key: &mlua::Value) -> mlua::Result<()> {
        match key {
            mlua::Value::Nil => Ok(()),
            mlua::Value::String(key) if key.as_bytes()[..] == self.key.borrow()[..] => Ok(()),
            _ => Err(other_key()),
        }
    }
}

fn other_key() -> mlua::Error {
    fault("an object reaches only its own key")
}

pub(crate) fn fault(text: &str) -> mlua::Error {
    mlua::Error::RuntimeError(text.to_string())
}

/// Names of nodes: a string, a table with a field `id`, or an array of these.
fn nodes(value: Option<mlua::Value>) -> mlua::Result<Vec<Vec<u8>>> {
    const NODES_MAX: usize = 1000;
    let node = |value: &mlua::Value| match value {
        mlua::Value::String(id) => Some(id.as_bytes().to_vec()),
        mlua::Value::Table(node) => match node.raw_get::<mlua::Value>("id") {
            Ok(mlua::Value::String(id)) => Some(id.as_bytes().to_vec()),
            _ => None,
        },
        _ => None,
    };
    let Some(value) = value else { return Ok(Vec::new()) };
    if matches!(value, mlua::Value::Nil) {
        return Ok(Vec::new());
    }
    if let Some(one) = node(&value) {
        return Ok(vec![one]);
    }
    let mut nodes = Vec::new();
    if let mlua::Value::Table(list) = &value {
        for at in 1..=list.raw_len().min(NODES_MAX) {
            nodes.extend(node(&list.raw_get(at)?));
        }
        if nodes.len() == list.raw_len() && (!nodes.is_empty() || list.is_empty()) {
            return Ok(nodes);
        }
    }
    Err(fault("nodes are a list of node ids, or of tables with a field id"))
}

/// The table that handlers get as `caller`. `key` and `node` are those to which it may put its one reply.
pub(crate) fn caller_table(lua: &Lua, caller: &Caller) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, 6)?;
    if let Some(ip) = &caller.ip {
        table.raw_set("ip", ip.as_str())?;
    }
    if let Some(port) = caller.port {
        table.raw_set("port", f64::from(port))?;
    }
    if let Some(user) = &caller.user {
        table.raw_set("user", lua.create_string(user)?)?;
    }
    if let Some(coordinate) = &caller.coordinate {
        table.raw_set("coordinate", into_lua(lua, coordinate)?)?;
    }
    if let Some(node) = caller.node {
        table.raw_set("node", node.to_string())?;
    }
    if let Some(key) = &caller.reply_key {
        table.raw_set("key", lua.create_string(key)?)?;
    }
    Ok(table)
}

/// Where the caller may be answered: it must have named a key, at a node.
pub(crate) fn reply_to(caller: &Caller) -> Option<ReplyTo> {
    Some((caller.reply_key.clone()?, caller.node?))
}

/// The error of a request that is no handler's to wait for.
pub(crate) fn cannot_wait_while_loading() -> ScriptError {
    ScriptError::Runtime {
        message: "an object cannot wait for its node while it is loaded: only handlers can".to_string(),
        trace: String::new(),
    }
}
