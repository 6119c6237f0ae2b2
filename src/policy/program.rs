//! The policies of a file, compiled: what each asks of a trace's state, and how votes come about.
//!
//! Votes need nothing but the state, so they are cast again whenever something is new: when the
//! trace is complete, and when a limit answered. A policy whose vote waits for a limit asks it, and
//! whatever stands behind it in an `and` or a `composite`, or behind a `drop`, waits with it: a
//! limit sees exactly the traces that reach it, and inner ones are asked first.

use crate::model::{Randomness, Threshold, TraceId, Verdict};
use crate::policy::conditions::Ends;
use crate::policy::fold::{Fact, Needs};
use crate::policy::limits::{Budget, LimitRule};
use crate::policy::vote::{Odds, Said, Tally, Vote};
use crate::policy::{
    Compatibility, FoldState, HashSeed, Latency, Policy, PolicyKind, Scope, Settings, SpanCount,
};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Program {
    /// Those that drop, which are asked first.
    drops: Vec<Entry>,
    others: Vec<Entry>,
    first_match: bool,
    /// By the numbers that nodes have of them.
    pub(super) limits: Vec<LimitRule>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// Its place in the file.
    policy: u16,
    node: Node,
    /// A limit has a part in it.
    limited: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// Yes or no whatever the trace is.
    Fixed(bool),
    Share(Threshold),
    Hash(HashSeed),
    Statuses(u8),
    /// The longest that the trace was.
    Longest(Latency),
    /// What it was in the end.
    Final(Latency),
    Spans(SpanCount),
    Seen {
        fact: Fact,
        inverted: bool,
    },
    Conditions(Ends),
    Limit(u16),
    And(Vec<Node>),
    Not(Box<Node>),
    Drop(Vec<Node>),
    Composite(Composite),
}

#[derive(Debug, Clone, PartialEq)]
struct Composite {
    limit: u16,
    subs: Vec<Node>,
    /// The Collector's: what the first one that says yes has no room for is not kept.
    first_only: bool,
}

/// One complete trace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    pub trace: TraceId,
    pub state: &'a FoldState,
    pub spans: u32,
}

/// What limits said to one trace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitAnswers(Vec<(u16, Option<Odds>)>);

/// A limit is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) limit: u16,
    /// The policies of a composite that would keep the trace; empty for other limits.
    pub(super) subs: Vec<(u8, Odds)>,
}

/// Votes as far as limits have answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Count {
    /// As if every question that is open were answered with no.
    pub(super) vote: Vote,
    pub(super) open: Vec<Question>,
}

impl LimitAnswers {
    pub(super) fn note(&mut self, limit: u16, answer: Option<Odds>) {
        self.0.push((limit, answer));
    }

    fn of(&self, limit: u16) -> Option<Option<Odds>> {
        let found = self.0.iter().find(|(number, _)| *number == limit);
        found.map(|(_, answer)| *answer)
    }
}

impl Program {
    /// With what the policies need to see of each span.
    pub(super) fn compile(policies: &[Policy], settings: &Settings) -> (Self, Needs) {
        let mut compiler = Compiler {
            compatibility: settings.compatibility,
            needs: Needs::default(),
            limits: Vec::new(),
        };
        let mut program = Self {
            drops: Vec::new(),
            others: Vec::new(),
            first_match: settings.sample_on_first_match,
            limits: Vec::new(),
        };
        for (index, policy) in policies.iter().enumerate() {
            let limits = compiler.limits.len();
            let node = compiler.node(&policy.kind);
            let entry = Entry {
                // Policies are at most a thousand.
                policy: index as u16,
                limited: compiler.limits.len() > limits,
                node,
            };
            match entry.node {
                Node::Drop(_) => program.drops.push(entry),
                _ => program.others.push(entry),
            }
        }
        if settings.trace_bytes_max.is_some() {
            compiler.needs.want_bytes();
        }
        program.limits = compiler.limits;
        (program, compiler.needs)
    }

    /// Whether no vote can change with the spans that come: all go by the trace's randomness.
    pub(super) fn is_blind(&self) -> bool {
        let blind =
            |entry: &Entry| matches!(entry.node, Node::Fixed(_) | Node::Share(_) | Node::Hash(_));
        self.drops.is_empty() && self.others.iter().all(blind)
    }

    /// Unless it `asks`, a limit that has not answered has said no.
    pub(super) fn count(&self, case: Case<'_>, answers: &LimitAnswers, asks: bool) -> Count {
        let mut voting = Voting::new(case, answers, asks);
        let mut tally = Tally::new(self.first_match);
        for entry in &self.drops {
            match voting.node(&entry.node) {
                Some(said) => tally.drop_said(said),
                // Nothing is known before it is known whether it drops.
                None => return voting.counted(Vote::DROP),
            }
            if tally.is_dropped() {
                return voting.counted(Vote::DROP_FOR_GOOD);
            }
        }
        let mut waits = false;
        for entry in &self.others {
            // What no limit has a part in costs nothing, and may lower the threshold.
            if entry.limited && (waits || tally.is_over()) {
                continue;
            }
            match voting.node(&entry.node) {
                Some(said) => tally.said(entry.policy, said, entry.limited),
                None => waits = self.first_match,
            }
        }
        voting.counted(tally.vote())
    }

