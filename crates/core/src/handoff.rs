//! Giving hinted writes back to their owner: which were sent, which were confirmed.
//!
//! A hint is a marker next to the object, so hints of one key and owner merge into one. They are delivered in ring
//! order, a bounded number at a time; a marker goes only when the owner confirmed what was sent for that very marker.
//!
//! Source: Dynamo §4.6.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::types::{NodeId, ObjectKey};

/// One delivery waiting for its confirmation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    pub owner: NodeId,
    pub key: ObjectKey,
    /// The marker as it was when the object was sent.
    pub mark: Bytes,
}

/// Hints and deliveries for one owner.
#[derive(Clone, Debug, Default)]
pub struct Owed {
    /// Markers in the store.
    pub pending: u64,
    /// Deliveries sent and not confirmed.
    pub in_flight: usize,
    /// Deliveries confirmed since the last pause.
    pub delivered: u64,
    /// Where the walk over the markers stands.
    pub after: Option<ObjectKey>,
}

/// What this node owes to others.
#[derive(Clone, Debug, Default)]
pub struct Handoff {
    owed: BTreeMap<NodeId, Owed>,
}

impl Handoff {
    /// Starts with the markers found in the store.
    pub fn new(counts: BTreeMap<NodeId, u64>) -> Handoff {
        let owed = counts.into_iter().map(|(owner, pending)| (owner, Owed { pending, ..Owed::default() }));
        Handoff { owed: owed.collect() }
    }

    /// A marker for `owner` was added.
    pub fn added(&mut self, owner: NodeId) {
        self.owed.entry(owner).or_default().pending += 1;
    }

    /// A marker for `owner` was removed.
    pub fn removed(&mut self, owner: NodeId) {
        if let Some(owed) = self.owed.get_mut(&owner) {
            owed.pending = owed.pending.saturating_sub(1);
        }
    }

    /// What is owed to `owner`, if anything ever was.
    pub fn owed_mut(&mut self, owner: NodeId) -> Option<&mut Owed> {
        self.owed.get_mut(&owner)
    }

    /// Owners with markers waiting.
    pub fn owners(&self) -> Vec<NodeId> {
        self.owed.iter().filter(|(_, owed)| owed.pending > 0).map(|(owner, _)| *owner).collect()
    }

    /// Markers waiting, over all owners.
    pub fn pending(&self) -> u64 {
        self.owed.values().map(|owed| owed.pending).sum()
    }
}
