//! The one thread that holds a worker's limits: shards ask, windows close, answers go back.
//!
//! Off the path of what is appended: a shard never waits for it, and it never waits for a shard.
//! Which candidates are taken is `policy`'s to say.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{
    Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select, unbounded,
};
use tokio::sync::oneshot;

use crate::model::{Moment, SteadyClock, TraceId};
use crate::policy::{Answer, LimitAnswers, Limits, Rules};
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
    CloseEarly(oneshot::Sender<()>),
}

/// A shard's way to the limits; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Asking(Sender<(u16, Ask)>);

/// The worker's. When it is dropped the thread ends.
#[derive(Debug)]
pub(crate) struct Limiter(Sender<Control>);

/// The limits with those who ask them, without a thread.
pub(crate) struct Rounds {
    limits: Limits<Asker>,
    asks: Receiver<(u16, Ask)>,
    answers: Vec<Answer<Asker>>,
}

impl Asking {
    /// Gives the question back if there is no room for it now.
    pub(crate) fn ask(&self, shard: u16, ask: Ask) -> Result<(), Ask> {
        self.0.try_send((shard, ask)).map_err(|error| match error {
            TrySendError::Full((_, ask)) | TrySendError::Disconnected((_, ask)) => ask,
        })
    }
}

/// [`None`] if these rules have no limit.
pub(crate) fn prepare(rules: &Rules, now: Moment) -> Option<(Asking, Rounds)> {
    let limits = Limits::of(rules, now)?;
    let (sender, asks) = bounded(ASKS_MAX);
    let rounds = Rounds {
        limits,
        asks,
        answers: Vec::new(),
    };
    Some((Asking(sender), rounds))
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
        self.limits.close(now, &mut self.answers);
        self.answer(shards);
    }

    pub(crate) fn set_share(&mut self, share: f64, now: Moment) {
        self.limits.set_share(share, now);
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
        self.limits.ask(ask.of, to, now, &mut self.answers);
    }

    fn answer(&mut self, shards: &[ShardHandle]) {
        let mut for_shards: Vec<Vec<(TraceId, LimitAnswers)>> = vec![Vec::new(); shards.len()];
        for answer in self.answers.drain(..) {
            let (shard, trace) = answer.to;
            for_shards[usize::from(shard)].push((trace, answer.answers));
        }
        for (shard, answers) in shards.iter().zip(for_shards) {
            if !answers.is_empty() {
                shard.answer_limits(answers);
            }
        }
    }
}

impl Limiter {
    /// This worker's share of the slots, 0 to 1.
    pub(crate) fn set_share(&self, share: f64) {
        self.0.send(Control::Share(share)).ok();
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
            let close = self.rounds.limits.next_close();
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
            Control::CloseEarly(reply) => {
                self.rounds.take_asks(now);
                self.rounds
                    .limits
                    .close_early(now, &mut self.rounds.answers);
                self.rounds.answer(&self.shards);
                reply.send(()).ok();
            }
        }
    }
}
