//! Whole clusters in one thread: the routers, shards, logs and handoff that serve, under a simulated
//! network, disk, DNS and clock, with the faults that a seed draws. Nothing acknowledged is lost, and no trace is
//! judged in pieces.
//!
//! ```sh
//! cargo test --test simulation                                        # 300 seeds
//! TAILRING_SIMULATION_SEEDS=1-20000 cargo test --release --test simulation -- --ignored --nocapture soak
//! TAILRING_SIMULATION_SEEDS=17 cargo test --test simulation -- --ignored --nocapture told   # one run, step by step
//! ```

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, in its helpers too, and tells people what it did"
)]

mod books;
mod counters;
mod dns;
mod fault;
mod network;
mod peering;
mod plan;
mod pods;
mod world;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use counters::Counters;
use fault::Scenario;
use plan::Plan;
use world::{Stage, run};

/// What came of many seeds.
#[derive(Default)]
struct Tally {
    seeds: u64,
    faults: u64,
    events: u64,
    simulated_seconds: u64,
    acknowledged: u64,
    delivered: u64,
    doubled: u64,
    gave_up: u64,
    by_scenario: BTreeMap<Scenario, Row>,
    /// How often rosters noted what.
    sometimes: BTreeMap<&'static str, u64>,
    /// What the product counted.
    counters: Counters,
    violations: Vec<String>,
}

#[derive(Default)]
struct Row {
    seeds: u64,
    traces: u64,
    split: u64,
    wrong: u64,
    judged_twice: u64,
    late: Vec<u64>,
}

impl Tally {
    fn add(&mut self, seed: u64, stage: &Stage) {
        let plan = Plan::new(seed);
        let outcome = run(&plan, stage);
        let account = &outcome.account;
        self.seeds += 1;
        self.faults += plan.faults.len() as u64;
        self.events += outcome.events;
        self.simulated_seconds += outcome.lasted / 1000;
        self.acknowledged += account.acknowledged;
        self.delivered += account.delivered;
        self.doubled += account.doubled;
        self.gave_up += account.gave_up;
        self.counters.add(&outcome.counters);
        let row = self.by_scenario.entry(plan.scenario).or_default();
        row.seeds += 1;
        row.traces += plan.traces.len() as u64;
        row.split += account.split.len() as u64;
        row.wrong += account.wrong.len() as u64;
        row.judged_twice += account.judged_twice;
        row.late.extend(&account.late);
        for (branch, times) in outcome.books.sometimes {
            *self.sometimes.entry(branch).or_default() += times;
        }
        for what in outcome.books.violations {
            self.violations.push(format!(
                "seed {seed} ({:?}): {what}\n    TAILRING_SIMULATION_SEEDS={seed} cargo test \
                 --test simulation -- --ignored --nocapture told",
                plan.scenario
            ));
        }
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.faults += other.faults;
        self.events += other.events;
        self.simulated_seconds += other.simulated_seconds;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.doubled += other.doubled;
        self.gave_up += other.gave_up;
        self.counters.add(&other.counters);
        for (scenario, row) in other.by_scenario {
            let held = self.by_scenario.entry(scenario).or_default();
            held.seeds += row.seeds;
            held.traces += row.traces;
            held.split += row.split;
            held.wrong += row.wrong;
            held.judged_twice += row.judged_twice;
            held.late.extend(row.late);
        }
        for (branch, times) in other.sometimes {
            *self.sometimes.entry(branch).or_default() += times;
        }
        self.violations.extend(other.violations);
    }

