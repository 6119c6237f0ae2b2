//! The policies of a file: what each looks at and keeps. How they vote is `program`'s.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::Threshold;
use crate::policy::ottl::OttlCondition;
use crate::policy::{HashSeed, Pattern};
use crate::wire::Weights;

/// When a trace is complete. The earliest of these decides; `decision_wait` is the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// After the first span.
    pub decision_wait: Duration,
    /// After the last span.
    pub quiet_period: Option<Duration>,
    /// After the root span.
    pub decision_wait_after_root_received: Option<Duration>,
}

/// What a file says beside its policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub compatibility: Compatibility,
    /// Whether a span that comes without `th` was certain to be sent (T = 0). If that is not known,
    /// it is exported without `th`: its count is unknown then, and must not be stated as 1.
    pub assume_unsampled_upstream: bool,
    pub weights: Weights,
    /// Policies behind the first one that keeps a trace are not asked: limits are not charged.
    pub sample_on_first_match: bool,
    pub strategy: Strategy,
    /// A trace that grows beyond is dropped at once.
    pub trace_bytes_max: Option<u64>,
}

/// Whose behaviour is meant where ours differs from the Collector's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compatibility {
    Tailring,
    /// The Collector's, with its hash, its limits for each process, and its known bugs.
    Collector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Policies vote once, over the whole trace.
    TraceComplete,
    /// Policies vote over each fragment as it comes, and a yes decides. What nobody kept when the
    /// trace is complete is dropped.
    SpanIngest,
}

/// One policy of the file, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// That of a policy inside another one may be empty.
    pub name: String,
    pub kind: PolicyKind,
}

/// What a policy keeps.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyKind {
    AlwaysSample,
    /// By the trace's own randomness; `None` keeps nothing.
    Probabilistic(Option<Threshold>),
    /// By the Collector's hash of the trace ID.
    HashSeed(HashSeed),
    /// Traces with a span of one of these.
    StatusCode(StatusCodes),
    Latency(Latency),
    SpanCount(SpanCount),
    /// As many as the rate has room for, in windows: see [`crate::policy::Limits`].
    RateLimiting(RateLimiting),
    /// The same, by what the traces weigh.
    BytesLimiting(BytesLimiting),
    StringAttribute(StringAttribute),
    NumericAttribute(NumericAttribute),
    BooleanAttribute(BooleanAttribute),
    TraceState(TraceState),
    /// Traces with a span or an event of which a condition holds.
    OttlCondition(OttlCondition),
    /// Traces with a span whose sampled flag is set.
    TraceFlags,
    /// What all of these keep. Asked in their order, up to the first that does not.
    And(Vec<Policy>),
    /// What this one does not keep.
    Not(Box<Policy>),
    /// Drops what all of these keep, whatever other policies say. Only at the top.
    Drop(Vec<Policy>),
    Composite(Composite),
}

/// A set of OTLP's UNSET (0), OK (1) and ERROR (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusCodes(pub(super) u8);

/// Whole milliseconds from the earliest start to the latest end: more than the threshold, and no
/// more than the upper one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    pub threshold_millis: i64,
    pub upper_threshold_millis: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanCount {
    pub min: u32,
    pub max: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimiting {
    /// Above zero.
    pub spans_per_second: u64,
    /// What a quiet time saves up at most.
    pub burst_spans: u64,
    pub scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BytesLimiting {
    /// Above zero. Bytes of the trace as OTLP protobuf.
    pub bytes_per_second: u64,
    pub burst_bytes: u64,
    pub scope: Scope,
}

/// Whose rate a limit's rate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Of all workers together: each has its share of the slots. The burst is not divided.
    Cluster,
    /// Of each worker alone, as a Collector's is.
    Worker,
}

/// Traces of which a resource or a span has this attribute with such a string; inverted, all others.
#[derive(Debug, Clone, PartialEq)]
pub struct StringAttribute {
    pub key: String,
    pub values: Values,
    pub invert_match: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// One of these, byte for byte.
    Exact(BTreeSet<String>),
    /// Any of these matches somewhere in it.
    Matching(Vec<Pattern>),
}

/// Traces of which a resource or a span has this attribute with an integer from `min` to `max`;
/// inverted, all others. What is no integer counts as 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumericAttribute {
    pub key: String,
    pub min: i64,
    pub max: i64,
    pub invert_match: bool,
}

