//! A gRPC client for one OTLP target: one HTTP/2 connection, made when needed, made again when lost.

use std::time::Duration;

use bytes::Bytes;

use crate::model::Fingerprint;

/// Answer of a receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportResponse {
    pub rejected_spans: u64,
    pub message: String,
    /// `tailring-view` of the response.
    pub view: Option<Fingerprint>,
}

/// Why a message was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The receiver answered, and not with OK.
    #[error("refused with {code}: {message}")]
    Refused {
        /// gRPC code name, or HTTP status.
        code: String,
        message: String,
        /// By the OTLP rules.
        retryable: bool,
        retry_after: Option<Duration>,
    },
    /// No connection, or lost before an answer: the message may or may not have arrived.
    #[error("unreachable: {0}")]
    Unreachable(String),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// See the module.
#[derive(Debug)]
pub struct GrpcClient {}

impl GrpcClient {
    /// Sends one message, given in pieces that are concatenated on the wire without a copy.
    pub async fn export(
        &self,
        pieces: Vec<Bytes>,
        metadata: &http::HeaderMap,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError> {
        let _ = (pieces, metadata, timeout);
        unimplemented!()
    }
}
