//! What a worker counts of handoffs. Labels are closed enums, resolved once.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What became of a generation at its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GenerationEnd {
    /// The receiver has it in its log.
    Moved,
    /// Nobody said that it has: it is held on and offered again.
    MergedBack,
}

/// What became of the spans of a received fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReceivedFate {
    /// Appended to an undecided trace.
    Appended,
    /// They are here, or were exported.
    Duplicate,
    /// After a KEEP: appended to be exported under it.
    LateKept,
    /// After a DROP that evidence may still raise: the trace is folded again.
    Reopened,
    /// After a DROP that is final.
    Dropped,
    /// After a DROP whose trace is in no log any more (`--drop-retain`): the verdict stands.
    TooLate,
}

/// Two members gave different verdicts on one trace; the one that holds from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConflictWon {
    /// KEEP over a DROP that could be raised. Nothing is split if the dropped spans are still there.
    Keep,
    /// A final DROP, after the other member had kept its part.
    Drop,
    /// Both kept, each its part, under verdicts of their own.
    Neither,
}

trait Label: Copy + Eq + std::hash::Hash + std::fmt::Debug + 'static {
    const ALL: &'static [Self];
    fn label(self) -> &'static str;
}

impl Label for GenerationEnd {
    const ALL: &'static [Self] = &[Self::Moved, Self::MergedBack];
    fn label(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::MergedBack => "merged_back",
        }
    }
}

impl Label for ReceivedFate {
    const ALL: &'static [Self] = &[
        Self::Appended,
        Self::Duplicate,
        Self::LateKept,
        Self::Reopened,
        Self::Dropped,
        Self::TooLate,
    ];
    fn label(self) -> &'static str {
        match self {
            Self::Appended => "appended",
            Self::Duplicate => "duplicate",
            Self::LateKept => "late_kept",
            Self::Reopened => "reopened",
            Self::Dropped => "dropped",
            Self::TooLate => "too_late",
        }
    }
}

impl Label for ConflictWon {
    const ALL: &'static [Self] = &[Self::Keep, Self::Drop, Self::Neither];
    fn label(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
            Self::Neither => "neither",
        }
    }
}

/// A closed enum as the value of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Value<L>(L);

impl<L: Label> EncodeLabelValue for Value<L> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.label().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    end: Value<GenerationEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FateLabels {
    fate: Value<ReceivedFate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConflictLabels {
    won: Value<ConflictWon>,
}

/// Shared by the shards of a worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct HandoffMetrics {
    ends: Vec<Counter>,
    received: Vec<Counter>,
    conflicts: Vec<Counter>,
    /// Traces that wait to be handed over.
    pub waiting: Gauge,
    /// Not handed over when this worker stopped.
    pub drain_leftover_bytes: Gauge,
    pub decisions_told: Counter,
    pub decisions_learned: Counter,
    pub verdicts_raised: Counter,
    pub upgrades_missed: Counter,
    pub reread_failures: Counter,
}

impl HandoffMetrics {
    pub(in crate::worker) fn register(registry: &mut Registry) -> Self {
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let waiting = Gauge::default();
        registry.register(
            "worker_handoff_waiting_traces",
            "Traces of other members that are held here until they can be handed over",
            waiting.clone(),
        );
        let drain_leftover_bytes = Gauge::default();
        registry.register(
            "worker_drain_leftover_bytes",
            "Bytes of traces that a stop could not hand over or export; they wait in the log for the next start",
            drain_leftover_bytes.clone(),
        );
        let ends = Family::<EndLabels, Counter>::default();
        registry.register(
            "worker_handoff_generations",
            "Generations offered to other members, by whether they took them",
            ends.clone(),
        );
        let received = Family::<FateLabels, Counter>::default();
        registry.register(
            "worker_handoff_spans_received",
            "Spans that other members handed over, by what became of them",
            received.clone(),
        );
        let conflicts = Family::<ConflictLabels, Counter>::default();
        registry.register(
            "worker_decision_conflicts",
            "Traces on which two members gave different verdicts, by the one that holds",
            conflicts.clone(),
        );
        let ends = GenerationEnd::ALL
            .iter()
            .map(|end| ends.get_or_create_owned(&EndLabels { end: Value(*end) }));
        let received = ReceivedFate::ALL
            .iter()
            .map(|fate| received.get_or_create_owned(&FateLabels { fate: Value(*fate) }));
        let conflicts = ConflictWon::ALL
            .iter()
            .map(|won| conflicts.get_or_create_owned(&ConflictLabels { won: Value(*won) }));
        Self {
            ends: ends.collect(),
            received: received.collect(),
            conflicts: conflicts.collect(),
            waiting,
            drain_leftover_bytes,
            decisions_told: counter(
                registry,
                "worker_decisions_told",
                "Verdicts that the members who own their traces now were told",
            ),
            decisions_learned: counter(
                registry,
                "worker_decisions_learned",
                "Verdicts that other members told",
            ),
            verdicts_raised: counter(
                registry,
                "worker_verdicts_raised",
                "DROPs that became KEEP because spans acknowledged before the verdict came from another member",
            ),
            upgrades_missed: counter(
                registry,
                "worker_upgrades_missed",
                "Traces that stay dropped although spans that came from another member would have kept them",
            ),
            reread_failures: counter(
                registry,
                "worker_handoff_reread_failures",
                "Times that a trace could not be read again from the log, whole or in part",
            ),
        }
    }

    pub(in crate::worker) fn ended(&self, end: GenerationEnd) {
        self.ends[end as usize].inc();
    }

    pub(in crate::worker) fn received(&self, fate: ReceivedFate, spans: u32) {
        self.received[fate as usize].inc_by(spans.into());
    }

    pub(in crate::worker) fn conflict(&self, won: ConflictWon) {
        self.conflicts[won as usize].inc();
    }

    /// So far.
    pub fn count_of_conflicts(&self, won: ConflictWon) -> u64 {
        self.conflicts[won as usize].get()
    }

    /// So far.
    pub fn count_of_ends(&self, end: GenerationEnd) -> u64 {
        self.ends[end as usize].get()
    }

    /// So far.
    pub fn count_of_received(&self, fate: ReceivedFate) -> u64 {
        self.received[fate as usize].get()
    }
}
