//! From a trace that is complete to its verdict.
//!
//! Policies vote over what was folded. Where a limit is among them, the trace asks the worker's
//! limits and waits for their answer, undecided: it still takes spans, a crash forgets only the
//! question, and the votes are counted when the answer is there. A trace that another policy keeps
//! for certain only tells the limits what it costs.

use super::{Shard, Unwritten, by_segment};
use crate::model::{Decision, Moment, SegmentId, TraceId, Verdict, VerdictId};
use crate::policy::{Complete, LimitAnswers, Vote};
use crate::trace::{DecideReason, Stage, TraceEntry};
use crate::worker::shard::Retained;

/// A trace that is complete asks the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub of: Complete,
    /// Whether the trace waits for the answer; else it is only charged.
    pub waits: bool,
    /// Of the rules whose limits are asked.
    pub rules_version: u64,
}

/// So many may stand before the door of the limits without being asked for an answer. Beyond it
/// certain keeps are not charged; those who wait for an answer are bounded by the traces in hand.
const CHARGES_MAX: usize = 1 << 16;

impl Shard {
    /// Decides what is complete.
    pub(super) fn judge_due(&mut self, now: Moment) {
        while self.deciding
            && let Some(trace) = self.deadlines.pop_due(now)
        {
            let Some(entry) = self.index.get(trace) else {
                continue;
            };
            if entry.stage != Stage::Undecided || entry.is_asking {
                continue;
            }
            let (at, _) = self.due(entry);
            if at > now {
                self.deadlines.push(at, trace);
                continue;
            }
            match self.decides(trace, entry, at, now) {
                Ok(()) => self.judge(trace, now),
                Err(Some(later)) => self.deadlines.push(later, trace),
                Err(None) => {}
            }
        }
    }

    /// Whether this trace, which is in hand, may be decided before its deadline.
    pub(super) fn may_decide(&self, trace: TraceId, now: Moment) -> bool {
        let entry = self.index.get(trace).filter(|_| self.deciding);
        entry.is_some_and(|entry| self.decides(trace, entry, now, now).is_ok())
    }

    /// The trace is complete.
    pub(super) fn judge(&mut self, trace: TraceId, now: Moment) {
        let Some(entry) = self.index.get(trace) else {
            return;
        };
        if entry.transfer.as_ref().is_some_and(|it| it.is_stale) {
            self.fold_anew(trace);
            return;
        }
        if self.handing.elsewhere(trace).is_some()
            && let Some(known) = self.decisions.get(trace).map(|held| held.decision)
        {
            // Its owner was to fold what is held here, and was not found.
            self.apply(known);
            return;
        }
        if self.refold.is_behind(entry, &self.rules) {
            self.fold_first(trace);
        } else {
            self.judge_folded(trace, now);
        }
    }

    /// And its state is that of the rules in force.
    pub(super) fn judge_folded(&mut self, trace: TraceId, now: Moment) {
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let first = self.rules.first_vote(trace, &entry.state, entry.spans);
        let vote = first.vote;
        let waits = first.asks && !vote.is_certain();
        if first.asks && !entry.is_asking && (waits || self.asks.len() < CHARGES_MAX) {
            entry.is_asking = true;
            self.asks.push_back(Ask {
                of: Complete {
                    trace,
                    state: entry.state.clone(),
                    spans: entry.spans,
                },
                waits,
                rules_version: self.rules.version,
            });
        }
        if !waits {
            self.decide(trace, vote, now);
        }
    }

