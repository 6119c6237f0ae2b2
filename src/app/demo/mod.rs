//! `tailring demo`: the whole system on loopback, every service a process of its own, with a fleet
//! of agents that sends to it, a backend that keeps books, and an oracle that checks them.

mod books;
mod chaos;
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

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::app::interrupt::interrupted;
use crate::model::parse_go_duration;
use books::Books;
use chaos::Chaos;
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
/// With `--chaos` spans may take longer: what was refused comes again.
const CHAOS_DECISION_WAIT: Duration = Duration::from_secs(10);
/// Enough that the rate cap of 50 spans a second keeps few traces which the baseline does not, and
/// little enough for two cores: 3,700 spans a second.
const TURNS_PER_SECOND: f64 = 200.0;

/// The last worker that is away should be back while the fleet sends.
const CHAOS_ENDS_BEFORE: Duration = Duration::from_secs(4);

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
    /// While the table runs, restarts workers at other addresses, kills them with SIGKILL, and adds two.
    ///
    /// One thing after the other, each when all workers are ready again. Nothing may be lost and no trace judged in
    /// pieces; spans may come twice where a worker was killed. decision_wait is 10 s instead of 6, and the workers' own
    /// counts are not held against what was sent: they end with a life.
    #[arg(long)]
    chaos: bool,
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
    let decision_wait = if args.chaos {
        CHAOS_DECISION_WAIT
    } else {
        DECISION_WAIT
    };
    screen.say(&format!(
        "tailring demo --for {:?} --seed {seed}{}\n\
         a DNS server, {ROUTERS} routers, {WORKERS} workers, a backend and {TURNS_PER_SECOND} turns of agents a second, \
         each service a process on 127.0.0.1\n\
         policies: deploy/policies/fleet.yaml with decision_wait {decision_wait:?}; turns play {}x faster than \
         their timestamps\n\n",
        args.duration,
        if args.chaos { " --chaos" } else { "" },
        crate::app::load::PLAYED_FASTER,
    ));
    let mut cluster = Cluster::start(&policies(decision_wait)?).await?;
    let mut fleet = start_fleet(&cluster, args.duration, seed)?;
    let mut chaos = args.chaos.then(Chaos::new);
    let figures = watch(&mut cluster, &mut fleet, &mut chaos, args, &mut screen).await?;
    // Its books are closed when it has ended.
    cluster.backend.stop().await?;

    let chaos = chaos.map(|chaos| chaos.counts);
    let terms = Terms {
        decision_wait,
        judged_for: figures.elapsed,
        lives: chaos.unwrap_or_default().lives(),
        are_killed: chaos.is_some_and(|it| it.workers_killed > 0),
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
        chaos,
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
fn policies(decision_wait: Duration) -> anyhow::Result<String> {
    const WAIT: &str = "\ndecision_wait: 30s\n";
    let (before, after) = FLEET_POLICIES
        .split_once(WAIT)
        .context("deploy/policies/fleet.yaml has no line decision_wait: 30s")?;
    Ok(format!(
        "{before}\ndecision_wait: {decision_wait:?}\n{after}"
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
    chaos: &mut Option<Chaos>,
    args: &DemoArgs,
    screen: &mut Screen,
) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut looks = Looks::default();
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
        if let Some(chaos) = chaos {
            let may_begin = elapsed + CHAOS_ENDS_BEFORE <= args.duration;
            if let Some(event) = chaos.step(cluster, elapsed, may_begin).await? {
                screen.tell(elapsed, &event);
            }
        }
        let elapsed = began.elapsed();
        let looked = looks.look(cluster, elapsed, elapsed.min(args.duration));
        let figures = match looked.await {
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
            let is_quiet = chaos.as_ref().is_none_or(Chaos::is_quiet);
            let settled = is_quiet && figures.is_settled();
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

/// What the workers say, also those whose lives have ended.
#[derive(Debug, Default)]
struct Looks {
    /// By worker: where it is, and what it said last.
    last: Vec<(SocketAddr, Scrape)>,
    ended: Vec<Scrape>,
}

impl Looks {
    /// What a life said last stays when another one takes its place.
    fn keep_ended(&mut self, cluster: &Cluster) {
        for (worker, (admin, last)) in cluster.workers.iter().zip(&mut self.last) {
            if worker.admin != *admin {
                *admin = worker.admin;
                self.ended.push(std::mem::take(last));
            }
        }
    }

    async fn look(
        &mut self,
        cluster: &Cluster,
        elapsed: Duration,
        sending: Duration,
    ) -> anyhow::Result<Figures> {
        self.keep_ended(cluster);
        let mut routers = Vec::new();
        for router in &cluster.routers {
            routers.push(Scrape::of(router.admin).await.context("a router")?);
        }
        for (number, worker) in cluster.workers.iter().enumerate() {
            match (Scrape::of(worker.admin).await, self.last.get_mut(number)) {
                (Ok(scrape), Some((_, last))) => *last = scrape,
                (Ok(scrape), None) => self.last.push((worker.admin, scrape)),
                (Err(error), _) if worker.is_there() => {
                    return Err(error).context("a worker");
                }
                // It is on its way out, and said last what it said last.
                (Err(_), _) => {}
            }
        }
        let workers: Vec<_> = self.last.iter().map(|(_, last)| last.clone()).collect();
        Ok(Figures::of(
            elapsed,
            sending,
            &routers,
            &workers,
            &self.ended,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_are_the_file_of_the_repository_with_a_shorter_wait() {
        let policies = policies(DECISION_WAIT).unwrap();
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
