//! Limits over an hour of simulated time: the real windows and the real ring.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tailring::model::{Member, Moment, Randomness, TraceId, Verdict};
use tailring::policy::{Answer, Complete, Limits, Rules, parse};
use tailring::ring::{SLOTS, Seed, Table};

struct Worker {
    limits: Limits<TraceId>,
    answers: Vec<Answer<TraceId>>,
}

/// What an hour kept.
#[derive(Default, Debug)]
struct Hour {
    asked: u64,
    kept: u64,
    estimate: f64,
    variance: f64,
}

impl Hour {
    fn count(&mut self, rules: &Rules, answer: Answer<TraceId>) {
        let vote = rules.vote(answer.to, &rules.begin(), 80, &answer.answers);
        if vote.verdict == Verdict::Keep {
            let threshold = vote.threshold.expect("known odds");
            assert!(threshold.admits(Randomness::of(answer.to)));
            let p = threshold.share();
            self.kept += 1;
            self.estimate += 1.0 / p;
            self.variance += (1.0 - p) / (p * p);
        }
    }
}

fn hour(rules: &Rules, seed: u64) -> Hour {
    let members = ["w-0", "w-1", "w-2"].map(|name| Member::parse(name).unwrap());
    let table = Table::build(members, Seed(seed), "test");
    let start = Moment::from_unix_millis(1_800_000_000_000);
    let mut workers: Vec<Worker> = table
        .slots_by_member()
        .iter()
        .map(|slots| {
            let mut limits = Limits::of(rules, start).expect("a limit");
            limits.set_share(f64::from(*slots) / SLOTS as f64, start);
            Worker {
                limits,
                answers: Vec::new(),
            }
        })
        .collect();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut hour = Hour::default();
    let mut now = start;
    let end = start + Duration::from_secs(3_600);
    loop {
        // Ten times as much for ten minutes in the middle.
        let in_spike = (1_500..2_100).contains(&now.since(start).as_secs());
        let rate: f64 = if in_spike { 60.0 } else { 6.0 };
        now = now + Duration::from_secs_f64(-rng.random::<f64>().ln() / rate);
        for worker in &mut workers {
            // In time, one window after the other.
            while let Some(at) = worker.limits.next_close().filter(|at| *at <= now) {
                worker.limits.close(at, &mut worker.answers);
            }
        }
        if now >= end {
            break;
        }
        let trace = TraceId::new(rng.random()).unwrap();
        let worker = &mut workers[usize::from(table.owner_index(trace).unwrap())];
        hour.asked += 1;
        let complete = Complete {
            trace,
            state: rules.begin(),
            spans: 80,
        };
        worker
            .limits
            .ask(complete, Some(trace), now, &mut worker.answers);
    }
    for answer in workers.into_iter().flat_map(|it| it.answers) {
        hour.count(rules, answer);
    }
    hour
}

#[test]
fn the_rate_cap_keeps_its_rate_and_counts_honestly_through_a_spike() {
    let rules = parse(
        "policies: [{name: cap, type: rate_limiting, rate_limiting: {spans_per_second: 50}}]",
    )
    .expect("a policy")
    .rules;
    for seed in 1..=10 {
        let hour = hour(&rules, seed);
        // 50 spans a second are 2,250 turns of 80 an hour.
        assert!(
            (2_025..=2_475).contains(&hour.kept),
            "seed {seed}: {hour:?}"
        );
        // The traces of windows still open at the end are in nobody's count.
        let errors = (hour.estimate - hour.asked as f64) / hour.variance.sqrt();
        assert!(
            errors.abs() < 4.0,
            "seed {seed}: {errors} standard errors, {hour:?}"
        );
    }
}

#[test]
fn who_stands_before_several_limits_gets_one_answer_with_the_smallest_threshold() {
    let rules = parse(
        "policies:
- {name: small, type: rate_limiting, rate_limiting: {spans_per_second: 10, burst_capacity: 10}}
- {name: large, type: rate_limiting, rate_limiting: {spans_per_second: 30, burst_capacity: 30}}
",
    )
    .expect("policies")
    .rules;
    let now = Moment::from_unix_millis(1_800_000_000_000);
    let mut limits = Limits::of(&rules, now).expect("limits");
    let mut answers = Vec::new();
    let trace = |n: u128| TraceId::new((1 << 100 | n).to_be_bytes()).unwrap();
    for n in 1..=10_u128 {
        let complete = Complete {
            trace: trace(n),
            state: rules.begin(),
            spans: 10,
        };
        // One that is kept anyway is charged and answered by nobody.
        let to = (n != 9).then_some(n);
        limits.ask(complete, to, now, &mut answers);
    }
    limits.close(now + Duration::from_secs(1), &mut answers);
    answers.sort_by_key(|answer| answer.to);
    let found: Vec<_> = answers
        .iter()
        .map(|it| {
            let vote = rules.vote(trace(it.to), &rules.begin(), 10, &it.answers);
            let bits = vote.threshold.expect("known odds").bits();
            (it.to, vote.policy.map(|policy| (policy, bits)))
        })
        .collect();
    let mut expected: Vec<(u128, Option<(u16, u64)>)> = (1..=7).map(|n| (n, None)).collect();
    expected.extend([(8, Some((1, 8))), (10, Some((1, 8)))]);
    assert_eq!(found, expected);
    assert_eq!(limits.next_close(), None);
}

#[test]
fn rules_without_a_limit_have_nobody_to_ask() {
    assert!(Limits::<u8>::of(&Rules::keep_everything(), Moment::ZERO).is_none());
}

