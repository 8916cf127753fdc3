//! The node processes of a local cluster.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oort_core::types::SLOTS;
use rustix::process::{kill_process, Pid, Signal};

use super::ports::Ports;
use super::DevError;
use crate::client::Client;
use crate::config::options;
use crate::resp::Value;

/// How long one question to a node on this machine may take.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Time between two looks for nodes that were started by hand.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// One node as it is to be started.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// `node1` and so on.
    pub name: String,
    pub ports: Ports,
    pub config: PathBuf,
    pub log: PathBuf,
}

/// A node whose process has just ended.
pub struct Gone {
    pub name: String,
    pub pid: u32,
    /// `was killed by signal 9`, for example.
    pub how: String,
    pub log: PathBuf,
    /// The command that starts it again.
    pub restart: String,
}

/// All nodes of the cluster. Dropping it kills the processes that still run.
pub struct Nodes {
    nodes: Vec<Node>,
    looked: Instant,
}

struct Node {
    plan: NodePlan,
    process: Process,
}

enum Process {
    /// Its standard input stays open as long as the child is held; see [`super`].
    Ours(Child),
    Gone,
    /// Started by hand after the first process ended.
    ByHand {
        pid: u32,
    },
}

impl Nodes {
    /// Starts all of them.
    pub fn start(plans: Vec<NodePlan>) -> Result<Nodes, DevError> {
        let mut nodes = Nodes { nodes: Vec::new(), looked: Instant::now() };
        for plan in plans {
            let child = spawn(&plan)?;
            nodes.nodes.push(Node { plan, process: Process::Ours(child) });
        }
        Ok(nodes)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn first(&self) -> &NodePlan {
        &self.nodes.first().expect("a cluster has at least one node").plan
    }

    pub fn last(&self) -> &NodePlan {
        &self.nodes.last().expect("a cluster has at least one node").plan
    }

    pub fn last_pid(&self) -> Option<u32> {
        self.nodes.last().and_then(|node| node.process.pid())
    }

    /// Every node with its process, if it has one.
    pub fn each(&self) -> impl Iterator<Item = (&NodePlan, Option<u32>)> {
        self.nodes.iter().map(|node| (&node.plan, node.process.pid()))
    }

    /// Takes note of processes that have ended since the last call.
    pub fn reap(&mut self) -> Vec<Gone> {
        let mut gone = Vec::new();
        for node in &mut self.nodes {
            let (pid, how) = match &mut node.process {
                Process::Ours(child) => match child.try_wait() {
                    Ok(Some(status)) => (child.id(), how_it_ended(status)),
                    _ => continue,
                },
                Process::ByHand { pid } if !runs_with(*pid, &node.plan.config) => (*pid, "has ended".into()),
                _ => continue,
            };
            node.process = Process::Gone;
            gone.push(Gone {
                name: node.plan.name.clone(),
                pid,
                how,
                log: node.plan.log.clone(),
                restart: node.plan.restart_command(),
            });
        }
        gone
    }

    /// Nodes that had ended and answer again, each told once: name and pid.
    pub fn find_restarted(&mut self) -> Vec<(String, u32)> {
        if self.looked.elapsed() < LOOK_PAUSE {
            return Vec::new();
        }
        self.looked = Instant::now();
        let mut back = Vec::new();
        for node in &mut self.nodes {
            if !matches!(node.process, Process::Gone) {
                continue;
            }
            if let Some(pid) = answering_pid(&node.plan) {
                node.process = Process::ByHand { pid };
                back.push((node.plan.name.clone(), pid));
            }
        }
        back
    }

    /// The first node that does not see the whole ring yet, and what it lacks.
    pub fn first_not_ready(&self) -> Option<(&NodePlan, String)> {
        self.nodes.iter().find_map(|node| Some((&node.plan, lacks(&node.plan, self.len())?)))
    }

    /// Asks all to stop gracefully.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Ends all at once.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    /// How many processes of ours have not ended.
    pub fn running(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node.process, Process::Ours(_))).count()
    }

    pub fn running_names(&self) -> String {
        let running = self.nodes.iter().filter(|node| matches!(node.process, Process::Ours(_)));
        running.map(|node| node.plan.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Nodes that run but are not ours to stop: name and pid.
    pub fn started_by_hand(&self) -> impl Iterator<Item = (&str, u32)> {
        self.nodes.iter().filter_map(|node| match node.process {
            Process::ByHand { pid } => Some((node.plan.name.as_str(), pid)),
            _ => None,
        })
    }

    /// Addresses and pids for people.
    pub fn table(&self) -> String {
        let mut text = format!("  {:<8}{:<17}{:<17}{:<17}{}\n", "node", "redis", "http", "peer", "pid");
        for (plan, pid) in self.each() {
            let Ports { redis, http, peer } = plan.ports;
            let [redis, http, peer] = [redis, http, peer].map(|port| format!("127.0.0.1:{port}"));
            let pid = pid.map_or("-".into(), |pid| pid.to_string());
            text += &format!("  {:<8}{redis:<17}{http:<17}{peer:<17}{pid}\n", plan.name);
        }
        text
    }

    fn signal(&mut self, signal: Signal) {
        for node in &self.nodes {
            if let Process::Ours(child) = &node.process {
                // The child was not waited for yet, so the pid is still its own.
                let _ = kill_process(Pid::from_child(child), signal);
            }
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.kill();
        for node in &mut self.nodes {
            if let Process::Ours(child) = &mut node.process {
                let _ = child.wait();
            }
        }
    }
}

impl Process {
    fn pid(&self) -> Option<u32> {
        match self {
            Process::Ours(child) => Some(child.id()),
            Process::Gone => None,
            Process::ByHand { pid } => Some(*pid),
        }
    }
}

impl NodePlan {
    /// What to type to start this node by hand.
    pub fn restart_command(&self) -> String {
        format!("{} start --config {}", own_command(), shell_word(&self.config.to_string_lossy()))
    }
}

/// How to call this program from any directory: by its name if the shell found it by that, else by its path.
fn own_command() -> String {
    let called = std::env::args().next().unwrap_or_default();
    match (called.contains('/'), std::env::current_exe()) {
        (true, Ok(path)) => shell_word(&path.to_string_lossy()),
        _ => shell_word(&called),
    }
}

/// How to call this program from the current directory.
pub fn own_command_here() -> String {
    let (command, here) = (own_command(), std::env::current_dir().unwrap_or_default());
    match Path::new(&command).strip_prefix(&here) {
        Ok(below) if below.components().count() == 1 => format!("./{}", below.display()),
        Ok(below) => below.display().to_string(),
        Err(_) => command,
    }
}

/// True if `pid` is a node that was started with this configuration file. Always false where there is no `/proc`.
pub fn runs_with(pid: u32, config: &Path) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|word| {
        let word = String::from_utf8_lossy(word);
        Path::new(word.strip_prefix("--config=").unwrap_or(&word)) == config
    })
}

