//! What clients get wrong, on purpose or not: a precise answer, and a node that keeps running.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oort::http::Limits;
use oort_core::config::NodeConfig;

use crate::client::Client;
use crate::node::TestNode;

/// Method, path, headers, the status wanted, and what its text must say.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16, &'a str);

fn is_alive(node: &TestNode) {
    assert_eq!(Client::connect(node.address()).get("/ping").status, 200);
}

#[test]
fn wrong_requests_get_precise_answers() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    let long_key = format!("/buckets/b/keys/{}", "k".repeat(4097));
    let long_bucket = format!("/buckets/{}/keys/k", "b".repeat(256));
    let cases: [Case; 18] = [
        ("GET", "/nothing/here", &[], 404, "no such path: /nothing/here"),
        ("GET", "/buckets/b/keys/a/b", &[], 404, "%2F"),
        ("GET", "/buckets/b/keys/%zz", &[], 400, "bad percent-encoding at byte 0"),
        ("GET", "/buckets/b/keys/k?vtag=%f", &[], 400, "bad percent-encoding"),
        ("GET", "/buckets/b/keys/k?vtag=%ff", &[], 400, "vtag: not UTF-8"),
        ("GET", &long_key, &[], 400, "key of 4097 bytes"),
        ("GET", &long_bucket, &[], 400, "bucket name of 256 bytes"),
        ("GET", "/buckets//keys/k", &[], 400, "bucket name of 0 bytes"),
        (
            "PUT",
            "/buckets/b/keys/k",
            &[("X-Riak-Vclock", "a85hYGBgzGDKBVIcypz/fgaUHjmTwZTImMfKcN3h1Um+LAA=")],
            400,
            { "X-Riak-Vclock: invalid context" },
        ),
        ("DELETE", "/buckets/b/keys/k", &[("X-Riak-Vclock", "AAAA")], 400, "X-Riak-Vclock: invalid context"),
        ("PUT", "/buckets/b/keys/k", &[("x-riak-index-age_int", "7")], 400, "secondary indexes"),
        ("PUT", "/buckets/b/keys/k", &[("If-Match", "\"a")], 400, "malformed if-match"),
        ("PATCH", "/buckets/b/keys/k", &[], 405, "PATCH is not served here"),
        ("DELETE", "/stats", &[], 405, "use GET, HEAD"),
        ("OPTIONS", "/buckets/b/props", &[], 405, "GET, HEAD, PUT, DELETE"),
        ("BREW", "/ping", &[], 405, "BREW"),
        ("GET", "/buckets/b/keys?keys=maybe", &[], 400, "keys is 'maybe'"),
        ("GET", "/buckets", &[], 400, "buckets=true"),
    ];
    for (method, path, headers, status, says) in cases {
        let answer = client.request(method, path, headers, b"");
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.text().contains(says), "{method} {path}: {}", answer.text());
        if status == 405 {
            assert!(answer.text().contains(answer.header("allow").unwrap()));
        }
    }
}

#[test]
fn what_is_not_http_is_refused() {
    let node = TestNode::start();
    let cases: [(&[u8], Option<u16>); 9] = [
        (b"\x00\xff\x13garbage\r\n\r\n", Some(400)),
        (b"GET\r\n\r\n", Some(400)),
        (b"GET / HTTP/9.9\r\n\r\n", Some(400)),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", Some(400)),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", Some(400)),
        (b"PUT /buckets/b/keys/k HTTP/1.1\r\nContent-Length: -5\r\n\r\n", Some(400)),
        (b"PUT /buckets/b/keys/k HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", Some(400)),
        (b"PUT /buckets/b/keys/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Some(400)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Some(400)),
    ];
    for (bytes, status) in cases {
        let mut client = Client::connect(node.address());
        client.send(bytes);
        let answer = client.answer(false).map(|answer| answer.status);
        assert_eq!(answer, status, "{}", bytes.escape_ascii());
        assert!(client.is_closed(), "{}", bytes.escape_ascii());
    }
    is_alive(&node);
}

#[test]
fn heads_have_a_limit() {
    let node = TestNode::start();
    let huge = "x".repeat(70 << 10);
    let many = (0..200).map(|i| format!("X-Riak-Meta-{i}: v\r\n")).collect::<String>();
    for request in [
        format!("GET /{huge} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: {huge}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: {}", huge.repeat(4)),
        format!("GET / HTTP/1.1\r\n{many}\r\n"),
    ] {
        let mut client = Client::connect(node.address());
        client.send(request.as_bytes());
        let answer = client.answer(false).expect("an answer");
        // Without a text: docs/http.md says why.
        assert_eq!((answer.status, answer.body.len()), (431, 0), "{}: {answer:?}", &request[..20]);
    }
    is_alive(&node);
}

