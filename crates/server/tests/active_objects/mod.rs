//! Active objects on real nodes, by every interface.

use super::*;

/// The getCount example of the Comet slides.
const GET_COUNT: &str = "aso.value = \"Hello world!\"
aso.getCount = 0

function onGet()
self.getCount = self.getCount + 1
return {self.value, self.getCount}
end";

fn text(value: &Value) -> String {
    let mut bytes = Vec::new();
    value.encode(oort::resp::Protocol::Resp3, &mut bytes);
    String::from_utf8_lossy(&bytes).replace("\r\n", " ").trim().to_owned()
}

fn ok(node: &Node, command: &[&str]) {
    let answer = node.call(command);
    assert_eq!(answer, Value::OK, "{command:?}");
}

/// The index of the node that runs the object under `key`.
fn home(cluster: &Cluster, key: &str) -> usize {
    let mut client = cluster.nodes[0].client();
    client.call(&["HELLO", "3"]).unwrap();
    let Value::Map(info) = client.call(&["ASO.INFO", key]).unwrap() else { panic!("no INFO") };
    let (_, home) = info.iter().find(|(name, _)| *name == Value::name("home")).expect("it has a home");
    let Value::Bulk(home) = home else { panic!("{home:?}") };
    let is_home = |node: &&Node| node.status()["node"]["id"].as_str().unwrap().as_bytes() == &home[..];
    cluster.nodes.iter().position(|node| is_home(&node)).expect("a node of the cluster")
}

