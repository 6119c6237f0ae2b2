//! Finds and checks every span of an `ExportTraceServiceRequest` without decoding it.
//!
//! What passes is what any OTLP backend decodes: well-formed, valid UTF-8 in every string, nested
//! no deeper than [`ScanLimits::nesting_max`], with legal IDs. A span that is not is rejected
//! alone (a partial success); so are the spans below a resource or scope that is not. A message
//! whose outer structure is broken is refused whole.

use crate::model::{SpanId, TraceId};
use crate::wire::check::{Checker, Kind, RESOURCE_DEPTH, SCOPE_DEPTH, text};
use crate::wire::field::{Broken, Cursor};
use crate::wire::span::check_span;
use crate::wire::{RejectReason, Rejection, Rejections};

/// Bounds that hold before anything is allocated.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// More spans than this, valid or not, and the whole message is refused. So is one with more
    /// than `2 * spans_max + 1024` ResourceSpans and ScopeSpans, which are empty for the most part.
    pub spans_max: u32,
    /// Levels of `AnyValue` inside `AnyValue`. Whatever it says, no more than 99 messages may be
    /// nested below the request, because prost-based backends refuse a whole batch at 100; that
    /// is 47 levels of arrays or 31 of key-value lists in a span's attribute.
    pub nesting_max: u32,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            spans_max: 100_000,
            nesting_max: 64,
        }
    }
}

/// Why a whole message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("not an ExportTraceServiceRequest: {what} at byte {offset}")]
    Malformed { offset: usize, what: &'static str },
    #[error("more than {limit} spans in one request; send smaller batches")]
    TooManySpans { limit: u32 },
}

/// One accepted span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanEntry {
    pub trace: TraceId,
    pub span: SpanId,
    /// No parent span ID: the root of its trace.
    pub is_root: bool,
    /// Index into [`Scan::scopes`].
    pub(super) scope: u32,
    /// The Span message's own bytes (without tag and length) in the request.
    pub(super) start: u32,
    pub(super) end: u32,
}

/// One stretch of header bytes in the request. Adjacent fields are one stretch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// A ResourceSpans or ScopeSpans with an accepted span: where its header is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope {
    /// Of a ScopeSpans: index of its ResourceSpans.
    pub(super) resource: u32,
    /// Its pieces, in `resource_pieces` or `scope_pieces`.
    pub(super) first_piece: u32,
    pub(super) end_piece: u32,
    /// Bytes of the header.
    pub(super) len: u32,
}

/// What is in one message. Made once, filled again and again: allocation-free when warm.
#[derive(Debug, Default)]
pub struct Scan {
    pub(super) spans: Vec<SpanEntry>,
    pub(super) resources: Vec<Envelope>,
    pub(super) scopes: Vec<Envelope>,
    pub(super) resource_pieces: Vec<Piece>,
    pub(super) scope_pieces: Vec<Piece>,
    rejections: Rejections,
    broken_header: bool,
    checker: Checker,
}

/// The state of one reading.
struct Reading<'a> {
    scan: &'a mut Scan,
    limits: &'a ScanLimits,
    /// Spans seen, valid or not.
    spans: u32,
    envelopes: u32,
    /// Where the client wrote what is being read.
    resource: u32,
    scope: u32,
}

/// Where a message stood when one of its envelopes began: what comes after belongs to it.
struct Mark {
    spans: usize,
    scopes: usize,
    scope_pieces: usize,
    /// Place of the first accepted span since.
    first: Option<(u32, u32)>,
}

impl SpanEntry {
    /// The Span message's own bytes. `message` is the one that was scanned.
    pub fn bytes<'m>(&self, message: &'m [u8]) -> &'m [u8] {
        &message[self.start as usize..self.end as usize]
    }
}

impl Scan {
    /// Forgets the last message and reads this one. Messages of 4 GiB and more are malformed.
    pub fn read(&mut self, message: &[u8], limits: &ScanLimits) -> Result<(), ScanError> {
        self.clear();
        if u32::try_from(message.len()).is_err() {
            return Err(ScanError::Malformed {
                offset: 0,
                what: "a message of 4 GiB or more",
            });
        }
        let mut reading = Reading {
            scan: self,
            limits,
            spans: 0,
            envelopes: 0,
            resource: 0,
            scope: 0,
        };
        let read = reading.request(message);
        if read.is_err() {
            self.clear();
        }
        read
    }

    pub fn spans(&self) -> &[SpanEntry] {
        &self.spans
    }

    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// Whether the message can be passed on as it came: nothing in it was rejected, nor is there
    /// a broken header without spans, which is left behind in silence.
    pub fn is_whole(&self) -> bool {
        self.rejections.total() == 0 && !self.broken_header
    }

