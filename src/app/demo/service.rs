//! One service of the demo in a process of its own, tied to the process that started it: when that
//! one ends, however it ends, stdin does, and the service removes what the demo left and goes.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tokio::sync::mpsc;

use super::dns::{self, DnsArgs};
use super::fleet::{self, FleetArgs};
use crate::app::settings::{RouterArgs, WorkerArgs};
use crate::app::sink::{self, SinkArgs};
use crate::app::{router_main, run_tool, worker_main};

/// Runs one service of `tailring demo` until stdin ends
#[derive(Debug, Clone, clap::Args)]
pub struct ServiceArgs {
    /// Removed when stdin ends.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Service {
    Dns(DnsArgs),
    Sink(Box<SinkArgs>),
    Worker(Box<WorkerArgs>),
    Router(Box<RouterArgs>),
    Fleet(FleetArgs),
}

/// Lines of stdin that a service has not read yet.
const LINES_MAX: usize = 16;
/// A file that another service makes while the directory is being removed needs another try.
const REMOVALS_MAX: usize = 1000;

/// The hidden subcommand.
pub fn main(args: ServiceArgs) -> ExitCode {
    let (line, lines) = mpsc::channel(LINES_MAX);
    let dir = args.dir;
    let tether = std::thread::Builder::new()
        .name("tether".into())
        .spawn(move || {
            for text in std::io::stdin().lock().lines() {
                // Full or closed: nobody reads, which only the DNS server does.
                let (Ok(text), line) = (text, &line) else {
                    break;
                };
                line.try_send(text).unwrap_or(());
            }
            remove(&dir);
            std::process::exit(0);
        });
    if tether.is_err() {
        return ExitCode::FAILURE;
    }
    match args.service {
        Service::Dns(DnsArgs {}) => run_tool(dns::run(lines)),
        Service::Sink(args) => run_tool(sink::run(*args)),
        Service::Worker(args) => worker_main(&args),
        Service::Router(args) => router_main(&args),
        Service::Fleet(args) => run_tool(fleet::run(args)),
    }
}

/// Removes the directory with everything in it, as far as that is possible.
pub(super) fn remove(dir: &Path) {
    for _ in 0..REMOVALS_MAX {
        let removed = std::fs::remove_dir_all(dir);
        if removed.is_ok() || !dir.exists() {
            return;
        }
        std::thread::yield_now();
    }
}

/// What a service tells its starter, in the form of a log line of the two tiers.
#[expect(
    clippy::print_stderr,
    reason = "the starter reads it, and stdout belongs to results"
)]
pub(super) fn say(message: &str, address: SocketAddr) {
    #[derive(Serialize)]
    struct Line<'a> {
        message: &'a str,
        address: String,
    }
    let address = address.to_string();
    if let Ok(line) = serde_json::to_string(&Line { message, address }) {
        eprintln!("{line}");
    }
}
