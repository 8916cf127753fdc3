//! Running scans: segment by segment along the ring, each from as many replicas as a get would ask.

use super::{Node, Origin, Output, Task, Work};
use crate::client::{Action, ClientError, Reply, Scan, SCAN_LIMIT_MAX};
use crate::message::{Control, Listed, Message, TaskId};
use crate::scan::{Doubts, Listing};
use crate::types::{NodeId, Now, Partition, Position};

impl Node {
    pub(super) fn start_scan(
        &mut self,
        now: Now,
        origin: Origin,
        mut scan: Scan,
        deadline_us: u64,
        out: &mut Vec<Output>,
    ) {
        scan.limit = scan.limit.clamp(1, SCAN_LIMIT_MAX);
        let work = Work::Scan(Listing::new(scan, now, self.config.tuning.visited_rows));
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.tasks.wake_at(deadline_us, id);
        self.advance_scan(now, id, out);
    }

    fn listing(&mut self, id: TaskId) -> Option<&mut Listing> {
        match self.tasks.get_mut(id) {
            Some(Task { work: Work::Scan(listing), .. }) => Some(listing),
            _ => None,
        }
    }

    /// Asks for the next segment, or answers with the page.
    pub(super) fn advance_scan(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        while let Some(listing) = self.listing(id) {
            let Some(from) = listing.next(now) else {
                return self.finish_scan(id, None, out);
            };
            let scan = listing.scan.clone();
            let (to, nodes) = match self.segment(&scan, from) {
                Ok(segment) => segment,
                Err(error) => return self.finish_scan(id, Some(error), out),
            };
            let Some(listing) = self.listing(id) else { return };
            let (part, scan) = listing.start_segment(now, to, &nodes);
            let me = self.membership.me;
            for node in nodes.iter().copied().filter(|&node| node != me) {
                self.detector.sent(node, now.mono_us);
                let ask = Control::ScanRange { task: id, part, scan: scan.clone(), stamp: self.stamp() };
                self.send(now, node, Message::Control(ask), out);
            }
            if !nodes.contains(&me) {
                return;
            }
            let listed = self.list_rows(now, &scan);
            if !self.take_rows(now, id, me, part, listed, out) {
                return;
            }
        }
    }

    /// Takes in an answer. True if the listing goes on with the next segment.
    fn take_rows(
        &mut self,
        now: Now,
        id: TaskId,
        node: NodeId,
        part: u32,
        listed: Listed,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(listing) = self.listing(id) else { return false };
        if !listing.answer(node, part, listed) {
            return false;
        }
        match listing.finish_part(now) {
            Some((part, missing)) => self.ask_for_keys(now, id, part, missing, out),
            None => true,
        }
    }

    /// Asks replicas for keys that they did not list. True if this node was the only one, and the segment is done.
    fn ask_for_keys(
        &mut self,
        now: Now,
        id: TaskId,
        part: u32,
        missing: Doubts,
        out: &mut Vec<Output>,
    ) -> bool {
        let me = self.membership.me;
        let mut is_complete = false;
        for (node, keys) in missing {
            self.metrics.scan_doubts += keys.len() as u64;
            if node == me {
                let listed = self.list_keys(&keys);
                let Some(listing) = self.listing(id) else { return false };
                is_complete = listing.answer(me, part, listed);
                continue;
            }
            self.detector.sent(node, now.mono_us);
            let ask = Control::ScanKeys { task: id, part, keys, stamp: self.stamp() };
            self.send(now, node, Message::Control(ask), out);
        }
        if is_complete {
            if let Some(listing) = self.listing(id) {
                // What was doubtful is not asked about again.
                listing.finish_part(now);
            }
        }
        is_complete
    }

    /// The replicas to ask for the range that starts at `from`, and how far the same ones serve. Errors: too few can be
    /// reached.
    fn segment(&self, scan: &Scan, from: Position) -> Result<(Position, Vec<NodeId>), ClientError> {
        let ring = self.placed_ring();
        let replication = ring.replication(&scan.bucket);
        let n = (replication.n as usize).min(ring.nodes().len());
        let r = (replication.r as usize).min(n);
        // Buckets may have fewer copies than usual, so as many are asked as can answer.
        let asked = if scan.is_of_buckets() { n } else { r };
        let choose = |partition| {
            let mut nodes: Vec<NodeId> = ring.preference_list(partition)[..n].to_vec();
            nodes.retain(|&node| self.can_answer(node));
            nodes.sort_by_key(|&node| (node != self.id(), self.health(node), node));
            nodes.truncate(asked);
            nodes
        };
        let mut partition = ring.partition_of(from);
        let nodes = choose(partition);
        if nodes.len() < r {
            return Err(ClientError::TooFewReachable { reachable: nodes.len() as u8, needed: r as u8 });
        }
        let last = ring.partition_of(scan.to);
        while partition < last && choose(Partition(partition.0 + 1)) == nodes {
            partition.0 += 1;
        }
        let to = ring.end(partition).min(scan.to);
        Ok((to, nodes))
    }

    pub(super) fn scan_rows(
        &mut self,
        now: Now,
        from: NodeId,
        id: TaskId,
        part: u32,
        listed: Listed,
        out: &mut Vec<Output>,
    ) {
        match self.listing(id) {
            None => self.metrics.late_messages += 1,
            Some(listing) if !listing.waits_for(from) => {}
            Some(_) => {
                if self.take_rows(now, id, from, part, listed, out) {
                    self.advance_scan(now, id, out);
                }
            }
        }
    }

    pub(super) fn fail_scan(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let started_us = self.tasks.get_mut(id).map_or(now.mono_us, |task| task.started_us);
        let Some(listing) = self.listing(id) else { return };
        let (answered, needed) = listing.answered();
        let error = ClientError::QuorumUnavailable {
            action: Action::Scan,
            answered,
            needed,
            replicas: needed,
            waited_ms: (now.mono_us - started_us) / 1000,
        };
        self.finish_scan(id, Some(error), out);
    }

    /// Answers with the page; with the error only if nothing is done that could be answered.
    fn finish_scan(&mut self, id: TaskId, error: Option<ClientError>, out: &mut Vec<Output>) {
        if self.listing(id).is_none() {
            return;
        }
        let Some(Task { work: Work::Scan(listing), origin, .. }) = self.tasks.remove(id) else { return };
        let result = match error {
            Some(error) if !listing.has_progress() => Err(error),
            _ => Ok(Reply::Page(listing.into_page())),
        };
        self.metrics.scans += result.is_ok() as u64;
        self.finish(origin, result, out);
    }
}
