//! `oort ring`: what can be said about rings without a cluster. See `oort_sim::balance`.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use oort_core::placement::{PARTITIONS_MAX, PREFERENCE_MAX};
use oort_sim::balance::{csv, simulate, svg, table, Setup};

use super::{cannot_write, print, write_file, Failure};

const NODES: std::ops::RangeInclusive<i64> = 2..=1000;
const ZIPF_MAX: f64 = 2.0;

/// Try how rings spread load, without a cluster
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Simulate(Simulate),
}

/// Compare the three partitioning strategies: how evenly do they spread load?
///
/// Places many keys on rings of all three strategies (option 'strategy' of a cluster) and counts each key's requests at
/// all of its replicas. Efficiency is the mean node's load divided by the greatest: 1.0 is an even load. Strategies 1
/// and 2 are tried with 2, 4, 8, ... tokens per node, strategy 3 with as many partitions in all. This is figure 8 of
/// the Dynamo paper.
///
/// Prints a table; writes partitioning.csv and partitioning.svg, in place of files of these names. The same arguments
/// give the same numbers.
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort ring simulate --out /tmp/ring
  oort ring simulate --nodes 5 --replicas 3     what would my cluster get?
  oort ring simulate --partitions 16384         strategy 2 with the smallest partitions
  oort ring simulate --zipf 0.9                 a few keys get most requests

Columns of the table:
  tokens per node     T of strategies 1 and 2
  tokens              on the whole ring; less than nodes x T where two meet at one Redis slot
  bytes               what nodes send and store to agree on such a ring
  strategy 1, 2, 3    efficiency, mean of all seeds
  Q                   partitions of strategy 3, the power of two nearest to nodes x T")]
struct Simulate {
    /// S, nodes of the ring, all of the same weight: 2 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 30, value_parser = clap::value_parser!(u16).range(NODES))]
    nodes: u16,
    /// N, nodes that hold each key: 1 to 32, at most as many as there are nodes
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=PREFERENCE_MAX as i64))]
    replicas: u16,
    /// Keys per seed: 1 to 100000000. With few, chance alone makes loads uneven
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
    /// How uneven the keys' popularity is: the k-th gets requests in proportion to 1/k^EXPONENT, 0 to 2
    #[arg(long, value_name = "EXPONENT", default_value_t = 0.0, value_parser = zipf, allow_negative_numbers = true)]
    zipf: f64,
    /// Q of strategy 2, a power of two: 1 to 16384
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = partitions)]
    partitions: u16,
    /// The first seed: it decides the nodes' tokens and the keys
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// How many seeds to average, from the first on: 1 to 10000
    #[arg(long, value_name = "COUNT", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    seeds: u32,
    /// Where to write the files; made if it is missing
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Simulate(arguments) => run_simulation(arguments),
    }
}

fn run_simulation(arguments: Simulate) -> Result<(), Failure> {
    let Simulate { nodes, replicas, keys, zipf, partitions, seed, seeds, out } = arguments;
    if replicas > nodes {
        let text = format!("--replicas {replicas}: there are only {nodes} nodes");
        return Err(Failure::Usage { text });
    }
    // Better now than after the work.
    fs::create_dir_all(&out).map_err(|error| cannot_write(&out, &error))?;
    let setup = Setup { nodes, replicas, keys, zipf, partitions, seed, seeds };
    let shows_progress = std::io::stderr().is_terminal();
    let points = simulate(&setup, |done| {
        if shows_progress {
            eprint!("\r{done} of {seeds} seeds ");
            // Only a progress line: whether it shows is not worth failing for.
            let _ = std::io::stderr().flush();
        }
    });
    if shows_progress {
        eprintln!();
    }
    print(table(&setup, &points).as_bytes())?;
    for (name, text) in [("partitioning.csv", csv(&points)), ("partitioning.svg", svg(&setup, &points))] {
        write_file(&out.join(name), &text)?;
    }
    Ok(())
}

fn zipf(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(exponent) if (0.0..=ZIPF_MAX).contains(&exponent) => Ok(exponent),
        _ => Err(format!("must be 0 to {ZIPF_MAX}")),
    }
}

fn partitions(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(count) if count.is_power_of_two() && count <= PARTITIONS_MAX => Ok(count),
        _ => Err(format!("must be a power of two, 1 to {PARTITIONS_MAX}")),
    }
}
