//! One shard: the only owner of its traces, their deadlines and their verdicts.
//!
//! A state machine without threads, clocks or files: calls bring events and `now`, the effects
//! are bytes for the disk ([`Shard::take_batch`]) and work for exporters ([`Shard::pull`]). It
//! never waits. What it hands out is confirmed or taken back later: a batch by
//! [`Shard::batch_written`] or [`Shard::batch_failed`], an export by [`Shard::exported`] or
//! [`Shard::put_back`], a question to the limits ([`Shard::next_ask`]) by [`Shard::answered`], traces to
//! be folded again ([`Shard::next_refold`]) by [`Shard::refolded`].
//! Work for other members ([`Shard::pull_handoff`]) is ended by [`Shard::handed_over`] or [`Shard::handoff_failed`], and
//! what is to be read again ([`Shard::next_reopen`]) by [`Shard::reopened`]. `shard_thread` runs it.

mod batch;
mod carry;
mod compaction;
mod export;
mod handoff;
mod judge;
mod pressure;
mod recovery;
mod refold;
mod retained;
#[cfg(test)]
mod tests;

pub use compaction::{CompactionAnswer, CompactionFound, CompactionJob, CompactionStep};
pub use handoff::{
    FORCED_AFTER, HandoffAnswer, HandoffTrace, HandoffWork, Learned, Ownership, Received,
    ReceivedTrace, Reopen, Reopened,
};
pub use judge::Ask;
pub use refold::{RefoldTrace, RefoldWork};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::log::{Frames, GoneTrace, Moved, PlantedBug, Space, Writer};
use crate::model::{Decision, Extent, FragmentHash, Moment, SegmentId, TraceId, Verdict};
use crate::policy::{Folding, Rules, Strategy};
use crate::trace::{Deadlines, DecideReason, DecisionMemory, Decisions, FragmentRef, Index, Stage};
use crate::worker::ingest::Incoming;
use crate::worker::metrics::{PolicyCounters, SpanFate, WorkerMetrics};
use crate::worker::shard::compaction::Compaction;
use handoff::Handing;
use recovery::Recovering;
use retained::Retained;

/// What a shard is told once.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    pub trace_spans_max: u32,
    pub trace_bytes_max: u64,
    /// What the traces in hand may take in memory, roughly. A log of tiny spans would need more
    /// of it than there is; their clients are refused instead.
    pub index_bytes_max: usize,
    pub on_pressure: OnPressure,
    /// A written buffer with more is not kept for the next batch.
    pub spare_buffer_bytes_max: usize,
    /// How long the bytes of a dropped trace stay.
    pub drop_retain: Duration,
    pub decision_memory: DecisionMemory,
    /// Makes verdict IDs of different lives and shards differ.
    pub verdict_seed: u64,
}

/// What a shard does when its memory or its log is full, beside refusing new bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPressure {
    /// Nothing: every trace gets its time.
    Refuse,
    /// Judges the traces that are due next before their time, and lets go of dropped ones at once.
    Decide,
}

/// Whether a trace that nobody here knows may begin here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// This member owns it.
    Mine,
    /// Another member owns it: say so, it will be passed on.
    Elsewhere,
    /// Another member owns it and cannot be reached: hold it.
    Custody,
}

/// Why a shard did not take the fragments of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendRefused {
    /// The log is at its byte bound, or its volume has only the reserve left.
    LogFull,
    /// The traces in hand take as much memory as they may.
    MemoryFull,
    /// The last write failed; the next attempt is a moment away.
    LogFailed,
}

/// Kept traces for one exporter, each with what of it is not exported yet.
#[derive(Debug)]
pub struct ExportWork {
    pub traces: Vec<ExportTrace>,
}

#[derive(Debug)]
pub struct ExportTrace {
    pub decision: Decision,
    pub fragments: Vec<FragmentRef>,
}

