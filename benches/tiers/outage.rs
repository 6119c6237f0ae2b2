//! How fast what was kept during an outage of the backend leaves when it is back, while intake goes on.

use std::net::SocketAddr;
use std::time::Duration;

use crate::judge;
use crate::process::{
    Cpu, Load, Process, clock, data_dir, free_port, null_server_at, rest, worker,
};

/// Agent spans a second, 25 MB/s; all of them are kept.
const INTAKE: &str = "60000";
const OUTAGE: Duration = Duration::from_secs(30);
const ROUNDS: usize = 3;
const RECEIVED: &str = "tailring_worker_spans_total{fate=\"appended\"}";
const EXPORTED: &str = "tailring_worker_spans_exported_total";

pub(crate) fn run() -> i32 {
    let mut missed = 0;
    for round in 1..=ROUNDS {
        missed += outage(round);
    }
    i32::from(missed > 0)
}

fn outage(round: usize) -> i32 {
    let dir = data_dir("outage");
    let policies = dir.join("policies.yaml");
    std::fs::write(
        &policies,
        "decision_wait: 2s\npolicies:\n  - {name: all, type: always_sample}\n",
    )
    .unwrap();
    let backend: SocketAddr = free_port();
    let worker = worker(&dir, &policies, backend, Cpu::Measured, &[]);
    let load = Load::at(worker.grpc, INTAKE);
    rest(OUTAGE);
    assert_eq!(worker.metric(EXPORTED), 0.0, "nobody is there");
    let spooled = worker.metric(RECEIVED);
    let (back, _backend) = (clock(), null_server_at(backend, false, Cpu::Others));
    // Exporters back off for up to half a minute while nobody answers.
    worker.wait_until("the first export", |worker| worker.metric(EXPORTED) > 0.0);
    let waited = back.elapsed();
    let counts = |worker: &Process| (worker.metric(RECEIVED), worker.metric(EXPORTED));
    let (started, (received, exported)) = (clock(), counts(&worker));
    worker.wait_until("the spool to be empty", |worker| {
        let (received, exported) = counts(worker);
        // What is undecided, of two seconds, and what is just being exported.
        received - exported < 4.0 * INTAKE.parse::<f64>().unwrap()
    });
    let seconds = started.elapsed().as_secs_f64();
    let (received_then, exported_then) = counts(&worker);
    let intake = (received_then - received) / seconds;
    let drain = (exported_then - exported) / seconds;
    println!(
        "round {round}: {spooled:.0} spans in {OUTAGE:?} without a backend; first export {:.1} s after it was back, drained in {seconds:.1} s",
        waited.as_secs_f64()
    );
    // Nothing is lost: what came leaves.
    drop(load);
    worker.wait_until("everything to be exported", |worker| {
        let (received, exported) = counts(worker);
        received == exported
    });
    drop(worker);
    std::fs::remove_dir_all(&dir).unwrap();
    let kept_up = intake >= 0.9 * INTAKE.parse::<f64>().unwrap();
    judge(
        "  export / intake while the spool drains",
        &format!("{:.1}  ({drain:.0} / {intake:.0} spans/s)", drain / intake),
        ">= 2",
        drain >= 2.0 * intake && kept_up,
    )
}
