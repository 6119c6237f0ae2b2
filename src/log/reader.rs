//! Fragments as they lie in the log, read back by extent. Every frame and every header that is
//! handed out was checked.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::log::format::{
    self, FRAME_HEADER_BYTES, FragmentPayload, HEADER_HASH_BYTES, Kind, SEGMENT_HEADER_BYTES,
};
use crate::log::volume::OpenSegment;
use crate::log::{Buffers, Disk, DiskFile, Volume};
use crate::model::{Extent, SegmentId};
use crate::model::{FragmentHash, Moment, TraceId};

/// Frames at most this far apart are read together. Copying 4 KiB that is in no CPU cache costs about
/// as much as another system call; with 16 KiB exporters copied every byte twice.
pub const GAP_BYTES_MAX: u64 = 4 << 10;
/// One read, unless a single frame is longer. The spans handed out pin the read's buffer.
pub(super) const READ_BYTES_MAX: u64 = 4 << 20;
/// Most headers are shorter; a longer one takes a second read.
const HEADER_READ_BYTES: u64 = 4 << 10;

/// A fragment read back; its bytes are checked.
#[derive(Debug, Clone)]
pub struct StoredFragment {
    pub extent: Extent,
    pub trace: TraceId,
    pub hash: FragmentHash,
    pub arrival: Moment,
    pub previous: Option<Extent>,
    pub spans: u32,
    pub has_root: bool,
    /// From another member.
    pub is_received: bool,
    pub resource_header: Bytes,
    pub scopes: Vec<StoredScope>,
}

#[derive(Debug, Clone)]
pub struct StoredScope {
    pub header: Bytes,
    /// `(12 len span)*`
    pub spans: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("segment {segment:?} is damaged at {offset}: {what}")]
    Damaged {
        segment: SegmentId,
        offset: u32,
        what: &'static str,
    },
    #[error("cannot read segment {segment:?}: {source}")]
    Io {
        segment: SegmentId,
        source: io::Error,
    },
    #[error("cannot list the data dir: {source}")]
    List { source: io::Error },
    #[error(
        "segment {segment:?} has format version {found}, written by a newer tailring; this one reads version {known}: start the newer one again, or give another --data-dir"
    )]
    Version {
        segment: SegmentId,
        found: u32,
        known: u32,
    },
}

