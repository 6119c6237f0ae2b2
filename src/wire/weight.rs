//! Writes into spans with what probability they were kept: `ot=th` in their trace states, by an
//! edit of their bytes.
//!
//! A span that was sampled with T_s before, in a trace kept with T, leaves with max(T_s, T): a
//! later stage may only reject more. Consistency holds because all stages compare with the same
//! randomness R, the span's `rv` or else the low 7 bytes of its trace ID; a span with R below its
//! threshold cannot have been kept with it, so its `th` is erased. No `th` means "probability
//! unknown", never "1".
//!
//! The edit touches field 3 of the span and nothing else. A span without one, as most are, gets it
//! at its end: field order is free, so this is right for whatever stands before, the IDs stay in
//! front where readers expect them, and a copy of the span and a constant are all there is to
//! write. If field 3 comes more than once the last one is the trace state, and it alone is edited,
//! where it stands; it is made empty and not taken away, or the one before it would count.
//!
//! How the text of a trace state reads is `tracestate`'s. Attributes that go with it are `marking`'s.

mod marking;

use crate::model::{Randomness, Threshold, TraceId};
use crate::wire::attribute::Attribute;
use crate::wire::field::{Broken, Cursor, field_len};
use crate::wire::sample_rate::Rounding;
use crate::wire::section::{TAG, spans_in};
use crate::wire::tracestate::{Incoming, Sampling, ThText, rewrite};
use crate::wire::writing::Writing;

/// How an exported span says what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// `ot=th` in its trace state.
    #[default]
    TraceState,
    /// That, and an attribute `SampleRate`.
    SampleRate,
    /// Not at all; what it said before and is not true any more is erased.
    None,
}

/// Why a span goes out with no `th` of ours. Also a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unwritten {
    /// Nobody can say how likely the trace was to be kept; a `th` from before was erased.
    ProbabilityUnknown,
    /// It came with no `th`, and what comes without is not known to be unsampled.
    UpstreamUnknown,
    /// Its `th`, or the `ot` around it, is not what the specification says; `th` was erased.
    Malformed,
    /// Its randomness is below its threshold, or below that of the verdict; `th` was erased.
    Inconsistent,
    /// `ot` or the whole trace state would be longer than is allowed; a `th` that is no longer
    /// true was erased.
    Overflow,
}

impl Unwritten {
    pub const ALL: [Self; 5] = [
        Self::ProbabilityUnknown,
        Self::UpstreamUnknown,
        Self::Malformed,
        Self::Inconsistent,
        Self::Overflow,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::ProbabilityUnknown => "probability_unknown",
            Self::UpstreamUnknown => "upstream_unknown",
            Self::Malformed => "malformed",
            Self::Inconsistent => "inconsistent",
            Self::Overflow => "overflow",
        }
    }
}

/// Numbers of spans by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnwrittenSpans([u32; Unwritten::ALL.len()]);

impl UnwrittenSpans {
    pub fn of(&self, reason: Unwritten) -> u32 {
        self.0[reason as usize]
    }

    fn count(&mut self, reason: Option<Unwritten>) {
        if let Some(reason) = reason {
            self.0[reason as usize] += 1;
        }
    }
}

/// What is written into the spans of one trace. Small; made once a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    threshold: Option<Threshold>,
    /// Of spans without `rv`.
    randomness: Randomness,
    assume_unsampled_upstream: bool,
    th: ThText,
    /// Field 3 for a span that has none, and its length.
    appended: [u8; APPENDED_MAX],
    appended_len: u8,
    /// Why a span without a trace state gets none, in this trace.
    not_appended: Option<Unwritten>,
    /// Else nothing is put into a trace state.
    puts_th: bool,
    /// If there is to be a `SampleRate`.
    rounding: Option<Rounding>,
    /// What else is written into each span.
    attribute: Option<Attribute>,
}

/// Tag, length, `ot=th:` and 14 digits, rounded up so that it is copied in three moves.
const APPENDED_MAX: usize = 24;
const TRACE_STATE: u8 = 0x1A;

/// How a section is copied. Decided once, when it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copying {
    /// No span changes.
    Whole,
    /// No span has a trace state, and each gets the same.
    Appending,
    /// Each span is looked at once more.
    Editing,
    /// The same, and its attributes change.
    Marking,
}

/// What becomes of one span.
enum Edit<'s> {
    None,
    Append,
    Rewrite(Rewritten<'s>),
}

/// What becomes of one span, why it leaves without a threshold if it does, and the threshold with
/// which it was kept, if anybody knows it.
struct Judged<'s> {
    edit: Edit<'s>,
    reason: Option<Unwritten>,
    threshold: Option<Threshold>,
}

