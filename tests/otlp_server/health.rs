//! grpc.health.v1.

use super::*;

#[tokio::test]
async fn health_is_not_serving_until_it_is_said_and_a_watch_ends_with_the_server() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let mut running = start(Protocol::Grpc, 1 << 30, |_| {}).await;
    let mut client = HealthClient::new(running.channel().await);
    let ask = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    let trace = "opentelemetry.proto.collector.trace.v1.TraceService";
    for (serving, expected) in [
        (None, ServingStatus::NotServing),
        (Some(true), ServingStatus::Serving),
        (Some(false), ServingStatus::NotServing),
    ] {
        if let Some(serving) = serving {
            running.health.set_serving(serving).await;
        }
        for service in ["", trace] {
            let response = client.check(ask(service)).await.unwrap().into_inner();
            assert_eq!(response.status(), expected);
        }
    }
    let status = client.check(ask("nobody")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut watch = client.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    assert_eq!(
        running.stop().await,
        Stopped {
            aborted_connections: 0
        }
    );
    assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
}
