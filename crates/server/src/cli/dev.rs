//! `oort dev`: see [`crate::dev`].

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::dev::{self, DevError, FirstPorts, Home, Request};

const AFTER: &str = "\
Examples:
  oort dev                      data stay in ~/.local/share/oort/dev
  oort dev --ephemeral          data are removed at the end
  oort dev --nodes 5 --dir ./five --redis-port 7000
  OORT_LOG=debug oort dev       an option of 'oort start', for all nodes

The running nodes are listed in the file cluster.json in the directory. A node
that dies is not restarted; the command that does it is printed. Ctrl-C stops
the nodes that this command started, and leaves those running that were
started by hand; a second Ctrl-C kills them.";

/// Start a cluster of real processes on this machine
///
/// Node 1 listens on the ports given, node 2 on the next ones, and so on; a port that is taken is replaced by a free
/// one. Prints 'ready' and all addresses when the cluster accepts data.
#[derive(Args)]
#[command(after_help = AFTER)]
pub struct Arguments {
    /// How many nodes [default: as many as the directory has, or 3]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=dev::NODES_MAX as i64))]
    nodes: Option<u16>,
    /// Where configuration, logs and data are kept [default: oort/dev in your data directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use a temporary directory and remove it at the end
    #[arg(long, conflicts_with = "dir")]
    ephemeral: bool,
    /// Redis port of node 1
    #[arg(long, value_name = "PORT", default_value_t = dev::DEFAULT_REDIS_PORT)]
    redis_port: u16,
    /// HTTP port of node 1
    #[arg(long, value_name = "PORT", default_value_t = 8098)]
    http_port: u16,
    /// Peer port of node 1
    #[arg(long, value_name = "PORT", default_value_t = 7946)]
    peer_port: u16,
    /// When writes reach the disk: before they are acknowledged (batch), or a little later (interval)
    #[arg(long, value_name = "MODE", env = "OORT_SYNC", value_parser = ["batch", "interval"])]
    sync: Option<String>,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let home = match (arguments.dir, arguments.ephemeral) {
        (Some(dir), _) => Home::At(dir),
        (None, true) => Home::Ephemeral,
        (None, false) => Home::Default,
    };
    let first_ports =
        FirstPorts { redis: arguments.redis_port, http: arguments.http_port, peer: arguments.peer_port };
    let request = Request { nodes: arguments.nodes, home, first_ports, sync: arguments.sync };
    dev::run(&request).map_err(|error| {
        let text = error.to_string();
        match error {
            DevError::OtherSize { .. } | DevError::NoHome | DevError::Ports { .. } => Failure::Usage { text },
            _ => Failure::Failed { text },
        }
    })
}
