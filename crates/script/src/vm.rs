//! The machine: one for each core, shared by the objects that live there.
//!
//! A source is compiled once. An object is two tables: its fields, and an environment for the globals of its code,
//! which falls back to the read-only library. A handler runs on a thread of its own, taken from a pool, so that it
//! can wait for its node: `call` then returns [`Step::Suspended`], and `resume` goes on. One handler of an object
//! runs at a time, suspended ones included: that is for the owner to keep.
//!
//! Nothing is collected while a handler runs, so what it may allocate does not depend on its neighbours. Between
//! handlers the collector gets as much work as they made for it.
//!
//! What is kept of an object ([`Vm::encode`]): its fields and its own globals, without what its source makes anew,
//! which is functions, tables that hold functions, and globals that were not changed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use mlua::chunk::{ChunkMode, Compiler};
use mlua::thread::ThreadStatus;
use mlua::{Function, Lua, LuaOptions, MultiValue, StdLib, Table, Thread};

use crate::collector::Collector;
use crate::failure::{failure, is_memory};
use crate::host::{
    caller_value, cannot_wait_while_loading, Caller, Context, Deferred, HostRequest, HostResult,
};
use crate::library::Library;
use crate::limits::{LimitError, Limits, ScriptError, Unkeepable};
use crate::meter::{self, Clock, Left};
use crate::shape::Shape;
use crate::value::{decode, encode, into_lua, Refusal, Taker, Value};

/// The names under which code finds its object.
const OBJECT_NAMES: [&str; 3] = ["aso", "object", "self"];
/// Idle threads that are kept for the next calls.
const IDLE_THREADS_MAX: usize = 64;
/// An object is loaded anew when its calls have allocated this many times what it may keep: what its code hides from
/// its state, in local variables of its source, is bounded so. Such variables are not kept in any case.
const HIDDEN_MEMORY_FACTOR: usize = 4;
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
    collector: Collector,
}

/// A compiled source, shared by its objects.
struct Code {
    source: Rc<[u8]>,
    main: Function,
    shape: Shape,
    /// What the source makes anew, known once it has run.
    baseline: std::cell::OnceCell<Baseline>,
}

#[derive(Default)]
struct Baseline {
    fields: BTreeMap<Vec<u8>, Made>,
    globals: BTreeMap<Vec<u8>, Made>,
}

/// What a name holds after the source has run.
enum Made {
    /// A function, or a table with functions in it.
    Code,
    Data(Value),
}

/// An active object in memory.
pub struct Object {
    code: Rc<Code>,
    fields: Table,
    globals: Table,
    key: Rc<[u8]>,
    limits: Rc<Limits>,
    messages_left: u32,
    /// Allocated by its calls since its state was last measured.
    unmeasured_bytes: usize,
    /// Allocated by its calls since it was loaded.
    allocated_bytes: usize,
}

/// What a call is handed besides its arguments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The time in milliseconds since 1970.
    pub now_ms: u64,
    /// What `math.random` starts from.
    pub seed: u64,
}

/// One call of a function of an object.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    pub function: &'a str,
    /// Handed in front of, or after, the arguments.
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

/// How far a call got.
#[derive(Debug)]
pub enum Step {
    Done(Outcome),
    /// The handler waits for an answer to `Suspended::request`.
    Suspended(Box<Suspended>),
    Failed(ScriptError),
}

/// The end of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub answer: Answer,
    /// The object asked to be deleted.
    pub is_deleted: bool,
    pub instructions_used: u32,
}

/// What a function returned.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The object itself, as `onPut` and `onUpdate` do.
    Object,
    Value(Value),
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
    key: Rc<[u8]>,
    left: Left,
    /// What the handler itself returned; its callbacks return to nobody.
    answer: Option<Answer>,
    deferred: VecDeque<Deferred>,
    facts: Facts,
    random: u64,
    reply_to: Option<(Vec<u8>, Vec<u8>)>,
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
}

impl Object {
    pub fn source(&self) -> &[u8] {
        &self.code.source
    }

    /// Whether the object defines this function.
    pub fn has(&self, function: &str) -> bool {
        matches!(self.fields.raw_get(function), Ok(mlua::Value::Function(_)))
    }

    /// A timer interval has begun: messages may be sent again.
    pub fn refill_messages(&mut self) {
        self.messages_left = self.limits.messages;
    }

