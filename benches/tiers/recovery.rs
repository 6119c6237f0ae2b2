//! How long a worker takes to be ready after it was killed, by what its log holds; what it reads for that,
//! and what memory it needs meanwhile. Beside it, the time that the same bytes take to be read and
//! nothing else.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::memory::disk_bytes;
use crate::process::{
    CONNECTIONS, Cpu, Process, clock, data_dir, free_port, get, load, null_server, rest,
    starting_worker, worker,
};

const GIB: f64 = (1_u64 << 30) as f64;
const LOG_BYTES: u64 = 1 << 30;
/// A segment is synced 45 s after it was sealed, and has a footer from then on that is believed.
const UNTIL_SYNCED: Duration = Duration::from_secs(55);

/// Judged long after the measurement; so that spans have to be folded again.
const UNDECIDED: &str = include_str!("../../deploy/policies/fleet.yaml");
const KEPT: &str = "decision_wait: 1s\npolicies:\n  - {name: all, type: always_sample}\n";

struct Start {
    ready_seconds: f64,
    cpu_seconds: f64,
    read_bytes: u64,
    peak_anon_bytes: u64,
    anon_bytes: u64,
    index_bytes: f64,
}

pub(crate) fn run() -> i32 {
    let undecided = UNDECIDED.replace("decision_wait: 30s", "decision_wait: 3600s");
    assert_ne!(undecided, UNDECIDED);
    let mut missed = 0;
    println!(
        "{:<26} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "log",
        "GiB",
        "plain s",
        "ready s",
        "cpu s",
        "read MiB",
        "peak MiB",
        "then MiB",
        "index MiB",
        "goal s"
    );
    for is_young in [false, true] {
        missed += measure("undecided", &undecided, is_young, |gib| 2.0 + 4.0 * gib);
        missed += measure("kept", KEPT, is_young, |gib| 2.0 + gib);
    }
    i32::from(missed > 0)
}

/// `is_young`: killed before any segment was synced, so that all are read as a whole.
fn measure(name: &str, rules: &str, is_young: bool, goal: impl Fn(f64) -> f64) -> i32 {
    let dir = data_dir("recovery");
    let log = dir.join("log");
    let policies = dir.join("policies.yaml");
    std::fs::write(&policies, rules).unwrap();
    // Nobody listens there.
    let away = free_port();
    let keeps = rules == KEPT;
    let backend = null_server(false, Cpu::Others);
    let target = if keeps { away } else { backend.grpc };
    let first = worker(&dir, &policies, target, Cpu::Measured, &[]);
    fill(&first, &log);
    first.wait_until("what was sent is in its state", |worker| {
        let undecided = worker.metric("tailring_worker_undecided_spans");
        if keeps {
            undecided == 0.0
        } else {
            undecided == worker.metric("tailring_worker_spans_total{fate=\"appended\"}")
        }
    });
    if !is_young {
        rest(UNTIL_SYNCED);
    }
    drop(first);
    let gib = disk_bytes(&log) as f64 / GIB;
    let mut missed = 0;
    for is_cold in [false, true] {
        if is_cold && is_young {
            continue; // What is young is in memory.
        }
        if is_cold {
            forget(&log);
        }
        let plain = plain_read(&log);
        if is_cold {
            forget(&log);
        }
        let start = start(&dir, &policies, target);
        let goal = goal(gib);
        let held = start.ready_seconds <= goal;
        missed += i32::from(!held);
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!(
            "{:<26} {gib:>6.2} {plain:>8.2} {:>8.2} {:>8.2} {:>9.0} {:>9.1} {:>9.1} {:>9.1} {goal:>8.2}  {}",
            match (is_young, is_cold) {
                (true, _) => format!("{name}, young"),
                (_, true) => format!("{name}, not in memory"),
                _ => name.to_owned(),
            },
            start.ready_seconds,
            start.cpu_seconds,
            mib(start.read_bytes as f64),
            mib(start.peak_anon_bytes as f64),
            mib(start.anon_bytes as f64),
            mib(start.index_bytes),
            if held { "held" } else { "MISSED" }
        );
    }
    std::fs::remove_dir_all(&dir).unwrap();
    missed
}

/// As fast as it takes it.
fn fill(worker: &Process, log: &Path) {
    for seed in 1.. {
        if disk_bytes(log) >= LOG_BYTES {
            return;
        }
        assert!(seed < 100, "the log does not grow");
        let seed = seed.to_string();
        let fixed = ["--rate", "max", "--for", "3s", "--connections", CONNECTIONS];
        load(worker.grpc, &fixed)
            .args(["--seed", &seed])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }
}

/// From the start of the process to `/readyz`; killed again after it.
fn start(dir: &Path, policies: &Path, backend: SocketAddr) -> Start {
    let began = clock();
    let worker = starting_worker(dir, policies, backend, Cpu::Measured, &[]);
    let mut peak_anon_bytes = 0;
    let is_ready =
        |worker: &Process| get(worker.admin, "/readyz").is_some_and(|(status, _)| status == 200);
    while !is_ready(&worker) {
        peak_anon_bytes = worker.rss_anon().max(peak_anon_bytes);
        assert!(began.elapsed() < Duration::from_secs(300), "never ready");
        rest(Duration::from_millis(5));
    }
    let ready_seconds = began.elapsed().as_secs_f64();
    let read = std::fs::read_to_string(format!("/proc/{}/io", worker.child.id())).unwrap();
    Start {
        ready_seconds,
        cpu_seconds: worker.cpu_seconds(),
        read_bytes: read
            .lines()
            .find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
            .unwrap(),
        peak_anon_bytes,
        anon_bytes: {
            // The allocator gives back what recovery needed.
            rest(Duration::from_secs(3));
            worker.rss_anon()
        },
        index_bytes: worker.metric("tailring_worker_index_bytes"),
    }
}

fn segments(log: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(log).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths
        .filter(|it| it.extension().is_some_and(|it| it == "seg"))
        .collect()
}

/// Takes the segments out of the page cache.
fn forget(log: &Path) {
    for path in segments(log) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// Seconds to read every byte of the segments.
fn plain_read(log: &Path) -> f64 {
    let began = clock();
    let mut buffer = vec![0; 8 << 20];
    for path in segments(log) {
        let mut file = File::open(path).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
    began.elapsed().as_secs_f64()
}
