//! The ring changes under load, as planned and by crashes, and DNS is late or wrong about it. Nothing is lost, no
//! trace is judged in pieces, and clients see no error that lasts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Plan, Tier, member_name};
use crate::dns::Mode;
use crate::evidence::Evidence;
use crate::process::{PATIENCE, free_address_at, until};
use crate::receiver::{Receiver, names};
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;

/// Handing over, waiting until no router sends any more, exporting.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// How often DNS changes its mind when it flaps.
const FLAPS_EVERY: Duration = Duration::from_millis(500);
/// Three workers and two routers ask for two services, and for addresses that do not come along.
const ASKED_BY_ALL: u64 = 16;

fn plan(scale: Scale) -> Plan {
    Plan {
        decision_wait: scale.pick("2s", "10s"),
        ..Plan::default()
    }
}

/// A worker is asked to stop, is away, and comes back elsewhere.
async fn restarts(cluster: &mut Cluster, worker: usize, down: Duration, row: &mut Row) {
    let begun = Instant::now();
    cluster.workers[worker].stop(STOPS_WITHIN).await;
    let stopped = begun.elapsed();
    // How long it is away: the fault's own duration, as in all rows here.
    sleep(down).await;
    let again = Instant::now();
    cluster.start_elsewhere(worker);
    cluster.workers[worker].ready().await;
    row.recovered_in(again.elapsed());
    row.note(format!(
        "worker {worker} stopped in {:.1} s, and was ready {:.1} s after its start",
        stopped.as_secs_f64(),
        again.elapsed().as_secs_f64()
    ));
}

/// Waits until a worker has got spans in its present life.
async fn gets_spans(worker: &Tier) {
    until("the worker gets spans", PATIENCE, async || {
        let appended = ["fate=\"appended\""];
        let spans = worker.metric("tailring_worker_spans_total", &appended);
        (spans.await > 1_000).then_some(())
    })
    .await;
}

/// What the workers that are there at the end say of it.
async fn told(cluster: &Cluster, row: &mut Row) {
    let sum = async |name, label: &'static str| cluster.workers_sum(name, &[label]).await;
    let generations = "tailring_worker_handoff_generations_total";
    row.note(format!(
        "generations moved {}, merged back {}; verdicts in conflict {}, forced {}, raised {}",
        sum(generations, "end=\"moved\"").await,
        sum(generations, "end=\"merged_back\"").await,
        sum("tailring_worker_decision_conflicts_total", "").await,
        sum("tailring_worker_traces_decided_total", "reason=\"forced\"").await,
        sum("tailring_worker_verdicts_raised_total", "").await,
    ));
}

pub async fn ends(run: Run, row: &mut Row) {
    told(&run.cluster, row).await;
    run.finish(row).await;
}

/// One after the other, all of them, each back at another address.
pub async fn rolling_restart(scale: Scale, down: Duration) -> Row {
    let name = format!("rolling restart, each down for {} s", down.as_secs());
    let mut row = Row::new(name, Doubling::Never).splits_nothing();
    let mut run = Run::start(plan(scale)).await;
    for worker in 0..3 {
        restarts(&mut run.cluster, worker, down, &mut row).await;
        run.goes_on(scale.pick(5_000, 20_000), PATIENCE).await;
    }
    ends(run, &mut row).await;
    row
}

/// The same with policies that drop what has no error: what has one must be kept. How long each is down, in seconds.
pub async fn rolling_restart_with_errors(scale: Scale, down: &[u64]) -> Row {
    let name = format!("rolling restart, errors kept, down for {down:?} s");
    let mut row = Row::new(name, Doubling::Never).splits_nothing();
    let mut evidence = Evidence::start(Plan::default(), scale.pick(4, 10)).await;
    for (worker, &seconds) in down.iter().enumerate() {
        let down = Duration::from_secs(seconds);
        restarts(&mut evidence.cluster, worker, down, &mut row).await;
        evidence.goes_on(scale.pick(2_000, 20_000)).await;
    }
    told(&evidence.cluster, &mut row).await;
    evidence.finish(&mut row, scale).await;
    row
}

