//! Stories of active objects on a replicated store: one home, serial runs, timers, failover, joining what a split made.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use oort_core::active::{Ask, Call, Caller, Value};
use oort_core::bucket::{ActiveDurability, ActiveProperties, BucketProperties, Conflict, DEFAULT_BUCKET};
use oort_core::causality::Dot;
use oort_core::client::{ActiveError, ClientError, Handler, Operation, Quorum, Reply, Want};
use oort_core::message::{Control, Message};
use oort_core::mutation::{Expiry, Mutation, MutationError};
use oort_core::object::Object;
use oort_core::types::ActorId;
use support::{key, Cluster, Crash};

/// The getCount example of the Comet slides.
const GET_COUNT: &str = "aso.value = \"Hello world!\"
aso.getCount = 0

function onGet()
self.getCount = self.getCount + 1
return {self.value, self.getCount}
end";

fn activate(source: &str) -> Mutation {
    let source = Bytes::copy_from_slice(source.as_bytes());
    Mutation::Activate { source, expiry: Expiry::Default, keeps_state: false }
}

fn create(cluster: &mut Cluster, i: usize, name: &str, source: &str) -> Result<(), ClientError> {
    let (quorum, want) = (Quorum::default(), Want::default());
    let operation =
        Operation::Update { key: key(name), mutation: activate(source), quorum, want, caller: None };
    match cluster.run(i, operation)? {
        Reply::Updated(updated) => assert!(updated.applied),
        other => panic!("a creation was answered with {other:?}"),
    }
    Ok(())
}

fn operation(name: &str, what: Ask, arguments: &[Value]) -> Operation {
    let call = Call { what, arguments: arguments.to_vec(), caller: None };
    Operation::Call { key: key(name), call, quorum: Quorum::default() }
}

fn ask(
    cluster: &mut Cluster,
    i: usize,
    name: &str,
    what: Ask,
    arguments: &[Value],
) -> Result<Value, ClientError> {
    match cluster.run(i, operation(name, what, arguments))? {
        Reply::Called(called) => Ok(called.value),
        Reply::Object(object) => panic!("no active object: {object:?}"),
        other => panic!("a call was answered with {other:?}"),
    }
}

fn get(cluster: &mut Cluster, i: usize, name: &str) -> Value {
    ask(cluster, i, name, Ask::Get, &[]).expect("the get succeeds")
}

fn call(
    cluster: &mut Cluster,
    i: usize,
    name: &str,
    function: &str,
    arguments: &[Value],
) -> Result<Value, ClientError> {
    ask(cluster, i, name, Ask::Function(Bytes::copy_from_slice(function.as_bytes())), arguments)
}

fn info(cluster: &mut Cluster, name: &str, field: &str) -> Value {
    let info = ask(cluster, 0, name, Ask::Info, &[]).expect("there is such an object");
    info.get(field).cloned().unwrap_or(Value::Nil)
}

fn counted(count: i64) -> Value {
    Value::Array(vec!["Hello world!".into(), count.into()])
}

/// The default bucket keeps what handlers change before they answer.
fn with_quorum(cluster: &mut Cluster) {
    let aso = ActiveProperties { durability: ActiveDurability::Quorum, ..ActiveProperties::default() };
    cluster.set_bucket(0, DEFAULT_BUCKET, BucketProperties { aso, ..BucketProperties::default() });
    cluster.advance(2_000);
}

/// Source: DESIGN §5, "so getCount counts every get, wherever the client connects".
#[test]
fn every_get_is_counted_wherever_the_client_connects() {
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 3, "greeting", GET_COUNT).unwrap();
    for count in 1..=20 {
        assert_eq!(get(&mut cluster, count as usize % 5, "greeting"), counted(count));
    }
    assert_eq!(cluster.total("active_calls"), 20);
    // A plain read of the key runs no code, and what the gets changed is written within its time.
    cluster.advance(1_500);
    cluster.assert_converged("greeting", 3);
    assert!(cluster.total("active_writes") <= 3, "twenty gets are few writes");
}

/// Source: DESIGN §5. A home's crash costs a failover, not the object.
#[test]
fn the_next_home_goes_on_where_the_last_was_written() {
    for crash in [Crash::Kill, Crash::Power] {
        let mut cluster = Cluster::new(5);
        with_quorum(&mut cluster);
        create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
        let list = cluster.list("greeting");
        let client = list[4];
        for count in 1..=10 {
            assert_eq!(get(&mut cluster, client, "greeting"), counted(count));
        }
        cluster.crash(list[0], crash);
        for count in 11..=20 {
            assert_eq!(get(&mut cluster, client, "greeting"), counted(count));
        }
        cluster.restart(list[0]);
        cluster.advance(1_000);
        for count in 21..=30 {
            assert_eq!(get(&mut cluster, client, "greeting"), counted(count), "the first home is back");
        }
    }
}

#[test]
fn without_quorum_a_crash_loses_what_was_not_written_yet_and_no_more() {
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    let list = cluster.list("greeting");
    let client = list[4];
    for count in 1..=10 {
        assert_eq!(get(&mut cluster, client, "greeting"), counted(count));
    }
    cluster.advance(1_000);
    for count in 11..=15 {
        assert_eq!(get(&mut cluster, client, "greeting"), counted(count));
    }
    cluster.crash(list[0], Crash::Power);
    assert_eq!(get(&mut cluster, client, "greeting"), counted(11), "ten were written within aso_async_ms");
}

