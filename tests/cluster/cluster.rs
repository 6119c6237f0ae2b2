//! A whole installation on this machine: a DNS server in this process; workers that `srv://` finds
//! on it, routers, a backend and a load as processes; and the books that are compared at the end.
#![allow(dead_code, reason = "tests/chaos uses it too, and each its own part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::{JoinHandle, JoinSet};

use crate::dns::DnsServer;
use crate::process::{PATIENCE, Process, ROUTER, Scrape, TOOL, WORKER, free_address, page, until};

const SERVICE: &str = "_otlp-grpc._tcp.workers.obs.svc.cluster.local";
const PEER_SERVICE: &str = "_tailring-peer._tcp.workers.obs.svc.cluster.local";

/// Whole clusters do not share two cores: each test of this binary has its turn.
static TURN: Mutex<()> = Mutex::const_new(());

/// What a cluster is made of.
pub struct Plan {
    pub workers: usize,
    pub routers: usize,
    /// Beside those every worker has.
    pub worker_args: &'static [&'static str],
    pub router_args: &'static [&'static str],
    pub log_max_bytes: u64,
    pub sink_args: &'static [&'static str],
    /// A backend that is not there yet.
    pub without_sink: bool,
    /// Kept traces go to the backend over HTTP.
    pub exports_http: bool,
    pub decision_wait: &'static str,
    /// Where the data dirs lie, if not beside everything else.
    pub data: Option<PathBuf>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: 3,
            routers: 1,
            worker_args: &[],
            router_args: &[],
            log_max_bytes: 4 << 30,
            sink_args: &[],
            without_sink: false,
            exports_http: false,
            decision_wait: "2s",
            data: None,
        }
    }
}

/// A router or a worker; may be started again.
pub struct Tier {
    pub name: String,
    binary: &'static str,
    args: Vec<String>,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    /// Of a worker.
    pub peers: SocketAddr,
    pub process: Process,
    dir: PathBuf,
}

pub struct Cluster {
    pub workers: Vec<Tier>,
    pub routers: Vec<Tier>,
    sink: Option<Process>,
    sink_address: SocketAddr,
    exports_http: bool,
    /// Answers as long as it lives.
    _dns: DnsServer,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// What `tailring load` said at its end.
#[derive(Debug)]
pub struct LoadEnd {
    pub report: Value,
    pub succeeded: bool,
}

/// What `tailring verify` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Findings {
    pub sent: u64,
    pub acknowledged: u64,
    pub got: u64,
    pub lost: u64,
    pub doubled: u64,
    pub split: u64,
    pub unknown: u64,
}

impl Tier {
    pub async fn is_ready(&self) -> bool {
        matches!(page(self.admin, "/readyz").await, Some((200, _)))
    }

    pub async fn ready(&mut self) {
        let what = format!("{} is ready", self.name);
        until(&what, PATIENCE, async || {
            if let Some(status) = self.process.exited() {
                panic!(
                    "{} ended with {status}: {}",
                    self.name,
                    self.process.stderr()
                );
            }
            self.is_ready().await.then_some(())
        })
        .await;
    }

    pub async fn metrics(&self) -> Scrape {
        let what = format!("{} shows its metrics", self.name);
        until(&what, PATIENCE, async || Scrape::of(self.admin).await).await
    }

    pub async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        self.metrics().await.sum(name, labels)
    }

    /// The same command once more: same name, ports and directory.
    pub fn start_again(&mut self) {
        self.process = Process::start(self.binary, &self.args, &self.dir, &self.name);
    }

    /// SIGKILL, and certainly dead.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.exit(PATIENCE).await;
    }
}

