//! Taking over what earlier lives left in the log.

use std::collections::HashSet;

use super::{Retained, Shard, Unwritten, by_segment};
use crate::log::{PlantedBug, Recovered, StoredFragment};
use crate::model::{Decision, Extent, FragmentHash, Moment, SegmentId, TraceId, Verdict};
use crate::trace::{FragmentRef, Stage, TraceEntry};

/// Decisions in one checkpoint record at start: 56 kB each.
const CHECKPOINT_DECISIONS: usize = 1_000;

impl Shard {
    /// One record of an earlier life, in the order it was written. Every fragment counts as live
    /// until something says otherwise.
    pub fn recover(&mut self, record: Recovered) {
        match record {
            Recovered::Fragment {
                extent,
                trace,
                hash,
                arrival,
                spans,
                span_bytes,
                has_root,
            } => {
                let arrival = if PlantedBug::ArrivalsMoved.is_planted() {
                    arrival + std::time::Duration::from_secs(3)
                } else {
                    arrival
                };
                let decision = self.decisions.get(trace).map(|held| held.decision);
                let stage = match decision.map(|it| it.verdict) {
                    Some(Verdict::Keep) => Stage::Kept {
                        exporting: 0,
                        queued: false,
                    },
                    Some(Verdict::Drop) => {
                        self.release(&[(extent.segment, 1)]);
                        return;
                    }
                    None => Stage::Undecided,
                };
                if self.index.get(trace).is_some_and(|held| held.holds(hash)) {
                    // A batch failed behind its first writes, and the client brought the fragment again.
                    // Two copies could be exported in two messages.
                    self.release(&[(extent.segment, 1)]);
                    return;
                }
                let (entry, _) = self.index.begin(trace, arrival, stage, &self.rules);
                if entry.decision.is_none() {
                    // At once: before `recovered` the decision may be forgotten for want of room.
                    entry.decision = decision.map(Box::new);
                }
                entry.push(FragmentRef::new(hash, extent));
                entry.last_seen = entry.last_seen.max(arrival);
                entry.spans += spans;
                entry.span_bytes += u64::from(span_bytes);
                if has_root && entry.root_seen.is_none() {
                    entry.root_seen = Some(arrival);
                }
                let undecided = entry.stage == Stage::Undecided;
                self.index.count_fragment();
                if undecided {
                    self.index.count_spans(spans);
                }
            }
            Recovered::Verdict(decision) => self.recover_decision(decision),
            Recovered::Checkpoint(decisions) => {
                for decision in decisions {
                    self.recover_decision(decision);
                }
            }
            Recovered::Exported { trace, fragments } => {
                let exported_at = self
                    .decisions
                    .get(trace)
                    .map_or(Moment::ZERO, |held| held.decision.decided_at);
                self.decisions
                    .note_exported(trace, fragments.iter().copied(), exported_at);
                let Some(entry) = self.index.get_mut(trace) else {
                    return;
                };
                // 32,000 fragments of one trace, exported in one message, are a billion comparisons.
                let gone: HashSet<FragmentHash> = fragments.into_iter().collect();
                let taken = entry.take(|held| gone.contains(&held.hash()));
                let empty = entry.fragments().is_empty();
                self.index.uncount_fragments(taken.len());
                if empty {
                    self.index.remove(trace);
                }
                self.release(&by_segment(&taken));
            }
        }
    }

    fn recover_decision(&mut self, decision: Decision) {
        // Which segment records it does not matter: `recovered` writes all of them anew.
        self.remember(decision, SegmentId(0));
        self.apply_recovered(decision);
    }

    fn apply_recovered(&mut self, decision: Decision) {
        match decision.verdict {
            Verdict::Keep => {
                if let Some(entry) = self.index.decide_keep(decision.trace) {
                    entry.decision = Some(Box::new(decision));
                }
            }
            Verdict::Drop => {
                if let Some(entry) = self.index.remove(decision.trace) {
                    self.retained.push_back(Retained {
                        until: decision.decided_at + self.config.drop_retain,
                        batch: 0,
                        trace: decision.trace,
                        fragments: by_segment(entry.fragments()),
                    });
                }
            }
        }
    }