impl ExportWork {
    /// The first `done` fragments of each trace, and the rest. A trace that is cut is in both.
    pub fn split(self, done: &[usize]) -> (Self, Self) {
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for (place, mut export) in self.traces.into_iter().enumerate() {
            let done = done.get(place).copied().unwrap_or(0);
            let behind = export.fragments.split_off(done.min(export.fragments.len()));
            let decision = export.decision;
            if !export.fragments.is_empty() {
                first.push(export);
            }
            if !behind.is_empty() {
                rest.push(ExportTrace {
                    decision,
                    fragments: behind,
                });
            }
        }
        (Self { traces: first }, Self { traces: rest })
    }
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    number: u16,
    config: ShardConfig,
    rules: Arc<Rules>,
    writer: Writer,
    space: Arc<Space>,
    index: Index,
    deadlines: Deadlines,
    decisions: Decisions,
    compaction: Compaction,
    /// Dropped traces whose bytes are still young, oldest first.
    retained: VecDeque<Retained>,
    /// What those take beside themselves.
    places_bytes: usize,
    /// Kept traces in the order of their verdicts, each with the batch that must be on disk before
    /// its first byte is exported.
    exports: VecDeque<(u64, TraceId)>,
    /// Kept traces that the backend refused for good, until they are offered again.
    put_back: VecDeque<(Moment, TraceId)>,
    /// What is not known to be on disk, by batch.
    unwritten: VecDeque<(u64, Vec<Unwritten>)>,
    /// Records of a failed batch, to be written again.
    backlog: Vec<Unwritten>,
    /// The batch that is being filled.
    batch: u64,
    /// All batches before this one are on disk.
    written_before: u64,
    /// After a failed write: nothing is accepted until then.
    refuse_until: Option<Moment>,
    /// Client bytes were refused because the log is at its bound.
    full: bool,
    /// Client bytes were refused for want of memory or of room in the log, with
    /// [`OnPressure::Decide`].
    pressed: bool,
    /// Not before then are traces judged early again: what was judged needs time to be gone.
    press_after: Moment,
    /// Batches that failed since the last one that was written.
    failures: u32,
    /// To be unlinked behind what is being written.
    freed: Vec<SegmentId>,
    /// After a failed unlink: no segment is freed until then.
    free_after: Moment,
    deciding: bool,
    refold: refold::Refold,
    verdicts: u64,
    /// For the limits, oldest first.
    asks: VecDeque<Ask>,
    next_expiry: Moment,
    /// What goes to other members.
    handing: Handing,
    /// While earlier lives are read.
    recovering: Recovering,
    metrics: WorkerMetrics,
    by_policy: PolicyCounters,
    folding: Folding,
    /// What the shared gauges have of this shard.
    shown: Shown,
}

#[derive(Debug, Default, Clone, Copy)]
struct Shown {
    index_bytes: i64,
    undecided_traces: i64,
    undecided_spans: i64,
    awaiting_export: i64,
    decisions: i64,
    decision_bytes: i64,
    refold_traces: i64,
}

/// What is on its way to disk: what to undo, or to write again, should it not arrive.
#[derive(Debug)]
enum Unwritten {
    Fragment {
        trace: TraceId,
        extent: Extent,
        spans: u32,
        span_bytes: u32,
    },
    Verdict(Decision),
    Exported(TraceId, Vec<FragmentHash>),
    Moved(Moved),
    Checkpoint(Vec<Decision>),
    Gone(SegmentId, Vec<GoneTrace>),
    /// Of a fragment that lies elsewhere, too.
    Copy(Extent),
    /// All that is needed of earlier lives was written before it. Has no bytes of its own.
    CarriedOver,
    /// Not before everything that was pending with it.
    Unlink(SegmentId),
}

