//! A whole installation on this machine: a DNS server in this process; workers that `srv://` finds
//! on it, routers, a backend and a load as processes; and the books that are compared at the end.
#![allow(dead_code, reason = "tests/chaos uses it too, and each its own part")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::{JoinHandle, JoinSet};

use crate::dns::DnsServer;
use crate::process::{
    PATIENCE, Process, ROUTER, Scrape, TOOL, WORKER, free_address, free_address_at, page, until,
};

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
    /// What stands below `policies:`.
    pub policies: &'static str,
    /// Where the data dirs lie, if not beside everything else.
    pub data: Option<PathBuf>,
    /// The last router asks a DNS server of its own.
    pub second_dns: bool,
    /// Other programs than this build's worker, by worker.
    pub worker_binaries: Vec<PathBuf>,
    /// Where each worker runs, if not at loopback addresses.
    pub places: Vec<Place>,
    /// Where workers at such places find DNS and the backend.
    pub host: IpAddr,
}

/// A worker's own network.
#[derive(Debug, Clone)]
pub struct Place {
    pub namespace: String,
    pub address: IpAddr,
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
            policies: "  - {name: all, type: always_sample}\n",
            data: None,
            second_dns: false,
            worker_binaries: Vec::new(),
            places: Vec::new(),
            host: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// A router or a worker; may be started again.
pub struct Tier {
    pub name: String,
    binary: PathBuf,
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
    /// Each answers as long as it lives; the second one only the last router.
    pub dns: DnsServer,
    pub second_dns: Option<DnsServer>,
    /// Whether DNS hears of it when workers come and go.
    pub dns_hears: bool,
    places: Vec<Place>,
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

    /// Without its addresses.
    fn own_args(&self) -> Vec<String> {
        let addresses = self.args.iter().position(|it| it == "--listen-peers");
        self.args[..addresses.expect("of a worker")].to_vec()
    }

    /// The same command once more: same name, ports and directory.
    pub fn start_again(&mut self) {
        self.process = Process::start(&self.binary, &self.args, &self.dir, &self.name);
    }

    /// SIGTERM, and ended well.
    pub async fn stop(&mut self, within: Duration) {
        self.process.signal(Signal::TERM);
        let status = self.process.exit(within).await;
        assert!(status.success(), "{status}: {}", self.process.stderr());
    }

    /// SIGKILL, and certainly dead.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.exit(PATIENCE).await;
    }
}

pub fn member_name(number: usize) -> String {
    format!("worker-{number}.workers.obs.svc.cluster.local")
}

/// Another one of 127.0.0.x each time, as a pod that is made anew has another address.
fn next_loopback() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 0, 0, 2 + turn % 250).into()
}

