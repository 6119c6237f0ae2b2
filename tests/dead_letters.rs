//! A whole worker on a simulated disk, with a backend that refuses some of what it is sent: that
//! goes to the dead letters, all else to the backend, and each span to one of them once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod receiver;
mod whole_worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message;
use tailring::log::SimulatedDisk;
use tailring::net::admission::Budget;
use tailring::net::metadata::RequestMetadata;
use tailring::net::server::{Ingest, IngestRequest};
use tailring::policy::PolicyKind;
use tailring::worker::{Worker, WorkerConfig};
use tokio::time::Instant;
use tonic::Status;

use receiver::{Receiver, names};
use whole_worker::{LOCALHOST, config, one_policy, start, view};

const FILE: &str = "dead-letters.jsonl";
const BIG_LOG: u64 = 1 << 40;

struct Life {
    worker: Arc<Worker>,
    registry: Registry,
}

impl Life {
    fn start(disk: &SimulatedDisk, backend: &Receiver, log_max_bytes: u64) -> Self {
        let mut registry = Registry::with_prefix("tailring");
        let config = WorkerConfig {
            segment_bytes: 4 << 20,
            log_max_bytes,
            ..config("a", 1)
        };
        let worker = start(
            config,
            disk,
            one_policy(PolicyKind::AlwaysSample),
            view([("a", LOCALHOST)]),
            &format!("grpc://{}", backend.address),
            &mut registry,
        );
        Self { worker, registry }
    }

