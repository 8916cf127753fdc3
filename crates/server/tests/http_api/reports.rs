//! What the node says about itself, and how the server stops.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Client;
use crate::node::{strategy, TestNode};

#[test]
fn the_node_reports_on_itself() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    client.put("/buckets/b/keys/k", &[], b"v");
    client.get("/buckets/b/keys/k");

    assert_eq!(client.get("/ping").text(), "OK");
    assert!(client.get("/").text().contains("/buckets/B/keys/K"));
    let resources = client.request("GET", "/", &[("Accept", "application/json")], b"");
    assert_eq!(resources.header("content-type"), Some("application/json"));
    assert_eq!(resources.json()["riak_kv_wm_buckets"], "/buckets");
    let health = client.get("/health");
    assert_eq!((health.status, health.json()), (200, json!({"ready": true, "reasons": []})));

    let stats = client.get("/stats").json();
    assert_eq!((&stats["node_gets_total"], &stats["node_puts_total"]), (&json!(1), &json!(1)));
    assert_eq!(stats["ring_members"], 1);
    assert_eq!(stats["riak_kv_version"], "2.0.9");
    assert!(stats["http_requests"].as_u64().unwrap() >= 4);

    let status = client.get("/cluster/status").json();
    assert_eq!(status["cluster"], "oort");
    assert_eq!((&status["node"]["ready"], &status["node"]["read_only"]), (&json!(true), &json!(null)));
    assert_eq!(status["members"][0]["health"], "up");
    assert_eq!(status["members"][0]["partitions"], status["ring"]["partitions"]);
    assert_eq!((&status["ring"]["version"], &status["ring"]["strategy"]), (&json!(1), &json!(strategy())));
    let coordinate = &status["members"][0]["coordinate"];
    assert_eq!((&coordinate["x_us"], &coordinate["error"]), (&json!(0), &json!(1.0)));
    assert_eq!(status["buckets"][0]["name"], "default");
    assert_eq!(status["node"]["connections"], 3);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    client.get("/buckets/b/keys/k");
    let metrics = client.get("/metrics");
    assert_eq!(lint(metrics.text()), [""; 0]);
    assert_eq!(lint("oort_x 1\n"), ["oort_x: no type"]);
    assert_eq!(
        lint("# HELP oort_x_ms y\n# TYPE oort_x_ms gauge\n"),
        ["oort_x_ms: an abbreviated unit, or its type"]
    );
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let mut described = None;
    for line in metrics.text().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            described = rest.split(' ').next();
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').expect(line);
            let name = sample.split('{').next().unwrap();
            assert!(name.starts_with(described.expect("a TYPE line first")), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    for sample in [
        "oort_gets_total 1\n",
        "oort_hints_pending 0\n",
        "oort_ready 1\n",
        "oort_http_requests_total{method=\"GET\",code=\"4xx\"} 1\n",
        "oort_http_responses_total{code=\"404\"} 1\n",
        "oort_http_method_duration_seconds_count{method=\"GET\"} 1\n",
        "oort_http_method_duration_seconds_bucket{method=\"PUT\",le=\"+Inf\"} 0\n",
        "oort_operation_duration_seconds_bucket{kind=\"get\",le=\"0.000016\"} 0\n",
        "oort_peer_round_trip_seconds_count 0\n",
        "oort_http_request_duration_seconds_bucket{le=\"+Inf\"} 1\n",
        "oort_http_connections 1\n",
    ] {
        assert!(metrics.text().contains(sample), "{sample} is not in\n{}", metrics.text());
    }
}

/// What `promtool check metrics` finds wrong with a page.
fn lint(page: &str) -> Vec<String> {
    let (mut kinds, mut wrong) = (std::collections::BTreeMap::new(), Vec::new());
    let mut helped = std::collections::BTreeSet::new();
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(help)) if !help.is_empty() => {
                if !helped.insert(name) {
                    wrong.push(format!("{name}: described twice"));
                }
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                kinds.insert(name, kind);
            }
            (Some("#"), ..) => wrong.push(format!("no help: {line}")),
            _ => {
                let name = line.split(['{', ' ']).next().unwrap_or("");
                let of_histogram = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|suffix| name.strip_suffix(suffix))
                    .any(|base| kinds.get(base) == Some(&"histogram"));
                if !of_histogram && !kinds.contains_key(name) {
                    wrong.push(format!("{name}: no type"));
                }
            }
        }
    }
    for (name, kind) in kinds {
        if !helped.contains(name) {
            wrong.push(format!("{name}: no help"));
        }
        if (kind == "counter") != name.ends_with("_total") {
            wrong.push(format!("{name}: counters end with _total, and nothing else"));
        }
        if kind != "histogram" && ["_bucket", "_sum", "_count"].iter().any(|suffix| name.ends_with(suffix)) {
            wrong.push(format!("{name}: a histogram's ending"));
        }
        let short = ["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"];
        if name.split('_').any(|word| short.contains(&word) || word == kind || word == "milliseconds") {
            wrong.push(format!("{name}: an abbreviated unit, or its type"));
        }
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            wrong.push(format!("{name}: upper case"));
        }
    }
    wrong
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    client.put("/buckets/b/keys/k", &[], b"v");
    node.switches.disk_is_full.store(true, Ordering::Relaxed);
    let put = client.put("/buckets/b/keys/k", &[], b"w");
    assert_eq!((put.status, put.header("retry-after")), (503, Some("1")), "{put:?}");
    assert_eq!(client.get("/buckets/b/keys/k").text(), "v");
    let health = client.get("/health");
    assert_eq!(health.status, 503);
    assert!(health.text().contains("this node refuses writes"), "{}", health.text());
    node.switches.disk_is_full.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(5);
    while client.put("/buckets/b/keys/k", &[], b"x").status != 204 {
        assert!(Instant::now() < deadline, "the disk has space again, but writes are refused");
    }
    assert_eq!(client.get("/health").status, 200);
}

#[test]
fn a_stop_finishes_requests_in_flight() {
    let mut node = TestNode::start();
    let mut idle = Client::connect(node.address());
    let mut used = Client::connect(node.address());
    assert_eq!(used.get("/ping").status, 200);
    let mut busy = Client::connect(node.address());
    assert_eq!(busy.get("/ping").status, 200);
    node.switches.loop_is_stuck.store(true, Ordering::Relaxed);
    busy.send(b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n");
    std::thread::sleep(Duration::from_millis(50));
    let http = node.http.take().unwrap();
    let address = http.address();
    http.stop();
    assert!(used.is_closed());
    node.switches.loop_is_stuck.store(false, Ordering::Relaxed);
    let answer = busy.answer(false).expect("the request was in flight");
    assert_eq!(answer.status, 200);
    assert!(busy.is_closed());
    let start = Instant::now();
    http.join();
    assert!(start.elapsed() < Duration::from_secs(5), "an idle connection held up the stop");
    assert!(idle.is_closed());
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_stopped_node_answers_until_http_stops() {
    let node = TestNode::start();
    let mut client = Client::connect(node.address());
    assert_eq!(client.get("/health").status, 200);
    node.handle.stop();
    // The loop ends and drops its inbox, in its own time.
    let deadline = Instant::now() + Duration::from_secs(5);
    while client.get("/health").status != 503 {
        assert!(Instant::now() < deadline, "the loop has stopped, but the node is called healthy");
    }
    assert!(client.get("/health").text().contains("stopping"));
    let get = client.get("/buckets/b/keys/k");
    assert_eq!((get.status, get.text()), (503, "the node is stopping\n"));
}
