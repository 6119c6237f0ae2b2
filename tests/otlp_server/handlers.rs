//! Handlers that fail, and clients that leave.

use super::*;

#[tokio::test]
async fn a_panic_costs_one_request() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let running = start(protocol, 1 << 30, |_| {}).await;
        running.tier.answer(Answer::Panic);
        let mut client = running.client().await;
        match protocol {
            Protocol::Peer => unreachable!("these are the OTLP listeners"),
            Protocol::Grpc => {
                let status = client.export(request(10_000)).await.unwrap_err();
                assert_eq!(status.code(), Code::Internal);
                running.tier.answer(Answer::Accept(Accepted::default()));
                client.export(request(100)).await.unwrap();
            }
            Protocol::Http => {
                let reply = post(&running, "/v1/traces", &[], b"x", Version::Http1).await;
                assert_eq!(reply.status, 500);
                running.tier.answer(Answer::Accept(Accepted::default()));
                let reply = post(&running, "/v1/traces", &[], b"x", Version::Http1).await;
                assert_eq!(reply.status, 200);
            }
        }
        assert_eq!(running.budget.taken_bytes(), 0);
        let line = format!(
            "tailring_requests_total{{protocol=\"{}\",outcome=\"panicked\"}}",
            protocol.label()
        );
        assert_eq!(running.metric(&line), 1.0);
    }
}

#[tokio::test]
async fn a_client_that_leaves_drops_what_the_tier_does_for_it() {
    let running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    running.tier.answer(Answer::Wait);
    // One stream of a connection is reset.
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.export(request(10_000)).await });
    until("the tier works on it", || {
        running.tier.waiting.lock().unwrap().0 == 1
    })
    .await;
    call.abort();
    until("the future is dropped", || {
        *running.tier.waiting.lock().unwrap() == (0, 1)
    })
    .await;
    // The whole connection breaks.
    let channel = running.channel().await;
    let mut client = TraceServiceClient::new(channel);
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            drop(tokio::time::timeout(Duration::from_millis(200), client.export(request(10))).await)
        });
    });
    until("the future is dropped", || {
        *running.tier.waiting.lock().unwrap() == (0, 2)
    })
    .await;
    runtime.join().unwrap();
    assert_eq!(running.budget.taken_bytes(), 0);
    assert_eq!(
        running.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"disconnected\"}"),
        2.0
    );

    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    running.tier.answer(Answer::Wait);
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 3\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    until("the tier works on it", || {
        running.tier.waiting.lock().unwrap().0 == 1
    })
    .await;
    drop(stream);
    until("the future is dropped", || {
        *running.tier.waiting.lock().unwrap() == (0, 1)
    })
    .await;
    assert_eq!(running.budget.taken_bytes(), 0);
}
