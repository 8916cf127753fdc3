//! All commands: their names, arities, keys, and the function that starts each. `COMMAND` and the docs follow from it.
//!
//! A command is found by its length and bytes in a hash table that is computed when the program is compiled.

use super::{
    active, buckets, clients, cluster, connection, describe, keys, listing, rename, ring, scripting, server,
    strings, transactions, versions,
};
use super::{Call, Outcome};

/// One command, or one subcommand.
#[derive(Clone, Copy)]
pub struct Spec {
    /// In lower case; a subcommand's without its command's.
    pub name: &'static str,
    /// How it is written.
    pub syntax: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// The number of arguments, the name (and a subcommand's container) included; negative: at least so many.
    pub arity: i32,
    /// What it is and needs, as a set of the flags below.
    pub flags: u16,
    pub keys: Keys,
    pub group: Group,
    /// Its place among all commands; `u8::MAX` for a subcommand.
    place: u8,
    pub run: fn(&mut Call) -> Outcome,
    /// Not empty: argument 1 names one of these, or `HELP`.
    pub subcommands: &'static [Spec],
}

/// Which arguments are keys: from `first` (0: none) to `last` (negative: from the end), each `step`th.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    pub first: i32,
    pub last: i32,
    pub step: i32,
}

/// Chapters of the manual.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    Connection,
    String,
    Generic,
    Server,
    Cluster,
    Versions,
    Active,
    Transactions,
    Scripting,
}

/// Changes data.
pub const WRITE: u16 = 1;
/// Reads data.
pub const READ: u16 = 2;
/// Takes little time, whatever the data.
pub const FAST: u16 = 4;
/// May make data larger.
pub const GROWS: u16 = 8;
/// For operators.
pub const ADMIN: u16 = 16;
/// Works before the cluster is formed.
pub const STALE: u16 = 32;
/// Runs also after a `MULTI` that was refused.
pub const ANYWHERE: u16 = 64;

const NO_KEYS: Keys = Keys { first: 0, last: 0, step: 0 };
const KEY_1: Keys = Keys { first: 1, last: 1, step: 1 };
const KEY_2: Keys = Keys { first: 2, last: 2, step: 1 };
const KEYS_1_2: Keys = Keys { first: 1, last: 2, step: 1 };
const ALL_KEYS: Keys = Keys { first: 1, last: -1, step: 1 };
const EVERY_SECOND: Keys = Keys { first: 1, last: -1, step: 2 };

impl Group {
    pub const ALL: [Group; 9] = [
        Group::Connection,
        Group::String,
        Group::Generic,
        Group::Server,
        Group::Cluster,
        Group::Versions,
        Group::Active,
        Group::Transactions,
        Group::Scripting,
    ];

    /// The name that `COMMAND DOCS` shows.
    pub fn name(self) -> &'static str {
        match self {
            Group::Connection => "connection",
            Group::String => "string",
            Group::Generic => "generic",
            Group::Server => "server",
            Group::Cluster => "cluster",
            Group::Versions => "versions",
            Group::Active => "active",
            Group::Transactions => "transactions",
            Group::Scripting => "scripting",
        }
    }
}

impl Spec {
    /// True if the command may have so many arguments, the name included.
    pub fn accepts(&self, arguments: usize) -> bool {
        match self.arity < 0 {
            true => arguments >= self.arity.unsigned_abs() as usize,
            false => arguments == self.arity as usize,
        }
    }

    /// True if it changes data.
    pub fn is_write(&self) -> bool {
        self.flags & WRITE != 0
    }

    /// Redis's names of its flags.
    pub fn flag_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        let names = [
            (WRITE, "write"),
            (READ, "readonly"),
            (GROWS, "denyoom"),
            (ADMIN, "admin"),
            (FAST, "fast"),
            (STALE, "loading"),
            (STALE, "stale"),
        ];
        names.into_iter().filter(|(flag, _)| self.flags & flag != 0).map(|(_, name)| name)
    }

    /// The categories of Redis's access control lists, which some clients show.
    pub fn categories(&self) -> impl Iterator<Item = &'static str> + '_ {
        let group = match self.group {
            Group::Connection => "@connection",
            Group::String | Group::Versions => "@string",
            Group::Active | Group::Scripting => "@scripting",
            Group::Transactions => "@transaction",
            Group::Generic => "@keyspace",
            Group::Server | Group::Cluster => "@admin",
        };
        let flags = [(WRITE, "@write"), (READ, "@read"), (FAST, "@fast")];
        let flags = flags.into_iter().filter(|(flag, _)| self.flags & flag != 0).map(|(_, name)| name);
        let slow = (self.flags & FAST == 0).then_some("@slow");
        flags.chain([group]).chain(slow)
    }
}