impl Cluster {
    pub async fn start(plan: Plan) -> Self {
        let turn = TURN.lock().await;
        // Not the temporary directory, which may be memory: a log belongs on a disk.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let policies = dir.path().join("policies.yaml");
        let wait = plan.decision_wait;
        let text = format!("decision_wait: {wait}\npolicies:\n{}", plan.policies);
        std::fs::write(&policies, text).unwrap();
        let data = plan.data.unwrap_or_default();
        let scheme = if plan.exports_http { "http" } else { "grpc" };
        let second_dns = match plan.second_dns {
            true => Some(DnsServer::start().await),
            false => None,
        };
        let mut cluster = Self {
            workers: Vec::new(),
            routers: Vec::new(),
            sink: None,
            sink_address: free_address_at(plan.host),
            exports_http: plan.exports_http,
            dns: DnsServer::start_at(plan.host).await,
            second_dns,
            dns_hears: true,
            places: plan.places,
            dir,
            _turn: turn,
        };
        for number in 0..plan.workers {
            let mut args = vec![
                "--name".to_owned(),
                member_name(number),
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
            let binary = plan.worker_binaries.get(number);
            let binary = binary.map_or(Path::new(WORKER), PathBuf::as_path);
            let worker = cluster.worker(number, binary, args);
            cluster.workers.push(worker);
        }
        cluster.list_workers();
        if let Some(dns) = &cluster.second_dns {
            cluster.list_workers_at(dns, cluster.workers.len());
        }
        for number in 0..plan.routers {
            let args = plan.router_args.iter().map(|&arg| arg.to_owned()).collect();
            let is_last = number + 1 == plan.routers;
            let dns = cluster.second_dns.as_ref().filter(|_| is_last);
            let router = cluster.router(number, dns.unwrap_or(&cluster.dns), args);
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

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn router(&self, number: usize, dns: &DnsServer, mut args: Vec<String>) -> Tier {
        let at = free_address;
        let (grpc, http, admin) = (at(), at(), at());
        args.extend(shared_args(dns, grpc, http, admin));
        let name = format!("router-{number}");
        Tier {
            process: Process::start(ROUTER, &args, self.dir.path(), &name),
            name,
            binary: ROUTER.into(),
            args,
            grpc,
            http,
            admin,
            peers: grpc,
            dir: self.dir.path().to_owned(),
        }
    }

    /// A worker at addresses of its own.
    fn worker(&self, number: usize, binary: &Path, mut args: Vec<String>) -> Tier {
        let place = self.places.get(number);
        let ip = place.map_or_else(next_loopback, |place| place.address);
        let at = |port| match place {
            Some(_) => SocketAddr::new(ip, port),
            None => free_address_at(ip),
        };
        let (grpc, http, admin, peers) = (at(4317), at(4318), at(9464), at(4319));
        args.extend(["--listen-peers".to_owned(), peers.to_string()]);
        args.extend(shared_args(&self.dns, grpc, http, admin));
        let mut binary = binary.to_owned();
        if let Some(place) = place {
            let inside = ["netns", "exec", &place.namespace];
            let inside = inside.map(str::to_owned).into_iter();
            let program = binary.to_string_lossy().into_owned();
            args = inside.chain([program]).chain(args).collect();
            binary = "ip".into();
        }
        let name = format!("worker-{number}");
        Tier {
            process: Process::start(&binary, &args, self.dir.path(), &name),
            name,
            binary,
            args,
            grpc,
            http,
            admin,
            peers,
            dir: self.dir.path().to_owned(),
        }
    }

    /// DNS says these workers from now on, if it hears of it.
    pub fn list_workers(&self) {
        if self.dns_hears {
            self.list_workers_at(&self.dns, self.workers.len());
        }
    }

    /// The first `count` workers, where they are.
    pub fn list_workers_at(&self, dns: &DnsServer, count: usize) {
        let names: Vec<String> = (0..count).map(member_name).collect();
        let named = || names.iter().map(String::as_str).zip(&self.workers);
        dns.set_targets(
            PEER_SERVICE,
            named().map(|(name, worker)| (name, worker.peers.port())),
        );
        let records: Vec<_> = named().map(|(name, worker)| (name, worker.grpc)).collect();
        dns.set_records(SERVICE, &records);
    }

    /// DNS says that a worker is elsewhere, whatever is there.
    pub fn list_elsewhere(&self, liar: &DnsServer, worker: usize, grpc: SocketAddr, peers: u16) {
        let names: Vec<String> = (0..self.workers.len()).map(member_name).collect();
        let entries = names.iter().zip(&self.workers).enumerate();
        let entries: Vec<_> = entries
            .map(|(number, (name, at))| {
                let is_lie = number == worker;
                let grpc = if is_lie { grpc } else { at.grpc };
                let peers = if is_lie { peers } else { at.peers.port() };
                (name.as_str(), grpc, peers)
            })
            .collect();
        liar.set_targets(PEER_SERVICE, entries.iter().map(|it| (it.0, it.2)));
        let records: Vec<_> = entries.iter().map(|it| (it.0, it.1)).collect();
        liar.set_records(SERVICE, &records);
    }

    /// A worker that has ended comes back with its name and data, and all its addresses are others.
    pub fn start_elsewhere(&mut self, worker: usize) {
        let args = self.workers[worker].own_args();
        self.workers[worker] = self.worker(worker, Path::new(WORKER), args);
        self.list_workers();
    }

    /// One worker more, as the others are.
    pub fn start_another(&mut self) -> usize {
        let number = self.workers.len();
        let worker = self.like_the_first(number, &format!("data-{number}"));
        self.workers.push(worker);
        self.list_workers();
        number
    }

    /// A second process with the name of a worker, and an empty data dir of its own.
    pub fn start_twin(&self, worker: usize) -> Tier {
        self.like_the_first(worker, &format!("data-{worker}-of-twin"))
    }

    fn like_the_first(&self, number: usize, data: &str) -> Tier {
        let of_first = self.workers[0].own_args();
        let args = of_first.into_iter().map(|arg| match &arg[..] {
            arg if arg == member_name(0) => member_name(number),
            arg if arg.ends_with("data-0") => arg.replace("data-0", data),
            _ => arg,
        });
        self.worker(number, Path::new(WORKER), args.collect())
    }

    /// A worker of another cluster, alone in it, at these addresses.
    pub async fn start_stranger(&self, name: &str, grpc: SocketAddr, peers: SocketAddr) -> Tier {
        let (http, admin) = (free_address(), free_address());
        let alone = format!("static://{name}={grpc}/{}", peers.port());
        let args: Vec<String> = [
            ("--name", name.to_owned()),
            ("--cluster", "another".to_owned()),
            ("--data-dir", format!("data-of-{name}")),
            ("--export", "grpc://127.0.0.1:9".to_owned()),
            ("--log-max-bytes", (4_u64 << 30).to_string()),
            ("--workers", alone),
            ("--listen-grpc", grpc.to_string()),
            ("--listen-http", http.to_string()),
            ("--listen-admin", admin.to_string()),
            ("--listen-peers", peers.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        let mut tier = Tier {
            process: Process::start(WORKER, &args, self.dir.path(), name),
            name: name.to_owned(),
            binary: WORKER.into(),
            args,
            grpc,
            http,
            admin,
            peers,
            dir: self.dir.path().to_owned(),
        };
        tier.ready().await;
        tier
    }

    /// Starts the backend, or starts it again with the same books and address.
    pub async fn start_sink(&mut self, args: &[&str]) {
        assert!(self.sink.is_none(), "one backend at a time");
        let listen = self.sink_address.to_string();
        let elsewhere = free_address_at(self.sink_address.ip()).to_string();
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

fn shared_args(
    dns: &DnsServer,
    grpc: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
) -> impl Iterator<Item = String> {
    let workers = format!("srv://{SERVICE}?nameserver={}", dns.address());
    let shared = [
        ("--workers", workers),
        ("--listen-grpc", grpc.to_string()),
        ("--listen-http", http.to_string()),
        ("--listen-admin", admin.to_string()),
    ];
    let shared = shared.into_iter();
    shared.flat_map(|(flag, value)| [flag.to_owned(), value])
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
