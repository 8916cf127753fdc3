//! Random text, half of it nearly Lua, never does more than fail: within its limits, and with the machine intact.

mod support;

use oort_script::{Step, Value};
use proptest::prelude::*;
use support::*;

/// Pieces that make trouble when they meet.
const PIECES: [&str; 64] = [
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
];

/// Statements that are whole, so that some programs run.
const STATEMENTS: [&str; 24] = [
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
];

fn source() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60);
    let statements = prop::collection::vec(prop::sample::select(&STATEMENTS[..]), 0..10);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        words.prop_map(|words| words.join(" ").into_bytes()),
        statements.prop_map(|all| format!("function f() do {} end end", all.join(" end do ")).into_bytes()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_text_only_fails(sources in prop::collection::vec(source(), 1..8)) {
        let mut vm = vm();
        let mut victim = load(&mut vm, "aso.n = 0 function f() self.n = self.n + 1 return ('x'):rep(self.n) end");
        for (count, source) in (1..).zip(&sources) {
            let limits = oort_script::COMET_LIMITS;
            if let Ok(mut object) = vm.load("key".into(), source, None, limits, FACTS) {
                let mut next = step(&mut vm, &mut object, "f", &["argument".into()]);
                while let Step::Suspended(suspended) = next {
                    next = vm.resume(&mut object, suspended, FACTS, Ok(Value::from("answer")));
                }
                if let Ok(state) = vm.encode(&mut object) {
                    // What was kept comes back as it was.
                    let mut again = vm.load("key".into(), source, Some(&state), limits, FACTS).unwrap();
                    prop_assert_eq!(vm.encode(&mut again).unwrap(), state);
                }
            }
            prop_assert_eq!(run(&mut vm, &mut victim, "f", &[]), Value::from("x".repeat(count).as_str()));
        }
    }

    #[test]
    fn random_bytes_are_a_state_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        framed in any::<bool>(),
    ) {
        let bytes = if framed { [&[1, 6, 2][..], &bytes].concat() } else { bytes };
        if let Ok(value) = oort_script::decode(&bytes) {
            prop_assert!(oort_script::decode(&oort_script::encode(&value)).is_ok());
        }
        let mut vm = vm();
        let limits = oort_script::COMET_LIMITS;
        drop(vm.load("key".into(), b"aso.x = 1", Some(&bytes), limits, FACTS));
    }
}
