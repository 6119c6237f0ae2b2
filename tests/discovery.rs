//! Discovery against a real DNS server: what changes the ring, and what never does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

#[path = "support/dns.rs"]
mod dns;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dns::{DnsServer, Mode};
use prometheus_client::registry::Registry;
use tailring::cluster::{
    Discovery, DiscoveryConfig, DiscoveryMetrics, Outcome, Source, View, ViewHandle,
};
use tailring::model::Member;
use tailring::ring::Seed;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const SERVICE: &str = "_otlp-grpc._tcp.workers.obs.svc.cluster.local";
const HOST: &str = "workers.obs.svc.cluster.local";

/// For anything that must happen. Only a failing test waits for all of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// A discovery that polls fast.
struct Running {
    view: ViewHandle,
    metrics: DiscoveryMetrics,
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Running {
    fn start(workers: &str, leave_after: Duration) -> Self {
        let config = DiscoveryConfig {
            leave_after,
            poll_max: Duration::from_millis(20),
            ..DiscoveryConfig::new("test", Seed::DEFAULT)
        };
        Self::start_with(workers, config)
    }

    fn start_with(workers: &str, config: DiscoveryConfig) -> Self {
        let metrics = DiscoveryMetrics::register(&mut Registry::default());
        let (stop, stopped) = watch::channel(false);
        let source: Source = workers.parse().unwrap();
        let following = Discovery::new(source, config, metrics.clone(), stopped).follow();
        Self {
            view: following.view,
            metrics,
            task: following.task,
            stop,
        }
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            let view = self.view.load();
            let answers = Outcome::ALL.map(|o| (o.label(), self.metrics.answers(o)));
            let waited = started.elapsed();
            assert!(waited < DEADLINE, "not {what}: {answers:?} {view:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_names(&self, expected: &[&str]) {
        let what = format!("{expected:?}");
        self.until(&what, |running| names(&running.view.load()) == expected)
            .await;
    }

    fn failed(&self) -> u64 {
        let ok = Outcome::Ok;
        let all = Outcome::ALL.iter().filter(|outcome| **outcome != ok);
        all.map(|outcome| self.metrics.answers(*outcome)).sum()
    }

    /// Waits for more answers of this outcome and says that the view is still the same one.
    async fn unmoved_by(&self, outcome: Outcome, before: &Arc<View>) {
        let answers = self.metrics.answers(outcome);
        let what = format!("answered {}", outcome.label());
        self.until(&what, |running| {
            running.metrics.answers(outcome) >= answers + 2
        })
        .await;
        let after = self.view.load();
        assert!(Arc::ptr_eq(before, &after), "{outcome:?} changed the view");
    }
}

fn names(view: &View) -> Vec<String> {
    view.table.members().iter().map(Member::to_string).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn worker(number: usize) -> String {
    format!("worker-{number}.workers.obs.svc.cluster.local")
}

fn set_workers(server: &DnsServer, numbers: impl IntoIterator<Item = usize>) {
    let rows: Vec<_> = numbers.into_iter().map(|n| (worker(n), n)).collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, n)| {
            let ip = [10, 1, (n / 250) as u8, (n % 250) as u8];
            (name.as_str(), SocketAddr::from((ip, 4317)))
        })
        .collect();
    server.set_records(SERVICE, &rows);
}

fn srv(server: &DnsServer) -> String {
    format!("srv://{SERVICE}?nameserver={}", server.address())
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn records_that_come_join_at_once_and_records_that_go_leave_after_their_time() {
    let server = DnsServer::start().await;
    // Shuffled, and in the case that DNS does not care about.
    server.set_records(
        SERVICE,
        &[
            ("Worker-2.workers", address("10.0.0.2:4317")),
            ("worker-0.workers", address("10.0.0.10:4318")),
        ],
    );
    let running = Running::start(&srv(&server), Duration::from_millis(300));
    running
        .until_names(&["worker-0.workers", "worker-2.workers"])
        .await;
    let view = running.view.load();
    let addresses: Vec<_> = view.addresses.values().copied().collect();
    assert_eq!(
        addresses,
        [address("10.0.0.10:4318"), address("10.0.0.2:4317")]
    );

    set_workers(&server, [1]);
    let all = ["worker-0.workers", &worker(1), "worker-2.workers"];
    running.until_names(&all).await;
    running.until_names(&[&worker(1)]).await;
    assert_eq!(running.metrics.members(), 1);
    assert_eq!(running.metrics.view_changes(), 3);
}

#[tokio::test]
async fn a_name_that_vanishes_stays_while_its_time_is_not_over() {
    let server = DnsServer::start().await;
    set_workers(&server, [0, 1]);
    let running = Running::start(&srv(&server), NEVER);
    running.until_names(&[&worker(0), &worker(1)]).await;
    let before = running.view.load();
    set_workers(&server, [0]);
    running.unmoved_by(Outcome::Ok, &before).await;
}

#[tokio::test]
async fn answers_that_are_no_good_never_change_the_ring() {
    let mut server = DnsServer::start().await;
    set_workers(&server, 0..4);
    // No grace at all: whatever counted as an answer without a name would remove it at once.
    let running = Running::start(&srv(&server), Duration::ZERO);
    let everyone: Vec<_> = (0..4).map(worker).collect();
    let everyone: Vec<_> = everyone.iter().map(String::as_str).collect();
    running.until_names(&everyone).await;
    let before = running.view.load();
    for (mode, outcome) in [
        (Mode::ServFail, Outcome::ServFail),
        (Mode::NxDomain, Outcome::NxDomain),
        (Mode::Empty, Outcome::Empty),
        (Mode::Truncated, Outcome::Truncated),
        (Mode::Refused, Outcome::Other),
        (Mode::TruncatedOverUdp, Outcome::Ok),
    ] {
        server.set_mode(mode);
        running.unmoved_by(outcome, &before).await;
    }
    assert!(server.queries_tcp() > 0);
    assert!(running.metrics.last_good_age_seconds() < DEADLINE.as_secs_f64());

    // Fewer records, but only in answers that are cut off.
    set_workers(&server, 0..2);
    server.set_mode(Mode::Truncated);
    running.unmoved_by(Outcome::Truncated, &before).await;
    set_workers(&server, 0..4);
    server.set_mode(Mode::Answer);
    running.unmoved_by(Outcome::Ok, &before).await;

    server.go_down().await;
    let failed = running.failed();
    running.until("failed", |r| r.failed() > failed).await;
    assert!(Arc::ptr_eq(&before, &running.view.load()));
    server.come_up().await;
    set_workers(&server, 0..5);
    running
        .until("five names", |r| r.view.load().addresses.len() == 5)
        .await;
}

#[tokio::test]
async fn silence_never_changes_the_ring() {
    let server = DnsServer::start().await;
    set_workers(&server, [0]);
    let running = Running::start(&srv(&server), Duration::ZERO);
    running.until_names(&[&worker(0)]).await;
    let before = running.view.load();
    server.set_mode(Mode::Silent);
    running.unmoved_by(Outcome::Timeout, &before).await;
    server.set_mode(Mode::Answer);
    running.unmoved_by(Outcome::Ok, &before).await;
}

#[tokio::test]
async fn garbage_never_changes_the_ring() {
    let mut server = DnsServer::start().await;
    set_workers(&server, [0, 1]);
    let running = Running::start(&srv(&server), Duration::ZERO);
    running.until_names(&[&worker(0), &worker(1)]).await;
    let before = running.view.load();
    let good = running.metrics.answers(Outcome::Ok);

    server.answer_garbage().await;
    let udp = server.queries_udp();
    let failed = running.failed();
    running
        .until("asked and answered garbage twice", |running| {
            server.queries_udp() >= udp + 2 && running.failed() >= failed + 2
        })
        .await;
    assert!(Arc::ptr_eq(&before, &running.view.load()));

    server.come_up().await;
    running
        .until("good again", |r| r.metrics.answers(Outcome::Ok) > good)
        .await;
    assert!(Arc::ptr_eq(&before, &running.view.load()));

    // Well-formed messages with content that names nobody.
    server.set_targets(SERVICE, [(worker(0).as_str(), 4317), ("a b.workers", 1)]);
    running.unmoved_by(Outcome::Garbage, &before).await;
    server.set_targets(SERVICE, [(worker(0).as_str(), 0)]);
    running.unmoved_by(Outcome::Garbage, &before).await;
    // RFC 2782: "." is "no such service here".
    server.set_targets(SERVICE, [(".", 4317)]);
    running.unmoved_by(Outcome::Empty, &before).await;
}

#[tokio::test]
async fn a_server_that_is_down_at_start_leaves_the_view_empty_until_it_comes() {
    let mut server = DnsServer::start().await;
    set_workers(&server, [0]);
    server.go_down().await;
    let running = Running::start(&srv(&server), NEVER);
    running.until("failed", |r| r.failed() >= 1).await;
    assert!(running.view.load().table.is_empty());
    assert!(!running.task.is_finished());
    server.come_up().await;
    running.until_names(&[&worker(0)]).await;
}

#[tokio::test]
async fn a_thousand_names_come_over_tcp() {
    let server = DnsServer::start().await;
    // A DNS message ends at 64 KiB: with their addresses 1,000 names do not fit, and hickory's
    // encoder compresses only the first owner names, so they must be short.
    server.set_glue(false);
    let targets: Vec<_> = (0..1000).map(|n| format!("worker-{n}.w.test")).collect();
    let rows: Vec<_> = targets
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let ip = [10, 2, (n / 250) as u8, (n % 250) as u8];
            (name.as_str(), SocketAddr::from((ip, 4317)))
        })
        .collect();
    let service = "_otlp-grpc._tcp.w.test";
    server.set_records(service, &rows);
    let workers = format!("srv://{service}?nameserver={}", server.address());
    let running = Running::start(&workers, NEVER);
    running
        .until("1,000 names", |r| r.view.load().addresses.len() == 1000)
        .await;
    let view = running.view.load();
    for (name, address) in rows {
        let member = Member::parse(name).unwrap();
        assert_eq!(view.addresses[&member], address);
    }
    assert!(server.queries_tcp() > 0);
}

