//! Every command against a core that is one map, and what it must answer: what Redis answers, where Redis has it.

mod cluster;
mod data;
mod fake;
mod node;

use super::table::COMMANDS;

/// Each command and subcommand has a heading of its own in the manual, and the manual has no others.
#[test]
fn the_manual_has_an_entry_for_each_command() {
    let manual = include_str!("../../../../docs/redis.md");
    let entries: Vec<&str> =
        manual.lines().filter_map(|line| line.strip_prefix("#### `")?.strip_suffix('`')).collect();
    let mut wanted: Vec<&str> = Vec::new();
    for spec in COMMANDS {
        // A container that takes at least two arguments only has subcommands.
        if spec.subcommands.is_empty() || spec.accepts(1) {
            wanted.push(spec.syntax);
        }
        wanted.extend(spec.subcommands.iter().map(|sub| sub.syntax));
    }
    for syntax in &wanted {
        assert!(entries.contains(syntax), "docs/redis.md has no heading #### `{syntax}`");
    }
    for entry in entries {
        assert!(wanted.contains(&entry), "docs/redis.md describes `{entry}`, which is no command");
    }
}
