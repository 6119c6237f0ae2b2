//! `tailring demo`: the whole system on loopback, every service a process of its own, with a fleet
//! of agents that sends to it, a backend that keeps books, and an oracle that checks them.

mod books;
mod cluster;
mod dns;
mod figures;
mod fleet;
mod oracle;
mod page;
mod process;
mod screen;
mod service;
mod verdict;

pub use service::{ServiceArgs, main as service_main};

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::app::interrupt::interrupted;
use crate::model::parse_go_duration;
use books::Books;
use cluster::{Cluster, ROUTERS, WORKERS};
use figures::{Figures, Price};
use oracle::{Findings, Terms};
use page::Scrape;
use process::Process;
use screen::Screen;
use verdict::Summary;

/// The file that the demo is about, as it is in the repository.
const FLEET_POLICIES: &str = include_str!("../../../deploy/policies/fleet.yaml");
/// Turns play ten times faster than their timestamps say, and the longest takes 4.7 s.
const DECISION_WAIT: Duration = Duration::from_secs(6);
/// Enough that the rate cap of 50 spans a second keeps few traces which the baseline does not, and
/// little enough for two cores: 3,700 spans a second.
const TURNS_PER_SECOND: f64 = 200.0;

const LOOKS_EVERY: Duration = Duration::from_millis(500);
/// From the end of the last turn until everything is judged and exported: `DECISION_WAIT` and a
/// second or so.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// The books of ten minutes are some 600 MB in memory.
const DURATION_MAX: Duration = Duration::from_secs(600);

/// Shows the whole system at work: a fleet of agents, two routers, three workers, a backend
///
/// Starts a DNS server, two routers, three workers that they find by SRV records, a backend and a
/// fleet of agents, each a process on a loopback port of its own. The workers judge by the
/// repository's deploy/policies/fleet.yaml, with a shorter decision_wait: turns play ten times
/// faster than their timestamps say. At the end an evaluator of its own works out from what was sent
/// which turns must have been kept, and compares that with what the backend got.
///
/// Exit status: 0 when every verdict is as it must be, 1 when one is not or a process failed.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// How long turns begin; the last ones are judged some ten seconds later.
    #[arg(long = "for", default_value = "60s", value_name = "DURATION", value_parser = duration)]
    duration: Duration,
    /// The same seed plays the same turns. Default: a fresh one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// What the backend charges, in dollars for a million spans.
    #[arg(long, default_value_t = 1.27, value_name = "DOLLARS", value_parser = price)]
    price_per_million: f64,
    /// How to print: a table and a summary, or one JSON object at the end, with progress on stderr.
    #[arg(long, value_enum, default_value_t = DemoOutput::Text)]
    output: DemoOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoOutput {
    Text,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_go_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=DURATION_MAX).contains(&duration) {
        Ok(duration)
    } else {
        Err("write a duration from 1s to 10m".into())
    }
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.parse::<f64>().ok();
    price
        .filter(|price| price.is_finite() && *price >= 0.0)
        .ok_or_else(|| "write dollars for a million spans, for example 1.27".into())
}

/// The subcommand.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    tokio::select! {
        outcome = perform(&args) => outcome,
        // The processes and their files go with what was dropped.
        () = interrupted() => bail!("interrupted; nothing is shown"),
    }
}

async fn perform(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    // Short enough to be typed again.
    let seed = args
        .seed
        .unwrap_or_else(|| rand::rng().random::<u32>().into());
    let price = Price(args.price_per_million);
    let mut screen = Screen::new(args.output == DemoOutput::Json);
    screen.say(&format!(
        "tailring demo --for {:?} --seed {seed}\n\
         a DNS server, {ROUTERS} routers, {WORKERS} workers, a backend and {TURNS_PER_SECOND} turns of agents a second, \
         each service a process on 127.0.0.1\n\
         policies: deploy/policies/fleet.yaml with decision_wait {DECISION_WAIT:?}; turns play {}x faster than \
         their timestamps\n\n",
        args.duration,
        crate::app::load::PLAYED_FASTER,
    ));
    let mut cluster = Cluster::start(&policies()?).await?;
    let mut fleet = start_fleet(&cluster, args.duration, seed)?;
    let figures = watch(&mut cluster, &mut fleet, args, &mut screen).await?;
    // Its books are closed when it has ended.
    cluster.backend.stop().await?;

    let terms = Terms {
        decision_wait: DECISION_WAIT,
        judged_for: figures.elapsed,
    };
    let (sent, got) = (cluster.files.sent_ledger(), cluster.files.got_ledger());
    let findings = tokio::task::spawn_blocking(move || {
        anyhow::Ok(Findings::of(&Books::read(&sent, &got)?, terms))
    });
    let findings = findings.await??;
    let kept_file = cluster
        .files
        .keep_traces()
        .context("the file of the kept traces")?;
    drop(fleet);
    drop(cluster);

    let summary = Summary::new(
        seed,
        args.duration,
        price,
        &figures,
        findings,
        terms,
        kept_file,
    );
    screen.clear();
    screen.say(&summary.to_text(&screen, &figures, price));
    if args.output == DemoOutput::Json {
        print_json(&summary)?;
    }
    Ok(if summary.agreed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[expect(clippy::print_stdout, reason = "a tool for people answers on stdout")]
fn print_json(summary: &Summary) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(summary)?);
    Ok(())
}

