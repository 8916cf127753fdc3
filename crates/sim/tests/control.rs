use oort_core::config::NodeConfig;
use oort_sim::cluster::{run, Setup};
#[test]
fn control() {
        for seed in 1..=60 {
            let tweak = |config: &mut NodeConfig| config.entropy_ms = 0;
            let s = Setup { faults: "split,oneway".parse().unwrap(), tweak: Some(tweak), ..Setup::new(seed) };
            let r = run(&s);
            if !r.violations.is_empty() { println!("{}", oort_sim::cli::summary(&s, &r)); 
               run(&Setup{trace:true, ..s}); return; }
        }
}
