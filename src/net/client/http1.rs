//! An OTLP/HTTP client for one URL: POST of protobuf (or JSON, for tools) over HTTP/1.1, connections
//! kept between calls.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic_types::pb;

use super::answer::{partial_success, retry_info_of, view_of};
use super::body::Rope;
use super::compress::Encoded;
use super::connect::{Stream, Target, connect};
use super::retry_after::retry_after;
use super::{ClientConfig, ExportError, ExportResponse, json_answer, shortened, with_causes};

/// How long a connection is kept without a call; load balancers commonly drop theirs after 60 s.
const IDLE_FOR: Duration = Duration::from_secs(50);

/// Kept idle connections; an exporter has a few calls in flight at most.
const IDLE_CONNECTIONS_MAX: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct HttpClient {
    client: legacy::Client<Connector, Full<Rope>>,
    uri: Uri,
    content_type: &'static str,
    config: ClientConfig,
}

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

impl HttpClient {
    /// Connects at the first call, not now.
    pub fn new(target: Target, path: PathAndQuery, config: ClientConfig) -> Self {
        let scheme = if target.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = scheme.parse().ok();
        parts.authority = Some(target.authority.clone());
        parts.path_and_query = Some(path);
        let connector = Connector {
            target: Arc::new(target),
            timeout: config.connect_timeout,
        };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Self {
            client,
            // All three parts are there, which is all that can be wrong with them.
            uri: Uri::from_parts(parts).unwrap_or_default(),
            content_type: PROTOBUF,
            config,
        }
    }

    /// A client whose messages are given in JSON.
    pub fn of_json(target: Target, path: PathAndQuery, config: ClientConfig) -> Self {
        Self {
            content_type: JSON,
            ..Self::new(target, path, config)
        }
    }

    /// Posts one message, given in pieces that are concatenated on the wire without a copy.
    /// `timeout` covers connecting, sending and the answer.
    pub async fn export(
        &self,
        pieces: Vec<Bytes>,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError> {
        let call = async {
            let message = Encoded::new(pieces, self.config.compression).await?;
            self.call(&message, headers).await
        };
        tokio::time::timeout(timeout, call)
            .await
            .unwrap_or(Err(ExportError::TimedOut(timeout)))
    }

    /// Like [`HttpClient::export`], for a message that is encoded once and maybe sent again.
    pub async fn export_encoded(
        &self,
        message: &Encoded,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError> {
        tokio::time::timeout(timeout, self.call(message, headers))
            .await
            .unwrap_or(Err(ExportError::TimedOut(timeout)))
    }

    async fn call(
        &self,
        message: &Encoded,
        headers: &HeaderMap,
    ) -> Result<ExportResponse, ExportError> {
        let body = Full::new(Rope::new(message.pieces.iter().cloned()));
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let to = request.headers_mut();
        to.clone_from(headers);
        to.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        to.insert(
            header::USER_AGENT,
            HeaderValue::from_static(super::USER_AGENT),
        );
        if let Some(encoding) = message.compression.encoding() {
            to.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        let response = self
            .client
            .request(request)
            .await
            .map_err(|e| ExportError::Unreachable(with_causes(&e)))?;
        read(response, self.config.response_bytes_max()).await
    }
}

async fn read(
    response: Response<Incoming>,
    bytes_max: usize,
) -> Result<ExportResponse, ExportError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, bytes_max).collect().await;
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let is = |name: &str| content_type.is_some_and(|v| v.as_bytes().starts_with(name.as_bytes()));
    let (is_protobuf, is_json) = (is(PROTOBUF), is(JSON));

    if parts.status.is_success() {
        // The status line acknowledged the message; only what it says beside that can be lost.
        let mut accepted = match body {
            Ok(body) if is_protobuf => partial_success(&body.to_bytes()),
            Ok(body) if is_json => json_answer::partial_success(&body.to_bytes()),
            Ok(_) => ExportResponse::default(),
            Err(e) => ExportResponse {
                message: format!("the receiver's answer could not be read: {e}"),
                ..ExportResponse::default()
            },
        };
        accepted.view = view_of(&parts.headers);
        return Ok(accepted);
    }

    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let status = if is_json {
        json_answer::status(&body)
    } else {
        is_protobuf
            .then(|| pb::Status::decode(body.as_ref()).ok())
            .flatten()
    };
    let retry_info = status.as_ref().and_then(retry_info_of).flatten();
    let message = match (&status, parts.headers.get(header::LOCATION)) {
        (Some(status), _) => shortened(&status.message),
        (None, Some(location)) if parts.status.is_redirection() => {
            format!("redirected to {location:?}; give that URL")
        }
        _ => shortened(&String::from_utf8_lossy(&body)),
    };
    Err(ExportError::Refused {
        code: format!("HTTP {}", parts.status.as_u16()),
        message,
        retryable: is_retryable(parts.status),
        retry_after: retry_after(&parts.headers).or(retry_info),
    })
}

/// OTLP 1.11, "Failures" of OTLP/HTTP.
fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// Goes to the target, whatever the URL's host is called.
#[derive(Debug, Clone)]
struct Connector {
    target: Arc<Target>,
    timeout: Duration,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Pooled>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Pooled>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { target, timeout } = self.clone();
        Box::pin(async move {
            let stream = connect(&target, timeout).await?;
            Ok(TokioIo::new(Pooled(stream)))
        })
    }
}

/// What hyper-util wants to know of a connection: nothing, ours are plain HTTP/1.1.
struct Pooled(Stream);

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}
