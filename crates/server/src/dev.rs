//! A whole cluster on this machine with one command: `oort dev`.
//!
//! Every node is a real process, `oort start --config DIR/nodeN/oort.toml`, so that `kill -9` is the real thing and the
//! very command that `dev` runs is the one that brings a dead node back by hand. `dev` restarts nothing by itself: it
//! says what died and how to restart it. It holds the write end of each child's standard input; a child stops when
//! that closes, so no node outlives `dev`, however it ends.
//!
//! ```text
//! DIR/dev.lock             locked while 'oort dev' runs
//! DIR/cluster.json         the running nodes: name, pid, addresses; written when all are ready, removed at the end
//! DIR/nodeN/oort.toml      the node's configuration, written at each start
//! DIR/nodeN/oort.log       what the node logs; the log of the run before is oort.log.1
//! DIR/nodeN/data/          the node's data
//! ```
//!
//! Read next: `dev::place` (the directory), `dev::ports`, `dev::nodes` (the processes).

mod nodes;
mod place;
mod ports;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::words;
use nodes::Nodes;
use place::Place;

/// The most nodes on one machine.
pub const NODES_MAX: u16 = 64;
/// Nodes of a new directory when nothing is asked for.
pub const NODES_DEFAULT: u16 = 3;
/// The Redis port that the command line asks unless it is told another.
pub const DEFAULT_REDIS_PORT: u16 = 6379;
/// How long the nodes may take to form the ring.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node may take to stop before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Time between two looks at processes and signals.
const PAUSE: Duration = Duration::from_millis(50);

/// What `oort dev` is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// `None`: as many as the directory has, or [`NODES_DEFAULT`].
    pub nodes: Option<u16>,
    pub home: Home,
    pub first_ports: FirstPorts,
    /// The value of the option `sync` for all nodes; `None`: the default.
    pub sync: Option<String>,
}

/// Where the cluster's directory is.
#[derive(Clone, Debug)]
pub enum Home {
    /// In the user's data directory.
    Default,
    At(PathBuf),
    /// A new one, removed at the end.
    Ephemeral,
}

/// The ports of node 1; those of the others follow.
#[derive(Clone, Copy, Debug)]
pub struct FirstPorts {
    pub redis: u16,
    pub http: u16,
    pub peer: u16,
}

/// Why there is no cluster, or no more. All nodes are stopped.
#[derive(Debug)]
pub enum DevError {
    /// The directory has another number of nodes.
    OtherSize { dir: PathBuf, found: u16, wanted: u16 },
    /// Another `oort dev` runs in this directory.
    InUse { dir: PathBuf, pid: String },
    /// A node of an earlier run still runs in this directory.
    StillRunning { node: String, pid: u32 },
    /// Neither HOME nor XDG_DATA_HOME says where data belong.
    NoHome,
    /// A file or directory cannot be used.
    Io { path: PathBuf, error: io::Error },
    /// The ports do not fit below 65536, or none is free.
    Ports { detail: String },
    /// A node ended before the cluster was ready.
    Ended { node: String, how: String, log_end: String },
    /// The ring was not formed in time.
    NotReady { node: String, detail: String, log_end: String },
}

impl fmt::Display for DevError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DevError::OtherSize { dir, found, wanted } => write!(
                f,
                "{} holds a cluster of {found} nodes, not {wanted}: leave out --nodes, give another --dir, or delete it",
                dir.display()
            ),
            DevError::InUse { dir, pid } => write!(
                f,
                "{} is in use by another 'oort dev' (pid {pid}): stop that one, or give this one another --dir",
                dir.display()
            ),
            DevError::StillRunning { node, pid } => {
                write!(f, "{node} of an earlier run is still running (pid {pid}): stop it first, with 'kill {pid}'")
            }
            DevError::NoHome => write!(f, "neither HOME nor XDG_DATA_HOME is set: give --dir or --ephemeral"),
            DevError::Io { path, error } => write!(f, "{}: {}", path.display(), words(error)),
            DevError::Ports { detail } => f.write_str(detail),
            DevError::Ended { node, how, log_end } => {
                write!(f, "{node} {how} before the cluster was ready; the end of its log:\n{log_end}")
            }
            DevError::NotReady { node, detail, log_end } => {
                let seconds = READY_TIMEOUT.as_secs();
                write!(f, "not ready after {seconds} s: {node}: {detail}; the end of its log:\n{log_end}")
            }
        }
    }
}

impl std::error::Error for DevError {}

