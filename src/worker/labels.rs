//! What leaves with kept spans beside what came: how likely they were kept, and, if asked for, which
//! policy kept them.
//!
//! A decision names its policy by the place in the file that was in force, and outlives the file: what a
//! few versions of the rules said is remembered, and of a policy that is not known any more nothing is
//! said.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use crate::model::{Decision, Moment, Randomness};
use crate::policy::Rules;
use crate::wire::{Attribute, Weight, Weights};

/// Who is told which policy kept a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordPolicy {
    Off,
    /// `tailring.policy` on every span.
    Tailring,
    /// That, and on every scope what the Collector writes there: `tailsampling.policy`, and
    /// `tailsampling.cached_decision` where spans come after the decision.
    Collector,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Labels {
    record: RecordPolicy,
    /// The newest in front; there is always one.
    known: RwLock<VecDeque<Arc<Known>>>,
}

/// One version of the rules.
#[derive(Debug)]
struct Known {
    version: u64,
    assume_unsampled_upstream: bool,
    weights: Weights,
    /// For spans and for scopes, by the policy's place.
    policies: Vec<(Attribute, Attribute)>,
}

/// Decisions are remembered for 10 minutes, and a file is read every few seconds at most.
const VERSIONS_MAX: usize = 64;

impl Labels {
    pub(crate) fn new(record: RecordPolicy, rules: &Rules) -> Self {
        let labels = Self {
            record,
            known: RwLock::default(),
        };
        labels.learn(rules);
        labels
    }

    /// These rules are in force from now on.
    pub(crate) fn learn(&self, rules: &Rules) {
        let policies = rules.policies.iter().map(|policy| {
            (
                Attribute::text("tailring.policy", &policy.name),
                Attribute::text("tailsampling.policy", &policy.name),
            )
        });
        let newest = Arc::new(Known {
            version: rules.version,
            assume_unsampled_upstream: rules.settings.assume_unsampled_upstream,
            weights: rules.settings.weights,
            policies: match self.record {
                RecordPolicy::Off => Vec::new(),
                RecordPolicy::Tailring | RecordPolicy::Collector => policies.collect(),
            },
        });
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|it| it.version != rules.version);
        known.push_front(newest);
        known.truncate(VERSIONS_MAX);
    }

    /// The rules of a decision, or those in force if they are forgotten; and their policy that made it.
    fn of(&self, decision: &Decision) -> (Option<Arc<Known>>, Option<(Attribute, Attribute)>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let theirs = known.iter().find(|it| it.version == decision.rules_version);
        let policy = theirs.zip(decision.policy);
        let policy = policy.and_then(|(it, place)| it.policies.get(usize::from(place)).cloned());
        (theirs.or_else(|| known.front()).cloned(), policy)
    }

    /// What is written into each span of the trace.
    pub(crate) fn weight(&self, decision: &Decision) -> Weight {
        let (rules, policy) = self.of(decision);
        let (assume, weights) = rules.map_or((false, Weights::None), |it| {
            (it.assume_unsampled_upstream, it.weights)
        });
        let weight = Weight::new(decision.threshold, Randomness::of(decision.trace), assume);
        let weight = weight.written_as(weights, decision.trace);
        match policy {
            Some((attribute, _)) => weight.with_attribute(attribute),
            None => weight,
        }
    }

    /// What is written into each scope of a fragment.
    pub(crate) fn of_scopes(&self, decision: &Decision, arrival: Moment) -> Vec<Attribute> {
        if self.record != RecordPolicy::Collector {
            return Vec::new();
        }
        let policy = self.of(decision).1.map(|(_, attribute)| attribute);
        let is_late = arrival > decision.decided_at;
        let late = is_late.then(|| Attribute::truth("tailsampling.cached_decision", true));
        policy.into_iter().chain(late).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Threshold, TraceId, Verdict, VerdictId};
    use crate::policy::{Policy, PolicyKind, Rules, Timing};

    fn rules(seconds: u64, names: &[&str]) -> Rules {
        let timing = Timing {
            decision_wait: Duration::from_secs(seconds),
            quiet_period: None,
            decision_wait_after_root_received: None,
        };
        let policy = |name: &&str| Policy {
            name: (*name).to_owned(),
            kind: PolicyKind::AlwaysSample,
        };
        Rules::new(timing, names.iter().map(policy).collect())
    }

    fn decision(rules: &Rules, policy: Option<u16>) -> Decision {
        Decision {
            trace: TraceId::new([1; 16]).unwrap(),
            verdict: Verdict::Keep,
            id: VerdictId(1),
            threshold: Some(Threshold::ALWAYS),
            policy,
            rules_version: rules.version,
            decided_at: Moment::from_unix_millis(1_000),
        }
    }

    fn named(labels: &Labels, decision: &Decision) -> Option<Attribute> {
        labels.of(decision).1.map(|(of_span, _)| of_span)
    }

    #[test]
    fn a_policy_is_named_by_the_rules_that_decided_and_not_at_all_when_they_are_forgotten() {
        let (old, new, strange) = (rules(1, &["a", "b"]), rules(2, &["c"]), rules(3, &["d"]));
        let labels = Labels::new(RecordPolicy::Tailring, &old);
        labels.learn(&new);
        let name = |name| Some(Attribute::text("tailring.policy", name));
        assert_eq!(named(&labels, &decision(&old, Some(0))), name("a"));
        assert_eq!(named(&labels, &decision(&old, Some(1))), name("b"));
        assert_eq!(named(&labels, &decision(&new, Some(0))), name("c"));
        assert_eq!(named(&labels, &decision(&new, Some(1))), None);
        assert_eq!(named(&labels, &decision(&new, None)), None);
        assert_eq!(named(&labels, &decision(&strange, Some(0))), None);
        // The same file again is the same version, and moves to the front.
        labels.learn(&old);
        for seconds in 10..10 + VERSIONS_MAX as u64 - 1 {
            labels.learn(&rules(seconds, &["e"]));
        }
        assert_eq!(named(&labels, &decision(&old, Some(0))), name("a"));
        assert_eq!(named(&labels, &decision(&new, Some(0))), None);
    }

    #[test]
    fn scopes_are_told_only_if_asked_and_late_ones_that_they_are() {
        let rules = rules(1, &["a"]);
        let decision = decision(&rules, Some(0));
        let (before, after) = (decision.decided_at, Moment::from_unix_millis(1_001));
        for record in [RecordPolicy::Off, RecordPolicy::Tailring] {
            let labels = Labels::new(record, &rules);
            assert_eq!(labels.of_scopes(&decision, after), []);
        }
        let labels = Labels::new(RecordPolicy::Collector, &rules);
        let policy = Attribute::text("tailsampling.policy", "a");
        let late = Attribute::truth("tailsampling.cached_decision", true);
        assert_eq!(
            labels.of_scopes(&decision, before),
            std::slice::from_ref(&policy)
        );
        assert_eq!(labels.of_scopes(&decision, after), [policy, late]);
    }
}