#[test]
fn a_stopped_home_writes_everything_first() {
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    let list = cluster.list("greeting");
    for count in 1..=10 {
        assert_eq!(get(&mut cluster, list[4], "greeting"), counted(count));
    }
    cluster.turn(list[0], oort_core::node::Input::Stop);
    cluster.pump();
    cluster.crash(list[0], Crash::Kill);
    assert_eq!(get(&mut cluster, list[4], "greeting"), counted(11));
}

const TALLY: &str = "aso.n = 0
        function bump() self.n = self.n + 1 return self.n end
        function onGet() return self.n end";

/// Source: DESIGN §5, "a replica refuses a home's write that does not cover what it holds".
#[test]
fn a_replica_refuses_what_a_home_of_yesterday_writes() {
    let mut cluster = Cluster::new(3);
    with_quorum(&mut cluster);
    create(&mut cluster, 0, "tally", TALLY).unwrap();
    let list = cluster.list("tally");
    call(&mut cluster, list[0], "tally", "bump", &[]).unwrap();
    let old = cluster.held(list[0], "tally").unwrap();
    for _ in 0..5 {
        call(&mut cluster, list[0], "tally", "bump", &[]).unwrap();
    }
    // What the home would have written had it stood still since: a newer dot over what it knew then.
    let mut stale = old.clone();
    let (dot, version) = old.0.newest().unwrap().clone();
    let newer = Dot { counter: dot.counter + (60_000 << 16), actor: ActorId(7) };
    stale.0.put(&old.context().clone(), newer, version.clone());
    let stamp = cluster.node(list[1]).ring().unwrap().stamp();
    let term = version.value.term();
    assert!(term > 0, "a home writes in a term");
    for (term, refused) in [(term, 1), (u64::MAX, 2)] {
        let object = stale.encode();
        let message =
            Message::Write { task: 1 << 40, key: key("tally"), object, base: 0, hint_for: None, stamp, term };
        cluster.inject(list[0], list[1], message);
        assert_eq!(cluster.total("active_writes_refused"), refused);
    }
    assert_eq!(get(&mut cluster, list[2], "tally"), 6.into());
    // Claimed, a later term keeps out the earlier one although nothing is written in it yet.
    let object = Object::forgotten(cluster.held(list[0], "tally").unwrap().context().clone()).encode();
    for to in [list[1], list[2]] {
        let (object, term) = (object.clone(), u64::MAX >> 1);
        let message = Message::Claim { task: 1 << 40, key: key("tally"), object, base: 0, term, stamp };
        cluster.inject(list[0], to, message);
    }
    assert_eq!(
        call(&mut cluster, list[0], "tally", "bump", &[]),
        Ok(7.into()),
        "the home claims a later term"
    );
    assert!(cluster.total("active_reruns") > 0);
    cluster.advance(2_000);
    cluster.assert_converged("tally", 3);
}

#[test]
fn under_quorum_the_smaller_side_of_a_split_answers_no_call() {
    let mut cluster = Cluster::new(5);
    with_quorum(&mut cluster);
    create(&mut cluster, 0, "tally", TALLY).unwrap();
    let list = cluster.list("tally");
    assert_eq!(call(&mut cluster, list[0], "tally", "bump", &[]), Ok(1.into()));
    // With a node that could stand in.
    cluster.split(&[list[0], list[3]], &[list[1], list[2], list[4]]);
    for _ in 0..3 {
        assert!(call(&mut cluster, list[0], "tally", "bump", &[]).is_err());
    }
    for n in 2..=4 {
        assert_eq!(call(&mut cluster, list[4], "tally", "bump", &[]), Ok(n.into()));
    }
    cluster.heal();
    cluster.advance(5_000);
    assert_eq!(call(&mut cluster, list[3], "tally", "bump", &[]), Ok(5.into()));
    assert_eq!(cluster.total("active_merges"), 0, "nothing was left to be joined");
    cluster.advance(2_000);
    cluster.assert_converged("tally", 3);
}

#[test]
fn a_request_whose_time_is_up_is_not_begun() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    let list = cluster.list("greeting");
    cluster.advance(5_000);
    let sent_us = cluster.now(list[1]).mono_us;
    cluster.advance(800);
    for (task, left_us, calls) in [(1, 700_000, 0), (2, 900_000, 1)] {
        let operation = operation("greeting", Ask::Get, &[]);
        let forward = Control::Forward { task, operation, left_us, sent_us, holds: 0 };
        cluster.inject(list[1], list[0], Message::Control(forward));
        assert_eq!(cluster.total("active_calls"), calls);
        assert_eq!(cluster.total("expired_forwards"), 1);
    }
}

#[test]
fn two_homes_of_a_split_are_joined() {
    let counter = "aso.hits = comet.counter() aso.tags = comet.set()
        function hit(tag) self.hits:add(1) self.tags:add(tag) return self.hits:value() end
        function onGet() return {self.hits, self.tags} end";
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "shared", counter).unwrap();
    let list = cluster.list("shared");
    assert_eq!(call(&mut cluster, list[0], "shared", "hit", &["a".into()]), Ok(1.into()));
    cluster.advance(2_000);
    cluster.split(&[list[0], list[3]], &[list[1], list[2], list[4]]);
    for _ in 0..3 {
        call(&mut cluster, list[0], "shared", "hit", &["left".into()]).unwrap();
    }
    for _ in 0..4 {
        call(&mut cluster, list[1], "shared", "hit", &["right".into()]).unwrap();
    }
    cluster.advance(2_000);
    cluster.heal();
    cluster.advance(5_000);
    let tags = Value::Array(["a", "left", "right"].map(Value::from).to_vec());
    assert_eq!(get(&mut cluster, list[4], "shared"), Value::Array(vec![8.into(), tags]));
    assert_eq!(cluster.total("active_merges_lost"), 0);
    cluster.advance(2_000);
    cluster.assert_converged("shared", 3);
}

