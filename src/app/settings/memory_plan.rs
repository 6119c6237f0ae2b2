//! How a worker's memory limit is divided. One budget pays for all that it holds; what is here are the
//! shares that some of it has for itself, and what is left out of the budget.

use crate::app::settings::ByteSize;

/// See the module. `index` and `decisions` are bounds of their own within the budget, `export` and
/// `peers` are taken from it at the start; requests in flight have all the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The memory limit, less a log that lies in memory.
    pub limit: ByteSize,
    pub budget: ByteSize,
    pub index: ByteSize,
    pub decisions: ByteSize,
    pub export: ByteSize,
    /// What is for the calls of peers alone: traces that are handed over are not to wait behind clients.
    pub peers: ByteSize,
}

/// The rest is what nobody can pay for: what the allocator holds beside what it was asked for, windows
/// of HTTP/2, spare buffers.
const BUDGET_PERCENT: u64 = 80;
/// And at least so much: code, stacks, tables of the ring, 10 MiB in a release build.
const UNPAID_MIN: ByteSize = ByteSize::mib(16);
const INDEX_PERCENT: u64 = 40;
const EXPORT_PERCENT: u64 = 10;
/// Unless the setting says otherwise, and at most [`DECISIONS_MAX`].
const DECISIONS_PERCENT: u64 = 12;
const DECISIONS_MAX: ByteSize = ByteSize::mib(64);
/// Of a limit, for a setting that says otherwise.
const DECISIONS_PERCENT_MAX: u64 = 25;
/// Two calls of the longest kind.
const PEERS: ByteSize = ByteSize::mib(8);
/// A fortieth of the limit is for requests whatever else is there.
const REQUESTS_MIN: u64 = 40;
/// A decoder, and what a request costs beside its message.
const REQUEST_BESIDE: ByteSize = ByteSize::mib(10);
/// What a span costs beside its bytes while it is in flight.
const SPAN_BYTES: u64 = 160;
/// A valid span has an ID, a trace ID and the lengths around them.
const SPAN_WIRE_BYTES_MIN: u64 = 30;
const LIMIT_MIN: ByteSize = ByteSize::mib(64);

impl MemoryPlan {
    /// For a worker that may use `limit` beside its log. `decisions`: what the setting says.
    pub fn worker(limit: ByteSize, decisions: Option<ByteSize>) -> Self {
        let budget = limit.percent(BUDGET_PERCENT);
        let budget = budget.min(ByteSize(limit.0.saturating_sub(UNPAID_MIN.0)));
        let decisions =
            decisions.unwrap_or_else(|| limit.percent(DECISIONS_PERCENT).min(DECISIONS_MAX));
        let export = limit.percent(EXPORT_PERCENT);
        let others = decisions.0 + export.0 + PEERS.0 + limit.0 / REQUESTS_MIN;
        let index = limit.percent(INDEX_PERCENT);
        Self {
            limit,
            budget,
            // The smallest limits have no room for all of it.
            index: index.min(ByteSize(budget.0.saturating_sub(others))),
            decisions,
            export,
            peers: PEERS,
        }
    }

    /// The most that a setting may give to decisions.
    pub fn decisions_max(limit: ByteSize) -> ByteSize {
        limit.percent(DECISIONS_PERCENT_MAX)
    }

    /// The smallest limit, in whole MiB, at which the largest legal request is not refused for ever: it
    /// lies there twice, as it came and as it is written.
    pub fn limit_min(request: ByteSize, spans: u32) -> ByteSize {
        let spans = u64::from(spans).min(request.0 / SPAN_WIRE_BYTES_MIN);
        let needed = 2 * request.0 + spans * SPAN_BYTES + REQUEST_BESIDE.0;
        let mut limit = LIMIT_MIN;
        while Self::worker(limit, None).requests().0 < needed {
            limit.0 += 1 << 20;
        }
        limit
    }

    /// What requests have when there are no traces.
    fn requests(&self) -> ByteSize {
        ByteSize(self.budget.0.saturating_sub(self.export.0 + self.peers.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_within_the_budget_and_leave_requests_some_of_it() {
        for mib in [64, 80, 256, 1024, 65_536] {
            let limit = ByteSize::mib(mib);
            for decisions in [None, Some(MemoryPlan::decisions_max(limit))] {
                let plan = MemoryPlan::worker(limit, decisions);
                let shares = plan.index.0 + plan.decisions.0 + plan.export.0 + plan.peers.0;
                let least = limit.0 / 40;
                assert!(plan.budget.0 <= limit.0 - UNPAID_MIN.0);
                assert!(shares + least <= plan.budget.0, "{plan:?}");
            }
        }
    }

    #[test]
    fn the_largest_request_fits_into_the_smallest_limit() {
        for (request, spans, limit) in [
            (ByteSize::mib(64), 100_000, 231),
            (ByteSize::mib(1), 100_000, 64),
            (ByteSize::mib(1024), 100_000_000, 10_754),
        ] {
            assert_eq!(MemoryPlan::limit_min(request, spans), ByteSize::mib(limit));
        }
    }
}
