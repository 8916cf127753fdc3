//! Operations and strikes that a setup leaves out: they are drawn, counted and passed over. See [`crate::skips`].

use super::Cluster;
use crate::faults::Fault;

impl Cluster {
    /// Counts the operation that was just drawn for `client`. True if it is left out: the client then goes on as if it
    /// had been answered at once.
    pub(super) fn skips_operation(&mut self, client: usize) -> bool {
        self.operations_drawn += 1;
        if !self.skips.operations.contains(self.operations_drawn) {
            return false;
        }
        // The way of the request that is not sent.
        self.network.travel_us(&mut self.rng);
        self.pause(client);
        true
    }

    /// Counts the strike of `fault` that was just drawn. True if it is left out.
    pub(super) fn skips_strike(&mut self, fault: Fault) -> bool {
        self.strikes_drawn += 1;
        self.skips.strikes.contains(self.strikes_drawn) || self.skips.faults.contains(fault)
    }
}