#[test]
fn on_merge_joins_what_convergent_fields_do_not_and_else_the_newest_wins() {
    let merging = "aso.best = 0
        function offer(n) self.best = math.max(self.best, tonumber(n)) return self.best end
        function onMerge(other) self.best = math.max(self.best, other.best) end
        function onGet() return self.best end";
    let silent = &merging.replace("function onMerge", "function unused");
    for (source, best, lost) in [(merging, 9, 0), (silent, 4, 1)] {
        let mut cluster = Cluster::new(5);
        create(&mut cluster, 0, "auction", source).unwrap();
        let list = cluster.list("auction");
        cluster.split(&[list[0], list[3]], &[list[1], list[2], list[4]]);
        call(&mut cluster, list[0], "auction", "offer", &[9.into()]).unwrap();
        cluster.advance(1_500);
        call(&mut cluster, list[1], "auction", "offer", &[4.into()]).unwrap();
        cluster.advance(1_500);
        cluster.heal();
        cluster.advance(5_000);
        assert_eq!(get(&mut cluster, list[2], "auction"), best.into());
        assert_eq!(cluster.total("active_merges_lost"), lost);
    }
}

#[test]
fn an_object_decides_what_overwrites_it() {
    let guarded = "aso.value = 'first' aso.writes = 0
        function onPut(caller) if caller.ip then return nil end return self end
        function onUpdate(new, caller)
          self.writes = self.writes + 1
          if new == 'refuse' then return nil end
          if new == 'keep' then return self end
          if new == 'fail' then error('no') end
          if type(new) == 'table' then return new end
          return 'plain ' .. new
        end
        function onGet() return {self.value, self.writes} end";
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "guarded", guarded).unwrap();
    let values = |writes: i64| Value::Array(vec!["first".into(), writes.into()]);
    assert_eq!(get(&mut cluster, 1, "guarded"), values(0));
    for i in 0..5 {
        let refusal = Err(ClientError::Active(ActiveError::Refused { handler: Handler::OnUpdate }));
        assert_eq!(cluster.put(i, "guarded", "refuse"), refusal);
        assert_eq!(get(&mut cluster, i, "guarded"), values(i as i64), "a refused write changes nothing");
        assert!(cluster.put(i, "guarded", "keep").is_ok());
        assert_eq!(get(&mut cluster, i, "guarded"), values(i as i64 + 1));
        let failed = cluster.put(i, "guarded", "fail").unwrap_err();
        assert!(matches!(failed, ClientError::Active(ActiveError::Failed(_))), "{failed}");
    }
    let wrong = cluster.update(2, "guarded", Mutation::Append { suffix: "x".into() });
    assert_eq!(wrong, Err(ClientError::Mutation(MutationError::IsActive)));
    // Another active object asks the old one too.
    create(&mut cluster, 2, "guarded", GET_COUNT).unwrap();
    assert_eq!(get(&mut cluster, 3, "guarded"), counted(1));
    create(&mut cluster, 1, "guarded", guarded).unwrap();
    cluster.put(4, "guarded", "text").unwrap();
    assert_eq!(cluster.values(1, "guarded"), ["plain text"]);
    for i in 0..5 {
        let refused = create(&mut cluster, i, &format!("refused{i}"), "function onPut() end");
        assert_eq!(refused, Err(ClientError::Active(ActiveError::Refused { handler: Handler::OnPut })));
        assert_eq!(cluster.values(i, &format!("refused{i}")), Vec::<String>::new());
    }
    // What has no onUpdate is simply overwritten, and a delete asks nobody.
    create(&mut cluster, 0, "guarded", GET_COUNT).unwrap();
    cluster.put(4, "guarded", "text").unwrap();
    assert_eq!(cluster.values(0, "guarded"), ["text"]);
    create(&mut cluster, 0, "guarded", guarded).unwrap();
    let delete = Mutation::Delete {
        basis: oort_core::mutation::Basis::Local,
        condition: oort_core::mutation::Condition::Always,
    };
    assert!(cluster.update(3, "guarded", delete).unwrap().applied);
    assert_eq!(
        ask(&mut cluster, 0, "guarded", Ask::Info, &[]),
        Err(ClientError::Active(ActiveError::Missing))
    );
}

#[test]
fn timers_run_once_in_each_interval_at_the_home() {
    let ticking = "aso.ticks = 0 aso.interval = 2
        function aso:onTimer() self.ticks = self.ticks + 1 end
        function onGet() return self.ticks end";
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "clock", ticking).unwrap();
    let list = cluster.list("clock");
    cluster.advance(20_000);
    assert_eq!(get(&mut cluster, list[3], "clock"), 10.into());
    assert_eq!(cluster.total("active_timer_runs"), 10, "once over the cluster, not once on each replica");
    // Failover: the next home takes over, and the first when it is back.
    cluster.crash(list[0], Crash::Power);
    cluster.advance(20_000);
    let Value::Integer(ticks) = get(&mut cluster, list[3], "clock") else { panic!("ticks are a number") };
    assert!((19..=20).contains(&ticks), "{ticks} ticks in forty seconds");
    cluster.restart(list[0]);
    cluster.advance(20_000);
    let Value::Integer(later) = get(&mut cluster, list[3], "clock") else { panic!("ticks are a number") };
    assert!((9..=10).contains(&(later - ticks)), "{} ticks in twenty seconds", later - ticks);
    // All at once: timers survive restarts.
    for i in 0..5 {
        cluster.crash(i, Crash::Power);
    }
    for i in 0..5 {
        cluster.start(i);
    }
    cluster.pump();
    cluster.advance(20_000);
    let Value::Integer(last) = get(&mut cluster, list[3], "clock") else { panic!("ticks are a number") };
    assert!((9..=11).contains(&(last - later)), "{} ticks in twenty seconds", last - later);
    // A deleted object ticks no more.
    let runs = cluster.total("active_timer_runs");
    cluster.put(0, "clock", "stopped").unwrap();
    cluster.advance(10_000);
    assert_eq!(cluster.total("active_timer_runs"), runs);
}

