//! The demo's fleet: agents whose SDKs send to the routers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use crate::app::interrupt::interrupted;
use crate::app::load::{PlayPlan, PlaybackPlan, Shape, play};
use crate::model::parse_go_duration;
use crate::net::client::{Address, Target};

/// Plays turns of agents, ten times faster than their timestamps say.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FleetArgs {
    #[arg(long = "to", required = true)]
    to: Vec<SocketAddr>,
    #[arg(long = "for", value_parser = parse_go_duration)]
    duration: Duration,
    #[arg(long)]
    turns_per_second: f64,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    ledger: PathBuf,
}

/// Places, each with an agent, an MCP server and a guardrail: twelve SDKs, six at each router.
const SITES: usize = 4;

/// Until all turns are over.
pub(super) async fn run(args: FleetArgs) -> anyhow::Result<ExitCode> {
    let targets = args.to.iter().map(|address| {
        let address: Address = address.to_string().parse()?;
        Ok(Target::plain(address)?)
    });
    let plan = PlayPlan {
        playback: PlaybackPlan {
            shape: Shape::Fleet,
            seed: args.seed,
            turns_per_second: args.turns_per_second,
            sites: SITES,
        },
        duration: args.duration,
        targets: targets.collect::<anyhow::Result<_>>()?,
        ledger: args.ledger,
    };
    let report = play(plan, interrupted()).await?;
    if !report.is_success() {
        bail!(
            "{} of {} spans were acknowledged; {}",
            report.spans_acknowledged,
            report.spans_sent,
            report.failure.as_deref().unwrap_or("none was refused")
        );
    }
    Ok(ExitCode::SUCCESS)
}
