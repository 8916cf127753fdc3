//! Commands on the connection and the node.

use oort_core::bucket::Replication;

use super::fake::{text_of, Fake, START_MS};
use crate::commands::session::Session;
use crate::resp::Protocol;

#[test]
fn hello_chooses_the_protocol() {
    let mut fake = Fake::new();
    let greeting = fake.run("HELLO 3 AUTH default x SETNAME me");
    assert!(
        greeting.starts_with("{\"server\": \"redis\", \"version\": \"7.2.0\", \"proto\": :3, \"id\": :7, ")
    );
    assert_eq!(fake.session.protocol, Protocol::Resp3);
    assert_eq!(fake.run("CLIENT GETNAME"), "\"me\"");
    fake.run("HELLO 2 SETNAME \"b d\"");
    assert_eq!(fake.session.protocol, Protocol::Resp3, "a refused greeting changes nothing");
    fake.run("HELLO 2");
    assert_eq!(fake.session.protocol, Protocol::Resp2);
}

#[test]
fn reset_forgets_what_the_connection_set() {
    let mut fake = Fake::new();
    fake.check(&[("HELLO 3", &fake_greeting()), ("SELECT 3", "OK"), ("CLIENT REPLY SKIP", "nothing")]);
    fake.check(&[("PING", "nothing"), ("RESET", "RESET")]);
    assert_eq!(fake.session.protocol, Protocol::Resp2);
    assert_eq!(fake.session.bucket(), &b"default"[..]);
}

fn fake_greeting() -> String {
    Fake::new().run("HELLO 3")
}

#[test]
fn replies_can_be_turned_off() {
    let mut fake = Fake::new();
    fake.check(&[
        ("CLIENT REPLY SKIP", "nothing"),
        ("SET a 1", "nothing"),
        ("GET a", "\"1\""),
        ("CLIENT REPLY OFF", "nothing"),
        ("INCR a", "nothing"),
        ("MSET b 1 c 2", "nothing"),
        ("BOGUS", "nothing"),
        ("GET", "nothing"),
        ("CLIENT REPLY ON", "OK"),
        ("MGET a b c", "[\"2\", \"1\", \"2\"]"),
        ("CLIENT REPLY bogus", "-ERR syntax error"),
    ]);
}

#[test]
fn connections_are_listed() {
    let mut fake = Fake::new();
    fake.node.others.push(Session::new(8, "10.0.0.9:1".into(), "10.0.0.1:6379".into(), START_MS - 5000));
    fake.check(&[
        ("CLIENT ID", ":7"),
        ("CLIENT SETINFO LIB-NAME redis-py", "OK"),
        ("CLIENT SETINFO lib-ver 5.0", "OK"),
        (
            "CLIENT SETINFO lib-ver \"5 0\"",
            "-ERR lib-ver cannot contain spaces, newlines or special characters.",
        ),
        ("CLIENT SETINFO bogus x", "-ERR Unrecognized option 'bogus'"),
        ("CLIENT NO-TOUCH ON", "OK"),
    ]);
    let mine = text_of(&mut fake, "CLIENT INFO");
    assert!(mine.starts_with("id=7 addr=127.0.0.1:50000 laddr=127.0.0.1:6379 "), "{mine}");
    assert!(mine.ends_with(" resp=2 lib-name=redis-py lib-ver=5.0\n"), "{mine}");
    let all = text_of(&mut fake, "CLIENT LIST");
    assert_eq!(all.lines().count(), 2);
    assert!(all.contains("id=8 addr=10.0.0.9:1 laddr=10.0.0.1:6379 fd=-1 name= age=5 idle=5 "), "{all}");
    assert_eq!(text_of(&mut fake, "CLIENT LIST ID 8 99").lines().count(), 1);
    assert_eq!(text_of(&mut fake, "CLIENT LIST TYPE normal").lines().count(), 2);
    assert_eq!(text_of(&mut fake, "CLIENT LIST TYPE replica"), "");
}

