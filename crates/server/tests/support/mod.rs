//! Real nodes for tests: processes on free ports of this machine, their data in a temporary directory.
//!
//! Everything is killed and removed when a value is dropped, so a failing test leaves nothing behind. What the nodes
//! logged is printed if the test fails.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oort::client::Client;
use oort::config::options::OPTIONS;
use oort::resp::Value;
use rustix::process::{kill_process, Pid, Signal};

/// How long anything that must happen may take. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The program under test, without options from the environment, but for `OORT_STRATEGY`: the stories are the same on
/// rings of each strategy.
pub fn oort() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oort"));
    for option in OPTIONS.iter().filter(|option| option.key != "strategy") {
        command.env_remove(option.variable());
    }
    command.env_remove("OORT_CONFIG").env_remove("OORT_NODE").stdin(Stdio::null());
    command
}

/// What a program printed, and how it ended.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `oort` to its end.
pub fn run(arguments: &[&str]) -> Outcome {
    let output = oort().args(arguments).output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The first of `count` free ports that follow each other. Never given to two tests of one run.
///
/// They lie below the range from which the system takes ports for outgoing connections.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 10_000;
    const LAST: u16 = 30_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id() % 200) as u16 * 100;
    for _ in 0..1000 {
        let step = NEXT.fetch_add(count, Ordering::Relaxed);
        let base = FIRST + (offset + step) % (LAST - FIRST - count);
        if (base..base + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
    panic!("no {count} free ports from {FIRST} to {LAST}");
}

/// A directory that is removed when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("oort-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child that is killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        Process(command.spawn().unwrap())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end. Fails if it does not come.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process ends", || self.0.try_wait().unwrap())
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks until there is an answer. Fails after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nodes that were started one by one with `oort start`.
pub struct Cluster {
    pub nodes: Vec<Node>,
    dir: TempDir,
}

pub struct Node {
    pub redis: String,
    pub http: String,
    pub peer: String,
    flags: Vec<String>,
    data: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts `count` nodes and waits until each sees all others. `flags` go to every node.
    pub fn start(count: u16, flags: &[&str]) -> Cluster {
        let base = free_ports(count * 3);
        let dir = TempDir::new();
        let address = |offset: u16| format!("127.0.0.1:{}", base + offset);
        let join: Vec<String> = (0..count).map(|i| address(count * 2 + i)).collect();
        let node = |i: u16| {
            let (redis, http, peer) = (address(i), address(count + i), address(count * 2 + i));
            let own = [
                ("--name", format!("node{}", i + 1)),
                ("--dir", dir.path().join(format!("data{}", i + 1)).display().to_string()),
                ("--redis", redis.clone()),
                ("--http", http.clone()),
                ("--peer", peer.clone()),
                ("--join", join.join(",")),
                ("--cluster-size", count.to_string()),
            ];
            let own = own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
            Node {
                redis,
                http,
                peer,
                flags: own.chain(flags.iter().map(|flag| flag.to_string())).collect(),
                data: dir.path().join(format!("data{}", i + 1)),
                log: dir.path().join(format!("log{}", i + 1)),
                process: None,
            }
        };
        let nodes = (0..count).map(node).collect();
        let mut cluster = Cluster { nodes, dir };
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster.wait_until_whole();
        cluster
    }

    /// Starts one more node, whom nobody expects, and which is told of node `seed` only. Returns its index.
    pub fn add(&mut self, seed: usize, flags: &[&str]) -> usize {
        let base = free_ports(3);
        let [redis, http, peer] = [0, 1, 2].map(|offset| format!("127.0.0.1:{}", base + offset));
        let number = self.nodes.len() + 1;
        let own = [
            ("--name", format!("node{number}")),
            ("--dir", self.dir.path().join(format!("data{number}")).display().to_string()),
            ("--redis", redis.clone()),
            ("--http", http.clone()),
            ("--peer", peer.clone()),
            ("--join", self.nodes[seed].peer.clone()),
        ];
        let own = own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let flags = own.chain(flags.iter().map(|flag| flag.to_string())).collect();
        let log = self.dir.path().join(format!("log{number}"));
        let data = self.dir.path().join(format!("data{number}"));
        let mut node = Node { redis, http, peer, flags, data, log, process: None };
        node.start();
        self.nodes.push(node);
        // It may know the others before they know it.
        self.wait_until_whole();
        number - 1
    }

    /// A node of the same cluster name that is told of nobody, not started yet.
    pub fn stray(&self) -> Node {
        let base = free_ports(3);
        let [redis, http, peer] = [0, 1, 2].map(|offset| format!("127.0.0.1:{}", base + offset));
        let data = self.dir.path().join(format!("data-{base}"));
        let own = [
            ("--name", format!("stray{base}")),
            ("--dir", data.display().to_string()),
            ("--redis", redis.clone()),
            ("--http", http.clone()),
            ("--peer", peer.clone()),
        ];
        let flags = own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let log = self.dir.path().join(format!("log-{base}"));
        Node { redis, http, peer, flags, data, log, process: None }
    }

    /// Waits until every node sees every other.
    pub fn wait_until_whole(&self) {
        for node in &self.nodes {
            eventually("the cluster is whole", || node.sees_all(self.nodes.len()).then_some(()));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- {} ---", node.log.display());
                lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

impl Node {
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.redis);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = oort();
        command.arg("start").args(&self.flags).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(Process::spawn(&mut command));
    }

    /// Starts with another value of `flag` from now on.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.flags.iter().position(|given| given == flag) {
            Some(at) => self.flags[at + 1] = value.to_owned(),
            None => self.flags.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Waits until the process ends by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.process.take().expect("it runs").wait()
    }

    /// The node's directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").signal(Signal::KILL);
    }

    /// Empties the disk of a node that does not run.
    pub fn wipe(&self) {
        assert!(self.process.is_none(), "{} runs", self.redis);
        fs::remove_dir_all(&self.data).unwrap();
    }

    pub fn pid(&self) -> Pid {
        self.process.as_ref().expect("it runs").pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        process.wait()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.child().try_wait().unwrap().is_none())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::connect(&self.redis, PATIENCE).unwrap()
    }

    /// One command over a connection of its own.
    pub fn call(&self, command: &[&str]) -> Value {
        self.client().call(command).unwrap()
    }

    /// `CLUSTER STATUS`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&bytes(self.call(&["CLUSTER", "STATUS"]))).unwrap()
    }

    fn sees_all(&self, count: usize) -> bool {
        let Ok(mut client) = Client::connect(&self.redis, PATIENCE) else { return false };
        let Ok(Value::Bulk(info)) = client.call(&["CLUSTER", "INFO"]) else { return false };
        let info = String::from_utf8(info.to_vec()).unwrap();
        ["cluster_state:ok", "cluster_slots_ok:16384", &format!("cluster_known_nodes:{count}")]
            .iter()
            .all(|line| info.lines().any(|found| found == *line))
    }
}

