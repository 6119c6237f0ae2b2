//! Why rules say what they say of one trace: each policy's vote, those of the policies inside of it,
//! and what made it so.
//!
//! Nothing is judged a second time: the trace is folded and voted on by the compiled program, alone
//! in the windows of its limits, and what single resources and spans add to it is asked of the same
//! program, with nothing but them in it. The words for that are `reason`'s.

use crate::model::{Moment, Threshold, TraceId};
use crate::policy::evidence::Evidence;
use crate::policy::limits::{Answer, Complete, Limits};
use crate::policy::program::{Case, LimitAnswers, Node, says};
use crate::policy::reason::Reason;
use crate::policy::{FoldState, Folding, Policy, Rules, Said, Strategy, Vote};
use crate::wire::FragmentView;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// If no other trace is there.
    pub vote: Vote,
    /// If every limit that has a say refuses; [`None`] if none has.
    pub without_limits: Option<Vote>,
    pub spans: u32,
    /// What decided beside the votes, or did not let them decide.
    pub notes: Vec<String>,
    /// In the order of the file.
    pub policies: Vec<Explained>,
}

/// One policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    pub name: String,
    pub kind: &'static str,
    /// If it is not asked: what it would say.
    pub said: Said,
    /// Whether its answer can be of any matter: a verdict, or a no in an `and`, may stand before it.
    pub is_asked: bool,
    pub reasons: Vec<Reason>,
    /// Those inside of it, in the order in which they are asked.
    pub policies: Vec<Self>,
}

impl Said {
    /// The vote in one word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sampled(_) => "sampled",
            Self::NotSampled { .. } => "not_sampled",
            Self::Dropped => "dropped",
            Self::Error => "error",
        }
    }

    /// With which it would keep the trace, if it would and anybody can say.
    pub fn threshold(self) -> Option<Threshold> {
        match self {
            Self::Sampled(odds) => odds.threshold(),
            _ => None,
        }
    }
}

