//! Runs a shard: takes messages from its queues, lends it the clock, hands its batches to the
//! disk thread.
//!
//! One batch is on its way to disk at a time; what comes in meanwhile makes the next one. So a
//! slow disk means larger batches, not longer queues of small ones (group commit).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use tokio::sync::oneshot;

use crate::log::{Disk, PlantedBug, Volume};
use crate::model::Member;
use crate::model::{Moment, SteadyClock, TraceId};
use crate::net::admission::Permit;
use crate::policy::{LimitAnswers, Rules};
use crate::worker::compactor::{Compacted, Compacting};
use crate::worker::disk::{self, AckLevel, DiskBatch, DiskDone};
use crate::worker::ingest::Incoming;
use crate::worker::limiter::Asking;
use crate::worker::refolder::Refolding;
use crate::worker::shard::{
    AppendRefused, ExportWork, HandoffAnswer, HandoffWork, Ownership, Placement, Received,
    RefoldWork, Reopen, Reopened, Shard,
};

#[cfg(test)]
mod tests;

/// Answers one request's part at one shard. Dropped unanswered it answers as well: the receiver
/// sees that the shard is gone.
#[derive(Debug)]
pub(crate) struct Reply {
    sender: oneshot::Sender<Result<Vec<u32>, AppendRefused>>,
    /// It pays for its copy in the log's buffers, whether its client still waits or not.
    incoming: Arc<Incoming>,
}

impl Reply {
    pub(crate) fn send(self, result: Result<Vec<u32>, AppendRefused>) {
        // Before the answer: whoever gets the last one has the request for itself again.
        drop(self.incoming);
        // A client that went away does not wait for its answer.
        self.sender.send(result).ok();
    }
}

#[derive(Debug)]
struct Append {
    fragments: Vec<(u32, Placement)>,
    reply: Reply,
}

/// A shard's part of what another member hands over.
#[derive(Debug)]
struct Receive {
    incoming: Arc<Incoming>,
    received: Received,
    reply: oneshot::Sender<Result<HandoffAnswer, AppendRefused>>,
}

/// What comes in order, to be written before it is answered.
#[derive(Debug)]
enum Data {
    Append(Append),
    Receive(Receive),
}

/// Who waits for a batch.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// With what is to be passed on.
    Client(Reply, Vec<u32>),
    /// The message is paid for until then.
    Peer(
        oneshot::Sender<Result<HandoffAnswer, AppendRefused>>,
        HandoffAnswer,
        Arc<Incoming>,
    ),
}

impl Waiting {
    /// All of it is written, or not.
    pub(crate) fn answer(self, is_written: bool) {
        match self {
            Self::Client(reply, elsewhere) => reply.send(if is_written {
                Ok(elsewhere)
            } else {
                Err(AppendRefused::LogFailed)
            }),
            Self::Peer(reply, answer, incoming) => {
                drop(incoming);
                let answer = if is_written {
                    Ok(answer)
                } else {
                    Err(AppendRefused::LogFailed)
                };
                // A peer that went away gives it to us again.
                reply.send(answer).ok();
            }
        }
    }
}

/// What does not wait behind data. Bounded by who sends it: exporters and the worker's own steps.
#[derive(Debug)]
enum Control {
    Pull {
        bytes_max: u64,
        traces_max: usize,
        reply: oneshot::Sender<ExportWork>,
    },
    Exported(ExportWork),
    PutBack(ExportWork),
    OfferAgain(ExportWork),
    /// Verdicts may be given until then.
    Deciding(Option<Moment>),
    /// From the limits of rules of this version.
    Limited(u64, Vec<(TraceId, LimitAnswers)>),
    AskAgain(TraceId),
    Rules(Arc<Rules>, oneshot::Sender<()>),
    AwaitingExport(oneshot::Sender<usize>),
    Ownership(Ownership),
    PullHandoff {
        bytes_max: u64,
        reply: oneshot::Sender<HandoffWork>,
    },
    HandedOver(HandoffWork, Option<HandoffAnswer>),
    PullReopen(oneshot::Sender<Reopen>),
    Reopened(Reopen, Option<Reopened>),
    Sync {
        member: Member,
        is_first: bool,
        reply: oneshot::Sender<Option<u64>>,
    },
    /// Whether nothing is left, and how many bytes are.
    Drained(oneshot::Sender<(bool, u64)>),
    StopExports,
    Stop(oneshot::Sender<()>),
}