    /// The votes over one fragment as it comes; [`None`] if none decides.
    pub(super) fn at_ingest(&self, case: Case<'_>) -> Option<Vote> {
        let no_answers = LimitAnswers::default();
        let count = self.count(case, &no_answers, false);
        if count.vote.verdict == Verdict::Keep {
            // Not while a later span may match a policy that drops.
            return self.drops.is_empty().then(|| {
                let certain = count.vote.is_certain() || self.is_blind();
                Vote {
                    // A later span might have lowered it.
                    threshold: count.vote.threshold.filter(|_| certain),
                    ..count.vote
                }
            });
        }
        let mut voting = Voting::new(case, &no_answers, false);
        let mut drops = self.drops.iter();
        drops
            .any(|entry| voting.node(&entry.node) == Some(Said::Dropped))
            .then_some(Vote::DROP_FOR_GOOD)
    }

    /// What each policy says, in the order of the file. A limit that has not answered says no.
    pub(super) fn each(&self, case: Case<'_>, answers: &LimitAnswers) -> Vec<Said> {
        let mut voting = Voting::new(case, answers, false);
        let mut entries: Vec<_> = self.drops.iter().chain(&self.others).collect();
        entries.sort_unstable_by_key(|entry| entry.policy);
        let said = entries.into_iter().map(|entry| voting.node(&entry.node));
        said.map(|said| said.unwrap_or(Said::NO_LUCK)).collect()
    }
}

struct Compiler {
    compatibility: Compatibility,
    needs: Needs,
    limits: Vec<LimitRule>,
}

impl Compiler {
    fn node(&mut self, kind: &PolicyKind) -> Node {
        match kind {
            PolicyKind::AlwaysSample => Node::Fixed(true),
            PolicyKind::Probabilistic(None) => Node::Fixed(false),
            PolicyKind::Probabilistic(Some(threshold)) => {
                self.needs.want_randomness();
                Node::Share(*threshold)
            }
            PolicyKind::HashSeed(seed) => Node::Hash(seed.clone()),
            PolicyKind::StatusCode(codes) => {
                self.needs.want_status();
                Node::Statuses(codes.0)
            }
            PolicyKind::Latency(latency) => {
                self.needs.want_times();
                match (latency.upper_threshold_millis, self.compatibility) {
                    (None, _) => Node::Longest(*latency),
                    (Some(_), Compatibility::Tailring) => Node::Final(*latency),
                    (Some(_), Compatibility::Collector) => {
                        self.seen(|needs| needs.bounded(latency))
                    }
                }
            }
            PolicyKind::SpanCount(count) => Node::Spans(*count),
            PolicyKind::RateLimiting(limit) => {
                let budget = Budget::Spans {
                    per_second: limit.spans_per_second,
                    burst: limit.burst_spans,
                };
                self.limit(budget, limit.scope)
            }
            PolicyKind::BytesLimiting(limit) => {
                self.needs.want_bytes();
                let budget = Budget::Bytes {
                    per_second: limit.bytes_per_second,
                    burst: limit.burst_bytes,
                };
                self.limit(budget, limit.scope)
            }
            PolicyKind::StringAttribute(it) => Node::Seen {
                fact: self.needs.string_attribute(&it.key, &it.values),
                inverted: it.invert_match,
            },
            PolicyKind::NumericAttribute(it) => Node::Seen {
                fact: self.needs.numeric_attribute(&it.key, it.min, it.max),
                inverted: it.invert_match,
            },
            PolicyKind::BooleanAttribute(it) => Node::Seen {
                fact: self.needs.boolean_attribute(&it.key, it.value),
                inverted: it.invert_match,
            },
            PolicyKind::TraceState(it) => self.seen(|needs| needs.trace_state(it)),
            PolicyKind::OttlCondition(it) => Node::Conditions(self.needs.ottl_condition(it)),
            PolicyKind::TraceFlags => self.seen(Needs::sampled_flag),
            PolicyKind::And(subs) => Node::And(self.nodes(subs)),
            PolicyKind::Not(sub) => Node::Not(Box::new(self.node(&sub.kind))),
            PolicyKind::Drop(subs) => Node::Drop(self.nodes(subs)),
            PolicyKind::Composite(composite) => {
                let subs = composite.subs.iter();
                let subs = subs.map(|sub| self.node(&sub.policy.kind)).collect();
                let budget = Budget::Shared {
                    per_second: composite.max_spans_per_second,
                    of_each: composite
                        .subs
                        .iter()
                        .map(|it| it.spans_per_second)
                        .collect(),
                };
                let limit = self.new_limit(budget, composite.scope);
                Node::Composite(Composite {
                    limit,
                    subs,
                    first_only: self.compatibility == Compatibility::Collector,
                })
            }
        }
    }

