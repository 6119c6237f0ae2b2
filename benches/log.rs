//! The log's hot paths: encoding 512-span agent batches (beside a plain copy of the same bytes),
//! appending them to a real file, and reading traces back.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that fails may as well stop"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use tailring::log::{DiskOp, RealDisk, Space, SpaceConfig, Volume, Writer, recover};
use tailring::model::Extent;
use tailring::model::Moment;
use tailring::wire::{Fragments, Scan, ScanLimits};

const SPANS: u64 = 512;
/// Traces that one batch interleaves.
const TRACES: u64 = 40;
const CONFIG: SpaceConfig = SpaceConfig {
    segment_bytes: 64 << 20,
    log_max_bytes: 1 << 40,
    shards: 1,
};

fn attribute(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value)),
        }),
        ..KeyValue::default()
    }
}

/// Some 416 bytes a span, as the agent load has.
fn span(batch: u64, n: u64) -> Span {
    let trace = batch * TRACES + n % TRACES + 1;
    Span {
        trace_id: [7, trace].map(u64::to_be_bytes).concat(),
        span_id: (n + 1).to_be_bytes().to_vec(),
        parent_span_id: 9_u64.to_be_bytes().to_vec(),
        name: "tool.execute".to_owned(),
        start_time_unix_nano: n,
        end_time_unix_nano: n + 1,
        attributes: vec![
            attribute("gen_ai.operation.name", "execute_tool".to_owned()),
            attribute("gen_ai.tool.call.id", format!("call_{n:032}")),
            attribute("gen_ai.conversation.id", format!("conv_{trace:032}")),
            attribute("tool.arguments", "x".repeat(150)),
        ],
        ..Span::default()
    }
}

fn batch(number: u64) -> Vec<u8> {
    let scope = |scope: u64| ScopeSpans {
        scope: Some(InstrumentationScope {
            name: format!("scope-{scope}"),
            ..InstrumentationScope::default()
        }),
        spans: (0..SPANS)
            .filter(|n| n / TRACES % 3 == scope)
            .map(|n| span(number, n))
            .collect(),
        schema_url: String::new(),
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![
                    attribute("service.name", "agent".to_owned()),
                    attribute("k8s.pod.name", "agent-7d9c5b6f4-x2x9z".to_owned()),
                    attribute("host.name", "node-17.example".to_owned()),
                ],
                ..Resource::default()
            }),
            scope_spans: (0..3).map(scope).collect(),
            schema_url: String::new(),
        }],
    };
    request.encode_to_vec()
}

fn append(writer: &mut Writer, message: &[u8], scan: &Scan, fragments: &Fragments) -> Vec<Extent> {
    (0..fragments.all().len())
        .map(|index| {
            let view = fragments.view(message, scan, index);
            writer.fragment(&view, Moment::from_unix_millis(1), None)
        })
        .collect()
}

fn real_disk() -> (tempfile::TempDir, RealDisk) {
    let target = env!("CARGO_TARGET_TMPDIR");
    let dir = tempfile::tempdir_in(target).unwrap();
    let disk = RealDisk {
        dir: dir.path().to_path_buf(),
    };
    (dir, disk)
}

fn log(criterion: &mut Criterion) {
    let message = batch(0);
    let mut scan = Scan::default();
    scan.read(&message, &ScanLimits::default()).unwrap();
    let mut fragments = Fragments::default();
    fragments.group(&message, &scan);

    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Elements(SPANS));

    group.bench_function("memcpy", |bench| {
        let mut copy = Vec::with_capacity(message.len());
        bench.iter(|| {
            copy.clear();
            copy.extend_from_slice(black_box(&message));
            black_box(copy.len())
        });
    });

    group.bench_function("encode", |bench| {
        let space = Space::new(CONFIG);
        let mut writer = Writer::new(0, Arc::clone(&space), 1);
        bench.iter(|| {
            let extents = append(&mut writer, &message, &scan, &fragments);
            space.release(extents);
            for op in writer.take() {
                if let DiskOp::Write { bytes, .. } = op {
                    writer.recycle(bytes);
                }
            }
            space.take_freed(0)
        });
    });

    group.bench_function("append", |bench| {
        let (_dir, disk) = real_disk();
        let volume = Volume::new(disk);
        let space = Space::new(CONFIG);
        recover(&volume, &space, &mut |_| {}).unwrap();
        let mut writer = Writer::new(0, Arc::clone(&space), 1);
        bench.iter(|| {
            let extents = append(&mut writer, &message, &scan, &fragments);
            space.release(extents);
            let freed = space.take_freed(0).into_iter();
            let unlinks = freed.map(|segment| DiskOp::Unlink { segment });
            for op in writer.take().into_iter().chain(unlinks) {
                if let Some(buffer) = volume.apply(op).unwrap() {
                    writer.recycle(buffer);
                }
            }
        });
    });

    group.bench_function("read", |bench| {
        let (_dir, disk) = real_disk();
        let volume = Volume::new(disk);
        let mut writer = Writer::new(0, Space::new(CONFIG), 1);
        let mut batches = Vec::new();
        for number in 0..200 {
            let message = batch(number);
            scan.read(&message, &ScanLimits::default()).unwrap();
            fragments.group(&message, &scan);
            batches.push(append(&mut writer, &message, &scan, &fragments));
        }
        for op in writer.take() {
            volume.apply(op).unwrap();
        }
        let mut next = 0;
        bench.iter(|| {
            next = (next + 77) % batches.len();
            volume.read(black_box(&batches[next])).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, log);
criterion_main!(benches);