impl<D: Disk> Volume<D> {
    /// Reads fragments, given in any order; one read for neighbours. The answer is in the order
    /// of the question.
    pub fn read(&self, extents: &[Extent]) -> Result<Vec<StoredFragment>, ReadError> {
        let mut order: Vec<usize> = (0..extents.len()).collect();
        order.sort_unstable_by_key(|index| extents[*index]);
        let mut found: Vec<Option<StoredFragment>> = vec![None; extents.len()];
        // All runs go into one buffer: a message is made of some twenty of them, and twenty buffers
        // would be more than are kept to be lent again.
        let mut runs = Vec::new();
        let mut total = 0;
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let first = extents[*first];
            let (count, end) = neighbours(first, rest.iter().map(|index| extents[*index]));
            let (run, after) = rest.split_at(count);
            rest = after;
            let open = self.open_to_read(first.segment)?;
            let len = range_len(&open, first, end)?;
            runs.push((open, first, run, total..total + len));
            total += len;
        }
        let mut buffer = self.reads.take(total);
        for (open, first, _, place) in &runs {
            fill(open, *first, &mut buffer.bytes_mut()[place.clone()])?;
        }
        let bytes = buffer.freeze();
        for (open, first, run, place) in &runs {
            for index in *run {
                let extent = extents[*index];
                let from = place.start + (extent.offset - first.offset) as usize;
                let frame = bytes.slice(from..from + extent.len as usize);
                found[*index] = Some(self.fragment(open, extent, &frame)?);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn open_to_read(&self, segment: SegmentId) -> Result<Arc<OpenSegment<D::File>>, ReadError> {
        self.segment(segment)
            .map_err(|source| ReadError::Io { segment, source })
    }

    fn fragment(
        &self,
        open: &OpenSegment<D::File>,
        extent: Extent,
        frame: &Bytes,
    ) -> Result<StoredFragment, ReadError> {
        let damaged = |what| ReadError::Damaged {
            segment: extent.segment,
            offset: extent.offset,
            what,
        };
        let kind = format::check_frame(frame, extent.segment, extent.offset).map_err(damaged)?;
        if Kind::from_byte(kind) != Some(Kind::Fragment) {
            return Err(damaged("it is not a fragment"));
        }
        let payload = frame.slice(FRAME_HEADER_BYTES..);
        let decoded = FragmentPayload::decode(&payload)
            .ok_or_else(|| damaged("the fragment's parts do not add up"))?;
        let record = decoded.record;
        let resource_header = self.header(open, extent, record.resource)?;
        let scopes = decoded.scopes().map(|(header, spans)| {
            Ok(StoredScope {
                header: self.header(open, extent, header)?,
                spans: payload.slice(spans),
            })
        });
        Ok(StoredFragment {
            extent,
            trace: record.trace,
            hash: record.hash,
            arrival: record.arrival,
            previous: record.previous,
            spans: record.spans,
            has_root: record.has_root,
            is_received: record.is_received,
            resource_header,
            scopes: scopes.collect::<Result<_, _>>()?,
        })
    }

    /// The header that a fragment refers to.
    fn header(
        &self,
        open: &OpenSegment<D::File>,
        referrer: Extent,
        offset: u32,
    ) -> Result<Bytes, ReadError> {
        if offset == 0 {
            return Ok(Bytes::new());
        }
        let segment = referrer.segment;
        if let Some(known) = self.headers().get(segment, offset) {
            return Ok(known);
        }
        let damaged = |what| ReadError::Damaged {
            segment,
            offset,
            what,
        };
        // A header lies before every fragment that refers to it, whole.
        let room = u64::from(referrer.offset).saturating_sub(u64::from(offset));
        if (offset as usize) < SEGMENT_HEADER_BYTES || room < FRAME_HEADER_BYTES as u64 {
            return Err(damaged("no header can lie here"));
        }
        let at = |len: u64| Extent {
            segment,
            offset,
            // At most the distance of two offsets.
            len: u32::try_from(len).unwrap_or(u32::MAX),
        };
        let start = at(room.min(HEADER_READ_BYTES));
        let mut bytes = read_range(&self.reads, open, start, start.end())?;
        let (len, _) = format::peek_frame(&bytes).ok_or_else(|| damaged("the header is cut"))?;
        if len > room {
            return Err(damaged("the header is longer than there is room for it"));
        }
        if len > bytes.len() as u64 {
            bytes = read_range(&self.reads, open, at(len), at(len).end())?;
        }
        let frame = bytes
            .get(..len as usize)
            .ok_or_else(|| damaged("the header is cut"))?;
        let kind = format::check_frame(frame, segment, offset).map_err(damaged)?;
        if Kind::from_byte(kind) != Some(Kind::Header) {
            return Err(damaged("it is not a header"));
        }
        let payload = &frame[FRAME_HEADER_BYTES..];
        let hash =
            format::decode_header_hash(payload).ok_or_else(|| damaged("the header is cut"))?;
        let content = &payload[HEADER_HASH_BYTES..];
        Ok(self.headers().insert(segment, offset, hash, content))
    }
}

/// How many of `sorted`, which begins with `first`, are worth one read, and where it ends.
fn neighbours(first: Extent, sorted: impl Iterator<Item = Extent>) -> (usize, u64) {
    let mut end = first.end();
    let mut count = 0;
    for extent in sorted {
        let is_near = extent.segment == first.segment
            && u64::from(extent.offset) <= end + GAP_BYTES_MAX
            && extent.end().max(end) - u64::from(first.offset) <= READ_BYTES_MAX;
        if count > 0 && !is_near {
            break;
        }
        end = end.max(extent.end());
        count += 1;
    }
    (count, end)
}

fn read_range<F: DiskFile>(
    buffers: &Arc<Buffers>,
    open: &OpenSegment<F>,
    first: Extent,
    end: u64,
) -> Result<Bytes, ReadError> {
    let mut bytes = buffers.take(range_len(open, first, end)?);
    fill(open, first, bytes.bytes_mut())?;
    Ok(bytes.freeze())
}

/// Before the allocation: a wrong extent must not ask for gigabytes.
fn range_len<F: DiskFile>(
    open: &OpenSegment<F>,
    first: Extent,
    end: u64,
) -> Result<usize, ReadError> {
    let segment = first.segment;
    let len = open
        .len(end)
        .map_err(|source| ReadError::Io { segment, source })?;
    if end > len {
        return Err(ReadError::Damaged {
            segment,
            offset: first.offset,
            what: "the segment ends before the frame does",
        });
    }
    Ok((end - u64::from(first.offset)) as usize)
}

fn fill<F: DiskFile>(
    open: &OpenSegment<F>,
    first: Extent,
    bytes: &mut [u8],
) -> Result<(), ReadError> {
    open.file
        .read_at(u64::from(first.offset), bytes)
        .map_err(|source| ReadError::Io {
            segment: first.segment,
            source,
        })
}
