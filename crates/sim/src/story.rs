//! Story files: a failure with all that is needed to replay it, and its story for people.
//!
//! ```text
//! oort sim story, format 1
//! workload-version: 2
//! seed: 17
//! ops: 400
//! faults: all
//! active: no
//! checker: lost-write
//! hash: 0123456789abcdef
//! replay: oort sim --seed 17 --ops 400 --faults all --workload-version 2
//!
//! The story of the key default/hot
//! ...
//! ```
//!
//! `nodes`, `strategy`, `skip-faults`, `skip-ops` and `skip-strikes` stand in the head if they are set. Nothing after
//! the empty line is read, and `replay` is for people. The hash is that of the whole trace: a replay with another hash
//! did not do the same things, because the core has changed since, or the head was edited.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::cluster::{Report, Setup};
use crate::faults::Faults;
use crate::skips::Skips;
use crate::workload::WORKLOAD_VERSION;

/// The version of the layout of story files.
pub const FORMAT: u32 = 1;
/// The most machines a simulation takes.
pub const NODES_MAX: usize = 64;
/// The most operations of clients that a simulation takes.
pub const OPS_MAX: usize = 10_000_000;

const TITLE: &str = "oort sim story, format ";
/// Every line that a head may have.
const FIELDS: [&str; 13] = [
    "workload-version",
    "seed",
    "nodes",
    "ops",
    "faults",
    "strategy",
    "active",
    "skip-faults",
    "skip-ops",
    "skip-strikes",
    "checker",
    "hash",
    "replay",
];

/// A failure that can be replayed.
#[derive(Clone, Debug)]
pub struct Story {
    pub setup: Setup,
    /// The first checker whose promise was broken.
    pub checker: String,
    /// Of the whole trace.
    pub hash: u64,
    /// What happened, for people.
    pub text: String,
}

/// Why a story cannot be read, or must not be replayed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoryError {
    Empty,
    /// The first line is another one than that of a story.
    NotAStory {
        line: String,
    },
    Format {
        found: String,
    },
    /// A line of the head is no `field: value`, names an unknown field or names it again, or has a bad value.
    Line {
        number: usize,
        problem: String,
    },
    Missing {
        field: &'static str,
    },
    /// There is no empty line behind the head.
    CutOff,
    /// The seed means something else to this program.
    WorkloadVersion {
        found: u32,
    },
}

impl fmt::Display for StoryError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            StoryError::Empty => write!(f, "the file is empty"),
            StoryError::NotAStory { line } => {
                write!(f, "this is no story file: it begins with '{line}' instead of '{TITLE}{FORMAT}'")
            }
            StoryError::Format { found } => {
                write!(f, "the story has format '{found}'; this program reads format {FORMAT} only")
            }
            StoryError::Line { number, problem } => write!(f, "line {number}: {problem}"),
            StoryError::Missing { field } => write!(f, "the head lacks '{field}'"),
            StoryError::CutOff => write!(f, "the file ends within its head: no empty line follows it"),
            StoryError::WorkloadVersion { found } => write!(f, "{}", other_version(*found)),
        }
    }
}

impl std::error::Error for StoryError {}

/// Says why a seed of another workload version is not replayed.
pub fn other_version(found: u32) -> String {
    format!(
        "workload version {found} is not that of this program, {WORKLOAD_VERSION}: the seed would be replayed as \
         something else. Use the program that found it"
    )
}

impl Story {
    /// The story of a run that broke a promise; `None` if it kept all.
    pub fn of(setup: &Setup, report: &Report) -> Option<Story> {
        let first = report.violations.first()?;
        let mut text = String::new();
        for violation in report.violations.iter().take(20) {
            let key = violation.key.as_ref().map_or(String::new(), |key| format!(" {key:?}"));
            text += &format!("BROKEN {}{key}: {}\n", violation.checker, violation.detail);
        }
        for told in &report.told {
            text += &format!("\n{told}");
        }
        Some(Story { setup: setup.clone(), checker: first.checker.to_string(), hash: report.hash, text })
    }

