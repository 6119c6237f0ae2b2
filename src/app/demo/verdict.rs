//! What a demo comes to: the numbers for a program, the summary for people.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::chaos::Counts;
use super::figures::{Figures, Price, share};
use super::oracle::{Findings, Terms};
use super::screen::{Screen, grouped, table};

/// The result of a demo. Shares are from 0 to 1, costs in dollars; those of a month follow from
/// the rate at which the fleet sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) seed: u64,
    pub(super) seconds: f64,
    /// Every verdict was as it must be.
    pub(super) agreed: bool,
    /// What was not.
    pub(super) complaints: Vec<String>,
    #[serde(flatten)]
    pub(super) findings: Findings,
    /// What was done to workers, with `--chaos`.
    #[serde(flatten)]
    pub(super) chaos: Option<Counts>,
    pub(super) traces_kept_share: f64,
    pub(super) spans_kept_share: f64,
    /// As the workers count them.
    pub(super) traces_kept_by: BTreeMap<String, u64>,
    /// How far the share that the baseline kept is from 5 %.
    pub(super) baseline_standard_errors: f64,
    /// A month's, by spans.
    pub(super) price_per_million: f64,
    pub(super) cost_before: f64,
    pub(super) cost_after: f64,
    /// What each trace costs that is kept by another policy than the baselines.
    pub(super) cost_per_useful_trace_before: f64,
    pub(super) cost_per_useful_trace_after: f64,
    /// OTLP/JSON, a request of the workers a line.
    pub(super) kept_traces_file: PathBuf,
}

impl Summary {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, where everything is known"
    )]
    pub(super) fn new(
        seed: u64,
        duration: Duration,
        price: Price,
        figures: &Figures,
        findings: Findings,
        terms: Terms,
        chaos: Option<Counts>,
        kept_traces_file: PathBuf,
    ) -> Self {
        let traces_kept_by: BTreeMap<String, u64> = figures
            .kept_by
            .iter()
            .map(|(policy, count)| (policy.clone(), count.traces))
            .collect();
        let complaints = findings.complaints(terms, &traces_kept_by);
        let seconds = duration.as_secs_f64();
        let month = |spans: u64| price.month(spans as f64 / seconds);
        Self {
            seed,
            seconds,
            agreed: complaints.is_empty(),
            complaints,
            chaos,
            traces_kept_share: share(findings.kept_turns, findings.turns),
            spans_kept_share: share(findings.kept_spans, findings.spans),
            traces_kept_by,
            baseline_standard_errors: findings.baseline_standard_errors(),
            price_per_million: price.0,
            cost_before: month(findings.spans),
            cost_after: month(findings.kept_spans),
            cost_per_useful_trace_before: price.of_each(findings.spans, findings.useful),
            cost_per_useful_trace_after: price.of_each(findings.kept_spans, findings.useful),
            kept_traces_file,
            findings,
        }
    }

    /// The last table, what the oracle found, and where the kept traces are.
    pub(super) fn to_text(&self, screen: &Screen, figures: &Figures, price: Price) -> String {
        let found = &self.findings;
        let mut text = table(figures, price);
        text.push('\n');
        let mut row = |name: &str, value: String, note: &str| {
            text += &format!("{name:<25}{value:>11}   {note}\n");
        };
        row(
            "verdicts checked",
            grouped(found.turns - found.overdue - found.unacknowledged),
            "turns, worked out from what was sent",
        );
        row(
            "  wrongly dropped",
            grouped(found.wrongly_dropped),
            "though a rule or the baseline keeps them",
        );
        row("  incomplete", grouped(found.incomplete), "kept, not whole");
        row(
            "  broken, kept",
            grouped(found.broken_kept),
            &format!("of {} broken turns", grouped(found.broken_sent)),
        );
        row(
            "  baseline",
            format!(
                "{:.2} %",
                share(found.baseline_kept, found.baseline_of) * 100.0
            ),
            &format!(
                "of {} other turns; {:+.1} standard errors from 5 %",
                grouped(found.baseline_of),
                self.baseline_standard_errors
            ),
        );
        row("  rate cap alone", grouped(found.rate_capped), "of these");
        row(
            "useful",
            grouped(found.useful),
            "kept by another policy than the baselines",
        );
        if found.overdue > 0 {
            row(
                "not checked",
                grouped(found.overdue),
                "turns; this machine was too slow for them",
            );
        }
        if let Some(counts) = self.chaos {
            row(
                "lost",
                grouped(found.lost),
                "acknowledged spans of turns that had to come whole",
            );
            row("split", grouped(found.split), "turns judged in pieces");
            row(
                "doubled",
                grouped(found.doubled),
                "spans, under way to the backend when a worker was killed",
            );
            row(
                "workers restarted",
                grouped(counts.workers_restarted),
                &format!(
                    "and {} killed, {} added",
                    counts.workers_killed, counts.workers_added
                ),
            );
        }
        text.push('\n');
        text += &format!(
            "The kept traces, as OTLP/JSON lines: {}\n",
            self.kept_traces_file.display()
        );
        let outcome = if self.agreed && self.chaos.is_some() {
            "0 lost, 0 split. Every verdict is as it must be."
        } else if self.agreed {
            "Every verdict is as it must be."
        } else {
            "NOT AS IT MUST BE:"
        };
        text += &format!("{}\n", screen.bold(outcome));
        for complaint in self.complaints.iter().chain(&found.examples) {
            text += &format!("  {complaint}\n");
        }
        text
    }
}
