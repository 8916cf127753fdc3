//! What one server process must be told, and where it can be told: flags, environment, a TOML file, defaults.
//!
//! One table, [`options::OPTIONS`], defines every option once: its key, its documentation, its range and how it is
//! stored. The flags of `oort start`, the `OORT_…` variables, the keys of the file and `oort.example.toml` all come
//! from it, so none of them can lack an option or describe it differently.
//!
//! A flag overrides a variable, which overrides the file, which overrides the default. An error names the place the
//! value came from: `oort.toml:12: …`, `--redis: …` or `OORT_REDIS: …`.

pub mod options;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use oort_core::bucket::PropertyError;
use oort_core::config::{Addresses, NodeConfig, SyncMode};
use toml::de::{DeTable, DeValue};

pub use crate::errno::words;
use crate::storage::StorageOptions;
use options::{ConfigOption, OPTIONS};

/// A node's whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the deterministic core must know. Its `addresses` are those that others use to reach this node.
    pub node: NodeConfig,
    /// Where the node keeps its data; made if it is missing.
    pub dir: PathBuf,
    /// Peer addresses of nodes known in advance, as `host:port`. Never this node's own.
    pub join: Vec<String>,
    /// Where this process listens, as `host:port`.
    pub listen: Addresses,
    /// Most client connections, Redis and HTTP together.
    pub connections_max: usize,
    /// Most memory that the Redis clients together may take, in bytes.
    pub client_memory_bytes: u64,
    /// Sizes and limits of the store in `dir`.
    pub storage: StorageOptions,
    /// Which log lines are written, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Used only if `node.sync` is an interval; kept apart because the two options may come in any order.
    sync_interval_ms: u64,
    /// Used only if `node.strategy` has tokens; kept apart for the same reason.
    tokens: u16,
}

impl Default for Config {
    /// Every option at its default. Not finished: the advertised addresses and the name are still empty.
    fn default() -> Config {
        Config {
            node: NodeConfig { name: String::new(), ..NodeConfig::default() },
            dir: "oort-data".into(),
            join: Vec::new(),
            listen: Addresses {
                redis: "127.0.0.1:6379".into(),
                http: "127.0.0.1:8098".into(),
                peer: "127.0.0.1:7946".into(),
            },
            connections_max: 10_000,
            client_memory_bytes: 512 << 20,
            storage: StorageOptions::default(),
            log: "info".into(),
            sync_interval_ms: 100,
            tokens: 100,
        }
    }
}

impl Config {
    /// What is allowed but hardly meant, a line each: addresses told to others that lead nowhere.
    pub fn warnings(&self) -> Vec<String> {
        let Addresses { redis, http, peer } = &self.node.addresses;
        let told = [("redis", redis), ("http", http), ("peer", peer)];
        let wild = told.into_iter().filter(|(_, address)| text::is_wildcard(address));
        wild.map(|(key, address)| {
            format!(
                "others are told {address} as this node's {key} address, and cannot connect to it: set \
                 advertise_{key} to the address they use"
            )
        })
        .collect()
    }
}

/// One value from outside the file.
#[derive(Clone, Debug)]
pub struct Override {
    pub option: &'static ConfigOption,
    pub origin: Origin,
    pub text: String,
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A command line flag, with its dashes.
    Flag(String),
    /// The name of an environment variable.
    Variable(String),
    /// Lines count from 1.
    File { path: PathBuf, line: usize },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Origin::Flag(name) | Origin::Variable(name) => f.write_str(name),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// Why there is no configuration. Nothing was started or changed; the text says what to correct.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable { path: PathBuf, error: std::io::Error },
    /// A value, key or line is wrong. Without an origin, the default is what does not fit.
    Invalid { origin: Option<Origin>, detail: String },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ConfigError::Unreadable { path, error } => {
                write!(f, "{}: {}", path.display(), words(error))
            }
            ConfigError::Invalid { origin: Some(origin), detail } => write!(f, "{origin}: {detail}"),
            ConfigError::Invalid { origin: None, detail } => f.write_str(detail),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads `file`, if there is one, then applies `overrides` in order, and checks the whole.
pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Config, ConfigError> {
    let mut loading = Loading { config: Config::default(), origins: BTreeMap::new() };
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        loading.read_toml(path, &text)?;
    }
    for one in overrides {
        let set = one.option.set_text(&mut loading.config, &one.text);
        loading.note(one.option, one.origin.clone(), set)?;
    }
    loading.finish()
}

/// The text of `oort.example.toml`: every option with its documentation, commented out at its default.
pub fn example() -> String {
    let defaults = Config::default();
    let mut out = String::from(
        "# The configuration of one Oort node: every option, at its default.\n\
         # Made by 'oort start --print-example-config'; use with 'oort start --config FILE'.\n\
         # An option 'some_key' is also the flag '--some-key' and the environment variable 'OORT_SOME_KEY'.\n\
         # Flags override variables, variables override this file.\n",
    );
    let mut group = "";
    for option in OPTIONS {
        if option.group != group {
            group = option.group;
            out += &format!("\n\n### {group} ###\n");
        }
        out.push('\n');
        for line in text::wrap(option.doc, 100) {
            out += &format!("# {line}\n");
        }
        out += &format!("#{} = {}\n", option.key, option.toml(&defaults));
    }
    out
}