/// A home that stood still had the object loaded; its successor has run the timer in this interval by the time it goes
/// on.
#[test]
fn a_home_that_stood_still_runs_no_interval_again() {
    let ticking = "aso.ticks = 0 aso.interval = 10
        function aso:onTimer() self.ticks = self.ticks + 1 end
        function onGet() return self.ticks end";
    // Wherever in the interval the standstill falls.
    for late_ms in [0, 2_000, 4_000, 6_000, 8_000] {
        let mut cluster = Cluster::new(3);
        with_quorum(&mut cluster);
        create(&mut cluster, 0, "clock", ticking).unwrap();
        let list = cluster.list("clock");
        cluster.advance(20_000 + late_ms);
        let Value::Integer(before) = get(&mut cluster, list[1], "clock") else {
            panic!("ticks are a number")
        };
        for _ in 0..2 {
            cluster.pause(list[0]);
            cluster.advance(4_000);
            cluster.resume();
            cluster.advance(6_000);
        }
        let Value::Integer(after) = get(&mut cluster, list[1], "clock") else { panic!("ticks are a number") };
        assert_eq!(after - before, 2, "ticks in twenty seconds, {late_ms} ms later");
    }
}

/// Both creations have read the replicas before either has stored anything.
#[test]
fn of_two_creations_at_once_the_second_is_asked_of_the_first() {
    let guarded = "aso.n = 0 function onUpdate() return nil end function onGet() return self.n end";
    let mut cluster = Cluster::new(3);
    with_quorum(&mut cluster);
    let list = cluster.list("guarded");
    let operation = || Operation::Update {
        key: key("guarded"),
        mutation: activate(guarded),
        quorum: Quorum::default(),
        want: Want::default(),
        caller: None,
    };
    let asked = [1, 2].map(|i| cluster.ask(list[i], operation()));
    let answers = asked.map(|id| cluster.wait(id));
    assert!(answers[0].is_ok(), "{answers:?}");
    let refused = ActiveError::Refused { handler: Handler::OnUpdate };
    assert_eq!(answers[1], Err(ClientError::Active(refused)));
}

/// Source: DESIGN §1, promise 6. Each object is within its limits, all together ask for more than the nodes have.
#[test]
fn timers_get_a_share_of_the_time_and_run_late_beyond_it() {
    let busy = "aso.interval = 1 aso.ticks = 0
        function onTimer() local s = 0 for i = 1, 40000 do s = s + i end self.ticks = self.ticks + 1 end
        function onGet() return self.ticks end";
    let (objects, seconds) = (900, 3);
    let mut cluster = Cluster::new(3);
    for i in 0..objects {
        create(&mut cluster, i % 3, &format!("busy{i}"), busy).unwrap();
    }
    cluster.advance(2_000);
    let before = ["active_timer_runs", "active_timers_skipped"].map(|name| cluster.total(name));
    cluster.advance(seconds * 1_000);
    let runs = cluster.total("active_timer_runs") - before[0];
    let skipped = cluster.total("active_timers_skipped") - before[1];
    // A run has about 80,000 instructions, charged as 0.85 ms, and a fifth of the time of three nodes is given.
    let admitted = 3 * seconds * 1_000_000 / 5 / 850;
    assert!(runs.abs_diff(admitted) <= admitted / 6, "{runs} runs, not {admitted}");
    let due = objects as u64 * seconds;
    assert!((runs + skipped).abs_diff(due) <= due / 4, "{runs} runs and {skipped} skipped, of {due}");
    assert!(cluster.total("active_timers_late") > 0);
    // Nobody is left out, and no interval counts twice.
    let ticks: Vec<i64> = (0..objects)
        .map(|i| match get(&mut cluster, i % 3, &format!("busy{i}")) {
            Value::Integer(ticks) => ticks,
            other => panic!("{other:?}"),
        })
        .collect();
    let (least, most) = (ticks.iter().min().unwrap(), ticks.iter().max().unwrap());
    assert!(*least >= 1 && *most <= 6 && most - least <= 3, "between {least} and {most} ticks");
}

/// Source: the Comet slides, "Application-Specific DHT" and "Self-Monitoring DHT".
#[test]
fn objects_of_the_slides_run() {
    let replication = "
function aso:selectReplicas(neighbors)
  local chosen = {}
  for i = 1, 2 do chosen[i] = neighbors[i] end
  return chosen
end
function aso:onTimer()
  neighbors = comet.lookup()
  replicas = self.selectReplicas(neighbors)
  comet.put(self, replicas)
  self.rounds = (self.rounds or 0) + 1
end
function onGet() return self.rounds end";
    let monitoring = "
aso.neighbors = {}
function aso:onTimer()
  neighbors = comet.lookup()
  self.neighbors[comet.systemTime()] = neighbors
end
function onGet()
  local rounds, nodes = 0, 0
  for _, neighbors in pairs(self.neighbors) do rounds = rounds + 1 nodes = #neighbors end
  return {rounds, nodes}
end";
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "replication", replication).unwrap();
    create(&mut cluster, 1, "monitoring", monitoring).unwrap();
    cluster.advance(180_000);
    assert_eq!(get(&mut cluster, 2, "replication"), 3.into());
    assert_eq!(get(&mut cluster, 3, "monitoring"), Value::Array(vec![3.into(), 5.into()]));
    assert_eq!(cluster.total("active_failures"), 0);
}

