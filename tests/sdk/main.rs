//! The OpenTelemetry SDKs of Python and JavaScript against real processes: a router and three workers. An agent, a model
//! gateway, an MCP tool server and the service in front of them, each a process of its own (`service.py`, `service.js`),
//! play turns; kept traces have to arrive whole and unchanged, and nothing may arrive that was not to be kept.
//!
//! Ignored, as they take the SDKs from the network: `cargo test --test sdk -- --ignored`. Pinned in `requirements.txt`
//! and `package-lock.json`, installed once below target/.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "helpers of tests fail the test; they are public to their neighbours"
)]

mod books;
mod fleet;
mod installation;
#[path = "../cluster/process.rs"]
mod process;
#[path = "../receiver/mod.rs"]
mod receiver;
mod toolkit;

use std::collections::BTreeSet;

use books::Books;
use fleet::Fleet;
use installation::Installation;
use toolkit::Language;

/// Played with the variables of the README, and then with a sampler at the root. Half of the former are kept: that
/// none is has the chance 2^-24.
const TURNS: usize = 24;
const TURNS_RATIO: usize = 32;

/// Cores are few, and the processes nine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn agent_turns_arrive_whole(language: Language, protocol: &str) {
    let _turn = TURN.lock().await;
    let installation = Installation::start().await;
    let fleet = Fleet::start(language, protocol, &installation).await;
    let mut books = fleet.play(TURNS, &[]).await;
    let all = books.traces(|_| true);
    assert_eq!(all.len(), TURNS);
    assert_eq!(books.traces(|span| span.sampled), all);

    // The root decides; who is behind it has the variables of the README.
    let sampler = [
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
    ];
    books.add(fleet.play(TURNS_RATIO, &sampler).await);
    for ended in fleet.stop().await {
        books.add(ended);
    }
    let all = books.traces(|_| true);
    let sampled = books.traces(|span| span.sampled);
    let unsampled = books.traces(|span| !span.sampled);
    assert_eq!(all.len(), TURNS + TURNS_RATIO);
    assert!((TURNS + 1..all.len()).contains(&sampled.len()));
    assert!(
        sampled.is_disjoint(&unsampled),
        "a service decided otherwise than the root"
    );
    books.assert_turns();

    let kept: BTreeSet<&str> = sampled.iter().copied().filter(|id| is_kept(id)).collect();
    assert!(!kept.is_empty() && kept.len() < sampled.len());
    let expected = books.spans_of(&kept);
    installation.settled(sampled.len(), expected.len()).await;
    installation
        .assert_all_accepted(protocol, books.spans_of(&sampled).len())
        .await;
    let got = installation.got(language.sdk());
    books::assert_same(&expected, &got);
}

/// What the policy of [`installation::POLICIES`] decides: half of all traces, by the highest of the 56 random bits of
/// their IDs. No sampler of the SDKs looks at that bit alone.
fn is_kept(trace_id: &str) -> bool {
    u8::from_str_radix(&trace_id[18..20], 16).unwrap() >= 0x80
}

#[tokio::test]
#[ignore = "needs the network"]
async fn python_turns_over_grpc_arrive_whole() {
    agent_turns_arrive_whole(Language::Python, "grpc").await;
}

#[tokio::test]
#[ignore = "needs the network"]
async fn python_turns_over_http_protobuf_arrive_whole() {
    agent_turns_arrive_whole(Language::Python, "http/protobuf").await;
}

#[tokio::test]
#[ignore = "needs the network"]
async fn node_turns_over_http_json_arrive_whole() {
    agent_turns_arrive_whole(Language::Node, "http/json").await;
}

#[tokio::test]
#[ignore = "needs the network"]
async fn node_turns_over_http_protobuf_arrive_whole() {
    agent_turns_arrive_whole(Language::Node, "http/protobuf").await;
}

#[tokio::test]
#[ignore = "needs the network"]
async fn node_turns_over_grpc_arrive_whole() {
    agent_turns_arrive_whole(Language::Node, "grpc").await;
}

/// Of a list of spans that differ from those sent, one by one, each must be told.
#[test]
fn a_lost_a_doubled_and_a_changed_span_are_noticed() {
    let line = r#"{"spans": [
        {"service": "a", "trace_id": "01", "span_id": "02", "parent_span_id": "", "sampled": true, "name": "root"},
        {"service": "b", "trace_id": "01", "span_id": "03", "parent_span_id": "02", "sampled": true, "name": "leaf"}
    ], "exported": 2, "trouble": []}"#;
    let books = Books::parse(line);
    let sent = books.spans_of(&BTreeSet::from(["01"]));
    assert_eq!(books::differences(&sent, &sent), Vec::<String>::new());
    let mut doubled = sent.clone();
    doubled.push(sent[0].clone());
    let mut changed = sent.clone();
    changed[1]["name"] = "lead".into();
    let mut moved = sent.clone();
    moved[1]["service"] = "a".into();
    for got in [&sent[..1], &doubled, &changed, &moved] {
        assert_eq!(books::differences(&sent, got).len(), 1, "{got:?}");
    }
}
