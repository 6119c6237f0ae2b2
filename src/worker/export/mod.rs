//! Where kept traces go: a backend over OTLP, a file, or stdout; and how long we insist.
//!
//! [`Destination::deliver`] sends one batch and comes back when the destination has it, or has
//! refused it for good. In between it retries by the OTLP rules, without a limit of time: the batch
//! is still in the log, and the log is the queue. It drops nothing. Which traces form a batch, and
//! what is marked in the log afterwards, is the caller's.

mod backoff;
mod blame;
mod file;
mod headers;
mod metrics;
mod target;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use crate::net::client::tls::{Alpn, Tls, TlsError};
use crate::net::client::{
    AddressError, ClientConfig, Compression, Encoded, ExportError, ExportResponse, GrpcClient,
    HttpClient, Target,
};
use crate::net::json;

use backoff::Backoff;
pub use blame::{Blame, Fault};
use file::LineFile;
pub use headers::{HeaderLineError, parse_headers};
pub use metrics::ExportMetrics;
pub use target::{Endpoint, ExportTarget, ExportTargetError};

/// What is sent at once.
#[derive(Debug, Clone)]
pub struct Batch {
    /// An `ExportTraceServiceRequest`.
    pub message: Bytes,
    pub spans: u32,
    pub traces: u32,
    /// Sent beside the message over gRPC and HTTP; values of `-bin` names are in base64. Backends
    /// bound their headers, commonly at 8 KiB altogether.
    pub metadata: HeaderMap,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The destination has it. Spans it rejected (partial success) must not be sent again.
    Done {
        rejected_spans: u64,
        message: String,
    },
    /// The destination will not take this message, now or in a moment. The caller keeps the traces.
    Refused(Refusal),
}

/// An answer that is not worth repeating the message for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC code name or HTTP status.
    pub code: String,
    /// At most a kilobyte, in the destination's words.
    pub message: String,
    pub blame: Blame,
}

/// How a destination insists.
#[derive(Debug, Clone, Copy)]
pub struct DeliveryConfig {
    pub attempt_timeout: Duration,
    /// Full jitter: a wait is anything up to a ceiling, which doubles from the first to the last.
    pub backoff_first: Duration,
    pub backoff_last: Duration,
    /// What a destination asks us to wait is obeyed up to this.
    pub retry_after_max: Duration,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(30),
            backoff_first: Duration::from_millis(250),
            backoff_last: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(300),
        }
    }
}

/// Why a destination cannot be set up; a mistake in the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("{path} cannot be appended to: {error}")]
    File { path: PathBuf, error: io::Error },
}

/// See the module. Several batches may be delivered at once.
#[derive(Debug)]
pub struct Destination {
    kind: Kind,
    /// From the header file; sent with every batch.
    headers: HeaderMap,
    config: DeliveryConfig,
    metrics: ExportMetrics,
    name: String,
}

#[derive(Debug)]
enum Kind {
    Grpc(GrpcClient, Compression),
    Http(HttpClient, Compression),
    File(LineFile),
    Stdout,
}

/// A batch in the form that the destination takes, made once for all attempts.
enum Prepared {
    Message(Encoded),
    Line(Bytes),
}

impl Destination {
    /// Checks what can be checked without the network: the CA file, and that a file can be
    /// appended to. Connections are made by the first delivery.
    pub fn connect(
        target: &ExportTarget,
        headers: HeaderMap,
        config: DeliveryConfig,
        metrics: ExportMetrics,
    ) -> Result<Self, ConnectError> {
        let kind = match target {
            ExportTarget::Grpc(endpoint) => {
                let client = ClientConfig::backend(endpoint.compression);
                let target = resolve(endpoint, Alpn::H2)?;
                Kind::Grpc(GrpcClient::new(target, client), endpoint.compression)
            }
            ExportTarget::Http(endpoint, path) => {
                let client = ClientConfig::backend(endpoint.compression);
                let target = resolve(endpoint, Alpn::Http1)?;
                let client = HttpClient::new(target, path.clone(), client);
                Kind::Http(client, endpoint.compression)
            }
            ExportTarget::File(path) => {
                let file = LineFile::new(path.clone());
                file.check().map_err(|error| ConnectError::File {
                    path: path.clone(),
                    error,
                })?;
                Kind::File(file)
            }
            ExportTarget::Stdout => Kind::Stdout,
        };
        Ok(Self {
            kind,
            headers,
            config,
            metrics,
            name: target.to_string(),
        })
    }

    /// As `--export` says it, without its parameters.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a message lies in memory a second time while it is sent.
    pub fn is_compressed(&self) -> bool {
        match &self.kind {
            Kind::Grpc(_, compression) | Kind::Http(_, compression) => {
                *compression != Compression::None
            }
            // As JSON.
            Kind::File(_) | Kind::Stdout => true,
        }
    }

    /// Delivers a batch, however long it takes. Dropping the future gives up; the destination may
    /// or may not have the batch then.
    pub async fn deliver(&self, batch: &Batch) -> Delivery {
        let started = Instant::now();
        let _in_flight = self.metrics.in_flight();
        let delivery = match self.prepare(batch).await {
            Ok(prepared) => self.insist(&prepared, batch).await,
            Err(e) => self.refused(&e),
        };
        self.metrics.duration(started.elapsed());
        delivery
    }

