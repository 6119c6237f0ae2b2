//! Spans that leave with attributes of ours: `SampleRate`, and the name of the policy. They go to the
//! end of the span, and what came with their keys is taken out, so that nothing says two things.
//!
//! `SampleRate` is 2^56 / (2^56 - T), with the T that the span leaves with; with what is not known it is
//! not written. A span with a rate and no `th` was sampled by somebody who drew by luck of his own, as
//! Refinery and the older SDKs of Honeycomb do: its rate is multiplied, and it gets no `th`, for there is
//! none that says both. A lawful `th` goes before a rate: that is then the same, rounded, as we write it.

use super::{Copying, Edit, Found, TRACE_STATE, Unwritten, UnwrittenSpans, Weight, find};
use crate::model::Threshold;
use crate::wire::attribute::{Attribute, without};
use crate::wire::field::{field_len, prefix, varint_len};
use crate::wire::record::SPAN_ATTRIBUTES;
use crate::wire::sample_rate::{self, is_rate, put_rate};
use crate::wire::section::{TAG, spans_in};
use crate::wire::tracestate::{Sampling, rewrite};
use crate::wire::writing::Writing;

/// What becomes of one span.
struct Marked<'s> {
    edit: Edit<'s>,
    reason: Option<Unwritten>,
    rate: Option<u64>,
}

impl Weight {
    /// Whether attributes change at all.
    pub(super) fn marks(&self) -> bool {
        self.rounding.is_some() || self.attribute.is_some()
    }

    /// Bytes by which they make any one span longer, its own length included.
    pub(super) fn attributes_growth_max(&self) -> usize {
        let rate = self.rounding.map_or(0, |_| sample_rate::FIELD_MAX);
        let attribute = self.attribute.as_ref().map_or(0, Attribute::field_len);
        match rate + attribute {
            0 => 0,
            added => added + varint_len(added),
        }
    }

    pub(super) fn measure_marked(
        &self,
        section: &[u8],
        unwritten: &mut UnwrittenSpans,
    ) -> (Copying, usize) {
        let (mut read, mut len) = (0, 0);
        for (field, span) in spans_in(section) {
            let marked = self.mark(span);
            let reason = |it: &Marked<'_>| it.reason;
            unwritten.count(marked.as_ref().map_or(Some(Unwritten::Malformed), reason));
            read += field.len();
            len += field_len(self.marked_len(span, marked.as_ref()));
        }
        if read < section.len() {
            (Copying::Whole, section.len())
        } else {
            (Copying::Marking, len)
        }
    }

    /// [`None`] for what is no span, and goes out as it is.
    fn mark<'s>(&self, span: &'s [u8]) -> Option<Marked<'s>> {
        let stated = self.rounding.map_or(1, |_| sample_rate::stated(span));
        // Nobody meets a broken one: such a span was never accepted.
        let found = find(span).ok()?;
        let judged = self.edit_at(found, stated > 1);
        let rate = self.rounding.and_then(|rounding| {
            if let Some(threshold) = judged.threshold {
                return Some(rounding.rate(1, threshold));
            }
            // An earlier sampler drew by luck of its own, and ours by the randomness of the trace.
            let randomness = found.and_then(|found| Sampling::read(found.text).randomness);
            let lucky = |it: &Threshold| it.admits(randomness.unwrap_or(self.randomness));
            let is_known = stated > 1 && judged.reason == Some(Unwritten::UpstreamUnknown);
            let threshold = self.threshold.filter(|it| is_known && lucky(it))?;
            Some(rounding.rate(stated, threshold))
        });
        Some(Marked {
            edit: judged.edit,
            reason: judged.reason,
            rate,
        })
    }

    pub(super) fn write_marked(&self, section: &[u8], out: &mut Writing<'_>) {
        for (_, span) in spans_in(section) {
            let marked = self.mark(span);
            out.put_prefix(TAG, self.marked_len(span, marked.as_ref()));
            self.pieces(span, marked.as_ref(), &mut |piece| out.put(piece));
        }
    }

    fn marked_len(&self, span: &[u8], marked: Option<&Marked<'_>>) -> usize {
        let mut len = 0;
        self.pieces(span, marked, &mut |piece| len += piece.len());
        len
    }

    fn pieces(&self, span: &[u8], marked: Option<&Marked<'_>>, put: &mut impl FnMut(&[u8])) {
        let Some(marked) = marked else {
            put(span);
            return;
        };
        let gone = |key_value: &[u8]| {
            self.rounding.is_some() && is_rate(key_value)
                || self
                    .attribute
                    .as_ref()
                    .is_some_and(|it| it.replaces(key_value))
        };
        match &marked.edit {
            Edit::None => without(span, SPAN_ATTRIBUTES, gone, put),
            Edit::Append => {
                without(span, SPAN_ATTRIBUTES, gone, put);
                put(&self.appended[..usize::from(self.appended_len)]);
            }
            Edit::Rewrite(rewritten) => {
                let Found {
                    before,
                    text,
                    after,
                } = rewritten.found;
                without(before, SPAN_ATTRIBUTES, gone, put);
                let (prefix, len) = prefix(TRACE_STATE, rewritten.text_len);
                put(&prefix[..len]);
                rewrite(text, rewritten.puts_th.then_some(&self.th), &mut *put);
                without(after, SPAN_ATTRIBUTES, gone, put);
            }
        }
        if let Some(rate) = marked.rate {
            put_rate(rate, put);
        }
        if let Some(attribute) = &self.attribute {
            attribute.put(SPAN_ATTRIBUTES as u8, put);
        }
    }
}
