//! What a call leaves is known before it is answered, and a call that fails can be undone to the byte.

mod support;

use oort_core::active::{FailureKind, Sandbox, Turn};
use oort_core::types::ObjectKey;
use oort_script::*;
use support::{done, failed, load, step, try_load, vm, FACTS};

/// Tables of all shapes, with keys in any order.
const STATES: [&str; 14] = [
    "self.x = {}",
    "self.x = {1, 2, 3}",
    "self.x = {[3] = 'c', [1] = 'a', [2] = 'b'}",
    "self.x = {[2] = 'b', [3] = 'c'}",
    "self.x = {1, 2, nil, 4}",
    "self.x = {1, 2, x = 3, [true] = 4, [0.5] = 5, [-1] = 6}",
    "self.x = {} for i = 300, 1, -1 do self.x[i] = i end",
    "self.x = {} for i = 1, 300 do self.x['k' .. i] = {i} end",
    "self.x = {{{{{}}}}, {a = {b = {c = {}}}}}",
    "self[1], self[2], self[true], self[0.25] = 1, 2, 3, 4",
    "self.x = {2^53, -2^53, 2^63, 0 / 0, 1 / 0, -1 / 0, -0.0, 5e-324, ''}",
    "self['\\0\\255'] = ('x'):rep(200) a, b = {}, 'global'",
    "self.x = {[''] = 1, ['1'] = 2, [1] = 3, [false] = 4, [2^60] = 5, [2^70] = 6}",
    "local t = {{1, x = 2}, x = {3, y = {4, z = 5}}} self.x = t self.y = t",
];

#[test]
fn states_have_the_bytes_of_their_values() {
    let mut vm = vm();
    for body in STATES {
        let mut object = load(&mut vm, &format!("aso.n = 0 function f() {body} end"));
        done(step(&mut vm, &mut object, "f", &[]));
        let state = vm.encode(&mut object).unwrap();
        assert_eq!(encode(&decode(&state).unwrap()), state, "{body}");
        let source = object.source().to_vec();
        let mut again = vm.load("key".into(), &source, Some(&state), COMET_LIMITS, FACTS).unwrap();
        assert_eq!(vm.encode(&mut again).unwrap(), state, "{body}");
    }
}

#[test]
fn mixed_tables_within_mixed_tables_take_no_longer_than_their_size() {
    let mut vm = vm();
    let source = "function f() local t = {} for i = 1, 30 do t = {t, t.x, x = i} end self.t = t end";
    let mut object = load(&mut vm, source);
    let before = support::clock();
    done(step(&mut vm, &mut object, "f", &[]));
    assert!(support::clock() - before < 100_000);
}

const OBJECT: &str = "aso.n = 1 aso.list = {1, 2, 3} aso.hits = comet.counter() seen = 0
    aso.code = { limit = 5, f = function() end, hits = comet.counter() }
    function good() self.n = self.n + 1 self.hits:add(1) seen = seen + 1 return self.n end
    function other() return 7 end
    function onTimer() end
    function fail(what)
      self.n, self.list[2], self.new, seen, extra = 99, 'x', {}, 77, {}
      self.hits:add(100)
      if what == 'error' then error('no') end
      if what == 'loop' then while true do end end
      if what == 'heap' then local s = 'x' while true do s = s .. s end end
      if what == 'flood' then while true do comet.lookup(function() end) end end
      if what == 'large' then self.text = ('x'):rep(100000) end
      if what == 'nested' then local t = {} for i = 1, 60 do t = {t} end self.t = t end
      if what == 'cycle' then self.list[1] = self.list end
      if what == 'closure' then self.f = function() end end
      if what == 'global closure' then later = function() end end
      if what == 'replaced' then self.good = function() end end
      if what == 'exchanged' then self.good, self.other = self.other, self.good end
      if what == 'removed' then self.good = nil end
      if what == 'overwritten' then self.good = 5 end
      if what == 'code table' then self.code.limit = 6 end
      if what == 'code function' then self.code.f = function() end end
      if what == 'code counter' then self.code.hits:add(1) end
      if what == 'code dropped' then self.code = nil end
      if what == 'metatable' then setmetatable(self.list, {}) end
      if what == 'own metatable' then setmetatable(self, {}) end
      if what == 'frozen' then table.freeze(self) end
      if what == 'own name' then self = {} end
      if what == 'other name' then aso = nil end
      if what == 'table key' then self.list[{}] = 1 end
      if what == 'result' then return function() end end
      if what == 'waits' then comet.lookup() error('later') end
      if what == 'callback' then comet.lookup(function() error('later') end) end
      if what == 'interval' then self.interval = 0 end
      if what == 'interval text' then self.interval = 'often' end
      if what == 'interval NaN' then self.interval = 0 / 0 end
      if what == 'interval for ever' then self.interval = 1 / 0 end
    end";

