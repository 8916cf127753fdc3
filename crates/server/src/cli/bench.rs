//! `oort bench`: what this program can do on this machine, without a cluster.

mod harness;
mod plot;
mod report;

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{cannot_write, print, write_file, Failure};
use harness::{measure, Setup};

const OBJECTS: std::ops::RangeInclusive<i64> = 1..=1_000_000;
const SECONDS_MIN: f64 = 0.01;
const SECONDS_MAX: f64 = 600.0;

/// Measure what this program can do on this machine, without a cluster
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Aso(Aso),
}

/// How fast are active objects, and what memory do they take?
///
/// Asks one node, in this process and on one thread, over a store in memory: no network and no disk. Gets of a plain
/// value are compared with gets of active objects whose handlers do more and more, and bytes per object are measured by
/// the number of objects. These are figures 2(a) and 2(b) of the Comet paper.
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort bench aso
  oort bench aso --seconds 0.5 --objects 10000       a look
  oort bench aso --csv aso.csv --svg aso.svg

Columns of the tables:
  instructions    bytecode instructions of one call, as the node counts them
  µs per get      processor time; the last column with the bucket property aso_fuel = safepoints
  stored          length of the object's row, key included
  sandbox         what the sandbox takes for loaded objects beyond an empty one, garbage included
  resident        growth of this process's resident memory: rows, the node's tables, the sandbox")]
struct Aso {
    /// Processor time to spend on each rate: 0.01 to 600
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// The most objects that are stored and loaded at once: 1 to 1000000. They take about 5 KB each
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(OBJECTS))]
    objects: u32,
    /// Also write the figures here, in place of any file of this name
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Also draw them here
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Aso(arguments) => run_aso(arguments),
    }
}

fn run_aso(arguments: Aso) -> Result<(), Failure> {
    let Aso { seconds, objects, csv, svg } = arguments;
    for path in [&csv, &svg].into_iter().flatten() {
        // Better now than after the work.
        fs::write(path, "").map_err(|error| cannot_write(path, &error))?;
    }
    let setup = Setup { time: Duration::from_secs_f64(seconds), objects };
    let shows_progress = std::io::stderr().is_terminal();
    let figures = measure(&setup, |doing| {
        if shows_progress {
            eprint!("\r{doing:<60}");
            // Only a progress line: whether it shows is not worth failing for.
            let _ = std::io::stderr().flush();
        }
    });
    if shows_progress {
        eprintln!();
    }
    let figures = figures.map_err(|text| Failure::Failed { text })?;
    print(report::tables(&figures).as_bytes())?;
    for (path, text) in [(csv, report::csv(&figures)), (svg, plot::svg(&figures))] {
        let Some(path) = path else { continue };
        write_file(&path, &text)?;
    }
    Ok(())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (SECONDS_MIN..=SECONDS_MAX).contains(&seconds) => Ok(seconds),
        _ => Err(format!("must be {SECONDS_MIN} to {SECONDS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::harness::{measure, Setup, INSTRUCTIONS};
    use super::{plot, report};
    use std::time::Duration;

    #[test]
    fn more_instructions_take_longer_and_all_texts_come_out() {
        let setup = Setup { time: Duration::from_millis(30), objects: 20 };
        let figures = measure(&setup, |_| {}).unwrap();
        let speeds = &figures.speeds;
        assert_eq!(speeds.len(), 3 + INSTRUCTIONS.len());
        assert!(speeds[3..].windows(2).all(|pair| pair[0].get_us < pair[1].get_us), "{speeds:?}");
        for (speed, goal) in speeds[3..].iter().zip(INSTRUCTIONS) {
            let (counted, goal) = (f64::from(speed.instructions), f64::from(goal));
            assert!((counted / goal - 1.0).abs() < 0.02, "{counted} instead of {goal}");
        }
        let sizes: Vec<u32> = figures.memories.iter().map(|memory| memory.objects).collect();
        assert_eq!(sizes, [1, 10, 20, 1, 10, 20]);
        // A KB of state is there twice as often: stored, and loaded.
        let (small, large) = (&figures.memories[2], &figures.memories[5]);
        assert!(small.stored_bytes + 900.0 < large.stored_bytes, "{figures:?}");
        assert!(small.sandbox_bytes + 900.0 < large.sandbox_bytes, "{figures:?}");

        let tables = report::tables(&figures);
        assert!(tables.contains("| plain value | 0 | "), "{tables}");
        assert_eq!(
            tables.lines().filter(|line| line.starts_with("| ")).count(),
            (2 + 6) + 2 * (2 + 3),
            "{tables}"
        );
        let csv = report::csv(&figures);
        assert_eq!(csv.lines().count(), 1 + figures.lines());
        let columns = csv.lines().next().unwrap().matches(',').count();
        assert!(csv.lines().all(|line| line.matches(',').count() == columns), "{csv}");
        let svg = plot::svg(&figures);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
