//! What became of a policy file, for people and scripts: what each policy looks at, what settles it
//! before a trace is complete, and what about it is an approximation.
//!
//! Made from the compiled program, beside the policies as the file has them. How it is shown is not
//! said here.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::model::Threshold;
use crate::policy::limits::{Budget, LimitRule};
use crate::policy::ottl::Level;
use crate::policy::program::{Node, Program};
use crate::policy::window::WINDOW;
use crate::policy::{Compatibility, Policy, PolicyKind, Rules, Scope};
use crate::wire::th_digits;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// In the order of the file.
    pub policies: Vec<PlannedPolicy>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedPolicy {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// With what the policies inside of it look at.
    pub looks_at: Sights,
    pub settled: Settling,
    pub approximations: Vec<String>,
    /// Those inside of it, in the order in which they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Self>,
}

/// Paths as a condition would write them, by what they are of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sights {
    /// What is known without a look into any span.
    pub trace: BTreeSet<String>,
    pub resource: BTreeSet<String>,
    pub scope: BTreeSet<String>,
    pub span: BTreeSet<String>,
    pub event: BTreeSet<String>,
}

/// What makes an answer one that no later span can change; [`None`]: only the whole trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settling {
    /// That it would keep the trace; of a `drop`, that it drops it.
    pub yes: Option<String>,
    pub no: Option<String>,
}

impl Rules {
    pub fn plan(&self) -> Plan {
        let program = self.program();
        let policies = self.policies.iter().zip(program.nodes());
        Plan {
            policies: policies
                .map(|(policy, node)| planned(policy, node, program))
                .collect(),
        }
    }
}

fn planned(policy: &Policy, node: &Node, program: &Program) -> PlannedPolicy {
    let subs = policy.kind.subs().into_iter().zip(node.subs());
    let policies: Vec<_> = subs
        .map(|(sub, node)| planned(sub, node, program))
        .collect();
    let mut looks_at = sights(&policy.kind);
    for sub in &policies {
        looks_at.add(&sub.looks_at);
    }
    PlannedPolicy {
        name: policy.name.clone(),
        kind: policy.kind.type_name(),
        looks_at,
        settled: settling(&policy.kind, node, &policies),
        approximations: approximations(&policy.kind, node, program),
        policies,
    }
}

impl Sights {
    /// Each with its place: `trace`, `resource`, `scope`, `span`, `event`.
    pub fn by_place(&self) -> [(&'static str, &BTreeSet<String>); 5] {
        [
            ("trace", &self.trace),
            ("resource", &self.resource),
            ("scope", &self.scope),
            ("span", &self.span),
            ("event", &self.event),
        ]
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.trace, &other.trace),
            (&mut self.resource, &other.resource),
            (&mut self.scope, &other.scope),
            (&mut self.span, &other.span),
            (&mut self.event, &other.event),
        ] {
            mine.extend(theirs.iter().cloned());
        }
    }

    fn at(&mut self, level: Level) -> &mut BTreeSet<String> {
        match level {
            Level::Resource => &mut self.resource,
            Level::Scope => &mut self.scope,
            Level::Span => &mut self.span,
            Level::Event => &mut self.event,
        }
    }

    fn attribute(&mut self, key: &str) {
        let path = format!("attributes[{key:?}]");
        self.resource.insert(path.clone());
        self.span.insert(path);
    }

    fn of_trace(&mut self, what: &str) {
        self.trace.insert(what.to_owned());
    }

    fn of_span(&mut self, what: &str) {
        self.span.insert(what.to_owned());
    }

    /// What decides where luck does.
    fn randomness(&mut self) {
        self.of_trace("trace_id");
        self.of_span("trace_state[\"ot\"].rv");
    }
}

/// Without those of the policies inside.
fn sights(kind: &PolicyKind) -> Sights {
    let mut sights = Sights::default();
    match kind {
        PolicyKind::AlwaysSample
        | PolicyKind::Probabilistic(None)
        | PolicyKind::And(_)
        | PolicyKind::Not(_)
        | PolicyKind::Drop(_) => {}
        PolicyKind::Probabilistic(Some(_)) => sights.randomness(),
        PolicyKind::HashSeed(_) => sights.of_trace("trace_id"),
        PolicyKind::StatusCode(_) => sights.of_span("status.code"),
        PolicyKind::Latency(_) => {
            sights.of_span("start_time_unix_nano");
            sights.of_span("end_time_unix_nano");
        }
        PolicyKind::SpanCount(_) => sights.of_trace("number of spans"),
        PolicyKind::RateLimiting(_) | PolicyKind::Composite(_) => {
            sights.of_trace("number of spans");
            sights.randomness();
        }
        PolicyKind::BytesLimiting(_) => {
            sights.of_trace("size in bytes");
            sights.randomness();
        }
        PolicyKind::StringAttribute(it) => sights.attribute(&it.key),
        PolicyKind::NumericAttribute(it) => sights.attribute(&it.key),
        PolicyKind::BooleanAttribute(it) => sights.attribute(&it.key),
        PolicyKind::TraceState(it) => sights.of_span(&format!("trace_state[{:?}]", it.key)),
        PolicyKind::TraceFlags => sights.of_span("flags"),
        PolicyKind::OttlCondition(it) => {
            for condition in it.span.iter().chain(&it.span_event) {
                for (level, path) in condition.sights() {
                    sights.at(level).insert(path);
                }
            }
        }
    }
    sights
}

