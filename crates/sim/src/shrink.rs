//! Makes a failure smaller: fewer operations, faults, nodes and strikes that still break the same promise.
//!
//! Coarse steps come first, because each makes all further runs faster: fewer operations, no faults but few, fewer
//! nodes. Then single strikes and operations are left out, halves first, then quarters, down to one by one. All steps
//! are repeated until nothing more can go, for what was needed at first may be needless later. A candidate counts only
//! if the checker that was broken at first is broken again. The outcome is a [`Story`], which replays.
//!
//! Candidates are tried on several threads, and the first in their order that fails is taken: the result does not
//! depend on the number of threads.
//!
//! Source: delta debugging (Zeller and Hildebrandt, 2002). Differs: complements only, since a part alone hardly fails.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{run, Report, Setup};
use crate::faults::{Fault, Faults};
use crate::parallel::{in_order, News};
use crate::skips::{Ordinals, Skips};
use crate::story::Story;

/// The most runs that one failure is worth.
pub const RUNS_MAX: u64 = 20_000;
/// The most times that all steps are repeated.
const ROUNDS_MAX: usize = 5;

/// How far a failure has been made smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Operations of clients that are not skipped.
    pub operations: u64,
    /// Strikes that struck.
    pub strikes: u64,
    /// Faults in force.
    pub faults: usize,
    pub nodes: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left, told in words.
    pub story: Story,
    pub before: Size,
    pub after: Size,
    pub runs: u64,
    /// It was interrupted, or ran out of runs: there may be more to leave out.
    pub is_cut_short: bool,
}

/// Makes the failure of `setup` smaller, on `jobs` threads; `note` hears of every step. `None` if nothing fails.
///
/// When `interrupted` is set, the smallest found so far is returned.
pub fn shrink(
    setup: &Setup,
    jobs: usize,
    interrupted: &AtomicBool,
    note: &mut dyn FnMut(u64, Size),
) -> Option<Shrunk> {
    let setup = Setup { trace: false, tells: false, ..setup.clone() };
    let report = run(&setup);
    let checker = report.violations.first()?.checker;
    let before = size(&setup, &report);
    let mut shrinker = Shrinker { setup, report, checker, jobs, interrupted, runs: 1, note };
    shrinker.all_steps();
    let told = Setup { tells: true, ..shrinker.setup.clone() };
    let mut report = run(&told);
    // The checker concerned comes first in the story.
    report.violations.sort_by_key(|violation| violation.checker != checker);
    Some(Shrunk {
        story: Story::of(&shrinker.setup, &report)?,
        before,
        after: size(&shrinker.setup, &report),
        runs: shrinker.runs,
        is_cut_short: shrinker.is_over(),
    })
}

/// How much happens in a run.
fn size(setup: &Setup, report: &Report) -> Size {
    let skipped =
        |skips: &Ordinals, of: u64| (1..=of).filter(|ordinal| skips.contains(*ordinal)).count() as u64;
    Size {
        operations: setup.ops as u64 - skipped(&setup.skips.operations, setup.ops as u64),
        strikes: report.strikes.values().sum(),
        faults: report.in_force.map_or(0, |faults| faults.iter().count()),
        nodes: report.nodes,
    }
}

struct Shrinker<'a> {
    /// The smallest that fails.
    setup: Setup,
    report: Report,
    checker: &'static str,
    jobs: usize,
    interrupted: &'a AtomicBool,
    runs: u64,
    note: &'a mut dyn FnMut(u64, Size),
}

