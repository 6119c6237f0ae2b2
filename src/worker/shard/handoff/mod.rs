//! What a shard does when the ring changes: traces go to their owners, no acknowledged span is lost, no
//! trace is judged in pieces.
//!
//! # The protocol
//!
//! **Who holds a trace** is who has its fragments in the log. Whoever gets a span of it appends to what it
//! holds; the ring is asked for traces that nobody here knows. What belongs elsewhere is handed over: at a
//! new [`Ownership`], when it begins here in custody, and again as long as it is not acknowledged.
//!
//! **Generations.** A handoff moves the fragments that are on disk at that moment, under a number of this
//! shard's that is never used again. They stay in the trace, in front ([`Outgoing`]); what comes meanwhile
//! stands behind them and is the next generation. The receiver appends them, marked as received, then a
//! COMMIT that names them, and answers when that is written. Then the sender writes MOVED and lets go of
//! exactly these. Without an answer they merge back: the trace goes on as if nothing had been, and an
//! answer that comes later finds no such generation. A trace has one generation under way at most.
//!
//! | it ends | when | what holds |
//! |---|---|---|
//! | sender | before the answer | all of it at the sender, offered again; what the receiver has it knows by hash |
//! | sender | before MOVED is written | the same |
//! | receiver | before COMMIT is written | nothing at the receiver: a start drops what no COMMIT names |
//! | receiver | before its answer arrives | at both; offered again, known by hash |
//!
//! The records say which *set of hashes* is held: MOVED leaves out what stands behind the generation under
//! the same hash, and a second copy at a start is let go of. So no order of copies matters.
//!
//! **Duplicates.** A received fragment is a duplicate only of one that stays here. One that is in a
//! generation under way is appended once more, behind it ([`Held::Leaving`]): of two handoffs of one trace that
//! cross, both would else say "I have it" and both delete it. Clients' retries are not concerned: they
//! are told that the span is held, and it is, by one of the two.
//!
//! **Folding.** A state is folded from bytes by whoever appends them, and never merged. While a generation
//! is under way a trace has two: of all its fragments, for the merge back, and of the rest alone. Where
//! only a part fitted into one message the rest is not known; should it ever be judged here it is read
//! again ([`Reopen`]).
//!
//! **Who decides.** The owner in its own view, while nothing of the trace is under way from here and no
//! sender said that more is to come. Whoever merely holds a trace decides only when it could not be handed over for
//! [`FORCED_AFTER`] after its deadline (counted as `forced`). Deadlines come from the first, last and root arrival
//! over all holders, which travel with the fragments as ages.
//!
//! **Verdicts travel**: on a change of the ring to the new owners, before the traces; every answer to a handoff
//! carries the verdicts of its traces; who asks for a sync is told all. NONE < DROP < KEEP, and final is a KEEP,
//! because its spans are exported, and a DROP by a `drop` policy or for the trace's size
//! ([`Decision::is_final`]). Where a DROP that is not final meets fragments from another member, all that the log still
//! holds of the trace is folded again (`reopen`). Limits are not asked again: without their answers they say no, as they did.
//! Chance is the trace's own. A verdict that rose is told to every member until each has acknowledged it or `--drop-retain`
//! is over. A member that has to hand over what it holds learns no DROP about it: the owner folds it with the rest.

mod learn;
mod ownership;
mod receive;
mod reopen;

pub use learn::Learned;
pub use ownership::Ownership;
pub use receive::{HandoffAnswer, Received, ReceivedTrace};
pub use reopen::{Reopen, Reopened};

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use super::{Shard, Unwritten, by_segment};
use crate::log::{Moved, PlantedBug};
use crate::model::{Decision, Extent, FragmentHash, Member, Moment, TraceId, Verdict};
use crate::policy::Rules;
use crate::ring::Table;
use crate::trace::{Folded, FragmentRef, Outgoing, Stage, TraceEntry, Transfer};
use crate::wire::FragmentView;
use crate::worker::handoff::GenerationEnd;

