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
//! shard's that is never used again. They stay in the trace, in front ([`crate::trace::Outgoing`]); what comes meanwhile
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
//! generation under way is appended once more, behind it ([`crate::trace::Held::Leaving`]): of two handoffs of one trace that
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
mod send;

pub use learn::Learned;
pub use ownership::Ownership;
pub use receive::{HandoffAnswer, Received, ReceivedTrace};
pub use reopen::{Reopen, Reopened};

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Shard;
use crate::log::PlantedBug;
use crate::model::{Decision, Extent, Member, Moment, TraceId, Verdict};
use crate::policy::Rules;
use crate::ring::Table;
use crate::trace::{FragmentRef, Stage, TraceEntry};
use crate::wire::FragmentView;

/// A trace that belongs elsewhere and cannot be handed over is decided here so long after its deadline.
pub const FORCED_AFTER: Duration = Duration::from_secs(90);
/// Verdicts that wait for one member. Beyond it they are looked through again once these are told.
const LANE_DECISIONS_MAX: usize = 1 << 16;
/// Remembered verdicts looked at in one tick: 2 ms.
const LOOKED_AT_A_TICK: usize = 1 << 16;
/// What was received and belongs elsewhere goes on so much later: as long as two members believe that the
/// other one is the owner, their traces would go to and fro as fast as the network can.
const PASS_ON_AFTER: Duration = Duration::from_secs(1);

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

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Handing {
    ownership: Option<Ownership>,
    lanes: BTreeMap<Member, Lane>,
    /// The last generation's number.
    generation: u64,
    /// Traces with a generation under way.
    under_way: usize,
    /// Received, and to be handed on then.
    later: VecDeque<(Moment, TraceId)>,
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
        handing.later.clear();
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

    /// A trace was received that may belong elsewhere.
    pub(super) fn offer_later(&mut self, trace: TraceId, now: Moment) {
        if self.handing.elsewhere(trace).is_some() {
            self.handing.later.push_back((now + PASS_ON_AFTER, trace));
        }
    }

    pub(super) fn offer_what_was_received(&mut self, now: Moment) {
        while let Some((_, trace)) = self.handing.later.pop_front_if(|(at, _)| *at <= now) {
            self.offer(trace);
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
        let left = lane.traces.len() + lane.decisions.len() + self.handing.later.len();
        let busy = usize::from(lane.is_busy) + usize::from(lane.has_overflown);
        Some((left + busy + usize::from(is_looking)) as u64)
    }

    /// Nothing is here that another member should have, or the backend.
    pub fn is_drained(&self) -> bool {
        self.index.is_empty()
            && self.handing.next_decision >= self.decisions.next_number()
            && self.handing.later.is_empty()
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
        if is_undecided && rest.rules_version == rules.version {
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
