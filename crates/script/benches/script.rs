//! What a handler costs. `cargo bench -p oort-script`
//!
//! The clock is the constant 0, so the bound on time costs its comparisons but no system call.

use std::hint::black_box;

use divan::Bencher;
use oort_core::active::{Place, Sandbox, Turn};
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
const CONVERGENT: &str = "aso.hits = comet.counter() function onGet() return self.hits:add() end";
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

#[divan::bench(args = MODES, sample_size = 200)]
fn empty_handler(bencher: Bencher, fuel: Fuel) {
    call(bencher, BARE, fuel, CallerPlace::None);
}

#[divan::bench(args = MODES, sample_size = 200)]
fn counter(bencher: Bencher, fuel: Fuel) {
    call(bencher, COUNTER, fuel, CallerPlace::None);
}

/// The counter as the core calls it, by key, among a thousand others.
#[divan::bench(args = MODES, sample_size = 200)]
fn counter_by_key(bencher: Bencher, fuel: Fuel) {
    let mut machine = Machine::new(|| 0).expect("a machine starts");
    let load = |n| machine.load(&key(n), &COUNTER.into(), None, &limits(fuel), FACTS);
    let places: Vec<Place> = (0..1000).map(load).map(|place| place.expect("the object loads")).collect();
    let invocation =
        Invocation { function: "onGet", caller: CallerPlace::None, arguments: &[], facts: FACTS };
    let (key, place) = (key(7), places[7]);
    bencher.bench_local(|| match machine.call(&key, place, &invocation) {
        Turn::Done(done) => done,
        other => panic!("{other:?}"),
    });
}

#[divan::bench(args = MODES, sample_size = 200)]
fn counter_with_caller(bencher: Bencher, fuel: Fuel) {
    let caller = Caller { ip: Some("10.0.0.1".into()), port: Some(1234), ..Caller::default() };
    call(bencher, WITH_CALLER, fuel, CallerPlace::First(&caller));
}

#[divan::bench(args = MODES, sample_size = 200)]
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

/// Not a time: what 10,000 resident objects take, and what is left of them when they are unloaded. Printed once.
#[divan::bench(sample_count = 1, sample_size = 1)]
fn memory_of_objects(bencher: Bencher) {
    const OBJECTS: usize = 10_000;
    bencher.bench_local(|| {
        let mut machine = Machine::new(|| 0).expect("a machine starts");
        let keys: Vec<ObjectKey> = (0..OBJECTS).map(key).collect();
        let limits = limits(Fuel::Exact);
        let source = COUNTER.into();
        machine.load(&keys[0], &source, None, &limits, FACTS).expect("the object loads");
        machine.collect().expect("it collects");
        let (used, resident) = (machine.used_bytes(), resident_bytes());
        for key in &keys[1..] {
            machine.load(key, &source, None, &limits, FACTS).expect("the object loads");
        }
        machine.collect().expect("it collects");
        let each = |bytes: usize, before: usize| bytes.saturating_sub(before) / OBJECTS;
        let loaded = [each(machine.used_bytes(), used), each(resident_bytes(), resident)];
        keys[1..].iter().for_each(|key| machine.unload(key));
        machine.collect().expect("it collects");
        let left = each(machine.used_bytes(), used);
        println!(
            "bytes for each object that shares its code: {} counted, {} resident;",
            loaded[0], loaded[1]
        );
        println!("{left} counted when it is unloaded");
    });
}

fn key(n: usize) -> ObjectKey {
    ObjectKey::new(b"bucket", format!("key {n}").as_bytes()).expect("it is short")
}

/// Memory of this process, where the system tells it.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4096
}

#[divan::bench(args = MODES, sample_size = 200)]
fn convergent_counter(bencher: Bencher, fuel: Fuel) {
    call(bencher, CONVERGENT, fuel, CallerPlace::None);
}

#[divan::bench]
fn encode_convergent_counter(bencher: Bencher) {
    let (mut vm, mut object) = make(CONVERGENT, Fuel::Exact);
    bencher.bench_local(|| vm.encode(&mut object).expect("it can be kept"));
}

/// A set of 1,000 elements, half of which another replica has not seen.
#[divan::bench]
fn join_sets(bencher: Bencher) {
    let source = "aso.s = comet.set() function onGet() for i = 1, 500 do self.s:add(i) end end";
    let states: Vec<Vec<u8>> = (0..2)
        .map(|actor| {
            let (mut vm, mut object) = make(source, Fuel::Exact);
            let facts = Facts { actor, ..FACTS };
            let invocation =
                Invocation { function: "onGet", caller: CallerPlace::None, arguments: &[], facts };
            assert!(matches!(vm.call(&mut object, &invocation), Step::Done(_)));
            vm.encode(&mut object).expect("it can be kept")
        })
        .collect();
    let (mut vm, _) = make(source, Fuel::Exact);
    bencher.bench_local(|| {
        let mut object = vm
            .load("key".into(), source.as_bytes(), Some(&states[0]), limits(Fuel::Exact), FACTS)
            .expect("it loads");
        vm.join(&mut object, &states[1]).expect("it joins")
    });
}
