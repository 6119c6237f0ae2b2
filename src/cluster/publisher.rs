//! Makes views of names and publishes them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tracing::{info, warn};

use crate::cluster::discovery::{DiscoveryConfig, DiscoveryMetrics};
use crate::cluster::view::{View, ViewHandle};
use crate::model::Member;
use crate::ring::Seed;

/// The only one who publishes in its process.
#[derive(Debug)]
pub struct Publisher {
    view: ViewHandle,
    seed: Seed,
    cluster: String,
    metrics: DiscoveryMetrics,
}

impl Publisher {
    pub(super) fn new(
        view: ViewHandle,
        config: &DiscoveryConfig,
        metrics: DiscoveryMetrics,
    ) -> Self {
        Self {
            view,
            seed: config.seed,
            cluster: config.cluster.clone(),
            metrics,
        }
    }

    /// Publishes if anything is new.
    pub async fn publish(&self, addresses: BTreeMap<Member, SocketAddr>) {
        let before = self.view.load();
        if before.addresses == addresses {
            return;
        }
        let view = if before.addresses.keys().eq(addresses.keys()) {
            View {
                addresses,
                table: before.table.clone(),
            }
        } else {
            let (seed, cluster) = (self.seed, self.cluster.clone());
            // A thousand names take a tenth of a second, which requests would wait for.
            let built = tokio::task::spawn_blocking(move || View::new(addresses, seed, &cluster));
            match built.await {
                Ok(view) => view,
                // Only while the runtime shuts down.
                Err(error) => return warn!(%error, "the new ring was not built"),
            }
        };
        let joined = view
            .addresses
            .keys()
            .filter(|m| !before.addresses.contains_key(m));
        let left = before
            .addresses
            .keys()
            .filter(|m| !view.addresses.contains_key(m));
        info!(
            fingerprint = %view.fingerprint(),
            members = view.addresses.len(),
            joined = joined.count(),
            left = left.count(),
            "the view changed"
        );
        self.metrics
            .members
            .set(i64::try_from(view.addresses.len()).unwrap_or(i64::MAX));
        self.metrics.view_changes.inc();
        self.view.publish(view);
    }
}
