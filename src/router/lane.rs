//! One member's queue, connection and circuit, and the task that empties the one into the other.
//!
//! One RPC is in flight at a time. While it is, parts queue up and go together with the next: an
//! RPC costs some 25 µs on each side whatever is in it, so under load a lane sends larger messages
//! instead of more. What an answer means stands in [`crate::router::answer`].
//!
//! While the circuit is open nothing waits here: parts go back to their requests, which send them to
//! stand-ins, and the task asks for the worker with an empty export, one a [`probe
//! interval`](crate::router::RouterConfig::probe_interval). The first part that meets a hung worker
//! therefore waits for two timeouts, and nobody else waits at all.
//!
//! Parts of one trace are never reordered by more than what concurrent requests allow anyway; workers
//! do not depend on it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::cluster::ViewHandle;
use crate::model::Member;
use crate::net::client::{AddressError, Channel, ClientConfig, Dial};
use crate::net::metadata::RequestMetadata;
use crate::router::RouterConfig;
use crate::router::answer::Answer;
use crate::router::batch::Batch;
use crate::router::circuit::Circuit;
use crate::router::metrics::{LaneGauges, OpenCause, RouterMetrics, RpcOutcome};
use crate::router::queue::{Outcome, Queue, QueuedPart, Route, RpcBounds, Ticket};
use crate::router::surrogates::{Away, Surrogates};

/// More parts save nothing (25 µs over 128 is noise), and if one of them is bad each is sent alone.
const RPC_PARTS_MAX: usize = 128;

/// What lanes share.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) config: RouterConfig,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) view: ViewHandle,
    pub(crate) away: Away,
    pub(crate) surrogates: Surrogates,
    pub(crate) metrics: RouterMetrics,
}

#[derive(Debug)]
pub(crate) struct Lane {
    member: Member,
    channel: Arc<dyn Channel>,
    surroundings: Arc<Surroundings>,
    gauges: LaneGauges,
    state: Mutex<State>,
    wake: Notify,
}

/// Why a lane did not take a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Its byte bound is reached.
    Full,
    /// Its circuit is open.
    Away,
    /// Its member left the ring.
    Retired,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    circuit: Circuit,
    retired: bool,
}

enum Next {
    Send(Batch),
    Probe,
    Wait { until: Option<Instant> },
    Stop,
}

impl Lane {
    /// Starts the lane's task. `None`, and a log line, when no request can be addressed to it.
    pub(crate) fn spawn(
        member: &Member,
        address: SocketAddr,
        surroundings: Arc<Surroundings>,
    ) -> Option<Arc<Self>> {
        let config = &surroundings.config;
        let client = ClientConfig {
            connect_timeout: config.attempt_timeout,
            ..ClientConfig::peer()
        };
        let channel = surroundings
            .dial
            .dial(address, client)
            .inspect_err(|error| cannot_address(member, address, error))
            .ok()?;
        let lane = Arc::new(Self {
            member: member.clone(),
            channel,
            gauges: surroundings.metrics.lane(member),
            state: Mutex::new(State {
                queue: Queue::new(config.lane_bytes_max),
                circuit: Circuit::new(config.probe_interval),
                retired: false,
            }),
            wake: Notify::new(),
            surroundings,
        });
        tokio::spawn(Arc::clone(&lane).run());
        Some(lane)
    }

    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    /// Queues a part; its outcome comes by its [`Reply`](crate::router::queue::Reply).
    pub(crate) fn submit(&self, route: &Route, part: QueuedPart) -> Result<Ticket, NotTaken> {
        let mut state = self.lock();
        if state.retired {
            return Err(NotTaken::Retired);
        }
        if state.circuit.is_open() {
            return Err(NotTaken::Away);
        }
        let ticket = state.queue.push(route, part).map_err(|_| NotTaken::Full)?;
        self.show_bytes(&state);
        drop(state);
        self.wake.notify_one();
        Ok(ticket)
    }