/// The same for one of the two truths. What is none counts as false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BooleanAttribute {
    pub key: String,
    pub value: bool,
    pub invert_match: bool,
}

/// Traces with a span whose trace state has this key with one of these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceState {
    pub key: String,
    pub values: BTreeSet<String>,
}

/// Parts of one rate: each policy's traces have one of their own, and what it has no room for goes
/// to the next policy that would keep it.
#[derive(Debug, Clone, PartialEq)]
pub struct Composite {
    /// Above zero.
    pub max_spans_per_second: u64,
    pub scope: Scope,
    /// In the order in which they are asked.
    pub subs: Vec<CompositeSub>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CompositeSub {
    pub policy: Policy,
    /// Its part of the rate.
    pub spans_per_second: u64,
}

impl PolicyKind {
    /// As a file has it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::AlwaysSample => "always_sample",
            Self::Probabilistic(_) | Self::HashSeed(_) => "probabilistic",
            Self::StatusCode(_) => "status_code",
            Self::Latency(_) => "latency",
            Self::SpanCount(_) => "span_count",
            Self::RateLimiting(_) => "rate_limiting",
            Self::BytesLimiting(_) => "bytes_limiting",
            Self::StringAttribute(_) => "string_attribute",
            Self::NumericAttribute(_) => "numeric_attribute",
            Self::BooleanAttribute(_) => "boolean_attribute",
            Self::TraceState(_) => "trace_state",
            Self::OttlCondition(_) => "ottl_condition",
            Self::TraceFlags => "trace_flags",
            Self::And(_) => "and",
            Self::Not(_) => "not",
            Self::Drop(_) => "drop",
            Self::Composite(_) => "composite",
        }
    }

    /// The policies inside of it, in the order in which they are asked.
    pub fn subs(&self) -> Vec<&Policy> {
        match self {
            Self::And(subs) | Self::Drop(subs) => subs.iter().collect(),
            Self::Not(sub) => vec![sub],
            Self::Composite(composite) => composite.subs.iter().map(|sub| &sub.policy).collect(),
            _ => Vec::new(),
        }
    }
}

impl StatusCodes {
    /// As a file has them.
    pub fn names(self) -> Vec<&'static str> {
        [
            (Self::UNSET, "UNSET"),
            (Self::OK, "OK"),
            (Self::ERROR, "ERROR"),
        ]
        .into_iter()
        .filter(|(code, _)| self.0 & code.0 != 0)
        .map(|(_, name)| name)
        .collect()
    }

    pub const UNSET: Self = Self(1);
    pub const OK: Self = Self(1 << 1);
    pub const ERROR: Self = Self(1 << 2);

    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Latency {
    #[inline(always)]
    pub(super) fn holds(self, millis: i64) -> bool {
        millis > self.threshold_millis
            && self
                .upper_threshold_millis
                .is_none_or(|upper| millis <= upper)
    }
}

impl SpanCount {
    pub(super) fn holds(self, spans: u32) -> bool {
        spans >= self.min && self.max.is_none_or(|max| spans <= max)
    }
}

impl Values {
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(values) => {
                std::str::from_utf8(value).is_ok_and(|value| values.contains(value))
            }
            Self::Matching(patterns) => patterns.iter().any(|it| it.is_match(value)),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            compatibility: Compatibility::Tailring,
            assume_unsampled_upstream: true,
            weights: Weights::TraceState,
            sample_on_first_match: false,
            strategy: Strategy::TraceComplete,
            trace_bytes_max: None,
        }
    }
}
