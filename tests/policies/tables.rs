//! Each policy as a table of traces and verdicts, from the description of the Collector's.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tailring::model::{Threshold, Verdict};

use crate::given::{
    Part, attribute, complete, judged, keeps, of_spans, only, rules, span, status, text, trace,
    with,
};

#[track_caller]
fn check(policy: &str, rows: &[(&str, Vec<Part>, bool)]) {
    let rules = only(policy);
    for (what, parts, kept) in rows {
        assert_eq!(keeps(&rules, trace(5), parts), *kept, "{policy}: {what}");
    }
}

fn resource(value: Value) -> Vec<Part> {
    vec![Part {
        resource: vec![attribute("k", value)],
        spans: vec![span(0, 1)],
    }]
}

fn on_span(value: Value) -> Vec<Part> {
    of_spans(vec![span(0, 1), with(vec![attribute("k", value)])])
}

fn zeroed(start: u64, end: u64) -> Span {
    Span {
        start_time_unix_nano: start * 1_000_000,
        end_time_unix_nano: end * 1_000_000,
        ..Span::default()
    }
}

#[test]
fn always_sample_keeps_everything() {
    check(
        "type: always_sample",
        &[("a trace", of_spans(vec![span(0, 1)]), true)],
    );
}

#[test]
fn latency_is_the_envelope_of_all_spans_in_whole_milliseconds() {
    let nanos = |beyond: u64| {
        let mut last = span(0, 5);
        last.end_time_unix_nano += beyond;
        of_spans(vec![last])
    };
    check(
        "type: latency, latency: {threshold_ms: 5}",
        &[
            ("exactly", of_spans(vec![span(0, 5)]), false),
            ("cut to whole milliseconds", nanos(999_999), false),
            ("one more", nanos(1_000_000), true),
            ("gaps count", of_spans(vec![span(0, 1), span(9, 10)]), true),
            (
                "in any order",
                of_spans(vec![span(9, 10), span(0, 1)]),
                true,
            ),
            ("each short", of_spans(vec![span(0, 3), span(2, 5)]), false),
            (
                "a span that ends before it starts",
                of_spans(vec![span(9, 0)]),
                false,
            ),
            (
                "over requests",
                [of_spans(vec![span(0, 1)]), of_spans(vec![span(6, 7)])].concat(),
                true,
            ),
            (
                "a start of 0 and a real end",
                of_spans(vec![zeroed(0, 1_000)]),
                true,
            ),
            (
                "a 0 that is forgotten",
                of_spans(vec![zeroed(0, 0), span(0, 5)]),
                false,
            ),
        ],
    );
    check(
        "type: latency, latency: {threshold_ms: 0}",
        &[("only zeroes", of_spans(vec![zeroed(0, 0)]), false)],
    );
    check(
        "type: latency, latency: {threshold_ms: 5, upper_threshold_ms: 10}",
        &[
            ("below", of_spans(vec![span(0, 5)]), false),
            ("within", of_spans(vec![span(0, 6)]), true),
            ("exactly the upper", of_spans(vec![span(0, 10)]), true),
            ("beyond", of_spans(vec![span(0, 11)]), false),
            (
                "within only while it grew",
                of_spans(vec![span(0, 7), span(0, 20)]),
                false,
            ),
        ],
    );
}

