//! `oort sim` as a program: what it prints and keeps, how it is interrupted, and how it refuses.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{kill_process, Pid, Signal};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oort"));
    command.arg("sim").args(arguments);
    command
}

fn sim(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A path where nothing is.
fn missing(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    let _ = fs::remove_file(&path);
    path
}

#[test]
fn seeds_side_by_side_print_what_one_after_the_other_do() {
    let run = |jobs: &str| sim(&["--seeds", "6", "--ops", "20", "--json", "--jobs", jobs]);
    let (one, three) = (run("1"), run("3"));
    assert_eq!((code(&one), code(&three)), (Some(0), Some(0)));
    assert_eq!(stdout(&one), stdout(&three));
    let seeds: Vec<u64> = stdout(&one)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seed"].as_u64().unwrap())
        .collect();
    assert_eq!(seeds, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_soak_is_interrupted_and_goes_on() {
    let directory = missing("sim_soak");
    let arguments = ["--soak", "5", "--out", directory.to_str().unwrap(), "--ops", "10", "--jobs", "1"];
    for (round, opening) in ["begins in", "goes on in"].into_iter().enumerate() {
        let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert!(line.contains(opening), "{line}");

        let second = sim(&arguments);
        assert_eq!(code(&second), Some(1));
        assert!(stderr(&second).contains("another soak is running in"), "{}", stderr(&second));

        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let mut summary = String::new();
        child.stdout.take().unwrap().read_to_string(&mut summary).unwrap();
        errors.read_to_string(&mut line).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "round {round}: {line}{summary}");
        assert!(summary.contains("soak ends, interrupted: "), "{summary}");
    }
    let state = fs::read_to_string(directory.join("soak.state")).unwrap();
    let next = state.lines().find_map(|line| line.strip_prefix("next: ")).unwrap();
    assert!(next.parse::<u64>().unwrap() >= 1, "{state}");
}

#[test]
fn a_seed_that_fails_nowhere_has_nothing_to_shrink() {
    let output = sim(&["--shrink", "1", "--ops", "20"]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("seed 1 keeps all promises"), "{}", stdout(&output));
}

#[test]
fn a_story_is_replayed_or_refused() {
    let path = missing("sim_replay.story");
    let name = path.to_str().unwrap();
    let story =
        "oort sim story, format 1\nworkload-version: VERSION\nseed: 3\nops: 20\nfaults: none\nactive: no\n\
                 checker: reads\nhash: 0123456789abcdef\n\nIt was a dark night.\n";
    let version = oort_sim::workload::WORKLOAD_VERSION.to_string();
    let story = story.replace("VERSION", &version);
    fs::write(&path, &story).unwrap();
    let output = sim(&["--replay", name]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("reads is not broken any more"), "{}", stdout(&output));

    let other = story.replace(&format!("version: {version}"), "version: 0");
    for (text, part) in [
        (&b""[..], "the file is empty"),
        (other.as_bytes(), "workload version 0 is not that of this program"),
        (&story.as_bytes()[..60], "ends within its head"),
        (b"\xff\xfe\x00", "it is no text"),
        (b"PK\x03\x04 something else", "this is no story file"),
    ] {
        fs::write(&path, text).unwrap();
        let output = sim(&["--replay", name]);
        assert_eq!(code(&output), Some(1));
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
        assert!(stderr(&output).contains(name), "{}", stderr(&output));
    }
    let output = sim(&["--replay", missing("sim_none.story").to_str().unwrap()]);
    assert!(stderr(&output).contains("no such file"), "{}", stderr(&output));
}

#[test]
fn a_soak_refuses_a_place_that_it_cannot_use() {
    let file = missing("sim_soak_file");
    fs::write(&file, "here").unwrap();
    let output = sim(&["--soak", "1", "--out", file.to_str().unwrap()]);
    assert_eq!(code(&output), Some(1));
    assert!(stderr(&output).contains("cannot use "), "{}", stderr(&output));

    let output = sim(&["--out", "somewhere"]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("--out goes with --soak or --shrink"), "{}", stderr(&output));
}
