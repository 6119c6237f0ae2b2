//! Settings from the outside: real binaries, their reports, their exit codes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests; clippy sees only functions marked so"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tailring::app::settings::{
    Ack, ByteSize, Machine, RouterArgs, RouterConfig, WorkerArgs, WorkerConfig,
};
use tailring::policy::Rules;
use tailring::worker::export::ExportTarget;

const TOOL: &str = env!("CARGO_BIN_EXE_tailring");
const ROUTER: &str = env!("CARGO_BIN_EXE_tailring-router");
const WORKER: &str = env!("CARGO_BIN_EXE_tailring-worker");

/// A command that sees none of this machine's TAILRING_ variables.
fn command(binary: &str) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TAILRING_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(binary: &str, args: &[&str]) -> Output {
    command(binary).args(args).output().unwrap()
}

#[track_caller]
fn check_report(output: &Output, expected: &str) {
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
}

#[test]
fn every_wrong_setting_of_a_worker_is_in_one_report() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let policies = file(
        "policies.yaml",
        "decison_wait: 10s\npolicies:\n  - name: a\n    type: bytes_limiting\n",
    );
    let seed = file("seed", "short\n");
    let headers = file(
        "headers",
        "# fine\nauthorization: Bearer t0p\nt0p-secret\nx: a\u{1}b\n",
    );
    let output = command(WORKER)
        .args(["--name", "bad name", "--policies", &policies])
        .args(["--data-dir", "", "--log-max-bytes", "64mb"])
        .args(["--drop-retain", "120", "--decision-memory-max-bytes", "0"])
        .args(["--export-header-file", &headers, "--ack", "sometimes"])
        .args(["--max-trace-spans", "0", "--max-trace-bytes", "1.5GiB"])
        .args(["--on-pressure", "pray"])
        .args(["--cluster", "a b", "--ring-seed-file", &seed])
        .args(["--memory-limit", "lots", "--max-request-bytes", "5GiB"])
        .args(["--max-spans-per-request", "-1"])
        .args(["--listen-grpc", "4317", "--listen-http", "here:1"])
        .args(["--listen-admin", ":http", "--log", "warning"])
        .env("TAILRING_MAX_SPANS_PER_REQUEST", "unused: the flag wins")
        .output()
        .unwrap();
    let expected = "\
tailring-worker: 22 settings are wrong; nothing was started
  --name (TAILRING_NAME) = bad name: member name \"bad name\" has ' '; only letters, digits, '-', '_', '.', ':', '[' and ']' can stand in one
  --policies (TAILRING_POLICIES) = {policies}: has 2 mistakes
      {policies}:1:1: no setting is called `decison_wait`; did you mean `decision_wait`?
      {policies}:4:11: the policy has no block `bytes_limiting`; write one, for example
        bytes_limiting:
          bytes_per_second: 1048576
  --data-dir (TAILRING_DATA_DIR) = (empty): is empty; write a directory, for example /var/lib/tailring
  --log-max-bytes (TAILRING_LOG_MAX_BYTES) = 64mb: has the unit \"mb\"; the units are kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)
  --drop-retain (TAILRING_DROP_RETAIN) = 120: has no unit; write 120s for seconds or 120ms for milliseconds
  --decision-memory-max-bytes (TAILRING_DECISION_MEMORY_MAX_BYTES) = 0: is outside what works; write a size from 1MiB to 1TiB
  --export (TAILRING_EXPORT): is missing
      write where kept traces go, for example grpcs://otlp.example.com:443, or stdout to look at them
  --export-header-file (TAILRING_EXPORT_HEADER_FILE) = {headers}: has 2 mistakes
      line 3: there is no colon; write name: value
      line 4: the value of x has a character that is not printable ASCII
  --ack (TAILRING_ACK) = sometimes: is neither written (survives this process) nor synced (survives the host)
  --max-trace-spans (TAILRING_MAX_TRACE_SPANS) = 0: is not a count; write a whole number from 1 to 100000000, for example 32000
  --max-trace-bytes (TAILRING_MAX_TRACE_BYTES) = 1.5GiB: is not a whole number; use a smaller unit, for example 1536MiB for 1.5GiB
  --on-pressure (TAILRING_ON_PRESSURE) = pray: is neither refuse (clients send again) nor decide (traces are judged early, too)
  --workers (TAILRING_WORKERS): is missing
      write where the workers are found, for example srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local or static://worker-0=127.0.0.1:4317
  --cluster (TAILRING_CLUSTER) = a b: is not a cluster's name; write up to 253 letters, digits, '-', '_' and '.', for example production-eu
  --ring-seed-file (TAILRING_RING_SEED_FILE) = {seed}: has 5 bytes, and a secret of fewer than 16 can be guessed; write one with: head -c 32 /dev/urandom | base64
  --memory-limit (TAILRING_MEMORY_LIMIT) = lots: is not a size; write a whole number and a unit, for example 64MiB, 1GB or 67108864
  --max-request-bytes (TAILRING_MAX_REQUEST_BYTES) = 5GiB: is outside what works; write a size from 1KiB to 1GiB
  --max-spans-per-request (TAILRING_MAX_SPANS_PER_REQUEST) = -1: is not a count; write a whole number from 1 to 100000000, for example 100000
  --listen-grpc (TAILRING_LISTEN_GRPC) = 4317: has no host; write 127.0.0.1:4317, or :4317 for all interfaces
  --listen-http (TAILRING_LISTEN_HTTP) = here:1: has the host \"here\"; write an IP address (127.0.0.1:4317), or :4317 for all interfaces
  --listen-admin (TAILRING_LISTEN_ADMIN) = :http: has the port \"http\"; a port is a number from 0 to 65535
  --log (TAILRING_LOG) = warning: has \"warning\" for a level; the levels are off, error, warn, info, debug and trace
