//! The spans that the rows are asked about.

use opentelemetry_proto::tonic::common::v1::any_value::Value as V;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fixture {
    /// A span with everything.
    S,
    /// Without a parent.
    R,
    /// With nothing but its IDs.
    Z,
    /// With numbers that nobody knows.
    W,
    /// With what only a strange client writes.
    H,
    /// The first event of S.
    Ev,
    /// The events of Z, of which there are none.
    ZEv,
}

/// The messages of one span.
pub(crate) struct Messages {
    pub(crate) resource_header: Vec<u8>,
    pub(crate) scope_header: Vec<u8>,
    pub(crate) span: Vec<u8>,
    pub(crate) events: Vec<Vec<u8>>,
}

pub(crate) fn any(value: V) -> AnyValue {
    AnyValue { value: Some(value) }
}

pub(crate) fn text(text: &str) -> AnyValue {
    any(V::StringValue(text.into()))
}

pub(crate) fn int(value: i64) -> AnyValue {
    any(V::IntValue(value))
}

pub(crate) fn list(values: Vec<AnyValue>) -> AnyValue {
    any(V::ArrayValue(ArrayValue { values }))
}

pub(crate) fn map(entries: Vec<(&str, AnyValue)>) -> AnyValue {
    any(V::KvlistValue(KeyValueList {
        values: attributes(entries),
    }))
}

pub(crate) fn attributes(entries: Vec<(&str, AnyValue)>) -> Vec<KeyValue> {
    entries
        .into_iter()
        .map(|(key, value)| KeyValue {
            key: key.into(),
            value: Some(value),
            ..Default::default()
        })
        .collect()
}

fn bytes(bytes: &[u8]) -> AnyValue {
    any(V::BytesValue(bytes.into()))
}

const START: u64 = 1_581_452_772_000_000_321;

fn s() -> Span {
    Span {
        trace_id: (1..=16).collect(),
        span_id: (1..=8).collect(),
        parent_span_id: (1..=8).rev().collect(),
        trace_state: "key1=val1,key2=val2".into(),
        flags: 257,
        name: "operationA".into(),
        kind: 2,
        start_time_unix_nano: START,
        end_time_unix_nano: START + 1_500_000_000,
        status: Some(Status {
            code: 2,
            message: "boom failed".into(),
        }),
        dropped_attributes_count: 10,
        dropped_events_count: 20,
        dropped_links_count: 30,
        links: vec![Link::default()],
        events: vec![
            Event {
                name: "exception".into(),
                time_unix_nano: 1_581_452_772_500_000_000,
                attributes: attributes(vec![
                    ("exception.type", text("PaymentFailed")),
                    ("escaped", any(V::BoolValue(true))),
                ]),
                dropped_attributes_count: 2,
            },
            Event {
                name: "log".into(),
                attributes: attributes(vec![("level", text("info"))]),
                ..Default::default()
            },
        ],
        attributes: attributes(vec![
            ("http.method", text("get")),
            ("http.status_code", int(500)),
            ("http.route", text("/api/v1/users")),
            ("ratio", any(V::DoubleValue(0.5))),
            ("one", int(1)),
            ("one_f", any(V::DoubleValue(1.0))),
            ("ok", any(V::BoolValue(true))),
            ("no", any(V::BoolValue(false))),
            ("bin", bytes(&[1, 2, 3])),
            ("empty_str", text("")),
            ("null", AnyValue { value: None }),
            ("num_str", text("42")),
            ("bad_num", text("abc")),
            ("big", int(9_007_199_254_740_993)),
            ("arr", list(vec![text("a"), text("b"), text("c")])),
            ("ints", list(vec![int(1), int(2), int(3)])),
            (
                "nested",
                map(vec![
                    ("bar", text("pass")),
                    ("slice", list(vec![text("val")])),
                    ("nested", map(vec![("test", text("pass"))])),
                ]),
            ),
            (
                "things",
                list(vec![
                    map(vec![("name", text("foo")), ("value", int(2))]),
                    map(vec![("name", text("bar")), ("value", int(5))]),
                ]),
            ),
            ("key_name", text("http.method")),
            ("json", text(r#"{"a":1,"b":{"c":"x"}}"#)),
            ("unicode", text("一二三")),
            ("multi", text("line1\nau:x\n")),
            ("empty_arr", list(vec![])),
            ("nil_string", text("nil")),
            ("bs", text(r"a\b")),
            ("quote", text("say \"hi\"")),
            ("flags", text("A|B|C")),
            ("idx", int(1)),
        ]),
    }
}

fn h() -> Span {
    Span {
        parent_span_id: vec![0; 8],
        start_time_unix_nano: (1 << 63) + 5,
        end_time_unix_nano: (1 << 63) + 10,
        attributes: [
            attributes(vec![("dup", text("one")), ("dup", text("two"))]),
            vec![KeyValue {
                key: "noval".into(),
                ..Default::default()
            }],
            attributes(vec![
                ("eb", bytes(&[])),
                ("es", text("")),
                ("nan", any(V::DoubleValue(f64::NAN))),
                ("arrnull", list(vec![AnyValue { value: None }, int(1)])),
                ("m1", map(vec![("a", int(1)), ("b", int(2))])),
                ("m2", map(vec![("b", int(2)), ("a", int(1))])),
            ]),
        ]
        .concat(),
        ..s_ids()
    }
}

fn s_ids() -> Span {
    Span {
        trace_id: (1..=16).collect(),
        span_id: (1..=8).collect(),
        ..Default::default()
    }
}

pub(crate) fn of(fixture: Fixture) -> Messages {
    let span = match fixture {
        Fixture::S => s(),
        Fixture::R => Span {
            parent_span_id: Vec::new(),
            ..s()
        },
        Fixture::Z | Fixture::ZEv => s_ids(),
        Fixture::W => Span {
            kind: 9,
            status: Some(Status {
                code: 7,
                message: "boom failed".into(),
            }),
            trace_state: "bad state!!".into(),
            end_time_unix_nano: START - 1_000_000_000,
            ..s()
        },
        Fixture::H => h(),
        Fixture::Ev => Span {
            events: s().events.into_iter().take(1).collect(),
            ..s()
        },
    };
    if fixture == Fixture::H {
        return messages(&ResourceSpans::default(), &ScopeSpans::default(), &span);
    }
    let resource = ResourceSpans {
        resource: Some(Resource {
            attributes: attributes(vec![
                ("service.name", text("checkout")),
                ("host.name", text("localhost")),
                ("k8s", map(vec![("pod", map(vec![("name", text("p-1"))]))])),
            ]),
            dropped_attributes_count: 3,
            ..Default::default()
        }),
        schema_url: "https://r".into(),
        ..Default::default()
    };
    let scope = ScopeSpans {
        scope: Some(InstrumentationScope {
            name: "lib".into(),
            version: "1.2.3".into(),
            attributes: attributes(vec![("lang", text("rust"))]),
            dropped_attributes_count: 4,
        }),
        schema_url: "https://s".into(),
        ..Default::default()
    };
    messages(&resource, &scope, &span)
}

pub(crate) fn messages(resource: &ResourceSpans, scope: &ScopeSpans, span: &Span) -> Messages {
    Messages {
        resource_header: resource.encode_to_vec(),
        scope_header: scope.encode_to_vec(),
        span: span.encode_to_vec(),
        events: span.events.iter().map(Event::encode_to_vec).collect(),
    }
}
