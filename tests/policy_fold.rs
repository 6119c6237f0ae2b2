//! The fold and the votes against an oracle: the whole trace decoded with prost, and each policy
//! asked as the Collector's evaluators ask.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "wire/noise.rs"]
#[expect(dead_code, reason = "the wire tests use all of it")]
mod noise;

use std::time::Duration;

use noise::Size;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::prelude::*;
use prost::Message as _;
use regex::Regex;
use tailring::model::{Moment, Randomness, Threshold, TraceId, Verdict};
use tailring::policy::{
    FoldState, Folding, Latency, LimitAnswers, Pattern, Policy, PolicyKind, Rules, SpanCount,
    StatusCodes, StringAttribute, Timing, Values,
};
use tailring::wire::{Fragments, Scan, ScanLimits};

fn rules(kinds: Vec<PolicyKind>) -> Rules {
    let timing = Timing {
        decision_wait: Duration::from_secs(30),
        quiet_period: None,
        decision_wait_after_root_received: None,
    };
    let policies = kinds.into_iter().enumerate().map(|(n, kind)| Policy {
        name: n.to_string(),
        kind,
    });
    Rules::new(timing, policies.collect())
}

/// One trace's part of a ResourceSpans.
struct Part {
    resource: Resource,
    spans: Vec<Span>,
}

/// The traces of some requests as the Collector would hold them, by first appearance.
fn as_the_collector_holds_them(messages: &[Vec<u8>]) -> Vec<(TraceId, Vec<Part>)> {
    let mut traces: Vec<(TraceId, Vec<Part>)> = Vec::new();
    for message in messages {
        let request = ExportTraceServiceRequest::decode(&message[..]).unwrap();
        for of in request.resource_spans {
            let mut here: Vec<(TraceId, Vec<Span>)> = Vec::new();
            for span in of.scope_spans.into_iter().flat_map(|it| it.spans) {
                let id = TraceId::new(span.trace_id[..].try_into().unwrap()).unwrap();
                match here.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, spans)) => spans.push(span),
                    None => here.push((id, vec![span])),
                }
            }
            for (id, spans) in here {
                let resource = of.resource.clone().unwrap_or_default();
                let part = Part { resource, spans };
                match traces.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, parts)) => parts.push(part),
                    None => traces.push((id, vec![part])),
                }
            }
        }
    }
    traces
}

fn folded(rules: &Rules, messages: &[Vec<u8>]) -> Vec<(TraceId, FoldState, u32)> {
    let mut traces: Vec<(TraceId, FoldState, u32)> = Vec::new();
    let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
    // As a shard has it: what was seen in a resource is seen in the next one like it.
    let mut folding = Folding::default();
    for message in messages {
        scan.read(message, &ScanLimits::default()).unwrap();
        assert!(scan.is_whole());
        fragments.group(message, &scan);
        for (index, fragment) in fragments.all().iter().enumerate() {
            let at = match traces.iter().position(|(id, ..)| *id == fragment.trace) {
                Some(at) => at,
                None => {
                    traces.push((fragment.trace, rules.begin(), 0));
                    traces.len() - 1
                }
            };
            let (_, state, spans) = &mut traces[at];
            let view = fragments.view(message, &scan, index);
            rules.fold_with(state, &view, Moment::ZERO, &mut folding);
            *spans += fragment.spans;
        }
    }
    traces
}

fn string_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let attribute = attributes.iter().find(|it| it.key == key)?;
    Some(
        match attribute.value.as_ref().and_then(|it| it.value.as_ref()) {
            Some(any_value::Value::StringValue(text)) => text,
            _ => "",
        },
    )
}

fn randomness_of(trace: TraceId, parts: &[Part]) -> Randomness {
    let rv = Regex::new("(?:^|,)[ \t]*ot=(?:[^,;]*;)*?rv:([^,;]*)").unwrap();
    let spans = parts.iter().flat_map(|part| &part.spans);
    let stated = spans.filter_map(|span| {
        let rv = rv.captures(&span.trace_state)?.get(1)?.as_str().trim_end();
        let lawful = rv.len() == 14 && !rv.contains(|c| !matches!(c, '0'..='9' | 'a'..='f'));
        lawful.then(|| u64::from_str_radix(rv, 16).unwrap())
    });
    stated.take(1).next().map_or(Randomness::of(trace), |bits| {
        Randomness::from_bits(bits).unwrap()
    })
}

