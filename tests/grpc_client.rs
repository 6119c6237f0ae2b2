//! `net::client::GrpcClient` against real receivers on port 0.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod receiver;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use receiver::{Receiver, Reply, certificate, message, names};
use tailring::model::Fingerprint;
use tailring::net::client::tls::{Alpn, Tls};
use tailring::net::client::{
    Address, ClientConfig, Compression, ExportError, ExportResponse, GrpcClient, KeepAlive, Target,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const LONG: Duration = Duration::from_secs(10);

fn client_to(receiver: &Receiver) -> GrpcClient {
    client(receiver, ClientConfig::peer())
}

fn client(receiver: &Receiver, config: ClientConfig) -> GrpcClient {
    GrpcClient::new(Target::plain(receiver.address).unwrap(), config)
}

async fn export(client: &GrpcClient, name: &str) -> Result<ExportResponse, ExportError> {
    let metadata = HeaderMap::new();
    client.export(vec![message(name)], &metadata, LONG).await
}

fn is_unreachable(result: &Result<ExportResponse, ExportError>) -> bool {
    matches!(result, Err(ExportError::Unreachable(_)))
}

#[tokio::test]
async fn pieces_arrive_as_one_message_with_the_metadata() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    // Larger than the peer's windows and frames.
    let large = "x".repeat(5 << 20);
    let pieces = vec![message("a"), Bytes::new(), message(&large), message("c")];
    let metadata = HeaderMap::from_iter([(
        http::HeaderName::from_static("tailring-hop"),
        http::HeaderValue::from_static("1"),
    )]);

    let answer = client.export(pieces, &metadata, LONG).await.unwrap();

    assert_eq!(answer, ExportResponse::default());
    let got = receiver.got();
    assert_eq!(names(&got[0].request), ["a", &large, "c"]);
    let headers = &got[0].metadata;
    assert_eq!(headers["tailring-hop"], "1");
    assert_eq!(headers["te"], "trailers");
    assert_eq!(headers["content-type"], "application/grpc");
    let timeout = headers["grpc-timeout"].to_str().unwrap();
    let millis: u64 = timeout.strip_suffix('m').unwrap().parse().unwrap();
    assert!((1..=10_000).contains(&millis), "{timeout}");
}

#[tokio::test]
async fn an_empty_message_is_a_message() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    client
        .export(vec![], &HeaderMap::new(), LONG)
        .await
        .unwrap();
    assert!(receiver.got()[0].request.resource_spans.is_empty());
}

#[tokio::test]
async fn partial_success_and_view_are_read() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    receiver.next(Reply::Partial(3, "bad ids".to_owned()));
    receiver.next(Reply::View("00000000000000ff"));

    let answer = export(&client, "a").await.unwrap();
    assert_eq!((answer.rejected_spans, &*answer.message), (3, "bad ids"));
    assert_eq!(answer.view, None);
    let answer = export(&client, "b").await.unwrap();
    assert_eq!(answer.view, Some(Fingerprint(0xff)));
}

#[tokio::test]
async fn every_code_is_classified_and_its_message_decoded() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    let retried = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unavailable,
        Code::DataLoss,
    ];
    for number in 1..=16 {
        let code = Code::from(number);
        receiver.next(Reply::Status(Status::new(code, "100% caf\u{e9}")));
        let Err(ExportError::Refused {
            code: name,
            message,
            retryable,
            retry_after,
        }) = export(&client, "a").await
        else {
            panic!("{code:?} is a refusal");
        };
        let spelled: String = format!("{code:?}").to_lowercase();
        assert_eq!(name.replace('_', "").to_lowercase(), spelled);
        assert_eq!(message, "100% caf\u{e9}");
        assert_eq!(retryable, retried.contains(&code), "{code:?}");
        assert_eq!(retry_after, None);
    }
    assert_eq!(receiver.connections(), 1, "a refusal costs no connection");
}

#[tokio::test]
async fn retry_info_makes_resource_exhausted_retryable() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    let wait = Duration::from_millis(1500);
    let details = ErrorDetails::with_retry_info(Some(wait));
    receiver.next(Reply::Status(Status::with_error_details(
        Code::ResourceExhausted,
        "later",
        details,
    )));
    let error = export(&client, "a").await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(error.retry_after(), Some(wait));
}

