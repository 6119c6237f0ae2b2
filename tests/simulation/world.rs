//! Runs a plan: takes events one by one, gives each to the process that it is for, and sees that all
//! comes to rest in the end.

mod clients;
mod faults;
mod handoffs;
mod peers;
mod workers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use prometheus_client::registry::Registry;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailring::cluster::Followed;
use tailring::log::SimulatedDisk;
use tailring::model::{StoreId, TraceId};
use tailring::net::admission::Budget;
use tailring::net::client::{ExportError, ExportResponse};
use tailring::net::metadata::RequestMetadata;
use tailring::net::server::{Accepted, Ingest, IngestRequest};
use tailring::net::status::Refusal;
use tailring::router::{Router, RouterConfig, RouterMetrics};
use tailring::worker::WorkerMetrics;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::books::{Account, Books};
use crate::counters::Counters;
use crate::dns::{Service, Zone};
use crate::network::{Answer, Body, Event, Host, Life, Line, Network, Parcel, Reply};
use crate::plan::{Millis, Plan};
use crate::pods::{LEAVE_AFTER, RouterPod, RouterProcess, WorkerPod, nobody};

/// What all runs of a thread share: dear to make, and nothing in it decides anything.
pub(crate) struct Stage {
    registry: Registry,
    worker_metrics: WorkerMetrics,
    router_metrics: RouterMetrics,
}

/// What became of one run.
pub(crate) struct Outcome {
    pub(crate) books: Books,
    pub(crate) account: Account,
    pub(crate) counters: Counters,
    pub(crate) events: u64,
    /// Over all events and their times: equal for equal runs.
    pub(crate) hash: u64,
    pub(crate) lasted: Millis,
}

pub(crate) struct World<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    network: Network,
    random: SmallRng,
    zone: Zone,
    workers: Vec<WorkerPod>,
    routers: Vec<RouterPod>,
    /// Who is behind an address.
    listeners: BTreeMap<IpAddr, (Host, Life)>,
    by_trace: BTreeMap<TraceId, usize>,
    lives: u64,
    exports: u64,
    handoffs: u64,
    attempts: Vec<Attempts>,
    books: Books,
    gave_up: u64,
    is_backend_down: bool,
    events: u64,
    hash: u64,
    is_calm: bool,
}

/// What a client did for one of its requests.
#[derive(Debug, Default, Clone, Copy)]
struct Attempts {
    sent: u32,
    is_over: bool,
}

/// Looked at so often, whatever happens.
const POLL_DNS: Millis = 2_000;
/// How long all may take to come to rest.
const REST_MOST: Millis = 400_000;
/// A KEEP that rose is known to every member that can be reached so much later.
const TOLD_WITHIN: Millis = 10_000;

impl Stage {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        Self {
            worker_metrics: WorkerMetrics::register(&mut registry),
            router_metrics: RouterMetrics::register(&mut registry),
            registry,
        }
    }
}

