//! Commands on data.

use super::fake::{add_sibling, show, Fake, START_MS};
use crate::resp::request::Command;
use crate::resp::Value;
use oort_core::client::ClientError;

const NOT_AN_INTEGER: &str = "-ERR value is not an integer or out of range";

/// What Redis 7.0.15 answers to these lines, one after the other, on an empty database.
///
/// Checked by running them there; where Oort differs on purpose, the case stands in a test of its own.
pub const AS_REDIS: &[(&str, &str)] = &[
    ("SET a 1", "OK"),
    ("set a \"x\\x00y\"", "OK"),
    ("GeT a", "\"x\\x00y\""),
    ("GET none", "nil"),
    ("GET", "-ERR wrong number of arguments for 'get' command"),
    ("GET a b", "-ERR wrong number of arguments for 'get' command"),
    ("SET a", "-ERR wrong number of arguments for 'set' command"),
    ("SET a 1 NX", "nil"),
    ("SET b 1 NX", "OK"),
    ("SET c 1 XX", "nil"),
    ("SET b 2 XX", "OK"),
    ("SET b 3 GET", "\"2\""),
    ("SET c 1 GET", "nil"),
    ("SET c 2 NX GET", "\"1\""),
    ("SET d 2 XX GET", "nil"),
    ("GET d", "nil"),
    ("SET b 1 NX XX", "-ERR syntax error"),
    ("SET b 1 NX NX", "nil"),
    ("SET b 1 EX", "-ERR syntax error"),
    ("SET b 1 EX 1 PX 1", "-ERR syntax error"),
    ("SET b 1 EX 1 KEEPTTL", "-ERR syntax error"),
    ("SET b 1 KEEPTTL EX 1", "-ERR syntax error"),
    ("SET b 1 BOGUS", "-ERR syntax error"),
    ("SET b 1 PERSIST", "-ERR syntax error"),
    ("SET b 1 EX x", NOT_AN_INTEGER),
    ("SET b 1 EX 1.5", NOT_AN_INTEGER),
    ("SET b 1 EX 0", "-ERR invalid expire time in 'set' command"),
    ("SET b 1 PX -1", "-ERR invalid expire time in 'set' command"),
    ("SET b 1 EX 9223372036854775807", "-ERR invalid expire time in 'set' command"),
    ("SET b 1 PX 9223372036854775807", "-ERR invalid expire time in 'set' command"),
    ("SET b 1 EXAT 4000000000", "OK"),
    ("EXPIRETIME b", ":4000000000"),
    ("PEXPIRETIME b", ":4000000000000"),
    ("SET b 2 KEEPTTL", "OK"),
    ("EXPIRETIME b", ":4000000000"),
    ("SET b 2", "OK"),
    ("EXPIRETIME b", ":-1"),
    ("SET b 2 PXAT 4000000000600", "OK"),
    ("EXPIRETIME b", ":4000000001"),
    ("SET b 2 EXAT 1", "OK"),
    ("GET b", "nil"),
    ("EXISTS b", ":0"),
    ("SETNX b 1", ":1"),
    ("SETNX b 2", ":0"),
    ("SETEX e 100 v", "OK"),
    ("TTL e", ":100"),
    ("SETEX e 0 v", "-ERR invalid expire time in 'setex' command"),
    ("SETEX e x v", NOT_AN_INTEGER),
    ("PSETEX e 100000 v", "OK"),
    ("TTL e", ":100"),
    ("PSETEX e -5 v", "-ERR invalid expire time in 'psetex' command"),
    ("GETSET b 5", "\"1\""),
    ("GETSET fresh 5", "nil"),
    ("GETDEL fresh", "\"5\""),
    ("GETDEL fresh", "nil"),
    ("GETEX b", "\"5\""),
    ("GETEX b EX 100", "\"5\""),
    ("TTL b", ":100"),
    ("GETEX b PERSIST", "\"5\""),
    ("TTL b", ":-1"),
    ("GETEX b PERSIST", "\"5\""),
    ("GETEX b EX 1 PERSIST", "-ERR syntax error"),
    ("GETEX b NX", "-ERR syntax error"),
    ("GETEX b EX 0", "-ERR invalid expire time in 'getex' command"),
    ("GETEX none EX 10", "nil"),
    ("MGET b none b", "[\"5\", nil, \"5\"]"),
    ("MSET m1 1 m2 2 m1 3", "OK"),
    ("MGET m1 m2", "[\"3\", \"2\"]"),
    ("MSET m1", "-ERR wrong number of arguments for 'mset' command"),
    ("MSET m1 1 m2", "-ERR wrong number of arguments for 'mset' command"),
    ("MSETNX m1 1 m3 3", ":0"),
    ("GET m3", "nil"),
    ("MSETNX m3 3 m4 4", ":1"),
    ("MGET m3 m4", "[\"3\", \"4\"]"),
    ("MSETNX m3 1 m4", "-ERR wrong number of arguments for 'msetnx' command"),
    ("APPEND ap abc", ":3"),
    ("APPEND ap def", ":6"),
    ("GET ap", "\"abcdef\""),
    ("STRLEN ap", ":6"),
    ("STRLEN none", ":0"),
    ("GETRANGE ap 0 -1", "\"abcdef\""),
    ("GETRANGE ap 1 2", "\"bc\""),
    ("GETRANGE ap -3 -2", "\"de\""),
    ("GETRANGE ap -100 1", "\"ab\""),
    ("GETRANGE ap 4 100", "\"ef\""),
    ("GETRANGE ap 4 2", "\"\""),
    ("GETRANGE ap -1 -5", "\"\""),
    ("GETRANGE ap 6 7", "\"\""),
    ("GETRANGE ap -100 -50", "\"a\""),
    ("GETRANGE none 0 -1", "\"\""),
    ("GETRANGE ap x 1", NOT_AN_INTEGER),
    ("GETRANGE ap 0 9223372036854775807", "\"abcdef\""),
    ("GETRANGE ap -9223372036854775808 -1", "\"abcdef\""),
    ("SUBSTR ap 0 0", "\"a\""),
    ("SETRANGE ap 1 XY", ":6"),
    ("GET ap", "\"aXYdef\""),
    ("SETRANGE ap 8 Z", ":9"),
    ("GET ap", "\"aXYdef\\x00\\x00Z\""),
    ("SETRANGE ap 0 \"\"", ":9"),
    ("SETRANGE none 0 \"\"", ":0"),
    ("EXISTS none", ":0"),
    ("SETRANGE ap -1 a", "-ERR offset is out of range"),
    ("SETRANGE ap x a", NOT_AN_INTEGER),
    ("INCR n", ":1"),
    ("INCR n", ":2"),
    ("DECR n", ":1"),
    ("INCRBY n 10", ":11"),
    ("DECRBY n 20", ":-9"),
    ("GET n", "\"-9\""),
    ("STRLEN n", ":2"),
    ("INCRBY n x", NOT_AN_INTEGER),
    ("INCRBY n 1.5", NOT_AN_INTEGER),
    ("INCR ap", NOT_AN_INTEGER),
    ("SET n 9223372036854775807", "OK"),
    ("INCR n", "-ERR increment or decrement would overflow"),
    ("DECRBY n -9223372036854775808", "-ERR decrement would overflow"),
    ("SET n \" 1\"", "OK"),
    ("INCR n", NOT_AN_INTEGER),
    ("SET n 1 EX 100", "OK"),
    ("INCR n", ":2"),
    ("TTL n", ":100"),
    ("APPEND n 0", ":2"),
    ("INCR n", ":21"),
    ("SET f 10.50", "OK"),
    ("INCRBYFLOAT f 0.1", "\"10.6\""),
    ("INCRBYFLOAT f -5", "\"5.6\""),
    ("INCRBYFLOAT f 5.0e3", "\"5005.60000000000000009\""),
    ("INCRBYFLOAT f x", "-ERR value is not a valid float"),
    ("INCRBYFLOAT f inf", "-ERR increment would produce NaN or Infinity"),
    ("INCRBYFLOAT f nan", "-ERR value is not a valid float"),
    ("INCRBYFLOAT ap 1", "-ERR value is not a valid float"),
    ("INCRBYFLOAT f2 3", "\"3\""),
    ("INCR f2", ":4"),
    ("DEL f f2 none f", ":2"),
    ("DEL n", ":1"),
    ("DEL n", ":0"),
    ("UNLINK ap none", ":1"),
    ("DEL", "-ERR wrong number of arguments for 'del' command"),
    ("EXISTS b b none", ":2"),
    ("TOUCH b none", ":1"),
    ("TYPE b", "string"),
    ("TYPE none", "none"),
    ("TTL none", ":-2"),
    ("PTTL none", ":-2"),
    ("EXPIRETIME none", ":-2"),
    ("TTL b", ":-1"),
    ("EXPIRE b 100", ":1"),
    ("TTL b", ":100"),
    ("EXPIRE none 100", ":0"),
    ("EXPIRE b x", NOT_AN_INTEGER),
    ("EXPIRE b 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
    ("PEXPIRE b 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
    ("EXPIRE b 50 NX", ":0"),
    ("EXPIRE b 50 GT", ":0"),
    ("EXPIRE b 200 GT", ":1"),
    ("EXPIRE b 300 LT", ":0"),
    ("EXPIRE b 50 LT", ":1"),
    ("EXPIRE b 60 XX", ":1"),
    ("EXPIRE b 70 XX GT", ":1"),
    ("PERSIST b", ":1"),
    ("PERSIST b", ":0"),
    ("PERSIST none", ":0"),
    ("EXPIRE b 60 XX", ":0"),
    ("EXPIRE b 60 GT", ":0"),
    ("EXPIRE b 60 LT", ":1"),
    ("EXPIRE b 60 NX XX", "-ERR NX and XX, GT or LT options at the same time are not compatible"),
    ("EXPIRE b 60 GT LT", "-ERR GT and LT options at the same time are not compatible"),
    ("EXPIRE b 60 BOGUS", "-ERR Unsupported option BOGUS"),
    ("PEXPIRE b 60000", ":1"),
    ("TTL b", ":60"),
    ("EXPIREAT b 4000000000", ":1"),
    ("PEXPIREAT b 4000000000500", ":1"),
    ("PEXPIRETIME b", ":4000000000500"),
    ("EXPIRE b -1", ":1"),
    ("EXISTS b", ":0"),
    ("SET r1 v1", "OK"),
    ("RENAME r1 r2", "OK"),
    ("GET r1", "nil"),
    ("GET r2", "\"v1\""),
    ("RENAME none r2", "-ERR no such key"),
    ("RENAME r2 r2", "OK"),
    ("RENAMENX r2 r2", ":0"),
    ("SET r3 v3", "OK"),
    ("RENAMENX r2 r3", ":0"),
    ("RENAMENX r2 r4", ":1"),
    ("RENAMENX none r4", "-ERR no such key"),
    ("EXPIRE r4 100", ":1"),
    ("COPY r4 r5", ":1"),
    ("TTL r5", ":100"),
    ("COPY r4 r3", ":0"),
    ("COPY r4 r3 REPLACE", ":1"),
    ("GET r3", "\"v1\""),
    ("COPY none r3", ":0"),
    ("COPY r3 r3", "-ERR source and destination objects are the same"),
    ("COPY r3 r3 DB 1", ":1"),
    ("COPY r3 r3 DB 99", "-ERR DB index is out of range"),
    ("COPY r3 r3 DB x", NOT_AN_INTEGER),
    ("COPY r3 r6 BOGUS", "-ERR syntax error"),
    ("SELECT 1", "OK"),
    ("GET r3", "\"v1\""),
    ("GET r4", "nil"),
    ("DBSIZE", ":1"),
    ("KEYS *", "[\"r3\"]"),
    ("RANDOMKEY", "\"r3\""),
    ("SCAN 0", "[\"0\", [\"r3\"]]"),
    ("SCAN 0 MATCH x*", "[\"0\", []]"),
    ("SCAN 0 MATCH r* COUNT 100 TYPE string", "[\"0\", [\"r3\"]]"),
    ("SCAN 0 TYPE hash", "[\"0\", []]"),
    ("SCAN x", "-ERR invalid cursor"),
    ("SCAN 4503599627370496", "-ERR invalid cursor"),
    ("SCAN 0 COUNT 0", "-ERR syntax error"),
    ("SCAN 0 COUNT x", NOT_AN_INTEGER),
    ("SCAN 0 COUNT", "-ERR syntax error"),
    ("SCAN 0 BOGUS 1", "-ERR syntax error"),
    ("FLUSHDB BOGUS", "-ERR syntax error"),
    ("FLUSHDB", "OK"),
    ("DBSIZE", ":0"),
    ("RANDOMKEY", "nil"),
    ("KEYS *", "[]"),
    ("SELECT 16", "-ERR DB index is out of range"),
    ("SELECT -1", "-ERR DB index is out of range"),
    ("SELECT x", NOT_AN_INTEGER),
    ("SELECT 0", "OK"),
    ("FLUSHALL ASYNC", "OK"),
    ("DBSIZE", ":0"),
    ("OBJECT ENCODING none", "nil"),
    ("SET o hello", "OK"),
    ("OBJECT ENCODING o", "\"embstr\""),
    ("INCR o2", ":1"),
    ("OBJECT ENCODING o2", "\"int\""),
    ("OBJECT BOGUS o", "-ERR unknown subcommand 'BOGUS'. Try OBJECT HELP."),
    ("OBJECT ENCODING", "-ERR wrong number of arguments for 'object|encoding' command"),
    ("OBJECT", "-ERR wrong number of arguments for 'object' command"),
    ("FOO", "-ERR unknown command 'FOO', with args beginning with: "),
    ("FOO bar \"b az\"", "-ERR unknown command 'FOO', with args beginning with: 'bar' 'b az' "),
    ("PING", "PONG"),
    ("PING hi", "\"hi\""),
    ("PING hi ho", "-ERR wrong number of arguments for 'ping' command"),
    ("ECHO hi", "\"hi\""),
    ("AUTH x", "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"),
    ("AUTH default x", "OK"),
    ("AUTH nobody x", "-WRONGPASS invalid username-password pair or user is disabled."),
    ("HELLO 4", "-NOPROTO unsupported protocol version"),
    ("HELLO x", "-ERR Protocol version is not an integer or out of range"),
    ("HELLO 2 BOGUS", "-ERR Syntax error in HELLO option 'BOGUS'"),
    ("HELLO 2 AUTH nobody x", "-WRONGPASS invalid username-password pair or user is disabled."),
    ("CLIENT GETNAME", "nil"),
    ("CLIENT SETNAME me", "OK"),
    ("CLIENT GETNAME", "\"me\""),
    ("CLIENT SETNAME \"a b\"", "-ERR Client names cannot contain spaces, newlines or special characters."),
    ("CLIENT BOGUS", "-ERR unknown subcommand 'BOGUS'. Try CLIENT HELP."),
    ("CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command"),
    ("CLIENT", "-ERR wrong number of arguments for 'client' command"),
    ("CLIENT NO-EVICT ON", "OK"),
    ("CLIENT NO-EVICT maybe", "-ERR syntax error"),
    ("CLIENT GETREDIR", ":-1"),
    ("CLIENT LIST BOGUS", "-ERR syntax error"),
    ("CLIENT LIST TYPE bogus", "-ERR Unknown client type 'bogus'"),
    ("CLIENT LIST ID x", "-ERR Invalid client ID"),
    ("CONFIG GET save", "[\"save\", \"\"]"),
    ("CONFIG GET bogus", "[]"),
    ("CONFIG SET databases 4", "-ERR CONFIG SET failed (possibly related to argument 'databases') - can't set immutable config"),
    ("CONFIG SET bogus 4", "-ERR Unknown option or number of arguments for CONFIG SET - 'bogus'"),
    ("CONFIG SET bogus 4 x", "-ERR syntax error"),
    ("CONFIG REWRITE", "-ERR The server is running without a config file"),
    ("COMMAND GETKEYS SET k v", "[\"k\"]"),
    ("COMMAND GETKEYS MSET a 1 b 2", "[\"a\", \"b\"]"),
    ("COMMAND GETKEYS DEL a b c", "[\"a\", \"b\", \"c\"]"),
    ("COMMAND INFO bogus", "[nil]"),
    ("COMMAND BOGUS", "-ERR unknown subcommand 'BOGUS'. Try COMMAND HELP."),
    ("READONLY", "-ERR This instance has cluster support disabled"),
    ("RESET", "RESET"),
    ("CLIENT GETNAME", "nil"),
    ("QUIT", "OK"),
];

/// Lines of [`AS_REDIS`] whose answer differs, with Oort's. Everything else must be the same.
const OTHERWISE: &[(&str, &str)] = &[
    // Redis computes with 80 bits and shows them.
    ("INCRBYFLOAT f 5.0e3", "\"5005.6\""),
    ("READONLY", "OK"),
];

#[test]
fn answers_are_those_of_redis() {
    let mut fake = Fake::new();
    for (line, redis) in AS_REDIS {
        let ours = OTHERWISE.iter().find(|(other, _)| other == line).map_or(redis, |(_, ours)| ours);
        // Version 2 of the protocol writes a map as an array.
        let reply = fake.run(line).replace('{', "[").replace('}', "]").replace("\": ", "\", ");
        assert_eq!(&reply, ours, "{line}");
    }
}

#[test]
fn values_expire() {
    let mut fake = Fake::new();
    fake.check(&[("SET a 1 PX 1500", "OK"), ("PTTL a", ":1500"), ("TTL a", ":2"), ("SET b 1", "OK")]);
    fake.now_ms += 1001;
    fake.check(&[("PTTL a", ":499"), ("TTL a", ":0"), ("GET a", "\"1\"")]);
    fake.now_ms += 499;
    fake.check(&[
        ("GET a", "nil"),
        ("TTL a", ":-2"),
        ("KEYS *", "[\"b\"]"),
        ("DEL a", ":0"),
        ("SET a 2 NX", "OK"),
        ("EXPIRE a 1", ":1"),
        ("APPEND a 3", ":2"),
        ("GETSET b 2 ", "\"1\""),
    ]);
    fake.now_ms += 1000;
    fake.check(&[("GET a", "nil"), ("APPEND a 3", ":1"), ("TTL a", ":-1"), ("GETDEL a", "\"3\"")]);
}

#[test]
fn get_answers_the_newest_sibling_and_set_replaces_all() {
    let mut fake = Fake::new();
    fake.run("SET a one");
    add_sibling(&mut fake, "a", "two", 2);
    add_sibling(&mut fake, "a", "three", 3);
    fake.check(&[("GET a", "\"three\""), ("STRLEN a", ":5"), ("DEL a", ":1"), ("GET a", "nil")]);
    add_sibling(&mut fake, "a", "four", 2);
    add_sibling(&mut fake, "a", "five", 3);
    fake.run("SET a six");
    assert_eq!(fake.objects[&super::fake::key("a")].siblings(START_MS).len(), 1);
}

#[test]
fn rename_and_copy_carry_all_siblings() {
    let mut fake = Fake::new();
    fake.run("SET a one");
    add_sibling(&mut fake, "a", "two", 2);
    assert!(fake.run("VGET a").ends_with("[\"two\", \"one\"]]"));
    fake.check(&[("COPY a b", ":1"), ("RENAME a c", "OK"), ("EXISTS a b c", ":2"), ("GET c", "\"two\"")]);
    for line in ["VGET b", "VGET c"] {
        assert!(fake.run(line).ends_with("[\"two\", \"one\"]]"), "{line}");
    }
}

#[test]
fn contexts_replace_exactly_what_they_cover() {
    let mut fake = Fake::new();
    let context = |shown: &str| shown.split('"').nth(1).expect("a context").to_string();
    let first = fake.run("VGET a");
    assert!(first.ends_with("\", []]"), "{first}");
    let one = fake.run("VPUT a one");
    assert!(one.ends_with("[\"one\"]]"), "{one}");
    // Without a context nothing is replaced.
    let two = fake.run("VPUT a two");
    assert!(two.ends_with("[\"two\", \"one\"]]"), "{two}");
    // The first context covers `one` alone.
    let three = fake.run(&format!("VPUT a three CONTEXT {} W 2 EX 100", context(&one)));
    assert!(three.ends_with("[\"three\", \"two\"]]"), "{three}");
    assert_eq!(fake.run("TTL a"), ":100");
    let all = fake.run("VGET a R 1");
    let four = fake.run(&format!("VPUT a four CONTEXT {}", context(&all)));
    assert!(four.ends_with("[\"four\"]]"), "{four}");
    let kept = fake.run(&format!("VDEL a CONTEXT {}", context(&two)));
    assert!(kept.ends_with("[\"four\"]]"), "{kept}");
    let gone = fake.run("VDEL a");
    assert!(gone.ends_with("\", []]"), "{gone}");
    fake.check(&[
        (
            &*format!("VPUT b five CONTEXT {}", context(&two)),
            "-ERR invalid context: it was read from another key or another bucket",
        ),
        ("VPUT a five CONTEXT AAAA", "-ERR invalid context: cut short at 4 bytes"),
        ("VPUT a five CONTEXT", "-ERR syntax error"),
        ("VPUT a five R 0", "-ERR quorum of 0: it must be 1 to the bucket's n"),
        ("VPUT a five BOGUS", "-ERR syntax error"),
        ("VGET a W 1", "-ERR syntax error"),
        ("VGET a R x", NOT_AN_INTEGER),
        ("VDEL a EX 1", "-ERR syntax error"),
        ("VPUT a five EX 0", "-ERR invalid expire time in 'vput' command"),
        ("GET a", "nil"),
    ]);
}

#[test]
fn buckets_have_properties() {
    let mut fake = Fake::new();
    let defaults = "{\"n\": :3, \"r\": :2, \"w\": :2, \"conflict\": \"siblings\", \"default_ttl_ms\": nil, \
                    \"value_bytes_max\": :1048576, \"active\": \"true\", \"aso_durability\": \"async\", \
                    \"aso_fuel\": \"exact\", \"in_force\": \"true\", \"aso_async_ms\": :1000, \"aso_instructions\": :100000, \
                    \"aso_memory_bytes\": :100000, \"aso_wall_ms\": :10, \"aso_messages\": :20}";
    let changed = "{\"n\": :3, \"r\": :1, \"w\": :3, \"conflict\": \"lww\", \"default_ttl_ms\": :1000, \
                   \"value_bytes_max\": :4, \"active\": \"false\", \"aso_durability\": \"quorum\", \
                   \"aso_fuel\": \"safepoints\", \"in_force\": \"false\", \"aso_async_ms\": :5, \"aso_instructions\": :100000, \
                   \"aso_memory_bytes\": :100000, \"aso_wall_ms\": :10, \"aso_messages\": :0}";
    fake.check(&[
        ("BUCKET LIST", "[]"),
        ("BUCKET GET 5", defaults),
        ("BUCKET SET 5 R 1 w 3 conflict LWW default_ttl_ms 1000 value_bytes_max 4 active false", "OK"),
        ("BUCKET SET 5 aso_durability Quorum ASO_FUEL safepoints aso_async_ms 5 aso_messages 0", "OK"),
        ("BUCKET GET 5", changed),
        ("BUCKET LIST", "[\"5\"]"),
        ("BUCKET GET default", defaults),
        ("BUCKET SET 5 default_ttl_ms none", "OK"),
        ("BUCKET SET 5 default_ttl_ms 1000", "OK"),
        ("BUCKET SET 5 n 1", "-ERR w is 3: it must be 1 to n, which is 1"),
        ("BUCKET SET 5 n 0", "-ERR n is '0': it must be a number from 1 to 16"),
        ("BUCKET SET 5 n 99", "-ERR n is '99': it must be a number from 1 to 16"),
        ("BUCKET SET 5 conflict maybe", "-ERR conflict is 'maybe': it must be siblings or lww"),
        ("BUCKET SET 5 active maybe", "-ERR active is 'maybe': it must be true or false"),
        ("BUCKET SET 5 aso_durability maybe", "-ERR aso_durability is 'maybe': it must be quorum or async"),
        ("BUCKET SET 5 aso_fuel maybe", "-ERR aso_fuel is 'maybe': it must be exact or safepoints"),
        ("BUCKET SET 5 aso_wall_ms 101", "-ERR aso_wall_ms is '101': it must be a number from 1 to 100"),
        (
            "BUCKET SET 5 color red",
            "-ERR unknown bucket property 'color': there are n, r, w, conflict, default_ttl_ms, value_bytes_max, \
             active, aso_durability, aso_async_ms, aso_fuel, aso_instructions, aso_memory_bytes, aso_wall_ms and \
             aso_messages",
        ),
        ("BUCKET SET 5 n", "-ERR wrong number of arguments for 'bucket|set' command"),
        ("BUCKET SET 5 n 1 r", "-ERR wrong number of arguments for 'bucket|set' command"),
        ("BUCKET GET \"\"", "-ERR bucket name of 0 bytes: a bucket name has 1 to 255 bytes"),
        ("SELECT 5", "OK"),
        ("SET a 1234", "OK"),
        ("TTL a", ":1"),
        (
            "SET a 12345",
            "-ERR string exceeds maximum allowed size: value of 5 bytes exceeds the bucket's limit of 4 bytes",
        ),
        (
            "APPEND a 5",
            "-ERR string exceeds maximum allowed size: value of 5 bytes exceeds the bucket's limit of 4 bytes",
        ),
        ("GET a", "\"1234\""),
        ("FLUSHALL", "OK"),
        ("DBSIZE", ":0"),
        ("WAIT 1 0", ":1"),
        ("BUCKET USE carts", "OK"),
        ("SET a 1", "OK"),
        ("SELECT 0", "OK"),
        ("GET a", "nil"),
        ("BUCKET USE carts", "OK"),
        ("GET a", "\"1\""),
        ("BUCKET USE \"\"", "-ERR bucket name of 0 bytes: a bucket name has 1 to 255 bytes"),
    ]);
}

fn numbered(name: &str, count: usize, values: bool) -> Command {
    let mut arguments = vec![name.to_string()];
    for i in 0..count {
        arguments.push(format!("key-{i}"));
        if values {
            arguments.push(format!("value-{i}"));
        }
    }
    Command::new(&arguments)
}

#[test]
fn many_keys_go_in_rounds() {
    let mut fake = Fake::new();
    assert_eq!(fake.reply(numbered("MSET", 1000, true)), Value::OK);
    assert_eq!(fake.rounds, 4);
    let Value::Array(values) = fake.reply(numbered("MGET", 1001, false)) else { panic!("no array") };
    assert_eq!((values.len(), fake.rounds), (1001, 4));
    for (i, value) in values.iter().take(1000).enumerate() {
        assert_eq!(show(value), format!("\"value-{i}\""));
    }
    assert_eq!(values[1000], Value::Null);
    assert_eq!(fake.reply(numbered("EXISTS", 1001, false)), Value::Integer(1000));
    assert_eq!(fake.reply(numbered("MSETNX", 1001, true)), Value::Integer(0));
    assert_eq!(fake.run("DBSIZE"), ":1000");
    let Value::Array(keys) = fake.reply(Command::new(&["KEYS", "key-*"])) else { panic!("no array") };
    assert_eq!(keys.len(), 1000);
    assert_eq!(fake.reply(numbered("DEL", 500, false)), Value::Integer(500));
    assert_eq!(fake.run("FLUSHDB"), "OK");
    assert_eq!(fake.run("DBSIZE"), ":0");
}

#[test]
fn scan_finds_each_key_once_and_ends_at_cursor_0() {
    let mut fake = Fake::new();
    fake.reply(numbered("MSET", 300, true));
    for count in [1, 7, 1000] {
        let (mut cursor, mut found) = ("0".to_string(), Vec::new());
        loop {
            let page = fake.reply(Command::new(&["SCAN", &cursor, "COUNT", &count.to_string()]));
            let Value::Array(parts) = page else { panic!("no array") };
            let [Value::Bulk(next), Value::Array(keys)] = parts.as_slice() else { panic!("no page") };
            found.extend(keys.iter().map(show));
            cursor = String::from_utf8(next.to_vec()).unwrap();
            if cursor == "0" {
                break;
            }
        }
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 300, "COUNT {count}");
    }
    let mut seen: Vec<String> = (0..60).map(|_| fake.run("RANDOMKEY")).collect();
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 20, "only {} different keys", seen.len());
}

