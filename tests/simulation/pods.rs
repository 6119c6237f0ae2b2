//! Processes of the cluster: routers and workers from their start to their end, with what belongs
//! to each place and stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tailring::cluster::roster::Roster;
use tailring::cluster::{Followed, View, ViewHandle};
use tailring::log::SimulatedDisk;
use tailring::model::{Decision, Fingerprint, Incarnation, Member, Moment, StoreId};
use tailring::ring::{Seed, Table};
use tailring::router::Router;
use tailring::worker::shard::ExportWork;
use tailring::worker::{SimulatedDoor, SimulatedHandoff, SimulatedReceipt, SimulatedWorker};
use tokio::task::AbortHandle;

use crate::dns::Service;
use crate::network::{Host, Life, address_of};
use crate::plan::Millis;

pub(crate) const PEER_PORT: u16 = 4319;
/// A name that only vanished from DNS leaves a router's view after so long.
pub(crate) const LEAVE_AFTER: Duration = Duration::from_secs(60);

/// A worker's place: its name, its disk, and the process that is there now.
pub(crate) struct WorkerPod {
    pub(crate) name: Member,
    pub(crate) host: Host,
    /// Counts the pods of this name.
    pub(crate) pod: u8,
    pub(crate) disk: SimulatedDisk,
    pub(crate) dns: Service,
    pub(crate) incarnation: Incarnation,
    pub(crate) store: StoreId,
    /// Not to be started again.
    pub(crate) is_removed: bool,
    /// Of a worker that leaves: how long until it comes back, and whether as another pod.
    pub(crate) comes_back: Option<(Millis, bool)>,
    pub(crate) process: Option<WorkerProcess>,
}

pub(crate) struct WorkerProcess {
    pub(crate) life: Life,
    pub(crate) address: SocketAddr,
    pub(crate) worker: SimulatedWorker<SimulatedDisk>,
    pub(crate) door: SimulatedDoor,
    pub(crate) roster: Roster,
    pub(crate) view: ViewHandle,
    /// The ring by which limits were last divided.
    pub(crate) divided_by: Option<Fingerprint>,
    pub(crate) clock: Clock,
    pub(crate) shards: Vec<ShardState>,
    /// Requests under way.
    pub(crate) handlers: Vec<(u64, AbortHandle)>,
    pub(crate) exports: BTreeMap<u64, Export>,
    /// Work on its way to other members.
    pub(crate) handoffs: BTreeMap<u64, SimulatedHandoff>,
    /// What other members handed over, with the calls that wait for it to be written.
    pub(crate) receipts: Vec<(u64, SimulatedReceipt)>,
    pub(crate) last_request: Millis,
    pub(crate) is_stopping: bool,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ShardState {
    /// When its next turn is.
    pub(crate) turn_at: Option<Millis>,
    pub(crate) is_writing: bool,
    pub(crate) exports: usize,
}

/// Work that an exporter has.
pub(crate) struct Export {
    pub(crate) shard: usize,
    pub(crate) work: ExportWork,
    /// What it reads as: traces with their spans.
    pub(crate) content: Vec<(usize, Decision, Vec<usize>)>,
}

pub(crate) struct RouterPod {
    pub(crate) host: Host,
    pub(crate) pod: u8,
    pub(crate) dns: Service,
    pub(crate) process: Option<RouterProcess>,
}

pub(crate) struct RouterProcess {
    pub(crate) life: Life,
    pub(crate) address: SocketAddr,
    pub(crate) router: Arc<Router>,
    pub(crate) followed: Followed,
    pub(crate) view: ViewHandle,
    pub(crate) handlers: Vec<(u64, AbortHandle)>,
}

/// A process's clock: wall time at its start, which may be wrong, and steady time since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// What this process takes the beginning of the run for.
    began: Moment,
}

impl Clock {
    const BEGAN: u64 = 1_800_000_000_000;

    /// `ahead`: how much the wall clock is, in milliseconds around an hour.
    pub(crate) fn new(ahead: i64) -> Self {
        let began = Self::BEGAN.saturating_add_signed(ahead);
        Self {
            began: Moment::from_unix_millis(began),
        }
    }

    pub(crate) fn at(&self, now: Millis) -> Moment {
        self.began + Duration::from_millis(now)
    }

    /// When it was for the world.
    pub(crate) fn world(&self, moment: Moment) -> Millis {
        moment.since(self.began).as_millis() as Millis
    }
}

/// Placing names takes milliseconds, and all runs have the same names.
fn view_of(addresses: BTreeMap<Member, SocketAddr>) -> View {
    static TABLES: LazyLock<Mutex<BTreeMap<BTreeSet<Member>, Table>>> =
        LazyLock::new(Mutex::default);
    let names: BTreeSet<Member> = addresses.keys().cloned().collect();
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let table = tables
        .entry(names)
        .or_insert_with_key(|names| {
            Table::build(names.iter().cloned(), Seed::DEFAULT, "simulation")
        })
        .clone();
    View { addresses, table }
}

/// A view of nobody.
pub(crate) fn nobody() -> ViewHandle {
    ViewHandle::fixed(view_of(BTreeMap::new()))
}

/// As the publisher of a process does.
pub(crate) fn publish(view: &ViewHandle, addresses: &BTreeMap<Member, SocketAddr>) {
    if view.load().addresses != *addresses {
        view.publish(view_of(addresses.clone()));
    }
}

impl WorkerProcess {
    pub(crate) fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), PEER_PORT)
    }
}

impl WorkerPod {
    pub(crate) fn new(number: usize, disk: SimulatedDisk, store: StoreId, dns: Service) -> Self {
        let name = format!("worker-{number}.workers");
        Self {
            name: Member::parse(&name).expect("a legal name"),
            host: Host::Worker(number),
            pod: 1,
            disk,
            dns,
            incarnation: Incarnation(0),
            store,
            is_removed: false,
            comes_back: None,
            process: None,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        address_of(self.host, self.pod)
    }
}

impl RouterPod {
    pub(crate) fn address(&self) -> SocketAddr {
        address_of(self.host, self.pod)
    }
}
