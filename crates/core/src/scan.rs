//! Listing a range of the ring from several replicas: which part is complete, and which keys in it are live.
//!
//! The range is walked in segments that one set of replicas holds. Each replica sends rows with their causality but
//! without values; merging those tells exactly which keys exist, as a get would.
//!
//! Counting needs no keys while the replicas hold the same: each sends how many it found and a hash of them. Where
//! these differ, the rows are asked for and merged after all.

use std::collections::BTreeMap;

use crate::client::{Page, Scan};
use crate::message::Listed;
use crate::object::Object;
use crate::types::{NodeId, ObjectKey, Position};

/// The most segments one page walks through before it is returned, however few keys were found.
const SEGMENTS_MAX: u32 = 256;

#[derive(Clone, Debug)]
struct Answer {
    node: NodeId,
    listed: Option<Listed>,
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
    /// The replicas do not hold the same in this segment, so their counts say nothing.
    must_merge: bool,
    page: Page,
}

impl Listing {
    pub fn new(scan: Scan) -> Listing {
        let from = (scan.from <= scan.to).then_some(scan.from.0);
        let (answers, page) = (Vec::new(), Page::default());
        Listing { scan, from, segment_to: 0, answers, segments: 0, must_merge: false, page }
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
        self.answers = nodes.iter().map(|&node| Answer { node, listed: None }).collect();
        let limit = match self.scan.count_only {
            // No key leaves the coordinator: only the replicas' own limit counts.
            true => u32::MAX,
            false => self.scan.limit.saturating_sub(self.page.count as u32).max(1),
        };
        let count_only = self.is_counting();
        let from = Position(self.from.unwrap_or(u64::MAX));
        Scan { from, to, limit, count_only, ..self.scan.clone() }
    }

    /// Takes in a replica's rows. True if the segment is complete.
    pub fn answer(&mut self, node: NodeId, listed: Listed) -> bool {
        let is_other = if self.is_counting() { !listed.rows.is_empty() } else { listed.hash != 0 };
        // One that ends before this segment, or answers another question, comes late or twice.
        let is_late = is_other || self.from.is_none_or(|from| listed.done_to < from);
        if let Some(answer) =
            self.answers.iter_mut().find(|a| a.node == node && a.listed.is_none() && !is_late)
        {
            let done_to = listed.done_to.min(self.segment_to);
            answer.listed = Some(Listed { done_to, ..listed });
        }
        self.answers.iter().all(|answer| answer.listed.is_some())
    }

    /// True if replicas are asked for no more than how many keys they hold.
    fn is_counting(&self) -> bool {
        self.scan.count_only && !self.must_merge
    }

    /// True if `node`'s rows are still missing.
    pub fn waits_for(&self, node: NodeId) -> bool {
        self.answers.iter().any(|answer| answer.node == node && answer.listed.is_none())
    }

    /// Number of replicas that answered the current segment, and of those asked.
    pub fn answered(&self) -> (u8, u8) {
        let answered = self.answers.iter().filter(|answer| answer.listed.is_some()).count();
        (answered as u8, self.answers.len() as u8)
    }

    /// Merges the complete segment into the page and moves on; or stays, to ask for the rows of replicas whose counts
    /// disagree.
    pub fn finish_segment(&mut self, wall_ms: u64) {
        let from = self.from.unwrap_or(u64::MAX);
        let listed: Vec<Listed> =
            std::mem::take(&mut self.answers).into_iter().filter_map(|answer| answer.listed).collect();
        let done_to = listed.iter().map(|listed| listed.done_to).min().unwrap_or(self.segment_to);
        if self.is_counting() {
            let held = |listed: &Listed| (listed.count, listed.hash, listed.done_to);
            if listed.windows(2).any(|pair| held(&pair[0]) != held(&pair[1])) {
                self.must_merge = true;
                return;
            }
            self.page.count += listed.first().map_or(0, |listed| listed.count);
        }
        self.must_merge = false;
        let mut rows: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for (key, skeleton) in listed.into_iter().flat_map(|listed| listed.rows) {
            let is_inside = from <= key.position().0 && key.position().0 <= done_to;
            if !is_inside || key.bucket() != &self.scan.bucket[..] {
                continue;
            }
            if let Ok(object) = Object::decode(&skeleton) {
                rows.entry(key).or_default().merge(&object);
            }
        }
        for (key, object) in rows {
            if object.is_live(wall_ms) {
                self.page.count += 1;
                if !self.scan.count_only {
                    self.page.keys.push(key.key_bytes());
                }
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
