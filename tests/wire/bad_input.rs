//! Input that no honest client sends: each piece of it is refused for its own reason.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tailring::wire::{Fragments, RejectReason, Scan, ScanError, ScanLimits, split};

use crate::agents::{Shape, batch};
use crate::claims;

const TRACE: [u8; 16] = *b"0123456789abcdef";
const SPAN: [u8; 8] = *b"01234567";

fn put(tag: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = tag.to_vec();
    prost::encoding::encode_varint(body.len() as u64, &mut out);
    out.extend_from_slice(body);
    out
}

/// Numbers of a message's fields and their wire types.
type Fields = &'static [(u8, u8)];

/// A request of one span with `fields` behind its IDs.
fn with_span(fields: &[u8]) -> Vec<u8> {
    let span = [&put(&[0x0A], &TRACE)[..], &put(&[0x12], &SPAN), fields].concat();
    put(&[0x0A], &put(&[0x12], &put(&[0x12], &span)))
}

fn with_attribute_value(value: &[u8]) -> Vec<u8> {
    with_span(&put(
        &[0x4A],
        &[put(&[0x0A], b"key"), put(&[0x12], value)].concat(),
    ))
}

/// A span whose attribute is an array in an array in an array, so many `levels` deep.
pub(crate) fn nested_arrays(levels: usize) -> Vec<u8> {
    let mut value = vec![0x10, 1];
    for _ in 0..levels {
        value = put(&[0x2A], &put(&[0x0A], &value));
    }
    with_attribute_value(&value)
}

fn nested_lists(levels: usize) -> Vec<u8> {
    let mut value = vec![0x10, 1];
    for _ in 0..levels {
        value = put(&[0x32], &put(&[0x0A], &put(&[0x12], &value)));
    }
    with_attribute_value(&value)
}

fn read(message: &[u8]) -> Result<Scan, ScanError> {
    let mut scan = Scan::default();
    scan.read(message, &ScanLimits::default())?;
    claims::scan_accepts_only_what_prost_decodes(message);
    Ok(scan)
}

/// The reason for which all spans of `message` are rejected; `None` if none is.
fn check_rejected(message: &[u8], reason: Option<RejectReason>, what: &str) {
    let scan = read(message).unwrap_or_else(|error| panic!("{what}: {error}"));
    let count = reason.map_or(0, |reason| scan.rejections().count(reason));
    assert_eq!(
        scan.rejections().total(),
        count,
        "{what}: {}",
        scan.rejections()
    );
    assert_eq!(
        scan.rejections().first().map(|it| it.reason),
        reason,
        "{what}"
    );
    if reason.is_some() {
        assert!(scan.spans().is_empty(), "{what}");
    }
}

#[test]
fn ids_of_illegal_length_or_zero_reject_their_span() {
    use RejectReason::{SpanIdLength, SpanIdZero, TraceIdLength, TraceIdZero};
    let id = |tag, len, byte| put(&[tag], &vec![byte; len]);
    let rows = [
        ("short trace ID", id(0x0A, 15, 1), Some(TraceIdLength)),
        ("long trace ID", id(0x0A, 17, 1), Some(TraceIdLength)),
        ("no trace ID", id(0x0A, 0, 1), Some(TraceIdLength)),
        ("zero trace ID", id(0x0A, 16, 0), Some(TraceIdZero)),
        ("short span ID", id(0x12, 7, 1), Some(SpanIdLength)),
        ("long span ID", id(0x12, 9, 1), Some(SpanIdLength)),
        ("no span ID", id(0x12, 0, 1), Some(SpanIdLength)),
        ("zero span ID", id(0x12, 8, 0), Some(SpanIdZero)),
        ("no parent", id(0x22, 0, 1), None),
        ("zero parent", id(0x22, 8, 0), None),
        ("parent", id(0x22, 8, 1), None),
        ("short parent", id(0x22, 7, 1), Some(SpanIdLength)),
        ("long parent", id(0x22, 16, 1), Some(SpanIdLength)),
        (
            "last trace ID wins",
            [id(0x0A, 16, 0), id(0x0A, 16, 1)].concat(),
            None,
        ),
        (
            "link",
            put(&[0x6A], &[id(0x0A, 16, 0), id(0x12, 8, 0)].concat()),
            None,
        ),
        ("empty link", put(&[0x6A], &[]), None),
        (
            "short trace ID of a link",
            put(&[0x6A], &id(0x0A, 15, 1)),
            Some(TraceIdLength),
        ),
        (
            "short span ID of a link",
            put(&[0x6A], &id(0x12, 7, 1)),
            Some(SpanIdLength),
        ),
    ];
    for (what, fields, reason) in rows {
        check_rejected(&with_span(&fields), reason, what);
    }
    let bare = put(&[0x0A], &put(&[0x12], &put(&[0x12], &[])));
    check_rejected(&bare, Some(TraceIdLength), "an empty span");
}

