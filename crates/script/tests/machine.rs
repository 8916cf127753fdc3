//! The machine as the core drives it: objects by key, runs that wait, failures by kind.

use bytes::Bytes;
use oort_core::active::{Failure, FailureKind, Sandbox, Turn};
use oort_core::types::ObjectKey;
use oort_script::*;

const FACTS: Facts = Facts { now_ms: 1_700_000_000_000, seed: 7, actor: 1 };

fn machine() -> Machine {
    Machine::new(|| 0).unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(b"bucket", name.as_bytes()).unwrap()
}

fn load(machine: &mut Machine, name: &str, source: &'static str) -> ObjectKey {
    let key = key(name);
    machine.load(&key, &source.into(), None, &COMET_LIMITS, FACTS).unwrap();
    key
}

fn call(machine: &mut Machine, key: &ObjectKey, function: &str) -> Turn {
    let invocation = Invocation { function, caller: CallerPlace::None, arguments: &[], facts: FACTS };
    machine.call(key, Place::default(), &invocation)
}

fn value(turn: Turn) -> Value {
    match turn {
        Turn::Done(Done { answer: Answer::Value(value), .. }) => value,
        other => panic!("{other:?}"),
    }
}

fn failed(turn: Turn) -> Failure {
    match turn {
        Turn::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn new_code_keeps_fields_and_brings_its_own() {
    let mut machine = machine();
    let key = load(
        &mut machine,
        "a",
        "aso.n = 1 aso.gone = 1 aso.limit = 5 function onGet() self.n = 7 self.gone = nil end",
    );
    call(&mut machine, &key, "onGet");
    let source =
        "aso.n = 2 aso.limit = 3 aso.new = 4 local factor = 10 function onGet() return self.n * factor end";
    machine.reload(&key, &source.into(), &COMET_LIMITS, FACTS).unwrap();
    assert_eq!(value(call(&mut machine, &key, "onGet")), 70.into());
    for (name, expected) in [("n", 7.into()), ("limit", 5.into()), ("new", 4.into()), ("gone", Value::Nil)] {
        assert_eq!(machine.field(&key, name), expected, "{name}");
    }
    // Loaded from its state, it has what it had.
    let state = machine.save(&key).unwrap();
    machine.load(&key, &source.into(), Some(&state), &COMET_LIMITS, FACTS).unwrap();
    assert_eq!(machine.field(&key, "new"), 4.into());
    assert!(machine.reload(&key, &"function (".into(), &COMET_LIMITS, FACTS).is_err());
    assert_eq!(failed(call(&mut machine, &key, "onGet")).kind, FailureKind::Error);
}

#[test]
fn whatever_is_raised_comes_with_its_trace() {
    let mut machine = machine();
    let source = "aso.hits = comet.counter() function raise() error(self.hits) end
        function text() error('no') end function host() comet.counter(1, 2).x() end";
    let key = load(&mut machine, "a", source);
    for (function, message, line) in
        [("raise", "counter", 1), ("text", "aso:2: no", 2), ("host", "aso:2: ", 2)]
    {
        let failure = failed(call(&mut machine, &key, function));
        assert!(failure.message.starts_with(message), "{failure:?}");
        assert!(failure.trace.contains(&format!("aso:{line}")), "{failure:?}");
    }
}

#[test]
fn objects_are_told_apart_by_their_whole_key() {
    let mut machine = machine();
    let source = "aso.n = 0 function onGet() self.n = self.n + 1 return comet.key() .. self.n end";
    let a = load(&mut machine, "a", source);
    let b = load(&mut machine, "b", source);
    let other = ObjectKey::new(b"other", b"a").unwrap();
    machine.load(&other, &source.into(), None, &COMET_LIMITS, FACTS).unwrap();
    for n in 1..=2 {
        for (key, name) in [(&a, "a"), (&b, "b"), (&other, "a")] {
            assert_eq!(value(call(&mut machine, key, "onGet")), format!("{name}{n}").as_str().into());
        }
    }
    machine.unload(&other);
    assert_eq!(machine.field(&a, "n"), 2.into());
}

#[test]
fn a_run_that_waits_goes_on_with_its_own_object() {
    let mut machine = machine();
    let source = "function onGet() return comet.key() .. comet.get('' .. comet.key(), 'n') end";
    let a = load(&mut machine, "a", source);
    let b = load(&mut machine, "b", source);
    for key in [&a, &b] {
        let wanted = Turn::Waits(HostRequest::Get { nodes: vec![b"n".to_vec()] });
        assert_eq!(call(&mut machine, key, "onGet"), wanted);
    }
    assert_eq!(value(machine.resume(&b, Ok("2".into()), FACTS)), "b2".into());
    assert_eq!(value(machine.resume(&a, Ok("1".into()), FACTS)), "a1".into());
    // What is loaded anew or unloaded has no run.
    call(&mut machine, &a, "onGet");
    let a = load(&mut machine, "a", source);
    call(&mut machine, &a, "onGet");
    machine.unload(&a);
}

#[test]
fn after_any_failure_the_object_can_be_called_and_its_run_is_gone() {
    let source = "aso.n = 0
        function onGet() self.n = self.n + 1 return self.n end
        function raise() error('no') end
        function loop() while true do end end
        function grow() self.x = ('x'):rep(200000) end
        function unkeepable() return onGet end
        function wait() comet.lookup() error('no') end
        function wait_and_loop() comet.lookup() while true do end end
        function late() comet.lookup(function() error('no') end) comet.get(onGet) end
        function flood() while true do comet.lookup() end end";
    let cases = [
        ("raise", FailureKind::Error),
        ("loop", FailureKind::Limit),
        ("grow", FailureKind::Error),
        ("unkeepable", FailureKind::Error),
        ("absent", FailureKind::NoFunction),
        ("wait", FailureKind::Error),
        ("wait_and_loop", FailureKind::Limit),
        ("late", FailureKind::Error),
        ("flood", FailureKind::Error),
    ];
    let mut machine = machine();
    let key = load(&mut machine, "a", source);
    for (count, (function, kind)) in (1..).zip(cases) {
        let mut next = call(&mut machine, &key, function);
        while let Turn::Waits(_) = next {
            next = machine.resume(&key, Ok(Value::Nil), FACTS);
        }
        assert_eq!(failed(next).kind, kind, "{function}");
        machine.undo(&key, FACTS).unwrap();
        assert_eq!(value(call(&mut machine, &key, "onGet")), count.into(), "{function}");
    }
}

#[test]
fn failures_to_load_leave_nothing() {
    let mut machine = machine();
    let key = key("a");
    let state = Some(&Bytes::from_static(b"no state"));
    let cases: [(&'static str, _, _); 4] = [
        ("function", None, FailureKind::Syntax),
        ("error('no')", None, FailureKind::Error),
        ("while true do end", None, FailureKind::Limit),
        ("aso.x = 1", state, FailureKind::Error),
    ];
    for (source, state, kind) in cases {
        let loaded = machine.load(&key, &source.into(), state, &COMET_LIMITS, FACTS);
        assert_eq!(loaded.unwrap_err().kind, kind, "{source}");
        machine.unload(&key);
    }
}

#[test]
fn fields_are_read_and_set() {
    let mut machine = machine();
    let key = load(&mut machine, "a", "aso.x = 1 hidden = 2 function onGet() hidden = 3 return self.y end");
    machine.set_field(&key, "y", &"new".into()).unwrap();
    assert_eq!(value(call(&mut machine, &key, "onGet")), "new".into());
    let wanted = Value::Map(vec![("x".into(), 1.into()), ("y".into(), "new".into())]);
    assert_eq!(machine.fields(&key), Ok(wanted.clone()));
    let state = machine.save(&key).unwrap();
    assert_eq!(machine.state_fields(&state), Ok(wanted));
    assert_eq!(machine.field(&key, "onGet"), Value::Nil);
    assert_eq!(machine.field(&key, "absent"), Value::Nil);
    assert_eq!(machine.state_fields(&"x".into()).unwrap_err().kind, FailureKind::Error);
}
