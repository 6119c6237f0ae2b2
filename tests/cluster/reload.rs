//! The policy file of a worker that runs, as Kubernetes, editors and people change it.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::process::{PATIENCE, Process, WORKER, free_address, page, until};

fn worker(dir: &Path, name: &str, policies: Option<&str>) -> (Process, SocketAddr) {
    let (grpc, admin) = (free_address(), free_address());
    let flags = [
        ("--name", "a".to_owned()),
        ("--workers", format!("static://a={grpc}")),
        ("--data-dir", name.to_owned()),
        ("--export", "grpc://127.0.0.1:9".to_owned()),
        ("--log-max-bytes", "4GiB".to_owned()),
        ("--listen-grpc", grpc.to_string()),
        ("--listen-http", free_address().to_string()),
        ("--listen-admin", admin.to_string()),
    ];
    let policies = policies.map(|path| ("--policies", path.to_owned()));
    let args: Vec<String> = flags
        .into_iter()
        .chain(policies)
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
    (Process::start(WORKER, &args, dir, name), admin)
}

fn file(policy: &str) -> String {
    format!("decision_wait: 10s\npolicies:\n  - {{name: {policy}, type: always_sample}}\n")
}

/// A part of `/metrics` or `/readyz`, for so long as it takes to be there.
async fn shown(admin: SocketAddr, path: &str, part: &str) -> String {
    until(part, PATIENCE, async || {
        let (_, body) = page(admin, path).await?;
        body.contains(part).then_some(body)
    })
    .await
}

fn reloads(outcome: &str, times: u64) -> String {
    format!("tailring_worker_policy_reloads_total{{outcome=\"{outcome}\"}} {times}\n")
}

#[tokio::test]
async fn the_policy_file_is_followed_and_a_wrong_one_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // What Kubernetes makes of a ConfigMap: a link to a link.
    let version = |number: u32, content: &str| {
        let folder = format!("..version-{number}");
        std::fs::create_dir(dir.path().join(&folder)).unwrap();
        std::fs::write(dir.path().join(&folder).join("policies.yaml"), content).unwrap();
        symlink(&folder, dir.path().join("..data_tmp")).unwrap();
        std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    let path = dir.path().join("policies.yaml");
    version(1, &file("first"));
    symlink("..data/policies.yaml", &path).unwrap();
    let (mut process, admin) = worker(dir.path(), "worker", Some("policies.yaml"));
    shown(admin, "/readyz", "\"ready\":true").await;
    let before = shown(
        admin,
        "/metrics",
        "worker_traces_kept_total{policy=\"first\"}",
    )
    .await;
    let in_force = |metrics: &str| {
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("tailring_worker_rules{"));
        line.expect("a version").to_owned()
    };

    version(2, &file("second"));
    let after = shown(admin, "/metrics", &reloads("taken", 1)).await;
    assert!(
        after.contains("worker_traces_kept_total{policy=\"second\"} 0"),
        "{after}"
    );
    assert!(!after.contains("policy=\"first\""), "{after}");
    assert_ne!(in_force(&before), in_force(&after));

    // An editor that is slow, and does not write beside the file.
    let whole = file("third");
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let refused = shown(admin, "/metrics", &reloads("refused", 1)).await;
    assert_eq!(in_force(&refused), in_force(&after));
    assert!(!refused.contains("refused_since_seconds 0\n"), "{refused}");
    let ready = shown(admin, "/readyz", "stay in force").await;
    assert!(ready.contains("\"ready\":true"), "{ready}");
    let log = process.stderr();
    assert!(log.contains("policies.yaml:3:"), "the whole report: {log}");
    std::fs::write(&path, &whole).unwrap();
    let third = shown(admin, "/metrics", &reloads("taken", 2)).await;
    assert!(third.contains("refused_since_seconds 0\n"), "{third}");
    assert!(third.contains("policy=\"third\""), "{third}");
    let ready = shown(admin, "/readyz", "\"ready\":true").await;
    assert!(!ready.contains("stay in force"), "{ready}");

    // At once, not at the next look; and not a thousand times.
    let began = Instant::now();
    for _ in 0..1_000 {
        process.signal(Signal::HUP);
        sleep(std::time::Duration::from_millis(1)).await;
    }
    let storm = shown(admin, "/metrics", "outcome=\"unchanged\"} ").await;
    let times = storm
        .lines()
        .find_map(|line| {
            line.strip_prefix("tailring_worker_policy_reloads_total{outcome=\"unchanged\"} ")
        })
        .and_then(|times| times.parse::<u64>().ok())
        .expect("a number");
    let most = began.elapsed().as_secs() + 2;
    assert!((1..=most).contains(&times), "{times} looks, {most} at most");
    std::fs::remove_file(&path).unwrap();
    process.signal(Signal::HUP);
    shown(admin, "/readyz", "cannot be read").await;
    assert!(process.exited().is_none());
}

#[tokio::test]
async fn sighup_does_not_end_a_worker_without_a_policy_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut process, admin) = worker(dir.path(), "worker", None);
    shown(admin, "/readyz", "\"ready\":true").await;
    process.signal(Signal::HUP);
    until("a line about it", PATIENCE, async || {
        process.stderr().contains("no policy file").then_some(())
    })
    .await;
    assert!(process.exited().is_none());
}
