//! Asks the source again and again. What is an answer is decided in `resolver`; what it means for the members
//! in `followed` for a router, whose views are published here, and in `roster` for a worker, which takes the
//! answers and publishes for itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, info, info_span, warn};

use crate::cluster::followed::{Followed, Told};
use crate::cluster::membership::Answer;
use crate::cluster::publisher::Publisher;
use crate::cluster::resolver::{Failure, Resolved, Resolver};
use crate::cluster::source::Source;
use crate::cluster::view::{View, ViewHandle};
use crate::model::Member;
use crate::ring::Seed;

/// However short the TTL: two questions a second are plenty.
const POLL_MIN: Duration = Duration::from_millis(500);

/// Hints come from every lane at once when a worker dies.
const REFRESH_MIN: Duration = Duration::from_secs(1);

/// What makes a view beside the names, and how fast it follows them.
#[derive(Debug, Clone)]
pub struct DiscoveryConfig {
    pub cluster: String,
    pub seed: Seed,
    /// How long a name must have been absent from good answers before it leaves the ring.
    pub leave_after: Duration,
    /// Bounds the time between two questions; a shorter TTL shortens it, down to half a second.
    pub poll_max: Duration,
}

/// Ready to ask; whoever runs it says what becomes of the answers.
pub struct Discovery {
    asking: Asking,
    config: DiscoveryConfig,
    shutdown: watch::Receiver<bool>,
}

/// The running task of a router.
#[derive(Debug)]
pub struct Following {
    pub view: ViewHandle,
    /// What workers say of their cluster goes in here.
    pub told: mpsc::Sender<Told>,
    /// Where workers can be asked.
    pub peers: watch::Receiver<BTreeMap<Member, SocketAddr>>,
    pub task: JoinHandle<()>,
}

struct Asking {
    resolver: Resolver,
    poll_max: Duration,
    view: ViewHandle,
    metrics: DiscoveryMetrics,
    last_good: Instant,
    /// What was logged last, so that an outage is one line and its end another.
    last_outcome: Option<Outcome>,
    last_ambiguous: usize,
    last_without_address: usize,
}

/// Views that workers told and that wait to be taken in: one fetch at a time makes one.
const TOLD_QUEUE: usize = 8;

/// How often what was told is looked at for its age.
const TOLD_AGES: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct DiscoveryMetrics {
    answers: Family<OutcomeLabel, Counter>,
    pub(super) members: Gauge,
    pub(super) view_changes: Counter,
    last_good_age_seconds: Gauge<f64, AtomicU64>,
    ambiguous_targets: Counter,
    targets_without_address: Counter,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Ok,
    ServFail,
    NxDomain,
    Empty,
    Truncated,
    Timeout,
    TooMany,
    Garbage,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

impl DiscoveryConfig {
    pub fn new(cluster: impl Into<String>, seed: Seed) -> Self {
        Self {
            cluster: cluster.into(),
            seed,
            // Longer than a pod takes to come back somewhere else under its name.
            leave_after: Duration::from_secs(60),
            poll_max: Duration::from_secs(2),
        }
    }
}

impl Discovery {
    /// The view is empty until somebody publishes one.
    pub fn new(
        source: Source,
        config: DiscoveryConfig,
        metrics: DiscoveryMetrics,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let view = ViewHandle::fixed(View::new(BTreeMap::new(), config.seed, &config.cluster));
        Self {
            asking: Asking {
                resolver: Resolver::new(source),
                poll_max: config.poll_max,
                view,
                metrics,
                last_good: Instant::now(),
                last_outcome: None,
                last_ambiguous: 0,
                last_without_address: 0,
            },
            config,
            shutdown,
        }
    }

    pub fn view(&self) -> ViewHandle {
        self.asking.view.clone()
    }

    /// For a router: publishes what DNS and workers say. The view is empty until the first good answer, however
    /// long that takes. Ends when `shutdown` says true or its sender is gone; the last view stays.
    pub fn follow(self) -> Following {
        let span = info_span!("discovery", source = %self.asking.resolver.source());
        let view = self.view();
        let (told, told_receiver) = mpsc::channel(TOLD_QUEUE);
        let (peers, peers_receiver) = watch::channel(BTreeMap::new());
        let (answers, answers_receiver) = mpsc::channel(1);
        let mut shutdown = self.shutdown.clone();
        let follower = Follower {
            followed: Followed::new(self.config.leave_after),
            publisher: Publisher::new(view.clone(), &self.config, self.asking.metrics.clone()),
            peers,
        };
        let asking = self.asking;
        let task = async move {
            // Cancelled anywhere: a question without its answer leaves no trace.
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {}
                () = asking.poll(answers) => {}
                () = follower.run(answers_receiver, told_receiver) => {}
            }
        };
        Following {
            view,
            told,
            peers: peers_receiver,
            task: tokio::spawn(task.instrument(span)),
        }
    }

    /// For a worker: good answers as they come, and who publishes what it makes of them.
    pub fn answers(self) -> (mpsc::Receiver<Answer>, Publisher) {
        let span = info_span!("discovery", source = %self.asking.resolver.source());
        let publisher = Publisher::new(self.view(), &self.config, self.asking.metrics.clone());
        let (answers, receiver) = mpsc::channel(1);
        let (asking, mut shutdown) = (self.asking, self.shutdown);
        let task = async move {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {}
                () = asking.poll(answers) => {}
            }
        };
        tokio::spawn(task.instrument(span));
        (receiver, publisher)
    }
}

