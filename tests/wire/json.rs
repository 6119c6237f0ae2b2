//! OTLP/JSON against prost: whatever a lawful writer makes of a message is read back as it was.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::prelude::*;
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tailring::net::json::line;
use tailring::wire::{JsonError, RejectReason, json_to_protobuf, protobuf_bytes_max};

use crate::agents;
use crate::claims::{self, scanned};
use crate::noise::{self, Size};

/// Writes JSON in every way that ProtoJSON allows, drawn at random. With `plain` as SDKs do.
struct Writer {
    rng: SmallRng,
    plain: bool,
    out: String,
}

const CAMEL_TO_SNAKE: [(&str, &str); 21] = [
    ("resourceSpans", "resource_spans"),
    ("scopeSpans", "scope_spans"),
    ("schemaUrl", "schema_url"),
    ("droppedAttributesCount", "dropped_attributes_count"),
    ("entityRefs", "entity_refs"),
    ("idKeys", "id_keys"),
    ("descriptionKeys", "description_keys"),
    ("traceId", "trace_id"),
    ("spanId", "span_id"),
    ("traceState", "trace_state"),
    ("parentSpanId", "parent_span_id"),
    ("startTimeUnixNano", "start_time_unix_nano"),
    ("endTimeUnixNano", "end_time_unix_nano"),
    ("droppedEventsCount", "dropped_events_count"),
    ("droppedLinksCount", "dropped_links_count"),
    ("timeUnixNano", "time_unix_nano"),
    ("stringValue", "string_value"),
    ("intValue", "int_value"),
    ("arrayValue", "array_value"),
    ("kvlistValue", "kvlist_value"),
    ("keyStrindex", "key_strindex"),
];

impl Writer {
    fn odds(&mut self, one_in: u32) -> bool {
        !self.plain && self.rng.random_ratio(1, one_in)
    }

    fn space(&mut self) {
        while self.odds(6) {
            let space = [' ', '\n', '\r', '\t'][self.rng.random_range(0..4)];
            self.out.push(space);
        }
    }

