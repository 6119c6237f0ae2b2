//! `worker::export` against real receivers on port 0 and real files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod receiver;

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prometheus_client::registry::Registry;
use prost::Message;
use receiver::{Receiver, Reply, certificate, message, names};
use tailring::net::json;
use tailring::worker::export::{
    Batch, Blame, ConnectError, Delivery, DeliveryConfig, Destination, ExportMetrics, Fault,
    Refusal, parse_headers,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};

/// A destination with its metrics.
struct Exporter {
    destination: Destination,
    registry: Registry,
}

impl Exporter {
    fn to(target: &str) -> Self {
        Self::with(target, HeaderMap::new(), quick()).unwrap()
    }

    fn with(
        target: &str,
        headers: HeaderMap,
        config: DeliveryConfig,
    ) -> Result<Self, ConnectError> {
        let mut registry = Registry::with_prefix("tailring");
        let metrics = ExportMetrics::register(&mut registry);
        let target = target.parse().unwrap();
        Ok(Self {
            destination: Destination::connect(&target, headers, config, metrics)?,
            registry,
        })
    }

    async fn deliver(&self, name: &str) -> Delivery {
        self.destination.deliver(&batch(name)).await
    }

    /// Asserts on lines of the metrics, without the prefix.
    fn counted(&self, lines: &[&str]) {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        for line in lines {
            let line = format!("tailring_export_{line}");
            assert!(text.lines().any(|l| l == line), "{line}\n in {text}");
        }
    }
}

/// Real retries, in milliseconds.
fn quick() -> DeliveryConfig {
    DeliveryConfig {
        backoff_first: Duration::from_millis(1),
        backoff_last: Duration::from_millis(20),
        ..DeliveryConfig::default()
    }
}

fn batch(name: &str) -> Batch {
    Batch {
        message: message(name),
        spans: 1,
        traces: 1,
        metadata: HeaderMap::from_iter([(
            http::HeaderName::from_static("tailring-member"),
            HeaderValue::from_static("worker-0"),
        )]),
    }
}

fn done() -> Delivery {
    Delivery::Done {
        rejected_spans: 0,
        message: String::new(),
    }
}

fn status(code: Code) -> Reply {
    Reply::Status(tonic::Status::new(code, "no"))
}

#[tokio::test]
async fn a_grpc_backend_gets_the_batch_with_headers_and_metadata() {
    let receiver = Receiver::start().await;
    let headers = parse_headers("authorization: Bearer 1").unwrap();
    let url = format!("grpc://{}", receiver.address);
    let exporter = Exporter::with(&url, headers, quick()).unwrap();

    assert_eq!(exporter.deliver("a").await, done());

    {
        let got = receiver.got();
        assert_eq!(names(&got[0].request), ["a"]);
        assert_eq!(got[0].metadata["authorization"], "Bearer 1");
        assert_eq!(got[0].metadata["tailring-member"], "worker-0");
        assert!(!got[0].metadata.contains_key("grpc-encoding"));
    }
    let bytes = format!("sent_bytes_total {}", message("a").len());
    exporter.counted(&[
        "batches_total 1",
        "spans_total 1",
        "traces_total 1",
        "attempts_total 1",
        "retries_total{reason=\"unreachable\"} 0",
        "in_flight_batches 0",
        "duration_seconds_count 1",
        &bytes,
    ]);
}

#[tokio::test]
async fn what_may_be_retried_is_retried_until_it_arrives() {
    let receiver = Receiver::start().await;
    let exporter = Exporter::to(&format!("grpc://{}?compression=gzip", receiver.address));
    receiver.next(status(Code::Unavailable));
    receiver.next(status(Code::Aborted));
    receiver.next(status(Code::OutOfRange));
    receiver.next(status(Code::DeadlineExceeded));
    assert_eq!(exporter.deliver("a").await, done());
    assert_eq!(receiver.got().len(), 5);
    exporter.counted(&[
        "batches_total 1",
        "attempts_total 5",
        "retries_total{reason=\"refused_retryable\"} 4",
        "throttled_total 0",
    ]);
}

