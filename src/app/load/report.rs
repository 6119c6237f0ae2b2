//! What a run did: counted while it goes on, printed each second and at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::generator::Batch;
use super::sender::{End, Outcome};
use crate::net::client::ExportError;

/// Up to an hour in microseconds, three digits.
const MICROS_MAX: u64 = 3_600_000_000;
/// Distinct failure texts that are kept; a receiver that puts a number into each must not fill us.
const FAILURES_MAX: usize = 20;

/// Everything counted so far.
#[derive(Debug)]
pub(super) struct Totals {
    pub(super) counts: LoadCounts,
    /// From when a batch was due to its acknowledgement, retries included.
    latency: Histogram<u64>,
    /// The acknowledged attempt alone.
    service: Histogram<u64>,
    failures: BTreeMap<String, u64>,
}

/// Counts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LoadCounts {
    /// Batches whose first attempt has begun, with their spans and uncompressed bytes.
    pub batches_sent: u64,
    pub spans_sent: u64,
    pub bytes_sent: u64,
    pub batches_acknowledged: u64,
    pub spans_acknowledged: u64,
    /// Bytes on the wire of acknowledged batches, after compression.
    pub wire_bytes_acknowledged: u64,
    /// Accepted but for some spans; none of its spans counts as acknowledged.
    pub batches_partial: u64,
    pub spans_rejected: u64,
    /// Answered with what OTLP calls not retryable.
    pub batches_refused: u64,
    /// Retried until --give-up-after.
    pub batches_given_up: u64,
    /// Attempts that failed and were followed by another.
    pub retries: u64,
    /// Batches that were due and had no turn before the end: the target could not keep up.
    pub batches_missed: u64,
    /// Second sendings of --repeat-requests, and how many were answered OK.
    pub repeats_sent: u64,
    pub repeats_acknowledged: u64,
}

/// A distribution in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    pub seed: u64,
    /// From the first batch to the last answer.
    pub seconds: f64,
    pub spans_acknowledged_per_second: f64,
    pub counts: LoadCounts,
    /// Corrected for coordinated omission: from when a batch was due.
    pub latency: Quantiles,
    pub service: Quantiles,
    /// Texts of failures (retried, refused, given up) and how often they came.
    pub failures: BTreeMap<String, u64>,
}

