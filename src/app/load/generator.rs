//! Makes batches of spans: bytes to send, and what is in them. Pure and fast (templates are
//! stamped, nothing is encoded), given the time, and the same for the same seed.
//!
//! A *cell* is a place whose spans travel together: an agent's pod with its MCP server. Each cell
//! has some 40 traces under way, and whose span ends next is drawn at random, so a batch has pieces
//! of all of them; the spans of one trace keep the order of their ends, the root last. When a
//! trace is finished the next one takes its place.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::repertoire::Repertoire;
use super::service::Service;
use super::template::TraceStamp;
use crate::app::ledger::SpanKey;
use crate::model::{Moment, TraceId};

/// What traffic looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// What an operator of agents sees: turns of 8 to 18 spans, some of 60 to 120, 3 % broken
    /// (errors, MAX_TOKENS after a long tool loop, turns of 47 seconds).
    Fleet,
    /// Heavy agent turns of 60 to 120 spans, the load of the benchmarks: 416 bytes a span.
    Agent,
    /// Web requests of ten spans, 343 bytes a span.
    Micro,
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorPlan {
    pub shape: Shape,
    pub seed: u64,
    /// Spans of a batch; the last batches of a drained generator may have less.
    pub batch_spans: usize,
    /// Places that traces come from, each with its own resources.
    pub cells: usize,
}

/// One `ExportTraceServiceRequest`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Counts from 0.
    pub number: u64,
    pub message: Bytes,
    pub spans: Vec<SpanKey>,
}

/// See the module.
#[derive(Debug)]
pub struct Generator {
    repertoire: Repertoire,
    cells: Vec<Cell>,
    batch_spans: usize,
    next_number: u64,
    admits: bool,
}

#[derive(Debug)]
struct Cell {
    services: Vec<Service>,
    /// (service, scope of it) by the shape's scope index.
    scopes: Vec<(usize, usize)>,
    active: Vec<ActiveTrace>,
    random: SmallRng,
}

#[derive(Debug)]
struct ActiveTrace {
    /// Class and template in the repertoire.
    template: (usize, usize),
    next: usize,
    stamp: TraceStamp,
}

impl Generator {
    pub fn new(plan: GeneratorPlan) -> Self {
        // The repertoire has its own stream: the same turns however many cells there are.
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let repertoire = Repertoire::new(plan.shape, &mut random);
        let cells = (0..plan.cells.max(1))
            .map(|index| Cell::new(&repertoire, index, random.next_u64()))
            .collect();
        Self {
            repertoire,
            cells,
            batch_spans: plan.batch_spans.max(1),
            next_number: 0,
            admits: true,
        }
    }

    /// From now on no trace begins; those under way are finished.
    pub fn drain(&mut self) {
        self.admits = false;
    }

    /// The next batch; traces that begin in it have their root end about `now`, so that no span
    /// ends in the future. `None` once drained.
    pub fn next_batch(&mut self, now: Moment) -> Option<Batch> {
        let mut spans = Vec::with_capacity(self.batch_spans);
        let count = self.cells.len();
        for _ in 0..count {
            let cell = &mut self.cells[(self.next_number % count as u64) as usize];
            self.next_number += 1;
            cell.fill(
                &self.repertoire,
                now,
                self.admits,
                self.batch_spans,
                &mut spans,
            );
            if !spans.is_empty() {
                return Some(Batch {
                    number: self.next_number - 1,
                    message: cell.take_message(),
                    spans,
                });
            }
        }
        None
    }
}

impl Cell {
    fn new(repertoire: &Repertoire, index: usize, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let services: Vec<_> = repertoire
            .services
            .iter()
            .map(|kind| Service::new(kind, index, &mut random))
            .collect();
        let scopes = services
            .iter()
            .enumerate()
            .flat_map(|(service, s)| (0..s.scope_count()).map(move |scope| (service, scope)))
            .collect();
        Self {
            services,
            scopes,
            active: Vec::new(),
            random,
        }
    }

    fn fill(
        &mut self,
        repertoire: &Repertoire,
        now: Moment,
        admits: bool,
        spans_max: usize,
        spans: &mut Vec<SpanKey>,
    ) {
        while spans.len() < spans_max {
            while admits && self.active.len() < repertoire.active_traces {
                let begun = self.begin(repertoire, now);
                self.active.push(begun);
            }
            if self.active.is_empty() {
                return;
            }
            let chosen = self.random.random_range(0..self.active.len());
            let trace = &mut self.active[chosen];
            let (class, template) = trace.template;
            let template = &repertoire.classes[class].templates[template];
            let span = &template.spans[trace.next];
            let (service, scope) = self.scopes[span.scope.0];
            let out = self.services[service].spans_mut(scope);
            spans.push(span.stamp(trace.next, &trace.stamp, out));
            trace.next += 1;
            if trace.next == template.spans.len() {
                self.active.swap_remove(chosen);
            }
        }
    }

    fn begin(&mut self, repertoire: &Repertoire, now: Moment) -> ActiveTrace {
        let template = repertoire.choose(&mut self.random);
        let (class, index) = template;
        let duration = repertoire.classes[class].templates[index].duration_nanos;
        let mut conversation = [0; 16];
        for (digit, bits) in conversation
            .iter_mut()
            .zip(self.random.random::<[u8; 16]>())
        {
            *digit = b"0123456789abcdef"[usize::from(bits & 15)];
        }
        ActiveTrace {
            template,
            next: 0,
            stamp: TraceStamp {
                trace: self.trace_id(),
                span_seed: self.random.next_u64(),
                started_unix_nanos: now.unix_nanos.saturating_sub(duration),
                conversation,
            },
        }
    }

    /// All 128 bits random, as the flag in each span says of the low 56.
    fn trace_id(&mut self) -> TraceId {
        loop {
            if let Some(trace) = TraceId::new(self.random.random()) {
                return trace;
            }
        }
    }

    fn take_message(&mut self) -> Bytes {
        let services = self.services.iter();
        let bytes_max = services.map(Service::pending_bytes_max).sum();
        let mut message = Vec::with_capacity(bytes_max);
        for service in &mut self.services {
            service.take(&mut message);
        }
        message.into()
    }
}
