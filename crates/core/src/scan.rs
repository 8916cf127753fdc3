//! Listing a range of the ring from several replicas: which part is complete, and which keys in it are live.
//!
//! The range is walked in segments that one set of replicas holds. Each replica sends rows with their causality but
//! without values; merging those tells exactly which keys exist, as a get would.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::client::{Page, Scan};
use crate::object::Object;
use crate::types::{NodeId, ObjectKey, Position};

/// The most segments one page walks through before it is returned, however few keys were found.
const SEGMENTS_MAX: u32 = 256;

#[derive(Clone, Debug)]
struct Answer {
    node: NodeId,
    rows: Option<Vec<(ObjectKey, Bytes)>>,
    done_to: u64,
    count: u64,
}

/// A page in the making.
#[derive(Clone, Debug)]
pub struct Listing {
    pub scan: Scan,
    /// The first position not yet listed; `None` when the end was passed.
    from: Option<u64>,
    segment_to: u64,
    answers: Vec<Answer>,
    segments: u32,
    page: Page,
}

impl Listing {
    pub fn new(scan: Scan) -> Listing {
        let from = (scan.from <= scan.to).then_some(scan.from.0);
        Listing { scan, from, segment_to: 0, answers: Vec::new(), segments: 0, page: Page::default() }
    }

    /// The first position not yet listed; `None` when the page is complete.
    pub fn next(&self) -> Option<Position> {
        let is_full = self.page.count >= self.scan.limit as u64 || self.segments >= SEGMENTS_MAX;
        if is_full {
            None
        } else {
            self.from.map(Position)
        }
    }

    /// Starts the segment from [`Listing::next`] to `to`, which `nodes` are asked for. Returns what to ask them.
    pub fn start_segment(&mut self, to: Position, nodes: &[NodeId]) -> Scan {
        self.segment_to = to.0;
        self.segments += 1;
        self.answers = nodes.iter().map(|&node| Answer { node, rows: None, done_to: 0, count: 0 }).collect();
        let limit = self.scan.limit.saturating_sub(self.page.count as u32).max(1);
        Scan { from: Position(self.from.unwrap_or(u64::MAX)), to, limit, ..self.scan.clone() }
    }

    /// Takes in a replica's rows. True if the segment is complete.
    pub fn answer(&mut self, node: NodeId, rows: Vec<(ObjectKey, Bytes)>, count: u64, done_to: u64) -> bool {
        // One that ends before this segment was meant for an earlier one, and comes late or twice.
        let is_late = self.from.is_none_or(|from| done_to < from);
        if let Some(answer) = self.answers.iter_mut().find(|a| a.node == node && a.rows.is_none() && !is_late)
        {
            (answer.rows, answer.done_to, answer.count) = (Some(rows), done_to.min(self.segment_to), count);
        }
        self.answers.iter().all(|answer| answer.rows.is_some())
    }

    /// True if `node`'s rows are still missing.
    pub fn waits_for(&self, node: NodeId) -> bool {
        self.answers.iter().any(|answer| answer.node == node && answer.rows.is_none())
    }

    /// Number of replicas that answered the current segment, and of those asked.
    pub fn answered(&self) -> (u8, u8) {
        let answered = self.answers.iter().filter(|answer| answer.rows.is_some()).count();
        (answered as u8, self.answers.len() as u8)
    }

    /// Merges the complete segment into the page and moves on.
    pub fn finish_segment(&mut self, wall_ms: u64) {
        let from = self.from.unwrap_or(u64::MAX);
        let done_to = self.answers.iter().map(|answer| answer.done_to).min().unwrap_or(self.segment_to);
        let mut rows: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for answer in std::mem::take(&mut self.answers) {
            if self.scan.count_only {
                self.page.count += answer.count;
            }
            for (key, skeleton) in answer.rows.unwrap_or_default() {
                let is_inside = from <= key.position().0 && key.position().0 <= done_to;
                if !is_inside || key.bucket() != &self.scan.bucket[..] {
                    continue;
                }
                if let Ok(object) = Object::decode(&skeleton) {
                    rows.entry(key).or_default().merge(&object);
                }
            }
        }
        for (key, object) in rows {
            if object.is_live(wall_ms) {
                self.page.keys.push(key.key_bytes());
                self.page.count += 1;
            }
        }
        self.from = done_to.checked_add(1).filter(|next| *next <= self.scan.to.0);
    }

    /// The page as it stands.
    pub fn into_page(mut self) -> Page {
        self.page.next = self.from.map(Position);
        self.page
    }
}
