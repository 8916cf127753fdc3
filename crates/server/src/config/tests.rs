//! Precedence, ranges and texts of the configuration.

use super::*;

fn from_toml(text: &str) -> Result<Config, String> {
    let mut loading = Loading { config: Config::default(), origins: BTreeMap::new() };
    loading.read_toml(Path::new("oort.toml"), text).and_then(|()| loading.finish()).map_err(|e| e.to_string())
}

fn flag(key: &str, text: &str) -> Override {
    let option = options::find(key).unwrap();
    Override { option, origin: Origin::Flag(format!("--{}", option.flag())), text: text.into() }
}

#[test]
fn the_example_file_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../oort.example.toml");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == example(),
        "make it again: cargo run -- start --print-example-config > oort.example.toml"
    );
}

#[test]
fn every_default_can_be_written_into_a_file() {
    let all: String = example()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(all.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(), OPTIONS.len());
    let (written, default) = (from_toml(&all).unwrap(), from_toml("").unwrap());
    assert_eq!(format!("{written:?}"), format!("{default:?}"));
}

#[test]
fn every_option_is_documented_and_settable_as_text() {
    for option in OPTIONS {
        assert!(option.doc.len() > 60 && option.doc.ends_with('.'), "{}: {}", option.key, option.doc);
        assert!(option.doc.contains(". ") || option.doc.contains(": "), "{}: one line", option.key);
        for (suffix, word) in [("_ms", "milliseconds"), ("_us", "microseconds"), ("_bytes", "bytes")] {
            assert!(!option.key.ends_with(suffix) || option.doc.contains(word), "{}: no unit", option.key);
        }
        let mut config = Config::default();
        let written = option.toml(&config);
        let text = written.trim_matches(['"', '[', ']']);
        option.set_text(&mut config, text).unwrap();
        assert_eq!(config.node.timeout_ms, 1000);
        assert_eq!(option.toml(&config), written, "{}", option.key);
    }
}

#[test]
fn the_example_defaults_are_those_of_the_core() {
    let config = from_toml("").unwrap();
    let core = NodeConfig {
        name: config.node.name.clone(),
        addresses: config.node.addresses.clone(),
        ..NodeConfig::default()
    };
    assert_eq!(config.node, core);
    assert_eq!(config.node.addresses, config.listen);
    assert!(!config.node.name.is_empty());
}

#[test]
fn a_later_source_overrides_an_earlier_one() {
    let dir = std::env::temp_dir().join(format!("oort-config-{}", std::process::id()));
    std::fs::write(&dir, "name = \"file\"\ntimeout_ms = 0x10\ncache_bytes = \"2 MiB\"\nsync_interval_ms = 7")
        .unwrap();
    let variable = Override { origin: Origin::Variable("OORT_NAME".into()), ..flag("name", "variable") };
    let overrides = [variable, flag("name", "flag"), flag("sync", "interval"), flag("join", "a:1, b:2")];
    let config = load(Some(&dir), &overrides).unwrap();
    std::fs::remove_file(&dir).unwrap();
    assert_eq!(config.node.name, "flag");
    assert_eq!((config.node.timeout_ms, config.storage.cache_bytes), (16, 2 << 20));
    assert_eq!(config.node.sync, SyncMode::Interval { ms: 7 });
    assert_eq!(config.join, ["a:1", "b:2"]);
}

