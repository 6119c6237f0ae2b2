//! The command lines of the three binaries.

use std::process::ExitCode;

use crate::app::check::CheckArgs;
use crate::app::demo::{DemoArgs, ServiceArgs};
use crate::app::explain::ExplainArgs;
use crate::app::inspect::LogArgs;
use crate::app::load::LoadArgs;
use crate::app::schema::SchemaArgs;
use crate::app::settings::{RouterArgs, WorkerArgs};
use crate::app::sink::SinkArgs;
use crate::app::verify::VerifyArgs;

/// sysexits' EX_USAGE: settings or usage are wrong, and trying again will not help.
pub const EXIT_USAGE: u8 = 64;
/// sysexits' EX_IOERR: a worker's disk failed to keep what it was given.
pub const EXIT_IO_ERROR: u8 = 74;

/// Keeps the traces worth keeping, whole
#[derive(clap::Parser, Debug)]
#[command(
    name = "tailring",
    version,
    after_long_help = "Exit codes: 0 when all is well, 64 when settings or usage are wrong, 1 for \
                       everything else; demo, load, log and verify explain their own."
)]
pub struct ToolArgs {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Demo(Box<DemoArgs>),
    Router(Box<RouterArgs>),
    Worker(Box<WorkerArgs>),
    Load(Box<LoadArgs>),
    Sink(Box<SinkArgs>),
    Verify(Box<VerifyArgs>),
    Log(Box<LogArgs>),
    Check(Box<CheckArgs>),
    Explain(Box<ExplainArgs>),
    Schema(SchemaArgs),
    #[command(hide = true)]
    DemoService(Box<ServiceArgs>),
}

/// Reads the command line; help, versions and mistakes are answered here.
pub fn parse<A: clap::Parser>() -> Result<A, ExitCode> {
    let matches = prepared(A::command()).try_get_matches();
    let args = matches.and_then(|mut matches| A::from_arg_matches_mut(&mut matches));
    args.map_err(|error| {
        // A closed stdout or stderr leaves nobody to tell.
        drop(error.print());
        if error.use_stderr() {
            ExitCode::from(EXIT_USAGE)
        } else {
            ExitCode::SUCCESS
        }
    })
}

/// Help is shown to others and pasted into issues: it names the environment's variables and not
/// what they hold. And `-1` is a wrong count, not an unknown flag.
fn prepared(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let takes_value = arg.get_action().takes_values();
            arg.hide_env_values(true)
                .allow_negative_numbers(takes_value)
        })
        .mut_subcommands(prepared)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// clap checks a command only when it is built, and a subcommand only when it is used.
    #[test]
    fn every_command_line_is_sound() {
        prepared(ToolArgs::command()).debug_assert();
    }
}
