//! What a shard hands out to be folded again, and what comes back.

use std::sync::Arc;

use crate::log::StoredFragment;
use crate::model::{Extent, FragmentHash, TraceId};
use crate::policy::{FoldState, Rules, Strategy, Vote};
use crate::trace::FragmentRef;

/// Traces to be folded again, with where what they lack lies.
#[derive(Debug)]
pub struct RefoldWork {
    pub rules: Arc<Rules>,
    pub(super) generation: u16,
    /// Verdicts wait for it.
    pub is_urgent: bool,
    pub traces: Vec<RefoldTrace>,
}

#[derive(Debug)]
pub struct RefoldTrace {
    pub(super) trace: TraceId,
    /// In the order of their arrival.
    pub extents: Vec<Extent>,
    /// They could not be read now.
    pub is_unread: bool,
    /// There was no room for more of the trace.
    pub(super) is_cut: bool,
    pub(super) progress: Progress,
    /// The last one of them.
    pub(super) last: FragmentHash,
}

/// How far a trace has come under the rules in force.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) state: FoldState,
    /// So many of its first fragments are in the state.
    pub(super) folded: usize,
    /// The last one of those.
    pub(super) last: Option<FragmentHash>,
    pub(super) spans: u32,
    /// A fragment was enough.
    pub(super) vote: Option<Vote>,
}

impl RefoldWork {
    /// Bytes to be read.
    pub fn bytes(&self) -> u64 {
        let extents = self.traces.iter().flat_map(|it| &it.extents);
        extents.map(|extent| u64::from(extent.len)).sum()
    }
}

impl RefoldTrace {
    /// Its next fragment, read back; [`None`] for one that is damaged: the trace goes on without it.
    pub fn fold(&mut self, rules: &Rules, fragment: Option<&StoredFragment>) {
        let progress = &mut self.progress;
        progress.folded += 1;
        let Some(fragment) = fragment.filter(|_| progress.vote.is_none()) else {
            return;
        };
        progress.spans += fragment.spans;
        let resource = &fragment.resource_header[..];
        let scopes = fragment.scopes.iter();
        let scopes = scopes.map(|scope| (&scope.header[..], &scope.spans[..]));
        if rules.settings.strategy == Strategy::SpanIngest {
            progress.vote = rules.vote_at_ingest_stored(
                fragment.trace,
                &mut progress.state,
                progress.spans,
                resource,
                scopes,
                fragment.arrival,
            );
        } else {
            rules.fold_stored(&mut progress.state, resource, scopes, fragment.arrival);
        }
    }
}

impl Progress {
    pub(super) fn begin(rules: &Rules) -> Self {
        Self {
            state: rules.begin(),
            folded: 0,
            last: None,
            spans: 0,
            vote: None,
        }
    }

    /// The trace still begins with what was folded.
    pub(super) fn fits(&self, fragments: &[FragmentRef]) -> bool {
        let last = self.folded.checked_sub(1).map(|at| fragments.get(at));
        last.is_none_or(|found| found.map(FragmentRef::hash) == self.last)
    }
}