struct Follower {
    followed: Followed,
    publisher: Publisher,
    peers: watch::Sender<BTreeMap<Member, SocketAddr>>,
}

impl Follower {
    async fn run(mut self, mut answers: mpsc::Receiver<Answer>, mut told: mpsc::Receiver<Told>) {
        let mut ages = tokio::time::interval(TOLD_AGES);
        loop {
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => self.followed.listed(&answer, Instant::now()),
                    None => return,
                },
                Some(told) = told.recv() => self.followed.told(told, Instant::now()),
                _ = ages.tick() => {}
            }
            let now = Instant::now();
            self.publisher.publish(self.followed.addresses(now)).await;
            let peers = self.followed.peers(now);
            self.peers.send_if_modified(|before| {
                let is_new = *before != peers;
                *before = peers;
                is_new
            });
        }
    }
}

impl Asking {
    /// Ends when nobody takes answers any more.
    async fn poll(mut self, answers: mpsc::Sender<Answer>) {
        loop {
            let asked_at = Instant::now();
            let answer = self.resolver.ask().await;
            let (answer, wait) = self.take(answer);
            if let Some(answer) = answer
                && answers.send(answer).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = sleep_until(asked_at + wait) => {}
                () = self.view.refresh_wanted() => {
                    sleep_until(asked_at + wait.min(REFRESH_MIN)).await;
                }
            }
        }
    }

    /// What is good of an answer, and how long after its question the next one is due.
    fn take(&mut self, answer: Result<Resolved, Failure>) -> (Option<Answer>, Duration) {
        let now = Instant::now();
        self.note(&answer);
        let (answer, ttl) = match answer {
            Ok(resolved) => {
                self.last_good = now;
                (Some(resolved.answer), resolved.ttl)
            }
            Err(_) => (None, None),
        };
        let age = now.duration_since(self.last_good);
        self.metrics.last_good_age_seconds.set(age.as_secs_f64());
        let wait = poll_after(ttl, self.poll_max, rand::random_range(0.9..=1.1));
        (answer, wait)
    }

    fn note(&mut self, answer: &Result<Resolved, Failure>) {
        let outcome = Outcome::of(answer);
        self.metrics
            .answers
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
        let news = self.last_outcome != Some(outcome);
        self.last_outcome = Some(outcome);
        match answer {
            Ok(resolved) => {
                self.metrics
                    .ambiguous_targets
                    .inc_by(resolved.ambiguous as u64);
                self.metrics
                    .targets_without_address
                    .inc_by(resolved.without_address as u64);
                if news {
                    info!(names = resolved.answer.len(), "workers are being found");
                }
                if resolved.ambiguous > 0 && resolved.ambiguous != self.last_ambiguous {
                    warn!(
                        records = resolved.ambiguous,
                        "several SRV records have one target and different ports: the lowest port counts"
                    );
                }
                self.last_ambiguous = resolved.ambiguous;
                if resolved.without_address != self.last_without_address {
                    warn!(
                        names = resolved.without_address,
                        "workers whose address was not found: new ones wait, known ones keep theirs"
                    );
                }
                self.last_without_address = resolved.without_address;
            }
            Err(failure) if news => {
                let known = self.view.load().addresses.len();
                warn!(%failure, known, "looking for workers failed; those known stay");
            }
            Err(_) => {}
        }
    }
}

