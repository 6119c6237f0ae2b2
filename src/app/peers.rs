//! What a worker has for its peers: a listener, and the roster behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::info;

use crate::app::admin::{ReadyCheck, RosterPage};
use crate::app::settings::WorkerConfig;
use crate::cluster::{Answer, Publisher};
use crate::model::{Identity, SteadyClock};
use crate::net::admission::{Budget, Permit};
use crate::net::peer::PeerMetrics;
use crate::net::server::{BindError, PeerPort, ServerMetrics, Stopped};
use crate::worker::{Peering, PeeringConfig, PeeringMetrics, PeeringService, Worker};

pub(super) struct Peers {
    peering: Arc<Peering>,
    driving: JoinHandle<()>,
    serving: JoinHandle<Stopped>,
    /// Serves as long as it lives.
    _serve: watch::Sender<()>,
    _share: Permit,
}

/// Bytes for calls of peers, taken from the worker's budget from the start: clients cannot take them.
pub(super) struct PeerShare {
    pub(super) budget: Arc<Budget>,
    permit: Permit,
}

impl PeerShare {
    pub(super) fn of(budget: &Arc<Budget>, bytes: u64) -> Self {
        Self {
            budget: Budget::new(bytes),
            permit: budget.charge(bytes),
        }
    }
}

impl Peers {
    /// For a worker whose log is indexed and that serves OTLP at `otlp`. `lookout`: what DNS answers, and who
    /// publishes the ring.
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, where a worker is put together"
    )]
    pub(super) async fn start(
        config: &WorkerConfig,
        identity: Identity,
        worker: &Arc<Worker>,
        clock: SteadyClock,
        otlp: SocketAddr,
        share: PeerShare,
        lookout: (mpsc::Receiver<Answer>, Publisher),
        (metrics, registry): (&ServerMetrics, &mut Registry),
    ) -> Result<Self, BindError> {
        let port = PeerPort::open(config.listen_peers.socket_addr())?;
        let peering = Peering::new(
            PeeringConfig {
                cluster: config.shared.cluster.clone(),
                identity,
                otlp,
                peer: port.local_addr(),
            },
            Arc::clone(worker),
            clock,
            PeerMetrics::register(registry),
            PeeringMetrics::register(registry),
        );
        info!(address = %port.local_addr(), "listening for peers");
        let service = Arc::new(PeeringService(Arc::clone(&peering)));
        let server = port.with(service, metrics, share.budget).await;
        let (serve, mut served) = watch::channel(());
        let serving =
            tokio::spawn(server.serve(async move { while served.changed().await.is_ok() {} }));
        let (answers, publisher) = lookout;
        Ok(Self {
            driving: peering.spawn(answers, publisher),
            peering,
            serving,
            _serve: serve,
            _share: share.permit,
        })
    }
}

impl Peers {
    pub(super) fn ready(&self) -> ReadyCheck {
        let peering = Arc::clone(&self.peering);
        ReadyCheck {
            name: "joined",
            check: Box::new(move || peering.joined()),
        }
    }

    pub(super) fn page(&self) -> RosterPage {
        let peering = Arc::clone(&self.peering);
        Box::new(move || peering.describe())
    }

    /// Once it was asked to stop, tells the others.
    pub(super) async fn leave(&self, mut stopping: watch::Receiver<bool>) {
        // Who no longer could say stop has stopped.
        drop(stopping.wait_for(|stop| *stop).await);
        self.peering.leave().await;
    }

    pub(super) fn stop(self) {
        self.driving.abort();
        self.serving.abort();
    }
}
