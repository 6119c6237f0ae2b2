//! The files of a log: carries out what the writers ask for, and reads by extent.

use std::io;
use std::sync::Arc;

use crate::log::{Disk, Extent, ReadError, SegmentId, StoredFragment};

/// One thing for the disk to do.
#[derive(Debug)]
pub enum DiskOp {
    Create {
        segment: SegmentId,
        shard: u16,
    },
    Write {
        segment: SegmentId,
        offset: u32,
        bytes: Vec<u8>,
    },
    /// No more writes; gives preallocated space back.
    Seal {
        segment: SegmentId,
        len: u32,
    },
    Unlink {
        segment: SegmentId,
    },
}

/// Shared by the shards' disk threads and by readers.
#[derive(Debug)]
pub struct Volume<D: Disk> {
    #[allow(dead_code)]
    disk: D,
}

impl<D: Disk> Volume<D> {
    pub fn new(disk: D) -> Arc<Self> {
        Arc::new(Self { disk })
    }

    /// Carries out one operation; gives a written buffer back.
    pub fn apply(&self, op: DiskOp) -> io::Result<Option<Vec<u8>>> {
        let _ = op;
        unimplemented!()
    }

    /// fdatasync of a segment, and of the directory if it is new.
    pub fn sync(&self, segment: SegmentId) -> io::Result<()> {
        let _ = segment;
        unimplemented!()
    }

    /// Reads fragments, given in any order; one read for neighbours.
    pub fn read(&self, extents: &[Extent]) -> Result<Vec<StoredFragment>, ReadError> {
        let _ = extents;
        unimplemented!()
    }
}
