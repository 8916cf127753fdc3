//! Listings page by page: the clients' under load, and those of the end, which must name exactly the live keys.

use std::collections::BTreeSet;

use bytes::Bytes;
use oort_core::client::{Operation, Page, RequestId, Scan};
use oort_core::types::{ObjectKey, Position};

use super::Cluster;
use crate::history::Walk;
use crate::trace::EPOCH_MS;
use crate::workload::{Planned, CROWDED_KEYS};

/// More pages than any listing needs: one that never ends is caught by it.
const PAGES_MAX: usize = 1_000;
/// No bucket of the workload has more replicas.
const REPLICAS_MAX: usize = 5;
/// Two wall clocks differ by less than this, in milliseconds: nodes may disagree on what expires within it.
const SKEW_MS_MAX: u64 = 60_000;

impl Cluster {
    /// Takes a page of a listing.
    pub(super) fn answered_page(&mut self, id: RequestId, page: Page) {
        self.trace.mix_number(page.count);
        self.check_page(id, &page);
        self.history.operation(id).page = Some(page);
    }

    /// A page names keys of its part of the ring, in order and each once, and ends where the next one begins.
    fn check_page(&mut self, id: RequestId, page: &Page) {
        let Operation::Scan(scan) = self.history.operation(id).operation.clone() else { return };
        let mut faults = Vec::new();
        if page.next.is_some_and(|next| next <= scan.from || next != next.cursor_start()) {
            faults.push(format!("leads from {:?} to {:?}", scan.from, page.next));
        }
        if !scan.count_only && page.count != page.keys.len() as u64 {
            faults.push(format!("counts {} keys and names {}", page.count, page.keys.len()));
        }
        // Each replica lists as many keys as are asked for, and those that share a cursor with the last.
        if page.keys.len() > scan.limit as usize * REPLICAS_MAX + CROWDED_KEYS.len() {
            faults.push(format!("names {} keys, and {} were asked for", page.keys.len(), scan.limit));
        }
        if !scan.is_of_buckets() {
            let keys = page.keys.iter().map(|key| ObjectKey::new(&scan.bucket, key));
            let keys: Vec<ObjectKey> = keys.map(|key| key.expect("a listing names keys")).collect();
            if keys.windows(2).any(|pair| pair[0] >= pair[1]) {
                faults.push("names keys out of order".into());
            }
            for key in &keys {
                let position = key.position();
                if position < scan.from || page.next.is_some_and(|next| position >= next) {
                    faults.push(format!("names {key:?}, which is no part of it"));
                }
                if self.history.keys.get(key).is_none_or(|past| past.births.is_empty()) {
                    faults.push(format!("names {key:?}, which was never stored"));
                }
            }
        }
        for fault in faults {
            self.history.blame("listing", None, format!("the page o{id} {fault}"));
        }
    }

    /// Asks some node for the next page of a client's listing. False if `id` was none, or the last page.
    pub(super) fn turn_page(&mut self, client: usize, id: RequestId) -> bool {
        let record = self.history.operation(id);
        let (Operation::Scan(scan), page) = (record.operation.clone(), record.page.as_ref()) else {
            return false;
        };
        let next = page.and_then(|page| page.next);
        if scan.from == Position(0) && !scan.count_only {
            self.history.walks.push(Walk { bucket: scan.bucket.to_vec(), pages: vec![id] });
        }
        let Some(from) = next else { return false };
        let machine = self.rng.below(self.machines.len() as u64) as usize;
        let operation = Operation::Scan(Scan { from, ..scan });
        let planned = Planned { machine, operation, timeout_ms: None, seen: Vec::new() };
        let next_id = self.submit(client, planned);
        let walk = self.history.walks.iter_mut().rev().find(|walk| walk.pages.last() == Some(&id));
        if let Some(walk) = walk {
            walk.pages.push(next_id);
        }
        true
    }

    /// Lists and counts every bucket, each page at some node, and compares with what the replicas hold.
    pub(super) fn look_at_listings(&mut self) {
        self.look_at_names();
        let buckets: Vec<Bytes> = self.workload.buckets.iter().map(|bucket| bucket.name.clone()).collect();
        for bucket in buckets {
            let (live, open) = self.live_keys(&bucket);
            for count_only in [false, true] {
                match self.list(&bucket, count_only) {
                    Ok((keys, count)) => {
                        self.compare_listing(&bucket, (keys, count), count_only, &live, &open)
                    }
                    Err(detail) => self.history.blame("final-read", None, detail),
                }
            }
        }
    }

