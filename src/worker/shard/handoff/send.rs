//! The sender's side: what waits for other members goes out in generations, and what they acknowledged is
//! let go of.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::{HandoffAnswer, HandoffTrace, HandoffWork, Lane, Ownership, Shard};
use crate::log::{Moved, PlantedBug};
use crate::model::{FragmentHash, Member, Moment, TraceId};
use crate::trace::{Folded, FragmentRef, Outgoing, Stage, TraceEntry, Transfer};
use crate::worker::handoff::GenerationEnd;
use crate::worker::shard::{Unwritten, by_segment};

/// After a handoff that failed its receiver is left alone for so long, after each further one twice as long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(8);
/// Fragments of one trace in one generation: its MOVED and COMMIT stay below 256 KiB.
const GENERATION_FRAGMENTS_MAX: usize = 1 << 14;
/// Verdicts in one piece of work: 224 KiB.
const WORK_DECISIONS_MAX: usize = 4_096;
const WORK_TRACES_MAX: usize = 4_096;

impl Shard {
    /// The next piece of work: what waits for one member, with at most `bytes_max` of fragments, or one
    /// fragment. One piece a member is under way at a time.
    pub fn pull_handoff(&mut self, bytes_max: u64, now: Moment) -> Option<HandoffWork> {
        let ready = |lane: &Lane| {
            let has_work = !lane.traces.is_empty() || !lane.decisions.is_empty();
            has_work && !lane.is_busy && lane.not_before <= now
        };
        let lanes = self.handing.lanes.iter();
        let ready: Vec<Member> = lanes
            .filter(|(_, lane)| ready(lane))
            .map(|(member, _)| member.clone())
            .collect();
        for to in ready {
            let work = self.work_for(to, bytes_max);
            if work.traces.is_empty() && work.decisions.is_empty() {
                continue;
            }
            if let Some(lane) = self.handing.lanes.get_mut(&work.to) {
                lane.is_busy = true;
            }
            return Some(work);
        }
        None
    }

    fn work_for(&mut self, to: Member, bytes_max: u64) -> HandoffWork {
        let mut work = HandoffWork {
            to,
            decisions: Vec::new(),
            traces: Vec::new(),
        };
        let Some(lane) = self.handing.lanes.get_mut(&work.to) else {
            return work;
        };
        while work.decisions.len() < WORK_DECISIONS_MAX
            && let Some(trace) = lane.decisions.pop_front()
        {
            let known = self.decisions.get(trace);
            work.decisions.extend(known.map(|held| held.decision));
        }
        let mut waiting = std::mem::take(&mut lane.traces);
        let mut later = VecDeque::new();
        let mut bytes = 0;
        while work.traces.len() < WORK_TRACES_MAX
            && bytes < bytes_max
            && let Some(trace) = waiting.pop_front()
        {
            match self.freeze(trace, &work.to, bytes_max - bytes, work.traces.is_empty()) {
                Frozen::Generation(frozen) => {
                    let lens = frozen.fragments.iter().map(|it| u64::from(it.extent().len));
                    bytes += lens.sum::<u64>();
                    if let Some(entry) = self.index.get(trace)
                        && let Some(decision) = entry.decision.as_deref()
                    {
                        work.decisions.push(*decision);
                    }
                    work.traces.push(frozen);
                }
                Frozen::NoRoom => {
                    waiting.push_front(trace);
                    break;
                }
                Frozen::NotNow => later.push_back(trace),
                Frozen::NotHere => {}
            }
        }
        waiting.append(&mut later);
        if let Some(lane) = self.handing.lanes.get_mut(&work.to) {
            waiting.append(&mut lane.traces);
            lane.traces = waiting;
        }
        work
    }

