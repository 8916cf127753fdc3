//! Soaks keep stories, go on where they ended, and say clearly why they cannot.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use oort_core::config::{NodeConfig, Sabotage};
use oort_sim::cluster::run as simulate;
use oort_sim::soak::{run, Choices, Ending, Options, Outcome, Progress, SoakError};
use oort_sim::story::Story;

/// A path where nothing is.
fn missing(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    let _ = fs::remove_file(&path);
    path
}

fn options(directory: &Path, tweak: Option<fn(&mut NodeConfig)>) -> Options {
    let choices = Choices { ops: Some(40), ..Choices::default() };
    Options { hours: 1.0, directory: directory.to_path_buf(), base: Some(7), choices, jobs: 2, tweak }
}

/// Interrupts the soak once so many failures are told; the first line is that of the beginning.
struct Listener<'a> {
    text: String,
    failures_wanted: usize,
    interrupted: &'a AtomicBool,
}

impl Write for Listener<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text += &String::from_utf8_lossy(bytes);
        if self.text.matches("BROKEN").count() >= self.failures_wanted {
            self.interrupted.store(true, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Soaks until so many failures are told. Returns what was said, too.
fn soak(options: &Options, failures_wanted: usize) -> (Result<Outcome, SoakError>, String) {
    let interrupted = AtomicBool::new(false);
    let mut listener = Listener { text: String::new(), failures_wanted, interrupted: &interrupted };
    let progress = Progress { out: &mut listener, is_terminal: false };
    let outcome = run(options, &interrupted, progress);
    (outcome, listener.text)
}

fn stories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "story")).collect();
    paths.sort();
    paths
}

fn broken_core(config: &mut NodeConfig) {
    config.sabotage = Sabotage::IgnoreContext;
}

fn panicking_core(config: &mut NodeConfig) {
    assert!(config.cluster_size < 4, "too many nodes");
}

#[test]
fn a_soak_keeps_a_story_of_each_failure_and_goes_on() {
    let directory = missing("soak_goes_on");
    let options = options(&directory, Some(broken_core));
    let (first, said) = soak(&options, 2);
    let first = first.unwrap();
    assert_eq!(first.why, Ending::Interrupted);
    assert!(first.failed >= 2 && first.seeds >= first.failed, "{first:?}");
    assert_eq!(first.seeds, first.seeds_now);
    assert!(said.starts_with("soak of base 7 begins"), "{said}");
    assert_eq!(stories(&directory).len() as u64, first.failed);
    for path in stories(&directory) {
        let mut story = Story::decode(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(story.text.contains("BROKEN ") && story.text.contains("The story of the "), "{}", story.text);
        assert!(!story.text.contains("did not replay"), "{}", story.text);
        story.setup.tweak = Some(broken_core);
        assert_eq!(simulate(&story.setup).hash, story.hash, "{}", path.display());
    }

    let (second, said) = soak(&Options { base: None, ..options.clone() }, 1);
    let second = second.unwrap();
    assert!(
        said.contains(&format!("goes on in {}: {} seeds done", directory.display(), first.seeds)),
        "{said}"
    );
    assert_eq!(second.seeds, first.seeds + second.seeds_now);
    assert!(second.failed > first.failed);
    assert_eq!(stories(&directory).len() as u64, second.failed, "no seed was run twice");
    assert!(second.text(&directory).contains("failures in all of"), "{}", second.text(&directory));
}

#[test]
fn a_panic_is_a_failure_of_its_seed() {
    let directory = missing("soak_panics");
    let (outcome, _) = soak(&options(&directory, Some(panicking_core)), 2);
    let outcome = outcome.unwrap();
    assert!(outcome.by_checker["panic"] >= 2, "{outcome:?}");
    let text = fs::read_to_string(&stories(&directory)[0]).unwrap();
    assert!(text.contains("BROKEN panic: too many nodes"), "{text}");
}

#[test]
fn a_soak_ends_when_its_time_is_up() {
    let directory = missing("soak_ends");
    let options = Options { hours: 1e-9, ..options(&directory, None) };
    let outcome = soak(&options, usize::MAX).0.unwrap();
    assert_eq!((outcome.why, outcome.failed), (Ending::TimeIsUp, 0));
    assert!(stories(&directory).is_empty());
    assert!(fs::read_to_string(directory.join("soak.state")).unwrap().contains("failed: 0"));
}

/// Why a soak in `directory` is refused.
fn refusal(directory: &Path) -> String {
    soak(&options(directory, None), 0).0.expect_err("it is refused").to_string()
}

#[test]
fn a_second_soak_at_the_same_time_is_refused() {
    let directory = missing("soak_twice");
    fs::create_dir_all(&directory).unwrap();
    let lock = fs::File::create(directory.join("soak.lock")).unwrap();
    lock.lock().unwrap();
    assert!(refusal(&directory).contains("another soak is running in"));
    drop(lock);
    assert!(soak(&options(&directory, None), 0).0.is_ok());
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let file = missing("soak_file");
    fs::write(&file, "here").unwrap();
    assert!(refusal(&file).contains("soak_file: "), "{}", refusal(&file));

    let directory = missing("soak_full");
    fs::create_dir_all(&directory).unwrap();
    std::os::unix::fs::symlink("/dev/full", directory.join("soak.state.new")).unwrap();
    let text = refusal(&directory);
    assert!(text.contains("soak.state.new: no space left on device"), "{text}");
}

#[test]
fn a_story_that_cannot_be_written_ends_the_soak_and_is_not_lost() {
    let directory = missing("soak_story_full");
    let options = options(&directory, Some(broken_core));
    soak(&options, 1).0.unwrap();
    let story = stories(&directory).remove(0);
    // The same soak once more, from the beginning, where the first story finds no space.
    fs::remove_file(directory.join("soak.state")).unwrap();
    let name = story.file_name().unwrap().to_string_lossy().to_string();
    std::os::unix::fs::symlink("/dev/full", directory.join(format!("{name}.new"))).unwrap();
    let (outcome, said) = soak(&options, 1000);
    assert!(outcome.unwrap_err().to_string().contains("no space left"));
    assert!(said.contains("replay: oort sim --seed"), "{said}");
    let state = fs::read_to_string(directory.join("soak.state")).unwrap();
    assert!(state.contains("base: 7"), "{state}");
}

#[test]
fn a_state_that_cannot_be_used_is_named() {
    let directory = missing("soak_state");
    soak(&options(&directory, None), 0).0.unwrap();
    let path = directory.join("soak.state");
    let state = fs::read_to_string(&path).unwrap();
    for (text, part) in [
        (String::new(), "it is empty"),
        (state[..state.len() / 2].to_string(), "no whole state"),
        (state.replacen("format 1", "format 3", 1), "format '3'"),
        (state.replacen("workload-version: ", "workload-version: 99", 1), "workload version 99"),
        (state.replacen("base: 7", "base: 8", 1), "has base 8"),
    ] {
        fs::write(&path, &text).unwrap();
        assert!(refusal(&directory).contains(part), "{}", refusal(&directory));
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is left as it was");
    }
}
