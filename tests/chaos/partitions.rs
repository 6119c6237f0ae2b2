//! Ways that are cut in one direction: packets vanish, and nobody is told.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Plan;
use crate::namespaces::Namespaces;
use crate::process::{PATIENCE, until};
use crate::ring;
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;

/// Which way is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// From one worker to another.
    BetweenWorkers,
    /// From the host of routers, DNS and the backend to a worker: requests and answers of DNS and backend.
    ToWorker,
    /// From a worker to that host: acknowledgements, exports, questions to DNS.
    FromWorker,
}

impl Cut {
    fn name(self) -> &'static str {
        match self {
            Self::BetweenWorkers => "from worker 0 to worker 1",
            Self::ToWorker => "from routers, DNS and backend to worker 1",
            Self::FromWorker => "from worker 1 to routers, DNS and backend",
        }
    }
}

/// Calls that came to no end, of peers or of the router.
async fn noticed(run: &Run, cut: Cut) -> u64 {
    let timed_out = ["outcome=\"timed_out\""];
    match cut {
        Cut::BetweenWorkers => {
            let calls = "tailring_peer_calls_total";
            run.cluster.workers_sum(calls, &timed_out).await
        }
        Cut::ToWorker | Cut::FromWorker => {
            let router = &run.cluster.routers[0];
            router
                .metric("tailring_router_rpcs_total", &timed_out)
                .await
        }
    }
}

/// Twice: shorter than a silence that makes a worker doubt itself, and as long as is promised.
pub async fn one_way(scale: Scale, cut: Cut) -> Row {
    let seconds = [scale.pick(2, 4), scale.pick(6, 25)];
    let name = format!("no way {}, {seconds:?} s", cut.name());
    let mut namespaces = match Namespaces::make(3) {
        Ok(namespaces) => namespaces,
        Err(why) => return Row::skipped(&name, why),
    };
    let mut row = Row::new(name, Doubling::AfterLostAnswers).splits_nothing();
    let plan = Plan {
        decision_wait: scale.pick("2s", "10s"),
        places: namespaces.places(),
        host: namespaces.host(),
        ..Plan::default()
    };
    let run = Run::start(plan).await;
    let (host, worker) = (namespaces.host(), run.cluster.workers[1].grpc.ip());
    let (from, to) = match cut {
        Cut::BetweenWorkers => (run.cluster.workers[0].grpc.ip(), worker),
        Cut::ToWorker => (host, worker),
        Cut::FromWorker => (worker, host),
    };
    for seconds in seconds {
        let before = noticed(&run, cut).await;
        namespaces.cut(from, to);
        // The fault's own duration.
        sleep(Duration::from_secs(seconds)).await;
        namespaces.heal();
        let healed = Instant::now();
        let router = &run.cluster.routers[0];
        until("all workers get their spans", PATIENCE * 2, async || {
            let open = router.metric("tailring_router_circuit_open", &[]).await;
            (open == 0).then_some(())
        })
        .await;
        row.recovered_in(healed.elapsed());
        let times = noticed(&run, cut).await - before;
        row.note(format!("{times} calls without an answer in {seconds} s"));
        row.must(times > 0, || format!("nobody noticed {seconds} s"));
        run.goes_on(scale.pick(10_000, 100_000), PATIENCE * 4).await;
    }
    ring::ends(run, &mut row).await;
    row
}