/// What the Collector's evaluator of this policy says.
fn is_sampled(kind: &PolicyKind, trace: TraceId, parts: &[Part]) -> bool {
    let spans = || parts.iter().flat_map(|part| &part.spans);
    match kind {
        PolicyKind::AlwaysSample => true,
        PolicyKind::Probabilistic(threshold) => {
            threshold.is_some_and(|it| it.admits(randomness_of(trace, parts)))
        }
        PolicyKind::StatusCode(codes) => spans().any(|span| {
            let code = match span.status.as_ref().map_or(0, |status| status.code) {
                0 => StatusCodes::UNSET,
                1 => StatusCodes::OK,
                2 => StatusCodes::ERROR,
                _ => return false,
            };
            codes.and(code) == *codes
        }),
        PolicyKind::SpanCount(count) => {
            let spans = spans().count() as u32;
            spans >= count.min && count.max.is_none_or(|max| spans <= max)
        }
        PolicyKind::Latency(latency) => {
            let (mut min, mut max) = (0, 0);
            let (mut longest, mut last) = (i64::MIN, 0);
            for span in spans() {
                if min == 0 || span.start_time_unix_nano < min {
                    min = span.start_time_unix_nano;
                }
                if max == 0 || span.end_time_unix_nano > max {
                    max = span.end_time_unix_nano;
                }
                // Timestamps become Go's signed times; a duration saturates.
                let difference = i128::from(max as i64) - i128::from(min as i64);
                let nanos = difference.clamp(i64::MIN.into(), i64::MAX.into());
                let millis = (nanos / 1_000_000) as i64;
                longest = longest.max(millis);
                last = millis;
            }
            // At the end of the trace; of a trace without an upper bound it is enough to have been
            // so long once, which differs only if a span says 0.
            match latency.upper_threshold_millis {
                None => longest > latency.threshold_millis,
                Some(upper) => last > latency.threshold_millis && last <= upper,
            }
        }
        PolicyKind::StringAttribute(attribute) => {
            let patterns: Vec<Regex> = match &attribute.values {
                Values::Exact(_) => Vec::new(),
                Values::Matching(patterns) => patterns
                    .iter()
                    .map(|it| Regex::new(it.as_written()).unwrap())
                    .collect(),
            };
            let matches = |text: &str| match &attribute.values {
                Values::Exact(values) => values.contains(text),
                Values::Matching(_) => patterns.iter().any(|it| it.is_match(text)),
            };
            let found = parts.iter().any(|part| {
                string_of(&part.resource.attributes, &attribute.key).is_some_and(matches)
                    || part.spans.iter().any(|span| {
                        string_of(&span.attributes, &attribute.key)
                            .is_some_and(|text| !text.is_empty() && matches(text))
                    })
            });
            found != attribute.invert_match
        }
        _ => unreachable!("not among those that are drawn"),
    }
}

fn check(kinds: &[PolicyKind], messages: &[Vec<u8>]) {
    let rules = rules(kinds.to_vec());
    let held = as_the_collector_holds_them(messages);
    let folded = folded(&rules, messages);
    assert_eq!(held.len(), folded.len());
    for ((trace, parts), (id, state, spans)) in held.iter().zip(&folded) {
        assert_eq!(trace, id);
        let vote = rules.vote(*trace, state, *spans, &LimitAnswers::default());
        let votes = kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| is_sampled(kind, *trace, parts));
        let best = votes
            .map(|(index, kind)| {
                let threshold = match kind {
                    PolicyKind::Probabilistic(threshold) => threshold.unwrap(),
                    _ => Threshold::ALWAYS,
                };
                (threshold, index as u16)
            })
            .min();
        assert_eq!(
            vote.policy,
            best.map(|it| it.1),
            "{kinds:?} on {parts:?}",
            parts = parts
                .iter()
                .map(|p| (&p.resource, &p.spans))
                .collect::<Vec<_>>()
        );
        assert_eq!(vote.verdict == Verdict::Keep, best.is_some());
        if let Some((threshold, _)) = best {
            assert_eq!(vote.threshold, Some(threshold));
        }
    }
}

fn latency() -> impl Strategy<Value = PolicyKind> {
    // Small ones for traces of milliseconds, large ones for clocks that show anything.
    let millis = prop_oneof![0..60_i64, 0..9_300_000_000_000_i64];
    (millis.clone(), prop::option::of(millis)).prop_map(|(threshold_millis, upper)| {
        PolicyKind::Latency(Latency {
            threshold_millis,
            upper_threshold_millis: upper,
        })
    })
}