#[tokio::test]
async fn a_refusal_for_good_comes_back_and_partial_success_is_done() {
    let receiver = Receiver::start().await;
    let exporter = Exporter::to(&format!("grpc://{}", receiver.address));
    receiver.next(status(Code::InvalidArgument));
    receiver.next(status(Code::ResourceExhausted));
    receiver.next(Reply::Partial(1, "bad".to_owned()));
    let refused = |code: &str, fault| {
        Delivery::Refused(Refusal {
            code: code.to_owned(),
            message: "no".to_owned(),
            blame: Blame::Message(fault),
        })
    };
    let invalid = refused("INVALID_ARGUMENT", Fault::Contents);
    assert_eq!(exporter.deliver("a").await, invalid);
    let too_large = refused("RESOURCE_EXHAUSTED", Fault::TooLarge);
    assert_eq!(exporter.deliver("a").await, too_large);
    let partial = Delivery::Done {
        rejected_spans: 1,
        message: "bad".to_owned(),
    };
    assert_eq!(exporter.deliver("a").await, partial);
    exporter.counted(&[
        "attempts_total 3",
        "batches_total 1",
        "refused_batches_total 2",
        "rejected_spans_total 1",
    ]);
}

#[tokio::test]
async fn a_tonic_server_that_finds_a_message_too_long_is_not_asked_for_ever() {
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server as service;
    struct Never;
    #[tonic::async_trait]
    impl service::TraceService for Never {
        async fn export(
            &self,
            _: tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
            Err(tonic::Status::internal("it was not too long"))
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = service::TraceServiceServer::new(Never).max_decoding_message_size(100);
    let routes = tonic::service::Routes::new(server).prepare();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let http = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let service = hyper_util::service::TowerToHyperService::new(routes);
        http.serve_connection(TokioIo::new(tcp), service).await
    });
    let exporter = Exporter::to(&format!("grpc://{address}"));
    let Delivery::Refused(refusal) = exporter.deliver(&"x".repeat(200)).await else {
        panic!("it is too long");
    };
    assert_eq!(refusal.code, "OUT_OF_RANGE");
    assert_eq!(refusal.blame, Blame::Message(Fault::TooLarge));
}

#[tokio::test]
async fn a_wait_that_the_backend_asks_for_is_kept_and_capped() {
    let receiver = Receiver::start().await;
    let (asked, cap) = (Duration::from_millis(150), Duration::from_millis(300));
    let config = DeliveryConfig {
        retry_after_max: cap,
        ..quick()
    };
    let url = format!("grpc://{}", receiver.address);
    let exporter = Exporter::with(&url, HeaderMap::new(), config).unwrap();
    for wait in [asked, Duration::from_secs(3600)] {
        let details = ErrorDetails::with_retry_info(Some(wait));
        let status = tonic::Status::with_error_details(Code::ResourceExhausted, "", details);
        receiver.next(Reply::Status(status));
    }
    assert_eq!(exporter.deliver("a").await, done());
    let at: Vec<Instant> = receiver.got().iter().map(|got| got.at).collect();
    assert!(at[1] - at[0] >= asked);
    assert!(at[2] - at[1] >= cap);
    exporter.counted(&["throttled_total 2", "attempts_total 3"]);
}