/// After a failed write the shard tries again so much later, and after each further one twice as
/// much: every attempt begins a segment, and a disk that is gone for a day must not leave a
/// hundred thousand empty files.
const RETRY_WRITE_AFTER: Duration = Duration::from_secs(1);
const RETRY_WRITE_AFTER_MOST: Duration = Duration::from_secs(8);
/// After a failed unlink segments are freed again so much later.
const RETRY_UNLINK_AFTER: Duration = Duration::from_secs(1);
/// A batch the backend refused for good is offered again so much later: a backend that was
/// misconfigured gets well, and nothing that was acknowledged is thrown away before.
const PUT_BACK_FOR: Duration = Duration::from_secs(60);
/// A dropped trace lies in one or two segments: what the allocator takes for the list.
const RETAINED_SEGMENTS_BYTES: usize = 24;
/// Remembered decisions are looked through for age so often.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);

impl Shard {
    pub fn new(
        number: u16,
        config: ShardConfig,
        rules: Arc<Rules>,
        writer: Writer,
        space: Arc<Space>,
        metrics: WorkerMetrics,
    ) -> Self {
        Self {
            number,
            decisions: Decisions::new(config.decision_memory),
            compaction: Compaction::new(config.index_bytes_max),
            config,
            writer,
            space,
            index: Index::default(),
            deadlines: Deadlines::default(),
            retained: VecDeque::new(),
            places_bytes: 0,
            exports: VecDeque::new(),
            put_back: VecDeque::new(),
            unwritten: VecDeque::new(),
            backlog: Vec::new(),
            batch: 1,
            written_before: 1,
            refuse_until: None,
            full: false,
            pressed: false,
            press_after: Moment::ZERO,
            failures: 0,
            freed: Vec::new(),
            free_after: Moment::ZERO,
            deciding: false,
            refold: refold::Refold::new(&rules),
            verdicts: 0,
            asks: VecDeque::new(),
            next_expiry: Moment::ZERO,
            handing: Handing::default(),
            recovering: Recovering::default(),
            by_policy: metrics.of_policies(&rules),
            folding: Folding::default(),
            metrics,
            rules,
            shown: Shown::default(),
        }
    }

    /// Takes the fragments of a request that belong to this shard. Returns those that must be
    /// passed on to another member. What was taken before a refusal stays: the client's retry will
    /// be recognised.
    pub fn append(
        &mut self,
        incoming: &Incoming,
        fragments: &[(u32, Placement)],
        now: Moment,
    ) -> Result<Vec<u32>, AppendRefused> {
        if self.refuse_until.is_some() {
            return Err(AppendRefused::LogFailed);
        }
        let mut admitted = None;
        let mut elsewhere = Vec::new();
        for &(number, placement) in fragments {
            let fragment = &incoming.fragments.all()[number as usize];
            let spans = u64::from(fragment.spans);
            let fate = match self.index.get(fragment.trace) {
                Some(held) if held.holds(fragment.hash) => SpanFate::Duplicate,
                Some(held) => match held.stage {
                    Stage::Undecided => SpanFate::Appended,
                    Stage::Kept { .. } => match self.decisions.get(fragment.trace) {
                        Some(remembered) if remembered.exported(fragment.hash) => {
                            SpanFate::Duplicate
                        }
                        _ => SpanFate::LateKept,
                    },
                },
                None => match self.decisions.get(fragment.trace) {
                    Some(remembered) => match remembered.decision.verdict {
                        Verdict::Drop => SpanFate::LateDropped,
                        Verdict::Keep if remembered.exported(fragment.hash) => SpanFate::Duplicate,
                        Verdict::Keep => SpanFate::LateKept,
                    },
                    None => match placement {
                        Placement::Mine => SpanFate::Appended,
                        Placement::Elsewhere => SpanFate::Forwarded,
                        Placement::Custody => SpanFate::Custody,
                    },
                },
            };
            let retained_until = match fate {
                SpanFate::LateDropped => self.may_rise_until(fragment.trace, now),
                _ => None,
            };
            match fate {
                SpanFate::Duplicate => {}
                SpanFate::LateDropped if retained_until.is_none() => {}
                SpanFate::Forwarded => elsewhere.push(number),
                SpanFate::Custody if PlantedBug::CustodyForgotten.is_planted() => {}
                SpanFate::Appended
                | SpanFate::LateKept
                | SpanFate::LateDropped
                | SpanFate::Custody => {
                    let admitted = *admitted
                        .get_or_insert_with(|| self.space.admits(incoming.message.len() as u64));
                    if !admitted {
                        self.full = true;
                        self.press();
                        return Err(AppendRefused::LogFull);
                    }
                    if self.traces_bytes() >= self.config.index_bytes_max {
                        self.press();
                        return Err(AppendRefused::MemoryFull);
                    }
                    match retained_until {
                        Some(until) => self.retain_late(incoming, number, until, now),
                        None => self.append_one(incoming, number, fate == SpanFate::LateKept, now),
                    }
                }
            }
            self.metrics.fate(fate, spans);
        }
        self.tell_unanswered();
        Ok(elsewhere)
    }

