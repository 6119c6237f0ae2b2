//! Handing records to the disk in batches, and undoing what did not arrive.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::handoff;
use super::{RETRY_UNLINK_AFTER, RETRY_WRITE_AFTER, RETRY_WRITE_AFTER_MOST, Shard, Unwritten};
use crate::log::{DiskOp, Frames, PlantedBug};
use crate::model::{Decision, Extent, Moment, SegmentId, TraceId};
use crate::trace::Stage;

/// A segment of which too much is remembered is looked at again so much later.
const WEIGH_AFTER: Duration = Duration::from_millis(500);

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
        if PlantedBug::UnlinkBeforeCheckpoint.is_planted() || self.is_freed_before_copies() {
            ops.sort_by_key(|op| !matches!(op, DiskOp::Unlink { .. }));
        }
        if ops.is_empty() {
            // Nothing is left of the failed batches.
            self.failures = 0;
            return None;
        }
        let batch = self.batch;
        self.batch += 1;
        Some((batch, ops))
    }

    /// What [`PlantedBug::CopyNotAwaited`] does to a batch with copies in it.
    fn is_freed_before_copies(&self) -> bool {
        let mut filling = self.unwritten.iter().filter(|(it, _)| *it == self.batch);
        let is_copy = |it: &Unwritten| matches!(it, Unwritten::Copy(_));
        PlantedBug::CopyNotAwaited.is_planted()
            && filling.any(|(_, records)| records.iter().any(is_copy))
    }

    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= self.config.spare_buffer_bytes_max {
            self.writer.recycle(buffer);
        }
    }

    /// This batch and all before it are where `--ack` wants them.
    pub fn batch_written(&mut self, batch: u64) {
        self.written_before = batch + 1;
        self.failures = 0;
        while let Some((_, records)) = self.unwritten.pop_front_if(|(number, _)| *number <= batch) {
            let carried = |it: &Unwritten| matches!(it, Unwritten::CarriedOver);
            if records.iter().any(carried) {
                self.space.carried_over(self.number);
            }
        }
    }

    /// After a failed write: tries again then already. False if there was none.
    pub fn retry_at(&mut self, at: Moment) -> bool {
        self.refuse_until = self.refuse_until.map(|until| until.min(at));
        self.refuse_until.is_some()
    }

    /// Some segments of a batch that was written could not be unlinked. They are still there, and
    /// are freed again in a moment.
    pub fn unlink_failed(&mut self, now: Moment) {
        self.metrics.log_unlink_failures.inc();
        self.free_after = now + RETRY_UNLINK_AFTER;
    }

    /// This batch is not on disk, and nothing after it will be: its fragments are forgotten (their
    /// clients were refused), its verdicts and tombstones are written again later, and only behind
    /// them go the segments that were to go.
    pub fn batch_failed(&mut self, batch: u64, now: Moment) {
        self.metrics.log_write_failures.inc();
        self.writer.abandon();
        let retry = RETRY_WRITE_AFTER * 2_u32.saturating_pow(self.failures);
        self.refuse_until = Some(now + retry.min(RETRY_WRITE_AFTER_MOST));
        self.failures = self.failures.saturating_add(1);
        self.freed.clear();
        let mut fragments = Vec::new();
        let mut copies = BTreeSet::new();
        for (number, records) in std::mem::take(&mut self.unwritten) {
            debug_assert!(number >= batch, "batches are confirmed in order");
            for record in records {
                match record {
                    Unwritten::Fragment { .. } => fragments.push(record),
                    Unwritten::Copy(extent) => {
                        copies.insert(extent);
                    }
                    Unwritten::Unlink(segment) => self.space.keep([segment]),
                    _ if PlantedBug::FailedRecordsForgotten.is_planted() => {}
                    record => self.backlog.push(record),
                }
            }
        }
        let reopens = self.stop_unwritten_reopens();
        self.forget_fragments(&fragments);
        self.copies_failed(&copies);
        // Verdicts go into a later batch than their exports were told to wait for.
        self.batch += 1;
        let last = self.last_unwritten_batch();
        for (wait, _) in &mut self.exports {
            if *wait >= self.written_before {
                *wait = last;
            }
        }
        self.refold.wait_for(last, self.written_before);
        for (wait, _) in self.handing.waiting_for_disk() {
            if *wait >= self.written_before {
                *wait = last;
            }
        }
        for dropped in &mut self.retained {
            if dropped.batch >= self.written_before {
                dropped.batch = last;
            }
        }
        self.begin_reopens_again(reopens);
    }

    /// When this batch is on disk, all is that was recorded until now. One that is on disk already
    /// if nothing else is to be written: there may be no next batch for hours.
    pub(super) fn last_unwritten_batch(&self) -> u64 {
        if !self.backlog.is_empty() {
            return self.batch;
        }
        let unwritten = self.unwritten.back().map(|(batch, _)| *batch);
        unwritten.unwrap_or(self.written_before - 1)
    }

    fn forget_fragments(&mut self, lost: &[Unwritten]) {
        let mut dropped = Vec::new();
        // The youngest first: they are the last ones of their traces.
        for record in lost.iter().rev() {
            let &Unwritten::Fragment {
                trace,
                extent,
                spans,
                span_bytes,
            } = record
            else {
                continue;
            };
            self.space.release([extent]);
            let Some(entry) = self.index.get_mut(trace) else {
                dropped.push((trace, extent));
                continue;
            };
            let had = entry.fragments().len();
            let is_copy = handoff::forget_in_rest(entry, extent, spans, span_bytes);
            entry.forget(extent);
            let lost = had - entry.fragments().len();
            if !is_copy {
                entry.spans -= spans;
                entry.span_bytes -= u64::from(span_bytes);
            }
            let undecided = entry.stage == Stage::Undecided && !is_copy;
            let empty = entry.fragments().is_empty();
            // What was lost is in the state, and its client will bring it again.
            entry.folded_by = self.refold.earlier_generation();
            self.index.uncount_fragments(lost);
            if undecided {
                self.index.uncount_spans(spans);
            }
            if empty {
                self.index.remove(trace);
            }
        }
        if dropped.is_empty() {
            return;
        }
        // Dropped before its last fragments were written: what was released now must not be
        // released a second time when the rest of the trace is.
        let mut places: HashMap<TraceId, Vec<usize>> = HashMap::new();
        for (place, retained) in self.retained.iter().enumerate() {
            places.entry(retained.trace).or_default().push(place);
        }
        for (trace, lost) in dropped {
            // Few: what comes late joins the part that is there.
            let mut of_trace: Vec<usize> = places.get(&trace).cloned().unwrap_or_default();
            of_trace.retain(|place| self.retained[*place].may_hold(lost));
            let known = of_trace.iter().find(|it| self.retained[**it].holds(lost));
            if let Some(place) = known.or(of_trace.first()) {
                self.change_retained(*place, |part| part.lose(lost));
            }
        }
    }

    /// A DROP may have risen since it could not be written, and the KEEP stands in the log by now.
    fn latest(&self, decision: &Decision) -> Decision {
        let known = self.decisions.get(decision.trace);
        known.map_or(*decision, |it| it.decision)
    }

    pub(super) fn write_backlog(&mut self) {
        for record in std::mem::take(&mut self.backlog) {
            match &record {
                Unwritten::Verdict(decision) => {
                    self.writer.verdict(&self.latest(decision));
                }
                Unwritten::Exported(trace, hashes) => {
                    self.writer.exported(*trace, hashes);
                }
                Unwritten::Moved(moved) => {
                    self.writer.moved(moved);
                }
                Unwritten::Checkpoint(decisions) => {
                    let latest: Vec<Decision> =
                        decisions.iter().map(|it| self.latest(it)).collect();
                    self.writer.checkpoint(&latest);
                }
                // Behind the checkpoints that it stands for.
                Unwritten::CarriedOver => {}
                Unwritten::Gone(segment, gone) => {
                    self.writer.gone(*segment, gone);
                }
                Unwritten::Fragment { .. } | Unwritten::Copy(_) | Unwritten::Unlink(_) => continue,
            }
            // What all these are about is too much to find out again.
            if let Some(segment) = self.writer.segment() {
                self.compaction.coverage.unlist(segment);
            }
            self.note_unwritten(record);
        }
    }

    pub(super) fn release(&self, fragments: &[(SegmentId, Frames)]) {
        self.space.release_frames(fragments.iter().copied());
    }

    /// Nothing is freed before what failed is written: each segment that an attempt left behind
    /// would carry its decisions forward into the next attempt, beside the backlog.
    pub(super) fn free_segments(&mut self, now: Moment) {
        if self.failures > 0 || now < self.free_after || now < self.compaction.weigh_after {
            return;
        }
        let mut is_refused = false;
        let is_tight = self.space.is_tight();
        let freed = self.space.take_freed_if(self.number, |segment| {
            let is_worth_it = self.is_worth_going(segment, is_tight);
            is_refused |= !is_worth_it;
            is_worth_it
        });
        if is_refused {
            self.compaction.weigh_after = now + WEIGH_AFTER;
        }
        for segment in freed {
            self.carry(segment, &mut BTreeSet::new());
            let is_emptied = self.compaction.passed == Some(segment);
            self.metrics
                .log_segments_compacted
                .inc_by(u64::from(is_emptied));
            self.freed.push(segment);
            self.note_unwritten(Unwritten::Unlink(segment));
        }
    }

    /// What is not known to be on disk: nothing from here on may be read.
    pub(super) fn unwritten_from(&self) -> Option<Extent> {
        let mut records = self.unwritten.iter().flat_map(|(_, records)| records);
        records.find_map(|record| match record {
            Unwritten::Fragment { extent, .. } => Some(*extent),
            _ => None,
        })
    }

    #[cfg(test)]
    pub(super) fn records_at_risk(&self) -> usize {
        let unwritten: usize = self.unwritten.iter().map(|(_, some)| some.len()).sum();
        self.backlog.len() + unwritten
    }
}
