//! Sources, arguments and states made of any bytes, and what must hold whatever they are: only errors, limits that
//! hold, states that come back as they were, and neighbours that notice nothing.

use bytes::Bytes;
use oort_core::active::{Failure, Place, Sandbox, Turn};
use oort_core::types::ObjectKey;
use oort_script::{
    decode, encode, Answer, CallerPlace, Clock, Facts, HostResult, Invocation, Machine, Value, COMET_LIMITS,
    WORKING_BYTES,
};

/// Pieces that make trouble when they meet.
const PIECES: [&str; 70] = [
    "self",
    "aso",
    "x",
    "comet",
    "string",
    "table",
    "math",
    "pcall",
    "error",
    "setmetatable",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ".",
    ":",
    ",",
    ";",
    "=",
    "==",
    "..",
    "...",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "#",
    "<",
    "~=",
    "and",
    "or",
    "not",
    "nil",
    "true",
    "1",
    "0",
    "1e308",
    "'x'",
    "'%b()'",
    "[[\n]]",
    "--",
    "local",
    "function",
    "f",
    "return",
    "end",
    "while",
    "do",
    "for",
    "in",
    "if",
    "then",
    "else",
    "until",
    "repeat",
    "break",
    "\n",
    "`{x}`",
    ".rep",
    ".sort",
    "comet.counter()",
    "comet.set()",
    "comet.map()",
    ":add(x)",
    ":set(x, self)",
    ":values()",
];

/// Statements that are whole, so that some programs run.
const STATEMENTS: [&str; 40] = [
    "x = x or {}",
    "self.x = x",
    "self[#self + 1] = 'y'",
    "x = ('ab'):rep(300)",
    "x = {x, x}",
    "local t = setmetatable({}, {__index = function() return x end}) x = t.a",
    "for i = 1, 1000 do x = i end",
    "while true do x = 1 end",
    "pcall(function() error(x) end)",
    "error({x})",
    "comet.lookup()",
    "comet.get(function() x = 2 end)",
    "comet.put(self)",
    "comet.deleteSelf()",
    "x = function() return x end",
    "x = x()",
    "table.sort({3, 1, 2}, function(a, b) return a ~= x and a < b end)",
    "x = tostring(x):gsub('.', '%0%0')",
    "x = tostring(x):find('(.-)(.-)%1$')",
    "x = string.format('%q', tostring(x))",
    "x = table.concat({1, 2, tostring(x)})",
    "x = math.random(10)",
    "return x",
    "self.y = {self.y, x}",
    "x = comet.counter()",
    "x = comet.set()",
    "x = comet.map()",
    "x = comet.register()",
    "x:add(x)",
    "x:add(1)",
    "x:remove(1)",
    "x:set(x, x)",
    "x:set('k', {1, x})",
    "x = x:get('k')",
    "x = x:value()",
    "x = x:values()",
    "self.c = self.c or comet.counter() self.c:add(2)",
    "self.s = self.s or comet.set() self.s:add(tostring(x)) self.s:remove('nil')",
    "self.t = self.t or {m = comet.map()} self.t.m:set(tostring(x), {x})",
    "self.r = self.r or comet.register() self.r:set(x)",
];

/// The most programs of one input.
const PROGRAMS_MAX: usize = 6;
/// What a machine may take with a handful of objects, and garbage that was not collected yet.
const MACHINE_BYTES_MAX: usize = 16 << 20;
const VICTIM: &str = "aso.n = 0 function f() self.n = self.n + 1 return ('x'):rep(self.n) end";

