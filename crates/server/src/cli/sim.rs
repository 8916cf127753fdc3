//! `oort sim`: a whole cluster in one thread, with faults, judged by checkers. See the crate `oort_sim`.

mod detector;

use std::io::{self, BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use clap::{Args, Subcommand};
use oort_sim::cli::{Options, NODES};
use oort_sim::cluster::Setup;
use oort_sim::faults::{Fault, Faults};
use oort_sim::skips::{Ordinals, Skips};
use oort_sim::soak::{self, Choices, Progress, HOURS_MAX};
use oort_sim::story::{other_version, Story, OPS_MAX};
use oort_sim::workload::WORKLOAD_VERSION;

use super::{cannot_write, Failure};

const EXAMPLES: &str = "\
Examples:
  oort sim --seed 1
  oort sim --seed 1 --trace | less         every event of that history
  oort sim --seeds 500 --stop              seeds 1 to 500, or up to the first that fails
  oort sim --seeds 100 --faults crash,split --nodes 5 --jobs 1
  oort sim --soak 8 --out soak             fresh seeds of all kinds for eight hours
  oort sim --soak 8 --out soak             the same again goes on where that ended
  oort sim --replay soak/reads-17.story    replays a failure that the soak kept
  oort sim --shrink 17 --ops 400           less of seed 17 that fails the same way
  oort sim detector                        how fast are crashes noticed?

Exit codes: 0 all promises were kept, 1 one was broken or a file cannot be used, 2 wrong usage";

/// Simulate whole clusters with faults, and check every promise
///
/// A seed is one history: the same seed gives the same events, on any machine. Exit code 1: a promise was broken; the
/// command that replays the seed is printed.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = examples_and_faults())]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The first seed [default: 1]; of a new soak: what all its seeds are drawn from [default: drawn]
    #[arg(long, value_name = "SEED", value_parser = seed, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// How many seeds to run
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// How many nodes [default: drawn from the seed]
    #[arg(long, value_name = "COUNT", value_parser = nodes)]
    nodes: Option<usize>,
    /// Client operations per seed [default: 1000; of a soak: drawn]
    #[arg(long, value_name = "COUNT", value_parser = operations)]
    ops: Option<usize>,
    /// What goes wrong: all, none, or a list [default: all; of a soak: drawn]
    ///
    /// docs/simulation.md says what each fault does.
    #[arg(long, value_name = "FAULTS")]
    faults: Option<Faults>,
    /// Send a third of the operations to active objects
    #[arg(long)]
    active: bool,
    /// How the ring is laid out: 1, 2 or 3 [default: drawn from the seed]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=3))]
    strategy: Option<u8>,
    /// Print every event
    #[arg(long)]
    trace: bool,
    /// Print one JSON object per seed
    #[arg(long)]
    json: bool,
    /// Stop at the first seed that breaks a promise
    #[arg(long)]
    stop: bool,
    /// How many seeds to run side by side; the output is the same [default: one per core, with --trace 1]
    #[arg(long, value_name = "COUNT", value_parser = jobs)]
    jobs: Option<usize>,
    /// Run fresh seeds of all kinds for so many hours, and keep a story of each failure in DIR
    ///
    /// Faults, operations, nodes and strategies are drawn for each seed, unless they are given. Ctrl-C ends it with the
    /// summary, a second one at once; the same command goes on with the next seeds. Exit code 1 if any seed of DIR
    /// failed.
    #[arg(long, value_name = "HOURS", value_parser = hours, requires = "out")]
    #[arg(conflicts_with_all = ["seeds", "trace", "json", "stop"])]
    soak: Option<f64>,
    /// Where a soak lives; with --shrink, the story file to write
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Find fewer operations, faults and nodes with which this seed fails alike, and tell what happens
    ///
    /// Takes the options that the failing run had. Ctrl-C ends it with the smallest that was found so far.
    #[arg(long, value_name = "SEED", value_parser = seed, allow_negative_numbers = true)]
    #[arg(conflicts_with_all = ["seed", "seeds", "trace", "json", "stop", "soak"])]
    shrink: Option<u64>,
    /// Replay a story file, which a soak or --shrink wrote
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = [
        "seed", "seeds", "nodes", "ops", "faults", "active", "strategy", "stop", "jobs", "soak", "out", "shrink",
        "skip_faults", "skip_ops", "skip_strikes", "workload_version"
    ])]
    replay: Option<PathBuf>,
    /// Faults that are drawn and never in force
    #[arg(long, value_name = "FAULTS", conflicts_with = "soak")]
    skip_faults: Option<Faults>,
    /// Client operations to leave out, by their place from 1: 3,7-12
    #[arg(long, value_name = "ORDINALS", conflicts_with = "soak")]
    skip_ops: Option<Ordinals>,
    /// Strikes of faults to leave out, by their place from 1: 3,7-12
    #[arg(long, value_name = "ORDINALS", conflicts_with = "soak")]
    skip_strikes: Option<Ordinals>,
    /// The workload version of the program that printed this command; another one is refused
    #[arg(long, value_name = "NUMBER", value_parser = workload_version)]
    workload_version: Option<u32>,
}

