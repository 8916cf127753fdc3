//! The workload version is raised when a seed no longer means the same.

use oort_core::types::Rng;
use oort_sim::faults::{Faults, Plan};
use oort_sim::workload::{Workload, WORKLOAD_VERSION};
use xxhash_rust::xxh3::xxh3_64;

/// The hash of what seeds draw before any node answers, by workload version: add a line for a new version.
const DRAWN: [(u32, u64); 5] = [
    (1, 0x9ca6_3057_7253_b4d1),
    (2, 0x01b9_66ae_9c1a_7fbb),
    (3, 0x3d5e_a918_e691_3e37),
    (4, 0x23bd_f757_8cf8_ac74),
    (5, 0x4453_9ce3_3f6a_91be),
];

#[test]
fn seeds_mean_what_their_version_says() {
    let mut text = String::new();
    for seed in 1..=20 {
        let rng = &mut Rng::new(seed);
        let mut workload = Workload::draw(5, 400, rng);
        workload.rest_at(200, 300);
        if seed % 2 == 0 {
            let durability = oort_core::bucket::ActiveDurability::Quorum;
            workload.add_active(durability, usize::from(seed % 4 == 0), (3, 2, 2), rng);
        }
        text += &format!("{:?} {:?} {:?}\n", workload.keys, workload.buckets, Plan::draw(Faults::all(), rng));
        for id in 0..200 {
            workload.left = 400 - id as usize;
            text += &format!("{:?}\n", workload.plan(0, id, 1_700_000_000_000, rng));
        }
    }
    let (version, hash) = DRAWN[DRAWN.len() - 1];
    let drawn = xxh3_64(text.as_bytes());
    assert_eq!(
        (version, format!("{hash:#x}")),
        (WORKLOAD_VERSION, format!("{drawn:#x}")),
        "seeds draw other worlds than before: raise WORKLOAD_VERSION, and add its line to DRAWN"
    );
}