    /// Takes a part back if it still waits. In flight it is left alone: the RPC carries other
    /// clients' parts too.
    pub(crate) fn cancel(&self, ticket: &Ticket) {
        let mut state = self.lock();
        if state.queue.cancel(ticket) {
            self.show_bytes(&state);
            self.surroundings.metrics.parts_cancelled.inc();
        }
    }

    /// The member has another address. The call in flight is cut, which counts as one strike, and
    /// sent again to the new address: the old process is gone or going, and should it have written
    /// the message, the worker knows the fragments from its log. Waiting parts go to the new address.
    pub(crate) fn redirect(&self, address: SocketAddr) {
        info!(member = %self.member, %address, "worker has a new address");
        // Before the cut, or the strike that it costs could be the second.
        self.lock().circuit.moved(Instant::now());
        if let Err(error) = self.channel.redirect(address) {
            cannot_address(&self.member, address, &error);
        }
        self.wake.notify_one();
    }

    /// The member left the ring: what waits goes back, what is in flight ends, and then the task.
    pub(crate) fn retire(&self) {
        let mut state = self.lock();
        state.retired = true;
        let waiting = state.queue.drain();
        // Under the lock, so that no circuit that opens now marks a member that is not there.
        self.surroundings.away.remove(&self.member);
        self.surroundings.metrics.forget_lane(&self.member);
        drop(state);
        for part in waiting {
            part.tell(Outcome::Moved);
        }
        self.wake.notify_one();
    }

