//! What happens in one run, drawn from its seed before anything happens: the cluster, what clients
//! send and when, and which faults come.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailring::model::TraceId;
use tailring::worker::AckLevel;

use crate::fault::{Fault, Scenario};

/// Milliseconds since the run began.
pub(crate) type Millis = u64;

pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    pub(crate) ack: AckLevel,
    pub(crate) workers: usize,
    pub(crate) routers: usize,
    /// How much a clock is wrong at most when its process starts.
    pub(crate) clocks_off_most: Millis,
    pub(crate) shards: usize,
    pub(crate) segment_bytes: u32,
    /// Of the log in one message of a handoff: traces go in pieces if it is small.
    pub(crate) handoff_bytes: u64,
    pub(crate) decision_wait: Duration,
    pub(crate) drop_retain: Duration,
    pub(crate) policies: Policies,
    pub(crate) weather: Weather,
    /// DNS answers are as old as this at most, for each who asks.
    pub(crate) dns_lag_most: Millis,
    pub(crate) traces: Vec<TraceId>,
    /// By trace: to be dropped by a `drop` policy, if there is one.
    pub(crate) is_health: Vec<bool>,
    pub(crate) spans: Vec<SpanPlan>,
    pub(crate) requests: Vec<RequestPlan>,
    pub(crate) faults: Vec<(Millis, Fault)>,
    /// From then on nothing bad happens any more, and all comes to rest.
    pub(crate) calm_at: Millis,
    /// Whether what happens is printed.
    pub(crate) is_told: bool,
}

pub(crate) struct SpanPlan {
    pub(crate) trace: usize,
    pub(crate) is_error: bool,
}

pub(crate) struct RequestPlan {
    pub(crate) at: Millis,
    pub(crate) client: usize,
    /// Sent to a worker, by a client that knows no router.
    pub(crate) is_direct: bool,
    pub(crate) message: Bytes,
    pub(crate) spans: Vec<usize>,
}

/// What the network does to each message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay_most: Millis,
    /// Of a thousand: never arrive, arrive two times, take as long as `slow_most`.
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    pub(crate) slow: u32,
    pub(crate) slow_most: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policies {
    /// Keeps traces with an error. Every other rule about what may be judged hangs on it: more
    /// evidence only ever raises a verdict.
    Errors,
    /// With drop, not, max_spans, and limits and chance: verdicts that more evidence may turn either way.
    Mixed,
}

impl Policies {
    pub(crate) fn text(self, wait: Duration) -> String {
        let wait = wait.as_secs();
        match self {
            Self::Errors => format!(
                "decision_wait: {wait}s\npolicies:\n  - name: errors\n    type: status_code\n    \
                 status_code: {{status_codes: [ERROR]}}\n"
            ),
            Self::Mixed => format!(
                "decision_wait: {wait}s
policies:
  - name: health
    type: drop
    drop:
      drop_sub_policy:
        - {{name: kind, type: string_attribute, string_attribute: {{key: kind, values: [health]}}}}
  - {{name: errors, type: status_code, status_code: {{status_codes: [ERROR]}}}}
  - name: short-and-fine
    type: and
    and:
      and_sub_policy:
        - {{name: short, type: span_count, span_count: {{min_spans: 1, max_spans: 3}}}}
        - name: fine
          type: not
          not:
            not_sub_policy: {{name: error, type: status_code, status_code: {{status_codes: [ERROR]}}}}
  - {{name: some, type: rate_limiting, rate_limiting: {{spans_per_second: 3}}}}
  - {{name: share, type: probabilistic, probabilistic: {{sampling_percentage: 20}}}}
"
            ),
        }
    }
}

impl Weather {
    const FAIR: Self = Self {
        delay_most: 5,
        lost: 0,
        doubled: 0,
        slow: 0,
        slow_most: 0,
    };
    const FOUL: Self = Self {
        delay_most: 60,
        lost: 10,
        doubled: 5,
        slow: 40,
        slow_most: 1_500,
    };
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x7369_6d75_6c61_7465);
        let random = &mut random;
        let scenario = Scenario::ALL[(seed % Scenario::ALL.len() as u64) as usize];
        let decision_wait = Duration::from_secs([10, 30][random.random_range(0..2)]);
        let workers = random.random_range(3..=5);
        let clients = random.random_range(2..=4);
        let active = random.random_range(60_000..=120_000);
        let mut traces = Vec::new();
        let trace_count = random.random_range(30..=70);
        while traces.len() < trace_count {
            traces.extend(TraceId::new(random.random()));
        }
        let policies = [Policies::Errors, Policies::Errors, Policies::Mixed];
        let policies = policies[random.random_range(0..policies.len())];
        let is_health: Vec<bool> = (0..traces.len())
            .map(|_| policies == Policies::Mixed && random.random_range(0..10) == 0)
            .collect();
        let kinds = (&traces[..], &is_health[..]);
        let (spans, requests) = traffic(random, kinds, clients, active, decision_wait);
        let last = requests.iter().map(|request| request.at).max().unwrap_or(0);
        let faults = scenario.faults(random, workers, active);
        let healed = faults.iter().map(|(at, fault)| at + fault.lasts()).max();
        // With its disk a name loses what it knows of its earlier lives: only a clock that is about right tells
        // others that the new one is younger.
        let loses_disk = faults
            .iter()
            .any(|(_, fault)| matches!(fault, Fault::LoseDisk { .. }));
        let clocks_off_most = match random.random_range(0..4) {
            0 if !loses_disk => 3_600_000,
            _ => 300,
        };
        let is_foul = random.random_range(0..3) == 0 || scenario == Scenario::Storm;
        Self {
            seed,
            scenario,
            ack: [AckLevel::Written, AckLevel::Synced][random.random_range(0..2)],
            workers,
            routers: random.random_range(1..=3),
            clocks_off_most,
            shards: random.random_range(1..=2),
            segment_bytes: [2048, 8192, 65_536][random.random_range(0..3)],
            handoff_bytes: [150, 1_000, 8_000][random.random_range(0..3)],
            decision_wait,
            drop_retain: Duration::from_secs(120),
            policies,
            weather: if is_foul {
                Weather::FOUL
            } else {
                Weather::FAIR
            },
            dns_lag_most: [1_000, 5_000, 30_000][random.random_range(0..3)],
            traces,
            is_health,
            spans,
            requests,
            faults,
            calm_at: last.max(healed.unwrap_or(0)) + 1_000,
            is_told: false,
        }
    }
}

