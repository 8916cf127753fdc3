//! Convergent values: their methods, how they look from outside, and that replicas that exchanged their states agree.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use oort_core::active::{Place, Sandbox, Turn};
use oort_core::types::ObjectKey;
use oort_script::{
    decode, encode, Answer, CallerPlace, Facts, Invocation, Machine, ScriptError, Value, COMET_LIMITS,
};
use proptest::prelude::*;
use support::{array, eval, load, run, step, vm, FACTS};

fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(entries.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
}

#[test]
fn each_method_does_what_it_says() {
    let yes = || Value::Bool(true);
    let no = || Value::Bool(false);
    let cases = [
        ("local c = comet.counter() return {c:value(), c:add(), c:add(5), c:add(-9), c:value()}", {
            array(&[0.into(), 1.into(), 6.into(), (-3).into(), (-3).into()])
        }),
        ("local c = dht.counter() c:add(2^53) c:add(-2^53) c:add(-0) return c", 0.into()),
        (
            "local s = comet.set()
          return {s:add('x'), s:add('x'), s:has('x'), s:remove('x'), s:remove('x'), s:has('x')}",
            { array(&[yes(), no(), yes(), yes(), no(), no()]) },
        ),
        (
            "local s = comet.set() for _, x in {'b', 2, true, 0.5, 'a', false, -1, 10} do s:add(x) end
             return {s:size(), s:values(), s}",
            {
                let all = [
                    no(),
                    yes(),
                    (-1).into(),
                    Value::Number(0.5),
                    2.into(),
                    10.into(),
                    "a".into(),
                    "b".into(),
                ];
                array(&[8.into(), array(&all), array(&all)])
            },
        ),
        ("local s = comet.set() s:add(0) s:add(-0) s:add(3) s:add(3.0) s:add(2^60) return s", {
            array(&[0.into(), 3.into(), Value::Number(1152921504606846976.0)])
        }),
        ("local s = comet.set() s:add('x') s:remove('x') return s", array(&[])),
        (
            "local m = comet.map() m:set('a', {1}) m:set(2, 'y') m:set('a', {b = {}})
          return {m:get('a'), m:get(2), m:get('c')}",
            { array(&[map(&[("b", array(&[]))]), "y".into()]) },
        ),
        (
            "local m = comet.map() m:set('a', 1) m:set(2, 3)
          return {m:keys(), m:entries(), m, m:remove(2), m:remove(2), #m:keys()}",
            {
                let both = Value::Map(vec![(2.into(), 3.into()), ("a".into(), 1.into())]);
                array(&[array(&[2.into(), "a".into()]), both, map(&[("a", 1.into())]), yes(), no(), 1.into()])
            },
        ),
        ("local m = comet.map() m:set(1, 'x') return m", Value::Map(vec![(1.into(), "x".into())])),
        ("local m = comet.map() return m", Value::Map(vec![])),
        (
            "local t = {1} local m = comet.map() m:set('t', t) t[1] = 2 m:get('t')[1] = 3
          return m:get('t')",
            array(&[1.into()]),
        ),
        (
            "local r = comet.register() return {r:get() == nil, r:set(5) == nil, r:get()}",
            array(&[yes(), yes(), 5.into()]),
        ),
        ("local r = comet.register() r:set({x = 1}) r:set(nil) return r", Value::Nil),
        ("local r = comet.register() r:set('a') r:set('b') return r", "b".into()),
        ("return {type(comet.set()), typeof(comet.set()), tostring(comet.map()), `{comet.counter()}`}", {
            array(&["userdata".into(), "set".into(), "map".into(), "counter".into()])
        }),
    ];
    let mut vm = vm();
    for (body, wanted) in cases {
        let mut object = load(&mut vm, &format!("function f() {body} end"));
        assert_eq!(run(&mut vm, &mut object, "f", &[]), wanted, "{body}");
    }
}

#[test]
fn errors_change_nothing_and_say_what_is_wrong() {
    let range = "the counter would leave the range from -2^53 to 2^53";
    let whole = "a counter adds whole numbers from -2^53 to 2^53";
    let of_set = "an element of a set is a string, a number or a boolean, and not NaN";
    let of_map = "a key of a map is a string, a number or a boolean, and not NaN";
    let cases = [
        ("c:add(2^53) c:add(1)", range),
        ("c:add(-2^53) c:add(-1)", range),
        ("c:add(0.5)", whole),
        ("c:add(0 / 0)", whole),
        ("c:add(1e308 * 10)", whole),
        ("c:add('1')", whole),
        ("c:add({})", whole),
        ("c:add(true)", whole),
        ("s:add()", of_set),
        ("s:add({})", of_set),
        ("s:add(0 / 0)", of_set),
        ("s:add(s)", of_set),
        ("s:has(nil)", of_set),
        ("s:remove(next)", of_set),
        ("m:set(nil, 1)", of_map),
        ("m:set({}, 1)", of_map),
        ("m:get(0 / 0)", of_map),
        ("m:set('k', nil)", "a value of a map cannot be nil: remove takes a key out"),
        ("m:set('k', next)", "the value holds a function, which cannot be kept"),
        ("m:set('k', {c})", "the value[1] holds a value of the host, which cannot be kept"),
        ("r:set(c)", "the value holds a value of the host, which cannot be kept"),
        ("r:set({self.c})", "the value[1] holds a value of the host, which cannot be kept"),
        ("c.add(s, 1)", "add is a method of a counter: call it with a colon, as in self.x:add()"),
        ("s.add(c, 1)", "add is a method of a set: call it with a colon, as in self.x:add()"),
        ("s.add('x')", "add is a method of a set: call it with a colon, as in self.x:add()"),
        ("m.get({}, 'x')", "get is a method of a map: call it with a colon, as in self.x:get()"),
        ("r.get()", "get is a method of a register: call it with a colon, as in self.x:get()"),
    ];
    let mut vm = vm();
    for (body, wanted) in cases {
        let source = format!(
            "aso.c = comet.counter() aso.s = comet.set() aso.m = comet.map() aso.r = comet.register()
             function f() local c, s, m, r = self.c, self.s, self.m, self.r
               local ok, message = pcall(function() {body} end)
               return {{ok, message, s, m, r == nil}}
             end"
        );
        let mut object = load(&mut vm, &source);
        let error = map(&[]);
        let text = run(&mut vm, &mut object, "f", &[]);
        let Value::Array(parts) = &text else { panic!("{text:?}") };
        assert_eq!(parts[0], Value::Bool(false), "{body}");
        let Value::Bytes(message) = &parts[1] else { panic!("{body}: {text:?}") };
        let message = String::from_utf8_lossy(message);
        assert!(message.contains(wanted), "{body}: {message}");
        assert_eq!(parts[2..4], [array(&[]), error], "{body}");
    }
}

#[test]
fn they_are_kept_and_shown_as_plain_data() {
    let source = "aso.n = {hits = comet.counter()} aso.tags = comet.set() seen = comet.map()
        function f() self.n.hits:add(3) self.tags:add('x') seen:set('k', {1}) return seen end
        function g() return {self.n.hits:add(), self.tags:values(), seen:get('k')} end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    assert_eq!(run(&mut vm, &mut object, "f", &[]), map(&[("k", array(&[1.into()]))]));
    let fields = map(&[("n", map(&[("hits", 3.into())])), ("tags", array(&["x".into()]))]);
    assert_eq!(object.fields(), Ok(fields.clone()));
    assert_eq!(object.field("tags"), Ok(array(&["x".into()])));
    let state = vm.encode(&mut object).unwrap();
    assert_eq!(decode(&state), Ok(array(&[fields, map(&[("seen", map(&[("k", array(&[1.into()]))]))])])));
    let mut again = vm.load("key".into(), source.as_bytes(), Some(&state), COMET_LIMITS, FACTS).unwrap();
    assert_eq!(vm.encode(&mut again).unwrap(), state);
    let wanted = array(&[4.into(), array(&["x".into()]), array(&[1.into()])]);
    assert_eq!(run(&mut vm, &mut again, "g", &[]), wanted);
}

#[test]
fn no_value_from_outside_becomes_a_convergent_one() {
    // What a convergent value of a state is in memory: a map under nil.
    let forged = Value::Map(vec![(Value::Nil, Value::Bytes(b"c\x00".to_vec()))]);
    let mut vm = vm();
    let mut object = load(&mut vm, "function f(x) self.x = x return type(x) end");
    assert_eq!(run(&mut vm, &mut object, "f", std::slice::from_ref(&forged)), "table".into());
    assert_eq!(object.field("x"), Ok(array(&[])));
    vm.set_field(&mut object, "x", &forged).unwrap();
    assert_eq!(object.field("x"), Ok(array(&[])));
}

#[test]
fn forged_encodings_are_bad_states() {
    let source = "function onGet() return self.x end";
    let state = |convergent: &[u8]| {
        [b"\x01\x06\x02\x07\x01\x05\x01x\x08", &[convergent.len() as u8][..], convergent, b"\x07\x00"]
            .concat()
    };
    let actor = [7, 0, 0, 0, 0, 0, 0, 0];
    let counter = [9, 0, 0, 0, 0, 0, 0, 0];
    let context = [&[1][..], &actor, &counter].concat();
    let mut vm = vm();
    let mut outcome = |convergent: &[u8]| {
        let state = state(convergent);
        let loaded = vm.load("key".into(), source.as_bytes(), Some(&state), COMET_LIMITS, FACTS);
        assert_eq!(loaded.is_ok(), decode(&state).is_ok(), "{convergent:?}");
        let mut object = loaded?;
        assert_eq!(vm.encode(&mut object).as_ref(), Ok(&state), "{convergent:?}");
        object.field("x")
    };
    let good: [(Vec<u8>, Value); 6] = [
        (b"c\x00".to_vec(), 0.into()),
        ([b"c\x01", &actor[..], &[5, 2]].concat(), 3.into()),
        (b"s\x00\x00".to_vec(), array(&[])),
        ([b"s", &context[..], b"\x01\x03\x05\x01x\x01\x00\x00"].concat(), array(&["x".into()])),
        (
            [b"m", &context[..], b"\x01\x03\x05\x01x\x01\x00\x08\x01\x02"].concat(),
            map(&[("x", Value::Bool(true))]),
        ),
        ([b"r", &actor[..], &counter, b"\x01\x02"].concat(), Value::Bool(true)),
    ];
    for (bytes, wanted) in &good {
        assert_eq!(outcome(bytes).as_ref(), Ok(wanted), "{bytes:?}");
        for cut in 0..bytes.len() {
            // A register without a write is one, too.
            if bytes[..cut] != b"r"[..] {
                assert!(
                    matches!(outcome(&bytes[..cut]), Err(ScriptError::BadState { .. })),
                    "{cut} of {bytes:?}"
                );
            }
        }
        let longer = [&bytes[..], b"\x00"].concat();
        assert!(matches!(outcome(&longer), Err(ScriptError::BadState { .. })), "{longer:?}");
    }
    let bad: [Vec<u8>; 14] = [
        b"x\x00".to_vec(),
        // Actors out of order, numbers longer than they need.
        [b"c\x02", &actor[..], &[5, 2], &actor, &[5, 2]].concat(),
        [b"c\x01", &actor[..], &[0x85, 0, 2]].concat(),
        // Without an actor, beyond the context, the dot 0, without dots, a dot twice.
        b"s\x00\x01\x03\x05\x01x\x01\x00\x00".to_vec(),
        [b"s", &context[..], b"\x01\x03\x05\x01x\x01\x01\x00"].concat(),
        [b"s", &context[..], b"\x01\x03\x05\x01x\x01\x00\x09"].concat(),
        [b"s", &context[..], b"\x01\x03\x05\x01x\x00"].concat(),
        [b"s", &context[..], b"\x01\x03\x05\x01x\x02\x00\x00\x00\x00"].concat(),
        // Elements out of order, and such as no element is: nil, an array, NaN, a float that is whole.
        [b"s", &context[..], b"\x02\x03\x05\x01x\x01\x00\x00\x03\x05\x01x\x01\x00\x01"].concat(),
        [b"s", &context[..], b"\x01\x01\x00\x01\x00\x00"].concat(),
        [b"s", &context[..], b"\x01\x02\x06\x00\x01\x00\x00"].concat(),
        [b"s", &context[..], b"\x01\x09\x04\x00\x00\x00\x00\x00\x00\xf8\x7f\x01\x00\x00"].concat(),
        [b"s", &context[..], b"\x01\x09\x04\x00\x00\x00\x00\x00\x00\xf0\x3f\x01\x00\x00"].concat(),
        // A convergent value in one.
        [b"r", &actor[..], &counter, b"\x04\x08\x02c\x00"].concat(),
    ];
    for bytes in bad {
        let outcome = outcome(&bytes);
        assert!(matches!(outcome, Err(ScriptError::BadState { .. })), "{bytes:?}: {outcome:?}");
    }
}

#[test]
fn values_of_different_places_do_not_join() {
    let source = "aso.plain = 1 aso.list = {comet.counter(), 5} aso.kind = comet.counter()
        function add(name)
          self.list[1]:add(2) self.kind:add()
          if name then self[name] = comet.set() self[name]:add(name) end
        end
        function change() self.plain = 2 end
        function other() self.kind = comet.set() end
        function deep() self.t = {u = {comet.counter()}} self.t.u[1]:add(7) end
        function drop() self.kind = nil end";
    let mut a = Replica::new(1, source);
    let mut b = Replica::new(2, source);
    a.call("add", &["x".into()]);
    b.call("add", &["y".into()]);
    b.call("deep", &[]);
    assert!(a.join(&b.save()));
    let fields = map(&[
        ("kind", 2.into()),
        ("list", array(&[4.into(), 5.into()])),
        ("plain", 1.into()),
        ("t", map(&[("u", array(&[7.into()]))])),
        ("x", array(&["x".into()])),
        ("y", array(&["y".into()])),
    ]);
    assert_eq!(a.fields(), fields);
    assert!(b.join(&a.save()));
    assert_eq!(a.save(), b.save());
    // What does not converge stays, and is told.
    b.call("change", &[]);
    b.call("add", &[]);
    assert!(!a.join(&b.save()));
    assert_eq!(a.machine.field(&a.key, "plain"), 1.into());
    assert_eq!(a.machine.field(&a.key, "kind"), 3.into());
    // Of another kind.
    let mut c = Replica::new(3, source);
    c.call("other", &[]);
    assert!(!a.join(&c.save()));
    assert_eq!(a.machine.field(&a.key, "kind"), 3.into());
    // What one has dropped comes back from another.
    let mut d = Replica::new(4, source);
    d.call("drop", &[]);
    assert!(d.join(&a.save()));
    assert_eq!(d.machine.field(&d.key, "kind"), 3.into());
    assert!(d.machine.join(&d.key, &"no state".into()).is_err());
}

#[test]
fn later_writes_of_a_node_win_whatever_its_clock_does() {
    let source = "aso.r = comet.register() aso.m = comet.map() aso.s = comet.set()
        function set(v) self.r:set(v) self.m:set('k', v) end
        function renew() self.s = comet.set() self.s:add('new') end
        function old() self.s:add('old') end";
    let mut a = Replica::new(1, source);
    let mut b = Replica::new(2, source);
    a.now_ms = 2_000;
    a.call("set", &["first".into()]);
    assert!(b.join(&a.save()));
    a.now_ms = 1_000;
    a.call("set", &["second".into()]);
    b.now_ms = 1;
    assert!(b.join(&a.save()));
    assert_eq!(b.machine.field(&b.key, "r"), "second".into());
    // And so do those of a node that has seen them.
    b.call("set", &["third".into()]);
    assert!(a.join(&b.save()));
    assert_eq!(a.machine.field(&a.key, "r"), "third".into());
    assert_eq!(a.machine.field(&a.key, "m"), map(&[("k", "third".into())]));
    // A new set in the place of an old one takes no dots that others have seen already.
    a.call("old", &[]);
    a.call("old", &[]);
    assert!(b.join(&a.save()));
    a.call("renew", &[]);
    assert!(b.join(&a.save()));
    assert_eq!(b.machine.field(&b.key, "s"), array(&["new".into()]));
}

#[test]
fn a_huge_set_is_bounded_within_a_call_and_over_many() {
    let source = "aso.s = comet.set() n = 0
        function grow() for i = 1, 500 do n = n + 1 self.s:add(n) end end
        function garbage() for i = 1, 20 do local m = comet.map() m:set('k', ('x'):rep(9000)) end end
        function hoard()
          hoarded = {} for i = 1, 100 do hoarded[i] = comet.map() hoarded[i]:set('k', ('x'):rep(9000)) end
        end
        function unshared() self.s:add(('x'):rep(90000)) self.t = {} for i = 1, 1000 do self.t[i] = self.s end end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let before = vm.used_bytes();
    let mut calls = 0;
    let error = loop {
        match step(&mut vm, &mut object, "grow", &[]) {
            oort_script::Step::Done(_) => calls += 1,
            oort_script::Step::Failed(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.to_string(), "the object's code and state take more than 100000 bytes");
    assert!((5..40).contains(&calls), "{calls} calls");
    assert!(vm.used_bytes() - before < 4 << 20, "{} bytes", vm.used_bytes() - before);
    drop(object);
    // What is dropped is collected, though Lua sees little of it.
    let mut object = load(&mut vm, source);
    for _ in 0..400 {
        run(&mut vm, &mut object, "garbage", &[]);
        let kept = vm.used_bytes().saturating_sub(before);
        assert!(kept < 10 << 20, "{kept} bytes");
    }
    let error = support::failed(step(&mut vm, &mut object, "hoard", &[]));
    assert!(matches!(error, ScriptError::Limit { .. }), "{error}");
    drop(object);
    let mut object = load(&mut vm, source);
    let error = support::failed(step(&mut vm, &mut object, "unshared", &[]));
    assert!(matches!(error, ScriptError::Limit { .. }), "{error}");
    drop(object);
    vm.collect().unwrap();
    let kept = vm.used_bytes().saturating_sub(before);
    assert!(kept < 1 << 20, "{kept} bytes stay behind");
}

#[test]
fn operations_cost_in_proportion_to_their_work() {
    let source = "aso.s = comet.set() aso.m = comet.map()
        function fill(n) for i = 1, n do self.s:add(i) end end
        function values() return #self.s:values() end
        function long(n) self.m:set('k', ('x'):rep(n)) end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let mut used =
        |function, n: i64| support::done(step(&mut vm, &mut object, function, &[n.into()])).instructions;
    let few = used("values", 0);
    used("fill", 1000);
    assert!(used("values", 0) >= few + 4000);
    let short = used("long", 0);
    assert!(used("long", 8000) >= short + 1000);
    assert_eq!(eval(&mut vm, "pcall(next)"), Value::Bool(false));
}

/// A replica of one object at a node of its own.
struct Replica {
    machine: Machine,
    key: ObjectKey,
    actor: u64,
    now_ms: u64,
}

impl Replica {
    fn new(actor: u64, source: &str) -> Replica {
        let mut machine = Machine::new(|| 0).unwrap();
        let key = ObjectKey::new(b"bucket", b"key").unwrap();
        let facts = Facts { now_ms: 0, seed: 0, actor };
        machine.load(&key, &source.to_string().into(), None, &COMET_LIMITS, facts).unwrap();
        Replica { machine, key, actor, now_ms: 1_000 }
    }

    fn call(&mut self, function: &str, arguments: &[Value]) -> Value {
        let facts = Facts { now_ms: self.now_ms, seed: 0, actor: self.actor };
        let invocation = Invocation { function, caller: CallerPlace::None, arguments, facts };
        match self.machine.call(&self.key, Place::default(), &invocation) {
            Turn::Done(done) => match done.answer {
                Answer::Value(value) => value,
                Answer::Object => Value::Nil,
            },
            other => panic!("{other:?}"),
        }
    }

    fn save(&mut self) -> Bytes {
        self.machine.save(&self.key).unwrap()
    }

    fn join(&mut self, state: &Bytes) -> bool {
        self.machine.join(&self.key, state).unwrap()
    }

    fn fields(&mut self) -> Value {
        self.machine.fields(&self.key).unwrap()
    }

    /// The state, loaded anew from its bytes.
    fn reload(&mut self, source: &str) {
        let state = self.save();
        let facts = Facts { now_ms: self.now_ms, seed: 0, actor: self.actor };
        self.machine.load(&self.key, &source.to_string().into(), Some(&state), &COMET_LIMITS, facts).unwrap();
        assert_eq!(self.save(), state);
    }
}

const ALL: &str =
    "aso.c = comet.counter() aso.t = {s = comet.set()} aso.m = comet.map() aso.r = comet.register()
    function count(n) self.c:add(n) end
    function add(x) self.t.s:add(x) end
    function remove(x) self.t.s:remove(x) end
    function set(k, v) self.m:set(k, v) end
    function unset(k) self.m:remove(k) end
    function write(v) self.r:set(v) end
    function add_late(x) self.late = self.late or comet.set() self.late:add(x) end
    function onMerge(a) return a end";

#[derive(Clone, Debug)]
enum Act {
    Count(i64),
    Add(i64),
    Remove(i64),
    Set(i64, i64),
    Unset(i64),
    Write(i64),
    Late(i64),
    /// Takes in the state of another replica.
    Join(usize),
    Reload,
    /// The clock goes by so much, also back.
    Tick(i64),
}

fn act() -> impl Strategy<Value = (usize, Act)> {
    let element = || 0..4i64;
    let act = prop_oneof![
        2 => (-9..10i64).prop_map(Act::Count),
        4 => element().prop_map(Act::Add),
        3 => element().prop_map(Act::Remove),
        3 => (element(), any::<i8>()).prop_map(|(k, v)| Act::Set(k, v.into())),
        2 => element().prop_map(Act::Unset),
        2 => any::<i8>().prop_map(|v| Act::Write(v.into())),
        1 => element().prop_map(Act::Late),
        5 => (0..3usize).prop_map(Act::Join),
        1 => Just(Act::Reload),
        1 => (-5..6i64).prop_map(Act::Tick),
    ];
    (0..3usize, act)
}

/// What a replica has seen, by brute force: every addition ever made, and every one that was removed.
#[derive(Clone, Default)]
struct Seen {
    counted: BTreeMap<usize, i64>,
    added: BTreeSet<(i64, usize)>,
    removed: BTreeSet<(i64, usize)>,
    keys_set: BTreeSet<(i64, usize)>,
    keys_removed: BTreeSet<(i64, usize)>,
    late: BTreeSet<i64>,
}

impl Seen {
    fn join(&mut self, other: &Seen) {
        self.counted.extend(&other.counted);
        self.added.extend(&other.added);
        self.removed.extend(&other.removed);
        self.keys_set.extend(&other.keys_set);
        self.keys_removed.extend(&other.keys_removed);
        self.late.extend(&other.late);
    }

    fn elements(added: &BTreeSet<(i64, usize)>, removed: &BTreeSet<(i64, usize)>) -> Vec<Value> {
        let left: BTreeSet<i64> = added.difference(removed).map(|(x, _)| *x).collect();
        left.into_iter().map(Value::Integer).collect()
    }
}

fn of(x: i64, all: &BTreeSet<(i64, usize)>) -> impl Iterator<Item = (i64, usize)> + use<> {
    all.iter().filter(|(y, _)| *y == x).copied().collect::<Vec<_>>().into_iter()
}

fn keys(value: &Value) -> Vec<Value> {
    match value {
        Value::Map(entries) => entries.iter().map(|(key, _)| key.clone()).collect(),
        other => panic!("{other:?}"),
    }
}

fn do_act(replicas: &mut [Replica], seen: &mut [Seen], at: usize, id: usize, act: &Act) {
    match *act {
        Act::Count(n) => {
            replicas[at].call("count", &[n.into()]);
            seen[at].counted.insert(id, n);
        }
        Act::Add(x) => {
            replicas[at].call("add", &[x.into()]);
            seen[at].added.insert((x, id));
        }
        Act::Remove(x) => {
            replicas[at].call("remove", &[x.into()]);
            let removed = of(x, &seen[at].added);
            seen[at].removed.extend(removed);
        }
        Act::Set(k, v) => {
            replicas[at].call("set", &[k.into(), v.into()]);
            seen[at].keys_set.insert((k, id));
        }
        Act::Unset(k) => {
            replicas[at].call("unset", &[k.into()]);
            let removed = of(k, &seen[at].keys_set);
            seen[at].keys_removed.extend(removed);
        }
        Act::Write(v) => {
            replicas[at].call("write", &[v.into()]);
        }
        Act::Late(x) => {
            replicas[at].call("add_late", &[x.into()]);
            seen[at].late.insert(x);
        }
        Act::Join(from) => {
            let state = replicas[from].save();
            assert!(replicas[at].join(&state), "nothing but convergent values differs");
            let theirs = seen[from].clone();
            seen[at].join(&theirs);
        }
        Act::Reload => replicas[at].reload(ALL),
        Act::Tick(ms) => replicas[at].now_ms = replicas[at].now_ms.saturating_add_signed(ms),
    }
    let (fields, seen) = (replicas[at].fields(), &seen[at]);
    assert_eq!(fields.get("c"), Some(&seen.counted.values().sum::<i64>().into()));
    let elements = fields.get("t").and_then(|t| t.get("s"));
    assert_eq!(elements, Some(&Value::Array(Seen::elements(&seen.added, &seen.removed))));
    assert_eq!(keys(fields.get("m").unwrap()), Seen::elements(&seen.keys_set, &seen.keys_removed));
    let late = (!seen.late.is_empty())
        .then(|| Value::Array(seen.late.iter().copied().map(Value::Integer).collect()));
    assert_eq!(fields.get("late"), late.as_ref());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each replica holds what it has seen, and in the end, joined in whatever order, all hold the same bytes.
    #[test]
    fn replicas_that_exchanged_everything_agree(acts in prop::collection::vec(act(), 0..60)) {
        let mut replicas: Vec<Replica> = (1..4).map(|actor| Replica::new(actor, ALL)).collect();
        let mut seen = vec![Seen::default(); 3];
        for (id, (at, act)) in acts.iter().enumerate() {
            do_act(&mut replicas, &mut seen, *at, id, act);
        }
        let states: Vec<Bytes> = replicas.iter_mut().map(Replica::save).collect();
        let joined = |order: &[usize]| {
            let mut replica = Replica::new(9, ALL);
            for at in order {
                assert!(replica.join(&states[*at]));
            }
            replica.save()
        };
        let wanted = joined(&[0, 1, 2]);
        // Commutative, idempotent.
        for order in [&[2, 1, 0][..], &[1, 0, 2], &[1, 2, 1, 0, 2, 0]] {
            prop_assert_eq!(&joined(order), &wanted);
        }
        // Associative: two are joined first, then the third is joined with both, either way.
        for (a, b, c) in [(0, 1, 2), (1, 2, 0), (2, 0, 1)] {
            let mut pair = Replica::new(9, ALL);
            pair.join(&states[a]);
            pair.join(&states[b]);
            let pair = pair.save();
            let mut third = Replica::new(9, ALL);
            third.join(&states[c]);
            third.join(&pair);
            prop_assert_eq!(&third.save(), &wanted);
        }
        for replica in &mut replicas {
            for state in &states {
                replica.join(state);
            }
            prop_assert_eq!(&replica.save(), &wanted);
        }
        prop_assert_eq!(decode(&wanted).map(|value| decode(&encode(&value)) == Ok(value)), Ok(true));
    }
}
