//! What the policies cost a span: the fold of the shipped rules, beside the scan that comes before
//! it and the bare reading of the same fields. The goals: fold ≤ 2 × (scan + reading), and ≤ 5 × with 20
//! policies, 6 of OTTL and 4 with patterns. Throughput is in spans.

#![allow(clippy::unwrap_used, reason = "a bench has nobody to hand an error to")]

#[path = "../tests/wire/agents.rs"]
mod agents;

use std::hint::black_box;
use std::time::Duration;

use agents::Shape;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;
use tailring::model::Moment;
use tailring::policy::{FoldState, Folding, Rules, parse};
use tailring::wire::{
    Fragments, KeyFilter, Scan, ScanLimits, Wanted, read_resource, read_span, string_value,
};

const SPANS: usize = 512;
/// So many different requests in turn, as in `wire`.
const REQUESTS: u64 = 16;

fn rules(text: &str) -> Rules {
    parse(text).unwrap().rules
}

/// Each of a thousand policies asks for an attribute of its own, and one in ten matches a pattern.
fn thousand() -> Rules {
    let policies: String = (0..1_000)
        .map(|n| {
            let (value, regex) = if n % 10 == 0 {
                ("acme-.*", true)
            } else {
                ("acme", false)
            };
            let key = if n == 0 {
                "tenant.id".to_owned()
            } else {
                format!("tenant.id.{n}")
            };
            format!(
                "  - {{name: p{n}, type: string_attribute, string_attribute: \
                 {{key: {key}, values: [{value}], enabled_regex_matching: {regex}}}}}\n"
            )
        })
        .collect();
    rules(&format!("policies:\n{policies}"))
}

/// As many policies as large installations have: 6 of OTTL and 4 with patterns. Most never match, so
/// that they are asked about every span.
fn twenty() -> Rules {
    rules(
        r#"
policies:
  - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
  - {name: slow, type: latency, latency: {threshold_ms: 5000}}
  - {name: share, type: probabilistic, probabilistic: {sampling_percentage: 1}}
  - {name: large, type: span_count, span_count: {min_spans: 1000}}
  - {name: limited, type: rate_limiting, rate_limiting: {spans_per_second: 1000}}
  - {name: tenants, type: string_attribute, string_attribute: {key: tenant.id, values: [tenant-x, tenant-y]}}
  - {name: model, type: string_attribute, string_attribute: {key: gen_ai.request.model, values: [gpt-6]}}
  - {name: tool, type: string_attribute, string_attribute: {key: gen_ai.tool.name, values: [refund]}}
  - {name: service, type: string_attribute, string_attribute: {key: service.name, values: [canary]}}
  - {name: peer, type: string_attribute, string_attribute: {key: server.address, values: [localhost]}}
  - {name: regex tenants, type: string_attribute, string_attribute: {key: tenant.id, values: ["^acme-[0-9]+$"], enabled_regex_matching: true}}
  - {name: regex pods, type: string_attribute, string_attribute: {key: k8s.pod.name, values: ["-canary-[a-z0-9]{5}$"], enabled_regex_matching: true}}
  - {name: regex calls, type: string_attribute, string_attribute: {key: gen_ai.tool.call.id, values: ["^debug_"], enabled_regex_matching: true}}
  - {name: regex methods, type: string_attribute, string_attribute: {key: mcp.method.name, values: ["^resources/.*"], enabled_regex_matching: true}}
  - name: ottl tokens
    type: ottl_condition
    ottl_condition: {error_mode: ignore, span: ['attributes["gen_ai.usage.output_tokens"] > 1000000']}
  - name: ottl retries
    type: ottl_condition
    ottl_condition: {error_mode: ignore, span: ['attributes["retry.count"] >= 3 and attributes["gen_ai.tool.name"] != nil', 'attributes["error.type"] != nil']}
  - name: ottl names
    type: ottl_condition
    ottl_condition: {error_mode: ignore, span: ['IsMatch(name, "^delete_.*")']}
  - name: ottl production
    type: ottl_condition
    ottl_condition: {error_mode: ignore, span: ['resource.attributes["deployment.environment.name"] == "staging" and status.code == STATUS_CODE_ERROR']}
  - name: ottl slow servers
    type: ottl_condition
    ottl_condition: {error_mode: ignore, span: ['kind == SPAN_KIND_SERVER and end_time - start_time > Duration("1h")']}
  - name: ottl exceptions
    type: ottl_condition
    ottl_condition: {error_mode: ignore, spanevent: ['name == "exception" and attributes["exception.type"] == "OutOfMemory"']}
"#,
    )
}

