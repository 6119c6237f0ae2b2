//! The thread beside the shards that reads and syncs for compaction. What is to be written anew, and when,
//! is each shard's to say (`shard/compaction.rs`).

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::log::{Disk, ReadError, StoredFragment, Volume};
use crate::model::{Extent, SegmentId, TraceId};
use crate::net::admission::{Budget, Permit};
use crate::worker::shard::{CompactionAnswer, CompactionFound, CompactionJob, CompactionStep};

/// What came of a job, and what pays for it.
#[derive(Debug)]
pub(crate) struct Compacted {
    pub(crate) answer: CompactionAnswer,
    pub(crate) held: Permit,
}

/// A shard's way to the compactor. A shard has one job there at a time.
#[derive(Debug)]
pub(crate) struct Compacting {
    jobs: Sender<(CompactionJob, Sender<Compacted>)>,
    reply: Sender<Compacted>,
    pub(crate) done: Receiver<Compacted>,
}

/// Jobs of all shards.
pub(crate) struct Jobs {
    sender: Sender<(CompactionJob, Sender<Compacted>)>,
    receiver: Receiver<(CompactionJob, Sender<Compacted>)>,
}

impl Compacting {
    pub(crate) fn ask(&self, job: CompactionJob) {
        // Without a thread the pass stays where it is: the worker stops.
        self.jobs.send((job, self.reply.clone())).ok();
    }
}

impl Jobs {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = unbounded();
        Self { sender, receiver }
    }

    /// For one shard.
    pub(crate) fn way(&self) -> Compacting {
        let (reply, done) = unbounded();
        Compacting {
            jobs: self.sender.clone(),
            reply,
            done,
        }
    }

    /// The thread ends when all shards have.
    pub(crate) fn spawn<D: Disk>(
        self,
        volume: Arc<Volume<D>>,
        budget: Arc<Budget>,
    ) -> std::io::Result<JoinHandle<()>> {
        let Self { receiver, .. } = self;
        std::thread::Builder::new()
            .name("compactor".to_owned())
            .spawn(move || {
                for (job, reply) in receiver {
                    // A shard that is gone does not wait for its answer.
                    reply.send(carry_out(&volume, &budget, job)).ok();
                }
            })
    }

    /// Does the first job that waits. False if none does.
    pub(crate) fn do_next<D: Disk>(&self, volume: &Arc<Volume<D>>, budget: &Arc<Budget>) -> bool {
        let next = self.receiver.try_recv();
        let done = next.map(|(job, reply)| reply.send(carry_out(volume, budget, job)).ok());
        done.is_ok()
    }
}

pub(crate) fn carry_out<D: Disk>(
    volume: &Arc<Volume<D>>,
    budget: &Arc<Budget>,
    job: CompactionJob,
) -> Compacted {
    let (found, bytes) = match &job.step {
        CompactionStep::List(segment) => {
            let fragments = list(volume, *segment);
            let bytes = fragments.as_ref().map_or(0, |it| size_of_val(&it[..]));
            (fragments.map(CompactionFound::Listed), bytes as u64)
        }
        CompactionStep::Read(extents) => {
            let bytes = extents.iter().map(|it| u64::from(it.len)).sum();
            (read(volume, extents).map(CompactionFound::Read), bytes)
        }
        CompactionStep::Sync(segments) => {
            let synced = segments.iter().all(|it| volume.sync(*it).is_ok());
            (synced.then_some(CompactionFound::Synced), 0)
        }
    };
    let answer = CompactionAnswer {
        pass: job.pass,
        found,
    };
    Compacted {
        answer,
        held: budget.charge(bytes),
    }
}

fn list<D: Disk>(volume: &Arc<Volume<D>>, segment: SegmentId) -> Option<Vec<(TraceId, Extent)>> {
    match volume.list(segment) {
        Ok(mut fragments) => {
            // Reads go forward then.
            fragments.sort_unstable_by_key(|(_, extent)| *extent);
            Some(fragments)
        }
        Err(error) => told(error),
    }
}

/// Without those that are damaged.
fn read<D: Disk>(volume: &Volume<D>, extents: &[Extent]) -> Option<Vec<StoredFragment>> {
    match volume.read(extents) {
        Ok(fragments) => return Some(fragments),
        Err(ReadError::Damaged { .. }) => {}
        Err(error) => return told(error),
    }
    let mut fragments = Vec::with_capacity(extents.len());
    for extent in extents {
        match volume.read(std::slice::from_ref(extent)) {
            Ok(one) => fragments.extend(one),
            // Who needs it will say so.
            Err(ReadError::Damaged { .. }) => {}
            Err(error) => return told(error),
        }
    }
    Some(fragments)
}

/// It may as well have gone by itself meanwhile.
fn told<T>(error: ReadError) -> Option<T> {
    match error {
        ReadError::Moved { .. } => {}
        error => tracing::warn!(%error, "a segment is not compacted; trying again in a minute"),
    }
    None
}
