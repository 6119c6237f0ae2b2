//! `tailring explain`: what the policies of a file say of traces from a file, and why. Traces are read
//! by `traces`, judged by the worker's own rules, and shown by `report`.

mod report;
mod traces;

use std::process::ExitCode;

use crate::app::cli::EXIT_USAGE;
use crate::app::settings::{Machine, load_policies};

pub use report::Told;
pub use traces::{Traces, TracesError};

/// Says what the policies make of a trace, and why.
///
/// TRACES is OTLP/JSON: an ExportTraceServiceRequest, or several, one behind the other or a line each as
/// `tailring sink --traces` and a worker's `--export file:PATH` write them. They arrive in the order of the file.
///
/// Each trace is folded and judged by the code of a worker, as if it were complete, and alone: limits have all
/// that they may save up and no other trace stands before them. What they say hangs on others, so the verdict
/// without them is said, too. Now() in a condition is the end of the trace's last span.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Votes: sampled, not_sampled, dropped (by a policy of type drop), and error, which counts as if the policy \
were not there. T is the threshold with which a trace is kept: th as in a trace state, and the share of \
traces that it keeps; none if nobody can say.

Exit codes: 0 when every trace was judged, whatever the verdicts; 64 when the policy file is refused, with \
every mistake in one report; 1 when the traces cannot be read.

Examples:
  tailring explain --policies policies.yaml trace.json
  tailring explain --policies policies.yaml got.jsonl --output json | jq -c '[.trace_id, .verdict]'
  curl -s https://example.com/trace.json | tailring explain --policies policies.yaml -")]
pub struct ExplainArgs {
    /// The policy file: what a worker takes for --policies.
    #[arg(long, value_name = "FILE")]
    pub policies: String,
    /// The traces as OTLP/JSON; - is stdin.
    #[arg(value_name = "TRACES")]
    pub traces: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t = ExplainOutput::Text)]
    pub output: ExplainOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExplainOutput {
    /// For people.
    Text,
    /// One JSON object a trace, each in a line.
    Json,
}

/// The subcommand.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let ExplainArgs {
        policies,
        traces: file,
        output,
    } = args;
    let rules = match load_policies(&Machine, &policies) {
        Ok(parsed) => parsed.rules,
        Err(error) => {
            let problem = error.describe(&policies).replace('\n', "\n  ");
            complain(&format!("{policies} {problem}"));
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    let traces = match Traces::read(&file) {
        Ok(traces) => traces,
        Err(error) => {
            complain(&error.to_string());
            return Ok(ExitCode::FAILURE);
        }
    };
    for rejected in traces.rejected() {
        complain(rejected);
    }
    for (index, trace) in traces.all().enumerate() {
        let told = Told::new(
            &trace,
            &rules.explain(trace.id, &trace.fragments, trace.end),
        );
        match output {
            ExplainOutput::Text if index > 0 => print(&format!("\n{}", told.to_text())),
            ExplainOutput::Text => print(&told.to_text()),
            ExplainOutput::Json => print(&(serde_json::to_string(&told)? + "\n")),
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout, reason = "a tool for people answers on stdout")]
fn print(text: &str) {
    print!("{text}");
}

#[allow(clippy::print_stderr, reason = "a tool for people complains on stderr")]
fn complain(problem: &str) {
    eprintln!("tailring explain: {problem}");
}
