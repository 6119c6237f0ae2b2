//! The load is what it says: shapes within their documented ranges, whole and legal traces, the
//! same for the same seed.

use std::collections::{HashMap, HashSet};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tailring::app::load::{Batch, Generator, GeneratorPlan, Shape};
use tailring::model::{Moment, Randomness};

const NOW: Moment = Moment {
    unix_nanos: 1_800_000_000_000_000_000,
};

fn plan(shape: Shape, seed: u64) -> GeneratorPlan {
    GeneratorPlan {
        shape,
        seed,
        batch_spans: 512,
        cells: 3,
    }
}

fn generate(plan: GeneratorPlan, batches: usize) -> Vec<Batch> {
    let mut generator = Generator::new(plan);
    (0..batches)
        .map(|_| generator.next_batch(NOW).unwrap())
        .collect()
}

/// Everything of a run of `batches` and the drain after it.
fn generate_whole(plan: GeneratorPlan, batches: usize) -> Vec<Batch> {
    let mut generator = Generator::new(plan);
    let mut all: Vec<_> = (0..batches)
        .map(|_| generator.next_batch(NOW).unwrap())
        .collect();
    generator.drain();
    all.extend(std::iter::from_fn(|| generator.next_batch(NOW)));
    all
}

fn decode(batch: &Batch) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(batch.message.clone()).unwrap()
}

fn spans(request: &ExportTraceServiceRequest) -> impl Iterator<Item = &Span> {
    request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| &scope.spans)
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    let found = span.attributes.iter().find(|found| found.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

#[derive(Debug)]
struct Statistics {
    span_bytes: f64,
    message_bytes: f64,
    traces: f64,
    resources: f64,
    scopes: f64,
    attributes: f64,
    resource_bytes: f64,
}

fn measure(shape: Shape, seed: u64) -> Statistics {
    // The first batches of a cell only begin traces; measure the steady state.
    let batches = &generate(plan(shape, seed), 190)[30..];
    let mut sum = Statistics {
        span_bytes: 0.0,
        message_bytes: 0.0,
        traces: 0.0,
        resources: 0.0,
        scopes: 0.0,
        attributes: 0.0,
        resource_bytes: 0.0,
    };
    let count = batches.len() as f64;
    for batch in batches {
        let request = decode(batch);
        let traces: HashSet<_> = batch.spans.iter().map(|key| key.trace).collect();
        let scopes = request.resource_spans.iter().map(|r| r.scope_spans.len());
        let resources = request.resource_spans.len() as f64;
        let resource_bytes = request.resource_spans.iter();
        let resource_bytes = resource_bytes.map(|r| r.resource.as_ref().unwrap().encoded_len());
        let attributes = spans(&request).map(|span| span.attributes.len());
        sum.span_bytes += batch.message.len() as f64 / 512.0 / count;
        sum.message_bytes += batch.message.len() as f64 / count;
        sum.traces += traces.len() as f64 / count;
        sum.resources += resources / count;
        sum.scopes += scopes.sum::<usize>() as f64 / count;
        sum.attributes += attributes.sum::<usize>() as f64 / 512.0 / count;
        sum.resource_bytes += resource_bytes.sum::<usize>() as f64 / resources / count;
    }
    sum
}

#[track_caller]
fn assert_within(what: &str, value: f64, from: f64, to: f64) {
    assert!(
        (from..=to).contains(&value),
        "{what}: {value} not in {from}..={to}"
    );
}

#[test]
fn agent_batches_weigh_what_the_measured_workload_weighed() {
    for seed in [1, 42, 977] {
        let found = measure(Shape::Agent, seed);
        println!("{found:?}");
        assert_within("bytes a span", found.span_bytes, 400.0, 430.0);
        assert_within("bytes a request", found.message_bytes, 205e3, 220e3);
        assert_within("traces a request", found.traces, 38.0, 44.0);
        assert_within("resources a request", found.resources, 2.05, 2.35);
        assert_within("scopes a request", found.scopes, 3.7, 4.4);
        assert_within("attributes a span", found.attributes, 7.6, 8.3);
        assert_within("bytes of a resource", found.resource_bytes, 485.0, 530.0);
    }
}

#[test]
fn micro_batches_weigh_what_the_measured_workload_weighed() {
    for seed in [1, 42, 977] {
        let found = measure(Shape::Micro, seed);
        println!("{found:?}");
        assert_within("bytes a span", found.span_bytes, 330.0, 356.0);
        assert_within("traces a request", found.traces, 200.0, 230.0);
        assert_within("resources a request", found.resources, 2.2, 2.8);
        assert_within("attributes a span", found.attributes, 6.6, 7.6);
    }
}

/// Spans of each trace in the order they were sent.
fn traces(batches: &[Batch]) -> HashMap<Vec<u8>, Vec<Span>> {
    let mut traces: HashMap<Vec<u8>, Vec<Span>> = HashMap::new();
    for batch in batches {
        let request = decode(batch);
        let mut by_key: HashMap<_, _> = spans(&request)
            .map(|span| ((span.trace_id.clone(), span.span_id.clone()), span.clone()))
            .collect();
        assert_eq!(by_key.len(), batch.spans.len(), "as many as the list says");
        // The list has the order in which spans ended; the message is grouped by resource.
        for key in &batch.spans {
            let key = (key.trace.as_bytes().to_vec(), key.span.as_bytes().to_vec());
            let span = by_key.remove(&key).expect("a listed span is in the bytes");
            traces.entry(key.0).or_default().push(span);
        }
    }
    traces
}

#[test]
fn every_trace_is_one_whole_tree_with_unique_ids_whose_root_is_sent_last() {
    for shape in [Shape::Agent, Shape::Fleet, Shape::Micro] {
        let batches = generate_whole(plan(shape, 5), 60);
        let traces = traces(&batches);
        assert!(traces.len() > 300);
        for spans in traces.values() {
            let ids: HashSet<_> = spans.iter().map(|span| &span.span_id).collect();
            assert_eq!(ids.len(), spans.len());
            let (root, children) = spans.split_last().unwrap();
            assert!(root.parent_span_id.is_empty());
            let places: HashMap<_, _> = spans
                .iter()
                .enumerate()
                .map(|(place, span)| (&span.span_id, place))
                .collect();
            for (place, child) in children.iter().enumerate() {
                let parent = places[&child.parent_span_id];
                assert!(parent > place, "a child ends before its parent");
                let parent = &spans[parent];
                assert!(parent.start_time_unix_nano <= child.start_time_unix_nano);
                assert!(child.start_time_unix_nano < child.end_time_unix_nano);
                assert!(child.end_time_unix_nano <= parent.end_time_unix_nano);
            }
            assert_eq!(root.end_time_unix_nano, NOW.unix_nanos);
            for event in spans.iter().flat_map(|span| &span.events) {
                assert!(event.time_unix_nano < NOW.unix_nanos);
                assert!(event.time_unix_nano > NOW.unix_nanos - 600_000_000_000);
            }
        }
    }
}

#[test]
fn agent_turns_have_60_to_120_spans_and_80_in_the_mean() {
    let batches = generate_whole(plan(Shape::Agent, 3), 600);
    let traces = traces(&batches);
    let sizes: Vec<_> = traces.values().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| (60..=120).contains(size)));
    let mean = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
    assert_within("spans a turn", mean, 77.0, 83.0);
    let mut tenants = HashSet::new();
    for spans in traces.values() {
        let root = spans.last().unwrap();
        assert_eq!(root.name, "agent.turn");
        assert!(attribute(root, "gen_ai.conversation.id").is_some());
        let Some(Value::StringValue(tenant)) = attribute(root, "tenant.id") else {
            panic!("no tenant on a root");
        };
        tenants.insert(tenant.clone());
        for name in ["chat ", "tool.execute", "tools/call "] {
            assert!(
                spans.iter().any(|span| span.name.starts_with(name)),
                "{name}"
            );
        }
    }
    assert!(tenants.len() >= 8, "{tenants:?}");
}

