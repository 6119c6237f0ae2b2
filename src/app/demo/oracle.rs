//! Works out for itself what `deploy/policies/fleet.yaml` must do with each turn that was sent,
//! and compares that with what the backend has. Shares no code with `policy`, on purpose: the
//! rules are written here a second time, from the Collector's documentation and the
//! specification of probability sampling.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::books::{Books, Turn};
use crate::model::TraceId;

/// The file's policies, in its order.
pub(super) const POLICIES: [&str; 6] = [
    "keep-errors",
    "keep-slow",
    "keep-tool-heavy",
    BASELINE,
    RATE_CAP,
    "keep-debug-tenants",
];
pub(super) const BASELINE: &str = "keep-baseline";
pub(super) const RATE_CAP: &str = "keep-baseline-rate-cap";

const SLOW_MILLIS: u64 = 10_000;
const TOOL_HEAVY_SPANS: usize = 20;
const DEBUG_TENANTS: [&str; 2] = ["acme-corp", "big-bank-inc"];
const BASELINE_SHARE: f64 = 0.05;
const RATE_CAP_SPANS_PER_SECOND: f64 = 50.0;
/// Each life of a worker begins with a burst of two seconds' worth, and the last trace that it takes
/// in a window may overdraw by all of its spans, 120 at most.
const RATE_CAP_SLACK_SPANS: f64 = 2.0 * RATE_CAP_SPANS_PER_SECOND + 120.0;
const STANDARD_ERRORS_MAX: f64 = 4.0;
/// Of a threshold, for how it may be written: a `th` of four digits says 5 % to 3 parts in a
/// million, and a trace between two spellings of it proves nothing.
const THRESHOLD_SLACK: f64 = 1e-5;
/// Turns of which a span came later than the workers wait; on a machine this slow nothing is shown.
const OVERDUE_SHARE_MAX: f64 = 0.01;
const EXAMPLES_MAX: usize = 5;

/// What came of the comparison; a program reads it as a part of the summary.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Findings {
    #[serde(rename = "traces_sent")]
    pub(super) turns: u64,
    #[serde(rename = "spans_sent")]
    pub(super) spans: u64,
    #[serde(rename = "traces_kept")]
    pub(super) kept_turns: u64,
    #[serde(rename = "spans_kept")]
    pub(super) kept_spans: u64,
    /// Turns with an error, cut off by MAX_TOKENS, or of 47 seconds.
    pub(super) broken_sent: u64,
    pub(super) broken_kept: u64,
    /// Kept, and some spans are missing.
    pub(super) incomplete: u64,
    /// Kept by a rule that is sure of it, so by another than the baselines.
    #[serde(rename = "useful_traces")]
    pub(super) useful: u64,
    /// The same by the first such rule in the file.
    #[serde(skip)]
    pub(super) sure: BTreeMap<&'static str, u64>,
    /// A rule or the baseline keeps it, and nothing of it came.
    pub(super) wrongly_dropped: u64,
    /// Exported by two workers or under two verdicts.
    pub(super) split: u64,
    /// Acknowledged spans that did not come, of turns that had to come whole.
    #[serde(rename = "spans_lost")]
    pub(super) lost: u64,
    /// Spans that came more than once.
    pub(super) doubled: u64,
    /// Turns of which the backend got spans that were never sent, or that nobody sent at all.
    pub(super) unknown: u64,
    /// Some spans were never acknowledged.
    pub(super) unacknowledged: u64,
    /// Some spans were acknowledged later than the workers wait: may be judged in the middle, so
    /// their verdicts are not looked at.
    pub(super) overdue: u64,
    /// Turns that only the baselines can keep, those that the baseline kept, and those that only
    /// the rate cap can have kept.
    pub(super) baseline_of: u64,
    pub(super) baseline_kept: u64,
    pub(super) rate_capped: u64,
    #[serde(skip)]
    pub(super) rate_capped_spans: u64,
    #[serde(skip)]
    pub(super) examples: Vec<String>,
}

