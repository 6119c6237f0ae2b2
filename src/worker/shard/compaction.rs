//! Writes what is live in a sparse segment anew, so that it can go before its turn.
//!
//! One segment at a time, in a pass: the compactor, a thread beside the shards, lists the segment and reads what
//! the shard finds to be live; the shard appends it to its current segment. The traces in hand hold the old
//! places until the copies are synced, whatever `--ack` says: the old ones may have been on disk for hours. Then
//! they hold the new ones, what the segment's records say of others was written anew, and it goes.
//!
//! What an exporter has read by then is read. What it has not is not found (`ReadError::Moved`), and it comes
//! back for the new places ([`Shard::offer_again`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::retained::Retained;
use super::{Shard, Unwritten};
use crate::log::{GoneTrace, PlantedBug, StoredFragment};
use crate::model::{Extent, Moment, SegmentId, TraceId};
use crate::trace::{Coverage, FragmentRef, Stage};

/// A segment worth it is looked for so often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a pass that could not empty its segment, that one is left alone so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// One read, and so often: 100 MiB/s a shard, and clients' bytes come in between.
const READ_BYTES: u64 = 1 << 20;
const READ_EVERY: Duration = Duration::from_millis(10);
/// Looked up in one turn, a quarter of a millisecond.
const TRACES_A_TURN: usize = 1_024;
/// Copies that wait for their sync, 1 MiB of places.
const MOVES_MAX: usize = 1 << 14;
/// Of the memory for traces in hand, what segments say of others may take.
const COVERAGE_SHARE: usize = 8;

/// What the compactor is to do for a shard.
#[derive(Debug)]
pub struct CompactionJob {
    /// Goes back with the answer: a pass may have ended meanwhile.
    pub pass: u64,
    pub step: CompactionStep,
}

#[derive(Debug)]
pub enum CompactionStep {
    /// Which traces have fragments in this segment?
    List(SegmentId),
    Read(Vec<Extent>),
    Sync(Vec<SegmentId>),
}

/// What came of it; `None` if it failed.
#[derive(Debug)]
pub struct CompactionAnswer {
    pub pass: u64,
    pub found: Option<CompactionFound>,
}

#[derive(Debug)]
pub enum CompactionFound {
    /// All of them, in their order.
    Listed(Vec<(TraceId, Extent)>),
    /// Without those that are damaged.
    Read(Vec<StoredFragment>),
    Synced,
}

/// What a shard knows of its segments beside what is live in them.
#[derive(Debug)]
pub(super) struct Compaction {
    pub(super) coverage: Coverage,
    pass: Option<Pass>,
    passes: u64,
    look_after: Moment,
    /// Until then no segment goes by itself: the next one holds too much that is remembered.
    pub(super) weigh_after: Moment,
    /// Written anew; something in them was live all the same.
    emptied: BTreeSet<SegmentId>,
    /// Left alone until then.
    not_before: BTreeMap<SegmentId, Moment>,
    /// The segment of an earlier life that was emptied of this shard's fragments last. It goes in its turn.
    pub(super) passed: Option<SegmentId>,
}

#[derive(Debug)]
struct Pass {
    number: u64,
    segment: SegmentId,
    is_recovered: bool,
    state: State,
    /// Those that may have live fragments in it and were not looked at.
    traces: VecDeque<TraceId>,
    /// Those that were dropped, may rise, and are to be moved.
    dropped: HashSet<TraceId>,
    /// What is live and not read yet.
    todo: VecDeque<Extent>,
    /// Appended, and the old place is still the one that counts.
    moves: Vec<Move>,
    /// Segments that the pass wrote to and did not sync.
    touched: BTreeSet<SegmentId>,
    next_read: Moment,
    /// Fragments in the read that the compactor has.
    asked: usize,
    /// Something in the segment could not be moved.
    is_stuck: bool,
    is_carried: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Ready,
    /// The compactor has a job.
    Asked,
    /// This batch must be on disk before its segments are synced.
    Writing(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    trace: TraceId,
    from: Extent,
    to: Extent,
}

impl Compaction {
    pub(super) fn new(index_bytes_max: usize) -> Self {
        Self {
            coverage: Coverage::new(index_bytes_max / COVERAGE_SHARE),
            pass: None,
            passes: 0,
            look_after: Moment::ZERO,
            weigh_after: Moment::ZERO,
            emptied: BTreeSet::new(),
            not_before: BTreeMap::new(),
            passed: None,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let of_pass = |pass: &Pass| {
            (pass.traces.len() + pass.dropped.len()) * size_of::<TraceId>()
                + pass.todo.len() * size_of::<Extent>()
                + pass.moves.len() * size_of::<Move>()
        };
        self.coverage.bytes() + self.pass.as_ref().map_or(0, of_pass)
    }

    /// When [`Shard::next_compaction`] has something to do that no answer and no batch brings up.
    pub(super) fn next_wakeup(&self) -> Option<Moment> {
        let ready = self.pass.as_ref().filter(|it| it.state == State::Ready);
        ready.map(|pass| pass.next_read)
    }
}

impl Pass {
    fn next_extents(&mut self) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut bytes = 0;
        while let Some(extent) = self.todo.front() {
            bytes += u64::from(extent.len);
            if bytes > READ_BYTES && !extents.is_empty() {
                break;
            }
            extents.extend(self.todo.pop_front());
        }
        self.asked = extents.len();
        extents
    }

