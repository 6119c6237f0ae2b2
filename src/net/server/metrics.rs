//! What the servers count, by protocol.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::Protocol;
use crate::net::status::RefusalReason;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Accepted,
    /// Accepted but for spans that can never be.
    Partial,
    /// The client was gone before an answer.
    Disconnected,
    Refused(RefusalReason),
}

impl Outcome {
    const COUNT: usize = 3 + RefusalReason::ALL.len();

    fn all() -> impl Iterator<Item = Self> {
        [Self::Accepted, Self::Partial, Self::Disconnected]
            .into_iter()
            .chain(RefusalReason::ALL.into_iter().map(Self::Refused))
    }

    fn index(self) -> usize {
        match self {
            Self::Accepted => 0,
            Self::Partial => 1,
            Self::Disconnected => 2,
            Self::Refused(reason) => 3 + reason as usize, // ALL is in declaration order, tested
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Partial => "partial",
            Self::Disconnected => "disconnected",
            Self::Refused(reason) => reason.label(),
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.label())
    }
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.label())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProtocol {
    protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    protocol: Protocol,
    outcome: Outcome,
}

/// Shared by all listeners of a process. Rejected spans are counted by the tiers, not here.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    requests: Family<ByOutcome, Counter>,
    wire_bytes: Family<ByProtocol, Counter>,
    message_bytes: Family<ByProtocol, Counter>,
    seconds: Family<ByProtocol, Histogram, fn() -> Histogram>,
    open: Family<ByProtocol, Gauge>,
    opened: Family<ByProtocol, Counter>,
    turned_away: Family<ByProtocol, Counter>,
    aged: Family<ByProtocol, Counter>,
    accept_errors: Family<ByProtocol, Counter>,
}

/// The same for one listener, with the label sets resolved.
#[derive(Debug)]
pub(super) struct ListenerMetrics {
    outcomes: Vec<Counter>,
    pub(super) wire_bytes: Counter,
    pub(super) message_bytes: Counter,
    pub(super) seconds: Histogram,
    pub(super) open: Gauge,
    pub(super) opened: Counter,
    pub(super) turned_away: Counter,
    pub(super) aged: Counter,
    pub(super) accept_errors: Counter,
}

impl ServerMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            wire_bytes: Family::default(),
            message_bytes: Family::default(),
            // 0.5 ms to 16 s: an ack after a write takes 1 ms, after a group commit 10 ms.
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 16))
            }),
            open: Family::default(),
            opened: Family::default(),
            turned_away: Family::default(),
            aged: Family::default(),
            accept_errors: Family::default(),
        };
        registry.register(
            "requests",
            "OTLP requests by how they ended: accepted, partial, disconnected, or the reason of the refusal",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "received_wire",
            "Bytes of request bodies as they came",
            Unit::Bytes,
            metrics.wire_bytes.clone(),
        );
        registry.register_with_unit(
            "received_message",
            "Bytes of complete messages after decompression",
            Unit::Bytes,
            metrics.message_bytes.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From a request's headers to its answer, accepted or refused",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            "connections_open",
            "Client connections that are open now",
            metrics.open.clone(),
        );
        registry.register(
            "connections_accepted",
            "Client connections accepted",
            metrics.opened.clone(),
        );
        registry.register(
            "connections_refused",
            "Client connections closed at once because too many were open",
            metrics.turned_away.clone(),
        );
        registry.register(
            "connections_aged",
            "Client connections told to go away because of their age",
            metrics.aged.clone(),
        );
        registry.register(
            "accept_errors",
            "Failures to accept a connection, for example for lack of file descriptors",
            metrics.accept_errors.clone(),
        );
        metrics
    }

    pub(super) fn of(&self, protocol: Protocol) -> ListenerMetrics {
        let by = ByProtocol { protocol };
        let outcomes: Vec<_> = Outcome::all()
            .map(|outcome| {
                let labels = ByOutcome { protocol, outcome };
                self.requests.get_or_create_owned(&labels)
            })
            .collect();
        debug_assert_eq!(outcomes.len(), Outcome::COUNT);
        ListenerMetrics {
            outcomes,
            wire_bytes: self.wire_bytes.get_or_create_owned(&by),
            message_bytes: self.message_bytes.get_or_create_owned(&by),
            seconds: self.seconds.get_or_create_owned(&by),
            open: self.open.get_or_create_owned(&by),
            opened: self.opened.get_or_create_owned(&by),
            turned_away: self.turned_away.get_or_create_owned(&by),
            aged: self.aged.get_or_create_owned(&by),
            accept_errors: self.accept_errors.get_or_create_owned(&by),
        }
    }
}

impl ListenerMetrics {
    pub(super) fn count(&self, outcome: Outcome) {
        if let Some(counter) = self.outcomes.get(outcome.index()) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_counter() {
        assert_eq!(Outcome::all().count(), Outcome::COUNT);
        for (index, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), index);
        }
    }
}
