//! The failure table: what breaks, what the client sees of it, what is counted, and what is lost,
//! doubled or split. Whatever else a row may cost, no acknowledged span is ever lost.
//!
//! Rows print what they measured (`cargo test --test cluster -- --nocapture`).

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use crate::cluster::{Cluster, Findings, LoadEnd, Plan, Service};
use crate::process::{PATIENCE, until};

/// From the end of a load until everything is exported: `decision_wait` and some time.
const EXPORTED_WITHIN: Duration = Duration::from_secs(30);
/// After an outage of the backend: the wait between attempts grows to 30 s.
const EXPORTED_AFTER_OUTAGE_WITHIN: Duration = Duration::from_secs(90);
const LOAD_WITHIN: Duration = Duration::from_secs(120);

/// Waits until the load has arrived at the first router for a moment.
async fn under_way(cluster: &Cluster) {
    until("the load is under way", PATIENCE, async || {
        let mut accepted = 0;
        for router in &cluster.routers {
            let spans = "tailring_router_spans_accepted_total";
            accepted += router.metric(spans, &[]).await;
        }
        (accepted > 20_000).then_some(())
    })
    .await;
}

#[track_caller]
fn nothing_is_lost(found: Findings, load: &LoadEnd) {
    assert_eq!(found.lost, 0, "{found:?}");
    assert_eq!(found.unknown, 0, "{found:?}");
    assert_eq!(found.acknowledged, load.count("spans_acknowledged"));
}

#[track_caller]
fn all_is_clean(found: Findings, load: &LoadEnd) {
    nothing_is_lost(found, load);
    assert_eq!((found.doubled, found.split), (0, 0), "{found:?}");
}

/// Every batch was acknowledged in the end.
#[track_caller]
fn everything_was_taken(load: &LoadEnd) {
    for name in ["batches_given_up", "batches_refused", "batches_partial"] {
        assert_eq!(load.count(name), 0, "{name} in {:#}", load.report);
    }
    assert!(load.count("batches_acknowledged") > 0);
}

fn row(text: &str, load: &LoadEnd, found: Findings) {
    println!(
        "ROW {text}: sent {} spans, retries {}, slowest {:.0} ms, lost {}, doubled {}, split {}",
        found.sent,
        load.count("retries"),
        load.max_ms(),
        found.lost,
        found.doubled,
        found.split
    );
}

async fn surrogate_spans(cluster: &Cluster) -> u64 {
    let name = "tailring_router_spans_surrogate_total";
    cluster.routers[0].metric(name, &[]).await
}

#[tokio::test]
async fn a_worker_that_stalls_for_a_second_only_delays() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("8k", 12, &[]);
    under_way(&cluster).await;
    let stalled = &cluster.workers[1].process;
    stalled.signal(Signal::STOP);
    sleep(Duration::from_secs(1)).await; // what the row is about
    stalled.signal(Signal::CONT);
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    assert!(load.succeeded, "{:#}", load.report);
    assert_eq!(load.count("retries"), 0);
    assert!(load.max_ms() > 500.0, "nobody noticed: {:#}", load.report);
    cluster.settled(EXPORTED_WITHIN).await;
    let opens = "tailring_router_circuit_opens_total";
    assert_eq!(cluster.routers[0].metric(opens, &[]).await, 0);
    assert_eq!(surrogate_spans(&cluster).await, 0);
    let found = cluster.verify("load").await;
    row("worker stalls 1 s", &load, found);
    all_is_clean(found, &load);
}

#[tokio::test]
async fn a_worker_that_stalls_for_long_is_stood_in_for_and_loses_nothing() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("8k", 15, &[]);
    under_way(&cluster).await;
    cluster.workers[1].process.signal(Signal::STOP);
    until("the circuit opens", PATIENCE, async || {
        let opens = "tailring_router_circuit_opens_total";
        let opens = cluster.routers[0].metric(opens, &[]).await;
        (opens > 0).then_some(())
    })
    .await;
    until("stand-ins get spans", PATIENCE, async || {
        (surrogate_spans(&cluster).await > 2_000).then_some(())
    })
    .await;
    cluster.workers[1].process.signal(Signal::CONT);
    until("the owner gets its spans back", PATIENCE, async || {
        let open = "tailring_router_circuit_open";
        let open = cluster.routers[0].metric(open, &[]).await;
        (open == 0).then_some(())
    })
    .await;
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    everything_was_taken(&load);
    cluster.settled(EXPORTED_WITHIN).await;
    let router = cluster.routers[0].metrics().await;
    let opens = router.sum(
        "tailring_router_circuit_opens_total",
        &["cause=\"timed_out\""],
    );
    let surrogate = router.sum("tailring_router_spans_surrogate_total", &[]);
    let custody = cluster
        .workers_sum("tailring_worker_spans_total", &["fate=\"custody\""])
        .await;
    let found = cluster.verify("load").await;
    row("worker stalls until stood in for", &load, found);
    println!("ROW   opened {opens} times, {surrogate} surrogate spans, {custody} in custody");
    assert!(opens > 0);
    assert!(custody > 0 && custody <= surrogate);
    nothing_is_lost(found, &load);
    // Only what was given to a stand-in can be at two places.
    assert!(
        found.doubled <= surrogate && found.split <= surrogate,
        "{found:?}"
    );
}