/// Choices made by bytes. When there are no more, the first choice is taken.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    fn below(&mut self, count: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % count
    }

    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let count = self.below(256) * most / 255;
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn several(&mut self, most: usize, choices: &[&'static str]) -> Vec<&'static str> {
        let count = self.below(most + 1);
        (0..count).map(|_| choices[self.below(choices.len())]).collect()
    }

    /// A program: any bytes, words of Lua, or statements.
    fn source(&mut self) -> Vec<u8> {
        match self.below(4) {
            0 => self.bytes(200).to_vec(),
            1 => self.several(60, &PIECES).join(" ").into_bytes(),
            _ => {
                let statements = self.several(12, &STATEMENTS).join(" end do ");
                format!("function f(x) do {statements} end end").into_bytes()
            }
        }
    }

    fn value(&mut self, levels: usize) -> Value {
        match self.below(if levels > 0 { 8 } else { 6 }) {
            0 => Value::Nil,
            1 => Value::Bool(self.below(2) == 0),
            2 => Value::Integer(self.below(256) as i64 - 128),
            3 => Value::Integer(i64::from_le_bytes(self.eight())),
            4 => Value::Number(f64::from_le_bytes(self.eight())),
            5 => Value::Bytes(self.bytes(40).to_vec()),
            6 => Value::Array((0..self.below(4)).map(|_| self.value(levels - 1)).collect()),
            _ => Value::Map((0..self.below(4)).map(|_| (self.value(0), self.value(levels - 1))).collect()),
        }
    }

    fn eight(&mut self) -> [u8; 8] {
        std::array::from_fn(|_| self.below(256) as u8)
    }

    /// Bytes that are no state, or one that is nearly a state.
    fn state(&mut self) -> Bytes {
        const FRAMES: [&[u8]; 6] = [
            b"",
            b"\x01\x06\x02",
            b"\x01\x06\x02\x07\x01\x05\x01x\x08\x0cc\x01",
            b"\x01\x06\x02\x07\x01\x05\x01x\x08\x18s\x01\x01\x01\x01\x01\x01\x01\x01\x01",
            b"\x01\x06\x02\x07\x01\x05\x01x\x08\x1am\x01\x01\x01\x01\x01\x01\x01\x01\x01",
            b"\x01\x06\x02\x07\x01\x05\x01x\x08\x13r",
        ];
        let frame = FRAMES[self.below(FRAMES.len())];
        let middle = self.bytes(100);
        let end: &[u8] = if self.below(2) == 0 { b"\x07\x00" } else { b"" };
        [frame, middle, end].concat().into()
    }
}

/// Runs whatever the bytes say.
pub fn check(bytes: &[u8], clock: Clock) {
    let mut input = Input(bytes);
    let mut run = Run { machine: Machine::new(clock).expect("a machine starts"), now_ms: 1_700_000_000_000 };
    let victim = key("victim");
    run.load(&victim, &VICTIM.into(), None).expect("it is honest");
    let mut states = Vec::new();
    for count in 1..=PROGRAMS_MAX {
        let source = Bytes::from(input.source());
        run.program(&mut input, &source, &mut states);
        let turn = run.call(&victim, &[]);
        let Turn::Done(done) = turn else { panic!("the victim does not work: {turn:?}") };
        assert_eq!(done.answer, Answer::Value("x".repeat(count).as_str().into()));
        let used_bytes = run.machine.used_bytes();
        assert!(used_bytes < MACHINE_BYTES_MAX, "the machine takes {used_bytes} bytes");
        if input.0.is_empty() {
            break;
        }
    }
    run.state(&input.state());
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(b"bucket", name.as_bytes()).expect("it is short")
}

struct Run {
    machine: Machine,
    now_ms: u64,
}

impl Run {
    fn facts(&self) -> Facts {
        Facts { now_ms: self.now_ms, seed: 7, actor: 1 }
    }

    fn load(&mut self, key: &ObjectKey, source: &Bytes, state: Option<&Bytes>) -> Result<Place, Failure> {
        self.machine.load(key, source, state, &COMET_LIMITS, self.facts())
    }

    /// One call, and answers to whatever it waits for.
    fn call(&mut self, key: &ObjectKey, arguments: &[Value]) -> Turn {
        self.now_ms += 1;
        let facts = self.facts();
        let before = self.machine.used_bytes();
        let invocation = Invocation { function: "f", caller: CallerPlace::None, arguments, facts };
        let mut turn = self.machine.call(key, Place::default(), &invocation);
        let mut answers = 0;
        while let Turn::Waits(_) = turn {
            answers += 1;
            let result: HostResult = if answers % 3 == 0 { Err("no".into()) } else { Ok("answer".into()) };
            turn = self.machine.resume(key, result, facts);
        }
        assert!(answers <= COMET_LIMITS.messages, "{answers} requests");
        let grown = self.machine.used_bytes().saturating_sub(before);
        let most = (answers as usize + 1) * (WORKING_BYTES + (256 << 10));
        assert!(grown <= most, "a call took {grown} bytes");
        if let Turn::Done(done) = &turn {
            assert!(done.instructions <= COMET_LIMITS.instructions);
        }
        turn
    }

    /// Loads a program, calls it twice, and keeps and joins what it leaves.
    fn program(&mut self, input: &mut Input, source: &Bytes, states: &mut Vec<Bytes>) {
        let own = key("own");
        self.machine.unload(&own);
        if self.load(&own, source, None).is_err() {
            return;
        }
        for _ in 0..2 {
            let arguments = [input.value(2)];
            self.call(&own, &arguments);
            let Ok(state) = self.machine.save(&own) else { continue };
            assert!(source.len() + state.len() <= COMET_LIMITS.memory_bytes as usize);
            self.kept(source, &state);
            for other in states.iter() {
                self.joined(source, &state, other);
            }
            states.push(state);
        }
    }

    /// A state comes back as it was, and joined with itself is itself.
    fn kept(&mut self, source: &Bytes, state: &Bytes) {
        let again = key("again");
        self.load(&again, source, Some(state)).expect("what was kept can be loaded");
        assert_eq!(self.machine.save(&again).as_ref(), Ok(state));
        assert!(decode(state).is_ok());
        let shown = self.machine.fields(&again).expect("what is kept can be shown");
        assert_eq!(self.machine.state_fields(state).as_ref(), Ok(&shown));
        assert_eq!(self.machine.join(&again, state), Ok(true));
        assert_eq!(self.machine.save(&again).as_ref(), Ok(state));
    }

    /// Whatever two states are, joining them is an error or a state, twice is as good as once, and where nothing else
    /// differs, both ways are the same.
    fn joined(&mut self, source: &Bytes, state: &Bytes, other: &Bytes) {
        let mut join = |one: &Bytes, two: &Bytes| {
            let again = key("again");
            self.load(&again, source, Some(one)).ok()?;
            let is_lossless = self.machine.join(&again, two).ok()?;
            let joined = self.machine.save(&again).ok()?;
            assert_eq!(self.machine.join(&again, two), Ok(is_lossless));
            assert_eq!(self.machine.save(&again).as_ref(), Ok(&joined));
            Some((is_lossless, joined))
        };
        if let (Some((true, one)), Some((true, two))) = (join(state, other), join(other, state)) {
            assert_eq!(one, two);
        }
    }

    /// Any bytes are a state or an error.
    fn state(&mut self, state: &Bytes) {
        let source = Bytes::from_static(b"aso.x = comet.counter() function f() return self.x end");
        if let Ok(value) = decode(state) {
            assert_eq!(decode(&encode(&value)), Ok(value));
        }
        let raw = key("raw");
        if self.load(&raw, &source, Some(state)).is_ok() {
            assert!(decode(state).is_ok());
            if let Ok(saved) = self.machine.save(&raw) {
                self.kept(&source, &saved);
            }
            self.call(&raw, &[]);
        }
        self.load(&raw, &source, None).expect("it is honest");
        let _ = self.machine.join(&raw, state);
        let _ = self.machine.state_fields(state);
        self.call(&raw, &[]);
    }
}
