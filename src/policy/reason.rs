//! What of a trace made a policy say what it says: which resource, span or event, and which of its
//! attributes or which condition.
//!
//! The answers come from the compiled program, asked about single resources and spans; only the
//! words are made here. Who asks and in which order is `explain`'s.

use std::collections::BTreeSet;

use crate::model::SpanId;
use crate::policy::evidence::{OfSpan, on_resource, on_span, plain};
use crate::policy::explain::{Explained, Explaining};
use crate::policy::fold::Fact;
use crate::policy::limits::Budget;
use crate::policy::ottl::{Condition, ErrorMode, EvalError, OttlCondition, SpanView};
use crate::policy::plan::percent_of;
use crate::policy::program::Node;
use crate::policy::tree::shortened;
use crate::policy::{Latency, Policy, PolicyKind, Said, StatusCodes, Values};
use crate::wire::{EventRecord, KeyFilter, span_id_of, stated_randomness, th_digits};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub at: At,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The trace as a whole.
    Trace,
    /// The resource of one of its fragments.
    Resource,
    Span {
        id: Option<SpanId>,
        name: String,
    },
    Event {
        span: Option<SpanId>,
        span_name: String,
        /// Among the events of the span, from 0.
        index: usize,
        name: String,
    },
}

/// Values that are told of an attribute that matches nowhere.
const VALUES_TOLD: usize = 5;

impl OfSpan<'_> {
    fn id(&self) -> Option<SpanId> {
        span_id_of(self.record.bytes)
    }

    fn name(&self) -> String {
        plain(self.record.name)
    }

    fn because(&self, text: impl Into<String>) -> Reason {
        Reason {
            at: At::Span {
                id: self.id(),
                name: self.name(),
            },
            text: text.into(),
        }
    }

    fn label(&self) -> String {
        let id = self.id().map_or_else(String::new, |id| id.to_string());
        format!("span {id} {:?}", self.name())
    }
}

impl Reason {
    fn of_trace(text: impl Into<String>) -> Self {
        Self {
            at: At::Trace,
            text: text.into(),
        }
    }
}