    /// The text of a story file.
    pub fn encode(&self) -> String {
        let Setup { seed, nodes, ops, faults, active, strategy, skips, .. } = &self.setup;
        let Skips { operations, strikes, faults: left_out } = skips;
        let mut text = format!("{TITLE}{FORMAT}\nworkload-version: {WORKLOAD_VERSION}\nseed: {seed}\n");
        let mut field = |name: &str, value: String| text += &format!("{name}: {value}\n");
        if let Some(nodes) = nodes {
            field("nodes", nodes.to_string());
        }
        field("ops", ops.to_string());
        field("faults", faults.to_string());
        if let Some(strategy) = strategy {
            field("strategy", strategy.to_string());
        }
        field("active", if *active { "yes" } else { "no" }.to_string());
        if !left_out.is_empty() {
            field("skip-faults", left_out.to_string());
        }
        if !operations.is_empty() {
            field("skip-ops", operations.to_string());
        }
        if !strikes.is_empty() {
            field("skip-strikes", strikes.to_string());
        }
        field("checker", self.checker.clone());
        field("hash", format!("{:016x}", self.hash));
        field("replay", self.setup.command());
        text + "\n" + &self.text
    }

    /// Reads a story file. Errors: it is damaged, or of another version.
    pub fn decode(text: &str) -> Result<Story, StoryError> {
        let mut lines = text.lines().enumerate();
        let (_, title) = lines.next().ok_or(StoryError::Empty)?;
        let Some(format) = title.strip_prefix(TITLE) else {
            let line: String = title.chars().take(60).collect();
            return Err(if text.trim().is_empty() {
                StoryError::Empty
            } else {
                StoryError::NotAStory { line }
            });
        };
        if format != FORMAT.to_string() {
            return Err(StoryError::Format { found: format.chars().take(20).collect() });
        }
        let mut head = Head::default();
        loop {
            match lines.next() {
                None => return Err(StoryError::CutOff),
                Some((_, "")) => break,
                Some((at, line)) => head.add(at + 1, line)?,
            }
        }
        let rest: Vec<&str> = lines.map(|(_, line)| line).collect();
        head.story(rest.join("\n"))
    }
}

