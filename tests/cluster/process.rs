//! Real processes: started, watched through their admin pages, signalled, and gone with the test.
//!
//! What they say goes into files beside their data; a test that fails prints the ends of them.
#![allow(dead_code, reason = "tests/chaos uses it too, and each its own part")]

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

pub const TOOL: &str = env!("CARGO_BIN_EXE_tailring");
pub const ROUTER: &str = env!("CARGO_BIN_EXE_tailring-router");
pub const WORKER: &str = env!("CARGO_BIN_EXE_tailring-worker");

/// How long anything may take that is not the subject of a test.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a process's log a failed test shows.
const SHOWN_BYTES: usize = 4 << 10;

/// A running process; killed on drop.
pub struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// `name` names its files in `dir`; those of an earlier process of that name are kept on.
    pub fn start(binary: impl AsRef<OsStr>, args: &[String], dir: &Path, name: &str) -> Self {
        let mut command = mortal(binary.as_ref());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("TAILRING_") {
                command.env_remove(variable);
            }
        }
        command.args(args);
        Self::spawn(command, dir, name)
    }

    /// The same with an environment of its own.
    pub fn spawn(mut command: Command, dir: &Path, name: &str) -> Self {
        let out = dir.join(format!("{name}.out"));
        let err = dir.join(format!("{name}.err"));
        let log = File::options().create(true).append(true).open(&err);
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        Self {
            name: name.to_owned(),
            child,
            out,
            err,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub async fn exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        until(&what, within, async || self.exited()).await
    }

    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// A line of `/proc/PID/status`, in bytes.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let found = status.lines().find_map(|each| each.strip_prefix(line));
        let kilobytes = found.and_then(|rest| {
            rest.trim_matches(&[':', '\t', ' ', 'k', 'B'][..])
                .parse::<u64>()
                .ok()
        });
        kilobytes.unwrap_or_else(|| panic!("{line} in {status}")) << 10
    }

    /// From now on VmHWM is the peak since now.
    pub fn reset_memory_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.id()), "5").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whoever has ended cannot be killed; both are fine.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            for text in [self.stdout(), self.stderr()] {
                let mut start = text.len().saturating_sub(SHOWN_BYTES);
                while !text.is_char_boundary(start) {
                    start += 1;
                }
                if !text.is_empty() {
                    println!("--- {} ---\n{}", self.name, &text[start..]);
                }
            }
        }
    }
}

/// Whether processes die with the thread that starts them, also when it is killed and drops nothing:
/// where `setpriv` is installed (a part of util-linux).
pub fn dies_with_its_starter() -> bool {
    static HAS_SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        let mut asked = Command::new("setpriv");
        let asked = asked.args(["--pdeathsig", "KILL", "true"]).output();
        asked.is_ok_and(|output| output.status.success())
    });
    *HAS_SETPRIV
}

fn mortal(binary: &OsStr) -> Command {
    if !dies_with_its_starter() {
        return Command::new(binary);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(binary);
    command
}

/// Asks until there is an answer.
#[track_caller]
pub fn until<T>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let end = Instant::now() + within;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                Instant::now() < end,
                "{place}: waited {within:?} for this in vain: {what}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A port of 127.0.0.1 that is free now. Below those that outgoing connections take, so that a
/// process that was killed finds its own again.
pub fn free_address() -> SocketAddr {
    free_address_at(Ipv4Addr::LOCALHOST.into())
}

/// The same of another address of this machine.
pub fn free_address_at(ip: IpAddr) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 9_000) as u16;
    for _ in 0..10_000 {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (start + turn) % 10_000;
        let address = SocketAddr::new(ip, port);
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free from 20000 to 29999");
}

/// Status and body of an admin page; `None` while nobody answers.
pub async fn page(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let conversation = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(Duration::from_secs(2), conversation).await;
    let answer = answer.ok()?.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// What `/metrics` said at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scrape(String);

impl Scrape {
    pub async fn of(address: SocketAddr) -> Option<Self> {
        let (status, body) = page(address, "/metrics").await?;
        (status == 200).then_some(Self(body))
    }

    /// The sum of all series of that name with these labels (`fate="appended"`). Panics when there
    /// is none: a metric that is not there counts nothing.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let series = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let fits = found == name && labels.iter().all(|label| rest.contains(label));
            fits.then(|| value.parse::<f64>().unwrap())
        });
        let values: Vec<f64> = series.collect();
        assert!(!values.is_empty(), "no {name} {labels:?} in {}", self.0);
        values.iter().sum::<f64>() as u64
    }
}
