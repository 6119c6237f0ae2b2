//! The ring changes under load: workers come, go, and come back at other addresses. No acknowledged span is
//! lost and no trace is judged in pieces.

use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{Cluster, Findings, LoadEnd, Plan};
use crate::process::{PATIENCE, until};

const EXPORTED_WITHIN: Duration = Duration::from_secs(120);
const LOAD_WITHIN: Duration = Duration::from_secs(180);
/// Handing over, waiting until it is quiet, exporting.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

async fn spans_accepted(cluster: &Cluster) -> u64 {
    let spans = "tailring_router_spans_accepted_total";
    cluster.routers[0].metric(spans, &[]).await
}

/// Waits until so many more spans have come.
async fn a_while(cluster: &Cluster, spans: u64) {
    let before = spans_accepted(cluster).await;
    until("the load goes on", LOAD_WITHIN, async || {
        (spans_accepted(cluster).await >= before + spans).then_some(())
    })
    .await;
}

async fn ends(cluster: &mut Cluster, worker: usize) {
    let process = &mut cluster.workers[worker].process;
    process.signal(Signal::TERM);
    let status = process.exit(STOPPED_WITHIN).await;
    assert!(status.success(), "{status}: {}", process.stderr());
}

async fn finds_nothing_wrong(cluster: &mut Cluster, what: &str, load: LoadEnd) -> Findings {
    for name in ["batches_given_up", "batches_refused", "batches_partial"] {
        assert_eq!(load.count(name), 0, "{name} in {:#}", load.report);
    }
    cluster.settled(EXPORTED_WITHIN).await;
    let mut told = Vec::new();
    for (metric, labels) in [
        ("tailring_worker_handoff_generations_total", "end=\"moved\""),
        (
            "tailring_worker_handoff_generations_total",
            "end=\"merged_back\"",
        ),
        (
            "tailring_worker_handoff_spans_received_total",
            "fate=\"appended\"",
        ),
        (
            "tailring_worker_handoff_spans_received_total",
            "fate=\"late_kept\"",
        ),
        ("tailring_worker_decision_conflicts_total", ""),
        ("tailring_worker_traces_decided_total", "reason=\"forced\""),
    ] {
        let sum = cluster.workers_sum(metric, &[labels]).await;
        told.push(format!("{metric}{{{labels}}} {sum}"));
    }
    let found = cluster.verify("load").await;
    println!(
        "ROW {what}: sent {} spans, retries {}, slowest {:.0} ms, lost {}, doubled {}, split {}\nROW   {}",
        found.sent,
        load.count("retries"),
        load.max_ms(),
        found.lost,
        found.doubled,
        found.split,
        told.join("\nROW   ")
    );
    assert_eq!(
        (found.lost, found.unknown, found.split),
        (0, 0, 0),
        "{found:?}"
    );
    assert_eq!(found.acknowledged, load.count("spans_acknowledged"));
    found
}

#[tokio::test]
async fn a_rolling_restart_at_new_addresses_loses_and_splits_nothing() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("2k", 30, &[]);
    a_while(&cluster, 4_000).await;
    for worker in 0..3 {
        ends(&mut cluster, worker).await;
        cluster.start_elsewhere(worker);
        cluster.workers[worker].ready().await;
    }
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    finds_nothing_wrong(&mut cluster, "rolling restart, new addresses", load).await;
}

#[tokio::test]
async fn a_worker_that_comes_and_goes_again_loses_and_splits_nothing() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("2k", 18, &[]);
    a_while(&cluster, 4_000).await;
    let another = cluster.start_another();
    cluster.workers[another].ready().await;
    let appended = ["fate=\"appended\""];
    until("it gets spans", PATIENCE, async || {
        let worker = &cluster.workers[another];
        let spans = worker.metric("tailring_worker_spans_total", &appended);
        (spans.await > 1_000).then_some(())
    })
    .await;
    ends(&mut cluster, another).await;
    cluster.workers.truncate(another);
    cluster.list_workers();
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    finds_nothing_wrong(&mut cluster, "3 to 4 to 3 workers", load).await;
}