fn string_attribute() -> impl Strategy<Value = PolicyKind> {
    let key = prop::sample::select(vec!["", "a", "b", ".", "_", "7", "tenant.id"]);
    let texts = prop::collection::vec(
        prop::sample::select(vec!["", "a", "b", "a.", "acme", "7"]),
        1..4,
    );
    let patterns = prop::collection::vec(
        prop::sample::select(vec!["", "^a", "b$", "^$", "a.b", "[7b]{2}", "acme"]),
        1..3,
    );
    let values = prop_oneof![
        texts.prop_map(|texts| {
            let texts = texts.into_iter().filter(|it| !it.is_empty());
            Values::Exact(texts.map(str::to_owned).collect())
        }),
        patterns.prop_map(|it| Values::Matching(
            it.into_iter().map(|it| Pattern::new(it).unwrap()).collect()
        )),
    ];
    (key, values, any::<bool>()).prop_map(|(key, values, invert_match)| {
        PolicyKind::StringAttribute(StringAttribute {
            key: key.into(),
            values,
            invert_match,
        })
    })
}

fn kind() -> impl Strategy<Value = PolicyKind> {
    let codes = prop::sample::subsequence(
        vec![StatusCodes::UNSET, StatusCodes::OK, StatusCodes::ERROR],
        1..3,
    );
    prop_oneof![
        1 => codes.prop_map(|codes| PolicyKind::StatusCode(
            codes.into_iter().fold(StatusCodes::default(), StatusCodes::and)
        )),
        4 => latency(),
        1 => (0..12_u32, prop::option::of(1..12_u32))
            .prop_map(|(min, max)| PolicyKind::SpanCount(SpanCount { min, max })),
        1 => (0.0..1.0).prop_map(|share| PolicyKind::Probabilistic(Threshold::keeping(share))),
        4 => string_attribute(),
    ]
}

/// Lawful requests in the strangest encodings; keys and values of few letters.
fn strange() -> impl Strategy<Value = Vec<u8>> {
    (any::<u64>(), 0..5usize, 0..4usize, 0..9usize, 1..12u8).prop_map(
        |(seed, resources, scopes, spans, traces)| {
            let size = Size {
                resources,
                scopes,
                spans,
                traces,
                strange: true,
                wrong: 0,
            };
            noise::request(seed, size)
        },
    )
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let key = prop::sample::select(vec!["", "a", "b", "tenant.id", "other.key"]);
    let value = prop_oneof![
        prop::sample::select(vec!["", "a", "ab", "acme", "77", "b"])
            .prop_map(|it| Some(any_value::Value::StringValue(it.into()))),
        any::<i64>().prop_map(|it| Some(any_value::Value::IntValue(it))),
        Just(None),
    ];
    let pair = (key, value).prop_map(|(key, value)| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value }),
        ..Default::default()
    });
    prop::collection::vec(pair, 0..4)
}

fn span() -> impl Strategy<Value = Span> {
    const START: u64 = 1_760_000_000_000_000_000;
    let time = prop_oneof![9 => (0..80_000_000_u64).prop_map(|it| START + it), 1 => Just(0)];
    let rv = prop::sample::select(vec![
        "",
        "",
        "",
        "",
        "ot=rv:00000000000000",
        "ot=rv:ffffffffffffff",
        "ot=th:8",
        "v=1,ot=th:c;rv:80000000000000",
        "ot=rv:8",
        "v=rv:00000000000000",
    ]);
    (1..4u8, time.clone(), time, rv, -1..4i32, attributes()).prop_map(
        |(trace, start, end, rv, code, attributes)| Span {
            trace_id: vec![trace.wrapping_mul(80); 16],
            span_id: vec![1; 8],
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            trace_state: rv.into(),
            status: (code >= 0).then(|| Status {
                code,
                ..Default::default()
            }),
            attributes,
            ..Default::default()
        },
    )
}

