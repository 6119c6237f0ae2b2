//! Remembered verdicts: what late spans obey and by what retries are recognised after the verdict.
//!
//! Decisions outlive the data they were made on. They are forgotten by age, and before that, oldest
//! first, when the byte bound is reached (counted by the caller, who sees how many went). The log
//! holds them too; before a segment goes, [`Decisions::carry_forward`] says which of its decisions
//! must be written again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::time::Duration;

use hashbrown::HashTable;

use crate::model::{Decision, FragmentHash, Moment, SegmentId, TraceId};

/// How long and how much to remember.
#[derive(Debug, Clone, Copy)]
pub struct DecisionMemory {
    pub bytes_max: usize,
    /// Decisions: 10 minutes.
    pub decisions: Duration,
    /// Hashes of what a KEEP exported: 5 minutes.
    pub exported_hashes: Duration,
}

/// A decision and what it exported.
#[derive(Debug, Clone)]
pub struct Remembered {
    pub decision: Decision,
    exported: Vec<[u8; 16]>,
    exported_until: Moment,
}

/// See the module.
#[derive(Debug)]
pub struct Decisions {
    memory: DecisionMemory,
    table: HashTable<Remembered>,
    hasher: foldhash::fast::RandomState,
    /// Every remembered trace in the order it was decided; `first` is the front's number.
    order: VecDeque<TraceId>,
    first: u64,
    /// Which numbers a segment has records of: as verdicts, then as checkpoints.
    recorded: BTreeMap<SegmentId, Vec<Range<u64>>>,
    /// What was exported, in this order.
    exports: VecDeque<Export>,
    /// How many hashes, by the segment that records them.
    exported_in: BTreeMap<SegmentId, usize>,
    /// While a log is read: what was exported of traces whose decisions stand behind it. They were carried
    /// forward, and the record of the export was not yet.
    early: Option<Early>,
    bytes: usize,
}

/// Some of a trace's fragments are at the backend.
#[derive(Debug)]
struct Export {
    /// Their hashes are forgotten then.
    until: Moment,
    trace: TraceId,
    recorded_in: SegmentId,
    hashes: usize,
}

#[derive(Debug, Default)]
struct Early {
    exported: HashMap<TraceId, Vec<[u8; 16]>, foldhash::fast::RandomState>,
    hashes: usize,
}

/// What one decision costs: its place in a table at 7/8 load after doubling (so up to 16/7 of it),
/// and its number in `order`.
const DECISION_BYTES: usize = size_of::<Remembered>() * 16 / 7 + size_of::<TraceId>();
const HASH_BYTES: usize = 16;
/// And in a checkpoint.
const DECISION_RECORD_BYTES: u64 = 47;

impl Early {
    fn note(&mut self, trace: TraceId, hashes: impl Iterator<Item = [u8; 16]>, bytes_max: usize) {
        if self.hashes * HASH_BYTES >= bytes_max {
            return;
        }
        let of_trace = self.exported.entry(trace).or_default();
        let before = of_trace.len();
        of_trace.extend(hashes);
        self.hashes += of_trace.len() - before;
    }

    fn take(&mut self, trace: TraceId) -> Option<Vec<[u8; 16]>> {
        let hashes = self.exported.remove(&trace)?;
        self.hashes -= hashes.len();
        Some(hashes)
    }
}

impl Remembered {
    pub fn exported(&self, hash: FragmentHash) -> bool {
        self.exported.contains(&hash.0.to_le_bytes())
    }
}

impl Decisions {
    pub fn new(memory: DecisionMemory) -> Self {
        Self {
            memory,
            table: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            order: VecDeque::new(),
            first: 0,
            recorded: BTreeMap::new(),
            exports: VecDeque::new(),
            exported_in: BTreeMap::new(),
            early: Some(Early::default()),
            bytes: 0,
        }
    }

    fn hash(&self, trace: TraceId) -> u64 {
        self.hasher.hash_one(trace.as_bytes())
    }

    pub fn get(&self, trace: TraceId) -> Option<&Remembered> {
        self.table
            .find(self.hash(trace), |held| held.decision.trace == trace)
    }

