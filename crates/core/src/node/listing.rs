//! Running scans: segment by segment along the ring, each from as many replicas as a get would ask.

use super::{Node, Origin, Output, Task, Work};
use crate::client::{Action, ClientError, Page, Reply, Scan, SCAN_LIMIT_MAX};
use crate::message::{Control, Listed, Message, TaskId};
use crate::scan::Listing;
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
        let work = Work::Scan(Listing::new(scan));
        let id = self.tasks.insert(Task { origin, started_us: now.mono_us, deadline_us, work });
        self.tasks.wake_at(deadline_us, id);
        self.advance_scan(now, id, out);
    }

    /// Asks for the next segment, or answers with the page.
    pub(super) fn advance_scan(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        loop {
            let Some(Task { work: Work::Scan(listing), .. }) = self.tasks.get_mut(id) else {
                return;
            };
            let Some(from) = listing.next() else { break };
            let scan = listing.scan.clone();
            let (to, nodes) = match self.segment(&scan, from) {
                Ok(segment) => segment,
                Err(error) => {
                    let task = self.tasks.remove(id).expect("the listing was just found");
                    return self.finish(task.origin, Err(error), out);
                }
            };
            let Some(Task { work: Work::Scan(listing), .. }) = self.tasks.get_mut(id) else {
                return;
            };
            let part = listing.start_segment(to, &nodes);
            let me = self.membership.me;
            for node in nodes.iter().copied().filter(|&node| node != me) {
                self.detector.sent(node, now.mono_us);
                let message = Message::Control(Control::ScanRange { task: id, scan: part.clone() });
                self.send(now, node, message, out);
            }
            if !nodes.contains(&me) {
                return;
            }
            let listed = self.list_rows(now, &part);
            let Some(Task { work: Work::Scan(listing), .. }) = self.tasks.get_mut(id) else {
                return;
            };
            if !listing.answer(me, listed) {
                return;
            }
            listing.finish_segment(now.wall_ms);
        }
        let Some(Task { work: Work::Scan(listing), origin, .. }) = self.tasks.remove(id) else {
            return;
        };
        self.metrics.scans += 1;
        let page: Page = listing.into_page();
        self.finish(origin, Ok(Reply::Page(page)), out);
    }

    /// The replicas to ask for the range that starts at `from`, and how far the same ones serve. Errors: too few can be
    /// reached.
    fn segment(&self, scan: &Scan, from: Position) -> Result<(Position, Vec<NodeId>), ClientError> {
        let ring = self.placed_ring();
        let properties = self.buckets().properties(&scan.bucket);
        let n = (properties.n as usize).min(ring.nodes().len());
        let r = (properties.r as usize).min(n);
        let choose = |partition| {
            let mut nodes: Vec<NodeId> = ring.preference_list(partition)[..n].to_vec();
            nodes.retain(|&node| self.can_answer(node));
            nodes.sort_by_key(|&node| (node != self.id(), self.health(node), node));
            nodes.truncate(r);
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
        listed: Listed,
        out: &mut Vec<Output>,
    ) {
        let Some(Task { work: Work::Scan(listing), .. }) = self.tasks.get_mut(id) else {
            self.metrics.late_messages += 1;
            return;
        };
        if listing.waits_for(from) && listing.answer(from, listed) {
            listing.finish_segment(now.wall_ms);
            self.advance_scan(now, id, out);
        }
    }

    pub(super) fn fail_scan(&mut self, now: Now, id: TaskId, out: &mut Vec<Output>) {
        let Some(task) = self.tasks.remove(id) else { return };
        let Work::Scan(listing) = task.work else { return };
        let (answered, needed) = listing.answered();
        let error = ClientError::QuorumUnavailable {
            action: Action::Scan,
            answered,
            needed,
            replicas: needed,
            waited_ms: (now.mono_us - task.started_us) / 1000,
        };
        self.finish(task.origin, Err(error), out);
    }
}
