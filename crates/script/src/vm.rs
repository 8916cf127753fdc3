//! The machine: one for each core, shared by the objects that live there.
//!
//! A source is compiled once. The environment of an object falls back to the read-only library. A handler runs on a
//! thread of its own, taken from a pool, so that it can wait for its node: `call` then returns [`Step::Suspended`], and
//! `resume` goes on. One handler of an object runs at a time, suspended ones included: that is for the owner to keep.
//!
//! Nothing is collected while a handler runs, so what it may allocate does not depend on its neighbours. Between
//! handlers the collector gets as much work as they made for it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use mlua::chunk::{ChunkMode, Compiler};
use mlua::{Function, Lua, LuaOptions, StdLib, Thread};
use oort_core::active::{
    Answer, CallerPlace, Done, Facts, Fuel, HostRequest, HostResult, Invocation, Limits, Value,
};

use crate::collector::Collector;
use crate::failure::{failure, is_memory};
use crate::held::Kept;
use crate::host::{caller_table, cannot_wait_while_loading, reply_to, Context, Deferred, ReplyTo};
use crate::library::Library;
use crate::limits::{ScriptError, WORKING_BYTES};
use crate::meter::{self, Clock, Left};
use crate::object::{memory_limit, Code, Fresh, Object, OBJECT_NAMES};
use crate::raw::{self, Item, Ran, Stack};
use crate::shape::{Shape, Signature, Unclear};
use crate::value::{into_lua, Convergent, Taker};

/// Idle threads that are kept for the next calls.
const IDLE_THREADS_MAX: usize = 64;
/// An object is loaded anew when its calls have allocated this many times what it may keep: what its code hides from
/// its state, in local variables of its source, is bounded so. Such variables are not kept in any case.
const HIDDEN_MEMORY_FACTOR: usize = 4;
/// A state that is too large already may grow by this when it gets new code, for the fields that come with it.
const FRESH_BYTES: usize = 4096;
/// Beyond what the meter allows, so that its precise error comes before the allocator's.
const HEAP_SLACK_BYTES: usize = 64 * 1024;

/// What a machine is made with.
pub struct Config {
    /// Microseconds that only grow, for the bound on time; best the processor time of the thread. A simulation
    /// gives a constant.
    pub clock: Clock,
    /// Compiled sources that are kept though no object uses them. Too few: sources are compiled again.
    pub codes_max: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { clock: || 0, codes_max: 1000 }
    }
}

/// One Luau machine with all objects of a core.
pub struct Vm {
    lua: Lua,
    library: Library,
    context: Rc<Context>,
    codes: HashMap<u128, Rc<Code>>,
    codes_max: usize,
    clock: Clock,
    idle: Vec<Thread>,
    loads: u64,
    collector: Collector,
    /// The state that was written last.
    scratch: Vec<u8>,
}

/// How far a call got.
#[derive(Debug)]
pub enum Step {
    Done(Done),
    /// The handler waits for an answer to `Suspended::request`.
    Suspended(Box<Suspended>),
    Failed(ScriptError),
}

/// A handler that waits. Dropping it ends the call.
#[derive(Debug)]
pub struct Suspended {
    request: HostRequest,
    waiting: Waiting,
    run: Run,
}

#[derive(Debug)]
enum Waiting {
    /// The handler itself, which goes on with the answer.
    Handler(Thread),
    /// A function that gets the answer after the handler has returned.
    Callback(Function),
}

/// A call from its start to its end.
struct Run {
    /// Of the object that was called.
    load: u64,
    left: Left,
    /// What the handler itself returned; its callbacks return to nobody.
    answer: Option<Answer>,
    deferred: VecDeque<Deferred>,
    facts: Facts,
    random: u64,
    reply_to: Option<ReplyTo>,
    is_deleted: bool,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("left", &self.left.fuel).field("deferred", &self.deferred.len()).finish()
    }
}

impl Suspended {
    pub fn request(&self) -> &HostRequest {
        &self.request
    }

    /// The request, for which `Lookup` stays behind.
    pub(crate) fn take_request(&mut self) -> HostRequest {
        std::mem::replace(&mut self.request, HostRequest::Lookup)
    }
}