#[test]
fn a_handler_that_waits_holds_up_the_others_and_nobody_else() {
    let asking = "aso.runs = 0
        function look()
          self.runs = self.runs + 1
          local before = self.runs
          comet.get()
          return {before, self.runs}
        end
        function onGet() return self.runs end";
    let mut cluster = Cluster::new(5);
    create(&mut cluster, 0, "asking", asking).unwrap();
    let home = cluster.list("asking")[0];
    let function = || Ask::Function("look".into());
    let ids: Vec<_> = (0..3).map(|_| cluster.ask(home, operation("asking", function(), &[]))).collect();
    for (i, id) in ids.into_iter().enumerate() {
        let run = Value::Integer(i as i64 + 1);
        let Reply::Called(called) = cluster.wait(id).unwrap() else { panic!("a call's answer") };
        let Value::Array(parts) = called.value else { panic!("an array") };
        assert_eq!(parts, [run.clone(), run], "runs are serial");
    }
    assert_eq!(get(&mut cluster, 2, "asking"), 3.into());
}

/// An object that fails in all ways, each time after it has changed something.
const FRAGILE: &str = "aso.n = 0
    function good() self.n = self.n + 1 return self.n end
    function spin() self.n = self.n + 100 while true do end end
    function grow() self.n = self.n + 100 self.text = string.rep('x', 90000) .. string.rep('y', 90000) end
    function fail() self.n = self.n + 100 error('on purpose') end
    function deep() self.n = self.n + 100 self.t = {} local t = self.t for i = 1, 40 do t[1] = {} t = t[1] end end
    function cycle() self.n = self.n + 100 self.t = {} self.t.t = self.t end
    function code() self.n = self.n + 100 self.later = function() end end
    function swap() self.n = self.n + 100 self.good = nil end
    function answer() self.n = self.n + 100 return good end
    function wait() self.n = self.n + 100 comet.lookup() error('later') end
    function flood() self.n = self.n + 100 while true do comet.lookup() end end
    function leave() self.n = self.n + 100 comet.deleteSelf() error('no, stay') end
    function stored() self.n = self.n + 1 comet.put(self) self.n = self.n + 100 error('after it was stored') end
    function onGet() return self.n end";
const FAILURES: [(&str, &str); 12] = [
    ("spin", "more than 100000 instructions"),
    ("grow", "more than 100000 bytes"),
    ("fail", "on purpose"),
    ("deep", "nested deeper than 32 levels"),
    ("cycle", "self.t.t holds a table that contains itself"),
    ("code", "self.later holds a function"),
    ("swap", "are the source's alone"),
    ("answer", "the result holds a function"),
    ("wait", "later"),
    ("flood", "more than 20 messages"),
    ("leave", "no, stay"),
    ("nothing", "no function nothing"),
];

/// Source: DESIGN §5, "A call that fails undoes itself and nothing else."
#[test]
fn a_call_that_fails_undoes_itself_and_nothing_else() {
    for quorum in [false, true] {
        let mut cluster = Cluster::new(3);
        if quorum {
            with_quorum(&mut cluster);
        }
        create(&mut cluster, 0, "fragile", FRAGILE).unwrap();
        let mut answered = 0;
        for (function, expected) in FAILURES {
            answered += 1;
            assert_eq!(call(&mut cluster, 2, "fragile", "good", &[]), Ok(answered.into()), "{function}");
            let failed = call(&mut cluster, 1, "fragile", function, &[]).unwrap_err().to_string();
            assert!(failed.contains(expected), "{function}: {failed}");
            assert_eq!(get(&mut cluster, 0, "fragile"), answered.into(), "{function}");
        }
        // Its messages come again. What it has stored itself stays.
        cluster.advance(61_000);
        let failed = call(&mut cluster, 1, "fragile", "stored", &[]).unwrap_err().to_string();
        assert!(failed.contains("after it was stored"), "{failed}");
        answered += 1;
        assert_eq!(get(&mut cluster, 0, "fragile"), answered.into());
        // All of it is written.
        cluster.advance(3_000);
        let list = cluster.list("fragile");
        cluster.crash(list[0], Crash::Power);
        cluster.advance(5_000);
        let other = list[1];
        assert_eq!(get(&mut cluster, other, "fragile"), answered.into(), "quorum: {quorum}");
    }
}

#[test]
fn a_caller_that_drives_an_object_to_its_limits_rests_and_nobody_else() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "fragile", FRAGILE).unwrap();
    let by = |cluster: &mut Cluster, i: usize, port: u16, function: &str| {
        let caller = Caller { ip: Some("10.0.0.1".into()), port: Some(port), ..Caller::default() };
        let what = Ask::Function(Bytes::copy_from_slice(function.as_bytes()));
        let call = Call { what, arguments: Vec::new(), caller: Some(Arc::new(caller)) };
        let operation = Operation::Call { key: key("fragile"), call, quorum: Quorum::default() };
        cluster.run(i, operation).map_err(|error| error.to_string())
    };
    let mut runs = 0;
    for n in 0..30 {
        let spun = by(&mut cluster, n % 3, 666, "spin").unwrap_err();
        let is_rest = spun.contains("is not run again for");
        assert!(n % 10 != 0 || !is_rest, "{n}: {spun}");
        runs += usize::from(!is_rest);
        for port in 1..4 {
            by(&mut cluster, n % 3, port, "good").unwrap();
        }
        by(&mut cluster, n % 3, 666, "good").expect("another function does not rest");
        if n % 10 == 9 {
            cluster.advance(60_000);
        }
    }
    assert!(runs <= 9, "{runs}");
    assert_eq!(get(&mut cluster, 1, "fragile"), 120.into());
    // It can be looked at all the time, and new code ends all rests.
    by(&mut cluster, 0, 666, "spin").unwrap_err();
    let error = info(&mut cluster, "fragile", "last_error");
    assert!(error.get("message").is_some(), "{error:?}");
    let source = Mutation::Activate { source: FRAGILE.into(), expiry: Expiry::Default, keeps_state: true };
    cluster.update(2, "fragile", source).unwrap();
    let spun = by(&mut cluster, 0, 666, "spin").unwrap_err();
    assert!(spun.contains("instructions"), "{spun}");
}

