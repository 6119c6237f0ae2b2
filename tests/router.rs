//! The router against real workers: servers on port 0 that remember what they were sent and answer
//! as a test tells them to.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailring::cluster::{View, ViewHandle};
use tailring::model::{Fingerprint, Member, TraceId};
use tailring::net::admission::Budget;
use tailring::net::metadata::RequestMetadata;
use tailring::net::server::{
    Accepted, Ingest, IngestRequest, Protocol, Server, ServerConfig, ServerMetrics,
};
use tailring::net::status::{Refusal, RefusalReason};
use tailring::ring::Seed;
use tailring::router::{Router, RouterConfig, RouterMetrics};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

const SEED: Seed = Seed(7);
const CLUSTER: &str = "test";

// --- Fake workers ---

/// What a worker does with a request.
enum Reaction {
    Ok,
    /// OK of an OTLP receiver that is no worker.
    OkOfStranger,
    Partial(i64),
    Refuse(Status),
    /// Answers OK once the test lets one through.
    Gate,
    Hang,
}

/// One request as a worker saw it.
#[derive(Debug, Clone)]
struct Seen {
    request: ExportTraceServiceRequest,
    metadata: RequestMetadata,
}

type React = Box<dyn Fn(&Seen) -> Reaction + Send + Sync>;

struct WorkerState {
    seen: Mutex<Vec<Seen>>,
    react: Mutex<React>,
    gate: Semaphore,
}

#[derive(Clone)]
struct Worker {
    member: Member,
    address: SocketAddr,
    state: Arc<WorkerState>,
}

impl Worker {
    async fn start(name: &str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let worker = Self {
            member: Member::parse(name).unwrap(),
            address: listener.local_addr().unwrap(),
            state: Arc::new(WorkerState {
                seen: Mutex::default(),
                react: Mutex::new(Box::new(|_| Reaction::Ok)),
                gate: Semaphore::new(0),
            }),
        };
        let service = TraceServiceServer::new(worker.clone()).max_decoding_message_size(64 << 20);
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        worker
    }

    fn react(&self, react: impl Fn(&Seen) -> Reaction + Send + Sync + 'static) {
        *self.state.react.lock().unwrap() = Box::new(react);
    }

    /// All requests but probes, which carry nothing.
    fn seen(&self) -> Vec<Seen> {
        let seen = self.state.seen.lock().unwrap();
        let real = seen.iter().filter(|s| !s.request.resource_spans.is_empty());
        real.cloned().collect()
    }

    fn probes(&self) -> usize {
        let all = self.state.seen.lock().unwrap().len();
        all - self.seen().len()
    }

    fn spans(&self) -> Vec<SpanKey> {
        let seen = self.seen();
        seen.iter().flat_map(|s| keys(&s.request)).collect()
    }

    fn let_through(&self, requests: usize) {
        self.state.gate.add_permits(requests);
    }
}

#[tonic::async_trait]
impl TraceService for Worker {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        let seen = Seen {
            metadata: RequestMetadata::read_from(&headers).unwrap(),
            request: request.into_inner(),
        };
        let reaction = (self.state.react.lock().unwrap())(&seen);
        self.state.seen.lock().unwrap().push(seen);
        let is_worker = !matches!(reaction, Reaction::OkOfStranger);
        let partial_success = match reaction {
            Reaction::Ok | Reaction::OkOfStranger => None,
            Reaction::Partial(rejected_spans) => Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: "of another version".into(),
            }),
            Reaction::Refuse(status) => return Err(status),
            Reaction::Gate => {
                self.state.gate.acquire().await.unwrap().forget();
                None
            }
            Reaction::Hang => std::future::pending().await,
        };
        let mut response = Response::new(ExportTraceServiceResponse { partial_success });
        if is_worker {
            let view = Fingerprint(1).to_string().parse().unwrap();
            response.metadata_mut().insert("tailring-view", view);
        }
        Ok(response)
    }
}

// --- Payloads ---

type SpanKey = (Vec<u8>, Vec<u8>);

fn keys(request: &ExportTraceServiceRequest) -> Vec<SpanKey> {
    spans_of(request).into_iter().map(|(key, _)| key).collect()
}

/// Each span with all that says where it came from.
fn spans_of(request: &ExportTraceServiceRequest) -> Vec<(SpanKey, ResourceSpans)> {
    let mut spans = Vec::new();
    for resource in &request.resource_spans {
        for scope in &resource.scope_spans {
            for span in &scope.spans {
                let alone = ResourceSpans {
                    scope_spans: vec![ScopeSpans {
                        spans: vec![span.clone()],
                        ..scope.clone()
                    }],
                    ..resource.clone()
                };
                spans.push(((span.trace_id.clone(), span.span_id.clone()), alone));
            }
        }
    }
    spans
}

fn text(value: &str) -> Option<AnyValue> {
    Some(AnyValue {
        value: Some(any_value::Value::StringValue(value.into())),
    })
}

