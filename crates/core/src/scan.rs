//! Listing a range of the ring from several replicas: which part is complete, and which keys in it are live.
//!
//! The range is walked in segments that one set of replicas holds. Each replica sends its live rows, with their
//! causality but without values, and nothing of the dead ones: an object that is dead at all replicas is dead when they
//! are merged. A replica that does not list a key which another lists may hold its deletion, so it is asked for what it
//! holds under that key. Merging then tells exactly which keys exist, as a get would, and costs what lives.
//!
//! Counting needs no keys while the replicas hold the same: each sends how many it found and a hash of them. Where
//! these differ, the rows are asked for and merged after all.
//!
//! A page ends when it has enough keys, or has looked at many rows, or has taken long: then it holds fewer keys, or
//! none, and says where the next one begins. Pages end where a cursor ends ([`Position::cursor`]), so that a client's
//! cursor loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::{Page, Scan};
use crate::message::Listed;
use crate::object::Object;
use crate::types::{NodeId, Now, ObjectKey, Position};

/// Replicas, each with the keys that it did not list and another one did.
pub type Doubts = Vec<(NodeId, Vec<ObjectKey>)>;

/// The most segments one page walks through before it is returned, however few keys were found.
const SEGMENTS_MAX: u32 = 256;
/// Time that a page takes before it is returned, in microseconds. Less: more pages; more: a client waits for each.
const PAGE_US_MAX: u64 = 10_000;

/// One question to a replica, and its answer.
#[derive(Clone, Debug)]
struct Answer {
    node: NodeId,
    listed: Option<Listed>,
}

/// A page in the making.
#[derive(Clone, Debug)]
pub struct Listing {
    pub scan: Scan,
    started_us: u64,
    /// The first position not yet listed; `None` when the end was passed.
    from: Option<u64>,
    segment_to: u64,
    /// Numbers the questions.
    part: u32,
    answers: Vec<Answer>,
    /// Objects that not all replicas listed, merged from those that did, while the others are asked for them.
    doubtful: Option<BTreeMap<ObjectKey, Object>>,
    segments: u32,
    visited: u32,
    /// Rows visited before the page is returned.
    visited_max: u32,
    /// The live rows of the replicas are not the same in this segment, so their counts say nothing.
    must_merge: bool,
    page: Page,
    /// The page as it was where a cursor last ended.
    whole: Whole,
}

/// Up to where a page may be returned.
#[derive(Clone, Copy, Debug)]
struct Whole {
    from: Option<u64>,
    keys: usize,
    count: u64,
}

impl Listing {
    /// `visited_max`: how many rows all replicas together look at before a page is returned.
    pub fn new(scan: Scan, now: Now, visited_max: u32) -> Listing {
        let from = (scan.from <= scan.to).then_some(scan.from.0);
        Listing {
            scan,
            started_us: now.mono_us,
            from,
            segment_to: 0,
            part: 0,
            answers: Vec::new(),
            doubtful: None,
            segments: 0,
            visited: 0,
            visited_max,
            must_merge: false,
            page: Page::default(),
            whole: Whole { from, keys: 0, count: 0 },
        }
    }

    /// The first position not yet listed; `None` when the page is complete.
    pub fn next(&self, now: Now) -> Option<Position> {
        let from = self.from.map(Position)?;
        let ends_here = self.is_full(now) && from == from.cursor_start();
        (!ends_here).then_some(from)
    }

    /// True if the page is long enough, or has taken long enough. It must have got on: else the client would begin the
    /// same page again, for ever.
    fn is_full(&self, now: Now) -> bool {
        self.has_progress()
            && (self.page.count >= self.scan.limit as u64
                || self.segments >= SEGMENTS_MAX
                || self.visited >= self.visited_max
                || now.mono_us >= self.started_us + PAGE_US_MAX)
    }

    /// True if a part is done that may be returned.
    pub fn has_progress(&self) -> bool {
        self.whole.from != Some(self.scan.from.0)
    }

    /// Starts the segment from [`Listing::next`] to `to` or before, which `nodes` are asked for. Returns the number of
    /// the question and what to ask them.
    pub fn start_segment(&mut self, now: Now, to: Position, nodes: &[NodeId]) -> (u32, Scan) {
        let from = Position(self.from.unwrap_or(u64::MAX));
        // What remains of a full page is the rest of a cursor.
        let to = if self.is_full(now) { to.min(from.cursor_end()) } else { to };
        self.segment_to = to.0;
        self.segments += 1;
        self.part += 1;
        self.doubtful = None;
        self.answers = nodes.iter().map(|&node| Answer { node, listed: None }).collect();
        let limit = match self.scan.count_only {
            // No key leaves the coordinator: only the replicas' own limit counts.
            true => u32::MAX,
            false => self.scan.limit.saturating_sub(self.page.count as u32).max(1),
        };
        let count_only = self.is_counting();
        (self.part, Scan { from, to, limit, count_only, ..self.scan.clone() })
    }

