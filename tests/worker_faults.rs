//! A whole worker on a simulated disk, with a backend and peers that do not do what they should:
//! every span goes out once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message;
use tailring::cluster::ViewHandle;
use tailring::log::SimulatedDisk;
use tailring::net::admission::Budget;
use tailring::net::metadata::RequestMetadata;
use tailring::net::server::{Ingest, IngestRequest, Protocol, Server, ServerConfig, ServerMetrics};
use tailring::policy::{PolicyKind, RateLimiting, Scope};
use tailring::worker::Worker;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use receiver::{Receiver, Reply};
use whole_worker::{LOCALHOST, one_policy, view};

mod receiver;
#[path = "worker_faults/reloads.rs"]
mod reloads;
mod whole_worker;

fn alone() -> ViewHandle {
    view([("a", LOCALHOST)])
}

fn start(
    name: &str,
    disk: &SimulatedDisk,
    shards: u16,
    view: ViewHandle,
    backend: &Receiver,
) -> Arc<Worker> {
    start_with(PolicyKind::AlwaysSample, name, disk, shards, view, backend)
}

fn start_with(
    kind: PolicyKind,
    name: &str,
    disk: &SimulatedDisk,
    shards: u16,
    view: ViewHandle,
    backend: &Receiver,
) -> Arc<Worker> {
    whole_worker::start(
        whole_worker::config(name, shards),
        disk,
        one_policy(kind),
        view,
        &format!("grpc://{}", backend.address),
        &mut Registry::default(),
    )
}

