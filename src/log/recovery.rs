//! Reads a data dir at start: every segment of every shard that ever wrote here.

use std::sync::Arc;

use crate::log::{DecisionRecord, Disk, Extent, ReadError, Space, Volume};
use crate::model::{FragmentHash, Moment, TraceId};

/// One record of the log, in the order it was written within its shard.
#[derive(Debug, Clone)]
pub enum Recovered {
    Fragment {
        extent: Extent,
        trace: TraceId,
        hash: FragmentHash,
        arrival: Moment,
        spans: u32,
        span_bytes: u32,
        has_root: bool,
    },
    Verdict(DecisionRecord),
    Exported {
        trace: TraceId,
        fragments: Vec<FragmentHash>,
    },
    Checkpoint(Vec<DecisionRecord>),
}

/// What was found, for the log line and the metrics.
#[derive(Debug, Clone, Default)]
pub struct RecoveryReport {
    pub segments: u64,
    pub bytes: u64,
    pub fragments: u64,
    pub torn_tails: u64,
    pub damaged_records: u64,
}

/// Gives every record to `on_record` and registers every segment with `space`; each fragment
/// counts as live until it is released. Torn tails are truncated.
pub fn recover<D: Disk>(
    volume: &Arc<Volume<D>>,
    space: &Arc<Space>,
    on_record: &mut dyn FnMut(Recovered),
) -> Result<RecoveryReport, ReadError> {
    let _ = (volume, space, on_record);
    unimplemented!()
}
