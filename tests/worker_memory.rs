//! A whole worker and its one budget: what is paid, what is refused, what comes back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod receiver;
mod whole_worker;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message;
use tailring::log::SimulatedDisk;
use tailring::net::admission::Budget;
use tailring::net::metadata::RequestMetadata;
use tailring::net::server::{Accepted, Ingest, IngestRequest};
use tailring::net::status::{Refusal, RefusalReason};
use tailring::policy::PolicyKind;
use tailring::worker::{Worker, WorkerConfig};
use tokio::time::Instant;

use receiver::{Receiver, Reply};
use whole_worker::{LOCALHOST, config, one_policy, start, view};

const MIB: u64 = 1 << 20;
const EXPORT: u64 = MIB;

struct Life {
    worker: Arc<Worker>,
    budget: Arc<Budget>,
    _registry: Registry,
}

impl Life {
    fn start(budget_bytes: u64, backend: &Receiver) -> Self {
        let mut registry = Registry::default();
        let budget = Budget::new(budget_bytes);
        let config = WorkerConfig {
            budget: budget.clone(),
            export_memory_bytes: EXPORT,
            ..config("a", 2)
        };
        let worker = start(
            config,
            &SimulatedDisk::default(),
            one_policy(PolicyKind::AlwaysSample),
            view([("a", LOCALHOST)]),
            &format!("grpc://{}", backend.address),
            &mut registry,
        );
        Self {
            worker,
            budget,
            _registry: registry,
        }
    }

    /// One span of so many bytes, its message paid as the server pays it.
    async fn send(&self, trace: u64, bytes: u64) -> Result<Accepted, Refusal> {
        let mut trace_id = [7; 16];
        trace_id[..8].copy_from_slice(&trace.to_be_bytes());
        let span = Span {
            trace_id: trace_id.to_vec(),
            span_id: vec![1; 8],
            name: "x".repeat(bytes as usize),
            ..Span::default()
        };
        let message = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: vec![span],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let message = message.encode_to_vec();
        let permit = self.budget.try_take(message.len() as u64).unwrap();
        let request = IngestRequest {
            message: message.into(),
            permit,
            metadata: RequestMetadata::default(),
        };
        self.worker.ingest(request).await
    }

    async fn until(&self, what: &str, condition: impl Fn(u64) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self.budget.taken_bytes()) {
            let taken = self.budget.taken_bytes();
            assert!(Instant::now() < deadline, "{what}: {taken} are taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What remembered verdicts and empty tables may take in these tests.
const SMALL: u64 = 128 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_pays_for_its_copy_in_the_log_and_gives_all_back() {
    let backend = Receiver::start().await;
    let life = Life::start(EXPORT + 8 * MIB, &backend);
    // It fits once, and not twice.
    let refused = life.send(1, 5 * MIB).await.unwrap_err();
    assert_eq!(refused.reason, RefusalReason::MemoryPressure);
    life.send(2, 3 * MIB).await.unwrap();
    assert!(life.budget.peak_bytes() >= EXPORT + 6 * MIB);
    backend.arrived(1).await;
    life.until("all but verdicts is given back", |taken| {
        taken <= EXPORT + SMALL
    })
    .await;
    assert!(life.budget.taken_bytes() > EXPORT, "verdicts are paid for");
    life.worker.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_span_larger_than_all_export_memory_arrives_and_requests_wait_meanwhile() {
    let backend = Receiver::start().await;
    backend.next(Reply::Hang);
    let life = Life::start(64 * MIB, &backend);
    life.send(1, 20 * MIB).await.unwrap();
    backend.arrived(1).await;
    // As it was read, and as it is sent.
    life.until("its export is paid", |taken| taken >= 40 * MIB)
        .await;
    let refused = life.send(2, 12 * MIB).await.unwrap_err();
    assert_eq!(refused.reason, RefusalReason::MemoryPressure);
    life.send(3, 1000).await.unwrap();
    life.worker.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_in_hand_are_charged_and_leave_requests_the_less() {
    let backend = Receiver::start().await;
    let rule = |_: &ExportTraceServiceRequest| Err(tonic::Status::unavailable("away"));
    backend.rule(rule);
    let life = Life::start(64 * MIB, &backend);
    for trace in 0..2_000 {
        life.send(trace, 10).await.unwrap();
    }
    // The index, and what the exporters have.
    life.until("the index is charged", |taken| {
        taken >= EXPORT + 2_000 * 200
    })
    .await;
    life.worker.stop(Duration::ZERO).await;
}
