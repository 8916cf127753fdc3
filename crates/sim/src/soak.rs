//! A soak: fresh seeds of all kinds for hours, on all cores, with one story file for each failure.
//!
//! A soak lives in a directory: its state, a lock, and the stories. It is a sequence of cases; number `i` of a soak is
//! drawn from the soak's base and `i` alone, so a soak that was stopped goes on with the next case, and one that was
//! killed repeats at most the few cases that were not counted yet. A failing case is run once more to be told, which
//! also shows whether it replays.

mod cases;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oort_core::config::NodeConfig;

pub use cases::{Choices, OPS};
pub use state::{State, StateError};

use crate::cluster::{run as simulate, Setup};
use crate::parallel::{in_order, News};
use crate::story::Story;
use state::Home;

/// A soak ends when it has kept so many stories: whatever is broken is seen by then.
pub const STORIES_MAX: u64 = 10_000;
/// The longest that one call soaks.
pub const HOURS_MAX: f64 = 10_000.0;
/// Cases done may be lost, and done again, for so long when the process is killed.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// How often progress is shown on a terminal, and elsewhere.
const REDRAW_EVERY: Duration = Duration::from_millis(500);
const LINE_EVERY: Duration = Duration::from_secs(60);

/// What a soak should do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long, at most [`HOURS_MAX`].
    pub hours: f64,
    pub directory: PathBuf,
    /// The base of a new soak; drawn if `None`.
    pub base: Option<u64>,
    /// What is the same in all cases.
    pub choices: Choices,
    /// Threads.
    pub jobs: usize,
    /// Changes every node's configuration: tests break the core with it.
    pub tweak: Option<fn(&mut NodeConfig)>,
}

/// Where progress goes.
pub struct Progress<'a> {
    pub out: &'a mut dyn Write,
    /// Lines may be redrawn in place.
    pub is_terminal: bool,
}

/// What a soak's directory has seen: earlier calls count too.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    /// All cases, and those that broke a promise.
    pub seeds: u64,
    pub failed: u64,
    /// Cases of this call.
    pub seeds_now: u64,
    /// How often each checker was the first to be broken, in this call.
    pub by_checker: BTreeMap<String, u64>,
    /// How long this call took.
    pub took: Duration,
    pub why: Ending,
}

/// Why a soak ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ending {
    #[default]
    TimeIsUp,
    Interrupted,
    /// [`STORIES_MAX`] stories are kept.
    TooManyStories,
}

/// Why a soak could not begin or go on.
#[derive(Debug)]
pub enum SoakError {
    /// A file or directory cannot be created, read or written.
    File { path: PathBuf, error: io::Error },
    /// Another process soaks in the directory.
    Busy { directory: PathBuf },
    /// The state cannot be used.
    State { path: PathBuf, error: StateError },
    /// A new base was asked for where a soak has one already.
    OtherBase { directory: PathBuf, base: u64 },
}

impl fmt::Display for SoakError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            SoakError::File { path, error } => {
                let text = error.to_string();
                let text = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
                write!(f, "cannot use {}: {text}", path.display())
            }
            SoakError::Busy { directory } => {
                write!(
                    f,
                    "another soak is running in {}: wait for it, or use another directory",
                    directory.display()
                )
            }
            SoakError::State { path, error } => write!(f, "{}: {error}", path.display()),
            SoakError::OtherBase { directory, base } => write!(
                f,
                "the soak in {} has base {base}: go on without a seed, or use another directory",
                directory.display()
            ),
        }
    }
}

impl std::error::Error for SoakError {}

/// Soaks until the time is up or `interrupted` is set. Errors: the directory cannot be used, or not any more.
pub fn run(options: &Options, interrupted: &AtomicBool, progress: Progress) -> Result<Outcome, SoakError> {
    let home = Home::open(&options.directory)?;
    let state = home.load(options.base)?;
    let started = Instant::now();
    let lasts = Duration::from_secs_f64(options.hours.clamp(0.0, HOURS_MAX) * 3600.0);
    let mut soak = Soak {
        started,
        lasts,
        saved: started,
        shown: started,
        first: state.next,
        state,
        home,
        progress,
        by_checker: BTreeMap::new(),
        error: None,
        why: Ending::TimeIsUp,
    };
    soak.save();
    soak.begin();
    let (base, first) = (soak.state.base, soak.state.next);
    let halt = AtomicBool::new(soak.error.is_some());
    let work = |index: u64| judge(&options.choices.draw(base, first + index, options.tweak));
    in_order(options.jobs, u64::MAX - first, &halt, work, |news| {
        if let News::Done { result, .. } = news {
            soak.done(result);
        }
        if soak.is_over(interrupted) {
            halt.store(true, Ordering::Relaxed);
        }
    });
    soak.save();
    soak.end()
}

