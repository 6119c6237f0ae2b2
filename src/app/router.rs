//! Puts a router together.

use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::app::otlp::OtlpListeners;
use crate::app::settings::{RouterConfig, SharedConfig};
use crate::app::tier::{self, Tier};
use crate::cluster::Discovery;
use crate::net::admission::{Budget, BudgetMetrics};
use crate::net::peer::PeerMetrics;
use crate::net::server::ServerMetrics;
use crate::router::{self, Follower, Router, RouterMetrics};
use crate::wire::ScanLimits;

/// So long new connections are still taken after SIGTERM, while readiness says no: Kubernetes sends
/// the signal and takes the pod out of its endpoints at the same time, and not every node hears of
/// the second at once. With the drain deadline of 20 s it stays within the 30 s of grace.
const LINGER: Duration = Duration::from_secs(3);

/// One slow worker must not hold everything that this process may hold.
const LANES_A_BUDGET: u64 = 4;

/// Runs until it was asked to stop and has drained.
pub(super) async fn run(
    config: RouterConfig,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let start = async |discovery: Discovery, registry: &mut Registry| {
        start(&config, discovery, registry, stopping.clone()).await
    };
    tier::run("tailring-router", &config.shared, stopping.clone(), start).await
}

async fn start(
    config: &RouterConfig,
    discovery: Discovery,
    registry: &mut Registry,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<Tier> {
    let shared = &config.shared;
    let budget = Budget::new(tier::request_budget(shared).0);
    BudgetMetrics::register(registry, vec![("requests", budget.clone())]);
    let bounds = bounds(shared, &budget);
    let following = discovery.follow();
    let router = Router::new(
        bounds,
        following.view.clone(),
        RouterMetrics::register(registry),
    );
    let calls = PeerMetrics::register(registry);
    let follower = Follower::new(&shared.cluster, following, calls).spawn();
    let metrics = ServerMetrics::register(registry);
    let listeners = OtlpListeners::bind(shared, &router, &metrics, &budget).await?;
    Ok(Tier {
        live: Vec::new(),
        // A router is ready when its listeners are bound, which they are, and the ring has members.
        ready: Vec::new(),
        health: listeners.health(),
        roster: None,
        // Lanes live in requests: when the last one is answered, nothing is left.
        done: Box::pin(async move {
            let (close, closing) = watch::channel(false);
            tokio::join!(listeners.serve(closing), linger(stopping, close));
            follower.abort();
            drop(router);
            Ok(())
        }),
    })
}

async fn linger(mut stopping: watch::Receiver<bool>, close: watch::Sender<bool>) {
    // Who no longer could say stop has stopped.
    drop(stopping.wait_for(|stop| *stop).await);
    sleep(LINGER).await;
    close.send_replace(true);
}

fn bounds(shared: &SharedConfig, budget: &Budget) -> router::RouterConfig {
    let defaults = router::RouterConfig::default();
    router::RouterConfig {
        limits: ScanLimits {
            spans_max: shared.spans_per_request_max,
            ..ScanLimits::default()
        },
        // Workers have the same limits: a concatenation beyond one would be refused as a whole and
        // sent again part by part.
        rpc_bytes_max: usize::try_from(shared.request_bytes_max.0)
            .map_or(defaults.rpc_bytes_max, |max| {
                max.min(defaults.rpc_bytes_max)
            }),
        rpc_spans_max: shared.spans_per_request_max,
        lane_bytes_max: (budget.bytes_max() / LANES_A_BUDGET).min(defaults.lane_bytes_max),
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::settings::{Machine, RouterArgs, SharedArgs};

    fn bounds_of(memory_limit: &str, max_request_bytes: &str) -> router::RouterConfig {
        let args = RouterArgs {
            shared: SharedArgs {
                workers: Some("static://a=127.0.0.1:1".into()),
                memory_limit: Some(memory_limit.into()),
                max_request_bytes: Some(max_request_bytes.into()),
                ..SharedArgs::default()
            },
        };
        let shared = RouterConfig::of(&args, &Machine).unwrap().shared;
        bounds(&shared, &Budget::new(tier::request_budget(&shared).0))
    }

    #[test]
    fn lanes_never_send_more_than_workers_take() {
        assert_eq!(bounds_of("1GiB", "1MiB").rpc_bytes_max, 1 << 20);
        assert_eq!(bounds_of("1GiB", "64MiB").rpc_bytes_max, 4 << 20);
    }

    #[test]
    fn one_lane_holds_a_quarter_of_the_budget_at_most() {
        assert_eq!(bounds_of("128MiB", "1MiB").lane_bytes_max, 16 << 20);
        assert_eq!(bounds_of("8GiB", "1MiB").lane_bytes_max, 64 << 20);
    }
}
