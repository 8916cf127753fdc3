//! What one client can make a node hold, and what it is told when that is too much.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{eventually, Cluster, PATIENCE};
use oort::client::Client;
use oort::resp::Value;
use rustix::process::{prlimit, Resource, Rlimit};

const MIB: usize = 1 << 20;

fn connect(cluster: &Cluster) -> TcpStream {
    let stream = TcpStream::connect(&cluster.nodes[0].redis).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn memory_mib(client: &mut Client) -> usize {
    let Value::Bulk(info) = client.call(&["INFO", "memory"]).unwrap() else { panic!("no INFO") };
    let info = String::from_utf8(info.to_vec()).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory_rss:")).unwrap();
    line.parse::<usize>().unwrap() / MIB
}

#[test]
fn a_client_that_sends_too_large_a_value_reads_why() {
    let cluster = Cluster::start(1, &[]);
    let mut stream = connect(&cluster);
    let value = vec![b'x'; 40 * MIB];
    stream.write_all(&command(&[b"SET", b"key", &value])).expect("the node takes it all, to answer");
    assert_eq!(read_to_end(&mut stream), b"-ERR Protocol error: invalid bulk length\r\n");
}

#[test]
fn after_a_protocol_error_the_connection_is_closed_in_both_directions() {
    let cluster = Cluster::start(1, &[]);
    let errors: [(&[u8], &[u8]); 4] = [
        (b"*99999999999\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n$99999999999\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"*1\r\n+x\r\n", b"-ERR Protocol error: expected '$', got '+'\r\n"),
        (b"POST / HTTP/1.1\r\n", b"-ERR this port speaks the Redis protocol, not HTTP\r\n"),
    ];
    for (bytes, want) in errors {
        let mut stream = connect(&cluster);
        stream.write_all(bytes).unwrap();
        assert_eq!(read_to_end(&mut stream), want, "the error is read whole, then the end");
        eventually("what is sent after the end is refused", || stream.write_all(b"PING\r\n").err());
    }
    // Errors of the connections before, and of one that reads slowly, come after the replies before them.
    let mut stream = connect(&cluster);
    stream.write_all(&[command(&[b"PING"]).repeat(3), b"*x\r\n".to_vec()].concat()).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(read_to_end(&mut stream).starts_with(b"+PONG\r\n+PONG\r\n+PONG\r\n-ERR Protocol error"));
}

/// Sends `bytes` and reads as many as `want` has; false if they do not come in half a second.
fn is_answered(stream: &mut TcpStream, bytes: &[u8], want: &[u8]) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut reply = vec![0; want.len()];
    stream.write_all(bytes).is_ok() && stream.read_exact(&mut reply).is_ok() && reply == want
}

#[test]
fn connections_beyond_the_descriptors_wait_until_others_close() {
    let cluster = Cluster::start(1, &[]);
    let pid = cluster.nodes[0].pid();
    let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count() as u64;
    let limit = Some(open + 3);
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let ping = command(&[b"PING"]);
    let mut served: Vec<TcpStream> = Vec::new();
    let mut waiting: Vec<TcpStream> = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&cluster);
        match is_answered(&mut stream, &ping, b"+PONG\r\n") {
            true => served.push(stream),
            false => waiting.push(stream),
        }
    }
    assert!(!served.is_empty() && !waiting.is_empty(), "{} served, {} wait", served.len(), waiting.len());
    let set = command(&[b"SET", b"key", &vec![b'v'; 500_000]]);
    served[0].set_read_timeout(Some(PATIENCE)).unwrap();
    // Fewer than fill a segment of the log: the next one would need a descriptor that this test has taken away.
    for _ in 0..20 {
        let mut reply = [0; 5];
        served[0].write_all(&set).unwrap();
        served[0].read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"+OK\r\n", "the store goes on");
    }
    for mut stream in waiting {
        served.pop();
        let mut reply = [0; 7];
        eventually("it is its turn", || stream.read_exact(&mut reply).ok());
        assert_eq!(&reply, b"+PONG\r\n");
    }
    let log = cluster.nodes[0].log();
    assert_eq!(log.matches("connections cannot be accepted now").count(), 1, "{log}");
    assert!(log.contains("EMFILE") && !log.contains("damaged") && !log.contains("corrupt"), "{log}");
}

