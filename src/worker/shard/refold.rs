//! New rules while traces are undecided.
//!
//! Every undecided trace is judged by the rules in force when it is judged, on a state that those
//! rules folded. So when rules change its deadline is worked out anew, a part of the traces each turn,
//! and its state is made again from what the log holds: those that are due first come first, and a
//! trace that is due sooner than its turn comes goes before all others and is judged when its fold is
//! there, never by the state of other rules. Reading is effects ([`Shard::next_refold`]) that come
//! back ([`Shard::refolded`]); `refolder` carries them out beside the shards.
//!
//! Each fragment is folded once: while a trace is behind, what arrives for it is appended and not
//! folded, and read back like the rest; from the moment that all of it is in the state, what arrives
//! is folded as it comes. Rules that fold as the earlier ones did (another share, another wait) read
//! nothing back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use crate::model::{Extent, Moment, TraceId};
use crate::policy::{Rules, Strategy};
use crate::trace::{Deadlines, DecideReason, Stage, TraceEntry};

mod work;

use work::Progress;
pub use work::{RefoldTrace, RefoldWork};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refold {
    /// Counts changes after which states must be made again. Wraps: a trace is looked at long before
    /// the 65,536th change after it.
    generation: u16,
    /// Deadlines by earlier rules, those of the earliest first, until they are worked out anew.
    former: VecDeque<Deadlines>,
    /// Traces that are behind, by their new deadlines.
    waiting: Deadlines,
    /// Traces whose verdict waits, and how many fragments they had when they became due.
    due: HashMap<TraceId, usize, foldhash::fast::RandomState>,
    due_order: VecDeque<TraceId>,
    /// In the middle, until this batch is on disk.
    unfinished: VecDeque<(u64, TraceId)>,
    /// Could not be read.
    unread: VecDeque<(Moment, TraceId)>,
    begun: HashMap<TraceId, Progress, foldhash::fast::RandomState>,
    reading: HashSet<TraceId, foldhash::fast::RandomState>,
    urgent_out: usize,
    others_out: usize,
}

/// Read back in one piece of work, unless a single fragment is longer.
const WORK_BYTES: u64 = 1 << 20;
const WORK_TRACES_MAX: usize = 512;
/// One is read while another is on its way.
const URGENT_WORKS_MAX: usize = 2;
const OTHER_WORKS_MAX: usize = 1;
/// Traces that get their new deadlines in one turn: some 0.3 ms.
const REKEYED_A_TURN: usize = 2_048;
/// Traces looked at for one piece of work: many may be decided by then.
const LOOKED_AT_MAX: usize = 4_096;
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A trace in a queue or a set, with what those have to spare.
const QUEUED_BYTES: usize = 48;

impl Refold {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            // What an earlier life left is folded at the start and not voted on.
            generation: u16::from(rules.settings.strategy == Strategy::SpanIngest),
            ..Self::default()
        }
    }

    /// Whether the state is that of other rules and says nothing.
    pub(super) fn is_behind(&self, entry: &TraceEntry, rules: &Rules) -> bool {
        entry.folded_by != self.generation && rules.looks_back()
    }

    /// A trace begins.
    pub(super) fn generation(&self) -> u16 {
        self.generation
    }

    /// For a trace of whose state a part must not count.
    pub(super) fn earlier_generation(&self) -> u16 {
        self.generation.wrapping_sub(1)
    }

    /// After a failed batch: what waits for one waits for `last`.
    pub(super) fn wait_for(&mut self, last: u64, written_before: u64) {
        for (batch, _) in &mut self.unfinished {
            if *batch >= written_before {
                *batch = last;
            }
        }
    }

    /// Traces that are behind, or not looked at since the rules changed.
    pub(super) fn traces(&self) -> usize {
        self.to_be_rekeyed() + self.queued()
    }

    pub(super) fn to_be_rekeyed(&self) -> usize {
        self.former.iter().map(Deadlines::len).sum()
    }

    fn queued(&self) -> usize {
        self.waiting.len()
            + self.due_order.len()
            + self.unfinished.len()
            + self.unread.len()
            + self.reading.len()
    }

    /// Deadlines beside them are paid for with their traces, the former ones instead of the new.
    pub(super) fn bytes(&self) -> usize {
        let queued = self.queued() + self.due.len();
        queued * QUEUED_BYTES + self.begun.len() * (size_of::<Progress>() + QUEUED_BYTES)
    }

    pub(super) fn has_work(&self) -> bool {
        !self.former.is_empty()
            || self.urgent_out < URGENT_WORKS_MAX && !self.due_order.is_empty()
            || self.others_out < OTHER_WORKS_MAX && !self.waiting.is_empty()
    }

    /// Nothing waits for this trace any more.
    fn forget(&mut self, trace: TraceId) {
        self.due.remove(&trace);
        self.begun.remove(&trace);
    }
}

