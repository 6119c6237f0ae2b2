//! What the demo shows while it runs, from the metrics of its processes; and what it costs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::page::Scrape;

const SECONDS_PER_MONTH: f64 = 30.0 * 24.0 * 3600.0;

/// Traces and their spans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) traces: u64,
    pub(super) spans: u64,
}

/// The state of the demo at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Figures {
    /// Since the fleet began, and how long of that turns began.
    pub(super) elapsed: Duration,
    pub(super) sending: Duration,
    pub(super) sent: Count,
    /// Kept or dropped.
    pub(super) judged: Count,
    /// By the policy that decided.
    pub(super) kept_by: BTreeMap<String, Count>,
    /// Kept, and not at the backend yet.
    pub(super) awaiting_export: u64,
    /// Not judged yet.
    pub(super) undecided: u64,
}

/// Dollars for a million spans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Price(pub(super) f64);

impl Figures {
    /// `ended`: what workers said last in lives that are over.
    pub(super) fn of(
        elapsed: Duration,
        sending: Duration,
        routers: &[Scrape],
        workers: &[Scrape],
        ended: &[Scrape],
    ) -> Self {
        let mut figures = Self {
            elapsed,
            sending,
            ..Self::default()
        };
        for router in routers {
            figures.sent.spans += router.sum("tailring_router_spans_accepted_total", "");
        }
        for worker in workers {
            let undecided = worker.sum("tailring_worker_undecided_traces", "");
            figures.sent.traces += undecided;
            figures.undecided += undecided;
            figures.awaiting_export += worker.sum("tailring_worker_awaiting_export_traces", "");
        }
        for worker in workers.iter().chain(ended) {
            let decided = worker.sum("tailring_worker_traces_decided_total", "");
            figures.sent.traces += decided;
            figures.judged.traces += decided;
            figures.judged.spans += worker.sum("tailring_worker_spans_kept_total", "")
                + worker.sum("tailring_worker_spans_dropped_total", "");
            let mut kept = |name, add: fn(&mut Count, u64)| {
                for (policy, count) in worker.by_label(name, "policy") {
                    add(figures.kept_by.entry(policy.to_owned()).or_default(), count);
                }
            };
            kept("tailring_worker_traces_kept_total", |to, n| to.traces += n);
            kept("tailring_worker_spans_kept_total", |to, n| to.spans += n);
        }
        figures
    }

    pub(super) fn kept(&self) -> Count {
        let counts = self.kept_by.values();
        counts.fold(Count::default(), |sum, count| Count {
            traces: sum.traces + count.traces,
            spans: sum.spans + count.spans,
        })
    }

    pub(super) fn spans_per_second(&self) -> f64 {
        self.sent.spans as f64 / self.sending.as_secs_f64().max(0.001)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.undecided == 0 && self.awaiting_export == 0
    }
}

/// A part of a whole, from 0 to 1.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl Price {
    /// Dollars a month for so many spans a second.
    pub(super) fn month(self, spans_per_second: f64) -> f64 {
        spans_per_second * SECONDS_PER_MONTH / 1e6 * self.0
    }

    /// Dollars that each useful trace costs when all these spans are paid for.
    pub(super) fn of_each(self, spans: u64, useful_traces: u64) -> f64 {
        if useful_traces == 0 {
            0.0
        } else {
            spans as f64 / 1e6 * self.0 / useful_traces as f64
        }
    }
}