    /// Takes in a replica's answer to question `part`. True if all have answered it.
    pub fn answer(&mut self, node: NodeId, part: u32, listed: Listed) -> bool {
        let from = self.from.unwrap_or(u64::MAX);
        if part == self.part && listed.done_to >= from {
            let free = self.answers.iter_mut().find(|answer| answer.node == node && answer.listed.is_none());
            if let Some(answer) = free {
                let done_to = listed.done_to.min(self.segment_to);
                answer.listed = Some(Listed { done_to, ..listed });
            }
        }
        self.answers.iter().all(|answer| answer.listed.is_some())
    }

    /// True if replicas are asked for no more than how many keys they hold.
    fn is_counting(&self) -> bool {
        self.scan.count_only && !self.must_merge
    }

    /// True if `node`'s answer is still missing.
    pub fn waits_for(&self, node: NodeId) -> bool {
        self.answers.iter().any(|answer| answer.node == node && answer.listed.is_none())
    }

    /// Number of replicas that answered the current question, and of those asked.
    pub fn answered(&self) -> (u8, u8) {
        let answered = self.answers.iter().filter(|answer| answer.listed.is_some()).count();
        (answered as u8, self.answers.len() as u8)
    }

    /// Takes what all have answered: merges the segment into the page and moves on; or stays, to ask for the rows of
    /// replicas whose counts disagree; or returns the number of the next question and whom to ask what, if some listed
    /// keys that others did not.
    pub fn finish_part(&mut self, now: Now) -> Option<(u32, Doubts)> {
        let answers: Vec<(NodeId, Listed)> = std::mem::take(&mut self.answers)
            .into_iter()
            .filter_map(|answer| Some((answer.node, answer.listed?)))
            .collect();
        self.visited += answers.iter().map(|(_, listed)| listed.visited).max().unwrap_or(0);
        if let Some(mut rows) = self.doubtful.take() {
            for (_, listed) in answers {
                merge(&mut rows, listed.rows);
            }
            self.finish_segment(now, rows);
            return None;
        }
        let done_to = answers.iter().map(|(_, listed)| listed.done_to).min();
        self.segment_to = done_to.unwrap_or(self.segment_to);
        if self.is_counting() {
            let found = |listed: &Listed| (listed.count, listed.hash, listed.done_to);
            if answers.windows(2).any(|pair| found(&pair[0].1) != found(&pair[1].1)) {
                self.must_merge = true;
                return None;
            }
            self.page.count += answers.first().map_or(0, |(_, listed)| listed.count);
            self.finish_segment(now, BTreeMap::new());
            return None;
        }
        let (rows, missing) = self.compare(answers);
        if missing.is_empty() {
            self.finish_segment(now, rows);
            return None;
        }
        self.part += 1;
        self.answers = missing.iter().map(|(node, _)| Answer { node: *node, listed: None }).collect();
        self.doubtful = Some(rows);
        Some((self.part, missing))
    }

    /// Merges the rows of the segment, and finds which of them each replica did not list.
    fn compare(&self, answers: Vec<(NodeId, Listed)>) -> (BTreeMap<ObjectKey, Object>, Doubts) {
        let (mut rows, mut listed_by) = (BTreeMap::new(), Vec::new());
        for (node, mut listed) in answers {
            listed.rows.retain(|(key, _)| self.is_inside(key));
            let keys: BTreeSet<ObjectKey> = listed.rows.iter().map(|(key, _)| key.clone()).collect();
            listed_by.push((node, keys));
            merge(&mut rows, listed.rows);
        }
        let missing = listed_by.into_iter().map(|(node, keys)| {
            let missing = rows.keys().filter(|key| !keys.contains(key)).cloned();
            (node, missing.collect::<Vec<ObjectKey>>())
        });
        let missing = missing.filter(|(_, keys)| !keys.is_empty()).collect();
        (rows, missing)
    }

    fn is_inside(&self, key: &ObjectKey) -> bool {
        let position = key.position().0;
        self.from.is_some_and(|from| from <= position)
            && position <= self.segment_to
            && (self.scan.is_of_buckets() || key.bucket() == &self.scan.bucket[..])
    }

    /// Takes the live ones of `rows` into the page and moves on.
    fn finish_segment(&mut self, now: Now, rows: BTreeMap<ObjectKey, Object>) {
        self.must_merge = false;
        for (key, object) in rows {
            if object.is_live(now.wall_ms) {
                self.page.count += 1;
                if self.scan.is_of_buckets() {
                    self.page.keys.push(bytes::Bytes::copy_from_slice(key.bucket()));
                } else if !self.scan.count_only {
                    self.page.keys.push(key.key_bytes());
                }
            }
        }
        self.from = self.segment_to.checked_add(1).filter(|next| *next <= self.scan.to.0);
        if self.from.is_none_or(|from| Position(from) == Position(from).cursor_start()) {
            let (keys, count) = (self.page.keys.len(), self.page.count);
            self.whole = Whole { from: self.from, keys, count };
        }
    }

    /// The page as far as it may be returned.
    pub fn into_page(mut self) -> Page {
        self.page.keys.truncate(self.whole.keys);
        self.page.count = self.whole.count;
        self.page.next = self.whole.from.map(Position);
        self.page
    }
}

fn merge(into: &mut BTreeMap<ObjectKey, Object>, rows: Vec<(ObjectKey, bytes::Bytes)>) {
    for (key, skeleton) in rows {
        if let Ok(object) = Object::decode(&skeleton) {
            into.entry(key).or_default().merge(&object);
        }
    }
}
