//! The one table of what a refusal means on the wire: gRPC code, HTTP status, retry or not.
//!
//! OTLP's rules decide it. A gRPC client repeats UNAVAILABLE, and RESOURCE_EXHAUSTED only with
//! RetryInfo; an HTTP client repeats 429, 502, 503 and 504. So everything that may succeed later is
//! UNAVAILABLE with RetryInfo, or 503 with Retry-After, and nothing else is. How that is written
//! down is `server::reply`'s business.

use std::time::Duration;

use http::StatusCode;
use tonic::Code;

/// Why a request was refused. Closed: also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalReason {
    /// Not protobuf or JSON of the right shape, bad compression, bad framing. Never retried.
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
    /// A peer's call was meant for another life of this member: the caller learns of this one by hello.
    WrongIncarnation,
    /// A peer that is older than another one of its name. Never retried: it is not the one in the ring.
    StaleIncarnation,
    /// A peer of another cluster.
    WrongCluster,
    /// The log is at its byte bound, or its volume has only the reserve left.
    LogFull,
    /// The log could not be written.
    LogFailed,
    /// A shard's queue is full.
    ShardBusy,
    /// Not ready yet, or stopping.
    Unready,
    /// A defect of ours: the handler panicked. Not retried, so that a message that does this
    /// every time does not come back for ever.
    Panicked,
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

/// One row of the table.
struct Row {
    label: &'static str,
    grpc: Code,
    http: StatusCode,
    /// `Some` is retryable.
    retry_after: Option<Duration>,
}

impl RefusalReason {
    pub const ALL: [Self; 21] = [
        Self::InvalidRequest,
        Self::TooLarge,
        Self::TooManySpans,
        Self::ContentType,
        Self::Encoding,
        Self::Unimplemented,
        Self::Method,
        Self::MemoryPressure,
        Self::SlowClient,
        Self::NoMembers,
        Self::WorkersUnavailable,
        Self::LaneFull,
        Self::WrongMember,
        Self::WrongIncarnation,
        Self::StaleIncarnation,
        Self::WrongCluster,
        Self::LogFull,
        Self::LogFailed,
        Self::ShardBusy,
        Self::Unready,
        Self::Panicked,
    ];

    const fn row(self) -> Row {
        const fn never(label: &'static str, grpc: Code, http: StatusCode) -> Row {
            Row {
                label,
                grpc,
                http,
                retry_after: None,
            }
        }
        const fn later(label: &'static str, millis: u64) -> Row {
            Row {
                label,
                grpc: Code::Unavailable,
                http: StatusCode::SERVICE_UNAVAILABLE,
                retry_after: Some(Duration::from_millis(millis)),
            }
        }
        match self {
            Self::InvalidRequest => never(
                "invalid_request",
                Code::InvalidArgument,
                StatusCode::BAD_REQUEST,
            ),
            // RESOURCE_EXHAUSTED without RetryInfo means "never again" in OTLP. tonic's own answer
            // is OUT_OF_RANGE, which clients repeat until they give up.
            Self::TooLarge => never(
                "too_large",
                Code::ResourceExhausted,
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Self::TooManySpans => never(
                "too_many_spans",
                Code::ResourceExhausted,
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Self::ContentType => never(
                "content_type",
                Code::InvalidArgument,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            Self::Encoding => never(
                "encoding",
                Code::Unimplemented,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            Self::Unimplemented => {
                never("unimplemented", Code::Unimplemented, StatusCode::NOT_FOUND)
            }
            Self::Method => never(
                "method",
                Code::Unimplemented,
                StatusCode::METHOD_NOT_ALLOWED,
            ),
            Self::MemoryPressure => later("memory_pressure", 1_000),
            Self::SlowClient => later("slow_client", 1_000),
            Self::NoMembers => later("no_members", 2_000), // discovery looks again every 2 s
            Self::WorkersUnavailable => later("workers_unavailable", 1_000),
            Self::LaneFull => later("lane_full", 1_000),
            Self::WrongMember => later("wrong_member", 100), // the sender only has to look again
            Self::WrongIncarnation => later("wrong_incarnation", 1_000),
            Self::StaleIncarnation => never(
                "stale_incarnation",
                Code::FailedPrecondition,
                StatusCode::CONFLICT,
            ),
            Self::WrongCluster => never(
                "wrong_cluster",
                Code::FailedPrecondition,
                StatusCode::CONFLICT,
            ),
            Self::LogFull => later("log_full", 5_000), // export or expiry must free segments
            Self::LogFailed => later("log_failed", 5_000),
            Self::ShardBusy => later("shard_busy", 200), // a queue of milliseconds
            Self::Unready => later("unready", 2_000),
            Self::Panicked => never(
                "panicked",
                Code::Internal,
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
        }
    }

    /// Value of the `reason` and `outcome` metric labels.
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    /// The reason with which a Tailring process begins the text of a refusal, and the rest of it:
    /// `log_full: ...`. Labels are plain ASCII, so percent-encoding leaves them alone. Other receivers'
    /// texts have none; should one, it is taken for what it says.
    pub fn in_message(message: &str) -> Option<(Self, &str)> {
        let (label, detail) = message.split_once(": ")?;
        Self::ALL
            .into_iter()
            .find(|reason| reason.label() == label)
            .map(|reason| (reason, detail))
    }

    pub const fn grpc_code(self) -> Code {
        self.row().grpc
    }

    pub const fn http_status(self) -> StatusCode {
        self.row().http
    }

    /// Whether the same message may be accepted later.
    pub const fn retryable(self) -> bool {
        self.row().retry_after.is_some()
    }

    /// How long a client is asked to wait unless the refusal says otherwise; `None`: never again.
    pub const fn retry_after(self) -> Option<Duration> {
        self.row().retry_after
    }
}

impl Refusal {
    /// With the table's `retry_after`.
    pub fn new(reason: RefusalReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            retry_after: reason.retry_after(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn otlp_clients_retry_exactly_what_we_call_retryable() {
        for reason in RefusalReason::ALL {
            // The lists of the OTLP specification; RESOURCE_EXHAUSTED counts only with RetryInfo,
            // which only retryable refusals carry.
            let grpc_retries = matches!(
                reason.grpc_code(),
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            );
            let http_retries = matches!(reason.http_status().as_u16(), 429 | 502 | 503 | 504);
            assert_eq!(grpc_retries, reason.retryable(), "{reason:?}");
            assert_eq!(http_retries, reason.retryable(), "{reason:?}");
            assert_eq!(
                Refusal::new(reason, "").retry_after.is_some(),
                reason.retryable()
            );
        }
    }

    #[test]
    fn all_is_all_and_labels_are_distinct() {
        let labels: BTreeSet<_> = RefusalReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), RefusalReason::ALL.len());
        for (index, reason) in RefusalReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "ALL is in declaration order");
        }
        assert_eq!(
            RefusalReason::Panicked as usize + 1,
            RefusalReason::ALL.len()
        );
    }
}