    fn tell(&mut self, seeds: &RangeInclusive<u64>, seconds: f64) {
        eprintln!(
            "seeds {}-{}: {} violations in {seconds:.1} s\n\
             {:.1} faults, {} events and {} simulated seconds a seed\n\
             {} spans acknowledged, {} delivered, {} of them twice; {} requests were given up",
            seeds.start(),
            seeds.end(),
            self.violations.len(),
            self.faults as f64 / self.seeds.max(1) as f64,
            self.events / self.seeds.max(1),
            self.simulated_seconds / self.seeds.max(1),
            self.acknowledged,
            self.delivered,
            self.doubled,
            self.gave_up,
        );
        for (scenario, row) in &mut self.by_scenario {
            row.late.sort_unstable();
            let late = |share: f64| {
                let place = row.late.len().saturating_sub(1) as f64 * share;
                row.late.get(place as usize).copied().unwrap_or(0) as f64 / 1e3
            };
            eprintln!(
                "{:<14} {:>5} seeds {:>7} traces: {} split, {} wrongly dropped, {} judged twice; \
                 late by {:.1} s at p50, {:.1} at p99",
                format!("{scenario:?}"),
                row.seeds,
                row.traces,
                row.split,
                row.wrong,
                row.judged_twice,
                late(0.5),
                late(0.99),
            );
        }
        for (branch, times) in &self.sometimes {
            eprintln!("{times:>9} {branch}");
        }
        for (name, value) in self.counters.all() {
            eprintln!("{value:>9} {name}");
        }
    }
}

fn seeds_asked_for(default: RangeInclusive<u64>) -> RangeInclusive<u64> {
    let Ok(asked) = std::env::var("TAILRING_SIMULATION_SEEDS") else {
        return default;
    };
    let (first, last) = asked.split_once('-').unwrap_or((&asked, &asked));
    let number = |text: &str| {
        text.trim()
            .parse()
            .expect("TAILRING_SIMULATION_SEEDS=1-10000")
    };
    number(first)..=number(last)
}

fn run_all(seeds: RangeInclusive<u64>) -> Tally {
    let next = AtomicU64::new(*seeds.start());
    let total = Mutex::new(Tally::default());
    #[expect(clippy::disallowed_methods, reason = "for people: how long it took")]
    let began = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let stage = Stage::new();
                let mut tally = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) || tally.violations.len() > 20 {
                        break;
                    }
                    tally.add(seed, &stage);
                }
                total.lock().expect("no thread panicked").merge(tally);
            });
        }
    });
    let mut total = total.into_inner().expect("no thread panicked");
    total.tell(&seeds, began.elapsed().as_secs_f64());
    total
}