/// Requests as clients send them, with little in them.
fn plain() -> impl Strategy<Value = Vec<u8>> {
    let of_resource =
        (attributes(), prop::collection::vec(span(), 0..8)).prop_map(|(attributes, spans)| {
            ResourceSpans {
                resource: Some(Resource {
                    attributes,
                    ..Default::default()
                }),
                scope_spans: spans
                    .chunks(3)
                    .map(|spans| ScopeSpans {
                        spans: spans.to_vec(),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }
        });
    prop::collection::vec(of_resource, 0..4)
        .prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans }.encode_to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_policy_alone_votes_as_the_collector_on_strange_encodings(
        kinds in prop::collection::vec(kind(), 1..6), messages in prop::collection::vec(strange(), 1..4),
    ) {
        for kind in &kinds {
            check(std::slice::from_ref(kind), &messages);
        }
    }

    #[test]
    fn policies_together_vote_as_the_collector(
        kinds in prop::collection::vec(kind(), 1..6), messages in prop::collection::vec(prop_oneof![3 => plain(), 1 => strange()], 1..4),
    ) {
        for kind in &kinds {
            check(std::slice::from_ref(kind), &messages);
        }
        check(&kinds, &messages);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_policies_than_fit_into_a_word_vote_as_the_collector(
        kinds in prop::collection::vec(prop_oneof![string_attribute(), latency()], 65..200),
        messages in prop::collection::vec(plain(), 1..4),
        many in 64..200_u32,
    ) {
        // Keys of their own, so that more than 64 different ones are asked for.
        let own = (0..many).map(|n| PolicyKind::StringAttribute(StringAttribute {
            key: if n == many - 1 { "other.key".into() } else { format!("other{n:04}") },
            values: Values::Exact(["a".to_owned()].into()),
            invert_match: false,
        }));
        let kinds: Vec<_> = own.chain(kinds).collect();
        // Votes of the last ones are hidden by the first that says yes, so each end has its turn.
        check(&kinds, &messages);
        check(&kinds.into_iter().rev().collect::<Vec<_>>(), &messages);
    }
}

fn one_span(fields: &[u8]) -> Vec<Vec<u8>> {
    let mut span = vec![0x0A, 16];
    span.extend_from_slice(&[1; 16]);
    span.extend_from_slice(&[0x12, 8]);
    span.extend_from_slice(&[2; 8]);
    span.extend_from_slice(fields);
    let wrap = |tag: u8, body: &[u8]| [&[tag, body.len() as u8], body].concat();
    vec![wrap(0x0A, &wrap(0x12, &wrap(0x12, &span)))]
}

#[test]
fn instalments_of_a_status_are_one_status() {
    let error = [PolicyKind::StatusCode(StatusCodes::ERROR)];
    let unset = [PolicyKind::StatusCode(StatusCodes::UNSET)];
    let rows: [&[u8]; 6] = [
        // A code, then a message without one.
        &[0x7A, 2, 0x18, 2, 0x7A, 3, 0x12, 1, b'x'],
        // Two codes: the last one counts.
        &[0x7A, 2, 0x18, 2, 0x7A, 2, 0x18, 0],
        &[0x7A, 4, 0x18, 0, 0x18, 2],
        // Beyond 32 bits: 2 + 2^32.
        &[0x7A, 6, 0x18, 0x82, 0x80, 0x80, 0x80, 0x10],
        // A code that nobody knows.
        &[0x7A, 2, 0x18, 9],
        &[],
    ];
    for fields in rows {
        check(&error, &one_span(fields));
        check(&unset, &one_span(fields));
    }
}

#[test]
fn the_last_value_of_an_attribute_in_instalments_counts() {
    let kinds = [PolicyKind::StringAttribute(StringAttribute {
        key: "k".into(),
        values: Values::Exact(["v".to_owned()].into()),
        invert_match: false,
    })];
    let rows: [&[u8]; 6] = [
        // The key is written twice.
        &[
            0x4A, 11, 0x0A, 1, b'x', 0x12, 3, 0x0A, 1, b'v', 0x0A, 1, b'k',
        ],
        &[
            0x4A, 11, 0x0A, 1, b'k', 0x12, 3, 0x0A, 1, b'v', 0x0A, 1, b'x',
        ],
        // The value comes twice, as a string and then as a number.
        &[
            0x4A, 12, 0x0A, 1, b'k', 0x12, 3, 0x0A, 1, b'v', 0x12, 2, 0x18, 5,
        ],
        &[
            0x4A, 12, 0x0A, 1, b'k', 0x12, 2, 0x18, 5, 0x12, 3, 0x0A, 1, b'v',
        ],
        // And then as nothing, which changes nothing.
        &[0x4A, 10, 0x0A, 1, b'k', 0x12, 3, 0x0A, 1, b'v', 0x12, 0],
        // Two attributes of one key: the first one counts.
        &[
            0x4A, 8, 0x0A, 1, b'k', 0x12, 3, 0x0A, 1, b'w', 0x4A, 8, 0x0A, 1, b'k', 0x12, 3, 0x0A,
            1, b'v',
        ],
    ];
    for fields in rows {
        check(&kinds, &one_span(fields));
    }
}
