//! Where everything is put together: settings, logs, the admin pages, signals, the two tiers, and
//! the tools that load them and check what came of it.
//!
//! A process goes one way: arguments as written → settings as meant (all mistakes at once, exit
//! 64) → logs → signals → the tier → drained → exit 0. Nothing below this folder reads a setting,
//! an environment variable or a signal.

pub mod admin;
pub mod cli;
pub mod demo;
pub mod inspect;
pub mod interrupt;
pub mod ledger;
pub mod load;
pub mod log_rate;
mod otlp;
mod peers;
pub mod process_metrics;
mod router;
pub mod settings;
pub mod signals;
pub mod sink;
pub mod telemetry;
mod tier;
pub mod verify;
mod worker;

use std::future::Future;
use std::process::ExitCode;

use tokio::sync::watch;
use tracing::{error, info};

use crate::app::cli::{Command, EXIT_IO_ERROR, EXIT_USAGE, ToolArgs};
use crate::app::settings::{
    Machine, RouterArgs, RouterConfig, WorkerArgs, WorkerConfig, WrongSettings,
};
use crate::app::telemetry::LogFilter;

/// `tailring-router`.
pub fn router_main(args: &RouterArgs) -> ExitCode {
    with_settings(
        "tailring-router",
        RouterConfig::of(args, &Machine),
        |config| {
            let log = config.shared.log.clone();
            run(&log, |stopping| router::run(config, stopping))
        },
    )
}

/// `tailring-worker`.
pub fn worker_main(args: &WorkerArgs) -> ExitCode {
    with_settings(
        "tailring-worker",
        WorkerConfig::of(args, &Machine),
        |config| {
            let log = config.shared.log.clone();
            run(&log, |stopping| worker::run(config, stopping))
        },
    )
}

/// `tailring`.
pub fn tool_main(args: ToolArgs) -> ExitCode {
    match args.command {
        Command::Demo(args) => run_tool(demo::run(*args)),
        Command::DemoService(args) => demo::service_main(*args),
        Command::Router(args) => router_main(&args),
        Command::Worker(args) => worker_main(&args),
        Command::Load(args) => run_tool(load::run(*args)),
        Command::Sink(args) => run_tool(sink::run(*args)),
        Command::Verify(args) => run_tool(verify::run(*args)),
        Command::Log(args) => run_tool(inspect::run(*args)),
    }
}

/// A tool talks to people on stdout; its log is only what went wrong underneath.
fn run_tool(tool: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let outcome = telemetry::start(&LogFilter::warnings())
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(tokio::runtime::Runtime::new()?))
        .and_then(|runtime| {
            let outcome = runtime.block_on(tool);
            runtime.shutdown_background();
            outcome
        });
    outcome.unwrap_or_else(|failure| {
        complain(&format!("tailring: {failure:#}"));
        ExitCode::FAILURE
    })
}

fn with_settings<C>(
    binary: &str,
    settings: Result<C, WrongSettings>,
    run: impl FnOnce(C) -> ExitCode,
) -> ExitCode {
    match settings {
        Ok(config) => run(config),
        Err(wrong) => {
            complain(&format!("{binary}: {wrong}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Logs, signals and a runtime around a tier.
fn run<F>(log: &LogFilter, tier: impl FnOnce(watch::Receiver<bool>) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let rate = match telemetry::start(log) {
        Ok(rate) => rate,
        Err(error) => {
            complain(&format!("logs cannot be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        let reporter = tokio::spawn(telemetry::report_suppressed(rate.clone()));
        let (stopping, signals) = signals::spawn()?;
        let outcome = tier(stopping).await;
        signals.abort();
        reporter.abort();
        outcome
    });
    // What still sits in a blocking call after the drain is given up with the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            error!("{failure:#}");
            if failure.is::<worker::SyncFailed>() {
                ExitCode::from(EXIT_IO_ERROR)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "before logs are set up there is only stderr, and a report of settings is for people"
)]
fn complain(text: &str) {
    eprintln!("{text}");
}
