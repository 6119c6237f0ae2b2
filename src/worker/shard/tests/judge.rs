//! Verdicts over what was folded, with and without limits, and after a crash.

use super::*;
use crate::model::Threshold;
use crate::policy::parse;

const START: u64 = 1_800_000_000_000_000_000;
/// Below every threshold that these tests have; `trace` has 2.7 % of the range itself.
const HIGH: &str = "ot=rv:f0000000000000";

pub(super) fn file(text: &str) -> Arc<Rules> {
    Arc::new(parse(text).expect("a policy file").rules)
}

/// One span of a trace, `seconds` after it began, in a request of its own.
pub(super) fn span(n: u64, id: u64, seconds: u64, edit: impl FnOnce(&mut Span)) -> Incoming {
    let mut span = Span {
        trace_id: trace(n).as_bytes().to_vec(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        parent_span_id: if id == 0 { vec![] } else { vec![1; 8] },
        start_time_unix_nano: START + seconds * 1_000_000_000,
        end_time_unix_nano: START + seconds * 1_000_000_000 + 5_000_000,
        ..Span::default()
    };
    edit(&mut span);
    let tenant = KeyValue {
        key: "tenant.id".into(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(format!("tenant-{n}"))),
        }),
        ..KeyValue::default()
    };
    let message = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![tenant],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    Incoming::parse(
        message.encode_to_vec().into(),
        &ScanLimits::default(),
        Budget::new(1 << 30).try_take(1).unwrap(),
    )
    .unwrap()
}

pub(super) fn failed(span: &mut Span) {
    span.status = Some(Status {
        code: 2,
        ..Status::default()
    });
}

impl Bench {
    fn decision(&self, n: u64) -> Option<Decision> {
        self.shard.decisions.get(trace(n)).map(|it| it.decision)
    }

    /// The policy that kept a trace.
    fn kept_by(&self, n: u64) -> Option<&str> {
        let decision = self.decision(n).expect("a verdict");
        assert_eq!(decision.verdict == Verdict::Keep, decision.policy.is_some());
        let policy = &self.shard.rules.policies[usize::from(decision.policy?)];
        Some(&policy.name)
    }
}

/// A turn that sends a span every `every` seconds and fails in its last one, at `last`. When it was
/// judged, after how many spans, why it was kept, and how many spans went out in all.
fn play(policies: &str, every: u64, last: u64) -> (u64, u32, String, usize) {
    let mut bench = Bench::new(file(policies));
    let mut judged = None;
    let mut exported = 0;
    for second in 0..=last + 40 {
        if second % every == 0 && second < last || second == last {
            let incoming = span(1, second, second, |span| {
                if second == last {
                    failed(span);
                }
            });
            bench.append(&incoming, at(second)).unwrap();
        }
        let spans = bench.shard.index.get(trace(1)).map_or(0, |it| it.spans);
        bench.tick(at(second));
        if judged.is_none() && bench.decision(1).is_some() {
            let why = bench.kept_by(1).expect("kept").to_owned();
            judged = Some((second, spans, why));
        }
        exported += bench
            .export(at(second))
            .values()
            .map(|it| it.1.len())
            .sum::<usize>();
    }
    let (second, spans, why) = judged.expect("a verdict");
    (second, spans, why, exported)
}

#[test]
fn fleet_yaml_judges_long_turns_in_the_middle_and_agents_yaml_whole() {
    let fleet = include_str!("../../../../deploy/policies/fleet.yaml");
    let agents = include_str!("../../../../deploy/policies/agents.yaml");
    // 47 s, a span every 5 s and the last one: 11. 10 minutes, every 20 s: 31.
    for (every, last, spans, of_fleet) in [(5, 47, 11, 7), (20, 600, 31, 2)] {
        let of_fleet = (30, of_fleet, "keep-slow".to_owned(), spans as usize);
        assert_eq!(play(fleet, every, last), of_fleet, "{last} s");
        let of_agents = (last + 30, spans, "keep-errors".to_owned(), spans as usize);
        assert_eq!(play(agents, every, last), of_agents, "{last} s");
    }
}

