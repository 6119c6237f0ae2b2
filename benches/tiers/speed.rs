//! CPU-seconds per million spans of each tier, as ratios to null servers in the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::process::{
    Cpu, DROP_RETAIN_SECONDS, Load, Process, clock, data_dir, null_server, rest, sorted, worker,
};

const ROUNDS: usize = 5;
/// Of the worker under load; its window starts after twice this, so that export and the freeing of
/// segments are inside it.
const DECISION_WAIT_SECONDS: u64 = 2;
const WINDOW: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tier {
    Raw,
    Prost,
    Router,
    Worker,
    /// 10 to 20 % of the spans are exported.
    SixPolicies,
}

struct Goal {
    tier: Tier,
    against: Tier,
    at_most: f64,
}

const GOALS: [Goal; 6] = [
    Goal {
        tier: Tier::Router,
        against: Tier::Raw,
        at_most: 4.5,
    },
    Goal {
        tier: Tier::Router,
        against: Tier::Prost,
        at_most: 0.35,
    },
    Goal {
        tier: Tier::Worker,
        against: Tier::Raw,
        at_most: 6.0,
    },
    Goal {
        tier: Tier::Worker,
        against: Tier::Prost,
        at_most: 0.45,
    },
    Goal {
        tier: Tier::SixPolicies,
        against: Tier::Raw,
        at_most: 7.0,
    },
    Goal {
        tier: Tier::SixPolicies,
        against: Tier::Prost,
        at_most: 0.5,
    },
];

/// The policies of the repository, of which three numbers do not suit a load of agent turns that all
/// have 60 spans and more, take longer than 10 s half of the time, and are to be judged within the bench.
fn six_policies() -> String {
    let file = include_str!("../../deploy/policies/fleet.yaml");
    let suited = file
        .replace(
            "decision_wait: 30s",
            &format!("decision_wait: {DECISION_WAIT_SECONDS}s"),
        )
        .replace("min_spans: 20", &format!("min_spans: {MIN_SPANS}"))
        .replace(
            "threshold_ms: 10000",
            &format!("threshold_ms: {THRESHOLD_MILLIS}"),
        );
    assert_ne!(suited, file);
    suited
}

/// Of turns of 60 to 120 spans, so that with all six policies 10 to 20 % of the spans are exported.
const MIN_SPANS: u32 = 116;
/// Longer than most of those turns take.
const THRESHOLD_MILLIS: u32 = 60_000;

impl Tier {
    const ALL: [Self; 5] = [
        Self::Raw,
        Self::Prost,
        Self::Router,
        Self::Worker,
        Self::SixPolicies,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "null server, raw codec",
            Self::Prost => "null server, prost",
            Self::Router => "router, 2 workers",
            Self::Worker => "worker, always_sample",
            Self::SixPolicies => "worker, six policies",
        }
    }
}

/// One run of one tier.
#[derive(Debug, Clone, Copy)]
struct Cost {
    cpu_seconds_per_million: f64,
    spans_per_second: f64,
}

pub(crate) fn run() -> i32 {
    let mut costs: BTreeMap<Tier, Vec<Cost>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        for tier in Tier::ALL {
            let cost = measure(tier);
            println!(
                "round {round}  {:<24} {:>7.3} cpu-s/Mspan  {:>6.2} Mspans/s",
                tier.name(),
                cost.cpu_seconds_per_million,
                cost.spans_per_second / 1e6
            );
            costs.entry(tier).or_default().push(cost);
        }
    }
    println!(
        "\n{:<24} {:>8} {:>8} {:>8}   CPU-seconds per million spans",
        "", "min", "median", "max"
    );
    for (tier, costs) in &costs {
        let sorted = sorted(costs.iter().map(|cost| cost.cpu_seconds_per_million));
        println!(
            "{:<24} {:>8.3} {:>8.3} {:>8.3}",
            tier.name(),
            sorted[0],
            sorted[sorted.len() / 2],
            sorted[sorted.len() - 1]
        );
    }
    println!();
    let mut missed = 0;
    for goal in &GOALS {
        let ratios = sorted(
            costs[&goal.tier]
                .iter()
                .zip(&costs[&goal.against])
                .map(|(a, b)| a.cpu_seconds_per_million / b.cpu_seconds_per_million),
        );
        let median = ratios[ratios.len() / 2];
        let held = median <= goal.at_most;
        missed += i32::from(!held);
        println!(
            "{:<24} / {:<24} {median:>6.2}  ({:.2} to {:.2})  goal <= {:.2}  {}",
            goal.tier.name(),
            goal.against.name(),
            ratios[0],
            ratios[ratios.len() - 1],
            goal.at_most,
            if held { "held" } else { "MISSED" }
        );
    }
    i32::from(missed > 0)
}