/// Runs a case; a failing one once more, to tell it.
fn judge(setup: &Setup) -> Option<Story> {
    let report = simulate(setup);
    if report.violations.is_empty() {
        return None;
    }
    let told = simulate(&Setup { tells: true, ..setup.clone() });
    if told.hash == report.hash {
        if let Some(story) = Story::of(setup, &told) {
            return Some(story);
        }
    }
    let mut story = Story::of(setup, &report)?;
    story.text +=
        "\nThis seed did not replay: a second run did something else. The simulator is not deterministic.\n";
    Some(story)
}

struct Soak<'a> {
    started: Instant,
    lasts: Duration,
    saved: Instant,
    shown: Instant,
    /// The first case of this call.
    first: u64,
    state: State,
    home: Home,
    progress: Progress<'a>,
    by_checker: BTreeMap<String, u64>,
    error: Option<SoakError>,
    why: Ending,
}

impl Soak<'_> {
    fn begin(&mut self) {
        let State { base, next, failed, .. } = self.state;
        let directory = self.home.directory().display().to_string();
        let text = match next {
            0 => format!("soak of base {base} begins in {directory}"),
            _ => format!("soak of base {base} goes on in {directory}: {next} seeds done, {failed} failed"),
        };
        self.say(&text);
    }

    fn done(&mut self, story: Option<Story>) {
        if self.error.is_some() {
            return;
        }
        if let Some(story) = story {
            self.state.failed += 1;
            *self.by_checker.entry(story.checker.clone()).or_default() += 1;
            match self.home.keep(&story) {
                Ok(path) => self.say(&format!(
                    "BROKEN {} by seed {}: {}",
                    story.checker,
                    story.setup.seed,
                    path.display()
                )),
                Err(error) => {
                    // The command at least must not get lost.
                    self.say(&format!("BROKEN {}, replay: {}", story.checker, story.setup.command()));
                    self.error = Some(error);
                    return;
                }
            }
        }
        self.state.next += 1;
        if self.saved.elapsed() > SAVE_EVERY {
            self.save();
        }
    }

    fn save(&mut self) {
        self.saved = Instant::now();
        if self.error.is_none() {
            self.error = self.home.save(&self.state).err();
        }
    }

    fn is_over(&mut self, interrupted: &AtomicBool) -> bool {
        self.show();
        if interrupted.load(Ordering::Relaxed) {
            self.why = Ending::Interrupted;
        } else if self.state.failed >= STORIES_MAX {
            self.why = Ending::TooManyStories;
        }
        self.error.is_some() || self.why != Ending::TimeIsUp || self.started.elapsed() >= self.lasts
    }

    fn show(&mut self) {
        let every = if self.progress.is_terminal { REDRAW_EVERY } else { LINE_EVERY };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let left = self.lasts.saturating_sub(self.started.elapsed());
        let done = self.state.next - self.first;
        let rate = done as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let State { next, failed, .. } = self.state;
        let text = format!("{next} seeds, {failed} failed, {rate:.1} a second, {} left", clock(left));
        match self.progress.is_terminal {
            // Behind it, blanks over the rest of a longer line.
            true => self.write(&format!("\r{text}   ")),
            false => self.say(&text),
        }
    }

    fn say(&mut self, text: &str) {
        let start = if self.progress.is_terminal { "\r" } else { "" };
        self.write(&format!("{start}{text}\n"));
    }

    fn write(&mut self, text: &str) {
        // Only progress: whether it shows is not worth failing for.
        let _ = self.progress.out.write_all(text.as_bytes()).and_then(|()| self.progress.out.flush());
    }

    fn end(self) -> Result<Outcome, SoakError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Outcome {
                seeds: self.state.next,
                failed: self.state.failed,
                seeds_now: self.state.next - self.first,
                by_checker: self.by_checker,
                took: self.started.elapsed(),
                why: self.why,
            }),
        }
    }
}

impl Outcome {
    /// The summary in a few lines.
    pub fn text(&self, directory: &Path) -> String {
        let why = match self.why {
            Ending::TimeIsUp => "the time is up".to_string(),
            Ending::Interrupted => "interrupted".to_string(),
            Ending::TooManyStories => format!("{STORIES_MAX} stories are enough"),
        };
        let mut text = format!(
            "soak ends, {why}: {} seeds in {}; {} seeds and {} failures in all of {}\n",
            self.seeds_now,
            clock(self.took),
            self.seeds,
            self.failed,
            directory.display()
        );
        for (checker, times) in &self.by_checker {
            text += &format!("  {checker} broken by {times} of these\n");
        }
        if self.failed > 0 {
            text += &format!("  replay one: oort sim --replay {}/NAME.story\n", directory.display());
        }
        text
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
