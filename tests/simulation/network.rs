//! The network between processes: what is sent arrives later, or never, or twice, and answers do
//! so too. Also the one queue of everything that will happen.
//!
//! Calls are made from tasks of routers and workers ([`Dial`], the seam under the lanes of a router
//! and the forwarding of a worker) and by clients; who is called is the world's business, that takes events
//! out of here one by one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailring::cluster::roster::SyncWith;
use tailring::net::client::{
    AddressError, Channel, ClientConfig, Dial, ExportError, ExportResponse,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::peering::{Asked, PeerCall, PeerReply};
use crate::plan::{Millis, Weather};

/// A machine on the network; processes that replace each other at one place share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    Client(usize),
    Router(usize),
    Worker(usize),
}

/// One process from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life(pub(crate) u64);

pub(crate) type Answer = Result<Reply, ExportError>;

/// What came back.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Otlp(ExportResponse),
    Peer(PeerReply),
}

/// What a message says.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Otlp { message: Bytes, metadata: HeaderMap },
    Peer(PeerCall),
}

/// A message on its way.
#[derive(Debug, Clone)]
pub(crate) struct Parcel {
    pub(crate) call: u64,
    pub(crate) from: Host,
    pub(crate) to: SocketAddr,
    pub(crate) body: Body,
}

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    Arrive(Parcel),
    /// Who called has given up, and this is known at the one that was called.
    GivenUp {
        call: u64,
        by: Life,
    },
    Answered {
        call: u64,
        answer: Answer,
    },
    TimedOut {
        call: u64,
    },
    Turn {
        life: Life,
        shard: usize,
    },
    Write {
        life: Life,
        shard: usize,
    },
    /// A message is at the backend.
    Deliver {
        life: Life,
        export: u64,
    },
    /// The backend's OK is at the worker.
    Delivered {
        life: Life,
        export: u64,
    },
    Resolve {
        life: Life,
    },
    /// A process looks at its clock.
    Tick {
        life: Life,
    },
    /// A worker that was asked to stop looks whether it can.
    Leave {
        life: Life,
        give_up_at: Millis,
    },
    SyncAgain {
        life: Life,
        sync: SyncWith,
    },
    /// The thread of the limits goes round.
    Limit {
        life: Life,
    },
    Send {
        request: usize,
    },
    Fault(usize),
    Healed(usize),
    Start {
        host: Host,
    },
}

/// Clones are the same network.
#[derive(Debug, Clone)]
pub(crate) struct Network(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    state: Mutex<State>,
    began: Instant,
    /// Something will happen before what was the next thing to happen.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    random: SmallRng,
    weather: Weather,
    events: BinaryHeap<Reverse<Entry>>,
    pushed: u64,
    /// From here to there nothing gets, by so many faults at once.
    cut: BTreeMap<(Host, Host), u32>,
    calls: BTreeMap<u64, Call>,
    called: u64,
    /// Processes that are there, with the moment until which each does nothing.
    alive: BTreeMap<Life, Millis>,
    promised: BTreeSet<usize>,
}

#[derive(Debug)]
struct Entry {
    at: Millis,
    number: u64,
    event: Event,
}

#[derive(Debug)]
struct Call {
    from: Host,
    caller: Caller,
    /// Who works on it.
    server: Option<(Host, Life)>,
}

#[derive(Debug)]
pub(crate) enum Caller {
    Client {
        request: usize,
    },
    /// The peering of a process, which takes its answer as an event.
    Peering {
        life: Life,
        what: Asked,
    },
    Task {
        life: Life,
        channel: u64,
        reply: oneshot::Sender<Answer>,
    },
}

impl Caller {
    fn life(&self) -> Option<Life> {
        match self {
            Self::Client { .. } => None,
            Self::Task { life, .. } | Self::Peering { life, .. } => Some(*life),
        }
    }
}

impl Network {
    /// Needs a runtime with a clock that stands still.
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Inside {
            state: Mutex::new(State {
                random: SmallRng::seed_from_u64(seed),
                weather,
                events: BinaryHeap::new(),
                pushed: 0,
                cut: BTreeMap::new(),
                calls: BTreeMap::new(),
                called: 0,
                alive: BTreeMap::new(),
                promised: BTreeSet::new(),
            }),
            began: Instant::now(),
            sooner: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic holds it")
    }

    pub(crate) fn now(&self) -> Millis {
        self.0.began.elapsed().as_millis() as Millis
    }

    pub(crate) fn push(&self, after: Millis, event: Event) {
        let now = self.now();
        self.push_at(now + after, event);
    }

    /// Never at this very moment: what is at work now comes to rest first.
    pub(crate) fn push_at(&self, at: Millis, event: Event) {
        let at = at.max(self.now() + 1);
        let mut state = self.state();
        let is_sooner = state.events.peek().is_none_or(|Reverse(next)| at < next.at);
        state.push(at, event);
        drop(state);
        if is_sooner {
            self.0.sooner.notify_one();
        }
    }

