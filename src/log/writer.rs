//! Turns records into frames at known places. One a shard; no I/O: what the disk must do is taken
//! as [`DiskOp`]s. Who may append, and when, is the caller's to say.

mod compaction;

use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::log::footer::{Entry, Footer};
use crate::log::format::{
    self, FORMAT_VERSION, FRAME_HEADER_BYTES, FragmentRecord, Kind, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use crate::log::space::Progress;
use crate::log::{Commit, DiskOp, Frames, GoneTrace, Moved, SegmentFooter, Space, StoredFragment};
use crate::model::{Decision, Extent, SegmentId};
use crate::model::{FragmentHash, Moment, TraceId};
use crate::wire::{FragmentView, HeaderView};

/// Headers remembered for the current segment: 640 KiB a shard. One more, and all are forgotten
/// and written again when they are met: a sender of endless new headers costs others one
/// more copy in 16,384.
const HEADERS_MAX: usize = 16_384;
/// A longer list becomes several records, each below 1 MiB: no control record needs a segment of
/// its own, and recovery reads it into a small buffer.
const HASHES_PER_RECORD: usize = 1 << 16;
const DECISIONS_PER_RECORD: usize = 1 << 14;
/// Buffers kept for the next takes, and the largest worth keeping.
const SPARE_BUFFERS: usize = 4;
const SPARE_BUFFER_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
pub struct Writer {
    shard: u16,
    space: Arc<Space>,
    hash_key: u64,
    current: Option<Current>,
    /// What the current segment has got and the disk not.
    buffer: Vec<u8>,
    /// What comes before the buffer.
    ops: Vec<DiskOp>,
    ops_bytes: usize,
    /// Segments that filled up since the last take.
    filled: Vec<Current>,
    headers: HashTable<KnownHeader>,
    spare: Vec<Vec<u8>>,
    /// The bytes of one header.
    scratch: Vec<u8>,
    /// Header references of one fragment's scopes.
    scopes: Vec<u32>,
    /// Of the current segment.
    footer: Footer,
    latest: Moment,
}

/// The segment that is appended to.
#[derive(Debug, Clone, Copy)]
struct Current {
    segment: SegmentId,
    capacity: u64,
    /// Where the buffer begins.
    start: u32,
    /// Length that was taken for the disk; 0 means that not even its creation was.
    taken: u32,
    /// Appended since the last take.
    fragments: Frames,
    occupied: u64,
}

/// A header of the current segment. Two hashes, one of them keyed in this process: a tenant that
/// crafts a collision of the public one does not get another tenant's resource.
#[derive(Debug, Clone, Copy)]
struct KnownHeader {
    hash: u128,
    keyed: u64,
    offset: u32,
}

enum Record<'a> {
    Fragment {
        view: &'a FragmentView<'a>,
        arrival: Moment,
        previous: Option<Extent>,
        is_received: bool,
    },
    Verdict(&'a Decision),
    Exported {
        trace: TraceId,
        fragments: &'a [FragmentHash],
    },
    Moved(&'a Moved),
    Commit(&'a Commit),
    Checkpoint(&'a [Decision]),
    Copy(&'a StoredFragment),
    Gone(SegmentId, &'a [GoneTrace]),
}

impl Writer {
    /// `hash_key` is random in each process: header lookups must not be steered from outside.
    pub fn new(shard: u16, space: Arc<Space>, hash_key: u64) -> Self {
        Self {
            shard,
            space,
            hash_key,
            current: None,
            buffer: Vec::new(),
            ops: Vec::new(),
            ops_bytes: 0,
            filled: Vec::new(),
            headers: HashTable::new(),
            spare: Vec::new(),
            scratch: Vec::new(),
            scopes: Vec::new(),
            footer: Footer::default(),
            latest: Moment::ZERO,
        }
    }

    /// Appends a fragment; its headers only if this segment has not got them. The frame counts as
    /// live until it is given to [`Space::release`].
    pub fn fragment(
        &mut self,
        fragment: &FragmentView<'_>,
        arrival: Moment,
        previous: Option<Extent>,
    ) -> Extent {
        self.latest = self.latest.max(arrival);
        self.any_fragment(&Record::Fragment {
            view: fragment,
            arrival,
            previous,
            is_received: false,
        })
    }

    /// Appends a fragment that another member hands over. A start drops it unless [`Writer::commit`] names
    /// it behind it.
    pub fn received(
        &mut self,
        fragment: &FragmentView<'_>,
        arrival: Moment,
        previous: Option<Extent>,
    ) -> Extent {
        self.any_fragment(&Record::Fragment {
            view: fragment,
            arrival,
            previous,
            is_received: true,
        })
    }

    fn any_fragment(&mut self, record: &Record<'_>) -> Extent {
        let extent = self.append(record);
        if let Some(current) = &mut self.current {
            current.fragments.add(extent);
        }
        extent
    }

    pub fn verdict(&mut self, decision: &Decision) -> Extent {
        self.latest = self.latest.max(decision.decided_at);
        self.append(&Record::Verdict(decision))
    }

    /// The backend has these fragments of the trace. A very long list becomes several records, as in
    /// [`Writer::checkpoint`].
    pub fn exported(&mut self, trace: TraceId, fragments: &[FragmentHash]) -> Extent {
        let (first, rest) = fragments.split_at(fragments.len().min(HASHES_PER_RECORD));
        let extent = self.append(&Record::Exported {
            trace,
            fragments: first,
        });
        for fragments in rest.chunks(HASHES_PER_RECORD) {
            self.append(&Record::Exported { trace, fragments });
        }
        extent
    }

    /// All of a generation that another member hands over was appended.
    pub fn commit(&mut self, commit: &Commit) -> Extent {
        self.append(&Record::Commit(commit))
    }

    /// Another member has a generation.
    pub fn moved(&mut self, moved: &Moved) -> Extent {
        self.append(&Record::Moved(moved))
    }

    /// Decisions that outlive the segments they were made in. A very long list becomes several
    /// records, of which the first one's place is returned: the others may lie in a younger
    /// segment, and whoever carries them forward must begin before the first one goes, and let the first one go
    /// before the others.
    pub fn checkpoint(&mut self, decisions: &[Decision]) -> Extent {
        let (first, rest) = decisions.split_at(decisions.len().min(DECISIONS_PER_RECORD));
        let extent = self.append(&Record::Checkpoint(first));
        for decisions in rest.chunks(DECISIONS_PER_RECORD) {
            self.append(&Record::Checkpoint(decisions));
        }
        extent
    }

    /// When the youngest of what was recorded happened.
    pub fn latest(&self) -> Moment {
        self.latest
    }

    /// Bytes encoded and not yet taken.
    pub fn pending_bytes(&self) -> usize {
        self.ops_bytes + self.buffer.len()
    }

    /// The segment that the last record went to; `None` before the first one, and after
    /// [`Writer::seal_current`] and [`Writer::abandon`].
    pub fn segment(&self) -> Option<SegmentId> {
        self.current.map(|current| current.segment)
    }

    /// What the disk must do, in order: everything since the last call.
    pub fn take(&mut self) -> Vec<DiskOp> {
        self.push_write();
        let mut progress = Vec::with_capacity(self.filled.len() + 1);
        for full in self.filled.drain(..) {
            progress.push(Progress {
                segment: full.segment,
                fragments: full.fragments,
                sealed_at: Some(full.start),
            });
        }
        if let Some(current) = &mut self.current {
            current.taken = current.start;
            progress.push(Progress {
                segment: current.segment,
                fragments: std::mem::take(&mut current.fragments),
                sealed_at: None,
            });
        }
        if !progress.is_empty() {
            self.space.settle(&progress);
        }
        self.ops_bytes = 0;
        std::mem::take(&mut self.ops)
    }

    /// A write failed: what is pending is forgotten, its frames are not live, and the next record
    /// opens a new segment. The current segment is sealed; a [`Volume`](crate::log::Volume) cuts
    /// it where its last sound write ended.
    ///
    /// To be called when the failed batch names [`Writer::segment`], or when all that is pending
    /// is to be forgotten. Frames of batches that were taken and failed are the caller's to
    /// [`Space::release`]; those that were pending may be among them and are ignored.
    pub fn abandon(&mut self) {
        self.ops.clear();
        self.ops_bytes = 0;
        self.buffer.clear();
        self.headers.clear();
        self.footer.take();
        let filled = std::mem::take(&mut self.filled);
        for segment in filled.iter().chain(self.current.take().iter()) {
            self.space.abandon(segment.segment, segment.taken);
            if segment.taken > 0 {
                self.ops.push(DiskOp::Seal {
                    segment: segment.segment,
                    len: segment.taken,
                    footer: SegmentFooter::None,
                });
            }
        }
    }

    /// Seals the current segment, for a clean shutdown: the next start finds its end where its
    /// length says.
    pub fn seal_current(&mut self) {
        self.roll();
    }

    /// Gives back a written buffer, so that the next take allocates nothing.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_BUFFER_BYTES_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Encodes where the current segment ends, and once more in a new one if that made it too long:
    /// the checksum depends on the place.
    fn append(&mut self, record: &Record<'_>) -> Extent {
        let mut current = self.current.unwrap_or_else(|| self.open());
        let mark = self.buffer.len();
        let mut is_first = self.end(&current) <= SEGMENT_HEADER_BYTES as u64;
        let mut extent = self.encode(&current, record);
        if self.end(&current) > current.capacity && !is_first {
            self.buffer.truncate(mark);
            self.current = Some(current);
            self.roll();
            current = self.open();
            extent = self.encode(&current, record);
            is_first = true;
        }
        let end = self.end(&current);
        if is_first {
            // A giant record, and a quarter for others that refer to its headers: alone in their
            // segments, a thousand one-span traces under a 64 MiB resource would fill 64 GiB.
            let quarter = u64::from(self.space.config().segment_bytes) / 4;
            current.capacity = current.capacity.max(end + quarter);
        }
        let occupied = self.space.occupied_bytes(end);
        if occupied > current.occupied {
            self.space.occupy(current.segment, occupied);
            current.occupied = occupied;
        }
        self.current = Some(current);
        self.note_in_footer(record, extent);
        extent
    }

    fn note_in_footer(&mut self, record: &Record<'_>, extent: Extent) {
        let payload_len = extent.len as usize - FRAME_HEADER_BYTES;
        let payload = &self.buffer[self.buffer.len() - payload_len..];
        let kind = match record {
            Record::Fragment {
                view,
                arrival,
                is_received,
                ..
            } => {
                let fragment = view.fragment;
                self.footer.fragment(&Entry {
                    extent,
                    trace: fragment.trace,
                    hash: fragment.hash,
                    arrival: *arrival,
                    spans: fragment.spans,
                    span_bytes: self.span_bytes(payload_len),
                    has_root: fragment.has_root,
                    is_received: *is_received,
                });
                return;
            }
            Record::Copy(fragment) => {
                self.footer.fragment(&Entry {
                    extent,
                    trace: fragment.trace,
                    hash: fragment.hash,
                    arrival: fragment.arrival,
                    spans: fragment.spans,
                    span_bytes: self.span_bytes(payload_len),
                    has_root: fragment.has_root,
                    // Only what is held is copied, and what is held was committed.
                    is_received: false,
                });
                return;
            }
            Record::Verdict(_) => Kind::Verdict,
            Record::Exported { .. } => Kind::Exported,
            Record::Moved(_) => Kind::Moved,
            Record::Commit(_) => Kind::Commit,
            Record::Checkpoint(_) => Kind::Checkpoint,
            Record::Gone(..) => Kind::Gone,
        };
        self.footer.record(kind, payload);
    }

    /// Of the fragment that was encoded last.
    fn span_bytes(&self, payload_len: usize) -> u32 {
        let table = self.scopes.len() * format::SCOPE_ENTRY_BYTES;
        small(payload_len - format::FRAGMENT_FIXED_BYTES - table)
    }

    fn encode(&mut self, current: &Current, record: &Record<'_>) -> Extent {
        match *record {
            Record::Fragment {
                view,
                arrival,
                previous,
                is_received,
            } => self.encode_fragment(current, view, arrival, previous, is_received),
            Record::Verdict(decision) => {
                self.frame(current, Kind::Verdict, |out| decision.encode(out))
            }
            Record::Exported { trace, fragments } => self.frame(current, Kind::Exported, |out| {
                format::encode_exported(trace, fragments, out);
            }),
            Record::Moved(moved) => self.frame(current, Kind::Moved, |out| moved.encode(out)),
            Record::Commit(commit) => self.frame(current, Kind::Commit, |out| commit.encode(out)),
            Record::Checkpoint(decisions) => self.frame(current, Kind::Checkpoint, |out| {
                format::encode_checkpoint(decisions, out);
            }),
            Record::Copy(fragment) => self.encode_copy(current, fragment),
            Record::Gone(segment, gone) => self.frame(current, Kind::Gone, |out| {
                format::encode_gone(segment, gone, out);
            }),
        }
    }

    fn encode_fragment(
        &mut self,
        current: &Current,
        view: &FragmentView<'_>,
        arrival: Moment,
        previous: Option<Extent>,
        is_received: bool,
    ) -> Extent {
        let resource = self.header(current, view.resource());
        let mut scopes = std::mem::take(&mut self.scopes);
        scopes.clear();
        for scope in view.scopes() {
            scopes.push(self.header(current, scope.header));
        }
        let record = FragmentRecord {
            trace: view.fragment.trace,
            hash: view.fragment.hash,
            arrival,
            previous,
            spans: view.fragment.spans,
            has_root: view.fragment.has_root,
            is_received,
            resource,
            scopes: small(scopes.len()),
        };
        let extent = self.frame(current, Kind::Fragment, |out| {
            record.encode(out);
            let mut entry = out.len();
            for header in &scopes {
                out.extend_from_slice(&header.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
            }
            for scope in view.scopes() {
                let start = out.len();
                scope.write_spans_to(out);
                let len = small(out.len() - start);
                out[entry + 4..entry + 8].copy_from_slice(&len.to_le_bytes());
                entry += format::SCOPE_ENTRY_BYTES;
            }
        });
        self.scopes = scopes;
        extent
    }

    /// Where this segment has the header; writes it if it has not. 0 for an empty one.
    fn header(&mut self, current: &Current, header: HeaderView<'_>) -> u32 {
        if header.is_empty() {
            return 0;
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        header.write_to(&mut bytes);
        let offset = self.place_header(current, header.hash, &bytes);
        self.scratch = bytes;
        offset
    }

    fn place_header(&mut self, current: &Current, hash: u128, bytes: &[u8]) -> u32 {
        let keyed = xxh3_64_with_seed(bytes, self.hash_key);
        let known = self
            .headers
            .find(keyed, |known| known.keyed == keyed && known.hash == hash)
            .map(|known| known.offset);
        known.unwrap_or_else(|| {
            let extent = self.frame(current, Kind::Header, |out| {
                out.extend_from_slice(&hash.to_le_bytes());
                out.extend_from_slice(bytes);
            });
            if self.headers.len() >= HEADERS_MAX {
                self.headers.clear();
            }
            let known = KnownHeader {
                hash,
                keyed,
                offset: extent.offset,
            };
            self.headers
                .insert_unique(keyed, known, |known| known.keyed);
            extent.offset
        })
    }

    fn frame(
        &mut self,
        current: &Current,
        kind: Kind,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> Extent {
        let start = self.buffer.len();
        let offset = small(current.start as usize + start);
        self.buffer.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        payload(&mut self.buffer);
        let frame = &mut self.buffer[start..];
        format::close_frame(frame, current.segment, offset, kind);
        Extent {
            segment: current.segment,
            offset,
            len: small(frame.len()),
        }
    }

    fn end(&self, current: &Current) -> u64 {
        u64::from(current.start) + self.buffer.len() as u64
    }

    /// Asks for a new segment and begins it. The buffer is empty.
    fn open(&mut self) -> Current {
        let (segment, life) = self.space.open(self.shard);
        self.headers.clear();
        self.ops.push(DiskOp::Create {
            segment,
            shard: self.shard,
        });
        let header = SegmentHeader {
            version: FORMAT_VERSION,
            segment,
            shard: self.shard,
            life,
            created: self.latest,
        };
        self.buffer.extend_from_slice(&header.encode());
        Current {
            segment,
            capacity: u64::from(self.space.config().segment_bytes),
            start: 0,
            taken: 0,
            fragments: Frames::default(),
            occupied: 0,
        }
    }

    /// The current segment is full: the disk gets what is left of it, and no more.
    fn roll(&mut self) {
        self.push_write();
        if let Some(current) = self.current.take() {
            let footer = self.footer.take();
            self.ops.push(DiskOp::Seal {
                segment: current.segment,
                len: current.start,
                footer: footer.map_or(SegmentFooter::TooLong, SegmentFooter::Entries),
            });
            self.filled.push(current);
        }
    }

    fn push_write(&mut self) {
        let Some(current) = &mut self.current else {
            return;
        };
        if self.buffer.is_empty() {
            return;
        }
        let next = self.spare.pop().unwrap_or_default();
        let bytes = std::mem::replace(&mut self.buffer, next);
        let offset = current.start;
        current.start = small(offset as usize + bytes.len());
        self.ops_bytes += bytes.len();
        self.ops.push(DiskOp::Write {
            segment: current.segment,
            offset,
            bytes,
        });
    }
}

/// Lengths in a segment: far below 4 GiB, because a record is bounded by the largest request and
/// the segment by the record. Should both be configured beyond that, the frame does not check.
fn small(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
