//! The files of a log: carries out what the writers ask for. Reading is in `reader.rs`, and
//! where frames end is the writer's business: a write here is bytes at a place.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::log::format::FRAME_HEADER_BYTES;
use crate::log::header_cache::HeaderCache;
use crate::log::space::ALLOCATION_STEP_BYTES;
use crate::log::unfinished::{Footed, Sealed, Unfinished};
use crate::log::{Buffers, Disk, DiskFile, PlantedBug, Space, footer, reader};
use crate::model::SegmentId;

/// Sealed segments are opened again when they are read; a data dir may have more of them than a
/// process may have files.
const OPEN_FILES_MAX: usize = 256;
/// Files of segments that went, kept to be written over. One a shard, and no more than that: segments
/// go one by one, and the next one is begun when the last is full.
const SPARE_FILES_MAX: usize = 2;
const PAGE_BYTES: u64 = 4096;
/// The most that it takes to the end of a page, and nine bytes at least.
const END_MARK: [u8; PAGE_BYTES as usize + FRAME_HEADER_BYTES] =
    [0; PAGE_BYTES as usize + FRAME_HEADER_BYTES];
const SPARE_FILE_SUFFIX: &str = ".spare";
/// Read buffers kept: one reader a shard on a small machine, and one read ahead.
const SPARE_READS: usize = 4;

/// One thing for the disk to do.
#[derive(Debug)]
pub enum DiskOp {
    Create {
        segment: SegmentId,
        shard: u16,
    },
    Write {
        segment: SegmentId,
        offset: u32,
        bytes: Vec<u8>,
    },
    /// No more writes; gives preallocated space back. The footer is appended later
    /// ([`Volume::append_footer`]).
    Seal {
        segment: SegmentId,
        len: u32,
        footer: SegmentFooter,
    },
    Unlink {
        segment: SegmentId,
    },
}

impl DiskOp {
    pub fn segment(&self) -> SegmentId {
        match *self {
            Self::Create { segment, .. }
            | Self::Write { segment, .. }
            | Self::Seal { segment, .. }
            | Self::Unlink { segment } => segment,
        }
    }
}

/// What is to stand at the end of a sealed segment.
#[derive(Debug)]
pub enum SegmentFooter {
    /// The segment ends early, and who wrote it does not know where.
    None,
    /// Only that the segment was synced.
    TooLong,
    Entries(Vec<u8>),
}

/// Shared by the shards' disk threads and by readers.
#[derive(Debug)]
pub struct Volume<D: Disk> {
    pub(super) disk: D,
    files: RwLock<BTreeMap<SegmentId, Arc<OpenSegment<D::File>>>>,
    pub(super) headers: Mutex<HeaderCache>,
    pub(super) reads: Arc<Buffers>,
    spares: Mutex<Vec<SpareFile>>,
    /// Held while a file becomes spare, and by whoever writes to a sealed segment beside the disk
    /// threads: it might be another one's by then.
    renaming: Mutex<()>,
    /// Told when a segment is gone. Set by recovery.
    space: OnceLock<Arc<Space>>,
    sync_failure: Arc<SyncFailure>,
    unfinished: Arc<Unfinished>,
}

/// The first sync that failed, of a segment or of the dir, if one did.
///
/// The kernel reports a failed sync once and takes its pages for clean, so that the next one succeeds
/// without their being on disk, and reading them back proves nothing. A worker acknowledges no
/// more then, and ends.
#[derive(Debug, Default)]
pub struct SyncFailure(OnceLock<String>);

impl SyncFailure {
    /// What failed and how, in words.
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn note(&self, what: &str, error: &io::Error) {
        self.0.get_or_init(|| format!("{what}: {error}"));
    }
}

#[derive(Debug)]
pub(super) struct OpenSegment<F> {
    pub(super) file: F,
    /// A length that the file was seen to have. It shrinks only when a failed write is cut, behind
    /// all that anybody may read.
    sound: AtomicU64,
    written: Mutex<Written>,
}

/// The file of a segment that went. Its pages are in memory and its blocks on disk: writing over
/// them was measured at 7.5 GB/s, into a new file at 2.4 to 4.0.
#[derive(Debug)]
struct SpareFile {
    name: String,
    len: u64,
}

/// What may still be done to a segment, and how far it is sound.
#[derive(Debug, Clone, Copy)]
struct Written {
    len: u64,
    /// As far as a sync reached.
    synced: u64,
    allocated: u64,
    /// So far the file goes; behind `len` lies what an earlier segment left.
    stale_until: u64,
    takes_writes: bool,
    /// A sync failed. The kernel reports it once and forgets the pages, so that the next one
    /// would succeed without their being on disk.
    sync_failed: bool,
}