impl Plan {
    /// The same traffic, in fair weather and with these faults.
    pub(crate) fn with_faults(mut self, faults: Vec<(Millis, Fault)>) -> Self {
        let healed = faults.iter().map(|(at, fault)| at + fault.lasts());
        self.calm_at = self.calm_at.max(healed.max().unwrap_or(0) + 1_000);
        self.scenario = Scenario::Kept;
        self.policies = Policies::Errors;
        self.is_health.fill(false);
        self.weather = Weather::FAIR;
        self.clocks_off_most = 300;
        self.faults = faults;
        self
    }

    /// Verdicts come in time: nobody is away, and no limit makes anybody wait.
    pub(crate) fn is_punctual(&self) -> bool {
        let is_calm = matches!(self.scenario, Scenario::Quiet | Scenario::Out);
        is_calm && self.policies == Policies::Errors && self.weather.lost == 0
    }

    /// The windows that no protocol without consensus closes: members that could not talk for longer than evidence is
    /// kept, and verdicts that more evidence may turn either way.
    pub(crate) fn may_split(&self) -> bool {
        let is_cut_off = matches!(self.scenario, Scenario::LongPartition | Scenario::Storm);
        // A start whose clock is ahead by more than verdicts are remembered for has forgotten them.
        let is_lost_in_time = self.clocks_off_most > 60_000;
        is_cut_off || is_lost_in_time || self.policies == Policies::Mixed
    }
}

/// Traces of 2 to 7 spans over two thirds of the wait, one span of seven late by more than the wait; each
/// client sends what it has every few seconds.
fn traffic(
    random: &mut SmallRng,
    (traces, is_health): (&[TraceId], &[bool]),
    clients: usize,
    active: Millis,
    wait: Duration,
) -> (Vec<SpanPlan>, Vec<RequestPlan>) {
    let wait = wait.as_millis() as Millis;
    let mut spans = Vec::new();
    let mut due: Vec<Vec<(Millis, usize)>> = vec![Vec::new(); clients];
    for trace in 0..traces.len() {
        let begun = random.random_range(3_000..active);
        let has_error = random.random_range(0..2) == 0;
        let length = random.random_range(2..=7);
        let failing = random.random_range(0..length);
        for number in 0..length {
            let at = if random.random_range(0..7) == 0 {
                begun + random.random_range(wait * 7 / 6..wait * 3)
            } else {
                begun + random.random_range(0..wait * 2 / 3)
            };
            due[random.random_range(0..clients)].push((at, spans.len()));
            spans.push(SpanPlan {
                trace,
                is_error: has_error && number == failing,
            });
        }
    }
    let mut requests = Vec::new();
    for (client, mut due) in due.into_iter().enumerate() {
        due.sort_unstable();
        let mut due = due.into_iter().peekable();
        while let Some((first, span)) = due.next() {
            let at = first + random.random_range(100..2_000);
            let mut of_request = vec![span];
            while let Some((_, span)) = due.next_if(|(next, _)| *next <= at) {
                of_request.push(span);
            }
            requests.push(RequestPlan {
                at,
                client,
                is_direct: random.random_range(0..12) == 0,
                message: message(random, (traces, is_health), &spans, &of_request),
                spans: of_request,
            });
        }
    }
    requests.sort_by_key(|request| request.at);
    (spans, requests)
}

fn health() -> KeyValue {
    KeyValue {
        key: "kind".to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue("health".to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// The number of a span is its ID.
fn message(
    random: &mut SmallRng,
    (traces, is_health): (&[TraceId], &[bool]),
    plans: &[SpanPlan],
    spans: &[usize],
) -> Bytes {
    let resource_spans = spans.iter().map(|number| {
        let plan = &plans[*number];
        let span = Span {
            trace_id: traces[plan.trace].as_bytes().to_vec(),
            span_id: (*number as u64 + 1).to_be_bytes().to_vec(),
            parent_span_id: vec![7; 8],
            attributes: is_health[plan.trace].then(health).into_iter().collect(),
            name: "x".repeat(random.random_range(0..60)),
            status: plan.is_error.then(|| Status {
                code: 2,
                ..Status::default()
            }),
            ..Span::default()
        };
        ResourceSpans {
            resource: random.random_bool(0.5).then(Resource::default),
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }
    });
    let message = ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    };
    message.encode_to_vec().into()
}