/// The bytes of a reply that must be a string.
pub fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::Bulk(bytes) => bytes.to_vec(),
        other => panic!("not a string: {other:?}"),
    }
}

/// The text of a reply that must be an error.
pub fn error(value: Value) -> String {
    match value {
        Value::Error(text) => text.into_owned(),
        other => panic!("not an error: {other:?}"),
    }
}

/// The values in the answer of `VGET` and `VPUT`.
pub fn siblings(value: Value) -> Vec<String> {
    match value {
        Value::Array(parts) => match parts.into_iter().nth(1) {
            Some(Value::Array(values)) => {
                values.into_iter().map(|value| String::from_utf8(bytes(value)).unwrap()).collect()
            }
            other => panic!("no values: {other:?}"),
        },
        other => panic!("no versions: {other:?}"),
    }
}

/// Sends raw bytes and returns what comes back until the other side closes, or is silent for a second.
pub fn send_raw(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..length]);
    }
    answer
}

/// The status and body of an HTTP request without a body of its own.
pub fn http_get(address: &str, path: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))
}

/// The status and body of the answer to `request`, which must ask for the connection to be closed.
pub fn http(address: &str, request: &str) -> (u16, String) {
    let answer = String::from_utf8(send_raw(address, request.as_bytes())).unwrap();
    let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or_else(|| panic!("no HTTP answer: {answer:?}")), body.to_owned())
}