/// Runs a plan from its beginning to its end.
pub(crate) fn run(plan: &Plan, stage: &Stage) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(async { World::new(plan, stage).run().await })
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, stage: &'a Stage) -> Self {
        let mut random = SmallRng::seed_from_u64(plan.seed ^ 0x776f_726c_6400);
        let random = &mut random;
        let network = Network::new(random.random(), plan.weather);
        let service = |random: &mut SmallRng| Service {
            lag: random.random_range(0..plan.dns_lag_most),
            ..Service::default()
        };
        let workers = (0..plan.workers)
            .map(|number| {
                let disk = SimulatedDisk::new(random.random());
                let store = StoreId(random.random());
                WorkerPod::new(number, disk, store, service(random))
            })
            .collect();
        let routers = (0..plan.routers).map(|number| RouterPod {
            host: Host::Router(number),
            pod: 1,
            dns: service(random),
            process: None,
        });
        let routers = routers.collect();
        Self {
            plan,
            stage,
            network,
            random: SmallRng::seed_from_u64(random.random()),
            zone: Zone::default(),
            workers,
            routers,
            listeners: BTreeMap::new(),
            by_trace: plan.traces.iter().copied().zip(0..).collect(),
            lives: 0,
            exports: 0,
            handoffs: 0,
            attempts: vec![Attempts::default(); plan.requests.len()],
            books: Books::default(),
            gave_up: 0,
            is_backend_down: false,
            events: 0,
            hash: 0,
            is_calm: false,
        }
    }

    async fn run(mut self) -> Outcome {
        let before = Counters::read(&self.stage.registry);
        for number in 0..self.workers.len() {
            self.publish(number);
            self.start_worker(number);
        }
        for number in 0..self.routers.len() {
            self.start_router(number);
        }
        for (request, plan) in self.plan.requests.iter().enumerate() {
            self.network.push_at(plan.at, Event::Send { request });
        }
        for (number, (at, _)) in self.plan.faults.iter().enumerate() {
            self.network.push_at(*at, Event::Fault(number));
        }
        while let Some(event) = self.network.next(self.plan.calm_at).await {
            self.step(event);
        }
        self.calm_down();
        let end = self.plan.calm_at + REST_MOST;
        loop {
            while !self.is_at_rest()
                && let Some(event) = self.network.next(end).await
            {
                self.step(event);
            }
            // Verdicts may be on their way to who holds what they were given on.
            let told_at = end.min(self.now() + TOLD_WITHIN);
            while let Some(event) = self.network.next(told_at).await {
                self.step(event);
            }
            if self.is_at_rest() || told_at == end {
                break;
            }
        }
        if !self.is_at_rest() {
            let what = self.unrest();
            self.books.violation(format!("no rest: {what}"));
        }
        let mut account = self.books.settled(self.plan);
        account.gave_up = self.gave_up;
        let counters = Counters::read(&self.stage.registry).since(&before);
        self.books.compare(&counters);
        Outcome {
            books: self.books,
            account,
            counters,
            events: self.events,
            hash: self.hash,
            lasted: self.network.now(),
        }
    }

    fn now(&self) -> Millis {
        self.network.now()
    }

    /// What happened, for whoever looks into one run.
    fn story(&self, what: impl FnOnce() -> String) {
        if self.plan.is_told {
            eprintln!("{:>9.3} {}", self.now() as f64 / 1e3, what());
        }
    }

    fn step(&mut self, event: Event) {
        self.events += 1;
        let told = event.told();
        self.hash = xxh3_64_with_seed(told.as_bytes(), self.hash ^ self.now());
        self.wake_shards();
        if self.plan.is_told && !event.is_routine() {
            self.story(|| told);
        }
        match event {
            Event::Arrive(parcel) => self.arrive(parcel),
            Event::GivenUp { call, by } => self.given_up(call, by),
            Event::Answered { call, answer } => {
                let caller = self.network.finish(call);
                self.answered(caller, answer);
            }
            Event::TimedOut { call } => {
                let caller = self.network.give_up(call);
                let waited = Duration::from_secs(2);
                self.answered(caller, Err(ExportError::TimedOut(waited)));
            }
            Event::Turn { life, shard } => self.turn(life, shard),
            Event::Write { life, shard } => self.write(life, shard),
            Event::Deliver { life, export } => self.deliver(life, export),
            Event::Delivered { life, export } => self.exported(life, export),
            Event::Resolve { life } => self.resolve(life),
            Event::Tick { life } => self.tick(life),
            Event::Limit { life } => self.limit(life),
            Event::Leave { life, give_up_at } => self.look_to_leave(life, give_up_at),
            Event::SyncAgain { life, sync } => {
                if let Some(number) = self.worker_of(life) {
                    self.ask_for_sync(number, sync, false);
                }
            }
            Event::Send { request } => self.send(request),
            Event::Fault(number) => self.fault(number),
            Event::Healed(number) => self.healed(number),
            Event::Start {
                host: Host::Worker(number),
            } => self.start_worker(number),
            Event::Start {
                host: Host::Router(number),
            } => self.start_router(number),
            Event::Start { .. } => {}
        }
    }

    fn new_life(&mut self) -> Life {
        self.lives += 1;
        let life = Life(self.lives);
        self.network.begin_life(life);
        life
    }

    fn start_router(&mut self, number: usize) {
        if self.routers[number].process.is_some() {
            return;
        }
        let life = self.new_life();
        let pod = &mut self.routers[number];
        let view = nobody();
        let address = pod.address();
        pod.process = Some(RouterProcess {
            life,
            address,
            router: Router::over(
                std::sync::Arc::new(Line::new(&self.network, pod.host, life)),
                RouterConfig::default(),
                view.clone(),
                self.stage.router_metrics.clone(),
            ),
            followed: Followed::new(LEAVE_AFTER),
            view,
            handlers: Vec::new(),
        });
        self.listeners.insert(address.ip(), (pod.host, life));
        self.network.push(1, Event::Resolve { life });
        self.network.push(100, Event::Tick { life });
    }

    fn end_router(&mut self, number: usize) {
        let Some(process) = self.routers[number].process.take() else {
            return;
        };
        self.listeners.remove(&process.address.ip());
        self.network.end_life(process.life);
        for (_, handler) in process.handlers {
            handler.abort();
        }
    }

    fn worker_of(&self, life: Life) -> Option<usize> {
        let is_of = |pod: &WorkerPod| pod.process.as_ref().is_some_and(|it| it.life == life);
        self.workers.iter().position(is_of)
    }

    fn router_of(&self, life: Life) -> Option<usize> {
        let is_of = |pod: &RouterPod| pod.process.as_ref().is_some_and(|it| it.life == life);
        self.routers.iter().position(is_of)
    }

    fn arrive(&mut self, parcel: Parcel) {
        let Some((host, life)) = self.listeners.get(&parcel.to.ip()).copied() else {
            // A machine that is there says so; of one that is gone nobody hears anything.
            if self.random.random() {
                let answer = Err(ExportError::Unreachable("connection refused".into()));
                let by = crate::network::host_of(parcel.to).unwrap_or(parcel.from);
                self.network.answer(parcel.call, by, answer);
            }
            return;
        };
        match self.network.stalled_until(life) {
            Some(until) if until > self.now() => {
                return self.network.push_at(until, Event::Arrive(parcel));
            }
            Some(_) => {}
            None => return,
        }
        self.network.taken(parcel.call, host, life);
        match (parcel.body.clone(), host) {
            (Body::Otlp { message, metadata }, _) => {
                self.otlp_arrives(parcel.call, host, message, &metadata);
            }
            (Body::Peer(call), Host::Worker(number)) => self.peer_calls(number, &parcel, call),
            // Nobody listens there.
            (Body::Peer(_), _) => {
                let answer = Err(ExportError::Unreachable("connection refused".into()));
                self.network.answer(parcel.call, host, answer);
            }
        }
    }

    fn otlp_arrives(&mut self, call: u64, host: Host, message: Bytes, metadata: &HeaderMap) {
        let permit = Budget::new(u64::MAX).try_take(message.len() as u64);
        let permit = permit.expect("there is no bound");
        let metadata = match RequestMetadata::read_from(metadata) {
            Ok(metadata) => metadata,
            Err(error) => return self.books.violation(error),
        };
        let request = IngestRequest {
            message,
            permit,
            metadata,
        };
        let network = self.network.clone();
        match host {
            Host::Worker(number) => {
                let now = self.now();
                if let Some(process) = &mut self.workers[number].process {
                    process.last_request = now;
                    let (door, view) = (process.door.clone(), process.view.clone());
                    let message = request.message.clone();
                    let task = tokio::spawn(async move {
                        let result = door.take_in(request).await;
                        if result.is_ok() {
                            network.promise(&message);
                        }
                        let view = view.load().fingerprint();
                        network.answer(call, host, answer_of(result, view));
                    });
                    process.handlers.retain(|(_, task)| !task.is_finished());
                    process.handlers.push((call, task.abort_handle()));
                }
            }
            Host::Router(number) => {
                if let Some(process) = &mut self.routers[number].process {
                    let router = process.router.clone();
                    let task = tokio::spawn(async move {
                        let result = router.ingest(request).await;
                        let view = router.fingerprint();
                        network.answer(call, host, answer_of(result, view));
                    });
                    process.handlers.retain(|(_, task)| !task.is_finished());
                    process.handlers.push((call, task.abort_handle()));
                }
            }
            Host::Client(_) => {}
        }
    }

    fn given_up(&mut self, call: u64, by: Life) {
        let worker = self.worker_of(by);
        let worker = worker.and_then(|it| self.workers[it].process.as_ref());
        let router = self.router_of(by);
        let router = router.and_then(|it| self.routers[it].process.as_ref());
        let handlers = worker.map(|it| &it.handlers);
        let handlers = handlers.or(router.map(|it| &it.handlers));
        for (of, handler) in handlers.into_iter().flatten() {
            if *of == call {
                handler.abort();
            }
        }
    }

    fn resolve(&mut self, life: Life) {
        let now = self.now();
        let service = match (self.worker_of(life), self.router_of(life)) {
            (Some(number), _) => self.workers[number].dns,
            (_, Some(number)) => self.routers[number].dns,
            (None, None) => return,
        };
        let stalled = self.network.stalled_until(life).unwrap_or(0);
        if stalled <= now
            && let Some(records) = self.zone.ask(&service, now)
        {
            self.listed(life, &records);
        }
        self.network.push(POLL_DNS, Event::Resolve { life });
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random.random_range(0..below)
    }
}

