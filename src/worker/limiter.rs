//! The one thread that holds a worker's limits: shards ask, windows close, answers go back.
//!
//! Off the path of what is appended: a shard never waits for it, and it never waits for a shard.
//! Which candidates are taken is `policy`'s to say. The thread is there whether the rules have limits
//! or not: the next ones may.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{
    Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select, unbounded,
};
use tokio::sync::oneshot;

use crate::model::{Moment, SteadyClock, TraceId};
use crate::policy::{Answer, LimitAnswers, Limits, Rules};
use crate::worker::metrics::{PolicyCounters, WorkerMetrics};
use crate::worker::shard::Ask;
use crate::worker::shard_thread::ShardHandle;

/// Questions on their way. A shard that finds no room tries again a moment later.
const ASKS_MAX: usize = 4096;
/// Questions are taken in so often, not as they come: traces complete one by one, and a wakeup
/// for each of them cost 3 % of a busy worker's CPU. Windows are of a second.
const GATHERING: Duration = Duration::from_millis(5);
/// How long nothing happens at most. Nothing depends on it.
const IDLE: Duration = Duration::from_secs(60);

/// Who asks, and for which trace.
type Asker = (u16, TraceId);

#[derive(Debug)]
enum Control {
    Share(f64),
    Rules(Arc<Rules>, oneshot::Sender<()>),
    CloseEarly(oneshot::Sender<()>),
}

/// A shard's way to the limits; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Asking(Sender<(u16, Ask)>);

/// The worker's. When it is dropped the thread ends.
#[derive(Debug, Clone)]
pub(crate) struct Limiter(Sender<Control>);

/// The limits with those who ask them, without a thread.
pub(crate) struct Rounds {
    limits: Option<Limits<Asker>>,
    asks: Receiver<(u16, Ask)>,
    /// Of the policies of these limits.
    counters: PolicyCounters,
    metrics: WorkerMetrics,
    share: f64,
    answers: Vec<Answer<Asker>>,
    /// Who asked limits that are no more.
    again: Vec<Asker>,
}

impl Asking {
    /// Gives the question back if there is no room for it now.
    pub(crate) fn ask(&self, shard: u16, ask: Ask) -> Result<(), Ask> {
        self.0.try_send((shard, ask)).map_err(|error| match error {
            TrySendError::Full((_, ask)) | TrySendError::Disconnected((_, ask)) => ask,
        })
    }
}

pub(crate) fn prepare(rules: &Rules, now: Moment, metrics: &WorkerMetrics) -> (Asking, Rounds) {
    let (sender, asks) = bounded(ASKS_MAX);
    let rounds = Rounds {
        limits: Limits::of(rules, now),
        asks,
        counters: metrics.of_policies(rules),
        metrics: metrics.clone(),
        share: 1.0,
        answers: Vec::new(),
        again: Vec::new(),
    };
    (Asking(sender), rounds)
}

impl Rounds {
    /// Starts the thread. `shards` by their numbers.
    pub(crate) fn spawn(
        self,
        shards: Arc<[ShardHandle]>,
        clock: SteadyClock,
    ) -> std::io::Result<(Limiter, JoinHandle<()>)> {
        let (sender, control) = unbounded();
        let running = Running {
            rounds: self,
            control,
            shards,
            clock,
        };
        let thread = std::thread::Builder::new()
            .name("limits".into())
            .spawn(move || running.run())?;
        Ok((Limiter(sender), thread))
    }

    /// Takes in what was asked, closes what is due, and tells the shards.
    pub(crate) fn go_round(&mut self, shards: &[ShardHandle], now: Moment) {
        self.take_asks(now);
        if let Some(limits) = &mut self.limits {
            limits.close(now, &mut self.answers);
        }
        self.answer(shards);
    }

    pub(crate) fn set_share(&mut self, share: f64, now: Moment) {
        self.share = share;
        if let Some(limits) = &mut self.limits {
            limits.set_share(share, now);
        }
    }

    /// See [`Limiter::set_rules`].
    fn set_rules(&mut self, rules: &Rules, shards: &[ShardHandle], now: Moment) {
        self.close_early(shards, now);
        self.limits = match self.limits.take() {
            Some(earlier) => earlier.succeed(rules, now, &mut self.again),
            None => Limits::of(rules, now),
        };
        self.set_share(self.share, now);
        self.answer(shards);
        self.counters = self.metrics.of_policies(rules);
    }