    fn get_mut(&mut self, trace: TraceId) -> Option<&mut Remembered> {
        let hash = self.hash(trace);
        self.table
            .find_mut(hash, |held| held.decision.trace == trace)
    }

    /// Remembers a new decision, recorded in a segment. The trace has none yet: whoever decides
    /// looked here first. Returns how many old ones had to go for it before their time.
    pub fn remember(&mut self, decision: Decision, recorded_in: SegmentId) -> usize {
        if let Some(held) = self.get_mut(decision.trace) {
            held.decision = decision;
            return 0;
        }
        let number = self.first + self.order.len() as u64;
        self.order.push_back(decision.trace);
        self.record(recorded_in, number..number + 1);
        let hasher = &self.hasher;
        self.table.insert_unique(
            hasher.hash_one(decision.trace.as_bytes()),
            Remembered {
                decision,
                exported: Vec::new(),
                exported_until: Moment::ZERO,
            },
            |held| hasher.hash_one(held.decision.trace.as_bytes()),
        );
        self.bytes += DECISION_BYTES;
        let early = self.early.as_mut();
        if let Some(hashes) = early.and_then(|early| early.take(decision.trace)) {
            let hashes = hashes
                .into_iter()
                .map(|hash| FragmentHash(u128::from_le_bytes(hash)));
            self.note_exported(decision.trace, hashes, SegmentId(0), Moment::ZERO);
        }
        let mut forgotten = 0;
        while self.bytes > self.memory.bytes_max && self.order.len() > 1 {
            self.forget_oldest();
            forgotten += 1;
        }
        forgotten
    }

    /// These fragments of a kept trace are at the backend, as a segment records.
    pub fn note_exported(
        &mut self,
        trace: TraceId,
        hashes: impl IntoIterator<Item = FragmentHash>,
        recorded_in: SegmentId,
        now: Moment,
    ) {
        let until = now + self.memory.exported_hashes;
        let Some(held) = self.get_mut(trace) else {
            if let Some(early) = &mut self.early {
                let hashes = hashes.into_iter().map(|hash| hash.0.to_le_bytes());
                early.note(trace, hashes, self.memory.bytes_max);
            }
            return;
        };
        let before = held.exported.len();
        held.exported
            .extend(hashes.into_iter().map(|hash| hash.0.to_le_bytes()));
        let hashes = held.exported.len() - before;
        held.exported.shrink_to_fit();
        held.exported_until = until;
        self.bytes += hashes * HASH_BYTES;
        *self.exported_in.entry(recorded_in).or_default() += hashes;
        self.exports.push_back(Export {
            until,
            trace,
            recorded_in,
            hashes,
        });
    }

    /// What earlier lives exported is remembered from now on as long as what is exported now: when it was is in
    /// no record, and no decision is remembered longer for it.
    pub fn begin_life(&mut self, now: Moment) {
        self.early = None;
        let until = now + self.memory.exported_hashes;
        let mut seen = HashSet::new();
        let mut exports = std::mem::take(&mut self.exports);
        exports.retain(|export| seen.insert(export.trace));
        exports.retain_mut(|export| {
            let Some(held) = self.get_mut(export.trace) else {
                return false;
            };
            // Carried forward, and the record from before is still in the log, too.
            let before = held.exported.len();
            held.exported.sort_unstable();
            held.exported.dedup();
            held.exported.shrink_to_fit();
            held.exported_until = until;
            export.hashes = held.exported.len();
            export.until = until;
            self.bytes -= (before - export.hashes) * HASH_BYTES;
            true
        });
        self.exports = exports;
        self.exported_in.clear();
        for export in &self.exports {
            *self.exported_in.entry(export.recorded_in).or_default() += export.hashes;
        }
    }