impl Explaining<'_> {
    pub(super) fn reasons(&self, policy: &Policy, node: &Node, subs: &[Explained]) -> Vec<Reason> {
        match (node, &policy.kind) {
            (Node::Fixed(true), _) => vec![Reason::of_trace("keeps every trace")],
            (Node::Fixed(false), _) => vec![Reason::of_trace("a share of 0 keeps nothing")],
            (Node::Share(threshold), _) => {
                let randomness = self.case.state.randomness(self.case.trace);
                let states = |it: &&OfSpan<'_>| stated_randomness(it.record.trace_state).is_some();
                let from = match self.evidence.spans.iter().find(states) {
                    Some(span) => format!("rv of {}", span.label()),
                    None => "the trace ID".to_owned(),
                };
                let compared = if threshold.admits(randomness) {
                    "not below"
                } else {
                    "below"
                };
                vec![Reason::of_trace(format!(
                    "the randomness R = {:014x} (from {from}) is {compared} T = {:014x} (th:{}, {} \
                     of traces)",
                    randomness.bits(),
                    threshold.bits(),
                    th_digits(*threshold),
                    percent_of(*threshold)
                ))]
            }
            (Node::Hash(seed), _) => {
                let side = if seed.admits(self.case.trace) {
                    "within"
                } else {
                    "beyond"
                };
                vec![Reason::of_trace(format!(
                    "the Collector's hash of the trace ID (salt {:?}) is {side} the share",
                    seed.salt()
                ))]
            }
            (Node::Statuses(codes), _) => self.statuses(StatusCodes(*codes)),
            (Node::Longest(latency), _) => self.latency(latency, self.case.state.longest_millis()),
            (Node::Final(latency), _) => self.latency(latency, self.case.state.final_millis()),
            (Node::Seen { fact, .. }, PolicyKind::Latency(latency)) => self.bounded(latency, *fact),
            (Node::Spans(count), _) => {
                let upper = count
                    .max
                    .map_or_else(String::new, |max| format!(" to {max}"));
                vec![Reason::of_trace(format!(
                    "{}; wanted are {}{upper}{}",
                    spans(self.case.spans),
                    count.min,
                    if upper.is_empty() { " or more" } else { "" }
                ))]
            }
            (Node::Seen { fact, inverted }, kind) => self.seen(kind, *fact, *inverted),
            (Node::Conditions(_), PolicyKind::OttlCondition(it)) => self.conditions(it),
            (Node::Conditions(_), _) => Vec::new(),
            (Node::Limit(limit), _) => self.limit(*limit),
            (Node::And(_) | Node::Drop(_), _) => vec![Reason::of_trace(
                match subs
                    .iter()
                    .find(|sub| !matches!(sub.said, Said::Sampled(_)))
                {
                    None => "all of its policies say yes".to_owned(),
                    Some(sub) => format!("{} says {}", named(sub), sub.said.label()),
                },
            )],
            (Node::Not(_), _) => subs
                .iter()
                .map(|sub| Reason::of_trace(format!("{} says {}", named(sub), sub.said.label())))
                .collect(),
            (Node::Composite(it), _) => {
                let yes = subs.iter().find(|sub| matches!(sub.said, Said::Sampled(_)));
                match yes {
                    None => vec![Reason::of_trace("none of its policies says yes")],
                    Some(sub) => {
                        let mut reasons = self.limit(it.limit);
                        reasons.insert(0, Reason::of_trace(format!("{} says sampled", named(sub))));
                        reasons
                    }
                }
            }
        }
    }

    fn statuses(&self, codes: StatusCodes) -> Vec<Reason> {
        let of = |span: &OfSpan<'_>| StatusCodes(span.state.statuses());
        let matching = self.evidence.spans.iter();
        let mut reasons: Vec<_> = matching
            .filter(|span| of(span).0 & codes.0 != 0)
            .map(|span| span.because(format!("status {}", of(span).names().join(" "))))
            .collect();
        if reasons.is_empty() {
            let seen = StatusCodes(self.case.state.statuses());
            reasons.push(Reason::of_trace(format!(
                "no span is {}; there are {}",
                codes.names().join(" or "),
                seen.names().join(", ")
            )));
        }
        reasons
    }

    /// `millis` is what the fold made of it.
    fn latency(&self, latency: &Latency, millis: i64) -> Vec<Reason> {
        let spans = &self.evidence.spans;
        let first = spans.iter().min_by_key(|it| it.record.start_unix_nanos);
        let last = spans.iter().max_by_key(|it| it.record.end_unix_nanos);
        let between = match (first, last) {
            (Some(first), Some(last)) => {
                format!(
                    ", from the start of {} to the end of {}",
                    first.label(),
                    last.label()
                )
            }
            _ => String::new(),
        };
        vec![Reason::of_trace(format!(
            "it took {millis} ms{between}; {}",
            wanted(latency)
        ))]
    }

    /// As a Collector has it: after some span it was within the bounds.
    fn bounded(&self, latency: &Latency, fact: Fact) -> Vec<Reason> {
        let mut state = self.rules.begin();
        let after = self.evidence.spans.iter().find(|span| {
            let one = std::iter::once((&span.scope_header[..], &span.section[..]));
            self.rules
                .fold_stored(&mut state, &[], one, self.evidence.arrival);
            state.has(fact)
        });
        vec![match after {
            Some(span) => span.because(format!(
                "after it the trace took {} ms; {}",
                state.final_millis(),
                wanted(latency)
            )),
            None => Reason::of_trace(format!("after no span: {}", wanted(latency))),
        }]
    }

    /// `fact` is what makes the answer, before it is inverted.
    fn seen(&self, kind: &PolicyKind, fact: Fact, inverted: bool) -> Vec<Reason> {
        let key = match kind {
            PolicyKind::StringAttribute(it) => Some(it.key.as_str()),
            PolicyKind::NumericAttribute(it) => Some(it.key.as_str()),
            PolicyKind::BooleanAttribute(it) => Some(it.key.as_str()),
            _ => None,
        };
        let shown = |value: Option<String>| match (key, value) {
            (Some(key), Some(value)) => format!("{key} = {value}"),
            _ => String::new(),
        };
        let evidence = self.evidence;
        let resources = evidence.resources.iter();
        let of_resources = resources.filter(|it| it.state.has(fact)).map(|it| Reason {
            at: At::Resource,
            text: shown(key.and_then(|key| on_resource(&it.header, key))),
        });
        let of_spans = evidence.spans_with(fact).map(|span| {
            span.because(match key {
                Some(key) => shown(on_span(span.record.bytes, key)),
                None if matches!(kind, PolicyKind::TraceFlags) => "its sampled flag is set".into(),
                None => format!("trace state {:?}", plain(span.record.trace_state)),
            })
        });
        let mut reasons: Vec<_> = of_resources.chain(of_spans).collect();
        if inverted && !reasons.is_empty() {
            reasons.insert(
                0,
                Reason::of_trace(format!("{}, and invert_match is set", looked_for(kind))),
            );
        }
        if reasons.is_empty() {
            let mut text = format!("nothing matches: {}", looked_for(kind));
            if inverted {
                text.push_str(", and invert_match is set");
            }
            if let Some(key) = key {
                text.push_str(&self.found_instead(key));
            }
            reasons.push(Reason::of_trace(text));
        }
        reasons
    }

    fn found_instead(&self, key: &str) -> String {
        let resources = self.evidence.resources.iter();
        let of_resources = resources.filter_map(|it| on_resource(&it.header, key));
        let spans = self.evidence.spans.iter();
        let of_spans = spans.filter_map(|it| on_span(it.record.bytes, key));
        let values: BTreeSet<String> = of_resources.chain(of_spans).collect();
        if values.is_empty() {
            return "; it is nowhere in the trace".to_owned();
        }
        let told: Vec<&str> = values
            .iter()
            .take(VALUES_TOLD)
            .map(String::as_str)
            .collect();
        let more = values.len() - told.len();
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("; found {}{more}", told.join(", "))
    }

    fn conditions(&self, policy: &OttlCondition) -> Vec<Reason> {
        let mut reasons = Vec::new();
        // Errors that are passed over, by condition, with how often and the first.
        let mut passed_over: Vec<(String, u64, EvalError)> = Vec::new();
        let (mut asked, mut events) = (0_u32, 0_u64);
        for span in &self.evidence.spans {
            let resource_header = match self.evidence.resources.get(span.resource) {
                Some(resource) => &resource.header[..],
                None => &[],
            };
            let view = SpanView {
                resource_header,
                scope_header: &span.scope_header,
                span: span.record.bytes,
                event: None,
                now: self.evidence.arrival,
            };
            asked += 1;
            let mut ask = |list: &str, conditions: &[Condition], view: &SpanView<'_>, at: &At| {
                for (condition, index) in conditions.iter().zip(0..) {
                    let place = format!("{list}[{index}]");
                    let text = shortened(condition.as_written());
                    match condition.eval(view) {
                        Ok(false) => {}
                        Ok(true) => reasons.push(Reason {
                            at: at.clone(),
                            text: format!("{place} holds: {text}"),
                        }),
                        Err(error) if policy.error_mode == ErrorMode::Propagate => {
                            reasons.push(Reason {
                                at: at.clone(),
                                text: format!("{place} has no answer, {error}: {text}"),
                            });
                        }
                        Err(error) => match passed_over.iter_mut().find(|(it, ..)| *it == place) {
                            Some((_, count, _)) => *count += 1,
                            None => passed_over.push((place, 1, error)),
                        },
                    }
                }
            };
            let at = At::Span {
                id: span.id(),
                name: span.name(),
            };
            ask("span", &policy.span, &view, &at);
            if policy.span_event.is_empty() {
                continue;
            }
            for (event, index) in span.record.events().zip(0..) {
                events += 1;
                let record = EventRecord::read(event, &KeyFilter::default(), &mut |_, _| {});
                let at = At::Event {
                    span: span.id(),
                    span_name: span.name(),
                    index,
                    name: plain(record.name),
                };
                let view = SpanView {
                    event: Some(event),
                    ..view
                };
                ask("spanevent", &policy.span_event, &view, &at);
            }
        }
        if reasons.is_empty() {
            let mut asked = spans(asked);
            if !policy.span_event.is_empty() {
                asked.push_str(&format!(" and {events} events"));
            }
            reasons.push(Reason::of_trace(format!(
                "no condition holds for any of {asked}"
            )));
        }
        reasons.extend(passed_over.into_iter().map(|(place, count, error)| {
            Reason::of_trace(format!(
                "{place} has no answer {count} times, which counts as no: {error}"
            ))
        }));
        reasons
    }

    fn limit(&self, limit: u16) -> Vec<Reason> {
        let Some(rule) = self.rules.program().limits.get(usize::from(limit)) else {
            return Vec::new();
        };
        let budget = rule.budget.describe();
        let cost = match rule.budget {
            Budget::Bytes { .. } => {
                format!("{} bytes", self.case.state.bytes())
            }
            _ => spans(self.case.spans),
        };
        let said = match self.answers.of(limit) {
            Some(Some(_)) => "alone it has room for",
            Some(None) => "even alone it has no room for",
            None => "it is not reached by",
        };
        vec![Reason::of_trace(format!(
            "{budget}: {said} this trace of {cost}; among others it depends on them"
        ))]
    }
}

