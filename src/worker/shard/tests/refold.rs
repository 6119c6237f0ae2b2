//! Rules that change while traces are undecided.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::judge::{failed, file, span};
use super::*;
use crate::policy::{FoldState, Folding, Vote};
use crate::worker::refolder::carry_out;

impl Bench {
    /// One piece of work, carried out at once. False if there is none.
    pub(super) fn refold_one(&mut self, now: Moment) -> bool {
        let Some(mut work) = self.shard.next_refold(now) else {
            return false;
        };
        carry_out(&self.volume, &self.shard.metrics.reload, &mut work);
        self.shard.refolded(work, now);
        true
    }

    /// Until nothing is left to do at this moment.
    fn rest(&mut self, now: Moment) {
        for _ in 0..1_000 {
            self.shard.tick(now);
            let is_written = self.write_at(now);
            if !self.refold_one(now) && is_written && !self.shard.refold.has_work() {
                return;
            }
        }
        panic!("a shard that never comes to rest: {:?}", self.shard.refold);
    }
}

const ERRORS: &str = "decision_wait: 10s\npolicies: [{name: errors, type: status_code, status_code: {status_codes: [ERROR]}}]";
const SLOW: &str =
    "decision_wait: 10s\npolicies: [{name: slow, type: latency, latency: {threshold_ms: 3000}}]";

#[test]
fn undecided_traces_are_judged_by_the_rules_in_force_at_their_deadline() {
    let mut bench = Bench::new(file(ERRORS));
    bench.append(&span(1, 1, 0, failed), at(0)).unwrap();
    bench.append(&span(2, 2, 0, |_| {}), at(0)).unwrap();
    bench.append(&span(3, 3, 0, failed), at(5)).unwrap();
    bench.write();
    // 1 and 2 were complete before the change.
    bench.shard.set_rules(file(SLOW), at(10));
    assert_eq!(
        bench.kept_by_version(1),
        (Verdict::Keep, file(ERRORS).version)
    );
    assert_eq!(
        bench.kept_by_version(2),
        (Verdict::Drop, file(ERRORS).version)
    );
    // 4 s later by its own clock; one part came before the change, one after it.
    bench.append(&span(3, 4, 4, |_| {}), at(11)).unwrap();
    bench.write();
    bench.rest(at(15));
    assert_eq!(
        bench.kept_by_version(3),
        (Verdict::Keep, file(SLOW).version)
    );
}

#[test]
fn a_verdict_waits_for_its_fold_and_for_what_is_not_on_disk() {
    let mut bench = Bench::new(file(ERRORS));
    bench.append(&span(1, 1, 0, |_| {}), at(0)).unwrap();
    bench.write();
    bench.append(&span(1, 2, 4, |_| {}), at(1)).unwrap();
    bench.shard.set_rules(file(SLOW), at(2));
    bench.shard.tick(at(30));
    assert!(bench.decision(1).is_none() && bench.shard.waits_for_fold(trace(1)));
    assert!(bench.refold_one(at(30)), "the fragment that is on disk");
    assert!(!bench.refold_one(at(30)), "the other one is not");
    assert!(bench.decision(1).is_none());
    bench.write();
    // What comes now came after the deadline: it changes nothing.
    bench.append(&span(1, 3, 0, failed), at(31)).unwrap();
    bench.rest(at(31));
    assert_eq!(
        bench.kept_by_version(1),
        (Verdict::Keep, file(SLOW).version)
    );
}

#[test]
fn rules_that_fold_alike_read_nothing_and_move_deadlines() {
    let mut bench = Bench::new(file(ERRORS));
    bench.append(&span(1, 1, 0, failed), at(0)).unwrap();
    bench.append(&span(2, 2, 0, failed), at(5)).unwrap();
    bench.write();
    let shorter = file(&ERRORS.replace("10s", "4s"));
    bench.shard.set_rules(shorter.clone(), at(6));
    bench.shard.tick(at(6));
    assert!(bench.shard.next_refold(at(6)).is_none());
    assert_eq!(bench.kept_by_version(1), (Verdict::Keep, shorter.version));
    assert!(bench.decision(2).is_none());
    bench
        .shard
        .set_rules(file(&ERRORS.replace("10s", "60s")), at(8));
    bench.tick(at(64));
    assert!(bench.decision(2).is_none());
    bench.tick(at(65));
    assert!(bench.decision(2).is_some());
}

#[test]
fn what_cannot_be_read_is_read_again_and_never_judged_by_another_rules_state() {
    let mut bench = Bench::new(file(ERRORS));
    bench.append(&span(1, 1, 0, failed), at(0)).unwrap();
    bench.write();
    bench.shard.set_rules(file(SLOW), at(1));
    bench.shard.tick(at(20));
    bench.disk.fail_reads(true);
    assert!(bench.refold_one(at(20)));
    assert!(!bench.refold_one(at(20)), "a second later");
    bench.disk.fail_reads(false);
    assert!(bench.decision(1).is_none());
    bench.rest(at(21));
    assert_eq!(
        bench.kept_by_version(1),
        (Verdict::Drop, file(SLOW).version)
    );
}