#[test]
fn numbers_are_integers_and_everything_else_is_zero() {
    let both =
        "type: numeric_attribute, numeric_attribute: {key: k, min_value: 50, max_value: 100}";
    check(
        both,
        &[
            ("below", on_span(Value::IntValue(49)), false),
            ("the least", on_span(Value::IntValue(50)), true),
            ("the most", on_span(Value::IntValue(100)), true),
            ("above", on_span(Value::IntValue(101)), false),
            ("of the resource", resource(Value::IntValue(70)), true),
            (
                "a double is no integer",
                on_span(Value::DoubleValue(70.0)),
                false,
            ),
            ("a text is none", on_span(text("70")), false),
            ("none at all", of_spans(vec![span(0, 1)]), false),
            (
                "another key",
                of_spans(vec![with(vec![attribute("l", Value::IntValue(70))])]),
                false,
            ),
            (
                "any span",
                of_spans(vec![
                    with(vec![attribute("k", Value::IntValue(1))]),
                    with(vec![attribute("k", Value::IntValue(60))]),
                ]),
                true,
            ),
        ],
    );
    check(
        "type: numeric_attribute, numeric_attribute: {key: k, min_value: -5, max_value: 5}",
        &[
            (
                "a double reads as 0",
                on_span(Value::DoubleValue(70.0)),
                true,
            ),
            ("a text reads as 0", on_span(text("70")), true),
            ("a truth reads as 0", resource(Value::BoolValue(true)), true),
            ("a negative one", on_span(Value::IntValue(-5)), true),
        ],
    );
    // 0 is "no bound".
    check(
        "type: numeric_attribute, numeric_attribute: {key: k, min_value: 0, max_value: 100}",
        &[
            (
                "as small as can be",
                on_span(Value::IntValue(i64::MIN)),
                true,
            ),
            ("above", on_span(Value::IntValue(101)), false),
        ],
    );
    check(
        "type: numeric_attribute, numeric_attribute: {key: k, min_value: 50}",
        &[(
            "as large as can be",
            on_span(Value::IntValue(i64::MAX)),
            true,
        )],
    );
    check(
        &both.replace("100}", "100, invert_match: true}"),
        &[
            ("a match", on_span(Value::IntValue(70)), false),
            ("no match", on_span(Value::IntValue(7)), true),
            ("no such key", of_spans(vec![span(0, 1)]), true),
        ],
    );
}

#[test]
fn what_is_no_truth_is_false() {
    check(
        "type: boolean_attribute, boolean_attribute: {key: k, value: true}",
        &[
            ("true", on_span(Value::BoolValue(true)), true),
            ("false", on_span(Value::BoolValue(false)), false),
            ("of the resource", resource(Value::BoolValue(true)), true),
            ("the text", on_span(text("true")), false),
            ("a number", on_span(Value::IntValue(1)), false),
            ("none", of_spans(vec![span(0, 1)]), false),
        ],
    );
    check(
        "type: boolean_attribute, boolean_attribute: {key: k, value: false}",
        &[
            ("true", on_span(Value::BoolValue(true)), false),
            ("false", on_span(Value::BoolValue(false)), true),
            ("a text", on_span(text("true")), true),
            ("none", of_spans(vec![span(0, 1)]), false),
        ],
    );
    check(
        "type: boolean_attribute, boolean_attribute: {key: k, value: true, invert_match: true}",
        &[
            ("true", on_span(Value::BoolValue(true)), false),
            ("none", of_spans(vec![span(0, 1)]), true),
        ],
    );
}

#[test]
fn strings_match_exactly_or_by_pattern() {
    check(
        "type: string_attribute, string_attribute: {key: k, values: [a, '', b]}",
        &[
            ("one of them", on_span(text("b")), true),
            ("a part of one", on_span(text("ab")), false),
            ("other case", on_span(text("A")), false),
            ("of the resource", resource(text("a")), true),
            ("empty", resource(text("")), false),
            ("a number", on_span(Value::IntValue(0)), false),
        ],
    );
    check(
        "type: string_attribute, string_attribute: {key: k, values: ['^$', 'v\\d+'], \
         enabled_regex_matching: true, cache_max_size: 10}",
        &[
            ("somewhere in it", on_span(text("a v12 b")), true),
            ("other digits", on_span(text("v\u{0967}")), false),
            ("an empty one of a resource", resource(text("")), true),
            (
                "no string of a resource",
                resource(Value::IntValue(7)),
                true,
            ),
            ("an empty one of a span", on_span(text("")), false),
            ("no string of a span", on_span(Value::IntValue(7)), false),
        ],
    );
    check(
        "type: string_attribute, string_attribute: {key: k, values: [a], invert_match: true}",
        &[
            ("a match", on_span(text("a")), false),
            ("another", on_span(text("b")), true),
            ("no such key", of_spans(vec![span(0, 1)]), true),
        ],
    );
}

