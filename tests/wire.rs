//! `wire` against prost and against a plain oracle, on lawful, strange and broken bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "wire/agents.rs"]
mod agents;
#[path = "wire/bad_input.rs"]
mod bad_input;
#[path = "wire/claims.rs"]
mod claims;
#[path = "wire/json.rs"]
mod json;
#[path = "wire/marks.rs"]
mod marks;
#[path = "wire/noise.rs"]
mod noise;
#[path = "wire/oracle.rs"]
mod oracle;
#[path = "wire/weights.rs"]
mod weights;

use std::collections::HashMap;

use bytes::Bytes;
use claims::{fragments_of, scanned};
use noise::Size;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use proptest::prelude::*;
use prost::Message as _;
use tailring::model::TraceId;
use tailring::wire::{BatchBuilder, Fragments, Scan, ScanLimits, split};
use xxhash_rust::xxh3::xxh3_128;

fn size() -> impl Strategy<Value = Size> {
    (0..5usize, 0..4usize, 0..9usize, 1..12u8, any::<bool>()).prop_map(
        |(resources, scopes, spans, traces, strange)| Size {
            resources,
            scopes,
            spans,
            traces,
            strange,
            wrong: 0,
        },
    )
}

/// Any lawful request.
fn request() -> impl Strategy<Value = Vec<u8>> {
    (any::<u64>(), size()).prop_map(|(seed, size)| noise::request(seed, size))
}

