//! A policy file, compiled: what is folded of each span, and the vote over one complete trace.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{Moment, TraceId};
use crate::policy::fold::Needs;
use crate::policy::program::{Case, LimitAnswers, Program};
use crate::policy::version::version_of;
use crate::policy::{FoldState, Policy, PolicyKind, Said, Settings, Strategy, Timing, Vote};
use crate::wire::{FragmentView, request_len, spans_in};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Hash of what the file means; equal rules, equal version.
    pub version: u64,
    pub timing: Timing,
    pub policies: Vec<Policy>,
    pub settings: Settings,
    needs: Needs,
    program: Arc<Program>,
}

/// The votes on a trace that is complete, before limits were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstVote {
    /// As if the limits said no.
    pub vote: Vote,
    /// It reaches a limit.
    pub asks: bool,
}

impl Rules {
    /// With the default settings.
    pub fn new(timing: Timing, policies: Vec<Policy>) -> Self {
        Self::with_settings(timing, policies, Settings::default())
    }

    pub fn with_settings(timing: Timing, policies: Vec<Policy>, settings: Settings) -> Self {
        let (program, needs) = Program::compile(&policies, &settings);
        Self {
            version: version_of(&timing, &policies, &settings),
            timing,
            policies,
            settings,
            needs,
            program: Arc::new(program),
        }
    }

    /// Keeps everything after the Collector's default wait.
    pub fn keep_everything() -> Self {
        Self::new(
            Timing {
                decision_wait: Duration::from_secs(30),
                quiet_period: None,
                decision_wait_after_root_received: None,
            },
            vec![Policy {
                name: "default".into(),
                kind: PolicyKind::AlwaysSample,
            }],
        )
    }

    /// The state of a trace without spans.
    pub fn begin(&self) -> FoldState {
        self.needs.begin()
    }

    /// Heap that each state of these rules has beside its own size.
    pub fn state_heap_bytes(&self) -> usize {
        self.needs.state_heap_bytes()
    }

    /// Folds a fragment in. To be called once for each, in the order of arrival; `arrival` is when
    /// it came.
    #[inline]
    pub fn fold(&self, state: &mut FoldState, fragment: &FragmentView<'_>, arrival: Moment) {
        if self.needs.is_nothing() {
            return;
        }
        if self.needs.want_bytes_of_fragments() {
            state.add_bytes(fragment.request_len() as u64);
        }
        self.needs.resource(state, fragment.resource().pieces());
        for scope in fragment.scopes() {
            for span in scope.spans() {
                self.needs.span(state, span);
            }
        }
        let resource = fragment.resource();
        let scopes = fragment
            .scopes()
            .map(|scope| (scope.header.pieces(), scope.spans()));
        let conditions = &self.needs.conditions;
        conditions.fold(state, resource.pieces(), scopes, arrival);
    }

    /// Folds a fragment that was read back: the header of its resource, and for each of its scopes
    /// the header and `(12 len span)*`.
    pub fn fold_stored<'a>(
        &self,
        state: &mut FoldState,
        resource_header: &'a [u8],
        scopes: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
        arrival: Moment,
    ) {
        if self.needs.is_nothing() {
            return;
        }
        if self.needs.want_bytes_of_fragments() {
            let lens = scopes
                .clone()
                .map(|(header, spans)| header.len() + spans.len());
            state.add_bytes(request_len(resource_header.len(), lens) as u64);
        }
        self.needs.resource(state, std::iter::once(resource_header));
        for (_, span) in scopes.clone().flat_map(|(_, spans)| spans_in(spans)) {
            self.needs.span(state, span);
        }
        let resource = std::iter::once(resource_header);
        let scopes = scopes.map(|(header, spans)| {
            let spans = spans_in(spans).map(|(_, span)| span);
            (std::iter::once(header), spans)
        });
        let conditions = &self.needs.conditions;
        conditions.fold(state, resource, scopes, arrival);
    }

    /// Whether the votes depend on what spans say, so that a state that was lost must be folded
    /// again.
    pub fn reads_spans(&self) -> bool {
        !self.needs.is_nothing()
    }

    /// Whether the trace has grown beyond `maximum_trace_size_bytes`, and is dropped.
    pub fn is_too_large(&self, state: &FoldState) -> bool {
        let max = self.settings.trace_bytes_max;
        max.is_some_and(|max| state.bytes() > max)
    }

    /// With `sampling_strategy: span-ingest`: the vote over a fragment alone; [`None`] if it decides
    /// nothing. `state` begins anew with it and keeps its bytes.
    pub fn vote_at_ingest(
        &self,
        trace: TraceId,
        state: &mut FoldState,
        spans: u32,
        fragment: &FragmentView<'_>,
        arrival: Moment,
    ) -> Option<Vote> {
        let bytes = state.bytes();
        *state = self.begin();
        self.fold(state, fragment, arrival);
        state.add_bytes(bytes);
        let state = &*state;
        self.program.at_ingest(Case {
            trace,
            state,
            spans,
        })
    }

    /// The vote over a complete trace, as far as no limit has a say in it.
    pub fn first_vote(&self, trace: TraceId, state: &FoldState, spans: u32) -> FirstVote {
        let dropped = if self.is_too_large(state) {
            Some(Vote::DROP_FOR_GOOD)
        } else {
            // Nobody kept it when it came.
            (self.settings.strategy == Strategy::SpanIngest).then_some(Vote::DROP)
        };
        if let Some(vote) = dropped {
            return FirstVote { vote, asks: false };
        }
        let case = Case {
            trace,
            state,
            spans,
        };
        let count = self.program.count(case, &LimitAnswers::default(), true);
        FirstVote {
            vote: count.vote,
            asks: !count.open.is_empty(),
        }
    }

    /// The vote over a complete trace when limits have answered. One that did not, because the trace
    /// did not reach it, has said no.
    pub fn vote(
        &self,
        trace: TraceId,
        state: &FoldState,
        spans: u32,
        answers: &LimitAnswers,
    ) -> Vote {
        if self.is_too_large(state) {
            return Vote::DROP_FOR_GOOD;
        }
        let case = Case {
            trace,
            state,
            spans,
        };
        self.program.count(case, answers, false).vote
    }

    /// What each policy says alone, in the order of the file: [`Rules::vote`] counts these.
    pub fn votes(
        &self,
        trace: TraceId,
        state: &FoldState,
        spans: u32,
        answers: &LimitAnswers,
    ) -> Vec<Said> {
        let case = Case {
            trace,
            state,
            spans,
        };
        self.program.each(case, answers)
    }

    pub(super) fn program(&self) -> &Arc<Program> {
        &self.program
    }
}
