//! One machine with a real clock, and objects that are called in one line.
#![allow(dead_code)]

use oort_script::{
    Answer, CallerPlace, Config, Done, Facts, HostResult, Invocation, Object, ScriptError, Step, Value, Vm,
    COMET_LIMITS,
};

pub const FACTS: Facts = Facts { now_ms: 1_700_000_000_000, seed: 7, actor: 1 };

/// The processor time of this thread: a busy machine makes no test fail.
pub fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

pub fn vm() -> Vm {
    let mut vm = Vm::new(Config { clock, ..Config::default() }).unwrap();
    vm.set_node("10.0.0.1", "n1");
    vm
}

pub fn load(vm: &mut Vm, source: &str) -> Object {
    try_load(vm, source).unwrap_or_else(|error| panic!("{error}\n{}\n{source}", error.trace()))
}

pub fn try_load(vm: &mut Vm, source: &str) -> Result<Object, ScriptError> {
    vm.load("key".into(), source.as_bytes(), None, COMET_LIMITS, FACTS)
}

pub fn step(vm: &mut Vm, object: &mut Object, function: &str, arguments: &[Value]) -> Step {
    vm.call(object, &Invocation { function, caller: CallerPlace::None, arguments, facts: FACTS })
}

pub fn done(step: Step) -> Done {
    match step {
        Step::Done(outcome) => outcome,
        Step::Suspended(suspended) => panic!("it waits for {:?}", suspended.request()),
        Step::Failed(error) => panic!("{error}\n{}", error.trace()),
    }
}

/// The value that a function returns.
pub fn run(vm: &mut Vm, object: &mut Object, function: &str, arguments: &[Value]) -> Value {
    match done(step(vm, object, function, arguments)).answer {
        Answer::Value(value) => value,
        Answer::Object => panic!("it returned itself"),
    }
}

/// The value of one expression.
pub fn eval(vm: &mut Vm, expression: &str) -> Value {
    let mut object = load(vm, &format!("function f() return {expression} end"));
    run(vm, &mut object, "f", &[])
}

/// The error of a call.
pub fn failed(step: Step) -> ScriptError {
    match step {
        Step::Failed(error) => error,
        other => panic!("it did not fail: {other:?}"),
    }
}

/// The request a step waits for, and the step after its answer.
pub fn answer(
    vm: &mut Vm,
    object: &mut Object,
    step: Step,
    result: HostResult,
) -> (oort_script::HostRequest, Step) {
    let Step::Suspended(suspended) = step else { panic!("it does not wait: {step:?}") };
    let request = suspended.request().clone();
    let next = vm.resume(object, suspended, FACTS, result);
    (request, next)
}

pub fn array(items: &[Value]) -> Value {
    Value::Array(items.to_vec())
}
