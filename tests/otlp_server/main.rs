//! The OTLP servers over real sockets: what clients are told, and what it costs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows them in #[test] functions, not in the helpers beside them"
)]

mod connections;
mod handlers;
mod health;
mod memory;
mod over_grpc;
mod over_http;
mod over_json;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use tailring::model::{Fingerprint, Member};
use tailring::net::admission::Budget;
use tailring::net::metadata::{HOP, TO, VIEW};
use tailring::net::server::{
    Accepted, BindError, HealthHandle, Ingest, IngestRequest, Protocol, Server, ServerConfig,
    ServerMetrics, Stopped,
};
use tailring::net::status::{Refusal, RefusalReason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

const VIEW_VALUE: Fingerprint = Fingerprint(0x0123_4567_89ab_cdef);
const MIB: usize = 1 << 20;

// ---- A tier that records what it is given, and answers what it is told.

#[derive(Debug, Clone)]
enum Answer {
    Accept(Accepted),
    Refuse(Refusal),
    Panic,
    /// Accepts once `release` is notified.
    Wait,
}

struct Recorder {
    seen: Mutex<Vec<(Bytes, tailring::net::metadata::RequestMetadata, u64)>>,
    answer: Mutex<Answer>,
    release: Notify,
    /// Counts futures that are being held, and futures dropped before they were ready.
    waiting: Mutex<(usize, usize)>,
}

struct Waiting<'a>(&'a Recorder, bool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock().unwrap();
        waiting.0 -= 1;
        waiting.1 += usize::from(!self.1);
    }
}

impl Ingest for Recorder {
    async fn ingest(self: &Arc<Self>, request: IngestRequest) -> Result<Accepted, Refusal> {
        assert!(request.permit.bytes() >= request.message.len() as u64);
        self.seen.lock().unwrap().push((
            request.message.clone(),
            request.metadata.clone(),
            request.permit.bytes(),
        ));
        let answer = self.answer.lock().unwrap().clone();
        match answer {
            Answer::Accept(accepted) => Ok(accepted),
            Answer::Refuse(refusal) => Err(refusal),
            Answer::Panic => panic!("on purpose"),
            Answer::Wait => {
                self.waiting.lock().unwrap().0 += 1;
                let mut waiting = Waiting(self, false);
                self.release.notified().await;
                waiting.1 = true;
                Ok(Accepted::default())
            }
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        VIEW_VALUE
    }
}

impl Recorder {
    fn messages(&self) -> Vec<Bytes> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(message, ..)| message.clone()).collect()
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }
}

struct Running {
    address: std::net::SocketAddr,
    tier: Arc<Recorder>,
    budget: Arc<Budget>,
    health: HealthHandle,
    registry: prometheus_client::registry::Registry,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Stopped>,
}

async fn start(
    protocol: Protocol,
    budget_bytes: u64,
    change: impl FnOnce(&mut ServerConfig),
) -> Running {
    let mut config = ServerConfig::new(protocol, "127.0.0.1:0".parse().unwrap());
    change(&mut config);
    let tier = Arc::new(Recorder {
        seen: Mutex::default(),
        answer: Mutex::new(Answer::Accept(Accepted::default())),
        release: Notify::new(),
        waiting: Mutex::default(),
    });
    let budget = Budget::new(budget_bytes);
    let mut registry = prometheus_client::registry::Registry::with_prefix("tailring");
    let metrics = ServerMetrics::register(&mut registry);
    let server = Server::bind(config, Arc::clone(&tier), metrics, Arc::clone(&budget))
        .await
        .unwrap();
    let (stop, stopped) = oneshot::channel();
    Running {
        address: server.local_addr(),
        tier,
        budget,
        health: server.health(),
        registry,
        stop: Some(stop),
        served: tokio::spawn(server.serve(async move { drop(stopped.await) })),
    }
}

