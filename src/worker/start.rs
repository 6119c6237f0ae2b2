//! Brings a worker to life from its data dir, and to rest again.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::cluster::{View, ViewHandle};
use crate::log::{
    Buffers, Disk, ReadError, RecoveryReport, Space, SpaceConfig, SyncFailure, Unfinished, Volume,
    Writer, make_durable, recover,
};
use crate::model::{Fingerprint, Incarnation, Member, Moment, SteadyClock};
use crate::net::admission::Budget;
use crate::net::client::Grpc;
use crate::net::peer::PeerClient;
use crate::policy::Rules;
use crate::ring::SLOTS;
use crate::trace::DecisionMemory;
use crate::wire::ScanLimits;
use crate::worker::compactor;
use crate::worker::dead_letters::{DeadLetters, LetterSize};
use crate::worker::disk::AckLevel;
use crate::worker::export::Destination;
use crate::worker::export_memory::ExportMemory;
use crate::worker::exporter::{Begun, EXPORTERS_PER_SHARD, Exporter};
use crate::worker::footers;
use crate::worker::handoff::parts;
use crate::worker::handoff::sender::{Pace, Sender};
use crate::worker::ingest::{Intake, shard_of};
use crate::worker::isolation::Trust;
use crate::worker::labels::{Labels, RecordPolicy};
use crate::worker::limiter::{self, Limiter};
use crate::worker::metrics::WorkerMetrics;
use crate::worker::refolder;
use crate::worker::shard::{OnPressure, Shard, ShardConfig};
use crate::worker::shard_thread::{self, ShardHandle};

