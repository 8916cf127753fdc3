//! A failure is made smaller, told, and replays from its story.

use std::sync::atomic::AtomicBool;

use oort_core::config::{NodeConfig, Sabotage};
use oort_sim::cli::{replay, run, run_shrink, Options};
use oort_sim::cluster::{run as simulate, Report, Setup};
use oort_sim::shrink::{shrink, Shrunk};
use oort_sim::story::Story;

fn ignore_context(config: &mut NodeConfig) {
    config.sabotage = Sabotage::IgnoreContext;
}

fn early_acknowledgement(config: &mut NodeConfig) {
    config.sabotage = Sabotage::AckBeforeDurable;
}

/// The first seed that fails.
fn broken(template: Setup) -> Setup {
    let setups = (1..).map(|seed| Setup { seed, ..template.clone() });
    setups.take(200).find(|setup| !simulate(setup).violations.is_empty()).expect("some seed fails")
}

fn shrunk(setup: &Setup, jobs: usize) -> Shrunk {
    shrink(setup, jobs, &AtomicBool::new(false), &mut |_, _| {}).expect("the seed fails")
}

/// The story as a file says it, replayed on the same broken core.
fn reread(shrunk: &Shrunk, tweak: fn(&mut NodeConfig)) -> Story {
    let mut story = Story::decode(&shrunk.story.encode()).unwrap();
    story.setup.tweak = Some(tweak);
    story
}

#[test]
fn a_failure_without_faults_shrinks_to_few_operations_and_replays() {
    let template =
        Setup { ops: 120, faults: "none".parse().unwrap(), tweak: Some(ignore_context), ..Setup::new(1) };
    let setup = broken(template);
    let shrunk = shrunk(&setup, 2);
    assert!(!shrunk.is_cut_short);
    assert!(shrunk.after.operations <= 12, "{:?} of {:?}", shrunk.after, shrunk.before);
    assert!(shrunk.after.nodes <= shrunk.before.nodes);

    let story = reread(&shrunk, ignore_context);
    let report = simulate(&story.setup);
    assert_eq!(report.hash, story.hash);
    assert!(report.violations.iter().any(|violation| violation.checker == story.checker));
    let mut out = Vec::new();
    assert!(!replay(&story, false, false, &mut out).unwrap());
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("event by event the same"), "{out}");
}

