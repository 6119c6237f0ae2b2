//! Segments' headers, frames and records as bytes. The format stands at the top of the folder;
//! nothing here reads or writes a file.

use std::ops::Range;

use crate::model::{
    Decision, Extent, FragmentHash, Moment, SegmentId, Threshold, TraceId, Verdict, VerdictId,
};

/// What a frame holds. Numbers are for ever; 7 is taken (see the top of the folder).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Fragment = 1,
    Header = 2,
    Verdict = 3,
    Exported = 4,
    Moved = 5,
    Commit = 6,
    Checkpoint = 8,
    Footer = 9,
    Trailer = 10,
}

pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
pub(super) const FRAME_HEADER_BYTES: usize = 9;
/// HEADER payload before the header's bytes.
pub(super) const HEADER_HASH_BYTES: usize = 16;
/// FRAGMENT payload before the table of scopes.
pub(super) const FRAGMENT_FIXED_BYTES: usize = 65;
pub(super) const SCOPE_ENTRY_BYTES: usize = 8;
pub(super) const DECISION_BYTES: usize = 47;
/// EXPORTED payload before the hashes.
pub(super) const EXPORTED_FIXED_BYTES: usize = 20;
/// MOVED and COMMIT payloads before the hashes.
pub(super) const MOVED_FIXED_BYTES: usize = 36;
pub(super) const COMMIT_FIXED_BYTES: usize = 52;
pub(super) const CHECKPOINT_FIXED_BYTES: usize = 4;

pub(super) const MAGIC: [u8; 8] = *b"TAILRLOG";
/// Of a FRAGMENT, here and in a footer.
pub(super) const FLAG_ROOT: u8 = 1;
pub(super) const FLAG_RECEIVED: u8 = 2;
const NO_POLICY: u16 = u16::MAX;
const NO_THRESHOLD: u64 = u64::MAX;

impl SegmentId {
    pub(super) fn file_name(self) -> String {
        format!("{:010}.seg", self.0)
    }

    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".seg")?;
        (digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| digits.parse().ok())
            .flatten()
            .map(Self)
    }
}

impl Extent {
    pub(super) fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Fragment),
            2 => Some(Self::Header),
            3 => Some(Self::Verdict),
            4 => Some(Self::Exported),
            5 => Some(Self::Moved),
            6 => Some(Self::Commit),
            8 => Some(Self::Checkpoint),
            9 => Some(Self::Footer),
            10 => Some(Self::Trailer),
            _ => None,
        }
    }
}

/// The first bytes of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) version: u32,
    pub(super) segment: SegmentId,
    pub(super) shard: u16,
    pub(super) life: u64,
    pub(super) created: Moment,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.shard.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.life.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.created.unix_nanos.to_le_bytes());
        let crc = Self::crc(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if these are not the first bytes of a segment, of whatever version.
    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields::new(&bytes[8..]);
        let version = fields.u32()?;
        let segment = SegmentId(fields.u32()?);
        let shard = fields.u16()?;
        fields.take::<2>()?;
        let crc = fields.u32()?;
        let life = fields.u64()?;
        let created = Moment {
            unix_nanos: fields.u64()?,
        };
        (bytes[..8] == MAGIC && crc == Self::crc(bytes)).then_some(Self {
            version,
            segment,
            shard,
            life,
            created,
        })
    }

    fn crc(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..])
    }
}

fn frame_crc(segment: SegmentId, offset: u32, len: u32, kind: u8, payload: &[u8]) -> u32 {
    let mut seed = [0; 13];
    seed[..4].copy_from_slice(&segment.0.to_le_bytes());
    seed[4..8].copy_from_slice(&offset.to_le_bytes());
    seed[8..12].copy_from_slice(&len.to_le_bytes());
    seed[12] = kind;
    crc32c::crc32c_append(crc32c::crc32c(&seed), payload)
}

/// Fills in the header of a frame whose payload is complete: `frame` begins with
/// [`FRAME_HEADER_BYTES`] of anything.
pub(super) fn close_frame(frame: &mut [u8], segment: SegmentId, offset: u32, kind: Kind) {
    let (header, payload) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let crc = frame_crc(segment, offset, len, kind as u8, payload);
    header[..4].copy_from_slice(&len.to_le_bytes());
    header[4] = kind as u8;
    header[5..].copy_from_slice(&crc.to_le_bytes());
}

