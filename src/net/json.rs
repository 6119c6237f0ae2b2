//! OTLP protobuf as OTLP/JSON, byte for byte as the Collector's file exporter writes it.
//!
//! Source: pdata's JSON marshaler of the Collector (`pdata/internal/generated_proto_*.go`,
//! `pdata/internal/json/stream.go`) and jsoniter's stream, read and not run. Fields
//! in the order of their messages, lowerCamelCase, empty ones left out but for `resource`, `scope`,
//! `status` and a key's `value`; IDs in hex, 64-bit integers as strings, enums as numbers, bytes in
//! base64, numbers as Go formats them. Reading JSON is `wire`'s.
//!
//! A slow path: it decodes the message into structs.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

/// The message is not an `ExportTraceServiceRequest`; it will not be one later either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message is no ExportTraceServiceRequest: {0}")]
pub struct NotARequest(String);

/// An encoded `ExportTraceServiceRequest` as one line, with its newline.
pub fn line(message: &[u8]) -> Result<String, NotARequest> {
    let request =
        ExportTraceServiceRequest::decode(message).map_err(|e| NotARequest(e.to_string()))?;
    let mut json = Json {
        text: String::with_capacity(message.len() * 2),
    };
    json.object(|o| o.list("resourceSpans", &request.resource_spans, resource_spans));
    json.text.push('\n');
    Ok(json.text)
}

fn resource_spans(o: &mut Fields<'_>, of: &ResourceSpans) {
    o.message("resource", |o| {
        if let Some(it) = &of.resource {
            resource(o, it);
        }
    });
    o.list("scopeSpans", &of.scope_spans, scope_spans);
    o.string("schemaUrl", &of.schema_url);
}

fn resource(o: &mut Fields<'_>, of: &Resource) {
    o.list("attributes", &of.attributes, key_value);
    o.number("droppedAttributesCount", of.dropped_attributes_count);
    o.list("entityRefs", &of.entity_refs, entity_ref);
}

fn entity_ref(o: &mut Fields<'_>, of: &EntityRef) {
    o.string("schemaUrl", &of.schema_url);
    o.string("type", &of.r#type);
    o.strings("idKeys", &of.id_keys);
    o.strings("descriptionKeys", &of.description_keys);
}

fn scope_spans(o: &mut Fields<'_>, of: &ScopeSpans) {
    o.message("scope", |o| {
        if let Some(it) = &of.scope {
            scope(o, it);
        }
    });
    o.list("spans", &of.spans, span);
    o.string("schemaUrl", &of.schema_url);
}

fn scope(o: &mut Fields<'_>, of: &InstrumentationScope) {
    o.string("name", &of.name);
    o.string("version", &of.version);
    o.list("attributes", &of.attributes, key_value);
    o.number("droppedAttributesCount", of.dropped_attributes_count);
}

fn span(o: &mut Fields<'_>, of: &Span) {
    o.id("traceId", &of.trace_id);
    o.id("spanId", &of.span_id);
    o.string("traceState", &of.trace_state);
    o.id("parentSpanId", &of.parent_span_id);
    o.number("flags", of.flags);
    o.string("name", &of.name);
    o.number("kind", of.kind);
    o.nanos("startTimeUnixNano", of.start_time_unix_nano);
    o.nanos("endTimeUnixNano", of.end_time_unix_nano);
    o.list("attributes", &of.attributes, key_value);
    o.number("droppedAttributesCount", of.dropped_attributes_count);
    o.list("events", &of.events, event);
    o.number("droppedEventsCount", of.dropped_events_count);
    o.list("links", &of.links, link);
    o.number("droppedLinksCount", of.dropped_links_count);
    o.message("status", |o| {
        if let Some(it) = &of.status {
            status(o, it);
        }
    });
}

fn event(o: &mut Fields<'_>, of: &Event) {
    o.nanos("timeUnixNano", of.time_unix_nano);
    o.string("name", &of.name);
    o.list("attributes", &of.attributes, key_value);
    o.number("droppedAttributesCount", of.dropped_attributes_count);
}

fn link(o: &mut Fields<'_>, of: &Link) {
    o.id("traceId", &of.trace_id);
    o.id("spanId", &of.span_id);
    o.string("traceState", &of.trace_state);
    o.list("attributes", &of.attributes, key_value);
    o.number("droppedAttributesCount", of.dropped_attributes_count);
    o.number("flags", of.flags);
}

fn status(o: &mut Fields<'_>, of: &Status) {
    o.string("message", &of.message);
    o.number("code", of.code);
}

fn key_value(o: &mut Fields<'_>, of: &KeyValue) {
    o.string("key", &of.key);
    o.message("value", |o| {
        if let Some(it) = &of.value {
            any_value(o, it);
        }
    });
}

/// Nests as deep as prost decodes, which is 100 messages.
fn any_value(o: &mut Fields<'_>, of: &AnyValue) {
    match &of.value {
        None => {}
        // Chosen values are written even when they are empty.
        Some(Value::StringValue(text)) => o.key("stringValue").string(text),
        Some(Value::BoolValue(value)) => o.key("boolValue").raw(value),
        Some(Value::IntValue(value)) => o.key("intValue").quoted(value),
        Some(Value::DoubleValue(value)) => o.key("doubleValue").double(*value),
        Some(Value::ArrayValue(array)) => {
            o.message("arrayValue", |o| o.list("values", &array.values, any_value));
        }
        Some(Value::KvlistValue(list)) => {
            o.message("kvlistValue", |o| o.list("values", &list.values, key_value));
        }
        Some(Value::BytesValue(bytes)) => o.key("bytesValue").quoted(&STANDARD.encode(bytes)),
        // An index into a profile's string table, which a trace does not have.
        Some(Value::StringValueStrindex(_)) => {}
    }
}

/// JSON as it grows.
struct Json {
    text: String,
}

/// The fields of one object that is being written.
struct Fields<'a> {
    json: &'a mut Json,
    any: bool,
}