/// A trace that belongs elsewhere and cannot be handed over is decided here so long after its deadline.
pub const FORCED_AFTER: Duration = Duration::from_secs(90);
/// After a handoff that failed its receiver is left alone for so long, after each further one twice as long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(8);
/// Fragments of one trace in one generation: its MOVED and COMMIT stay below 256 KiB.
const GENERATION_FRAGMENTS_MAX: usize = 1 << 14;
/// Verdicts in one piece of work: 224 KiB.
const WORK_DECISIONS_MAX: usize = 4_096;
const WORK_TRACES_MAX: usize = 4_096;
/// Verdicts that wait for one member. Beyond it they are looked through again once these are told.
const LANE_DECISIONS_MAX: usize = 1 << 16;
/// Remembered verdicts looked at in one tick.
const LOOKED_AT_A_TICK: usize = 1 << 13;

/// What one member is to be given, in one message.
#[derive(Debug)]
pub struct HandoffWork {
    pub to: Member,
    pub decisions: Vec<Decision>,
    pub traces: Vec<HandoffTrace>,
}

/// One generation.
#[derive(Debug)]
pub struct HandoffTrace {
    pub trace: TraceId,
    pub generation: u64,
    pub first_seen: Moment,
    pub last_seen: Moment,
    pub root_seen: Option<Moment>,
    /// There is more of this trace than fitted.
    pub has_more: bool,
    pub fragments: Vec<FragmentRef>,
}

impl HandoffWork {
    /// Bytes of its fragments in the log.
    pub fn fragment_bytes(&self) -> u64 {
        let fragments = self.traces.iter().flat_map(|it| &it.fragments);
        fragments.map(|it| u64::from(it.extent().len)).sum()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Handing {
    ownership: Option<Ownership>,
    lanes: BTreeMap<Member, Lane>,
    /// The last generation's number.
    generation: u64,
    /// Traces with a generation under way.
    under_way: usize,
    /// The number of the next verdict to look at.
    next_decision: u64,
    /// Verdicts before this number were told to their owners in this ring.
    told: Option<(Table, u64)>,
    /// With the batch that must be on disk before they are read.
    reopens: VecDeque<(u64, Reopen)>,
    shown_waiting: i64,
}

/// What waits for one member.
#[derive(Debug, Default)]
struct Lane {
    /// Those whose deadlines come first, first. A trace may be here that is gone, or twice.
    traces: VecDeque<TraceId>,
    decisions: VecDeque<TraceId>,
    /// Not all that it is to be told found room.
    has_overflown: bool,
    is_busy: bool,
    failures: u32,
    not_before: Moment,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.traces.is_empty() && self.decisions.is_empty() && !self.has_overflown && !self.is_busy
    }
}

impl Handing {
    pub(super) fn ownership(&self) -> Option<&Ownership> {
        self.ownership.as_ref()
    }

    pub(super) fn elsewhere(&self, trace: TraceId) -> Option<u16> {
        self.ownership.as_ref()?.elsewhere(trace)
    }

    /// What is to be read once a batch is on disk.
    pub(super) fn waiting_for_disk(&mut self) -> impl Iterator<Item = &mut (u64, Reopen)> {
        self.reopens.iter_mut()
    }

