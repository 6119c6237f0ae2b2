//! `compatibility: collector`: what the Collector does where we do something else, and both.

use tailring::model::{TraceId, Verdict};
use tailring::policy::{Limits, Rules};

use crate::given::{START, complete, judged, judged_by, of_spans, rules, span, status, trace};

/// The same file for us and for those who want the Collector's behaviour.
fn both(policies: &str) -> (Rules, Rules) {
    let ours = rules(&format!("policies:\n{policies}"));
    let theirs = rules(&format!("compatibility: collector\npolicies:\n{policies}"));
    assert_ne!(ours.version, theirs.version);
    (ours, theirs)
}

/// Traces of `(randomness, status, spans)`, complete in this order; which are kept.
fn kept(rules: &Rules, traces: &[(u64, i32, usize)]) -> Vec<bool> {
    let traces: Vec<_> = traces
        .iter()
        .map(|(r, code, spans)| complete(rules, trace(*r), &of_spans(vec![status(*code); *spans])))
        .collect();
    let votes = judged(rules, &traces);
    votes.iter().map(|it| it.verdict == Verdict::Keep).collect()
}

#[test]
fn the_upper_bound_of_a_latency_is_asked_of_the_end_or_of_every_prefix_43948() {
    let (ours, theirs) =
        both("- {name: l, type: latency, latency: {threshold_ms: 5, upper_threshold_ms: 10}}");
    let parts = of_spans(vec![span(0, 7), span(0, 20)]);
    for (rules, expected) in [(&ours, Verdict::Drop), (&theirs, Verdict::Keep)] {
        let vote = judged(rules, &[complete(rules, trace(1), &parts)])[0];
        assert_eq!(vote.verdict, expected);
        let other_way = of_spans(vec![span(0, 20), span(0, 7)]);
        let vote = judged(rules, &[complete(rules, trace(1), &other_way)])[0];
        assert_eq!(vote.verdict, Verdict::Drop);
    }
}

#[test]
fn a_share_goes_by_randomness_or_by_the_collectors_hash() {
    let (ours, theirs) =
        both("- {name: p, type: probabilistic, probabilistic: {sampling_percentage: 10}}");
    // R is at its highest, and the hash is among the lowest tenth; then the other way round.
    let rows = [
        (u128::MAX, true, true),
        (0x0102 << 96 | ((1 << 56) - 1), true, false),
    ];
    for (id, by_randomness, by_hash) in rows {
        let id = TraceId::new(id.to_be_bytes()).unwrap();
        for (rules, expected) in [(&ours, by_randomness), (&theirs, by_hash)] {
            let vote = judged(rules, &[complete(rules, id, &of_spans(vec![span(0, 1)]))])[0];
            assert_eq!(vote.verdict == Verdict::Keep, expected, "{id:?}");
            if expected {
                assert_eq!(vote.threshold.is_some(), std::ptr::eq(rules, &ours));
            }
        }
    }
    let said = rules(
        "compatibility: collector\npolicies: [{name: p, type: probabilistic, probabilistic: {sampling_percentage: 10, mode: consistent}}]",
    );
    assert_eq!(said.policies, ours.policies);
}

#[test]
fn a_limit_takes_the_highest_or_who_comes_first_35419() {
    let (ours, theirs) =
        both("- {name: r, type: rate_limiting, rate_limiting: {spans_per_second: 5}}");
    let traces = [(1, 1, 6), (2, 1, 5), (3, 1, 4), (4, 1, 11)];
    // By R, the last one overdrawing: 4. In order: 6, not 5 more, 4, and never 11 of 10.
    assert_eq!(kept(&ours, &traces), [false, false, false, true]);
    assert_eq!(kept(&theirs, &traces), [true, false, true, false]);
    // A worker has all of the rate, whatever its share of the slots.
    for (rules, expected) in [(&ours, 1), (&theirs, 2)] {
        let mut limits = Limits::of(rules, START).unwrap();
        limits.set_share(0.0, START);
        let mut count = 0;
        for second in [0, 5] {
            let now = START + std::time::Duration::from_secs(second);
            let parts = of_spans(vec![span(0, 1); 10]);
            let it = complete(rules, trace(9), &parts);
            let votes = judged_by(rules, Some(&mut limits), &[it], now);
            count += usize::from(votes[0].verdict == Verdict::Keep);
        }
        assert_eq!(count, expected);
    }
    let (_, bytes) =
        both("- {name: b, type: bytes_limiting, bytes_limiting: {bytes_per_second: 40}}");
    // 54 bytes each, of 80.
    assert_eq!(kept(&bytes, &[(1, 1, 1), (2, 1, 1)]), [true, false]);
}

const COMPOSITE: &str = "
- name: c
  type: composite
  composite:
    max_total_spans_per_second: 20
    policy_order: [errors, rest]
    composite_sub_policy:
    - {name: rest, type: always_sample}
    - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
    rate_allocation: [{policy: errors, percent: 50}, {policy: rest, percent: 50}]
";

#[test]
fn the_order_of_a_composite_is_policy_order_or_that_of_the_policies_36955() {
    let (ours, theirs) = both(COMPOSITE);
    // Theirs: both are for `rest`, which has room for one.
    assert_eq!(kept(&ours, &[(2, 2, 10), (1, 1, 10)]), [true, true]);
    assert_eq!(kept(&theirs, &[(2, 2, 10), (1, 1, 10)]), [true, false]);
}

#[test]
fn what_a_composites_policy_has_no_room_for_goes_to_the_next_or_nowhere_36959_35971() {
    let errors_first = COMPOSITE.replace(
        "    - {name: rest, type: always_sample}
    - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
",
        "    - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
    - {name: rest, type: always_sample}
",
    );
    assert_ne!(errors_first, COMPOSITE);
    let (ours, theirs) = both(&errors_first);
    let traces = [(3, 2, 10), (2, 2, 10), (1, 1, 10)];
    assert_eq!(kept(&ours, &traces), [true, true, false]);
    assert_eq!(kept(&theirs, &traces), [true, false, true]);
    // In a second of the process, and not less than a whole trace.
    assert_eq!(kept(&theirs, &[(3, 2, 11), (2, 2, 10)]), [false, true]);
}

#[test]
fn the_total_of_a_composite_bounds_the_sum_or_each_policy() {
    let (ours, theirs) = both(&COMPOSITE.replace("percent: 50", "percent: 100").replace(
        "{name: rest, type: always_sample}",
        "{name: rest, type: status_code, status_code: {status_codes: [OK]}}",
    ));
    let traces = [(4, 2, 10), (3, 1, 10), (2, 2, 10), (1, 1, 10)];
    assert_eq!(kept(&ours, &traces), [true, true, false, false]);
    assert_eq!(kept(&theirs, &traces), [true; 4]);
}

#[test]
fn a_missing_allocation_is_an_equal_share_for_both_49828() {
    let (ours, theirs) = both(&COMPOSITE.replace(
        "{policy: errors, percent: 50}, {policy: rest, percent: 50}",
        "{policy: rest, percent: 50}",
    ));
    let traces = [(4, 1, 10), (3, 1, 10)];
    assert_eq!(kept(&ours, &traces), [true, false]);
    assert_eq!(kept(&theirs, &traces), [true, false]);
    let (ours, theirs) = both(&COMPOSITE.replace(", {policy: rest, percent: 50}", ""));
    assert_eq!(kept(&ours, &traces), [true, false]);
    assert_eq!(kept(&theirs, &traces), [true, false]);
}