/// Whether a file of this name is one that was kept to be written over.
pub(super) fn is_spare(name: &str) -> bool {
    name.strip_suffix(SPARE_FILE_SUFFIX)
        .is_some_and(|name| SegmentId::from_file_name(name).is_some())
}

impl<D: Disk> Volume<D> {
    pub fn new(disk: D) -> Arc<Self> {
        Arc::new(Self {
            disk,
            files: RwLock::default(),
            headers: Mutex::default(),
            spares: Mutex::default(),
            renaming: Mutex::default(),
            reads: Buffers::new(SPARE_READS, 2 * reader::READ_BYTES_MAX as usize),
            space: OnceLock::new(),
            sync_failure: Arc::default(),
            unfinished: Arc::default(),
        })
    }

    /// For files beside the segments.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Carries out one operation; gives a written buffer back.
    ///
    /// After a write that failed the segment ends where it was sound and takes no other, so that
    /// nothing acknowledged ever lies behind a hole. Stop at the first operation of a batch that
    /// fails, unless it is an unlink: nothing stands on that, and the space hands the segment out
    /// again.
    pub fn apply(&self, op: DiskOp) -> io::Result<Option<Vec<u8>>> {
        match op {
            DiskOp::Create { segment, .. } => self.create(segment)?,
            DiskOp::Write {
                segment,
                offset,
                mut bytes,
            } => {
                self.write(segment, offset, &mut bytes)?;
                return Ok(Some(bytes));
            }
            DiskOp::Seal {
                segment,
                len,
                footer,
            } => self.seal(segment, len, footer)?,
            DiskOp::Unlink { segment } => self.unlink(segment)?,
        }
        Ok(None)
    }

    /// fdatasync of a segment. Its directory entry was synced when it was created.
    ///
    /// If it fails, what was written since the last one is cut off: nobody was told that it is
    /// there, and after a restart it could be read from memory as if it were on disk.
    pub fn sync(&self, segment: SegmentId) -> io::Result<()> {
        let open = self.segment(segment)?;
        let before = *open.written();
        if before.sync_failed {
            return Err(io::Error::other("an earlier sync of this segment failed"));
        }
        let synced = open.file.sync();
        let mut written = open.written();
        let Err(error) = synced else {
            written.synced = before.len;
            return Ok(());
        };
        if PlantedBug::SyncErrorIgnored.is_planted() {
            return Ok(());
        }
        self.sync_failure
            .note(&format!("fdatasync of segment {segment}"), &error);
        written.sync_failed = true;
        if std::mem::take(&mut written.takes_writes) {
            written.len = written.synced;
            written.stale_until = 0;
            if let Err(cut) = open.file.truncate(written.len) {
                tracing::warn!(%segment, error = %cut, "cannot cut what a failed sync left");
            }
        }
        Err(error)
    }

    /// Says if a sync has failed.
    pub fn sync_failure(&self) -> &Arc<SyncFailure> {
        &self.sync_failure
    }

    /// Whether what is live in a segment lies elsewhere.
    pub(super) fn is_going(&self, segment: SegmentId) -> bool {
        let space = self.space.get();
        space.is_some_and(|space| space.is_going(segment))
    }

    /// Makes creations and unlinks durable.
    pub(super) fn sync_dir(&self) -> io::Result<()> {
        let synced = self.disk.sync_dir();
        synced.inspect_err(|error| self.sync_failure.note("fsync of the data dir", error))
    }

    /// From now on `space` hears which segments are gone.
    pub(super) fn tell(&self, space: &Arc<Space>) {
        space.await_unlinks();
        self.space.get_or_init(|| Arc::clone(space));
    }

