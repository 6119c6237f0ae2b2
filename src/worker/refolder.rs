//! The thread that reads traces back and folds them by new rules, beside the shards.
//!
//! What a verdict waits for goes first and at full speed; the rest is paced, so that a reload is not
//! an outage: the log of a worker may hold an hour of traces. Who is folded when is `shard::refold`'s
//! to say.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, select, unbounded};

use crate::log::{Disk, ReadError, StoredFragment, Volume};
use crate::model::{Extent, Moment, SteadyClock};
use crate::net::admission::Budget;
use crate::worker::reload::ReloadMetrics;
use crate::worker::shard::{RefoldTrace, RefoldWork};

/// Of what is not urgent, all shards together: about a twentieth of a core, and 4 GiB of undecided
/// traces a minute.
const BYTES_PER_SECOND: u64 = 64 << 20;
/// How long nothing happens at most. Nothing depends on it.
const IDLE: Duration = Duration::from_secs(60);

/// A work, and where it goes back to.
#[derive(Debug)]
struct Job {
    work: RefoldWork,
    done: Sender<RefoldWork>,
}

/// A shard's way to the thread; cheap to clone. Never full: a shard hands out a few works at a time.
#[derive(Debug, Clone)]
pub(crate) struct Refolding {
    urgent: Sender<Job>,
    others: Sender<Job>,
}

/// The other end.
#[derive(Debug)]
pub(crate) struct Jobs {
    urgent: Receiver<Job>,
    others: Receiver<Job>,
}

pub(crate) fn queue() -> (Refolding, Jobs) {
    let (urgent_sender, urgent) = unbounded();
    let (others_sender, others) = unbounded();
    let refolding = Refolding {
        urgent: urgent_sender,
        others: others_sender,
    };
    (refolding, Jobs { urgent, others })
}

impl Refolding {
    pub(crate) fn hand_out(&self, work: RefoldWork, done: Sender<RefoldWork>) {
        let queue = if work.is_urgent {
            &self.urgent
        } else {
            &self.others
        };
        // Without the thread the worker is at its end, and judges no more.
        queue.send(Job { work, done }).ok();
    }
}

impl Jobs {
    /// Carries out the next work, whoever it is of. False if there is none.
    pub(crate) fn carry_out_one<D: Disk>(
        &self,
        volume: &Volume<D>,
        metrics: &ReloadMetrics,
    ) -> bool {
        let job = self.urgent.try_recv().or_else(|_| self.others.try_recv());
        let Ok(mut job) = job else {
            return false;
        };
        carry_out(volume, metrics, &mut job.work);
        job.done.send(job.work).ok();
        true
    }
}

/// `budget` pays for what is read.
pub(crate) fn spawn<D: Disk>(
    jobs: Jobs,
    volume: Arc<Volume<D>>,
    budget: Arc<Budget>,
    clock: SteadyClock,
    metrics: ReloadMetrics,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("refold".to_owned())
        .spawn(move || run(&jobs, &volume, &budget, clock, &metrics))
}

fn run<D: Disk>(
    jobs: &Jobs,
    volume: &Volume<D>,
    budget: &Arc<Budget>,
    clock: SteadyClock,
    metrics: &ReloadMetrics,
) {
    // Before then nothing is read but what is urgent.
    let mut others_from = Moment::ZERO;
    loop {
        let now = clock.now();
        let job = match jobs.urgent.try_recv() {
            Ok(job) => Some(job),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) if others_from <= now => select! {
                recv(jobs.urgent) -> job => match job {
                    Ok(job) => Some(job),
                    // No shard is left.
                    Err(_) => return,
                },
                recv(jobs.others) -> job => job.ok(),
                default(IDLE) => None,
            },
            Err(TryRecvError::Empty) => select! {
                recv(jobs.urgent) -> job => match job {
                    Ok(job) => Some(job),
                    Err(_) => return,
                },
                default(others_from.since(now)) => None,
            },
        };
        let Some(mut job) = job else {
            continue;
        };
        let bytes = job.work.bytes();
        let paid = budget.charge(bytes);
        carry_out(volume, metrics, &mut job.work);
        drop(paid);
        if !job.work.is_urgent {
            let nanos = bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND;
            others_from = now + Duration::from_nanos(nanos);
        }
        // A shard that is gone judges no more.
        job.done.send(job.work).ok();
    }
}

pub(crate) fn carry_out<D: Disk>(
    volume: &Volume<D>,
    metrics: &ReloadMetrics,
    work: &mut RefoldWork,
) {
    metrics.refold_bytes.inc_by(work.bytes());
    let RefoldWork { rules, traces, .. } = work;
    let extents: Vec<Extent> = traces
        .iter()
        .flat_map(|it| it.extents.iter().copied())
        .collect();
    // All at once: traces of the same time lie among each other.
    if let Ok(stored) = volume.read(&extents) {
        let mut stored = stored.iter();
        for trace in traces {
            for _ in 0..trace.extents.len() {
                trace.fold(rules, stored.next());
            }
        }
        return;
    }
    for trace in traces {
        match read_some(volume, metrics, trace) {
            Ok(stored) => stored
                .iter()
                .for_each(|fragment| trace.fold(rules, fragment.as_ref())),
            Err(error) => {
                metrics.refold_read_failures.inc();
                tracing::error!(%error, "an undecided trace cannot be read back; trying again in a second");
                trace.is_unread = true;
            }
        }
    }
}

/// [`None`] for a fragment that is damaged. The trace may also be gone by now, and its segment be
/// another one's: then nobody will look at it.
fn read_some<D: Disk>(
    volume: &Volume<D>,
    metrics: &ReloadMetrics,
    trace: &RefoldTrace,
) -> Result<Vec<Option<StoredFragment>>, ReadError> {
    let mut stored = Vec::with_capacity(trace.extents.len());
    for extent in &trace.extents {
        match volume.read(std::slice::from_ref(extent)) {
            Ok(one) => stored.extend(one.into_iter().map(Some)),
            Err(ReadError::Damaged {
                segment,
                offset,
                what,
            }) => {
                metrics.refold_read_failures.inc();
                tracing::warn!(%segment, offset, what, "a fragment of an undecided trace cannot be read; its trace is judged without it");
                stored.push(None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(stored)
}