const fn spec(
    name: &'static str,
    syntax: &'static str,
    arity: i32,
    flags: u16,
    keys: Keys,
    run: fn(&mut Call) -> Outcome,
    summary: &'static str,
) -> Spec {
    Spec {
        name,
        syntax,
        summary,
        arity,
        flags,
        keys,
        group: Group::Generic,
        place: u8::MAX,
        run,
        subcommands: &[],
    }
}

/// A command that only chooses among its subcommands.
const fn container(name: &'static str, syntax: &'static str, subcommands: &'static [Spec]) -> Spec {
    let summary = "A container; see its subcommands.";
    Spec { subcommands, ..spec(name, syntax, -2, 0, NO_KEYS, describe::subcommand, summary) }
}

/// All commands, group by group.
pub static COMMANDS: &[Spec] = SPECS;

const SPECS: &[Spec] = &join();

#[rustfmt::skip] // One line each reads better as a table.
const CONNECTION: [Spec; 12] = [
    spec("ping", "PING [message]", -1, FAST | STALE, NO_KEYS, connection::ping, "Answers PONG, or the message."),
    spec("echo", "ECHO message", 2, FAST | STALE, NO_KEYS, connection::echo, "Answers the message."),
    spec("hello", "HELLO [protover [AUTH username password] [SETNAME clientname]]", -1, FAST | STALE, NO_KEYS, connection::hello, "Greets, and chooses the version of the protocol."),
    spec("auth", "AUTH [username] password", -2, FAST | STALE, NO_KEYS, connection::auth, "Authenticates; there are no passwords yet."),
    spec("select", "SELECT index", 2, FAST | STALE, NO_KEYS, connection::select, "Selects the bucket of a number."),
    spec("quit", "QUIT", -1, FAST | STALE | ANYWHERE, NO_KEYS, connection::quit, "Closes the connection."),
    spec("reset", "RESET", 1, FAST | STALE | ANYWHERE, NO_KEYS, connection::reset, "Forgets what the connection set."),
    spec("readonly", "READONLY", 1, FAST | STALE, NO_KEYS, connection::ok, "Does nothing: any node answers any read."),
    spec("readwrite", "READWRITE", 1, FAST | STALE, NO_KEYS, connection::ok, "Does nothing: any node answers any read."),
    spec("asking", "ASKING", 1, FAST | STALE, NO_KEYS, connection::ok, "Does nothing: slots are never half moved."),
    spec("wait", "WAIT numreplicas timeout", 3, FAST, NO_KEYS, server::wait, "Tells how many more copies acknowledged writes have."),
    container("client", "CLIENT subcommand [argument ...]", &CLIENT),
];

#[rustfmt::skip]
const CLIENT: [Spec; 10] = [
    spec("getname", "CLIENT GETNAME", 2, STALE, NO_KEYS, clients::getname, "The connection's name."),
    spec("getredir", "CLIENT GETREDIR", 2, STALE, NO_KEYS, clients::getredir, "Answers -1: there is no tracking."),
    spec("id", "CLIENT ID", 2, STALE, NO_KEYS, clients::id, "The connection's number on this node."),
    spec("info", "CLIENT INFO", 2, STALE, NO_KEYS, clients::info, "What is known of the connection."),
    spec("list", "CLIENT LIST [TYPE type | ID id [id ...]]", -2, ADMIN | STALE, NO_KEYS, clients::list, "What is known of all connections to this node."),
    spec("no-evict", "CLIENT NO-EVICT ON|OFF", 3, ADMIN | STALE, NO_KEYS, clients::no_evict, "Cut this connection off last."),
    spec("no-touch", "CLIENT NO-TOUCH ON|OFF", 3, STALE, NO_KEYS, clients::no_touch, "Accepted: accesses are not tracked."),
    spec("reply", "CLIENT REPLY ON|OFF|SKIP", 3, STALE, NO_KEYS, clients::reply_mode, "Sets whether commands are answered."),
    spec("setinfo", "CLIENT SETINFO LIB-NAME name|LIB-VER version", 4, STALE, NO_KEYS, clients::setinfo, "Names the client library."),
    spec("setname", "CLIENT SETNAME name", 3, STALE, NO_KEYS, clients::setname, "Names the connection."),
];