    /// The names of the buckets are listed once for each live key.
    fn look_at_names(&mut self) {
        let names: BTreeSet<Bytes> =
            self.all_keys().iter().map(|key| Bytes::copy_from_slice(key.bucket())).collect();
        let mut live = Vec::new();
        for name in names {
            let (keys, open) = self.live_keys(&name);
            if !open.is_empty() {
                return;
            }
            live.extend(keys.iter().map(|_| name.clone()));
        }
        match self.list(&Bytes::new(), false) {
            Ok((mut listed, _)) => {
                listed.sort();
                if listed != live {
                    let detail = format!("the names of buckets are {listed:?}, and should be {live:?}");
                    self.history.blame("final-read", None, detail);
                }
            }
            Err(detail) => self.history.blame("final-read", None, detail),
        }
    }

    fn compare_listing(
        &mut self,
        bucket: &Bytes,
        (keys, count): (Vec<Bytes>, u64),
        count_only: bool,
        live: &BTreeSet<Bytes>,
        open: &BTreeSet<Bytes>,
    ) {
        let name = bucket.escape_ascii().to_string();
        if count_only {
            if open.is_empty() && count != live.len() as u64 {
                let detail = format!("{count} keys were counted in {name}; the replicas hold {}", live.len());
                self.history.blame("final-read", None, detail);
            }
            return;
        }
        let listed: BTreeSet<Bytes> = keys.iter().cloned().collect();
        if listed.len() < keys.len() {
            let detail = format!("a listing of {name} names {} keys twice", keys.len() - listed.len());
            self.history.blame("final-read", None, detail);
        }
        for key in listed.symmetric_difference(live).filter(|key| !open.contains(*key)) {
            let is_listed = listed.contains(key);
            let key = ObjectKey::new(bucket, key).expect("a listing names keys");
            let detail = format!("a listing of {name}: listed {is_listed}, live {}", !is_listed);
            self.history.blame("final-read", Some(&key), detail);
        }
    }

    /// The live keys of a bucket on its replicas, and those of which the nodes' clocks may say otherwise.
    fn live_keys(&self, bucket: &Bytes) -> (BTreeSet<Bytes>, BTreeSet<Bytes>) {
        let wall_ms = EPOCH_MS + self.now_us / 1000;
        let (mut live, mut open) = (BTreeSet::new(), BTreeSet::new());
        for key in self.all_keys().into_iter().filter(|key| key.bucket() == &bucket[..]) {
            let Some(object) = self.held(&key) else { continue };
            let is_live = object.is_live(wall_ms - SKEW_MS_MAX);
            if is_live != object.is_live(wall_ms + SKEW_MS_MAX) {
                open.insert(key.key_bytes());
            } else if is_live {
                live.insert(key.key_bytes());
            }
        }
        (live, open)
    }

    /// Walks through a bucket. Errors: a page failed, or there is no last one.
    fn list(&mut self, bucket: &Bytes, count_only: bool) -> Result<(Vec<Bytes>, u64), String> {
        let (mut keys, mut count, mut from) = (Vec::new(), 0, Position(0));
        for _ in 0..PAGES_MAX {
            let machine = self.rng.below(self.machines.len() as u64) as usize;
            let limit = 1 + self.rng.below(4) as u32;
            let scan = Scan { bucket: bucket.clone(), from, to: Position(u64::MAX), limit, count_only };
            let id = self.operator(machine, Operation::Scan(scan));
            while self.unanswered > 0 && self.advance() {}
            let record = self.history.operation(id);
            let Some(page) = record.page.take() else {
                return Err(format!("a page of a listing failed: {:?} {}", record.outcome, record.error));
            };
            keys.extend(page.keys);
            count += page.count;
            match page.next {
                Some(next) if next > from => from = next,
                Some(next) => return Err(format!("the page from {from:?} leads back to {next:?}")),
                None => return Ok((keys, count)),
            }
        }
        Err(format!("a listing of few keys has more than {PAGES_MAX} pages"))
    }
}
