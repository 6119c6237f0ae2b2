//! What happens in one run, drawn from its seed before anything happens: so that a run can be
//! repeated up to each of its writes.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailring::model::TraceId;
use tailring::worker::AckLevel;

/// A span by the number of its trace and its own.
pub(crate) type SpanKey = (usize, u64);

pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) ack: AckLevel,
    /// A crash takes the host, with what was not synced; else only the process. With `--ack written` nothing that
    /// was acknowledged before is promised then.
    pub(crate) host_dies: bool,
    pub(crate) segment_bytes: u32,
    /// Segments that fit into the log, if it is bounded.
    pub(crate) log_segments_max: Option<u64>,
    pub(crate) decision_wait: Duration,
    pub(crate) quiet_period: Option<Duration>,
    pub(crate) drop_retain: Duration,
    pub(crate) traces: Vec<TraceId>,
    pub(crate) requests: Vec<Request>,
    pub(crate) steps: Vec<Step>,
    /// Policies are the same in each life, and keep every trace.
    pub(crate) keeps_all: bool,
    /// Whether what happens is printed.
    pub(crate) is_told: bool,
}

pub(crate) struct Request {
    pub(crate) message: Bytes,
    pub(crate) spans: Vec<SpanKey>,
}

/// One thing that happens. Draws are taken modulo what is there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// The next request that was never sent.
    Send,
    /// One that was sent: its client was refused, or did not hear the answer, or is a fool.
    Repeat(usize),
    Wait(Duration),
    Turn(usize),
    Write(usize),
    /// The compactor does what it was asked for.
    Compact,
    Pull {
        shard: usize,
        bytes: u64,
        traces: usize,
    },
    /// The backend takes a piece of work, or its first part.
    Deliver {
        work: usize,
        cut: Option<(usize, usize)>,
    },
    Fault(Fault),
    /// Other policies, drawn.
    Reload(u32),
    /// A piece of a shard's work for the refolder.
    Refold(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    WritesAfter(u64),
    Syncs,
    Unlinks,
    Reads,
    Full,
    Healed,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let random = &mut random;
        let ack = if random.random() {
            AckLevel::Written
        } else {
            AckLevel::Synced
        };
        let trace_count = random.random_range(2..=8);
        let mut traces: Vec<TraceId> = Vec::new();
        while traces.len() < trace_count {
            traces.extend(TraceId::new(random.random()));
        }
        let request_count = random.random_range(8..=32);
        let mut next_span = 0;
        let requests = (0..request_count)
            .map(|_| Request::new(random, &traces, &mut next_span))
            .collect();
        let is_faulty = random.random_range(0..3) == 0;
        let length = random.random_range(60..=180);
        let mut plan = Self {
            seed,
            ack,
            host_dies: ack == AckLevel::Synced && random.random_range(0..5) > 0,
            segment_bytes: [256, 512, 1024, 4096][random.random_range(0..4)],
            log_segments_max: (random.random_range(0..4) == 0).then(|| random.random_range(16..32)),
            decision_wait: Duration::from_secs(random.random_range(2..=6)),
            quiet_period: (random.random_range(0..3) == 0).then_some(Duration::from_secs(2)),
            drop_retain: Duration::from_secs([0, 2, 30][random.random_range(0..3)]),
            traces,
            requests,
            steps: with_reloads(seed, steps(random, length, is_faulty)),
            keeps_all: false,
            is_told: false,
        };
        // What was acknowledged before is not promised then, but what comes after is.
        plan.host_dies |= random.random_range(0..5) == 0;
        plan
    }
}

/// Steps of a life.
pub(crate) fn steps(random: &mut SmallRng, length: usize, is_faulty: bool) -> Vec<Step> {
    let mut steps = Vec::with_capacity(length + 4);
    let mut heals_in = None;
    while steps.len() < length {
        let step = match random.random_range(0..100) {
            0..20 => Step::Send,
            20..25 => Step::Repeat(random.random_range(0..1 << 16)),
            25..33 => Step::Wait(Duration::from_millis(random.random_range(0..1_500))),
            33..53 => Step::Turn(random.random_range(0..6)),
            53..70 => Step::Write(random.random_range(0..6)),
            70..73 => Step::Compact,
            73..83 => Step::Pull {
                shard: random.random_range(0..6),
                bytes: random.random_range(1..2_000),
                traces: random.random_range(1..4),
            },
            83..94 => Step::Deliver {
                work: random.random_range(0..4),
                cut: (random.random_range(0..4) == 0)
                    .then(|| (random.random_range(0..3), random.random_range(0..2))),
            },
            _ if is_faulty && heals_in.is_none() => {
                heals_in = Some(random.random_range(1..8));
                Step::Fault(match random.random_range(0..5) {
                    0 => Fault::WritesAfter(random.random_range(0..3)),
                    1 => Fault::Syncs,
                    2 => Fault::Unlinks,
                    3 => Fault::Reads,
                    _ => Fault::Full,
                })
            }
            _ => Step::Wait(Duration::from_millis(200)),
        };
        steps.push(step);
        if let Some(left) = &mut heals_in {
            *left -= 1;
            if *left == 0 {
                heals_in = None;
                steps.push(Step::Fault(Fault::Healed));
            }
        }
    }
    steps.push(Step::Fault(Fault::Healed));
    steps
}

/// Policies that change now and then, among the steps. Drawn by themselves: the rest of a plan is what it
/// would be without.
fn with_reloads(seed: u64, steps: Vec<Step>) -> Vec<Step> {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x7265_6c6f_6164);
    let mut all = Vec::with_capacity(2 * steps.len());
    for step in steps {
        match random.random_range(0..12) {
            0 => all.push(Step::Reload(random.random())),
            1..4 => all.push(Step::Refold(random.random_range(0..6))),
            _ => {}
        }
        all.push(step);
    }
    all
}

impl Request {
    /// One to three traces, each with one or two spans under one of three resources.
    fn new(random: &mut SmallRng, traces: &[TraceId], next_span: &mut u64) -> Self {
        let mut spans = Vec::new();
        let mut resource_spans = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            let trace = random.random_range(0..traces.len());
            let mut of_trace = Vec::new();
            for _ in 0..random.random_range(1..=2) {
                let number = *next_span;
                *next_span += 1;
                spans.push((trace, number));
                of_trace.push(Span {
                    trace_id: traces[trace].as_bytes().to_vec(),
                    span_id: (number + 1).to_be_bytes().to_vec(),
                    parent_span_id: vec![7; 8],
                    name: "x".repeat(random.random_range(0..120)),
                    ..Span::default()
                });
            }
            let service = ["", "shop", "search"][random.random_range(0..3)];
            let attribute = KeyValue {
                key: "service.name".to_owned(),
                value: Some(AnyValue {
                    value: Some(Value::StringValue(service.to_owned())),
                }),
                ..KeyValue::default()
            };
            resource_spans.push(ResourceSpans {
                resource: (!service.is_empty()).then(|| Resource {
                    attributes: vec![attribute],
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    spans: of_trace,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            });
        }
        let message = ExportTraceServiceRequest { resource_spans };
        Self {
            message: message.encode_to_vec().into(),
            spans,
        }
    }
}