/// Two at once come, and then three at once go.
pub async fn scale_out_and_in(scale: Scale) -> Row {
    let mut row = Row::new("3 to 5 to 2 workers", Doubling::Never).splits_nothing();
    let mut run = Run::start(plan(scale)).await;
    let begun = Instant::now();
    for _ in 0..2 {
        run.cluster.start_another();
    }
    for number in 3..5 {
        run.cluster.workers[number].ready().await;
    }
    row.recovered_in(begun.elapsed());
    for number in 3..5 {
        gets_spans(&run.cluster.workers[number]).await;
    }
    run.goes_on(scale.pick(2_000, 100_000), PATIENCE * 2).await;
    for leaving in &run.cluster.workers[2..] {
        leaving.process.signal(Signal::TERM);
    }
    let begun = Instant::now();
    let mut leaving = run.cluster.workers.split_off(2);
    for worker in &mut leaving {
        let status = worker.process.exit(STOPS_WITHIN).await;
        row.must(status.success(), || format!("{}: {status}", worker.name));
    }
    row.note(format!(
        "three workers stopped in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    run.cluster.list_workers();
    run.goes_on(scale.pick(2_000, 100_000), PATIENCE * 2).await;
    ends(run, &mut row).await;
    row
}

/// SIGTERM, and SIGKILL while it hands over: in the middle because the one it hands to stands still, or as soon as
/// anything has moved. It comes back with its data.
pub async fn killed_while_handing_over(scale: Scale) -> Row {
    let kills = scale.pick(1, 10);
    let name = format!("kill -9 while handing over, {kills} times");
    let doubling = scale.pick(
        Doubling::InFlightAtDeaths(kills),
        Doubling::AfterLostAnswers,
    );
    let mut row = Row::new(name, doubling).splits_nothing();
    let plan = Plan {
        // So that there is something to hand over.
        decision_wait: scale.pick("4s", "10s"),
        ..plan(scale)
    };
    let mut run = Run::start(plan).await;
    for turn in 0..kills {
        let workers = run.cluster.workers.len();
        let victim = turn as usize % workers;
        let receiver = (victim + 1) % workers;
        // Every second time the receiver holds what it was sent and does not answer.
        let stalls = turn % 2 == 0;
        if stalls {
            run.cluster.workers[receiver].process.signal(Signal::STOP);
        }
        run.cluster.workers[victim].process.signal(Signal::TERM);
        let held = until("it hands over", PATIENCE, async || {
            let worker = &run.cluster.workers[victim];
            let moved = ["end=\"moved\""];
            let generations = "tailring_worker_handoff_generations_total";
            let moved = worker.metric(generations, &moved).await;
            let held = worker.metric("tailring_worker_undecided_traces", &[]).await;
            (moved > 0).then_some(held)
        })
        .await;
        run.cluster.workers[victim].kill().await;
        if stalls {
            run.cluster.workers[receiver].process.signal(Signal::CONT);
        }
        row.note(format!(
            "killed with {held} undecided traces{}",
            if stalls {
                ", one receiver standing still"
            } else {
                ""
            }
        ));
        run.starts_again(victim, &mut row, scale).await;
        gets_spans(&run.cluster.workers[victim]).await;
    }
    run.goes_on(scale.pick(5_000, 200_000), PATIENCE * 4).await;
    ends(run, &mut row).await;
    row
}

/// How DNS is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// One router's never hears of any change.
    StaleForOne,
    /// Nobody's does.
    StaleForAll,
    /// Records go and come.
    Flapping,
    /// A worker's name with the address of somebody's OTLP receiver.
    Receiver,
    /// The same with a worker of another cluster.
    OtherCluster,
}

impl Lie {
    /// One of each kind, one after the other. The last router's DNS is stale all the time.
    pub const SHORT: [Self; 3] = [Self::StaleForAll, Self::Flapping, Self::Receiver];

    fn name(self) -> &'static str {
        match self {
            Self::StaleForOne => "stale for one router",
            Self::StaleForAll => "stale for all",
            Self::Flapping => "flapping",
            Self::Receiver => "a stranger's address",
            Self::OtherCluster => "an address of another cluster",
        }
    }
}

