//! Stories of active objects on a replicated store: one home, serial runs, timers, failover, joining what a split made.

mod support;

use bytes::Bytes;
use oort_core::active::{Ask, Call, Value};
use oort_core::bucket::{ActiveDurability, ActiveProperties, BucketProperties, Conflict, DEFAULT_BUCKET};
use oort_core::client::{ActiveError, ClientError, Handler, Operation, Quorum, Reply, Want};
use oort_core::mutation::{Expiry, Mutation, MutationError};
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

#[test]
fn failures_are_told_and_leave_the_object_as_it_was_saved() {
    let fragile = "aso.n = 0
        function spin() self.n = self.n + 1 while true do end end
        function grow() self.n = self.n + 1 self.text = string.rep('x', 90000) .. string.rep('y', 90000) end
        function fail() self.n = self.n + 1 error('on purpose') end
        function onGet() return self.n end";
    let mut cluster = Cluster::new(3);
    with_quorum(&mut cluster);
    create(&mut cluster, 0, "fragile", fragile).unwrap();
    let text = |result: Result<Value, ClientError>| result.unwrap_err().to_string();
    let spun = text(call(&mut cluster, 1, "fragile", "spin", &[]));
    assert!(spun.contains("more than 100000 instructions"), "{spun}");
    cluster.advance(100);
    let grown = text(call(&mut cluster, 1, "fragile", "grow", &[]));
    assert!(grown.contains("more than 100000 bytes"), "{grown}");
    let resting = text(call(&mut cluster, 1, "fragile", "fail", &[]));
    assert!(resting.contains("rests for 400 ms"), "{resting}");
    cluster.advance(400);
    assert_eq!(get(&mut cluster, 1, "fragile"), 0.into());
    let failed = text(call(&mut cluster, 1, "fragile", "fail", &[]));
    assert!(failed.contains("on purpose"), "{failed}");
    assert_eq!(get(&mut cluster, 1, "fragile"), 1.into(), "an error is no limit: what was done stays");
    let missing = text(call(&mut cluster, 2, "fragile", "nothing", &[]));
    assert!(missing.contains("no function nothing"), "{missing}");
    assert_eq!(info(&mut cluster, "fragile", "failures"), 4.into());
    // New code does not have to wait.
    text(call(&mut cluster, 1, "fragile", "spin", &[]));
    let source = Mutation::Activate { source: fragile.into(), expiry: Expiry::Default, keeps_state: true };
    cluster.update(2, "fragile", source).unwrap();
    assert_eq!(get(&mut cluster, 1, "fragile"), 1.into());
    let last = info(&mut cluster, "fragile", "last_error");
    assert!(last.get("message").is_some(), "{last:?}");
    let syntax = create(&mut cluster, 0, "broken", "function (").unwrap_err().to_string();
    assert!(syntax.contains("does not compile"), "{syntax}");
    assert_eq!(call(&mut cluster, 0, "broken", "f", &[]), Err(ClientError::Active(ActiveError::Missing)));
    let reserved = call(&mut cluster, 0, "fragile", "onTimer", &[]);
    assert_eq!(reserved, Err(ClientError::Active(ActiveError::Reserved { handler: Handler::OnTimer })));
    cluster.put(0, "plain", "text").unwrap();
    assert_eq!(call(&mut cluster, 0, "plain", "f", &[]), Err(ClientError::Active(ActiveError::NotActive)));
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