#[test]
fn a_full_queue_keeps_no_other_caller_out() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "slow", "function wait() comet.get() return 'done' end").unwrap();
    let by = |port: u16| {
        let caller = Caller { ip: Some("10.0.0.1".into()), port: Some(port), ..Caller::default() };
        let call = Call {
            what: Ask::Function(Bytes::from_static(b"wait")),
            arguments: Vec::new(),
            caller: Some(Arc::new(caller)),
        };
        // The call itself needs nobody else.
        Operation::Call { key: key("slow"), call, quorum: Quorum { r: Some(1), ..Quorum::default() } }
    };
    let home = cluster.list("slow")[0];
    // The others do not answer: the first call waits, and all others behind it.
    cluster.mute((home + 1) % 3);
    cluster.mute((home + 2) % 3);
    let flood: Vec<_> = (0..1_001).map(|_| cluster.ask(home, by(1))).collect();
    let good: Vec<_> = (2..12).map(|port| cluster.ask(home, by(port))).collect();
    let more = cluster.ask(home, by(1));
    cluster.pump();
    let is_crowded = |answer: Option<Result<Reply, ClientError>>| {
        matches!(answer, Some(Err(ClientError::Active(ActiveError::Crowded { .. }))))
    };
    assert!(is_crowded(cluster.answer(more)));
    assert!(good.into_iter().all(|id| !is_crowded(cluster.answer(id))));
    assert_eq!(flood.into_iter().filter(|id| is_crowded(cluster.answer(*id))).count(), 10);
}

#[test]
fn failures_are_told() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "fragile", FRAGILE).unwrap();
    call(&mut cluster, 1, "fragile", "fail", &[]).unwrap_err();
    assert_eq!(info(&mut cluster, "fragile", "failures"), 1.into());
    let last = info(&mut cluster, "fragile", "last_error");
    assert_eq!(last.get("message"), Some(&"aso:5: on purpose".into()), "{last:?}");
    let syntax = create(&mut cluster, 0, "broken", "function (").unwrap_err().to_string();
    assert!(syntax.contains("does not compile"), "{syntax}");
    let nothing = create(&mut cluster, 0, "broken", "-- nothing").unwrap_err().to_string();
    assert!(nothing.contains("the source defines nothing"), "{nothing}");
    let binary = create(&mut cluster, 0, "broken", "aso.x = 1\n\0 aso.y = 2").unwrap_err().to_string();
    assert!(binary.contains("line 2: byte 0x00 is no text"), "{binary}");
    assert_eq!(call(&mut cluster, 0, "broken", "f", &[]), Err(ClientError::Active(ActiveError::Missing)));
    let reserved = call(&mut cluster, 0, "fragile", "onTimer", &[]);
    assert_eq!(reserved, Err(ClientError::Active(ActiveError::Reserved { handler: Handler::OnTimer })));
    cluster.put(0, "plain", "text").unwrap();
    assert_eq!(call(&mut cluster, 0, "plain", "f", &[]), Err(ClientError::Active(ActiveError::NotActive)));
}

#[test]
fn no_object_is_beyond_new_code() {
    // Its source fails from a certain time on, as one does that asks the clock.
    let mut cluster = Cluster::new(3);
    let at_ms = cluster.now(0).wall_ms + 30_000;
    let dying =
        format!("if comet.systemTime() > {at_ms} then error('too late') end aso.n = 7 function onGet() end");
    create(&mut cluster, 0, "dying", &dying).unwrap();
    cluster.advance(200_000);
    let failed = call(&mut cluster, 1, "dying", "onGet", &[]).unwrap_err().to_string();
    assert!(failed.contains("too late"), "{failed}");
    let last = info(&mut cluster, "dying", "last_error");
    assert_eq!(last.get("message"), Some(&"aso:1: too late".into()), "{last:?}");
    let source = |text: &str| Mutation::Activate {
        source: Bytes::copy_from_slice(text.as_bytes()),
        expiry: Expiry::Default,
        keeps_state: true,
    };
    cluster.update(1, "dying", source("function onGet() return self.n end")).unwrap();
    assert_eq!(get(&mut cluster, 2, "dying"), 7.into());
    // The limit is lowered below what is stored: it can be asked, and may shrink.
    let large = "aso.text = string.rep('x', 50000) function shrink() self.text = 'small' return 'done' end
        function grow() self.text = self.text .. 'more' end function onGet() return #self.text end";
    create(&mut cluster, 0, "large", large).unwrap();
    let aso = ActiveProperties { memory_bytes: 10_000, ..ActiveProperties::default() };
    cluster.set_bucket(0, DEFAULT_BUCKET, BucketProperties { aso, ..BucketProperties::default() });
    cluster.advance(200_000);
    assert_eq!(get(&mut cluster, 0, "large"), 50_000.into());
    let grown = call(&mut cluster, 0, "large", "grow", &[]).unwrap_err().to_string();
    assert!(grown.contains("more than 10000 bytes"), "{grown}");
    cluster.update(1, "large", source(large)).unwrap();
    assert_eq!(call(&mut cluster, 0, "large", "shrink", &[]), Ok("done".into()));
    assert_eq!(get(&mut cluster, 2, "large"), 5.into());
}