/// The conditions of [`twenty`] alone.
fn six_conditions() -> Rules {
    let mut rules = twenty();
    rules.policies.retain(|it| it.name.starts_with("ottl"));
    Rules::new(rules.timing, rules.policies)
}

/// With what a shard keeps from one fragment to the next.
fn fold_all(
    rules: &Rules,
    scanned: &[(Bytes, Scan, Fragments)],
    folding: &mut Folding,
    states: &mut Vec<FoldState>,
) {
    for (message, scan, fragments) in scanned {
        for index in 0..fragments.all().len() {
            let mut state = rules.begin();
            let view = fragments.view(black_box(message), scan, index);
            rules.fold_with(&mut state, &view, Moment::ZERO, folding);
            states.push(state);
        }
    }
    black_box(&states);
    states.clear();
}

fn bench(c: &mut Criterion) {
    for (name, shape) in [("agent", Shape::Agent), ("micro", Shape::Micro)] {
        let limits = ScanLimits::default();
        let scanned: Vec<(Bytes, Scan, Fragments)> = (0..REQUESTS)
            .map(|seed| {
                let message: Bytes = agents::batch(shape, SPANS, seed).encode_to_vec().into();
                let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
                scan.read(&message, &limits).unwrap();
                fragments.group(&message, &scan);
                (message, scan, fragments)
            })
            .collect();
        let mut group = c.benchmark_group(format!("policy/{name}"));
        group
            .throughput(Throughput::Elements(SPANS as u64 * REQUESTS))
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .sample_size(30);

        let mut scan = Scan::default();
        group.bench_function("scan", |b| {
            b.iter(|| {
                for (message, ..) in &scanned {
                    scan.read(black_box(message), &limits).unwrap();
                    black_box(scan.spans());
                }
            });
        });
        let wanted = Wanted {
            times: true,
            status: true,
            trace_state: true,
            flags: false,
        };
        let mut keys = KeyFilter::default();
        keys.add(b"tenant.id");
        group.bench_function("field extraction", |b| {
            b.iter(|| {
                for (message, scan, fragments) in &scanned {
                    for index in 0..fragments.all().len() {
                        let view = fragments.view(black_box(message), scan, index);
                        let mut see = |key, attribute| {
                            black_box((key, string_value(attribute)));
                        };
                        for piece in view.resource().pieces() {
                            read_resource(piece, &keys, &mut see);
                        }
                        for span in view.scopes().flat_map(|scope| scope.spans()) {
                            black_box(read_span(span, wanted, &keys, &mut see));
                        }
                    }
                }
            });
        });
        let (mut states, mut folding) = (Vec::new(), Folding::default());
        for (name, rules) in [
            ("nothing needed", Rules::keep_everything()),
            (
                "fleet.yaml",
                rules(include_str!("../deploy/policies/fleet.yaml")),
            ),
            ("1,000 attributes", thousand()),
            ("20 policies, 6 of OTTL", twenty()),
            ("6 of OTTL", six_conditions()),
        ] {
            group.bench_function(format!("fold: {name}"), |b| {
                b.iter(|| fold_all(&rules, &scanned, &mut folding, &mut states));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
