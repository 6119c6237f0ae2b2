//! How messages get to a receiver that may move: over gRPC ([`Grpc`]), or over whatever a test has
//! in its place. Who sends knows only this, so that a cluster is simulated with the very code that
//! serves.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;

use super::connect::{AddressError, Target};
use super::{ClientConfig, ExportError, ExportResponse, GrpcClient};

/// The way to one receiver. Calls may overlap; dropping one gives it up.
#[async_trait]
pub trait Channel: fmt::Debug + Send + Sync {
    /// Sends one message, given in pieces; `timeout` covers everything up to the answer.
    async fn export(
        &self,
        pieces: Vec<Bytes>,
        metadata: &HeaderMap,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError>;

    /// The receiver has another address: calls under way end as [`ExportError::Unreachable`].
    fn redirect(&self, address: SocketAddr) -> Result<(), AddressError>;
}

/// Makes channels. Connects nothing yet.
pub trait Dial: fmt::Debug + Send + Sync {
    fn dial(
        &self,
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Arc<dyn Channel>, AddressError>;
}

/// Plain gRPC, as between our own tiers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grpc;

impl Dial for Grpc {
    fn dial(
        &self,
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Arc<dyn Channel>, AddressError> {
        Ok(Arc::new(GrpcClient::new(Target::plain(address)?, config)))
    }
}

#[async_trait]
impl Channel for GrpcClient {
    async fn export(
        &self,
        pieces: Vec<Bytes>,
        metadata: &HeaderMap,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError> {
        Self::export(self, pieces, metadata, timeout).await
    }

    fn redirect(&self, address: SocketAddr) -> Result<(), AddressError> {
        self.set_target(Target::plain(address)?);
        Ok(())
    }
}
