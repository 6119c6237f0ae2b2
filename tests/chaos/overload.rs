//! Ten times what can be sustained, under a memory limit.
//!
//! A worker that has two cores cannot be sent ten times what it can do by a load on the same two
//! cores. So it runs for a few milliseconds of each tenth of a second, as in a container with a CPU
//! limit that is throttled for the rest of each period; what it can do like that is measured first.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, LoadEnd, Plan, Tier};
use crate::process::{PATIENCE, Process};
use crate::row::{Doubling, Row, Scale};

/// A period of the worker, and how much of it it runs.
const PERIOD: Duration = Duration::from_millis(100);
const RUNS: Duration = Duration::from_millis(5);
const MEMORY_LIMIT_BYTES: u64 = 256 << 20;
const WARM_UP: Duration = Duration::from_secs(2);
const LOOKS_EVERY: Duration = Duration::from_millis(20);
const TIMES: u64 = 10;
/// Of a batch of the load, by default.
const BATCH_SPANS: u64 = 512;
/// Requests wait for the worker whenever it runs.
const CAPACITY: [&str; 4] = ["--shape", "agent", "--in-flight", "32"];
/// Many clients, or their HTTP/2 windows alone would hold them back. They have a queue, too: what is
/// due and finds it full is missed.
const OVERLOAD: [&str; 8] = [
    "--shape",
    "agent",
    "--connections",
    "64",
    "--in-flight",
    "32",
    "--give-up-after",
    "5s",
];

/// What happened to a load.
struct Phase {
    end: LoadEnd,
    /// Spans acknowledged in a second, from the warm-up to the end of the schedule.
    goodput: f64,
    /// Highest anonymous memory of worker and router.
    peaks: [u64; 2],
}

/// Who takes the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Router,
    Worker,
}

fn at(door: Door, cluster: &Cluster) -> &Tier {
    match door {
        Door::Router => &cluster.routers[0],
        Door::Worker => &cluster.workers[0],
    }
}

pub async fn ten_times_too_much(door: Door, scale: Scale) -> Row {
    let name = match door {
        Door::Router => "10 x overload of a router and a worker",
        Door::Worker => "10 x overload of a worker",
    };
    let mut row = Row::new(name, Doubling::Never);
    let limited = &["--memory-limit", "256MiB"];
    let plan = Plan {
        workers: 1,
        worker_args: limited,
        router_args: limited,
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await;
    let seconds = scale.pick(5, 30);

    let load = cluster.load(
        "capacity",
        at(door, &cluster).grpc,
        "max",
        seconds,
        &CAPACITY,
    );
    let capacity = starved(&cluster, at(door, &cluster), load, seconds).await;
    cluster.settled(PATIENCE * 4).await;
    let found = cluster.verify("capacity").await;
    row.judge(found);
    cluster.forget_books();
    cluster.start_sink(&[]).await;

    let rate = (capacity.goodput * TIMES as f64).to_string();
    let load = cluster.load("load", at(door, &cluster).grpc, &rate, seconds, &OVERLOAD);
    let overload = starved(&cluster, at(door, &cluster), load, seconds).await;
    cluster.settled(PATIENCE * 4).await;
    let found = cluster.verify("load").await;
    row.judge(found);

    let turned_away = overload.end.count("retries") + overload.end.count("batches_missed");
    let attempts = overload.end.count("batches_sent") + turned_away;
    let share = overload.goodput / capacity.goodput;
    let offered = (attempts * BATCH_SPANS) as f64 / f64::from(seconds) / capacity.goodput;
    row.note(format!(
        "capacity {:.0} spans/s, offered {offered:.1} times that, goodput {:.0} spans/s ({:.0} %)",
        capacity.goodput,
        overload.goodput,
        100.0 * share,
    ));
    row.figure(scale, offered >= TIMES as f64, || {
        format!("the load was only {offered:.1} times the capacity")
    });
    for (name, [worker, router]) in [("capacity", capacity.peaks), ("overload", overload.peaks)] {
        row.note(format!(
            "anonymous memory at {name}: worker {} MiB, router {} MiB",
            worker >> 20,
            router >> 20
        ));
        row.memory(worker.max(router));
    }
    let peak = capacity.peaks.into_iter().chain(overload.peaks).max();
    let peak = peak.unwrap_or_default();
    row.must(peak <= MEMORY_LIMIT_BYTES / 10 * 11, || {
        format!("{} MiB of anonymous memory", peak >> 20)
    });
    row.figure(scale, share >= 0.8, || {
        format!("goodput is {:.0} % of the capacity", 100.0 * share)
    });
    row.must(turned_away > 0, || "that was no overload".to_owned());
    row
}

/// Watches a load to its end, at a worker that is starved.
async fn starved(cluster: &Cluster, door: &Tier, mut load: Process, seconds: u32) -> Phase {
    let worker = &cluster.workers[0].process;
    let router = &cluster.routers[0].process;
    let starving = Starving::begin(worker);
    let mut peaks = [0; 2];
    let begun = Instant::now();
    let mut looks = [WARM_UP, Duration::from_secs(seconds.into())].into_iter();
    let mut look = looks.next();
    let mut seen = Vec::new();
    while load.exited().is_none() {
        for (peak, process) in peaks.iter_mut().zip([worker, router]) {
            *peak = process.memory("RssAnon").max(*peak);
        }
        if look.is_some_and(|at| begun.elapsed() >= at) {
            look = looks.next();
            let accepted = ["outcome=\"accepted\"", "protocol=\"grpc\""];
            let accepted = door.metric("tailring_requests_total", &accepted).await;
            seen.push((Instant::now(), accepted));
        }
        sleep(LOOKS_EVERY).await; // until the next look at what is watched to its end
    }
    drop(starving);
    let [(from, before), (to, after)] = seen[..] else {
        panic!("the load ended early: {seen:?}");
    };
    Phase {
        goodput: ((after - before) * BATCH_SPANS) as f64 / (to - from).as_secs_f64(),
        end: LoadEnd::of(load, PATIENCE).await,
        peaks,
    }
}

/// A process that is stopped most of the time, until this is dropped.
struct Starving {
    pid: Pid,
    throttle: JoinHandle<()>,
}

impl Starving {
    fn begin(process: &Process) -> Self {
        let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
        let throttle = tokio::spawn(async move {
            loop {
                kill_process(pid, Signal::STOP).unwrap();
                sleep(PERIOD - RUNS).await; // the throttle's own time, as the next
                kill_process(pid, Signal::CONT).unwrap();
                sleep(RUNS).await;
            }
        });
        Self { pid, throttle }
    }
}

impl Drop for Starving {
    fn drop(&mut self) {
        // The runtime has one thread: the task is not between two signals now.
        self.throttle.abort();
        kill_process(self.pid, Signal::CONT).unwrap();
    }
}
