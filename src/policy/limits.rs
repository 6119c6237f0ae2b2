//! All limits of the rules: whoever stands before several of them gets one answer.
//!
//! One object for a whole worker, whose traces lie in several shards; kept off the path of what is
//! appended. A trace comes once, when it is complete. It is asked for at the limits that its votes
//! reach, and again when one has answered, until its votes reach no other. A limit is a [`Window`],
//! a composite's window, or what the Collector has.

use std::sync::Arc;

use crate::model::{Moment, Threshold, TraceId};
use crate::policy::bucket::{Bucket, Seconds};
use crate::policy::composite::CompositeWindow;
use crate::policy::program::{Case, LimitAnswers, Program, Question};
use crate::policy::vote::Odds;
use crate::policy::window::{Ticket, Window};
use crate::policy::{Compatibility, FoldState, Rules, Scope};

/// A complete trace, to stand before limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    pub trace: TraceId,
    pub state: FoldState,
    pub spans: u32,
}

/// What the limits said to who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<K> {
    pub to: K,
    pub answers: LimitAnswers,
}

/// What a limit has to spend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Budget {
    Spans {
        per_second: u64,
        burst: u64,
    },
    Bytes {
        per_second: u64,
        burst: u64,
    },
    /// Spans of a composite and of each of its policies, which are told by their names.
    Shared {
        per_second: u64,
        of_each: Vec<(String, u64)>,
    },
}

/// One limit of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LimitRule {
    /// Names of the policies around it, and its own: by it a limit of later rules is the same one.
    pub(super) path: Vec<String>,
    pub(super) budget: Budget,
    pub(super) scope: Scope,
    pub(super) compatibility: Compatibility,
    /// Of the policy at the top of the file that it stands in.
    pub(super) policy: u16,
}

/// See the module. `K` says where an answer goes.
#[derive(Debug, Clone)]
pub struct Limits<K> {
    /// Of the rules that these are the limits of.
    version: u64,
    program: Arc<Program>,
    limits: Vec<Limit>,
    waiting: Vec<Option<Waiting<K>>>,
    free: Vec<Ticket>,
}

#[derive(Debug, Clone)]
struct Limit {
    policy: u16,
    scope: Scope,
    of_bytes: bool,
    keeper: Keeper,
}

#[derive(Debug, Clone)]
enum Keeper {
    Window(Window),
    Composite(CompositeWindow),
    Bucket(Bucket),
    Seconds(Seconds),
}

#[derive(Debug, Clone)]
struct Waiting<K> {
    case: Complete,
    /// [`None`]: it came only to be charged.
    to: Option<K>,
    answers: LimitAnswers,
    asked: Vec<u16>,
    outstanding: usize,
}

/// A limit has answered.
type Settled = (Ticket, u16, Option<Odds>);

impl<K: Copy> Limits<K> {
    /// [`None`] if no policy of these rules is a limit.
    pub fn of(rules: &Rules, now: Moment) -> Option<Self> {
        let program = Arc::clone(rules.program());
        let limits: Vec<_> = program
            .limits
            .iter()
            .map(|it| Limit::new(it, now))
            .collect();
        (!limits.is_empty()).then_some(Self {
            version: rules.version,
            program,
            limits,
            waiting: Vec::new(),
            free: Vec::new(),
        })
    }

    /// The version of the rules that these are the limits of.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Ends for other rules: their limits go on with what those of the same name have left, debts
    /// included. Windows are closed before; whoever still waits for one in debt is in `again`.
    pub fn succeed(mut self, rules: &Rules, now: Moment, again: &mut Vec<K>) -> Option<Self> {
        let waiting = std::mem::take(&mut self.waiting);
        again.extend(waiting.into_iter().flatten().filter_map(|it| it.to));
        let mut next = Self::of(rules, now)?;
        let earlier = self.program.limits.iter().zip(&mut self.limits);
        for (rule, limit) in earlier {
            let same = |(later, _): &(&LimitRule, &mut Limit)| later.path == rule.path;
            let later = next.program.limits.iter().zip(&mut next.limits);
            if let Some((later, next)) = later.into_iter().find(same) {
                next.succeed(later, limit, rule, now);
            }
        }
        Some(next)
    }

