//! The byte bound of a data dir, and which segments may go. Does no I/O: writers say what they
//! append, the owner of the traces says what is needed no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::PlantedBug;
use crate::model::{Extent, SegmentId};

/// Blocks are reserved on disk in steps of this many bytes, so that a nearly empty segment does
/// not occupy 64 MiB; the bytes in use are counted in the same steps while a segment is open.
pub(super) const ALLOCATION_STEP_BYTES: u64 = 8 << 20;

/// An offset in a segment is a `u32`; a jumbo record on top of this still fits.
const SEGMENT_BYTES_MAX: u32 = 1 << 30;
/// Room for the header and a small record, so that tests can have tiny segments.
const SEGMENT_BYTES_MIN: u32 = 256;

#[derive(Debug, Clone, Copy)]
pub struct SpaceConfig {
    /// 64 MiB in production; 256 bytes to 1 GiB, what is beyond is clamped.
    pub segment_bytes: u32,
    pub log_max_bytes: u64,
    pub shards: u16,
}

impl SpaceConfig {
    /// Only control records may use this much below the bound: a full disk with the backend away
    /// must be able to note what was exported when the backend returns.
    pub fn reserve_bytes(&self) -> u64 {
        2 * u64::from(self.segment_bytes) * u64::from(self.shards)
    }

    /// With a smaller bound a shard could not even fill one segment while it frees another.
    pub fn smallest_bound_bytes(&self) -> u64 {
        2 * self.reserve_bytes()
    }
}

/// Shared by all shards of a worker; locked once a batch, never once a span.
#[derive(Debug)]
pub struct Space {
    config: SpaceConfig,
    /// Bytes that the volume has left; more than any has until somebody looked.
    pub(super) volume_free: AtomicU64,
    inner: Mutex<Inner>,
}

/// Fragments of one segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    pub count: u32,
    /// Of their frames.
    pub bytes: u64,
}

impl Frames {
    pub fn add(&mut self, fragment: Extent) {
        self.count += 1;
        self.bytes += u64::from(fragment.len);
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) segments: BTreeMap<SegmentId, Segment>,
    pub(super) used_bytes: u64,
    /// Of the used ones, those of files that are no segments now.
    pub(super) spare_bytes: u64,
    /// `None` once every ID was given away: 4 billion segments later.
    next: Option<SegmentId>,
    life: u64,
    /// Grows when something may have become free, and what each shard saw of it.
    pub(super) changes: u64,
    seen: BTreeMap<u16, u64>,
    /// A volume tells when a segment is really gone; see [`Space::await_unlinks`].
    pub(super) awaits_unlinks: bool,
    /// Shards that have not carried over what they need of earlier lives.
    carrying: BTreeSet<u16>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) shard: u16,
    /// From an earlier life of the data dir.
    pub(super) recovered: bool,
    pub(super) sealed: bool,
    /// Handed out by [`Space::take_freed`] or [`Space::take_compacted`], and not known to be gone.
    pub(super) going: bool,
    /// What its tombstones say was written anew: it need not wait for older ones.
    pub(super) compacted: bool,
    /// Goes below zero for a moment when a frame is released before its batch was taken.
    live: i64,
    pub(super) live_bytes: i64,
    /// Of all fragments that were ever written to it.
    pub(super) fragment_bytes: u64,
    pub(super) bytes: u64,
    /// The file was another segment before and is at least so long until it is sealed.
    recycled_bytes: u64,
    /// Frames from here on were abandoned by the writer and never counted as live.
    abandoned_from: Option<u32>,
}

/// What a writer tells about one segment when its batch is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) segment: SegmentId,
    /// Appended since the last time.
    pub(super) fragments: Frames,
    /// The length at which it was sealed.
    pub(super) sealed_at: Option<u32>,
}

impl Space {
    pub fn new(config: SpaceConfig) -> Arc<Self> {
        let config = SpaceConfig {
            segment_bytes: config
                .segment_bytes
                .clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            ..config
        };
        Arc::new(Self {
            config,
            volume_free: AtomicU64::new(u64::MAX),
            inner: Mutex::new(Inner {
                segments: BTreeMap::new(),
                used_bytes: 0,
                spare_bytes: 0,
                next: Some(SegmentId(1)),
                life: 1,
                changes: 0,
                seen: BTreeMap::new(),
                awaits_unlinks: false,
                carrying: BTreeSet::new(),
            }),
        })
    }