#[test]
fn a_span_is_a_root_if_it_has_no_parent_or_a_zero_one() {
    for (fields, is_root) in [
        (vec![], true),
        (put(&[0x22], &[]), true),
        (put(&[0x22], &[0; 8]), true),
        (put(&[0x22], &[1; 8]), false),
        (
            [put(&[0x22], &[1; 8]), put(&[0x22], &[0; 8])].concat(),
            true,
        ),
    ] {
        assert_eq!(
            read(&with_span(&fields)).unwrap().spans()[0].is_root,
            is_root
        );
    }
}

#[test]
fn invalid_utf8_in_any_string_rejects_what_it_stands_in() {
    for bad in [
        &b"\xff"[..],
        b"abcdefgh\xC3",
        b"\xE2\x82",
        &[b'a'; 200],
        b"0123456789\xED\xA0\x80",
    ] {
        let long = [bad, &[0xFF]].concat(); // none of them is valid with this behind it
        let string = |tag: u8| put(&[tag], &long);
        let value = |inner: Vec<u8>| put(&[0x12], &inner);
        let pair = |tag: u8| {
            put(
                &[tag],
                &[put(&[0x0A], b"key"), value(string(0x0A))].concat(),
            )
        };
        let rows = [
            ("name", with_span(&string(0x2A))),
            ("trace state", with_span(&string(0x1A))),
            ("key", with_span(&put(&[0x4A], &string(0x0A)))),
            ("value", with_span(&pair(0x4A))),
            (
                "array",
                with_attribute_value(&put(&[0x2A], &put(&[0x0A], &string(0x0A)))),
            ),
            ("list", with_attribute_value(&put(&[0x32], &pair(0x0A)))),
            (
                "key in a list",
                with_attribute_value(&put(&[0x32], &put(&[0x0A], &string(0x0A)))),
            ),
            ("event", with_span(&put(&[0x5A], &string(0x12)))),
            ("event's attribute", with_span(&put(&[0x5A], &pair(0x1A)))),
            (
                "link's trace state",
                with_span(&put(&[0x6A], &string(0x1A))),
            ),
            ("link's attribute", with_span(&put(&[0x6A], &pair(0x22)))),
            ("status", with_span(&put(&[0x7A], &string(0x12)))),
            ("resource schema URL", above_span(&[], &string(0x1A))),
            (
                "resource attribute",
                above_span(&[], &put(&[0x0A], &pair(0x0A))),
            ),
            (
                "entity",
                above_span(&[], &put(&[0x0A], &put(&[0x1A], &string(0x1A)))),
            ),
            ("scope schema URL", above_span(&string(0x1A), &[])),
            ("scope name", above_span(&put(&[0x0A], &string(0x0A)), &[])),
            (
                "scope version",
                above_span(&put(&[0x0A], &string(0x12)), &[]),
            ),
            (
                "scope attribute",
                above_span(&put(&[0x0A], &pair(0x1A)), &[]),
            ),
        ];
        for (what, message) in rows {
            assert!(
                ExportTraceServiceRequest::decode(&message[..]).is_err(),
                "{what}"
            );
            check_rejected(&message, Some(RejectReason::InvalidUtf8), what);
        }
    }
    // Bytes are bytes.
    check_rejected(
        &with_attribute_value(&put(&[0x3A], &[0xff; 9])),
        None,
        "bytes value",
    );
}