impl Shrinker<'_> {
    fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.runs >= RUNS_MAX
    }

    fn all_steps(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let before = self.setup.clone();
            self.fewer_operations();
            self.fewer_faults();
            self.fewer_nodes();
            self.fewer_strikes();
            self.single_operations();
            self.operations_behind_the_last();
            self.faults_by_name();
            if self.is_over() || (before.ops, before.nodes, &before.skips) == self.place() {
                break;
            }
        }
    }

    fn place(&self) -> (usize, Option<usize>, &Skips) {
        (self.setup.ops, self.setup.nodes, &self.setup.skips)
    }

    /// Takes the first of `candidates` that fails as the smallest. True if one does.
    fn take_first(&mut self, candidates: Vec<Setup>) -> bool {
        if candidates.is_empty() || self.is_over() {
            return false;
        }
        let halt = AtomicBool::new(false);
        let (mut runs, mut found) = (0, None);
        let (checker, interrupted) = (self.checker, self.interrupted);
        let left = RUNS_MAX - self.runs;
        let work = |index: u64| run(&candidates[index as usize]);
        in_order(self.jobs, candidates.len() as u64, &halt, work, |news| {
            if let News::Done { index, result } = news {
                runs += 1;
                let fails = result.violations.iter().any(|violation| violation.checker == checker);
                if fails && found.is_none() {
                    found = Some((index, result));
                }
            }
            if found.is_some() || runs >= left || interrupted.load(Ordering::Relaxed) {
                halt.store(true, Ordering::Relaxed);
            }
        });
        self.runs += runs;
        let has_found = found.is_some();
        if let Some((index, report)) = found {
            (self.setup, self.report) = (candidates[index as usize].clone(), report);
        }
        (self.note)(self.runs, size(&self.setup, &self.report));
        has_found
    }

    fn with_skips(&self, change: impl FnOnce(&mut Skips)) -> Setup {
        let mut setup = self.setup.clone();
        change(&mut setup.skips);
        setup
    }

    /// Ends the load earlier.
    fn fewer_operations(&mut self) {
        loop {
            let ops = self.setup.ops;
            let sizes = [ops / 16, ops / 8, ops / 4, ops / 2, ops * 3 / 4, ops * 7 / 8];
            let fewer = sizes.into_iter().filter(|size| *size > 0 && *size < ops);
            let candidates = fewer.map(|ops| Setup { ops, ..self.setup.clone() }).collect();
            if !self.take_first(candidates) {
                break;
            }
        }
    }

    /// Leaves whole faults out: all, all but one, then one by one.
    fn fewer_faults(&mut self) {
        let all: Vec<Fault> = self.report.in_force.map_or(Vec::new(), |faults| faults.iter().collect());
        let rest = self.setup.skips.faults;
        let skipped = |more: &dyn Fn(Fault) -> bool| {
            let names: Vec<Fault> =
                all.iter().copied().filter(|fault| more(*fault)).chain(rest.iter()).collect();
            self.with_skips(|skips| skips.faults = Faults::of(&names))
        };
        let mut candidates = Vec::new();
        if !all.is_empty() {
            candidates.push(skipped(&|_| true));
        }
        if all.len() > 1 {
            candidates.extend(all.iter().map(|kept| skipped(&|fault| fault != *kept)));
        }
        if self.take_first(candidates) {
            return;
        }
        for fault in all {
            let mut names: Vec<Fault> = self.setup.skips.faults.iter().collect();
            names.push(fault);
            let candidate = self.with_skips(|skips| skips.faults = Faults::of(&names));
            self.take_first(vec![candidate]);
        }
    }

    /// Another number of nodes is another world; of few nodes some fail as well. Single operations and strikes that
    /// were left out are other ones there.
    fn fewer_nodes(&mut self) {
        if !self.setup.skips.operations.is_empty() || !self.setup.skips.strikes.is_empty() {
            return;
        }
        let fewer = 1..self.report.nodes;
        let candidates = fewer.map(|nodes| Setup { nodes: Some(nodes), ..self.setup.clone() }).collect();
        self.take_first(candidates);
    }

    fn fewer_strikes(&mut self) {
        self.thin_out(self.report.strikes_drawn, |skips| &mut skips.strikes);
    }

    fn single_operations(&mut self) {
        self.thin_out(self.setup.ops as u64, |skips| &mut skips.operations);
    }

    /// Leaves out ever smaller parts of the ordinals 1 to `last`.
    fn thin_out(&mut self, last: u64, list: fn(&mut Skips) -> &mut Ordinals) {
        let skipped = list(&mut self.setup.skips.clone()).clone();
        let mut kept: Vec<u64> = (1..=last).filter(|ordinal| !skipped.contains(*ordinal)).collect();
        let mut chunk = kept.len();
        while chunk > 0 && !kept.is_empty() && !self.is_over() {
            let mut at = 0;
            while at < kept.len() {
                match self.without_next(&kept, (at, chunk), last, list) {
                    ControlFlow::Continue(taken) => {
                        // What stood before it does fail alone, and is not tried again.
                        at = taken;
                        kept.drain(at..(at + chunk).min(kept.len()));
                    }
                    ControlFlow::Break(()) => break,
                }
            }
            chunk = if chunk > 1 { chunk.div_ceil(2) } else { 0 };
        }
    }

    /// Leaves out the first part of `kept`, of those from `at` on, that can go. Returns where it began.
    fn without_next(
        &mut self,
        kept: &[u64],
        (at, chunk): (usize, usize),
        last: u64,
        list: fn(&mut Skips) -> &mut Ordinals,
    ) -> ControlFlow<(), usize> {
        let starts: Vec<usize> = (at..kept.len()).step_by(chunk).collect();
        let candidates = starts.iter().map(|start| {
            let part = *start..(start + chunk).min(kept.len());
            let mut left = kept.to_vec();
            left.drain(part);
            let skipped = (1..=last).filter(|ordinal| left.binary_search(ordinal).is_err()).collect();
            self.with_skips(|skips| *list(skips) = skipped)
        });
        let candidates: Vec<Setup> = candidates.collect();
        let before = self.setup.clone();
        if !self.take_first(candidates) {
            return ControlFlow::Break(());
        }
        let skipped = list(&mut self.setup.skips).clone();
        let was_skipped = list(&mut before.skips.clone()).clone();
        let gone =
            kept.iter().position(|ordinal| skipped.contains(*ordinal) && !was_skipped.contains(*ordinal));
        gone.map_or(ControlFlow::Break(()), ControlFlow::Continue)
    }

    /// Ends the load behind the last operation that is not skipped.
    fn operations_behind_the_last(&mut self) {
        let skipped = &self.setup.skips.operations;
        let last = (1..=self.setup.ops as u64).rev().find(|ordinal| !skipped.contains(*ordinal)).unwrap_or(0);
        if last < self.setup.ops as u64 {
            let operations = (1..=last).filter(|ordinal| skipped.contains(*ordinal)).collect();
            let mut setup = self.with_skips(|skips| skips.operations = operations);
            setup.ops = last as usize;
            self.take_first(vec![setup]);
        }
    }

    /// Selects what is in force instead of leaving the others out, which makes a shorter command.
    fn faults_by_name(&mut self) {
        let Some(faults) = self.report.in_force else { return };
        if !self.setup.skips.faults.is_empty() || faults != self.setup.faults {
            let skips = Skips { faults: Faults::none(), ..self.setup.skips.clone() };
            let setup = Setup { faults, skips, ..self.setup.clone() };
            self.take_first(vec![setup]);
        }
    }
}
