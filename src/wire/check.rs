//! Checks one message of trace.proto all the way down, without decoding it.
//!
//! What passes is decoded by prost, and by every backend we know of: each field has the wire type
//! that its message gives it, each string is UTF-8, IDs have a legal length, nesting is bounded.
//! Two ways to the same answer: [`Checker::message`] knows every rule and goes by tables;
//! [`plain_attribute`] recognises the shape that nearly all attributes have. Where messages lie in
//! a request is `scan`'s business.

use crate::wire::RejectReason;
use crate::wire::field::{Broken, Cursor, DEPTH_MAX, FIXED32, FIXED64, LEN, VARINT};

/// The messages below ScopeSpans and ResourceSpans. Numbers are those of opentelemetry-proto
/// v1.11.0: a message of ours knows just the fields that it knows there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Resource,
    EntityRef,
    Scope,
    Event,
    Link,
    Status,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

/// What a known field must look like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Varint,
    Fixed64,
    Fixed32,
    Text,
    Bytes,
    /// A link's ID: absent, or as long as an ID is. The Collector fails the whole batch otherwise.
    TraceId,
    SpanId,
    Message(Kind),
}

/// Depth of the message that holds what is checked: 0 is the request.
pub(super) const RESOURCE_DEPTH: u32 = 2;
pub(super) const SCOPE_DEPTH: u32 = 3;
pub(super) const SPAN_DEPTH: u32 = 3;

/// A message that is open while one inside it is read.
#[derive(Debug)]
struct Frame {
    kind: Kind,
    /// Where it ends. The walk goes on in it where the inner one ended.
    end: usize,
}

/// The stack of the walk, kept from message to message so that it is allocated once.
#[derive(Debug, Default)]
pub(super) struct Checker {
    open: Vec<Frame>,
}

fn shape_of(kind: Kind, field: u32) -> Option<Shape> {
    Some(match (kind, field) {
        (Kind::Resource, 1) => Shape::Message(Kind::KeyValue),
        (Kind::Resource, 2) => Shape::Varint,
        (Kind::Resource, 3) => Shape::Message(Kind::EntityRef),
        (Kind::EntityRef, 1..=4) => Shape::Text,
        (Kind::Scope, 1 | 2) => Shape::Text,
        (Kind::Scope, 3) => Shape::Message(Kind::KeyValue),
        (Kind::Scope, 4) => Shape::Varint,
        (Kind::Event, 1) => Shape::Fixed64,
        (Kind::Event, 2) => Shape::Text,
        (Kind::Event, 3) => Shape::Message(Kind::KeyValue),
        (Kind::Event, 4) => Shape::Varint,
        (Kind::Link, 1) => Shape::TraceId,
        (Kind::Link, 2) => Shape::SpanId,
        (Kind::Link, 3) => Shape::Text,
        (Kind::Link, 4) => Shape::Message(Kind::KeyValue),
        (Kind::Link, 5) => Shape::Varint,
        (Kind::Link, 6) => Shape::Fixed32,
        (Kind::Status, 2) => Shape::Text,
        (Kind::Status, 3) => Shape::Varint,
        (Kind::KeyValue, 1) => Shape::Text,
        (Kind::KeyValue, 2) => Shape::Message(Kind::AnyValue),
        (Kind::KeyValue, 3) => Shape::Varint,
        (Kind::AnyValue, 1) => Shape::Text,
        (Kind::AnyValue, 2 | 3 | 8) => Shape::Varint,
        (Kind::AnyValue, 4) => Shape::Fixed64,
        (Kind::AnyValue, 5) => Shape::Message(Kind::ArrayValue),
        (Kind::AnyValue, 6) => Shape::Message(Kind::KeyValueList),
        (Kind::AnyValue, 7) => Shape::Bytes,
        (Kind::ArrayValue, 1) => Shape::Message(Kind::AnyValue),
        (Kind::KeyValueList, 1) => Shape::Message(Kind::KeyValue),
        _ => return None,
    })
}

