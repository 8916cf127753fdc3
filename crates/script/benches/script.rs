//! What a handler costs. `cargo bench -p oort-script`
//!
//! The clock is the constant 0, so the bound on time costs its comparisons but no system call.

use std::hint::black_box;

use divan::Bencher;
use oort_core::active::{Sandbox, Turn};
use oort_core::types::ObjectKey;
use oort_script::{
    Caller, CallerPlace, Config, Facts, Fuel, Invocation, Limits, Machine, Object, Step, Vm, COMET_LIMITS,
};

fn main() {
    divan::main();
}

const COUNTER: &str = "aso.value = 'Hello world!' aso.getCount = 0
function onGet() self.getCount = self.getCount + 1 return {self.value, self.getCount} end";
const WITH_CALLER: &str = "aso.getCount = 0
function aso:onGet(caller) self.getCount = self.getCount + 1 self.last = caller.ip return self.getCount end";
const BARE: &str = "function onGet() end";
const LOOP: &str = "function onGet() local x = 0 for i = 1, 10000 do x = x + i % 7 end return x end";
const FACTS: Facts = Facts { now_ms: 1_700_000_000_000, seed: 7, actor: 1 };
const MODES: [Fuel; 2] = [Fuel::Exact, Fuel::Safepoints];

fn limits(fuel: Fuel) -> Limits {
    Limits { fuel, instructions: 1_000_000, ..COMET_LIMITS }
}

fn make(source: &str, fuel: Fuel) -> (Vm, Object) {
    let mut vm = Vm::new(Config::default()).expect("a machine starts");
    let object =
        vm.load("key".into(), source.as_bytes(), None, limits(fuel), FACTS).expect("the object loads");
    (vm, object)
}

fn call(bencher: Bencher, source: &str, fuel: Fuel, caller: CallerPlace) {
    let (mut vm, mut object) = make(source, fuel);
    let call = Invocation { function: "onGet", caller, arguments: &[], facts: FACTS };
    bencher.bench_local(|| match vm.call(&mut object, &call) {
        Step::Done(outcome) => outcome,
        other => panic!("{other:?}"),
    });
}

#[divan::bench(args = MODES)]
fn empty_handler(bencher: Bencher, fuel: Fuel) {
    call(bencher, BARE, fuel, CallerPlace::None);
}

#[divan::bench(args = MODES)]
fn counter(bencher: Bencher, fuel: Fuel) {
    call(bencher, COUNTER, fuel, CallerPlace::None);
}

/// The counter as the core calls it, by key, among a thousand others.
#[divan::bench(args = MODES)]
fn counter_by_key(bencher: Bencher, fuel: Fuel) {
    let mut machine = Machine::new(|| 0).expect("a machine starts");
    let key = |n: usize| ObjectKey::new(b"bucket", format!("key {n}").as_bytes()).expect("it is short");
    for n in 0..1000 {
        machine.load(&key(n), &COUNTER.into(), None, &limits(fuel), FACTS).expect("the object loads");
    }
    let invocation =
        Invocation { function: "onGet", caller: CallerPlace::None, arguments: &[], facts: FACTS };
    let key = key(7);
    bencher.bench_local(|| match machine.call(&key, &invocation) {
        Turn::Done(done) => done,
        other => panic!("{other:?}"),
    });
}

#[divan::bench(args = MODES)]
fn counter_with_caller(bencher: Bencher, fuel: Fuel) {
    let caller = Caller { ip: Some("10.0.0.1".into()), port: Some(1234), ..Caller::default() };
    call(bencher, WITH_CALLER, fuel, CallerPlace::First(&caller));
}

#[divan::bench(args = MODES)]
fn loop_of_10_000(bencher: Bencher, fuel: Fuel) {
    call(bencher, LOOP, fuel, CallerPlace::None);
}

#[divan::bench]
fn encode_counter(bencher: Bencher) {
    let (mut vm, mut object) = make(COUNTER, Fuel::Exact);
    bencher.bench_local(|| vm.encode(&mut object).expect("it can be kept"));
}

#[divan::bench]
fn load_object_of_known_code(bencher: Bencher) {
    let (mut vm, mut object) = make(COUNTER, Fuel::Exact);
    let state = vm.encode(&mut object).expect("it can be kept");
    let limits = limits(Fuel::Exact);
    bencher.bench_local(|| {
        vm.load("key".into(), COUNTER.as_bytes(), Some(black_box(&state)), limits, FACTS).expect("it loads")
    });
}

/// Not a time: what 10,000 resident objects take. Printed once.
#[divan::bench(sample_count = 1, sample_size = 1)]
fn memory_of_objects(bencher: Bencher) {
    bencher.bench_local(|| {
        let (mut vm, _first) = make(COUNTER, Fuel::Exact);
        vm.collect().expect("it collects");
        let before = vm.used_bytes();
        let limits = limits(Fuel::Exact);
        let load = |vm: &mut Vm| vm.load("key".into(), COUNTER.as_bytes(), None, limits, FACTS);
        let objects: Vec<_> = (0..10_000).map(|_| load(&mut vm).expect("it loads")).collect();
        vm.collect().expect("it collects");
        println!(
            "{} bytes of Lua memory for each object that shares its code",
            (vm.used_bytes() - before) / 10_000
        );
        objects.len()
    });
}
