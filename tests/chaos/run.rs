//! A cluster with a load on it: begun, watched, and brought to an end with its books compared.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::cluster::{Cluster, LoadEnd, Plan, Service};
use crate::process::{PATIENCE, Process, until};
use crate::row::{Row, Scale};

/// From the end of a load until everything is exported. After an outage of the backend the wait
/// between attempts has grown to 30 s.
const EXPORTED_WITHIN: Duration = Duration::from_secs(120);
/// Batches that were refused meanwhile are sent again, with up to 5 s between attempts.
const LOAD_ENDS_WITHIN: Duration = Duration::from_secs(90);
/// Arrived before a fault begins.
const UNDER_WAY_SPANS: u64 = 5_000;
/// Nobody may give up because a fault takes long: whoever does would hide what was not resumed.
const PATIENT: [&str; 2] = ["--give-up-after", "10m"];

/// See the module.
pub struct Run {
    pub cluster: Cluster,
    load: Process,
}

impl Run {
    /// A cluster, and 5,000 fleet spans a second through its first router.
    pub async fn start(plan: Plan) -> Self {
        let cluster = Cluster::start(plan).await;
        let to = cluster.routers[0].grpc;
        let load = cluster.load("load", to, "5k", 3_600, &PATIENT);
        Self::with(cluster, load).await
    }

    /// The same through all routers, behind one address.
    pub async fn start_behind_service(plan: Plan) -> (Self, Service) {
        let cluster = Cluster::start(plan).await;
        let routers = cluster.routers.iter().map(|router| router.grpc);
        let service = Service::start(routers.collect()).await;
        let load = cluster.load("load", service.address, "5k", 3_600, &PATIENT);
        (Self::with(cluster, load).await, service)
    }

    /// The same, with agents that send as much as is answered.
    pub async fn start_flood(plan: Plan) -> Self {
        let cluster = Cluster::start(plan).await;
        let to = cluster.routers[0].grpc;
        let args = [&PATIENT[..], &["--shape", "agent"]].concat();
        let load = cluster.load("load", to, "max", 3_600, &args);
        Self::with(cluster, load).await
    }

    /// Returns when the load (by the name `load`, that goes on until it is told to stop) is under way.
    pub async fn with(cluster: Cluster, load: Process) -> Self {
        let run = Self { cluster, load };
        until("the load is under way", PATIENCE, async || {
            (run.accepted().await > UNDER_WAY_SPANS).then_some(())
        })
        .await;
        run
    }

    /// Spans that routers have acknowledged since their starts.
    pub async fn accepted(&self) -> u64 {
        let mut accepted = 0;
        for router in &self.cluster.routers {
            let spans = "tailring_router_spans_accepted_total";
            accepted += router.metric(spans, &[]).await;
        }
        accepted
    }

    /// Waits until `spans` more are acknowledged than now.
    pub async fn goes_on(&self, spans: u64, within: Duration) {
        let before = self.accepted().await;
        until("the intake goes on", within, async || {
            (self.accepted().await > before + spans).then_some(())
        })
        .await;
    }

    /// Starts a worker again; the time until it is ready, which must fit the log that it found.
    pub async fn starts_again(&mut self, worker: usize, row: &mut Row, scale: Scale) {
        let worker = &mut self.cluster.workers[worker];
        let begun = Instant::now();
        worker.start_again();
        worker.ready().await;
        let time = begun.elapsed();
        row.recovered_in(time);
        let log_bytes = worker.metric("tailring_worker_log_bytes", &[]).await;
        let gib = log_bytes as f64 / f64::from(1 << 30);
        let bound = Duration::from_secs_f64(2.0 + 4.0 * gib);
        row.figure(scale, time <= bound, || {
            format!("ready after {time:.2?}, more than {bound:.2?} for {gib:.2} GiB of log")
        });
    }

    /// The anonymous memory of the largest worker.
    pub fn memory(&self, row: &mut Row) {
        for worker in &self.cluster.workers {
            row.memory(worker.process.memory("RssAnon"));
        }
    }

    /// Ends the load and waits for everything to be exported; compares the books.
    pub async fn finish(mut self, row: &mut Row) -> LoadEnd {
        self.load.signal(Signal::INT);
        let load = LoadEnd::of(self.load, LOAD_ENDS_WITHIN).await;
        for name in ["batches_given_up", "batches_refused", "batches_partial"] {
            let count = load.count(name);
            row.must(count == 0, || format!("{name}: {count}"));
        }
        self.cluster.settled(EXPORTED_WITHIN).await;
        let found = self.cluster.verify("load").await;
        row.must(
            found.acknowledged == load.count("spans_acknowledged"),
            || format!("the ledger has {} acknowledged spans", found.acknowledged),
        );
        row.judge(found);
        row.note(format!(
            "{} retries, slowest acknowledgement {:.1} s",
            load.count("retries"),
            load.max_ms() / 1_000.0
        ));
        load
    }
}