    /// The rates are divided among the workers of a cluster: this one's share of the slots, 0 to 1.
    pub fn set_share(&mut self, share: f64, now: Moment) {
        for limit in &mut self.limits {
            match &mut limit.keeper {
                Keeper::Window(window) if limit.scope == Scope::Cluster => {
                    window.set_share(share, now);
                }
                Keeper::Composite(window) if limit.scope == Scope::Cluster => {
                    window.set_share(share, now);
                }
                _ => {}
            }
        }
    }

    /// A complete trace stands as a candidate before every limit that it reaches, and is charged
    /// where it is taken. With `to` there will be one answer to it, for some perhaps at once.
    pub fn ask(
        &mut self,
        case: Complete,
        to: Option<K>,
        now: Moment,
        answers: &mut Vec<Answer<K>>,
    ) {
        let waiting = Some(Waiting {
            case,
            to,
            answers: LimitAnswers::default(),
            asked: Vec::new(),
            outstanding: 0,
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
        let mut settled = Vec::new();
        self.go_on(ticket, now, &mut settled, answers);
        self.settle(settled, now, answers);
    }

    /// When [`Limits::close`] has something to do; [`None`] while nobody asks.
    pub fn next_close(&self) -> Option<Moment> {
        self.limits
            .iter()
            .filter_map(|limit| match &limit.keeper {
                Keeper::Window(window) => window.closes_at(),
                Keeper::Composite(window) => window.closes_at(),
                Keeper::Bucket(_) | Keeper::Seconds(_) => None,
            })
            .min()
    }

    /// Closes the windows whose time has come.
    pub fn close(&mut self, now: Moment, answers: &mut Vec<Answer<K>>) {
        self.close_some(now, false, answers);
    }

    /// Closes every window that is not in debt, before a stop. Those in debt would have to refuse
    /// all their candidates: these stay undecided and are judged in the next life.
    pub fn close_early(&mut self, now: Moment, answers: &mut Vec<Answer<K>>) {
        // What was taken by an inner limit stands before the next one: one round more for each.
        for _ in 0..self.limits.len() {
            self.close_some(now, true, answers);
        }
    }

    /// Traces larger than the burst of a limit, which it took by overdraft since this was asked last: of
    /// which policy, and how many.
    pub fn take_beyond_burst(&mut self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let limits = self.limits.iter_mut();
        let counts = limits.map(|limit| {
            let traces = match &mut limit.keeper {
                Keeper::Window(window) => window.take_beyond_burst(),
                Keeper::Composite(window) => window.take_beyond_burst(),
                // The Collector's never take one.
                Keeper::Bucket(_) | Keeper::Seconds(_) => 0,
            };
            (limit.policy, traces)
        });
        counts.filter(|(_, traces)| *traces > 0)
    }

    fn close_some(&mut self, now: Moment, early: bool, answers: &mut Vec<Answer<K>>) {
        let mut settled = Vec::new();
        for (limit, number) in self.limits.iter_mut().zip(0..) {
            match &mut limit.keeper {
                Keeper::Window(window) => {
                    let mut closed = Vec::new();
                    window.close(now, early, &mut closed);
                    let known = |it: Option<Threshold>| it.map(Odds::From);
                    let closed = closed.into_iter();
                    settled.extend(closed.map(|(ticket, it)| (ticket, number, known(it))));
                }
                Keeper::Composite(window) => {
                    let mut closed = Vec::new();
                    window.close(now, early, &mut closed);
                    let closed = closed.into_iter();
                    settled.extend(closed.map(|(ticket, odds)| (ticket, number, odds)));
                }
                Keeper::Bucket(_) | Keeper::Seconds(_) => {}
            }
        }
        self.settle(settled, now, answers);
    }

    /// Answers of limits reach their traces, and these go on to the next ones.
    fn settle(&mut self, mut settled: Vec<Settled>, now: Moment, answers: &mut Vec<Answer<K>>) {
        while let Some((ticket, limit, odds)) = settled.pop() {
            if let Some(waiting) = &mut self.waiting[ticket as usize] {
                waiting.answers.note(limit, odds);
                waiting.outstanding -= 1;
                self.go_on(ticket, now, &mut settled, answers);
            }
        }
    }

    /// A trace stands before the limits that it reaches now; or it is done.
    fn go_on(
        &mut self,
        ticket: Ticket,
        now: Moment,
        settled: &mut Vec<Settled>,
        answers: &mut Vec<Answer<K>>,
    ) {
        let place = &mut self.waiting[ticket as usize];
        let Some(waiting) = place else {
            return;
        };
        let case = Case {
            trace: waiting.case.trace,
            state: &waiting.case.state,
            spans: waiting.case.spans,
        };
        let open = self.program.count(case, &waiting.answers, true).open;
        for question in open {
            if waiting.asked.contains(&question.limit) {
                continue;
            }
            waiting.asked.push(question.limit);
            waiting.outstanding += 1;
            let limit = &mut self.limits[usize::from(question.limit)];
            limit.ask(&waiting.case, ticket, question, now, settled);
        }
        if waiting.outstanding > 0 {
            return;
        }
        if let Some(to) = waiting.to {
            answers.push(Answer {
                to,
                answers: std::mem::take(&mut waiting.answers),
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

impl Limit {
    fn new(rule: &LimitRule, now: Moment) -> Self {
        let ours = rule.compatibility == Compatibility::Tailring;
        let keeper = match &rule.budget {
            Budget::Spans { per_second, burst } | Budget::Bytes { per_second, burst } if ours => {
                Keeper::Window(Window::new(*per_second, *burst, now))
            }
            Budget::Spans { per_second, burst } | Budget::Bytes { per_second, burst } => {
                Keeper::Bucket(Bucket::new(*per_second, *burst, now))
            }
            Budget::Shared {
                per_second,
                of_each,
            } => {
                let rates: Vec<u64> = of_each.iter().map(|(_, rate)| *rate).collect();
                if ours {
                    Keeper::Composite(CompositeWindow::new(*per_second, &rates, now))
                } else {
                    Keeper::Seconds(Seconds::new(*per_second, &rates, now))
                }
            }
        };
        Self {
            policy: rule.policy,
            scope: rule.scope,
            of_bytes: matches!(rule.budget, Budget::Bytes { .. }),
            keeper,
        }
    }

    /// Nothing happens where an earlier limit counted something else.
    fn succeed(&mut self, rule: &LimitRule, earlier: &mut Self, was: &LimitRule, now: Moment) {
        if self.of_bytes != earlier.of_bytes {
            return;
        }
        let from: Vec<Option<usize>> = match (&rule.budget, &was.budget) {
            (
                Budget::Shared { of_each, .. },
                Budget::Shared {
                    of_each: before, ..
                },
            ) => of_each
                .iter()
                .map(|(name, _)| before.iter().position(|(it, _)| it == name))
                .collect(),
            _ => Vec::new(),
        };
        match (&mut self.keeper, &mut earlier.keeper) {
            (Keeper::Window(window), Keeper::Window(earlier)) => window.succeed(earlier, now),
            (Keeper::Composite(window), Keeper::Composite(earlier)) => {
                window.succeed(earlier, &from, now);
            }
            (Keeper::Bucket(bucket), Keeper::Bucket(earlier)) => bucket.succeed(earlier, now),
            (Keeper::Seconds(seconds), Keeper::Seconds(earlier)) => {
                seconds.succeed(earlier, &from);
            }
            _ => {}
        }
    }

    fn ask(
        &mut self,
        case: &Complete,
        ticket: Ticket,
        question: Question,
        now: Moment,
        settled: &mut Vec<Settled>,
    ) {
        let number = question.limit;
        let cost = if self.of_bytes {
            case.state.bytes()
        } else {
            case.spans.into()
        };
        let randomness = case.state.randomness(case.trace);
        let mut excluded = Vec::new();
        match &mut self.keeper {
            Keeper::Window(window) => window.ask(randomness, cost, ticket, now, &mut excluded),
            Keeper::Composite(window) => {
                window.ask(randomness, cost, ticket, question.subs, now, &mut excluded);
            }
            Keeper::Bucket(bucket) => {
                let taken = bucket.allows(cost, now).then_some(Odds::Unknown);
                settled.push((ticket, number, taken));
            }
            Keeper::Seconds(seconds) => {
                let first = question.subs.first();
                let taken = first.is_some_and(|(sub, _)| seconds.allows(*sub, cost, now));
                settled.push((ticket, number, taken.then_some(Odds::Unknown)));
            }
        }
        settled.extend(excluded.into_iter().map(|ticket| (ticket, number, None)));
    }
}