/// The door to a running shard; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ShardHandle {
    /// Without a bound of its own: a bounded channel would keep what lies in it, and those who
    /// wait for it, when the shard is gone.
    data: Sender<Data>,
    control: Sender<Control>,
    exports_stopped: Arc<AtomicBool>,
    /// Unix milliseconds at which the shard last went round.
    beat: Arc<AtomicU64>,
}

/// Requests that may wait for a shard, give or take those that come at the same moment. Their
/// bytes are bounded by admission; this bounds the queue of tiny ones.
const DATA_QUEUE: usize = 4096;
/// A batch is handed over once it has so many bytes, even if more waits. While another one is on
/// its way no more is taken in: what waits in the queue is counted by admission, what was encoded
/// is not, and a disk may hang for minutes.
const BATCH_BYTES: usize = 4 << 20;
/// The shard looks at its clock at least so often, for gauges and memory that is given back.
const TICK: Duration = Duration::from_millis(200);

impl ShardHandle {
    /// Gives the shard its fragments of a request. `None`: its queue is full.
    pub(crate) fn append(
        &self,
        incoming: Arc<Incoming>,
        fragments: Vec<(u32, Placement)>,
    ) -> Option<oneshot::Receiver<Result<Vec<u32>, AppendRefused>>> {
        let (sender, receiver) = oneshot::channel();
        let append = Append {
            fragments,
            reply: Reply { sender, incoming },
        };
        if self.data.len() >= DATA_QUEUE {
            return None;
        }
        // Disconnected: the dropped reply tells the caller.
        self.data.send(Data::Append(append)).ok();
        Some(receiver)
    }

    /// Gives the shard what another member hands over. `None`: its queue is full.
    pub(crate) fn receive(
        &self,
        incoming: Arc<Incoming>,
        received: Received,
    ) -> Option<oneshot::Receiver<Result<HandoffAnswer, AppendRefused>>> {
        let (reply, receiver) = oneshot::channel();
        if self.data.len() >= DATA_QUEUE {
            return None;
        }
        let receive = Receive {
            incoming,
            received,
            reply,
        };
        self.data.send(Data::Receive(receive)).ok();
        Some(receiver)
    }

    pub(crate) fn set_ownership(&self, ownership: Ownership) {
        self.control.send(Control::Ownership(ownership)).ok();
    }

    /// Waits for something to hand over. `None`: the shard has stopped.
    pub(crate) async fn pull_handoff(&self, bytes_max: u64) -> Option<HandoffWork> {
        let (reply, receiver) = oneshot::channel();
        let pull = Control::PullHandoff { bytes_max, reply };
        self.control.send(pull).ok()?;
        receiver.await.ok()
    }

    /// `None`: nobody can say what became of it.
    pub(crate) fn handed_over(&self, work: HandoffWork, answer: Option<HandoffAnswer>) {
        self.control.send(Control::HandedOver(work, answer)).ok();
    }

    /// Waits for a trace that is to be read again. `None`: the shard has stopped.
    pub(crate) async fn pull_reopen(&self) -> Option<Reopen> {
        let (reply, receiver) = oneshot::channel();
        self.control.send(Control::PullReopen(reply)).ok()?;
        receiver.await.ok()
    }

    /// `None`: it could not be read.
    pub(crate) fn reopened(&self, reopen: Reopen, found: Option<Reopened>) {
        self.control.send(Control::Reopened(reopen, found)).ok();
    }

    /// See [`Shard::sync`].
    pub(crate) async fn sync(&self, member: Member, is_first: bool) -> Option<u64> {
        let (reply, receiver) = oneshot::channel();
        let sync = Control::Sync {
            member,
            is_first,
            reply,
        };
        self.control.send(sync).ok()?;
        receiver.await.ok()?
    }

    /// Whether nothing is left to hand over or export, and the bytes that are.
    pub(crate) async fn drained(&self) -> (bool, u64) {
        let (reply, receiver) = oneshot::channel();
        self.control.send(Control::Drained(reply)).ok();
        receiver.await.unwrap_or((true, 0))
    }

    /// Waits for kept traces. `None`: the shard has stopped.
    pub(crate) async fn pull(&self, bytes_max: u64, traces_max: usize) -> Option<ExportWork> {
        let (reply, receiver) = oneshot::channel();
        let pull = Control::Pull {
            bytes_max,
            traces_max,
            reply,
        };
        self.control.send(pull).ok()?;
        receiver.await.ok()
    }

