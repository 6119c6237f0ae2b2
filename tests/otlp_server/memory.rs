//! What messages cost, and what clients are told when there is no room.

use super::*;

#[tokio::test]
async fn without_room_clients_are_asked_to_come_back_and_others_are_served_after() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let big = request(200_000);
        let bytes = big.encoded_len() as u64;
        let running = start(protocol, bytes * 3 / 2, |_| {}).await;
        running.tier.answer(Answer::Wait);
        let mut client = running.client().await;
        let held = match protocol {
            Protocol::Peer => unreachable!("these are the OTLP listeners"),
            Protocol::Grpc => {
                let big = big.clone();
                tokio::spawn(async move { drop(client.export(big).await.unwrap()) })
            }
            Protocol::Http => {
                let (big, address) = (big.encode_to_vec(), running.address);
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    let head = format!(
                        "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
                        big.len()
                    );
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&big).await.unwrap();
                    let mut answer = [0; 12];
                    stream.read_exact(&mut answer).await.unwrap();
                    assert_eq!(&answer, b"HTTP/1.1 200");
                })
            }
        };
        until("the first message is held", || {
            running.tier.waiting.lock().unwrap().0 == 1
        })
        .await;
        assert!(running.budget.taken_bytes() >= bytes);
        running.tier.answer(Answer::Accept(Accepted::default()));
        match protocol {
            Protocol::Peer => unreachable!("these are the OTLP listeners"),
            Protocol::Grpc => {
                let status = running
                    .client()
                    .await
                    .export(big.clone())
                    .await
                    .unwrap_err();
                assert_eq!(status.code(), Code::Unavailable);
                assert_eq!(retry_delay(&status), Some(Duration::from_secs(1)));
                running.client().await.export(request(1000)).await.unwrap();
            }
            Protocol::Http => {
                let reply = post(
                    &running,
                    "/v1/traces",
                    &[],
                    &big.encode_to_vec(),
                    Version::Http1,
                )
                .await;
                assert_eq!(reply.status, 503);
                assert_eq!(reply.headers.get("retry-after").unwrap(), "1");
                let reply = post(&running, "/v1/traces", &[], b"small", Version::Http1).await;
                assert_eq!(reply.status, 200);
            }
        }
        running.tier.release.notify_one();
        held.await.unwrap();
        until("the bytes are given back", || {
            running.budget.taken_bytes() == 0
        })
        .await;
        assert!(running.budget.peak_bytes() <= bytes * 3 / 2);
        let line = format!(
            "tailring_requests_total{{protocol=\"{}\",outcome=\"memory_pressure\"}}",
            protocol.label()
        );
        assert_eq!(running.metric(&line), 1.0);
    }
}

/// A gRPC stream that has begun a message and says no more.
struct Stuck {
    response: h2::client::ResponseFuture,
    body: h2::SendStream<Bytes>,
}

async fn stuck(running: &Running, declared: u32, count: usize) -> (Vec<Stuck>, JoinHandle<()>) {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut streams = Vec::new();
    for _ in 0..count {
        sender = sender.ready().await.unwrap();
        let request = http::Request::post(format!("http://{}{EXPORT}", running.address))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        let mut start = vec![0];
        start.extend_from_slice(&declared.to_be_bytes());
        start.push(b'x');
        body.send_data(start.into(), false).unwrap();
        streams.push(Stuck { response, body });
    }
    (streams, driver)
}

/// What each request costs beside its message.
pub(crate) const REQUEST: u64 = 8 << 10;