impl Totals {
    pub(super) fn new() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constants and legal")]
        let histogram =
            || Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("1 < max and three digits");
        Self {
            counts: LoadCounts::default(),
            latency: histogram(),
            service: histogram(),
            failures: BTreeMap::new(),
        }
    }

    pub(super) fn sent(&mut self, batch: &Batch) {
        self.counts.batches_sent += 1;
        self.counts.spans_sent += batch.spans.len() as u64;
        self.counts.bytes_sent += batch.message.len() as u64;
    }

    pub(super) fn retried(&mut self, error: &ExportError) {
        self.counts.retries += 1;
        self.failed(error.to_string());
    }

    pub(super) fn ended(&mut self, spans: u64, latency: Duration, outcome: &Outcome) {
        match &outcome.end {
            End::Acknowledged => {
                self.counts.batches_acknowledged += 1;
                self.counts.spans_acknowledged += spans;
                self.counts.wire_bytes_acknowledged += outcome.wire_bytes;
                self.latency.saturating_record(micros(latency));
                self.service.saturating_record(micros(outcome.service_time));
            }
            End::Partial {
                rejected_spans,
                message,
            } => {
                self.counts.batches_partial += 1;
                self.counts.spans_rejected += rejected_spans;
                self.failed(format!("partial success: {message}"));
            }
            End::Refused(error) => {
                self.counts.batches_refused += 1;
                self.failed(error.to_string());
            }
            End::GivenUp(error) => {
                self.counts.batches_given_up += 1;
                self.failed(format!(
                    "given up after {} retries: {error}",
                    outcome.retries
                ));
            }
        }
    }

    pub(super) fn refused_unsent(&mut self, error: &ExportError) {
        self.counts.batches_refused += 1;
        self.failed(error.to_string());
    }

    pub(super) fn repeated(&mut self, outcome: &Outcome) {
        self.counts.repeats_sent += 1;
        match &outcome.end {
            End::Acknowledged => self.counts.repeats_acknowledged += 1,
            End::Partial { message, .. } => self.failed(format!("repeat: partial: {message}")),
            End::Refused(error) | End::GivenUp(error) => self.failed(format!("repeat: {error}")),
        }
    }

    fn failed(&mut self, text: String) {
        if let Some(count) = self.failures.get_mut(&text) {
            *count += 1;
        } else if self.failures.len() < FAILURES_MAX {
            self.failures.insert(text, 1);
        } else {
            *self.failures.entry("other failures".into()).or_default() += 1;
        }
    }

    pub(super) fn report(&self, seed: u64, elapsed: Duration) -> LoadReport {
        let seconds = elapsed.as_secs_f64();
        LoadReport {
            seed,
            seconds,
            spans_acknowledged_per_second: self.counts.spans_acknowledged as f64
                / seconds.max(1e-9),
            counts: self.counts,
            latency: quantiles(&self.latency),
            service: quantiles(&self.service),
            failures: self.failures.clone(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Quantiles {
        mean_ms: histogram.mean() / 1000.0,
        p50_ms: at(0.5),
        p90_ms: at(0.9),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: histogram.max() as f64 / 1000.0,
    }
}

impl LoadReport {
    /// Every batch that was due was acknowledged, and there was one.
    pub fn is_success(&self) -> bool {
        let counts = &self.counts;
        counts.batches_acknowledged > 0
            && counts.batches_acknowledged == counts.batches_sent
            && counts.batches_missed == 0
            && counts.repeats_acknowledged == counts.repeats_sent
    }

    /// Heading of [`LoadReport::progress_line`].
    pub fn progress_heading() -> &'static str {
        "   time    spans/s  acknowledged      retries   failed  missed    p50 ms    p99 ms    max ms"
    }

    /// One second of a run: `spans_per_second` is since the last line, the rest since the start.
    pub fn progress_line(&self, spans_per_second: f64) -> String {
        let counts = &self.counts;
        format!(
            "{:>6.0}s {:>10.0} {:>13} {:>12} {:>8} {:>7} {:>9.2} {:>9.2} {:>9.2}",
            self.seconds,
            spans_per_second,
            counts.spans_acknowledged,
            counts.retries,
            counts.batches_partial + counts.batches_refused + counts.batches_given_up,
            counts.batches_missed,
            self.latency.p50_ms,
            self.latency.p99_ms,
            self.latency.max_ms,
        )
    }

    /// The report for people.
    pub fn to_text(&self) -> String {
        let counts = &self.counts;
        let mut text = String::new();
        let mut row = |name: &str, value: String, note: &str| {
            text += &format!("{name:<26}{value:>14}   {note}\n");
        };
        row("seed", self.seed.to_string(), "");
        row("time", format!("{:.2}", self.seconds), "seconds");
        row(
            "rate",
            format!("{:.0}", self.spans_acknowledged_per_second),
            "acknowledged spans a second",
        );
        for (name, count, note) in [
            ("sent", counts.spans_sent, "spans"),
            ("  in batches", counts.batches_sent, ""),
            ("  bytes", counts.bytes_sent, "before compression"),
            ("acknowledged", counts.spans_acknowledged, "spans"),
            ("  in batches", counts.batches_acknowledged, ""),
            ("  bytes on the wire", counts.wire_bytes_acknowledged, ""),
            (
                "retries",
                counts.retries,
                "failed attempts with another after them",
            ),
            ("refused", counts.batches_refused, "batches, not retryable"),
            ("given up", counts.batches_given_up, "batches"),
            ("partial success", counts.batches_partial, "batches"),
            ("  rejected", counts.spans_rejected, "spans"),
            (
                "missed",
                counts.batches_missed,
                "batches due that had no turn",
            ),
            (
                "repeated",
                counts.repeats_sent,
                "batches sent a second time",
            ),
            ("  acknowledged", counts.repeats_acknowledged, ""),
        ] {
            row(name, count.to_string(), note);
        }
        text += "\nmilliseconds                  mean       p50       p90       p99      p999       max\n";
        for (name, q) in [
            ("latency from due time", &self.latency),
            ("service time", &self.service),
        ] {
            text += &format!("{name:<24}");
            for value in [q.mean_ms, q.p50_ms, q.p90_ms, q.p99_ms, q.p999_ms, q.max_ms] {
                text += &format!("{value:>10.2}");
            }
            text.push('\n');
        }
        for (failure, count) in &self.failures {
            text += &format!("{count} x {failure}\n");
        }
        text
    }
}
