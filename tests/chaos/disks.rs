//! Full disks: by our own bound, by a limit of the process, and by a volume without room. Nobody
//! restarts anything: with room the intake goes on by itself.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::time::{Instant, sleep};

use crate::cluster::Plan;
use crate::process::{PATIENCE, Process, until};
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;
use crate::tmpfs::Tmpfs;

/// Until the export goes on after an outage, and segments are free.
const ROOM_WITHIN: Duration = Duration::from_secs(90);
/// The longest file while a disk is "full" by RLIMIT_FSIZE: less than any batch of the load.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// What is left for clients' bytes on the small volume, beside the reserve.
const LEFT_BYTES: u64 = 48 << 20;
/// What somebody else does not take of it: the log grows while he looks.
const SPARED_BYTES: u64 = 1 << 20;

/// One worker with the smallest log that is allowed: three segments a core, of which two are the
/// reserve.
fn plan() -> Plan {
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    Plan {
        workers: 1,
        log_max_bytes: cores * 3 * (64 << 20),
        ..Plan::default()
    }
}

/// How long a full disk stays full.
fn outage(scale: Scale) -> Duration {
    Duration::from_secs(scale.pick(3, 30))
}

/// Refusals by one of these reasons, and no acknowledgement for a second.
async fn intake_stops(run: &Run, outcomes: &[&str], row: &mut Row, scale: Scale) {
    until("the worker refuses", PATIENCE * 2, async || {
        let worker = run.cluster.workers[0].metrics().await;
        let refused = outcomes.iter().map(|outcome| {
            let outcome = format!("outcome=\"{outcome}\"");
            worker.sum("tailring_requests_total", &[&outcome])
        });
        (refused.sum::<u64>() > 10).then_some(())
    })
    .await;
    let refused = Instant::now();
    let mut before = run.accepted().await;
    let mut since = Instant::now();
    until(
        "nothing is acknowledged for a second",
        PATIENCE,
        async || {
            let now = run.accepted().await;
            if now != before {
                (before, since) = (now, Instant::now());
            }
            (since.elapsed() > Duration::from_secs(1)).then_some(())
        },
    )
    .await;
    let went_on = since - refused;
    row.note(format!(
        "acknowledged nothing from {went_on:.1?} after the first refusals on"
    ));
    row.figure(scale, went_on <= Duration::from_secs(1), || {
        format!("went on to acknowledge for {went_on:.1?}")
    });
}

/// By `--log-max-bytes`, with the backend away.
pub async fn the_log_is_full(scale: Scale) -> Row {
    let mut row = Row::new(
        "disk full by --log-max-bytes, backend down",
        Doubling::Never,
    );
    let plan = Plan {
        without_sink: true,
        ..plan()
    };
    let bound = plan.log_max_bytes;
    let mut run = Run::start_flood(plan).await;
    intake_stops(&run, &["log_full"], &mut row, scale).await;
    // The fault's own duration, as in all rows here.
    sleep(outage(scale)).await;
    let log_bytes = run.cluster.workers_sum("tailring_worker_log_bytes", &[]);
    let log_bytes = log_bytes.await;
    row.must(log_bytes <= bound, || format!("{log_bytes} bytes of log"));
    run.memory(&mut row);
    run.cluster.start_sink(&[]).await;
    resumes(&run, &mut row).await;
    run.finish(&mut row).await;
    row
}

/// The kernel refuses every byte beyond a file's first 64 KiB. It also sends SIGXFSZ, whose
/// default is the end of the process.
pub async fn files_may_not_grow(scale: Scale) -> Row {
    let mut row = Row::new("disk full by RLIMIT_FSIZE", Doubling::Never);
    let run = Run::start_flood(plan()).await;
    let worker = &run.cluster.workers[0];
    let before = limit_files(&worker.process, Some(FILE_BYTES_MAX));
    intake_stops(&run, &["log_failed"], &mut row, scale).await;
    sleep(outage(scale)).await;
    limit_files(&worker.process, before);
    resumes(&run, &mut row).await;
    let failures = "tailring_worker_log_write_failures_total";
    let failures = worker.metric(failures, &[]).await;
    row.must(failures > 0, || "no write failed".to_owned());
    row.note(format!("{failures} batches could not be written"));
    run.finish(&mut row).await;
    row
}

/// The soft limit; returns what it was.
fn limit_files(process: &Process, bytes: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap());
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap().current
}

/// A volume that somebody else has filled, with the backend away.
pub async fn the_volume_is_full(scale: Scale) -> Row {
    let name = "disk full by a small tmpfs, backend down";
    let mut plan = plan();
    let volume = match Tmpfs::mount(plan.log_max_bytes) {
        Ok(volume) => volume,
        Err(why) => return Row::skipped(name, why),
    };
    // Two thirds of the smallest log are its reserve.
    volume.take(plan.log_max_bytes / 3 - LEFT_BYTES);
    let mut row = Row::new(name, Doubling::Never);
    plan.without_sink = true;
    plan.data = Some(volume.path().to_owned());
    let mut run = Run::start_flood(plan).await;
    intake_stops(&run, &["log_full"], &mut row, scale).await;
    sleep(outage(scale)).await;
    run.cluster.start_sink(&[]).await;
    resumes(&run, &mut row).await;
    run.finish(&mut row).await;
    row
}

/// Somebody else takes the reserve as well, and gives everything back later.
pub async fn the_volume_is_taken(scale: Scale) -> Row {
    let name = "disk full by somebody else's file on a small tmpfs";
    let mut plan = plan();
    let volume = match Tmpfs::mount(plan.log_max_bytes) {
        Ok(volume) => volume,
        Err(why) => return Row::skipped(name, why),
    };
    let mut row = Row::new(name, Doubling::Never);
    plan.data = Some(volume.path().to_owned());
    let run = Run::start_flood(plan).await;
    let elsewhere = volume.take_all_but(SPARED_BYTES);
    intake_stops(&run, &["log_full", "log_failed"], &mut row, scale).await;
    sleep(outage(scale)).await;
    std::fs::remove_file(elsewhere).unwrap();
    resumes(&run, &mut row).await;
    run.finish(&mut row).await;
    row
}

async fn resumes(run: &Run, row: &mut Row) {
    let room = Instant::now();
    run.goes_on(20_000, ROOM_WITHIN).await;
    row.recovered_in(room.elapsed());
}
