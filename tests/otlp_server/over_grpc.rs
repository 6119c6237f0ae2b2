//! OTLP over gRPC: bytes, framing, limits, codes.

use super::*;

#[tokio::test]
async fn grpc_hands_over_the_clients_bytes_under_any_encoding() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    for encoding in [
        None,
        Some(CompressionEncoding::Gzip),
        Some(CompressionEncoding::Zstd),
    ] {
        for bytes in [0, 100, 5_000, 213_000, 3 * MIB] {
            let message = request(bytes);
            let mut client = running.client().await;
            if let Some(encoding) = encoding {
                client = client.send_compressed(encoding);
            }
            let response = client.export(message.clone()).await.unwrap();
            assert_eq!(response.metadata().get(VIEW).unwrap(), "0123456789abcdef");
            assert_eq!(response.into_inner(), ExportTraceServiceResponse::default());
            assert_eq!(
                running.tier.messages().pop().unwrap(),
                message.encode_to_vec(),
                "{encoding:?} {bytes}"
            );
        }
    }
    assert_eq!(
        running.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"accepted\"}"),
        15.0
    );
    running.tier.seen.lock().unwrap().clear();
    assert_eq!(running.budget.taken_bytes(), 0);
}

#[tokio::test]
async fn a_message_may_be_cut_into_frames_anywhere() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    let message = request(2_000).encode_to_vec();
    let framed = framed(0, &message);
    for cut in [1, 2, 4, 5, 6, 100, framed.len() - 1] {
        let reply = raw_grpc(&running, EXPORT, &[], &[&framed[..cut], &framed[cut..]]).await;
        assert_eq!(reply.status.unwrap().code(), Code::Ok);
        assert_eq!(reply.data, [0, 0, 0, 0, 0]);
        assert_eq!(running.tier.messages().pop().unwrap(), message);
    }
    let bytes: Vec<&[u8]> = framed.chunks(1).take(64).collect();
    let mut frames = bytes;
    frames.push(&framed[64..]);
    let reply = raw_grpc(&running, EXPORT, &[], &frames).await;
    assert_eq!(reply.status.unwrap().code(), Code::Ok);
    assert_eq!(running.tier.messages().pop().unwrap(), message);
}

#[tokio::test]
async fn bad_framing_is_an_invalid_argument_that_is_not_retried() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    let whole = framed(0, b"abc");
    let two = [whole.clone(), whole.clone()].concat();
    let zipped = framed(1, &gzip(b"abc"));
    let zstd = framed(1, &zstd::encode_all(&b"abc"[..], 3).unwrap());
    let cases: [(&str, Headers<'_>, Vec<&[u8]>); 10] = [
        ("no message", &[], vec![]),
        ("no message", &[], vec![&whole[..3]]),
        ("before the message did", &[], vec![&whole[..7]]),
        ("more than one", &[], vec![&two]),
        ("more than one", &[], vec![&whole, b"x"]),
        ("flag 2", &[], vec![&[2, 0, 0, 0, 0]]),
        ("without grpc-encoding", &[], vec![&zipped]),
        ("bad gzip", &[("grpc-encoding", "gzip")], vec![&zstd]),
        ("bad zstd", &[("grpc-encoding", "zstd")], vec![&zipped]),
        ("tailring-hop", &[("tailring-hop", "many")], vec![&whole]),
    ];
    for (text, headers, frames) in cases {
        let status = raw_grpc(&running, EXPORT, headers, &frames)
            .await
            .status
            .unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{text}: {status}");
        assert_eq!(retry_delay(&status), None);
    }
    let packed = gzip(&request(1000).encode_to_vec());
    let cut = framed(1, &packed[..packed.len() - 9]);
    let reply = raw_grpc(&running, EXPORT, &[("grpc-encoding", "gzip")], &[&cut]).await;
    assert!(reply.status.unwrap().message().contains("cut short"));
    assert!(running.tier.messages().is_empty());
    assert_eq!(running.budget.taken_bytes(), 0);
}

#[tokio::test]
async fn metadata_reaches_the_tier() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    let mut call = tonic::Request::new(request(100));
    call.metadata_mut()
        .insert(TO, "w-1.tail;77".parse().unwrap());
    call.metadata_mut().insert(HOP, "1".parse().unwrap());
    call.set_timeout(Duration::from_secs(9));
    running.client().await.export(call).await.unwrap();
    let seen = running.tier.seen.lock().unwrap();
    let (to, incarnation) = seen[0].1.to.clone().unwrap();
    assert_eq!(to, Member::parse("w-1.tail").unwrap());
    assert_eq!(incarnation.unwrap().0, 77);
    assert_eq!(seen[0].1.hop, 1);
    assert_eq!(seen[0].1.timeout, Some(Duration::from_secs(9)));
}

