//! The traces a shard holds: undecided ones, and kept ones that the backend has not got yet.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::collections::HashSet;

use crate::model::{Decision, Extent, FragmentHash, Moment, SegmentId, TraceId};
use crate::policy::{FoldState, Rules, Timing};
use crate::trace::deadlines::deadline;
use crate::trace::{DecideReason, Held, Outgoing, Transfer};

/// Where one fragment lies, and its identity. 28 bytes: an 80-span trace has about ten of them,
/// and they are most of what a trace costs in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentRef {
    /// `u128` would be aligned to 16 bytes and cost 48 instead of 28.
    hash: [u8; 16],
    segment: u32,
    offset: u32,
    len: u32,
}

/// How far a trace that is in the index has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Undecided,
    /// Its verdict is KEEP; the fragments listed are those that were not exported yet.
    Kept {
        /// An exporter has the first so many fragments.
        exporting: u32,
        /// It stands in the export queue.
        queued: bool,
    },
}

#[derive(Debug, Clone)]
pub struct TraceEntry {
    pub first_seen: Moment,
    pub last_seen: Moment,
    pub root_seen: Option<Moment>,
    pub spans: u32,
    /// Wire bytes of its spans.
    pub span_bytes: u64,
    pub stage: Stage,
    /// What the policies remember of the spans that came before the verdict.
    pub state: FoldState,
    /// Which of the shard's rules the state was folded by; see `worker::shard::refold`.
    pub folded_by: u16,
    /// It is complete and stands before the limits.
    pub is_asking: bool,
    /// It is judged before its time, to make room.
    pub is_early: bool,
    /// What was decided, once it was. Kept here too because a kept trace may wait for its backend
    /// longer than decisions are remembered.
    pub decision: Option<Box<Decision>>,
    /// While it is between two members.
    pub transfer: Option<Box<Transfer>>,
    /// Some of its fragments lie elsewhere than those behind them say.
    is_relocated: bool,
    /// In the order they were appended.
    fragments: Vec<FragmentRef>,
    /// Their hashes, once there are many.
    #[expect(
        clippy::box_collection,
        reason = "few traces have one, and every trace would pay its 48 bytes"
    )]
    many: Option<Box<HashSet<[u8; 16], foldhash::fast::RandomState>>>,
}

/// Up to so many fragments a trace's hashes are looked through one by one (1.8 kB, a few cache
/// lines). A client that exports each span alone makes thousands; those get a set, or the 32,000th
/// would be the 500-millionth comparison.
const LOOKED_THROUGH_MAX: usize = 64;

/// All traces in hand, by trace ID.
///
/// Hashed with a random key of this process: trace IDs are chosen by whoever sends them.
#[derive(Debug)]
pub struct Index {
    table: HashTable<(TraceId, TraceEntry)>,
    hasher: foldhash::fast::RandomState,
    undecided: usize,
    undecided_spans: u64,
    fragments: usize,
    /// Of the state of one trace.
    state_heap_bytes: usize,
}

/// What a trace costs: its place in a table at 7/8 load after doubling (so up to 16/7 of it), its
/// deadline, and what the allocator adds.
const TRACE_BYTES: usize = size_of::<(TraceId, TraceEntry)>() * 16 / 7 + 96;
/// And each of its fragments, in a list that grew by doubling.
const FRAGMENT_BYTES: usize = size_of::<FragmentRef>() * 2;

impl FragmentRef {
    pub fn new(hash: FragmentHash, extent: Extent) -> Self {
        Self {
            hash: hash.0.to_le_bytes(),
            segment: extent.segment.0,
            offset: extent.offset,
            len: extent.len,
        }
    }

    pub fn hash(&self) -> FragmentHash {
        FragmentHash(u128::from_le_bytes(self.hash))
    }

    pub fn extent(&self) -> Extent {
        Extent {
            segment: SegmentId(self.segment),
            offset: self.offset,
            len: self.len,
        }
    }
}

impl TraceEntry {
    pub fn begin(now: Moment, stage: Stage, rules: &Rules) -> Self {
        Self {
            state: rules.begin(),
            folded_by: 0,
            is_asking: false,
            is_early: false,
            is_relocated: false,
            first_seen: now,
            last_seen: now,
            root_seen: None,
            spans: 0,
            span_bytes: 0,
            stage,
            decision: None,
            transfer: None,
            fragments: Vec::new(),
            many: None,
        }
    }

    pub fn fragments(&self) -> &[FragmentRef] {
        &self.fragments
    }