    async fn run(self: Arc<Self>) {
        loop {
            match self.next() {
                Next::Send(batch) => self.deliver(batch).await,
                Next::Probe => self.probe().await,
                Next::Wait { until: None } => self.wake.notified().await,
                Next::Wait { until: Some(at) } => tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(at) => {}
                },
                Next::Stop => return,
            }
        }
    }

    fn next(&self) -> Next {
        let config = &self.surroundings.config;
        let mut state = self.lock();
        if state.retired {
            return Next::Stop;
        }
        if let Some(at) = state.circuit.next_probe() {
            return if at <= Instant::now() {
                Next::Probe
            } else {
                Next::Wait { until: Some(at) }
            };
        }
        let taken = state.queue.take(RpcBounds {
            bytes_max: config.rpc_bytes_max,
            spans_max: config.rpc_spans_max,
            parts_max: RPC_PARTS_MAX,
        });
        match taken {
            Some((route, parts)) => Next::Send(Batch { route, parts }),
            None => Next::Wait { until: None },
        }
    }

    /// Brings every part of the batch to an outcome.
    async fn deliver(&self, batch: Batch) {
        let metrics = &self.surroundings.metrics;
        let mut work = VecDeque::from([batch]);
        while let Some(mut batch) = work.pop_front() {
            self.forget_unwanted(&mut batch);
            if batch.parts.is_empty() {
                continue;
            }
            metrics.parts_per_rpc.observe(batch.parts.len() as f64);
            let answer = self.attempt(&batch).await;
            metrics.rpc(answer.outcome());
            if !matches!(answer, Answer::None(..)) {
                self.lock().circuit.answered();
            }
            match answer {
                Answer::Acknowledged => self.settle(batch, || Outcome::Acknowledged {
                    rejected_spans: 0,
                    message: String::new(),
                }),
                Answer::Partial { .. } | Answer::Invalid(_) if batch.parts.len() > 1 => {
                    metrics.isolations.inc();
                    for single in batch.singles().rev() {
                        work.push_front(single);
                    }
                }
                Answer::Partial {
                    rejected_spans,
                    message,
                } => self.settle(batch, || Outcome::Acknowledged {
                    rejected_spans,
                    message: message.clone(),
                }),
                Answer::Invalid(text) => self.settle(batch, || Outcome::Invalid(text.clone())),
                Answer::BackPressure(refusal) => {
                    self.settle(batch, || Outcome::BackPressure(refusal.clone()));
                }
                Answer::Refused(text) => {
                    work.push_front(batch);
                    return self.give_up(OpenCause::Refused, &text, work);
                }
                Answer::None(cause, text) => {
                    let too_often = self.lock().circuit.strike();
                    if cause == OpenCause::Unreachable {
                        self.surroundings.view.refresh();
                    }
                    work.push_front(batch);
                    if too_often || self.lock().retired {
                        return self.give_up(cause, &text, work);
                    }
                    metrics.rpcs_repeated.inc();
                }
            }
        }
    }

    async fn attempt(&self, batch: &Batch) -> Answer {
        let bytes = batch.parts.iter().map(|part| part.message.len()).sum();
        let timeout = self.surroundings.config.attempt_timeout_for(bytes);
        let metadata = self.metadata(&batch.route);
        let sent = self.channel.export(batch.pieces(), &metadata, timeout);
        let result = sent.await;
        if let Ok(response) = &result
            && let Some(theirs) = response.view
        {
            self.surroundings.view.compare(theirs);
        }
        Answer::of(result)
    }

    /// Asks whether the worker is back, with a request that carries nothing.
    async fn probe(&self) {
        let surroundings = &self.surroundings;
        let route = Route {
            view: surroundings.view.load().fingerprint(),
            surrogate_for: None,
        };
        let nothing: Vec<Bytes> = Vec::new();
        let timeout = surroundings.config.attempt_timeout;
        let result = self
            .channel
            .export(nothing, &self.metadata(&route), timeout)
            .await;
        let answer = Answer::of(result);
        let mut state = self.lock();
        match answer.outcome() {
            RpcOutcome::Acknowledged | RpcOutcome::Partial | RpcOutcome::BackPressure => {
                state.circuit.close();
                surroundings.away.remove(&self.member);
                self.gauges.circuit_open.set(0);
                info!(member = %self.member, "worker is back");
            }
            outcome => {
                state.circuit.open(Instant::now());
                if outcome == RpcOutcome::Unreachable {
                    surroundings.view.refresh();
                }
            }
        }
    }

    /// Opens the circuit and gives everything back: what was tried, and what waits.
    fn give_up(&self, cause: OpenCause, text: &str, work: VecDeque<Batch>) {
        let surroundings = &self.surroundings;
        let mut parts: Vec<QueuedPart> = work.into_iter().flat_map(|batch| batch.parts).collect();
        let mut state = self.lock();
        state.queue.release(&parts);
        parts.extend(state.queue.drain());
        let retired = state.retired;
        if !retired {
            state.circuit.open(Instant::now());
            // Before anyone is told, so that nobody comes straight back.
            surroundings.away.add(&self.member);
            surroundings.metrics.circuit_opened(cause);
            self.gauges.circuit_open.set(1);
            self.show_bytes(&state);
            warn!(
                member = %self.member, cause = text, parts = parts.len(),
                "worker is away; its parts go to stand-ins"
            );
        }
        drop(state);
        for part in parts {
            part.tell(if retired {
                Outcome::Moved
            } else {
                Outcome::Unavailable(text.to_owned())
            });
        }
    }

    fn settle(&self, batch: Batch, outcome: impl Fn() -> Outcome) {
        let mut state = self.lock();
        state.queue.release(&batch.parts);
        self.show_bytes(&state);
        drop(state);
        batch.tell(outcome);
    }

    /// Parts whose client went away since they were taken need not be sent again.
    fn forget_unwanted(&self, batch: &mut Batch) {
        let unwanted: Vec<_> = batch
            .parts
            .extract_if(.., |part| !part.is_wanted())
            .collect();
        if unwanted.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.queue.release(&unwanted);
        self.show_bytes(&state);
        drop(state);
        let count = unwanted.len() as u64;
        self.surroundings.metrics.parts_cancelled.inc_by(count);
    }

    fn metadata(&self, route: &Route) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(4);
        RequestMetadata {
            to: Some((self.member.clone(), None)),
            view: Some(route.view),
            surrogate_for: route.surrogate_for.clone(),
            ..RequestMetadata::default()
        }
        .write_to(&mut headers);
        headers
    }

    fn show_bytes(&self, state: &State) {
        let bytes = i64::try_from(state.queue.held_bytes()).unwrap_or(i64::MAX);
        self.gauges.bytes.set(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cannot_address(member: &Member, address: SocketAddr, error: &AddressError) {
    warn!(%member, %address, %error, "cannot address this worker");
}
