//! Batches as an agent fleet sends them (and ten-span web requests beside it), for benches and as
//! seeds of the fuzz corpora. Sizes follow the measured load: 512 spans of some 41 interleaved
//! turns, 416 bytes and 8 attributes a span, 2 resources of 500 bytes, 4 scopes.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status,
    span::{Event, Link},
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Agent,
    Micro,
}

const START: u64 = 1_760_000_000_000_000_000;
const WORDS: [&str; 12] = [
    "customer", "refund", "the", "policy", "order", "please", "résumé", "check", "against",
    "shipping", "invoice", "before",
];

fn text(value: impl Into<String>) -> any_value::Value {
    any_value::Value::StringValue(value.into())
}

fn int(value: u32) -> any_value::Value {
    any_value::Value::IntValue(value.into())
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn prose(rng: &mut SmallRng, words: usize) -> String {
    let words: Vec<_> = (0..words).map(|_| *WORDS.choose(rng).unwrap()).collect();
    words.join(" ")
}

fn resource(rng: &mut SmallRng, service: &str) -> Resource {
    let pod = format!(
        "{service}-7f6c9d{:04x}-{:05x}",
        rng.random::<u16>(),
        rng.random::<u16>()
    );
    let rows = [
        ("service.name", service.to_owned()),
        ("service.namespace", "agents".to_owned()),
        ("service.version", "2026.11.3".to_owned()),
        (
            "service.instance.id",
            format!("{:032x}", rng.random::<u128>()),
        ),
        ("deployment.environment.name", "production".to_owned()),
        ("k8s.cluster.name", "eu-central-1-prod".to_owned()),
        ("k8s.namespace.name", "agents".to_owned()),
        ("k8s.pod.name", pod),
        (
            "k8s.node.name",
            "ip-10-12-33-7.eu-central-1.compute.internal".to_owned(),
        ),
        ("telemetry.sdk.language", "python".to_owned()),
        ("telemetry.sdk.name", "opentelemetry".to_owned()),
        ("telemetry.sdk.version", "1.38.0".to_owned()),
    ];
    Resource {
        attributes: rows
            .map(|(key, value)| attribute(key, text(value)))
            .to_vec(),
        ..Default::default()
    }
}

fn agent_attributes(rng: &mut SmallRng, tenant: u32) -> (&'static str, Vec<KeyValue>) {
    let mut attributes = vec![
        attribute("tenant.id", text(format!("tenant-{tenant:06}"))),
        attribute(
            "gen_ai.conversation.id",
            text(format!("conv_{:016x}", rng.random::<u64>())),
        ),
    ];
    let (name, more) = match rng.random_range(0..3) {
        0 => (
            "chat claude-sonnet-4-5",
            vec![
                attribute("gen_ai.operation.name", text("chat")),
                attribute("gen_ai.provider.name", text("anthropic")),
                attribute("gen_ai.request.model", text("claude-sonnet-4-5")),
                attribute(
                    "gen_ai.usage.input_tokens",
                    int(rng.random_range(500..90_000)),
                ),
                attribute(
                    "gen_ai.usage.output_tokens",
                    int(rng.random_range(20..4_000)),
                ),
                attribute(
                    "gen_ai.response.id",
                    text(format!("msg_{:012x}", rng.random::<u32>())),
                ),
            ],
        ),
        1 => (
            "execute_tool search_orders",
            vec![
                attribute("gen_ai.operation.name", text("execute_tool")),
                attribute("gen_ai.tool.name", text("search_orders")),
                attribute(
                    "gen_ai.tool.call.id",
                    text(format!("call_{:024x}", rng.random::<u64>())),
                ),
                attribute("gen_ai.tool.type", text("function")),
                attribute("retry.count", int(rng.random_range(0..3))),
                attribute("cache.hit", any_value::Value::BoolValue(rng.random())),
            ],
        ),
        _ => (
            "tools/call search_orders",
            vec![
                attribute("mcp.method.name", text("tools/call")),
                attribute(
                    "mcp.session.id",
                    text(format!("{:032x}", rng.random::<u128>())),
                ),
                attribute(
                    "server.address",
                    text("mcp-orders.agents.svc.cluster.local"),
                ),
                attribute("server.port", int(8443)),
                attribute("network.transport", text("tcp")),
                attribute(
                    "duration.seconds",
                    any_value::Value::DoubleValue(rng.random()),
                ),
            ],
        ),
    };
    attributes.extend(more);
    (name, attributes)
}

fn micro_attributes(rng: &mut SmallRng) -> (&'static str, Vec<KeyValue>) {
    let attributes = vec![
        attribute("http.request.method", text("GET")),
        attribute(
            "url.path",
            text(format!("/api/v1/orders/{}", rng.random::<u32>())),
        ),
        attribute("http.response.status_code", int(200)),
        attribute("server.address", text("orders.shop.svc.cluster.local")),
        attribute("server.port", int(8080)),
        attribute("user_agent.original", text("okhttp/4.12.0")),
        attribute("network.peer.address", text("10.12.33.107")),
    ];
    ("GET /api/v1/orders/{id}", attributes)
}

fn span(rng: &mut SmallRng, shape: Shape, trace: u128, is_root: bool) -> Span {
    let (name, attributes) = match shape {
        Shape::Agent => agent_attributes(rng, (trace % 500) as u32),
        Shape::Micro => micro_attributes(rng),
    };
    let start = START + rng.random_range(0..60_000_000_000);
    let prompt = shape == Shape::Agent && rng.random_ratio(1, 20);
    let words = rng.random_range(40..80);
    let events = prompt.then(|| Event {
        time_unix_nano: start,
        name: "gen_ai.client.inference.operation.details".into(),
        attributes: vec![attribute("gen_ai.input.messages", text(prose(rng, words)))],
        ..Default::default()
    });
    let links = rng.random_ratio(1, 50).then(|| Link {
        trace_id: rng.random::<[u8; 16]>().to_vec(),
        span_id: rng.random::<[u8; 8]>().to_vec(),
        ..Default::default()
    });
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: rng.random::<[u8; 8]>().to_vec(),
        parent_span_id: if is_root {
            vec![]
        } else {
            rng.random::<[u8; 8]>().to_vec()
        },
        flags: 0x101,
        name: name.into(),
        kind: rng.random_range(1..4),
        start_time_unix_nano: start,
        end_time_unix_nano: start + rng.random_range(1_000_000..2_000_000_000),
        attributes,
        events: events.into_iter().collect(),
        links: links.into_iter().collect(),
        status: Some(Status::default()),
        ..Default::default()
    }
}

