//! Clients: each request is sent until somebody says OK, or its client has had enough.

use std::time::Duration;

use http::HeaderMap;
use rand::Rng;
use tailring::net::client::ExportError;

use super::World;
use crate::network::{Answer, Body, Caller, Event, Host, Reply, address_of};
use crate::plan::Millis;

/// What an SDK gives an export, by default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Retries of an SDK that was told to be patient: some two minutes.
const SENT_MOST: u32 = 12;
const BACKOFF_MOST: Millis = 16_000;

impl World<'_> {
    pub(super) fn send(&mut self, request: usize) {
        if self.attempts[request].is_over {
            return;
        }
        self.attempts[request].sent += 1;
        let plan = &self.plan.requests[request];
        let now = self.now();
        self.books.sent(self.plan, &plan.spans, now);
        let to = if plan.is_direct {
            let there = self.workers.iter().filter(|pod| !pod.is_removed);
            let there: Vec<_> = there.map(|pod| pod.address()).collect();
            there[self.random.random_range(0..there.len())]
        } else {
            let number = self.random.random_range(0..self.routers.len());
            address_of(Host::Router(number), self.routers[number].pod)
        };
        let mut metadata = HeaderMap::new();
        let timeout = format!("{}S", TIMEOUT.as_secs());
        metadata.insert("grpc-timeout", timeout.parse().expect("digits"));
        self.network.call(
            Host::Client(plan.client),
            to,
            Caller::Client { request },
            Body::Otlp {
                message: plan.message.clone(),
                metadata,
            },
            TIMEOUT,
        );
    }

    pub(super) fn answered(&mut self, caller: Option<Caller>, answer: Answer) {
        match caller {
            None => {}
            Some(Caller::Task { reply, .. }) => {
                reply.send(answer).ok();
            }
            Some(Caller::Client { request }) => self.client_hears(request, answer),
            Some(Caller::Peering { life, what }) => self.peering_hears(life, what, answer),
        }
    }

    fn client_hears(&mut self, request: usize, answer: Answer) {
        let plan = &self.plan.requests[request];
        match answer {
            Ok(Reply::Otlp(accepted)) if accepted.rejected_spans == 0 => {
                let now = self.now();
                self.books.acknowledged(self.plan, &plan.spans, now);
                self.attempts[request].is_over = true;
            }
            Ok(accepted) => {
                let what = format!("request {request} was taken in part: {accepted:?}");
                self.books.violation(what);
            }
            Err(error) if !error.is_retryable() => {
                let what = format!("request {request} was refused for good: {error}");
                self.books.violation(what);
                self.attempts[request].is_over = true;
            }
            Err(error) => {
                let sent = self.attempts[request].sent;
                if sent >= SENT_MOST && !self.is_calm {
                    self.gave_up += 1;
                    self.attempts[request].is_over = true;
                    return;
                }
                let asked = match error {
                    ExportError::Refused {
                        retry_after: Some(after),
                        ..
                    } => after.as_millis() as Millis,
                    _ => 0,
                };
                let most = (500 << sent.min(5)).min(BACKOFF_MOST);
                let wait = self.random.random_range(most / 2..=most).max(asked);
                self.network.push(wait, Event::Send { request });
            }
        }
    }
}
