//! Any bytes, made into nearly Lua and nearly states, never do more than fail: within their limits, and with the
//! machine intact. What must hold stands in `support::generator`, which the fuzz target shares.

#[path = "support/generator.rs"]
mod generator;
mod support;

use generator::check;
use proptest::prelude::*;
use support::clock;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_only_fail(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes, clock);
    }
}
