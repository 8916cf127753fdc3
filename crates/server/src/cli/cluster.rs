//! `oort cluster`: the cluster as one node sees it.

use clap::{Args, Subcommand};
use serde_json::Value as Json;

use super::node::NodeArguments;
use super::{print, Failure};
use crate::resp::Value;

/// Show the state of the cluster
#[derive(Args)]
#[command(after_help = "\
Examples:
  oort cluster status
  oort cluster status --node 10.0.0.2:6379 --json")]
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
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let Command::Status { json, node } = arguments.command;
    let mut node = node.connect()?;
    let Value::Bulk(text) = node.call(&["CLUSTER", "STATUS"])? else {
        return Err(node.unexpected("CLUSTER STATUS"));
    };
    let status: Json = serde_json::from_slice(&text).map_err(|_| node.unexpected("CLUSTER STATUS"))?;
    match json {
        true => print(format!("{status:#}\n").as_bytes()),
        false => print(report(&status).as_bytes()),
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
    if let Some(why) = node["read_only"].as_str() {
        out += &format!("it refuses writes: {why}\n");
    }
    out.push('\n');
    let mut members: Vec<&Json> = status["members"].as_array().into_iter().flatten().collect();
    members.sort_by_key(|member| (text(&member["name"]), text(&member["id"])));
    let header =
        ["node", "health", "partitions", "round trip", "redis", "http", "peer", "id"].map(String::from);
    let rows = members.into_iter().map(|member| row(member, &node["id"]));
    out + &aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

fn row(member: &Json, asked: &Json) -> [String; 8] {
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
        member["partitions"].to_string(),
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
                "partitions": 512, "rtt_us": rtt_us, "addresses": { "redis": "a:1", "http": "a:2", "peer": "a:3" } })
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

node    health   partitions  round trip  redis  http  peer  id
node1?  stopped  512         1.23 ms     a:1    a:2   a:3   0a
node2*  up       512         -           a:1    a:2   a:3   0b
";
        assert_eq!(report(&status), wanted);
    }
}