    pub(crate) fn exported(&self, work: ExportWork) {
        // A stopped shard forgets with its process; the log then exports this once more.
        self.control.send(Control::Exported(work)).ok();
    }

    pub(crate) fn put_back(&self, work: ExportWork) {
        self.control.send(Control::PutBack(work)).ok();
    }

    /// It was not found where it was.
    pub(crate) fn offer_again(&self, work: ExportWork) {
        self.control.send(Control::OfferAgain(work)).ok();
    }

    /// Verdicts may be given until then, if nothing else is heard: a process that was stopped must not judge by
    /// what it knew before.
    pub(crate) fn set_deciding(&self, until: Option<Moment>) {
        self.control.send(Control::Deciding(until)).ok();
    }

    /// What the limits of these rules said to traces that asked.
    pub(crate) fn answer_limits(&self, version: u64, answers: Vec<(TraceId, LimitAnswers)>) {
        self.control.send(Control::Limited(version, answers)).ok();
    }

    /// The limits that this trace asked are no more.
    pub(crate) fn ask_limits_again(&self, trace: TraceId) {
        self.control.send(Control::AskAgain(trace)).ok();
    }

    /// These rules are in force when the answer is there.
    pub(crate) fn set_rules(&self, rules: Arc<Rules>) -> oneshot::Receiver<()> {
        let (reply, taken) = oneshot::channel();
        self.control.send(Control::Rules(rules, reply)).ok();
        taken
    }

    /// When the shard last went round.
    pub(crate) fn beat(&self) -> Moment {
        Moment::from_unix_millis(self.beat.load(Ordering::Relaxed))
    }

    /// Kept traces that the backend has not got.
    pub(crate) async fn awaiting_export(&self) -> usize {
        let (reply, receiver) = oneshot::channel();
        self.control.send(Control::AwaitingExport(reply)).ok();
        receiver.await.unwrap_or(0)
    }

    /// No work for exporters from now on. They see it between two messages, too.
    pub(crate) fn stop_exports(&self) {
        self.exports_stopped.store(true, Ordering::Relaxed);
        self.control.send(Control::StopExports).ok();
    }

    pub(crate) fn exports_stopped(&self) -> bool {
        self.exports_stopped.load(Ordering::Relaxed)
    }

    /// Stops the shard once everything it was given is on disk and answered.
    pub(crate) async fn stop(&self) {
        let (reply, receiver) = oneshot::channel();
        self.control.send(Control::Stop(reply)).ok();
        receiver.await.ok();
    }
}

/// Starts the two threads of a shard.
#[expect(
    clippy::too_many_arguments,
    reason = "what a shard stands between, each once"
)]
pub(crate) fn spawn<D: Disk>(
    number: u16,
    shard: Shard,
    asking: Option<Asking>,
    refolding: Refolding,
    compacting: Compacting,
    memory: Permit,
    clock: SteadyClock,
    volume: Arc<Volume<D>>,
    level: AckLevel,
) -> std::io::Result<(ShardHandle, [JoinHandle<()>; 2])> {
    let (handle, running, disk) = prepare(
        number,
        shard,
        asking,
        refolding,
        compacting,
        memory,
        clock.now(),
    );
    let disk = disk::spawn(number, volume, level, disk.batches, disk.done)?;
    let thread = std::thread::Builder::new()
        .name(format!("shard-{number}"))
        .spawn(move || running.run(clock))?;
    Ok((handle, [thread, disk]))
}

/// What a disk thread holds.
pub(crate) struct DiskEnd {
    pub(crate) batches: Receiver<DiskBatch>,
    pub(crate) done: Sender<DiskDone>,
}

/// A shard with its queues and no threads.
pub(crate) fn prepare(
    number: u16,
    shard: Shard,
    asking: Option<Asking>,
    refolding: Refolding,
    compacting: Compacting,
    memory: Permit,
    now: Moment,
) -> (ShardHandle, Running, DiskEnd) {
    let (data_sender, data) = data_queue();
    let (control_sender, control) = unbounded();
    let (batch_sender, batches) = bounded(1);
    let (done_sender, done) = bounded(1);
    let beat = Arc::new(AtomicU64::new(now.unix_millis()));
    let running = Running {
        number,
        shard,
        asking,
        refolding,
        refolded: unbounded(),
        compacting,
        now,
        data,
        control,
        batches: batch_sender,
        done,
        on_its_way: false,
        replies: Vec::new(),
        pulls: Vec::new(),
        handoff_pulls: Vec::new(),
        reopen_pulls: Vec::new(),
        exports_stopped: false,
        stop: None,
        last_try: false,
        deciding_until: None,
        beat: beat.clone(),
        memory,
    };
    let handle = ShardHandle {
        data: data_sender,
        control: control_sender,
        exports_stopped: Arc::default(),
        beat,
    };
    let disk = DiskEnd {
        batches,
        done: done_sender,
    };
    (handle, running, disk)
}

