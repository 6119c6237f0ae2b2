//! Frames, record kinds, and their bytes.

use crate::model::{Moment, Threshold, TraceId, Verdict, VerdictId};

/// One segment file. Unique in a data dir over all shards and all lives of it; grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    pub segment: SegmentId,
    pub offset: u32,
    /// The whole frame, its header included.
    pub len: u32,
}

/// A remembered decision, as VERDICT and CHECKPOINT records carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecisionRecord {
    pub trace: TraceId,
    pub verdict: Verdict,
    pub id: VerdictId,
    pub threshold: Threshold,
    /// Index of the policy in its file, for the record's reader; `u16::MAX` for none.
    pub policy: u16,
    pub rules_version: u64,
    pub decided_at: Moment,
}
