//! What the README says in tables is what the code does: settings, statuses, metrics.
//!
//! `UPDATE_README=1 cargo test --test readme` writes the generated tables anew.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use clap::CommandFactory;
use prometheus_client::registry::Registry;
use tailring::app::process_metrics;
use tailring::app::settings::{RouterArgs, WorkerArgs};
use tailring::cluster::{DiscoveryMetrics, View, ViewHandle};
use tailring::model::Member;
use tailring::net::admission::{Budget, BudgetMetrics};
use tailring::net::peer::PeerMetrics;
use tailring::net::server::{Protocol, Server, ServerConfig, ServerMetrics};
use tailring::net::status::RefusalReason;
use tailring::policy::Rules;
use tailring::ring::Seed;
use tailring::router::{Router, RouterConfig, RouterMetrics};
use tailring::worker::export::ExportMetrics;
use tailring::worker::{PeeringMetrics, WorkerMetrics};

fn readme() -> String {
    std::fs::read_to_string(readme_path()).unwrap()
}

fn readme_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")
}

/// The rows between `<!-- table: NAME -->` and `<!-- end -->`, without the two lines of the head.
fn table<'a>(readme: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("<!-- table: {name} -->");
    let (_, rest) = readme.split_once(&start).unwrap();
    let (table, _) = rest.split_once("<!-- end -->").unwrap();
    table.trim().lines().skip(2).collect()
}

/// Compares, or writes when asked to.
fn check(tables: &[(&str, Vec<String>)]) {
    static WRITING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = readme();
    if std::env::var_os("UPDATE_README").is_some() {
        for (name, rows) in tables {
            let old = table(&text, name).join("\n");
            let start = text.find(&format!("<!-- table: {name} -->")).unwrap();
            let (before, after) = text.split_at(start);
            let after = if old.is_empty() {
                after.replacen(
                    "|\n<!-- end -->",
                    &format!("|\n{}\n<!-- end -->", rows.join("\n")),
                    1,
                )
            } else {
                after.replacen(&old, &rows.join("\n"), 1)
            };
            text = format!("{before}{after}");
        }
        std::fs::write(readme_path(), &text).unwrap();
    }
    for (name, rows) in tables {
        assert_eq!(
            table(&text, name),
            *rows,
            "the table {name} of the README is not what the code says; \
             UPDATE_README=1 cargo test --test readme writes it anew"
        );
    }
}

// --- Settings ---

/// Flag, twin, default and meaning, as `--help` has them.
fn settings(command: &clap::Command, is_in: impl Fn(&str) -> bool) -> Vec<String> {
    let row = |arg: &clap::Arg| {
        let flag = arg.get_long()?;
        let twin = arg.get_env()?.to_str()?;
        let help = arg.get_help()?.to_string().replace('\n', " ");
        let (meaning, default) = match help.split_once("[default: ") {
            Some((meaning, default)) => (meaning.trim(), default.trim_end_matches(']')),
            None => (help.trim(), "–"),
        };
        is_in(flag).then(|| format!("| `--{flag}` | `{twin}` | {default} | {meaning} |"))
    };
    command.get_arguments().filter_map(row).collect()
}

#[test]
fn the_settings_are_those_of_the_help() {
    let router = RouterArgs::command();
    let worker = WorkerArgs::command();
    let is_shared = |flag: &str| router.get_arguments().any(|a| a.get_long() == Some(flag));
    check(&[
        ("settings-both", settings(&router, |_| true)),
        (
            "settings-worker",
            settings(&worker, |flag| !is_shared(flag)),
        ),
    ]);
}

// --- Statuses ---

/// `InvalidArgument` is INVALID_ARGUMENT on the wire.
fn code_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[test]
fn every_refusal_is_in_the_table_with_its_statuses_and_what_clients_do() {
    let readme = readme();
    let rows = table(&readme, "statuses");
    let expected = RefusalReason::ALL.map(|reason| {
        let retried = match reason.retry_after() {
            Some(wait) => format!("after {} s", wait.as_secs_f64()),
            None => "never".to_owned(),
        };
        format!(
            "| `{}` | {} | {} | {retried} |",
            reason.label(),
            code_name(reason.grpc_code()),
            reason.http_status().as_u16(),
        )
    });
    for (row, expected) in rows.iter().zip(&expected) {
        assert!(row.starts_with(expected), "{row}\nexpected {expected} ...");
    }
    assert_eq!(rows.len(), expected.len());
}

