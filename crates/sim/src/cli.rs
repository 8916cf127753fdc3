//! `oort sim`: runs seeds and says what came of them.

use std::io::{IsTerminal, Write};

use serde_json::json;

use crate::check::CHECKERS;
use crate::cluster::{run as simulate, Report, Setup};
use crate::faults::Faults;
use crate::trace::show_time;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first seed.
    pub seed: u64,
    /// How many consecutive seeds.
    pub seeds: u64,
    /// Machines; drawn from each seed if `None`.
    pub nodes: Option<usize>,
    /// Client operations per seed.
    pub ops: usize,
    pub faults: Faults,
    /// Part of the operations go to active objects.
    pub active: bool,
    /// Of the partitioning strategies; drawn from each seed if `None`.
    pub strategy: Option<u8>,
    /// Print every event.
    pub trace: bool,
    /// Print one JSON object per seed instead of text.
    pub json: bool,
}

/// The fewest and the most machines a simulation takes.
pub const NODES: std::ops::RangeInclusive<usize> = 1..=64;

/// Runs the seeds; prints a summary of each, or of all. Returns the process's exit code: 1 if a promise was broken.
pub fn run(options: &Options) -> u8 {
    let shows_progress = options.seeds > 1 && std::io::stderr().is_terminal();
    let mut totals = Totals::default();
    for seed in options.seed..options.seed.saturating_add(options.seeds) {
        let setup = Setup {
            seed,
            nodes: options.nodes,
            ops: options.ops,
            faults: options.faults,
            active: options.active,
            strategy: options.strategy,
            trace: options.trace,
            tweak: None,
        };
        let report = simulate(&setup);
        totals.add(&report);
        if options.json {
            println!("{}", to_json(&setup, &report));
        } else if options.seeds == 1 || !report.violations.is_empty() {
            print!("{}", summary(&setup, &report));
        }
        if shows_progress {
            eprint!("\r{} seeds, {} failed ", totals.seeds, totals.failed);
            // Only a progress line: whether it shows is not worth failing for.
            let _ = std::io::stderr().flush();
        }
    }
    if shows_progress {
        eprintln!();
    }
    if options.seeds > 1 && !options.json {
        println!("{}", totals.text());
    }
    (totals.failed > 0) as u8
}

#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    failed: u64,
    events: u64,
    virtual_us: u64,
    ops: usize,
    forgotten: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.failed += !report.violations.is_empty() as u64;
        self.events += report.events;
        self.virtual_us += report.virtual_us;
        self.forgotten += report.forgotten;
        self.ops += report.ops_ok + report.ops_failed + report.ops_disconnected;
    }

    fn text(&self) -> String {
        format!(
            "{} seeds: {} events, {} operations, {} dead copies forgotten, {} s of virtual time; {} seeds broke a \
             promise",
            self.seeds,
            self.events,
            self.ops,
            self.forgotten,
            self.virtual_us / 1_000_000,
            self.failed
        )
    }
}

/// A run in a few lines, with the whole story if a promise was broken.
pub fn summary(setup: &Setup, report: &Report) -> String {
    let strikes: Vec<String> =
        report.strikes.iter().map(|(fault, times)| format!("{fault} {times}")).collect();
    let mut text = format!(
        "seed {}: {} nodes, strategy {}, {} events, {} s of virtual time, agreed after {} s\n  \
         operations: {} ok, {} failed, {} disconnected; {} dead copies forgotten\n  faults: {}\n",
        report.seed,
        report.nodes,
        report.strategy,
        report.events,
        show_time(report.virtual_us).trim_start(),
        show_time(report.converged_us).trim_start(),
        report.ops_ok,
        report.ops_failed,
        report.ops_disconnected,
        report.forgotten,
        if strikes.is_empty() { "none struck".to_string() } else { strikes.join(", ") },
    );
    if report.violations.is_empty() {
        text += &format!("  all {} checkers hold\n", CHECKERS.len());
    }
    for violation in report.violations.iter().take(20) {
        let key = violation.key.as_ref().map_or(String::new(), |key| format!(" {key:?}"));
        text += &format!("  BROKEN {}{key}: {}\n", violation.checker, violation.detail);
    }
    if report.violations.len() > 20 {
        text += &format!("  and {} more\n", report.violations.len() - 20);
    }
    for story in &report.stories {
        text += story;
        text += "\n";
    }
    text += &format!("  trace hash {:016x}\n", report.hash);
    if !report.violations.is_empty() {
        text += &format!("  replay: {}\n", setup.command());
    }
    text
}

fn to_json(setup: &Setup, report: &Report) -> serde_json::Value {
    let violations: Vec<serde_json::Value> = report
        .violations
        .iter()
        .map(|violation| {
            json!({
                "checker": violation.checker,
                "key": violation.key.as_ref().map(|key| format!("{key:?}")),
                "detail": violation.detail,
            })
        })
        .collect();
    json!({
        "seed": report.seed,
        "nodes": report.nodes,
        "strategy": report.strategy,
        "events": report.events,
        "virtual_us": report.virtual_us,
        "converged_us": report.converged_us,
        "ops_ok": report.ops_ok,
        "ops_failed": report.ops_failed,
        "ops_disconnected": report.ops_disconnected,
        "dead_copies_forgotten": report.forgotten,
        "faults": report.strikes,
        "violations": violations,
        "hash": format!("{:016x}", report.hash),
        "replay": setup.command(),
    })
}
