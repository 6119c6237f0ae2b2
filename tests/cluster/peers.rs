//! Workers that hear of each other before DNS does, or against it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::dns::DnsServer;
use crate::process::{PATIENCE, Process, ROUTER, Scrape, WORKER, free_address, page, until};

const SERVICE: &str = "_otlp-grpc._tcp.workers.obs.svc.cluster.local";
const PEER_SERVICE: &str = "_tailring-peer._tcp.workers.obs.svc.cluster.local";
const W0: &str = "worker-0.workers.obs.svc.cluster.local";
const W1: &str = "worker-1.workers.obs.svc.cluster.local";
const W2: &str = "worker-2.workers.obs.svc.cluster.local";

struct World {
    dns: DnsServer,
    dir: TempDir,
}

#[derive(Clone, Copy)]
struct Ports {
    grpc: SocketAddr,
    peers: SocketAddr,
}

struct Node {
    admin: SocketAddr,
    process: Process,
}

impl Ports {
    fn free() -> Self {
        Self {
            grpc: free_address(),
            peers: free_address(),
        }
    }
}

impl World {
    async fn new() -> Self {
        Self {
            dns: DnsServer::start().await,
            // Not the temporary directory, which may be memory: a log belongs on a disk.
            dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        }
    }

    /// What DNS says from now on.
    fn list(&self, workers: &[(&str, Ports)]) {
        let peers: Vec<_> = workers
            .iter()
            .map(|(n, at)| (*n, at.peers.port()))
            .collect();
        self.dns.set_targets(PEER_SERVICE, peers);
        let otlp: Vec<_> = workers.iter().map(|(n, at)| (*n, at.grpc)).collect();
        self.dns.set_records(SERVICE, &otlp);
    }

    fn workers(&self) -> String {
        format!("srv://{SERVICE}?nameserver={}", self.dns.address())
    }

    fn worker(&self, name: &str, data: &str, ports: Ports) -> Node {
        self.worker_of(&self.workers(), name, data, ports)
    }

    fn worker_of(&self, workers: &str, name: &str, data: &str, ports: Ports) -> Node {
        self.node(
            WORKER,
            workers,
            data,
            ports.grpc,
            &[
                "--name",
                name,
                "--data-dir",
                data,
                "--export",
                "grpc://127.0.0.1:9",
                "--log-max-bytes",
                "4GiB",
                "--listen-peers",
                &ports.peers.to_string(),
            ],
        )
    }

    fn router(&self) -> Node {
        self.node(ROUTER, &self.workers(), "router", free_address(), &[])
    }

    fn node(
        &self,
        binary: &str,
        workers: &str,
        files: &str,
        grpc: SocketAddr,
        more: &[&str],
    ) -> Node {
        let admin = free_address();
        let fixed = [
            ("--workers", workers.to_owned()),
            ("--listen-grpc", grpc.to_string()),
            ("--listen-http", free_address().to_string()),
            ("--listen-admin", admin.to_string()),
        ];
        let fixed = fixed
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        let args: Vec<_> = more
            .iter()
            .map(|&arg| arg.to_owned())
            .chain(fixed)
            .collect();
        let dir: &Path = self.dir.path();
        Node {
            admin,
            process: Process::start(binary, &args, dir, files),
        }
    }
}

impl Node {
    async fn ring(&self) -> Option<Value> {
        let (status, body) = page(self.admin, "/ring").await?;
        (status == 200).then(|| serde_json::from_str(&body).unwrap())
    }

    /// What `/ring` says of a member.
    async fn knows(&self, name: &str) -> Option<Value> {
        let ring = self.ring().await?;
        let members = ring["members"].as_array()?;
        members.iter().find(|it| it["name"] == name).cloned()
    }