    /// Of conditions without an answer. A line for each request, of which the log takes ten a second.
    fn tell_unanswered(&mut self) {
        for failure in self.folding.take_failures() {
            self.by_policy.failed(failure.policy, failure.times);
            if failure.is_logged {
                let policy = self.rules.policies.get(usize::from(failure.policy));
                let policy = policy.map_or("", |it| it.name.as_str());
                let (times, error) = (failure.times, failure.error);
                tracing::warn!(policy, times, %error, "a condition has no answer and counts as false");
            }
        }
    }

    fn append_one(&mut self, incoming: &Incoming, number: u32, late: bool, now: Moment) {
        let view = incoming.view(number);
        let fragment = view.fragment;
        let trace = fragment.trace;
        let stage = if late {
            Stage::Kept {
                exporting: 0,
                queued: false,
            }
        } else {
            Stage::Undecided
        };
        let (entry, begun) = self.index.begin(trace, now, stage, &self.rules);
        if begun {
            entry.folded_by = self.refold.generation();
        }
        // What comes for a trace that is behind is read back with the rest of it.
        let is_behind = self.refold.is_behind(entry, &self.rules);
        let extent = self.writer.fragment(&view, now, entry.tail());
        let record = Unwritten::Fragment {
            trace,
            extent,
            spans: fragment.spans,
            span_bytes: fragment.span_bytes,
        };
        entry.push(FragmentRef::new(fragment.hash, extent));
        entry.last_seen = now;
        entry.spans += fragment.spans;
        entry.span_bytes += u64::from(fragment.span_bytes);
        if entry.transfer.is_some() {
            handoff::fold_rest(entry, &view, now, &self.rules);
        }
        let root_arrived = fragment.has_root && entry.root_seen.is_none();
        if root_arrived {
            entry.root_seen = Some(now);
        }
        let undecided = entry.stage == Stage::Undecided;
        let mut at_once = None;
        let folds = undecided && !is_behind;
        let folding = &mut self.folding;
        if folds && self.rules.settings.strategy == Strategy::SpanIngest {
            let (state, spans) = (&mut entry.state, entry.spans);
            at_once = self
                .rules
                .vote_at_ingest(trace, state, spans, &view, now, folding);
        } else if folds {
            self.rules.fold_with(&mut entry.state, &view, now, folding);
        }
        let full = entry.spans >= self.config.trace_spans_max
            || entry.span_bytes >= self.config.trace_bytes_max
            || !is_behind && self.rules.is_too_large(&entry.state);
        let deadline = entry.deadline(&self.rules.timing).0;
        self.note_unwritten(record);
        self.index.count_fragment();
        if !undecided {
            self.queue_export(trace);
            let decision = self.index.get(trace).and_then(|it| it.decision.as_deref());
            if let Some(decision) = decision.copied() {
                self.write_verdict_beside(&decision, std::iter::once(extent.segment));
            }
            return;
        }
        self.index.count_spans(fragment.spans);
        if begun {
            self.offer(trace);
        }
        if let Some(vote) = at_once
            && self.may_decide(trace, now)
        {
            self.decide_because(trace, vote, (now, DecideReason::SpanIngest), now);
        } else if full && self.may_decide(trace, now) {
            self.judge(trace, now);
        } else if begun || root_arrived {
            self.deadlines.push(deadline, trace);
        }
    }

