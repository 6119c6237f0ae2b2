//! Which segments' records say something about fragments in which others: verdicts and tombstones, which
//! lie in younger segments than what they are about.
//!
//! A segment that goes before the others must leave behind what it says of them; here stands of which traces
//! that is. Bounded: a segment for which there was no room is unlisted, and goes in its order only.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{SegmentId, TraceId};

/// See the module.
#[derive(Debug)]
pub struct Coverage {
    bytes_max: usize,
    /// By the segment that is spoken of, then by the one that speaks.
    covered: BTreeMap<SegmentId, BTreeMap<SegmentId, Vec<TraceId>>>,
    unlisted: BTreeSet<SegmentId>,
    traces: usize,
}

const TRACE_BYTES: usize = size_of::<TraceId>();

impl Coverage {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            covered: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            traces: 0,
        }
    }

    /// A record in one segment is about fragments of this trace in another.
    pub fn add(&mut self, recorded_in: SegmentId, covered: SegmentId, trace: TraceId) {
        if recorded_in == covered {
            return;
        }
        if self.bytes() >= self.bytes_max {
            self.unlisted.insert(recorded_in);
            return;
        }
        let by = self.covered.entry(covered).or_default();
        by.entry(recorded_in).or_default().push(trace);
        self.traces += 1;
    }

    /// Not all that the records of a segment are about is known here.
    pub fn unlist(&mut self, segment: SegmentId) {
        self.unlisted.insert(segment);
    }

    /// Whether all that the records of a segment are about is known here.
    pub fn lists(&self, segment: SegmentId) -> bool {
        !self.unlisted.contains(&segment)
    }

    /// What the records of a segment say of others, and forgets it: the caller writes it anew.
    pub fn take(&mut self, recorded_in: SegmentId) -> Vec<(SegmentId, Vec<TraceId>)> {
        let mut taken = Vec::new();
        for (covered, by) in &mut self.covered {
            if let Some(traces) = by.remove(&recorded_in) {
                self.traces -= traces.len();
                taken.push((*covered, traces));
            }
        }
        self.covered.retain(|_, by| !by.is_empty());
        taken
    }

    /// Forgets what is about segments that are gone, and what those said that are.
    pub fn forget(&mut self, is_there: impl Fn(SegmentId) -> bool) {
        let mut traces = 0;
        self.covered.retain(|covered, by| {
            let stays = is_there(*covered);
            if stays {
                traces += by.values().map(Vec::len).sum::<usize>();
            }
            stays
        });
        self.traces = traces;
        self.unlisted.retain(|segment| is_there(*segment));
    }

    pub fn bytes(&self) -> usize {
        self.traces * TRACE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(n: u8) -> TraceId {
        TraceId::new([n; 16]).unwrap()
    }

    #[test]
    fn what_a_segment_says_of_others_is_taken_once_and_forgotten_with_them() {
        let segment = SegmentId;
        let mut coverage = Coverage::new(1 << 20);
        coverage.add(segment(9), segment(9), trace(1));
        coverage.add(segment(9), segment(3), trace(2));
        coverage.add(segment(9), segment(4), trace(2));
        coverage.add(segment(8), segment(3), trace(5));
        assert_eq!(coverage.bytes(), 3 * TRACE_BYTES);
        coverage.forget(|it| it != segment(4));
        assert_eq!(
            coverage.take(segment(9)),
            [(segment(3), vec![trace(2)])],
            "not of itself, nor of one that is gone"
        );
        assert!(coverage.take(segment(9)).is_empty());
        assert_eq!(coverage.take(segment(8)).len(), 1);
        assert_eq!(coverage.bytes(), 0);
    }

    #[test]
    fn a_segment_for_which_there_was_no_room_is_known_to_be_unlisted() {
        let segment = SegmentId;
        let mut coverage = Coverage::new(TRACE_BYTES);
        coverage.add(segment(5), segment(1), trace(1));
        coverage.add(segment(6), segment(1), trace(2));
        assert!(coverage.lists(segment(5)) && !coverage.lists(segment(6)));
        coverage.forget(|it| it != segment(6));
        assert!(coverage.lists(segment(6)));
    }
}
