//! A child of the demo: this executable with other arguments. It says where it listens on stderr,
//! and it dies with us, because its stdin does (`service`).

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// From the start of a process to its address.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// From a request to stop to the end.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
const LOOKS_EVERY: Duration = Duration::from_millis(20);
/// What is shown of a child that ended by itself.
const LINES_KEPT: usize = 12;

/// A running child; killed on drop.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    /// Its end is the child's.
    stdin: ChildStdin,
    /// (message, address) pairs that it said; closed when its stderr is.
    addresses: watch::Receiver<Vec<(String, SocketAddr)>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// `arguments` begin with the name of the service; `dir` is removed by the child if we die.
    pub(super) fn start(name: &str, arguments: &[String], dir: &Path) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("where this executable is")?;
        let mut command = Command::new(&executable);
        for (variable, _) in std::env::vars_os() {
            // The demo is about itself, not about what somebody exported for another cluster.
            if variable.to_string_lossy().starts_with("TAILRING_") {
                command.env_remove(variable);
            }
        }
        let mut child = command
            .arg("demo-service")
            .arg("--dir")
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: {} cannot be started", executable.display()))?;
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let (found, addresses) = watch::channel(Vec::new());
        let last_lines = Arc::default();
        let process = Self {
            name: name.to_owned(),
            child,
            stdin: stdin.context("stdin was asked for")?,
            addresses,
            last_lines: Arc::clone(&last_lines),
        };
        let stderr = stderr.context("stderr was asked for")?;
        std::thread::Builder::new()
            .name(format!("hears {name}"))
            .spawn(move || listen(stderr, &found, &last_lines))?;
        Ok(process)
    }

    /// Waits until the child has said `message` with an address. Of a message that it says twice
    /// (once for each protocol) the first counts.
    pub(super) async fn address(&mut self, message: &str) -> anyhow::Result<SocketAddr> {
        let mut addresses = self.addresses.clone();
        let said = addresses.wait_for(|said| said.iter().any(|(what, _)| what == message));
        let found = match timeout(STARTS_WITHIN, said).await {
            Ok(Ok(said)) => said
                .iter()
                .find_map(|(what, address)| (what == message).then_some(*address)),
            // Its stderr ended: so did it.
            Ok(Err(_)) => None,
            Err(_) => bail!(
                "{} did not say \"{message}\" within {STARTS_WITHIN:?}{}",
                self.name,
                self.last_lines()
            ),
        };
        match found {
            Some(address) => Ok(address),
            None => Err(self.failure().await),
        }
    }

    pub(super) fn write_line(&mut self, line: &str) -> anyhow::Result<()> {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("{} reads no more", self.name))
    }

    /// Whether it has ended well; an error when it ended otherwise, with what it said last.
    pub(super) async fn has_ended(&mut self) -> anyhow::Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(_) => Err(self.failure().await),
        }
    }

    /// An error when it has ended, however.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        if self.has_ended().await? {
            return Err(self.failure().await);
        }
        Ok(())
    }

    /// Asks for an orderly end.
    pub(super) fn ask_to_stop(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .with_context(|| format!("{} cannot be asked to stop", self.name))
    }

    /// SIGKILL. Returns when it is gone.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks for an orderly end and waits for it.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        if !self.has_ended().await? {
            self.ask_to_stop()?;
        }
        match self.end().await? {
            status if status.success() => Ok(()),
            _ => Err(self.failure().await),
        }
    }

    async fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    return std::io::Result::Ok(status);
                }
                sleep(LOOKS_EVERY).await;
            }
        };
        match timeout(STOPS_WITHIN, ended).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end within {STOPS_WITHIN:?}", self.name),
        }
    }

    async fn failure(&mut self) -> anyhow::Error {
        match self.end().await {
            Ok(status) => anyhow!("{} ended ({status}){}", self.name, self.last_lines()),
            Err(error) => error,
        }
    }

    fn last_lines(&self) -> String {
        let lines = self.last_lines.lock();
        let lines = lines.unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return " and said nothing".into();
        }
        let lines: Vec<_> = lines.iter().map(|line| format!("  {line}")).collect();
        format!(". It said last:\n{}", lines.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Who has ended already cannot be killed; both are fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn listen(
    stderr: ChildStderr,
    found: &watch::Sender<Vec<(String, SocketAddr)>>,
    kept: &Mutex<VecDeque<String>>,
) {
    for line in BufReader::new(stderr).lines() {
        let Ok(line) = line else { return };
        if let Some(said) = address_in(&line) {
            found.send_modify(|addresses| addresses.push(said));
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

/// A log line that has an address (`{"message":"listening for OTLP","address":"127.0.0.1:5317"}`),
/// or what a sink says (`listening on 127.0.0.1:5317 for OTLP/gRPC`).
fn address_in(line: &str) -> Option<(String, SocketAddr)> {
    #[derive(serde::Deserialize)]
    struct Line {
        message: String,
        address: SocketAddr,
    }
    if let Some(rest) = line.strip_prefix("listening on ") {
        let (address, what) = rest.split_once(' ')?;
        return Some((format!("listening {what}"), address.parse().ok()?));
    }
    let line: Line = serde_json::from_str(line).ok()?;
    Some((line.message, line.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_what_services_say() {
        let address = "127.0.0.1:5317".parse().unwrap();
        assert_eq!(
            address_in(
                r#"{"timestamp":"2026","level":"INFO","message":"listening for OTLP","protocol":"grpc","address":"127.0.0.1:5317"}"#
            ),
            Some(("listening for OTLP".into(), address))
        );
        assert_eq!(
            address_in("listening on 127.0.0.1:5317 for OTLP/gRPC"),
            Some(("listening for OTLP/gRPC".into(), address))
        );
        assert_eq!(address_in("thread panicked at 127.0.0.1:5317"), None);
    }
}
