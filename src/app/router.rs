//! Puts a router together.

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::app::otlp::OtlpListeners;
use crate::app::settings::RouterConfig;
use crate::app::tier::{self, Tier};
use crate::cluster::ViewHandle;
use crate::net::admission::{Budget, BudgetMetrics};
use crate::net::server::ServerMetrics;
use crate::router::{self, Router, RouterMetrics};
use crate::wire::ScanLimits;

/// Runs until it was asked to stop and has drained.
pub(super) async fn run(
    config: RouterConfig,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let start = async |view: ViewHandle, registry: &mut Registry| {
        start(&config, view, registry, stopping.clone()).await
    };
    tier::run("tailring-router", &config.shared, stopping.clone(), start).await
}

async fn start(
    config: &RouterConfig,
    view: ViewHandle,
    registry: &mut Registry,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<Tier> {
    let shared = &config.shared;
    let budget = Budget::new(tier::request_budget(shared).0);
    BudgetMetrics::register(registry, vec![("requests", budget.clone())]);
    let router_config = router::RouterConfig {
        limits: ScanLimits {
            spans_max: shared.spans_per_request_max,
            ..ScanLimits::default()
        },
        rpc_spans_max: shared.spans_per_request_max,
        ..router::RouterConfig::default()
    };
    let router = Router::new(router_config, view, RouterMetrics::register(registry));
    let metrics = ServerMetrics::register(registry);
    let listeners = OtlpListeners::bind(shared, &router, &metrics, &budget).await?;
    Ok(Tier {
        live: Vec::new(),
        // A router is ready when its listeners are bound, which they are, and the ring has members.
        ready: Vec::new(),
        health: listeners.health(),
        // Lanes live in requests: when the last one is answered, nothing is left.
        done: Box::pin(async move {
            listeners.serve(stopping).await;
            drop(router);
            Ok(())
        }),
    })
}
