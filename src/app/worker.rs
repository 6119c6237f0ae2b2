//! Puts a worker together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::app::admin::LiveCheck;
use crate::app::otlp::OtlpListeners;
use crate::app::peers::{PeerShare, Peers};
use crate::app::settings::{Ack, LOG_SEGMENT_BYTES, OnPressure, WorkerConfig};
use crate::app::tier::{self, Tier};
use crate::cluster::Discovery;
use crate::log::{DirLock, RealDisk};
use crate::model::{Identity, SteadyClock, StoreId};
use crate::net::admission::{Budget, BudgetMetrics};
use crate::net::server::ServerMetrics;
use crate::wire::ScanLimits;
use crate::worker::export::{DeliveryConfig, Destination, ExportMetrics};
use crate::worker::{self, AckLevel, Worker, WorkerMetrics};

/// Runs until it was asked to stop and has drained.
pub(super) async fn run(
    config: WorkerConfig,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    for notice in &config.policy_notices {
        warn!(%notice, "the policy file");
    }
    info!(
        name = %config.name,
        data_dir = %config.data_dir.display(),
        log_max_bytes = %config.log_max_bytes,
        policies = config.rules.policies.len(),
        rules_version = config.rules.version,
        ack = config.ack.label(),
        on_pressure = config.on_pressure.label(),
        memory_budget = %config.memory.budget,
        index = %config.memory.index,
        decisions = %config.memory.decisions,
        export = %config.memory.export,
        "worker"
    );
    if config.log_is_memory {
        warn!(
            log_max_bytes = %config.log_max_bytes,
            memory_beside_it = %config.memory.limit,
            "--data-dir is on tmpfs: the log is memory, counts against the memory limit, and does not survive the end of the pod or of the host"
        );
    }
    let start = async |discovery: Discovery, registry: &mut Registry| {
        start(&config, discovery, registry, stopping.clone()).await
    };
    tier::run("tailring-worker", &config.shared, stopping.clone(), start).await
}