/// Workers restart elsewhere, come, go and are killed, and DNS tells otherwise.
pub async fn dns_is_wrong(scale: Scale, lies: &[Lie]) -> Row {
    let names: Vec<_> = lies.iter().map(|lie| lie.name()).collect();
    let does_kill = lies
        .iter()
        .any(|lie| matches!(lie, Lie::Receiver | Lie::OtherCluster));
    let doubling = match (does_kill, scale) {
        (false, _) => Doubling::Never,
        (true, Scale::Quick) => Doubling::InFlightAtDeaths(2),
        (true, Scale::Full) => Doubling::AfterLostAnswers,
    };
    let mut row = Row::new(format!("DNS: {}", names.join(", ")), doubling).splits_nothing();
    let plan = Plan {
        routers: 2,
        second_dns: true,
        ..plan(scale)
    };
    let (mut run, _service) = Run::start_behind_service(plan).await;
    let second = run.cluster.second_dns.take();
    for &lie in lies {
        match lie {
            Lie::StaleForOne => changes(&mut run, scale, &mut row).await,
            Lie::StaleForAll => {
                run.cluster.dns_hears = false;
                changes(&mut run, scale, &mut row).await;
                run.cluster.dns_hears = true;
            }
            Lie::Flapping => flaps(&mut run, scale, &mut row).await,
            Lie::Receiver | Lie::OtherCluster => {
                lies_about_one(&mut run, scale, lie, &mut row).await
            }
        }
        run.cluster.list_workers();
        run.goes_on(scale.pick(2_000, 100_000), PATIENCE * 2).await;
    }
    drop(second);
    let changes = "tailring_discovery_view_changes_total";
    let mut of_routers = 0;
    for router in &run.cluster.routers {
        of_routers += router.metric(changes, &[]).await;
    }
    row.note(format!("{of_routers} changes of the routers' views"));
    ends(run, &mut row).await;
    row
}

/// One comes, one comes back elsewhere, and the first of these goes again.
async fn changes(run: &mut Run, scale: Scale, row: &mut Row) {
    let another = run.cluster.start_another();
    gets_spans(&run.cluster.workers[another]).await;
    restarts(&mut run.cluster, 1, Duration::from_secs(1), row).await;
    run.goes_on(scale.pick(2_000, 50_000), PATIENCE).await;
    run.cluster.workers[another].stop(STOPS_WITHIN).await;
    run.cluster.workers.truncate(another);
    run.cluster.list_workers();
    run.goes_on(scale.pick(5_000, 50_000), PATIENCE).await;
}

async fn flaps(run: &mut Run, scale: Scale, row: &mut Row) {
    let end = Instant::now() + Duration::from_secs(scale.pick(4, 30));
    let mut turn = 0;
    let restart_at = scale.pick(2, 20);
    while Instant::now() < end {
        match turn % 5 {
            0 => run.cluster.list_workers_at(&run.cluster.dns, 1),
            1 => run.cluster.dns.set_mode(Mode::Empty),
            2 => run.cluster.list_workers_at(&run.cluster.dns, 2),
            3 => run.cluster.dns.set_mode(Mode::NxDomain),
            _ => run.cluster.list_workers(),
        }
        // How often DNS changes: the fault itself.
        sleep(FLAPS_EVERY).await;
        run.cluster.dns.set_mode(Mode::Answer);
        turn += 1;
        if turn == restart_at {
            restarts(&mut run.cluster, 0, Duration::from_secs(1), row).await;
        }
    }
    run.cluster.list_workers();
}

/// First of a worker that is there, while one of the routers is new and knows nothing else; then of one that was
/// killed, so that nobody contradicts.
async fn lies_about_one(run: &mut Run, scale: Scale, lie: Lie, row: &mut Row) {
    let ip = run.cluster.workers[1].grpc.ip();
    let (grpc, peers) = (free_address_at(ip), free_address_at(ip));
    let stranger = Stranger::start(&run.cluster, lie, grpc, peers).await;
    let cluster = &run.cluster;
    cluster.list_elsewhere(&cluster.dns, 1, grpc, peers.port());
    let asked = cluster.dns.queries_udp() + ASKED_BY_ALL;
    until("all have asked DNS", PATIENCE, async || {
        (cluster.dns.queries_udp() > asked).then_some(())
    })
    .await;
    let router = &mut run.cluster.routers[0];
    router.kill().await;
    router.start_again();
    router.ready().await;
    run.goes_on(scale.pick(3_000, 50_000), PATIENCE).await;
    run.cluster.workers[1].kill().await;
    // How long it is away, and DNS says that it is not.
    sleep(Duration::from_secs(scale.pick(1, 20))).await;
    let again = Instant::now();
    run.cluster.dns_hears = false;
    run.cluster.start_elsewhere(1);
    run.cluster.dns_hears = true;
    gets_spans(&run.cluster.workers[1]).await;
    row.recovered_in(again.elapsed());
    stranger.ends(row).await;
}

