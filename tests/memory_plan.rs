//! What a start makes of the memory there is: cgroups of both versions, the machine, a log on tmpfs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic fails the test, and one that was not run says so"
)]

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tailring::app::settings::{
    ByteSize, Machine, MemoryOrigin, MemoryPlan, OnPressure, Surroundings, Volume, WorkerArgs,
    WorkerConfig, WrongSettings,
};

const WORKER: &str = env!("CARGO_BIN_EXE_tailring-worker");
/// Memory on most systems; where it is not, its tests say that they were not run.
const SHM: &str = "/dev/shm";
const GIB: u64 = 1 << 30;

/// Its path and its content.
type File = (&'static str, &'static str);

/// A machine whose files lie below a directory.
struct Rooted {
    root: PathBuf,
    volume: Volume,
}

impl Rooted {
    fn of(root: &Path, files: &[File]) -> Self {
        for (path, content) in files {
            let path = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Self {
            root: root.to_owned(),
            volume: Volume {
                size: ByteSize(100 * GIB),
                is_memory: false,
            },
        }
    }
}

impl Surroundings for Rooted {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        Machine.read(&self.root.join(path.strip_prefix("/").unwrap()), bytes_max)
    }

    fn volume(&self, _: &Path) -> io::Result<Volume> {
        Ok(self.volume)
    }

    fn cores(&self) -> u16 {
        2
    }
}

fn args() -> WorkerArgs {
    let mut args = WorkerArgs {
        name: Some("a".into()),
        export: Some("stdout".into()),
        data_dir: Some("/data".into()),
        ..WorkerArgs::default()
    };
    args.shared.workers = Some("static://a=127.0.0.1:4317".into());
    args
}

const MEMINFO: File = (
    "/proc/meminfo",
    "MemTotal:       16777216 kB\nMemFree: 1 kB\n",
);

#[test]
fn the_limit_is_a_share_of_the_cgroups_or_else_of_the_machines() {
    let v1 = ("/proc/self/cgroup", "9:memory:/pod/a\n1:name=systemd:/\n");
    let v1_file = "/sys/fs/cgroup/memory/pod/a/memory.limit_in_bytes";
    let v2 = ("/proc/self/cgroup", "0::/pod/a\n");
    let v2_file = "/sys/fs/cgroup/pod/a/memory.max";
    let rows: [(&[File], u64, MemoryOrigin); 6] = [
        (
            &[v2, (v2_file, "4294967296\n")],
            4 * GIB,
            MemoryOrigin::Cgroup,
        ),
        (&[v2, (v2_file, "max\n")], 16 * GIB, MemoryOrigin::Machine),
        (
            &[v1, (v1_file, "2147483648\n")],
            2 * GIB,
            MemoryOrigin::Cgroup,
        ),
        (
            &[v1, (v1_file, "9223372036854771712\n")],
            16 * GIB,
            MemoryOrigin::Machine,
        ),
        // In a container that sees itself as the root.
        (
            &[v2, ("/sys/fs/cgroup/memory.max", "1073741824\n")],
            GIB,
            MemoryOrigin::Cgroup,
        ),
        (&[], 16 * GIB, MemoryOrigin::Machine),
    ];
    for (files, found, origin) in rows {
        let dir = tempfile::tempdir().unwrap();
        let machine = Rooted::of(dir.path(), &[&[MEMINFO], files].concat());
        let config = WorkerConfig::of(&args(), &machine).unwrap();
        let limit = config.shared.memory_limit;
        assert_eq!((limit.found, limit.origin), (Some(ByteSize(found)), origin));
        assert_eq!(limit.size, ByteSize(found / 5 * 4 + found % 5 * 4 / 5));
        assert_eq!(config.memory, MemoryPlan::worker(limit.size, None));
        assert_eq!(config.log_max_bytes, ByteSize(80 * GIB));
        assert!(!config.log_is_memory);
        assert_eq!(config.on_pressure, OnPressure::Refuse);
    }
}

#[test]
fn a_written_limit_counts_whatever_the_cgroup_has() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Rooted::of(dir.path(), &[MEMINFO]);
    let mut args = args();
    args.shared.memory_limit = Some("3GiB".into());
    let limit = WorkerConfig::of(&args, &machine)
        .unwrap()
        .shared
        .memory_limit;
    assert_eq!(
        (limit.size, limit.origin),
        (ByteSize(3 * GIB), MemoryOrigin::Setting)
    );
}

#[test]
fn decisions_get_no_more_than_a_quarter_of_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Rooted::of(dir.path(), &[MEMINFO]);
    let mut args = args();
    args.shared.memory_limit = Some("256MiB".into());
    let config = WorkerConfig::of(&args, &machine).unwrap();
    assert!(config.memory.decisions < ByteSize::mib(32));
    args.decision_memory_max_bytes = Some("64MiB".into());
    let config = WorkerConfig::of(&args, &machine).unwrap();
    assert_eq!(config.memory.decisions, ByteSize::mib(64));
    args.decision_memory_max_bytes = Some("65MiB".into());
    let wrong = report(WorkerConfig::of(&args, &machine));
    assert!(
        wrong.contains("= 65MiB: is more than a quarter of the memory limit; write at most 64MiB"),
        "{wrong}"
    );
}

