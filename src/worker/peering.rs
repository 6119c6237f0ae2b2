//! Drives the roster: says and answers hellos, asks peers for what they hold, publishes the ring, and says when this
//! worker may give verdicts. What follows from what is decided in `cluster/roster`; this file only has the clock,
//! the calls and the counters.
//!
//! The roster is behind a lock that is held for microseconds and never across a call: a hello is answered from memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::cluster::roster::{
    Distrust, Effects, Event, Hint, NoAnswer, Note, Roster, RosterConfig, RosterMember, Said,
    SyncWith,
};
use crate::cluster::{Answer, Publisher, ViewHandle};
use crate::model::{Fingerprint, Identity, Member, MemberState, SteadyClock};
use crate::net::peer::{
    Announced, Caller, Exchange, Hello, KnownMember, PeerClient, PeerError, PeerMetrics,
    PeerService, PeerTarget,
};
use crate::net::status::{Refusal, RefusalReason};
use crate::worker::Worker;
use crate::worker::peering_metrics::PeeringMetrics;

/// Several in each of the times that the roster tells apart.
const TICK: Duration = Duration::from_millis(200);
/// Between two views that are asked for.
const VIEWS_EVERY: Duration = Duration::from_secs(1);
/// Who was not heard for longer is nobody to be told of.
const TOLD_FRESH: Duration = Duration::from_secs(10);
/// How long a stop waits until the others know of it.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub struct PeeringConfig {
    pub cluster: String,
    pub identity: Identity,
    pub otlp: SocketAddr,
    pub peer: SocketAddr,
}

/// See the module.
#[derive(Debug)]
pub struct Peering {
    cluster: String,
    me: Identity,
    otlp: Announced,
    peer: Announced,
    worker: Arc<Worker>,
    view: ViewHandle,
    client: Arc<PeerClient>,
    clock: SteadyClock,
    roster: Mutex<Roster>,
    /// The ring is to be published.
    changed: Notify,
    /// A peer whose ring is another one, to be asked for its view.
    differs: mpsc::Sender<Member>,
    differing: Mutex<Option<mpsc::Receiver<Member>>>,
    /// Hellos under way; a stop waits for its last ones.
    hellos: watch::Sender<usize>,
    metrics: PeeringMetrics,
}

impl Peering {
    /// For a worker whose log is indexed.
    pub fn new(
        config: PeeringConfig,
        worker: Arc<Worker>,
        clock: SteadyClock,
        calls: PeerMetrics,
        metrics: PeeringMetrics,
    ) -> Arc<Self> {
        let PeeringConfig {
            cluster,
            identity,
            otlp,
            peer,
        } = config;
        let (differs, differing) = mpsc::channel(1);
        let client = PeerClient::new(cluster.clone(), Some(identity.clone()), calls);
        let client = Arc::new(client);
        worker.hand_over_by(client.clone());
        Arc::new(Self {
            cluster,
            otlp: otlp.into(),
            peer: peer.into(),
            view: worker.view.clone(),
            worker,
            client,
            clock,
            roster: Mutex::new(Roster::new(RosterConfig::default(), identity.clone(), otlp)),
            me: identity,
            changed: Notify::new(),
            differs,
            differing: Mutex::new(Some(differing)),
            hellos: watch::channel(0).0,
            metrics,
        })
    }

    /// Runs until it is aborted. Good answers of DNS come by `answers`.
    pub fn spawn(
        self: &Arc<Self>,
        answers: mpsc::Receiver<Answer>,
        publisher: Publisher,
    ) -> JoinHandle<()> {
        let peering = Arc::clone(self);
        let differing = self
            .differing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        tokio::spawn(async move {
            peering.handle(Event::Indexed);
            tokio::join!(
                peering.listen(answers),
                peering.publish(publisher),
                peering.ask_views(differing)
            );
        })
    }

    /// Tells everyone that this worker leaves, and waits until they know, at most a second.
    pub async fn leave(self: &Arc<Self>) {
        self.handle(Event::Drain);
        let mut hellos = self.hellos.subscribe();
        // The sender lives as long as this.
        drop(timeout(GOODBYE, hellos.wait_for(|under_way| *under_way == 0)).await);
    }

    /// Sorted by name.
    pub fn describe(&self) -> Vec<RosterMember> {
        self.roster().describe(self.clock.now())
    }

    /// `Err` says why this worker has not joined.
    pub fn joined(&self) -> Result<(), String> {
        let roster = self.roster();
        let name = &self.me.member;
        if let Some(by) = roster.fenced_by() {
            return Err(format!(
                "another process has the name {name} and started later (incarnation {by}); this one gives no \
                 verdict any more and hands over what it has: stop one of them"
            ));
        }
        if !roster.was_listed() {
            return Err(format!(
                "{name} is not among the members that --workers finds; see /ring, and --name"
            ));
        }
        match roster.state() {
            MemberState::Ready => Ok(()),
            MemberState::Joining => Err(
                "joining: waits for its peers to say what they hold for it; see /ring".to_owned(),
            ),
            MemberState::Draining => Err("leaves the ring".to_owned()),
        }
    }

