//! Every row as it is meant, in one go, with one table at the end.

use std::pin::Pin;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::overload::Door;
use crate::partitions::{self, Cut};
use crate::ring::{self, Lie};
use crate::row::{Row, Scale, table};
use crate::{backends, disks, figures, kills, overload, upgrades};

type Show = fn(Scale) -> Pin<Box<dyn Future<Output = Row>>>;

const ROWS: &[(&str, Show)] = &[
    ("kill-worker", |_| Box::pin(kills::one_worker_is_killed())),
    ("kill-only-worker", |scale| {
        Box::pin(kills::the_only_worker_is_killed(scale))
    }),
    (
        "kill-workers",
        |_| Box::pin(kills::all_workers_are_killed()),
    ),
    ("kill-routers", |scale| {
        Box::pin(kills::routers_are_killed(scale))
    }),
    ("stop-worker", |scale| {
        Box::pin(kills::a_worker_stands_still(scale))
    }),
    ("stop-only-worker", |scale| {
        Box::pin(kills::the_only_worker_stands_still(scale))
    }),
    ("backend-down", |scale| {
        Box::pin(backends::the_backend_is_down(scale))
    }),
    ("backend-slow", |scale| {
        Box::pin(backends::the_backend_is_slow(scale))
    }),
    ("backend-throttles-grpc", |scale| {
        Box::pin(backends::the_backend_throttles_over_grpc(scale))
    }),
    ("backend-throttles-http", |scale| {
        Box::pin(backends::the_backend_throttles_over_http(scale))
    }),
    ("backend-hangs", |scale| {
        Box::pin(backends::the_backend_hangs(scale))
    }),
    ("disk-log", |scale| Box::pin(disks::the_log_is_full(scale))),
    ("disk-rlimit", |scale| {
        Box::pin(disks::files_may_not_grow(scale))
    }),
    ("disk-tmpfs", |scale| {
        Box::pin(disks::the_volume_is_full(scale))
    }),
    ("disk-taken", |scale| {
        Box::pin(disks::the_volume_is_taken(scale))
    }),
    ("overload-router", |scale| {
        Box::pin(overload::ten_times_too_much(Door::Router, scale))
    }),
    ("overload-worker", |scale| {
        Box::pin(overload::ten_times_too_much(Door::Worker, scale))
    }),
    ("ring-restart-1s", |scale| {
        Box::pin(ring::rolling_restart(scale, Duration::from_secs(1)))
    }),
    ("ring-restart-8s", |scale| {
        Box::pin(ring::rolling_restart(scale, Duration::from_secs(8)))
    }),
    ("ring-restart-errors-1s", |scale| {
        Box::pin(ring::rolling_restart_with_errors(scale, &[1; 3]))
    }),
    ("ring-restart-errors-8s", |scale| {
        Box::pin(ring::rolling_restart_with_errors(scale, &[8; 3]))
    }),
    ("ring-scale", |scale| {
        Box::pin(ring::scale_out_and_in(scale))
    }),
    ("ring-kill-handover", |scale| {
        Box::pin(ring::killed_while_handing_over(scale))
    }),
    ("ring-dns-stale-for-one", |scale| {
        Box::pin(ring::dns_is_wrong(scale, &[Lie::StaleForOne]))
    }),
    ("ring-dns-stale-for-all", |scale| {
        Box::pin(ring::dns_is_wrong(scale, &[Lie::StaleForAll]))
    }),
    ("ring-dns-flapping", |scale| {
        Box::pin(ring::dns_is_wrong(scale, &[Lie::Flapping]))
    }),
    ("ring-dns-lies-receiver", |scale| {
        Box::pin(ring::dns_is_wrong(scale, &[Lie::Receiver]))
    }),
    ("ring-dns-lies-other-cluster", |scale| {
        Box::pin(ring::dns_is_wrong(scale, &[Lie::OtherCluster]))
    }),
    ("ring-old-address", |scale| {
        Box::pin(ring::an_old_address_is_reused(scale))
    }),
    ("ring-twins-1s", |scale| {
        Box::pin(ring::two_of_one_name(scale, 1))
    }),
    ("ring-twins-30s", |scale| {
        Box::pin(ring::two_of_one_name(scale, 30))
    }),
    ("ring-partition-workers", |scale| {
        Box::pin(partitions::one_way(scale, Cut::BetweenWorkers))
    }),
    ("ring-partition-to-worker", |scale| {
        Box::pin(partitions::one_way(scale, Cut::ToWorker))
    }),
    ("ring-partition-from-worker", |scale| {
        Box::pin(partitions::one_way(scale, Cut::FromWorker))
    }),
    ("ring-upgrade", |scale| {
        Box::pin(upgrades::rolling_upgrade(scale))
    }),
    ("ring-drain", |scale| Box::pin(figures::drain(scale))),
    ("ring-throughput", |scale| {
        Box::pin(figures::throughput_while_growing(scale))
    }),
    ("ring-hung", |scale| {
        Box::pin(figures::a_worker_hangs(scale))
    }),
];

/// `TAILRING_CHAOS_ROWS=kill` runs those whose names have `kill` in them.
#[tokio::test]
#[ignore = "half an hour; figures need a release build and a quiet machine"]
async fn full() {
    let wanted = std::env::var("TAILRING_CHAOS_ROWS").unwrap_or_default();
    let begun = Instant::now();
    let mut rows = Vec::new();
    for (name, show) in ROWS.iter().filter(|(name, _)| name.contains(&wanted)) {
        println!(
            "\n=== {name}, {:.0} s after the start",
            begun.elapsed().as_secs_f64()
        );
        // A row that panics has failed, and the next one has its turn.
        let tasks = LocalSet::new();
        let shown = tasks.run_until(async { tokio::task::spawn_local(show(Scale::Full)).await });
        let row = shown.await.unwrap_or_else(|error| {
            let panic = error.into_panic();
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Row::broken(name, said.unwrap_or_default())
        });
        println!("{}", table(std::slice::from_ref(&row)));
        rows.push(row);
    }
    println!("\n{}", table(&rows));
    let failed = rows.iter().filter(|row| !row.holds()).count();
    let skipped = rows.iter().filter(|row| row.is_skipped()).count();
    println!(
        "{} rows: {} held, {failed} failed, {skipped} not shown; {:.0} s",
        rows.len(),
        rows.len() - failed - skipped,
        begun.elapsed().as_secs_f64()
    );
    assert!(!rows.is_empty(), "no row has {wanted} in its name");
    assert_eq!(failed, 0);
}
