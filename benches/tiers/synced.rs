//! What `--ack synced` costs more than `written`, at 100 MB/s.

use std::time::Duration;

use crate::judge;
use crate::process::{Cpu, Process, data_dir, null_server, rest, sorted, timed_load, worker};

/// Agent spans a second: 100 MB/s of requests.
const RATE: &str = "240000";
const SECONDS: &str = "8s";
const ROUNDS: usize = 7;
const CPU_RATIO_MAX: f64 = 2.0;
const P99_MORE_MS_MAX: f64 = 15.0;
/// With `written` and a core of its own a worker answers within this. Beyond it others use the machine,
/// and the difference of two such figures says nothing.
const QUIET_P99_MS_MAX: f64 = 30.0;

#[derive(Debug, Clone, Copy)]
struct Cost {
    cpu_seconds_per_million: f64,
    p99_ms: f64,
}

pub(crate) fn run() -> i32 {
    let dir = data_dir("synced");
    let backend = null_server(false, Cpu::Others);
    let policies = dir.join("policies.yaml");
    std::fs::write(
        &policies,
        "decision_wait: 2s\npolicies:\n  - {name: tenth, type: probabilistic, probabilistic: {sampling_percentage: 10}}\n",
    )
    .unwrap();
    let workers = ["written", "synced"].map(|ack| {
        let dir = dir.join(ack);
        worker(
            &dir,
            &policies,
            backend.grpc,
            Cpu::Measured,
            &[("--ack", ack)],
        )
    });
    let mut rounds = Vec::new();
    // The first round is warm-up: segments, connections, caches.
    for round in 0..=ROUNDS {
        let [written, synced] = [&workers[0], &workers[1]].map(|worker| cost(worker, round));
        println!(
            "round {round}  written {:.3} cpu-s/Mspan, p99 {:.1} ms   synced {:.3} cpu-s/Mspan, p99 {:.1} ms{}",
            written.cpu_seconds_per_million,
            written.p99_ms,
            synced.cpu_seconds_per_million,
            synced.p99_ms,
            if round == 0 { "   (not counted)" } else { "" }
        );
        if round > 0 {
            rounds.push((written, synced));
        }
    }
    drop(workers);
    std::fs::remove_dir_all(&dir).unwrap();
    let ratios =
        sorted(rounds.iter().map(|(written, synced)| {
            synced.cpu_seconds_per_million / written.cpu_seconds_per_million
        }));
    let more = sorted(
        rounds
            .iter()
            .map(|(written, synced)| synced.p99_ms - written.p99_ms),
    );
    let quiet = rounds
        .iter()
        .filter(|(written, _)| written.p99_ms <= QUIET_P99_MS_MAX);
    if quiet.count() <= ROUNDS / 2 {
        println!("NOT MEASURED: the machine is busy with other things");
        return 1;
    }
    let show = |values: &[f64]| {
        format!(
            "{:.2}  ({:.2} to {:.2})",
            values[ROUNDS / 2],
            values[0],
            values[ROUNDS - 1]
        )
    };
    let missed = judge(
        "synced / written, CPU",
        &show(&ratios),
        "<= 2",
        ratios[ROUNDS / 2] <= CPU_RATIO_MAX,
    ) + judge(
        "synced - written, p99 of an acknowledgement, ms",
        &show(&more),
        "<= 15",
        more[ROUNDS / 2] <= P99_MORE_MS_MAX,
    );
    i32::from(missed > 0)
}

/// With all that follows from the spans: verdicts, exports, segments that are freed.
fn cost(worker: &Process, seed: usize) -> Cost {
    let before = worker.cpu_seconds();
    let report = timed_load(worker.grpc, RATE, SECONDS, seed as u64 + 1);
    worker.wait_until("nothing undecided", |worker| {
        worker.metric("tailring_worker_undecided_spans") == 0.0
            && worker.metric("tailring_worker_awaiting_export_traces") == 0.0
    });
    rest(Duration::from_millis(500));
    let spans = report["counts"]["spans_acknowledged"].as_f64().unwrap();
    Cost {
        cpu_seconds_per_million: (worker.cpu_seconds() - before) / spans * 1e6,
        p99_ms: report["latency"]["p99_ms"].as_f64().unwrap(),
    }
}