    async fn listen(self: &Arc<Self>, mut answers: mpsc::Receiver<Answer>) {
        let mut ticks = tokio::time::interval(TICK);
        // After a stall one tick says it all.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.handle(Event::Tick),
                Some(answer) = answers.recv() => self.handle(Event::Dns(&answer)),
            }
        }
    }

    async fn publish(&self, publisher: Publisher) {
        loop {
            self.changed.notified().await;
            let names = self.roster().names().clone();
            publisher.publish(names).await;
            let state = self.roster().state();
            self.client.announce(state, self.view.load().fingerprint());
        }
    }

    /// Two workers that DNS does not list, or lists elsewhere, find each other through a third.
    async fn ask_views(self: &Arc<Self>, differing: Option<mpsc::Receiver<Member>>) {
        let Some(mut differing) = differing else {
            return;
        };
        while let Some(member) = differing.recv().await {
            match self.client.view(&member).await {
                Ok(view) => self.handle(Event::Told(&hints(view.members))),
                Err(error) => debug!(%member, %error, "a peer did not say who is there"),
            }
            sleep(VIEWS_EVERY).await;
        }
    }

    fn handle(self: &Arc<Self>, event: Event<'_>) {
        self.take(event);
    }

    /// Gives the event to the roster and does what comes of it. Returns why a hello was refused.
    fn take(self: &Arc<Self>, event: Event<'_>) -> Option<Distrust> {
        let is_tick = matches!(event, Event::Tick);
        let mut roster = self.roster();
        let effects = roster.handle(event, self.clock.now());
        let state = roster.state();
        let until = roster.may_decide_until();
        // Hellos come by the hundred; what they change beside addresses is noted.
        let is_news = is_tick || !effects.notes.is_empty();
        if effects.names_changed || effects.addresses_changed {
            let targets = roster
                .peers()
                .map(|(member, address, incarnation)| {
                    let target = PeerTarget {
                        address,
                        incarnation,
                    };
                    (member.clone(), target)
                })
                .collect::<BTreeMap<_, _>>();
            // Under the lock: an older list must not come later.
            self.client.set_peers(&targets);
            self.changed.notify_one();
        }
        self.client.announce(state, self.view.load().fingerprint());
        self.metrics.show(&roster);
        drop(roster);
        if is_news {
            self.worker.join(until);
        }
        self.act(effects)
    }

    fn act(self: &Arc<Self>, effects: Effects) -> Option<Distrust> {
        for note in &effects.notes {
            self.metrics.note(note);
            log(note);
            if matches!(note, Note::Fenced(_)) {
                self.worker.give_all_away();
            }
        }
        for member in effects.hello {
            self.hellos.send_modify(|under_way| *under_way += 1);
            let peering = Arc::clone(self);
            tokio::spawn(async move {
                peering.say_hello(&member).await;
                peering.hellos.send_modify(|under_way| *under_way -= 1);
            });
        }
        for sync in effects.sync {
            let peering = Arc::clone(self);
            tokio::spawn(async move { peering.sync_with(sync).await });
        }
        effects.refused
    }

    async fn say_hello(self: &Arc<Self>, member: &Member) {
        let event = match self.client.hello(member, &self.own_hello()).await {
            Ok((answer, at)) => {
                if answer.fingerprint != Some(self.view.load().fingerprint()) {
                    // Full: one is asked already.
                    self.differs.try_send(member.clone()).ok();
                }
                Event::Answered(said(answer.hello, at.ip()))
            }
            Err(error) => {
                debug!(%member, %error, "a hello was not answered");
                Event::NotAnswered(member.clone(), no_answer(&error))
            }
        };
        self.handle(event);
    }

    async fn sync_with(self: &Arc<Self>, sync: SyncWith) {
        let event = match self.worker.sync_with(&self.client, &sync.member).await {
            Ok(()) => Event::Synced(sync),
            Err(error) => {
                warn!(member = %sync.member, %error, "a peer did not say what it holds");
                Event::NotSynced(sync)
            }
        };
        self.handle(event);
    }

    fn own_hello(&self) -> Hello {
        Hello {
            identity: self.me.clone(),
            state: self.roster().state(),
            otlp: self.otlp,
            peer: self.peer,
        }
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        // The roster does not panic, and each event is whole in itself.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What peers call.
#[derive(Debug)]
pub struct PeeringService(pub Arc<Peering>);

impl PeerService for PeeringService {
    fn identity(&self) -> &Identity {
        &self.0.me
    }

    fn cluster(&self) -> &str {
        &self.0.cluster
    }

    fn state(&self) -> MemberState {
        self.0.roster().state()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.0.view.load().fingerprint()
    }

    fn admit(&self, caller: &Caller, gives: bool) -> Result<(), Refusal> {
        let Some((from, _)) = &caller.from else {
            return Ok(());
        };
        let roster = self.0.roster();
        let distrust = if gives {
            roster.distrust_of_giver(from)
        } else {
            roster.distrust(from)
        };
        drop(roster);
        let Some(distrust) = distrust else {
            return Ok(());
        };
        self.0.metrics.distrusted(&distrust);
        Err(refusal(&from.member, &distrust))
    }

    fn hello(&self, hello: Hello, seen_at: IpAddr) -> Result<Hello, Refusal> {
        let member = hello.identity.member.clone();
        match self.0.take(Event::Hello(said(hello, seen_at))) {
            Some(distrust) => Err(refusal(&member, &distrust)),
            None => Ok(self.0.own_hello()),
        }
    }

    fn view(&self) -> Vec<KnownMember> {
        let known = |it: RosterMember| KnownMember {
            member: it.member,
            said: it
                .said
                .map(|(identity, state)| (identity.incarnation, state)),
            suspect: it.suspect,
            silent: it.silent.unwrap_or_default(),
            otlp: it.otlp,
            peer: it.peer,
        };
        self.0.describe().into_iter().map(known).collect()
    }

    async fn handoff(
        &self,
        from: &Identity,
        state: MemberState,
        items: Bytes,
    ) -> Result<Bytes, Refusal> {
        self.0.worker.receive_handoff(from, state, items).await
    }

    async fn sync(&self, from: &Identity, items: Bytes) -> Result<Bytes, Refusal> {
        self.0.worker.answer_sync(from, items).await
    }
}

fn said(hello: Hello, seen_at: IpAddr) -> Said {
    let (otlp, peer) = hello.addresses(seen_at);
    Said {
        identity: hello.identity,
        state: hello.state,
        otlp,
        peer,
    }
}

/// Whom the peer has heard itself, and lately.
fn hints(members: Vec<KnownMember>) -> Vec<Hint> {
    let hint = |it: KnownMember| {
        let (_, state) = it.said?;
        let is_there = state != MemberState::Draining && !it.suspect && it.silent < TOLD_FRESH;
        let peer = it.peer.filter(|_| is_there)?;
        Some(Hint {
            member: it.member,
            peer,
        })
    };
    members.into_iter().filter_map(hint).collect()
}

fn no_answer(error: &PeerError) -> NoAnswer {
    match error {
        PeerError::Refused {
            reason: Some(RefusalReason::StaleIncarnation),
            ..
        } => NoAnswer::WeAreStale,
        PeerError::Refused { .. } | PeerError::Impostor(_) => NoAnswer::Impostor,
        PeerError::NoAddress(_)
        | PeerError::TooLong(_)
        | PeerError::Unreachable(_)
        | PeerError::TimedOut(_) => NoAnswer::Unreachable,
    }
}

fn refusal(member: &Member, distrust: &Distrust) -> Refusal {
    match distrust {
        Distrust::Stale { known } => Refusal::new(
            RefusalReason::StaleIncarnation,
            format!("incarnation {known} of {member} is known here, and it is younger"),
        ),
        Distrust::Copy => Refusal::new(
            RefusalReason::StaleIncarnation,
            format!("{member} is known here with another data dir in the same incarnation"),
        ),
        Distrust::TooMany => Refusal::new(
            RefusalReason::MemoryPressure,
            "this worker knows as many members as a cluster can have",
        ),
    }
}

fn log(note: &Note) {
    match note {
        Note::Joined(member) => info!(%member, "a worker joined"),
        Note::Drained(member) => info!(%member, "a worker is draining: it left the ring"),
        Note::Suspected(member) => {
            warn!(%member, "a worker was unreachable for a minute: it left the ring");
        }
        Note::Left(member) => info!(%member, "a worker left"),
        Note::StoreReplaced(member) => {
            warn!(%member, "a worker came back with a new data dir: its log is empty");
        }
        Note::Distrusted(member, distrust) => {
            debug!(%member, ?distrust, "a hello is not believed");
        }
        Note::Stalled(gap) => {
            warn!(
                ?gap,
                "this process was stopped: no verdicts until its peers have told what they hold"
            );
        }
        Note::Isolated => warn!("no peer answers: this worker may be cut off"),
        Note::Rejoining => info!("joining again"),
        Note::Ready { forced: false } => info!("joined: verdicts are given"),
        Note::Ready { forced: true } => {
            warn!("joined, though a peer did not tell in time what it holds");
        }
        Note::Fenced(by) => error!(
            incarnation = %by,
            "another process has this worker's name and is younger: no verdict is given here any more, and what is here goes to the others; stop one of them"
        ),
    }
}