fn settling(kind: &PolicyKind, node: &Node, subs: &[PlannedPolicy]) -> Settling {
    let yes = |what: &str| Settling {
        yes: Some(what.to_owned()),
        no: None,
    };
    let both = |what: &str| Settling {
        yes: Some(what.to_owned()),
        no: Some(what.to_owned()),
    };
    let turned = |it: Settling| Settling {
        yes: it.no,
        no: it.yes,
    };
    match node {
        Node::Fixed(true) => yes("before the first span"),
        Node::Fixed(false) => turned(yes("before the first span")),
        Node::Hash(_) => both("with the first span"),
        Node::Share(_) => both("with the first span that states its randomness (rv)"),
        Node::Statuses(_) => yes("with the first span that has one of the codes"),
        Node::Longest(latency) => yes(&format!(
            "once the trace took more than {} ms",
            latency.threshold_millis
        )),
        Node::Final(_) | Node::Limit(_) => Settling::default(),
        Node::Spans(count) => Settling {
            yes: count
                .max
                .is_none()
                .then(|| format!("with span number {}", count.min.max(1))),
            no: count.max.map(|max| format!("with more than {max} spans")),
        },
        Node::Seen { inverted, .. } => {
            let seen = yes(match kind {
                PolicyKind::Latency(_) => "once the trace is within the bounds",
                PolicyKind::TraceState(_) | PolicyKind::TraceFlags => {
                    "with the first span that has it"
                }
                _ => "with the first resource or span that matches",
            });
            if *inverted { turned(seen) } else { seen }
        }
        Node::Conditions(_) => yes("with the first span or event of which a condition holds"),
        Node::And(_) | Node::Drop(_) => {
            let no = subs.iter().any(|it| it.settled.no.is_some());
            let yes = subs.iter().all(|it| it.settled.yes.is_some());
            Settling {
                yes: yes.then(|| "with the last yes inside".to_owned()),
                no: no.then(|| "with the first no inside".to_owned()),
            }
        }
        Node::Not(_) => subs
            .first()
            .map(|sub| turned(sub.settled.clone()))
            .unwrap_or_default(),
        Node::Composite(_) => {
            let no = subs.iter().all(|it| it.settled.no.is_some());
            Settling {
                yes: None,
                no: no.then(|| "with the last no inside".to_owned()),
            }
        }
    }
}

fn approximations(kind: &PolicyKind, node: &Node, program: &Program) -> Vec<String> {
    match node {
        Node::Share(threshold) => vec![format!(
            "keeps {} of traces (th:{}): shares are rounded to four hex digits",
            percent_of(*threshold),
            th_digits(*threshold)
        )],
        Node::Hash(seed) => vec![format!(
            "keeps {} of trace IDs by the Collector's hash, which has nothing to do with the \
             randomness that thresholds are about: there is no th",
            percent(seed.bound() as f64 / u64::MAX as f64)
        )],
        Node::Limit(limit) => limit_says(program.limits.get(usize::from(*limit))),
        Node::Composite(it) => {
            let mut said = limit_says(program.limits.get(usize::from(it.limit)));
            if let PolicyKind::Composite(composite) = kind {
                said.extend(composite.subs.iter().map(|sub| {
                    let name = &sub.policy.name;
                    format!("of these, {name} has {} a second", sub.spans_per_second)
                }));
            }
            said
        }
        Node::Not(sub) if has_luck(sub) => vec![
            "what luck leaves over has no threshold, so there is no th for what it keeps"
                .to_owned(),
        ],
        Node::Drop(subs) if subs.iter().any(has_luck) => vec![
            "it drops by luck: nobody can say how likely the others were to pass, so there is no th"
                .to_owned(),
        ],
        _ => Vec::new(),
    }
}

fn has_luck(node: &Node) -> bool {
    match node {
        Node::Share(threshold) => *threshold != Threshold::ALWAYS,
        Node::Hash(_) | Node::Limit(_) | Node::Composite(_) => true,
        other => other.subs().iter().any(has_luck),
    }
}

fn limit_says(rule: Option<&LimitRule>) -> Vec<String> {
    let Some(rule) = rule else {
        return Vec::new();
    };
    let whose = match rule.scope {
        Scope::Cluster => "divided among the workers by their share of the ring",
        Scope::Worker => "for each worker",
    };
    let how = match rule.compatibility {
        Compatibility::Tailring => format!(
            "decides in windows of {} s, the highest randomness first, and the last trace may \
             overdraw; which traces it keeps depends on the others",
            WINDOW.as_secs()
        ),
        Compatibility::Collector => {
            "keeps who comes first, as a Collector does, so there is no th".to_owned()
        }
    };
    vec![format!("{}, {whose}", rule.budget.describe()), how]
}

impl Budget {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Spans { per_second, burst } => {
                format!("{per_second} spans a second, at most {burst} at once")
            }
            Self::Bytes { per_second, burst } => {
                format!("{per_second} bytes a second, at most {burst} at once")
            }
            Self::Shared { per_second, .. } => {
                format!("{per_second} spans a second for all of it")
            }
        }
    }
}

pub(super) fn percent_of(threshold: Threshold) -> String {
    percent(threshold.share())
}

/// `5.0003 %`: as many digits as it has, up to ten behind the point.
fn percent(share: f64) -> String {
    let text = format!("{:.10}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}
