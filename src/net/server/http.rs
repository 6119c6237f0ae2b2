//! OTLP over HTTP: `POST /v1/traces`, protobuf or JSON.

use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap};
use http::{Method, Request, Version};
use hyper::body::Incoming;

use super::body::{self, BodyError, Frames};
use super::format::Format;
use super::grpc::is_grpc;
use super::held::{self, Message};
use super::inflate::{ENCODINGS, Encoding};
use super::listener::Shared;
use super::metrics::Outcome;
use super::reply::{self, Reply};
use super::{Accepted, Ingest, IngestRequest};
use crate::net::metadata::RequestMetadata;
use crate::net::status::{Refusal, RefusalReason};

const TRACES: &str = "/v1/traces";

pub(super) async fn handle<I: Ingest>(shared: &Shared<I>, request: Request<Incoming>) -> Reply {
    if is_grpc(request.headers().get(CONTENT_TYPE)) {
        return reply::grpc_refused(&Refusal::new(
            RefusalReason::Unimplemented,
            "this port speaks OTLP over HTTP; OTLP over gRPC is on port 4317, or set \
             OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        ));
    }
    let (head, body) = request.into_parts();
    let format = Format::of(&head.headers);
    let mut frames = Frames::new(body, &shared.limits);
    let admitted = held::admit(&shared.budget);
    let asked = match &admitted {
        Ok(_) => check(&head),
        Err(refusal) => Err(refusal.clone()),
    };
    let message = match asked {
        Ok(asked) => {
            let read = body::read_whole(&mut frames, asked.encoding, asked.length, &shared.budget);
            read.await.map(|message| (message, asked.metadata))
        }
        Err(refusal) => Err(BodyError::Refused(refusal)),
    };
    shared.metrics.wire_bytes.inc_by(frames.wire_bytes());
    match message {
        Ok((message, metadata)) => {
            drop(frames);
            let answer = ingest(shared, message, metadata, format).await;
            match answer {
                Ok(accepted) => reply::http_accepted(accepted, format),
                Err(refusal) => reply::http_refused(&refusal, format),
            }
        }
        Err(BodyError::Refused(refusal)) => {
            // HTTP/2 resets one stream; over HTTP/1 a client that writes everything before it reads
            // would only see its connection break, and repeat what can never be accepted.
            let waits = head.headers.contains_key(EXPECT) && !frames.was_polled();
            let is_slow = refusal.reason == RefusalReason::SlowClient;
            if head.version < Version::HTTP_2 && !waits && !is_slow {
                let bytes_max = (shared.limits.request_bytes_max as u64).saturating_mul(2);
                frames.drain(bytes_max).await;
            }
            reply::http_refused(&refusal, format)
        }
        Err(BodyError::Disconnected(detail)) => Reply {
            outcome: Some(Outcome::Disconnected),
            ..reply::http_refused(&Refusal::new(RefusalReason::InvalidRequest, detail), format)
        },
    }
}

async fn ingest<I: Ingest>(
    shared: &Shared<I>,
    message: Message,
    metadata: RequestMetadata,
    format: Format,
) -> Result<Accepted, Refusal> {
    shared
        .metrics
        .message_bytes
        .inc_by(message.bytes.len() as u64);
    let message = match format {
        Format::Protobuf => message,
        Format::Json => shared.transcoding.protobuf_of(message).await?,
    };
    let request = IngestRequest {
        message: message.bytes,
        permit: message.permit,
        metadata,
    };
    Arc::clone(&shared.ingest).ingest(request).await
}

/// What a request's headers ask for.
struct Asked {
    encoding: Encoding,
    length: Option<u64>,
    metadata: RequestMetadata,
}

fn check(head: &http::request::Parts) -> Result<Asked, Refusal> {
    let path = head.uri.path();
    if path != TRACES {
        return Err(unknown(path));
    }
    if head.method != Method::POST {
        let detail = format!("{TRACES} takes POST, not {}", head.method);
        return Err(Refusal::new(RefusalReason::Method, detail));
    }
    check_content_type(&head.headers)?;
    let length = head.headers.get(CONTENT_LENGTH);
    Ok(Asked {
        encoding: encoding(&head.headers)?,
        // hyper has refused what does not read.
        length: length.and_then(|value| value.to_str().ok()?.parse().ok()),
        metadata: RequestMetadata::read_from(&head.headers)
            .map_err(|detail| Refusal::new(RefusalReason::InvalidRequest, detail))?,
    })
}

fn unknown(path: &str) -> Refusal {
    let is_other_signal = path.starts_with("/v1/metrics")
        || path.starts_with("/v1/logs")
        || path.starts_with("/v1development/");
    let detail = if is_other_signal {
        format!(
            "{path}: only traces are taken here; set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT instead of \
             OTEL_EXPORTER_OTLP_ENDPOINT, and send metrics, logs and profiles elsewhere"
        )
    } else {
        format!(
            "no {path}; traces go to {TRACES} (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is taken as it \
             is, so it must end in {TRACES})"
        )
    };
    Refusal::new(RefusalReason::Unimplemented, detail)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    if Format::named(headers).is_some() {
        return Ok(());
    }
    let detail = match headers.get(CONTENT_TYPE) {
        None => "no content-type; send application/x-protobuf or application/json".to_owned(),
        Some(value) => format!(
            "content-type {value:?} is not known; send application/x-protobuf or application/json"
        ),
    };
    Err(Refusal::new(RefusalReason::ContentType, detail))
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let Some(value) = values.next() else {
        return Ok(Encoding::Identity);
    };
    let known = value.to_str().ok().and_then(Encoding::parse);
    match (known, values.next()) {
        (Some(encoding), None) => Ok(encoding),
        (None, _) => Err(Refusal::new(
            RefusalReason::Encoding,
            format!("content-encoding {value:?} is not known; use one of {ENCODINGS}"),
        )),
        (Some(_), Some(_)) => Err(Refusal::new(
            RefusalReason::Encoding,
            format!("several content-encodings; use one of {ENCODINGS}"),
        )),
    }
}
