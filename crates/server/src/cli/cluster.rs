//! `oort cluster`: the cluster as one node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value as Json;

use super::node::{Node, NodeArguments};
use super::{print, Failure};
use crate::resp::Value;

/// Between two looks at a move; also how long a node may take to say how far it is.
const PAUSE: Duration = Duration::from_millis(300);
/// Length of the progress bar.
const BAR: usize = 30;

/// Show the state of the cluster, and change which nodes hold its data
#[derive(Args)]
#[command(after_help = "\
A NODE is the name or the id of a member, see 'oort cluster status'. With --plan
nothing is changed. Otherwise the command waits until the data have moved; it
can be interrupted: the move goes on, and the same command, or 'oort cluster
wait', watches it again.

Examples:
  oort cluster status --node 10.0.0.2:6379 --json
  oort cluster join node4 --plan
  oort cluster leave node2
  oort cluster remove node3                  (it is gone for good)
  oort cluster replace node3 node5 --gone    (and node5 is to have its place)")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the nodes and their health, in the opinion of the node that is asked
    Status {
        /// Print everything as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeArguments,
    },
    /// Have a member hold its share of the data
    Join {
        /// The node's name, or its id
        #[arg(value_name = "NODE")]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Have a node hand over all its data; then it can be stopped
    Leave {
        /// The node's name, or its id
        #[arg(value_name = "NODE")]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Make the copies of a node that is gone for good anew, and forget it
    Remove {
        /// The node's name, or its id
        #[arg(value_name = "NODE")]
        name: String,
        /// Do so although other nodes cannot confirm that it is gone, or data may be lost that only it holds
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        how: How,
    },
    /// Have a member take the place of another node, which leaves
    Replace {
        /// The name or id of the node that leaves; if several have this name, the one in the ring
        old: String,
        /// The name or id of the node that takes its place; if several have this name, the one that is not in the ring
        new: String,
        /// OLD is gone for good: make its copies anew from the others'
        #[arg(long)]
        gone: bool,
        /// With --gone: as with 'remove'
        #[arg(long, requires = "gone")]
        force: bool,
        #[command(flatten)]
        how: How,
    },
    /// Change a node's share of the data
    Weight {
        /// The node's name, or its id
        #[arg(value_name = "NODE")]
        name: String,
        /// In relation to the others', which have 100 by default
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
        weight: u16,
        #[command(flatten)]
        how: How,
    },
    /// Change what a node fails together with: copies are spread over zones
    Zone {
        /// The node's name, or its id
        #[arg(value_name = "NODE")]
        name: String,
        zone: String,
        #[command(flatten)]
        how: How,
    },
    /// Wait until no data move
    Wait {
        #[command(flatten)]
        node: NodeArguments,
    },
}

#[derive(Args)]
struct How {
    /// Print what would move, and change nothing
    #[arg(long)]
    plan: bool,
    /// Do not wait until the data have moved
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    node: NodeArguments,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Status { json, node } => {
            let status = status(&mut node.connect()?)?;
            match json {
                true => print(format!("{status:#}\n").as_bytes()),
                false => print(report(&status).as_bytes()),
            }
        }
        Command::Join { name, how } => change(&["JOIN", &name], &[], &how),
        Command::Leave { name, how } => change(&["LEAVE", &name], &[], &how),
        Command::Remove { name, force, how } => change(&["REMOVE", &name], &[(force, "FORCE")], &how),
        Command::Replace { old, new, gone, force, how } => {
            change(&["REPLACE", &old, &new], &[(gone, "GONE"), (force, "FORCE")], &how)
        }
        Command::Weight { name, weight, how } => change(&["WEIGHT", &name, &weight.to_string()], &[], &how),
        Command::Zone { name, zone, how } => change(&["ZONE", &name, &zone], &[], &how),
        Command::Wait { node } => {
            let mut node = node.connect()?;
            let before = moved(&status(&mut node)?);
            wait(&mut node, before)
        }
    }
}

fn status(node: &mut Node) -> Result<Json, Failure> {
    let Value::Bulk(text) = node.call(&["CLUSTER", "STATUS"])? else {
        return Err(node.unexpected("CLUSTER STATUS"));
    };
    serde_json::from_slice(&text).map_err(|_| node.unexpected("CLUSTER STATUS"))
}