impl Cluster {
    pub async fn start(plan: Plan) -> Self {
        let turn = TURN.lock().await;
        // Not the temporary directory, which may be memory: a log belongs on a disk.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let policies = dir.path().join("policies.yaml");
        let wait = plan.decision_wait;
        let text =
            format!("decision_wait: {wait}\npolicies:\n  - {{name: all, type: always_sample}}\n");
        std::fs::write(&policies, text).unwrap();
        let data = plan.data.unwrap_or_default();
        let scheme = if plan.exports_http { "http" } else { "grpc" };
        let dns = DnsServer::start().await;
        let workers_url = format!("srv://{SERVICE}?nameserver={}", dns.address());
        let mut cluster = Self {
            workers: Vec::new(),
            routers: Vec::new(),
            sink: None,
            sink_address: free_address(),
            exports_http: plan.exports_http,
            _dns: dns,
            dir,
            _turn: turn,
        };
        let name = |number| format!("worker-{number}.workers.obs.svc.cluster.local");
        for number in 0..plan.workers {
            let mut args = vec![
                "--name".to_owned(),
                name(number),
                "--policies".to_owned(),
                policies.to_string_lossy().into_owned(),
                "--data-dir".to_owned(),
                data.join(format!("data-{number}"))
                    .to_string_lossy()
                    .into_owned(),
                "--export".to_owned(),
                format!("{scheme}://{}", cluster.sink_address),
                "--log-max-bytes".to_owned(),
                plan.log_max_bytes.to_string(),
            ];
            args.extend(plan.worker_args.iter().map(|&arg| arg.to_owned()));
            let name = format!("worker-{number}");
            let worker = cluster.tier(WORKER, &name, &workers_url, args);
            cluster.workers.push(worker);
        }
        let names: Vec<String> = (0..plan.workers).map(name).collect();
        let records: Vec<_> = names
            .iter()
            .zip(&cluster.workers)
            .map(|(name, worker)| (name.as_str(), worker.grpc))
            .collect();
        let peers: Vec<_> = names
            .iter()
            .zip(&cluster.workers)
            .map(|(name, worker)| (name.as_str(), worker.peers.port()))
            .collect();
        cluster._dns.set_targets(PEER_SERVICE, peers);
        cluster._dns.set_records(SERVICE, &records);
        for number in 0..plan.routers {
            let name = format!("router-{number}");
            let args = plan.router_args.iter().map(|&arg| arg.to_owned()).collect();
            let router = cluster.tier(ROUTER, &name, &workers_url, args);
            cluster.routers.push(router);
        }
        if !plan.without_sink {
            cluster.start_sink(plan.sink_args).await;
        }
        for tier in cluster.workers.iter_mut().chain(&mut cluster.routers) {
            tier.ready().await;
        }
        cluster
    }