#[test]
fn one_span_of_a_status_is_enough() {
    check(
        "type: status_code, status_code: {status_codes: [ERROR, UNSET]}",
        &[
            ("error", of_spans(vec![status(1), status(2)]), true),
            ("unset", of_spans(vec![status(1), status(0)]), true),
            ("no status is unset", of_spans(vec![span(0, 1)]), true),
            ("ok", of_spans(vec![status(1)]), false),
            ("a code that nobody knows", of_spans(vec![status(7)]), false),
        ],
    );
}

#[test]
fn spans_are_counted_over_all_requests() {
    let many = |count| of_spans(vec![span(0, 1); count]);
    check(
        "type: span_count, span_count: {min_spans: 2, max_spans: 4}",
        &[
            ("1", many(1), false),
            ("2", many(2), true),
            ("4", many(4), true),
            ("5", many(5), false),
            ("2 and 2", [many(2), many(2)].concat(), true),
        ],
    );
    check(
        "type: span_count, span_count: {min_spans: 2, max_spans: 0}",
        &[("no bound", many(500), true)],
    );
}

#[test]
fn a_trace_state_counts_only_if_all_of_it_is_lawful() {
    let state = |text: &str| {
        of_spans(vec![Span {
            trace_state: text.to_owned(),
            ..span(0, 1)
        }])
    };
    check(
        "type: trace_state, trace_state: {key: k, values: [v, w]}",
        &[
            ("one", state("k=v"), true),
            ("among others", state("a=1,k=w"), true),
            ("blanks", state(" k=v "), true),
            ("another value", state("k=x"), false),
            ("another key", state("kk=v"), false),
            ("twice", state("k=v,k=w"), false),
            ("beside a broken one", state("k=v,A=1"), false),
            ("beside an empty one", state(",k=v,,"), true),
            ("none", state(""), false),
            ("any span", [state("A"), state("k=v")].concat(), true),
        ],
    );
    // Longer than 255 together: left out.
    let long = "v".repeat(255);
    let policy = format!("type: trace_state, trace_state: {{key: k, values: [{long}]}}");
    check(&policy, &[("too long", state(&format!("k={long}")), false)]);
    let long = "v".repeat(254);
    let policy = format!("type: trace_state, trace_state: {{key: k, values: [{long}]}}");
    check(&policy, &[("just not", state(&format!("k={long}")), true)]);
}

#[test]
fn the_sampled_flag_of_one_span_is_enough() {
    let flags = |flags: u32| {
        of_spans(vec![
            span(0, 1),
            Span {
                flags,
                ..span(0, 1)
            },
        ])
    };
    check(
        "type: trace_flags",
        &[
            ("set", flags(1), true),
            ("with others", flags(0x303), true),
            ("others alone", flags(0x302), false),
            ("none", flags(0), false),
        ],
    );
}

#[test]
fn a_share_goes_by_randomness_or_by_the_hash() {
    let keeps = |policy: &str, id| keeps(&only(policy), id, &of_spans(vec![span(0, 1)]));
    let half = "type: probabilistic, probabilistic: {sampling_percentage: 50}";
    assert!(keeps(half, trace(1 << 55)));
    assert!(!keeps(half, trace((1 << 55) - 1)));
    let id = |hex: u128| tailring::model::TraceId::new(hex.to_be_bytes()).unwrap();
    // The vectors of the reference: kept from so many percent on.
    for (hex, from) in [
        (0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10, 90),
        (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 75),
        (u128::MAX, 10),
        (0x5296_9a89_5557_1a3f, 50),
        (0x1ecf_6cc9_132c_89d3_482a_3a6e_6c70_f0a3, 50),
    ] {
        for percent in [1, 10, 25, 50, 75, 90, 99] {
            let hashed = |more: &str| {
                format!(
                    "type: probabilistic, probabilistic: {{sampling_percentage: {percent}, {more}}}"
                )
            };
            let expected = percent >= from;
            assert_eq!(
                keeps(&hashed("mode: hash_seed"), id(hex)),
                expected,
                "{hex:x} {percent}"
            );
            let salted = hashed("hash_salt: default-hash-seed");
            assert_eq!(keeps(&salted, id(hex)), expected, "{hex:x} {percent}");
        }
    }
    // Nobody can say how likely that was for who goes by randomness.
    let rules = only("type: probabilistic, probabilistic: {sampling_percentage: 99, hash_salt: s}");
    let it = complete(&rules, id(u128::MAX), &of_spans(vec![span(0, 1)]));
    let vote = judged(&rules, &[it])[0];
    assert_eq!((vote.verdict, vote.threshold), (Verdict::Keep, None));
}

