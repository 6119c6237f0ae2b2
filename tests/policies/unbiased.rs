//! Counts made from thresholds: of every kind of policy, alone and combined, and behind a sampler
//! that was there before, the kept traces stand for all of them.
//!
//! `TAILRING_POLICY_SEEDS` says for how many seeds, from 1 on.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tailring::model::{Moment, Randomness, Threshold, TraceId, Verdict};
use tailring::policy::{Complete, FoldState, Limits, Rules, Vote};

use crate::given::{START, folded, messages, of_spans, rules, status, trace};

const RATE: u64 = 40;
const SECONDS: u64 = 400;
const SIZES: [u32; 4] = [5, 8, 13, 24];
const ERROR: &str = "{name: e, type: status_code, status_code: {status_codes: [ERROR]}}";
const OK: &str = "{name: k, type: status_code, status_code: {status_codes: [OK]}}";
const ALL: &str = "{name: a, type: always_sample}";
const TENTH: &str = "{name: t, type: probabilistic, probabilistic: {sampling_percentage: 10}}";
const THIRD: &str = "{name: d, type: probabilistic, probabilistic: {sampling_percentage: 33.3}}";
const HASHED: &str =
    "{name: h, type: probabilistic, probabilistic: {sampling_percentage: 30, hash_salt: x}}";
const CAP: &str = "{name: r, type: rate_limiting, rate_limiting: {spans_per_second: 120}}";
const SMALL_CAP: &str =
    "{name: s, type: rate_limiting, rate_limiting: {spans_per_second: 40, burst_capacity: 40}}";
const BYTES: &str = "{name: b, type: bytes_limiting, bytes_limiting: {bytes_per_second: 8000}}";

/// What counts when a trace is estimated to be so many.
#[derive(Clone, Copy)]
enum Counted {
    Everything,
    Failed,
    Fine,
}

/// States of traces by whether they failed and by their size.
struct Folded(Vec<[FoldState; 2]>);

impl Folded {
    fn of(rules: &Rules) -> Self {
        let states = SIZES.map(|size| {
            [1, 2].map(|code| {
                let parts = of_spans(vec![status(code); size as usize]);
                folded(rules, &messages(trace(1), &parts)).0
            })
        });
        Self(states.into())
    }
}

#[derive(Default, Debug)]
struct Estimate {
    truth: f64,
    estimate: f64,
    variance: f64,
    unknown: u64,
    kept: u64,
}

/// Of traces over some minutes; a third of them failed. `before`: what was sampled already, a half
/// of some and a tenth of others.
fn estimated(rules: &Rules, counted: Counted, before: bool, seed: u64) -> Estimate {
    let mut rng = SmallRng::seed_from_u64(seed);
    let folded = Folded::of(rules);
    let mut limits = Limits::of(rules, START);
    let mut of: Vec<(Complete, Threshold, bool)> = Vec::new();
    let mut votes: Vec<(usize, Vote)> = Vec::new();
    let mut answers = Vec::new();
    let mut estimate = Estimate::default();
    let mut now = START;
    while now < START + Duration::from_secs(SECONDS) {
        now = now + Duration::from_secs_f64(-rng.random::<f64>().ln() / RATE as f64);
        close(&mut limits, now, &mut answers);
        let failed = rng.random_range(0..3) == 0;
        let size = rng.random_range(0..SIZES.len());
        let id = TraceId::new(rng.random::<[u8; 16]>()).unwrap();
        let head = match (before, rng.random_range(0..3)) {
            (true, 0) => Threshold::keeping(0.5).unwrap(),
            (true, 1) => Threshold::keeping(0.1).unwrap(),
            _ => Threshold::ALWAYS,
        };
        let counts = match counted {
            Counted::Everything => true,
            Counted::Failed => failed,
            Counted::Fine => !failed,
        };
        estimate.truth += f64::from(counts);
        if !head.admits(Randomness::of(id)) {
            continue;
        }
        let it = Complete {
            trace: id,
            state: folded.0[size][usize::from(failed)].clone(),
            spans: SIZES[size],
        };
        let first = rules.first_vote(id, &it.state, it.spans);
        let waits = first.asks && !first.vote.is_certain();
        if let Some(limits) = limits.as_mut().filter(|_| first.asks) {
            let to = waits.then_some(of.len());
            limits.ask(it.clone(), to, now, &mut answers);
        }
        if !waits {
            votes.push((of.len(), first.vote));
        }
        of.push((it, head, counts));
    }
    close(&mut limits, now + Duration::from_secs(10_000), &mut answers);
    for answer in answers {
        let it = &of[answer.to].0;
        let vote = rules.vote(it.trace, &it.state, it.spans, &answer.answers);
        votes.push((answer.to, vote));
    }
    assert_eq!(votes.len(), of.len(), "a vote each");
    for (at, vote) in votes {
        let (it, head, counts) = &of[at];
        if vote.verdict == Verdict::Drop || !counts {
            continue;
        }
        estimate.kept += 1;
        let Some(threshold) = vote.threshold else {
            estimate.unknown += 1;
            continue;
        };
        let threshold = threshold.max(*head);
        assert!(threshold.admits(Randomness::of(it.trace)));
        let p = threshold.share();
        estimate.estimate += 1.0 / p;
        estimate.variance += (1.0 - p) / (p * p);
    }
    estimate
}

