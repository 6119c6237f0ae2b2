//! `tailring log inspect`: what lies in a worker's data dir, and what is wrong there. Reading it is
//! the log's business; what its records mean together is worked out in `census.rs`.

mod census;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::log::{ReadError, inspect};
use crate::model::SteadyClock;

use census::Census;
pub use report::Inspection;

/// Looks into the log of a worker.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    #[command(subcommand)]
    pub command: LogCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
pub enum LogCommand {
    Inspect(InspectArgs),
}

/// Shows segments, traces, live share and damage of a data dir.
///
/// Reads every byte of the log and writes nothing, so it may run beside the worker; what that worker
/// is writing at the moment may then show as a torn tail. Memory: about 50 bytes a fragment and 100 a trace.
/// Exit status: 0 when all records check (a torn tail is what a killed worker leaves, and no damage), 1
/// when something is damaged, 2 when the log cannot be read or a newer version wrote it.
#[derive(Debug, Clone, clap::Args)]
pub struct InspectArgs {
    /// The worker's --data-dir.
    pub dir: PathBuf,
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t = InspectOutput::Text)]
    pub output: InspectOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InspectOutput {
    /// Tables.
    Text,
    /// One JSON object.
    Json,
}

/// The subcommand.
pub async fn run(args: LogArgs) -> anyhow::Result<ExitCode> {
    let LogCommand::Inspect(InspectArgs { dir, output }) = args.command;
    let found = tokio::task::spawn_blocking(move || look(&dir)).await?;
    Ok(match found {
        Ok(inspection) => {
            print(&inspection, output)?;
            ExitCode::from(u8::from(inspection.is_damaged()))
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(2)
        }
    })
}

/// Reads a data dir as a worker would at its start.
pub fn look(dir: &Path) -> Result<Inspection, ReadError> {
    let mut census = Census::default();
    let facts = inspect(dir, &mut |record| census.take(record))?;
    let now = SteadyClock::start().now();
    Ok(Inspection::new(dir, facts, &census, now))
}

#[allow(clippy::print_stdout, reason = "a tool for people answers on stdout")]
fn print(inspection: &Inspection, output: InspectOutput) -> anyhow::Result<()> {
    match output {
        InspectOutput::Text => print!("{}", inspection.to_text()),
        InspectOutput::Json => println!("{}", serde_json::to_string_pretty(inspection)?),
    }
    Ok(())
}

#[allow(clippy::print_stderr, reason = "a tool for people complains on stderr")]
fn print_error(error: &ReadError) {
    eprintln!("tailring log inspect: {error}");
}
