//! What anti-entropy costs: two replicas of a million keys that differ in 100.
//!
//! `cargo bench -p oort-core --bench entropy [-- KEYS]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

fn main() {
    let keys = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let started = Instant::now();
    let report = support::entropy::differ(keys, 100);
    let share = 100.0 * report.sent_bytes() as f64 / report.data_bytes as f64;
    println!(
        "{keys} keys, {} MB a replica, 100 of them missing at one of two",
        report.data_bytes / 1_000_000
    );
    println!("mended {} keys, {} still differ", report.mended, report.differing_at_end);
    println!(
        "sent {} kB of sums and lists and {} kB of objects: {share:.3}% of the data",
        report.compared_bytes / 1000,
        report.repaired_bytes / 1000,
    );
    println!("took {} ms of virtual time, a comparison each 5 ms", report.took_ms);
    println!("equal replicas: {} bytes a comparison of a partition", report.quiet_bytes_per_comparison);
    println!("all of this took {:.1} s of processor time", started.elapsed().as_secs_f64());
}