#[tokio::test]
async fn a_backend_that_hangs_or_is_away_gets_the_batch_when_it_is_back() {
    let receiver = Receiver::start().await;
    let config = DeliveryConfig {
        attempt_timeout: Duration::from_millis(50),
        ..quick()
    };
    let url = format!("grpc://{}", receiver.address);
    let exporter = Exporter::with(&url, HeaderMap::new(), config).unwrap();
    receiver.next(Reply::Hang);
    assert_eq!(exporter.deliver("a").await, done());
    exporter.counted(&["retries_total{reason=\"timed_out\"} 1"]);

    let (address, script) = receiver.stop().await;
    let back = async {
        // Until it was missed at least once.
        let missed = "tailring_export_retries_total{reason=\"unreachable\"} 0";
        loop {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &exporter.registry).unwrap();
            if !text.lines().any(|line| line == missed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Receiver::start_at(address, script, None).await
    };
    let (delivery, receiver) = tokio::join!(exporter.deliver("b"), back);
    assert_eq!(delivery, done());
    assert_eq!(names(&receiver.got().last().unwrap().request), ["b"]);
}

#[tokio::test]
async fn a_delivery_that_is_given_up_is_no_longer_in_flight() {
    let receiver = Receiver::start().await;
    let exporter = Exporter::to(&format!("grpc://{}", receiver.address));
    receiver.next(Reply::Hang);
    let look = async {
        receiver.arrived(1).await;
        exporter.counted(&["in_flight_batches 1"]);
    };
    tokio::select! {
        _ = exporter.deliver("a") => panic!("the receiver does not answer"),
        () = look => {}
    }
    receiver.cancelled(1).await;
    exporter.counted(&["in_flight_batches 0", "batches_total 0"]);
}

#[tokio::test]
async fn grpcs_goes_over_tls_and_is_compressed() {
    let (config, pem) = certificate(b"h2");
    let receiver = Receiver::start_tls(config).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let port = receiver.address.port();
    let exporter = Exporter::to(&format!("grpcs://localhost:{port}?ca={}", ca.display()));
    assert_eq!(exporter.deliver("a").await, done());
    let got = receiver.got();
    assert_eq!(names(&got[0].request), ["a"]);
    assert_eq!(got[0].metadata["grpc-encoding"], "gzip");
}

/// One request that an HTTP backend got.
struct Posted {
    path: String,
    headers: HeaderMap,
    body: Bytes,
    at: Instant,
}

/// An HTTP/1.1 backend that answers by a script; without one, 200 and an empty body.
struct HttpBackend {
    address: SocketAddr,
    replies: Arc<Mutex<VecDeque<http::Response<Bytes>>>>,
    posted: Arc<Mutex<Vec<Posted>>>,
    connections: watch::Receiver<usize>,
}

impl HttpBackend {
    async fn start(tls: Option<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replies: Arc<Mutex<VecDeque<http::Response<Bytes>>>> = Arc::default();
        let posted: Arc<Mutex<Vec<Posted>>> = Arc::default();
        let (accepted, connections) = watch::channel(0);
        let state = (replies.clone(), posted.clone());
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                accepted.send_modify(|n| *n += 1);
                let (state, tls) = (state.clone(), tls.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let (replies, posted) = state.clone();
                        answer(request, replies, posted)
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => http.serve_connection(TokioIo::new(tcp), service).await,
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => {
                                http.serve_connection(TokioIo::new(stream), service).await
                            }
                            Err(_) => Ok(()),
                        },
                    }
                });
            }
        });
        Self {
            address,
            replies,
            posted,
            connections,
        }
    }

    fn next(&self, status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) {
        let mut response = http::Response::new(body.into());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        self.replies.lock().unwrap().push_back(response);
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    replies: Arc<Mutex<VecDeque<http::Response<Bytes>>>>,
    posted: Arc<Mutex<Vec<Posted>>>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    posted.lock().unwrap().push(Posted {
        path: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body,
        at: Instant::now(),
    });
    let reply = replies.lock().unwrap().pop_front();
    Ok(reply.unwrap_or_default().map(Full::new))
}