/// One request with one span for each of the traces, spread over two services.
fn request(rng: &mut StdRng, traces: &[TraceId], name: &str, name_bytes: usize) -> Vec<u8> {
    let mut services: BTreeMap<bool, Vec<Span>> = BTreeMap::new();
    for trace in traces {
        let span = Span {
            trace_id: trace.as_bytes().to_vec(),
            span_id: rng.random::<[u8; 8]>().to_vec(),
            name: format!("{name}{}", "x".repeat(name_bytes)),
            start_time_unix_nano: rng.random(),
            ..Span::default()
        };
        services.entry(rng.random()).or_default().push(span);
    }
    let resource_spans = services.into_iter().map(|(service, spans)| ResourceSpans {
        resource: Some(Resource {
            attributes: vec![KeyValue {
                key: "service.name".into(),
                value: text(if service { "agent" } else { "tools" }),
                ..KeyValue::default()
            }],
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: "scope".into(),
                ..InstrumentationScope::default()
            }),
            spans,
            schema_url: "https://example.com/scope".into(),
        }],
        schema_url: "https://example.com/resource".into(),
    });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
    .encode_to_vec()
}

// --- The router under test ---

struct Fixture {
    router: Arc<Router>,
    view: ViewHandle,
    budget: Arc<Budget>,
    registry: Registry,
    rng: StdRng,
}

fn view_of<'a>(workers: impl IntoIterator<Item = &'a Worker>) -> View {
    let addresses = workers.into_iter().map(|w| (w.member.clone(), w.address));
    View::new(addresses.collect(), SEED, CLUSTER)
}

fn quick() -> RouterConfig {
    RouterConfig {
        probe_interval: Duration::from_millis(20),
        ..RouterConfig::default()
    }
}

/// For tests that never want a second try because of a slow machine.
fn patient() -> RouterConfig {
    RouterConfig {
        attempt_timeout: Duration::from_secs(60),
        request_timeout_max: Duration::from_secs(60),
        ..quick()
    }
}

impl Fixture {
    fn new<'a>(config: RouterConfig, workers: impl IntoIterator<Item = &'a Worker>) -> Self {
        let mut registry = Registry::with_prefix("tailring");
        let metrics = RouterMetrics::register(&mut registry);
        let view = ViewHandle::fixed(view_of(workers));
        Self {
            router: Router::new(config, view.clone(), metrics),
            view,
            budget: Budget::new(1 << 30),
            registry,
            rng: StdRng::seed_from_u64(11),
        }
    }

    fn send(&self, message: Vec<u8>) -> JoinHandle<Result<Accepted, Refusal>> {
        self.send_within(message, None)
    }

    fn send_within(
        &self,
        message: Vec<u8>,
        timeout: Option<Duration>,
    ) -> JoinHandle<Result<Accepted, Refusal>> {
        let router = Arc::clone(&self.router);
        let request = IngestRequest {
            permit: self.budget.try_take(message.len() as u64).unwrap(),
            message: message.into(),
            metadata: RequestMetadata {
                timeout,
                ..RequestMetadata::default()
            },
        };
        tokio::spawn(async move { router.ingest(request).await })
    }

    /// A request with one span of one trace that `owner` owns.
    fn for_owner(&mut self, owner: &Worker, name: &str, name_bytes: usize) -> Vec<u8> {
        let trace = self.trace_of(owner);
        request(&mut self.rng, &[trace], name, name_bytes)
    }

    fn trace_of(&mut self, owner: &Worker) -> TraceId {
        let view = self.view.load();
        loop {
            let trace = self.trace();
            if view.table.owner(trace) == Some(&owner.member) {
                return trace;
            }
        }
    }

    fn trace(&mut self) -> TraceId {
        TraceId::new(self.rng.random()).unwrap()
    }

    fn traces(&mut self, count: usize) -> Vec<TraceId> {
        (0..count).map(|_| self.trace()).collect()
    }

    /// `None` when there is no such series.
    fn metric(&self, series: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("tailring_router_{series} ")));
        line.map(|value| value.parse().unwrap())
    }

    fn rpcs(&self, outcome: &str) -> f64 {
        self.metric(&format!("rpcs_total{{outcome=\"{outcome}\"}}"))
            .unwrap()
    }

    fn of_lane(&self, series: &str, worker: &Worker) -> Option<f64> {
        self.metric(&format!("{series}{{member=\"{}\"}}", worker.member))
    }

    /// Parts in the lane, in flight too, when each is about `part_bytes` long.
    async fn until_lane_holds(&self, worker: &Worker, bytes_min: f64) {
        let what = format!("{bytes_min} bytes in the lane of {}", worker.member);
        until(&what, || {
            self.of_lane("lane_bytes", worker).unwrap() >= bytes_min
        })
        .await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let patience = Duration::from_secs(20);
    assert!(
        tokio::time::timeout(patience, poll).await.is_ok(),
        "never came: {what}"
    );
}

async fn workers(names: &[&str]) -> Vec<Worker> {
    let mut workers = Vec::new();
    for name in names {
        workers.push(Worker::start(name).await);
    }
    workers
}

/// A worker that is not there: its port was free a moment ago.
async fn dead(name: &str) -> Worker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    Worker {
        member: Member::parse(name).unwrap(),
        address,
        state: Arc::new(WorkerState {
            seen: Mutex::default(),
            react: Mutex::new(Box::new(|_| Reaction::Ok)),
            gate: Semaphore::new(0),
        }),
    }
}

fn accepted(result: Result<Result<Accepted, Refusal>, tokio::task::JoinError>) {
    assert_eq!(result.unwrap(), Ok(Accepted::default()));
}

fn refused(result: Result<Result<Accepted, Refusal>, tokio::task::JoinError>) -> Refusal {
    result.unwrap().unwrap_err()
}

