//! What a backend is told of how likely its traces were kept: a whole worker on a simulated disk,
//! asked and answering over gRPC.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailring::log::SimulatedDisk;
use tailring::net::admission::Budget;
use tailring::net::client::{ClientConfig, GrpcClient, Target};
use tailring::net::server::{Protocol, Server, ServerConfig, ServerMetrics};
use tailring::worker::{RecordPolicy, Worker, WorkerConfig};
use tokio::time::Instant;

use receiver::Receiver;
use whole_worker::LOCALHOST;

mod receiver;
mod whole_worker;

/// A worker with its door.
struct Running {
    worker: Arc<Worker>,
    client: GrpcClient,
    registry: Registry,
}

impl Running {
    async fn start(policies: &str, export: &str) -> Self {
        Self::recording(RecordPolicy::Off, policies, export).await
    }

    async fn recording(record_policy: RecordPolicy, policies: &str, export: &str) -> Self {
        let mut registry = Registry::default();
        let config = WorkerConfig {
            record_policy,
            ..whole_worker::config("a", 2)
        };
        let worker = whole_worker::start(
            config,
            &SimulatedDisk::default(),
            tailring::policy::parse(policies).unwrap().rules,
            whole_worker::view([("a", LOCALHOST)]),
            export,
            &mut registry,
        );
        let server = Server::bind(
            ServerConfig::new(Protocol::Grpc, LOCALHOST),
            worker.clone(),
            ServerMetrics::register(&mut registry),
            Budget::new(1 << 30),
        );
        let server = server.await.unwrap();
        let target = Target::plain(server.local_addr()).unwrap();
        tokio::spawn(server.serve(std::future::pending()));
        Self {
            worker,
            client: GrpcClient::new(target, ClientConfig::peer()),
            registry,
        }
    }