    /// Waits for what happens next. `None`: nothing ever does, or not until `end`.
    pub(crate) async fn next(&self, end: Millis) -> Option<Event> {
        loop {
            let next = self.state().events.peek().map(|Reverse(next)| next.at);
            let at = next.filter(|at| *at <= end)?;
            if at <= self.now() {
                let mut state = self.state();
                return state.events.pop().map(|Reverse(next)| next.event);
            }
            let due = self.0.began + Duration::from_millis(at);
            tokio::select! {
                biased;
                () = self.0.sooner.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    pub(crate) fn begin_life(&self, life: Life) {
        self.state().alive.insert(life, 0);
    }

    pub(crate) fn stall(&self, life: Life, until: Millis) {
        if let Some(stalled) = self.state().alive.get_mut(&life) {
            *stalled = until.max(*stalled);
        }
    }

    /// Until when a process does nothing; `None` if there is none.
    pub(crate) fn stalled_until(&self, life: Life) -> Option<Millis> {
        self.state().alive.get(&life).copied()
    }

    /// The process has ended: those it worked for are told by its machine, and nobody is told what
    /// it asked for.
    pub(crate) fn end_life(&self, life: Life) {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        state.alive.remove(&life);
        let mut broken = Vec::new();
        state.calls.retain(|call, it| {
            if it.server.is_some_and(|(_, server)| server == life) {
                broken.push((*call, it.from, it.server));
            }
            it.caller.life() != Some(life)
        });
        for (call, from, server) in broken {
            let host = server.map_or(from, |(host, _)| host);
            if let Some(delay) = state.way(host, from) {
                let answer = Err(ExportError::Unreachable("connection reset".into()));
                state.push(now + delay, Event::Answered { call, answer });
            }
        }
    }

    pub(crate) fn cut(&self, from: Host, to: Host) {
        *self.state().cut.entry((from, to)).or_default() += 1;
    }

    pub(crate) fn join(&self, from: Host, to: Host) {
        let mut state = self.state();
        if let Some(count) = state.cut.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                state.cut.remove(&(from, to));
            }
        }
    }

    /// The weather is fair from now on.
    pub(crate) fn calm_down(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.weather.lost = 0;
        state.weather.doubled = 0;
    }

    pub(crate) fn call(
        &self,
        from: Host,
        to: SocketAddr,
        caller: Caller,
        body: Body,
        timeout: Duration,
    ) -> u64 {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        let call = state.called;
        state.called += 1;
        // A process that does nothing sends nothing.
        let leaves = match &caller {
            Caller::Task { life, .. } | Caller::Peering { life, .. } => {
                state.alive.get(life).copied().unwrap_or(now).max(now)
            }
            Caller::Client { .. } => now,
        };
        let server = None;
        state.calls.insert(
            call,
            Call {
                from,
                caller,
                server,
            },
        );
        let parcel = Parcel {
            call,
            from,
            to,
            body,
        };
        let way = host_of(to).map_or(Some(1), |to| state.way(from, to));
        if let Some(delay) = way {
            if state.random.random_range(0..1000) < state.weather.doubled {
                let again = leaves + delay + state.random.random_range(1..3_000);
                state.push(again, Event::Arrive(parcel.clone()));
            }
            state.push(leaves + delay, Event::Arrive(parcel));
        }
        let timeout = timeout.as_millis() as Millis + 1;
        state.push(now + timeout, Event::TimedOut { call });
        drop(guard);
        self.0.sooner.notify_one();
        call
    }

    /// A process works on a call from now on.
    pub(crate) fn taken(&self, call: u64, by: Host, life: Life) {
        if let Some(call) = self.state().calls.get_mut(&call) {
            call.server = Some((by, life));
        }
    }

    pub(crate) fn answer(&self, call: u64, from: Host, answer: Answer) {
        let now = self.now();
        let mut state = self.state();
        let Some(to) = state.calls.get(&call).map(|call| call.from) else {
            return;
        };
        if let Some(delay) = state.way(from, to) {
            state.push(now + delay, Event::Answered { call, answer });
        }
        drop(state);
        self.0.sooner.notify_one();
    }

    /// A worker says OK for what is in this request. Whether its client ever hears of it is another question.
    pub(crate) fn promise(&self, request: &[u8]) {
        let request = ExportTraceServiceRequest::decode(request).expect("a worker took it");
        let resources = request.resource_spans.into_iter();
        let scopes = resources.flat_map(|it| it.scope_spans);
        let spans = scopes.flat_map(|it| it.spans);
        let numbers = spans.map(|span| {
            let id: [u8; 8] = span.span_id.try_into().expect("a worker took it");
            u64::from_be_bytes(id) as usize - 1
        });
        self.state().promised.extend(numbers);
    }

    pub(crate) fn promised(&self) -> BTreeSet<usize> {
        self.state().promised.clone()
    }

    /// The call is over for who made it. `None` if it was over already.
    pub(crate) fn finish(&self, call: u64) -> Option<Caller> {
        let over = self.state().calls.remove(&call)?;
        Some(over.caller)
    }

    /// Who made the call does not wait for its answer any more. `None` if it was over already.
    pub(crate) fn give_up(&self, call: u64) -> Option<Caller> {
        let now = self.now();
        let mut state = self.state();
        let over = state.calls.remove(&call)?;
        if let Some((host, life)) = over.server
            && let Some(delay) = state.way(over.from, host)
        {
            state.push(now + delay, Event::GivenUp { call, by: life });
        }
        Some(over.caller)
    }

    /// Whoever waits behind this channel is told that it is cut.
    fn cut_channel(&self, channel: u64) {
        let mut guard = self.state();
        let calls: Vec<u64> = guard
            .calls
            .iter()
            .filter(|(_, call)| matches!(&call.caller, Caller::Task { channel: of, .. } if *of == channel))
            .map(|(number, _)| *number)
            .collect();
        let now = self.now();
        for call in calls {
            let answer = Err(ExportError::Unreachable("redirected".into()));
            guard.push(now + 1, Event::Answered { call, answer });
        }
        drop(guard);
        self.0.sooner.notify_one();
    }

    fn is_alive(&self, life: Life) -> bool {
        self.state().alive.contains_key(&life)
    }
}

impl State {
    fn push(&mut self, at: Millis, event: Event) {
        let number = self.pushed;
        self.pushed += 1;
        self.events.push(Reverse(Entry { at, number, event }));
    }

