//! What the records of a log mean together: which traces are undecided, which wait for their backend,
//! which are done with. By the same rules as a worker's start (`worker/shard/recovery.rs`), of which
//! nothing is shared: one of the two can find the other wrong.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::log::Recovered;
use crate::model::{Decision, FragmentHash, Moment, SegmentId, TraceId, Verdict};

/// Every trace that has a record.
#[derive(Debug, Default)]
pub(super) struct Census {
    traces: HashMap<TraceId, Trace>,
}

#[derive(Debug, Default)]
struct Trace {
    verdict: Option<Verdict>,
    /// In the log and not exported.
    held: Vec<Held>,
    /// Received from another member, and not committed.
    received: Vec<Held>,
    exported: Sum,
}

#[derive(Debug)]
struct Held {
    /// `u128` would be aligned to 16 bytes and cost 48 instead of 36.
    hash: [u8; 16],
    segment: SegmentId,
    bytes: u32,
    spans: u32,
    arrival: [u8; 8],
}

/// Of the fragments of some traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) traces: u64,
    pub(super) fragments: u64,
    pub(super) spans: u64,
    /// Their records in the log, without headers.
    pub(super) bytes: u64,
    /// The first arrival.
    pub(super) oldest: Option<Moment>,
}

/// See [`Census::count`].
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) undecided: Sum,
    pub(super) kept: Sum,
    pub(super) exported: Sum,
    pub(super) dropped: Sum,
    /// Verdicts of traces of which nothing else is in the log.
    pub(super) remembered: u64,
    /// Bytes of undecided traces, and of kept ones that are not exported.
    pub(super) live: BTreeMap<SegmentId, u64>,
}

impl Held {
    fn arrival(&self) -> Moment {
        Moment {
            unix_nanos: u64::from_le_bytes(self.arrival),
        }
    }
}

impl Sum {
    fn add(&mut self, held: &Held) {
        self.fragments += 1;
        self.spans += u64::from(held.spans);
        self.bytes += u64::from(held.bytes);
        let arrival = held.arrival();
        self.oldest = Some(self.oldest.map_or(arrival, |oldest| oldest.min(arrival)));
    }
}

impl Census {
    /// The next record, in the order in which a start takes them.
    pub(super) fn take(&mut self, record: Recovered) {
        match record {
            Recovered::Fragment {
                extent,
                trace,
                hash,
                arrival,
                spans,
                is_received,
                ..
            } => {
                let trace = self.traces.entry(trace).or_default();
                let held = Held {
                    hash: hash.0.to_le_bytes(),
                    segment: extent.segment,
                    bytes: extent.len,
                    spans,
                    arrival: arrival.unix_nanos.to_le_bytes(),
                };
                if is_received {
                    trace.received.push(held);
                } else {
                    trace.held.push(held);
                }
            }
            Recovered::Commit(commit) => {
                let trace = self.traces.entry(commit.trace).or_default();
                let committed = hashes(&commit.fragments);
                let received = std::mem::take(&mut trace.received);
                let received = received.into_iter();
                // The same bytes may be here already.
                let mut here: HashSet<_> = trace.held.iter().map(|it| it.hash).collect();
                trace.held.extend(
                    received.filter(|it| committed.contains(&it.hash) && here.insert(it.hash)),
                );
            }
            Recovered::Moved(moved) => {
                let gone = hashes(&moved.fragments);
                if let Some(trace) = self.traces.get_mut(&moved.trace) {
                    trace.held.retain(|held| !gone.contains(&held.hash));
                }
            }
            Recovered::Verdict(decision) => self.decide(&decision),
            Recovered::Checkpoint(decisions) => {
                for decision in &decisions {
                    self.decide(decision);
                }
            }
            Recovered::Exported { trace, fragments } => {
                if let Some(trace) = self.traces.get_mut(&trace) {
                    trace.export(&fragments);
                }
            }
        }
    }

    fn decide(&mut self, decision: &Decision) {
        let trace = self.traces.entry(decision.trace).or_default();
        trace.verdict = Some(decision.verdict);
    }

    pub(super) fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for trace in self.traces.values() {
            let sum = match trace.verdict {
                None => &mut counts.undecided,
                Some(Verdict::Keep) => &mut counts.kept,
                Some(Verdict::Drop) => &mut counts.dropped,
            };
            sum.traces += u64::from(!trace.held.is_empty());
            for held in &trace.held {
                sum.add(held);
                if trace.verdict != Some(Verdict::Drop) {
                    *counts.live.entry(held.segment).or_default() += u64::from(held.bytes);
                }
            }
            let exported = &trace.exported;
            counts.exported.fragments += exported.fragments;
            counts.exported.spans += exported.spans;
            counts.exported.bytes += exported.bytes;
            if trace.held.is_empty() && (trace.verdict.is_some() || exported.fragments > 0) {
                let has_been_exported = exported.fragments > 0;
                counts.exported.traces += u64::from(has_been_exported);
                counts.remembered += u64::from(!has_been_exported);
            }
        }
        counts
    }
}

fn hashes(fragments: &[FragmentHash]) -> HashSet<[u8; 16]> {
    fragments.iter().map(|it| it.0.to_le_bytes()).collect()
}

impl Trace {
    fn export(&mut self, fragments: &[FragmentHash]) {
        let exported = &mut self.exported;
        let fragments = hashes(fragments);
        self.held.retain(|held| {
            let is_exported = fragments.contains(&held.hash);
            if is_exported {
                exported.add(held);
            }
            !is_exported
        });
    }
}
