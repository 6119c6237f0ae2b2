//! The I/O thread beside each shard: writes its batches in order, then acknowledges.
//!
//! Everything that waits for a disk waits here. One batch is here at a time, so that a shard has
//! taken note of a failed one before it makes the next: that one may stand on it.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use crate::log::{Disk, DiskOp, PlantedBug, Volume};
use crate::model::SegmentId;
use crate::worker::shard_thread::Waiting;

/// What an acknowledgement stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckLevel {
    /// write(2) returned: survives the process.
    Written,
    /// fdatasync returned: survives the host.
    Synced,
}

/// One batch with those who wait for it.
#[derive(Debug)]
pub(crate) struct DiskBatch {
    pub(crate) number: u64,
    pub(crate) ops: Vec<DiskOp>,
    pub(crate) replies: Vec<Waiting>,
}

/// What became of a batch, for the shard.
#[derive(Debug)]
pub(crate) struct DiskDone {
    pub(crate) number: u64,
    pub(crate) result: Result<Applied, std::io::Error>,
    /// Those that were written, to be used again.
    pub(crate) buffers: Vec<Vec<u8>>,
}

/// All records of a batch are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Not all of its segments could be removed.
    pub(crate) unlink_failed: bool,
}

pub(crate) fn spawn<D: Disk>(
    shard: u16,
    volume: Arc<Volume<D>>,
    level: AckLevel,
    batches: Receiver<DiskBatch>,
    done: Sender<DiskDone>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("disk-{shard}"))
        .spawn(move || run(&volume, level, &batches, &done))
}

fn run<D: Disk>(
    volume: &Volume<D>,
    level: AckLevel,
    batches: &Receiver<DiskBatch>,
    done: &Sender<DiskDone>,
) {
    for batch in batches {
        if done.send(carry_out(volume, level, batch)).is_err() {
            // The shard is gone: nobody will send another batch.
            return;
        }
    }
}

/// Writes a batch and answers those who wait for it.
pub(crate) fn carry_out<D: Disk>(
    volume: &Volume<D>,
    level: AckLevel,
    mut batch: DiskBatch,
) -> DiskDone {
    if PlantedBug::AckBeforeWrite.is_planted() {
        for waiting in batch.replies.drain(..) {
            waiting.answer(true);
        }
    }
    let mut buffers = Vec::new();
    // After a failed sync nothing is acknowledged: whoever runs this ends.
    let result = match volume.sync_failure().get() {
        Some(earlier) => Err(std::io::Error::other(earlier.to_owned())),
        None => apply(volume, level, batch.ops, &mut buffers),
    };
    if let (Err(error), None) = (&result, volume.sync_failure().get()) {
        tracing::error!(%error, "the log cannot be written; refusing spans until it can");
    }
    for waiting in batch.replies {
        waiting.answer(result.is_ok());
    }
    DiskDone {
        number: batch.number,
        result,
        buffers,
    }
}

/// Carries out a batch up to the first write that fails. Written buffers are given back.
pub(crate) fn apply<D: Disk>(
    volume: &Volume<D>,
    level: AckLevel,
    ops: Vec<DiskOp>,
    buffers: &mut Vec<Vec<u8>>,
) -> std::io::Result<Applied> {
    let mut written: Vec<SegmentId> = Vec::new();
    let mut unlink_failed = false;
    for op in ops {
        match op {
            DiskOp::Unlink { segment } => {
                if level == AckLevel::Synced {
                    // What made the segment superfluous must be durable before it goes.
                    sync(volume, &mut written)?;
                }
                // A file too many harms no record: who waits for this batch is not refused.
                if let Err(error) = volume.apply(op) {
                    tracing::warn!(%segment, %error, "a segment cannot be removed; trying again");
                    unlink_failed = true;
                }
            }
            DiskOp::Create { .. } | DiskOp::Write { .. } | DiskOp::Seal { .. } => {
                if let DiskOp::Write { segment, .. } = &op
                    && written.last() != Some(segment)
                {
                    written.push(*segment);
                }
                buffers.extend(volume.apply(op)?);
            }
        }
    }
    if level == AckLevel::Synced {
        sync(volume, &mut written)?;
    }
    Ok(Applied { unlink_failed })
}

fn sync<D: Disk>(volume: &Volume<D>, written: &mut Vec<SegmentId>) -> std::io::Result<()> {
    written
        .drain(..)
        .try_for_each(|segment| volume.sync(segment))
}