    /// How long a message takes; `None` if it never arrives.
    fn way(&mut self, from: Host, to: Host) -> Option<Millis> {
        let weather = self.weather;
        let luck = self.random.random_range(0..1000);
        let delay = self.random.random_range(1..=weather.delay_most);
        if self.cut.contains_key(&(from, to)) || luck < weather.lost {
            return None;
        }
        let is_slow = luck < weather.lost + weather.slow;
        let more = if is_slow {
            self.random.random_range(0..=weather.slow_most)
        } else {
            0
        };
        Some(delay + more)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What one process reaches others by.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    network: Network,
    host: Host,
    life: Life,
}

#[derive(Debug)]
struct Wire {
    line: Line,
    number: u64,
    address: Mutex<SocketAddr>,
}

/// A call that somebody waits for; giving up is known at the other end a moment later.
struct Waiting {
    network: Network,
    call: u64,
}

impl Line {
    pub(crate) fn new(network: &Network, host: Host, life: Life) -> Self {
        Self {
            network: network.clone(),
            host,
            life,
        }
    }
}

impl Dial for Line {
    fn dial(&self, address: SocketAddr, _: ClientConfig) -> Result<Arc<dyn Channel>, AddressError> {
        let number = {
            let mut state = self.network.state();
            state.called += 1;
            state.called
        };
        Ok(Arc::new(Wire {
            line: self.clone(),
            number,
            address: Mutex::new(address),
        }))
    }
}

#[async_trait]
impl Channel for Wire {
    async fn export(
        &self,
        pieces: Vec<Bytes>,
        metadata: &HeaderMap,
        timeout: Duration,
    ) -> Result<ExportResponse, ExportError> {
        let Line {
            network,
            host,
            life,
        } = &self.line;
        if !network.is_alive(*life) {
            return Err(ExportError::Unreachable("the caller has ended".into()));
        }
        let mut message = BytesMut::new();
        pieces.iter().for_each(|it| message.extend_from_slice(it));
        let (reply, answer) = oneshot::channel();
        let caller = Caller::Task {
            life: *life,
            channel: self.number,
            reply,
        };
        let to = *self.address.lock().expect("no panic holds it");
        let mut metadata = metadata.clone();
        // As the client of gRPC does.
        let value = format!("{}m", timeout.as_millis().min(99_999_999));
        metadata.insert("grpc-timeout", value.parse().expect("digits"));
        let message = message.freeze();
        let body = Body::Otlp { message, metadata };
        let call = network.call(*host, to, caller, body, timeout);
        let _waiting = Waiting {
            network: network.clone(),
            call,
        };
        let gone = || Err(ExportError::Unreachable("the caller has ended".into()));
        match answer.await.unwrap_or_else(|_| gone())? {
            Reply::Otlp(response) => Ok(response),
            Reply::Peer(_) => Err(ExportError::Unreachable("nonsense".into())),
        }
    }

    fn redirect(&self, address: SocketAddr) -> Result<(), AddressError> {
        let mut held = self.address.lock().expect("no panic holds it");
        if *held != address {
            *held = address;
            self.line.network.cut_channel(self.number);
        }
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Already over if it was answered.
        self.network.give_up(self.call);
    }
}

/// Where the machine of an address hangs on the network; an address says it itself.
pub(crate) fn host_of(address: SocketAddr) -> Option<Host> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    match address.ip().octets() {
        [10, 1, number, _] => Some(Host::Router(usize::from(number))),
        [10, 2, number, _] => Some(Host::Worker(usize::from(number))),
        _ => None,
    }
}

/// `pod` counts the pods that one host had: a replaced one has a new address.
pub(crate) fn address_of(host: Host, pod: u8) -> SocketAddr {
    let (net, number) = match host {
        Host::Client(number) => (0, number),
        Host::Router(number) => (1, number),
        Host::Worker(number) => (2, number),
    };
    SocketAddr::from(([10, net, number as u8, pod], 4317))
}