    fn nodes(&mut self, subs: &[Policy]) -> Vec<Node> {
        subs.iter().map(|sub| self.node(&sub.kind)).collect()
    }

    fn seen(&mut self, fact: impl FnOnce(&mut Needs) -> Fact) -> Node {
        Node::Seen {
            fact: fact(&mut self.needs),
            inverted: false,
        }
    }

    fn limit(&mut self, budget: Budget, scope: Scope) -> Node {
        Node::Limit(self.new_limit(budget, scope))
    }

    fn new_limit(&mut self, budget: Budget, scope: Scope) -> u16 {
        self.needs.want_randomness();
        self.limits.push(LimitRule {
            budget,
            scope,
            compatibility: self.compatibility,
        });
        // The reader bounds all policies together, nested ones included.
        (self.limits.len() - 1) as u16
    }
}

/// One count of the votes on a trace.
struct Voting<'a> {
    case: Case<'a>,
    randomness: Randomness,
    answers: &'a LimitAnswers,
    /// Else a limit that has not answered has said no.
    asks: bool,
    open: Vec<Question>,
}

impl<'a> Voting<'a> {
    fn new(case: Case<'a>, answers: &'a LimitAnswers, asks: bool) -> Self {
        Self {
            case,
            randomness: case.state.randomness(case.trace),
            answers,
            asks,
            open: Vec::new(),
        }
    }

    fn counted(self, vote: Vote) -> Count {
        Count {
            vote,
            open: self.open,
        }
    }

    /// [`None`] while a limit is asked.
    fn node(&mut self, node: &Node) -> Option<Said> {
        let state = self.case.state;
        Some(match node {
            Node::Fixed(yes) => Said::certain(*yes),
            Node::Share(threshold) if threshold.admits(self.randomness) => {
                Said::Sampled(Odds::From(*threshold))
            }
            Node::Share(_) => Said::NO_LUCK,
            Node::Hash(seed) if seed.admits(self.case.trace) => Said::Sampled(Odds::Unknown),
            Node::Hash(_) => Said::NO_LUCK,
            Node::Statuses(codes) => Said::certain(codes & state.statuses() != 0),
            Node::Longest(latency) => Said::certain(latency.holds(state.longest_millis())),
            Node::Final(latency) => Said::certain(latency.holds(state.final_millis())),
            Node::Spans(count) => Said::certain(count.holds(self.case.spans)),
            Node::Seen { fact, inverted } => Said::certain(state.has(*fact) != *inverted),
            Node::Conditions(ends) if ends.errored.is_some_and(|it| state.has(it)) => Said::Error,
            Node::Conditions(ends) => Said::certain(state.has(ends.matched)),
            Node::Limit(limit) => return self.limit(*limit, Vec::new),
            Node::And(subs) => return self.all(subs),
            Node::Not(sub) => self.node(sub)?.inverted(),
            Node::Drop(subs) => match self.all(subs)? {
                Said::Sampled(_) => Said::Dropped,
                other => other,
            },
            Node::Composite(composite) => return self.composite(composite),
        })
    }

    fn limit(&mut self, limit: u16, subs: impl FnOnce() -> Vec<(u8, Odds)>) -> Option<Said> {
        match self.answers.of(limit) {
            Some(Some(odds)) => Some(Said::Sampled(odds)),
            Some(None) => Some(Said::NO_LUCK),
            None if self.asks => {
                self.open.push(Question {
                    limit,
                    subs: subs(),
                });
                None
            }
            None => Some(Said::NO_LUCK),
        }
    }

    /// AND. Nothing is asked of a limit behind a no; but whether that no was a matter of luck is
    /// for those behind it to say, too.
    fn all(&mut self, subs: &[Node]) -> Option<Said> {
        let mut odds = Odds::CERTAIN;
        for (index, sub) in subs.iter().enumerate() {
            match self.node(sub)? {
                Said::Sampled(this) => odds = odds.max(this),
                Said::NotSampled { certain: false } => {
                    let asks = std::mem::replace(&mut self.asks, false);
                    let behind = &subs[index + 1..];
                    let certain = behind.iter().any(|it| self.node(it) == Some(Said::NO));
                    self.asks = asks;
                    return Some(Said::NotSampled { certain });
                }
                other => return Some(other),
            }
        }
        Some(Said::Sampled(odds))
    }

    fn composite(&mut self, composite: &Composite) -> Option<Said> {
        let mut keeping: Vec<(u8, Odds)> = Vec::new();
        let mut certain = true;
        for (place, sub) in composite.subs.iter().enumerate() {
            match self.node(sub)? {
                // The reader sees to it that they are few.
                Said::Sampled(odds) => keeping.push((place as u8, odds)),
                Said::NotSampled { certain: this } => certain &= this,
                // Had the ones before it kept the trace, nobody would have noticed.
                other if keeping.is_empty() => return Some(other),
                _ => break,
            }
            if composite.first_only && !keeping.is_empty() {
                break;
            }
        }
        if keeping.is_empty() {
            return Some(Said::NotSampled { certain });
        }
        self.limit(composite.limit, || keeping)
    }
}