    pub fn holds(&self, hash: FragmentHash) -> bool {
        let wanted = hash.0.to_le_bytes();
        match &self.many {
            Some(hashes) => hashes.contains(&wanted),
            None => self.fragments.iter().any(|held| held.hash == wanted),
        }
    }

    pub fn push(&mut self, fragment: FragmentRef) {
        self.fragments.push(fragment);
        if let Some(hashes) = &mut self.many {
            hashes.insert(fragment.hash);
        } else if self.fragments.len() > LOOKED_THROUGH_MAX {
            self.many = Some(Box::new(
                self.fragments.iter().map(|held| held.hash).collect(),
            ));
        }
    }

    /// Takes out the fragments for which `gone` says so.
    pub fn take(&mut self, mut gone: impl FnMut(&FragmentRef) -> bool) -> Vec<FragmentRef> {
        let (taken, left) = std::mem::take(&mut self.fragments)
            .into_iter()
            .partition(|held| gone(held));
        self.fragments = left;
        if let Some(hashes) = &mut self.many {
            for fragment in &taken {
                let fragment: &FragmentRef = fragment;
                hashes.remove(&fragment.hash);
            }
        }
        taken
    }

    /// Another member held it before, or holds it too.
    pub fn merge_times(&mut self, first: Moment, last: Moment, root: Option<Moment>) {
        self.first_seen = self.first_seen.min(first);
        self.last_seen = self.last_seen.max(last);
        self.root_seen = match (self.root_seen, root) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
    }

    /// Puts fragments in behind the first `at`.
    pub fn insert(&mut self, at: usize, fragments: impl IntoIterator<Item = FragmentRef>) {
        self.fragments.splice(at..at, fragments);
        self.rebuild_hashes();
    }

    /// Takes out the first so many fragments. Copies of them may stand behind.
    pub fn take_first(&mut self, count: usize) -> Vec<FragmentRef> {
        let rest = self.fragments.split_off(count.min(self.fragments.len()));
        let taken = std::mem::replace(&mut self.fragments, rest);
        self.rebuild_hashes();
        taken
    }

    /// Takes out what stands behind the first `count` and has one of these hashes.
    pub fn take_copies(&mut self, count: usize, hashes: &HashSet<[u8; 16]>) -> Vec<FragmentRef> {
        let rest = self.fragments.split_off(count.min(self.fragments.len()));
        let (taken, rest) = rest.into_iter().partition(|it| hashes.contains(&it.hash));
        self.fragments.extend::<Vec<_>>(rest);
        self.rebuild_hashes();
        taken
    }

    fn rebuild_hashes(&mut self) {
        let hashes = self.fragments.iter().map(|held| held.hash);
        self.many = (self.fragments.len() > LOOKED_THROUGH_MAX).then(|| Box::new(hashes.collect()));
    }

    /// The generation that is being handed over.
    pub fn outgoing(&self) -> Option<&Outgoing> {
        self.transfer.as_ref()?.outgoing.as_ref()
    }

    pub fn outgoing_mut(&mut self) -> Option<&mut Outgoing> {
        self.transfer.as_mut()?.outgoing.as_mut()
    }

    /// Where a fragment is that another member hands over.
    pub fn where_is(&self, hash: FragmentHash) -> Held {
        match self.outgoing() {
            _ if !self.holds(hash) => Held::No,
            Some(outgoing) => outgoing.holds(&self.fragments, hash),
            None => Held::Yes,
        }
    }

    /// Takes out the fragment that lies there. Looked for from the youngest on: it is for those
    /// that could not be written.
    pub fn forget(&mut self, extent: Extent) {
        let Some(at) = self
            .fragments
            .iter()
            .rposition(|held| held.extent() == extent)
        else {
            return;
        };
        let gone = self.fragments.remove(at);
        if let Some(hashes) = &mut self.many {
            hashes.remove(&gone.hash);
        }
    }

    /// Offsets of the fragments that lie in a segment.
    pub fn live_in(&self, segment: SegmentId) -> Vec<u32> {
        let held = self.fragments.iter();
        held.filter(|it| it.segment == segment.0)
            .map(|it| it.offset)
            .collect()
    }

    /// Where the fragment of this hash lies, if it is held.
    pub fn place_of(&self, hash: FragmentHash) -> Option<Extent> {
        // Most have not got it: of many fragments the set knows at once.
        if !self.holds(hash) {
            return None;
        }
        let wanted = hash.0.to_le_bytes();
        let held = self.fragments.iter().find(|held| held.hash == wanted);
        held.map(FragmentRef::extent)
    }

