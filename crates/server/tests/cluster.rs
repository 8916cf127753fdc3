//! Real processes on loopback: killed with `kill -9`, restarted, stopped, and sent garbage.
//!
//! What needs many histories is for the simulator; here is what only processes, sockets and disks can show. Every test
//! has a cluster of its own, so they run side by side.

mod active_objects;
mod identity;
mod linear;
mod redis_limits;
mod ring_changes;
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oort::client::Client;
use oort::resp::Value;
use rustix::process::{kill_process, test_kill_process, Pid, Signal};

use support::{error, eventually, free_ports, http, http_get, oort, run, send_raw, siblings};
use support::{Cluster, Node, Process, TempDir, PATIENCE};

/// Keys and values that were acknowledged.
type Acknowledged = BTreeMap<String, String>;

/// Time between two writes of one writer. Without it, reading everything back would take most of a test's time.
const WRITER_PAUSE: Duration = Duration::from_millis(2);

/// What the writers have done so far, and whether they shall go on.
#[derive(Default)]
struct Writing {
    acknowledged: AtomicUsize,
    stop: AtomicBool,
}

impl Writing {
    /// Waits until `count` more writes were acknowledged.
    fn wait_for(&self, count: usize) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + count;
        eventually("writes are acknowledged", || {
            (self.acknowledged.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }
}

/// Writes keys of its own over connections to `addresses`, turning to the next when one fails. Reads one of the
/// earlier ones back each time: it may be refused, but never missing.
fn write(writing: &Writing, writer: usize, addresses: &[String]) -> Acknowledged {
    let (mut acknowledged, mut turn) = (Acknowledged::new(), writer);
    let mut client: Option<Client> = None;
    for i in 0.. {
        if writing.stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, value) = (format!("writer{writer}:{i}"), format!("value {i} of {writer}"));
        let connection = match &mut client {
            Some(connection) => connection,
            None => {
                turn += 1;
                match Client::connect(&addresses[turn % addresses.len()], Duration::from_secs(3)) {
                    Ok(connection) => client.insert(connection),
                    Err(_) => continue,
                }
            }
        };
        match connection.call(&["SET", &key, &value]) {
            Ok(Value::Simple(_)) => {
                acknowledged.insert(key, value);
                writing.acknowledged.fetch_add(1, Ordering::Relaxed);
                let (key, value) = acknowledged.iter().nth(i * 7919 % acknowledged.len()).unwrap();
                match connection.call(&["GET", key]) {
                    Ok(Value::Error(_)) | Err(_) => client = None,
                    Ok(found) => assert_eq!(found, Value::text(value), "{key} in the midst of it"),
                }
            }
            // Refused, or the outcome is unknown: no promise was made.
            Ok(_) => {}
            Err(_) => client = None,
        }
        std::thread::sleep(WRITER_PAUSE);
    }
    acknowledged
}

/// Runs `story` while four writers write to all nodes; returns what was acknowledged.
fn with_writers(cluster: &mut Cluster, story: impl FnOnce(&mut Cluster, &Writing)) -> Acknowledged {
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.redis.clone()).collect();
    let writing = Writing::default();
    std::thread::scope(|scope| {
        let (writing, addresses) = (&writing, &addresses);
        let writers: Vec<_> = (0..4).map(|i| scope.spawn(move || write(writing, i, addresses))).collect();
        let stopper = StopOnDrop(&writing.stop);
        story(cluster, writing);
        drop(stopper);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Lets the writers end also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Every acknowledged write is there through `node`.
fn assert_readable(node: &Node, acknowledged: &Acknowledged) {
    let mut client = node.client();
    let entries: Vec<_> = acknowledged.iter().collect();
    for chunk in entries.chunks(100) {
        let command: Vec<&str> =
            std::iter::once("MGET").chain(chunk.iter().map(|(key, _)| key.as_str())).collect();
        let Value::Array(values) = client.call(&command).unwrap() else { panic!("MGET answers a list") };
        for ((key, value), found) in chunk.iter().zip(values) {
            assert_eq!(found, Value::text(value), "{key} through {}", node.redis);
        }
    }
}

/// The keys whose value `node` alone does not hold.
fn missing_from(node: &Node, acknowledged: &Acknowledged) -> Vec<String> {
    let mut client = node.client();
    let holds = |client: &mut Client, key: &str, value: &str| {
        let answer = client.call(&["VGET", key, "R", "1"]).unwrap();
        !answer.is_error() && siblings(answer).iter().any(|found| found == value)
    };
    acknowledged
        .iter()
        .filter(|(key, value)| !holds(&mut client, key, value))
        .map(|(key, _)| key.clone())
        .collect()
}

#[test]
fn a_killed_node_costs_no_acknowledged_write_and_catches_up() {
    let mut cluster = Cluster::start(3, &[]);
    let acknowledged = with_writers(&mut cluster, |cluster, writing| {
        writing.wait_for(300);
        cluster.nodes[1].kill();
        writing.wait_for(500);
        cluster.nodes[1].start();
        cluster.wait_until_whole();
        writing.wait_for(200);
    });
    for node in &cluster.nodes {
        assert_readable(node, &acknowledged);
    }
    // No read may have to repair anything once the hints are delivered and the trees compared.
    eventually("hints are delivered", || {
        cluster.nodes.iter().all(|node| node.status()["hints_pending"] == 0).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    cluster.nodes[0].kill();
    cluster.nodes[2].kill();
    eventually("the restarted node knows that it is alone", || {
        let answer = cluster.nodes[1].call(&["VGET", "some key"]);
        answer.is_error().then_some(())
    });
    assert_eq!(missing_from(&cluster.nodes[1], &acknowledged), Vec::<String>::new());
}

#[test]
fn with_one_of_three_nodes_a_quorum_of_two_is_refused_and_of_one_accepted() {
    let mut cluster = Cluster::start(3, &[]);
    assert_eq!(cluster.nodes[0].call(&["SET", "before", "1"]), Value::OK);
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    let node = &cluster.nodes[2];

    let refused = eventually("W=2 is refused", || {
        let start = Instant::now();
        let answer = node.call(&["SET", "key", "value"]);
        (answer.is_error() && start.elapsed() < Duration::from_millis(500)).then(|| error(answer))
    });
    assert!(refused.contains("quorum unavailable: 1 of 2 replicas"), "{refused}");
    let refused = error(node.call(&["GET", "before"]));
    assert!(refused.contains("quorum unavailable: 1 of 2 replicas answered"), "{refused}");

    assert_eq!(siblings(node.call(&["VPUT", "key1", "value1", "W", "1"])), ["value1"]);
    assert_eq!(siblings(node.call(&["VGET", "key1", "R", "1"])), ["value1"]);
    assert_eq!(siblings(node.call(&["VGET", "before", "R", "1"])), ["1"]);
    let health = eventually("load balancers are told", || {
        let (status, health) = http_get(&node.http, "/health");
        (status == 503).then_some(health)
    });
    assert!(health.contains("1 of the 3 nodes of the ring can be reached: gets and puts need 2"), "{health}");

    assert_eq!(node.call(&["BUCKET", "SET", "7", "r", "1", "w", "1"]), Value::OK);
    let mut client = node.client();
    for (command, answer) in [
        (vec!["SELECT", "7"], Value::OK),
        (vec!["SET", "key2", "value2"], Value::OK),
        (vec!["GET", "key2"], Value::text("value2")),
    ] {
        assert_eq!(client.call(&command).unwrap(), answer, "{command:?}");
    }

    let (_, metrics) = http_get(&node.http, "/metrics");
    for sample in [
        "oort_operation_duration_seconds_count{kind=\"get\"} ",
        "oort_operation_duration_seconds_count{kind=\"put\"} ",
        "oort_redis_command_duration_seconds_count{family=\"string\"} ",
        "oort_redis_command_duration_seconds_count{family=\"versions\"} ",
        "oort_sync_duration_seconds_count ",
        "oort_peer_round_trip_seconds_count ",
    ] {
        let count = metrics.lines().find_map(|line| line.strip_prefix(sample)).expect(sample);
        assert!(count.parse::<u64>().is_ok_and(|count| count > 0), "{sample}{count}");
    }

    // The others come back and learn what they missed, the bucket's properties included.
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.wait_until_whole();
    for node in &cluster.nodes {
        eventually("the node can serve", || (http_get(&node.http, "/health").0 == 200).then_some(()));
        eventually("the write reaches all", || {
            (siblings(node.call(&["VGET", "key1", "R", "1"])) == ["value1"]).then_some(())
        });
        assert_eq!(node.call(&["GET", "key1"]), Value::text("value1"));
    }
}

#[test]
fn all_nodes_killed_at_once_lose_nothing_acknowledged() {
    let mut cluster = Cluster::start(3, &[]);
    let acknowledged = with_writers(&mut cluster, |cluster, writing| {
        writing.wait_for(500);
        cluster.nodes.iter_mut().for_each(Node::kill);
    });
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.wait_until_whole();
    for node in &cluster.nodes {
        assert_readable(node, &acknowledged);
    }
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_tells_the_peers() {
    let mut cluster = Cluster::start(3, &[]);
    let id = cluster.nodes[0].status()["node"]["id"].clone();
    let acknowledged = with_writers(&mut cluster, |cluster, writing| {
        writing.wait_for(300);
        let start = Instant::now();
        let status = cluster.nodes[0].terminate();
        assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
        writing.wait_for(100);
    });
    for node in &cluster.nodes[1..] {
        eventually("peers know that it stopped on purpose", || {
            let status = node.status();
            let member =
                status["members"].as_array().unwrap().iter().find(|member| member["id"] == id).unwrap();
            (member["stopped"] == true && member["health"] == "down").then_some(())
        });
        assert_readable(node, &acknowledged);
    }
    // It comes back as the same member.
    cluster.nodes[0].start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].status()["node"]["id"], id);
    assert_readable(&cluster.nodes[0], &acknowledged);
}

#[test]
fn garbage_on_any_port_is_refused_and_harms_nobody() {
    let mut cluster = Cluster::start(1, &[]);
    let Node { redis, http: web, peer, .. } = &cluster.nodes[0];
    let cases: [(&str, &[u8], &str); 9] = [
        (redis, b"*1\r\n$99999999999\r\n", "-ERR Protocol error: invalid bulk length"),
        (redis, b"*99999999999\r\n", "-ERR Protocol error: invalid multibulk length"),
        (redis, b"*2\r\n$4\r\nECHO\r\n+oops\r\n", "-ERR Protocol error: expected '$', got '+'"),
        (redis, b"GARBAGE in\r\n", "-ERR unknown command 'GARBAGE'"),
        (redis, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (web, b"\x00\x01\x02 garbage\r\n\r\n", "HTTP/1.1 400"),
        (web, b"GET /buckets/default/keys/k HTTP/9.9\r\n\r\n", "HTTP/1.1 400"),
        (peer, b"OORT\xff\xff rest", "version"),
        (peer, b"GET / HTTP/1.1\r\n\r\n", ""),
    ];
    for (address, garbage, wanted) in cases {
        let answer = String::from_utf8_lossy(&send_raw(address, garbage)).into_owned();
        assert!(answer.contains(wanted), "{}: {answer:?}", garbage.escape_ascii());
    }
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for address in [redis, web, peer] {
        send_raw(address, &noise);
        drop(TcpStream::connect(address)); // and one that says nothing
    }
    let (status, _) = http(web, "DELETE /buckets HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!((400..500).contains(&status), "{status}");
    assert!(cluster.nodes[0].is_running());
    assert_eq!(cluster.nodes[0].call(&["SET", "still", "here"]), Value::OK);
    assert_eq!(http_get(&cluster.nodes[0].http, "/buckets/default/keys/still"), (200, "here".into()));
}

#[test]
fn a_node_that_nobody_expected_joins_through_any_seed() {
    let mut cluster = Cluster::start(2, &[]);
    cluster.nodes[0].call(&["SET", "before", "it came"]);
    let third = cluster.add(1, &[]);
    let fourth = cluster.add(third, &[]);
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[fourth].call(&["GET", "before"]), Value::text("it came"));
    // It knows the others by itself: the seed may die.
    cluster.nodes[third].kill();
    assert_eq!(cluster.nodes[fourth].call(&["SET", "after", "it went"]), Value::OK);
    assert_eq!(cluster.nodes[1].call(&["GET", "after"]), Value::text("it went"));
}

#[test]
fn a_node_of_another_cluster_is_refused_by_name() {
    let cluster = Cluster::start(1, &["--cluster", "ours"]);
    let dir = TempDir::new();
    let base = free_ports(3);
    let [redis, http, peer] = [0, 1, 2].map(|i| format!("127.0.0.1:{}", base + i));
    let mut command = oort();
    command.args(["start", "--cluster", "theirs", "--cluster-size", "2", "--redis", &redis, "--http", &http]);
    command.args(["--peer", &peer, "--join", &cluster.nodes[0].peer, "--dir"]).arg(dir.path().join("data"));
    let mut stranger = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let log = BufReader::new(stranger.child().stderr.take().unwrap());
    let wanted = "wrong cluster name: this node belongs to 'ours', not 'theirs'";
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("wrong cluster name")).unwrap();
    assert!(line.contains(wanted), "{line}");
    assert_eq!(cluster.nodes[0].status()["members"].as_array().unwrap().len(), 1);
}

#[test]
fn a_wrong_configuration_ends_with_code_2_and_says_where() {
    let dir = TempDir::new();
    let file = dir.path().join("oort.toml");
    let path = file.to_str().unwrap();
    let cases = [
        ("name = \"a\"\nsuspekt_ms = 1", ":2: unknown key 'suspekt_ms': did you mean 'suspect_ms'?"),
        ("bucket_r = 4", ":1: bucket_r is 4: it must be 1 to n, which is 3"),
        ("bucket_w = 4", ":1: bucket_w is 4: it must be 1 to n, which is 3"),
        (
            "redis = \"nowhere\"",
            ":1: redis: 'nowhere' is no address: write host:port, such as 127.0.0.1:6379",
        ),
        ("cache_bytes = \"7 bananas\"", ":1: cache_bytes: '7 bananas' is no size: write bytes or a unit"),
        ("partitions = 1000", ":1: partitions: 1000 is no power of two: 512 and 1024 are near"),
        ("name = ", ":1: no valid TOML"),
    ];
    for (text, wanted) in cases {
        std::fs::write(&file, text).unwrap();
        let outcome = run(&["start", "--config", path]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{text}: {}", outcome.stderr);
        assert!(outcome.stderr.starts_with(&format!("oort: {path}{wanted}")), "{text}: {}", outcome.stderr);
    }
    let outcome = run(&["start", "--config", "/no/such/file"]);
    assert_eq!(outcome.code, Some(2));
    assert_eq!(outcome.stderr, "oort: /no/such/file: no such file or directory\n");
    let outcome = run(&["start", "--redis", "127.0.0.1:99999"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.starts_with("oort: --redis: redis: port 99999"), "{}", outcome.stderr);
    assert_eq!(run(&["start", "--no-such-flag"]).code, Some(2));
    let output = oort().env("OORT_REDIS", "nowhere").arg("start").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.starts_with(b"oort: OORT_REDIS: redis: 'nowhere' is no address"));
    assert!(run(&["start", "--print-example-config"]).stdout.contains("#partitions = 1024"));
}

#[test]
fn the_command_line_stores_reads_and_reports() {
    let cluster = Cluster::start(1, &[]);
    let address = cluster.nodes[0].redis.as_str();
    let on_node = |arguments: &[&str]| run(&[arguments, &["--node", address]].concat());
    let prints = |arguments: &[&str], wanted: &str| {
        let outcome = on_node(arguments);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(0), wanted),
            "{arguments:?}: {}",
            outcome.stderr
        );
    };
    let fails = |arguments: &[&str], wanted: &str| {
        let outcome = on_node(arguments);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(1), ""),
            "{arguments:?}: {}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(wanted), "{arguments:?}: {}", outcome.stderr);
    };
    prints(&["put", "greeting", "hello"], "");
    prints(&["get", "greeting"], "hello");
    prints(&["put", "greeting", "-5", "--w", "1"], "");
    prints(&["get", "greeting", "--r", "1"], "-5");
    fails(&["get", "nothing"], "oort: nothing is stored under 'nothing'");
    fails(&["put", "greeting", "x", "--w", "9"], "oort: w is 9: it must be 1 to the bucket's n, which is 3");
    prints(&["del", "greeting"], "");
    fails(&["del", "greeting"], "oort: nothing is stored under 'greeting'");

    // Two writers that saw the same, in a bucket with a name.
    prints(&["put", "cart", "a", "--bucket", "carts"], "");
    fails(&["get", "cart"], "nothing is stored");
    let context = on_node(&["get", "cart", "--bucket", "carts", "--all"]).stdout;
    let context = context.lines().next().unwrap().strip_prefix("context ").unwrap().to_owned();
    prints(&["put", "cart", "b", "--bucket", "carts", "--context", &context], "");
    let outcome = on_node(&["put", "cart", "c", "--bucket", "carts", "--context", &context]);
    assert!(outcome.stderr.contains("there are 2 siblings now"), "{}", outcome.stderr);
    let all = on_node(&["get", "cart", "--bucket", "carts", "--all"]).stdout;
    assert!(all.ends_with("sibling 1 of 2, 1 bytes\nc\nsibling 2 of 2, 1 bytes\nb\n"), "{all}");

    prints(&["bucket", "set", "carts", "n=3", "w=1", "default_ttl_ms=60000"], "");
    let shown = on_node(&["bucket", "get", "carts"]).stdout;
    assert!(shown.starts_with("n=3\nr=2\nw=1\nconflict=siblings\ndefault_ttl_ms=60000\n"), "{shown}");
    prints(&["bucket", "list"], "carts\n");
    fails(&["bucket", "set", "carts", "w=4"], "oort: w is 4: it must be 1 to n, which is 3");

    let table = on_node(&["cluster", "status"]).stdout;
    assert!(table.contains(" partitions on 1 node,") && table.contains("node1*"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&on_node(&["cluster", "status", "--json"]).stdout).unwrap();
    assert_eq!(json["members"][0]["health"], "up");

    let nobody = format!("127.0.0.1:{}", free_ports(1));
    let outcome = run(&["get", "greeting", "--node", &nobody]);
    assert_eq!(outcome.code, Some(3));
    let wanted =
        format!("oort: cannot connect to {nobody}: connection refused (is a node running? try 'oort dev')\n");
    assert_eq!(outcome.stderr, wanted);
}

/// A running `oort dev`.
struct Dev {
    process: Process,
    output: BufReader<std::process::ChildStdout>,
    /// What it printed up to and including `ready`.
    printed: String,
    cluster: serde_json::Value,
}

impl Dev {
    fn start(dir: &std::path::Path, base: u16, arguments: &[&str]) -> Dev {
        let ports = [base, base + 10, base + 20].map(|port| port.to_string());
        let mut command = oort();
        command.args(["dev", "--dir"]).arg(dir).args(["--redis-port", &ports[0], "--http-port", &ports[1]]);
        command.args(["--peer-port", &ports[2]]).args(arguments).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let mut output = BufReader::new(process.child().stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.ends_with("ready\n") {
            assert_ne!(output.read_line(&mut printed).unwrap(), 0, "it ended: {printed}");
        }
        let text = std::fs::read(dir.join("cluster.json")).unwrap();
        Dev { process, output, printed, cluster: serde_json::from_slice(&text).unwrap() }
    }

    fn node(&self, i: usize, field: &str) -> String {
        self.cluster["nodes"][i][field].as_str().unwrap().to_owned()
    }

    fn pid(&self, i: usize) -> Pid {
        Pid::from_raw(self.cluster["nodes"][i]["pid"].as_i64().unwrap() as i32).unwrap()
    }

    fn call(&self, i: usize, command: &[&str]) -> Value {
        Client::connect(&self.node(i, "redis"), PATIENCE).unwrap().call(command).unwrap()
    }

    /// Ctrl-C; returns what was printed since `ready`.
    fn stop(&mut self) -> String {
        self.process.signal(Signal::INT);
        assert_eq!(self.process.wait().code(), Some(0));
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        rest
    }

    fn assert_all_gone(&self) {
        for i in 0..3 {
            eventually("the node has ended", || test_kill_process(self.pid(i)).is_err().then_some(()));
        }
    }
}

#[test]
fn dev_starts_a_cluster_keeps_its_data_and_stops_it() {
    let dir = TempDir::new();
    let base = free_ports(30);
    let taken = TcpListener::bind(("127.0.0.1", base + 11)).unwrap();
    let mut dev = Dev::start(dir.path(), base, &[]);
    let notice = format!("port {} is taken: node2 uses {} for http", base + 11, base + 13);
    assert!(dev.printed.contains(&notice), "{}", dev.printed);
    drop(taken);
    for (i, name) in ["node1", "node2", "node3"].into_iter().enumerate() {
        assert_eq!(dev.node(i, "name"), name);
        assert_eq!(dev.node(i, "redis"), format!("127.0.0.1:{}", base + i as u16));
        assert_eq!(dev.node(i, "peer"), format!("127.0.0.1:{}", base + 20 + i as u16));
        assert_eq!(http_get(&dev.node(i, "http"), "/ping"), (200, "OK".into()));
    }
    assert_eq!(dev.call(0, &["SET", "greeting", "hello"]), Value::OK);
    assert_eq!(dev.call(2, &["GET", "greeting"]), Value::text("hello"));
    assert_eq!(http_get(&dev.node(1, "http"), "/buckets/default/keys/greeting"), (200, "hello".into()));

    let path = dir.path().to_str().unwrap();
    let second = run(&["dev", "--dir", path]);
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("is in use by another 'oort dev'"), "{}", second.stderr);

    // A node that is killed is told of, and comes back with the command that was printed.
    kill_process(dev.pid(1), Signal::KILL).unwrap();
    let mut line = String::new();
    while !line.contains("was killed by signal 9") {
        line.clear();
        dev.output.read_line(&mut line).unwrap();
    }
    assert_eq!(dev.call(0, &["SET", "while", "down"]), Value::OK);
    let (_, words) = line.trim_end().split_once(" start ").expect("the command is printed");
    let mut restarted = Process::spawn(oort().arg("start").args(words.split(' ')).stderr(Stdio::null()));
    while !line.contains("node2 is back") {
        line.clear();
        dev.output.read_line(&mut line).unwrap();
    }
    let rest = dev.stop();
    assert!(rest.contains("was started by hand and is left running"), "{rest}");
    restarted.signal(Signal::TERM);
    assert_eq!(restarted.wait().code(), Some(0));
    dev.assert_all_gone();

    let other = run(&["dev", "--dir", path, "--nodes", "5"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("holds a cluster of 3 nodes, not 5"), "{}", other.stderr);

    let mut dev = Dev::start(dir.path(), base, &[]);
    assert_eq!(
        dev.call(1, &["MGET", "greeting", "while"]),
        Value::Array(["hello", "down"].map(Value::text).into())
    );
    dev.stop();
    dev.assert_all_gone();
    assert!(!dir.path().join("cluster.json").exists());
}

#[test]
fn no_node_outlives_dev_when_that_is_killed() {
    let dir = TempDir::new();
    let base = free_ports(30);
    let mut dev = Dev::start(dir.path(), base, &[]);
    assert_eq!(dev.call(0, &["SET", "greeting", "hello"]), Value::OK);
    dev.process.signal(Signal::KILL);
    dev.process.wait();
    dev.assert_all_gone();
    let mut dev = Dev::start(dir.path(), base, &[]);
    assert_eq!(dev.call(2, &["GET", "greeting"]), Value::text("hello"));
    dev.stop();
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let dir = TempDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let outcome = run(&["start", "--redis", &address, "--dir", data.to_str().unwrap()]);
    assert_eq!(outcome.code, Some(1));
    let wanted = format!("oort: cannot listen on {address} for Redis clients: address already in use");
    assert!(outcome.stderr.contains(&wanted), "{}", outcome.stderr);

    // A server that is no Oort node.
    let fake = std::thread::spawn(move || {
        let (mut stream, _) = taken.accept().unwrap();
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(b"SSH-2.0-something\r\n");
    });
    let outcome = run(&["get", "key", "--node", &address]);
    fake.join().unwrap();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("does not speak the Redis protocol"), "{}", outcome.stderr);
}
