//! Objects, conditions, listings and bucket properties.

use oort_core::config::NodeConfig;
use serde_json::json;

use crate::client::{Answer, Client};
use crate::node::TestNode;

const KEY: &str = "/buckets/b/keys/k";

fn start() -> (TestNode, Client) {
    let node = TestNode::start();
    let client = Client::connect(node.address());
    (node, client)
}

#[test]
fn a_value_comes_back_with_its_headers() {
    let (_node, mut client) = start();
    let headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Encoding", "identity"),
        ("X-Riak-Meta-Color", "blue"),
        ("Link", "</buckets/b/keys/other>; riaktag=\"next\", </buckets/b>; rel=\"up\""),
        ("X-Something-Else", "dropped"),
    ];
    let put = client.put(KEY, &headers, b"{\"a\":1}");
    assert_eq!((put.status, put.body.len()), (204, 0));

    let get = client.get(KEY);
    assert_eq!((get.status, get.text()), (200, "{\"a\":1}"));
    assert_eq!(get.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(get.header("content-encoding"), Some("identity"));
    assert_eq!(get.header("x-riak-meta-color"), Some("blue"));
    let links = "</buckets/b/keys/other>; riaktag=\"next\", </buckets/b>; rel=\"up\"";
    assert_eq!(get.header("link"), Some(links));
    assert_eq!(get.header("x-something-else"), None);
    assert!(get.header("last-modified").unwrap().ends_with(" GMT"));
    assert!(!get.vclock().is_empty());

    let head = client.request("HEAD", KEY, &[], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("7")));
    assert_eq!(head.header("etag"), get.header("etag"));
    assert_eq!(client.get("/riak/b/k").header("link").unwrap().matches("</riak/b>").count(), 1);
    assert_eq!(client.get("/types/default/buckets/b/keys/k").status, 200);
    assert_eq!(client.get("/types/maps/buckets/b/keys/k").status, 404);
}

#[test]
fn siblings_are_kept_listed_and_resolved() {
    let (_node, mut client) = start();
    assert_eq!(client.put(KEY, &[("Content-Type", "text/a")], b"one").status, 204);
    assert_eq!(client.put(KEY, &[("Content-Type", "text/b")], b"two").status, 204);

    let list = client.get(KEY);
    assert_eq!((list.status, list.header("content-type")), (300, Some("text/plain")));
    let mut lines = list.text().lines();
    assert_eq!(lines.next(), Some("Siblings:"));
    let vtags: Vec<&str> = lines.collect();
    assert_eq!(vtags.len(), 2);

    let values: Vec<Answer> = vtags.iter().map(|vtag| client.get(&format!("{KEY}?vtag={vtag}"))).collect();
    assert_eq!((values[0].text(), values[1].text()), ("two", "one"));
    assert_eq!(values[0].header("content-type"), Some("text/b"));
    assert_eq!(values[0].vclock(), list.vclock());
    assert_eq!(values[0].header("etag"), list.header("etag"));
    assert_eq!(client.get(&format!("{KEY}?vtag=nonsense")).status, 404);

    let multipart = client.request("GET", KEY, &[("Accept", "multipart/mixed, */*;q=0.5")], b"");
    assert_eq!(multipart.status, 300);
    let content_type = multipart.header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/mixed; boundary=").unwrap();
    let parts: Vec<&str> = multipart.text().split(&format!("\r\n--{boundary}")).collect();
    assert_eq!((parts.len(), parts[0], parts[3]), (4, "", "--\r\n"));
    assert!(parts[1].contains("content-type: text/b\r\n"), "{}", parts[1]);
    assert!(parts[1].contains(&format!("etag: \"{}\"\r\n", vtags[0])), "{}", parts[1]);
    assert!(parts[2].ends_with("\r\n\r\none"), "{}", parts[2]);
    assert_eq!(client.request("HEAD", KEY, &[], b"").status, 300);

    let resolve = [("X-Riak-Vclock", list.vclock()), ("Content-Type", "text/plain")];
    assert_eq!(client.put(KEY, &resolve, b"both").status, 204);
    let resolved = client.get(KEY);
    assert_eq!((resolved.status, resolved.text()), (200, "both"));
    assert_eq!(client.get(&format!("{KEY}?vtag={}", vtags[0])).status, 404);

    // A context that is no longer all there is replaces only what it has seen.
    assert_eq!(client.put(KEY, &resolve, b"late").status, 204);
    assert_eq!(client.get(KEY).status, 300);
}

