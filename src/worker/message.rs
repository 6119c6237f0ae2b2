//! A message to the backend while it is put together, and what it was put together from: should
//! the backend refuse it, any part of it can be made again.

use std::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::model::{SpanId, TraceId, VerdictId};
use crate::wire::{BatchBuilder, Weight, leading_span_id, span_id_of, spans_in};

/// A message is closed before it has more bytes, unless a single span has, or a resource is heavy.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;
/// What most backends take: grpc-go servers refuse more than 4 MiB by default.
const ACCEPTED_BYTES: usize = (4 << 20) - (64 << 10);
/// A resource that leaves less than this to its spans in what backends take is too heavy for them.
const WORTHWHILE_BYTES: usize = 256 << 10;

/// See the module. Its spans are counted from 0, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Message {
    pub(crate) builder: BatchBuilder,
    pub(crate) spans: u32,
    /// In the order of the work's traces and fragments.
    pieces: Vec<Piece>,
}

/// Where a span comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Place of its trace in the work.
    pub(crate) trace: usize,
    /// Place of its fragment in what the work has of the trace.
    pub(crate) fragment: usize,
    /// Spans before it in the fragment.
    pub(crate) span: u32,
}

/// Spans of one scope of a fragment, as they lie.
#[derive(Debug, Clone)]
struct Piece {
    source: Source,
    /// Of the first one.
    origin: Origin,
    spans: u32,
    section: Bytes,
}

/// What the spans of one scope of a fragment have in common.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) verdict: (TraceId, VerdictId),
    pub(crate) weight: Weight,
    pub(crate) resource: Bytes,
    pub(crate) scope: Bytes,
}

/// The spans of one trace that went into messages, to leave out copies.
#[derive(Default)]
pub(crate) struct Seen {
    /// By the span ID it begins with, the first span that had it.
    first: hashbrown::HashMap<[u8; 8], SeenSpan, foldhash::fast::RandomState>,
    /// Sections of this trace that went into the message being put together.
    sections: Vec<Bytes>,
    /// Hashes of others that had the same ID.
    others: Vec<u64>,
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
}

/// A span, to compare another with. Its bytes as long as the message is not out, its hash
/// afterwards: most IDs never come again, and most spans are never hashed.
#[derive(Clone, Copy)]
enum SeenSpan {
    /// Of the last sections.
    At {
        section: u32,
        start: u32,
        end: u32,
    },
    Hash(u64),
}

impl Message {
    /// A heavy resource goes out with every message that has a span of it: a thousand traces below
    /// 4 MiB of attributes would make 4 GiB, if each filled a message. So its spans get as much
    /// room as itself, if the backend takes that.
    pub(crate) fn bytes_max(&self) -> usize {
        let heaviest = self.builder.heaviest_header();
        let doubled = MESSAGE_BYTES.max(2 * heaviest);
        if heaviest + WORTHWHILE_BYTES <= ACCEPTED_BYTES {
            doubled.min(ACCEPTED_BYTES)
        } else {
            doubled
        }
    }

    fn push(&mut self, piece: Piece) {
        let source = &piece.source;
        let section = piece.section.clone();
        self.builder
            .add(&source.resource, &source.scope, section, &source.weight);
        self.spans += piece.spans;
        self.pieces.push(piece);
    }

    /// The traces in it with their verdicts, each once.
    pub(crate) fn verdicts(&self) -> Vec<(TraceId, VerdictId)> {
        let mut verdicts: Vec<_> = self.pieces.iter().map(|it| it.source.verdict).collect();
        verdicts.dedup();
        verdicts.sort_unstable();
        verdicts.dedup();
        verdicts
    }

    /// Trace and ID of the first span in it.
    pub(crate) fn first(&self) -> Option<(TraceId, Option<SpanId>)> {
        let piece = self.pieces.first()?;
        let span = spans_in(&piece.section).next();
        let id = span.and_then(|(_, span)| span_id_of(span));
        Some((piece.source.verdict.0, id))
    }

    pub(crate) fn encoded(&self) -> Vec<u8> {
        let mut encoded = vec![0; self.builder.encoded_len()];
        self.builder.write_to(&mut encoded);
        encoded
    }

    /// A message of some of its spans.
    pub(crate) fn part(&self, spans: Range<u32>) -> Self {
        let mut part = Self::default();
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.spans;
            let (from, to) = (spans.start.max(start), spans.end.min(end));
            if from < to {
                part.push(piece.cut(from - start..to - start));
            }
            start = end;
        }
        part
    }

    /// The spans of each trace, in order.
    pub(crate) fn traces(&self) -> Vec<(usize, Range<u32>)> {
        let mut traces: Vec<(usize, Range<u32>)> = Vec::new();
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.spans;
            match traces.last_mut() {
                Some((trace, spans)) if *trace == piece.origin.trace => spans.end = end,
                _ => traces.push((piece.origin.trace, start..end)),
            }
            start = end;
        }
        traces
    }

    pub(crate) fn origin(&self, span: u32) -> Option<Origin> {
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.spans;
            if span < end {
                let origin = piece.origin;
                return Some(Origin {
                    span: origin.span + (span - start),
                    ..origin
                });
            }
            start = end;
        }
        None
    }
}