--help explains every setting.
"
    .replace("{policies}", &policies)
    .replace("{seed}", &seed)
    .replace("{headers}", &headers);
    check_report(&output, &expected);
    let all = String::from_utf8_lossy(&output.stderr);
    assert!(!all.contains("t0p"), "a secret is shown");
}

#[test]
fn mistakes_between_settings_are_found_too() {
    let output = run(
        TOOL,
        &[
            "router",
            "--workers",
            "ftp://user:secret@x",
            "--memory-limit",
            "100MiB",
            "--listen-grpc",
            ":5000",
            "--listen-http",
            "127.0.0.1:5000",
        ],
    );
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64));
    for part in [
        "tailring-router: 3 settings are wrong",
        "--memory-limit (TAILRING_MEMORY_LIMIT) = 100MiB: is too small for requests of 64MiB; \
         write at least 192MiB, or a smaller --max-request-bytes",
        "--listen-http (TAILRING_LISTEN_HTTP) = 127.0.0.1:5000: is the address of --listen-grpc \
         as well; give each its own port",
        "--workers (TAILRING_WORKERS) = ftp://…@x: ",
    ] {
        assert!(report.contains(part), "{part}\nis not in\n{report}");
    }
    assert!(!report.contains("secret"), "{report}");

    // Half of the limit is for requests, and one that fills it has a decoder beside it.
    let small = ["--memory-limit", "16MiB", "--max-request-bytes", "1MiB"];
    let output = run(TOOL, &[&["router"][..], &small].concat());
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    let part = "is too small for requests of 1MiB; write at least 32MiB";
    assert!(report.contains(part), "{report}");
}

#[test]
fn files_that_are_not_there_are_settings_mistakes() {
    let output = run(
        WORKER,
        &[
            "--workers",
            "static://a=127.0.0.1:1",
            "--export",
            "https://u:t0p@x",
            "--policies",
            "/nowhere/p",
            "--ring-seed-file",
            "/nowhere/s",
            "--export-header-file",
            "/nowhere/h",
            "--data-dir",
            "/",
            "--log-max-bytes",
            "1MiB",
        ],
    );
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64));
    assert!(report.contains("5 settings are wrong"), "{report}");
    assert!(
        report.contains("has a user or a password in it"),
        "{report}"
    );
    assert!(!report.contains("t0p"), "{report}");
    for path in ["/nowhere/p", "/nowhere/s", "/nowhere/h"] {
        let line = format!("= {path}: cannot be read: No such file");
        assert!(report.contains(&line), "{report}");
    }
    assert!(
        report.contains("= 1MiB: is too small: the log needs at least"),
        "{report}"
    );
}

#[test]
fn usage_mistakes_exit_with_64_and_help_with_0() {
    for args in [
        &["--no-such-flag"][..],
        &["--workers"],
        &["--workers", "a", "--workers", "b"],
        &["stray"],
    ] {
        for binary in [ROUTER, WORKER] {
            let output = run(binary, args);
            assert_eq!(output.status.code(), Some(64), "{args:?}");
            assert!(!output.stderr.is_empty());
        }
    }
    assert_eq!(run(TOOL, &[]).status.code(), Some(64));
    assert_eq!(run(TOOL, &["ruoter"]).status.code(), Some(64));
    for binary in [TOOL, ROUTER, WORKER] {
        for flag in ["--help", "-h", "--version"] {
            let output = run(binary, &[flag]);
            assert_eq!(output.status.code(), Some(0), "{flag}");
            assert!(!output.stdout.is_empty() && output.stderr.is_empty());
        }
    }
}

