//! The processes of the demo, in the order in which they need each other: DNS and the backend,
//! workers, routers. Each takes the port that the kernel gives it and says which.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use super::dns::{Records, Service};
use super::page;
use super::process::Process;
use super::service;

pub(super) const WORKERS: usize = 3;
pub(super) const ROUTERS: usize = 2;

const SERVICE: &str = "_otlp-grpc._tcp.workers.demo.svc.cluster.local.";
const PEER_SERVICE: &str = "_tailring-peer._tcp.workers.demo.svc.cluster.local.";
const READY_WITHIN: Duration = Duration::from_secs(30);
const ASKS_EVERY: Duration = Duration::from_millis(50);
/// Logs take 64 MiB at a time for each core of each worker: not for a /tmp that is memory.
const LARGE_TEMPORARY_FILES: &str = "/var/tmp";

/// A router, ready.
#[derive(Debug)]
pub(super) struct Member {
    process: Process,
    pub(super) otlp: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// A worker in its present life, or where the next one is awaited.
#[derive(Debug)]
pub(super) struct Worker {
    process: Process,
    otlp: SocketAddr,
    peers: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Somebody means it to end, or it has ended because of that.
    is_leaving: bool,
}

/// Everything but the fleet. Processes are killed and files removed on drop, in this order.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) routers: Vec<Member>,
    pub(super) workers: Vec<Worker>,
    pub(super) backend: Process,
    dns: Process,
    source: String,
    backend_address: SocketAddr,
    pub(super) files: Files,
}

/// The demo's directory; removed on drop.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Where TMPDIR says, else on the disk.
    pub(super) fn make() -> anyhow::Result<Self> {
        let large = Path::new(LARGE_TEMPORARY_FILES);
        let place = if std::env::var_os("TMPDIR").is_none() && large.is_dir() {
            large.to_owned()
        } else {
            std::env::temp_dir()
        };
        let number: u32 = rand::rng().random();
        let name = format!("tailring-demo-{}-{number:08x}", std::process::id());
        let dir = place.join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("{} cannot be made; set TMPDIR", dir.display()))?;
        Ok(Self { dir })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn policies(&self) -> PathBuf {
        self.path("policies.yaml")
    }

    pub(super) fn sent_ledger(&self) -> PathBuf {
        self.path("sent.ledger")
    }

    pub(super) fn got_ledger(&self) -> PathBuf {
        self.path("got.ledger")
    }

    /// Moves the traces that the backend has to where they outlive the demo.
    pub(super) fn keep_traces(&self) -> io::Result<PathBuf> {
        let mut kept = self.dir.clone().into_os_string();
        kept.push("-kept.jsonl");
        std::fs::rename(self.kept_traces(), &kept)?;
        Ok(kept.into())
    }

    fn kept_traces(&self) -> PathBuf {
        self.path("kept.jsonl")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        service::remove(&self.dir);
    }
}