/// Starts the cluster, tells how to reach it, and watches over it until Ctrl-C or SIGTERM.
pub fn run(request: &Request) -> Result<(), DevError> {
    let interrupt = Interrupt::new();
    let place = Place::open(&request.home)?;
    let count = place.node_count(request.nodes)?;
    place.wait_for_survivors()?;
    let ports = ports::choose(request.first_ports, count, &mut say)?;
    let nodes = place.prepare(&ports, request.sync.as_deref())?;

    say(&format!(
        "starting {count} {} in {}",
        if count == 1 { "node" } else { "nodes" },
        place.dir().display()
    ));
    let mut nodes = Nodes::start(nodes)?;
    if wait_until_ready(&mut nodes, &interrupt)? {
        place.write_cluster(&nodes)?;
        say(&format!("ready\n\n{}", nodes.table()));
        say(&next_steps(&nodes, &place));
        watch(&mut nodes, &place, &interrupt)?;
    }
    stop(&mut nodes, &place, &interrupt);
    Ok(())
}

/// True when all nodes are ready, false if the user wants to stop before that.
fn wait_until_ready(nodes: &mut Nodes, interrupt: &Interrupt) -> Result<bool, DevError> {
    let start = Instant::now();
    let mut told = start;
    loop {
        if interrupt.take() {
            return Ok(false);
        }
        if let Some(gone) = nodes.reap().into_iter().next() {
            return Err(DevError::Ended { node: gone.name, how: gone.how, log_end: tail(&gone.log) });
        }
        let Some((node, detail)) = nodes.first_not_ready() else {
            return Ok(true);
        };
        if start.elapsed() > READY_TIMEOUT {
            return Err(DevError::NotReady { node: node.name.clone(), detail, log_end: tail(&node.log) });
        }
        if told.elapsed() > Duration::from_secs(3) {
            told = Instant::now();
            say(&format!("waiting: {}: {detail}", node.name));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Reports deaths and returns until the user wants to stop.
fn watch(nodes: &mut Nodes, place: &Place, interrupt: &Interrupt) -> Result<(), DevError> {
    while !interrupt.take() {
        let gone = nodes.reap();
        for node in &gone {
            say(&format!(
                "{} (pid {}) {}; restart it in another terminal with: {}",
                node.name, node.pid, node.how, node.restart
            ));
        }
        let back = nodes.find_restarted();
        for (name, pid) in &back {
            say(&format!("{name} is back (pid {pid}, started by hand)"));
        }
        if !gone.is_empty() || !back.is_empty() {
            place.write_cluster(nodes)?;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Stops all nodes: asks, waits, and kills those that do not. Another Ctrl-C kills at once; that loses nothing.
fn stop(nodes: &mut Nodes, place: &Place, interrupt: &Interrupt) {
    say("stopping all nodes");
    nodes.terminate();
    let deadline = Instant::now() + STOP_GRACE;
    let mut is_killing = false;
    while nodes.running() > 0 {
        let is_impatient = interrupt.take();
        if !is_killing && (is_impatient || Instant::now() > deadline) {
            is_killing = true;
            let why = if is_impatient { "interrupted again" } else { "no answer in time" };
            say(&format!("killing {}: {why}; acknowledged writes are safe", nodes.running_names()));
            nodes.kill();
        }
        nodes.reap();
        std::thread::sleep(PAUSE / 5);
    }
    for (name, pid) in nodes.started_by_hand() {
        say(&format!("{name} (pid {pid}) was started by hand and is left running"));
    }
    say(&place.close(nodes));
}

fn next_steps(nodes: &Nodes, place: &Place) -> String {
    let (first, last) = (nodes.first(), nodes.last());
    let oort = nodes::own_command_here();
    let mut text = String::from("try next, in another terminal:\n");
    text += &format!("  redis-cli -p {} set greeting hello\n", first.ports.redis);
    text += &format!("  redis-cli -p {} get greeting\n", last.ports.redis);
    text += &format!("  curl -i http://127.0.0.1:{}/buckets/default/keys/greeting\n", first.ports.http);
    if let Some(pid) = nodes.last_pid().filter(|_| nodes.len() > 1) {
        text += &format!("  kill -9 {pid}    # {} dies; keep writing through the others\n", last.name);
    }
    if first.ports.redis != DEFAULT_REDIS_PORT {
        text += &format!("  export OORT_NODE=127.0.0.1:{}\n", first.ports.redis);
    }
    text += &format!("  {oort} cluster status\n");
    text += &format!("\nlogs: {}\n", place.dir().join("node*/oort.log").display());
    text + "Ctrl-C stops these nodes"
}

/// Prints a line. Nobody may be reading any more; the cluster runs on.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(10)..];
    match last.is_empty() {
        true => format!("  ({} is empty)", log.display()),
        false => last.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
    }
}

/// Whether the user pressed Ctrl-C, sent SIGTERM or closed the terminal.
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn new() -> Interrupt {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, flag.clone()).expect("these signals can be handled");
        }
        Interrupt(flag)
    }

    /// True once for each interruption.
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}
