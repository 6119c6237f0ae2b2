//! Connections: accepted up to a bound, aged, and brought to an end.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rand::Rng as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::body::Limits;
use super::format::Format;
use super::health::{HealthHandle, HealthService};
use super::metrics::{ListenerMetrics, Outcome, ServerMetrics};
use super::reply::{self, Reply, ReplyBody};
use super::transcode::Transcoding;
use super::{BindError, Ingest, Protocol, ServerConfig, grpc, http as otlp_http};
use crate::model::Fingerprint;
use crate::net::admission::Budget;
use crate::net::metadata::{VIEW, view_value};
use crate::net::status::{Refusal, RefusalReason};

/// DATA frames of 1 MiB: the sender honours it, and against 16 KiB it halves what receiving a
/// 213 KB message costs (0.20 to 0.10 CPU seconds a million spans). The windows matter once there
/// is a round-trip time: 4 MiB is 64 MB/s a stream at 60 ms.
const FRAME_BYTES_MAX: u32 = 1 << 20;
const STREAM_WINDOW_BYTES_MAX: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES_MAX: u32 = 16 << 20;
/// What lies in windows is not paid yet. It lies there only while its handler waits for a turn of
/// the CPU; so many connections with full windows hold as much as the budget allows.
const WINDOWS_A_BUDGET: u64 = 128;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// hyper's read buffer of an HTTP/1 connection; also bounds its headers.
const HTTP1_BUFFER_BYTES_MAX: usize = 256 << 10;
/// Answers are a few bytes; this bounds what a client that never reads can make us keep.
const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;
const LISTEN_BACKLOG: u32 = 1024;
/// After GOAWAY a connection may finish what it has; what takes longer never ends.
const AGED_GRACE: Duration = Duration::from_secs(120);
/// Out of file descriptors the accept call fails at once, again and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What stands behind a listener: an [`Ingest`] for OTLP, or a peer service.
pub trait Serve: Send + Sync + Sized + 'static {
    /// `seen_at`: where the connection comes from.
    fn answer(
        shared: &Shared<Self>,
        request: Request<Incoming>,
        seen_at: IpAddr,
        closing: watch::Receiver<bool>,
    ) -> impl Future<Output = Reply> + Send;

    /// Sent with every response.
    fn view(&self) -> Fingerprint;
}

impl<I: Ingest> Serve for I {
    async fn answer(
        shared: &Shared<Self>,
        request: Request<Incoming>,
        _seen_at: IpAddr,
        closing: watch::Receiver<bool>,
    ) -> Reply {
        match shared.config.protocol {
            Protocol::Http => otlp_http::handle(shared, request).await,
            Protocol::Grpc | Protocol::Peer => grpc::handle(shared, request, closing).await,
        }
    }

    fn view(&self) -> Fingerprint {
        self.fingerprint()
    }
}

/// What every connection of a listener needs.
pub struct Shared<I> {
    pub(super) ingest: Arc<I>,
    pub(super) limits: Limits,
    pub(super) transcoding: Transcoding,
    pub(super) budget: Arc<Budget>,
    pub(super) metrics: ListenerMetrics,
    pub(super) health: HealthService,
    config: ServerConfig,
    builder: auto::Builder<TokioExecutor>,
}

/// A listener that clients can connect to already.
pub struct BoundServer<I> {
    listener: TcpListener,
    local_addr: SocketAddr,
    health: HealthHandle,
    shared: Arc<Shared<I>>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that were cut because their requests did not end within the drain deadline.
    pub aborted_connections: usize,
}