    /// Waits until exactly these have a share.
    async fn has_ring_of(&self, names: &[&str]) {
        let what = format!("a ring of {names:?}");
        until(&what, PATIENCE, async || {
            let ring = self.ring().await?;
            let members = ring["members"].as_array()?.iter();
            let in_ring = members.filter(|it| it["slots"].as_u64() > Some(0));
            let in_ring: Vec<_> = in_ring.map(|it| it["name"].as_str().unwrap()).collect();
            (in_ring == names).then_some(())
        })
        .await;
    }

    async fn ready(&self) {
        until("ready", PATIENCE, async || {
            matches!(page(self.admin, "/readyz").await, Some((200, _))).then_some(())
        })
        .await;
    }

    async fn cpu_seconds(&self) -> f64 {
        let metrics = until("metrics", PATIENCE, async || {
            page(self.admin, "/metrics").await
        });
        let (_, body) = metrics.await;
        let line = body
            .lines()
            .find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
        line.unwrap().parse().unwrap()
    }

    async fn counts(&self, name: &str, labels: &[&str]) -> u64 {
        let scrape = until("metrics", PATIENCE, async || Scrape::of(self.admin).await);
        scrape.await.sum(name, labels)
    }
}

#[tokio::test]
async fn a_worker_is_in_the_ring_before_dns_lists_it_and_out_of_it_while_dns_still_does() {
    let world = World::new().await;
    let (at0, at1, at2) = (Ports::free(), Ports::free(), Ports::free());
    world.list(&[(W0, at0), (W1, at1)]);
    let w0 = world.worker(W0, "w0", at0);
    let w1 = world.worker(W1, "w1", at1);
    let router = world.router();
    w0.ready().await;
    w1.ready().await;
    router.has_ring_of(&[W0, W1]).await;

    let mut w2 = world.worker(W2, "w2", at2);
    for node in [&w0, &w1, &w2, &router] {
        node.has_ring_of(&[W0, W1, W2]).await;
    }
    // It gives verdicts, and is not ready: under a wrong name it would look the same.
    until("joined", PATIENCE, async || {
        (w2.knows(W2).await?["state"] == "ready").then_some(())
    })
    .await;
    let (status, why) = page(w2.admin, "/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("not among the members"), "{why}");
    world.list(&[(W0, at0), (W1, at1), (W2, at2)]);
    w2.ready().await;

    // The names of DNS would leave after a minute without it, and DNS lists it all the time.
    w2.process.signal(Signal::TERM);
    for node in [&w0, &w1, &router] {
        node.has_ring_of(&[W0, W1]).await;
    }
    assert_eq!(w0.knows(W2).await.unwrap()["state"], "draining");
    assert!(w2.process.exit(PATIENCE).await.success());
    assert_eq!(
        w0.counts("tailring_roster_events_total", &["event=\"drained\""])
            .await,
        1
    );

    // Another life of it is in at once.
    let w2 = world.worker(W2, "w2", at2);
    for node in [&w0, &w1, &w2, &router] {
        node.has_ring_of(&[W0, W1, W2]).await;
    }
}

#[tokio::test]
async fn of_two_processes_with_one_name_only_the_younger_is_believed() {
    let world = World::new().await;
    let (at0, older, younger) = (Ports::free(), Ports::free(), Ports::free());
    world.list(&[(W0, at0), (W1, older)]);
    let w0 = world.worker(W0, "w0", at0);
    let old = world.worker(W1, "old", older);
    w0.ready().await;
    old.ready().await;

    // DNS goes on to list the older one.
    let young = world.worker(W1, "young", younger);
    until("the older one is fenced", PATIENCE, async || {
        let (status, why) = page(old.admin, "/readyz").await?;
        (status == 503 && why.contains("another process has the name")).then_some(())
    })
    .await;
    young.ready().await;
    let known = w0.knows(W1).await.unwrap();
    let own = young.knows(W1).await.unwrap();
    assert_eq!(known["incarnation"], own["incarnation"]);
    assert_eq!(known["address"], younger.grpc.to_string());
    let refused = ["protocol=\"peer\"", "outcome=\"stale_incarnation\""];
    assert!(w0.counts("tailring_requests_total", &refused).await > 0);
    let stores = ["event=\"store_replaced\""];
    assert_eq!(w0.counts("tailring_roster_events_total", &stores).await, 1);
    assert_eq!(
        old.counts("tailring_roster_events_total", &["event=\"fenced\""])
            .await,
        1
    );
    assert_eq!(old.counts("tailring_roster_ready", &[]).await, 0);
}

#[tokio::test]
async fn a_stranger_at_an_old_address_is_not_taken_for_the_worker_that_moved() {
    let world = World::new().await;
    let (at0, before, after) = (Ports::free(), Ports::free(), Ports::free());
    world.list(&[(W0, at0), (W1, before)]);
    let w0 = world.worker(W0, "w0", at0);
    let mut w1 = world.worker(W1, "w1", before);
    let router = world.router();
    w0.ready().await;
    w1.ready().await;

    // The address goes to another worker, and DNS does not hear of either.
    w1.process.signal(Signal::KILL);
    w1.process.exit(PATIENCE).await;
    let stranger = world.worker(W2, "w2", before);
    until("w0 meets the stranger", PATIENCE, async || {
        let refused = ["outcome=\"wrong_member\""];
        (w0.counts("tailring_peer_calls_total", &refused).await > 0).then_some(())
    })
    .await;
    let refused = ["protocol=\"peer\"", "outcome=\"wrong_member\""];
    assert!(stranger.counts("tailring_requests_total", &refused).await > 0);
    let w1 = world.worker(W1, "w1", after);
    for node in [&w0, &stranger, &w1, &router] {
        node.has_ring_of(&[W0, W1, W2]).await;
    }
    for node in [&w0, &router] {
        until("the new address", PATIENCE, async || {
            let address = node.knows(W1).await?["address"].clone();
            (address == after.grpc.to_string()).then_some(())
        })
        .await;
    }
    // DNS vouches for the name, wherever it says that it is.
    w1.ready().await;
}

/// What fifty workers pay for knowing each other: the CPU time of each in a cluster of fifty, less what it takes in
/// a cluster of its own.
///
/// ```sh
/// cargo test --release --test cluster -- --ignored --nocapture fifty_workers
/// ```
#[tokio::test]
#[ignore = "a measurement: needs a release build and two quiet minutes"]
async fn fifty_workers_pay_at_most_half_a_percent_of_a_core_for_each_other() {
    const WORKERS: usize = 50;
    const MEASURED: Duration = Duration::from_secs(30);
    let seconds = async |together: bool| {
        let world = World::new().await;
        let ports: Vec<Ports> = (0..WORKERS).map(|_| Ports::free()).collect();
        let member = |number: usize| {
            let Ports { grpc, peers } = ports[number];
            format!("w{number}={grpc}/{}", peers.port())
        };
        let all: Vec<_> = (0..WORKERS).map(member).collect();
        let nodes: Vec<Node> = (0..WORKERS)
            .map(|number| {
                let members = if together {
                    all.join(",")
                } else {
                    member(number)
                };
                let name = format!("w{number}");
                let at = ports[number];
                world.worker_of(&format!("static://{members}"), &name, &name, at)
            })
            .collect();
        for node in &nodes {
            node.ready().await;
        }
        let cpu = async || {
            let mut sum = 0.0;
            for node in &nodes {
                sum += node.cpu_seconds().await;
            }
            sum
        };
        let before = cpu().await;
        tokio::time::sleep(MEASURED).await;
        cpu().await - before
    };
    let (alone, together) = (seconds(false).await, seconds(true).await);
    let each = |seconds: f64| 100.0 * seconds / MEASURED.as_secs_f64() / WORKERS as f64;
    println!(
        "a worker of {WORKERS}: {:.3} % of a core, alone {:.3} %: {:.3} % for its peers",
        each(together),
        each(alone),
        each(together - alone)
    );
    assert!(each(together - alone) <= 0.5);
}