/// Two spans in two scopes; the first has `scope` and their resource `resource` BEHIND them.
fn above_span(scope: &[u8], resource: &[u8]) -> Vec<u8> {
    let span = put(
        &[0x12],
        &[put(&[0x0A], &TRACE), put(&[0x12], &SPAN)].concat(),
    );
    let first = put(&[0x12], &[&span, scope].concat());
    let mut scopes = first;
    if scope.is_empty() {
        scopes.extend(put(&[0x12], &span));
    }
    put(&[0x0A], &[&scopes, resource].concat())
}

#[test]
fn a_broken_header_rejects_the_spans_below_it_and_no_others() {
    let good = with_span(&[]);
    let bad_scope = above_span(&put(&[0x1A], b"\xff"), &[]);
    let bad_resource = above_span(&[], &put(&[0x0A], &[0x0A]));
    let message = [
        good,
        bad_resource,
        bad_scope,
        with_span(&put(&[0x0A], &[1; 3])),
    ]
    .concat();
    let scan = read(&message).unwrap();
    assert_eq!(scan.spans().len(), 1);
    assert_eq!(
        scan.rejections().to_string(),
        "4 spans rejected: 1 trace_id_length, 1 invalid_utf8, 2 malformed \
         (first: resource_spans[1].scope_spans[0].spans[0])"
    );
    let parts = split(&Bytes::from(message), &scan, 1, |_| 0);
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].message, with_span(&[]));
}

#[test]
fn a_span_rejected_in_front_of_a_broken_headers_spans_is_the_first() {
    let bad_span = put(&[0x12], &[]);
    let span = put(
        &[0x12],
        &[put(&[0x0A], &TRACE), put(&[0x12], &SPAN)].concat(),
    );
    let url = put(&[0x1A], b"\xff");
    let first_of = |scope: Vec<u8>| {
        let message = put(&[0x0A], &put(&[0x12], &scope));
        read(&message).unwrap().rejections().to_string()
    };
    assert_eq!(
        first_of([&bad_span[..], &span, &url].concat()),
        "2 spans rejected: 1 trace_id_length, 1 invalid_utf8 (first: resource_spans[0].scope_spans[0].spans[0])"
    );
    let two_empty = [
        &put(&[0x12], &[])[..],
        &put(&[0x12], &[]),
        &put(&[0x12], &[&bad_span[..], &span].concat()),
        &url,
    ]
    .concat();
    let scan = read(&put(&[0x0A], &two_empty)).unwrap();
    let first = scan.rejections().first().unwrap();
    assert_eq!(
        (first.scope, first.span, first.reason),
        (2, 0, RejectReason::TraceIdLength)
    );
}

#[test]
fn a_broken_header_without_spans_is_left_behind() {
    let message = [put(&[0x0A], &put(&[0x1A], b"\xff")), with_span(&[])].concat();
    let scan = read(&message).unwrap();
    assert_eq!(scan.rejections().total(), 0);
    assert!(!scan.is_whole());
    let parts = split(&Bytes::from(message), &scan, 1, |_| 0);
    assert_eq!(parts[0].message, with_span(&[]));
}

