//! The services of `service.py` and `service.js` as processes, with the environment that the README gives them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::books::Books;
use crate::installation::{Installation, Tier};
use crate::process::{PATIENCE, Process, until};
use crate::toolkit::Language;

/// For all turns of one run.
const PLAYED: Duration = Duration::from_secs(60);

pub struct Fleet {
    language: Language,
    variables: Vec<(String, String)>,
    dir: PathBuf,
    planner: String,
    servers: Vec<Process>,
}

/// The variables of the README for this protocol, with the router's addresses for those of its example.
fn variables_of_the_readme(protocol: &str, router: &Tier) -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let (_, section) = readme.split_once("## Pointing an SDK at it\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let wanted = format!("_PROTOCOL={protocol}");
    let lines = block.lines().filter(|line| {
        !line.contains("_PROTOCOL=") || line.split(' ').any(|word| word.ends_with(&wanted))
    });
    let words = lines.flat_map(|line| line.strip_prefix("export ").unwrap().split(' '));
    let variables: Vec<_> = words
        .map(|word| {
            let (name, value) = word.split_once('=').unwrap();
            let value = value
                .replace("127.0.0.1:4317", &router.grpc.to_string())
                .replace("127.0.0.1:4318", &router.http.to_string());
            (name.to_owned(), value)
        })
        .collect();
    for name in ["ENDPOINT", "PROTOCOL", "SAMPLER"] {
        let named = variables.iter().filter(|(key, _)| key.ends_with(name));
        assert_eq!(named.count(), 1, "{name} for {protocol} in {block}");
    }
    variables
}

impl Fleet {
    pub async fn start(language: Language, protocol: &str, installation: &Installation) -> Self {
        let mut fleet = Self {
            language,
            variables: variables_of_the_readme(protocol, installation.router()),
            dir: installation.dir.path().to_owned(),
            planner: String::new(),
            servers: Vec::new(),
        };
        let models = fleet.serve("models", "model-gateway", &[]).await;
        let tools = fleet.serve("tools", "mcp-tools", &[]).await;
        let peers = ["--models", &models, "--tools", &tools];
        fleet.planner = fleet.serve("planner", "planner", &peers).await;
        fleet
    }

    fn command(&self, service: &str, args: &[&str]) -> Command {
        let mut command = self.language.service();
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            // Python's gRPC and HTTP would ask a proxy for 127.0.0.1, too.
            if upper.starts_with("OTEL_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.envs(self.variables.iter().cloned());
        command.env("OTEL_SERVICE_NAME", service);
        command.env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        );
        // The SDKs hold spans back for 5 s: less waiting for the tests.
        command.env("OTEL_BSP_SCHEDULE_DELAY", "300");
        command.args(args);
        command
    }

    /// Its URL.
    async fn serve(&mut self, role: &str, service: &str, args: &[&str]) -> String {
        let args = [&[role], args].concat();
        let mut process = Process::spawn(self.command(service, &args), &self.dir, service);
        let port = until(&format!("{service} listens"), PATIENCE, async || {
            if let Some(status) = process.exited() {
                panic!("{service} ended with {status}: {}", process.stderr());
            }
            let said = process.stdout();
            let (line, _) = said.split_once('\n')?;
            let line: Value = serde_json::from_str(line).unwrap();
            Some(line["listening"].as_u64().unwrap())
        })
        .await;
        self.servers.push(process);
        format!("http://127.0.0.1:{port}")
    }

    /// The books of the service in front, which has these variables besides.
    pub async fn play(&self, turns: usize, more: &[(&str, &str)]) -> Books {
        static RUN: AtomicUsize = AtomicUsize::new(0);
        let name = format!("assistant-{}", RUN.fetch_add(1, Ordering::Relaxed));
        let turns = turns.to_string();
        let args = ["play", "--turns", &turns, "--planner", &self.planner];
        let mut command = self.command("assistant", &args);
        command.envs(more.iter().copied());
        ended(Process::spawn(command, &self.dir, &name)).await
    }

    /// Ends the servers, which send what they still have.
    pub async fn stop(self) -> Vec<Books> {
        let mut books = Vec::new();
        for server in self.servers {
            server.signal(Signal::TERM);
            books.push(ended(server).await);
        }
        books
    }
}

async fn ended(mut process: Process) -> Books {
    let status = process.exit(PLAYED).await;
    let said = process.stdout();
    let shown = said.rfind("\"exported\"").map_or("", |at| &said[at..]);
    assert!(status.success(), "{status}: {shown}{}", process.stderr());
    Books::parse(said.lines().last().unwrap())
}
