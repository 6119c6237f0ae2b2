//! Traces as they are written down in tests, and rules that judge them.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use rand::Rng as _;
use rand::rngs::SmallRng;
use tailring::model::{Moment, TraceId, Verdict};
use tailring::policy::{
    Complete, Explanation, FoldState, Folding, LimitAnswers, Limits, Mistake, Rules, Vote, parse,
};
use tailring::wire::{Fragments, Scan, ScanLimits};

pub(crate) const START: Moment = Moment {
    unix_nanos: 1_800_000_000_000_000_000,
};

/// One ResourceSpans of a trace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) resource: Vec<KeyValue>,
    pub(crate) spans: Vec<Span>,
}

pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

pub(crate) fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

/// A span from `start` to `end`, in milliseconds of a time that is not 0.
pub(crate) fn span(start: u64, end: u64) -> Span {
    const MILLIS: u64 = 1_000_000;
    Span {
        start_time_unix_nano: (1_000 + start) * MILLIS,
        end_time_unix_nano: (1_000 + end) * MILLIS,
        ..Span::default()
    }
}

pub(crate) fn with(attributes: Vec<KeyValue>) -> Span {
    Span {
        attributes,
        ..span(0, 1)
    }
}

pub(crate) fn status(code: i32) -> Span {
    Span {
        status: Some(Status {
            code,
            ..Status::default()
        }),
        ..span(0, 1)
    }
}

pub(crate) fn of_spans(spans: Vec<Span>) -> Vec<Part> {
    vec![Part {
        resource: Vec::new(),
        spans,
    }]
}

/// A trace ID whose own randomness this is.
pub(crate) fn trace(randomness: u64) -> TraceId {
    TraceId::new((7_u128 << 100 | u128::from(randomness)).to_be_bytes()).unwrap()
}

#[track_caller]
pub(crate) fn rules(text: &str) -> Rules {
    let said = |mistakes: Vec<Mistake>| -> String {
        mistakes.iter().map(|it| format!("{it}\n")).collect()
    };
    parse(text)
        .unwrap_or_else(|mistakes| panic!("{}in\n{text}", said(mistakes)))
        .rules
}

/// The only policy of a file, in one line.
#[track_caller]
pub(crate) fn only(policy: &str) -> Rules {
    rules(&format!("policies: [{{name: it, {policy}}}]"))
}

