//! Reads a data dir at start: every segment of every shard that ever wrote here. What the records
//! mean together (who is live, what was decided) is the caller's to find out.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::log::format::{FORMAT_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::log::scan::{Met, SegmentScan};
use crate::log::{
    Commit, Disk, DiskFile, Moved, PlantedBug, ReadError, Space, Volume, directory, footer, volume,
};
use crate::model::{Decision, Extent, SegmentId};
use crate::model::{FragmentHash, Moment, TraceId};

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
        /// From another member: held only if a COMMIT behind it names it.
        is_received: bool,
    },
    Verdict(Decision),
    Exported {
        trace: TraceId,
        fragments: Vec<FragmentHash>,
    },
    Moved(Moved),
    Commit(Commit),
    Checkpoint(Vec<Decision>),
}

/// What was found, for the log line and the metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub segments: u64,
    /// Of which only the footer was read.
    pub segments_by_footer: u64,
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
/// whose headers do not. Of a segment with a footer only that is read: what became of the bytes before it
/// shows when they are. In the last segment a
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
    let last = last_of_lives(&segments);
    for found in &segments {
        let SegmentFile {
            id, len, header, ..
        } = *found;
        let (shard, life) = header.map_or((0, 0), |it| (it.shard, it.life));
        space.recovering(id, shard, life, len);
        let failed = |source| ReadError::Io {
            segment: id,
            source,
        };
        let open = volume.segment(id).map_err(failed)?;
        let mut fragments = 0;
        let mut is_stale = false;
        let mut on_met = |extent: Extent, met| match met {
            Met::Record(record) => {
                fragments += u64::from(matches!(record, Recovered::Fragment { .. }));
                on_record(record);
            }
            Met::Damage(what) => {
                report.damaged_records += 1;
                tracing::warn!(
                    segment = id.0,
                    at = extent.offset,
                    what,
                    "damage in the log"
                );
            }
            Met::TornTail => report.torn_tails += 1,
            Met::Stale => is_stale = true,
            Met::Header | Met::Footer | Met::Other => {}
        };
        let footer = found.footer(&open.file).map_err(failed)?;
        let from_footer = footer.is_some();
        let sound = match footer {
            Some(records) => {
                for record in records {
                    on_met(found.start(), Met::Record(record));
                }
                Ok(len)
            }
            None => found.scan(&open.file, &last, &mut on_met),
        };
        let sound = sound
            .and_then(|sound| {
                if sound < len && !PlantedBug::TornTailKept.is_planted() {
                    open.file.truncate(sound)?;
                    open.file.sync()?;
                }
                Ok(sound)
            })
            .map_err(failed)?;
        space.recovered(id, sound, fragments);
        report.segments += 1;
        report.segments_by_footer += u64::from(from_footer);
        report.bytes += sound;
        if is_stale {
            report.stale_bytes += len - sound;
        } else {
            report.torn_bytes += len - sound;
        }
        report.fragments += fragments;
    }
    Ok(report)
}

