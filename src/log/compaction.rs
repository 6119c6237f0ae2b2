//! Which segment is worth to be written anew, when, and what lies in it. Does not write.
//!
//! A segment goes by itself when nothing in it is live and everything older of its shard is gone. One trace of
//! half an hour would so keep every segment that is younger than its first span, and an outage of the
//! backend all that was dropped meanwhile. Compaction keeps a log within two times what is live in it
//! and two segments a shard: it begins at one segment a shard, the other one is for what is under way and
//! for files that are kept to be written over. Live are also drops that are younger than `drop_retain`.

use std::io;
use std::sync::atomic::Ordering;

use crate::log::recovery::{LastSegments, SegmentFile};
use crate::log::scan::Met;
use crate::log::space::{Inner, Segment};
use crate::log::{Disk, ReadError, Recovered, Space, SpaceConfig, Volume};
use crate::model::{Extent, SegmentId, TraceId};

/// A log that is nearer than this part of it, or two segments a shard, to refusing clients is compacted although it
/// is within twice what is live.
const TIGHT_PART: u64 = 16;
/// The largest live share of a segment that is written anew: half of it is won, so that a byte that is copied
/// frees another. In a log that is tight a quarter is worth it.
const LIVE_SHARE_MAX: f64 = 0.5;
const LIVE_SHARE_MAX_TIGHT: f64 = 0.75;
/// Also of one that is half headers and control records.
const LIVE_SHARE_MOST: f64 = 0.9;

/// A segment to be written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victim {
    pub segment: SegmentId,
    /// Of an earlier life: other shards may have a part in it, and it goes in its turn.
    pub is_recovered: bool,
    /// Nothing in it is live.
    pub is_idle: bool,
}

impl Space {
    /// The segment that this shard is to write anew now, if one: of its own the one with the smallest live share, or
    /// the oldest of earlier lives, in which every shard has a part. `may` says whether it can.
    ///
    /// A segment's live share is that of its fragments: the headers that they need are copied with them.
    pub fn victim(&self, shard: u16, may: impl Fn(SegmentId) -> bool) -> Option<Victim> {
        let config = self.config();
        let inner = self.lock();
        let used = inner.used_bytes - inner.spare_bytes;
        let live: u64 = inner.segments.values().map(Segment::live_frames).sum();
        let slack = u64::from(config.segment_bytes) * u64::from(config.shards);
        let bound = config.log_max_bytes.saturating_sub(config.reserve_bytes());
        let is_tight = inner.is_tight(bound, &config);
        if !is_tight && used <= 2 * live + slack {
            return None;
        }
        let share_max = if is_tight {
            LIVE_SHARE_MAX_TIGHT
        } else {
            LIVE_SHARE_MAX
        };
        let fits = |segment: &Segment| {
            let copy = segment.live_estimate() as u64;
            let free = self.volume_free.load(Ordering::Relaxed);
            inner.used_bytes.saturating_add(copy) <= config.log_max_bytes && copy <= free
        };
        let own = inner
            .segments
            .iter()
            .filter(|(id, it)| {
                let is_mine = !it.recovered && it.shard == shard;
                is_mine && it.sealed && !it.going && it.bytes > 0 && may(**id)
            })
            .map(|(id, it)| (it.live_share(), *id, it))
            .min_by(|(a, ..), (b, ..)| a.total_cmp(b))
            .filter(|(_, _, it)| it.is_sparse(share_max) && fits(it));
        let old = inner.oldest_recovered(share_max);
        let old = old.filter(|(_, id, it)| !it.going && it.live_bytes > 0 && may(*id) && fits(it));
        let best = match (own, old) {
            (Some(own), Some(old)) if old.0 < own.0 => old,
            (Some(own), _) => own,
            (None, old) => old?,
        };
        let (_, segment, it) = best;
        Some(Victim {
            segment,
            is_recovered: it.recovered,
            is_idle: it.is_idle(),
        })
    }

