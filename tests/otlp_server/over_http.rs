//! OTLP over HTTP: bytes, limits, statuses.

use super::*;

#[tokio::test]
async fn http_hands_over_the_clients_bytes_under_any_version_and_encoding() {
    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    for bytes in [0, 100, 213_000, 3 * MIB] {
        let message = request(bytes).encode_to_vec();
        for version in [Version::Http1, Version::Http2, Version::Chunked] {
            let zstd = zstd::encode_all(&message[..], 1).unwrap();
            for (name, packed) in [
                ("identity", message.clone()),
                ("gzip", gzip(&message)),
                ("zstd", zstd),
            ] {
                let headers = [("content-encoding", name), (HOP, "3")];
                let reply = post(&running, "/v1/traces", &headers, &packed, version).await;
                assert_eq!(reply.status, 200, "{version:?} {name} {bytes}");
                assert!(reply.body.is_empty());
                assert_eq!(
                    reply.headers.get("content-type").unwrap(),
                    "application/x-protobuf"
                );
                assert_eq!(reply.headers.get(VIEW).unwrap(), "0123456789abcdef");
                let mut seen = running.tier.seen.lock().unwrap();
                let (seen, metadata, permit) = seen.pop().unwrap();
                assert_eq!(seen, message);
                assert_eq!(metadata.hop, 3);
                assert!(
                    permit <= 2 * message.len() as u64 + 4096,
                    "{permit} for {}",
                    message.len()
                );
            }
        }
    }
    let message_bytes = running.metric("tailring_received_message_bytes_total{protocol=\"http\"}");
    let wire_bytes = running.metric("tailring_received_wire_bytes_total{protocol=\"http\"}");
    assert!(
        wire_bytes > message_bytes / 3.0 && wire_bytes < message_bytes,
        "{wire_bytes} {message_bytes}"
    );
    assert_eq!(running.budget.taken_bytes(), 0);
}

#[tokio::test]
async fn http_refusals_are_google_rpc_statuses_that_say_what_to_do() {
    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    type Case<'a> = (&'a str, &'a str, Headers<'a>, &'a [u8], u16, &'a str);
    let cases: [Case<'_>; 9] = [
        (
            "POST",
            "/v1/metrics",
            &[],
            b"",
            404,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
        (
            "POST",
            "/v1/logs",
            &[],
            b"",
            404,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
        ("POST", "/", &[], b"", 404, "/v1/traces"),
        ("GET", "/v1/traces", &[], b"", 405, "POST"),
        (
            "POST",
            "/v1/traces",
            &[("content-type", "text/plain")],
            b"x",
            415,
            "application/x-protobuf",
        ),
        (
            "POST",
            "/v1/traces",
            &[("content-encoding", "deflate")],
            b"x",
            415,
            "gzip, zstd and identity",
        ),
        (
            "POST",
            "/v1/traces",
            &[("content-encoding", "gzip, zstd")],
            b"x",
            415,
            "gzip, zstd and identity",
        ),
        (
            "POST",
            "/v1/traces",
            &[("content-encoding", "gzip")],
            b"not gzip at all",
            400,
            "bad gzip",
        ),
        (
            "POST",
            "/v1/traces",
            &[("tailring-view", "x")],
            b"x",
            400,
            "tailring-view",
        ),
    ];
    for (method, path, headers, body, status, text) in cases {
        for version in [Version::Http1, Version::Http2] {
            let reply = send(&running, method, path, headers, body, version).await;
            assert_eq!(reply.status, status, "{method} {path} {headers:?}");
            assert!(
                reply.google_status().message.contains(text),
                "{}",
                reply.google_status().message
            );
            assert!(reply.headers.get("retry-after").is_none());
            if status == 405 {
                assert_eq!(reply.headers.get("allow").unwrap(), "POST");
            }
        }
    }
    // Someone who speaks gRPC to the HTTP port.
    let status = raw_grpc(&running, EXPORT, &[], &[&framed(0, b"")])
        .await
        .status
        .unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("4317"), "{status}");
    assert!(running.tier.messages().is_empty());
}

#[tokio::test]
async fn a_client_that_writes_everything_before_it_reads_still_hears_413() {
    let running = start(Protocol::Http, 1 << 30, |c| c.request_bytes_max = 4 * MIB).await;
    let body = vec![0; 6 * MIB];
    for head in [
        format!("content-length: {}\r\n", body.len()),
        "transfer-encoding: chunked\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let start = format!(
            "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n{head}\r\n"
        );
        stream.write_all(start.as_bytes()).await.unwrap();
        if head.starts_with("transfer") {
            stream
                .write_all(format!("{:x}\r\n", body.len()).as_bytes())
                .await
                .unwrap();
        }
        stream.write_all(&body).await.unwrap();
        if head.starts_with("transfer") {
            stream.write_all(b"\r\n0\r\n\r\n").await.unwrap();
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413");
        assert!(running.budget.peak_bytes() <= 5 << 20);
    }
    // Who asks first is refused before it sends.
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\nexpect: 100-continue\r\ncontent-length: 6000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}
