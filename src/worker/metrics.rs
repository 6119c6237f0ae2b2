//! What a worker counts. Labels are closed enums, resolved once: a shard increments plain counters.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::model::Verdict;
use crate::policy::Rules;
use crate::trace::DecideReason;
use crate::wire::{RejectReason, Unwritten, UnwrittenSpans};
use crate::worker::dead_letters::DeadLetterMetrics;
use crate::worker::handoff::HandoffMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectLabels {
    reason: RejectLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RejectLabel(RejectReason);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnwrittenLabels {
    reason: UnwrittenLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UnwrittenLabel(Unwritten);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    verdict: VerdictLabel,
    reason: DecideLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct VerdictLabel(Verdict);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DecideLabel(DecideReason);

/// What became of a span's fragment at a shard. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpanFate {
    /// Appended to an undecided trace.
    Appended,
    /// A retry: these very bytes are here or were exported.
    Duplicate,
    /// After a KEEP: appended and exported under the remembered verdict.
    LateKept,
    /// After a DROP: acknowledged and gone, as the verdict says.
    LateDropped,
    /// Of a trace that another member owns: passed on.
    Forwarded,
    /// Of a trace that another member owns and that could not be passed on: held here.
    Custody,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FateLabels {
    fate: FateLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FateLabel(SpanFate);

impl SpanFate {
    pub const ALL: [Self; 6] = [
        Self::Appended,
        Self::Duplicate,
        Self::LateKept,
        Self::LateDropped,
        Self::Forwarded,
        Self::Custody,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Appended => "appended",
            Self::Duplicate => "duplicate",
            Self::LateKept => "late_kept",
            Self::LateDropped => "late_dropped",
            Self::Forwarded => "forwarded",
            Self::Custody => "custody",
        }
    }
}

impl EncodeLabelValue for RejectLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.label().encode(encoder)
    }
}

impl EncodeLabelValue for UnwrittenLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.label().encode(encoder)
    }
}

impl EncodeLabelValue for VerdictLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.label().encode(encoder)
    }
}

impl EncodeLabelValue for DecideLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.label().encode(encoder)
    }
}

impl EncodeLabelValue for FateLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.label().encode(encoder)
    }
}

/// The policy that kept a trace. Not a closed enum, but as bounded: the policies of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    policy: String,
}

/// Kept traces and their spans, for each policy of the rules.
#[derive(Clone, Debug)]
pub struct KeptByPolicy(Vec<(Counter, Counter)>);

impl KeptByPolicy {
    pub fn count(&self, policy: Option<u16>, spans: u32) {
        if let Some((traces, in_spans)) = policy.and_then(|it| self.0.get(usize::from(it))) {
            traces.inc();
            in_spans.inc_by(spans.into());
        }
    }
}

/// Shared by the parts of a worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    pub spans_received: Counter,
    rejected: Vec<Counter>,
    fates: Vec<Counter>,
    decisions: Vec<Counter>,
    traces_kept: Family<PolicyLabels, Counter>,
    spans_kept: Family<PolicyLabels, Counter>,
    unwritten: Vec<Counter>,
    pub spans_dropped: Counter,
    pub index_bytes: Gauge,
    pub undecided_traces: Gauge,
    pub undecided_spans: Gauge,
    pub awaiting_export_traces: Gauge,
    pub decisions_remembered: Gauge,
    pub decision_memory_bytes: Gauge,
    pub decisions_forgotten_early: Counter,
    pub spans_exported: Counter,
    pub spans_deduplicated: Counter,
    pub span_id_conflicts: Counter,
    pub exports_put_back: Counter,
    pub append_seconds: Histogram,
    pub decision_lag_seconds: Histogram,
    pub log_bytes: Gauge,
    pub log_segments: Gauge,
    pub log_write_failures: Counter,
    pub log_unlink_failures: Counter,
    pub log_read_failures: Counter,
    pub log_fragments_damaged: Counter,
    pub log_torn_tails: Counter,
    pub log_damaged_records: Counter,
    pub forwards_failed: Counter,
    pub dead_letters: DeadLetterMetrics,
    pub handoff: HandoffMetrics,
}