impl Shard {
    /// From now on these rules are in force. What is complete at `now` is judged by the earlier ones.
    pub fn set_rules(&mut self, rules: Arc<Rules>, now: Moment) {
        if rules.version == self.rules.version {
            return;
        }
        self.judge_due(now);
        let earlier = std::mem::replace(&mut self.rules, rules);
        self.by_policy = self.metrics.of_policies(&self.rules);
        // The limits of the earlier rules are no more.
        for ask in std::mem::take(&mut self.asks) {
            if ask.waits {
                self.ask_again(ask.of.trace, now);
            }
        }
        let folds_like = self.rules.folds_like(&earlier);
        if folds_like && self.rules.completes_like(&earlier) {
            return;
        }
        // By these rules they may be due later.
        let due = self.refold.due.drain();
        let mut due: Vec<TraceId> = due.map(|(trace, _)| trace).collect();
        // A life that is told the same does the same.
        due.sort_unstable();
        for trace in due {
            self.deadlines.push(now, trace);
        }
        self.refold.due_order.clear();
        if !folds_like {
            let generation = self.refold.generation.wrapping_add(1);
            let before = std::mem::take(&mut self.refold);
            self.refold = Refold {
                generation,
                former: before.former,
                urgent_out: before.urgent_out,
                others_out: before.others_out,
                ..Refold::default()
            };
        }
        let deadlines = std::mem::take(&mut self.deadlines);
        self.refold.former.push_back(deadlines);
    }

    /// The version of the rules in force.
    pub fn rules_version(&self) -> u64 {
        self.rules.version
    }

    /// A verdict on this trace waits until it is folded again.
    pub fn waits_for_fold(&self, trace: TraceId) -> bool {
        self.refold.due.contains_key(&trace)
    }

    /// A trace of an earlier life, due then.
    pub(super) fn queue_recovered(&mut self, at: Moment, trace: TraceId) {
        let entry = self.index.get(trace);
        if entry.is_some_and(|entry| self.refold.is_behind(entry, &self.rules)) {
            self.refold.waiting.push(at, trace);
        }
    }

    /// Works out deadlines anew, of some traces at a time.
    pub(super) fn rekey(&mut self) {
        for _ in 0..REKEYED_A_TURN {
            let Some(former) = self.refold.former.front_mut() else {
                return;
            };
            let Some(trace) = former.pop_due(Moment::NEVER) else {
                self.refold.former.pop_front();
                continue;
            };
            let waits = |entry: &&TraceEntry| entry.stage == Stage::Undecided && !entry.is_asking;
            let Some(entry) = self.index.get(trace).filter(waits) else {
                continue;
            };
            let (at, _) = self.due(entry);
            if self.refold.is_behind(entry, &self.rules) {
                self.refold.waiting.push(at, trace);
            }
            self.deadlines.push(at, trace);
        }
    }

    /// The trace is to be judged, and is behind.
    pub(super) fn fold_first(&mut self, trace: TraceId) {
        let Some(entry) = self.index.get(trace) else {
            return;
        };
        let fragments = entry.fragments().len();
        let waiting = self.refold.due.len();
        self.refold.due.entry(trace).or_insert(fragments);
        if self.refold.due.len() > waiting {
            self.refold.due_order.push_back(trace);
        }
    }

    /// The next traces to be folded again; what is urgent first.
    pub fn next_refold(&mut self, now: Moment) -> Option<RefoldWork> {
        let mut work = None;
        if self.refold.urgent_out < URGENT_WORKS_MAX {
            work = self.collect(true, now);
        }
        if work.is_none() && self.refold.others_out < OTHER_WORKS_MAX {
            work = self.collect(false, now);
        }
        work
    }

    fn collect(&mut self, is_urgent: bool, now: Moment) -> Option<RefoldWork> {
        let mut work = RefoldWork {
            rules: Arc::clone(&self.rules),
            generation: self.refold.generation,
            is_urgent,
            traces: Vec::new(),
        };
        let mut unwritten_from = None;
        let mut bytes = 0;
        for _ in 0..LOOKED_AT_MAX {
            if bytes >= WORK_BYTES || work.traces.len() >= WORK_TRACES_MAX {
                break;
            }
            let Some(trace) = self.next_behind(is_urgent, now) else {
                break;
            };
            if !is_urgent && self.refold.due.contains_key(&trace) {
                continue; // it became urgent
            }
            let unwritten = *unwritten_from.get_or_insert_with(|| self.unwritten_from());
            if let Some(part) = self.part_of(trace, WORK_BYTES - bytes, unwritten, now) {
                bytes += part.extents.iter().map(|it| u64::from(it.len)).sum::<u64>();
                work.traces.push(part);
            }
        }
        if work.traces.is_empty() {
            return None;
        }
        *self.out(is_urgent) += 1;
        Some(work)
    }

    fn out(&mut self, is_urgent: bool) -> &mut usize {
        if is_urgent {
            &mut self.refold.urgent_out
        } else {
            &mut self.refold.others_out
        }
    }

