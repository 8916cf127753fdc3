//! `oort sim detector`: how fast clusters notice crashes, and at what cost. See `oort_sim::detection`.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use oort_core::config::NodeConfig;
use oort_sim::detection::{csv, measure, table, Setup};

use crate::cli::{note, print, Failure};

const NODES: std::ops::RangeInclusive<usize> = 3..=1000;

/// Measure how fast clusters of any size notice a crash
///
/// Runs clusters of nodes that have nothing else to do, all linked to each other. Counts the messages of a quiet
/// cluster; takes the power from some nodes, one after the other, without closing their links; then loses messages and
/// counts living nodes that are taken for silent.
///
/// Prints a table; writes detection.csv, in place of a file of this name. The same arguments give the same numbers.
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort sim detector --out /tmp
  oort sim detector --nodes 5,50 --suspect-ms 200
  oort sim detector --nodes 100 --loss 50            5% of messages get lost")]
pub struct Arguments {
    /// Sizes of clusters, 3 to 1000. A thousand take half a minute
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "10,100,1000", value_parser = nodes)]
    nodes: Vec<usize>,
    /// As in the configuration
    #[arg(long, value_name = "MS", default_value_t = NodeConfig::default().gossip_ms, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    gossip_ms: u64,
    /// As in the configuration
    #[arg(long, value_name = "MS", default_value_t = NodeConfig::default().suspect_ms, value_parser = clap::value_parser!(u64).range(5..=60_000))]
    suspect_ms: u64,
    /// Of a thousand messages, how many get lost
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=1000))]
    loss: u64,
    /// For how long they get lost, added up over the nodes
    #[arg(long, value_name = "HOURS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    node_hours: u64,
    /// Decides chances
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Where to write the file; made if it is missing
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { nodes, gossip_ms, suspect_ms, loss, node_hours, seed, out } = arguments;
    let path = out.join("detection.csv");
    let cannot_write = |error: std::io::Error| {
        let why = crate::config::words(&error);
        Failure::Failed { text: format!("cannot write {}: {why}", path.display()) }
    };
    // Better now than after the work.
    fs::create_dir_all(&out).map_err(cannot_write)?;
    let node_seconds = node_hours * 3600;
    let setup = |nodes: usize| Setup {
        gossip_ms,
        suspect_ms,
        loss_per_mille: loss,
        node_seconds,
        seed,
        ..Setup::new(nodes)
    };
    let measured: Vec<_> = nodes.iter().map(|&nodes| measure(&setup(nodes))).collect();
    print(table(&setup(nodes[0]), &measured).as_bytes())?;
    fs::write(&path, csv(&measured)).map_err(cannot_write)?;
    note(&format!("wrote {}", path.display()));
    Ok(())
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(nodes) if NODES.contains(&nodes) => Ok(nodes),
        _ => Err(format!("must be {} to {}", NODES.start(), NODES.end())),
    }
}
