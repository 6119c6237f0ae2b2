//! Follows the policy file of a worker that runs: looks at it again and again, and at once on SIGHUP.
//!
//! What counts is the content: Kubernetes swaps a link beside the link that `--policies` names, and
//! touches no file. A content that changed by itself is taken when a second look finds the same, for
//! a file that is written over is half there in between, and half a list of policies may be a legal
//! one. Who sends SIGHUP says that it is whole.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use crate::app::settings::{ContentHash, Machine, PolicyFileError, PolicySource, PolicyText};
use crate::model::SteadyClock;
use crate::worker::{ReloadMetrics, ReloadOutcome, Worker};

const LOOK_EVERY: Duration = Duration::from_secs(2);
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(500);
/// Signals in between are one: whoever sends thousands gets a look a second.
const SIGNAL_EVERY: Duration = Duration::from_secs(1);

/// SIGHUP from now on; before, it ends the process.
pub(super) fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// What there is to say of the file, for `/readyz`.
#[derive(Debug, Default)]
pub(super) struct PolicyState(Mutex<Option<String>>);

impl PolicyState {
    /// Why the file is not in force, if it is not.
    pub(super) fn refusal(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, refusal: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }
}

/// The content that was found, or why there was none.
type Found = Result<ContentHash, PolicyFileError>;

pub(super) struct PolicyWatch {
    path: String,
    /// The last one that was dealt with.
    settled: Found,
    worker: Arc<Worker>,
    clock: SteadyClock,
    metrics: ReloadMetrics,
    state: Arc<PolicyState>,
}

impl PolicyWatch {
    /// `source` is what the worker was started with.
    pub(super) fn new(
        source: PolicySource,
        worker: Arc<Worker>,
        clock: SteadyClock,
        state: Arc<PolicyState>,
    ) -> Self {
        Self {
            path: source.path,
            settled: Ok(source.content),
            metrics: worker.reload_metrics(),
            worker,
            clock,
            state,
        }
    }

    pub(super) async fn run(mut self, mut hangups: Signal) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => self.look().await,
                _ = hangups.recv() => {
                    info!(path = self.path, "SIGHUP: reading the policy file again");
                    let (found, text) = self.read().await;
                    self.settle(found, text).await;
                    sleep(SIGNAL_EVERY).await;
                }
            }
        }
    }

    async fn look(&mut self) {
        let (first, _) = self.read().await;
        if first == self.settled {
            return;
        }
        sleep(SECOND_LOOK_AFTER).await;
        let (second, text) = self.read().await;
        if second == first {
            self.settle(second, text).await;
        }
    }

    async fn read(&self) -> (Found, Option<PolicyText>) {
        let path = self.path.clone();
        // A volume over a network may be slow to answer.
        let read = spawn_blocking(move || PolicyText::read(&Machine, &path)).await;
        match read {
            Ok(Ok(text)) => (Ok(text.content), Some(text)),
            Ok(Err(error)) => (Err(error), None),
            Err(_) => (self.settled.clone(), None), // the runtime is shutting down
        }
    }

    async fn settle(&mut self, found: Found, text: Option<PolicyText>) {
        let parsed = match (&found, text) {
            (Ok(_), Some(text)) => spawn_blocking(move || text.parse(&Machine)).await,
            (Err(error), _) => Ok(Err(error.clone())),
            (Ok(_), None) => return,
        };
        let Ok(parsed) = parsed else {
            return; // the runtime is shutting down
        };
        self.settled = found;
        match parsed {
            Ok(file) => {
                let (version, policies) = (file.rules.version, file.rules.policies.len());
                let outcome = self.worker.reload(file.rules).await;
                if outcome == ReloadOutcome::Taken {
                    for notice in file.notices {
                        warn!(%notice, "the policy file");
                    }
                }
                info!(
                    path = self.path,
                    outcome = outcome.label(),
                    rules_version = version,
                    policies,
                    "the policy file is in force"
                );
                self.metrics.count(outcome);
                self.metrics.refused_since.set(0);
                self.state.set(None);
            }
            Err(error) => {
                let problem = error.describe(&self.path);
                let version = self.worker.rules().await.version;
                error!(
                    rules_version = version,
                    "the policy file is refused, and the rules in force stay: {} {problem}",
                    self.path
                );
                self.metrics.count(ReloadOutcome::Refused);
                if self.metrics.refused_since.get() == 0 {
                    let now = self.clock.now().unix_millis() / 1_000;
                    self.metrics
                        .refused_since
                        .set(i64::try_from(now).unwrap_or(i64::MAX));
                }
                let what = problem.lines().next().unwrap_or_default();
                self.state.set(Some(format!(
                    "the policy file {} {what}; the rules of version {version} stay in force, and the log has the whole report",
                    self.path
                )));
            }
        }
    }
}

/// Without `--policies`: SIGHUP must not end the process.
pub(super) async fn without_a_file(mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        info!("SIGHUP: there is no policy file to read again; --policies names one");
        sleep(SIGNAL_EVERY).await;
    }
}