#[test]
fn a_known_field_with_the_wrong_wire_type_is_malformed_as_it_is_for_prost() {
    // Every known field with every wire type that is not its own. Lengths of 4 make each of them
    // a well-formed field of some sort.
    let values: [(u8, &[u8]); 4] = [(0, &[4]), (1, &[0; 8]), (2, &[0]), (5, &[0; 4])];
    let above = |depth: &[u8], field: Vec<u8>| {
        depth
            .iter()
            .rev()
            .fold(field, |inner, &tag| put(&[tag], &inner))
    };
    let messages: [(&str, &[u8], Fields); 10] = [
        ("event", &[0x5A], &[(1, 1), (2, 2), (3, 2), (4, 0)]),
        (
            "link",
            &[0x6A],
            &[(1, 2), (2, 2), (3, 2), (4, 2), (5, 0), (6, 5)],
        ),
        ("status", &[0x7A], &[(2, 2), (3, 0)]),
        ("attribute", &[0x4A], &[(1, 2), (2, 2), (3, 0)]),
        (
            "value",
            &[0x4A, 0x12],
            &[
                (1, 2),
                (2, 0),
                (3, 0),
                (4, 1),
                (5, 2),
                (6, 2),
                (7, 2),
                (8, 0),
            ],
        ),
        ("array", &[0x4A, 0x12, 0x2A], &[(1, 2)]),
        ("list", &[0x4A, 0x12, 0x32], &[(1, 2)]),
        (
            "pair in a list",
            &[0x4A, 0x12, 0x32, 0x0A],
            &[(1, 2), (2, 2), (3, 0)],
        ),
        (
            "value in an array",
            &[0x4A, 0x12, 0x2A, 0x0A],
            &[(1, 2), (2, 0), (3, 0), (4, 1), (8, 0)],
        ),
        (
            "span",
            &[],
            &[
                (3, 2),
                (5, 2),
                (6, 0),
                (7, 1),
                (8, 1),
                (9, 2),
                (10, 0),
                (11, 2),
                (12, 0),
                (13, 2),
                (14, 0),
                (15, 2),
            ],
        ),
    ];
    for (what, depth, fields) in messages {
        for &(number, own) in fields {
            for (wire_type, value) in values {
                let field = [&[number << 3 | wire_type], value].concat();
                let message = with_span(&above(depth, field));
                let reason = (wire_type != own).then_some(RejectReason::Malformed);
                let decodes = ExportTraceServiceRequest::decode(&message[..]).is_ok();
                assert_eq!(
                    decodes,
                    reason.is_none(),
                    "prost: {what} {number} {wire_type}"
                );
                check_rejected(&message, reason, &format!("{what} {number} {wire_type}"));
            }
        }
    }
    let flags = [0x85, 0x01, 0, 0, 0, 0];
    check_rejected(&with_span(&flags), None, "flags");
    check_rejected(
        &with_span(&[0x80, 0x01, 0]),
        Some(RejectReason::Malformed),
        "varint flags",
    );
    // Headers: resource and scope.
    let headers: [(u8, Fields); 2] = [
        (2, &[(1, 2), (2, 0), (3, 2)]),
        (3, &[(1, 2), (2, 2), (3, 2), (4, 0)]),
    ];
    for (depth, fields) in headers {
        for &(number, own) in fields {
            for (wire_type, value) in values {
                let header = put(&[0x0A], &[&[number << 3 | wire_type], value].concat());
                let message = if depth == 2 {
                    above_span(&[], &header)
                } else {
                    above_span(&header, &[])
                };
                let reason = (wire_type != own).then_some(RejectReason::Malformed);
                check_rejected(
                    &message,
                    reason,
                    &format!("header {depth} {number} {wire_type}"),
                );
            }
        }
    }
}