// --- Placement ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_span_reaches_its_owner_exactly_once_and_unchanged() {
    let workers = workers(&["w-0", "w-1", "w-2", "w-3", "w-4"]).await;
    let mut fixture = Fixture::new(patient(), &workers);
    let mut sent = BTreeMap::new();
    let mut answers = Vec::new();
    for _ in 0..60 {
        let traces = fixture.traces(40);
        let message = request(&mut fixture.rng, &traces, "span", 20);
        let decoded = ExportTraceServiceRequest::decode(message.as_slice()).unwrap();
        sent.extend(spans_of(&decoded));
        answers.push(fixture.send(message));
    }
    for answer in answers {
        accepted(answer.await);
    }
    let view = fixture.view.load();
    let mut got = BTreeMap::new();
    for worker in &workers {
        for seen in worker.seen() {
            assert_eq!(seen.metadata.to, Some((worker.member.clone(), None)));
            assert_eq!(seen.metadata.view, Some(view.fingerprint()));
            assert_eq!(
                (seen.metadata.hop, &seen.metadata.surrogate_for),
                (0, &None)
            );
            for (key, span) in spans_of(&seen.request) {
                let trace = TraceId::new(key.0.clone().try_into().unwrap()).unwrap();
                assert_eq!(view.table.owner(trace), Some(&worker.member));
                assert!(got.insert(key, span).is_none(), "a span came twice");
            }
        }
    }
    assert_eq!(sent.len(), 2400);
    assert!(got == sent, "what came is not what was sent");
    assert_eq!(fixture.metric("spans_received_total"), Some(2400.0));
    assert_eq!(fixture.metric("spans_accepted_total"), Some(2400.0));
    assert_eq!(
        fixture.metric("requests_total{outcome=\"accepted\"}"),
        Some(60.0)
    );
    assert_eq!(fixture.budget.taken_bytes(), 0, "every permit came back");
}

#[tokio::test]
async fn rejected_spans_are_a_partial_success_and_the_others_arrive() {
    let workers = workers(&["w-0", "w-1"]).await;
    let mut fixture = Fixture::new(patient(), &workers);
    let traces = fixture.traces(6);
    let message = request(&mut fixture.rng, &traces, "span", 0);
    let mut request = ExportTraceServiceRequest::decode(message.as_slice()).unwrap();
    let good = keys(&request).into_iter().collect::<BTreeSet<_>>();
    let spans = &mut request.resource_spans[0].scope_spans[0].spans;
    for trace_id in [vec![1; 15], vec![0; 16]] {
        let bad = Span {
            trace_id,
            span_id: vec![1; 8],
            ..Span::default()
        };
        spans.insert(0, bad);
    }
    let answer = fixture
        .send(request.encode_to_vec())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.rejected_spans, 2);
    assert!(answer.message.contains("2"), "{}", answer.message);
    let got: Vec<_> = workers.iter().flat_map(Worker::spans).collect();
    assert_eq!(got.len(), good.len());
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), good);
    for reason in ["trace_id_length", "trace_id_zero"] {
        let series = format!("spans_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(fixture.metric(&series), Some(1.0), "{reason}");
    }
    assert_eq!(fixture.metric("spans_accepted_total"), Some(6.0));

    // Nothing valid at all is still no reason to send the rest again.
    let scope = &mut request.resource_spans[0].scope_spans[0];
    scope.spans.truncate(2);
    request.resource_spans.truncate(1);
    let answer = fixture
        .send(request.encode_to_vec())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.rejected_spans, 2);
}

#[tokio::test]
async fn what_cannot_be_read_or_is_too_much_is_refused_and_nothing_is_accepted_as_it_is() {
    let worker = Worker::start("w-0").await;
    let config = RouterConfig {
        limits: tailring::wire::ScanLimits {
            spans_max: 10,
            ..Default::default()
        },
        ..patient()
    };
    let mut fixture = Fixture::new(config, [&worker]);
    accepted(fixture.send(Vec::new()).await);
    let refusal = refused(fixture.send(b"\x0a\xff".to_vec()).await);
    assert_eq!(refusal.reason, RefusalReason::InvalidRequest);
    let traces = fixture.traces(11);
    let message = request(&mut fixture.rng, &traces, "span", 0);
    let refusal = refused(fixture.send(message).await);
    assert_eq!(refusal.reason, RefusalReason::TooManySpans);
    assert!(worker.seen().is_empty());
    assert_eq!(
        fixture.metric("requests_total{outcome=\"invalid\"}"),
        Some(2.0)
    );
}

/// One resource with a header of `header_bytes` above one span for each of the traces.
fn below_one_header(rng: &mut StdRng, traces: &[TraceId], header_bytes: usize) -> Vec<u8> {
    let mut request =
        ExportTraceServiceRequest::decode(&request(rng, traces, "span", 0)[..]).unwrap();
    let spans = request
        .resource_spans
        .iter_mut()
        .flat_map(|resource| std::mem::take(&mut resource.scope_spans[0].spans))
        .collect();
    request.resource_spans.truncate(1);
    let resource = &mut request.resource_spans[0];
    resource.resource.as_mut().unwrap().attributes[0].value = text(&"x".repeat(header_bytes));
    resource.scope_spans[0].spans = spans;
    request.encode_to_vec()
}

