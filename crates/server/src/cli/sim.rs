//! `oort sim`: a whole cluster in one thread, with faults, judged by checkers. See the crate `oort_sim`.

mod detector;

use clap::{Args, Subcommand};
use oort_sim::cli::{Options, NODES};
use oort_sim::faults::Faults;

use super::Failure;

/// Simulate whole clusters with faults, and check every promise
///
/// A seed is one history: the same seed gives the same events, on any machine. Exit code 1: a promise was broken; the
/// command that replays the seed is printed.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  oort sim --seed 1
  oort sim --seed 1 --trace | less         every event of that history
  oort sim --seeds 500                     seeds 1 to 500
  oort sim --seeds 100 --faults crash,split --nodes 5
  oort sim detector                        how fast are crashes noticed?

Faults: delay, loss, duplicate, reorder, split, oneway, skew, crash, restart,
slow, disk-full, corrupt; or all, or none")]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// How many seeds to run, one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// How many nodes [default: drawn from the seed]
    #[arg(long, value_name = "COUNT", value_parser = nodes)]
    nodes: Option<usize>,
    /// Client operations per seed
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    ops: usize,
    /// What goes wrong: all, none, or a list
    #[arg(long, value_name = "FAULTS", default_value = "all")]
    faults: Faults,
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
}

#[derive(Subcommand)]
enum Command {
    Detector(detector::Arguments),
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(Command::Detector(arguments)) = arguments.command {
        return detector::run(arguments);
    }
    let Arguments { seed, seeds, nodes, ops, faults, active, strategy, trace, json, command: _ } = arguments;
    match oort_sim::cli::run(&Options { seed, seeds, nodes, ops, faults, active, strategy, trace, json }) {
        0 => Ok(()),
        _ => Err(Failure::Failed { text: "a promise was broken".into() }),
    }
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(nodes) if NODES.contains(&nodes) => Ok(nodes),
        _ => Err(format!("must be {} to {}", NODES.start(), NODES.end())),
    }
}