    /// Until when what was dropped of a trace is held, if other members' evidence may raise its DROP.
    fn may_rise_until(&self, trace: TraceId, now: Moment) -> Option<Moment> {
        let decision = self.decisions.get(trace)?.decision;
        let until = decision.decided_at + self.config.drop_retain;
        (!decision.is_final() && until > now).then_some(until)
    }

    /// Dropped as the rest of its trace was, and held as that is: who sent it was told that it is safe, and the
    /// DROP may rise.
    fn retain_late(&mut self, incoming: &Incoming, number: u32, until: Moment, now: Moment) {
        let view = incoming.view(number);
        let fragment = view.fragment;
        let trace = fragment.trace;
        let extent = self.writer.fragment(&view, now, None);
        self.note_unwritten(Unwritten::Fragment {
            trace,
            extent,
            spans: fragment.spans,
            span_bytes: fragment.span_bytes,
        });
        if let Some(decision) = self.decisions.get(trace).map(|it| it.decision) {
            self.write_verdict_beside(&decision, std::iter::once(extent.segment));
        }
        let batch = self.last_unwritten_batch();
        // Among 300,000 parts one more in the middle would move a megabyte.
        let from = self.retained.partition_point(|it| it.until < until);
        let same = self.retained.range(from..);
        let mut same = same.take_while(|it| it.until == until);
        match same.position(|it| it.trace == trace && !it.fragments.is_empty()) {
            Some(place) => self.change_retained(from + place, |part| {
                part.batch = batch;
                part.add(extent);
            }),
            None => {
                let mut part = Retained::empty(until, batch, trace);
                part.add(extent);
                self.retain(part);
            }
        }
    }

    /// Decides what is complete, forgets what is old, frees what nobody needs.
    pub fn tick(&mut self, now: Moment) {
        if self.refuse_until.is_some_and(|until| until <= now) {
            self.refuse_until = None;
            self.write_backlog();
        }
        self.rekey();
        self.judge_due(now);
        self.relieve(now);
        let on_disk_before = if PlantedBug::DroppedBeforeVerdict.is_planted() {
            u64::MAX
        } else {
            self.written_before
        };
        while let Some(dropped) = self
            .retained
            .pop_front_if(|dropped| dropped.until <= now && dropped.batch < on_disk_before)
        {
            self.places_bytes -= dropped.places_bytes();
            self.release(&dropped.fragments);
        }
        while let Some(&(at, trace)) = self.put_back.front() {
            if at > now {
                break;
            }
            self.put_back.pop_front();
            self.queue_export(trace);
        }
        if self.next_expiry <= now {
            self.next_expiry = now + EXPIRE_EVERY;
            self.decisions.expire(now);
            self.forget_gone_segments();
            self.index.shrink();
            shrink(&mut self.retained);
            self.deadlines.shrink();
        }
        self.offer_what_was_received(now);
        self.look_for_decisions_to_tell();
        self.make_room();
        self.free_segments(now);
        self.show();
    }

    /// In a full log the open segments may be all that is left. Nothing new comes in that would fill
    /// and so seal them, and only what is sealed is freed: the log would stay full for ever.
    fn make_room(&mut self) {
        if self.full
            && self.refuse_until.is_none()
            && let Some(open) = self.writer.segment()
            && self.space.is_wasted(open)
        {
            self.full = false;
            self.writer.seal_current();
        }
    }

