//! Changing the ring of real nodes with the commands that an operator types.

use std::io::ErrorKind;

use super::*;
use crate::support::Outcome;

/// Longer than the longest pause between two dials.
const DIALS_WITHIN: Duration = Duration::from_millis(1500);

/// `oort cluster`, asking the node `asked`.
fn operator(cluster: &Cluster, asked: usize, arguments: &[&str]) -> Outcome {
    run(&[&["cluster"], arguments, &["--node", &cluster.nodes[asked].redis]].concat())
}

/// As [`operator`]; the command must succeed. Returns what it printed.
fn succeed(cluster: &Cluster, asked: usize, arguments: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = operator(cluster, asked, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stdout}{stderr}");
    stdout
}

/// As [`operator`]; the command must be refused. Returns why.
fn refused(cluster: &Cluster, asked: usize, arguments: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = operator(cluster, asked, arguments);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{arguments:?}: {stderr}");
    stderr
}

/// What `node` says of the member `id`; null if it does not know it.
fn member(node: &Node, id: &str) -> serde_json::Value {
    let status = node.status();
    let found = status["members"].as_array().unwrap().iter().find(|member| member["id"] == id);
    found.cloned().unwrap_or_default()
}

/// Waits until all of `nodes` take the member `id` for down: each of them is asked before a node is given up.
fn see_down(nodes: &[Node], id: &str) {
    let is_down = |node: &Node| member(node, id)["health"] == "down";
    eventually("it is down", || nodes.iter().all(is_down).then_some(()));
}

fn id(node: &Node) -> String {
    node.status()["node"]["id"].as_str().unwrap().to_owned()
}

fn hints_pending(node: &Node) -> u64 {
    node.status()["hints_pending"].as_u64().unwrap()
}

/// Writes so many keys, each `bytes` long, through `node`.
fn fill(node: &Node, count: usize, bytes: usize) -> Acknowledged {
    let mut client = node.client();
    let written = (0..count).map(|i| (format!("filled:{i}"), format!("{i} {}", "x".repeat(bytes))));
    let written: Acknowledged = written.collect();
    for (key, value) in &written {
        assert_eq!(client.call(&["SET", key, value]).unwrap(), Value::OK);
    }
    written
}

