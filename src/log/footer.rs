//! What stands at the end of a sealed segment: the segment's records without its spans, so that a start
//! need not read all of it; and the trailer that says where.
//!
//! A trailer also says that everything before it was synced: it is written only then. So a start may
//! take a footer's word for fragments that it has not read. A segment without one (it is young, its
//! writer was killed, or the footer would have been too long) is read as a whole.

use std::io;

use crate::log::format::{
    self, EXPORTED_FIXED_BYTES, FLAG_RECEIVED, FLAG_ROOT, FRAME_HEADER_BYTES, Kind,
    SEGMENT_HEADER_BYTES,
};
use crate::log::{Commit, DiskFile, Moved, Recovered};
use crate::model::{Decision, Extent, FragmentHash, Moment, SegmentId, TraceId};

/// A sixteenth of a segment, so a shard's memory for the footer of its open one. Fragments are below
/// 1 kB on average then, and reading the segment takes little longer than reading the footer would.
pub(super) const FOOTER_BYTES_MAX: usize = 4 << 20;
/// A FRAGMENT in a footer: kind, offset, length, trace, hash, arrival, spans, bytes of spans, flags.
const ENTRY_BYTES: usize = 58;
const TRAILER_BYTES: usize = FRAME_HEADER_BYTES + 4;

/// The footer of a segment that is being written.
#[derive(Debug, Default)]
pub(super) struct Footer {
    /// Room for the frame's header, then the entries; nothing without any.
    bytes: Vec<u8>,
    is_too_long: bool,
    /// How long the last one was: one that grew by doubling was copied twice over.
    last_len: usize,
}

/// What a footer says of a FRAGMENT.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) extent: Extent,
    pub(super) trace: TraceId,
    pub(super) hash: FragmentHash,
    pub(super) arrival: Moment,
    pub(super) spans: u32,
    pub(super) span_bytes: u32,
    pub(super) has_root: bool,
    pub(super) is_received: bool,
}

impl Footer {
    pub(super) fn fragment(&mut self, entry: &Entry) {
        if !self.has_room(ENTRY_BYTES) {
            return;
        }
        let out = &mut self.bytes;
        out.push(Kind::Fragment as u8);
        out.extend_from_slice(&entry.extent.offset.to_le_bytes());
        out.extend_from_slice(&entry.extent.len.to_le_bytes());
        out.extend_from_slice(entry.trace.as_bytes());
        out.extend_from_slice(&entry.hash.0.to_le_bytes());
        out.extend_from_slice(&entry.arrival.unix_nanos.to_le_bytes());
        out.extend_from_slice(&entry.spans.to_le_bytes());
        out.extend_from_slice(&entry.span_bytes.to_le_bytes());
        out.push(format::fragment_flags(entry.has_root, entry.is_received));
    }

    /// A record of another kind, as it is.
    pub(super) fn record(&mut self, kind: Kind, payload: &[u8]) {
        let Ok(len) = u32::try_from(payload.len()) else {
            self.is_too_long = true;
            return;
        };
        if !self.has_room(5 + payload.len()) {
            return;
        }
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(payload);
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        if self.bytes.len().max(FRAME_HEADER_BYTES) + bytes > FRAME_HEADER_BYTES + FOOTER_BYTES_MAX
        {
            self.is_too_long = true;
        }
        if self.is_too_long {
            self.bytes = Vec::new();
        } else if self.bytes.is_empty() {
            self.bytes.reserve(self.last_len);
            self.bytes.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        }
        !self.is_too_long
    }

    /// What [`close`] makes a FOOTER of; `None` if the entries were too many. The next segment's footer begins.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        let Self {
            bytes, is_too_long, ..
        } = std::mem::take(self);
        self.last_len = bytes.len();
        (!is_too_long).then_some(bytes)
    }
}

/// A FOOTER for the end of a segment that was sealed at `len`, of what [`Footer::take`] gave.
pub(super) fn close(segment: SegmentId, len: u32, mut frame: Vec<u8>) -> Vec<u8> {
    if frame.is_empty() {
        frame.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    }
    format::close_frame(&mut frame, segment, len, Kind::Footer);
    frame
}