#[derive(Subcommand)]
enum Command {
    Detector(detector::Arguments),
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(Command::Detector(arguments)) = arguments.command {
        return detector::run(arguments);
    }
    oort_sim::panics::watch();
    if let Some(hours) = arguments.soak {
        return run_soak(&arguments, hours);
    }
    if let Some(path) = &arguments.replay {
        return replay(path, &arguments);
    }
    if arguments.shrink.is_some() {
        return shrink(&arguments);
    }
    if arguments.out.is_some() {
        return Err(Failure::Usage { text: "--out goes with --soak or --shrink".into() });
    }
    run_seeds(&arguments)
}

fn run_seeds(arguments: &Arguments) -> Result<(), Failure> {
    let first = arguments.setup();
    if first.seed.checked_add(arguments.seeds - 1).is_none() {
        let text = format!("{} seeds from {} on end beyond {}", arguments.seeds, first.seed, u64::MAX);
        return Err(Failure::Usage { text });
    }
    if first.trace && arguments.jobs.is_some_and(|jobs| jobs > 1) {
        return Err(Failure::Usage { text: "--trace prints one seed after the other: use --jobs 1".into() });
    }
    let jobs = if first.trace { 1 } else { arguments.jobs() };
    let Arguments { seeds, json, stop: stops, .. } = *arguments;
    verdict(oort_sim::cli::run(&Options { first, seeds, json, stops, jobs }, &mut io::stdout()))
}

fn run_soak(arguments: &Arguments, hours: f64) -> Result<(), Failure> {
    let Arguments { nodes, ops, faults, active, strategy, .. } = *arguments;
    let directory = arguments.out.clone().unwrap_or_default();
    let options = soak::Options {
        hours,
        directory: directory.clone(),
        base: arguments.seed,
        choices: Choices { nodes, ops, faults, active, strategy },
        jobs: arguments.jobs(),
        tweak: None,
    };
    let progress = Progress { out: &mut io::stderr(), is_terminal: io::stderr().is_terminal() };
    let outcome = soak::run(&options, &*interruption()?, progress)
        .map_err(|error| Failure::Failed { text: error.to_string() })?;
    super::print(outcome.text(&directory).as_bytes())?;
    match outcome.failed {
        0 => Ok(()),
        _ => Err(broken()),
    }
}

fn shrink(arguments: &Arguments) -> Result<(), Failure> {
    let (setup, jobs) = (arguments.setup(), arguments.jobs());
    let shrunk = oort_sim::cli::run_shrink(&setup, jobs, &*interruption()?, &mut io::stdout());
    let Some(shrunk) = shrunk.map_err(output_failed)? else { return Ok(()) };
    if let Some(path) = &arguments.out {
        super::write_file(path, &shrunk.story.encode())?;
    }
    Err(broken())
}

fn replay(path: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let failed = |text: String| Failure::Failed { text: format!("{}: {text}", path.display()) };
    let bytes = std::fs::read(path).map_err(|error| failed(crate::config::words(&error)))?;
    let text = String::from_utf8(bytes).map_err(|_| failed("this is no story file: it is no text".into()))?;
    let story = Story::decode(&text).map_err(|error| failed(error.to_string()))?;
    let mut out = BufWriter::new(io::stdout());
    verdict(oort_sim::cli::replay(&story, arguments.trace, arguments.json, &mut out))
}

impl Arguments {
    fn setup(&self) -> Setup {
        let Arguments { nodes, active, strategy, trace, .. } = *self;
        Setup {
            nodes,
            ops: self.ops.unwrap_or(1000),
            faults: self.faults.unwrap_or(Faults::all()),
            active,
            strategy,
            trace,
            skips: Skips {
                operations: self.skip_ops.clone().unwrap_or_default(),
                strikes: self.skip_strikes.clone().unwrap_or_default(),
                faults: self.skip_faults.unwrap_or(Faults::none()),
            },
            ..Setup::new(self.shrink.or(self.seed).unwrap_or(1))
        }
    }

    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(oort_sim::parallel::cores)
    }
}

