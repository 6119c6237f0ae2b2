//! Sends one batch until it is acknowledged, refused for good, or given up: what an SDK's exporter
//! does, counted.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use rand::Rng;
use tokio::time::Instant;

use super::plan::{LoadPlan, LoadProtocol};
use crate::net::client::{
    ClientConfig, Compression, Encoded, ExportError, ExportResponse, GrpcClient, HttpClient, Target,
};
use crate::net::json;

/// First back-off and its bound; both are then drawn from half to one and a half of it.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// One connection (gRPC) or one pool of connections (HTTP) to the target.
#[derive(Debug)]
pub(super) enum Client {
    Grpc(GrpcClient),
    Http(HttpClient),
}

/// How one batch is sent.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client,
    is_json: bool,
    compression: Compression,
    timeout: Duration,
    give_up_after: Duration,
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    /// Of the last attempt.
    pub(super) service_time: Duration,
    pub(super) retries: u32,
    pub(super) wire_bytes: u64,
}

#[derive(Debug)]
pub(super) enum End {
    Acknowledged,
    /// Accepted but for some spans, which may not be sent again.
    Partial {
        rejected_spans: u64,
        message: String,
    },
    /// An answer that OTLP calls not retryable.
    Refused(ExportError),
    GivenUp(ExportError),
}

/// What an SDK on the same host would wait.
const PLAYED_TIMEOUT: Duration = Duration::from_secs(10);
const PLAYED_GIVE_UP_AFTER: Duration = Duration::from_secs(60);

impl Client {
    fn new(plan: &LoadPlan) -> Self {
        let config = ClientConfig::backend(plan.compression);
        match plan.protocol {
            LoadProtocol::Grpc => Self::Grpc(GrpcClient::new(plan.target.clone(), config)),
            LoadProtocol::Http => Self::Http(HttpClient::new(
                plan.target.clone(),
                plan.path.clone(),
                config,
            )),
            LoadProtocol::Json => Self::Http(HttpClient::of_json(
                plan.target.clone(),
                plan.path.clone(),
                config,
            )),
        }
    }

    async fn export(
        &self,
        message: &Encoded,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError> {
        let metadata = HeaderMap::new();
        match self {
            Self::Grpc(client) => client.export_encoded(message, &metadata, timeout).await,
            Self::Http(client) => client.export_encoded(message, &metadata, timeout).await,
        }
    }
}

impl Sender {
    pub(super) fn new(plan: &LoadPlan) -> Self {
        Self {
            client: Client::new(plan),
            is_json: plan.protocol == LoadProtocol::Json,
            compression: plan.compression,
            timeout: plan.timeout,
            give_up_after: plan.give_up_after,
        }
    }

    /// One connection to an OTLP/gRPC port.
    pub(super) fn to(target: Target) -> Self {
        let compression = Compression::None;
        Self {
            client: Client::Grpc(GrpcClient::new(target, ClientConfig::backend(compression))),
            compression,
            is_json: false,
            timeout: PLAYED_TIMEOUT,
            give_up_after: PLAYED_GIVE_UP_AFTER,
        }
    }

    pub(super) async fn encode(&self, message: Bytes) -> Result<Encoded, ExportError> {
        let message = if self.is_json {
            let text = json::line(&message).map_err(|error| ExportError::Refused {
                code: "unsent".to_owned(),
                message: error.to_string(),
                retryable: false,
                retry_after: None,
            })?;
            text.into()
        } else {
            message
        };
        Encoded::new(vec![message], self.compression).await
    }

    /// Sends and retries; `on_retry` hears of each failed attempt that another will follow.
    pub(super) async fn send(
        &self,
        message: &Encoded,
        mut on_retry: impl FnMut(&ExportError),
    ) -> Outcome {
        let begun = Instant::now();
        let mut retries = 0;
        let mut back_off = BACK_OFF_FIRST;
        loop {
            let attempt = Instant::now();
            let result = self.client.export(message, self.timeout).await;
            let service_time = attempt.elapsed();
            let end = match result {
                Ok(answer) if answer.rejected_spans == 0 => End::Acknowledged,
                Ok(answer) => End::Partial {
                    rejected_spans: answer.rejected_spans,
                    message: answer.message,
                },
                Err(error) if !error.is_retryable() => End::Refused(error),
                Err(error) => {
                    let jitter = rand::rng().random_range(0.5..1.5);
                    let asked = error.retry_after().unwrap_or_default();
                    // What the receiver asked for is a lower bound; spread those it asked alike.
                    let wait = asked.max(back_off.mul_f64(jitter)) + asked.mul_f64(jitter / 10.0);
                    if begun.elapsed() + wait < self.give_up_after {
                        on_retry(&error);
                        retries += 1;
                        tokio::time::sleep(wait).await;
                        back_off = (back_off * 2).min(BACK_OFF_MAX);
                        continue;
                    }
                    End::GivenUp(error)
                }
            };
            return Outcome {
                end,
                service_time,
                retries,
                wire_bytes: message.bytes(),
            };
        }
    }
}