    /// All records of earlier lives are in: the fragments whose bytes the policies want to see
    /// again, in the order of their arrival.
    pub fn unfolded(&self) -> Vec<Extent> {
        if !self.rules.reads_spans() {
            return Vec::new();
        }
        let undecided = self
            .index
            .traces()
            .filter(|(_, entry)| entry.stage == Stage::Undecided);
        let mut extents: Vec<Extent> = undecided
            .flat_map(|(_, entry)| entry.fragments())
            .map(FragmentRef::extent)
            .collect();
        // Segments are numbered in their order, and a trace has one shard in each life.
        extents.sort_unstable();
        extents
    }

    /// One of them cannot be read: its trace goes on without it, and its client may bring it again.
    pub fn lose(&mut self, extent: Extent) {
        let holds = |(_, entry): &(TraceId, &TraceEntry)| {
            let mut fragments = entry.fragments().iter();
            fragments.any(|held| held.extent() == extent)
        };
        let Some((trace, _)) = self.index.traces().find(holds) else {
            return;
        };
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        entry.forget(extent);
        let is_empty = entry.fragments().is_empty();
        self.index.uncount_fragments(1);
        if is_empty {
            self.index.remove(trace);
        }
        self.release(&[(extent.segment, 1)]);
    }

    /// One of them, read back.
    pub fn fold_again(&mut self, fragment: &StoredFragment) {
        if let Some(entry) = self.index.get_mut(fragment.trace) {
            self.rules.fold_stored(
                &mut entry.state,
                &fragment.resource_header,
                fragment
                    .scopes
                    .iter()
                    .map(|scope| (&scope.header[..], &scope.spans[..])),
                fragment.arrival,
            );
        }
    }

    /// All records of earlier lives are in and folded: sets deadlines and queues, and writes the decisions
    /// into this life's log, so that no segment of an earlier life is needed for them.
    pub fn recovered(&mut self, now: Moment) {
        let _ = self.decisions.carry_forward(SegmentId(0));
        self.decisions.expire(now);
        self.nothing_is_to_come(now);
        self.retained
            .make_contiguous()
            .sort_by_key(|dropped| dropped.until);
        let decisions: Vec<Decision> = self.decisions.all().copied().collect();
        let mut place = 0;
        for some in decisions.chunks(CHECKPOINT_DECISIONS) {
            let extent = self.writer.checkpoint(some);
            self.decisions
                .recorded_again(place..place + some.len(), extent.segment);
            place += some.len();
            self.note_unwritten(Unwritten::Checkpoint(some.to_vec()));
        }
        if place > 0 {
            self.note_unwritten(Unwritten::CarriedOver);
        } else {
            self.space.carried_over(self.number);
        }
        let mut undecided: Vec<(Moment, TraceId)> = Vec::new();
        let mut kept: Vec<(Moment, TraceId)> = Vec::new();
        for (trace, entry) in self.index.traces() {
            match &entry.decision {
                None => undecided.push((self.due(entry).0, trace)),
                // Also of a late span, whose verdict lies before it in the log.
                Some(decision) => kept.push((decision.decided_at, trace)),
            }
        }
        // In their order, as they would have come: deadlines are cheap then, and a life that is
        // told the same does the same.
        undecided.sort_unstable();
        for (at, trace) in undecided {
            self.deadlines.push(at, trace);
        }
        kept.sort_unstable();
        for (_, trace) in kept {
            self.queue_export(trace);
        }
    }

    /// The wall clock may have been set back since the last life. What it says arrived in an hour would wait
    /// for its verdict an hour longer.
    fn nothing_is_to_come(&mut self, now: Moment) {
        let ahead = |(_, entry): &(TraceId, &TraceEntry)| entry.last_seen > now;
        let traces = self.index.traces().filter(ahead);
        let traces: Vec<TraceId> = traces.map(|(trace, _)| trace).collect();
        for trace in traces {
            if let Some(entry) = self.index.get_mut(trace) {
                entry.first_seen = entry.first_seen.min(now);
                entry.last_seen = now;
                entry.root_seen = entry.root_seen.map(|at| at.min(now));
            }
        }
        for dropped in &mut self.retained {
            dropped.until = dropped.until.min(now + self.config.drop_retain);
        }
    }
}