#[rustfmt::skip]
const STRINGS: [Spec; 21] = [
    spec("get", "GET key", 2, READ | FAST, KEY_1, strings::get, "The newest value."),
    spec("set", "SET key value [NX|XX] [GET] [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|KEEPTTL]", -3, WRITE | GROWS, KEY_1, strings::set, "Stores a value."),
    spec("setnx", "SETNX key value", 3, WRITE | GROWS | FAST, KEY_1, strings::setnx, "Stores a value if there is none."),
    spec("setex", "SETEX key seconds value", 4, WRITE | GROWS, KEY_1, strings::setex, "Stores a value that expires."),
    spec("psetex", "PSETEX key milliseconds value", 4, WRITE | GROWS, KEY_1, strings::psetex, "Stores a value that expires."),
    spec("getset", "GETSET key value", 3, WRITE | GROWS | FAST, KEY_1, strings::getset, "Stores a value and answers the one before."),
    spec("getdel", "GETDEL key", 2, WRITE | FAST, KEY_1, strings::getdel, "Deletes a key and answers its value."),
    spec("getex", "GETEX key [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|PERSIST]", -2, WRITE | FAST, KEY_1, strings::getex, "The newest value, whose expiry it changes."),
    spec("mget", "MGET key [key ...]", -2, READ | FAST, ALL_KEYS, strings::mget, "The newest values of many keys."),
    spec("mset", "MSET key value [key value ...]", -3, WRITE | GROWS, EVERY_SECOND, strings::mset, "Stores many values."),
    spec("msetnx", "MSETNX key value [key value ...]", -3, WRITE | GROWS, EVERY_SECOND, strings::msetnx, "Stores many values if none of the keys exists."),
    spec("append", "APPEND key value", 3, WRITE | GROWS | FAST, KEY_1, strings::append, "Appends to the newest value."),
    spec("strlen", "STRLEN key", 2, READ | FAST, KEY_1, strings::strlen, "The length of the newest value."),
    spec("getrange", "GETRANGE key start end", 4, READ, KEY_1, strings::getrange, "A part of the newest value."),
    spec("substr", "SUBSTR key start end", 4, READ, KEY_1, strings::getrange, "The old name of GETRANGE."),
    spec("setrange", "SETRANGE key offset value", 4, WRITE | GROWS, KEY_1, strings::setrange, "Overwrites a part of the newest value."),
    spec("incr", "INCR key", 2, WRITE | GROWS | FAST, KEY_1, strings::incr, "Adds one to a counter."),
    spec("decr", "DECR key", 2, WRITE | GROWS | FAST, KEY_1, strings::decr, "Takes one from a counter."),
    spec("incrby", "INCRBY key increment", 3, WRITE | GROWS | FAST, KEY_1, strings::incrby, "Adds to a counter."),
    spec("decrby", "DECRBY key decrement", 3, WRITE | GROWS | FAST, KEY_1, strings::decrby, "Takes from a counter."),
    spec("incrbyfloat", "INCRBYFLOAT key increment", 3, WRITE | GROWS | FAST, KEY_1, strings::incrbyfloat, "Adds to a decimal number."),
];

