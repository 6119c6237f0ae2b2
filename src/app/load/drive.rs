//! Runs a plan: batches by their due times, each on a task of its own until it is done.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::generator::{Batch, Generator};
use super::plan::{LoadPlan, Rate};
use super::report::{LoadReport, Totals};
use super::sender::{End, Sender};
use crate::app::ledger::{LedgerError, LedgerKind, LedgerQueue, LedgerWriter, Record};
use crate::model::SteadyClock;

const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What the tasks of a run share.
#[derive(Debug)]
struct Run {
    totals: Mutex<Totals>,
    ledger: Option<LedgerQueue>,
    repeats: bool,
}

/// Where the batches of a run are in time.
struct Schedule {
    began: Instant,
    /// Zero for a closed loop.
    interval: Duration,
    due_count: u32,
}

/// Runs the plan to its end, or until `stop` and the traces under way are finished. `progress` is
/// called each second.
pub async fn drive(
    plan: LoadPlan,
    stop: impl Future<Output = ()>,
    mut progress: impl FnMut(&LoadReport),
) -> Result<LoadReport, LedgerError> {
    let clock = SteadyClock::start();
    let ledger = match &plan.ledger {
        Some(path) => Some(LedgerWriter::create(path, LedgerKind::Sent)?),
        None => None,
    };
    let run = Arc::new(Run {
        totals: Mutex::new(Totals::new()),
        ledger: ledger.as_ref().map(LedgerWriter::queue),
        repeats: plan.repeats,
    });
    let senders: Vec<_> = (0..plan.connections)
        .map(|_| Arc::new(Sender::new(&plan)))
        .collect();
    let turns = Arc::new(Semaphore::new(
        plan.connections * plan.in_flight_per_connection,
    ));
    let mut generator = Generator::new(plan.generator);
    let mut tasks = JoinSet::new();
    let mut stop = pin!(stop);
    let mut schedule = Schedule::new(&plan);
    let mut ticker = tokio::time::interval_at(schedule.began + PROGRESS_EVERY, PROGRESS_EVERY);
    let ends = schedule.began + plan.duration;
    let mut draining = false;

    loop {
        // Each branch may be dropped half-way: waiting for a turn or a due time loses nothing.
        let turn = tokio::select! {
            biased;
            () = &mut stop, if !draining => None,
            () = tokio::time::sleep_until(ends), if !draining => None,
            _ = ticker.tick() => {
                progress(&run.report(&plan, schedule.began));
                continue;
            }
            Some(_) = tasks.join_next() => continue,
            turn = schedule.next_turn(&turns) => Some(turn),
        };
        let Some((due, turn)) = turn else {
            draining = true;
            generator.drain();
            let due = schedule.due_by(Instant::now().min(ends));
            run.totals().counts.batches_missed = due.saturating_sub(schedule.due_count).into();
            // What was missed is not caught up on; the rest goes out at the same pace.
            schedule.due_count = schedule.due_count.max(due);
            continue;
        };
        let Some(batch) = generator.next_batch(clock.now()) else {
            break;
        };
        schedule.due_count += 1;
        let sender = senders[batch.number as usize % senders.len()].clone();
        tasks.spawn(run.clone().send(batch, due, sender, turn));
        if run.ledger.as_ref().is_some_and(LedgerQueue::is_stopped) {
            break;
        }
    }
    loop {
        tokio::select! {
            biased;
            _ = ticker.tick() => progress(&run.report(&plan, schedule.began)),
            ended = tasks.join_next() => if ended.is_none() { break },
        }
    }
    let report = run.report(&plan, schedule.began);
    drop(run);
    if let Some(ledger) = ledger {
        ledger.close().await?;
    }
    Ok(report)
}

impl Schedule {
    fn new(plan: &LoadPlan) -> Self {
        Self {
            began: Instant::now(),
            interval: match plan.rate {
                Rate::Max => Duration::ZERO,
                Rate::SpansPerSecond(rate) => {
                    Duration::from_secs_f64(plan.generator.batch_spans as f64 / rate)
                }
            },
            due_count: 0,
        }
    }

    /// How many batches should have begun by then. None is ever late in a closed loop.
    fn due_by(&self, then: Instant) -> u32 {
        if self.interval.is_zero() {
            return self.due_count;
        }
        let elapsed = then.saturating_duration_since(self.began);
        (elapsed.as_secs_f64() / self.interval.as_secs_f64()) as u32
    }

    /// When the next batch is due, after that has come and a turn is free.
    async fn next_turn(&self, turns: &Arc<Semaphore>) -> (Instant, Option<OwnedSemaphorePermit>) {
        let due = self.began + self.interval.mul_f64(f64::from(self.due_count));
        tokio::time::sleep_until(due).await;
        // `None` only when the semaphore is closed, and nobody closes it.
        let turn = turns.clone().acquire_owned().await.ok();
        if self.interval.is_zero() {
            return (Instant::now(), turn);
        }
        (due, turn)
    }
}

impl Run {
    fn totals(&self) -> std::sync::MutexGuard<'_, Totals> {
        // Counts are whole whenever the lock is free: a panic elsewhere does not spoil them.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, plan: &LoadPlan, began: Instant) -> LoadReport {
        self.totals().report(plan.generator.seed, began.elapsed())
    }

    async fn send(
        self: Arc<Self>,
        batch: Batch,
        due: Instant,
        sender: Arc<Sender>,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        let spans = batch.spans.len() as u64;
        let number = batch.number;
        self.totals().sent(&batch);
        let message = match sender.encode(batch.message.clone()).await {
            Ok(message) => message,
            Err(error) => return self.totals().refused_unsent(&error),
        };
        // A failed ledger ends the run, and closing it tells why.
        if let Some(ledger) = &self.ledger {
            let spans = batch.spans.into();
            let record = Record::Sent {
                batch: number,
                spans,
            };
            if ledger.put(record).await.is_err() {
                return;
            }
        }
        let outcome = sender
            .send(&message, |error| self.totals().retried(error))
            .await;
        self.totals().ended(spans, due.elapsed(), &outcome);
        if !matches!(outcome.end, End::Acknowledged) {
            return;
        }
        if let Some(ledger) = &self.ledger
            && ledger
                .put(Record::Acknowledged { batch: number })
                .await
                .is_err()
        {
            return;
        }
        if self.repeats {
            let outcome = sender
                .send(&message, |error| self.totals().retried(error))
                .await;
            self.totals().repeated(&outcome);
        }
        drop(turn);
    }
}