#[test]
fn info_has_sections() {
    let mut fake = Fake::new();
    let all = text_of(&mut fake, "INFO");
    for line in [
        "# Server",
        "redis_version:7.2.0",
        "redis_mode:cluster",
        "tcp_port:6379",
        "# Clients",
        "connected_clients:2",
        "# Memory",
        "# Stats",
        "total_net_input_bytes:0",
        "instantaneous_ops_per_sec:0",
        "keyspace_hits:0",
        "expired_keys:0",
        "evicted_keys:0",
        "# CPU",
        "used_cpu_user:0.000000",
        "# Commandstats",
        "# Errorstats",
        "# Replication",
        "role:master",
        "# Cluster",
        "cluster_enabled:1",
        "cluster_known_nodes:3",
        "# Keyspace",
        "db7:keys=5,expires=2,avg_ttl=0",
    ] {
        assert!(all.lines().any(|found| found == line), "{line} is not in\n{all}");
    }
    assert!(all.contains("oort_version:"));
    let some = text_of(&mut fake, "INFO cluster REPLICATION");
    assert!(some.starts_with("# Replication\r\n"), "{some}");
    assert_eq!(some.matches("# ").count(), 2);
    assert_eq!(text_of(&mut fake, "INFO bogus"), "");
}

#[test]
fn settings_are_shown_and_not_changed() {
    let mut fake = Fake::new();
    fake.check(&[
        ("CONFIG GET appendonly", "{\"appendonly\": \"yes\"}"),
        ("CONFIG GET maxclients", "{\"maxclients\": \"9000\"}"),
        ("CONFIG GET PORT data*", "{\"databases\": \"16\", \"port\": \"6379\"}"),
        ("CONFIG GET", "-ERR wrong number of arguments for 'config|get' command"),
        ("CONFIG RESETSTAT", "OK"),
    ]);
}

#[test]
fn time_and_wait_are_honest() {
    let mut fake = Fake::new();
    fake.now_ms += 42;
    fake.check(&[
        ("TIME", "[\"1700000000\", \"42000\"]"),
        ("WAIT 1 0", ":1"),
        ("WAIT 5 100", ":1"),
        ("WAIT x 0", "-ERR value is not an integer or out of range"),
        ("WAIT 1 -1", "-ERR timeout is negative"),
        ("WAIT 1 x", "-ERR timeout is not an integer or out of range"),
    ]);
}

#[test]
fn commands_are_described() {
    let mut fake = Fake::new();
    let get = "[\"get\", :2, ~[readonly, fast], :1, :1, :1, ~[@read, @fast, @string], [], \
               [{\"flags\": ~[RO], \"begin_search\": {\"type\": \"index\", \"spec\": {\"index\": :1}}, \"find_keys\": \
               {\"type\": \"range\", \"spec\": {\"lastkey\": :0, \"keystep\": :1, \"limit\": :0}}}], []]";
    assert_eq!(fake.run("COMMAND INFO get"), format!("[{get}]"));
    assert!(fake.run("COMMAND").contains(get));
    assert!(fake.run("COMMAND INFO client|list bogus").starts_with("[[\"client|list\", :-2, "));
    let docs = fake.run("COMMAND DOCS get bogus");
    assert_eq!(
        docs,
        "{\"get\": {\"summary\": \"The newest value.\", \"since\": \"1.0.0\", \"group\": \"string\"}}"
    );
    assert!(fake.run("COMMAND DOCS").contains("\"subcommands\": {\"config|get\": "));
    let count = format!(":{}", crate::commands::table::COMMANDS.len());
    fake.check(&[
        ("COMMAND COUNT", &count),
        ("COMMAND LIST FILTERBY PATTERN mset*", "[\"mset\", \"msetnx\"]"),
        ("COMMAND LIST FILTERBY MODULE x", "[]"),
        ("COMMAND LIST BOGUS", "-ERR syntax error"),
        ("COMMAND GETKEYS BOGUS", "-ERR Invalid command specified"),
        ("COMMAND GETKEYS GET", "-ERR Invalid number of arguments specified for command"),
        ("COMMAND GETKEYS PING", "-ERR The command has no key arguments"),
    ]);
    assert!(fake.run("BUCKET HELP").contains("BUCKET SET name property value [property value ...]"));
}

#[test]
fn browsers_are_sent_away() {
    let mut fake = Fake::new();
    let refusal = "-ERR this port speaks the Redis protocol, not HTTP";
    fake.check(&[("POST / HTTP/1.1", refusal), ("Host: localhost", refusal)]);
}