fn data_queue() -> (Sender<Data>, Receiver<Data>) {
    unbounded()
}

/// What ended a shard's wait.
#[derive(Default)]
pub(crate) struct First {
    done: Option<DiskDone>,
    refolded: Option<RefoldWork>,
    control: Option<Control>,
    data: Option<Data>,
    compacted: Option<Compacted>,
}

struct Pull {
    bytes_max: u64,
    traces_max: usize,
    reply: oneshot::Sender<ExportWork>,
}

pub(crate) struct Running {
    number: u16,
    shard: Shard,
    asking: Option<Asking>,
    refolding: Refolding,
    /// What it sent back. Bounded by what the shard hands out; whoever carries a work out has a sender.
    refolded: (Sender<RefoldWork>, Receiver<RefoldWork>),
    compacting: Compacting,
    /// When this turn began.
    now: Moment,
    data: Receiver<Data>,
    control: Receiver<Control>,
    batches: Sender<DiskBatch>,
    done: Receiver<DiskDone>,
    /// A batch is at the disk thread.
    on_its_way: bool,
    /// Who waits for the batch that is being filled.
    replies: Vec<Waiting>,
    pulls: Vec<Pull>,
    handoff_pulls: Vec<(u64, oneshot::Sender<HandoffWork>)>,
    reopen_pulls: Vec<oneshot::Sender<Reopen>>,
    exports_stopped: bool,
    stop: Option<oneshot::Sender<()>>,
    /// A failed write may be tried once more before the stop.
    last_try: bool,
    deciding_until: Option<Moment>,
    beat: Arc<AtomicU64>,
    /// What the shard holds of the worker's memory.
    memory: Permit,
}

impl Running {
    fn run(mut self, clock: SteadyClock) {
        let nothing = never();
        loop {
            let now = clock.now();
            self.beat.store(now.unix_millis(), Ordering::Relaxed);
            let wait = self
                .shard
                .next_wakeup()
                .map_or(TICK, |at| at.since(now).min(TICK));
            let data = if self.on_its_way && self.shard.pending_bytes() >= BATCH_BYTES {
                &nothing
            } else {
                &self.data
            };
            // What comes is taken in below, with the time at which it came.
            let mut first = First::default();
            select! {
                recv(self.done) -> done => match done {
                    Ok(done) => first.done = Some(done),
                    Err(_) => return,
                },
                recv(self.control) -> control => match control {
                    Ok(control) => first.control = Some(control),
                    // Nobody holds a handle: nobody will ever ask for anything again.
                    Err(_) => return,
                },
                recv(self.refolded.1) -> refolded => first.refolded = refolded.ok(),
                recv(data) -> data => first.data = data.ok(),
                recv(self.compacting.done) -> compacted => first.compacted = compacted.ok(),
                default(wait) => {}
            }
            self.turn(first, clock.now());
            if self.has_stopped() {
                return;
            }
        }
    }