    /// Makes a generation of what of a trace is on disk.
    fn freeze(&mut self, trace: TraceId, to: &Member, room: u64, is_first: bool) -> Frozen {
        let Some(ownership) = &self.handing.ownership else {
            return Frozen::NotHere;
        };
        let owner = ownership.elsewhere(trace);
        if owner.and_then(|owner| ownership.member(owner)) != Some(to) {
            return Frozen::NotHere;
        }
        let leaves = ownership.leaves();
        let unwritten_from = self.unwritten_from();
        let Some(entry) = self.index.get_mut(trace) else {
            return Frozen::NotHere;
        };
        match entry.stage {
            Stage::Undecided => {}
            Stage::Kept { .. } if !leaves => return Frozen::NotHere,
            Stage::Kept { exporting, .. } if exporting > 0 => return Frozen::NotNow,
            Stage::Kept { .. } => {}
        }
        let transfer = entry.transfer.as_deref();
        if transfer.is_some_and(|it| it.outgoing.is_some()) {
            // Its end offers the rest.
            return Frozen::NotHere;
        }
        if transfer.is_some_and(|it| it.is_reopening) {
            return Frozen::NotNow;
        }
        let is_written = |fragment: &FragmentRef| {
            unwritten_from.is_none_or(|unwritten| fragment.extent() < unwritten)
        };
        if !entry.fragments().iter().all(is_written) {
            // In a moment it is.
            return Frozen::NotNow;
        }
        let mut bytes = 0;
        let fits = entry.fragments().iter().take_while(|fragment| {
            bytes += u64::from(fragment.extent().len);
            bytes <= room
        });
        let mut count = fits.count().min(GENERATION_FRAGMENTS_MAX);
        if count < entry.fragments().len() && !is_first {
            // A message of its own will hold more of it.
            return Frozen::NoRoom;
        }
        count = count.max(1).min(entry.fragments().len());
        if count == 0 {
            return Frozen::NotHere;
        }
        let has_more = count < entry.fragments().len();
        self.handing.generation += 1;
        self.handing.under_way += 1;
        let generation = self.handing.generation;
        let rest = (!has_more).then(|| Folded {
            rules_version: self.rules.version,
            state: self.rules.begin(),
            spans: 0,
            span_bytes: 0,
        });
        let fragments = entry.fragments()[..count].to_vec();
        let transfer = entry.transfer.get_or_insert_default();
        transfer.outgoing = Some(Outgoing {
            generation,
            fragments: count as u32,
            rest,
            copies: HashSet::new(),
        });
        if let Stage::Kept { queued, .. } = &mut entry.stage {
            *queued = false;
        }
        Frozen::Generation(HandoffTrace {
            trace,
            generation,
            first_seen: entry.first_seen,
            last_seen: entry.last_seen,
            root_seen: entry.root_seen,
            has_more,
            fragments,
        })
    }

    /// The receiver of this work has answered.
    pub fn handed_over(&mut self, work: HandoffWork, answer: &HandoffAnswer, now: Moment) {
        let HandoffWork {
            to,
            decisions,
            traces,
            ..
        } = work;
        let committed: HashSet<u64> = answer.committed.iter().copied().collect();
        for trace in traces {
            if committed.contains(&trace.generation) {
                self.moved(&trace, &to, now);
            } else {
                self.merge_back(trace.trace, trace.generation, now);
            }
        }
        self.learn(&answer.verdicts, now);
        let told = decisions.len() - answer.untold.len().min(decisions.len());
        self.metrics.handoff.decisions_told.inc_by(told as u64);
        let has_refused = !answer.untold.is_empty() || answer.has_refused;
        if let Some(lane) = self.handing.lanes.get_mut(&to) {
            lane.is_busy = false;
            lane.decisions.extend(&answer.untold);
            if has_refused {
                lane.back_off(now);
            } else {
                lane.failures = 0;
                if lane.has_overflown && lane.decisions.is_empty() {
                    lane.has_overflown = false;
                    self.handing.told = None;
                    self.handing.next_decision = 0;
                }
            }
        }
    }

    /// Nobody can say what became of this work: it counts as not arrived.
    pub fn handoff_failed(&mut self, work: HandoffWork, now: Moment) {
        // The last one first: each goes to the front of what waits.
        for trace in work.traces.iter().rev() {
            if PlantedBug::DeletedBeforeAck.is_planted() {
                self.moved(trace, &work.to, now);
            }
            self.merge_back(trace.trace, trace.generation, now);
        }
        if let Some(lane) = self.handing.lanes.get_mut(&work.to) {
            lane.is_busy = false;
            lane.back_off(now);
            for decision in work.decisions.iter().rev() {
                lane.decisions.push_front(decision.trace);
            }
        }
    }