#[test]
fn a_refused_transaction_runs_nothing() {
    let mut fake = Fake::new();
    let refused =
        "-ERR MULTI is not supported: transactions are not offered, and commands until EXEC or DISCARD are \
                   not run";
    let not_run = "-ERR not run: it follows a MULTI that was refused, up to EXEC or DISCARD";
    let aborted = "-EXECABORT Transaction discarded because of previous errors.";
    fake.check(&[
        ("SET a 1", "OK"),
        ("MULTI", refused),
        ("INCR a", not_run),
        ("DEL a", not_run),
        ("SELECT 3", not_run),
        ("HELLO 3", not_run),
        ("UNWATCH", not_run),
        ("CONFIG SET hz 20", not_run),
        ("GET", "-ERR wrong number of arguments for 'get' command"),
        ("MULTI", "-ERR MULTI calls can not be nested"),
        ("WATCH a", "-ERR WATCH inside MULTI is not allowed"),
        ("EXEC x", "-ERR wrong number of arguments for 'exec' command"),
        ("GET a", not_run),
        ("EXEC", aborted),
        ("GET a", "\"1\""),
        ("EXEC", "-ERR EXEC without MULTI"),
        ("DISCARD", "-ERR DISCARD without MULTI"),
        ("WATCH a", "-ERR WATCH is not supported: transactions are not offered"),
        ("UNWATCH", "OK"),
        ("MULTI", refused),
        ("SET a 2", not_run),
        ("DISCARD", "OK"),
        ("GET a", "\"1\""),
        ("MULTI x", "-ERR wrong number of arguments for 'multi' command"),
        ("GET a", "\"1\""),
        ("MULTI", refused),
        ("RESET", "RESET"),
        ("GET a", "\"1\""),
        ("MULTI", refused),
        ("QUIT", "OK"),
    ]);
    assert_eq!(fake.session.bucket(), &b"default"[..]);
}

#[test]
fn what_only_tunes_redis_is_accepted_and_remembered() {
    let mut fake = Fake::new();
    let failed = |name: &str, why: &str| {
        format!("-ERR CONFIG SET failed (possibly related to argument '{name}') - {why}")
    };
    fake.check(&[
        ("CONFIG SET hz 20 MAXMEMORY-POLICY allkeys-LRU", "OK"),
        ("CONFIG GET hz", "{\"hz\": \"20\"}"),
        ("CONFIG GET maxmemory-p*", "{\"maxmemory-policy\": \"allkeys-lru\"}"),
        ("CONFIG SET save \"\" slowlog-log-slower-than -1 list-max-ziplist-size -2", "OK"),
        (
            "CONFIG SET lazyfree-lazy-user-del maybe",
            &failed("lazyfree-lazy-user-del", "argument must be 'yes' or 'no'"),
        ),
        ("CONFIG SET hz many", &failed("hz", "argument couldn't be parsed into an integer")),
        (
            "CONFIG SET hll-sparse-max-bytes 1x",
            &failed("hll-sparse-max-bytes", "argument must be a memory value"),
        ),
        ("CONFIG SET repl-backlog-size 100mb", "OK"),
        ("CONFIG SET hz 30 HZ 40", &failed("HZ", "duplicate parameter")),
        ("CONFIG SET hz 30 port 1", &failed("port", "can't set immutable config")),
        ("CONFIG SET hz 30 bogus 1", "-ERR Unknown option or number of arguments for CONFIG SET - 'bogus'"),
        ("CONFIG GET hz", "{\"hz\": \"20\"}"),
        ("CONFIG SET port 6379 maxmemory 0 requirepass \"\"", "OK"),
        ("CONFIG SET maxmemory 100mb", &failed("maxmemory", "can't set immutable config")),
        ("CONFIG SET requirepass secret", &failed("requirepass", "can't set immutable config")),
        ("CONFIG SET hz", "-ERR wrong number of arguments for 'config|set' command"),
        ("CONFIG SET hz 1 save", "-ERR syntax error"),
        ("SCRIPT FLUSH", "OK"),
        ("SCRIPT FLUSH SYNC", "OK"),
        ("SCRIPT FLUSH now", "-ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
        ("SCRIPT EXISTS a b", "[:0, :0]"),
        ("FUNCTION FLUSH ASYNC", "OK"),
        ("FUNCTION FLUSH a b", "-ERR FUNCTION FLUSH only supports SYNC|ASYNC option"),
        ("FUNCTION LIST", "[]"),
    ]);
}

#[test]
fn a_small_cluster_has_no_more_copies_than_nodes() {
    let mut fake = Fake::new();
    fake.node.set_ring(1);
    fake.check(&[("WAIT 1 100", ":0")]);
    fake.node.ring = None;
    fake.check(&[("WAIT 1 100", ":0")]);
}

#[test]
fn wait_counts_the_copies_in_force_not_those_wanted() {
    let mut fake = Fake::new();
    fake.node.want("default", Replication { n: 3, r: 1, w: 3 });
    fake.check(&[("WAIT 1 100", ":1")]);
    fake.node.advance_ring();
    fake.check(&[("WAIT 1 100", ":1")]);
    fake.node.advance_ring();
    fake.check(&[("WAIT 1 100", ":2")]);
}