fn assert_sound(total: &Tally) {
    if !total.violations.is_empty() {
        let first: Vec<&str> = total
            .violations
            .iter()
            .take(10)
            .map(String::as_str)
            .collect();
        panic!("\n{}", first.join("\n"));
    }
    assert!(total.delivered > total.seeds, "nothing was exported");
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_to_the_cluster() {
    let total = run_all(seeds_asked_for(1..=300));
    assert_sound(&total);
    if total.seeds >= 300 {
        let times = |name: &&str| {
            let noted = total.sometimes.get(name).copied().unwrap_or(0);
            noted + total.counters.sum(name)
        };
        let never: Vec<&str> = VISITED
            .into_iter()
            .filter(|name| times(name) == 0)
            .collect();
        assert!(
            never.is_empty(),
            "never happened in {} seeds: {never:?}",
            total.seeds
        );
    }
}

#[test]
#[ignore = "as long as it is told to"]
fn soak() {
    assert_sound(&run_all(seeds_asked_for(1..=20_000)));
}

/// Replays one run and says what happens in it, step by step.
#[test]
#[ignore = "for people"]
fn told() {
    let mut plan = Plan::new(*seeds_asked_for(1..=1).start());
    plan.is_told = true;
    let outcome = run(&plan, &Stage::new());
    for trace in 0..plan.traces.len() {
        eprintln!("{}", outcome.books.story(&plan, trace));
    }
    eprintln!("{:?}", outcome.account);
    let violations = &outcome.books.violations;
    assert!(violations.is_empty(), "{violations:#?}");
}

/// Branches of the protocol that every 300 seeds must have gone through, or they show nothing about them.
const VISITED: [&str; 24] = [
    "peer joined",
    "peer drained",
    "peer suspected",
    "stalled",
    "isolated",
    "rejoining",
    "store replaced",
    "wrong_incarnation",
    "drained",
    "router_spans_surrogate_total",
    "router_circuit_opens_total{cause=\"timed_out\"",
    "worker_spans_total{fate=\"custody\"",
    "worker_spans_total{fate=\"forwarded\"",
    "worker_spans_total{fate=\"duplicate\"",
    "worker_forwards_failed_total",
    "worker_handoff_generations_total{end=\"moved\"",
    "worker_handoff_generations_total{end=\"merged_back\"",
    "worker_handoff_spans_received_total{fate=\"duplicate\"",
    "worker_handoff_spans_received_total{fate=\"late_kept\"",
    "worker_handoff_spans_received_total{fate=\"reopened\"",
    "worker_decisions_learned_total",
    "worker_decision_conflicts_total{won=\"keep\"",
    "worker_verdicts_raised_total",
    "worker_log_torn_tails_total",
];

#[test]
fn what_once_went_wrong_does_not_again() {
    use fault::{Fault, Party};
    let (zero, one) = (Party::Worker(0), Party::Worker(1));
    let cut = |from, to| Fault::Cut {
        from,
        to,
        lasts: 20_000,
    };
    let stale = |who| Fault::StaleDns { who, lasts: 60_000 };
    // What is kept, its faults, and a branch that shows that it happened.
    type Row = (&'static str, Vec<(u64, Fault)>, &'static str);
    let rows: [Row; 4] = [
        (
            "two handoffs of one trace cross: two members each take the other for the owner",
            vec![
                (20_000, Fault::Add { worker: 5 }),
                (20_000, stale(zero)),
                (25_000, cut(zero, one)),
                (30_000, Fault::Remove { worker: 5 }),
                (
                    45_000,
                    Fault::Restart {
                        worker: 2,
                        down: 1_000,
                        is_replaced: true,
                    },
                ),
            ],
            "peer drained",
        ),
        (
            "a trace is judged when half of its handoff has arrived",
            vec![
                (30_000, Fault::Add { worker: 5 }),
                (40_000, cut(zero, one)),
                (41_000, Fault::Add { worker: 6 }),
            ],
            "peer joined",
        ),
        (
            "an owner wakes from a stall with every deadline overdue",
            vec![(
                30_000,
                Fault::Stall {
                    worker: 0,
                    lasts: 45_000,
                },
            )],
            "stalled",
        ),
        (
            "a new store under an old name is asked for nothing, and is told all",
            vec![(
                40_000,
                Fault::LoseDisk {
                    worker: 1,
                    down: 3_000,
                },
            )],
            "store replaced",
        ),
    ];
    let stage = Stage::new();
    for (name, faults, branch) in rows {
        let mut visited = 0;
        for seed in 1..=6 {
            let mut plan = Plan::new(seed).with_faults(faults.clone());
            plan.workers = 5;
            plan.handoff_bytes = 150;
            let outcome = run(&plan, &stage);
            let violations = outcome.books.violations;
            assert!(
                violations.is_empty(),
                "{name}, seed {seed}: {violations:#?}"
            );
            visited += outcome.books.sometimes.get(branch).copied().unwrap_or(0);
        }
        assert!(visited > 0, "{name}: never {branch}");
    }
}

/// The bugs are not in a release build, and neither is the switch.
#[cfg(debug_assertions)]
#[test]
#[ignore = "minutes"]
fn every_planted_bug_is_found_within_a_thousand_seeds() {
    use tailring::log::PlantedBug;
    let next = AtomicU64::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let stage = Stage::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(bug) = PlantedBug::OF_HANDOFF.get(number).copied() else {
                        return;
                    };
                    PlantedBug::plant(Some(bug));
                    let mut tally = Tally::default();
                    let seed = (1..=1_000).find(|seed| {
                        tally.add(*seed, &stage);
                        !tally.violations.is_empty()
                    });
                    PlantedBug::plant(None);
                    let how = tally.violations.into_iter().next().unwrap_or_default();
                    let how = how.lines().next().unwrap_or_default();
                    eprintln!(
                        "{:<22} {:>4} seeds: {how:.180}",
                        format!("{bug:?}"),
                        tally.seeds
                    );
                    if seed.is_none() {
                        missed.lock().expect("no thread panicked").push(bug);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no thread panicked");
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// A seed that failed is of no use unless it fails again.
#[test]
fn one_seed_is_one_run() {
    for seed in [2, 12, 36] {
        let hash = || run(&Plan::new(seed), &Stage::new()).hash;
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}