    /// Whether client bytes may still be appended: used + `bytes` ≤ bound − reserve, the reserve
    /// being two segments a shard. The volume must have the reserve as well: others' files may be
    /// on it, and with no room to note what was exported nothing would ever be freed.
    pub fn admits(&self, bytes: u64) -> bool {
        let reserve = self.config.reserve_bytes();
        let bound = self.config.log_max_bytes.saturating_sub(reserve);
        let inner = self.lock();
        // Spare files are room: the next segments take them.
        let free = self.volume_free.load(Ordering::Relaxed);
        free.saturating_add(inner.spare_bytes) >= reserve.saturating_add(bytes)
            && inner.used_bytes.saturating_add(bytes) <= bound
    }

    /// Somebody looked how many bytes the volume has left.
    pub fn volume_has(&self, free_bytes: u64) {
        self.volume_free.store(free_bytes, Ordering::Relaxed);
    }

    /// Bytes that the segments occupy on disk, those encoded but not yet written included; an open
    /// segment counts in the steps in which its blocks are reserved.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes
    }

    pub fn segments(&self) -> usize {
        self.lock().segments.len()
    }

    pub fn config(&self) -> SpaceConfig {
        self.config
    }

    /// These frames are needed no more: exported, or dropped and older than `drop_retain`. Each
    /// frame once. Frames that [`Writer::abandon`](crate::log::Writer::abandon) forgot may be
    /// among them and are ignored.
    pub fn release(&self, extents: impl IntoIterator<Item = Extent>) {
        let mut inner = self.lock();
        let mut look = false;
        for extent in extents {
            let Some(segment) = inner.segments.get_mut(&extent.segment) else {
                continue;
            };
            if segment
                .abandoned_from
                .is_some_and(|from| extent.offset >= from)
            {
                continue;
            }
            segment.live -= 1;
            segment.live_bytes -= i64::from(extent.len);
            look |= segment.is_idle();
        }
        inner.changes += u64::from(look);
    }

    /// As [`Space::release`], of frames that were counted. None of them may be among the forgotten.
    pub fn release_frames(&self, frames: impl IntoIterator<Item = (SegmentId, Frames)>) {
        let mut inner = self.lock();
        let mut look = false;
        for (segment, frames) in frames {
            if let Some(segment) = inner.segments.get_mut(&segment) {
                segment.live -= i64::from(frames.count);
                segment.live_bytes -= i64::try_from(frames.bytes).unwrap_or(i64::MAX);
                look |= segment.is_idle();
            }
        }
        inner.changes += u64::from(look);
    }

    /// A shard's segments (and those of earlier lives, to whoever asks first) that hold nothing live
    /// and whose tombstones cover nothing that is still there. Each is returned once, oldest first;
    /// the caller unlinks it (`DiskOp::Unlink`), in this order. One that is kept after all
    /// ([`Space::keep`], which a volume calls when the unlink fails) is returned again.
    ///
    /// A segment goes when it is sealed, nothing in it is live, and nothing older is there of its
    /// shard, or of an earlier life whatever the shard (the traces of a shard may have been
    /// another's then). Segments of earlier lives go in the order of their IDs.
    ///
    /// Decisions in a segment are not counted as live: carry them forward before
    /// ([`Space::next_to_free`]), after a start those of every recovered segment
    /// ([`Space::await_carrying_over`]).
    pub fn take_freed(&self, shard: u16) -> Vec<SegmentId> {
        self.take_freed_if(shard, |_| true)
    }

    /// As [`Space::take_freed`], of those that `may` go. For the others this is to be asked again.
    pub fn take_freed_if(
        &self,
        shard: u16,
        mut may: impl FnMut(SegmentId) -> bool,
    ) -> Vec<SegmentId> {
        let mut inner = self.lock();
        let changes = inner.changes;
        let seen = inner.seen.entry(shard).or_default();
        if std::mem::replace(seen, changes) == changes {
            return Vec::new();
        }
        let mut freed = Vec::new();
        let mut is_refused = false;
        let mut order = Order::default();
        let awaits_unlinks = inner.awaits_unlinks;
        let inner = &mut *inner;
        for (id, segment) in &mut inner.segments {
            let is_his = if segment.recovered {
                inner.carrying.is_empty()
            } else {
                segment.shard == shard
            };
            let may_go = is_his && !segment.going && segment.is_idle() && order.admits(segment);
            if may_go && may(*id) {
                segment.going = true;
                freed.push(*id);
                // Within one call the caller's order is enough.
            } else {
                order.block(segment);
                is_refused |= may_go;
            }
        }
        if is_refused {
            inner.seen.remove(&shard);
        }
        if !awaits_unlinks {
            for id in &freed {
                inner.remove(*id);
            }
        }
        freed
    }

    /// Segments of earlier lives stay until every shard has said that what it needs of them is on
    /// disk anew ([`Space::carried_over`]): they hold decisions of all shards, and each shard
    /// writes its own, when its disk thread gets to it.
    pub fn await_carrying_over(&self) {
        if !PlantedBug::UnlinkBeforeOtherShards.is_planted() {
            self.lock().carrying = (0..self.config.shards).collect();
        }
    }

    /// This shard needs no decision from a segment of an earlier life.
    pub fn carried_over(&self, shard: u16) {
        let mut inner = self.lock();
        if inner.carrying.remove(&shard) && inner.carrying.is_empty() {
            inner.changes += 1;
        }
    }

    /// The oldest segment that is still there: decisions recorded at or before it must be carried
    /// forward before it goes. It is of this shard, or of an earlier life and any shard.
    pub fn next_to_free(&self, shard: u16) -> Option<SegmentId> {
        let inner = self.lock();
        let mut mine = inner
            .segments
            .iter()
            .filter(|(_, segment)| segment.recovered || segment.shard == shard);
        mine.next().map(|(id, _)| *id)
    }

    /// A new segment for a shard, and the life of the data dir that writes it.
    pub(super) fn open(&self, shard: u16) -> (SegmentId, u64) {
        let mut inner = self.lock();
        // Past four billion segments (256 PiB written) the last ID stays: creating its file fails
        // because it exists, and the worker refuses instead of overwriting.
        let id = inner.next.unwrap_or(SegmentId(u32::MAX));
        inner.next = id.0.checked_add(1).map(SegmentId);
        let begun = Segment::begun(shard, false);
        inner.segments.entry(id).or_insert(begun);
        (id, inner.life)
    }

    /// How many bytes an open segment of this length occupies.
    pub(super) fn occupied_bytes(&self, len: u64) -> u64 {
        len.next_multiple_of(ALLOCATION_STEP_BYTES.min(u64::from(self.config.segment_bytes)))
    }

    pub(super) fn occupy(&self, segment: SegmentId, bytes: u64) {
        self.lock().set_bytes(segment, bytes);
    }

    /// A batch was taken.
    pub(super) fn settle(&self, progress: &[Progress]) {
        let mut inner = self.lock();
        for step in progress {
            if let Some(segment) = inner.segments.get_mut(&step.segment) {
                segment.appended(step.fragments);
                segment.sealed |= step.sealed_at.is_some();
            }
            if let Some(len) = step.sealed_at {
                inner.cut_to_length(step.segment);
                inner.set_bytes(step.segment, u64::from(len));
                inner.changes += 1;
            }
        }
    }

    /// The writer forgot what it had encoded from `taken` on and writes no more to this segment.
    pub(super) fn abandon(&self, segment: SegmentId, taken: u32) {
        let mut inner = self.lock();
        // Also one whose file was never asked for (`taken` is 0) is freed in its turn: records of
        // decisions were meant for it, and are carried forward when it goes.
        inner.cut_to_length(segment);
        inner.set_bytes(segment, u64::from(taken));
        if let Some(segment) = inner.segments.get_mut(&segment) {
            segment.sealed = true;
            segment.abandoned_from = Some(taken);
        }
        inner.changes += 1;
    }

    /// Whether a segment takes a quarter of its full size or more, and nothing in it is live. One
    /// that is still open goes only once it is sealed.
    pub fn is_wasted(&self, segment: SegmentId) -> bool {
        let quarter = u64::from(self.config.segment_bytes / 4);
        let inner = self.lock();
        let segment = inner.segments.get(&segment);
        segment.is_some_and(|it| it.live <= 0 && it.bytes >= quarter)
    }

    /// From now on a segment that was handed out is there until [`Space::unlinked`]: two shards'
    /// disk threads unlink side by side, and if the younger file went first a crash would leave
    /// exported fragments without their tombstones.
    pub(super) fn await_unlinks(&self) {
        self.lock().awaits_unlinks = true;
    }

    /// Whether nothing that this segment's tombstones may cover is there any more.
    pub(super) fn may_unlink(&self, id: SegmentId) -> bool {
        let inner = self.lock();
        let Some(segment) = inner.segments.get(&id) else {
            return true;
        };
        if segment.compacted {
            return true;
        }
        let mut order = Order::default();
        for (_, older) in inner.segments.range(..id) {
            order.block(older);
        }
        order.admits(segment)
    }

    /// Whether the file of a segment that goes may stay, to be written over: it is, with its footer, about
    /// as long as others, and the log is far from its bound and from that of its volume. (When it comes
    /// near, spare files are used up first.)
    pub(super) fn may_spare(&self, len: u64) -> bool {
        let segment = u64::from(self.config.segment_bytes);
        let free = self.volume_free.load(Ordering::Relaxed);
        (segment / 2..=segment + segment / 8).contains(&len)
            && self.lock().used_bytes <= self.config.log_max_bytes / 2
            && free >= 2 * self.config.reserve_bytes()
    }

    /// A file of this length stays without being a segment.
    pub(super) fn spared(&self, len: u64) {
        let mut inner = self.lock();
        inner.used_bytes += len;
        inner.spare_bytes += len;
    }

    /// A spare file of this length has become this segment.
    pub(super) fn recycled(&self, id: SegmentId, len: u64) {
        let mut inner = self.lock();
        inner.used_bytes -= len;
        inner.spare_bytes -= len;
        if let Some(segment) = inner.segments.get_mut(&id)
            && !segment.sealed
        {
            segment.recycled_bytes = len;
            let bytes = segment.bytes;
            inner.set_bytes(id, bytes);
        }
    }

    pub(super) fn unlinked(&self, id: SegmentId) {
        let mut inner = self.lock();
        inner.remove(id);
        inner.changes += 1;
    }

    /// These were handed out by [`Space::take_freed`] and were not unlinked, or not all of them:
    /// those that are still there are returned again.
    pub fn keep(&self, segments: impl IntoIterator<Item = SegmentId>) {
        let mut inner = self.lock();
        for id in segments {
            if let Some(segment) = inner.segments.get_mut(&id) {
                segment.going = false;
            }
        }
        inner.changes += 1;
    }

    /// A segment of an earlier life, before its records are read.
    pub(super) fn recovering(&self, id: SegmentId, shard: u16, life: u64, bytes: u64) {
        let mut inner = self.lock();
        inner.life = inner.life.max(life.saturating_add(1));
        inner.next = inner
            .next
            .and_then(|next| Some(next.max(SegmentId(id.0.checked_add(1)?))));
        inner.segments.insert(id, Segment::begun(shard, true));
        inner.set_bytes(id, bytes);
    }

    /// Its records are read. Releases that came meanwhile are counted.
    pub(super) fn recovered(&self, id: SegmentId, bytes: u64, fragments: Frames) {
        let mut inner = self.lock();
        inner.set_bytes(id, bytes);
        if let Some(segment) = inner.segments.get_mut(&id) {
            segment.appended(fragments);
            segment.sealed = true;
        }
        inner.changes += 1;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    fn begun(shard: u16, recovered: bool) -> Self {
        Self {
            shard,
            recovered,
            sealed: false,
            going: false,
            compacted: false,
            live: 0,
            live_bytes: 0,
            fragment_bytes: 0,
            bytes: 0,
            recycled_bytes: 0,
            abandoned_from: None,
        }
    }

    fn appended(&mut self, fragments: Frames) {
        self.live += i64::from(fragments.count);
        self.live_bytes += i64::try_from(fragments.bytes).unwrap_or(i64::MAX);
        self.fragment_bytes += fragments.bytes;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sealed && self.live <= 0
    }
}