/// The trace state of a span: its text, what is before its field and what is after.
#[derive(Clone, Copy)]
struct Found<'s> {
    before: &'s [u8],
    text: &'s [u8],
    after: &'s [u8],
}

/// A span whose trace state changes.
struct Rewritten<'s> {
    found: Found<'s>,
    /// `th` is put in, or else erased.
    puts_th: bool,
    text_len: usize,
}

impl Weight {
    /// Without a threshold every `th` is erased: whatever it was, it is not true of what is kept
    /// now. `randomness` is that of the trace ID. With `assume_unsampled_upstream` a span without `th`
    /// is one that was certain to come; without, nobody knows.
    pub fn new(
        threshold: Option<Threshold>,
        randomness: Randomness,
        assume_unsampled_upstream: bool,
    ) -> Self {
        let th = ThText::of(threshold.unwrap_or(Threshold::ALWAYS));
        let mut appended = [0; APPENDED_MAX];
        let text_len = 3 + th.as_bytes().len();
        appended[..5].copy_from_slice(&[TRACE_STATE, text_len as u8, b'o', b't', b'=']);
        appended[5..][..th.as_bytes().len()].copy_from_slice(th.as_bytes());
        let not_appended = match threshold {
            None => Some(Unwritten::ProbabilityUnknown),
            Some(_) if !assume_unsampled_upstream => Some(Unwritten::UpstreamUnknown),
            Some(threshold) if !threshold.admits(randomness) => Some(Unwritten::Inconsistent),
            Some(_) => None,
        };
        Self {
            threshold,
            randomness,
            assume_unsampled_upstream,
            th,
            appended,
            appended_len: 2 + text_len as u8,
            not_appended,
            puts_th: true,
            rounding: None,
            attribute: None,
        }
    }

    /// Says it in another way.
    #[must_use]
    pub fn written_as(mut self, weights: Weights, trace: TraceId) -> Self {
        self.puts_th = weights != Weights::None;
        self.rounding = (weights == Weights::SampleRate).then(|| Rounding::of(trace));
        self
    }

    /// Each span gets this attribute, too.
    #[must_use]
    pub fn with_attribute(mut self, attribute: Attribute) -> Self {
        self.attribute = Some(attribute);
        self
    }

    /// At most so many bytes longer does any one span become, its tag and length included: the
    /// text is as long as the field for a span that has none, less a tag and a length, plus a
    /// comma; and two lengths may need a byte more each.
    pub fn growth_max(&self) -> usize {
        usize::from(self.appended_len) + 2 + self.attributes_growth_max()
    }

    /// Reads the spans of a section: how it is copied, and how long the copy is.
    pub(super) fn measure(
        &self,
        section: &[u8],
        unwritten: &mut UnwrittenSpans,
    ) -> (Copying, usize) {
        if self.marks() {
            return self.measure_marked(section, unwritten);
        }
        let (mut whole, mut appending) = (true, true);
        let (mut read, mut len) = (0, 0);
        for (field, span) in spans_in(section) {
            let judged = self.edit(span);
            unwritten.count(judged.reason);
            read += field.len();
            match judged.edit {
                Edit::None => {
                    appending = false;
                    len += field.len();
                }
                Edit::Append => {
                    whole = false;
                    len += field_len(span.len() + usize::from(self.appended_len));
                }
                Edit::Rewrite(rewritten) => {
                    (whole, appending) = (false, false);
                    len += field_len(rewritten.len());
                }
            }
        }
        if whole || read < section.len() {
            (Copying::Whole, section.len())
        } else if appending {
            (Copying::Appending, len)
        } else {
            (Copying::Editing, len)
        }
    }

    /// Writes as many bytes as were measured.
    pub(super) fn write(&self, section: &[u8], copying: Copying, out: &mut Writing<'_>) {
        match copying {
            Copying::Whole => out.put(section),
            Copying::Appending => {
                for (_, span) in spans_in(section) {
                    self.append(span, out);
                }
            }
            Copying::Editing => {
                for (field, span) in spans_in(section) {
                    match self.edit(span).edit {
                        Edit::None => out.put(field),
                        Edit::Append => self.append(span, out),
                        Edit::Rewrite(rewritten) => self.rewrite(&rewritten, out),
                    }
                }
            }
            Copying::Marking => self.write_marked(section, out),
        }
    }

    #[inline(always)]
    fn append(&self, span: &[u8], out: &mut Writing<'_>) {
        let added = usize::from(self.appended_len);
        out.put_prefix(TAG, span.len() + added);
        out.put(span);
        out.put_first(&self.appended, added);
    }

    fn rewrite(&self, span: &Rewritten<'_>, out: &mut Writing<'_>) {
        out.put_prefix(TAG, span.len());
        out.put(span.found.before);
        out.put_prefix(TRACE_STATE, span.text_len);
        rewrite(span.found.text, span.puts_th.then_some(&self.th), |piece| {
            out.put(piece);
        });
        out.put(span.found.after);
    }

