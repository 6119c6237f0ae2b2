//! What a demo comes to: the numbers for a program, the summary for people.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

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
    pub(super) traces_sent: u64,
    pub(super) spans_sent: u64,
    pub(super) traces_kept: u64,
    pub(super) spans_kept: u64,
    pub(super) traces_kept_share: f64,
    pub(super) spans_kept_share: f64,
    /// As the workers count them.
    pub(super) traces_kept_by: BTreeMap<String, u64>,
    /// Turns with an error, cut off by MAX_TOKENS, or of 47 seconds.
    pub(super) broken_sent: u64,
    pub(super) broken_kept: u64,
    /// Kept turns of which spans are missing.
    pub(super) incomplete: u64,
    pub(super) wrongly_dropped: u64,
    pub(super) split: u64,
    pub(super) doubled: u64,
    pub(super) unknown: u64,
    pub(super) unacknowledged: u64,
    /// Turns whose verdict was not looked at, because the machine was too slow for it.
    pub(super) overdue: u64,
    /// Turns that only the baselines can keep; those that the baseline kept, and how far that is
    /// from 5 %; those that the rate cap alone kept.
    pub(super) baseline_of: u64,
    pub(super) baseline_kept: u64,
    pub(super) baseline_standard_errors: f64,
    pub(super) rate_capped: u64,
    /// A month's, by spans.
    pub(super) price_per_million: f64,
    pub(super) cost_before: f64,
    pub(super) cost_after: f64,
    /// Traces kept by another policy than the baselines, and what each of them costs.
    pub(super) useful_traces: u64,
    pub(super) cost_per_useful_trace_before: f64,
    pub(super) cost_per_useful_trace_after: f64,
    /// OTLP/JSON, a request of the workers a line.
    pub(super) kept_traces_file: PathBuf,
    #[serde(skip)]
    examples: Vec<String>,
}

impl Summary {
    pub(super) fn new(
        seed: u64,
        duration: Duration,
        price: Price,
        figures: &Figures,
        findings: Findings,
        terms: Terms,
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
            traces_sent: findings.turns,
            spans_sent: findings.spans,
            traces_kept: findings.kept_turns,
            spans_kept: findings.kept_spans,
            traces_kept_share: share(findings.kept_turns, findings.turns),
            spans_kept_share: share(findings.kept_spans, findings.spans),
            traces_kept_by,
            broken_sent: findings.broken_sent,
            broken_kept: findings.broken_kept,
            incomplete: findings.incomplete,
            wrongly_dropped: findings.wrongly_dropped,
            split: findings.split,
            doubled: findings.doubled,
            unknown: findings.unknown,
            unacknowledged: findings.unacknowledged,
            overdue: findings.overdue,
            baseline_of: findings.baseline_of,
            baseline_kept: findings.baseline_kept,
            baseline_standard_errors: findings.baseline_standard_errors(),
            rate_capped: findings.rate_capped,
            price_per_million: price.0,
            cost_before: month(findings.spans),
            cost_after: month(findings.kept_spans),
            useful_traces: findings.useful,
            cost_per_useful_trace_before: price.of_each(findings.spans, findings.useful),
            cost_per_useful_trace_after: price.of_each(findings.kept_spans, findings.useful),
            kept_traces_file,
            examples: findings.examples,
        }
    }

    /// The last table, what the oracle found, and where the kept traces are.
    pub(super) fn to_text(&self, screen: &Screen, figures: &Figures, price: Price) -> String {
        let mut text = table(figures, price);
        text.push('\n');
        let mut row = |name: &str, value: String, note: &str| {
            text += &format!("{name:<25}{value:>11}   {note}\n");
        };
        row(
            "verdicts checked",
            grouped(self.traces_sent - self.overdue - self.unacknowledged),
            "turns, worked out from what was sent",
        );
        row(
            "  wrongly dropped",
            grouped(self.wrongly_dropped),
            "though a rule or the baseline keeps them",
        );
        row("  incomplete", grouped(self.incomplete), "kept, not whole");
        row(
            "  broken, kept",
            grouped(self.broken_kept),
            &format!("of {} broken turns", grouped(self.broken_sent)),
        );
        row(
            "  baseline",
            format!(
                "{:.2} %",
                share(self.baseline_kept, self.baseline_of) * 100.0
            ),
            &format!(
                "of {} other turns; {:+.1} standard errors from 5 %",
                grouped(self.baseline_of),
                self.baseline_standard_errors
            ),
        );
        row("  rate cap alone", grouped(self.rate_capped), "of these");
        row(
            "useful",
            grouped(self.useful_traces),
            "kept by another policy than the baselines",
        );
        if self.overdue > 0 {
            row(
                "not checked",
                grouped(self.overdue),
                "turns; this machine was too slow for them",
            );
        }
        text.push('\n');
        text += &format!(
            "The kept traces, as OTLP/JSON lines: {}\n",
            self.kept_traces_file.display()
        );
        let outcome = if self.agreed {
            "Every verdict is as it must be."
        } else {
            "NOT AS IT MUST BE:"
        };
        text += &format!("{}\n", screen.bold(outcome));
        for complaint in self.complaints.iter().chain(&self.examples) {
            text += &format!("  {complaint}\n");
        }
        text
    }
}
