//! See `tests/support/generator.rs`, which makes programs and states of the bytes and says what must hold.
#![no_main]

#[path = "../../tests/support/generator.rs"]
mod generator;

use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;

/// Microseconds since the first call.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64
}

fuzz_target!(|bytes: &[u8]| generator::check(bytes, clock));
