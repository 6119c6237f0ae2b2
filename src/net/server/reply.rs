//! Answers on the wire: statuses, headers, trailers. The bodies of OTLP/HTTP are `format`'s.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;

use super::Accepted;
use super::format::Format;
use super::metrics::Outcome;
use crate::net::status::Refusal;

pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Of a text for the client. Three bytes each when percent-encoded, twice over with the details:
/// this keeps a refusal under the 8 KiB of headers that every client takes.
const DETAIL_BYTES_MAX: usize = 1000;

/// An answer and what to count for it.
pub struct Reply {
    pub(super) response: Response<ReplyBody>,
    /// `None` for what is not an OTLP request.
    pub(super) outcome: Option<Outcome>,
}

/// Body of an answer.
pub(super) enum ReplyBody {
    Whole {
        data: Option<Bytes>,
        trailers: Option<HeaderMap>,
    },
    /// grpc.health.v1. A watch has no end of its own, so the connection's end is its end.
    Health {
        body: tonic::body::Body,
        closing: Pin<Box<dyn Future<Output = ()> + Send>>,
        ended: bool,
    },
}

impl ReplyBody {
    pub(super) fn health(body: tonic::body::Body, mut closing: watch::Receiver<bool>) -> Self {
        Self::Health {
            body,
            closing: Box::pin(async move {
                // An error means that the connection is gone, which is as good.
                drop(closing.wait_for(|closing| *closing).await);
            }),
            ended: false,
        }
    }

    fn of(data: Bytes) -> Self {
        Self::Whole {
            data: (!data.is_empty()).then_some(data),
            trailers: None,
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.get_mut() {
            Self::Whole { data, trailers } => {
                let frame = data.take().map(Frame::data);
                let frame = frame.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Self::Health { ended: true, .. } => Poll::Ready(None),
            Self::Health {
                body,
                closing,
                ended,
            } => {
                if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
                    return Poll::Ready(frame);
                }
                ready!(closing.as_mut().poll(cx));
                *ended = true;
                let status = tonic::Status::unavailable("the server is closing the connection");
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { data, trailers } => data.is_none() && trailers.is_none(),
            Self::Health { body, ended, .. } => *ended || body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // With trailers no content-length is to be derived from it.
            Self::Whole {
                data,
                trailers: None,
            } => SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

fn outcome_of(accepted: &Accepted) -> Outcome {
    if accepted.rejected_spans > 0 {
        Outcome::Partial
    } else {
        Outcome::Accepted // maybe with a warning
    }
}

pub(super) fn grpc_accepted(accepted: Accepted) -> Reply {
    let outcome = outcome_of(&accepted);
    grpc_message(&[Format::Protobuf.accepted(accepted)], outcome)
}

/// OK, and a message in pieces.
pub(super) fn grpc_message(pieces: &[Bytes], outcome: Outcome) -> Reply {
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let mut data = BytesMut::with_capacity(5 + length);
    data.put_u8(0);
    data.put_u32(u32::try_from(length).unwrap_or(u32::MAX)); // far below
    for piece in pieces {
        data.put_slice(piece);
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    let mut response = Response::new(ReplyBody::Whole {
        data: Some(data.freeze()),
        trailers: Some(trailers),
    });
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    Reply {
        response,
        outcome: Some(outcome),
    }
}

pub(super) fn http_accepted(accepted: Accepted, format: Format) -> Reply {
    let outcome = outcome_of(&accepted);
    let mut response = Response::new(ReplyBody::of(format.accepted(accepted)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, format.content_type());
    Reply {
        response,
        outcome: Some(outcome),
    }
}

/// Trailers-only: the status is in the headers, and there is no body.
pub(super) fn grpc_refused(refusal: &Refusal) -> Reply {
    let mut response = Response::new(ReplyBody::of(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(
        GRPC_STATUS,
        HeaderValue::from(i32::from(refusal.reason.grpc_code())),
    );
    // The label first: routers read it, because they treat a worker without room differently from
    // one that does not serve.
    let text = format!("{}: {}", refusal.reason.label(), refusal.detail);
    if let Ok(text) = HeaderValue::from_str(&percent_encode(bounded(&text))) {
        headers.insert(GRPC_MESSAGE, text);
    }
    if refusal.retry_after.is_some()
        && let Ok(details) =
            HeaderValue::from_str(&STANDARD_NO_PAD.encode(status(refusal, Format::Protobuf)))
    {
        headers.insert(GRPC_DETAILS, details);
    }
    Reply {
        response,
        outcome: Some(Outcome::Refused(refusal.reason)),
    }
}

/// OTLP asks for a `google.rpc.Status` in every 4xx and 5xx.
pub(super) fn http_refused(refusal: &Refusal, format: Format) -> Reply {
    let mut response = Response::new(ReplyBody::of(status(refusal, format)));
    *response.status_mut() = refusal.reason.http_status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, format.content_type());
    if let Some(wait) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
    }
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let post = HeaderValue::from_static("POST");
        response.headers_mut().insert(http::header::ALLOW, post);
    }
    Reply {
        response,
        outcome: Some(Outcome::Refused(refusal.reason)),
    }
}

/// Retry-After has no fractions, and 0 would ask for a busy loop.
fn whole_seconds(wait: Duration) -> u64 {
    let up = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(up).max(1)
}

fn status(refusal: &Refusal, format: Format) -> Bytes {
    format.status(refusal, bounded(&refusal.detail))
}

fn bounded(text: &str) -> &str {
    let end = text.floor_char_boundary(DETAIL_BYTES_MAX);
    &text[..end]
}

/// What gRPC asks of grpc-message: everything but printable ASCII, and '%', as %XX.
fn percent_encode(text: &str) -> String {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::status::RefusalReason;

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (5000, 5)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }

    #[test]
    fn texts_are_bounded_between_characters_and_survive_encoding() {
        assert_eq!(percent_encode("50% naïve\n"), "50%25 na%C3%AFve%0A");
        let long = "ü".repeat(5000);
        assert_eq!(bounded(&long).len(), DETAIL_BYTES_MAX);
        let refusal = Refusal::new(RefusalReason::LaneFull, long);
        let reply = grpc_refused(&refusal).response;
        let bytes: usize = reply
            .headers()
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum();
        assert!(bytes < 8 << 10, "{bytes}");
    }
}
