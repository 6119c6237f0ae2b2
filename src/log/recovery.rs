//! Reads a data dir at start: every segment of every shard that ever wrote here. What the records
//! mean together (who is live, what was decided) is the caller's to find out.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::log::format::{
    self, FORMAT_VERSION, FRAGMENT_FIXED_BYTES, FRAME_HEADER_BYTES, FragmentPayload, Kind,
    SCOPE_ENTRY_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::log::{Disk, DiskFile, PlantedBug, ReadError, Space, Volume, directory, volume};
use crate::model::{Decision, Extent, SegmentId};
use crate::model::{FragmentHash, Moment, TraceId};

/// Read at a time; a longer record is read whole.
const WINDOW_BYTES: u64 = 8 << 20;
/// Behind damage only fragments of fewer scopes are searched for.
const SEARCHED_SCOPES_MAX: u32 = 4096;

/// One record of the log, in the order it was written within its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    Verdict(Decision),
    Exported {
        trace: TraceId,
        fragments: Vec<FragmentHash>,
    },
    Checkpoint(Vec<Decision>),
}

/// What was found, for the log line and the metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub segments: u64,
    pub bytes: u64,
    pub fragments: u64,
    pub torn_tails: u64,
    pub damaged_records: u64,
    /// Cut off with torn tails.
    pub torn_bytes: u64,
    /// What earlier segments had left in files that were being written over.
    pub stale_bytes: u64,
    /// Files that are not the log's; they are left alone.
    pub foreign_files: u64,
}

/// Gives every record to `on_record` and registers every segment with `space`; each fragment
/// counts as live until it is released. Torn tails are truncated.
///
/// To be called once, before the first [`Writer`](crate::log::Writer) of this `space` and also
/// for an empty dir. A record that does not check is counted and skipped, and so is a fragment
/// whose headers do not: in the last segment a
/// shard wrote in a life, the end is a torn tail if nothing that checks follows. A file that
/// cannot be read, or is of a newer version, is an error: starting without it would lose what it
/// holds.
pub fn recover<D: Disk>(
    volume: &Arc<Volume<D>>,
    space: &Arc<Space>,
    on_record: &mut dyn FnMut(Recovered),
) -> Result<RecoveryReport, ReadError> {
    volume.tell(space);
    let mut report = RecoveryReport::default();
    let segments = find(volume, &mut report)?;
    let mut last = HashMap::new();
    for found in &segments {
        if let Some(header) = found.header {
            // In the order of IDs: the last one stays.
            last.insert((header.life, header.shard), found.id);
        }
    }
    for found in &segments {
        let SegmentFile {
            id,
            len,
            header,
            is_stale,
        } = *found;
        let (shard, life) = header.map_or((0, 0), |it| (it.shard, it.life));
        space.recovering(id, shard, life, len);
        let may_be_torn = header.is_some_and(|it| last.get(&(it.life, it.shard)) == Some(&id));
        let open = volume.segment(id).map_err(|source| ReadError::Io {
            segment: id,
            source,
        })?;
        let mut scan = SegmentScan {
            segment: id,
            window: Window::new(&open.file, len),
            report: &mut report,
            on_record,
            fragments: 0,
            headers: HashMap::default(),
        };
        let end = match header {
            Some(_) => scan.run(may_be_torn),
            None if is_stale => Ok(End::Stale(0)),
            None => scan.run_headless(),
        };
        let fragments = scan.fragments;
        let end = end
            .and_then(|end| {
                let sound = end.offset();
                if sound < len && !PlantedBug::TornTailKept.is_planted() {
                    open.file.truncate(sound)?;
                    open.file.sync()?;
                }
                Ok(end)
            })
            .map_err(|source| ReadError::Io {
                segment: id,
                source,
            })?;
        let sound = end.offset();
        space.recovered(id, sound, fragments);
        report.segments += 1;
        report.bytes += sound;
        match end {
            End::Torn(_) => report.torn_bytes += len - sound,
            End::Stale(_) => report.stale_bytes += len - sound,
        }
        report.fragments += fragments;
    }
    Ok(report)
}

#[derive(Debug, Clone, Copy)]
struct SegmentFile {
    id: SegmentId,
    len: u64,
    /// `None` if its first bytes do not check.
    header: Option<SegmentHeader>,
    /// They are another segment's: the file was to be written over, and nothing came.
    is_stale: bool,
}

/// Up to where a segment is to be kept, and what lies behind.
#[derive(Debug, Clone, Copy)]
enum End {
    Torn(u64),
    /// Nothing, or what an earlier segment left in the file.
    Stale(u64),
}

