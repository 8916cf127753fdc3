//! `oort ring simulate` as a program: what it prints and writes, and how it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn simulate(arguments: &[&str], out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oort"));
    command.args(["ring", "simulate"]).args(arguments).arg("--out").arg(out).output().unwrap()
}

/// A directory that is not there yet.
fn missing(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    path
}

#[test]
fn the_table_is_printed_and_the_files_are_written() {
    let out = missing("ring_simulate").join("inner");
    let output = simulate(&["--nodes", "6", "--keys", "2000", "--seeds", "2"], &out);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.starts_with("Mean load / greatest load: 6 nodes, 3 replicas, 2000 keys, "), "{table}");
    assert!(table.contains("\n| 2 | 12 | "), "{table}");
    let csv = fs::read_to_string(out.join("partitioning.csv")).unwrap();
    assert!(csv.starts_with("strategy,tokens_per_node,partitions,entries,"), "{csv}");
    for strategy in ["\n1,2,,12.0,", "\n2,2,1024,12.0,", "\n3,,16,16.0,"] {
        assert!(csv.contains(strategy), "{strategy}: {csv}");
    }
    let svg = fs::read_to_string(out.join("partitioning.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let out = missing("ring_simulate_refused");
    let cases: [(&[&str], &str); 7] = [
        (&["--nodes", "1"], "1 is not in 2..=1000"),
        (&["--nodes", "2"], "--replicas 3: there are only 2 nodes"),
        (&["--replicas", "0"], "0 is not in 1..=32"),
        (&["--partitions", "1000"], "must be a power of two, 1 to 16384"),
        (&["--zipf", "-1"], "must be 0 to 2"),
        (&["--zipf", "nan"], "must be 0 to 2"),
        (&["--seeds", "0"], "0 is not in 1..=10000"),
    ];
    for (arguments, text) in cases {
        let output = simulate(arguments, &out);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    }
    assert!(!out.exists());
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let file = missing("ring_simulate_file");
    fs::write(&file, "").unwrap();
    let output = simulate(&["--keys", "10", "--seeds", "1"], &file);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with(&format!("oort: cannot write {}: ", file.display())), "{stderr}");
}