    fn close_early(&mut self, shards: &[ShardHandle], now: Moment) {
        self.take_asks(now);
        if let Some(limits) = &mut self.limits {
            limits.close_early(now, &mut self.answers);
        }
        self.answer(shards);
    }

    fn next_close(&self) -> Option<Moment> {
        self.limits.as_ref().and_then(Limits::next_close)
    }

    fn take_asks(&mut self, now: Moment) {
        // What comes meanwhile is for the next round: a window closes in time.
        for _ in 0..self.asks.len() {
            match self.asks.try_recv() {
                Ok(ask) => self.ask(ask, now),
                Err(_) => return,
            }
        }
    }

    fn ask(&mut self, (shard, ask): (u16, Ask), now: Moment) {
        let to = ask.waits.then_some((shard, ask.of.trace));
        match &mut self.limits {
            Some(limits) if limits.version() == ask.rules_version => {
                limits.ask(ask.of, to, now, &mut self.answers);
            }
            // Its shard does not have the new rules yet.
            _ => self.again.extend(to),
        }
    }

    fn answer(&mut self, shards: &[ShardHandle]) {
        for (shard, trace) in self.again.drain(..) {
            shards[usize::from(shard)].ask_limits_again(trace);
        }
        let Some(limits) = &mut self.limits else {
            return;
        };
        let version = limits.version();
        for (policy, traces) in limits.take_beyond_burst() {
            self.counters.beyond_burst(policy, traces);
        }
        let mut for_shards: Vec<Vec<(TraceId, LimitAnswers)>> = vec![Vec::new(); shards.len()];
        for answer in self.answers.drain(..) {
            let (shard, trace) = answer.to;
            for_shards[usize::from(shard)].push((trace, answer.answers));
        }
        for (shard, answers) in shards.iter().zip(for_shards) {
            if !answers.is_empty() {
                shard.answer_limits(version, answers);
            }
        }
    }
}

impl Limiter {
    /// This worker's share of the slots, 0 to 1.
    pub(crate) fn set_share(&self, share: f64) {
        self.0.send(Control::Share(share)).ok();
    }

    /// These rules' limits are asked from now on, and have what the earlier ones of their names have
    /// left. When this returns, the shards have all answers that the earlier ones gave, and know who
    /// must ask again. To be told before the shards are.
    pub(crate) async fn set_rules(&self, rules: Arc<Rules>) {
        let (reply, taken) = oneshot::channel();
        self.0.send(Control::Rules(rules, reply)).ok();
        taken.await.ok();
    }

    /// Before a stop: every window that is not in debt answers now. The shards have the answers
    /// when this returns.
    pub(crate) async fn close_early(&self) {
        let (reply, closed) = oneshot::channel();
        self.0.send(Control::CloseEarly(reply)).ok();
        closed.await.ok();
    }
}

struct Running {
    rounds: Rounds,
    control: Receiver<Control>,
    shards: Arc<[ShardHandle]>,
    clock: SteadyClock,
}

impl Running {
    fn run(mut self) {
        loop {
            let now = self.clock.now();
            let close = self.rounds.next_close();
            let wait = close.map_or(IDLE, |at| at.since(now).min(IDLE));
            select! {
                recv(self.control) -> control => match control {
                    Ok(control) => self.control(control),
                    Err(_) => return,
                },
                recv(self.rounds.asks) -> ask => match ask {
                    Ok(ask) => self.rounds.ask(ask, self.clock.now()),
                    // No shard is left.
                    Err(_) => return,
                },
                default(wait) => {}
            }
            self.rounds.go_round(&self.shards, self.clock.now());
            match self.control.recv_timeout(GATHERING) {
                Ok(control) => self.control(control),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn control(&mut self, control: Control) {
        let now = self.clock.now();
        match control {
            Control::Share(share) => self.rounds.set_share(share, now),
            Control::Rules(rules, reply) => {
                self.rounds.set_rules(&rules, &self.shards, now);
                reply.send(()).ok();
            }
            Control::CloseEarly(reply) => {
                self.rounds.close_early(&self.shards, now);
                reply.send(()).ok();
            }
        }
    }
}