#[rustfmt::skip]
const GENERIC: [Spec; 25] = [
    spec("del", "DEL key [key ...]", -2, WRITE, ALL_KEYS, keys::del, "Deletes keys."),
    spec("unlink", "UNLINK key [key ...]", -2, WRITE | FAST, ALL_KEYS, keys::del, "Deletes keys; the same as DEL."),
    spec("exists", "EXISTS key [key ...]", -2, READ | FAST, ALL_KEYS, keys::exists, "How many of the keys exist."),
    spec("touch", "TOUCH key [key ...]", -2, READ | FAST, ALL_KEYS, keys::exists, "How many of the keys exist."),
    spec("type", "TYPE key", 2, READ | FAST, KEY_1, keys::type_, "string, or none."),
    spec("ttl", "TTL key", 2, READ | FAST, KEY_1, keys::ttl, "Seconds until the newest value expires."),
    spec("pttl", "PTTL key", 2, READ | FAST, KEY_1, keys::pttl, "Milliseconds until the newest value expires."),
    spec("expiretime", "EXPIRETIME key", 2, READ | FAST, KEY_1, keys::expiretime, "When the newest value expires, in seconds since 1970."),
    spec("pexpiretime", "PEXPIRETIME key", 2, READ | FAST, KEY_1, keys::pexpiretime, "When the newest value expires, in milliseconds since 1970."),
    spec("expire", "EXPIRE key seconds [NX|XX|GT|LT]", -3, WRITE | FAST, KEY_1, keys::expire, "Sets the time to live."),
    spec("pexpire", "PEXPIRE key milliseconds [NX|XX|GT|LT]", -3, WRITE | FAST, KEY_1, keys::pexpire, "Sets the time to live."),
    spec("expireat", "EXPIREAT key unix-time-seconds [NX|XX|GT|LT]", -3, WRITE | FAST, KEY_1, keys::expireat, "Sets when the key expires."),
    spec("pexpireat", "PEXPIREAT key unix-time-milliseconds [NX|XX|GT|LT]", -3, WRITE | FAST, KEY_1, keys::pexpireat, "Sets when the key expires."),
    spec("persist", "PERSIST key", 2, WRITE | FAST, KEY_1, keys::persist, "Removes the expiry."),
    spec("rename", "RENAME key newkey", 3, WRITE, KEYS_1_2, rename::rename, "Moves a key's values to another key."),
    spec("renamenx", "RENAMENX key newkey", 3, WRITE | FAST, KEYS_1_2, rename::renamenx, "Moves a key's values to a key that does not exist."),
    spec("copy", "COPY source destination [DB destination-db] [REPLACE]", -3, WRITE | GROWS, KEYS_1_2, rename::copy, "Copies a key's values to another key."),
    spec("scan", "SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]", -2, READ, NO_KEYS, listing::scan, "A page of the bucket's keys, from all nodes."),
    spec("keys", "KEYS pattern", 2, READ, NO_KEYS, listing::keys, "All keys of the bucket that match."),
    spec("dbsize", "DBSIZE", 1, READ, NO_KEYS, listing::dbsize, "The number of keys in the bucket."),
    spec("randomkey", "RANDOMKEY", 1, READ, NO_KEYS, listing::randomkey, "Some key of the bucket."),
    spec("flushdb", "FLUSHDB [ASYNC|SYNC]", -1, WRITE, NO_KEYS, listing::flushdb, "Deletes the keys of the bucket."),
    spec("flushall", "FLUSHALL [ASYNC|SYNC]", -1, WRITE, NO_KEYS, listing::flushall, "Deletes the keys of all buckets with a number or with properties."),
    container("object", "OBJECT subcommand [argument ...]", &OBJECT),
    spec("time", "TIME", 1, FAST | STALE, NO_KEYS, server::time, "This node's clock."),
];

#[rustfmt::skip]
const OBJECT: [Spec; 4] = [
    spec("encoding", "OBJECT ENCODING key", 3, READ, KEY_2, keys::object_encoding, "int for a counter; embstr or raw by length."),
    spec("freq", "OBJECT FREQ key", 3, READ, KEY_2, server::object_unsupported, "Refused: accesses are not tracked."),
    spec("idletime", "OBJECT IDLETIME key", 3, READ, KEY_2, server::object_unsupported, "Refused: accesses are not tracked."),
    spec("refcount", "OBJECT REFCOUNT key", 3, READ, KEY_2, server::object_unsupported, "Refused: references are not counted."),
];

#[rustfmt::skip]
const SERVER: [Spec; 3] = [
    spec("info", "INFO [section [section ...]]", -1, STALE, NO_KEYS, server::info, "What there is to know about this node."),
    container("config", "CONFIG subcommand [argument ...]", &CONFIG),
    Spec { subcommands: &COMMAND, ..spec("command", "COMMAND [subcommand [argument ...]]", -1, STALE, NO_KEYS, describe::command, "Describes all commands.") },
];

#[rustfmt::skip]
const CONFIG: [Spec; 4] = [
    spec("get", "CONFIG GET pattern [pattern ...]", -3, ADMIN | STALE, NO_KEYS, server::config_get, "Settings by Redis's names."),
    spec("resetstat", "CONFIG RESETSTAT", 2, ADMIN | STALE, NO_KEYS, server::config_resetstat, "Starts the counters of INFO anew; metrics only grow."),
    spec("rewrite", "CONFIG REWRITE", 2, ADMIN | STALE, NO_KEYS, server::config_rewrite, "Refused: the file belongs to the operator."),
    spec("set", "CONFIG SET parameter value [parameter value ...]", -4, ADMIN | STALE, NO_KEYS, server::config_set, "Sets what only tunes Redis, to no effect; the rest is read at the start."),
];