    /// What was appended is settled, and no more is.
    fn give_up(&mut self) {
        self.is_stuck = true;
        self.traces.clear();
        self.todo.clear();
    }

    fn is_over(&self) -> bool {
        let is_done = self.is_stuck || self.is_carried || self.is_recovered;
        let is_empty = self.traces.is_empty() && self.todo.is_empty();
        self.state == State::Ready
            && is_done
            && is_empty
            && self.moves.is_empty()
            && self.touched.is_empty()
    }
}

impl Shard {
    /// The next job for the compactor, if there is one now.
    pub fn next_compaction(&mut self, now: Moment) -> Option<CompactionJob> {
        if self.failures > 0 || !self.backlog.is_empty() || self.refuse_until.is_some() {
            return None;
        }
        self.free_emptied(now);
        let mut pass = match self.compaction.pass.take() {
            Some(pass) => pass,
            None => self.begin_pass(now)?,
        };
        let step = self.next_step(&mut pass, now);
        let number = pass.number;
        if step.is_none() && pass.is_over() {
            self.end_pass(&pass, now);
        } else {
            self.compaction.pass = Some(pass);
        }
        step.map(|step| CompactionJob { pass: number, step })
    }

    fn begin_pass(&mut self, now: Moment) -> Option<Pass> {
        if now < self.compaction.look_after || now < self.free_after {
            return None;
        }
        self.compaction.look_after = now + LOOK_EVERY;
        let is_tight = self.space.is_tight();
        let compaction = &self.compaction;
        let oldest = self.space.next_to_free(self.number);
        let unwritten = self.unwritten_from().map(|extent| extent.segment);
        let victim = self.space.victim(self.number, |segment| {
            // What is not on disk is not found there.
            unwritten.is_none_or(|unwritten| segment < unwritten)
                && self.is_worth_going(segment, is_tight)
                && compaction.passed != Some(segment)
                && (compaction.coverage.lists(segment) || oldest == Some(segment))
                && compaction
                    .not_before
                    .get(&segment)
                    .is_none_or(|at| *at <= now)
        })?;
        self.compaction.passes += 1;
        Some(Pass {
            number: self.compaction.passes,
            segment: victim.segment,
            is_recovered: victim.is_recovered,
            // With nothing live in it, what its records say of others is all there is to do.
            state: if victim.is_idle {
                State::Ready
            } else {
                State::New
            },
            traces: VecDeque::new(),
            dropped: HashSet::new(),
            todo: VecDeque::new(),
            moves: Vec::new(),
            touched: BTreeSet::new(),
            next_read: now,
            asked: 0,
            is_stuck: false,
            is_carried: false,
        })
    }

    fn next_step(&mut self, pass: &mut Pass, now: Moment) -> Option<CompactionStep> {
        match pass.state {
            State::Asked => None,
            State::New => {
                pass.state = State::Asked;
                Some(CompactionStep::List(pass.segment))
            }
            State::Writing(batch) => (batch < self.written_before).then(|| {
                pass.state = State::Asked;
                let touched = std::mem::take(&mut pass.touched);
                CompactionStep::Sync(touched.into_iter().collect())
            }),
            State::Ready => {
                self.look_up(pass);
                let is_full = pass.moves.len() >= MOVES_MAX;
                if !pass.todo.is_empty() && !is_full {
                    if now < pass.next_read {
                        return None;
                    }
                    pass.next_read = now + READ_EVERY;
                    pass.state = State::Asked;
                    return Some(CompactionStep::Read(pass.next_extents()));
                }
                if !pass.traces.is_empty() && !is_full {
                    return None;
                }
                let is_all = pass.traces.is_empty() && pass.todo.is_empty();
                if is_all && !pass.is_stuck && !pass.is_carried && !pass.is_recovered {
                    pass.is_carried = true;
                    self.carry(pass.segment, &mut pass.touched);
                }
                if PlantedBug::CopyNotAwaited.is_planted() {
                    self.settle_copies(pass);
                    pass.touched.clear();
                }
                if !pass.touched.is_empty() {
                    pass.state = State::Writing(self.last_unwritten_batch());
                }
                None
            }
        }
    }