#[tokio::test]
async fn every_refusal_of_a_tier_has_its_code_and_retry_info_only_if_retryable() {
    let grpc = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    let http = start(Protocol::Http, 1 << 30, |_| {}).await;
    let mut client = grpc.client().await;
    for reason in RefusalReason::ALL {
        let refusal = Refusal::new(reason, "50 % naïve\nlines");
        grpc.tier.answer(Answer::Refuse(refusal.clone()));
        let status = client.export(request(100)).await.unwrap_err();
        assert_eq!(status.code(), reason.grpc_code(), "{reason:?}");
        assert_eq!(
            status.message(),
            format!("{}: 50 % naïve\nlines", reason.label())
        );
        assert_eq!(retry_delay(&status), reason.retry_after(), "{reason:?}");
        assert_eq!(status.metadata().get(VIEW).unwrap(), "0123456789abcdef");

        http.tier.answer(Answer::Refuse(refusal));
        let reply = post(&http, "/v1/traces", &[], b"abc", Version::Http1).await;
        assert_eq!(reply.status, reason.http_status().as_u16());
        let status = reply.google_status();
        assert_eq!(status.code, i32::from(reason.grpc_code()));
        assert_eq!(status.message, "50 % naïve\nlines");
        assert_eq!(status.details.is_empty(), !reason.retryable());
        assert_eq!(reply.headers.get(VIEW).unwrap(), "0123456789abcdef");
        match reply.headers.get("retry-after") {
            Some(seconds) => {
                assert!(reason.retryable());
                assert!(seconds.to_str().unwrap().parse::<u64>().unwrap() >= 1);
            }
            None => assert!(!reason.retryable()),
        }
        let label = reason.label();
        for (running, protocol) in [(&grpc, "grpc"), (&http, "http")] {
            let line =
                format!("tailring_requests_total{{protocol=\"{protocol}\",outcome=\"{label}\"}}");
            assert_eq!(running.metric(&line), 1.0);
        }
    }
    // A tier may ask for another wait than the table's.
    grpc.tier.answer(Answer::Refuse(Refusal {
        retry_after: Some(Duration::from_millis(2_500)),
        ..Refusal::new(RefusalReason::LogFull, "full")
    }));
    let status = client.export(request(100)).await.unwrap_err();
    assert_eq!(retry_delay(&status), Some(Duration::from_millis(2_500)));
}

#[tokio::test]
async fn rejected_spans_are_a_partial_success() {
    let accepted = Accepted {
        rejected_spans: 3,
        message: "3 spans without a trace ID".into(),
    };
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    running.tier.answer(Answer::Accept(accepted.clone()));
    let response = running.client().await.export(request(100)).await.unwrap();
    let partial = response.into_inner().partial_success.unwrap();
    assert_eq!(
        (partial.rejected_spans, partial.error_message.as_str()),
        (3, "3 spans without a trace ID")
    );

    let http = start(Protocol::Http, 1 << 30, |_| {}).await;
    http.tier.answer(Answer::Accept(accepted));
    let reply = post(&http, "/v1/traces", &[], b"abc", Version::Http1).await;
    assert_eq!(reply.status, 200);
    let response = ExportTraceServiceResponse::decode(&reply.body[..]).unwrap();
    assert_eq!(response.partial_success.unwrap(), partial);
    assert_eq!(
        http.metric("tailring_requests_total{protocol=\"http\",outcome=\"partial\"}"),
        1.0
    );
}

#[tokio::test]
async fn a_message_at_the_limit_passes_and_one_byte_more_is_refused_for_good() {
    const MAX: usize = 2 * MIB + 77;
    let grpc = start(Protocol::Grpc, 1 << 30, |c| c.request_bytes_max = MAX).await;
    let http = start(Protocol::Http, 1 << 30, |c| c.request_bytes_max = MAX).await;
    let noise = |len: usize| {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect::<Vec<_>>()
    };
    let (fits, over) = (noise(MAX), noise(MAX + 1));
    for (name, pack) in [
        ("identity", (|data| data.to_vec()) as fn(&[u8]) -> Vec<u8>),
        ("gzip", gzip),
        ("zstd", |data| zstd::encode_all(data, 3).unwrap()),
    ] {
        let flag = u8::from(name != "identity");
        // Noise does not pack, so this is over the limit on the wire too; zeros are not.
        for (message, ok) in [
            (&fits, true),
            (&over, false),
            (&vec![0; MAX], true),
            (&vec![0; MAX + 1], false),
        ] {
            let packed = pack(message);
            // The bound holds on the wire too, and packed noise is longer than noise.
            let ok = ok && packed.len() <= MAX;
            for version in [Version::Http1, Version::Http2] {
                let reply = post(
                    &http,
                    "/v1/traces",
                    &[("content-encoding", name)],
                    &packed,
                    version,
                )
                .await;
                assert_eq!(
                    reply.status,
                    if ok { 200 } else { 413 },
                    "{name} {version:?}"
                );
                if !ok {
                    assert!(reply.headers.get("retry-after").is_none());
                    assert_eq!(
                        reply.google_status().code,
                        i32::from(Code::ResourceExhausted)
                    );
                    assert!(
                        reply
                            .google_status()
                            .message
                            .contains("--max-request-bytes")
                    );
                }
            }
            let framed = framed(flag, &packed);
            let frames: Vec<_> = framed.chunks(100_000).collect();
            let reply = raw_grpc(&grpc, EXPORT, &[("grpc-encoding", name)], &frames).await;
            let status = reply.status.unwrap();
            let expected = if ok {
                Code::Ok
            } else {
                Code::ResourceExhausted
            };
            assert_eq!(status.code(), expected, "{name} {status}");
            assert_eq!(retry_delay(&status), None);
            assert!(status.details().is_empty());
        }
    }
    for running in [&grpc, &http] {
        assert!(running.tier.messages().iter().all(|m| m.len() == MAX));
        running.tier.seen.lock().unwrap().clear();
        assert_eq!(running.budget.taken_bytes(), 0);
    }
    assert!(grpc.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"too_large\"}") >= 6.0);
}