/// The fields of a head, with the numbers of their lines.
#[derive(Debug, Default)]
struct Head<'a>(BTreeMap<&'a str, (usize, &'a str)>);

impl<'a> Head<'a> {
    fn add(&mut self, number: usize, line: &'a str) -> Result<(), StoryError> {
        let problem = match line.split_once(": ") {
            None => format!("'{}' is no 'field: value'", line.chars().take(60).collect::<String>()),
            Some((field, _)) if !FIELDS.contains(&field) => {
                format!("unknown field '{field}': known are {}", FIELDS.join(", "))
            }
            Some((field, value)) => match self.0.insert(field, (number, value)) {
                None => return Ok(()),
                Some((first, _)) => format!("'{field}' stands in line {first} already"),
            },
        };
        Err(StoryError::Line { number, problem })
    }

    fn story(&self, text: String) -> Result<Story, StoryError> {
        let found: u32 = self.required("workload-version")?;
        if found != WORKLOAD_VERSION {
            return Err(StoryError::WorkloadVersion { found });
        }
        let bounded = |field, bounds: std::ops::RangeInclusive<usize>| {
            self.read(field, move |text| match text.parse() {
                Ok(number) if bounds.contains(&number) => Ok(number),
                _ => Err(format!("must be {} to {}", bounds.start(), bounds.end())),
            })
        };
        let setup = Setup {
            nodes: bounded("nodes", 1..=NODES_MAX)?,
            ops: bounded("ops", 0..=OPS_MAX)?.ok_or(StoryError::Missing { field: "ops" })?,
            faults: self.required("faults")?,
            active: self
                .read("active", |text| match text {
                    "yes" => Ok(true),
                    "no" => Ok(false),
                    _ => Err("must be yes or no".to_string()),
                })?
                .ok_or(StoryError::Missing { field: "active" })?,
            strategy: bounded("strategy", 1..=3)?.map(|strategy| strategy as u8),
            skips: Skips {
                operations: self.optional("skip-ops")?.unwrap_or_default(),
                strikes: self.optional("skip-strikes")?.unwrap_or_default(),
                faults: self.optional("skip-faults")?.unwrap_or(Faults::none()),
            },
            ..Setup::new(self.required("seed")?)
        };
        let hash = self.read("hash", |text| match u64::from_str_radix(text, 16) {
            Ok(hash) if text.len() == 16 => Ok(hash),
            _ => Err("must be 16 hexadecimal digits".to_string()),
        })?;
        let checker = self.required("checker")?;
        Ok(Story { setup, checker, hash: hash.ok_or(StoryError::Missing { field: "hash" })?, text })
    }

    fn read<T>(
        &self,
        field: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, StoryError> {
        let Some((number, value)) = self.0.get(field) else { return Ok(None) };
        let problem = |problem: String| format!("bad '{field}' '{value}': {problem}");
        parse(value).map(Some).map_err(|error| StoryError::Line { number: *number, problem: problem(error) })
    }

    fn optional<T: FromStr<Err: fmt::Display>>(&self, field: &str) -> Result<Option<T>, StoryError> {
        self.read(field, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    fn required<T: FromStr<Err: fmt::Display>>(&self, field: &'static str) -> Result<T, StoryError> {
        self.optional(field)?.ok_or(StoryError::Missing { field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> Story {
        let skips = Skips {
            operations: "2,5-9".parse().unwrap(),
            strikes: "1".parse().unwrap(),
            faults: "loss".parse().unwrap(),
        };
        let faults = "loss,split".parse().unwrap();
        let setup =
            Setup { nodes: Some(5), faults, active: true, strategy: Some(2), skips, ..Setup::new(u64::MAX) };
        Story { setup, checker: "reads".into(), hash: 0xabc, text: "It was\n\na dark night\n".into() }
    }

    #[test]
    fn a_story_is_read_back() {
        let plain =
            Story { setup: Setup::new(0), checker: "panic".into(), hash: u64::MAX, text: String::new() };
        for story in [story(), plain] {
            let read = Story::decode(&story.encode()).unwrap();
            assert_eq!(read.setup.command(), story.setup.command());
            assert_eq!((&read.checker, read.hash), (&story.checker, story.hash));
            assert_eq!(read.text.trim(), story.text.trim());
        }
    }

    #[test]
    fn a_story_that_is_cut_off_anywhere_in_its_head_is_refused() {
        let text = story().encode();
        let end = text.find("\n\n").unwrap() + 1;
        for length in 0..=end {
            assert!(Story::decode(&text[..length]).is_err(), "{length} bytes of {end}");
        }
        assert!(Story::decode(&text[..=end]).is_ok());
    }

    #[test]
    fn damage_is_named() {
        let refusal = |from: &str, to: &str| {
            let text = story().encode();
            assert!(text.contains(from), "{from}");
            Story::decode(&text.replacen(from, to, 1)).unwrap_err().to_string()
        };
        let version = format!("workload-version: {WORKLOAD_VERSION}\n");
        let other = format!("version 777 is not that of this program, {WORKLOAD_VERSION}");
        for (from, to, part) in [
            ("format 1", "format 9", "format '9'"),
            ("oort sim story", "a shopping list", "no story file"),
            (&version, "workload-version: 777\n", &other),
            (&version, "", "lacks 'workload-version'"),
            ("seed: 18446744073709551615", "seed: 18446744073709551616", "line 3: bad 'seed'"),
            ("seed: ", "seed: -", "bad 'seed'"),
            ("seed: ", "sead: ", "unknown field 'sead': known are workload-version, seed"),
            ("nodes: 5", "nodes: 0", "bad 'nodes' '0': must be 1 to 64"),
            ("nodes: 5", "nodes 5", "is no 'field: value'"),
            ("nodes: 5", "ops: 5", "line 5: 'ops' stands in line 4 already"),
            ("ops: 400\n", "", "lacks 'ops'"),
            (
                "faults: loss,split",
                "faults: loss,rain",
                "unknown fault 'rain': use all, none or a list of delay",
            ),
            ("strategy: 2", "strategy: 4", "must be 1 to 3"),
            ("active: yes", "active: 1", "must be yes or no"),
            ("skip-ops: 2,5-9", "skip-ops: 2,9-5", "'9-5' is no ordinal"),
            ("skip-strikes: 1", "skip-strikes: x", "'x' is no ordinal"),
            ("checker: reads\n", "", "lacks 'checker'"),
            ("hash: 0000", "hash: 000", "16 hexadecimal digits"),
        ] {
            let text = refusal(from, to);
            assert!(text.contains(part), "{to}: {text}");
        }
        for text in ["", "\n", "  \n\n"] {
            assert_eq!(Story::decode(text).unwrap_err(), StoryError::Empty);
        }
    }
}
