//! Rules that change while 50,000 traces are in flight: none is lost, and each is judged by the rules in
//! force at its deadline, over all of its spans.

use std::ops::Range;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Status;
use tailring::policy::{Rules, parse};
use tailring::worker::ReloadOutcome;

use super::*;

const TRACES: u64 = 50_000;
const A_REQUEST: u64 = 250;
const SECOND: u64 = 1_000_000_000;

/// A trace is complete when its root is there.
fn rules(policy: &str) -> Rules {
    let text = format!(
        "decision_wait: 10m\ndecision_wait_after_root_received: 1ms\npolicies: [{{name: it, {policy}}}]"
    );
    parse(&text).expect("a policy file").rules
}

const ERRORS: &str = "type: status_code, status_code: {status_codes: [ERROR]}";
const TEXT: &str = "type: string_attribute, string_attribute: {key: k, values: [b]}";
const SLOW: &str = "type: latency, latency: {threshold_ms: 3000}";

/// By which of the three policies a trace is kept, by its number; every fourth one by none.
fn wanted_by(trace: u64) -> Option<&'static str> {
    [Some(ERRORS), Some(TEXT), Some(SLOW), None][trace as usize % 4]
}

/// The first half of each trace, or its root, which comes 4 s later in those that are slow.
fn spans(traces: Range<u64>, is_root: bool) -> Vec<u8> {
    let of_trace = |trace: u64| {
        let mut trace_id = vec![7; 16];
        trace_id[..8].copy_from_slice(&trace.to_be_bytes());
        let is_slow = wanted_by(trace) == Some(SLOW);
        let start = SECOND * if is_root && is_slow { 5 } else { 1 };
        let mut span = Span {
            trace_id,
            span_id: vec![1 + u8::from(is_root); 8],
            parent_span_id: if is_root { vec![] } else { vec![9; 8] },
            start_time_unix_nano: start,
            end_time_unix_nano: start + 1,
            ..Span::default()
        };
        match wanted_by(trace) {
            Some(ERRORS) if !is_root => {
                span.status = Some(Status {
                    code: 2,
                    ..Status::default()
                });
            }
            Some(TEXT) if !is_root => {
                span.attributes = vec![KeyValue {
                    key: "k".into(),
                    value: Some(AnyValue {
                        value: Some(Value::StringValue("b".into())),
                    }),
                    ..KeyValue::default()
                }];
            }
            _ => {}
        }
        ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }
    };
    let resource_spans = traces.map(of_trace).collect();
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

struct Life {
    worker: Arc<Worker>,
    registry: Registry,
}

impl Life {
    async fn send(&self, traces: Range<u64>, is_root: bool) {
        let requests = traces.clone().step_by(A_REQUEST as usize);
        for first in requests {
            let some = first..(first + A_REQUEST).min(traces.end);
            send(&self.worker, spans(some, is_root)).await;
        }
    }

    fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok())
            .expect("a metric")
    }

    async fn undecided(&self, traces: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.metric("worker_undecided_traces ") != traces {
            let left = self.metric("worker_undecided_traces ");
            assert!(
                Instant::now() < deadline,
                "{left} are undecided, not {traces}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_traces_in_flight_follow_three_reloads_one_of_them_invalid() {
    let backend = Receiver::start().await;
    let mut registry = Registry::default();
    let worker = whole_worker::start(
        whole_worker::config("a", 2),
        &SimulatedDisk::default(),
        rules(ERRORS),
        alone(),
        &format!("grpc://{}", backend.address),
        &mut registry,
    );
    let life = Life { worker, registry };
    let of_errors = TRACES..TRACES + 1_000;
    let of_text = 0..10_000;
    let of_text_still = 10_000..20_000;
    let of_slow = 20_000..TRACES;
    life.send(0..of_errors.end, false).await;
    life.send(of_errors.clone(), true).await;
    life.undecided(TRACES).await;

    // All 50,000 are in flight.
    assert_eq!(life.worker.reload(rules(TEXT)).await, ReloadOutcome::Taken);
    life.send(of_text.clone(), true).await;
    life.undecided(TRACES - 10_000).await;
    assert!(parse("policies: [{name: it, type: statuscode}]").is_err());
    let same = life.worker.reload(rules(TEXT)).await;
    assert_eq!(same, ReloadOutcome::Unchanged);
    life.send(of_text_still.clone(), true).await;
    life.undecided(TRACES - 20_000).await;
    assert_eq!(life.worker.reload(rules(SLOW)).await, ReloadOutcome::Taken);
    life.send(of_slow.clone(), true).await;
    life.undecided(0).await;

    let kept = |traces: Range<u64>, policy| traces.filter(move |it| wanted_by(*it) == Some(policy));
    let expected: Vec<u64> = kept(of_text.start..of_text_still.end, TEXT)
        .chain(kept(of_slow, SLOW))
        .chain(kept(of_errors, ERRORS))
        .collect();
    exported(2 * expected.len(), [&backend]).await;
    let got = requests(&backend);
    let mut expected_spans = BTreeMap::new();
    for trace in expected {
        let mut trace_id = vec![7; 16];
        trace_id[..8].copy_from_slice(&trace.to_be_bytes());
        for span in [1, 2] {
            expected_spans.insert((trace_id.clone(), vec![span; 8]), 1);
        }
    }
    let came = spans_of(&got);
    assert!(came == expected_spans, "{} came", came.len());
    assert!(life.metric("worker_refold_bytes_total ") > 0);
    assert_eq!(life.metric("worker_refold_traces "), 0);
    life.worker.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn limits_come_and_go_with_the_rules() {
    let backend = Receiver::start().await;
    let mut registry = Registry::default();
    let worker = whole_worker::start(
        whole_worker::config("a", 2),
        &SimulatedDisk::default(),
        rules(ERRORS),
        alone(),
        &format!("grpc://{}", backend.address),
        &mut registry,
    );
    let life = Life { worker, registry };
    // A debt of 100 spans, which a second does not pay off.
    let few = "type: rate_limiting, rate_limiting: {spans_per_second: 1, burst_capacity: 1}";
    life.worker.reload(rules(few)).await;
    life.send(0..1, false).await;
    for span in 0..100_u64 {
        let message = message(0..1, 1_000 + span, 1, 1);
        send(&life.worker, message).await;
    }
    life.send(0..1, true).await;
    life.undecided(0).await;
    exported(102, [&backend]).await;
    // Waits for a limit in debt, until there is none.
    life.send(1..2, false).await;
    life.send(1..2, true).await;
    let many = "type: rate_limiting, rate_limiting: {spans_per_second: 1000, burst_capacity: 1000}";
    life.undecided(1).await;
    life.worker.reload(rules(many)).await;
    life.undecided(0).await;
    exported(104, [&backend]).await;
    life.worker.reload(rules("type: always_sample")).await;
    life.send(2..3, false).await;
    life.send(2..3, true).await;
    life.undecided(0).await;
    exported(106, [&backend]).await;
    life.worker.stop(Duration::from_secs(5)).await;
}