impl Shape {
    #[inline(always)]
    fn wire_type(self) -> u32 {
        match self {
            Self::Varint => VARINT,
            Self::Fixed64 => FIXED64,
            Self::Fixed32 => FIXED32,
            _ => LEN,
        }
    }
}

impl From<Broken> for RejectReason {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::TooDeep => Self::NestedTooDeep,
            _ => Self::Malformed,
        }
    }
}

impl Checker {
    /// Checks a message of `kind` that is `depth` messages below the request. `nesting_max` bounds
    /// the levels of AnyValue inside AnyValue.
    pub(super) fn message(
        &mut self,
        bytes: &[u8],
        kind: Kind,
        depth: u32,
        nesting_max: u32,
    ) -> Result<(), RejectReason> {
        if bytes.is_empty() {
            return Ok(()); // as most statuses are
        }
        // The sender chooses how deep this goes, so the walk keeps its own stack and bounds it.
        self.open.clear();
        let mut kind = kind;
        let mut end = bytes.len();
        let mut cursor = Cursor::new(bytes);
        let mut values_open = u32::from(kind == Kind::AnyValue);
        loop {
            let Some(tag) = cursor.tag()? else {
                let Some(outer) = self.open.pop() else {
                    return Ok(());
                };
                values_open -= u32::from(kind == Kind::AnyValue);
                cursor.rest = &bytes[end..outer.end];
                (kind, end) = (outer.kind, outer.end);
                continue;
            };
            let here = depth + self.open.len() as u32;
            let Some(shape) = shape_of(kind, tag >> 3) else {
                cursor.skip(tag, here)?;
                continue;
            };
            if tag & 7 != shape.wire_type() {
                return Err(RejectReason::Malformed);
            }
            match shape {
                Shape::Varint => drop(cursor.varint()?),
                Shape::Fixed64 => drop(cursor.fixed::<8>()?),
                Shape::Fixed32 => drop(cursor.fixed::<4>()?),
                Shape::Text => text(cursor.body()?)?,
                Shape::Bytes => drop(cursor.body()?),
                Shape::TraceId => drop(trace_id(cursor.body()?)?),
                Shape::SpanId => drop(span_id(cursor.body()?)?),
                Shape::Message(inner) => {
                    let body = cursor.body()?;
                    let body_end = end - cursor.rest.len();
                    // Of values one inside the other the outermost is level 0.
                    values_open += u32::from(inner == Kind::AnyValue);
                    if here >= DEPTH_MAX || values_open > nesting_max.saturating_add(1) {
                        return Err(RejectReason::NestedTooDeep);
                    }
                    self.open.push(Frame { kind, end });
                    (kind, end) = (inner, body_end);
                    cursor.rest = body;
                }
            }
        }
    }
}

/// Whether this is a KeyValue as every SDK writes it, with an ASCII key and one scalar value, all
/// of it shorter than 128 bytes. `false` says nothing.
#[inline(always)]
pub(super) fn plain_attribute(bytes: &[u8]) -> bool {
    let [0x0A, key_len @ ..0x80, rest @ ..] = bytes else {
        return false;
    };
    let Some((key, value)) = rest.split_at_checked(*key_len as usize) else {
        return false;
    };
    let [0x12, value_len @ ..0x80, value @ ..] = value else {
        return false;
    };
    if value.len() != *value_len as usize {
        return false;
    }
    match value {
        // Tags and short lengths are ASCII as well: one pass over the whole attribute does for
        // both strings. How often its loop turns is what the processor guesses worst here.
        [0x0A, len @ ..0x80, string @ ..] => string.len() == *len as usize && is_ascii(bytes),
        [0x10, ..0x80] => is_ascii(key),
        // Nine bytes carry 63 bits; all ten are left to the long way.
        [0x18, int @ .., ..0x80] => {
            int.len() < 9 && int.iter().all(|byte| *byte >= 0x80) && is_ascii(key)
        }
        [0x21, double @ ..] => double.len() == 8 && is_ascii(key),
        _ => false,
    }
}

