//! Handing records to the disk in batches, and undoing what did not arrive.

use super::{RETRY_WRITE_AFTER, Shard, Unwritten};
use crate::log::DiskOp;
use crate::model::{Extent, Moment, SegmentId, TraceId};
use crate::trace::Stage;

impl Shard {
    pub(super) fn note_unwritten(&mut self, record: Unwritten) {
        match self.unwritten.back_mut() {
            Some((batch, records)) if *batch == self.batch => records.push(record),
            _ => self.unwritten.push_back((self.batch, vec![record])),
        }
    }

    pub fn pending_bytes(&self) -> usize {
        self.writer.pending_bytes()
    }

    /// Everything for the disk since the last call, under one number; empty batches have none.
    pub fn take_batch(&mut self) -> Option<(u64, Vec<DiskOp>)> {
        if self.refuse_until.is_some() {
            return None;
        }
        let mut ops = self.writer.take();
        ops.extend(
            self.freed
                .drain(..)
                .map(|segment| DiskOp::Unlink { segment }),
        );
        if ops.is_empty() {
            return None;
        }
        let batch = self.batch;
        self.batch += 1;
        Some((batch, ops))
    }

    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.writer.recycle(buffer);
    }

    /// This batch and all before it are where `--ack` wants them.
    pub fn batch_written(&mut self, batch: u64) {
        self.written_before = batch + 1;
        while let Some((number, _)) = self.unwritten.front() {
            if *number > batch {
                break;
            }
            self.unwritten.pop_front();
        }
    }

    /// This batch is not on disk, and nothing after it will be: its fragments are forgotten (their
    /// clients were refused), its verdicts and tombstones are written again later.
    pub fn batch_failed(&mut self, batch: u64, now: Moment) {
        self.metrics.log_write_failures.inc();
        self.writer.abandon();
        self.refuse_until = Some(now + RETRY_WRITE_AFTER);
        let lost: Vec<_> = std::mem::take(&mut self.unwritten)
            .into_iter()
            .flat_map(|(number, records)| {
                debug_assert!(number >= batch, "batches are confirmed in order");
                records
            })
            .collect();
        for record in lost {
            match record {
                Unwritten::Fragment {
                    trace,
                    extent,
                    spans,
                    span_bytes,
                } => {
                    self.space.release([extent]);
                    self.forget_fragment(trace, extent, spans, span_bytes);
                }
                control => self.backlog.push(control),
            }
        }
        // Verdicts go into a later batch than their exports were told to wait for.
        self.batch += 1;
        let batch = self.batch;
        for (wait, _) in &mut self.exports {
            if *wait >= self.written_before {
                *wait = batch;
            }
        }
    }

    fn forget_fragment(&mut self, trace: TraceId, extent: Extent, spans: u32, span_bytes: u32) {
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        entry.take(|held| held.extent() == extent);
        entry.spans -= spans;
        entry.span_bytes -= u64::from(span_bytes);
        let undecided = entry.stage == Stage::Undecided;
        let empty = entry.fragments().is_empty();
        if undecided {
            self.index.uncount_spans(spans);
        }
        if empty {
            self.index.remove(trace);
        }
    }

    pub(super) fn write_backlog(&mut self) {
        for record in std::mem::take(&mut self.backlog) {
            match &record {
                Unwritten::Verdict(decision) => {
                    self.writer.verdict(decision);
                }
                Unwritten::Exported(trace, hashes) => {
                    self.writer.exported(*trace, hashes);
                }
                Unwritten::Checkpoint(decisions) => {
                    self.writer.checkpoint(decisions);
                }
                Unwritten::Fragment { .. } => continue,
            }
            self.note_unwritten(record);
        }
    }

    pub(super) fn release(&self, segments: &[(SegmentId, u32)]) {
        // Which frame of a segment it was is of no matter: live frames are counted.
        self.space
            .release(segments.iter().flat_map(|&(segment, fragments)| {
                std::iter::repeat_n(
                    Extent {
                        segment,
                        offset: 0,
                        len: 0,
                    },
                    fragments as usize,
                )
            }));
    }

    pub(super) fn free_segments(&mut self) {
        for segment in self.space.take_freed(self.number) {
            let (decisions, ranges) = self.decisions.carry_forward(segment);
            if !decisions.is_empty() {
                let extent = self.writer.checkpoint(&decisions);
                self.decisions.carried(ranges, extent.segment);
                self.note_unwritten(Unwritten::Checkpoint(decisions));
            }
            self.freed.push(segment);
        }
    }
}
