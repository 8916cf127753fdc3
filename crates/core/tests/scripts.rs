//! Golden scripts: `scripts/<area>/<scenario>.txt` tells a cluster's story, commands in, messages and decisions out.
//!
//! A line that starts with `>` is a command, a line that starts with `#` a comment; everything else was written by this
//! program. `UPDATE_GOLDENFILES=1 cargo test -p oort-core --test scripts` writes it anew: read that diff like code.
//! Gossip is left out; rings are always of strategy 3. Commands:
//!
//! ```text
//! > nodes COUNT          > put nI KEY VALUE     > kill nI      > advance MS
//! > list KEY             > get nI KEY           > start nI     > held KEY
//! ```

mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use oort_core::message::{Control, Message, ReadOutcome};
use oort_core::node::Event;
use oort_core::object::Object;
use oort_core::placement::Strategy;
use support::{text, Cluster};

#[test]
fn golden_scripts_tell_the_same_story() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut scripts: Vec<PathBuf> = Vec::new();
    for area in std::fs::read_dir(folder).expect("there are scripts") {
        let files = std::fs::read_dir(area.expect("an area").path()).expect("an area is a folder");
        scripts.extend(files.map(|file| file.expect("a script").path()));
    }
    scripts.sort();
    assert!(!scripts.is_empty());
    let updates = std::env::var_os("UPDATE_GOLDENFILES").is_some();
    for path in scripts {
        let script = std::fs::read_to_string(&path).expect("a script is text");
        assert!(script.starts_with("# "), "{}: the first line says what it shows", path.display());
        let told = tell(&script);
        match updates {
            true => std::fs::write(&path, told).expect("the script can be written"),
            false => assert_eq!(told, script, "{}: UPDATE_GOLDENFILES=1 rewrites it", path.display()),
        }
    }
}

fn tell(script: &str) -> String {
    let mut cluster: Option<Cluster> = None;
    let mut told = String::new();
    for line in script.lines() {
        if line.starts_with('#') {
            let gap = if told.is_empty() { "" } else { "\n" };
            writeln!(told, "{gap}{line}").expect("memory");
        } else if let Some(command) = line.strip_prefix("> ") {
            let gap = if told.lines().last().is_some_and(|line| line.starts_with('#')) { "" } else { "\n" };
            writeln!(told, "{gap}> {command}").expect("memory");
            let words: Vec<&str> = command.split(' ').collect();
            if let ["nodes", count] = words[..] {
                let count = count.parse().expect("a number of nodes");
                cluster = Some(Cluster::with(count, |config| config.strategy = Strategy::EqualPartitions));
                continue;
            }
            let cluster = cluster.as_mut().expect("a script starts with `nodes`");
            let answer = run(cluster, &words);
            report(cluster, &mut told);
            answer.lines().for_each(|line| writeln!(told, "{line}").expect("memory"));
        }
    }
    told
}

fn run(cluster: &mut Cluster, words: &[&str]) -> String {
    let node = |word: &str| -> usize { word[1..].parse().expect("a node is n and its number") };
    match words {
        ["put", at, key, value] => match cluster.put(node(at), key, value) {
            Ok(_) => "ok".into(),
            Err(error) => format!("error: {error}"),
        },
        ["get", at, key] => match cluster.get(node(at), key) {
            Ok(object) => format!("{:?}", cluster.texts(node(at), &object)),
            Err(error) => format!("error: {error}"),
        },
        ["kill", at] => {
            cluster.kill(node(at));
            String::new()
        }
        ["start", at] => {
            cluster.restart(node(at));
            String::new()
        }
        ["advance", ms] => {
            cluster.advance(ms.parse().expect("milliseconds"));
            String::new()
        }
        ["list", key] => {
            let names: Vec<String> = cluster.list(key).iter().map(|i| format!("n{i}")).collect();
            names.join(" ")
        }
        ["held", key] => {
            let mut held = String::new();
            for i in 0..cluster.machines.len() {
                let what = cluster.held(i, key).map_or("nothing".into(), |object| values(&object));
                writeln!(held, "n{i}: {what}, {} hints", cluster.hints(i)).expect("memory");
            }
            held
        }
        other => panic!("unknown command {other:?}"),
    }
}

fn report(cluster: &mut Cluster, told: &mut String) {
    for (from, to, arrives, message) in std::mem::take(&mut cluster.log) {
        if let Some(message) = describe(cluster, &message) {
            let lost = if arrives { "" } else { " (lost)" };
            writeln!(told, "n{from} -> n{to}: {message}{lost}").expect("memory");
        }
    }
    for (i, event) in std::mem::take(&mut cluster.events) {
        let name = |id| cluster.index_of(id).map_or("?".into(), |i| format!("n{i}"));
        let event = match event {
            Event::HealthChanged { peer, from, to } => format!("{} was {from:?}, is {to:?}", name(peer)),
            Event::HandoffDone { owner, delivered } => {
                format!("gave {delivered} hints back to {}", name(owner))
            }
            Event::MemberChanged { member } => format!("{} has news", name(member.id)),
            other => format!("{other:?}"),
        };
        writeln!(told, "n{i} notes: {event}").expect("memory");
    }
}

fn values(object: &Object) -> String {
    let siblings = object.siblings(support::WALL_START_MS);
    let values: Vec<String> = siblings.iter().map(|sibling| text(&sibling.value)).collect();
    format!("[{}]", values.join(", "))
}

fn describe(cluster: &Cluster, message: &Message) -> Option<String> {
    let contents = |bytes: &Bytes| values(&Object::decode(bytes).expect("nodes send objects"));
    Some(match message {
        Message::Write { key, object, hint_for, .. } => {
            let hint =
                hint_for.and_then(|id| cluster.index_of(id)).map_or(String::new(), |i| format!(" for n{i}"));
            format!("write {} {}{hint}", text(key.key()), contents(object))
        }
        Message::Claim { key, .. } => format!("claim {}", text(key.key())),
        Message::Written { outcome, .. } => format!("written: {outcome:?}").to_lowercase(),
        Message::Read { key, have, .. } => {
            format!("read {}{}", text(key.key()), if *have == 0 { "" } else { ", unless the same" })
        }
        Message::ReadResult { outcome, .. } => match outcome {
            ReadOutcome::Object(object) => format!("holds {}", contents(object)),
            other => format!("holds: {other:?}").to_lowercase(),
        },
        Message::Control(Control::Gossip(_)) => return None,
        Message::Control(Control::Forward { .. }) => "forward".into(),
        Message::Control(Control::Forwarded { result, .. }) => {
            format!("forwarded: {}", if result.is_ok() { "done" } else { "failed" })
        }
        Message::Control(other) => format!("{other:?}"),
    })
}
