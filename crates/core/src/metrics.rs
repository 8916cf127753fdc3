//! What a node counts. Plain numbers: whoever wants rates asks twice.

use serde::Serialize;

/// Totals since the node started, except where a field says it is a level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Gets this node coordinated and answered.
    pub gets: u64,
    /// Gets that failed.
    pub gets_failed: u64,
    /// Gets that found more than one live sibling.
    pub gets_with_siblings: u64,
    /// Puts this node coordinated and acknowledged.
    pub puts: u64,
    /// Puts that failed.
    pub puts_failed: u64,
    /// Pages of scans answered.
    pub scans: u64,
    /// Rows that this node looked at for scans.
    pub scan_rows: u64,
    /// Keys that one replica of a scan listed and another did not, so that it was asked for them.
    pub scan_doubts: u64,
    /// Requests handed to a node that may coordinate them.
    pub forwards: u64,
    /// Reads served to other coordinators.
    pub replica_reads: u64,
    /// Writes served to other coordinators.
    pub replica_writes: u64,
    /// Gets that asked one more replica because the first were slow.
    pub hedged_reads: u64,
    /// Stale replicas sent the merged object after a get.
    pub read_repairs: u64,
    /// Rows found corrupt.
    pub corrupt_rows: u64,
    /// Corrupt rows restored from other replicas.
    pub corrupt_rows_repaired: u64,
    /// Hints written.
    pub hints_stored: u64,
    /// Hints delivered to their owner.
    pub hints_delivered: u64,
    /// Runs of active objects' functions here, timers included.
    pub active_calls: u64,
    /// Runs that failed: errors of the code, and limits.
    pub active_failures: u64,
    /// Instructions of the runs that ended well.
    pub active_instructions: u64,
    /// Runs of `onTimer`.
    pub active_timer_runs: u64,
    /// Runs of `onTimer` that began more than 100 ms after they were due, because timers had used up their share of the
    /// node's time.
    pub active_timers_late: u64,
    /// Intervals in which `onTimer` did not run, because its turn did not come in time, or too few replicas answered.
    pub active_timers_skipped: u64,
    /// Level: how late the timer was that was begun last, in milliseconds.
    pub active_timer_late_ms: u64,
    /// Versions written of what handlers changed.
    pub active_writes: u64,
    /// What handlers asked of this node: get, put, lookup and replies.
    pub active_messages: u64,
    /// Concurrent versions of active objects joined.
    pub active_merges: u64,
    /// Of these, versions whose changes the newest one's took the place of.
    pub active_merges_lost: u64,
    /// Writes of homes refused here: they had not seen all that this node holds.
    pub active_writes_refused: u64,
    /// Calls that ran again here on what others had written meanwhile.
    pub active_reruns: u64,
    /// Level: active objects that are loaded here.
    pub active_loaded: u64,
    /// Level: timers of the active objects held here.
    pub active_timers: u64,
    /// Objects held that chose their holders.
    pub active_placed: u64,
    /// Level: hints waiting for their owner.
    pub hints_pending: u64,
    /// Partitions compared with another owner.
    pub entropy_rounds: u64,
    /// Comparisons that found a difference.
    pub entropy_differences: u64,
    /// Keys handed to repair by a comparison.
    pub entropy_keys: u64,
    /// Bytes of sums and lists of rows sent in comparisons.
    pub entropy_bytes: u64,
    /// Times the hash tree was found wrong: rows vanished from the disk, or a bug.
    pub entropy_miscounts: u64,
    /// Level: partitions, once for each other owner, whose last comparison found no difference.
    pub entropy_in_sync: u64,
    /// Level: partitions, once for each other owner, that were compared under this ring.
    pub entropy_compared: u64,
    /// Level: milliseconds since all partitions were last compared with all owners; 0: never yet.
    pub entropy_round_age_ms: u64,
    /// Deleted and expired objects dropped, since every member held just them.
    pub dead_forgotten: u64,
    /// Level: deleted and expired objects that every member holds alike, and that are dropped when that has lasted.
    pub dead_waiting: u64,
    /// Keys fetched from other nodes because the ring changed.
    pub transferred_keys: u64,
    /// Bytes of their objects.
    pub transferred_bytes: u64,
    /// Keys dropped because the ring changed and all their owners hold them.
    pub given_away_keys: u64,
    /// Requests of this node that a replica refused because this node's ring was older.
    pub stale_rings: u64,
    /// Writes refused because their dot lies absurdly far ahead.
    pub clock_refusals: u64,
    /// Changes of what this node adds to its clock to go by the time of most nodes.
    pub clock_corrections: u64,
    /// Times the node took a new actor because it had forgotten writes.
    pub actor_renewals: u64,
    /// Times the store refused writes.
    pub store_refusals: u64,
    /// Requests answered BUSY.
    pub busy: u64,
    /// Times a peer became suspect or down.
    pub suspicions: u64,
    /// Times a peer became down although its link was open: it had been silent for long.
    pub silent_downs: u64,
    /// Messages received that named no request in flight.
    pub late_messages: u64,
    /// Requests of other nodes that were not begun, since their time was up when they came.
    pub expired_forwards: u64,
    /// How long peers took to answer a probe.
    pub round_trips: Histogram,
}