impl Rules {
    /// The trace as if these fragments were all of it, in the order of their arrival, all at
    /// `arrival`.
    pub fn explain(
        &self,
        trace: TraceId,
        fragments: &[FragmentView<'_>],
        arrival: Moment,
    ) -> Explanation {
        if self.settings.strategy == Strategy::SpanIngest {
            return self.explain_ingest(trace, fragments, arrival);
        }
        let mut state = self.begin();
        let mut spans = 0;
        for fragment in fragments {
            self.fold(&mut state, fragment, arrival);
            spans += fragment.fragment.spans;
        }
        let mut notes = Vec::new();
        let is_too_large = self.is_too_large(&state);
        if let Some(max) = self.settings.trace_bytes_max.filter(|_| is_too_large) {
            notes.push(format!(
                "the trace has {} bytes, more than maximum_trace_size_bytes ({max}): it is \
                 dropped as soon as it does, and nobody is asked",
                state.bytes()
            ));
        }
        let first = self.first_vote(trace, &state, spans);
        let answers = match first.asks {
            true => self.answers_alone(trace, &state, spans, arrival),
            false => LimitAnswers::default(),
        };
        // A trace that is kept for certain does not wait for what limits say.
        let vote = match first.vote.is_certain() {
            true => first.vote,
            false => self.vote(trace, &state, spans, &answers),
        };
        let evidence = Evidence::of(self, fragments, arrival);
        let case = Case {
            trace,
            state: &state,
            spans,
        };
        let mut policies = self.explained(case, &answers, &evidence);
        if is_too_large {
            policies.iter_mut().for_each(Explained::is_never_asked);
        }
        Explanation {
            vote,
            without_limits: (first.vote != vote).then_some(first.vote),
            spans,
            notes,
            policies,
        }
    }

    /// With `sampling_strategy: span-ingest`: up to the fragment that decides, and what the policies
    /// say of that one.
    fn explain_ingest(
        &self,
        trace: TraceId,
        fragments: &[FragmentView<'_>],
        arrival: Moment,
    ) -> Explanation {
        let mut state = self.begin();
        let (mut spans, mut decided, mut last) = (0, None, 0);
        let mut folding = Folding::default();
        for (index, fragment) in fragments.iter().enumerate() {
            spans += fragment.fragment.spans;
            last = index;
            decided =
                self.vote_at_ingest(trace, &mut state, spans, fragment, arrival, &mut folding);
            if decided.is_some() {
                break;
            }
        }
        let count = fragments.len();
        let note = match decided {
            Some(_) => format!(
                "sampling_strategy is span-ingest: fragment {} of {count} decided as it came, and \
                 the votes below are over it alone",
                last + 1
            ),
            None => format!(
                "sampling_strategy is span-ingest: none of {count} fragments was kept as it came, \
                 so the trace is dropped; the votes below are over the last one alone"
            ),
        };
        let evidence = Evidence::of(self, fragments.get(last..=last).unwrap_or(&[]), arrival);
        let case = Case {
            trace,
            state: &state,
            spans,
        };
        Explanation {
            vote: decided.unwrap_or(Vote::DROP),
            without_limits: None,
            spans,
            notes: vec![note],
            policies: self.explained(case, &LimitAnswers::default(), &evidence),
        }
    }

    /// What the limits say to the trace if no other one is there and they have saved up all they can.
    fn answers_alone(
        &self,
        trace: TraceId,
        state: &FoldState,
        spans: u32,
        now: Moment,
    ) -> LimitAnswers {
        let Some(mut limits) = Limits::of(self, now) else {
            return LimitAnswers::default();
        };
        let case = Complete {
            trace,
            state: state.clone(),
            spans,
        };
        let mut answers: Vec<Answer<()>> = Vec::new();
        limits.ask(case, Some(()), now, &mut answers);
        while answers.is_empty()
            && let Some(at) = limits.next_close()
        {
            limits.close(at, &mut answers);
        }
        answers.pop().map(|it| it.answers).unwrap_or_default()
    }

    fn explained(
        &self,
        case: Case<'_>,
        answers: &LimitAnswers,
        evidence: &Evidence<'_>,
    ) -> Vec<Explained> {
        let policies = self.policies.iter().zip(self.program().nodes());
        let mut explained: Vec<_> = policies
            .map(|(policy, node)| {
                let mut it = Explaining {
                    rules: self,
                    case,
                    answers,
                    evidence,
                };
                it.policy(policy, node)
            })
            .collect();
        // Those that drop first, then the others, as `Program` counts.
        let mut is_over = false;
        for drops in [true, false] {
            for it in explained
                .iter_mut()
                .filter(|it| (it.kind == "drop") == drops)
            {
                if is_over {
                    it.is_never_asked();
                }
                is_over |= match it.said {
                    Said::Dropped => true,
                    Said::Sampled(_) => !drops && self.settings.sample_on_first_match,
                    _ => false,
                };
            }
        }
        explained
    }
}

/// One trace, and what is known of it.
pub(super) struct Explaining<'a> {
    pub(super) rules: &'a Rules,
    pub(super) case: Case<'a>,
    pub(super) answers: &'a LimitAnswers,
    pub(super) evidence: &'a Evidence<'a>,
}

impl Explaining<'_> {
    fn policy(&mut self, policy: &Policy, node: &Node) -> Explained {
        let subs = policy.kind.subs().into_iter().zip(node.subs());
        let mut policies: Vec<_> = subs.map(|(sub, node)| self.policy(sub, node)).collect();
        let mut is_over = false;
        for sub in &mut policies {
            if is_over {
                sub.is_never_asked();
            }
            is_over |= match (node, sub.said) {
                (Node::And(_) | Node::Drop(_), said) => !matches!(said, Said::Sampled(_)),
                (Node::Composite(_), Said::Error) => true,
                (Node::Composite(it), Said::Sampled(_)) => it.first_only,
                _ => false,
            };
        }
        Explained {
            name: policy.name.clone(),
            kind: policy.kind.type_name(),
            said: says(node, self.case, self.answers),
            is_asked: true,
            reasons: self.reasons(policy, node, &policies),
            policies,
        }
    }
}

impl Explained {
    fn is_never_asked(&mut self) {
        self.is_asked = false;
        self.policies.iter_mut().for_each(Self::is_never_asked);
    }
}