/// What each leaves, and the text that tells.
const FAILURES: [(&str, &str); 32] = [
    ("error", "no"),
    ("loop", "more than 100000 instructions"),
    ("heap", "the call allocated more than"),
    ("flood", "more than 20 messages"),
    ("large", "more than 100000 bytes"),
    ("nested", "nested deeper than 32 levels"),
    ("cycle", "self.list[1] holds a table that contains itself"),
    ("closure", "self.f holds a function, which cannot be kept"),
    ("global closure", "the global.later holds a function, which cannot be kept"),
    ("replaced", "are the source's alone"),
    ("exchanged", "are the source's alone"),
    ("removed", "are the source's alone"),
    ("overwritten", "are the source's alone"),
    ("code table", "are the source's alone"),
    ("code function", "are the source's alone"),
    ("code counter", "are the source's alone"),
    ("code dropped", "are the source's alone"),
    ("metatable", "self.list holds a table with a metatable"),
    ("own metatable", "are the source's alone"),
    ("frozen", "self holds a frozen table"),
    ("own name", "the global.self holds another value than the object"),
    ("other name", "the global holds another value than the object under one of its names"),
    ("table key", "neither a string, a number nor a boolean"),
    ("result", "the result holds a function"),
    ("waits", "later"),
    ("callback", "later"),
    ("interval", "self.interval holds no number of seconds from 1 to 10000000"),
    ("interval text", "self.interval holds no number of seconds"),
    ("interval NaN", "self.interval holds no number of seconds"),
    ("interval for ever", "self.interval holds no number of seconds"),
    ("absent", ""),
    ("error", "no"),
];

#[test]
fn whatever_a_call_did_before_it_failed_is_undone() {
    let mut machine = Machine::new(support::clock).unwrap();
    let key = ObjectKey::new(b"b", b"k").unwrap();
    machine.load(&key, &OBJECT.into(), None, &COMET_LIMITS, FACTS).unwrap();
    let call = |machine: &mut Machine, function: &str, arguments: &[Value]| {
        let place = CallerPlace::None;
        let invocation = Invocation { function, caller: place, arguments, facts: FACTS };
        let mut turn = machine.call(&key, Place::default(), &invocation);
        while let Turn::Waits(_) = turn {
            turn = machine.resume(&key, Ok(Value::Nil), FACTS);
        }
        turn
    };
    for (n, (what, text)) in (2..).zip(FAILURES) {
        let good = call(&mut machine, "good", &[]);
        assert!(
            matches!(&good, Turn::Done(done) if done.answer == Answer::Value(n.into())),
            "{what}: {good:?}"
        );
        let before = machine.save(&key).unwrap();
        let turn = call(&mut machine, "fail", &[what.into()]);
        if what == "absent" {
            assert!(matches!(turn, Turn::Done(_)), "{turn:?}");
            machine.load(&key, &OBJECT.into(), Some(&before), &COMET_LIMITS, FACTS).unwrap();
            continue;
        }
        let Turn::Failed(failure) = turn else { panic!("{what}: {turn:?}") };
        assert!(failure.message.contains(text), "{what}: {failure}");
        let is_work = ["loop", "heap"].contains(&what);
        assert_eq!(failure.kind == FailureKind::Limit, is_work, "{what}");
        assert_eq!(
            machine.save(&key).as_ref(),
            Ok(&before),
            "{what}: the state is known before it is undone"
        );
        machine.undo(&key, FACTS).unwrap();
        assert_eq!(machine.save(&key).as_ref(), Ok(&before), "{what}");
        assert_eq!(machine.field(&key, "hits"), (n - 1).into(), "{what}");
        machine.refill_messages(&key);
    }
}

