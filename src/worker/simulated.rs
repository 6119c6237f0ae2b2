//! A worker in one thread, for tests: its shards, their queues and what its disk threads do, each
//! step taken when the caller says so and at the time the caller says it is. No sockets and no
//! exporters (whoever pulls is the backend). Requests come in by
//! [`SimulatedWorker::append`], as if the ring were this worker alone, or by its [`SimulatedDoor`], the way
//! they come from the network. Messages of handoffs are taken and given as
//! bytes; the network is the caller's.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::cluster::ViewHandle;
use crate::log::{Disk, Footed, ReadError, RecoveryReport, Space, StoredFragment, Volume};
use crate::model::{Decision, Extent, Member, Moment, TraceId};
use crate::net::admission::Budget;
use crate::net::client::Dial;
use crate::net::server::{Accepted, IngestRequest};
use crate::net::status::Refusal;
use crate::policy::Rules;
use crate::ring::Table;
use crate::wire::ScanLimits;
use crate::worker::compactor;
use crate::worker::disk;
use crate::worker::handoff::{intake, message};
use crate::worker::ingest::{Incoming, Intake, shard_of};
use crate::worker::limiter::{self, Rounds};
use crate::worker::refolder::{self, Jobs};
use crate::worker::shard::{
    AppendRefused, ExportWork, HandoffAnswer, HandoffWork, Ownership, Placement, Shard,
};
use crate::worker::shard_thread::{self, DiskEnd, First, Running, ShardHandle};
use crate::worker::start::{Opened, open};
use crate::worker::{AckLevel, StartError, WorkerConfig, WorkerMetrics};

/// See the module.
pub struct SimulatedWorker<D: Disk> {
    name: Member,
    ack: AckLevel,
    space: Arc<Space>,
    volume: Arc<Volume<D>>,
    recovery: RecoveryReport,
    metrics: WorkerMetrics,
    shards: Vec<SimulatedShard>,
    limits: Rounds,
    footed: VecDeque<Footed>,
    budget: Arc<Budget>,
    compaction_jobs: compactor::Jobs,
}

struct SimulatedShard {
    handle: ShardHandle,
    running: Running,
    disk: DiskEnd,
    jobs: Jobs,
}

/// Where a simulated worker's requests come in; cheap to clone. Of no use after its worker's end.
#[derive(Debug, Clone)]
pub struct SimulatedDoor(Arc<Intake>);

impl SimulatedDoor {
    /// As [`crate::net::server::Ingest::ingest`] of a worker; needs a runtime, and the worker's turns.
    pub async fn take_in(&self, request: IngestRequest) -> Result<Accepted, Refusal> {
        self.0.take_in(request).await
    }
}

/// A message for another member, and what is to become of its content.
#[derive(Debug)]
pub struct SimulatedHandoff {
    pub to: Member,
    pub message: Bytes,
    shard: usize,
    work: HandoffWork,
}

/// What a member waits for that handed something over.
#[derive(Debug)]
pub struct SimulatedReceipt {
    parts: Vec<oneshot::Receiver<Result<HandoffAnswer, AppendRefused>>>,
    answer: HandoffAnswer,
    is_refused: bool,
}

