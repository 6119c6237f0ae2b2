//! What was dropped and is young: how much of which segments it is, and where it lies, should its DROP rise.
//! When it is let go, and when it moves, others say.

use std::collections::{BTreeMap, BTreeSet};

use super::by_segment;
use crate::log::Frames;
use crate::model::{Extent, Moment, SegmentId, TraceId};
use crate::trace::{FragmentRef, TraceEntry};

/// A dropped trace, or a part of one, whose bytes are still young.
#[derive(Debug)]
pub(super) struct Retained {
    /// When it was decided, and `drop_retain` more.
    pub(super) until: Moment,
    /// Must be on disk before they go: a verdict that is lost with them would be given anew, on
    /// what is left of the trace.
    pub(super) batch: u64,
    pub(super) trace: TraceId,
    pub(super) fragments: Box<[(SegmentId, Frames)]>,
    /// The last one of a chain, where that was when it was dropped: each says where the one before it is.
    last: Option<Extent>,
    known: Option<Box<Known>>,
}

/// A trace may have 100,000 fragments: each is found at once.
#[derive(Debug, Default)]
struct Known {
    /// Of the chain, what compaction wrote anew since: from there to there, and back.
    moves: BTreeMap<Extent, Extent>,
    origins: BTreeMap<Extent, Extent>,
    /// What no chain leads to.
    listed: BTreeSet<Extent>,
}

/// What a place takes, with its share of a node.
const PLACE_BYTES: usize = size_of::<Extent>() * 3 / 2;

impl Retained {
    pub(super) fn of(entry: &TraceEntry, until: Moment, batch: u64, trace: TraceId) -> Self {
        let (last, known) = if entry.is_relocated() {
            let listed = entry.fragments().iter().map(FragmentRef::extent).collect();
            let known = Known {
                listed,
                ..Known::default()
            };
            (None, Some(Box::new(known)))
        } else {
            (entry.tail(), None)
        };
        Self {
            fragments: by_segment(entry.fragments()),
            last,
            known,
            ..Self::empty(until, batch, trace)
        }
    }

    /// Nothing yet.
    pub(super) fn empty(until: Moment, batch: u64, trace: TraceId) -> Self {
        Self {
            until,
            batch,
            trace,
            fragments: Box::default(),
            last: None,
            known: None,
        }
    }

    /// Its fragments.
    pub(super) fn count(&self) -> u32 {
        self.fragments.iter().map(|(_, frames)| frames.count).sum()
    }

    /// Beside the part itself.
    pub(super) fn places_bytes(&self) -> usize {
        self.known.as_ref().map_or(0, |known| {
            let places = 2 * known.moves.len() + 2 * known.origins.len() + known.listed.len();
            size_of::<Known>() + places * PLACE_BYTES
        })
    }

    /// One more, that came after the verdict.
    pub(super) fn add(&mut self, extent: Extent) {
        self.count_in(extent);
        self.known.get_or_insert_default().listed.insert(extent);
    }

    /// Whether a fragment may be one of its: the log alone says of most.
    pub(super) fn may_hold(&self, extent: Extent) -> bool {
        let bytes = u64::from(extent.len);
        let mut counted = self.fragments.iter();
        counted.any(|(of, live)| *of == extent.segment && live.count > 0 && live.bytes >= bytes)
    }

    /// Whether a fragment is known to be one of its.
    pub(super) fn holds(&self, extent: Extent) -> bool {
        let is_known = |it: &Known| it.origins.contains_key(&extent) || it.listed.contains(&extent);
        self.end() == Some(extent) || self.known.as_deref().is_some_and(is_known)
    }

    /// Whether it has fragments of which only the log says where they are.
    pub(super) fn is_chain(&self) -> bool {
        self.last.is_some()
    }

    /// One of its fragments is not there any more.
    pub(super) fn lose(&mut self, extent: Extent) {
        for (segment, live) in &mut self.fragments {
            if *segment == extent.segment {
                live.count = live.count.saturating_sub(1);
                live.bytes = live.bytes.saturating_sub(u64::from(extent.len));
            }
        }
        if let Some(known) = &mut self.known {
            known.listed.remove(&extent);
        }
    }

    /// One of its fragments lies elsewhere now.
    pub(super) fn relocate(&mut self, from: Extent, to: Extent) {
        let known = self.known.as_deref();
        let is_listed = known.is_some_and(|it| it.listed.contains(&from));
        self.lose(from);
        self.count_in(to);
        let known = self.known.get_or_insert_default();
        if is_listed {
            known.listed.insert(to);
            return;
        }
        let origin = known.origins.remove(&from).unwrap_or(from);
        known.moves.insert(origin, to);
        known.origins.insert(to, origin);
    }

    /// Where the end of its chain is now.
    pub(super) fn end(&self) -> Option<Extent> {
        self.last.map(|it| self.place_of(it))
    }

    /// Where a fragment of the chain is now that was there when it was dropped.
    pub(super) fn place_of(&self, extent: Extent) -> Extent {
        let known = self.known.as_deref();
        let moved = known.and_then(|it| it.moves.get(&extent));
        moved.copied().unwrap_or(extent)
    }

    /// What no chain leads to, in the order of the log.
    pub(super) fn listed(&self) -> impl DoubleEndedIterator<Item = Extent> {
        let known = self.known.iter();
        known.flat_map(|it| it.listed.iter().copied())
    }

    fn count_in(&mut self, extent: Extent) {
        let mut fragments = std::mem::take(&mut self.fragments).into_vec();
        fragments.retain(|(_, live)| live.count > 0);
        let there = fragments.iter_mut().find(|(of, _)| *of == extent.segment);
        match there {
            Some((_, live)) => live.add(extent),
            None => {
                let mut live = Frames::default();
                live.add(extent);
                fragments.push((extent.segment, live));
            }
        }
        self.fragments = fragments.into();
    }
}
