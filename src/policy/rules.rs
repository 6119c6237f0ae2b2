//! Compiled rules and the vote over one complete trace.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::{Randomness, Threshold, TraceId, Verdict};
use crate::policy::fold::{Fact, Needs};
use crate::policy::{FoldState, Pattern};
use crate::wire::{FragmentView, spans_in};

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

/// One policy of the file, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub name: String,
    pub kind: PolicyKind,
}

/// What a policy keeps.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyKind {
    AlwaysSample,
    /// By the trace's own randomness; `None` keeps nothing.
    Probabilistic(Option<Threshold>),
    /// Traces with a span of one of these.
    StatusCode(StatusCodes),
    Latency(Latency),
    SpanCount(SpanCount),
    /// As many as the rate has room for, in windows: see [`crate::policy::Limits`].
    RateLimiting(RateLimiting),
    StringAttribute(StringAttribute),
}

/// A set of OTLP's UNSET (0), OK (1) and ERROR (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusCodes(u8);

/// Whole milliseconds from the earliest start to the latest end: more than the threshold, and no
/// more than the upper one.
///
/// Asked after each span, as in the Collector: with an upper threshold a trace is kept if it was
/// within the bounds at any time while it grew.
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

/// A policy file, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Hash of what the file means; equal rules, equal version.
    pub version: u64,
    pub timing: Timing,
    pub policies: Vec<Policy>,
    /// Whether a span that comes without `th` was certain to be sent (T = 0). If that is not known,
    /// it is exported without `th`: its count is unknown then, and must not be stated as 1.
    pub assume_unsampled_upstream: bool,
    needs: Needs,
    /// For each policy the fact that it waits for.
    facts: Vec<Option<Fact>>,
    /// How many policies are limits.
    limits: usize,
}

/// What the rules say of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    pub verdict: Verdict,
    /// With which the trace was kept; meaningless for a drop.
    pub threshold: Threshold,
    /// The policy that kept it with the smallest threshold, the first of several: index into
    /// [`Rules::policies`]. So a certain keep goes before a share of 5 %.
    pub policy: Option<u16>,
}

/// A limit's yes to one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limited {
    pub threshold: Threshold,
    /// Index into [`Rules::policies`].
    pub policy: u16,
}

impl Vote {
    /// Kept whatever a limit says: with the smallest threshold there is.
    pub fn is_certain(&self) -> bool {
        self.verdict == Verdict::Keep && self.threshold == Threshold::ALWAYS
    }
}

impl StatusCodes {
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

impl StringAttribute {
    /// Without regard to `invert_match`, which is about the whole trace.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        match &self.values {
            Values::Exact(values) => {
                std::str::from_utf8(value).is_ok_and(|value| values.contains(value))
            }
            Values::Matching(patterns) => patterns.iter().any(|it| it.is_match(value)),
        }
    }
}

impl Rules {
    /// Takes spans without `th` as unsampled.
    pub fn new(timing: Timing, policies: Vec<Policy>) -> Self {
        let (needs, facts) = Needs::of(&policies);
        let is_limit = |policy: &&Policy| matches!(policy.kind, PolicyKind::RateLimiting(_));
        Self {
            limits: policies.iter().filter(is_limit).count(),
            version: version_of(&timing, &policies, true),
            timing,
            policies,
            assume_unsampled_upstream: true,
            needs,
            facts,
        }
    }

    #[must_use]
    pub fn assuming_unsampled_upstream(self, assume: bool) -> Self {
        Self {
            version: version_of(&self.timing, &self.policies, assume),
            assume_unsampled_upstream: assume,
            ..self
        }
    }

    /// Keeps everything after the Collector's default wait.
    pub fn keep_everything() -> Self {
        Self::new(
            Timing {
                decision_wait: Duration::from_secs(30),
                quiet_period: None,
                decision_wait_after_root_received: None,
            },
            vec![Policy {
                name: "default".into(),
                kind: PolicyKind::AlwaysSample,
            }],
        )
    }

    /// The state of a trace without spans.
    pub fn begin(&self) -> FoldState {
        self.needs.begin()
    }

    /// Heap that each state of these rules has beside its own size.
    pub fn state_heap_bytes(&self) -> usize {
        self.needs.state_heap_bytes()
    }

    /// Folds a fragment in. To be called once for each, in the order of arrival.
    #[inline]
    pub fn fold(&self, state: &mut FoldState, fragment: &FragmentView<'_>) {
        if self.needs.is_nothing() {
            return;
        }
        self.needs.resource(state, fragment.resource().pieces());
        for scope in fragment.scopes() {
            for span in scope.spans() {
                self.needs.span(state, span);
            }
        }
    }

