//! The two formats of OTLP/HTTP: which one a request has, and answers in it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use serde_json::json;
use tonic_types::{ErrorDetails, StatusExt as _, pb};

use super::Accepted;
use crate::net::status::Refusal;

/// An answer has the format of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Protobuf,
    Json,
}

impl Format {
    /// `None` for a content-type that is neither, and for none at all.
    pub(super) fn named(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let kind = value.split(';').next().unwrap_or_default().trim();
        [Self::Protobuf, Self::Json]
            .into_iter()
            .find(|format| kind.eq_ignore_ascii_case(format.name()))
    }

    /// Of the answer, whatever was asked.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self::named(headers).unwrap_or(Self::Protobuf)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }

    /// ExportTraceServiceResponse; in protobuf empty when there is nothing to say.
    pub(super) fn accepted(self, accepted: Accepted) -> Bytes {
        let Accepted {
            rejected_spans,
            message,
        } = accepted;
        let says_something = rejected_spans > 0 || !message.is_empty();
        match self {
            Self::Protobuf if !says_something => Bytes::new(),
            Self::Json if !says_something => Bytes::from_static(b"{}"),
            Self::Protobuf => {
                let response = ExportTraceServiceResponse {
                    partial_success: Some(ExportTracePartialSuccess {
                        rejected_spans: i64::try_from(rejected_spans).unwrap_or(i64::MAX),
                        error_message: message,
                    }),
                };
                response.encode_to_vec().into()
            }
            // ProtoJSON: 64-bit integers are strings, because JavaScript has none.
            Self::Json => json!({
                "partialSuccess": {
                    "rejectedSpans": rejected_spans.to_string(),
                    "errorMessage": message,
                },
            })
            .to_string()
            .into(),
        }
    }

    /// `google.rpc.Status`, with RetryInfo if the refusal is retryable. `text`: what the client is
    /// told.
    pub(super) fn status(self, refusal: &Refusal, text: &str) -> Bytes {
        let code = refusal.reason.grpc_code();
        match (self, refusal.retry_after) {
            // tonic-types packs the details; they are the encoded google.rpc.Status.
            (Self::Protobuf, Some(wait)) => {
                let details = ErrorDetails::with_retry_info(Some(wait));
                let status = tonic::Status::with_error_details(code, text, details);
                Bytes::copy_from_slice(status.details())
            }
            (Self::Protobuf, None) => {
                let status = pb::Status {
                    code: code.into(),
                    message: text.to_owned(),
                    details: Vec::new(),
                };
                status.encode_to_vec().into()
            }
            (Self::Json, wait) => {
                let mut status = json!({ "code": i32::from(code), "message": text });
                if let Some(wait) = wait {
                    status["details"] = json!([{
                        "@type": "type.googleapis.com/google.rpc.RetryInfo",
                        "retryDelay": json_duration(wait),
                    }]);
                }
                status.to_string().into()
            }
        }
    }
}

/// ProtoJSON of a Duration: seconds with three decimals, or none.
fn json_duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        millis => format!("{}.{millis:03}s", duration.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_may_have_parameters_and_any_case() {
        let named = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            Format::named(&headers)
        };
        assert_eq!(named("application/json; charset=utf-8"), Some(Format::Json));
        assert_eq!(named("Application/JSON"), Some(Format::Json));
        assert_eq!(named("application/x-protobuf"), Some(Format::Protobuf));
        assert_eq!(named("application/jsonl"), None);
        assert_eq!(Format::of(&HeaderMap::new()), Format::Protobuf);
    }

    #[test]
    fn durations_are_as_protojson_has_them() {
        for (millis, text) in [
            (0, "0s"),
            (1000, "1s"),
            (100, "0.100s"),
            (62_005, "62.005s"),
        ] {
            assert_eq!(json_duration(Duration::from_millis(millis)), text);
        }
    }
}