/// (resource, its schema URL, scope, its schema URL, span) as prost sees and writes them.
fn as_prost_sees(message: &[u8]) -> Vec<[Vec<u8>; 5]> {
    let request = ExportTraceServiceRequest::decode(message).unwrap();
    let mut rows = Vec::new();
    for resource in &request.resource_spans {
        for scope in &resource.scope_spans {
            for span in &scope.spans {
                rows.push([
                    resource
                        .resource
                        .clone()
                        .unwrap_or_default()
                        .encode_to_vec(),
                    resource.schema_url.clone().into_bytes(),
                    scope.scope.clone().unwrap_or_default().encode_to_vec(),
                    scope.schema_url.clone().into_bytes(),
                    span.encode_to_vec(),
                ]);
            }
        }
    }
    rows
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<_> = items.into_iter().collect();
    items.sort();
    items
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_span_of_a_lawful_request_is_found_and_accepted(message in request()) {
        let scan = scanned(&message).expect("a lawful request");
        prop_assert!(scan.is_whole(), "{}", scan.rejections());
        let placed = oracle::spans(&message);
        prop_assert_eq!(placed.len(), scan.spans().len());
        for (placed, entry) in placed.iter().zip(scan.spans()) {
            prop_assert_eq!(&placed.span[..], entry.bytes(&message));
        }
        claims::scan_accepts_only_what_prost_decodes(&message);
    }

    #[test]
    fn fragments_are_those_of_the_oracle_byte_for_byte(message in request()) {
        let scan = scanned(&message).unwrap();
        let ours: Vec<_> = fragments_of(&message, &scan).into_iter().map(|(_, bytes)| bytes).collect();
        prop_assert_eq!(ours, oracle::fragments(&message));
        claims::fragments_are_requests_of_their_own(&message);
    }

    #[test]
    fn equal_fragments_and_only_those_have_equal_hashes(message in request(), other in request()) {
        let mut bytes_of = HashMap::new();
        for message in [&message, &other] {
            for (hash, bytes) in fragments_of(message, &scanned(message).unwrap()) {
                prop_assert_eq!(bytes_of.entry(hash).or_insert_with(|| bytes.clone()), &bytes);
            }
        }
    }

    #[test]
    fn any_partition_keeps_every_span_and_all_that_is_said_of_it(
        message in request(), owners in prop::collection::vec(0..10u16, 16), destinations in 10..20u16,
    ) {
        let scan = scanned(&message).unwrap();
        let owner = |trace: &[u8]| owners[usize::from(trace[15]) % owners.len()];
        let shared = Bytes::copy_from_slice(&message);
        let parts = split(&shared, &scan, destinations, |trace| owner(trace.as_bytes()));
        let (mut raw, mut decoded, mut lane) = (Vec::new(), Vec::new(), Vec::new());
        for part in &parts {
            let spans = oracle::spans(&part.message);
            prop_assert_eq!(spans.len(), part.spans as usize);
            prop_assert!(spans.iter().all(|it| owner(&oracle::trace_of(&it.span)) == part.destination));
            raw.extend(spans);
            decoded.extend(as_prost_sees(&part.message));
            lane.extend_from_slice(&part.message);
        }
        prop_assert_eq!(sorted(raw), sorted(oracle::spans(&message)));
        prop_assert_eq!(sorted(decoded), sorted(as_prost_sees(&message)));

        // What queued up in a lane is split once more, for other owners.
        let lane_scan = scanned(&lane).unwrap();
        let expect = sorted(fragments_of(&message, &scan));
        prop_assert_eq!(&sorted(fragments_of(&lane, &lane_scan)), &expect);
        let again = split(&Bytes::from(lane), &lane_scan, 3, |trace| u16::from(trace.as_bytes()[15]) % 3);
        let found = again.iter().flat_map(|part| fragments_of(&part.message, &scanned(&part.message).unwrap()));
        prop_assert_eq!(sorted(found), expect);
    }

    #[test]
    fn split_keeps_fragments_of_whole_lanes(messages in prop::collection::vec(request(), 1..4), count: u8) {
        let input = [vec![count], messages.concat()].concat();
        claims::split_keeps_every_fragment(&input);
    }

    #[test]
    fn a_batch_of_all_fragments_has_every_span_under_its_own_resource_and_scope(
        messages in prop::collection::vec(request(), 1..4),
    ) {
        let mut batch = BatchBuilder::default();
        let mut expect = Vec::new();
        for message in &messages {
            let scan = scanned(message).unwrap();
            let mut fragments = Fragments::default();
            fragments.group(message, &scan);
            for index in 0..fragments.all().len() {
                let view = fragments.view(message, &scan, index);
                let mut resource = Vec::new();
                view.resource().write_to(&mut resource);
                prop_assert_eq!(resource.len(), view.resource().len());
                for scope in view.scopes() {
                    let (mut header, mut section) = (Vec::new(), Vec::new());
                    scope.header.write_to(&mut header);
                    scope.write_spans_to(&mut section);
                    batch.add(&resource, &header, section.into(), &weights::none());
                }
            }
            expect.extend(oracle::spans(message));
        }
        prop_assert_eq!(batch.is_empty(), expect.is_empty());
        let len = batch.encoded_len();
        let mut out = vec![0; len];
        batch.write_to(&mut out);
        prop_assert_eq!(out.len(), len);
        let found = oracle::spans(&out);
        // Grouped: no two resources alike, no two scopes of one resource alike.
        let mut resources: Vec<_> = found.iter().map(|it| &it.resource_header).collect();
        resources.dedup();
        let distinct = sorted(resources.iter().copied());
        prop_assert!(distinct.is_sorted_by(|a, b| a < b));
        let mut scopes: Vec<_> = found.iter().map(|it| (&it.resource_header, &it.scope_header)).collect();
        scopes.dedup();
        prop_assert!(sorted(scopes).is_sorted_by(|a, b| a < b));
        prop_assert_eq!(sorted(found), sorted(expect));
    }

    #[test]
    fn what_is_accepted_of_wrong_values_decodes(seed: u64, size in size(), wrong in 1..60u32) {
        let message = noise::request(seed, Size { wrong, ..size });
        claims::scan_accepts_only_what_prost_decodes(&message);
        claims::fragments_are_requests_of_their_own(&message);
        claims::split_keeps_every_fragment(&[&[3], &message[..]].concat());
    }

    #[test]
    fn what_is_accepted_of_garbage_decodes(message in prop::collection::vec(any::<u8>(), 0..200)) {
        claims::scan_accepts_only_what_prost_decodes(&message);
        claims::split_keeps_every_fragment(&message);
    }
}

#[test]
fn one_scan_reads_message_after_message() {
    let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
    for seed in 0..200 {
        let wrong = if seed % 3 == 0 { 20 } else { 0 };
        let size = Size {
            resources: 4,
            scopes: 3,
            spans: 6,
            traces: 5,
            strange: true,
            wrong,
        };
        let message = noise::request(seed, size);
        let fresh = scanned(&message);
        let read = scan.read(&message, &ScanLimits::default());
        assert_eq!(read.is_ok(), fresh.is_some());
        let Some(fresh) = fresh else {
            assert!(scan.spans().is_empty());
            continue;
        };
        assert_eq!(scan.spans(), fresh.spans());
        assert_eq!(scan.rejections(), fresh.rejections());
        fragments.group(&message, &scan);
        let hashes: Vec<_> = fragments.all().iter().map(|it| it.hash).collect();
        let expect: Vec<_> = fragments_of(&message, &fresh)
            .into_iter()
            .map(|(hash, _)| hash)
            .collect();
        assert_eq!(hashes, expect);
    }
}

