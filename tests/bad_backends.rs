//! Backends that are away for half a day, or whose answers have no end. What they answer by the rules is
//! `tests/export.rs`'s.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod receiver;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use receiver::{Receiver, message, names};
use tailring::worker::export::{Batch, Delivery, DeliveryConfig, Destination, ExportMetrics};
use tokio::net::TcpListener;
use tokio::time::sleep;

fn destination(url: &str, config: DeliveryConfig) -> (Destination, Registry) {
    let mut registry = Registry::default();
    let metrics = ExportMetrics::register(&mut registry);
    let target = url.parse().unwrap();
    let destination = Destination::connect(&target, HeaderMap::new(), config, metrics);
    (destination.unwrap(), registry)
}

fn batch(name: &str) -> Batch {
    Batch {
        message: message(name),
        spans: 1,
        traces: 1,
        metadata: HeaderMap::new(),
    }
}

fn done() -> Delivery {
    Delivery::Done {
        rejected_spans: 0,
        message: String::new(),
    }
}

fn counted(registry: &Registry, metric: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(metric)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{metric} is not in {text}"))
}

/// The clock is ours: whoever waits has waited as soon as nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn nobody_gives_up_on_a_backend_that_is_away_for_twelve_hours() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (destination, registry) =
        destination(&format!("grpc://{address}"), DeliveryConfig::default());
    let back = async {
        sleep(Duration::from_secs(12 * 3600)).await;
        let missed = counted(&registry, "export_attempts_total");
        // Half a minute apart at most, and a quarter on average.
        assert!((1_440..10_000).contains(&missed), "{missed} attempts");
        Receiver::start_at(address, Arc::default(), None).await
    };
    let kept = batch("a");
    let (delivery, receiver) = tokio::join!(destination.deliver(&kept), back);
    assert_eq!(delivery, done());
    assert_eq!(names(&receiver.got().last().unwrap().request), ["a"]);
    assert_eq!(counted(&registry, "export_batches_total"), 1);
}

/// Zeros for ever, 64 KiB at a time.
struct Endless(Arc<AtomicU64>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        self.0.fetch_add(ZEROS.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(ZEROS)))))
    }
}

/// Answers 200 with a body that never ends, over HTTP/1 and HTTP/2. Counts what it has said.
async fn endless() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let said = Arc::new(AtomicU64::new(0));
    let saying = said.clone();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let said = saying.clone();
            connections.spawn(async move {
                let service = hyper::service::service_fn(move |request: http::Request<_>| {
                    let request: http::Request<hyper::body::Incoming> = request;
                    let kind = request.headers()["content-type"].clone();
                    let mut response = http::Response::new(Endless(said.clone()));
                    response.headers_mut().insert("content-type", kind);
                    async move { Ok::<_, Infallible>(response) }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(tcp), service).await);
            });
        }
    });
    (address, said)
}

/// Bytes of this process that are no file's.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("RssAnon:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

/// Over gRPC the status comes behind the message, and to guess wrong would be to send it a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_answer_without_an_end_ends_with_its_attempt_and_takes_no_memory() {
    let (address, said) = endless().await;
    let config = DeliveryConfig {
        attempt_timeout: Duration::from_millis(300),
        backoff_first: Duration::from_millis(1),
        backoff_last: Duration::from_millis(2),
        ..DeliveryConfig::default()
    };
    let (destination, registry) = destination(&format!("grpc://{address}"), config);
    let before = anonymous_bytes();
    let kept = batch("a");
    let third_attempt = async {
        while counted(&registry, "export_attempts_total") < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        delivery = destination.deliver(&kept) => panic!("{delivery:?}"),
        () = third_attempt => {}
    }
    let said = said.load(Ordering::Relaxed);
    assert!(said > 8 << 20, "only {said} bytes were said");
    let grown = anonymous_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for {said}");
    let timed_out = counted(&registry, "export_retries_total{reason=\"timed_out\"}");
    assert_eq!(timed_out, 2);
}

/// Over HTTP it comes first: 200 is all that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_answer_without_an_end_is_read_up_to_its_bound() {
    let (address, said) = endless().await;
    let (destination, registry) =
        destination(&format!("http://{address}"), DeliveryConfig::default());
    let Delivery::Done { rejected_spans, .. } = destination.deliver(&batch("a")).await else {
        panic!("it said 200");
    };
    assert_eq!(rejected_spans, 0);
    assert_eq!(counted(&registry, "export_attempts_total"), 1);
    // What was on its way when the connection was closed, too.
    let said = said.load(Ordering::Relaxed);
    assert!(said < 32 << 20, "{said} bytes were said");
}