    /// Hands out a segment out of its order: nothing in it is live, and what its records say of others was
    /// written anew and synced. False if something in it is live, or it goes already.
    pub fn take_compacted(&self, id: SegmentId) -> bool {
        let mut inner = self.lock();
        let awaits_unlinks = inner.awaits_unlinks;
        let Some(segment) = inner.segments.get_mut(&id) else {
            return false;
        };
        if segment.going || !segment.is_idle() {
            return false;
        }
        segment.going = true;
        segment.compacted = true;
        if !awaits_unlinks {
            inner.remove(id);
        }
        true
    }

    /// Whether clients are about to be refused.
    pub fn is_tight(&self) -> bool {
        let config = self.config();
        let bound = config.log_max_bytes.saturating_sub(config.reserve_bytes());
        self.lock().is_tight(bound, &config)
    }

    /// Whether it is not gone yet.
    pub fn is_there(&self, id: SegmentId) -> bool {
        self.lock().segments.contains_key(&id)
    }

    /// Whether its file may be another segment's by now, or soon: what is live in it lies elsewhere.
    pub(super) fn is_going(&self, id: SegmentId) -> bool {
        let inner = self.lock();
        inner.segments.get(&id).is_none_or(|segment| segment.going)
    }

    /// Frames of live fragments, and the bytes of all segments, without spare files.
    pub fn live_and_used_bytes(&self) -> (u64, u64) {
        let inner = self.lock();
        let live = inner.segments.values().map(Segment::live_frames).sum();
        (live, inner.used_bytes - inner.spare_bytes)
    }
}

impl Segment {
    fn live_share(&self) -> f64 {
        if self.fragment_bytes == 0 || self.live_bytes <= 0 {
            return 0.0;
        }
        (self.live_bytes as f64 / self.fragment_bytes as f64).min(1.0)
    }

    fn live_frames(&self) -> u64 {
        u64::try_from(self.live_bytes).unwrap_or(0)
    }

    fn is_sparse(&self, share_max: f64) -> bool {
        let share = self.live_share();
        share <= share_max || (share <= LIVE_SHARE_MOST && 2 * self.live_frames() <= self.bytes)
    }

    /// What a copy of it would take, headers included.
    fn live_estimate(&self) -> f64 {
        self.live_share() * self.bytes as f64
    }
}

impl Inner {
    fn is_tight(&self, bound: u64, config: &SpaceConfig) -> bool {
        let near = (bound / TIGHT_PART).max(config.reserve_bytes());
        self.used_bytes >= bound.saturating_sub(near)
    }

    /// They go in their order: the oldest one has to be emptied first, though it may be full of what is live; as
    /// long as all of them together are worth it.
    fn oldest_recovered(&self, share_max: f64) -> Option<(f64, SegmentId, &Segment)> {
        let recovered = || self.segments.iter().filter(|(_, it)| it.recovered);
        let bytes: u64 = recovered().map(|(_, it)| it.bytes).sum();
        let live: u64 = recovered().map(|(_, it)| it.live_frames()).sum();
        let live = live as f64;
        let (id, oldest) = recovered().next()?;
        (live <= share_max * bytes as f64).then(|| (live / bytes.max(1) as f64, *id, oldest))
    }
}

impl<D: Disk> Volume<D> {
    /// The fragments of a sealed segment, live or not, from its footer if it has one.
    pub fn list(&self, id: SegmentId) -> Result<Vec<(TraceId, Extent)>, ReadError> {
        let failed = |source: io::Error| ReadError::Io {
            segment: id,
            source,
        };
        let found = SegmentFile::look(self, id)?;
        let open = self.segment(id).map_err(failed)?;
        let mut fragments = Vec::new();
        let mut note = |record: &Recovered| {
            if let Recovered::Fragment { trace, extent, .. } = record {
                fragments.push((*trace, *extent));
            }
        };
        match found.footer(&open.file).map_err(failed)? {
            Some(records) => records.iter().for_each(&mut note),
            None => {
                let mut on_met = |_: Extent, met| {
                    if let Met::Record(record) = met {
                        note(&record);
                    }
                };
                found
                    .scan(&open.file, &LastSegments::default(), &mut on_met)
                    .map_err(failed)?;
            }
        }
        Ok(fragments)
    }
}
