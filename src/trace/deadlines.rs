//! When a trace is complete: the earliest of four moments.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::model::{Moment, TraceId};
use crate::policy::Timing;
use crate::trace::TraceEntry;

/// What made a trace complete. Also a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DecideReason {
    /// `decision_wait` after the first span.
    DecisionWait,
    /// `quiet_period` after the last span.
    QuietPeriod,
    /// `decision_wait_after_root_received` after the root span.
    AfterRoot,
    /// The trace reached its bound of spans or bytes.
    TraceBound,
    /// Memory or the log was full, and `--on-pressure decide` says that traces make room then.
    Pressure,
    /// Its owner could not be reached for so long that somebody who only held it decided.
    Forced,
    /// A fragment was enough (`sampling_strategy: span-ingest`).
    SpanIngest,
}

/// The traces of a shard by the moment at which to look at them again.
///
/// One entry a trace, pushed when the trace begins. A span that moves the deadline later does not
/// touch the heap: the entry comes up, is found early, and goes back with the new moment. A moment
/// that became *earlier* (the root arrived) is pushed as a second entry; the stale one finds the
/// trace gone. So a busy trace costs two pushes, not one for each span.
///
/// Most waits are equally long, so most moments are pushed in their order: those stand in a queue.
/// Only what is earlier than the queue's end pays for a heap, whose pops miss the caches at every
/// level (1.7 % of a worker's time when all went through it).
#[derive(Debug, Default)]
pub struct Deadlines {
    in_order: VecDeque<(Moment, TraceId)>,
    heap: BinaryHeap<Reverse<(Moment, TraceId)>>,
}

impl DecideReason {
    pub const ALL: [Self; 7] = [
        Self::DecisionWait,
        Self::QuietPeriod,
        Self::AfterRoot,
        Self::TraceBound,
        Self::Pressure,
        Self::Forced,
        Self::SpanIngest,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::DecisionWait => "decision_wait",
            Self::QuietPeriod => "quiet_period",
            Self::AfterRoot => "after_root",
            Self::TraceBound => "trace_bound",
            Self::Pressure => "pressure",
            Self::Forced => "forced",
            Self::SpanIngest => "span_ingest",
        }
    }
}

/// The moment at which this trace is complete, and why then. The trace's own bound is not here:
/// it is met when a fragment arrives.
pub(crate) fn deadline(entry: &TraceEntry, timing: &Timing) -> (Moment, DecideReason) {
    let mut earliest = (
        entry.first_seen + timing.decision_wait,
        DecideReason::DecisionWait,
    );
    if let Some(quiet) = timing.quiet_period {
        let moment = entry.last_seen + quiet;
        if moment < earliest.0 {
            earliest = (moment, DecideReason::QuietPeriod);
        }
    }
    if let (Some(wait), Some(root_seen)) =
        (timing.decision_wait_after_root_received, entry.root_seen)
    {
        let moment = root_seen + wait;
        if moment < earliest.0 {
            earliest = (moment, DecideReason::AfterRoot);
        }
    }
    earliest
}

impl Deadlines {
    pub fn push(&mut self, at: Moment, trace: TraceId) {
        if self.in_order.back().is_none_or(|(last, _)| *last <= at) {
            self.in_order.push_back((at, trace));
        } else {
            self.heap.push(Reverse((at, trace)));
        }
    }

    /// When the next trace wants to be looked at.
    pub fn next(&self) -> Option<Moment> {
        let first = self.in_order.front().map(|(at, _)| *at);
        let Some(Reverse((at, _))) = self.heap.peek() else {
            return first;
        };
        Some(first.map_or(*at, |first| first.min(*at)))
    }

    /// The next trace whose moment has come. The caller decides it, pushes it again, or finds that
    /// it is gone.
    pub fn pop_due(&mut self, now: Moment) -> Option<TraceId> {
        let next = self.next().filter(|at| *at <= now)?;
        if let Some((_, trace)) = self.in_order.pop_front_if(|(at, _)| *at == next) {
            return Some(trace);
        }
        self.heap.pop().map(|Reverse((_, trace))| trace)
    }

    pub fn len(&self) -> usize {
        self.in_order.len() + self.heap.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives memory back after a burst: capacity follows the length down, at a quarter.
    pub fn shrink(&mut self) {
        const WORTH_IT: usize = 1024;
        let (held, room) = (self.in_order.len(), self.in_order.capacity());
        if room > WORTH_IT && held < room / 4 {
            self.in_order.shrink_to(held * 2);
        }
        let (held, room) = (self.heap.len(), self.heap.capacity());
        if room > WORTH_IT && held < room / 4 {
            self.heap.shrink_to(held * 2);
        }
    }
}