    fn tier(&self, binary: &'static str, name: &str, workers: &str, mut args: Vec<String>) -> Tier {
        let (grpc, http, admin) = (free_address(), free_address(), free_address());
        let peers = free_address();
        if binary == WORKER {
            args.extend(["--listen-peers".to_owned(), peers.to_string()]);
        }
        let shared = [
            ("--workers", workers.to_owned()),
            ("--listen-grpc", grpc.to_string()),
            ("--listen-http", http.to_string()),
            ("--listen-admin", admin.to_string()),
        ];
        args.extend(
            shared
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value]),
        );
        Tier {
            process: Process::start(binary, &args, self.dir.path(), name),
            name: name.to_owned(),
            binary,
            args,
            grpc,
            http,
            admin,
            peers,
            dir: self.dir.path().to_owned(),
        }
    }

    /// Starts the backend, or starts it again with the same books and address.
    pub async fn start_sink(&mut self, args: &[&str]) {
        assert!(self.sink.is_none(), "one backend at a time");
        let listen = self.sink_address.to_string();
        let elsewhere = free_address().to_string();
        let (grpc, http) = if self.exports_http {
            (&elsewhere, &listen)
        } else {
            (&listen, &elsewhere)
        };
        let fixed = [
            "sink",
            "--listen",
            grpc,
            "--listen-http",
            http,
            "--ledger",
            "got.ledger",
            "--output",
            "json",
        ];
        let args: Vec<String> = fixed
            .iter()
            .chain(args)
            .map(|&arg| arg.to_owned())
            .collect();
        let mut sink = Process::start(TOOL, &args, self.dir.path(), "sink");
        until("the backend listens", PATIENCE, async || {
            if let Some(status) = sink.exited() {
                panic!("the backend ended with {status}: {}", sink.stderr());
            }
            TcpStream::connect(self.sink_address).await.ok()
        })
        .await;
        self.sink = Some(sink);
    }

    /// Where the workers look for the backend.
    pub fn backend(&self) -> SocketAddr {
        self.sink_address
    }

    /// SIGKILL, and certainly dead.
    pub async fn kill_sink(&mut self) {
        let mut sink = self.sink.take().expect("a backend");
        sink.signal(Signal::KILL);
        sink.exit(PATIENCE).await;
    }

    pub async fn stop_sink(&mut self) {
        let mut sink = self.sink.take().expect("a backend");
        sink.signal(Signal::INT);
        let status = sink.exit(PATIENCE).await;
        assert!(status.success(), "{status}: {}", sink.stderr());
    }

    /// Begins a load on `to` that writes `NAME.ledger`, over 4 connections unless `args` say otherwise.
    pub fn load(
        &self,
        name: &str,
        to: SocketAddr,
        rate: &str,
        seconds: u32,
        args: &[&str],
    ) -> Process {
        let (to, duration) = (to.to_string(), format!("{seconds}s"));
        let ledger = format!("{name}.ledger");
        let fixed = [
            "load", "--to", &to, "--rate", rate, "--for", &duration, "--ledger", &ledger,
            "--output", "json",
        ];
        let connections = ["--connections", "4"];
        let connections = connections
            .iter()
            .filter(|_| !args.contains(&"--connections"));
        // `fleet` unless `args` say otherwise: it is the default of the tool.
        let args: Vec<String> = fixed
            .iter()
            .chain(connections)
            .chain(args)
            .map(|&arg| arg.to_owned())
            .collect();
        Process::start(TOOL, &args, self.dir.path(), name)
    }

    /// A load through the first router.
    pub fn routed_load(&self, rate: &str, seconds: u32, args: &[&str]) -> Process {
        self.load("load", self.routers[0].grpc, rate, seconds, args)
    }

    /// Over all workers that are there.
    pub async fn workers_sum(&self, name: &str, labels: &[&str]) -> u64 {
        let mut sum = 0;
        for worker in &self.workers {
            sum += worker.metric(name, labels).await;
        }
        sum
    }

    /// Waits until no worker holds anything that the backend has not got.
    pub async fn settled(&self, within: Duration) {
        // A worker that has just started shows its gauges a tick (200 ms) after it is ready.
        let mut in_a_row = 0;
        until("everything is exported", within, async || {
            let mut held = 0;
            for gauge in ["undecided_traces", "awaiting_export_traces"] {
                held += self
                    .workers_sum(&format!("tailring_worker_{gauge}"), &[])
                    .await;
            }
            in_a_row = if held == 0 { in_a_row + 1 } else { 0 };
            (in_a_row > 20).then_some(())
        })
        .await;
    }

    /// The next backend begins new ones.
    pub fn forget_books(&self) {
        assert!(self.sink.is_none(), "they are being written");
        std::fs::remove_file(self.dir.path().join("got.ledger")).unwrap();
    }

    /// Stops the backend and compares what it got with what `NAME.ledger` says was sent.
    pub async fn verify(&mut self, name: &str) -> Findings {
        if self.sink.is_some() {
            self.stop_sink().await;
        }
        let sent = format!("{name}.ledger");
        let args = ["verify", &sent, "got.ledger", "--output", "json"];
        let args = args.map(str::to_owned);
        let mut verify = Process::start(TOOL, &args, self.dir.path(), "verify");
        let status = verify.exit(Duration::from_secs(60)).await;
        let text = verify.stdout();
        assert!(
            matches!(status.code(), Some(0 | 1)),
            "{status}: {}",
            verify.stderr()
        );
        println!("verify: {text}");
        let found: Value = serde_json::from_str(&text).unwrap();
        let count = |name: &str| found[name].as_u64().unwrap();
        Findings {
            sent: count("sent_spans"),
            acknowledged: count("acknowledged_spans"),
            got: count("got_spans"),
            lost: count("lost"),
            doubled: count("doubled"),
            split: count("split"),
            unknown: count("unknown"),
        }
    }
}

/// What a Kubernetes Service is to clients: one address, each connection to one of those behind it
/// that accepts connections, in turn.
pub struct Service {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Service {
    pub async fn start(behind: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and the connections with it.
            let mut connections = JoinSet::new();
            let mut turn = 0;
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                turn += 1;
                let mut order = behind.clone();
                order.rotate_left(turn % behind.len());
                connections.spawn(async move {
                    for address in order {
                        if let Ok(mut server) = TcpStream::connect(address).await {
                            drop(copy_bidirectional(&mut client, &mut server).await);
                            return;
                        }
                    }
                });
            }
        });
        Self { address, accepting }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl LoadEnd {
    /// Waits for a load to end.
    pub async fn of(mut load: Process, within: Duration) -> Self {
        let status = load.exit(within).await;
        let text = load.stdout();
        println!("load: {text}");
        assert!(
            matches!(status.code(), Some(0 | 1)),
            "{status}: {}",
            load.stderr()
        );
        Self {
            report: serde_json::from_str(&text).unwrap(),
            succeeded: status.success(),
        }
    }

    pub fn count(&self, name: &str) -> u64 {
        self.report["counts"][name].as_u64().unwrap()
    }

    pub fn max_ms(&self) -> f64 {
        self.report["latency"]["max_ms"].as_f64().unwrap()
    }

    /// Texts of failures that contain `part`, counted.
    pub fn failures(&self, part: &str) -> u64 {
        let failures = self.report["failures"].as_object().unwrap();
        let fitting = failures.iter().filter(|(text, _)| text.contains(part));
        fitting.map(|(_, count)| count.as_u64().unwrap()).sum()
    }
}
