//! All limits of the rules: who asks several of them gets one answer.
//!
//! One object for a whole worker, whose traces lie in several shards; kept off the path of what is
//! appended. A trace asks once, when it is complete. Each limit is a [`Window`]; more limits (bytes,
//! composite, keyed) will differ in what a trace costs and in which window it stands.

use crate::model::{Moment, Randomness, Threshold};
use crate::policy::window::{Ticket, Window};
use crate::policy::{Limited, PolicyKind, Rules, Scope};

/// What a trace costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    pub spans: u32,
}

/// What the limits said to who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<K> {
    pub to: K,
    /// The smallest threshold with which a limit took it; [`None`] if none did.
    pub limited: Option<Limited>,
}

/// See the module. `K` says where an answer goes.
#[derive(Debug, Clone)]
pub struct Limits<K> {
    limits: Vec<Limit>,
    waiting: Vec<Option<Waiting<K>>>,
    free: Vec<Ticket>,
}

#[derive(Debug, Clone)]
struct Limit {
    /// Its place in the file.
    policy: u16,
    scope: Scope,
    window: Window,
}

#[derive(Debug, Clone, Copy)]
struct Waiting<K> {
    /// [`None`]: asked only to be charged.
    to: Option<K>,
    outstanding: usize,
    best: Option<Limited>,
}

impl<K: Copy> Limits<K> {
    /// [`None`] if no policy of these rules is a limit.
    pub fn of(rules: &Rules, now: Moment) -> Option<Self> {
        let limits: Vec<_> = rules
            .policies
            .iter()
            .enumerate()
            .filter_map(|(index, policy)| match policy.kind {
                PolicyKind::RateLimiting(limit) => Some(Limit {
                    policy: index as u16,
                    scope: limit.scope,
                    window: Window::new(limit.spans_per_second, limit.burst_spans, now),
                }),
                _ => None,
            })
            .collect();
        (!limits.is_empty()).then_some(Self {
            limits,
            waiting: Vec::new(),
            free: Vec::new(),
        })
    }

    /// The rates are divided among the workers of a cluster: this one's share of the slots, 0 to 1.
    pub fn set_share(&mut self, share: f64, now: Moment) {
        for limit in &mut self.limits {
            if limit.scope == Scope::Cluster {
                limit.window.set_share(share, now);
            }
        }
    }

    /// A complete trace stands as a candidate before every limit, and is charged where it is taken.
    /// With `to` there will be one answer to it, for some perhaps at once.
    pub fn ask(
        &mut self,
        randomness: Randomness,
        cost: Cost,
        to: Option<K>,
        now: Moment,
        answers: &mut Vec<Answer<K>>,
    ) {
        let waiting = Some(Waiting {
            to,
            outstanding: self.limits.len(),
            best: None,
        });
        let ticket = match self.free.pop() {
            Some(ticket) => {
                self.waiting[ticket as usize] = waiting;
                ticket
            }
            None => {
                self.waiting.push(waiting);
                (self.waiting.len() - 1) as Ticket
            }
        };
        let mut excluded = Vec::new();
        for index in 0..self.limits.len() {
            let limit = &mut self.limits[index];
            let policy = limit.policy;
            limit
                .window
                .ask(randomness, cost.spans.into(), ticket, now, &mut excluded);
            for ticket in excluded.drain(..) {
                self.answered(ticket, policy, None, answers);
            }
        }
    }

    /// When [`Limits::close`] has something to do; [`None`] while nobody asks.
    pub fn next_close(&self) -> Option<Moment> {
        self.limits
            .iter()
            .filter_map(|limit| limit.window.closes_at())
            .min()
    }

    /// Closes the windows whose time has come.
    pub fn close(&mut self, now: Moment, answers: &mut Vec<Answer<K>>) {
        self.close_some(now, false, answers);
    }

    /// Closes every window that is not in debt, before a stop. Those in debt would have to refuse
    /// all their candidates: these stay undecided and are judged in the next life.
    pub fn close_early(&mut self, now: Moment, answers: &mut Vec<Answer<K>>) {
        self.close_some(now, true, answers);
    }

    fn close_some(&mut self, now: Moment, early: bool, answers: &mut Vec<Answer<K>>) {
        let mut closed = Vec::new();
        for index in 0..self.limits.len() {
            let limit = &mut self.limits[index];
            let policy = limit.policy;
            limit.window.close(now, early, &mut closed);
            for (ticket, threshold) in closed.drain(..) {
                self.answered(ticket, policy, threshold, answers);
            }
        }
    }

    fn answered(
        &mut self,
        ticket: Ticket,
        policy: u16,
        threshold: Option<Threshold>,
        answers: &mut Vec<Answer<K>>,
    ) {
        let place = &mut self.waiting[ticket as usize];
        let Some(waiting) = place else {
            return;
        };
        let limited = threshold.map(|threshold| Limited { threshold, policy });
        waiting.best = waiting.best.into_iter().chain(limited).min();
        waiting.outstanding -= 1;
        if waiting.outstanding > 0 {
            return;
        }
        if let Some(to) = waiting.to {
            answers.push(Answer {
                to,
                limited: waiting.best,
            });
        }
        *place = None;
        self.free.push(ticket);
        if self.free.len() == self.waiting.len() {
            // Nobody waits: what a burst needed is given back.
            self.waiting.clear();
            self.waiting.shrink_to(1024);
            self.free.clear();
            self.free.shrink_to(1024);
        }
    }
}
