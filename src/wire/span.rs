//! Checks one Span and reads the few fields that everybody needs: its IDs and its parent's.

use crate::model::{SpanId, TraceId};
use crate::wire::RejectReason;
use crate::wire::check::{Checker, Kind, SPAN_DEPTH, plain_attribute, span_id, text, trace_id};
use crate::wire::field::Cursor;

/// What is read of a span.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpanFacts {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) is_root: bool,
}

/// The first fault found decides the reason. An ID that comes twice is as protobuf has it, the
/// last; but none of them may have a length that no ID has, because the Collector's decoder
/// refuses a batch for that. The same holds for a parent ID: none, 8 zero bytes (both mean a
/// root), or 8 bytes.
#[inline]
pub(super) fn check_span(
    bytes: &[u8],
    checker: &mut Checker,
    nesting_max: u32,
) -> Result<SpanFacts, RejectReason> {
    const INNER: u32 = SPAN_DEPTH + 1;
    let mut cursor = Cursor::new(bytes);
    let mut trace = None;
    let mut span = None;
    let mut parent = None;
    loop {
        // Attributes come in a row and are most of a span.
        while let [0x4A, len @ ..0x80, rest @ ..] = cursor.rest
            && let Some((attribute, rest)) = rest.split_at_checked(*len as usize)
            && plain_attribute(attribute)
        {
            cursor.rest = rest;
        }
        let Some(tag) = cursor.tag()? else {
            break;
        };
        match tag {
            0x4A => checker.message(cursor.body()?, Kind::KeyValue, INNER, nesting_max)?,
            0x0A => trace = trace_id(cursor.body()?)?,
            0x12 => span = span_id(cursor.body()?)?,
            0x22 => parent = span_id(cursor.body()?)?,
            0x1A | 0x2A => text(cursor.body()?)?,
            0x30 | 0x50 | 0x60 | 0x70 => {
                cursor.varint()?;
            }
            0x39 | 0x41 => {
                cursor.fixed::<8>()?;
            }
            // Two bytes on the wire: field 16.
            0x85 => {
                cursor.fixed::<4>()?;
            }
            0x5A => checker.message(cursor.body()?, Kind::Event, INNER, nesting_max)?,
            0x6A => checker.message(cursor.body()?, Kind::Link, INNER, nesting_max)?,
            0x7A => checker.message(cursor.body()?, Kind::Status, INNER, nesting_max)?,
            _ if tag >> 3 <= 16 => return Err(RejectReason::Malformed),
            _ => cursor.skip(tag, SPAN_DEPTH)?,
        }
    }
    Ok(SpanFacts {
        trace: TraceId::new(trace.ok_or(RejectReason::TraceIdLength)?)
            .ok_or(RejectReason::TraceIdZero)?,
        span: SpanId::new(span.ok_or(RejectReason::SpanIdLength)?)
            .ok_or(RejectReason::SpanIdZero)?,
        is_root: parent.is_none_or(|parent| parent == [0; 8]),
    })
}
