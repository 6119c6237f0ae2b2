//! Every row as it is meant, in one go, with one table at the end.

use std::pin::Pin;

use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::overload::Door;
use crate::row::{Row, Scale, table};
use crate::{backends, disks, kills, overload};

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
