//! OTLP servers: gRPC on 4317, HTTP on 4318.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::Fingerprint;
use crate::net::admission::Permit;
use crate::net::metadata::RequestMetadata;
use crate::net::status::Refusal;

/// One received message, uncompressed, with the bytes it costs.
#[derive(Debug)]
pub struct IngestRequest {
    pub message: Bytes,
    pub permit: Permit,
    pub metadata: RequestMetadata,
}

/// What was accepted. `rejected > 0` becomes a partial success.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    pub rejected_spans: u64,
    pub message: String,
}

/// What a tier does with a message.
pub trait Ingest: Send + Sync + 'static {
    fn ingest(
        self: &Arc<Self>,
        request: IngestRequest,
    ) -> impl Future<Output = Result<Accepted, Refusal>> + Send;

    /// Sent with every response.
    fn fingerprint(&self) -> Fingerprint;
}