/// How long the demo ran, for what depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) decision_wait: Duration,
    /// From the first verdict to the last.
    pub(super) judged_for: Duration,
    /// Of workers.
    pub(super) lives: u64,
    /// Workers were killed: what was under way to the backend then comes again, and what they counted is gone.
    pub(super) are_killed: bool,
}

/// The rule that keeps a turn whatever its trace ID; the first in the file.
fn sure_rule(turn: &Turn) -> Option<&'static str> {
    let lasted_nanos = turn.end_unix_nanos.saturating_sub(turn.start_unix_nanos);
    let of_debug_tenant = turn
        .tenants
        .iter()
        .any(|tenant| DEBUG_TENANTS.contains(&&**tenant));
    if turn.has_error {
        Some("keep-errors")
    } else if lasted_nanos / 1_000_000 > SLOW_MILLIS {
        Some("keep-slow")
    } else if turn.spans.len() >= TOOL_HEAVY_SPANS {
        Some("keep-tool-heavy")
    } else if of_debug_tenant {
        Some("keep-debug-tenants")
    } else {
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Baseline {
    Keeps,
    Leaves,
    /// Too near the threshold to say.
    Open,
}

/// The last seven bytes of the trace ID, as a fraction, against the share that is rejected.
fn baseline(trace: TraceId) -> Baseline {
    let random = trace.as_bytes()[9..]
        .iter()
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let above = random as f64 / 2_f64.powi(56) - (1.0 - BASELINE_SHARE);
    if above.abs() < THRESHOLD_SLACK {
        Baseline::Open
    } else if above > 0.0 {
        Baseline::Keeps
    } else {
        Baseline::Leaves
    }
}

impl Findings {
    pub(super) fn of(books: &Books, terms: Terms) -> Self {
        let mut findings = Self {
            unknown: books.unknown_traces,
            kept_spans: books.got_spans,
            ..Self::default()
        };
        for (trace, turn) in &books.turns {
            findings.judge(*trace, turn, terms.decision_wait);
        }
        findings
    }

    fn judge(&mut self, trace: TraceId, turn: &Turn, decision_wait: Duration) {
        let kept = !turn.got.is_empty();
        self.turns += 1;
        self.spans += turn.spans.len() as u64;
        self.kept_turns += u64::from(kept);
        self.broken_sent += u64::from(turn.is_broken);
        self.broken_kept += u64::from(turn.is_broken && kept);
        if turn.acknowledged_spans != turn.spans.len() {
            self.unacknowledged += 1;
            return;
        }
        let took = turn.last_acknowledged_at.since(turn.first_sent_at);
        if took >= decision_wait {
            self.overdue += 1;
            return;
        }
        self.compare_spans(trace, turn);
        let rule = sure_rule(turn);
        if let Some(rule) = rule {
            *self.sure.entry(rule).or_default() += 1;
            self.useful += u64::from(kept);
        }
        let spans = turn.spans.len();
        let wrongly_dropped = match (rule, baseline(trace), kept) {
            (Some(_), _, true) => None,
            (Some(rule), _, false) => Some(rule),
            (None, by_chance, kept) => {
                self.baseline_of += 1;
                match (by_chance, kept) {
                    (Baseline::Keeps | Baseline::Open, true) => self.baseline_kept += 1,
                    (Baseline::Leaves, true) => {
                        self.rate_capped += 1;
                        self.rate_capped_spans += spans as u64;
                    }
                    (_, false) => {}
                }
                (by_chance == Baseline::Keeps && !kept).then_some(BASELINE)
            }
        };
        if let Some(rule) = wrongly_dropped {
            self.wrongly_dropped += 1;
            self.lost += spans as u64;
            self.example(|| format!("trace {trace}, {spans} spans: dropped; {rule} keeps it"));
        }
    }

    fn compare_spans(&mut self, trace: TraceId, turn: &Turn) {
        let mut got = turn.got.clone();
        got.dedup();
        let copies = turn.got.len() - got.len();
        let foreign = got
            .iter()
            .filter(|span| turn.spans.binary_search(span).is_err())
            .count();
        let missing = turn.spans.len() - (got.len() - foreign);
        self.doubled += copies as u64;
        self.unknown += u64::from(foreign > 0);
        if !got.is_empty() && missing > 0 {
            self.incomplete += 1;
            self.lost += missing as u64;
            let spans = turn.spans.len();
            self.example(|| format!("trace {trace}: kept, and {missing} of {spans} spans missing"));
        }
        if turn.exports.len() > 1 {
            self.split += 1;
            self.example(|| format!("trace {trace}: exported as {:?}", turn.exports));
        }
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }

    /// How far the share of the baseline is from 5 %, in standard errors.
    pub(super) fn baseline_standard_errors(&self) -> f64 {
        let of = self.baseline_of as f64;
        let expected = of * BASELINE_SHARE;
        let deviation = (expected * (1.0 - BASELINE_SHARE)).sqrt();
        if deviation == 0.0 {
            return 0.0;
        }
        (self.baseline_kept as f64 - expected) / deviation
    }

    /// What is not as it must be; nothing when everything agrees. `kept_by` is what the workers
    /// say they kept, by policy.
    pub(super) fn complaints(&self, terms: Terms, kept_by: &BTreeMap<String, u64>) -> Vec<String> {
        let mut complaints = Vec::new();
        for (count, what) in [
            (
                self.unacknowledged,
                "turns have spans that were never acknowledged",
            ),
            (self.wrongly_dropped, "turns were dropped that a rule keeps"),
            (self.incomplete, "kept turns are not whole"),
            (
                self.split,
                "turns were exported by two workers or under two verdicts",
            ),
            (
                if terms.are_killed { 0 } else { self.doubled },
                "spans came more than once",
            ),
            (self.unknown, "turns have spans that were never sent"),
        ] {
            if count > 0 {
                complaints.push(format!("{count} {what}"));
            }
        }
        if self.turns == 0 {
            complaints.push("no turn was sent, so nothing is shown".into());
        }
        if self.overdue as f64 > self.turns as f64 * OVERDUE_SHARE_MAX {
            complaints.push(format!(
                "{} of {} turns were acknowledged later than the workers wait ({:?}): this machine \
                 is too busy to show anything",
                self.overdue, self.turns, terms.decision_wait
            ));
        }
        let off = self.baseline_standard_errors();
        if off.abs() > STANDARD_ERRORS_MAX {
            complaints.push(format!(
                "{BASELINE} kept {} of {} turns: {off:.1} standard errors from 5 %",
                self.baseline_kept, self.baseline_of
            ));
        }
        let allowed = terms.judged_for.as_secs_f64() * RATE_CAP_SPANS_PER_SECOND;
        let allowed = allowed + terms.lives as f64 * RATE_CAP_SLACK_SPANS;
        if self.rate_capped_spans as f64 > allowed {
            complaints.push(format!(
                "{} turns with {} spans were kept that no rule keeps; {RATE_CAP} may keep {allowed:.0} spans",
                self.rate_capped, self.rate_capped_spans
            ));
        }
        // A turn that was judged in the middle is counted under another rule, or under none.
        if self.overdue == 0 && !terms.are_killed {
            let said_of = |rule: &str| kept_by.get(rule).copied().unwrap_or(0);
            let mut may_lose = 0;
            for rule in POLICIES {
                if rule == BASELINE {
                    continue;
                }
                if rule == RATE_CAP {
                    // A window with room for all of its traces is sure of them too, and comes before
                    // the rules behind it in the file.
                    may_lose = said_of(rule);
                    continue;
                }
                let said = said_of(rule);
                let worked_out = self.sure.get(rule).copied().unwrap_or(0);
                if !(worked_out.saturating_sub(may_lose)..=worked_out).contains(&said) {
                    complaints.push(format!(
                        "the workers say that {rule} kept {said} turns; it must be {worked_out}"
                    ));
                }
            }
        }
        complaints
    }
}

#[cfg(test)]
#[path = "oracle/tests.rs"]
mod tests;
