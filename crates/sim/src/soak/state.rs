//! The directory of a soak: its state, its lock and its stories.
//!
//! The state is a few lines of text. It is written to a file beside it, made durable and renamed, so that it is always
//! either the old or the new one.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::SoakError;
use crate::story::{other_version, Story};
use crate::workload::WORKLOAD_VERSION;

/// The version of the layout of state files.
pub const FORMAT: u32 = 1;

const TITLE: &str = "oort sim soak, format ";
const STATE: &str = "soak.state";
const NEW_STATE: &str = "soak.state.new";
const LOCK: &str = "soak.lock";

/// How far a soak has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// All cases are drawn from it.
    pub base: u64,
    /// The next case; all before it are done.
    pub next: u64,
    /// Cases that broke a promise.
    pub failed: u64,
}

/// Why a state file cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateError {
    /// It is empty, cut off, or no state file.
    Damaged {
        problem: String,
    },
    Format {
        found: String,
    },
    WorkloadVersion {
        found: u32,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            StateError::Damaged { problem } => {
                write!(f, "this is no whole state of a soak: {problem}; remove it to begin anew")
            }
            StateError::Format { found } => {
                write!(f, "the state has format '{found}'; this program reads format {FORMAT} only")
            }
            StateError::WorkloadVersion { found } => {
                write!(f, "{}, or use another directory", other_version(*found))
            }
        }
    }
}

impl std::error::Error for StateError {}

impl State {
    /// The text of a state file.
    pub fn encode(&self) -> String {
        let State { base, next, failed } = self;
        format!(
            "{TITLE}{FORMAT}\nworkload-version: {WORKLOAD_VERSION}\nbase: {base}\nnext: {next}\nfailed: {failed}\nend\n"
        )
    }

    /// Reads a state file.
    pub fn decode(text: &str) -> Result<State, StateError> {
        let damaged = |problem: String| StateError::Damaged { problem };
        let mut lines = text.lines();
        let title = lines.next().ok_or_else(|| damaged("it is empty".into()))?;
        let format = title.strip_prefix(TITLE);
        let format = format.ok_or_else(|| damaged(format!("it does not begin with '{TITLE}{FORMAT}'")))?;
        if format != FORMAT.to_string() {
            return Err(StateError::Format { found: format.chars().take(20).collect() });
        }
        let mut number = |field: &'static str| {
            let line = lines.next().unwrap_or_default();
            let value = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(": "));
            let value = value.and_then(|value| value.parse::<u64>().ok());
            value.ok_or_else(|| damaged(format!("'{field}: ' and a number are missing")))
        };
        let found = u32::try_from(number("workload-version")?).unwrap_or(u32::MAX);
        if found != WORKLOAD_VERSION {
            return Err(StateError::WorkloadVersion { found });
        }
        let state = State { base: number("base")?, next: number("next")?, failed: number("failed")? };
        match lines.next() {
            Some("end") => Ok(state),
            _ => Err(damaged("it is cut off".into())),
        }
    }
}

/// A soak's directory, locked as long as this lives.
#[derive(Debug)]
pub struct Home {
    directory: PathBuf,
    _lock: File,
}

impl Home {
    /// Creates the directory if it is missing, and locks it. Errors: it cannot be used, or is in use.
    pub fn open(directory: &Path) -> Result<Home, SoakError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error: io::Error| SoakError::File { path, error }
        };
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let path = directory.join(LOCK);
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = open.map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Home { directory: directory.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(SoakError::Busy { directory: directory.to_path_buf() }),
            Err(TryLockError::Error(error)) => Err(failed(&path)(error)),
        }
    }

    /// Where the soak lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The state so far; a new one of `base`, or of a drawn base, if there is none.
    pub fn load(&self, base: Option<u64>) -> Result<State, SoakError> {
        let path = self.directory.join(STATE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let drawn = || RandomState::new().hash_one(std::process::id()) >> 24;
                return Ok(State { base: base.unwrap_or_else(drawn), next: 0, failed: 0 });
            }
            Err(error) => return Err(SoakError::File { path, error }),
        };
        let state = State::decode(&text).map_err(|error| SoakError::State { path, error })?;
        if base.is_some_and(|base| base != state.base) {
            return Err(SoakError::OtherBase { directory: self.directory.clone(), base: state.base });
        }
        Ok(state)
    }

    /// Puts a new state in the place of the old one, at once or not at all.
    pub fn save(&self, state: &State) -> Result<(), SoakError> {
        self.replace(NEW_STATE, STATE, &state.encode())
    }

    /// Writes a story. The same seed gets the same name again. Returns the file's path.
    pub fn keep(&self, story: &Story) -> Result<PathBuf, SoakError> {
        let name = format!("{}-{}.story", story.checker, story.setup.seed);
        self.replace(&format!("{name}.new"), &name, &story.encode())?;
        Ok(self.directory.join(name))
    }

    fn replace(&self, new: &str, name: &str, text: &str) -> Result<(), SoakError> {
        let path = self.directory.join(new);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&path, self.directory.join(name))
        };
        write().map_err(|error| SoakError::File { path: path.clone(), error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_back() {
        let state = State { base: u64::MAX, next: 12, failed: 3 };
        assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn a_state_that_is_cut_off_is_refused() {
        let text = State { base: 123, next: 45, failed: 67 }.encode();
        for length in 0..text.len() - 1 {
            assert!(State::decode(&text[..length]).is_err(), "{length} bytes of {}", text.len());
        }
    }

    #[test]
    fn a_state_of_another_version_is_named() {
        let text = State { base: 1, next: 2, failed: 0 }.encode();
        let version = format!("workload-version: {WORKLOAD_VERSION}");
        let other = format!("workload version 999 is not that of this program, {WORKLOAD_VERSION}");
        for (from, to, part) in [
            ("format 1", "format 2", "format '2'"),
            ("oort", "tar", "does not begin with"),
            (&version, "workload-version: 999", &other),
            ("next: 2", "next: two", "'next: ' and a number"),
        ] {
            let refusal = State::decode(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}