#[test]
fn a_client_that_only_stops_sending_gets_every_reply() {
    let cluster = Cluster::start(1, &[]);
    let mut stream = connect(&cluster);
    let commands = command(&[b"INCR", b"counter"]).repeat(5000);
    stream.write_all(&commands).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let expected: String = (1..=5000).map(|i| format!(":{i}\r\n")).collect();
    assert_eq!(String::from_utf8(read_to_end(&mut stream)).unwrap(), expected);
}

#[test]
fn replies_that_nobody_reads_take_bounded_memory_and_are_all_there() {
    let cluster = Cluster::start(3, &[]);
    let mut client = cluster.nodes[0].client();
    let value = vec![b'v'; MIB];
    // On a busy machine a megabyte may take longer than a request has.
    eventually("the value is stored", || {
        (client.call(&["SET".as_bytes(), b"large", &value]).unwrap() == Value::OK).then_some(())
    });
    let before = memory_mib(&mut client);
    let mut stream = connect(&cluster);
    // Small replies first, so that the node expects more of them.
    stream.write_all(&command(&[b"GET", b"none"]).repeat(2000)).unwrap();
    stream.write_all(&command(&[b"GET", b"large"]).repeat(2000)).unwrap();
    stream.write_all(&command(&[b"PING"])).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut most = before;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(50));
        most = most.max(memory_mib(&mut client));
    }
    assert!(most < before + 120, "{before} MiB before, {most} MiB with unread replies");
    let mut left = 2000 * (MIB + b"$1048576\r\n\r\n".len()) + 2000 * b"$-1\r\n".len() + b"+PONG\r\n".len();
    let mut buffer = vec![0; MIB];
    while left > 0 {
        let bytes = stream.read(&mut buffer).unwrap();
        assert!(bytes > 0 && bytes <= left, "{left} bytes of replies are missing");
        left -= bytes;
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0);
}

#[test]
fn when_clients_take_too_much_memory_the_greediest_is_cut_off() {
    let cluster = Cluster::start(1, &["--client-memory-bytes", "16777216"]);
    let mut client = cluster.nodes[0].client();
    let half =
        |size: usize| [b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$9000000\r\n".to_vec(), vec![b'x'; size]].concat();
    let mut modest = connect(&cluster);
    modest.write_all(&half(7 * MIB)).unwrap();
    let mut greedy = connect(&cluster);
    // The node may cut it off while it still sends.
    let _ = greedy.write_all(&half(8 * MIB));
    let mut more = connect(&cluster);
    more.write_all(&half(3 * MIB)).unwrap();
    let mut byte = [0];
    assert!(matches!(greedy.read(&mut byte), Ok(0) | Err(_)), "cut off");
    modest.write_all(&vec![b'x'; 9_000_000 - 7 * MIB]).unwrap();
    modest.write_all(b"\r\n").unwrap();
    let mut reply = [0; 5];
    modest.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"-ERR ", "the value exceeds the bucket's maximum, but the client is served");
    let evicted = || {
        let Value::Bulk(info) = client.call(&["INFO", "stats"]).unwrap() else { panic!("no INFO") };
        let info = String::from_utf8(info.to_vec()).unwrap();
        info.contains("evicted_clients:1\r\n").then_some(())
    };
    eventually("INFO counts it", evicted);
}

#[test]
fn the_rounds_of_a_command_follow_each_other_at_once() {
    let cluster = Cluster::start(1, &[]);
    let mut stream = connect(&cluster);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It walks through sixteen buckets, one round each.
    let quickest = (0..5).map(|_| {
        let start = Instant::now();
        stream.write_all(&command(&[b"FLUSHALL"])).unwrap();
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"+OK\r\n");
        start.elapsed()
    });
    let quickest = quickest.min().expect("there are five");
    assert!(quickest < Duration::from_millis(80), "{quickest:?}");
}