#[test]
fn results_become_replies_of_both_protocols_and_json() {
    let cluster = Cluster::start(1, &[]);
    let node = &cluster.nodes[0];
    let source =
        "function number() return 7 end function fraction() return 1.5 end function no() return nil end
        function yes() return true end function bytes() return 'a\\0\\255' end
        function list() return {1, 'two', {three = 3}} end function echo(a, b) return {a, b} end
        function who(caller) return {caller.ip, type(caller.port), caller.coordinate, caller.key} end";
    ok(node, &["ASO.PUT", "types", source]);
    let mut resp3 = node.client();
    resp3.call(&["HELLO", "3"]).unwrap();
    let cases = [
        ("number", ":7", ":7", "7"),
        ("fraction", ",1.5", "$3 1.5", "1.5"),
        ("no", "_", "_", "null"),
        ("yes", "#t", ":1", "true"),
        ("list", "*3 :1 $3 two %1 $5 three :3", "*3 :1 $3 two *2 $5 three :3", "[1,\"two\",{\"three\":3}]"),
    ];
    for (function, three, two, json) in cases {
        assert_eq!(text(&resp3.call(&["ASO.CALL", "types", function]).unwrap()), three, "{function}");
        assert_eq!(text(&node.call(&["ASO.CALL", "types", function])), two, "{function}");
        let request = format!(
            "POST /aso/default/types/call/{function} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(http(&node.http, &request), (200, json.to_string() + "\n"), "{function}");
    }
    assert_eq!(node.call(&["ASO.CALL", "types", "bytes"]), Value::Bulk(b"a\0\xff"[..].into()));
    assert_eq!(text(&node.call(&["ASO.CALL", "types", "echo", "x", "y"])), "*2 $1 x $1 y");
    let who = resp3.call(&["ASO.CALLER", "COORDINATE", "1.5", "-2", "REPLYKEY", "inbox"]).unwrap();
    assert_eq!(who, Value::OK);
    assert_eq!(
        text(&resp3.call(&["ASO.CALL", "types", "who"]).unwrap()),
        "*4 $9 127.0.0.1 $6 number *2 ,1.5 :-2 $5 inbox"
    );
    for (command, want) in [
        (&["ASO.PUT", "x", "function ("][..], "ASOERR the source does not compile: line 1:"),
        (&["ASO.CALL", "types", "nothing"], "ASOERR the object has no function nothing"),
        (&["ASO.CALL", "types", "onTimer"], "ERR onTimer is called by the store alone"),
        (&["ASO.CALL", "missing", "f"], "ERR no such key"),
        (&["ASO.RELOAD", "missing", "x = 1"], "ERR no such key"),
        (&["ASO.PUT", "x", "x = 1", "EX", "0"], "ERR invalid expire time in 'aso.put' command"),
        (&["ASO.PUT", "x", "x = 1", "W", "9"], "ERR w is 9: it must be 1 to the bucket's n, which is 3"),
        (&["ASO.CALLER", "COORDINATE"], "ERR a coordinate has 1 to 16 numbers"),
        (
            &["INCR", "types"],
            "WRONGTYPE Operation against a key holding the wrong kind of value: an active object",
        ),
        (&["COPY", "types", "x"], "WRONGTYPE Operation against"),
    ] {
        let answer = error(node.call(command));
        assert!(answer.starts_with(want), "{command:?}: {answer}");
    }
    ok(node, &["SET", "plain", "x"]);
    let answer = error(node.call(&["ASO.CALL", "plain", "f"]));
    assert!(answer.starts_with("WRONGTYPE the key holds a plain value"), "{answer}");
    assert_eq!(node.call(&["TYPE", "types"]), Value::Simple("aso".into()));
    assert_eq!(node.call(&["ASO.SOURCE", "missing"]), Value::Null);
}

#[test]
fn http_and_the_command_line_do_what_redis_clients_can() {
    let cluster = Cluster::start(3, &[]);
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let put = |path: &str, kind: &str, body: &str| {
        let length = body.len();
        let request = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        http(&first.http, &request)
    };
    let kind = "application/x-oort-aso+lua";
    assert_eq!(put("/buckets/default/keys/greeting", kind, GET_COUNT).0, 204);
    let path = "/buckets/default/keys/greeting";
    assert_eq!(http_get(&second.http, path), (200, "[\"Hello world!\",1]\n".into()));
    let with_arguments = "function onGet(caller, a, b) return {a, b} end";
    assert_eq!(put("/aso/default/asked", kind, with_arguments).0, 204);
    let asked = http_get(&second.http, "/buckets/default/keys/asked?arg=1&arg=%C3%A9");
    assert_eq!(asked, (200, "[\"1\",\"\u{e9}\"]\n".into()));
    assert_eq!(http_get(&second.http, "/aso/default/asked/source"), (200, with_arguments.into()));
    let renewed = GET_COUNT.replace("+ 1", "+ 10");
    assert_eq!(put("/aso/default/greeting/source", kind, &renewed).0, 204);
    assert_eq!(http_get(&second.http, path), (200, "[\"Hello world!\",11]\n".into()));
    let (status, info) = http_get(&second.http, "/aso/default/greeting");
    assert!(status == 200 && info.contains("\"instructions_limit\":100000"), "{info}");
    for (path, status) in [
        ("/aso/default/missing", 404),
        ("/aso/default/missing/source", 404),
        ("/aso/default/greeting/nothing", 404),
    ] {
        assert_eq!(http_get(&second.http, path).0, status, "{path}");
    }
    assert_eq!(put("/aso/default/broken", kind, "function (").0, 400);
    assert_eq!(put("/aso/default/refused", kind, "function onPut() end").0, 403);
    assert_eq!(put("/aso/default/large", kind, &"-".repeat(200_000)).0, 413);

    let directory = TempDir::new();
    let file = directory.path().join("count.lua");
    std::fs::write(&file, GET_COUNT).unwrap();
    let aso = |arguments: &[&str]| {
        let outcome = run(&[&["aso"], arguments, &["--node", &second.redis]].concat());
        (outcome.code, outcome.stdout + &outcome.stderr)
    };
    let file = file.to_str().unwrap();
    assert_eq!(aso(&["put", "counted", file]), (Some(0), String::new()));
    assert_eq!(aso(&["get", "counted"]), (Some(0), "[\"Hello world!\",1]\n".into()));
    assert_eq!(aso(&["call", "counted", "onGet"]), (Some(0), "[\"Hello world!\",2]\n".into()));
    assert_eq!(run(&["get", "counted", "--node", &second.redis]).stdout, "[\"Hello world!\",3]\n");
    assert_eq!(aso(&["source", "counted"]).1, GET_COUNT);
    assert_eq!(aso(&["reload", "counted", file]), (Some(0), String::new()));
    assert!(aso(&["info", "counted"]).1.contains("calls: "));
    assert_eq!(aso(&["put", "counted", "/no/such/file"]).0, Some(2));
    assert_eq!(aso(&["call", "counted", "nothing"]).0, Some(1));
    assert_eq!(run(&["del", "counted", "--node", &second.redis]).code, Some(0));
    assert_eq!(aso(&["info", "counted"]), (Some(1), "oort: no such key\n".into()));
}

/// The newcomer's page is true: its programs run as they are printed.
#[test]
fn the_programs_of_the_manual_run() {
    let manual = include_str!("../../../../docs/active-objects.md");
    let blocks: Vec<&str> =
        manual.split("```lua\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let cluster = Cluster::start(1, &[]);
    let node = &cluster.nodes[0];
    ok(node, &["ASO.PUT", "limiter", blocks[0]]);
    let mut client = node.client();
    client.call(&["HELLO", "3"]).unwrap();
    let mut hit = |who: &[&str]| {
        let answer = client.call(&[&["ASO.CALL", "limiter", "hit"], who].concat()).unwrap();
        let answer = text(&answer);
        answer.split_once(" $8 reset_ms").map_or(answer.clone(), |(counted, _)| counted.to_string())
    };
    for left in [4, 3, 2, 1, 0] {
        assert_eq!(hit(&["alice"]), format!("%3 $7 allowed #t $4 left :{left}"));
    }
    assert_eq!(hit(&["alice"]), "%3 $7 allowed #f $4 left :0");
    assert!(hit(&[]).contains("hit needs a name"), "{}", hit(&[]));
    assert_eq!(hit(&["bob"]), "%3 $7 allowed #t $4 left :4");
    ok(node, &["ASO.RELOAD", "limiter", &blocks[0].replace("limit = 5", "limit = 3")]);
    assert_eq!(hit(&["bob"]), "%3 $7 allowed #t $4 left :1");
    for (i, block) in blocks.iter().enumerate() {
        let programs = block.split("\n\n").filter(|program| !program.trim().is_empty());
        for program in programs.filter(|_| i > 1) {
            ok(node, &["ASO.PUT", &format!("program{i}"), program]);
            assert_eq!(node.call(&["DEL", &format!("program{i}")]), Value::Integer(1));
        }
    }
    // Those of the paper do what they say.
    let paper: Vec<&str> = blocks.last().unwrap().split("\n\n").collect();
    ok(node, &["ASO.PUT", "limited", &format!("{}\naso.value = 'secret'", paper[0])]);
    for _ in 0..3 {
        assert_eq!(node.call(&["GET", "limited"]), Value::Bulk("secret".into()));
    }
    assert_eq!(node.call(&["GET", "limited"]), Value::Null);
    ok(node, &["ASO.PUT", "owned", paper[2]]);
    ok(node, &["SET", "owned", "by its owner"]);
    assert_eq!(node.call(&["GET", "owned"]), Value::Bulk("by its owner".into()));
    ok(node, &["ASO.PUT", "tracker", paper[3]]);
    client.call(&["ASO.CALLER", "COORDINATE", "3", "4"]).unwrap();
    client.call(&["ASO.CALL", "tracker", "announce"]).unwrap();
    client.call(&["ASO.CALLER", "COORDINATE", "0", "0"]).unwrap();
    assert_eq!(text(&client.call(&["GET", "tracker"]).unwrap()), "*1 %2 $1 d :25 $2 ip $9 127.0.0.1");
}

#[test]
fn a_counter_kept_by_a_quorum_never_goes_back_when_its_home_is_killed() {
    let mut cluster = Cluster::start(3, &[]);
    ok(&cluster.nodes[0], &["BUCKET", "SET", "default", "aso_durability", "quorum"]);
    eventually("all know of it", || {
        let knows = |node: &Node| text(&node.call(&["BUCKET", "GET", "default"])).contains("quorum");
        cluster.nodes.iter().all(knows).then_some(())
    });
    ok(
        &cluster.nodes[0],
        &["ASO.PUT", "counter", "aso.n = 0 function onGet() self.n = self.n + 1 return self.n end"],
    );
    let victim = home(&cluster, "counter");
    let mut client = cluster.nodes[(victim + 1) % 3].client();
    let mut last = 0;
    let mut count = |what: &str| {
        let asked = Instant::now();
        loop {
            match client.call(&["GET", "counter"]).unwrap() {
                Value::Integer(now) => {
                    assert!(now > last, "{what}: {now} after {last}");
                    last = now;
                    return asked.elapsed();
                }
                // What was under way at the home that died may be answered so; it can be asked again.
                Value::Error(_) if asked.elapsed() < PATIENCE => {}
                other => panic!("{what}: {other:?}"),
            }
        }
    };
    (0..200).for_each(|_| _ = count("before"));
    cluster.nodes[victim].kill();
    let gap = (0..200).map(|_| count("after the kill")).max();
    // Measured without other tests beside it: see bench/README.md.
    assert!(gap < Some(Duration::from_secs(2)), "{gap:?}");
    cluster.nodes[victim].start();
    (0..200).for_each(|_| _ = count("when it is back"));
    eventually("it is the home again", || (home(&cluster, "counter") == victim).then_some(()));
    (0..200).for_each(|_| _ = count("at the first home"));
    assert!(last >= 800);
}

#[test]
fn timers_go_on_over_restarts_and_failover() {
    let mut cluster = Cluster::start(3, &[]);
    let source = "aso.interval = 1 aso.n = 0 function aso:onTimer() self.n = self.n + 1 end
        function onGet() return self.n end";
    ok(&cluster.nodes[0], &["ASO.PUT", "clock", source]);
    let ticks = |node: &Node| match node.call(&["GET", "clock"]) {
        Value::Integer(ticks) => ticks,
        _ => -1,
    };
    let wait_for = |node: &Node, least: i64| {
        eventually("it ticks", || Some(ticks(node)).filter(|now| *now >= least));
    };
    wait_for(&cluster.nodes[0], 2);
    let first = home(&cluster, "clock");
    cluster.nodes[first].kill();
    let other = (first + 1) % 3;
    let before = eventually("it can be read", || Some(ticks(&cluster.nodes[other])).filter(|now| *now >= 0));
    wait_for(&cluster.nodes[other], before + 2);
    for node in &mut cluster.nodes {
        if node.is_running() {
            node.kill();
        }
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_until_whole();
    let after = eventually("it can be read", || Some(ticks(&cluster.nodes[other])).filter(|now| *now >= 0));
    assert!(after >= before, "{after} ticks after {before}");
    wait_for(&cluster.nodes[other], after + 2);
}

#[test]
fn no_command_answers_a_source_by_accident_and_failures_name_their_key() {
    let cluster = Cluster::start(3, &[]);
    let node = &cluster.nodes[0];
    let source = "aso.n = 0 function onGet() self.n = self.n + 1 return 'asked ' .. self.n end";
    let staying = format!("{source} function onUpdate() return self end");
    ok(node, &["ASO.PUT", "stays", &staying]);
    let asked = |n: u32| Value::Bulk(format!("asked {n}").into());
    assert_eq!(node.call(&["GETSET", "stays", "text"]), asked(1));
    assert_eq!(node.call(&["SET", "stays", "text", "GET"]), asked(2));
    assert_eq!(node.call(&["GETEX", "stays", "EX", "1000"]), asked(3));
    assert_eq!(node.call(&["GETEX", "stays"]), asked(4));
    assert_eq!(node.call(&["GETDEL", "stays"]), asked(5));
    assert_eq!(node.call(&["GET", "stays"]), Value::Null);
    ok(node, &["ASO.PUT", "goes", source]);
    assert_eq!(node.call(&["GETSET", "goes", "text"]), asked(1));
    assert_eq!(node.call(&["GETSET", "goes", "more"]), Value::Bulk("text".into()));
    ok(node, &["ASO.PUT", "stays", &staying]);
    let request = "PUT /buckets/default/keys/stays?returnbody=true HTTP/1.1\r\nHost: x\r\n\
        Content-Type: text/plain\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntext";
    assert_eq!(http(&node.http, request), (204, String::new()));

    ok(node, &["ASO.PUT", "fails", "function onGet() error('on purpose') end"]);
    let answer = error(node.call(&["MGET", "goes", "fails", "stays"]));
    assert!(answer.starts_with("ASOERR key 'fails': aso:1: on purpose"), "{answer}");
    ok(node, &["ASO.PUT", "picky", "aso.value = 'v' function onUpdate(new) return new == 'true' end"]);
    let answer = error(node.call(&["SET", "picky", "text"]));
    assert!(answer.starts_with("REFUSED the object refuses: onUpdate returned nil or false"), "{answer}");
    let answer = error(node.call(&["SET", "picky", "true"]));
    assert!(answer.starts_with("ERR onUpdate must return self, a string, a number, or nil"), "{answer}");
    let answer = error(node.call(&["MSET", "goes", "1", "picky", "2"]));
    assert!(answer.starts_with("REFUSED key 'picky':"), "{answer}");
    assert_eq!(node.call(&["GET", "picky"]), Value::Bulk("v".into()));
}

/// Source: DESIGN §5, "one bad argument shuts nobody else out".
#[test]
fn one_caller_at_the_limit_shuts_nobody_else_out() {
    let cluster = Cluster::start(3, &[]);
    let source = "aso.n = 0 function inc() self.n = self.n + 1 return self.n end
        function sum(k) local s = 0 for i = 1, tonumber(k) do s = s + i end return s end
        function onGet() return self.n end";
    ok(&cluster.nodes[0], &["ASO.PUT", "shared", source]);
    let mut bad = cluster.nodes[0].client();
    let mut good: Vec<_> = cluster.nodes.iter().map(|node| node.client()).collect();
    let (mut answered, mut rested) = (0, 0);
    for _ in 0..40 {
        let answer = error(bad.call(&["ASO.CALL", "shared", "sum", "1000000000"]).unwrap());
        rested += i32::from(answer.starts_with("BUSY"));
        // And one that connects anew each time.
        error(cluster.nodes[1].call(&["ASO.CALL", "shared", "sum", "1000000000"]));
        for client in &mut good {
            answered += 1;
            assert_eq!(client.call(&["ASO.CALL", "shared", "inc"]).unwrap(), Value::Integer(answered));
        }
    }
    assert!(rested > 30, "{rested}");
    let sum = good[0].call(&["ASO.CALL", "shared", "sum", "10"]).unwrap();
    assert_eq!(sum, Value::Integer(55));
    assert_eq!(cluster.nodes[2].call(&["GET", "shared"]), Value::Integer(answered));
}
