//! What a segment says of others, and what is remembered of it, when it goes: which of that is needed still is
//! appended anew, before.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Shard, Unwritten};
use crate::log::{Frames, GoneTrace, PlantedBug};
use crate::model::{Decision, SegmentId, TraceId};

impl Shard {
    /// A verdict that is forgotten is found again in the log as long as fragments of its trace are: it lies in
    /// their segment, or in one that says so of them.
    pub(super) fn write_verdict_beside(
        &mut self,
        decision: &Decision,
        fragments_in: impl Iterator<Item = SegmentId>,
    ) -> SegmentId {
        let extent = self.writer.verdict(decision);
        self.note_unwritten(Unwritten::Verdict(*decision));
        let segments: BTreeSet<SegmentId> = fragments_in.collect();
        for segment in segments {
            let coverage = &mut self.compaction.coverage;
            coverage.add(extent.segment, segment, decision.trace);
        }
        extent.segment
    }

    /// What this segment's records are about in others is not known here, so it goes in its order only: that of a
    /// handoff (fragments that count by a COMMIT, MOVED) and of verdicts that others gave.
    pub(super) fn goes_in_its_order(&mut self, segment: SegmentId) {
        self.compaction.coverage.unlist(segment);
    }

    /// A long list of records begins in this segment, and what it says is carried forward when that one goes: the
    /// others that it lies in must not go before.
    pub(super) fn go_behind(&mut self, first: SegmentId) {
        let current = self.writer.segment().unwrap_or(first);
        for later in first.0 + 1..=current.0 {
            self.compaction.coverage.unlist(SegmentId(later));
        }
    }

    /// A record in one segment is about these fragments of a trace.
    pub(super) fn note_covered(
        &mut self,
        recorded_in: SegmentId,
        trace: TraceId,
        fragments: &[(SegmentId, Frames)],
    ) {
        for (segment, _) in fragments {
            self.compaction.coverage.add(recorded_in, *segment, trace);
        }
    }

    /// The DROP of a trace that is held still because it may rise. A start that met GONE before it would let go of what
    /// is held.
    fn young_drop(&self, trace: TraceId) -> Option<Decision> {
        let decision = self.decisions.get(trace)?.decision;
        let until = decision.decided_at + self.config.drop_retain;
        (!decision.is_final() && until > self.writer.latest()).then_some(decision)
    }

    /// A segment is about to go: what only it says and what is still needed is appended anew.
    pub(super) fn carry(&mut self, segment: SegmentId, touched: &mut BTreeSet<SegmentId>) {
        let (decisions, ranges) = self.decisions.carry_forward(segment);
        let in_front: HashSet<TraceId> = decisions.iter().map(|it| it.trace).collect();
        if !decisions.is_empty() && !PlantedBug::CheckpointForgotten.is_planted() {
            let extent = self.writer.checkpoint(&decisions);
            self.go_behind(extent.segment);
            self.decisions.carried(ranges, extent.segment);
            self.note_unwritten(Unwritten::Checkpoint(decisions));
            touched.insert(extent.segment);
        }
        self.carry_exports(segment, touched);
        for (covered, mut traces) in self.compaction.coverage.take(segment) {
            if !self.space.is_there(covered) || PlantedBug::TombstoneLeftBehind.is_planted() {
                continue;
            }
            traces.sort_unstable();
            traces.dedup();
            let mut verdicts = Vec::new();
            let mut gone = Vec::with_capacity(traces.len());
            for trace in traces {
                let live = self.live_in(trace, covered);
                if let Some(entry) = self.index.get(trace).filter(|_| !live.is_empty()) {
                    verdicts.extend(entry.decision.as_deref().copied());
                } else if !in_front.contains(&trace) {
                    verdicts.extend(self.young_drop(trace));
                }
                gone.push(GoneTrace { trace, live });
            }
            if !verdicts.is_empty() {
                // What it covers is noted with the GONE behind it, which lies there or in a younger one.
                let extent = self.writer.checkpoint(&verdicts);
                self.go_behind(extent.segment);
                touched.insert(extent.segment);
                for decision in &verdicts {
                    let coverage = &mut self.compaction.coverage;
                    coverage.add(extent.segment, covered, decision.trace);
                }
                self.note_unwritten(Unwritten::Checkpoint(verdicts));
            }
            self.write_gone(covered, gone, touched);
        }
        if !touched.is_empty() {
            touched.extend(self.writer.segment());
        }
    }

    /// Not if half a segment would be written anew for what is remembered: if that is more than a segment holds,
    /// it would go round for ever. It is forgotten in minutes. For a log that is tight a tenth is worth it.
    pub(super) fn is_worth_going(&self, segment: SegmentId, is_tight: bool) -> bool {
        let bytes = u64::from(self.space.config().segment_bytes);
        let (decisions, hashes) = self.decisions.carried_bytes(segment);
        if is_tight {
            decisions <= bytes / 10 * 9
        } else {
            decisions + hashes <= bytes / 2
        }
    }

    /// What is remembered as exported outlives the record of it: a client may repeat its request after a restart.
    pub(super) fn carry_exports(&mut self, from: SegmentId, touched: &mut BTreeSet<SegmentId>) {
        // What clients send comes before what they might repeat after a restart.
        if self.space.is_tight() || PlantedBug::ExportsForgotten.is_planted() {
            return;
        }
        let mut carried = HashMap::new();
        for (trace, hashes) in self.decisions.exports_in(from) {
            let first = self.writer.exported(trace, &hashes).segment;
            self.go_behind(first);
            touched.insert(first);
            carried.insert(trace, first);
            self.note_unwritten(Unwritten::Exported(trace, hashes));
        }
        self.decisions.exports_carried(&carried);
    }

    pub(super) fn write_gone(
        &mut self,
        segment: SegmentId,
        gone: Vec<GoneTrace>,
        touched: &mut BTreeSet<SegmentId>,
    ) {
        let mut rest = &gone[..];
        for (extent, traces) in self.writer.gone(segment, &gone) {
            let (some, later) = rest.split_at(traces.min(rest.len()));
            rest = later;
            touched.insert(extent.segment);
            for it in some {
                let coverage = &mut self.compaction.coverage;
                coverage.add(extent.segment, segment, it.trace);
            }
        }
        self.note_unwritten(Unwritten::Gone(segment, gone));
    }

    pub(super) fn live_in(&self, trace: TraceId, segment: SegmentId) -> Vec<u32> {
        let entry = self.index.get(trace);
        entry.map_or(Vec::new(), |entry| entry.live_in(segment))
    }
}