    fn lane_of(&mut self, trace: TraceId) -> Option<&mut Lane> {
        let ownership = self.ownership.as_ref()?;
        let owner = ownership.member(ownership.elsewhere(trace)?)?;
        if !self.lanes.contains_key(owner) {
            self.lanes.insert(owner.clone(), Lane::default());
        }
        self.lanes.get_mut(owner)
    }
}

impl Shard {
    /// The ring has changed, or this member has begun to leave it.
    pub fn set_ownership(&mut self, ownership: Ownership, now: Moment) {
        let handing = &mut self.handing;
        if let Some(before) = handing.ownership.replace(ownership.clone()) {
            handing.told = Some((before.table().clone(), handing.next_decision));
        }
        handing.next_decision = 0;
        let mut lanes = std::mem::take(&mut handing.lanes);
        for member in ownership.others() {
            let was = lanes.remove(member).unwrap_or_default();
            // What else it was to be told belongs to others now, whom it is told as well.
            let lane = Lane {
                decisions: was.decisions,
                has_overflown: was.has_overflown,
                is_busy: was.is_busy,
                ..Lane::default()
            };
            handing.lanes.insert(member.clone(), lane);
        }
        let mut foreign: Vec<(Moment, TraceId)> = Vec::new();
        let mut mine: Vec<(Moment, TraceId)> = Vec::new();
        for (trace, entry) in self.index.traces() {
            let goes = match entry.stage {
                Stage::Undecided => true,
                Stage::Kept { .. } => ownership.leaves(),
            };
            if goes && ownership.elsewhere(trace).is_some() {
                foreign.push((self.due(entry).0, trace));
            } else if entry.stage == Stage::Undecided {
                mine.push((self.due(entry).0, trace));
            }
        }
        foreign.sort_unstable();
        for (_, trace) in foreign {
            if let Some(lane) = self.handing.lane_of(trace) {
                lane.traces.push_back(trace);
            }
        }
        // Held for somebody else until now, they may stand at a later moment.
        mine.sort_unstable();
        for (at, trace) in mine {
            match self.decisions.get(trace).map(|held| held.decision) {
                Some(known) => self.meet(known, now),
                None => self.deadlines.push(at.max(now), trace),
            }
        }
    }

    pub fn ownership(&self) -> Option<&Ownership> {
        self.handing.ownership()
    }

    /// A trace began here.
    pub(super) fn offer(&mut self, trace: TraceId) {
        if let Some(lane) = self.handing.lane_of(trace) {
            lane.traces.push_back(trace);
        }
    }

    /// Whether a trace whose deadline was `due` is decided here and now; else when to look again. `None`:
    /// somebody will say so.
    pub(super) fn decides(
        &self,
        trace: TraceId,
        entry: &TraceEntry,
        due: Moment,
        now: Moment,
    ) -> Result<(), Option<Moment>> {
        if let Some(transfer) = &entry.transfer {
            let is_away = transfer.outgoing.is_some() && !PlantedBug::JudgedUnderWay.is_planted();
            if is_away || transfer.is_reopening {
                return Err(None);
            }
            if transfer.more_until > now {
                return Err(Some(transfer.more_until));
            }
        }
        match self.handing.elsewhere(trace) {
            Some(_) if now < due + FORCED_AFTER && !PlantedBug::JudgedInCustody.is_planted() => {
                Err(Some(due + FORCED_AFTER))
            }
            _ => Ok(()),
        }
    }

