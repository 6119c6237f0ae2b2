//! `tailring check`: whether a worker would take a policy file, and what it makes of it. Reading and
//! compiling are the worker's own.

mod report;

use std::process::ExitCode;

use crate::app::cli::EXIT_USAGE;
use crate::app::settings::{Machine, load_policies};

pub use report::{Checked, Refused};

/// Says whether a policy file is valid, and what a worker makes of it.
///
/// FILE is what a worker takes for --policies: a tail_sampling block, bare or inside a whole Collector
/// configuration. Printed are, for each policy, what it looks at, what settles its answer before a trace is
/// complete, what is approximate about it, and the notices that a worker logs at its start. Nothing is
/// started and nothing is asked of any other process.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Exit codes: 0 when a worker would take the file; 64 when it would not, with every mistake.

Examples:
  tailring check policies.yaml
  tailring check collector.yaml --output json | jq -r '.policies[].name'")]
pub struct CheckArgs {
    /// The policy file.
    #[arg(value_name = "FILE")]
    pub file: String,
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t = CheckOutput::Text)]
    pub output: CheckOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckOutput {
    /// Tables; mistakes go to stderr.
    Text,
    /// One JSON object, of a refused file too.
    Json,
}

/// The subcommand.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { file, output } = args;
    match load_policies(&Machine, &file) {
        Ok(parsed) => {
            let checked = Checked::new(&file, &parsed);
            print(&match output {
                CheckOutput::Text => checked.to_text(),
                CheckOutput::Json => serde_json::to_string_pretty(&checked)? + "\n",
            });
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            match output {
                CheckOutput::Text => complain(&file, &error.describe(&file)),
                CheckOutput::Json => {
                    let refused = Refused::new(&file, &error);
                    print(&(serde_json::to_string_pretty(&refused)? + "\n"));
                }
            }
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

#[allow(clippy::print_stdout, reason = "a tool for people answers on stdout")]
fn print(text: &str) {
    print!("{text}");
}

#[allow(clippy::print_stderr, reason = "a tool for people complains on stderr")]
fn complain(file: &str, problem: &str) {
    eprintln!("tailring check: {file} {}", problem.replace('\n', "\n  "));
}
