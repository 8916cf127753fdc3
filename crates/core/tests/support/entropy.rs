//! Two replicas of many keys that differ in a few: what finding and mending these costs.

use std::collections::BTreeSet;

use oort_core::message::{Control, Message};
use oort_core::store::{Durability, Space, Store};
use oort_core::types::ObjectKey;

use super::{key, Cluster};

/// What it took. Bytes are those of messages, without frames; gossip is left out.
#[derive(Debug)]
pub struct Report {
    /// Keys and objects of one replica.
    pub data_bytes: usize,
    /// Sums, and lists of rows with their hashes.
    pub compared_bytes: usize,
    /// Objects read and written for repairs.
    pub repaired_bytes: usize,
    /// Keys that were written for a repair, or asked for.
    pub mended: usize,
    pub differing_at_end: usize,
    /// Virtual time until both were the same, in milliseconds.
    pub took_ms: u64,
    /// Once both were the same.
    pub quiet_bytes_per_comparison: usize,
}

impl Report {
    pub fn sent_bytes(&self) -> usize {
        self.compared_bytes + self.repaired_bytes
    }
}

/// Gives two nodes the same `keys` keys, except that each lacks half of `differing` of them, and lets them compare.
pub fn differ(keys: usize, differing: usize) -> Report {
    let mut cluster = Cluster::with(2, |config| (config.entropy_ms, config.partitions) = (5, 1024));
    cluster.put(0, "pattern", &"v".repeat(100)).unwrap();
    let object = cluster.machines[0].disk.lock().get(Space::Data, key("pattern").row()).unwrap().unwrap();
    (0..2).for_each(|i| cluster.kill(i));
    let mut data_bytes = 0;
    for i in 0..keys {
        let row = ObjectKey::new(b"default", format!("key{i:09}").as_bytes()).unwrap().row().clone();
        data_bytes += row.len() + object.len();
        let is_missing = i % (keys / differing) == 0;
        let lacking = is_missing.then_some(i / (keys / differing) % 2);
        for machine in (0..2).filter(|machine| lacking != Some(*machine)) {
            let mut disk = cluster.machines[machine].disk.lock();
            disk.apply((Space::Data, row.clone(), Some(object.clone())));
        }
    }
    for machine in &cluster.machines {
        machine.disk.lock().sync(Durability::Durable).unwrap();
    }
    cluster.log.clear();
    (0..2).for_each(|i| cluster.restart(i));
    let rows = |cluster: &Cluster, i: usize| cluster.machines[i].disk.lock().rows(Space::Data).count();
    let mut took_ms = 0;
    while (rows(&cluster, 0), rows(&cluster, 1)) != (keys + 1, keys + 1) && took_ms < 600_000 {
        cluster.advance(100);
        took_ms += 100;
    }
    let differing_at_end = (0..2).map(|i| keys + 1 - rows(&cluster, i)).sum();
    let (compared_bytes, repaired_bytes) = bytes(&cluster);
    let mended: BTreeSet<ObjectKey> =
        cluster.log.iter().filter_map(|(_, _, _, message)| written(message)).collect();
    cluster.advance(1_000);
    cluster.log.clear();
    let before = cluster.total("entropy_rounds");
    cluster.advance(5_000);
    let comparisons = (cluster.total("entropy_rounds") - before) as usize;
    let quiet_bytes_per_comparison = bytes(&cluster).0 / comparisons;
    Report {
        data_bytes,
        compared_bytes,
        repaired_bytes,
        mended: mended.len(),
        differing_at_end,
        took_ms,
        quiet_bytes_per_comparison,
    }
}

/// The key that a message of a repair is about, if it names one.
fn written(message: &Message) -> Option<ObjectKey> {
    match message {
        Message::Write { key, .. } | Message::Read { key, .. } => Some(key.clone()),
        _ => None,
    }
}

/// Bytes of comparisons, and of repairs.
fn bytes(cluster: &Cluster) -> (usize, usize) {
    let (mut compared, mut repaired) = (0, 0);
    for (_, _, _, message) in &cluster.log {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        match message {
            Message::Control(Control::Gossip(_)) => {}
            Message::Control(_) => compared += encoded.len(),
            _ => repaired += encoded.len(),
        }
    }
    (compared, repaired)
}