#[tokio::test]
async fn targets_without_addresses_are_looked_up_and_join_when_they_have_one() {
    let server = DnsServer::start().await;
    server.set_glue(false);
    server.set_targets(
        SERVICE,
        [("a.workers", 1), ("b.workers", 2), ("c.workers", 3)],
    );
    server.set_host("a.workers", &["10.0.0.1".parse().unwrap()]);
    server.set_host("b.workers", &["fd00::2".parse().unwrap()]);
    let running = Running::start(&srv(&server), NEVER);
    running.until_names(&["a.workers", "b.workers"]).await;
    assert!(running.metrics.targets_without_address() > 0);
    server.set_host("c.workers", &["10.0.0.3".parse().unwrap()]);
    running
        .until_names(&["a.workers", "b.workers", "c.workers"])
        .await;
    let addresses: Vec<_> = running.view.load().addresses.values().copied().collect();
    let expected = ["10.0.0.1:1", "[fd00::2]:2", "10.0.0.3:3"].map(address);
    assert_eq!(addresses, expected);

    // An address that cannot be found any more stays.
    let before = running.view.load();
    server.set_host("a.workers", &[]);
    running.unmoved_by(Outcome::Ok, &before).await;
}

#[tokio::test]
async fn a_new_address_of_a_known_name_changes_no_placement_and_wakes_the_watchers() {
    let server = DnsServer::start().await;
    server.set_records(SERVICE, &[("a.workers", address("10.0.0.1:1"))]);
    let running = Running::start(&srv(&server), NEVER);
    running.until_names(&["a.workers"]).await;
    let mut changes = running.view.changes();
    let fingerprint = running.view.load().fingerprint();

    server.set_records(SERVICE, &[("a.workers", address("10.0.0.7:1"))]);
    timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    let view = running.view.load();
    let addresses: Vec<_> = view.addresses.values().copied().collect();
    assert_eq!(addresses, [address("10.0.0.7:1")]);
    assert_eq!(view.fingerprint(), fingerprint);
}

