//! A backend that tells everybody to come back later: RESOURCE_EXHAUSTED with RetryInfo over gRPC,
//! 429 with Retry-After over HTTP. Takes nothing and counts who asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::receiver::Receiver;

/// See the module; gone when dropped, with its connections.
pub enum Throttle {
    Grpc(Receiver),
    Http(Http),
}

pub struct Http {
    asked: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Throttle {
    pub async fn grpc(address: SocketAddr, come_back_after: Duration) -> Self {
        let receiver = Receiver::start_at(address, Arc::default(), None).await;
        receiver.rule(move |_| {
            let details = ErrorDetails::with_retry_info(Some(come_back_after));
            let text = "too many spans in this minute";
            Err(Status::with_error_details(
                Code::ResourceExhausted,
                text,
                details,
            ))
        });
        Self::Grpc(receiver)
    }

    pub async fn http(address: SocketAddr, come_back_after: Duration) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and the connections with it.
            let mut serving = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let counter = counter.clone();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let counter = counter.clone();
                    async move {
                        request.into_body().collect().await?;
                        counter.fetch_add(1, Ordering::Relaxed);
                        let answer = Response::builder()
                            .status(StatusCode::TOO_MANY_REQUESTS)
                            .header("retry-after", come_back_after.as_secs())
                            .body(Full::<Bytes>::default())
                            .unwrap();
                        Ok::<_, hyper::Error>(answer)
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                serving.spawn(connection.serve_connection(TokioIo::new(tcp), service));
            }
        });
        Self::Http(Http { asked, accepting })
    }

    /// Requests that were turned away.
    pub fn turned_away(&self) -> usize {
        match self {
            Self::Grpc(receiver) => receiver.got().len(),
            Self::Http(http) => http.asked.load(Ordering::Relaxed),
        }
    }

    /// Listener and connections are gone when this returns.
    pub async fn stop(self) {
        match self {
            Self::Grpc(receiver) => {
                receiver.stop().await;
            }
            Self::Http(mut http) => {
                http.accepting.abort();
                let _ended = (&mut http.accepting).await;
            }
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
