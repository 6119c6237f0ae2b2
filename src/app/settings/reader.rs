//! From settings as written to settings as meant: parses every one, and notes every mistake.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderMap;

use crate::app::settings::files::{PolicyFile, read_headers, read_policies, read_seed};
use crate::app::settings::surroundings::{MemoryBound, full_host_name, memory_bound};
use crate::app::settings::{
    Ack, ByteSize, LOG_SEGMENT_BYTES, ListenAddress, MemoryLimit, MemoryOrigin, MemoryPlan,
    OnPressure, SharedArgs, SharedConfig, Surroundings, Volume, WorkerArgs, WorkerConfig,
    WrongSetting, WrongSettings,
};
use crate::app::telemetry::LogFilter;
use crate::cluster::{PEER_PORT, Source};
use crate::model::{Member, parse_go_duration};
use crate::policy::Rules;
use crate::ring::Seed;
use crate::worker::export::{ExportTarget, ExportTargetError};

/// Two segments a shard are the log's reserve for control records and compaction; with less than
/// one more a shard could not take a single span.
const LOG_SEGMENTS_A_SHARD_MIN: u64 = 3;
/// The rest is for the allocator's slack, the kernel's socket buffers and the page cache.
const MEMORY_PERCENT: u64 = 80;
/// The rest is for the file system's own needs and for people who log in to help.
const VOLUME_PERCENT: u64 = 80;
/// Half of the limit is for requests in flight. The longest one must fit there, with its decoder
/// (9 MiB at most), what a request costs beside its message, and some copied headers.
const REQUESTS_IN_ROUTER_MIN: u64 = 3;
/// A log that lies in memory has so much of the limit, unless the setting says otherwise.
const LOG_IN_MEMORY_PERCENT: u64 = 50;
/// Twice what a short request costs whose zstd frame has the largest window, and then some.
const MEMORY_MIN: ByteSize = ByteSize::mib(32);
const REQUEST_BYTES: (ByteSize, ByteSize) = (ByteSize(1 << 10), ByteSize::mib(1024));
const DECISION_BYTES: (ByteSize, ByteSize) = (ByteSize::mib(1), ByteSize(1 << 40));
/// From a single span's order of magnitude to what the log's 32-bit lengths can say.
const TRACE_BYTES: (ByteSize, ByteSize) = (ByteSize(1 << 10), ByteSize::mib(4095));
const COUNT: (u32, u32) = (1, 100_000_000);
const CLUSTER_NAME_BYTES_MAX: usize = 253;

const DECISIONS: &str = "--decision-memory-max-bytes";

/// What the log may take, and of what.
#[derive(Debug, Clone, Copy)]
struct LogBound {
    bytes_max: ByteSize,
    is_memory: bool,
}

/// The smallest memory limit of a router.
pub(super) fn router_limit_min(request: ByteSize, _spans: u32) -> ByteSize {
    ByteSize(request.0.saturating_mul(REQUESTS_IN_ROUTER_MIN)).max(MEMORY_MIN)
}

/// Reads settings one after the other. A method that answers `None` has noted a mistake.
pub(super) struct Reader<'a, S> {
    machine: &'a S,
    wrong: Vec<WrongSetting>,
}

impl<'a, S: Surroundings> Reader<'a, S> {
    pub(super) fn new(machine: &'a S) -> Self {
        Self {
            machine,
            wrong: Vec::new(),
        }
    }

    pub(super) fn finish<T>(self, config: Option<T>) -> Result<T, WrongSettings> {
        match config {
            Some(config) if self.wrong.is_empty() => Ok(config),
            _ => Err(WrongSettings(self.wrong)),
        }
    }

    fn note(&mut self, flag: &'static str, value: Option<&str>, problem: impl Display) {
        self.note_with(flag, value, problem, "");
    }

    fn note_with(
        &mut self,
        flag: &'static str,
        value: Option<&str>,
        problem: impl Display,
        instead: &str,
    ) {
        self.wrong.push(WrongSetting {
            flag,
            value: value.map(str::to_owned),
            problem: problem.to_string(),
            instead: instead.to_owned(),
        });
    }

