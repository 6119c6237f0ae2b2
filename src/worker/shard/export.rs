//! Handing kept traces to exporters, and hearing what became of them.

use super::{ExportTrace, ExportWork, PUT_BACK_FOR, Shard, Unwritten, by_segment};
use crate::model::{FragmentHash, Moment, TraceId};
use crate::trace::{FragmentRef, Stage};

impl Shard {
    pub(super) fn queue_export(&mut self, trace: TraceId) {
        let remembered = self.decisions.get(trace).map(|held| held.decision);
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        if entry.decision.is_none() {
            entry.decision = remembered.map(Box::new);
        }
        if let Stage::Kept {
            exporting: 0,
            queued: queued @ false,
        } = &mut entry.stage
        {
            *queued = true;
            self.exports.push_back((self.batch, trace));
        }
    }

    /// Kept traces whose verdicts are on disk, oldest first: at least one if there is any, more up
    /// to `bytes_max` and `traces_max`.
    pub fn pull(&mut self, bytes_max: u64, traces_max: usize) -> Option<ExportWork> {
        let mut traces = Vec::new();
        let mut bytes = 0;
        while traces.len() < traces_max
            && let Some(&(batch, trace)) = self.exports.front()
            && batch < self.written_before
        {
            let Some(entry) = self.index.get_mut(trace) else {
                self.exports.pop_front();
                continue;
            };
            let size: u64 = entry
                .fragments()
                .iter()
                .map(|fragment| u64::from(fragment.extent().len))
                .sum();
            if !traces.is_empty() && bytes + size > bytes_max {
                break;
            }
            self.exports.pop_front();
            bytes += size;
            let Some(decision) = entry.decision.as_deref().copied() else {
                continue;
            };
            entry.stage = Stage::Kept {
                exporting: entry.fragments().len() as u32,
                queued: false,
            };
            traces.push(ExportTrace {
                decision,
                fragments: entry.fragments().to_vec(),
            });
        }
        (!traces.is_empty()).then_some(ExportWork { traces })
    }

    /// The backend has all of this work.
    pub fn exported(&mut self, work: ExportWork, now: Moment) {
        for export in work.traces {
            let trace = export.decision.trace;
            let hashes: Vec<FragmentHash> =
                export.fragments.iter().map(FragmentRef::hash).collect();
            self.writer.exported(trace, &hashes);
            self.decisions
                .note_exported(trace, hashes.iter().copied(), now);
            self.note_unwritten(Unwritten::Exported(trace, hashes));
            self.release(&by_segment(&export.fragments));
            let Some(entry) = self.index.get_mut(trace) else {
                continue;
            };
            let mut left_to_take = export.fragments.len();
            entry.take(|_| {
                let taken = left_to_take > 0;
                left_to_take -= usize::from(taken);
                taken
            });
            entry.stage = Stage::Kept {
                exporting: 0,
                queued: false,
            };
            if entry.fragments().is_empty() {
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

    pub fn awaiting_export(&self) -> usize {
        self.index.len() - self.index.undecided()
    }
}
