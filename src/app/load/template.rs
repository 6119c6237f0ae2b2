//! Spans encoded once, with the places where each copy differs: IDs, times, conversation.
//! Written by hand rather than by prost, because the places must be known.

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

use crate::app::ledger::{SpanFacts, SpanKey};
use crate::model::{SpanId, TraceId};

/// OTLP's span kinds, as far as they are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpanKind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// Index of a (service, instrumentation scope) pair within a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScopeIndex(pub(super) usize);

/// One span as meant, before it is encoded. Times are nanoseconds since the start of its trace.
#[derive(Debug, Clone)]
pub(super) struct SpanPlan {
    pub(super) scope: ScopeIndex,
    pub(super) name: String,
    pub(super) kind: SpanKind,
    pub(super) parent: Option<usize>,
    pub(super) start_nanos: u64,
    pub(super) end_nanos: u64,
    pub(super) attributes: Vec<KeyValue>,
    /// Adds a `gen_ai.conversation.id` that differs from trace to trace.
    pub(super) has_conversation: bool,
    pub(super) events: Vec<EventPlan>,
    /// The message of a status ERROR.
    pub(super) error: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct EventPlan {
    pub(super) name: &'static str,
    pub(super) at_nanos: u64,
    pub(super) attributes: Vec<KeyValue>,
}

/// A whole trace in the order of its spans' ends, so the root comes last.
#[derive(Debug)]
pub(super) struct TraceTemplate {
    pub(super) spans: Vec<SpanTemplate>,
    pub(super) duration_nanos: u64,
}

/// A span as a field of a ScopeSpans (`12 len span`) with the places to stamp.
#[derive(Debug)]
pub(super) struct SpanTemplate {
    pub(super) scope: ScopeIndex,
    bytes: Vec<u8>,
    trace_at: usize,
    span_at: usize,
    parent: Option<Parent>,
    conversation_at: Option<usize>,
    /// Where an eight-byte time stands, and how long after the trace's start it is: the span's
    /// start, its end, then its events'.
    times: Vec<(usize, u64)>,
    has_error: bool,
    tenant: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy)]
struct Parent {
    at: usize,
    index: usize,
}

/// What makes one copy of a [`TraceTemplate`] a trace of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct TraceStamp {
    pub(super) trace: TraceId,
    /// Where span IDs start; see [`TraceStamp::span_id`].
    pub(super) span_seed: u64,
    pub(super) started_unix_nanos: u64,
    /// Hex digits of the conversation.
    pub(super) conversation: [u8; 16],
}

impl TraceStamp {
    /// IDs are distinct within a trace and never zero: the low 16 bits of what is mixed count
    /// from 1, and the mixer (splitmix64's finaliser) is a bijection that maps only 0 to 0.
    fn span_id(&self, index: usize) -> [u8; 8] {
        let mut mixed = (self.span_seed & !0xffff) | ((index as u64 + 1) & 0xffff);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_be_bytes()
    }
}

impl TraceTemplate {
    /// Spans per trace at most, because of how span IDs are made.
    pub(super) const SPANS_MAX: usize = 0xfffe;

    /// `plans[0]` is the root; a child ends before its parent.
    pub(super) fn encode(plans: &[SpanPlan]) -> Self {
        debug_assert!(plans.len() <= Self::SPANS_MAX);
        let mut order: Vec<usize> = (0..plans.len()).collect();
        // Children were planned after their parents, so on equal ends the later plan goes first.
        order.sort_by_key(|index| (plans[*index].end_nanos, std::cmp::Reverse(*index)));
        let mut place = vec![0; plans.len()];
        for (position, index) in order.iter().enumerate() {
            place[*index] = position;
        }
        Self {
            spans: order
                .iter()
                .map(|index| {
                    let plan = &plans[*index];
                    SpanTemplate::encode(plan, plan.parent.map(|parent| place[parent]))
                })
                .collect(),
            duration_nanos: plans.iter().map(|plan| plan.end_nanos).max().unwrap_or(0),
        }
    }
}

