//! Verdicts that other members gave, and those that rose.

use super::{Shard, rank};
use crate::log::PlantedBug;
use crate::model::{Decision, Moment, TraceId, Verdict};
use crate::policy::Vote;
use crate::trace::Stage;
use crate::worker::handoff::ConflictWon;
use crate::worker::shard::Unwritten;

/// What came of verdicts that another member told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Their traces are on their way elsewhere, or being read: to be told again.
    pub untold: Vec<TraceId>,
    /// Verdicts of ours that the other member does not know and that go before its own.
    pub contradicted: Vec<Decision>,
}

enum Told {
    Known,
    New,
    /// A DROP of ours, given then, becomes this KEEP.
    Raises(Moment),
    Later,
    Contradicted(Decision),
}

impl Shard {
    /// Takes in verdicts of other members. They count as told when what is written now is on disk.
    pub fn learn(&mut self, told: &[Decision], now: Moment) -> Learned {
        let mut learned = Learned::default();
        let mut new = Vec::new();
        for decision in told {
            match self.compare(decision) {
                Told::Known => {}
                Told::New => new.push((*decision, None)),
                Told::Raises(dropped_at) => new.push((*decision, Some(dropped_at))),
                Told::Later => learned.untold.push(decision.trace),
                Told::Contradicted(ours) => learned.contradicted.push(ours),
            }
        }
        if new.is_empty() {
            return learned;
        }
        let decisions: Vec<Decision> = new.iter().map(|(decision, _)| *decision).collect();
        self.metrics
            .handoff
            .decisions_learned
            .inc_by(decisions.len() as u64);
        let extent = self.writer.checkpoint(&decisions);
        self.goes_in_its_order(extent.segment);
        self.go_behind(extent.segment);
        for (decision, raises) in new {
            self.remember(decision, extent.segment);
            if let Some(dropped_at) = raises {
                self.metrics.handoff.conflict(ConflictWon::Keep);
                self.resurrect(decision, dropped_at);
            }
            self.meet(decision, now);
        }
        self.note_unwritten(Unwritten::Checkpoint(decisions));
        learned
    }

    fn compare(&self, theirs: &Decision) -> Told {
        let trace = theirs.trace;
        let held = self.index.get(trace);
        let held = held.filter(|entry| entry.stage == Stage::Undecided);
        let known = self.decisions.get(trace).map(|held| held.decision);
        if let Some(ours) = known {
            if ours.id == theirs.id && ours.verdict == theirs.verdict {
                return Told::Known;
            }
            if PlantedBug::KeepNotLearned.is_planted() {
                return Told::Known;
            }
            return match rank(theirs.verdict).cmp(&rank(ours.verdict)) {
                std::cmp::Ordering::Greater if ours.is_final() => {
                    self.metrics.handoff.conflict(ConflictWon::Drop);
                    Told::Known
                }
                std::cmp::Ordering::Greater => Told::Raises(ours.decided_at),
                std::cmp::Ordering::Equal if theirs.verdict == Verdict::Keep => {
                    self.metrics.handoff.conflict(ConflictWon::Neither);
                    Told::Known
                }
                std::cmp::Ordering::Equal => Told::Known,
                std::cmp::Ordering::Less => Told::Contradicted(ours),
            };
        }
        let Some(entry) = held else {
            return Told::New;
        };
        let transfer = entry.transfer.as_deref();
        if transfer.is_some_and(|it| it.outgoing.is_some() || it.is_reopening) {
            return Told::Later;
        }
        if !theirs.is_final() && self.handing.elsewhere(trace).is_some() {
            // Its owner is to fold what is held here, too.
            return Told::Known;
        }
        Told::New
    }

    /// A remembered verdict meets fragments that are held undecided.
    pub(super) fn meet(&mut self, known: Decision, now: Moment) {
        let trace = known.trace;
        let Some(entry) = self.index.get(trace) else {
            return;
        };
        let transfer = entry.transfer.as_deref();
        let is_busy = transfer.is_some_and(|it| it.outgoing.is_some() || it.is_reopening);
        if entry.stage != Stage::Undecided || is_busy {
            // Settled when that ends.
            return;
        }
        if known.is_final() {
            self.apply(known);
        } else if self.handing.elsewhere(trace).is_some() {
            self.offer_later(trace, now);
        } else if known.decided_at + self.config.drop_retain > now {
            self.reopen(trace);
        } else {
            let vote = self
                .rules
                .vote(trace, &entry.state, entry.spans, &Default::default());
            if vote.verdict == Verdict::Keep {
                self.metrics.handoff.upgrades_missed.inc();
            }
            self.apply(known);
        }
    }

    /// A DROP becomes KEEP, and every member hears of it.
    pub(super) fn raise(&mut self, trace: TraceId, vote: Vote, now: Moment) {
        self.verdicts += 1;
        let decision = Decision {
            trace,
            verdict: Verdict::Keep,
            id: self.next_verdict_id(trace),
            threshold: vote.threshold,
            policy: vote.policy,
            rules_version: self.rules.version,
            decided_at: now,
        };
        self.metrics.handoff.verdicts_raised.inc();
        let extent = self.writer.verdict(&decision);
        self.goes_in_its_order(extent.segment);
        self.note_unwritten(Unwritten::Verdict(decision));
        self.remember(decision, extent.segment);
        self.apply(decision);
        if PlantedBug::RaisedNotTold.is_planted() {
            return;
        }
        for lane in self.handing.lanes.values_mut() {
            lane.decisions.push_front(trace);
        }
    }
}