    /// Fragments lie elsewhere now; `to` says where. They keep their places in the list.
    pub fn relocate(&mut self, mut to: impl FnMut(Extent) -> Option<Extent>) {
        for held in &mut self.fragments {
            if let Some(extent) = to(held.extent()) {
                *held = FragmentRef::new(held.hash(), extent);
                self.is_relocated = true;
            }
        }
    }

    /// Following the fragments in the log from the last one to the first may miss some.
    pub fn is_no_chain(&mut self) {
        self.is_relocated = true;
    }

    pub fn is_relocated(&self) -> bool {
        self.is_relocated
    }

    pub fn tail(&self) -> Option<Extent> {
        self.fragments.last().map(FragmentRef::extent)
    }

    /// When this trace is complete, and why then.
    pub fn deadline(&self, timing: &Timing) -> (Moment, DecideReason) {
        deadline(self, timing)
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            table: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            undecided: 0,
            undecided_spans: 0,
            fragments: 0,
            state_heap_bytes: 0,
        }
    }
}

impl Index {
    fn hash(&self, trace: TraceId) -> u64 {
        use std::hash::BuildHasher;
        self.hasher.hash_one(trace.as_bytes())
    }

    pub fn get(&self, trace: TraceId) -> Option<&TraceEntry> {
        self.table
            .find(self.hash(trace), |(id, _)| *id == trace)
            .map(|(_, entry)| entry)
    }

    pub fn get_mut(&mut self, trace: TraceId) -> Option<&mut TraceEntry> {
        let hash = self.hash(trace);
        self.table
            .find_mut(hash, |(id, _)| *id == trace)
            .map(|(_, entry)| entry)
    }

    /// The trace's entry, begun now under these rules if there is none. True if it was begun.
    pub fn begin(
        &mut self,
        trace: TraceId,
        now: Moment,
        stage: Stage,
        rules: &Rules,
    ) -> (&mut TraceEntry, bool) {
        use std::hash::BuildHasher;
        let hash = self.hash(trace);
        let hasher = &self.hasher;
        match self.table.entry(
            hash,
            |(id, _)| *id == trace,
            |(id, _)| hasher.hash_one(id.as_bytes()),
        ) {
            Entry::Occupied(held) => (&mut held.into_mut().1, false),
            Entry::Vacant(place) => {
                if stage == Stage::Undecided {
                    self.undecided += 1;
                }
                self.state_heap_bytes = rules.state_heap_bytes();
                let entry = TraceEntry::begin(now, stage, rules);
                (&mut place.insert((trace, entry)).into_mut().1, true)
            }
        }
    }

    /// A trace got a fragment.
    pub fn count_fragment(&mut self) {
        self.fragments += 1;
    }

    /// A trace that stays lost so many: exported, or not written.
    pub fn uncount_fragments(&mut self, fragments: usize) {
        self.fragments -= fragments;
    }

    /// Memory that all this takes, roughly.
    pub fn bytes(&self) -> usize {
        self.table.len() * (TRACE_BYTES + self.state_heap_bytes) + self.fragments * FRAGMENT_BYTES
    }

    /// Spans that an undecided trace got.
    pub fn count_spans(&mut self, spans: u32) {
        self.undecided_spans += u64::from(spans);
    }

    /// Spans that an undecided trace lost again: they could not be written.
    pub fn uncount_spans(&mut self, spans: u32) {
        self.undecided_spans -= u64::from(spans);
    }

    /// The trace is decided: it stays as kept, or is taken out.
    pub fn decide_keep(&mut self, trace: TraceId) -> Option<&mut TraceEntry> {
        let hash = self.hash(trace);
        let (_, entry) = self.table.find_mut(hash, |(id, _)| *id == trace)?;
        if entry.stage == Stage::Undecided {
            self.undecided -= 1;
            self.undecided_spans -= u64::from(entry.spans);
            entry.stage = Stage::Kept {
                exporting: 0,
                queued: false,
            };
        }
        Some(entry)
    }

    pub fn remove(&mut self, trace: TraceId) -> Option<TraceEntry> {
        let hash = self.hash(trace);
        let found = self.table.find_entry(hash, |(id, _)| *id == trace).ok()?;
        let ((_, entry), _) = found.remove();
        self.fragments -= entry.fragments.len();
        if entry.stage == Stage::Undecided {
            self.undecided -= 1;
            self.undecided_spans -= u64::from(entry.spans);
        }
        Some(entry)
    }

