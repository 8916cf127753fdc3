//! What an object asks of its node, and which of it is allowed.
//!
//! `lookup`, `get` and `put` come in the forms of the slides and of the paper: with the key first or without, with a
//! callback last or without. They end up as a [`HostRequest`]. An object reaches only its own key; and once for each
//! call, the key and node that called it. That the nodes named are responsible for the key is for the owner of the
//! machine to check, who knows the ring.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use mlua::{Function, Table};

use crate::limits::{LimitError, ScriptError};
use crate::meter;
use crate::value::{Taker, Value};

/// What a suspended handler waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum HostRequest {
    /// The nodes responsible for the object's key: answer with an array of strings or of tables with a field `id`.
    Lookup,
    /// The object's value at these nodes; at the preference list if none are named.
    Get { nodes: Vec<Vec<u8>> },
    /// Stores under the object's own key at these nodes, or at the preference list.
    Put { data: PutData, nodes: Vec<Vec<u8>> },
    /// The one answer to the node and key that called.
    Reply { key: Vec<u8>, node: Vec<u8>, value: Value },
}

/// What is put.
#[derive(Clone, Debug, PartialEq)]
pub enum PutData {
    /// The object itself, code and state.
    Object,
    Value(Value),
}

/// How a request ended. An error becomes `nil` and its text in Lua.
pub type HostResult = Result<Value, String>;

/// Who calls, made by the node: objects cannot forge it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caller {
    pub ip: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    /// Where the caller is in the network's coordinates, as numbers.
    pub coordinate: Vec<f64>,
    /// The object and node that called, if it was an object: it may be answered once.
    pub from: Option<(Vec<u8>, Vec<u8>)>,
}

/// A request whose answer goes to a function.
pub(crate) struct Deferred {
    pub request: HostRequest,
    pub callback: Function,
}

/// What host functions see of the handler that runs. One for each machine; filled before each run.
pub(crate) struct Context {
    pub now_ms: Cell<u64>,
    pub random: Cell<u64>,
    pub node_ip: RefCell<String>,
    pub node_id: RefCell<String>,
    pub key: RefCell<Rc<[u8]>>,
    pub object: RefCell<Option<Table>>,
    pub bytes_max: Cell<usize>,
    pub messages_max: Cell<u32>,
    pub messages_left: Cell<u32>,
    pub reply_to: RefCell<Option<(Vec<u8>, Vec<u8>)>>,
    pub is_deleted: Cell<bool>,
    /// The request of a handler that is about to suspend itself.
    pub pending: RefCell<Option<HostRequest>>,
    pub deferred: RefCell<VecDeque<Deferred>>,
}

impl Context {
    pub fn new() -> Context {
        Context {
            now_ms: Cell::new(0),
            random: Cell::new(1),
            node_ip: RefCell::default(),
            node_id: RefCell::default(),
            key: RefCell::new(Rc::from(&b""[..])),
            object: RefCell::default(),
            bytes_max: Cell::new(0),
            messages_max: Cell::new(0),
            messages_left: Cell::new(0),
            reply_to: RefCell::default(),
            is_deleted: Cell::new(false),
            pending: RefCell::default(),
            deferred: RefCell::default(),
        }
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

    /// `put(data)`, `put(data, nodes)`, `put(key, data)`, `put(key, data, nodes)`. Of two arguments, the first is a
    /// key if it is the object's own or the caller's.
    fn put(&self, mut arguments: VecDeque<mlua::Value>) -> mlua::Result<HostRequest> {
        let key = match arguments.front() {
            Some(mlua::Value::String(key)) if arguments.len() >= 2 => key.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let is_own = key == self.key.borrow()[..];
        let reply_to = self.reply_to.borrow().clone().filter(|(caller, _)| *caller == key && !is_own);
        if is_own || reply_to.is_some() {
            arguments.pop_front();
        } else if arguments.len() > 2 {
            self.check_own(&arguments.pop_front().unwrap_or(mlua::Value::Nil))?;
        }
        let Some(data) = arguments.pop_front() else { return Err(fault("put needs a value")) };
        let nodes = nodes(arguments.pop_front())?;
        if let Some((key, node)) = reply_to {
            if nodes != [node.clone()] {
                return Err(fault("a put under the caller's key goes to the caller's node only"));
            }
            *self.reply_to.borrow_mut() = None;
            return Ok(HostRequest::Reply { key, node, value: self.take(&data)? });
        }
        let is_object = matches!((&data, &*self.object.borrow()), (mlua::Value::Table(a), Some(b)) if a == b);
        let data = if is_object { PutData::Object } else { PutData::Value(self.take(&data)?) };
        Ok(HostRequest::Put { data, nodes })
    }

    fn take(&self, value: &mlua::Value) -> mlua::Result<Value> {
        let taken = Taker::new(self.bytes_max.get()).take(value);
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

fn fault(text: &str) -> mlua::Error {
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
        if nodes.len() == list.raw_len() {
            return Ok(nodes);
        }
    }
    Err(fault("nodes are a list of node ids, or of tables with a field id"))
}

/// The table that handlers get as `caller`.
pub(crate) fn caller_value(caller: &Caller) -> Value {
    let mut entries = Vec::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            entries.push((Value::from(name), value));
        }
    };
    put("ip", caller.ip.as_deref().map(Value::from));
    put("port", caller.port.map(|port| Value::Integer(i64::from(port))));
    put("user", caller.user.as_deref().map(Value::from));
    if !caller.coordinate.is_empty() {
        put("coordinate", Some(Value::Array(caller.coordinate.iter().map(|n| Value::Number(*n)).collect())));
    }
    if let Some((key, node)) = &caller.from {
        put("key", Some(Value::Bytes(key.clone())));
        put("node", Some(Value::Bytes(node.clone())));
    }
    Value::Map(entries)
}

/// The error of a request that is no handler's to wait for.
pub(crate) fn cannot_wait_while_loading() -> ScriptError {
    ScriptError::Runtime {
        message: "an object cannot wait for its node while it is loaded: only handlers can".to_string(),
        trace: String::new(),
    }
}
