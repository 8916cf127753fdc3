//! Hostile objects, each with the exact error that stops it.
//!
//! All of them live in one machine. After each one a victim that was there before still counts, the shared library
//! is what it was, and no call took long. The attacks stand in `cases`, by what they are after.

mod cases;
#[path = "../support/mod.rs"]
mod support;

use cases::{Attack, Expect, CASES};
use oort_script::{Object, ScriptError, Step, Value, Vm};
use support::*;

/// The longest that any call may hold a core, in processor time. The bound on time is 10 ms; what C functions do
/// between two looks at the clock comes on top, and compiling, and a test build.
const LONGEST_US: u64 = 40_000;

const VICTIM: &str = "aso.count = 0
function onGet() self.count = self.count + 1 return self.count end
function check()
  local pair = {3, 1, 2}
  table.sort(pair)
  local own = tostring(rawget(string, 'x'))
  return table.concat({
    ('x'):rep(3), ('a,b'):gsub(',', ';'), string.format('%d', 7), table.concat(pair), math.floor(2.5),
    tostring(pcall(error, 'e')), tostring(getmetatable), ('abc'):find('b'), math.max(1, 2), type(comet.get),
    tostring(leaked), tostring(stolen), comet.key(), tostring(next({})), select('#', 1, 2), own,
  }, ' ')
end";
const CHECKED: &str = "xxx a;b 7 123 2 false nil 2 2 function nil nil key nil 2 nil";

/// Whatever happens first: an error, or the end of so many calls and an encoding.
fn attempt(vm: &mut Vm, attack: &Attack) -> Result<Value, ScriptError> {
    let mut object = try_load(vm, &attack.text())?;
    let mut last = Value::Nil;
    for _ in 0..attack.calls() {
        last = call(vm, &mut object)?;
    }
    vm.encode(&mut object)?;
    Ok(last)
}

/// One call; whatever it waits for is answered at once.
fn call(vm: &mut Vm, object: &mut Object) -> Result<Value, ScriptError> {
    let mut next = step(vm, object, "attack", &[]);
    loop {
        match next {
            Step::Done(outcome) => {
                let oort_script::Answer::Value(value) = outcome.answer else {
                    return Ok(Value::from("self"));
                };
                return Ok(value);
            }
            Step::Suspended(suspended) => next = vm.resume(object, suspended, FACTS, Ok(Value::Nil)),
            Step::Failed(error) => return Err(error),
        }
    }
}

fn is_as_expected(outcome: &Result<Value, ScriptError>, expect: &Expect) -> bool {
    match (outcome, expect) {
        (Err(ScriptError::Limit { limit, .. }), Expect::Limit(wanted)) => limit == wanted,
        (Err(ScriptError::Runtime { message, .. }), Expect::Error(wanted)) => message == wanted,
        (Err(ScriptError::Syntax { message }), Expect::Syntax(wanted)) => message == wanted,
        (Err(ScriptError::Unkeepable { path, reason }), Expect::Unkeepable(wanted_path, wanted)) => {
            path == wanted_path && reason == wanted
        }
        (Ok(value), Expect::Harmless(wanted)) => *value == Value::from(*wanted),
        _ => false,
    }
}

#[test]
fn every_attack_is_stopped_as_expected_and_hurts_nobody() {
    let mut vm = vm();
    let mut victim = load(&mut vm, VICTIM);
    let mut faults = Vec::new();
    let mut slowest = (0, "");
    for (count, attack) in CASES.iter().enumerate() {
        let before = clock();
        let outcome = attempt(&mut vm, attack);
        let took = (clock() - before) / attack.calls() as u64;
        slowest = slowest.max((took, attack.name));
        if !is_as_expected(&outcome, &attack.expect) {
            let outcome = outcome.map_err(|error| format!("{error:?}"));
            faults.push(format!("{}: expected {:?}, got {outcome:?}", attack.name, attack.expect));
        }
        if took > LONGEST_US {
            faults.push(format!("{}: took {took} µs", attack.name));
        }
        assert_eq!(
            run(&mut vm, &mut victim, "onGet", &[]),
            Value::Integer(count as i64 + 1),
            "{}",
            attack.name
        );
        assert_eq!(run(&mut vm, &mut victim, "check", &[]), Value::from(CHECKED), "{}", attack.name);
    }
    println!("{} attacks, the slowest was {} with {} µs", CASES.len(), slowest.1, slowest.0);
    assert!(CASES.len() >= 60);
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    vm.collect().unwrap();
    assert!(vm.used_bytes() < 4 << 20, "{} bytes stay behind", vm.used_bytes());
}

#[test]
fn names_of_attacks_are_unique() {
    let mut names: Vec<&str> = CASES.iter().map(|attack| attack.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
}
