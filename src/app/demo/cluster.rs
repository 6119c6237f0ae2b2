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

/// A router or a worker, ready.
#[derive(Debug)]
pub(super) struct Member {
    process: Process,
    pub(super) otlp: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// Everything but the fleet. Processes are killed and files removed on drop, in this order.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) routers: Vec<Member>,
    pub(super) workers: Vec<Member>,
    pub(super) backend: Process,
    dns: Process,
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
        let policy_file = files.path("policies.yaml");
        std::fs::write(&policy_file, policies).context("the policy file")?;

        let mut dns = Process::start("the DNS server", &["dns".into()], files.dir())?;
        let mut backend = start_backend(&files)?;
        let nameserver = dns.address("listening for DNS").await?;
        let backend_address = backend.address("listening for OTLP/gRPC").await?;
        let source = format!(
            "srv://{}?nameserver={nameserver}",
            SERVICE.trim_end_matches('.')
        );

        let host = |number| format!("worker-{number}.workers.demo.svc.cluster.local");
        let mut starting = Vec::new();
        for number in 0..WORKERS {
            let name = format!("worker {number}");
            let data_dir = files.path(&format!("worker-{number}"));
            let mut arguments: Vec<String> = ["worker", "--name", &host(number)]
                .map(String::from)
                .to_vec();
            arguments.extend(["--policies".into(), text(&policy_file)]);
            arguments.extend(["--data-dir".into(), text(&data_dir)]);
            arguments.extend(["--export".into(), format!("grpc://{backend_address}")]);
            arguments.extend(["--listen-peers".into(), "127.0.0.1:0".into()]);
            arguments.extend(shared(&source));
            starting.push(Process::start(&name, &arguments, files.dir())?);
        }
        let mut workers = addressed(starting).await?;
        let mut peers = Vec::new();
        for worker in &mut workers {
            peers.push(worker.process.address("listening for peers").await?);
        }
        let otlp = workers.iter().map(|worker| worker.otlp);
        let service = |name: &str, addresses: Vec<SocketAddr>| Service {
            name: name.into(),
            targets: addresses
                .into_iter()
                .enumerate()
                .map(|(number, address)| (host(number) + ".", address))
                .collect(),
        };
        let records = Records {
            services: vec![
                service(SERVICE, otlp.collect()),
                service(PEER_SERVICE, peers),
            ],
        };
        dns.write_line(&serde_json::to_string(&records)?)?;

        let mut starting = Vec::new();
        for number in 0..ROUTERS {
            let name = format!("router {number}");
            let mut arguments = vec!["router".into()];
            arguments.extend(shared(&source));
            starting.push(Process::start(&name, &arguments, files.dir())?);
        }
        let mut cluster = Self {
            routers: addressed(starting).await?,
            workers,
            backend,
            dns,
            files,
        };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// An error when one of the processes has ended.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        self.dns.check().await?;
        self.backend.check().await?;
        for member in self.workers.iter_mut().chain(&mut self.routers) {
            member.process.check().await?;
        }
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_WITHIN;
        let members = self.workers.iter().chain(&self.routers);
        let waiting: Vec<_> = members.map(|member| member.admin).collect();
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