    /// Takes in what has come, and hands out what came of it. Never waits.
    pub(crate) fn turn(&mut self, first: First, now: Moment) {
        self.now = now;
        if self.deciding_until.is_some_and(|until| now > until) {
            self.deciding_until = None;
            self.shard.set_deciding(false);
        }
        if let Some(done) = first.done {
            self.batch_done(done);
        }
        if let Some(refolded) = first.refolded {
            self.shard.refolded(refolded, now);
        }
        if let Some(control) = first.control {
            self.control(control);
        }
        if let Some(data) = first.data {
            self.data(data);
        }
        if let Some(compacted) = first.compacted {
            self.shard.compacted(compacted.answer, now);
        }
        while let Ok(Compacted { answer, held }) = self.compacting.done.try_recv() {
            self.shard.compacted(answer, now);
            drop(held);
        }
        while let Ok(done) = self.done.try_recv() {
            self.batch_done(done);
        }
        while let Ok(refolded) = self.refolded.1.try_recv() {
            self.shard.refolded(refolded, now);
        }
        while let Ok(control) = self.control.try_recv() {
            self.control(control);
        }
        while self.shard.pending_bytes() < BATCH_BYTES
            && let Ok(data) = self.data.try_recv()
        {
            self.data(data);
        }
        self.shard.tick(now);
        self.memory.recharge(self.shard.memory_bytes() as u64);
        self.ask_limits();
        while let Some(work) = self.shard.next_refold(now) {
            self.refolding.hand_out(work, self.refolded.0.clone());
        }
        if let Some(job) = self.shard.next_compaction(now) {
            self.compacting.ask(job);
        }
        self.hand_over();
        self.answer_pulls();
        self.answer_handoff_pulls();
    }

    fn has_stopped(&mut self) -> bool {
        if self.stop.is_none() || self.on_its_way || !self.replies.is_empty() {
            return false;
        }
        // What could not be written has one more chance. Not before here: the disk thread
        // answers the clients of a failed batch before it tells us, so that a stop can
        // overtake the news.
        if std::mem::take(&mut self.last_try) && self.shard.retry_at(self.now) {
            return false;
        }
        if let Some(stopped) = self.stop.take() {
            stopped.send(()).ok();
        }
        true
    }

    /// What an exporter that asks now gets.
    pub(crate) fn pull_now(
        &mut self,
        bytes_max: u64,
        traces_max: usize,
        now: Moment,
    ) -> Option<ExportWork> {
        let (reply, mut work) = oneshot::channel();
        let pull = Control::Pull {
            bytes_max,
            traces_max,
            reply,
        };
        self.now = now;
        self.control(pull);
        self.answer_pulls();
        work.try_recv().ok()
    }

