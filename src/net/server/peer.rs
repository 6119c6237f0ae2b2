//! The peer service over gRPC: reads a call, checks who calls and who is meant, asks the service.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::Request;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use tokio::sync::watch;

use super::body::BodyError;
use super::format::Format;
use super::grpc;
use super::listener::{BoundServer, Port, Serve, Shared, Stopped};
use super::metrics::{Outcome, ServerMetrics};
use super::reply::{self, Reply};
use super::{BindError, Protocol, ServerConfig};
use crate::model::Fingerprint;
use crate::net::admission::Budget;
use crate::net::peer::{
    Answering, Asked, Call, Caller, ITEMS_BYTES_MAX, PeerService, REQUEST_BYTES_MAX,
};
use crate::net::status::{Refusal, RefusalReason};

/// A listener for peers.
#[derive(Debug)]
pub struct PeerServer<S: PeerService> {
    bound: BoundServer<Door<S>>,
}

/// What a listener is given, so that a peer service is not taken for an OTLP one.
pub(super) struct Door<S>(Arc<S>);

/// The port of peers, open and not served yet: a hello says which port it is.
#[derive(Debug)]
pub struct PeerPort(Port);

impl PeerPort {
    pub fn open(listen: SocketAddr) -> Result<Self, BindError> {
        Port::open(Protocol::Peer, listen).map(Self)
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// `budget`: bytes that are for peers alone.
    pub async fn with<S: PeerService>(
        self,
        service: Arc<S>,
        metrics: &ServerMetrics,
        budget: Arc<Budget>,
    ) -> PeerServer<S> {
        let config = ServerConfig {
            request_bytes_max: REQUEST_BYTES_MAX,
            ..ServerConfig::new(Protocol::Peer, self.local_addr())
        };
        let door = Arc::new(Door(service));
        let bound = BoundServer::new(self.0, config, door, metrics, budget).await;
        PeerServer { bound }
    }
}

impl<S: PeerService> PeerServer<S> {
    /// As [`BoundServer::serve`].
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Stopped {
        self.bound.serve(shutdown).await
    }
}

impl<S: PeerService> Serve for Door<S> {
    async fn answer(
        shared: &Shared<Self>,
        request: Request<Incoming>,
        seen_at: IpAddr,
        _closing: watch::Receiver<bool>,
    ) -> Reply {
        if !grpc::is_grpc(request.headers().get(CONTENT_TYPE)) {
            let refusal = Refusal::new(
                RefusalReason::ContentType,
                "this port is for other workers (gRPC, tailring.v1.Peer); OTLP is on 4317 and 4318",
            );
            return reply::http_refused(&refusal, Format::of(request.headers()));
        }
        let path = request.uri().path();
        let Some(call) = Call::of_path(path) else {
            let detail = format!(
                "no method {path}; this port is for other workers, OTLP is on 4317 and 4318"
            );
            return reply::grpc_refused(&Refusal::new(RefusalReason::Unimplemented, detail));
        };
        match serve(shared, call, request, seen_at).await {
            Ok(pieces) => reply::grpc_message(&pieces, Outcome::Accepted),
            Err(error) => grpc::refused(error),
        }
    }

    fn view(&self) -> Fingerprint {
        self.0.fingerprint()
    }
}

async fn serve<S: PeerService>(
    shared: &Shared<Door<S>>,
    call: Call,
    request: Request<Incoming>,
    seen_at: IpAddr,
) -> Result<Vec<bytes::Bytes>, BodyError> {
    // The message stays paid for until it is answered.
    let (message, _, _admitted) = grpc::read(shared, request).await?;
    let (caller, asked) = call
        .read(message.bytes)
        .map_err(|detail| Refusal::new(RefusalReason::InvalidRequest, detail))?;
    let service = &shared.ingest.0;
    caller.means(service.identity(), service.cluster())?;
    // A hello is itself how one learns whom to believe.
    if !matches!(asked, Asked::Hello(_)) {
        service.admit(&caller, matches!(asked, Asked::Handoff(_)))?;
    }
    let answering = |service: &S| Answering {
        identity: service.identity().clone(),
        state: service.state(),
    };
    Ok(match asked {
        Asked::Hello(hello) => {
            let own = service.hello(hello, seen_at)?;
            answering(service).hello(&own)
        }
        Asked::View => answering(service).view(&service.view()),
        Asked::Handoff(items) => {
            let (from, state) = worker(&caller)?;
            let items = service.handoff(from, state, items).await?;
            answering(service).items(bounded(items)?)
        }
        Asked::Sync(items) => {
            let (from, _) = worker(&caller)?;
            let items = service.sync(from, items).await?;
            answering(service).items(bounded(items)?)
        }
    })
}

fn worker(
    caller: &Caller,
) -> Result<(&crate::model::Identity, crate::model::MemberState), Refusal> {
    match &caller.from {
        Some((identity, state)) => Ok((identity, *state)),
        None => Err(Refusal::new(
            RefusalReason::InvalidRequest,
            "a call between workers without caller.from",
        )),
    }
}

/// Whoever asked could not read more.
fn bounded(items: bytes::Bytes) -> Result<bytes::Bytes, Refusal> {
    if items.len() <= ITEMS_BYTES_MAX {
        return Ok(items);
    }
    let detail = format!("an answer of {} bytes of items", items.len());
    Err(Refusal::new(RefusalReason::Panicked, detail))
}
