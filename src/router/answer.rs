//! What a worker's answer means for the parts it was about, and for the lane.
//!
//! | answer                                              | several parts  | one part              | circuit |
//! |-----------------------------------------------------|----------------|-----------------------|---------|
//! | OK                                                  | acknowledged   | acknowledged          |         |
//! | OK without a view: no worker says that              | stand-ins      | stand-ins             | opens   |
//! | OK with rejected spans (a worker of another version)| part by part   | partial success       |         |
//! | about the message: INVALID_ARGUMENT, OUT_OF_RANGE,  | part by part   | client: never         |         |
//! | RESOURCE_EXHAUSTED for good, a handler that panicked|                |                       |         |
//! | back-pressure: log full, memory, a shard's queue    | client: later  | client: later         |         |
//! | every other status                                  | stand-ins      | stand-ins             | opens   |
//! | none: unreachable, lost, timed out                  | once more, then stand-ins | the same   | opens at the second |
//!
//! Part by part is only for answers that one bad part can cause. What is about the worker would be
//! the same for each part, and asking n times would turn one timeout into n.
//!
//! Back-pressure goes to the client and not to a stand-in: spilling an overloaded worker's traces
//! over its neighbours would split them just when nobody has room to put them together again, and
//! would pull the neighbours down one after another. A worker whose log *fails* is another case:
//! it will not recover by waiting, so its traces go elsewhere.
//!
//! Addresses are given away again. A worker that is not meant says so itself; any other OTLP receiver says OK to whatever
//! it is sent, and does not know how to name its view. Its OK is worth nothing to a client of ours.

use crate::net::client::{ExportError, ExportResponse};
use crate::net::status::{Refusal, RefusalReason};
use crate::router::metrics::{OpenCause, RpcOutcome};

#[derive(Debug)]
pub(crate) enum Answer {
    Acknowledged,
    /// The worker took the message without some spans, for good.
    Partial {
        rejected_spans: u64,
        message: String,
    },
    /// The message can never be taken.
    Invalid(String),
    /// The worker is well and has no room.
    BackPressure(Refusal),
    /// The worker does not serve; asking it again is useless.
    Refused(String),
    /// No answer; the message may have arrived. Sending it again is safe, since workers recognise
    /// fragments by their hash.
    None(OpenCause, String),
}

impl Answer {
    pub(crate) fn of(result: Result<ExportResponse, ExportError>) -> Self {
        match result {
            Ok(ExportResponse { view: None, .. }) => {
                Self::Refused("who is there is no worker: its OK names no view".to_owned())
            }
            Ok(response) if response.rejected_spans == 0 => Self::Acknowledged,
            Ok(response) => Self::Partial {
                rejected_spans: response.rejected_spans,
                message: response.message,
            },
            Err(ExportError::Unreachable(why)) => Self::None(OpenCause::Unreachable, why),
            Err(error @ ExportError::TimedOut(_)) => {
                Self::None(OpenCause::TimedOut, error.to_string())
            }
            Err(error) => Self::of_refusal(error),
        }
    }

    pub(crate) fn outcome(&self) -> RpcOutcome {
        match self {
            Self::Acknowledged => RpcOutcome::Acknowledged,
            Self::Partial { .. } => RpcOutcome::Partial,
            Self::Invalid(_) => RpcOutcome::Invalid,
            Self::BackPressure(_) => RpcOutcome::BackPressure,
            Self::Refused(_) => RpcOutcome::Refused,
            Self::None(OpenCause::TimedOut, _) => RpcOutcome::TimedOut,
            Self::None(_, _) => RpcOutcome::Unreachable,
        }
    }
}

