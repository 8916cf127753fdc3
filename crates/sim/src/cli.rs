//! `oort sim`: runs seeds, replays stories and shrinks failures, and says what came of them.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::check::CHECKERS;
use crate::cluster::{run as simulate, Report, Setup};
use crate::parallel::{in_order, News};
use crate::shrink::{shrink, Shrunk, Size};
use crate::story::{Story, NODES_MAX};
use crate::trace::show_time;

/// Which seeds to run, and how to print what came of them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first seed and what all have in common.
    pub first: Setup,
    /// How many consecutive seeds. The last one is at most `u64::MAX`.
    pub seeds: u64,
    /// Print one JSON object per seed instead of text.
    pub json: bool,
    /// Run no seed behind the first that breaks a promise.
    pub stops: bool,
    /// Threads.
    pub jobs: usize,
}

/// The fewest and the most machines a simulation takes.
pub const NODES: std::ops::RangeInclusive<usize> = 1..=NODES_MAX;

/// Runs the seeds; prints a summary of each, or of all, in their order. Returns true if all promises were kept.
///
/// Errors: `out` cannot be written; no further seed is run then.
pub fn run(options: &Options, out: &mut dyn Write) -> io::Result<bool> {
    let mut printer = Printer {
        out,
        shows_progress: options.seeds > 1 && io::stderr().is_terminal(),
        totals: Totals::default(),
        is_over: false,
        outcome: Ok(()),
    };
    let halt = AtomicBool::new(false);
    let setup = |index: u64| Setup { seed: options.first.seed + index, ..options.first.clone() };
    in_order(
        options.jobs,
        options.seeds,
        &halt,
        |index| simulate(&setup(index)),
        |news| {
            let News::Done { index, result } = news else { return };
            if !printer.is_over {
                printer.take(options, &setup(index), &result);
            }
            if printer.is_over {
                halt.store(true, Ordering::Relaxed);
            }
        },
    );
    printer.end(options)
}

struct Printer<'a> {
    out: &'a mut dyn Write,
    shows_progress: bool,
    totals: Totals,
    /// Nothing more is printed or counted.
    is_over: bool,
    outcome: io::Result<()>,
}

impl Printer<'_> {
    fn take(&mut self, options: &Options, setup: &Setup, report: &Report) {
        self.totals.add(report);
        let has_failed = !report.violations.is_empty();
        let text = if options.json {
            format!("{}\n", to_json(setup, report))
        } else if options.seeds == 1 || has_failed {
            summary(setup, report)
        } else {
            String::new()
        };
        self.outcome = self.out.write_all(text.as_bytes());
        self.is_over = self.outcome.is_err() || options.stops && has_failed;
        if self.shows_progress {
            progress(&format!("\r{} seeds, {} failed ", self.totals.seeds, self.totals.failed));
        }
    }

    fn end(self, options: &Options) -> io::Result<bool> {
        if self.shows_progress {
            progress("\n");
        }
        self.outcome?;
        if options.seeds > 1 && !options.json {
            writeln!(self.out, "{}", self.totals.text())?;
        }
        Ok(self.totals.failed == 0)
    }
}

fn progress(text: &str) {
    // Whether progress shows is not worth failing for.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Replays a story, and says whether the same came of it. Returns true if all promises were kept.
pub fn replay(story: &Story, trace: bool, json: bool, out: &mut dyn Write) -> io::Result<bool> {
    let setup = Setup { trace, tells: !json, ..story.setup.clone() };
    let report = simulate(&setup);
    if json {
        writeln!(out, "{}", to_json(&setup, &report))?;
    } else {
        write!(out, "{}{}", summary(&setup, &report), told(&report))?;
        writeln!(out, "{}", comparison(story, &report))?;
    }
    Ok(report.violations.is_empty())
}

/// What a replay was like beside its story.
fn comparison(story: &Story, report: &Report) -> String {
    let checker = &story.checker;
    let is_broken = report.violations.iter().any(|violation| violation.checker == checker);
    match (is_broken, report.hash == story.hash) {
        (true, true) => format!("replayed as told: {checker} is broken, event by event the same"),
        (true, false) => format!(
            "{checker} is broken as told, in another course of events: the program or the story's head has changed \
             since"
        ),
        (false, true) => format!("the same events, but {checker} is not broken any more: the checkers have changed"),
        (false, false) => format!(
            "{checker} is not broken any more: the program has changed since the story was written, or its head"
        ),
    }
}

/// Shrinks the failure of `setup` and prints what is left. `None`: it does not fail.
pub fn run_shrink(
    setup: &Setup,
    jobs: usize,
    interrupted: &AtomicBool,
    out: &mut dyn Write,
) -> io::Result<Option<Shrunk>> {
    let is_terminal = io::stderr().is_terminal();
    let mut last = None;
    let mut note = |runs: u64, size: Size| {
        if is_terminal {
            progress(&format!("\r{runs} runs: {}   ", size.text()));
        } else if last != Some(size) {
            progress(&format!("{runs} runs: {}\n", size.text()));
        }
        last = Some(size);
    };
    let shrunk = shrink(setup, jobs, interrupted, &mut note);
    if is_terminal && last.is_some() {
        progress("\n");
    }
    match &shrunk {
        None => {
            writeln!(out, "seed {} keeps all promises: there is nothing to shrink", setup.seed)?;
            writeln!(out, "  {}", setup.command())?;
        }
        Some(shrunk) => write!(out, "{}", shrunk.text())?,
    }
    Ok(shrunk)
}

impl Size {
    fn text(&self) -> String {
        let Size { operations, strikes, faults, nodes } = self;
        format!("{operations} operations, {strikes} strikes of {faults} faults, {nodes} nodes")
    }
}

impl Shrunk {
    /// What is left, told in words, and the command that replays it.
    pub fn text(&self) -> String {
        let cut_short = if self.is_cut_short { " (cut short: there may be more to leave out)" } else { "" };
        format!(
            "{}\nFrom {}\nto   {}, in {} runs{cut_short}.\nThe smallest that still breaks {}:\n  {}\n",
            self.story.text,
            self.before.text(),
            self.after.text(),
            self.runs,
            self.story.checker,
            self.story.setup.command()
        )
    }
}

/// The stories in words.
fn told(report: &Report) -> String {
    report.told.iter().map(|told| format!("\n{told}\n")).collect()
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