impl End {
    fn offset(self) -> u64 {
        match self {
            Self::Torn(at) | Self::Stale(at) => at,
        }
    }
}

/// The segments by ID. Refuses newer versions before anything is changed.
fn find<D: Disk>(
    log: &Volume<D>,
    report: &mut RecoveryReport,
) -> Result<Vec<SegmentFile>, ReadError> {
    let names = log
        .disk
        .list()
        .map_err(|source| ReadError::List { source })?;
    let (mut ids, mut spares) = (Vec::new(), Vec::new());
    for name in names {
        match SegmentId::from_file_name(&name) {
            Some(id) => ids.push(id),
            None if directory::is_ours(&name) => {}
            None if volume::is_spare(&name) => spares.push(name),
            None => {
                report.foreign_files += 1;
                tracing::warn!(name, "a file in the data dir is not the log's; left alone");
            }
        }
    }
    ids.sort_unstable();
    let mut segments = Vec::with_capacity(ids.len());
    for id in ids {
        let (len, found) = read_header(log, id).map_err(|source| ReadError::Io {
            segment: id,
            source,
        })?;
        let header = found.filter(|header| header.segment == id);
        if let Some(header) = header
            && header.version != FORMAT_VERSION
        {
            return Err(ReadError::Version {
                segment: id,
                found: header.version,
                known: FORMAT_VERSION,
            });
        }
        segments.push(SegmentFile {
            id,
            len,
            header,
            is_stale: found.is_some() && header.is_none(),
        });
    }
    for name in spares {
        report.stale_bytes += remove_spare(log, &name)?;
    }
    Ok(segments)
}

/// A file that an earlier life kept to be written over: its pages need not be in memory any more.
fn remove_spare<D: Disk>(log: &Volume<D>, name: &str) -> Result<u64, ReadError> {
    let len = log.disk.open(name).and_then(|file| file.len());
    let len = len.map_err(|source| ReadError::List { source })?;
    let removed = log.disk.unlink(name);
    removed.map_err(|source| ReadError::List { source })?;
    Ok(len)
}

fn read_header<D: Disk>(
    volume: &Volume<D>,
    id: SegmentId,
) -> io::Result<(u64, Option<SegmentHeader>)> {
    let open = volume.segment(id)?;
    // Offsets are u32: what lies beyond was not written by us.
    let len = open.file.len()?.min(u64::from(u32::MAX));
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    if len < bytes.len() as u64 {
        return Ok((len, None));
    }
    open.file.read_at(0, &mut bytes)?;
    Ok((len, SegmentHeader::decode(&bytes)))
}

/// Goes through the frames of one segment.
struct SegmentScan<'a, F> {
    segment: SegmentId,
    window: Window<'a, F>,
    report: &'a mut RecoveryReport,
    on_record: &'a mut dyn FnMut(Recovered),
    fragments: u64,
    /// By the offsets that were met: whether a header is there that checks.
    headers: HashMap<u32, bool, foldhash::fast::RandomState>,
}

