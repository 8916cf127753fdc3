fn main() -> std::process::ExitCode {
    let mut o = oort_sim::cli::Options {
        seed: 1,
        seeds: 1,
        nodes: None,
        ops: 400,
        faults: oort_sim::faults::Faults::all(),
        trace: false,
        json: false,
    };
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut i = 0;
    while i < args.len() {
        match args[i].as_str() {
            "--seed" => {
                i += 1;
                o.seed = args[i].parse().unwrap()
            }
            "--seeds" => {
                i += 1;
                o.seeds = args[i].parse().unwrap()
            }
            "--nodes" => {
                i += 1;
                o.nodes = Some(args[i].parse().unwrap())
            }
            "--ops" => {
                i += 1;
                o.ops = args[i].parse().unwrap()
            }
            "--faults" => {
                i += 1;
                o.faults = args[i].parse().unwrap()
            }
            "--trace" => o.trace = true,
            "--json" => o.json = true,
            x => panic!("{x}"),
        }
        i += 1;
    }
    std::process::ExitCode::from(oort_sim::cli::run(&o))
}