fn spawn(plan: &NodePlan) -> Result<Child, DevError> {
    let io = |path: &Path, error| DevError::Io { path: path.to_owned(), error };
    let program = std::env::current_exe().map_err(|error| io(Path::new("oort"), error))?;
    let log =
        File::options().create(true).append(true).open(&plan.log).map_err(|error| io(&plan.log, error))?;
    let copy = log.try_clone().map_err(|error| io(&plan.log, error))?;
    let mut command = Command::new(&program);
    command.args(["start", "--stop-with-stdin", "--config"]).arg(&plan.config);
    command.stdin(Stdio::piped()).stdout(log).stderr(copy);
    // Ctrl-C in the terminal is for `dev` alone, which then stops the nodes in its own way.
    command.process_group(0);
    for key in ["cluster", "name", "dir", "join", "cluster_size", "redis", "http", "peer", "sync"]
        .into_iter()
        .chain(["advertise_redis", "advertise_http", "advertise_peer"])
    {
        let option = options::find(key).expect("these are options");
        command.env_remove(option.variable());
    }
    command.spawn().map_err(|error| io(&program, error))
}

/// What a node lacks to be ready; `None`: it sees a ring of `nodes`.
fn lacks(plan: &NodePlan, nodes: usize) -> Option<String> {
    let mut client = match Client::connect(&format!("127.0.0.1:{}", plan.ports.redis), ASK_TIMEOUT) {
        Ok(client) => client,
        Err(_) => return Some("not listening yet".into()),
    };
    let info = match client.call(&["CLUSTER", "INFO"]) {
        Ok(Value::Bulk(text) | Value::Verbatim(_, text)) => String::from_utf8_lossy(&text).into_owned(),
        Ok(Value::Error(text)) => return Some(text.into_owned()),
        Ok(_) => return Some("another kind of server answers on its port".into()),
        Err(error) => return Some(error.to_string()),
    };
    let field = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| field(name).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let known = number("cluster_known_nodes");
    if known < nodes {
        return Some(format!("knows {known} of {nodes} nodes"));
    }
    match (field("cluster_state"), number("cluster_slots_ok") == usize::from(SLOTS)) {
        (Some("ok"), true) => None,
        (Some("ok"), false) => Some("cannot reach all other nodes yet".into()),
        _ => Some("the ring is not formed yet".into()),
    }
}

/// The process behind a node's Redis port, if it is that node.
fn answering_pid(plan: &NodePlan) -> Option<u32> {
    let mut client = Client::connect(&format!("127.0.0.1:{}", plan.ports.redis), ASK_TIMEOUT).ok()?;
    let Ok(Value::Bulk(text) | Value::Verbatim(_, text)) = client.call(&["INFO", "server"]) else {
        return None;
    };
    let text = String::from_utf8_lossy(&text);
    let pid = text.lines().find_map(|line| line.trim().strip_prefix("process_id:"))?.parse().ok()?;
    runs_with(pid, &plan.config).then_some(pid)
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// `text` as a shell reads it back as one word.
fn shell_word(text: &str) -> String {
    let is_plain =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./+:=@,~".contains(&b));
    match is_plain {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell() {
        for (text, word) in
            [("a/b-1.toml", "a/b-1.toml"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(shell_word(text), word);
        }
    }
}
