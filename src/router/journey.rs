//! The parts of one request under way, until every one has arrived or the request has failed.
//!
//! The request owns its parts: a lane that cannot deliver one gives it back, and it is cut and sent
//! again from here, so that nothing outlives the client that waits for it. Of several bad ends a
//! retryable one is told at once: the client will send everything again, and workers recognise what
//! they have. "Never" is told last, after the other parts have arrived: the client will throw the
//! request away, and these are what is saved of it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::model::Member;
use crate::net::admission::Permit;
use crate::net::server::Accepted;
use crate::net::status::{Refusal, RefusalReason};
use crate::router::ingest::Router;
use crate::router::lane::{Lane, NotTaken};
use crate::router::lanes::Routes;
use crate::router::queue::{Outcome, QueuedPart, Reply, Route, Ticket};
use crate::wire::Part;

/// How often a part is sent to stand-ins before its client is told to come again.
const SURROGATE_ROUNDS_MAX: u32 = 3;

/// One request under way. Dropping it takes back what still waits in lanes.
pub(super) struct Journey<'a> {
    router: &'a Router,
    paid: Arc<Permit>,
    sent: Vec<Option<Sent>>,
    outstanding: usize,
    /// To be cut and sent again.
    again: Vec<Piece>,
    /// Unbounded, and never longer than `sent`: each part is told once.
    outcomes: UnboundedReceiver<(usize, Outcome)>,
    reply: UnboundedSender<(usize, Outcome)>,
    rejected: Accepted,
    invalid: Option<Refusal>,
}

/// A part in a lane.
struct Sent {
    lane: Arc<Lane>,
    ticket: Ticket,
    piece: Piece,
}

/// Spans that have to get to some worker.
struct Piece {
    message: Bytes,
    tried: Tried,
}

/// What became of spans so far.
#[derive(Debug, Clone, Default)]
struct Tried {
    /// Members that did not take them, sorted.
    members: Vec<Member>,
    surrogate_rounds: u32,
    /// Why the last of them did not.
    cause: String,
}

impl<'a> Journey<'a> {
    pub(super) fn new(router: &'a Router, paid: Arc<Permit>) -> Self {
        let (reply, outcomes) = mpsc::unbounded_channel();
        Self {
            router,
            paid,
            sent: Vec::new(),
            outstanding: 0,
            again: Vec::new(),
            outcomes,
            reply,
            rejected: Accepted::default(),
            invalid: None,
        }
    }

    /// Sends the parts, which were cut by `routes`, and waits for all of them. Returns what workers
    /// took only in part.
    pub(super) async fn travel(
        &mut self,
        routes: &Routes,
        parts: Vec<Part>,
    ) -> Result<Accepted, Refusal> {
        self.place(routes, parts, &Tried::default()).await?;
        loop {
            while let Some(piece) = self.again.pop() {
                self.place_again(piece).await?;
            }
            if self.outstanding == 0 {
                break;
            }
            // Never `None`: `self.reply` is a sender too.
            if let Some((index, outcome)) = self.outcomes.recv().await {
                self.arrived(index, outcome)?;
            }
        }
        match self.invalid.take() {
            Some(refusal) => Err(refusal),
            None => Ok(std::mem::take(&mut self.rejected)),
        }
    }

    /// The request's time is over.
    pub(super) fn late(&self) -> Refusal {
        let waiting: Vec<_> = self
            .sent
            .iter()
            .flatten()
            .map(|sent| sent.lane.member().as_str())
            .take(3)
            .collect();
        Refusal::new(
            RefusalReason::WorkersUnavailable,
            format!(
                "{} of {} parts were not acknowledged in time (by {}, ...)",
                self.outstanding,
                self.sent.len(),
                waiting.join(", ")
            ),
        )
    }

    async fn place_again(&mut self, piece: Piece) -> Result<(), Refusal> {
        let router = self.router;
        router.surroundings.metrics.parts_resplit.inc();
        let routes = router.lanes.routes();
        let table = &routes.view.table;
        let cut = router.cutter.cut(&piece.message, table, &self.paid).await?;
        self.place(&routes, cut.parts, &piece.tried).await
    }

    async fn place(
        &mut self,
        routes: &Routes,
        parts: Vec<Part>,
        tried: &Tried,
    ) -> Result<(), Refusal> {
        if routes.members().is_empty() {
            return Err(Refusal::new(
                RefusalReason::NoMembers,
                "the router knows no worker yet; is the worker Service there, and its DNS name right?",
            ));
        }
        let away = self.away(routes, tried);
        for part in parts {
            let owner = &routes.members()[usize::from(part.destination)];
            match routes.lane(part.destination) {
                Some(lane) if away.binary_search(owner).is_err() => {
                    self.send(routes, lane, None, part, tried.clone())?;
                }
                _ => {
                    self.send_to_stand_ins(routes, owner, part, &away, tried)
                        .await?
                }
            }
        }
        Ok(())
    }