fn close(
    limits: &mut Option<Limits<usize>>,
    now: Moment,
    answers: &mut Vec<tailring::policy::Answer<usize>>,
) {
    while let Some(limits) = limits
        && let Some(at) = limits.next_close().filter(|at| *at <= now)
    {
        limits.close(at, answers);
    }
}

fn seeds() -> u64 {
    let seeds = std::env::var("TAILRING_POLICY_SEEDS").ok();
    seeds.and_then(|it| it.parse().ok()).unwrap_or(3)
}

fn sub(kind: &str, list: &str, subs: &[&str]) -> String {
    format!(
        "{{name: {kind}, type: {kind}, {kind}: {{{list}: [{}]}}}}",
        subs.join(", ")
    )
}

fn and(subs: &[&str]) -> String {
    sub("and", "and_sub_policy", subs)
}

fn drop(subs: &[&str]) -> String {
    sub("drop", "drop_sub_policy", subs)
}

fn not(one: &str) -> String {
    format!("{{name: n, type: not, not: {{not_sub_policy: {one}}}}}")
}

fn composite(rate: u32, subs: &[(&str, u32)]) -> String {
    let policies: Vec<_> = subs.iter().map(|it| it.0).collect();
    let parts: Vec<_> = subs
        .iter()
        .map(|(policy, percent)| {
            let name = &policy["{name: ".len().."{name: ".len() + 1];
            format!("{{policy: {name}, percent: {percent}}}")
        })
        .collect();
    format!(
        "{{name: c, type: composite, composite: {{max_total_spans_per_second: {rate}, \
         composite_sub_policy: [{}], rate_allocation: [{}]}}}}",
        policies.join(", "),
        parts.join(", ")
    )
}

/// Every trace that counts is estimated, and none is of unknown odds unless `unknown`.
fn check(policies: &[&str], more: &str, counted: Counted, unknown: bool) {
    let text = format!("{more}policies: [{}]", policies.join(", "));
    let rules = rules(&text);
    for seed in 1..=seeds() {
        for before in [false, true] {
            let it = estimated(&rules, counted, before, seed);
            assert!(it.kept > 100, "{text}\nseed {seed}: {it:?}");
            if it.variance == 0.0 {
                assert_eq!(it.estimate, it.truth, "{text}\nseed {seed}: {it:?}");
            }
            let errors = (it.estimate - it.truth) / it.variance.sqrt().max(1.0);
            assert!(
                errors.abs() < 4.0,
                "{text}\nseed {seed}, before {before}: {errors} standard errors, {it:?}"
            );
            assert_eq!(it.unknown > 0, unknown, "{text}\nseed {seed}: {it:?}");
        }
    }
}

