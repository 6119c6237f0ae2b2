//! What is counted of calls to peers. Calls of peers are counted by their listener
//! (`tailring_requests_total` with protocol peer).

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Call, PeerError};
use crate::net::status::RefusalReason;

#[derive(Debug, Clone)]
pub struct PeerMetrics {
    calls: Family<CallLabels, Counter>,
}

/// How a call to a peer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CallOutcome {
    Ok,
    NoAddress,
    Unreachable,
    TimedOut,
    WrongCluster,
    WrongMember,
    WrongIncarnation,
    StaleIncarnation,
    Refused,
    Impostor,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: Call,
    outcome: CallOutcome,
}

impl CallOutcome {
    const ALL: [Self; 10] = [
        Self::Ok,
        Self::NoAddress,
        Self::Unreachable,
        Self::TimedOut,
        Self::WrongCluster,
        Self::WrongMember,
        Self::WrongIncarnation,
        Self::StaleIncarnation,
        Self::Refused,
        Self::Impostor,
    ];

    fn of<T>(result: &Result<T, PeerError>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(PeerError::NoAddress(_)) => Self::NoAddress,
            Err(PeerError::Unreachable(_)) => Self::Unreachable,
            Err(PeerError::TimedOut(_)) => Self::TimedOut,
            Err(PeerError::Impostor(_)) => Self::Impostor,
            Err(PeerError::TooLong(_)) => Self::Refused,
            Err(PeerError::Refused { reason, .. }) => match reason {
                Some(RefusalReason::WrongCluster) => Self::WrongCluster,
                Some(RefusalReason::WrongMember) => Self::WrongMember,
                Some(RefusalReason::WrongIncarnation) => Self::WrongIncarnation,
                Some(RefusalReason::StaleIncarnation) => Self::StaleIncarnation,
                _ => Self::Refused,
            },
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoAddress => "no_address",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::WrongCluster => "wrong_cluster",
            Self::WrongMember => "wrong_member",
            Self::WrongIncarnation => "wrong_incarnation",
            Self::StaleIncarnation => "stale_incarnation",
            Self::Refused => "refused",
            Self::Impostor => "impostor",
        }
    }
}

impl EncodeLabelValue for CallOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.label())
    }
}

impl EncodeLabelValue for Call {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.label())
    }
}

impl PeerMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
        };
        for call in Call::ALL {
            for outcome in CallOutcome::ALL {
                drop(metrics.calls.get_or_create(&CallLabels { call, outcome }));
            }
        }
        registry.register(
            "peer_calls",
            "Calls to workers on their peer port, by what was called and how it ended",
            metrics.calls.clone(),
        );
        metrics
    }

    pub(super) fn count<T>(&self, call: Call, result: &Result<T, PeerError>) {
        let outcome = CallOutcome::of(result);
        self.calls
            .get_or_create(&CallLabels { call, outcome })
            .inc();
    }
}
