//! Finds and checks every span of an `ExportTraceServiceRequest` without decoding it.
//!
//! What passes is what any OTLP backend decodes: well-formed, valid UTF-8 in every string, nested
//! no deeper than [`ScanLimits::nesting_max`], with legal IDs. A span that is not is rejected
//! alone (a partial success); a message whose outer structure is broken is refused whole.

use crate::model::{SpanId, TraceId};

/// Bounds that hold before anything is allocated.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// More spans than this, valid or not, and the whole message is refused.
    pub spans_max: u32,
    /// Levels of `AnyValue` inside `AnyValue`. prost-based backends refuse a whole batch at 100
    /// nested messages.
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

/// Why one span can never be accepted. Also a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    TraceIdLength,
    TraceIdZero,
    SpanIdLength,
    SpanIdZero,
    InvalidUtf8,
    NestedTooDeep,
    Malformed,
}

/// Where the first rejected span stood, for the message to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    pub reason: RejectReason,
    /// Indexes into resource_spans, scope_spans and spans, as the client wrote them.
    pub resource: u32,
    pub scope: u32,
    pub span: u32,
}

/// How many spans were rejected, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejections {
    pub(crate) counts: [u32; RejectReason::ALL.len()],
    pub(crate) first: Option<Rejection>,
}

/// One accepted span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanEntry {
    pub trace: TraceId,
    pub span: SpanId,
    /// No parent span ID: the root of its trace.
    pub is_root: bool,
    /// Index of its ScopeSpans among those of the message.
    pub(crate) scope: u32,
    /// The Span message's own bytes (without tag and length) in the request.
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// What is in one message. Made once, filled again and again: allocation-free when warm.
#[derive(Debug, Default)]
pub struct Scan {
    pub(crate) spans: Vec<SpanEntry>,
    pub(crate) rejections: Rejections,
}

impl RejectReason {
    pub const ALL: [Self; 7] = [
        Self::TraceIdLength,
        Self::TraceIdZero,
        Self::SpanIdLength,
        Self::SpanIdZero,
        Self::InvalidUtf8,
        Self::NestedTooDeep,
        Self::Malformed,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::TraceIdLength => "trace_id_length",
            Self::TraceIdZero => "trace_id_zero",
            Self::SpanIdLength => "span_id_length",
            Self::SpanIdZero => "span_id_zero",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::NestedTooDeep => "nested_too_deep",
            Self::Malformed => "malformed",
        }
    }
}

impl Rejections {
    pub fn total(&self) -> u32 {
        self.counts.iter().sum()
    }

    pub fn count(&self, reason: RejectReason) -> u32 {
        self.counts[reason as usize]
    }

    pub fn first(&self) -> Option<Rejection> {
        self.first
    }
}

impl std::fmt::Display for Rejections {
    /// The `error_message` of a partial success: counts by reason and where the first one stood.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = f;
        unimplemented!()
    }
}

impl Scan {
    /// Forgets the last message and reads this one. Messages of 4 GiB and more are malformed.
    pub fn read(&mut self, message: &[u8], limits: &ScanLimits) -> Result<(), ScanError> {
        let _ = (message, limits);
        unimplemented!()
    }

    pub fn spans(&self) -> &[SpanEntry] {
        &self.spans
    }

    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }
}