    pub(super) fn worker(&mut self, args: &WorkerArgs) -> Option<WorkerConfig> {
        let shards = self.machine.cores();
        let name = self.name(args.name.as_deref());
        let policies = self.policies(args.policies.as_deref());
        let data_dir = self.data_dir(args.data_dir.as_deref());
        let log = self.log(args, data_dir.as_ref(), shards);
        let drop_retain = self.drop_retain(args.drop_retain.as_deref());
        let decisions = args.decision_memory_max_bytes.as_deref();
        let decisions = match decisions {
            Some(_) => self
                .size(DECISIONS, decisions, DECISION_BYTES.0, DECISION_BYTES)
                .map(Some),
            None => Some(None),
        };
        let export = self.export(args.export.as_deref());
        let export_headers = self.export_headers(args.export_header_file.as_deref());
        let ack = self.parsed("--ack", args.ack.as_deref(), Ack::Written);
        let trace_spans_max =
            self.count("--max-trace-spans", args.max_trace_spans.as_deref(), 32_000);
        let trace_bytes_max = self.size(
            "--max-trace-bytes",
            args.max_trace_bytes.as_deref(),
            ByteSize::mib(256),
            TRACE_BYTES,
        );
        let on_pressure = self.parsed(
            "--on-pressure",
            args.on_pressure.as_deref(),
            OnPressure::Refuse,
        );
        let shared = self.shared(&args.shared, MemoryPlan::limit_min);
        let listen_peers = self.listen_peers(args.listen_peers.as_deref(), shared.as_ref());
        let memory = self.memory(shared.as_ref(), log, decisions);
        let policies = policies?;
        Some(WorkerConfig {
            shared: shared?,
            name: name?,
            listen_peers: listen_peers?,
            rules: policies.rules,
            policy_notices: policies.notices,
            data_dir: data_dir?,
            log_max_bytes: log?.bytes_max,
            log_is_memory: log?.is_memory,
            drop_retain: drop_retain?,
            memory: memory?,
            on_pressure: on_pressure?,
            export: export?,
            export_headers: export_headers?,
            ack: ack?,
            trace_spans_max: trace_spans_max?,
            trace_bytes_max: trace_bytes_max?,
            shards,
        })
    }

    /// `limit_min`: the smallest memory limit for requests of so many bytes and spans.
    pub(super) fn shared(
        &mut self,
        args: &SharedArgs,
        limit_min: impl FnOnce(ByteSize, u32) -> ByteSize,
    ) -> Option<SharedConfig> {
        let workers = self.workers(args.workers.as_deref());
        let cluster = self.cluster(args.cluster.as_deref());
        let seed = self.seed(args.ring_seed_file.as_deref());
        let memory_limit = self.memory_limit(args.memory_limit.as_deref());
        let request_bytes_max = self.size(
            "--max-request-bytes",
            args.max_request_bytes.as_deref(),
            ByteSize::mib(64),
            REQUEST_BYTES,
        );
        let spans_per_request_max = self.count(
            "--max-spans-per-request",
            args.max_spans_per_request.as_deref(),
            100_000,
        );
        let listeners = [
            ("--listen-grpc", args.listen_grpc.as_deref(), 4317),
            ("--listen-http", args.listen_http.as_deref(), 4318),
            ("--listen-admin", args.listen_admin.as_deref(), 9464),
        ]
        .map(|(flag, value, port)| {
            let address = self.parsed(flag, value, ListenAddress::loopback(port));
            (flag, value, address)
        });
        self.collisions(&listeners);
        let log = self.parsed("--log", args.log.as_deref(), LogFilter::default());
        if let (Some(request), Some(spans)) = (request_bytes_max, spans_per_request_max) {
            self.requests_fit(memory_limit, request, limit_min(request, spans));
        }
        let [(.., listen_grpc), (.., listen_http), (.., listen_admin)] = listeners;
        Some(SharedConfig {
            workers: workers?,
            cluster: cluster?,
            seed: seed?,
            memory_limit: memory_limit?,
            request_bytes_max: request_bytes_max?,
            spans_per_request_max: spans_per_request_max?,
            listen_grpc: listen_grpc?,
            listen_http: listen_http?,
            listen_admin: listen_admin?,
            log: log?,
        })
    }

