//! What the wire layer costs a span: each step on the two shapes of load, with prost's decode and
//! a plain copy beside it as the ceiling and the floor. Throughput is in spans.

#![allow(clippy::unwrap_used, reason = "a bench has nobody to hand an error to")]

#[path = "../tests/wire/agents.rs"]
mod agents;

use std::hint::black_box;
use std::time::Duration;

use agents::Shape;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::ScopeSpans;
use prost::Message as _;
use tailring::model::{Randomness, Threshold, TraceId};
use tailring::net::json::line;
use tailring::wire::{
    BatchBuilder, Fragments, Scan, ScanLimits, Weight, json_to_protobuf, span_id_of, spans_in,
    split,
};

const SPANS: usize = 512;
/// So many different requests in turn, 3.4 MB: the branch predictor must not learn one by heart,
/// and a request just read from a socket is in the cache.
const REQUESTS: u64 = 16;

fn bench(c: &mut Criterion) {
    for (name, shape) in [("agent", Shape::Agent), ("micro", Shape::Micro)] {
        let messages: Vec<Bytes> = (0..REQUESTS)
            .map(|seed| agents::batch(shape, SPANS, seed).encode_to_vec().into())
            .collect();
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        let mut group = c.benchmark_group(format!(
            "wire/{name} ({} B/span)",
            bytes / SPANS / messages.len()
        ));
        group
            .throughput(Throughput::Elements(SPANS as u64 * REQUESTS))
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .sample_size(30);

        let limits = ScanLimits::default();
        let mut scan = Scan::default();
        group.bench_function("scan", |b| {
            b.iter(|| {
                for message in &messages {
                    scan.read(black_box(message), &limits).unwrap();
                    black_box(scan.spans());
                }
            });
        });
        let scans: Vec<Scan> = messages
            .iter()
            .map(|message| {
                let mut scan = Scan::default();
                scan.read(message, &limits).unwrap();
                scan
            })
            .collect();
        let mut fragments = Fragments::default();
        group.bench_function("group", |b| {
            b.iter(|| {
                for (message, scan) in messages.iter().zip(&scans) {
                    fragments.group(black_box(message), scan);
                    black_box(fragments.all());
                }
            });
        });
        group.bench_function("scan+group", |b| {
            b.iter(|| {
                for message in &messages {
                    scan.read(black_box(message), &limits).unwrap();
                    fragments.group(message, &scan);
                    black_box(fragments.all());
                }
            });
        });
        for destinations in [2, 10] {
            let owner = |trace: TraceId| u16::from(trace.as_bytes()[3]) % destinations;
            group.bench_function(format!("split {destinations}"), |b| {
                b.iter(|| {
                    for (message, scan) in messages.iter().zip(&scans) {
                        black_box(split(black_box(message), scan, destinations, owner));
                    }
                });
            });
            group.bench_function(format!("scan+split {destinations}"), |b| {
                b.iter(|| {
                    for message in &messages {
                        scan.read(black_box(message), &limits).unwrap();
                        black_box(split(message, &scan, destinations, owner));
                    }
                });
            });
        }
        // What an exporter gets from the log: headers and sections, as many as one batch takes.
        let mut stored = Vec::new();
        for (message, scan) in messages.iter().zip(&scans) {
            let mut batch = Vec::new();
            fragments.group(message, scan);
            for index in 0..fragments.all().len() {
                let view = fragments.view(message, scan, index);
                let mut resource = Vec::new();
                view.resource().write_to(&mut resource);
                for scope in view.scopes() {
                    let (mut header, mut section) = (Vec::new(), Vec::new());
                    scope.header.write_to(&mut header);
                    scope.write_spans_to(&mut section);
                    batch.push((resource.clone(), header, Bytes::from(section)));
                }
            }
            stored.push(batch);
        }
        // One trace in four was kept, and nobody sampled before.
        let weight = Weight::new(
            Some(Threshold::keeping(0.25).unwrap()),
            Randomness::from_bits((1 << 56) - 1).unwrap(),
            true,
        );
        group.bench_function("assemble", |b| {
            b.iter(|| {
                for stored in &stored {
                    let mut batch = BatchBuilder::default();
                    for (resource, scope, section) in stored {
                        batch.add(resource, scope, section.clone(), &weight);
                    }
                    let mut out = vec![0; batch.encoded_len()];
                    batch.write_to(&mut out);
                    black_box(out);
                }
            });
        });
        // What the weights are of that: each request is one section.
        let plain: Vec<Bytes> = stored
            .iter()
            .map(|batch| {
                let sections = batch.iter().map(|(_, _, section)| section);
                sections.flatten().copied().collect()
            })
            .collect();
        let sampled: Vec<Bytes> = (0..REQUESTS)
            .map(|seed| {
                let mut request = agents::batch(shape, SPANS, seed);
                let mut all = ScopeSpans::default();
                for scope in request
                    .resource_spans
                    .iter_mut()
                    .flat_map(|it| &mut it.scope_spans)
                {
                    all.spans.append(&mut scope.spans);
                }
                for span in &mut all.spans {
                    span.trace_state = "congo=t61rcWkgMzE,ot=th:8".into();
                }
                all.encode_to_vec().into()
            })
            .collect();
        for (name, sections) in [("weights", &plain), ("weights of sampled", &sampled)] {
            let mut out = vec![0; 2 * sections.iter().map(Bytes::len).max().unwrap()];
            group.bench_function(name, |b| {
                b.iter(|| {
                    for section in sections {
                        let mut batch = BatchBuilder::default();
                        batch.add(b"", b"", black_box(section.clone()), &weight);
                        batch.write_to(&mut out);
                        black_box(&out);
                    }
                });
            });
            group.bench_function(format!("{name}: memcpy"), |b| {
                b.iter(|| {
                    for section in sections {
                        out[..section.len()].copy_from_slice(black_box(section));
                        black_box(&out);
                    }
                });
            });
        }
        group.bench_function("spans_in+span_id_of", |b| {
            b.iter(|| {
                for (_, _, section) in stored.iter().flatten() {
                    for (_, span) in spans_in(black_box(section)) {
                        black_box(span_id_of(span));
                    }
                }
            });
        });
        group.bench_function("memcpy", |b| {
            let mut copy = vec![0; messages.iter().map(Bytes::len).max().unwrap()];
            b.iter(|| {
                for message in &messages {
                    copy[..message.len()].copy_from_slice(black_box(message));
                    black_box(&copy);
                }
            });
        });
        group.bench_function("prost decode", |b| {
            b.iter(|| {
                for message in &messages {
                    black_box(ExportTraceServiceRequest::decode(&message[..]).unwrap());
                }
            });
        });
        let texts: Vec<String> = messages.iter().map(|it| line(it).unwrap()).collect();
        group.bench_function("json_to_protobuf", |b| {
            b.iter(|| {
                for text in &texts {
                    black_box(json_to_protobuf(black_box(text.as_bytes()), usize::MAX).unwrap());
                }
            });
        });
        group.bench_function("serde_json decode", |b| {
            b.iter(|| {
                for text in &texts {
                    let decoded: ExportTraceServiceRequest = serde_json::from_str(text).unwrap();
                    black_box(decoded);
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