/// Plans a change of the ring, or carries it out and waits for the data. Of `options` those that are true are given.
fn change(words: &[&str], options: &[(bool, &str)], how: &How) -> Result<(), Failure> {
    let mut node = how.node.connect()?;
    let before = status(&mut node)?;
    let is_in_effect = is_in_effect(words, &before);
    let mut command = vec!["RING"];
    command.extend(words);
    command.extend(options.iter().filter(|(is_given, _)| *is_given).map(|(_, word)| word));
    command.extend(how.plan.then_some("PLAN"));
    match node.call(&command) {
        Ok(reply) => print(plan(&reply, &before).ok_or_else(|| node.unexpected("RING"))?.as_bytes())?,
        Err(Failure::Failed { .. }) if !how.plan && is_in_effect => {
            print(b"the ring is changing so already, or has changed so\n")?
        }
        Err(Failure::Failed { text }) => return Err(Failure::Failed { text: named(text, &before) }),
        Err(failure) => return Err(failure),
    }
    if how.plan {
        return Ok(());
    }
    match how.no_wait {
        true => Ok(()),
        false => wait(&mut node, moved(&before)),
    }
}

fn is_down(member: &Json) -> bool {
    member["health"] == "down"
}

/// Whether a change that was refused is what the ring does, or has done: then asking again is no error.
fn is_in_effect(words: &[&str], status: &Json) -> bool {
    let is = |name: &str, states: &[&str]| {
        let mut named = members(status).filter(|member| is_called(member, name));
        named.any(|member| member["in_ring"].as_str().is_some_and(|state| states.contains(&state)))
    };
    let has = |name: &str, field: &str, value: &str| {
        let mut named = members(status).filter(|member| is_called(member, name));
        named.any(|member| member[field].as_str().map_or(member[field].to_string(), str::to_owned) == value)
    };
    match *words {
        ["JOIN", name] => is(name, &["yes", "joining"]),
        ["LEAVE", name] => is(name, &["no", "leaving"]),
        ["REPLACE", old, new] => {
            let is_old = |member: &Json| is_called(member, old) && member["in_ring"] == "yes";
            let is_new = |member: &Json| {
                is_called(member, new) && (member["in_ring"] == "yes" || member["in_ring"] == "joining")
            };
            let new = members(status).find(|member| is_new(member));
            new.is_some_and(|new| !members(status).any(|member| member["id"] != new["id"] && is_old(member)))
        }
        ["WEIGHT", name, weight] => has(name, "weight", weight),
        ["ZONE", name, zone] => has(name, "zone", zone),
        _ => false,
    }
}

fn members(status: &Json) -> impl Iterator<Item = &Json> {
    status["members"].as_array().into_iter().flatten()
}

fn is_called(member: &Json, name: &str) -> bool {
    member["name"] == name || member["id"] == name
}

/// A node's refusal, with the names of the nodes whose ids it has.
fn named(mut refusal: String, status: &Json) -> String {
    for member in members(status) {
        let (id, name) = (text(&member["id"]), text(&member["name"]));
        refusal = refusal.replace(&id, &format!("{name} ({id})"));
    }
    refusal
}

/// A plan as people read it.
fn plan(reply: &Value, status: &Json) -> Option<String> {
    let names: BTreeMap<String, String> =
        members(status).map(|member| (text(&member["id"]), text(&member["name"]))).collect();
    let (version, slots) = (number(reply, "version")?, number(reply, "slots")?);
    let percent = |count: i64| format!("{:.1}%", count as f64 * 100.0 / slots as f64);
    let mut rows = vec![["node", "holds", "will hold", "is sent"].map(String::from)];
    let Value::Array(nodes) = field(reply, "nodes")? else { return None };
    let (mut received, mut left) = (0, 0);
    for node in nodes {
        let Value::Bulk(id) = field(node, "node")? else { return None };
        let id = String::from_utf8_lossy(id).into_owned();
        let receives = number(node, "receives")?;
        received += receives;
        let [before, after] = [number(node, "before")?, number(node, "after")?];
        left += (after > 0) as u64;
        let name = names.get(&id).cloned().unwrap_or(id);
        rows.push([name, percent(before), percent(after), percent(receives)]);
    }
    let moved = percent(number(reply, "slots_moved")?);
    let sent = percent(received);
    let mut out = format!(
        "ring version {version}: {moved} of the ring get another first owner, {sent} of one copy of the data are \
         sent\n\n{}",
        aligned(&rows)
    );
    let buckets = status["buckets"].as_array().into_iter().flatten();
    let copies = buckets.filter_map(|bucket| bucket["properties"]["n"].as_u64()).max().unwrap_or(0);
    if left < copies {
        out += &format!(
            "\n{left} nodes hold data then: of {copies} copies that a bucket wants there are {left}\n"
        );
    }
    Some(out)
}

fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let is_name = |key: &Value| matches!(key, Value::Bulk(text) if &text[..] == name.as_bytes());
    match value {
        Value::Map(fields) => fields.iter().find(|(key, _)| is_name(key)).map(|(_, value)| value),
        // RESP2 has no maps.
        Value::Array(fields) => fields.chunks_exact(2).find(|pair| is_name(&pair[0])).map(|pair| &pair[1]),
        _ => None,
    }
}

fn number(value: &Value, name: &str) -> Option<i64> {
    match field(value, name)? {
        Value::Integer(number) => Some(*number),
        _ => None,
    }
}

/// What nodes have fetched since they started, and for the change that is under way.
#[derive(Clone, Copy, Default)]
struct Moved {
    partitions: u64,
    partitions_wanted: u64,
    keys: u64,
    bytes: u64,
}

/// The sum over all members that can be asked.
fn moved(overview: &Json) -> Moved {
    let mut moved = Moved::default();
    let addresses = members(overview).filter_map(|member| member["addresses"]["redis"].as_str());
    for status in addresses.filter_map(|address| status(&mut Node::at(address, PAUSE).ok()?).ok()) {
        let count = |name: &str| status["node"][name].as_u64().unwrap_or(0);
        moved.partitions += count("partitions_fetched");
        moved.partitions_wanted += count("partitions_to_fetch");
        moved.keys += count("keys_fetched");
        moved.bytes += count("bytes_fetched");
    }
    moved
}