#[test]
fn a_merge_that_fails_leaves_the_newest() {
    let merges = [
        "function onMerge(other) self.best = 999 error('no') end",
        "function onMerge(other) self.best = 999 while true do end end",
        "function onMerge(other) self.best = 999 comet.lookup() end",
        "function onMerge(other) self.best = 999 self.text = string.rep('x', 99990) end",
        "function onMerge(other) self.best = 999 comet.deleteSelf() end",
        "function onMerge(other) self.best = 999 self.f = function() end end",
    ];
    for merge in merges {
        let source = format!(
            "aso.best = 0 function bid(n) self.best = tonumber(n) return self.best end
            function onGet() return self.best end {merge}"
        );
        let mut cluster = Cluster::new(5);
        create(&mut cluster, 0, "auction", &source).unwrap();
        let list = cluster.list("auction");
        cluster.split(&[list[0], list[3]], &[list[1], list[2], list[4]]);
        call(&mut cluster, list[0], "auction", "bid", &[5.into()]).unwrap();
        cluster.advance(1_500);
        call(&mut cluster, list[1], "auction", "bid", &[7.into()]).unwrap();
        cluster.advance(1_500);
        cluster.heal();
        cluster.advance(5_000);
        assert_eq!(get(&mut cluster, list[2], "auction"), 7.into(), "{merge}");
        assert_eq!(cluster.total("active_merges_lost"), 1, "{merge}");
    }
}

#[test]
fn false_refuses_as_nil_does_and_true_is_an_error() {
    let mut cluster = Cluster::new(3);
    let source = "aso.value = 'v' aso.asked = 0
        function onUpdate(new) self.asked = self.asked + 1 return new == 'true' end
        function onGet() return {self.value, self.asked} end";
    create(&mut cluster, 0, "picky", source).unwrap();
    let refusal = ClientError::Active(ActiveError::Refused { handler: Handler::OnUpdate });
    assert_eq!(cluster.put(1, "picky", "text"), Err(refusal));
    let error = ClientError::Active(ActiveError::Returned { handler: Handler::OnUpdate });
    assert_eq!(cluster.put(1, "picky", "true"), Err(error));
    assert_eq!(get(&mut cluster, 2, "picky"), Value::Array(vec!["v".into(), 0.into()]));
    for (answer, error) in [
        ("false", ActiveError::Refused { handler: Handler::OnPut }),
        ("true", ActiveError::Returned { handler: Handler::OnPut }),
    ] {
        let source = format!("function onPut() return {answer} end");
        assert_eq!(create(&mut cluster, 0, "never", &source), Err(ClientError::Active(error)));
        assert_eq!(cluster.values(0, "never"), Vec::<String>::new());
    }
    // No handler that must return at once may delete.
    let deleting = "aso.value = 'v' function onUpdate(new) comet.deleteSelf() return new end";
    create(&mut cluster, 0, "deleting", deleting).unwrap();
    let error = ClientError::Active(ActiveError::CannotDelete { handler: Handler::OnUpdate });
    assert_eq!(cluster.put(1, "deleting", "text"), Err(error));
    assert_eq!(get(&mut cluster, 2, "deleting"), "v".into());
    let error = ClientError::Active(ActiveError::CannotDelete { handler: Handler::OnPut });
    assert_eq!(
        create(&mut cluster, 0, "never", "function onPut() comet.deleteSelf() return self end"),
        Err(error)
    );
}

#[test]
fn a_bucket_that_forbids_objects_stops_those_that_are_there() {
    let mut cluster = Cluster::new(3);
    let ticking = "aso.n = 0 aso.interval = 1 function onTimer() self.n = self.n + 1 end
        function onUpdate() return self end function onGet() return self.n end";
    create(&mut cluster, 0, "ticking", ticking).unwrap();
    cluster.advance(3_000);
    let allow = |cluster: &mut Cluster, active: bool| {
        cluster.set_bucket(0, DEFAULT_BUCKET, BucketProperties { active, ..BucketProperties::default() });
        cluster.advance(2_000);
    };
    allow(&mut cluster, false);
    let forbidden = ClientError::Active(ActiveError::Forbidden);
    assert_eq!(ask(&mut cluster, 1, "ticking", Ask::Get, &[]), Err(forbidden.clone()));
    assert_eq!(call(&mut cluster, 1, "ticking", "onGet", &[]), Err(forbidden.clone()));
    assert_eq!(cluster.put(2, "ticking", "text"), Err(forbidden));
    let runs = cluster.total("active_timer_runs");
    cluster.advance(10_000);
    assert_eq!(cluster.total("active_timer_runs"), runs);
    assert!(info(&mut cluster, "ticking", "source_bytes") != Value::Nil, "it can be looked at");
    allow(&mut cluster, true);
    assert!(ask(&mut cluster, 1, "ticking", Ask::Get, &[]).is_ok());
    allow(&mut cluster, false);
    let delete = Mutation::Delete {
        basis: oort_core::mutation::Basis::Local,
        condition: oort_core::mutation::Condition::Always,
    };
    assert!(cluster.update(1, "ticking", delete).unwrap().applied);
}