#[tokio::test]
async fn many_calls_share_one_connection() {
    let receiver = Receiver::start().await;
    let client = Arc::new(client_to(&receiver));
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..50 {
        let client = client.clone();
        calls.spawn(async move { export(&client, &n.to_string()).await.unwrap() });
    }
    assert_eq!(calls.join_all().await.len(), 50);
    assert_eq!(receiver.got().len(), 50);
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn waiting_calls_share_the_failure_to_connect() {
    // Bound and closed: refuses connections.
    let address = Receiver::start().await.stop().await.0;
    let client = GrpcClient::new(Target::plain(address).unwrap(), ClientConfig::peer());
    let client = Arc::new(client);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        calls.spawn(async move { export(&client, "a").await });
    }
    for result in calls.join_all().await {
        assert!(is_unreachable(&result), "{result:?}");
        let text = result.unwrap_err().to_string();
        assert!(text.contains(&address.to_string()), "{text}");
    }
}

#[tokio::test]
async fn a_restarted_receiver_is_reached_again() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    export(&client, "a").await.unwrap();
    let (address, script) = receiver.stop().await;
    assert!(is_unreachable(&export(&client, "b").await));
    let receiver = Receiver::start_at(address, script, None).await;
    export(&client, "c").await.unwrap();
    assert_eq!(receiver.connections(), 2);
}

#[tokio::test]
async fn a_hung_call_times_out_alone_and_its_stream_is_reset() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    let release = Arc::new(Notify::new());
    receiver.next(Reply::Held(release.clone()));
    receiver.next(Reply::Hang);
    let other = async {
        let answer = export(&client, "other").await;
        answer.unwrap();
    };
    let hung = async {
        receiver.arrived(1).await;
        let short = Duration::from_millis(100);
        let metadata = HeaderMap::new();
        let result = client.export(vec![message("hung")], &metadata, short).await;
        assert_eq!(result, Err(ExportError::TimedOut(short)));
        receiver.cancelled(1).await;
        release.notify_one();
    };
    tokio::join!(other, hung);
    export(&client, "after").await.unwrap();
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_dropped_call_resets_its_stream_and_nothing_else() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    receiver.next(Reply::Hang);
    tokio::select! {
        _ = export(&client, "a") => panic!("the receiver does not answer"),
        () = receiver.arrived(1) => {}
    }
    receiver.cancelled(1).await;
    export(&client, "b").await.unwrap();
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_call_blocked_by_flow_control_frees_its_message_when_dropped() {
    // Never reads more than what fills its window.
    let receiver = silent().await;
    let client = GrpcClient::new(Target::plain(receiver).unwrap(), ClientConfig::peer());
    let owner = Arc::new(vec![0u8; 8 << 20]);
    let piece = Bytes::from_owner(Owner(owner.clone()));
    let short = Duration::from_millis(100);
    let result = client.export(vec![piece], &HeaderMap::new(), short).await;
    assert_eq!(result, Err(ExportError::TimedOut(short)));
    tokio::time::timeout(LONG, async {
        while Arc::strong_count(&owner) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the message is let go");
}

struct Owner(Arc<Vec<u8>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Accepts connections, reads what comes, and says nothing at all.
async fn silent() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while tcp.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

#[tokio::test]
async fn goaway_lets_the_call_in_flight_end_and_the_next_one_goes_elsewhere() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    let release = Arc::new(Notify::new());
    receiver.next(Reply::Held(release.clone()));
    let held = export(&client, "held");
    let next = async {
        receiver.arrived(1).await;
        receiver.go_away();
        // The first may still be answered on the old connection; none may fail.
        while receiver.connections() < 2 {
            export(&client, "next").await.unwrap();
        }
        release.notify_one();
    };
    let (held, ()) = tokio::join!(held, next);
    held.unwrap();
}

#[tokio::test]
async fn an_unanswered_ping_ends_the_connection() {
    let config = ClientConfig {
        keep_alive: Some(KeepAlive {
            interval: Duration::from_millis(50),
            timeout: Duration::from_millis(50),
        }),
        ..ClientConfig::peer()
    };
    let client = GrpcClient::new(Target::plain(silent().await).unwrap(), config);
    let result = export(&client, "a").await;
    assert!(is_unreachable(&result), "{result:?}");
}

#[tokio::test]
async fn without_pings_a_timeout_retires_the_connection() {
    let receiver = Receiver::start().await;
    let client = client(&receiver, ClientConfig::backend(Compression::None));
    receiver.next(Reply::Hang);
    let short = Duration::from_millis(50);
    let result = client
        .export(vec![message("a")], &HeaderMap::new(), short)
        .await;
    assert_eq!(result, Err(ExportError::TimedOut(short)));
    export(&client, "b").await.unwrap();
    assert_eq!(receiver.connections(), 2);
}

#[tokio::test]
async fn a_new_target_cuts_the_old_connection() {
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let client = client_to(&old);
    old.next(Reply::Hang);
    let change = async {
        old.arrived(1).await;
        // The same target again changes nothing.
        client.set_target(Target::plain(old.address).unwrap());
        tokio::task::yield_now().await;
        client.set_target(Target::plain(new.address).unwrap());
    };
    let (cut, ()) = tokio::join!(export(&client, "a"), change);
    assert!(is_unreachable(&cut), "{cut:?}");
    old.cancelled(1).await;
    export(&client, "b").await.unwrap();
    assert_eq!(names(&new.got()[0].request), ["b"]);
    assert_eq!(old.connections(), 1);
}

#[tokio::test]
async fn compressed_messages_are_decoded_by_the_receiver() {
    for (compression, encoding) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
        let receiver = Receiver::start().await;
        let client = client(&receiver, ClientConfig::backend(compression));
        // Compressed in place, and aside.
        for size in [100, 1 << 20] {
            let name = "x".repeat(size);
            let pieces = vec![message(&name), message("b")];
            client
                .export(pieces, &HeaderMap::new(), LONG)
                .await
                .unwrap();
            let got = receiver.got().pop().unwrap();
            assert_eq!(names(&got.request), [&name, "b"]);
            assert_eq!(got.metadata["grpc-encoding"], encoding);
        }
    }
}

#[tokio::test]
async fn tls_trusts_the_given_ca_and_nobody_else() {
    let (config, pem) = certificate(b"h2");
    let receiver = Receiver::start_tls(config).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let address: Address = format!("localhost:{}", receiver.address.port())
        .parse()
        .unwrap();
    let with = |tls| {
        let target = Target::plain(address.clone()).unwrap().with_tls(tls);
        GrpcClient::new(target, ClientConfig::backend(Compression::None))
    };

    let trusting = with(Tls::new("localhost", Alpn::H2, Some(&ca)).unwrap());
    export(&trusting, "a").await.unwrap();
    assert_eq!(names(&receiver.got()[0].request), ["a"]);

    let strict = with(Tls::new("localhost", Alpn::H2, None).unwrap());
    let error = export(&strict, "b").await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");

    let elsewhere = with(Tls::new("example.com", Alpn::H2, Some(&ca)).unwrap());
    let error = export(&elsewhere, "c").await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");

    std::fs::write(&ca, "nothing here").unwrap();
    let error = Tls::new("localhost", Alpn::H2, Some(&ca)).unwrap_err();
    assert!(error.to_string().contains("has no certificate"), "{error}");
    assert_eq!(receiver.got().len(), 1);
}

/// Answers every request with the same response.
async fn always(response: http::Response<Bytes>) -> GrpcClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::plain(listener.local_addr().unwrap()).unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let response = response.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |_| {
                    let response = response.clone().map(Full::new);
                    async move { Ok::<_, std::convert::Infallible>(response) }
                });
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tcp), service)
                    .await
            });
        }
    });
    GrpcClient::new(target, ClientConfig::peer())
}