/// What a worker is told once; every value is legal.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub name: Member,
    pub incarnation: Incarnation,
    /// Threads that own traces: one a core.
    pub shards: u16,
    pub scan: ScanLimits,
    pub ack: AckLevel,
    pub segment_bytes: u32,
    pub log_max_bytes: u64,
    pub trace_spans_max: u32,
    pub trace_bytes_max: u64,
    pub drop_retain: Duration,
    pub decision_memory_max_bytes: usize,
    /// For what is known in memory of the traces in the log, roughly.
    pub index_memory_max_bytes: usize,
    /// All that this worker holds in memory is paid from it: requests in flight, what is known of
    /// traces, remembered decisions, and export.
    pub budget: Arc<Budget>,
    /// What of the budget is for export alone.
    pub export_memory_bytes: u64,
    pub on_pressure: OnPressure,
    pub record_policy: RecordPolicy,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the log cannot be read: {0}")]
    Log(#[from] ReadError),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running worker. Receives as a [`crate::net::server::Ingest`].
#[derive(Debug)]
pub struct Worker {
    pub(crate) name: Member,
    pub(crate) config: WorkerConfig,
    pub(crate) view: ViewHandle,
    pub(crate) shards: Vec<ShardHandle>,
    pub(crate) intake: Intake,
    pub(crate) metrics: WorkerMetrics,
    space: Arc<Space>,
    letters: Arc<dyn LetterSize>,
    pub(crate) clock: SteadyClock,
    recovery: RecoveryReport,
    sync_failure: Arc<SyncFailure>,
    unfinished: Arc<Unfinished>,
    /// Those in force.
    pub(crate) rules: tokio::sync::Mutex<Arc<Rules>>,
    /// What they say of kept spans, for exporters.
    pub(crate) labels: Arc<Labels>,
    /// Until the stop; with the view by which limits were last divided.
    limiter: Mutex<Option<(Limiter, Option<Fingerprint>)>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    exporters: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    /// Tasks that hand traces over, or read them again for it.
    senders: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    pub(crate) peer_client: watch::Sender<Option<Arc<PeerClient>>>,
    pub(crate) leaving: watch::Sender<bool>,
    pub(crate) unfinished_messages: parts::Unfinished,
    /// Unix milliseconds of the last request of clients or routers.
    pub(crate) last_request: AtomicU64,
}

/// Read back at a time when an earlier life's traces are folded again.
const FOLD_BYTES: u64 = 4 << 20;
/// Message buffers that are kept for the next message.
const SPARE_MESSAGES: usize = 2;
const SPARE_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Of a shard's buffers for the disk about two are idle at a time, and nobody pays for those: together
/// they are at most an eighth of the budget.
const SPARE_BUFFERS_A_BUDGET: u64 = 16;

/// A backend that is well answers within this.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(3);

impl Worker {
    /// Indexes the log and starts the shards and their exporters. Blocks while it reads; call it
    /// where blocking is allowed, inside a tokio runtime. The worker accepts at once and decides
    /// nothing before [`Worker::join`].
    pub fn start<D: Disk>(
        config: WorkerConfig,
        disk: D,
        rules: Arc<Rules>,
        destination: Arc<Destination>,
        view: ViewHandle,
        clock: SteadyClock,
        metrics: WorkerMetrics,
    ) -> Result<Arc<Self>, StartError> {
        // Random in each life: what outsiders send must not steer our hash tables.
        let secret: u64 = rand::random();
        let Opened {
            space,
            volume,
            shards,
            recovery,
        } = open(&config, disk, &rules, &metrics, secret)?;
        let mut handles = Vec::with_capacity(shards.len());
        let mut threads = Vec::new();
        let (asking, limits) = limiter::prepare(&rules, clock.now(), &metrics);
        let (refolding, jobs) = refolder::queue();
        let compaction_jobs = compactor::Jobs::new();
        for (number, mut shard) in shards.into_iter().enumerate() {
            shard.recovered(clock.now());
            let (handle, pair) = shard_thread::spawn(
                number as u16,
                shard,
                Some(asking.clone()),
                refolding.clone(),
                compaction_jobs.way(),
                config.budget.charge(0),
                clock,
                volume.clone(),
                config.ack,
            )?;
            threads.extend(pair);
            handles.push(handle);
        }
        threads.push(compaction_jobs.spawn(volume.clone(), config.budget.clone())?);
        threads.push(footers::spawn(volume.clone(), config.ack, clock)?);
        let (limiter, thread) = limits.spawn(handles.clone().into(), clock)?;
        threads.push(thread);
        let budget = Arc::clone(&config.budget);
        let reload = metrics.reload.clone();
        reload.in_force(&rules);
        threads.push(refolder::spawn(
            jobs,
            volume.clone(),
            budget,
            clock,
            reload,
        )?);
        let letters = DeadLetters::new(
            volume.clone(),
            config.log_max_bytes,
            metrics.dead_letters.clone(),
        );
        let letters = Arc::new(letters);
        let (trust, begun) = (Arc::new(Trust::default()), Arc::new(Begun::default()));
        let messages = Buffers::new(SPARE_MESSAGES, SPARE_MESSAGE_BYTES_MAX);
        let labels = Arc::new(Labels::new(config.record_policy, &rules));
        let memory = ExportMemory::new(&config.budget, config.export_memory_bytes);
        let exporters = handles
            .iter()
            .flat_map(|shard| std::iter::repeat_n(shard, EXPORTERS_PER_SHARD))
            .map(|shard| {
                Exporter {
                    member: config.name.clone(),
                    shard: shard.clone(),
                    volume: volume.clone(),
                    destination: destination.clone(),
                    dead_letters: letters.clone(),
                    trust: trust.clone(),
                    begun: begun.clone(),
                    clock,
                    metrics: metrics.clone(),
                    dedup_seed: secret,
                    labels: labels.clone(),
                    buffers: messages.clone(),
                    memory: memory.clone(),
                }
                .spawn()
            })
            .collect();
        let (peer_client, peers) = watch::channel(None);
        let pace = Arc::new(Pace::default());
        let senders = handles.iter().flat_map(|shard| {
            let sender = Sender {
                shard: shard.clone(),
                volume: volume.clone(),
                peers: peers.clone(),
                clock,
                pace: pace.clone(),
            };
            sender.spawn()
        });
        let senders = senders.collect();
        let worker = Arc::new(Self {
            intake: Intake::new(
                &config,
                view.clone(),
                handles.clone(),
                Arc::new(Grpc),
                metrics.clone(),
            ),
            name: config.name.clone(),
            config,
            view,
            shards: handles,
            metrics,
            space,
            letters,
            clock,
            recovery,
            sync_failure: volume.sync_failure().clone(),
            unfinished: volume.unfinished().clone(),
            rules: tokio::sync::Mutex::new(rules),
            labels,
            limiter: Mutex::new(Some((limiter, None))),
            threads: Mutex::new(threads),
            exporters: Mutex::new(exporters),
            senders: Mutex::new(senders),
            peer_client,
            leaving: watch::channel(false).0,
            unfinished_messages: parts::Unfinished::default(),
            last_request: AtomicU64::new(0),
        });
        let following = tokio::spawn(worker.clone().follow_ring());
        worker.lock_senders().push(following);
        Ok(worker)
    }

    /// What the log of earlier lives held.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// The sync that failed, if one did. Nothing is acknowledged any more, and only another life may:
    /// whoever runs this worker ends it.
    pub fn sync_failure(&self) -> Option<&str> {
        self.sync_failure.get()
    }

    /// Gives verdicts until then, as long as this member is in the ring. Returns whether it does. Called again and
    /// again by the process, and at every change.
    pub fn join(&self, until: Option<Moment>) -> bool {
        let view = self.view.load();
        let until = until.filter(|_| view.index_of(&self.name).is_some());
        self.divide_limits(&view);
        for shard in &self.shards {
            shard.set_deciding(until);
        }
        self.metrics.log_bytes.set(self.space.used_bytes() as i64);
        self.metrics.log_segments.set(self.space.segments() as i64);
        self.letters.show();
        until.is_some()
    }

    /// How many bytes the volume of the log has left. Below the log's reserve clients are refused.
    /// Called again and again by the process.
    pub fn volume_has(&self, free_bytes: u64) {
        self.space.volume_has(free_bytes);
    }

    /// Rates are those of the whole cluster: this member's part is that of its slots.
    fn divide_limits(&self, view: &View) {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((limiter, divided_by)), Some(index)) =
            (&mut *limiter, view.index_of(&self.name))
            && *divided_by != Some(view.fingerprint())
        {
            let slots = view.table.slots_by_member()[usize::from(index)];
            limiter.set_share(f64::from(slots) / SLOTS as f64);
            *divided_by = Some(view.fingerprint());
        }
    }

    /// Until the stop.
    pub(crate) fn limiter(&self) -> Option<Limiter> {
        let limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.as_ref().map(|(limiter, _)| limiter.clone())
    }

    /// Since when each shard has not gone round.
    pub fn silences(&self) -> impl Iterator<Item = Duration> {
        let now = self.clock.now();
        self.shards.iter().map(move |shard| now.since(shard.beat()))
    }

    /// After the last request: decides what waits for a limit, waits until what is kept is exported, at most `deadline`, then
    /// stops; a message that is on its way to the backend then has [`LAST_ANSWER_WITHIN`] to be
    /// answered. What is left stays in the log for the next life. Returns how many kept traces are.
    pub async fn stop(&self, deadline: Duration) -> usize {
        let end = tokio::time::Instant::now() + deadline;
        let limiter = self
            .limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((limiter, _)) = limiter {
            // Who waits for a limit is due. The thread ends behind it: who asks from now on is
            // judged in the next life.
            limiter.close_early().await;
        }
        while self.awaiting_export().await > 0 && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for task in self.lock_senders().drain(..) {
            task.abort();
        }
        // Before the shards stop, so that they can note what was delivered: the next life would
        // export it a second time.
        for shard in &self.shards {
            shard.stop_exports();
        }
        let exporters = std::mem::take(
            &mut *self
                .exporters
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let end = tokio::time::Instant::now() + LAST_ANSWER_WITHIN;
        for mut exporter in exporters {
            if tokio::time::timeout_at(end, &mut exporter).await.is_err() {
                exporter.abort();
            }
        }
        let left = self.awaiting_export().await;
        for shard in &self.shards {
            shard.stop().await;
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        self.unfinished.close();
        // The shards have answered Stop: their threads end by themselves, at once.
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a shard's thread panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("the shards' threads could not be waited for");
        }
        left
    }

    fn lock_senders(&self) -> std::sync::MutexGuard<'_, Vec<tokio::task::JoinHandle<()>>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn awaiting_export(&self) -> usize {
        let mut traces = 0;
        for shard in &self.shards {
            traces += shard.awaiting_export().await;
        }
        traces
    }
}