#[test]
fn returnbody_shows_what_was_stored() {
    let (_node, mut client) = start();
    let one = client.put(&format!("{KEY}?returnbody=true"), &[("Content-Type", "text/plain")], b"one");
    assert_eq!((one.status, one.text()), (200, "one"));
    assert!(!one.vclock().is_empty());
    let two = client.put(&format!("{KEY}?returnbody=true"), &[("Accept", "multipart/mixed")], b"two");
    assert_eq!(two.status, 300);
    let resolved =
        client.put(&format!("{KEY}?returnbody=true"), &[("X-Riak-Vclock", two.vclock())], b"three");
    assert_eq!((resolved.status, resolved.text()), (200, "three"));
}

#[test]
fn the_server_makes_up_keys() {
    let (_node, mut client) = start();
    for (path, prefix) in [
        ("/buckets/b/keys", "/buckets/b/keys/"),
        ("/types/t/buckets/b/keys/", "/types/t/buckets/b/keys/"),
        ("/riak/b", "/riak/b/"),
    ] {
        let post = client.request("POST", path, &[("Content-Type", "text/plain")], b"new");
        assert_eq!(post.status, 201, "{path}");
        let location = post.header("location").unwrap().to_string();
        assert!(location.starts_with(prefix), "{location}");
        assert_eq!(client.get(&location).text(), "new");
    }
    let post = client.request("POST", "/buckets/b/keys?returnbody=true", &[], b"shown");
    assert_eq!((post.status, post.text()), (201, "shown"));
}

#[test]
fn keys_may_hold_any_bytes() {
    let (_node, mut client) = start();
    let path = "/buckets/a%2Fb%20%FF/keys/%00%2F%ff%25";
    assert_eq!(client.put(path, &[], b"odd").status, 204);
    let get = client.get(path);
    assert_eq!((get.status, get.text()), (200, "odd"));
    assert_eq!(get.header("link"), Some("</buckets/a%2Fb%20%FF>; rel=\"up\""));
    let list = client.get("/buckets/a%2Fb%20%FF/keys?keys=true");
    assert_eq!(list.json(), json!({"keys": ["%00%2F%FF%25"]}));
    // A type is a prefix of the bucket's name.
    assert_eq!(client.put("/types/t/buckets/b/keys/k", &[], b"typed").status, 204);
    assert_eq!(client.get("/buckets/t%2Fb/keys/k").text(), "typed");
}