/// One ResourceSpans for each trace, with spans numbered on from `first`.
fn message(traces: std::ops::Range<u64>, first: u64, spans: u64, bytes: usize) -> Vec<u8> {
    let of_trace = |trace: u64| {
        let mut trace_id = vec![7; 16];
        trace_id[..8].copy_from_slice(&trace.to_be_bytes());
        let spans = (first..first + spans).map(|id| Span {
            trace_id: trace_id.clone(),
            span_id: (id + 1).to_be_bytes().to_vec(),
            name: "x".repeat(bytes),
            ..Span::default()
        });
        ResourceSpans {
            resource: Some(Resource::default()),
            scope_spans: vec![ScopeSpans {
                spans: spans.collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }
    };
    let resource_spans = traces.map(of_trace).collect();
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

async fn send(worker: &Arc<Worker>, message: Vec<u8>) {
    let request = IngestRequest {
        message: message.into(),
        permit: Budget::new(1 << 30).try_take(1).unwrap(),
        metadata: RequestMetadata::default(),
    };
    worker.ingest(request).await.unwrap();
}

/// How often each span came, by trace and span ID.
fn spans_of<'a>(
    requests: impl IntoIterator<Item = &'a ExportTraceServiceRequest>,
) -> BTreeMap<(Vec<u8>, Vec<u8>), u32> {
    let mut times = BTreeMap::new();
    for request in requests {
        let scopes = request.resource_spans.iter().flat_map(|it| &it.scope_spans);
        for span in scopes.flat_map(|it| &it.spans) {
            *times
                .entry((span.trace_id.clone(), span.span_id.clone()))
                .or_default() += 1;
        }
    }
    times
}

/// Until so many spans came, or more.
async fn exported<const N: usize>(spans: usize, backends: [&Receiver; N]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let came = || -> u32 {
        let got = backends.iter().flat_map(|backend| requests(backend));
        spans_of(&got.collect::<Vec<_>>()).values().sum()
    };
    while (came() as usize) < spans {
        assert!(
            Instant::now() < deadline,
            "{} of {spans} spans came",
            came()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn requests(backend: &Receiver) -> Vec<ExportTraceServiceRequest> {
    backend
        .got()
        .iter()
        .map(|got| got.request.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_has_of_a_refused_trace_is_not_sent_again() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    backend.next(Reply::Ok);
    backend.next(Reply::Status(Status::permission_denied("no")));
    let worker = start("a", &disk, 1, alone(), &backend);
    // One trace of 10 MB: four messages, of which the second one is refused.
    for part in 0..10 {
        send(&worker, message(1..2, part * 10, 10, 100_000)).await;
    }
    backend.arrived(2).await;
    assert_eq!(worker.stop(Duration::ZERO).await, 1);

    let worker = start("a", &disk, 1, alone(), &backend);
    assert_eq!(worker.stop(Duration::from_secs(20)).await, 0);
    let mut got = requests(&backend);
    got.remove(1);
    let times = spans_of(&got);
    assert_eq!(times.len(), 100);
    let doubled = times.values().filter(|times| **times > 1).count();
    assert_eq!(doubled, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_whole_worker_answers_every_shard() {
    let limit = |spans_per_second| {
        PolicyKind::RateLimiting(RateLimiting {
            spans_per_second,
            burst_spans: spans_per_second,
            scope: Scope::Cluster,
        })
    };
    let backend = Receiver::start().await;
    let enough = SimulatedDisk::new(1);
    let worker = start_with(limit(1_000_000), "a", &enough, 3, alone(), &backend);
    send(&worker, message(0..300, 0, 2, 100)).await;
    exported(600, [&backend]).await;
    assert_eq!(worker.stop(Duration::from_secs(20)).await, 0);

    // A hundred a second: of two hundred traces of one second and of two shards half are taken,
    // give or take the fraction of a second by which their deadlines differ.
    let backend = Receiver::start().await;
    let scarce = SimulatedDisk::new(2);
    let worker = start_with(limit(100), "a", &scarce, 2, alone(), &backend);
    send(&worker, random_message(200)).await;
    exported(100, [&backend]).await;
    assert_eq!(worker.stop(Duration::from_secs(20)).await, 0);
    let times = spans_of(&requests(&backend));
    assert!((100..=110).contains(&times.len()), "{} spans", times.len());
    // The same ones that a single window over all would take: the highest randomness.
    let mut kept: Vec<_> = times.keys().map(|(trace, _)| trace[9..].to_vec()).collect();
    kept.sort();
    assert!(kept[0] > vec![0x60, 0, 0, 0, 0, 0, 0], "{:?}", kept[0]);
}

/// Traces of one span with IDs that are spread evenly.
fn random_message(traces: u64) -> Vec<u8> {
    let spans = (0..traces).map(|n| {
        let mut trace_id = vec![7; 16];
        trace_id[..8].copy_from_slice(&n.to_be_bytes());
        let even = n.wrapping_mul(u64::MAX / traces);
        trace_id[9..].copy_from_slice(&even.to_be_bytes()[..7]);
        Span {
            trace_id,
            span_id: vec![1; 8],
            ..Span::default()
        }
    });
    let of_resource = ResourceSpans {
        scope_spans: vec![ScopeSpans {
            spans: spans.collect(),
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    };
    let resource_spans = vec![of_resource];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_larger_than_backends_take() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    let worker = start("a", &disk, 1, alone(), &backend);
    // One fragment of 9 MB, and many traces of every size.
    send(&worker, message(1..2, 0, 90, 100_000)).await;
    for (place, bytes) in [1_000, 10_000, 100_000, 700_000].into_iter().enumerate() {
        let first = 100 * (place as u64 + 1);
        send(&worker, message(first..first + 15, 0, 3, bytes)).await;
    }
    exported(90 + 4 * 15 * 3, [&backend]).await;
    assert_eq!(worker.stop(Duration::from_secs(20)).await, 0);
    let got = requests(&backend);
    let longest = got.iter().map(Message::encoded_len).max().unwrap();
    assert!(longest <= 4 << 20, "{longest} bytes");
    let times = spans_of(&got);
    assert_eq!(times.len(), 90 + 4 * 15 * 3);
    assert!(times.values().all(|times| *times == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_waits_for_the_answer_to_what_it_has_sent() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    let answer = Arc::new(Notify::new());
    backend.next(Reply::Held(answer.clone()));
    let worker = start("a", &disk, 1, alone(), &backend);
    send(&worker, message(1..50, 0, 10, 100)).await;
    backend.arrived(1).await;
    let stopping = tokio::spawn(async move { worker.stop(Duration::ZERO).await });
    // It takes the way out in the meantime, or it does not.
    tokio::time::sleep(Duration::from_millis(300)).await;
    answer.notify_one();
    stopping.await.unwrap();

    let worker = start("a", &disk, 1, alone(), &backend);
    assert_eq!(worker.stop(Duration::from_secs(20)).await, 0);
    let times = spans_of(&requests(&backend));
    assert_eq!(times.len(), 490);
    assert!(times.values().all(|times| *times == 1), "some came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_on_is_not_held_as_well() {
    let backends = [Receiver::start().await, Receiver::start().await];
    let registry = &mut Registry::default();
    let server_metrics = ServerMetrics::register(registry);
    let two = view([("a", LOCALHOST), ("b", LOCALHOST)]);
    let peer = start("b", &SimulatedDisk::new(2), 2, two, &backends[1]);
    let config = ServerConfig::new(Protocol::Grpc, LOCALHOST);
    let budget = Budget::new(1 << 30);
    let server = Server::bind(config, peer.clone(), server_metrics, budget);
    let server = server.await.unwrap();
    let two = view([("a", LOCALHOST), ("b", server.local_addr())]);
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async move {
        stopping.await.ok();
    }));

    let worker = start("a", &SimulatedDisk::new(1), 3, two, &backends[0]);
    send(&worker, message(0..300, 0, 2, 100)).await;
    exported(600, [&backends[0], &backends[1]]).await;
    assert_eq!(worker.stop(Duration::from_secs(20)).await, 0);
    stop.send(()).unwrap();
    serving.await.unwrap();
    assert_eq!(peer.stop(Duration::from_secs(20)).await, 0);
    let got = backends.map(|backend| requests(&backend));
    assert!(got.iter().all(|requests| !requests.is_empty()));
    let times = spans_of(got.iter().flatten());
    assert_eq!(times.len(), 600);
    let doubled = times.values().filter(|times| **times > 1).count();
    assert_eq!(doubled, 0, "of 600");
}