impl Vm {
    /// Makes a machine. Errors: `Machine`, without memory.
    pub fn new(config: Config) -> Result<Vm, ScriptError> {
        // Without it `table.move` runs for minutes over a sparse range. Unknown to a later Luau, it is the default.
        let _ = Lua::set_fflag("LuauTableMoveTimeoutFix", true);
        let libraries = StdLib::MATH | StdLib::STRING | StdLib::TABLE | StdLib::COROUTINE;
        // Without it mlua puts a pcall of its own in place, in which no handler can wait.
        let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(true))?;
        raw::install(&lua);
        let context = Rc::new(Context::new());
        let library = Library::new(&lua, &context)?;
        let collector = Collector::new(&lua);
        let Config { clock, codes_max } = config;
        Ok(Vm {
            lua,
            library,
            context,
            codes: HashMap::new(),
            codes_max,
            clock,
            idle: Vec::new(),
            loads: 0,
            collector,
            scratch: Vec::new(),
        })
    }

    /// What `getNodeIP` and `getNodeID` answer.
    pub fn set_node(&mut self, ip: &str, id: &str) {
        *self.context.node_ip.borrow_mut() = ip.to_string();
        *self.context.node_id.borrow_mut() = id.to_string();
    }

    /// Makes an object from its source and, unless it is new, its state.
    ///
    /// Runs the source within the limits of a call. Errors: `Syntax`, whatever running it raises, `BadState`, and
    /// the limit on memory.
    pub fn load(
        &mut self,
        key: Bytes,
        source: &[u8],
        state: Option<&[u8]>,
        limits: Limits,
        facts: Facts,
    ) -> Result<Object, ScriptError> {
        self.make(key, source, state.map(|state| (state, Fresh::Dropped)), limits, facts)
    }

    /// Makes an object of new code with the state of another: fields that the state has not are as the code makes them.
    ///
    /// Errors: as `load`, and `Unkeepable`.
    pub fn reload(
        &mut self,
        object: &mut Object,
        source: &[u8],
        limits: Limits,
        facts: Facts,
    ) -> Result<Object, ScriptError> {
        let bytes = source.len() + object.kept.len();
        if source.len() > object.code.source.len() && bytes > limits.memory_bytes as usize {
            return Err(memory_limit(&limits));
        }
        let state = object.kept.to_vec();
        self.renew(object.key.clone(), source, &state, limits, facts)
    }

    /// As `reload`, of an object that is not loaded: `state` is what is stored of it. A state beyond the limit on
    /// memory, which may have been lowered since, stays as large as it is.
    pub fn renew(
        &mut self,
        key: Bytes,
        source: &[u8],
        state: &[u8],
        limits: Limits,
        facts: Facts,
    ) -> Result<Object, ScriptError> {
        self.make(key, source, Some((state, Fresh::Kept)), limits, facts)
    }

    /// Takes an object back to the state that it had before its last call, which has failed; or to that which was last
    /// encoded, if that was later.
    ///
    /// Errors: as `load`. The object is then of no use but for its state.
    pub fn undo(&mut self, object: &mut Object, facts: Facts) -> Result<(), ScriptError> {
        if object.is_kept(&mut self.scratch) {
            return Ok(());
        }
        let state = object.kept.to_vec();
        self.load_state(object, &state, facts)
    }

    fn make(
        &mut self,
        key: Bytes,
        source: &[u8],
        state: Option<(&[u8], Fresh)>,
        limits: Limits,
        facts: Facts,
    ) -> Result<Object, ScriptError> {
        // What is stored already was within its limit once: it must be possible to go on with it.
        let is_stored = state.is_some_and(|(_, fresh)| fresh == Fresh::Dropped);
        let bytes_max = (limits.memory_bytes as usize).max(if is_stored { usize::MAX } else { 0 });
        if source.len() > bytes_max {
            return Err(memory_limit(&limits));
        }
        if !is_stored {
            check_text(source)?;
        }
        let code = self.code(source)?;
        let fields = self.lua.create_table()?;
        let globals = self.lua.create_table_with_capacity(0, OBJECT_NAMES.len() + 1)?;
        for name in OBJECT_NAMES {
            globals.raw_set(name, &fields)?;
        }
        globals.set_metatable(Some(self.library.metatable.clone()))?;
        let messages_left = limits.messages;
        self.loads += 1;
        let mut object = Object {
            code,
            fields,
            globals,
            key,
            load: self.loads,
            last_dot: 0,
            limits,
            messages_left,
            kept: Kept::new(&self.context.gauge),
            print: 0,
            unmeasured_bytes: 0,
            allocated_bytes: 0,
        };
        let is_deleted = self.run_source(&mut object, facts)?;
        if is_deleted && !is_stored {
            let message = "an object cannot delete itself while it is made: only handlers can".to_string();
            return Err(ScriptError::Runtime { message, trace: String::new() });
        }
        if object.fields.is_readonly() {
            let message = "the table of an object cannot be frozen".to_string();
            return Err(ScriptError::Runtime { message, trace: String::new() });
        }
        self.adopt_functions(&object, is_stored)?;
        if !is_stored && object.fields.is_empty() {
            let message = "the source defines nothing: an object needs a field or a function, such as \
                aso.value = 1 or function onGet() return 1 end";
            return Err(ScriptError::Runtime { message: message.to_string(), trace: String::new() });
        }
        object.note_baseline()?;
        if let Some((state, fresh)) = state {
            object.restore(&self.lua, &self.context.gauge, state, fresh)?;
            object.kept.set(state);
        }
        let slack_bytes = if state.is_some() && !is_stored { FRESH_BYTES } else { 0 };
        match object.write_within(&mut self.scratch, slack_bytes) {
            Ok(print) => {
                object.print = print;
                object.kept.set(&self.scratch);
            }
            // It can be asked, until a call leaves something that cannot be kept.
            Err(_) if is_stored => {}
            // What is new may be too large already.
            Err(error) => return Err(error),
        }
        self.collector.pace(&self.lua, self.used_bytes());
        Ok(object)
    }

    /// Calls a function of an object.
    pub fn call(&mut self, object: &mut Object, call: &Invocation) -> Step {
        match self.begin(object, call) {
            Ok((thread, run)) => self.drive(object, thread, run),
            Err(error) => Step::Failed(error),
        }
    }

    /// Goes on with a handler that waited.
    ///
    /// Errors: as `call`, and `Machine` if the object is not the one that was called.
    pub fn resume(
        &mut self,
        object: &mut Object,
        suspended: Box<Suspended>,
        facts: Facts,
        result: HostResult,
    ) -> Step {
        let Suspended { waiting, mut run, .. } = *suspended;
        if run.load != object.load {
            let message =
                "the handler that waits is of another object, or of the object before it was loaded anew";
            return Step::Failed(ScriptError::Machine { message: message.to_string() });
        }
        run.facts = facts;
        let begun = (|| -> Result<_, ScriptError> {
            let thread = match waiting {
                Waiting::Handler(thread) => thread,
                Waiting::Callback(callback) => {
                    let thread = self.thread()?;
                    Stack::of(&self.lua, &thread).push(&mlua::Value::Function(callback))?;
                    thread
                }
            };
            let mut stack = Stack::of(&self.lua, &thread);
            match &result {
                Ok(value) => stack.push(&into_lua(&self.lua, value)?)?,
                Err(text) => {
                    stack.push(&mlua::Value::Nil)?;
                    stack.push(&mlua::Value::String(self.lua.create_string(text)?))?;
                }
            }
            Ok(thread)
        })();
        match begun {
            Ok(thread) => self.drive(object, thread, run),
            Err(error) => Step::Failed(error),
        }
    }

    /// The state of an object in bytes; equal states have equal bytes.
    ///
    /// Errors: `Unkeepable`, with the path to what cannot be kept, and the limit on memory.
    pub fn encode(&mut self, object: &mut Object) -> Result<Vec<u8>, ScriptError> {
        object.keep(&mut self.scratch)?;
        Ok(object.kept.to_vec())
    }

    /// Joins a concurrent state of the same object into this one: convergent values at equal places are joined, all
    /// else stays. True if nothing but convergent values differed.
    ///
    /// Errors: `BadState`; whatever the own state cannot keep; the limit on memory, if they are too large together.
    pub fn join(&mut self, object: &mut Object, state: &[u8]) -> Result<bool, ScriptError> {
        object.join(&self.lua, &self.context.gauge, &mut self.scratch, state)
    }

    /// Sets a field to data. Errors: `Machine`, without memory.
    pub fn set_field(&mut self, object: &mut Object, name: &str, value: &Value) -> Result<(), ScriptError> {
        let heap_before = self.lua.used_memory();
        object.fields.raw_set(name, into_lua(&self.lua, value)?)?;
        object.unmeasured_bytes += self.lua.used_memory().saturating_sub(heap_before);
        Ok(())
    }

    /// Bytes of the whole machine.
    pub fn used_bytes(&self) -> usize {
        self.lua.used_memory() + self.context.gauge.bytes()
    }

    /// Collects all garbage at once. For tests and measurements: it takes as long as the machine is large.
    pub fn collect(&mut self) -> Result<(), ScriptError> {
        self.lua.gc_collect()?;
        self.lua.gc_stop();
        Ok(())
    }

    fn code(&mut self, source: &[u8]) -> Result<Rc<Code>, ScriptError> {
        let hash = xxhash_rust::xxh3::xxh3_128(source);
        // The hash is no secret: a source made to collide must not get another's code.
        if let Some(code) = self.codes.get(&hash).filter(|code| *code.source == *source) {
            return Ok(code.clone());
        }
        let compiler = Compiler::new().set_optimization_level(1).set_debug_level(1);
        let syntax = |error: mlua::Error| match error {
            mlua::Error::SyntaxError { message, .. } => {
                ScriptError::Syntax { message: format!("line {message}") }
            }
            other => other.into(),
        };
        let bytecode = compiler.compile(source).map_err(syntax)?;
        let chunk = self.lua.load(bytecode).set_mode(ChunkMode::Binary).set_name("=aso");
        let main = chunk.into_function().map_err(syntax)?;
        let (source, shape) = (Rc::from(source), Shape::of(source));
        let code =
            Rc::new(Code { source, main, shape, signatures: OnceCell::new(), baseline: OnceCell::new() });
        if self.codes.len() >= self.codes_max {
            self.codes.retain(|_, code| Rc::strong_count(code) > 1);
        }
        self.codes.insert(hash, code.clone());
        Ok(code)
    }

    /// Runs the source, and finds the object in what it left: a returned table, or one named `aso` or `object`. Returns
    /// whether it asked to be deleted.
    fn run_source(&mut self, object: &mut Object, facts: Facts) -> Result<bool, ScriptError> {
        let main = object.code.main.deep_clone()?;
        main.set_environment(object.globals.clone())?;
        let thread = self.thread()?;
        Stack::of(&self.lua, &thread).push(&mlua::Value::Function(main))?;
        let mut run = Run::new(object, facts);
        self.enter(object, &run);
        let (result, left, _) = self.turn(object, &thread, run.left);
        self.leave(object, &mut run, left);
        if result? == Ran::ToAYield || !run.deferred.is_empty() {
            return Err(cannot_wait_while_loading());
        }
        let mut found = match Stack::of(&self.lua, &thread).value(1)? {
            mlua::Value::Table(table) => Some(table),
            _ => None,
        };
        self.recycle(thread);
        for name in OBJECT_NAMES {
            let named: mlua::Value = object.globals.raw_get(name)?;
            if let (None, mlua::Value::Table(table)) = (&found, named) {
                found = Some(table).filter(|table| *table != object.fields);
            }
        }
        if let Some(table) = found.filter(|table| !table.is_readonly()) {
            object.fields = table;
        }
        for name in OBJECT_NAMES {
            object.globals.raw_set(name, &object.fields)?;
        }
        Ok(run.is_deleted)
    }

    /// Makes bare functions functions of the object, and wraps the methods that are called with a dot.
    fn adopt_functions(&self, object: &Object, is_stored: bool) -> Result<(), ScriptError> {
        let mut bare = Vec::new();
        object.globals.for_each(|name: mlua::Value, value: mlua::Value| {
            if let mlua::Value::Function(function) = value {
                bare.push((name, function));
            }
            Ok(())
        })?;
        for (name, function) in bare {
            if object.fields.raw_get::<mlua::Value>(&name)?.is_nil() {
                object.fields.raw_set(name, function)?;
            }
        }
        let signatures = match object.code.signatures.get() {
            Some(signatures) => signatures,
            None => {
                let signatures = signatures(object, is_stored)?;
                object.code.signatures.get_or_init(|| signatures)
            }
        };
        for (name, signature) in signatures {
            if !signature.takes_self || !object.code.shape.is_mentioned_with_dot(name) {
                continue;
            }
            let name = self.lua.create_string(name)?;
            if let mlua::Value::Function(method) = object.fields.raw_get(&name)? {
                let wrapped: Function = self.library.wrap.call((method, &object.fields))?;
                object.fields.raw_set(name, wrapped)?;
            }
        }
        Ok(())
    }

    /// Lays a function and its arguments out on a thread.
    fn begin(&mut self, object: &Object, call: &Invocation) -> Result<(Thread, Run), ScriptError> {
        let thread = self.thread()?;
        let mut stack = Stack::of(&self.lua, &thread);
        let signatures = object.code.signatures.get();
        let signature = signatures.and_then(|known| known.get(call.function.as_bytes()));
        let takes_self = signature.is_some_and(|signature| signature.takes_self);
        if !stack.push_function(&object.fields, call.function.as_bytes(), takes_self)? {
            self.recycle(thread);
            return Err(ScriptError::NoFunction { name: call.function.to_string() });
        }
        let mut run = Run::new(object, call.facts);
        if let CallerPlace::First(caller) | CallerPlace::Last(caller) = call.caller {
            run.reply_to = reply_to(caller);
        }
        if signature.is_none_or(|signature| signature.takes_arguments) {
            if let CallerPlace::First(caller) = call.caller {
                stack.push(&mlua::Value::Table(caller_table(&self.lua, caller)?))?;
            }
            for argument in call.arguments {
                stack.push(&into_lua(&self.lua, argument)?)?;
            }
            if let CallerPlace::Last(caller) = call.caller {
                stack.push(&mlua::Value::Table(caller_table(&self.lua, caller)?))?;
            }
        }
        Ok((thread, run))
    }

    /// Runs a thread until it ends or waits, and then whatever callbacks it left.
    fn drive(&mut self, object: &mut Object, thread: Thread, mut run: Run) -> Step {
        self.enter(object, &run);
        let gauge_before = self.context.gauge.bytes();
        let (result, left, [heap_before, heap_after]) = self.turn(object, &thread, run.left);
        self.leave(object, &mut run, left);
        let used_bytes = heap_after + self.context.gauge.bytes();
        let allocated = used_bytes.saturating_sub(heap_before + gauge_before);
        object.unmeasured_bytes += allocated;
        object.allocated_bytes += allocated;
        self.collector.pace(&self.lua, used_bytes);
        let ran = match result {
            Ok(ran) => ran,
            Err(error) => return Step::Failed(error),
        };
        // Handlers reach no other way to wait than a request, which may have failed behind its back.
        if let Some(request) = self.context.pending.take() {
            if ran == Ran::ToAYield {
                if let Err(error) = self.measure(object) {
                    return Step::Failed(error);
                }
                let waiting = Waiting::Handler(thread);
                return Step::Suspended(Box::new(Suspended { request, waiting, run }));
            }
        }
        if run.answer.is_none() {
            match self.answer(object, &thread) {
                Ok(answer) => run.answer = Some(answer),
                Err(error) => return Step::Failed(error),
            }
        }
        if ran == Ran::ToItsEnd {
            self.recycle(thread);
        }
        if let Some(Deferred { request, callback }) = run.deferred.pop_front() {
            if let Err(error) = self.measure(object) {
                return Step::Failed(error);
            }
            return Step::Suspended(Box::new(Suspended {
                request,
                waiting: Waiting::Callback(callback),
                run,
            }));
        }
        // Before the answer: an answered call must be one that can be kept. An object that is deleted need not be.
        let kept = if run.is_deleted { Ok(()) } else { object.keep(&mut self.scratch) };
        if let Err(error) = kept {
            return Step::Failed(error);
        }
        if object.allocated_bytes > HIDDEN_MEMORY_FACTOR * object.limits.memory_bytes as usize {
            if let Err(error) = self.load_anew(object, run.facts) {
                return Step::Failed(error);
            }
        }
        let instructions_left = u32::try_from(run.left.fuel).unwrap_or(0);
        Step::Done(Done {
            answer: run.answer.unwrap_or(Answer::Value(Value::Nil)),
            is_deleted: run.is_deleted,
            instructions: object.limits.instructions.saturating_sub(instructions_left),
        })
    }

    /// What an object that waits has become must not grow from answer to answer.
    fn measure(&mut self, object: &mut Object) -> Result<(), ScriptError> {
        match object.unmeasured_bytes > object.limits.memory_bytes as usize / 2 {
            true => object.measure(&mut self.scratch),
            false => Ok(()),
        }
    }

    fn load_anew(&mut self, object: &mut Object, facts: Facts) -> Result<(), ScriptError> {
        let state = object.kept.to_vec();
        self.load_state(object, &state, facts)
    }

    /// Loads an object again from a state of its own.
    fn load_state(&mut self, object: &mut Object, state: &[u8], facts: Facts) -> Result<(), ScriptError> {
        let (key, source, limits) = (object.key.clone(), object.code.source.clone(), object.limits);
        let (messages_left, last_dot) = (object.messages_left, object.last_dot);
        *object = self.load(key, &source, Some(state), limits, facts)?;
        object.messages_left = messages_left;
        object.last_dot = object.last_dot.max(last_dot);
        Ok(())
    }

    /// The first value that a handler has returned.
    fn answer(&self, object: &Object, thread: &Thread) -> Result<Answer, ScriptError> {
        let mut stack = Stack::of(&self.lua, thread);
        if matches!(stack.item(1), Item::Table(place) if place == object.fields.to_pointer()) {
            return Ok(Answer::Object);
        }
        let taken = Taker::new(object.limits.memory_bytes as usize, Convergent::Plain).take_at(&mut stack, 1);
        taken.map(Answer::Value).map_err(|refusal| refusal.at("the result"))
    }

    /// Shows the host functions this call.
    fn enter(&self, object: &mut Object, run: &Run) {
        let context = &self.context;
        context.now_ms.set(run.facts.now_ms);
        context.actor.set(run.facts.actor);
        context.last_dot.set(object.last_dot);
        context.random.set(run.random);
        // Lent, not cloned: that would touch one more place in memory.
        std::mem::swap(&mut *context.key.borrow_mut(), &mut object.key);
        context.object.set(object.fields.to_pointer());
        context.bytes_max.set(object.limits.memory_bytes as usize);
        context.messages_max.set(object.limits.messages);
        context.messages_left.set(object.messages_left);
        context.reply_to.borrow_mut().clone_from(&run.reply_to);
        context.is_deleted.set(run.is_deleted);
        context.pending.borrow_mut().take();
        context.deferred.borrow_mut().clear();
    }

    /// Takes back what the call did to its context.
    fn leave(&self, object: &mut Object, run: &mut Run, left: Left) {
        let context = &self.context;
        run.left = left;
        run.random = context.random.get();
        run.reply_to = context.reply_to.borrow_mut().take();
        run.is_deleted = context.is_deleted.get();
        run.deferred.append(&mut context.deferred.borrow_mut());
        object.messages_left = context.messages_left.get();
        object.last_dot = context.last_dot.get();
        context.object.set(std::ptr::null());
        std::mem::swap(&mut *context.key.borrow_mut(), &mut object.key);
    }

    /// Lets a thread run within the limits. Returns how far it got, what is left of the limits, and the size of Lua's
    /// heap before and after. The thread holds what it returned.
    fn turn(
        &self,
        object: &Object,
        thread: &Thread,
        left: Left,
    ) -> (Result<Ran, ScriptError>, Left, [usize; 2]) {
        let heap_bytes = self.lua.used_memory();
        let heap_bytes_max = heap_bytes + WORKING_BYTES + HEAP_SLACK_BYTES;
        // Only a machine of another owner has no limit to set.
        let _ = self.lua.set_memory_limit(heap_bytes_max);
        let mut stack = Stack::of(&self.lua, thread);
        stack.step_singly(object.limits.fuel == Fuel::Exact);
        meter::start(self.clock, &object.limits, left, heap_bytes);
        let result = stack.resume();
        if matches!(&result, Err(error) if is_memory(error)) {
            meter::trip_working_memory();
        }
        let (left, tripped) = meter::stop();
        let _ = self.lua.set_memory_limit(0);
        let heap_bytes_after = self.lua.used_memory();
        let result = match (tripped, result) {
            (Some(limit), result) => {
                let trace = result.err().map_or(String::new(), |error| failure(&error).1);
                Err(ScriptError::Limit { limit, trace })
            }
            (None, Ok(ran)) => Ok(ran),
            (None, Err(error)) => {
                let (message, trace) = failure(&error);
                Err(ScriptError::Runtime { message, trace })
            }
        };
        (result, left, [heap_bytes, heap_bytes_after])
    }

    /// A thread with nothing on its stack.
    fn thread(&mut self) -> Result<Thread, ScriptError> {
        if let Some(thread) = self.idle.pop() {
            return Ok(thread);
        }
        let thread = self.lua.create_thread(self.library.wrap.clone())?;
        Stack::of(&self.lua, &thread).truncate(0);
        Ok(thread)
    }

    /// Keeps a thread that ran to its end, or not at all.
    fn recycle(&mut self, thread: Thread) {
        if self.idle.len() < IDLE_THREADS_MAX {
            Stack::of(&self.lua, &thread).truncate(0);
            self.idle.push(thread);
        }
    }
}