/// How often something took how long, in buckets that double.
///
/// Bucket `i` counts times of at most `2^i * 16` microseconds that no bucket before it counts; the last one counts all
/// longer ones, beyond 16 s. Noting a time costs two additions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    counts: [u64; HISTOGRAM_BUCKETS],
    sum_us: u64,
}

/// The number of buckets of a [`Histogram`].
pub const HISTOGRAM_BUCKETS: usize = 22;
/// The first bucket ends at two to the power of this many microseconds.
const FIRST_BITS: u32 = 4;

impl Histogram {
    /// Something took `us` microseconds.
    pub fn note(&mut self, us: u64) {
        let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
        let bucket = bits.saturating_sub(FIRST_BITS) as usize;
        self.counts[bucket.min(HISTOGRAM_BUCKETS - 1)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// For each bucket its upper bound in microseconds, `None` for the open one, and how many times lie up to there.
    pub fn up_to(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let mut total = 0;
        self.counts.iter().enumerate().map(move |(i, count)| {
            total += count;
            let bound = (i < HISTOGRAM_BUCKETS - 1).then(|| 1 << (i as u32 + FIRST_BITS));
            (bound, total)
        })
    }

    /// How many times were noted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }
}

impl Metrics {
    /// Every metric with its name and help, in a fixed order; levels are marked `false`.
    pub fn each(&self, mut visit: impl FnMut(&'static str, &'static str, bool, u64)) {
        let mut total = |name, help, value| visit(name, help, true, value);
        total("gets", "gets coordinated and answered", self.gets);
        total("gets_failed", "gets that failed", self.gets_failed);
        total("gets_with_siblings", "gets that found more than one live sibling", self.gets_with_siblings);
        total("puts", "puts coordinated and acknowledged", self.puts);
        total("puts_failed", "puts that failed", self.puts_failed);
        total("scans", "pages of scans answered", self.scans);
        total("scan_rows", "rows looked at for scans", self.scan_rows);
        total("scan_doubts", "keys listed by one replica and not by another", self.scan_doubts);
        total("forwards", "requests handed to a node that may coordinate them", self.forwards);
        total("replica_reads", "reads served to other coordinators", self.replica_reads);
        total("replica_writes", "writes served to other coordinators", self.replica_writes);
        total("hedged_reads", "gets that asked one more replica", self.hedged_reads);
        total("read_repairs", "stale replicas sent the merged object after a get", self.read_repairs);
        total("corrupt_rows", "rows found corrupt", self.corrupt_rows);
        total(
            "corrupt_rows_repaired",
            "corrupt rows restored from other replicas",
            self.corrupt_rows_repaired,
        );
        total("hints_stored", "hints written", self.hints_stored);
        total("hints_delivered", "hints delivered to their owner", self.hints_delivered);
        total("entropy_rounds", "partitions compared with another owner", self.entropy_rounds);
        total("entropy_differences", "comparisons that found a difference", self.entropy_differences);
        total("entropy_keys", "keys handed to repair by a comparison", self.entropy_keys);
        total("entropy_bytes", "bytes of sums and lists of rows sent in comparisons", self.entropy_bytes);
        total(
            "entropy_miscounts",
            "times the hash tree was found not to be that of the rows",
            self.entropy_miscounts,
        );
        total("dead_forgotten", "deleted and expired objects dropped here", self.dead_forgotten);
        total("transferred_keys", "keys fetched because the ring changed", self.transferred_keys);
        total("transferred_bytes", "bytes fetched because the ring changed", self.transferred_bytes);
        total("given_away_keys", "keys dropped after their new owners had them", self.given_away_keys);
        total("stale_rings", "requests refused because this node's ring was older", self.stale_rings);
        total("clock_refusals", "writes refused for a dot absurdly far ahead", self.clock_refusals);
        total(
            "clock_corrections",
            "changes of what is added to the clock to go by most nodes' time",
            self.clock_corrections,
        );
        total("actor_renewals", "times the node took a new actor", self.actor_renewals);
        total("store_refusals", "times the store refused writes", self.store_refusals);
        total("active_calls", "runs of active objects' functions", self.active_calls);
        total("active_failures", "runs that failed: errors of the code, and limits", self.active_failures);
        let instructions = "instructions of runs that ended well";
        total("active_instructions", instructions, self.active_instructions);
        total("active_timer_runs", "runs of onTimer", self.active_timer_runs);
        total("active_timers_late", "runs of onTimer more than 100 ms late", self.active_timers_late);
        let skipped = "intervals in which onTimer did not run for want of time or replicas";
        total("active_timers_skipped", skipped, self.active_timers_skipped);
        total("active_writes", "versions written of what handlers changed", self.active_writes);
        total("active_messages", "what handlers asked of the node", self.active_messages);
        let refused = "writes of homes refused: they had not seen all that is held here";
        total("active_writes_refused", refused, self.active_writes_refused);
        let reruns = "calls that ran again on what others had written meanwhile";
        total("active_reruns", reruns, self.active_reruns);
        let expired = "requests of other nodes whose time was up when they came";
        total("expired_forwards", expired, self.expired_forwards);
        total("active_merges", "concurrent versions of active objects joined", self.active_merges);
        let lost = "concurrent versions that the newest took the place of";
        total("active_merges_lost", lost, self.active_merges_lost);
        total("busy", "requests answered BUSY", self.busy);
        total("suspicions", "times a peer became suspect or down", self.suspicions);
        total("silent_downs", "times a linked peer became down for its silence", self.silent_downs);
        total("late_messages", "messages that named no request in flight", self.late_messages);
        visit("active_loaded", "active objects that are loaded", false, self.active_loaded);
        visit("active_timers", "timers of the objects held", false, self.active_timers);
        visit("active_placed", "objects held that chose their holders", false, self.active_placed);
        let late = "how late the timer was that was begun last";
        visit("active_timer_late_ms", late, false, self.active_timer_late_ms);
        visit("hints_pending", "hints waiting for their owner", false, self.hints_pending);
        let waiting = "deleted and expired objects held alike by all, to be dropped when that has lasted";
        visit("dead_waiting", waiting, false, self.dead_waiting);
        let in_sync = "partitions, for each other owner, whose last comparison found no difference";
        visit("entropy_in_sync", in_sync, false, self.entropy_in_sync);
        let compared = "partitions, for each other owner, that were compared";
        visit("entropy_compared", compared, false, self.entropy_compared);
        let age = "time since the last full round of comparisons, 0: none yet";
        visit("entropy_round_age_ms", age, false, self.entropy_round_age_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let mut histogram = Histogram::default();
        for us in [0, 1, 16, 17, 32, 33, 1 << 24, (1 << 24) + 1, u64::MAX] {
            histogram.note(us);
        }
        let up_to: Vec<_> = histogram.up_to().collect();
        assert_eq!(up_to[..3], [(Some(16), 3), (Some(32), 5), (Some(64), 6)]);
        assert_eq!(up_to[20..], [(Some(1 << 24), 7), (None, 9)]);
        assert_eq!((histogram.count(), histogram.sum_us()), (9, u64::MAX));
    }
}