    fn escaped(&mut self, character: char) {
        let mut units = [0; 2];
        for unit in character.encode_utf16(&mut units) {
            if self.rng.random() {
                write!(self.out, "\\u{unit:04x}").unwrap();
            } else {
                write!(self.out, "\\u{unit:04X}").unwrap();
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        let escapes = self.odds(4);
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '/' if escapes => self.out.push_str("\\/"),
                '\n' => self.out.push_str("\\n"),
                _ if character < ' ' || escapes && self.odds(3) => self.escaped(character),
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    /// Fields in any order, and some that nobody knows.
    fn object(&mut self, mut fields: Vec<(&'static str, Write<'_>)>) {
        if !self.plain {
            fields.shuffle(&mut self.rng);
        }
        self.out.push('{');
        let mut is_first = true;
        for (name, write) in fields {
            if self.odds(12) {
                self.begin_field(&mut is_first, "unheardOf");
                self.out.push_str(
                    r#"{"a":[1,-2.5e3,"]}\"",true,[],{}],"b":null,"name":{"name":[[false]]}}"#,
                );
            }
            let snake = CAMEL_TO_SNAKE.iter().find(|(camel, _)| *camel == name);
            let name = match snake {
                Some((_, snake)) if self.odds(3) => snake,
                _ => name,
            };
            self.begin_field(&mut is_first, name);
            write(self);
        }
        self.space();
        self.out.push('}');
        self.space();
    }

    fn begin_field(&mut self, is_first: &mut bool, name: &str) {
        if !std::mem::take(is_first) {
            self.out.push(',');
        }
        self.space();
        self.string(name);
        self.space();
        self.out.push(':');
        self.space();
    }

    fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.out.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.space();
            write(self, item);
            self.space();
        }
        self.space();
        self.out.push(']');
    }

    fn integer(&mut self, value: i128) {
        let quoted = self.odds(3);
        let quote = if quoted { "\"" } else { "" };
        let digits = value.to_string();
        let written = match self.rng.random_range(0..4) {
            0 if !self.plain => format!("{digits}.0"),
            1 if !self.plain => format!("{digits}e0"),
            2 if !self.plain && digits.ends_with("00") => {
                format!("{}E+2", digits.strip_suffix("00").unwrap())
            }
            _ => digits,
        };
        write!(self.out, "{quote}{written}{quote}").unwrap();
    }

    fn wide(&mut self, value: i128) {
        if self.odds(6) {
            let bits = value as u64;
            let (low, high) = (bits as u32, (bits >> 32) as u32);
            if self.rng.random() {
                write!(self.out, r#"{{"low":{low},"high":{high}}}"#).unwrap();
            } else {
                let (low, high) = (low as i32, high as i32);
                write!(self.out, r#"{{"low":{low},"high":{high},"unsigned":true}}"#).unwrap();
            }
        } else if self.plain {
            write!(self.out, "\"{value}\"").unwrap();
        } else {
            self.integer(value);
        }
    }

    fn double(&mut self, value: f64) {
        if value.is_nan() {
            self.out.push_str("\"NaN\"");
        } else if value.is_infinite() {
            let sign = if value < 0.0 { "-" } else { "" };
            write!(self.out, "\"{sign}Infinity\"").unwrap();
        } else {
            let quote = if self.odds(3) { "\"" } else { "" };
            if self.rng.random() {
                write!(self.out, "{quote}{value:e}{quote}").unwrap();
            } else {
                write!(self.out, "{quote}{value}{quote}").unwrap();
            }
        }
    }

    fn hex(&mut self, bytes: &[u8]) {
        let upper = self.odds(2);
        self.out.push('"');
        for byte in bytes {
            if upper {
                write!(self.out, "{byte:02X}").unwrap();
            } else {
                write!(self.out, "{byte:02x}").unwrap();
            }
        }
        self.out.push('"');
    }

    fn base64(&mut self, bytes: &[u8]) {
        if self.odds(5) {
            let bytes = bytes.iter().enumerate();
            let bytes: Vec<_> = bytes.map(|(at, byte)| format!("\"{at}\":{byte}")).collect();
            write!(self.out, "{{{}}}", bytes.join(",")).unwrap();
            return;
        }
        let engines = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD];
        let at = if self.plain {
            0
        } else {
            self.rng.random_range(0..4)
        };
        let text = engines[at].encode(bytes);
        self.string(&text);
    }

    fn enumerated(&mut self, value: i32, names: &[&str]) {
        let name = usize::try_from(value).ok().and_then(|it| names.get(it));
        match name {
            Some(name) if self.odds(2) => write!(self.out, "\"{name}\"").unwrap(),
            _ => self.integer(value.into()),
        }
    }
}

type Write<'a> = Box<dyn FnOnce(&mut Writer) + 'a>;

/// The fields of one message. What is as it is by default is left out, or null, or written.
#[derive(Default)]
struct Message<'a>(Vec<(&'static str, Write<'a>)>);

impl<'a> Message<'a> {
    fn value(
        &mut self,
        w: &mut Writer,
        name: &'static str,
        is_default: bool,
        write: impl FnOnce(&mut Writer) + 'a,
    ) {
        if !is_default || w.odds(4) {
            self.0.push((name, Box::new(write)));
        } else if w.odds(3) {
            self.0.push((name, Box::new(|w| w.out.push_str("null"))));
        }
    }

    fn message<T>(
        &mut self,
        w: &mut Writer,
        name: &'static str,
        of: Option<&'a T>,
        write: fn(&mut Writer, &T),
    ) {
        match of {
            Some(of) => self.0.push((name, Box::new(move |w| write(w, of)))),
            None if w.odds(3) => self.0.push((name, Box::new(|w| w.out.push_str("null")))),
            None => {}
        }
    }

    fn list<T>(
        &mut self,
        w: &mut Writer,
        name: &'static str,
        items: &'a [T],
        write: fn(&mut Writer, &T),
    ) {
        self.value(w, name, items.is_empty(), move |w| w.list(items, write));
    }

    fn text(&mut self, w: &mut Writer, name: &'static str, text: &'a str) {
        self.value(w, name, text.is_empty(), move |w| w.string(text));
    }

    fn id(&mut self, w: &mut Writer, name: &'static str, id: &'a [u8]) {
        self.value(w, name, id.is_empty(), move |w| w.hex(id));
    }

    fn number(&mut self, w: &mut Writer, name: &'static str, number: u32) {
        self.value(w, name, number == 0, move |w| w.integer(number.into()));
    }

    fn time(&mut self, w: &mut Writer, name: &'static str, nanos: u64) {
        self.value(w, name, nanos == 0, move |w| w.wide(nanos.into()));
    }
}

const KINDS: [&str; 6] = [
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
const CODES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

fn request(w: &mut Writer, of: &ExportTraceServiceRequest) {
    let mut m = Message::default();
    m.list(w, "resourceSpans", &of.resource_spans, resource_spans);
    w.object(m.0);
}

fn resource_spans(w: &mut Writer, of: &ResourceSpans) {
    let mut m = Message::default();
    m.message(w, "resource", of.resource.as_ref(), resource);
    m.list(w, "scopeSpans", &of.scope_spans, scope_spans);
    m.text(w, "schemaUrl", &of.schema_url);
    w.object(m.0);
}

fn resource(w: &mut Writer, of: &Resource) {
    let mut m = Message::default();
    m.list(w, "attributes", &of.attributes, key_value);
    m.number(w, "droppedAttributesCount", of.dropped_attributes_count);
    m.list(w, "entityRefs", &of.entity_refs, entity_ref);
    w.object(m.0);
}

fn entity_ref(w: &mut Writer, of: &EntityRef) {
    let text = |w: &mut Writer, text: &String| w.string(text);
    let mut m = Message::default();
    m.text(w, "schemaUrl", &of.schema_url);
    m.text(w, "type", &of.r#type);
    m.list(w, "idKeys", &of.id_keys, text);
    m.list(w, "descriptionKeys", &of.description_keys, text);
    w.object(m.0);
}

fn scope_spans(w: &mut Writer, of: &ScopeSpans) {
    let mut m = Message::default();
    m.message(w, "scope", of.scope.as_ref(), scope);
    m.list(w, "spans", &of.spans, span);
    m.text(w, "schemaUrl", &of.schema_url);
    w.object(m.0);
}

fn scope(w: &mut Writer, of: &InstrumentationScope) {
    let mut m = Message::default();
    m.text(w, "name", &of.name);
    m.text(w, "version", &of.version);
    m.list(w, "attributes", &of.attributes, key_value);
    m.number(w, "droppedAttributesCount", of.dropped_attributes_count);
    w.object(m.0);
}

fn span(w: &mut Writer, of: &Span) {
    let mut m = Message::default();
    m.id(w, "traceId", &of.trace_id);
    m.id(w, "spanId", &of.span_id);
    m.text(w, "traceState", &of.trace_state);
    m.id(w, "parentSpanId", &of.parent_span_id);
    m.number(w, "flags", of.flags);
    m.text(w, "name", &of.name);
    m.value(w, "kind", of.kind == 0, |w| w.enumerated(of.kind, &KINDS));
    m.time(w, "startTimeUnixNano", of.start_time_unix_nano);
    m.time(w, "endTimeUnixNano", of.end_time_unix_nano);
    m.list(w, "attributes", &of.attributes, key_value);
    m.number(w, "droppedAttributesCount", of.dropped_attributes_count);
    m.list(w, "events", &of.events, event);
    m.number(w, "droppedEventsCount", of.dropped_events_count);
    m.list(w, "links", &of.links, link);
    m.number(w, "droppedLinksCount", of.dropped_links_count);
    m.message(w, "status", of.status.as_ref(), status);
    w.object(m.0);
}

fn event(w: &mut Writer, of: &Event) {
    let mut m = Message::default();
    m.time(w, "timeUnixNano", of.time_unix_nano);
    m.text(w, "name", &of.name);
    m.list(w, "attributes", &of.attributes, key_value);
    m.number(w, "droppedAttributesCount", of.dropped_attributes_count);
    w.object(m.0);
}

fn link(w: &mut Writer, of: &Link) {
    let mut m = Message::default();
    m.id(w, "traceId", &of.trace_id);
    m.id(w, "spanId", &of.span_id);
    m.text(w, "traceState", &of.trace_state);
    m.list(w, "attributes", &of.attributes, key_value);
    m.number(w, "droppedAttributesCount", of.dropped_attributes_count);
    m.number(w, "flags", of.flags);
    w.object(m.0);
}

fn status(w: &mut Writer, of: &Status) {
    let mut m = Message::default();
    m.text(w, "message", &of.message);
    m.value(w, "code", of.code == 0, |w| w.enumerated(of.code, &CODES));
    w.object(m.0);
}

fn key_value(w: &mut Writer, of: &KeyValue) {
    let index = of.key_strindex;
    let mut m = Message::default();
    m.text(w, "key", &of.key);
    m.message(w, "value", of.value.as_ref(), any_value);
    m.value(w, "keyStrindex", index == 0, move |w| {
        w.integer(index.into())
    });
    w.object(m.0);
}

fn any_value(w: &mut Writer, of: &AnyValue) {
    let field: Option<(&'static str, Write<'_>)> = match &of.value {
        None if w.odds(2) => {
            w.out.push_str("{\"intValue\":null}");
            return;
        }
        None => None,
        Some(Value::StringValue(it)) => Some(("stringValue", Box::new(|w| w.string(it)))),
        Some(Value::BoolValue(it)) => Some((
            "boolValue",
            Box::new(move |w| write!(w.out, "{it}").unwrap()),
        )),
        Some(Value::IntValue(it)) => Some(("intValue", Box::new(|w| w.wide((*it).into())))),
        Some(Value::DoubleValue(it)) => Some(("doubleValue", Box::new(|w| w.double(*it)))),
        Some(Value::ArrayValue(it)) => {
            let mut m = Message::default();
            m.list(w, "values", &it.values, any_value);
            Some(("arrayValue", Box::new(|w| w.object(m.0))))
        }
        Some(Value::KvlistValue(it)) => {
            let mut m = Message::default();
            m.list(w, "values", &it.values, key_value);
            Some(("kvlistValue", Box::new(|w| w.object(m.0))))
        }
        Some(Value::BytesValue(it)) => Some(("bytesValue", Box::new(|w| w.base64(it)))),
        Some(Value::StringValueStrindex(it)) => {
            Some(("stringValueStrindex", Box::new(|w| w.integer((*it).into()))))
        }
    };
    w.object(field.into_iter().collect());
}

/// Puts in what `noise` does not know: every character that JSON escapes, and doubles of all sizes.
fn season(request: &mut ExportTraceServiceRequest, rng: &mut SmallRng) {
    let scopes = request.resource_spans.iter_mut();
    let scopes = scopes.flat_map(|it| &mut it.scope_spans);
    for span in scopes.flat_map(|it| &mut it.spans) {
        for _ in 0..rng.random_range(0..20) {
            let character = match rng.random_range(0..4) {
                0 => char::from(rng.random_range(0..0x80_u8)),
                1 => ['"', '\\', '/', '\u{2028}', '\u{fffd}'][rng.random_range(0..5)],
                _ => rng.random(),
            };
            span.name.push(character);
        }
        for attribute in &mut span.attributes {
            if let Some(AnyValue { value: Some(value) }) = &mut attribute.value
                && let Value::DoubleValue(double) = value
            {
                *double = f64::from_bits(rng.random());
                if double.is_nan() {
                    *double = f64::NAN; // JSON has only one
                }
            }
        }
    }
}

fn written(of: &ExportTraceServiceRequest, seed: u64, plain: bool) -> String {
    let mut writer = Writer {
        rng: SmallRng::seed_from_u64(seed),
        plain,
        out: String::new(),
    };
    if writer.odds(3) {
        writer.out.push('\u{feff}');
    }
    writer.space();
    request(&mut writer, of);
    writer.out
}

#[track_caller]
fn read(json: &str) -> Vec<u8> {
    match json_to_protobuf(json.as_bytes(), usize::MAX) {
        Ok(message) => message,
        Err(error) => panic!("{error}\n{json}"),
    }
}

#[track_caller]
fn decoded(json: &str) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(&read(json)[..]).unwrap()
}

/// A request around one span.
fn with_span(fields: &str) -> String {
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#)
}

fn with_value(value: &str) -> String {
    with_span(&format!(
        r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","attributes":[{{"key":"k","value":{value}}}]"#
    ))
}

#[track_caller]
fn value_of(value: &str) -> Option<Value> {
    let request = decoded(&with_value(value));
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    span.attributes[0].value.clone().unwrap().value
}

#[track_caller]
fn span_of(fields: &str) -> Span {
    let mut request = decoded(&with_span(fields));
    request.resource_spans[0].scope_spans[0].spans.remove(0)
}

#[track_caller]
fn error_of(json: &str) -> String {
    json_to_protobuf(json.as_bytes(), usize::MAX)
        .unwrap_err()
        .to_string()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn json_written_in_any_lawful_way_is_the_message_it_was_made_of(
        seed: u64, style: u64, resources in 0..4usize, scopes in 0..3usize, spans in 0..6usize,
    ) {
        let size = Size { resources, scopes, spans, traces: 3, strange: false, wrong: 0 };
        let message = noise::request(seed, size);
        let mut original = ExportTraceServiceRequest::decode(&message[..]).unwrap();
        season(&mut original, &mut SmallRng::seed_from_u64(style));
        for plain in [true, false] {
            let json = written(&original, style, plain);
            let ours = decoded(&json);
            // By their bytes: a NaN is not equal to itself.
            prop_assert_eq!(ours.encode_to_vec(), original.encode_to_vec(), "{}", json);
            prop_assert_eq!(ours.encoded_len(), read(&json).len(), "nothing is written that prost would not");
            claims::json_becomes_what_prost_decodes(json.as_bytes());
        }
    }

    #[test]
    fn damaged_json_is_refused_or_read_and_never_more(
        seed: u64, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let size = Size { resources: 1, scopes: 1, spans: 2, traces: 2, strange: false, wrong: 0 };
        let original = ExportTraceServiceRequest::decode(&noise::request(seed, size)[..]).unwrap();
        let mut json = written(&original, seed, false).into_bytes();
        for (at, byte) in flips {
            let at = at.index(json.len());
            json[at] = byte;
            claims::json_becomes_what_prost_decodes(&json);
        }
    }

    #[test]
    fn json_like_garbage_is_refused_or_read(pieces in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\"", "\\", "null", "true", "1", "-", ".5", "e9", " ", "\"name\"",
        "\"resourceSpans\":[{", "\"scopeSpans\":[{", "\"spans\":[{", "\"attributes\":[{", "\"value\":{",
        "\"arrayValue\":{\"values\":[{", "\"low\":1", "\"high\":2", "\"bytesValue\":{\"0\":", "\\ud800", "é",
    ]), 0..40)) {
        claims::json_becomes_what_prost_decodes(pieces.concat().as_bytes());
        claims::json_becomes_what_prost_decodes(format!("{{\"resourceSpans\":[{{{}", pieces.concat()).as_bytes());
    }
}