#[test]
fn bodies_have_the_limit_of_their_bucket() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    let limit = 1 << 20;
    assert_eq!(client.put("/buckets/b/keys/k", &[], &vec![7; limit]).status, 204);
    assert_eq!(client.get("/buckets/b/keys/k").body, vec![7; limit]);

    // Announced too large: refused before a byte is read.
    client.send(b"PUT /buckets/b/keys/k HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n");
    let answer = client.answer(false).unwrap();
    assert_eq!((answer.status, answer.text()), (413, "body exceeds the limit of 1048576 bytes\n"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.is_closed());

    // A client that sends all of it before it reads learns why, too.
    let mut client = Client::connect(node.address());
    let large = client.put("/buckets/b/keys/k", &[], &vec![7; 5 << 20]);
    assert_eq!((large.status, large.header("connection")), (413, Some("close")));

    // In chunks, without an announcement: refused when it is too large.
    let mut client = Client::connect(node.address());
    client.send(b"PUT /buckets/b/keys/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n".to_vec(), vec![1; 0x10000], b"\r\n".to_vec()].concat();
    for _ in 0..17 {
        client.send(&chunk);
    }
    assert_eq!(client.answer(false).unwrap().status, 413);

    let mut client = Client::connect(node.address());
    client.send(b"PUT /buckets/b/keys/c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(client.answer(false).unwrap().status, 204);
    assert_eq!(client.get("/buckets/b/keys/c").text(), "abcde");
    is_alive(&node);
}

#[test]
fn ambiguous_requests_are_refused() {
    let node = TestNode::start();
    let put = "PUT /buckets/b/keys/k HTTP/1.1\r\n";
    let cases = [
        ("GET /ping HTTP/1.1\r\n\r\n".to_string(), 400, "host is missing"),
        ("GET /ping HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_string(), 400, "host is given twice"),
        ("GET /ping HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".to_string(), 400, "host is given twice"),
        ("GET /ping HTTP/1.1\r\nHost: a/b\r\n\r\n".to_string(), 400, "host is 'a/b'"),
        (
            format!("{put}Host: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
            400,
            "content-length is given 2 times",
        ),
        (
            format!("{put}Host: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
            "contradict",
        ),
        (
            format!("{put}Host: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
            400,
            "contradict",
        ),
        (
            format!("{put}Host: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            501,
            "transfer-encoding 'gzip'",
        ),
        (
            format!("{put}Host: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            400,
            "chunked is given twice",
        ),
        (
            format!("{put}Host: h\r\nContent-Type: a/b\r\nContent-Type: a/c\r\nContent-Length: 0\r\n\r\n"),
            400,
            "content-type is given twice",
        ),
        (
            format!("{put}Host: h\r\nX-Riak-Vclock: a\r\nX-Riak-Vclock: a\r\nContent-Length: 0\r\n\r\n"),
            400,
            "x-riak-vclock is given twice",
        ),
        (format!("{put}Host: h\r\nExpect: miracles\r\nContent-Length: 0\r\n\r\n"), 417, "100-continue"),
    ];
    for (request, status, says) in cases {
        let mut client = Client::connect(node.address());
        client.send(request.as_bytes());
        let answer = client.answer(false).expect("an answer");
        assert_eq!(answer.status, status, "{request}: {answer:?}");
        assert!(answer.text().contains(says), "{request}: {}", answer.text());
    }
    let mut client = Client::connect(node.address());
    assert_eq!(client.get("/buckets/b/keys/k").status, 404, "a refused request was stored");
    client.send(b"GET /ping HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer(false).expect("HTTP 1.0 has no Host").status, 200);
}

#[test]
fn early_answers_say_that_they_end_the_connection() {
    let node = TestNode::start();
    let head = |path: &str| format!("PUT {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n");
    for path in ["/nothing", "/stats", "/buckets/b/keys/k?w=lots", "/buckets/b/keys/%zz"] {
        let mut client = Client::connect(node.address());
        client.send(head(path).as_bytes());
        let answer = client.answer(false).expect("an answer before the body");
        assert!(answer.status >= 400, "{path}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{path}: {answer:?}");
        client.send(b"abcdeGET /ping HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(client.is_closed(), "{path}");

        // If all of it has come, the connection goes on.
        let mut client = Client::connect(node.address());
        client.send((head(path) + "abcde").as_bytes());
        let answer = client.answer(false).expect("an answer");
        assert_eq!(answer.header("connection"), None, "{path}: {answer:?}");
        assert_eq!(client.get("/ping").status, 200, "{path}");
    }
    // Nobody who expects to be asked for the body is asked for one that is refused.
    let mut client = Client::connect(node.address());
    client.send(b"PUT /nothing HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.answer(false).expect("an answer").status, 404);
    let mut client = Client::connect(node.address());
    client.send(
        b"PUT /buckets/b/keys/k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(client.continues(), "HTTP/1.1 100 Continue");
    client.send(b"abcde");
    assert_eq!(client.answer(false).expect("an answer").status, 204);
    // A body where none is needed is read past.
    client.send(b"GET /buckets/b/keys/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz");
    assert_eq!(client.answer(false).expect("an answer").text(), "abcde");
    assert_eq!(client.get("/ping").text(), "OK");
}

#[test]
fn pages_of_other_origins_write_nothing() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    let key = "/buckets/b/keys/k";
    for foreign in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://test:8098"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        for (method, path) in [
            ("POST", key),
            ("PUT", key),
            ("DELETE", key),
            ("POST", "/buckets/b/keys"),
            ("PUT", "/buckets/b/props"),
            ("POST", "/aso/b/x/call/f"),
            ("PUT", "/aso/b/x"),
            ("POST", "/buckets/b/counters/c"),
        ] {
            let answer = client.request(method, path, &[foreign, ("Content-Type", "text/plain")], b"1");
            assert_eq!(answer.status, 403, "{method} {path} {foreign:?}: {answer:?}");
            assert!(answer.text().contains("another origin"), "{}", answer.text());
        }
        assert_eq!(client.request("GET", key, &[foreign], b"").status, 404);
    }
    let own = [("Origin", "http://test"), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(client.put(key, &own, b"v").status, 204);
}

#[test]
fn clients_that_dawdle_are_cut_off() {
    let limits = Limits {
        head_timeout: Duration::from_millis(100),
        body_timeout: Duration::from_millis(100),
        write_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let node = TestNode::start_with(NodeConfig::default(), limits);
    let mut slow_head = Client::connect(node.address());
    slow_head.send(b"GET /ping HT");
    let mut idle = Client::connect(node.address());
    assert_eq!(idle.get("/ping").status, 200);
    let mut slow_body = Client::connect(node.address());
    slow_body.send(b"PUT /buckets/b/keys/k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab");
    assert_eq!(slow_body.answer(false).unwrap().status, 408);
    assert!(slow_head.answer(false).is_none_or(|answer| answer.status == 408));
    assert!(idle.is_closed());

    // Asks for more than any socket's buffer holds, and never reads it.
    let mut writer = Client::connect(node.address());
    assert_eq!(writer.put("/buckets/b/keys/large", &[], &vec![1; 1 << 20]).status, 204);
    let mut deaf = Client::connect(node.address());
    deaf.send("GET /buckets/b/keys/large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(32).as_bytes());
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let metrics = Client::connect(node.address()).get("/metrics");
        if metrics.text().contains("oort_http_connections 1\n") {
            break;
        }
        assert!(Instant::now() < deadline, "a client that does not read keeps its connection");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn connections_and_bodies_have_a_limit() {
    let limits = Limits {
        connections_max: 3,
        bodies_bytes_max: 1 << 20,
        body_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let node = TestNode::start_with(NodeConfig::default(), limits);
    let mut first = Client::connect(node.address());
    first.send(b"PUT /buckets/b/keys/k HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    let mut second = Client::connect(node.address());
    assert_eq!(second.get("/ping").status, 200);
    let mut third = Client::connect(node.address());
    assert_eq!(third.get("/ping").status, 200);
    let mut fourth = Client::connect(node.address());
    let refused = fourth.answer(false).unwrap();
    assert_eq!((refused.status, refused.text()), (503, "too many connections: try again"));
    // The room for bodies is taken until the first one gives up.
    let waited = second.put("/buckets/b/keys/k", &[], &vec![0; 100_000]);
    assert!(waited.status == 503 || waited.status == 204, "{waited:?}");
    assert_eq!(first.answer(false).unwrap().status, 408);
    assert_eq!(second.put("/buckets/b/keys/k", &[], &vec![0; 100_000]).status, 204);
}

#[test]
fn a_loop_that_cannot_keep_up_is_busy() {
    let node = TestNode::start();
    node.switches.loop_is_stuck.store(true, Ordering::Relaxed);
    let request = || oort_core::client::Request {
        operation: oort_core::client::Operation::Get {
            key: oort_core::types::ObjectKey::new(b"b", b"k").unwrap(),
            quorum: Default::default(),
        },
        timeout_ms: None,
    };
    let waiting: Vec<_> = (0..2 * oort::handle::QUEUE_MAX).map(|_| node.handle.request(request())).collect();
    let mut client = Client::connect(node.address());
    let answer = client.get("/buckets/b/keys/k");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(answer.text().contains("4096 requests are waiting"), "{}", answer.text());
    node.switches.loop_is_stuck.store(false, Ordering::Relaxed);
    drop(waiting);
    assert_eq!(client.get("/health").status, 200);
}

#[test]
fn random_bytes_do_no_harm() {
    let node = TestNode::start();
    let mut rng = oort_core::types::Rng::new(7);
    for _ in 0..300 {
        let mut bytes =
            b"PUT /buckets/b/keys/k?r=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc".to_vec();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(3) {
                0 => bytes[at] = rng.next_u64() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, rng.next_u64() as u8),
            }
        }
        Client::connect(node.address()).send(&bytes);
    }
    is_alive(&node);
}
