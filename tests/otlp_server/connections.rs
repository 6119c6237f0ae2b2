//! Connections: their number, age and end.

use super::*;

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_at_once_and_counted() {
    let running = start(Protocol::Grpc, 1 << 30, |c| c.connections_max = 2).await;
    let first = TcpStream::connect(running.address).await.unwrap();
    let mut client = running.client().await;
    client.export(request(100)).await.unwrap();
    until("two are open", || {
        running.metric("tailring_connections_open{protocol=\"grpc\"}") == 2.0
    })
    .await;
    let mut third = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(
        third.read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "closed without a byte"
    );
    assert_eq!(
        running.metric("tailring_connections_refused_total{protocol=\"grpc\"}"),
        1.0
    );
    // Those that are in stay, and a place that is left is free.
    client.export(request(100)).await.unwrap();
    drop(first);
    until("one is open", || {
        running.metric("tailring_connections_open{protocol=\"grpc\"}") == 1.0
    })
    .await;
    running.client().await.export(request(100)).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_goes_away_after_its_requests_and_clients_do_not_notice() {
    let running = start(Protocol::Grpc, 1 << 30, |c| {
        c.connection_age = Duration::from_millis(300);
    })
    .await;
    running.tier.answer(Answer::Wait);
    let mut client = running.client().await;
    let mut same = client.clone();
    let call = tokio::spawn(async move { same.export(request(10_000)).await });
    until("the tier works on it", || {
        running.tier.waiting.lock().unwrap().0 == 1
    })
    .await;
    until("the connection has aged", || {
        running.metric("tailring_connections_aged_total{protocol=\"grpc\"}") == 1.0
    })
    .await;
    running.tier.release.notify_one();
    call.await.unwrap().unwrap();
    running.tier.answer(Answer::Accept(Accepted::default()));
    client.export(request(100)).await.unwrap();
    until("it was made anew", || {
        running.metric("tailring_connections_accepted_total{protocol=\"grpc\"}") >= 2.0
    })
    .await;

    let running = start(Protocol::Http, 1 << 30, |c| {
        c.connection_age = Duration::from_millis(200);
    })
    .await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap(); // ends: the idle connection is closed
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_that_say_nothing_are_closed() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let running = start(protocol, 1 << 30, |c| {
            c.header_read_max = Duration::from_millis(100);
        })
        .await;
        let mut silent = TcpStream::connect(running.address).await.unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    }
    let running = start(Protocol::Http, 1 << 30, |c| {
        c.header_read_max = Duration::from_millis(100);
    })
    .await;
    let mut halting = TcpStream::connect(running.address).await.unwrap();
    halting
        .write_all(b"POST /v1/traces HTTP/1.1\r\nhost: ")
        .await
        .unwrap();
    let mut answer = Vec::new();
    halting.read_to_end(&mut answer).await.unwrap();
}

#[tokio::test]
async fn streams_and_frames_are_bounded_as_configured() {
    let running = start(Protocol::Grpc, 1 << 30, |c| c.streams_max = 7).await;
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut sender = sender.ready().await.unwrap();
    let request = http::Request::get("http://x/").body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    response.await.unwrap(); // the server's SETTINGS have come by then
    assert_eq!(sender.current_max_send_streams(), 7);
    driver.abort();
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let mut running = start(protocol, 1 << 30, |_| {}).await;
        running.tier.answer(Answer::Wait);
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let mut client = running.client().await;
        let call = match protocol {
            Protocol::Peer => unreachable!("these are the OTLP listeners"),
            Protocol::Grpc => {
                tokio::spawn(async move { client.export(request(1000)).await.map(drop).unwrap() })
            }
            Protocol::Http => tokio::spawn(async move {
                let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 3\r\n\r\nabc";
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.unwrap();
                assert!(answer.starts_with(b"HTTP/1.1 200"));
            }),
        };
        until("the tier works on it", || {
            running.tier.waiting.lock().unwrap().0 == 1
        })
        .await;
        running.stop.take().unwrap().send(()).unwrap();
        until("nobody gets in any more", || {
            std::net::TcpStream::connect(running.address).is_err()
        })
        .await;
        assert!(!running.served.is_finished());
        running.tier.release.notify_one();
        call.await.unwrap();
        assert_eq!(
            (&mut running.served).await.unwrap(),
            Stopped {
                aborted_connections: 0
            }
        );
    }
}

#[tokio::test]
async fn shutdown_cuts_what_does_not_finish_in_time() {
    let mut running = start(Protocol::Grpc, 1 << 30, |c| {
        c.drain_deadline = Duration::from_millis(200);
    })
    .await;
    running.tier.answer(Answer::Wait);
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.export(request(1000)).await });
    until("the tier works on it", || {
        running.tier.waiting.lock().unwrap().0 == 1
    })
    .await;
    assert_eq!(
        running.stop().await,
        Stopped {
            aborted_connections: 1
        }
    );
    call.await.unwrap().unwrap_err();
    until("the future is dropped", || {
        *running.tier.waiting.lock().unwrap() == (0, 1)
    })
    .await;
    until("its bytes are given back", || {
        running.budget.taken_bytes() == 0
    })
    .await;
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_flag() {
    let running = start(Protocol::Grpc, 1, |_| {}).await;
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = ServerMetrics::register(&mut registry);
    for (protocol, flag) in [
        (Protocol::Grpc, "--listen-grpc"),
        (Protocol::Http, "--listen-http"),
    ] {
        let config = ServerConfig::new(protocol, running.address);
        let tier = Arc::clone(&running.tier);
        let error = Server::bind(config, tier, metrics.clone(), Budget::new(1))
            .await
            .unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }));
        let text = error.to_string();
        assert!(
            text.contains(flag) && text.contains(&running.address.to_string()),
            "{text}"
        );
        assert!(text.contains("in use"), "{text}");
    }
    let config = ServerConfig::new(Protocol::Http, "192.0.2.1:4318".parse().unwrap());
    let error = Server::bind(config, Arc::clone(&running.tier), metrics, Budget::new(1))
        .await
        .unwrap_err();
    assert!(matches!(error, BindError::NotHere { .. }), "{error}");
}