#[test]
fn who_waits_for_a_limit_that_is_no_more_is_judged_anew() {
    let limited = "decision_wait: 10s\npolicies: [{name: few, type: rate_limiting, rate_limiting: {spans_per_second: 1}}]";
    let mut bench = Bench::new(file(limited));
    bench.append(&span(1, 1, 0, failed), at(0)).unwrap();
    bench.append(&span(2, 2, 0, |_| {}), at(0)).unwrap();
    bench.write();
    bench.shard.tick(at(10));
    // One stands before the limits, the other one before the door.
    assert!(bench.shard.next_ask().is_some());
    bench.shard.set_rules(file(ERRORS), at(10));
    assert!(bench.shard.next_ask().is_none());
    bench.shard.ask_again(trace(1), at(10));
    bench.shard.ask_again(trace(2), at(10));
    bench.rest(at(11));
    assert_eq!(
        bench.kept_by_version(1),
        (Verdict::Keep, file(ERRORS).version)
    );
    assert_eq!(
        bench.kept_by_version(2),
        (Verdict::Drop, file(ERRORS).version)
    );
}

#[test]
fn what_a_failed_write_lost_is_no_part_of_the_state() {
    let mut bench = Bench::new(file(ERRORS));
    bench.append(&span(1, 1, 0, |_| {}), at(0)).unwrap();
    bench.write();
    bench.append(&span(1, 2, 0, failed), at(1)).unwrap();
    bench.fail(at(1));
    bench.rest(at(12));
    assert_eq!(bench.kept_by_version(1).0, Verdict::Drop);
}

#[test]
fn thousands_of_traces_are_rekeyed_and_folded_in_steps() {
    let mut bench = Bench::new(file(ERRORS));
    bench.shard.config.index_bytes_max = usize::MAX;
    for n in 0..4_000 {
        let ends = (n % 2) * 4;
        bench.append(&span(n, 2 * n + 1, 0, |_| {}), at(0)).unwrap();
        bench
            .append(&span(n, 2 * n + 2, ends, |_| {}), at(1))
            .unwrap();
        if n % 500 == 0 {
            bench.write();
        }
    }
    bench.write();
    bench.shard.set_rules(file(SLOW), at(2));
    let at_once = bench.shard.refold.traces();
    assert_eq!(at_once, 4_000);
    bench.shard.tick(at(2));
    let left = bench.shard.refold.to_be_rekeyed();
    assert!((1_000..4_000).contains(&left), "{left} in one turn");
    bench.rest(at(3));
    assert_eq!(bench.shard.refold.traces(), 0);
    assert_eq!(bench.shard.refold.bytes(), 0);
    bench.tick(at(10));
    for n in 0..4_000 {
        let kept = bench.kept_by_version(n).0 == Verdict::Keep;
        assert_eq!(kept, n % 2 == 1, "{n}");
    }
}

impl Bench {
    fn kept_by_version(&self, n: u64) -> (Verdict, u64) {
        let decision = self.decision(n).expect("a verdict");
        (decision.verdict, decision.rules_version)
    }
}

// --- Random lives, against a reference that folds everything by the rules in force ---

