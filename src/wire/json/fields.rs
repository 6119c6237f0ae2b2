//! The messages of a trace request by the names that JSON gives their fields.

use crate::wire::field::{FIXED32, FIXED64, LEN, VARINT};

/// Messages. Numbers and names are those of opentelemetry-proto v1.11.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    ResourceSpans,
    Resource,
    EntityRef,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    Status,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

/// What a field's value looks like in JSON and in protobuf.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Text,
    Texts,
    /// Hex.
    Id,
    Base64,
    Bool,
    Int32,
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Double,
    /// Names in the order of their numbers, from 0 on.
    Enum(&'static [&'static str]),
    Message(Kind),
    Messages(Kind),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// In lowerCamelCase.
    pub(super) name: &'static str,
    pub(super) number: u8,
    pub(super) shape: Shape,
}

const SPAN_KINDS: &[&str] = &[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
const STATUS_CODES: &[&str] = &["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

impl Shape {
    pub(super) fn wire_type(self) -> u32 {
        match self {
            Self::Bool | Self::Int32 | Self::Int64 | Self::Uint32 | Self::Enum(_) => VARINT,
            Self::Fixed64 | Self::Double => FIXED64,
            Self::Fixed32 => FIXED32,
            _ => LEN,
        }
    }
}

impl Kind {
    /// Bytes to keep for the length before such a message: what most of them need. Another
    /// length is made to fit by moving the message.
    pub(super) fn length_bytes(self) -> usize {
        match self {
            Self::Request => 0,
            Self::ResourceSpans | Self::ScopeSpans => 3,
            Self::Resource | Self::Span => 2,
            _ => 1,
        }
    }

    /// `None`: a key that we do not know.
    #[inline]
    pub(super) fn field(self, key: &[u8]) -> Option<Field> {
        macro_rules! fields {
            ($($name:literal $(| $proto:literal)? = $number:literal $shape:expr;)*) => {
                match key {
                    $(key if key == $name.as_bytes() $(|| key == $proto.as_bytes())? => {
                        Some(Field { name: $name, number: $number, shape: $shape })
                    })*
                    _ => None,
                }
            };
        }
        match self {
            Self::Request => fields! {
                "resourceSpans" | "resource_spans" = 1 Shape::Messages(Self::ResourceSpans);
            },
            Self::ResourceSpans => fields! {
                "resource" = 1 Shape::Message(Self::Resource);
                "scopeSpans" | "scope_spans" = 2 Shape::Messages(Self::ScopeSpans);
                "schemaUrl" | "schema_url" = 3 Shape::Text;
            },
            Self::Resource => fields! {
                "attributes" = 1 Shape::Messages(Self::KeyValue);
                "droppedAttributesCount" | "dropped_attributes_count" = 2 Shape::Uint32;
                "entityRefs" | "entity_refs" = 3 Shape::Messages(Self::EntityRef);
            },
            Self::EntityRef => fields! {
                "schemaUrl" | "schema_url" = 1 Shape::Text;
                "type" = 2 Shape::Text;
                "idKeys" | "id_keys" = 3 Shape::Texts;
                "descriptionKeys" | "description_keys" = 4 Shape::Texts;
            },
            Self::ScopeSpans => fields! {
                "scope" = 1 Shape::Message(Self::Scope);
                "spans" = 2 Shape::Messages(Self::Span);
                "schemaUrl" | "schema_url" = 3 Shape::Text;
            },
            Self::Scope => fields! {
                "name" = 1 Shape::Text;
                "version" = 2 Shape::Text;
                "attributes" = 3 Shape::Messages(Self::KeyValue);
                "droppedAttributesCount" | "dropped_attributes_count" = 4 Shape::Uint32;
            },
            Self::Span => fields! {
                "traceId" | "trace_id" = 1 Shape::Id;
                "spanId" | "span_id" = 2 Shape::Id;
                "traceState" | "trace_state" = 3 Shape::Text;
                "parentSpanId" | "parent_span_id" = 4 Shape::Id;
                "name" = 5 Shape::Text;
                "kind" = 6 Shape::Enum(SPAN_KINDS);
                "startTimeUnixNano" | "start_time_unix_nano" = 7 Shape::Fixed64;
                "endTimeUnixNano" | "end_time_unix_nano" = 8 Shape::Fixed64;
                "attributes" = 9 Shape::Messages(Self::KeyValue);
                "droppedAttributesCount" | "dropped_attributes_count" = 10 Shape::Uint32;
                "events" = 11 Shape::Messages(Self::Event);
                "droppedEventsCount" | "dropped_events_count" = 12 Shape::Uint32;
                "links" = 13 Shape::Messages(Self::Link);
                "droppedLinksCount" | "dropped_links_count" = 14 Shape::Uint32;
                "status" = 15 Shape::Message(Self::Status);
                "flags" = 16 Shape::Fixed32;
            },
            Self::Event => fields! {
                "timeUnixNano" | "time_unix_nano" = 1 Shape::Fixed64;
                "name" = 2 Shape::Text;
                "attributes" = 3 Shape::Messages(Self::KeyValue);
                "droppedAttributesCount" | "dropped_attributes_count" = 4 Shape::Uint32;
            },
            Self::Link => fields! {
                "traceId" | "trace_id" = 1 Shape::Id;
                "spanId" | "span_id" = 2 Shape::Id;
                "traceState" | "trace_state" = 3 Shape::Text;
                "attributes" = 4 Shape::Messages(Self::KeyValue);
                "droppedAttributesCount" | "dropped_attributes_count" = 5 Shape::Uint32;
                "flags" = 6 Shape::Fixed32;
            },
            Self::Status => fields! {
                "message" = 2 Shape::Text;
                "code" = 3 Shape::Enum(STATUS_CODES);
            },
            Self::KeyValue => fields! {
                "key" = 1 Shape::Text;
                "value" = 2 Shape::Message(Self::AnyValue);
                "keyStrindex" | "key_strindex" = 3 Shape::Int32;
            },
            Self::AnyValue => fields! {
                "stringValue" | "string_value" = 1 Shape::Text;
                "boolValue" | "bool_value" = 2 Shape::Bool;
                "intValue" | "int_value" = 3 Shape::Int64;
                "doubleValue" | "double_value" = 4 Shape::Double;
                "arrayValue" | "array_value" = 5 Shape::Message(Self::ArrayValue);
                "kvlistValue" | "kvlist_value" = 6 Shape::Message(Self::KeyValueList);
                "bytesValue" | "bytes_value" = 7 Shape::Base64;
                "stringValueStrindex" | "string_value_strindex" = 8 Shape::Int32;
            },
            Self::ArrayValue => fields! {
                "values" = 1 Shape::Messages(Self::AnyValue);
            },
            Self::KeyValueList => fields! {
                "values" = 1 Shape::Messages(Self::KeyValue);
            },
        }
    }
}
