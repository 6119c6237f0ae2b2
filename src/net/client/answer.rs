//! What a gRPC receiver's answer means: status, details, partial success.

use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic_types::pb;

use super::retry_after::retry_after;
use super::{ExportError, ExportResponse, shortened, with_causes};
use crate::model::Fingerprint;
use crate::net::metadata;

/// Senders of binary metadata may or may not pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Length of a message's prefix: a flag and four bytes of length.
const PREFIX_BYTES: usize = 5;

/// gRPC's status codes by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Reads the answer to an export. Of one that is longer than `bytes_max` only the status counts:
/// behind it stands whether the message was taken, and to guess wrong would be to send it a second time.
pub(super) async fn read(
    response: Response<Incoming>,
    bytes_max: usize,
) -> Result<ExportResponse, ExportError> {
    let answer = read_message(response, bytes_max).await?;
    let mut accepted = match answer.bytes {
        Some(message) => partial_success(&message),
        None => ExportResponse {
            message: format!("the receiver's answer is longer than {bytes_max} bytes"),
            ..ExportResponse::default()
        },
    };
    accepted.view = answer.view;
    Ok(accepted)
}

/// The message of an answer, for any method.
pub(super) struct Answered {
    /// `None`: longer than what is read.
    pub(super) bytes: Option<Bytes>,
    pub(super) view: Option<Fingerprint>,
}

/// Reads the answer and holds up to `bytes_max` bytes of its body. Of a longer one the rest is let
/// pass by, as long as the call has time, for the status behind it.
pub(super) async fn read_message(
    response: Response<Incoming>,
    bytes_max: usize,
) -> Result<Answered, ExportError> {
    let (parts, mut body) = response.into_parts();
    let view = view_of(&parts.headers);
    // An answer without a message has its status in the headers ("trailers-only").
    if let Some(status) = status_of(&parts.headers) {
        return status.map(|()| Answered {
            bytes: Some(Bytes::new()),
            view,
        });
    }
    if parts.status != StatusCode::OK {
        return Err(not_grpc(parts.status, &parts.headers));
    }
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    if !content_type.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")) {
        return Err(refused(
            "UNKNOWN",
            format!("the answer has content-type {content_type:?}; is this a gRPC receiver?"),
        ));
    }

    let mut message = Vec::new();
    let mut is_too_long = false;
    let trailers = loop {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => {
                    is_too_long |= message.len() + data.remaining() > bytes_max + PREFIX_BYTES;
                    if is_too_long {
                        message = Vec::new();
                        continue;
                    }
                    while data.has_remaining() {
                        message.extend_from_slice(data.chunk());
                        data.advance(data.chunk().len());
                    }
                }
                Err(frame) => break frame.into_trailers().unwrap_or_default(),
            },
            Some(Err(e)) => return Err(ExportError::Unreachable(with_causes(&e))),
            None => break HeaderMap::new(),
        }
    };
    let received = message.len();
    match status_of(&trailers) {
        None => Err(ExportError::Unreachable(
            "the answer ended without a grpc-status".to_owned(),
        )),
        Some(Err(e)) => Err(e),
        Some(Ok(())) => Ok(Answered {
            bytes: (!is_too_long).then(|| Bytes::from(message).slice(PREFIX_BYTES.min(received)..)),
            view: view.or_else(|| view_of(&trailers)),
        }),
    }
}

/// Reads an `ExportTraceServiceResponse`. The receiver said OK before we read it, so one that
/// cannot be read is still an acknowledgement.
pub(super) fn partial_success(message: &[u8]) -> ExportResponse {
    let decoded = match ExportTraceServiceResponse::decode(message) {
        Ok(decoded) => decoded,
        Err(e) => {
            return ExportResponse {
                message: format!("the receiver's answer could not be read: {e}"),
                ..ExportResponse::default()
            };
        }
    };
    let partial = decoded.partial_success.unwrap_or_default();
    ExportResponse {
        rejected_spans: u64::try_from(partial.rejected_spans).unwrap_or(0),
        message: shortened(&partial.error_message),
        view: None,
    }
}

pub(super) fn view_of(headers: &HeaderMap) -> Option<Fingerprint> {
    Fingerprint::from_hex(headers.get(metadata::VIEW)?.to_str().ok()?)
}