#[test]
fn errors_name_the_place_and_the_remedy() {
    let cases = [
        ("\n\nsuspekt_ms = 5", "oort.toml:3: unknown key 'suspekt_ms': did you mean 'suspect_ms'?"),
        ("Cluster-Size = 3", "oort.toml:1: unknown key 'Cluster-Size': did you mean 'cluster_size'?"),
        ("zebra = 5", "oort.toml:1: unknown key 'zebra': 'oort start --print-example-config' lists all keys"),
        ("[buckets]\nn = 1", "oort.toml:1: unknown table 'buckets': the file has no tables, just keys"),
        ("partitions = 1000", "oort.toml:1: partitions: 1000 is no power of two: 512 and 1024 are near"),
        ("partitions = 32768", "oort.toml:1: partitions: 32768 is out of range: it must be 1 to 16384"),
        ("bucket_r = 4", "oort.toml:1: bucket_r is 4: it must be 1 to n, which is 3"),
        ("bucket_n = 1\n", "oort.toml:1: bucket_r is 2: it must be 1 to n, which is 1"),
        ("bucket_n = 2\nbucket_w = 3", "oort.toml:2: bucket_w is 3: it must be 1 to n, which is 2"),
        (
            "redis = \"6379\"",
            "oort.toml:1: redis: '6379' is no address: write host:port, such as 127.0.0.1:6379",
        ),
        ("http = \"h:0\"", "oort.toml:1: http: port 0 in 'h:0': a port is 1 to 65535"),
        ("peer = \"127.0.0.1:6379\"", "oort.toml:1: peer: 127.0.0.1:6379 is the redis address already"),
        (
            "join = [\"a:1\", \"b\"]",
            "oort.toml:1: join: 'b' is no address: write host:port, such as 127.0.0.1:6379",
        ),
        ("join = \"a:1\"", "oort.toml:1: join: a list, such as [\"host:port\"], is needed here, not a text"),
        ("timeout_ms = -1", "oort.toml:1: timeout_ms: -1 is out of range: it must be 1 to 60000"),
        ("timeout_ms = \"1\"", "oort.toml:1: timeout_ms: a whole number is needed here, not a text"),
        ("timeout_ms = 99999999999999999999", "99999999999999999999 is out of range: it must be 1 to 60000"),
        (
            "cache_bytes = \"lots\"",
            "oort.toml:1: cache_bytes: 'lots' is no size: write bytes or a unit, such as 64MiB",
        ),
        ("cache_bytes = 7", "oort.toml:1: cache_bytes: 7 is out of range: it must be 1MiB to 1TiB"),
        (
            "cluster = \"a b\"",
            "oort.toml:1: cluster: 'a b' is no name: 1 to 64 letters, digits, '-', '_' or '.'",
        ),
        ("sync = \"never\"", "oort.toml:1: sync: 'never' is neither 'batch' nor 'interval'"),
        ("log = \"=,=\"", "oort.toml:1: log: '=,=' is no log filter: write 'info', or 'info,oort=debug'"),
        ("name = 1\n= 2", "oort.toml:2: no valid TOML: "),
        ("name = \"a\"\nname = \"b\"", "oort.toml:2: no valid TOML: duplicate key"),
        (
            "peer = \"0.0.0.0:7946\"\ncluster_size = 3",
            "oort.toml:1: peer: other machines cannot connect to 0.0.0.0:7946: \
             set advertise_peer to the address they use",
        ),
    ];
    for (text, wanted) in cases {
        let error = from_toml(text).unwrap_err();
        assert!(error.contains(wanted), "{text:?}\nwanted {wanted}\ngot    {error}");
    }
    let error = load(None, &[flag("bucket_w", "9")]).unwrap_err().to_string();
    assert_eq!(error, "--bucket-w: bucket_w is 9: it must be 1 to n, which is 3");
    let error = load(Some(Path::new("/no/such.toml")), &[]).unwrap_err().to_string();
    assert_eq!(error, "/no/such.toml: no such file or directory");
}

#[test]
fn a_node_that_stands_in_its_own_join_list_does_not_join_itself() {
    let text = "join = [\"a:1\", \"b:1\", \"127.0.0.1:7946\"]\nadvertise_peer = \"b:1\"";
    let config = from_toml(text).unwrap();
    assert_eq!(config.join, ["a:1"]);
    assert_eq!(config.node.addresses.peer, "b:1");
}

#[test]
fn a_node_alone_may_listen_everywhere() {
    let alone = from_toml("redis = \"0.0.0.0:6379\"").unwrap();
    assert_eq!(alone.node.addresses.redis, "0.0.0.0:6379");
    let warnings = alone.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("others are told 0.0.0.0:6379 as this node's redis address"),
        "{warnings:?}"
    );
    let told = from_toml("redis = \"0.0.0.0:6379\"\nadvertise_redis = \"10.0.0.1:6379\"").unwrap();
    assert_eq!(told.warnings(), Vec::<String>::new());
}