#[test]
fn limits_take_what_they_have_room_for_and_the_highest_first() {
    let spans = |count| of_spans(vec![span(0, 1); count]);
    let check = |policy: &str, traces: &[(u64, Vec<Part>)], kept: &[bool]| {
        let rules = only(policy);
        let traces: Vec<_> = traces
            .iter()
            .map(|(r, parts)| complete(&rules, trace(*r), parts))
            .collect();
        let votes = judged(&rules, &traces);
        let found: Vec<_> = votes.iter().map(|it| it.verdict == Verdict::Keep).collect();
        assert_eq!(found, kept, "{policy}");
    };
    let rate = "type: rate_limiting, rate_limiting: {spans_per_second: 5}";
    // A burst of two seconds; the last one overdraws.
    check(
        rate,
        &[(1, spans(3)), (2, spans(4)), (3, spans(3)), (4, spans(3))],
        &[false, true, true, true],
    );
    check(
        &rate.replace("5}", "5, burst_capacity: 3}"),
        &[(1, spans(3)), (2, spans(4)), (3, spans(3)), (4, spans(3))],
        &[false, false, false, true],
    );
    check(rate, &[(1, spans(500))], &[true]);
    // By bytes: 54 each as OTLP, of which one fits and one overdraws.
    let bytes = "type: bytes_limiting, bytes_limiting: {bytes_per_second: 40, burst_capacity: 60}";
    check(
        bytes,
        &[(1, spans(1)), (2, spans(1)), (3, spans(1))],
        &[false, true, true],
    );
    let half = "type: bytes_limiting, bytes_limiting: {bytes_per_second: 20}";
    check(
        half,
        &[(1, spans(1)), (2, spans(1)), (3, spans(1))],
        &[false, false, true],
    );
}