fn measure(tier: Tier) -> Cost {
    match tier {
        Tier::Raw | Tier::Prost => {
            let server = null_server(tier == Tier::Prost, Cpu::Measured);
            let load = Load::start(server.grpc);
            window(&server, load, Duration::from_secs(2), |server| {
                server.null_spans()
            })
        }
        Tier::Router => {
            let workers = [
                null_server(false, Cpu::Others),
                null_server(false, Cpu::Others),
            ];
            let members: Vec<String> = workers
                .iter()
                .enumerate()
                .map(|(number, worker)| format!("worker-{number}={}", worker.grpc))
                .collect();
            let router = Process::tailring(
                "tailring-router",
                &["--workers", &format!("static://{}", members.join(","))],
                Cpu::Measured,
            );
            router.wait_ready();
            let load = Load::start(router.grpc);
            window(&router, load, Duration::from_secs(2), |router| {
                router.metric("tailring_router_spans_received_total")
            })
        }
        Tier::Worker | Tier::SixPolicies => {
            let dir = data_dir("speed");
            let backend = null_server(false, Cpu::Others);
            let policies = dir.join("policies.yaml");
            let file = if tier == Tier::SixPolicies {
                six_policies()
            } else {
                format!(
                    "decision_wait: {DECISION_WAIT_SECONDS}s\npolicies:\n  - {{name: all, type: always_sample}}\n"
                )
            };
            std::fs::write(&policies, file).unwrap();
            let worker = worker(&dir, &policies, backend.grpc, Cpu::Measured, &[]);
            let load = Load::start(worker.grpc);
            // What is dropped stays so much longer, and is freed inside the window, too.
            let retained = if tier == Tier::SixPolicies {
                DROP_RETAIN_SECONDS
            } else {
                0
            };
            let cost = window(
                &worker,
                load,
                Duration::from_secs(2 * DECISION_WAIT_SECONDS + retained + 1),
                |worker| worker.metric("tailring_worker_spans_received_total"),
            );
            let received = worker.metric("tailring_worker_spans_received_total");
            let appended = worker.metric("tailring_worker_spans_total{fate=\"appended\"}");
            assert_eq!(received, appended, "every span received was appended");
            let exported = worker.metric("tailring_worker_spans_exported_total");
            assert!(exported > 0.0);
            if tier == Tier::SixPolicies {
                let decided = exported + worker.metric("tailring_worker_spans_dropped_total");
                let share = exported / decided;
                println!(
                    "         exported {:.1} % of what was judged",
                    share * 100.0
                );
                assert!((0.10..=0.20).contains(&share), "10 to 20 % are exported");
            }
            drop(worker);
            std::fs::remove_dir_all(&dir).unwrap();
            cost
        }
    }
}

/// CPU and spans between two moments under load, after a warm-up.
fn window(
    process: &Process,
    load: Load,
    warm_up: Duration,
    spans: impl Fn(&Process) -> f64,
) -> Cost {
    rest(warm_up);
    let (cpu_before, spans_before, clock) = (process.cpu_seconds(), spans(process), clock());
    rest(WINDOW);
    let (cpu, spans) = (
        process.cpu_seconds() - cpu_before,
        spans(process) - spans_before,
    );
    let elapsed = clock.elapsed().as_secs_f64();
    drop(load);
    assert!(spans > 0.0, "nothing was received in the window");
    Cost {
        cpu_seconds_per_million: cpu / spans * 1e6,
        spans_per_second: spans / elapsed,
    }
}
