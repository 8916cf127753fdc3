//! Settings of Redis that only tune it: how it lays out memory, how often it looks at something, what it logs.
//!
//! Nothing here has a counterpart in this program, so nothing changes when one is set. `CONFIG SET` accepts them all
//! the same, and `CONFIG GET` shows what was set: clients, tools and test suites set them in passing and would fail
//! over nothing. A setting that promises something (a limit, a password, durability) is not in this list.

use std::cell::RefCell;
use std::collections::BTreeMap;

use oort_core::mutation::parse_integer;

/// What a setting's value looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    YesNo,
    Number,
    /// A number of bytes, with or without a unit.
    Memory,
    /// One of some words.
    Word(&'static [&'static str]),
    Text,
}

/// A setting that only tunes: its name, Redis's default, and the form of its values.
pub struct Knob {
    pub name: &'static str,
    default: &'static str,
    form: Form,
}

const fn knob(name: &'static str, default: &'static str, form: Form) -> Knob {
    Knob { name, default, form }
}

const POLICIES: &[&str] = &[
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "noeviction",
];
const LEVELS: &[&str] = &["debug", "verbose", "notice", "warning", "nothing"];
const SANITIZING: &[&str] = &["no", "yes", "clients"];

#[rustfmt::skip] // One line each reads better as a table.
const KNOBS: [Knob; 84] = [
    knob("active-defrag-cycle-max", "25", Form::Number),
    knob("active-defrag-cycle-min", "1", Form::Number),
    knob("active-defrag-ignore-bytes", "104857600", Form::Memory),
    knob("active-defrag-max-scan-fields", "1000", Form::Number),
    knob("active-defrag-threshold-lower", "10", Form::Number),
    knob("active-defrag-threshold-upper", "100", Form::Number),
    knob("active-expire-effort", "1", Form::Number),
    knob("activedefrag", "no", Form::YesNo),
    knob("activerehashing", "yes", Form::YesNo),
    knob("aof-load-truncated", "yes", Form::YesNo),
    knob("aof-rewrite-incremental-fsync", "yes", Form::YesNo),
    knob("aof-timestamp-enabled", "no", Form::YesNo),
    knob("aof-use-rdb-preamble", "yes", Form::YesNo),
    knob("appendonly", "yes", Form::YesNo),
    knob("auto-aof-rewrite-min-size", "67108864", Form::Memory),
    knob("auto-aof-rewrite-percentage", "100", Form::Number),
    knob("busy-reply-threshold", "5000", Form::Number),
    knob("client-output-buffer-limit", "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60", Form::Text),
    knob("client-query-buffer-limit", "1073741824", Form::Memory),
    knob("cluster-allow-reads-when-down", "no", Form::YesNo),
    knob("cluster-allow-replica-migration", "yes", Form::YesNo),
    knob("cluster-link-sendbuf-limit", "0", Form::Memory),
    knob("cluster-migration-barrier", "1", Form::Number),
    knob("cluster-replica-no-failover", "no", Form::YesNo),
    knob("cluster-replica-validity-factor", "10", Form::Number),
    knob("crash-log-enabled", "yes", Form::YesNo),
    knob("crash-memcheck-enabled", "yes", Form::YesNo),
    knob("dynamic-hz", "yes", Form::YesNo),
    knob("hash-max-listpack-entries", "128", Form::Number),
    knob("hash-max-listpack-value", "64", Form::Number),
    knob("hash-max-ziplist-entries", "128", Form::Number),
    knob("hash-max-ziplist-value", "64", Form::Number),
    knob("hll-sparse-max-bytes", "3000", Form::Memory),
    knob("hz", "10", Form::Number),
    knob("jemalloc-bg-thread", "yes", Form::YesNo),
    knob("latency-monitor-threshold", "0", Form::Number),
    knob("latency-tracking", "yes", Form::YesNo),
    knob("latency-tracking-info-percentiles", "50 99 99.9", Form::Text),
    knob("lazyfree-lazy-eviction", "no", Form::YesNo),
    knob("lazyfree-lazy-expire", "no", Form::YesNo),
    knob("lazyfree-lazy-server-del", "no", Form::YesNo),
    knob("lazyfree-lazy-user-del", "no", Form::YesNo),
    knob("lazyfree-lazy-user-flush", "no", Form::YesNo),
    knob("lfu-decay-time", "1", Form::Number),
    knob("lfu-log-factor", "10", Form::Number),
    knob("list-compress-depth", "0", Form::Number),
    knob("list-max-listpack-size", "-2", Form::Number),
    knob("list-max-ziplist-size", "-2", Form::Number),
    knob("loglevel", "notice", Form::Word(LEVELS)),
    knob("lua-time-limit", "5000", Form::Number),
    knob("maxmemory-eviction-tenacity", "10", Form::Number),
    knob("maxmemory-policy", "noeviction", Form::Word(POLICIES)),
    knob("maxmemory-samples", "5", Form::Number),
    knob("min-replicas-max-lag", "10", Form::Number),
    knob("no-appendfsync-on-rewrite", "no", Form::YesNo),
    knob("rdb-save-incremental-fsync", "yes", Form::YesNo),
    knob("rdbcompression", "yes", Form::YesNo),
    knob("repl-backlog-size", "1048576", Form::Memory),
    knob("repl-backlog-ttl", "3600", Form::Number),
    knob("repl-disable-tcp-nodelay", "no", Form::YesNo),
    knob("repl-diskless-load", "disabled", Form::Text),
    knob("repl-diskless-sync", "yes", Form::YesNo),
    knob("repl-diskless-sync-delay", "5", Form::Number),
    knob("repl-ping-replica-period", "10", Form::Number),
    knob("repl-timeout", "60", Form::Number),
    knob("replica-lazy-flush", "no", Form::YesNo),
    knob("replica-priority", "100", Form::Number),
    knob("replica-serve-stale-data", "yes", Form::YesNo),
    knob("sanitize-dump-payload", "no", Form::Word(SANITIZING)),
    knob("save", "", Form::Text),
    knob("set-max-intset-entries", "512", Form::Number),
    knob("set-max-listpack-entries", "128", Form::Number),
    knob("set-max-listpack-value", "64", Form::Number),
    knob("slowlog-log-slower-than", "10000", Form::Number),
    knob("slowlog-max-len", "128", Form::Number),
    knob("stop-writes-on-bgsave-error", "yes", Form::YesNo),
    knob("stream-node-max-bytes", "4096", Form::Memory),
    knob("stream-node-max-entries", "100", Form::Number),
    knob("tcp-keepalive", "0", Form::Number),
    knob("tracking-table-max-keys", "1000000", Form::Number),
    knob("zset-max-listpack-entries", "128", Form::Number),
    knob("zset-max-listpack-value", "64", Form::Number),
    knob("zset-max-ziplist-entries", "128", Form::Number),
    knob("zset-max-ziplist-value", "64", Form::Number),
];