    #[inline(always)]
    fn edit<'s>(&self, span: &'s [u8]) -> Judged<'s> {
        match find(span) {
            // Nobody meets it: such a span was never accepted.
            Err(_) => Judged::untouched(Some(Unwritten::Malformed)),
            Ok(found) => self.edit_at(found, false),
        }
    }

    /// `is_sampled`: the span says in another way than by a `th` that it was sampled before.
    #[inline(always)]
    fn edit_at<'s>(&self, found: Option<Found<'s>>, is_sampled: bool) -> Judged<'s> {
        let Some(found) = found else {
            let reason = match self.not_appended {
                None if is_sampled => Some(Unwritten::UpstreamUnknown),
                reason => reason,
            };
            return match reason {
                None => Judged {
                    edit: if self.puts_th {
                        Edit::Append
                    } else {
                        Edit::None
                    },
                    reason: None,
                    threshold: self.threshold,
                },
                Some(_) if !self.puts_th => Judged::untouched(None),
                reason => Judged::untouched(reason),
            };
        };
        self.edit_found(found, is_sampled)
    }

    #[inline(never)]
    fn edit_found<'s>(&self, found: Found<'s>, is_sampled: bool) -> Judged<'s> {
        let sampling = Sampling::read(found.text);
        let erase = |reason, threshold| Judged {
            edit: if sampling.has_th {
                Edit::Rewrite(self.rewritten(found, false))
            } else {
                Edit::None
            },
            reason: self.puts_th.then_some(reason),
            threshold,
        };
        let Some(threshold) = self.threshold else {
            return erase(Unwritten::ProbabilityUnknown, None);
        };
        let before = match sampling.threshold {
            Incoming::Malformed => return erase(Unwritten::Malformed, None),
            Incoming::Known(before) => before,
            Incoming::Absent if self.assume_unsampled_upstream && !is_sampled => Threshold::ALWAYS,
            Incoming::Absent => return erase(Unwritten::UpstreamUnknown, None),
        };
        let randomness = sampling.randomness.unwrap_or(self.randomness);
        let after = before.max(threshold);
        if !after.admits(randomness) {
            return erase(Unwritten::Inconsistent, None);
        }
        if sampling.has_th && before >= threshold {
            return Judged {
                edit: Edit::None,
                reason: None,
                threshold: Some(after),
            };
        }
        let rewritten = self.rewritten(found, true);
        let has_room = sampling.has_room(found.text.len(), rewritten.text_len, &self.th);
        if self.puts_th && has_room {
            Judged {
                edit: Edit::Rewrite(rewritten),
                reason: None,
                threshold: Some(after),
            }
        } else {
            erase(Unwritten::Overflow, Some(after))
        }
    }

    fn rewritten<'s>(&self, found: Found<'s>, puts_th: bool) -> Rewritten<'s> {
        let mut text_len = 0;
        rewrite(found.text, puts_th.then_some(&self.th), |piece| {
            text_len += piece.len();
        });
        Rewritten {
            found,
            puts_th,
            text_len,
        }
    }
}

impl Judged<'_> {
    fn untouched(reason: Option<Unwritten>) -> Self {
        Self {
            edit: Edit::None,
            reason,
            threshold: None,
        }
    }
}

impl Rewritten<'_> {
    /// Bytes of the whole span.
    fn len(&self) -> usize {
        self.found.before.len() + field_len(self.text_len) + self.found.after.len()
    }
}

/// The last field 3 of a Span message.
#[inline(always)]
fn find(span: &[u8]) -> Result<Option<Found<'_>>, Broken> {
    let mut cursor = Cursor::new(span);
    let mut found = None;
    loop {
        // Nearly all fields have a tag of one byte and fewer than 128 bytes, or eight. A branch for
        // each shape and none for each field: what comes after what is guessed well then.
        while let [tag, len, rest @ ..] = cursor.rest {
            let skipped = if tag & 0x87 == 2 && *tag != TRACE_STATE && *len < 0x80 {
                rest.get(usize::from(*len)..)
            } else if tag & 0x87 == 1 {
                rest.get(7..)
            } else if tag & 0x87 == 0 && *len < 0x80 {
                Some(rest)
            } else {
                break;
            };
            cursor.rest = skipped.ok_or(Broken::Truncated)?;
        }
        let start = span.len() - cursor.rest.len();
        let Some(tag) = cursor.tag()? else {
            return Ok(found);
        };
        if tag == u32::from(TRACE_STATE) {
            let text = cursor.body()?;
            found = Some(Found {
                before: &span[..start],
                text,
                after: cursor.rest,
            });
        } else {
            cursor.skip(tag, 0)?;
        }
    }
}