#[test]
fn conditions_hold_or_not() {
    let (_node, mut client) = start();
    assert_eq!(client.put(KEY, &[("If-Match", "*")], b"0").status, 412);
    assert_eq!(client.put(KEY, &[("If-None-Match", "*")], b"1").status, 204);
    assert_eq!(client.put(KEY, &[("If-None-Match", "*")], b"2").status, 412);

    let first = client.get(KEY);
    let (etag, modified) = (first.header("etag").unwrap(), first.header("last-modified").unwrap());
    let unchanged = client.request("GET", KEY, &[("If-None-Match", etag)], b"");
    assert_eq!((unchanged.status, unchanged.header("etag")), (304, Some(etag)));
    assert_eq!(unchanged.vclock(), first.vclock());
    assert_eq!(client.request("GET", KEY, &[("If-Modified-Since", modified)], b"").status, 304);
    assert_eq!(client.request("GET", KEY, &[("If-Match", "\"else\"")], b"").status, 412);
    assert_eq!(client.request("GET", KEY, &[("If-Match", etag)], b"").status, 200);

    let seen = ("X-Riak-Vclock", first.vclock());
    assert_eq!(client.put(KEY, &[seen, ("If-None-Match", etag)], b"3").status, 412);
    assert_eq!(client.put(KEY, &[seen, ("If-Match", "\"0000000000000001\"")], b"3").status, 412);
    assert_eq!(client.put(KEY, &[seen, ("If-Match", etag)], b"3").status, 204);
    assert_eq!(client.put(KEY, &[seen, ("If-Match", etag)], b"4").status, 412);
    assert_eq!(client.get(KEY).text(), "3");
    assert_ne!(client.get(KEY).header("etag"), Some(etag));

    let past = ("If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(client.put(KEY, &[past], b"5").status, 412);
    assert_eq!(client.request("DELETE", KEY, &[past], b"").status, 412);
    let now = client.get(KEY);
    let unmodified = ("If-Unmodified-Since", now.header("last-modified").unwrap());
    assert_eq!(client.put(KEY, &[("X-Riak-Vclock", now.vclock()), unmodified], b"6").status, 204);
    assert_eq!(client.get(KEY).text(), "6");
    assert_eq!(client.request("DELETE", KEY, &[("If-Match", etag)], b"").status, 412);
    assert_eq!(client.request("DELETE", KEY, &[("If-Match", "*")], b"").status, 204);
}

#[test]
fn a_delete_leaves_its_context_behind() {
    let (_node, mut client) = start();
    let never = client.get(KEY);
    assert_eq!((never.status, never.header("x-riak-vclock")), (404, None));
    assert_eq!(client.request("DELETE", KEY, &[], b"").status, 404);

    client.put(KEY, &[], b"one");
    assert_eq!(client.request("DELETE", KEY, &[], b"").status, 204);
    let gone = client.get(KEY);
    assert_eq!((gone.status, gone.header("x-riak-deleted")), (404, Some("true")));
    assert!(!gone.vclock().is_empty());
    assert_eq!(client.request("DELETE", KEY, &[], b"").status, 404);
    assert_eq!(client.put(KEY, &[], b"two").status, 204);
    let again = client.get(KEY);
    assert_eq!((again.status, again.text()), (200, "two"));

    // A delete with a context spares what it has not seen.
    client.put(KEY, &[], b"three");
    let seen = [("X-Riak-Vclock", again.vclock())];
    assert_eq!(client.request("DELETE", KEY, &seen, b"").status, 204);
    let rest = client.get(KEY);
    assert_eq!((rest.status, rest.text()), (200, "three"));
}

#[test]
fn values_expire() {
    let (_node, mut client) = start();
    for (path, headers) in
        [(format!("{KEY}?ttl=3600"), vec![]), (KEY.to_string(), vec![("X-Oort-TTL", "60")])]
    {
        assert_eq!(client.put(&path, &headers, b"soon gone").status, 204);
    }
    let list = client.get(KEY);
    let vtag = list.text().lines().nth(1).unwrap();
    let newest = client.get(&format!("{KEY}?vtag={vtag}"));
    assert!(newest.header("x-oort-expires").unwrap().ends_with(" GMT"));
    assert_eq!(client.put(KEY, &[("X-Riak-Vclock", list.vclock())], b"for ever").status, 204);
    assert_eq!(client.get(KEY).header("x-oort-expires"), None);
    for ttl in ["0", "-1", "soon", "99999999999"] {
        let refused = client.put(KEY, &[("X-Oort-TTL", ttl)], b"");
        assert_eq!(refused.status, 400, "{ttl}");
        assert!(refused.text().starts_with("X-Oort-TTL is '"), "{}", refused.text());
    }
}

#[test]
fn quorums_are_numbers_or_words() {
    let (_node, mut client) = start();
    for query in ["r=1&w=1", "w=all&dw=quorum", "pw=1", "rw=one", "timeout=500", "r=default", "n_val=3"] {
        let put = client.put(&format!("{KEY}?{query}"), &[], query.as_bytes());
        assert!(put.status == 204 || put.status == 503, "{query}: {put:?}");
    }
    for (query, says) in [
        ("w=4", "w is 4"),
        ("w=0", "w is 0"),
        ("w=lots", "w is 'lots'"),
        ("pw=9", "pw is 9"),
        ("n_val=2", "n_val is 2"),
        ("timeout=0", "timeout of 0 ms"),
        ("timeout=60001", "timeout of 60001 ms"),
        ("returnbody=1", "returnbody is '1'"),
        ("notfound_ok=false", "notfound_ok=false is for reads"),
    ] {
        let put = client.put(&format!("{KEY}?{query}"), &[], b"x");
        assert_eq!(put.status, 400, "{query}: {put:?}");
        assert!(put.text().contains(says), "{query}: {}", put.text());
    }
    assert_eq!(client.get(&format!("{KEY}?r=7")).status, 400);
    for query in ["notfound_ok=false", "notfound_ok=false&basic_quorum=true", "notfound_ok=true"] {
        let status = client.get(&format!("{KEY}?{query}")).status;
        assert!(status == 200 || status == 300, "{query}: {status}");
        assert_eq!(client.get(&format!("/buckets/b/keys/absent?{query}")).status, 404, "{query}");
    }
}

#[test]
fn a_matched_tag_stands_for_its_context() {
    let (_node, mut client) = start();
    client.put(KEY, &[], b"one");
    let one = client.get(KEY);
    let tag = ("If-Match", one.header("etag").expect("a tag"));
    assert_eq!(client.put(KEY, &[tag], b"two").status, 204);
    let two = client.get(KEY);
    assert_eq!((two.status, two.text()), (200, "two"), "the version that was matched is still there");
    assert_eq!(client.put(KEY, &[tag], b"late").status, 412);

    // Siblings have one tag, and a write that names it replaces them all.
    assert_eq!(client.put(KEY, &[], b"three").status, 204);
    let both = client.get(KEY);
    assert_eq!(both.status, 300);
    let tag = ("If-Match", both.header("etag").expect("a tag"));
    let four = client.put(&format!("{KEY}?returnbody=true"), &[tag], b"four");
    assert_eq!((four.status, four.text()), (200, "four"));

    // A context goes before the tag; any tag, and a date, stand for nothing.
    let tag = ("If-Match", four.header("etag").expect("a tag"));
    assert_eq!(client.put(KEY, &[tag, ("X-Riak-Vclock", one.vclock())], b"five").status, 204);
    assert_eq!(client.get(KEY).status, 300);
    assert_eq!(client.request("DELETE", KEY, &[], b"").status, 204);
    client.put(KEY, &[], b"six");
    assert_eq!(client.put(KEY, &[("If-Match", "*")], b"seven").status, 204);
    assert_eq!(client.get(KEY).status, 300);
}

#[test]
fn empty_metadata_is_kept() {
    let (_node, mut client) = start();
    let headers = [("X-Riak-Meta-Empty", ""), ("X-Riak-Meta-Full", "x"), ("Content-Type", "")];
    assert_eq!(client.put(KEY, &headers, b"v").status, 204);
    let get = client.get(KEY);
    assert_eq!((get.header("x-riak-meta-empty"), get.header("x-riak-meta-full")), (Some(""), Some("x")));
    assert_eq!(get.header("content-type"), Some("application/octet-stream"));
}

#[test]
fn counters_have_a_path_of_their_own() {
    let (_node, mut client) = start();
    let counter = "/buckets/b/counters/c";
    assert_eq!(client.get(counter).status, 404);
    assert_eq!(client.request("POST", counter, &[], b"10").status, 204);
    assert_eq!(client.get(counter).text(), "10");
    let after = client.request("POST", &format!("{counter}?returnvalue=true"), &[], b" -3\n");
    assert_eq!((after.status, after.text()), (200, "7"));
    assert_eq!(client.get("/buckets/b/keys/c").text(), "7");
    for wrong in [&b""[..], b"1.5", b"many", b"99999999999999999999"] {
        let refused = client.request("POST", counter, &[], wrong);
        assert_eq!(refused.status, 400, "{refused:?}");
    }
    client.put(KEY, &[], b"text");
    assert_eq!(client.get("/buckets/b/counters/k").status, 409);
    assert_eq!(client.request("POST", "/buckets/b/counters/k", &[], b"1").status, 400);
    client.put("/buckets/lww/props", &[], br#"{"props":{"allow_mult":false}}"#);
    let refused = client.request("POST", "/buckets/lww/counters/c", &[], b"1");
    assert_eq!(refused.status, 409);
    assert!(refused.text().contains("allow_mult=true"), "{}", refused.text());
}

#[test]
fn keys_are_listed_page_by_page() {
    let (_node, mut client) = start();
    assert_eq!(client.get("/buckets/b/keys?keys=true").json(), json!({"keys": []}));
    assert_eq!(client.get("/buckets/b/keys?keys=stream").text(), "");
    let mut want: Vec<String> = (0..2500).map(|i| format!("key-{i}")).collect();
    for key in &want {
        assert_eq!(client.put(&format!("/buckets/b/keys/{key}"), &[], b"v").status, 204);
    }
    client.put("/buckets/other/keys/elsewhere", &[], b"v");
    client.put("/buckets/b/keys/gone", &[], b"v");
    client.request("DELETE", "/buckets/b/keys/gone", &[], b"");
    want.sort();

    let whole = client.get("/buckets/b/keys?keys=true");
    assert_eq!(whole.header("transfer-encoding"), Some("chunked"));
    let mut keys: Vec<String> = serde_json::from_value(whole.json()["keys"].clone()).unwrap();
    keys.sort();
    assert_eq!(keys, want);

    let stream = client.get("/buckets/b/keys?keys=stream");
    let pages: Vec<serde_json::Value> =
        serde_json::Deserializer::from_slice(&stream.body).into_iter().map(Result::unwrap).collect();
    assert!(pages.len() >= 3, "{} pages", pages.len());
    let mut streamed: Vec<String> = pages
        .iter()
        .flat_map(|page| serde_json::from_value::<Vec<String>>(page["keys"].clone()).unwrap())
        .collect();
    streamed.sort();
    assert_eq!(streamed, want);

    let refused = client.get("/buckets/b/keys");
    assert_eq!(refused.status, 400);
    let nameless = client.get("/buckets//keys?keys=true");
    assert_eq!(
        (nameless.status, nameless.text()),
        (400, "bucket name of 0 bytes: a bucket name has 1 to 255 bytes\n")
    );
    // Buckets are listed while they hold a key.
    client.put("/types/t/buckets/typed/keys/k", &[], b"v");
    client.put("/buckets/emptied/keys/k", &[], b"v");
    client.request("DELETE", "/buckets/emptied/keys/k", &[], b"");
    for form in ["true", "stream"] {
        let listed = client.get(&format!("/buckets?buckets={form}")).json();
        assert_eq!(listed, json!({"buckets": ["b", "default", "other", "t/typed"]}));
    }
    let of_type = client.get("/types/t/buckets?buckets=true").json();
    assert_eq!(of_type, json!({"buckets": ["typed"]}));
    let encoded = client.get("/buckets/other/keys?keys=true&encoding=percent");
    assert_eq!(encoded.json(), json!({"keys": ["elsewhere"]}));
    let old = client.get("/riak/other?keys=true").json();
    assert_eq!((&old["keys"], &old["props"]["n_val"]), (&json!(["elsewhere"]), &json!(3)));
    assert_eq!(client.get("/riak/other?keys=true&props=false").json(), json!({"keys": ["elsewhere"]}));
    assert_eq!(client.get("/riak/other").json()["props"]["name"], "other");
}

#[test]
fn bucket_properties_change_what_a_bucket_does() {
    let (_node, mut client) = start();
    let props = "/buckets/b/props";
    let before = client.get(props).json();
    assert_eq!((&before["props"]["n_val"], &before["props"]["allow_mult"]), (&json!(3), &json!(true)));

    let body = br#"{"props":{"allow_mult":false,"value_bytes_max":10,"default_ttl_ms":60000}}"#;
    assert_eq!(client.put(props, &[("Content-Type", "application/json")], body).status, 204);
    let after = client.get(props).json();
    assert_eq!(
        (&after["props"]["conflict"], &after["props"]["last_write_wins"]),
        (&json!("lww"), &json!(true))
    );
    client.put(KEY, &[], b"one");
    client.put(KEY, &[], b"two");
    let newest = client.get(KEY);
    assert_eq!((newest.status, newest.text()), (200, "two"));
    assert!(newest.header("x-oort-expires").is_some());
    let large = client.put(KEY, &[], b"more than ten bytes");
    assert_eq!(large.status, 413);
    assert!(large.text().contains("10 bytes"), "{}", large.text());

    // What was read can be written back.
    assert_eq!(client.put(props, &[], after.to_string().as_bytes()).status, 204);
    assert_eq!(client.get("/buckets?buckets=true").json(), json!({"buckets": ["b", "default"]}));
    assert_eq!(client.request("DELETE", props, &[], b"").status, 204);
    assert_eq!(client.get(props).json(), before);
    for (body, says) in [
        (&b"{"[..], "malformed JSON"),
        (b"{}", "{\"props\":{...}}"),
        (br#"{"props":{"n_val":0}}"#, "n is 0"),
        (br#"{"props":{"search":true}}"#, "unknown property 'search'"),
        (br#"{"props":{"pr":2}}"#, "property pr cannot be changed"),
    ] {
        let refused = client.put(props, &[], body);
        assert_eq!(refused.status, 400, "{says}");
        assert!(refused.text().contains(says), "{}", refused.text());
    }
}

#[test]
fn requests_may_be_pipelined() {
    let (_node, mut client) = start();
    client.put(KEY, &[], b"v");
    let one = format!("GET {KEY} HTTP/1.1\r\nHost: h\r\n\r\n");
    client.send(one.repeat(50).as_bytes());
    for _ in 0..50 {
        assert_eq!(client.answer(false).unwrap().text(), "v");
    }
}

#[test]
fn a_node_without_a_ring_says_so() {
    let config = NodeConfig { cluster_size: 3, ..NodeConfig::default() };
    let node = TestNode::start_with(config, Default::default());
    let mut client = Client::connect(node.address());
    let get = client.get(KEY);
    assert_eq!((get.status, get.header("retry-after")), (503, Some("1")));
    assert_eq!(get.text(), "the cluster is not formed yet\n");
    assert_eq!(client.put(KEY, &[], b"x").status, 503);
    let health = client.get("/health");
    assert_eq!(health.status, 503);
    assert_eq!(health.json(), json!({"ready": false, "reasons": ["the cluster is not formed yet"]}));
}
