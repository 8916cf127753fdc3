//! The measurements as texts: a table to read, CSV to compute with.

use std::fmt::Write;

use super::{Measured, Setup};

const HEADER: &str =
    "nodes,half_know_ms,all_know_ms,all_know_ms_max,messages_per_s,bytes_per_s,false_per_hour,heal_ms,\
                      heal_ms_max";

/// A line for each size of cluster, in Markdown.
pub fn table(setup: &Setup, measured: &[Measured]) -> String {
    let Setup { gossip_ms, suspect_ms, loss_per_mille, .. } = setup;
    let loss = *loss_per_mille as f64 / 10.0;
    let mut text = format!(
        "gossip_ms {gossip_ms}, suspect_ms {suspect_ms}; a node and second or hour\n\n\
         | nodes | half know of a crash, ms | all know, ms | at most | messages / s | bytes / s | \
         wrong / hour at {loss}% loss | healed, ms | at most |\n\
         | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n"
    );
    for line in measured {
        let Measured { nodes, half_know_ms, all_know_ms, all_know_ms_max, .. } = line;
        let Measured { messages_per_s, bytes_per_s, false_per_hour, heal_ms, heal_ms_max, .. } = line;
        writeln!(
            text,
            "| {nodes} | {half_know_ms:.0} | {all_know_ms:.0} | {all_know_ms_max:.0} | {messages_per_s:.0} | \
             {bytes_per_s:.0} | {false_per_hour:.2} | {heal_ms:.1} | {heal_ms_max:.0} |"
        )
        .expect("writing to memory does not fail");
    }
    text
}

/// A line for each size of cluster.
pub fn csv(measured: &[Measured]) -> String {
    let mut text = format!("{HEADER}\n");
    for line in measured {
        let Measured { nodes, half_know_ms, all_know_ms, all_know_ms_max, .. } = line;
        let Measured { messages_per_s, bytes_per_s, false_per_hour, heal_ms, heal_ms_max, .. } = line;
        writeln!(
            text,
            "{nodes},{half_know_ms:.1},{all_know_ms:.1},{all_know_ms_max:.1},{messages_per_s:.1},{bytes_per_s:.1},\
             {false_per_hour:.3},{heal_ms:.1},{heal_ms_max:.1}"
        )
        .expect("writing to memory does not fail");
    }
    text
}