/// A log and those who own what is in it, before anything is written.
pub(super) struct Opened<D: Disk> {
    pub(super) space: Arc<Space>,
    pub(super) volume: Arc<Volume<D>>,
    pub(super) shards: Vec<Shard>,
    pub(super) recovery: RecoveryReport,
}

/// Reads the log of earlier lives into new shards. `secret` keys hashes and verdict IDs.
pub(super) fn open<D: Disk>(
    config: &WorkerConfig,
    disk: D,
    rules: &Arc<Rules>,
    metrics: &WorkerMetrics,
    secret: u64,
) -> Result<Opened<D>, StartError> {
    let space = Space::new(SpaceConfig {
        segment_bytes: config.segment_bytes,
        log_max_bytes: config.log_max_bytes,
        shards: config.shards,
    });
    let volume = Volume::new(disk);
    let shard_config = ShardConfig {
        trace_spans_max: config.trace_spans_max,
        trace_bytes_max: config.trace_bytes_max,
        index_bytes_max: config.index_memory_max_bytes / usize::from(config.shards),
        on_pressure: config.on_pressure,
        spare_buffer_bytes_max: usize::try_from(
            config.budget.bytes_max() / SPARE_BUFFERS_A_BUDGET / u64::from(config.shards.max(1)),
        )
        .unwrap_or(usize::MAX),
        drop_retain: config.drop_retain,
        decision_memory: DecisionMemory {
            bytes_max: config.decision_memory_max_bytes / usize::from(config.shards),
            decisions: Duration::from_secs(600),
            exported_hashes: Duration::from_secs(300),
        },
        verdict_seed: secret,
    };
    let mut shards: Vec<Shard> = Vec::with_capacity(usize::from(config.shards));
    for number in 0..config.shards {
        shards.push(Shard::new(
            number,
            ShardConfig {
                verdict_seed: secret.wrapping_add(u64::from(number) << 48),
                ..shard_config.clone()
            },
            rules.clone(),
            Writer::new(number, space.clone(), secret),
            space.clone(),
            metrics.clone(),
        ));
    }
    // Nothing is written before all is read: new segments are numbered after all found ones.
    let mut recovery = recover(&volume, &space, &mut |record| {
        distribute(&mut shards, record);
    })?;
    if config.ack == AckLevel::Synced {
        make_durable(&volume)?;
    }
    for shard in &mut shards {
        recovery.damaged_records += fold_again(&volume, shard)?;
    }
    metrics.log_torn_tails.inc_by(recovery.torn_tails);
    metrics.log_damaged_records.inc_by(recovery.damaged_records);
    space.await_carrying_over();
    Ok(Opened {
        space,
        volume,
        shards,
        recovery,
    })
}

