//! The one table of what a refusal means on the wire: gRPC code, HTTP status, retry or not.

use std::time::Duration;

/// Why a request was refused. Closed: also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalReason {
    /// Not protobuf of the right shape, bad compression, bad framing. Never retried.
    InvalidRequest,
    /// Longer than `--max-request-bytes`, before or after decompression. Never retried.
    TooLarge,
    /// More than `--max-spans-per-request`. Never retried.
    TooManySpans,
    /// A content-type we do not speak.
    ContentType,
    /// A content-encoding or grpc-encoding we do not speak.
    Encoding,
    /// A path or signal we do not serve.
    Unimplemented,
    /// HTTP method other than POST.
    Method,
    /// Bytes in flight are at their bound.
    MemoryPressure,
    /// The client's connection delivered its message too slowly.
    SlowClient,
    /// No member of the ring is known.
    NoMembers,
    /// No worker that may hold the traces answered in time.
    WorkersUnavailable,
    /// A lane's byte bound is reached.
    LaneFull,
    /// The message was meant for another member.
    WrongMember,
    /// The log is at its byte bound.
    LogFull,
    /// The log could not be written.
    LogFailed,
    /// A shard's queue is full.
    ShardBusy,
    /// Not ready yet, or stopping.
    Unready,
}

/// A refusal with its text for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RefusalReason,
    /// What was wrong, where, and what to do.
    pub detail: String,
    /// Only for retryable reasons.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(reason: RefusalReason, detail: impl Into<String>) -> Self {
        let _ = (reason, detail.into());
        unimplemented!()
    }
}
