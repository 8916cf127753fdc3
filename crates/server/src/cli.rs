//! The command line: reads arguments, calls what they ask for, and turns the outcome into texts and an exit code.
//!
//! Commands on data and the cluster talk to a node over the Redis protocol, so they show nothing that another client
//! could not get. Read next: `cli::start` (one node), `crate::dev` (a local cluster), `cli::data`.

mod aso;
mod bench;
mod bucket;
mod cluster;
mod data;
mod dev;
mod node;
mod ring;
mod sim;
mod start;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::ClientError;

const EXAMPLES: &str = "\
Examples:
  oort dev                             a cluster of three nodes on this machine; Ctrl-C stops it
  oort put greeting hello              store a value
  oort get greeting                    read it back
  oort aso put counter counter.lua     store an object with code of its own
  oort bucket set carts n=3 w=1        a bucket that accepts writes with one node left
  oort cluster status                  nodes, their health and their load
  oort start --config /etc/oort.toml   one node, as a service runs it

Exit codes:
  0  done
  1  the operation failed, or nothing was found
  2  wrong usage or configuration
  3  no node could be reached";

/// A leaderless, always-writable key-value store that speaks the Redis protocol and Riak's HTTP API.
#[derive(Parser)]
#[command(name = "oort", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(dev::Arguments),
    Start(start::Arguments),
    Get(data::Get),
    Put(data::Put),
    Del(data::Del),
    Aso(aso::Arguments),
    Bucket(bucket::Arguments),
    Cluster(cluster::Arguments),
    Ring(ring::Arguments),
    Sim(sim::Arguments),
    Bench(bench::Arguments),
}

/// Why a command ends with another exit code than 0.
#[derive(Debug)]
pub enum Failure {
    /// The operation was refused or failed, or found nothing; the text says why. Exit code 1.
    Failed { text: String },
    /// The arguments or the configuration must be corrected. Exit code 2.
    Usage { text: String },
    /// There is no node there. Exit code 3.
    Unreachable { text: String },
    /// Whoever read the output stopped reading: as if done.
    OutputClosed,
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = match cli.command {
        Command::Dev(arguments) => dev::run(arguments),
        Command::Start(arguments) => start::run(arguments),
        Command::Get(arguments) => data::get(arguments),
        Command::Put(arguments) => data::put(arguments),
        Command::Del(arguments) => data::del(arguments),
        Command::Aso(arguments) => aso::run(arguments),
        Command::Bucket(arguments) => bucket::run(arguments),
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Ring(arguments) => ring::run(arguments),
        Command::Sim(arguments) => sim::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
    };
    match outcome {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

impl Failure {
    fn report(self) -> ExitCode {
        let (code, text) = match self {
            Failure::OutputClosed => (0, String::new()),
            Failure::Failed { text } => (1, text),
            Failure::Usage { text } => (2, text),
            Failure::Unreachable { text } => (3, text),
        };
        if !text.is_empty() {
            note(&text);
        }
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let text = error.to_string();
        match error {
            ClientError::Connect { .. } => Failure::Unreachable { text },
            ClientError::Lost { .. } | ClientError::Protocol { .. } => Failure::Failed { text },
        }
    }
}

/// Writes to standard output.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Failed { text: format!("standard output: {}", crate::config::words(&error)) },
    })
}

/// Writes a file that a command was asked for, in place of any of its name, and says so.
fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| cannot_write(path, &error))?;
    note(&format!("wrote {}", path.display()));
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed { text: format!("cannot write {}: {}", path.display(), crate::config::words(error)) }
}

/// Tells people something that is not the result. Nothing can be done if nobody listens.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "oort: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_defined() {
        Cli::command().debug_assert();
    }
}