    /// When [`Shard::tick`] has something to do next; `None` for when something comes in.
    pub fn next_wakeup(&self) -> Option<Moment> {
        if self.refold.has_work() {
            return Some(Moment::ZERO);
        }
        let deadline = self.deadlines.next().filter(|_| self.deciding);
        // One whose verdict is not on disk waits for a batch, not for a moment.
        let is_written = |dropped: &&Retained| dropped.batch < self.written_before;
        let retained = self.retained.front().filter(is_written);
        let retained = retained.map(|dropped| dropped.until);
        let put_back = self.put_back.front().map(|(at, _)| *at);
        let compaction = self.compaction.next_wakeup();
        [deadline, retained, put_back, self.refuse_until, compaction]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether this shard gives verdicts: not before the member has joined, not while it leaves.
    pub fn set_deciding(&mut self, deciding: bool) {
        self.deciding = deciding;
    }

    /// The verdict on a trace, as long as it is remembered.
    pub fn verdict(&self, trace: TraceId) -> Option<&Decision> {
        self.decisions.get(trace).map(|held| &held.decision)
    }

    /// What the traces in hand and the dropped ones that are still in the log take.
    pub(super) fn traces_bytes(&self) -> usize {
        self.index.bytes()
            + self.retained.capacity() * size_of::<Retained>()
            + self.retained.len() * RETAINED_SEGMENTS_BYTES
            + self.places_bytes
            + self.refold.bytes()
            + self.compaction.bytes()
    }

    /// All that this shard holds, roughly.
    pub fn memory_bytes(&self) -> usize {
        self.traces_bytes() + self.decisions.bytes()
    }

    fn show(&mut self) {
        let now = Shown {
            index_bytes: self.traces_bytes() as i64,
            undecided_traces: self.index.undecided() as i64,
            undecided_spans: self.index.undecided_spans() as i64,
            awaiting_export: self.awaiting_export() as i64,
            decisions: self.decisions.len() as i64,
            decision_bytes: self.decisions.bytes() as i64,
            refold_traces: self.refold.traces() as i64,
        };
        let m = &self.metrics;
        let was = self.shown;
        m.index_bytes.inc_by(now.index_bytes - was.index_bytes);
        m.undecided_traces
            .inc_by(now.undecided_traces - was.undecided_traces);
        m.undecided_spans
            .inc_by(now.undecided_spans - was.undecided_spans);
        m.awaiting_export_traces
            .inc_by(now.awaiting_export - was.awaiting_export);
        m.decisions_remembered.inc_by(now.decisions - was.decisions);
        m.decision_memory_bytes
            .inc_by(now.decision_bytes - was.decision_bytes);
        m.reload
            .refold_traces
            .inc_by(now.refold_traces - was.refold_traces);
        self.shown = now;
        self.show_handing();
    }

    /// What it takes is counted.
    fn change_retained(&mut self, place: usize, change: impl FnOnce(&mut Retained)) {
        if let Some(part) = self.retained.get_mut(place) {
            self.places_bytes -= part.places_bytes();
            change(part);
            self.places_bytes += part.places_bytes();
        }
    }

    /// Puts a dropped trace among those that go when their time is over, which stand in that order.
    fn retain(&mut self, dropped: Retained) {
        self.places_bytes += dropped.places_bytes();
        let is_last = self
            .retained
            .back()
            .is_none_or(|last| last.until <= dropped.until);
        if is_last {
            self.retained.push_back(dropped);
        } else {
            let at = self
                .retained
                .partition_point(|it| it.until <= dropped.until);
            self.retained.insert(at, dropped);
        }
    }
}

/// Gives memory back after a burst: capacity follows the length down, at a quarter.
fn shrink<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > 1024 && queue.len() < queue.capacity() / 4 {
        queue.shrink_to(queue.len() * 2);
    }
}

/// How many fragments lie in which segment. A trace lies in one or two.
fn by_segment(fragments: &[FragmentRef]) -> Box<[(SegmentId, Frames)]> {
    let mut counts: Vec<(SegmentId, Frames)> = Vec::with_capacity(2);
    for fragment in fragments {
        let extent = fragment.extent();
        let place = counts.iter().rposition(|(held, _)| *held == extent.segment);
        let place = place.unwrap_or_else(|| {
            counts.push((extent.segment, Frames::default()));
            counts.len() - 1
        });
        counts[place].1.add(extent);
    }
    counts.into_boxed_slice()
}