/// The longest value that is kept of a setting, in bytes.
const VALUE_BYTES_MAX: usize = 1024;

impl Knob {
    /// The setting called `name`, in any case.
    pub fn find(name: &str) -> Option<&'static Knob> {
        KNOBS.iter().find(|knob| knob.name.eq_ignore_ascii_case(name))
    }

    /// Errors: why `value` is none of this setting's, in Redis's words where it has some.
    pub fn check(&self, value: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(value).unwrap_or("\0");
        if value.len() > VALUE_BYTES_MAX {
            return Err(format!("argument of {} bytes, at most {VALUE_BYTES_MAX} are kept", value.len()));
        }
        let is = |word: &&str| text.eq_ignore_ascii_case(word);
        match self.form {
            Form::YesNo if !["yes", "no"].iter().any(is) => Err("argument must be 'yes' or 'no'".into()),
            Form::Number if parse_integer(value).is_none() => {
                Err("argument couldn't be parsed into an integer".into())
            }
            Form::Memory if !is_memory(text) => Err("argument must be a memory value".into()),
            Form::Word(words) if !words.iter().any(is) => {
                Err(format!("argument(s) must be one of the following: {}", words.join(", ")))
            }
            Form::Text if text == "\0" => Err("argument is not UTF-8".into()),
            Form::YesNo | Form::Number | Form::Memory | Form::Word(_) | Form::Text => Ok(()),
        }
    }
}

/// True for a number of bytes with an optional unit, such as `100mb`.
fn is_memory(text: &str) -> bool {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let units = ["", "b", "k", "kb", "m", "mb", "g", "gb"];
    let unit = text[digits.len()..].to_ascii_lowercase();
    digits.parse::<u64>().is_ok() && units.contains(&unit.as_str())
}

/// What clients have set while the node runs.
#[derive(Default)]
pub struct Knobs(RefCell<BTreeMap<&'static str, String>>);

impl Knobs {
    /// Remembers a value that [`Knob::check`] accepted.
    pub fn set(&self, knob: &'static Knob, value: &[u8]) {
        let text = String::from_utf8_lossy(value).into_owned();
        let text = if knob.form == Form::Text { text } else { text.to_ascii_lowercase() };
        self.0.borrow_mut().insert(knob.name, text);
    }

    /// All settings with their values.
    pub fn all(&self) -> Vec<(&'static str, String)> {
        let set = self.0.borrow();
        let value = |knob: &Knob| set.get(knob.name).cloned().unwrap_or_else(|| knob.default.into());
        KNOBS.iter().map(|knob| (knob.name, value(knob))).collect()
    }
}