    /// A segment is about to go: what it says was exported, as far as it is remembered. The caller
    /// writes it anew and says where with [`Decisions::exports_carried`].
    pub fn exports_in(&self, segment: SegmentId) -> Vec<(TraceId, Vec<FragmentHash>)> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        for export in self.exports.iter().filter(|it| it.recorded_in == segment) {
            let Some(held) = self.get(export.trace) else {
                continue;
            };
            if !held.exported.is_empty() && seen.insert(export.trace) {
                let hashes = held.exported.iter();
                let hashes = hashes.map(|it| FragmentHash(u128::from_le_bytes(*it)));
                found.push((export.trace, hashes.collect()));
            }
        }
        found
    }

    /// All that was exported of these traces stands in another segment each, too.
    pub fn exports_carried(&mut self, carried: &HashMap<TraceId, SegmentId>) {
        if carried.is_empty() {
            return;
        }
        for export in &mut self.exports {
            let Some(&into) = carried.get(&export.trace) else {
                continue;
            };
            if let Some(hashes) = self.exported_in.get_mut(&export.recorded_in) {
                *hashes -= export.hashes.min(*hashes);
                if *hashes == 0 {
                    self.exported_in.remove(&export.recorded_in);
                }
            }
            export.recorded_in = into;
            *self.exported_in.entry(into).or_default() += export.hashes;
        }
    }

    /// What would have to be written anew if a segment went, roughly: decisions, and hashes of what was exported.
    pub fn carried_bytes(&self, segment: SegmentId) -> (u64, u64) {
        let ranges = self.recorded.get(&segment).into_iter().flatten();
        let decisions: u64 = ranges
            .map(|range| range.end.saturating_sub(range.start.max(self.first)))
            .sum();
        let hashes = self.exported_in.get(&segment).copied().unwrap_or(0);
        (
            decisions * DECISION_RECORD_BYTES,
            (hashes * HASH_BYTES) as u64,
        )
    }

    /// What a log holds of all this.
    pub fn recorded_bytes(&self) -> u64 {
        let hashes: usize = self.exported_in.values().sum();
        self.len() as u64 * DECISION_RECORD_BYTES + (hashes * HASH_BYTES) as u64
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Moment) {
        while let Some(export) = self.exports.pop_front_if(|it| it.until <= now) {
            if let Some(hashes) = self.exported_in.get_mut(&export.recorded_in) {
                *hashes -= export.hashes.min(*hashes);
                if *hashes == 0 {
                    self.exported_in.remove(&export.recorded_in);
                }
            }
            let Some(held) = self.get_mut(export.trace) else {
                continue;
            };
            if held.exported_until <= now {
                let gone = std::mem::take(&mut held.exported);
                self.bytes -= gone.len() * HASH_BYTES;
            }
        }
        while let Some(oldest) = self.order.front().and_then(|trace| self.get(*trace)) {
            if oldest.decision.decided_at + self.memory.decisions > now {
                break;
            }
            self.forget_oldest();
        }
        if self.table.capacity() > 1024 && self.table.len() < self.table.capacity() / 4 {
            let hasher = &self.hasher;
            self.table.shrink_to(self.table.len() * 2, |held| {
                hasher.hash_one(held.decision.trace.as_bytes())
            });
            self.order.shrink_to(self.order.len() * 2);
        }
    }

    fn forget_oldest(&mut self) {
        let Some(trace) = self.order.pop_front() else {
            return;
        };
        self.first += 1;
        let hash = self.hash(trace);
        if let Ok(found) = self
            .table
            .find_entry(hash, |held| held.decision.trace == trace)
        {
            let (gone, _) = found.remove();
            self.bytes -= DECISION_BYTES + gone.exported.len() * HASH_BYTES;
        }
    }

    fn record(&mut self, segment: SegmentId, numbers: Range<u64>) {
        let ranges = self.recorded.entry(segment).or_default();
        match ranges.last_mut() {
            Some(last) if last.end == numbers.start => last.end = numbers.end,
            _ => ranges.push(numbers),
        }
    }

    /// A segment is about to go: the decisions that only it records and that are still remembered.
    /// The caller writes them as a checkpoint and says where with [`Decisions::carried`].
    pub fn carry_forward(&mut self, segment: SegmentId) -> (Vec<Decision>, Vec<Range<u64>>) {
        let ranges: Vec<Range<u64>> = self
            .recorded
            .remove(&segment)
            .unwrap_or_default()
            .into_iter()
            .map(|range| range.start.max(self.first)..range.end)
            .filter(|range| range.start < range.end)
            .collect();
        let decisions = ranges
            .iter()
            .flat_map(Range::clone)
            .filter_map(|number| self.order.get((number - self.first) as usize))
            .filter_map(|trace| self.get(*trace))
            .map(|held| held.decision)
            .collect();
        (decisions, ranges)
    }

    pub fn carried(&mut self, ranges: Vec<Range<u64>>, into: SegmentId) {
        for range in ranges {
            self.record(into, range);
        }
    }

    /// These decisions, by their place in [`Decisions::all`], are recorded in a segment too.
    pub fn recorded_again(&mut self, places: Range<usize>, segment: SegmentId) {
        let numbers = self.first + places.start as u64..self.first + places.end as u64;
        self.record(segment, numbers);
    }

    /// The decisions from this number on, oldest first, each with its number: they are numbered as they
    /// are remembered.
    pub fn numbered(&self, from: u64) -> impl Iterator<Item = (u64, &Decision)> {
        let from = from.max(self.first);
        // No more than there are: far below what a `usize` holds.
        let skipped = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        let rest = self.order.range(skipped.min(self.order.len())..);
        let numbered = (from..).zip(rest);
        numbered.filter_map(|(number, trace)| Some((number, &self.get(*trace)?.decision)))
    }

    /// The number that the next decision gets.
    pub fn next_number(&self) -> u64 {
        self.first + self.order.len() as u64
    }

    /// Every remembered decision, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Decision> {
        self.order
            .iter()
            .filter_map(|trace| self.get(*trace))
            .map(|held| &held.decision)
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Threshold, Verdict, VerdictId};

    fn memory(bytes_max: usize) -> DecisionMemory {
        DecisionMemory {
            bytes_max,
            decisions: Duration::from_secs(600),
            exported_hashes: Duration::from_secs(300),
        }
    }

    fn decision(n: u32, at: Moment) -> Decision {
        let mut id = [1; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        Decision {
            trace: TraceId::new(id).unwrap(),
            verdict: Verdict::Keep,
            id: VerdictId(n),
            threshold: Some(Threshold::ALWAYS),
            policy: None,
            rules_version: 1,
            decided_at: at,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn decisions_are_forgotten_by_age_and_hashes_earlier() {
        let mut decisions = Decisions::new(memory(usize::MAX));
        let kept = decision(1, at(0));
        decisions.remember(kept, SegmentId(1));
        decisions.note_exported(kept.trace, [FragmentHash(7)], SegmentId(1), at(10));
        decisions.expire(at(309));
        assert!(decisions.get(kept.trace).unwrap().exported(FragmentHash(7)));
        decisions.expire(at(310));
        assert!(!decisions.get(kept.trace).unwrap().exported(FragmentHash(7)));
        decisions.expire(at(599));
        assert!(decisions.get(kept.trace).is_some());
        decisions.expire(at(600));
        assert!(decisions.get(kept.trace).is_none());
        assert_eq!((decisions.len(), decisions.bytes()), (0, 0));
    }

    #[test]
    fn the_byte_bound_forgets_the_oldest_first_and_says_so() {
        let mut decisions = Decisions::new(memory(DECISION_BYTES * 10));
        let forgotten: usize = (0..25)
            .map(|n| decisions.remember(decision(n, at(u64::from(n))), SegmentId(1)))
            .sum();
        assert_eq!((decisions.len(), forgotten), (10, 15));
        assert!(decisions.get(decision(14, at(0)).trace).is_none());
        assert!(decisions.get(decision(15, at(0)).trace).is_some());
    }

    #[test]
    fn what_was_exported_is_carried_forward_until_it_is_forgotten() {
        let mut decisions = Decisions::new(memory(usize::MAX));
        for n in 0..2 {
            let kept = decision(n, at(0));
            decisions.remember(kept, SegmentId(1));
            let exported_at = at(10 + 100 * u64::from(n));
            decisions.note_exported(kept.trace, [FragmentHash(7)], SegmentId(2), exported_at);
        }
        let found = |decisions: &Decisions, segment| decisions.exports_in(SegmentId(segment)).len();
        assert_eq!((found(&decisions, 1), found(&decisions, 2)), (0, 2));
        let all = decisions.exports_in(SegmentId(2)).into_iter();
        let carried = all.map(|(trace, _)| (trace, SegmentId(5))).collect();
        decisions.exports_carried(&carried);
        assert_eq!((found(&decisions, 2), found(&decisions, 5)), (0, 2));
        // Each where it lies: the younger segment may go first.
        decisions.exports_carried(&HashMap::from([(decision(1, at(0)).trace, SegmentId(6))]));
        assert_eq!((found(&decisions, 5), found(&decisions, 6)), (1, 1));
        let back = HashMap::from([(decision(1, at(0)).trace, SegmentId(5))]);
        decisions.exports_carried(&back);
        decisions.expire(at(310));
        assert_eq!(found(&decisions, 5), 1);
        decisions.begin_life(at(400));
        decisions.expire(at(599));
        assert_eq!(
            found(&decisions, 5),
            1,
            "longer, by the time at which it began"
        );
        decisions.expire(at(600));
        assert_eq!((found(&decisions, 5), decisions.bytes()), (0, 0));
    }

    #[test]
    fn all_that_was_exported_of_a_trace_is_carried_forward_at_once_and_counts_once_after_a_start() {
        let mut decisions = Decisions::new(memory(usize::MAX));
        let kept = decision(1, at(0));
        decisions.remember(kept, SegmentId(1));
        for n in 0..4_u32 {
            let hash = FragmentHash(u128::from(n));
            decisions.note_exported(kept.trace, [hash], SegmentId(2 + n), at(10));
        }
        let carried = decisions.exports_in(SegmentId(2));
        assert_eq!(carried[0].1.len(), 4);
        decisions.exports_carried(&HashMap::from([(kept.trace, SegmentId(9))]));
        for segment in 2..6 {
            assert_eq!(decisions.carried_bytes(SegmentId(segment)).1, 0);
            assert!(decisions.exports_in(SegmentId(segment)).is_empty());
        }
        assert_eq!(
            decisions.carried_bytes(SegmentId(9)).1,
            4 * HASH_BYTES as u64
        );
        // A start that finds the old records and the new one.
        let mut next = Decisions::new(memory(usize::MAX));
        next.remember(kept, SegmentId(0));
        for (_, hashes) in [&carried[..], &carried[..]].concat() {
            next.note_exported(kept.trace, hashes, SegmentId(0), Moment::ZERO);
        }
        next.begin_life(at(20));
        assert_eq!(next.exports_in(SegmentId(0))[0].1.len(), 4);
        assert_eq!(next.carried_bytes(SegmentId(0)).1, 4 * HASH_BYTES as u64);
        assert_eq!(next.bytes(), DECISION_BYTES + 4 * HASH_BYTES);
        next.expire(at(320));
        assert_eq!(
            (next.bytes(), next.carried_bytes(SegmentId(0)).1),
            (DECISION_BYTES, 0)
        );
    }

    #[test]
    fn a_decision_is_carried_forward_until_it_is_forgotten() {
        let mut decisions = Decisions::new(memory(usize::MAX));
        for n in 0..4 {
            decisions.remember(decision(n, at(u64::from(n))), SegmentId(1 + n / 2));
        }
        decisions.expire(at(600));
        let (carried, ranges) = decisions.carry_forward(SegmentId(1));
        assert_eq!(carried.iter().map(|d| d.id.0).collect::<Vec<_>>(), [1]);
        decisions.carried(ranges, SegmentId(3));
        assert_eq!(decisions.carry_forward(SegmentId(1)).0.len(), 0);
        let (carried, ranges) = decisions.carry_forward(SegmentId(3));
        assert_eq!(carried.len(), 1);
        decisions.carried(ranges, SegmentId(4));
        assert_eq!(decisions.carry_forward(SegmentId(2)).0.len(), 2);
        decisions.expire(at(10_000));
        assert_eq!(decisions.carry_forward(SegmentId(4)).0.len(), 0);
    }
}
