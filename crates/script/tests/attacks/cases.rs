//! The attacks: what each is after, its code, and how it ends.

use oort_script::{LimitError, Unkeepable, LEVELS_MAX};

#[derive(Debug)]
pub enum Expect {
    Limit(LimitError),
    /// An ordinary error of Lua, with this message.
    Error(&'static str),
    /// The source is refused.
    Syntax(&'static str),
    /// The path to what cannot be kept or answered.
    Unkeepable(&'static str, Unkeepable),
    /// Nothing is gained: the attack ends with this text.
    Harmless(&'static str),
}

use Expect::*;

pub struct Attack {
    pub name: &'static str,
    code: Code,
    pub expect: Expect,
}

enum Code {
    /// The body of the function that is called.
    Body(&'static str),
    /// Called this often.
    Again(usize, &'static str),
    /// A whole source.
    Source(&'static str),
    /// A whole source, made by a program.
    Made(fn() -> String),
}

use Code::*;

impl Attack {
    pub fn text(&self) -> String {
        match self.code {
            Body(body) | Again(_, body) => format!("function attack() {body}\nend"),
            Source(source) => source.to_string(),
            Made(make) => make(),
        }
    }

    pub fn calls(&self) -> usize {
        match self.code {
            Again(calls, _) => calls,
            _ => 1,
        }
    }
}

const CPU: Expect = Limit(LimitError::Instructions { limit: 100_000 });
const WALL: Expect = Limit(LimitError::WallClock { limit_us: 10_000 });
const HEAP: Expect = Limit(LimitError::WorkingMemory { limit_bytes: 1 << 20 });
const STATE: Expect = Limit(LimitError::Memory { limit_bytes: 100_000 });
const FLOOD: Expect = Limit(LimitError::Messages { limit: 20 });
const OTHER_KEY: Expect = Error("an object reaches only its own key");

const fn attack(name: &'static str, code: Code, expect: Expect) -> Attack {
    Attack { name, code, expect }
}

pub const CASES: &[Attack] = &[
    // Time of the processor.
    attack("a loop", Body("while true do end"), CPU),
    attack("a loop to infinity", Body("for i = 1, math.huge do end"), CPU),
    attack("a loop that repeats", Body("repeat local x = 1 until false"), CPU),
    attack("an iterator without end", Body("for _ in function() return 1 end do end"), CPU),
    attack("a loop while the object is loaded", Source("while true do end"), CPU),
    attack("a loop in pcall", Body("pcall(function() while true do end end) while true do end"), CPU),
    attack("a loop of pcalls", Body("while true do pcall(function() while true do end end) end"), CPU),
    attack("a limit kept from view", Body("pcall(function() while true do end end) return 'escaped'"), CPU),
    attack("pcall of pcall", Body("local function f() pcall(f) return f() end f()"), HEAP),
    attack("errors without end", Body("while true do pcall(error, 'x') end"), CPU),
    attack("an error handler that loops", Body("xpcall(error, function() while true do end end, 'x')"), CPU),
    attack(
        "a limit in an error handler",
        Body("while true do xpcall(function() while true do end end, function() return 1 end) end"),
        CPU,
    ),
    attack("a comparator that loops", Body("table.sort({3, 2, 1}, function() while true do end end)"), CPU),
    attack("a gsub callback that loops", Body("('x'):gsub('.', function() while true do end end)"), CPU),
    attack("a sort of long strings", Body(
        "local a, t = ('x'):rep(20000), {} local b = a .. 'y'
         for i = 1, 2000 do t[i] = i % 2 == 0 and a or b end
         table.sort(t)",
    ), CPU),
    attack("sorts without end", Body(
        "local t = {} for i = 1, 1000 do t[i] = -i end while true do table.sort(t) end",
    ), CPU),
    attack("a comparator without order", Body(
        "local t = {} for i = 1, 100 do t[i] = i end table.sort(t, function() return true end)",
    ), Error("aso:1: invalid order function for sorting")),
    attack("a literal far away", Body(
        "local s = ('a'):rep(50000) return s:find(('a'):rep(25000) .. 'b', 1, true)",
    ), CPU),
    attack("a split by what is nearly there", Body(
        "local s = ('a'):rep(50000) return s:split(('a'):rep(25000) .. 'b')",
    ), CPU),
    attack("moves over a sparse range", Body("table.move({[1] = 1, [2^30] = 1}, 1, 2^30, 2, {}) while true do end"), CPU),
    attack("insertions in front", Body("local t = {} while true do table.insert(t, 1, 1) end"), CPU),
    attack("comparisons of long strings", Body(
        "local a = ('x'):rep(100000) local b, c = a .. 'a', a .. 'b' while true do local _ = b < c end",
    ), WALL),
    attack("searches in a long table", Body("local t = table.create(50000, 1) while true do table.find(t, 2) end"), WALL),
    attack("a table emptied from its front", Body(
        "local t = {} for i = 1, 9000 do t['k' .. i] = i end while true do local k = next(t) if k then t[k] = nil end end",
    ), HEAP),
    // Memory.
    attack("a giant string", Body("return #('x'):rep(1e9)"), HEAP),
    attack("giant strings in pcall", Body("while true do pcall(string.rep, 'x', 1e9) end"), HEAP),
    attack("a want of memory kept from view", Body("pcall(string.rep, 'x', 1e9) return 'escaped'"), HEAP),
    attack("a string that doubles", Body("local s = 'x' while true do s = s .. s end"), HEAP),
    attack("a string that doubles without a loop", Made(|| {
        format!("function attack() local s = 'xxxxxxxx' {} end", "s = s .. s ".repeat(60))
    }), HEAP),
    attack("a table without end", Body("local t = {} while true do t[#t + 1] = t end"), CPU),
    attack("strings without end", Body("local i = 0 while true do i = i + 1 local _ = ('x'):rep(5000 + i) end"), HEAP),
    attack("a giant table", Body("return #table.create(1e8, 0)"), Error("table overflow")),
    attack("too large a table", Body("return #table.create(1e12, 0)"), Error("table overflow")),
    attack("one string a thousand times", Body("return #table.concat(table.create(2000, ('x'):rep(1000)))"), HEAP),
    attack("a substitution that explodes", Body("return #('x'):rep(1000):gsub('.', ('y'):rep(5000))"), HEAP),
    attack("memory in a comparator", Body(
        "table.sort({3, 2, 1}, function() pcall(string.rep, 'x', 1e9) return false end)",
    ), HEAP),
    attack("memory in a metamethod", Body(
        "return setmetatable({}, {__concat = function(a, b) return ('x'):rep(1e9) end}) .. 'x'",
    ), HEAP),
    attack("a format too wide", Body("return ('%999d'):format(1)"), Error("aso:1: invalid format (width or precision too long)")),
    // The stack.
    attack("recursion", Body("local function f() return 1 + f() end return f()"), HEAP),
    attack("recursion in pcall", Body("local function f() pcall(f) end while true do f() end"), HEAP),
    attack("recursion through __index", Body(
        "local t t = setmetatable({}, {__index = function(_, k) return t[k] end}) return t.x",
    ), Error("aso:1: C stack overflow")),
    attack("recursion through __add", Body(
        "local m = {} m.__add = function(a, b) return a + b end local t = setmetatable({}, m) return t + t",
    ), Error("aso:1: C stack overflow")),
    attack("recursion through tostring", Body(
        "local m = {} m.__tostring = function(t) return tostring(t) end return tostring(setmetatable({}, m))",
    ), Error("C stack overflow")),
    attack("recursion through gsub", Body(
        "local function f() return (('x'):gsub('.', f)) end return f()",
    ), Error("C stack overflow")),
    attack("a chain of __index tables", Body(
        "local t = {} for i = 1, 500 do t = setmetatable({}, {__index = t}) end return t.x",
    ), Error("aso:1: '__index' chain too long; possible loop")),
    attack("a loop of __index tables", Body(
        "local a, b = {}, {} setmetatable(a, {__index = b}) setmetatable(b, {__index = a}) return a.x",
    ), Error("aso:1: '__index' chain too long; possible loop")),
    attack("a million results", Body("return select('#', table.unpack({}, 1, 1e6))"), Error("aso:1: too many results to unpack")),
    attack("a million bytes as results", Body("return ('x'):rep(1e6 - 9):byte(1, -1)"), Error("aso:1: stack overflow (string slice too long)")),
    attack("brackets in a source", Made(|| format!("return {}1{}", "(".repeat(20_000), ")".repeat(20_000))),
        Syntax("line 1: Exceeded allowed recursion depth; simplify your expression to make the code compile")),
    attack("tables in a source", Made(|| format!("return {}{}", "{".repeat(20_000), "}".repeat(20_000))),
        Syntax("line 1: Exceeded allowed recursion depth; simplify your expression to make the code compile")),
    // Patterns.
    attack("a pattern of many choices", Body("return ('a'):rep(200):find(('a-'):rep(20) .. 'b')"), CPU),
    attack("a greedy pattern", Body("return ('a'):rep(200):find(('.*'):rep(20) .. 'b')"), CPU),
    attack("a pattern bomb in pcall", Body("pcall(string.find, ('a'):rep(200), ('a*'):rep(20) .. 'b') return 'escaped'"), CPU),
    attack("a set as long as the text", Body("return ('a'):rep(40000):find('[' .. ('b'):rep(40000) .. ']')"), CPU),
    attack("brackets that never close", Body("return ('('):rep(100000):find('%b()')"), WALL),
    attack("references back", Body("return ('a'):rep(300):find('(.*)(.*)(.*)%1%2%3b')"), CPU),
    attack("gmatch of a bomb", Body("for _ in ('a'):rep(200):gmatch(('a*'):rep(20) .. 'b') do end"), CPU),
    attack("gsub of a bomb", Body("return ('a'):rep(200):gsub(('a-'):rep(20) .. 'b', '')"), CPU),
    attack("too many captures", Body("return ('a'):find(('()'):rep(40))"), Error("aso:1: too many captures")),
    attack("a pattern too deep", Body("return ('a'):rep(500):find(('a?'):rep(400) .. ('a'):rep(400))"),
        Error("aso:1: pattern too complex")),
    // Metatables and the shared library.
    attack("the metatable of strings", Body("getmetatable('').__index = nil"), Error("aso:1: attempt to call a nil value")),
    attack("a function replaced", Body("string.rep = nil"), Error("aso:1: attempt to modify a readonly table")),
    attack("a constant replaced", Body("math.pi = 3"), Error("aso:1: attempt to modify a readonly table")),
    attack("a function added", Body("rawset(string, 'x', 1)"), Error("attempt to modify a readonly table")),
    attack("a library emptied", Body("table.clear(string)"), Error("attempt to modify a readonly table")),
    attack("a library appended to", Body("table.insert(table, 1)"), Error("attempt to modify a readonly table")),
    attack("a metatable for a library", Body("setmetatable(math, {})"), Error("attempt to modify a readonly table")),
    attack("the host replaced", Body("comet.put = nil"), Error("aso:1: attempt to modify a readonly table")),
    attack("the host under its other name", Body("rawset(dht, 'key', function() return 'other' end)"),
        Error("attempt to modify a readonly table")),
    attack("a metatable for strings", Body("setmetatable('', {})"),
        Error("aso:1: invalid argument #1 to 'setmetatable' (table expected, got string)")),
    attack("a library as object", Source("aso = math function attack() leaked = 1 return 'mine' end"), Harmless("mine")),
    attack("a library returned", Source("function attack() return 'mine' end return string"), Harmless("mine")),
    attack("globals of others", Body("leaked = 1 string = {rep = 1} pcall = nil return 'mine'"), Harmless("mine")),
    attack("an object with a hostile metatable", Source(
        "setmetatable(aso, {__index = function() while true do end end, __newindex = function() while true do end end,
           __iter = function() while true do end end, __len = function() while true do end end})
         function attack() return 'mine' end",
    ), Harmless("mine")),
    attack("a frozen object", Source("function attack() end table.freeze(aso)"), Error("the table of an object cannot be frozen")),
    attack("everything that was removed", Body(
        "local gone = {getfenv, setfenv, loadstring, load, newproxy, print, collectgarbage, gcinfo, require, _G,
           getmetatable, coroutine, debug, os, io, buffer, bit32, utf8, vector, string.pack, string.unpack,
           string.packsize, string.dump, math.randomseed, loadfile, dofile, module, package, integer}
         return next(gone) == nil and 'none is there' or 'some are there'",
    ), Harmless("none is there")),
    attack("bytecode as source", Source("\x1bLua\x06\x03"), Syntax("line 1: byte 0x1b is no text: a source is UTF-8")),
    attack(
        "addresses of memory",
        Body("local t = {} return tostring(t) .. (' %* '):format(next) .. `{t} {nil}` .. tostring(setmetatable({}, {}))"),
        Harmless("table function table niltable"),
    ),
    // Coroutines, and waiting where nothing can wait.
    attack("a coroutine", Body("coroutine.wrap(function() end)()"), Error("aso:1: attempt to index nil with 'wrap'")),
    attack("waiting in a comparator", Body("table.sort({2, 1}, function() comet.lookup() end)"),
        Error("aso:1: comet.lookup cannot wait in a sort comparator, a gsub callback or a metamethod")),
    attack("waiting in gsub", Body("('x'):gsub('.', function() comet.get() end)"),
        Error("aso:1: comet.get cannot wait in a sort comparator, a gsub callback or a metamethod")),
    attack("waiting in a metamethod", Body("return setmetatable({}, {__index = function() comet.put('x') end}).x"),
        Error("aso:1: comet.put cannot wait in a sort comparator, a gsub callback or a metamethod")),
    attack("waiting while the object is loaded", Source("comet.lookup()"),
        Error("an object cannot wait for its node while it is loaded: only handlers can")),
    attack("a callback while the object is loaded", Source("comet.lookup(function() end)"),
        Error("an object cannot wait for its node while it is loaded: only handlers can")),
    // Errors.
    attack("an error that is a table", Body("error({1})"), Error("the error is a table")),
    attack("an error that is nothing", Body("error()"), Error("nil")),
    attack("an error that is the object", Body("error(self)"), Error("the error is a table")),
    attack("an error that loops when it is shown", Body(
        "error(setmetatable({}, {__tostring = function() while true do end end}))",
    ), CPU),
    attack("an error that fails when it is shown", Body(
        "error(setmetatable({}, {__tostring = function() error('again') end}))",
    ), Error("aso:1: again")),
    attack("an error that forges a limit", Body("error('limit', 0)"), Error("limit")),
    attack("an error that forges want of memory", Body("pcall(error, 'not enough memory', 0) return 'fooled'"), HEAP),
    attack("an error in an error", Body("xpcall(error, function() error('b') end, 'a') return 'went on'"), Harmless("went on")),
    // Calls from within calls.
    attack("a handler that calls itself", Body("self.n = (self.n or 0) + 1 return self.attack()"), HEAP),
    attack("callbacks from callbacks", Body("local function again() comet.lookup(again) end again()"), FLOOD),
    attack("a callback that loops", Body("comet.lookup(function() while true do end end) return 'early'"), CPU),
    attack("a callback that fails", Body("comet.lookup(function() error('late', 0) end) return 'early'"), Error("late")),
    // Messages.
    attack("a flood of puts", Body("while true do comet.put(self) end"), FLOOD),
    attack("a flood of puts in pcall", Body("while true do pcall(comet.put, self) end"), FLOOD),
    attack("a flood of callbacks", Body("while true do comet.get(function() end) end"), FLOOD),
    attack("a flood in one put", Body("local n = {} for i = 1, 21 do n[i] = 'n' .. i end comet.put('x', n)"), FLOOD),
    attack("a flood over many calls", Again(21, "comet.lookup()"), FLOOD),
    // Worms.
    attack("a copy of itself under another key", Body("comet.put('other', self, {'n1'})"), OTHER_KEY),
    attack("a value under another key", Body("comet.put('other', 'x', {'n1'})"), OTHER_KEY),
    attack("a text under another key", Body("comet.put('other', 'x')"), OTHER_KEY),
    attack("a number under another key", Body("comet.put('other', 1)"), OTHER_KEY),
    attack("a copy under another key at all nodes", Body("comet.put('other', self)"), OTHER_KEY),
    attack("a table under another key", Body("comet.put('other', {x = 1})"), OTHER_KEY),
    attack("nothing under another key", Body("comet.put('other', {})"), OTHER_KEY),
    attack("a get of another key", Body("return comet.get('other')"), OTHER_KEY),
    attack("a lookup of another key", Body("return comet.lookup('other')"), OTHER_KEY),
    attack("a key that is no string", Body("comet.put({}, 'x', {'n1'})"), OTHER_KEY),
    attack("nodes that are none", Body("comet.put(self, {1, 2})"),
        Error("nodes are a list of node ids, or of tables with a field id")),
    attack("nodes that have other names", Body("comet.put(self, {node = 'n1'})"),
        Error("nodes are a list of node ids, or of tables with a field id")),
    attack("a forged caller", Body("caller = {key = 'other', node = 'n9'} comet.put('other', 'x', {'n9'})"), OTHER_KEY),
    attack("a function put", Body("comet.put({f = function() end})"),
        Error("the value to put.f holds a function, which cannot be kept")),
    // State that grows for ever.
    attack("a log without end", Again(2000, "self.log = (self.log or '') .. ('x'):rep(100)"), STATE),
    attack("a list without end", Again(500, "self.n = self.n or {} for i = 1, 100 do self.n[#self.n + 1] = 'item ' .. i end"), STATE),
    attack("a global without end", Again(2000, "log = (log or '') .. ('x'):rep(100)"), STATE),
    attack("memory hidden from the state", Source(
        "local hidden, calls = {}, 0
         function attack() for i = 1, 20 do hidden[#hidden + 1] = ('x'):rep(10000) .. #hidden end return 'forgotten' end",
    ), Harmless("forgotten")),
    attack("a large object from the start", Source("aso.x = ('x'):rep(150000) function attack() end"), STATE),
    attack("a source too large", Made(|| format!("--{}", "x".repeat(100_000))), STATE),
    // Values that break what is kept and sent.
    attack("a result that contains itself", Body("local t = {} t[1] = t return t"), Unkeepable("the result[1]", Unkeepable::Cycle)),
    attack("a state that contains itself", Body("self.a = {b = self}"), Unkeepable("self.a.b", Unkeepable::Cycle)),
    attack("a function as result", Body("return {1, {f = function() end}}"), Unkeepable("the result[2].f", Unkeepable::Function)),
    attack("a function as state", Body("self.later = function() end"), Unkeepable("self.later", Unkeepable::Function)),
    attack("a key that is no number", Body("self[0 / 0] = 1"), Error("aso:1: table index is NaN")),
    attack("a key that is a table", Body("self.a = {[{}] = 1}"), Unkeepable("self.a", Unkeepable::TableKey)),
    attack("a key that is a function", Body("return {[next] = 1}"), Unkeepable("the result", Unkeepable::TableKey)),
    attack("tables too deep", Body("local t = {} for i = 1, 100 do t = {t} end self.t = t"), Unkeepable(
        "self.t[1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1]",
        Unkeepable::TooDeep { levels_max: LEVELS_MAX },
    )),
    attack("a result that unfolds to any size", Body("local t = {'x'} for i = 1, 25 do t = {t, t} end return t"),
        Unkeepable("the result", Unkeepable::TooLarge { bytes_max: 100_000 })),
    attack("a state that unfolds to any size", Body("local t = {'x'} for i = 1, 25 do t = {t, t} end self.t = t"), STATE),
    attack("a result too large", Body("return ('x'):rep(200000)"), Unkeepable("the result", Unkeepable::TooLarge { bytes_max: 100_000 })),
    attack("numbers at the edge", Body(
        "self.n = {2^53, -2^53, 2^63, -2^63, 1e308 * 10, -1e308 * 10, 0 / 0, -0.0, 5e-324} return 'kept'",
    ), Harmless("kept")),
    attack("bytes that are no text", Body("self['\\0\\255'] = '\\255\\0' return 'kept'"), Harmless("kept")),
    // Convergent values.
    attack("the inside of a counter by rawget", Body("return rawget(comet.counter(), 1)"),
        Error("aso:1: invalid argument #1 to 'rawget' (table expected, got counter)")),
    attack("the inside of a counter by rawset", Body("rawset(comet.counter(), 'totals', 1)"),
        Error("aso:1: invalid argument #1 to 'rawset' (table expected, got counter)")),
    attack("the inside of a set by next", Body("return next(comet.set())"),
        Error("aso:1: invalid argument #1 to 'next' (table expected, got set)")),
    attack("the inside of a map by pairs", Body("for k, v in pairs(comet.map()) do return k end"),
        Error("aso:1: invalid argument #1 to 'pairs' (table expected, got map)")),
    attack("a set as an iterator", Body("for k, v in comet.set() do return k end"),
        Error("aso:1: attempt to iterate over a set value")),
    attack("a metatable for a counter", Body("setmetatable(comet.counter(), {})"),
        Error("aso:1: invalid argument #1 to 'setmetatable' (table expected, got counter)")),
    attack("a field of a counter", Body("comet.counter().value = 7"),
        Error("aso:1: attempt to index counter with 'value'")),
    attack("a method replaced", Body("comet.set().has = function() return true end"),
        Error("aso:1: attempt to index set with 'has'")),
    attack("metamethods of a counter", Body(
        "local c, gone = comet.counter(), 0
         for _, name in {'__gc', '__index', '__newindex', '__metatable', '__tostring', '__namecall'} do
           if c[name] == nil then gone = gone + 1 end
         end
         return tostring(gone)",
    ), Harmless("6")),
    attack("a clone of a set's insides", Body("return table.clone(comet.set())"),
        Error("aso:1: invalid argument #1 to 'clone' (table expected, got set)")),
    attack("a frozen set", Body("return table.freeze(comet.set())"),
        Error("aso:1: invalid argument #1 to 'freeze' (table expected, got set)")),
    attack("a method of another kind", Body("self.hits = comet.counter() self.hits.add(comet.set(), 1)"),
        Error("add is a method of a counter: call it with a colon, as in self.x:add()")),
    attack("a method of nothing", Body("comet.register().set()"),
        Error("set is a method of a register: call it with a colon, as in self.x:set()")),
    attack("a counter that overflows", Body("local c = comet.counter() c:add(2^53) c:add(1)"),
        Error("the counter would leave the range from -2^53 to 2^53")),
    attack("a counter that counts its arms full", Again(100,
        "self.c = self.c or comet.counter() for i = 1, 200 do self.c:add(2^53) self.c:add(-2^53) end"),
        Error("the counter would leave the range from -2^53 to 2^53")),
    attack("NaN in a counter", Body("comet.counter():add(0 / 0)"),
        Error("a counter adds whole numbers from -2^53 to 2^53")),
    attack("NaN in a set", Body("comet.set():add(0 / 0)"),
        Error("an element of a set is a string, a number or a boolean, and not NaN")),
    attack("a set in itself", Body("local s = comet.set() s:add(s)"),
        Error("an element of a set is a string, a number or a boolean, and not NaN")),
    attack("a map in itself", Body("local m = comet.map() m:set('m', {m})"),
        Error("the value[1] holds a value of the host, which cannot be kept")),
    attack("a value that contains itself in a register", Body("local t = {} t[1] = t comet.register():set(t)"),
        Error("the value[1] holds a table that contains itself")),
    attack("a value too deep in a map", Body("local t = {} for i = 1, 40 do t = {t} end comet.map():set('k', t)"), Error(
        "the value[1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1][1] \
         holds tables nested deeper than 32 levels",
    )),
    attack("a set as a key", Body("self.t = {[comet.set()] = 1}"), Unkeepable("self.t", Unkeepable::TableKey)),
    attack("a method as state", Body("self.f = comet.set().add"), Unkeepable("self.f", Unkeepable::Function)),
    attack("an error that is a counter", Body("error(comet.counter())"), Error("counter")),
    attack("counters without end", Body("local t = {} while true do t[#t + 1] = comet.counter() end"), CPU),
    attack("a set without end", Body("local s, i = comet.set(), 0 while true do i = i + 1 s:add(i) end"), CPU),
    attack("a set without end over many calls", Again(500, "self.s = self.s or comet.set() for i = 1, 100 do
         self.s:add('item ' .. self.s:size()) end"),
        STATE),
    attack("a set of long strings", Body("local s = comet.set() for i = 1, 100 do s:add(('x'):rep(5000) .. i) end"),
        STATE),
    attack("maps of long strings", Body("local t = {} for i = 1, 100 do t[i] = comet.map()
         t[i]:set(1, ('x'):rep(20000)) end"),
        CPU),
    attack("one long set in many places", Body("local s = comet.set() s:add(('x'):rep(50000)) self.a = s
         self.b = s self.c = {s, s}"),
        STATE),
    attack("one set answered many times", Body(
        "local s, t = comet.set(), {} s:add(('x'):rep(50000)) for i = 1, 9 do t[i] = s end return t",
    ),
        Unkeepable("the result", Unkeepable::TooLarge { bytes_max: 100_000 })),
    attack("values without end", Body("local s = comet.set() for i = 1, 1000 do s:add(i) end while true do
         s:values() end"),
        HEAP),
    attack("entries of long values", Body("local m = comet.map() m:set(1, ('x'):rep(90000)) while true do
         m:entries() end"),
        CPU),
    attack("questions with long strings", Body("local s, x = comet.set(), ('x'):rep(90000) while true do s:has(x) end"),
        CPU),
    attack("adding and removing without end", Body("local s = comet.set() while true do s:add(1) s:remove(1) end"),
        CPU),
];
