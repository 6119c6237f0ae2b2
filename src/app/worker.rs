//! Puts a worker together.

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::app::admin::ReadyCheck;
use crate::app::settings::WorkerConfig;
use crate::app::tier::{self, Tier};
use crate::cluster::ViewHandle;
use crate::model::Member;

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
        "worker"
    );
    let start = async |view: ViewHandle, registry: &mut Registry| {
        start(&config, view, registry, stopping.clone()).await
    };
    tier::run("tailring-worker", &config.shared, stopping.clone(), start).await
}

async fn start(
    config: &WorkerConfig,
    view: ViewHandle,
    registry: &mut Registry,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<Tier> {
    let ready = vec![is_member(config.name.clone(), view)];
    let _ = (registry, stopping, ready);
    anyhow::bail!("this build has no worker")
}

/// A worker that the others do not find would hold traces that nobody asks it for.
fn is_member(name: Member, view: ViewHandle) -> ReadyCheck {
    ReadyCheck {
        name: "member",
        check: Box::new(move || {
            if view.load().addresses.contains_key(&name) {
                Ok(())
            } else {
                Err(format!(
                    "{name} is not among the members that --workers finds; see /ring, and --name"
                ))
            }
        }),
    }
}
