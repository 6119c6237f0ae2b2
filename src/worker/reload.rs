//! Other rules for a worker that runs.
//!
//! Undecided traces follow them (`shard::refold`), and so do limits, exporters and the labels of
//! metrics. Where rules come from is not known here.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::policy::Rules;
use crate::worker::Worker;

/// What became of a look at the policy file. Also a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// Its rules are in force.
    Taken,
    /// It means what it meant.
    Unchanged,
    /// It has mistakes, or cannot be read: the rules stay.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: String,
}

/// What is counted about changes of the rules; cheap to clone.
#[derive(Clone, Debug)]
pub struct ReloadMetrics {
    outcomes: Vec<Counter>,
    in_force: Family<VersionLabels, Gauge>,
    /// Unix seconds; 0 while the file is in force.
    pub refused_since: Gauge,
    pub(crate) refold_traces: Gauge,
    pub(crate) refold_bytes: Counter,
    pub(crate) refold_read_failures: Counter,
}

impl ReloadOutcome {
    pub const ALL: [Self; 3] = [Self::Taken, Self::Unchanged, Self::Refused];

    pub fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

impl ReloadMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        type ByOutcome = Family<[(&'static str, &'static str); 1], Counter>;
        let outcomes = ByOutcome::default();
        registry.register(
            "worker_policy_reloads",
            "Policy files that changed or were asked for with SIGHUP, by what became of them",
            outcomes.clone(),
        );
        let in_force = Family::default();
        registry.register(
            "worker_rules",
            "1 for the version of the rules in force; verdicts in the log carry it",
            in_force.clone(),
        );
        let refused_since = Gauge::default();
        registry.register(
            "worker_policy_refused_since_seconds",
            "Unix time since which the policy file is refused; 0 while its rules are in force",
            refused_since.clone(),
        );
        let refold_traces = Gauge::default();
        registry.register(
            "worker_refold_traces",
            "Undecided traces that are still to be looked at, or folded again, after a change of the rules",
            refold_traces.clone(),
        );
        let refold_bytes = Counter::default();
        registry.register(
            "worker_refold_bytes",
            "Bytes read back from the log to fold undecided traces again",
            refold_bytes.clone(),
        );
        let refold_read_failures = Counter::default();
        registry.register(
            "worker_refold_read_failures",
            "Fragments that were damaged when they were to be folded again, and were left out; and traces that could not be read, and are tried again",
            refold_read_failures.clone(),
        );
        let by =
            |outcome: &ReloadOutcome| outcomes.get_or_create_owned(&[("outcome", outcome.label())]);
        Self {
            outcomes: ReloadOutcome::ALL.iter().map(by).collect(),
            in_force,
            refused_since,
            refold_traces,
            refold_bytes,
            refold_read_failures,
        }
    }

    pub fn count(&self, outcome: ReloadOutcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// These rules are in force, and no others.
    pub fn in_force(&self, rules: &Rules) {
        self.in_force.clear();
        let version = rules.version.to_string();
        self.in_force
            .get_or_create(&VersionLabels { version })
            .set(1);
    }
}

impl Worker {
    pub fn reload_metrics(&self) -> ReloadMetrics {
        self.metrics.reload.clone()
    }

    /// The rules in force.
    pub async fn rules(&self) -> Arc<Rules> {
        self.rules.lock().await.clone()
    }

    /// Puts other rules in force. When this returns, no trace is judged by the earlier ones any more.
    pub async fn reload(&self, rules: Rules) -> ReloadOutcome {
        // Held throughout: all parts see changes in one order.
        let mut in_force = self.rules.lock().await;
        if in_force.version == rules.version {
            return ReloadOutcome::Unchanged;
        }
        let rules = Arc::new(rules);
        self.labels.learn(&rules);
        // Limits first: no shard asks limits that are not there yet.
        if let Some(limiter) = self.limiter() {
            limiter.set_rules(Arc::clone(&rules)).await;
        }
        let shards = self.shards.iter();
        let taken: Vec<_> = shards.map(|it| it.set_rules(Arc::clone(&rules))).collect();
        for shard in taken {
            // One that has stopped judges no more.
            shard.await.ok();
        }
        self.metrics.forget_policies(&in_force, &rules);
        self.metrics.reload.in_force(&rules);
        *in_force = rules;
        ReloadOutcome::Taken
    }
}