impl Piece {
    fn cut(&self, spans: Range<u32>) -> Self {
        if spans == (0..self.spans) {
            return self.clone();
        }
        let (mut start, mut end) = (0, 0);
        for (place, (field, _)) in (0..spans.end).zip(spans_in(&self.section)) {
            end += field.len();
            if place < spans.start {
                start = end;
            }
        }
        Self {
            source: self.source.clone(),
            origin: Origin {
                span: self.origin.span + spans.start,
                ..self.origin
            },
            spans: spans.end - spans.start,
            section: self.section.slice(start..end),
        }
    }
}

impl Seen {
    pub(crate) fn next_trace(&mut self) {
        self.first.clear();
        self.sections.clear();
        self.others.clear();
    }

    /// A message goes out in the middle of a trace: lets go of its buffers.
    pub(crate) fn next_message(&mut self, seed: u64) {
        let Self {
            first, sections, ..
        } = self;
        for span in first.values_mut() {
            if let SeenSpan::At { .. } = span {
                *span = SeenSpan::Hash(xxh3_64_with_seed(bytes_of(sections, *span), seed));
            }
        }
        sections.clear();
    }

    /// Whether the span at these places of the last section is new in the trace.
    fn is_new(&mut self, span: &[u8], start: usize, end: usize, seed: u64) -> bool {
        let Some(id) = leading_span_id(span) else {
            return true;
        };
        let first = match self.first.entry(id) {
            hashbrown::hash_map::Entry::Vacant(place) => {
                place.insert(SeenSpan::At {
                    section: self.sections.len() as u32 - 1,
                    start: start as u32,
                    end: end as u32,
                });
                return true;
            }
            hashbrown::hash_map::Entry::Occupied(held) => *held.get(),
        };
        let is_same = match first {
            SeenSpan::At { .. } => bytes_of(&self.sections, first) == span,
            SeenSpan::Hash(hash) => hash == xxh3_64_with_seed(span, seed),
        };
        if is_same {
            self.duplicates += 1;
            return false;
        }
        let hash = xxh3_64_with_seed(span, seed);
        if self.others.contains(&hash) {
            self.duplicates += 1;
            return false;
        }
        self.conflicts += 1;
        self.others.push(hash);
        true
    }

    /// Adds a section to the message without its copies, and without the first `done` spans of its
    /// fragment: runs of new spans as they lie. `origin` is that of its first span. Gives the length
    /// of what found room, and its spans; an empty message has room for any one span.
    pub(crate) fn add(
        &mut self,
        message: &mut Message,
        seed: u64,
        source: &Source,
        origin: Origin,
        done: u32,
        section: &Bytes,
    ) -> (usize, u32) {
        let mut run_start = 0;
        let mut run_spans = 0;
        let mut at = 0;
        let mut spans = 0;
        let mut is_full = false;
        let push = |message: &mut Message, bytes: Range<usize>, before: u32, spans: u32| {
            if spans > 0 {
                message.push(Piece {
                    source: source.clone(),
                    origin: Origin {
                        span: origin.span + before,
                        ..origin
                    },
                    spans,
                    section: section.slice(bytes),
                });
            }
        };
        self.sections.push(section.clone());
        for (field, span) in spans_in(section) {
            let growth = (run_spans as usize + 1) * source.weight.growth_max();
            let filled = message.builder.encoded_len() + at - run_start + growth;
            if message.spans + run_spans > 0 && filled + field.len() > message.bytes_max() {
                is_full = true;
                break;
            }
            let end = at + field.len();
            let is_new = self.is_new(span, end - span.len(), end, seed);
            if is_new && origin.span + spans >= done {
                run_spans += 1;
            } else {
                push(message, run_start..at, spans - run_spans, run_spans);
                run_start = end;
                run_spans = 0;
            }
            spans += 1;
            at = end;
        }
        push(message, run_start..at, spans - run_spans, run_spans);
        // To the end, should what is there not parse: it would be met again and again.
        (if is_full { at } else { section.len() }, spans)
    }
}

fn bytes_of(sections: &[Bytes], span: SeenSpan) -> &[u8] {
    match span {
        SeenSpan::At {
            section,
            start,
            end,
        } => &sections[section as usize][start as usize..end as usize],
        SeenSpan::Hash(_) => &[],
    }
}
