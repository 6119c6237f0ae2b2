//! Settings as they were meant: legal values only.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderMap;

use crate::app::settings::reader::{Reader, router_limit_min};
use crate::app::settings::{
    ByteSize, ListenAddress, MemoryPlan, RouterArgs, Surroundings, WorkerArgs, WrongSettings,
};
use crate::app::telemetry::LogFilter;
use crate::cluster::Source;
use crate::model::Member;
use crate::policy::{Notice, Rules};
use crate::ring::Seed;
use crate::worker::export::ExportTarget;

/// What router and worker have in common.
#[derive(Debug, Clone)]
pub struct SharedConfig {
    pub workers: Source,
    pub cluster: String,
    pub seed: Seed,
    pub memory_limit: MemoryLimit,
    pub request_bytes_max: ByteSize,
    pub spans_per_request_max: u32,
    pub listen_grpc: ListenAddress,
    pub listen_http: ListenAddress,
    pub listen_admin: ListenAddress,
    pub log: LogFilter,
}

#[derive(Debug, Clone)]
pub struct RouterConfig {
    pub shared: SharedConfig,
}

#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub shared: SharedConfig,
    pub name: Member,
    pub listen_peers: ListenAddress,
    pub rules: Rules,
    /// About the policy file; to be logged.
    pub policy_notices: Vec<Notice>,
    /// As written; it may not be there yet.
    pub data_dir: PathBuf,
    pub log_max_bytes: ByteSize,
    pub drop_retain: Duration,
    /// Of the memory limit, and of what a log in memory leaves of it.
    pub memory: MemoryPlan,
    /// `data_dir` is on tmpfs.
    pub log_is_memory: bool,
    pub on_pressure: OnPressure,
    pub export: ExportTarget,
    /// Marked sensitive.
    pub export_headers: HeaderMap,
    pub ack: Ack,
    pub trace_spans_max: u32,
    pub trace_bytes_max: ByteSize,
    /// One a core.
    pub shards: u16,
}

/// When a client gets OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// write(2) returned: survives the process.
    Written,
    /// fdatasync returned: survives the host.
    Synced,
}

/// What a worker does when its memory or its log is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPressure {
    /// Refuses clients, who send again.
    Refuse,
    /// And lets go of dropped traces, and judges the next ones before their time.
    Decide,
}

/// The memory that this process may use, and where the number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    pub size: ByteSize,
    pub origin: MemoryOrigin,
    /// What the cgroup or the machine has, of which it is a share.
    pub found: Option<ByteSize>,
}

/// Who set the memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryOrigin {
    Setting,
    Cgroup,
    Machine,
}

/// Size of a log segment.
pub const LOG_SEGMENT_BYTES: ByteSize = ByteSize::mib(64);

impl RouterConfig {
    /// All mistakes at once.
    pub fn of(args: &RouterArgs, machine: &impl Surroundings) -> Result<Self, WrongSettings> {
        let mut reader = Reader::new(machine);
        let shared = reader.shared(&args.shared, router_limit_min);
        reader.finish(shared.map(|shared| Self { shared }))
    }
}

impl WorkerConfig {
    /// All mistakes at once.
    pub fn of(args: &WorkerArgs, machine: &impl Surroundings) -> Result<Self, WrongSettings> {
        let mut reader = Reader::new(machine);
        let worker = reader.worker(args);
        reader.finish(worker)
    }
}

impl Ack {
    pub fn label(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Synced => "synced",
        }
    }
}

impl OnPressure {
    pub fn label(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Decide => "decide",
        }
    }
}

impl FromStr for OnPressure {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "decide" => Ok(Self::Decide),
            _ => Err(
                "is neither refuse (clients send again) nor decide (traces are judged early, too)",
            ),
        }
    }
}

impl FromStr for Ack {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "written" => Ok(Self::Written),
            "synced" => Ok(Self::Synced),
            _ => Err("is neither written (survives this process) nor synced (survives the host)"),
        }
    }
}