/// Each with something that the others do not ask for, some with the same.
const FILES: [&str; 9] = [
    ERRORS,
    "decision_wait: 20s\npolicies: [{name: errors, type: status_code, status_code: {status_codes: [ERROR]}}]",
    "decision_wait: 4s
quiet_period: 3s
policies:
- {name: slow, type: latency, latency: {threshold_ms: 9000}}
- {name: bounded, type: latency, latency: {threshold_ms: 1000, upper_threshold_ms: 4000}}
- {name: few, type: probabilistic, probabilistic: {sampling_percentage: 30}}
",
    "decision_wait: 6s
maximum_trace_size_bytes: 700
policies: [{name: all, type: always_sample}]
",
    "decision_wait: 8s
sampling_strategy: span-ingest
policies:
- {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
- {name: text, type: string_attribute, string_attribute: {key: k, values: [b]}}
",
    "decision_wait: 5s\npolicies: [{name: all, type: always_sample}]",
    "decision_wait: 7s
policies:
- {name: text, type: drop, drop: {drop_sub_policy: [{name: k, type: string_attribute, string_attribute: {key: k, values: [b]}}]}}
- {name: conditions, type: ottl_condition, ottl_condition: {error_mode: ignore, span: ['attributes[\"k\"] == \"a\"', 'status.code == STATUS_CODE_ERROR']}}
- {name: tenants, type: string_attribute, string_attribute: {key: tenant.id, values: ['tenant-.*7'], enabled_regex_matching: true}}
",
    "decision_wait: 9s
compatibility: collector
policies:
- {name: bounded, type: latency, latency: {threshold_ms: 1000, upper_threshold_ms: 4000}}
- {name: long, type: span_count, span_count: {min_spans: 4}}
",
    "decision_wait: 8s
sampling_strategy: span-ingest
policies:
- {name: slow, type: latency, latency: {threshold_ms: 4000}}
- {name: half, type: probabilistic, probabilistic: {sampling_percentage: 10}}
",
];

struct Sent {
    incoming: Incoming,
    arrival: Moment,
    is_written: bool,
}

struct Lives {
    seed: u64,
    bench: Bench,
    files: Vec<Arc<Rules>>,
    in_force: Arc<Rules>,
    random: SmallRng,
    second: u64,
    next_id: u64,
    traces: BTreeMap<u64, Vec<Sent>>,
    /// Lost a fragment: its times say nothing.
    torn: std::collections::BTreeSet<u64>,
    /// How many fragments a trace had when it began to wait for its fold.
    had: BTreeMap<u64, usize>,
    works: Vec<RefoldWork>,
    decided: BTreeMap<u64, Decision>,
    reloads: usize,
}

impl Lives {
    fn new(seed: u64) -> Self {
        let files: Vec<_> = FILES.iter().map(|text| file(text)).collect();
        let in_force = files[0].clone();
        let disk = SimulatedDisk::new(seed);
        Self {
            seed,
            bench: Bench::on(disk, in_force.clone(), u64::MAX, MIB, at(0)),
            files,
            in_force,
            random: SmallRng::seed_from_u64(seed),
            second: 0,
            next_id: 1,
            traces: BTreeMap::new(),
            torn: Default::default(),
            had: BTreeMap::new(),
            works: Vec::new(),
            decided: BTreeMap::new(),
            reloads: 0,
        }
    }

    fn now(&self) -> Moment {
        at(self.second)
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..40 => self.append(),
            40..55 => {
                self.second += self.random.random_range(0..3);
                self.bench.shard.tick(self.now());
            }
            55..66 => self.write(),
            66..68 => {
                self.bench.disk.fail_writes_after(Some(0));
                self.write();
                self.bench.disk.fail_writes_after(None);
            }
            68..75 => {
                self.reloads += 1;
                let chosen = self.random.random_range(0..self.files.len());
                // What is complete is judged by the earlier ones.
                self.bench.shard.tick(self.now());
                self.check();
                self.in_force = self.files[chosen].clone();
                let now = self.now();
                self.bench.shard.set_rules(self.in_force.clone(), now);
            }
            75..84 => self.works.extend(self.bench.shard.next_refold(self.now())),
            84..96 => self.carry_out(),
            96..98 => {
                self.bench.disk.fail_reads(true);
                self.carry_out();
                self.bench.disk.fail_reads(false);
            }
            98 => self.rest(),
            _ => self.kill(),
        }
        self.check();
    }

    fn append(&mut self) {
        let n = self.random.random_range(0..10) + self.second / 12 * 10;
        if self.decided.contains_key(&n) {
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let (is_failed, seconds) = (
            self.random.random_range(0..12) == 0,
            self.random.random_range(0..6),
        );
        let value = ["", "", "a", "b"][self.random.random_range(0..4)];
        let states = ["", "ot=rv:80000000000000", "ot=rv:f0000000000000"];
        let state = states[self.random.random_range(0..3)];
        let incoming = span(n, id, seconds, |span| {
            if is_failed {
                failed(span);
            }
            if !value.is_empty() {
                span.attributes = vec![KeyValue {
                    key: "k".into(),
                    value: Some(AnyValue {
                        value: Some(any_value::Value::StringValue(value.into())),
                    }),
                    ..KeyValue::default()
                }];
            }
            span.trace_state = state.into();
        });
        let arrival = self.now();
        if self.bench.append(&incoming, arrival).is_ok() {
            let sent = Sent {
                incoming,
                arrival,
                is_written: false,
            };
            self.traces.entry(n).or_default().push(sent);
        }
    }

    fn write(&mut self) {
        self.bench.shard.tick(self.now());
        self.check();
        let is_written = self.bench.write_at(self.now());
        self.written(is_written);
    }

    fn written(&mut self, is_written: bool) {
        for (n, sent) in &mut self.traces {
            if is_written {
                sent.iter_mut().for_each(|it| it.is_written = true);
            } else {
                let had = sent.len();
                sent.retain(|it| it.is_written);
                if sent.len() < had {
                    self.torn.insert(*n);
                }
                if let Some(had) = self.had.get_mut(n) {
                    *had = sent.len().min(*had);
                }
            }
        }
        self.traces.retain(|_, sent| !sent.is_empty());
    }

    fn carry_out(&mut self) {
        if self.works.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.works.len());
        let mut work = self.works.swap_remove(place);
        let reload = self.bench.shard.metrics.reload.clone();
        carry_out(&self.bench.volume, &reload, &mut work);
        let now = self.now();
        self.bench.shard.refolded(work, now);
    }

    fn kill(&mut self) {
        self.works.clear();
        self.written(false);
        self.had.clear();
        self.bench.disk.kill();
        // Arrivals are kept in milliseconds and more, the rules are those that were in force.
        self.bench = Bench::on(
            self.bench.disk.clone(),
            self.in_force.clone(),
            u64::MAX,
            MIB,
            self.now(),
        );
    }

    fn rest(&mut self) {
        self.second += 2;
        while !self.works.is_empty() {
            self.carry_out();
            self.check();
        }
        let now = self.now();
        self.bench.rest(now);
        self.written(true);
        self.check();
        for (n, sent) in &self.traces {
            let due = sent[0].arrival + self.in_force.timing.decision_wait;
            assert!(due > now, "seed {}, {n} is late", self.seed);
        }
    }

    /// The vote over the first fragments of a trace; [`None`] for one of each that decides alone.
    fn vote(rules: &Rules, n: u64, sent: &[Sent]) -> Vote {
        let mut state: FoldState = rules.begin();
        let mut spans = 0;
        for it in sent {
            let view = it.incoming.view(0);
            spans += view.fragment.spans;
            if rules.settings.strategy == Strategy::SpanIngest {
                let vote = rules.vote_at_ingest(
                    trace(n),
                    &mut state,
                    spans,
                    &view,
                    it.arrival,
                    &mut Folding::default(),
                );
                if let Some(vote) = vote {
                    return vote;
                }
            } else {
                rules.fold(&mut state, &view, it.arrival);
            }
        }
        rules.first_vote(trace(n), &state, spans).vote
    }

    /// Verdicts that were given since the last look.
    fn check(&mut self) {
        let rules = self.in_force.clone();
        let undecided: Vec<u64> = self.traces.keys().copied().collect();
        for n in undecided {
            let Some(decision) = self.bench.decision(n) else {
                let held = self.bench.shard.index.get(trace(n)).expect("not lost");
                assert_eq!(held.fragments().len(), self.traces[&n].len(), "{n}");
                if self.bench.shard.waits_for_fold(trace(n)) {
                    let had = self.traces[&n].len();
                    self.had.entry(n).or_insert(had);
                } else {
                    self.had.remove(&n);
                }
                continue;
            };
            let sent = self.traces.remove(&n).expect("an undecided trace");
            let had = self.had.remove(&n).unwrap_or(sent.len());
            assert_eq!(decision.rules_version, rules.version, "{n}");
            let expected: Vec<Vote> = (had..=sent.len())
                .map(|had| Self::vote(&rules, n, &sent[..had]))
                .collect();
            let found = Vote {
                verdict: decision.verdict,
                threshold: decision.threshold,
                policy: decision.policy,
            };
            assert!(
                expected.contains(&found),
                "seed {}, {n}: {found:?}, and not {expected:?}, after {had} of {} fragments",
                self.seed,
                sent.len()
            );
            let timing = &rules.timing;
            let last = sent[sent.len() - 1].arrival;
            let quiet = timing.quiet_period.map(|quiet| last + quiet);
            let due = sent[0].arrival + timing.decision_wait;
            let due = quiet.map_or(due, |quiet| quiet.min(due));
            let is_early = rules.settings.strategy == Strategy::SpanIngest
                || rules.settings.trace_bytes_max.is_some();
            assert!(
                is_early || self.torn.contains(&n) || had < sent.len() || due <= self.now(),
                "seed {}, {n} before its deadline",
                self.seed
            );
            self.decided.insert(n, decision);
        }
    }
}

#[test]
fn whatever_changes_when_a_trace_is_judged_as_if_the_rules_in_force_had_always_been() {
    let (mut kept, mut dropped, mut reloads) = (0, 0, 0);
    for seed in 1..=150 {
        let mut lives = Lives::new(seed);
        for _ in 0..400 {
            lives.step();
        }
        for _ in 0..15 {
            lives.rest();
        }
        assert!(lives.traces.is_empty(), "seed {seed}");
        assert_eq!(lives.bench.shard.refold.traces(), 0, "seed {seed}");
        let verdicts = lives.decided.values().map(|it| it.verdict);
        kept += verdicts.filter(|it| *it == Verdict::Keep).count();
        dropped += lives.decided.len();
        reloads += lives.reloads;
    }
    dropped -= kept;
    assert!(
        kept > 1_500 && dropped > 1_500 && reloads > 2_000,
        "{kept} {dropped} {reloads}"
    );
}
