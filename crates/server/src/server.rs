//! One node as a process: opens the store and the sockets, starts the threads, runs the loop.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use oort_core::node::{Node, OpenError};
use oort_core::store::{Store, StoreError};
use oort_script::{Machine, ScriptError};
use rustix::time::{clock_gettime, ClockId};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use crate::config::Config;
use crate::descriptors::{self, Budget};
use crate::errno::cause;
use crate::http;
use crate::resp::request::Limits;
use crate::shard::{Clocks, LoopError, OtherCluster, Shard, ShardOptions};
use crate::storage::{self, FjallStore, StorageOptions, WAY_OUT};

/// Why a node did not start, or had to end.
#[derive(Debug)]
pub enum RunError {
    Storage(storage::OpenError),
    Node {
        directory: PathBuf,
        error: OpenError,
    },
    /// A port is taken or an address is not this machine's.
    Listen {
        what: &'static str,
        address: String,
        error: io::Error,
    },
    /// The node has a ring, and was told to join another.
    OtherCluster {
        directory: PathBuf,
        other: OtherCluster,
    },
    /// There is no memory for the machine that runs active objects.
    Sandbox(ScriptError),
    /// The system refused something else.
    System {
        what: &'static str,
        error: io::Error,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            RunError::Storage(error) => error.fmt(f),
            RunError::Node { directory, error } => {
                write!(f, "{}: {error}", directory.display())?;
                match error {
                    OpenError::Store(StoreError::Corrupt { .. }) | OpenError::Malformed { .. } => {
                        write!(f, "; {WAY_OUT}")
                    }
                    _ => Ok(()),
                }
            }
            RunError::Listen { what, address, error } => {
                write!(f, "cannot listen on {address} for {what}: {}", cause(error))
            }
            RunError::OtherCluster { directory, other } => {
                let OtherCluster { seed, theirs, ours, nodes } = other;
                write!(
                    f,
                    "{}: this node belongs to a cluster of {nodes} of its own (founding {ours}), and 'join' names {seed}, \
                     a node of another cluster of the same name (founding {theirs}). Two clusters cannot become one: \
                     to make this node a new member of that cluster, start it with an empty directory; to keep its \
                     data and its cluster, take {seed} out of 'join'",
                    directory.display()
                )
            }
            RunError::Sandbox(error) => write!(f, "cannot make the sandbox of active objects: {error}"),
            RunError::System { what, error } => write!(f, "{what}: {}", cause(error)),
        }
    }
}

impl std::error::Error for RunError {}

/// Runs a node until it is stopped by SIGTERM or SIGINT. Errors: it could not start, or its loop failed.
pub fn run(config: Config) -> Result<(), RunError> {
    let budget = share_descriptors(&config)?;
    let redis = listen("Redis clients", &config.listen.redis)?;
    let peers = listen("peers", &config.listen.peer)?;
    let web = listen("HTTP", &config.listen.http)?;
    let clocks = Clocks::start();
    let storage_options = StorageOptions { open_tables: budget.tables, ..config.storage.clone() };
    let store = FjallStore::open(&config.dir, storage_options).map_err(RunError::Storage)?;
    let had_lost_writes = store.lost_writes();
    let seed = fresh_seed();
    let mut node_config = config.node.clone();
    node_config.boot = boot_of_machine();
    if !config.join.is_empty() && node_config.cluster_size == 1 {
        // A node that was told whom to join waits for their ring.
        node_config.cluster_size = 0;
    }
    let mut node = Node::open(node_config, seed, Box::new(store), clocks.read())
        .map_err(|error| RunError::Node { directory: config.dir.clone(), error })?;
    let id = node.id();
    let sandbox = Machine::new(thread_us).map_err(RunError::Sandbox)?;
    node.set_sandbox(Box::new(sandbox));
    info!(%id, name = node.config().name, cluster = node.config().cluster, "starting");
    let options = ShardOptions {
        connections_max: budget.redis,
        client_bytes_max: config.client_memory_bytes as usize,
        seeds: config.join.clone(),
        limits: Limits::default(),
        lost_writes_in: had_lost_writes.then(|| config.dir.clone()),
    };
    let system = |what| move |error| RunError::System { what, error };
    let (shard, handle) =
        Shard::new(node, clocks, redis, peers, options, seed ^ 1).map_err(system("cannot start the loop"))?;

    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system("cannot watch signals"))?;
    let signal_handle = signals.handle();
    let stopper = handle.clone();
    let signal_thread = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(|_| stopper.stop()))
        .map_err(system("cannot start a thread"))?;
    let limits = http::Limits { connections_max: budget.http, ..http::Limits::default() };
    let web = http::serve(web, handle, id, limits).map_err(system("cannot start HTTP"))?;

    let result = shard.run().map_err(|error| match error {
        LoopError::Poll(error) => RunError::System { what: "the event loop failed", error },
        LoopError::OtherCluster(other) => RunError::OtherCluster { directory: config.dir.clone(), other },
    });
    web.stop();
    web.join();
    signal_handle.close();
    // A panic there was reported by its own thread.
    let _ = signal_thread.join();
    info!("stopped");
    result
}

/// Raises the limit of open files and divides it.
fn share_descriptors(config: &Config) -> Result<Budget, RunError> {
    let limit = descriptors::raise()
        .map_err(|error| RunError::System { what: "cannot tell the limit of open files", error })?;
    let http_max = http::Limits::default().connections_max;
    let budget = descriptors::divide(limit, config.connections_max, http_max);
    if budget.redis < config.connections_max {
        warn!(
            "the system allows {} open files, so that at most {} Redis clients are served, not {}, and {} over HTTP: \
             raise the hard limit ('ulimit -Hn', LimitNOFILE)",
            budget.limit, budget.redis, config.connections_max, budget.http
        );
    }
    Ok(budget)
}

/// Processor time of this thread in microseconds: what a handler may use, however busy the machine is.
fn thread_us() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// How many connections may wait to be accepted; the system may allow fewer (`net.core.somaxconn`). Fewer: the clients
/// of a whole site that all come back at once wait a second and longer for another try.
const BACKLOG: i32 = 4096;

fn listen(what: &'static str, address: &str) -> Result<TcpListener, RunError> {
    let refused = |error| RunError::Listen { what, address: address.to_owned(), error };
    let listener = TcpListener::bind(address).map_err(refused)?;
    // The standard library asks for 128; asking again changes it.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| refused(error.into()))?;
    Ok(listener)
}

/// Names the machine's current boot; a fresh number where the system does not tell, as if it had just booted.
fn boot_of_machine() -> u64 {
    match std::fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(boot_id) => xxhash_rust::xxh3::xxh3_64(&boot_id),
        Err(_) => fresh_seed(),
    }
}

/// A seed that differs between nodes and starts. Identities are drawn from it, so it takes the system's randomness.
fn fresh_seed() -> u64 {
    let mut bytes = [0; 8];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    if read.is_ok() {
        return u64::from_le_bytes(bytes);
    }
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    nanos ^ (std::process::id() as u64) << 40
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::time::Duration;

    #[test]
    fn many_connections_wait_to_be_accepted() {
        let listener = listen("tests", "127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
        let allowed = somaxconn.trim().parse().unwrap_or(128_usize);
        let waiting: Vec<_> = (0..allowed.min(400))
            .map(|i| {
                let connected = TcpStream::connect_timeout(&address, Duration::from_secs(5));
                connected.unwrap_or_else(|error| panic!("connection {i}: {error}"))
            })
            .collect();
        assert_eq!(waiting.len(), allowed.min(400));
    }
}