/// One export request. Its spans belong to about `spans / 12` turns, or `spans / 3` web requests.
pub(crate) fn batch(shape: Shape, spans: usize, seed: u64) -> ExportTraceServiceRequest {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (each, services) = match shape {
        Shape::Agent => (spans / 12, ["agent-runtime", "mcp-orders"]),
        Shape::Micro => (spans * 2 / 5, ["checkout", "orders"]),
    };
    let traces: Vec<u128> = (0..each.max(1)).map(|_| rng.random()).collect();
    let mut resource_spans: Vec<_> = services
        .iter()
        .map(|service| ResourceSpans {
            resource: Some(resource(&mut rng, service)),
            scope_spans: ["opentelemetry.instrumentation.anthropic", "agents.runtime"]
                .map(|name| ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: name.into(),
                        version: "0.52.1".into(),
                        ..Default::default()
                    }),
                    spans: Vec::new(),
                    schema_url: "https://opentelemetry.io/schemas/1.37.0".into(),
                })
                .to_vec(),
            schema_url: String::new(),
        })
        .collect();
    // Spans end one after the other, now in this turn, now in that one: runs of one or two.
    let mut left = spans;
    while left > 0 {
        let run = rng.random_range(1..=2).min(left);
        let trace = *traces.choose(&mut rng).unwrap();
        let resource = rng.random_range(0..2);
        let scope = usize::from(rng.random_ratio(1, 3));
        for _ in 0..run {
            let is_root = rng.random_ratio(1, 40);
            let span = span(&mut rng, shape, trace, is_root);
            resource_spans[resource].scope_spans[scope].spans.push(span);
        }
        left -= run;
    }
    ExportTraceServiceRequest { resource_spans }
}