#[rustfmt::skip]
const COMMAND: [Spec; 5] = [
    spec("count", "COMMAND COUNT", 2, STALE, NO_KEYS, describe::count, "The number of commands."),
    spec("docs", "COMMAND DOCS [command-name [command-name ...]]", -2, STALE, NO_KEYS, describe::docs, "Summaries of commands."),
    spec("getkeys", "COMMAND GETKEYS command [argument ...]", -3, STALE, NO_KEYS, describe::getkeys, "The keys among a command's arguments."),
    spec("info", "COMMAND INFO [command-name [command-name ...]]", -2, STALE, NO_KEYS, describe::info, "Arities, flags and keys of commands."),
    spec("list", "COMMAND LIST [FILTERBY MODULE name|ACLCAT category|PATTERN pattern]", -2, STALE, NO_KEYS, describe::list, "The names of commands."),
];

#[rustfmt::skip]
const CLUSTERS: [Spec; 3] = [
    container("cluster", "CLUSTER subcommand [argument ...]", &CLUSTER),
    container("bucket", "BUCKET subcommand [argument ...]", &BUCKET),
    container("ring", "RING subcommand [argument ...]", &RING),
];

#[rustfmt::skip]
const CLUSTER: [Spec; 10] = [
    spec("countkeysinslot", "CLUSTER COUNTKEYSINSLOT slot", 3, READ, NO_KEYS, cluster::countkeysinslot, "The number of keys in a slot, on all nodes."),
    spec("getkeysinslot", "CLUSTER GETKEYSINSLOT slot count", 4, READ, NO_KEYS, cluster::getkeysinslot, "Keys in a slot, from all nodes."),
    spec("info", "CLUSTER INFO", 2, STALE, NO_KEYS, cluster::info, "The state of the cluster as this node sees it."),
    spec("keyslot", "CLUSTER KEYSLOT key", 3, STALE, NO_KEYS, cluster::keyslot, "The slot of a key."),
    spec("myid", "CLUSTER MYID", 2, STALE, NO_KEYS, cluster::myid, "This node's id."),
    spec("myshardid", "CLUSTER MYSHARDID", 2, STALE, NO_KEYS, cluster::myid, "This node's id; there are no shards."),
    spec("nodes", "CLUSTER NODES", 2, STALE, NO_KEYS, cluster::nodes, "All nodes and the slots each is first for."),
    spec("shards", "CLUSTER SHARDS", 2, STALE, NO_KEYS, cluster::shards, "Slots by the nodes that hold them."),
    spec("slots", "CLUSTER SLOTS", 2, STALE, NO_KEYS, cluster::slots, "Ranges of slots and the nodes that hold them."),
    spec("status", "CLUSTER STATUS", 2, STALE, NO_KEYS, cluster::status, "Nodes, their health and the ring, as JSON."),
];

#[rustfmt::skip]
const RING: [Spec; 6] = [
    spec("join", "RING JOIN node [PLAN]", -3, ADMIN, NO_KEYS, ring::join, "Has a member hold data."),
    spec("leave", "RING LEAVE node [PLAN]", -3, ADMIN, NO_KEYS, ring::leave, "Has a node hand over its data and hold none."),
    spec("remove", "RING REMOVE node [PLAN] [FORCE]", -3, ADMIN, NO_KEYS, ring::remove, "Makes the copies of a node that is gone for good anew."),
    spec("replace", "RING REPLACE old new [GONE [FORCE]] [PLAN]", -4, ADMIN, NO_KEYS, ring::replace, "Has a member take the place of another node."),
    spec("weight", "RING WEIGHT node weight [PLAN]", -4, ADMIN, NO_KEYS, ring::weight, "Changes a node's share of the data, 1 to 1000."),
    spec("zone", "RING ZONE node zone [PLAN]", -4, ADMIN, NO_KEYS, ring::zone, "Changes what a node fails together with."),
];

#[rustfmt::skip]
const BUCKET: [Spec; 4] = [
    spec("get", "BUCKET GET name", 3, STALE, NO_KEYS, buckets::get, "A bucket's properties."),
    spec("list", "BUCKET LIST", 2, STALE, NO_KEYS, buckets::list, "Buckets with properties of their own."),
    spec("set", "BUCKET SET name property value [property value ...]", -5, ADMIN, NO_KEYS, buckets::set, "Sets a bucket's properties on all nodes."),
    spec("use", "BUCKET USE name", 3, FAST | STALE, NO_KEYS, buckets::use_bucket, "Selects a bucket by its name."),
];

