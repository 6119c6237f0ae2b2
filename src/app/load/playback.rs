//! Turns as they happen: each span goes out when it ends, from the service it ends in, the root
//! last. Pure, given the time, and the same turns for the same seed. `generator` beside it makes
//! the same turns as dense as a benchmark wants them.
//!
//! Turns are played ten times faster than their timestamps say, so that one of 47 seconds is over
//! in 4.7. The last span of a turn ends, by its timestamp, when it is played; earlier ones are
//! played later than they ended.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::generator::Shape;
use super::repertoire::Repertoire;
use super::service::Service;
use super::template::TraceStamp;
use crate::app::ledger::SpanFacts;
use crate::model::{Moment, TraceId};

/// How much faster than its timestamps a turn is played.
pub const PLAYED_FASTER: u64 = 10;

/// What to play.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlaybackPlan {
    pub shape: Shape,
    pub seed: u64,
    /// In the mean; the gaps between turns are exponential, as those of independent users are.
    pub turns_per_second: f64,
    /// Places that turns happen in, each with one instance of every service.
    pub sites: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Playback {
    repertoire: Repertoire,
    /// (service, scope of it) by the shape's scope index.
    scopes: Vec<(usize, usize)>,
    sites: Vec<Vec<Instance>>,
    agenda: BinaryHeap<Reverse<Ending>>,
    random: SmallRng,
    turns_per_second: f64,
    next_turn_at: Moment,
    turns_begun: u64,
}

/// One SDK in one process.
#[derive(Debug)]
struct Instance {
    service: Service,
    pending: Vec<SpanFacts>,
}

/// What an SDK sends in one request.
#[derive(Debug)]
pub struct Played {
    pub message: Bytes,
    pub spans: Vec<SpanFacts>,
}

/// The next span of a turn under way. Ordered by time, then by turn: the same seed plays the same
/// order.
#[derive(Debug)]
struct Ending {
    at: Moment,
    turn: u64,
    next: usize,
    site: usize,
    template: (usize, usize),
    began_at: Moment,
    stamp: TraceStamp,
}

impl Playback {
    /// The first turn begins soon after `now`.
    pub fn new(plan: PlaybackPlan, now: Moment) -> Self {
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let repertoire = Repertoire::new(plan.shape, &mut random);
        let sites: Vec<Vec<Instance>> = (0..plan.sites.max(1))
            .map(|site| {
                let kinds = repertoire.services.iter();
                kinds
                    .map(|kind| Instance {
                        service: Service::new(kind, site, &mut random),
                        pending: Vec::new(),
                    })
                    .collect()
            })
            .collect();
        let scopes = sites[0]
            .iter()
            .enumerate()
            .flat_map(|(index, instance)| {
                (0..instance.service.scope_count()).map(move |scope| (index, scope))
            })
            .collect();
        Self {
            repertoire,
            scopes,
            sites,
            agenda: BinaryHeap::new(),
            random,
            turns_per_second: plan.turns_per_second,
            next_turn_at: now,
            turns_begun: 0,
        }
    }

    /// How many SDKs there are, each with requests of its own.
    pub fn instances(&self) -> usize {
        self.sites.iter().map(Vec::len).sum()
    }

    pub fn turns_begun(&self) -> u64 {
        self.turns_begun
    }

    /// Whether every turn that began is over and taken.
    pub fn is_over(&self) -> bool {
        let mut instances = self.sites.iter().flatten();
        self.agenda.is_empty() && instances.all(|instance| instance.pending.is_empty())
    }

    /// Plays what ends until `now`. Turns begin until `begin_until`.
    pub fn advance(&mut self, now: Moment, begin_until: Moment) {
        while self.next_turn_at <= now.min(begin_until) {
            let began_at = self.next_turn_at;
            self.begin(began_at);
            let gap = -(1.0 - self.random.random::<f64>()).ln() / self.turns_per_second;
            self.next_turn_at = began_at + Duration::from_secs_f64(gap);
        }
        while let Some(Reverse(ending)) = self.agenda.peek()
            && ending.at <= now
            && let Some(Reverse(ending)) = self.agenda.pop()
        {
            self.end(ending);
        }
    }

    /// The spans that have ended in one SDK and were not taken yet.
    pub fn take(&mut self, instance: usize) -> Option<Played> {
        let services = self.repertoire.services.len();
        let instance = &mut self.sites[instance / services][instance % services];
        if instance.pending.is_empty() {
            return None;
        }
        let mut message = Vec::with_capacity(instance.service.pending_bytes_max());
        instance.service.take(&mut message);
        Some(Played {
            message: message.into(),
            spans: std::mem::take(&mut instance.pending),
        })
    }

    fn begin(&mut self, began_at: Moment) {
        let template = self.repertoire.choose(&mut self.random);
        let lasts_nanos = self.repertoire.classes[template.0].templates[template.1].duration_nanos;
        let mut conversation = [0; 16];
        for (digit, bits) in conversation
            .iter_mut()
            .zip(self.random.random::<[u8; 16]>())
        {
            *digit = b"0123456789abcdef"[usize::from(bits & 15)];
        }
        let trace = loop {
            if let Some(trace) = TraceId::new(self.random.random()) {
                break trace;
            }
        };
        let ends_at = began_at + played(lasts_nanos);
        let site = self.random.random_range(0..self.sites.len());
        let stamp = TraceStamp {
            trace,
            span_seed: self.random.next_u64(),
            started_unix_nanos: ends_at.unix_nanos.saturating_sub(lasts_nanos),
            conversation,
        };
        let turn = self.turns_begun;
        self.turns_begun += 1;
        self.plan(Ending {
            at: began_at,
            turn,
            next: 0,
            site,
            template,
            began_at,
            stamp,
        });
    }

    fn plan(&mut self, mut ending: Ending) {
        let (class, template) = ending.template;
        let spans = &self.repertoire.classes[class].templates[template].spans;
        if let Some(span) = spans.get(ending.next) {
            ending.at = ending.began_at + played(span.end_nanos());
            self.agenda.push(Reverse(ending));
        }
    }

    fn end(&mut self, mut ending: Ending) {
        let (class, template) = ending.template;
        let class = &self.repertoire.classes[class];
        let span = &class.templates[template].spans[ending.next];
        let (service, scope) = self.scopes[span.scope.0];
        let instance = &mut self.sites[ending.site][service];
        let key = span.stamp(
            ending.next,
            &ending.stamp,
            instance.service.spans_mut(scope),
        );
        let facts = span.facts(key, &ending.stamp, class.is_broken);
        instance.pending.push(facts);
        ending.next += 1;
        self.plan(ending);
    }
}

fn played(nanos: u64) -> Duration {
    Duration::from_nanos(nanos / PLAYED_FASTER)
}

impl PartialEq for Ending {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.turn) == (other.at, other.turn)
    }
}

impl Eq for Ending {}

impl PartialOrd for Ending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}