/// An open port that nobody serves yet: clients connect and wait.
#[derive(Debug)]
pub(super) struct Port {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl Port {
    pub(super) fn open(protocol: Protocol, address: SocketAddr) -> Result<Self, BindError> {
        let open = || {
            let listener = listen(address)?;
            let local_addr = listener.local_addr()?;
            Ok(Self {
                listener,
                local_addr,
            })
        };
        open().map_err(|error| bind_error(protocol, address, error))
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

impl<I: Serve> BoundServer<I> {
    pub(super) async fn new(
        port: Port,
        config: ServerConfig,
        ingest: Arc<I>,
        metrics: &ServerMetrics,
        budget: Arc<Budget>,
    ) -> Self {
        let (health, service) = HealthService::new().await;
        let shared = Shared {
            ingest,
            limits: Limits {
                request_bytes_max: config.request_bytes_max,
                idle_max: config.body_idle_max,
                total_max: config.body_total_max,
            },
            transcoding: Transcoding::new(Arc::clone(&budget), config.request_bytes_max),
            metrics: metrics.of(config.protocol),
            health: service,
            builder: builder(&config, connection_window_bytes(budget.bytes_max())),
            config,
            budget,
        };
        Self {
            listener: port.listener,
            local_addr: port.local_addr,
            health,
            shared: Arc::new(shared),
        }
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// For gRPC listeners; over HTTP nobody asks.
    pub fn health(&self) -> HealthHandle {
        self.health.clone()
    }

    /// Serves until `shutdown`; then closes the listener, tells every connection to go away, and
    /// waits for requests in flight, at most [`ServerConfig::drain_deadline`].
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Stopped {
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => note(ended),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() >= self.shared.config.connections_max => {
                        drop(stream);
                        self.shared.metrics.turned_away.inc();
                    }
                    Ok((stream, from)) => {
                        let shared = Arc::clone(&self.shared);
                        connections.spawn(connection(shared, stream, from.ip(), stopping.clone()));
                    }
                    Err(error) => {
                        self.shared.metrics.accept_errors.inc();
                        tracing::debug!(%error, "no connection could be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        stop.send_replace(true);
        let deadline = Instant::now() + self.shared.config.drain_deadline;
        while let Ok(Some(ended)) = timeout_at(deadline, connections.join_next()).await {
            note(ended);
        }
        let aborted_connections = connections.len();
        connections.shutdown().await;
        Stopped {
            aborted_connections,
        }
    }
}

impl<I> fmt::Debug for BoundServer<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundServer")
            .field("protocol", &self.shared.config.protocol)
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Without it a restart waits for the old connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

fn bind_error(protocol: Protocol, listen: SocketAddr, source: io::Error) -> BindError {
    let flag = protocol.flag();
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { flag, listen },
        io::ErrorKind::PermissionDenied => BindError::Denied { flag, listen },
        io::ErrorKind::AddrNotAvailable => BindError::NotHere { flag, listen },
        _ => BindError::Other {
            flag,
            listen,
            source,
        },
    }
}

/// Both protocols take HTTP/1 and HTTP/2: on the gRPC port HTTP/1 gets a text that says so.
fn builder(config: &ServerConfig, window_bytes: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_max)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(window_bytes.min(STREAM_WINDOW_BYTES_MAX))
        .initial_connection_window_size(window_bytes)
        .max_concurrent_streams(config.streams_max)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout);
    builder
}

/// Never less than a frame.
fn connection_window_bytes(budget_bytes: u64) -> u32 {
    u32::try_from(budget_bytes / WINDOWS_A_BUDGET)
        .unwrap_or(u32::MAX)
        .clamp(FRAME_BYTES_MAX, CONNECTION_WINDOW_BYTES_MAX)
}

async fn connection<I: Serve>(
    shared: Arc<Shared<I>>,
    stream: TcpStream,
    seen_at: IpAddr,
    mut stopping: watch::Receiver<bool>,
) {
    let metrics = &shared.metrics;
    metrics.opened.inc();
    metrics.open.inc();
    let _open = OnDrop(|| {
        metrics.open.dec();
    });
    // hyper's timers start with the first byte; a client that only connects is not to stay.
    let mut byte = [0];
    let first_byte = timeout(shared.config.header_read_max, stream.peek(&mut byte));
    tokio::select! {
        came = first_byte => if !matches!(came, Ok(Ok(1))) { return },
        _ = stopping.wait_for(|stop| *stop) => return,
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }

    let (close, closing) = watch::channel(false);
    let service = service_fn(|request| {
        let (shared, closing) = (Arc::clone(&shared), closing.clone());
        async move { Ok::<_, Infallible>(respond(&shared, request, seen_at, closing).await) }
    });
    let io = TokioIo::new(stream);
    let mut connection = pin!(shared.builder.serve_connection(io, service));
    let age = shared
        .config
        .connection_age
        .mul_f64(rand::rng().random_range(0.9..=1.1));
    let mut timer = pin!(sleep_until(Instant::now() + age));
    let mut is_closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            _ = stopping.wait_for(|stop| *stop), if !is_closing => {}
            () = timer.as_mut() => {
                if is_closing {
                    return;
                }
                metrics.aged.inc();
            }
        }
        is_closing = true;
        close.send_replace(true);
        connection.as_mut().graceful_shutdown();
        timer.as_mut().reset(Instant::now() + AGED_GRACE);
    }
}

/// One request, from its headers to its answer. Whatever happens, it is counted once.
async fn respond<I: Serve>(
    shared: &Shared<I>,
    request: Request<Incoming>,
    seen_at: IpAddr,
    closing: watch::Receiver<bool>,
) -> Response<ReplyBody> {
    let started = Instant::now();
    let format = Format::of(request.headers());
    let mut unanswered = Unanswered {
        metrics: Some(&shared.metrics),
    };
    let handled = caught(I::answer(shared, request, seen_at, closing));
    let reply = handled.await.unwrap_or_else(|| {
        let refusal = Refusal::new(
            RefusalReason::Panicked,
            "the server failed on this request; its log has the place",
        );
        match shared.config.protocol {
            Protocol::Grpc | Protocol::Peer => reply::grpc_refused(&refusal),
            Protocol::Http => reply::http_refused(&refusal, format),
        }
    });
    unanswered.metrics = None;
    if let Some(outcome) = reply.outcome {
        shared.metrics.count(outcome);
        shared
            .metrics
            .seconds
            .observe(started.elapsed().as_secs_f64());
    }
    let mut response = reply.response;
    response.headers_mut().insert(
        HeaderName::from_static(VIEW),
        view_value(shared.ingest.view()),
    );
    response
}

/// Counts a request whose client went away: hyper then drops the handler in the middle.
struct Unanswered<'a> {
    metrics: Option<&'a ListenerMetrics>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics {
            metrics.count(Outcome::Disconnected);
        }
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// `None` if the future panicked; it is not polled again. The panic hook has logged where.
async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match polled {
            Ok(polled) => polled.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_the_budget_and_never_below_a_frame() {
        for (budget, window) in [
            (0, 1 << 20),
            (64 << 20, 1 << 20),
            (512 << 20, 4 << 20),
            (1 << 30, 8 << 20),
            (u64::MAX, 16 << 20),
        ] {
            assert_eq!(connection_window_bytes(budget), window, "{budget}");
        }
    }
}
