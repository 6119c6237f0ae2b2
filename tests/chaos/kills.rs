//! Processes that are killed or stopped under load: workers one at a time and all at once,
//! routers, and a worker that stands still.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::cluster::Plan;
use crate::process::{PATIENCE, until};
use crate::row::{Doubling, Row, Scale};
use crate::run::Run;

fn plan(scale: Scale) -> Plan {
    Plan {
        decision_wait: scale.pick("2s", "10s"),
        ..Plan::default()
    }
}

/// One of three workers after the other is killed, is away for 1 to 20 s, and comes back. A message
/// that was written and not answered is at its stand-in as well: without handoff that doubles some
/// 170 spans in one of ten kills, however long the load. So this has no short form in which 0.1 %
/// would hold every time; `tests/cluster` has one that looks for lost spans only.
pub async fn one_worker_is_killed() -> Row {
    const KILLS: u64 = 20;
    let name = format!("kill -9 of one of three workers, {KILLS} times");
    let mut row = Row::new(name, Doubling::AfterLostAnswers);
    let mut run = Run::start(plan(Scale::Full)).await;
    for turn in 0..KILLS {
        let victim = turn as usize % run.cluster.workers.len();
        run.cluster.workers[victim].kill().await;
        // How long it is away: the fault's own duration, each of 1 to 20 s once.
        sleep(Duration::from_secs(1 + turn * 7 % 20)).await;
        run.starts_again(victim, &mut row, Scale::Full).await;
        let worker = &run.cluster.workers[victim];
        until("the worker gets its traces again", PATIENCE, async || {
            let appended = ["fate=\"appended\""];
            let appended = worker
                .metric("tailring_worker_spans_total", &appended)
                .await;
            (appended > 1_000).then_some(())
        })
        .await;
    }
    run.finish(&mut row).await;
    row
}

/// The only worker, again and again: clients are refused meanwhile.
pub async fn the_only_worker_is_killed(scale: Scale) -> Row {
    let kills = scale.pick(3, 20);
    let name = format!("kill -9 of the only worker, {kills} times");
    let doubling = scale.pick(
        Doubling::InFlightAtDeaths(kills),
        Doubling::AfterLostAnswers,
    );
    let mut row = Row::new(name, doubling);
    let plan = Plan {
        workers: 1,
        ..plan(scale)
    };
    let mut run = Run::start(plan).await;
    for _ in 0..kills {
        all_at_once(&mut run, &mut row, scale).await;
        // Circuits close and what was refused is sent again before the next one.
        run.goes_on(5_000, PATIENCE).await;
    }
    run.finish(&mut row).await;
    row
}

/// All three at once. A request of which only a part was taken comes again when other circuits are
/// open than before, and goes to other stand-ins: without handoff that doubles some 70 spans each
/// time, whatever comes before and after. So this has no short form either.
pub async fn all_workers_are_killed() -> Row {
    let name = "kill -9 of all three workers at once";
    let mut row = Row::new(name, Doubling::AfterLostAnswers);
    let mut run = Run::start(plan(Scale::Full)).await;
    run.goes_on(100_000, PATIENCE * 2).await;
    all_at_once(&mut run, &mut row, Scale::Full).await;
    run.goes_on(100_000, PATIENCE * 2).await;
    run.finish(&mut row).await;
    row
}

/// Kills all workers and starts them again; the time until all are ready and spans are taken.
async fn all_at_once(run: &mut Run, row: &mut Row, scale: Scale) {
    for worker in &run.cluster.workers {
        worker.process.signal(Signal::KILL);
    }
    for worker in &mut run.cluster.workers {
        worker.process.exit(PATIENCE).await;
    }
    // How long all are away.
    sleep(Duration::from_secs(1)).await;
    let again = Instant::now();
    for worker in &mut run.cluster.workers {
        worker.start_again();
    }
    for worker in &mut run.cluster.workers {
        worker.ready().await;
    }
    run.goes_on(1_000, PATIENCE).await;
    let time = again.elapsed();
    row.recovered_in(time);
    row.figure(scale, time <= Duration::from_secs(10), || {
        format!("full service only after {time:.1?}")
    });
}

/// One of two routers after the other, behind one address.
pub async fn routers_are_killed(scale: Scale) -> Row {
    let kills = scale.pick(3, 20);
    let name = format!("kill -9 of routers, {kills} times");
    let mut row = Row::new(name, Doubling::AfterLostAnswers);
    let plan = Plan {
        routers: 2,
        ..plan(scale)
    };
    let (mut run, _service) = Run::start_behind_service(plan).await;
    for turn in 0..kills {
        // Every fifth time there is none left.
        let both = turn % 5 == 2;
        let routers = run.cluster.routers.len();
        let victims: Vec<usize> = (0..routers)
            .filter(|router| both || turn % routers == *router)
            .collect();
        for &victim in &victims {
            run.cluster.routers[victim].kill().await;
        }
        // How long it is away.
        sleep(Duration::from_millis(500)).await;
        let again = Instant::now();
        for &victim in &victims {
            run.cluster.routers[victim].start_again();
        }
        for &victim in &victims {
            run.cluster.routers[victim].ready().await;
        }
        run.goes_on(2_000, PATIENCE).await;
        row.recovered_in(again.elapsed());
    }
    run.finish(&mut row).await;
    row
}

/// SIGSTOP: its sockets stay open and nobody answers.
pub async fn a_worker_stands_still(scale: Scale) -> Row {
    let seconds = scale.pick(8, 30);
    let name = format!("SIGSTOP of one of three workers, {seconds} s");
    let mut row = Row::new(name, Doubling::AfterLostAnswers);
    let run = Run::start(plan(scale)).await;
    let router = &run.cluster.routers[0];
    stand_still(&run, 1, seconds).await;
    let woken = Instant::now();
    until("the owner gets its spans back", PATIENCE, async || {
        let open = router.metric("tailring_router_circuit_open", &[]).await;
        (open == 0).then_some(())
    })
    .await;
    row.recovered_in(woken.elapsed());
    let surrogate = "tailring_router_spans_surrogate_total";
    let surrogate = router.metric(surrogate, &[]).await;
    row.must(surrogate > 0, || "nobody stood in".to_owned());
    row.note(format!("{surrogate} spans went to stand-ins"));
    // Long enough that the one message that was at two places does not weigh more than it should.
    run.goes_on(150_000, PATIENCE * 3).await;
    run.finish(&mut row).await;
    row
}

/// The same without anybody who could stand in: clients have to wait.
pub async fn the_only_worker_stands_still(scale: Scale) -> Row {
    let seconds = scale.pick(8, 30);
    let name = format!("SIGSTOP of the only worker, {seconds} s");
    let mut row = Row::new(name, Doubling::Never);
    let plan = Plan {
        workers: 1,
        ..plan(scale)
    };
    let run = Run::start(plan).await;
    stand_still(&run, 0, seconds).await;
    let woken = Instant::now();
    run.goes_on(5_000, PATIENCE).await;
    row.recovered_in(woken.elapsed());
    let load = run.finish(&mut row).await;
    row.must(load.count("retries") > 0, || "nobody noticed".to_owned());
    row
}

async fn stand_still(run: &Run, worker: usize, seconds: u64) {
    let stopped = &run.cluster.workers[worker].process;
    stopped.signal(Signal::STOP);
    // The fault's own duration.
    sleep(Duration::from_secs(seconds)).await;
    stopped.signal(Signal::CONT);
}
