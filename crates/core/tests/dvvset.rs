//! The examples of the dotted version vector papers, told with objects.
//!
//! Source: Preguiça, Baquero, Almeida, Fonte and Gonçalves, "Dotted version vectors: logical clocks for optimistic
//! replication", 2012; Almeida et al., "Scalable and accurate causality tracking for eventually consistent stores",
//! 2014.

use bytes::Bytes;
use oort_core::causality::{Dot, VersionVector};
use oort_core::mutation::{Basis, Circumstances, Condition, Expiry, Mutation};
use oort_core::object::Object;
use oort_core::types::{ActorId, Rng};

const GIVEN: Circumstances = Circumstances { wall_ms: 1_000, value_bytes_max: 1 << 20, default_ttl_ms: None };

/// One server that holds one key, and gives out dots.
struct Server {
    object: Object,
    actor: ActorId,
    clock: u64,
}

impl Server {
    fn new(actor: u64) -> Server {
        Server { object: Object::default(), actor: ActorId(actor), clock: 0 }
    }

    fn dot(&mut self) -> Dot {
        self.clock = self.clock.max(self.object.newest_reading()) + 17;
        Dot { counter: self.clock, actor: self.actor }
    }

    fn store(&mut self, value: &str, basis: Basis) {
        let (headers, expiry, condition) = (Vec::new(), Expiry::Default, Condition::Always);
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.apply(Mutation::Store { value, headers, basis, expiry, condition });
    }

    fn put(&mut self, value: &str, seen: &VersionVector) {
        self.store(value, Basis::Seen(seen.clone()));
    }

    fn apply(&mut self, mutation: Mutation) {
        let dot = self.dot();
        mutation.apply(&mut self.object, dot, GIVEN).expect("the write is legal");
    }

    fn context(&self) -> VersionVector {
        self.object.context().clone()
    }

    fn values(&self) -> Vec<String> {
        let siblings = self.object.siblings(GIVEN.wall_ms);
        let mut values: Vec<_> =
            siblings.iter().map(|s| String::from_utf8_lossy(&s.value).into_owned()).collect();
        values.sort();
        values
    }
}

const BLIND: fn() -> VersionVector = VersionVector::default;

#[test]
fn two_clients_interleaving_through_one_server_keep_exactly_the_concurrent_values() {
    // Peter and Mary write without having read: both stay. Peter, who has read only his own, then overwrites just
    // that; Mary, who has read both, overwrites both.
    let mut server = Server::new(1);
    server.put("peter 1", &BLIND());
    let peter_read = server.context();
    server.put("mary 1", &BLIND());
    let mary_read = server.context();
    assert_eq!(server.values(), ["mary 1", "peter 1"]);
    server.put("peter 2", &peter_read);
    assert_eq!(server.values(), ["mary 1", "peter 2"], "a version vector with one entry would lose mary 1");
    server.put("mary 2", &mary_read);
    assert_eq!(server.values(), ["mary 2", "peter 2"]);
    server.put("all", &server.context());
    assert_eq!(server.values(), ["all"]);
}

#[test]
fn two_servers_agree_on_what_was_concurrent() {
    let (mut a, mut b) = (Server::new(1), Server::new(2));
    a.put("v", &BLIND());
    b.object.merge(&a.object);
    let read = b.context();
    a.put("w", &read);
    b.put("x", &read);
    let (at_a, at_b) = (a.object.clone(), b.object.clone());
    a.object.merge(&at_b);
    b.object.merge(&at_a);
    assert_eq!(a.values(), ["w", "x"]);
    assert_eq!(a.object.encode(), b.object.encode());
    b.put("y", &a.context());
    a.object.merge(&b.object);
    assert_eq!(a.values(), ["y"]);
}

#[test]
fn interleaved_writes_of_many_clients_do_not_make_siblings_explode() {
    // Each client writes with what it got from its own last write, always one step stale: the case in which vectors
    // with an entry per server grow a sibling with every write. At most one value per client is truly concurrent.
    for clients in [2, 3, 8] {
        let mut servers = [Server::new(1), Server::new(2), Server::new(3)];
        let mut contexts = vec![VersionVector::default(); clients];
        let mut rng = Rng::new(clients as u64);
        for step in 0..300 {
            let client = rng.below(clients as u64) as usize;
            let at = rng.below(3) as usize;
            servers[at].put(&format!("{client}"), &contexts[client]);
            contexts[client] = servers[at].context();
            let (from, to) = (rng.below(3) as usize, rng.below(3) as usize);
            let given = servers[from].object.clone();
            servers[to].object.merge(&given);
            for server in &servers {
                let siblings = server.object.0.values().len();
                assert!(siblings <= clients, "step {step}: {siblings} siblings of {clients} clients");
                assert!(server.object.context().len() <= 3, "one entry per server");
            }
        }
    }
}

#[test]
fn writes_from_one_common_reading_are_siblings_of_each_other_only() {
    let mut server = Server::new(1);
    for round in 0..100 {
        let read = server.context();
        for value in ["x", "y", "z"] {
            server.put(value, &read);
        }
        assert_eq!(server.values(), ["x", "y", "z"], "round {round}");
    }
}

#[test]
fn blind_redis_stores_of_a_lone_server_never_make_siblings() {
    let mut server = Server::new(1);
    for i in 0..50 {
        server.store(&i.to_string(), Basis::Local);
        assert_eq!(server.values(), [i.to_string()]);
    }
}

#[test]
fn a_write_with_a_context_replaces_exactly_what_the_context_covers() {
    let (mut a, mut b) = (Server::new(1), Server::new(2));
    a.put("a1", &BLIND());
    a.put("a2", &BLIND());
    b.put("b1", &BLIND());
    let seen_of_b = b.context();
    b.put("b2", &BLIND());
    a.object.merge(&b.object);
    assert_eq!(a.values(), ["a1", "a2", "b1", "b2"]);
    a.put("c", &seen_of_b);
    assert_eq!(a.values(), ["a1", "a2", "b2", "c"]);
}

#[test]
fn a_delete_with_a_context_keeps_what_it_has_not_seen() {
    let (mut a, mut b) = (Server::new(1), Server::new(2));
    a.put("seen", &BLIND());
    let read = a.context();
    b.object.merge(&a.object);
    b.put("unseen", &read);
    a.apply(Mutation::Delete { basis: Basis::Seen(read), condition: Condition::Always });
    assert!(a.values().is_empty());
    a.object.merge(&b.object);
    assert_eq!(a.values(), ["unseen"]);
    // Whoever has read the delete too and writes, ends the matter; the deleted value does not come back.
    b.object.merge(&a.object);
    b.put("last", &b.context());
    a.object.merge(&b.object);
    assert_eq!(a.values(), ["last"]);
    assert_eq!(a.object.0.values().len(), 1, "the tombstone is superseded");
}
