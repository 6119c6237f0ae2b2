//! The version of rules: a hash of what a file means.
//!
//! Frozen: the log carries versions from one release to the next. Every field is written with a
//! tag or a length in front, so that no two meanings have one spelling.

use std::time::Duration;

use crate::model::Threshold;
use crate::policy::ottl::{Condition, ErrorMode};
use crate::policy::{
    Compatibility, Pattern, Policy, PolicyKind, Scope, Settings, Strategy, Timing, Values,
};
use crate::wire::Weights;

pub(super) fn version_of(timing: &Timing, policies: &[Policy], settings: &Settings) -> u64 {
    let mut meaning = Meaning(b"tailring rules 1".to_vec());
    // A wait of zero never gets here; it means "off".
    meaning.nanos(Some(timing.decision_wait));
    meaning.nanos(timing.quiet_period);
    meaning.nanos(timing.decision_wait_after_root_received);
    for policy in policies {
        meaning.policy(policy, settings.compatibility);
    }
    // No name has such a length.
    if !settings.assume_unsampled_upstream {
        meaning.number(u64::MAX);
    }
    if settings.compatibility == Compatibility::Collector {
        meaning.number(u64::MAX - 1);
    }
    if settings.sample_on_first_match {
        meaning.number(u64::MAX - 2);
    }
    if settings.strategy == Strategy::SpanIngest {
        meaning.number(u64::MAX - 3);
    }
    if let Some(bytes) = settings.trace_bytes_max {
        meaning.number(u64::MAX - 4);
        meaning.number(bytes);
    }
    match settings.weights {
        Weights::TraceState => {}
        Weights::SampleRate => meaning.number(u64::MAX - 5),
        Weights::None => meaning.number(u64::MAX - 6),
    }
    xxhash_rust::xxh3::xxh3_64(&meaning.0)
}

struct Meaning(Vec<u8>);

impl Meaning {
    fn policy(&mut self, policy: &Policy, compatibility: Compatibility) {
        self.text(&policy.name);
        match &policy.kind {
            PolicyKind::AlwaysSample => self.tag(1),
            PolicyKind::Probabilistic(threshold) => {
                self.tag(2);
                self.number(threshold.map_or(u64::MAX, Threshold::bits));
            }
            PolicyKind::StatusCode(codes) => {
                self.tag(3);
                self.tag(codes.0);
            }
            PolicyKind::Latency(latency) => {
                // With an upper bound 4 is the Collector's meaning of it, which was ours once.
                let ours = latency.upper_threshold_millis.is_some()
                    && compatibility == Compatibility::Tailring;
                self.tag(if ours { 8 } else { 4 });
                self.number(latency.threshold_millis as u64);
                self.number(latency.upper_threshold_millis.unwrap_or(0) as u64);
            }
            PolicyKind::SpanCount(count) => {
                self.tag(5);
                self.number(count.min.into());
                self.number(count.max.unwrap_or(0).into());
            }
            PolicyKind::RateLimiting(limit) => {
                self.tag(6);
                self.number(limit.spans_per_second);
                self.number(limit.burst_spans);
                self.scope(limit.scope);
            }
            PolicyKind::StringAttribute(attribute) => {
                self.tag(7);
                self.text(&attribute.key);
                self.tag(attribute.invert_match.into());
                match &attribute.values {
                    Values::Exact(values) => {
                        self.tag(1);
                        self.texts(values.iter().map(String::as_str));
                    }
                    Values::Matching(patterns) => {
                        self.tag(2);
                        self.texts(patterns.iter().map(Pattern::as_written));
                    }
                }
            }
            PolicyKind::HashSeed(seed) => {
                self.tag(9);
                self.text(seed.salt());
                self.number(seed.bound());
            }
            PolicyKind::BytesLimiting(limit) => {
                self.tag(10);
                self.number(limit.bytes_per_second);
                self.number(limit.burst_bytes);
                self.scope(limit.scope);
            }
            PolicyKind::NumericAttribute(attribute) => {
                self.tag(11);
                self.text(&attribute.key);
                self.tag(attribute.invert_match.into());
                self.number(attribute.min as u64);
                self.number(attribute.max as u64);
            }
            PolicyKind::BooleanAttribute(attribute) => {
                self.tag(12);
                self.text(&attribute.key);
                self.tag(attribute.invert_match.into());
                self.tag(attribute.value.into());
            }
            PolicyKind::TraceState(state) => {
                self.tag(13);
                self.text(&state.key);
                self.texts(state.values.iter().map(String::as_str));
            }
            PolicyKind::OttlCondition(policy) => {
                self.tag(19);
                self.tag((policy.error_mode == ErrorMode::Propagate).into());
                for conditions in [&policy.span, &policy.span_event] {
                    self.texts(conditions.iter().map(Condition::as_written));
                }
            }
            PolicyKind::TraceFlags => self.tag(14),
            PolicyKind::And(subs) => {
                self.tag(15);
                self.policies(subs, compatibility);
            }
            PolicyKind::Not(sub) => {
                self.tag(16);
                self.policy(sub, compatibility);
            }
            PolicyKind::Drop(subs) => {
                self.tag(17);
                self.policies(subs, compatibility);
            }
            PolicyKind::Composite(composite) => {
                self.tag(18);
                self.number(composite.max_spans_per_second);
                self.scope(composite.scope);
                self.number(composite.subs.len() as u64);
                for sub in &composite.subs {
                    self.policy(&sub.policy, compatibility);
                    self.number(sub.spans_per_second);
                }
            }
        }
    }

    fn policies(&mut self, policies: &[Policy], compatibility: Compatibility) {
        self.number(policies.len() as u64);
        for policy in policies {
            self.policy(policy, compatibility);
        }
    }

    fn scope(&mut self, scope: Scope) {
        self.tag((scope == Scope::Worker).into());
    }

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