    /// A value whose type says in its error what is wrong and what to write.
    fn parsed<T: FromStr>(
        &mut self,
        flag: &'static str,
        value: Option<&str>,
        default: T,
    ) -> Option<T>
    where
        T::Err: Display,
    {
        let Some(text) = value else {
            return Some(default);
        };
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.note(flag, value, error);
                None
            }
        }
    }

    fn size(
        &mut self,
        flag: &'static str,
        value: Option<&str>,
        default: ByteSize,
        (min, max): (ByteSize, ByteSize),
    ) -> Option<ByteSize> {
        let size = self.parsed(flag, value, default)?;
        if size < min || size > max {
            self.note(
                flag,
                value,
                format!("is outside what works; write a size from {min} to {max}"),
            );
            return None;
        }
        Some(size)
    }

    fn count(&mut self, flag: &'static str, value: Option<&str>, default: u32) -> Option<u32> {
        let Some(text) = value else {
            return Some(default);
        };
        let (min, max) = COUNT;
        let digits = text.trim().replace('_', "");
        match digits.parse::<u32>() {
            Ok(count) if (min..=max).contains(&count) => Some(count),
            _ => {
                self.note(
                    flag,
                    value,
                    format!(
                        "is not a count; write a whole number from {min} to {max}, for example \
                         {default}"
                    ),
                );
                None
            }
        }
    }

    fn name(&mut self, value: Option<&str>) -> Option<Member> {
        let Some(text) = value
            .map(str::to_owned)
            .or_else(|| full_host_name(self.machine))
        else {
            self.note(
                "--name",
                None,
                "is missing, and this machine has no name; write this worker's name among \
                 --workers",
            );
            return None;
        };
        match Member::parse(&text) {
            Ok(name) => Some(name),
            Err(error) => {
                self.note("--name", Some(&text), error);
                None
            }
        }
    }

    fn policies(&mut self, value: Option<&str>) -> Option<PolicyFile> {
        let Some(path) = value else {
            return Some(PolicyFile {
                rules: Rules::keep_everything(),
                notices: Vec::new(),
            });
        };
        read_policies(self.machine, path)
            .map_err(|problem| self.note("--policies", value, problem))
            .ok()
    }

    fn data_dir(&mut self, value: Option<&str>) -> Option<PathBuf> {
        match value {
            None => Some(PathBuf::from("/var/lib/tailring")),
            Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
            Some(_) => {
                self.note(
                    "--data-dir",
                    value,
                    "is empty; write a directory, for example /var/lib/tailring",
                );
                None
            }
        }
    }

    fn log(
        &mut self,
        args: &WorkerArgs,
        data_dir: Option<&PathBuf>,
        shards: u16,
    ) -> Option<LogBound> {
        const FLAG: &str = "--log-max-bytes";
        let value = args.log_max_bytes.as_deref();
        let written = match value.map(str::parse::<ByteSize>).transpose() {
            Ok(written) => written,
            Err(error) => {
                self.note(FLAG, value, error);
                return None;
            }
        };
        // Without a data dir there is no volume; that mistake is noted already.
        let Volume {
            size: volume,
            is_memory,
        } = match self.machine.volume(data_dir?) {
            Ok(volume) => volume,
            Err(error) => {
                self.note(
                    FLAG,
                    value,
                    format!("the volume of --data-dir cannot be measured: {error}"),
                );
                return None;
            }
        };
        let most = volume.percent(VOLUME_PERCENT);
        let size = written.unwrap_or_else(|| match self.memory_there(args) {
            Some(memory) if is_memory => memory.percent(LOG_IN_MEMORY_PERCENT).min(most),
            _ => most,
        });
        if size > volume {
            self.note(
                FLAG,
                value,
                format!(
                    "is more than the volume of --data-dir holds ({volume}); leave it out for \
                     {VOLUME_PERCENT} % of that"
                ),
            );
            return None;
        }
        let min =
            ByteSize(LOG_SEGMENT_BYTES.0 * LOG_SEGMENTS_A_SHARD_MIN * u64::from(shards.max(1)));
        if size < min {
            let problem = format!(
                "is too small: the log needs at least {min}, which is \
                 {LOG_SEGMENTS_A_SHARD_MIN} segments of {LOG_SEGMENT_BYTES} for each of {shards} \
                 shards"
            );
            match value {
                Some(_) => self.note(FLAG, value, problem),
                None if is_memory => self.note(
                    FLAG,
                    Some(&format!(
                        "{size}, {LOG_IN_MEMORY_PERCENT} % of --memory-limit, for --data-dir is on \
                         tmpfs, which is memory"
                    )),
                    format!("{problem}; use a directory on a disk, or a larger --memory-limit"),
                ),
                None => self.note(
                    FLAG,
                    Some(&format!(
                        "{size}, {VOLUME_PERCENT} % of the volume of --data-dir"
                    )),
                    problem,
                ),
            }
            return None;
        }
        Some(LogBound {
            bytes_max: size,
            is_memory,
        })
    }

    /// What there will be to divide, before anybody has judged the setting.
    fn memory_there(&self, args: &WorkerArgs) -> Option<ByteSize> {
        match args.shared.memory_limit.as_deref() {
            Some(text) => text.parse().ok(),
            None => memory_bound(self.machine).map(|bound| bound.size.percent(MEMORY_PERCENT)),
        }
    }

    /// How a worker divides its memory. A log that lies in memory comes first.
    fn memory(
        &mut self,
        shared: Option<&SharedConfig>,
        log: Option<LogBound>,
        decisions: Option<Option<ByteSize>>,
    ) -> Option<MemoryPlan> {
        let (shared, log, decisions) = (shared?, log?, decisions?);
        let limit = shared.memory_limit.size;
        let mut beside_log = limit;
        if log.is_memory {
            beside_log = ByteSize(limit.0.saturating_sub(log.bytes_max.0));
            let min = MemoryPlan::limit_min(shared.request_bytes_max, shared.spans_per_request_max);
            if beside_log < min {
                self.note_with(
                    "--data-dir",
                    None,
                    format!(
                        "is on tmpfs, which is memory: a log of {} leaves {beside_log} of the \
                         memory limit of {limit}, and this worker needs {min}",
                        log.bytes_max
                    ),
                    "write a directory on a disk, a smaller --log-max-bytes, or a larger \
                     --memory-limit",
                );
                return None;
            }
        }
        let most = MemoryPlan::decisions_max(beside_log);
        if let Some(asked) = decisions
            && asked > most
        {
            self.note(
                DECISIONS,
                Some(&asked.to_string()),
                format!("is more than a quarter of the memory limit; write at most {most}"),
            );
            return None;
        }
        Some(MemoryPlan::worker(beside_log, decisions))
    }

    fn drop_retain(&mut self, value: Option<&str>) -> Option<Duration> {
        let Some(text) = value else {
            return Some(Duration::from_secs(120));
        };
        parse_go_duration(text.trim())
            .map_err(|error| self.note("--drop-retain", value, error))
            .ok()
    }

    fn export(&mut self, value: Option<&str>) -> Option<ExportTarget> {
        let Some(text) = value.filter(|text| !text.trim().is_empty()) else {
            self.note_with(
                "--export",
                None,
                "is missing",
                "write where kept traces go, for example grpcs://otlp.example.com:443, or stdout \
                 to look at them",
            );
            return None;
        };
        text.parse()
            .map_err(|error: ExportTargetError| self.note("--export", value, error))
            .ok()
    }

    fn export_headers(&mut self, value: Option<&str>) -> Option<HeaderMap> {
        let Some(path) = value else {
            return Some(HeaderMap::new());
        };
        read_headers(self.machine, path)
            .map_err(|problem| self.note("--export-header-file", value, problem))
            .ok()
    }

    fn workers(&mut self, value: Option<&str>) -> Option<Source> {
        let Some(text) = value.filter(|text| !text.trim().is_empty()) else {
            self.note_with(
                "--workers",
                None,
                "is missing",
                "write where the workers are found, for example \
                 srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local or \
                 static://worker-0=127.0.0.1:4317",
            );
            return None;
        };
        text.parse::<Source>()
            .map_err(|error| self.note("--workers", value, error))
            .ok()
    }

    fn cluster(&mut self, value: Option<&str>) -> Option<String> {
        let name = value.unwrap_or("default").trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > CLUSTER_NAME_BYTES_MAX || !name.chars().all(legal) {
            self.note(
                "--cluster",
                value,
                format!(
                    "is not a cluster's name; write up to {CLUSTER_NAME_BYTES_MAX} letters, \
                     digits, '-', '_' and '.', for example production-eu"
                ),
            );
            return None;
        }
        Some(name.to_owned())
    }

    fn seed(&mut self, value: Option<&str>) -> Option<Seed> {
        let Some(path) = value else {
            return Some(Seed(0));
        };
        read_seed(self.machine, path)
            .map_err(|problem| self.note("--ring-seed-file", value, problem))
            .ok()
    }

    fn memory_limit(&mut self, value: Option<&str>) -> Option<MemoryLimit> {
        const FLAG: &str = "--memory-limit";
        if let Some(text) = value {
            return text
                .parse()
                .map(|size| MemoryLimit {
                    size,
                    origin: MemoryOrigin::Setting,
                    found: memory_bound(self.machine).map(|bound| bound.size),
                })
                .map_err(|error| self.note(FLAG, value, error))
                .ok();
        }
        let Some(MemoryBound { size, from_cgroup }) = memory_bound(self.machine) else {
            self.note_with(
                FLAG,
                None,
                "is missing, and this machine does not tell its memory",
                "write what this process may use, for example 2GiB",
            );
            return None;
        };
        Some(MemoryLimit {
            size: size.percent(MEMORY_PERCENT),
            origin: if from_cgroup {
                MemoryOrigin::Cgroup
            } else {
                MemoryOrigin::Machine
            },
            found: Some(size),
        })
    }

    /// A limit that the largest legal request does not fit under would refuse it for ever.
    fn requests_fit(&mut self, limit: Option<MemoryLimit>, request: ByteSize, min: ByteSize) {
        let Some(limit) = limit else {
            return;
        };
        if limit.size < min {
            let origin = match limit.origin {
                MemoryOrigin::Setting => String::new(),
                MemoryOrigin::Cgroup => format!(", {MEMORY_PERCENT} % of the cgroup's limit"),
                MemoryOrigin::Machine => format!(", {MEMORY_PERCENT} % of the machine's memory"),
            };
            self.note(
                "--memory-limit",
                Some(&format!("{}{origin}", limit.size)),
                format!(
                    "is too small for requests of {request}; write at least {min}, or a smaller \
                     --max-request-bytes"
                ),
            );
        }
    }

    fn listen_peers(
        &mut self,
        value: Option<&str>,
        shared: Option<&SharedConfig>,
    ) -> Option<ListenAddress> {
        const FLAG: &str = "--listen-peers";
        let address = self.parsed(FLAG, value, ListenAddress::loopback(PEER_PORT))?;
        let others = shared.map(|shared| {
            [
                ("--listen-grpc", shared.listen_grpc),
                ("--listen-http", shared.listen_http),
                ("--listen-admin", shared.listen_admin),
            ]
        });
        let taken = others
            .into_iter()
            .flatten()
            .find(|(_, other)| other.collides_with(address));
        if let Some((other, _)) = taken {
            self.collides(FLAG, value, address, other);
        }
        Some(address)
    }

    fn collisions(&mut self, listeners: &[(&'static str, Option<&str>, Option<ListenAddress>)]) {
        for (index, (flag, value, address)) in listeners.iter().enumerate() {
            let taken = listeners[..index].iter().find(|(.., other)| {
                address
                    .zip(*other)
                    .is_some_and(|(left, right)| left.collides_with(right))
            });
            if let (Some((other, ..)), Some(address)) = (taken, address) {
                self.collides(flag, *value, *address, other);
            }
        }
    }

    fn collides(
        &mut self,
        flag: &'static str,
        value: Option<&str>,
        address: ListenAddress,
        other: &str,
    ) {
        let shown = address.to_string();
        self.note(
            flag,
            value.or(Some(&shown)),
            format!("is the address of {other} as well; give each its own port"),
        );
    }
}
