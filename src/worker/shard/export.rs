//! Handing kept traces to exporters, and hearing what became of them.

use super::{ExportTrace, ExportWork, PUT_BACK_FOR, Shard, Unwritten, by_segment};
use crate::log::PlantedBug;
use crate::model::{FragmentHash, Moment, TraceId};
use crate::trace::{FragmentRef, Stage, TraceEntry};

impl Shard {
    pub(super) fn queue_export(&mut self, trace: TraceId) {
        let remembered = self.decisions.get(trace).map(|held| held.decision);
        let wait = self.last_unwritten_batch();
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        if entry.decision.is_none() {
            entry.decision = remembered.map(Box::new);
        }
        if entry.outgoing().is_some() {
            // Its end queues it.
            return;
        }
        if let Stage::Kept {
            exporting: 0,
            queued: queued @ false,
        } = &mut entry.stage
        {
            *queued = true;
            self.exports.push_back((wait, trace));
        }
    }

    /// Kept traces whose verdicts are on disk, with what of them is, oldest first: at least one if there is any, more up
    /// to `bytes_max` and `traces_max`.
    pub fn pull(&mut self, bytes_max: u64, traces_max: usize) -> Option<ExportWork> {
        let (batch, _) = self.exports.front()?;
        let on_disk_before = if PlantedBug::VerdictAfterFirstByte.is_planted() {
            self.batch
        } else {
            self.written_before
        };
        if *batch >= on_disk_before {
            return None;
        }
        let unwritten_from = self.unwritten_from();
        let mut traces = Vec::new();
        let mut bytes = 0;
        while traces.len() < traces_max
            && let Some(&(batch, trace)) = self.exports.front()
            && batch < on_disk_before
        {
            let waits = |entry: &&mut TraceEntry| {
                // Not if its only fragment was lost, or if an exporter has it by another way.
                matches!(entry.stage, Stage::Kept { queued: true, .. })
            };
            let Some(entry) = self.index.get_mut(trace).filter(waits) else {
                self.exports.pop_front();
                continue;
            };
            // A late span may have come after the trace was queued.
            let written = entry.fragments().partition_point(|fragment| {
                unwritten_from.is_none_or(|unwritten| fragment.extent() < unwritten)
            });
            let fragments = &entry.fragments()[..written];
            let size: u64 = fragments
                .iter()
                .map(|fragment| u64::from(fragment.extent().len))
                .sum();
            if !traces.is_empty() && bytes + size > bytes_max {
                break;
            }
            self.exports.pop_front();
            let Some(decision) = entry.decision.as_deref().copied() else {
                continue;
            };
            if fragments.is_empty() {
                self.exports.push_back((self.batch, trace));
                continue;
            }
            bytes += size;
            traces.push(ExportTrace {
                decision,
                fragments: fragments.to_vec(),
            });
            entry.stage = Stage::Kept {
                exporting: written as u32,
                queued: false,
            };
        }
        if PlantedBug::TombstoneBeforeExport.is_planted() {
            for export in &traces {
                let hashes: Vec<FragmentHash> =
                    export.fragments.iter().map(FragmentRef::hash).collect();
                self.writer.exported(export.decision.trace, &hashes);
            }
        }
        (!traces.is_empty()).then_some(ExportWork { traces })
    }

    /// The backend has all of this work.
    pub fn exported(&mut self, work: ExportWork, now: Moment) {
        for export in work.traces {
            let trace = export.decision.trace;
            let hashes: Vec<FragmentHash> =
                export.fragments.iter().map(FragmentRef::hash).collect();
            let recorded_in = self.writer.exported(trace, &hashes).segment;
            self.go_behind(recorded_in);
            self.decisions
                .note_exported(trace, hashes.iter().copied(), recorded_in, now);
            self.note_unwritten(Unwritten::Exported(trace, hashes));
            let Some(entry) = self.index.get_mut(trace) else {
                continue;
            };
            let mut left_to_take = export.fragments.len();
            let taken = entry.take(|_| {
                let taken = left_to_take > 0;
                left_to_take -= usize::from(taken);
                taken
            });
            entry.stage = Stage::Kept {
                exporting: 0,
                queued: false,
            };
            let is_done = entry.fragments().is_empty();
            self.index.uncount_fragments(taken.len());
            // Where they lie now: they may have been moved since they were handed out.
            let places = by_segment(&taken);
            self.release(&places);
            if PlantedBug::ReleasedTwice.is_planted() {
                self.release(&places);
            }
            self.note_covered(recorded_in, trace, &places);
            if is_done {
                self.index.remove(trace);
            } else {
                self.queue_export(trace);
            }
        }
    }

    /// The backend refused this work for good, or it could not be read: it stays in the log and is
    /// offered again later.
    pub fn put_back(&mut self, work: ExportWork, now: Moment) {
        self.metrics
            .exports_put_back
            .inc_by(work.traces.len() as u64);
        for export in work.traces {
            if let Some(entry) = self.index.get_mut(export.decision.trace) {
                entry.stage = Stage::Kept {
                    exporting: 0,
                    queued: false,
                };
                self.put_back
                    .push_back((now + PUT_BACK_FOR, export.decision.trace));
            }
        }
    }

    /// This work was not found where it was: compaction moved it while an exporter had it.
    pub fn offer_again(&mut self, work: ExportWork) {
        for export in work.traces {
            let trace = export.decision.trace;
            if let Some(entry) = self.index.get_mut(trace) {
                entry.stage = Stage::Kept {
                    exporting: 0,
                    queued: false,
                };
                self.queue_export(trace);
            }
        }
    }

    pub fn undecided(&self) -> usize {
        self.index.undecided()
    }

    pub fn awaiting_export(&self) -> usize {
        self.index.len() - self.index.undecided()
    }
}