impl Cluster {
    /// Returns when all of them may get traffic and know each other.
    pub(super) async fn start(policies: &str) -> anyhow::Result<Self> {
        let files = Files::make()?;
        std::fs::write(files.policies(), policies).context("the policy file")?;

        let mut dns = Process::start("the DNS server", &["dns".into()], files.dir())?;
        let mut backend = start_backend(&files)?;
        let nameserver = dns.address("listening for DNS").await?;
        let backend_address = backend.address("listening for OTLP/gRPC").await?;
        let source = format!(
            "srv://{}?nameserver={nameserver}",
            SERVICE.trim_end_matches('.')
        );
        let mut cluster = Self {
            routers: Vec::new(),
            workers: Vec::new(),
            backend,
            dns,
            source,
            backend_address,
            files,
        };
        let mut starting = Vec::new();
        for number in 0..WORKERS {
            starting.push(cluster.start_worker(number)?);
        }
        for process in starting {
            let worker = Worker::of(process).await?;
            cluster.workers.push(worker);
        }
        cluster.publish()?;

        let mut starting = Vec::new();
        for number in 0..ROUTERS {
            let name = format!("router {number}");
            let mut arguments = vec!["router".into()];
            arguments.extend(shared(&cluster.source));
            starting.push(Process::start(&name, &arguments, cluster.files.dir())?);
        }
        cluster.routers = addressed(starting).await?;
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    fn start_worker(&self, number: usize) -> anyhow::Result<Process> {
        let files = &self.files;
        let arguments: Vec<String> = [
            "worker".into(),
            "--name".into(),
            host(number),
            "--policies".into(),
            text(&files.policies()),
            "--data-dir".into(),
            text(&files.path(&format!("worker-{number}"))),
            "--export".into(),
            format!("grpc://{}", self.backend_address),
            "--listen-peers".into(),
            "127.0.0.1:0".into(),
        ]
        .into_iter()
        .chain(shared(&self.source))
        .collect();
        Process::start(&format!("worker {number}"), &arguments, files.dir())
    }

    /// Tells DNS where the workers are. Those that are away stay listed where they were, as a DNS server has it that
    /// has not heard yet.
    fn publish(&mut self) -> anyhow::Result<()> {
        let service = |name: &str, address: fn(&Worker) -> SocketAddr| Service {
            name: name.into(),
            targets: self
                .workers
                .iter()
                .enumerate()
                .map(|(number, worker)| (host(number) + ".", address(worker)))
                .collect(),
        };
        let records = Records {
            services: vec![
                service(SERVICE, |worker| worker.otlp),
                service(PEER_SERVICE, |worker| worker.peers),
            ],
        };
        self.dns.write_line(&serde_json::to_string(&records)?)
    }

    /// Asks a worker to hand over and stop.
    pub(super) fn ask_to_stop(&mut self, worker: usize) -> anyhow::Result<()> {
        self.workers[worker].is_leaving = true;
        self.workers[worker].process.ask_to_stop()
    }

    pub(super) fn kill(&mut self, worker: usize) -> anyhow::Result<()> {
        self.workers[worker].is_leaving = true;
        self.workers[worker].process.kill()
    }

    /// Whether a worker that was asked to stop has stopped; an error if it did not stop well.
    pub(super) async fn has_stopped(&mut self, worker: usize) -> anyhow::Result<bool> {
        self.workers[worker].process.has_ended().await
    }

    /// Its next life, with its data, at other addresses; a new worker where there is none of this number.
    pub(super) async fn start_again(&mut self, number: usize) -> anyhow::Result<()> {
        let process = self.start_worker(number)?;
        let worker = Worker::of(process).await?;
        match self.workers.get_mut(number) {
            Some(place) => *place = worker,
            None => self.workers.push(worker),
        }
        self.publish()
    }

    /// An error when one of the processes has ended.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        self.dns.check().await?;
        self.backend.check().await?;
        let workers = self.workers.iter_mut().filter(|it| !it.is_leaving);
        let workers = workers.map(|worker| &mut worker.process);
        let routers = self.routers.iter_mut().map(|router| &mut router.process);
        for process in workers.chain(routers) {
            process.check().await?;
        }
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_WITHIN;
        let workers = self.workers.iter().map(|worker| worker.admin);
        let routers = self.routers.iter().map(|router| router.admin);
        let waiting: Vec<_> = workers.chain(routers).collect();
        for admin in waiting {
            while !page::is_ready(admin, WORKERS).await {
                self.check().await?;
                if Instant::now() > until {
                    bail!(
                        "the workers and routers did not find each other within {READY_WITHIN:?}"
                    );
                }
                sleep(ASKS_EVERY).await;
            }
        }
        Ok(())
    }
}

impl Worker {
    async fn of(mut process: Process) -> anyhow::Result<Self> {
        Ok(Self {
            admin: process.address("listening for the operator").await?,
            otlp: process.address("listening for OTLP").await?,
            peers: process.address("listening for peers").await?,
            process,
            is_leaving: false,
        })
    }

    /// Whether it is there and nobody wants it away.
    pub(super) fn is_there(&self) -> bool {
        !self.is_leaving
    }
}

fn host(number: usize) -> String {
    format!("worker-{number}.workers.demo.svc.cluster.local")
}

fn start_backend(files: &Files) -> anyhow::Result<Process> {
    let arguments = [
        "sink".into(),
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--ledger".into(),
        text(&files.got_ledger()),
        "--traces".into(),
        text(&files.kept_traces()),
        // Says where it listens on stderr.
        "--output".into(),
        "json".into(),
    ];
    Process::start("the backend", &arguments, files.dir())
}

fn shared(source: &str) -> Vec<String> {
    [
        "--workers",
        source,
        "--listen-grpc",
        "127.0.0.1:0",
        "--listen-http",
        "127.0.0.1:0",
        "--listen-admin",
        "127.0.0.1:0",
        "--log",
        "info",
    ]
    .map(String::from)
    .to_vec()
}

/// Paths are ours or the user's TMPDIR; one that is no text is caught when it cannot be opened.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

async fn addressed(processes: Vec<Process>) -> anyhow::Result<Vec<Member>> {
    let mut members = Vec::new();
    for mut process in processes {
        let admin = process.address("listening for the operator").await?;
        let otlp = process.address("listening for OTLP").await?;
        members.push(Member {
            process,
            otlp,
            admin,
        });
    }
    Ok(members)
}
