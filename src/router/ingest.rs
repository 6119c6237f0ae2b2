//! One request from its bytes to its answer: what is in it, who gets it, what the client is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::cluster::ViewHandle;
use crate::model::Fingerprint;
use crate::net::client::{Dial, Grpc};
use crate::net::server::{Accepted, Ingest, IngestRequest};
use crate::net::status::{Refusal, RefusalReason};
use crate::router::RouterConfig;
use crate::router::cutter::Cutter;
use crate::router::journey::Journey;
use crate::router::lane::Surroundings;
use crate::router::lanes::Lanes;
use crate::router::metrics::{RequestOutcome, RouterMetrics};
use crate::router::surrogates::{Away, Surrogates};

/// The router; see [`crate::router`].
#[derive(Debug)]
pub struct Router {
    pub(super) surroundings: Arc<Surroundings>,
    pub(super) cutter: Arc<Cutter>,
    pub(super) lanes: Lanes,
}

/// Counts a request once, however it ends.
struct Ending<'a> {
    metrics: &'a RouterMetrics,
    outcome: RequestOutcome,
}

impl Router {
    /// Needs a runtime: lanes are tasks. They end when the router is dropped.
    pub fn new(config: RouterConfig, view: ViewHandle, metrics: RouterMetrics) -> Arc<Self> {
        Self::over(Arc::new(Grpc), config, view, metrics)
    }

    /// Reaches its workers in another way than over gRPC.
    pub fn over(
        dial: Arc<dyn Dial>,
        config: RouterConfig,
        view: ViewHandle,
        metrics: RouterMetrics,
    ) -> Arc<Self> {
        let surroundings = Arc::new(Surroundings {
            config,
            dial,
            view,
            away: Away::default(),
            surrogates: Surrogates::default(),
            metrics,
        });
        Arc::new(Self {
            cutter: Cutter::new(config.limits),
            lanes: Lanes::new(Arc::clone(&surroundings)),
            surroundings,
        })
    }

    async fn route(&self, request: IngestRequest) -> Result<Accepted, Refusal> {
        let IngestRequest {
            message,
            permit,
            metadata,
        } = request;
        // An address that a worker had is ours now. Passing the message on could go round in a circle:
        // to whoever has that address in our own view, which may be us.
        if let Some((to, _)) = &metadata.to {
            return Err(Refusal::new(
                RefusalReason::WrongMember,
                format!("this is a router, the message is for worker {to}"),
            ));
        }
        let metrics = &self.surroundings.metrics;
        let deadline = Instant::now() + self.patience(metadata.timeout);
        let paid = Arc::new(permit);
        let routes = self.lanes.routes();
        let cut = self.cutter.cut(&message, &routes.view.table, &paid).await?;
        drop(message); // from here on its parts are what is held

        let rejected = u64::from(cut.rejections.total());
        let valid = cut.valid_spans as u64;
        metrics.spans_received.inc_by(valid + rejected);
        metrics.rejected(&cut.rejections);
        let mut accepted = Accepted::default();
        if rejected > 0 {
            accepted.rejected_spans = rejected;
            accepted.message = cut.rejections.to_string();
        }
        if valid == 0 {
            return Ok(accepted);
        }

        metrics.parts_per_request.observe(cut.parts.len() as f64);
        let mut journey = Journey::new(self, paid);
        let arrived = timeout_at(deadline, journey.travel(&routes, cut.parts)).await;
        let by_workers = match arrived {
            Ok(arrived) => arrived?,
            Err(_) => return Err(journey.late()),
        };
        metrics
            .spans_accepted
            .inc_by(valid.saturating_sub(by_workers.rejected_spans));
        if by_workers.rejected_spans > 0 {
            metrics.rejected_by_worker(by_workers.rejected_spans);
            accepted.rejected_spans += by_workers.rejected_spans;
            if !accepted.message.is_empty() {
                accepted.message.push_str("; ");
            }
            accepted.message.push_str(&by_workers.message);
        }
        Ok(accepted)
    }

    /// How long a request is worked on. A twentieth of what the client waits is left for the
    /// answer's way back: UNAVAILABLE with a time to come again is worth more than silence.
    fn patience(&self, client: Option<Duration>) -> Duration {
        let most = self.surroundings.config.request_timeout_max;
        client.map_or(most, |timeout| (timeout - timeout / 20).min(most))
    }
}

impl Ingest for Router {
    async fn ingest(self: &Arc<Self>, request: IngestRequest) -> Result<Accepted, Refusal> {
        let mut ending = Ending {
            metrics: &self.surroundings.metrics,
            outcome: RequestOutcome::ClientGone,
        };
        let result = self.route(request).await;
        ending.outcome = RequestOutcome::of(&result);
        result
    }

    fn fingerprint(&self) -> Fingerprint {
        self.surroundings.view.load().fingerprint()
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.metrics.request(self.outcome);
    }
}

impl RequestOutcome {
    fn of(result: &Result<Accepted, Refusal>) -> Self {
        let refusal = match result {
            Ok(accepted) if accepted.rejected_spans == 0 => return Self::Accepted,
            Ok(_) => return Self::Partial,
            Err(refusal) => refusal,
        };
        match refusal.reason {
            RefusalReason::NoMembers => Self::NoMembers,
            RefusalReason::LaneFull => Self::LaneFull,
            RefusalReason::LogFull | RefusalReason::MemoryPressure | RefusalReason::ShardBusy => {
                Self::BackPressure
            }
            reason if reason.retryable() => Self::WorkersUnavailable,
            _ => Self::Invalid,
        }
    }
}
