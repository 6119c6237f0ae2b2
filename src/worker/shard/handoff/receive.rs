//! The other side: generations that another member hands over.

use super::{Shard, fold_rest};
use crate::log::{Commit, PlantedBug};
use crate::model::{Decision, FragmentHash, Moment, TraceId, Verdict};
use crate::policy::Strategy;
use crate::trace::{FragmentRef, Held, Stage};
use crate::worker::handoff::ReceivedFate;
use crate::worker::ingest::Incoming;
use crate::worker::shard::{AppendRefused, Unwritten};

/// More of a trace is to come: nobody waits longer for it than this.
const MORE_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// What a shard gets of one message.
#[derive(Debug, Default)]
pub struct Received {
    pub decisions: Vec<Decision>,
    pub traces: Vec<ReceivedTrace>,
}

/// One generation. Moments are in this member's time.
#[derive(Debug)]
pub struct ReceivedTrace {
    pub trace: TraceId,
    pub generation: u64,
    pub first_seen: Moment,
    pub last_seen: Moment,
    pub root_seen: Option<Moment>,
    /// The sender has more of it.
    pub has_more: bool,
    /// By their numbers in the message, with their arrivals.
    pub fragments: Vec<(u32, Moment)>,
}

/// What the sender hears, once all that it stands for is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandoffAnswer {
    /// Generations that are held here now, or covered by a verdict.
    pub committed: Vec<u64>,
    /// There are others that are not.
    pub has_refused: bool,
    /// On these traces, and on those of which the sender was wrong.
    pub verdicts: Vec<Decision>,
    /// Verdicts that could not be taken in now.
    pub untold: Vec<TraceId>,
}

impl HandoffAnswer {
    /// Of the shards together.
    pub fn add(&mut self, other: Self) {
        self.committed.extend(other.committed);
        self.has_refused |= other.has_refused;
        self.verdicts.extend(other.verdicts);
        self.untold.extend(other.untold);
    }
}

impl Shard {
    /// Takes in what another member hands over: all of it, or the traces before the first one for which
    /// there is no room.
    pub fn receive(
        &mut self,
        incoming: &Incoming,
        received: &Received,
        now: Moment,
    ) -> Result<HandoffAnswer, AppendRefused> {
        if self.refuse_until.is_some() {
            return Err(AppendRefused::LogFailed);
        }
        let mut answer = HandoffAnswer::default();
        let learned = self.learn(&received.decisions, now);
        answer.untold = learned.untold;
        answer.verdicts = learned.contradicted;
        let has_room = self.space.admits(incoming.message.len() as u64);
        for trace in &received.traces {
            if !has_room || self.traces_bytes() >= self.config.index_bytes_max {
                answer.has_refused = true;
                break;
            }
            self.receive_trace(incoming, trace, now);
            answer.committed.push(trace.generation);
            let known = self.decisions.get(trace.trace);
            answer.verdicts.extend(known.map(|held| held.decision));
        }
        Ok(answer)
    }

    fn receive_trace(&mut self, incoming: &Incoming, received: &ReceivedTrace, now: Moment) {
        let trace = received.trace;
        let known = self.decisions.get(trace).map(|held| held.decision);
        let is_late = known.is_some_and(|it| it.verdict == Verdict::Drop);
        if let Some(decision) = known.filter(|_| is_late) {
            let spans = || {
                let all = incoming.fragments.all();
                let spans = received.fragments.iter();
                spans.map(|(number, _)| all[*number as usize].spans).sum()
            };
            if decision.is_final() || PlantedBug::DroppedNotReopened.is_planted() {
                self.metrics
                    .handoff
                    .received(ReceivedFate::Dropped, spans());
                return;
            }
            if decision.decided_at + self.config.drop_retain <= now {
                self.metrics
                    .handoff
                    .received(ReceivedFate::TooLate, spans());
                self.miss_upgrade(incoming, received);
                return;
            }
        }
        let stage = match known.map(|it| it.verdict) {
            Some(Verdict::Keep) => Stage::Kept {
                exporting: 0,
                queued: false,
            },
            Some(Verdict::Drop) | None => Stage::Undecided,
        };
        let mut appended: Vec<FragmentHash> = Vec::new();
        for &(number, arrival) in &received.fragments {
            let fate = self.receive_fragment(incoming, number, arrival, stage, is_late);
            let fragment = &incoming.fragments.all()[number as usize];
            if fate != ReceivedFate::Duplicate {
                appended.push(fragment.hash);
            }
            self.metrics.handoff.received(fate, fragment.spans);
        }
        let commit = Commit {
            trace,
            generation: received.generation,
            first_seen: received.first_seen,
            last_seen: received.last_seen,
            root_seen: received.root_seen,
            fragments: appended,
        };
        let recorded_in = self.writer.commit(&commit).segment;
        self.goes_in_its_order(recorded_in);
        let Some(entry) = self.index.get_mut(trace) else {
            // All of it is exported.
            return;
        };
        if PlantedBug::WaitBegunAnew.is_planted() {
            entry.first_seen = now;
        } else {
            entry.merge_times(received.first_seen, received.last_seen, received.root_seen);
        }
        let is_undecided = entry.stage == Stage::Undecided;
        if received.has_more {
            entry.transfer.get_or_insert_default().more_until = now + MORE_WITHIN;
        } else if let Some(transfer) = &mut entry.transfer {
            transfer.more_until = Moment::ZERO;
        }
        if let Some(known) = known.filter(|_| is_undecided) {
            self.meet(known, now);
        } else if is_undecided {
            let due = self.index.get(trace).map(|entry| self.due(entry).0);
            self.deadlines.push(due.unwrap_or(now).max(now), trace);
            self.offer_later(trace, now);
        } else {
            self.queue_export(trace);
        }
    }

