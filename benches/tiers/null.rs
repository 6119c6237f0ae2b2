//! Servers that receive OTLP and do nothing: what receiving alone costs, with tonic.
//!
//! HTTP/2 as the tiers have it: 1 MiB frames, windows of 4 and 16 MiB. The raw server counts 512 spans a
//! request, which is what the load sends (its last request may be shorter); the prost server counts what it
//! decoded.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tailring::net::metadata::VIEW;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status};

#[derive(Clone, Copy)]
pub(crate) enum Codec {
    Raw,
    Prost,
}

/// `addresses`: where to listen for OTLP, and where to tell the count of spans.
pub(crate) fn serve(addresses: &str, codec: Codec) {
    let (grpc, admin) = addresses.split_once(',').unwrap();
    let grpc: SocketAddr = grpc.parse().unwrap();
    let spans = Arc::new(AtomicU64::new(0));
    let told = spans.clone();
    let admin = TcpListener::bind(admin).unwrap();
    std::thread::spawn(move || {
        for mut stream in admin.incoming().flatten() {
            // Closing with the request unread would reset the connection under the answer.
            let mut request = [0; 1024];
            if stream.read(&mut request).unwrap_or(0) == 0 {
                continue; // somebody who only looks whether the port is open
            }
            let count = told.load(Ordering::Relaxed);
            write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{count}\n"
            )
            .ok();
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(256)
            .max_frame_size(1 << 20)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20);
        let mut server = server;
        let served = match codec {
            Codec::Raw => server.add_service(Raw { spans }).serve(grpc).await,
            Codec::Prost => {
                let service =
                    TraceServiceServer::new(Decoding { spans }).max_decoding_message_size(64 << 20);
                server.add_service(service).serve(grpc).await
            }
        };
        served.unwrap();
    });
}

struct Decoding {
    spans: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl TraceService for Decoding {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans: usize = request
            .get_ref()
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .map(|scope| scope.spans.len())
            .sum();
        self.spans.fetch_add(spans as u64, Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[derive(Clone)]
struct Raw {
    spans: Arc<AtomicU64>,
}

impl tonic::server::NamedService for Raw {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl tower::Service<http::Request<tonic::body::Body>> for Raw {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(RawCodec).max_decoding_message_size(64 << 20);
            Ok(grpc.unary(service, request).await)
        })
    }
}

impl tonic::server::UnaryService<Bytes> for Raw {
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        // Scanning is cheap (6 ns a span), but would not be nothing: a full batch is 512 spans.
        let spans = if request.get_ref().is_empty() { 0 } else { 512 };
        self.spans.fetch_add(spans, Ordering::Relaxed);
        let mut response = Response::new(Bytes::new());
        // As a worker of the same view does; a router believes nobody else's OK.
        if let Some(view) = request.metadata().get(VIEW) {
            response.metadata_mut().insert(VIEW, view.clone());
        }
        std::future::ready(Ok(response))
    }
}

#[derive(Clone, Default)]
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = src.remaining();
        Ok(Some(src.copy_to_bytes(length)))
    }
}
