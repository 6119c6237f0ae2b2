//! What both tiers do around their own work: the admin pages, discovery, readiness, the end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use crate::app::admin::{Admin, AdminListener, LiveCheck, ReadyCheck, RosterPage};
use crate::app::process_metrics;
use crate::app::settings::{ByteSize, MemoryOrigin, SharedConfig};
use crate::cluster::{Discovery, DiscoveryConfig, DiscoveryMetrics, ViewHandle};
use crate::net::server::HealthHandle;

/// A tier that works.
pub(super) struct Tier {
    pub(super) live: Vec<LiveCheck>,
    /// Beside a ring with members in it.
    pub(super) ready: Vec<ReadyCheck>,
    pub(super) health: HealthHandle,
    /// What a worker knows of the members beside their place in the ring.
    pub(super) roster: Option<RosterPage>,
    /// Ends when it was asked to stop and has drained.
    pub(super) done: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>,
}

/// How soon grpc.health.v1 follows `/readyz`.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Bytes of requests in flight in a router: half of the memory limit. A request costs its message, and the
/// messages that are made of it for its owners cost the same once more.
pub(super) fn request_budget(settings: &SharedConfig) -> ByteSize {
    settings.memory_limit.size.percent(50)
}

/// Runs a tier from its start to its drained end. `start` is given the way to find members, and a registry whose
/// names begin with `tailring_`.
pub(super) async fn run(
    binary: &'static str,
    settings: &SharedConfig,
    stopping: watch::Receiver<bool>,
    start: impl AsyncFnOnce(Discovery, &mut Registry) -> anyhow::Result<Tier>,
) -> anyhow::Result<()> {
    log_settings(binary, settings);
    let address = settings.listen_admin.socket_addr();
    let admin = AdminListener::bind(address)
        .await
        .with_context(|| format!("--listen-admin {address}"))?;
    info!(address = %admin.local_addr()?, "listening for the operator");

    let mut root = Registry::default();
    let registry = process_metrics::register(&mut root, binary);
    // Discovery goes on while the tier drains, and ends with this sender.
    let (_running, discovery_stopping) = watch::channel(false);
    let discovery = Discovery::new(
        settings.workers.clone(),
        DiscoveryConfig::new(&settings.cluster, settings.seed),
        DiscoveryMetrics::register(registry),
        discovery_stopping,
    );
    let view = discovery.view();
    let admin = admin.serve(view.clone());
    let tier = start(discovery, registry).await?;

    let mut ready = vec![not_stopping(stopping), ring_has_members(view)];
    ready.extend(tier.ready);
    let ready: Arc<[ReadyCheck]> = ready.into();
    let health = spawn_health(tier.health, Arc::clone(&ready));
    admin.started(Admin {
        registry: root,
        live: tier.live,
        ready,
        roster: tier.roster,
    });
    let outcome = tier.done.await;
    health.abort();
    outcome
}

fn log_settings(binary: &str, settings: &SharedConfig) {
    let origin = match settings.memory_limit.origin {
        MemoryOrigin::Setting => "--memory-limit",
        MemoryOrigin::Cgroup => "a share of the cgroup's limit",
        MemoryOrigin::Machine => "a share of the machine's memory",
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = settings.cluster,
        workers = %settings.workers,
        memory_limit = %settings.memory_limit.size,
        memory_limit_from = origin,
        memory_found = settings.memory_limit.found.map(|found| found.to_string()),
        "{binary} starts"
    );
}

fn not_stopping(stopping: watch::Receiver<bool>) -> ReadyCheck {
    ReadyCheck {
        name: "not stopping",
        check: Box::new(move || {
            if *stopping.borrow() {
                Err("was asked to stop, and drains".to_owned())
            } else {
                Ok(())
            }
        }),
    }
}

fn ring_has_members(view: ViewHandle) -> ReadyCheck {
    ReadyCheck {
        name: "ring",
        check: Box::new(move || {
            if view.load().table.is_empty() {
                Err(
                    "no members found yet; the log and tailring_discovery_answers_total say what \
                     --workers answered"
                        .to_owned(),
                )
            } else {
                Ok(())
            }
        }),
    }
}

fn spawn_health(health: HealthHandle, ready: Arc<[ReadyCheck]>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(HEALTH_INTERVAL);
        loop {
            ticks.tick().await;
            let serving = ready.iter().all(|ready| (ready.check)().is_ok());
            health.set_serving(serving).await;
        }
    })
}