/// How the functions of an object that was just made are to be called.
///
/// Errors: one of them is handed its object or not, as the reader pleases. What is stored already goes on as it did.
fn signatures(object: &Object, is_stored: bool) -> Result<BTreeMap<Vec<u8>, Signature>, ScriptError> {
    let mut functions = Vec::new();
    object.fields.for_each(|name: mlua::Value, value: mlua::Value| {
        if let (mlua::Value::String(name), mlua::Value::Function(function)) = (name, value) {
            functions.push((name.as_bytes().to_vec(), function.info().line_defined));
        }
        Ok(())
    })?;
    functions.sort_unstable();
    let mut signatures = BTreeMap::new();
    for (name, line) in functions {
        let Some(line) = line else { continue };
        let (signature, is_clear) = object.code.shape.signature(&name, line);
        if let Err(unclear) = is_clear {
            if !is_stored {
                let (name, why) = (
                    String::from_utf8_lossy(&name),
                    match unclear {
                        Unclear::FirstParameter => {
                            "it is assigned to a field, and its first parameter is not named self"
                        }
                        Unclear::TwoInOneLine => "two functions begin in its line, of which one takes self",
                    },
                );
                let message = format!(
                    "aso:{line}: whether {name} is handed the object cannot be told: {why}. Write \
                     function aso:{name}(...) if it is, and function {name}(...) if it uses the global self"
                );
                return Err(ScriptError::Runtime { message, trace: String::new() });
            }
        }
        signatures.extend(signature.map(|signature| (name, signature)));
    }
    Ok(signatures)
}

/// Errors: bytes that no text has. Luau would end the source at the first NUL, without a word.
fn check_text(source: &[u8]) -> Result<(), ScriptError> {
    let is_control = |byte: &u8| byte.is_ascii_control() && !b"\t\n\r\x0c".contains(byte);
    let wrong = match std::str::from_utf8(source) {
        Ok(_) => source.iter().position(is_control),
        Err(error) => Some(source.iter().position(is_control).unwrap_or(usize::MAX).min(error.valid_up_to())),
    };
    let Some(at) = wrong else { return Ok(()) };
    let line = 1 + source[..at].iter().filter(|byte| **byte == b'\n').count();
    let message = format!("line {line}: byte 0x{:02x} is no text: a source is UTF-8", source[at]);
    Err(ScriptError::Syntax { message })
}

impl Run {
    fn new(object: &Object, facts: Facts) -> Run {
        Run {
            load: object.load,
            left: Left::all(&object.limits),
            answer: None,
            deferred: VecDeque::new(),
            facts,
            random: facts.seed,
            reply_to: None,
            is_deleted: false,
        }
    }
}
