//! Every way of writing an object, what is kept of it, and what it asks of its node.

mod support;

use oort_core::types::NodeId;
use oort_script::{
    Answer, Caller, CallerPlace, Fuel, HostRequest, Invocation, LimitError, Limits, PutData, ScriptError,
    Step, Unkeepable, Value, COMET_LIMITS,
};
use support::*;

/// Source: the slides, "ASO Example".
const COUNTER: &str = "aso.value = \"Hello world!\"
aso.getCount = 0

function onGet()
self.getCount = self.getCount + 1
return {self.value, self.getCount}
end";

#[test]
fn the_counter_of_the_slides_counts() {
    let mut vm = vm();
    let mut object = load(&mut vm, COUNTER);
    for count in 1..=3 {
        let wanted = array(&["Hello world!".into(), count.into()]);
        assert_eq!(run(&mut vm, &mut object, "onGet", &[]), wanted);
    }
    let state = vm.encode(&mut object).unwrap();
    let mut again = vm.load("key".into(), COUNTER.as_bytes(), Some(&state), COMET_LIMITS, FACTS).unwrap();
    assert_eq!(vm.encode(&mut again).unwrap(), state);
    assert_eq!(run(&mut vm, &mut again, "onGet", &[]), array(&["Hello world!".into(), 4.into()]));
}

#[test]
fn every_way_of_writing_finds_its_object() {
    let sources = [
        "aso.n = 1 function onGet() self.n = self.n + 1 return self.n end",
        "aso.n = 1 function onGet() aso.n = aso.n + 1 return object.n end",
        "aso.n = 1 function aso:onGet() self.n = self.n + 1 return self.n end",
        "object.n = 1 function object:onGet() self.n = self.n + 1 return self.n end",
        "aso = { n = 1, onGet = function(self) self.n = self.n + 1 return self.n end }",
        "object = { n = 1 } function object.onGet(self) self.n = self.n + 1 return self.n end",
        "aso = {} aso.n = 1 aso.onGet = function() aso.n = aso.n + 1 return self.n end",
        "local t = { n = 1 } function t:onGet() self.n = self.n + 1 return self.n end return t",
        "return { n = 1, onGet = function(self) self.n = self.n + 1 return self.n end }",
        "return { n = 1, onGet = function() self.n = self.n + 1 return self.n end }",
        "self.n = 1 local function get(self) self.n = self.n + 1 return self.n end aso.onGet = get",
        "n = 1 function onGet() n = n + 1 return n end",
    ];
    let mut vm = vm();
    for source in sources {
        let mut object = load(&mut vm, source);
        assert!(object.has("onGet"), "{source}");
        assert_eq!(run(&mut vm, &mut object, "onGet", &[]), Value::Integer(2), "{source}");
        let state = vm.encode(&mut object).unwrap();
        let mut again = vm.load("key".into(), source.as_bytes(), Some(&state), COMET_LIMITS, FACTS).unwrap();
        assert_eq!(run(&mut vm, &mut again, "onGet", &[]), Value::Integer(3), "{source}");
    }
}

/// Source: the slides, "Application-Specific DHT". The elided body keeps every second neighbour.
#[test]
fn replicas_are_selected_as_in_the_slides() {
    let source = "function aso:selectReplicas(neighbors)
  local chosen = {}
  for at = 1, #neighbors, 2 do chosen[#chosen + 1] = neighbors[at] end
  return chosen
end
function aso:onTimer()
  neighbors = comet.lookup()
  replicas = self.selectReplicas(neighbors)
  comet.put(self, replicas)
end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let first = step(&mut vm, &mut object, "onTimer", &[]);
    let nodes = array(&["n1".into(), "n2".into(), "n3".into()]);
    let (request, second) = answer(&mut vm, &mut object, first, Ok(nodes));
    assert_eq!(request, HostRequest::Lookup);
    let (request, last) = answer(&mut vm, &mut object, second, Ok(Value::Nil));
    let wanted = HostRequest::Put { data: PutData::Object, nodes: vec![b"n1".to_vec(), b"n3".to_vec()] };
    assert_eq!(request, wanted);
    assert_eq!(done(last).answer, Answer::Value(Value::Nil));
    let nodes = array(&["a".into()]);
    assert_eq!(run(&mut vm, &mut object, "selectReplicas", std::slice::from_ref(&nodes)), nodes);
    // The globals are the object's own: another object has none.
    assert_eq!(eval(&mut vm, "neighbors == nil and replicas == nil"), Value::Bool(true));
}