impl SimulatedReceipt {
    /// `None` as long as a shard has not answered; then the answer's bytes, or that there is none.
    pub fn poll(&mut self, now: Moment) -> Option<Option<Bytes>> {
        self.parts.retain_mut(|part| match part.try_recv() {
            Ok(Ok(answer)) => {
                self.answer.add(answer);
                false
            }
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {
                self.is_refused = true;
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        let is_whole = self.parts.is_empty();
        let answer =
            || (!self.is_refused).then(|| message::encode_answer(&self.answer, now).into());
        is_whole.then(answer)
    }
}

/// What a client waits for.
#[derive(Debug)]
pub struct SimulatedAnswer {
    parts: Vec<oneshot::Receiver<Result<Vec<u32>, AppendRefused>>>,
    is_refused: bool,
}

impl SimulatedAnswer {
    /// `None` as long as a shard has not answered; true for OK. A shard that is gone has refused.
    pub fn poll(&mut self) -> Option<bool> {
        self.parts.retain_mut(|part| match part.try_recv() {
            Ok(Ok(_)) => false,
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {
                self.is_refused = true;
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        self.parts.is_empty().then_some(!self.is_refused)
    }
}

impl<D: Disk> SimulatedWorker<D> {
    /// Begins a life: reads the log, writes nothing yet. It gives verdicts from its first turn on.
    pub fn start(
        config: &WorkerConfig,
        disk: D,
        rules: &Arc<Rules>,
        metrics: &WorkerMetrics,
        secret: u64,
        now: Moment,
    ) -> Result<Self, StartError> {
        let Opened {
            space,
            volume,
            shards,
            recovery,
        } = open(config, disk, rules, metrics, secret)?;
        let (asking, limits) = limiter::prepare(rules, now, metrics);
        let compaction_jobs = compactor::Jobs::new();
        let start = |(number, mut shard): (usize, Shard)| {
            shard.recovered(now);
            let memory = config.budget.charge(0);
            let (refolding, jobs) = refolder::queue();
            let (handle, running, disk) = shard_thread::prepare(
                number as u16,
                shard,
                Some(asking.clone()),
                refolding,
                compaction_jobs.way(),
                memory,
                now,
            );
            handle.set_deciding(Some(Moment::NEVER));
            SimulatedShard {
                handle,
                running,
                disk,
                jobs,
            }
        };
        Ok(Self {
            name: config.name.clone(),
            ack: config.ack,
            space,
            volume,
            recovery,
            metrics: metrics.clone(),
            shards: shards.into_iter().enumerate().map(start).collect(),
            limits,
            footed: VecDeque::new(),
            budget: config.budget.clone(),
            compaction_jobs,
        })
    }

    /// The way in for a worker that is one of several: it finds the others by `view` and passes on
    /// what is theirs.
    pub fn door(
        &self,
        config: &WorkerConfig,
        view: ViewHandle,
        dial: Arc<dyn Dial>,
        metrics: WorkerMetrics,
    ) -> SimulatedDoor {
        let shards = self.shards.iter().map(|shard| shard.handle.clone());
        let intake = Intake::new(config, view, shards.collect(), dial, metrics);
        SimulatedDoor(Arc::new(intake))
    }

    /// A round of the thread that holds the limits.
    pub fn limit(&mut self, now: Moment) {
        let shards: Vec<ShardHandle> = self.shards.iter().map(|it| it.handle.clone()).collect();
        self.limits.go_round(&shards, now);
    }

    /// This worker's part of the slots, 0 to 1.
    pub fn set_share(&mut self, share: f64, now: Moment) {
        self.limits.set_share(share, now);
    }

    /// Until when this worker gives verdicts, from its next turns on.
    pub fn set_deciding(&self, until: Option<Moment>) {
        for shard in &self.shards {
            shard.handle.set_deciding(until);
        }
    }

    /// Something waits for a shard's next turn.
    pub fn is_wanted(&self, shard: usize) -> bool {
        self.shards[shard].running.is_wanted()
    }

    /// When a shard has something to do if nothing comes in.
    pub fn next_wakeup(&self, shard: usize) -> Option<Moment> {
        self.shards[shard].running.shard().next_wakeup()
    }

    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// The sync that failed, if one did: a process would end now.
    pub fn sync_failure(&self) -> Option<&str> {
        self.volume.sync_failure().get()
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Puts a request into the queues of its shards.
    pub fn append(&self, message: Bytes) -> SimulatedAnswer {
        let mut answer = SimulatedAnswer {
            parts: Vec::new(),
            is_refused: true,
        };
        let Some(permit) = Budget::new(u64::MAX).try_take(message.len() as u64) else {
            return answer;
        };
        let Ok(incoming) = Incoming::parse(message, &ScanLimits::default(), permit) else {
            return answer;
        };
        let mut shares = vec![Vec::new(); self.shards.len()];
        for (number, fragment) in incoming.fragments.all().iter().enumerate() {
            shares[self.shard_of(fragment.trace)].push((number as u32, Placement::Mine));
        }
        let incoming = Arc::new(incoming);
        answer.is_refused = false;
        for (shard, share) in self.shards.iter().zip(shares) {
            if !share.is_empty() {
                answer
                    .parts
                    .extend(shard.handle.append(incoming.clone(), share));
            }
        }
        answer
    }

    /// Who owns which trace from the next turns on; `leaves`: nothing belongs here any more.
    pub fn set_ring(&self, table: &Table, leaves: bool) {
        let ownership = if leaves {
            Ownership::of_leaving(table, self.name.clone())
        } else {
            Ownership::new(table.clone(), self.name.clone())
        };
        for shard in &self.shards {
            shard.handle.set_ownership(ownership.clone());
        }
    }

    /// What a shard has for another member, after a turn of it, read from the log.
    pub fn take_handoff(
        &mut self,
        shard: usize,
        bytes_max: u64,
        now: Moment,
    ) -> Option<SimulatedHandoff> {
        let running = &mut self.shards[shard].running;
        let work = running.pull_handoff_now(bytes_max, now)?;
        let mut stored = Vec::with_capacity(work.traces.len());
        for trace in &work.traces {
            let extents: Vec<Extent> = trace.fragments.iter().map(|it| it.extent()).collect();
            match self.volume.read(&extents) {
                Ok(fragments) => stored.push(fragments),
                Err(_) => {
                    self.shards[shard].handle.handed_over(work, None);
                    return None;
                }
            }
        }
        let stored = stored.iter().map(|it| &it[..]);
        let traces: Vec<_> = work.traces.iter().zip(stored).collect();
        let message = message::encode(&work.decisions, &traces, now).into();
        Some(SimulatedHandoff {
            to: work.to.clone(),
            message,
            shard,
            work,
        })
    }

    /// What became of it: the receiver's answer, or `None` if nobody can say.
    pub fn handed_over(&self, handoff: SimulatedHandoff, answer: Option<&[u8]>, now: Moment) {
        let answer = answer.and_then(|it| message::decode_answer(it, now).ok());
        let shard = &self.shards[handoff.shard];
        shard.handle.handed_over(handoff.work, answer);
    }

    /// Puts another member's message into the queues of its shards. `None`: it makes no sense.
    pub fn receive(&self, message: &Bytes, now: Moment) -> Option<SimulatedReceipt> {
        let handed = message::decode(message, now).ok()?;
        let permit = Budget::new(u64::MAX).try_take(message.len() as u64)?;
        let (incoming, parts) = intake::divide(handed, permit, self.shards.len()).ok()?;
        let incoming = Arc::new(incoming);
        let mut receipt = SimulatedReceipt {
            parts: Vec::new(),
            answer: HandoffAnswer::default(),
            is_refused: false,
        };
        for (shard, part) in self.shards.iter().zip(parts) {
            if part.is_empty() {
                continue;
            }
            match shard.handle.receive(incoming.clone(), part) {
                Some(answer) => receipt.parts.push(answer),
                None => receipt.is_refused = true,
            }
        }
        Some(receipt)
    }

    /// Reads the next trace again that a shard wants to, and tells it at its next turn. False if there is
    /// none.
    pub fn read_again(&mut self, shard: usize) -> bool {
        let SimulatedShard {
            handle, running, ..
        } = &mut self.shards[shard];
        let Some(reopen) = running.next_reopen_now() else {
            return false;
        };
        let found = reopen.read(&self.volume).ok();
        handle.reopened(reopen, found);
        true
    }

    /// How much is here that belongs to `member`, which asks for it, `is_first` once a round. `None`: it is not in
    /// this worker's ring.
    pub fn sync(&mut self, member: &Member, is_first: bool) -> Option<u64> {
        let shards = self.shards.iter_mut();
        shards
            .map(|shard| shard.running.shard_mut().sync(member, is_first))
            .sum()
    }

    /// Nothing is here that another member should have, or the backend.
    pub fn is_drained(&self) -> bool {
        let mut shards = self.shards.iter();
        shards.all(|shard| shard.running.shard().is_drained())
    }

    pub fn shard_of(&self, trace: TraceId) -> usize {
        shard_of(trace, self.shards.len())
    }

    /// One turn of a shard's thread. True if it handed a batch to its disk thread.
    pub fn turn(&mut self, shard: usize, now: Moment) -> bool {
        let shard = &mut self.shards[shard];
        let was_waiting = !shard.disk.batches.is_empty();
        shard.running.turn(First::default(), now);
        !was_waiting && !shard.disk.batches.is_empty()
    }

    /// Other rules, from each shard's next turn on.
    pub fn set_rules(&self, rules: &Arc<Rules>) {
        for shard in &self.shards {
            drop(shard.handle.set_rules(Arc::clone(rules)));
        }
    }

    /// The refolder carries out a work of a shard, which hears of it in its next turn. False if there
    /// is none.
    pub fn refold(&self, shard: usize) -> bool {
        let jobs = &self.shards[shard].jobs;
        jobs.carry_out_one(&self.volume, &self.metrics.reload)
    }

    /// The trace is complete, and its verdict waits until it is folded again.
    pub fn waits_for_fold(&self, trace: TraceId) -> bool {
        let shard = &self.shards[self.shard_of(trace)];
        shard.running.shard().waits_for_fold(trace)
    }

    /// A shard's disk thread carries out the batch it has. `None` if it has none; true if all of
    /// it is on disk.
    pub fn write(&mut self, shard: usize) -> Option<bool> {
        let disk = &self.shards[shard].disk;
        let batch = disk.batches.try_recv().ok()?;
        let done = disk::carry_out(&self.volume, self.ack, batch);
        let is_written = done.result.is_ok();
        disk.done.send(done).ok();
        Some(is_written)
    }

    /// The compactor does what a shard asked it for first; that hears of it in its next turn. False if none did.
    pub fn compact(&mut self) -> bool {
        self.compaction_jobs.do_next(&self.volume, &self.budget)
    }

    /// The oldest sealed segment without a footer gets it.
    pub fn append_footer(&mut self) {
        if let Some(sealed) = self.volume.unfinished().try_take() {
            self.footed.extend(self.volume.append_footer(sealed));
        }
    }

    /// The oldest segment with a footer and without a trailer gets that.
    pub fn append_trailer(&mut self) {
        if let Some(footed) = self.footed.pop_front() {
            self.volume.append_trailer(footed);
        }
    }

    /// Kept traces, after a turn of the shard.
    pub fn pull(
        &mut self,
        shard: usize,
        bytes_max: u64,
        traces_max: usize,
        now: Moment,
    ) -> Option<ExportWork> {
        let shard = &mut self.shards[shard];
        shard.running.pull_now(bytes_max, traces_max, now)
    }

    pub fn exported(&self, shard: usize, work: ExportWork) {
        self.shards[shard].handle.exported(work);
    }

    pub fn put_back(&self, shard: usize, work: ExportWork) {
        self.shards[shard].handle.put_back(work);
    }

    pub fn offer_again(&self, shard: usize, work: ExportWork) {
        self.shards[shard].handle.offer_again(work);
    }

    pub fn read(&self, extents: &[Extent]) -> Result<Vec<StoredFragment>, ReadError> {
        self.volume.read(extents)
    }

    /// The verdict on a trace, as long as it is remembered.
    pub fn verdict(&self, trace: TraceId) -> Option<&Decision> {
        let shard = &self.shards[self.shard_of(trace)];
        shard.running.shard().verdict(trace)
    }

    /// A batch waits for [`SimulatedWorker::write`].
    pub fn has_batch(&self, shard: usize) -> bool {
        !self.shards[shard].disk.batches.is_empty()
    }

    pub fn undecided(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.running.shard().undecided()).sum()
    }

    /// Kept traces that the backend has not got.
    pub fn awaiting_export(&self) -> usize {
        let shards = self.shards.iter();
        shards
            .map(|shard| shard.running.shard().awaiting_export())
            .sum()
    }
}
