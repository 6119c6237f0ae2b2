//! What changes of the ring may cost: time to hand over, throughput, and the patience of clients. Each is a figure that
//! means something on a quiet machine and in a release build only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use rand::Rng as _;
use rustix::process::Signal;
use tailring::cluster::View;
use tailring::model::{Member, TraceId};
use tailring::net::client::{ClientConfig, Compression, GrpcClient, Target};
use tailring::ring::Seed;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cluster::{Cluster, LoadEnd, Plan, member_name};
use crate::process::{PATIENCE, Scrape, until};
use crate::ring;
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;

const DRAINED_BYTES: f64 = (256 << 20) as f64;
const DRAINED_WITHIN: Duration = Duration::from_secs(10);
/// Of agents, roughly; what they were is in the row.
const SPAN_BYTES: f64 = 400.0;
const UNDECIDED: &str = "tailring_worker_undecided_spans";

/// SIGTERM with 256 MiB of undecided traces.
pub async fn drain(scale: Scale) -> Row {
    let row = Row::new("drain of 256 MiB of undecided traces", Doubling::Never);
    let mut row = row.splits_nothing();
    let plan = Plan {
        workers: 2,
        decision_wait: "120s",
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await;
    let shape = ["--shape", "agent", "--give-up-after", "10m"];
    let load = cluster.routed_load("max", 3_600, &shape);
    let begun = Instant::now();
    until("there is enough to hand over", PATIENCE * 4, async || {
        let spans = cluster.workers[1].metric(UNDECIDED, &[]).await as f64;
        (spans * SPAN_BYTES >= DRAINED_BYTES * 1.1).then_some(())
    })
    .await;
    load.signal(Signal::INT);
    let load = LoadEnd::of(load, PATIENCE * 3).await;
    let bytes = load.count("bytes_sent") as f64 / load.count("spans_sent") as f64;
    let leaving = &mut cluster.workers[1];
    let held = leaving.metric(UNDECIDED, &[]).await as f64 * bytes;
    row.must(held >= DRAINED_BYTES, || format!("only {held:.0} bytes"));
    row.must(begun.elapsed() < Duration::from_secs(100), || {
        "the first traces are due before the drain has ended".to_owned()
    });
    leaving.process.signal(Signal::TERM);
    let asked = Instant::now();
    // Its page goes away with it.
    until("all is handed over", PATIENCE * 4, async || {
        let page = Scrape::of(leaving.admin).await;
        let left = page.map_or(0, |page| page.sum(UNDECIDED, &[]));
        (left == 0).then_some(())
    })
    .await;
    let handed_over = asked.elapsed();
    let status = leaving.process.exit(PATIENCE * 2).await;
    row.must(status.success(), || format!("it ended with {status}"));
    row.recovered_in(handed_over);
    row.note(format!(
        "{:.0} MiB handed over in {:.1} s, ended after {:.1} s",
        held / f64::from(1 << 20),
        handed_over.as_secs_f64(),
        asked.elapsed().as_secs_f64()
    ));
    row.figure(scale, handed_over <= DRAINED_WITHIN, || {
        format!("handed over in {handed_over:.1?}, more than {DRAINED_WITHIN:?}")
    });
    cluster.workers.truncate(1);
    cluster.list_workers();
    cluster.settled(Duration::from_secs(300)).await;
    let found = cluster.verify("load").await;
    row.judge(found);
    row
}

/// Seconds of acknowledgements before and while a fourth worker comes.
pub async fn throughput_while_growing(scale: Scale) -> Row {
    let mut row = Row::new("throughput, 3 to 4 workers", Doubling::Never).splits_nothing();
    let mut run = Run::start(Plan::default()).await;
    let seconds = async |run: &Run, count: u32| {
        let mut rates = Vec::new();
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut before = (Instant::now(), run.accepted().await);
        for _ in 0..count {
            ticks.tick().await;
            let now = (Instant::now(), run.accepted().await);
            let rate = (now.1 - before.1) as f64 / (now.0 - before.0).as_secs_f64();
            rates.push(rate);
            before = now;
        }
        rates
    };
    let quiet = seconds(&run, scale.pick(4, 15)).await;
    let usual = quiet.iter().sum::<f64>() / quiet.len() as f64;
    run.cluster.start_another();
    let growing = seconds(&run, scale.pick(6, 20)).await;
    run.cluster.workers[3].ready().await;
    let least = growing.iter().copied().fold(f64::INFINITY, f64::min);
    let least_before = quiet.iter().copied().fold(f64::INFINITY, f64::min);
    let below = growing.iter().filter(|rate| **rate < 0.95 * usual).count();
    row.note(format!(
        "{usual:.0} spans/s before (worst second {least_before:.0}); then the worst second {least:.0} ({:+.1} %), {below} s more than 5 % below",
        (least / usual - 1.0) * 100.0
    ));
    row.figure(scale, least >= 0.8 * usual, || {
        format!("{least:.0} spans/s in one second, {usual:.0} before")
    });
    row.figure(scale, below <= 5, || {
        format!("{below} seconds below what was before")
    });
    ring::ends(run, &mut row).await;
    row
}

/// A connection takes 32 requests at a time: beyond it, who waits for the hung worker would keep others of the same client
/// waiting before they are sent.
const CONNECTIONS: usize = 32;

/// Requests that a router forwards to one worker, by which.
struct Asked {
    clients: Vec<Arc<GrpcClient>>,
    view: View,
}

/// How long requests took, by the number of the worker that owns their trace.
type Latencies = BTreeMap<usize, Vec<Duration>>;

impl Asked {
    fn new(cluster: &Cluster) -> Self {
        let member = |number| Member::parse(&member_name(number)).unwrap();
        let workers = cluster.workers.iter().enumerate();
        let addresses = workers.map(|(number, worker)| (member(number), worker.grpc));
        let target = Target::plain(cluster.routers[0].grpc).unwrap();
        let client = || {
            let config = ClientConfig::backend(Compression::None);
            Arc::new(GrpcClient::new(target.clone(), config))
        };
        Self {
            clients: (0..CONNECTIONS).map(|_| client()).collect(),
            view: View::new(addresses.collect(), Seed(0), "default"),
        }
    }

    /// One trace of one span each, at an even pace that waits for nobody.
    async fn ask(&self, per_second: u32, during: Duration) -> Latencies {
        let mut asking = JoinSet::new();
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        let end = Instant::now() + during;
        let mut clients = self.clients.iter().cycle();
        while Instant::now() < end {
            let due = ticks.tick().await;
            let trace = TraceId::new(rand::rng().random()).unwrap();
            let owner = self.view.table.owner_index(trace).unwrap();
            let client = Arc::clone(clients.next().unwrap());
            asking.spawn(async move {
                let plain = HeaderMap::new();
                let answer = client.export(vec![one_span(trace)], &plain, PATIENCE);
                answer.await.unwrap();
                (usize::from(owner), due.elapsed())
            });
        }
        let mut latencies = Latencies::new();
        while let Some(asked) = asking.join_next().await {
            let (owner, latency) = asked.unwrap();
            latencies.entry(owner).or_default().push(latency);
        }
        for latencies in latencies.values_mut() {
            latencies.sort_unstable();
        }
        latencies
    }
}

fn one_span(trace: TraceId) -> Bytes {
    let span = Span {
        trace_id: trace.as_bytes().to_vec(),
        span_id: vec![1; 8],
        name: "asked".to_owned(),
        ..Span::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    request.encode_to_vec().into()
}

/// Of the workers that `of` is true for.
fn quantile(latencies: &Latencies, of: impl Fn(usize) -> bool, quantile: f64) -> Duration {
    let chosen = latencies.iter().filter(|(worker, _)| of(**worker));
    let mut all: Vec<_> = chosen.flat_map(|(_, them)| them).copied().collect();
    all.sort_unstable();
    all[((all.len() - 1) as f64 * quantile) as usize]
}

/// A worker hangs: what becomes of its traces' requests, and of all others.
pub async fn a_worker_hangs(scale: Scale) -> Row {
    const HUNG: usize = 1;
    /// Two attempts of the router, and a stand-in's time.
    const PATIENT: Duration = Duration::from_millis(4_500);
    let mut row = Row::new("hung worker: p99 of requests", Doubling::Never);
    let cluster = Cluster::start(Plan::default()).await;
    let asked = Asked::new(&cluster);
    let during = Duration::from_secs(scale.pick(5, 20));
    // Connections and pages are there.
    asked.ask(100, Duration::from_secs(2)).await;
    let quiet = asked.ask(100, during).await;
    cluster.workers[HUNG].process.signal(Signal::STOP);
    let disturbed = asked.ask(100, during).await;
    cluster.workers[HUNG].process.signal(Signal::CONT);
    let router = &cluster.routers[0];
    let woken = Instant::now();
    until("the owner gets its spans back", PATIENCE, async || {
        let open = router.metric("tailring_router_circuit_open", &[]).await;
        (open == 0).then_some(())
    })
    .await;
    row.recovered_in(woken.elapsed());
    let others = |worker| worker != HUNG;
    let (before, then) = (
        quantile(&quiet, others, 0.99),
        quantile(&disturbed, others, 0.99),
    );
    let slowest = quantile(&disturbed, |worker| worker == HUNG, 1.0);
    row.note(format!(
        "its traces' requests: slowest {slowest:.2?}; others: p99 {then:.2?}, undisturbed {before:.2?}"
    ));
    row.figure(scale, slowest <= PATIENT, || {
        format!("a request took {slowest:.2?}, more than two attempts")
    });
    row.figure(scale, then <= 2 * before, || {
        format!("p99 of others {then:.2?}, undisturbed {before:.2?}")
    });
    row
}
