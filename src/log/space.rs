//! The byte bound of a data dir, and which segments may go.

use std::sync::Arc;

use crate::log::{Extent, SegmentId};

#[derive(Debug, Clone, Copy)]
pub struct SpaceConfig {
    pub segment_bytes: u32,
    pub log_max_bytes: u64,
    pub shards: u16,
}

/// Shared by all shards of a worker; locked once a batch, never once a span.
#[derive(Debug)]
pub struct Space {}

impl Space {
    pub fn new(config: SpaceConfig) -> Arc<Self> {
        let _ = config;
        unimplemented!()
    }

    /// Whether client bytes may still be appended: used + `bytes` ≤ bound − reserve, the reserve
    /// being two segments a shard.
    pub fn admits(&self, bytes: u64) -> bool {
        let _ = bytes;
        unimplemented!()
    }

    /// Bytes that the segments occupy on disk.
    pub fn used_bytes(&self) -> u64 {
        unimplemented!()
    }

    pub fn segments(&self) -> usize {
        unimplemented!()
    }

    /// These frames are needed no more: exported, or dropped and older than `drop_retain`.
    pub fn release(&self, extents: impl IntoIterator<Item = Extent>) {
        let _ = extents.into_iter().count();
        unimplemented!()
    }

    /// Segments that hold nothing live and whose tombstones cover nothing that is still there.
    /// Each is returned once; the caller unlinks it (`DiskOp::Unlink`).
    pub fn take_freed(&self) -> Vec<SegmentId> {
        unimplemented!()
    }

    /// The oldest segment that is still there: decisions recorded at or before it must be carried
    /// forward before it goes.
    pub fn next_to_free(&self, shard: u16) -> Option<SegmentId> {
        let _ = shard;
        unimplemented!()
    }
}