impl Inner {
    fn set_bytes(&mut self, id: SegmentId, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&id) {
            let bytes = bytes.max(segment.recycled_bytes);
            self.used_bytes = self.used_bytes - segment.bytes + bytes;
            segment.bytes = bytes;
        }
    }

    /// The seal gives back what an earlier segment left behind.
    fn cut_to_length(&mut self, id: SegmentId) {
        if let Some(segment) = self.segments.get_mut(&id) {
            segment.recycled_bytes = 0;
        }
    }

    pub(super) fn remove(&mut self, id: SegmentId) {
        if let Some(segment) = self.segments.remove(&id) {
            self.used_bytes -= segment.bytes;
        }
    }
}

/// The order of going, while segments are visited in the order of their IDs.
#[derive(Debug, Default)]
struct Order {
    recovered: bool,
    shards: Vec<u16>,
}

impl Order {
    /// This segment stays.
    fn block(&mut self, segment: &Segment) {
        if segment.recovered {
            self.recovered = true;
        } else if !self.shards.contains(&segment.shard) {
            self.shards.push(segment.shard);
        }
    }

    fn admits(&self, segment: &Segment) -> bool {
        if PlantedBug::FreedOutOfOrder.is_planted() {
            return true;
        }
        !self.recovered && (segment.recovered || !self.shards.contains(&segment.shard))
    }
}
