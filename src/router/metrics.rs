//! What a router counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::model::Member;
use crate::wire::{RejectReason, Rejections};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    Accepted,
    Partial,
    Invalid,
    NoMembers,
    LaneFull,
    BackPressure,
    WorkersUnavailable,
    /// The client went away before the answer.
    ClientGone,
}

/// How an RPC to a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RpcOutcome {
    Acknowledged,
    Partial,
    Invalid,
    BackPressure,
    Refused,
    Unreachable,
    TimedOut,
}

/// Why a circuit opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenCause {
    Refused,
    Unreachable,
    TimedOut,
}

type Labels<V> = [(&'static str, V); 1];

/// Counters and gauges of one router. Clones count together.
#[derive(Debug, Clone)]
pub struct RouterMetrics {
    pub(crate) spans_received: Counter,
    pub(crate) spans_accepted: Counter,
    pub(crate) spans_surrogate: Counter,
    pub(crate) parts_resplit: Counter,
    pub(crate) parts_cancelled: Counter,
    pub(crate) isolations: Counter,
    pub(crate) rpcs_repeated: Counter,
    pub(crate) parts_per_request: Histogram,
    pub(crate) parts_per_rpc: Histogram,
    spans_rejected: [Counter; RejectReason::ALL.len()],
    spans_rejected_by_worker: Counter,
    requests: [Counter; RequestOutcome::ALL.len()],
    rpcs: [Counter; RpcOutcome::ALL.len()],
    circuit_opens: [Counter; OpenCause::ALL.len()],
    lane_bytes: Family<Labels<String>, Gauge>,
    circuit_open: Family<Labels<String>, Gauge>,
}

/// The gauges of one lane. Setting them after [`RouterMetrics::forget_lane`] shows nowhere.
#[derive(Debug, Clone)]
pub(crate) struct LaneGauges {
    pub(crate) bytes: Gauge,
    pub(crate) circuit_open: Gauge,
}

impl RequestOutcome {
    const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Partial,
        Self::Invalid,
        Self::NoMembers,
        Self::LaneFull,
        Self::BackPressure,
        Self::WorkersUnavailable,
        Self::ClientGone,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Partial => "partial",
            Self::Invalid => "invalid",
            Self::NoMembers => "no_members",
            Self::LaneFull => "lane_full",
            Self::BackPressure => "back_pressure",
            Self::WorkersUnavailable => "workers_unavailable",
            Self::ClientGone => "client_gone",
        }
    }
}

impl RpcOutcome {
    const ALL: [Self; 7] = [
        Self::Acknowledged,
        Self::Partial,
        Self::Invalid,
        Self::BackPressure,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Partial => "partial",
            Self::Invalid => "invalid",
            Self::BackPressure => "back_pressure",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
        }
    }
}

impl OpenCause {
    const ALL: [Self; 3] = [Self::Refused, Self::Unreachable, Self::TimedOut];

    fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
        }
    }
}

impl RouterMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let spans_received = counter(
            "router_spans_received",
            "Spans in readable requests, valid or not",
        );
        let spans_accepted = counter(
            "router_spans_accepted",
            "Spans whose request was answered with OK and that were not rejected",
        );
        let spans_surrogate = counter(
            "router_spans_surrogate",
            "Spans sent to a stand-in because their owner was away",
        );
        let parts_resplit = counter(
            "router_parts_resplit",
            "Parts that a lane gave back and that were cut again by another ring",
        );
        let parts_cancelled = counter(
            "router_parts_cancelled",
            "Queued parts taken back because their client went away or was refused",
        );
        let isolations = counter(
            "router_isolations",
            "Concatenations sent again part by part because one part may have spoilt them",
        );
        let rpcs_repeated = counter(
            "router_rpcs_repeated",
            "RPCs sent again to the same worker because no answer came",
        );

        let mut histogram = |name: &str, help: &str, buckets: u16| {
            let histogram = Histogram::new(exponential_buckets(1.0, 2.0, buckets));
            registry.register(name, help, histogram.clone());
            histogram
        };
        let parts_per_request = histogram(
            "router_parts_per_request",
            "Workers that one request was split over",
            11,
        );
        let parts_per_rpc = histogram(
            "router_parts_per_rpc",
            "Parts that one RPC to a worker carried",
            8,
        );

        let rejected = counters(
            registry,
            "router_spans_rejected",
            "Spans that can never be accepted, by reason; answered as partial success",
        );
        let requests = counters(
            registry,
            "router_requests",
            "Export requests by how they ended",
        );
        let rpcs = counters(
            registry,
            "router_rpcs",
            "RPCs to workers by how they ended, without probes",
        );
        let opens = counters(
            registry,
            "router_circuit_opens",
            "Times a lane gave its worker up, by cause",
        );

        let lane_bytes = Family::<Labels<String>, Gauge>::default();
        registry.register(
            "router_lane_bytes",
            "Bytes queued and in flight for a worker",
            lane_bytes.clone(),
        );
        let circuit_open = Family::<Labels<String>, Gauge>::default();
        registry.register(
            "router_circuit_open",
            "1 while a worker's parts go to stand-ins",
            circuit_open.clone(),
        );

        Self {
            spans_received,
            spans_accepted,
            spans_surrogate,
            parts_resplit,
            parts_cancelled,
            isolations,
            rpcs_repeated,
            parts_per_request,
            parts_per_rpc,
            spans_rejected: RejectReason::ALL
                .map(|reason| rejected.get_or_create_owned(&[("reason", reason.label())])),
            spans_rejected_by_worker: rejected.get_or_create_owned(&[("reason", "worker")]),
            requests: RequestOutcome::ALL
                .map(|outcome| requests.get_or_create_owned(&[("outcome", outcome.label())])),
            rpcs: RpcOutcome::ALL
                .map(|outcome| rpcs.get_or_create_owned(&[("outcome", outcome.label())])),
            circuit_opens: OpenCause::ALL
                .map(|cause| opens.get_or_create_owned(&[("cause", cause.label())])),
            lane_bytes,
            circuit_open,
        }
    }

    pub(crate) fn rejected(&self, rejections: &Rejections) {
        if rejections.total() == 0 {
            return;
        }
        for (reason, counter) in RejectReason::ALL.into_iter().zip(&self.spans_rejected) {
            counter.inc_by(u64::from(rejections.count(reason)));
        }
    }

    pub(crate) fn rejected_by_worker(&self, spans: u64) {
        self.spans_rejected_by_worker.inc_by(spans);
    }

    pub(crate) fn request(&self, outcome: RequestOutcome) {
        self.requests[outcome as usize].inc();
    }

    pub(crate) fn rpc(&self, outcome: RpcOutcome) {
        self.rpcs[outcome as usize].inc();
    }

    pub(crate) fn circuit_opened(&self, cause: OpenCause) {
        self.circuit_opens[cause as usize].inc();
    }

    pub(crate) fn lane(&self, member: &Member) -> LaneGauges {
        let labels = [("member", member.to_string())];
        LaneGauges {
            bytes: self.lane_bytes.get_or_create_owned(&labels),
            circuit_open: self.circuit_open.get_or_create_owned(&labels),
        }
    }

    /// The member left: its series end.
    pub(crate) fn forget_lane(&self, member: &Member) {
        let labels = [("member", member.to_string())];
        self.lane_bytes.remove(&labels);
        self.circuit_open.remove(&labels);
    }
}

fn counters(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> Family<Labels<&'static str>, Counter> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}
