//! The checkers bite: each deliberately broken core is caught within few seeds, by a checker that guards what was
//! broken.

use oort_core::config::{NodeConfig, Sabotage};
use oort_sim::cluster::{run, Setup};
use oort_sim::faults::Faults;

/// Seeds within which each variant must be caught.
const SEEDS: u64 = 240;

fn caught(tweak: fn(&mut NodeConfig), faults: &str, by: &[&str]) {
    caught_among(false, tweak, faults, by)
}

fn caught_among(active: bool, tweak: fn(&mut NodeConfig), faults: &str, by: &[&str]) {
    let faults: Faults = faults.parse().unwrap();
    let mut blamed = Vec::new();
    for seed in 1..=SEEDS {
        let setup = Setup { faults, active, tweak: Some(tweak), ..Setup::new(seed) };
        for violation in run(&setup).violations {
            if by.contains(&violation.checker) {
                return;
            }
            blamed.push(violation.checker);
        }
    }
    panic!("none of {by:?} caught it in {SEEDS} seeds; others blamed: {blamed:?}");
}

#[test]
fn acknowledging_before_durable_loses_writes() {
    caught(|config| config.sabotage = Sabotage::AckBeforeDurable, "crash", &["lost-write"]);
}

#[test]
fn dropped_hints_leave_replicas_or_reads_behind() {
    // Anti-entropy would mend what the hints did not: without it the hints must do it alone.
    let tweak = |config: &mut NodeConfig| {
        config.sabotage = Sabotage::DropHints;
        config.entropy_ms = 0;
    };
    caught(tweak, "split,restart", &["convergence", "lost-write", "reads"]);
}

#[test]
fn ignoring_a_context_overwrites_what_was_never_read() {
    caught(|config| config.sabotage = Sabotage::IgnoreContext, "none", &["lost-write"]);
}

#[test]
fn a_range_written_in_the_wrong_place_is_not_what_was_asked_for() {
    caught(|config| config.sabotage = Sabotage::ShiftRange, "none", &["evaluation"]);
}

#[test]
fn forgetting_the_lease_uses_dots_twice() {
    caught(|config| config.sabotage = Sabotage::ForgetLease, "all", &["dots"]);
}

#[test]
fn counting_refusals_acknowledges_too_early() {
    let faults = "delay,loss,duplicate,reorder,split,oneway,skew,crash,restart,slow,disk-full,corrupt";
    caught(|config| config.sabotage = Sabotage::CountRefusals, faults, &["lost-write", "reads"]);
}

#[test]
fn counting_an_acknowledgement_twice_acknowledges_too_early() {
    // Anti-entropy would mend it soon.
    let tweak = |config: &mut NodeConfig| {
        config.sabotage = Sabotage::CountDuplicates;
        config.entropy_ms = 0;
    };
    caught(tweak, "all", &["reads", "lost-write"]);
}

#[test]
fn an_actor_that_forgot_supersedes_what_it_does_not_know() {
    caught(|config| config.sabotage = Sabotage::KeepActor, "crash", &["lost-write"]);
}

#[test]
fn a_ring_that_settles_early_forgets_what_has_not_moved() {
    // Anti-entropy would mend it soon.
    let tweak = |config: &mut NodeConfig| {
        config.sabotage = Sabotage::SettleEarly;
        config.entropy_ms = 0;
    };
    caught(tweak, "ring,loss,delay", &["reads", "lost-write"]);
}

#[test]
fn a_bucket_changed_at_once_forgets_what_its_new_owners_have_not() {
    let tweak = |config: &mut NodeConfig| {
        config.sabotage = Sabotage::AdoptAtOnce;
        config.entropy_ms = 0;
    };
    caught(tweak, "bucket", &["reads", "lost-write"]);
}

#[test]
fn a_node_given_up_unasked_may_be_alive() {
    caught(|config| config.sabotage = Sabotage::AskNoOpinion, "removal", &["removal"]);
}