fn response(status: u16, content_type: &str, body: Bytes) -> http::Response<Bytes> {
    http::Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn answers_that_are_not_grpc_are_refusals() {
    let mut overloaded = response(503, "text/plain", Bytes::from_static(b"no upstream"));
    overloaded
        .headers_mut()
        .insert("retry-after", "4".parse().unwrap());
    let error = export(&always(overloaded).await, "a").await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(4)));

    let page = response(200, "text/html", Bytes::from_static(b"<html>"));
    let error = export(&always(page).await, "a").await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    assert!(error.to_string().contains("text/html"), "{error}");

    let cut = response(200, "application/grpc", Bytes::new());
    let result = export(&always(cut).await, "a").await;
    assert!(is_unreachable(&result), "{result:?}");
}

#[tokio::test]
async fn a_huge_answer_is_not_held() {
    let receiver = Receiver::start().await;
    let client = client_to(&receiver);
    let small = ClientConfig::peer().response_bytes_max;
    receiver.next(Reply::Partial(1, "x".repeat(8 << 20)));
    // It was taken, and to repeat it would double it; what else the answer said is lost.
    let answer = export(&client, "a").await.unwrap();
    let text = answer.message;
    assert!(text.contains(&format!("longer than {small}")), "{text}");
    assert_eq!(answer.rejected_spans, 0);
    // The longest that is read: framing of the two messages and the count take the rest.
    receiver.next(Reply::Partial(1, "x".repeat(small - 10)));
    let answer = export(&client, "b").await.unwrap();
    assert_eq!(answer.rejected_spans, 1);
    assert!(answer.message.len() < 2000, "a bounded part of the text");
    assert_eq!(receiver.connections(), 1);
}
