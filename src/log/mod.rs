//! The segment log: trace buffer, write-ahead log, spool and source of handoff in one.
//!
//! The writer is an encoder and does no I/O: it turns records into [`DiskOp`]s, which a thread
//! beside the shard gives to a [`Volume`]. Reading goes by [`Extent`](crate::model::Extent), from any thread. [`Space`]
//! counts bytes and live frames and says which segments may go. Who is live is the caller's to
//! say; deciding, exporting and indexing are not done here.
//!
//! What an acknowledgement means: `Volume::apply(Write)` returned, so the record survives the
//! process; `Volume::sync` returned, so it survives the host. Nothing is promised for a record
//! whose write or sync failed: it may come back after a restart or not.
//!
//! # Files
//!
//! A data dir is flat: `LOCK` and `IDENTITY` (see `directory.rs`), and segments `NNNNNNNNNN.seg`,
//! the segment ID in ten decimal digits. IDs grow over all shards and all lives of the dir (a start
//! goes on above the highest that is there), and `NNNNNNNNNN.seg.spare`, at most two that went and
//! are kept to be written over; a start removes them. Other files are left alone. All integers are little-endian.
//!
//! # Segment
//!
//! ```text
//! segment := header frame*
//! header  := magic    [8]  "TAILRLOG"                              at 0
//!            version  u32  1                                       at 8
//!            segment  u32  as in the file's name                   at 12
//!            shard    u16  the shard that wrote it                 at 16
//!            zero     [2]                                          at 18
//!            crc      u32  CRC32C of bytes 0..20 and 24..64        at 20
//!            life     u64  grows with each start on this data dir  at 24
//!            created  u64  unix nanoseconds of the latest record before it, or 0   at 32
//!            zero     [24]                                         at 40
//! ```
//!
//! These 64 bytes keep their places in every version, so that any version can tell that a file
//! comes from a newer one. A segment holds 64 MiB; a record of more than three quarters of that
//! gets a segment of its own size plus a quarter (the quarter, because a giant resource header is
//! often followed by more fragments that refer to it).
//!
//! # Frame
//!
//! ```text
//! frame := len u32 (of the payload)  kind u8  crc u32  payload [len]
//! crc   := CRC32C of: segment u32, offset of the frame in its file u32, len u32, kind u8, payload
//! ```
//!
//! Seeded so, a stale frame, or one at another place, never checks: the file of a segment that went
//! becomes another one's, and what it held is written over from its beginning. There each write ends with
//! zeroes to the end of the page, nine at least, which the next write covers; behind the last ones lies
//! what is stale. The seal cuts it off. Readers skip frames of unknown
//! kinds whose checksum is right.
//!
//! | kind | name | payload |
//! |---|---|---|
//! | 1 | FRAGMENT | trace \[16], hash u128, arrival u64 (unix ns), previous: segment u32, offset u32, len u32 (all 0: none), spans u32, flags u8 (bit 0: has a root span, bit 1: received from another member), resource u32, scopes u32, then for each scope: header u32, spans length u32; then for each scope: `(12 len span)*` |
//! | 2 | HEADER | xxh3-128 of the bytes u128, bytes of a resource or scope header |
//! | 3 | VERDICT | decision |
//! | 4 | EXPORTED | trace \[16], count u32, fragment hash u128 × count |
//! | 5 | MOVED | trace \[16], generation u64, to u64 (xxh3 of the member's name), count u32, fragment hash u128 × count |
//! | 6 | COMMIT | trace \[16], generation u64, first seen u64, last seen u64, root seen u64 (unix ns; 0: not), count u32, fragment hash u128 × count |
//! | 7 | RULES | reserved |
//! | 8 | CHECKPOINT | count u32, decision × count |
//! | 9 | FOOTER | entry × any |
//! | 10 | TRAILER | offset of the FOOTER in its file u32; 0: it would have been too long |
//!
//! A header reference is the offset of a HEADER frame earlier in the same segment; 0 is the empty
//! header, which is not stored. One scope: 82 bytes beside the spans.
//!
//! ```text
//! decision := trace [16]  verdict u8 (1 KEEP, 2 DROP)  id u32  threshold u64  policy u16
//!             rules version u64  decided at u64 (unix ns)
//! ```
//!
//! A fragment with flag bit 1 is held only if a COMMIT behind it names it. Flag and both kinds are within version 1.
//!
//! The threshold is 2^64 - 1 for a trace of which nobody can say how likely it was to be kept.
//!
//! # Footers
//!
//! When a segment is full a FOOTER is appended, and once all of that is synced a TRAILER, the last 13 bytes of
//! the file. A start that finds both reads the footer and not the segment. Kinds 9 and 10 are within version 1:
//! readers that do not know them skip them.
//!
//! ```text
//! entry := kind u8 (1)        offset u32  len u32  trace [16]  hash u128  arrival u64  spans u32
//!                             bytes of spans u32  flags u8                     a FRAGMENT
//!        | kind u8 (3, 4, 5, 6, 8)  len u32  payload [len]                     another record
//! ```
//!
//! Entries have the order of their records. Headers have none. Over 4 MiB of entries a segment gets a
//! TRAILER alone.
//!
//! # Freeing
//!
//! Tombstones (EXPORTED, VERDICT, MOVED), and COMMIT, lie in younger segments than the fragments they cover, so a
//! segment goes only after every older one of its shard, and segments of earlier lives go in the
//! order of their IDs, before any of this life, and none before every shard has written anew what it
//! needs of them. See [`Space::take_freed`] and [`Space::await_carrying_over`].

mod buffers;
mod directory;
mod disk;
mod footer;
mod format;
mod handoff;
mod header_cache;
mod inspection;
mod planted;
mod reader;
mod recovery;
mod scan;
mod simulated;
mod space;
mod unfinished;
mod volume;
mod writer;

pub use buffers::{Buffers, Lent};
pub use directory::{DirLock, DirectoryError, StoreIdentity};
pub use disk::{Disk, DiskFile, ReadOnlyDisk, RealDisk, RealFile};
pub use handoff::{Commit, Moved};
pub use inspection::{DAMAGES_TOLD, Damage, DirFacts, RecordCounts, SegmentFacts, inspect};
pub use planted::PlantedBug;
pub use reader::{GAP_BYTES_MAX, ReadError, StoredFragment, StoredScope};
pub use recovery::{Recovered, RecoveryReport, make_durable, recover};
pub use simulated::{Death, SimulatedDisk, SimulatedFile};
pub use space::{Space, SpaceConfig};
pub use unfinished::{Footed, Sealed, Taken, Unfinished};
pub use volume::{DiskOp, SegmentFooter, SyncFailure, Volume};
pub use writer::Writer;