/// Syncs all that recovery found. An earlier life may have ended between a write and its sync: what it
/// wrote is read back from memory, and a client that repeats it would be told that it is durable.
pub fn make_durable<D: Disk>(volume: &Volume<D>) -> Result<(), ReadError> {
    let segments = list(volume)?.segments;
    if segments.is_empty() || PlantedBug::UnsyncedTakenOver.is_planted() {
        return Ok(());
    }
    for segment in segments {
        volume
            .sync(segment)
            .map_err(|source| ReadError::Io { segment, source })?;
    }
    volume
        .sync_dir()
        .map_err(|source| ReadError::List { source })
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentFile {
    pub(super) id: SegmentId,
    pub(super) len: u64,
    /// `None` if its first bytes do not check.
    pub(super) header: Option<SegmentHeader>,
    /// They are another segment's: the file was to be written over, and nothing came.
    is_stale: bool,
}

/// By life and shard.
pub(super) type LastSegments = HashMap<(u64, u16), SegmentId>;

/// The last segment that each shard wrote in each life: the only one that may end in the middle.
pub(super) fn last_of_lives(segments: &[SegmentFile]) -> LastSegments {
    let headers = segments.iter().filter_map(|it| Some((it.id, it.header?)));
    // In the order of IDs: the last one stays.
    headers
        .map(|(id, header)| ((header.life, header.shard), id))
        .collect()
}

impl SegmentFile {
    /// What is known before a record is read. Refuses newer versions.
    pub(super) fn look<D: Disk>(volume: &Volume<D>, id: SegmentId) -> Result<Self, ReadError> {
        let (len, found) = read_header(volume, id).map_err(|source| ReadError::Io {
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
        Ok(Self {
            id,
            len,
            header,
            is_stale: found.is_some() && header.is_none(),
        })
    }

    fn start(&self) -> Extent {
        Extent {
            segment: self.id,
            offset: 0,
            len: 0,
        }
    }

    /// What the segment's footer says, if it has a sound one.
    fn footer<F: DiskFile>(&self, file: &F) -> io::Result<Option<Vec<Recovered>>> {
        match self.header {
            Some(_) => footer::read(file, self.id, self.len),
            None => Ok(None),
        }
    }

    /// Every frame. Gives the length up to which the segment is sound.
    pub(super) fn scan<F: DiskFile>(
        &self,
        file: &F,
        last: &LastSegments,
        on_met: &mut dyn FnMut(Extent, Met),
    ) -> io::Result<u64> {
        let mut scan = SegmentScan::new(self.id, file, self.len, on_met);
        match self.header {
            Some(it) => scan.run(last.get(&(it.life, it.shard)) == Some(&self.id)),
            None if self.is_stale => Ok(scan.run_stale()),
            None => scan.run_headless(),
        }
    }
}

/// The segments by ID. Refuses newer versions before anything is changed.
fn find<D: Disk>(
    volume: &Volume<D>,
    report: &mut RecoveryReport,
) -> Result<Vec<SegmentFile>, ReadError> {
    let Listed {
        segments,
        spares,
        foreign,
    } = list(volume)?;
    for name in &foreign {
        tracing::warn!(name, "a file in the data dir is not the log's; left alone");
    }
    report.foreign_files = foreign.len() as u64;
    let found = segments
        .into_iter()
        .map(|id| SegmentFile::look(volume, id))
        .collect::<Result<_, _>>()?;
    for name in spares {
        report.stale_bytes += remove_spare(volume, &name)?;
    }
    Ok(found)
}

/// A file that an earlier life kept to be written over: its pages need not be in memory any more.
fn remove_spare<D: Disk>(volume: &Volume<D>, name: &str) -> Result<u64, ReadError> {
    let len = volume.disk.open(name).and_then(|file| file.len());
    let len = len.map_err(|source| ReadError::List { source })?;
    let removed = volume.disk.unlink(name);
    removed.map_err(|source| ReadError::List { source })?;
    Ok(len)
}

/// What is in a data dir.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// In their order.
    pub(super) segments: Vec<SegmentId>,
    /// Files to be written over.
    pub(super) spares: Vec<String>,
    /// Files that are not the log's.
    pub(super) foreign: Vec<String>,
}

pub(super) fn list<D: Disk>(volume: &Volume<D>) -> Result<Listed, ReadError> {
    let names = volume
        .disk
        .list()
        .map_err(|source| ReadError::List { source })?;
    let mut listed = Listed::default();
    for name in names {
        match SegmentId::from_file_name(&name) {
            Some(id) => listed.segments.push(id),
            None if directory::is_ours(&name) => {}
            None if volume::is_spare(&name) => listed.spares.push(name),
            None => listed.foreign.push(name),
        }
    }
    listed.segments.sort_unstable();
    Ok(listed)
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