impl Outcome {
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::ServFail,
        Self::NxDomain,
        Self::Empty,
        Self::Truncated,
        Self::Timeout,
        Self::TooMany,
        Self::Garbage,
        Self::Other,
    ];

    /// As in the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ServFail => "servfail",
            Self::NxDomain => "nxdomain",
            Self::Empty => "empty",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::TooMany => "too_many",
            Self::Garbage => "garbage",
            Self::Other => "other",
        }
    }

    fn of(answer: &Result<Resolved, Failure>) -> Self {
        match answer {
            Ok(_) => Self::Ok,
            Err(Failure::ServFail) => Self::ServFail,
            Err(Failure::NxDomain) => Self::NxDomain,
            Err(Failure::Empty) => Self::Empty,
            Err(Failure::Truncated) => Self::Truncated,
            Err(Failure::Timeout) => Self::Timeout,
            Err(Failure::TooMany(_)) => Self::TooMany,
            Err(Failure::Garbage(_)) => Self::Garbage,
            Err(Failure::Other(_)) => Self::Other,
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.label().encode(encoder)
    }
}

impl DiscoveryMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            answers: Family::default(),
            members: Gauge::default(),
            view_changes: Counter::default(),
            last_good_age_seconds: Gauge::default(),
            ambiguous_targets: Counter::default(),
            targets_without_address: Counter::default(),
        };
        // Outcomes that never happened show as zero, so that an alert on a rate sees the first.
        for outcome in Outcome::ALL {
            drop(metrics.answers.get_or_create(&OutcomeLabel { outcome }));
        }
        registry.register(
            "discovery_answers",
            "Questions for the list of workers, by what became of them; only ok can change the ring",
            metrics.answers.clone(),
        );
        registry.register(
            "discovery_members",
            "Workers in the view of this process",
            metrics.members.clone(),
        );
        registry.register(
            "discovery_view_changes",
            "New views, by a change of names or of addresses",
            metrics.view_changes.clone(),
        );
        registry.register(
            "discovery_last_good_answer_age_seconds",
            "Time since the last good answer (since start before the first), as of the last question",
            metrics.last_good_age_seconds.clone(),
        );
        registry.register(
            "discovery_ambiguous_targets",
            "SRV records that name a worker once more with another port; the lowest port counts",
            metrics.ambiguous_targets.clone(),
        );
        registry.register(
            "discovery_targets_without_address",
            "Workers in a good answer whose address was not found; they keep the one they had",
            metrics.targets_without_address.clone(),
        );
        metrics
    }

    pub fn answers(&self, outcome: Outcome) -> u64 {
        self.answers.get_or_create(&OutcomeLabel { outcome }).get()
    }

    pub fn members(&self) -> i64 {
        self.members.get()
    }

    pub fn view_changes(&self) -> u64 {
        self.view_changes.get()
    }

    pub fn ambiguous_targets(&self) -> u64 {
        self.ambiguous_targets.get()
    }

    pub fn targets_without_address(&self) -> u64 {
        self.targets_without_address.get()
    }

    pub fn last_good_age_seconds(&self) -> f64 {
        self.last_good_age_seconds.get()
    }
}

/// `spread` is between 0.9 and 1.1, so that processes that started together do not ask together.
fn poll_after(ttl: Option<Duration>, poll_max: Duration, spread: f64) -> Duration {
    let wait = ttl.unwrap_or(poll_max).max(POLL_MIN).min(poll_max);
    wait.mul_f64(spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ttl_shortens_the_poll_within_bounds() {
        let seconds = Duration::from_secs;
        assert_eq!(poll_after(Some(seconds(30)), seconds(2), 1.0), seconds(2));
        assert_eq!(poll_after(Some(seconds(1)), seconds(2), 1.0), seconds(1));
        assert_eq!(poll_after(Some(seconds(0)), seconds(2), 1.0), POLL_MIN);
        assert_eq!(
            poll_after(None, seconds(2), 0.9),
            Duration::from_millis(1800)
        );
        let quick = Duration::from_millis(50);
        assert_eq!(poll_after(Some(seconds(0)), quick, 1.0), quick);
    }
}
