//! What holds for any bytes whatever. The fuzz targets, the replay of their corpora and the
//! property tests all call these.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tailring::model::{FragmentHash, TraceId};
use tailring::net::json::line;
use tailring::wire::{
    Fragments, JsonError, Scan, ScanLimits, json_to_protobuf, protobuf_bytes_max, span_id_of,
    spans_in, split,
};

/// Headers go with every fragment and part; what a hostile message makes of that is its own test.
const GROWTH_MAX: u64 = 64 << 20;

pub(crate) fn scanned(message: &[u8]) -> Option<Scan> {
    let mut scan = Scan::default();
    scan.read(message, &ScanLimits::default()).ok()?;
    Some(scan)
}

/// Each fragment's hash and bytes, in order.
pub(crate) fn fragments_of(message: &[u8], scan: &Scan) -> Vec<(FragmentHash, Vec<u8>)> {
    let mut fragments = Fragments::default();
    fragments.group(message, scan);
    let write = |(index, fragment): (usize, &tailring::wire::Fragment)| {
        let view = fragments.view(message, scan, index);
        let mut out = Vec::new();
        view.write_request_to(&mut out);
        assert_eq!(out.len(), view.request_len());
        (fragment.hash, out)
    };
    fragments.all().iter().enumerate().map(write).collect()
}

/// What is accepted is what prost decodes, with the same spans in it.
pub(crate) fn scan_accepts_only_what_prost_decodes(message: &[u8]) {
    let decoded = ExportTraceServiceRequest::decode(message);
    let Some(scan) = scanned(message) else {
        return;
    };
    let rejected = scan.rejections().total();
    assert_eq!(rejected > 0, scan.rejections().first().is_some());
    assert!(!scan.rejections().to_string().is_empty());
    for entry in scan.spans() {
        let span = Span::decode(entry.bytes(message)).expect("an accepted span decodes");
        assert_eq!(span.trace_id, entry.trace.as_bytes());
        assert_eq!(span.span_id, entry.span.as_bytes());
        assert_eq!(
            entry.is_root,
            span.parent_span_id.iter().all(|&byte| byte == 0)
        );
        assert_eq!(span_id_of(entry.bytes(message)), Some(entry.span));
    }
    match decoded {
        Err(error) => assert!(!scan.is_whole(), "passed on whole, but: {error}"),
        Ok(request) => {
            let scopes = request.resource_spans.iter().flat_map(|it| &it.scope_spans);
            let spans: usize = scopes.map(|it| it.spans.len()).sum();
            assert_eq!(spans, scan.spans().len() + rejected as usize);
        }
    }
}

/// Every fragment is a request of its own that prost decodes, has the spans that it says, and
/// is the one fragment of itself.
pub(crate) fn fragments_are_requests_of_their_own(message: &[u8]) {
    let Some(scan) = scanned(message) else {
        return;
    };
    if scan.split_growth_max(u16::MAX) > GROWTH_MAX {
        return;
    }
    let mut fragments = Fragments::default();
    fragments.group(message, &scan);
    let total: u32 = fragments.all().iter().map(|it| it.spans).sum();
    assert_eq!(total as usize, scan.spans().len());
    for (index, fragment) in fragments.all().iter().enumerate() {
        let view = fragments.view(message, &scan, index);
        let mut span_bytes = 0;
        let mut spans = 0;
        for scope in view.scopes() {
            let mut section = Vec::new();
            scope.write_spans_to(&mut section);
            assert_eq!(section.len(), scope.spans_len);
            span_bytes += section.len();
            spans += spans_in(&section).count();
        }
        assert_eq!(span_bytes, fragment.span_bytes as usize);
        assert_eq!(spans, fragment.spans as usize);
    }
    for (hash, bytes) in fragments_of(message, &scan) {
        ExportTraceServiceRequest::decode(&bytes[..]).expect("a fragment decodes");
        let again = scanned(&bytes).expect("a fragment scans");
        assert!(again.is_whole());
        assert_eq!(fragments_of(&bytes, &again), [(hash, bytes)]);
    }
}

/// `fragment(split(m)) = fragment(m)`, byte for byte, part by part and through a lane that
/// concatenates the parts. The first byte says how many destinations there are.
pub(crate) fn split_keeps_every_fragment(input: &[u8]) {
    let Some((&destinations, message)) = input.split_first() else {
        return;
    };
    let destinations = u16::from(destinations) + 1;
    let Some(scan) = scanned(message) else {
        return;
    };
    if scan.split_growth_max(u16::MAX) > GROWTH_MAX {
        return;
    }
    let message = Bytes::copy_from_slice(message);
    let owner = |trace: TraceId| u16::from(trace.as_bytes()[15]) % destinations;
    let parts = split(&message, &scan, destinations, owner);
    assert!(parts.is_sorted_by(|a, b| a.destination < b.destination));

    let mut expect = fragments_of(&message, &scan);
    let mut found = Vec::new();
    let mut lane = Vec::new();
    for part in &parts {
        assert!(
            part.message.len() as u64 <= message.len() as u64 + scan.split_growth_max(destinations)
        );
        ExportTraceServiceRequest::decode(&part.message[..]).expect("a part decodes");
        let scan = scanned(&part.message).expect("a part scans");
        assert!(scan.is_whole());
        assert_eq!(scan.spans().len(), part.spans as usize);
        assert!(
            scan.spans()
                .iter()
                .all(|span| owner(span.trace) == part.destination)
        );
        found.extend(fragments_of(&part.message, &scan));
        lane.extend_from_slice(&part.message);
    }
    let mut in_lane = match scanned(&lane) {
        Some(scan) => fragments_of(&lane, &scan),
        None => found.clone(), // all parts together may be more spans than one request may have
    };
    expect.sort();
    found.sort();
    in_lane.sort();
    assert_eq!(found, expect);
    assert_eq!(in_lane, expect);
}

/// JSON that is accepted becomes a message that prost decodes (or a scan rejects), no longer than
/// it was said to become, and the same once more when it is written as the Collector writes it.
pub(crate) fn json_becomes_what_prost_decodes(json: &[u8]) {
    let message = match json_to_protobuf(json, usize::MAX) {
        Ok(message) => message,
        Err(JsonError::TooLarge { .. }) => panic!("longer than it was said to become"),
        Err(error @ JsonError::Unreadable { offset, .. }) => {
            assert!(offset <= json.len());
            assert!(error.to_string().len() < 1000, "{error}");
            return;
        }
    };
    assert!(message.len() <= protobuf_bytes_max(json.len()));
    let Ok(written) = line(&message) else {
        let rejects = scanned(&message).is_none_or(|scan| !scan.is_whole());
        assert!(rejects, "passed on whole, but prost does not decode it");
        return;
    };
    // What a line leaves out (IDs of zeros), it leaves out again.
    let again = json_to_protobuf(written.as_bytes(), usize::MAX).expect("our own JSON is read");
    assert_eq!(line(&again).expect("and decoded"), written);
}