#[tokio::test]
async fn a_worker_that_is_killed_and_comes_back_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("8k", 15, &[]);
    under_way(&cluster).await;
    cluster.workers[1].kill().await;
    sleep(Duration::from_secs(3)).await; // what the row is about
    cluster.workers[1].start_again();
    cluster.workers[1].ready().await;
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    everything_was_taken(&load);
    cluster.settled(EXPORTED_WITHIN).await;
    let router = cluster.routers[0].metrics().await;
    let opens = router.sum("tailring_router_circuit_opens_total", &[]);
    let surrogate = router.sum("tailring_router_spans_surrogate_total", &[]);
    let found = cluster.verify("load").await;
    row("worker killed, back after 3 s", &load, found);
    println!("ROW   opened {opens} times, {surrogate} surrogate spans");
    assert!(opens > 0 && surrogate > 0);
    // Stand-ins give what they hold to the owner when it is back, and it judges.
    all_is_clean(found, &load);
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_and_comes_back_loses_nothing() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("8k", 15, &[]);
    under_way(&cluster).await;
    let worker = &mut cluster.workers[1];
    worker.process.signal(Signal::TERM);
    let status = worker.process.exit(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}");
    sleep(Duration::from_secs(3)).await; // a pod that is replaced does not come back at once
    worker.start_again();
    worker.ready().await;
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    everything_was_taken(&load);
    cluster.settled(EXPORTED_WITHIN).await;
    let surrogate = surrogate_spans(&cluster).await;
    let found = cluster.verify("load").await;
    row("worker restarted with SIGTERM", &load, found);
    // It says that it leaves: nobody needs a stand-in for it.
    println!("ROW   {surrogate} surrogate spans");
    all_is_clean(found, &load);
}

