//! Reading a trace again from the log: because fragments came after its DROP, because another member's
//! KEEP goes before that, or because its state is not known any more.
//!
//! The shard hands out what is to be read ([`Shard::next_reopen`]), as it does with exports, and is told what
//! was found ([`Shard::reopened`]). Of a dropped trace memory has only where its last fragment lies; each fragment
//! in the log says where the one before it does.

use std::collections::HashSet;
use std::sync::Arc;

use super::Shard;
use crate::log::{Disk, Frames, ReadError, StoredFragment, Volume};
use crate::model::{Decision, Extent, Moment, TraceId, Verdict};
use crate::policy::Rules;
use crate::trace::{Folded, FragmentRef, Stage};
use crate::worker::shard::by_segment;
use crate::worker::shard::retained::Retained;

/// A trace to be read again, and what is then to be done.
#[derive(Debug)]
pub struct Reopen {
    trace: TraceId,
    rules: Arc<Rules>,
    /// Parts that were dropped.
    dropped: Vec<Retained>,
    /// What the index has of it.
    held: Vec<FragmentRef>,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Votes again.
    Evaluate,
    /// Is kept under this verdict.
    Keep(Decision),
    /// Goes on with the state of what is held.
    Fold,
}

/// See [`Shard::stop_unwritten_reopens`].
#[derive(Debug)]
pub(in crate::worker::shard) struct StoppedReopen {
    trace: TraceId,
    purpose: Purpose,
    dropped_at: Option<Moment>,
}

/// What was found.
#[derive(Debug)]
pub struct Reopened {
    /// Of the dropped parts, in the order of the log. Each hash once, and none that is held.
    dropped: Vec<FragmentRef>,
    /// Of these and what is held.
    folded: Folded,
    /// Not all that was dropped could be read.
    is_partial: bool,
}

impl Reopen {
    /// Reads and folds, one fragment at a time. Blocks.
    pub fn read<D: Disk>(&self, volume: &Volume<D>) -> Result<Reopened, ReadError> {
        let mut reading = Reading {
            rules: &self.rules,
            seen: self.held.iter().map(FragmentRef::hash).collect(),
            folded: Folded {
                rules_version: self.rules.version,
                state: self.rules.begin(),
                spans: 0,
                span_bytes: 0,
            },
        };
        let mut dropped = Vec::new();
        let mut is_partial = false;
        for part in &self.dropped {
            let found = chain(volume, self.trace, part)?;
            is_partial |= found.len() < part.count() as usize;
            for extent in found.into_iter().rev() {
                let Some(stored) = read_if_there(volume, extent)? else {
                    is_partial = true;
                    continue;
                };
                if reading.seen.insert(stored.hash) {
                    reading.fold(&stored);
                    dropped.push(FragmentRef::new(stored.hash, extent));
                }
            }
        }
        for held in &self.held {
            reading.fold(&read_one(volume, held.extent())?);
        }
        Ok(Reopened {
            dropped,
            folded: reading.folded,
            is_partial,
        })
    }

    pub fn trace(&self) -> TraceId {
        self.trace
    }
}

struct Reading<'a> {
    rules: &'a Rules,
    seen: HashSet<crate::model::FragmentHash>,
    folded: Folded,
}

impl Reading<'_> {
    fn fold(&mut self, stored: &StoredFragment) {
        let folded = &mut self.folded;
        folded.spans += stored.spans;
        let spans = stored.scopes.iter().map(|scope| scope.spans.len() as u64);
        folded.span_bytes += spans.sum::<u64>();
        let scopes = stored.scopes.iter();
        self.rules.fold_stored(
            &mut folded.state,
            &stored.resource_header,
            scopes.map(|scope| (&scope.header[..], &scope.spans[..])),
            stored.arrival,
        );
    }
}

fn read_one<D: Disk>(volume: &Volume<D>, extent: Extent) -> Result<StoredFragment, ReadError> {
    let found = volume.read(std::slice::from_ref(&extent))?;
    // One question, one answer.
    found.into_iter().next().ok_or(ReadError::Damaged {
        segment: extent.segment,
        offset: extent.offset,
        what: "nothing was read",
    })
}