impl WorkerMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let rejected = Family::<RejectLabels, Counter>::default();
        registry.register(
            "worker_spans_rejected",
            "Spans that can never be accepted, by reason (told to the client as partial success)",
            rejected.clone(),
        );
        let fates = Family::<FateLabels, Counter>::default();
        registry.register(
            "worker_spans",
            "Accepted spans by what became of them at their shard",
            fates.clone(),
        );
        let decisions = Family::<DecisionLabels, Counter>::default();
        registry.register(
            "worker_traces_decided",
            "Traces decided, by verdict and by what made them complete",
            decisions.clone(),
        );
        let traces_kept = Family::<PolicyLabels, Counter>::default();
        registry.register(
            "worker_traces_kept",
            "Traces whose verdict is KEEP, by the policy that kept them with the smallest threshold",
            traces_kept.clone(),
        );
        let spans_kept = Family::<PolicyLabels, Counter>::default();
        registry.register(
            "worker_spans_kept",
            "Spans of traces whose verdict is KEEP, by the same policy; late ones are not in it",
            spans_kept.clone(),
        );
        let unwritten = Family::<UnwrittenLabels, Counter>::default();
        registry.register(
            "worker_weights_unwritten",
            "Exported spans without a sampling threshold (th) of ours, by why it could not be written",
            unwritten.clone(),
        );
        let seconds = || Histogram::new(exponential_buckets(0.000_5, 2.0, 16));
        let append_seconds = seconds();
        registry.register(
            "worker_append_duration_seconds",
            "From a request's arrival at its shards to all its bytes being written",
            append_seconds.clone(),
        );
        let decision_lag_seconds = seconds();
        registry.register(
            "worker_decision_lag_seconds",
            "How long after its deadline a trace was decided",
            decision_lag_seconds.clone(),
        );
        Self {
            spans_received: counter(
                registry,
                "worker_spans_received",
                "Spans in well-formed requests, rejected ones included",
            ),
            rejected: RejectReason::ALL
                .iter()
                .map(|reason| {
                    rejected.get_or_create_owned(&RejectLabels {
                        reason: RejectLabel(*reason),
                    })
                })
                .collect(),
            fates: SpanFate::ALL
                .iter()
                .map(|fate| {
                    fates.get_or_create_owned(&FateLabels {
                        fate: FateLabel(*fate),
                    })
                })
                .collect(),
            decisions: [Verdict::Keep, Verdict::Drop]
                .iter()
                .flat_map(|verdict| {
                    DecideReason::ALL
                        .iter()
                        .map(move |reason| (verdict, reason))
                })
                .map(|(verdict, reason)| {
                    decisions.get_or_create_owned(&DecisionLabels {
                        verdict: VerdictLabel(*verdict),
                        reason: DecideLabel(*reason),
                    })
                })
                .collect(),
            traces_kept,
            spans_kept,
            unwritten: Unwritten::ALL
                .iter()
                .map(|reason| {
                    unwritten.get_or_create_owned(&UnwrittenLabels {
                        reason: UnwrittenLabel(*reason),
                    })
                })
                .collect(),
            spans_dropped: counter(
                registry,
                "worker_spans_dropped",
                "Spans of traces whose verdict is DROP",
            ),
            index_bytes: gauge(
                registry,
                "worker_index_bytes",
                "Memory that undecided traces and those awaiting export take, roughly",
            ),
            undecided_traces: gauge(
                registry,
                "worker_undecided_traces",
                "Traces not decided yet",
            ),
            undecided_spans: gauge(
                registry,
                "worker_undecided_spans",
                "Spans of traces not decided yet",
            ),
            awaiting_export_traces: gauge(
                registry,
                "worker_awaiting_export_traces",
                "Kept traces that the backend has not acknowledged yet",
            ),
            decisions_remembered: gauge(
                registry,
                "worker_decisions_remembered",
                "Verdicts remembered for late spans",
            ),
            decision_memory_bytes: gauge(
                registry,
                "worker_decision_memory_bytes",
                "Memory that remembered verdicts take",
            ),
            decisions_forgotten_early: counter(
                registry,
                "worker_decisions_forgotten_early",
                "Verdicts forgotten before 10 minutes because --decision-memory-max-bytes was reached",
            ),
            spans_exported: counter(
                registry,
                "worker_spans_exported",
                "Spans in batches that the backend acknowledged",
            ),
            spans_deduplicated: counter(
                registry,
                "worker_spans_deduplicated",
                "Byte-identical copies of a span left out at export",
            ),
            span_id_conflicts: counter(
                registry,
                "worker_span_id_conflicts",
                "Spans with the ID of another span of their trace and other bytes; all were exported",
            ),
            exports_put_back: counter(
                registry,
                "worker_exports_put_back",
                "Kept traces that the backend refused, or that could not be read back, kept in the log to be offered again",
            ),
            append_seconds,
            decision_lag_seconds,
            log_bytes: gauge(
                registry,
                "worker_log_bytes",
                "Bytes of all segments on disk",
            ),
            log_segments: gauge(registry, "worker_log_segments", "Segments on disk"),
            log_write_failures: counter(
                registry,
                "worker_log_write_failures",
                "Batches that could not be written; their requests were refused",
            ),
            log_unlink_failures: counter(
                registry,
                "worker_log_unlink_failures",
                "Batches with a segment that could not be removed; it is removed later",
            ),
            log_read_failures: counter(
                registry,
                "worker_log_read_failures",
                "Times that kept traces could not be read back for export; they are tried again",
            ),
            log_fragments_damaged: counter(
                registry,
                "worker_log_fragments_damaged",
                "Kept fragments whose bytes in the log are damaged; they were left out",
            ),
            log_torn_tails: counter(
                registry,
                "worker_log_torn_tails",
                "Ends of segments that an earlier life did not write whole; cut off at the start",
            ),
            log_damaged_records: counter(
                registry,
                "worker_log_damaged_records",
                "Records that the start found damaged, and skipped",
            ),
            dead_letters: DeadLetterMetrics::register(registry),
            handoff: HandoffMetrics::register(registry),
            forwards_failed: counter(
                registry,
                "worker_forwards_failed",
                "Messages that could not be passed on to their owner; their traces are held here",
            ),
        }
    }

    /// Every policy has its counters from the start: one that keeps nothing shows 0.
    pub fn kept_by(&self, rules: &Rules) -> KeptByPolicy {
        let counters = rules.policies.iter().map(|policy| {
            let labels = PolicyLabels {
                policy: policy.name.clone(),
            };
            (
                self.traces_kept.get_or_create_owned(&labels),
                self.spans_kept.get_or_create_owned(&labels),
            )
        });
        KeptByPolicy(counters.collect())
    }

    pub fn rejected(&self, reason: RejectReason, spans: u64) {
        self.rejected[reason as usize].inc_by(spans);
    }

    pub fn fate(&self, fate: SpanFate, spans: u64) {
        self.fates[fate as usize].inc_by(spans);
    }

    pub fn weights_unwritten(&self, spans: UnwrittenSpans) {
        for (counter, reason) in self.unwritten.iter().zip(Unwritten::ALL) {
            counter.inc_by(spans.of(reason).into());
        }
    }

    pub fn decided(&self, verdict: Verdict, reason: DecideReason) {
        let verdict = match verdict {
            Verdict::Keep => 0,
            Verdict::Drop => 1,
        };
        self.decisions[verdict * DecideReason::ALL.len() + reason as usize].inc();
    }

    #[cfg(test)]
    pub(crate) fn decided_so_far(&self, reason: DecideReason) -> u64 {
        let by_reason = self.decisions.iter().skip(reason as usize);
        by_reason
            .step_by(DecideReason::ALL.len())
            .map(Counter::get)
            .sum()
    }
}