#[tokio::test]
async fn headers_that_are_copied_into_every_part_are_paid_for_while_the_parts_live() {
    const HEADER: u64 = 1 << 20;
    let workers = workers(&["w-0", "w-1", "w-2", "w-3"]).await;
    for worker in &workers {
        worker.react(|_| Reaction::Gate);
    }
    let mut fixture = Fixture::new(patient(), &workers);
    let traces: Vec<_> = workers.iter().map(|w| fixture.trace_of(w)).collect();
    let message = below_one_header(&mut fixture.rng, &traces, HEADER as usize);

    fixture.budget = Budget::new(4 * HEADER);
    let refusal = refused(fixture.send(message.clone()).await);
    assert_eq!(refusal.reason, RefusalReason::MemoryPressure);
    assert!(refusal.retry_after.is_some());
    assert_eq!(fixture.budget.taken_bytes(), 0);
    assert!(workers.iter().all(|worker| worker.seen().is_empty()));

    fixture.budget = Budget::new(4 * HEADER + 10_000);
    let answer = fixture.send(message);
    for worker in &workers {
        until("the part", || worker.seen().len() == 1).await;
    }
    let taken = fixture.budget.taken_bytes();
    assert!(taken >= 4 * HEADER, "{taken}");
    for worker in &workers {
        worker.let_through(1);
    }
    accepted(answer.await);
    until("the bytes are given back", || {
        fixture.budget.taken_bytes() == 0
    })
    .await;
}

#[tokio::test]
async fn headers_are_paid_for_when_a_part_is_cut_again_for_stand_ins() {
    const HEADER: u64 = 1 << 20;
    let mut workers = workers(&["w-0", "w-1", "w-2"]).await;
    for worker in &workers {
        worker.react(|_| Reaction::Gate);
    }
    workers.push(dead("w-3").await);
    let mut fixture = Fixture::new(patient(), &workers);
    let traces: Vec<_> = (0..40).map(|_| fixture.trace_of(&workers[3])).collect();
    let message = below_one_header(&mut fixture.rng, &traces, HEADER as usize);

    fixture.budget = Budget::new(5 * HEADER);
    let answer = fixture.send(message);
    for worker in &workers[..3] {
        until("the part", || worker.seen().len() == 1).await;
    }
    let taken = fixture.budget.taken_bytes();
    assert!(
        (3 * HEADER..4 * HEADER).contains(&taken),
        "one part was cut into three: {taken}"
    );
    for worker in &workers[..3] {
        worker.let_through(1);
    }
    accepted(answer.await);
    until("the bytes are given back", || {
        fixture.budget.taken_bytes() == 0
    })
    .await;
}

#[tokio::test]
async fn a_router_is_not_the_worker_that_another_router_means() {
    let worker = Worker::start("w-0").await;
    let mut fixture = Fixture::new(patient(), [&worker]);
    let message = fixture.for_owner(&worker, "span", 0);
    let request = IngestRequest {
        permit: fixture.budget.try_take(message.len() as u64).unwrap(),
        message: message.into(),
        metadata: RequestMetadata {
            to: Some((worker.member.clone(), None)),
            ..RequestMetadata::default()
        },
    };
    let refusal = refused(Ok(fixture.router.ingest(request).await));
    assert_eq!(refusal.reason, RefusalReason::WrongMember);
    assert!(worker.seen().is_empty());
}

#[tokio::test]
async fn an_empty_ring_is_a_reason_to_come_again() {
    let mut fixture = Fixture::new(patient(), []);
    let traces = fixture.traces(1);
    let message = request(&mut fixture.rng, &traces, "span", 0);
    let refusal = refused(fixture.send(message).await);
    assert_eq!(refusal.reason, RefusalReason::NoMembers);
    assert!(refusal.retry_after.is_some());
}

// --- Lanes ---

