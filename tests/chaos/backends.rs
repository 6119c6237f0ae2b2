//! Backends that are away, slow, throttling or silent. Clients must not notice any of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Plan;
use crate::process::until;
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;
use crate::throttle::Throttle;

/// The wait between attempts has grown to 30 s, and then there is a spool to send.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);
/// About a second of the load: as many traces wait for the backend in normal times.
const DRAINED_TRACES: u64 = 300;
/// What a throttling backend asks for.
const COME_BACK_AFTER: Duration = Duration::from_secs(2);
/// How many batches a worker offers at a time, for each of its cores.
const EXPORTERS_PER_CORE: u64 = 2;

fn plan(scale: Scale) -> Plan {
    Plan {
        decision_wait: scale.pick("2s", "10s"),
        ..Plan::default()
    }
}

/// What the outages here last.
fn outage(scale: Scale, quick_seconds: u64) -> Duration {
    Duration::from_secs(scale.pick(quick_seconds, 120))
}

/// Away under load, and back with its books. In the full form it is killed: what it wrote down and
/// did not answer comes again, a message of a few hundred spans, too much for a short load.
pub async fn the_backend_is_down(scale: Scale) -> Row {
    let outage = outage(scale, 15);
    let name = format!("backend down for {} s", outage.as_secs());
    let doubling = scale.pick(Doubling::Never, Doubling::AfterLostAnswers);
    let mut row = Row::new(name, doubling);
    let mut run = Run::start(plan(scale)).await;
    match scale {
        Scale::Quick => run.cluster.stop_sink().await,
        Scale::Full => run.cluster.kill_sink().await,
    }
    // The fault's own duration, as in all rows here.
    sleep(outage).await;
    run.cluster.start_sink(&[]).await;
    drains(&run, &mut row, scale).await;
    unnoticed(run, &mut row).await;
    row
}

/// Slower than the intake in the full form, and only late in the short one.
pub async fn the_backend_is_slow(scale: Scale) -> Row {
    let outage = outage(scale, 8);
    let millis = scale.pick("500", "20000");
    let name = format!(
        "backend answers after {millis} ms for {} s",
        outage.as_secs()
    );
    // When a backend that is this slow is stopped, answers get lost.
    let doubling = scale.pick(Doubling::Never, Doubling::AfterLostAnswers);
    let mut row = Row::new(name, doubling);
    let mut run = Run::start(plan(scale)).await;
    run.cluster.stop_sink().await;
    run.cluster.start_sink(&["--slow-ms", millis]).await;
    sleep(outage).await;
    run.cluster.stop_sink().await;
    run.cluster.start_sink(&[]).await;
    drains(&run, &mut row, scale).await;
    unnoticed(run, &mut row).await;
    row
}

/// Takes connections and requests, and says nothing. An attempt gives up after 30 s.
pub async fn the_backend_hangs(scale: Scale) -> Row {
    let outage = outage(scale, 8);
    let name = format!("backend hangs for {} s", outage.as_secs());
    let mut row = Row::new(name, Doubling::Never);
    let mut run = Run::start(plan(scale)).await;
    run.cluster.stop_sink().await;
    run.cluster.start_sink(&["--answer", "hang"]).await;
    sleep(outage).await;
    run.cluster.stop_sink().await;
    run.cluster.start_sink(&[]).await;
    drains(&run, &mut row, scale).await;
    unnoticed(run, &mut row).await;
    row
}

pub async fn the_backend_throttles_over_grpc(scale: Scale) -> Row {
    let outage = outage(scale, 8);
    let name = format!(
        "RESOURCE_EXHAUSTED with RetryInfo for {} s",
        outage.as_secs()
    );
    let mut row = Row::new(name, Doubling::Never);
    let mut run = Run::start(plan(scale)).await;
    run.cluster.stop_sink().await;
    let throttle = Throttle::grpc(run.cluster.backend(), COME_BACK_AFTER).await;
    throttled(&mut run, throttle, outage, &mut row).await;
    drains(&run, &mut row, scale).await;
    unnoticed(run, &mut row).await;
    row
}

pub async fn the_backend_throttles_over_http(scale: Scale) -> Row {
    let outage = outage(scale, 8);
    let name = format!("429 with Retry-After for {} s", outage.as_secs());
    let mut row = Row::new(name, Doubling::Never);
    let plan = Plan {
        exports_http: true,
        ..plan(scale)
    };
    let mut run = Run::start(plan).await;
    run.cluster.stop_sink().await;
    let throttle = Throttle::http(run.cluster.backend(), COME_BACK_AFTER).await;
    throttled(&mut run, throttle, outage, &mut row).await;
    drains(&run, &mut row, scale).await;
    unnoticed(run, &mut row).await;
    row
}

/// Nobody may ask again sooner than told.
async fn throttled(run: &mut Run, throttle: Throttle, outage: Duration, row: &mut Row) {
    sleep(outage).await;
    let turned_away = throttle.turned_away() as u64;
    throttle.stop().await;
    run.cluster.start_sink(&[]).await;
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    let exporters = run.cluster.workers.len() as u64 * cores * EXPORTERS_PER_CORE;
    // One before it was told anything, one at the end.
    let turns = outage.as_secs() / COME_BACK_AFTER.as_secs() + 2;
    row.must(turned_away <= exporters * turns, || {
        format!("{exporters} exporters came back {turned_away} times in {outage:?}")
    });
    row.must(turned_away > 0, || "nobody was turned away".to_owned());
    row.note(format!(
        "{turned_away} requests turned away; {exporters} exporters, told to wait {COME_BACK_AFTER:?}"
    ));
}

/// The backend is back: waits until the spool is gone, while the intake goes on.
async fn drains(run: &Run, row: &mut Row, scale: Scale) {
    let exported = async || {
        let spans = "tailring_worker_spans_exported_total";
        run.cluster.workers_sum(spans, &[]).await
    };
    let awaiting = async || {
        let traces = "tailring_worker_awaiting_export_traces";
        run.cluster.workers_sum(traces, &[]).await
    };
    run.memory(row);
    let back = Instant::now();
    let spool = awaiting().await;
    let exported_before = exported().await;
    until("the export goes on", DRAINED_WITHIN, async || {
        (exported().await > exported_before).then_some(())
    })
    .await;
    let begun = Instant::now();
    let (exported_before, accepted_before) = (exported().await, run.accepted().await);
    until("the spool is gone", DRAINED_WITHIN, async || {
        (awaiting().await <= DRAINED_TRACES).then_some(())
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    let out = (exported().await - exported_before) as f64 / seconds;
    let into = (run.accepted().await - accepted_before) as f64 / seconds;
    row.recovered_in(back.elapsed());
    row.note(format!(
        "{spool} traces spooled; first export after {:.1} s, then {out:.0} spans/s out in {seconds:.1} s while {into:.0} spans/s came in",
        (begun - back).as_secs_f64()
    ));
    row.figure(scale, out >= 2.0 * into, || {
        format!("the spool drains at {out:.0} spans/s, less than twice {into:.0}")
    });
}

async fn unnoticed(run: Run, row: &mut Row) {
    let load = run.finish(row).await;
    let retries = load.count("retries");
    row.must(retries == 0, || {
        format!("clients had to retry {retries} times")
    });
}