    /// Some of the pass's traces: what of them lies in its segment is to be moved.
    fn look_up(&self, pass: &mut Pass) {
        let mut left = TRACES_A_TURN;
        while left > 0
            && pass.todo.len() < TRACES_A_TURN
            && let Some(trace) = pass.traces.pop_front()
        {
            left -= 1;
            if let Some(entry) = self.index.get(trace) {
                let held = entry.fragments().iter().map(FragmentRef::extent);
                pass.todo
                    .extend(held.filter(|it| it.segment == pass.segment));
            }
        }
    }

    /// What the compactor did.
    pub fn compacted(&mut self, answer: CompactionAnswer, now: Moment) {
        let Some(mut pass) = self.compaction.pass.take() else {
            return;
        };
        if pass.number != answer.pass || pass.state != State::Asked {
            self.compaction.pass = Some(pass);
            return;
        }
        pass.state = State::Ready;
        match answer.found {
            Some(CompactionFound::Synced) => self.settle_copies(&mut pass),
            // After a failed batch, what was asked for before it is of no use.
            Some(_) if pass.is_stuck => {}
            Some(CompactionFound::Listed(fragments)) => self.begin_with(&mut pass, &fragments),
            Some(CompactionFound::Read(fragments)) => self.append_copies(&mut pass, &fragments),
            None => {
                pass.give_up();
                if pass.touched.is_empty() {
                    // It was the sync: nothing is acknowledged any more, and the worker ends.
                    pass.moves.clear();
                }
            }
        }
        if pass.is_over() {
            self.end_pass(&pass, now);
        } else {
            self.compaction.pass = Some(pass);
        }
    }

    /// What lies in the pass's segment. Of traces in hand it is looked up which of it is live; of dropped ones the
    /// number is known, and only if all that is there is live they are moved.
    fn begin_with(&self, pass: &mut Pass, fragments: &[(TraceId, Extent)]) {
        let mut retained: HashMap<TraceId, u32> = HashMap::new();
        for part in &self.retained {
            let here = part.fragments.iter();
            let here = here.filter(|(segment, live)| *segment == pass.segment && live.count > 0);
            for (_, live) in here {
                *retained.entry(part.trace).or_default() += live.count;
            }
        }
        let mut seen: HashMap<TraceId, u32> = HashMap::new();
        for (trace, _) in fragments {
            let times = seen.entry(*trace).or_default();
            *times += 1;
            if *times == 1 {
                pass.traces.push_back(*trace);
            }
        }
        retained.retain(|trace, count| {
            seen.get(trace) == Some(count)
                && self.index.get(*trace).is_none()
                && self.decisions.get(*trace).is_some()
        });
        for (trace, extent) in fragments {
            if retained.contains_key(trace) {
                pass.todo.push_back(*extent);
            }
        }
        pass.dropped = retained.into_keys().collect();
    }

    fn append_copies(&mut self, pass: &mut Pass, fragments: &[StoredFragment]) {
        // What cannot be read stays where it is.
        pass.is_stuck |= fragments.len() < pass.asked;
        for fragment in fragments {
            let entry = self.index.get(fragment.trace);
            // Exported meanwhile, perhaps.
            let is_held =
                entry.is_some_and(|it| it.place_of(fragment.hash) == Some(fragment.extent));
            if !is_held && !pass.dropped.contains(&fragment.trace) {
                continue;
            }
            let to = self.writer.copy(fragment);
            self.metrics.log_compacted_bytes.inc_by(u64::from(to.len));
            self.note_unwritten(Unwritten::Copy(to));
            pass.touched.insert(to.segment);
            pass.moves.push(Move {
                trace: fragment.trace,
                from: fragment.extent,
                to,
            });
        }
    }