/// `None` if there is no `grpc-status` here.
fn status_of(headers: &HeaderMap) -> Option<Result<(), ExportError>> {
    let number = headers.get("grpc-status")?;
    let number = number.to_str().ok().and_then(|text| text.parse().ok());
    if number == Some(0) {
        return Some(Ok(()));
    }
    let code = number
        .and_then(|number: usize| CODES.get(number).copied())
        .unwrap_or("UNKNOWN");
    let message = headers
        .get("grpc-message")
        .map(|value| percent_decoded(value.as_bytes()))
        .unwrap_or_default();
    let retry_info = retry_info(headers);
    Some(Err(ExportError::Refused {
        code: code.to_owned(),
        message: shortened(&message),
        retryable: is_retryable(code, retry_info.is_some()),
        retry_after: retry_info.flatten(),
    }))
}

/// OTLP 1.11, "Failures" of OTLP/gRPC.
fn is_retryable(code: &str, has_retry_info: bool) -> bool {
    match code {
        "CANCELLED" | "DEADLINE_EXCEEDED" | "ABORTED" | "OUT_OF_RANGE" | "UNAVAILABLE"
        | "DATA_LOSS" => true,
        "RESOURCE_EXHAUSTED" => has_retry_info,
        _ => false,
    }
}

/// An answer from something between us and the receiver, by gRPC's table for HTTP statuses.
fn not_grpc(status: StatusCode, headers: &HeaderMap) -> ExportError {
    let code = match status.as_u16() {
        400 => "INTERNAL",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "UNIMPLEMENTED",
        429 | 502 | 503 | 504 => "UNAVAILABLE",
        _ => "UNKNOWN",
    };
    ExportError::Refused {
        code: code.to_owned(),
        message: format!("HTTP {status} without a gRPC status"),
        retryable: is_retryable(code, false),
        retry_after: retry_after(headers),
    }
}

fn refused(code: &str, message: String) -> ExportError {
    ExportError::Refused {
        code: code.to_owned(),
        message: shortened(&message),
        retryable: is_retryable(code, false),
        retry_after: None,
    }
}

/// `Some(None)`: there is a RetryInfo, without a delay.
fn retry_info(headers: &HeaderMap) -> Option<Option<Duration>> {
    let encoded = headers.get("grpc-status-details-bin")?;
    let bytes = BASE64.decode(encoded.as_bytes()).ok()?;
    let status = pb::Status::decode(bytes.as_slice()).ok()?;
    retry_info_of(&status)
}

pub(super) fn retry_info_of(status: &pb::Status) -> Option<Option<Duration>> {
    let detail = status
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let info = pb::RetryInfo::decode(detail.value.as_slice()).ok()?;
    Some(info.retry_delay.map(|delay| {
        Duration::from_secs(u64::try_from(delay.seconds).unwrap_or(0)).saturating_add(
            Duration::from_nanos(u64::try_from(delay.nanos).unwrap_or(0)),
        )
    }))
}

/// `grpc-message` is percent-encoded UTF-8; what is not stays as it is.
fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.get(..2).and_then(hex_byte))
            .flatten();
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| (*digits.get(at)? as char).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_percent_decoded_and_broken_escapes_stay() {
        assert_eq!(percent_decoded(b"100%25 of caf%C3%A9"), "100% of caf\u{e9}");
        assert_eq!(percent_decoded(b"%"), "%");
        assert_eq!(percent_decoded(b"%4"), "%4");
        assert_eq!(percent_decoded(b"%zz%41"), "%zzA");
    }

    #[test]
    fn codes_are_retried_as_otlp_says() {
        let retryable: Vec<&str> = CODES
            .into_iter()
            .filter(|code| is_retryable(code, false))
            .collect();
        assert_eq!(
            retryable,
            [
                "CANCELLED",
                "DEADLINE_EXCEEDED",
                "ABORTED",
                "OUT_OF_RANGE",
                "UNAVAILABLE",
                "DATA_LOSS"
            ]
        );
        assert!(is_retryable("RESOURCE_EXHAUSTED", true));
    }

    #[test]
    fn statuses_of_proxies_have_grpc_codes() {
        for (status, expect, retryable) in [
            (400, "INTERNAL", false),
            (401, "UNAUTHENTICATED", false),
            (404, "UNIMPLEMENTED", false),
            (429, "UNAVAILABLE", true),
            (503, "UNAVAILABLE", true),
            (500, "UNKNOWN", false),
        ] {
            let error = not_grpc(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
            assert!(
                matches!(&error, ExportError::Refused { code, .. } if code == expect),
                "{status}: {error}"
            );
            assert_eq!(error.is_retryable(), retryable, "{status}");
        }
    }
}