#[test]
fn help_names_every_flag_its_twin_and_its_default_and_no_values() {
    let output = command(WORKER)
        .arg("--help")
        .env("TAILRING_EXPORT", "https://user:t0p@secret")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(!help.contains("t0p"), "{help}");
    for (flag, twin) in [
        ("--name", "TAILRING_NAME"),
        ("--workers", "TAILRING_WORKERS"),
        ("--policies", "TAILRING_POLICIES"),
        ("--data-dir", "TAILRING_DATA_DIR"),
        ("--log-max-bytes", "TAILRING_LOG_MAX_BYTES"),
        ("--drop-retain", "TAILRING_DROP_RETAIN"),
        (
            "--decision-memory-max-bytes",
            "TAILRING_DECISION_MEMORY_MAX_BYTES",
        ),
        ("--export", "TAILRING_EXPORT"),
        ("--export-header-file", "TAILRING_EXPORT_HEADER_FILE"),
        ("--ack", "TAILRING_ACK"),
        ("--max-trace-spans", "TAILRING_MAX_TRACE_SPANS"),
        ("--max-trace-bytes", "TAILRING_MAX_TRACE_BYTES"),
        ("--on-pressure", "TAILRING_ON_PRESSURE"),
        ("--cluster", "TAILRING_CLUSTER"),
        ("--ring-seed-file", "TAILRING_RING_SEED_FILE"),
        ("--memory-limit", "TAILRING_MEMORY_LIMIT"),
        ("--max-request-bytes", "TAILRING_MAX_REQUEST_BYTES"),
        ("--max-spans-per-request", "TAILRING_MAX_SPANS_PER_REQUEST"),
        ("--listen-grpc", "TAILRING_LISTEN_GRPC"),
        ("--listen-http", "TAILRING_LISTEN_HTTP"),
        ("--listen-admin", "TAILRING_LISTEN_ADMIN"),
        ("--log", "TAILRING_LOG"),
    ] {
        assert!(help.contains(&format!("{flag} <")), "{flag}");
        assert!(help.contains(&format!("[env: {twin}]")), "{twin}");
    }
    for default in [
        "[default: 120s]",
        "[default: 64MiB]",
        "[default: refuse]",
        "[default: written]",
        "[default: 127.0.0.1:4317]",
    ] {
        assert!(help.contains(default), "{default}\n{help}");
    }
}

#[test]
fn the_environment_is_a_twin_of_the_flags() {
    let output = command(ROUTER)
        .env("TAILRING_WORKERS", "static://a=127.0.0.1:1")
        .env("TAILRING_LISTEN_GRPC", "nonsense:x")
        .output()
        .unwrap();
    check_report(
        &output,
        "tailring-router: one setting is wrong; nothing was started\n  \
         --listen-grpc (TAILRING_LISTEN_GRPC) = nonsense:x: has the port \"x\"; a port is a number \
         from 0 to 65535\n--help explains every setting.\n",
    );
}

#[test]
fn defaults_are_those_of_the_manual() {
    let mut args = WorkerArgs {
        name: Some("Worker-0.Workers.".into()),
        export: Some("stdout".into()),
        data_dir: Some("not/made/yet".into()),
        ..WorkerArgs::default()
    };
    args.shared.workers = Some("static://worker-0.workers=127.0.0.1:4317".into());
    let config = WorkerConfig::of(&args, &Machine).unwrap();
    assert_eq!(config.name.as_str(), "worker-0.workers");
    assert_eq!(config.rules, Rules::keep_everything());
    assert_eq!(config.drop_retain, Duration::from_secs(120));
    assert_eq!(config.ack, Ack::Written);
    assert_eq!(config.export, ExportTarget::Stdout);
    assert_eq!(config.trace_spans_max, 32_000);
    assert_eq!(config.trace_bytes_max, ByteSize::mib(256));
    assert!(config.shards > 0);
    assert!(config.export_headers.is_empty());
    let shared = &config.shared;
    assert_eq!(shared.cluster, "default");
    assert_eq!(shared.request_bytes_max, ByteSize::mib(64));
    assert_eq!(shared.spans_per_request_max, 100_000);
    assert_eq!(shared.listen_grpc.to_string(), "127.0.0.1:4317");
    assert_eq!(shared.listen_http.to_string(), "127.0.0.1:4318");
    assert_eq!(shared.listen_admin.to_string(), "127.0.0.1:9464");
}