    /// Members of the view that get nothing: their circuits are open, they cannot be addressed, or
    /// they did not take these spans. Sorted; almost always empty.
    fn away(&self, routes: &Routes, tried: &Tried) -> Vec<Member> {
        let open = self.router.surroundings.away.load();
        if open.is_empty() && tried.members.is_empty() && routes.laneless().is_empty() {
            return Vec::new();
        }
        let mut away: Vec<Member> = [open.as_slice(), &tried.members, routes.laneless()]
            .concat()
            .into_iter()
            .filter(|member| routes.members().binary_search(member).is_ok())
            .collect();
        away.sort_unstable();
        away.dedup();
        away
    }

    async fn send_to_stand_ins(
        &mut self,
        routes: &Routes,
        owner: &Member,
        part: Part,
        away: &[Member],
        tried: &Tried,
    ) -> Result<(), Refusal> {
        let tried = Tried {
            surrogate_rounds: tried.surrogate_rounds + 1,
            ..tried.clone()
        };
        if away.len() == routes.members().len() || tried.surrogate_rounds > SURROGATE_ROUNDS_MAX {
            return Err(nobody_takes(owner, &tried));
        }
        let router = self.router;
        let surroundings = &router.surroundings;
        let table = surroundings
            .surrogates
            .table(&routes.view, away.to_vec())
            .await
            .map_err(|_| nobody_takes(owner, &tried))?; // the runtime is stopping
        let cut = router.cutter.cut(&part.message, &table, &self.paid).await?;
        for part in cut.parts {
            let member = &table.members()[usize::from(part.destination)];
            let Some(lane) = routes.lane_of(member) else {
                return Err(nobody_takes(owner, &tried)); // the table is a part of the view's ring
            };
            surroundings
                .metrics
                .spans_surrogate
                .inc_by(u64::from(part.spans));
            self.send(routes, lane, Some(owner), part, tried.clone())?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        routes: &Routes,
        lane: &Arc<Lane>,
        surrogate_for: Option<&Member>,
        part: Part,
        tried: Tried,
    ) -> Result<(), Refusal> {
        let route = Route {
            view: routes.view.fingerprint(),
            surrogate_for: surrogate_for.cloned(),
        };
        let queued = QueuedPart {
            message: part.message.clone(),
            spans: part.spans,
            reply: Reply {
                request: self.reply.clone(),
                index: self.sent.len(),
            },
            _paid: Arc::clone(&self.paid),
        };
        let mut piece = Piece {
            message: part.message,
            tried,
        };
        match lane.submit(&route, queued) {
            Ok(ticket) => {
                self.outstanding += 1;
                self.sent.push(Some(Sent {
                    lane: Arc::clone(lane),
                    ticket,
                    piece,
                }));
            }
            Err(NotTaken::Full) => {
                return Err(Refusal::new(
                    RefusalReason::LaneFull,
                    format!(
                        "worker {} is slower than what is sent to it, and its lane is full",
                        lane.member()
                    ),
                ));
            }
            Err(NotTaken::Away) => {
                piece.tried.add(lane.member(), "its circuit is open".into());
                self.again.push(piece);
            }
            Err(NotTaken::Retired) => self.again.push(piece),
        }
        Ok(())
    }

    fn arrived(&mut self, index: usize, outcome: Outcome) -> Result<(), Refusal> {
        let Some(mut sent) = self.sent.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        self.outstanding -= 1;
        let member = sent.lane.member();
        match outcome {
            Outcome::Acknowledged {
                rejected_spans,
                message,
            } => {
                self.rejected.rejected_spans += rejected_spans;
                if rejected_spans > 0 && self.rejected.message.is_empty() {
                    self.rejected.message = format!("worker {member}: {message}");
                }
            }
            Outcome::Invalid(text) => {
                self.invalid.get_or_insert_with(|| {
                    let detail = format!("worker {member}: {text}");
                    Refusal::new(RefusalReason::InvalidRequest, detail)
                });
            }
            Outcome::BackPressure(refusal) => {
                return Err(Refusal {
                    detail: format!("worker {member}: {}", refusal.detail),
                    ..refusal
                });
            }
            Outcome::Unavailable(cause) => {
                sent.piece.tried.add(member, cause);
                self.again.push(sent.piece);
            }
            Outcome::Moved => self.again.push(sent.piece),
        }
        Ok(())
    }
}

impl Drop for Journey<'_> {
    fn drop(&mut self) {
        for sent in self.sent.iter().flatten() {
            sent.lane.cancel(&sent.ticket);
        }
    }
}

impl Tried {
    fn add(&mut self, member: &Member, cause: String) {
        if let Err(place) = self.members.binary_search(member) {
            self.members.insert(place, member.clone());
        }
        self.cause = cause;
    }
}

fn nobody_takes(owner: &Member, tried: &Tried) -> Refusal {
    let cause = match tried.cause.as_str() {
        "" => "its circuit is open",
        cause => cause,
    };
    Refusal::new(
        RefusalReason::WorkersUnavailable,
        format!("worker {owner} is away and nobody stands in for it: {cause}"),
    )
}