impl<F: DiskFile> SegmentScan<'_, F> {
    fn run(&mut self, may_be_torn: bool) -> io::Result<End> {
        let mut at = SEGMENT_HEADER_BYTES as u64;
        while at < self.window.len {
            if let Some(next) = self.record(at)? {
                at = next;
                continue;
            }
            match self.search(at)? {
                Some(next) => {
                    self.damage(at, "skipped to the next record that checks");
                    at = next;
                }
                None if self.is_end_mark(at)? => return Ok(End::Stale(at)),
                None if may_be_torn => {
                    self.report.torn_tails += 1;
                    return Ok(End::Torn(at));
                }
                None => {
                    self.damage(at, "the rest of the segment is lost");
                    break;
                }
            }
        }
        Ok(End::Stale(self.window.len))
    }

    /// Zeroes, which no frame begins with, end each write to a file that held another segment.
    fn is_end_mark(&mut self, at: u64) -> io::Result<bool> {
        let room = self.window.len - at;
        let mark = self
            .window
            .get(at, room.min(FRAME_HEADER_BYTES as u64) as usize)?;
        Ok(mark.len() == FRAME_HEADER_BYTES && mark.iter().all(|byte| *byte == 0))
    }

    /// Without a header the shard is not known, and with it not whether a torn tail is to be
    /// expected; frames still tell whether they belong here.
    fn run_headless(&mut self) -> io::Result<End> {
        if self.window.len < SEGMENT_HEADER_BYTES as u64 {
            // The process ended between the creation and the first write, or in it. Empty is how
            // such a segment is left: it was cut by an earlier start, or there was nothing to cut.
            self.report.torn_tails += u64::from(self.window.len > 0);
            return Ok(End::Torn(0));
        }
        let start = SEGMENT_HEADER_BYTES as u64;
        let is_of_a_segment = self.window.get(0, format::MAGIC.len())? == format::MAGIC;
        if is_of_a_segment && !self.checks(start)? && self.search(start)?.is_none() {
            // The first write to a file that held another segment, cut off within the header.
            self.report.torn_tails += 1;
            return Ok(End::Torn(0));
        }
        self.damage(0, "the segment's header does not check");
        self.run(false)
    }

    /// Hands out the record at `at` and gives the place of the next one; `None` if there is no
    /// frame that checks.
    fn record(&mut self, at: u64) -> io::Result<Option<u64>> {
        let segment = self.segment;
        let Some((frame, end)) = self.frame(at)? else {
            return Ok(None);
        };
        // The length of a file is clamped to what offsets can say.
        let offset = u32::try_from(at).unwrap_or(u32::MAX);
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let Ok(kind) = format::check_frame(frame, segment, offset) else {
            return Ok(None);
        };
        let extent = Extent {
            segment,
            offset,
            len,
        };
        match decode(kind, &frame[FRAME_HEADER_BYTES..], extent) {
            Decoded::Fragment(record, headers) => {
                // Without it nobody could read the fragment. Were it held all the same, its client's
                // next attempt would pass for a duplicate and be acknowledged.
                if self.are_headers(&headers, offset)? {
                    self.fragments += 1;
                    (self.on_record)(record);
                } else {
                    self.damage(at, "a header that the fragment refers to does not check");
                }
            }
            Decoded::Record(record) => (self.on_record)(record),
            Decoded::Header => {
                self.headers.insert(offset, true);
            }
            Decoded::Other => {}
            Decoded::Malformed => self.damage(at, "the record checks and makes no sense"),
        }
        Ok(Some(end))
    }

    /// Whether headers lie at these places before a fragment.
    fn are_headers(&mut self, offsets: &[u32], fragment: u32) -> io::Result<bool> {
        if PlantedBug::HeadlessFragmentHeld.is_planted() {
            return Ok(true);
        }
        for &offset in offsets {
            let is_header = match self.headers.get(&offset) {
                _ if offset == 0 => true,
                Some(known) => *known,
                // Behind damage headers are not searched for.
                None => {
                    let is_header = offset < fragment && self.is_header(offset)?;
                    self.headers.insert(offset, is_header);
                    is_header
                }
            };
            if !is_header {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_header(&mut self, offset: u32) -> io::Result<bool> {
        let segment = self.segment;
        // With a window of its own: this one stays where the scan is.
        let elsewhere = Window::new(self.window.file, self.window.len);
        let here = std::mem::replace(&mut self.window, elsewhere);
        let frame = self.frame(u64::from(offset));
        let kind = frame.map(|frame| format::check_frame(frame?.0, segment, offset).ok());
        self.window = here;
        Ok(kind?.and_then(Kind::from_byte) == Some(Kind::Header))
    }

    fn frame(&mut self, at: u64) -> io::Result<Option<(&[u8], u64)>> {
        let room = self.window.len - at;
        if room < FRAME_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let header = self.window.get(at, FRAME_HEADER_BYTES)?;
        let Some((len, _)) = format::peek_frame(header).filter(|(len, _)| *len <= room) else {
            return Ok(None);
        };
        let frame = self.window.get(at, len as usize)?;
        Ok(Some((frame, at + len)))
    }

    /// The next frame behind damage at `bad`: where the damaged one says it ends, or else the next
    /// fragment, verdict, export or checkpoint that checks.
    fn search(&mut self, bad: u64) -> io::Result<Option<u64>> {
        let claimed = self.frame(bad)?.map(|(_, end)| end);
        if let Some(end) = claimed {
            if end == self.window.len {
                return Ok(None);
            }
            if self.checks(end)? {
                return Ok(Some(end));
            }
        }
        let mut at = bad + 1;
        while at + FRAME_HEADER_BYTES as u64 <= self.window.len {
            if self.is_plausible(at)? && self.checks(at)? {
                return Ok(Some(at));
            }
            at += 1;
        }
        Ok(None)
    }

    fn checks(&mut self, at: u64) -> io::Result<bool> {
        let segment = self.segment;
        let offset = u32::try_from(at).unwrap_or(u32::MAX);
        let frame = self.frame(at)?;
        Ok(frame.is_some_and(|(frame, _)| format::check_frame(frame, segment, offset).is_ok()))
    }

    /// Whether a frame's lengths fit together, from its first bytes: checksums over megabytes at
    /// every offset of a damaged segment would take hours.
    fn is_plausible(&mut self, at: u64) -> io::Result<bool> {
        let room = self.window.len - at;
        let Some((len, kind)) = format::peek_frame(self.window.get(at, FRAME_HEADER_BYTES)?) else {
            return Ok(false);
        };
        let payload = len - FRAME_HEADER_BYTES as u64;
        if len > room {
            return Ok(false);
        }
        // All three end their fixed part with the count of what follows.
        let (fixed, unit) = match Kind::from_byte(kind) {
            Some(Kind::Fragment) => (FRAGMENT_FIXED_BYTES, SCOPE_ENTRY_BYTES),
            Some(Kind::Exported) => (format::EXPORTED_FIXED_BYTES, 16),
            Some(Kind::Checkpoint) => (format::CHECKPOINT_FIXED_BYTES, format::DECISION_BYTES),
            Some(Kind::Verdict) => return Ok(payload == format::DECISION_BYTES as u64),
            // Nothing in it can be compared; the record behind it will be found.
            Some(Kind::Header) | None => return Ok(false),
        };
        if payload < fixed as u64 {
            return Ok(false);
        }
        let start = self.window.get(at, FRAME_HEADER_BYTES + fixed)?;
        let count = start.last_chunk().map_or(0, |it| u32::from_le_bytes(*it));
        let counted_end = fixed as u64 + u64::from(count) * unit as u64;
        if Kind::from_byte(kind) != Some(Kind::Fragment) {
            return Ok(payload == counted_end);
        }
        if count > SEARCHED_SCOPES_MAX || counted_end > payload {
            return Ok(false);
        }
        let table_end = FRAME_HEADER_BYTES + counted_end as usize;
        let table = &self.window.get(at, table_end)?[FRAME_HEADER_BYTES + fixed..];
        let entries = table.as_chunks::<SCOPE_ENTRY_BYTES>().0.iter();
        let spans: u64 = entries
            .map(|[_, _, _, _, a, b, c, d]| u64::from(u32::from_le_bytes([*a, *b, *c, *d])))
            .sum();
        Ok(counted_end + spans == payload)
    }

    fn damage(&mut self, at: u64, what: &'static str) {
        self.report.damaged_records += 1;
        tracing::warn!(segment = self.segment.0, at, what, "damage in the log");
    }
}

enum Decoded {
    /// With the offsets of the headers that it refers to.
    Fragment(Recovered, Vec<u32>),
    Record(Recovered),
    Header,
    /// A kind of a later minor version.
    Other,
    Malformed,
}

fn decode(kind: u8, payload: &[u8], extent: Extent) -> Decoded {
    let record = match Kind::from_byte(kind) {
        Some(Kind::Fragment) => {
            let Some(fragment) = FragmentPayload::decode(payload) else {
                return Decoded::Malformed;
            };
            let record = &fragment.record;
            let scopes = fragment.scopes().map(|(header, _)| header);
            let headers = std::iter::once(record.resource).chain(scopes).collect();
            let recovered = Recovered::Fragment {
                extent,
                trace: record.trace,
                hash: record.hash,
                arrival: record.arrival,
                spans: record.spans,
                span_bytes: fragment.span_bytes,
                has_root: record.has_root,
            };
            return Decoded::Fragment(recovered, headers);
        }
        Some(Kind::Verdict) => Decision::decode(payload).map(Recovered::Verdict),
        Some(Kind::Exported) => format::decode_exported(payload)
            .map(|(trace, fragments)| Recovered::Exported { trace, fragments }),
        Some(Kind::Checkpoint) => format::decode_checkpoint(payload).map(Recovered::Checkpoint),
        Some(Kind::Header) => return Decoded::Header,
        None => return Decoded::Other,
    };
    record.map_or(Decoded::Malformed, Decoded::Record)
}

/// A part of a file in memory, moved along with the reader.
struct Window<'a, F> {
    file: &'a F,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a, F: DiskFile> Window<'a, F> {
    fn new(file: &'a F, len: u64) -> Self {
        Self {
            file,
            len,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// `at + need` must not lie behind the end of the file.
    fn get(&mut self, at: u64, need: usize) -> io::Result<&[u8]> {
        let held = self.start..self.start + self.bytes.len() as u64;
        if at < held.start || at + need as u64 > held.end {
            let want = WINDOW_BYTES.min(self.len - at).max(need as u64);
            self.bytes.clear();
            self.bytes.resize(want as usize, 0);
            self.start = at;
            self.file.read_at(at, &mut self.bytes)?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + need])
    }
}