#[test]
fn the_next_life_votes_over_what_the_earlier_one_received() {
    let rules = file(
        "decision_wait: 10s
policies:
- {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
- {name: slow, type: latency, latency: {threshold_ms: 3000}}
- {name: short, type: latency, latency: {threshold_ms: 0, upper_threshold_ms: 3}}
- {name: tenants, type: string_attribute, string_attribute: {key: tenant.id, values: [tenant-4]}}
- {name: half, type: probabilistic, probabilistic: {sampling_percentage: 50}}
",
    );
    let mut bench = Bench::new(rules.clone());
    let rows = [
        span(1, 0, 0, failed),
        span(2, 0, 0, |_| {}),
        span(2, 1, 4, |_| {}),
        span(3, 0, 0, |_| {}),
        span(4, 0, 0, |_| {}),
        span(5, 0, 0, |span| span.trace_state = HIGH.into()),
        span(6, 0, 0, |span| span.end_time_unix_nano = START + 2_000_000),
        span(6, 1, 0, |span| span.end_time_unix_nano = START + 3_000_000),
    ];
    for incoming in &rows {
        bench.append(incoming, at(0)).unwrap();
    }
    bench.write();
    let mut bench = bench.restart(rules, at(5));
    // And one more span of the third.
    bench.append(&span(3, 1, 4, |_| {}), at(6)).unwrap();
    bench.tick(at(11));
    let kept: Vec<_> = (1..=6).map(|n| bench.kept_by(n)).collect();
    let expected = ["errors", "slow", "slow", "tenants", "half", "short"];
    assert_eq!(kept, expected.map(Some));
}

const CAP: &str = "decision_wait: 10s
policies:
- {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
- {name: cap, type: rate_limiting, rate_limiting: {spans_per_second: 1, burst_capacity: 1}}
";

#[test]
fn a_limit_decides_in_its_window_and_its_threshold_is_in_the_log() {
    let mut bench = Bench::new(file(CAP));
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    bench
        .append(&span(2, 0, 0, |it| it.trace_state = HIGH.into()), at(0))
        .unwrap();
    bench.tick(at(10));
    // Who has no chance any more is judged at once, who has one when the window closes.
    assert_eq!(bench.kept_by(1), None);
    assert_eq!(bench.decision(2), None);
    bench.tick(at(11));
    assert_eq!(bench.kept_by(2), Some("cap"));
    let below = Some(Threshold::from_bits(0x0007_0707_0707_0708));
    assert_eq!(bench.decision(2).map(|it| it.threshold), below);
    let bench = bench.restart(file(CAP), at(12));
    assert_eq!(bench.decision(2).map(|it| it.threshold), below);
    assert_eq!(bench.kept_by(1), None);
}

#[test]
fn a_trace_that_waits_for_its_window_takes_spans_and_they_count() {
    let mut bench = Bench::new(file(CAP));
    // Into debt: windows from now on stay open for 5 seconds.
    for id in 0..6 {
        bench.append(&span(1, id, 0, |_| {}), at(0)).unwrap();
    }
    bench.tick(at(10));
    bench.tick(at(11));
    assert_eq!(bench.kept_by(1), Some("cap"));
    bench.append(&span(2, 0, 0, |_| {}), at(2)).unwrap();
    bench
        .append(&span(3, 0, 0, |it| it.trace_state = HIGH.into()), at(4))
        .unwrap();
    bench.tick(at(12));
    assert_eq!(bench.decision(2), None);
    bench.append(&span(2, 1, 0, failed), at(13)).unwrap();
    bench.tick(at(13));
    assert_eq!(bench.decision(2), None, "it stands before the limit once");
    bench.tick(at(14));
    // The other one took its chance; but it failed meanwhile.
    assert_eq!(bench.kept_by(2), Some("errors"));
    assert_eq!(bench.decision(3), None);
    bench.tick(at(17));
    assert_eq!(bench.kept_by(3), Some("cap"));
    let exported = bench.export(at(17));
    assert_eq!(exported[&trace(2)].1.len(), 2);
}

#[test]
fn a_certain_keep_does_not_wait_and_is_charged() {
    let mut bench = Bench::new(file(CAP));
    bench.append(&span(1, 0, 0, failed), at(0)).unwrap();
    bench.append(&span(1, 1, 0, failed), at(0)).unwrap();
    bench.tick(at(10));
    assert_eq!(bench.kept_by(1), Some("errors"));
    bench.tick(at(11));
    // 2 of 1: the next one waits until the debt is paid.
    bench.append(&span(2, 0, 0, |_| {}), at(1)).unwrap();
    bench.tick(at(11));
    bench.tick(at(12));
    assert_eq!(bench.decision(2), None);
    bench.tick(at(13));
    assert_eq!(bench.kept_by(2), Some("cap"));
}

#[test]
fn a_crash_while_a_trace_waits_forgets_the_question_and_not_the_trace() {
    let mut bench = Bench::new(file(CAP));
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    bench.write();
    bench.tick(at(10));
    assert_eq!(bench.decision(1), None);
    let mut bench = bench.restart(file(CAP), at(20));
    bench.tick(at(20));
    bench.tick(at(21));
    assert_eq!(bench.kept_by(1), Some("cap"));
    assert_eq!(bench.export(at(21)).len(), 1);
}

#[test]
fn an_answer_to_a_shard_that_does_not_decide_is_asked_for_again() {
    let mut bench = Bench::new(file(CAP));
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    bench.tick(at(10));
    bench.shard.set_deciding(false);
    bench.tick(at(11));
    assert_eq!(bench.decision(1), None);
    bench.shard.set_deciding(true);
    bench.tick(at(20));
    bench.tick(at(21));
    assert_eq!(bench.kept_by(1), Some("cap"));
}

#[test]
fn a_trace_that_grows_too_large_is_dropped_at_once_also_in_the_next_life() {
    let rules = file(
        "decision_wait: 10s
maximum_trace_size_bytes: 200
policies: [{name: everything, type: always_sample}]
",
    );
    // About 90 bytes each.
    let mut bench = Bench::new(rules.clone());
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    bench.append(&span(1, 1, 0, |_| {}), at(0)).unwrap();
    bench.append(&span(2, 0, 0, |_| {}), at(0)).unwrap();
    bench.append(&span(2, 1, 0, |_| {}), at(0)).unwrap();
    assert_eq!(bench.decision(2), None);
    bench.append(&span(2, 2, 0, |_| {}), at(1)).unwrap();
    assert_eq!(bench.kept_by(2), None);
    bench.write();
    let mut bench = bench.restart(rules, at(2));
    assert_eq!(bench.decision(1), None);
    bench.append(&span(1, 2, 0, |_| {}), at(3)).unwrap();
    assert_eq!(bench.kept_by(1), None);
    bench.append(&span(3, 0, 0, |_| {}), at(3)).unwrap();
    bench.tick(at(13));
    assert_eq!(bench.kept_by(3), Some("everything"));
}

#[test]
fn with_span_ingest_a_fragment_decides_and_the_wait_drops() {
    let rules = file(
        "decision_wait: 10s
sampling_strategy: span-ingest
policies:
- {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
- {name: three, type: span_count, span_count: {min_spans: 3}}
- {name: slow, type: latency, latency: {threshold_ms: 3000}}
",
    );
    let mut bench = Bench::new(rules);
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    bench.append(&span(1, 1, 0, failed), at(1)).unwrap();
    assert_eq!(bench.kept_by(1), Some("errors"));
    // What came before goes out, too, and so does what comes behind.
    bench.append(&span(1, 2, 0, |_| {}), at(2)).unwrap();
    bench.write();
    assert_eq!(bench.export(at(2))[&trace(1)].1.len(), 3);
    // Spans are counted over all of them; times are those of a fragment alone.
    bench.append(&span(2, 0, 0, |_| {}), at(0)).unwrap();
    bench.append(&span(2, 1, 9, |_| {}), at(1)).unwrap();
    assert_eq!(bench.decision(2), None);
    bench.append(&span(3, 0, 0, |_| {}), at(1)).unwrap();
    bench.append(&span(2, 2, 0, |_| {}), at(2)).unwrap();
    assert_eq!(bench.kept_by(2), Some("three"));
    bench.tick(at(11));
    assert_eq!(bench.kept_by(3), None);
}

#[test]
fn with_span_ingest_nothing_is_kept_while_a_span_may_come_that_drops() {
    let mut bench = Bench::new(file(
        "sampling_strategy: span-ingest
policies:
- {name: everything, type: always_sample}
- {name: failed, type: drop, drop: {drop_sub_policy: [{type: status_code, status_code: {status_codes: [ERROR]}}]}}
",
    ));
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    assert_eq!(bench.decision(1), None);
    bench.append(&span(1, 1, 0, failed), at(1)).unwrap();
    assert_eq!(bench.kept_by(1), None);
}

#[test]
fn odds_that_nobody_knows_are_in_the_log() {
    let text = "decision_wait: 10s
policies:
- {name: hashed, type: probabilistic, probabilistic: {sampling_percentage: 100, mode: hash_seed}}
";
    let mut bench = Bench::new(file(text));
    bench.append(&span(1, 0, 0, |_| {}), at(0)).unwrap();
    bench.tick(at(10));
    assert_eq!(bench.kept_by(1), Some("hashed"));
    let bench = bench.restart(file(text), at(12));
    assert_eq!(bench.decision(1).map(|it| it.threshold), Some(None));
}

#[test]
fn a_trace_goes_from_one_limit_to_the_next_while_it_waits() {
    let mut bench = Bench::new(file(
        "decision_wait: 10s
policies:
- name: both
  type: and
  and:
    and_sub_policy:
    - {type: status_code, status_code: {status_codes: [ERROR]}}
    - {type: rate_limiting, rate_limiting: {spans_per_second: 1, burst_capacity: 1}}
    - {type: bytes_limiting, bytes_limiting: {bytes_per_second: 1000}}
",
    ));
    bench.append(&span(1, 0, 0, failed), at(0)).unwrap();
    bench.append(&span(2, 0, 0, |_| {}), at(0)).unwrap();
    bench.tick(at(10));
    // Who reaches no limit does not wait for one.
    assert_eq!(bench.kept_by(2), None);
    bench.tick(at(11));
    assert_eq!(bench.decision(1), None, "it stands before the second one");
    bench.tick(at(12));
    assert_eq!(bench.kept_by(1), Some("both"));
    assert_eq!(
        bench.decision(1).map(|it| it.threshold),
        Some(Some(Threshold::ALWAYS))
    );
}
