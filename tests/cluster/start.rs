//! Starts that must not succeed: each says what is wrong in words an operator can act on, and ends.
//! Wrong settings are `tests/settings.rs`'s; here the machine is in the way.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::process::{Process, ROUTER, WORKER, free_address, page, until};

/// A worker that keeps its log in `data_dir`, on free ports.
fn worker(dir: &Path, name: &str, data_dir: &str, more: &[(&str, String)]) -> (Process, String) {
    let (grpc, admin) = (free_address(), free_address());
    let fixed = [
        ("--name", "a".to_owned()),
        ("--workers", format!("static://a={grpc}")),
        ("--data-dir", data_dir.to_owned()),
        ("--export", "grpc://127.0.0.1:9".to_owned()),
        ("--log-max-bytes", "4GiB".to_owned()),
        ("--listen-grpc", grpc.to_string()),
        ("--listen-http", free_address().to_string()),
        ("--listen-admin", admin.to_string()),
        ("--listen-peers", "127.0.0.1:0".to_owned()),
    ];
    let kept = fixed
        .iter()
        .filter(|(flag, _)| more.iter().all(|(other, _)| other != flag));
    let args: Vec<String> = kept
        .chain(more)
        .flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()])
        .collect();
    (Process::start(WORKER, &args, dir, name), admin.to_string())
}

/// Waits for the end of a process that must not start.
async fn ends(mut process: Process, code: i32, words: &[&str]) {
    let status = process.exit(Duration::from_secs(20)).await;
    let told = process.stderr();
    assert_eq!(status.code(), Some(code), "{told}");
    for word in words {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_flag_and_ends_the_start() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in [
        "--listen-grpc",
        "--listen-http",
        "--listen-admin",
        "--listen-peers",
    ] {
        let more = [(flag, address.clone())];
        let (process, _) = worker(dir.path(), &format!("worker{flag}"), "data", &more);
        ends(process, 1, &[&address, "in use"]).await;
        if flag == "--listen-peers" {
            continue; // a router has none
        }
        let mut args = vec!["--workers".to_owned(), "static://a=127.0.0.1:9".to_owned()];
        for each in ["--listen-grpc", "--listen-http", "--listen-admin"] {
            let free = free_address().to_string();
            args.push(each.to_owned());
            args.push(if each == flag { address.clone() } else { free });
        }
        let process = Process::start(ROUTER, &args, dir.path(), &format!("router{flag}"));
        ends(process, 1, &[&address, "in use"]).await;
    }
}

#[tokio::test]
async fn a_data_dir_that_cannot_be_written_ends_the_start() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // A file stands in the way: that stops root too, which runs most containers' tests.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (process, _) = worker(dir.path(), "worker", "file/data", &[]);
    ends(process, 1, &["--data-dir", "file/data"]).await;
}

#[tokio::test]
async fn a_data_dir_in_use_names_its_holder_and_the_holder_goes_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (holder, admin) = worker(dir.path(), "holder", "data", &[]);
    until("the holder is ready", Duration::from_secs(20), async || {
        matches!(
            page(admin.parse().unwrap(), "/readyz").await,
            Some((200, _))
        )
        .then_some(())
    })
    .await;
    let (second, _) = worker(dir.path(), "second", "data", &[]);
    ends(
        second,
        1,
        &["--data-dir", "in use", &holder.id().to_string()],
    )
    .await;
    let answer = page(admin.parse().unwrap(), "/readyz").await;
    assert!(matches!(answer, Some((200, _))), "{answer:?}");
}

#[tokio::test]
async fn mistakes_in_the_policy_file_end_the_start_with_their_places() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let policies = dir.path().join("policies.yaml");
    let text = "decision_wait: soon\npolicies:\n  - {name: all, type: always}\n";
    std::fs::write(&policies, text).unwrap();
    let more = [("--policies", "policies.yaml".to_owned())];
    let (process, _) = worker(dir.path(), "worker", "data", &more);
    ends(
        process,
        64,
        &["policies.yaml:1:16", "policies.yaml:3:23", "always_sample"],
    )
    .await;
    assert!(!dir.path().join("data").exists(), "nothing was started");
}