impl Running {
    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    async fn client(&self) -> TraceServiceClient<Channel> {
        TraceServiceClient::new(self.channel().await).max_decoding_message_size(64 * MIB)
    }

    fn metric(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {line} in\n{text}"))
            .parse()
            .unwrap()
    }

    async fn stop(&mut self) -> Stopped {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.served).await.unwrap()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let polled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), polled)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// A real message of about `bytes`.
fn request(bytes: usize) -> ExportTraceServiceRequest {
    let span = |i: usize| Span {
        trace_id: vec![7; 16],
        span_id: (i as u64 + 1).to_be_bytes().to_vec(),
        name: format!("tool.execute {i} {}", "x".repeat(i % 50)),
        ..Span::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: (0..bytes.div_ceil(90)).map(span).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

type Headers<'a> = &'a [(&'static str, &'a str)];

/// What a raw gRPC client got.
#[derive(Debug)]
struct GrpcReply {
    http_status: u16,
    headers: http::HeaderMap,
    /// Of the trailers, or of the headers of a trailers-only reply.
    status: Option<tonic::Status>,
    /// The body, with its prefix.
    data: Vec<u8>,
}

/// Sends `frames` as they are, one DATA frame each, with END_STREAM on the last.
async fn raw_grpc(
    running: &Running,
    path: &str,
    extra: Headers<'_>,
    frames: &[&[u8]],
) -> GrpcReply {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let mut request =
        http::Request::post(format!("http://{}{path}", running.address)).header("te", "trailers");
    if !extra.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    let (response, mut body) = sender
        .send_request(request.body(()).unwrap(), frames.is_empty())
        .unwrap();
    for (index, frame) in frames.iter().enumerate() {
        // An early answer ends the stream; what is left is not sent then.
        let last = index + 1 == frames.len();
        if body.send_data(Bytes::copy_from_slice(frame), last).is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        data.extend_from_slice(&chunk.unwrap());
    }
    let trailers = body.trailers().await.unwrap();
    let status = tonic::Status::from_header_map(trailers.as_ref().unwrap_or(&head.headers));
    driver.abort();
    GrpcReply {
        http_status: head.status.as_u16(),
        headers: head.headers,
        status,
        data,
    }
}

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = vec![flag];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

fn retry_delay(status: &tonic::Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    Http1,
    Http2,
    /// Without a content-length.
    Chunked,
}

#[derive(Debug)]
struct HttpReply {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl HttpReply {
    fn google_status(&self) -> tonic_types::Status {
        assert_eq!(
            self.headers.get("content-type").unwrap(),
            "application/x-protobuf"
        );
        tonic_types::Status::decode(&self.body[..]).unwrap()
    }
}

async fn send(
    running: &Running,
    method: &str,
    path: &str,
    extra: Headers<'_>,
    body: &[u8],
    version: Version,
) -> HttpReply {
    use http_body_util::{BodyExt as _, Full, StreamBody};
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(version == Version::Http2)
        .build_http();
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", running.address));
    if !extra.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/x-protobuf");
    }
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    let body = Bytes::copy_from_slice(body);
    let body = if version == Version::Chunked {
        let mut body = body;
        let frames = std::iter::from_fn(move || {
            let part = body.split_to(body.len().min(50_000));
            (!part.is_empty())
                .then(|| Ok::<_, std::convert::Infallible>(http_body::Frame::data(part)))
        });
        StreamBody::new(Iterated(frames)).boxed()
    } else {
        Full::new(body).boxed()
    };
    let response = client.request(request.body(body).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    HttpReply {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

/// An iterator as a stream, without a crate for it.
struct Iterated<I>(I);

impl<I: Iterator + Unpin> tonic::codegen::tokio_stream::Stream for Iterated<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

async fn post(
    running: &Running,
    path: &str,
    extra: Headers<'_>,
    body: &[u8],
    version: Version,
) -> HttpReply {
    send(running, "POST", path, extra, body, version).await
}
