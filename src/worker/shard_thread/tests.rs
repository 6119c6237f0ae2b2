//! The threads of a shard, with a disk that can be stopped.

use std::io;
use std::sync::{Condvar, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::registry::Registry;
use prost::Message;

use super::*;
use crate::log::{
    DiskFile, Recovered, SimulatedDisk, SimulatedFile, Space, SpaceConfig, Writer, recover,
};
use crate::net::admission::Budget;
use crate::policy::{Policy, PolicyKind, Rules, Timing};
use crate::trace::DecisionMemory;
use crate::wire::ScanLimits;
use crate::worker::metrics::WorkerMetrics;
use crate::worker::shard::{OnPressure, ShardConfig};

/// A disk whose writes wait while the gate is shut.
#[derive(Clone)]
struct GatedDisk {
    disk: SimulatedDisk,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

struct GatedFile {
    file: SimulatedFile,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl GatedDisk {
    fn new() -> Self {
        Self {
            disk: SimulatedDisk::default(),
            gate: Arc::default(),
        }
    }

    fn open_gate(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }

    fn file(&self, file: SimulatedFile) -> GatedFile {
        GatedFile {
            file,
            gate: self.gate.clone(),
        }
    }
}

impl Disk for GatedDisk {
    type File = GatedFile;

    fn create(&self, name: &str) -> io::Result<GatedFile> {
        Ok(self.file(self.disk.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<GatedFile> {
        Ok(self.file(self.disk.open(name)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.disk.unlink(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
}

impl DiskFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut is_open = self.gate.0.lock().unwrap();
        while !*is_open {
            is_open = self.gate.1.wait(is_open).unwrap();
        }
        drop(is_open);
        self.file.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, bytes)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

fn space() -> Arc<Space> {
    Space::new(SpaceConfig {
        segment_bytes: 64 << 20,
        log_max_bytes: u64::MAX,
        shards: 1,
    })
}

fn start(disk: GatedDisk, decision_wait: Duration) -> (ShardHandle, [JoinHandle<()>; 2]) {
    let space = space();
    let volume = Volume::new(disk);
    let clock = SteadyClock::start();
    let rules = Rules::new(
        Timing {
            decision_wait,
            quiet_period: None,
            decision_wait_after_root_received: None,
        },
        vec![Policy {
            name: "all".into(),
            kind: PolicyKind::AlwaysSample,
        }],
    );
    let config = ShardConfig {
        trace_spans_max: 1_000,
        trace_bytes_max: 1 << 30,
        index_bytes_max: 1 << 20,
        on_pressure: OnPressure::Refuse,
        spare_buffer_bytes_max: usize::MAX,
        drop_retain: Duration::from_secs(120),
        decision_memory: DecisionMemory {
            bytes_max: 1 << 20,
            decisions: Duration::from_secs(600),
            exported_hashes: Duration::from_secs(300),
        },
        verdict_seed: 1,
    };
    let metrics = WorkerMetrics::register(&mut Registry::default());
    let writer = Writer::new(0, space.clone(), 1);
    let mut shard = Shard::new(0, config, Arc::new(rules), writer, space.clone(), metrics);
    recover(&volume, &space, &mut |record| shard.recover(record)).unwrap();
    shard.recovered(clock.now());
    let memory = Budget::new(u64::MAX).charge(0);
    spawn(0, shard, None, memory, clock, volume, AckLevel::Written).unwrap()
}

/// A request of one span of so many bytes.
fn request(n: u64, bytes: usize) -> Arc<Incoming> {
    request_of(&Budget::new(1 << 30), n, bytes)
}

fn request_of(budget: &Arc<Budget>, n: u64, bytes: usize) -> Arc<Incoming> {
    let mut trace_id = [7; 16];
    trace_id[..8].copy_from_slice(&n.to_be_bytes());
    let span = Span {
        trace_id: trace_id.to_vec(),
        span_id: vec![1; 8],
        name: "x".repeat(bytes),
        ..Span::default()
    };
    let message = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let permit = budget.try_take(bytes as u64).unwrap();
    let message = message.encode_to_vec().into();
    Arc::new(Incoming::parse(message, &ScanLimits::default(), permit).unwrap())
}

#[tokio::test]
async fn while_the_disk_hangs_requests_wait_where_their_bytes_are_counted() {
    let disk = GatedDisk::new();
    let (shard, threads) = start(disk.clone(), Duration::from_secs(600));
    let mut answers = Vec::new();
    for n in 0..40 {
        let answer = shard.append(request(n, 1 << 20), vec![(0, Placement::Mine)]);
        answers.push(answer.unwrap());
        // The shard goes round.
        assert_eq!(shard.awaiting_export().await, 0);
    }
    for _ in 0..100 {
        assert_eq!(shard.awaiting_export().await, 0);
    }
    // A batch of one to five MiB at the disk, one of four or five being filled.
    assert!(shard.data.len() >= 30, "{} wait", shard.data.len());
    disk.open_gate();
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Ok(vec![]));
    }
    shard.stop().await;
    for thread in threads {
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_request_is_paid_for_until_it_is_written_though_its_client_went_away() {
    let disk = GatedDisk::new();
    let (shard, threads) = start(disk.clone(), Duration::from_secs(600));
    let budget = Budget::new(1 << 30);
    for n in 0..3 {
        let answer = shard.append(request_of(&budget, n, 1 << 20), vec![(0, Placement::Mine)]);
        drop(answer.unwrap());
        assert_eq!(shard.awaiting_export().await, 0);
    }
    for _ in 0..100 {
        assert_eq!(shard.awaiting_export().await, 0);
    }
    assert_eq!(budget.taken_bytes(), 3 << 20);
    disk.open_gate();
    shard.stop().await;
    assert_eq!(budget.taken_bytes(), 0);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn whoever_waits_in_the_queue_of_a_shard_that_is_gone_is_told() {
    let disk = GatedDisk::new();
    disk.open_gate();
    let (running, threads) = start(disk, Duration::from_secs(600));
    running.stop().await;
    for thread in threads {
        thread.join().unwrap();
    }
    let (data, queue) = data_queue();
    let shard = ShardHandle { data, ..running };
    let answer = shard.append(request(1, 1), vec![(0, Placement::Mine)]);
    drop(queue);
    let late = shard.append(request(2, 1), vec![(0, Placement::Mine)]);
    for answer in [answer, late] {
        let told = tokio::time::timeout(Duration::from_secs(10), answer.unwrap()).await;
        assert!(told.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_stop_notes_what_was_exported_though_the_last_write_failed() {
    let gated = GatedDisk::new();
    gated.open_gate();
    let (shard, threads) = start(gated.clone(), Duration::ZERO);
    shard.set_deciding(Some(Moment::NEVER));
    let appended = shard.append(request(1, 1), vec![(0, Placement::Mine)]);
    appended.unwrap().await.unwrap().unwrap();
    let work = shard.pull(u64::MAX, 10).await.unwrap();
    gated.disk.fail_writes_after(Some(0));
    shard.exported(work);
    // Until the shard knows that it failed.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let again = shard.append(request(2, 1), vec![(0, Placement::Mine)]);
        if again.unwrap().await.unwrap() == Err(AppendRefused::LogFailed) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
    }
    gated.disk.fail_writes_after(None);
    shard.stop().await;
    for thread in threads {
        thread.join().unwrap();
    }
    let volume = Volume::new(gated.disk);
    let (mut fragments, mut exported) = (0, 0);
    recover(&volume, &space(), &mut |record| match record {
        Recovered::Fragment { .. } => fragments += 1,
        Recovered::Exported { .. } => exported += 1,
        _ => {}
    })
    .unwrap();
    assert!(exported == 1 || fragments == 0, "{fragments} {exported}");
}