#[test]
fn a_warm_scan_allocates_nothing_for_messages_like_the_last() {
    let message = agents::batch(agents::Shape::Agent, 512, 1).encode_to_vec();
    let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
    let mut heap = Vec::new();
    for _ in 0..3 {
        scan.read(&message, &ScanLimits::default()).unwrap();
        fragments.group(&message, &scan);
        heap.push((
            scan.heap_bytes(),
            fragments.heap_bytes(),
            scan.spans().as_ptr(),
        ));
    }
    assert_eq!(heap[0], heap[1]);
    assert_eq!(heap[1], heap[2]);
}

#[test]
fn a_message_for_one_owner_is_passed_on_and_not_copied() {
    let message = Bytes::from(agents::batch(agents::Shape::Agent, 64, 1).encode_to_vec());
    let scan = scanned(&message).unwrap();
    let parts = split(&message, &scan, 5, |_| 3);
    assert_eq!(parts.len(), 1);
    assert_eq!((parts[0].destination, parts[0].spans), (3, 64));
    assert_eq!(parts[0].message.as_ptr(), message.as_ptr());
    assert_eq!(parts[0].message.len(), message.len());
}

#[test]
fn the_owner_of_a_run_of_equal_traces_is_asked_once() {
    let message = Bytes::from(agents::batch(agents::Shape::Agent, 512, 1).encode_to_vec());
    let scan = scanned(&message).unwrap();
    let runs = scan.spans().chunk_by(|a, b| a.trace == b.trace).count();
    let mut asked = 0;
    split(&message, &scan, 2, |trace| {
        asked += 1;
        u16::from(trace.as_bytes()[0] & 1)
    });
    assert!(runs < 512);
    assert_eq!(asked, runs);
}

#[test]
fn an_owner_out_of_range_costs_no_span() {
    let message = Bytes::from(agents::batch(agents::Shape::Micro, 50, 1).encode_to_vec());
    let scan = scanned(&message).unwrap();
    let parts = split(&message, &scan, 1, |trace| u16::from(trace.as_bytes()[0]));
    assert_eq!(parts.iter().map(|part| part.spans).sum::<u32>(), 50);
}

#[test]
fn one_changed_byte_changes_the_hash_of_its_fragment_and_of_no_other() {
    let message = agents::batch(agents::Shape::Agent, 24, 7).encode_to_vec();
    let before = fragments_of(&message, &scanned(&message).unwrap());
    let mut changed_once = 0;
    for at in 0..message.len() {
        let mut message = message.clone();
        message[at] ^= 1;
        let Some(scan) = scanned(&message).filter(Scan::is_whole) else {
            continue;
        };
        let after = fragments_of(&message, &scan);
        assert_ne!(before, after);
        for (hash, bytes) in &after {
            let same_bytes = before.iter().any(|(_, it)| it == bytes);
            assert_eq!(
                same_bytes,
                before.iter().any(|(it, _)| it == hash),
                "byte {at}"
            );
        }
        changed_once += 1;
    }
    assert!(changed_once > message.len() / 2);
}

/// Two scopes of one resource, two traces; written out so that no generator can change it.
#[rustfmt::skip]
fn written_out() -> Vec<u8> {
    let span = |trace: u8, span: u8| {
        [&[0x12, 28, 0x0A, 16][..], &[trace; 16], &[0x12, 8], &[span; 8]].concat()
    };
    let scopes = [
        &[0x12, 93, 0x1A, 1, b's'][..], &span(1, 1), &span(2, 2), &span(1, 3),
        &[0x12, 30], &span(1, 4),
    ].concat();
    [&[0x0A, (4 + scopes.len()) as u8, 0x01, 0x0A, 0, 0x1A, 0][..], &scopes].concat()
}

#[test]
fn the_hash_of_a_fragment_never_changes() {
    // A retry is recognised between workers of different versions: this is a contract.
    let message = written_out();
    let found = fragments_of(&message, &scanned(&message).unwrap());
    let found: Vec<_> = found.iter().map(|(hash, _)| format!("{hash:?}")).collect();
    assert_eq!(found, GOLDEN);

    // The same from the words at `Fragments::finish`.
    let hash = |bytes: &[u8]| xxh3_128(bytes).to_le_bytes().to_vec();
    let span = |trace: u8, span: u8| {
        hash(&[&[0x0A, 16][..], &[trace; 16], &[0x12, 8], &[span; 8]].concat())
    };
    let resource = hash(&[0x0A, 0, 0x1A, 0]);
    let scopes = [hash(&[0x1A, 1, b's']), hash(&[])];
    let first = [
        vec![1; 16],
        resource.clone(),
        scopes[0].clone(),
        vec![2, 0, 0, 0],
        span(1, 1),
        span(1, 3),
        scopes[1].clone(),
        vec![1, 0, 0, 0],
        span(1, 4),
    ];
    let second = [
        vec![2; 16],
        resource,
        scopes[0].clone(),
        vec![1, 0, 0, 0],
        span(2, 2),
    ];
    let again = [first.concat(), second.concat()].map(|it| format!("{:032x}", xxh3_128(&it)));
    assert_eq!(again, GOLDEN);
}