impl SpanTemplate {
    fn encode(plan: &SpanPlan, parent: Option<usize>) -> Self {
        let mut body = Body::default();
        let trace_at = body.reserve(&[0x0a, 16], 16);
        let span_at = body.reserve(&[0x12, 8], 8);
        let mut parent = parent.map(|index| Parent {
            at: body.reserve(&[0x22, 8], 8),
            index,
        });
        body.field(0x2a, plan.name.as_bytes());
        body.bytes.extend_from_slice(&[0x30, plan.kind as u8]);
        let mut times = vec![
            (body.reserve(&[0x39], 8), plan.start_nanos),
            (body.reserve(&[0x41], 8), plan.end_nanos),
        ];
        for attribute in &plan.attributes {
            body.field(0x4a, &attribute.encode_to_vec());
        }
        let mut conversation_at = plan.has_conversation.then(|| {
            let value = "conv_0000000000000000";
            let attribute = text("gen_ai.conversation.id", value);
            body.field(0x4a, &attribute.encode_to_vec());
            // The value is the last thing in its KeyValue, and the digits the last in the value.
            body.bytes.len() - 16
        });
        for event in &plan.events {
            let mut inner = Body::default();
            let time_at = inner.reserve(&[0x09], 8);
            inner.field(0x12, event.name.as_bytes());
            for attribute in &event.attributes {
                inner.field(0x1a, &attribute.encode_to_vec());
            }
            let starts_at = body.field(0x5a, &inner.bytes);
            times.push((starts_at + time_at, event.at_nanos));
        }
        if let Some(message) = &plan.error {
            let mut status = Body::default();
            status.field(0x12, message.as_bytes());
            status.bytes.extend_from_slice(&[0x18, 2]);
            body.field(0x7a, &status.bytes);
        }
        // W3C sampled and random, and whether the parent is in another process is known.
        let flags: u32 = match (plan.kind, plan.parent) {
            (SpanKind::Server, Some(_)) => 0x303,
            _ => 0x103,
        };
        body.bytes.extend_from_slice(&[0x85, 0x01]);
        body.bytes.extend_from_slice(&flags.to_le_bytes());

        // Read back by somebody else's decoder, so that the books tell what is sent, and not what
        // was meant.
        #[expect(clippy::expect_used, reason = "encoded just above")]
        let decoded = Span::decode(body.bytes.as_slice()).expect("a span");
        let has_error = decoded
            .status
            .is_some_and(|status| status.code() == StatusCode::Error);
        let tenant = decoded
            .attributes
            .into_iter()
            .find(|attribute| attribute.key == "tenant.id")
            .and_then(|attribute| match attribute.value?.value? {
                Value::StringValue(tenant) => Some(tenant.into()),
                _ => None,
            });

        let mut span = Body::default();
        let shift = span.field(0x12, &body.bytes);
        for (at, _) in &mut times {
            *at += shift;
        }
        if let Some(parent) = &mut parent {
            parent.at += shift;
        }
        if let Some(at) = &mut conversation_at {
            *at += shift;
        }
        Self {
            scope: plan.scope,
            bytes: span.bytes,
            trace_at: trace_at + shift,
            span_at: span_at + shift,
            parent,
            conversation_at,
            times,
            has_error,
            tenant,
        }
    }

    /// When it ends, in nanoseconds since the start of its trace.
    pub(super) fn end_nanos(&self) -> u64 {
        self.times[1].1
    }

    /// What the copy that has this key shows to a policy.
    pub(super) fn facts(
        &self,
        key: SpanKey,
        stamp: &TraceStamp,
        of_broken_turn: bool,
    ) -> SpanFacts {
        SpanFacts {
            key,
            start_unix_nanos: stamp.started_unix_nanos + self.times[0].1,
            end_unix_nanos: stamp.started_unix_nanos + self.end_nanos(),
            has_error: self.has_error,
            of_broken_turn,
            tenant: self.tenant.clone(),
        }
    }

    /// Appends a copy, the `index`th of its trace, to the spans of its scope.
    pub(super) fn stamp(&self, index: usize, stamp: &TraceStamp, out: &mut Vec<u8>) -> SpanKey {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let copy = &mut out[start..];
        let id = stamp.span_id(index);
        copy[self.trace_at..self.trace_at + 16].copy_from_slice(stamp.trace.as_bytes());
        copy[self.span_at..self.span_at + 8].copy_from_slice(&id);
        if let Some(Parent { at, index }) = self.parent {
            copy[at..at + 8].copy_from_slice(&stamp.span_id(index));
        }
        if let Some(at) = self.conversation_at {
            copy[at..at + 16].copy_from_slice(&stamp.conversation);
        }
        for (at, nanos) in &self.times {
            let time = stamp.started_unix_nanos + nanos;
            copy[*at..at + 8].copy_from_slice(&time.to_le_bytes());
        }
        #[expect(clippy::expect_used, reason = "span_id is never zero")]
        let span = SpanId::new(id).expect("mixed from a number that is not zero");
        SpanKey {
            trace: stamp.trace,
            span,
        }
    }
}

/// A protobuf message being written, field by field.
#[derive(Default)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
}

impl Body {
    /// Writes the tag (and length), and zeros to be stamped; returns where these are.
    fn reserve(&mut self, tag: &[u8], zeros: usize) -> usize {
        self.bytes.extend_from_slice(tag);
        let at = self.bytes.len();
        self.bytes.resize(at + zeros, 0);
        at
    }

    /// Writes a length-delimited field; returns where its content starts.
    pub(super) fn field(&mut self, tag: u8, content: &[u8]) -> usize {
        self.bytes.push(tag);
        write_varint(content.len(), &mut self.bytes);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(content);
        at
    }
}

/// A protobuf varint.
pub(super) fn write_varint(value: usize, out: &mut Vec<u8>) {
    let mut left = value;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

pub(super) fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

pub(super) fn double(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

pub(super) fn flag(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

pub(super) fn list(key: &str, values: &[&str]) -> KeyValue {
    let values = values
        .iter()
        .map(|value| AnyValue {
            value: Some(Value::StringValue((*value).to_owned())),
        })
        .collect();
    attribute(key, Value::ArrayValue(ArrayValue { values }))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