    async fn send(&self, spans: Vec<Span>) {
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource::default()),
                scope_spans: vec![ScopeSpans {
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let message = vec![request.encode_to_vec().into()];
        let within = Duration::from_secs(20);
        self.client
            .export(message, &HeaderMap::new(), within)
            .await
            .unwrap();
    }

    fn counted(&self, line: &str) {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        assert!(text.lines().any(|it| it == line), "{line}\n in {text}");
    }
}

/// Once so many spans came.
async fn exported(backend: &Receiver, spans: usize) -> Vec<Span> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut came = Vec::new();
        for got in backend.got().iter() {
            let scopes = got
                .request
                .resource_spans
                .iter()
                .flat_map(|it| &it.scope_spans);
            came.extend(scopes.flat_map(|it| it.spans.clone()));
        }
        if came.len() >= spans {
            return came;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {spans} spans came",
            came.len()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const C: u64 = 0xc0_0000_0000_0000;
const E: u64 = 0xe0_0000_0000_0000;

fn randomness(trace: u128) -> u64 {
    trace as u64 & ((1 << 56) - 1)
}

fn span(trace: u128, id: u64, state: &str) -> Span {
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        trace_state: state.to_owned(),
        ..Span::default()
    }
}

/// What `th` says: so many traces does this one stand for.
fn adjusted_count(state: &str) -> f64 {
    let th = state
        .split([',', ';', '='])
        .find_map(|it| it.strip_prefix("th:"))
        .unwrap();
    let rejected = u64::from_str_radix(&format!("{th:0<14}"), 16).unwrap();
    2f64.powi(56) / (2f64.powi(56) - rejected as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarter_of_the_traces_stands_for_all_of_them() {
    let backend = Receiver::start().await;
    let policies = "
decision_wait: 400ms
policies:
  - {name: quarter, type: probabilistic, probabilistic: {sampling_percentage: 25}}
";
    let running = Running::start(policies, &format!("grpc://{}", backend.address)).await;
    // Two thirds of 20,000 traces nobody sampled; of the others one in eight has come through a
    // sampler in its SDK. Each has two spans, one of them with a member of another vendor.
    let mut rng = SmallRng::seed_from_u64(3);
    let (mut unsampled, mut head_sampled) = (0, 0);
    let mut sent = BTreeMap::new();
    let mut spans = Vec::new();
    for number in 0..20_000u64 {
        let trace: u128 = rng.random();
        let states = if number % 3 > 0 {
            unsampled += 1;
            ["", "congo=t61rcWkgMzE"]
        } else {
            head_sampled += 1;
            if randomness(trace) < E {
                continue;
            }
            ["ot=th:e", "congo=t61rcWkgMzE,ot=th:e;x:1"]
        };
        for (index, state) in states.into_iter().enumerate() {
            let id = 2 * number + index as u64 + 1;
            spans.push(span(trace, id, state));
            sent.insert(id, (trace, state));
        }
        if spans.len() >= 1000 {
            running.send(std::mem::take(&mut spans)).await;
        }
    }
    running.send(spans).await;

    let kept = sent
        .values()
        .filter(|(trace, _)| randomness(*trace) >= C)
        .count();
    let got = exported(&backend, kept).await;
    assert_eq!(got.len(), kept);
    let (mut of_unsampled, mut of_head_sampled) = (0.0, 0.0);
    for span in &got {
        let id = u64::from_be_bytes(span.span_id[..].try_into().unwrap());
        let (trace, state) = sent.remove(&id).expect("each span once");
        assert!(randomness(trace) >= C);
        let (expect, count) = match state {
            "" => ("ot=th:c", &mut of_unsampled),
            "congo=t61rcWkgMzE" => ("ot=th:c,congo=t61rcWkgMzE", &mut of_unsampled),
            held => (held, &mut of_head_sampled),
        };
        assert_eq!(span.trace_state, expect);
        *count += adjusted_count(&span.trace_state) / 2.0;
    }
    // Of n traces kept with p, n is estimated with a standard error of sqrt(n (1 - p) / p).
    for (estimate, traces, share) in [
        (of_unsampled, unsampled, 0.25),
        (of_head_sampled, head_sampled, 0.125),
    ] {
        let error = (f64::from(traces) * (1.0 - share) / share).sqrt();
        let off = (estimate - f64::from(traces)).abs();
        assert!(off < 4.0 * error, "{estimate} for {traces}, error {error}");
        assert!(off > 0.0, "a sample that is no sample");
    }
    let reasons = [
        "probability_unknown",
        "upstream_unknown",
        "malformed",
        "inconsistent",
        "overflow",
    ];
    for reason in reasons {
        running.counted(&format!(
            "worker_weights_unwritten_total{{reason=\"{reason}\"}} 0"
        ));
    }
    assert_eq!(running.worker.stop(Duration::from_secs(20)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_span_of_a_trace_that_was_sure_to_be_kept_says_so_in_a_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("traces.jsonl");
    let policies = "
decision_wait: 100ms
policies:
  - {name: all, type: always_sample}
";
    let running = Running::start(policies, &format!("file:{}", path.display())).await;
    let trace = 0x0123_4567_89ab_cdef_00d0_0000_0000_0000_u128;
    let states = ["", "ot=th:c", "ot=th:e;x:1", "ot=th:C", "a=1"];
    let spans = states
        .iter()
        .zip(1..)
        .map(|(state, id)| span(trace, id, state));
    running.send(spans.collect()).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let line = loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.ends_with('\n') {
            break text;
        }
        assert!(Instant::now() < deadline, "nothing was written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    let spans = json["resourceSpans"][0]["scopeSpans"][0]["spans"]
        .as_array()
        .unwrap();
    let got: Vec<_> = spans
        .iter()
        .map(|it| it["traceState"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(got, ["ot=th:0", "ot=th:c", "ot=x:1", "", "ot=th:0,a=1"]);
    assert_eq!(running.worker.stop(Duration::from_secs(20)).await, 0);
    running.counted("worker_weights_unwritten_total{reason=\"inconsistent\"} 1");
    running.counted("worker_weights_unwritten_total{reason=\"malformed\"} 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_small_spans_stay_within_their_bound_with_thresholds_in_them() {
    let backend = Receiver::start().await;
    let policies = "
decision_wait: 1s
policies:
  - {name: all, type: always_sample}
";
    let running = Running::start(policies, &format!("grpc://{}", backend.address)).await;
    // A threshold makes these spans a third longer: without a thought of it, three of these traces
    // would go into one message.
    for trace in 1..=4 {
        running
            .send((1..=9_600).map(|id| span(trace, id, "")).collect())
            .await;
    }
    // And this one, longer than a message, would be cut too late.
    let long = |id| Span {
        name: "x".repeat(90),
        ..span(5, id, "")
    };
    running.send((1..=12_000).map(long).collect()).await;
    let spans = exported(&backend, 4 * 9_600 + 12_000).await;
    assert!(spans.iter().all(|span| span.trace_state == "ot=th:0"));
    let longest = backend
        .got()
        .iter()
        .map(|got| got.request.encoded_len())
        .max()
        .unwrap();
    // Envelopes are not counted.
    assert!(longest <= (1 << 20) + 100, "{longest} bytes");
    assert!(longest > 1_020_000, "{longest} bytes");
    assert_eq!(running.worker.stop(Duration::from_secs(20)).await, 0);
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// What each span has, by its ID: its attributes, and those of its scope.
fn attributes(backend: &Receiver) -> BTreeMap<u64, (Vec<KeyValue>, Vec<KeyValue>)> {
    let mut found = BTreeMap::new();
    for got in backend.got().iter() {
        let scopes = got
            .request
            .resource_spans
            .iter()
            .flat_map(|it| &it.scope_spans);
        for scope in scopes {
            let of_scope = scope.scope.clone().unwrap_or_default().attributes;
            for span in &scope.spans {
                let id = u64::from_be_bytes(span.span_id[..].try_into().unwrap());
                found.insert(id, (span.attributes.clone(), of_scope.clone()));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_scopes_say_which_policy_kept_them_late_ones_too() {
    let policies = "
decision_wait: 400ms
weights: sample_rate
policies:
  - {name: slow, type: latency, latency: {threshold_ms: 1000}}
  - {name: a third, type: probabilistic, probabilistic: {sampling_percentage: 33.3}}
";
    let text = |text: &str| Value::StringValue(text.to_owned());
    let of = |key: &str, value: &str| attribute(key, text(value));
    let high = 0xff_0000_0000_0000_u128;
    for record in [
        RecordPolicy::Off,
        RecordPolicy::Tailring,
        RecordPolicy::Collector,
    ] {
        let backend = Receiver::start().await;
        let export = format!("grpc://{}", backend.address);
        let running = Running::recording(record, policies, &export).await;
        // Two traces, and one span of the first with what an earlier worker said.
        let held = vec![
            of("a", "b"),
            of("tailring.policy", "old"),
            attribute("SampleRate", Value::IntValue(1)),
        ];
        let slow = Span {
            start_time_unix_nano: 1,
            end_time_unix_nano: 2_000_000_001,
            attributes: held,
            ..span((7 << 64) | high, 1, "")
        };
        let lucky = span((8 << 64) | high, 2, "");
        running.send(vec![slow, lucky]).await;
        exported(&backend, 2).await;
        running.send(vec![span((8 << 64) | high, 3, "")]).await;
        exported(&backend, 3).await;

        let found = attributes(&backend);
        let rate = |id: u64| {
            let rate = found[&id].0.iter().find(|it| it.key == "SampleRate");
            match rate.and_then(|it| it.value.clone()?.value) {
                Some(Value::IntValue(rate)) => rate,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(rate(1), 1);
        assert!([3, 4].contains(&rate(2)), "{}", rate(2));
        assert_eq!(rate(3), rate(2), "late spans agree");
        let without_rate = |id: u64| {
            let all = found[&id].0.iter();
            all.filter(|it| it.key != "SampleRate")
                .cloned()
                .collect::<Vec<_>>()
        };
        let (slow, third) = match record {
            RecordPolicy::Off => (vec![of("a", "b"), of("tailring.policy", "old")], vec![]),
            _ => (
                vec![of("a", "b"), of("tailring.policy", "slow")],
                vec![of("tailring.policy", "a third")],
            ),
        };
        assert_eq!(without_rate(1), slow);
        assert_eq!(without_rate(2), third);
        assert_eq!(without_rate(3), third);
        let scopes = match record {
            RecordPolicy::Collector => [
                vec![of("tailsampling.policy", "slow")],
                vec![of("tailsampling.policy", "a third")],
                vec![
                    of("tailsampling.policy", "a third"),
                    attribute("tailsampling.cached_decision", Value::BoolValue(true)),
                ],
            ],
            _ => [vec![], vec![], vec![]],
        };
        for (id, of_scope) in (1..).zip(scopes) {
            assert_eq!(found[&id].1, of_scope, "{record:?}, span {id}");
        }
        assert_eq!(running.worker.stop(Duration::from_secs(20)).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_without_an_answer_are_counted_in_every_error_mode() {
    let backend = Receiver::start().await;
    let policies = r#"
decision_wait: 100ms
policies:
  - {name: all, type: always_sample}
  - name: ignoring
    type: and
    and:
      and_sub_policy:
        - {name: inner, type: ottl_condition, ottl_condition: {error_mode: ignore, span: ['1 / 0 == 1']}}
  - {name: silent, type: ottl_condition, ottl_condition: {error_mode: silent, span: ['attributes["n"] / 0 == 1', 'name == "x"']}}
  - {name: strict, type: ottl_condition, ottl_condition: {error_mode: propagate, span: ['attributes["n"] / 0 == 1']}}
  - {name: well, type: ottl_condition, ottl_condition: {span: ['attributes["n"] == 1']}}
"#
    .replace("'1 / 0 == 1'", "'attributes[\"n\"] / 0 == 1'");
    let running = Running::start(&policies, &format!("grpc://{}", backend.address)).await;
    let spans = (1..=2).map(|id| Span {
        attributes: vec![attribute("n", Value::IntValue(5))],
        ..span(7, id, "")
    });
    running.send(spans.collect()).await;
    exported(&backend, 2).await;
    // Without a vote after the first.
    for (policy, errors) in [
        ("ignoring", 2),
        ("silent", 2),
        ("strict", 1),
        ("well", 0),
        ("all", 0),
    ] {
        running.counted(&format!(
            "worker_policy_evaluation_errors_total{{policy=\"{policy}\"}} {errors}"
        ));
    }
    assert_eq!(running.worker.stop(Duration::from_secs(20)).await, 0);
}
