//! The rows in their short forms: what CI runs.

use std::sync::mpsc;

use crate::overload::Door;
use crate::process::{PATIENCE, Process, dies_with_its_starter, until};
use crate::ring::{self, Lie};
use crate::row::{Row, Scale, table};
use crate::{backends, disks, kills, overload};

#[track_caller]
fn shown(row: Row) {
    let text = table(std::slice::from_ref(&row));
    println!("{text}");
    assert!(row.holds(), "\n{text}");
}

/// The name of a process, as long as it lives.
fn alive(process: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (name, state) = stat.split_once('(')?.1.rsplit_once(") ")?;
    (!state.starts_with('Z')).then(|| name.to_owned())
}

#[tokio::test]
async fn what_a_test_starts_dies_with_it_though_nothing_is_dropped() {
    if !dies_with_its_starter() {
        println!("SKIPPED: setpriv is not installed");
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().to_owned();
    let (started, start) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let starter = std::thread::spawn(move || {
        let process = Process::start("sleep", &["1000".to_owned()], &path, "sleep");
        started.send(process.id()).unwrap();
        std::mem::forget(process);
        ends.recv().unwrap_err();
    });
    let process = start.recv().unwrap();
    until("it runs", PATIENCE, async || {
        alive(process).filter(|name| name == "sleep")
    })
    .await;
    drop(end);
    starter.join().unwrap();
    until("it is gone", PATIENCE, async || {
        alive(process).is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_only_worker_that_is_killed_again_and_again_loses_nothing() {
    shown(kills::the_only_worker_is_killed(Scale::Quick).await);
}

#[tokio::test]
async fn routers_that_are_killed_lose_nothing() {
    shown(kills::routers_are_killed(Scale::Quick).await);
}

#[tokio::test]
async fn a_worker_that_stands_still_loses_nothing() {
    shown(kills::the_only_worker_stands_still(Scale::Quick).await);
}

#[tokio::test]
async fn a_backend_that_is_down_gets_everything_when_it_is_back() {
    shown(backends::the_backend_is_down(Scale::Quick).await);
}

#[tokio::test]
async fn a_slow_backend_gets_everything_once() {
    shown(backends::the_backend_is_slow(Scale::Quick).await);
}

#[tokio::test]
async fn a_backend_that_throttles_over_grpc_is_left_in_peace_and_gets_everything_once() {
    shown(backends::the_backend_throttles_over_grpc(Scale::Quick).await);
}

#[tokio::test]
async fn a_backend_that_throttles_over_http_is_left_in_peace_and_gets_everything_once() {
    shown(backends::the_backend_throttles_over_http(Scale::Quick).await);
}

#[tokio::test]
async fn a_backend_that_hangs_gets_everything_once() {
    shown(backends::the_backend_hangs(Scale::Quick).await);
}

#[tokio::test]
async fn a_log_at_its_bound_takes_in_again_when_the_backend_is_back() {
    shown(disks::the_log_is_full(Scale::Quick).await);
}

#[tokio::test]
async fn files_that_may_not_grow_stop_the_intake_until_they_may() {
    shown(disks::files_may_not_grow(Scale::Quick).await);
}

#[tokio::test]
async fn a_full_volume_takes_in_again_when_the_backend_is_back() {
    shown(disks::the_volume_is_full(Scale::Quick).await);
}

#[tokio::test]
async fn a_volume_that_somebody_else_fills_stops_the_intake_until_there_is_room() {
    shown(disks::the_volume_is_taken(Scale::Quick).await);
}

#[tokio::test]
async fn ten_times_too_much_for_a_worker_is_refused_within_the_memory_limit() {
    shown(overload::ten_times_too_much(Door::Worker, Scale::Quick).await);
}

#[tokio::test]
async fn a_rolling_restart_at_new_addresses_loses_splits_and_wrongly_drops_nothing() {
    shown(ring::rolling_restart_with_errors(Scale::Quick, &[1, 8]).await);
}

#[tokio::test]
async fn workers_that_come_and_go_together_lose_and_split_nothing() {
    shown(ring::scale_out_and_in(Scale::Quick).await);
}

#[tokio::test]
async fn a_worker_that_is_killed_while_it_hands_over_loses_and_splits_nothing() {
    shown(ring::killed_while_handing_over(Scale::Quick).await);
}

#[tokio::test]
async fn a_dns_that_is_late_and_flaps_and_lies_loses_and_splits_nothing() {
    shown(ring::dns_is_wrong(Scale::Quick, &Lie::SHORT).await);
}

#[tokio::test]
async fn strangers_at_old_addresses_get_nothing_that_is_lost() {
    shown(ring::an_old_address_is_reused(Scale::Quick).await);
}

#[tokio::test]
async fn two_members_of_one_name_lose_and_split_nothing() {
    shown(ring::two_of_one_name(Scale::Quick, 5).await);
}
