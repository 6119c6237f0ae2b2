//! The admin pages over real sockets.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::app::process_metrics;
use crate::cluster::View;
use crate::model::Member;
use crate::ring::Seed;

struct Answer {
    status: u16,
    head: String,
    body: String,
}

async fn ask(address: SocketAddr, request_line: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{request_line} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

fn view() -> ViewHandle {
    let members = ["worker-0", "worker-1"].into_iter().zip(1..);
    let addresses = members
        .map(|(name, port)| (Member::parse(name).unwrap(), ([10, 0, 0, 1], port).into()))
        .collect();
    ViewHandle::fixed(View::new(addresses, Seed(7), "test"))
}

async fn serve(live: Vec<LiveCheck>, ready: Vec<ReadyCheck>) -> (SocketAddr, AdminPages) {
    let mut registry = Registry::default();
    process_metrics::register(&mut registry, "tailring-test");
    let listener = AdminListener::bind(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let pages = listener.serve(view());
    pages.started(Admin {
        registry,
        live,
        ready: ready.into(),
        roster: None,
    });
    (address, pages)
}

#[tokio::test]
async fn a_process_that_is_starting_is_alive_and_not_ready() {
    let listener = AdminListener::bind(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let pages = listener.serve(view());
    assert_eq!(ask(address, "GET /livez").await.status, 200);
    let ready = ask(address, "GET /readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("still starting"), "{}", ready.body);
    assert_eq!(ask(address, "GET /metrics").await.status, 503);
    assert_eq!(ask(address, "GET /ring").await.status, 200);

    pages.started(Admin {
        registry: Registry::default(),
        live: vec![],
        ready: Arc::new([]),
        roster: None,
    });
    assert_eq!(ask(address, "GET /readyz").await.status, 200);
    assert_eq!(ask(address, "GET /metrics").await.status, 200);
}

#[tokio::test]
async fn metrics_are_open_metrics_with_build_and_process() {
    let (address, _pages) = serve(vec![], vec![]).await;
    let answer = ask(address, "GET /metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .head
            .contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{}",
        answer.head
    );
    let version = env!("CARGO_PKG_VERSION");
    let build =
        format!("tailring_build_info{{version=\"{version}\",binary=\"tailring-test\"}} 1\n");
    assert!(answer.body.contains(&build), "{}", answer.body);
    let resident = answer
        .body
        .lines()
        .find_map(|line| line.strip_prefix("process_resident_memory_bytes "))
        .unwrap();
    assert!(resident.parse::<u64>().unwrap() > 1 << 20, "{resident}");
    assert!(
        answer.body.contains("\nprocess_cpu_seconds_total "),
        "{}",
        answer.body
    );
    assert!(answer.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn liveness_fails_when_one_loop_is_silent_for_too_long() {
    let silent_seconds = Arc::new(AtomicU64::new(1));
    let shard = Arc::clone(&silent_seconds);
    let live = vec![
        LiveCheck {
            name: "shard 0".into(),
            silent_for: Box::new(|| Duration::ZERO),
        },
        LiveCheck {
            name: "shard 1".into(),
            silent_for: Box::new(move || Duration::from_secs(shard.load(Ordering::Relaxed))),
        },
    ];
    let (address, _pages) = serve(live, vec![]).await;
    let answer = ask(address, "GET /livez").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    silent_seconds.store(31, Ordering::Relaxed);
    let answer = ask(address, "GET /livez").await;
    assert_eq!(answer.status, 503);
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["alive"], false);
    assert_eq!(
        body["loops"][1],
        serde_json::json!({"name": "shard 1", "alive": false, "silent_seconds": 31.0})
    );
    assert_eq!(body["loops"][0]["alive"], true);
}

#[tokio::test]
async fn readiness_lists_every_condition_and_why() {
    let members = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&members);
    let ready = vec![
        ReadyCheck {
            name: "listeners",
            check: Box::new(|| Ok(())),
        },
        ReadyCheck {
            name: "ring",
            check: Box::new(move || match seen.load(Ordering::Relaxed) {
                0 => Err("no members yet".to_owned()),
                _ => Ok(()),
            }),
        },
    ];
    let (address, _pages) = serve(vec![], ready).await;
    let answer = ask(address, "GET /readyz").await;
    assert_eq!(answer.status, 503);
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({"ready": false, "conditions": [
            {"name": "listeners", "ok": true},
            {"name": "ring", "ok": false, "why": "no members yet"},
        ]})
    );
    members.store(1, Ordering::Relaxed);
    let answer = ask(address, "GET /readyz").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn the_ring_shows_members_slots_and_fingerprint() {
    let (address, _pages) = serve(vec![], vec![]).await;
    let answer = ask(address, "GET /ring").await;
    assert_eq!(answer.status, 200);
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["fingerprint"], view().load().fingerprint().to_string());
    assert_eq!(body["members"][0]["name"], "worker-0");
    assert_eq!(body["members"][1]["address"], "10.0.0.1:2");
    let slots: u64 = body["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["slots"].as_u64().unwrap())
        .sum();
    assert_eq!(slots, 65_536);
}

#[tokio::test]
async fn anything_else_is_told_what_there_is() {
    let (address, _pages) = serve(vec![], vec![]).await;
    let answer = ask(address, "GET /health").await;
    assert_eq!(answer.status, 404);
    for (path, _) in PATHS {
        assert!(answer.body.contains(path), "{}", answer.body);
    }
    assert_eq!(ask(address, "POST /metrics").await.status, 405);
}

#[tokio::test]
async fn a_taken_address_is_found_at_binding() {
    let first = AdminListener::bind(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let second = AdminListener::bind(first.local_addr().unwrap()).await;
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}