    /// The next question for the limits.
    pub fn next_ask(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// Whoever took this question could not pass it on.
    pub fn ask_later(&mut self, ask: Ask) {
        self.asks.push_front(ask);
    }

    /// What the limits said to a trace that waits.
    pub fn answered(&mut self, trace: TraceId, answers: &LimitAnswers, now: Moment) {
        let Some(entry) = self.index.get(trace) else {
            return;
        };
        if entry.stage != Stage::Undecided || !entry.is_asking {
            return;
        }
        if !self.deciding || self.decides(trace, entry, now, now).is_err() {
            let Some(entry) = self.index.get_mut(trace) else {
                return;
            };
            // Asked again when this member decides again.
            entry.is_asking = false;
            self.deadlines.push(now, trace);
            return;
        }
        let vote = self.rules.vote(trace, &entry.state, entry.spans, answers);
        self.decide(trace, vote, now);
    }

    /// The limits that this trace waits for are no more: it is judged anew.
    pub fn ask_again(&mut self, trace: TraceId, now: Moment) {
        if let Some(entry) = self.index.get_mut(trace)
            && entry.stage == Stage::Undecided
            && std::mem::take(&mut entry.is_asking)
        {
            self.deadlines.push(now, trace);
        }
    }

    pub(super) fn due(&self, entry: &TraceEntry) -> (Moment, DecideReason) {
        let is_behind = self.refold.is_behind(entry, &self.rules);
        // A trace that grew to its bound while nothing was decided is due at once.
        if entry.spans >= self.config.trace_spans_max
            || entry.span_bytes >= self.config.trace_bytes_max
            || !is_behind && self.rules.is_too_large(&entry.state)
        {
            return (entry.last_seen, DecideReason::TraceBound);
        }
        entry.deadline(&self.rules.timing)
    }

    fn decide(&mut self, trace: TraceId, vote: Vote, now: Moment) {
        if let Some(entry) = self.index.get(trace) {
            let due = match self.due(entry) {
                (at, _) if self.handing.elsewhere(trace).is_some() => (at, DecideReason::Forced),
                (at, _) if entry.is_early && at > now => (now, DecideReason::Pressure),
                due => due,
            };
            self.decide_because(trace, vote, due, now);
        }
    }

    /// `due`: when and why.
    pub(super) fn decide_because(
        &mut self,
        trace: TraceId,
        vote: Vote,
        (at, reason): (Moment, DecideReason),
        now: Moment,
    ) {
        self.metrics
            .decision_lag_seconds
            .observe(now.since(at).as_secs_f64());
        self.verdicts += 1;
        let decision = Decision {
            trace,
            verdict: vote.verdict,
            id: self.next_verdict_id(trace),
            threshold: vote.threshold,
            policy: vote.policy,
            rules_version: self.rules.version,
            decided_at: now,
        };
        self.metrics.decided(vote.verdict, reason);
        let extent = self.writer.verdict(&decision);
        self.note_unwritten(Unwritten::Verdict(decision));
        self.remember(decision, extent.segment);
        if let Some(entry) = self.index.get(trace) {
            let fragments = by_segment(entry.fragments());
            self.note_covered(extent.segment, trace, &fragments);
        }
        self.apply(decision);
    }

    /// What a verdict does to the trace in hand.
    pub(super) fn apply(&mut self, decision: Decision) {
        let trace = decision.trace;
        match decision.verdict {
            Verdict::Keep => {
                let Some(entry) = self.index.decide_keep(trace) else {
                    return;
                };
                entry.decision = Some(Box::new(decision));
                self.by_policy.kept(decision.policy, entry.spans);
                self.queue_export(trace);
            }
            Verdict::Drop => {
                let Some(entry) = self.index.remove(trace) else {
                    return;
                };
                self.metrics.spans_dropped.inc_by(u64::from(entry.spans));
                let batch = self.last_unwritten_batch();
                let until = decision.decided_at + self.config.drop_retain;
                self.retain(Retained::of(&entry, until, batch, trace));
            }
        }
    }

    pub(super) fn next_verdict_id(&self, trace: TraceId) -> VerdictId {
        let seed = self
            .config
            .verdict_seed
            .wrapping_add(self.verdicts.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        VerdictId(xxhash_rust::xxh3::xxh3_64_with_seed(trace.as_bytes(), seed) as u32)
    }

    pub(super) fn remember(&mut self, decision: Decision, recorded_in: SegmentId) {
        let forgotten = self.decisions.remember(decision, recorded_in);
        self.metrics
            .decisions_forgotten_early
            .inc_by(forgotten as u64);
    }
}