#[test]
fn what_a_handler_has_stored_itself_stays() {
    let mut machine = Machine::new(support::clock).unwrap();
    let key = ObjectKey::new(b"b", b"k").unwrap();
    let source = "aso.n = 0 function f() self.n = 1 comet.put(self) self.n = 2 error('no') end";
    machine.load(&key, &source.into(), None, &COMET_LIMITS, FACTS).unwrap();
    let invocation = Invocation { function: "f", caller: CallerPlace::None, arguments: &[], facts: FACTS };
    let turn = machine.call(&key, Place::default(), &invocation);
    assert!(matches!(turn, Turn::Waits(HostRequest::Put { .. })), "{turn:?}");
    let stored = machine.save(&key).unwrap();
    let turn = machine.resume(&key, Ok(Value::Bool(true)), FACTS);
    assert!(matches!(turn, Turn::Failed(_)), "{turn:?}");
    machine.undo(&key, FACTS).unwrap();
    assert_eq!(machine.save(&key), Ok(stored));
    assert_eq!(machine.field(&key, "n"), 1.into());
}

#[test]
fn memory_is_counted_as_it_is_written() {
    let mut vm = vm();
    let mut object =
        load(&mut vm, "aso.t = {} function add() for i = 1, 100 do table.insert(self.t, 'x') end end");
    let mut last = 0;
    while let Step::Done(_) = step(&mut vm, &mut object, "add", &[]) {
        last += 1;
        let bytes = object.source().len() + vm.encode(&mut object).unwrap().len();
        assert!(bytes <= 100_000, "{bytes} bytes after {last} calls");
        if last > 400 {
            break;
        }
    }
    // Each text takes three bytes.
    assert!(last > 330, "{last}");
}

#[test]
fn sources_that_are_none_are_refused() {
    let mut vm = vm();
    let cases = [
        ("", "the source defines nothing"),
        ("-- only a comment", "the source defines nothing"),
        ("x = 1", "the source defines nothing"),
        ("return 5", "the source defines nothing"),
        ("aso.x = 1 comet.deleteSelf()", "cannot delete itself while it is made"),
        ("aso.x = 1 \0 aso.y = 2", "line 1: byte 0x00 is no text"),
        ("aso.x = 1\naso.y = '\x07'", "line 2: byte 0x07 is no text"),
        ("aso.f = function(x) return x end", "whether f is handed the object cannot be told"),
        ("aso.interval = 0 function onTimer() end", "self.interval holds no number of seconds"),
        ("aso.interval = -1 function onTimer() end", "self.interval holds no number of seconds"),
        ("aso.t = setmetatable({}, {__index = {}})\nfunction f() self.t[1] = 2 end", ""),
    ];
    for (source, text) in cases {
        match try_load(&mut vm, source) {
            Err(error) => assert!(error.to_string().contains(text), "{source}: {error}"),
            // A table with a metatable is made by the source alone.
            Ok(mut object) => {
                assert_eq!(text, "", "{source}");
                let error = failed(step(&mut vm, &mut object, "f", &[])).to_string();
                assert!(error.contains("are the source's alone"), "{error}");
            }
        }
    }
    // Code that unfolds to any size is no code.
    let unfolding = "local t = {f = function() end} for i = 1, 30 do t = {t, t} end aso.t = t";
    let error = try_load(&mut vm, unfolding).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("more than 100000 bytes"), "{error}");
    let binary = vm.load("key".into(), b"aso.x = '\xff\xfe'", None, COMET_LIMITS, FACTS).err();
    assert!(binary.is_some_and(|error| error.to_string().contains("byte 0xff is no text")));
    // Without a timer, the name is free.
    assert!(try_load(&mut vm, "aso.interval = 'free'").is_ok());
}

/// Functions of the library by the hostile numbers they are given. `X` stands for the number.
const NUMBERS: [&str; 12] = [
    "2^31",
    "2^32",
    "2^32 + 1",
    "2^53",
    "2^63",
    "1e300",
    "math.huge",
    "-2^31",
    "-2^32 - 1",
    "-2^53",
    "-math.huge",
    "0/0",
];
const CALLS: [&str; 34] = [
    "('ab'):rep(X)",
    "(''):rep(X)",
    "('abc'):sub(X)",
    "('abc'):sub(1, X)",
    "('abc'):sub(X, X)",
    "('abc'):byte(X)",
    "select('#', ('abc'):byte(1, X))",
    "string.char(X)",
    "('abc'):find('b', X)",
    "('abc'):match('b', X)",
    "('abc'):gsub('b', 'x', X)",
    "('%d'):format(X)",
    "('%x'):format(X)",
    "('%c'):format(X)",
    "('%5.2f'):format(X)",
    "table.concat({1, 2}, ',', X)",
    "table.concat({1, 2}, ',', 1, X)",
    "#table.create(X, 1)",
    "(function() local t = {1, 2} table.insert(t, X, 3) return #t end)()",
    "table.remove({1, 2}, X)",
    "#table.move({1, 2}, X, 2, 1)",
    "#table.move({1, 2}, 1, X, 1)",
    "#table.move({1, 2}, 1, 2, X)",
    "select('#', table.unpack({1, 2}, X))",
    "select('#', table.unpack({1, 2}, 1, X))",
    "select('#', unpack({1, 2}, 1, X))",
    "table.find({1, 2}, 2, X)",
    "select(X, 'a', 'b')",
    "tonumber('10', X)",
    "math.ldexp(1, X)",
    "math.random(X)",
    "math.random(1, X)",
    "math.random(X, X)",
    "tostring(X)",
];

