//! Stories of active objects that choose which owners of their key hold their copies.

mod support;

use bytes::Bytes;
use oort_core::active::{Ask, Call, Value};
use oort_core::bucket::{ActiveDurability, ActiveProperties, BucketProperties, DEFAULT_BUCKET};
use oort_core::client::{ActiveError, ClientError, Operation, Quorum, Reply, Want};
use oort_core::config::SyncMode;
use oort_core::mutation::{Basis, Condition, Expiry, ExpiryCondition, Mutation};
use oort_core::object;
use oort_core::placement::RingNode;
use oort_core::ring::RingChange;
use support::{key, Cluster, Crash};

/// Counts its gets. `pick` is the body of its `selectReplicas`.
fn counting(pick: &str) -> String {
    format!(
        "aso.count = 0
        function onGet() self.count = self.count + 1 return self.count end
        function selectReplicas(neighbors) {pick} end"
    )
}

/// The owner whose name sorts last holds it.
const LAST: &str = "table.sort(neighbors, function(a, b) return a.name < b.name end)
    return {neighbors[#neighbors]}";

fn run(cluster: &mut Cluster, i: usize, name: &str, mutation: Mutation) -> Result<Reply, ClientError> {
    let (quorum, want) = (Quorum::default(), Want::default());
    cluster.run(i, Operation::Update { key: key(name), mutation, quorum, want, caller: None })
}

fn create(cluster: &mut Cluster, i: usize, name: &str, source: &str) {
    let source = Bytes::copy_from_slice(source.as_bytes());
    let mutation = Mutation::Activate { source, expiry: Expiry::Default, keeps_state: false };
    run(cluster, i, name, mutation).expect("it is created");
}

fn ask(cluster: &mut Cluster, i: usize, name: &str, what: Ask) -> Result<Value, ClientError> {
    let call = Call { what, arguments: Vec::new(), caller: None };
    match cluster.run(i, Operation::Call { key: key(name), call, quorum: Quorum::default() })? {
        Reply::Called(called) => Ok(called.value),
        other => panic!("a call was answered with {other:?}"),
    }
}

fn get(cluster: &mut Cluster, i: usize, name: &str) -> i64 {
    match ask(cluster, i, name, Ask::Get).expect("the get succeeds") {
        Value::Integer(count) => count,
        other => panic!("a count was answered with {other:?}"),
    }
}

fn info(cluster: &mut Cluster, i: usize, name: &str, field: &str) -> Value {
    let info = ask(cluster, i, name, Ask::Info).expect("there is such an object");
    info.get(field).cloned().unwrap_or(Value::Nil)
}

/// Handlers' changes are written before they are answered.
fn cluster(count: usize) -> Cluster {
    let mut cluster = Cluster::with(count, |config| {
        config.entropy_ms = 100;
        config.partitions = 16;
    });
    let aso = ActiveProperties { durability: ActiveDurability::Quorum, ..ActiveProperties::default() };
    cluster.set_bucket(0, DEFAULT_BUCKET, BucketProperties { aso, ..BucketProperties::default() });
    cluster.advance(2_000);
    cluster
}

/// The nodes that hold code and state, and those with a husk.
fn copies(cluster: &Cluster, name: &str) -> (Vec<usize>, Vec<usize>) {
    let (mut bodies, mut husks) = (Vec::new(), Vec::new());
    for i in cluster.holders(name) {
        match &cluster.held(i, name).and_then(|held| Some(held.0.newest()?.1.value.clone())) {
            Some(object::Value::Active(_)) => bodies.push(i),
            Some(object::Value::Husk(_)) => husks.push(i),
            other => panic!("n{i} holds {other:?}"),
        }
    }
    (bodies, husks)
}

/// The owners of a key, in the order of their names, and the one of them that is the home.
fn owners(cluster: &Cluster, name: &str) -> (Vec<usize>, usize) {
    let list = cluster.list(name);
    let mut owners = list[..3].to_vec();
    owners.sort_unstable();
    (owners, list[0])
}

/// A key whose home is the last of its owners, or is not.
fn name_of(cluster: &Cluster, is_last: bool) -> String {
    let names = (0..).map(|i| format!("object{i}"));
    let fits = |name: &String| {
        let (owners, home) = owners(cluster, name);
        (home == owners[2]) == is_last
    };
    names.into_iter().find(fits).expect("there is one")
}

/// Source: DESIGN §5, "the store then replicates it nowhere else".
#[test]
fn an_object_is_where_it_chooses_and_nowhere_else() {
    for is_last in [true, false] {
        let mut cluster = cluster(5);
        let name = &name_of(&cluster, is_last);
        let (owners, _) = owners(&cluster, name);
        create(&mut cluster, 0, name, &counting(LAST));
        for count in 1..=20 {
            assert_eq!(get(&mut cluster, count as usize % 5, name), count);
        }
        cluster.advance(5_000);
        assert_eq!(copies(&cluster, name), (vec![owners[2]], owners[..2].to_vec()));
        cluster.assert_converged(name, 3);
        let holder = Value::from(format!("n{}", owners[2]).as_str());
        assert_eq!(info(&mut cluster, 0, name, "replicas"), Value::Array(vec![holder]));
        assert_eq!(cluster.total("active_failures"), 0);
        // Hash trees find nothing to do.
        let before = cluster.total("entropy_keys");
        cluster.advance(20_000);
        assert_eq!(cluster.total("entropy_keys"), before);
        assert_eq!(copies(&cluster, name).0, [owners[2]]);
    }
}

#[test]
fn any_owner_can_be_home_and_none_runs_without_the_copy() {
    let mut cluster = cluster(5);
    let name = &name_of(&cluster, false);
    let (owners, home) = owners(&cluster, name);
    let holder = owners[2];
    let client = (0..5).find(|i| !owners.contains(i)).expect("two are no owners");
    create(&mut cluster, client, name, &counting(LAST));
    assert_eq!(get(&mut cluster, client, name), 1);
    // The home is lost: the next one asks the holder.
    cluster.crash(home, Crash::Power);
    cluster.advance(5_000);
    assert_eq!(get(&mut cluster, client, name), 2);
    cluster.restart(home);
    cluster.advance(5_000);
    assert_eq!(get(&mut cluster, client, name), 3);
    // With `quorum` durability nobody stands in: two of three owners are lost, so no call is answered.
    cluster.crash(holder, Crash::Power);
    cluster.crash(home, Crash::Power);
    cluster.advance(5_000);
    let unavailable = ask(&mut cluster, client, name, Ask::Get);
    assert!(matches!(unavailable, Err(ClientError::QuorumUnavailable { .. })), "{unavailable:?}");
    cluster.restart(home);
    cluster.restart(holder);
    cluster.set_bucket(client, DEFAULT_BUCKET, BucketProperties::default());
    cluster.advance(5_000);
    // With `async`, others keep for a lost holder what the home has in memory.
    assert_eq!(get(&mut cluster, client, name), 4);
    cluster.advance(5_000);
    cluster.crash(holder, Crash::Power);
    cluster.advance(5_000);
    assert_eq!(get(&mut cluster, client, name), 5);
    cluster.advance(2_000);
    assert_eq!(cluster.holders(name).len(), 4, "somebody stands in");
    // The next home has nothing in memory, and asks who stands in.
    cluster.advance(10_000);
    cluster.crash(home, Crash::Power);
    cluster.advance(5_000);
    assert_eq!(get(&mut cluster, client, name), 6);
    cluster.restart(home);
    cluster.advance(5_000);
    cluster.restart(holder);
    cluster.advance(10_000);
    assert_eq!(copies(&cluster, name).0, [holder]);
    cluster.assert_converged(name, 3);
    assert_eq!(get(&mut cluster, client, name), 7);
    cluster.advance(5_000);
    // Both are lost, and nobody kept it: it cannot be read or changed, but deleted.
    cluster.crash(holder, Crash::Power);
    cluster.crash(home, Crash::Power);
    cluster.advance(5_000);
    assert_eq!(ask(&mut cluster, client, name, Ask::Get), Err(ClientError::Active(ActiveError::NoCopy)));
    let expiry = Mutation::SetExpiry { at_ms: Some(u64::MAX), condition: ExpiryCondition::ALWAYS };
    assert!(run(&mut cluster, client, name, expiry).is_err(), "there is nothing that could be written anew");
    let delete = Mutation::Delete { basis: Basis::Local, condition: Condition::Always };
    run(&mut cluster, client, name, delete).expect("whoever may write can delete");
    cluster.restart(holder);
    cluster.restart(home);
    cluster.advance(10_000);
    cluster.assert_converged(name, 3);
    assert!(!cluster.get(client, name).unwrap().is_live(cluster.now(client).wall_ms));
}

#[test]
fn when_the_owners_change_it_chooses_again() {
    let mut cluster = cluster(5);
    let name = &name_of(&cluster, false);
    let (owners, home) = owners(&cluster, name);
    let holder = owners[2];
    create(&mut cluster, 0, name, &counting(LAST));
    assert_eq!(get(&mut cluster, 0, name), 1);
    // Its only holder leaves.
    cluster.change_ring(home, RingChange::Leave { node: cluster.id(holder) }).unwrap();
    cluster.advance(60_000);
    let (now, _) = self::owners(&cluster, name);
    assert!(!now.contains(&holder));
    assert_eq!(
        copies(&cluster, name),
        (vec![now[2]], now[..2].to_vec()),
        "also the former holder dropped it"
    );
    assert_eq!(get(&mut cluster, 0, name), 2);
    cluster.change_ring(home, RingChange::Join { node: RingNode::new(cluster.id(holder)) }).unwrap();
    cluster.advance(60_000);
    let (now, _) = self::owners(&cluster, name);
    assert_eq!(copies(&cluster, name).0, [now[2]]);
    assert_eq!(get(&mut cluster, 0, name), 3);
}

#[test]
fn new_code_and_put_choose_and_who_cannot_choose_is_everywhere() {
    let mut cluster = cluster(5);
    let name = &name_of(&cluster, false);
    let (owners, home) = owners(&cluster, name);
    create(&mut cluster, 0, name, &counting(LAST));
    cluster.advance(5_000);
    assert_eq!(copies(&cluster, name).0, [owners[2]]);
    let reload = |cluster: &mut Cluster, source: &str| {
        let source = Bytes::copy_from_slice(source.as_bytes());
        let mutation = Mutation::Activate { source, expiry: Expiry::Keep, keeps_state: true };
        run(cluster, 1, name, mutation).expect("the code is taken");
        cluster.advance(5_000);
    };
    for (pick, error) in [
        ("error('which one?')", "which one?"),
        ("return neighbors[1].name", "must return an array with owners of the key"),
        ("return {'ffff'}", "must return an array with owners of the key"),
        ("comet.get() return neighbors", "cannot wait"),
        ("self.count = 99 while true do end", "instructions"),
    ] {
        reload(&mut cluster, &counting(pick));
        assert_eq!(copies(&cluster, name).0, owners, "{pick}");
        let told = message(&mut cluster, name);
        assert!(told.contains(error), "{pick}: {told}");
    }
    assert_eq!(get(&mut cluster, 0, name), 1, "what a choice changed that failed is undone");
    // Without a function of its own, an object can name them in `put`.
    let putting = "function onGet()
        for _, node in ipairs(comet.lookup()) do
          if node.isOwner then self.last = node end
        end
        comet.put(self, {self.last})
        return self.count
      end";
    reload(&mut cluster, putting);
    assert_eq!(copies(&cluster, name).0, owners);
    assert_eq!(get(&mut cluster, home, name), 1);
    cluster.advance(5_000);
    let (bodies, _) = copies(&cluster, name);
    let last = cluster.list(name)[2];
    assert_eq!(bodies, [last], "the last owner of the list");
    // When that one leaves, nobody is left of those that it named.
    cluster.change_ring(home, RingChange::Leave { node: cluster.id(last) }).unwrap();
    cluster.advance(60_000);
    let (now, _) = self::owners(&cluster, name);
    assert_eq!(copies(&cluster, name), (now, Vec::new()));
    assert_eq!(get(&mut cluster, home, name), 1);
}

fn message(cluster: &mut Cluster, name: &str) -> String {
    match info(cluster, 0, name, "last_error").get("message") {
        Some(Value::Bytes(text)) => String::from_utf8_lossy(text).into_owned(),
        other => panic!("{other:?} is no message: {:?}", ask(cluster, 0, name, Ask::Info)),
    }
}

#[test]
fn a_copy_that_was_lost_comes_from_the_other_holder() {
    let mut cluster = cluster(5);
    let name = &name_of(&cluster, false);
    let (owners, home) = owners(&cluster, name);
    let pick = "table.sort(neighbors, function(a, b) return a.name < b.name end)
        return {neighbors[2], neighbors[3]}";
    create(&mut cluster, 0, name, &counting(pick));
    assert_eq!(get(&mut cluster, 0, name), 1);
    cluster.advance(5_000);
    assert_eq!(copies(&cluster, name).0, owners[1..]);
    let lost = owners[1..].iter().copied().find(|i| *i != home).expect("one is not home");
    cluster.crash(lost, Crash::Kill);
    cluster.lose_row(lost, name);
    cluster.restart(lost);
    cluster.advance(20_000);
    assert_eq!(copies(&cluster, name).0, owners[1..], "the owner that has a husk cannot mend it");
    cluster.assert_converged(name, 3);
}

/// A write that nobody acknowledged hides no version that was acknowledged.
#[test]
fn a_husk_is_left_only_where_all_holders_have_the_version() {
    let mut cluster = cluster(5);
    let name = &name_of(&cluster, false);
    let (owners, home) = owners(&cluster, name);
    let holder = owners[2];
    let other = owners.iter().copied().find(|i| *i != home && *i != holder).expect("there are three");
    let client = (0..5).find(|i| !owners.contains(i)).expect("two are no owners");
    create(&mut cluster, client, name, &counting(LAST));
    assert_eq!(get(&mut cluster, client, name), 1);
    cluster.advance(5_000);
    // The holder does not hear of the next version, and the home is lost with its disk.
    cluster.silence(home, holder);
    let call = Call { what: Ask::Get, arguments: Vec::new(), caller: None };
    cluster.ask(client, Operation::Call { key: key(name), call, quorum: Quorum::default() });
    cluster.pump();
    cluster.crash(home, Crash::Power);
    cluster.lose_row(home, name);
    cluster.heal();
    cluster.advance(10_000);
    let count = get(&mut cluster, client, name);
    assert!(count == 2 || count == 3, "what was counted is not lost, whoever has it: {count}");
    cluster.restart(home);
    cluster.advance(20_000);
    assert_eq!(copies(&cluster, name), (vec![holder], vec![home.min(other), home.max(other)]));
    cluster.assert_converged(name, 3);
}

/// Where writes are acknowledged before they are on the disk, one power failure must not take the only copy.
#[test]
fn what_others_have_husks_of_is_on_the_holders_disk() {
    let mut cluster = Cluster::with(5, |config| config.sync = SyncMode::Interval { ms: 600_000 });
    let name = &name_of(&cluster, false);
    let (owners, home) = owners(&cluster, name);
    let holder = owners[2];
    create(&mut cluster, home, name, &counting(LAST));
    cluster.advance(5_000);
    assert_eq!(copies(&cluster, name).0, [holder]);
    cluster.crash(holder, Crash::Power);
    cluster.restart(holder);
    cluster.advance(5_000);
    assert_eq!(get(&mut cluster, home, name), 1);
}

#[test]
fn a_handler_that_puts_what_cannot_be_kept_is_answered() {
    let mut cluster = cluster(5);
    let source = "function hit()
        self.bad = function() end
        comet.put(self, {comet.lookup()[1]})
        return 'kept'
      end
      function onGet() return 7 end";
    create(&mut cluster, 0, "object", source);
    let error = ask(&mut cluster, 1, "object", Ask::Function("hit".into())).unwrap_err();
    assert!(error.to_string().contains("cannot be kept"), "{error}");
    cluster.advance(200);
    assert_eq!(get(&mut cluster, 2, "object"), 7);
}