#[rustfmt::skip]
const VERSIONS: [Spec; 3] = [
    spec("vget", "VGET key [R n]", -2, READ | FAST, KEY_1, versions::vget, "The context and all siblings."),
    spec("vput", "VPUT key value [CONTEXT c] [R n] [W n] [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds]", -3, WRITE | GROWS | FAST, KEY_1, versions::vput, "Stores a value that replaces what the context covers."),
    spec("vdel", "VDEL key [CONTEXT c] [R n] [W n]", -2, WRITE | FAST, KEY_1, versions::vdel, "Deletes what the context covers."),
];

#[rustfmt::skip]
const ACTIVE: [Spec; 6] = [
    spec("aso.put", "ASO.PUT key source [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds] [W n]", -3, WRITE | GROWS, KEY_1, active::put, "Stores an active object, made by running Lua source."),
    spec("aso.call", "ASO.CALL key function [argument ...]", -3, WRITE, KEY_1, active::call, "Calls a function of an active object."),
    spec("aso.caller", "ASO.CALLER [COORDINATE number [number ...]] [REPLYKEY key]", -1, FAST, NO_KEYS, active::caller, "Says what active objects see of this connection."),
    spec("aso.info", "ASO.INFO key", 2, READ | FAST, KEY_1, active::info, "What an active object uses, its timer, and its last error."),
    spec("aso.reload", "ASO.RELOAD key source [W n]", -3, WRITE | GROWS, KEY_1, active::reload, "Gives an active object new code; its fields stay, those that are new are added."),
    spec("aso.source", "ASO.SOURCE key", 2, READ | FAST, KEY_1, active::source, "The source of an active object."),
];

#[rustfmt::skip]
const TRANSACTIONS: [Spec; 5] = [
    spec("multi", "MULTI", 1, FAST | STALE | ANYWHERE, NO_KEYS, transactions::multi, "Refused, with all commands until EXEC or DISCARD."),
    spec("exec", "EXEC", 1, STALE | ANYWHERE, NO_KEYS, transactions::exec, "Ends a transaction, of which nothing was run."),
    spec("discard", "DISCARD", 1, FAST | STALE | ANYWHERE, NO_KEYS, transactions::discard, "Ends a transaction, of which nothing was run."),
    spec("watch", "WATCH key [key ...]", -2, FAST | STALE | ANYWHERE, ALL_KEYS, transactions::watch, "Refused: there are no transactions."),
    spec("unwatch", "UNWATCH", 1, FAST | STALE, NO_KEYS, transactions::unwatch, "Does nothing: nothing is watched."),
];

#[rustfmt::skip]
const SCRIPTING: [Spec; 2] = [
    container("script", "SCRIPT subcommand [argument ...]", &SCRIPT),
    container("function", "FUNCTION subcommand [argument ...]", &FUNCTION),
];

#[rustfmt::skip]
const SCRIPT: [Spec; 2] = [
    spec("exists", "SCRIPT EXISTS sha1 [sha1 ...]", -3, STALE, NO_KEYS, scripting::script_exists, "Answers 0 for each: there are no scripts."),
    spec("flush", "SCRIPT FLUSH [ASYNC|SYNC]", -2, STALE, NO_KEYS, scripting::script_flush, "Does nothing: there are no scripts."),
];

#[rustfmt::skip]
const FUNCTION: [Spec; 2] = [
    spec("flush", "FUNCTION FLUSH [ASYNC|SYNC]", -2, STALE, NO_KEYS, scripting::function_flush, "Does nothing: there are no functions."),
    spec("list", "FUNCTION LIST [LIBRARYNAME pattern] [WITHCODE]", -2, STALE, NO_KEYS, scripting::function_list, "An empty list: there are no functions."),
];

const COUNT: usize = CONNECTION.len()
    + STRINGS.len()
    + GENERIC.len()
    + SERVER.len()
    + CLUSTERS.len()
    + VERSIONS.len()
    + ACTIVE.len()
    + TRANSACTIONS.len()
    + SCRIPTING.len();

