//! What a buffered span costs in memory and on disk.

use std::path::Path;
use std::time::Duration;

use crate::process::{Cpu, data_dir, field, null_server, rest, send, worker};

const MILLION: u64 = 1_000_000;
const UNDECIDED_WAIT_SECONDS: u64 = 25;

/// RssAnon growth at 1 M undecided spans, again after 90 % were dropped and refilled, and disk.
pub(crate) fn run() -> i32 {
    let dir = data_dir("memory");
    let backend = null_server(false, Cpu::Others);
    let policies = dir.join("policies.yaml");
    std::fs::write(
        &policies,
        format!(
            "decision_wait: {UNDECIDED_WAIT_SECONDS}s\npolicies:\n  - {{name: tenth, type: probabilistic, probabilistic: {{sampling_percentage: 10}}}}\n"
        ),
    )
    .unwrap();
    let worker = worker(&dir, &policies, backend.grpc, Cpu::Measured, &[]);
    // Warm: connections, buffers, thread stacks. Their cost does not grow with what is buffered.
    let _ = send(worker.grpc, 100_000, 1);
    worker.wait_until("nothing undecided", |w| {
        w.metric("tailring_worker_undecided_spans") == 0.0
    });
    rest(Duration::from_secs(3));
    let base = worker.rss_anon();
    let disk_base = disk_bytes(&dir.join("log"));
    let cache_base = page_cache();
    let mut missed = 0;
    for (number, title) in [
        (2, "1 M undecided spans"),
        (3, "after 90 % dropped, refilled"),
    ] {
        let sent_bytes = send(worker.grpc, MILLION, number);
        worker.wait_until("the gauges", |w| {
            w.metric("tailring_worker_undecided_spans") >= MILLION as f64 * 0.999
        });
        rest(Duration::from_secs(3));
        let spans = worker.metric("tailring_worker_undecided_spans");
        let per_span = (worker.rss_anon() as f64 - base as f64) / spans;
        let held = per_span <= 30.0;
        missed += i32::from(!held);
        println!(
            "{title:<30} RssAnon {:>6.1} MiB, grown by {per_span:>5.1} bytes a span  goal <= 30  {}",
            worker.rss_anon() as f64 / 1048576.0,
            if held { "held" } else { "MISSED" }
        );
        if number == 2 {
            let disk = (disk_bytes(&dir.join("log")) - disk_base) as f64 / sent_bytes;
            let held = disk <= 1.1;
            missed += i32::from(!held);
            println!(
                "{:<30} {disk:.3} of the requests' bytes  goal <= 1.10  {}",
                "  disk",
                if held { "held" } else { "MISSED" }
            );
            println!(
                "{:<30} {:.0} MiB more than before (the machine's)",
                "  page cache",
                (page_cache() as f64 - cache_base as f64) / 1048576.0
            );
        }
        worker.wait_until("nothing undecided", |w| {
            w.metric("tailring_worker_undecided_spans") == 0.0
        });
        rest(Duration::from_secs(3));
    }
    drop(worker);
    std::fs::remove_dir_all(&dir).unwrap();
    i32::from(missed > 0)
}

/// Blocks that the files of a folder occupy.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir(dir)
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.metadata().ok())
                .map(|file| file.blocks() * 512)
                .sum()
        })
        .unwrap_or(0)
}

fn page_cache() -> u64 {
    field(
        &std::fs::read_to_string("/proc/meminfo").unwrap(),
        "Cached:",
    )
}
