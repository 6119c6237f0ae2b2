//! Goes through the frames of one segment and says what it meets. Changes nothing: what is to
//! become of a torn tail is the caller's to say.

use std::collections::HashMap;
use std::io;

use crate::log::format::{
    self, FRAGMENT_FIXED_BYTES, FRAME_HEADER_BYTES, FragmentPayload, Kind, SCOPE_ENTRY_BYTES,
    SEGMENT_HEADER_BYTES,
};
use crate::log::{DiskFile, PlantedBug, Recovered, footer};
use crate::model::{Extent, SegmentId};

/// Read at a time; a longer record is read whole.
const WINDOW_BYTES: u64 = 8 << 20;
/// Behind damage only fragments of fewer scopes are searched for.
const SEARCHED_SCOPES_MAX: u32 = 4096;

/// What lies at a place of a segment.
#[derive(Debug)]
pub(super) enum Met {
    Record(Recovered),
    Header,
    /// The end of a segment of which a start reads the footer.
    Footer,
    /// A kind of a later minor version.
    Other,
    /// Counted, and skipped up to the next frame that checks.
    Damage(&'static str),
    /// Nothing from here on checks, and the writer may have ended in the middle.
    TornTail,
    /// From here on there is what an earlier segment left in the file.
    Stale,
}

/// See the module.
pub(super) struct SegmentScan<'a, F> {
    segment: SegmentId,
    window: Window<'a, F>,
    /// The segment's header checks.
    is_ours: bool,
    /// Told each frame with its offset and length, in their order. Damage, a torn tail and what is stale have length 0.
    on_met: &'a mut dyn FnMut(Extent, Met),
    /// By the offsets that were met: whether a header is there that checks.
    headers: HashMap<u32, bool, foldhash::fast::RandomState>,
}

impl<'a, F: DiskFile> SegmentScan<'a, F> {
    /// Of the first `len` bytes of a file.
    pub(super) fn new(
        segment: SegmentId,
        file: &'a F,
        len: u64,
        on_met: &'a mut dyn FnMut(Extent, Met),
    ) -> Self {
        Self {
            segment,
            window: Window::new(file, len),
            is_ours: true,
            on_met,
            headers: HashMap::default(),
        }
    }

