//! `tailring load`: real traffic for any OTLP endpoint, with books that tell what was sent.

mod drive;
mod generator;
mod plan;
mod play;
mod playback;
mod repertoire;
mod report;
mod request;
mod sender;
mod service;
mod template;
mod turn;

pub use drive::drive;
pub use generator::{Batch, Generator, GeneratorPlan, Shape};
pub use plan::{LoadArgs, LoadEncoding, LoadOutput, LoadPlan, LoadProtocol, Rate};
pub use play::{PlayPlan, PlayReport, play};
pub use playback::{PLAYED_FASTER, Playback, PlaybackPlan, Played};
pub use report::{LoadCounts, LoadReport, Quantiles};

use std::io::IsTerminal as _;
use std::process::ExitCode;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::app::interrupt::interrupted;

/// The subcommand.
#[allow(clippy::print_stdout, reason = "a tool for people answers on stdout")]
pub async fn run(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let plan = LoadPlan::new(&args, rand::rng().random())?;
    let shows_progress = args.output == LoadOutput::Text && std::io::stdout().is_terminal();
    if shows_progress {
        println!("{}", LoadReport::progress_heading());
    }
    let mut before = (0.0, 0);
    let report = drive(plan, interrupted(), |now| {
        let spans = now.counts.spans_acknowledged;
        let rate = (spans - before.1) as f64 / (now.seconds - before.0).max(1e-9);
        before = (now.seconds, spans);
        if shows_progress {
            println!("{}", now.progress_line(rate));
        }
    })
    .await?;
    match args.output {
        LoadOutput::Text => print!("{}", report.to_text()),
        LoadOutput::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Text of common words, its length in bytes drawn from the range.
fn salad(random: &mut SmallRng, bytes: std::ops::Range<usize>) -> String {
    const WORDS: &[&str] = &[
        "the", "customer", "order", "was", "shipped", "before", "invoice", "please", "check",
        "status", "of", "and", "return", "policy", "refund", "account", "open", "ticket", "with",
        "priority", "summary", "next", "step", "query", "result", "table", "user", "asked", "for",
        "details", "about", "delivery", "in", "region", "error", "log", "shows", "timeout",
    ];
    let bytes = random.random_range(bytes);
    let mut text = String::with_capacity(bytes + 12);
    while text.len() < bytes {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[random.random_range(0..WORDS.len())]);
    }
    text
}