fn report(config: Result<WorkerConfig, WrongSettings>) -> String {
    config
        .unwrap_err()
        .0
        .iter()
        .map(|it| format!("{it}\n"))
        .collect()
}

#[test]
fn a_log_in_memory_is_taken_from_the_memory_limit_or_the_start_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Rooted::of(dir.path(), &[MEMINFO]);
    machine.volume.is_memory = true;
    let mut args = args();
    args.shared.memory_limit = Some("2GiB".into());
    let config = WorkerConfig::of(&args, &machine).unwrap();
    assert!(config.log_is_memory);
    assert_eq!(config.log_max_bytes, ByteSize(GIB));
    assert_eq!(config.memory, MemoryPlan::worker(ByteSize(GIB), None));

    args.log_max_bytes = Some("1900MiB".into());
    let wrong = report(WorkerConfig::of(&args, &machine));
    let told = "is on tmpfs, which is memory: a log of 1900MiB leaves 148MiB of the memory limit \
                of 2GiB, and this worker needs 231MiB";
    assert!(wrong.contains(told), "{wrong}");
    assert!(wrong.contains("write a directory on a disk"), "{wrong}");
    // Too little for any log.
    args.log_max_bytes = None;
    args.shared.memory_limit = Some("512MiB".into());
    let wrong = report(WorkerConfig::of(&args, &machine));
    assert!(
        wrong.contains("use a directory on a disk, or a larger --memory-limit"),
        "{wrong}"
    );
}

fn is_memory(path: &str) -> bool {
    let is_memory = Machine
        .volume(Path::new(path))
        .is_ok_and(|volume| volume.is_memory);
    if !is_memory {
        println!("SKIPPED: {path} is not tmpfs here");
    }
    is_memory
}

fn worker(data_dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(WORKER);
    command
        .args(["--name", "a", "--workers", "static://a=127.0.0.1:1"])
        .args(["--export", "grpc://127.0.0.1:9"])
        .args(["--data-dir", data_dir.to_str().unwrap()])
        .args(["--listen-grpc", "127.0.0.1:0"])
        .args(["--listen-http", "127.0.0.1:0"])
        .args(["--listen-admin", "127.0.0.1:0"])
        .args(["--listen-peers", "127.0.0.1:0"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Ended when the test ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_worker_on_real_tmpfs_without_memory_for_its_log_does_not_start() {
    if !is_memory(SHM) {
        return;
    }
    let dir = tempfile::tempdir_in(SHM).unwrap();
    let cores = u64::from(Machine.cores());
    let log = format!("{}MiB", 192 * cores);
    let output = worker(
        dir.path(),
        &["--log-max-bytes", &log, "--memory-limit", &log],
    )
    .output()
    .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    for words in [
        "--data-dir (TAILRING_DATA_DIR)",
        "is on tmpfs, which is memory",
        "leaves 0B",
    ] {
        assert!(told.contains(words), "{words} is not in {told}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_worker_on_real_tmpfs_says_at_the_start_what_it_found_and_chose() {
    if !is_memory(SHM) {
        return;
    }
    let dir = tempfile::tempdir_in(SHM).unwrap();
    let cores = u64::from(Machine.cores());
    let log = format!("{}MiB", 192 * cores);
    let limit = format!("{}MiB", 192 * cores + 256);
    let child = worker(
        dir.path(),
        &[
            "--log-max-bytes",
            &log,
            "--memory-limit",
            &limit,
            "--on-pressure",
            "decide",
        ],
    )
    .spawn()
    .unwrap();
    let mut child = Running(child);
    let mut told: Vec<serde_json::Value> = Vec::new();
    for line in BufReader::new(child.0.stderr.take().unwrap()).lines() {
        told.push(serde_json::from_str(&line.unwrap()).unwrap());
        if told.last().unwrap()["message"] == "the log is indexed" {
            break;
        }
    }
    let line = |message: &str| {
        told.iter()
            .find(|line| {
                line["message"]
                    .as_str()
                    .is_some_and(|it| it.starts_with(message))
            })
            .unwrap_or_else(|| panic!("{message} is not in {told:#?}"))
    };

    let starts = line("tailring-worker starts");
    assert_eq!(starts["memory_limit"], limit.as_str());
    assert_eq!(starts["memory_limit_from"], "--memory-limit");
    assert!(starts["memory_found"].is_string(), "{starts}");
    let worker = line("worker");
    assert_eq!(worker["on_pressure"], "decide");
    assert_eq!(worker["log_max_bytes"], log.as_str());
    for share in ["memory_budget", "index", "decisions", "export"] {
        assert!(worker[share].is_string(), "{share} is not in {worker}");
    }
    assert_eq!(line("--data-dir is on tmpfs")["memory_beside_it"], "256MiB");
}