/// Source: the slides, "Self-Monitoring DHT".
#[test]
fn neighbours_are_monitored_as_in_the_slides() {
    let source = "aso.neighbors = {}
function aso:onTimer()
  neighbors = comet.lookup()
  self.neighbors[comet.systemTime()] = neighbors
end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let first = step(&mut vm, &mut object, "onTimer", &[]);
    let (_, last) = answer(&mut vm, &mut object, first, Ok(array(&["n1".into()])));
    done(last);
    let wanted = Value::Map(vec![(Value::Integer(1_700_000_000_000), array(&["n1".into()]))]);
    assert_eq!(object.field("neighbors"), Ok(wanted));
}

/// Source: Comet §3.1, asynchronous calls with callbacks under `dht`.
#[test]
fn callbacks_run_when_the_handler_has_returned() {
    let source = "aso.log = {}
function aso:handleLookup(nodes) self.log[#self.log + 1] = 'looked up ' .. #nodes end
function aso:onGet(caller)
  dht.lookup(dht.key(), self.handleLookup)
  dht.get(dht.getKey(), {'n2'}, function(value, problem) aso.log[#aso.log + 1] = problem end)
  self.log[1] = 'returned'
  return 'early'
end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let first = step(&mut vm, &mut object, "onGet", &[]);
    let (request, second) = answer(&mut vm, &mut object, first, Ok(array(&["a".into(), "b".into()])));
    assert_eq!(request, HostRequest::Lookup);
    let (request, last) = answer(&mut vm, &mut object, second, Err("unreachable".into()));
    assert_eq!(request, HostRequest::Get { nodes: vec![b"n2".to_vec()] });
    assert_eq!(done(last).answer, Answer::Value("early".into()));
    let log = array(&["returned".into(), "looked up 2".into(), "unreachable".into()]);
    assert_eq!(object.field("log"), Ok(log));
    assert_eq!(object.messages_left(), 18);
}

#[test]
fn every_form_of_a_host_call_is_understood() {
    let put = |data: Value, nodes: &[&str]| HostRequest::Put {
        data: PutData::Value(data),
        nodes: nodes.iter().map(|node| node.as_bytes().to_vec()).collect(),
    };
    let get = |nodes: &[&str]| HostRequest::Get {
        nodes: nodes.iter().map(|node| node.as_bytes().to_vec()).collect(),
    };
    let own = || HostRequest::Put { data: PutData::Object, nodes: vec![] };
    let cases = [
        ("comet.lookup()", HostRequest::Lookup),
        ("dht.lookup('key')", HostRequest::Lookup),
        ("dht.lookup('key', function() end)", HostRequest::Lookup),
        ("dht.lookup(function() end)", HostRequest::Lookup),
        ("comet.get()", get(&[])),
        ("comet.get('key')", get(&[])),
        ("comet.get('key', {'a', 'b'})", get(&["a", "b"])),
        ("comet.get({'a', 'b'})", get(&["a", "b"])),
        ("comet.get({{id = 'a', ip = '1.2.3.4'}}, function() end)", get(&["a"])),
        ("comet.get('key', {id = 'a'}, function() end)", get(&["a"])),
        ("comet.put(self)", own()),
        ("comet.put('key', self)", own()),
        ("comet.put('key', self, nil, function() end)", own()),
        ("comet.put('value')", put("value".into(), &[])),
        ("comet.put('value', {'a'})", put("value".into(), &["a"])),
        ("comet.put('key', 'value', {'a'})", put("value".into(), &["a"])),
        ("comet.put(comet.getASOKey(), {x = 1}, 'a')", put(Value::Map(vec![("x".into(), 1.into())]), &["a"])),
        ("comet.put('key', 7)", put(7.into(), &[])),
        ("comet.put('key', 'a')", put("a".into(), &[])),
        ("comet.put('value', {id = 'a'})", put("value".into(), &["a"])),
        ("comet.put('value', nil)", put("value".into(), &[])),
        ("comet.put(7, 'a')", put(7.into(), &["a"])),
    ];
    let mut vm = vm();
    for (call, wanted) in cases {
        let mut object = load(&mut vm, &format!("function f() return {call} end"));
        let first = step(&mut vm, &mut object, "f", &[]);
        let (request, last) = answer(&mut vm, &mut object, first, Ok(5.into()));
        assert_eq!(request, wanted, "{call}");
        let is_callback = call.contains("function");
        let returned = if is_callback { Value::Nil } else { 5.into() };
        assert_eq!(done(last).answer, Answer::Value(returned), "{call}");
    }
}

#[test]
fn facts_of_the_node_have_all_their_names() {
    let mut vm = vm();
    for name in ["systemTime", "getSystemTime", "sysTime"] {
        assert_eq!(eval(&mut vm, &format!("comet.{name}()")), Value::Integer(1_700_000_000_000));
    }
    for name in ["getASOKey", "getKey", "key"] {
        assert_eq!(eval(&mut vm, &format!("dht.{name}()")), Value::from("key"));
    }
    assert_eq!(
        eval(&mut vm, "{comet.getNodeIP(), comet.getNodeID()}"),
        array(&["10.0.0.1".into(), "n1".into()])
    );
    let mut object = load(&mut vm, "function onGet() comet.deleteSelf() return 'last' end");
    let outcome = done(step(&mut vm, &mut object, "onGet", &[]));
    assert!(outcome.is_deleted);
    assert_eq!(outcome.answer, Answer::Value("last".into()));
}

#[test]
fn callers_are_handed_over_and_answered_once() {
    let source = "function aso:onGet(caller, extra)
  self.seen = caller.ip .. ':' .. caller.port .. ' ' .. extra
  comet.put(caller.key, 'reply', {caller.node})
  return comet.put(caller.key, 'again', {caller.node})
end
function onUpdate(new, caller) return self end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let (node, reply_key) = (Some(NodeId(9)), Some("theirs".into()));
    let caller = Caller { ip: Some("1.2.3.4".into()), port: Some(5), node, reply_key, ..Caller::default() };
    let arguments = ["x".into()];
    let call = Invocation {
        function: "onGet",
        caller: CallerPlace::First(&caller),
        arguments: &arguments,
        facts: FACTS,
    };
    let first = vm.call(&mut object, &call);
    let (request, last) = answer(&mut vm, &mut object, first, Ok(Value::Nil));
    let wanted = HostRequest::Reply {
        key: b"theirs".to_vec(),
        node: NodeId(9).to_string().into_bytes(),
        value: "reply".into(),
    };
    assert_eq!(request, wanted);
    assert_eq!(failed(last).to_string(), "an object reaches only its own key");
    assert_eq!(object.field("seen"), Ok("1.2.3.4:5 x".into()));
    let call = Invocation {
        function: "onUpdate",
        caller: CallerPlace::Last(&caller),
        arguments: &arguments,
        facts: FACTS,
    };
    assert_eq!(done(vm.call(&mut object, &call)).answer, Answer::Object);
}

#[test]
fn values_come_and_go_unchanged() {
    let values = [
        Value::Nil,
        Value::Bool(false),
        Value::Integer(-5),
        Value::Number(0.25),
        Value::Bytes((0..=255).collect()),
        array(&[1.into(), array(&[]), "x".into()]),
        Value::Map(vec![("a".into(), Value::Map(vec![("b".into(), 1.into())])), (7.into(), "y".into())]),
    ];
    let mut vm = vm();
    let mut object = load(&mut vm, "function f(x) self.kept = x return x end");
    for value in values {
        let back = run(&mut vm, &mut object, "f", std::slice::from_ref(&value));
        // Maps come in the order of their keys.
        let sorted = oort_script::encode(&back);
        assert_eq!(oort_script::decode(&sorted).unwrap(), back);
        assert_eq!(run(&mut vm, &mut object, "f", std::slice::from_ref(&back)), back);
        if !matches!(value, Value::Map(_)) {
            assert_eq!(back, value);
        }
        let state = vm.encode(&mut object).unwrap();
        let source = object.source().to_vec();
        let again = vm.load("key".into(), &source, Some(&state), COMET_LIMITS, FACTS).unwrap();
        assert_eq!(again.field("kept").unwrap(), back);
    }
}

#[test]
fn state_is_data_and_code_is_the_source_s() {
    let source = "LIMIT = 10 seen = 0
Point = {} Point.__index = Point
function Point.new(x) return setmetatable({x = x}, Point) end
aso.helpers = { double = function(x) return 2 * x end }
aso.removed = 1
function onGet() seen = seen + 1 self.removed = nil self.p = Point.new(3).x return LIMIT end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    run(&mut vm, &mut object, "onGet", &[]);
    let state = vm.encode(&mut object).unwrap();
    let wanted =
        array(&[Value::Map(vec![("p".into(), 3.into())]), Value::Map(vec![("seen".into(), 1.into())])]);
    assert_eq!(oort_script::decode(&state).unwrap(), wanted);
    // New code with the state kept: its constants are new, what the old code removed stays removed.
    let newer = source.replace("LIMIT = 10", "LIMIT = 20");
    let mut object = vm.load("key".into(), newer.as_bytes(), Some(&state), COMET_LIMITS, FACTS).unwrap();
    assert_eq!(object.field("removed"), Ok(Value::Nil));
    assert_eq!(run(&mut vm, &mut object, "onGet", &[]), Value::Integer(20));
}

#[test]
fn bytes_that_are_no_state_are_refused() {
    let mut vm = vm();
    for state in [&b""[..], b"\x02", b"\x01\x00", b"\x01\x06\x01\x07\x00"] {
        let loaded = vm.load("key".into(), COUNTER.as_bytes(), Some(state), COMET_LIMITS, FACTS);
        assert!(matches!(loaded.err(), Some(ScriptError::BadState { .. })), "{state:?}");
    }
}

#[test]
fn errors_carry_their_place_and_trace() {
    let mut vm = vm();
    let mut object = load(
        &mut vm,
        "local function deep(x)\n return x.y.z\nend\nfunction onGet() return deep({}) .. '' end",
    );
    let error = failed(step(&mut vm, &mut object, "onGet", &[]));
    assert_eq!(error.to_string(), "aso:2: attempt to index nil with 'z'");
    assert!(error.trace().contains("aso:4"), "{}", error.trace());
    let absent = failed(step(&mut vm, &mut object, "onTimer", &[]));
    assert_eq!(absent, ScriptError::NoFunction { name: "onTimer".into() });
    let Err(ScriptError::Syntax { message }) = try_load(&mut vm, "function onGet( end") else { panic!() };
    assert!(message.starts_with("line 1: Expected identifier"), "{message}");
}

#[test]
fn instructions_are_counted_exactly_in_the_exact_mode() {
    let mut vm = vm();
    let source = "function f(n) for i = 1, n do end end";
    let mut object = load(&mut vm, source);
    let mut used = |n: i64| done(step(&mut vm, &mut object, "f", &[n.into()])).instructions;
    let base = used(0);
    assert_eq!(used(1000) - base, 1000);
    assert_eq!(used(90_000) - base, 90_000);
}

#[test]
fn both_fuel_modes_stop_a_loop() {
    let mut vm = vm();
    for fuel in [Fuel::Exact, Fuel::Safepoints] {
        let limits = Limits { fuel, ..COMET_LIMITS };
        let source = b"function f() while true do end end";
        let mut object = vm.load("key".into(), source, None, limits, FACTS).unwrap();
        let error = failed(step(&mut vm, &mut object, "f", &[]));
        let ScriptError::Limit { limit, trace } = error else { panic!("{error}") };
        assert_eq!(limit, LimitError::Instructions { limit: 100_000 });
        assert!(trace.contains("aso:1"), "{trace}");
    }
}

#[test]
fn a_suspended_handler_lets_others_run_and_keeps_its_budget() {
    let source = "function f() for i = 1, 60000 do end comet.get() for i = 1, 60000 do end end
        function g() local ok, value = pcall(comet.get) return {ok, value} end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    let waiting = step(&mut vm, &mut object, "f", &[]);
    let mut other = load(&mut vm, COUNTER);
    run(&mut vm, &mut other, "onGet", &[]);
    let (_, last) = answer(&mut vm, &mut object, waiting, Ok(Value::Nil));
    let limit = LimitError::Instructions { limit: 100_000 };
    assert!(matches!(failed(last), ScriptError::Limit { limit: l, .. } if l == limit));
    let waiting = step(&mut vm, &mut object, "g", &[]);
    let (_, last) = answer(&mut vm, &mut object, waiting, Ok("v".into()));
    assert_eq!(done(last).answer, Answer::Value(array(&[Value::Bool(true), "v".into()])));
    // It cannot go on in another object.
    let Step::Suspended(waiting) = step(&mut vm, &mut object, "g", &[]) else { panic!() };
    let misled = failed(vm.resume(&mut other, waiting, FACTS, Ok(Value::Nil)));
    assert!(matches!(misled, ScriptError::Machine { .. }), "{misled}");
    // A handler that is dropped while it waits leaves nothing behind.
    drop(step(&mut vm, &mut object, "g", &[]));
    run(&mut vm, &mut other, "onGet", &[]);
}

#[test]
fn random_numbers_follow_the_seed() {
    let mut vm = vm();
    let source = "function f() return {math.random(), math.random(6), math.random(3, 4)} end";
    let mut object = load(&mut vm, source);
    let first = run(&mut vm, &mut object, "f", &[]);
    assert_eq!(run(&mut vm, &mut object, "f", &[]), first);
    let facts = oort_script::Facts { seed: 8, ..FACTS };
    let call = Invocation { function: "f", caller: CallerPlace::None, arguments: &[], facts };
    let Step::Done(outcome) = vm.call(&mut object, &call) else { panic!() };
    assert_ne!(outcome.answer, Answer::Value(first));
}

#[test]
fn what_cannot_be_kept_is_named() {
    let cases = [
        ("self.a = {b = {print or tostring}}", "self.a.b[1]", Unkeepable::Function),
        ("self.a = {} self.a.b = self.a", "self.a.b", Unkeepable::Cycle),
        ("self.a = self", "self.a", Unkeepable::Cycle),
        ("self.a = {[{}] = 1}", "self.a", Unkeepable::TableKey),
        ("G = {f = function() end}", "the global.G.f", Unkeepable::Function),
    ];
    let mut vm = vm();
    for (body, path, reason) in cases {
        let mut object = load(&mut vm, &format!("function f() {body} end"));
        let wanted = ScriptError::Unkeepable { path: path.into(), reason };
        assert_eq!(failed(step(&mut vm, &mut object, "f", &[])), wanted, "{body}");
        assert_eq!(vm.encode(&mut object), Err(wanted), "{body}");
    }
}

#[test]
fn memory_hidden_from_the_state_is_bounded() {
    let source = "local hidden = {}
        aso.n = 0
        function f() self.n = self.n + 1 hidden[#hidden + 1] = ('x'):rep(50000) .. self.n return self.n end";
    let mut vm = vm();
    let mut object = load(&mut vm, source);
    vm.collect().unwrap();
    let before = vm.used_bytes();
    for n in 1..=1000 {
        assert_eq!(run(&mut vm, &mut object, "f", &[]), Value::Integer(n));
    }
    vm.collect().unwrap();
    let kept = vm.used_bytes().saturating_sub(before);
    assert!(kept < 1 << 20, "{kept} bytes");
}

#[test]
fn garbage_is_collected_between_calls() {
    let mut vm = vm();
    let mut object = load(&mut vm, "function f() return #('x'):rep(20000) end");
    for _ in 0..2000 {
        run(&mut vm, &mut object, "f", &[]);
    }
    assert!(vm.used_bytes() < 4 << 20, "{} bytes", vm.used_bytes());
}

#[test]
fn equal_calls_do_equal_things_in_any_machine() {
    let source = "function f()
        local t = {tostring({}), math.random(1000), comet.systemTime()}
        for name in pairs({a = 1, b = 2, c = 3, d = 4, e = 5}) do t[#t + 1] = name end
        self.t = t
        return t
    end";
    let both: Vec<_> = (0..2)
        .map(|noise| {
            let mut vm = vm();
            for _ in 0..noise * 100 {
                eval(&mut vm, "{math.random(), {}}");
            }
            let mut object = load(&mut vm, source);
            let outcome = done(step(&mut vm, &mut object, "f", &[]));
            (outcome, vm.encode(&mut object).unwrap())
        })
        .collect();
    assert_eq!(both[0], both[1]);
}
