//! An OTLP/gRPC receiver in this process that answers by a script and remembers what it got.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a module of several test binaries, each of which uses its part; a panic fails the test"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

/// How the receiver answers one call.
pub enum Reply {
    Ok,
    View(&'static str),
    Partial(i64, String),
    Status(Status),
    /// OK after the notification.
    Held(Arc<Notify>),
    /// Never.
    Hang,
}

/// What it got.
pub struct Got {
    pub request: ExportTraceServiceRequest,
    pub metadata: http::HeaderMap,
    pub at: Instant,
    /// By the rule; the script's answers are not looked at.
    pub refused: bool,
}

/// Refuses what it says so for.
pub type Rule = Box<dyn Fn(&ExportTraceServiceRequest) -> Result<(), Status> + Send>;

#[derive(Default)]
pub struct Script {
    replies: Mutex<VecDeque<Reply>>,
    rule: Mutex<Option<Rule>>,
    got: Mutex<Vec<Got>>,
    cancelled: watch::Sender<usize>,
    arrived: watch::Sender<usize>,
    connections: watch::Sender<usize>,
}

pub struct Receiver {
    pub address: SocketAddr,
    pub script: Arc<Script>,
    accepting: JoinHandle<()>,
    /// `true` asks the connections for a GOAWAY.
    closing: watch::Sender<bool>,
}

impl Receiver {
    pub async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), Arc::default(), None).await
    }

    pub async fn start_tls(config: rustls::ServerConfig) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::start_at(([127, 0, 0, 1], 0).into(), Arc::default(), Some(acceptor)).await
    }

    pub async fn start_at(
        address: SocketAddr,
        script: Arc<Script>,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (closing, close) = watch::channel(false);
        let service = TraceServiceServer::from_arc(Arc::new(Service(script.clone())))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(64 << 20);
        let routes = tonic::service::Routes::new(service).prepare();
        let connections = script.clone();
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and the connections with it.
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                connections.connections.send_modify(|n| *n += 1);
                let (routes, close, tls) = (routes.clone(), close.clone(), tls.clone());
                serving.spawn(async move {
                    match tls {
                        None => serve(tcp, routes, close).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                serve(stream, routes, close).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            script,
            accepting,
            closing,
        }
    }

    /// Listener and connections are gone when this returns.
    pub async fn stop(mut self) -> (SocketAddr, Arc<Script>) {
        self.accepting.abort();
        let _ended = (&mut self.accepting).await;
        (self.address, self.script.clone())
    }

    /// Sends GOAWAY on the connections that are there; new ones are served.
    pub fn go_away(&self) {
        self.closing.send_modify(|closing| *closing = true);
    }

    pub fn next(&self, reply: Reply) {
        self.script.replies.lock().unwrap().push_back(reply);
    }

    /// Asked about every request, before the script is.
    pub fn rule(
        &self,
        rule: impl Fn(&ExportTraceServiceRequest) -> Result<(), Status> + Send + 'static,
    ) {
        *self.script.rule.lock().unwrap() = Some(Box::new(rule));
    }

    pub fn got(&self) -> std::sync::MutexGuard<'_, Vec<Got>> {
        self.script.got.lock().unwrap()
    }

    pub fn connections(&self) -> usize {
        *self.script.connections.borrow()
    }

    /// Waits until this many calls arrived.
    pub async fn arrived(&self, calls: usize) {
        until(&self.script.arrived, calls).await;
    }

    /// Waits until this many calls were cancelled by their clients.
    pub async fn cancelled(&self, calls: usize) {
        until(&self.script.cancelled, calls).await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn until(counter: &watch::Sender<usize>, at_least: usize) {
    let mut counter = counter.subscribe();
    tokio::time::timeout(
        Duration::from_secs(10),
        counter.wait_for(|n| *n >= at_least),
    )
    .await
    .expect("the receiver's counter did not get there")
    .unwrap();
}

async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: tonic::service::Routes,
    mut close: watch::Receiver<bool>,
) {
    close.mark_unchanged();
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_frame_size(1 << 20)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let mut closing = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            changed = close.changed(), if !closing => {
                closing = true;
                if changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

impl Script {
    fn refuses(&self, request: &ExportTraceServiceRequest) -> Option<Status> {
        let rule = self.rule.lock().unwrap();
        rule.as_ref().and_then(|rule| rule(request).err())
    }
}

struct Service(Arc<Script>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let refused = self.0.refuses(&request);
        let reply = {
            self.0.got.lock().unwrap().push(Got {
                request,
                metadata: metadata.into_headers(),
                at: Instant::now(),
                refused: refused.is_some(),
            });
            match refused {
                Some(status) => Some(Reply::Status(status)),
                None => self.0.replies.lock().unwrap().pop_front(),
            }
        };
        self.0.arrived.send_modify(|n| *n += 1);
        let mut response = Response::new(ExportTraceServiceResponse::default());
        match reply.unwrap_or(Reply::Ok) {
            Reply::Ok => {}
            Reply::View(view) => {
                let view = view.parse().unwrap();
                response.metadata_mut().insert("tailring-view", view);
            }
            Reply::Partial(rejected_spans, error_message) => {
                response.get_mut().partial_success = Some(ExportTracePartialSuccess {
                    rejected_spans,
                    error_message,
                });
            }
            Reply::Status(status) => return Err(status),
            Reply::Held(release) => {
                let unless_done = CountCancelled(&self.0);
                release.notified().await;
                std::mem::forget(unless_done);
            }
            Reply::Hang => {
                let _unless_done = CountCancelled(&self.0);
                std::future::pending::<()>().await;
            }
        }
        Ok(response)
    }
}

struct CountCancelled<'a>(&'a Script);

impl Drop for CountCancelled<'_> {
    fn drop(&mut self) {
        self.0.cancelled.send_modify(|n| *n += 1);
    }
}

/// One span with the name, in a resource of its own.
pub fn request(name: &str) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![Span {
                    trace_id: vec![1; 16],
                    span_id: vec![2; 8],
                    name: name.to_owned(),
                    ..Span::default()
                }],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

pub fn message(name: &str) -> bytes::Bytes {
    request(name).encode_to_vec().into()
}

/// Names of the spans in the request, in order.
pub fn names(request: &ExportTraceServiceRequest) -> Vec<&str> {
    let scopes = request.resource_spans.iter().flat_map(|r| &r.scope_spans);
    scopes.flat_map(|s| &s.spans).map(|s| &*s.name).collect()
}

/// A certificate for `localhost`, signed by itself: the server's settings, and its PEM as a CA.
pub fn certificate(alpn: &[u8]) -> (rustls::ServerConfig, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    (config, made.cert.pem())
}
