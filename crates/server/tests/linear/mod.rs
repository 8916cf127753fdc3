//! Histories of real processes, judged from outside: by what clients asked, were told, and when.
//!
//! Three nodes, clients at all of them, while nodes are killed, started again, and stand still. Each key has a history
//! of its own. `docs/simulation.md`, "From outside", says what is demanded and why not more. With three nodes and three
//! copies no node can stand in for another, so all answers are those of primaries.

mod calls;
mod clients;
mod conditions;
mod quorums;
#[path = "../../../sim/tests/second_opinion/mod.rs"]
mod second_opinion;

use std::fs;
use std::time::Duration;

use oort_sim::linear::{order, Model, Operation};
use rustix::process::Signal;

use crate::support::Cluster;

fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Kills a node, and starts it again after a while.
fn kill_for(cluster: &mut Cluster, node: usize, ms: u64) {
    cluster.nodes[node].kill();
    sleep_ms(ms);
    cluster.nodes[node].start();
    cluster.wait_until_whole();
}

/// A node stands still for a while.
fn pause_for(cluster: &Cluster, node: usize, ms: u64) {
    cluster.nodes[node].signal(Signal::STOP);
    sleep_ms(ms);
    cluster.nodes[node].signal(Signal::CONT);
}

/// One after the other the nodes stand still and are killed.
fn trouble(cluster: &mut Cluster) {
    sleep_ms(300);
    for node in 0..3 {
        pause_for(cluster, node, 300);
        sleep_ms(150);
        pause_for(cluster, node, 1000);
        sleep_ms(150);
        kill_for(cluster, node, 200);
        sleep_ms(200);
    }
}

/// Fails with the whole history in a file that the message names.
fn refuse<T: std::fmt::Display>(name: &str, history: &[T], why: &str) -> ! {
    let path = std::env::temp_dir().join(format!("oort-history-{}-{name}", std::process::id()));
    let text: String = history.iter().map(|operation| format!("{operation}\n")).collect();
    let place = match fs::write(&path, text) {
        Ok(()) => format!("the history is in {}", path.display()),
        Err(error) => format!("the history could not be written: {error}"),
    };
    panic!("{name}: {why}\n{place}")
}

/// Whether there is an order of `history`. Both checkers must say the same.
fn judge<M: Model>(name: &str, history: &[Operation<M>]) -> Result<(), String> {
    let verdict = order(history).map(drop).map_err(|refusal| refusal.to_string());
    if verdict.is_ok() != second_opinion::is_linearizable(history) {
        refuse(name, history, &format!("the other checker differs from ours, which says {verdict:?}"));
    }
    verdict
}