fn examples_and_faults() -> String {
    let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    format!("{EXAMPLES}\n\nFaults: {}; or all, or none", names.join(", "))
}

fn verdict(outcome: io::Result<bool>) -> Result<(), Failure> {
    match outcome.map_err(output_failed)? {
        true => Ok(()),
        false => Err(broken()),
    }
}

fn broken() -> Failure {
    Failure::Failed { text: "a promise was broken".into() }
}

fn output_failed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => cannot_write(Path::new("the standard output"), &error),
    }
}

/// Set by the first SIGINT or SIGTERM; the second ends the process at once.
fn interruption() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|error| Failure::Failed { text: format!("cannot watch signals: {error}") })?;
    }
    Ok(flag)
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(nodes) if NODES.contains(&nodes) => Ok(nodes),
        _ => Err(format!("must be {} to {}", NODES.start(), NODES.end())),
    }
}

fn operations(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(operations) if operations <= OPS_MAX => Ok(operations),
        _ => Err(format!("must be 0 to {OPS_MAX}")),
    }
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=256) => Ok(jobs),
        _ => Err("must be 1 to 256".into()),
    }
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(hours) if hours > 0.0 && hours <= HOURS_MAX => Ok(hours),
        _ => Err(format!("must be a number of hours above 0 and up to {HOURS_MAX}, as in 0.5")),
    }
}

fn workload_version(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(WORKLOAD_VERSION) => Ok(WORKLOAD_VERSION),
        Ok(found) => Err(other_version(found)),
        Err(_) => Err(format!("must be a number; this program's is {WORKLOAD_VERSION}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Result<Arguments, String> {
        let line = Line::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        Ok(line.arguments)
    }

    #[test]
    fn a_printed_command_is_the_setup_that_printed_it() {
        let skips = Skips {
            operations: "1-3,9".parse().unwrap(),
            strikes: "4".parse().unwrap(),
            faults: "split".parse().unwrap(),
        };
        let faults = "split,crash".parse().unwrap();
        let odd = Setup { nodes: Some(4), ops: 7, faults, strategy: Some(3), skips, ..Setup::new(u64::MAX) };
        let active = Setup { active: true, faults: Faults::none(), ..Setup::new(0) };
        for setup in [Setup::new(1), odd, active] {
            let command = setup.command();
            let parsed = parse(command.strip_prefix("oort ").unwrap()).unwrap();
            assert_eq!(parsed.setup().command(), command);
            assert_eq!(parsed.setup().skips, setup.skips);
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (line, part) in [
            ("sim --seed x", "a seed is a whole number from 0"),
            ("sim --seed -1", "a seed is a whole number from 0"),
            ("sim --seed 18446744073709551616", "to 18446744073709551615"),
            ("sim --seeds 0", "0 is not in 1.."),
            ("sim --nodes 0", "must be 1 to 64"),
            ("sim --ops many", "must be 0 to 10000000"),
            ("sim --faults rain", "unknown fault 'rain': use all, none or a list of delay"),
            ("sim --skip-ops 0", "'0' is no ordinal"),
            ("sim --skip-faults rain", "unknown fault 'rain'"),
            ("sim --jobs 0", "must be 1 to 256"),
            ("sim --soak 0 --out d", "hours above 0"),
            ("sim --soak nan --out d", "hours above 0"),
            ("sim --soak 1", "--out"),
            ("sim --soak 1 --out d --stop", "cannot be used with"),
            ("sim --soak 1 --out d --shrink 1", "cannot be used with"),
            ("sim --shrink 1 --seed 2", "cannot be used with"),
            ("sim --replay f --ops 3", "cannot be used with"),
            ("sim --workload-version 0", "workload version 0 is not that of this program"),
            ("sim --workload-version x", "must be a number"),
        ] {
            let refusal = parse(line).err().unwrap_or_else(|| panic!("'{line}' is taken"));
            assert!(refusal.contains(part), "{line}: {refusal}");
        }
        assert!(parse("sim --seed 0").is_ok());
    }

    #[test]
    fn seeds_that_run_over_the_last_are_refused() {
        let arguments = parse(&format!("sim --seed {} --seeds 2", u64::MAX)).unwrap();
        assert!(matches!(run(arguments), Err(Failure::Usage { .. })));
    }
}
