//! What an OTLP/HTTP receiver answers in JSON.

use serde_json::Value;
use tonic_types::pb;

use super::{ExportResponse, shortened};

/// Reads an `ExportTraceServiceResponse`. As with protobuf, one that cannot be read is still an
/// acknowledgement: the status line was one.
pub(super) fn partial_success(body: &[u8]) -> ExportResponse {
    let answer: Value = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(_) if body.is_empty() => return ExportResponse::default(),
        Err(error) => {
            return ExportResponse {
                message: format!("the receiver's answer could not be read: {error}"),
                ..ExportResponse::default()
            };
        }
    };
    let partial = &answer["partialSuccess"];
    let rejected = &partial["rejectedSpans"];
    // A string in ProtoJSON, a number in many implementations.
    let rejected = rejected
        .as_u64()
        .or_else(|| rejected.as_str()?.parse().ok());
    ExportResponse {
        rejected_spans: rejected.unwrap_or(0),
        message: shortened(partial["errorMessage"].as_str().unwrap_or_default()),
        view: None,
    }
}

/// The code and the text of a `google.rpc.Status`; when to come again is in a header.
pub(super) fn status(body: &[u8]) -> Option<pb::Status> {
    let status: Value = serde_json::from_slice(body).ok()?;
    let code = status["code"]
        .as_i64()
        .and_then(|it| i32::try_from(it).ok());
    Some(pb::Status {
        code: code.unwrap_or(2), // UNKNOWN
        message: status["message"].as_str()?.to_owned(),
        details: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_spans_are_read_as_a_number_and_as_a_string() {
        for (body, rejected, message) in [
            ("", 0, ""),
            ("{}", 0, ""),
            (r#"{"partialSuccess":null}"#, 0, ""),
            (
                r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"why"}}"#,
                3,
                "why",
            ),
            (r#"{"partialSuccess":{"rejectedSpans":3}}"#, 3, ""),
            (r#"{"partialSuccess":{"rejectedSpans":-1}}"#, 0, ""),
        ] {
            let answer = partial_success(body.as_bytes());
            assert_eq!(
                (answer.rejected_spans, &answer.message[..]),
                (rejected, message),
                "{body}"
            );
        }
        assert!(
            partial_success(b"<html>")
                .message
                .contains("could not be read")
        );
        assert_eq!(
            status(br#"{"code":14,"message":"later"}"#).unwrap().message,
            "later"
        );
        assert_eq!(status(b"no JSON"), None);
    }
}