#[test]
fn what_other_writers_write_is_read() {
    for (shape, seed) in [(agents::Shape::Agent, 1), (agents::Shape::Micro, 2)] {
        let request = agents::batch(shape, 300, seed);
        let by_serde = serde_json::to_string(&request).unwrap();
        assert!(decoded(&by_serde) == request, "opentelemetry-proto's");
        let as_the_collector = line(&request.encode_to_vec()).unwrap();
        assert!(decoded(&as_the_collector) == request, "ours");
        let scan = scanned(&read(&by_serde)).unwrap();
        assert!(scan.is_whole());
        assert_eq!(scan.spans().len(), 300);
    }
}

#[test]
fn a_text_cut_anywhere_is_an_error_that_says_where() {
    let request = agents::batch(agents::Shape::Agent, 3, 5);
    for plain in [true, false] {
        let json = written(&request, 9, plain);
        let json = json.trim_end().as_bytes();
        for len in 0..json.len() {
            let error = json_to_protobuf(&json[..len], usize::MAX).unwrap_err();
            let JsonError::Unreadable { offset, .. } = error else {
                panic!("{error}")
            };
            assert!(offset <= len);
        }
    }
}

/// As @opentelemetry/otlp-transformer writes it: 0.41 to 0.44 had times in halves and bytes by their places,
/// later ones times in strings, 0.20x bytes in base64. `undefined` fields are not there at all.
#[test]
fn what_javascript_sdks_write_is_read() {
    let old = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}],
        "droppedAttributesCount":0},"scopeSpans":[{"scope":{"name":"example","version":""},"spans":[{
        "traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"GET /","kind":2,
        "startTimeUnixNano":{"low":1148903936,"high":395885402},"endTimeUnixNano":{"low":-1,"high":395885402},
        "attributes":[{"key":"n","value":{"intValue":42}},{"key":"big","value":{"intValue":9007199254740991}},
        {"key":"nan","value":{"doubleValue":null}},{"key":"half","value":{"doubleValue":0.5}},
        {"key":"nothing","value":{}},{"key":"raw","value":{"bytesValue":{"0":104,"1":105}}},
        {"key":"none","value":{"bytesValue":{}}}],
        "droppedAttributesCount":0,"events":[],"droppedEventsCount":0,"status":{"code":0},"links":[],"droppedLinksCount":0}]}]}]}"#;
    let request = decoded(old);
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(span.start_time_unix_nano, 395_885_402 << 32 | 1_148_903_936);
    assert_eq!(span.end_time_unix_nano, 395_885_402 << 32 | 0xffff_ffff);
    let values: Vec<_> = span
        .attributes
        .iter()
        .map(|it| it.value.clone().unwrap().value)
        .collect();
    assert_eq!(
        values,
        [
            Some(Value::IntValue(42)),
            Some(Value::IntValue(9_007_199_254_740_991)),
            None,
            Some(Value::DoubleValue(0.5)),
            None,
            Some(Value::BytesValue(b"hi".to_vec())),
            Some(Value::BytesValue(vec![])),
        ]
    );
    let new = span_of(
        r#""startTimeUnixNano":"1700323200000000001","endTimeUnixNano":1700323200000000000,"flags":257,
        "attributes":[{"key":"raw","value":{"bytesValue":"aGk="}}]"#,
    );
    assert_eq!(new.start_time_unix_nano, 1_700_323_200_000_000_001);
    assert_eq!(new.end_time_unix_nano, 1_700_323_200_000_000_000);
    assert_eq!(new.flags, 257);
    let raw = new.attributes[0].value.clone().unwrap().value;
    assert_eq!(raw, Some(Value::BytesValue(b"hi".to_vec())));
}

