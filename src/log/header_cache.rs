//! Headers that were read back. Equal headers share one allocation, from whatever segment they
//! came; the whole is bounded in bytes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use foldhash::fast::RandomState;

use crate::model::SegmentId;

/// Header bytes and bookkeeping kept. Reached, everything is forgotten: what an export still
/// holds lives on with it.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// What an entry costs beside the header's bytes, roughly.
const ENTRY_BYTES: usize = 128;

#[derive(Debug, Default)]
pub(super) struct HeaderCache {
    by_place: HashMap<(SegmentId, u32), Bytes, RandomState>,
    by_hash: HashMap<u128, Bytes, RandomState>,
    bytes: usize,
}

impl HeaderCache {
    pub(super) fn get(&self, segment: SegmentId, offset: u32) -> Option<Bytes> {
        self.by_place.get(&(segment, offset)).cloned()
    }

    /// Remembers a header; gives the bytes back, shared with those of an equal one. `hash` only
    /// finds candidates: it can be collided on purpose.
    pub(super) fn insert(
        &mut self,
        segment: SegmentId,
        offset: u32,
        hash: u128,
        bytes: &[u8],
    ) -> Bytes {
        let cost = bytes.len() + ENTRY_BYTES;
        if cost > CACHE_BYTES_MAX {
            return Bytes::copy_from_slice(bytes);
        }
        if self.bytes + cost > CACHE_BYTES_MAX {
            *self = Self::default();
        }
        let (shared, added) = match self.by_hash.entry(hash) {
            Entry::Occupied(known) if known.get() == bytes => (known.get().clone(), 0),
            Entry::Occupied(_) => (Bytes::copy_from_slice(bytes), bytes.len()),
            Entry::Vacant(new) => {
                let shared = new.insert(Bytes::copy_from_slice(bytes)).clone();
                (shared, bytes.len() + ENTRY_BYTES)
            }
        };
        self.by_place.insert((segment, offset), shared.clone());
        self.bytes += added + ENTRY_BYTES;
        shared
    }

    /// The segment is gone. Its headers' bytes stay for equal ones, within the bound.
    pub(super) fn forget(&mut self, segment: SegmentId) {
        self.by_place.retain(|(of, _), _| *of != segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_headers_share_bytes_and_a_collision_does_not_mix_them() {
        let mut cache = HeaderCache::default();
        let first = cache.insert(SegmentId(1), 64, 7, b"tenant a");
        let again = cache.insert(SegmentId(2), 99, 7, b"tenant a");
        assert_eq!(first.as_ptr(), again.as_ptr());
        let other = cache.insert(SegmentId(2), 200, 7, b"tenant b");
        assert_eq!(&other[..], b"tenant b");
        assert_eq!(
            cache.get(SegmentId(2), 200).as_deref(),
            Some(&b"tenant b"[..])
        );
        assert_eq!(
            cache.get(SegmentId(1), 64).as_deref(),
            Some(&b"tenant a"[..])
        );
        cache.forget(SegmentId(2));
        assert_eq!(cache.get(SegmentId(2), 99), None);
    }

    #[test]
    fn the_cache_stays_within_its_bytes() {
        let mut cache = HeaderCache::default();
        let large = vec![1; CACHE_BYTES_MAX / 3];
        for id in 0..20 {
            let bytes = cache.insert(SegmentId(id), 64, u128::from(id), &large);
            assert_eq!(bytes, large);
            let held: usize = cache.by_hash.values().map(Bytes::len).sum();
            assert!(held <= CACHE_BYTES_MAX);
        }
        let giant = vec![2; CACHE_BYTES_MAX + 1];
        assert_eq!(cache.insert(SegmentId(99), 64, 99, &giant), giant);
        assert_eq!(cache.get(SegmentId(99), 64), None);
    }
}