// --- Metrics ---

/// Name as it is queried → type and help.
fn scrape(registry: &Registry) -> Vec<(String, String, String)> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let types: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    helps
        .map(|line| {
            let (name, help) = line.split_once(' ').unwrap();
            let kind = types[name];
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (
                format!("{name}{suffix}"),
                kind.to_owned(),
                help.trim_end_matches('.').to_owned(),
            )
        })
        .collect()
}

/// A family without a series is not shown, so everything is put together as in the binaries.
async fn both(root: &mut Registry, binary: &'static str, register: impl FnOnce(&mut Registry)) {
    let registry = process_metrics::register(root, binary);
    drop(DiscoveryMetrics::register(registry));
    drop(PeerMetrics::register(registry));
    register(registry);
    let budget = Budget::new(1);
    BudgetMetrics::register(registry, vec![("requests", budget.clone())]);
    let metrics = ServerMetrics::register(registry);
    let config = ServerConfig::new(Protocol::Grpc, "127.0.0.1:0".parse().unwrap());
    let bound = Server::bind(config, router(&mut Registry::default()), metrics, budget).await;
    drop(bound.unwrap());
}

fn router(registry: &mut Registry) -> Arc<Router> {
    let member = Member::parse("a").unwrap();
    let addresses = BTreeMap::from([(member, "127.0.0.1:1".parse().unwrap())]);
    let view = ViewHandle::fixed(View::new(addresses, Seed(0), "default"));
    let metrics = RouterMetrics::register(registry);
    Router::new(RouterConfig::default(), view, metrics)
}

/// Of a router and of a worker.
async fn metrics() -> [Vec<(String, String, String)>; 2] {
    let (mut of_router, mut of_worker) = (Registry::default(), Registry::default());
    let mut lanes = None;
    both(&mut of_router, "tailring-router", |registry| {
        lanes = Some(router(registry));
    })
    .await;
    both(&mut of_worker, "tailring-worker", |registry| {
        drop(ExportMetrics::register(registry));
        drop(PeeringMetrics::register(registry));
        drop(WorkerMetrics::register(registry).kept_by(&Rules::keep_everything()));
    })
    .await;
    let scraped = [scrape(&of_router), scrape(&of_worker)];
    drop(lanes);
    scraped
}

#[tokio::test]
async fn every_metric_is_in_the_table_with_its_meaning() {
    let [router, worker] = metrics().await;
    let row = |tier: &str, (name, kind, help): &(String, String, String)| {
        format!("| `{name}` | {kind} | {tier} | {help} |")
    };
    let mut rows = Vec::new();
    for metric in router.iter().filter(|metric| worker.contains(metric)) {
        rows.push(row("both", metric));
    }
    for metric in router.iter().filter(|metric| !worker.contains(metric)) {
        rows.push(row("router", metric));
    }
    for metric in worker.iter().filter(|metric| !router.contains(metric)) {
        rows.push(row("worker", metric));
    }
    check(&[("metrics", rows)]);
}

#[tokio::test]
async fn every_metric_that_the_text_mentions_exists() {
    let known: Vec<String> = metrics()
        .await
        .concat()
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    let text = readme();
    let mut mentioned = 0;
    for (at, _) in text.match_indices("tailring_") {
        let name: String = text[at..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        assert!(known.contains(&name), "{name}");
        mentioned += 1;
    }
    assert!(mentioned > 50, "the table alone has more");
}

// --- The rest ---

#[test]
fn every_file_that_the_readme_links_to_is_there() {
    let readme = readme();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let targets = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    for (target, _) in targets.filter(|(target, _)| !target.contains("://")) {
        let path = target.split('#').next().unwrap();
        assert!(path.is_empty() || root.join(path).exists(), "{target}");
    }
}