    pub fn traces(&self) -> impl Iterator<Item = (TraceId, &TraceEntry)> {
        self.table.iter().map(|(trace, entry)| (*trace, entry))
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub fn undecided(&self) -> usize {
        self.undecided
    }

    pub fn undecided_spans(&self) -> u64 {
        self.undecided_spans
    }

    /// Gives memory back after a burst: capacity follows the length down, at a quarter.
    pub fn shrink(&mut self) {
        use std::hash::BuildHasher;
        if self.table.capacity() > 1024 && self.table.len() < self.table.capacity() / 4 {
            let hasher = &self.hasher;
            self.table.shrink_to(self.table.len() * 2, |(id, _)| {
                hasher.hash_one(id.as_bytes())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn trace(n: u8) -> TraceId {
        TraceId::new([n; 16]).unwrap()
    }

    #[test]
    fn a_fragment_costs_28_bytes() {
        assert_eq!(size_of::<FragmentRef>(), 28);
    }

    #[test]
    fn retries_are_recognised_among_few_and_among_many_fragments() {
        let extent = Extent {
            segment: SegmentId(1),
            offset: 0,
            len: 1,
        };
        let mut entry =
            TraceEntry::begin(Moment::ZERO, Stage::Undecided, &Rules::keep_everything());
        for n in 0..200 {
            assert!(!entry.holds(FragmentHash(n)));
            entry.push(FragmentRef::new(FragmentHash(n), extent));
            assert!(entry.holds(FragmentHash(n)));
        }
        let taken = entry.take(|held| held.hash().0 < 150);
        assert_eq!((taken.len(), entry.fragments().len()), (150, 50));
        assert!(!entry.holds(FragmentHash(0)));
        assert!(entry.holds(FragmentHash(199)));
    }

    #[test]
    fn the_earliest_of_the_moments_decides() {
        let second = Duration::from_secs;
        let at = |s: u64| Moment::ZERO + second(s);
        let timing = |quiet: Option<u64>, root: Option<u64>| Timing {
            decision_wait: second(30),
            quiet_period: quiet.map(second),
            decision_wait_after_root_received: root.map(second),
        };
        let mut entry = TraceEntry::begin(at(100), Stage::Undecided, &Rules::keep_everything());
        entry.last_seen = at(110);
        let rows = [
            (None, None, None, 130, DecideReason::DecisionWait),
            (Some(5), None, None, 115, DecideReason::QuietPeriod),
            (Some(25), None, None, 130, DecideReason::DecisionWait),
            (None, Some(2), None, 130, DecideReason::DecisionWait),
            (None, Some(2), Some(105), 107, DecideReason::AfterRoot),
            (Some(5), Some(2), Some(105), 107, DecideReason::AfterRoot),
            (Some(5), Some(20), Some(105), 115, DecideReason::QuietPeriod),
            (None, Some(60), Some(105), 130, DecideReason::DecisionWait),
        ];
        for (quiet, root, root_seen, expected, reason) in rows {
            entry.root_seen = root_seen.map(at);
            assert_eq!(
                entry.deadline(&timing(quiet, root)),
                (at(expected), reason),
                "quiet {quiet:?} root {root:?} seen {root_seen:?}"
            );
        }
    }

    #[test]
    fn counts_of_undecided_return_to_zero() {
        let rules = Rules::keep_everything();
        let mut index = Index::default();
        let extent = Extent {
            segment: SegmentId(1),
            offset: 0,
            len: 1,
        };
        for n in 1..=100 {
            let (entry, begun) = index.begin(trace(n), Moment::ZERO, Stage::Undecided, &rules);
            assert!(begun);
            entry.spans += 3;
            entry.push(FragmentRef::new(FragmentHash(1), extent));
            index.count_spans(3);
            index.count_fragment();
        }
        assert!(index.bytes() > 100 * size_of::<TraceEntry>());
        assert_eq!((index.undecided(), index.undecided_spans()), (100, 300));
        for n in 1..=50 {
            assert!(index.decide_keep(trace(n)).is_some());
        }
        for n in 1..=100 {
            assert!(index.remove(trace(n)).is_some());
        }
        assert_eq!((index.undecided(), index.undecided_spans()), (0, 0));
        assert!(index.is_empty());
        assert_eq!(index.bytes(), 0);
    }
}