#[test]
fn and_not_and_drop_are_made_of_votes() {
    let failed = || of_spans(vec![status(2)]);
    let fine = || of_spans(vec![status(1)]);
    let of = |policies: &str| rules(&format!("policies:\n{policies}"));
    let error = "{name: e, type: status_code, status_code: {status_codes: [ERROR]}}";
    let half = "{name: h, type: probabilistic, probabilistic: {sampling_percentage: 50}}";
    let quarter = "{name: q, type: probabilistic, probabilistic: {sampling_percentage: 25}}";
    let all = "{name: a, type: always_sample}";
    let (high, middle, low) = (trace((1 << 56) - 1), trace(1 << 55), trace(1));
    let vote = |rules: &tailring::policy::Rules, id, parts: &[Part]| {
        judged(rules, &[complete(rules, id, parts)])[0]
    };

    let and = of(&format!(
        "- {{name: x, type: and, and: {{and_sub_policy: [{error}, {half}, {quarter}]}}}}"
    ));
    assert!(keeps(&and, high, &failed()));
    assert!(!keeps(&and, middle, &failed()));
    assert!(!keeps(&and, high, &fine()));
    // The larger of the thresholds.
    assert_eq!(
        vote(&and, high, &failed()).threshold,
        Threshold::keeping(0.25)
    );

    let or = of(&format!("- {quarter}\n- {half}"));
    assert_eq!(vote(&or, high, &fine()).threshold, Threshold::keeping(0.5));
    assert_eq!(vote(&or, high, &fine()).policy, Some(1));

    let not = |sub: &str| {
        of(&format!(
            "- {{name: x, type: not, not: {{not_sub_policy: {sub}}}}}"
        ))
    };
    assert!(!keeps(&not(error), low, &failed()));
    assert_eq!(
        vote(&not(error), low, &fine()).threshold,
        Some(Threshold::ALWAYS)
    );
    // The half that a share leaves over is not the upper one.
    assert!(!keeps(&not(half), high, &fine()));
    let left_over = vote(&not(half), low, &fine());
    assert_eq!(
        (left_over.verdict, left_over.threshold),
        (Verdict::Keep, None)
    );
    // Whether luck had a say in it, is for all parts to say.
    let and = format!("{{name: y, type: and, and: {{and_sub_policy: [{half}, {error}]}}}}");
    assert_eq!(
        vote(&not(&and), low, &fine()).threshold,
        Some(Threshold::ALWAYS)
    );
    assert_eq!(vote(&not(&and), low, &failed()).threshold, None);

    // What drops goes first, wherever it stands.
    let drop = of(&format!(
        "- {all}\n- {{name: x, type: drop, drop: {{drop_sub_policy: [{error}]}}}}"
    ));
    assert!(!keeps(&drop, high, &failed()));
    assert_eq!(
        vote(&drop, high, &fine()).threshold,
        Some(Threshold::ALWAYS)
    );
    let drop = of(&format!(
        "- {all}\n- {{name: x, type: drop, drop: {{drop_sub_policy: [{error}, {half}]}}}}"
    ));
    assert!(!keeps(&drop, high, &failed()));
    assert!(keeps(&drop, low, &failed()));
    // What dropping by luck has left over stands for nobody knows how many.
    assert_eq!(vote(&drop, low, &failed()).threshold, None);
    assert_eq!(vote(&drop, low, &fine()).threshold, Some(Threshold::ALWAYS));
}

#[test]
fn nested_limits_see_the_traces_that_reach_them() {
    let error = "{name: e, type: status_code, status_code: {status_codes: [ERROR]}}";
    let one =
        "{name: r, type: rate_limiting, rate_limiting: {spans_per_second: 1, burst_capacity: 1}}";
    let two =
        "{name: s, type: rate_limiting, rate_limiting: {spans_per_second: 2, burst_capacity: 2}}";
    let all = "{name: a, type: always_sample}";
    let code = |code| of_spans(vec![status(code)]);
    let check = |policies: &str, kept: [bool; 4]| {
        let rules = rules(&format!("policies: [{policies}]"));
        // By rising randomness: two that failed below two that did not.
        let traces = [(1, 2), (2, 2), (3, 1), (4, 1)]
            .map(|(r, status)| complete(&rules, trace(r), &code(status)));
        let votes = judged(&rules, &traces);
        let found = [0, 1, 2, 3].map(|at| votes[at].verdict == Verdict::Keep);
        assert_eq!(found, kept, "{policies}");
    };
    let and = |subs: &str| format!("{{name: x, type: and, and: {{and_sub_policy: [{subs}]}}}}");
    let not = |sub: &str| format!("{{name: n, type: not, not: {{not_sub_policy: {sub}}}}}");
    let drop = |sub: &str| format!("{{name: d, type: drop, drop: {{drop_sub_policy: [{sub}]}}}}");
    // Behind the condition: only those that failed.
    check(
        &and(&format!("{error}, {one}")),
        [false, true, false, false],
    );
    // Before it: used up by one that did not.
    check(
        &and(&format!("{one}, {error}")),
        [false, false, false, false],
    );
    // The inner one first: what it takes stands before the outer one.
    check(&and(&format!("{two}, {one}")), [false, false, false, true]);
    check(&and(&format!("{one}, {two}")), [false, false, false, true]);
    check(&and(&format!("{two}, {error}, {one}")), [false; 4]);
    check(&not(one), [true, true, true, false]);
    // What it drops does not stand before the limits of others.
    check(
        &format!("{one}, {}", drop(error)),
        [false, false, false, true],
    );
    check(&format!("{two}, {}", drop(one)), [false, true, true, false]);
    check(&format!("{all}, {}", drop(two)), [true, true, false, false]);
    // Who is kept anyway is charged all the same.
    check(&format!("{error}, {two}"), [true, true, true, true]);
    check(
        &format!("{}, {one}", not(error)),
        [false, false, true, true],
    );
    // Unless the first match is the last that is asked: 3 and 4 do not stand before it.
    let first = rules(&format!(
        "sample_on_first_match: true\npolicies: [{}, {one}]",
        not(error)
    ));
    let traces = [(1, 2), (2, 2), (3, 1), (4, 1)]
        .map(|(r, status)| complete(&first, trace(r), &code(status)));
    let votes = judged(&first, &traces);
    let found = [0, 1, 2, 3].map(|at| votes[at].policy);
    assert_eq!(found, [None, Some(1), Some(0), Some(0)]);
}