    /// At most so many bytes do the parts of this message have beyond its own when it is split to
    /// `destinations`: headers go with every part. A sender can make this much larger than
    /// the message (a header of megabytes above spans of many traces): compare it with what is
    /// free before [`crate::wire::split()`].
    pub fn split_growth_max(&self, destinations: u16) -> u64 {
        let copies = |spans: u64| spans.min(u64::from(destinations)).saturating_sub(1);
        // A tag and a length of up to five bytes go before each header.
        let growth =
            |envelope: &Envelope, spans: u64| (u64::from(envelope.len) + 6) * copies(spans);
        let mut sum = 0;
        for spans in self.spans.chunk_by(|a, b| a.scope == b.scope) {
            sum += growth(&self.scopes[spans[0].scope as usize], spans.len() as u64);
        }
        let resource_of = |span: &SpanEntry| self.scopes[span.scope as usize].resource;
        for spans in self.spans.chunk_by(|a, b| resource_of(a) == resource_of(b)) {
            let resource = &self.resources[resource_of(&spans[0]) as usize];
            sum += growth(resource, spans.len() as u64);
        }
        sum
    }

    /// Heap that this value keeps for the next message. At most 20 MiB for 100,000 spans.
    pub fn heap_bytes(&self) -> usize {
        self.spans.capacity() * size_of::<SpanEntry>()
            + (self.resources.capacity() + self.scopes.capacity()) * size_of::<Envelope>()
            + (self.resource_pieces.capacity() + self.scope_pieces.capacity()) * size_of::<Piece>()
    }

    fn clear(&mut self) {
        self.spans.clear();
        self.resources.clear();
        self.scopes.clear();
        self.resource_pieces.clear();
        self.scope_pieces.clear();
        self.rejections.clear();
        self.broken_header = false;
    }
}