    /// Something has come for the next turn.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.data.is_empty() || !self.control.is_empty() || !self.done.is_empty()
    }

    pub(crate) fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    pub(crate) fn shard(&self) -> &Shard {
        &self.shard
    }

    fn data(&mut self, data: Data) {
        match data {
            Data::Append(append) => self.append(append),
            Data::Receive(receive) => self.receive(receive),
        }
    }

    fn receive(&mut self, receive: Receive) {
        let Receive {
            incoming,
            received,
            reply,
        } = receive;
        match self.shard.receive(&incoming, &received, self.now) {
            Ok(answer) if PlantedBug::AckBeforeCommit.is_planted() => {
                reply.send(Ok(answer)).ok();
            }
            Ok(answer) => self.replies.push(Waiting::Peer(reply, answer, incoming)),
            Err(refused) => {
                reply.send(Err(refused)).ok();
            }
        }
    }

    fn append(&mut self, append: Append) {
        let appended = self
            .shard
            .append(&append.reply.incoming, &append.fragments, self.now);
        match appended {
            Ok(elsewhere) => {
                let waiting = Waiting::Client(append.reply, elsewhere);
                self.replies.push(waiting);
            }
            Err(refused) => append.reply.send(Err(refused)),
        }
    }

    fn control(&mut self, control: Control) {
        let now = self.now;
        match control {
            Control::Pull {
                bytes_max,
                traces_max,
                reply,
            } => self.pulls.push(Pull {
                bytes_max,
                traces_max,
                reply,
            }),
            Control::Exported(work) => self.shard.exported(work, now),
            Control::PutBack(work) => self.shard.put_back(work, now),
            Control::OfferAgain(work) => self.shard.offer_again(work),
            Control::Deciding(until) => {
                self.deciding_until = until;
                self.shard
                    .set_deciding(until.is_some_and(|until| now <= until));
            }
            Control::Limited(version, answers) if version == self.shard.rules_version() => {
                for (trace, answers) in answers {
                    self.shard.answered(trace, &answers, now);
                }
            }
            Control::Limited(_, answers) => {
                for (trace, _) in answers {
                    self.shard.ask_again(trace, now);
                }
            }
            Control::AskAgain(trace) => self.shard.ask_again(trace, now),
            Control::Rules(rules, reply) => {
                self.shard.set_rules(rules, now);
                reply.send(()).ok();
            }
            Control::AwaitingExport(reply) => {
                reply.send(self.shard.awaiting_export()).ok();
            }
            Control::Ownership(ownership) => self.shard.set_ownership(ownership, now),
            Control::PullHandoff { bytes_max, reply } => {
                self.handoff_pulls.push((bytes_max, reply));
            }
            Control::HandedOver(work, Some(answer)) => self.shard.handed_over(work, &answer, now),
            Control::HandedOver(work, None) => self.shard.handoff_failed(work, now),
            Control::PullReopen(reply) => self.reopen_pulls.push(reply),
            Control::Reopened(reopen, found) => self.shard.reopened(reopen, found, now),
            Control::Sync {
                member,
                is_first,
                reply,
            } => {
                reply.send(self.shard.sync(&member, is_first)).ok();
            }
            Control::Drained(reply) => {
                let left = (self.shard.is_drained(), self.shard.held_bytes());
                reply.send(left).ok();
            }
            Control::StopExports => self.exports_stopped = true,
            Control::Stop(stopped) => {
                self.stop = Some(stopped);
                self.last_try = true;
            }
        }
    }

    fn ask_limits(&mut self) {
        let Some(asking) = &self.asking else {
            return;
        };
        while let Some(ask) = self.shard.next_ask() {
            if let Err(ask) = asking.ask(self.number, ask) {
                // The limits have enough to do; the next round is at most a tick away.
                self.shard.ask_later(ask);
                return;
            }
        }
    }

    fn batch_done(&mut self, done: DiskDone) {
        self.on_its_way = false;
        for buffer in done.buffers {
            self.shard.recycle(buffer);
        }
        match done.result {
            Ok(applied) => {
                self.shard.batch_written(done.number);
                if applied.unlink_failed {
                    self.shard.unlink_failed(self.now);
                }
            }
            Err(_) => {
                // Those who joined the batch being filled wait for bytes that are now forgotten.
                for waiting in self.replies.drain(..) {
                    waiting.answer(false);
                }
                self.shard.batch_failed(done.number, self.now);
            }
        }
    }

    fn hand_over(&mut self) {
        if self.on_its_way {
            return;
        }
        let Some((number, ops)) = self.shard.take_batch() else {
            // Nothing to write and nothing on its way: all that the replies wait for is done.
            for waiting in self.replies.drain(..) {
                waiting.answer(true);
            }
            return;
        };
        let batch = DiskBatch {
            number,
            ops,
            replies: std::mem::take(&mut self.replies),
        };
        // Capacity one, and none is on its way: this does not block.
        self.on_its_way = self.batches.send(batch).is_ok();
    }

    fn answer_pulls(&mut self) {
        if self.exports_stopped {
            self.pulls.clear();
        }
        while let Some(waiting) = self.pulls.pop() {
            if waiting.reply.is_closed() {
                continue;
            }
            match self.shard.pull(waiting.bytes_max, waiting.traces_max) {
                Some(work) => {
                    if let Err(work) = waiting.reply.send(work) {
                        // The exporter went away between the check and now.
                        self.shard.put_back(work, self.now);
                    }
                }
                None => {
                    self.pulls.push(waiting);
                    return;
                }
            }
        }
    }
    fn answer_handoff_pulls(&mut self) {
        while let Some((bytes_max, reply)) = self.handoff_pulls.pop() {
            if reply.is_closed() {
                continue;
            }
            match self.shard.pull_handoff(bytes_max, self.now) {
                Some(work) => {
                    if let Err(work) = reply.send(work) {
                        self.shard.handoff_failed(work, self.now);
                    }
                }
                None => {
                    self.handoff_pulls.push((bytes_max, reply));
                    break;
                }
            }
        }
        while let Some(reply) = self.reopen_pulls.pop() {
            if reply.is_closed() {
                continue;
            }
            match self.shard.next_reopen() {
                Some(reopen) => {
                    if let Err(reopen) = reply.send(reopen) {
                        self.shard.reopened(reopen, None, self.now);
                    }
                }
                None => {
                    self.reopen_pulls.push(reply);
                    break;
                }
            }
        }
    }

    /// Work for another member, for who runs the shard in one thread.
    pub(crate) fn pull_handoff_now(&mut self, bytes_max: u64, now: Moment) -> Option<HandoffWork> {
        self.now = now;
        self.shard.pull_handoff(bytes_max, now)
    }

    /// A trace to be read again, likewise.
    pub(crate) fn next_reopen_now(&mut self) -> Option<Reopen> {
        self.shard.next_reopen()
    }
}