#[test]
fn a_broken_outer_structure_refuses_the_message_and_says_where() {
    let good = with_span(&[]);
    let rows: [(&str, &[u8], &str); 8] = [
        (
            "resource_spans as a varint",
            &[0x08, 0],
            "a known field with the wrong wire type",
        ),
        (
            "scope_spans as a varint",
            &[0x0A, 2, 0x10, 0],
            "a known field with the wrong wire type",
        ),
        (
            "spans as fixed32",
            &[0x0A, 7, 0x12, 5, 0x15, 0, 0, 0, 0],
            "a known field with the wrong wire type",
        ),
        (
            "field 0",
            &[0x02, 0],
            "an illegal field number or wire type",
        ),
        (
            "wire type 7",
            &[0x8F, 0x01, 0],
            "an illegal field number or wire type",
        ),
        (
            "a tag beyond 32 bits",
            &[0xFA, 0xFF, 0xFF, 0xFF, 0x7F, 0],
            "an illegal field number or wire type",
        ),
        (
            "a group without an end",
            &[0x8B, 0x01],
            "a group that is not closed",
        ),
        (
            "a length beyond the end",
            &[0x0A, 9, 0],
            "a field goes beyond the end of its message",
        ),
    ];
    for (case, bytes, expect) in rows {
        let message = [&good, bytes].concat();
        assert!(
            ExportTraceServiceRequest::decode(&message[..]).is_err(),
            "{case}"
        );
        match read(&message).map(|_| ()) {
            Err(ScanError::Malformed { offset, what }) => {
                assert_eq!(what, expect, "{case}");
                assert!(
                    (good.len()..message.len()).contains(&offset),
                    "{case}: {offset}"
                );
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}

#[test]
fn nesting_is_refused_before_prost_would_refuse_the_batch() {
    for levels in 0..70 {
        for message in [nested_arrays(levels), nested_lists(levels)] {
            // `read` asserts that what is accepted decodes.
            let accepted = read(&message).unwrap().is_whole();
            assert!(accepted || levels > 31, "{levels}");
        }
    }
    check_rejected(&nested_arrays(47), None, "47 arrays");
    check_rejected(
        &nested_arrays(48),
        Some(RejectReason::NestedTooDeep),
        "48 arrays",
    );
    check_rejected(&nested_lists(31), None, "31 lists");
    check_rejected(
        &nested_lists(32),
        Some(RejectReason::NestedTooDeep),
        "32 lists",
    );
    check_rejected(
        &nested_arrays(10_000),
        Some(RejectReason::NestedTooDeep),
        "10,000 arrays",
    );
    check_rejected(
        &nested_lists(10_000),
        Some(RejectReason::NestedTooDeep),
        "10,000 lists",
    );
    let limits = ScanLimits {
        nesting_max: 3,
        ..ScanLimits::default()
    };
    let mut scan = Scan::default();
    scan.read(&nested_arrays(3), &limits).unwrap();
    assert_eq!(scan.rejections().total(), 0);
    scan.read(&nested_arrays(4), &limits).unwrap();
    assert_eq!(scan.rejections().count(RejectReason::NestedTooDeep), 1);
}

#[test]
fn groups_nested_too_deep_are_refused_where_prost_refuses_them() {
    for levels in 1..110 {
        let groups = [[0x93, 0x01].repeat(levels), [0x94, 0x01].repeat(levels)].concat();
        let accepted = read(&with_span(&groups)).unwrap().is_whole();
        assert_eq!(accepted, levels <= 95, "{levels}");
    }
    let many = [[0x93, 0x01].repeat(100_000), [0x94, 0x01].repeat(100_000)].concat();
    check_rejected(
        &with_span(&many),
        Some(RejectReason::NestedTooDeep),
        "in a span",
    );
    assert!(matches!(read(&many), Err(ScanError::Malformed { .. })));
}

#[test]
fn a_request_cut_off_anywhere_has_no_more_spans_than_the_whole_one() {
    let message = batch(Shape::Agent, 24, 5).encode_to_vec();
    let whole = read(&message).unwrap();
    let mut scan = Scan::default();
    for end in 0..message.len() {
        if scan.read(&message[..end], &ScanLimits::default()).is_ok() {
            assert!(scan.spans().len() < whole.spans().len());
            claims::scan_accepts_only_what_prost_decodes(&message[..end]);
        } else {
            assert!(scan.spans().is_empty());
        }
    }
    // Cut inside a span, its own length too short: the span alone is rejected.
    let span = whole.spans()[0].bytes(&message);
    let ids = put(&[0x0A], &TRACE).len() + put(&[0x12], &SPAN).len();
    for end in 0..span.len() {
        let cut = put(&[0x0A], &put(&[0x12], &put(&[0x12], &span[..end])));
        let scan = read(&cut).unwrap();
        assert!(scan.rejections().total() == 1 || end >= ids);
    }
}

#[test]
fn what_is_accepted_of_flipped_bytes_decodes() {
    let message = batch(Shape::Agent, 6, 9).encode_to_vec();
    for at in 0..message.len() {
        for flip in [0x01, 0x02, 0x08, 0x20, 0x80, 0xff] {
            let mut message = message.clone();
            message[at] ^= flip;
            claims::scan_accepts_only_what_prost_decodes(&message);
            if at % 16 == 0 {
                claims::fragments_are_requests_of_their_own(&message);
                claims::split_keeps_every_fragment(&[&[1], &message[..]].concat());
            }
        }
    }
}

#[test]
fn an_empty_request_has_no_spans_and_no_parts() {
    let scan = read(&[]).unwrap();
    assert!(scan.is_whole());
    assert!(split(&Bytes::new(), &scan, 4, |_| 0).is_empty());
    let mut fragments = Fragments::default();
    fragments.group(&[], &scan);
    assert!(fragments.all().is_empty());
}

const MESSAGE_MAX: usize = 64 << 20;
const HEAP_MAX: usize = 32 << 20;

#[test]
fn thirty_three_million_empty_spans_are_refused_early() {
    let spans = vec![[0x12, 0]; (MESSAGE_MAX - 20) / 2].concat();
    let message = put(&[0x0A], &put(&[0x12], &spans));
    let mut scan = Scan::default();
    let read = scan.read(&message, &ScanLimits::default());
    assert_eq!(read, Err(ScanError::TooManySpans { limit: 100_000 }));
    assert!(scan.heap_bytes() < 1 << 20);
}

#[test]
fn millions_of_empty_envelopes_are_refused_early() {
    // With an unknown field between them, so that each would leave a piece of header behind.
    let scopes = [[0x12, 0, 0xA0, 0x06, 1]; 1_000_000].concat();
    for message in [put(&[0x0A], &scopes), [[0x0A, 0]; 1_000_000].concat()] {
        let mut scan = Scan::default();
        let error = scan.read(&message, &ScanLimits::default()).unwrap_err();
        assert!(matches!(error, ScanError::Malformed { .. }), "{error}");
        assert!(
            error.to_string().contains("far more ResourceSpans"),
            "{error}"
        );
        assert!(scan.heap_bytes() < 8 << 20, "{}", scan.heap_bytes());
    }
}

/// `count` spans of as many traces, `each` in one resource; every header in several pieces.
fn one_span_traces(count: u32, each: usize) -> Vec<u8> {
    let unknown = [0xA0, 0x06, 1];
    let spans: Vec<_> = (1..=count)
        .map(|index| {
            let mut trace = [0; 16];
            trace[..4].copy_from_slice(&index.to_le_bytes());
            put(
                &[0x12],
                &[put(&[0x0A], &trace), put(&[0x12], &SPAN)].concat(),
            )
        })
        .collect();
    let mut message = Vec::new();
    for spans in spans.chunks(each) {
        let spans = [&unknown[..], &spans.concat(), &unknown].concat();
        let scope = [&unknown[..], &put(&[0x12], &spans), &unknown].concat();
        message.extend(put(&[0x0A], &scope));
    }
    message
}

#[test]
fn a_hundred_thousand_one_span_traces_stay_within_the_memory_bound() {
    for each in [1, 100_000] {
        let message = one_span_traces(100_000, each);
        let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
        scan.read(&message, &ScanLimits::default()).unwrap();
        fragments.group(&message, &scan);
        assert_eq!(fragments.all().len(), 100_000);
        let heap = scan.heap_bytes() + fragments.heap_bytes();
        assert!(
            heap <= HEAP_MAX,
            "{} + {}",
            scan.heap_bytes(),
            fragments.heap_bytes()
        );
        let parts = split(&Bytes::from(message), &scan, 1000, |it| {
            u16::from(it.as_bytes()[0])
        });
        assert_eq!(parts.iter().map(|it| it.spans).sum::<u32>(), 100_000);
    }
    let message = one_span_traces(2_000_000, 2_000_000);
    let read = Scan::default().read(&message, &ScanLimits::default());
    assert_eq!(read, Err(ScanError::TooManySpans { limit: 100_000 }));
}

#[test]
fn the_growth_of_a_split_is_known_before_it_is_made() {
    // A resource header of 100 kB above spans of 50 traces: every part has it.
    let url = put(&[0x1A], &[b'u'; 100_000]);
    let one = one_span_traces(50, 50);
    let (_, body) = one.split_at(one.len() - crate::oracle::fields(&one)[0].body.unwrap().len());
    let message = Bytes::from(put(&[0x0A], &[body, &url].concat()));
    let scan = read(&message).unwrap();
    for destinations in [1, 2, 7, 50, 200] {
        let parts = split(&message, &scan, destinations, |it| {
            u16::from(it.as_bytes()[0]) % destinations
        });
        let sum: usize = parts.iter().map(|it| it.message.len()).sum();
        let bound = message.len() as u64 + scan.split_growth_max(destinations);
        assert!(sum as u64 <= bound, "{destinations}: {sum} > {bound}");
        assert!(
            bound < sum as u64 + 2_000,
            "{destinations}: {bound} is no use for {sum}"
        );
    }
}
