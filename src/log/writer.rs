//! Turns records into frames at known places. One a shard; no I/O.

use std::sync::Arc;

use crate::log::{DecisionRecord, DiskOp, Extent, Space};
use crate::model::{FragmentHash, Moment, TraceId};
use crate::wire::FragmentView;

#[derive(Debug)]
pub struct Writer {}

impl Writer {
    /// `hash_key` is random in each process: header lookups must not be steered from outside.
    pub fn new(shard: u16, space: Arc<Space>, hash_key: u64) -> Self {
        let _ = (shard, space, hash_key);
        unimplemented!()
    }

    /// Appends a fragment; its headers only if this segment has not got them. The frame counts as
    /// live until it is given to [`Space::release`].
    pub fn fragment(
        &mut self,
        fragment: &FragmentView<'_>,
        arrival: Moment,
        previous: Option<Extent>,
    ) -> Extent {
        let _ = (fragment, arrival, previous);
        unimplemented!()
    }

    pub fn verdict(&mut self, decision: &DecisionRecord) -> Extent {
        let _ = decision;
        unimplemented!()
    }

    /// The backend has these fragments of the trace.
    pub fn exported(&mut self, trace: TraceId, fragments: &[FragmentHash]) -> Extent {
        let _ = (trace, fragments);
        unimplemented!()
    }

    /// Decisions that outlive the segments they were made in.
    pub fn checkpoint(&mut self, decisions: &[DecisionRecord]) -> Extent {
        let _ = decisions;
        unimplemented!()
    }

    /// Bytes encoded and not yet taken.
    pub fn pending_bytes(&self) -> usize {
        unimplemented!()
    }

    /// What the disk must do, in order: everything since the last call.
    pub fn take(&mut self) -> Vec<DiskOp> {
        unimplemented!()
    }

    /// A write failed: what is pending is forgotten, its frames are not live, and the next record
    /// opens a new segment. `written` is the length up to which the current segment is sound.
    pub fn abandon(&mut self) {
        unimplemented!()
    }

    /// Gives back a written buffer, so that the next take allocates nothing.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        let _ = buffer;
        unimplemented!()
    }
}