impl Answer {
    fn of_refusal(error: ExportError) -> Self {
        let text = error.to_string();
        let ExportError::Refused {
            code,
            message,
            retry_after,
            ..
        } = error
        else {
            return Self::Refused(text);
        };
        let (reason, detail) = match RefusalReason::in_message(&message) {
            Some((reason, detail)) => (Some(reason), detail),
            None => (None, message.as_str()),
        };
        match (reason, code.as_str()) {
            (
                Some(
                    reason @ (RefusalReason::LogFull
                    | RefusalReason::MemoryPressure
                    | RefusalReason::ShardBusy),
                ),
                _,
            ) => Self::BackPressure(Refusal {
                reason,
                retry_after: retry_after.or(reason.retry_after()),
                detail: detail.to_owned(),
            }),
            // The worker waited for us.
            (Some(RefusalReason::SlowClient), _) => Self::None(OpenCause::TimedOut, text),
            // The message did it, and would do it to every worker in turn.
            (Some(RefusalReason::Panicked), _) => Self::Invalid(text),
            // OUT_OF_RANGE is how tonic says "too long", whatever OTLP calls it.
            (_, "INVALID_ARGUMENT" | "OUT_OF_RANGE") => Self::Invalid(text),
            (_, "RESOURCE_EXHAUSTED") => match retry_after {
                None => Self::Invalid(text),
                Some(_) => Self::BackPressure(Refusal {
                    reason: RefusalReason::MemoryPressure,
                    detail: detail.to_owned(),
                    retry_after,
                }),
            },
            // The server ended the call because our `grpc-timeout` was over (tonic says CANCELLED),
            // and was quicker than our own timer.
            (_, "CANCELLED" | "DEADLINE_EXCEEDED") => Self::None(OpenCause::TimedOut, text),
            _ => Self::Refused(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refused(code: &str, message: &str, retry_after: Option<Duration>) -> Answer {
        Answer::of(Err(ExportError::Refused {
            code: code.into(),
            message: message.into(),
            retryable: retry_after.is_some(),
            retry_after,
        }))
    }

    #[test]
    fn a_refusal_means_what_the_table_says() {
        let later = Some(Duration::from_secs(7));
        let rows = [
            (
                "UNAVAILABLE",
                "log_full: at its bound",
                later,
                RpcOutcome::BackPressure,
            ),
            (
                "UNAVAILABLE",
                "shard_busy: queue",
                None,
                RpcOutcome::BackPressure,
            ),
            (
                "UNAVAILABLE",
                "memory_pressure: x",
                later,
                RpcOutcome::BackPressure,
            ),
            (
                "RESOURCE_EXHAUSTED",
                "slow down",
                later,
                RpcOutcome::BackPressure,
            ),
            (
                "UNAVAILABLE",
                "wrong_member: I am b",
                later,
                RpcOutcome::Refused,
            ),
            (
                "UNAVAILABLE",
                "log_failed: disk",
                later,
                RpcOutcome::Refused,
            ),
            (
                "UNAVAILABLE",
                "unready: draining",
                later,
                RpcOutcome::Refused,
            ),
            (
                "UNAVAILABLE",
                "somebody else's text",
                None,
                RpcOutcome::Refused,
            ),
            // Only a whole label counts, and only at the start.
            ("UNAVAILABLE", "log_fuller: x", later, RpcOutcome::Refused),
            (
                "UNAVAILABLE",
                "proxy: log_full: x",
                later,
                RpcOutcome::Refused,
            ),
            ("UNAVAILABLE", "log_full", later, RpcOutcome::Refused),
            (
                "UNIMPLEMENTED",
                "no such service",
                None,
                RpcOutcome::Refused,
            ),
            (
                "INTERNAL",
                "HTTP 400 without a gRPC status",
                None,
                RpcOutcome::Refused,
            ),
            ("INTERNAL", "panicked: index", None, RpcOutcome::Invalid),
            (
                "INVALID_ARGUMENT",
                "invalid_request: x",
                None,
                RpcOutcome::Invalid,
            ),
            (
                "OUT_OF_RANGE",
                "message length too large",
                None,
                RpcOutcome::Invalid,
            ),
            (
                "RESOURCE_EXHAUSTED",
                "too_large: x",
                None,
                RpcOutcome::Invalid,
            ),
            ("UNAVAILABLE", "slow_client: x", later, RpcOutcome::TimedOut),
            ("CANCELLED", "Timeout expired", None, RpcOutcome::TimedOut),
        ];
        for (code, message, retry_after, expected) in rows {
            let answer = refused(code, message, retry_after);
            assert_eq!(answer.outcome(), expected, "{code} {message:?}");
        }
    }

    #[test]
    fn back_pressure_carries_the_workers_time_or_the_tables() {
        let Answer::BackPressure(refusal) =
            refused("UNAVAILABLE", "log_full: x", Some(Duration::from_secs(7)))
        else {
            panic!("not back-pressure");
        };
        assert_eq!(refusal.reason, RefusalReason::LogFull);
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
        let Answer::BackPressure(refusal) = refused("UNAVAILABLE", "log_full: x", None) else {
            panic!("not back-pressure");
        };
        assert_eq!(refusal.retry_after, RefusalReason::LogFull.retry_after());
    }
}
