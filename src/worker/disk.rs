//! The I/O thread beside each shard: writes its batches in order, then acknowledges.
//!
//! Everything that waits for a disk waits here. After a failed write nothing of the same shard is
//! written or acknowledged until the shard has taken note, because its next batch may stand on
//! the one that failed.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use crate::log::{Disk, DiskOp, Volume};
use crate::model::SegmentId;
use crate::worker::shard_thread::Reply;

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
    /// `None` for acknowledgements that only wait for what was sent before.
    pub(crate) number: Option<u64>,
    /// Writes after a failure carry a new epoch: the shard has taken note.
    pub(crate) epoch: u64,
    pub(crate) ops: Vec<DiskOp>,
    pub(crate) replies: Vec<(Reply, Vec<u32>)>,
}

/// What became of a batch, for the shard.
#[derive(Debug)]
pub(crate) struct DiskDone {
    pub(crate) number: Option<u64>,
    pub(crate) failed: bool,
    pub(crate) buffers: Vec<Vec<u8>>,
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
    let mut failed_epoch = None;
    for batch in batches {
        let mut buffers = Vec::new();
        let failed = failed_epoch == Some(batch.epoch)
            || match write(volume, level, batch.ops, &mut buffers) {
                Ok(()) => false,
                Err(error) => {
                    tracing::error!(%error, "the log cannot be written; refusing spans until it can");
                    failed_epoch = Some(batch.epoch);
                    true
                }
            };
        for (reply, elsewhere) in batch.replies {
            reply.send(if failed {
                Err(crate::worker::shard::AppendRefused::LogFailed)
            } else {
                Ok(elsewhere)
            });
        }
        let report = DiskDone {
            number: batch.number,
            failed,
            buffers,
        };
        if done.send(report).is_err() {
            // The shard is gone: nobody will send another batch.
            return;
        }
    }
}

fn write<D: Disk>(
    volume: &Volume<D>,
    level: AckLevel,
    ops: Vec<DiskOp>,
    buffers: &mut Vec<Vec<u8>>,
) -> std::io::Result<()> {
    let mut written: Vec<SegmentId> = Vec::new();
    for op in ops {
        if let DiskOp::Write { segment, .. } = &op
            && written.last() != Some(segment)
        {
            written.push(*segment);
        }
        if let DiskOp::Unlink { .. } = &op
            && level == AckLevel::Synced
        {
            // What made the segment superfluous must be durable before it goes.
            sync(volume, &mut written)?;
        }
        buffers.extend(volume.apply(op)?);
    }
    if level == AckLevel::Synced {
        sync(volume, &mut written)?;
    }
    Ok(())
}

fn sync<D: Disk>(volume: &Volume<D>, written: &mut Vec<SegmentId>) -> std::io::Result<()> {
    for segment in written.drain(..) {
        volume.sync(segment)?;
    }
    Ok(())
}
