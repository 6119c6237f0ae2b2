//! A worker whose disk fails to sync: no OK, an end that says why, and a next life that holds what was
//! acknowledged and nothing that was not.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{PATIENCE, Process, WORKER, free_address, page, until};

/// fdatasync fails with EIO while the file is there. In C, for it stands before the system's library.
const SHIM: &str = r#"
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int file) {
    const char *flag = getenv("FAIL_SYNCS_IF_THERE");
    if (flag && access(flag, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_fdatasync, file);
}
"#;

/// A C compiler is there: zstd needs one to build.
fn shim(dir: &Path) -> std::path::PathBuf {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(compiled.success());
    library
}

/// True for 200. A connection that is cut is no acknowledgement.
async fn send(to: SocketAddr, trace: char) -> bool {
    let body = format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"{}","spanId":"00000000000000f{trace}","name":"n"}}]}}]}}]}}"#,
        trace.to_string().repeat(32)
    );
    let request = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let conversation = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    conversation
        .await
        .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[tokio::test]
async fn a_failed_fsync_ends_the_worker_unacknowledged_and_the_next_life_goes_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path();
    let flag = dir.join("syncs-fail");
    let library = shim(dir);
    std::fs::write(
        dir.join("policies.yaml"),
        "decision_wait: 1s\npolicies:\n  - {name: all, type: always_sample}\n",
    )
    .unwrap();
    let (grpc, http, admin) = (free_address(), free_address(), free_address());
    let start = || {
        let mut command = Command::new(WORKER);
        command
            .env("LD_PRELOAD", &library)
            .env("FAIL_SYNCS_IF_THERE", &flag)
            .args(["--name", "a", "--ack", "synced", "--data-dir", "data"])
            .args(["--workers", &format!("static://a={grpc}")])
            .args(["--policies", "policies.yaml", "--log-max-bytes", "4GiB"])
            .args([
                "--export",
                &format!("file:{}", dir.join("out.jsonl").display()),
            ])
            .args(["--listen-grpc", &grpc.to_string()])
            .args(["--listen-http", &http.to_string()])
            .args(["--listen-admin", &admin.to_string()])
            .args(["--listen-peers", "127.0.0.1:0"]);
        Process::spawn(command, dir, "worker")
    };
    let ready = async || {
        let answer = page(admin, "/readyz").await;
        matches!(answer, Some((200, _))).then_some(())
    };

    let mut worker = start();
    until("ready", PATIENCE, ready).await;
    assert!(send(http, 'a').await);
    std::fs::write(&flag, "").unwrap();
    assert!(!send(http, 'b').await, "acknowledged, and not synced");
    let status = worker.exit(Duration::from_secs(10)).await;
    let told = worker.stderr();
    assert_eq!(status.code(), Some(74), "{told}");
    assert!(told.contains("fdatasync of segment"), "{told}");
    assert!(told.contains("nothing is acknowledged any more"), "{told}");

    // The disk is well again, as after a moment of a volume's trouble.
    std::fs::remove_file(&flag).unwrap();
    let _worker = start();
    until("ready", PATIENCE, ready).await;
    assert!(send(http, 'b').await);
    let (first, second) = ("a".repeat(32), "b".repeat(32));
    let exported = until("both are exported", PATIENCE, async || {
        let text = std::fs::read_to_string(dir.join("out.jsonl")).ok()?;
        (text.contains(&first) && text.contains(&second)).then_some(text)
    })
    .await;
    for trace in [first, second] {
        assert_eq!(exported.matches(&trace).count(), 1, "{exported}");
    }
}
