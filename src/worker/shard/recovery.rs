//! Taking over what earlier lives left in the log.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::retained::Retained;
use super::{Shard, Unwritten, by_segment};
use crate::log::{Commit, GoneTrace, Moved, PlantedBug, Recovered, StoredFragment};
use crate::model::{Decision, Extent, FragmentHash, Moment, SegmentId, TraceId, Verdict};
use crate::policy::Strategy;
use crate::trace::{FragmentRef, Stage, TraceEntry};

/// Decisions in one checkpoint record at start: 56 kB each.
const CHECKPOINT_DECISIONS: usize = 1_000;

/// What is known only while earlier lives are read.
#[derive(Debug, Default)]
pub(super) struct Recovering {
    /// Fragments from other members that no COMMIT has named yet.
    uncommitted: HashMap<TraceId, Vec<Found>>,
    /// A part of them is gone to another member: what is left is counted when it is read back.
    moved: HashSet<TraceId>,
    /// What came after its trace's DROP.
    late: HashMap<TraceId, Retained>,
}

/// A fragment in the log.
#[derive(Debug, Clone, Copy)]
struct Found {
    extent: Extent,
    hash: FragmentHash,
    arrival: Moment,
    spans: u32,
    span_bytes: u32,
    has_root: bool,
}

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
                is_received,
            } => {
                let arrival = if PlantedBug::ArrivalsMoved.is_planted() {
                    arrival + std::time::Duration::from_secs(3)
                } else {
                    arrival
                };
                let found = Found {
                    extent,
                    hash,
                    arrival,
                    spans,
                    span_bytes,
                    has_root,
                };
                if is_received {
                    let waiting = self.recovering.uncommitted.entry(trace).or_default();
                    waiting.push(found);
                } else {
                    self.recover_fragment(trace, found, false);
                }
            }
            Recovered::Commit(commit) => self.recover_commit(&commit),
            Recovered::Moved(moved) => self.recover_moved(&moved),
            Recovered::Verdict(decision) => self.recover_decision(decision),
            Recovered::Checkpoint(decisions) => {
                for decision in decisions {
                    self.recover_decision(decision);
                }
            }
            Recovered::Exported { trace, fragments } => {
                // Until when they are remembered is set in the end (`recovered`).
                let hashes = fragments.iter().copied();
                self.decisions
                    .note_exported(trace, hashes, SegmentId(0), Moment::ZERO);
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
            Recovered::Gone { segment, traces } => {
                for gone in traces {
                    self.recover_gone(segment, &gone);
                }
            }
        }
    }

    fn recover_gone(&mut self, segment: SegmentId, gone: &GoneTrace) {
        let Some(entry) = self.index.get_mut(gone.trace) else {
            return;
        };
        let live: HashSet<u32> = gone.live.iter().copied().collect();
        let taken = entry.take(|held| {
            let extent = held.extent();
            extent.segment == segment && !live.contains(&extent.offset)
        });
        let is_empty = entry.fragments().is_empty();
        self.index.uncount_fragments(taken.len());
        if is_empty {
            self.index.remove(gone.trace);
        }
        self.release(&by_segment(&taken));
    }

    fn recover_fragment(&mut self, trace: TraceId, found: Found, is_committed: bool) {
        let Found {
            extent,
            hash,
            arrival,
            spans,
            span_bytes,
            has_root,
        } = found;
        let decision = self.decisions.get(trace).map(|held| held.decision);
        let stage = match decision {
            Some(decision) if decision.verdict == Verdict::Keep => Stage::Kept {
                exporting: 0,
                queued: false,
            },
            // Whoever handed it over was told that it is held: it may raise the verdict.
            Some(decision) if is_committed && !decision.is_final() => Stage::Undecided,
            // It came late, and what raises the verdict takes it along.
            Some(decision) if !decision.is_final() => {
                let until = decision.decided_at + self.config.drop_retain;
                let late = self.recovering.late.entry(trace);
                let late = late.or_insert_with(|| Retained::empty(until, 0, trace));
                late.add(extent);
                return;
            }
            Some(_) => {
                self.space.release([extent]);
                return;
            }
            None => Stage::Undecided,
        };
        let remembered = self.decisions.get(trace);
        if remembered.is_some_and(|it| it.exported(hash)) {
            // A client brought it again when that was forgotten.
            self.space.release([extent]);
            return;
        }
        let held = self.index.get_mut(trace);
        if let Some((older, entry)) = held.and_then(|it| Some((it.place_of(hash)?, it))) {
            // Compaction was moving it; or a batch failed behind its first writes, and the client brought the
            // fragment again; or another member handed over what was here. Two copies could be exported in two
            // messages; of the older one's segment what says that it is settled may follow (GONE).
            if PlantedBug::OlderCopyHeld.is_planted() {
                self.space.release([extent]);
            } else {
                entry.relocate(|it| (it == older).then_some(extent));
                self.space.release([older]);
            }
            return;
        }
        let (entry, _) = self.index.begin(trace, arrival, stage, &self.rules);
        if entry.decision.is_none() && stage != Stage::Undecided {
            // At once: before `recovered` the decision may be forgotten for want of room.
            entry.decision = decision.map(Box::new);
        }
        entry.push(FragmentRef::new(hash, extent));
        if entry.fragments().len() > 1 {
            // Compaction may have written any of them anew, behind younger ones.
            entry.is_no_chain();
        }
        entry.merge_times(arrival, arrival, has_root.then_some(arrival));
        entry.spans += spans;
        entry.span_bytes += u64::from(span_bytes);
        let undecided = entry.stage == Stage::Undecided;
        if undecided && decision.is_some() {
            entry.transfer.get_or_insert_default().is_reopening = true;
        }
        self.index.count_fragment();
        if undecided {
            self.index.count_spans(spans);
        }
    }

    /// Of the fragments that wait for it, those that it names are held.
    fn recover_commit(&mut self, commit: &Commit) {
        let trace = commit.trace;
        let named: HashSet<FragmentHash> = commit.fragments.iter().copied().collect();
        if let Some(waiting) = self.recovering.uncommitted.get_mut(&trace) {
            let committed = waiting.extract_if(.., |found| named.contains(&found.hash));
            let committed: Vec<Found> = committed.collect();
            // The youngest copy stands for an attempt that ended; older ones are let go of as copies.
            for found in committed {
                self.recover_fragment(trace, found, true);
            }
        }
        if let Some(entry) = self.index.get_mut(trace) {
            entry.merge_times(commit.first_seen, commit.last_seen, commit.root_seen);
        }
    }

    /// These went to another member.
    fn recover_moved(&mut self, moved: &Moved) {
        let trace = moved.trace;
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let gone: HashSet<FragmentHash> = moved.fragments.iter().copied().collect();
        let taken = entry.take(|held| gone.contains(&held.hash()));
        let is_empty = entry.fragments().is_empty();
        let is_undecided = entry.stage == Stage::Undecided;
        self.index.uncount_fragments(taken.len());
        if is_empty {
            self.index.remove(trace);
        } else if is_undecided && !taken.is_empty() {
            self.recovering.moved.insert(trace);
        }
        self.release(&by_segment(&taken));
    }

    fn recover_decision(&mut self, decision: Decision) {
        let known = self.decisions.get(decision.trace);
        let is_known = known.is_some_and(|held| held.decision == decision);
        // Which segment records it does not matter: `recovered` writes all of them anew.
        self.remember(decision, SegmentId(0));
        let entry = self.index.get(decision.trace);
        let transfer = entry.and_then(|entry| entry.transfer.as_deref());
        if is_known && transfer.is_some_and(|it| it.is_reopening) {
            // Carried forward, and not given anew.
            return;
        }
        self.apply_recovered(decision);
    }

    /// In any order: it is sorted in the end.
    fn retain_recovered(&mut self, part: Retained) {
        self.places_bytes += part.places_bytes();
        self.retained.push_back(part);
    }

    fn apply_recovered(&mut self, decision: Decision) {
        match decision.verdict {
            Verdict::Keep => {
                if let Some(entry) = self.index.decide_keep(decision.trace) {
                    entry.decision = Some(Box::new(decision));
                    entry.transfer = None;
                }
            }
            Verdict::Drop => {
                if let Some(entry) = self.index.remove(decision.trace) {
                    let until = decision.decided_at + self.config.drop_retain;
                    self.retain_recovered(Retained::of(&entry, until, 0, decision.trace));
                }
            }
        }
    }

    /// All records of earlier lives are in: the fragments whose bytes the policies want to see
    /// again, in the order of their arrival.
    pub fn unfolded(&mut self) -> Vec<Extent> {
        for trace in &self.recovering.moved {
            if let Some(entry) = self.index.get_mut(*trace) {
                let before = std::mem::take(&mut entry.spans);
                entry.span_bytes = 0;
                if entry.stage == Stage::Undecided {
                    self.index.uncount_spans(before);
                }
            }
        }
        // Votes on single fragments are cast later, beside the shard.
        let reads_all =
            self.rules.reads_spans() && self.rules.settings.strategy != Strategy::SpanIngest;
        let undecided = self.index.traces().filter(|(trace, entry)| {
            let is_read = reads_all || self.recovering.moved.contains(trace);
            is_read && entry.stage == Stage::Undecided
        });
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
        self.space.release([extent]);
    }

    /// One of them, read back.
    pub fn fold_again(&mut self, fragment: &StoredFragment) {
        let is_counted = self.recovering.moved.contains(&fragment.trace);
        if is_counted
            && let Some(entry) = self.index.get_mut(fragment.trace)
            && entry.stage == Stage::Undecided
        {
            entry.spans += fragment.spans;
            let bytes = fragment.scopes.iter().map(|it| it.spans.len() as u64);
            entry.span_bytes += bytes.sum::<u64>();
            self.index.count_spans(fragment.spans);
        }
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

    /// Verdicts on kept traces are remembered for a while, and traces may wait longer for their backend.
    fn record_kept_again(&mut self) {
        let kept = self.index.traces().filter_map(|(trace, entry)| {
            let decision = entry.decision.as_deref()?;
            self.decisions.get(trace).is_none().then_some(*decision)
        });
        let mut kept: Vec<Decision> = kept.collect();
        kept.sort_unstable_by_key(|decision| (decision.decided_at, decision.trace));
        for some in kept.chunks(CHECKPOINT_DECISIONS) {
            let extent = self.writer.checkpoint(some);
            self.compaction.coverage.unlist(extent.segment);
            self.note_unwritten(Unwritten::Checkpoint(some.to_vec()));
        }
    }

    /// All records of earlier lives are in and folded: sets deadlines and queues, and writes the decisions
    /// into this life's log, so that no segment of an earlier life is needed for them.
    pub fn recovered(&mut self, now: Moment) {
        let _ = self.decisions.carry_forward(SegmentId(0));
        self.decisions.begin_life(now);
        self.decisions.expire(now);
        self.nothing_is_to_come(now);
        let Recovering {
            uncommitted, late, ..
        } = std::mem::take(&mut self.recovering);
        let mut late: Vec<Retained> = late.into_values().collect();
        late.sort_unstable_by_key(|part| part.trace);
        for part in late {
            self.retain_recovered(part);
        }
        self.retained
            .make_contiguous()
            .sort_by_key(|dropped| dropped.until);
        for found in uncommitted.into_values().flatten() {
            self.space.release([found.extent]);
        }
        self.recover_raised(now);
        let decisions: Vec<Decision> = self.decisions.all().copied().collect();
        let mut place = 0;
        for some in decisions.chunks(CHECKPOINT_DECISIONS) {
            let extent = self.writer.checkpoint(some);
            self.decisions
                .recorded_again(place..place + some.len(), extent.segment);
            // What it is about is too much to find out: it goes in its order.
            self.compaction.coverage.unlist(extent.segment);
            place += some.len();
            self.note_unwritten(Unwritten::Checkpoint(some.to_vec()));
        }
        self.record_kept_again();
        self.carry_exports(SegmentId(0), &mut BTreeSet::new());
        if self.unwritten.is_empty() {
            self.space.carried_over(self.number);
        } else {
            self.note_unwritten(Unwritten::CarriedOver);
        }
        let mut undecided: Vec<(Moment, TraceId)> = Vec::new();
        let mut kept: Vec<(Moment, TraceId)> = Vec::new();
        for (trace, entry) in self.index.traces() {
            match &entry.decision {
                None if entry.transfer.is_some() => {}
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
            self.queue_recovered(at, trace);
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

    /// DROPs that rose to KEEP, or may: their traces are read again.
    fn recover_raised(&mut self, now: Moment) {
        let risen: Vec<(Decision, Moment)> = self
            .retained
            .iter()
            .filter_map(|dropped| {
                let known = self.decisions.get(dropped.trace)?.decision;
                let dropped_at = dropped.until.before(self.config.drop_retain);
                (known.verdict == Verdict::Keep).then_some((known, dropped_at))
            })
            .collect();
        for (keep, dropped_at) in risen {
            self.resurrect(keep, dropped_at);
        }
        let reopened: Vec<TraceId> = self
            .index
            .traces()
            .filter(|(_, entry)| entry.transfer.as_ref().is_some_and(|it| it.is_reopening))
            .map(|(trace, _)| trace)
            .collect();
        for trace in reopened {
            if let Some(entry) = self.index.get_mut(trace) {
                entry.transfer = None;
            }
            match self.decisions.get(trace).map(|held| held.decision) {
                Some(known) if known.decided_at + self.config.drop_retain > now => {
                    self.reopen(trace);
                }
                Some(known) => self.apply_recovered(known),
                None => {}
            }
        }
    }
}
