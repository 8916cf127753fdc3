//! What the Redis port counts for `INFO`: commands by name with their time and errors, hits and misses, bytes, rates.
//!
//! A command's time is from its start to its reply, waiting for other nodes included, in turns of the event loop: what
//! a turn answers in itself counts as nothing. (In Redis it is processor time.)

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::table::{Spec, COMMANDS, READ};
use crate::resp::Value;

/// The most kinds of errors that are told apart; others are counted as `other`.
const ERROR_KINDS_MAX: usize = 64;
/// Rates are those of the last one to two spans of so many microseconds.
const RATE_SPAN_US: u64 = 1_000_000;

/// A command that was started: which, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Its place in [`COMMANDS`]; `u8::MAX`: it is none.
    command: u8,
    /// The place of its subcommand, from 1; 0: it has none.
    subcommand: u8,
    /// It was refused before it was run.
    is_rejected: bool,
    /// The lower bits of the time, in microseconds.
    start_us: u32,
}

impl Mark {
    /// Of bytes that are no command.
    pub const NONE: Mark = Mark { command: u8::MAX, subcommand: 0, is_rejected: false, start_us: 0 };

    /// Of a command that was just started.
    pub fn new(spec: &'static Spec) -> Mark {
        Mark { command: super::table::place(spec), ..Mark::NONE }
    }

    pub fn rejected(self) -> Mark {
        Mark { is_rejected: true, ..self }
    }

    /// Of subcommand `place` of this command.
    pub fn of_subcommand(self, place: usize) -> Mark {
        Mark { subcommand: u8::try_from(place + 1).unwrap_or(0), ..self }
    }

    /// The same, started now.
    pub fn at(self, now_us: u64) -> Mark {
        Mark { start_us: now_us as u32, ..self }
    }

    fn spec(self) -> Option<&'static Spec> {
        COMMANDS.get(self.command as usize)
    }
}

/// What is known of one command.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Row {
    calls: u64,
    usec: u64,
    rejected: u64,
    failed: u64,
}

/// Counters that rates are made of.
#[derive(Clone, Copy, Default)]
struct Sample {
    at_us: u64,
    commands: u64,
    input_bytes: u64,
    output_bytes: u64,
}

/// Rates per second.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Rates {
    pub commands: u64,
    pub input_kib: f64,
    pub output_kib: f64,
}

#[derive(Default)]
struct Counted {
    /// By place in [`COMMANDS`], then by subcommand.
    rows: Vec<Vec<Row>>,
    errors: BTreeMap<String, u64>,
    total: Totals,
    before: Sample,
    last: Sample,
}

/// Sums over all commands since the node started, or since `CONFIG RESETSTAT`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Totals {
    pub commands: u64,
    pub errors: u64,
    pub hits: u64,
    pub misses: u64,
    pub input_bytes: u64,
    pub output_bytes: u64,
}

/// The counters of one event loop.
#[derive(Default)]
pub struct Stats(RefCell<Counted>);

/// The counters, and the time now in microseconds.
#[derive(Clone, Copy)]
pub struct Clerk<'a> {
    pub stats: &'a Stats,
    pub now_us: u64,
}

impl Clerk<'_> {
    /// As [`Stats::answered`], now.
    pub fn answered(self, mark: Mark, reply: &Value) {
        self.stats.answered(mark, reply, self.now_us);
    }
}

impl Stats {
    /// Counts a command that was answered with `reply`.
    pub fn answered(&self, mark: Mark, reply: &Value, now_us: u64) {
        let mut counted = self.0.borrow_mut();
        let counted = &mut *counted;
        counted.total.commands += 1;
        let is_error = matches!(reply, Value::Error(_));
        if let Value::Error(text) = reply {
            counted.total.errors += 1;
            let kind = text.split(' ').next().unwrap_or_default();
            match counted.errors.get_mut(kind) {
                Some(count) => *count += 1,
                None => {
                    let is_room = counted.errors.len() < ERROR_KINDS_MAX;
                    *counted.errors.entry(if is_room { kind } else { "other" }.into()).or_default() += 1;
                }
            }
        }
        let Some(spec) = mark.spec() else { return };
        let (hits, misses) =
            if spec.flags & READ != 0 && spec.keys.first > 0 { found(reply) } else { (0, 0) };
        counted.total.hits += hits;
        counted.total.misses += misses;
        let (command, subcommand) = (mark.command as usize, mark.subcommand as usize);
        if counted.rows.len() <= command {
            counted.rows.resize(COMMANDS.len(), Vec::new());
        }
        let rows = &mut counted.rows[command];
        if rows.len() <= subcommand {
            rows.resize(subcommand + 1, Row::default());
        }
        let row = &mut rows[subcommand];
        if mark.is_rejected {
            row.rejected += 1;
            return;
        }
        row.calls += 1;
        row.usec += (now_us as u32).wrapping_sub(mark.start_us) as u64;
        row.failed += is_error as u64;
    }

    /// Counts bytes that clients have sent.
    pub fn received(&self, bytes: u64) {
        self.0.borrow_mut().total.input_bytes += bytes;
    }

    /// Counts bytes that clients have taken.
    pub fn sent(&self, bytes: u64) {
        self.0.borrow_mut().total.output_bytes += bytes;
    }

    /// Notes what was counted until now, once in a span, for the rates.
    pub fn sample(&self, now_us: u64) {
        let mut counted = self.0.borrow_mut();
        if now_us < counted.last.at_us + RATE_SPAN_US {
            return;
        }
        let Totals { commands, input_bytes, output_bytes, .. } = counted.total;
        counted.before = counted.last;
        counted.last = Sample { at_us: now_us, commands, input_bytes, output_bytes };
    }