/// Each part comes in a request of its own.
pub(crate) fn messages(trace: TraceId, parts: &[Part]) -> Vec<Vec<u8>> {
    let mut next = 0_u64;
    let parts = parts.iter().map(|part| {
        let mut spans = part.spans.clone();
        for span in &mut spans {
            next += 1;
            span.trace_id = trace.as_bytes().to_vec();
            span.span_id = next.to_be_bytes().to_vec();
        }
        let of = ResourceSpans {
            resource: Some(Resource {
                attributes: part.resource.clone(),
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        };
        let resource_spans = vec![of];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    });
    parts.collect()
}

pub(crate) fn folded(rules: &Rules, messages: &[Vec<u8>]) -> (FoldState, u32) {
    let (mut state, mut spans) = (rules.begin(), 0);
    let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
    let mut folding = Folding::default();
    for message in messages {
        scan.read(message, &ScanLimits::default()).unwrap();
        assert!(scan.is_whole());
        fragments.group(message, &scan);
        for (index, fragment) in fragments.all().iter().enumerate() {
            let view = fragments.view(message, &scan, index);
            rules.fold_with(&mut state, &view, Moment::ZERO, &mut folding);
            spans += fragment.spans;
        }
    }
    (state, spans)
}

/// Requests as they come from everywhere: each has a few parts, one a ResourceSpans, of several
/// traces. Parts of one trace stay in their order.
pub(crate) fn delivered(rng: &mut SmallRng, traces: &[(TraceId, &[Part])]) -> Vec<Vec<u8>> {
    let mut queues: Vec<_> = traces
        .iter()
        .map(|(trace, parts)| messages(*trace, parts).into_iter())
        .collect();
    let mut requests = Vec::new();
    let mut request = Vec::new();
    while !queues.is_empty() {
        let from = rng.random_range(0..queues.len());
        match queues[from].next() {
            // Messages that stand one behind the other are one.
            Some(message) => request.extend(message),
            None => drop(queues.swap_remove(from)),
        }
        if !request.is_empty() && (queues.is_empty() || rng.random_range(0..3) == 0) {
            requests.push(std::mem::take(&mut request));
        }
    }
    requests
}

/// What all the traces in these requests leave.
pub(crate) fn folded_apart(
    rules: &Rules,
    requests: &[Vec<u8>],
) -> HashMap<TraceId, (FoldState, u32)> {
    let mut states = HashMap::new();
    let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
    for message in requests {
        scan.read(message, &ScanLimits::default()).unwrap();
        assert!(scan.is_whole());
        fragments.group(message, &scan);
        for (index, fragment) in fragments.all().iter().enumerate() {
            let view = fragments.view(message, &scan, index);
            let (state, spans) = states
                .entry(fragment.trace)
                .or_insert_with(|| (rules.begin(), 0));
            rules.fold(state, &view, Moment::ZERO);
            *spans += fragment.spans;
        }
    }
    states
}

pub(crate) fn explained(rules: &Rules, trace: TraceId, parts: &[Part]) -> Explanation {
    let requests: Vec<_> = messages(trace, parts)
        .into_iter()
        .map(|message| {
            let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
            scan.read(&message, &ScanLimits::default()).unwrap();
            fragments.group(&message, &scan);
            (message, scan, fragments)
        })
        .collect();
    let views: Vec<_> = requests
        .iter()
        .map(|(message, scan, fragments)| fragments.view(message, scan, 0))
        .collect();
    rules.explain(trace, &views, Moment::ZERO)
}

pub(crate) fn complete(rules: &Rules, trace: TraceId, parts: &[Part]) -> Complete {
    let (state, spans) = folded(rules, &messages(trace, parts));
    Complete {
        trace,
        state,
        spans,
    }
}

/// Votes over traces that are complete at the same moment, with all windows that follow.
pub(crate) fn judged(rules: &Rules, traces: &[Complete]) -> Vec<Vote> {
    let mut limits = Limits::of(rules, START);
    judged_by(rules, limits.as_mut(), traces, START)
}

pub(crate) fn judged_by(
    rules: &Rules,
    mut limits: Option<&mut Limits<usize>>,
    traces: &[Complete],
    now: Moment,
) -> Vec<Vote> {
    let vote =
        |it: &Complete, answers: &LimitAnswers| rules.vote(it.trace, &it.state, it.spans, answers);
    let mut votes: Vec<Option<Vote>> = vec![None; traces.len()];
    let mut answers = Vec::new();
    for (number, it) in traces.iter().enumerate() {
        let first = rules.first_vote(it.trace, &it.state, it.spans);
        if first.asks {
            let waits = !first.vote.is_certain();
            let limits = limits.as_mut().expect("who asks has limits");
            limits.ask(it.clone(), waits.then_some(number), now, &mut answers);
        }
        if !first.asks || first.vote.is_certain() {
            votes[number] = Some(first.vote);
        }
    }
    if let Some(limits) = limits {
        while let Some(at) = limits.next_close() {
            assert!(
                at.since(now) < Duration::from_secs(100_000),
                "windows without end"
            );
            limits.close(at, &mut answers);
        }
    }
    for answer in answers {
        let it = &traces[answer.to];
        assert!(votes[answer.to].is_none(), "one answer each");
        votes[answer.to] = Some(vote(it, &answer.answers));
    }
    votes.into_iter().map(|it| it.expect("a vote")).collect()
}

/// Whether a trace is kept that comes alone.
pub(crate) fn keeps(rules: &Rules, trace: TraceId, parts: &[Part]) -> bool {
    let [vote] = judged(rules, &[complete(rules, trace, parts)])[..] else {
        panic!("one vote");
    };
    vote.verdict == Verdict::Keep
}