#[tokio::test]
async fn a_backend_that_refuses_for_a_while_gets_everything_once() {
    let plan = Plan {
        sink_args: &["--answer", "unavailable"],
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await;
    let load = cluster.routed_load("8k", 12, &[]);
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    assert!(load.succeeded, "{:#}", load.report);
    assert_eq!(load.count("retries"), 0, "the client does not notice");
    let retries = ["reason=\"refused_retryable\""];
    let retries = cluster
        .workers_sum("tailring_export_retries_total", &retries)
        .await;
    assert!(retries > 0);
    assert_eq!(
        cluster
            .workers_sum("tailring_export_spans_total", &[])
            .await,
        0
    );
    cluster.stop_sink().await;
    cluster.start_sink(&[]).await;
    cluster.settled(EXPORTED_AFTER_OUTAGE_WITHIN).await;
    let found = cluster.verify("load").await;
    row("backend UNAVAILABLE", &load, found);
    println!("ROW   {retries} retries while it refused");
    all_is_clean(found, &load);
    assert_eq!(found.got, found.sent);
}

#[tokio::test]
async fn a_backend_that_refuses_for_good_gets_everything_after_a_restart_of_the_workers() {
    let plan = Plan {
        sink_args: &["--answer", "invalid"],
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await;
    let load = cluster.routed_load("8k", 10, &[]);
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    assert!(load.succeeded, "{:#}", load.report);
    assert_eq!(load.count("retries"), 0, "the client does not notice");
    until("all is decided and refused", PATIENCE, async || {
        let undecided = "tailring_worker_undecided_traces";
        let in_flight = "tailring_export_in_flight_batches";
        let left =
            cluster.workers_sum(undecided, &[]).await + cluster.workers_sum(in_flight, &[]).await;
        (left == 0).then_some(())
    })
    .await;
    let sum = async |name: &str| cluster.workers_sum(name, &[]).await;
    let refused = sum("tailring_export_refused_batches_total").await;
    let put_back = sum("tailring_worker_exports_put_back_total").await;
    let awaiting = sum("tailring_worker_awaiting_export_traces").await;
    assert!(refused > 0);
    assert!(put_back >= awaiting, "{put_back} of {awaiting}");
    assert_eq!(sum("tailring_worker_spans_exported_total").await, 0);
    cluster.stop_sink().await;
    cluster.start_sink(&[]).await;
    // Each is offered again after a minute; an operator who has mended the backend restarts.
    for worker in &cluster.workers {
        worker.process.signal(Signal::TERM);
    }
    for worker in &mut cluster.workers {
        let status = worker.process.exit(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}");
        worker.start_again();
    }
    for worker in &mut cluster.workers {
        worker.ready().await;
    }
    cluster.settled(EXPORTED_WITHIN).await;
    let found = cluster.verify("load").await;
    row("backend INVALID_ARGUMENT, then restart", &load, found);
    println!("ROW   {refused} refused batches, {put_back} traces put back");
    all_is_clean(found, &load);
    assert_eq!(found.got, found.sent);
}

#[tokio::test]
async fn a_backend_that_is_away_for_30_s_gets_everything_once() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let load = cluster.routed_load("5k", 40, &[]);
    under_way(&cluster).await;
    cluster.stop_sink().await;
    sleep(Duration::from_secs(30)).await; // what the row is about
    let retries = ["reason=\"unreachable\""];
    let retries = cluster
        .workers_sum("tailring_export_retries_total", &retries)
        .await;
    assert!(retries > 0);
    cluster.start_sink(&[]).await;
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    assert!(load.succeeded, "{:#}", load.report);
    assert_eq!(load.count("retries"), 0, "the client does not notice");
    cluster.settled(EXPORTED_AFTER_OUTAGE_WITHIN).await;
    let found = cluster.verify("load").await;
    row("backend away 30 s", &load, found);
    println!("ROW   {retries} retries meanwhile");
    all_is_clean(found, &load);
    assert_eq!(found.got, found.sent);
}

async fn a_router_leaves(signal: Signal) {
    let plan = Plan {
        routers: 2,
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await;
    let routers = cluster.routers.iter().map(|router| router.grpc);
    let service = Service::start(routers.collect()).await;
    let load = cluster.load("load", service.address, "8k", 12, &[]);
    until("both routers have spans", PATIENCE, async || {
        let mut least = u64::MAX;
        for router in &cluster.routers {
            let spans = "tailring_router_spans_accepted_total";
            least = least.min(router.metric(spans, &[]).await);
        }
        (least > 10_000).then_some(())
    })
    .await;
    // Requests must be in its hands when it goes: workers that stand still for a moment keep them.
    for worker in &cluster.workers {
        worker.process.signal(Signal::STOP);
    }
    until("requests are in its lanes", PATIENCE, async || {
        let bytes = cluster.routers[0].metric("tailring_router_lane_bytes", &[]);
        (bytes.await > 0).then_some(())
    })
    .await;
    cluster.routers[0].process.signal(signal);
    if signal == Signal::KILL {
        let _killed = cluster.routers[0].process.exit(PATIENCE).await;
    }
    for worker in &cluster.workers {
        worker.process.signal(Signal::CONT);
    }
    let status = cluster.routers[0]
        .process
        .exit(Duration::from_secs(30))
        .await;
    assert_eq!(status.success(), signal == Signal::TERM, "{status}");
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    everything_was_taken(&load);
    assert_eq!(load.count("retries") > 0, signal == Signal::KILL);
    cluster.settled(EXPORTED_WITHIN).await;
    let duplicates = ["fate=\"duplicate\""];
    let duplicates = cluster
        .workers_sum("tailring_worker_spans_total", &duplicates)
        .await;
    let found = cluster.verify("load").await;
    row(&format!("router leaves by {signal:?}"), &load, found);
    println!("ROW   {duplicates} duplicate spans recognised");
    all_is_clean(found, &load);
}

#[tokio::test]
async fn a_router_that_is_asked_to_stop_costs_nothing() {
    a_router_leaves(Signal::TERM).await;
}

#[tokio::test]
async fn a_router_that_is_killed_costs_retries_and_nothing_is_doubled() {
    a_router_leaves(Signal::KILL).await;
}

#[tokio::test]
async fn a_full_log_refuses_clients_until_the_backend_is_back() {
    // The least that is allowed: three segments a core, of which two are the reserve.
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    let log_max_bytes = cores * 3 * (64 << 20);
    let plan = Plan {
        workers: 1,
        log_max_bytes,
        without_sink: true,
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await;
    let shape = ["--shape", "agent"];
    let load = cluster.routed_load("max", 15, &shape);
    until("the log is full", PATIENCE * 2, async || {
        let refused = ["outcome=\"log_full\""];
        let name = "tailring_requests_total";
        let refused = cluster.workers[0].metric(name, &refused).await;
        (refused > 10).then_some(())
    })
    .await;
    let log_bytes = cluster.workers_sum("tailring_worker_log_bytes", &[]).await;
    cluster.start_sink(&[]).await;
    let load = LoadEnd::of(load, LOAD_WITHIN).await;
    everything_was_taken(&load);
    assert!(load.failures("UNAVAILABLE") > 0, "{:#}", load.report);
    assert!(load.failures("byte bound") > 0, "{:#}", load.report);
    let back_pressure = ["outcome=\"back_pressure\""];
    let requests = "tailring_router_requests_total";
    let refused = cluster.routers[0].metric(requests, &back_pressure).await;
    assert!(refused > 0);
    cluster.settled(EXPORTED_AFTER_OUTAGE_WITHIN).await;
    let opens = "tailring_router_circuit_opens_total";
    let opens = cluster.routers[0].metric(opens, &[]).await;
    let found = cluster.verify("load").await;
    row("log full", &load, found);
    println!(
        "ROW   log of {log_bytes} bytes, {refused} requests refused, circuit opened {opens} times"
    );
    assert!(log_bytes <= log_max_bytes);
    assert_eq!(opens, 0, "back-pressure is an answer, not an absence");
    all_is_clean(found, &load);
    assert_eq!(found.got, found.sent);
}