fn decoded(posted: &Posted) -> ExportTraceServiceRequest {
    let mut plain = Vec::new();
    match posted.headers.get("content-encoding").map(|v| v.as_bytes()) {
        None => plain.extend_from_slice(&posted.body),
        Some(b"gzip") => {
            let mut decoder = flate2::read::GzDecoder::new(&*posted.body);
            decoder.read_to_end(&mut plain).unwrap();
        }
        Some(b"zstd") => plain = zstd::decode_all(&*posted.body).unwrap(),
        other => panic!("{other:?}"),
    }
    ExportTraceServiceRequest::decode(&*plain).unwrap()
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

#[tokio::test]
async fn an_http_backend_gets_posts_of_protobuf_over_kept_connections() {
    let backend = HttpBackend::start(None).await;
    for (parameter, encoding) in [
        ("", Some("gzip")),
        ("?compression=zstd", Some("zstd")),
        ("?compression=none", None),
    ] {
        let headers = parse_headers("x-scope: 7").unwrap();
        let url = format!("http://{}{parameter}", backend.address);
        let exporter = Exporter::with(&url, headers, quick()).unwrap();
        assert_eq!(exporter.deliver("a").await, done());
        assert_eq!(exporter.deliver("b").await, done());

        let posted = std::mem::take(&mut *backend.posted.lock().unwrap());
        assert_eq!(posted[0].path, "POST /v1/traces");
        assert_eq!(posted[0].headers["content-type"], "application/x-protobuf");
        assert_eq!(posted[0].headers["x-scope"], "7");
        assert_eq!(posted[0].headers["tailring-member"], "worker-0");
        assert_eq!(posted[0].headers["host"], backend.address.to_string());
        let found = posted[0].headers.get("content-encoding");
        assert_eq!(found.map(|v| v.to_str().unwrap()), encoding);
        assert_eq!(names(&decoded(&posted[0])), ["a"]);
        assert_eq!(names(&decoded(&posted[1])), ["b"]);
    }
    assert_eq!(*backend.connections.borrow(), 3, "one an exporter");
}

#[tokio::test]
async fn http_answers_are_retried_or_refused_by_the_otlp_rules() {
    let backend = HttpBackend::start(None).await;
    let exporter = Exporter::to(&format!("http://{}", backend.address));
    let status = tonic_types::pb::Status {
        code: 3,
        message: "bad spans".to_owned(),
        details: Vec::new(),
    };
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    backend.next(429, &[("retry-after", "1")], "");
    backend.next(503, &[("retry-after", date), ("date", date)], "");
    backend.next(502, &[], "");
    backend.next(504, &[], "");
    backend.next(400, &[PROTOBUF], status.encode_to_vec());
    let refused = Delivery::Refused(Refusal {
        code: "HTTP 400".to_owned(),
        message: "bad spans".to_owned(),
        blame: Blame::Message(Fault::Contents),
    });
    assert_eq!(exporter.deliver("a").await, refused);
    {
        let posted = backend.posted.lock().unwrap();
        assert_eq!(posted.len(), 5);
        assert!(posted[1].at - posted[0].at >= Duration::from_secs(1));
        assert!(posted[2].at - posted[1].at < Duration::from_secs(1));
    }
    exporter.counted(&[
        "throttled_total 2",
        "retries_total{reason=\"refused_retryable\"} 4",
        "refused_batches_total 1",
    ]);

    backend.next(404, &[], "x".repeat(1 << 20));
    let Delivery::Refused(refusal) = exporter.deliver("a").await else {
        panic!("404 is for good");
    };
    assert_eq!(refusal.code, "HTTP 404");
    assert_eq!(refusal.blame, Blame::Backend);
    let message = refusal.message;
    assert!(message.len() < 2000, "{}", message.len());

    backend.next(301, &[("location", "https://elsewhere/")], "");
    let Delivery::Refused(Refusal { message, .. }) = exporter.deliver("a").await else {
        panic!("a redirect is not followed");
    };
    assert!(message.contains("https://elsewhere/"), "{message}");

    let partial = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 2,
            error_message: "bad".to_owned(),
        }),
    };
    backend.next(200, &[PROTOBUF], partial.encode_to_vec());
    let partly = Delivery::Done {
        rejected_spans: 2,
        message: "bad".to_owned(),
    };
    assert_eq!(exporter.deliver("a").await, partly);
}

#[tokio::test]
async fn https_goes_over_tls() {
    let (config, pem) = certificate(b"http/1.1");
    let backend = HttpBackend::start(Some(config)).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let port = backend.address.port();
    let url = format!("https://localhost:{port}/in?ca={}", ca.display());
    assert_eq!(Exporter::to(&url).deliver("a").await, done());
    let posted = backend.posted.lock().unwrap();
    assert_eq!(posted[0].path, "POST /in");
    assert_eq!(names(&decoded(&posted[0])), ["a"]);
}

fn text(value: &str) -> AnyValue {
    any(Value::StringValue(value.to_owned()))
}

fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(any(value)),
        ..KeyValue::default()
    }
}