#[test]
fn single_policies_count_right() {
    check(&[ALL], "", Counted::Everything, false);
    check(&[ERROR], "", Counted::Failed, false);
    check(&[TENTH], "", Counted::Everything, false);
    check(&[THIRD], "", Counted::Everything, false);
    check(&[CAP], "", Counted::Everything, false);
    check(&[SMALL_CAP], "", Counted::Everything, false);
    check(&[BYTES], "", Counted::Everything, false);
    check(&[&not(ERROR)], "", Counted::Fine, false);
}

#[test]
fn policies_made_of_others_count_right() {
    check(&[&and(&[ERROR, TENTH])], "", Counted::Failed, false);
    check(&[&and(&[ERROR, CAP])], "", Counted::Failed, false);
    check(&[&and(&[THIRD, CAP])], "", Counted::Everything, false);
    check(&[&and(&[CAP, THIRD])], "", Counted::Everything, false);
    check(&[&and(&[CAP, SMALL_CAP])], "", Counted::Everything, false);
    check(
        &[&and(&[&not(ERROR), CAP, BYTES])],
        "",
        Counted::Fine,
        false,
    );
    check(&[&drop(&[ERROR]), CAP], "", Counted::Fine, false);
}

#[test]
fn policies_together_count_right() {
    check(&[ERROR, TENTH], "", Counted::Everything, false);
    check(&[TENTH, CAP], "", Counted::Everything, false);
    check(&[ERROR, TENTH, CAP], "", Counted::Everything, false);
    check(&[CAP, SMALL_CAP, BYTES], "", Counted::Everything, false);
    check(
        &[&and(&[ERROR, SMALL_CAP]), CAP],
        "",
        Counted::Everything,
        false,
    );
}

#[test]
fn composites_count_right_with_what_spills_over() {
    // One that has room for all of its own and takes from nobody.
    check(
        &[&composite(400, &[(OK, 50), (ERROR, 50)])],
        "",
        Counted::Everything,
        false,
    );
    // Failed ones spill over to what is for all, and the other way they make room.
    check(
        &[&composite(150, &[(ERROR, 30), (ALL, 70)])],
        "",
        Counted::Everything,
        false,
    );
    check(
        &[&composite(150, &[(ALL, 70), (ERROR, 30)])],
        "",
        Counted::Everything,
        false,
    );
    check(
        &[&composite(150, &[(ERROR, 30), (ALL, 70)])],
        "",
        Counted::Failed,
        false,
    );
    check(
        &[&composite(150, &[(ERROR, 30), (ALL, 70)])],
        "",
        Counted::Fine,
        false,
    );
    // The whole is less than the parts.
    check(
        &[&composite(100, &[(ERROR, 100), (OK, 100)])],
        "",
        Counted::Everything,
        false,
    );
    // Shares inside.
    check(
        &[&composite(100, &[(TENTH, 20), (ALL, 80)])],
        "",
        Counted::Everything,
        false,
    );
    check(
        &[&composite(60, &[(ERROR, 50), (THIRD, 50)])],
        "",
        Counted::Everything,
        false,
    );
    check(
        &[&composite(100, &[(ERROR, 50), (ALL, 50)]), TENTH],
        "",
        Counted::Everything,
        false,
    );
}

#[test]
fn what_nobody_can_say_is_not_said_and_the_rest_counts_right() {
    let first = "sample_on_first_match: true\n";
    check(&[TENTH, CAP], first, Counted::Everything, true);
    check(&[ERROR, CAP, TENTH], first, Counted::Everything, false);
    check(&[CAP, SMALL_CAP], first, Counted::Everything, true);
    check(&[TENTH, HASHED], "", Counted::Everything, true);
    check(
        &[ERROR, HASHED, &and(&[OK, TENTH])],
        "",
        Counted::Everything,
        true,
    );
    check(
        &[TENTH, &not(&and(&[THIRD, OK]))],
        "",
        Counted::Failed,
        false,
    );
    // By a hash alone, nothing is said at all.
    let rules = rules(&format!("policies: [{HASHED}]"));
    let it = estimated(&rules, Counted::Everything, false, 1);
    assert_eq!((it.kept, it.estimate), (it.unknown, 0.0));
    let share = it.kept as f64 / it.truth;
    let error = (0.3 * 0.7 / it.truth).sqrt();
    assert!((share - 0.3).abs() < 4.0 * error, "{share}");
}
