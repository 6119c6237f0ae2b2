//! Servers: OTLP over gRPC on 4317 and over HTTP on 4318, peers on 4319.
//!
//! One message's way: `listener` (connections) → `grpc` or `http` (what is asked for) → `body`
//! (reads, pays, inflates) → `transcode` (JSON to protobuf) → [`Ingest`], which a tier implements → `reply` (the answer on the wire).
//! What peers call takes the way of `grpc`, through `peer` to a [`PeerService`](crate::net::peer::PeerService).
//! What is in a message nobody here knows.
//!
//! On hyper instead of tonic's transport, because tonic 0.14 answers an oversized message with
//! OUT_OF_RANGE (which clients repeat), reserves a message's declared length before its bytes come,
//! allows unlimited streams unless told, sheds load without RetryInfo (which clients take as "never
//! again"), ages connections without jitter, and waits for ever when it shuts down.

mod body;
mod format;
mod grpc;
mod health;
mod held;
mod http;
mod inflate;
mod listener;
mod metrics;
mod peer;
mod reply;
mod transcode;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::model::Fingerprint;
use crate::net::admission::{Budget, Permit};
use crate::net::metadata::RequestMetadata;
use crate::net::status::Refusal;

pub use health::HealthHandle;
use listener::Port;
pub use listener::{BoundServer, Stopped};
pub use metrics::ServerMetrics;
pub use peer::{PeerPort, PeerServer};

/// One received message, uncompressed protobuf, with the bytes it costs.
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
    /// Dropped before it is ready when the client goes away.
    fn ingest(
        self: &Arc<Self>,
        request: IngestRequest,
    ) -> impl Future<Output = Result<Accepted, Refusal>> + Send;

    /// Sent with every response.
    fn fingerprint(&self) -> Fingerprint;
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// OTLP/gRPC and grpc.health.v1.
    Grpc,
    /// OTLP/HTTP over HTTP/1.1 and HTTP/2 with prior knowledge.
    Http,
    /// The peer service.
    Peer,
}

impl Protocol {
    /// Value of the `protocol` metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Peer => "peer",
        }
    }

    const fn flag(self) -> &'static str {
        match self {
            Self::Grpc => "--listen-grpc",
            Self::Http => "--listen-http",
            Self::Peer => "--listen-peers",
        }
    }
}

/// Bounds of one listener. [`ServerConfig::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub protocol: Protocol,
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Of one message, as it came and again after decompression.
    pub request_bytes_max: usize,
    /// Connections beyond are closed at once.
    pub connections_max: usize,
    /// HTTP/2 streams on one connection. Further requests wait at the client, where they cost nothing: with 256
    /// an overload was half refusals, each with a body that had been received (README, "Outage, overload, synced").
    pub streams_max: u32,
    /// After this, ± 10 %, a connection is told to go away; requests in flight finish. Clients hold
    /// one connection for days otherwise, and new routers would stay idle.
    pub connection_age: Duration,
    /// Longest silence inside a message.
    pub body_idle_max: Duration,
    /// Longest time from a request's headers to its last byte.
    pub body_total_max: Duration,
    /// Longest time until a new connection says its first byte; over HTTP/1 also until a request's
    /// headers are complete, which includes the wait for the next request on a kept connection.
    pub header_read_max: Duration,
    /// HTTP/2 PING after this much silence, …
    pub keep_alive_interval: Duration,
    /// … and the connection is given up when no answer comes for this long.
    pub keep_alive_timeout: Duration,
    /// After the shutdown signal, requests in flight get this long.
    pub drain_deadline: Duration,
}

impl ServerConfig {
    pub fn new(protocol: Protocol, listen: SocketAddr) -> Self {
        Self {
            protocol,
            listen,
            request_bytes_max: 64 << 20, // what OTLP 1.11 recommends
            connections_max: 4096,
            streams_max: 32,
            connection_age: Duration::from_secs(600),
            body_idle_max: Duration::from_secs(10),
            body_total_max: Duration::from_secs(60),
            // hyper runs this timer on idle connections too; SDKs export every 5 to 60 s, and a
            // connection closed just before that costs them a failed request.
            header_read_max: Duration::from_secs(75),
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(20),
        }
    }
}

/// Why a listener could not be opened; the text names the flag to change.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "{flag} {listen}: the address is in use by another process; stop that one or choose another address"
    )]
    InUse {
        flag: &'static str,
        listen: SocketAddr,
    },
    #[error(
        "{flag} {listen}: not allowed to listen there; ports below 1024 need CAP_NET_BIND_SERVICE"
    )]
    Denied {
        flag: &'static str,
        listen: SocketAddr,
    },
    #[error("{flag} {listen}: this machine has no such address; 0.0.0.0 or [::] listens on all")]
    NotHere {
        flag: &'static str,
        listen: SocketAddr,
    },
    #[error("{flag} {listen}: {source}")]
    Other {
        flag: &'static str,
        listen: SocketAddr,
        source: io::Error,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Opens the listener: from here on clients connect, and wait until
    /// [`BoundServer::serve`] runs.
    pub async fn bind<I: Ingest>(
        config: ServerConfig,
        ingest: Arc<I>,
        metrics: ServerMetrics,
        budget: Arc<Budget>,
    ) -> Result<BoundServer<I>, BindError> {
        let port = Port::open(config.protocol, config.listen)?;
        Ok(BoundServer::new(port, config, ingest, &metrics, budget).await)
    }
}