#[test]
fn texts_say_what_their_escapes_say() {
    for (json, text) in [
        (r#""""#, ""),
        (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#""\u00e9\u8A9E\ud83e\udd80\u0000""#, "é語🦀\0"),
        // Halves of a surrogate pair, which JavaScript leaves when it cuts a text.
        (r#""a\ud83e""#, "a\u{fffd}"),
        (r#""\udd80b""#, "\u{fffd}b"),
        (r#""\ud83e\ud83e\udd80""#, "\u{fffd}🦀"),
        (r#""\ud83e\n""#, "\u{fffd}\n"),
        (r#""\ud83eudd80""#, "\u{fffd}udd80"),
        ("\"é語🦀\u{7f}\"", "é語🦀\u{7f}"),
    ] {
        let value = value_of(&format!("{{\"stringValue\":{json}}}"));
        assert_eq!(value, Some(Value::StringValue(text.to_owned())), "{json}");
    }
    // However long it is, and whatever becomes of its length.
    for len in [
        0,
        1,
        7,
        8,
        9,
        125,
        127,
        128,
        129,
        16_383,
        16_384,
        16_385,
        3 << 20,
    ] {
        for unit in ["x", "\\n", "\\u00e9", "é"] {
            let json = unit.repeat(len);
            let text = json.replace("\\n", "\n").replace("\\u00e9", "é");
            let value = value_of(&format!("{{\"stringValue\":\"{json}\"}}"));
            assert!(value == Some(Value::StringValue(text)), "{len} {unit}");
        }
    }
    // Keys may be escaped, too.
    assert_eq!(span_of(r#""n\u0061me":"x""#).name, "x");
}

#[test]
fn numbers_are_read_however_they_are_written_and_never_rounded() {
    for (json, value) in [
        ("1e3", 1000),
        ("\"1e3\"", 1000),
        ("1.0", 1),
        ("-0", 0),
        ("\"-9223372036854775808\"", i64::MIN),
        ("9223372036854775807", i64::MAX),
        ("9.223372036854775807e18", i64::MAX),
        (r#"{"low":-1,"high":-1}"#, -1),
        (r#"{"high":2147483648,"low":0}"#, i64::MIN),
    ] {
        let got = value_of(&format!("{{\"intValue\":{json}}}"));
        assert_eq!(got, Some(Value::IntValue(value)), "{json}");
    }
    for (json, value) in [
        ("1", 1.0),
        ("\"1.5\"", 1.5),
        ("-0.0", -0.0),
        ("1e-400", 0.0),
        ("5e-324", 5e-324),
        ("\"Infinity\"", f64::INFINITY),
        ("\"-Infinity\"", f64::NEG_INFINITY),
        ("\"+Inf\"", f64::INFINITY),
        ("\"-Inf\"", f64::NEG_INFINITY),
    ] {
        let got = value_of(&format!("{{\"doubleValue\":{json}}}"));
        assert_eq!(got, Some(Value::DoubleValue(value)), "{json}");
    }
    let Some(Value::DoubleValue(nan)) = value_of("{\"doubleValue\":\"NaN\"}") else {
        panic!("no double");
    };
    assert!(nan.is_nan());
    let span = span_of(r#""kind":"SPAN_KIND_CLIENT","status":{"code":"STATUS_CODE_ERROR"}"#);
    assert_eq!((span.kind, span.status.unwrap().code), (3, 2));
    let span = span_of(r#""kind":"77","status":{"code":-1}"#);
    assert_eq!((span.kind, span.status.unwrap().code), (77, -1));
}

#[test]
fn nulls_are_absences() {
    let span = span_of(
        r#""traceId":null,"name":null,"kind":null,"startTimeUnixNano":null,"attributes":null,
        "status":null,"events":[null,{"attributes":[null]}],"links":[]"#,
    );
    let expect = Span {
        events: vec![
            Event::default(),
            Event {
                attributes: vec![KeyValue::default()],
                ..Event::default()
            },
        ],
        ..Span::default()
    };
    assert_eq!(span, expect);
    assert_eq!(
        value_of(r#"{"stringValue":"x","intValue":null}"#),
        Some(Value::StringValue("x".into()))
    );
    assert_eq!(decoded("{}"), ExportTraceServiceRequest::default());
    assert_eq!(
        decoded(r#"{"resourceSpans":null}"#),
        ExportTraceServiceRequest::default()
    );
    assert_eq!(read("\u{feff} {\"resourceMetrics\":[{}]} \n"), [0_u8; 0]);
}

#[test]
fn ids_of_a_wrong_length_cost_their_span_and_no_other() {
    let good = r#"{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174"}"#;
    for (wrong, reason) in [
        (
            r#""traceId":"","spanId":"eee19b7ec3c1b174""#,
            RejectReason::TraceIdLength,
        ),
        (
            r#""traceId":"5b","spanId":"eee19b7ec3c1b174""#,
            RejectReason::TraceIdLength,
        ),
        // One digit too few, one too many: neither is rounded to sixteen bytes.
        (
            r#""traceId":"5b8efff798038103d269b633813fc60","spanId":"eee19b7ec3c1b174""#,
            RejectReason::TraceIdLength,
        ),
        (
            r#""traceId":"5b8efff798038103d269b633813fc60c0","spanId":"eee19b7ec3c1b174""#,
            RejectReason::TraceIdLength,
        ),
        (
            r#""traceId":"00000000000000000000000000000000","spanId":"eee19b7ec3c1b174""#,
            RejectReason::TraceIdZero,
        ),
        (
            r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b17""#,
            RejectReason::SpanIdLength,
        ),
        (
            r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","parentSpanId":"e""#,
            RejectReason::SpanIdLength,
        ),
    ] {
        let json =
            format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{wrong}}},{good}]}}]}}]}}"#);
        let scan = scanned(&read(&json)).unwrap();
        assert_eq!(scan.spans().len(), 1, "{wrong}");
        assert_eq!(scan.rejections().count(reason), 1, "{wrong}");
        assert_eq!(scan.rejections().total(), 1, "{wrong}");
    }
}

#[test]
fn faults_are_named_by_path_and_place() {
    let at = "resourceSpans[0].scopeSpans[0].spans[0]";
    for (fields, says) in [
        (
            r#""startTimeUnixNano":"soon""#,
            ".startTimeUnixNano: expected an integer from 0 to 18446744073709551615, found \"soon\", byte offset 64",
        ),
        (
            r#""startTimeUnixNano":-1"#,
            ".startTimeUnixNano: expected an integer",
        ),
        (
            r#""startTimeUnixNano":1.5"#,
            ".startTimeUnixNano: expected an integer",
        ),
        (
            r#""startTimeUnixNano":18446744073709551616"#,
            ".startTimeUnixNano: expected an integer",
        ),
        (
            r#""startTimeUnixNano":{"low":1}"#,
            ".startTimeUnixNano: expected both \"low\" and \"high\"",
        ),
        (
            r#""startTimeUnixNano":{"low":4294967296,"high":0}"#,
            ".startTimeUnixNano: expected an integer of 32 bits",
        ),
        (
            r#""start_time_unix_nano":[]"#,
            ".startTimeUnixNano: expected an integer",
        ),
        (
            r#""droppedLinksCount":4294967296"#,
            ".droppedLinksCount: expected an integer from 0 to 4294967295",
        ),
        (r#""name":7"#, ".name: expected a string, found 7"),
        (r#""name":{}"#, ".name: expected a string, found {"),
        (
            r#""name":"a","name":"a""#,
            ".name: expected each key once, found \"name\"",
        ),
        (
            r#""traceId":"","trace_id":"""#,
            ".traceId: expected each key once, found \"trace_id\"",
        ),
        (
            r#""traceId":"W47/95gDgQPSabYzgT/GDA==""#,
            ".traceId: expected hex digits (IDs are not in base64",
        ),
        (r#""spanId":7"#, ".spanId: expected hex digits"),
        (
            r#""kind":"SERVER""#,
            ".kind: expected a number or a name of the enum, found \"SERVER\"",
        ),
        (r#""kind":true"#, ".kind: expected a number or a name"),
        (r#""flags":"x""#, ".flags: expected an integer"),
        (
            r#""attributes":{}"#,
            ".attributes: expected a list, found {",
        ),
        (
            r#""attributes":[1]"#,
            ".attributes[0]: expected an object, found 1",
        ),
        (
            r#""attributes":[{},{}"#,
            ".attributes[1]: expected ',' or ']', found }",
        ),
        (
            r#""events":[{},{"timeUnixNano":"x"}]"#,
            ".events[1].timeUnixNano: expected",
        ),
        (r#""status":[]"#, ".status: expected an object, found ["),
        (
            r#""status":{"code":2147483648}"#,
            ".status.code: expected a number or a name of the enum, found 2147483648",
        ),
        (
            r#""name":"a" "kind":1"#,
            ": expected ',' or '}', found \"kind\"",
        ),
        (
            r#""name":"a","#,
            ": expected a key in double quotes, found }",
        ),
        (r#""name" 1"#, ": expected ':' after a key, found 1"),
        (r#"name:1"#, ": expected a key in double quotes, found name"),
        (
            r#""name":"a\x""#,
            ".name: expected an escape that JSON has, found \\x",
        ),
        (
            r#""name":"\u12g4""#,
            ".name: expected an escape that JSON has",
        ),
        (
            "\"name\":\"a\nb\"",
            ".name: expected no control character in a string, found \\n",
        ),
        (r#""x":tru"#, ": expected true, found tru"),
        (r#""x":[1,2}"#, ": expected ',' or ']', found }"),
        (r#""x":01"#, ": expected ',' or '}', found 1"),
        (r#""kind":0x1"#, ": expected ',' or '}', found x1"),
        (r#""kind":-"#, ".kind: expected a digit, found }"),
        (r#""kind":1."#, ".kind: expected a digit, found }"),
    ] {
        let error = error_of(&with_span(fields));
        assert!(
            error.starts_with(&format!("{at}{says}")),
            "{fields}: {error}"
        );
    }
    for (value, says) in [
        (
            r#"{"boolValue":"true"}"#,
            "boolValue: expected true or false, found \"true\"",
        ),
        (
            r#"{"boolValue":1}"#,
            "boolValue: expected true or false, found 1",
        ),
        (
            r#"{"intValue":9223372036854775808}"#,
            "intValue: expected an integer of 64 bits",
        ),
        (
            r#"{"intValue":""}"#,
            "intValue: expected an integer of 64 bits, found \"\"",
        ),
        (
            r#"{"intValue":" 1"}"#,
            "intValue: expected an integer of 64 bits, found \" 1\"",
        ),
        (
            r#"{"doubleValue":1e400}"#,
            "doubleValue: expected a number, \"NaN\"",
        ),
        (
            r#"{"doubleValue":"inf"}"#,
            "doubleValue: expected a number, \"NaN\"",
        ),
        (
            r#"{"doubleValue":NaN}"#,
            "doubleValue: expected a number, \"NaN\"",
        ),
        (
            r#"{"bytesValue":"a"}"#,
            "bytesValue: expected base64, found \"a\"",
        ),
        (
            r#"{"bytesValue":{"0":256}}"#,
            "bytesValue: expected a byte, found 256",
        ),
        (
            r#"{"bytesValue":{"1":1}}"#,
            "bytesValue: expected base64, or the bytes by their places",
        ),
        (
            r#"{"stringValue":"","intValue":1}"#,
            "intValue: expected one value in an AnyValue, found \"intValue\"",
        ),
        (
            r#"{"arrayValue":[]}"#,
            "arrayValue: expected an object, found [",
        ),
        (
            r#"{"arrayValue":{"values":[{},{"stringValue":1}]}}"#,
            "arrayValue.values[1].stringValue: expected a string",
        ),
        (
            r#"{"kvlistValue":{"values":[{"key":1}]}}"#,
            "kvlistValue.values[0].key: expected a string",
        ),
    ] {
        let error = error_of(&with_value(value));
        // Of a path longer than eleven steps the middle is left out.
        let (path, rest) = says.split_once(": ").unwrap();
        assert!(
            error.starts_with(at) && error.contains(&format!("{path}: {rest}")),
            "{value}: {error}"
        );
    }
    for (json, says) in [
        (
            "",
            "the request: expected an object, the ExportTraceServiceRequest, found the end of the text, byte offset 0",
        ),
        (
            "[]",
            "the request: expected an object, the ExportTraceServiceRequest, found [, byte offset 0",
        ),
        ("null", "the request: expected an object"),
        (
            "{} {}",
            "the request: expected nothing after the request, found {, byte offset 3",
        ),
        (
            "{",
            "the request: expected a key or '}', found the end of the text, byte offset 1",
        ),
        ("{,}", "the request: expected a key in double quotes"),
        ("\u{feff}\u{feff}{}", "the request: expected an object"),
        (
            r#"{"resourceSpans":[{}]]}"#,
            "the request: expected ',' or '}', found ], byte offset 21",
        ),
    ] {
        let error = error_of(json);
        assert!(error.starts_with(says), "{json}: {error}");
    }
    let error = json_to_protobuf(b"{\"x\":\"a\xff\"}", usize::MAX).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the request: expected UTF-8, found \u{fffd}, byte offset 7"
    );
}

#[test]
fn ten_thousand_levels_are_an_error_and_not_a_stack() {
    let lists = "{\"arrayValue\":{\"values\":[".repeat(10_000);
    let maps = "{\"kvlistValue\":{\"values\":[{\"value\":".repeat(10_000);
    for open in [&lists, &maps] {
        let error = error_of(&with_value(open));
        assert!(
            error.contains("expected at most 200 messages inside messages"),
            "{error}"
        );
        assert!(error.starts_with("resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value."));
        assert!(error.len() < 400, "{error}");
    }
    for open in ["[", "{\"a\":"] {
        let error = error_of(&format!("{{\"x\":{}", open.repeat(1_000_000)));
        assert!(error.contains("expected at most 256 levels"), "{error}");
    }
    // Too deep for a backend, not for us: the span is rejected alone.
    let close = "]}}".repeat(70);
    let json = with_value(&format!("{}{close}", &lists[..70 * 25]));
    let scan = scanned(&read(&json)).unwrap();
    assert_eq!(scan.rejections().count(RejectReason::NestedTooDeep), 1);
    // And not too deep for anybody.
    let close = "]}}".repeat(40);
    let json = with_value(&format!("{}{close}", &lists[..40 * 25]));
    assert!(scanned(&read(&json)).unwrap().is_whole());
}

#[test]
fn no_text_becomes_more_than_was_reckoned_with() {
    let many = |item: &str| {
        let items = vec![item; 50_000].join(",");
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{items}]}}]}}]}}"#)
    };
    for item in [
        r#"{"kind":-1}"#,
        "{}",
        "null",
        r#"{"flags":1}"#,
        r#"{"status":{"code":-1}}"#,
        r#"{"links":[{},{}]}"#,
    ] {
        let json = many(item);
        let message = read(&json);
        assert!(message.len() <= protobuf_bytes_max(json.len()), "{item}");
        assert_eq!(
            decoded(&json).resource_spans[0].scope_spans[0].spans.len(),
            50_000
        );
    }
    // The one thing that grows.
    let json = many(r#"{"kind":-1}"#);
    assert!(read(&json).len() > json.len());
    let error = json_to_protobuf(json.as_bytes(), json.len()).unwrap_err();
    assert!(matches!(error, JsonError::TooLarge { .. }), "{error}");
}

/// Of the fuzz corpus.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let agent = agents::batch(agents::Shape::Agent, 3, 1);
    let size = Size {
        resources: 2,
        scopes: 2,
        spans: 3,
        traces: 2,
        strange: false,
        wrong: 0,
    };
    let strange = |seed| {
        let message = noise::request(seed, size);
        let request = ExportTraceServiceRequest::decode(&message[..]).unwrap();
        written(&request, seed, false)
    };
    let nested = format!(
        "{}{{}}{}",
        "{\"arrayValue\":{\"values\":[".repeat(30),
        "]}}".repeat(30)
    );
    let seeds = [
        ("agent-sdk", written(&agent, 0, true)),
        ("agent-serde", serde_json::to_string(&agent).unwrap()),
        ("agent-collector", line(&agent.encode_to_vec()).unwrap()),
        ("strange-1", strange(1)),
        ("strange-2", strange(2)),
        ("strange-3", strange(3)),
        ("nested", with_value(&nested)),
        (
            "halves",
            with_span(r#""startTimeUnixNano":{"low":-1,"high":395885402}"#),
        ),
        ("bytes", with_value(r#"{"bytesValue":{"0":104,"1":105}}"#)),
        (
            "escapes",
            with_value(r#"{"stringValue":"\ud83e\udd80 \u00e9\n\"\\\/\ud83e"}"#),
        ),
        (
            "numbers",
            with_span(r#""kind":"SPAN_KIND_SERVER","flags":"1.50e2","droppedLinksCount":1200E-2"#),
        ),
        (
            "nulls",
            with_span(r#""name":null,"events":[null,{}],"status":null"#),
        ),
        ("empty", "{}".to_owned()),
    ];
    seeds.map(|(name, seed)| (name, seed.into_bytes())).to_vec()
}
