//! Processes of the cluster: routers and workers from their start to their end, with what belongs
//! to each place and stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tailring::cluster::{View, ViewHandle};
use tailring::log::SimulatedDisk;
use tailring::model::{Decision, Member, Moment};
use tailring::ring::{Seed, Table};
use tailring::router::Router;
use tailring::worker::shard::ExportWork;
use tailring::worker::{SimulatedDoor, SimulatedWorker};
use tokio::task::AbortHandle;

use crate::dns::{Records, Service};
use crate::network::{Host, Life, address_of};
use crate::plan::Millis;

/// A name leaves a view after so long without it.
const LEAVE_AFTER: Millis = 60_000;

/// A worker's place: its name, its disk, and the process that is there now.
pub(crate) struct WorkerPod {
    pub(crate) name: Member,
    pub(crate) host: Host,
    /// Counts the pods of this name.
    pub(crate) pod: u8,
    pub(crate) disk: SimulatedDisk,
    pub(crate) dns: Service,
    pub(crate) lives: u64,
    /// Not to be started again.
    pub(crate) is_removed: bool,
    pub(crate) process: Option<WorkerProcess>,
}

pub(crate) struct WorkerProcess {
    pub(crate) life: Life,
    pub(crate) address: SocketAddr,
    pub(crate) worker: SimulatedWorker<SimulatedDisk>,
    pub(crate) door: SimulatedDoor,
    pub(crate) belief: Belief,
    pub(crate) clock: Clock,
    pub(crate) shards: Vec<ShardState>,
    /// Requests under way.
    pub(crate) handlers: Vec<(u64, AbortHandle)>,
    pub(crate) exports: BTreeMap<u64, Export>,
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
    pub(crate) belief: Belief,
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
        self.began + std::time::Duration::from_millis(now)
    }

    /// When it was for the world.
    pub(crate) fn world(&self, moment: Moment) -> Millis {
        moment.since(self.began).as_millis() as Millis
    }
}

/// What a process believes of who is there.
pub(crate) struct Belief {
    known: BTreeMap<Member, (SocketAddr, Option<Millis>)>,
    pub(crate) view: ViewHandle,
}

impl Belief {
    pub(crate) fn new() -> Self {
        Self {
            known: BTreeMap::new(),
            view: ViewHandle::fixed(view(BTreeMap::new())),
        }
    }

    /// Names join at once and leave slowly.
    pub(crate) fn hear(&mut self, records: &Records, now: Millis) {
        let before = self.addresses();
        for (member, address) in records {
            self.known.insert(member.clone(), (*address, None));
        }
        self.known.retain(|member, (_, absent_since)| {
            if records.contains_key(member) {
                return true;
            }
            now - *absent_since.get_or_insert(now) < LEAVE_AFTER
        });
        let after = self.addresses();
        if before != after {
            self.view.publish(view(after));
        }
    }

    fn addresses(&self) -> BTreeMap<Member, SocketAddr> {
        let known = self.known.iter();
        known
            .map(|(member, (address, _))| (member.clone(), *address))
            .collect()
    }
}

/// Placing names takes milliseconds, and all runs have the same names.
fn view(addresses: BTreeMap<Member, SocketAddr>) -> View {
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

impl WorkerPod {
    pub(crate) fn new(number: usize, disk: SimulatedDisk, dns: Service) -> Self {
        let name = format!("worker-{number}.workers");
        Self {
            name: Member::parse(&name).expect("a legal name"),
            host: Host::Worker(number),
            pod: 1,
            disk,
            dns,
            lives: 0,
            is_removed: false,
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