    fn receive_fragment(
        &mut self,
        incoming: &Incoming,
        number: u32,
        arrival: Moment,
        stage: Stage,
        is_late: bool,
    ) -> ReceivedFate {
        let view = incoming.view(number);
        let fragment = view.fragment;
        let trace = fragment.trace;
        let held = self.index.get(trace);
        let held = held.map_or(Held::No, |entry| entry.where_is(fragment.hash));
        let remembered = self.decisions.get(trace);
        let is_refused = held == Held::Leaving && PlantedBug::CopyOfLeavingRefused.is_planted();
        if held == Held::Yes
            || is_refused
            || remembered.is_some_and(|it| it.exported(fragment.hash))
        {
            return ReceivedFate::Duplicate;
        }
        let (entry, begun) = self.index.begin(trace, arrival, stage, &self.rules);
        if begun {
            entry.folded_by = self.refold.generation();
        }
        if self.rules.settings.strategy == Strategy::SpanIngest {
            // Whether it decides alone is asked when it is read back.
            entry.folded_by = self.refold.earlier_generation();
        }
        let is_behind = self.refold.is_behind(entry, &self.rules);
        let extent = self.writer.received(&view, arrival, entry.tail());
        self.compaction.coverage.unlist(extent.segment);
        entry.push(FragmentRef::new(fragment.hash, extent));
        let is_undecided = entry.stage == Stage::Undecided;
        let is_copy = held == Held::Leaving;
        if entry.transfer.is_some() {
            fold_rest(entry, &view, arrival, &self.rules);
        }
        if is_copy && let Some(outgoing) = entry.outgoing_mut() {
            outgoing.copies.insert(fragment.hash.0.to_le_bytes());
        }
        if !is_copy {
            entry.spans += fragment.spans;
            entry.span_bytes += u64::from(fragment.span_bytes);
            if is_undecided && !is_behind {
                self.rules.fold(&mut entry.state, &view, arrival);
            }
        }
        self.index.count_fragment();
        if is_undecided && !is_copy {
            self.index.count_spans(fragment.spans);
        }
        self.note_unwritten(Unwritten::Fragment {
            trace,
            extent,
            spans: fragment.spans,
            span_bytes: fragment.span_bytes,
        });
        match (is_undecided, is_late) {
            (false, _) => ReceivedFate::LateKept,
            (true, true) => ReceivedFate::Reopened,
            (true, false) => ReceivedFate::Appended,
        }
    }

    /// The rest of the trace is gone: the verdict stands. Counted if this part alone says otherwise.
    fn miss_upgrade(&mut self, incoming: &Incoming, received: &ReceivedTrace) {
        let mut state = self.rules.begin();
        let mut spans = 0;
        for &(number, arrival) in &received.fragments {
            let view = incoming.view(number);
            spans += view.fragment.spans;
            self.rules.fold(&mut state, &view, arrival);
        }
        let vote = self
            .rules
            .vote(received.trace, &state, spans, &Default::default());
        if vote.verdict == Verdict::Keep {
            self.metrics.handoff.upgrades_missed.inc();
        }
    }
}