#[tokio::test]
async fn of_two_ports_of_one_target_the_lowest_counts_in_any_order() {
    let server = DnsServer::start().await;
    let running = Running::start(&srv(&server), NEVER);
    for order in [[7, 5, 5, 9], [9, 5, 7, 5]] {
        let rows = order.map(|port| ("a.workers", SocketAddr::from(([10, 0, 0, 1], port))));
        server.set_records(SERVICE, &rows);
        let counted = running.metrics.ambiguous_targets();
        running
            .until("counted", |r| r.metrics.ambiguous_targets() >= counted + 4)
            .await;
        running.until_names(&["a.workers"]).await;
        let view = running.view.load();
        let addresses: Vec<_> = view.addresses.values().copied().collect();
        assert_eq!(addresses, [address("10.0.0.1:5")]);
    }
}

#[tokio::test]
async fn the_addresses_of_a_dns_source_are_its_names() {
    let server = DnsServer::start().await;
    let v4 = ["10.0.0.2", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    server.set_host(HOST, &v4);
    let workers = format!("dns://{HOST}:4317?nameserver={}", server.address());
    let running = Running::start(&workers, Duration::ZERO);
    running
        .until_names(&["10.0.0.1:4317", "10.0.0.2:4317"])
        .await;
    let view = running.view.load();
    for (member, address) in &view.addresses {
        assert_eq!(member.as_str(), address.to_string());
    }

    // With A and AAAA records each worker still stands in the ring once.
    server.set_host(HOST, &["fd00::1".parse().unwrap(), v4[0], v4[1]]);
    running.unmoved_by(Outcome::Ok, &view).await;
    server.set_host(HOST, &[]);
    running.unmoved_by(Outcome::NxDomain, &view).await;
    server.set_host(HOST, &["fd00::1".parse().unwrap()]);
    running.until_names(&["[fd00::1]:4317"]).await;
}

#[tokio::test]
async fn a_static_list_needs_no_dns_and_its_host_names_are_looked_up() {
    let running = Running::start("static://b=127.0.0.1:2,a=[::1]:1", NEVER);
    running.until_names(&["a", "b"]).await;
    let addresses: Vec<_> = running.view.load().addresses.values().copied().collect();
    assert_eq!(addresses, [address("[::1]:1"), address("127.0.0.1:2")]);

    let mut server = DnsServer::start().await;
    server.set_host("one.test", &["10.0.0.1".parse().unwrap()]);
    server.go_down().await;
    let list = format!("static://a=one.test:1?nameserver={}", server.address());
    let running = Running::start(&list, NEVER);
    running.until("failed", |r| r.failed() >= 1).await;
    assert!(running.view.load().table.is_empty());
    server.come_up().await;
    running.until_names(&["a"]).await;
    server.set_host("one.test", &["10.0.0.9".parse().unwrap()]);
    running
        .until("the new address", |running| {
            let view = running.view.load();
            view.addresses.values().eq([&address("10.0.0.9:1")])
        })
        .await;
}

#[tokio::test]
async fn a_hint_asks_at_once_and_many_hints_ask_once_a_second() {
    let server = DnsServer::start().await;
    set_workers(&server, [0]);
    let config = DiscoveryConfig {
        poll_max: NEVER,
        ..DiscoveryConfig::new("test", Seed::DEFAULT)
    };
    server.set_ttl(3600);
    let running = Running::start_with(&srv(&server), config);
    running.until_names(&[&worker(0)]).await;
    set_workers(&server, [0, 1]);
    let asked = server.queries_udp();
    let started = Instant::now();
    while names(&running.view.load()).len() < 2 {
        assert!(started.elapsed() < DEADLINE);
        running.view.refresh();
        sleep(Duration::from_millis(1)).await;
    }
    // Hundreds of hints; one question a second, and perhaps one that was due already.
    let questions = server.queries_udp() - asked;
    assert!(questions <= started.elapsed().as_secs() + 2, "{questions}");
}

#[tokio::test]
async fn discovery_ends_when_told_and_its_last_view_stays() {
    let server = DnsServer::start().await;
    set_workers(&server, [0]);
    let running = Running::start(&srv(&server), NEVER);
    running.until_names(&[&worker(0)]).await;
    // In the middle of a question that would take long.
    server.set_mode(Mode::Silent);
    running.stop.send(true).unwrap();
    timeout(DEADLINE, running.task).await.unwrap().unwrap();
    assert_eq!(names(&running.view.load()), [worker(0)]);
    // A watcher waits instead of spinning on a closed channel.
    let mut changes = running.view.changes();
    let woken = timeout(Duration::from_millis(20), changes.changed()).await;
    assert!(woken.is_err());
}

#[tokio::test]
async fn the_description_shows_names_addresses_and_slots() {
    let running = Running::start("static://a=127.0.0.1:1,b=127.0.0.1:2", NEVER);
    running.until_names(&["a", "b"]).await;
    let view = running.view.load();
    let json = serde_json::to_value(view.describe()).unwrap();
    assert_eq!(json["fingerprint"], view.fingerprint().to_string());
    assert_eq!(json["members"][0]["name"], "a");
    assert_eq!(json["members"][1]["address"], "127.0.0.1:2");
    let slots = |i: usize| json["members"][i]["slots"].as_u64().unwrap();
    assert_eq!(slots(0) + slots(1), 65_536);
}
