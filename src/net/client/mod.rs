//! Clients of OTLP receivers: gRPC ([`GrpcClient`]) and HTTP ([`HttpClient`]), one target each.
//!
//! They send one message, read one bounded answer, and say by the OTLP rules what it means. They
//! never retry a message that a receiver may have seen: whoever owns the message decides that.

mod answer;
mod body;
mod channel;
mod compress;
mod connect;
mod grpc;
mod http1;
mod json_answer;
mod retry_after;
pub mod tls;

use std::time::Duration;

use bytes::Bytes;

use crate::model::Fingerprint;

pub use channel::{Channel, Dial, Grpc};
pub use compress::{Compression, Encoded};
pub use connect::{Address, AddressError, Target};
pub use grpc::GrpcClient;
pub use http1::HttpClient;

/// Answer of a receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportResponse {
    pub rejected_spans: u64,
    pub message: String,
    /// `tailring-view` of the response.
    pub view: Option<Fingerprint>,
}

/// Answer of another method than export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub bytes: Bytes,
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

impl ExportError {
    /// Whether the same message may be accepted later, by the OTLP rules.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { retryable, .. } => *retryable,
            Self::Unreachable(_) | Self::TimedOut(_) => true,
        }
    }

    /// What the receiver asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable(_) | Self::TimedOut(_) => None,
        }
    }
}

/// How a client behaves towards its target.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub compression: Compression,
    /// HTTP/2 pings, also while idle. `None` when the receiver may be a grpc-go server: its
    /// default enforcement policy answers pings more frequent than five minutes with GOAWAY
    /// `too_many_pings`. Without pings a connection is retired when a call times out on it.
    pub keep_alive: Option<KeepAlive>,
    /// Bounds name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Longest answer that is read; OTLP recommends that receivers stay below 4 MiB.
    pub response_bytes_max: usize,
}

/// Pings on an HTTP/2 connection.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    pub interval: Duration,
    /// A ping not answered for this long ends the connection and every call on it.
    pub timeout: Duration,
}

impl ClientConfig {
    /// Towards our own tiers: a partitioned peer is noticed within 8 s, with or without traffic.
    pub fn peer() -> Self {
        Self {
            compression: Compression::None,
            keep_alive: Some(KeepAlive {
                interval: Duration::from_secs(5),
                timeout: Duration::from_secs(3),
            }),
            connect_timeout: Duration::from_secs(2),
            response_bytes_max: 64 << 10,
        }
    }

    /// Towards a backend that somebody else runs, maybe far away.
    pub fn backend(compression: Compression) -> Self {
        Self {
            compression,
            keep_alive: None,
            connect_timeout: Duration::from_secs(10),
            response_bytes_max: 64 << 10,
        }
    }

    /// A configured bound cannot defeat the purpose of the bound.
    fn response_bytes_max(&self) -> usize {
        self.response_bytes_max.min(4 << 20)
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self::peer()
    }
}

const USER_AGENT: &str = concat!("tailring/", env!("CARGO_PKG_VERSION"));

/// Texts of strangers end up in logs and answers; a kilobyte says enough.
const MESSAGE_BYTES_MAX: usize = 1024;

fn shortened(text: &str) -> String {
    if text.len() <= MESSAGE_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = MESSAGE_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// An error with its causes in one line; hyper says "error trying to connect" and no more.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
