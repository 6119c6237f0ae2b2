//! Plays a [`Playback`] in real time: SDKs that send what has ended every so often, each over a
//! connection of its own, and the books of it.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::playback::{Playback, PlaybackPlan, Played};
use super::sender::{End, Sender};
use crate::app::ledger::{
    LedgerError, LedgerKind, LedgerQueue, LedgerWriter, PlayedBatch, Record, SpanKey,
};
use crate::model::SteadyClock;
use crate::net::client::Target;

/// How often an SDK sends: the 5 s of the SDKs' default, faster by more than turns are, so that a
/// trace's first span is not much later than it ended.
const SENDS_EVERY: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(20);
/// Requests under way in all; beyond it spans wait in their SDKs. 20 are sent in 200 ms.
const IN_FLIGHT_MAX: usize = 256;

/// What to play, to whom.
#[derive(Debug, Clone)]
pub struct PlayPlan {
    pub playback: PlaybackPlan,
    /// How long turns begin. Those under way then are finished.
    pub duration: Duration,
    /// SDKs take them in turn; not empty.
    pub targets: Vec<Target>,
    pub ledger: PathBuf,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlayReport {
    pub turns: u64,
    pub spans_sent: u64,
    pub spans_acknowledged: u64,
    pub retries: u64,
    /// Why the last batch that was not acknowledged was not.
    pub failure: Option<String>,
}

/// Plays the plan to its end, or until `stop` and the turns under way are finished.
pub async fn play(
    plan: PlayPlan,
    stop: impl Future<Output = ()>,
) -> Result<PlayReport, LedgerError> {
    let ledger = LedgerWriter::create(&plan.ledger, LedgerKind::Sent)?;
    let clock = SteadyClock::start();
    let mut playback = Playback::new(plan.playback, clock.now());
    let mut begin_until = clock.now() + plan.duration;
    let player = Arc::new(Player {
        clock,
        ledger: ledger.queue(),
        report: Mutex::default(),
    });
    let senders: Vec<_> = (0..playback.instances())
        .map(|index| Arc::new(Sender::to(plan.targets[index % plan.targets.len()].clone())))
        .collect();
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut tasks = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    // SDKs started at different times.
    let began = Instant::now();
    let mut sends_at: Vec<_> = (0..senders.len())
        .map(|index| began + SENDS_EVERY.mul_f64(index as f64 / senders.len() as f64))
        .collect();
    let mut batch = 0;
    let mut stop = pin!(stop);
    let mut stopped = false;

    while !(playback.is_over() && clock.now() > begin_until) {
        tokio::select! {
            biased;
            () = &mut stop, if !stopped => {
                stopped = true;
                begin_until = begin_until.min(clock.now());
            }
            _ = ticks.tick() => {}
            Some(_) = tasks.join_next() => continue,
        }
        if player.ledger.is_stopped() {
            break;
        }
        playback.advance(clock.now(), begin_until);
        for (index, sends_at) in sends_at.iter_mut().enumerate() {
            if *sends_at > Instant::now() {
                continue;
            }
            *sends_at += SENDS_EVERY;
            let Ok(permit) = in_flight.clone().try_acquire_owned() else {
                break;
            };
            if let Some(played) = playback.take(index) {
                let sending = player.clone().send(batch, played, senders[index].clone());
                batch += 1;
                tasks.spawn(async move {
                    sending.await;
                    drop(permit);
                });
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    let mut report = player.report().clone();
    report.turns = playback.turns_begun();
    drop(player);
    ledger.close().await?;
    Ok(report)
}

/// What the requests of a run share.
#[derive(Debug)]
struct Player {
    clock: SteadyClock,
    ledger: LedgerQueue,
    report: Mutex<PlayReport>,
}

impl Player {
    fn report(&self) -> std::sync::MutexGuard<'_, PlayReport> {
        // Counts are whole whenever the lock is free: a panic elsewhere does not spoil them.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(self: Arc<Self>, batch: u64, played: Played, sender: Arc<Sender>) {
        let count = played.spans.len() as u64;
        self.report().spans_sent += count;
        let message = match sender.encode(played.message).await {
            Ok(message) => message,
            Err(error) => {
                self.report().failure = Some(error.to_string());
                return;
            }
        };
        let keys: Arc<[SpanKey]> = played.spans.iter().map(|facts| facts.key).collect();
        let sent_at = self.clock.now();
        // A failed ledger ends the run, and closing it tells why.
        let sent = Record::Sent { batch, spans: keys };
        if self.ledger.put(sent).await.is_err() {
            return;
        }
        let outcome = sender.send(&message, |_| self.report().retries += 1).await;
        let acknowledged_at = self.clock.now();
        match outcome.end {
            End::Acknowledged => self.report().spans_acknowledged += count,
            End::Partial { message, .. } => {
                self.report().failure = Some(message);
                return;
            }
            End::Refused(error) | End::GivenUp(error) => {
                self.report().failure = Some(error.to_string());
                return;
            }
        }
        let played = Record::Played(PlayedBatch {
            batch,
            sent_at,
            acknowledged_at,
            spans: played.spans.into(),
        });
        // As above.
        self.ledger.put(played).await.unwrap_or(());
    }
}

impl PlayReport {
    /// Everything that was sent was acknowledged, and there was something.
    pub fn is_success(&self) -> bool {
        self.spans_sent > 0 && self.spans_acknowledged == self.spans_sent
    }
}
