//! grpc.health.v1 on the gRPC port, by tonic-health.
//!
//! tonic-health starts with "" SERVING, so that a probe would be green from the first millisecond;
//! here everything starts NOT_SERVING, and a tier says when.

use std::convert::Infallible;
use std::fmt;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use super::grpc::TRACE_SERVICE;

/// Flips what health checks are told, for "" and for the trace service.
#[derive(Debug, Clone)]
pub struct HealthHandle {
    reporter: HealthReporter,
}

impl HealthHandle {
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in ["", TRACE_SERVICE] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// The service behind the handle.
#[derive(Clone)]
pub(super) struct HealthService {
    inner: BoxCloneSyncService<Request<Incoming>, Response<tonic::body::Body>, Infallible>,
}

impl HealthService {
    pub(super) async fn new() -> (HealthHandle, Self) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let handle = HealthHandle { reporter };
        handle.set_serving(false).await;
        // A HealthCheckRequest is a service name; tonic's limit of 4 MiB is not ours.
        let service = service.max_decoding_message_size(1024);
        let inner = BoxCloneSyncService::new(service);
        (handle, Self { inner })
    }

    pub(super) async fn call(&self, request: Request<Incoming>) -> Response<tonic::body::Body> {
        match self.inner.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

impl fmt::Debug for HealthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HealthService")
    }
}