/// Numbers beyond 32 bits do what the manual says of so great a number, or fail: none of them is taken for a small one.
#[test]
fn no_number_is_taken_for_another() {
    let mut vm = vm();
    let expected = |call: &str, number: &str| -> Option<&'static str> {
        let is_negative = number.starts_with('-');
        let is_none = number == "0/0";
        Some(match call {
            "('ab'):rep(X)" | "(''):rep(X)" if is_negative => "",
            "(''):rep(X)" if !is_none => "",
            "('abc'):sub(X)" if !is_none => {
                if is_negative {
                    "abc"
                } else {
                    ""
                }
            }
            "('abc'):sub(1, X)" if !is_none => {
                if is_negative {
                    ""
                } else {
                    "abc"
                }
            }
            "('abc'):sub(X, X)" if !is_none => "",
            "('abc'):byte(X)" if !is_none && !is_negative => "nil",
            "select('#', ('abc'):byte(1, X))" if !is_none => {
                if is_negative {
                    "0"
                } else {
                    "3"
                }
            }
            "('abc'):find('b', X)" | "('abc'):match('b', X)" if !is_none && !is_negative => "nil",
            "('abc'):find('b', X)" if is_negative => "2",
            "('abc'):match('b', X)" if is_negative => "b",
            "('abc'):gsub('b', 'x', X)" if !is_none => {
                if is_negative {
                    "abc"
                } else {
                    "axc"
                }
            }
            "('%d'):format(X)" if number == "2^53" => "9007199254740992",
            "table.remove({1, 2}, X)" if !is_none => "nil",
            "table.find({1, 2}, 2, X)" if !is_none && !is_negative => "nil",
            "select('#', table.unpack({1, 2}, X))" if !is_none && !is_negative => "0",
            "select('#', table.unpack({1, 2}, 1, X))" if is_negative => "0",
            "select(X, 'a', 'b')" if !is_none && !is_negative => "nil",
            "math.ldexp(1, X)" if !is_none => {
                if is_negative {
                    "0"
                } else {
                    "inf"
                }
            }
            _ => return None,
        })
    };
    // Those that must fail, whatever the number.
    let must_fail = ["string.char(X)", "('%c'):format(X)", "tonumber('10', X)"];
    let fails_if_positive = ["('ab'):rep(X)", "#table.create(X, 1)"];
    for call in CALLS {
        for number in NUMBERS {
            let text = call.replace('X', &format!("({number})"));
            let mut object = load(&mut vm, &format!("function f() return tostring(({text})) end"));
            let before = support::clock();
            let outcome = step(&mut vm, &mut object, "f", &[]);
            assert!(support::clock() - before < 50_000, "{text}");
            let is_positive = !number.starts_with('-');
            match outcome {
                Step::Done(done) => {
                    let Answer::Value(Value::Bytes(shown)) = done.answer else { panic!("{text}") };
                    let shown = String::from_utf8(shown).unwrap();
                    if let Some(expected) = expected(call, number) {
                        assert_eq!(shown, expected, "{text}");
                    }
                    assert!(!must_fail.contains(&call), "{text} gave {shown}");
                    assert!(!is_positive || !fails_if_positive.contains(&call), "{text} gave {shown}");
                    let is_small = ["1", "2"].contains(&shown.as_str()) && !call.starts_with("#table.move");
                    let is_position = call.starts_with("(function") || call.starts_with("#table.create");
                    assert!(!(is_small && is_position && call.contains("create")), "{text} gave {shown}");
                }
                Step::Failed(error) => {
                    assert_eq!(expected(call, number), None, "{text} failed: {error}");
                }
                Step::Suspended(_) => panic!("{text} waits"),
            }
        }
    }
}
