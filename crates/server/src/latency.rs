//! How long things take at this node, by kind: commands, operations of the core, syncs of the disk.
//!
//! The loop reads its clock once before a turn's answers go out and once after its sync, so an operation costs two
//! additions here and no clock of its own. A time runs from the turn that read the request to the turn that answered,
//! without the writing of the socket.

use oort_core::active::Ask;
use oort_core::client::{Operation, Request};
use oort_core::metrics::Histogram;

/// The families of Redis commands: the chapters of the manual, in the order of `commands::table::Group`.
pub const FAMILIES: [&str; 9] = [
    "connection",
    "string",
    "generic",
    "server",
    "cluster",
    "versions",
    "active",
    "transactions",
    "scripting",
];

/// What the core was asked, as the metric `oort_operation_duration_seconds` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A read of one object. A `GET` that runs an active object counts here too.
    Get,
    /// A change of one object.
    Put,
    /// A call of an active object.
    Call,
    /// A page of a listing.
    Scan,
    /// An operator's change of a bucket or the ring.
    Change,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Get, Kind::Put, Kind::Call, Kind::Scan, Kind::Change];

    /// The kind of a request.
    pub fn of(request: &Request) -> Kind {
        match &request.operation {
            Operation::Get { .. } => Kind::Get,
            Operation::Call { call, .. } if call.what == Ask::Get => Kind::Get,
            Operation::Call { .. } => Kind::Call,
            Operation::Update { .. } => Kind::Put,
            Operation::Scan(_) => Kind::Scan,
            Operation::SetBucket { .. } | Operation::ChangeRing { .. } => Kind::Change,
        }
    }

    /// As the label `kind` has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Put => "put",
            Kind::Call => "call",
            Kind::Scan => "scan",
            Kind::Change => "change",
        }
    }
}

/// When a Redis command began, and which of [`FAMILIES`] it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Began {
    /// By the loop's monotonic clock, in microseconds.
    pub at_us: u64,
    pub family: usize,
}

/// Everything the loop measures.
#[derive(Default)]
pub struct Latencies {
    operations: [Histogram; Kind::ALL.len()],
    commands: [Histogram; FAMILIES.len()],
    /// Turns that wrote: the time in which the store made their changes durable.
    pub sync: Histogram,
}

impl Latencies {
    /// The core answered a request.
    pub fn answered(&mut self, kind: Kind, took_us: u64) {
        self.operations[kind as usize].note(took_us);
    }

    /// A Redis command that asked the core was answered.
    pub fn commanded(&mut self, family: usize, took_us: u64) {
        if let Some(times) = self.commands.get_mut(family) {
            times.note(took_us);
        }
    }

    /// Operations by kind.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        Kind::ALL.map(Kind::name).into_iter().zip(&self.operations)
    }

    /// Redis commands by family.
    pub fn commands(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        FAMILIES.into_iter().zip(&self.commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_place() {
        assert!(Kind::ALL.iter().enumerate().all(|(i, kind)| *kind as usize == i));
        let mut latencies = Latencies::default();
        latencies.answered(Kind::Call, 100);
        latencies.commanded(5, 100);
        let counted = |(name, histogram): (&'static str, &Histogram)| (histogram.count() > 0).then_some(name);
        assert_eq!(latencies.operations().filter_map(counted).collect::<Vec<_>>(), ["call"]);
        assert_eq!(latencies.commands().filter_map(counted).collect::<Vec<_>>(), ["versions"]);
    }
}
