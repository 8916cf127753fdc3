use oort_sim::cluster::{run, Setup};
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let (mut f, mut seeds_f, mut bad) = (0, 0, 0);
    for seed in a[0]..a[0] + a[1] {
        let setup = Setup::new(seed);
        let r = run(&setup);
        f += r.forgotten;
        seeds_f += (r.forgotten > 0) as u64;
        if !r.violations.is_empty() { bad += 1; println!("{}", oort_sim::cli::summary(&setup, &r).lines().take(12).collect::<Vec<_>>().join("\n")); }
    }
    println!("{} seeds, {bad} bad, {f} forgotten in {seeds_f} seeds", a[1]);
}
