//! Looks at a data dir without changing it: what lies in each segment, and what is wrong there. What
//! the records mean together is the caller's to find out, as at a start.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::log::recovery::{self, Listed, SegmentFile};
use crate::log::scan::Met;
use crate::log::{Disk, ReadError, ReadOnlyDisk, Recovered, StoreIdentity, Volume, directory};
use crate::model::{Extent, SegmentId};

/// Places of damage that are told of one segment; more are counted only.
pub const DAMAGES_TOLD: usize = 20;

/// A data dir, beside what its records mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirFacts {
    /// `None`: no worker was ever started here, or the file is damaged.
    pub identity: Option<StoreIdentity>,
    /// What the lock file says: the process that uses the dir, or was killed while it did.
    pub holder: Option<String>,
    pub segments: Vec<SegmentFacts>,
    /// Segments that a running worker removed between the look at the dir and the look at them.
    pub gone: u64,
    /// Names of files that are kept to be written over. A start removes them.
    pub spares: Vec<String>,
    /// Names of files that are not the log's.
    pub foreign: Vec<String>,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFacts {
    pub id: SegmentId,
    /// Shard and life that wrote it; `None` if its first bytes do not check.
    pub writer: Option<(u16, u64)>,
    /// As long as the file was when it was looked at, without what an earlier segment left in it.
    pub bytes: u64,
    pub records: RecordCounts,
    /// A start reads that instead of the records.
    pub has_footer: bool,
    /// What follows the last record of a writer that ended in the middle. A start cuts it off.
    pub torn_tail: Option<Extent>,
    pub damaged: u64,
    /// The first [`DAMAGES_TOLD`].
    pub damages: Vec<Damage>,
}

/// Something that does not check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    pub offset: u32,
    pub what: &'static str,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    pub fragments: u64,
    pub headers: u64,
    pub verdicts: u64,
    pub exported: u64,
    pub moved: u64,
    pub commits: u64,
    pub checkpoints: u64,
    /// Of kinds that this version does not know.
    pub other: u64,
}

impl RecordCounts {
    fn count(&mut self, record: &Recovered) {
        *match record {
            Recovered::Fragment { .. } => &mut self.fragments,
            Recovered::Verdict(_) => &mut self.verdicts,
            Recovered::Exported { .. } => &mut self.exported,
            Recovered::Moved(_) => &mut self.moved,
            Recovered::Commit(_) => &mut self.commits,
            Recovered::Checkpoint(_) => &mut self.checkpoints,
        } += 1;
    }
}

/// Reads every segment and gives its records to `on_record`, in the order in which a start would
/// take them. Beside a running worker too: nothing is locked or written, and what that worker is
/// writing at this moment may look torn.
///
/// Errors: the dir or a file in it cannot be read, or a segment is of a newer version.
pub fn inspect(dir: &Path, on_record: &mut dyn FnMut(Recovered)) -> Result<DirFacts, ReadError> {
    let volume = Volume::new(ReadOnlyDisk {
        dir: dir.to_path_buf(),
    });
    let Listed {
        segments: ids,
        spares,
        foreign,
    } = recovery::list(&volume)?;
    let mut facts = DirFacts {
        identity: directory::read_identity(dir),
        holder: directory::read_holder(dir),
        segments: Vec::new(),
        gone: 0,
        spares,
        foreign,
    };
    let mut files = Vec::with_capacity(ids.len());
    for id in ids {
        match SegmentFile::look(&volume, id) {
            Err(error) if is_gone(&error) => facts.gone += 1,
            other => files.push(other?),
        }
    }
    let last = recovery::last_of_lives(&files);
    for file in &files {
        match inspect_segment(&volume, file, &last, on_record) {
            Err(error) if is_gone(&error) => facts.gone += 1,
            other => facts.segments.push(other?),
        }
    }
    Ok(facts)
}

fn inspect_segment<D: Disk>(
    volume: &Arc<Volume<D>>,
    file: &SegmentFile,
    last: &recovery::LastSegments,
    on_record: &mut dyn FnMut(Recovered),
) -> Result<SegmentFacts, ReadError> {
    let mut facts = SegmentFacts {
        id: file.id,
        writer: file.header.map(|it| (it.shard, it.life)),
        bytes: file.len,
        records: RecordCounts::default(),
        has_footer: false,
        torn_tail: None,
        damaged: 0,
        damages: Vec::new(),
    };
    let failed = |source| ReadError::Io {
        segment: file.id,
        source,
    };
    let open = volume.segment(file.id).map_err(failed)?;
    let mut on_met = |place: Extent, met| match met {
        Met::Record(record) => {
            facts.records.count(&record);
            on_record(record);
        }
        Met::Header => facts.records.headers += 1,
        Met::Footer => facts.has_footer = true,
        Met::Other => facts.records.other += 1,
        Met::Damage(what) => {
            facts.damaged += 1;
            if facts.damages.len() < DAMAGES_TOLD {
                facts.damages.push(Damage {
                    offset: place.offset,
                    what,
                });
            }
        }
        Met::Stale => facts.bytes = u64::from(place.offset),
        Met::TornTail => {
            let bytes = file.len - u64::from(place.offset);
            facts.torn_tail = Some(Extent {
                len: u32::try_from(bytes).unwrap_or(u32::MAX),
                ..place
            });
        }
    };
    file.scan(&open.file, last, &mut on_met).map_err(failed)?;
    Ok(facts)
}

fn is_gone(error: &ReadError) -> bool {
    matches!(error, ReadError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