#[tokio::test]
async fn parts_that_queue_up_behind_an_rpc_share_the_next_one() {
    let worker = Worker::start("w-0").await;
    worker.react(|_| Reaction::Gate);
    let mut fixture = Fixture::new(patient(), [&worker]);
    let mut answers = vec![];
    for _ in 0..20 {
        let message = fixture.for_owner(&worker, "span", 2000);
        answers.push(fixture.send(message));
        if answers.len() == 1 {
            until("the first RPC", || worker.seen().len() == 1).await;
        }
    }
    fixture.until_lane_holds(&worker, 20.0 * 2000.0).await;
    assert_eq!(worker.seen().len(), 1, "one RPC in flight at a time");
    worker.let_through(2);
    for answer in answers {
        accepted(answer.await);
    }
    let counts: Vec<_> = worker
        .seen()
        .iter()
        .map(|s| keys(&s.request).len())
        .collect();
    assert_eq!(counts, [1, 19]);
    assert_eq!(fixture.of_lane("lane_bytes", &worker), Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_rpc_is_at_most_four_mebibytes_unless_one_part_alone_is_longer() {
    let worker = Worker::start("w-0").await;
    worker.react(|_| Reaction::Gate);
    let mut fixture = Fixture::new(patient(), [&worker]);
    let mut answers = vec![];
    for megabytes in [1, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1] {
        let message = fixture.for_owner(&worker, "span", megabytes << 20);
        answers.push(fixture.send(message));
        if answers.len() == 1 {
            until("the first RPC", || worker.seen().len() == 1).await;
        }
    }
    fixture.until_lane_holds(&worker, f64::from(15 << 20)).await;
    worker.let_through(100);
    for answer in answers {
        accepted(answer.await);
    }
    let mut shared = 0;
    for seen in worker.seen() {
        let spans = keys(&seen.request).len();
        let bytes = seen.request.encoded_len();
        assert!(
            spans == 1 || bytes <= 4 << 20,
            "{spans} spans, {bytes} bytes"
        );
        shared += usize::from(spans > 1);
    }
    assert!(shared >= 2, "nothing was concatenated");
    assert_eq!(worker.spans().len(), 11);
}

#[tokio::test]
async fn a_poison_part_is_found_and_only_its_client_is_told() {
    let worker = Worker::start("w-0").await;
    let is_poison = |span: &Span| span.name.starts_with("poison");
    worker.react(move |seen| {
        let mut spans = seen.request.resource_spans.iter();
        let spans = spans
            .by_ref()
            .flat_map(|r| r.scope_spans.iter().flat_map(|s| &s.spans));
        let names: Vec<_> = spans.collect();
        if names.iter().any(|span| span.name.starts_with("first")) {
            Reaction::Gate
        } else if names.into_iter().any(is_poison) {
            Reaction::Refuse(Status::invalid_argument("I know no such field"))
        } else {
            Reaction::Ok
        }
    });
    let mut fixture = Fixture::new(patient(), [&worker]);
    let message = fixture.for_owner(&worker, "first", 0);
    let first = fixture.send(message);
    until("the first RPC", || worker.seen().len() == 1).await;
    let mut answers = vec![];
    for name in ["good", "good", "poison", "good"] {
        let message = fixture.for_owner(&worker, name, 2000);
        answers.push((name, fixture.send(message)));
    }
    fixture.until_lane_holds(&worker, 8000.0).await;
    worker.let_through(1);
    accepted(first.await);
    for (name, answer) in answers {
        if name == "good" {
            accepted(answer.await);
        } else {
            let refusal = refused(answer.await);
            assert_eq!(refusal.reason, RefusalReason::InvalidRequest);
            assert!(refusal.detail.contains("I know no such field"));
            assert_eq!(refusal.retry_after, None);
        }
    }
    let counts: Vec<_> = worker
        .seen()
        .iter()
        .map(|s| keys(&s.request).len())
        .collect();
    assert_eq!(counts, [1, 4, 1, 1, 1, 1]);
    assert_eq!(fixture.metric("isolations_total"), Some(1.0));
    assert_eq!(fixture.of_lane("circuit_open", &worker), Some(0.0));
}

#[tokio::test]
async fn when_one_part_is_never_taken_the_other_parts_arrive_before_the_client_is_told() {
    let workers = workers(&["w-0", "w-1"]).await;
    workers[0].react(|_| Reaction::Refuse(Status::invalid_argument("no")));
    workers[1].react(|_| Reaction::Gate);
    let mut fixture = Fixture::new(patient(), &workers);
    let traces = [fixture.trace_of(&workers[0]), fixture.trace_of(&workers[1])];
    let message = request(&mut fixture.rng, &traces, "span", 0);
    let answer = fixture.send(message);
    until("the refusal", || fixture.rpcs("invalid") == 1.0).await;
    until("the other part", || workers[1].seen().len() == 1).await;
    assert!(!answer.is_finished());
    workers[1].let_through(1);
    assert_eq!(refused(answer.await).reason, RefusalReason::InvalidRequest);
}

#[tokio::test]
async fn a_workers_partial_success_reaches_the_client_that_it_concerns() {
    let worker = Worker::start("w-0").await;
    worker.react(|seen| match seen.request.encode_to_vec() {
        bytes if bytes.windows(5).any(|w| w == b"first") => Reaction::Gate,
        bytes if bytes.windows(3).any(|w| w == b"odd") => Reaction::Partial(1),
        _ => Reaction::Ok,
    });
    let mut fixture = Fixture::new(patient(), [&worker]);
    let message = fixture.for_owner(&worker, "first", 0);
    let first = fixture.send(message);
    until("the first RPC", || worker.seen().len() == 1).await;
    let (even, odd) = (
        fixture.for_owner(&worker, "even", 2000),
        fixture.for_owner(&worker, "odd", 2000),
    );
    let (even, odd) = (fixture.send(even), fixture.send(odd));
    fixture.until_lane_holds(&worker, 4000.0).await;
    worker.let_through(1);
    accepted(first.await);
    accepted(even.await);
    let answer = odd.await.unwrap().unwrap();
    assert_eq!(answer.rejected_spans, 1);
    assert!(answer.message.contains("of another version"));
    assert_eq!(
        fixture.metric("spans_rejected_total{reason=\"worker\"}"),
        Some(1.0)
    );
    assert_eq!(fixture.metric("spans_accepted_total"), Some(2.0));
}

#[tokio::test]
async fn a_client_that_goes_away_takes_only_its_own_queued_part_with_it() {
    let worker = Worker::start("w-0").await;
    worker.react(|_| Reaction::Gate);
    let mut fixture = Fixture::new(patient(), [&worker]);
    let mut messages = vec![];
    for _ in 0..3 {
        messages.push(fixture.for_owner(&worker, "span", 3000));
    }
    let all: Vec<_> = messages
        .iter()
        .map(|m| keys(&ExportTraceServiceRequest::decode(m.as_slice()).unwrap())[0].clone())
        .collect();
    let mut messages = messages.into_iter().map(|message| fixture.send(message));
    let flying = messages.next().unwrap();
    until("the first RPC", || worker.seen().len() == 1).await;
    let (leaving, staying) = (messages.next().unwrap(), messages.next().unwrap());
    fixture.until_lane_holds(&worker, 9000.0).await;
    let held = fixture.of_lane("lane_bytes", &worker).unwrap();

    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    let less = fixture.of_lane("lane_bytes", &worker).unwrap();
    assert!(less <= held - 3000.0, "its bytes are given back at once");
    assert_eq!(fixture.metric("parts_cancelled_total"), Some(1.0));
    assert_eq!(
        fixture.metric("requests_total{outcome=\"client_gone\"}"),
        Some(1.0)
    );

    // The one in flight is left alone, and its bytes stay paid for while they are held.
    flying.abort();
    assert!(flying.await.unwrap_err().is_cancelled());
    assert!(fixture.budget.taken_bytes() >= 6000);
    worker.let_through(2);
    accepted(staying.await);
    assert_eq!(worker.spans(), [all[0].clone(), all[2].clone()]);
    until("the bytes", || fixture.budget.taken_bytes() == 0).await;
}

#[tokio::test]
async fn a_full_lane_is_a_reason_to_come_again_and_harms_no_other_lane() {
    let workers = workers(&["w-0", "w-1"]).await;
    workers[0].react(|_| Reaction::Gate);
    let config = RouterConfig {
        lane_bytes_max: 10_000,
        ..patient()
    };
    let mut fixture = Fixture::new(config, &workers);
    let message = fixture.for_owner(&workers[0], "span", 6000);
    let first = fixture.send(message);
    until("the first RPC", || workers[0].seen().len() == 1).await;
    let message = fixture.for_owner(&workers[0], "span", 6000);
    let refusal = refused(fixture.send(message).await);
    assert_eq!(refusal.reason, RefusalReason::LaneFull);
    assert!(refusal.retry_after.is_some());
    let message = fixture.for_owner(&workers[1], "span", 6000);
    accepted(fixture.send(message).await);
    workers[0].let_through(1);
    accepted(first.await);
    let message = fixture.for_owner(&workers[0], "span", 20_000);
    workers[0].let_through(1);
    accepted(fixture.send(message).await);
}

// --- Circuits and surrogates ---

#[tokio::test]
async fn a_dead_workers_traces_spread_over_the_others_and_the_client_sees_ok() {
    let mut workers = workers(&["w-0", "w-1", "w-2"]).await;
    workers.push(dead("w-3").await);
    let mut fixture = Fixture::new(patient(), &workers);
    let traces = fixture.traces(200);
    let message = request(&mut fixture.rng, &traces, "span", 0);
    accepted(fixture.send(message).await);

    let view = fixture.view.load();
    let without = view.table.without(&[workers[3].member.clone()]);
    let mut got = 0;
    let mut stood_in = 0;
    for worker in &workers[..3] {
        for seen in worker.seen() {
            for (trace, _) in keys(&seen.request) {
                let trace = TraceId::new(trace.try_into().unwrap()).unwrap();
                let owner = view.table.owner(trace).unwrap();
                let in_stead = (*owner != worker.member).then(|| owner.clone());
                assert_eq!(seen.metadata.surrogate_for, in_stead);
                // A ring of other members moves a few other slots too: those stay where they are.
                if in_stead.is_some() {
                    assert_eq!(*owner, workers[3].member);
                    assert_eq!(without.owner(trace), Some(&worker.member));
                }
                assert_eq!(seen.metadata.to, Some((worker.member.clone(), None)));
                stood_in += u32::from(in_stead.is_some());
                got += 1;
            }
        }
    }
    assert_eq!(got, 200);
    assert!(stood_in > 20, "{stood_in}");
    assert_eq!(
        fixture.metric("spans_surrogate_total"),
        Some(f64::from(stood_in))
    );
    assert_eq!(fixture.rpcs("unreachable"), 2.0);
    assert_eq!(
        fixture.metric("circuit_opens_total{cause=\"unreachable\"}"),
        Some(1.0)
    );
    assert_eq!(fixture.of_lane("circuit_open", &workers[3]), Some(1.0));

    // With the circuit open nobody asks the dead worker first.
    let message = fixture.for_owner(&workers[3], "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!(fixture.rpcs("unreachable"), 2.0);
}

#[tokio::test]
async fn nobody_waits_for_a_hung_worker_but_those_who_need_it() {
    let workers = workers(&["w-0", "w-1", "w-2"]).await;
    workers[0].react(|_| Reaction::Hang);
    let mut fixture = Fixture::new(patient(), &workers);
    let message = fixture.for_owner(&workers[0], "span", 0);
    let stuck = fixture.send(message);
    until("the hung RPC", || !workers[0].seen().is_empty()).await;
    for worker in &workers[1..] {
        let message = fixture.for_owner(worker, "span", 0);
        accepted(fixture.send(message).await);
    }
    assert!(!stuck.is_finished());
    assert_eq!(fixture.rpcs("timed_out"), 0.0);
}

#[tokio::test]
async fn a_hung_worker_costs_two_timeouts_and_then_its_traces_go_elsewhere() {
    let workers = workers(&["w-0", "w-1", "w-2"]).await;
    workers[0].react(|_| Reaction::Hang);
    let config = RouterConfig {
        attempt_timeout: Duration::from_secs(1),
        request_timeout_max: Duration::from_secs(60),
        probe_interval: Duration::from_secs(60),
        ..RouterConfig::default()
    };
    let mut fixture = Fixture::new(config, &workers);
    let mut stuck = vec![];
    for _ in 0..5 {
        let message = fixture.for_owner(&workers[0], "span", 0);
        stuck.push(fixture.send(message));
    }
    for answer in stuck {
        accepted(answer.await);
    }
    assert_eq!(fixture.rpcs("timed_out"), 2.0);
    assert_eq!(fixture.metric("rpcs_repeated_total"), Some(1.0));
    assert_eq!(
        fixture.metric("circuit_opens_total{cause=\"timed_out\"}"),
        Some(1.0)
    );
    let message = fixture.for_owner(&workers[0], "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!(fixture.rpcs("timed_out"), 2.0);
    assert_eq!(fixture.metric("spans_surrogate_total"), Some(6.0));
}

#[tokio::test]
async fn a_circuit_closes_when_the_worker_answers_a_probe() {
    let mut workers = workers(&["w-0", "w-1"]).await;
    workers.push(dead("w-2").await);
    let mut fixture = Fixture::new(quick(), &workers);
    let message = fixture.for_owner(&workers[2], "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!(fixture.of_lane("circuit_open", &workers[2]), Some(1.0));

    let risen = Worker::start_at("w-2", workers[2].address).await;
    until("the circuit closes", || {
        fixture.of_lane("circuit_open", &risen) == Some(0.0)
    })
    .await;
    assert_eq!(risen.probes(), 1);
    let message = fixture.for_owner(&risen, "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!(risen.spans().len(), 1);
    assert_eq!(risen.seen()[0].metadata.surrogate_for, None);
}

#[tokio::test]
async fn a_refusal_that_is_not_about_the_message_opens_the_circuit_at_once() {
    let workers = workers(&["w-0", "w-1"]).await;
    for status in [
        Status::unavailable("wrong_member: this is w-7"),
        Status::unimplemented("somebody else lives here"),
    ] {
        workers[0].react(move |_| Reaction::Refuse(status.clone()));
        let config = RouterConfig {
            probe_interval: Duration::from_secs(60),
            ..patient()
        };
        let mut fixture = Fixture::new(config, &workers);
        let message = fixture.for_owner(&workers[0], "span", 0);
        accepted(fixture.send(message).await);
        assert_eq!(fixture.rpcs("refused"), 1.0);
        assert_eq!(
            fixture.metric("circuit_opens_total{cause=\"refused\"}"),
            Some(1.0)
        );
        let last = workers[1].seen().pop().unwrap();
        assert_eq!(last.metadata.surrogate_for, Some(workers[0].member.clone()));
    }
}

#[tokio::test]
async fn an_ok_of_somebody_who_is_no_worker_acknowledges_nothing() {
    let workers = workers(&["w-0", "w-1", "w-2"]).await;
    workers[0].react(|_| Reaction::OkOfStranger);
    let mut fixture = Fixture::new(quick(), &workers);
    let message = fixture.for_owner(&workers[0], "span", 10);
    accepted(fixture.send(message).await);
    assert_eq!(workers[1].spans().len() + workers[2].spans().len(), 1);
    let opens = "circuit_opens_total{cause=\"refused\"}";
    assert_eq!(fixture.metric(opens), Some(1.0));
    // Nor does its answer to a probe say that the worker is back.
    until("it was asked again", || workers[0].probes() > 2).await;
    assert_eq!(fixture.of_lane("circuit_open", &workers[0]), Some(1.0));
}

#[tokio::test]
async fn a_surrogate_that_fails_too_is_replaced_until_nobody_is_left() {
    let mut workers = vec![dead("w-0").await, dead("w-1").await, dead("w-2").await];
    workers.push(Worker::start("w-3").await);
    let mut fixture = Fixture::new(patient(), &workers);
    let traces = fixture.traces(100);
    let message = request(&mut fixture.rng, &traces, "span", 0);
    accepted(fixture.send(message).await);
    let got: BTreeSet<_> = workers[3].spans().into_iter().collect();
    assert_eq!(got.len(), 100);

    let workers = [dead("w-0").await, dead("w-1").await];
    let mut fixture = Fixture::new(patient(), &workers);
    let traces = fixture.traces(100);
    let message = request(&mut fixture.rng, &traces, "span", 0);
    let refusal = refused(fixture.send(message).await);
    assert_eq!(refusal.reason, RefusalReason::WorkersUnavailable);
    assert!(refusal.retry_after.is_some());
}

#[tokio::test]
async fn a_clients_own_deadline_ends_its_request() {
    let worker = Worker::start("w-0").await;
    worker.react(|_| Reaction::Hang);
    let mut fixture = Fixture::new(patient(), [&worker]);
    let message = fixture.for_owner(&worker, "span", 0);
    let answer = fixture.send_within(message, Some(Duration::from_millis(200)));
    let refusal = refused(answer.await);
    assert_eq!(refusal.reason, RefusalReason::WorkersUnavailable);
    assert!(refusal.detail.contains("w-0"), "{}", refusal.detail);
}

/// A worker without room, behind the real server.
struct NoRoom(RefusalReason);

impl Ingest for NoRoom {
    async fn ingest(self: &Arc<Self>, _: IngestRequest) -> Result<Accepted, Refusal> {
        Err(Refusal {
            retry_after: Some(Duration::from_secs(7)),
            ..Refusal::new(self.0, "come again")
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(1)
    }
}

#[tokio::test]
async fn back_pressure_goes_to_the_client_and_not_to_a_surrogate() {
    for reason in [
        RefusalReason::LogFull,
        RefusalReason::MemoryPressure,
        RefusalReason::ShardBusy,
    ] {
        let mut full = dead("w-0").await;
        let config = ServerConfig::new(Protocol::Grpc, "127.0.0.1:0".parse().unwrap());
        let metrics = ServerMetrics::register(&mut Registry::default());
        let server = Server::bind(
            config,
            Arc::new(NoRoom(reason)),
            metrics,
            Budget::new(1 << 30),
        )
        .await
        .unwrap();
        full.address = server.local_addr();
        tokio::spawn(server.serve(std::future::pending()));
        let workers = [full, Worker::start("w-1").await];
        let mut fixture = Fixture::new(patient(), &workers);
        let message = fixture.for_owner(&workers[0], "span", 0);
        let refusal = refused(fixture.send(message).await);
        assert_eq!(refusal.reason, reason);
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
        assert!(refusal.detail.contains("w-0") && refusal.detail.contains("come again"));
        assert_eq!(fixture.rpcs("back_pressure"), 1.0);
        assert_eq!(fixture.of_lane("circuit_open", &workers[0]), Some(0.0));
        assert!(workers[1].seen().is_empty());
    }
}

// --- Views ---

#[tokio::test]
async fn parts_that_wait_for_a_member_that_left_go_to_the_new_owners() {
    let workers = workers(&["w-0", "w-1", "w-2"]).await;
    workers[0].react(|_| Reaction::Gate);
    let mut fixture = Fixture::new(patient(), &workers);
    let message = fixture.for_owner(&workers[0], "flying", 2000);
    let flying = fixture.send(message);
    until("the first RPC", || workers[0].seen().len() == 1).await;
    let mut waiting = vec![];
    for _ in 0..10 {
        let message = fixture.for_owner(&workers[0], "waiting", 2000);
        waiting.push(fixture.send(message));
    }
    fixture.until_lane_holds(&workers[0], 22_000.0).await;

    fixture.view.publish(view_of(&workers[1..]));
    for answer in waiting {
        accepted(answer.await);
    }
    let view = fixture.view.load();
    let mut got = 0;
    for worker in &workers[1..] {
        for seen in worker.seen() {
            assert_eq!(seen.metadata.view, Some(view.fingerprint()));
            assert_eq!(seen.metadata.surrogate_for, None);
            for (trace, _) in keys(&seen.request) {
                let trace = TraceId::new(trace.try_into().unwrap()).unwrap();
                assert_eq!(view.table.owner(trace), Some(&worker.member));
                got += 1;
            }
        }
    }
    assert_eq!(got, 10);
    assert!(!flying.is_finished(), "what is in flight may still arrive");
    workers[0].let_through(1);
    accepted(flying.await);
    assert_eq!(fixture.of_lane("lane_bytes", &workers[0]), None);
    assert_eq!(fixture.of_lane("circuit_open", &workers[0]), None);
}

#[tokio::test]
async fn a_new_member_gets_its_share_and_a_new_address_is_followed() {
    let mut workers = workers(&["w-0", "w-1"]).await;
    let mut fixture = Fixture::new(patient(), &workers[..1]);
    fixture.view.publish(view_of(&workers));
    let message = fixture.for_owner(&workers[1], "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!(workers[1].spans().len(), 1);

    let old = workers[1].clone();
    workers[1] = Worker::start("w-1").await;
    fixture.view.publish(view_of(&workers));
    let message = fixture.for_owner(&workers[1], "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!((old.spans().len(), workers[1].spans().len()), (1, 1));
}

#[tokio::test]
async fn a_new_address_ends_the_wait_for_a_worker_that_was_away() {
    let mut workers = vec![Worker::start("w-0").await, dead("w-1").await];
    let config = RouterConfig {
        probe_interval: Duration::from_secs(60),
        ..patient()
    };
    let mut fixture = Fixture::new(config, &workers);
    let message = fixture.for_owner(&workers[1], "span", 0);
    accepted(fixture.send(message).await);
    assert_eq!(fixture.of_lane("circuit_open", &workers[1]), Some(1.0));
    workers[1] = Worker::start("w-1").await;
    fixture.view.publish(view_of(&workers));
    until("the circuit closes", || {
        fixture.of_lane("circuit_open", &workers[1]) == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn lanes_end_with_their_router() {
    let worker = Worker::start("w-0").await;
    let mut fixture = Fixture::new(patient(), [&worker]);
    let message = fixture.for_owner(&worker, "span", 0);
    accepted(fixture.send(message).await);
    let alive = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let Fixture { router, .. } = fixture;
    drop(router);
    // The lane, its connection and the follower of the view.
    until("the tasks end", || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
            + 2
            <= alive
    })
    .await;
}