/// As a server of gRPC writes it, and a client of gRPC reads it.
fn answer_of(result: Result<Accepted, Refusal>, view: tailring::model::Fingerprint) -> Answer {
    match result {
        Ok(accepted) => Ok(Reply::Otlp(ExportResponse {
            rejected_spans: accepted.rejected_spans,
            message: accepted.message,
            view: Some(view),
        })),
        Err(refusal) => Err(ExportError::Refused {
            code: code_name(refusal.reason.grpc_code()).into(),
            message: format!("{}: {}", refusal.reason.label(), refusal.detail),
            retryable: refusal.reason.retryable(),
            retry_after: refusal.retry_after,
        }),
    }
}

fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        _ => "INTERNAL",
    }
}

impl Event {
    /// Comes all the time, and says little to a reader.
    fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::Turn { .. }
                | Self::Write { .. }
                | Self::Tick { .. }
                | Self::Limit { .. }
                | Self::Resolve { .. }
        )
    }

    /// In words, without what differs between equal runs.
    fn told(&self) -> String {
        match self {
            Self::Arrive(Parcel {
                call,
                from,
                to,
                body: Body::Otlp { message, metadata },
            }) => {
                let metadata = RequestMetadata::read_from(metadata);
                let metadata = metadata.map(|it| (it.to, it.hop, it.surrogate_for));
                let bytes = message.len();
                format!("call {call} from {from:?} at {to}: {bytes} bytes, {metadata:?}")
            }
            other => format!("{other:?}"),
        }
    }
}