#[test]
fn messages_come_again_after_the_clock_was_set_back() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "talker", "function talk() comet.lookup() return 'said' end").unwrap();
    let talk = |cluster: &mut Cluster| call(cluster, 0, "talker", "talk", &[]);
    while talk(&mut cluster).is_ok() {}
    cluster.machines.iter_mut().for_each(|machine| machine.wall_ahead_ms = -3_600_000);
    // Asked again and again, so that it stays loaded.
    let has_talked = (0..7).any(|_| {
        cluster.advance(10_000);
        talk(&mut cluster).is_ok()
    });
    assert!(has_talked, "{:?}", talk(&mut cluster));
}

#[test]
fn new_code_keeps_the_state_and_expiry_ends_the_object() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    get(&mut cluster, 0, "greeting");
    let source = GET_COUNT.replace("self.getCount + 1", "self.getCount + 10");
    let reload = |source: String| Mutation::Activate {
        source: source.into(),
        expiry: Expiry::Default,
        keeps_state: true,
    };
    cluster.update(1, "greeting", reload(source)).unwrap();
    assert_eq!(get(&mut cluster, 2, "greeting"), counted(11));
    assert!(cluster.update(1, "greeting", reload("function (".into())).is_err());
    assert_eq!(get(&mut cluster, 2, "greeting"), counted(21));
    assert_eq!(
        cluster.update(0, "nothing", reload(GET_COUNT.into())),
        Err(ClientError::Active(ActiveError::Missing))
    );
    let at_ms = Some(cluster.now(0).wall_ms + 5_000);
    let condition = oort_core::mutation::ExpiryCondition::ALWAYS;
    assert!(cluster.update(1, "greeting", Mutation::SetExpiry { at_ms, condition }).unwrap().applied);
    assert_eq!(get(&mut cluster, 2, "greeting"), counted(31), "an expiry is no other object");
    cluster.advance(6_000);
    assert_eq!(
        ask(&mut cluster, 0, "greeting", Ask::Info, &[]),
        Err(ClientError::Active(ActiveError::Missing))
    );
    // An object may end itself.
    create(&mut cluster, 0, "once", "function onGet() comet.deleteSelf() return 'read' end").unwrap();
    assert_eq!(get(&mut cluster, 1, "once"), "read".into());
    assert_eq!(ask(&mut cluster, 1, "once", Ask::Info, &[]), Err(ClientError::Active(ActiveError::Missing)));
}

#[test]
fn a_bucket_may_forbid_active_objects_and_lww_keeps_one_home() {
    let mut cluster = Cluster::new(3);
    let forbidden = BucketProperties { active: false, ..BucketProperties::default() };
    cluster.set_bucket(0, DEFAULT_BUCKET, forbidden);
    let refusal = Err(ClientError::Active(ActiveError::Forbidden));
    assert_eq!(create(&mut cluster, 0, "greeting", GET_COUNT), refusal);
    let lww = BucketProperties { conflict: Conflict::Lww, ..BucketProperties::default() };
    cluster.set_bucket(0, DEFAULT_BUCKET, lww);
    cluster.advance(2_000);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    for count in 1..=5 {
        assert_eq!(get(&mut cluster, count as usize % 3, "greeting"), counted(count));
        cluster.advance(700);
    }
}

#[test]
fn a_disk_that_refuses_takes_back_what_was_not_written() {
    let mut cluster = Cluster::new(3);
    with_quorum(&mut cluster);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    let home = cluster.list("greeting")[0];
    get(&mut cluster, home, "greeting");
    cluster.machines[home].disk.lock().set_full(true);
    let refused = ask(&mut cluster, home, "greeting", Ask::Get, &[]);
    assert!(matches!(refused, Err(ClientError::ReadOnly { .. })), "{refused:?}");
    cluster.machines[home].disk.lock().set_full(false);
    cluster.advance(2_000);
    assert_eq!(get(&mut cluster, home, "greeting"), counted(2));
}

#[test]
fn while_the_disk_is_full_objects_go_on_and_are_written_afterwards() {
    let mut cluster = Cluster::new(3);
    create(&mut cluster, 0, "greeting", GET_COUNT).unwrap();
    let home = cluster.list("greeting")[0];
    assert_eq!(get(&mut cluster, home, "greeting"), counted(1));
    cluster.machines[home].disk.lock().set_full(true);
    assert!(cluster.put(home, "plain", "refused").is_err());
    for count in 2..=10 {
        assert_eq!(get(&mut cluster, home, "greeting"), counted(count), "what is loaded is not lost");
        cluster.advance(300);
    }
    cluster.machines[home].disk.lock().set_full(false);
    cluster.advance(2_000);
    cluster.crash(home, Crash::Power);
    assert_eq!(get(&mut cluster, (home + 1) % 3, "greeting"), counted(11));
}

#[test]
fn a_reply_goes_to_the_key_that_the_caller_named() {
    let mut cluster = Cluster::new(5);
    let source = "function ask(caller) comet.put(caller.key, 'answer', caller.node) return comet.put(caller.key, 'second', caller.node) end";
    create(&mut cluster, 0, "oracle", source).unwrap();
    let caller = oort_core::active::Caller {
        node: Some(cluster.id(2)),
        reply_key: Some("inbox".into()),
        ..Default::default()
    };
    let call = Call {
        what: Ask::Function("ask".into()),
        arguments: Vec::new(),
        caller: Some(std::sync::Arc::new(caller)),
    };
    let operation = Operation::Call { key: key("oracle"), call, quorum: Quorum::default() };
    let second = cluster.run(3, operation);
    assert!(second.unwrap_err().to_string().contains("own key"), "one reply for each call");
    assert_eq!(cluster.values(1, "inbox"), ["answer"]);
}