/// 40 spans ask at `millis` and the window closes a second later: how many are kept.
fn kept_of_forty(limits: &mut Limits<u32>, rules: &Rules, millis: u64, names: &[&str]) -> usize {
    let now = Moment::from_unix_millis(1_800_000_000_000 + millis);
    let mut answers = Vec::new();
    for n in 1..=40_u32 {
        let complete = Complete {
            trace: TraceId::new((u128::from(n) << 40 | 1).to_be_bytes()).unwrap(),
            state: rules.begin(),
            spans: 1,
        };
        limits.ask(complete, Some(n), now, &mut answers);
    }
    limits.close(now + Duration::from_secs(1), &mut answers);
    let kept = answers.iter().filter(|answer| {
        let vote = rules.vote(
            TraceId::new((u128::from(answer.to) << 40 | 1).to_be_bytes()).unwrap(),
            &rules.begin(),
            1,
            &answer.answers,
        );
        let policy = vote
            .policy
            .map(|it| rules.policies[usize::from(it)].name.as_str());
        policy.is_some_and(|it| names.contains(&it))
    });
    kept.count()
}

#[test]
fn later_rules_take_over_what_limits_of_the_same_name_have_left() {
    let file = |text: &str| parse(text).expect("policies").rules;
    let of = |name: &str, rate: u32, burst: u32| {
        file(&format!(
            "policies: [{{name: {name}, type: rate_limiting, rate_limiting: {{spans_per_second: {rate}, burst_capacity: {burst}}}}}]"
        ))
    };
    let start = Moment::from_unix_millis(1_800_000_000_000);
    let rows = [
        // The same name: 10 were there and were spent, and a second earns 2.
        (of("cap", 2, 30), 2),
        // Another one begins full.
        (of("other", 2, 30), 30),
        // Nested: it is another limit.
        (
            file(
                "policies: [{name: cap, type: and, and: {and_sub_policy: [{name: it, type: rate_limiting, rate_limiting: {spans_per_second: 2, burst_capacity: 30}}]}}]",
            ),
            30,
        ),
    ];
    for (later, expected) in rows {
        let earlier = of("cap", 1, 10);
        let mut limits = Limits::of(&earlier, start).expect("a limit");
        assert_eq!(kept_of_forty(&mut limits, &earlier, 0, &["cap"]), 10);
        let mut again = Vec::new();
        let now = start + Duration::from_secs(1);
        let mut limits = limits.succeed(&later, now, &mut again).expect("a limit");
        assert_eq!((again.len(), limits.version()), (0, later.version));
        let names = ["cap", "other"];
        assert_eq!(kept_of_forty(&mut limits, &later, 1_000, &names), expected);
    }
    // A composite's policies are told by their names, whatever their order.
    let composite = |first: &str, second: &str| {
        let sub = |name: &str| format!("{{name: {name}, type: always_sample}}");
        let part = |name: &str| format!("{{policy: {name}, percent: 50}}");
        file(&format!(
            "policies: [{{name: both, type: composite, composite: {{max_total_spans_per_second: 20, policy_order: [{first}, {second}], composite_sub_policy: [{}, {}], rate_allocation: [{}, {}]}}}}]",
            sub(first),
            sub(second),
            part(first),
            part(second)
        ))
    };
    let earlier = composite("a", "b");
    let mut limits = Limits::of(&earlier, start).expect("a limit");
    assert_eq!(kept_of_forty(&mut limits, &earlier, 0, &["both"]), 20);
    let later = composite("b", "c");
    let now = start + Duration::from_secs(1);
    let mut limits = limits.succeed(&later, now, &mut Vec::new()).expect("one");
    // All was spent, and a second earns as much again.
    assert_eq!(kept_of_forty(&mut limits, &later, 1_000, &["both"]), 20);
    let none = file("policies: [{name: all, type: always_sample}]");
    assert!(limits.succeed(&none, now, &mut Vec::new()).is_none());
}

#[test]
fn who_waits_for_a_limit_in_debt_asks_the_later_rules() {
    let file = |rate: u32| {
        parse(&format!(
            "policies: [{{name: cap, type: rate_limiting, rate_limiting: {{spans_per_second: {rate}, burst_capacity: 10}}}}]"
        ))
        .expect("policies")
        .rules
    };
    let start = Moment::from_unix_millis(1_800_000_000_000);
    let trace = TraceId::new([7; 16]).unwrap();
    let complete = |rules: &Rules| Complete {
        trace,
        state: rules.begin(),
        spans: 110,
    };
    let (slow, fast) = (file(1), file(50));
    let mut limits = Limits::of(&slow, start).expect("a limit");
    let mut answers = Vec::new();
    limits.ask(complete(&slow), Some(1), start, &mut answers);
    let now = start + Duration::from_secs(1);
    limits.close(now, &mut answers);
    assert_eq!(answers.len(), 1, "it overdrew by 100");
    limits.ask(complete(&slow), Some(2), now, &mut answers);
    limits.close_early(now, &mut answers);
    assert_eq!(answers.len(), 1, "in debt");
    let mut again = Vec::new();
    let mut limits = limits.succeed(&fast, now, &mut again).expect("a limit");
    assert_eq!(again, [2]);
    limits.ask(complete(&fast), Some(2), now, &mut answers);
    let paid_off = limits.next_close().expect("it waits").since(now);
    // 100 spans at 50 a second.
    assert_eq!(paid_off.as_millis(), 2_000);
}
