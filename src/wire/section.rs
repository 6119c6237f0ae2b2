//! A section: the spans of one ScopeSpans as fields, `(12 len span)*`. How it is measured,
//! written from a scanned message, and read back.

use crate::model::SpanId;
use crate::wire::SpanEntry;
use crate::wire::field::{Cursor, field_len, varint_len, write_prefix};

pub(super) const TAG: u8 = 0x12;

/// Bytes of one span in a section.
#[inline(always)]
pub(super) fn span_len(span: &SpanEntry) -> usize {
    field_len((span.end - span.start) as usize)
}

/// Writes spans of one ScopeSpans, in source order.
pub(super) fn write<'s>(
    message: &[u8],
    spans: impl Iterator<Item = &'s SpanEntry>,
    out: &mut Vec<u8>,
) {
    // Neighbours in the source are copied at once. If between two spans there are just as many
    // bytes as a minimal tag and length take, then that is what stands there: the gap holds the
    // second one's tag and length in any case, and nothing else fits.
    let mut run: Option<(u32, u32)> = None;
    for span in spans {
        let len = (span.end - span.start) as usize;
        let prefix = 1 + varint_len(len) as u32;
        match &mut run {
            Some((_, end)) if span.start - *end == prefix => *end = span.end,
            _ => {
                if let Some((start, end)) = run {
                    out.extend_from_slice(&message[start as usize..end as usize]);
                }
                write_prefix(TAG, len, out);
                run = Some((span.start, span.end));
            }
        }
    }
    if let Some((start, end)) = run {
        out.extend_from_slice(&message[start as usize..end as usize]);
    }
}

/// The spans of `(12 len span)*`: each whole field with its tag, and the span's own bytes.
/// Stops at the first byte that is not such a field; the log's checksum makes that impossible.
pub fn spans_in(section: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut cursor = Cursor::new(section);
    std::iter::from_fn(move || {
        let before = cursor.rest;
        if cursor.tag() != Ok(Some(u32::from(TAG))) {
            cursor.rest = &[];
            return None;
        }
        let Ok(span) = cursor.body() else {
            cursor.rest = &[];
            return None;
        };
        Some((&before[..before.len() - cursor.rest.len()], span))
    })
}

/// The first span ID in a Span message that [`crate::wire::Scan`] accepted before: a key under which
/// byte-identical spans are found, at a tenth of the cost of [`span_id_of`], which must read all of
/// the span because the last ID counts. Clients write one.
pub fn leading_span_id(span: &[u8]) -> Option<[u8; 8]> {
    // As every SDK writes it: the trace ID, then the span ID.
    if let [0x0A, 16, rest @ ..] = span
        && let Some([0x12, 8, id @ ..]) = rest.get(16..)
    {
        return id.first_chunk().copied();
    }
    span_id_of(span).map(|id| *id.as_bytes())
}

/// The span ID of a Span message that [`crate::wire::Scan`] accepted before.
pub fn span_id_of(span: &[u8]) -> Option<SpanId> {
    let mut cursor = Cursor::new(span);
    let mut id = None;
    loop {
        // Attributes are most of a span: skip a row of short ones at once.
        while let [0x4A, len @ ..0x80, rest @ ..] = cursor.rest {
            cursor.rest = rest.get(usize::from(*len)..)?;
        }
        let Some(tag) = cursor.tag().ok()? else {
            break;
        };
        if tag == 0x12 {
            id = Some(cursor.body().ok()?); // the last one wins, so read on
        } else {
            cursor.skip(tag, 0).ok()?;
        }
    }
    SpanId::new(id?.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_reads_back_and_stops_at_what_is_none() {
        let section = [0x12, 1, 7, 0x12, 0, 0x12, 2, 8, 9];
        let read: Vec<_> = spans_in(&section).collect();
        let expect: [(&[u8], &[u8]); 3] = [
            (&section[..3], &[7]),
            (&section[3..5], &[]),
            (&section[5..], &[8, 9]),
        ];
        assert_eq!(read, expect);
        assert_eq!(spans_in(&section[..8]).count(), 2);
        assert_eq!(spans_in(&[0x0A, 0, 0x12, 0]).count(), 0);
    }

    #[test]
    fn the_last_span_id_wins() {
        let span = [
            &[0x12, 8][..],
            &[1; 8],
            &[0x2A, 1, b'x'],
            &[0x12, 8],
            &[2; 8],
        ]
        .concat();
        assert_eq!(span_id_of(&span), SpanId::new([2; 8]));
        assert_eq!(span_id_of(&[0x2A, 1, b'x']), None);
    }
}
