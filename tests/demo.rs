//! `tailring demo` as people start it: real processes, the file of policies that is shipped, and
//! what becomes of them when one of them dies.
//!
//! The ten seeds: `cargo test --release --test demo -- --ignored --nocapture` (some six minutes).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail the test"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

const TOOL: &str = env!("CARGO_BIN_EXE_tailring");
const PATIENCE: Duration = Duration::from_secs(60);
/// DNS, backend, three workers, two routers, fleet.
const PROCESSES: usize = 8;

/// A demo whose files go into `dir`.
fn demo(arguments: &str, dir: &Path) -> Command {
    let mut command = Command::new(TOOL);
    command
        .arg("demo")
        .args(arguments.split_whitespace())
        .env("TMPDIR", dir)
        // For other clusters; the demo must not hear of it.
        .env("TAILRING_CLUSTER", "another")
        .env("TAILRING_LISTEN_GRPC", "127.0.0.1:1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Process IDs and command lines of the children of a process.
fn children(parent: u32) -> BTreeMap<i32, String> {
    let tasks = format!("/proc/{parent}/task");
    let tasks = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let ids = tasks.flat_map(|task| {
        let ids = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        ids.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect::<Vec<i32>>()
    });
    ids.map(|id| {
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        (id, line.replace('\0', " "))
    })
    .collect()
}

async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Once all are there and the fleet sends.
async fn all_children(demo: &mut Running) -> BTreeMap<i32, String> {
    until("all processes run", || {
        let ended = demo.0.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", said(&mut demo.0));
        let children = children(demo.0.id());
        (children.len() == PROCESSES).then_some(children)
    })
    .await
}

/// What a demo that has ended said on stderr.
fn said(demo: &mut Child) -> String {
    let mut said = String::new();
    demo.stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    said
}

fn is_gone(id: i32) -> bool {
    test_kill_process(Pid::from_raw(id).unwrap()).is_err()
}

fn left_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{said}"))
}

/// What the issue asks of every run.
#[track_caller]
fn check(output: &Output, dir: &Path) -> Value {
    let found = json(output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let number = |name: &str| {
        found[name]
            .as_f64()
            .unwrap_or_else(|| panic!("no {name} in {found}"))
    };
    assert_eq!(found["agreed"], true, "{said}");
    let traces_share = number("traces_kept_share");
    assert!((0.10..=0.20).contains(&traces_share), "{said}");
    let spans_share = number("spans_kept_share");
    assert!((traces_share..0.7).contains(&spans_share), "{said}");
    assert!(number("broken_sent") > 0.0);
    assert_eq!(found["broken_kept"], found["broken_sent"]);
    assert_eq!(number("incomplete"), 0.0);
    let cost = number("cost_after") / number("cost_before");
    assert!((cost - spans_share).abs() < 1e-9, "{said}");
    assert!(number("baseline_standard_errors").abs() <= 4.0);

    let file = found["kept_traces_file"].as_str().unwrap();
    let mut spans = 0;
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let request: Value = serde_json::from_str(line).unwrap();
        for resource in request["resourceSpans"].as_array().unwrap() {
            for scope in resource["scopeSpans"].as_array().unwrap() {
                spans += scope["spans"].as_array().unwrap().len();
            }
        }
    }
    assert_eq!(found["spans_kept"], spans);
    let name = Path::new(file).file_name().unwrap().to_str().unwrap();
    assert_eq!(left_in(dir), [name], "the kept traces and nothing else");
    found
}

#[test]
fn every_verdict_of_a_short_demo_is_as_it_must_be() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = "--for 8s --seed 3 --price-per-million 2 --output json";
    let output = demo(arguments, dir.path()).output().unwrap();
    let found = check(&output, dir.path());
    // 200 turns a second.
    let turns = found["traces_sent"].as_u64().unwrap();
    assert!((1400..1800).contains(&turns), "{turns}");
    let by_rate = found["spans_sent"].as_f64().unwrap() / 8.0 * 2_592_000.0 / 1e6 * 2.0;
    let before = found["cost_before"].as_f64().unwrap();
    assert!((before / by_rate - 1.0).abs() < 1e-9, "{before} {by_rate}");
}

#[test]
fn workers_that_restart_and_die_and_come_during_a_demo_lose_and_split_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = demo("--chaos --for 20s --seed 5 --output json", dir.path()).output();
    let output = output.unwrap();
    let found = check(&output, dir.path());
    for count in ["workers_restarted", "workers_killed", "workers_added"] {
        assert!(found[count].as_u64().unwrap() > 0, "{count} in {found}");
    }
    assert_eq!(
        (&found["spans_lost"], &found["split"]),
        (&0.into(), &0.into())
    );
    let said = String::from_utf8_lossy(&output.stderr);
    for event in [
        "gets SIGTERM",
        "gets SIGKILL",
        "is added",
        "is ready at another address",
        "0 lost, 0 split",
    ] {
        assert!(said.contains(event), "no {event}: {said}");
    }
}

#[test]
#[ignore = "six minutes: see the top of this file"]
fn every_verdict_of_ten_seeds_is_as_it_must_be() {
    for seed in 1..=10 {
        let dir = tempfile::tempdir().unwrap();
        let arguments = format!("--for 25s --seed {seed} --output json");
        let output = demo(&arguments, dir.path()).output().unwrap();
        let found = check(&output, dir.path());
        println!(
            "seed {seed}: {} turns, kept {:.1} % of traces and {:.1} % of spans, broken {} of {}, baseline {:+.1} standard errors",
            found["traces_sent"],
            found["traces_kept_share"].as_f64().unwrap() * 100.0,
            found["spans_kept_share"].as_f64().unwrap() * 100.0,
            found["broken_kept"],
            found["broken_sent"],
            found["baseline_standard_errors"].as_f64().unwrap(),
        );
    }
}

#[tokio::test]
async fn nothing_outlives_a_demo_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let running = demo("--for 60s", dir.path()).spawn().unwrap();
    let mut running = Running(running);
    let children = all_children(&mut running).await;
    assert_eq!(left_in(dir.path()).len(), 1);
    drop(running);
    for (id, line) in children {
        until(&line, || is_gone(id).then_some(())).await;
    }
    until("the files are gone", || {
        left_in(dir.path()).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_demo_that_loses_a_process_says_which_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let running = demo("--for 60s", dir.path()).spawn().unwrap();
    let mut running = Running(running);
    let children = all_children(&mut running).await;
    let (worker, _) = children
        .iter()
        .find(|(_, line)| line.contains(" --name worker-1."))
        .unwrap();
    kill_process(Pid::from_raw(*worker).unwrap(), Signal::KILL).unwrap();
    let status = until("the demo ends", || running.0.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    let said = said(&mut running.0);
    assert!(
        said.contains("worker 1 ended (signal: 9 (SIGKILL))"),
        "{said}"
    );
    assert!(children.keys().all(|id| is_gone(*id)), "{children:?}");
    assert!(left_in(dir.path()).is_empty());
}

#[test]
fn a_demo_without_a_place_for_its_files_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    let output = demo("--for 1s", &nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot be made; set TMPDIR"), "{said}");
}