    /// Folds a fragment that was read back: the header of its resource, and for each of its scopes
    /// `(12 len span)*`.
    pub fn fold_stored<'a>(
        &self,
        state: &mut FoldState,
        resource_header: &[u8],
        sections: impl Iterator<Item = &'a [u8]>,
    ) {
        if self.needs.is_nothing() {
            return;
        }
        self.needs.resource(state, std::iter::once(resource_header));
        for (_, span) in sections.flat_map(spans_in) {
            self.needs.span(state, span);
        }
    }

    /// Whether the votes depend on what spans say, so that a state that was lost must be folded
    /// again.
    pub fn reads_spans(&self) -> bool {
        !self.needs.is_nothing()
    }

    /// Whether a policy is a limit, so that a vote may wait for [`crate::policy::Limits`].
    pub fn has_limits(&self) -> bool {
        self.limits > 0
    }

    /// What decides where shares and limits are concerned: what a span states, or else the trace ID.
    pub fn randomness(&self, trace: TraceId, state: &FoldState) -> Randomness {
        state
            .stated_randomness()
            .unwrap_or_else(|| Randomness::of(trace))
    }

    /// OR of the policies, as in the Collector: kept if any keeps it, with the smallest threshold
    /// among those that do. `limited` is what the limits said; [`None`] if nothing, or not yet.
    pub fn vote(
        &self,
        trace: TraceId,
        state: &FoldState,
        spans: u32,
        limited: Option<Limited>,
    ) -> Vote {
        let randomness = self.randomness(trace, state);
        let mut best: Option<Limited> = None;
        for (index, (policy, fact)) in self.policies.iter().zip(&self.facts).enumerate() {
            let seen = || fact.is_some_and(|fact| state.has(fact));
            let certain = |yes: bool| yes.then_some(Threshold::ALWAYS);
            let threshold = match &policy.kind {
                PolicyKind::AlwaysSample => certain(true),
                PolicyKind::Probabilistic(threshold) => {
                    threshold.filter(|threshold| threshold.admits(randomness))
                }
                PolicyKind::StatusCode(codes) => certain(codes.0 & state.statuses() != 0),
                PolicyKind::Latency(latency) => certain(match latency.upper_threshold_millis {
                    Some(_) => seen(),
                    None => latency.holds(state.longest_millis()),
                }),
                PolicyKind::SpanCount(count) => {
                    certain(spans >= count.min && count.max.is_none_or(|max| spans <= max))
                }
                PolicyKind::StringAttribute(attribute) => certain(seen() != attribute.invert_match),
                PolicyKind::RateLimiting(_) => None,
            };
            if let Some(threshold) = threshold {
                // Policies are at most a thousand.
                let policy = index as u16;
                let this = Limited { threshold, policy };
                best = Some(best.map_or(this, |best| best.min(this)));
            }
        }
        let best = best.into_iter().chain(limited).min();
        Vote {
            verdict: best.map_or(Verdict::Drop, |_| Verdict::Keep),
            threshold: best.map_or(Threshold::ALWAYS, |best| best.threshold),
            policy: best.map(|best| best.policy),
        }
    }
}

/// Frozen: the log carries versions from one release to the next. Every field is written with a
/// tag or a length in front, so that no two meanings have one spelling.
fn version_of(timing: &Timing, policies: &[Policy], assume_unsampled_upstream: bool) -> u64 {
    let mut meaning = Meaning(b"tailring rules 1".to_vec());
    // A wait of zero never gets here; it means "off".
    meaning.nanos(Some(timing.decision_wait));
    meaning.nanos(timing.quiet_period);
    meaning.nanos(timing.decision_wait_after_root_received);
    for policy in policies {
        meaning.text(&policy.name);
        match &policy.kind {
            PolicyKind::AlwaysSample => meaning.tag(1),
            PolicyKind::Probabilistic(threshold) => {
                meaning.tag(2);
                meaning.number(threshold.map_or(u64::MAX, Threshold::bits));
            }
            PolicyKind::StatusCode(codes) => {
                meaning.tag(3);
                meaning.tag(codes.0);
            }
            PolicyKind::Latency(latency) => {
                meaning.tag(4);
                meaning.number(latency.threshold_millis as u64);
                meaning.number(latency.upper_threshold_millis.unwrap_or(0) as u64);
            }
            PolicyKind::SpanCount(count) => {
                meaning.tag(5);
                meaning.number(count.min.into());
                meaning.number(count.max.unwrap_or(0).into());
            }
            PolicyKind::RateLimiting(limit) => {
                meaning.tag(6);
                meaning.number(limit.spans_per_second);
                meaning.number(limit.burst_spans);
                meaning.tag((limit.scope == Scope::Worker).into());
            }
            PolicyKind::StringAttribute(attribute) => {
                meaning.tag(7);
                meaning.text(&attribute.key);
                meaning.tag(attribute.invert_match.into());
                match &attribute.values {
                    Values::Exact(values) => {
                        meaning.tag(1);
                        meaning.texts(values.iter().map(String::as_str));
                    }
                    Values::Matching(patterns) => {
                        meaning.tag(2);
                        meaning.texts(patterns.iter().map(Pattern::as_written));
                    }
                }
            }
        }
    }
    if !assume_unsampled_upstream {
        // No name has this length.
        meaning.number(u64::MAX);
    }
    xxhash_rust::xxh3::xxh3_64(&meaning.0)
}

struct Meaning(Vec<u8>);

impl Meaning {
    fn tag(&mut self, tag: u8) {
        self.0.push(tag);
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn nanos(&mut self, wait: Option<Duration>) {
        let nanos = wait.map_or(0, |wait| wait.as_nanos());
        self.0.extend_from_slice(&nanos.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn texts<'a>(&mut self, texts: impl ExactSizeIterator<Item = &'a str>) {
        self.number(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
    }
}