/// Names, keys and values have 5 to 60 bytes: too short for a call to pay.
#[inline(always)]
fn is_ascii(bytes: &[u8]) -> bool {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const HIGHER: u128 = (HIGH as u128) << 64 | HIGH as u128;
    if let Some(last) = bytes.last_chunk::<16>() {
        let mut seen = u128::from_ne_bytes(*last);
        for chunk in bytes.as_chunks::<16>().0 {
            seen |= u128::from_ne_bytes(*chunk);
        }
        seen & HIGHER == 0
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (u64::from_ne_bytes(*first) | u64::from_ne_bytes(*last)) & HIGH == 0
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (u32::from_ne_bytes(*first) | u32::from_ne_bytes(*last)) & HIGH as u32 == 0
    } else {
        bytes.iter().all(u8::is_ascii)
    }
}

#[inline(always)]
pub(super) fn text(bytes: &[u8]) -> Result<(), RejectReason> {
    // simdutf8 pays from about a cache line on; names are shorter and nearly always ASCII.
    if bytes.len() <= 64 && is_ascii(bytes) {
        return Ok(());
    }
    long_text(bytes)
}

#[inline(never)]
fn long_text(bytes: &[u8]) -> Result<(), RejectReason> {
    match simdutf8::basic::from_utf8(bytes) {
        Ok(_) => Ok(()),
        Err(_) => Err(RejectReason::InvalidUtf8),
    }
}

/// 16 bytes, or none.
#[inline(always)]
pub(super) fn trace_id(bytes: &[u8]) -> Result<Option<[u8; 16]>, RejectReason> {
    match bytes.try_into() {
        Ok(id) => Ok(Some(id)),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => Err(RejectReason::TraceIdLength),
    }
}

/// 8 bytes, or none.
#[inline(always)]
pub(super) fn span_id(bytes: &[u8]) -> Result<Option<[u8; 8]>, RejectReason> {
    match bytes.try_into() {
        Ok(id) => Ok(Some(id)),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => Err(RejectReason::SpanIdLength),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// KeyValues that look plain, with a byte or two changed.
    fn nearly_plain() -> impl Strategy<Value = Vec<u8>> {
        let key = prop::collection::vec(b'a'..=b'z', 0..40);
        let string = prop::collection::vec(b'a'..=b'z', 0..60)
            .prop_map(|text| [&[0x0A, text.len() as u8], &text[..]].concat());
        let int = any::<u64>().prop_map(|int| {
            let mut value = vec![0x18];
            prost::encoding::encode_varint(int, &mut value);
            value
        });
        let double = any::<[u8; 8]>().prop_map(|it| [&[0x21], &it[..]].concat());
        let bool = any::<u8>().prop_map(|it| vec![0x10, it]);
        let value = prop_oneof![string, int, double, bool];
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
        (key, value, changes).prop_map(|(key, value, changes)| {
            let (key_len, value_len) = (key.len() as u8, value.len() as u8);
            let mut bytes = [&[0x0A, key_len], &key[..], &[0x12, value_len], &value].concat();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_short_way_accepts_only_what_the_long_way_accepts(bytes in nearly_plain()) {
            let long = Checker::default().message(&bytes, Kind::KeyValue, 4, 64);
            prop_assert!(!plain_attribute(&bytes) || long == Ok(()));
        }

        #[test]
        fn ascii_is_what_std_says_it_is(mut bytes in prop::collection::vec(0..0x80u8, 0..70), at: prop::sample::Index) {
            prop_assert!(is_ascii(&bytes));
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] |= 0x80;
                prop_assert!(!is_ascii(&bytes));
            }
        }
    }

    #[test]
    fn the_attributes_that_agents_send_take_the_short_way() {
        let rows: [&[u8]; 4] = [
            b"\x0A\x14gen_ai.request.model\x12\x13\x0A\x11claude-sonnet-4-5",
            b"\x0A\x1Agen_ai.usage.output_tokens\x12\x03\x18\x9A\x05",
            b"\x0A\x09cache.hit\x12\x02\x10\x01",
            b"\x0A\x08duration\x12\x09\x21\x9A\x99\x99\x99\x99\x99\xB9\x3F",
        ];
        for row in rows {
            assert!(plain_attribute(row), "{row:x?}");
        }
    }
}
