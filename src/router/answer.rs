//! What a worker's answer means for the parts it was about, and for the lane.
//!
//! | answer                                              | several parts  | one part              | circuit |
//! |-----------------------------------------------------|----------------|-----------------------|---------|
//! | OK                                                  | acknowledged   | acknowledged          |         |
//! | OK with rejected spans (a worker of another version)| part by part   | partial success       |         |
//! | about the message: INVALID_ARGUMENT, OUT_OF_RANGE, RESOURCE_EXHAUSTED for good | part by part | client: invalid | |
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
        if let Some(reason) = back_pressure(&message) {
            return Self::BackPressure(Refusal {
                reason,
                detail: message,
                retry_after: retry_after.or(reason.retry_after()),
            });
        }
        match code.as_str() {
            // OUT_OF_RANGE is how tonic says "too long", whatever OTLP calls it. INTERNAL is a
            // worker's handler that panicked on the message: it must not meet every worker in turn.
            "INVALID_ARGUMENT" | "OUT_OF_RANGE" | "INTERNAL" => Self::Invalid(text),
            "RESOURCE_EXHAUSTED" => match retry_after {
                None => Self::Invalid(text),
                Some(_) => Self::BackPressure(Refusal {
                    reason: RefusalReason::MemoryPressure,
                    detail: message,
                    retry_after,
                }),
            },
            // The call was ended, nobody refused it.
            "CANCELLED" | "DEADLINE_EXCEEDED" => Self::None(OpenCause::Unreachable, text),
            _ => Self::Refused(text),
        }
    }
}

/// The reason with which a Tailring worker begins the text of a refusal, if it is one that a client
/// should wait for.
fn back_pressure(message: &str) -> Option<RefusalReason> {
    [
        RefusalReason::LogFull,
        RefusalReason::MemoryPressure,
        RefusalReason::ShardBusy,
    ]
    .into_iter()
    .find(|reason| {
        message
            .strip_prefix(reason.label())
            .is_some_and(|rest| rest.starts_with(':'))
    })
}