/// Every field of every message, and two spans with next to nothing.
fn everything() -> ExportTraceServiceRequest {
    let attributes = vec![
        attribute(
            "string",
            Value::StringValue("a\"\\\n\u{1}\u{e9}".to_owned()),
        ),
        attribute("empty", Value::StringValue(String::new())),
        attribute("bool", Value::BoolValue(false)),
        attribute("int", Value::IntValue(i64::MIN)),
        attribute("double", Value::DoubleValue(1.5)),
        attribute("whole", Value::DoubleValue(2.0)),
        attribute("small", Value::DoubleValue(1.25e-7)),
        attribute("bytes", Value::BytesValue(b"foo?".to_vec())),
        attribute(
            "array",
            Value::ArrayValue(ArrayValue {
                values: vec![any(Value::IntValue(1)), text("str")],
            }),
        ),
        attribute(
            "kvlist",
            Value::KvlistValue(KeyValueList {
                values: vec![attribute("int", Value::IntValue(1))],
            }),
        ),
    ];
    let span = Span {
        trace_id: (1..=16).collect(),
        span_id: vec![0xab; 8],
        trace_state: "ot=th:8".to_owned(),
        parent_span_id: vec![0xcd; 8],
        flags: 0x101,
        name: "span".to_owned(),
        kind: 3,
        start_time_unix_nano: 1_581_452_772_000_000_321,
        end_time_unix_nano: u64::MAX,
        attributes,
        dropped_attributes_count: 1,
        events: vec![Event {
            time_unix_nano: 7,
            name: "event".to_owned(),
            attributes: vec![attribute("a", Value::IntValue(1))],
            dropped_attributes_count: 2,
        }],
        dropped_events_count: 3,
        links: vec![Link {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            trace_state: "k=v".to_owned(),
            attributes: vec![attribute("b", Value::BoolValue(true))],
            dropped_attributes_count: 4,
            flags: 1,
        }],
        dropped_links_count: 5,
        status: Some(Status {
            message: "broken".to_owned(),
            code: 2,
        }),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute(
                    "service.name",
                    Value::StringValue("s".to_owned()),
                )],
                dropped_attributes_count: 6,
                entity_refs: vec![EntityRef {
                    schema_url: "e".to_owned(),
                    r#type: "service".to_owned(),
                    id_keys: vec!["service.name".to_owned()],
                    description_keys: vec!["d".to_owned()],
                }],
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "scope".to_owned(),
                    version: "1".to_owned(),
                    attributes: vec![attribute("c", Value::IntValue(2))],
                    dropped_attributes_count: 7,
                }),
                spans: vec![span],
                schema_url: "ss".to_owned(),
            }],
            schema_url: "rs".to_owned(),
        }],
    }
}

/// Written by hand from pdata's marshaler: order, empty messages, formats.
const GOLDEN: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"s"}}],"droppedAttributesCount":6,"entityRefs":[{"schemaUrl":"e","type":"service","idKeys":["service.name"],"descriptionKeys":["d"]}]},"scopeSpans":[{"scope":{"name":"scope","version":"1","attributes":[{"key":"c","value":{"intValue":"2"}}],"droppedAttributesCount":7},"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"abababababababab","traceState":"ot=th:8","parentSpanId":"cdcdcdcdcdcdcdcd","flags":257,"name":"span","kind":3,"startTimeUnixNano":"1581452772000000321","endTimeUnixNano":"18446744073709551615","attributes":[{"key":"string","value":{"stringValue":"a\"\\\n\u0001é"}},{"key":"empty","value":{"stringValue":""}},{"key":"bool","value":{"boolValue":false}},{"key":"int","value":{"intValue":"-9223372036854775808"}},{"key":"double","value":{"doubleValue":1.5}},{"key":"whole","value":{"doubleValue":2}},{"key":"small","value":{"doubleValue":1.25e-7}},{"key":"bytes","value":{"bytesValue":"Zm9vPw=="}},{"key":"array","value":{"arrayValue":{"values":[{"intValue":"1"},{"stringValue":"str"}]}}},{"key":"kvlist","value":{"kvlistValue":{"values":[{"key":"int","value":{"intValue":"1"}}]}}}],"droppedAttributesCount":1,"events":[{"timeUnixNano":"7","name":"event","attributes":[{"key":"a","value":{"intValue":"1"}}],"droppedAttributesCount":2}],"droppedEventsCount":3,"links":[{"traceId":"01010101010101010101010101010101","spanId":"0202020202020202","traceState":"k=v","attributes":[{"key":"b","value":{"boolValue":true}}],"droppedAttributesCount":4,"flags":1}],"droppedLinksCount":5,"status":{"message":"broken","code":2}}],"schemaUrl":"ss"}],"schemaUrl":"rs"}]}"#;