    async fn insist(&self, prepared: &Prepared, batch: &Batch) -> Delivery {
        let mut headers = self.headers.clone();
        headers.extend(batch.metadata.clone());
        let mut backoff = Backoff::new(self.config.backoff_first, self.config.backoff_last);
        let mut attempt: u64 = 0;
        loop {
            attempt += 1;
            self.metrics.attempt();
            let error = match self.attempt(prepared, &headers).await {
                Ok(response) => return self.done(response, prepared, batch),
                Err(e) if Blame::is_due(&e) => return self.refused(&e),
                Err(e) => e,
            };
            self.metrics.retry(&error);
            let mut wait = backoff.next();
            if let Some(asked) = error.retry_after() {
                self.metrics.throttled();
                // Not earlier than asked, and not all exporters at the same moment.
                wait = asked.min(self.config.retry_after_max).max(wait);
            }
            // The 1st, 2nd, 4th, 8th: an outage of an hour is a dozen lines.
            if attempt.is_power_of_two() {
                tracing::warn!(
                    destination = self.name,
                    attempt,
                    error = %error,
                    wait_ms = wait.as_millis(),
                    "export failed, will be retried"
                );
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn prepare(&self, batch: &Batch) -> Result<Prepared, ExportError> {
        match &self.kind {
            Kind::Grpc(_, compression) | Kind::Http(_, compression) => {
                let message = Encoded::new(vec![batch.message.clone()], *compression).await?;
                Ok(Prepared::Message(message))
            }
            Kind::File(_) | Kind::Stdout => {
                let message = batch.message.clone();
                let line = blocking(move || json::line(&message))
                    .await
                    .map_err(|e| ExportError::Unreachable(e.to_string()))?;
                let line = line.map_err(|e| ExportError::Refused {
                    code: "INVALID_ARGUMENT".to_owned(),
                    message: e.to_string(),
                    retryable: false,
                    retry_after: None,
                })?;
                Ok(Prepared::Line(line.into()))
            }
        }
    }

    async fn attempt(
        &self,
        prepared: &Prepared,
        headers: &HeaderMap,
    ) -> Result<ExportResponse, ExportError> {
        let timeout = self.config.attempt_timeout;
        match (&self.kind, prepared) {
            (Kind::Grpc(client, _), Prepared::Message(message)) => {
                client.export_encoded(message, headers, timeout).await
            }
            (Kind::Http(client, _), Prepared::Message(message)) => {
                client.export_encoded(message, headers, timeout).await
            }
            (Kind::File(file), Prepared::Line(line)) => {
                let (file, line) = (file.clone(), line.clone());
                written(blocking(move || file.append(&line)).await)
            }
            (_, Prepared::Line(line)) => {
                let line = line.clone();
                written(blocking(move || print(&line)).await)
            }
            (Kind::File(_) | Kind::Stdout, Prepared::Message(_)) => Err(ExportError::Unreachable(
                "a message was prepared for a file".to_owned(),
            )),
        }
    }

    fn done(&self, response: ExportResponse, prepared: &Prepared, batch: &Batch) -> Delivery {
        let bytes = match prepared {
            Prepared::Message(message) => message.bytes(),
            Prepared::Line(line) => line.len() as u64,
        };
        self.metrics.done(batch, bytes, response.rejected_spans);
        if response.rejected_spans > 0 {
            tracing::warn!(
                destination = self.name,
                rejected_spans = response.rejected_spans,
                message = response.message,
                "the destination rejected spans; they are lost"
            );
        }
        Delivery::Done {
            rejected_spans: response.rejected_spans,
            message: response.message,
        }
    }

    /// Not worth a line of its own: a message is sent in ever smaller parts until it is known what
    /// is wrong with it, and the caller says what came out.
    fn refused(&self, error: &ExportError) -> Delivery {
        self.metrics.refused();
        tracing::debug!(destination = self.name, error = %error, "the destination refused a batch");
        let (code, message) = match error {
            ExportError::Refused { code, message, .. } => (code.clone(), message.clone()),
            // Retryable in themselves, but the batch could not even be prepared.
            ExportError::Unreachable(_) | ExportError::TimedOut(_) => {
                ("INTERNAL".to_owned(), error.to_string())
            }
        };
        Delivery::Refused(Refusal {
            code,
            message,
            blame: Blame::of(error),
        })
    }
}

/// A file or a pipe may take its time; the runtime's threads have other work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

/// A full disk may have room later: what cannot be written is out of reach, not refused.
fn written(result: io::Result<io::Result<()>>) -> Result<ExportResponse, ExportError> {
    result
        .and_then(|inner| inner)
        .map(|()| ExportResponse::default())
        .map_err(|e| ExportError::Unreachable(e.to_string()))
}

fn print(line: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line)?;
    stdout.flush()
}

fn resolve(endpoint: &Endpoint, alpn: Alpn) -> Result<Target, ConnectError> {
    let target = Target::plain(endpoint.address.clone())?;
    if !endpoint.tls {
        return Ok(target);
    }
    let tls = Tls::new(target.authority.host(), alpn, endpoint.ca_file.as_deref())?;
    Ok(target.with_tls(tls))
}