    fn next_behind(&mut self, is_urgent: bool, now: Moment) -> Option<TraceId> {
        let refold = &mut self.refold;
        if !is_urgent {
            return refold.waiting.pop_due(Moment::NEVER);
        }
        let written_before = self.written_before;
        let unfinished = refold
            .unfinished
            .pop_front_if(|(batch, _)| *batch < written_before);
        unfinished
            .map(|(_, trace)| trace)
            .or_else(|| {
                let unread = refold.unread.pop_front_if(|(at, _)| *at <= now);
                unread.map(|(_, trace)| trace)
            })
            .or_else(|| refold.due_order.pop_front())
    }

    /// What this trace lacks and is on disk, up to `room`: at least one fragment if there is any.
    fn part_of(
        &mut self,
        trace: TraceId,
        room: u64,
        unwritten_from: Option<Extent>,
        now: Moment,
    ) -> Option<RefoldTrace> {
        if !self.is_to_be_folded(trace) || self.refold.reading.contains(&trace) {
            return None;
        }
        let fragments = self.index.get(trace)?.fragments();
        let progress = self.refold.begun.remove(&trace);
        let progress = progress
            .filter(|progress| progress.fits(fragments))
            .unwrap_or_else(|| Progress::begin(&self.rules));
        let mut extents = Vec::new();
        let mut last = None;
        let mut bytes = 0;
        let mut is_cut = false;
        for fragment in &fragments[progress.folded..] {
            let extent = fragment.extent();
            bytes += u64::from(extent.len);
            is_cut = bytes > room && !extents.is_empty();
            let is_written = unwritten_from.is_none_or(|unwritten| extent < unwritten);
            if is_cut || !is_written {
                break;
            }
            last = Some(fragment.hash());
            extents.push(extent);
        }
        let Some(last) = last else {
            self.go_on(trace, progress, false, now);
            return None;
        };
        self.refold.reading.insert(trace);
        Some(RefoldTrace {
            trace,
            extents,
            is_unread: false,
            is_cut,
            progress,
            last,
        })
    }

    /// Else nobody asks for its fold any more: it is decided, gone, or begun anew.
    fn is_to_be_folded(&mut self, trace: TraceId) -> bool {
        let entry = self.index.get(trace);
        let is_it = entry.is_some_and(|entry| {
            entry.stage == Stage::Undecided
                && !entry.is_asking
                && self.refold.is_behind(entry, &self.rules)
        });
        if !is_it {
            self.refold.forget(trace);
        }
        is_it
    }

    /// Work that was carried out.
    pub fn refolded(&mut self, work: RefoldWork, now: Moment) {
        *self.out(work.is_urgent) -= 1;
        if work.generation != self.refold.generation {
            return;
        }
        for part in work.traces {
            let trace = part.trace;
            self.refold.reading.remove(&trace);
            if !self.is_to_be_folded(trace) {
                continue;
            }
            if part.is_unread {
                self.refold
                    .unread
                    .push_back((now + READ_AGAIN_AFTER, trace));
                continue;
            }
            let progress = Progress {
                last: Some(part.last),
                ..part.progress
            };
            self.go_on(trace, progress, part.is_cut, now);
        }
    }

    /// A part of the trace is folded: it may be all.
    fn go_on(&mut self, trace: TraceId, progress: Progress, is_cut: bool, now: Moment) {
        if let Some(vote) = progress.vote.filter(|_| self.deciding) {
            self.refold.forget(trace);
            self.decide_because(trace, vote, (now, DecideReason::SpanIngest), now);
            return;
        }
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let fits = progress.fits(entry.fragments());
        let is_whole = fits && progress.folded == entry.fragments().len();
        // What came after its deadline does not hold up its verdict: it might come for ever.
        let was_due = self.refold.due.get(&trace);
        let has_seen_enough = was_due.is_some_and(|had| progress.folded >= *had);
        if !(is_whole || fits && has_seen_enough && self.deciding) {
            self.go_on_later(trace, progress, is_cut);
            return;
        }
        let was_due = self.refold.due.remove(&trace).is_some();
        // A vote on a fragment that nobody could give now is cast when the trace is complete.
        let is_done = self.deciding || self.rules.settings.strategy != Strategy::SpanIngest;
        if is_done {
            entry.state = progress.state;
        }
        if is_done && is_whole {
            entry.folded_by = self.refold.generation;
        }
        let Some(entry) = self.index.get(trace) else {
            return;
        };
        let (at, _) = self.due(entry);
        if self.deciding && (was_due || at <= now) {
            self.judge_folded(trace, now);
        } else if was_due || at <= now {
            self.deadlines.push(at, trace);
        }
    }
    /// A part of the trace is not folded, or came meanwhile.
    fn go_on_later(&mut self, trace: TraceId, progress: Progress, is_cut: bool) {
        let last_batch = self.last_unwritten_batch();
        let due_at = self.index.get(trace).map(|entry| self.due(entry).0);
        let refold = &mut self.refold;
        refold.begun.insert(trace, progress);
        match due_at.filter(|_| is_cut) {
            Some(_) if refold.due.contains_key(&trace) => refold.due_order.push_front(trace),
            // It is paced like the others.
            Some(at) => refold.waiting.push(at, trace),
            None => refold.unfinished.push_back((last_batch, trace)),
        }
    }
}