const GOLDEN_EMPTY: &str = r#"{"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{},"spans":[{"name":"a","status":{}}]}]}]}"#;

#[tokio::test]
async fn file_lines_are_those_of_the_collector_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("traces.jsonl");
    // A process died here in the middle of a line.
    std::fs::write(&path, "{}\n{\"resourceSp").unwrap();
    let exporter = Exporter::to(&format!("file:{}", path.display()));
    let mut bare = everything();
    let resource = &mut bare.resource_spans[0];
    (resource.resource, resource.schema_url) = (None, String::new());
    let scope = &mut resource.scope_spans[0];
    (scope.scope, scope.schema_url) = (None, String::new());
    scope.spans = vec![Span {
        trace_id: vec![0; 16],
        name: "a".to_owned(),
        ..Span::default()
    }];
    for request in [everything(), bare] {
        let batch = Batch {
            message: request.encode_to_vec().into(),
            ..batch("")
        };
        assert_eq!(exporter.destination.deliver(&batch).await, done());
    }

    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, format!("{{}}\n{GOLDEN}\n{GOLDEN_EMPTY}\n"));
    let line = written.lines().nth(1).unwrap();
    let back: ExportTraceServiceRequest = serde_json::from_str(line).unwrap();
    assert_eq!(back, everything());
    let bytes = GOLDEN.len() + GOLDEN_EMPTY.len() + 2;
    exporter.counted(&["batches_total 2", &format!("sent_bytes_total {bytes}")]);
}

#[tokio::test]
async fn concatenated_messages_are_one_line() {
    let both = [message("a"), message("b")].concat();
    let line = json::line(&both).unwrap();
    let back: ExportTraceServiceRequest = serde_json::from_str(&line).unwrap();
    assert_eq!(names(&back), ["a", "b"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_retried_and_garbage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub").join("traces.jsonl");
    let url = format!("file:{}", path.display());
    let error = Exporter::with(&url, HeaderMap::new(), quick())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("cannot be appended to"),
        "{error}"
    );

    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let exporter = Exporter::to(&url);
    let lock = std::fs::File::open(&path).unwrap();
    lock.lock().unwrap();
    let free = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        lock.unlock().unwrap();
    };
    let (delivery, ()) = tokio::join!(exporter.deliver("a"), free);
    assert_eq!(delivery, done());
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);

    let garbage = Batch {
        message: Bytes::from_static(&[0x0a, 0xff]),
        ..batch("")
    };
    let Delivery::Refused(Refusal { code, .. }) = exporter.destination.deliver(&garbage).await
    else {
        panic!("garbage does not get better");
    };
    assert_eq!(code, "INVALID_ARGUMENT");
    exporter.counted(&["refused_batches_total 1", "batches_total 1"]);
}

#[tokio::test]
async fn a_full_device_is_a_destination_that_is_away() {
    let exporter = Exporter::to("file:/dev/full");
    let giving_up = Duration::from_millis(50);
    let result = tokio::time::timeout(giving_up, exporter.deliver("a")).await;
    assert!(result.is_err(), "it goes on trying");
    exporter.counted(&["batches_total 0", "refused_batches_total 0"]);
}

#[tokio::test]
async fn a_missing_ca_file_is_told_at_the_start() {
    let target = "grpcs://localhost:1?ca=/nonexistent.pem";
    let error = Exporter::with(target, HeaderMap::new(), quick())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("CA file /nonexistent.pem"),
        "{error}"
    );
}