/// What the policies remember of undecided traces is in no record: their fragments are read back.
/// Returns how many are damaged.
pub(super) fn fold_again<D: Disk>(volume: &Volume<D>, shard: &mut Shard) -> Result<u64, ReadError> {
    let mut damaged = 0;
    let extents = shard.unfolded();
    let mut rest = &extents[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|extent| {
            bytes += u64::from(extent.len);
            bytes <= FOLD_BYTES
        });
        let (some, later) = rest.split_at(fits.count().max(1));
        rest = later;
        match volume.read(some) {
            Ok(fragments) => fragments.iter().for_each(|it| shard.fold_again(it)),
            // The others are worth a look each.
            Err(ReadError::Damaged { .. }) => {
                for extent in some {
                    match volume.read(std::slice::from_ref(extent)) {
                        Ok(fragments) => fragments.iter().for_each(|it| shard.fold_again(it)),
                        Err(ReadError::Damaged {
                            segment,
                            offset,
                            what,
                        }) => {
                            damaged += 1;
                            shard.lose(*extent);
                            tracing::warn!(
                                segment = segment.0,
                                offset,
                                what,
                                "a fragment of an undecided trace cannot be read; its trace is judged without it"
                            );
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}

/// Gives a record of an earlier life to the shard that owns its trace now: their number may have
/// changed.
fn distribute(shards: &mut [Shard], record: crate::log::Recovered) {
    use crate::log::{Commit, Moved, Recovered};
    let count = shards.len();
    match record {
        Recovered::Checkpoint(decisions) => {
            let mut shares = vec![Vec::new(); count];
            for decision in decisions {
                shares[shard_of(decision.trace, count)].push(decision);
            }
            for (shard, share) in shards.iter_mut().zip(shares) {
                if !share.is_empty() {
                    shard.recover(Recovered::Checkpoint(share));
                }
            }
        }
        Recovered::Gone { segment, traces } => {
            let mut shares = vec![Vec::new(); count];
            for gone in traces {
                shares[shard_of(gone.trace, count)].push(gone);
            }
            for (shard, traces) in shards.iter_mut().zip(shares) {
                if !traces.is_empty() {
                    shard.recover(Recovered::Gone { segment, traces });
                }
            }
        }
        Recovered::Fragment { trace, .. }
        | Recovered::Exported { trace, .. }
        | Recovered::Moved(Moved { trace, .. })
        | Recovered::Commit(Commit { trace, .. }) => {
            shards[shard_of(trace, count)].recover(record);
        }
        Recovered::Verdict(decision) => {
            shards[shard_of(decision.trace, count)].recover(record);
        }
    }
}