#[test]
fn files_are_read_into_seed_and_headers() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path.to_str().unwrap().to_owned())
    };
    let mut args = RouterArgs::default();
    args.shared.workers = Some("static://a=127.0.0.1:1".into());
    let seed = |args: &RouterArgs| RouterConfig::of(args, &Machine).unwrap().shared.seed;
    let unseeded = seed(&args);
    args.shared.ring_seed_file = file("seed", "0123456789abcdef0123\n");
    let seeded = seed(&args);
    assert_ne!(seeded, unseeded);
    // `echo` and `printf` of one secret give one ring.
    args.shared.ring_seed_file = file("again", "0123456789abcdef0123");
    assert_eq!(seed(&args), seeded);

    let mut args = WorkerArgs {
        export: Some("stdout".into()),
        name: Some("a".into()),
        data_dir: dir.path().to_str().map(str::to_owned),
        export_header_file: file(
            "headers",
            "# ours\nAuthorization: Bearer a:b\r\n\nx-tenant:7\n",
        ),
        ..WorkerArgs::default()
    };
    args.shared.workers = Some("static://a=127.0.0.1:1".into());
    let config = WorkerConfig::of(&args, &Machine).unwrap();
    let headers: BTreeMap<_, _> = config
        .export_headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    assert_eq!(
        headers.into_iter().collect::<Vec<_>>(),
        [("authorization", "Bearer a:b"), ("x-tenant", "7")]
    );
    assert!(
        !format!("{config:?}").contains("Bearer"),
        "a secret is shown"
    );
}

/// Ended by its id when the test ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start_router(extra: &[&str]) -> Running {
    let child = command(ROUTER)
        .args([
            "--workers",
            "static://a=127.0.0.1:1",
            "--listen-grpc",
            "127.0.0.1:0",
        ])
        .args([
            "--listen-http",
            "127.0.0.1:0",
            "--listen-admin",
            "127.0.0.1:0",
        ])
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running(child)
}

/// Reads JSON lines until one satisfies `wanted`. Ends when the process closes its stderr.
fn find_line(
    lines: &mut impl BufRead,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(
            lines.read_line(&mut line).unwrap() > 0,
            "not found in\n{seen}"
        );
        let value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        if wanted(&value) {
            return value;
        }
        seen.push_str(&line);
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}

#[test]
fn a_router_starts_answers_its_operator_and_ends_cleanly_on_sigterm() {
    let mut router = start_router(&[]);
    let mut lines = BufReader::new(router.0.stderr.take().unwrap());
    let listening = find_line(&mut lines, |line| {
        line["message"] == "listening for the operator"
    });
    let admin = listening["address"].as_str().unwrap().to_owned();
    find_line(&mut lines, |line| line["protocol"] == "http");
    let deadline = Duration::from_secs(20);
    let ready = poll(deadline, || {
        Some(get(&admin, "/readyz")).filter(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    assert!(ready.contains("\"ready\":true"), "{ready}");
    assert!(get(&admin, "/livez").starts_with("HTTP/1.1 200"));
    assert!(get(&admin, "/ring").contains("\"slots\":65536"));
    let metrics = get(&admin, "/metrics");
    for name in [
        "tailring_build_info{",
        "process_cpu_seconds_total",
        "tailring_discovery",
    ] {
        assert!(metrics.contains(name), "{name}\n{metrics}");
    }
    signal(&router.0, rustix::process::Signal::TERM);
    find_line(&mut lines, |line| line["message"] == "stopped");
    assert_eq!(router.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_router_that_still_drains() {
    let mut router = start_router(&[]);
    let mut lines = BufReader::new(router.0.stderr.take().unwrap());
    let listening = find_line(&mut lines, |line| line["protocol"] == "http");
    let mut client = TcpStream::connect(listening["address"].as_str().unwrap()).unwrap();
    write!(
        client,
        "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n\
         content-length: 100\r\nexpect: 100-continue\r\n\r\n"
    )
    .unwrap();
    // The server waits for this body now: a request in flight, which a drain waits for.
    let mut answer = [0; 25];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    signal(&router.0, rustix::process::Signal::TERM);
    find_line(&mut lines, |line| line["signal"] == "SIGTERM");
    signal(&router.0, rustix::process::Signal::INT);
    assert_eq!(router.0.wait().unwrap().code(), Some(130));
}

#[test]
fn an_address_in_use_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen-admin", "--listen-grpc", "--listen-http"] {
        let output = command(ROUTER)
            .args(["--workers", "static://a=127.0.0.1:1"])
            .args(
                ["--listen-admin", "--listen-grpc", "--listen-http"]
                    .into_iter()
                    .filter(|other| *other != flag)
                    .flat_map(|other| [other, "127.0.0.1:0"]),
            )
            .args([flag, &address])
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        // Not always the last line: discovery runs beside.
        let failure = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|line| line["level"] == "ERROR")
            .unwrap_or_else(|| panic!("no error in\n{log}"));
        let message = failure["message"].as_str().unwrap();
        assert!(
            message.contains(flag) && message.contains(&address),
            "{message}"
        );
        assert!(message.contains("in use"), "{message}");
    }
}

/// Asks again until there is an answer.
fn poll<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let clock = tailring::model::SteadyClock::start();
    let start = clock.now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(clock.now().since(start) < deadline, "no answer in time");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