/// Shows how far the data are until they are all there, and whom they wait for.
fn wait(node: &mut Node, before: Moved) -> Result<(), Failure> {
    let is_terminal = std::io::stderr().is_terminal();
    let (mut shown, mut told) = (String::new(), BTreeSet::new());
    loop {
        let overview = status(node)?;
        let Moved { partitions, partitions_wanted, keys, bytes } = moved(&overview);
        // A node that started again counts from 0.
        let (keys, bytes) = (keys.saturating_sub(before.keys), bytes.saturating_sub(before.bytes));
        if overview["ring"]["moving"].as_bool() != Some(true) {
            if is_terminal && !shown.is_empty() {
                eprint!("\r{}\r", " ".repeat(shown.len()));
            }
            let version = &overview["ring"]["version"];
            let fetched = match keys {
                0 => String::new(),
                _ => format!(" ({keys} keys, {} fetched)", size(bytes)),
            };
            return print(
                format!("ring version {version}: all data are where they belong{fetched}\n").as_bytes(),
            );
        }
        let filled = (partitions as usize * BAR).checked_div(partitions_wanted as usize).unwrap_or(0);
        let bar = "#".repeat(filled) + &".".repeat(BAR - filled);
        let line = format!("[{bar}] {partitions} of {partitions_wanted} partitions, {} fetched", size(bytes));
        if is_terminal {
            eprint!("\r{line:<width$}", width = shown.len());
        } else if line != shown {
            eprintln!("{line}");
        }
        shown = line;
        for member in members(&overview).filter(|member| is_awaited(member)) {
            let (name, id) = (text(&member["name"]), text(&member["id"]));
            if told.insert(id.clone()) {
                let start = if is_terminal { "\n" } else { "" };
                eprintln!(
                    "{start}{name} is down, and the move waits for it: start it, or if it is gone for good, type \
                     'oort cluster remove {id}'"
                );
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether a change waits for this member, which is down.
fn is_awaited(member: &Json) -> bool {
    is_down(member) && (member["in_ring"] == "leaving" || member["in_ring"] == "joining")
}

/// The status as people read it. The members stand in the order of their names; the node that was asked has a star.
fn report(status: &Json) -> String {
    let (node, ring) = (&status["node"], &status["ring"]);
    let mut out = format!("cluster '{}': ", text(&status["cluster"]));
    out += &match ring {
        Json::Null => "the ring is not formed yet\n".into(),
        _ => format!(
            "{} on {}, ring version {}\n",
            count(&ring["partitions"], "partition"),
            count(&ring["nodes"], "node"),
            ring["version"]
        ),
    };
    out += &format!(
        "asked {}: up for {}, {}, {} on disk, {} waiting\n",
        text(&node["name"]),
        duration(node["uptime_ms"].as_u64().unwrap_or(0)),
        count(&node["connections"], "connection"),
        size(node["store_bytes"].as_u64().unwrap_or(0)),
        count(&status["hints_pending"], "hint"),
    );
    if ring["moving"].as_bool() == Some(true) {
        out += "data are moving to the nodes of this ring version\n";
    }
    if let Some(why) = node["read_only"].as_str() {
        out += &format!("it refuses writes: {why}\n");
    }
    let correction_ms = node["clock_correction_ms"].as_i64().unwrap_or(0);
    if correction_ms != 0 {
        let (ahead_ms, side) =
            (correction_ms.unsigned_abs(), if correction_ms > 0 { "behind" } else { "ahead of" });
        out += &format!(
            "its clock is {} {side} most of the others', whose time it goes by: set it\n",
            duration(ahead_ms)
        );
    }
    if node["in_ring"] == "removed" {
        out += "an operator has removed it: it holds no data, and the others do not know it any more\n";
    }
    for member in members(status) {
        out += &returned(member, status).unwrap_or_default();
    }
    for link in status["links"].as_array().into_iter().flatten() {
        let direction = if link["dialled_by"] == "us" { "no link to" } else { "refused a link from" };
        out += &format!("{direction} {}: {}\n", text(&link["address"]), text(&link["why"]));
    }
    out.push('\n');
    let mut members: Vec<&Json> = members(status).collect();
    members.sort_by_key(|member| (text(&member["name"]), text(&member["id"])));
    let header = [
        "node",
        "health",
        "in ring",
        "partitions",
        "weight",
        "zone",
        "round trip",
        "redis",
        "http",
        "peer",
        "id",
    ]
    .map(String::from);
    let rows = members.into_iter().map(|member| row(member, &node["id"]));
    out + &aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

/// What to do about a node that seems to have come back without its disk.
fn returned(member: &Json, status: &Json) -> Option<String> {
    let former = members(status).find(|other| other["id"] == member["former"])?;
    let (old, new) = (text(&former["id"]), text(&member["id"]));
    Some(format!(
        "{} ({new}) is not in the ring. {} ({old}), which is, had its place and is down: if that was the same node \
         before its disk was lost, type 'oort cluster replace {old} {new} --gone'\n",
        text(&member["name"]),
        text(&former["name"]),
    ))
}

fn row(member: &Json, asked: &Json) -> [String; 11] {
    let is_asked = member["id"] == *asked;
    let health = match (member["health"].as_str(), member["stopped"].as_bool()) {
        (Some("down"), Some(true)) => "stopped".into(),
        (health, _) => health.unwrap_or("?").to_owned(),
    };
    let round_trip = match member["rtt_us"].as_u64() {
        _ if is_asked => "-".into(),
        None | Some(0) => "?".into(),
        Some(us) => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
    };
    let addresses = &member["addresses"];
    [
        format!("{}{}", text(&member["name"]), if is_asked { "*" } else { "" }),
        health,
        text(&member["in_ring"]),
        member["partitions"].to_string(),
        member["weight"].to_string(),
        Some(text(&member["zone"])).filter(|zone| !zone.is_empty()).unwrap_or_else(|| "-".into()),
        round_trip,
        text(&addresses["redis"]),
        text(&addresses["http"]),
        text(&addresses["peer"]),
        text(&member["id"]),
    ]
}

/// Lines of columns, each as wide as its widest cell.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}

/// A text, without what could confuse a terminal.
fn text(json: &Json) -> String {
    json.as_str().unwrap_or("?").chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn count(number: &Json, what: &str) -> String {
    let ending = if number.as_u64() == Some(1) { "" } else { "s" };
    format!("{number} {what}{ending}")
}

fn duration(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        10_000_000..=9_999_999_999 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_aligned_and_marks_the_node_that_was_asked() {
        let member = |id: &str, name: &str, health: &str, rtt_us: u64| {
            serde_json::json!({ "id": id, "name": name, "health": health, "stopped": health == "down",
                "in_ring": "yes", "weight": 100, "zone": "", "partitions": 512, "rtt_us": rtt_us, "addresses": { "redis": "a:1", "http": "a:2", "peer": "a:3" } })
        };
        let status = serde_json::json!({
            "cluster": "dev", "hints_pending": 4,
            "node": { "id": "0b", "name": "node2", "uptime_ms": 125_000, "connections": 1, "store_bytes": 20_480,
                "read_only": "the disk is full" },
            "members": [member("0b", "node2", "up", 0), member("0a", "node1\u{1b}", "down", 1230)],
            "ring": { "version": 1, "partitions": 1024, "nodes": 2 },
        });
        let wanted = "\
cluster 'dev': 1024 partitions on 2 nodes, ring version 1
asked node2: up for 2 min, 1 connection, 20 kB on disk, 4 hints waiting
it refuses writes: the disk is full

node    health   in ring  partitions  weight  zone  round trip  redis  http  peer  id
node1?  stopped  yes      512         100     -     1.23 ms     a:1    a:2   a:3   0a
node2*  up       yes      512         100     -     -           a:1    a:2   a:3   0b
";
        assert_eq!(report(&status), wanted);
    }
}
