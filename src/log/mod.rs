//! The segment log: trace buffer, write-ahead log, spool and source of handoff in one.
//!
//! The writer is an encoder and does no I/O: it turns records into [`DiskOp`]s, which a thread
//! beside the shard gives to a [`Volume`]. Reading goes by [`Extent`], from any thread.
//! (The on-disk format stands here, at the top of the folder.)

mod disk;
mod format;
mod reader;
mod recovery;
mod simulated;
mod space;
mod volume;
mod writer;

pub use disk::{Disk, DiskFile, RealDisk};
pub use format::{DecisionRecord, Extent, SegmentId};
pub use reader::{ReadError, StoredFragment, StoredScope};
pub use recovery::{Recovered, RecoveryReport, recover};
pub use simulated::SimulatedDisk;
pub use space::{Space, SpaceConfig};
pub use volume::{DiskOp, Volume};
pub use writer::Writer;
