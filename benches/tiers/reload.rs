//! What three changes of the policy file, one of them wrong, do to acknowledgements while 50,000 traces
//! are undecided. Rounds without changes stand between those with them.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::judge;
use crate::process::{Cpu, Load, Process, data_dir, null_server, rest, sorted, timed_load, worker};

const TRACES: f64 = 50_000.0;
/// Agent spans a second.
const RATE: &str = "30000";
const SECONDS: &str = "12s";
const ROUNDS: usize = 5;
const P999_MS: f64 = 50.0;
const P999_RATIO: f64 = 2.0;

/// They look at different things, so that every undecided trace is folded again.
const ERRORS: &str = "{name: errors, type: status_code, status_code: {status_codes: [ERROR]}}";
const SLOW: &str = "{name: slow, type: latency, latency: {threshold_ms: 30000}}";
const WRONG: &str = "{name: wrong, type: latncy}";

pub(crate) fn run() -> i32 {
    let dir = data_dir("reload");
    let policies = dir.join("policies.yaml");
    write(&policies, ERRORS);
    let backend = null_server(false, Cpu::Others);
    let worker = worker(&dir, &policies, backend.grpc, Cpu::Measured, &[]);
    let load = Load::at(worker.grpc, "60000");
    worker.wait_until("50,000 undecided traces", |worker| {
        worker.metric("tailring_worker_undecided_traces") >= TRACES
    });
    drop(load);
    let mut rounds = Vec::new();
    // The first round is warm-up.
    for round in 0..=ROUNDS {
        let without = p999(&worker, 2 * round, || {});
        let taken = "tailring_worker_policy_reloads_total{outcome=\"taken\"}";
        let read = "tailring_worker_refold_bytes_total";
        let before = (worker.metric(taken), worker.metric(read));
        let with = p999(&worker, 2 * round + 1, || {
            for policy in [SLOW, WRONG, ERRORS] {
                rest(Duration::from_secs(3));
                write(&policies, policy);
                let pid = Pid::from_child(&worker.child);
                kill_process(pid, Signal::HUP).unwrap();
            }
        });
        let after = (worker.metric(taken), worker.metric(read));
        assert_eq!(after.0 - before.0, 2.0, "two of three are taken");
        println!(
            "round {round}  p99.9 without {without:.1} ms, with three changes {with:.1} ms; {:.0} undecided traces, {:.0} MB folded again{}",
            worker.metric("tailring_worker_undecided_traces"),
            (after.1 - before.1) / 1e6,
            if round == 0 { "   (not counted)" } else { "" }
        );
        worker.wait_until("everything is folded", |worker| {
            worker.metric("tailring_worker_refold_traces") == 0.0
        });
        if round > 0 {
            rounds.push((without, with));
        }
    }
    drop(worker);
    std::fs::remove_dir_all(&dir).unwrap();
    let without = sorted(rounds.iter().map(|it| it.0))[ROUNDS / 2];
    let with = sorted(rounds.iter().map(|it| it.1))[ROUNDS / 2];
    let most = P999_MS.max(P999_RATIO * without);
    judge(
        "p99.9 of an acknowledgement over three changes",
        &format!("{with:.1} ms; without {without:.1} ms"),
        &format!("<= {most:.0} ms"),
        with <= most,
    )
}

fn write(policies: &Path, policy: &str) {
    let text = format!("decision_wait: 30m\npolicies:\n  - {policy}\n");
    std::fs::write(policies, text).unwrap();
}

/// Of a load during which something happens.
fn p999(worker: &Process, seed: usize, happens: impl FnOnce()) -> f64 {
    let to = worker.grpc;
    let report = std::thread::scope(|scope| {
        let load = scope.spawn(move || timed_load(to, RATE, SECONDS, seed as u64 + 1));
        happens();
        load.join().unwrap()
    });
    report["latency"]["p999_ms"].as_f64().unwrap()
}