/// Who is at an address where a worker is looked for.
enum Stranger {
    /// It says OK to whatever it is sent.
    Receiver(Receiver),
    Worker(Box<Tier>),
}

impl Stranger {
    async fn start(cluster: &Cluster, lie: Lie, grpc: SocketAddr, peers: SocketAddr) -> Self {
        match lie {
            Lie::OtherCluster => {
                let worker = cluster.start_stranger("stranger", grpc, peers).await;
                Self::Worker(Box::new(worker))
            }
            _ => Self::Receiver(Receiver::start_at(grpc, Arc::default(), None).await),
        }
    }

    /// Ends it.
    async fn ends(self, row: &mut Row) {
        let spans = match self {
            Self::Receiver(receiver) => {
                let got = receiver.got();
                got.iter().map(|got| names(&got.request).len() as u64).sum()
            }
            Self::Worker(mut worker) => {
                let appended = ["fate=\"appended\""];
                let spans = worker.metric("tailring_worker_spans_total", &appended);
                let spans = spans.await;
                worker.kill().await;
                row.must(spans == 0, || {
                    format!("a worker of another cluster took {spans} spans")
                });
                spans
            }
        };
        // A receiver that says OK to everything gets what is tried first. That counts for nothing.
        row.note(format!("the stranger got {spans} spans"));
    }
}

/// A worker moves, and somebody else gets its address; DNS hears of it late.
pub async fn an_old_address_is_reused(scale: Scale) -> Row {
    let mut row = Row::new("old addresses reused by strangers", Doubling::Never).splits_nothing();
    // A worker of another cluster takes a while to start alone.
    let strangers = [(1, Lie::Receiver), (2, Lie::OtherCluster)];
    let strangers = &strangers[scale.pick(1, 0)..];
    let mut run = Run::start(plan(scale)).await;
    for &(worker, by) in strangers {
        let (grpc, peers) = {
            let worker = &run.cluster.workers[worker];
            (worker.grpc, worker.peers)
        };
        run.cluster.workers[worker].stop(STOPS_WITHIN).await;
        let stranger = Stranger::start(&run.cluster, by, grpc, peers).await;
        // How long the worker is away and the stranger is where it was.
        sleep(Duration::from_secs(scale.pick(1, 15))).await;
        run.cluster.dns_hears = false;
        let again = Instant::now();
        run.cluster.start_elsewhere(worker);
        gets_spans(&run.cluster.workers[worker]).await;
        row.recovered_in(again.elapsed());
        run.goes_on(scale.pick(2_000, 50_000), PATIENCE).await;
        run.cluster.dns_hears = true;
        run.cluster.list_workers();
        stranger.ends(&mut row).await;
    }
    ends(run, &mut row).await;
    row
}

/// A second process takes a worker's name, as a pod that was deleted by force and runs on, and lives for so many seconds.
/// The operator stops the younger one, and starts the older one again with its data.
///
/// Spans that the older one acknowledged just before are with nobody else until then. A twin that lives longer than
/// `decision_wait` judges the rest of their traces itself; one that does not hands it over.
pub async fn two_of_one_name(scale: Scale, seconds: u64) -> Row {
    let name = format!("two members of one name for {seconds} s");
    let doubling = scale.pick(Doubling::InFlightAtDeaths(1), Doubling::Never);
    let mut row = Row::new(name, doubling).splits_nothing();
    let mut run = Run::start(plan(scale)).await;
    let mut twin = run.cluster.start_twin(1);
    let older = &run.cluster.workers[1];
    until("the older one is fenced", PATIENCE, async || {
        let fenced = ["event=\"fenced\""];
        let fenced = older.metric("tailring_roster_events_total", &fenced).await;
        (fenced > 0).then_some(())
    })
    .await;
    gets_spans(&twin).await;
    // How long there are two.
    sleep(Duration::from_secs(seconds)).await;
    twin.stop(STOPS_WITHIN).await;
    let older = &mut run.cluster.workers[1];
    match scale {
        // It tries for a quarter of a minute to hand over, and nobody listens to it.
        Scale::Full => older.stop(STOPS_WITHIN).await,
        Scale::Quick => older.kill().await,
    }
    let again = Instant::now();
    run.cluster.start_elsewhere(1);
    run.cluster.workers[1].ready().await;
    row.recovered_in(again.elapsed());
    row.note(format!("{} had a twin", member_name(1)));
    ends(run, &mut row).await;
    row
}