#[tokio::test]
async fn tonics_own_client_is_told_resource_exhausted_and_not_out_of_range() {
    let running = start(Protocol::Grpc, 1 << 30, |c| c.request_bytes_max = MIB).await;
    for encoding in [
        None,
        Some(CompressionEncoding::Gzip),
        Some(CompressionEncoding::Zstd),
    ] {
        let mut client = running.client().await;
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding);
        }
        let status = client.export(request(3 * MIB)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.details().is_empty());
        // The connection lives on.
        client.export(request(1000)).await.unwrap();
    }
}

#[tokio::test]
async fn bombs_cost_no_more_than_the_limit() {
    const MAX: usize = 4 * MIB;
    /// The decoder's own: zstd's default window and tables.
    const DECODER: u64 = (2 << 20) + (512 << 10);
    let zeros = vec![0; 256 * MIB];
    let bombs = [
        ("gzip", gzip(&zeros)),
        ("zstd", zstd::encode_all(&zeros[..], 3).unwrap()),
    ];
    drop(zeros);
    for (name, bomb) in bombs {
        assert!(bomb.len() < MAX, "the bomb is small: {}", bomb.len());
        let grpc = start(Protocol::Grpc, 1 << 30, |c| c.request_bytes_max = MAX).await;
        let framed = framed(1, &bomb);
        let frames: Vec<_> = framed.chunks(16_384).collect();
        let reply = raw_grpc(&grpc, EXPORT, &[("grpc-encoding", name)], &frames).await;
        assert_eq!(reply.status.unwrap().code(), Code::ResourceExhausted);
        let http = start(Protocol::Http, 1 << 30, |c| c.request_bytes_max = MAX).await;
        let reply = post(
            &http,
            "/v1/traces",
            &[("content-encoding", name)],
            &bomb,
            Version::Http1,
        )
        .await;
        assert_eq!(reply.status, 413);
        for running in [&grpc, &http] {
            let peak = running.budget.peak_bytes();
            assert!(
                peak <= MAX as u64 + DECODER + memory::REQUEST,
                "{name}: {peak}"
            );
            assert_eq!(running.budget.taken_bytes(), 0);
            assert!(running.tier.messages().is_empty());
        }
        assert_eq!(
            grpc.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"too_large\"}"),
            1.0
        );
    }
}

#[tokio::test]
async fn other_signals_and_unknown_methods_are_told_where_to_go() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    for path in [
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
    ] {
        let status = raw_grpc(&running, path, &[], &[&framed(0, b"")])
            .await
            .status
            .unwrap();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(
            status
                .message()
                .contains("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            "{status}"
        );
    }
    for path in [
        "/a.B/C",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Import",
        "/",
    ] {
        let status = raw_grpc(&running, path, &[], &[&framed(0, b"")])
            .await
            .status
            .unwrap();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("TraceService/Export"), "{status}");
    }
    let status = raw_grpc(
        &running,
        EXPORT,
        &[("grpc-encoding", "snappy")],
        &[&framed(0, b"")],
    )
    .await;
    assert_eq!(
        status.headers.get("grpc-accept-encoding").unwrap(),
        "identity,gzip,zstd"
    );
    let status = status.status.unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(
        status.message().contains("gzip, zstd and identity"),
        "{status}"
    );
    // Someone who speaks OTLP/HTTP to the gRPC port.
    let reply = raw_grpc(
        &running,
        "/v1/traces",
        &[("content-type", "application/x-protobuf")],
        &[b"x"],
    )
    .await;
    assert_eq!(reply.http_status, 415);
    let status = tonic_types::Status::decode(&reply.data[..]).unwrap();
    assert!(status.message.contains("4318"), "{}", status.message);
    let reply = post(&running, "/v1/traces", &[], b"x", Version::Http1).await;
    assert_eq!(reply.status, 415);
    assert!(reply.google_status().message.contains("4318"));
    assert!(running.tier.messages().is_empty());
}

#[tokio::test]
async fn grpc_plus_proto_is_grpc() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    for kind in ["application/grpc+proto", "application/grpc; charset=utf-8"] {
        let reply = raw_grpc(
            &running,
            EXPORT,
            &[("content-type", kind)],
            &[&framed(0, b"")],
        )
        .await;
        assert_eq!(reply.status.unwrap().code(), Code::Ok);
    }
    let reply = raw_grpc(
        &running,
        EXPORT,
        &[("content-type", "application/grpc-web")],
        &[b""],
    )
    .await;
    assert_eq!(reply.http_status, 415);
}