    /// The copies are synced: from now on they count.
    fn settle_copies(&mut self, pass: &mut Pass) {
        let mut moves = std::mem::take(&mut pass.moves);
        moves.sort_unstable();
        let mut parts: HashMap<TraceId, Vec<usize>> = HashMap::new();
        if !pass.dropped.is_empty() {
            for (place, part) in self.retained.iter().enumerate() {
                if pass.dropped.contains(&part.trace) {
                    parts.entry(part.trace).or_default().push(place);
                }
            }
        }
        for of_trace in moves.chunk_by(|a, b| a.trace == b.trace) {
            let trace = of_trace[0].trace;
            let mut is_live = vec![false; of_trace.len()];
            let mut settled = None;
            if let Some(entry) = self.index.get_mut(trace) {
                entry.relocate(|extent| {
                    let at = of_trace.binary_search_by_key(&extent, |it| it.from).ok()?;
                    is_live[at] = true;
                    Some(of_trace[at].to)
                });
                if matches!(entry.stage, Stage::Kept { .. }) {
                    settled = entry.decision.as_deref().copied();
                }
            } else if let Some(dropped) = self.decisions.get(trace).map(|it| it.decision)
                && let Some(places) = parts.get(&trace)
            {
                for knows in [true, false] {
                    for (it, is_live) in of_trace.iter().zip(&mut is_live) {
                        *is_live = *is_live || self.relocate_dropped(places, it, knows);
                    }
                }
                settled = Some(dropped);
            }
            let (live, dead): (Vec<_>, Vec<_>) = of_trace
                .iter()
                .zip(is_live)
                .partition(|(_, is_live)| *is_live);
            self.space.release(live.iter().map(|(it, _)| it.from));
            if let Some(decision) = settled.filter(|_| !live.is_empty()) {
                let segments = live.iter().map(|(it, _)| it.to.segment);
                let written_to = self.write_verdict_beside(&decision, segments);
                pass.touched.insert(written_to);
            }
            // Exported or dropped while it was copied. What says so may go before the copy does.
            self.space.release(dead.iter().map(|(it, _)| it.to));
            let dead: BTreeSet<SegmentId> = dead.iter().map(|(it, _)| it.to.segment).collect();
            for segment in dead {
                let live = self.live_in(trace, segment);
                self.write_gone(segment, vec![GoneTrace { trace, live }], &mut pass.touched);
            }
        }
    }

    /// One of these parts of a dropped trace held what was moved, unless it was raised meanwhile. `knows`: only a part that
    /// knows it to be its own; what no part knows was never moved, and parts are in the order of the log.
    fn relocate_dropped(&mut self, places: &[usize], it: &Move, knows: bool) -> bool {
        let is_holder = |part: &Retained| {
            let is_its = if knows {
                part.holds(it.from)
            } else {
                part.is_chain()
            };
            is_its && part.may_hold(it.from)
        };
        let mut places = places.iter().copied();
        let place = places.find(|place| self.retained.get(*place).is_some_and(is_holder));
        let Some(place) = place else {
            return false;
        };
        self.change_retained(place, |part| part.relocate(it.from, it.to));
        true
    }

    fn end_pass(&mut self, pass: &Pass, now: Moment) {
        let again = now + AGAIN_AFTER;
        if pass.is_recovered && !pass.is_stuck {
            self.compaction.passed = Some(pass.segment);
        } else if pass.is_stuck || !self.free_compacted(pass.segment) {
            self.compaction.not_before.insert(pass.segment, again);
            if !pass.is_stuck {
                self.compaction.emptied.insert(pass.segment);
            }
        }
    }

    fn free_emptied(&mut self, now: Moment) {
        if self.compaction.emptied.is_empty() || now < self.free_after {
            return;
        }
        let mut emptied = std::mem::take(&mut self.compaction.emptied);
        emptied.retain(|segment| self.space.is_there(*segment) && !self.free_compacted(*segment));
        self.compaction.emptied = emptied;
    }

    fn free_compacted(&mut self, segment: SegmentId) -> bool {
        let goes = self.space.take_compacted(segment);
        if goes {
            self.metrics.log_segments_compacted.inc();
            self.freed.push(segment);
            self.note_unwritten(Unwritten::Unlink(segment));
        }
        goes
    }

    /// Some copies are not on disk: their old places go on to count. Those that are there are settled, and the
    /// segment has its turn another time.
    pub(super) fn copies_failed(&mut self, failed: &BTreeSet<Extent>) {
        self.space.release(failed.iter().copied());
        if let Some(pass) = &mut self.compaction.pass {
            pass.moves.retain(|it| !failed.contains(&it.to));
            pass.touched = pass.moves.iter().map(|it| it.to.segment).collect();
            pass.give_up();
        }
    }

    /// Now and then: what is about segments that are gone.
    pub(super) fn forget_gone_segments(&mut self) {
        let compaction = &mut self.compaction;
        let space = &self.space;
        compaction
            .coverage
            .forget(|segment| space.is_there(segment));
        compaction
            .not_before
            .retain(|segment, _| space.is_there(*segment));
    }
}