/// The length of the whole frame and its kind, unchecked. `None` if fewer than
/// [`FRAME_HEADER_BYTES`] are there.
pub(super) fn peek_frame(bytes: &[u8]) -> Option<(u64, u8)> {
    let mut fields = Fields::new(bytes);
    let len = fields.u32()?;
    let kind = fields.take::<1>()?[0];
    fields.u32()?;
    Some((FRAME_HEADER_BYTES as u64 + u64::from(len), kind))
}

/// Checks a frame that is exactly `frame`; gives its kind.
pub(super) fn check_frame(
    frame: &[u8],
    segment: SegmentId,
    offset: u32,
) -> Result<u8, &'static str> {
    let (len, kind) = peek_frame(frame).ok_or("the frame is cut short")?;
    if len != frame.len() as u64 {
        return Err("the frame has another length than the index says");
    }
    let stored = Fields::new(&frame[5..]).u32();
    let payload = &frame[FRAME_HEADER_BYTES..];
    let len = u32::try_from(payload.len()).map_err(|_| "the frame is too long")?;
    if stored != Some(frame_crc(segment, offset, len, kind, payload)) {
        return Err("the checksum is wrong");
    }
    Ok(kind)
}

/// FRAGMENT, without the bytes of headers and spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FragmentRecord {
    pub(super) trace: TraceId,
    pub(super) hash: FragmentHash,
    pub(super) arrival: Moment,
    pub(super) previous: Option<Extent>,
    pub(super) spans: u32,
    pub(super) has_root: bool,
    /// From another member: held only if a COMMIT names it.
    pub(super) is_received: bool,
    /// Offset of the HEADER frame in the same segment; 0 for the empty header.
    pub(super) resource: u32,
    pub(super) scopes: u32,
}

impl FragmentRecord {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.trace.as_bytes());
        out.extend_from_slice(&self.hash.0.to_le_bytes());
        out.extend_from_slice(&self.arrival.unix_nanos.to_le_bytes());
        let (segment, offset, len) = self
            .previous
            .map_or((0, 0, 0), |it| (it.segment.0, it.offset, it.len));
        for word in [segment, offset, len, self.spans] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(fragment_flags(self.has_root, self.is_received));
        out.extend_from_slice(&self.resource.to_le_bytes());
        out.extend_from_slice(&self.scopes.to_le_bytes());
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(payload);
        let trace = TraceId::new(fields.take()?)?;
        let hash = FragmentHash(u128::from_le_bytes(fields.take()?));
        let arrival = Moment {
            unix_nanos: fields.u64()?,
        };
        let previous = Extent {
            segment: SegmentId(fields.u32()?),
            offset: fields.u32()?,
            len: fields.u32()?,
        };
        let spans = fields.u32()?;
        let [flags] = fields.take()?;
        Some(Self {
            trace,
            hash,
            arrival,
            previous: (previous.len > 0).then_some(previous),
            spans,
            has_root: flags & FLAG_ROOT != 0,
            is_received: flags & FLAG_RECEIVED != 0,
            resource: fields.u32()?,
            scopes: fields.u32()?,
        })
    }
}

pub(super) fn fragment_flags(has_root: bool, is_received: bool) -> u8 {
    let root = if has_root { FLAG_ROOT } else { 0 };
    let received = if is_received { FLAG_RECEIVED } else { 0 };
    root | received
}

/// A FRAGMENT payload whose parts add up to its length.
#[derive(Debug, Clone, Copy)]
pub(super) struct FragmentPayload<'a> {
    pub(super) record: FragmentRecord,
    table: &'a [u8],
    /// Where the spans of the first scope begin in the payload.
    spans_at: usize,
    pub(super) span_bytes: u32,
}

impl<'a> FragmentPayload<'a> {
    pub(super) fn decode(payload: &'a [u8]) -> Option<Self> {
        let record = FragmentRecord::decode(payload)?;
        let table_bytes = usize::try_from(record.scopes)
            .ok()?
            .checked_mul(SCOPE_ENTRY_BYTES)?;
        let spans_at = FRAGMENT_FIXED_BYTES.checked_add(table_bytes)?;
        let table = payload.get(FRAGMENT_FIXED_BYTES..spans_at)?;
        let span_bytes = payload.len() - spans_at;
        let this = Self {
            record,
            table,
            spans_at,
            span_bytes: u32::try_from(span_bytes).ok()?,
        };
        let mut total = 0_u64;
        for (_, len) in this.table() {
            total += u64::from(len);
        }
        (total == span_bytes as u64).then_some(this)
    }