#[tokio::test]
async fn requests_of_few_bytes_are_bounded_too_and_health_checks_are_not_asked_to_pay() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let running = start(protocol, 5 * REQUEST, |_| {}).await;
        running.tier.answer(Answer::Wait);
        let mut held = Vec::new();
        for requests in 1..=4 {
            let address = running.address;
            let mut client = running.client().await;
            held.push(tokio::spawn(async move {
                match protocol {
                    Protocol::Peer => unreachable!("these are the OTLP listeners"),
                    Protocol::Grpc => drop(client.export(request(1)).await.unwrap()),
                    Protocol::Http => {
                        let body = request(1).encode_to_vec();
                        let mut stream = TcpStream::connect(address).await.unwrap();
                        let head = format!(
                            "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
                            body.len()
                        );
                        stream.write_all(head.as_bytes()).await.unwrap();
                        stream.write_all(&body).await.unwrap();
                        let mut answer = [0; 12];
                        stream.read_exact(&mut answer).await.unwrap();
                        assert_eq!(&answer, b"HTTP/1.1 200");
                    }
                }
            }));
            until("it is held", || {
                running.tier.waiting.lock().unwrap().0 == requests
            })
            .await;
        }
        running.tier.answer(Answer::Accept(Accepted::default()));
        let body = request(8 * 1024).encode_to_vec();
        match protocol {
            Protocol::Peer => unreachable!("these are the OTLP listeners"),
            Protocol::Grpc => {
                let refused = running.client().await.export(request(8 * 1024)).await;
                let status = refused.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable);
                assert!(retry_delay(&status).is_some());
                let mut health = HealthClient::new(running.channel().await);
                let ask = HealthCheckRequest::default();
                health.check(ask).await.unwrap();
            }
            Protocol::Http => {
                let reply = post(&running, "/v1/traces", &[], &body, Version::Http1).await;
                assert_eq!(reply.status, 503);
            }
        }
        let line = format!(
            "tailring_requests_total{{protocol=\"{}\",outcome=\"memory_pressure\"}}",
            protocol.label()
        );
        assert_eq!(running.metric(&line), 1.0);
        while held.iter().any(|task| !task.is_finished()) {
            running.tier.release.notify_waiters();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for task in held {
            task.await.unwrap();
        }
        until("the bytes are given back", || {
            running.budget.taken_bytes() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_declared_length_buys_one_mebibyte_and_no_more() {
    let running = start(Protocol::Grpc, 10 << 20, |_| {}).await;
    let (streams, _driver) = stuck(&running, 64 << 20, 8).await;
    until("eight streams have begun", || {
        running.budget.taken_bytes() == 8 * ((1 << 20) + REQUEST)
    })
    .await;
    // Eight streams promise 512 MiB, and others are served meanwhile.
    running
        .client()
        .await
        .export(request(100_000))
        .await
        .unwrap();
    drop(streams);
    until("the bytes are given back", || {
        running.budget.taken_bytes() == 0
    })
    .await;
    let line = "tailring_requests_total{protocol=\"grpc\",outcome=\"disconnected\"}";
    until("they are counted", || running.metric(line) == 8.0).await;
}

#[tokio::test]
async fn a_slow_client_is_refused_and_its_bytes_are_given_back() {
    let running = start(Protocol::Grpc, 1 << 30, |c| {
        c.body_idle_max = Duration::from_millis(200);
    })
    .await;
    let (mut streams, _driver) = stuck(&running, 1000, 1).await;
    let response = streams.pop().unwrap().response.await.unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(retry_delay(&status).is_some());
    assert_eq!(running.budget.taken_bytes(), 0);

    // Drops of water: never idle, but not done in time either.
    let running = start(Protocol::Grpc, 1 << 30, |c| {
        c.body_total_max = Duration::from_millis(500);
    })
    .await;
    let (mut streams, _driver) = stuck(&running, 1_000_000, 1).await;
    let Stuck { response, mut body } = streams.pop().unwrap();
    let drip = tokio::spawn(async move {
        while body.send_data(Bytes::from_static(b"x"), false).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let status = tonic::Status::from_header_map(response.await.unwrap().headers()).unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        running.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"slow_client\"}"),
        1.0
    );
    assert_eq!(running.budget.taken_bytes(), 0);
    drip.abort();

    let running = start(Protocol::Http, 1 << 30, |c| {
        c.body_idle_max = Duration::from_millis(200);
    })
    .await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 503"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(running.budget.taken_bytes(), 0);
}