#[test]
fn deleted_objects_that_nobody_was_asked_about_come_back() {
    caught(|config| config.sabotage = Sabotage::ForgetUnasked, "all", &["resurrected"]);
}

#[test]
fn accusing_peers_of_the_own_standstill_takes_living_ones_for_down() {
    caught(|config| config.sabotage = Sabotage::AccuseWhenLate, "starve", &["suspicion"]);
}

#[test]
fn giving_silent_replicas_up_fails_requests_before_their_time() {
    caught(|config| config.sabotage = Sabotage::GiveUpSilent, "starve,slow", &["patience"]);
}

#[test]
fn one_copy_less_than_acknowledged_is_missed_at_once() {
    caught(|config| config.sabotage = Sabotage::CountOneCopyLess, "none", &["copies"]);
}

#[test]
fn one_answer_less_than_asked_for_misses_writes() {
    // Anti-entropy and hints would bring the third copy soon.
    caught(|config| config.sabotage = Sabotage::CountOneAnswerLess, "slow-link,loss", &["reads"]);
}

#[test]
fn what_is_forgotten_unasked_is_still_held_elsewhere() {
    caught(|config| config.sabotage = Sabotage::ForgetUnasked, "loss,delay", &["resurrected"]);
}

#[test]
fn a_ring_that_settles_early_leaves_new_owners_without_what_was_acknowledged() {
    caught(|config| config.sabotage = Sabotage::SettleEarly, "ring", &["moved"]);
}

#[test]
fn versions_of_two_homes_that_are_not_joined_lose_calls() {
    caught_among(true, |config| config.sabotage = Sabotage::KeepOneHome, "split", &["active"]);
}

#[test]
fn a_call_that_fails_and_undoes_nothing_leaves_what_was_refused() {
    caught_among(true, |config| config.sabotage = Sabotage::UndoNothing, "none", &["active"]);
}

#[test]
fn a_call_that_fails_and_undoes_what_others_did_loses_calls() {
    caught_among(true, |config| config.sabotage = Sabotage::UndoAll, "none", &["active"]);
}

#[test]
fn a_home_that_stood_still_undoes_calls_where_replicas_believe_it() {
    let faults = "slow,delay,split";
    caught_among(true, |config| config.sabotage = Sabotage::StoreUncovered, faults, &["calls"]);
}

#[test]
fn two_homes_whose_stand_ins_count_undo_each_others_calls() {
    caught_among(true, |config| config.sabotage = Sabotage::CountStandIns, "split", &["calls"]);
}

#[test]
fn calls_acknowledged_before_they_are_durable_get_lost() {
    caught_among(true, |config| config.sabotage = Sabotage::AckBeforeDurable, "crash", &["active"]);
}

#[test]
fn homes_that_do_not_look_who_ran_a_timer_run_it_twice() {
    caught_among(true, |config| config.sabotage = Sabotage::ForgetRuns, "restart,split", &["timers"]);
}

#[test]
fn an_object_that_refuses_keeps_what_it_has_changed() {
    caught_among(true, |config| config.sabotage = Sabotage::KeepRefused, "none", &["changes", "lives"]);
}

#[test]
fn a_ring_of_another_cluster_takes_over() {
    caught(|config| config.sabotage = Sabotage::IgnoreFounding, "stranger", &["identity"]);
}

#[test]
fn a_node_that_did_not_ask_is_taken_in() {
    caught(|config| config.sabotage = Sabotage::TakeInUnasked, "stranger", &["identity"]);
}

#[test]
fn nodes_that_moved_are_not_found() {
    caught(|config| config.sabotage = Sabotage::KeepAddress, "address", &["formation", "convergence"]);
}

#[test]
fn a_node_goes_by_a_clock_that_is_wrong() {
    caught(|config| config.sabotage = Sabotage::TrustOwnClock, "clock", &["clocks"]);
}

#[test]
fn a_row_lost_behind_a_full_page_is_missed() {
    caught(|config| config.sabotage = Sabotage::LoseRowBehindPage, "none", &["listing", "final-read"]);
}
