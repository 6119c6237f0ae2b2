//! A worker with a memory limit, offered ten times what it can bear.
//!
//! One core makes load only a few times faster than another one stores it, so the worker gets a
//! twentieth of its core: it is stopped and continued fifty times a second, by signals. What it bears like that
//! is measured with a closed loop, and then ten times as much is offered by a schedule that waits for nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::judge;
use crate::process::{Cpu, Load, Process, clock, data_dir, null_server, rest, worker};

const LIMIT_MIB: f64 = 256.0;
const TURN: Duration = Duration::from_millis(20);
const RUNNING: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_secs(15);
const WARM_UP: Duration = Duration::from_secs(6);
const APPENDED: &str = "tailring_worker_spans_total{fate=\"appended\"}";

pub(crate) fn run() -> i32 {
    let dir = data_dir("overload");
    let backend = null_server(false, Cpu::Others);
    let policies = dir.join("policies.yaml");
    std::fs::write(
        &policies,
        "decision_wait: 2s\npolicies:\n  - {name: tenth, type: probabilistic, probabilistic: {sampling_percentage: 10}}\n",
    )
    .unwrap();
    let limit = format!("{LIMIT_MIB}MiB");
    let worker = worker(
        &dir,
        &policies,
        backend.grpc,
        Cpu::Measured,
        &[("--memory-limit", &limit)],
    );
    let throttle = Throttle::start(&worker);
    let load = Load::start(worker.grpc);
    let (capacity, at_capacity) = goodput(&worker);
    drop(load);
    println!(
        "capacity {capacity:.0} spans/s, RssAnon at most {at_capacity:.0} MiB (limit {LIMIT_MIB} MiB)"
    );
    let offered = format!("{:.0}", 10.0 * capacity);
    let load = Load::flood(worker.grpc, &offered);
    let (good, rss) = goodput(&worker);
    drop(load);
    let refused =
        worker.metric("tailring_requests_total{protocol=\"grpc\",outcome=\"memory_pressure\"}");
    println!(
        "offered {offered} spans/s, stored {good:.0}; {refused:.0} requests refused (memory_pressure)"
    );
    drop(throttle);
    // It is well again.
    worker.wait_until("nothing undecided", |worker| {
        worker.metric("tailring_worker_undecided_spans") == 0.0
    });
    drop(worker);
    std::fs::remove_dir_all(&dir).unwrap();
    let missed = judge(
        "RssAnon at 10 x the load, at most",
        &format!(
            "{rss:.0} MiB, {:.0} % of the limit",
            rss / LIMIT_MIB * 100.0
        ),
        "<= 110 %",
        rss <= 1.1 * LIMIT_MIB,
    ) + judge(
        "goodput at 10 x the load",
        &format!("{:.0} % of capacity", good / capacity * 100.0),
        ">= 80 %",
        good >= 0.8 * capacity,
    );
    i32::from(missed > 0)
}

/// Spans that were stored a second, and the most memory that was seen, in MiB.
fn goodput(worker: &Process) -> (f64, f64) {
    rest(WARM_UP);
    let (started, before) = (clock(), worker.metric(APPENDED));
    let mut rss = 0;
    while started.elapsed() < WINDOW {
        rest(Duration::from_millis(20));
        rss = rss.max(worker.rss_anon());
    }
    let spans = worker.metric(APPENDED) - before;
    (
        spans / started.elapsed().as_secs_f64(),
        rss as f64 / 1048576.0,
    )
}

/// Stops a process for most of the time.
struct Throttle {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    fn start(process: &Process) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (over, pid) = (ends.clone(), Pid::from_child(&process.child));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                kill_process(pid, Signal::STOP).unwrap();
                rest(TURN - RUNNING);
                kill_process(pid, Signal::CONT).unwrap();
                rest(RUNNING);
            }
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
