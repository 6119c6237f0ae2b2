//! Puts a router together.

use std::sync::Arc;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::app::process::{Process, Tier};
use crate::app::settings::RouterConfig;
use crate::cluster::ViewHandle;
use crate::net::admission::Budget;

/// Runs until it was asked to stop and has drained.
pub(super) async fn run(config: RouterConfig, process: Process) -> anyhow::Result<()> {
    let (base, registry) = process.prepare(&config.shared).await?;
    let budget = Budget::new(config.shared.memory_limit.size.0);
    let tier = start(&config, base.view(), registry, budget, base.stopping())
        .await
        .context("the router cannot start")?;
    base.serve(tier).await
}

/// The tier itself: servers, lanes, what it takes to be ready, and a future that ends when all is
/// drained.
async fn start(
    config: &RouterConfig,
    view: ViewHandle,
    registry: &mut Registry,
    budget: Arc<Budget>,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<Tier> {
    let _ = (config, view, registry, budget, stopping);
    anyhow::bail!("this build has no router")
}
