//! What a lookup costs on the hot path, and what a change of the ring costs beside it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic ends the bench and says why"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tailring::model::{Member, TraceId};
use tailring::ring::{Seed, Table};

/// Enough that neither the IDs nor the branches of a lookup are remembered.
const TRACES: usize = 4_096;

fn workers(count: usize) -> Vec<Member> {
    let name = |n| format!("worker-{n}.tail.obs.svc.cluster.local");
    let members = (0..count).map(|n| Member::parse(&name(n)).expect("a legal name"));
    members.collect()
}

fn table(count: usize) -> Table {
    Table::build(workers(count), Seed::from_secret(b"bench"), "bench")
}

fn traces() -> Vec<TraceId> {
    // An odd multiplier makes distinct IDs that look random.
    let id = |n: u128| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let traces = (1..=TRACES as u128).map(|n| TraceId::new(id(n).to_be_bytes()));
    traces.map(|trace| trace.expect("not zero")).collect()
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/lookup");
    group.throughput(Throughput::Elements(TRACES as u64));
    let traces = traces();
    for count in [3, 10, 100] {
        let table = table(count);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                for trace in &traces {
                    black_box(table.owner_index(*trace));
                }
            });
        });
    }
    group.finish();
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/build");
    group.sample_size(10);
    for count in [3, 10, 100, 1000] {
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| table(count));
        });
    }
    group.finish();
}

/// Building the ring of the surrogates when one worker is away.
fn without(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/without");
    group.sample_size(10);
    for count in [3, 10, 100] {
        let table = table(count);
        let gone = [table.members()[count / 2].clone()];
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| table.without(&gone));
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, build, without);
criterion_main!(benches);