/// A configuration on its way, with the place each value came from.
struct Loading {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loading {
    fn read_toml(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |start: usize| Origin::File {
            path: path.to_owned(),
            line: text.as_bytes()[..start.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1,
        };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Invalid {
            origin: Some(at(error.span().map_or(0, |span| span.start))),
            detail: format!("no valid TOML: {}", error.message().replace('\n', ": ")),
        })?;
        // In the order of the file, so that the first error is the one reported.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let origin = at(key.span().start);
            let Some(option) = options::find(key.get_ref()) else {
                return Err(unknown_key(key.get_ref(), value.get_ref(), origin));
            };
            let set = option.set_toml(&mut self.config, value.get_ref());
            self.note(option, origin, set)?;
        }
        Ok(())
    }

    fn note(
        &mut self,
        option: &'static ConfigOption,
        origin: Origin,
        set: Result<(), String>,
    ) -> Result<(), ConfigError> {
        match set {
            Ok(()) => {
                self.origins.insert(option.key, origin);
                Ok(())
            }
            Err(detail) => {
                let detail = format!("{}: {detail}", option.key);
                Err(ConfigError::Invalid { origin: Some(origin), detail })
            }
        }
    }

    fn finish(mut self) -> Result<Config, ConfigError> {
        if let SyncMode::Interval { ms } = &mut self.config.node.sync {
            *ms = self.config.sync_interval_ms;
        }
        if self.config.node.name.is_empty() {
            self.config.node.name = text::host_name();
        }
        self.check_buckets()?;
        self.check_listen()?;
        self.advertise()?;
        let own = &self.config.node.addresses.peer;
        self.config.join.retain(|address| address != own && *address != self.config.listen.peer);
        Ok(self.config)
    }

    fn check_buckets(&self) -> Result<(), ConfigError> {
        let Err(error) = self.config.node.bucket_defaults.check() else {
            return Ok(());
        };
        let keys: &[&str] = match error {
            PropertyError::N { .. } => &["bucket_n"],
            PropertyError::Quorum { name: 'r', .. } => &["bucket_r", "bucket_n"],
            PropertyError::Quorum { .. } => &["bucket_w", "bucket_n"],
            PropertyError::ValueLimit { .. } => &["bucket_value_bytes_max"],
            PropertyError::TooManyBuckets { .. } | PropertyError::Active { .. } => &[],
        };
        Err(self.invalid(keys, format!("bucket_{error}")))
    }

    fn check_listen(&self) -> Result<(), ConfigError> {
        let Addresses { redis, http, peer } = &self.config.listen;
        for (key, a, other, b) in
            [("http", http, "redis", redis), ("peer", peer, "redis", redis), ("peer", peer, "http", http)]
        {
            if a == b {
                return Err(self.invalid(&[key, other], format!("{key}: {a} is the {other} address already")));
            }
        }
        Ok(())
    }

    /// Fills in the advertised addresses that were not given. Errors: other machines could not use the listen address.
    fn advertise(&mut self) -> Result<(), ConfigError> {
        let alone = self.config.node.cluster_size == 1 && self.config.join.is_empty();
        let Addresses { redis, http, peer } = self.config.listen.clone();
        for (key, listen) in [("redis", redis), ("http", http), ("peer", peer)] {
            let advertised = match key {
                "redis" => &mut self.config.node.addresses.redis,
                "http" => &mut self.config.node.addresses.http,
                _ => &mut self.config.node.addresses.peer,
            };
            if !advertised.is_empty() {
                continue;
            }
            *advertised = listen.clone();
            if text::is_wildcard(&listen) && !alone {
                let detail = format!(
                    "{key}: other machines cannot connect to {listen}: set advertise_{key} to the address they use"
                );
                return Err(self.invalid(&[key], detail));
            }
        }
        Ok(())
    }

    /// An error at the place where the first of `keys` that was set came from.
    fn invalid(&self, keys: &[&str], detail: String) -> ConfigError {
        let origin = keys.iter().find_map(|key| self.origins.get(key)).cloned();
        ConfigError::Invalid { origin, detail }
    }
}

fn unknown_key(key: &str, value: &DeValue, origin: Origin) -> ConfigError {
    let shown = key.escape_debug();
    let detail = match (options::nearest(key), value) {
        (_, DeValue::Table(_)) => format!("unknown table '{shown}': the file has no tables, just keys"),
        (Some(near), _) => format!("unknown key '{shown}': did you mean '{near}'?"),
        (None, _) => format!("unknown key '{shown}': 'oort start --print-example-config' lists all keys"),
    };
    ConfigError::Invalid { origin: Some(origin), detail }
}

#[cfg(test)]
mod tests;