impl Reading<'_> {
    fn request(&mut self, message: &[u8]) -> Result<(), ScanError> {
        let end = message.len();
        let mut cursor = Cursor::new(message);
        let broken = |cursor: &Cursor<'_>, why: Broken| malformed(end - cursor.rest.len(), why);
        loop {
            let before = cursor;
            let Some(tag) = cursor.tag().map_err(|why| broken(&before, why))? else {
                return Ok(());
            };
            match tag {
                0x0A => {
                    let body = cursor.body().map_err(|why| broken(&before, why))?;
                    self.resource_spans(body, end - cursor.rest.len())?;
                    self.resource += 1;
                }
                _ if tag >> 3 == 1 => return Err(broken(&before, Broken::WireType)),
                _ => cursor.skip(tag, 0).map_err(|why| broken(&before, why))?,
            }
        }
    }

    /// `end` is where `body` ends in the message.
    fn resource_spans(&mut self, body: &[u8], end: usize) -> Result<(), ScanError> {
        self.count_envelope(end - body.len())?;
        let mut mark = self.mark();
        let first_piece = self.scan.resource_pieces.len();
        let mut header = Ok(());
        let mut piece = body;
        let mut cursor = Cursor::new(body);
        let broken = |cursor: &Cursor<'_>, why: Broken| malformed(end - cursor.rest.len(), why);
        self.scope = 0;
        loop {
            let before = cursor;
            let Some(tag) = cursor.tag().map_err(|why| broken(&before, why))? else {
                break;
            };
            match tag {
                0x12 => {
                    let body = cursor.body().map_err(|why| broken(&before, why))?;
                    push_piece(&mut self.scan.resource_pieces, end, piece, before.rest);
                    piece = cursor.rest;
                    let first = self.scope_spans(body, end - cursor.rest.len())?;
                    mark.first = mark.first.or(first.map(|span| (self.scope, span)));
                    self.scope += 1;
                }
                0x0A => {
                    let resource = cursor.body().map_err(|why| broken(&before, why))?;
                    header = header.and_then(|()| {
                        self.scan.checker.message(
                            resource,
                            Kind::Resource,
                            RESOURCE_DEPTH,
                            self.limits.nesting_max,
                        )
                    });
                }
                0x1A => {
                    let url = cursor.body().map_err(|why| broken(&before, why))?;
                    header = header.and_then(|()| text(url));
                }
                _ if tag >> 3 <= 3 => return Err(broken(&before, Broken::WireType)),
                _ => cursor.skip(tag, 1).map_err(|why| broken(&before, why))?,
            }
        }
        push_piece(&mut self.scan.resource_pieces, end, piece, &[]);
        if let Err(reason) = header {
            self.reject_since(&mark, reason);
        }
        if self.scan.spans.len() == mark.spans {
            self.scan.resource_pieces.truncate(first_piece);
        } else {
            let envelope = Envelope::of(0, &self.scan.resource_pieces, first_piece);
            self.scan.resources.push(envelope);
        }
        Ok(())
    }

    /// Gives the place of the first span that was accepted here.
    fn scope_spans(&mut self, body: &[u8], end: usize) -> Result<Option<u32>, ScanError> {
        self.count_envelope(end - body.len())?;
        let mut mark = self.mark();
        let scope = mark.scopes as u32;
        let mut header = Ok(());
        let mut piece = body;
        let mut span = 0;
        let mut cursor = Cursor::new(body);
        let broken = |cursor: &Cursor<'_>, why: Broken| malformed(end - cursor.rest.len(), why);
        loop {
            let before = cursor;
            let Some(tag) = cursor.tag().map_err(|why| broken(&before, why))? else {
                break;
            };
            match tag {
                0x12 => {
                    let body = cursor.body().map_err(|why| broken(&before, why))?;
                    if self.spans == self.limits.spans_max {
                        return Err(ScanError::TooManySpans {
                            limit: self.limits.spans_max,
                        });
                    }
                    self.spans += 1;
                    push_piece(&mut self.scan.scope_pieces, end, piece, before.rest);
                    piece = cursor.rest;
                    match check_span(body, &mut self.scan.checker, self.limits.nesting_max) {
                        Ok(facts) => {
                            mark.first = mark.first.or(Some((self.scope, span)));
                            let span_end = end - cursor.rest.len();
                            self.scan.spans.push(SpanEntry {
                                trace: facts.trace,
                                span: facts.span,
                                is_root: facts.is_root,
                                scope,
                                start: (span_end - body.len()) as u32,
                                end: span_end as u32,
                            });
                        }
                        Err(reason) => self.scan.rejections.add(
                            1,
                            Rejection {
                                reason,
                                resource: self.resource,
                                scope: self.scope,
                                span,
                            },
                        ),
                    }
                    span += 1;
                }
                0x0A => {
                    let scope = cursor.body().map_err(|why| broken(&before, why))?;
                    header = header.and_then(|()| {
                        self.scan.checker.message(
                            scope,
                            Kind::Scope,
                            SCOPE_DEPTH,
                            self.limits.nesting_max,
                        )
                    });
                }
                0x1A => {
                    let url = cursor.body().map_err(|why| broken(&before, why))?;
                    header = header.and_then(|()| text(url));
                }
                _ if tag >> 3 <= 3 => return Err(broken(&before, Broken::WireType)),
                _ => cursor.skip(tag, 2).map_err(|why| broken(&before, why))?,
            }
        }
        push_piece(&mut self.scan.scope_pieces, end, piece, &[]);
        if let Err(reason) = header {
            self.reject_since(&mark, reason);
            return Ok(None);
        }
        if self.scan.spans.len() == mark.spans {
            self.scan.scope_pieces.truncate(mark.scope_pieces);
        } else {
            let resource = self.scan.resources.len() as u32;
            let envelope = Envelope::of(resource, &self.scan.scope_pieces, mark.scope_pieces);
            self.scan.scopes.push(envelope);
        }
        Ok(mark.first.map(|(_, span)| span))
    }

    fn count_envelope(&mut self, offset: usize) -> Result<(), ScanError> {
        let max = self.limits.spans_max.saturating_mul(2).saturating_add(1024);
        if self.envelopes == max {
            return Err(ScanError::Malformed {
                offset,
                what: "far more ResourceSpans and ScopeSpans than a request may have spans",
            });
        }
        self.envelopes += 1;
        Ok(())
    }

    fn mark(&self) -> Mark {
        Mark {
            spans: self.scan.spans.len(),
            scopes: self.scan.scopes.len(),
            scope_pieces: self.scan.scope_pieces.len(),
            first: None,
        }
    }

    /// Rejects all spans accepted since `mark`: their header is broken.
    fn reject_since(&mut self, mark: &Mark, reason: RejectReason) {
        self.scan.broken_header = true;
        let spans = self.scan.spans.len() - mark.spans;
        if let Some((scope, span)) = mark.first {
            let first = Rejection {
                reason,
                resource: self.resource,
                scope,
                span,
            };
            self.scan.rejections.add(spans as u32, first);
        }
        self.scan.spans.truncate(mark.spans);
        self.scan.scopes.truncate(mark.scopes);
        self.scan.scope_pieces.truncate(mark.scope_pieces);
    }
}

impl Envelope {
    /// The one whose pieces are the last ones from `first_piece` on.
    fn of(resource: u32, pieces: &[Piece], first_piece: usize) -> Self {
        Self {
            resource,
            first_piece: first_piece as u32,
            end_piece: pieces.len() as u32,
            len: pieces[first_piece..]
                .iter()
                .map(|piece| piece.end - piece.start)
                .sum(),
        }
    }

    pub(super) fn pieces<'p>(&self, pieces: &'p [Piece]) -> &'p [Piece] {
        &pieces[self.first_piece as usize..self.end_piece as usize]
    }
}

/// Notes what lies between two children. Both slices reach to `end`, where their message ends.
#[inline(always)]
fn push_piece(pieces: &mut Vec<Piece>, end: usize, from: &[u8], to: &[u8]) {
    if from.len() != to.len() {
        pieces.push(Piece {
            start: (end - from.len()) as u32,
            end: (end - to.len()) as u32,
        });
    }
}

#[cold]
fn malformed(offset: usize, why: Broken) -> ScanError {
    ScanError::Malformed {
        offset,
        what: why.what(),
    }
}