#[test]
fn the_story_says_who_did_what_and_what_was_promised() {
    let template = Setup { ops: 200, faults: "crash".parse().unwrap(), ..Setup::new(1) };
    let told = Setup { tells: true, tweak: Some(early_acknowledgement), ..template };
    let mut reports = (1..=200).map(|seed| simulate(&Setup { seed, ..told.clone() }));
    let has_failed = |report: &Report| !report.violations.is_empty() && !report.strikes.is_empty();
    let report = reports.find(has_failed).expect("some seed fails");
    let text = Story::of(&told, &report).unwrap().text;
    for part in [
        "Promised (",
        "Seen instead: ",
        " asks n",
        " makes the write ",
        "FAULT crash",
        "At the end.",
        " holds ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn faults_that_a_failure_does_not_need_are_left_out() {
    let template = Setup { ops: 200, tweak: Some(ignore_context), ..Setup::new(1) };
    let mut setups = (1..=200).map(|seed| Setup { seed, ..template.clone() });
    let has_failed = |setup: &Setup| {
        let report = simulate(setup);
        let faults = report.in_force.map_or(0, |faults| faults.iter().count());
        !report.violations.is_empty() && faults >= 4 && report.strikes.len() > 1
    };
    let shrunk = shrunk(&setups.find(has_failed).expect("some seed fails"), 2);
    assert!(shrunk.after.faults <= 1 && shrunk.after.strikes < shrunk.before.strikes, "{}", shrunk.text());
    assert!(shrunk.text().contains("oort sim --seed"), "{}", shrunk.text());
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let template =
        Setup { ops: 60, faults: "none".parse().unwrap(), tweak: Some(ignore_context), ..Setup::new(1) };
    let setup = broken(template);
    let (one, three) = (shrunk(&setup, 1), shrunk(&setup, 3));
    assert_eq!(one.story.setup.command(), three.story.setup.command());
    assert_eq!((one.story.hash, one.after), (three.story.hash, three.after));
}

#[test]
fn an_interrupted_shrink_returns_what_it_has() {
    let template =
        Setup { ops: 60, faults: "none".parse().unwrap(), tweak: Some(ignore_context), ..Setup::new(1) };
    let setup = broken(template);
    let shrunk = shrink(&setup, 1, &AtomicBool::new(true), &mut |_, _| {}).unwrap();
    assert!(shrunk.is_cut_short);
    assert_eq!(shrunk.before, shrunk.after);
    assert!(!simulate(&reread(&shrunk, ignore_context).setup).violations.is_empty());
}

#[test]
fn a_seed_that_keeps_all_promises_cannot_be_shrunk() {
    let setup = Setup { ops: 50, ..Setup::new(1) };
    let mut out = Vec::new();
    assert!(run_shrink(&setup, 1, &AtomicBool::new(false), &mut out).unwrap().is_none());
    assert!(String::from_utf8(out).unwrap().contains("seed 1 keeps all promises"));
}

#[test]
fn a_story_of_what_has_been_mended_says_so() {
    let template =
        Setup { ops: 60, faults: "none".parse().unwrap(), tweak: Some(ignore_context), ..Setup::new(1) };
    let setup = broken(template);
    let report = simulate(&setup);
    let mut story = Story::of(&setup, &report).unwrap();
    story.setup.tweak = None;
    let mut out = Vec::new();
    assert!(replay(&story, false, false, &mut out).unwrap());
    assert!(String::from_utf8(out).unwrap().contains("is not broken any more"));
}

#[test]
fn a_skipped_operation_is_drawn_and_not_asked() {
    let setup = Setup { ops: 100, faults: "none".parse().unwrap(), ..Setup::new(5) };
    let (mut none, mut half) = (setup.clone(), setup.clone());
    none.skips.operations = "1-100".parse().unwrap();
    half.skips.operations = "51-1000".parse().unwrap();
    let asked = |setup: &Setup| {
        let report = simulate(setup);
        assert!(report.violations.is_empty(), "{:?}", report.violations);
        report.ops_ok + report.ops_failed + report.ops_disconnected
    };
    assert_eq!(asked(&none), 0);
    // Further pages of listings count as operations of their own.
    assert!((50..asked(&setup)).contains(&asked(&half)));
}

#[test]
fn a_skipped_strike_does_not_strike() {
    let setup = Setup { ops: 200, faults: "crash".parse().unwrap(), ..Setup::new(4) };
    let whole = simulate(&setup);
    assert!(whole.strikes["crash"] > 0);
    let mut none = setup.clone();
    none.skips.strikes = "1-1000000".parse().unwrap();
    let mut out_of_force = setup.clone();
    out_of_force.skips.faults = "crash".parse().unwrap();
    for setup in [none, out_of_force] {
        let report = simulate(&setup);
        assert!(report.strikes.is_empty() && report.violations.is_empty(), "{report:?}");
    }
}

#[test]
fn one_and_two_nodes_stand_all_faults() {
    for (nodes, seed) in (1..=2).flat_map(|nodes| (1..=8).map(move |seed| (nodes, seed))) {
        let report = simulate(&Setup { nodes: Some(nodes), ops: 60, ..Setup::new(seed) });
        assert!(report.violations.is_empty(), "{nodes} nodes, seed {seed}: {:?}", report.violations);
    }
}

#[test]
fn notes_for_a_story_change_nothing_of_a_run() {
    for seed in 1..4 {
        let setup = Setup { ops: 150, ..Setup::new(seed) };
        let told = Setup { tells: true, ..setup.clone() };
        assert_eq!(simulate(&setup).hash, simulate(&told).hash);
    }
}

/// What a run of many seeds prints, and whether all held.
fn printed(jobs: usize, stops: bool, json: bool) -> (bool, String) {
    let faults = "none".parse().unwrap();
    let first = Setup { ops: 60, faults, tweak: Some(ignore_context), ..Setup::new(1) };
    let mut out = Vec::new();
    let holds = run(&Options { first, seeds: 40, json, stops, jobs }, &mut out).unwrap();
    (holds, String::from_utf8(out).unwrap())
}

#[test]
fn many_seeds_print_the_same_on_any_number_of_threads() {
    for (stops, json) in [(false, false), (true, false), (false, true)] {
        let (holds, text) = printed(1, stops, json);
        assert!(!holds);
        assert_eq!(printed(3, stops, json), (holds, text), "stops {stops}, json {json}");
    }
    let failures = |stops| printed(2, stops, false).1.matches("replay: ").count();
    assert!(failures(false) > 1, "{}", failures(false));
    assert_eq!(failures(true), 1);
    let seeds = |text: &str| text.lines().last().unwrap().split(' ').next().unwrap().to_string();
    assert_eq!(seeds(&printed(2, false, false).1), "40");
    assert_ne!(seeds(&printed(2, true, false).1), "40");
}
