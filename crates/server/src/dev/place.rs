//! The directory of a local cluster: who may use it, and what is written into it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::nodes::{self, NodePlan, Nodes};
use super::ports::Ports;
use super::{DevError, Home, NODES_DEFAULT};

/// How long nodes of an earlier run that was killed may take to notice.
const SURVIVOR_GRACE: Duration = Duration::from_secs(5);

/// The directory, locked for this process.
pub struct Place {
    dir: PathBuf,
    ephemeral: bool,
    _lock: File,
}

impl Place {
    /// Makes the directory if need be, and locks it. Errors: another `oort dev` holds it.
    pub fn open(home: &Home) -> Result<Place, DevError> {
        let dir = match home {
            Home::Default => data_home()?.join("oort").join("dev"),
            Home::At(dir) => dir.clone(),
            Home::Ephemeral => unused_temp_dir(),
        };
        fs::create_dir_all(&dir).map_err(|error| at(&dir, error))?;
        let dir = dir.canonicalize().map_err(|error| at(&dir, error))?;
        let lock = lock(&dir)?;
        Ok(Place { dir, ephemeral: matches!(home, Home::Ephemeral), _lock: lock })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many nodes to start: as many as are here already. Errors: `wanted` is another number.
    pub fn node_count(&self, wanted: Option<u16>) -> Result<u16, DevError> {
        let found =
            (1..=u16::MAX).take_while(|i| self.node_dir(*i).join("oort.toml").exists()).count() as u16;
        match wanted {
            Some(wanted) if found > 0 && wanted != found => {
                Err(DevError::OtherSize { dir: self.dir.clone(), found, wanted })
            }
            Some(wanted) => Ok(wanted),
            None if found > 0 => Ok(found),
            None => Ok(NODES_DEFAULT),
        }
    }

    /// Waits until the nodes of an earlier run have ended. Those that `dev` started do so when it is killed; one that
    /// was started by hand does not. Errors: it still runs.
    pub fn wait_for_survivors(&self) -> Result<(), DevError> {
        let start = Instant::now();
        while let Some((node, pid)) = self.survivor() {
            if start.elapsed() > SURVIVOR_GRACE {
                return Err(DevError::StillRunning { node, pid });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        match fs::remove_file(self.cluster_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(at(&self.cluster_file(), error))
            }
            _ => Ok(()),
        }
    }

    /// Writes each node's configuration and makes room for its log.
    pub fn prepare(&self, ports: &[Ports], sync: Option<&str>) -> Result<Vec<NodePlan>, DevError> {
        let mut plans = Vec::new();
        for (i, own) in ports.iter().enumerate() {
            let name = format!("node{}", i + 1);
            let dir = self.node_dir(i as u16 + 1);
            fs::create_dir_all(&dir).map_err(|error| at(&dir, error))?;
            let plan =
                NodePlan { name, ports: *own, config: dir.join("oort.toml"), log: dir.join("oort.log") };
            fs::write(&plan.config, config_text(&plan, &dir.join("data"), ports, sync))
                .map_err(|error| at(&plan.config, error))?;
            if plan.log.exists() {
                fs::rename(&plan.log, dir.join("oort.log.1")).map_err(|error| at(&plan.log, error))?;
            }
            plans.push(plan);
        }
        Ok(plans)
    }

    /// Writes `cluster.json` so that a reader sees the old or the new one, never half of it.
    pub fn write_cluster(&self, nodes: &Nodes) -> Result<(), DevError> {
        let entries: Vec<_> = nodes
            .each()
            .map(|(plan, pid)| {
                json!({
                    "name": plan.name,
                    "pid": pid,
                    "redis": format!("127.0.0.1:{}", plan.ports.redis),
                    "http": format!("127.0.0.1:{}", plan.ports.http),
                    "peer": format!("127.0.0.1:{}", plan.ports.peer),
                    "config": plan.config,
                    "log": plan.log,
                })
            })
            .collect();
        let text =
            format!("{:#}\n", json!({ "dev_pid": std::process::id(), "dir": self.dir, "nodes": entries }));
        let (path, draft) = (self.cluster_file(), self.dir.join("cluster.json.new"));
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path)).map_err(|error| at(&path, error))
    }

    /// Ends the use of the directory, and says what has become of the data.
    pub fn close(&self, nodes: &Nodes) -> String {
        let has_left_over = nodes.started_by_hand().next().is_some();
        if !has_left_over {
            let _ = fs::remove_file(self.cluster_file());
        }
        if !self.ephemeral {
            return format!("stopped; the data stay in {}", self.dir.display());
        }
        if has_left_over {
            return format!("stopped; {} is still in use", self.dir.display());
        }
        "stopped; the data are removed".into()
    }

    fn cluster_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    fn node_dir(&self, number: u16) -> PathBuf {
        self.dir.join(format!("node{number}"))
    }

    /// A node in `cluster.json` whose process still runs.
    fn survivor(&self) -> Option<(String, u32)> {
        let cluster: serde_json::Value = serde_json::from_slice(&fs::read(self.cluster_file()).ok()?).ok()?;
        cluster["nodes"].as_array()?.iter().find_map(|node| {
            let (name, pid) = (node["name"].as_str()?, u32::try_from(node["pid"].as_u64()?).ok()?);
            nodes::runs_with(pid, Path::new(node["config"].as_str()?)).then(|| (name.to_owned(), pid))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After an error or a stop; a node that was started by hand keeps what it has open, and loses the rest.
        let survives = self.survivor().is_some();
        if self.ephemeral && !survives {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn lock(dir: &Path) -> Result<File, DevError> {
    let path = dir.join("dev.lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| at(&path, error))?;
    if file.try_lock().is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        return Err(DevError::InUse { dir: dir.to_owned(), pid: pid.trim().to_owned() });
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| at(&path, error))?;
    Ok(file)
}

/// A directory that is not there yet: one of a killed `dev` with the same pid may still be.
fn unused_temp_dir() -> PathBuf {
    let name = format!("oort-dev-{}", std::process::id());
    let mut dir = std::env::temp_dir().join(&name);
    for number in 2.. {
        if !dir.exists() {
            break;
        }
        dir = std::env::temp_dir().join(format!("{name}-{number}"));
    }
    dir
}

/// Where the user's programs keep data. Source: the XDG base directory specification.
fn data_home() -> Result<PathBuf, DevError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .ok_or(DevError::NoHome)
}

fn config_text(plan: &NodePlan, data: &Path, all: &[Ports], sync: Option<&str>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let join: Vec<String> = all.iter().map(|ports| quoted(&format!("127.0.0.1:{}", ports.peer))).collect();
    let mut text = String::from("# Written by 'oort dev' at each start: changes here do not last.\n");
    text += &format!("# To start this node by hand: {}\n", plan.restart_command());
    text += &format!("cluster = \"dev\"\nname = \"{}\"\n", plan.name);
    text += &format!("dir = {}\n", quoted(&data.to_string_lossy()));
    text += &format!("join = [{}]\ncluster_size = {}\n", join.join(", "), all.len());
    text += &format!("redis = \"127.0.0.1:{}\"\n", plan.ports.redis);
    text += &format!("http = \"127.0.0.1:{}\"\n", plan.ports.http);
    text += &format!("peer = \"127.0.0.1:{}\"\n", plan.ports.peer);
    match sync {
        Some(sync) => text + &format!("sync = {}\n", quoted(sync)),
        None => text,
    }
}

fn at(path: &Path, error: std::io::Error) -> DevError {
    DevError::Io { path: path.to_owned(), error }
}