    /// Gives the length up to which the segment is sound.
    pub(super) fn run(&mut self, may_be_torn: bool) -> io::Result<u64> {
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
                None if self.is_end_mark(at)? => {
                    self.meet(at, Met::Stale);
                    return Ok(at);
                }
                None if may_be_torn || (self.is_ours && self.begins_like_a_footer(at)?) => {
                    self.meet(at, Met::TornTail);
                    return Ok(at);
                }
                None => {
                    self.damage(at, "the rest of the segment is lost");
                    break;
                }
            }
        }
        Ok(self.window.len)
    }

    /// Without a header the shard is not known, and with it not whether a torn tail is to be
    /// expected; frames still tell whether they belong here.
    pub(super) fn run_headless(&mut self) -> io::Result<u64> {
        self.is_ours = false;
        if self.window.len < SEGMENT_HEADER_BYTES as u64 {
            // The process ended between the creation and the first write, or in it. Empty is how
            // such a segment is left: it was cut by an earlier start, or there was nothing to cut.
            if self.window.len > 0 {
                self.meet(0, Met::TornTail);
            }
            return Ok(0);
        }
        let start = SEGMENT_HEADER_BYTES as u64;
        let is_of_a_segment = self.window.get(0, format::MAGIC.len())? == format::MAGIC;
        if is_of_a_segment && !self.checks(start)? && self.search(start)?.is_none() {
            // The first write to a file that held another segment, cut off within the header.
            self.meet(0, Met::TornTail);
            return Ok(0);
        }
        self.damage(0, "the segment's header does not check");
        self.run(false)
    }

    /// The header is another segment's: nothing was written over it.
    pub(super) fn run_stale(&mut self) -> u64 {
        self.meet(0, Met::Stale);
        0
    }

    /// Zeroes, which no frame begins with, end each write to a file that held another segment.
    fn is_end_mark(&mut self, at: u64) -> io::Result<bool> {
        let room = self.window.len - at;
        let mark = self
            .window
            .get(at, room.min(FRAME_HEADER_BYTES as u64) as usize)?;
        Ok(mark.len() == FRAME_HEADER_BYTES && mark.iter().all(|byte| *byte == 0))
    }

    /// Whether a process may have ended here while it appended a footer: that happens behind what
    /// the segment's writer wrote, and then to segments that are not its last.
    fn begins_like_a_footer(&mut self, at: u64) -> io::Result<bool> {
        let room = self.window.len - at;
        if room < FRAME_HEADER_BYTES as u64 {
            return Ok(true);
        }
        let start = self.window.get(at, FRAME_HEADER_BYTES)?;
        let kind = format::peek_frame(start).and_then(|(_, kind)| Kind::from_byte(kind));
        // The end of a host can leave a file longer than what reached it.
        let is_empty = start.iter().all(|byte| *byte == 0);
        Ok(is_empty || matches!(kind, Some(Kind::Footer | Kind::Trailer)))
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
                    (self.on_met)(extent, Met::Record(record));
                } else {
                    self.damage(at, "a header that the fragment refers to does not check");
                }
            }
            Decoded::Record(record) => (self.on_met)(extent, Met::Record(record)),
            Decoded::Header => {
                self.headers.insert(offset, true);
                (self.on_met)(extent, Met::Header);
            }
            Decoded::Trailer { has_footer: true } => (self.on_met)(extent, Met::Footer),
            Decoded::Footer | Decoded::Trailer { .. } => {}
            Decoded::Other => (self.on_met)(extent, Met::Other),
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
        // All of them end their fixed part with the count of what follows.
        let (fixed, unit) = match Kind::from_byte(kind) {
            Some(Kind::Fragment) => (FRAGMENT_FIXED_BYTES, SCOPE_ENTRY_BYTES),
            Some(Kind::Exported) => (format::EXPORTED_FIXED_BYTES, 16),
            Some(Kind::Moved) => (format::MOVED_FIXED_BYTES, 16),
            Some(Kind::Commit) => (format::COMMIT_FIXED_BYTES, 16),
            Some(Kind::Checkpoint) => (format::CHECKPOINT_FIXED_BYTES, format::DECISION_BYTES),
            Some(Kind::Verdict) => return Ok(payload == format::DECISION_BYTES as u64),
            // Nothing in it can be compared; the record behind it will be found.
            Some(Kind::Header | Kind::Footer | Kind::Trailer) | None => return Ok(false),
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
        self.meet(at, Met::Damage(what));
    }

    /// What is not a whole frame.
    fn meet(&mut self, at: u64, what: Met) {
        let here = Extent {
            segment: self.segment,
            offset: u32::try_from(at).unwrap_or(u32::MAX),
            len: 0,
        };
        (self.on_met)(here, what);
    }
}

enum Decoded {
    /// With the offsets of the headers that it refers to.
    Fragment(Recovered, Vec<u32>),
    Record(Recovered),
    Header,
    Footer,
    Trailer {
        has_footer: bool,
    },
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
                is_received: record.is_received,
            };
            return Decoded::Fragment(recovered, headers);
        }
        Some(Kind::Header) => return Decoded::Header,
        Some(Kind::Footer) => return Decoded::Footer,
        Some(Kind::Trailer) => {
            return Decoded::Trailer {
                has_footer: payload != [0; 4],
            };
        }
        Some(
            kind @ (Kind::Verdict | Kind::Exported | Kind::Moved | Kind::Commit | Kind::Checkpoint),
        ) => footer::decode_control(kind, payload),
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
