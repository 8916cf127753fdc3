//! `oort cluster`: the cluster as one node sees it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value as Json;

use super::node::{Node, NodeArguments};
use super::{print, Failure};
use crate::resp::Value;

/// Show the state of the cluster, and change which nodes hold its data
#[derive(Args)]
#[command(after_help = "\
A NODE is the name or the id of a member, see 'oort cluster status'. With --plan
nothing is changed. Otherwise the command waits until the data have moved; it
can be interrupted: the move goes on, and 'oort cluster wait' watches it again.

Examples:
  oort cluster status --node 10.0.0.2:6379 --json
  oort cluster join node4 --plan
  oort cluster leave node2
  oort cluster remove node3     (it is gone for good)")]
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
        #[arg(value_name = "NODE")]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Have a node hand over all its data; then it can be stopped
    Leave {
        #[arg(value_name = "NODE")]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Make the copies of a node that is gone for good anew
    Remove {
        #[arg(value_name = "NODE")]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Have a member take the place of another node, which leaves; then remove that one if it is gone
    Replace {
        old: String,
        new: String,
        #[command(flatten)]
        how: How,
    },
    /// Change a node's share of the data
    Weight {
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
        Command::Join { name, how } => change(&["JOIN", &name], &how),
        Command::Leave { name, how } => change(&["LEAVE", &name], &how),
        Command::Remove { name, how } => change(&["REMOVE", &name], &how),
        Command::Replace { old, new, how } => change(&["REPLACE", &old, &new], &how),
        Command::Weight { name, weight, how } => change(&["WEIGHT", &name, &weight.to_string()], &how),
        Command::Zone { name, zone, how } => change(&["ZONE", &name, &zone], &how),
        Command::Wait { node } => wait(&mut node.connect()?),
    }
}

fn status(node: &mut Node) -> Result<Json, Failure> {
    let Value::Bulk(text) = node.call(&["CLUSTER", "STATUS"])? else {
        return Err(node.unexpected("CLUSTER STATUS"));
    };
    serde_json::from_slice(&text).map_err(|_| node.unexpected("CLUSTER STATUS"))
}

/// Plans a change of the ring, or carries it out and waits for the data.
fn change(words: &[&str], how: &How) -> Result<(), Failure> {
    let mut node = how.node.connect()?;
    let command: Vec<&str> =
        ["RING"].iter().chain(words).chain(how.plan.then_some(&"PLAN")).copied().collect();
    let reply = node.call(&command)?;
    let names = names(&status(&mut node)?);
    print(plan(&reply, &names).ok_or_else(|| node.unexpected("RING"))?.as_bytes())?;
    match how.plan || how.no_wait {
        true => Ok(()),
        false => wait(&mut node),
    }
}

/// The members' names by their ids.
fn names(status: &Json) -> BTreeMap<String, String> {
    let members = status["members"].as_array().into_iter().flatten();
    members.map(|member| (text(&member["id"]), text(&member["name"]))).collect()
}

/// A plan as people read it.
fn plan(reply: &Value, names: &BTreeMap<String, String>) -> Option<String> {
    let (version, slots) = (number(reply, "version")?, number(reply, "slots")?);
    let percent = |count: i64| format!("{:.1}%", count as f64 * 100.0 / slots as f64);
    let mut rows = vec![["node", "holds", "will hold", "is sent"].map(String::from)];
    let Value::Array(nodes) = field(reply, "nodes")? else { return None };
    let mut received = 0;
    for node in nodes {
        let Value::Bulk(id) = field(node, "node")? else { return None };
        let id = String::from_utf8_lossy(id).into_owned();
        let receives = number(node, "receives")?;
        received += receives;
        let [before, after] = [number(node, "before")?, number(node, "after")?].map(percent);
        rows.push([names.get(&id).cloned().unwrap_or(id), before, after, percent(receives)]);
    }
    let moved = percent(number(reply, "slots_moved")?);
    Some(format!(
        "ring version {version}: {moved} of the ring get another first owner, {} of one copy of the data are sent\n\n{}",
        percent(received),
        aligned(&rows)
    ))
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

/// Shows how far the data are until they are all there. Ranges are counted over all nodes that can be asked.
fn wait(node: &mut Node) -> Result<(), Failure> {
    const PAUSE: Duration = Duration::from_millis(300);
    const BAR: usize = 30;
    let is_terminal = std::io::stderr().is_terminal();
    let mut shown = String::new();
    loop {
        let overview = status(node)?;
        if overview["ring"]["moving"].as_bool() != Some(true) {
            if is_terminal && !shown.is_empty() {
                eprint!("\r{}\r", " ".repeat(shown.len()));
            }
            return print(
                format!("ring version {}: all data are where they belong\n", overview["ring"]["version"])
                    .as_bytes(),
            );
        }
        let (mut total, mut done, mut bytes) = (0, 0, 0);
        let members = overview["members"].as_array().into_iter().flatten();
        let addresses = members.filter_map(|member| member["addresses"]["redis"].as_str());
        for status in addresses.filter_map(|address| status(&mut Node::at(address, PAUSE).ok()?).ok()) {
            let count = |name: &str| status["node"][name].as_u64().unwrap_or(0);
            total += count("ranges_to_fetch");
            done += count("ranges_fetched");
            bytes += count("bytes_fetched");
        }
        let filled = (done as usize * BAR).checked_div(total as usize).unwrap_or(0);
        let bar = "#".repeat(filled) + &".".repeat(BAR - filled);
        let line = format!("[{bar}] {done} of {total} ranges, {} fetched", size(bytes));
        if is_terminal {
            eprint!("\r{line:<width$}", width = shown.len());
        } else if line != shown {
            eprintln!("{line}");
        }
        shown = line;
        std::thread::sleep(PAUSE);
    }
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
    out.push('\n');
    let mut members: Vec<&Json> = status["members"].as_array().into_iter().flatten().collect();
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