#[test]
fn a_composite_shares_one_rate_among_its_policies() {
    // Traces of 10 spans. Those that failed are for the first policy, all are for the last.
    let ordered = |order: &str, max: u32, parts: &str| {
        rules(&format!(
            "policies:
- name: c
  type: composite
  composite:
    max_total_spans_per_second: {max}
    policy_order: [{order}]
    composite_sub_policy:
    - {{name: rest, type: always_sample}}
    - {{name: errors, type: status_code, status_code: {{status_codes: [ERROR]}}}}
    rate_allocation: {parts}
"
        ))
    };
    let composite = |max, parts: &str| ordered("errors, rest", max, parts);
    let kept = |rules: &tailring::policy::Rules, traces: &[(u64, i32)]| -> Vec<u64> {
        let complete: Vec<_> = traces
            .iter()
            .map(|(r, code)| complete(rules, trace(*r), &of_spans(vec![status(*code); 10])))
            .collect();
        let votes = judged(rules, &complete);
        let kept = traces
            .iter()
            .zip(votes)
            .filter(|(_, it)| it.verdict == Verdict::Keep);
        kept.map(|((r, _), _)| *r).collect()
    };
    let halves = composite(
        40,
        "[{policy: errors, percent: 50}, {policy: rest, percent: 50}]",
    );
    // Each has room for two.
    let traces = [(9, 1), (8, 1), (7, 1), (6, 1), (5, 2), (4, 2), (3, 2)];
    assert_eq!(kept(&halves, &traces), [9, 8, 5, 4]);
    // Spill-over: what errors have no room for is anybody's.
    let traces = [(9, 2), (8, 2), (7, 2), (6, 2), (5, 2), (4, 1)];
    assert_eq!(kept(&halves, &traces), [9, 8, 7, 6]);
    // One that could have been taken elsewhere makes room.
    let other_way = ordered(
        "rest, errors",
        40,
        "[{policy: errors, percent: 50}, {policy: rest, percent: 50}]",
    );
    let traces = [(9, 2), (8, 2), (7, 1), (6, 1), (5, 2)];
    assert_eq!(kept(&other_way, &traces), [9, 8, 7, 6]);
    // The whole bounds the sum.
    let generous = composite(
        30,
        "[{policy: errors, percent: 100}, {policy: rest, percent: 100}]",
    );
    let traces = [(9, 2), (8, 1), (7, 2), (6, 1), (5, 2)];
    assert_eq!(kept(&generous, &traces), [9, 8, 7]);
    // Who has no part has an equal one.
    let one = composite(40, "[{policy: errors, percent: 25}]");
    let traces = [(9, 2), (8, 1), (7, 1), (6, 1), (5, 2)];
    assert_eq!(kept(&one, &traces), [9, 8, 7]);
}
