//! Real processes under measurement: null servers, routers, workers, and the load that `tailring load` sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Of workers, unless the bench says otherwise.
pub(crate) const DROP_RETAIN_SECONDS: u64 = 10;
pub(crate) const CONNECTIONS: &str = "4";

#[derive(Clone, Copy)]
pub(crate) enum Cpu {
    Measured,
    Others,
}

pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
}

fn pinned(program: &str, cpu: Cpu) -> Command {
    let cpu = match cpu {
        Cpu::Measured => "0",
        Cpu::Others => "1",
    };
    let two = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() >= 2);
    if two
        && Command::new("taskset")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok()
    {
        let mut command = Command::new("taskset");
        command.args(["-c", cpu, program]);
        command
    } else {
        Command::new(program)
    }
}

pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

pub(crate) fn null_server(prost: bool, cpu: Cpu) -> Process {
    null_server_at(free_port(), prost, cpu)
}

pub(crate) fn null_server_at(grpc: SocketAddr, prost: bool, cpu: Cpu) -> Process {
    let admin = free_port();
    let bench = std::env::current_exe().unwrap();
    let child = pinned(bench.to_str().unwrap(), cpu)
        .arg(if prost { "null-prost" } else { "null-raw" })
        .arg(format!("{grpc},{admin}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process { child, grpc, admin };
    process.wait_until("its port", |process| {
        TcpStream::connect(process.admin).is_ok()
    });
    process
}

/// A worker with 12 GiB for its log, unless `more` says otherwise.
pub(crate) fn worker(
    dir: &Path,
    policies: &Path,
    backend: SocketAddr,
    cpu: Cpu,
    more: &[(&str, &str)],
) -> Process {
    let worker = starting_worker(dir, policies, backend, cpu, more);
    worker.wait_ready();
    worker
}

/// Not ready yet.
pub(crate) fn starting_worker(
    dir: &Path,
    policies: &Path,
    backend: SocketAddr,
    cpu: Cpu,
    more: &[(&str, &str)],
) -> Process {
    let grpc = free_port();
    let (workers, data_dir) = (format!("static://worker-0={grpc}"), dir.join("log"));
    let export = format!("grpc://{backend}");
    let drop_retain = format!("{DROP_RETAIN_SECONDS}s");
    let mut flags = std::collections::BTreeMap::from([
        ("--name", "worker-0"),
        ("--workers", &workers),
        ("--policies", policies.to_str().unwrap()),
        ("--data-dir", data_dir.to_str().unwrap()),
        ("--log-max-bytes", "12GiB"),
        ("--drop-retain", &drop_retain),
        ("--export", &export),
    ]);
    flags.extend(more.iter().copied());
    let arguments: Vec<&str> = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag, value])
        .collect();
    Process::tailring_at("tailring-worker", &arguments, cpu, grpc)
}

/// A folder on the disk that the build is on; the system's folder for temporary files may be memory.
pub(crate) fn data_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tiers-{name}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

impl Process {
    pub(crate) fn tailring(program: &str, arguments: &[&str], cpu: Cpu) -> Self {
        Self::tailring_at(program, arguments, cpu, free_port())
    }

    fn tailring_at(program: &str, arguments: &[&str], cpu: Cpu, grpc: SocketAddr) -> Self {
        let admin = free_port();
        let http = free_port();
        let path = match program {
            "tailring-router" => env!("CARGO_BIN_EXE_tailring-router"),
            _ => env!("CARGO_BIN_EXE_tailring-worker"),
        };
        let peers: &[&str] = match program {
            "tailring-router" => &[],
            _ => &["--listen-peers", "127.0.0.1:0"],
        };
        let child = pinned(path, cpu)
            .args(arguments)
            .args(peers)
            .args(["--listen-grpc", &grpc.to_string()])
            .args(["--listen-http", &http.to_string()])
            .args(["--listen-admin", &admin.to_string()])
            .env("TAILRING_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, grpc, admin }
    }

    pub(crate) fn wait_ready(&self) {
        self.wait_until("/readyz", |process| {
            get(process.admin, "/readyz").is_some_and(|(status, _)| status == 200)
        });
    }

    pub(crate) fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = clock();
        while !condition(self) {
            assert!(
                started.elapsed() < Duration::from_secs(90),
                "waited 90 s for {what}"
            );
            rest(Duration::from_millis(50));
        }
    }

    pub(crate) fn metric(&self, line: &str) -> f64 {
        let Some((_, text)) = get(self.admin, "/metrics") else {
            return f64::NAN;
        };
        text.lines()
            .find_map(|candidate| candidate.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    pub(crate) fn null_spans(&self) -> f64 {
        get(self.admin, "/")
            .and_then(|(_, text)| text.trim().parse().ok())
            .unwrap_or(f64::NAN)
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the name in parentheses: state is field 3, utime 14, stime 15, in 10 ms ticks.
        let after = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    pub(crate) fn rss_anon(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        field(&std::fs::read_to_string(path).unwrap(), "RssAnon:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A `name: n kB` line, in bytes.
pub(crate) fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kilobytes| kilobytes * 1024)
}

/// `tailring load` at full speed until dropped.
pub(crate) struct Load {
    child: Child,
}

impl Load {
    pub(crate) fn start(to: SocketAddr) -> Self {
        Self::of(to, &["--rate", "max", "--connections", CONNECTIONS])
    }

    /// At so many spans a second.
    pub(crate) fn at(to: SocketAddr, rate: &str) -> Self {
        Self::of(to, &["--rate", rate, "--connections", CONNECTIONS])
    }

    /// The same over many connections, with 256 requests under way on each.
    pub(crate) fn flood(to: SocketAddr, rate: &str) -> Self {
        Self::of(to, &["--rate", rate, "--connections", "16"])
    }

    fn of(to: SocketAddr, arguments: &[&str]) -> Self {
        let child = load(to, &[&["--for", "300s"], arguments].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn load(to: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = pinned(env!("CARGO_BIN_EXE_tailring"), Cpu::Others);
    command
        .args([
            "load",
            "--to",
            &to.to_string(),
            "--shape",
            "agent",
            "--batch",
            "512",
        ])
        .args(arguments);
    command
}

/// Sends about so many spans within eight seconds (a rate that one core of a busy machine keeps)
/// and returns the bytes of their requests.
pub(crate) fn send(to: SocketAddr, spans: u64, seed: u64) -> f64 {
    let report = timed_load(to, &(spans / 8).to_string(), "8s", seed);
    report["counts"]["wire_bytes_acknowledged"]
        .as_f64()
        .unwrap()
}

/// The report of a load of which every batch that was sent was acknowledged. On a busy machine the
/// last ones may not have had their turn.
pub(crate) fn timed_load(to: SocketAddr, rate: &str, time: &str, seed: u64) -> serde_json::Value {
    let seed = seed.to_string();
    let fixed = ["--connections", CONNECTIONS, "--output", "json"];
    let given = ["--rate", rate, "--for", time, "--seed", &seed];
    let output = load(to, &[&fixed[..], &given].concat())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let counts = &report["counts"];
    let all = counts["batches_sent"] == counts["batches_acknowledged"];
    assert!(all, "the load failed: {text}");
    report
}

pub(crate) fn get(admin: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    // One write: the null servers read once, and what they leave unread resets the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status).ok()?;
    let code = status.split_whitespace().nth(1)?.parse().ok()?;
    let mut rest = String::new();
    reader.read_to_string(&mut rest).ok()?;
    let body = rest
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())?;
    Some((code, body))
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a window of real time is what is measured"
)]
pub(crate) fn rest(time: Duration) {
    std::thread::sleep(time);
}
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