/// What a policy on attributes, trace states or flags waits for.
fn looked_for(kind: &PolicyKind) -> String {
    match kind {
        PolicyKind::StringAttribute(it) => match &it.values {
            Values::Exact(values) => {
                let values: Vec<String> = values.iter().map(|it| format!("{it:?}")).collect();
                format!("{} is one of {}", it.key, shortened(&values.join(", ")))
            }
            Values::Matching(patterns) => {
                let patterns: Vec<&str> = patterns.iter().map(|it| it.as_written()).collect();
                format!("{} matches {}", it.key, shortened(&patterns.join(" or ")))
            }
        },
        PolicyKind::NumericAttribute(it) => match (it.min, it.max) {
            (i64::MIN, max) => format!("{} is at most {max}", it.key),
            (min, i64::MAX) => format!("{} is at least {min}", it.key),
            (min, max) => format!("{} is from {min} to {max}", it.key),
        },
        PolicyKind::BooleanAttribute(it) => format!("{} is {}", it.key, it.value),
        PolicyKind::TraceState(it) => {
            let values: Vec<&str> = it.values.iter().map(String::as_str).collect();
            let values = shortened(&values.join(", "));
            format!("{} of a trace state is one of {values}", it.key)
        }
        PolicyKind::TraceFlags => "the sampled flag of a span is set".to_owned(),
        _ => String::new(),
    }
}

fn wanted(latency: &Latency) -> String {
    let upper = latency.upper_threshold_millis;
    let upper = upper.map_or_else(String::new, |upper| format!(" and at most {upper}"));
    format!("wanted are more than {}{upper}", latency.threshold_millis)
}

fn named(explained: &Explained) -> String {
    match explained.name.as_str() {
        "" => format!("the {} without a name", explained.kind),
        name => format!("`{}`", shortened(name)),
    }
}

fn spans(count: u32) -> String {
    match count {
        1 => "1 span".to_owned(),
        count => format!("{count} spans"),
    }
}
