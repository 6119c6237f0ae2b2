//! What is counted about exports.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Batch;
use crate::net::client::ExportError;

/// Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct ExportMetrics {
    batches: Counter,
    spans: Counter,
    traces: Counter,
    bytes: Counter<u64, AtomicU64>,
    attempts: Counter,
    retried_refused: Counter,
    retried_unreachable: Counter,
    retried_timed_out: Counter,
    throttled: Counter,
    refused: Counter,
    rejected_spans: Counter,
    in_flight: Gauge,
    duration: Arc<Histogram>,
}

impl ExportMetrics {
    /// The registry's prefix comes before the names here.
    pub fn register(registry: &mut Registry) -> Self {
        let mut counter = |name: &'static str, help: &'static str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let batches = counter("export_batches", "Batches that the destination has");
        let spans = counter("export_spans", "Spans in them, with rejected ones");
        let traces = counter("export_traces", "Traces in them");
        let attempts = counter("export_attempts", "Attempts to send a batch");
        let throttled = counter(
            "export_throttled",
            "Answers that asked us to wait (RetryInfo, Retry-After)",
        );
        let refused = counter(
            "export_refused_batches",
            "Batches that the destination refused for good; sent again in parts, or whole in a minute",
        );
        let rejected_spans = counter(
            "export_rejected_spans",
            "Spans that the destination rejected from a batch it took (partial success); they are lost",
        );
        let bytes = Counter::default();
        registry.register_with_unit(
            "export_sent",
            "Bytes of the batches that the destination has, compressed",
            Unit::Bytes,
            bytes.clone(),
        );
        let retries = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register(
            "export_retries",
            "Failed attempts that are tried again, by reason",
            retries.clone(),
        );
        let in_flight = Gauge::default();
        registry.register(
            "export_in_flight_batches",
            "Batches that are being sent or wait to be sent again",
            in_flight.clone(),
        );
        // Up to an hour: how long an outage of the backend was is seen, a day's is the last bucket.
        let duration = Histogram::new([
            0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0, 3600.0,
        ]);
        registry.register_with_unit(
            "export_duration",
            "Time from the first attempt to the end, with all retries",
            Unit::Seconds,
            duration.clone(),
        );
        let retried = |reason| retries.get_or_create_owned(&[("reason", reason)]);
        Self {
            batches,
            spans,
            traces,
            bytes,
            attempts,
            retried_refused: retried("refused_retryable"),
            retried_unreachable: retried("unreachable"),
            retried_timed_out: retried("timed_out"),
            throttled,
            refused,
            rejected_spans,
            in_flight,
            duration: Arc::new(duration),
        }
    }

    pub(super) fn attempt(&self) {
        self.attempts.inc();
    }

    pub(super) fn retry(&self, error: &ExportError) {
        match error {
            ExportError::Refused { .. } => &self.retried_refused,
            ExportError::Unreachable(_) => &self.retried_unreachable,
            ExportError::TimedOut(_) => &self.retried_timed_out,
        }
        .inc();
    }

    pub(super) fn throttled(&self) {
        self.throttled.inc();
    }

    pub(super) fn done(&self, batch: &Batch, bytes: u64, rejected_spans: u64) {
        self.batches.inc();
        self.spans.inc_by(batch.spans.into());
        self.traces.inc_by(batch.traces.into());
        self.bytes.inc_by(bytes);
        self.rejected_spans.inc_by(rejected_spans);
    }

    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    pub(super) fn duration(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    /// In flight until dropped, also when the delivery is given up.
    pub(super) fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }
}

pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
