//! The OTLP listeners of a tier: gRPC and HTTP in front of one ingest.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::app::settings::{ListenAddress, SharedConfig};
use crate::net::admission::Budget;
use crate::net::server::{
    BindError, BoundServer, HealthHandle, Ingest, Protocol, Server, ServerConfig, ServerMetrics,
};

/// Bound, so that clients connect and wait.
#[derive(Debug)]
pub(super) struct OtlpListeners<I: Ingest> {
    grpc: BoundServer<I>,
    http: BoundServer<I>,
}

impl<I: Ingest> OtlpListeners<I> {
    pub(super) async fn bind(
        settings: &SharedConfig,
        ingest: &Arc<I>,
        metrics: &ServerMetrics,
        budget: &Arc<Budget>,
    ) -> Result<Self, BindError> {
        let bind = async |protocol, listen: ListenAddress| {
            let mut config = ServerConfig::new(protocol, listen.socket_addr());
            config.request_bytes_max =
                usize::try_from(settings.request_bytes_max.0).unwrap_or(usize::MAX);
            let (ingest, budget) = (Arc::clone(ingest), Arc::clone(budget));
            let server = Server::bind(config, ingest, metrics.clone(), budget).await?;
            info!(
                protocol = protocol.label(),
                address = %server.local_addr(),
                "listening for OTLP"
            );
            Ok::<_, BindError>(server)
        };
        Ok(Self {
            grpc: bind(Protocol::Grpc, settings.listen_grpc).await?,
            http: bind(Protocol::Http, settings.listen_http).await?,
        })
    }

    pub(super) fn grpc_addr(&self) -> SocketAddr {
        self.grpc.local_addr()
    }

    /// What grpc.health.v1 answers on the gRPC port.
    pub(super) fn health(&self) -> HealthHandle {
        self.grpc.health()
    }

    /// Until `stopping`; then requests in flight are finished.
    pub(super) async fn serve(self, stopping: watch::Receiver<bool>) {
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // Who no longer could say stop has stopped.
            drop(stopping.wait_for(|stop| *stop).await);
        };
        let (grpc, http) = tokio::join!(
            self.grpc.serve(stopped(stopping.clone())),
            self.http.serve(stopped(stopping)),
        );
        let aborted = grpc.aborted_connections + http.aborted_connections;
        if aborted > 0 {
            warn!(
                connections = aborted,
                "cut connections whose requests did not end in time; their clients try again"
            );
        }
    }
}
