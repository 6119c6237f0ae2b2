//! `--chaos`: what happens to the workers while the table runs. One thing after the other: the next begins when the
//! worker of the last one is ready again.

use std::time::Duration;

use serde::Serialize;

use super::cluster::{Cluster, WORKERS};
use super::page;

/// From the start of the fleet, or from when all was well again.
const QUIET: Duration = Duration::from_millis(1500);
/// From the end of a worker to its next life.
const AWAY: Duration = Duration::from_secs(1);
/// Each takes 64 MiB of disk a core, and two cores have to do for all.
const ADDED_MAX: usize = 2;
/// From a start or a request to stop until all is well.
const WELL_WITHIN: Duration = Duration::from_secs(60);

const ORDER: [Act; 6] = [
    Act::Restart,
    Act::Kill,
    Act::Add,
    Act::Kill,
    Act::Restart,
    Act::Add,
];

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) workers_restarted: u64,
    pub(super) workers_killed: u64,
    pub(super) workers_added: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// SIGTERM, and a start at other addresses.
    Restart,
    /// SIGKILL, and the same.
    Kill,
    Add,
}

/// How far it is; times since the fleet began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Quiet { until: Duration },
    Stopping { worker: usize, since: Duration },
    Away { worker: usize, until: Duration },
    Starting { worker: usize, since: Duration },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Chaos {
    phase: Phase,
    next: usize,
    victim: usize,
    pub(super) counts: Counts,
}

impl Counts {
    /// Lives of workers, those included that they began with.
    pub(super) fn lives(self) -> u64 {
        WORKERS as u64 + self.workers_restarted + self.workers_killed + self.workers_added
    }
}

impl Chaos {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Quiet { until: QUIET },
            next: 0,
            victim: 0,
            counts: Counts::default(),
        }
    }

    /// Whether no worker is away or on its way.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Quiet { .. })
    }

    /// Does what is due; what people should know of it. `may_begin`: the fleet goes on long enough for another act.
    pub(super) async fn step(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        may_begin: bool,
    ) -> anyhow::Result<Option<String>> {
        match self.phase {
            Phase::Quiet { until } if now >= until && may_begin => {
                self.begin(cluster, now).await.map(Some)
            }
            Phase::Quiet { .. } => Ok(None),
            Phase::Stopping { worker, since } => {
                if cluster.has_stopped(worker).await? {
                    let until = now + AWAY;
                    self.phase = Phase::Away { worker, until };
                    let took = (now - since).as_secs_f64();
                    return Ok(Some(format!(
                        "worker {worker} has handed over and stopped, {took:.1} s"
                    )));
                }
                within(since, now, worker, "stop")
            }
            Phase::Away { worker, until } => {
                if now >= until {
                    cluster.start_again(worker).await?;
                    self.phase = Phase::Starting { worker, since: now };
                }
                Ok(None)
            }
            Phase::Starting { worker, since } => {
                if page::says_ready(cluster.workers[worker].admin).await {
                    self.phase = Phase::Quiet { until: now + QUIET };
                    let took = (now - since).as_secs_f64();
                    return Ok(Some(format!(
                        "worker {worker} is ready at another address, {took:.1} s"
                    )));
                }
                within(since, now, worker, "become ready")
            }
        }
    }

    async fn begin(&mut self, cluster: &mut Cluster, now: Duration) -> anyhow::Result<String> {
        let mut act = ORDER[self.next % ORDER.len()];
        self.next += 1;
        if act == Act::Add && cluster.workers.len() == WORKERS + ADDED_MAX {
            act = Act::Restart;
        }
        let worker = self.victim % cluster.workers.len();
        match act {
            Act::Restart => {
                self.victim += 1;
                self.counts.workers_restarted += 1;
                cluster.ask_to_stop(worker)?;
                self.phase = Phase::Stopping { worker, since: now };
                Ok(format!("worker {worker} gets SIGTERM"))
            }
            Act::Kill => {
                self.victim += 1;
                self.counts.workers_killed += 1;
                cluster.kill(worker)?;
                self.phase = Phase::Away {
                    worker,
                    until: now + AWAY,
                };
                Ok(format!("worker {worker} gets SIGKILL"))
            }
            Act::Add => {
                let worker = cluster.workers.len();
                self.counts.workers_added += 1;
                cluster.start_again(worker).await?;
                self.phase = Phase::Starting { worker, since: now };
                Ok(format!("worker {worker} is added"))
            }
        }
    }
}

/// An error when it takes too long.
fn within(
    since: Duration,
    now: Duration,
    worker: usize,
    what: &str,
) -> anyhow::Result<Option<String>> {
    anyhow::ensure!(
        now - since <= WELL_WITHIN,
        "worker {worker} did not {what} within {WELL_WITHIN:?}"
    );
    Ok(None)
}