    pub(super) fn segment(&self, segment: SegmentId) -> io::Result<Arc<OpenSegment<D::File>>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = files.get(&segment) {
            return Ok(Arc::clone(open));
        }
        drop(files);
        let file = self.disk.open(&segment.file_name())?;
        Ok(self.keep_open(segment, OpenSegment::sealed(file)))
    }

    fn create(&self, segment: SegmentId) -> io::Result<()> {
        let name = segment.file_name();
        let spare = self.spares().pop();
        let stale_until = spare.as_ref().map_or(0, |spare| spare.len);
        let file = match spare {
            Some(spare) => {
                if let Some(space) = self.space.get() {
                    space.recycled(segment, spare.len);
                }
                self.disk.rename(&spare.name, &name)?;
                self.disk.open(&name)?
            }
            None => self.disk.create(&name)?,
        };
        if !PlantedBug::DirectoryNotSynced.is_planted()
            && let Err(error) = self.sync_dir()
        {
            // Its writes would be refused anyway. What is left of it is an empty segment, which
            // the space frees like any other.
            drop(file);
            return Err(error);
        }
        self.keep_open(segment, OpenSegment::begun(file, stale_until));
        Ok(())
    }

    fn write(&self, segment: SegmentId, offset: u32, bytes: &mut Vec<u8>) -> io::Result<()> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let open = files.get(&segment).map(Arc::clone);
        drop(files);
        let open = open.ok_or_else(|| io::Error::other("the segment was not created"))?;
        let mut written = open.written();
        if !written.takes_writes {
            return Err(io::Error::other("the segment takes no more writes"));
        }
        if written.len != u64::from(offset) {
            return Err(io::Error::other("the write does not continue the segment"));
        }
        let end = written.len + bytes.len() as u64;
        if end > written.allocated {
            let target = end.next_multiple_of(ALLOCATION_STEP_BYTES);
            // It saves fragmentation and metadata, nothing else: when it fails, for want of space
            // or of support, the write says whether there is room.
            let allocated = open
                .file
                .allocate(written.allocated, target - written.allocated);
            written.allocated = if allocated.is_ok() { target } else { end };
        }
        let mut before = Ok(());
        if end < written.stale_until {
            // Zeroes, so that recovery does not take what lies behind for damage; to the end of the
            // page, which may not be in memory: half of it would have to be read first.
            let marked = (end + FRAME_HEADER_BYTES as u64).next_multiple_of(PAGE_BYTES);
            let mark = &END_MARK[..(marked - end) as usize];
            if bytes.capacity() - bytes.len() >= mark.len() {
                bytes.extend_from_slice(mark);
            } else {
                // Growing a buffer of 60 MiB would take as much again.
                before = open.file.write_at(end, mark);
            }
        }
        match before.and_then(|()| open.file.write_at(written.len, bytes)) {
            Ok(()) => {
                written.len = end;
                Ok(())
            }
            Err(error) => {
                written.takes_writes = false;
                // Half a record may be there, and the seal may be in the part of the batch that
                // is not carried out. If this fails too, recovery finds damage and skips it.
                written.stale_until = 0;
                if let Err(cut) = open.file.truncate(written.len) {
                    tracing::warn!(segment = segment.0, error = %cut, "cannot cut a failed write");
                }
                Err(error)
            }
        }
    }

    fn seal(&self, segment: SegmentId, len: u32, footer: SegmentFooter) -> io::Result<()> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let open = files.get(&segment).map(Arc::clone);
        drop(files);
        // A segment whose creation failed has nothing to seal.
        let Some(open) = open else { return Ok(()) };
        let mut written = open.written();
        written.takes_writes = false;
        written.len = written.len.min(u64::from(len));
        written.stale_until = 0;
        open.file.truncate(written.len)?;
        if written.len == u64::from(len) {
            self.unfinished.push(segment, len, footer);
        }
        Ok(())
    }

    /// Sealed segments that wait for their footers.
    pub fn unfinished(&self) -> &Arc<Unfinished> {
        &self.unfinished
    }

    /// Appends the footer of a sealed segment. Beside the disk threads: what is acknowledged does not wait
    /// for it. `None` if there is nothing more to do: the segment is read as a whole at a start.
    pub fn append_footer(&self, sealed: Sealed) -> Option<Footed> {
        let Sealed {
            segment,
            len,
            entries,
        } = sealed;
        let footed = |footer, end| {
            Some(Footed {
                segment,
                footer,
                end,
            })
        };
        let Some(entries) = entries else {
            return footed(0, len);
        };
        let frame = footer::close(segment, len, entries);
        let end = self.append_to_sealed(segment, len, &frame)?;
        footed(len, end)
    }

    /// Syncs a segment and notes that in it: from now on a start reads its footer only.
    pub fn append_trailer(&self, footed: Footed) {
        let Footed {
            segment,
            footer,
            end,
        } = footed;
        let Some(open) = self.open_sealed(segment) else {
            return;
        };
        if !PlantedBug::FooterBeforeSync.is_planted()
            && let Err(error) = open.file.sync()
        {
            self.sync_failure
                .note(&format!("fdatasync of segment {segment}"), &error);
            return;
        }
        let trailer = footer::encode_trailer(segment, end, footer);
        self.append_to_sealed(segment, end, &trailer);
    }

    /// Gives the new end.
    fn append_to_sealed(&self, segment: SegmentId, at: u32, bytes: &[u8]) -> Option<u32> {
        let end = at.checked_add(u32::try_from(bytes.len()).ok()?)?;
        let space = self.space.get();
        // A footer spares time; the last bytes are for records.
        if space.is_some_and(|it| !it.admits(bytes.len() as u64)) {
            return None;
        }
        let failed = |error| tracing::warn!(%segment, %error, "a segment stays without a footer");
        let _renaming = self.renaming();
        // Not the file that is held open: the segment may have gone meanwhile, and its file be
        // another one's.
        let file = match self.disk.open(&segment.file_name()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                failed(error);
                return None;
            }
        };
        if let Err(error) = file.write_at(u64::from(at), bytes) {
            failed(error);
            if let Err(error) = file.truncate(u64::from(at)) {
                tracing::warn!(%segment, %error, "cannot cut half a footer");
            }
            return None;
        }
        if let Some(space) = space {
            space.occupy(segment, u64::from(end));
        }
        Some(end)
    }

    /// `None` also if nothing in it was needed any more, and it is gone.
    fn open_sealed(&self, segment: SegmentId) -> Option<Arc<OpenSegment<D::File>>> {
        let open = self.segment(segment);
        if let Err(error) = &open
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%segment, %error, "a segment stays without a footer");
        }
        open.ok()
    }

    fn unlink(&self, segment: SegmentId) -> io::Result<()> {
        let space = self.space.get();
        let done = match space {
            Some(space) if !space.may_unlink(segment) => Err(io::Error::other(
                "an older segment that it has tombstones for is still there",
            )),
            _ => self.remove(segment),
        };
        match (&done, space) {
            (Ok(()), Some(space)) => space.unlinked(segment),
            (Err(_), Some(space)) => space.keep([segment]),
            (_, None) => {}
        }
        done
    }

    /// Nobody may read of it any more: its frames are not live.
    fn remove(&self, segment: SegmentId) -> io::Result<()> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let open = files.remove(&segment);
        drop(files);
        self.headers().forget(segment);
        let _renaming = self.renaming();
        let name = segment.file_name();
        let is_doubtful = open.is_some_and(|open| open.written().sync_failed);
        let len = match self.disk.open(&name) {
            Ok(file) if !is_doubtful => file.len()?,
            _ => 0,
        };
        let space = self.space.get();
        let space = space.filter(|space| len > 0 && space.may_spare(len));
        let space = space.filter(|space| {
            let most = usize::from(space.config().shards).min(SPARE_FILES_MAX);
            self.spares().len() < most
        });
        let Some(space) = space else {
            return self.unlink_file(&name);
        };
        let spare = SpareFile {
            name: format!("{name}{SPARE_FILE_SUFFIX}"),
            len,
        };
        self.disk.rename(&name, &spare.name)?;
        if let Err(error) = self.sync_dir() {
            // Not to be written over before it is sure that it is no segment any more.
            self.disk.unlink(&spare.name)?;
            return Err(error);
        }
        space.spared(len);
        self.spares().push(spare);
        Ok(())
    }

    fn unlink_file(&self, name: &str) -> io::Result<()> {
        match self.disk.unlink(name) {
            // Its creation had failed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        // Synced before the next one goes: tombstones must not vanish before what they cover.
        self.sync_dir()
    }

    fn spares(&self) -> MutexGuard<'_, Vec<SpareFile>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renaming(&self) -> MutexGuard<'_, ()> {
        self.renaming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_open(
        &self,
        segment: SegmentId,
        open: OpenSegment<D::File>,
    ) -> Arc<OpenSegment<D::File>> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= OPEN_FILES_MAX {
            let mut idle = files
                .iter()
                .filter(|(_, open)| !open.written().takes_writes)
                .map(|(id, _)| *id);
            if let Some(idle) = idle.next() {
                files.remove(&idle);
            }
        }
        // Two readers may open one segment at a time; the first one's file stays.
        Arc::clone(files.entry(segment).or_insert_with(|| Arc::new(open)))
    }

    pub(super) fn headers(&self) -> MutexGuard<'_, HeaderCache> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: DiskFile> OpenSegment<F> {
    fn begun(file: F, stale_until: u64) -> Self {
        Self::with(file, true, stale_until)
    }

    fn sealed(file: F) -> Self {
        Self::with(file, false, 0)
    }

    fn with(file: F, takes_writes: bool, stale_until: u64) -> Self {
        Self {
            file,
            sound: AtomicU64::new(0),
            written: Mutex::new(Written {
                len: 0,
                synced: 0,
                allocated: stale_until,
                stale_until,
                takes_writes,
                sync_failed: false,
            }),
        }
    }

    /// How long the file is, as far as it is known; asked of the file if that is not as far as `wanted`.
    /// The disk thread holds the lock while it writes: a reader must not wait for it.
    pub(super) fn len(&self, wanted: u64) -> io::Result<u64> {
        let known = self.sound.load(Ordering::Relaxed);
        if wanted <= known {
            return Ok(known);
        }
        let len = self.file.len()?;
        self.sound.fetch_max(len, Ordering::Relaxed);
        Ok(len)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