    pub fn messages_left(&self) -> u32 {
        self.messages_left
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
        meter::install(&lua);
        let context = Rc::new(Context::new());
        let library = Library::new(&lua, &context)?;
        let collector = Collector::new(&lua);
        let Config { clock, codes_max } = config;
        Ok(Vm { lua, library, context, codes: HashMap::new(), codes_max, clock, idle: Vec::new(), collector })
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
        key: &[u8],
        source: &[u8],
        state: Option<&[u8]>,
        limits: Rc<Limits>,
        facts: Facts,
    ) -> Result<Object, ScriptError> {
        let bytes = source.len() + state.map_or(0, <[u8]>::len);
        if bytes > limits.memory_bytes {
            return Err(memory_limit(&limits));
        }
        let code = self.code(source)?;
        let fields = self.lua.create_table()?;
        let globals = self.lua.create_table_with_capacity(0, OBJECT_NAMES.len() + 1)?;
        for name in OBJECT_NAMES {
            globals.raw_set(name, &fields)?;
        }
        globals.set_metatable(Some(self.library.metatable.clone()))?;
        let messages_left = limits.messages;
        let key = Rc::from(key);
        let mut object = Object {
            code,
            fields,
            globals,
            key,
            limits,
            messages_left,
            unmeasured_bytes: 0,
            allocated_bytes: 0,
        };
        self.run_source(&mut object, facts)?;
        if object.fields.is_readonly() {
            let message = "the table of an object cannot be frozen".to_string();
            return Err(ScriptError::Runtime { message, trace: String::new() });
        }
        self.adopt_functions(&object)?;
        if object.code.baseline.get().is_none() {
            let _ = object.code.baseline.set(self.baseline(&object)?);
        }
        match state {
            Some(state) => self.restore(&object, state)?,
            // What is new may be too large already.
            None => self.measure(&mut object)?,
        }
        self.collector.pace(&self.lua);
        Ok(object)
    }