/// `None` if the log has it no more, or has not got it whole.
fn read_if_there<D: Disk>(
    volume: &Volume<D>,
    extent: Extent,
) -> Result<Option<StoredFragment>, ReadError> {
    match read_one(volume, extent) {
        Ok(stored) => Ok(Some(stored)),
        Err(ReadError::Damaged { .. } | ReadError::Moved { .. }) => Ok(None),
        Err(ReadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Where the fragments of a dropped part lie, the last one first, up to where the log has no more of them.
fn chain<D: Disk>(
    volume: &Volume<D>,
    trace: TraceId,
    part: &Retained,
) -> Result<Vec<Extent>, ReadError> {
    let mut found: Vec<Extent> = part.listed().rev().collect();
    let in_chain = (part.count() as usize).saturating_sub(found.len());
    let mut next = part.end();
    let mut hashes = HashSet::new();
    while let Some(extent) = next
        && hashes.len() < in_chain
    {
        let Some(stored) = read_if_there(volume, extent)?.filter(|it| it.trace == trace) else {
            break;
        };
        if hashes.insert(stored.hash) {
            found.push(extent);
        }
        // A copy says where the one before it was before that was moved, as all of them do.
        next = stored.previous.map(|it| part.place_of(it));
    }
    Ok(found)
}

impl Shard {
    /// Fragments came after a DROP that they may raise.
    pub(in crate::worker::shard) fn reopen(&mut self, trace: TraceId) {
        let Some(decided_at) = self.decisions.get(trace).map(|it| it.decision.decided_at) else {
            return;
        };
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let transfer = entry.transfer.get_or_insert_default();
        if std::mem::replace(&mut transfer.is_reopening, true) {
            // What came now is looked at when that has ended.
            return;
        }
        let held = entry.fragments().to_vec();
        let dropped = self.take_retained(trace, decided_at);
        self.queue_reopen(trace, dropped, held, Purpose::Evaluate);
    }

    /// Another member's KEEP goes before our DROP: what was dropped here is exported under it.
    pub(in crate::worker::shard) fn resurrect(&mut self, keep: Decision, dropped_at: Moment) {
        let dropped = self.take_retained(keep.trace, dropped_at);
        if !dropped.is_empty() {
            self.queue_reopen(keep.trace, dropped, Vec::new(), Purpose::Keep(keep));
        }
    }

    /// The trace is to be judged, and its state knows too much.
    pub(in crate::worker::shard) fn fold_anew(&mut self, trace: TraceId) {
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let transfer = entry.transfer.get_or_insert_default();
        if !std::mem::replace(&mut transfer.is_reopening, true) {
            let held = entry.fragments().to_vec();
            self.queue_reopen(trace, Vec::new(), held, Purpose::Fold);
        }
    }

    fn queue_reopen(
        &mut self,
        trace: TraceId,
        dropped: Vec<Retained>,
        held: Vec<FragmentRef>,
        purpose: Purpose,
    ) {
        let batch = self.last_unwritten_batch();
        let reopen = Reopen {
            trace,
            rules: self.rules.clone(),
            dropped,
            held,
            purpose,
        };
        self.handing.reopens.push_back((batch, reopen));
    }

    /// The next trace to be read again, all of which is on disk.
    pub fn next_reopen(&mut self) -> Option<Reopen> {
        let written_before = self.written_before;
        let next = self
            .handing
            .reopens
            .pop_front_if(|(batch, _)| *batch < written_before);
        next.map(|(_, reopen)| reopen)
    }

    /// What was found; `None`: it could not be read.
    pub fn reopened(&mut self, reopen: Reopen, found: Option<Reopened>, now: Moment) {
        if found.as_ref().is_none_or(|it| it.is_partial) {
            self.metrics.handoff.reread_failures.inc();
        }
        if reopen.rules.version != self.rules.version && !matches!(reopen.purpose, Purpose::Keep(_))
        {
            // Rules have changed meanwhile, and states by the earlier ones say nothing.
            if let Some(entry) = self.index.get_mut(reopen.trace)
                && let Some(transfer) = &mut entry.transfer
            {
                transfer.is_reopening = false;
            }
            self.retain_again(reopen.dropped);
            match reopen.purpose {
                Purpose::Fold => self.fold_anew(reopen.trace),
                _ => self.reopen(reopen.trace),
            }
            return;
        }
        match reopen.purpose {
            Purpose::Evaluate => self.evaluated(reopen, found, now),
            Purpose::Keep(keep) => self.resurrected(keep, reopen, found),
            Purpose::Fold => self.folded_anew(&reopen, found, now),
        }
    }

    fn evaluated(&mut self, reopen: Reopen, found: Option<Reopened>, now: Moment) {
        let trace = reopen.trace;
        let known = self.decisions.get(trace).map(|held| held.decision);
        let Some(entry) = self.index.get_mut(trace) else {
            self.retain_again(reopen.dropped);
            return;
        };
        if let Some(transfer) = &mut entry.transfer {
            transfer.is_reopening = false;
        }
        let has_grown = entry.fragments().len() > reopen.held.len();
        let Some(known) = known else {
            // Forgotten for want of room: judged as a trace of its own.
            self.retain_again(reopen.dropped);
            self.settle(trace, now);
            return;
        };
        let Some(found) = found else {
            // The verdict stands: nobody can say what else it would be.
            self.retain_again(reopen.dropped);
            self.apply(known);
            return;
        };
        let vote = if known.verdict == Verdict::Keep {
            None
        } else {
            let Folded { state, spans, .. } = &found.folded;
            let vote = self.rules.vote(trace, state, *spans, &Default::default());
            Some(vote)
        };
        if vote.is_some_and(|vote| vote.verdict == Verdict::Drop) {
            self.retain_again(reopen.dropped);
            if has_grown {
                self.reopen(trace);
            } else {
                self.apply(known);
            }
            return;
        }
        self.take_up(trace, &reopen.dropped, &found);
        match vote {
            Some(vote) => self.raise(trace, vote, now),
            None => self.apply(known),
        }
    }

    /// What was dropped is held again.
    fn take_up(&mut self, trace: TraceId, parts: &[Retained], found: &Reopened) {
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let at = match entry.stage {
            Stage::Undecided => 0,
            Stage::Kept { exporting, .. } => exporting as usize,
        };
        let new: Vec<FragmentRef> = found
            .dropped
            .iter()
            .filter(|fragment| !entry.holds(fragment.hash()))
            .copied()
            .collect();
        let is_undecided = entry.stage == Stage::Undecided;
        let before = entry.spans;
        if is_undecided {
            entry.spans = entry.spans.max(found.folded.spans);
            entry.span_bytes = entry.span_bytes.max(found.folded.span_bytes);
            entry.state = found.folded.state.clone();
            entry.folded_by = self.refold.generation();
        }
        let more = entry.spans - before;
        entry.insert(at, new.iter().copied());
        for _ in &new {
            self.index.count_fragment();
        }
        if is_undecided {
            self.index.count_spans(more);
        }
        self.release_rest(parts, &new);
    }

    /// Of what these parts counted as live, all but what is held now.
    fn release_rest(&self, parts: &[Retained], held: &[FragmentRef]) {
        let mut counts: Vec<(crate::model::SegmentId, Frames)> = parts
            .iter()
            .flat_map(|part| part.fragments.iter().copied())
            .collect();
        for (segment, frames) in by_segment(held) {
            let mut left = frames;
            for (of, live) in &mut counts {
                if *of == segment {
                    let taken = Frames {
                        count: left.count.min(live.count),
                        bytes: left.bytes.min(live.bytes),
                    };
                    live.count -= taken.count;
                    live.bytes -= taken.bytes;
                    left.count -= taken.count;
                    left.bytes -= taken.bytes;
                }
            }
        }
        self.release(&counts);
    }

    fn resurrected(&mut self, keep: Decision, reopen: Reopen, found: Option<Reopened>) {
        let trace = reopen.trace;
        let Some(mut found) = found else {
            self.metrics.handoff.upgrades_missed.inc();
            self.retain_again(reopen.dropped);
            return;
        };
        if let Some(remembered) = self.decisions.get(trace) {
            found
                .dropped
                .retain(|fragment| !remembered.exported(fragment.hash()));
        }
        if found.dropped.is_empty() {
            self.release_rest(&reopen.dropped, &[]);
            return;
        }
        let stage = Stage::Kept {
            exporting: 0,
            queued: false,
        };
        let (entry, _) = self.index.begin(trace, keep.decided_at, stage, &self.rules);
        if entry.stage != Stage::Undecided {
            entry.spans += found.folded.spans;
            entry.span_bytes += found.folded.span_bytes;
        }
        if entry.decision.is_none() {
            entry.decision = Some(Box::new(keep));
        }
        self.take_up(trace, &reopen.dropped, &found);
        self.queue_export(trace);
    }

    fn folded_anew(&mut self, reopen: &Reopen, found: Option<Reopened>, now: Moment) {
        let trace = reopen.trace;
        let Some(entry) = self.index.get_mut(trace) else {
            return;
        };
        let has_grown = entry.fragments().len() != reopen.held.len();
        if let Some(transfer) = &mut entry.transfer {
            transfer.is_reopening = false;
            transfer.is_stale &= has_grown;
        }
        if !has_grown {
            // Unread, it is judged on what its state says.
            if let Some(found) = found {
                let before = entry.spans;
                entry.state = found.folded.state;
                entry.folded_by = self.refold.generation();
                entry.spans = found.folded.spans;
                entry.span_bytes = found.folded.span_bytes;
                let after = entry.spans;
                self.index.uncount_spans(before);
                self.index.count_spans(after);
            }
        }
        self.settle(trace, now);
    }

    /// Takes the dropped parts of a trace out of those that go when their time is over.
    fn take_retained(&mut self, trace: TraceId, decided_at: Moment) -> Vec<Retained> {
        let until = decided_at + self.config.drop_retain;
        let from = self.retained.partition_point(|it| it.until < until);
        let mut taken = Vec::new();
        for part in self.retained.iter_mut().skip(from) {
            if part.until > until {
                break;
            }
            if part.trace == trace && !part.fragments.is_empty() {
                // Its place stays, and has nothing to release.
                let empty = Retained::empty(part.until, part.batch, trace);
                self.places_bytes -= part.places_bytes();
                taken.push(std::mem::replace(part, empty));
            }
        }
        taken
    }

    /// A batch failed. What was to be read when it is on disk may hold what was in it: that is found out while the
    /// parts are where they were, and then it begins again.
    pub(in crate::worker::shard) fn stop_unwritten_reopens(&mut self) -> Vec<StoppedReopen> {
        let written_before = self.written_before;
        let reopens = std::mem::take(&mut self.handing.reopens);
        let (waiting, written): (Vec<_>, _) = reopens
            .into_iter()
            .partition(|(batch, _)| *batch >= written_before);
        self.handing.reopens = written.into();
        let mut stopped = Vec::new();
        for (_, reopen) in waiting {
            let until = reopen.dropped.first().map(|part| part.until);
            stopped.push(StoppedReopen {
                trace: reopen.trace,
                purpose: reopen.purpose,
                dropped_at: until.map(|it| it.before(self.config.drop_retain)),
            });
            self.retain_again(reopen.dropped);
        }
        stopped
    }

    pub(in crate::worker::shard) fn begin_reopens_again(&mut self, stopped: Vec<StoppedReopen>) {
        for StoppedReopen {
            trace,
            purpose,
            dropped_at,
        } in stopped
        {
            if let Purpose::Keep(keep) = purpose {
                if let Some(at) = dropped_at {
                    self.resurrect(keep, at);
                }
                continue;
            }
            let entry = self.index.get_mut(trace);
            let Some(transfer) = entry.and_then(|it| it.transfer.as_mut()) else {
                continue;
            };
            transfer.is_reopening = false;
            match purpose {
                Purpose::Fold => self.fold_anew(trace),
                Purpose::Evaluate | Purpose::Keep(_) => self.reopen(trace),
            }
        }
    }

    fn retain_again(&mut self, parts: Vec<Retained>) {
        for part in parts {
            self.retain(part);
        }
    }
}