/// The TRAILER of a segment whose bytes before `at` are synced. `footer`: where its FOOTER is, or 0.
pub(super) fn encode_trailer(segment: SegmentId, at: u32, footer: u32) -> [u8; TRAILER_BYTES] {
    let mut frame = [0; TRAILER_BYTES];
    frame[FRAME_HEADER_BYTES..].copy_from_slice(&footer.to_le_bytes());
    format::close_frame(&mut frame, segment, at, Kind::Trailer);
    frame
}

/// What the footer of a segment says, in the order it was written. `None`: it has none that checks.
pub(super) fn read<F: DiskFile>(
    file: &F,
    segment: SegmentId,
    len: u64,
) -> io::Result<Option<Vec<Recovered>>> {
    let Some(at) = len
        .checked_sub(TRAILER_BYTES as u64)
        .and_then(|at| u32::try_from(at).ok())
    else {
        return Ok(None);
    };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_at(u64::from(at), &mut trailer)?;
    let is_trailer = format::check_frame(&trailer, segment, at) == Ok(Kind::Trailer as u8);
    let footer = trailer.last_chunk().map_or(0, |it| u32::from_le_bytes(*it));
    if !is_trailer || (footer as usize) < SEGMENT_HEADER_BYTES || footer > at {
        return Ok(None);
    }
    let frame_len = (at - footer) as usize;
    if frame_len > FRAME_HEADER_BYTES + FOOTER_BYTES_MAX {
        return Ok(None);
    }
    let mut frame = vec![0; frame_len];
    file.read_at(u64::from(footer), &mut frame)?;
    if format::check_frame(&frame, segment, footer) != Ok(Kind::Footer as u8) {
        return Ok(None);
    }
    Ok(decode(&frame[FRAME_HEADER_BYTES..], segment))
}

fn decode(mut entries: &[u8], segment: SegmentId) -> Option<Vec<Recovered>> {
    let mut records = Vec::with_capacity(entries.len() / ENTRY_BYTES + 1);
    while let Some((kind, rest)) = entries.split_first() {
        let kind = Kind::from_byte(*kind)?;
        if kind == Kind::Fragment {
            let (entry, rest) = rest.split_first_chunk::<{ ENTRY_BYTES - 1 }>()?;
            records.push(decode_fragment(entry, segment)?);
            entries = rest;
            continue;
        }
        let (len, rest) = rest.split_first_chunk()?;
        let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        records.push(decode_control(kind, payload)?);
        entries = rest;
    }
    Some(records)
}

fn decode_fragment(entry: &[u8; ENTRY_BYTES - 1], segment: SegmentId) -> Option<Recovered> {
    let word = |at: usize| -> Option<u32> {
        let bytes = entry.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let arrival = u64::from_le_bytes(*entry.get(40..)?.first_chunk()?);
    Some(Recovered::Fragment {
        extent: Extent {
            segment,
            offset: word(0)?,
            len: word(4)?,
        },
        trace: TraceId::new(*entry.get(8..)?.first_chunk()?)?,
        hash: FragmentHash(u128::from_le_bytes(*entry.get(24..)?.first_chunk()?)),
        arrival: Moment {
            unix_nanos: arrival,
        },
        spans: word(48)?,
        span_bytes: word(52)?,
        has_root: entry[56] & FLAG_ROOT != 0,
        is_received: entry[56] & FLAG_RECEIVED != 0,
    })
}

/// A record that is nothing but its payload.
pub(super) fn decode_control(kind: Kind, payload: &[u8]) -> Option<Recovered> {
    match kind {
        Kind::Verdict => Decision::decode(payload).map(Recovered::Verdict),
        Kind::Exported if payload.len() >= EXPORTED_FIXED_BYTES => format::decode_exported(payload)
            .map(|(trace, fragments)| Recovered::Exported { trace, fragments }),
        Kind::Moved => Moved::decode(payload).map(Recovered::Moved),
        Kind::Commit => Commit::decode(payload).map(Recovered::Commit),
        Kind::Checkpoint => format::decode_checkpoint(payload).map(Recovered::Checkpoint),
        Kind::Gone => format::decode_gone(payload)
            .map(|(segment, traces)| Recovered::Gone { segment, traces }),
        Kind::Exported | Kind::Fragment | Kind::Header | Kind::Footer | Kind::Trailer => None,
    }
}