    pub fn totals(&self) -> Totals {
        self.0.borrow().total
    }

    pub fn rates(&self, now_us: u64) -> Rates {
        let counted = self.0.borrow();
        let (before, total) = (counted.before, counted.total);
        let span_us = now_us.saturating_sub(before.at_us).max(1);
        let rate = |now: u64, before: u64| (now.saturating_sub(before)) as f64 * 1e6 / span_us as f64;
        Rates {
            commands: rate(total.commands, before.commands) as u64,
            input_kib: rate(total.input_bytes, before.input_bytes) / 1024.0,
            output_kib: rate(total.output_bytes, before.output_bytes) / 1024.0,
        }
    }

    /// Starts all of it anew.
    pub fn reset(&self, now_us: u64) {
        let fresh = Sample { at_us: now_us, ..Sample::default() };
        *self.0.borrow_mut() = Counted { before: fresh, last: fresh, ..Counted::default() };
    }

    /// The lines of `INFO commandstats`.
    pub fn command_lines(&self, mut visit: impl FnMut(String, String)) {
        for (spec, rows) in COMMANDS.iter().zip(&self.0.borrow().rows) {
            for (place, row) in rows.iter().enumerate().filter(|(_, row)| **row != Row::default()) {
                let sub = place.checked_sub(1).and_then(|place| spec.subcommands.get(place));
                let name = match sub {
                    Some(sub) => format!("{}|{}", spec.name, sub.name),
                    None => spec.name.to_string(),
                };
                let Row { calls, usec, rejected, failed } = row;
                let each = *usec as f64 / (*calls).max(1) as f64;
                let text = format!(
                    "calls={calls},usec={usec},usec_per_call={each:.2},rejected_calls={rejected},failed_calls={failed}"
                );
                visit(format!("cmdstat_{name}"), text);
            }
        }
    }

    /// The lines of `INFO errorstats`.
    pub fn error_lines(&self, mut visit: impl FnMut(String, String)) {
        for (kind, count) in &self.0.borrow().errors {
            visit(format!("errorstat_{kind}"), format!("count={count}"));
        }
    }
}

/// How many keys a reading command found and did not find, by its reply.
fn found(reply: &Value) -> (u64, u64) {
    match reply {
        Value::Nothing | Value::Error(_) => (0, 0),
        Value::Null | Value::Integer(-2) => (0, 1),
        Value::Simple(text) if text == "none" => (0, 1),
        Value::Array(values) if values.iter().all(|value| matches!(value, Value::Bulk(_) | Value::Null)) => {
            let misses = values.iter().filter(|value| **value == Value::Null).count();
            ((values.len() - misses) as u64, misses as u64)
        }
        _ => (1, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::table::find;

    fn mark(name: &str) -> Mark {
        Mark::new(find(name.as_bytes()).unwrap()).at(1000)
    }

    fn lines(stats: &Stats) -> Vec<String> {
        let mut lines = Vec::new();
        stats.command_lines(|name, text| lines.push(format!("{name}:{text}")));
        stats.error_lines(|name, text| lines.push(format!("{name}:{text}")));
        lines
    }

    #[test]
    fn commands_are_counted_by_name() {
        let stats = Stats::default();
        stats.answered(mark("get"), &Value::Null, 1500);
        stats.answered(mark("get"), &Value::text("v"), 2000);
        stats.answered(mark("get").rejected(), &Value::error("ERR wrong number"), 1000);
        stats.answered(mark("incr"), &Value::error("NOQUORUM x"), 1000);
        stats.answered(mark("config").of_subcommand(1), &Value::OK, 1000);
        stats.answered(
            mark("mget"),
            &Value::Array(vec![Value::Null, Value::text("v"), Value::text("w")]),
            1000,
        );
        stats.answered(Mark::NONE, &Value::error("ERR unknown command"), 1000);
        let want = [
            "cmdstat_get:calls=2,usec=1500,usec_per_call=750.00,rejected_calls=1,failed_calls=0",
            "cmdstat_mget:calls=1,usec=0,usec_per_call=0.00,rejected_calls=0,failed_calls=0",
            "cmdstat_incr:calls=1,usec=0,usec_per_call=0.00,rejected_calls=0,failed_calls=1",
            "cmdstat_config|resetstat:calls=1,usec=0,usec_per_call=0.00,rejected_calls=0,failed_calls=0",
            "errorstat_ERR:count=2",
            "errorstat_NOQUORUM:count=1",
        ];
        assert_eq!(lines(&stats), want);
        let totals = stats.totals();
        assert_eq!((totals.commands, totals.errors, totals.hits, totals.misses), (7, 3, 3, 2));
        stats.reset(5);
        assert_eq!((lines(&stats).len(), stats.totals()), (0, Totals::default()));
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let stats = Stats::default();
        stats.reset(0);
        for second in 1..=5 {
            (0..100 * second).for_each(|_| stats.answered(Mark::NONE, &Value::OK, 0));
            stats.received(2048);
            stats.sample(second * 1_000_000);
        }
        let rates = stats.rates(5_000_000);
        assert_eq!(rates, Rates { commands: 500, input_kib: 2.0, output_kib: 0.0 });
    }

    #[test]
    fn kinds_of_errors_are_bounded() {
        let stats = Stats::default();
        (0..500).for_each(|i| stats.answered(Mark::NONE, &refusal(i), 0));
        assert_eq!(lines(&stats).len(), ERROR_KINDS_MAX + 1);
    }

    fn refusal(i: u32) -> Value {
        crate::commands::errors::refusal(format!("E{i} x"))
    }
}