/// Nobody connects to the peer address of a node that has ended.
fn assert_not_dialled(node: &Node) {
    // A dial may be under way.
    std::thread::sleep(Duration::from_millis(100));
    let listener = TcpListener::bind(&node.peer).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::sleep(DIALS_WITHIN);
    assert_eq!(listener.accept().map(|_| ()).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
}

/// Kills the first two of three nodes: the third alone must hold everything.
fn assert_third_holds(cluster: &mut Cluster, acknowledged: &Acknowledged) {
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    eventually("the third knows that it is alone", || {
        cluster.nodes[2].call(&["VGET", "some key"]).is_error().then_some(())
    });
    assert_eq!(missing_from(&cluster.nodes[2], acknowledged), Vec::<String>::new());
}

#[test]
fn a_node_joins_and_another_leaves_under_load() {
    let mut cluster = Cluster::start(3, &[]);
    let acknowledged = with_writers(&mut cluster, |cluster, writing| {
        writing.wait_for(300);
        cluster.add(0, &[]);
        // On a busy machine a node that has just come may be suspect for a moment.
        let plan = eventually("node4 can be reached", || {
            let planned = operator(cluster, 1, &["join", "node4", "--plan"]);
            (planned.code == Some(0)).then_some(planned.stdout)
        });
        assert!(plan.contains("node4  0.0% "), "{plan}");
        assert_eq!(cluster.nodes[1].status()["ring"]["version"], 1, "a plan changes nothing");
        let done = succeed(cluster, 1, &["join", "node4"]);
        assert!(done.contains("ring version 4: all data are where they belong ("), "{done}");
        writing.wait_for(100);
        succeed(cluster, 1, &["leave", "node1"]);
        assert!(cluster.nodes[0].terminate().success());
        writing.wait_for(100);
    });
    for node in &cluster.nodes[1..] {
        assert_readable(node, &acknowledged);
    }
    assert_not_dialled(&cluster.nodes[0]);

    // It may come back, and go for good.
    let first = id_in(&cluster.nodes[1], "node1");
    cluster.nodes[0].start();
    eventually("it is linked again", || (member(&cluster.nodes[1], &first)["health"] == "up").then_some(()));
    let why = refused(&cluster, 1, &["remove", "node1"]);
    assert!(why.contains("is alive: only a node that is gone for good is given up"), "{why}");
    assert!(cluster.nodes[0].terminate().success());
    see_down(&cluster.nodes[1..], &first);
    succeed(&cluster, 1, &["remove", "node1"]);
    eventually("all forget it", || {
        cluster.nodes[1..].iter().all(|node| member(node, &first).is_null()).then_some(())
    });
    let why = refused(&cluster, 1, &["remove", "node1"]);
    assert!(why.contains("unknown node 'node1': the members are node2, node3, node4"), "{why}");
}

#[test]
fn nodes_refuse_by_themselves_what_would_lose_data() {
    let mut cluster = Cluster::start(4, &[]);
    let acknowledged = fill(&cluster.nodes[0], 100, 10);
    for name in ["node3", "node4", "node1"] {
        for words in [&["RING", "REMOVE", name][..], &["RING", "REMOVE", name, "FORCE"]] {
            let why = error(cluster.nodes[0].call(words));
            assert!(
                why.starts_with("ERR node ") && why.contains("is alive: only a node that is gone"),
                "{why}"
            );
        }
    }
    let why = error(cluster.nodes[0].call(&["RING", "REMOVE", "node3", "NOW"]));
    assert!(why.contains("wrong number of arguments"), "{why}");
    cluster.nodes[0].call(&["BUCKET", "SET", "single", "n", "1", "r", "1", "w", "1"]);
    eventually("the ring has settled", || {
        (cluster.nodes[0].status()["ring"]["moving"] == false).then_some(())
    });
    cluster.nodes[3].kill();
    let fourth = id_in(&cluster.nodes[0], "node4");
    eventually("all know that it is down", || {
        let knows = |node: &Node| member(node, &fourth)["health"] == "down";
        cluster.nodes[..3].iter().all(knows).then_some(())
    });
    let why = error(cluster.nodes[0].call(&["RING", "REMOVE", "node4"]));
    assert!(why.contains("partitions of buckets with n = 1"), "{why}");
    assert!(!cluster.nodes[0].call(&["RING", "REMOVE", "node4", "FORCE"]).is_error());
    eventually("the ring has settled", || {
        (cluster.nodes[0].status()["ring"]["moving"] == false).then_some(())
    });
    cluster.nodes[..3].iter().for_each(|node| assert_readable(node, &acknowledged));
}

#[test]
fn all_copies_are_those_in_force_while_n_grows() {
    let mut cluster = Cluster::start(3, &[]);
    let is_in_force = |node: &Node| {
        let Outcome { stdout, .. } = run(&["bucket", "get", "grows", "--node", &node.redis]);
        stdout.contains("in_force=true\n")
    };
    cluster.nodes[0].call(&["BUCKET", "SET", "grows", "n", "2", "r", "2", "w", "2"]);
    eventually("two copies are in force", || cluster.nodes[..2].iter().all(is_in_force).then_some(()));
    let third = id(&cluster.nodes[2]);
    cluster.nodes[2].kill();
    see_down(&cluster.nodes[..2], &third);
    // The change waits for the node that is down.
    cluster.nodes[0].call(&["BUCKET", "SET", "grows", "n", "3"]);
    eventually("the change has begun", || {
        (cluster.nodes[0].status()["ring"]["moving"] == true).then_some(())
    });
    for key in 0..20 {
        let head = format!("PUT /buckets/grows/keys/{key}?w=all HTTP/1.1\r\nHost: test\r\nConnection: close");
        let put = format!("{head}\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nv");
        let (status, body) = http(&cluster.nodes[0].http, &put);
        assert_eq!((status, body.as_str()), (204, ""), "key {key}");
        let read =
            http_get(&cluster.nodes[0].http, &format!("/buckets/grows/keys/{key}?r=all&notfound_ok=false"));
        assert_eq!(read, (200, "v".to_owned()), "key {key}");
    }
    assert!(!is_in_force(&cluster.nodes[0]));
}

fn id_in(node: &Node, name: &str) -> String {
    let status = node.status();
    let found = status["members"].as_array().unwrap().iter().find(|member| member["name"] == name);
    found.unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn the_hints_and_the_copies_of_a_removed_node_go_to_the_new_owners() {
    let mut cluster = Cluster::start(4, &[]);
    let mut acknowledged = fill(&cluster.nodes[0], 300, 10);
    cluster.nodes[3].kill();
    acknowledged.extend(with_writers(&mut cluster, |_, writing| writing.wait_for(200)));
    let live = &cluster.nodes[..3];
    assert!(live.iter().map(hints_pending).sum::<u64>() > 100, "the dead node is owed what was written");
    succeed(&cluster, 0, &["remove", "node4"]);
    eventually("nobody is owed anything", || live.iter().all(|node| hints_pending(node) == 0).then_some(()));
    for node in live {
        assert_eq!(node.status()["members"].as_array().unwrap().len(), 3);
        assert_readable(node, &acknowledged);
    }
    assert_not_dialled(&cluster.nodes[3]);
    // Each of the three holds everything.
    assert_third_holds(&mut cluster, &acknowledged);
}

#[test]
fn a_node_whose_disk_was_emptied_is_recognised_and_takes_its_place_again() {
    let mut cluster = Cluster::start(3, &[]);
    let old = id(&cluster.nodes[2]);
    let acknowledged = with_writers(&mut cluster, |cluster, writing| {
        writing.wait_for(300);
        cluster.nodes[2].kill();
        cluster.nodes[2].wipe();
        cluster.nodes[2].start();
        let command = eventually("the status says what to do", || {
            let status = succeed(cluster, 0, &["status"]);
            let (_, rest) = status.split_once("before its disk was lost, type 'oort cluster ")?;
            Some(rest.split_once('\'')?.0.to_owned())
        });
        let new = id(&cluster.nodes[2]);
        assert_eq!(command, format!("replace {old} {new} --gone"));
        eventually("its own log says the same", || cluster.nodes[2].log().contains(&command).then_some(()));
        assert_eq!(
            member(&cluster.nodes[0], &old)["in_ring"],
            "yes",
            "only the operator knows that it is lost"
        );
        writing.wait_for(100);
        // The names do as well: the one in the ring, the one that is not.
        succeed(cluster, 0, &["replace", "node3", "node3", "--gone"]);
        assert_eq!(member(&cluster.nodes[0], &new)["in_ring"], "yes");
        assert!(member(&cluster.nodes[0], &old).is_null(), "it is forgotten");
        succeed(cluster, 0, &["replace", "node3", "node3", "--gone"]);
        writing.wait_for(100);
    });
    for node in &cluster.nodes {
        assert_readable(node, &acknowledged);
    }
    assert_third_holds(&mut cluster, &acknowledged);
}

#[test]
fn a_command_and_a_node_that_are_interrupted_in_a_move_go_on() {
    let slow = ["--transfer-bytes-per-s", "25kB"];
    let mut cluster = Cluster::start(3, &slow);
    let acknowledged = fill(&cluster.nodes[0], 1000, 500);
    cluster.add(0, &slow);
    let mut command = oort();
    command.args(["cluster", "join", "node4", "--node", &cluster.nodes[0].redis]);
    let mut joining = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("data move", || {
        (cluster.nodes[3].status()["node"]["keys_fetched"].as_u64() > Some(0)).then_some(())
    });
    // Not INT, which those started in the background ignore.
    joining.signal(Signal::TERM);
    assert!(!joining.wait().success());
    let why = refused(&cluster, 0, &["leave", "node1"]);
    assert!(why.contains("the ring is still changing, to version 2"), "{why}");

    cluster.nodes[3].kill();
    let joined = eventually("the others notice", || {
        let fourth = id_in(&cluster.nodes[0], "node4");
        (member(&cluster.nodes[0], &fourth)["health"] == "down").then_some(fourth)
    });
    assert_eq!(member(&cluster.nodes[0], &joined)["in_ring"], "joining");
    // Whoever waits is told for whom.
    let mut command = oort();
    command.args(["cluster", "wait", "--node", &cluster.nodes[0].redis]);
    let mut waiting = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let lines = BufReader::new(waiting.child().stderr.take().unwrap()).lines().map(Result::unwrap);
    let wanted = format!(
        "node4 is down, and the move waits for it: start it, or if it is gone for good, type \
         'oort cluster remove {joined}'"
    );
    assert!(lines.into_iter().any(|line| line == wanted));

    cluster.nodes[3].start();
    let done = succeed(&cluster, 1, &["join", "node4"]);
    assert!(done.starts_with("the ring is changing so already, or has changed so\n"), "{done}");
    assert!(done.contains("ring version 4: all data are where they belong"), "{done}");
    let done = succeed(&cluster, 1, &["join", "node4"]);
    assert!(done.starts_with("the ring is changing so already, or has changed so\n"), "{done}");
    for node in &cluster.nodes {
        assert_readable(node, &acknowledged);
    }
}

#[test]
fn a_removed_node_that_still_runs_knows_it_and_does_no_harm() {
    let cluster = Cluster::start(4, &[]);
    let acknowledged = fill(&cluster.nodes[0], 200, 10);
    let removed = id(&cluster.nodes[3]);
    cluster.nodes[3].signal(Signal::STOP);
    see_down(&cluster.nodes[..3], &removed);
    succeed(&cluster, 0, &["remove", "node4"]);
    assert_eq!(cluster.nodes[0].call(&["SET", "filled:0", "newer"]), Value::OK);
    cluster.nodes[3].signal(Signal::CONT);
    eventually("it knows", || (cluster.nodes[3].status()["node"]["in_ring"] == "removed").then_some(()));
    let status = succeed(&cluster, 3, &["status"]);
    assert!(status.contains("an operator has removed it"), "{status}");
    assert!(member(&cluster.nodes[0], &removed).is_null(), "the others do not know it any more");
    // Its clients are served by the others through it, or refused.
    eventually("it reads what is true", || {
        let answer = cluster.nodes[3].call(&["GET", "filled:0"]);
        assert!(answer.is_error() || answer == Value::text("newer"), "{answer:?}");
        (!answer.is_error()).then_some(())
    });
    assert_eq!(cluster.nodes[3].call(&["SET", "through", "it"]), Value::OK);
    assert_eq!(cluster.nodes[0].call(&["GET", "through"]), Value::text("it"));
    for (key, value) in acknowledged.iter().filter(|(key, _)| *key != "filled:0").take(50) {
        assert_eq!(cluster.nodes[0].call(&["GET", key]), Value::text(value), "{key}");
    }
}
