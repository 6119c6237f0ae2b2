//! The OTLP servers over real sockets: what clients are told, and what it costs.

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

// ---- gRPC

#[tokio::test]
async fn grpc_hands_over_the_clients_bytes_under_any_encoding() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    for encoding in [
        None,
        Some(CompressionEncoding::Gzip),
        Some(CompressionEncoding::Zstd),
    ] {
        for bytes in [0, 100, 5_000, 213_000, 3 * MIB] {
            let message = request(bytes);
            let mut client = running.client().await;
            if let Some(encoding) = encoding {
                client = client.send_compressed(encoding);
            }
            let response = client.export(message.clone()).await.unwrap();
            assert_eq!(response.metadata().get(VIEW).unwrap(), "0123456789abcdef");
            assert_eq!(response.into_inner(), ExportTraceServiceResponse::default());
            assert_eq!(
                running.tier.messages().pop().unwrap(),
                message.encode_to_vec(),
                "{encoding:?} {bytes}"
            );
        }
    }
    assert_eq!(
        running.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"accepted\"}"),
        15.0
    );
    running.tier.seen.lock().unwrap().clear();
    assert_eq!(running.budget.taken_bytes(), 0);
}