const fn join() -> [Spec; COUNT] {
    let chapters: [(&[Spec], Group); 9] = [
        (&CONNECTION, Group::Connection),
        (&STRINGS, Group::String),
        (&GENERIC, Group::Generic),
        (&SERVER, Group::Server),
        (&CLUSTERS, Group::Cluster),
        (&VERSIONS, Group::Versions),
        (&ACTIVE, Group::Active),
        (&TRANSACTIONS, Group::Transactions),
        (&SCRIPTING, Group::Scripting),
    ];
    let mut all = [CONNECTION[0]; COUNT];
    let (mut at, mut chapter) = (0, 0);
    while chapter < chapters.len() {
        let (specs, group) = chapters[chapter];
        let mut i = 0;
        while i < specs.len() {
            all[at] = Spec { group, place: at as u8, ..specs[i] };
            (at, i) = (at + 1, i + 1);
        }
        chapter += 1;
    }
    all
}

/// The longest name of a command, in bytes.
const NAME_BYTES_MAX: usize = 15;
/// Places of the hash table: about four for each command, so that most are found at the first look.
const PLACES: usize = 256;
const EMPTY: u8 = u8::MAX;

/// A name in lower case as a number, after a byte 1 so that leading zero bytes count; `None` if it is too long.
const fn packed(name: &[u8]) -> Option<u128> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut number = 1u128;
    let mut i = 0;
    while i < name.len() {
        number = number << 8 | name[i].to_ascii_lowercase() as u128;
        i += 1;
    }
    Some(number)
}

const fn place_of(packed: u128) -> usize {
    let mixed = (packed as u64 ^ (packed >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize % PLACES
}

/// Each command's packed name, and its number by place.
struct Index {
    names: [u128; COUNT],
    places: [u8; PLACES],
}

static INDEX: Index = index();

const fn index() -> Index {
    const { assert!(COUNT < PLACES / 2, "the hash table is too small") };
    let mut index = Index { names: [0; COUNT], places: [EMPTY; PLACES] };
    let mut i = 0;
    while i < COUNT {
        let name = match packed(SPECS[i].name.as_bytes()) {
            Some(name) => name,
            None => panic!("a command's name is too long"),
        };
        let mut place = place_of(name);
        while index.places[place] != EMPTY {
            assert!(index.names[index.places[place] as usize] != name, "two commands have one name");
            place = (place + 1) % PLACES;
        }
        index.names[i] = name;
        index.places[place] = i as u8;
        i += 1;
    }
    index
}

/// The command called `name`, in any case.
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    let name = packed(name)?;
    let mut place = place_of(name);
    loop {
        match INDEX.places[place] {
            EMPTY => return None,
            i if INDEX.names[i as usize] == name => return Some(&COMMANDS[i as usize]),
            _ => place = (place + 1) % PLACES,
        }
    }
}

/// The one of `specs` called `name`, in any case, and its place.
pub fn find_in(specs: &'static [Spec], name: &[u8]) -> Option<(usize, &'static Spec)> {
    specs.iter().enumerate().find(|(_, spec)| spec.name.as_bytes().eq_ignore_ascii_case(name))
}

/// The place of a command in [`COMMANDS`]; `u8::MAX` for what is none of them.
pub fn place(spec: &'static Spec) -> u8 {
    spec.place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case() {
        for spec in COMMANDS {
            assert_eq!(find(spec.name.as_bytes()).map(|found| found.name), Some(spec.name));
            assert_eq!(find(spec.name.to_uppercase().as_bytes()).map(|found| found.name), Some(spec.name));
            assert_eq!(spec.name, spec.name.to_lowercase());
        }
        for name in ["", "ge", "gett", "lpush", "hset", "multix", "\0get", "averyveryverylongcommandname"] {
            assert!(find(name.as_bytes()).is_none(), "{name}");
        }
    }

    #[test]
    fn families_are_groups() {
        assert_eq!(Group::ALL.map(Group::name), crate::latency::FAMILIES);
        assert!(Group::ALL.iter().enumerate().all(|(i, group)| *group as usize == i));
    }

    #[test]
    fn syntaxes_name_their_commands() {
        for spec in COMMANDS {
            assert!(spec.syntax.starts_with(&spec.name.to_uppercase()), "{}", spec.syntax);
            for sub in spec.subcommands {
                let name = format!("{} {}", spec.name, sub.name).to_uppercase();
                assert!(sub.syntax.starts_with(&name), "{}", sub.syntax);
            }
        }
    }
}