    /// Looks which remembered verdicts others should know.
    pub(super) fn look_for_decisions_to_tell(&mut self) {
        if PlantedBug::VerdictsNotTold.is_planted() {
            self.handing.next_decision = self.decisions.next_number();
        }
        let Some(ownership) = &self.handing.ownership else {
            return;
        };
        let next = self.decisions.next_number();
        if self.handing.next_decision >= next {
            return;
        }
        let told = self.handing.told.as_ref();
        let mut found: Vec<(u16, TraceId)> = Vec::new();
        let mut looked_at = self.handing.next_decision;
        let numbered = self.decisions.numbered(self.handing.next_decision);
        for (number, decision) in numbered.take(LOOKED_AT_A_TICK) {
            looked_at = number + 1;
            let Some(owner) = ownership.elsewhere(decision.trace) else {
                continue;
            };
            let knows = told.is_some_and(|(table, before)| {
                number < *before && table.owner(decision.trace) == ownership.member(owner)
            });
            if !knows {
                found.push((owner, decision.trace));
            }
        }
        let is_last = looked_at == self.handing.next_decision;
        self.handing.next_decision = if is_last { next } else { looked_at };
        for (_, trace) in found {
            if let Some(lane) = self.handing.lane_of(trace) {
                if lane.decisions.len() < LANE_DECISIONS_MAX {
                    lane.decisions.push_back(trace);
                } else {
                    lane.has_overflown = true;
                }
            }
        }
    }

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
        let written = entry.fragments().partition_point(|fragment| {
            unwritten_from.is_none_or(|unwritten| fragment.extent() < unwritten)
        });
        if written < entry.fragments().len() {
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
            Some(rest) => {
                spans_gone = entry.spans.saturating_sub(rest.spans);
                entry.spans = rest.spans;
                entry.span_bytes = rest.span_bytes;
                entry.state = rest.state;
            }
            None => entry.transfer.get_or_insert_default().is_stale = true,
        }
        let is_empty = entry.fragments().is_empty();
        self.handing.under_way -= 1;
        self.metrics.handoff.ended(GenerationEnd::Moved);
        self.writer.moved(&moved);
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
    pub(super) fn settle(&mut self, trace: TraceId, now: Moment) {
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

    /// A member that has just come asks for all that is held here and is its own. Until nothing of that is
    /// left it asks again, `is_first` only once: how much is left. `None`: it is not in this member's ring.
    pub fn sync(&mut self, member: &Member, is_first: bool) -> Option<u64> {
        let ownership = self.handing.ownership.as_ref()?;
        if !ownership.others().any(|it| it == member) {
            return None;
        }
        if is_first {
            // It may have lost what it was told.
            self.handing.told = None;
            self.handing.next_decision = 0;
        }
        let lane = self.handing.lanes.entry(member.clone()).or_default();
        if is_first {
            lane.failures = 0;
            lane.not_before = Moment::ZERO;
        }
        let is_looking = self.handing.next_decision < self.decisions.next_number();
        let left = lane.traces.len() + lane.decisions.len();
        let busy = usize::from(lane.is_busy) + usize::from(lane.has_overflown);
        Some((left + busy + usize::from(is_looking)) as u64)
    }

    /// Nothing is here that another member should have, or the backend.
    pub fn is_drained(&self) -> bool {
        self.index.is_empty()
            && self.handing.next_decision >= self.decisions.next_number()
            && self.handing.lanes.values().all(Lane::is_empty)
    }

    /// Bytes of undecided traces, and of kept ones that are not exported, in this log.
    pub fn held_bytes(&self) -> u64 {
        let fragments = self.index.traces().flat_map(|(_, entry)| entry.fragments());
        fragments.map(|it| u64::from(it.extent().len)).sum()
    }

    pub(super) fn show_handing(&mut self) {
        let lanes = self.handing.lanes.values();
        let waiting = lanes.map(|lane| lane.traces.len()).sum::<usize>() + self.handing.under_way;
        let waiting = waiting as i64;
        let gauge = &self.metrics.handoff.waiting;
        gauge.inc_by(waiting - self.handing.shown_waiting);
        self.handing.shown_waiting = waiting;
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

/// A fragment came to a trace that has a transfer: what was folded of the rest of it.
pub(super) fn fold_rest(
    entry: &mut TraceEntry,
    view: &FragmentView<'_>,
    arrival: Moment,
    rules: &Rules,
) {
    let is_undecided = entry.stage == Stage::Undecided;
    if let Some(outgoing) = entry.outgoing_mut()
        && let Some(rest) = &mut outgoing.rest
    {
        rest.spans += view.fragment.spans;
        rest.span_bytes += u64::from(view.fragment.span_bytes);
        if is_undecided {
            rules.fold(&mut rest.state, view, arrival);
        }
    }
}

/// A fragment of a trace could not be written. Whether it was there once more.
pub(super) fn forget_in_rest(
    entry: &mut TraceEntry,
    extent: Extent,
    spans: u32,
    span_bytes: u32,
) -> bool {
    if entry.transfer.is_none() {
        return false;
    }
    let at = entry
        .fragments()
        .iter()
        .rposition(|it| it.extent() == extent);
    let hash = at.map(|at| entry.fragments()[at].hash());
    let Some(outgoing) = entry.outgoing_mut() else {
        return false;
    };
    if let Some(rest) = &mut outgoing.rest {
        rest.spans = rest.spans.saturating_sub(spans);
        rest.span_bytes = rest.span_bytes.saturating_sub(u64::from(span_bytes));
    }
    hash.is_some_and(|hash| outgoing.copies.remove(&hash.0.to_le_bytes()))
}

/// Verdicts by what they are worth.
fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Drop => 1,
        Verdict::Keep => 2,
    }
}