#[test]
fn three_fleet_turns_in_a_hundred_are_broken_in_three_ways() {
    let batches = generate_whole(plan(Shape::Fleet, 11), 500);
    let traces = traces(&batches);
    let mut errors = 0;
    let mut cut_off = 0;
    let mut slow = 0;
    let mut short = 0;
    for spans in traces.values() {
        let root = spans.last().unwrap();
        let failed = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == 2);
        let cut = spans.iter().any(|span| {
            matches!(
                attribute(span, "gen_ai.response.finish_reasons"),
                Some(Value::ArrayValue(reasons))
                    if reasons.values[0].value == Some(Value::StringValue("MAX_TOKENS".into()))
            )
        });
        if failed(root) {
            assert!(spans.iter().filter(|span| failed(span)).count() >= 2);
            errors += 1;
        }
        if cut {
            let tools = spans.iter().filter(|span| span.name == "tool.execute");
            assert!(tools.count() >= 15, "a long tool loop");
            cut_off += 1;
        }
        let nanos = root.end_time_unix_nano - root.start_time_unix_nano;
        slow += usize::from(nanos == 47_000_000_000);
        short += usize::from((8..=18).contains(&spans.len()));
        assert!((8..=120).contains(&spans.len()));
    }
    let share = |count: usize| count as f64 / traces.len() as f64 * 100.0;
    println!("{} {errors} {cut_off} {slow} {short}", traces.len());
    assert_within("% errors", share(errors), 0.6, 1.4);
    assert_within("% cut off", share(cut_off), 0.6, 1.4);
    assert_within("% slow", share(slow), 0.6, 1.4);
    assert_within("% short", share(short), 87.0, 91.0);
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_seed_others() {
    let bytes = |seed| -> Vec<_> {
        let batches = generate_whole(plan(Shape::Fleet, seed), 8);
        batches.into_iter().map(|batch| batch.message).collect()
    };
    assert_eq!(bytes(1), bytes(1));
    let traces = |seed| -> HashSet<_> {
        let batches = generate_whole(plan(Shape::Fleet, seed), 8);
        batches
            .iter()
            .flat_map(|b| b.spans.iter().map(|key| key.trace))
            .collect()
    };
    assert!(traces(1).is_disjoint(&traces(2)));
}

#[test]
fn the_low_56_bits_of_trace_ids_are_uniform() {
    let batches = generate_whole(plan(Shape::Micro, 9), 400);
    let traces: HashSet<_> = batches
        .iter()
        .flat_map(|batch| batch.spans.iter().map(|key| key.trace))
        .collect();
    // Each of the 56 bits is set in half of the IDs: six standard deviations.
    let slack = 6.0 * (traces.len() as f64 * 0.25).sqrt();
    for bit in 0..56 {
        let set = traces
            .iter()
            .filter(|trace| Randomness::of(**trace).bits() >> bit & 1 == 1)
            .count() as f64;
        let half = traces.len() as f64 / 2.0;
        assert!(
            (set - half).abs() < slack,
            "bit {bit}: {set} of {}",
            traces.len()
        );
    }
}