async fn start(
    config: &WorkerConfig,
    discovery: Discovery,
    registry: &mut Registry,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<Tier> {
    let shared = &config.shared;
    let view = discovery.view();
    let clock = SteadyClock::start();
    let lock = DirLock::acquire(&config.data_dir).context("--data-dir")?;
    let identity = lock.next_life(clock.now()).context("--data-dir")?;
    let destination = Destination::connect(
        &config.export,
        config.export_headers.clone(),
        DeliveryConfig::default(),
        ExportMetrics::register(registry),
    )
    .context("--export")?;
    let budget = Budget::new(config.memory.budget.0);
    let peer_share = PeerShare::of(&budget, config.memory.peers.0);
    let budgets = vec![
        ("memory", budget.clone()),
        ("peers", peer_share.budget.clone()),
    ];
    BudgetMetrics::register(registry, budgets);
    let disk = RealDisk {
        dir: config.data_dir.clone(),
    };
    let worker_config = worker::WorkerConfig {
        name: config.name.clone(),
        incarnation: identity.incarnation,
        shards: config.shards,
        scan: ScanLimits {
            spans_max: shared.spans_per_request_max,
            ..ScanLimits::default()
        },
        ack: match config.ack {
            Ack::Written => AckLevel::Written,
            Ack::Synced => AckLevel::Synced,
        },
        segment_bytes: u32::try_from(LOG_SEGMENT_BYTES.0).unwrap_or(u32::MAX),
        log_max_bytes: config.log_max_bytes.0,
        trace_spans_max: config.trace_spans_max,
        trace_bytes_max: config.trace_bytes_max.0,
        drop_retain: config.drop_retain,
        decision_memory_max_bytes: usize::try_from(config.memory.decisions.0).unwrap_or(usize::MAX),
        index_memory_max_bytes: usize::try_from(config.memory.index.0).unwrap_or(usize::MAX),
        budget: budget.clone(),
        export_memory_bytes: config.memory.export.0,
        on_pressure: match config.on_pressure {
            OnPressure::Refuse => worker::OnPressure::Refuse,
            OnPressure::Decide => worker::OnPressure::Decide,
        },
    };
    let metrics = WorkerMetrics::register(registry);
    // Reading the log blocks this thread. Discovery, signals and the admin pages go on in the
    // runtime's others.
    let worker = tokio::task::block_in_place(|| {
        Worker::start(
            worker_config,
            disk,
            Arc::new(config.rules.clone()),
            Arc::new(destination),
            view.clone(),
            clock,
            metrics,
        )
    })?;
    let found = worker.recovery();
    info!(
        incarnation = %identity.incarnation,
        segments = found.segments,
        by_footer = found.segments_by_footer,
        bytes = found.bytes,
        fragments = found.fragments,
        torn_tails = found.torn_tails,
        damaged_records = found.damaged_records,
        "the log is indexed"
    );
    let server_metrics = ServerMetrics::register(registry);
    look_at_volume(&worker, &config.data_dir);
    let listeners = OtlpListeners::bind(shared, &worker, &server_metrics, &budget).await?;
    let peers = Peers::start(
        config,
        Identity {
            member: config.name.clone(),
            incarnation: identity.incarnation,
            store: StoreId(identity.store),
        },
        &worker,
        clock,
        listeners.grpc_addr(),
        peer_share,
        discovery.answers(),
        (&server_metrics, registry),
    )
    .await?;
    let watching = tokio::spawn(watch_volume(Arc::clone(&worker), config.data_dir.clone()));
    let live = (0..usize::from(config.shards))
        .map(|shard| {
            let worker = Arc::clone(&worker);
            LiveCheck {
                name: format!("shard {shard}"),
                silent_for: Box::new(move || worker.silences().nth(shard).unwrap_or_default()),
            }
        })
        .collect();
    Ok(Tier {
        live,
        ready: vec![peers.ready()],
        health: listeners.health(),
        roster: Some(peers.page()),
        done: Box::pin(async move {
            // Clients are served until all is handed over and the routers have found out.
            let (close, closed) = watch::channel(false);
            let leave = async {
                peers.leave(stopping).await;
                let left = worker.drain(DRAIN_AT_STOP).await;
                if left > 0 {
                    warn!(
                        bytes = left,
                        "not all could be handed over; the next start goes on with it"
                    );
                }
                worker.linger(QUIET_FOR, LINGER_AT_STOP).await;
                close.send_replace(true);
            };
            let serve = listeners.serve(closed);
            tokio::select! {
                _ = async { tokio::join!(serve, leave) } => {}
                what = sync_failure(&worker) => return Err(SyncFailed(what).into()),
            }
            let left = worker.stop(EXPORT_AT_STOP).await;
            if left > 0 {
                warn!(
                    traces = left,
                    "kept traces stay in the log; the next start exports them"
                );
            }
            peers.stop();
            watching.abort();
            // Until here nobody else may open the data dir.
            drop(lock);
            match worker.sync_failure() {
                Some(what) => Err(SyncFailed(what.to_owned()).into()),
                None => Ok(()),
            }
        }),
    })
}

/// After a stop was asked for, traces may be handed over for so long: 256 MiB take four seconds.
const DRAIN_AT_STOP: Duration = Duration::from_secs(15);
/// Then requests are passed on until there were none for so long, or for so long altogether.
const QUIET_FOR: Duration = Duration::from_secs(1);
const LINGER_AT_STOP: Duration = Duration::from_secs(5);
/// Then what is kept may still go out for so long. All of it is less than the 30 s that Kubernetes grants by
/// default before it kills, but for what a backend takes to answer.
const EXPORT_AT_STOP: Duration = Duration::from_secs(10);

/// The disk lost what it was given. Not drained: another life reads what is really there.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log is not durable, {0}: nothing is acknowledged any more. Started again, this worker goes on \
     with what its disk has; clients that got no OK send theirs again"
)]
pub(super) struct SyncFailed(String);

/// Waits for a sync to fail.
async fn sync_failure(worker: &Worker) -> String {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        if let Some(what) = worker.sync_failure() {
            return what.to_owned();
        }
    }
}

/// The log alone bounds itself, but others may write to its volume. Between two looks a disk of 600
/// MB/s fills one segment of 64 MiB twice; the reserve is that for each shard.
async fn watch_volume(worker: Arc<Worker>, data_dir: PathBuf) {
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let (worker, data_dir) = (Arc::clone(&worker), data_dir.clone());
        // A volume over a network may be slow to answer.
        let looked = tokio::task::spawn_blocking(move || look_at_volume(&worker, &data_dir));
        if looked.await.is_err() {
            return; // the runtime is shutting down
        }
    }
}

fn look_at_volume(worker: &Worker, data_dir: &Path) {
    // A volume that does not tell is left to fail by itself.
    if let Ok(volume) = rustix::fs::statvfs(data_dir) {
        worker.volume_has(volume.f_bavail.saturating_mul(volume.f_frsize));
    }
}