impl Fields<'_> {
    /// The caller writes the value.
    fn key(&mut self, name: &str) -> &mut Json {
        if self.any {
            self.json.text.push(',');
        }
        self.any = true;
        self.json.quoted(&name);
        self.json.text.push(':');
        self.json
    }

    /// Written even when it is empty.
    fn message(&mut self, name: &str, write: impl FnOnce(&mut Fields<'_>)) {
        self.key(name).object(write);
    }

    fn list<T>(&mut self, name: &str, items: &[T], write: impl Fn(&mut Fields<'_>, &T)) {
        if !items.is_empty() {
            self.key(name)
                .array(items, |json, item| json.object(|o| write(o, item)));
        }
    }

    fn strings(&mut self, name: &str, items: &[String]) {
        if !items.is_empty() {
            self.key(name).array(items, |json, item| json.string(item));
        }
    }

    fn string(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.key(name).string(value);
        }
    }

    fn number<N: Default + PartialEq + std::fmt::Display>(&mut self, name: &str, value: N) {
        if value != N::default() {
            self.key(name).raw(&value);
        }
    }

    fn nanos(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.key(name).quoted(&value);
        }
    }

    /// An ID of zeros is an absent one.
    fn id(&mut self, name: &str, bytes: &[u8]) {
        if bytes.iter().all(|byte| *byte == 0) {
            return;
        }
        let json = self.key(name);
        json.text.push('"');
        for byte in bytes {
            json.raw(&format_args!("{byte:02x}"));
        }
        json.text.push('"');
    }
}

impl Json {
    fn object(&mut self, write: impl FnOnce(&mut Fields<'_>)) {
        self.text.push('{');
        write(&mut Fields {
            json: self,
            any: false,
        });
        self.text.push('}');
    }

    fn array<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.text.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            write(self, item);
        }
        self.text.push(']');
    }

    fn raw(&mut self, value: &impl std::fmt::Display) {
        // Writing into a String does not fail.
        let _always_ok = write!(self.text, "{value}");
    }

    /// For what needs no escapes.
    fn quoted(&mut self, value: &impl std::fmt::Display) {
        self.text.push('"');
        self.raw(value);
        self.text.push('"');
    }

    /// As jsoniter writes it: 1 and not 1.0; exponents only below 1e-6 and from 1e21, without the
    /// zero that Go's strconv puts before a single digit (older releases of jsoniter kept it).
    fn double(&mut self, value: f64) {
        if value.is_nan() {
            self.text.push_str("\"NaN\"");
        } else if value.is_infinite() {
            self.text
                .push_str(if value > 0.0 { "\"+Inf\"" } else { "\"-Inf\"" });
        } else if value == 0.0 || (1e-6..1e21).contains(&value.abs()) {
            self.raw(&value);
        } else {
            let scientific = format!("{value:e}");
            let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            self.raw(&format_args!("{digits}e{sign}{exponent}"));
        }
    }

    fn string(&mut self, value: &str) {
        self.text.push('"');
        let mut copied = 0;
        for (at, byte) in value.bytes().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            self.text.push_str(&value[copied..at]);
            copied = at + 1;
            match byte {
                b'"' => self.text.push_str("\\\""),
                b'\\' => self.text.push_str("\\\\"),
                b'\n' => self.text.push_str("\\n"),
                b'\r' => self.text.push_str("\\r"),
                b'\t' => self.text.push_str("\\t"),
                _ => self.raw(&format_args!("\\u{byte:04x}")),
            }
        }
        self.text.push_str(&value[copied..]);
        self.text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(value: f64) -> String {
        let mut json = Json {
            text: String::new(),
        };
        json.double(value);
        json.text
    }

    #[test]
    fn doubles_look_as_go_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (1.1, "1.1"),
            (-2.5, "-2.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1.5e300, "1.5e+300"),
            (1e-6, "0.000001"),
            (1.25e-7, "1.25e-7"),
            (1e-10, "1e-10"),
            (5e-324, "5e-324"),
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"+Inf\""),
            (f64::NEG_INFINITY, "\"-Inf\""),
        ] {
            assert_eq!(double(value), text);
        }
    }

    #[test]
    fn strings_are_escaped_and_read_back() {
        let text: String = (0..0x300).filter_map(char::from_u32).collect();
        let mut json = Json {
            text: String::new(),
        };
        json.string(&text);
        assert!(json.text.contains("\\u0008\\t\\n\\u000b\\u000c\\r"));
        assert_eq!(serde_json::from_str::<String>(&json.text).unwrap(), text);
    }

    #[test]
    fn garbage_is_refused() {
        assert!(line(&[0x0a, 0xff]).is_err());
        assert_eq!(line(&[]).unwrap(), "{}\n");
    }
}
