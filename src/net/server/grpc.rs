//! OTLP over gRPC: which method is asked for, and the one we serve. How a unary call is read.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use hyper::body::Incoming;
use tokio::sync::watch;

use super::body::{self, BodyError, Frames};
use super::format::Format;
use super::held::{self, Message};
use super::inflate::{ENCODINGS, Encoding};
use super::listener::Shared;
use super::metrics::Outcome;
use super::reply::{self, Reply, ReplyBody};
use super::{Ingest, IngestRequest};
use crate::net::admission::Permit;
use crate::net::metadata::RequestMetadata;
use crate::net::status::{Refusal, RefusalReason};

pub(super) const TRACE_SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const COLLECTOR: &str = "/opentelemetry.proto.collector.";
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Whether a content-type is gRPC's: `application/grpc`, `application/grpc+proto`, or with `;…`.
pub(super) fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    let text = content_type.and_then(|value| value.to_str().ok());
    let rest = text.and_then(|text| text.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| {
        let kind = rest.split(';').next().unwrap_or_default().trim();
        kind.is_empty() || kind == "+proto"
    })
}

pub(super) async fn handle<I: Ingest>(
    shared: &Shared<I>,
    request: Request<Incoming>,
    closing: watch::Receiver<bool>,
) -> Reply {
    if !is_grpc(request.headers().get(CONTENT_TYPE)) {
        // Whoever sent this does not speak gRPC, so the answer is plain HTTP.
        let refusal = Refusal::new(
            RefusalReason::ContentType,
            "this port speaks OTLP over gRPC (content-type application/grpc); OTLP over HTTP is on \
             port 4318, or set OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
        );
        return reply::http_refused(&refusal, Format::of(request.headers()));
    }
    match request.uri().path() {
        EXPORT => export(shared, request).await,
        path if path.starts_with(HEALTH) => Reply {
            response: shared
                .health
                .call(request)
                .await
                .map(|body| ReplyBody::health(body, closing)),
            outcome: None,
        },
        path => reply::grpc_refused(&unknown(path)),
    }
}

fn unknown(path: &str) -> Refusal {
    let detail = if path.starts_with(COLLECTOR) && !path.contains(".trace.") {
        "only traces are taken here; set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT instead of \
         OTEL_EXPORTER_OTLP_ENDPOINT, and send metrics, logs and profiles elsewhere"
            .to_owned()
    } else {
        format!("no method {path}; traces go to {EXPORT}")
    };
    Refusal::new(RefusalReason::Unimplemented, detail)
}

async fn export<I: Ingest>(shared: &Shared<I>, request: Request<Incoming>) -> Reply {
    match read_and_ingest(shared, request).await {
        Ok(accepted) => reply::grpc_accepted(accepted),
        Err(error) => refused(error),
    }
}

pub(super) fn refused(error: BodyError) -> Reply {
    match error {
        BodyError::Refused(refusal) => {
            let mut reply = reply::grpc_refused(&refusal);
            if refusal.reason == RefusalReason::Encoding {
                let known = HeaderValue::from_static("identity,gzip,zstd");
                let headers = reply.response.headers_mut();
                headers.insert("grpc-accept-encoding", known);
            }
            reply
        }
        BodyError::Disconnected(detail) => Reply {
            outcome: Some(Outcome::Disconnected),
            ..reply::grpc_refused(&Refusal::new(RefusalReason::InvalidRequest, detail))
        },
    }
}

async fn read_and_ingest<I: Ingest>(
    shared: &Shared<I>,
    request: Request<Incoming>,
) -> Result<super::Accepted, BodyError> {
    let (message, metadata, _admitted) = read(shared, request).await?;
    let request = IngestRequest {
        message: message.bytes,
        permit: message.permit,
        metadata,
    };
    Ok(Arc::clone(&shared.ingest).ingest(request).await?)
}

/// Reads the one message of a unary call, with what the call costs beside it.
pub(super) async fn read<S>(
    shared: &Shared<S>,
    request: Request<Incoming>,
) -> Result<(Message, RequestMetadata, Permit), BodyError> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        let detail = format!("gRPC calls are POST, not {}", head.method);
        return Err(Refusal::new(RefusalReason::Method, detail).into());
    }
    let encoding = match head.headers.get("grpc-encoding") {
        None => Encoding::Identity,
        Some(value) => value
            .to_str()
            .ok()
            .and_then(Encoding::parse)
            .ok_or_else(|| {
                let detail = format!("grpc-encoding {value:?} is not known; use {ENCODINGS}");
                Refusal::new(RefusalReason::Encoding, detail)
            })?,
    };
    let metadata = RequestMetadata::read_from(&head.headers)
        .map_err(|detail| Refusal::new(RefusalReason::InvalidRequest, detail))?;
    let admitted = held::admit(&shared.budget)?;
    let mut frames = Frames::new(body, &shared.limits);
    let message = body::read_grpc(&mut frames, encoding, &shared.budget).await;
    shared.metrics.wire_bytes.inc_by(frames.wire_bytes());
    let message = message?;
    shared
        .metrics
        .message_bytes
        .inc_by(message.bytes.len() as u64);
    Ok((message, metadata, admitted))
}