/// The repository's file, with a shorter wait.
fn policies() -> anyhow::Result<String> {
    const WAIT: &str = "\ndecision_wait: 30s\n";
    let (before, after) = FLEET_POLICIES
        .split_once(WAIT)
        .context("deploy/policies/fleet.yaml has no line decision_wait: 30s")?;
    Ok(format!(
        "{before}\ndecision_wait: {DECISION_WAIT:?}\n{after}"
    ))
}

fn start_fleet(cluster: &Cluster, duration: Duration, seed: u64) -> anyhow::Result<Process> {
    let mut arguments = vec!["fleet".to_owned()];
    for router in &cluster.routers {
        arguments.extend(["--to".into(), router.otlp.to_string()]);
    }
    let ledger = cluster.files.sent_ledger();
    arguments.extend([
        "--for".into(),
        format!("{}ms", duration.as_millis()),
        "--turns-per-second".into(),
        TURNS_PER_SECOND.to_string(),
        "--seed".into(),
        seed.to_string(),
        "--ledger".into(),
        ledger.to_string_lossy().into_owned(),
    ]);
    Process::start("the fleet", &arguments, cluster.files.dir())
}

/// Until the fleet's last turn is judged and exported.
async fn watch(
    cluster: &mut Cluster,
    fleet: &mut Process,
    args: &DemoArgs,
    screen: &mut Screen,
) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(LOOKS_EVERY);
    let mut ended_at = None;
    let mut was_settled = false;
    loop {
        ticks.tick().await;
        cluster.check().await?;
        if ended_at.is_none() && fleet.has_ended().await? {
            ended_at = Some(Instant::now());
        }
        let elapsed = began.elapsed();
        let figures = match look(cluster, elapsed, elapsed.min(args.duration)).await {
            Ok(figures) => figures,
            Err(silent) => {
                // Most likely it has ended, which says more than that it does not answer.
                sleep(LOOKS_EVERY).await;
                cluster.check().await?;
                return Err(silent);
            }
        };
        let title = match ended_at {
            None => format!(
                "{:.0} s of {:.0} s",
                figures.elapsed.as_secs_f64(),
                args.duration.as_secs_f64()
            ),
            Some(_) => "the fleet is done; the last turns are judged".to_owned(),
        };
        screen.show(&title, &figures, Price(args.price_per_million));
        if let Some(ended_at) = ended_at {
            let settled = figures.is_settled();
            // Twice, because the numbers are not all of one moment.
            if settled && was_settled {
                return Ok(figures);
            }
            was_settled = settled;
            if ended_at.elapsed() > SETTLES_WITHIN {
                bail!(
                    "{} turns are not judged and {} not exported {SETTLES_WITHIN:?} after the last span",
                    figures.undecided,
                    figures.awaiting_export
                );
            }
        }
    }
}

async fn look(cluster: &Cluster, elapsed: Duration, sending: Duration) -> anyhow::Result<Figures> {
    let mut routers = Vec::new();
    for router in &cluster.routers {
        routers.push(Scrape::of(router.admin).await.context("a router")?);
    }
    let mut workers = Vec::new();
    for worker in &cluster.workers {
        workers.push(Scrape::of(worker.admin).await.context("a worker")?);
    }
    Ok(Figures::of(elapsed, sending, &routers, &workers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_are_the_file_of_the_repository_with_a_shorter_wait() {
        let policies = policies().unwrap();
        assert!(policies.contains("\ndecision_wait: 6s\n"), "{policies}");
        assert_eq!(
            policies.replace("decision_wait: 6s", "decision_wait: 30s"),
            FLEET_POLICIES
        );
        for name in oracle::POLICIES {
            assert!(policies.contains(&format!("name: {name},")), "{name}");
        }
    }
}