    /// Of each scope: the offset of its HEADER frame in the segment, and where its spans lie in
    /// the payload.
    pub(super) fn scopes(&self) -> impl Iterator<Item = (u32, Range<usize>)> + use<'a> {
        let mut at = self.spans_at;
        self.table().map(move |(header, len)| {
            let start = at;
            at += len as usize;
            (header, start..at)
        })
    }

    fn table(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        self.table
            .as_chunks::<SCOPE_ENTRY_BYTES>()
            .0
            .iter()
            .map(|entry| {
                let [a, b, c, d, e, f, g, h] = *entry;
                (
                    u32::from_le_bytes([a, b, c, d]),
                    u32::from_le_bytes([e, f, g, h]),
                )
            })
    }
}

/// A HEADER payload: the hash it was stored under, and its bytes' place is after it.
pub(super) fn decode_header_hash(payload: &[u8]) -> Option<u128> {
    Some(u128::from_le_bytes(Fields::new(payload).take()?))
}

impl Decision {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.trace.as_bytes());
        out.push(match self.verdict {
            Verdict::Keep => 1,
            Verdict::Drop => 2,
        });
        out.extend_from_slice(&self.id.0.to_le_bytes());
        let threshold = self.threshold.map_or(NO_THRESHOLD, Threshold::bits);
        out.extend_from_slice(&threshold.to_le_bytes());
        out.extend_from_slice(&self.policy.unwrap_or(NO_POLICY).to_le_bytes());
        out.extend_from_slice(&self.rules_version.to_le_bytes());
        out.extend_from_slice(&self.decided_at.unix_nanos.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let decision = Self {
            trace: TraceId::new(fields.take()?)?,
            verdict: match fields.take::<1>()? {
                [1] => Verdict::Keep,
                [2] => Verdict::Drop,
                _ => return None,
            },
            id: VerdictId(fields.u32()?),
            threshold: match fields.u64()? {
                NO_THRESHOLD => None,
                bits => Some(Threshold::from_bits(bits)?),
            },
            policy: Some(fields.u16()?).filter(|policy| *policy != NO_POLICY),
            rules_version: fields.u64()?,
            decided_at: Moment {
                unix_nanos: fields.u64()?,
            },
        };
        fields.is_empty().then_some(decision)
    }
}

pub(super) fn encode_exported(trace: TraceId, fragments: &[FragmentHash], out: &mut Vec<u8>) {
    out.extend_from_slice(trace.as_bytes());
    out.extend_from_slice(&count_of(fragments.len()).to_le_bytes());
    for fragment in fragments {
        out.extend_from_slice(&fragment.0.to_le_bytes());
    }
}

pub(super) fn decode_exported(payload: &[u8]) -> Option<(TraceId, Vec<FragmentHash>)> {
    let mut fields = Fields::new(payload);
    let trace = TraceId::new(fields.take()?)?;
    let count = fields.u32()? as usize;
    let (hashes, rest) = payload.get(EXPORTED_FIXED_BYTES..)?.as_chunks::<16>();
    let fragments = hashes
        .iter()
        .map(|bytes| FragmentHash(u128::from_le_bytes(*bytes)));
    (hashes.len() == count && rest.is_empty()).then(|| (trace, fragments.collect()))
}

pub(super) fn encode_checkpoint(decisions: &[Decision], out: &mut Vec<u8>) {
    out.extend_from_slice(&count_of(decisions.len()).to_le_bytes());
    for decision in decisions {
        decision.encode(out);
    }
}

pub(super) fn decode_checkpoint(payload: &[u8]) -> Option<Vec<Decision>> {
    let count = Fields::new(payload).u32()? as usize;
    let (decisions, rest) = payload
        .get(CHECKPOINT_FIXED_BYTES..)?
        .as_chunks::<DECISION_BYTES>();
    if decisions.len() != count || !rest.is_empty() {
        return None;
    }
    decisions
        .iter()
        .map(|bytes| Decision::decode(bytes))
        .collect()
}

/// The writer cuts long lists into records far below this.
fn count_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Reads integers off the front of a slice.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