const GOLDEN: [&str; 2] = [
    "d8205873cef8ba65851a2141669f6b73",
    "0475ec843a03cb03f928ce3f6d682099",
];

#[test]
fn trace_ids_that_differ_in_one_byte_are_different_fragments() {
    let mut request = agents::batch(agents::Shape::Micro, 17, 1);
    request.resource_spans.truncate(1);
    let scope = &mut request.resource_spans[0].scope_spans[0];
    let span = scope.spans[0].clone();
    scope.spans = (0..16)
        .map(|at| {
            let mut span = span.clone();
            span.trace_id[at] ^= 0x40;
            span
        })
        .collect();
    request.resource_spans[0].scope_spans.truncate(1);
    let message = request.encode_to_vec();
    let scan = scanned(&message).unwrap();
    let mut fragments = Fragments::default();
    fragments.group(&message, &scan);
    assert_eq!(fragments.all().len(), 16);
    let trace: [u8; 16] = scope_trace(&message, 3);
    assert_eq!(fragments.all()[3].trace, TraceId::new(trace).unwrap());
}

fn scope_trace(message: &[u8], index: usize) -> [u8; 16] {
    oracle::trace_of(&oracle::spans(message)[index].span)
        .try_into()
        .unwrap()
}

/// The seeds of `fuzz/corpus` go through the claims that the fuzz targets make.
#[test]
fn the_fuzz_corpora_hold() {
    let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    type Claim = fn(&[u8]);
    let targets: [(&str, Claim); 4] = [
        ("scan", claims::scan_accepts_only_what_prost_decodes),
        ("fragment", claims::fragments_are_requests_of_their_own),
        ("split", claims::split_keeps_every_fragment),
        ("json", claims::json_becomes_what_prost_decodes),
    ];
    for (target, claim) in targets {
        let mut files = 0;
        for entry in std::fs::read_dir(corpora.join(target)).unwrap() {
            claim(&std::fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 8, "the corpus of {target} is gone");
    }
}

#[test]
#[ignore = "writes the seeds of the fuzz corpora"]
fn write_seeds() {
    let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let strange = Size {
        resources: 3,
        scopes: 3,
        spans: 5,
        traces: 4,
        strange: true,
        wrong: 0,
    };
    let wrong = Size {
        wrong: 30,
        ..strange
    };
    let agent = |spans, seed| agents::batch(agents::Shape::Agent, spans, seed).encode_to_vec();
    let like = |size, index| {
        let messages = (0..).map(|seed| noise::request(seed, size));
        messages.filter(|it| it.len() > 1500).nth(index).unwrap()
    };
    let seeds = [
        ("agent-3", agent(3, 1)),
        ("agent-24", agent(24, 2)),
        (
            "micro-12",
            agents::batch(agents::Shape::Micro, 12, 3).encode_to_vec(),
        ),
        ("empty", Vec::new()),
        ("empty-envelopes", vec![0x0A, 4, 0x12, 2, 0x12, 0]),
        ("strange-1", like(strange, 0)),
        ("strange-2", like(strange, 1)),
        ("strange-3", like(strange, 2)),
        ("wrong-1", like(wrong, 3)),
        ("wrong-2", like(wrong, 4)),
        ("nested", bad_input::nested_arrays(60)),
    ];
    for (name, seed) in json::seeds() {
        std::fs::create_dir_all(corpora.join("json")).unwrap();
        std::fs::write(corpora.join("json").join(name), seed).unwrap();
    }
    for target in ["scan", "fragment", "split"] {
        std::fs::create_dir_all(corpora.join(target)).unwrap();
        for (name, seed) in &seeds {
            // A split begins with the number of its destinations.
            let seed = if target == "split" {
                [&[3], &seed[..]].concat()
            } else {
                seed.clone()
            };
            std::fs::write(corpora.join(target).join(name), seed).unwrap();
        }
    }
}