    async fn send(&self, spans: Vec<Span>) {
        // A fragment for each trace.
        let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for span in spans {
            traces.entry(span.trace_id.clone()).or_default().push(span);
        }
        let resource_spans = traces.into_values().map(|spans| ResourceSpans {
            resource: Some(Resource::default()),
            scope_spans: vec![ScopeSpans {
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        });
        let message = ExportTraceServiceRequest {
            resource_spans: resource_spans.collect(),
        };
        let request = IngestRequest {
            message: message.encode_to_vec().into(),
            permit: Budget::new(1 << 30).try_take(1).unwrap(),
            metadata: RequestMetadata::default(),
        };
        self.worker.ingest(request).await.unwrap();
    }

    /// Waits until a metric is at least that.
    async fn counted(&self, metric: &str, at_least: u64) {
        self.counted_within(SOON, metric, at_least).await;
    }

    async fn counted_within(&self, patience: Duration, metric: &str, at_least: u64) {
        let deadline = Instant::now() + patience;
        while self.count(metric) < at_least {
            assert!(
                Instant::now() < deadline,
                "{metric} is {}",
                self.count(metric)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn count(&self, metric: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let start = format!("tailring_{metric} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {metric}"))
            .parse()
            .unwrap()
    }

    /// Ends this life; returns the traces that it leaves to the next one.
    async fn stop(self, deadline: Duration) -> usize {
        self.worker.stop(deadline).await
    }
}

const SOON: Duration = Duration::from_secs(20);
/// What was put back is offered again after a minute.
const OFFERED_AGAIN: Duration = Duration::from_secs(60 + 20);

fn span(trace: u64, id: u64, name: &str, bytes: usize) -> Span {
    let mut trace_id = vec![7; 16];
    trace_id[..8].copy_from_slice(&trace.to_be_bytes());
    Span {
        trace_id,
        span_id: (id + 1).to_be_bytes().to_vec(),
        name: format!("{name}{}", "x".repeat(bytes)),
        ..Span::default()
    }
}

fn no_poison(request: &ExportTraceServiceRequest) -> Result<(), Status> {
    if names(request).iter().any(|name| name.starts_with("poison")) {
        return Err(Status::invalid_argument("span is from the future"));
    }
    Ok(())
}

/// How often each span was taken, by trace and ID.
fn taken(backend: &Receiver) -> BTreeMap<(u64, u64), u32> {
    let mut times = BTreeMap::new();
    for got in backend.got().iter().filter(|got| !got.refused) {
        let scopes = got.request.resource_spans.iter();
        for span in scopes
            .flat_map(|it| &it.scope_spans)
            .flat_map(|it| &it.spans)
        {
            *times.entry(key(span)).or_default() += 1;
        }
    }
    times
}

fn key(span: &Span) -> (u64, u64) {
    let number = |bytes: &[u8]| u64::from_be_bytes(*bytes.first_chunk().unwrap());
    (number(&span.trace_id), number(&span.span_id) - 1)
}

/// The letters: why, and the span as a receiver reads it from the line.
fn letters(disk: &SimulatedDisk) -> Vec<(serde_json::Value, Span)> {
    let content = disk.content(FILE).unwrap_or_default();
    let text = String::from_utf8(content).unwrap();
    let letter = |line: &str| {
        let mut whole: serde_json::Value = serde_json::from_str(line).unwrap();
        let request: ExportTraceServiceRequest = serde_json::from_str(line).unwrap();
        let mut spans = request
            .resource_spans
            .into_iter()
            .flat_map(|it| it.scope_spans);
        let span = spans.next().unwrap().spans.remove(0);
        assert!(spans.next().is_none());
        (whole["deadLetter"].take(), span)
    };
    text.lines().map(letter).collect()
}

fn assert_once(times: &BTreeMap<(u64, u64), u32>, spans: usize) {
    assert_eq!(times.len(), spans);
    let doubled = times.values().filter(|times| **times > 1).count();
    assert_eq!(doubled, 0, "of {spans}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poisoned_trace_of_a_thousand_is_the_only_one_that_does_not_arrive() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    backend.rule(no_poison);
    let life = Life::start(&disk, &backend, BIG_LOG);
    let name = |trace| if trace == 333 { "poison" } else { "fine" };
    life.send(
        (0..1000)
            .map(|trace| span(trace, 0, name(trace), 100))
            .collect(),
    )
    .await;
    life.counted("worker_spans_exported_total", 999).await;
    life.counted("worker_dead_letter_spans_total{reason=\"contents\"}", 1)
        .await;
    let bytes = disk.content(FILE).unwrap().len() as u64;
    assert_eq!(life.count("worker_dead_letter_bytes"), bytes);
    assert_eq!(life.count("worker_dead_letter_traces_total"), 1);
    assert_eq!(life.stop(SOON).await, 0);
    assert_once(&taken(&backend), 999);
    let attempts = backend.got().len();
    assert!(attempts <= 2 * 10 + 1 + 5, "{attempts} attempts");

    let letters = letters(&disk);
    assert_eq!(letters.len(), 1);
    let (why, culprit) = &letters[0];
    assert_eq!(key(culprit), (333, 0));
    assert!(
        culprit.trace_state.contains("th:0"),
        "as it would have been exported"
    );
    assert_eq!(why["code"], "INVALID_ARGUMENT");
    assert_eq!(why["message"], "span is from the future");
    assert_eq!(why["traceId"], "000000000000014d0707070707070707");
    assert_eq!(why["spanId"], "0000000000000001");

    // Not a word of all this in the next life.
    backend.rule(|_| Ok(()));
    let life = Life::start(&disk, &backend, BIG_LOG);
    assert_eq!(life.count("worker_dead_letter_bytes"), bytes);
    life.send(vec![span(5000, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 1).await;
    assert_eq!(life.stop(SOON).await, 0);
    assert_eq!(backend.got().len(), attempts + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_giant_trace_only_the_poisoned_spans_do_not_arrive() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    backend.rule(no_poison);
    let life = Life::start(&disk, &backend, BIG_LOG);
    // The first and the last ones, and neighbours.
    let poisoned = [0, 40, 41, 89];
    let name = |id: &u64| {
        if poisoned.contains(id) {
            "poison"
        } else {
            "fine"
        }
    };
    // One fragment of 9 MB, so many messages; and fragments beside it.
    life.send((0..90).map(|id| span(1, id, name(&id), 100_000)).collect())
        .await;
    life.send((100..110).map(|id| span(1, id, "fine", 100)).collect())
        .await;
    life.counted("worker_dead_letter_spans_total{reason=\"contents\"}", 4)
        .await;
    assert_eq!(life.stop(SOON).await, 0);
    assert_once(&taken(&backend), 96);
    let culprits: Vec<_> = letters(&disk).iter().map(|(_, span)| key(span).1).collect();
    assert_eq!(culprits, poisoned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_refuses_everything_empties_no_log_into_the_dead_letters() {
    for status in [
        Status::permission_denied("who are you"),
        Status::unauthenticated("who are you"),
        Status::unimplemented("no traces here"),
        Status::invalid_argument("the header x-team is missing"),
        Status::resource_exhausted("a message of 0 bytes, please"),
    ] {
        let disk = SimulatedDisk::default();
        let backend = Receiver::start().await;
        let refusal = status.clone();
        backend.rule(move |_| Err(refusal.clone()));
        let life = Life::start(&disk, &backend, BIG_LOG);
        let spans = (0..300).flat_map(|trace| (0..5).map(move |id| span(trace, id, "fine", 100)));
        life.send(spans.collect()).await;
        life.counted("worker_exports_put_back_total", 300).await;
        let attempts = backend.got().len();
        assert!(attempts <= 60, "{status:?}: {attempts} attempts");
        assert_eq!(life.stop(Duration::ZERO).await, 300);
        assert_eq!(disk.content(FILE), None, "{status:?}");

        backend.rule(|_| Ok(()));
        let life = Life::start(&disk, &backend, BIG_LOG);
        assert_eq!(life.stop(SOON).await, 0);
        assert_once(&taken(&backend), 1500);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_was_well_and_refuses_everything_gets_few_into_the_dead_letters() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    let life = Life::start(&disk, &backend, BIG_LOG);
    life.send(vec![span(5000, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 1).await;
    backend.rule(|_| Err(Status::invalid_argument("the schema is being changed")));
    life.send((0..300).map(|trace| span(trace, 0, "fine", 100)).collect())
        .await;
    life.counted("worker_exports_put_back_total", 280).await;
    assert!(life.stop(Duration::ZERO).await >= 280);
    assert!(letters(&disk).len() <= 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_the_backend_arrives_in_smaller_messages() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    backend.rule(|request| {
        if request.encoded_len() > 100_000 {
            return Err(Status::resource_exhausted("too large"));
        }
        Ok(())
    });
    let life = Life::start(&disk, &backend, BIG_LOG);
    // No trace of these fits.
    let mut spans: Vec<Span> = (0..10)
        .flat_map(|trace| (0..9).map(move |id| span(trace, id, "fine", 30_000)))
        .collect();
    spans.push(span(4, 100, "large", 150_000));
    life.send(spans).await;
    life.counted("worker_dead_letter_spans_total{reason=\"too_large\"}", 1)
        .await;
    assert_eq!(life.stop(SOON).await, 0);
    assert_once(&taken(&backend), 90);
    assert_eq!(key(&letters(&disk)[0].1), (4, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_dead_letters_keep_the_culprit_in_the_log_and_nobody_else() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    backend.rule(no_poison);
    // A twentieth for the dead letters: one of these, not two.
    let life = Life::start(&disk, &backend, 20 << 20);
    let mut spans: Vec<Span> = (0..100).map(|trace| span(trace, 0, "fine", 100)).collect();
    for trace in [30, 60] {
        spans[trace as usize] = span(trace, 0, "poison", 700_000);
        spans.push(span(trace, 1, "fine", 100));
    }
    life.send(spans).await;
    life.counted("worker_dead_letter_failures_total{reason=\"full\"}", 1)
        .await;
    life.counted("worker_exports_put_back_total", 1).await;
    life.counted("worker_spans_exported_total", 99).await;
    assert_eq!(life.stop(Duration::ZERO).await, 1);
    assert_once(&taken(&backend), 99);
    let first = letters(&disk);
    assert_eq!(first.len(), 1);

    // Somebody moves the file away.
    disk.set_content(FILE, Vec::new());
    let life = Life::start(&disk, &backend, 20 << 20);
    life.send(vec![span(5000, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 2).await;
    assert_eq!(life.stop(SOON).await, 0);
    assert_once(&taken(&backend), 101);
    let second = letters(&disk);
    assert_eq!(second.len(), 1);
    let mut culprits = [key(&first[0].1), key(&second[0].1)];
    culprits.sort_unstable();
    assert_eq!(culprits, [(30, 0), (60, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_not_on_the_disk_is_none() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    backend.rule(no_poison);
    let life = Life::start(&disk, &backend, BIG_LOG);
    life.send(vec![span(5000, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 1).await;
    // Of the log's files none is synced in this level.
    disk.fail_syncs(true);
    let poisoned = vec![span(1, 0, "poison", 0), span(1, 1, "fine", 0)];
    life.send([poisoned, vec![span(2, 0, "fine", 0)]].concat())
        .await;
    life.counted("worker_dead_letter_failures_total{reason=\"failed\"}", 1)
        .await;
    assert_eq!(life.stop(Duration::ZERO).await, 1);
    assert_eq!(disk.content(FILE), Some(Vec::new()));

    disk.fail_syncs(false);
    let half = b"{\"deadLetter\":{\"unixMill".to_vec();
    disk.set_content(FILE, half);
    let life = Life::start(&disk, &backend, BIG_LOG);
    life.send(vec![span(5001, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 2).await;
    assert_eq!(life.stop(SOON).await, 0);
    assert_eq!(letters(&disk).len(), 1);
    assert_once(&taken(&backend), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_failed_over_a_span_is_asked_again() {
    let disk = SimulatedDisk::default();
    let backend = Receiver::start().await;
    let life = Life::start(&disk, &backend, BIG_LOG);
    life.send(vec![span(5000, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 1).await;
    backend.next(receiver::Reply::Status(Status::internal("oops")));
    life.send(vec![span(1, 0, "fine", 0)]).await;
    life.counted("worker_spans_exported_total", 2).await;
    assert_eq!(life.stop(SOON).await, 0);
    assert_eq!(disk.content(FILE), None);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "125 s: what was put back is offered again after a minute"]
async fn what_is_offered_again_is_not_doubled() {
    let (full, ill) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let backends = [Receiver::start().await, Receiver::start().await];
    backends[0].rule(no_poison);
    backends[1].rule(|_| Err(Status::permission_denied("who are you")));
    let no_room = Life::start(&full, &backends[0], 20 << 20);
    let refused = Life::start(&ill, &backends[1], BIG_LOG);
    // Of one of them the first span is at the backend when there is no room for the second.
    for trace in [30, 60] {
        no_room
            .send(vec![
                span(trace, 0, "fine", 100),
                span(trace, 1, "poison", 700_000),
                span(trace, 2, "fine", 100),
            ])
            .await;
    }
    // The second message is the one that is refused.
    let giant = (0..30).map(|id| span(1, id, "fine", 100_000)).collect();
    refused.send(giant).await;
    refused.counted("worker_exports_put_back_total", 1).await;
    no_room.counted("worker_exports_put_back_total", 1).await;
    no_room.counted("worker_spans_exported_total", 3).await;
    let first = letters(&full);
    full.set_content(FILE, Vec::new());
    let ok = std::sync::atomic::AtomicU32::new(0);
    backends[1].rule(
        move |_| match ok.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            1 => Err(Status::permission_denied("who are you")),
            _ => Ok(()),
        },
    );
    no_room
        .counted_within(OFFERED_AGAIN, "worker_spans_exported_total", 4)
        .await;
    refused
        .counted_within(OFFERED_AGAIN, "worker_exports_put_back_total", 2)
        .await;
    refused
        .counted_within(OFFERED_AGAIN, "worker_spans_exported_total", 30)
        .await;
    assert_eq!(no_room.stop(SOON).await, 0);
    assert_eq!(refused.stop(SOON).await, 0);
    assert_once(&taken(&backends[0]), 4);
    assert_once(&taken(&backends[1]), 30);
    assert_eq!(first.len(), 1);
    assert_eq!(letters(&full).len(), 1);
}