    /// A generation is in another member's log.
    fn moved(&mut self, sent: &HandoffTrace, to: &Member, now: Moment) {
        let trace = sent.trace;
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let Some(outgoing) = take_outgoing(entry, sent.generation) else {
            return;
        };
        let mut count = outgoing.fragments as usize;
        if PlantedBug::GenerationsMixed.is_planted() {
            count = entry.fragments().len();
        }
        let taken = entry.take_first(count);
        let left: HashSet<FragmentHash> = entry.fragments().iter().map(FragmentRef::hash).collect();
        let hashes = taken.iter().map(FragmentRef::hash);
        let moved = Moved {
            trace,
            generation: sent.generation,
            to: xxhash_rust::xxh3::xxh3_64(to.as_str().as_bytes()),
            fragments: hashes.filter(|hash| !left.contains(hash)).collect(),
        };
        let is_undecided = entry.stage == Stage::Undecided;
        let mut spans_gone = 0;
        match outgoing.rest {
            Some(rest) if rest.rules_version == self.rules.version => {
                entry.folded_by = self.refold.generation();
                spans_gone = entry.spans.saturating_sub(rest.spans);
                entry.spans = rest.spans;
                entry.span_bytes = rest.span_bytes;
                entry.state = rest.state;
            }
            // Not known, or by rules that are no more.
            _ => entry.transfer.get_or_insert_default().is_stale = true,
        }
        let is_empty = entry.fragments().is_empty();
        self.handing.under_way -= 1;
        self.metrics.handoff.ended(GenerationEnd::Moved);
        let recorded_in = self.writer.moved(&moved).segment;
        self.goes_in_its_order(recorded_in);
        self.note_unwritten(Unwritten::Moved(moved));
        self.release(&by_segment(&taken));
        self.index.uncount_fragments(taken.len());
        if is_undecided {
            self.index.uncount_spans(spans_gone);
        }
        if is_empty {
            self.index.remove(trace);
        } else {
            self.settle(trace, now);
        }
    }

    /// A generation goes on to be held here.
    fn merge_back(&mut self, trace: TraceId, generation: u64, now: Moment) {
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let Some(outgoing) = take_outgoing(entry, generation) else {
            return;
        };
        if PlantedBug::MergeBackForgotten.is_planted() {
            let gone = entry.take_first(outgoing.fragments as usize);
            self.index.uncount_fragments(gone.len());
            self.handing.under_way -= 1;
            self.release(&by_segment(&gone));
            return;
        }
        // Their bytes stand in front already.
        let copies = entry.take_copies(outgoing.fragments as usize, &outgoing.copies);
        self.handing.under_way -= 1;
        self.metrics.handoff.ended(GenerationEnd::MergedBack);
        self.release(&by_segment(&copies));
        self.index.uncount_fragments(copies.len());
        self.settle(trace, now);
    }

    /// Nothing of the trace is under way: what is held goes on.
    pub(in crate::worker::shard) fn settle(&mut self, trace: TraceId, now: Moment) {
        let Some(entry) = self.index.get(trace) else {
            return;
        };
        if entry.stage != Stage::Undecided {
            if self
                .handing
                .ownership
                .as_ref()
                .is_some_and(Ownership::leaves)
            {
                self.offer_first(trace);
            }
            self.queue_export(trace);
            return;
        }
        let due = self.due(entry).0;
        if let Some(known) = self.decisions.get(trace).map(|held| held.decision) {
            self.meet(known, now);
            return;
        }
        self.deadlines.push(due.max(now), trace);
        self.offer_first(trace);
    }

    fn offer_first(&mut self, trace: TraceId) {
        if let Some(lane) = self.handing.lane_of(trace) {
            lane.traces.push_front(trace);
        }
    }
}

impl Lane {
    fn back_off(&mut self, now: Moment) {
        let wait = RETRY_AFTER * 2_u32.saturating_pow(self.failures);
        self.not_before = now + wait.min(RETRY_AFTER_MOST);
        self.failures = self.failures.saturating_add(1);
    }
}

enum Frozen {
    Generation(HandoffTrace),
    /// The next message may hold it.
    NoRoom,
    NotNow,
    /// It is gone, or no business of this receiver's.
    NotHere,
}

fn take_outgoing(entry: &mut TraceEntry, generation: u64) -> Option<Outgoing> {
    let transfer = entry.transfer.as_mut()?;
    let outgoing = transfer
        .outgoing
        .take_if(|outgoing| outgoing.generation == generation)?;
    if **transfer == Transfer::default() {
        entry.transfer = None;
    }
    Some(outgoing)
}