    /// Calls a function of an object.
    pub fn call(&mut self, object: &mut Object, call: &Call) -> Step {
        match self.begin(object, call) {
            Ok((thread, arguments, run)) => self.drive(object, thread, arguments, run),
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
        if !Rc::ptr_eq(&run.key, &object.key) {
            let message =
                "the handler that waits is of another object, or of the object before it was loaded anew";
            return Step::Failed(ScriptError::Machine { message: message.to_string() });
        }
        run.facts = facts;
        let begun = (|| -> Result<_, ScriptError> {
            let mut arguments = MultiValue::new();
            match &result {
                Ok(value) => arguments.push_back(into_lua(&self.lua, value)?),
                Err(text) => {
                    arguments.push_back(mlua::Value::Nil);
                    arguments.push_back(mlua::Value::String(self.lua.create_string(text)?));
                }
            }
            let thread = match waiting {
                Waiting::Handler(thread) => thread,
                Waiting::Callback(callback) => self.thread(callback)?,
            };
            Ok((thread, arguments))
        })();
        match begun {
            Ok((thread, arguments)) => self.drive(object, thread, arguments, run),
            Err(error) => Step::Failed(error),
        }
    }

    /// The state of an object in bytes; equal states have equal bytes.
    ///
    /// Errors: `Unkeepable`, with the path to what cannot be kept, and the limit on memory.
    pub fn encode(&mut self, object: &mut Object) -> Result<Vec<u8>, ScriptError> {
        let empty = Baseline::default();
        let baseline = object.code.baseline.get().unwrap_or(&empty);
        let mut taker = Taker::new(object.limits.memory_bytes);
        let fields = kept(&mut taker, &object.fields, &baseline.fields, &[], "self");
        let fields = fields.map_err(|error| too_large(error, &object.limits))?;
        let globals = kept(&mut taker, &object.globals, &baseline.globals, &OBJECT_NAMES, "the global");
        let mut globals = globals.map_err(|error| too_large(error, &object.limits))?;
        globals.retain(|(name, value)| !is_made(baseline, name, value));
        let state = encode(&Value::Array(vec![Value::Map(fields), Value::Map(globals)]));
        if object.code.source.len() + state.len() > object.limits.memory_bytes {
            return Err(memory_limit(&object.limits));
        }
        object.unmeasured_bytes = 0;
        Ok(state)
    }

    /// Only the size is of interest: what cannot be kept is said when it shall be kept.
    fn measure(&mut self, object: &mut Object) -> Result<(), ScriptError> {
        match self.encode(object) {
            Err(error @ ScriptError::Limit { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// A field of an object, as `ASO.INFO` shows it and as timers read `interval`.
    pub fn field(&self, object: &Object, name: &str) -> Result<Value, ScriptError> {
        let value: mlua::Value = object.fields.raw_get(name)?;
        Taker::new(object.limits.memory_bytes).take(&value).map_err(|r| r.at(&format!("self.{name}")))
    }

    /// Bytes of the whole machine.
    pub fn used_bytes(&self) -> usize {
        self.lua.used_memory()
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
        let code = Rc::new(Code { source, main, shape, baseline: Default::default() });
        if self.codes.len() >= self.codes_max {
            self.codes.retain(|_, code| Rc::strong_count(code) > 1);
        }
        self.codes.insert(hash, code.clone());
        Ok(code)
    }

    /// Runs the source, and finds the object in what it left: a returned table, or one named `aso` or `object`.
    fn run_source(&mut self, object: &mut Object, facts: Facts) -> Result<(), ScriptError> {
        let main = object.code.main.deep_clone()?;
        main.set_environment(object.globals.clone())?;
        let thread = self.thread(main)?;
        let run = Run::new(object, facts);
        self.enter(object, &run);
        let (result, _) = self.turn(object, &thread, run.left, MultiValue::new());
        let returned = result?;
        if thread.status() == ThreadStatus::Resumable || !self.context.deferred.borrow().is_empty() {
            self.context.deferred.borrow_mut().clear();
            return Err(cannot_wait_while_loading());
        }
        self.recycle(thread);
        let mut found = match returned.into_iter().next() {
            Some(mlua::Value::Table(table)) => Some(table),
            _ => None,
        };
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
        Ok(())
    }

    /// Makes bare functions functions of the object, and wraps the methods that are called with a dot.
    fn adopt_functions(&self, object: &Object) -> Result<(), ScriptError> {
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
        for name in object.code.shape.wrapped() {
            let name = self.lua.create_string(name)?;
            if let mlua::Value::Function(method) = object.fields.raw_get(&name)? {
                let wrapped: Function = self.library.wrap.call((method, &object.fields))?;
                object.fields.raw_set(name, wrapped)?;
            }
        }
        Ok(())
    }

    fn baseline(&self, object: &Object) -> Result<Baseline, ScriptError> {
        let read = |table: &Table| -> Result<BTreeMap<Vec<u8>, Made>, ScriptError> {
            let mut made = BTreeMap::new();
            table.for_each(|name: mlua::Value, value: mlua::Value| {
                if let mlua::Value::String(name) = name {
                    let taken = Taker::new(object.limits.memory_bytes).take(&value);
                    let is = match taken {
                        Ok(data) => Made::Data(data),
                        Err(Refusal { reason: Unkeepable::TooLarge { .. }, .. }) => return Ok(()),
                        Err(_) => Made::Code,
                    };
                    made.insert(name.as_bytes().to_vec(), is);
                }
                Ok(())
            })?;
            Ok(made)
        };
        let mut fields = read(&object.fields)?;
        fields.retain(|_, made| matches!(made, Made::Code));
        Ok(Baseline { fields, globals: read(&object.globals)? })
    }

    /// Puts the fields and globals of a state in place of those that the source made.
    fn restore(&self, object: &Object, state: &[u8]) -> Result<(), ScriptError> {
        let Value::Array(parts) = decode(state)? else {
            return Err(ScriptError::BadState { reason: "it is no pair of tables" });
        };
        let [Value::Map(fields), Value::Map(globals)] = parts.as_slice() else {
            return Err(ScriptError::BadState { reason: "it is no pair of tables" });
        };
        let made_code = |name: &mlua::Value| match (name, object.code.baseline.get()) {
            (mlua::Value::String(name), Some(baseline)) => baseline.fields.contains_key(&name.as_bytes()[..]),
            _ => false,
        };
        let mut stale = Vec::new();
        object.fields.for_each(|name: mlua::Value, _: mlua::Value| {
            if !made_code(&name) {
                stale.push(name);
            }
            Ok(())
        })?;
        for name in stale {
            object.fields.raw_set(name, mlua::Value::Nil)?;
        }
        for (table, entries) in [(&object.fields, fields), (&object.globals, globals)] {
            for (name, value) in entries {
                let is_key = !matches!(name, Value::Nil | Value::Array(_) | Value::Map(_));
                if is_key && !matches!(name, Value::Number(n) if n.is_nan()) {
                    table.raw_set(into_lua(&self.lua, name)?, into_lua(&self.lua, value)?)?;
                }
            }
        }
        Ok(())
    }

    /// Finds the function and lays out its arguments.
    fn begin(&mut self, object: &Object, call: &Call) -> Result<(Thread, MultiValue, Run), ScriptError> {
        let mlua::Value::Function(function) = object.fields.raw_get(call.function)? else {
            return Err(ScriptError::NoFunction { name: call.function.to_string() });
        };
        let signature = object.code.shape.signature(call.function.as_bytes());
        let takes_arguments = signature.is_none_or(|signature| signature.takes_arguments);
        let mut arguments = MultiValue::new();
        if signature.is_none_or(|signature| signature.takes_self) {
            arguments.push_back(mlua::Value::Table(object.fields.clone()));
        }
        let mut run = Run::new(object, call.facts);
        if let CallerPlace::First(caller) | CallerPlace::Last(caller) = call.caller {
            run.reply_to.clone_from(&caller.from);
        }
        if takes_arguments {
            if let CallerPlace::First(caller) = call.caller {
                arguments.push_back(into_lua(&self.lua, &caller_value(caller))?);
            }
            for argument in call.arguments {
                arguments.push_back(into_lua(&self.lua, argument)?);
            }
            if let CallerPlace::Last(caller) = call.caller {
                arguments.push_back(into_lua(&self.lua, &caller_value(caller))?);
            }
        }
        Ok((self.thread(function)?, arguments, run))
    }

    /// Runs a thread until it ends or waits, and then whatever callbacks it left.
    fn drive(&mut self, object: &mut Object, thread: Thread, arguments: MultiValue, mut run: Run) -> Step {
        self.enter(object, &run);
        let heap_before = self.lua.used_memory();
        let (result, left) = self.turn(object, &thread, run.left, arguments);
        self.leave(object, &mut run, left);
        let allocated = self.lua.used_memory().saturating_sub(heap_before);
        object.unmeasured_bytes += allocated;
        object.allocated_bytes += allocated;
        self.collector.pace(&self.lua);
        let returned = match result {
            Ok(returned) => returned,
            Err(error) => return Step::Failed(error),
        };
        if object.unmeasured_bytes > object.limits.memory_bytes / 2 {
            if let Err(error) = self.measure(object) {
                return Step::Failed(error);
            }
        }
        if thread.status() == ThreadStatus::Resumable {
            return match self.context.pending.borrow_mut().take() {
                Some(request) => {
                    Step::Suspended(Box::new(Suspended { request, waiting: Waiting::Handler(thread), run }))
                }
                None => Step::Failed(ScriptError::Machine { message: "a handler waits for nothing".into() }),
            };
        }
        self.recycle(thread);
        if run.answer.is_none() {
            match self.answer(object, returned) {
                Ok(answer) => run.answer = Some(answer),
                Err(error) => return Step::Failed(error),
            }
        }
        if let Some(Deferred { request, callback }) = run.deferred.pop_front() {
            return Step::Suspended(Box::new(Suspended {
                request,
                waiting: Waiting::Callback(callback),
                run,
            }));
        }
        if object.allocated_bytes > HIDDEN_MEMORY_FACTOR * object.limits.memory_bytes {
            if let Err(error) = self.load_anew(object, run.facts) {
                return Step::Failed(error);
            }
        }
        let instructions_left = u32::try_from(run.left.fuel).unwrap_or(0);
        Step::Done(Outcome {
            answer: run.answer.unwrap_or(Answer::Value(Value::Nil)),
            is_deleted: run.is_deleted,
            instructions_used: object.limits.instructions.saturating_sub(instructions_left),
        })
    }

    fn load_anew(&mut self, object: &mut Object, facts: Facts) -> Result<(), ScriptError> {
        let state = self.encode(object)?;
        let (key, source, limits) = (object.key.clone(), object.code.source.clone(), object.limits.clone());
        let messages_left = object.messages_left;
        *object = self.load(&key, &source, Some(&state), limits, facts)?;
        object.messages_left = messages_left;
        Ok(())
    }

    fn answer(&self, object: &Object, returned: MultiValue) -> Result<Answer, ScriptError> {
        let first = returned.into_iter().next().unwrap_or(mlua::Value::Nil);
        if matches!(&first, mlua::Value::Table(table) if *table == object.fields) {
            return Ok(Answer::Object);
        }
        let taken = Taker::new(object.limits.memory_bytes).take(&first);
        taken.map(Answer::Value).map_err(|refusal| refusal.at("the result"))
    }

    /// Shows the host functions this call.
    fn enter(&self, object: &Object, run: &Run) {
        let context = &self.context;
        context.now_ms.set(run.facts.now_ms);
        context.random.set(run.random);
        *context.key.borrow_mut() = object.key.clone();
        *context.object.borrow_mut() = Some(object.fields.clone());
        context.bytes_max.set(object.limits.memory_bytes);
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
        *context.object.borrow_mut() = None;
    }

    /// Lets a thread run within the limits.
    fn turn(
        &self,
        object: &Object,
        thread: &Thread,
        left: Left,
        arguments: MultiValue,
    ) -> (Result<MultiValue, ScriptError>, Left) {
        let heap_bytes = self.lua.used_memory();
        let heap_bytes_max = heap_bytes + object.limits.working_bytes + HEAP_SLACK_BYTES;
        // Only a machine of another owner has no limit to set.
        let _ = self.lua.set_memory_limit(heap_bytes_max);
        meter::start(self.clock, &object.limits, left, heap_bytes, thread);
        let result = thread.resume::<MultiValue>(arguments);
        if matches!(&result, Err(error) if is_memory(error)) {
            meter::trip_working_memory();
        }
        let (left, tripped) = meter::stop();
        let _ = self.lua.set_memory_limit(0);
        let result = match (tripped, result) {
            (Some(limit), result) => {
                let trace = result.err().map_or(String::new(), |error| failure(&error).1);
                Err(ScriptError::Limit { limit, trace })
            }
            (None, Ok(returned)) => Ok(returned),
            (None, Err(error)) => {
                let (message, trace) = failure(&error);
                Err(ScriptError::Runtime { message, trace })
            }
        };
        (result, left)
    }

    fn thread(&mut self, function: Function) -> Result<Thread, ScriptError> {
        match self.idle.pop() {
            Some(thread) => {
                thread.reset(function)?;
                Ok(thread)
            }
            None => Ok(self.lua.create_thread(function)?),
        }
    }

    fn recycle(&mut self, thread: Thread) {
        if self.idle.len() < IDLE_THREADS_MAX {
            self.idle.push(thread);
        }
    }
}

impl Run {
    fn new(object: &Object, facts: Facts) -> Run {
        Run {
            key: object.key.clone(),
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

/// The entries of a table that are data: without `hidden` names and without what the source makes.
fn kept(
    taker: &mut Taker,
    table: &Table,
    made: &BTreeMap<Vec<u8>, Made>,
    hidden: &[&str],
    root: &str,
) -> Result<Vec<(Value, Value)>, ScriptError> {
    let is_kept = |key: &mlua::Value| {
        let mlua::Value::String(name) = key else { return true };
        let name = &name.as_bytes()[..];
        !hidden.iter().any(|hidden| hidden.as_bytes() == name) && !matches!(made.get(name), Some(Made::Code))
    };
    taker.entries(table, is_kept).map_err(|refusal: Refusal| refusal.at(root))
}

fn is_made(baseline: &Baseline, name: &Value, value: &Value) -> bool {
    let Value::Bytes(name) = name else { return false };
    matches!(baseline.globals.get(name), Some(Made::Data(made)) if made == value)
}

/// A state that is too large to read is one that takes too much memory.
fn too_large(error: ScriptError, limits: &Limits) -> ScriptError {
    match error {
        ScriptError::Unkeepable { reason: Unkeepable::TooLarge { .. }, .. } => memory_limit(limits),
        other => other,
    }
}

fn memory_limit(limits: &Limits) -> ScriptError {
    let limit = LimitError::Memory { limit_bytes: limits.memory_bytes };
    ScriptError::Limit { limit, trace: String::new() }
}