#[test]
fn bad_keys_change_nothing() {
    let mut fake = Fake::new();
    let long = "k".repeat(4097);
    let error = "-ERR key of 4097 bytes: a key has 1 to 4096 bytes";
    for line in ["GET", "DEL", "TTL", "INCR", "MGET ok", "DEL ok", "MSET ok 1", "SET"] {
        let value = if line.starts_with("MSET") || line == "SET" { " v" } else { "" };
        assert_eq!(fake.run(&format!("{line} {long}{value}")), error, "{line}");
    }
    assert_eq!(fake.run("GET \"\""), "-ERR key of 0 bytes: a key has 1 to 4096 bytes");
    assert!(fake.objects.is_empty());
}

#[test]
fn errors_of_the_core_have_their_prefixes() {
    let mut fake = Fake::new();
    let cases = [
        (ClientError::NotReady, "-CLUSTERDOWN the cluster is not formed yet"),
        (ClientError::Busy { waiting: 9 }, "-BUSY 9 requests are waiting: try again later"),
        (ClientError::Stopping, "-SHUTDOWN the node is stopping"),
        (
            ClientError::ReadOnly { detail: "disk full".into() },
            "-MISCONF this node refuses writes: disk full",
        ),
        (ClientError::InvalidContext, "-ERR context lies in the far future"),
    ];
    for (error, want) in cases {
        fake.broken = Some(error);
        for line in
            ["SET a 1", "MGET a b", "KEYS *", "FLUSHALL", "RENAME a b", "SCAN 0", "RANDOMKEY", "DEL a b"]
        {
            assert_eq!(fake.run(line), want, "{line}");
        }
    }
}
